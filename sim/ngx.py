"""nginx's own API for plugins, in Python spelling: time, sleep, sockets, an HTTP client, a database, the worker.

What waits is awaited. It is refused, when it is called and not only when it is awaited, in a phase that must not wait,
with nginx's message (kong-semantics R2, reference-figures D). Where nginx's functions give nil and a reason, these give
None and a reason: `size, error = await sock.send(data)`.

`now` is nginx's cached clock (R8).
"""

import asyncio
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit
from weakref import finalize

from kongtrace import ApiError, Execution
from kongtrace.lua import lua_lower, lua_text
from sim import http_client
from sim.absence import Incomplete
from sim.arguments import checked_args, encoded_args
from sim.cached_clock import CachedClock
from sim.config import SYSTEM, trusting
from sim.field import host_of
from sim.framing import octets
from sim.request import ARG, Part
from sim.runtime import ConnectTimeoutError, Tls
from sim.table import HeaderTable
from sim.timers import Timers
from sim.upstream import Place, Pool

if TYPE_CHECKING:
    import sqlite3

    from sim.instrumentation import Instrumentation
    from sim.resolver import Resolver
    from sim.runtime import Runtime

T = TypeVar("T")

TIMEOUT_S: Final = 60.0
"""Of sockets: nginx's `lua_socket_connect_timeout`, `_send_timeout` and `_read_timeout`."""

ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
"""How much of an answer's body the HTTP client reads."""

_READ_BYTES: Final = 1 << 20
"""What a socket takes at once."""

_ENDS_TARGET: Final = re.compile(r"[\0-\x20\x7f]")
_ENDS_LINE: Final = re.compile(r"[\r\n\0]")

_MISMATCHES: Final = (62, 64)
"""OpenSSL's codes of a certificate for another name, and for another address."""

USER_AGENT: Final = "lua-resty-http/0.17.2 (Lua) ngx_lua/10028"

_PORTS: Final = {"http": 80, "https": 443}
_NS_PER_MS: Final = 1_000_000

Lines = dict[str, list[tuple[str, str]]]
"""Header lines by name in lower case (RFC 9110 5.1)."""

Result = tuple[T | None, str | None]
"""A value and None, or None and the reason why there is none."""


class Network(NamedTuple):
    """What connections out need.

    Attributes:
        resolver: of host names.
        pool: connections that HTTP exchanges share.
        instrumentation: makes spans of look-ups and exchanges.
        trusted: authorities whose certificates are taken (`sim.config.trusting`).
    """

    resolver: "Resolver"
    pool: Pool
    instrumentation: "Instrumentation"
    trusted: Sequence[str | bytes] = (SYSTEM,)


class Ngx(Incomplete):
    """`kong.ngx`.

    Args:
        runtime: of the worker.
        execution: what the worker runs.
        timers: of the worker.
        network: for connections out.
        slot: `worker.id()`.
        workers: `worker.count()`.

    Attributes:
        timer: `ngx.timer`.
        worker: `ngx.worker`.
        socket: `ngx.socket`.
        http: `resty.http`.
        db: a database of the worker.
        clock: the cached one; no part of nginx's API.
        null: what stands for null in JSON and configurations.
    """

    _path = "kong.ngx"
    null: Final = None

    def __init__(
        self,
        runtime: "Runtime",
        execution: Execution,
        timers: Timers,
        network: Network,
        *,
        slot: int = 0,
        workers: int = 1,
    ) -> None:
        self._runtime = runtime
        self._execution = execution
        self.clock = CachedClock(runtime.time_ns, runtime.call_soon)
        self.random = runtime.random
        self.random_bytes = runtime.random_bytes
        self.time_ns = runtime.time_ns
        self.timer = timers
        self.worker = Worker(timers, slot, workers)
        self.socket = Sockets(runtime, execution, network)
        self.http = Http(execution, network)
        self.db = Database(execution, network.instrumentation)

    def now(self) -> float:
        """Return the cached time, s since the epoch, to the ms (R8)."""
        return self.clock.now_ms() / 1000

    def time(self) -> int:
        """Return the cached time in whole s since the epoch (R8)."""
        return int(self.now())

    def update_time(self) -> None:
        """Read the clock again."""
        self.clock.updated_ms()

    def get_phase(self) -> str:
        """Return nginx's name of the phase that runs."""
        return self._execution.phase.name

    @property
    def ctx(self) -> dict[str, Any]:
        """`ngx.ctx`: the context of what runs; a request's own, a timer's own (R4).

        Raises:
            ApiError: nothing runs that has one.
        """
        ctx = self._execution.ctx
        if ctx is None:
            raise ApiError("no request ctx found")
        return ctx

    @property
    def arg(self) -> Part:
        """`ngx.arg` in body_filter: `arg[1]`, the part of the body that passes; `arg[2]`, whether it is the last."""
        part: Part | None = self.ctx.get(ARG)
        if part is None or self._execution.phase.name != "body_filter":
            raise ApiError(disabled(self._execution))
        return part

    def sleep(self, delay_s: float) -> Awaitable[None]:
        """Wait for `delay_s` s, at least for a turn of the event loop.

        Raises:
            ApiError: the phase must not wait.
        """
        check_waits(self._execution)
        if delay_s < 0:
            raise ApiError(f"invalid sleep duration {delay_s:g}")
        return _sleep(self._runtime, delay_s)

    def spend_cpu(self, seconds: float) -> None:
        """Compute for that many s of the process's CPU time: a load of known size; no part of nginx."""
        self._runtime.spend_cpu(seconds)


