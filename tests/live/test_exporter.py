"""A gateway exports to collectors of other implementations."""

import os
import time
from signal import SIGKILL

import pytest
import trustme

from sim import worker
from sim.config import Export, Nginx
from sim.entity import Plugin
from sim.scoreboard import State
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


def test_a_worker_that_starts_later_has_the_certificates_of_the_first(tmp_path):
    """Files are read with the configuration: one that is being replaced meanwhile is not missed."""
    authority, client = trustme.CA(), trustme.CA().issue_cert("client.test")
    files = {name: tmp_path / f"{name}.pem" for name in ("certificate", "client_certificate", "client_key")}
    authority.cert_pem.write_to_path(files["certificate"])
    client.cert_chain_pems[0].write_to_path(files["client_certificate"])
    client.private_key_pem.write_to_path(files["client_key"])
    with echo() as upstream, recording_collector(authority.issue_cert("localhost")) as collector:
        config = {"traces_endpoint": f"https://localhost:{collector.port}/v1/traces"}
        export = Export(**{name: str(file) for name, file in files.items()})
        gateway = gateway_to(upstream, plugins=(Plugin(name="opentelemetry", config=config),), export=export)
        with live(tmp_path, gateway) as running:
            for file in files.values():
                file.unlink()
            os.kill(running.scoreboard.read().alive[0].pid, SIGKILL)
            running.wait_until(lambda reading: len(reading.workers) == 2 and reading.alive[-1].state is State.SERVING)
            assert running.request().status == 200
            created = running.wait_requests(1).ledger.created
            assert len(collector.wait_spans(created)) == created


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
