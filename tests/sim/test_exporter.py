"""The exporter: where it sends, over what, how long it waits for what, and how it reads an answer."""

import asyncio
import gzip
import random
import socket
import ssl
import time
from contextlib import asynccontextmanager

import pytest
import trustme
import uvloop
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from kongtrace import queue_profile
from kongtrace.otlp import encode_traces
from kongtrace.queue import Counters
from kongtrace.queue_parameters import Binding, QueueParameters
from kongtrace.queue_profile import Outcome
from sim import __version__
from sim.config import Export, Nginx
from sim.exporter import ANSWER_BYTES_MAX, LOGGED_BYTES_MAX, PIECE_BYTES, SOCKET_TIMEOUT_S, Exporter, _retry_after
from sim.resolver import Resolver
from sim.runtime.live import LiveRuntime
from sim.upstream import system_error
from tests import stage
from tests.peers import free_port

NOW_S = 1_793_534_400.0  # 2026-11-01 12:00:00 GMT
LONG_MS = 30_000
SPANS = [b"\x12\x02ab"]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def exporter(profile="kong", export=None, trusted="system", timers=None, log=lambda *_: None, resolver=None):
    """An exporter of the running loop; its queues are not driven without timers."""
    runtime = LiveRuntime(asyncio.get_running_loop(), seed=1)
    profile, resolver = queue_profile.PROFILES[profile], resolver or Resolver(runtime, {})
    trusted = Nginx(lua_ssl_trusted_certificate=trusted).lua_ssl_trusted_certificate
    return Exporter(profile, runtime, timers, resolver, export or Export(), trusted, log, lambda: None)


def endpoint(exporter, url, headers=None, **timeouts):
    """An endpoint of that URL, patient unless told otherwise."""
    given = dict.fromkeys(("connect_timeout", "send_timeout", "read_timeout"), LONG_MS) | timeouts
    return exporter.endpoint(url, headers or {}, b"", **given)


class Collector:
    """What a collector of a few lines saw."""

    def __init__(self):
        self.accepted = 0
        self.requests = []  # headers and body of each
        self.port = 0


async def read_request(reader):
    """Read one request; None: there is no other."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:] if line]
    headers = {name.lower(): value for name, _, value in lines}
    return headers, await reader.readexactly(int(headers[b"content-length"]))


@asynccontextmanager
async def collecting(answer=None, context=None):
    """Run a collector that answers each request with `answer(reader, writer)`, else with 200."""
    seen = Collector()
    connections = []

    async def serve(reader, writer):
        seen.accepted += 1
        connections.append((asyncio.current_task(), writer))
        try:
            while True:
                if answer is not None:
                    await answer(reader, writer)
                    continue
                seen.requests.append(await read_request(reader))
                writer.write(OK)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass

    sock = socket.create_server(("127.0.0.1", 0))  # a name would start threads, which later tests' signals may hit
    server = await asyncio.start_server(serve, sock=sock, ssl=context)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        for task, writer in connections:
            writer.transport.abort()
            task.cancel()
        await asyncio.wait([task for task, _ in connections] or [asyncio.create_task(server.wait_closed())])


def outcomes(scenario):
    """Run a scenario on the loop that workers have."""
    return uvloop.run(scenario())


# Where it sends.


def test_endpoint_is_what_the_url_says():
    """Host, port and target come from the URL; the port has a default for each scheme."""

    async def scenario():
        made = exporter()
        full, bare, secure = (
            endpoint(made, url)
            for url in ("http://collector:4318/v1/traces?key=1", "http://collector", "https://collector")
        )
        assert (full.host, full.port) == ("collector", 4318)
        assert full.head.startswith(b"POST /v1/traces?key=1 HTTP/1.1\r\nHost: collector:4318\r\n")
        assert (bare.port, secure.port) == (80, 443)

    outcomes(scenario)


def test_configured_headers_are_sent_and_may_replace_the_content_type():
    """Headers of the configuration go before those of the environment, and both before ours."""  # O18

    async def scenario():
        made = exporter(export=Export(headers={"X-Key": "environment", "X-Tenant": "t"}))
        head = endpoint(made, "http://c/", {"X-Key": "plugin"}).head
        assert b"Content-Type: application/x-protobuf\r\nX-Key: plugin\r\nX-Tenant: t\r\n" in head
        assert b"Content-Type: a/b\r\n" in endpoint(made, "http://c/", {"Content-Type": "a/b"}).head

    outcomes(scenario)


def test_no_header_is_sent_twice_or_frames_the_request_anew():
    """Names are compared without their case, as Kong's client does, and what frames the body is not configured."""

    async def scenario():
        made = exporter(export=Export(headers={"x-key": "environment", "content-length": "1"}))
        configured = {"content-type": "a/b", "X-Key": "plugin", "HOST": "other", "Transfer-Encoding": "chunked"}
        lines = endpoint(made, "http://c/", configured).head.split(b"\r\n")[1:-1]
        agent = f"User-Agent: kongsim/{__version__}".encode()
        assert lines == [b"HOST: other", agent, b"content-type: a/b", b"X-Key: plugin"]

    outcomes(scenario)


