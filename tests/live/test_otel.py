"""OpenTelemetry instrumentation set up before the fork, in live workers."""

import json
import sqlite3
from collections import Counter

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kongtrace import otel
from sim.config import Tracing
from sim.entity import Plugin
from tests.gateway import attributes, echo, gateway_to, live, recording_collector, traced_gateway

FAR = trace.SpanContext(7, 8, is_remote=True)
PROVIDER = otel.TracerProvider()
REQUESTS = 40


class Orders:
    """A plugin that uses an instrumented database and a tracer of OpenTelemetry's API."""

    NAME = "orders"
    PRIORITY = 2000
    VERSION = "1"

    tracer = PROVIDER.get_tracer("orders")

    def access(self, _kong, _conf):
        """Look an order up."""
        with self.tracer.start_as_current_span("look up", links=[trace.Link(FAR, {"queue": "orders"})]):
            connection = sqlite3.connect(":memory:")
            connection.cursor().execute("SELECT 7").fetchone()
            connection.close()


def test_provider_made_before_the_fork_delivers_once_in_every_worker(tmp_path):
    """Provider and instrumentation are the master's; each worker's spans come from its own pools and arrive once."""
    SQLite3Instrumentor().instrument(tracer_provider=PROVIDER)
    try:
        plugins = (Plugin(name="orders"),)
        with traced_gateway(tmp_path, plugins=plugins, classes={"orders": Orders}, workers=2) as (gateway, collector):
            pids = {worker.pid for worker in gateway.scoreboard.read().alive}
            sent = 0
            while sent < REQUESTS or not all(worker.values["requests"] for worker in gateway.scoreboard.read().alive):
                assert gateway.request().status == 200
                sent += 1
            gateway.wait_requests(sent)
            reading = gateway.stop()
            spans = collector.wait_spans(reading.ledger.acknowledged)
    finally:
        SQLite3Instrumentor().uninstrument()

    assert len(pids) == 2
    assert reading.ledger.unaccounted == 0
    named = Counter(span.name for span in spans)
    assert named["look up"] == named["SELECT"] == named["kong"] == sent
    assert len({span.span_id for span in spans}) == len(spans)
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        links = [(int.from_bytes(link.trace_id), int.from_bytes(link.span_id)) for link in span.links]
        assert links == ([(FAR.trace_id, FAR.span_id)] if span.name == "look up" else [])
        if span.name == "SELECT":
            above = by_id[span.parent_span_id]
            assert above.name == "look up"
            assert by_id[above.parent_span_id].name == "kong.access.plugin.orders"
            assert above.trace_id == span.trace_id
            assert attributes(span)["otel.scope.name"] == "opentelemetry.instrumentation.sqlite3"


TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Early:
    """Hands its trace on before the opentelemetry plugin runs, and what Kong's own API says of it."""

    PRIORITY = 1000
    VERSION = "1"

    tracer = PROVIDER.get_tracer("early")

    def access(self, kong, _conf):
        """Hand it on; answer when told so."""
        self.hand_on(kong)
        if type(self) is Early:
            kong.service.request.set_header("X-Own", kong.tracing.get_root_span().trace_id.hex())
        if kong.request.get_path() == "/own":
            kong.response.exit(200, "own")

    def header_filter(self, kong, _conf):
        """Tell under which id it is now."""
        with self.tracer.start_as_current_span("filter") as span:
            kong.response.set_header("X-Then", format(span.get_span_context().trace_id, "032x"))

    def hand_on(self, kong):
        """Write the headers of a span of its own."""
        with self.tracer.start_as_current_span(f"call of {type(self).__name__}"):
            headers = {}
            TraceContextTextMapPropagator().inject(headers)
            kong.service.request.set_header(f"X-{type(self).__name__}", headers["traceparent"])


class Late(Early):
    """The same, after it."""

    PRIORITY = 5


def handed_on(directory, *, path="/", flags="01", rate=1.0, **config):
    """What the service is told of the traces, the answer, and the spans that arrive."""
    classes = {"early": Early, "late": Late}
    with echo() as upstream, recording_collector() as collector:
        endpoint = {"traces_endpoint": f"http://127.0.0.1:{collector.port}/v1/traces", "sampling_rate": rate}
        plugins = (*(Plugin(name=name) for name in classes), Plugin(name="opentelemetry", config=endpoint | config))
        gateway = gateway_to(upstream, plugins=plugins, tracing=Tracing(instrumentations=("all",), sampling_rate=1.0))
        with live(directory, gateway, classes) as gateway:
            answer = gateway.request(path=path, headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-{flags}"})
            reading = gateway.wait_requests(1)
            spans = collector.wait_spans(reading.ledger.acknowledged)
    told = dict(json.loads(answer.content)["headers"]) if path == "/" else {}
    return told, answer, spans


def test_trace_is_handed_on_under_the_clients_id_before_it_is_joined_too(tmp_path):
    """Most plugins run before opentelemetry, which joins the trace; Kong's own API shows the id only from then on."""
    told, answer, spans = handed_on(tmp_path)

    ids = {span.name: span.span_id.hex() for span in spans}
    assert told["x-early"] == f"00-{TRACE_ID}-{ids['call of Early']}-01"
    assert told["x-late"] == f"00-{TRACE_ID}-{ids['call of Late']}-01"
    assert told["x-own"] != TRACE_ID
    assert answer.headers["X-Then"] == TRACE_ID
    assert {span.trace_id.hex() for span in spans} == {TRACE_ID}


@pytest.mark.parametrize(("flags", "rate"), [("00", 1.0), ("01", 0.0)])
def test_decision_is_handed_on_as_it_will_be(tmp_path, flags, rate):
    """The client's no and the plugin's rate count before the plugin has run."""
    told, _answer, spans = handed_on(tmp_path, flags=flags, rate=rate)

    assert (told["x-early"][-3:], told["x-late"][-3:], spans) == ("-00", "-00", [])


def test_trace_that_is_not_going_to_be_joined_is_handed_on_under_its_own_id(tmp_path):
    """The plugin reads no headers."""
    told, _answer, spans = handed_on(tmp_path, header_type="ignore")

    assert {told["x-early"][3:35], told["x-late"][3:35]} == {told["x-own"]} == {span.trace_id.hex() for span in spans}


def test_request_that_a_plugin_answers_before_has_joined_nothing(tmp_path):
    """As in Kong; from then on its spans say so."""
    _told, answer, spans = handed_on(tmp_path, path="/own")

    assert answer.headers["X-Then"] != TRACE_ID
    assert {span.trace_id.hex() for span in spans} == {answer.headers["X-Then"]}
