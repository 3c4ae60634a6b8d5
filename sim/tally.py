"""Tallies: what a worker counts by subject, such as the requests of each route, in shared memory.

Theory of operation. Each record of the scoreboard has a tally: `CELLS` cells of two words, a key and a value. What is
counted for the first time takes a free cell by writing its key; the value is 0 until then. Every key and every value is
written with one store of eight bytes. So nobody ever reads half a number, and whatever kills
the worker, what it has counted stays. The next worker that gets the record goes on in the cells that are there: all
tallies of a slot added up are what was ever counted in it, and never less than before. What *stands* (a gauge, such as
the health of a target) is a worker's own; it begins with 0, and only that of the living counts.

A key is made of numbers: of what kind, which subject, which detail. Subjects have names; the master numbers them, once
for its whole life, before it forks anybody who asks. One that a later configuration brings has a number that an older
process does not know.

When all cells are taken, what is new is left out, and how often is counted.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

CELLS: Final = 2_048

Subject = tuple[str, ...]
"""The names of what is counted: service and route, or upstream and target."""


class Kind(IntEnum):
    """What a cell counts, or what stands in it, with its detail."""

    REQUESTS = 1
    """Of a route: twice the status, and one more when the service has answered."""
    REQUEST_LATENCY = 2
    UPSTREAM_LATENCY = 3
    KONG_LATENCY = 4
    """Requests of a route, by the number of the bucket."""
    REQUEST_LATENCY_MS = 5
    UPSTREAM_LATENCY_MS = 6
    KONG_LATENCY_MS = 7
    """The sum of a route's."""
    TARGET_HEALTH = 8
    """Stands: 1 where a target is in the state of that number."""


STANDING: Final = frozenset({Kind.TARGET_HEALTH})
"""Kinds that are no counters."""


class Key(NamedTuple):
    """Which cell.

    Attributes:
        kind: of what is counted.
        number: of the subject.
        detail: by kind.
    """

    kind: Kind
    number: int
    detail: int


_LEFT_OUT: Final = 0
_FIRST: Final = 1
_KIND_BITS, _DETAIL_BITS = 48, 16


class Numbers:
    """The subjects, each with its number."""

    def __init__(self) -> None:
        self._numbers: dict[Subject, int] = {}

    def add(self, subjects: Iterable[Subject]) -> None:
        """Number those that have none."""
        for subject in subjects:
            self._numbers.setdefault(subject, len(self._numbers))

    def of(self, subject: Subject) -> int | None:
        """Return the number of a subject, if it has one."""
        return self._numbers.get(subject)

    def names(self) -> dict[int, Subject]:
        """Return the subjects by number."""
        return {number: subject for subject, number in self._numbers.items()}


class Tally:
    """The cells of one record.

    Args:
        words: of shared memory, `SIZE` of them.
        numbers: of the subjects.

    Attributes:
        numbers: as given.
    """

    SIZE: Final = _FIRST + 2 * CELLS

    def __init__(self, words: memoryview, numbers: Numbers) -> None:
        self._words = words
        self.numbers = numbers
        self._places: dict[int, int] = {}
        self._free = _FIRST

    @classmethod
    def alone(cls, subjects: Iterable[Subject]) -> "Tally":
        """Make one that nobody shares."""
        numbers = Numbers()
        numbers.add(subjects)
        return cls(memoryview(bytearray(8 * cls.SIZE)).cast("q"), numbers)

    def begin(self) -> None:
        """Go on where the record's last worker has left off."""
        self._places = {}
        self._free = _FIRST
        for word, _value in self._cells():
            self._places[word] = self._free + 1
            if word >> _KIND_BITS in STANDING:
                self._words[self._free + 1] = 0
            self._free += 2

    def add(self, kind: Kind, number: int, detail: int, count: int = 1) -> None:
        """Count."""
        if place := self._place(kind, number, detail):
            self._words[place] += count

    def put(self, kind: Kind, number: int, detail: int, value: int) -> None:
        """Say what stands."""
        if place := self._place(kind, number, detail):
            self._words[place] = value

    def read(self) -> dict[Key, int]:
        """Return the values by key."""
        return {_key(word): value for word, value in self._cells()}

    @property
    def left_out(self) -> int:
        """How often there was no cell for what was to be counted."""
        count: int = self._words[_LEFT_OUT]
        return count

    def _place(self, kind: Kind, number: int, detail: int) -> int:
        word = kind << _KIND_BITS | number << _DETAIL_BITS | detail
        return self._places.get(word) or self._take(word)

    def _take(self, word: int) -> int:
        """Take a cell and return where its value is; 0 when there is none."""
        if self._free == self.SIZE:
            self._words[_LEFT_OUT] += 1
            return 0
        self._words[self._free] = word  # its value is 0 already
        place = self._places[word] = self._free + 1
        self._free += 2
        return place

    def _cells(self) -> Iterator[tuple[int, int]]:
        words = self._words
        for place in range(_FIRST, self.SIZE, 2):
            if not words[place]:
                return
            yield words[place], words[place + 1]


def _key(word: int) -> Key:
    kind, rest = Kind(word >> _KIND_BITS), word & (1 << _KIND_BITS) - 1
    return Key(kind, rest >> _DETAIL_BITS, rest & (1 << _DETAIL_BITS) - 1)
