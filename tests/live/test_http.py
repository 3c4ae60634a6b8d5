"""HTTP on the wire, with clients and servers of other implementations, and with raw sockets."""

import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import psutil
import pytest
import uvicorn

from sim import process
from sim.config import Nginx, Tracing
from sim.entity import Plugin
from tests import peers
from tests.gateway import echo, gateway_to, live
from tests.hostile import SOAK, hostile_parts

GET = b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n"
MIB = 1 << 20
PART = bytes(range(256)) * 256
OFF = {"tracing": Tracing(instrumentations=("off",))}


async def application(scope, receive, send):
    """Answer as the path says: `/echo`, `/count`, `/download/MIB`, `/status/N`, `/early`."""
    if scope["type"] != "http":
        return
    kind, _, value = scope["path"].strip("/").partition("/")
    body, size, digest = b"", 0, hashlib.sha256()
    more = kind != "early"
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        more = event.get("more_body", False)
        size += len(event["body"])
        digest.update(event["body"])
        body = body + event["body"] if kind == "echo" else b""
    headers = [(b"x-size", b"%d" % size), (b"x-method", scope["method"].encode())]
    if kind == "status":
        await send({"type": "http.response.start", "status": int(value), "headers": headers})
        await send({"type": "http.response.body"})
        return
    await send({"type": "http.response.start", "status": 413 if kind == "early" else 200, "headers": headers})
    for _ in range(int(value or 0) * MIB // len(PART) if kind == "download" else 0):
        await send({"type": "http.response.body", "body": PART, "more_body": True})
    body = digest.hexdigest().encode() if kind == "count" else body
    await send({"type": "http.response.body", "body": body})


def _serve(sock):
    uvicorn.run(application, fd=sock.fileno(), http="h11", ws="none", loop="asyncio", log_level="error")


@contextmanager
def application_server():
    """Run the application in a server of another implementation (uvicorn with h11); give its port."""
    with peers.listener() as sock:
        child = process.start(lambda: _serve(sock), name="application")
        try:
            yield sock.getsockname()[1]
        finally:
            os.kill(child.pid, signal.SIGKILL)
            process.reap(child, peers.TIMEOUT_S)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A gateway before the application."""
    with application_server() as port, live(tmp_path_factory.mktemp("gateway"), gateway_to(port, **OFF)) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway):
    """A client of another implementation (httpx with h11)."""
    with httpx.Client(base_url=f"http://127.0.0.1:{gateway.port}", timeout=peers.TIMEOUT_S) as client:
        yield client


def parts(mib):
    """A body of so many MiB, in parts."""
    return itertools.repeat(PART, mib * MIB // len(PART))


# Other implementations.


def test_bodies_pass_between_other_implementations(client):
    """Counted and chunked, empty, small and large; the connection is kept all the while."""
    large = os.urandom(3 * MIB)
    for body, told in ((b"", b""), (b"abc", b"abc"), (large, large), (iter([b"a", b"bc"]), b"abc")):
        answer = client.post("/echo", content=body)
        assert (answer.status_code, answer.content) == (200, told)
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS"):
        assert client.request(method, "/echo").headers["x-method"] == method
    assert client.get("/echo").headers["via"] == "1.1 kong/3.9.1"


@pytest.mark.parametrize("status", [200, 204, 301, 304, 404, 500, 503, 599])
def test_statuses_with_and_without_body_pass(client, status):
    """204 and 304 have none, and the next request on the connection is answered."""
    for method in ("GET", "HEAD", "POST"):
        assert client.request(method, f"/status/{status}").status_code == status


def test_head_is_answered_without_body(client):
    """Also when the upstream does not know the length."""
    answer = client.head("/download/1")
    assert (answer.status_code, answer.content, answer.headers["x-method"]) == (200, b"", "HEAD")


def test_many_clients_at_once_get_their_own_answers(gateway):
    """No answer goes astray between connections."""

    def ask(number):
        with httpx.Client(base_url=f"http://127.0.0.1:{gateway.port}", timeout=peers.TIMEOUT_S) as own:
            bodies = [f"{number}-{turn}".encode() * (1 + 997 * turn) for turn in range(10)]
            return all(own.post("/echo", content=body).content == body for body in bodies)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(32))) == [True] * 32


def curl(gateway, *arguments, data=None):
    """Run curl against the gateway; return what it prints."""
    command = ["curl", "--silent", "--show-error", "--max-time", "30", *arguments]
    return subprocess.run(
        [*command[:-1], f"http://127.0.0.1:{gateway.port}{command[-1]}"], input=data, capture_output=True, check=True
    ).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_its_answers(gateway):
    """Expect, chunked uploads, an offered upgrade to HTTP/2, HTTP/1.0, several requests on one connection."""
    data = os.urandom(2 * MIB)
    assert curl(gateway, "--data-binary", "@-", "-H", "Expect: 100-continue", "/echo", data=data) == data
    assert curl(gateway, "-T", "-", "-H", "Transfer-Encoding: chunked", "/echo", data=data) == data
    assert curl(gateway, "--http1.0", "--data-binary", "@-", "/echo", data=data) == data
    assert curl(gateway, "--http2", "--data-binary", "@-", "/echo", data=b"abc") == b"abc"
    url = f"http://127.0.0.1:{gateway.port}/echo"
    told = curl(gateway, "-d", "one", url, "-d", "two", "-w", "%{num_connects}", "/echo")
    assert told == b"one&two1one&two0"


# Large bodies.


class Memory:
    """The resident memory of a worker, above what it was, in MiB."""

    def __init__(self, gateway):
        self._process = psutil.Process(gateway.scoreboard.read().workers[0].pid)
        self._base = self._process.memory_info().rss

    def grown(self):
        return (self._process.memory_info().rss - self._base) / MIB


BODY_MIB = 1024 if SOAK else 128
GROWTH_MIB_MAX = 16


def test_memory_stays_flat_under_a_large_upload(gateway, client):
    """A body far larger than the worker passes through it, counted and chunked."""
    client.post("/count", content=PART)
    memory = Memory(gateway)
    expected = hashlib.sha256()
    for part in parts(BODY_MIB):
        expected.update(part)
    answer = client.post("/count", content=parts(BODY_MIB))
    assert (answer.headers["x-size"], answer.text) == (str(BODY_MIB * MIB), expected.hexdigest())
    assert memory.grown() < GROWTH_MIB_MAX


def test_memory_stays_flat_under_a_large_download(gateway, client):
    """The same the other way."""
    client.get("/download/1")
    memory = Memory(gateway)
    with client.stream("GET", f"/download/{BODY_MIB}") as answer:
        sizes = [len(part) for part in answer.iter_raw()]
    assert sum(sizes) == BODY_MIB * MIB
    assert memory.grown() < GROWTH_MIB_MAX


def test_client_that_does_not_read_stops_the_upstream(gateway):
    """What it does not take is not read from the upstream either; others are served meanwhile."""
    with gateway.connect() as lazy:
        memory = Memory(gateway)
        lazy.sendall(b"GET /download/%d HTTP/1.1\r\nHost: g\r\n\r\n" % BODY_MIB)
        assert lazy.recv(10) == b"HTTP/1.1 2"
        for _ in range(50):
            assert gateway.request("GET", "/status/200").status == 200
        assert memory.grown() < GROWTH_MIB_MAX


def test_upstream_that_does_not_read_stops_the_client(tmp_path):
    """The client can send no more than the sockets and two buffers hold."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        live(tmp_path, gateway_to(server.getsockname()[1], **OFF)) as gateway,
        gateway.connect() as client,
    ):
        memory = Memory(gateway)
        client.sendall(b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n" % (BODY_MIB * MIB))
        upstream, _ = server.accept()
        client.settimeout(1.0)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < BODY_MIB * MIB:
                sent += client.send(PART)
        assert sent < 64 * MIB
        assert memory.grown() < GROWTH_MIB_MAX
        upstream.close()


def test_body_is_not_read_far_ahead_of_an_upstream_that_cannot_be_reached(tmp_path):
    """While there is no connection to the upstream, little of the body is held."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        service = {"connect_timeout": 2000, "retries": 0}
        gateway = stack.enter_context(live(tmp_path, gateway_to(full.getsockname()[1], service=service, **OFF)))
        client = stack.enter_context(gateway.connect())
        memory = Memory(gateway)
        client.sendall(b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n" % (BODY_MIB * MIB))
        client.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            while sent < BODY_MIB * MIB:
                sent += client.send(PART)
        assert memory.grown() < GROWTH_MIB_MAX
        client.settimeout(peers.TIMEOUT_S)
        assert client.recv(12) == b"HTTP/1.1 504"


# Upstreams that err.

OK = b"HTTP/1.1 200 OK\r\n"
INVALID_RESPONSES = {
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "bare LF after a header": OK + b"A: b\nContent-Length: 2\r\n\r\nok",
    "folded line": OK + b"A: b\r\n c\r\nContent-Length: 2\r\n\r\nok",
    "blank before the colon": OK + b"A : b\r\nContent-Length: 2\r\n\r\nok",
    "NUL": OK + b"A: \x00\r\nContent-Length: 2\r\n\r\nok",
    "Content-Length, Transfer-Encoding": OK
    + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "Transfer-Encoding, Content-Length": OK
    + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two Content-Lengths": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "two different Content-Lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "Content-Length that is no number": OK + b"Content-Length: 2x\r\n\r\nok",
    "gzip": OK + b"Transfer-Encoding: gzip\r\n\r\nok",
    "gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    "status 099": b"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nblob",
    "switching protocols, unnamed": b"HTTP/1.1 101 Switching Protocols\r\n\r\nblob",
    "HTTP/0.9": b"hello",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "endless header section": OK + b"A: b\r\n" * 50_000,
    "endless header line": OK + b"A: " + b"b" * 300_000,
    "endless interim responses": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 10_000,
}
"""Responses that no client may take."""


@contextmanager
def scripted(tmp_path, *answers, **options):
    """Run a gateway before a server whose n-th connection gets the n-th answer, whatever is asked, and stays open.

    An answer may also be a function, which is called with the connection.
    """
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def serve():
            with contextlib.suppress(OSError):
                for answer in answers:
                    connection = stack.enter_context(server.accept()[0])
                    connection.recv(65536)
                    answer(connection) if callable(answer) else connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        service = {"retries": 0} | options.pop("service", {})
        yield stack.enter_context(live(tmp_path, gateway_to(server.getsockname()[1], service=service, **OFF | options)))
        server.shutdown(socket.SHUT_RDWR)
        thread.join(peers.TIMEOUT_S)


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy"])
def test_upstream_that_closes_as_soon_as_it_is_connected_to_keeps_nobody_waiting(tmp_path, greeting):
    """Every request has its answer, at whichever moment the worker hears of it."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def greet():
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as connection, contextlib.suppress(OSError):
                        connection.sendall(greeting)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        service = {"retries": 0, "read_timeout": 600_000}
        gateway = stack.enter_context(live(tmp_path, gateway_to(server.getsockname()[1], service=service, **OFF)))
        assert {gateway.request().status for _ in range(60)} <= {502, 503}
        server.shutdown(socket.SHUT_RDWR)
        thread.join(peers.TIMEOUT_S)


def test_response_that_is_malformed_or_ambiguous_is_502(tmp_path):
    """Nothing of it reaches the client, and the connection is not used again."""
    good = OK + b"Content-Length: 4\r\n\r\ngood"
    answers = [answer for bad in INVALID_RESPONSES.values() for answer in (bad, good + b"too much")]
    with scripted(tmp_path, *answers) as gateway:
        for name in INVALID_RESPONSES:
            assert (name, gateway.request().status) == (name, 502)
            assert gateway.request().content == b"good"


def test_second_answer_is_nobodys(tmp_path):
    """What an upstream sends beyond its response, at once or later, never answers another request."""
    extra = OK + b"Content-Length: 4\r\n\r\nevil"
    answers = [
        OK + b"Content-Length: 4\r\n\r\ngood" + extra,
        OK + b"Content-Length: 4\r\n\r\ngood" + extra[:7],
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\nX-Late: 1\r\n\r\n" + extra,
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 4\r\n\r\ngood" + extra,
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n" + extra,
        b"HTTP/1.1 204 No Content\r\n\r\n" + extra,
    ]
    with scripted(tmp_path, *answers) as gateway:
        bodies = [gateway.request().content for _ in answers]
        assert bodies == [b"good"] * 4 + [b""] * 2


def test_response_to_head_with_a_body_harms_nobody(tmp_path):
    """The body is too much: the connection is closed."""
    with scripted(
        tmp_path, OK + b"Content-Length: 4\r\n\r\nevil", OK + b"Content-Length: 4\r\n\r\ngood" + b" and more"
    ) as gateway:
        assert gateway.request("HEAD").status == 200
        assert gateway.request().content == b"good"


def test_connection_whose_request_was_not_sent_whole_is_not_used_again(tmp_path):
    """An upstream that answers early would take the next request for the rest of the body."""
    early = b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 5\r\n\r\nearly"
    with scripted(tmp_path, early, OK + b"Content-Length: 4\r\n\r\ngood") as gateway, gateway.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 1000\r\n\r\nGET / HTTP/1.1\r\n")
        received = b""
        while part := client.recv(65536):
            received += part
        assert received.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nConnection: close\r\n" in received
        assert received.endswith(b"early")
        assert gateway.request().content == b"good"


def test_headers_of_one_hop_end_there(tmp_path):
    """Those that `Connection` names, and those that always do, are not passed on to the client."""  # RFC 9110 7.6.1
    answer = OK + (
        b"Connection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\n"
        b"Upgrade: h2c\r\nTrailer: X-Late\r\nTransfer-Encoding: chunked\r\nServer: theirs\r\nVia: 1.0 fred\r\n"
        b"X-Accel-Buffering: no\r\nX-Accel-Expires: 0\r\nX-Pad: avoid browser bug\r\n"
        b"X-Kong-Proxy-Latency: 9999\r\nX-Mine: 1\r\n\r\n4\r\ngood\r\n0\r\nX-Late: 1\r\n\r\n"
    )
    with scripted(tmp_path, answer) as gateway:
        told = gateway.request()
        names = [name.lower() for name, _ in told.getheaders()]
        assert told.content == b"good"
        assert {"x-hop", "keep-alive", "proxy-authenticate", "upgrade", "trailer", "x-late"} & set(names) == set()
        assert {"x-accel-buffering", "x-accel-expires", "x-pad"} & set(names) == set()
        assert (told.getheader("Server"), told.getheader("Via")) == ("theirs", "1.0 fred, 1.1 kong/3.9.1")
        assert names.count("x-kong-proxy-latency") == names.count("x-kong-upstream-latency") == 1


def test_client_of_http_1_0_gets_no_chunks(tmp_path):
    """A body of unknown length ends with the connection, whatever the upstream's framing."""
    with scripted(tmp_path, OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n") as gateway:
        received = gateway.exchange(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _, body = received.partition(b"\r\n\r\n")
        assert body == b"good"
        assert b"Transfer-Encoding" not in head
        assert b"\r\nConnection: close" in head


# What upstreams are told of clients.


def told_headers(gateway, path="/", **headers):
    told = gateway.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return {name.lower(): value for name, value in json.loads(told.content)["headers"]}


FALSE = {
    "X_Forwarded_For": "192.0.2.7",
    "X_Forwarded_Proto": "https",
    "X_Forwarded_Host": "other",
    "X_Forwarded_Port": "1",
    "X_Forwarded_Path": "/other",
    "X_Forwarded_Prefix": "/prefix",
    "X_Real_IP": "192.0.2.8",
}


def test_forwarding_headers_of_strangers_are_replaced(tmp_path):
    """Only `X-Forwarded-For` is continued, as Kong does."""
    with echo() as upstream, live(tmp_path, gateway_to(upstream, route={"paths": ("/api",)}, **OFF)) as gateway:
        told = told_headers(gateway, "/api/x?y", Host="G:80", Proxy="evil", **FALSE)
        assert {name: value for name, value in told.items() if name.startswith("x-")} == {
            "x-forwarded-for": "192.0.2.7, 127.0.0.1",
            "x-forwarded-proto": "http",
            "x-forwarded-host": "g",
            "x-forwarded-port": str(gateway.port),
            "x-forwarded-path": "/api/x",
            "x-forwarded-prefix": "/api",
            "x-real-ip": "127.0.0.1",
            "x-kong-request-id": told["x-kong-request-id"],
        }
        assert "proxy" not in told
        assert "x-forwarded-for" in told_headers(gateway, "/api")


@pytest.mark.parametrize("trusted_ips", [(), ("127.0.0.1",)])
def test_prefix_that_is_decoded_to_compare_it_makes_no_line_of_its_own(tmp_path, trusted_ips):
    """Nor a second request; it is told as plugins are told it, escaped like the path of the request line."""
    options = {"route": {"paths": ("~/files/[^?]+",)}, "trusted_ips": trusted_ips, **OFF}
    with echo() as upstream, live(tmp_path, gateway_to(upstream, **options)) as gateway:
        told = told_headers(gateway, "/files/%C3%BC%0D%0AX:1%0D%0A%0D%0ADELETE%20/all%20HTTP/1.1%0D%0AX:")
    assert told["x-forwarded-prefix"] == "/files/%C3%BC%0D%0AX:1%0D%0A%0D%0ADELETE%20/all%20HTTP/1.1%0D%0AX:"
    assert "x" not in told


def test_forwarding_headers_of_trusted_proxies_are_passed_on(tmp_path):
    """What they say of the client is believed."""
    trusted = {"trusted_ips": ("10.0.0.0/8", "unix:", "127.0.0.1"), **OFF}
    with echo() as upstream, live(tmp_path, gateway_to(upstream, **trusted)) as gateway:
        told = told_headers(gateway, "/x", **FALSE)
        assert {name: value for name, value in told.items() if name.startswith("x-")} == {
            "x-forwarded-for": "192.0.2.7, 127.0.0.1",
            "x-forwarded-proto": "https",
            "x-forwarded-host": "other",
            "x-forwarded-port": "1",
            "x-forwarded-path": "/other",
            "x-forwarded-prefix": "/prefix",
            "x-real-ip": "192.0.2.8",
            "x-kong-request-id": told["x-kong-request-id"],
        }


@pytest.mark.parametrize("trusted_ips", [(), ("127.0.0.1",)])
def test_host_that_a_client_does_not_name_is_not_told(tmp_path, trusted_ips):
    """HTTP/1.0 knows requests without Host; a header without value is left out, as nginx leaves it out."""
    with echo() as upstream, live(tmp_path, gateway_to(upstream, trusted_ips=trusted_ips, **OFF)) as gateway:
        told = json.loads(gateway.exchange(b"GET / HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")[2])
    assert "x-forwarded-host" not in {name.lower() for name, _value in told["headers"]}


@pytest.mark.parametrize(("recursive", "client"), [(False, "10.0.0.9"), (True, "192.0.2.7")])
def test_client_is_who_the_trusted_proxies_name(tmp_path, recursive, client):
    """`real_ip_header` says where; `real_ip_recursive` passes over proxies that are trusted themselves."""
    trusted = {
        "trusted_ips": ("10.0.0.0/8", "127.0.0.1"),
        "real_ip_header": "X-Forwarded-For",
        "real_ip_recursive": recursive,
        **OFF,
    }
    with echo() as upstream, live(tmp_path, gateway_to(upstream, **trusted)) as gateway:
        told = told_headers(gateway, X_Forwarded_For="198.51.100.1, 192.0.2.7, 10.0.0.9")
        assert told["x-real-ip"] == client
        assert told_headers(gateway, X_Forwarded_For="nonsense")["x-real-ip"] == "127.0.0.1"


@pytest.mark.parametrize("recursive", [False, True])
def test_trusted_proxy_names_the_client_as_nginx_reads_it(tmp_path, recursive):
    """With a port, an IPv6 address then in brackets; empty elements do not count (RFC 9110 5.6.1.2)."""
    trusted = {
        "trusted_ips": ("127.0.0.0/8",),
        "real_ip_header": "X-Forwarded-For",
        "real_ip_recursive": recursive,
        **OFF,
    }
    said = {
        "192.0.2.7:555": "192.0.2.7",
        "[2001:db8::1]:77": "2001:db8::1",
        "2001:db8::1": "2001:db8::1",
        "192.0.2.7, ,": "192.0.2.7",
        "192.0.2.7,127.0.0.5:99": "192.0.2.7" if recursive else "127.0.0.5",
        "[2001:db8::1]": "127.0.0.1",
        "192.0.2.7:0": "127.0.0.1",
        "192.0.2.7:65536": "127.0.0.1",
        "192.0.2.7:": "127.0.0.1",
        "fe80::1%eth0": "127.0.0.1",
        "": "127.0.0.1",
    }
    with echo() as upstream, live(tmp_path, gateway_to(upstream, **trusted)) as gateway:
        assert {named: told_headers(gateway, X_Forwarded_For=named)["x-real-ip"] for named in said} == said


class Told:
    """Answers with what the PDK says of the client."""

    PRIORITY = 1
    VERSION = "1"

    def access(self, kong, _conf):
        """Answer."""
        names = ("scheme", "host", "port", "path", "prefix")
        said = {name: getattr(kong.request, f"get_forwarded_{name}")() for name in names}
        protocols = [kong.client.get_protocol(), kong.client.get_protocol(allow_terminated=True)]
        client = {"client": kong.client.get_forwarded_ip(), "peer": kong.client.get_ip(), "protocols": protocols}
        kong.response.exit(200, said | client)


@pytest.mark.parametrize("trusts", [True, False])
def test_plugins_are_told_of_the_client_what_a_trusted_proxy_says(tmp_path, trusts):
    """And what the connection says when it is a stranger."""
    options = {"trusted_ips": ("127.0.0.1",) if trusts else (), "plugins": (Plugin(name="told"),), **OFF}
    sent = FALSE | {"X_Forwarded_Host": "user@Other.example:81", "X_Forwarded_Port": "nonsense"}
    with live(tmp_path, gateway_to(1, route={"paths": ("/a",)}, **options), {"told": Told}) as gateway:
        headers = {name.replace("_", "-"): value for name, value in sent.items()}
        said = json.loads(gateway.request("GET", "/a/%62", headers=headers).content)
        port = gateway.port

    named = {"scheme": "https", "host": "other.example", "port": 81, "path": "/other", "prefix": "/prefix"}
    seen = {"scheme": "http", "host": "127.0.0.1", "port": port, "path": "/a/b", "prefix": "/a"}
    client = {"client": "192.0.2.8", "protocols": ["http", "https"]} if trusts else {"client": "127.0.0.1"}
    assert said == {"protocols": ["http", "http"], "peer": "127.0.0.1"} | (named if trusts else seen) | client


@pytest.mark.parametrize(
    ("trusts", "proto", "status"), [(True, "https", 200), (True, "http", 426), (False, "https", 426)]
)
def test_route_for_https_alone_takes_what_a_trusted_proxy_has_received_over_tls(tmp_path, trusts, proto, status):
    """Strangers, and what came plainly, are told to come again."""
    options = {"trusted_ips": ("127.0.0.1",) if trusts else (), "route": {"protocols": ("https",)}, **OFF}
    with echo() as upstream, live(tmp_path, gateway_to(upstream, **options)) as gateway:
        assert gateway.request(headers={"X-Forwarded-Proto": proto}).status == status


# Time.


def test_slow_client_is_408(tmp_path):
    """A header section or a body that does not come in time."""
    # A client that a busy machine keeps from sending anything for so long is only closed.
    nginx = Nginx(client_header_timeout="2s", client_body_timeout="2s")
    late = GET[:-2], b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 9\r\n\r\nhalf"
    with (
        echo() as upstream,
        live(tmp_path, gateway_to(upstream, nginx=nginx, **OFF)) as gateway,
        ThreadPoolExecutor(2) as clients,
    ):
        assert [answer[:13] for answer in clients.map(gateway.exchange, late)] == [b"HTTP/1.1 408 "] * 2


def test_client_that_asks_no_more_is_closed(tmp_path):
    """Without another word, after `keepalive_timeout`."""
    nginx = Nginx(keepalive_timeout="500ms")
    with echo() as upstream, live(tmp_path, gateway_to(upstream, nginx=nginx, **OFF)) as gateway:
        answered = gateway.exchange(GET)
        assert (answered[:12], answered.count(b"HTTP/1.1")) == (b"HTTP/1.1 200", 1)


# Hostile input.


def test_clients_that_never_ask_make_room_for_those_that_do(tmp_path):
    """With `worker_connections` taken by silent clients the oldest of them are closed, and nobody is turned away."""
    nginx = Nginx(worker_connections=24)
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(echo())
        gateway = stack.enter_context(live(tmp_path, gateway_to(upstream, nginx=nginx, **OFF)))
        silent = [stack.enter_context(gateway.connect()) for _ in range(60)]
        assert [gateway.request().status for _ in range(5)] == [200] * 5
        assert silent[0].recv(1) == b""
        reading = gateway.scoreboard.read()
        gateway.wait_logged("24 worker_connections are not enough, reusing connections")
    assert reading.sum("connections_refused") == 0


def test_hostile_clients_harm_nobody_else(tmp_path):
    """A steady client is served all the while, and the worker is as it was: no growth, no crash, nothing open."""
    generator = random.Random(3)
    options = OFF | {"nginx": Nginx(keepalive_requests=1_000_000)}  # the steady client keeps its connection
    with application_server() as upstream, live(tmp_path, gateway_to(upstream, **options)) as gateway:
        steady = socket.create_connection(("127.0.0.1", gateway.port), peers.TIMEOUT_S)

        def attack(count):
            for number in range(count):
                with gateway.connect() as hostile, contextlib.suppress(ConnectionError):
                    for part in hostile_parts(generator):
                        hostile.sendall(part)
                if number % 10 == 0:
                    steady.sendall(GET)
                    assert steady.recv(65536).startswith(b"HTTP/1.1 200 ")

        attack(40_000 if SOAK else 900)  # memory is warm then: the worker has looked for garbage (`GC_THRESHOLD`)
        memory = Memory(gateway)
        attack(200_000 if SOAK else 1200)
        assert memory.grown() < 4
        steady.close()
        worker = psutil.Process(gateway.wait_requests(210).workers[0].pid)
        gateway.wait_until(lambda _: not clients_of(worker, gateway.port))
        assert len(gateway.scoreboard.read().workers) == 1
        assert "Traceback" not in gateway.log.read_text()
        gateway.stop()


def clients_of(worker, port):
    """The connections of clients that a worker has open."""
    return [c for c in worker.net_connections("tcp") if c.laddr.port == port and c.status != psutil.CONN_LISTEN]
