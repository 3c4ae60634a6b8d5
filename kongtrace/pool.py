"""Pools of recycled objects, as lua-tablepool keeps them.

A pool is a LIFO free list of at most 200 objects. Every release is counted; when the count reaches 20 000 the free list
is thrown away as a whole and the count starts again. An object that finds the list full, or that arrives at that
moment, is discarded *without being cleared* (kong-semantics P2-P7).

The balance ``fetched = released + discarded + live`` holds at any time. It costs the fast path nothing: an object
leaves the free list by ``free.pop()``, and the number of those hits follows from what was put in and what is left.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar

from kongtrace.errors import ReleasedSpanError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
TableT = TypeVar("TableT", bound="Table")

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


class Table(Protocol):
    """What empties itself."""

    def clear(self) -> None:
        """Be empty."""


class Pool(Generic[T]):
    """One tag's free list with its counters.

    Args:
        tag: the name of the pool, as Kong has it (P1).
        new: makes an empty object.
        clear: empties an object for its next use.
        fetched: says how many objects have been handed out, where something else has counted them.

    Attributes:
        free: the objects that wait for their next use, the last one first; take one with ``free.pop()``.
        free_max: objects that the free list takes.
        due: releases until the free list is thrown away; they are counted here and nowhere else.
        made: objects made anew.
        adopted: objects that came from a caller, and will be given back like the others (P9), or that were given back
            again.
        given_up: objects that were never released, and were left to the garbage collector.
    """

    __slots__ = (
        "_clear",
        "_fetched",
        "_new",
        "_refused",
        "_replaced",
        "_thrown_away",
        "adopted",
        "due",
        "free",
        "free_max",
        "given_up",
        "made",
        "tag",
    )

    def __init__(
        self,
        tag: str,
        new: Callable[[], T],
        clear: Callable[[T], object],
        *,
        fetched: Callable[[], int] | None = None,
    ) -> None:
        self.tag = tag
        self.free: deque[T] = deque()  # unlike a list's, its memory does not follow each pop
        self.free_max = FREE_MAX
        self.due = RELEASES_MAX
        self.made = 0
        self.adopted = 0
        self.given_up = 0
        self._new = new
        self._clear = clear
        self._fetched = fetched
        self._refused = 0
        self._replaced = 0
        self._thrown_away = 0

    def fetch(self) -> T:
        """The object released last, or a new one (P2)."""
        if self.free:
            return self.free.pop()
        self.made += 1
        return self._new()

    def release(self, obj: T) -> None:
        """Put ``obj`` back, cleared, unless the pool is full or due to be replaced (P4-P6)."""
        self.due -= 1
        if self.due <= 0:
            self._replace()
            self._refused += 1
        elif len(self.free) < self.free_max:
            self._clear(obj)
            self.free.append(obj)
        else:
            self._refused += 1

    def leave(self, obj: T) -> None:
        """Clear ``obj``, and leave it to whoever holds it."""
        self._clear(obj)
        self._refused += 1
        self.due -= 1
        if self.due <= 0:
            self._replace()

    def release_all(self: Pool[TableT], objs: list[TableT]) -> None:
        """Release each of ``objs``, which are tables, in their order."""
        count = len(objs)
        if count >= self.due:
            for obj in objs:
                self.release(obj)
            return
        self.due -= count
        free = self.free
        refused = len(free) + count - self.free_max
        if refused > 0:
            refused = min(refused, count)
            self._refused += refused
            if refused == count:
                return
            del objs[count - refused :]
        for obj in objs:
            obj.clear()
        free += objs

    def balance(self) -> Balance:
        """The account of this pool now."""
        return Balance(*self.figures())

    def figures(self) -> tuple[int, int, int, int, int, int, int]:
        """The same as a plain tuple, which costs a third, for whoever asks after every request."""
        free = len(self.free)
        released = self._replaced + RELEASES_MAX - self.due - self._refused
        discarded = self._refused + self.given_up
        hits = released - self._thrown_away - free
        fetched = hits + self.made + self.adopted if self._fetched is None else self._fetched()
        live = fetched - released - discarded
        return fetched, hits, fetched - hits - self.adopted, released, discarded, live, free

    def _replace(self) -> None:
        """Throw the free list away: the releases are counted up (P4)."""
        self._thrown_away += len(self.free)
        self.free.clear()
        self._replaced += RELEASES_MAX - self.due
        self.due = RELEASES_MAX


class PooledList(list[T]):
    """A list as a pool of Kong's lends it: how many items it has stands in it, and is lost when it is released (P6).

    Attributes:
        item_count: that number; None of a list that is known to have been released.
    """

    __slots__ = ("_count",)  # of a list that is lent to two

    _count: int

    @property
    def item_count(self) -> int | None:
        """How many items there are."""
        return len(self)


class ReleasedList(PooledList[T]):
    """What somebody still holds of a list that has been released: it takes nothing until it is lent again."""

    __slots__ = ()

    item_count = None

    def append(self, item: T) -> NoReturn:  # noqa: ARG002  the same parameters
        """Refuse the item.

        Raises:
            ReleasedSpanError: always.
        """
        raise ReleasedSpanError("the list has been released, and so has the span or the request that it belonged to")


class SharedList(PooledList[T]):
    """One that was released twice and may be lent to two.

    The second counts from 1 again, and so does the first from then on: their items take the places of those that are
    there (P10). Whoever releases it takes it from the other too.
    """

    __slots__ = ()

    @property
    def item_count(self) -> int:
        """How many items there are, those not counted whose places will be taken."""
        return self._count

    def append(self, item: T) -> None:
        """Put the item behind those that count."""
        self[self._count : self._count + 1] = [item]
        self._count += 1

    def clear(self) -> None:
        """Be empty, and take nothing."""
        super().clear()
        self.__class__ = ReleasedList  # type: ignore[assignment]


class ListPool(Pool[list[T]]):
    """A pool of lists, each of which counts from 1 when it is lent, and takes nothing once it is released.

    Theory of operation. To change the class of a list with every release costs more than all the rest, and hardly
    anybody adds to a list that has been released. So it is a :class:`ReleasedList` only from the moment that somebody
    looks at it who might, or that it is released once more; before that it is known by being in the free list. What has
    been one is lent as a :class:`SharedList`.

    Args:
        tag: the name of the pool.
        give_up: called with what a list has when it is lent to a second one, whose items take the places.
    """

    __slots__ = ("_give_up",)

    def __init__(self, tag: str, give_up: Callable[[list[T]], None] = lambda _items: None) -> None:
        super().__init__(tag, PooledList, list.clear)
        self._give_up = give_up

    def fetch(self) -> list[T]:
        """See :meth:`Pool.fetch`."""
        if self.free:
            lent = self.free.pop()
            if type(lent) is not PooledList:
                self._share(lent)
            return lent
        self.made += 1
        return PooledList()

    def release(self, obj: list[T]) -> None:
        """See :meth:`Pool.release`."""
        self.due -= 1
        if self.due <= 0:
            self._replace()
            self._refused += 1
        elif len(self.free) < self.free_max:
            obj.clear()
            self.free.append(obj)
        else:
            self._refused += 1

    def release_again(self, obj: list[T]) -> None:
        """Release what may be in the pool already, or lent to another, who then finds it released."""
        self.adopted += 1
        self.release(obj)
        self.look_at(obj)

    def look_at(self, obj: object) -> None:
        """Somebody has kept a list beyond its release, and may add to it."""
        if type(obj) is PooledList and any(free is obj for free in self.free):
            obj.__class__ = ReleasedList

    def _share(self, lent: Any) -> None:
        self._give_up(lent)
        lent.__class__ = SharedList
        lent._count = 0  # noqa: SLF001  see there

    def _replace(self) -> None:
        for obj in self.free:
            if type(obj) is PooledList:
                obj.__class__ = ReleasedList
        super()._replace()


class Unpooled(Generic[T]):
    """Stands where there is a pool in the other profile: makes objects, keeps none, and counts nothing.

    Args:
        new: makes an empty object.

    Attributes:
        free: None: there is no free list.
        made: of no account, like ``adopted`` and ``given_up``: who writes to a :class:`Pool` may write here.
    """

    __slots__ = ("adopted", "fetch", "free", "given_up", "made")

    def __init__(self, new: Callable[[], T]) -> None:
        self.fetch = new
        self.free = None
        self.made = self.adopted = self.given_up = 0

    def release(self, obj: T) -> None:
        """Leave ``obj`` to whoever holds it."""

    def release_all(self, objs: list[T]) -> None:
        """Leave each of ``objs`` to whoever holds it."""

    def look_at(self, obj: object) -> None:
        """It is what it was."""

    def balance(self) -> Balance:
        """Nothing was pooled."""
        return Balance(0, 0, 0, 0, 0, 0, 0)