class Worker(Incomplete):
    """`ngx.worker`."""

    _path = "kong.ngx.worker"

    def __init__(self, timers: Timers, slot: int, workers: int) -> None:
        self._timers = timers
        self._slot = slot
        self._workers = workers

    def id(self) -> int:
        """Return the worker's place, from 0."""
        return self._slot

    def count(self) -> int:
        """Return how many workers are configured."""
        return self._workers

    def exiting(self) -> bool:
        """Return whether the worker is leaving (W16)."""
        return self._timers.exiting

    def pid(self) -> int:
        """Return the process id."""
        return os.getpid()


def disabled(execution: Execution) -> str:
    """Return nginx's message of what the running phase does not permit."""
    return f"API disabled in the context of {execution.phase.context}"


def check_waits(execution: Execution) -> None:
    """Raise ApiError where the running phase must not wait (R2)."""
    if not execution.phase.yields:
        raise ApiError(disabled(execution))


async def _sleep(runtime: "Runtime", delay_s: float) -> None:
    woken = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    timer = runtime.call_later(delay_s, wake) if delay_s >= 0.001 else runtime.call_soon(wake)
    try:
        await woken
    finally:
        timer.cancel()


async def resolve(network: Network, host: str, port: int) -> tuple[str, int]:
    """Return address and port of a host, under a span (I9) that ends with the look-up; raises OSError."""
    span = network.instrumentation.dns_query(host, port)
    try:
        address = await network.resolver.resolve(host, port)
    except (Exception, asyncio.CancelledError) as error:
        network.instrumentation.dns_answer(span, error)
        network.instrumentation.leave_ended()
        raise
    network.instrumentation.dns_answer(span, address)
    network.instrumentation.leave_ended()
    return address


class Sockets(Incomplete):
    """`ngx.socket`."""

    _path = "kong.ngx.socket"

    def __init__(self, runtime: "Runtime", execution: Execution, network: Network) -> None:
        self._runtime = runtime
        self._execution = execution
        self._network = network

    def tcp(self) -> "TcpSocket":
        """Return a TCP socket, not connected.

        Raises:
            ApiError: the phase must not wait.
        """
        check_waits(self._execution)
        return TcpSocket(self._runtime, self._execution, self._network)


class TcpSocket:
    """A TCP socket; it belongs to the request or timer that made it, and to no other (N3)."""

    def __init__(self, runtime: "Runtime", execution: Execution, network: Network) -> None:
        self._runtime = runtime
        self._execution = execution
        self._network = network
        self._ctx = execution.ctx
        self._timeouts_s = (TIMEOUT_S, TIMEOUT_S, TIMEOUT_S)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    def settimeout(self, milliseconds: float) -> None:
        """Set how long each operation may take."""
        self.settimeouts(milliseconds, milliseconds, milliseconds)

    def settimeouts(self, connect_ms: float, send_ms: float, read_ms: float) -> None:
        """Set how long connecting, sending and receiving may take."""
        self._timeouts_s = (connect_ms / 1000, send_ms / 1000, read_ms / 1000)

    async def connect(self, host: str, port: int) -> Result[int]:
        """Connect to a host, name or address; 1 and None, or None and the reason."""
        self._check()
        self.close()
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            async with asyncio.timeout(self._timeouts_s[0]):
                address = await resolve(self._network, host, port)
                await self._runtime.connect(*address, lambda: protocol)
        except TimeoutError:
            return None, "timeout"
        except OSError as error:
            return None, _reason(error)
        transport = cast("asyncio.WriteTransport", reader._transport)  # type: ignore[attr-defined]  # noqa: SLF001 - the protocol keeps it there
        self._reader, self._writer = reader, asyncio.StreamWriter(transport, protocol, reader, loop)
        return 1, None

    async def send(self, data: bytes | str) -> Result[int]:
        """Send; the number of bytes and None, or None and the reason."""
        self._check()
        if self._writer is None:
            return None, "closed"
        sent = octets(data) if isinstance(data, str) else data
        try:
            async with asyncio.timeout(self._timeouts_s[1]):
                self._writer.write(sent)
                await self._writer.drain()
        except TimeoutError:
            return None, "timeout"
        except OSError:
            self.close()
            return None, "closed"
        return len(sent), None

    async def receive(self, what: int | str = "*l") -> tuple[bytes | None, str | None, bytes]:
        """Receive so many bytes, a line without its end ("*l") or all until the other side closes ("*a").

        Returns:
            The data, None and nothing; or None, the reason, and what had come until then.
        """
        self._check()
        if self._reader is None:
            return None, "closed", b""
        got = bytearray()
        partial = b""
        try:
            async with asyncio.timeout(self._timeouts_s[2]):
                if what == "*a":
                    while part := await self._reader.read(_READ_BYTES):
                        got += part
                    return bytes(got), None, b""
                if what == "*l":
                    return (await self._reader.readuntil(b"\n")).rstrip(b"\n").replace(b"\r", b""), None, b""
                return await self._reader.readexactly(int(what)), None, b""
        except TimeoutError:
            return None, "timeout", bytes(got) + await _come(self._reader)
        except asyncio.IncompleteReadError as error:
            partial = error.partial
        except OSError:
            partial = bytes(got)
        self.close()
        return None, "closed", partial

    def close(self) -> Result[int]:
        """Close; 1 and None, or None and the reason."""
        writer, self._writer, self._reader = self._writer, None, None
        if writer is None:
            return None, "closed"
        writer.close()
        return 1, None

    def _check(self) -> None:
        check_waits(self._execution)
        if self._execution.ctx is not self._ctx:
            raise ApiError("bad request")


