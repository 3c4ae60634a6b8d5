"""The exporter: drives a worker's queues and posts what they send, as OTLP/HTTP.

A queue decides, the exporter waits and sends (`kongtrace.queue`). Each queue has at most one job, which is a timer of
the worker: it runs in phase `timer`, never in a request's way, and keeps a quitting worker alive until it has drained.
One request at a time and queue, on a kept connection, plain or secured; certificates are checked.

What waits is bounded by the queue, what is being sent by the batch, what is read of an answer by `ANSWER_BYTES_MAX`.
A large body is compressed and written piece by piece: between two pieces the worker serves its requests.

Timeouts: *connect* is for the connection and its TLS handshake; *send* for each piece to be taken by the collector's
side; *read* for each wait for a part of the answer. What bounds the whole attempt comes from the environment
(`sim.config.Export`), else from the profile. All in s here, in ms in the plugin's configuration, where 0 stands for
nginx's 60 s.

Answers: what counts as success is the profile's (`kongtrace.queue_profile.QueueProfile`).
"""

import asyncio
import contextlib
import os
import ssl
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from typing import Final
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from kongtrace.delivery import Job, Send
from kongtrace.otlp import encode_traces
from kongtrace.queue import Queue, Queues
from kongtrace.queue_profile import Outcome, QueueProfile
from sim import __version__
from sim.config import Export, present, trusting
from sim.connection_table import unlimited
from sim.field import host_of
from sim.framing import HeaderLines
from sim.outline import ResponseOutline
from sim.resolver import Resolver
from sim.runtime import ConnectTimeoutError, Runtime, Tls
from sim.timers import Timers
from sim.upstream import Pool, UpstreamConnection

ANSWER_BYTES_MAX: Final = 64 * 1024
"""How much of an answer's body is read."""

RESCHEDULE_S: Final = 0.1
"""When a queue asks for a timer again that was not run."""

RETRY_AFTER_S_MAX: Final = 3600.0
"""How long an answer can stop a queue: one bad header must not do so for good."""

LOGGED_BYTES_MAX: Final = 2048
"""How much of it is logged: what nginx makes of a line, `NGX_MAX_ERROR_STR`."""

PIECE_BYTES: Final = 64 * 1024
"""How much of a body is compressed, or written, at once."""

GZIP_LEVEL: Final = 1
"""Of 200 spans, 23 kB: level 1 leaves 27 % in 77 us, level 6 24 % in 195 us."""

SOCKET_TIMEOUT_S: Final = 60.0
"""What a timeout of 0 stands for, as the Lua module of nginx takes only one above 0 from its caller: the default of
its directives `lua_socket_connect_timeout`, `lua_socket_send_timeout` and `lua_socket_read_timeout`, 60s in its
manual."""

_FRAMING: Final = ("content-length", "transfer-encoding")  # it is the body's, whatever somebody configures
_NS_PER_S: Final = 1_000_000_000
_GZIP_WINDOW: Final = 31  # the largest window, with gzip's header and trailer


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one attempt waits for what, in s.

    Attributes:
        connect: for the connection.
        send: for a piece of the request to be taken.
        read: for a part of the answer.
        attempt: for all of it; None: no limit of its own.
    """

    connect: float
    send: float
    read: float
    attempt: float | None = None


def seconds(timeout_ms: int) -> float:
    """Convert a timeout of a plugin's configuration."""
    return timeout_ms / 1000 if timeout_ms else SOCKET_TIMEOUT_S


Encode = Callable[[list[bytes], bytes], bytes]
"""Makes the body of a request of its encoded entries and the encoded resource."""


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """Where a plugin exports to.

    Attributes:
        host: name or address.
        port: TCP port.
        head: request line and headers, but for the length of the body.
        resource: encoded resource.
        timeouts: of each attempt.
        gzip: the body is compressed.
        tls: how its connections are secured; None: they are plain.
        encode: makes a request's body of entries and resource.
    """

    host: str
    port: int
    head: bytes
    resource: bytes
    timeouts: Timeouts
    gzip: bool
    tls: Tls | None
    encode: Encode


