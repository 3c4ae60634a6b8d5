"""The master: binds, forks the workers, and keeps them as nginx's does.

What to do is decided in `sim.cycle`; here it is done. The loop is one wait, on the signals, on the pipe by which
workers say that they are ready and on the decision's next deadline, then one turn. Nothing runs in between: signals
come as messages (`sim.process.Signals`).

Sockets are bound when a `Master` is made, so that a busy port is an error of whoever made it, before anything runs. A
reload binds what is new and keeps what stays, so that no connection in line is lost; what is gone is closed when the
new generation serves, since until then the configuration before it may come back into force.

The Status API is answered by a process of its own (`sim.status`), which reads the scoreboard: neither master nor
workers are disturbed by who asks.
"""

import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

from sim import status, worker
from sim.access_log import AccessLog
from sim.config import Gateway, affinity, parse_address
from sim.cycle import (
    EXIT_FATAL,
    STATUS,
    Action,
    Announce,
    CloseListeners,
    Cycle,
    Exit,
    Kill,
    Log,
    Reconfigure,
    ReopenLogs,
    Restore,
    Spawn,
    WorkerArgs,
    child_seed,
    process_name,
)
from sim.error_log import ErrorLog, LogFile
from sim.errors import UserError
from sim.plugins.prometheus import subjects
from sim.process import PidFile, Process, SharedCounter, Signals, has_terminal, kill, pipe, reap, start, wait
from sim.scoreboard import Record, Scoreboard
from sim.status import StatusArgs

BACKLOG: Final = 511  # nginx, NGX_LISTEN_BACKLOG on Linux

IGNORED: Final = (signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH)
"""Signals that do nothing to a worker (kong-semantics W3, W5); a terminal sends some to all that run on it."""

_NS_PER_S: Final = 1_000_000_000

Place = tuple[str, str]
"""A setting, and one of the addresses that it names."""


