"""Whatever goes wrong, every span is accounted for, on both sides of the wire."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.faults import BATCH, CASES, FULL, losses, run, schedules, unexplained

SCHEDULES = 200 if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else 8
"""Schedules of faults that are tried: each is a run of a second or two."""


@pytest.mark.parametrize("profile", ["kong", "safe"])
@pytest.mark.parametrize("name", CASES)
def test_every_span_is_accounted_for_in(tmp_path, name, profile):
    """The ledger balances, each lost span stands under its reason, and the collector's books agree."""
    case = CASES[name]

    summary = run(tmp_path, profile, case.faults, **case.fields)

    assert list(unexplained(summary, case.in_doubt)) == []
    lost = set(losses(summary))
    assert case.costs[profile] <= lost <= case.costs[profile] | case.may_cost
    assert (summary.collector.received_duplicates > 0) == case.resends[profile]
    assert summary.warnings == []


@example("[{at: 1ms, target: master, kind: terminate}]", "kong")  # while connections are being accepted
@settings(max_examples=SCHEDULES, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedules(), st.sampled_from(["kong", "safe"]))
def test_every_span_is_accounted_for_in_any_schedule_of_faults(faults, profile):
    """Faults of all kinds, at any time, over one another."""
    with TemporaryDirectory() as directory:
        summary = run(Path(directory), profile, faults, queue=FULL, workers="2", rate="200/s")

    assert list(unexplained(summary, BATCH)) == []
