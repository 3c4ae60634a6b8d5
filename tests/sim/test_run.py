"""Whole runs with real processes: in order, with faults, interrupted, and with processes that fail."""

import os
import signal
import time
from datetime import datetime
from functools import partial
from signal import SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM
from types import SimpleNamespace

import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sim import process, scenario
from sim import run as runs
from sim.cycle import ALARM_S_FIRST
from sim.document import parse_override
from sim.errors import UserError
from sim.interruption import INTERRUPTS
from sim.master import Master, listen
from sim.report.recording import Recording
from sim.report.summary import Summary
from sim.run import RunError
from sim.scoreboard import Scoreboard
from tests import tiny_worker

TIMEOUT_S = 60.0

SCENARIO = """
name: tiny
seed: 7
gateway:
  listen: {listen}
  workers: 2
  tracing: {{instrumentations: [all], sampling_rate: 1.0}}
  config:
    services: [{{name: shop, host: default}}]
    routes: [{{name: all, service: shop, paths: [/]}}]
    plugins: [{{name: opentelemetry, config: {{queue: {{max_coalescing_delay: 0.1}}}}}}]
upstreams:
  default: {{latency: {{p50: 1ms, p99: 2ms}}, body: 100B}}
load: [{{executor: constant-arrival-rate, rate: 100/s, duration: {duration}}}]
faults: {faults}
thresholds: [ledger.unaccounted == 0, requests.failed == 0]
"""

LOADS = """
name: loads
gateway:
  workers: 1
  nginx: {client_max_body_size: 12B}
  config:
    services: [{name: shop, host: default}, {name: orders, host: orders}]
    routes: [{name: all, service: shop, paths: [/]}, {name: orders, service: orders, paths: [/orders], methods: [POST]}]
    plugins: [{name: opentelemetry, config: {queue: {max_coalescing_delay: 0.1}}}]
upstreams:
  default: {}
  orders: {status: {201: 1.0}}
load:
  - {executor: constant-arrival-rate, rate: 100/s, duration: 500ms}
  - executor: ramping-arrival-rate
    startTime: 400ms
    startRate: 50/s
    stages: [{target: 50/s, duration: 400ms}]
    request: {method: POST, path: /orders, body: '{"lamp": ö}'}
thresholds: [ledger.unaccounted == 0, requests.failed == 0, "load[1].status_2xx == 20", "load[1].latency.p99 < 60s"]
"""


def tiny(directory, *, duration="500ms", faults="[]", listen="127.0.0.1:0"):
    path = directory / "tiny.yaml"
    path.write_text(SCENARIO.format(duration=duration, faults=faults, listen=listen))
    return scenario.load(str(path))


class View:
    """A progress that tells what it is shown."""

    def __init__(self, tell=lambda _what: None):
        self.tell = tell
        self.shown = []

    def start(self, _scenario, url):
        self.shown.append(("start", url))
        self.tell("started")

    def update(self, moment):
        self.shown.append(("update", moment))

    def close(self):
        self.shown.append(("close", None))


class Running:
    """A run in a process of its own, which tells when the load has begun and what came of it."""

    def __init__(self, directory, view=View, **fields):
        self.control, theirs = process.pipe()
        checked = tiny(directory, **fields)

        def target():
            os.setpgid(0, 0)  # as a shell does, so that Ctrl-C reaches it and its processes alone
            with process.Signals(*INTERRUPTS, until_exit=True):  # as the command does, which has yet to write it all
                try:
                    told = runs.run(checked, out_dir=directory, progress=view(theirs.send)).verdict
                except (KeyboardInterrupt, UserError, RunError) as error:
                    told = type(error), str(error)
                theirs.send(told)

        self.process = process.start(target, name="run", closing=[self.control])
        theirs.close()

    def hear(self):
        assert self.control.poll(TIMEOUT_S)
        return self.control.recv()

    def signal(self, signum):
        os.kill(self.process.pid, signum)

    def exit_code(self):
        self.process.join(TIMEOUT_S)
        return self.process.exitcode

    def descendants(self):
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def running(tmp_path):
    """Start runs, and kill what is left of them."""
    started = []

    def start(**fields):
        started.append(Running(tmp_path, **fields))
        return started[-1]

    yield start
    for run in started:
        process.reap(run.process, 0)


def test_run_gives_a_summary_of_what_all_processes_saw(tmp_path):
    """Load, gateway, upstream and collector agree on what happened, and every span is accounted for."""
    view = View()

    summary = runs.run(tiny(tmp_path), out_dir=tmp_path, progress=view)

    assert isinstance(summary, Summary)
    assert all(threshold.passed for threshold in summary.thresholds)
    assert summary.requests.completed == summary.requests.offered == summary.totals.requests == 50
    assert summary.upstreams["default"].requests == 50
    assert summary.ledger["created"] == summary.ledger["acknowledged"] == summary.collector.received_unique > 0
    assert summary.ledger["unaccounted"] == 0
    assert [(worker.slot, worker.ended) for worker in summary.workers] == [(0, "exit 0"), (1, "exit 0")]


