"""Whatever goes wrong, every span is accounted for, on both sides of the wire."""

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sim import run as runs
from tests.faults import ALONE, BATCH, CASES, FULL, IMPATIENT, losses, run, schedules, unexplained

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


@example("[{at: 1ms, target: master, kind: terminate}]", "kong", FULL, "0")  # while connections are being accepted
@settings(max_examples=SCHEDULES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    schedules(),
    st.sampled_from(["kong", "safe"]),
    st.sampled_from([FULL, ALONE]),
    st.sampled_from(["0", "50ms", "0, lua_max_running_timers: 1", "0, worker_connections: 20"]),
)
def test_every_span_is_accounted_for_in_any_schedule_of_faults(faults, profile, queue, limits):
    """Faults of all kinds, at any time, over one another, in workers that may run short of timers and connections."""
    with TemporaryDirectory() as directory:
        options = {"queue": queue, "read_timeout": IMPATIENT, "workers": "2", "shutdown_timeout": limits}
        summary = run(Path(directory), profile, faults, rate="200/s", **options)

    # Without a queue any number may be on its way when a sender loses its patience.
    in_doubt = BATCH if queue is FULL else summary.ledger["created"]
    assert list(unexplained(summary, in_doubt)) == []


def test_collector_that_stays_away_does_not_hold_the_run_up(tmp_path, monkeypatch):
    """Rest and drain are bounded; what the queues hold when patience is over is dropped, and booked so."""
    monkeypatch.setattr(runs, "REST_S_MAX", 0.2)
    monkeypatch.setattr(runs, "QUIT_S_MAX", 0.2)
    stubborn = "{max_retry_time: 3600, max_retry_delay: 0.1}"

    summary = run(tmp_path, "kong", "[{at: 0s, target: collector, kind: down}]", queue=stubborn)

    assert list(unexplained(summary)) == []
    assert losses(summary) == {"dropped_shutdown": summary.ledger["enqueued"]}
    assert [worker.ended for worker in summary.workers] == ["exit 0"]


def test_outage_that_outlasts_the_load_ends_while_the_queues_drain(tmp_path):
    """Faults go on until the gateway has ended, so nothing need be lost."""
    patient = "{max_retry_time: 60, max_retry_delay: 0.1}"

    summary = run(tmp_path, "kong", "[{at: 100ms, for: 1500ms, target: collector, kind: refuse}]", queue=patient)

    assert losses(summary) == {}
    assert summary.faults[0]["ended_at_s"] >= 1.6


def test_memory_limit_kills_the_worker_that_exceeds_it_and_its_successors(tmp_path):
    """As long as it lasts; the summary names them."""
    summary = run(tmp_path, "kong", "[{at: 100ms, for: 600ms, target: worker, kind: memory, limit: 1MiB}]")

    killed = summary.faults[0]["killed"]
    assert len(killed) > 1
    assert killed == [worker.pid for worker in summary.workers if worker.ended == "SIGKILL"]
    assert list(unexplained(summary, BATCH)) == []


def test_worker_within_its_memory_limit_lives(tmp_path):
    """A limit is no order to kill."""
    summary = run(tmp_path, "kong", "[{at: 0s, target: worker, kind: memory, limit: 1GiB}]")

    assert (summary.totals.deaths, summary.faults[0]["killed"], losses(summary)) == (0, [], {})


def test_stopped_worker_stands_still_and_loses_nothing(tmp_path):
    """Its clients wait that long, no longer."""
    summary = run(tmp_path, "safe", "[{at: 200ms, for: 400ms, target: worker, kind: stop}]")

    assert (summary.totals.deaths, summary.requests.failed, losses(summary)) == (0, 0, {})
    assert summary.latency_ms.max >= 300
    assert summary.fault_window.latency_ms.p50 > summary.fault_window.outside_latency_ms.p50


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [
        ("kind: refuse", {"200", "502"}),
        ("kind: down", {"200", "502"}),
        ("kind: status, status: 503", {"200", "503"}),
        ("kind: slow, latency: 30ms", {"200"}),
    ],
)
def test_fault_of_the_upstream_is_what_clients_get_to_see(tmp_path, fault, statuses):
    """And nothing that a span could be lost by."""
    summary = run(tmp_path, "kong", f"[{{at: 200ms, for: 300ms, target: upstream, {fault}}}]")

    assert set(summary.requests.by_status) == statuses
    assert list(unexplained(summary)) == []
    assert losses(summary) == {}


