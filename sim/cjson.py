r"""JSON as Kong's `cjson.safe` writes it (lua-cjson, with the 16 digits of a number that Kong sets).

A number is a double, with no point when it is whole; text goes out as it is, but for quotation marks, backslashes,
slashes (`\/`) and control characters. What json of the standard library writes says the same in other bytes.
"""

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

DEPTH_MAX: Final = 1000
"""Lists and objects within each other that are read at most, cjson's `decode_max_depth`."""

_TOO_DEEP: Final = "Found too many nested data structures"


def decode(text: bytes) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count(b"[") + text.count(b"{") > DEPTH_MAX and _is_deeper(value, DEPTH_MAX):
        raise ValueError(_TOO_DEEP)
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    within = [value]
    for _level in range(levels):
        within = [entry for each in within for entry in (each.values() if isinstance(each, dict) else each)]
        within = [entry for entry in within if isinstance(entry, dict | list)]
    return bool(within)


def encode(value: Any) -> str:
    """Return a value as JSON; bytes that are no UTF-8 are surrogates in it (`surrogateescape`).

    Raises:
        ValueError: there is no JSON for it; the words are cjson's.
    """
    parts: list[str] = []
    try:
        _append(parts, value)
    except RecursionError:
        raise ValueError("Cannot serialise, excessive nesting") from None
    return "".join(parts)


def _append(parts: list[str], value: Any) -> None:
    match value:
        case None:
            parts.append("null")
        case bool():
            parts.append("true" if value else "false")
        case str() | bytes():
            parts.append(_text(value))
        case int() | float():
            parts.append(_number(value))
        case Mapping():
            _append_object(parts, value)
        case list() | tuple():
            parts.append("[")
            for index, entry in enumerate(value):
                parts.append("," if index else "")
                _append(parts, entry)
            parts.append("]")
        case _:
            raise ValueError(f"Cannot serialise {type(value).__name__}: type not supported")


def _append_object(parts: list[str], table: Mapping[Any, Any]) -> None:
    parts.append("{")
    for index, (key, entry) in enumerate(table.items()):
        parts.append(f",{_key(key)}:" if index else f"{_key(key)}:")
        _append(parts, entry)
    parts.append("}")


def _key(key: Any) -> str:
    if isinstance(key, str | bytes):
        return _text(key)
    if isinstance(key, int | float) and not isinstance(key, bool):
        return f'"{_number(key)}"'
    raise ValueError(f"Cannot serialise {type(key).__name__}: table key must be a number or string")


def _text(text: str | bytes) -> str:
    if isinstance(text, bytes):
        text = text.decode(errors="surrogateescape")
    return json.dumps(text, ensure_ascii=False).replace("/", r"\/").replace("\x7f", r"\u007f")


def _number(number: float) -> str:
    try:
        double = float(number)
    except OverflowError:
        double = float("inf")
    if not isfinite(double):
        raise ValueError("Cannot serialise number: must not be NaN or Infinity")
    return f"{double:.16g}"
