"""Upstreams with several targets, on real processes and sockets: balancing, retries, health."""

import json
import os
import re
import socket
import struct
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from signal import SIGQUIT, SIGTERM

import pytest

from sim import process
from sim.entity import Upstream
from tests import peers
from tests.gateway import TIMEOUT_S, attributes, echo, gateway_to, live, recording_collector

POOL = {"service": {"host": "pool"}}


def pool(*ports, weights=(), **fields):
    """An upstream of targets on this machine."""
    entries = [{"target": f"127.0.0.1:{port}"} for port in ports]
    for entry, weight in zip(entries, weights, strict=False):
        entry["weight"] = weight
    return {"upstreams": (Upstream.model_validate({"name": "pool", "targets": entries} | fields),)} | POOL


@contextmanager
def two_targets(directory, **options):
    """Two echo servers behind one gateway; give it and their ports."""
    with ExitStack() as stack:
        ports = stack.enter_context(echo()), stack.enter_context(echo())
        gateway = gateway_to(ports[0], **pool(*ports, **options))
        yield stack.enter_context(live(directory, gateway)), *ports


def served_by(answer):
    """The port of the target that answered, which its Host header tells."""
    headers = dict(json.loads(answer.content)["headers"])
    return int(headers["Host"].rpartition(":")[2])


def wait_log(gateway, pattern):
    """Wait until the error log has a line of this pattern."""
    for _ in range(3000):
        if found := re.search(pattern, gateway.log.read_text()):
            return found
        process.wait([gateway.process.sentinel], 0.01)
    raise AssertionError(f"no {pattern} in {gateway.log.read_text()}")


def test_requests_are_spread_by_weight(tmp_path):
    """Three of four go to the target with three quarters of the weight."""
    with two_targets(tmp_path, weights=(75, 25)) as (gateway, one, other):
        assert Counter(served_by(gateway.request()) for _ in range(40)) == {one: 30, other: 10}


def test_key_stays_at_its_target(tmp_path):
    """In all workers, by the header that is hashed."""
    options = {"hash_on": "header", "hash_on_header": "x-user"}
    with two_targets(tmp_path, **options) as (gateway, one, other):
        found = []
        # Where the targets stand on the ring, their ports decide: once in some thousand times the first 12 meet one.
        while len(found) < 12 or (len(set.union(*found)) < 2 and len(found) < 100):
            user = f"user {len(found)}"
            found.append({served_by(gateway.request(headers={"X-User": user})) for _ in range(3)})
        assert {len(ports) for ports in found} == {1}
        assert set.union(*found) == {one, other}


def test_missing_cookie_is_handed_out_and_leads_back(tmp_path):
    """`hash_on: cookie` makes a session stick to a target."""
    with two_targets(tmp_path, hash_on="cookie", hash_on_cookie="session") as (gateway, _one, _other):
        first = gateway.request()
        crumb = first.headers["Set-Cookie"].partition(";")[0]
        again = [gateway.request(headers={"Cookie": crumb}) for _ in range(5)]
        assert crumb.startswith("session=")
        assert {served_by(answer) for answer in again} == {served_by(first)}
        assert {answer.headers["Set-Cookie"] for answer in again} == {None}


@pytest.mark.parametrize("algorithm", ["round-robin", "least-connections", "latency"])
def test_try_after_a_failed_one_goes_to_another_target(tmp_path, algorithm):
    """Each try is a span with its own peer; the client notices nothing."""  # I14
    dead = peers.free_port()
    with echo() as alive, recording_collector() as collector:
        gateway = gateway_to(alive, collector=collector.port, **pool(dead, alive, algorithm=algorithm))
        with live(tmp_path, gateway) as running:
            answers = [running.request() for _ in range(4)]
            reading = running.stop()
        spans = collector.wait_spans(reading.ledger.enqueued)

    assert [answer.status for answer in answers] == [200] * 4
    assert {served_by(answer) for answer in answers} == {alive}
    tries = [attributes(span) for span in spans if span.name == "kong.balancer"]
    failed = [told for told in tries if told["net.peer.port"] == dead]
    assert failed
    assert {(told["http.status_code"], told["try_count"]) for told in failed} == {(502, 1)}
    assert len(tries) == 4 + len(failed)


def test_failing_target_is_taken_out_and_stays_out(tmp_path):
    """Passive checks: after so many failures it gets no request; Kong's line tells each."""
    dead = peers.free_port()
    checks = {"passive": {"unhealthy": {"tcp_failures": 2}}}
    with echo() as alive, live(tmp_path, gateway_to(alive, **pool(dead, alive, healthchecks=checks))) as gateway:
        assert [gateway.request().status for _ in range(12)] == [200] * 12
        log = gateway.log.read_text()

    refused = [line for line in log.splitlines() if f'"http://127.0.0.1:{dead}/"' in line and "connect()" in line]
    assert len(refused) == 2
    for count in (1, 2):
        line = f"[healthcheck] (pool) unhealthy TCP increment ({count}/2) for '127.0.0.1(127.0.0.1:{dead})'"
        assert line in log


