"""What the whole way of a finished span to the collector costs the worker, against opentelemetry-sdk's.

Ours: the opentelemetry plugin's log handler copies the sampled spans of a request and queues them; a timer of the
worker batches, encodes and posts them over its event loop; the scoreboard is told. All of it is the gateway's own code,
in a worker made as the master makes it, but for the request itself: spans are made by hand, one request a turn of the
loop.
The sdk's: BatchSpanProcessor and its OTLP/HTTP exporter, with the sdk's own defaults (batches of 512, where Kong's have
200; the larger batch is to the sdk's advantage).

Both make the same spans (a root with 6 attributes and the status code, 7 children with one each) and post to the same
receiver in another process. It answers 200 and keeps the bodies, and reads them when all is over: every span must be
there, once. Reading them at once, in Python, it would compete for the processor with what is measured.

The cost of the way is a difference: a round makes the same requests with and without export, on both sides in turns, by
the CPU time of the process, the sdk's thread included, the receiver's not. What comes first after the other side finds
the processor's caches full of that: each side begins with requests that do not count, and which of the two comes first
alternates from round to round. `ratio` is the median of the rounds, `low` and `high` are their quartiles.

The other rows are requests whose queue is full, because a collector takes connections and never answers: each span
that comes costs one that is there. They are set against the same requests exported, CPU of the whole request, spans
made and taken back included. Profile `kong` writes a line to the error log for every span that it drops, as Kong does.

Run alone: `python -m tests.bench.bench_export`.
"""

import asyncio
import gc
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from time import process_time_ns
from typing import Any

import uvloop
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from kongtrace import PHASES, TracerProvider
from kongtrace.context import KONG_PHASE
from sim import peer
from sim.config import Gateway, Tracing
from sim.cycle import WorkerArgs
from sim.entity import Plugin
from sim.error_log import ErrorLog
from sim.http_server import HttpConnection, HttpServer, response
from sim.outline import RequestOutline
from sim.plugins import BUNDLED
from sim.process import SharedCounter
from sim.request import Request
from sim.scoreboard import Scoreboard
from sim.worker import Worker
from tests import peers
from tests.bench.bench_span import CHILDREN, explicit, trace_request

ROUNDS = 16
REQUESTS = 150  # a round: 1200 spans, which are whole batches of 200, and fit into the sdk's queue of 2048
SPANS = 1 + CHILDREN
FULL = 1_000  # entries of a full queue
SDK = "opentelemetry-sdk: BatchSpanProcessor and OTLP/HTTP exporter, the same receiver"

ACCESS, LOG = PHASES["access"], PHASES["log"]
OUTLINE = RequestOutline.of((b"Host",))


class _Connection(HttpConnection):
    """Takes requests and keeps their bodies."""

    def __init__(self, server: "_Receiver") -> None:
        super().__init__(server)
        self.parts: list[bytes] = []

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def request(self) -> bytes:
        body = b"".join(self.parts)
        self.parts = []
        return body

    def respond(self, request: bytes, keep_alive: bool) -> tuple[bytes, int]:
        self.server.bodies.append(request)
        return response(HTTPStatus.OK, {}, b"", keep_alive=keep_alive), 0


class _Receiver(HttpServer):
    """Counts at the end what it has received."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []

    def accept(self) -> _Connection:
        return _Connection(self)

    def report(self) -> dict[str, int]:
        requests = map(ExportTraceServiceRequest.FromString, self.bodies)
        ids = [s.span_id for r in requests for m in r.resource_spans for scope in m.scope_spans for s in scope.spans]
        return {"received": len(ids), "received_unique": len(set(ids))}


def receive(sock: socket.socket, control: Any) -> None:
    """Run the receiver in this process, as a peer."""
    server = _Receiver()
    peer.run(control, lambda stop: server.serve(sock, stop), server.report)


class Ours:
    """Requests of a worker of this project, with and without export."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, log: Path, profile: str, **queue: Any) -> None:
        self.loop = loop
        endpoint = f"http://127.0.0.1:{port}/v1/traces"
        gateway = Gateway(
            profile=profile,
            tracing=Tracing(instrumentations=("all",), sampling_rate=1.0),
            plugins=(Plugin(name="opentelemetry", config={"traces_endpoint": endpoint, "queue": queue}),),
        )
        record = Scoreboard(1).open(0, 1)
        counter = SharedCounter()
        args = WorkerArgs(0, 1, gateway, [], record, ready=None, seed=7, connections=counter, error_log=ErrorLog(log))
        self.worker = Worker(args, loop, BUNDLED, TracerProvider)
        self.drained: asyncio.Future[None] | None = None
        inside = self.inside = self.worker._gateway
        inside.exporter._on_change = self.changed
        self.client = inside.connection()
        self.provider = inside.provider
        self.tracer = inside.provider.global_tracer
        self.kong = inside.runloop._kong
        [self.handler] = inside.plans.everywhere.log

    def with_export(self) -> None:
        self.loop.run_until_complete(self.requests(REQUESTS, export=True))

    def without(self) -> None:
        self.loop.run_until_complete(self.requests(REQUESTS, export=False))

    def keep_full(self) -> None:
        self.loop.run_until_complete(self.requests(REQUESTS, export=True, drain=False))

    def changed(self) -> None:
        """Publish, and see whether all that was queued is acknowledged."""
        self.worker._changed()
        if self.drained is not None and not self.inside.exporter.queues.counters().in_flight:
            self.tell()

    def tell(self) -> None:
        counters = self.inside.exporter.queues.counters()
        if counters.acknowledged == counters.enqueued and not self.drained.done():
            self.drained.set_result(None)

    async def requests(self, count: int, *, export: bool, drain: bool = True) -> None:
        self.drained = None
        ended = self.loop.create_future()
        left = count

        def turn() -> None:
            nonlocal left
            self.request(export=export)
            left -= 1
            if left:
                self.loop.call_soon(turn)
            else:
                ended.set_result(None)

        self.loop.call_soon(turn)
        await ended
        if export and drain:
            self.drained = self.loop.create_future()
            self.tell()
            await self.drained

    def request(self, *, export: bool) -> None:
        execution = self.provider.execution
        request = Request(self.client, b"GET", b"/", [(b"Host", b"a")], OUTLINE, "1.1", keep_alive=True, started_ns=1)
        ctx = request.ctx
        execution.enter(ACCESS, ctx)
        trace_request(self.tracer)
        execution.enter(LOG, ctx)
        ctx[KONG_PHASE] = "log"
        if export:
            request.handler = self.handler
            self.handler.call(self.kong, self.handler.conf)
        self.provider.end_request(ctx)
        self.worker._changed()

    @property
    def exported(self) -> int:
        return self.inside.exporter.queues.counters().acknowledged

    def close(self) -> None:
        for job in asyncio.all_tasks(self.loop):
            job.cancel()
        self.loop.run_until_complete(self.inside.close())


