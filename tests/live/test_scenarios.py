"""The shipped scenarios do what they say, in the short form that each of them names."""

import re
from pathlib import Path

import pytest

from sim import run as runs
from sim import scenario
from sim.document import parse_override
from tests.faults import BATCH, Unseen, unexplained

SCENARIOS = sorted((Path(__file__).parents[2] / "scenarios").glob("*.yaml"))

OF_SPEED = re.compile(r"(load\[\d+\]\.)?(latency|completed_per_s)|fault_window\.|collector\.received_per_s >")
"""Metrics that a busy machine decides about."""

SLOW_LOAD = "the load generator was busy"
"""The warning that it does."""


def shorter(path):
    """The overrides that the scenario's comment offers for a shorter run."""
    paragraph = path.read_text(encoding="utf-8").partition("horter with,")[2].partition("\n\n")[0].partition("\n#\n")[0]
    return [parse_override(text) for text in re.findall(r"--set (\S+)", paragraph)]


@pytest.mark.parametrize("path", SCENARIOS, ids=[path.stem for path in SCENARIOS])
def test_scenario_shows_what_it_says(tmp_path, path):
    """Its thresholds hold, its faults are carried out, and every span is accounted for."""
    overrides = shorter(path)
    assert overrides

    loaded = scenario.load(str(path), overrides)
    summary = runs.run(loaded, out_dir=tmp_path, progress=Unseen())

    assert list(unexplained(summary, in_doubt=BATCH if summary.totals.deaths else 0)) == []
    failed = [held for held in summary.thresholds if not held.passed and not OF_SPEED.match(held.expression)]
    assert failed == []
    assert len(summary.faults) == len(loaded.faults)
    warnings = [warning for warning in summary.warnings if not warning.startswith(SLOW_LOAD)]
    assert warnings == list(loaded.gateway.warnings)
