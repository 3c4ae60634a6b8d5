"""What several header formats write alike: hexadecimal and decimal ids, a yes or no, baggage.

Source: kong-semantics X1, X6 to X9; Kong's ``propagation/utils.lua``.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_plus

from kongtrace.lua import lua_text
from kongtrace.propagation.headers import RequestHeaders, single

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from kongtrace.propagation.context import Log

HEX: Final = re.compile("[0-9A-Fa-f]+")

UNESCAPED: Final = "-._~!'()*"
"""What nginx leaves as it is in an escaped URI component, beside letters and digits."""

DECIMAL_CHUNK: Final = 4000
"""Digits that ``int`` converts at once: it refuses more than 4300, and a header can carry more."""

WORDS: Final = {"1": True, "true": True, "0": False, "false": False}


def from_hex(text: str) -> bytes:
    """Bytes of hexadecimal ``text``; an odd length gets a leading 0 (X1)."""
    return bytes.fromhex(text if len(text) % 2 == 0 else "0" + text)


def is_zero(text: str) -> bool:
    """Every digit is 0."""
    return not text.strip("0")


def from_decimal(digits: str) -> bytes | None:
    """The number in as few bytes as it needs, big-endian; None for 0, which stands for "no id" (X9)."""
    number = decimal(digits)
    return number.to_bytes((number.bit_length() + 7) // 8, "big") or None


def decimal(digits: str) -> int:
    """The number, however many digits it has."""
    number = 0
    for start in range(0, len(digits), DECIMAL_CHUNK):
        chunk = digits[start : start + DECIMAL_CHUNK]
        number = number * 10 ** len(chunk) + int(chunk)
    return number


def to_decimal(identifier: bytes) -> str:
    """The id as a decimal number."""
    return str(int.from_bytes(identifier, "big"))


def sampled_word(headers: RequestHeaders, name: str, log: Log) -> bool | None:
    """The decision in a header of ``1``, ``true``, ``0`` or ``false``; None when absent or, with a warning, invalid."""
    value = headers.get(name)
    if value is None:
        return None
    decision = WORDS.get(value) if isinstance(value, str) else None
    if decision is None:
        log("warn", f"{name} header invalid; ignoring.")
    return decision


def hex_ids(headers: RequestHeaders, lengths: Mapping[str, Collection[int]], log: Log) -> list[bytes | None]:
    """The ids in the headers that are the keys of ``lengths``; None for those that are absent.

    A malformed one is warned of, and then none of the ids counts (X6, X8).

    Args:
        headers: of the request.
        lengths: number of digits that each header may have.
        log: takes the warnings.

    Raises:
        UnguardedError: a header was repeated exactly as often as its id has digits (Kong takes the number of values
            for the length of the text).
    """
    ids: list[bytes | None] = []
    for name, allowed in lengths.items():
        value = headers.get(name)
        if value is None:
            ids.append(None)
        elif len(value) in allowed and HEX.fullmatch(text := single(name, value)):
            ids.append(bytes.fromhex(text))
        else:
            log("warn", f"{name} header invalid; ignoring.")
    return ids if len(ids) == len(lengths) else [None] * len(lengths)


def read_baggage(headers: RequestHeaders, prefix: str) -> Mapping[str, str] | None:
    """Baggage in the headers that begin with ``prefix``, URI-unescaped and read-only; None when there is none.

    The values of a repeated header are joined by a comma (RFC 9110, 5.3).
    """
    found = {
        name.removeprefix(prefix): _unescaped(value if isinstance(value, str) else ",".join(value))
        for name, value in headers.items()
        if name.startswith(prefix)
    }
    return MappingProxyType(found) if found else None


def _unescaped(text: str) -> str:
    octets = unquote_plus(text, errors="surrogateescape").encode(errors="surrogateescape")
    return octets.decode(errors="surrogateescape")  # a character may be half escaped


def write_baggage(headers: RequestHeaders, prefix: str, baggage: Mapping[str, str] | None) -> None:
    """One header per item of ``baggage``, URI-escaped; what is no text has the one that Lua gives it."""
    for key, value in (baggage or {}).items():
        headers.set(prefix + lua_text(key), quote(lua_text(value), UNESCAPED, errors="surrogateescape"))