def test_load_bursts_and_pauses(tmp_path):
    """More requests, and none."""
    burst = run(tmp_path, "kong", "[{at: 200ms, for: 200ms, target: load, kind: burst, rate: 200/s}]")
    pause = run(tmp_path, "kong", "[{at: 200ms, for: 200ms, target: load, kind: pause}]")

    assert (burst.requests.completed, pause.requests.completed) == (80 + 40, 80 - 20)
    assert burst.fault_window.requests == 20 + 40
    assert pause.fault_window.p99_ratio is None


def test_fault_that_comes_after_the_last_request_is_carried_out(tmp_path):
    """A load lasts as long as it says, also where nothing arrives any more."""
    faults = "[{at: 100ms, for: 5s, target: load, kind: pause}, {at: 600ms, target: worker, kind: kill}]"

    summary = run(tmp_path, "kong", faults)

    assert summary.requests.offered == 10
    assert summary.warnings == []
    assert [fault["kind"] for fault in summary.faults] == ["pause", "kill"]


def test_fault_hits_the_requests_of_its_time_however_late_the_load_begins(tmp_path, monkeypatch):
    """Both count from the beginning of the load, so what is hit is not taken for what came outside."""
    drive = runs.driver.drive

    def begin_late(*args, **options):
        ready_s = time.monotonic() + 0.5
        while time.monotonic() < ready_s:
            pass
        drive(*args, **options)

    monkeypatch.setattr(runs.driver, "drive", begin_late)
    fault = "[{at: 600ms, for: 500ms, target: upstream, kind: slow, latency: 300ms}]"

    window = run(tmp_path, "kong", fault, rate="200/s", duration="1400ms").fault_window

    assert window.latency_ms.p50 >= 300
    # Of those outside more than half would have been hit; a few are that a busy machine sends after their time.
    assert window.outside_latency_ms.p50 < 300


def test_reload_makes_a_generation_and_is_told(tmp_path):
    """Nothing is lost by it."""
    summary = run(tmp_path, "kong", "[{at: 300ms, target: master, kind: reload}]")

    assert [worker.generation for worker in summary.workers] == [1, 2]
    assert losses(summary) == {}
    assert summary.faults[0]["at_s"] >= summary.faults[0]["planned_s"] == 0.3


def test_fault_that_has_to_wait_for_a_worker_lasts_as_long_all_the_same(tmp_path, monkeypatch):
    """Its end was due before there was anybody to be stopped, and the one who came then stood still for good."""
    signal_worker = runs._Run._signal_worker

    def nobody_at_first(self, slot, signum):
        return signal_worker(self, slot, signum) if time.monotonic() > self.load_s + 0.4 else None

    monkeypatch.setattr(runs._Run, "_signal_worker", nobody_at_first)

    summary = run(tmp_path, "kong", "[{at: 100ms, for: 50ms, target: worker, kind: stop}]")

    [stopped] = summary.faults
    assert stopped["at_s"] >= 0.4
    assert stopped["ended_at_s"] >= stopped["at_s"] + 0.049
    assert losses(summary) == {}


def test_worker_that_was_stopped_twice_stands_still_until_both_have_ended(tmp_path):
    """The end of the shorter stop does not end the longer one."""
    times = (("100ms", "1s"), ("200ms", "100ms"))
    stops = [f"{{at: {at}, for: {lasts}, target: worker, kind: stop}}" for at, lasts in times]

    summary = run(tmp_path, "kong", f"[{', '.join(stops)}]")

    longer, shorter = summary.faults
    assert longer["pid"] == shorter["pid"]
    assert longer["ended_at_s"] > shorter["ended_at_s"]
    assert summary.latency_ms.max >= 500
    assert losses(summary) == {}


def test_fault_that_hits_nobody_is_told(tmp_path):
    """There is no worker left to be killed when the gateway has been terminated."""
    faults = "[{at: 100ms, target: master, kind: terminate}, {at: 700ms, target: worker, kind: kill}]"

    summary = run(tmp_path, "kong", faults)

    assert summary.warnings == ["fault worker kill at 700ms was not carried out: nobody was there"]
    assert [fault["kind"] for fault in summary.faults] == ["terminate"]