def test_a_timeout_of_zero_is_that_of_nginx():
    """0 stands for the 60 s that a socket has by default."""  # O6

    async def scenario():
        timeouts = endpoint(exporter(), "http://c/", connect_timeout=0, send_timeout=1, read_timeout=2000).timeouts
        assert (timeouts.connect, timeouts.send, timeouts.read) == (SOCKET_TIMEOUT_S, 0.001, 2.0)

    outcomes(scenario)


# Over what.


@pytest.fixture(scope="module")
def authority():
    """An authority that the system does not know."""
    return trustme.CA()


@pytest.fixture
def trusted(authority, tmp_path):
    """The file of its certificate."""
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)
    return str(file)


def secured(authority, name):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_requests_share_a_connection(scheme, authority, trusted):
    """The second request goes over the connection of the first, plain or secured."""

    async def scenario():
        context = secured(authority, "127.0.0.1") if scheme == "https" else None
        async with collecting(context=context) as collector:
            made = exporter(trusted=trusted)
            to = endpoint(made, f"{scheme}://127.0.0.1:{collector.port}/v1/traces")
            outcomes = [await made.send(to, SPANS) for _ in range(2)]
            assert [outcome.ok for outcome in outcomes] == [True, True]
            assert [body for _, body in collector.requests] == [encode_traces(SPANS, b"")] * 2
            assert collector.accepted == 1
            made.close()

    outcomes(scenario)


@pytest.mark.parametrize("is_secured", [False, True])
def test_a_body_of_any_size_arrives(is_secured, authority, trusted):
    """It goes piece by piece, each when the one before has been taken, over TLS too."""
    spans = [random.Random(1).randbytes(8 * 1024 * 1024)]

    async def scenario():
        async with collecting(context=secured(authority, "127.0.0.1") if is_secured else None) as collector:
            made = exporter(trusted=trusted)
            scheme = "https" if is_secured else "http"
            outcome = await made.send(endpoint(made, f"{scheme}://127.0.0.1:{collector.port}/"), spans)
            assert outcome.ok, outcome
            assert [body for _, body in collector.requests] == [encode_traces(spans, b"")]
            made.close()

    outcomes(scenario)


@pytest.mark.parametrize(
    ("name", "trusts", "reason"),
    [
        ("127.0.0.1", False, "unable to get local issuer certificate"),
        ("other.test", True, "IP address mismatch, certificate is not valid for '127.0.0.1'."),
    ],
)
def test_a_certificate_that_does_not_hold_is_refused(name, trusts, reason, authority, trusted):
    """It has to come from a trusted authority and to be for that host; nothing is sent before."""

    async def scenario():
        async with collecting(context=secured(authority, name)) as collector:
            made = exporter(trusted=trusted if trusts else "system")
            outcome = await made.send(endpoint(made, f"https://127.0.0.1:{collector.port}/"), SPANS)
            assert outcome.reason == f"failed to send request: certificate refused: {reason}"
            assert collector.requests == []

    outcomes(scenario)


def test_several_authorities_are_trusted(authority, trusted, tmp_path):
    """Those of the system may be among them, as Kong takes a list."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)

    async def scenario():
        async with collecting(context=secured(authority, "127.0.0.1")) as collector:
            for several in (f"system,{trusted}", f"{other}, {trusted}"):
                made = exporter(trusted=several)
                outcome = await made.send(endpoint(made, f"https://127.0.0.1:{collector.port}/"), SPANS)
                assert outcome.ok
                made.close()

    outcomes(scenario)


def test_the_certificate_of_the_environment_goes_first(authority, trusted, tmp_path):
    """`OTEL_EXPORTER_OTLP_CERTIFICATE` replaces `lua_ssl_trusted_certificate`."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)

    async def scenario():
        async with collecting(context=secured(authority, "127.0.0.1")) as collector:
            made = exporter(export=Export(certificate=trusted), trusted=str(other))
            outcome = await made.send(endpoint(made, f"https://127.0.0.1:{collector.port}/"), SPANS)
            assert outcome.ok
            made.close()

    outcomes(scenario)