class Exporter:
    """Drives the queues of one worker.

    Args:
        profile: of the queues.
        runtime: of the worker.
        timers: of the worker; every job is one.
        resolver: of the endpoint's host.
        export: what the environment says of every endpoint.
        trusted: authorities whose certificates are taken (`sim.config.trusting`).
        admits: whether one more connection may be opened.
        log: takes a level and a message.
        on_change: called when the queues' accounts have changed.

    Attributes:
        queues: of the worker's spans.
        other_queues: of what is no span, and in no account of spans: log records, and what plugins queue themselves.
    """

    def __init__(
        self,
        profile: QueueProfile,
        runtime: Runtime,
        timers: Timers,
        resolver: Resolver,
        export: Export,
        trusted: Sequence[str | bytes],
        log: Callable[[str, str], None],
        on_change: Callable[[], None],
        admits: Callable[[], bool] = unlimited,
    ) -> None:
        self._profile = profile
        self._runtime = runtime
        self._timers = timers
        self._resolver = resolver
        self._export = export
        self._trusted = trusted if export.certificate is None else (export.certificate,)
        self._attempt_s = profile.attempt_s if export.timeout is None else export.timeout
        self._log = log
        self._on_change = on_change
        self._pool = Pool(runtime, admits)
        self.queues = Queues(profile, log, runtime.random, self._schedule)
        self.other_queues = Queues(profile, log, runtime.random, self._schedule)

    def endpoint(
        self,
        url: str,
        headers: Mapping[str, str],
        resource: bytes,
        *,
        connect_timeout: int,
        send_timeout: int,
        read_timeout: int,
        encode: Encode = encode_traces,
    ) -> Endpoint:
        """Make the endpoint of a URL, from what a plugin's configuration says.

        Args:
            url: http or https.
            headers: they replace those of the same name that the environment gives (O18).
            resource: encoded resource.
            connect_timeout: ms.
            send_timeout: ms.
            read_timeout: ms.
            encode: makes a request's body of entries and resource.
        """
        parts = urlsplit(url)
        host, is_secure = host_of(parts), parts.scheme == "https"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        gzip = (self._export.compression or self._profile.compression) == "gzip"
        ours = {
            "Host": parts.netloc.rpartition("@")[2],
            "User-Agent": f"kongsim/{__version__}",
            "Content-Type": "application/x-protobuf",
            **({"Content-Encoding": "gzip"} if gzip else {}),
        }
        given = (*ours.items(), *self._export.headers.items(), *headers.items())
        lines = {name.lower(): f"{name}: {value}\r\n" for name, value in given}
        head = "".join(line for name, line in lines.items() if name not in _FRAMING)
        return Endpoint(
            host,
            parts.port or (443 if is_secure else 80),
            f"POST {path} HTTP/1.1\r\n{head}".encode(),
            resource,
            Timeouts(seconds(connect_timeout), seconds(send_timeout), seconds(read_timeout), self._attempt_s or None),
            gzip,
            Tls(self._tls, host) if is_secure else None,
            encode,
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        context, export = trusting(self._trusted), self._export
        if export.client_certificate is not None and export.client_key is not None:
            present(context, export.client_certificate, export.client_key)
        return context

    @property
    def connections(self) -> int:
        """Connections that are open or about to be."""
        return self._pool.size

    @property
    def is_closed(self) -> bool:
        """Whether no connection is open."""
        return not self._pool.open

    def clock_stepped(self, seconds: float) -> None:
        """The wall clock was set forward, or back, which queues of profile kong feel (Q26)."""
        self.queues.clock_stepped(seconds)
        self.other_queues.clock_stepped(seconds)

    def close(self) -> None:
        """Close every connection; what is under way is given up, and nobody is told."""
        self._pool.close()

    async def send(self, endpoint: Endpoint, spans: list[bytes]) -> Outcome:
        """Post one batch of encoded spans."""
        attempt_s = endpoint.timeouts.attempt
        try:
            if attempt_s is None:
                post = await self._post(endpoint, spans)
            else:
                async with asyncio.timeout(attempt_s):
                    post = await self._post(endpoint, spans)
        except OSError as error:
            reason = f"failed to send request: {_reason(error)}"
            self._log("error", f"[otel] {reason}")
            return Outcome(ok=False, reason=reason)
        profile, status, answer = self._profile, post.status, post.body
        if status in profile.accepted:
            if not answer or not profile.counts_partial_success:
                return profile.outcome(status)
            if len(answer) == ANSWER_BYTES_MAX:
                self._log("warn", "[otel] the collector's answer is too long to tell whether it has refused spans")
            partial = _partial_success(answer)
            if partial.error_message:
                self._log("warn", f"[otel] the collector says: {partial.error_message[:LOGGED_BYTES_MAX]}")
            return profile.outcome(status, refused=max(0, partial.rejected_spans))
        retry_after_s = _retry_after(post.lines, self._runtime.time_ns() / _NS_PER_S)
        text = answer[:LOGGED_BYTES_MAX].decode(errors="replace")
        outcome = profile.outcome(status, text, retry_after_s=retry_after_s)
        self._log("error", f"[otel] {outcome.reason}")
        return outcome

    async def _post(self, endpoint: Endpoint, spans: list[bytes]) -> "_Post":
        body = endpoint.encode(spans, endpoint.resource)
        if endpoint.gzip:
            body = await self._compress(body)
        host, port = endpoint.host, endpoint.port
        address = self._resolver.known(host, port) or await self._resolver.resolve(host, port)
        place = address if endpoint.tls is None else (*address, endpoint.tls)
        connection = self._pool.take(place)
        if connection is None:
            connection = await self._pool.connect(place, endpoint.timeouts.connect)
            # So that `pause` and `resume` tell what was taken; at 0 uvloop's TLS pauses with nothing left to write.
            connection.transport.set_write_buffer_limits(1, 0)
        post = _Post(connection, endpoint.timeouts)
        try:
            request = b"%bContent-Length: %d\r\n\r\n%b" % (endpoint.head, len(body), body)
            if not post.start(request):
                await post.send_rest(request)
            await post.answered
        finally:
            connection.give_up(post)
        return post

    async def _compress(self, body: bytes) -> bytes:
        compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        pieces = [compressor.compress(body[:PIECE_BYTES])]
        for start in range(PIECE_BYTES, len(body), PIECE_BYTES):
            await self._turn()
            pieces.append(compressor.compress(body[start : start + PIECE_BYTES]))
        pieces.append(compressor.flush())
        return b"".join(pieces)

    async def _turn(self) -> None:
        """Let the requests of the worker have their turn."""
        turned = asyncio.get_running_loop().create_future()
        self._runtime.call_later(0, turned.set_result, None)
        await turned

    def _schedule(self, _name: str | None, job: Job) -> str | None:
        _created, error = self._timers.at(0, self._drive, job, on_lost=partial(self._lost, job))
        return error

    def _lost(self, job: Job) -> None:
        """Take note that a job's timer was not run; in profile safe another will be, once some may have ended."""
        if job.lost(self._runtime.now()):
            self._runtime.call_later(RESCHEDULE_S, self._schedule_again, job)
        self._on_change()

    def _schedule_again(self, job: Job) -> None:
        if self._schedule(None, job) is not None:
            self._lost(job)

    async def _drive(self, premature: bool, job: Job) -> None:
        if premature:
            job.premature()
        now, create_future = self._runtime.now, asyncio.get_running_loop().create_future
        waiter = create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        if isinstance(job, Queue):
            job.wake = wake
        try:
            while (action := job.poll(now())) is not None:
                self._on_change()
                if isinstance(action, Send):
                    try:
                        outcome = await action.handler(action.handler_conf, action.entries)
                    except Exception as error:  # noqa: BLE001 - as Kong, which calls it under protection (Q19)
                        outcome = Outcome(ok=False, reason=f"{type(error).__name__}: {error}")
                    job.done(outcome, now())
                else:
                    waiter = create_future()
                    timer = self._runtime.call_later(max(0.0, action.until - now()), wake)
                    try:
                        await waiter
                    finally:
                        timer.cancel()
        finally:
            self._on_change()


class _Post:
    """The exchange of one request of the exporter.

    Attributes:
        answered: done when the answer is complete; raises OSError when it will never be.
        status: of the answer.
        lines: its header lines.
        body: its body, as far as it is read.
    """

    def __init__(self, connection: UpstreamConnection, timeouts: Timeouts) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.lines: HeaderLines = []
        self.body = b""
        self._connection = connection
        self._timeouts = timeouts
        self._taken: asyncio.Future[None] | None = None  # of the piece under way; None: it has been

    def start(self, request: bytes) -> bool:
        """Send the first piece; whether that was all, and has been taken at once."""
        connection = self._connection
        connection.send(self, request[:PIECE_BYTES], timeout_s=self._timeouts.read, whole=False)
        if self._taken is None and len(request) <= PIECE_BYTES:
            connection.end_request()
        return connection.whole_request_sent

    async def send_rest(self, request: bytes) -> None:
        """Send the other pieces, each when the one before has been taken, until the answer has come."""
        connection, timeouts = self._connection, self._timeouts
        connection.wait(timeouts.send)
        for start in range(PIECE_BYTES, len(request), PIECE_BYTES):
            if not await self._is_taken():
                return
            connection.wait(timeouts.send)
            connection.write(request[start : start + PIECE_BYTES])
        if await self._is_taken():
            connection.end_request()
            connection.wait(timeouts.read)

    async def _is_taken(self) -> bool:
        """Wait until what was written has been taken; False: the answer has come before."""
        if self._taken is not None:
            await self._taken
        return not self.answered.done()

    def on_head(self, status: int, lines: HeaderLines, outline: ResponseOutline) -> None:
        del outline
        self.status, self.lines = status, lines

    def on_body(self, data: bytes) -> None:
        self.body += data[: ANSWER_BYTES_MAX - len(self.body)]

    def on_end(self) -> None:
        self.resume()
        if not self.answered.done():
            self.answered.set_result(None)

    def on_flush(self) -> None:
        pass

    def on_lost(self, connection: UpstreamConnection, reason: str, *, timeout: bool) -> None:
        if timeout:
            reason = f"timeout while {'reading' if connection.whole_request_sent else 'sending'}"
        self.resume()
        if not self.answered.done():
            self.answered.set_exception(ConnectionError(reason))

    def pause(self) -> None:
        self._taken = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        taken, self._taken = self._taken, None
        if taken is not None and not taken.done():
            taken.set_result(None)


def _reason(error: OSError) -> str:
    """Say what went wrong, in nginx's words where there are any."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"certificate refused: {error.verify_message}"
        case ConnectTimeoutError():
            return "timeout while connecting"
        case TimeoutError(errno=None):
            return "timeout of the attempt"
        case OSError(errno=int(number)) if not isinstance(error, ssl.SSLError):
            if number < 0:  # as getaddrinfo(3) has them
                return f"the host could not be resolved: {error.strerror}"
            return os.strerror(number).lower()
    return str(error) or "connection reset by peer"  # as a handshake that is cut off is told, without a number


def _partial_success(answer: bytes) -> ExportTracePartialSuccess:
    """Return what a collector says of spans that it refused though it took the others, or of others all the same."""
    response = ExportTraceServiceResponse()
    with contextlib.suppress(DecodeError):
        response.ParseFromString(answer)
    return response.partial_success


def _retry_after(lines: HeaderLines, now_s: float) -> float | None:
    """Return the s that `Retry-After` asks to wait, at most `RETRY_AFTER_S_MAX`: a number, or a date (RFC 9110 10.2.3).

    A date without a zone is one of asctime's format, and UTC like the others (RFC 9110 5.6.7).
    """
    for name, value in lines:
        if name.lower() == b"retry-after":
            text = value.decode("latin-1").strip()
            if text.isdecimal():
                return min(float(text), RETRY_AFTER_S_MAX)
            with contextlib.suppress(ValueError, OverflowError):
                date = parsedate_to_datetime(text)
                date = date if date.tzinfo else date.replace(tzinfo=UTC)
                return min(max(0.0, date.timestamp() - now_s), RETRY_AFTER_S_MAX)
    return None
