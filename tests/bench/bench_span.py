"""What a span costs, against opentelemetry-sdk: its whole life, unsampled, inert, in memory, and a million requests on.

The workload is a request of 8 spans, as nginx's phases make it with Kong's instrumentations: a root of kind server with
6 attributes and the status code; 7 children, of which each is started, made active, given one attribute and finished;
at the end the request gives its spans back. The sdk does the same with the same names and attributes: each child is
started with the context of the root, which costs it less than to make spans current (`start_as_current_span`, the rows
without a goal). Attributes are made anew for each request on both sides.

Ids are drawn as a worker draws them.

A round measures some requests on both sides, in turns, by the CPU time of the process; the ratio is formed within the
round. The sdk's batch processor has a thread: what that does is part of its round. `ratio` is the median of the rounds,
`low` and `high` are their quartiles. Run alone: `python -m tests.bench.bench_span`.
"""

import gc
import statistics
import tracemalloc
from collections.abc import Callable
from itertools import count
from ssl import RAND_bytes
from time import process_time_ns, time_ns
from typing import Any

import psutil
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from kongtrace import KONG, PHASES, SAFE, Profile, TracerProvider
from kongtrace.context import KONG_PHASE
from kongtrace.otlp import SAFE as OTLP_SAFE
from kongtrace.otlp import Encoder
from kongtrace.span import SERVER

ROUNDS = 15
REQUESTS = 150  # of the slower side, a round: more spans than a batch of the sdk has
WARM_UP = 300
CHILDREN = 7
LIVE_SPANS = 4_000
FEW_REQUESTS, MANY_REQUESTS = 10_000, 1_000_000

ACCESS, LOG = PHASES["access"], PHASES["log"]
SDK = "opentelemetry-sdk, no processor"
BATCH = "opentelemetry-sdk, BatchSpanProcessor and null exporter"

Work = Callable[[], object]


def root_attributes() -> dict[str, Any]:
    return {
        "http.method": "GET",
        "http.url": "http://example.test/orders/17",
        "http.host": "example.test",
        "http.scheme": "http",
        "http.flavor": "1.1",
        "net.peer.ip": "192.0.2.7",
    }


def trace_request(tracer: Any) -> None:
    """The spans of one request, by this project's tracer."""
    root = tracer.start_span("kong", span_kind=SERVER, attributes=root_attributes())
    tracer.set_active_span(root)
    root.set_attribute("http.status_code", 200)
    for i in range(CHILDREN):
        span = tracer.start_span("kong.router")
        tracer.set_active_span(span)
        span.set_attribute("plugin", i)
        span.finish()
    root.finish()


def explicit(tracer: trace.Tracer) -> None:
    """The same by opentelemetry-api, each child below the root's context."""
    root = tracer.start_span("kong", kind=SpanKind.SERVER, attributes=root_attributes())
    context = trace.set_span_in_context(root)
    root.set_attribute("http.status_code", 200)
    for i in range(CHILDREN):
        span = tracer.start_span("kong.router", context)
        span.set_attribute("plugin", i)
        span.end()
    root.end()


def current(tracer: trace.Tracer) -> None:
    """The same by opentelemetry-api, each span made current."""
    with tracer.start_as_current_span("kong", kind=SpanKind.SERVER, attributes=root_attributes()) as root:
        root.set_attribute("http.status_code", 200)
        for i in range(CHILDREN):
            with tracer.start_as_current_span("kong.router") as span:
                span.set_attribute("plugin", i)


class Ours:
    """Requests of this project's tracer."""

    def __init__(self, profile: Profile, sampling_rate: float = 1.0) -> None:
        self.provider = TracerProvider(time_ns=time_ns, random_bytes=RAND_bytes, profile=profile)
        self.tracer = self.provider.new("bench", {"sampling_rate": sampling_rate})
        self.encoder = Encoder(OTLP_SAFE)

    def request(self) -> None:
        ctx: dict[str, Any] = {}
        self.provider.execution.enter(ACCESS, ctx)
        trace_request(self.tracer)
        self.provider.end_request(ctx)

    def processed(self) -> None:
        """The same, and the log phase takes a copy of what is sampled (kong-semantics O17)."""
        ctx: dict[str, Any] = {KONG_PHASE: "log"}
        self.provider.execution.enter(ACCESS, ctx)
        trace_request(self.tracer)
        self.provider.execution.enter(LOG, ctx)
        self.tracer.process_span(self.copy, [])
        self.provider.end_request(ctx)

    def copy(self, span: Any, copies: list[Any]) -> None:
        if span.should_sample:
            copies.append(self.encoder.encode_span(span))


class NullExporter(SpanExporter):
    """Takes spans, and does nothing with them."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """There is nothing to shut down."""


class Sdk:
    """Requests of the sdk's tracer."""

    def __init__(self, *, batches: bool) -> None:
        self.provider = SdkTracerProvider(resource=Resource({}))
        if batches:
            self.provider.add_span_processor(BatchSpanProcessor(NullExporter()))
        self.tracer = self.provider.get_tracer("bench")

    def request(self) -> None:
        explicit(self.tracer)

    def current(self) -> None:
        """The same, with each span made current."""
        current(self.tracer)


class Plain:
    """An object with a method that does nothing."""

    def method(self, argument: object) -> None:
        """Do nothing."""


