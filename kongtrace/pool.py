"""Pools of recycled objects, as lua-tablepool keeps them.

A pool is a LIFO free list of at most 200 objects. Every release is counted; when the count reaches 20 000 the free list
is thrown away as a whole and the count starts again. An object that finds the list full, or that arrives at that
moment, is discarded *without being cleared* (kong-semantics P2-P7).

The balance ``fetched = released + discarded + live`` holds at any time. It costs the fast path nothing: an object
leaves the free list by ``free.pop()``, and the number of those hits follows from what was put in and what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

FREE_MAX = 200
"""Objects that a pool keeps at most (P5)."""

RELEASES_MAX = 20_000
"""Releases after which a pool is replaced by an empty one (P4)."""


class Balance(NamedTuple):
    """What became of the objects of one pool; ``fetched == released + discarded + live``.

    Attributes:
        fetched: objects handed out, or taken over from a caller.
        hits: of these, taken from the free list.
        misses: of these, made anew.
        released: objects that were cleared and put into the free list.
        discarded: objects that were given back, or given up, and left to the garbage collector.
        live: objects that are out now.
        free: objects in the free list now.
    """

    fetched: int
    hits: int
    misses: int
    released: int
    discarded: int
    live: int
    free: int


class Pool(Generic[T]):
    """One tag's free list with its counters.

    Args:
        tag: the name of the pool, as Kong has it (P1).
        new: makes an empty object.
        clear: empties an object for its next use.
    """

    __slots__ = (
        "_clear",
        "_new",
        "adopted",
        "discarded",
        "free",
        "lost",
        "misses",
        "released",
        "since_replaced",
        "tag",
    )

    def __init__(self, tag: str, new: Callable[[], T], clear: Callable[[T], object]) -> None:
        self.tag = tag
        self.free: list[T] = []
        self.misses = 0
        self.adopted = 0
        self.released = 0
        self.discarded = 0
        self.lost = 0
        self.since_replaced = 0
        self._new = new
        self._clear = clear

    def fetch(self) -> T:
        """The object released last, or a new one (P2)."""
        return self.free.pop() if self.free else self.make()

    def make(self) -> T:
        """A new object, when the free list is known to be empty."""
        self.misses += 1
        return self._new()

    def release(self, obj: T) -> None:
        """Put ``obj`` back, cleared, unless the pool is full or due to be replaced (P4-P6)."""
        if self._is_replaced() or len(self.free) >= FREE_MAX:
            self.discarded += 1
            return
        self._clear(obj)
        self.free.append(obj)
        self.released += 1

    def room(self) -> int:
        """How many objects the free list still takes."""
        return FREE_MAX - len(self.free)

    def is_due(self, count: int) -> bool:
        """Whether one of the next ``count`` releases throws the free list away (P4)."""
        return self.since_replaced + count >= RELEASES_MAX

    def put_back(self, cleared: list[T], count: int) -> None:
        """Release ``count`` objects at once, of which ``cleared`` go to the free list, in order.

        The caller has cleared them and has seen to it that there is room and that no replacement is due.
        """
        self.since_replaced += count
        self.discarded += count - len(cleared)
        self.free += cleared
        self.released += len(cleared)

    def replace(self) -> None:
        """Throw the free list away and count anew (P4)."""
        self.lost += len(self.free)
        self.free.clear()
        self.since_replaced = 0

    def discard(self, count: int = 1) -> None:
        """Give up ``count`` objects that are out: they are left to whoever holds them."""
        self.discarded += count

    def balance(self) -> Balance:
        """The account of this pool now."""
        free = len(self.free)
        hits = self.released - self.lost - free
        fetched = hits + self.misses + self.adopted
        live = fetched - self.released - self.discarded
        return Balance(fetched, hits, self.misses, self.released, self.discarded, live, free)

    def _is_replaced(self) -> bool:
        self.since_replaced += 1
        if self.since_replaced < RELEASES_MAX:
            return False
        self.replace()
        return True


def balances(pools: Iterable[Pool[object]]) -> dict[str, Balance]:
    """The balance of each pool by its tag."""
    return {pool.tag: pool.balance() for pool in pools}
