"""Random ids, drawn in blocks."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TRACE_ID_BYTES = 16
SPAN_ID_BYTES = 8
IDS_PER_BLOCK = 512


class IdSupply:
    """An endless supply of random ids, drawn in blocks because one draw costs more than the id.

    Args:
        random_bytes: gives that many random bytes.
        size: bytes of one id. No id is all zero (W3C Trace Context 3.2.2.3).

    Attributes:
        drawn: ids that wait for use; take one with ``drawn.pop()``, and with :meth:`draw` when it is empty.
    """

    __slots__ = ("_random_bytes", "_supplied", "_unpack", "_zero", "drawn")

    def __init__(self, random_bytes: Callable[[int], bytes], size: int) -> None:
        self._random_bytes = random_bytes
        self._unpack = Struct(f"{size}s" * IDS_PER_BLOCK)
        self._zero = bytes(size)
        self._supplied = 0
        self.drawn: list[bytes] = []

    def draw(self) -> bytes:
        """The next id."""
        while not self.drawn:
            block = self._random_bytes(self._unpack.size)
            ids: Sequence[bytes] = self._unpack.unpack(block)
            if self._zero in block:
                ids = [id_ for id_ in ids if id_ != self._zero]
            self.drawn += ids
            self._supplied += len(ids)
        return self.drawn.pop()

    def add(self, ids: Sequence[bytes]) -> None:
        """Supply ``ids`` next, in their order."""
        self.drawn.extend(reversed(ids))
        self._supplied += len(ids)

    def used(self) -> int:
        """How many ids have been taken."""
        return self._supplied - len(self.drawn)
