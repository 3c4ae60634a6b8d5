"""The load's pool of keep-alive connections: grows as requests need it, up to a limit.

A request goes over the idle connection used last (as nginx keeps its upstream connections: the pool stays as small as
it can). If none is idle, a new one is opened for it. If there are `connections_max` already, it waits for the next
that becomes idle.

Nothing is retried, but for one case that is no failure of the server: it may close an idle connection just as a request
is sent on it. An idempotent request (RFC 9110 9.2.2) on a connection used before, of whose answer no byte has come, is
sent once more, on a fresh connection, as RFC 9112 9.3.1 allows and browsers do.

Times are in ns of `time.monotonic_ns`.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

from sim.load.connection import Connection

if TYPE_CHECKING:
    from sim.load.request import Request

__all__ = ["Accounts", "Pool"]


class Accounts(Protocol):
    """Where requests end."""

    def completed(self, request: "Request", intended_ns: int, status: int) -> None:
        """Account for a request whose whole answer has arrived."""

    def failed(self, request: "Request", reason: str) -> None:
        """Account for a request that gets no answer."""


class Pool:
    """Connections to one address: all requests go there.

    Attributes:
        sent: Requests sent; each counts once.
        resent: Those of them sent a second time.
        waited: Requests that found all connections busy.
        opened_total: Connections opened so far.
        peak: Most connections at once, those being opened too.
    """

    def __init__(self, connections_max: int, accounts: Accounts) -> None:
        self.sent = 0
        self.resent = 0
        self.waited = 0
        self.opened_total = 0
        self.peak = 0
        self._connections_max = connections_max
        self._accounts = accounts
        self._connections: dict[Connection, asyncio.Task[None]] = {}  # each with the attempt to open it
        self._idle: dict[Connection, None] = {}  # a stack: the last one is that used last
        self._waiting: deque[tuple[Request, int]] = deque()  # each with its intended start

    def begin(self, request: "Request", intended_ns: int) -> None:
        """Send a request, as soon as that can be."""
        if self._idle:
            self._send(self._idle.popitem()[0], request, intended_ns)
        elif len(self._connections) < self._connections_max:
            self._open(request, intended_ns)
        else:
            self.waited += 1
            self._waiting.append((request, intended_ns))

    def give_up(self, limit_ns: int) -> None:
        """Fail the requests with an intended start up to `limit_ns`, reason `timeout`; the loop's next turn does so."""
        while self._waiting and self._waiting[0][1] <= limit_ns:
            request, _intended_ns = self._waiting.popleft()
            self._accounts.failed(request, "timeout")
        for connection, attempt in self._connections.items():
            if 0 < connection.intended_ns <= limit_ns:
                connection.failure = "timeout"
                (connection.transport.abort if connection.established else attempt.cancel)()

    def close(self) -> None:
        """Close the connections, none of which has a request under way; the loop's next turn does so."""
        for connection in self._idle:
            connection.transport.abort()

    def opened(self, connection: Connection) -> None:
        """Count a connection that stands, and the request it was opened for."""
        self.opened_total += 1
        self.resent += connection.again
        self.sent += not connection.again

    def answered(self, request: "Request", intended_ns: int, status: int) -> None:
        """Account for a request whose whole answer has arrived."""
        self._accounts.completed(request, intended_ns, status)

    def ready(self, connection: Connection) -> None:
        """Use a connection that has become idle."""
        if self._waiting:
            self._send(connection, *self._waiting.popleft())
        else:
            self._idle[connection] = None

    def lost(self, connection: Connection) -> None:
        """Decide what becomes of the request whose connection ended; make room for one that waits."""
        del self._connections[connection]
        self._idle.pop(connection, None)
        if connection.intended_ns:
            if self._may_send_again(connection):
                self._open(connection.request, connection.intended_ns, again=True)
            else:
                self._accounts.failed(connection.request, connection.failure)
        if self._waiting and len(self._connections) < self._connections_max:
            self._open(*self._waiting.popleft())

    def _send(self, connection: Connection, request: "Request", intended_ns: int) -> None:
        connection.send(request, intended_ns)
        self.sent += 1

    def _may_send_again(self, connection: Connection) -> bool:
        return (
            connection.failure == "reset"
            and connection.answers > 0
            and not connection.answer_begun
            and connection.request.is_idempotent
        )

    def _open(self, request: "Request", intended_ns: int, *, again: bool = False) -> None:
        connection = Connection(self, request, intended_ns, again=again)
        self._connections[connection] = asyncio.get_running_loop().create_task(self._connect(connection))
        self.peak = max(self.peak, len(self._connections))

    async def _connect(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: connection, connection.request.host, connection.request.port)
        except OSError:
            self.lost(connection)
        except (
            asyncio.CancelledError
        ):  # by `give_up`; one that stood just before is closed by uvloop, which tells nobody
            if connection in self._connections:
                connection.failure = "timeout"
                self.lost(connection)
