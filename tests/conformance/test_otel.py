"""Published OpenTelemetry instrumentation runs unchanged on pooled spans, and they say what the sdk's would say."""

import logging
import re
import sqlite3
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.logging import LoggingInstrumentor
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from kongtrace import PHASES, GlobalTracer, TracerProvider, otel
from kongtrace.checked import tracer_provider as checked_provider
from kongtrace.context import span_list
from kongtrace.event import Link
from kongtrace.findings import Mode
from kongtrace.otlp import SAFE, Encoder, encode_traces
from kongtrace.span import CLIENT
from kongtrace.testing import FakeClock, FakeEntropy
from tests.gateway import echo


class Worker:
    """A checked worker in whose requests instrumented libraries are used; `findings` has what it reports."""

    def __init__(self):
        self.findings = []
        self.handle = GlobalTracer()
        self.provider = checked_provider(
            Mode.REPORT, on_finding=self.findings.append, time_ns=FakeClock(), random_bytes=FakeEntropy()
        )
        self.handle.use(self.provider)
        self.provider.set_global_tracer(self.provider.new("instrument"))
        self.otel = otel.TracerProvider(handle=self.handle)

    @contextmanager
    def request(self):
        """A request with a root span, as the gateway makes it."""
        ctx = {}
        self.provider.execution.enter(PHASES["access"], ctx)
        root = self.handle.start_span("kong")
        self.handle.set_active_span(root)
        yield ctx
        root.finish()
        self.provider.end_request(ctx)
        assert self.provider.spans.balance().live == 0
        assert self.findings == []


@pytest.fixture
def worker():
    return Worker()


@contextmanager
def instrumented(instrumentor, **options):
    instrumentor.instrument(**options)
    try:
        yield
    finally:
        instrumentor.uninstrument()


def test_http_client(worker):
    """A call of httpx is a client span of the request, and its id is what the server gets as parent."""
    with echo() as port, instrumented(HTTPXClientInstrumentor(), tracer_provider=worker.otel), worker.request() as ctx:
        told = httpx.get(f"http://127.0.0.1:{port}/orders").json()

        root, call = span_list(ctx)
        assert (call.name, call.kind, call.parent) == ("GET", CLIENT, root)
        assert call.attributes["otel.scope.name"] == "opentelemetry.instrumentation.httpx"
        assert 200 in (call.attributes.get("http.status_code"), call.attributes.get("http.response.status_code"))
        headers = {name.lower(): value for name, value in told["headers"]}
        assert headers["traceparent"] == f"00-{call.trace_id.hex()}-{call.span_id.hex()}-01"


def test_failing_http_call(worker):
    """A server that is not there leaves status and exception on the span."""
    with instrumented(HTTPXClientInstrumentor(), tracer_provider=worker.otel), worker.request() as ctx:
        with pytest.raises(httpx.ConnectError):
            httpx.get("http://127.0.0.1:1/")

        call = span_list(ctx)[1]
        assert call.status == 2
        assert call.attributes["error.type" if "error.type" in call.attributes else "otel.status_description"]
        assert call.end_time_ns is not None


def test_database_driver(worker):
    """Each statement on an embedded database is a span below the one that is current."""
    with instrumented(SQLite3Instrumentor(), tracer_provider=worker.otel), worker.request() as ctx:
        with worker.otel.get_tracer("shop").start_as_current_span("order"):
            connection = sqlite3.connect(":memory:")
            cursor = connection.cursor()
            cursor.execute("CREATE TABLE orders (id INTEGER)")
            cursor.execute("INSERT INTO orders VALUES (7)")
            with suppress(sqlite3.OperationalError):
                cursor.execute("SELECT * FROM nothing")
            connection.close()

        _root, order, *statements = span_list(ctx)
        assert [span.name for span in statements] == ["CREATE", "INSERT", "SELECT"]
        assert all(span.parent is order for span in statements)
        assert [span.attributes["db.system"] for span in statements] == ["sqlite"] * 3
        assert [span.status for span in statements] == [None, None, 2]


def test_logging(worker, caplog):
    """A log record carries the ids of the span that is current."""
    tracer = worker.otel.get_tracer("shop")
    options = {"inject_trace_context": True, "enable_log_auto_instrumentation": False}
    with instrumented(LoggingInstrumentor(), tracer_provider=worker.otel, **options), worker.request() as ctx:
        with caplog.at_level(logging.INFO), tracer.start_as_current_span("order"):
            logging.getLogger("shop").info("ordered")

        (record,), order = caplog.records, span_list(ctx)[1]
        assert (record.otelTraceID, record.otelSpanID) == (order.trace_id.hex(), order.span_id.hex())
        assert record.otelTraceSampled is True


