"""A small HTTP/1.1 server on uvloop and httptools, the base of origin and collector.

Theory of operation. A connection parses whatever arrives. Complete requests wait in line and are answered one at a
time, so pipelined ones are answered in order (RFC 9112 9.3.2). While any waits, or while the client does not read its
answers, nothing more is read: at most what one read brought is held. An answer is given at once or after a delay; the
server's one timer keeps the delays of all connections.

A malformed request is answered 400, a head that is too large 431, then the connection is closed. An upgrade is never
accepted: the request is answered as if it had not asked (RFC 9110 7.8). Idle connections stay open until the client
closes them.

Faults (`sim.faults`) may be on: connections refused, reset or left hanging, answers late or cut off. Which status is
answered is the subclass's.

Delays in nanoseconds, sizes in bytes.
"""

import asyncio
import contextlib
import heapq
import itertools
import socket
import struct
from abc import ABC, abstractmethod
from collections import deque
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import httptools

from sim.timerfd import TimerFd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sim.faults import Fault
    from sim.runtime import Alarm

__all__ = ["HEAD_BYTES_MAX", "Door", "HttpConnection", "HttpServer", "SocketDoor", "response"]

HEAD_BYTES_MAX: Final = 65_536
"""The largest request head accepted; twice what nginx takes (`large_client_header_buffers 4 8k`)."""

_BACKLOG: Final = 511  # nginx's, NGX_LISTEN_BACKLOG
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NOTED_LENGTHS: Final = frozenset(map(len, ("expect", "content-length", "transfer-encoding")))
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_WITHOUT_BODY: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_NS_PER_S: Final = 1_000_000_000
_UNREACHABLE: Final = ("refuse", "down")
_LINGER_NOT: Final = struct.pack("ii", 1, 0)  # close(2) sends RST (socket(7), SO_LINGER)


def response(
    status: int, headers: "Mapping[str, str]", body: bytes, *, head: bool = False, keep_alive: bool = True
) -> bytes:
    """Return a whole response.

    Args:
        status: HTTP status, 200 to 599.
        headers: Header fields beside those of framing and connection, which are added.
        body: Left out where there can be none (204, 304).
        head: Whether the request was HEAD: the same header fields, no body (RFC 9110 9.3.2).
        keep_alive: Whether the connection stays open; if not, the response says so.
    """
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}", *(f"{name}: {value}" for name, value in headers.items())]
    if status in _WITHOUT_BODY:
        body = b""
    else:
        lines.append(f"Content-Length: {len(body)}")
    if not keep_alive:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head else body)


