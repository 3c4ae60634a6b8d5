"""The worker: one process, one event loop, one set of pools, as an nginx worker has them.

Everything that counts is made here, after the fork: the event loop, and the gateway that it hosts (`sim.gateway`). A
worker accepts one connection per event, so that no worker takes them all (nginx, `multi_accept off`); serves; and
publishes what it has counted (`sim.scoreboard`): the first change in a turn of the loop at once, all that follow in
that turn together, before it waits again.

TERM and INT: it leaves at the end of the turn; open requests are cut off, and what the queues hold is booked as
dropped (kong-semantics W1-W2, E5). QUIT: it accepts no more, closes idle connections, expires its timers, and leaves
when no request and no timer is left, bounded by `worker_shutdown_timeout` for the requests (W12, W13). USR1 opens the
logs again.
"""

import asyncio
import gc
import os
import signal
import socket
import time
from array import array
from collections.abc import Callable, Mapping
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, cast

import uvloop

from kongtrace import TracerProvider
from kongtrace.pool import Balance
from sim.connection import ClientConnection
from sim.gateway import WorkerGateway
from sim.plugin import PluginClass
from sim.plugins import BUNDLED
from sim.runtime.live import LiveRuntime
from sim.scoreboard import FIELD_INDEX, State, new_row
from sim.upstream import OUT_OF_FILES
from sim.wall_clock import WallClock

if TYPE_CHECKING:
    from sim.cycle import WorkerArgs

TICK_S: Final = 0.25
"""How often the clocks, memory, the bytes of the queues and the pools beside that of the spans are looked at."""

ACCEPT_DELAY_S: Final = 0.5
"""How long a worker without a free file descriptor accepts nobody; nginx's `accept_mutex_delay`."""

GC_THRESHOLD: Final = 20_000
"""Objects more than before, after which the worker looks for garbage that refers to itself."""

_STATM_BYTES: Final = 128
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_NS_PER_S: Final = 1_000_000_000


def main(
    args: "WorkerArgs",
    classes: Mapping[str, PluginClass] = BUNDLED,
    make_provider: Callable[..., TracerProvider] = TracerProvider,
) -> None:
    """Run a worker until it is told to leave.

    Args:
        args: from the master.
        classes: the plugins that there are.
        make_provider: makes the tracer provider, such as a checked one (`kongtrace.checked.tracer_provider`).
    """
    # The master's objects are never garbage here: walking them would stall the loop for milliseconds.
    gc.freeze()
    # Requests leave no cycles behind; what a few plugins may leave is worth looking for more rarely.
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    uvloop.run(_run(args, classes, make_provider))


async def _run(
    args: "WorkerArgs", classes: Mapping[str, PluginClass], make_provider: Callable[..., TracerProvider]
) -> None:
    worker = Worker(args, asyncio.get_running_loop(), classes, make_provider)
    await worker.serve()