def ratios() -> list[dict[str, Any]]:
    """All rows; a few seconds each."""
    safe, kong, unsampled = Ours(SAFE), Ours(KONG), Ours(SAFE, sampling_rate=0)
    bare, batching = Sdk(batches=False), Sdk(batches=True)
    flush = batching.provider.force_flush
    rows = [
        faster("span, profile safe", safe.request, SDK, bare.request, ">= 15"),
        faster("span, profile safe", safe.request, BATCH, batching.request, ">= 20", flush),
        faster("span, profile kong", kong.request, SDK, bare.request, ">= 15"),
        faster("span, profile kong", kong.request, BATCH, batching.request, ">= 20", flush),
        faster("span, profile safe", safe.request, f"{SDK}, spans made current", bare.current, None),
        faster("span, profile safe", safe.request, f"{BATCH}, spans made current", batching.current, None, flush),
        cheaper("span in profile safe", safe.request, "in profile kong", kong.request, None),
        cheaper("unsampled span", unsampled.request, "sampled span", safe.request, None),
        cheaper("unsampled span, log phase included", unsampled.processed, "sampled span", safe.processed, "<= 0.8"),
        noop_row(safe.provider),
        memory_row(),
        growth_row(),
    ]
    batching.provider.shutdown()
    return rows


def faster(
    name: str, ours: Work, against: str, sdk: Work, goal: str | None, flush: Work | None = None
) -> dict[str, Any]:
    """How many times the CPU time of `ours` the other takes."""
    return row(name, against, goal, [1 / ratio for ratio in rounds(ours, sdk, 10, flush)])


def cheaper(name: str, one: Work, against: str, other: Work, goal: str | None) -> dict[str, Any]:
    """What `one` takes of the CPU time that the other takes."""
    return row(name, against, goal, rounds(one, other, 1))


def rounds(ours: Work, other: Work, factor: int, flush: Work | None = None) -> list[float]:
    """CPU time of `ours` to that of the other, in each round; `factor` is about how much slower the other is."""
    for _ in range(WARM_UP):
        ours()
        other()
    if flush is not None:
        flush()
    measured = []
    for _ in range(ROUNDS):
        mine = spent(ours, REQUESTS * factor) / factor
        measured.append(mine / spent(other, REQUESTS, flush))
    return measured


def spent(work: Work, times: int, flush: Work | None = None) -> int:
    start = process_time_ns()
    for _ in range(times):
        work()
    if flush is not None:
        flush()
    return process_time_ns() - start


def row(name: str, against: str, goal: str | None, measured: list[float]) -> dict[str, Any]:
    low, median, high = statistics.quantiles(measured, n=4) if len(measured) > 1 else measured * 3
    figures = {"ratio": round(median, 2), "low": round(low, 2), "high": round(high, 2)}
    return {"name": name, **figures, "against": against, "goal": goal}


def noop_row(provider: TracerProvider) -> dict[str, Any]:
    """A span of the no-op tracer, which takes four calls, against four calls of a method that does nothing."""
    tracer, plain = provider.noop_tracer, Plain()

    def inert() -> None:
        for _ in range(200):
            span = tracer.start_span("kong.router")
            tracer.set_active_span(span)
            span.set_attribute("plugin", 1)
            span.finish()

    def calls() -> None:
        for _ in range(200):
            plain.method("kong.router")
            plain.method(plain)
            plain.method("plugin")
            plain.method(1)

    return cheaper("span of the no-op tracer", inert, "a plain method call for each", calls, "<= 2")


def memory_row() -> dict[str, Any]:
    """Bytes of a span that is open: a root with its attributes, or a child with one, 7 of 8 times."""
    return row("bytes of a live span", SDK, "<= 0.25", [live_bytes(open_ours) / live_bytes(open_sdk)])


def live_bytes(open_request: Callable[[], Callable[[], Any]]) -> float:
    open_one = open_request()
    kept = [open_one() for _ in range(10)]
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    kept += [open_one() for _ in range(LIVE_SPANS // (CHILDREN + 1))]
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / LIVE_SPANS


def open_ours() -> Callable[[], Any]:
    ours = Ours(KONG)

    def open_one() -> dict[str, Any]:
        ctx: dict[str, Any] = {}
        ours.provider.execution.enter(ACCESS, ctx)
        root = ours.tracer.start_span("kong", span_kind=SERVER, attributes=root_attributes())
        ours.tracer.set_active_span(root)
        for i in range(CHILDREN):
            ours.tracer.start_span("kong.router").set_attribute("plugin", i)
        return ctx

    return open_one


def open_sdk() -> Callable[[], Any]:
    tracer = Sdk(batches=False).tracer

    def open_one() -> list[Any]:
        root = tracer.start_span("kong", kind=SpanKind.SERVER, attributes=root_attributes())
        context = trace.set_span_in_context(root)
        spans = [root]
        for i in range(CHILDREN):
            spans.append(tracer.start_span("kong.router", context))
            spans[-1].set_attribute("plugin", i)
        return spans

    return open_one


def growth_row() -> dict[str, Any]:
    """Resident memory of the process after a million requests to that after ten thousand."""
    ours, memory = Ours(KONG), psutil.Process().memory_info

    def request(number: int) -> None:
        ctx: dict[str, Any] = {}
        ours.provider.execution.enter(ACCESS, ctx)
        span = ours.tracer.start_span("kong", attributes={"n": number})
        ours.tracer.set_active_span(span)
        span.finish()
        ours.provider.end_request(ctx)

    requests = count()
    for _ in range(FEW_REQUESTS):
        request(next(requests))
    few = memory().rss
    for _ in range(MANY_REQUESTS - FEW_REQUESTS):
        request(next(requests))
    against = f"after {FEW_REQUESTS:,} requests"
    return row(f"memory after {MANY_REQUESTS:,} requests", against, "<= 1.02", [memory().rss / few])


if __name__ == "__main__":
    for figures in ratios():
        print("{name}, against {against}: {ratio} ({low} to {high}), goal {goal}".format(**figures))