def listen(host: str, port: int, *, field: str | None = None) -> socket.socket:
    """Return a listening, non-blocking socket; port 0 is any free one.

    Raises:
        UserError: It cannot be bound; `field` is where the address comes from.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, kind, protocol, _name, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"{address}: {error.strerror}", field=field, cure="write an address of this machine") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # [::] beside 0.0.0.0; nginx, ipv6only=on
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(place)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        cure = {
            errno.EADDRINUSE: "end the program that listens there, or choose another port; 0 is any free one",
            errno.EACCES: "choose a port above 1023; 0 is any free one",
            errno.EADDRNOTAVAIL: "write an address of this machine, such as 127.0.0.1",
        }.get(error.errno or 0)
        raise UserError(f"cannot listen on {address}: {error.strerror}", field=field, cure=cure) from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Return where a listening socket can be reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind(gateway: Gateway, held: Mapping[Place, socket.socket]) -> dict[Place, socket.socket]:
    """Return a listening socket for each address of a configuration: the one that is held already, or a new one.

    Raises:
        UserError: One cannot be bound; then no new one is left open.
    """
    places = [("listen", address) for address in gateway.listen]
    places += [("status_listen", address) for address in gateway.status_listen]
    bound: dict[Place, socket.socket] = {}
    try:
        for place in places:
            bound[place] = held.get(place) or listen(*parse_address(place[1]), field=place[0])
    except UserError:
        for place in bound.keys() - held.keys():
            bound[place].close()
        raise
    return bound


def _slots(gateway: Gateway) -> list[int]:
    return [*range(gateway.workers), *([STATUS] if gateway.status_listen else [])]


def _access_log(gateway: Gateway) -> AccessLog | None:
    return AccessLog(Path(gateway.access_log)) if gateway.access_log else None


class _Setting(NamedTuple):
    """A configuration, with what the master holds open for it."""

    gateway: Gateway
    bound: Mapping[Place, socket.socket]
    error_log: ErrorLog
    access_log: AccessLog | None

    @property
    def held(self) -> "set[socket.socket | LogFile]":
        return {*self.bound.values(), self.error_log, *([self.access_log] if self.access_log else [])}

    def close(self, *others: "_Setting") -> None:
        """Close what none of the others holds."""
        for held in self.held.difference(*(other.held for other in others)):
            held.close()  # of a log, the workers that still write there have their own


class Master:
    """A master with its listening sockets, bound; `cycle` runs it.

    Args:
        gateway: The configuration.
        scoreboard: With a slot for each worker, made before the fork of whoever else reads it.
        error_log: Its own and its workers'.
        reread: Reads the configuration again, at HUP; a `UserError` leaves the old one in place.
        worker_main: What a worker runs.

    Raises:
        UserError: An address cannot be bound, or the access log not be opened.
    """

    _cycle: Cycle

    def __init__(
        self,
        gateway: Gateway,
        scoreboard: Scoreboard,
        *,
        error_log: ErrorLog,
        reread: Callable[[], Gateway] | None = None,
        worker_main: Callable[[WorkerArgs], None] = worker.main,
    ) -> None:
        access_log = _access_log(gateway)
        self._setting = _Setting(gateway, _bind(gateway, {}), error_log, access_log)
        self._former: _Setting | None = None  # until a generation with the present one serves
        self._scoreboard = scoreboard
        scoreboard.numbers.add(subjects(gateway))
        self._reread = reread or (lambda: gateway)
        self._worker_main = worker_main
        self._children: dict[int, tuple[Process, Record | None]] = {}
        self._connections = SharedCounter()
        self._ready, self._ready_workers = pipe()

    @property
    def gateway(self) -> Gateway:
        """The configuration in force."""
        return self._setting.gateway

    def _log(self, level: str, message: str) -> None:
        self._setting.error_log(level, message)

    @property
    def listeners(self) -> list[socket.socket]:
        """The sockets on which the workers accept, in the order of the configuration."""
        return [listener for (field, _address), listener in self._setting.bound.items() if field == "listen"]

    @property
    def status_listeners(self) -> list[socket.socket]:
        """The sockets on which the Status API is answered."""
        return [listener for (field, _address), listener in self._setting.bound.items() if field == "status_listen"]

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """All its listening sockets."""
        return tuple(self._setting.bound.values())

    def cycle(self, announce: Callable[[], None]) -> int:
        """Run until told to leave and no worker is left; return the exit code: 0, or 2 when no worker could be started.

        Args:
            announce: Called whenever all workers of a generation have begun to serve.
        """
        self._cycle = Cycle(daemon=not has_terminal())
        with Signals(*self._cycle.signals, until_exit=True) as signals:
            try:
                return self._run(signals, announce)
            finally:
                for process, record in self._children.values():  # the status process without workers, or a failure
                    _end(record, reap(process, 0))

    def close(self) -> None:
        """Close this process's copies of what the master holds, where another process runs it or none will."""
        for listener in self.sockets:
            listener.close()
        if self._setting.access_log is not None:
            self._setting.access_log.close()
        self._ready.close()
        self._ready_workers.close()

    def _run(self, signals: Signals, announce: Callable[[], None]) -> int:
        self._compare_masks()
        actions = self._cycle.begin(_slots(self.gateway), self.gateway.profile)
        while True:
            for action in actions:
                if isinstance(action, Exit):
                    return action.code
                self._do(action)
                if isinstance(action, Announce):
                    announce()
            deadline_ns = self._cycle.deadline_ns
            timeout_s = None if deadline_ns is None else max(0, deadline_ns - time.monotonic_ns()) / _NS_PER_S
            wait([signals, self._ready], timeout_s)
            received, exits = signals.take(), self._reap()
            while late := signals.take():  # of whoever has ended meanwhile: it was reaped, and its signal is told first
                received += late
                exits += self._reap()
            actions = self._cycle.turn(time.monotonic_ns(), signals=received, exits=exits, ready=self._take_ready())

    def _do(self, action: Action) -> None:
        match action:
            case Log(level, message):
                self._log(level, message)
            case Spawn():
                self._spawn(action)
            case Kill(pid, signum):
                kill(self._children[pid][0], signum)
            case CloseListeners():
                self._close_listeners()
            case ReopenLogs():
                self._reopen_logs()
            case Reconfigure():
                self._reconfigure()
            case Announce():
                self._settle(self._setting)
            case Restore():
                assert self._former is not None
                self._settle(self._former)

    def _settle(self, setting: _Setting) -> None:
        """Let a setting be the only one."""
        for other in filter(None, (self._setting, self._former)):
            other.close(setting)
        self._setting, self._former = setting, None

    def _close_listeners(self) -> None:
        for setting in filter(None, (self._setting, self._former)):
            for listener in setting.bound.values():
                listener.close()

    def _spawn(self, spawn: Spawn) -> None:
        name = process_name(spawn.slot)
        if spawn.slot == STATUS:
            record = None
            process = self._start_status()
        else:
            record = self._scoreboard.open(spawn.slot, spawn.generation)
            process = self._start_worker(spawn, record)
        assert process.pid is not None
        if record is not None:
            record.started(process.pid)
        self._children[process.pid] = process, record
        self._cycle.started(spawn, process.pid, time.monotonic_ns())
        self._log("notice", f"start {name} {process.pid}")

    def _start_worker(self, spawn: Spawn, record: Record) -> Process:
        args = WorkerArgs(
            slot=spawn.slot,
            generation=spawn.generation,
            gateway=self.gateway,
            listeners=self.listeners,
            record=record,
            ready=self._ready_workers,
            seed=child_seed(self.gateway.seed, "worker", spawn.slot, record.serial),
            connections=self._connections,
            error_log=self._setting.error_log,
            access_log=self._setting.access_log,
        )
        name, foreign = f"worker {spawn.slot}", [*self.status_listeners, *self._former_alone(), self._ready]
        return start(_run_worker, self._worker_main, args, name=name, closing=foreign, ignoring=IGNORED)

    def _start_status(self) -> Process:
        error_log = self._setting.error_log
        args = StatusArgs(self.gateway, self._scoreboard, self.status_listeners, self._ready_workers, error_log)
        foreign = [*self.listeners, *self._former_alone(), self._ready]
        return start(status.main, args, name="status", closing=foreign, ignoring=IGNORED)

    def _former_alone(self) -> "set[socket.socket | LogFile]":
        """Return what is held for the former configuration alone."""
        return self._former.held - self._setting.held if self._former is not None else set()

    def _reap(self) -> list[tuple[int, int]]:
        exits = [(pid, process.exitcode) for pid, (process, _record) in self._children.items()]
        ended = [(pid, code) for pid, code in exits if code is not None]
        for pid, code in ended:
            _end(self._children.pop(pid)[1], code)
        return ended

    def _take_ready(self) -> list[int]:
        pids = []
        while self._ready.poll():
            pids.append(self._ready.recv())
        return pids

    def _reopen_logs(self) -> None:
        for log in (self._setting.error_log, self._setting.access_log):
            if log is not None and (error := log.reopen()):
                self._log("emerg", f'open() "{log.path}" failed ({error.errno}: {error.strerror})')
        self._log("notice", "logs reopened")

    def _reconfigure(self) -> None:
        former = self._former or self._setting
        with ExitStack() as opened:
            try:
                gateway = self._reread()
                self._scoreboard.grow(gateway.workers)
                logs = self._logs_of(gateway, opened)
                bound = _bind(gateway, {**former.bound, **self._setting.bound})
            except UserError as error:
                self._log("emerg", str(error))
                return
            opened.pop_all()
        setting = _Setting(gateway, bound, *logs)
        self._setting.close(former, setting)
        self._setting, self._former = setting, former
        for warning in gateway.warnings:
            self._log("warn", warning)
        self._scoreboard.numbers.add(subjects(gateway))
        self._compare_masks()
        for action in self._cycle.reconfigured(_slots(gateway), gateway.profile):
            self._do(action)

    def _logs_of(self, gateway: Gateway, opened: ExitStack) -> tuple[ErrorLog, AccessLog | None]:
        """Open the logs that a configuration names, where it names others than the one in force; `opened` ends them."""
        told, now = gateway, self.gateway
        error_log, access_log = self._setting.error_log, self._setting.access_log
        if told.access_log != now.access_log:
            access_log = _access_log(told)
            if access_log is not None:
                opened.callback(access_log.close)
        if (told.error_log, told.log_level) != (now.error_log, now.log_level):
            error_log = _error_log(told)
            opened.callback(error_log.close)
        return error_log, access_log

    def _compare_masks(self) -> None:
        masks = self.gateway.nginx.worker_cpu_affinity
        if masks and masks[0] != "auto" and len(masks) not in (1, self.gateway.workers):
            found = f"{len(masks)} worker_cpu_affinity masks for {self.gateway.workers} workers"
            self._log("warn", f"{found}: the last mask is used for the remaining workers")


