"""Connections to upstreams: kept alive, pooled by address, one exchange at a time.

A `Pool` hands out `UpstreamConnection`s, idle ones first, the one used last before the others; plain and secured ones,
and those that were secured otherwise, never stand for each other. An exchange is whoever
uses one now: the proxied request (`sim.proxy`) or the exporter (`sim.exporter`); it is called with the parts of the
response as they arrive. Sizes in bytes, times in s.

A kept connection that the other side has closed before any byte of a response is not the exchange's fault: `lost` tells
it so (`reused` and no `answered`), and it may try again (RFC 9112 9.3.1).

A connection that has just been opened is handed over some turns of the loop after it stands: what the other side sends
or does until then is kept for its first exchange.

A response that is malformed or ambiguous is lost, not mended. A connection is kept only if both sides are done with the
exchange: nothing of the request waits to be sent, and nothing came after the response. So no request can get another
one's answer, or wait behind what an upstream that has answered early does not read.
"""

import asyncio
import errno
import os
import ssl
from collections.abc import Callable
from contextvars import Context
from math import inf
from typing import TYPE_CHECKING, Final, Protocol, cast

import httptools

from sim.connection_table import NoConnectionLeftError, unlimited
from sim.framing import BODILESS, HeaderLines, InvalidResponseError, check_response_coding, head_size
from sim.outline import ResponseOutline, names_of, response_outlines
from sim.runtime import ConnectTimeoutError

if TYPE_CHECKING:
    from sim.runtime import Runtime, Tls

Place = tuple[str, int] | tuple[str, int, "Tls"]
"""Where a connection goes to: address, port, and how it is secured, if it is."""

PLAIN: Final = 2
"""Length of a place whose connections are not secured."""

IDLE_MAX: Final = 512
"""Idle connections kept per target; Kong's `upstream_keepalive_pool_size`."""

IDLE_TIMEOUT_S: Final = 60.0
"""How long a connection is kept unused; Kong's `upstream_keepalive_idle_timeout`."""

EXCHANGES_MAX: Final = 10_000
"""Exchanges that one connection serves; Kong's `upstream_keepalive_max_requests`."""

HEAD_BYTES_MAX: Final = 64 * 1024
"""Largest header section of a response, and largest trailer section."""

TRIM_S: Final = 5.0
"""How often unused connections are looked at."""

SWEEP_S: Final = 0.05
"""How often deadlines are looked at, which is how late a timeout may be."""


SWITCHING_PROTOCOLS: Final = 101

TIMED_OUT: Final = f"upstream timed out ({errno.ETIMEDOUT}: {os.strerror(errno.ETIMEDOUT)})"
"""nginx's words of a wait that was in vain."""


OUT_OF_FILES: Final = (errno.EMFILE, errno.ENFILE)
"""Errors of one who may open no other file, which is no fault of the other side."""


def system_error(call: str, error: BaseException) -> str:
    """Say in nginx's words that a call of the system failed."""
    # The number of an error of TLS is the library's, not the system's.
    number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    return f"{call} failed ({number}: {os.strerror(number)})" if number else f"{call} failed: {error}"


class Exchange(Protocol):
    """Who waits for a response."""

    def on_head(self, status: int, lines: HeaderLines, outline: ResponseOutline) -> None:
        """Take status and header lines, and what their names tell."""

    def on_body(self, data: bytes) -> None:
        """Take a part of the body."""

    def on_end(self) -> None:
        """The response is complete."""

    def on_flush(self) -> None:
        """All that one read has brought was passed on."""

    def on_lost(self, connection: "UpstreamConnection", reason: str, *, timeout: bool) -> None:
        """The response will not be completed."""

    def pause(self) -> None:
        """The upstream does not read: send no more."""

    def resume(self) -> None:
        """It reads again."""