# The same program, with either provider.


@dataclass(frozen=True)
class Block:
    """A span and what is done in it, in the order of the fields."""

    name: str
    kind: SpanKind
    given: dict
    attributes: dict
    links: list
    event: tuple | None
    link: tuple | None
    status: tuple | None
    children: tuple
    late: dict
    fails: bool

    def run(self, tracer):
        with (
            suppress(ValueError),
            tracer.start_as_current_span(self.name, kind=self.kind, attributes=self.given, links=self.links) as span,
        ):
            for key, value in self.attributes.items():
                span.set_attribute(key, value)
            if self.event is not None:
                span.add_event(*self.event)
            if self.link is not None:
                span.add_link(*self.link)
            if self.status is not None:
                span.set_status(*self.status)
            for child in self.children:
                child.run(tracer)
            span.set_attributes(self.late)
            if self.fails:
                raise ValueError("failed")


ENCODER = Encoder(SAFE)
KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.text(max_size=5) | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
TABLES = st.dictionaries(KEYS, VALUES | st.lists(st.text(max_size=3), max_size=3).map(tuple), max_size=3)

IDS = st.sampled_from([0, 1, 2])  # 0 leads nowhere
STATES = st.sampled_from([None, trace.TraceState([("vendor", "x")])])
FLAGS = st.sampled_from([trace.TraceFlags.DEFAULT, trace.TraceFlags.SAMPLED]).map(trace.TraceFlags)
LINKED = st.tuples(st.builds(trace.SpanContext, IDS, IDS, st.booleans(), FLAGS, STATES), TABLES)


def blocks(children):
    return st.builds(
        Block,
        name=st.sampled_from(["x", "y", "z"]),
        kind=st.sampled_from(SpanKind),
        given=TABLES,
        attributes=TABLES,
        links=st.lists(LINKED.map(lambda linked: trace.Link(*linked)), max_size=2),
        event=st.none() | st.tuples(st.sampled_from(["e", "f"]), TABLES),
        link=st.none() | LINKED,
        status=st.none()
        | st.tuples(st.just(StatusCode.ERROR), st.sampled_from(["bad", "worse"]))
        | st.sampled_from([(StatusCode.OK,), (StatusCode.UNSET,)]),
        children=children,
        late=TABLES,
        fails=st.booleans(),
    )


PROGRAMS = st.recursive(blocks(st.just(())), lambda below: blocks(st.lists(below, max_size=3).map(tuple)), max_leaves=6)


def told_by_sdk(program):
    exporter = InMemorySpanExporter()
    provider = SdkTracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    program.run(provider.get_tracer("lib"))
    spans = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time)
    names = {span.context.span_id: index for index, span in enumerate(spans)}
    return [
        (
            span.name,
            span.kind.value + 1,
            names.get(span.parent.span_id if span.parent else None),
            dict(span.attributes),
            [(event.name, told_event(event.name, event.attributes)) for event in span.events],
            list(encoded.links),
            {StatusCode.UNSET: None, StatusCode.OK: 1, StatusCode.ERROR: 2}[span.status.status_code],
            span.status.description,
        )
        for span, encoded in zip(spans, sent(encode_spans(spans).SerializeToString()), strict=True)
    ]


