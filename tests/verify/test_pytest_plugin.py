"""The pytest plugin, in an example project of its own that is run as its author would."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).parent / "example"
PLUGIN = "sim.pytest_plugin"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the example project."""
    return shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("project"), dirs_exist_ok=True)


def run(project, *options):
    """Run pytest in the project; return what it printed, and the outcome of each test."""
    installed = any(entry.value == PLUGIN for entry in entry_points(group="pytest11"))
    plugin = () if installed else ("-p", PLUGIN)
    command = [sys.executable, "-m", "pytest", *plugin, "-p", "no:cacheprovider", "-rA", "-q", *options]
    ran = subprocess.run(
        command, cwd=project, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False
    )
    outcomes = re.findall(r"^(PASSED|FAILED|ERROR) (?:tests/\S+?::)?(.+?)(?: - .*)?$", ran.stdout, re.MULTILINE)
    return ran.stdout + ran.stderr, {name: outcome for outcome, name in sorted(outcomes, reverse=True)}


def test_distribution_announces_the_plugin():
    """pytest finds it by the entry point of the distribution."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"kongsim": PLUGIN}


def test_fixtures_work_without_the_flag(project):
    """`gateway` serves; `span_leaks` fails the one test that asks for it and leaks, with the line."""
    printed, outcomes = run(project, "tests")
    assert outcomes == {
        "test_greets": "PASSED",
        "test_asks_for_the_name": "PASSED",
        "test_greets_whatever_the_service_does[refuses]": "PASSED",
        "test_greets_whatever_the_service_does[is silent]": "PASSED",
        "test_greets_whatever_the_service_does[resets]": "PASSED",
        "test_leaks_nothing": "PASSED",
        "test_of_a_leaky_plugin": "PASSED",
        "test_of_a_leaky_plugin_that_asks": "ERROR",
    }, printed
    assert "leaky.py:9: KT005 warning: span never finished" in printed


def test_flag_makes_every_test_look_and_verifies_the_plugins(project):
    """With `--kongsim` a leak fails whoever uses `gateway`, and each plugin of the ini option is a test."""
    printed, outcomes = run(project, "--kongsim", "tests")
    assert outcomes["test_leaks_nothing"] == "PASSED"
    assert outcomes["test_of_a_leaky_plugin"] == "ERROR", printed
    assert outcomes["greeter.py::verify"] == "PASSED"
    assert outcomes["leaky.py::verify"] == "FAILED"
    assert "leaky.py:9: KT005" in printed
    assert "replay: kongsim verify" in printed
