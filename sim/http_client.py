"""The client side of one HTTP exchange: a request on a pooled connection, its whole answer."""

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from sim.framing import HeaderLines
from sim.outline import ResponseOutline

if TYPE_CHECKING:
    from sim.upstream import UpstreamConnection


class Answer(NamedTuple):
    """What came back.

    Attributes:
        status: of the answer.
        lines: its header lines.
        body: its body.
    """

    status: int
    lines: HeaderLines
    body: bytes


async def exchange(
    connection: "UpstreamConnection", request: bytes, *, timeout_s: float, bodiless: bool, body_bytes_max: int
) -> Answer:
    """Send a request and wait for its whole answer.

    Args:
        connection: idle; it goes back to its pool, or is closed when nobody waits for the answer any more.
        request: head and body.
        timeout_s: between two reads of the answer.
        bodiless: the answer has no body whatever its headers say (HEAD).
        body_bytes_max: what is longer is cut.

    Raises:
        OSError: there is no answer.
    """
    waiting = _Exchange(body_bytes_max)
    connection.send(waiting, request, timeout_s=timeout_s, bodiless=bodiless)
    try:
        return await waiting.answer
    finally:
        # Whoever is cancelled leaves an exchange that is not over.
        connection.give_up(waiting)


class _Exchange:
    """Who waits for the answer (`sim.upstream.Exchange`)."""

    def __init__(self, body_bytes_max: int) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._body_bytes_max = body_bytes_max
        self._status = 0
        self._lines: HeaderLines = []
        self._body = bytearray()

    def on_head(self, status: int, lines: HeaderLines, outline: ResponseOutline) -> None:
        del outline
        self._status, self._lines = status, lines

    def on_body(self, data: bytes) -> None:
        self._body += data[: self._body_bytes_max - len(self._body)]

    def on_end(self) -> None:
        if not self.answer.done():
            self.answer.set_result(Answer(self._status, self._lines, bytes(self._body)))

    def on_flush(self) -> None:
        pass

    def on_lost(self, connection: "UpstreamConnection", reason: str, *, timeout: bool) -> None:  # noqa: ARG002 - the same
        if not self.answer.done():
            self.answer.set_exception(ConnectionError("timeout" if timeout else reason))

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass
