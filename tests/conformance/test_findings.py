"""The page of findings: each code has a wrong program, found where it says so, and a right one, which is silent.

The programs on `docs/findings.md` run as they stand, each by itself after the page's own preparation, in the file of
the page, so that the stacks of findings point into it.
"""

import re
from contextlib import suppress
from pathlib import Path

import pytest

from kongtrace import ApiError, ReleasedSpanError
from kongtrace.findings import RULES, Severity

PAGE = Path(__file__).parents[2] / "docs" / "findings.md"
TEXT = PAGE.read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BEGINNING, *REST = re.split(r"^### ", TEXT, flags=re.MULTILINE)
SECTIONS = {section.split(" ", 1)[0]: section for section in REST}
STARTS = {code: TEXT.index(f"### {section}") + len("### ") for code, section in SECTIONS.items()}


def in_one_line(text):
    """Text without its line breaks."""
    return " ".join(text.split())


def compiled(block, start):
    """The code of a block, with the line numbers that it has on the page."""
    line = TEXT.count("\n", 0, start + block.start(1))
    return compile("\n" * line + block[1], str(PAGE), "exec")


def run(code, number):
    """Run the program of a code, 0 the wrong one and 1 the right one; give what was found."""
    program = {"__name__": "shop"}
    for block in BLOCK.finditer(BEGINNING):
        exec(compiled(block, 0), program)
    block = list(BLOCK.finditer(SECTIONS[code]))[number]
    with suppress(ApiError, ReleasedSpanError, TypeError):
        exec(compiled(block, STARTS[code]), program)
    program["provider"].sweep()
    return program["provider"].findings


def test_the_page_has_every_code_and_no_other():
    """The page has one section for each code, in their order."""
    assert list(SECTIONS) == [str(code) for code in RULES]


@pytest.mark.parametrize("code", RULES)
def test_the_page_says_what_the_finding_says(code):
    """Title, reason, remedy and source of a code are the same on the page and in the finding."""
    rule, section = RULES[code], in_one_line(SECTIONS[code])

    assert section.startswith(f"{code} {rule.title} ")
    assert f"**Why it hurts** ({rule.source}). {rule.why} **How to mend it.** {rule.fix} Wrong:" in section
    assert f"| {rule.title} | {rule.severity.name.lower()} | {rule.source} |" in BEGINNING


@pytest.mark.parametrize("code", RULES)
def test_the_wrong_program_is_found_where_it_goes_wrong(code):
    """The wrong program gives its own code alone, at the line that bears it, with the stack of the span's making."""
    findings = run(code, 0)
    marked = TEXT.count("\n", 0, TEXT.index(f"  # {code}\n")) + 1

    assert set(findings.counts) == {code}
    (finding,) = findings.findings
    assert (finding.misuse[0].filename, finding.misuse[0].line) == (str(PAGE), marked)
    assert finding.severity in Severity
    if finding.span_name is not None:
        assert finding.creation[0].filename == str(PAGE)
    assert f"{code} {RULES[code].title}" in finding.text()
    assert TEXT.splitlines()[marked - 1].strip() in finding.text()


@pytest.mark.parametrize("code", RULES)
def test_the_right_program_is_silent(code):
    """The right program gives no finding at all."""
    findings = run(code, 1)

    assert findings.report() == "no findings\n"
