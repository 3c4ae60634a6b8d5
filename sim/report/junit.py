"""junit.xml: a run as a test suite, so that a CI server shows each threshold as a test.

The suite has a test case for the run itself and one for each threshold. A threshold that did not hold is a failure; a
run whose figures do not count, or that was interrupted, is an error. Times are in s; a threshold takes none.

The format is that of Ant's JUnit task, as CI servers read it: it has no specification of its own.
"""

import re
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from sim.report.summary import Summary, ThresholdResult
from sim.threshold import value_text

RUN: Final = "the run is valid"
"""Name of the test case of the run itself."""

_UNWRITABLE: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML document can have in it, not even as a reference (XML 1.0, 2.2)."""


def write(summary: Summary, path: Path) -> None:
    """Write the suite of a run; raises OSError."""
    suites = Element("testsuites", _counts(summary))
    suite = SubElement(suites, "testsuite", _counts(summary) | {"skipped": "0", "timestamp": summary.started_at})
    properties = SubElement(suite, "properties")
    for name in ("version", "profile", "seed", "verdict"):
        SubElement(properties, "property", name=name, value=str(getattr(summary, name)))
    _add_run(suite, summary)
    for threshold in summary.thresholds:
        _add_threshold(suite, summary.scenario, threshold)
    indent(suites)
    ElementTree(suites).write(path, encoding="utf-8", xml_declaration=True)


def _counts(summary: Summary) -> dict[str, str]:
    return {
        "name": summary.scenario,
        "tests": str(1 + len(summary.thresholds)),
        "failures": str(sum(not threshold.passed for threshold in summary.thresholds)),
        "errors": str(int(_error(summary) is not None)),
        "time": f"{summary.elapsed_s:.3f}",
    }


def _error(summary: Summary) -> str | None:
    """Return why the figures of the run do not count, None when they do."""
    return "the run was interrupted" if summary.verdict == "interrupted" else summary.invalid_reason


def _add_run(suite: Element, summary: Summary) -> None:
    case = _case(suite, summary.scenario, RUN, summary.elapsed_s)
    if (reason := _error(summary)) is not None:
        SubElement(case, "error", type=summary.verdict, message=_writable(reason))


def _add_threshold(suite: Element, scenario: str, threshold: ThresholdResult) -> None:
    case = _case(suite, f"{scenario}.thresholds", threshold.expression, 0)
    if not threshold.passed:
        value = value_text(threshold.expression, threshold.value)
        failure = SubElement(case, "failure", type="threshold", message=value)
        failure.text = _writable(f"{threshold.expression} does not hold: {value}")


def _case(suite: Element, group: str, name: str, time_s: float) -> Element:
    return SubElement(suite, "testcase", classname=group, name=_writable(name), time=f"{time_s:.3f}")


def _writable(text: str) -> str:
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)
