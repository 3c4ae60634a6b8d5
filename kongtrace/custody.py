"""Custody: what was lent to requests that have ended, and is still held by somebody.

Theory of operation. An object that is referenced when its request ends need not be leaked: the handler that is just
returning still has it in a variable. So it is looked at when a later turn comes, by when such handlers have returned,
and only then somebody goes through the heap to find who holds it. A handler that has not returned even so, because it
waits for something, is excused: what it does with the object is seen when it does it.

A span is watched through a weak reference. A table cannot be, so it is held here and its references are counted.
"""

from __future__ import annotations

import gc
from sys import _getframe, getrefcount
from types import AsyncGeneratorType, CellType, CoroutineType, FrameType, GeneratorType
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")

UNSEEN = "an object that the garbage collector does not see, such as one from before the worker's fork"

_HANDLERS = (FrameType, CellType, CoroutineType, GeneratorType, AsyncGeneratorType)
"""What holds the variables of a handler that has not returned."""


class Held(Generic[T]):
    """Something that was lent: a span, or a table of one.

    Args:
        of: what is known of the span.
        what: it is, in words.
        span: the span itself; None for a table.
        table: the table; None for a span.

    Attributes:
        of: the same.
        what: the same.
        table: the same.
    """

    __slots__ = ("_span", "of", "table", "what")

    def __init__(self, of: T, what: str, span: object = None, table: object = None) -> None:
        self.of = of
        self.what = what
        self.table = table
        self._span = None if span is None else ref(span)

    def lent(self) -> object:
        """The span or table; None for a span that is gone."""
        return self.table if self._span is None else self._span()

    def references(self) -> int:
        """How many references there are to the table, this one included."""
        return getrefcount(self.table)

    def is_held(self) -> bool:
        """Whether anybody else refers to it."""
        return self.references() > _ALONE if self._span is None else self._span() is not None


_ALONE = Held(None, "", table=object()).references()


class Custody(Generic[T]):
    """Watches what was held when its request ended, from one turn to the next."""

    __slots__ = ("_old", "_young")

    def __init__(self) -> None:
        self._young: dict[int, Held[T]] = {}
        self._old: dict[int, Held[T]] = {}

    def __len__(self) -> int:
        """How many have come since the last turn."""
        return len(self._young)

    def take(self, lent: Iterable[Held[T]]) -> None:
        """Watch those that are held."""
        for held in lent:
            if held.is_held():
                self._young[id(held.lent())] = held

    def give_back(self, table: object) -> T | None:
        """What was known of a table that is in use again, and is watched no more; None when it is not watched."""
        for watched in (self._young, self._old):
            held = watched.get(id(table))
            if held is not None and held.table is table:
                del watched[id(table)]
                return held.of
        return None

    def turn(self) -> Iterator[Held[T]]:
        """What came before the last turn and is held to this day; it is watched no more."""
        due = [held for held in self._old.values() if held.is_held()]
        self._old, self._young = self._young, {}
        # Of a list that was let go, so were the spans in it.
        return (held for held in due if held.is_held())


def holder(lent: object, excused: tuple[type, ...], wrappers: tuple[type, ...] = ()) -> object:
    """Who holds an object.

    Args:
        lent: the object.
        excused: types whose instances may hold it.
        wrappers: types whose instances stand for it: who holds one of them holds it.

    Returns:
        A container, or whatever else refers to it; :data:`UNSEEN` when the garbage collector knows of nobody; None when
        it is only a handler that has not returned, or an instance of ``excused``.
    """
    running = list(_variables())
    local = {id(variables) for variables in running}
    holders = [found for found in gc.get_referrers(lent) if id(found) not in local and not _is_ours(found)]
    is_held = bool(holders)
    while holders:
        found = holders.pop(0)  # the list is not to hold it too
        if isinstance(found, wrappers):
            behind = holder(found, excused)
            if behind is not None and behind is not UNSEEN:
                return behind
        elif not isinstance(found, (*_HANDLERS, *excused)):
            return found
    return None if is_held or _is_in(running, lent) else UNSEEN


def _is_in(running: list[dict[str, Any]], lent: object) -> bool:
    """Whether a variable refers to it; apart from :func:`holder`, where the closure would be one more holder."""
    return any(value is lent for variables in running for value in variables.values())


def description(found: object, lent: object) -> str:
    """A holder in words."""
    if found is UNSEEN:
        return UNSEEN
    if isinstance(found, dict) and "__name__" in found:
        names = (name for name, value in found.items() if value is lent)
        return f"{next(names, 'a variable')} of module {found['__name__']}"
    return f"a {type(found).__name__}"


def _variables() -> Iterator[dict[str, Any]]:
    """The variables of the functions that run now, but for those of this package."""
    frame: FrameType | None = _getframe(1)
    while frame is not None:
        if not _is_ours(frame):
            yield frame.f_locals
        frame = frame.f_back


def _is_ours(found: object) -> bool:
    """Whether it is a function of this package that runs now, or what it keeps here."""
    if isinstance(found, FrameType):
        return str(found.f_globals.get("__name__")).startswith("kongtrace.")
    return type(found) is Held
