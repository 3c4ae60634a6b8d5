"""The checked span in live workers under load."""

import asyncio

import pytest

from kongtrace.checked import tracer_provider
from sim import collector, origin
from sim.entity import Plugin
from sim.load import driver
from sim.load.executor import ConstantArrivalRate, Load
from sim.load.request import Request
from tests import peers
from tests.gateway import attributes, echo, gateway_to, live, recording_collector


def checked(*, log, **arguments):
    """Make a provider that writes every finding to the error log."""
    return tracer_provider("report", on_finding=lambda finding: log("alert", finding.text()), log=log, **arguments)


class Leaky:
    """A plugin that starts a span and forgets it."""

    NAME = "leaky"
    PRIORITY = 1
    VERSION = "1"

    def access(self, kong, _conf):
        """Leave a span open."""
        kong.tracing.start_span("forgotten")


class Patient:
    """A plugin whose span stays open until another request asks for `/go`."""

    NAME = "patient"
    PRIORITY = 1
    VERSION = "1"

    def __init__(self):
        """Nobody has asked yet."""
        self.asked = asyncio.Event()

    async def access(self, kong, _conf):
        """Wait, with a span open and active."""
        if kong.request.get_path() == "/go":
            self.asked.set()
            return
        before = kong.tracing.active_span()
        span = kong.tracing.start_span("patience")
        kong.tracing.set_active_span(span)
        await self.asked.wait()
        kong.tracing.start_span("work").finish()
        span.set_attribute("waited", True)
        span.finish()
        assert kong.tracing.active_span() is before
        if kong.request.get_path() == "/answer":
            kong.response.exit(403, b"no")


class Keeper:
    """A plugin that keeps a span beyond its request."""

    NAME = "keeper"
    PRIORITY = 1
    VERSION = "1"

    def __init__(self):
        """Keep nothing yet."""
        self.kept = []

    def access(self, kong, _conf):
        """Keep the active span."""
        self.kept.append(kong.tracing.active_span())


def loaded(directory, profile, plugins=(), **options):
    """Load a checked gateway as the quickstart does; return its error log and the final reading."""
    plugins = (Plugin(name="correlation-id"), *plugins)
    slow = origin.Origin(latency_p50_ms=2, latency_p99_ms=20)
    with peers.listening(origin.serve, slow) as upstream, peers.listening(collector.serve) as receiver:
        gateway = gateway_to(upstream.port, collector=receiver.port, plugins=plugins, profile=profile)
        with live(directory, gateway, make_provider=checked, **options) as running:
            request = Request(host="127.0.0.1", port=running.port)
            arrivals = ConstantArrivalRate(request=request, rate_per_s=200, duration_s=2, arrival="poisson", seed=7)
            with peers.started(driver.drive, Load(executors=(arrivals,))) as load:
                assert load.end()["requests"]["failed"] == 0
            reading = running.stop()
            return running.log.read_text(), reading


@pytest.mark.parametrize("profile", ["kong", "safe"])
def test_clean_run_gives_no_finding(tmp_path, profile):
    """The gateway's own spans, and those of the bundled plugins, are as they should be, and the books balance."""
    log, reading = loaded(tmp_path, profile)

    assert "[alert]" not in log
    assert reading.ledger.unaccounted == 0
    assert reading.ledger.acknowledged == reading.ledger.created > 1000


def test_plugin_that_leaks_a_span_is_found(tmp_path):
    """A forgotten span is reported once, with the place where it was made."""  # H3
    log, _reading = loaded(tmp_path, "kong", plugins=(Plugin(name="leaky"),), classes={"leaky": Leaky})

    assert log.count("[alert]") == 1
    assert "forgotten" in log
    assert "test_checked.py" in log


@pytest.mark.parametrize("profile", ["kong", "safe"])
@pytest.mark.parametrize("path", [b"/wait", b"/answer"])
def test_handler_that_waits_while_its_client_goes_ends_before_its_request(tmp_path, profile, path):
    """The handler goes on with live spans; then the request ends with 499, and nothing is found."""  # E5
    with recording_collector() as receiver, echo() as upstream:
        gateway = gateway_to(upstream, collector=receiver.port, plugins=(Plugin(name="patient"),), profile=profile)
        with live(tmp_path, gateway, {"patient": Patient}, make_provider=checked) as running:
            client = running.connect()
            client.sendall(b"GET %b HTTP/1.1\r\nHost: g\r\n\r\n" % path)
            running.wait_until(lambda reading: reading.sum("spans_open") >= 4)
            client.close()
            running.wait_until(lambda reading: reading.sum("connections_active") == 0)

            assert running.request("GET", "/go").status == 200
            reading = running.wait_requests(2)

            assert (reading.sum("responses_2xx"), reading.sum("responses_4xx")) == (1, 1)
            spans = receiver.wait_spans(13)
            [waited] = [span for span in spans if span.name == "patience"]
            assert (attributes(waited), waited.end_time_unix_nano > 0) == ({"waited": True}, True)
            reading = running.stop()
            assert (reading.ledger.unaccounted, reading.ledger.open, reading.ledger.lost) == (0, 0, 0)
            assert "[alert]" not in running.log.read_text()
            assert "[error]" not in running.log.read_text()


def test_worker_looks_at_its_exit_at_what_is_still_held(tmp_path):
    """A plugin that keeps a single span is found, though no other request comes."""
    with echo() as upstream:
        gateway = gateway_to(upstream, plugins=(Plugin(name="keeper"),))
        with live(tmp_path, gateway, {"keeper": Keeper}, make_provider=checked) as running:
            running.request()
            running.wait_requests(1)
            assert "[alert]" not in running.log.read_text()
            running.stop()
            log = running.log.read_text()
            assert log.count("[alert]") == 1
            assert "KT025 span held after its request" in log
