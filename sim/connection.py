"""A client's connection: bytes to requests, and answers to bytes.

Requests are answered one at a time in the order in which they came (RFC 9112 9.3.2). While one is being answered, what
the same read brought of later ones waits in line, and no more is read. A body is passed on as it arrives. What cannot
be parsed is answered with 400 and the connection closed; nobody else notices.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast

import httptools

from sim.request import HeaderLines, Request

if TYPE_CHECKING:
    from sim.runloop import Runloop

HEAD_BYTES_MAX: Final = 32 * 1024
"""Largest header section; nginx's `large_client_header_buffers 4 8k`."""

LINGER_S: Final = 5.0
"""How long a refused client may go on sending before its connection is cut; nginx's `lingering_timeout`."""

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


class ClientConnection(asyncio.Protocol):
    """One client.

    Attributes:
        request: the one that is being answered, or None.
        peer: the client's address.
        sent_bytes: of the answer that is being given, or was last.
    """

    def __init__(self, runloop: "Runloop") -> None:
        # The connection's lifetime.
        self.runloop = runloop
        self.transport: asyncio.Transport
        self.peer = ""
        self.request: Request | None = None
        self._waiting: deque[tuple[Request, list[bytes]]] = deque()
        self._parser = httptools.HttpRequestParser(self)
        self._out: list[bytes] = []
        self._paused = False
        self._closing = False
        # The lifetime of the request that is being read.
        self._incoming: Request | None = None
        self._url = b""
        self._lines: HeaderLines = []
        self._head_bytes = 0
        self._started_ns = 0
        self.sent_bytes = 0  # in the lifetime of the request that is being answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Enter it into the worker's books."""
        self.transport = cast("asyncio.Transport", transport)
        name = transport.get_extra_info("peername")
        self.peer = name[0] if name else ""
        self.runloop.connections[self] = None
        self.runloop.accepted()

    def connection_lost(self, _error: Exception | None) -> None:
        """The client has gone: what was being answered ends with 499."""
        self._closing = True
        self.runloop.connections.pop(self, None)
        self._waiting.clear()
        if self.request is not None:
            self.runloop.client_gone(self.request)
        self.runloop.closed()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        if self._closing:
            return
        if self._incoming is None:
            if not self._head_bytes:
                self._started_ns = self.runloop.time_ns()
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # No upgrade is offered: the request is answered as if it had not asked (RFC 9110 7.8).
            self.data_received(data[upgrade.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            raise cause if cause is not None else error from None
        except httptools.HttpParserError:
            self._refuse(_BAD_REQUEST)
            return
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._waiting and not self._paused and not self._closing:
            self._pause_reading()

    def write(self, data: bytes) -> None:
        """Add to the answer; `flush` sends it."""
        self._out.append(data)

    def flush(self) -> None:
        """Send what was written."""
        out = self._out
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            self.sent_bytes += len(data)
            self.transport.write(data)
            out.clear()

    def answered(self, request: Request) -> None:
        """The answer to `request` is complete and its log phase has run: go on with the next, or close."""
        self.request = None
        if self._closing:
            return
        if not request.keep_alive or not request.complete or self.runloop.draining:
            self.close()
            return
        if self._waiting:
            following, body = self._waiting.popleft()
            self._begin(following, body)
        elif self._paused:
            self._paused = False
            self.transport.resume_reading()

    def close(self) -> None:
        """Send what was written and close."""
        if not self._closing:
            self._closing = True
            self.flush()
            self.transport.close()

    def abort(self) -> None:
        """Close at once: the answer cannot be completed."""
        self._closing = True
        self._out.clear()
        self.transport.abort()

    @property
    def idle(self) -> bool:
        """Whether it has been answered, and has sent nothing since."""
        return bool(self.sent_bytes) and self.request is None and not self._head_bytes and not self._closing

    @property
    def reading_head(self) -> bool:
        """Whether a part of a request's head has come, and nothing is being answered."""
        return bool(self._head_bytes) and self.request is None

    def close_if_idle(self) -> None:
        """Close when the client waits for nothing; the worker is leaving (kong-semantics W12).

        One that has not asked yet is about to: its first request shall not meet a closed connection (nginx, `c->idle`).
        """
        if self.idle:
            self.close()

    def ask_for_body(self) -> None:
        """Tell a client that waits for leave to send its body (RFC 9110 10.1.1)."""
        self.transport.write(_CONTINUE)

    def pause_writing(self) -> None:
        """The client does not read: stop reading from the upstream."""
        if self.request is not None:
            self.runloop.client_blocked(self.request)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self.request is not None:
            self.runloop.client_unblocked(self.request)

    def pause_body(self) -> None:
        """The upstream does not read: take no more of the body."""
        if not self._paused:
            self._pause_reading()

    def resume_body(self) -> None:
        """The upstream reads again."""
        if self._paused and not self._waiting and not self._closing:
            self._paused = False
            self.transport.resume_reading()

    # httptools calls these.

    def on_url(self, url: bytes) -> None:
        """Note a part of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header line."""
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        """The header section is complete: begin, or wait in line."""
        if self._head_bytes > HEAD_BYTES_MAX and _head_bytes(self._url, self._lines) > HEAD_BYTES_MAX:
            self._refuse(_HEAD_TOO_LARGE)
            return
        parser = self._parser
        request = Request(
            self,
            parser.get_method().decode("latin-1"),
            self._url,
            self._lines,
            parser.get_http_version(),
            keep_alive=parser.should_keep_alive(),
            started_ns=self._started_ns,
        )
        self._incoming = request
        self._url = b""
        self._lines = []
        self._head_bytes = 0
        if self.request is None:
            self._begin(request, [])
        else:
            self._waiting.append((request, []))

    def on_body(self, data: bytes) -> None:
        """Pass a part of the body on."""
        if self._incoming is None:
            return
        if self._incoming is self.request:
            self.runloop.body(self.request, data)
        elif self._waiting:
            self._waiting[-1][1].append(data)

    def on_message_complete(self) -> None:
        """The request has been read."""
        request, self._incoming = self._incoming, None
        self._started_ns = self.runloop.time_ns() if self._head_bytes else 0
        if request is not None:
            request.complete = True
            if request is self.request:
                self.runloop.body_complete(request)

    def _begin(self, request: Request, body: list[bytes]) -> None:
        self.request = request
        self.sent_bytes = 0
        self.runloop.begin(request, body)

    def _pause_reading(self) -> None:
        self._paused = True
        self.transport.pause_reading()

    def _refuse(self, answer: bytes) -> None:
        if self.request is None and not self._waiting:
            self._closing = True
            self._head_bytes = 0
            self.transport.write(answer)
            # Closed at once, what the client still sends would destroy the answer on its way (RFC 9112 9.6).
            self.transport.write_eof()
            self.runloop.runtime.call_later(LINGER_S, self.transport.abort)
            return
        # What came before is answered first; after that the connection closes.
        last = self._waiting[-1][0] if self._waiting else self.request
        assert last is not None
        last.keep_alive = False
        self._pause_reading()


def _head_bytes(url: bytes, lines: HeaderLines) -> int:
    return len(url) + sum(len(name) + len(value) + 4 for name, value in lines)