def test_without_any_target_the_client_is_told_in_kongs_words(tmp_path):
    """503, before anything is tried; and when the last target goes while a request is retried."""
    dead = peers.free_port()
    checks = {"passive": {"unhealthy": {"tcp_failures": 1}}}
    with live(tmp_path, gateway_to(dead, **pool(dead, healthchecks=checks))) as gateway:
        retried, refused = gateway.request(), gateway.request()
        log = gateway.log.read_text()

    assert (retried.status, json.loads(retried.content)["message"]) == (
        503,
        "The upstream server is currently unavailable",
    )
    assert "failed to retry the dns/balancer resolver for pool' with: failure to get a peer" in log
    assert "[healthchecks] balancer pool reported health status changed to UNHEALTHY" in log
    told = json.loads(refused.content)
    assert (refused.status, told["message"]) == (503, "failure to get a peer from the ring-balancer")


def test_target_that_is_a_name_is_resolved(tmp_path):
    """`localhost` comes from the system's resolver, and stands in the Host header."""
    with echo() as port:
        upstream = Upstream.model_validate({"name": "pool", "targets": [{"target": f"localhost:{port}"}]})
        with live(tmp_path, gateway_to(port, upstreams=(upstream,), **POOL)) as gateway:
            told = json.loads(gateway.request().content)
    assert dict(told["headers"])["Host"] == f"localhost:{port}"


def test_names_of_targets_are_looked_up_under_spans(tmp_path):
    """Each lookup has one, good or failed, below the root; a name that is known is not looked up again."""  # I9, I17
    with recording_collector() as collector, echo() as port:
        targets = [{"target": f"localhost:{port}"}, {"target": "nowhere.invalid:81"}]
        upstream = Upstream.model_validate({"name": "pool", "targets": targets})
        gateway = gateway_to(port, collector=collector.port, upstreams=(upstream,), **POOL)
        with live(tmp_path, gateway) as running:
            assert [running.request().status, running.request().status] == [200, 200]
            running.wait_requests(2)
            running.stop()
        spans = collector.wait_spans(12)

    (first, again) = sorted((s for s in spans if s.name == "kong"), key=lambda span: span.start_time_unix_nano)
    lookups = sorted((s for s in spans if s.name == "kong.dns"), key=lambda span: span.start_time_unix_nano)
    assert {span.parent_span_id for span in lookups} == {first.span_id} != {again.span_id}
    good, bad = lookups
    assert good.start_time_unix_nano == bad.start_time_unix_nano  # all are asked for at once
    assert attributes(good) == {
        "dns.record.domain": "localhost",
        "dns.record.port": port,
        "dns.record.ip": "127.0.0.1",
    }
    assert attributes(bad) == {"dns.record.domain": "nowhere.invalid", "dns.record.port": 81}
    assert (good.status.code, bad.status.code) == (0, 2)
    assert [event.name for event in bad.events] == ["exception"]


def test_client_that_leaves_during_a_lookup_leaves_nothing_behind(tmp_path):
    """Its request ends with 499 at once, its spans go back, and the next one finds the name."""  # H23
    with echo() as port:
        upstream = Upstream.model_validate({"name": "pool", "targets": [{"target": f"localhost:{port}"}]})
        with live(tmp_path, gateway_to(port, upstreams=(upstream,), **POOL)) as gateway:
            with gateway.connect() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
            gateway.wait_requests(1)
            assert gateway.request().status == 200
            gateway.wait_requests(2)
            reading = gateway.stop()
        assert (reading.ledger.open, reading.ledger.unaccounted) == (0, 0)
        assert "Error" not in gateway.log.read_text()


@pytest.mark.parametrize("signum", [SIGTERM, SIGQUIT])
def test_worker_that_leaves_waits_for_no_lookup(tmp_path, monkeypatch, signum):
    """It ends by itself, with its books closed, though the system is still being asked for a name."""  # W1, W2
    asked, ask = os.pipe()
    look_up = socket.getaddrinfo

    def never_answer(name, *rest, **hints):
        if name != "silent.test":
            return look_up(name, *rest, **hints)
        os.write(ask, b".")
        return threading.Event().wait()

    monkeypatch.setattr(socket, "getaddrinfo", never_answer)
    with live(tmp_path, gateway_to(1, service={"host": "silent.test"})) as gateway:
        with gateway.connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
            assert process.wait([asked], TIMEOUT_S)
        gateway.wait_requests(1)
        reading = gateway.stop(signum)
        os.close(asked)
        os.close(ask)
    assert (reading.sum("requests"), reading.ledger.open, reading.ledger.unaccounted) == (1, 0, 0)
    assert [line for line in gateway.log.read_text().splitlines() if "exited with code 0" in line]
    assert "exited on signal" not in gateway.log.read_text()


