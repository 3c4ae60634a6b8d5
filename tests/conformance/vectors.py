"""The recorded behaviour of Kong's Lua code, and how its values are written in JSON.

A folder of vectors holds one `FAMILY.jsonl` per family, one case (a JSON object) per line. The folder is the one
beside this file, or the one that the environment variable `KONG_VECTORS` names. A family whose file is missing is
skipped, visibly.

`decode` turns the JSON notation of Lua values into Python values:

=============================  ==============================================================
`{"$hex": "00ff"}`             `bytes`; any Lua string that is not valid UTF-8
`{"$num": "nan"}`              `float`; nan, inf or -inf
`{"$rep": ["e1:", "x", 20]}`   `str`: the first text, then the second one 20 times
`{"$pairs": [[k, v], ...]}`    `dict` whose keys are not all strings
`{"$fn": name}`                `noop`, a function that does nothing
`{"$null": true}`              `NULL`, the JSON null of OpenResty (which is not Lua's nil)
any other list, object         decoded item by item; `{"$span": "s1"}` and the like stay dicts
=============================  ==============================================================
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

NULL: Final = type("userdata", (), {"__slots__": (), "__repr__": lambda _: "NULL", "__bool__": lambda _: True})()


DOUBLE_EXACT_MAX: Final = 2**53


def noop(*_arguments: Any) -> None:
    """Stands for any function that does nothing."""


def folder() -> Path:
    """The folder the vectors are read from."""
    return Path(os.environ.get("KONG_VECTORS") or Path(__file__).with_suffix(""))


def cases(family: str) -> Iterator[dict[str, Any]]:
    """The cases of a family in the order of its file, not yet decoded; skips the test when the file is missing."""
    path = folder() / f"{family}.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {path.parent}")
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line, parse_int=number)


def as_double(whole: int) -> int | float:
    """A whole number as Lua holds it: exact up to 2**53."""
    return whole if abs(whole) <= DOUBLE_EXACT_MAX else float(whole)


def number(digits: str) -> int | float:
    """A whole number in JSON."""
    return as_double(int(digits)) if digits != "-0" else -0.0


class BooleanKey(NamedTuple):
    """A boolean as a key: in Lua `true` and 1 are two, in Python one."""

    key: bool


def text_of(key: Any) -> Any:
    """Bytes as the text that they are; what is none as it is. In Lua both are one key."""
    try:
        return key.decode() if isinstance(key, bytes) else key
    except UnicodeDecodeError:
        return key


def lua_key(key: Any) -> Any:
    """A key of a table, the same for what is the same in Lua."""
    return BooleanKey(key) if isinstance(key, bool) else text_of(key)


NOTATION: Final[dict[str, Callable[[Any], Any]]] = {
    "$hex": bytes.fromhex,
    "$num": float,
    "$rep": lambda parts: parts[0] + parts[1] * parts[2],
    "$pairs": lambda pairs: {lua_key(decode(key)): decode(item) for key, item in pairs},
    "$fn": lambda _name: noop,
    "$null": lambda _true: NULL,
}


class TextOfATable:
    """A recorded text that Lua made of a table's address: whatever text Python makes of the same table equals it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)

    __hash__ = None  # type: ignore[assignment]


def decode(value: Any) -> Any:
    """A JSON value as the Python value that stands for the recorded Lua value."""
    if isinstance(value, str) and "0xADDR" in value:
        return TextOfATable()
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, content),) = value.items()
        if key in NOTATION:
            return NOTATION[key](content)
    # No table holds nil.
    return {key: decode(item) for key, item in value.items() if item is not None}
