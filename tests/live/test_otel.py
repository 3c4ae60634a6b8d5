"""OpenTelemetry instrumentation set up before the fork, in live workers."""

import sqlite3
from collections import Counter

from opentelemetry import trace
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor

from kongtrace import otel
from sim.entity import Plugin
from tests.gateway import attributes, traced_gateway

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