def test_each_load_sends_its_own_request_from_its_own_time_on(tmp_path):
    """Side by side: both reach the upstream that their routes lead to, bodies and all."""
    path = tmp_path / "loads.yaml"
    path.write_text(LOADS)

    summary = runs.run(scenario.load(str(path)), out_dir=tmp_path, progress=View())

    assert [(load.request, load.offered, load.completed, load.by_status) for load in summary.loads] == [
        ("GET /", 50, 50, {"200": 50}),
        ("POST /orders", 20, 20, {"201": 20}),
    ]
    assert {name: upstream.requests for name, upstream in summary.upstreams.items()} == {"default": 50, "orders": 20}
    assert summary.requests.completed == summary.totals.requests == 70
    assert summary.load.duration_s == 0.8
    assert summary.verdict == "passed"


def test_each_load_has_its_time_its_seed_and_its_connections(tmp_path):
    """Two Poisson loads do not arrive in step, and virtual users take no connection of what arrives."""
    path = tmp_path / "loads.yaml"
    users = "  - {executor: ramping-vus, stages: [{target: 30, duration: 1s}, {target: 10, duration: 1s}]}\n"
    more = "  - {executor: constant-vus, vus: 7, duration: 1s}\n"
    path.write_text(LOADS.replace("thresholds:", users + more + "thresholds:"))

    load = runs._load(scenario.load(str(path), [parse_override("seed=7")]), "127.0.0.1", 1)

    first, second, *_users = load.executors
    assert (first.start_s, second.start_s) == (0.0, 0.4)
    assert first.seed != second.seed
    assert load.connections_max == 1000 + 30 + 7


def test_virtual_users_ask_as_much_as_the_gateway_answers(tmp_path):
    """Beside requests that arrive; every process agrees on how many there were."""
    path = tmp_path / "users.yaml"
    users = "load:\n  - {executor: constant-vus, vus: 4, duration: 500ms, request: {method: POST, path: /orders}}\n"
    path.write_text(LOADS.replace("load:\n", users).replace("load[1].status_2xx == 20", "load[0].completed > 4"))

    summary = runs.run(scenario.load(str(path)), out_dir=tmp_path, progress=View())

    asked = summary.loads[0].offered
    assert [load.executor for load in summary.loads] == [
        *("constant-vus", "constant-arrival-rate", "ramping-arrival-rate"),
    ]
    assert summary.upstreams["orders"].requests == asked + 20
    assert summary.requests.completed == summary.totals.requests == asked + 70
    assert summary.load.offered_rate_per_s is None
    assert summary.verdict == "passed"


def test_run_is_shown_from_the_beginning_of_the_load_to_its_end(tmp_path):
    """The view starts with the gateway's address, is updated with what is known, and is closed at the end."""
    view = View()

    runs.run(tiny(tmp_path, duration="1s"), out_dir=tmp_path, progress=view)

    assert [what for what, _ in view.shown[:1]] == ["start"]
    assert view.shown[0][1].startswith("http://127.0.0.1:")
    moments = [moment for what, moment in view.shown if what == "update"]
    assert moments[-1]["load"]["requests"]["sent"] > 0
    assert len(moments[0]["workers"].alive) == 2  # the last may fall into the end, when they have gone
    assert [what for what, _ in view.shown[1 + len(moments) :]] == ["close"]


def test_recording_holds_the_workers_over_time_and_every_span(tmp_path):
    """Samples of both workers from the load's beginning on, and all that the collector received."""
    recording = Recording()

    summary = runs.run(tiny(tmp_path, duration="1s"), out_dir=tmp_path, progress=View(), recording=recording)

    times_s = [0.0, *(sample.elapsed_s for sample in recording.samples)]
    assert times_s == sorted(times_s)
    assert [worker.pid for worker in recording.samples[0].workers] == [worker.pid for worker in summary.workers]
    exported = [ExportTraceServiceRequest.FromString(arrival.message) for arrival in recording.capture]
    spans = sum(len(scoped.spans) for each in exported for group in each.resource_spans for scoped in group.scope_spans)
    assert spans == summary.collector.received_unique + summary.collector.received_duplicates > 0
    assert abs(recording.load_unix_ns / 1e9 - datetime.fromisoformat(summary.started_at).timestamp()) < TIMEOUT_S


