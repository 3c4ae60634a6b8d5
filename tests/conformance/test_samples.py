"""What stands in the documentation as it is to be typed in works: configurations, the README's program, tests.

The other samples have tests of their own: `test_docs.py`, `test_findings.py`, `test_otel.py`, `test_plugins_page.py`,
`tests/kongtrace/test_propagation.py`, `tests/kongtrace/test_testing.py`, and `tests/sim/test_check.py` for the settings
that `docs/check.md` warns of.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sim.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

KONG_YML = """\
_format_version: "3.0"
services: [{name: a, url: http://127.0.0.1:9, routes: [{paths: [/]}]}]
"""
SCENARIO = {
    "name": "sample",
    "gateway": "{config: kong.yml}",
    "load": "[{executor: constant-arrival-rate, rate: 50/s, duration: 1s}]",
}


def blocks(page, language):
    """The blocks of a page in one language, each with its line."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start()) + 1, found[1]


CONFIGURATIONS = {
    f"{page.name}:{line}": block for page in PAGES if page.name != "check.md" for line, block in blocks(page, "yaml")
}


def completed(block):
    """The file that a piece of it stands for."""
    if block.startswith("plugins:"):
        return KONG_YML + block
    if block.startswith("_format_version:"):
        return block
    given = set(re.findall(r"^(\w+):", block, re.MULTILINE))
    if "name" in given:
        return block
    return "".join(f"{field}: {value}\n" for field, value in SCENARIO.items() if field not in given) + block


def write_plugins(folder):
    """Write the plugins of their page that other pages use."""
    for _line, source in blocks(ROOT / "docs/plugins.md", "python"):
        if (name := source.partition("\n")[0].removeprefix("# ")) in ("greeter.py", "quota.py"):
            (folder / name).write_text(source, encoding="utf-8")


@pytest.mark.parametrize("block", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_configuration_is_taken(block, tmp_path, monkeypatch, capsys):
    """`kongsim check` has nothing to say against it, however small a piece of a file it is."""
    monkeypatch.chdir(tmp_path)
    write_plugins(tmp_path)
    Path("kong.yml").write_text(f"{KONG_YML}plugins: [{{name: rate-limiting}}, {{name: key-auth}}]\n", encoding="utf-8")
    Path("sample.yaml").write_text(completed(block), encoding="utf-8")
    plugins = ["--plugin", "greeter.py"] if "name: greeter" in block else []
    monkeypatch.setattr(sys, "argv", ["kongsim", "check", "sample.yaml", *plugins])
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr()

    # What is risky is told with a code; what is wrong is an error.
    assert left.value.code in (None, 0, 97), told.err
    assert "sample.yaml" in told.out


def run(folder, *arguments):
    """Run Python in a folder; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_program_of_the_readme_gives_every_span_back(tmp_path):
    """It runs as it stands, and its comment is true."""
    ((_line, program),) = blocks(ROOT / "README.md", "python")
    balance = "\nprint(*(balance.live for balance in provider.balances().values()))\n"

    assert run(tmp_path, "-c", program + balance) == "0 0 0 0\n"


def test_tests_of_the_page_on_verify_pass(tmp_path):
    """They are those of plugins of the page on plugins, and find no mistake in them."""
    tests = "\n\n".join(block for _line, block in blocks(ROOT / "docs/verify.md", "python"))
    write_plugins(tmp_path)
    (tmp_path / "test_page.py").write_text(tests, encoding="utf-8")

    assert "3 passed" in run(tmp_path, "-m", "pytest", "--kongsim", "-q", "-p", "no:cacheprovider", "test_page.py")
