"""What it costs to turn finished spans into an OTLP request, against the encoder of opentelemetry-sdk.

The workload: batches of 200 spans, 25 requests of 8 spans. A root of kind server has 6 attributes and the status code,
each child has one attribute. Every span has ids and times of its own and is encoded once: no batch is measured twice.
In the first row the texts come from small sets (methods, hosts, 50 paths, 200 addresses), in the second each text is
new. The encoder remembers no text, so there is no hit rate to speak of; what it remembers are the names of spans, and
what precedes a text of one length under one key.

A round measures some batches on both sides, in turns, by the CPU time of the process; the ratio is formed within the
round. `ratio` is the median of the rounds, `low` and `high` are their quartiles. Run alone:
`python -m tests.bench.bench_otlp`.
"""

import itertools
import random
import statistics
from collections.abc import Callable, Iterator
from ssl import RAND_bytes
from time import process_time_ns, time_ns
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.trace import SpanKind, set_span_in_context

from kongtrace import PHASES, TracerProvider
from kongtrace.otlp import KONG, Encoder, encode_traces

ROUNDS = 25
BATCHES = 4  # a round
REQUESTS = 25  # a batch
SPANS = 8  # a request
GOAL = ">= 14"
AGAINST = "opentelemetry-sdk: encode_spans and SerializeToString"

CHILDREN = ["kong.router", "kong.dns", "kong.balancer", *(f"kong.access.plugin.{name}" for name in ("acl", "cors"))]
CHILDREN += ["kong.rewrite.plugin.id", "kong.header_filter.plugin.cors"]

Request = list[tuple[str, dict[str, Any]]]
"""Name and attributes of each span, root first."""


def recurring(rng: random.Random) -> Iterator[Request]:
    """Requests whose texts come from small sets."""
    paths = [f"/v1/items/{i}" for i in range(50)]
    peers = [f"10.0.{i % 4}.{i}" for i in range(200)]
    while True:
        host = rng.choice(["api.test", "shop.test"])
        root = {
            "http.method": rng.choice(["GET", "GET", "POST"]),
            "http.url": f"http://{host}{rng.choice(paths)}",
            "http.host": host,
            "http.scheme": "http",
            "http.flavor": "1.1",
            "net.peer.ip": rng.choice(peers),
            "http.status_code": rng.choice([200, 200, 200, 404, 503]),
        }
        yield [("kong", root), *((name, {"plugin": "acl"}) for name in CHILDREN)]


def distinct(rng: random.Random) -> Iterator[Request]:
    """Requests of which no text comes twice."""
    words = (f"{number:08x}" for number in itertools.count(rng.getrandbits(31)))
    keys = "http.method", "http.url", "http.host", "http.scheme", "http.flavor", "net.peer.ip"
    while True:
        root = {**dict(zip(keys, words, strict=False)), "http.status_code": rng.choice([200, 200, 200, 404, 503])}
        yield [("kong", root), *((name, {"plugin": next(words)}) for name in CHILDREN)]


class Kongtrace:
    """Finished spans of this project, and their encoding."""

    def __init__(self) -> None:
        self.provider = TracerProvider(time_ns=time_ns, random_bytes=RAND_bytes)
        self.tracer = self.provider.new("bench")
        self.encoder = Encoder(KONG)
        self.resource = self.encoder.encode_resource(None, instance_id="bench", version="3.9.0")

    def finished(self, request: Request) -> list[Any]:
        self.provider.execution.enter(PHASES["log"], {})
        (name, attributes), *children = request
        root = self.tracer.start_span(name, span_kind=2, attributes=dict(attributes))
        spans = [root]
        for name, attributes in children:
            spans.append(self.tracer.start_span(name, attributes=dict(attributes), parent=root))
            spans[-1].finish()
        root.finish()
        return spans

    def encode(self, spans: list[Any]) -> bytes:
        return encode_traces(self.encoder.encode_spans(spans), self.resource)


class Sdk:
    """The same of opentelemetry-sdk."""

    def __init__(self) -> None:
        self.tracer = SdkTracerProvider(resource=Resource({"service.name": "kong"})).get_tracer(
            "kong-internal", "0.1.0"
        )

    def finished(self, request: Request) -> list[Any]:
        (name, attributes), *children = request
        root = self.tracer.start_span(name, kind=SpanKind.SERVER, attributes=attributes)
        context = set_span_in_context(root)
        spans = [root]
        for name, attributes in children:
            spans.append(self.tracer.start_span(name, context, attributes=attributes))
            spans[-1].end()
        root.end()
        return spans

    def encode(self, spans: list[Any]) -> bytes:
        return encode_spans(spans).SerializeToString()


def ratios() -> list[dict[str, Any]]:
    """How many times faster than the sdk's encoder, per workload."""
    return [
        row("OTLP encode, 200 spans", recurring),
        row("OTLP encode, 200 spans, every text new", distinct),
    ]


def row(name: str, workload: Callable[[random.Random], Iterator[Request]]) -> dict[str, Any]:
    ours, sdk = Kongtrace(), Sdk()
    requests = workload(random.Random(7))
    same_spans(ours, sdk, next(requests))
    measured = [one_round(ours, sdk, requests) for _ in range(ROUNDS)]
    low, median, high = statistics.quantiles(measured, n=4)
    figures = {"ratio": round(median, 1), "low": round(low, 1), "high": round(high, 1)}
    return {"name": name, **figures, "against": AGAINST, "goal": GOAL}


def one_round(ours: Kongtrace, sdk: Sdk, requests: Iterator[Request]) -> float:
    spent = {ours: 0, sdk: 0}
    for _ in range(BATCHES):
        batch = list(itertools.islice(requests, REQUESTS))
        for side in spent:
            spans = [span for request in batch for span in side.finished(request)]
            start = process_time_ns()
            side.encode(spans)
            spent[side] += process_time_ns() - start
    return spent[sdk] / spent[ours]


def same_spans(ours: Kongtrace, sdk: Sdk, request: Request) -> None:
    """Both sides say the same of a request, ids and times aside."""
    told = []
    for side in (ours, sdk):
        message = ExportTraceServiceRequest.FromString(side.encode(side.finished(request)))
        spans = message.resource_spans[0].scope_spans[0].spans
        told.append([(span.name, span.kind, bool(span.parent_span_id), repr(span.attributes)) for span in spans])
    assert told[0] == told[1]
    assert len(told[0]) == SPANS


if __name__ == "__main__":
    for figures in ratios():
        print("{name}: {ratio} times faster ({low} to {high}), goal {goal}, than {against}".format(**figures))
