"""What the functions of the PDK, and of nginx, may be given: checked, refused with Kong's words, and encoded.

A wrong argument would else come up when the request or the answer is written, where no handler is to blame any more.

Raises:
    ApiError: it is no such value.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from kongtrace import ApiError
from kongtrace.lua import lua_text
from sim import cjson
from sim.framing import octets

TOKENS_MAX: Final = 1024
"""Names of headers, and methods, of which it is remembered that they may be written."""

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_BREAKS_LINES: Final = re.compile(r"[\r\n\0]")
_LUA_TYPES: Final = {type(None): "nil", str: "string", bytes: "string", bool: "boolean", int: "number", float: "number"}


def checked_text(value: Any, name: str) -> str:
    """Return a text; `name` is what the message calls it."""
    if not isinstance(value, str):
        raise ApiError(f"{name} must be a string")
    return value


def checked_table(value: Any, name: str) -> Mapping[Any, Any]:
    """Return a mapping."""
    if not isinstance(value, Mapping):
        raise ApiError(f"{name} must be a table")
    return value


def checked_number(value: Any, name: str, least: int, most: int) -> int:
    """Return a limit as a whole number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ApiError(f"{name} must be a number")
    if not value >= least:
        raise ApiError(f"{name} must be >= {least}")
    if value > most:
        raise ApiError(f"{name} must be <= {most}")
    return int(value)


def checked_integer(value: Any, name: str, least: int, most: int) -> int:
    """Return a whole number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value % 1 != 0:
        raise ApiError(f"{name} must be an integer")
    if not least <= value <= most:
        raise ApiError(f"{name} must be an integer between {least} and {most}: given {int(value)}")
    return int(value)


def checked_body(value: Any) -> bytes:
    """Return a body as bytes."""
    if not isinstance(value, (bytes, str)):
        raise ApiError("body must be a string")
    return octets(value) if isinstance(value, str) else value


@lru_cache(TOKENS_MAX)
def checked_token(text: str, kind: str) -> str:
    """Return a name as it may be written: of a header, or a method."""
    if not _TOKEN.fullmatch(text):
        raise ApiError(f"invalid {kind}: {text!r}")
    return text


def checked_header(name: Any, value: Any) -> list[str]:
    """Return the values of a header, one for each line: text, numbers and booleans as Lua writes them."""
    if not isinstance(name, str):
        raise ApiError(f"invalid header name {name!r}: got {_lua_type(name)}, expected string")
    checked_token(name, "header name")
    if isinstance(value, (list, tuple)):
        return [_header_text(name, one) for one in value]
    return [_header_text(name, value)]


def _header_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, (int, float)):
        text = lua_text(value)
    else:
        expected = "array of string, string, number or boolean"
        raise ApiError(f'invalid header value for "{name}": got {_lua_type(value)}, expected {expected}')
    if not text.isprintable() and _BREAKS_LINES.search(text):
        # What a client has a plugin write must not become a line, or a message, of its own.
        raise ApiError(f"invalid header value: {text!r}")
    return text


def checked_args(args: Any) -> dict[str, list[str | bool]]:
    """Return arguments of a query or a form: the values of each, True where it has none."""
    return {_arg_name(name): _arg_values(value) for name, value in checked_table(args, "args").items()}


def _arg_name(name: Any) -> str:
    if not isinstance(name, str):
        raise ApiError("arg keys must be strings")
    return name


def _arg_values(value: Any) -> list[str | bool]:
    values = value if isinstance(value, (list, tuple)) else (value,)
    for one in values:
        if not isinstance(one, (str, int, float)):
            raise ApiError(f"attempt to use {_lua_type(one)} as query arg value")
    return [one if isinstance(one, (str, bool)) else lua_text(one) for one in values]


def encoded_args(args: Mapping[str, list[str | bool]]) -> str:
    """Return arguments URL-encoded, in the order of their names; False is left out."""
    pairs = []
    for name, values in sorted(args.items()):
        for value in values:
            if value is True:
                pairs.append(_encoded(name))
            elif value is not False:
                pairs.append(f"{_encoded(name)}={_encoded(value)}")
    return "&".join(pairs)


def encoded_json(value: Any, failed: str) -> str:
    """Return JSON as cjson writes it; `failed` is what the message begins with where there is none, as of NaN."""
    try:
        return cjson.encode(value)
    except ValueError as error:
        raise ApiError(f"{failed}: {error}") from None


def _encoded(text: str) -> str:
    return quote(text, safe="", errors="surrogateescape")


def _lua_type(value: Any) -> str:
    return _LUA_TYPES.get(type(value), "function" if callable(value) else "table")