def test_a_collector_that_asks_who_is_there_is_shown_the_client_certificate(authority, trusted, tmp_path):
    """`OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE` and its key; without them the collector sends the exporter away."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued = authority.issue_cert("client.test")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    context = secured(authority, "127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(trusted)

    async def scenario():
        async with collecting(context=context) as collector:
            for export, is_taken in (
                (Export(client_certificate=str(cert), client_key=str(key)), True),
                (Export(), False),
            ):
                made = exporter(export=export, trusted=trusted)
                outcome = await made.send(endpoint(made, f"https://127.0.0.1:{collector.port}/"), SPANS)
                assert outcome.ok == is_taken, outcome
                made.close()

    outcomes(scenario)


def test_an_alert_of_tls_is_told_by_its_name():
    """The number of such an error is OpenSSL's: as one of the system's it said "Operation not permitted"."""
    alert = ssl.SSLError(
        ssl.SSL_ERROR_SSL, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required"
    )

    assert system_error("recv()", alert) == f"recv() failed: {alert}"


# How long it waits for what.


async def silent(reader, _writer):
    """Read everything and answer nothing."""
    if not await reader.read(PIECE_BYTES):
        raise ConnectionError


async def deaf(_reader, writer):
    """Read nothing."""
    writer.transport.pause_reading()
    await asyncio.Event().wait()


def failure(answer, *, spans=SPANS, scheme="http", export=None, **timeouts):
    async def scenario():
        async with collecting(answer) as collector:
            made = exporter(export=export)
            to = endpoint(made, f"{scheme}://127.0.0.1:{collector.port}/", **timeouts)
            outcome = await made.send(to, spans)
            while not made.is_closed:  # a connection that failed is not kept
                await asyncio.sleep(0)
            return outcome.reason.removeprefix("failed to send request: ")

    return uvloop.run(scenario())


def test_connect_timeout_is_for_the_connection_and_its_handshake():
    """A server that accepts and never greets is given up."""
    assert failure(silent, scheme="https", connect_timeout=50) == "timeout while connecting"


def test_a_handshake_that_is_cut_off_has_a_reason():
    """The library gives none."""

    async def close(reader, writer):
        await reader.read(PIECE_BYTES)
        writer.close()
        raise ConnectionError

    assert failure(close, scheme="https") == "connection reset by peer"


def test_send_timeout_is_for_a_collector_that_does_not_read():
    """A body too large for the sockets' buffers is never taken."""
    body = [random.Random(1).randbytes(32 * 1024 * 1024)]
    assert failure(deaf, spans=body, send_timeout=100) == "timeout while sending"


def test_read_timeout_is_for_a_collector_that_does_not_answer():
    """All was taken, and nothing comes back."""
    assert failure(silent, read_timeout=50) == "timeout while reading"


def test_timeout_of_the_attempt_ends_what_the_others_let_pass():
    """A collector that sends its answer byte by byte is never late for one of them."""  # OTEL_EXPORTER_OTLP_TIMEOUT

    async def drip(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.01)
        raise ConnectionError

    assert failure(drip, export=Export(timeout=0.2)) == "timeout of the attempt"


def test_an_attempt_of_safe_has_10_s_unless_the_environment_says_otherwise():
    """Kong's has all the time that its parts take; 0 is no limit."""

    async def scenario():
        for profile, export, limit_s in (
            ("safe", Export(), 10.0),
            ("safe", Export(timeout=2.5), 2.5),
            ("safe", Export(timeout=0), None),
            ("kong", Export(), None),
        ):
            assert endpoint(exporter(profile, export), "http://c/").timeouts.attempt == limit_s

    outcomes(scenario)


def test_a_refused_connection_is_told_in_the_words_of_nginx():
    """The reason is the system's, without its number."""

    async def scenario():
        made = exporter()
        return (await made.send(endpoint(made, f"http://127.0.0.1:{free_port()}/"), SPANS)).reason

    assert uvloop.run(scenario()) == "failed to send request: connection refused"


