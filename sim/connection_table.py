"""nginx's table of a worker's connections: how many may be open, and which go when few are left.

Everything that a worker keeps open takes a place: listening sockets, clients, connections to upstreams and collectors,
running timers (kong-semantics N5). When no more than a sixteenth is free, clients of whom no part of a request has come
are closed to make room, answered before or not, those that have been there longest first, and an eighth of them at a
time, at most 32; when none is free, whatever asked for one is refused: a client is closed unanswered, a request gets
500, a timer is lost (nginx, `ngx_get_connection`, `ngx_drain_connections`).
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, Protocol

REUSED_MAX: Final = 32
"""Clients that are closed at once."""

_WARN_S: Final = 1.0


def unlimited() -> bool:
    """Admit every connection."""
    return True


class NoConnectionLeftError(OSError):
    """`worker_connections` are in use."""


class Closable(Protocol):
    """A client's connection."""

    def close(self) -> None:
        """Close it."""


class ConnectionTable:
    """The places of one worker.

    Args:
        size: `worker_connections`.
        used: says how many are taken.
        idle: gives the clients that may be closed, the oldest first.
        now: a clock, in s.
        log: takes a level and a message.
    """

    def __init__(
        self,
        size: int,
        used: Callable[[], int],
        idle: Callable[[], Iterable[Closable]],
        now: Callable[[], float],
        log: Callable[[str, str], None],
    ) -> None:
        self._size = size
        self._used = used
        self._idle = idle
        self._now = now
        self._log = log
        self._warned_s = -_WARN_S

    def admits(self) -> bool:
        """Whether there is a place for one more; says so in the error log when there is not."""
        free = self._size - self._used()
        if free <= self._size // 16:
            self._reuse()
        if free > 0:
            return True
        self._log("alert", f"{self._size} worker_connections are not enough")
        return False

    def _reuse(self) -> None:
        idle = list(self._idle())
        if not idle:
            return
        now = self._now()
        if now - self._warned_s >= _WARN_S:
            self._warned_s = now
            self._log("warn", f"{self._size} worker_connections are not enough, reusing connections")
        for connection in islice(idle, max(1, min(REUSED_MAX, len(idle) // 8))):
            connection.close()