async def _come(reader: asyncio.StreamReader) -> bytes:
    """Take what has come and was not read: nothing is waited for."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            return await reader.read(_READ_BYTES)
    return b""


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        mismatch = error.verify_code in _MISMATCHES
        return "certificate host mismatch" if mismatch else f"{error.verify_code}: {error.verify_message}"
    if isinstance(error, TimeoutError | ConnectTimeoutError):
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, asyncio.CancelledError):
        return "aborted"
    return (getattr(error, "strerror", None) or str(error)).lower()


class HttpResponse(NamedTuple):
    """What `request_uri` got.

    Attributes:
        status: of the answer.
        headers: by name in any case, the last value of each.
        body: the body.
    """

    status: int
    headers: HeaderTable[str]
    body: bytes


class Http:
    """`resty.http`."""

    def __init__(self, execution: Execution, network: Network) -> None:
        self._execution = execution
        self._network = network
        self._contexts: dict[bool, ssl.SSLContext] = {}

    def new(self) -> "HttpClient":
        """Return a client.

        Raises:
            ApiError: the phase must not wait.
        """
        check_waits(self._execution)
        return HttpClient(self._execution, self._network, self._context)

    def _context(self, verify: bool) -> ssl.SSLContext:
        """Return the context of connections whose certificates are checked, or of those where they are not."""
        context = self._contexts.get(verify)
        if context is None:
            context = self._contexts[verify] = trusting(self._network.trusted)
            if not verify:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


class HttpClient:
    """An HTTP client for single requests."""

    def __init__(self, execution: Execution, network: Network, make_context: Callable[[bool], ssl.SSLContext]) -> None:
        self._execution = execution
        self._network = network
        self._context = make_context
        self._timeouts_s = (TIMEOUT_S, TIMEOUT_S)

    def set_timeout(self, milliseconds: float) -> None:
        """Set how long connecting, and each wait for the answer, may take."""
        self.set_timeouts(milliseconds, milliseconds, milliseconds)

    def set_timeouts(self, connect_ms: float, send_ms: float, read_ms: float) -> None:  # noqa: ARG002 - nginx's signature; what is sent is buffered
        """Set how long connecting, and each wait for the answer, may take."""
        self._timeouts_s = (connect_ms / 1000, read_ms / 1000)

    def request_uri(
        self,
        uri: str,
        params: Mapping[str, Any] | None = None,
    ) -> Awaitable[Result[HttpResponse]]:
        """Make one request; the answer and None, or None and the reason (I11).

        Args:
            uri: `http://host:port/path?query`, or https.
            params: `method`, `headers` (a list of values stands for several lines), `body`, whose length is found
                out, `query` (text or a mapping, as `set_query` takes it), `ssl_verify` (True), `ssl_server_name` (the
                host), all optional.

        Raises:
            ApiError: the phase must not wait.
        """
        check_waits(self._execution)
        return self._request(uri, dict(params or {}))

    async def _request(self, uri: str, params: dict[str, Any]) -> Result[HttpResponse]:
        method = str(params.get("method", "GET")).upper()
        headers = {"user-agent": [("User-Agent", USER_AGENT)], **_lines(params.get("headers") or {})}
        span = self._network.instrumentation.http_client(uri, method, headers["user-agent"][0][1])
        try:
            answer = await self._exchange(uri, method, headers, params)
        except (Exception, asyncio.CancelledError) as error:
            reason = _reason(error)
            self._network.instrumentation.http_answer(span, None, reason)
            if not isinstance(error, OSError | ValueError):
                raise
            return None, reason
        self._network.instrumentation.http_answer(span, answer.status, None)
        named = HeaderTable(
            (name.lower().decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in answer.lines
        )
        return HttpResponse(answer.status, named, answer.body), None

    async def _exchange(self, uri: str, method: str, headers: Lines, params: dict[str, Any]) -> http_client.Answer:
        parts = urlsplit(uri)
        if parts.scheme not in _PORTS or not (server := host_of(parts)):
            raise ValueError(f"bad uri: {uri}")
        body = params.get("body") or b""
        body = octets(body) if isinstance(body, str) else body
        if not isinstance(body, bytes):
            raise ValueError(f"bad body: text expected, got {type(body).__name__}")  # noqa: TRY004 - a reason, as for a bad uri
        query = params.get("query") or parts.query
        if not isinstance(query, str):
            query = encoded_args(checked_args(query))
        target = (parts.path or "/") + (f"?{query}" if query else "")
        framing = [("Content-Length", str(len(body)))] if body or method in ("POST", "PUT", "PATCH") else []
        host = [("Host", parts.netloc.rpartition("@")[2])]
        # Headers that another request came with say how its body was framed.
        named = {"host": host, **headers, "content-length": framing, "transfer-encoding": []}
        lines = [line for same in named.values() for line in same]
        _check_lines(uri, method, target, lines)
        head = "".join((f"{method} {target} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in lines)))
        connect_s, read_s = self._timeouts_s
        pool = self._network.pool
        place: Place = await resolve(self._network, server, parts.port or _PORTS[parts.scheme])
        if parts.scheme == "https":
            context = self._context(params.get("ssl_verify") is not False)
            place = (*place[:2], Tls(context, params.get("ssl_server_name") or server))
        connection = pool.take(place) or await pool.connect(place, connect_s)
        return await http_client.exchange(
            connection,
            octets(f"{head}\r\n") + body,
            timeout_s=read_s,
            bodiless=method == "HEAD",
            body_bytes_max=ANSWER_BYTES_MAX,
        )


def _lines(headers: Mapping[Any, Any]) -> Lines:
    """Return header lines; a list stands for several, and None, as in a table of Lua's, for none (lua-resty-http)."""
    lines: Lines = {}
    for name, given in headers.items():
        values = given if isinstance(given, list | tuple) else [given]
        if same := [(str(name), lua_text(value)) for value in values if value is not None]:
            lines[lua_lower(str(name))] = same
    return lines