class UpstreamConnection:
    """One connection to a target.

    Attributes:
        place: where it goes to.
        exchange: who uses it now; None when it is idle.
        reused: it has served an exchange before.
        answered: a byte of the present response has come.
        invalid: what has come is no response, or too large a one (nginx, `invalid_header`).
        whole_request_sent: nothing of the present request is still to come.
        exchanges: that it has served.
        deadline_s: when the present wait is given up, on the runtime's clock.
    """

    def __init__(self, pool: "Pool", place: Place) -> None:
        self._pool = pool
        self.place = place
        self.transport: asyncio.Transport
        self.exchange: Exchange | None = None
        self.reused = False
        self.answered = False
        self.invalid = False
        self.deadline_s = 0.0
        self.whole_request_sent = True
        self.exchanges = 0
        self._timeout_s = 0.0
        self._write_timeout_s = 0.0
        self._unsent = 0  # bytes that wait for an upstream that does not read, when last looked at; 0: it reads
        # What has come before the first request: the worker is told some turns after the connection stands.
        self._early: list[bytes] = []
        self._lost = False
        self._lost_by: Exception | None = None
        self._bodiless = False
        self._parser = httptools.HttpResponseParser(self)
        self._lines: HeaderLines = []
        self._framing_bytes = 0  # read since the exchange began, or since the last part of the body
        self._framed = False
        self._in_body = False
        self._complete = False
        self._overrun = False  # more came than the response
        self._keep_alive = False

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has come that nobody has asked for, and it is not closing."""
        return not self._early and not self.transport.is_closing()

    def send(
        self, exchange: Exchange, data: bytes, *, timeout_s: float, bodiless: bool = False, whole: bool = True
    ) -> None:
        """Begin an exchange with the first bytes of its request.

        Args:
            exchange: gets the response.
            data: to write.
            timeout_s: between two reads of the response; it counts once the request is whole.
            bodiless: the response has no body whatever its headers say (HEAD).
            whole: `data` is the whole request; else `end_request` is called when the rest has been written.
        """
        self.exchange = exchange
        self.answered = False
        self._bodiless = bodiless
        self.whole_request_sent = whole
        self.exchanges += 1
        self._framing_bytes = 0
        self._complete = False
        self._timeout_s = timeout_s
        self._pool.watch(self, timeout_s if whole else inf)
        self.write(data)
        if self._early or self._lost:
            self._pool.call_soon(self._catch_up, context=Context())  # as a connection calls back

    def write(self, data: bytes) -> None:
        """Send more of the request."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def end_request(self) -> None:
        """The whole request has been written: wait for the response."""
        self.whole_request_sent = True
        if not self._unsent:
            self._pool.watch(self, self._timeout_s)

    def wait_to_write(self, timeout_s: float) -> None:
        """The upstream does not read: let no more than `timeout_s` pass without its taking anything."""
        self._unsent = self.transport.get_write_buffer_size()
        self._write_timeout_s = timeout_s
        self._pool.watch(self, timeout_s)

    def wait(self, timeout_s: float) -> None:
        """From now on, let no more than `timeout_s` pass without a sign of the other side."""
        self._timeout_s = timeout_s
        self._pool.watch(self, timeout_s)

    def hold(self) -> None:
        """Read no more of the response; meanwhile the time does not count."""
        self.transport.pause_reading()
        if not self._unsent:
            self._pool.watch(self, inf)

    def release(self) -> None:
        """Read on."""
        self.transport.resume_reading()
        if not self._unsent and (self.whole_request_sent or self._in_body):
            self._pool.watch(self, self._timeout_s)

    def give_up(self, exchange: Exchange) -> None:
        """Close at once what an exchange still uses; it is not told. One that has ended has no say any more.

        The connection may have gone to another by then, who would wait for ever for an answer.
        """
        if self.exchange is exchange:
            self.exchange = None
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready."""
        self.transport = cast("asyncio.Transport", transport)
        self._pool.open[self] = None

    def data_received(self, data: bytes) -> None:
        """Parse a part of the response."""
        exchange = self.exchange
        if exchange is None:
            self._keep_unasked(data)
            return
        self.answered = True
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._overrun = True
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, InvalidResponseError):
                raise cause if cause is not None else error from None
            self._fail_for_what_came(f"upstream sent an invalid response: {cause}")
            return
        except httptools.HttpParserError as error:
            if not self._complete:
                self._fail_for_what_came(f"upstream sent an invalid response: {error}")
                return
            self._overrun = True
        if self._complete:
            self._end()
        elif self._framing_bytes > HEAD_BYTES_MAX:
            self._fail_for_what_came("upstream sent too big header")
        else:
            if self.whole_request_sent or self._in_body:
                self._pool.watch(self, self._timeout_s)
            exchange.on_flush()

    def eof_received(self) -> None:
        """The upstream sends no more; the connection closes."""

    def connection_lost(self, error: Exception | None) -> None:
        """End what was under way."""
        self._pool.open.pop(self, None)
        self._pool.forget(self)
        exchange = self.exchange
        if exchange is None:
            self._lost, self._lost_by = True, error
            return
        if self._in_body and not self._framed and error is None:
            self.exchange = None
            exchange.on_end()
            return
        call = "writev()" if isinstance(error, BrokenPipeError) else "recv()"
        self._fail("upstream prematurely closed connection" if error is None else system_error(call, error))

    def _keep_unasked(self, data: bytes) -> None:
        if self.exchanges:
            # A late or a second answer makes the connection useless.
            self._pool.forget(self)
            self.transport.abort()
        else:
            self._early.append(data)
            self.transport.pause_reading()

    def _catch_up(self) -> None:
        """Take note of what has come before the first request."""
        early, self._early = self._early, []
        if early and not self.transport.is_closing():
            self.transport.resume_reading()
        for data in early:
            if self.exchange is not None:
                self.data_received(data)
        if self._lost:
            self.connection_lost(self._lost_by)

    def pause_writing(self) -> None:
        """The upstream does not read."""
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        """It reads again."""
        if self._unsent:
            self._unsent = 0
            self._pool.watch(self, self._timeout_s if self.whole_request_sent else inf)
        if self.exchange is not None:
            self.exchange.resume()

    def timed_out(self) -> None:
        """The deadline has passed; an upstream that has taken a part of what waits for it gets more time."""
        unsent = self._unsent and self.transport.get_write_buffer_size()
        if unsent < self._unsent:
            self.wait_to_write(self._write_timeout_s)
            return
        self._fail(TIMED_OUT, timeout=True)

    def _fail_for_what_came(self, reason: str) -> None:
        """It is no response that could be passed on; yet the upstream was there, and has answered."""
        self.invalid = True
        self._fail(reason)

    def _fail(self, reason: str, *, timeout: bool = False) -> None:
        exchange, self.exchange = self.exchange, None
        self._pool.forget(self)
        self.transport.abort()
        if exchange is not None:
            exchange.on_lost(self, reason, timeout=timeout)

    # httptools calls these.

    def on_message_begin(self) -> None:
        """A response begins; none is due when the present one is complete."""
        if self._complete:
            self._overrun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header line, or a line of a trailer."""
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        """Pass the header section on, but for an interim response's."""
        parser = self._parser
        status = parser.get_status_code()
        lines, self._lines = self._lines, []
        if self._framing_bytes > HEAD_BYTES_MAX and head_size(lines) > HEAD_BYTES_MAX:
            raise InvalidResponseError("too big header")
        exchange = self.exchange
        if self._complete or exchange is None or (100 <= status < 200 and status != SWITCHING_PROTOCOLS):
            return
        outline = response_outlines[names_of(lines)]
        if status < 200:
            raise InvalidResponseError(f"unexpected status {status}")
        for place in outline.codings:
            check_response_coding(lines[place][1])
        self._framed = outline.is_framed
        self._keep_alive = parser.should_keep_alive()
        if not self._keep_alive and parser.get_http_version() not in ("1.1", "1.0"):
            raise InvalidResponseError("unknown HTTP version")
        self._in_body = True
        if self._bodiless or status in BODILESS:
            self._framed = True
        exchange.on_head(status, lines, outline)
        if self._bodiless:
            # The parser waits for a body that a response to HEAD does not have: what comes now is too much.
            self._complete = True

    def on_body(self, data: bytes) -> None:
        """Pass a part of the body on."""
        if self._complete:
            self._overrun = True
        elif self.exchange is not None:
            self._framing_bytes = 0
            self.exchange.on_body(data)

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._framing_bytes = 0

    def on_message_complete(self) -> None:
        """The response is complete; a trailer section is dropped, as nginx does (RFC 9112 7.1.2)."""
        self._lines = []
        self._complete = self._in_body

    def _end(self) -> None:
        """End the exchange, and keep the connection if both sides are done and want it."""
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return  # it has given the connection up while the rest was read
        self._in_body = False
        if not self.whole_request_sent or self._waits_to_be_sent():
            self.transport.abort()
        elif self._keep_alive and self._framed and not self._overrun:
            if self._bodiless:
                self._parser = httptools.HttpResponseParser(self)
            self._pool.keep(self)
        else:
            self.transport.close()
        exchange.on_end()

    def _waits_to_be_sent(self) -> bool:
        """Whether the system has not taken yet what was written; of a closed transport nobody can tell."""
        if self._lost:
            return False
        # uvloop's TLS hands all to a transport below, whose buffer it does not tell of.
        is_secured = len(self.place) > PLAIN
        return self._pool.has_unsent(self.transport) if is_secured else self.transport.get_write_buffer_size() > 0