class Worker:
    """One worker.

    Args:
        args: from the master.
        loop: the running event loop.
        classes: the plugins that there are.
        make_provider: makes the tracer provider.
    """

    def __init__(
        self,
        args: "WorkerArgs",
        loop: asyncio.AbstractEventLoop,
        classes: Mapping[str, PluginClass],
        make_provider: Callable[..., TracerProvider],
    ) -> None:
        gateway = args.gateway
        args.record.tally.begin()
        self._args = args
        self._publish_row = args.record.publish
        self._access_log = args.access_log
        self._loop = loop
        self._row = new_row()
        self._publishing = False
        self._now = loop.time
        self._published_s = loop.time()
        self._state = State.STARTING
        self._terminated = False
        self._books_closed = False
        self._lag_ns_max = 0
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._stopped = loop.create_future()
        self._gateway = WorkerGateway(
            gateway,
            LiveRuntime(loop, args.seed),
            args.error_log,
            held=len(args.listeners) + 1,
            on_change=self._changed,
            on_rest=self._stop,
            slot=args.slot,
            tally=args.record.tally,
            number=args.connections.numbers(),
            classes=classes,
            make_provider=make_provider,
            on_logged=args.access_log.note if args.access_log else None,
        )
        loop.set_exception_handler(self._gateway.unhandled)
        self._counts = self._gateway.counts
        self._wall_clock = WallClock(self._gateway.runtime.time_ns)
        self._clients = self._gateway.runloop.connections
        self._timers = self._gateway.timers
        self._pending = self._timers.pending
        self._queues = self._gateway.exporter.queues
        self._spans = self._gateway.provider.spans
        self._books_spans = gateway.tracing.instrumentations[0] != "off" or bool(gateway.plugins)
        self._listeners: list[socket.socket] = list(args.listeners)
        self._accepting: set[asyncio.Task[Any]] = set()

    async def serve(self) -> None:
        """Accept connections until told to leave."""
        loop = self._loop
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._terminate)
        loop.add_signal_handler(signal.SIGQUIT, self._quit)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)
        self._listen()
        self._state = State.SERVING
        self._row[FIELD_INDEX["cpu_ns_at_ready"]] = time.process_time_ns()
        self._tick(self._gateway.runtime.now())
        self._args.ready.send(os.getpid())
        await self._stopped
        if self._terminated:  # only now: until this turn's end requests went on, and their spans with them
            self._gateway.terminate()
        self._state = State.EXITED
        self._measure()
        self._publish()
        self._books_closed = True  # what is torn down from here on is in them already
        for task in self._accepting:
            task.cancel()
        await self._gateway.close()

    def _listen(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _address = listener.accept()
        except BlockingIOError:
            # Another worker was faster.
            return
        except OSError as error:
            self._not_accepted(error)
            return
        if not self._gateway.table.admits():
            client.close()
            self._row[_REFUSED] += 1
            self._counts.connections += 1
            self._changed()
            return
        client.setblocking(False)
        connection = self._gateway.connection()
        protocol = cast("asyncio.Protocol", connection)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: protocol, client))
        self._accepting.add(task)
        self._gateway.arriving.add(connection)
        task.add_done_callback(partial(self._accepted, connection))

    def _not_accepted(self, error: OSError) -> None:
        """Say why not; without a descriptor, leave the client to another worker for a while, as nginx does."""
        exhausted = error.errno in OUT_OF_FILES
        level = "crit" if exhausted else "error"
        self._args.error_log(level, f"accept4() failed ({error.errno}: {error.strerror})")
        if exhausted:
            for listener in self._listeners:
                self._loop.remove_reader(listener.fileno())
            self._gateway.runtime.call_later(ACCEPT_DELAY_S, self._listen)

    def _accepted(self, connection: ClientConnection, task: "asyncio.Task[Any]") -> None:
        self._accepting.discard(task)
        self._gateway.arriving.discard(connection)
        if task.cancelled():  # uvloop has closed it and tells nobody, not even one that stood already
            self._clients.pop(connection, None)
        self._gateway.rest()

    # Leaving.

    def _terminate(self) -> None:
        self._terminated = True
        self._stop()

    def _quit(self) -> None:
        if self._state is State.SERVING:
            self._state = State.DRAINING
            self._close_listeners()
            self._gateway.quit()

    def _reopen_logs(self) -> None:
        for log in (self._args.error_log, self._args.access_log):
            if log is not None and (error := log.reopen()):
                self._args.error_log("emerg", f'open() "{log.path}" failed ({error.errno}: {error.strerror})')
        self._args.error_log("notice", "logs reopened")

    def _stop(self) -> None:
        self._close_listeners()
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners = []

    # The scoreboard.

    def _changed(self) -> None:
        now = self._now
        turn_s = now()  # the same within a turn
        if turn_s != self._published_s:
            self._published_s = turn_s
            self._publish()
        elif not self._publishing:
            self._publishing = True
            self._gateway.runtime.call_soon(self._publish)

    def _publish(self) -> None:
        self._publishing = False
        if self._books_closed:
            return
        counts = self._counts
        responses = counts.responses
        _TURN.pack_into(
            self._row,
            0,
            self._state,
            counts.requests,
            counts.requests + counts.active,
            responses[2],
            responses[3],
            responses[4],
            responses[5],
            counts.connections,
            counts.active,
            len(self._clients),
            len(self._pending),
            self._timers.running,
        )
        if self._books_spans:
            self._book_spans()
        publish = self._publish_row
        publish(self._row)
        if self._access_log is not None:
            self._access_log.flush()

    def _book_spans(self) -> None:
        row, counts = self._row, self._counts
        fetched, hits, misses, released, discarded, live, free = self._spans.figures()
        (
            enqueued,
            acknowledged,
            overflow,
            retries,
            shutdown,
            swallowed,
            rejected,
            refused,
            queued,
            in_flight,
            _,
        ) = self._queues.figures()
        _SPANS.pack_into(
            row,
            _TURN.size,
            fetched,
            counts.copied_again,
            counts.unsampled,
            counts.unprocessed,
            enqueued,
            counts.rejected + rejected,
            counts.lost_in_request,
            acknowledged,
            overflow,
            retries - refused,
            refused,
            shutdown,
            swallowed,
            0 if self._terminated and self._state is State.EXITED else live,
            queued,
            max(row[_QUEUED_MAX], queued),
            in_flight,
            fetched,
            released,
            discarded,
            hits,
            misses,
            free,
        )

    def _tick(self, due_s: float) -> None:
        self._lag_ns_max = max(self._lag_ns_max, int((self._gateway.runtime.now() - due_s) * _NS_PER_S))
        self._measure()
        if step_s := self._wall_clock.step_s():
            self._gateway.exporter.clock_stepped(step_s)
        self._publish()
        self._gateway.runtime.call_later(TICK_S, self._tick, self._gateway.runtime.now() + TICK_S)

    def _measure(self) -> None:
        row = self._row
        row[FIELD_INDEX["cpu_ns"]] = time.process_time_ns()
        resident = os.pread(self._statm, _STATM_BYTES, 0).split()[1]
        row[FIELD_INDEX["rss_bytes"]] = int(resident) * _PAGE_BYTES
        row[FIELD_INDEX["loop_lag_ns_max"]] = self._lag_ns_max
        row[_BYTES] = self._gateway.exporter.queues.backlog_bytes()
        row[_BYTES_MAX] = max(row[_BYTES_MAX], row[_BYTES])
        row[_READING] = sum(connection.reading_head for connection in self._clients)
        for tag, balance in self._gateway.provider.balances().items():
            _book_pool(row, FIELD_INDEX[f"{tag}.fetched"], balance)


_QUEUED_MAX: Final = FIELD_INDEX["queue_depth_max"]
_BYTES, _BYTES_MAX = FIELD_INDEX["queue_bytes"], FIELD_INDEX["queue_bytes_max"]
_REFUSED, _READING = FIELD_INDEX["connections_refused"], FIELD_INDEX["connections_reading"]
_TURN: Final = Struct(f"{FIELD_INDEX['created']}q")
"""The part of a row, its beginning, that is written whenever anything has changed."""

_SPANS: Final = Struct(f"{FIELD_INDEX['KONG_SPAN.free'] + 1 - FIELD_INDEX['created']}q")
"""The next part, which is written where spans are made."""


def _book_pool(row: "array[int]", first: int, balance: Balance) -> None:
    fetched, hits, misses, released, discarded, _live, free = balance
    row[first : first + 6] = array("q", (fetched, released, discarded, hits, misses, free))
