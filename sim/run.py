"""One run of a scenario: every process started, the load driven, faults carried out, all of it ended, the sum drawn.

Theory of operation. All sockets are bound first, so that a busy port is an error before anything runs. Then origins,
collector and master are forked, each without the sockets of the others, which would go on accepting in its hands; when
the workers serve, the load. From then on this process waits: for signals, messages, ends of processes.

In order: the load ends by itself; the gateway comes to rest (no request active, no span on its way); QUIT to the
master, whose workers drain; "stop" to collector and origins. Rest and drain are bounded: a collector that stays away
for good holds up neither, and what the queues still hold then is dropped, and booked so. Faults (`sim.faults`) begin
and end at their times until the gateway has ended. Out of order, at a signal, at an exception, or when a
process ends that should not: the load is stopped and the master gets TERM, the rest as before, each step bounded. So
it gets at each later signal, and kills its workers when that is no echo of the first (`sim.cycle`); collector and
origins, who have the figures, are never hurried, nor is there anything to interrupt once the gateway has left. However
it ends, every process is reaped; and the last reports and the scoreboard make the summary.

Times in seconds of the monotonic clock.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from socket import socket
from typing import Any, Final

import psutil

from sim import collector, origin
from sim.cycle import EXIT_FATAL, child_seed
from sim.error_log import ErrorLog, count_lines
from sim.errors import UserError
from sim.faults import Event, Fault, Timeline
from sim.interruption import INTERRUPTS
from sim.load import driver, executor
from sim.load.request import Request
from sim.master import Master, listen, url_of
from sim.process import Connection, Process, Signals, kill, pipe, reap, send_signal, start, wait
from sim.report.environment import environment
from sim.report.progress import Moment, Progress
from sim.report.recording import Recording
from sim.report.summary import Summary, summarize
from sim.scenario import Scenario, Upstream
from sim.scoreboard import Scoreboard
from sim.workload import ClosedLoad, ConstantArrivalRate, OpenLoad, RampingArrivalRate

UPDATE_S: Final = 0.25
REST_POLL_S: Final = 0.05
FAULT_RETRY_S: Final = 0.01
MEMORY_POLL_S: Final = 0.05
READY_S_MAX: Final = 60.0
START_DEATHS_MAX: Final = 5
REST_S_MAX: Final = 10.0  # ten times what a queue waits for a batch to fill
QUIT_S_MAX: Final = 100.0  # a queue gives a batch up after 82 s (kong-semantics Q21)
TERMINATE_S_MAX: Final = 10.0  # the master kills after 3.15 s (kong-semantics W9)
STOP_S_MAX: Final = 5.0
KILL_S_MAX: Final = 1.0
CONNECTIONS_MAX: Final = 1000
"""Connections at most, beside one for each virtual user."""

_COLLECTOR: Final = "collector"
_MASTER: Final = "master"
_LOAD: Final = "load"
_READY: Final = "ready"
_HOST: Final = "127.0.0.1"
_MS_PER_S: Final = 1000
_NS_PER_S: Final = 1_000_000_000
_WORKER_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_MASTER_SIGNALS: Final = {"reload": signal.SIGHUP, "quit": signal.SIGQUIT, "terminate": signal.SIGTERM}


class RunError(Exception):
    """A process of a run failed; the message names it."""


def run(scenario: Scenario, *, out_dir: Path, progress: Progress, recording: Recording | None = None) -> Summary:
    """Run a scenario and return what came of it.

    Args:
        scenario: What to run.
        out_dir: An existing folder; the gateway's `error.log` is written there.
        progress: Shown the run from the beginning of the load.
        recording: Takes samples of it meanwhile, and the spans that arrive.

    Raises:
        UserError: An address cannot be bound, or no worker can start with this configuration.
        RunError: A process of the run ended that should not have.
        KeyboardInterrupt: It was interrupted before there was anything to tell.
    """
    log_path = out_dir / "error.log"
    try:
        log_path.unlink(missing_ok=True)
    except OSError as error:
        cure = "name another folder with --out"
        raise UserError(f"cannot be replaced: {error.strerror}", file=str(log_path), cure=cure) from None
    with Signals(*INTERRUPTS) as signals, ExitStack() as bound:
        error_log = ErrorLog(log_path, scenario.gateway.log_level)
        bound.callback(error_log.close)
        listeners = {name: bound.enter_context(listen(_HOST, 0)) for name in (_COLLECTOR, *scenario.upstreams)}
        hosts = scenario.addresses({name: listener.getsockname()[:2] for name, listener in listeners.items()})
        gateway = scenario.gateway.exporting_to(f"{url_of(listeners[_COLLECTOR])}/v1/traces")
        gateway = gateway.model_copy(update={"hosts": gateway.hosts | hosts})
        scoreboard = Scoreboard(gateway.workers)
        master = Master(gateway, scoreboard, error_log=error_log)
        bound.callback(master.close)
        return _Run(scenario, listeners, master, scoreboard, log_path, progress, recording, signals).run()


class _Child:
    """A process of the run, as it was when it was last looked at: what it said last, and how it ended."""

    def __init__(self, name: str, process: Process, control: Connection) -> None:
        self.name = name
        self.process = process
        self.control = control
        self.message: Any = None
        self.exit_code: int | None = None
        self._open = True

    @property
    def ended(self) -> bool:
        return self.exit_code is not None

    @property
    def sources(self) -> list[Any]:
        """What can be waited for before the next look: a message, the end."""
        return ([self.control] if self._open else []) + ([] if self.ended else [self.process.sentinel])

    def look(self) -> None:
        self.exit_code = self.process.exitcode
        try:
            while self._open and self.control.poll():
                self.message = self.control.recv()
        except (EOFError, OSError):
            self._open = False

    def ask(self, order: Any) -> None:
        with suppress(OSError):  # it has just ended
            self.control.send(order)


@dataclass
class _Run:
    """The processes of one run."""

    scenario: Scenario
    listeners: Mapping[str, socket]
    master: Master
    scoreboard: Scoreboard
    log_path: Path
    progress: Progress
    recording: Recording | None
    signals: Signals
    children: dict[str, _Child] = field(default_factory=dict)
    may_end: set[str] = field(default_factory=set)
    load_s: float = inf  # when the load began
    update_s: float = 0.0  # when the view is due
    timeline: Timeline = field(init=False)  # of the faults
    under_way: dict[int, tuple[Fault, dict[str, Any]]] = field(default_factory=dict)  # those that last, by identity
    carried_out: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False

    def __post_init__(self) -> None:
        self.timeline = Timeline(self.scenario.faults)

    def run(self) -> Summary:
        started_at, started_s = datetime.now(UTC).astimezone(), time.monotonic()
        try:
            self._start_gateway()
            self._start_load()
            self._await(lambda: self.children[_LOAD].ended)
            self._await(self._at_rest, REST_S_MAX, every_s=REST_POLL_S)
            self._quit()
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self._end()
        reports = {name: child.message for name, child in self.children.items()}
        if _LOAD not in reports or None in reports.values():
            raise KeyboardInterrupt
        return summarize(
            self.scenario,
            load=reports[_LOAD],
            collector=reports[_COLLECTOR],
            upstreams={name: reports[name] for name in self.scenario.upstreams},
            workers=self.scoreboard.read(),
            environment=environment(),
            started_at=started_at,
            elapsed_s=time.monotonic() - started_s,
            faults=self.carried_out,
            not_carried_out=self.timeline.to_begin,
            error_log=count_lines(self.log_path),
            interrupted=self.interrupted,
        )

    # The course of a run.

    def _start_gateway(self) -> None:
        for name, upstream in self.scenario.upstreams.items():
            model = _origin(upstream, child_seed(self.scenario.seed, "origin", name))
            listener = self.listeners[name]
            self._fork(name, partial(origin.serve, listener, origin=model), keeping=listener)
        latency_ms = self.scenario.collector.latency * _MS_PER_S
        capture = self.recording.capture if self.recording else None
        listener = self.listeners[_COLLECTOR]
        receive = partial(collector.serve, listener, latency_ms=latency_ms, capture=capture)
        self._fork(_COLLECTOR, receive, keeping=listener)
        self._fork(_MASTER, partial(_cycle, self.master))
        public = self.master.listeners[0]
        self.url, self.address = url_of(public), public.getsockname()[:2]
        for listener in self.listeners.values():
            listener.close()
        self.master.close()
        if not self._await(self._serving, READY_S_MAX):
            raise RunError(f"the workers did not begin to serve within {READY_S_MAX:g} s; see {self.log_path}")

    def _serving(self) -> bool:
        deaths = sum(worker.exit_code is not None for worker in self.scoreboard.read().workers)
        if deaths > START_DEATHS_MAX:
            raise RunError(f"workers keep dying before they serve; see {self.log_path}")
        return bool(self.children[_MASTER].message == _READY)

    def _start_load(self) -> None:
        self.may_end.add(_LOAD)
        self._fork(_LOAD, partial(driver.drive, load=_load(self.scenario, *self.address)))
        load = self.children[_LOAD]
        load.ask("report")
        self._await(lambda: load.message is not None)
        self.load_s = load.message["begun_s"]
        if self.recording:
            self.recording.begin(self.load_s, _unix_ns() - time.monotonic_ns())
        self.progress.start(self.scenario, self.url)  # after the last fork: it may start a thread

    def _quit(self) -> None:
        self.may_end.add(_MASTER)
        kill(self.children[_MASTER].process, signal.SIGQUIT)
        self._await(lambda: self.children[_MASTER].ended, QUIT_S_MAX)

    def _fork(self, name: str, target: Callable[[Connection], None], *, keeping: socket | None = None) -> None:
        ours, theirs = pipe()
        controls = [child.control for child in self.children.values()]
        foreign: tuple[socket | Connection, ...] = (*self.listeners.values(), *controls, ours)
        if name != _MASTER:
            foreign += self.master.sockets
        closing = [resource for resource in foreign if resource is not keeping]
        # Ctrl-C, and the end of a terminal, reach every process of it; it is this one that ends the peers (`sim.peer`).
        ignoring = [] if name == _MASTER else [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP]
        process = start(target, theirs, name=name, closing=closing, ignoring=ignoring)
        theirs.close()
        self.children[name] = _Child(name, process, ours)

    # While it runs.

    def _await(self, condition: Callable[[], bool], timeout_s: float = inf, *, every_s: float = UPDATE_S) -> bool:
        """Wait for a condition that is looked at after each event and `every_s`; return whether it came true."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            if self._wait(min(left_s, every_s, self._next_event_in_s(), self._next_moment_in_s())):
                raise KeyboardInterrupt
            self._check()
            self._carry_out_faults()
            self._show()
        return True

    def _wait(self, timeout_s: float) -> bool:
        """Wait for a signal, a message or the end of a process, and look at these; return whether a signal has come."""
        ready = wait([self.signals, *(s for child in self.children.values() for s in child.sources)], timeout_s)
        for child in self.children.values():
            child.look()
        return self.signals in ready and bool(self.signals.take())

    def _check(self) -> None:
        for name, child in self.children.items():
            code = child.exit_code
            if code is None or (code == 0 and name in self.may_end):
                continue
            if name == _MASTER and code == EXIT_FATAL:
                raise UserError(f"no worker can start: {_first_emergency(self.log_path)}")
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise RunError(f"the {name} process ended before its time: {how}; see {self.log_path}")

    def _at_rest(self) -> bool:
        reading = self.scoreboard.read()
        return not any(reading.sum(gauge) for gauge in ("requests_active", "queue_depth", "in_flight"))

    # Faults.

    def _next_event_in_s(self) -> float:
        due_s = max(FAULT_RETRY_S, self.load_s + self.timeline.next_s - time.monotonic())
        holds_memory = any(fault.kind == "memory" for fault, _entry in self.under_way.values())
        return min(due_s, MEMORY_POLL_S) if holds_memory else due_s

    def _carry_out_faults(self) -> None:
        elapsed_s = time.monotonic() - self.load_s
        self.timeline.advance(elapsed_s, partial(self._carry_out, elapsed_s=elapsed_s))
        self._hold_memory_limits()

    def _carry_out(self, event: Event, elapsed_s: float) -> bool:
        """Begin or end a fault; False while there is nobody whom it could hit."""
        if event.begins:
            return self._begin(event.fault, elapsed_s)
        self._end_fault(event.fault, elapsed_s)
        return True

    def _begin(self, fault: Fault, elapsed_s: float) -> bool:
        entry: dict[str, Any] = {"at_s": round(elapsed_s, 3), **fault.told()}
        match fault.target:
            case "worker" if fault.kind in _WORKER_SIGNALS:
                pid = self._signal_worker(fault.slot, _WORKER_SIGNALS[fault.kind])
                if pid is None:
                    return False
                entry["pid"] = pid
            case "worker":
                entry["killed"] = []
            case "master":
                if fault.kind != "reload":
                    self.may_end.add(_MASTER)
                kill(self.children[_MASTER].process, _MASTER_SIGNALS[fault.kind])
            case "collector" | "upstream":
                self._tell(fault, begins=True)
        self.carried_out.append(entry)
        if not fault.is_act:
            self.under_way[id(fault)] = fault, entry
        return True

    def _end_fault(self, fault: Fault, elapsed_s: float) -> None:
        _fault, entry = self.under_way.pop(id(fault))
        entry["ended_at_s"] = round(elapsed_s, 3)
        if fault.kind == "stop" and entry["pid"] not in self._stopped_pids():
            self._signal(entry["pid"], signal.SIGCONT)
        if fault.target in ("collector", "upstream"):
            self._tell(fault, begins=False)

    def _tell(self, fault: Fault, *, begins: bool) -> None:
        upstreams = [fault.upstream] if fault.upstream else self.scenario.upstreams
        for name in [_COLLECTOR] if fault.target == "collector" else upstreams:
            self.children[name].ask((begins, fault))

    def _signal_worker(self, slot: int, signum: signal.Signals) -> int | None:
        """Signal the worker of a slot, the youngest one; return its pid, None when there is none at this moment."""
        pids = [worker.pid for worker in self.scoreboard.read().alive if worker.slot == slot]
        return next((pid for pid in reversed(pids) if pid and self._signal(pid, signum)), None)

    def _stopped_pids(self) -> set[int]:
        return {entry["pid"] for fault, entry in self.under_way.values() if fault.kind == "stop"}

    def _signal(self, pid: int, signum: signal.Signals) -> bool:
        master_pid = self.children[_MASTER].process.pid
        assert master_pid is not None
        return send_signal(pid, signum, parent_pid=master_pid)

    def _hold_memory_limits(self) -> None:
        for fault, entry in self.under_way.values():
            if fault.kind != "memory":
                continue
            assert fault.limit is not None
            pids = [worker.pid for worker in self.scoreboard.read().alive if worker.slot == fault.slot and worker.pid]
            large = [pid for pid in pids if _resident_bytes(pid) > fault.limit]
            entry["killed"] += [
                pid for pid in large if pid not in entry["killed"] and self._signal(pid, signal.SIGKILL)
            ]

    # The view, and what is kept of it.

    def _next_moment_in_s(self) -> float:
        return max(0.0, max(self.load_s, self.update_s) - time.monotonic())

    def _show(self) -> None:
        if self._next_moment_in_s() > 0:
            return
        now_s = time.monotonic()
        self.update_s = now_s + UPDATE_S
        load, received = self.children[_LOAD], self.children[_COLLECTOR]
        if load.message and received.message:
            elapsed_s, workers = now_s - self.load_s, self.scoreboard.read()
            moment = Moment(elapsed_s=elapsed_s, load=load.message, workers=workers, collector=received.message)
            self.progress.update(moment)
            if self.recording:
                self.recording.add(moment)
        load.ask("report")
        received.ask("report")

    # The end, whatever came before.

    def _end(self) -> None:
        """End what still runs, what sends before what receives, and reap all."""
        try:
            self.progress.close()
            for pid in self._stopped_pids():  # one that stands still would be killed, and could not say what it held
                self._signal(pid, signal.SIGCONT)
            self._stop([_LOAD, _MASTER], TERMINATE_S_MAX)
            self._stop([_COLLECTOR, *self.scenario.upstreams], STOP_S_MAX)
        finally:
            for name, child in self.children.items():
                kill(child.process, signal.SIGTERM if name == _MASTER else signal.SIGKILL)
            for child in self.children.values():
                reap(child.process, KILL_S_MAX)
                child.look()
                child.control.close()

    def _stop(self, names: Iterable[str], timeout_s: float) -> None:
        children = [self.children[name] for name in names if name in self.children]
        for child in children:
            if child.name == _MASTER:
                kill(child.process, signal.SIGTERM)
            else:
                child.ask("stop")
        deadline_s = time.monotonic() + timeout_s
        while not all(child.ended for child in children) and (left_s := deadline_s - time.monotonic()) > 0:
            if self._wait(left_s) and (master := self.children.get(_MASTER)):
                self.interrupted |= not master.ended
                kill(master.process, signal.SIGTERM)


