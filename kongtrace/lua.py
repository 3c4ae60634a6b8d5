"""What Lua makes of a value: its kind, its text, its length, a text in lower case.

A user of Kong's API meets these where an argument is checked, or a value stands in a log line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Context
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Final

from kongtrace.errors import BookkeepingError

_NUMBER = Context(prec=14, rounding=ROUND_HALF_UP)
_WHOLE_MAX: Final = 10**14
_LOWER: Final = str.maketrans(ascii_uppercase, ascii_lowercase)
_DIRECTIVE: Final = re.compile(r"%([-+ #0]*\d{0,2}(?:\.\d{0,2})?)(.?)", re.DOTALL)


def is_number(value: object) -> bool:
    """Whether Lua would call ``value`` a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    """Whether Lua would call ``value`` a string."""
    return isinstance(value, (str, bytes))


def is_given(value: object) -> bool:
    """Whether Lua would take ``value`` for true: anything but nil and false."""
    return value is not None and value is not False


def is_table(value: object) -> bool:
    """Whether Lua would call ``value`` a table."""
    return isinstance(value, (dict, list))


def lua_type(value: object) -> str:
    """What Lua's ``type()`` calls a value, where it has a word for it."""
    return "function" if callable(value) else type(value).__name__


def lua_text(value: object) -> str:
    """What Lua's ``tostring()`` makes of a value, where it has a word for it."""
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) < _WHOLE_MAX:
        return str(value)
    if isinstance(value, (int, float)):
        # Of two texts that are equally near, Python takes the even one and LuaJIT the one away from zero.
        return f"{float(_NUMBER.create_decimal(value)):.14g}"
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    return str(value)


def lua_lower(text: str) -> str:
    """What Lua's ``string.lower()`` makes of a text, and nginx of the name of a header: only A to Z are changed."""
    return text.lower() if text.isascii() else text.translate(_LOWER)


def lua_table(table: dict[str, Any] | list[Any] | None) -> dict[str, Any] | None:
    """A table as the mapping that takes further keys: a list is one with the keys 1, 2 and so on, in a copy."""
    return dict(enumerate(table, 1)) if isinstance(table, list) else table  # type: ignore[arg-type]


def lua_length(entry: object) -> int:
    """What ``#`` says of a table: how many numbers from 1 on are keys. A record of ours is a table without any.

    Raises:
        BookkeepingError: it is no table, and has no length.
    """
    if isinstance(entry, int | float) or callable(entry):
        raise BookkeepingError(f"attempt to get length of a {type(entry).__name__} value")
    if isinstance(entry, list | tuple):
        return len(entry)
    length = 0
    while isinstance(entry, Mapping) and length + 1 in entry:
        length += 1
    return length


def lua_format(template: str, arguments: tuple[object, ...]) -> str:
    """What Lua's ``string.format`` makes of a template; of q, a, A and p as of s: what takes them has one argument.

    The next directive lacks its own then, so that nobody sees what those have written.

    Raises:
        BookkeepingError: a directive in it is unknown, or has no argument, or one of the wrong type.
    """
    given = iter(enumerate(arguments, start=2))

    def expand(directive: re.Match[str]) -> str:
        if directive[0] == "%%":
            return "%"
        conversion = directive[2]
        if not conversion or conversion not in "AEFGXacdefgiopqsux":
            raise BookkeepingError(f"invalid option '{directive[0]}' to 'format'")
        position, value = next(given, (len(arguments) + 2, None))
        if value is None:
            raise BookkeepingError(f"bad argument #{position} to 'format' (value expected)")
        if conversion in "Aapq":
            return lua_text(value)
        if conversion != "s" and not is_number(value):
            raise BookkeepingError(f"bad argument #{position} to 'format' (number expected, got string)")
        return directive[0] % value

    return _DIRECTIVE.sub(expand, template)
