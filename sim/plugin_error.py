"""What is said of an exception that a plugin has raised: where in its own code, and what was meant, if known."""

import re
import sys
from pathlib import Path
from traceback import walk_tb
from typing import Final

from sim.absence import missing

_FIELD_OF_MAPPING: Final = re.compile(r"AttributeError: 'dict' object has no attribute '(\w+)'")

_NOT_THE_USERS: Final = frozenset({"sim", "kongtrace", "uvloop", "httptools", "_pytest"}) | sys.stdlib_module_names
"""The packages whose code runs for a plugin and is none of its own; pytest has a hand in importing."""

_LIBRARIES: Final = frozenset({"site-packages", "dist-packages"})
"""Folders of what is installed; a plugin may be, too, but what it has called is more often."""


def users_place(error: BaseException) -> tuple[str, int] | None:
    """Return file and line where the user's program failed: what it has called, such as the PDK, it cannot mend."""
    places = [
        (frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
        if _is_users(frame.f_globals.get("__name__", ""))
    ]
    own = [place for place in places if _LIBRARIES.isdisjoint(Path(place[0]).parts)]
    return next(reversed(own or places), None)


def _is_users(module: str) -> bool:
    return module.startswith("sim.plugins.") or module.partition(".")[0] not in _NOT_THE_USERS


def place_of(error: BaseException) -> str:
    """Return `FILE:LINE`: the user's, or where it was raised when no code of the user's had to do with it."""
    raised = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    place = users_place(error) or (raised[-1] if raised else None)
    return f"{place[0]}:{place[1]}" if place is not None else "?"


def described(error: BaseException) -> str:
    """Return what a line of the log says of an exception.

    Where a mapping was taken for a Lua table it says what to write; of what the PDK has not, what takes its place.
    """
    try:
        text = f"{type(error).__name__}: {missing(error) or error}"
    except Exception:  # noqa: BLE001 - its text is the plugin's code, too
        text = f"{type(error).__name__}, whose text cannot be made"
    field = _FIELD_OF_MAPPING.match(text)
    return f'{text}; write ["{field[1]}"]' if field else text