def test_what_is_done_between_two_moments_delays_neither(tmp_path, monkeypatch):
    """They are a quarter of a second apart from the beginning of the load on, also where a fault begins or ends."""
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    checked = tiny(tmp_path, faults="[{at: 350ms, for: 600ms, target: collector, kind: refuse}]")
    view, peer = View(), SimpleNamespace(message={"a": "report"}, exit_code=None, ask=lambda _order: None)
    run = runs._Run(checked, {}, None, Scoreboard(1), tmp_path, view, None, None)
    run.children |= {"load": peer, "collector": peer}
    run.load_s = clock.now_s

    def wait(timeout_s):
        clock.now_s += timeout_s

    run._wait = wait
    run._await(lambda: clock.now_s > 101.9)

    times_s = [moment["elapsed_s"] for _update, moment in view.shown]
    assert times_s == pytest.approx([0.25 * k for k in range(9)])
    assert [fault["ended_at_s"] for fault in run.carried_out] == [0.95]


def test_gateways_log_is_in_the_folder_and_nothing_is_on_the_terminal(tmp_path, capfd):
    """A run keeps quiet; what master and workers log is in `error.log`, of this run alone."""
    (tmp_path / "error.log").write_text("of an earlier run\n")

    runs.run(tiny(tmp_path), out_dir=tmp_path, progress=View())

    log = (tmp_path / "error.log").read_text()
    assert "[notice]" in log
    assert "gracefully shutting down" in log
    assert "of an earlier run" not in log
    assert capfd.readouterr() == ("", "")


def test_killed_worker_is_replaced_and_its_spans_are_accounted_for(tmp_path):
    """A fault kills the worker of its slot, which is respawned; nothing is unaccounted, and the summary tells it."""
    checked = tiny(tmp_path, duration="1s", faults="[{at: 300ms, target: worker, slot: 1, kind: kill}]")

    summary = runs.run(checked, out_dir=tmp_path, progress=View())

    assert [(worker.slot, worker.ended) for worker in summary.workers] == [
        (0, "exit 0"),
        (1, "SIGKILL"),
        (1, "exit 0"),
    ]
    (fault,) = summary.faults
    assert (fault["target"], fault["slot"], fault["kind"], fault["pid"]) == (
        "worker",
        1,
        "kill",
        summary.workers[1].pid,
    )
    assert fault["at_s"] >= 0.3
    assert summary.totals.deaths == 1
    assert summary.ledger["unaccounted"] == 0
    assert summary.ledger["acknowledged"] <= summary.collector.received_unique


