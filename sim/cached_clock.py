"""nginx's cached wall clock (kong-semantics R8): whole ms, the same until the event loop turns or it is read again.

The first reading in a turn is the moment of that reading, where nginx takes the moment at which the turn began.
"""

from collections.abc import Callable
from typing import Final

_NS_PER_MS: Final = 1_000_000


class CachedClock:
    """The time, as it was read last.

    Args:
        time_ns: reads the wall clock, ns since the epoch.
        call_soon: has something called in the next turn of the event loop.
    """

    def __init__(self, time_ns: Callable[[], int], call_soon: Callable[..., object]) -> None:
        self._time_ns = time_ns
        self._call_soon = call_soon
        self._read_ms: int | None = None
        self._expiring = False

    def now_ms(self) -> int:
        """Return the cached time, ms since the epoch."""
        read_ms = self._read_ms
        return self.updated_ms() if read_ms is None else read_ms

    def updated_ms(self) -> int:
        """Read the clock again, and return the time, ms since the epoch."""
        read_ms = self._read_ms = self._time_ns() // _NS_PER_MS
        if not self._expiring:
            self._expiring = True
            self._call_soon(self._expire)
        return read_ms

    def _expire(self) -> None:
        self._read_ms = None
        self._expiring = False
