"""A client's connection: bytes to requests, and answers to bytes.

Requests are answered one at a time in the order in which they came (RFC 9112 9.3.2). While one is being answered, what
the same read brought of later ones waits in line, and no more is read. A body is passed on as it arrives; a client that
does not read its answer, or an upstream that does not read the body, stops the other side. What still comes of a body
whose request has been answered is dropped, and the connection goes on.

What is malformed, ambiguous, too large or too slow is refused with its status in its turn, and the connection closed;
nobody else notices. Limits and times are nginx's (`sim.config.Nginx`).
"""

import asyncio
import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Final, cast

import httptools

from sim.framing import HEAD_BYTES_MAX, LINE_BYTES_MAX, HeaderLines, Refusal, check_head_size
from sim.outline import names_of, request_outlines
from sim.request import RefusedRequest, Request

if TYPE_CHECKING:
    from sim.runloop import Runloop

LINGER_S: Final = 5.0
"""How long a refused client may go on sending before its connection is cut, and how long one that has been answered may
pause before it goes on with the body; nginx's `lingering_timeout`."""

DISCARD_S: Final = 30.0
"""How long the rest of such a body may take; nginx's `lingering_time`."""

_TIMED_OUT: Final = f"client timed out ({errno.ETIMEDOUT}: {os.strerror(errno.ETIMEDOUT)})"
_INTERRUPTIONS: Final = (httptools.HttpParserError, httptools.HttpParserUpgrade)
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientConnection:
    """One client.

    Attributes:
        request: the one that is being answered, or None.
        peer: the client's address.
        number: that it has among those of all workers (nginx, `$connection`).
        requests: that have begun on it.
        out: parts of the answer that `flush` sends.
        sent_bytes: of the answer that is being given, or was last.
        port: of the gateway, to which the client has connected.
    """

    def __init__(self, runloop: "Runloop") -> None:
        # The connection's lifetime.
        self.runloop = runloop
        self.transport: asyncio.Transport
        self.peer = ""
        self.port = 0
        self.number = 0
        self.request: Request | None = None
        self._waiting: deque[Request] = deque()
        self._parser = httptools.HttpRequestParser(self)
        self.out: list[bytes] = []
        self.requests = 0
        self._advancing = False
        self._paused = False  # nothing is read
        self._body_held = False  # the upstream does not read
        self._blocked = False  # the client does not read
        self._unsent = 0  # bytes that wait for it, when last looked at
        self._closing = False
        self._since_s = 0.0  # when what is being waited for began
        # The lifetime of the request that is being read.
        self._incoming: Request | None = None
        self._discarded_by_s = 0.0  # when the rest of its body must have come, once it has been answered
        self._first_line = b""  # of a head that is not complete, as far as it is known
        self._url = b""
        self._lines: HeaderLines = []
        self._read_bytes = 0  # that the last read has brought
        self._head_bytes = 0  # read of a header section that is not complete
        self._framing_bytes = 0  # read since the last part of the body
        self._body_wanted = False  # somebody has asked for it: its client may be late from then on
        self._started_ns = 0
        self.sent_bytes = 0  # in the lifetime of the request that is being answered
        self._rereading = False
        self._refused: RefusedRequest | None = None  # of what came after the requests in line

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Enter it into the worker's books."""
        self.transport = cast("asyncio.Transport", transport)
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.peer = peer[0] if peer else ""
        self.port = own[1] if own else 0
        self._since_s = self.runloop.now()
        self.runloop.connections[self] = None
        self.number = self.runloop.accepted()

    def eof_received(self) -> None:
        """The client sends no more; the connection closes."""

    def connection_lost(self, _error: Exception | None) -> None:
        """The client has gone: what was being answered ends with 499."""
        self._closing = True
        self.runloop.connections.pop(self, None)
        self._waiting.clear()
        if self.request is not None:
            self.runloop.client_gone(self.request)
        elif self._head_bytes:
            self.runloop.given_up(self._unserved(400, "client prematurely closed connection"))
        self.runloop.closed()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        if self._closing or self._refused is not None:
            return
        begun = self._head_bytes
        self._read_bytes = len(data)
        if self._incoming is not None:
            self._since_s = self.runloop.now()
            self._framing_bytes += len(data)
        else:
            if not begun:
                time_ns = self.runloop.time_ns
                self._started_ns = time_ns()
            self._head_bytes = begun + len(data)
        interruption: Exception | None = None
        try:
            self._parser.feed_data(data)
        except _INTERRUPTIONS as error:
            interruption = error
        if interruption is not None:
            self._keep_first_line(begun, data)
            self._interrupted(interruption, data)
        if self._waiting and not self._paused and not self._closing:
            self._pause_reading()
        if self._head_bytes or self._url:
            self._keep_first_line(begun, data)
            self._await_head(begun)
        elif self._framing_bytes > 2 * HEAD_BYTES_MAX:
            self._refuse(Refusal(431, "client sent too large trailer"))

    def _keep_first_line(self, begun: int, data: bytes) -> None:
        """Keep what is known of the first line of a head of which `begun` bytes were there before `data`."""
        if self._head_bytes != begun + len(data):  # it begins somewhere within
            self._first_line = b""
        elif not begun:
            self._first_line = data[:LINE_BYTES_MAX]
        elif b"\n" not in self._first_line:
            self._first_line = (self._first_line + data)[:LINE_BYTES_MAX]

    def _unserved(self, status: int, reason: str) -> RefusedRequest:
        """Return what is known of the request whose head is being read."""
        line = self._first_line.partition(b"\n")[0].rstrip(b"\r")
        if not line and self._url:
            line = b"%b %b" % (self._parser.get_method(), self._url)
        return RefusedRequest(self, status, reason, line, self._lines)

    def _feed(self, data: bytes) -> Exception | None:
        """Parse, and return what has stopped the parser: raised, it would lose what a callback has raised."""
        try:
            self._parser.feed_data(data)
        except _INTERRUPTIONS as error:
            stopped: Exception = error
            return stopped
        return None

    def _interrupted(self, error: Exception | None, data: bytes) -> None:
        """Go on where the parser has stopped, if there is a way on."""
        while isinstance(error, httptools.HttpParserUpgrade):
            # No upgrade is offered: the request is answered as if it had not asked (RFC 9110 7.8).
            data = data[error.args[0] :]
            if self._incoming is not None:
                self._read_body_again(self._incoming)
            error = self._feed(data)
        if isinstance(error, httptools.HttpParserCallbackError):
            cause = error.__context__ or error
            if not isinstance(cause, Refusal):
                raise cause
            self._refuse(cause)
        elif error is not None:
            self._refuse(Refusal(400, f"client sent invalid request: {error}"))

    def _read_body_again(self, request: Request) -> None:
        # The parser takes the body of a request that asks for an upgrade for bytes of the other protocol. Another
        # parser, told of the body alone, takes over.
        self._parser = httptools.HttpRequestParser(self)
        self._rereading = True
        size = request.content_length
        framing = b"Transfer-Encoding: chunked" if size is None else b"Content-Length: %d" % size
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)

    def _await_head(self, begun: int) -> None:
        """Wait for the rest of a header section of which `begun` bytes were there before this read."""
        if self._closing:
            return
        if not begun:
            self._since_s = self.runloop.now()
            self._head_bytes = self._head_bytes or len(self._url)
        if len(self._url) > LINE_BYTES_MAX:
            self._refuse(Refusal(414, "client sent too long URI"))
        elif self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(Refusal(431, "client sent too large header"))

    def flush(self) -> None:
        """Send what is in `out`."""
        out = self.out
        if out:
            data = b"".join(out)
            self.sent_bytes += len(data)
            self.transport.write(data)
            out.clear()

    def answered(self, request: Request) -> None:
        """The answer to `request` is complete and its log phase has run: go on with the next, or close."""
        self.request = None
        if self._closing:
            return
        if not request.keep_alive or self.runloop.draining:
            self.close(lingering=not request.complete)
            return
        now = self.runloop.now
        self._since_s = now()
        if not request.complete:
            self._discarded_by_s = self._since_s + DISCARD_S
        if self._paused or self._waiting:
            self._body_held = False
            self._advance()

    def close(self, *, lingering: bool = False) -> None:
        """Send what is in `out` and close; lingering, take what the client still sends, and drop it.

        Closed at once, what it still sends would destroy the answer on its way (RFC 9112 9.6).
        """
        if self._closing:
            return
        self._closing = True
        self._waiting.clear()
        self._since_s = self.runloop.now()
        self.flush()
        if lingering and self.transport.can_write_eof():
            self.transport.write_eof()
            self._resume_reading()
        else:
            self.transport.close()

    def abort(self) -> None:
        """Close at once: the answer cannot be completed."""
        self._closing = True
        self.out.clear()
        self.transport.abort()

    @property
    def idle(self) -> bool:
        """Whether it has been answered, and has sent nothing since."""
        return bool(self.sent_bytes) and self.reusable

    @property
    def reusable(self) -> bool:
        """Whether its place may go to another client: nothing of a request has come (nginx, `c->reusable`)."""
        return self.request is None and self._incoming is None and not self._head_bytes and not self._closing

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

    def expire(self, now_s: float) -> None:
        """Give up what takes too long."""
        nginx = self.runloop.nginx
        waited_s = now_s - self._since_s
        if self._closing or self._blocked:
            self._expire_sending(now_s, waited_s, nginx.send_timeout)
        elif self._is_discarding:
            if waited_s > LINGER_S or now_s > self._discarded_by_s:
                self.close()
        elif self._incoming is not None:
            if self._body_wanted and not self._paused and waited_s > nginx.client_body_timeout:
                self._refuse(Refusal(408, f"{_TIMED_OUT} while reading client request body"))
        elif self.request is not None:
            return
        elif self._head_bytes:
            if waited_s > nginx.client_header_timeout:
                self._refuse(Refusal(408, f"{_TIMED_OUT} while reading client request headers"))
        elif waited_s > (nginx.keepalive_timeout if self.requests else nginx.client_header_timeout):
            self.close()

    def _expire_sending(self, now_s: float, waited_s: float, timeout_s: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent != self._unsent:
            self._unsent = unsent
            self._since_s = now_s
        elif waited_s > (timeout_s if unsent else LINGER_S):
            self.abort()

    def ask_for_body(self) -> None:
        """Tell a client that waits for leave to send its body (RFC 9110 10.1.1)."""
        self.transport.write(_CONTINUE)

    def pause_writing(self) -> None:
        """The client does not read: stop reading from the upstream."""
        self._blocked = True
        self._since_s = self.runloop.now()
        if self.request is not None:
            self.runloop.client_blocked(self.request)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._blocked = False
        self._since_s = self.runloop.now()
        if self.request is not None:
            self.runloop.client_unblocked(self.request)
        elif not self._closing:
            self._advance()

    def pause_body(self) -> None:
        """The upstream does not read: take no more of the body."""
        self._body_held = True
        if not self._paused:
            self._pause_reading()

    def resume_body(self) -> None:
        """The upstream reads, or reads again, or a plugin asks for the body."""
        if not self._body_wanted:
            self._body_wanted = True
            self._since_s = self.runloop.now()
        self._body_held = False
        self._resume_reading()

    # httptools calls these.

    def on_url(self, url: bytes) -> None:
        """Note a part of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header line, or a line of a trailer."""
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        """The header section is complete: begin, or wait in line."""
        if self._rereading:
            self._rereading = False
            self._url = b""
            self._lines = []
            return
        if self._head_bytes > LINE_BYTES_MAX or self._read_bytes > LINE_BYTES_MAX:
            check_head_size(self._url, self._lines)
        parser, lines = self._parser, self._lines
        outline = request_outlines[names_of(lines)]
        keep_alive = parser.should_keep_alive()
        # Kept without a word of the client's, it is one of HTTP/1.1 (RFC 9112 9.3); to ask the parser costs a text.
        version = "1.1" if keep_alive and not outline.has_options else parser.get_http_version()
        request = Request(self, parser.get_method(), self._url, lines, outline, version, keep_alive, self._started_ns)
        self._url = b""
        self._lines = []
        self._head_bytes = 0
        if request.content_length == 0:
            request.complete = True
        else:
            self._expect_body(request)
        if self.request is None and not self._waiting and not self._blocked and not self._closing:
            self._begin(request)
        else:
            self._waiting.append(request)

    def on_body(self, data: bytes) -> None:
        """Pass a part of the body on."""
        request = self._incoming
        if request is None:
            return
        self._framing_bytes = 0
        if request.done:
            return
        before = request.body_bytes
        request.body_bytes = before + len(data)
        if request.content_length is None and self._is_too_large(request.body_bytes):
            raise Refusal(413, f"client intended to send too large chunked body: {before}+{len(data)} bytes")
        if request is self.request:
            self.runloop.body(request, data)
        elif self._waiting:
            self._waiting[-1].body.append(data)

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._framing_bytes = 0

    def on_message_complete(self) -> None:
        """The request has been read."""
        request = self._incoming
        if request is None or (request.asks_upgrade and self._parser.should_upgrade()):
            return
        if self._lines:
            # A trailer section is read and dropped, as nginx does (RFC 9112 7.1.2).
            check_head_size(b"", self._lines)
            self._lines = []
        self._incoming = None
        self._framing_bytes = 0
        request.complete = True
        if request is self.request:
            self.runloop.body_complete(request)
        elif request.done and self.runloop.draining:
            self.close()

    # The order of things.

    @property
    def _is_discarding(self) -> bool:
        """Whether the rest of a body is read whose request has been answered (nginx, `discard_body`)."""
        return self._incoming is not None and self._incoming.done

    def _expect_body(self, request: Request) -> None:
        self._incoming = request
        self._body_wanted = False
        size = request.content_length or 0
        if self._is_too_large(size):
            raise Refusal(413, f"client intended to send too large body: {size} bytes")

    def _is_too_large(self, body_bytes: int) -> bool:
        limit = self.runloop.nginx.client_max_body_size
        return bool(limit) and body_bytes > limit

    def _begin(self, request: Request) -> None:
        self.request = request
        self.sent_bytes = 0
        self.requests += 1
        if self.requests >= self.runloop.keepalive_requests:
            request.keep_alive = False
        self.runloop.begin(request)

    def _advance(self) -> None:
        """Begin what waits in line, as long as it is answered at once."""
        if self._advancing:
            return
        self._advancing = True
        while self._waiting and self.request is None and not self._blocked:
            request = self._waiting.popleft()
            request.started_ns = self.runloop.time_ns()
            self._begin(request)
        self._advancing = False
        if self.request is None and not self._waiting and self._refused is not None:
            self._answer_refusal(self._refused)
        self._resume_reading()

    def _pause_reading(self) -> None:
        self._paused = True
        self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._paused and (self._closing or not (self._waiting or self._body_held or self._refused)):
            self._paused = False
            self._since_s = self.runloop.now()
            self.transport.resume_reading()

    def _refuse(self, refusal: Refusal) -> None:
        """Read no more, and refuse when what came before is answered."""
        answered = self._incoming
        if answered is not None and answered.done:
            self.runloop.refuse_rest(answered, refusal)
            self.close(lingering=True)
            return
        self._refused = self._unserved(refusal.status, refusal.reason)
        self._head_bytes = 0
        self._url = b""
        broken, self._incoming = self._incoming, None
        if broken is not None and broken is self.request:
            self.runloop.refuse_body(broken, refusal)
        elif broken is not None:
            self._refused = RefusedRequest(self, refusal.status, refusal.reason, broken.request_line, broken.lines)
            if self._waiting and self._waiting[-1] is broken:
                self._waiting.pop()
        if self.request is None and not self._waiting:
            self._answer_refusal(self._refused)
        elif not self._paused:
            self._pause_reading()

    def _answer_refusal(self, refused: RefusedRequest) -> None:
        if not self._closing:
            self.out.append(self.runloop.refuse(refused))
            self.close(lingering=True)
