"""Whatever goes wrong, every span is accounted for, on both sides of the wire."""

import pytest

from tests.faults import CASES, losses, run, unexplained


@pytest.mark.parametrize("profile", ["kong", "safe"])
@pytest.mark.parametrize("name", CASES)
def test_every_span_is_accounted_for_in(tmp_path, name, profile):
    """The ledger balances, each lost span stands under its reason, and the collector's books agree."""
    case = CASES[name]

    summary = run(tmp_path, profile, case.faults, **case.fields)

    assert list(unexplained(summary, a_worker_died=case.dies)) == []
    lost = set(losses(summary))
    assert case.costs[profile] <= lost <= case.costs[profile] | case.may_cost
    assert (summary.collector.received_duplicates > 0) == case.resends[profile]
    assert summary.warnings == []
