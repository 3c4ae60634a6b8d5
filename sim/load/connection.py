"""One keep-alive connection of the load's pool, with one request at a time on it.

It knows HTTP/1.1's rules for the end of an answer; what an answer means, or the lack of one, is for its pool to say.
A connection is made for a request, which it sends once it stands. Times are in ns of `time.monotonic_ns`.
"""

import asyncio
from typing import TYPE_CHECKING, Final, Protocol, cast

import httptools

if TYPE_CHECKING:
    from sim.load.request import Request

__all__ = ["Connection", "Owner"]

_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class Owner(Protocol):
    """Who is told what happens on a connection."""

    def opened(self, connection: "Connection") -> None:
        """Hear that the connection stands and sends its first request."""

    def answered(self, request: "Request", intended_ns: int, status: int) -> None:
        """Hear that the whole answer to a request has arrived."""

    def ready(self, connection: "Connection") -> None:
        """Hear that the connection can take the next request."""

    def lost(self, connection: "Connection") -> None:
        """Hear that the connection has ended, perhaps with a request unanswered."""


class Connection(asyncio.Protocol):
    """A connection from its opening to its end.

    Args:
        owner: Who is told.
        request: The first one.
        intended_ns: Its intended start.
        again: Whether it was sent before, on another connection.

    Attributes:
        request: The one under way, or the last.
        intended_ns: Intended start of the request under way; 0 when there is none.
        answers: Complete answers so far.
        established: Whether the connection has been made.
        failure: Why the request under way has failed if the connection ends now.
    """

    transport: asyncio.Transport

    def __init__(self, owner: Owner, request: "Request", intended_ns: int, *, again: bool) -> None:
        # The connection's lifetime.
        self.again = again
        self.answers = 0
        self.established = False
        self.failure = "connect"
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        # The lifetime of the request under way.
        self.request = request
        self.intended_ns = intended_ns
        self._head = b""  # of its answer, as far as it has come
        self._in_body = False
        self._status = 0  # 0 until the answer is complete
        self._keep_alive = False

    @property
    def answer_begun(self) -> bool:
        """Whether any byte of the answer has come."""
        return bool(self._head)

    def send(self, request: "Request", intended_ns: int) -> None:
        """Send a request on the idle connection."""
        self.request = request
        self.intended_ns = intended_ns
        self.transport.write(request.encoded)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request that the connection was opened for."""
        self.transport = cast("asyncio.Transport", transport)
        self.established = True
        self.failure = "reset"
        self._owner.opened(self)
        self.transport.write(self.request.encoded)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived of an answer."""
        if not self.intended_ns:  # unasked for
            self.transport.abort()
            return
        if not self._in_body:
            self._head += data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.failure = "bad_response"
            self.transport.abort()
        else:
            if self._status:
                self._complete()

    def on_headers_complete(self) -> None:
        """Take the head for the whole answer to HEAD."""
        self._in_body = True
        if self.request.is_head:
            self._end_answer()

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        self._in_body = False
        if not self.request.is_head:
            self._end_answer()

    def connection_lost(self, error: Exception | None) -> None:
        """Take the end of the connection for that of the answer, where nothing else marks it (RFC 9112 6.3)."""
        if self.intended_ns and self._in_body and error is None and not _is_framed(self._head):
            self._owner.answered(self.request, self.intended_ns, self._parser.get_status_code())
            self.intended_ns = 0
        self._owner.lost(self)

    def _end_answer(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # not an interim one
            self._keep_alive = not self._status and self._parser.should_keep_alive()
            self._status = status

    def _complete(self) -> None:
        self._owner.answered(self.request, self.intended_ns, self._status)
        self.intended_ns = self._status = 0
        self._head = b""
        self._in_body = False
        self.answers += 1
        if self.request.is_head:
            self._parser = httptools.HttpResponseParser(self)  # the old one expects a body
        if self._keep_alive:
            self._owner.ready(self)
        else:
            self.transport.close()


def _is_framed(head: bytes) -> bool:
    names: set[bytes] = set()
    httptools.HttpResponseParser(_Names(names)).feed_data(head)
    return not names.isdisjoint(_FRAMING)


class _Names:
    def __init__(self, names: set[bytes]) -> None:
        self._names = names

    def on_header(self, name: bytes, _value: bytes) -> None:
        self._names.add(name.lower())