class HttpConnection(asyncio.Protocol, ABC):
    """One client's connection; a subclass says what a request is and how it is answered.

    A subclass may also have the callbacks `on_url` and `on_body` of httptools; without them the parser skips both.
    """

    transport: asyncio.Transport

    def __init__(self, server: "HttpServer") -> None:
        # The connection's lifetime.
        self.server = server
        self.parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[Any, bool]] = deque()  # requests in line, each with its keep-alive
        self._keep_alive = True  # after the response under way
        self._busy = False  # a response is under way
        self._blocked = False  # the client does not read
        self._reading = True
        self._last = False  # no request is read any more
        self._leaving = False  # no further request is waited for
        self._finished = b""  # the response under way, from when it is due until it is sent
        self._afterwards = b""  # to be written once no request is in line
        # The lifetime of the request that is being read.
        self._head_bytes = 0
        self._in_body = False
        self._framing = b""  # of its body, as its head has it

    @abstractmethod
    def request(self) -> Any:
        """Return the request that is complete now, in the form that `respond` takes."""

    @abstractmethod
    def respond(self, request: Any, keep_alive: bool) -> tuple[bytes, int]:
        """Return the response to `request`, and by how many ns it is to be delayed."""

    def sent(self) -> None:
        """Take note that the answer under way has been written out whole, to a client that was there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Enter the connection into the server's accounts."""
        self.transport = cast("asyncio.Transport", transport)
        if any(kind in self.server.faults for kind in _UNREACHABLE):  # it was accepted just before
            self.reset()
        self.server.accepted += 1
        self.server.connections[self] = None

    def connection_lost(self, _error: Exception | None) -> None:
        """Drop what was in line: nobody waits for it."""
        self._waiting.clear()
        self.server.lose(self)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, a head no further than it may be long."""
        try:
            while data and not self._last:
                part = data[: HEAD_BYTES_MAX - self._head_bytes]
                data = self._feed(part) + data[len(part) :]
                if self._head_bytes == HEAD_BYTES_MAX:
                    self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST)

    def _feed(self, data: bytes) -> bytes:
        """Parse, and return what the parser has left over, which it does behind a request for an upgrade."""
        if not self._in_body:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._framing:
                self._read_body()
            rest: bytes = data[upgrade.args[0] :]
            return rest
        return b""

    def _read_body(self) -> None:
        # The parser takes the body of a request that asks for an upgrade for bytes of the other protocol. Another one,
        # given a head that does not ask, goes on.
        keep_alive = b"" if self.parser.should_keep_alive() else b"Connection: close\r\n"
        head = b"%b / HTTP/1.1\r\n%b%b\r\n" % (self.parser.get_method(), keep_alive, self._framing)
        self._framing = b""
        self.parser = httptools.HttpRequestParser(_BehindHead(self))
        self.parser.feed_data(head)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note `Expect: 100-continue` (RFC 9110 10.1.1), and what says how long the body is."""
        if len(name) not in _NOTED_LENGTHS:
            return
        match name.lower():
            case b"expect" if value.lower() == b"100-continue":
                self._afterwards = _CONTINUE
            case b"content-length" | b"transfer-encoding":
                self._framing = b"%b: %b\r\n" % (name, value)

    def on_headers_complete(self) -> None:
        """Ask for the body, if the client waits to be asked; one of HTTP/1.0 would take that for the answer."""
        self._head_bytes = 0
        self._in_body = True
        if "reset" in self.server.faults:
            self.reset()
        elif self._afterwards:
            if self.parser.get_http_version() == "1.0":
                self._afterwards = b""
            self.advance()

    def on_message_complete(self) -> None:
        """Put the request in line."""
        if self._framing and self.parser.should_upgrade():  # its body is still to come
            return
        self._in_body, self._framing = False, b""
        if self._last:
            return
        self._afterwards = b""
        keep_alive = self.parser.should_keep_alive()
        self._last = not keep_alive
        self._waiting.append((self.request(), keep_alive))
        self.advance()

    def pause_writing(self) -> None:
        """Answer nothing more until the client has read."""
        self._blocked = True

    def resume_writing(self) -> None:
        """Go on answering."""
        self._blocked = False
        self.advance()

    def finish(self, data: bytes) -> None:
        """Send the delayed response `data`, and go on with the requests in line."""
        if not self.transport.is_closing():
            self._finished = data
            self.advance()

    def reset(self) -> None:
        """Reset the connection (TCP RST): what is on its way is lost on both sides."""
        self._last = True
        self._waiting.clear()
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self.transport.abort()

    def leave(self) -> None:
        """Close the connection as soon as no request is under way, nor one that is still being read."""
        self._leaving = True
        self._keep_alive = False
        if not (self._busy or self._waiting or self._head_bytes or self._in_body):
            self.transport.close()

    def advance(self) -> None:
        """Send what is due, and answer what waits in line, one after the other; a server that hangs does neither."""
        faults = self.server.faults
        hangs = "hang" in faults
        if self._finished and not hangs:
            data, self._finished = self._finished, b""
            self._send(data)
        while self._waiting and not self._busy and not self._blocked and not hangs:
            self._busy = True
            request, keep_alive = self._waiting.popleft()
            self._keep_alive = keep_alive and not self._leaving
            data, delay_ns = self.respond(request, self._keep_alive)
            if faults:
                delay_ns += self.server.slowness_ns()
            if delay_ns > 0:
                self.server.finish_later(self, data, delay_ns)
            else:
                self._send(data)
        if self._afterwards and not self._waiting and not self._busy and not hangs:
            self.transport.write(self._afterwards)
            self._afterwards = b""
            if self._last:
                self.transport.close()
        # A server that hangs reads on, or it would never see its clients leave.
        full = len(self._waiting) > hangs
        if self._reading == full:
            self._read(not full)

    def _send(self, data: bytes) -> None:
        self._busy = False
        faults = self.server.faults
        if "truncate" in faults:
            self.transport.write(data[: len(data) // 2])
            self.reset()
            return
        self.transport.write(data)
        self.sent()
        if not self._keep_alive or "refuse" in faults:
            self._last = True
            self._waiting.clear()
            self.transport.close()

    def _read(self, reading: bool) -> None:
        self._reading = reading
        if not self.transport.is_closing():
            (self.transport.resume_reading if reading else self.transport.pause_reading)()

    def _refuse(self, status: HTTPStatus) -> None:
        if not self._last:
            self._last = True
            self._afterwards = response(status, {}, b"", keep_alive=False)
            self.advance()


class _BehindHead:
    """What a parser tells a connection, from the end of the first head on."""

    def __init__(self, connection: HttpConnection) -> None:
        self._is_first = True
        self._connection = connection
        self.on_body = getattr(connection, "on_body", None)
        self.on_message_complete = connection.on_message_complete

    def on_url(self, part: bytes) -> None:
        if not self._is_first and hasattr(self._connection, "on_url"):
            self._connection.on_url(part)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_first:
            self._connection.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._is_first:
            self._connection.on_headers_complete()
        self._is_first = False


class Door(Protocol):
    """Where a server's connections come in."""

    def shut(self) -> None:
        """Refuse connections; shut already, it stays so."""

    def reopen(self) -> None:
        """Accept connections again, at the same address."""


class SocketDoor:
    """A port of this machine. Shut it stays bound, so that nobody else can get it meanwhile.

    Args:
        sock: bound.
        accept: makes the protocol of a new connection.
    """

    def __init__(self, sock: socket.socket, accept: "Callable[[], HttpConnection]") -> None:
        self._sock: socket.socket | None = sock
        self._accept = accept
        self._listener: asyncio.Server | None = None
        self._is_shut = False
        self._address = sock.getsockname()
        self._family = sock.family
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # so that another can be bound beside it

    async def begin(self) -> None:
        """Accept connections."""
        sock, self._sock = self._sock, None
        assert sock is not None
        self._listener = await asyncio.get_running_loop().create_server(self._accept, sock=sock, backlog=_BACKLOG)
        if self._is_shut:  # meanwhile
            self.shut()

    def shut(self) -> None:
        """Refuse connections; shut already, it stays so."""
        self._is_shut = True
        if self._listener is None:
            return
        self._sock = socket.socket(self._family, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            self._sock.setsockopt(socket.SOL_SOCKET, option, 1)
        self._sock.bind(self._address)
        self._listener.close()
        self._listener = None

    def close(self) -> None:
        """Accept connections no more, and give the port away."""
        for held in (self._listener, self._sock):
            if held is not None:
                held.close()

    def reopen(self) -> None:
        """Accept connections again, at the same address."""
        self._is_shut = False
        if self._sock is not None:
            self._beginning = asyncio.ensure_future(self.begin())


class HttpServer(ABC):
    """What all connections of one process share.

    Attributes:
        accepted: Connections accepted so far.
        connections: Those open now.
        faults: Those that are on, by kind; of several of a kind the last that began.
        patience_s: How long requests that have begun may go on, at most, when it is to stop.
        door: Where connections come in.
    """

    _alarm: "Alarm"
    door: "Door"

    def __init__(self) -> None:
        self.accepted = 0
        self.connections: dict[HttpConnection, None] = {}
        self.faults: dict[str, Fault] = {}
        self.patience_s = 0.0
        self._lost = asyncio.Event()  # a connection, just now
        self._begun: list[Fault] = []  # and not ended
        self._delayed: list[tuple[int, int, HttpConnection, bytes]] = []  # a heap, by deadline in ns
        self._sequence = itertools.count()  # breaks ties, in order of request

    @abstractmethod
    def accept(self) -> HttpConnection:
        """Return the protocol of a new connection."""

    async def serve(self, sock: socket.socket, stop: asyncio.Event) -> None:
        """Accept connections on the bound socket `sock` until `stop` is set, then close all of them, with patience."""
        loop = asyncio.get_running_loop()
        self.door = door = SocketDoor(sock, self.accept)
        self.open(partial(TimerFd, loop))
        await door.begin()
        await stop.wait()
        door.close()
        if self.patience_s:
            await self._drain()
        self.close()

    async def _drain(self) -> None:
        for connection in tuple(self.connections):
            connection.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.patience_s):
                while self.connections:
                    self._lost.clear()
                    await self._lost.wait()

    def lose(self, connection: HttpConnection) -> None:
        """Know a connection no longer."""
        self.connections.pop(connection, None)
        self._lost.set()

    def open(self, make_alarm: "Callable[[Callable[[int], int | None]], Alarm]") -> None:
        """Be ready for connections, with delays by an alarm of this make (`sim.runtime.Runtime.alarm`)."""
        self._alarm = make_alarm(self._finish_due)

    def close(self) -> None:
        """Close every connection."""
        for connection in tuple(self.connections):
            connection.transport.abort()
        self._alarm.close()

    def obey(self, order: "tuple[bool, Fault]") -> None:
        """Begin or end a fault, as the order says: whether it begins, and which."""
        begins, fault = order
        (self.begin if begins else self.end)(fault)

    def begin(self, fault: "Fault") -> None:
        """Have a fault from now on."""
        self._begun.append(fault)
        self.faults = {each.kind: each for each in self._begun}
        if fault.kind in _UNREACHABLE:
            self.door.shut()
        for connection in tuple(self.connections):
            if fault.kind == "down":
                connection.reset()
            elif fault.kind == "refuse":
                connection.leave()

    def end(self, fault: "Fault") -> None:
        """Have a fault no longer; an earlier one of its kind that is still on is felt again."""
        self._begun.remove(fault)
        self.faults = {each.kind: each for each in self._begun}
        if fault.kind in _UNREACHABLE and not any(kind in self.faults for kind in _UNREACHABLE):
            self.door.reopen()
        for connection in tuple(self.connections):
            connection.advance()

    def slowness_ns(self) -> int:
        """Return by how much the faults that are on delay an answer."""
        slow = self.faults.get("slow")
        return round(slow.latency * _NS_PER_S) if slow else 0

    def now_ns(self) -> int:
        """Return the time, in ns of a clock of its own."""
        return self._alarm.now_ns()

    def finish_later(self, connection: HttpConnection, data: bytes, delay_ns: int) -> None:
        """Have `connection` finish with `data` after `delay_ns`."""
        deadline_ns = self._alarm.now_ns() + delay_ns
        heapq.heappush(self._delayed, (deadline_ns, next(self._sequence), connection, data))
        if self._delayed[0][0] == deadline_ns:
            self._alarm.arm(deadline_ns)

    def _finish_due(self, now_ns: int) -> int | None:
        while self._delayed and self._delayed[0][0] <= now_ns:
            _, _, connection, data = heapq.heappop(self._delayed)
            connection.finish(data)
        return self._delayed[0][0] if self._delayed else None