def sent(request):
    """The spans of an OTLP request."""
    return [
        span
        for resource in ExportTraceServiceRequest.FromString(request).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def told_by_pooled_spans(program):
    told = []
    handle = GlobalTracer()
    provider = TracerProvider(time_ns=FakeClock(), random_bytes=FakeEntropy())
    handle.use(provider)
    provider.set_global_tracer(provider.new("instrument"))

    def process(span):
        names[span.span_id] = len(told)
        attributes = dict(span.attributes)
        assert attributes.pop("otel.scope.name") == "lib"
        description = attributes.pop("otel.status_description", None)
        happened = [event for event in span.events or () if not isinstance(event, Link)]
        events = [(event.name, told_event(event.name, event.attributes or {})) for event in happened]
        (encoded,) = sent(encode_traces([ENCODER.encode_span(span)], b""))
        links = [without_what_the_sdk_leaves_out(link) for link in encoded.links]
        parent = names.get(span.parent_id)
        told.append((span.name, span.kind, parent, attributes, events, links, span.status, description))

    names = {}
    program.run(otel.TracerProvider(process, handle).get_tracer("lib"))
    assert provider.spans.balance().live == 0
    return told


def without_what_the_sdk_leaves_out(link):
    """A link without its trace state and W3C's flags, for which OTLP has a place."""
    link.trace_state = ""
    link.flags &= ~0xFF
    return link


def told_event(name, attributes):
    """What an event says; the stack trace of an exception has lines of the provider."""
    return {key: value for key, value in attributes.items() if (name, key) != ("exception", "exception.stacktrace")}


@given(program=PROGRAMS)
def test_same_program_gives_the_same_trace_as_with_the_sdk(program):
    """Names, kinds, tree, attributes, events, links, status and description, in the order of the starts."""
    assert told_by_pooled_spans(program) == told_by_sdk(program)
    assert trace.get_current_span() is trace.INVALID_SPAN


class EnteredAgain:
    """A program that enters the block of a span within that of the same, and after it."""

    def run(self, tracer):
        with tracer.start_as_current_span("request"):
            with tracer.start_as_current_span("handler"):
                with suppress(ValueError), trace.get_current_span():
                    raise ValueError("failed")
                tracer.start_span("below").end()
            with tracer.start_as_current_span("job", end_on_exit=False) as job:
                pass
            with job:
                tracer.start_span("beside").end()


def test_span_entered_again_is_as_with_the_sdk():
    """The inner block ends the span and leaves alone what is current."""
    assert told_by_pooled_spans(EnteredAgain()) == told_by_sdk(EnteredAgain())
    assert trace.get_current_span() is trace.INVALID_SPAN


FAR = trace.SpanContext(2**128 + 1, 1, is_remote=True)
AMISS = {
    "start": [
        {"name": None},
        {"name": ""},
        {"name": 5},
        {"name": b"x"},
        {"kind": 3},
        {"start_time": "noon"},
        {"start_time": 1.5},
        {"start_time": float("nan")},
        {"attributes": {1: 2}},
        {"links": [None]},
        {"links": [trace.Link(FAR, {"a": 1})]},
    ],
    "set_attribute": [(1, 2), ("a", object())],
    "add_event": [(None,), ("x", {"a": 1}, "noon")],
    "add_link": [(None,), (FAR, {"a": 1})],
    "update_name": [(None,), (5,)],
    "set_status": [(None,), (5,), ("ERROR",)],
    "record_exception": [(None,), (ValueError("x"), [("a", 1)]), (ValueError("x"), None, "noon")],
    "end": [("noon",), (float("nan"),)],
}


@dataclass(frozen=True)
class Amiss:
    """A program that gives one call what it does not take."""

    call: str
    given: object

    def run(self, tracer):
        if self.call == "start":
            tracer.start_span(**{"name": "work", **self.given}).end()
            return
        span = tracer.start_span("work")
        getattr(span, self.call)(*self.given)
        if span.is_recording():
            span.end()


@pytest.mark.parametrize(("call", "given"), [(call, given) for call, cases in AMISS.items() for given in cases])
def test_what_does_not_raise_with_the_sdk_does_not_raise(call, given):
    """A program that is instrumented amiss does its work all the same."""
    program = Amiss(call, given)
    program.run(SdkTracerProvider().get_tracer("lib"))
    handle = GlobalTracer()
    provider = TracerProvider(time_ns=FakeClock(), random_bytes=FakeEntropy())
    handle.use(provider)
    provider.set_global_tracer(provider.new("instrument"))

    program.run(otel.TracerProvider(lambda _span: None, handle).get_tracer("lib"))

    assert provider.spans.balance().live == 0


def test_documented_samples_run():
    """The samples of the guide run one after another, as they stand there."""
    text = (Path(__file__).parents[2] / "docs/otel.md").read_text()
    program = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_documented_plugin_is_one(tmp_path):
    """The gateway loads it as it stands there."""
    text = (Path(__file__).parents[2] / "docs/otel.md").read_text()
    setting, plugin, _outside = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "orders.py").write_text(setting + plugin)
    program = "from sim.plugin import load; print(*load(['orders.py'], {}))"
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "orders\n", "")


def test_without_the_extra_the_error_names_it():
    """Without opentelemetry-api the import says which extra to install."""
    program = "import sys; sys.modules['opentelemetry.trace'] = None; import kongtrace.otel"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert "KongTraceError: kongtrace.otel needs opentelemetry-api: install kongsim[otel]" in run.stderr
