"""How a verdict is written: text for people, JSON, SARIF 2.1.0 for code scanning, annotations for GitHub's actions.

Paths are as the user gave them, relative to the working directory where they lie below it.
"""

import json
import linecache
import os
import shlex
import shutil
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from kongtrace.findings import Frame, Severity, Stack
from sim import __version__
from sim.verify import watch
from sim.verify.mistakes import RULES, Mistake
from sim.verify.program import Program
from sim.verify.search import Shown, Verdict
from sim.verify.trial import Suspects

TEXT_WIDTH: Final = 118

JSON_SCHEMA: Final = "kongsim-verify/1"

_SARIF_LEVELS: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note"}
_GITHUB_LEVELS: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}
_SARIF_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


def replay(suspects: Suspects, seed: int, program: Program) -> str:
    """Return the command that runs one program again."""
    words = ["kongsim", "verify", *suspects.places]
    if suspects.configs:
        words += ["--config", json.dumps(dict(suspects.configs), separators=(",", ":"))]
    if suspects.answers:
        words += ["--answers", json.dumps(dict(suspects.answers), separators=(",", ":"))]
    return shlex.join([*words, "--seed", str(seed), "--replay", program.line()])


def text(suspects: Suspects, verdict: Verdict) -> str:
    """Write for people."""
    return "".join([*(_text(suspects, verdict, shown) + "\n" for shown in verdict.shown), summary(verdict) + "\n"])


def summary(verdict: Verdict) -> str:
    """Write one line about all of it."""
    by = Counter(shown.mistake.rule.severity for shown in verdict.shown)
    counted = ", ".join(
        f"{by[severity]} {_plural(severity.name.lower(), by[severity])}"
        for severity in reversed(Severity)
        if by[severity]
    )
    total = len(verdict.shown)
    found = f"{total} {_plural('mistake', total)} ({counted})" if total else "no mistakes"
    return (
        f"{found}: {verdict.programs:,} {_plural('program', verdict.programs)}, {verdict.requests:,}"
        f" {_plural('request', verdict.requests)}, seed {verdict.seed}, {verdict.seconds:.1f} s"
    )


def as_json(suspects: Suspects, verdict: Verdict) -> str:
    """Write as JSON."""
    told = {
        "schema": JSON_SCHEMA,
        "plugins": list(suspects.places),
        "seed": verdict.seed,
        "programs": verdict.programs,
        "requests": verdict.requests,
        "called": verdict.called,
        "seconds": round(verdict.seconds, 3),
        "mistakes": [_record(suspects, verdict, shown) for shown in verdict.shown],
    }
    return json.dumps(told, indent=2) + "\n"


