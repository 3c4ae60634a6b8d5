"""`kong.node`: who serves."""

import os
from pathlib import Path
from typing import Any, Final

from kongtrace import ApiError
from sim.absence import Incomplete
from sim.arguments import checked_integer, checked_text

SCALE_MAX: Final = 20
"""Digits after the point that are written."""

_UNITS: Final = {"b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_STATM: Final = Path("/proc/self/statm")


class Node(Incomplete):
    """`kong.node`.

    Args:
        node_id: the same for all workers of a gateway.
    """

    _path = "kong.node"

    def __init__(self, node_id: str) -> None:
        self._id = node_id

    def get_id(self) -> str:
        """Return the node's id, a UUID."""
        return self._id

    def get_hostname(self) -> str:
        """Return the machine's name."""
        return os.uname().nodename

    def get_memory_stats(self, unit: str = "m", scale: int = 2) -> dict[str, Any]:
        """Return the memory of the worker's process.

        Args:
            unit: "b", "k", "m" or "g", in any case; a number of bytes with "b", a text with the unit's name otherwise.
            scale: digits after the point.

        Raises:
            ApiError: another unit, or a scale below 0.
        """
        if checked_text(unit, "unit").lower() not in _UNITS:
            raise ApiError(f"invalid unit '{unit}' (expected 'k/K', 'm/M', or 'g/G')")
        checked_integer(scale, "scale", 0, SCALE_MAX)
        resident = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        allocated: int | str = resident
        if unit.lower() != "b":
            allocated = f"{resident / _UNITS[unit.lower()]:.{scale}f} {unit.upper()}iB"
        return {"lua_shared_dicts": {}, "workers_lua_vms": [{"pid": os.getpid(), "http_allocated_gc": allocated}]}
