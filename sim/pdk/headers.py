"""Header lines as the PDK gives them: a mapping by name in lower case, a list where a name comes several times."""

from collections.abc import Iterable
from typing import Any, Final, TypeVar

from sim.arguments import checked_number
from sim.framing import HeaderLines

V = TypeVar("V", str, str | bool)

HEADERS_MAX: Final = 100
"""Header lines that are looked at, unless a plugin says how many."""

HEADERS_SEEN_MAX: Final = 1_000
"""How many it may ask for."""


def checked_max_headers(value: Any) -> int:
    """Return how many lines a plugin asks for.

    Raises:
        ApiError: it is no number of 1 to `HEADERS_SEEN_MAX`.
    """
    return checked_number(value, "max_headers", 1, HEADERS_SEEN_MAX)


def headers_of(lines: HeaderLines) -> dict[str, str | list[str]]:
    """Return header lines as a mapping."""
    return gathered((name.lower().decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in lines)


def gathered(pairs: Iterable[tuple[str, V]]) -> dict[str, V | list[V]]:
    """Return pairs as a mapping; a list where a name comes several times. A value is no list."""
    found: dict[str, V | list[V]] = {}
    for name, value in pairs:
        earlier = found.get(name)
        if earlier is None:
            found[name] = value
        elif isinstance(earlier, list):
            earlier.append(value)
        else:
            found[name] = [earlier, value]
    return found