def test_a_host_that_nobody_knows_is_told_in_words():
    """Without the number of the resolver's error."""

    class Resolver:  # the system's would start threads, which later tests' signals may hit
        def known(self, *_where):
            return None

        async def resolve(self, *_where):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def scenario():
        made = exporter(resolver=Resolver())
        return (await made.send(endpoint(made, "http://nobody.invalid/"), SPANS)).reason

    reason = uvloop.run(scenario())
    assert reason == "failed to send request: the host could not be resolved: Name or service not known"


def test_an_answer_before_the_end_of_the_request_counts_and_ends_the_connection():
    """What was still to be sent would be taken for the next request."""

    async def too_large(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.Event().wait()

    async def scenario():
        async with collecting(too_large) as collector:
            made = exporter()
            to = endpoint(made, f"http://127.0.0.1:{collector.port}/")
            outcomes = [await made.send(to, [bytes(32 * 1024 * 1024)]) for _ in range(2)]
            assert [outcome.status for outcome in outcomes] == [413, 413]
            assert collector.accepted == 2

    outcomes(scenario)


# Compression.


@pytest.mark.parametrize(
    ("profile", "asked", "coding"),
    [
        ("kong", None, None),
        ("safe", None, b"gzip"),
        ("kong", "gzip", b"gzip"),
        ("safe", "none", None),
    ],
)
def test_compression_is_the_profile_s_unless_the_environment_says_otherwise(profile, asked, coding):
    """A body is sent whole or gzipped, as its header says, also when it is compressed in pieces."""
    body = random.Random(1).randbytes(3 * PIECE_BYTES + 5)

    async def scenario():
        async with collecting() as collector:
            made = exporter(profile, Export(compression=asked))
            outcome = await made.send(endpoint(made, f"http://127.0.0.1:{collector.port}/"), [body])
            [(headers, received)] = collector.requests
            assert outcome.ok
            assert headers.get(b"content-encoding") == coding
            assert (gzip.decompress(received) if coding else received) == encode_traces([body], b"")
            made.close()

    outcomes(scenario)


# Answers.


@pytest.fixture
def tokyo(monkeypatch):
    """Have the local time of Japan."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"120", 120.0),
        (b"Sun, 01 Nov 2026 12:00:30 GMT", 30.0),
        (b"Sun, 01 Nov 2026 11:00:00 GMT", 0.0),
        (b"Sun Nov  1 12:00:30 2026", 30.0),
        (b"99999999999", 3600.0),
        (b"9" * 400, 3600.0),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        (b"soon", None),
        (b"Sun, 01 Nov 99999999999999999999 12:00:30 GMT", None),
        (b"Sun, 01 Nov 2026 12:00:30 -9999", None),
        (b"\xb2", None),
        (None, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value, seconds, tokyo):
    """Seconds or an HTTP date, which is UTC anywhere; at most an hour; what is neither is as if it were not there."""
    lines = [] if value is None else [(b"Retry-After", value)]
    assert _retry_after(lines, NOW_S) == seconds  # RFC 9110 5.6.7, 10.2.3


@pytest.mark.parametrize(
    ("said", "refused", "lines"),
    [
        ({"rejected_spans": 2, "error_message": "too old"}, 2, ["warn: [otel] the collector says: too old"]),
        ({"error_message": "mind the gap"}, 0, ["warn: [otel] the collector says: mind the gap"]),
        ({"rejected_spans": -1}, 0, []),
        (b"\xff not protobuf", 0, []),
        (
            {"rejected_spans": 2, "error_message": "a" * ANSWER_BYTES_MAX},
            0,
            ["warn: [otel] the collector's answer is too long to tell whether it has refused spans"],
        ),
        ({}, 0, []),
    ],
)
def test_partial_success_says_how_many_spans_were_refused_and_why(said, refused, lines):
    """In the answer's body; a warning alone refuses none."""  # OTLP, Partial Success
    body = said if isinstance(said, bytes) else _response(said)
    logged = []

    async def answer(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async def scenario():
        async with collecting(answer) as collector:
            made = exporter("safe", log=lambda level, line: logged.append(f"{level}: {line}"))
            outcome = await made.send(endpoint(made, f"http://127.0.0.1:{collector.port}/"), SPANS)
            assert outcome == Outcome(ok=True, status=200, refused=refused)
            made.close()

    outcomes(scenario)
    assert logged == lines


def _response(said):
    return ExportTraceServiceResponse(partial_success=said).SerializeToString()


REFUSED = _response({"rejected_spans": 3})


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n" + REFUSED, Outcome(ok=True, status=200, refused=3)),
        (b"HTTP/1.1 200 OK\r\n\r\n" + REFUSED, Outcome(ok=True, status=200, refused=3)),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
            b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%b\r\n0\r\nTrailer: a\r\n\r\n"
            % (len(REFUSED), REFUSED),
            Outcome(ok=True, status=202, refused=3),
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Outcome(ok=True, status=204)),
        (
            b"HTTP/1.1 307 Over there\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            Outcome(ok=False, status=307, reason="response error: 307, body: "),
        ),
        (b"", "upstream prematurely closed connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "upstream prematurely closed connection"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "upstream sent an invalid response: "),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", "upstream sent an invalid response: "),
        (b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", "upstream sent an invalid response: "),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "upstream sent an invalid response: "),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000, "upstream sent too big header"),
    ],
)
def test_whatever_answers_is_understood_or_is_a_failure(answer, outcome):
    """In profile safe; a failure without a status is tried again. The server closes behind its answer."""

    async def odd(reader, writer):
        await read_request(reader)
        writer.write(answer)
        writer.close()

    async def scenario():
        async with collecting(odd) as collector:
            made = exporter("safe")
            return await made.send(endpoint(made, f"http://127.0.0.1:{collector.port}/"), SPANS)

    came = uvloop.run(scenario())
    if isinstance(outcome, str):
        assert (came.ok, came.status) == (False, None)
        assert came.reason.startswith(f"failed to send request: {outcome}")
    else:
        assert came == outcome


