"""The exporter: drives a worker's queues and posts what they send, as OTLP/HTTP.

A queue decides, the exporter waits and sends (`kongtrace.queue`). Each queue has at most one job, which is a timer of
the worker: it runs in phase `timer`, never in a request's way, and keeps a quitting worker alive until it has drained.
One request at a time and queue, on a kept connection. Timeouts in ms, as in the plugin's configuration.

Answers: what counts as success is the profile's (`kongtrace.queue.QueueProfile`).
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from kongtrace.otlp import encode_traces
from kongtrace.queue import Action, Job, Outcome, Queue, QueueProfile, Queues, Send, Wait
from sim.request import HeaderLines
from sim.resolver import Resolver
from sim.runtime import Runtime
from sim.timers import Timers
from sim.upstream import Pool, UpstreamConnection

ANSWER_BYTES_MAX: Final = 64 * 1024
"""How much of an answer's body is read."""

_NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a plugin exports to.

    Attributes:
        host: name or address.
        port: TCP port.
        head: request line and headers, but for the length of the body.
        resource: encoded resource.
        connect_timeout: ms.
        read_timeout: ms.
    """

    host: str
    port: int
    head: bytes
    resource: bytes
    connect_timeout: int
    read_timeout: int

    @classmethod
    def of(
        cls, url: str, headers: Mapping[str, str], resource: bytes, *, connect_timeout: int, read_timeout: int
    ) -> "Endpoint":
        """Make the endpoint of a URL; `headers` are sent with each request (O18)."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = {"Host": parts.netloc.rpartition("@")[2], "Content-Type": "application/x-protobuf", **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return cls(host, port, f"POST {path} HTTP/1.1\r\n{head}".encode(), resource, connect_timeout, read_timeout)


class Exporter:
    """Drives the queues of one worker.

    Args:
        profile: of the queues.
        runtime: of the worker.
        timers: of the worker; every job is one.
        pool: connections.
        resolver: of the endpoint's host.
        log: takes a level and a message.
        on_change: called when the queues' accounts have changed.

    Attributes:
        queues: of the worker.
    """

    def __init__(
        self,
        profile: QueueProfile,
        runtime: Runtime,
        timers: Timers,
        pool: Pool,
        resolver: Resolver,
        log: Callable[[str, str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._profile = profile
        self._runtime = runtime
        self._timers = timers
        self._pool = pool
        self._resolver = resolver
        self._log = log
        self._on_change = on_change
        self.queues = Queues(profile, log, runtime.random, self._schedule)

    async def send(self, endpoint: Endpoint, spans: list[bytes]) -> Outcome:
        """Post one batch of encoded spans."""
        body = encode_traces(spans, endpoint.resource)
        try:
            connection = await self._connect(endpoint)
            status, lines, answer = await _post(connection, endpoint, body)
        except OSError as error:
            reason = f"failed to send request: {error}"
            self._log("error", f"[otel] {reason}")
            return Outcome(ok=False, reason=reason)
        outcome = self._profile.outcome(
            status,
            answer.decode(errors="replace"),
            retry_after_s=_retry_after(lines, self._runtime.time_ns() / _NS_PER_S),
            refused=_refused(answer) if self._profile.counts_partial_success else 0,
        )
        if not outcome.ok:
            self._log("error", f"[otel] {outcome.reason}")
        return outcome

    async def _connect(self, endpoint: Endpoint) -> UpstreamConnection:
        address = await self._resolver.resolve(endpoint.host, endpoint.port)
        kept = self._pool.take(address)
        return kept if kept is not None else await self._pool.connect(address, endpoint.connect_timeout / 1000)

    def _schedule(self, _name: str | None, job: Job) -> str | None:
        _created, error = self._timers.at(0, self._drive, job)
        return error

    async def _drive(self, premature: bool, job: Job) -> None:
        if premature:
            job.premature()
        try:
            while (action := job.poll(self._runtime.now())) is not None:
                self._on_change()
                await self._do(job, action)
        finally:
            self._on_change()

    async def _do(self, job: Job, action: Action) -> None:
        if isinstance(action, Send):
            outcome = await action.handler(action.handler_conf, action.entries)
            job.done(outcome, self._runtime.now())
        elif isinstance(action, Wait):
            await self._wait(job, action)

    async def _wait(self, job: Job, wait: Wait) -> None:
        waiter = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        if wait.or_entry and isinstance(job, Queue):
            job.wake = wake
        timer = self._runtime.call_later(max(0.0, wait.until - self._runtime.now()), wake)
        try:
            await waiter
        finally:
            timer.cancel()


class _Post:
    """The exchange of one request of the exporter."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, HeaderLines, bytes]] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._lines: HeaderLines = []
        self._body = b""

    def on_head(self, status: int, lines: HeaderLines) -> None:
        self._status, self._lines = status, lines

    def on_body(self, data: bytes) -> None:
        self._body += data[: ANSWER_BYTES_MAX - len(self._body)]

    def on_end(self) -> None:
        if not self.answer.done():
            self.answer.set_result((self._status, self._lines, self._body))

    def on_flush(self) -> None:
        pass

    def on_lost(self, connection: UpstreamConnection, reason: str, *, timeout: bool) -> None:  # noqa: ARG002 - the same
        if not self.answer.done():
            self.answer.set_exception(ConnectionError("timeout" if timeout else reason))

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass


async def _post(connection: UpstreamConnection, endpoint: Endpoint, body: bytes) -> tuple[int, HeaderLines, bytes]:
    post = _Post()
    head = endpoint.head + b"Content-Length: %d\r\n\r\n" % len(body)
    connection.send(post, head + body, timeout_s=endpoint.read_timeout / 1000, bodiless=False)
    return await post.answer


def _refused(answer: bytes) -> int:
    """Return the spans that a collector refused though it took the others (OTLP, Partial Success)."""
    response = ExportTraceServiceResponse()
    with contextlib.suppress(DecodeError):
        response.ParseFromString(answer)
    return int(response.partial_success.rejected_spans)


def _retry_after(lines: HeaderLines, now_s: float) -> float | None:
    """Return the s that `Retry-After` asks to wait: a number, or a date (RFC 9110 10.2.3)."""
    for name, value in lines:
        if name.lower() == b"retry-after":
            text = value.decode("latin-1").strip()
            if text.isdecimal():
                return float(text)
            with contextlib.suppress(ValueError):
                return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    return None
