"""The checked span in live workers under load."""

import pytest

from kongtrace.checked import tracer_provider
from sim import collector, origin
from sim.config import Plugin
from sim.load import driver
from sim.load.driver import ConstantArrivalRate
from sim.load.request import Request
from tests import peers
from tests.gateway import gateway_to, live


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


def loaded(directory, profile, plugins=(), **options):
    """Load a checked gateway as the quickstart does; return its error log and the final reading."""
    plugins = (Plugin(name="correlation-id"), *plugins)
    slow = origin.Origin(latency_p50_ms=2, latency_p99_ms=20)
    with peers.listening(origin.serve, slow) as upstream, peers.listening(collector.serve) as receiver:
        gateway = gateway_to(upstream.port, collector=receiver.port, plugins=plugins, profile=profile)
        with live(directory, gateway, make_provider=checked, **options) as running:
            arrivals = ConstantArrivalRate(rate_per_s=200, duration_s=2, arrival="poisson", seed=7)
            with peers.started(driver.drive, arrivals, Request(host="127.0.0.1", port=running.port)) as load:
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