class Sdk:
    """The same of opentelemetry-sdk."""

    def __init__(self, port: int) -> None:
        resource = Resource({"service.name": "kong"})
        self.exporting, plain = SdkTracerProvider(resource=resource), SdkTracerProvider(resource=resource)
        exporter = OTLPSpanExporter(f"http://127.0.0.1:{port}/v1/traces")
        self.exporting.add_span_processor(BatchSpanProcessor(exporter))
        self.tracers = {export: made.get_tracer("b") for export, made in ((True, self.exporting), (False, plain))}
        self.exported = 0

    def with_export(self) -> None:
        self.requests(self.tracers[True])
        self.exporting.force_flush()
        self.exported += REQUESTS * SPANS

    def without(self) -> None:
        self.requests(self.tracers[False])

    def requests(self, tracer: Any) -> None:
        for _ in range(REQUESTS):
            explicit(tracer)

    def close(self) -> None:
        self.exporting.shutdown()


def ratios() -> list[dict[str, Any]]:
    """How much cheaper than the sdk's, and what a full queue costs."""
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    with ExitStack() as stack:
        stack.callback(loop.close)
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "error.log"
        receiver = stack.enter_context(peers.listening(receive))
        sides = [Ours(loop, receiver.port, log, "kong", max_batch_size=200), Sdk(receiver.port)]
        for side in sides:
            stack.callback(side.close)
        gc.freeze()  # as a worker does after its fork
        measured = [[cost(side, turn) for side in sides] for turn in range(ROUNDS + 1)][1:]  # the first warms up
        report = receiver.report()
        assert report["received_unique"] == report["received"] == sum(side.exported for side in sides), report
        ours_us, sdk_us = (statistics.median(costs) / 1000 for costs in zip(*measured, strict=True))
        print(f"  export: {ours_us:.2f} us a span, the sdk's {sdk_us:.2f}", file=sys.stderr)
        rows = [row("export a span: copy, queue, encode, send, account", [b / a for a, b in measured], SDK, ">= 12")]
        return rows + full_queues(stack, loop, receiver.port, log)


def full_queues(stack: ExitStack, loop: asyncio.AbstractEventLoop, port: int, log: Path) -> list[dict[str, Any]]:
    """What the log phase of a request costs when its queue is full, as a multiple of the same with room."""
    silent = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    rows = []
    for profile, goal in (("safe", "<= 1.1"), ("kong", None)):
        roomy = Ours(loop, port, log, profile, max_batch_size=200)
        full = Ours(loop, silent, log, profile, max_batch_size=200, max_entries=FULL)
        stack.callback(roomy.close)
        stack.callback(full.close)
        loop.run_until_complete(full.requests(FULL // SPANS + 50, export=True, drain=False))
        assert full.inside.exporter.queues.counters().dropped_overflow, "the queue is not full"
        turns = [both_spent(turn, full.keep_full, roomy.with_export) for turn in range(ROUNDS + 1)][1:]
        measured = [dropping / exporting for dropping, exporting in turns]
        rows.append(row(f"request of 8 spans, full queue, profile {profile}", measured, "the same, exported", goal))
    return rows


def cost(side: Any, turn: int) -> float:
    """What export adds to a span, ns."""
    side.without()  # takes the caches over from the other side
    exporting, plain = both_spent(turn, side.with_export, side.without)
    return (exporting - plain) / (REQUESTS * SPANS)


def both_spent(turn: int, one: Callable[[], None], other: Callable[[], None]) -> tuple[int, int]:
    """The CPU times of both, ns; which of them comes first alternates from turn to turn."""
    if turn % 2:
        return spent(one), spent(other)
    later = spent(other)
    return spent(one), later


def spent(work: Callable[[], None]) -> int:
    start = process_time_ns()
    work()
    return process_time_ns() - start


def row(name: str, measured: list[float], against: str, goal: str | None) -> dict[str, Any]:
    low, median, high = statistics.quantiles(measured, n=4)
    figures = {"ratio": round(median, 2), "low": round(low, 2), "high": round(high, 2)}
    return {"name": name, **figures, "against": against, "goal": goal}


if __name__ == "__main__":
    for figures in ratios():
        print("{name}: {ratio} ({low} to {high}), goal {goal}, against {against}".format(**figures))