def test_busy_port_is_told_before_anything_is_started(tmp_path):
    """A mistake that can be found at once leaves no process, no view and no open socket."""
    view, before = View(), psutil.Process().children()
    with listen("127.0.0.1", 0) as listener:
        checked = tiny(tmp_path, listen=f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(UserError, match="Address already in use"):
            runs.run(checked, out_dir=tmp_path, progress=view)

    assert view.shown == []
    assert psutil.Process().children() == before


def test_worker_that_cannot_start_is_a_mistake_of_the_user(tmp_path, monkeypatch):
    """What the worker complained of is told in one line."""

    def mistaken(args):
        raise UserError("cannot be loaded", field="plugins[0]")

    monkeypatch.setattr(runs, "Master", partial(Master, worker_main=mistaken))
    with pytest.raises(UserError, match=r"^no worker can start: plugins\[0\]: cannot be loaded$"):
        runs.run(tiny(tmp_path), out_dir=tmp_path, progress=View())


def test_workers_that_die_as_they_start_end_the_run(tmp_path, monkeypatch):
    """A run does not wait for workers that never come to serve."""
    monkeypatch.setattr(runs, "Master", partial(Master, worker_main=lambda _args: os._exit(1)))

    with pytest.raises(RunError, match=r"^workers keep dying before they serve; see .*error\.log$"):
        runs.run(tiny(tmp_path), out_dir=tmp_path, progress=View())


def test_fault_comes_in_time_while_a_memory_limit_is_looked_after():
    """The nearer of the two is waited for."""  # it was up to 50 ms late, and felt that much longer or not at all
    limited = SimpleNamespace(kind="memory")
    for due_s, waits_s in ((runs.MEMORY_POLL_S / 2, runs.MEMORY_POLL_S / 2), (10.0, runs.MEMORY_POLL_S)):
        timeline = SimpleNamespace(next_s=due_s)
        run = SimpleNamespace(under_way={1: (limited, {})}, load_s=time.monotonic(), timeline=timeline)
        assert runs._Run._next_event_in_s(run) <= waits_s


@pytest.mark.parametrize("signum", [SIGINT, SIGTERM, SIGQUIT, SIGHUP])
def test_interrupted_run_ends_in_order_and_tells_what_it_has(running, signum):
    """After a signal all processes end and the summary is that of an interrupted run."""
    run = running(duration="60s")
    assert run.hear() == "started"

    run.signal(signum)

    assert run.hear() == "interrupted"
    assert run.exit_code() == 0


@pytest.mark.parametrize("signum", [SIGINT, SIGQUIT, SIGHUP])
def test_interrupt_of_the_whole_terminal_is_the_same(running, signum):
    """Ctrl-C, or a window that is closed, reaches every process at once; peers leave it to the run to end them."""
    run = running(duration="60s")
    assert run.hear() == "started"

    os.killpg(run.process.pid, signum)

    assert run.hear() == "interrupted"
    assert run.exit_code() == 0


def test_every_process_is_ended_whatever_fails_at_the_end(tmp_path):
    """Also when the view cannot be closed: else this process would wait for them for ever as it exits."""

    class Unclosable(View):
        def close(self):
            raise OSError("the terminal is gone")

    before = psutil.Process().children()
    with pytest.raises(OSError, match="the terminal is gone"):
        runs.run(tiny(tmp_path), out_dir=tmp_path, progress=Unclosable())

    assert psutil.Process().children() == before


def test_interrupting_twice_does_not_wait(running, monkeypatch, tmp_path):
    """A second Ctrl-C kills what does not leave; every process is gone, and what was seen is told all the same."""
    monkeypatch.setattr(runs, "Master", partial(Master, worker_main=tiny_worker.stubborn))
    run = running(duration="60s")
    assert run.hear() == "started"
    run.signal(SIGINT)
    while "SIGTERM" not in (tmp_path / "error.log").read_text():
        process.wait([run.process.sentinel], 0.01)
    process.wait([run.process.sentinel], 2 * ALARM_S_FIRST)  # what comes sooner is taken for the same

    run.signal(SIGINT)

    assert run.hear() == "interrupted"
    assert run.exit_code() == 0
    assert "exited on signal 9" in (tmp_path / "error.log").read_text()


@pytest.mark.parametrize("signum", [SIGINT, SIGTERM])
def test_interrupting_again_and_again_loses_nothing(running, signum):
    """As timeout(1) does, to the process and to its group: signals that follow one another leave the summary alone."""
    run = running(duration="60s")
    assert run.hear() == "started"

    while not run.control.poll(0.001):
        run.signal(signum)

    assert run.hear() == "interrupted"
    assert run.exit_code() == 0


def test_interrupt_of_a_run_that_is_over_changes_nothing(running):
    """When the gateway has left there is nothing to interrupt: the figures are complete."""

    class Late(View):
        def close(self):
            os.kill(os.getpid(), SIGINT)

    run = running(view=Late)

    assert run.hear() == "started"
    assert run.hear() in {"passed", "failed", "invalid"}  # a busy machine may make it late
    assert run.exit_code() == 0


def test_interrupt_before_the_load_has_nothing_to_tell(running, monkeypatch, tmp_path):
    """A run that never began is interrupted without a summary."""
    monkeypatch.setattr(runs, "Master", partial(Master, worker_main=tiny_worker.never_ready))
    run = running()
    while not (tmp_path / "error.log").exists() or "start worker process " not in (tmp_path / "error.log").read_text():
        process.wait([run.process.sentinel], 0.01)

    run.signal(SIGINT)

    assert run.hear() == (KeyboardInterrupt, "")
    assert run.exit_code() == 0


def test_killing_the_run_leaves_nothing(running, ended):
    """Not one of its processes outlives a run that is killed with -9."""
    run = running(duration="60s")
    assert run.hear() == "started"
    descendants = [os.pidfd_open(member.pid) for member in run.descendants()]
    assert len(descendants) == 6

    run.signal(SIGKILL)

    assert run.exit_code() == -SIGKILL
    assert ended(*descendants)


@pytest.mark.parametrize("victim", ["default", "collector", "master", "load"])
def test_process_that_dies_is_named_and_the_rest_ends(tmp_path, monkeypatch, victim):
    """A run whose origin, collector, master or load dies fails with its name, and leaves nothing behind."""
    started = {}

    def start(*args, name, **options):
        started[name] = process.start(*args, name=name, **options)
        return started[name]

    monkeypatch.setattr(runs, "start", start)
    view = View(tell=lambda _started: process.kill(started[victim], signal.SIGKILL))

    with pytest.raises(RunError, match=f"^the {victim} process ended before its time: killed by SIGKILL"):
        runs.run(tiny(tmp_path, duration="60s"), out_dir=tmp_path, progress=view)

    assert set(started) == {"default", "collector", "master", "load"}
