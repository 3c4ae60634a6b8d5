"""A gateway exports to collectors of other implementations."""

import time

import pytest
import trustme

from sim import worker
from sim.config import Nginx
from sim.entity import Plugin
from sim.wall_clock import WallClock
from tests.gateway import echo, gateway_to, live, recording_collector


@pytest.mark.parametrize("profile", ["kong", "safe"])
def test_traces_reach_a_secured_collector(profile, tmp_path):
    """The certificate is checked against the configured authority, and every span arrives."""
    authority, file = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)
    with echo() as upstream, recording_collector(authority.issue_cert("localhost")) as collector:
        config = {"traces_endpoint": f"https://localhost:{collector.port}/v1/traces"}
        gateway = gateway_to(
            upstream,
            plugins=(Plugin(name="opentelemetry", config=config | {"queue": {"max_coalescing_delay": 0.1}}),),
            profile=profile,
            nginx=Nginx(lua_ssl_trusted_certificate=str(file)),
        )
        with live(tmp_path, gateway) as running:
            assert running.request().status == 200
            created = running.wait_requests(1).ledger.created
            assert len(collector.wait_spans(created)) == created
            assert running.stop().ledger.acknowledged == created


def test_a_queue_of_kong_feels_that_the_wall_clock_is_set(tmp_path, monkeypatch):
    """Its wait of an hour for a batch to fill is over when the clock says so."""  # Q26
    is_set = tmp_path / "set"

    def time_ns():
        return time.time_ns() + 7200 * 1_000_000_000 * is_set.exists()

    monkeypatch.setattr(worker, "WallClock", lambda _time_ns: WallClock(time_ns))
    with echo() as upstream, recording_collector() as collector:
        endpoint = f"http://127.0.0.1:{collector.port}/v1/traces"
        waiting = {"traces_endpoint": endpoint, "queue": {"max_coalescing_delay": 3600}}
        plugin = Plugin(name="opentelemetry", config=waiting)
        with live(tmp_path, gateway_to(upstream, plugins=(plugin,), profile="kong")) as running:
            running.request()
            created = running.wait_until(lambda reading: reading.sum("queue_depth")).ledger.created
            is_set.touch()
            running.wait_requests(1)
            assert len(collector.spans()) == created