class Pool:
    """A worker's connections to all targets.

    Args:
        runtime: opens connections and tells the time.
        admits: whether one more connection may be opened.

    Attributes:
        open: every connection that has not been closed.
    """

    def __init__(self, runtime: "Runtime", admits: Callable[[], bool] = unlimited) -> None:
        self._runtime = runtime
        self._now = runtime.now
        self.call_soon = runtime.call_soon
        self._admits = admits
        self._connecting = 0
        self._idle: dict[Place, list[UpstreamConnection]] = {}
        self._sweeping = False
        self._trimming = False
        self.open: dict[UpstreamConnection, None] = {}

    def take(self, place: Place) -> UpstreamConnection | None:
        """Return an idle connection to a target, the one used last; None when there is none."""
        idle = self._idle.get(place)
        while idle:
            connection = idle.pop()
            if not connection.transport.is_closing():
                connection.reused = True
                return connection
        return None

    async def connect(self, place: Place, timeout_s: float) -> UpstreamConnection:
        """Open a connection to a target.

        Raises:
            OSError: it cannot be had; ConnectTimeoutError when it took too long, NoConnectionLeftError when the worker
                has as many as it may.
        """
        if not self._admits():
            raise NoConnectionLeftError("worker_connections are not enough")
        self._connecting += 1
        connection = UpstreamConnection(self, place)
        try:
            async with asyncio.timeout(timeout_s):
                await self._runtime.connect(place[0], place[1], lambda: connection, *place[2:])
        except BaseException as error:
            self.open.pop(connection, None)  # one that stood just before is closed by uvloop, which tells nobody
            if not isinstance(error, TimeoutError):
                raise
            raise ConnectTimeoutError(f"no connection within {timeout_s:g} s") from None
        finally:
            self._connecting -= 1
        return connection

    @property
    def size(self) -> int:
        """Connections that are open or about to be."""
        return len(self.open) + self._connecting

    def keep(self, connection: UpstreamConnection) -> None:
        """Take a connection back whose exchange has ended well."""
        is_good = connection.exchanges < EXCHANGES_MAX and connection.is_quiet
        if is_good and len(idle := self._idle.setdefault(connection.place, [])) < IDLE_MAX:
            idle.append(connection)
            now = self._now
            connection.deadline_s = now() + IDLE_TIMEOUT_S
            if not self._trimming:
                self._trimming = True
                self._runtime.call_later(TRIM_S, self._trim)
        else:
            connection.transport.close()

    def has_unsent(self, transport: asyncio.Transport) -> bool:
        """Whether the other side's system lacks anything of what was written."""
        return self._runtime.unsent_bytes(transport) > 0

    def forget(self, connection: UpstreamConnection) -> None:
        """Drop a connection that is closing."""
        idle = self._idle.get(connection.place)
        if idle and connection in idle:
            idle.remove(connection)

    def left_open(self) -> list[UpstreamConnection]:
        """Return the connections that somebody has taken and not given back."""
        idle = {connection for kept in self._idle.values() for connection in kept}
        return [connection for connection in self.open if connection not in idle]

    def close(self) -> None:
        """Close every connection at once; exchanges under way are given up, and nobody is told."""
        for connection in tuple(self.open):
            connection.exchange = None
            connection.transport.abort()

    def watch(self, connection: UpstreamConnection, timeout_s: float) -> None:
        """Give the exchange of `connection` up in `timeout_s` from now, unless it has ended or is watched anew."""
        now = self._now
        connection.deadline_s = now() + timeout_s
        if not self._sweeping:
            self._sweeping = True
            self._runtime.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = self._now()
        watched = [connection for connection in self.open if connection.exchange is not None]
        for connection in watched:
            if connection.deadline_s <= now and connection.exchange is not None:
                connection.timed_out()
        self._sweeping = bool(watched)
        if self._sweeping:
            self._runtime.call_later(SWEEP_S, self._sweep)

    def _trim(self) -> None:
        """Close what has been idle for too long, and forget places that nothing is left of."""
        now = self._now()
        self._idle = {place: idle for place, idle in self._idle.items() if idle}
        for idle in self._idle.values():
            for connection in [connection for connection in idle if connection.deadline_s <= now]:
                connection.transport.close()
        self._trimming = bool(self._idle)
        if self._trimming:
            self._runtime.call_later(TRIM_S, self._trim)
