"""The master: binds, forks the workers, and keeps them as nginx's does.

What to do is decided in `sim.cycle`; here it is done. The loop is one wait, on the signals, on the pipe by which
workers say that they are ready and on the decision's next deadline, then one turn. Nothing runs in between: signals
come as messages (`sim.process.Signals`).

Sockets are bound when a `Master` is made, so that a busy port is an error of whoever made it, before anything runs.
"""

import errno
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

from sim import worker
from sim.config import Gateway, parse_address
from sim.cycle import (
    EXIT_FATAL,
    SIGNALS,
    Action,
    Announce,
    CloseListeners,
    Cycle,
    Exit,
    Kill,
    Log,
    Reconfigure,
    ReopenLogs,
    Spawn,
    WorkerArgs,
    child_seed,
)
from sim.error_log import ErrorLog
from sim.errors import UserError
from sim.process import Process, Signals, kill, pipe, reap, start, wait
from sim.scoreboard import Record, Scoreboard

BACKLOG: Final = 511  # nginx, NGX_LISTEN_BACKLOG on Linux

_NS_PER_S: Final = 1_000_000_000


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


class Master:
    """A master with its listening socket, bound; `cycle` runs it.

    Args:
        gateway: The configuration.
        scoreboard: With a slot for each worker, made before the fork of whoever else reads it.
        error_log: Its own and its workers'.
        reread: Reads the configuration again, at HUP; a `UserError` leaves the old one in place.
        worker_main: What a worker runs.

    Raises:
        UserError: The address cannot be bound.
    """

    def __init__(
        self,
        gateway: Gateway,
        scoreboard: Scoreboard,
        *,
        error_log: ErrorLog,
        reread: Callable[[], Gateway] | None = None,
        worker_main: Callable[[WorkerArgs], None] = worker.main,
    ) -> None:
        self.gateway = gateway
        self.listener = listen(*parse_address(gateway.listen), field="listen")
        self._scoreboard = scoreboard
        self._log = error_log
        self._reread = reread or (lambda: gateway)
        self._worker_main = worker_main
        self._cycle = Cycle(gateway.workers)
        self._workers: dict[int, tuple[Process, Record]] = {}
        self._ready, self._ready_workers = pipe()

    def cycle(self, announce: Callable[[], None]) -> int:
        """Run until told to leave and no worker is left; return the exit code: 0, or 2 when no worker could be started.

        Args:
            announce: Called whenever all workers of a generation have begun to serve.
        """
        with Signals(*SIGNALS) as signals:
            try:
                return self._run(signals, announce)
            finally:
                for process, record in self._workers.values():  # only after a failure of this program
                    record.end(reap(process, 0))

    def close(self) -> None:
        """Close this process's copies of what the master holds, where another process runs it or none will."""
        for resource in (self.listener, self._ready, self._ready_workers):
            resource.close()

    def _run(self, signals: Signals, announce: Callable[[], None]) -> int:
        actions = self._cycle.begin()
        while True:
            for action in actions:
                if isinstance(action, Exit):
                    return action.code
                if isinstance(action, Announce):
                    announce()
                self._do(action)
            deadline_ns = self._cycle.deadline_ns
            timeout_s = None if deadline_ns is None else max(0, deadline_ns - time.monotonic_ns()) / _NS_PER_S
            wait([signals, self._ready], timeout_s)
            received = signals.take()
            actions = self._cycle.turn(
                time.monotonic_ns(), signals=received, exits=self._reap(), ready=self._take_ready()
            )

    def _do(self, action: Action) -> None:
        match action:
            case Log(level, message):
                self._log(level, message)
            case Spawn():
                self._spawn(action)
            case Kill(pid, signum):
                kill(self._workers[pid][0], signum)
            case CloseListeners():
                self.listener.close()
            case ReopenLogs():
                self._log.reopen()
            case Reconfigure():
                self._reconfigure()

    def _spawn(self, spawn: Spawn) -> None:
        record = self._scoreboard.open(spawn.slot, spawn.generation)
        args = WorkerArgs(
            slot=spawn.slot,
            generation=spawn.generation,
            gateway=self.gateway,
            listeners=[self.listener],
            record=record,
            ready=self._ready_workers,
            seed=child_seed(self.gateway.seed, "worker", spawn.slot, record.serial),
            error_log=self._log,
        )
        process = start(_run_worker, self._worker_main, args, name=f"worker {spawn.slot}", closing=[self._ready])
        assert process.pid is not None
        record.started(process.pid)
        self._workers[process.pid] = process, record
        self._cycle.started(spawn, process.pid, time.monotonic_ns())
        self._log("notice", f"start worker process {process.pid}")

    def _reap(self) -> list[tuple[int, int]]:
        exits = [(pid, process.exitcode) for pid, (process, _record) in self._workers.items()]
        ended = [(pid, code) for pid, code in exits if code is not None]
        for pid, code in ended:
            self._workers.pop(pid)[1].end(code)
        return ended

    def _take_ready(self) -> list[int]:
        pids = []
        while self._ready.poll():
            pids.append(self._ready.recv())
        return pids

    def _reconfigure(self) -> None:
        try:
            gateway = self._reread()
        except UserError as error:
            self._log("emerg", str(error))
            return
        fixed = {"listen": self.gateway.listen, "workers": self.gateway.workers}
        for field, value in fixed.items():
            if getattr(gateway, field) != value:
                self._log("warn", f"{field} stays {value}: it takes effect at the next start")
        self.gateway = gateway.model_copy(update=fixed)
        for action in self._cycle.reconfigured():
            self._do(action)


def _run_worker(worker_main: Callable[[WorkerArgs], None], args: WorkerArgs) -> None:
    try:
        worker_main(args)
    except UserError as error:
        args.error_log("emerg", str(error))
        sys.exit(EXIT_FATAL)


def serve(gateway: Gateway, *, reread: Callable[[], Gateway] | None = None) -> int:
    """Run the gateway in the foreground, with nginx's signals, until told to leave; return the exit code.

    Raises:
        UserError: The address cannot be bound.
    """

    def announce() -> None:
        where = url_of(master.listener)
        print(f"listening on {where}, workers: {gateway.workers}, profile: {gateway.profile}", flush=True)

    master = Master(gateway, Scoreboard(gateway.workers), error_log=ErrorLog(), reread=reread)
    return master.cycle(announce)
