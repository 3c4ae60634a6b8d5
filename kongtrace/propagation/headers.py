"""The request headers as propagation sees them: an interface, and an implementation in memory.

Names are lower case: letters beyond ASCII have none, as in nginx. A value is ``str``, or ``list[str]`` when the header
was sent several times. Text is UTF-8; a byte that is not UTF-8 is a lone surrogate (``errors="surrogateescape"``), so
that every header survives unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Protocol

from kongtrace.lua import lua_lower
from kongtrace.propagation.context import UnguardedError

HeaderValue = str | list[str]

HEADERS_SEEN_MAX = 100
"""Header lines of a request that Kong looks at: ``lua_max_req_headers`` (kong-semantics X30)."""


class RequestHeaders(Protocol):
    """What propagation asks of a request. A gateway's request can implement it; :class:`Headers` does.

    Only the first 100 lines of a request are to be seen by ``get`` and ``items`` (X30).
    """

    def get(self, name: str, /) -> HeaderValue | None:
        """The value of the header ``name``, or None; a ``_`` in ``name`` finds ``-``."""

    def items(self) -> Iterable[tuple[str, HeaderValue]]:
        """All headers, names in lower case."""

    def set(self, name: str, value: HeaderValue, /) -> None:
        """Replace the header, however often it was sent; a list makes several lines; ``name`` in any case."""

    def clear(self, name: str, /) -> None:
        """Remove the header, if it is there; ``name`` in any case."""


class Headers:
    """Request headers in memory.

    Args:
        lines: (name, value) pairs in the order in which they came, names in any case; or a mapping of name to value,
            where a list stands for a header sent several times.
        seen_max: number of lines that can be read (X30); the others are only passed on.
    """

    __slots__ = ("_repeats", "_seen", "_unseen")

    def __init__(
        self, lines: Iterable[tuple[str, str]] | Mapping[str, HeaderValue] = (), seen_max: int = HEADERS_SEEN_MAX
    ) -> None:
        self._seen: dict[str, HeaderValue] = {}
        self._unseen: list[tuple[str, str]] = []
        self._repeats = False  # some header has had several lines
        if not isinstance(lines, list):
            lines = list(_lines(lines.items()) if isinstance(lines, Mapping) else lines)
        seen = self._seen
        for name, value in lines[:seen_max]:
            lowered = name if name.islower() else lua_lower(name)
            if lowered in seen:
                self.add(lowered, value)
            else:
                seen[lowered] = value
        for name, value in lines[seen_max:]:
            self._unseen.append((lua_lower(name), value))

    def add(self, name: str, value: str, /) -> None:
        """Add a line, however often the header is there already; ``name`` in any case."""
        name = lua_lower(name)
        earlier = self._seen.get(name)
        if earlier is None:
            self._seen[name] = value
        elif isinstance(earlier, list):
            earlier.append(value)
        else:
            self._seen[name] = [earlier, value]
            self._repeats = True

    def get(self, name: str, /) -> HeaderValue | None:
        """The value of the header, or None; case does not matter, and a ``_`` finds ``-``."""
        value = self._seen.get(name)
        return value if value is not None else self._seen.get(_key(name))

    def lacks(self, names: AbstractSet[str], /) -> bool:
        """Whether none of these headers can be seen; names in lower case, with dashes."""
        return self._seen.keys().isdisjoint(names)

    def items(self) -> Iterable[tuple[str, HeaderValue]]:
        """The headers that can be seen."""
        return self._seen.items()

    def set(self, name: str, value: HeaderValue, /) -> None:
        """Replace the header; one that was not there comes last."""
        name = lua_lower(name)
        if isinstance(value, str):
            self._seen[name] = value
        else:
            self._seen[name] = list(value)
            self._repeats = True
        if self._unseen:
            self._forget_unseen(name)

    def clear(self, name: str, /) -> None:
        """Remove the header."""
        name = lua_lower(name)
        self._seen.pop(name, None)
        if self._unseen:
            self._forget_unseen(name)

    def lines(self) -> list[tuple[str, str]]:
        """Every line to be passed on, names in lower case."""
        if not (self._repeats or self._unseen):
            return list(self._seen.items())  # type: ignore[arg-type]  # each value is text then
        return [*_lines(self._seen.items()), *self._unseen]

    def _forget_unseen(self, name: str) -> None:
        self._unseen = [line for line in self._unseen if line[0] != name]


@lru_cache(maxsize=1024)
def _key(name: str) -> str:
    return lua_lower(name).replace("_", "-")


def _lines(items: Iterable[tuple[str, HeaderValue]]) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, value in items:
        if isinstance(value, str):
            lines.append((name, value))
        else:
            lines += [(name, one) for one in value]
    return lines


def single(name: str, value: HeaderValue) -> str:
    """The value of a header that Kong takes for granted was sent once.

    Raises:
        UnguardedError: it was sent several times (kong-semantics H34).
    """
    if isinstance(value, str):
        return value
    raise UnguardedError(f"{name} header repeated")