def _check_lines(uri: str, method: str, target: str, lines: list[tuple[str, str]]) -> None:
    """See to it that what a plugin is told by others becomes no line, or request, of its own; raises ValueError."""
    if not method.isalpha():
        raise ValueError(f"bad method: {method!r}")
    if _ENDS_TARGET.search(target):
        raise ValueError(f"bad uri: {uri}")
    for name, value in lines:
        if _ENDS_LINE.search(name + value):
            raise ValueError(f"bad header: {name}")


class Database(Incomplete):
    """A database for plugins: SQLite in the worker's memory, in the place of Kong's PostgreSQL (I10)."""

    _path = "kong.db"

    def __init__(self, execution: Execution, instrumentation: "Instrumentation") -> None:
        self._execution = execution
        self._instrumentation = instrumentation
        self._connection: sqlite3.Connection | None = None

    def query(self, statement: str, parameters: tuple[Any, ...] = ()) -> Awaitable[Result[list[dict[str, Any]]]]:
        """Run a statement; its rows and None, or None and the reason.

        Raises:
            ApiError: the phase must not wait.
        """
        check_waits(self._execution)
        return self._query(statement, parameters)

    async def _query(self, statement: str, parameters: tuple[Any, ...]) -> Result[list[dict[str, Any]]]:
        import sqlite3  # noqa: PLC0415 - only who asks for it pays for it

        span = self._instrumentation.db_query("sqlite", statement)
        try:
            if self._connection is None:
                # A garbage collection closes it, in whichever thread that happens.
                self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                self._connection.row_factory = sqlite3.Row
                finalize(self, self._connection.close)
            rows = self._connection.execute(statement, parameters).fetchall()
        except (sqlite3.Error, UnicodeError) as error:
            # A failure leaves no trace in the span.
            return None, str(error)
        finally:
            span.finish()
        return [dict(row) for row in rows], None