def test_log_says_in_nginx_words_how_an_upstream_failed(tmp_path):
    """Number and name of the error, what was being done, and where to: the path as the upstream is asked for it."""
    dead = peers.free_port()
    route = {"paths": ("/shop",), "strip_path": True}
    service = {"path": "/api", "retries": 0}
    with live(tmp_path, gateway_to(dead, route=route, service=service)) as gateway:
        assert gateway.request(path="/shop/a?b=c").status == 502
        line = gateway.wait_logged("connect() failed")
    assert "connect() failed (111: Connection refused) while connecting to upstream, client: 127.0.0.1" in line
    assert f'request: "GET /shop/a?b=c HTTP/1.1", upstream: "http://127.0.0.1:{dead}/api/a?b=c", host:' in line


def test_target_without_address_gets_nothing(tmp_path):
    """When no name resolves there is no peer; the log tells which."""
    upstream = Upstream.model_validate({"name": "pool", "targets": [{"target": "nowhere.invalid:80"}]})
    with live(tmp_path, gateway_to(1, upstreams=(upstream,), **POOL)) as gateway:
        answer = gateway.request()
        log = gateway.log.read_text()
    assert (answer.status, json.loads(answer.content)["message"]) == (
        503,
        "failure to get a peer from the ring-balancer",
    )
    assert "nowhere.invalid could not be resolved" in log


@pytest.mark.parametrize("name", ["a..b", "nowhere.invalid"])
def test_target_without_address_leaves_requests_and_probes_to_the_others(tmp_path, name):
    """Also where its name is none: the request goes on, the log tells which, and the worker leaves when told to."""
    checks = {"active": {"healthy": {"interval": 0.01}, "unhealthy": {"interval": 0.01, "tcp_failures": 1}}}
    with echo() as port:
        targets = [{"target": f"{name}:80"}, {"target": f"127.0.0.1:{port}"}]
        upstream = Upstream.model_validate({"name": "pool", "targets": targets, "healthchecks": checks})
        with live(tmp_path, gateway_to(port, upstreams=(upstream,), **POOL)) as gateway:
            assert gateway.request().status == 200
            gateway.wait_logged(f"{name} could not be resolved")
            gateway.wait_logged(f"unhealthy TCP increment (1/1) for '{name}")
            gateway.stop()


def test_probes_take_a_target_out_and_bring_it_back(tmp_path):
    """Active checks: real requests at an interval, with path, host and headers, while no client asks for anything."""
    checks = {
        "active": {
            "http_path": "/health",
            "headers": {"X-Probe": ["100%"]},
            "healthy": {"interval": 0.05, "successes": 1},
            "unhealthy": {"interval": 0.05, "tcp_failures": 1},
        }
    }
    port = peers.free_port()
    asked = []

    def answer_all(server):
        with suppress(OSError):
            while True:
                with server.accept()[0] as client, suppress(OSError):
                    asked.append(client.recv(65536))
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    options = pool(port, healthchecks=checks, host_header="api.example")
    with live(tmp_path, gateway_to(port, **options)) as gateway:
        wait_log(gateway, r"balancer pool reported health status changed to UNHEALTHY")
        assert gateway.request().status == 503
        with socket.create_server(("127.0.0.1", port)) as server:
            thread = threading.Thread(target=answer_all, args=(server,), daemon=True)
            thread.start()
            wait_log(gateway, r"healthy SUCCESS increment \(1/1\) for '127.0.0.1\(127.0.0.1:\d+\)'")
            wait_log(gateway, r"balancer pool reported health status changed to HEALTHY")
            server.shutdown(socket.SHUT_RDWR)
            thread.join(TIMEOUT_S)
        gateway.stop()

    assert set(asked) == {b"GET /health HTTP/1.0\r\nX-Probe: 100%\r\nHost: api.example\r\n\r\n"}


@pytest.mark.parametrize(("host", "told_host"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_probe_calls_a_target_by_its_host_alone(tmp_path, host, told_host):
    """An IPv6 address in brackets; without port, as Kong does it."""  # RFC 3986 3.2.2
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    checks = {"active": {"healthy": {"interval": 0.01}}}
    with socket.create_server((host, 0), family=family) as server:
        target = {"target": f"{told_host}:{server.getsockname()[1]}"}
        upstream = Upstream.model_validate({"name": "pool", "targets": [target], "healthchecks": checks})
        with live(tmp_path, gateway_to(1, upstreams=(upstream,), **POOL)) as gateway:
            probe, _ = server.accept()
            with probe:
                asked = probe.recv(65536)
            gateway.stop()

    assert asked == f"GET / HTTP/1.0\r\nHost: {told_host}\r\n\r\n".encode()


def test_probe_without_answer_counts_as_a_timeout(tmp_path):
    """A server that accepts and never answers is taken out."""
    checks = {"active": {"timeout": 0.1, "healthy": {"interval": 0.05}, "unhealthy": {"interval": 0.05, "timeouts": 1}}}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with live(tmp_path, gateway_to(port, **pool(port, healthchecks=checks))) as gateway:
            wait_log(gateway, r"failed to receive status line from '127.0.0.1 \(127.0.0.1:\d+\)': timeout")
            wait_log(gateway, r"unhealthy TIMEOUT increment \(1/1\)")
            gateway.stop()