def sarif(suspects: Suspects, verdict: Verdict) -> str:
    """Write as SARIF (OASIS, Static Analysis Results Interchange Format 2.1.0)."""
    codes = sorted({shown.mistake.code for shown in verdict.shown})
    rules = [
        {
            "id": code,
            "name": RULES[code].title,
            "shortDescription": {"text": RULES[code].title},
            "fullDescription": {"text": RULES[code].why},
            "help": {"text": RULES[code].fix},
            "defaultConfiguration": {"level": _SARIF_LEVELS[RULES[code].severity]},
        }
        for code in codes
    ]
    results = []
    for shown in verdict.shown:
        mistake = shown.mistake
        results.append(
            {
                "ruleId": mistake.code,
                "ruleIndex": codes.index(mistake.code),
                "level": _SARIF_LEVELS[mistake.rule.severity],
                "message": {"text": f"{mistake.rule.title}: {mistake.message}. {mistake.rule.fix}"},
                "locations": [_sarif_location(mistake.place)],
                "stacks": [
                    {"message": {"text": what}, "frames": [{"location": _sarif_location(frame)} for frame in stack]}
                    for what, stack in _stacks(mistake)
                ],
                "properties": {
                    "plugin": mistake.plugin,
                    "phase": mistake.phase,
                    "replay": replay(suspects, verdict.seed, shown.program),
                },
            }
        )
    driver = {"name": "kongsim verify", "version": __version__, "rules": rules}
    log = {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return json.dumps(log, indent=2) + "\n"


def github(suspects: Suspects, verdict: Verdict) -> str:
    """Write the workflow commands that become annotations."""
    lines = []
    for shown in verdict.shown:
        mistake = shown.mistake
        level = _GITHUB_LEVELS[mistake.rule.severity]
        file, title = _property(path(mistake.place)), _property(f"{mistake.code} {mistake.rule.title}")
        again = replay(suspects, verdict.seed, shown.program)
        message = _escaped(f"{mistake.message}\n{mistake.rule.why}\nfix: {mistake.rule.fix}\n{again}")
        lines.append(f"::{level} file={file},line={mistake.place.line},title={title}::{message}\n")
    return "".join(lines) + summary(verdict) + "\n"


FORMATS: Final[Mapping[str, Callable[[Suspects, Verdict], str]]] = {
    "text": text,
    "json": as_json,
    "sarif": sarif,
    "github": github,
}
"""What `--format` takes."""


def path(frame: Frame) -> str:
    """Return the path of a file, relative where it lies below the working directory."""
    file = Path(frame.filename)
    here = Path.cwd()
    return str(file.relative_to(here)) if file.is_absolute() and file.is_relative_to(here) else frame.filename


def explained(mistake: Mistake) -> str:
    """Return all there is to say of a mistake, but for how it came about."""
    rule = mistake.rule
    span = f", span {mistake.span_name!r}" if mistake.span_name else ""
    lines = [
        f"{path(mistake.place)}:{mistake.place.line}: {mistake.code} {rule.severity.name.lower()}: {rule.title}",
        f"  {mistake.message} (plugin {mistake.plugin}, phase {mistake.phase}{span})",
    ]
    for what, stack in _stacks(mistake):
        lines += [f"  {what}:", *_lines_of(stack)]
    width = min(TEXT_WIDTH, shutil.get_terminal_size((TEXT_WIDTH, 0)).columns)
    for word, said in (("why", rule.why), ("fix", rule.fix), ("see", f"{mistake.code} in {mistake.page}")):
        lines += textwrap.wrap(
            said,
            width,
            initial_indent=f"  {word}:  ",
            subsequent_indent=" " * 8,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines) + "\n"


def _text(suspects: Suspects, verdict: Verdict, shown: Shown) -> str:
    if not shown.program.steps:
        return explained(shown.mistake)
    lines = ["  the smallest program that shows it:"]
    lines += [f"    {line}" for line in shown.program.text(calls=shown.calls).splitlines()]
    lines += [f"  replay: {replay(suspects, verdict.seed, shown.program)}"]
    return explained(shown.mistake) + "\n".join(lines) + "\n"


def _stacks(mistake: Mistake) -> Iterator[tuple[str, Stack]]:
    """The stacks of a mistake, without what lies outside the user's own code."""
    yield "where", _inner(mistake.misuse, mistake.place)
    if mistake.creation is not None and mistake.creation != mistake.misuse:
        yield "the span was made here", _inner(mistake.creation, mistake.place)


def _inner(stack: Stack, place: Frame) -> Stack:
    """The part of a stack that lies within the handler: what called that is the gateway."""
    entry = next((index for index, frame in enumerate(stack) if frame.filename == watch.__file__), len(stack))
    last = max((index for index, frame in enumerate(stack[:entry]) if frame.filename == place.filename), default=0)
    return stack[: last + 1]


def _lines_of(stack: Stack) -> Iterator[str]:
    for frame in reversed(stack):
        yield f"    {path(frame)}:{frame.line}, in {frame.function}"
        source = linecache.getline(frame.filename, frame.line).strip()
        if source:
            yield f"      {source}"


def _record(suspects: Suspects, verdict: Verdict, shown: Shown) -> dict[str, Any]:
    mistake, rule = shown.mistake, shown.mistake.rule
    stacks = [
        [_frame(frame) for frame in _inner(stack or (), mistake.place)] for stack in (mistake.misuse, mistake.creation)
    ]
    return {
        "code": mistake.code,
        "severity": rule.severity.name.lower(),
        "title": rule.title,
        "message": mistake.message,
        "plugin": mistake.plugin,
        "phase": mistake.phase,
        "span": mistake.span_name,
        "file": path(mistake.place),
        "line": mistake.place.line,
        "function": mistake.place.function,
        "stack": stacks[0],
        "creation": stacks[1] if mistake.creation is not None else None,
        "why": rule.why,
        "fix": rule.fix,
        "source": rule.source,
        "program": shown.program.line(),
        "replay": replay(suspects, verdict.seed, shown.program),
    }


def _frame(frame: Frame) -> dict[str, Any]:
    return {"file": path(frame), "line": frame.line, "function": frame.function}


def _sarif_location(frame: Frame) -> dict[str, Any]:
    return {
        "physicalLocation": {"artifactLocation": {"uri": _uri(frame)}, "region": {"startLine": frame.line}},
        "logicalLocations": [{"name": frame.function}],
    }


def _uri(frame: Frame) -> str:
    told = path(frame)
    return Path(told).as_uri() if Path(told).is_absolute() else quote(os.fsencode(told))


def _property(value: str) -> str:
    return _escaped(value).replace(":", "%3A").replace(",", "%2C")


def _escaped(message: str) -> str:
    return message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