def _cycle(master: Master, control: Connection) -> None:
    sys.exit(master.cycle(lambda: control.send(_READY)))


def _origin(upstream: Upstream, seed: int) -> origin.Origin:
    return origin.Origin(
        latency_p50_ms=upstream.latency.p50 * _MS_PER_S,
        latency_p99_ms=upstream.latency.p99 * _MS_PER_S,
        status=upstream.status,
        body_bytes=upstream.body,
        sampling_rate=upstream.sampling_rate,
        seed=seed,
    )


def _load(scenario: Scenario, host: str, port: int) -> executor.Load:
    faults = scenario.faults
    executors = [
        _executor(load, Request.of(load.request, host, port), child_seed(scenario.seed, "load", index))
        for index, load in enumerate(scenario.load)
    ]
    closed = (load for load in scenario.load if isinstance(load, ClosedLoad))
    users_max = sum(max(max(ends) for _duration_s, *ends in load.course) for load in closed)
    return executor.Load(
        executors=tuple(executors),
        connections_max=CONNECTIONS_MAX + users_max,
        pauses=tuple(fault.window_s for fault in faults if fault.kind == "pause"),
        bursts=tuple((*fault.window_s, fault.rate) for fault in faults if fault.rate is not None),
        windows=tuple(fault.window_s for fault in faults if fault.kind != "pause"),
    )


def _executor(load: OpenLoad | ClosedLoad, request: Request, seed: int) -> executor.Executor:
    told: dict[str, Any] = {"request": request, "start_s": load.startTime}
    match load:
        case ConstantArrivalRate():
            told |= {"arrival": load.arrival, "seed": seed}
            return executor.ConstantArrivalRate(rate_per_s=load.rate, duration_s=load.duration, **told)
        case RampingArrivalRate():
            told |= {"arrival": load.arrival, "seed": seed}
            return executor.RampingArrivalRate(stages=load.course, **told)
    return executor.VirtualUsers(stages=load.course, **told)


def _unix_ns() -> int:
    return round(datetime.now(UTC).timestamp() * _NS_PER_S)


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0


def _first_emergency(log_path: Path) -> str:
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(": ")[2] for line in lines if " [emerg] " in line), "the log does not tell why")