def test_as_much_of_an_answer_is_logged_as_nginx_logs():
    """A collector that answers every attempt with a page of 64 KiB does not fill the disk."""

    async def page(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 500 Oh\r\nConnection: close\r\nContent-Length: 60000\r\n\r\n" + b"e" * 60_000)
        await reader.read()

    assert failure(page) == f"response error: 500, body: {'e' * LOGGED_BYTES_MAX}"


@pytest.mark.parametrize("profile", ["kong", "safe"])
def test_a_handler_that_raises_has_failed_and_its_batch_is_tried_again(profile):
    """The queue outlives it, as in Kong, which calls it under protection."""  # Q19

    async def scenario():
        runtime, idle = LiveRuntime(asyncio.get_running_loop(), seed=1), asyncio.Event()
        lines, batches = [], []
        timers = stage.timers(runtime, on_idle=idle.set)
        made = exporter(profile, timers=timers, log=lambda level, line: lines.append(f"{level}: {line}"))

        async def handler(_conf, entries):
            batches.append(entries)
            if len(batches) == 1:
                raise OverflowError("too large")
            return Outcome(ok=True)

        queue = made.queues.queue("q")
        parameters = QueueParameters("q", max_coalescing_delay=0)
        queue.enqueue(b"a", Binding(parameters, handler), runtime.now())
        await idle.wait()
        assert batches == [[b"a"], [b"a"]]
        assert queue.counters() == Counters(enqueued=1, acknowledged=1)
        assert lines == ["warn: [] queue q: handler could not process entries: OverflowError: too large"]

    outcomes(scenario)


@pytest.mark.parametrize("profile", ["kong", "safe"])
def test_a_queue_whose_timer_is_not_run_gets_another_in_safe(profile):
    """In kong nobody drains it any more."""  # N4, N5, H26

    async def scenario():
        runtime, idle = LiveRuntime(asyncio.get_running_loop(), seed=1), asyncio.Event()
        made = exporter(profile, timers=stage.timers(runtime, places=[False, False], on_idle=idle.set))

        async def handler(_conf, _entries):
            return Outcome(ok=True)

        queue = made.queues.queue("q")
        queue.enqueue(b"a", Binding(QueueParameters("q", max_coalescing_delay=0), handler), runtime.now())
        for _ in range(3 if profile == "safe" else 1):
            await idle.wait()
            idle.clear()
        made.queues.close()
        assert queue.counters() == Counters(enqueued=1, **{"acknowledged" if profile == "safe" else "swallowed": 1})

    outcomes(scenario)