def _error_log(gateway: Gateway) -> ErrorLog:
    return ErrorLog(Path(gateway.error_log) if gateway.error_log else None, gateway.log_level)


def _end(record: Record | None, exit_code: int) -> None:
    if record is not None:
        record.end(exit_code)


def _run_worker(worker_main: Callable[[WorkerArgs], None], args: WorkerArgs) -> None:
    available = os.sched_getaffinity(0)
    cpus = affinity(args.gateway.nginx.worker_cpu_affinity, args.slot, available)
    try:
        if cpus:
            os.sched_setaffinity(0, cpus)
    except OSError as error:
        wanted = ", ".join(f"#{cpu}" for cpu in sorted(cpus))
        which = f"{wanted} of {', '.join(f'#{cpu}' for cpu in sorted(available))}"
        args.error_log("alert", f"sched_setaffinity() failed ({error.errno}: {error.strerror}): cpu {which}")
    try:
        worker_main(args)
    except UserError as error:
        args.error_log("emerg", str(error))
        sys.exit(EXIT_FATAL)


def serve(gateway: Gateway, *, reread: Callable[[], Gateway] | None = None) -> int:
    """Run the gateway in the foreground, with nginx's signals, until told to leave; return the exit code.

    Standard output is told that it serves, and where.

    Args:
        gateway: The configuration.
        reread: Reads it again, at HUP.

    Raises:
        UserError: An address cannot be bound, a file not be opened, or another master holds the pid file.
    """

    def announce() -> None:
        if sys.stdout is not None:
            with suppress(OSError):  # that nobody reads it is no reason to stop
                os.write(sys.stdout.fileno(), _first_screen(master).encode())

    with PidFile(Path(gateway.pid) if gateway.pid else None):
        master = Master(gateway, Scoreboard(gateway.workers), error_log=_error_log(gateway), reread=reread)
        return master.cycle(announce)


def _first_screen(master: Master) -> str:
    gateway = master.gateway
    where = ", ".join(map(url_of, master.listeners))
    lines = [f"listening on {where}, workers: {gateway.workers}, profile: {gateway.profile}, pid: {os.getpid()}"]
    if master.status_listeners:
        lines.append(f"status at {', '.join(f'{url_of(listener)}/status' for listener in master.status_listeners)}")
    return "".join(f"{line}\n" for line in lines)
