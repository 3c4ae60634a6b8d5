"""The executors of a load, by the names that k6 gives them: when requests of one kind begin, and who sends them.

| | |
|---|---|
| open | requests *arrive* at their times, whatever became of those before: the two `Arrivals` |
| closed | virtual *users* each wait for an answer before they send the next request: `VirtualUsers` |

Times in s as named, ns inside; all of them after the beginning of the load.
"""

import heapq
import math
import random
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from sim.load.arrivals import SCHEDULES, ramping, uniform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sim.load.request import Request

__all__ = ["Arrivals", "ConstantArrivalRate", "Executor", "Load", "RampingArrivalRate", "VirtualUsers", "outside"]

_NS_PER_S: Final = 1_000_000_000
_TRIFLE: Final = 1e-4  # of a user: what the rounding of times may lack


@dataclass(frozen=True, kw_only=True)
class Executor(ABC):
    """What sends one request again and again.

    Attributes:
        request: What is sent.
        start_s: When it begins.
    """

    request: "Request"
    start_s: float = 0.0

    @property
    def end_s(self) -> float:
        """When it is over, also where its last request comes long before."""
        return self.start_s + self.length_s

    @property
    @abstractmethod
    def length_s(self) -> float:
        """How long it goes on."""

    def schedule(self) -> "Iterator[int]":
        """Return when requests are due that wait for no answer, in ns after the beginning of the load."""
        offset_ns = round(self.start_s * _NS_PER_S)
        return (offset_ns + due_ns for due_ns in self._due_ns()) if offset_ns else self._due_ns()

    @abstractmethod
    def _due_ns(self) -> "Iterator[int]":
        """Return the same in ns after `start_s`."""


@dataclass(frozen=True, kw_only=True)
class Arrivals(Executor):
    """An open load.

    Attributes:
        arrival: `uniform` or `poisson`, see `sim.load.arrivals`.
        seed: Of the generator that draws the arrivals.

    Raises:
        ValueError: A value out of range; the message names it.
    """

    arrival: str = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arrival not in SCHEDULES:
            raise ValueError(f"arrival must be one of {', '.join(SCHEDULES)}, not {self.arrival!r}")


@dataclass(frozen=True, kw_only=True)
class ConstantArrivalRate(Arrivals):
    """An open load of constant rate.

    Attributes:
        rate_per_s: Requests per second.
        duration_s: How long they arrive.
    """

    rate_per_s: float
    duration_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "rate_per_s", "duration_s")

    @property
    def length_s(self) -> float:
        """How long they arrive."""
        return self.duration_s

    def _due_ns(self) -> "Iterator[int]":
        return SCHEDULES[self.arrival](self.rate_per_s, self.duration_s, random.Random(self.seed))


@dataclass(frozen=True, kw_only=True)
class RampingArrivalRate(Arrivals):
    """An open load whose rate goes in straight lines.

    Attributes:
        stages: Duration in s, and rate per s at the beginning and at the end of each.
    """

    stages: tuple[tuple[float, float, float], ...]

    @property
    def length_s(self) -> float:
        """How long they arrive."""
        return sum(duration_s for duration_s, _first, _last in self.stages)

    def _due_ns(self) -> "Iterator[int]":
        return ramping(self.stages, self.arrival, random.Random(self.seed))


@dataclass(frozen=True, kw_only=True)
class VirtualUsers(Executor):
    """A closed load of users whose number goes in straight lines: `constant-vus` and `ramping-vus`.

    A user comes when the line has risen to its number, and goes when it has fallen by a whole one: as in k6, all are
    there when it begins to fall.

    Attributes:
        stages: Duration in s, and users at the beginning and at the end of each, which is the beginning of the next.
    """

    stages: tuple[tuple[float, int, int], ...]

    @property
    def length_s(self) -> float:
        """How long they send requests."""
        return sum(duration_s for duration_s, _first, _last in self.stages)

    def users_at(self, elapsed_ns: int) -> int:
        """Return how many there are at a time; 0 before the first and after the last stage."""
        stage_s = (elapsed_ns - round(self.start_s * _NS_PER_S)) / _NS_PER_S
        if not 0 <= stage_s < self._ends_s[-1]:
            return 0
        number = bisect_right(self._ends_s, stage_s)
        duration_s, first, last = self.stages[number]
        users = last + (first - last) * (self._ends_s[number] - stage_s) / duration_s
        return math.floor(users + _TRIFLE) if first <= last else math.ceil(users - _TRIFLE)

    @cached_property
    def _ends_s(self) -> list[float]:
        return list(accumulate(duration_s for duration_s, _first, _last in self.stages))

    def _due_ns(self) -> "Iterator[int]":
        """Return when users come, each of whom sends a first request then."""
        yield from repeat(0, self.stages[0][1])
        begin_s = 0.0
        for duration_s, first, last in self.stages:
            for more in range(1, last - first + 1):
                yield round((begin_s + duration_s * more / (last - first)) * _NS_PER_S)
            begin_s += duration_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent to one address, side by side, over the same connections.

    Attributes:
        executors: Each with a request of its own.
        connections_max: Connections at most; more requests than that at once wait, and their latency shows it.
        timeout_s: How long an answer is waited for, from the intended start; the default is k6's.
        stop_timeout_s: How long answers are waited for at most once the load has been stopped.
        pauses: From when until when nothing arrives, in s; not with virtual users, who do not arrive.
        bursts: From when until when more of the first executor's requests arrive, in s, and how many a second.
        windows: From when until when faults are felt, in s: latencies of requests that start then are told apart.

    Raises:
        ValueError: A value out of range; the message names it.
    """

    executors: tuple[Executor, ...]
    connections_max: int = 1000
    timeout_s: float = 60.0
    stop_timeout_s: float = 5.0
    pauses: tuple[tuple[float, float], ...] = ()
    bursts: tuple[tuple[float, float, float], ...] = ()
    windows: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        _require_positive(self, "connections_max", "timeout_s", "stop_timeout_s")

    @property
    def length_s(self) -> float:
        """How long the load lasts."""
        return max(executor.end_s for executor in self.executors)

    def schedule(self) -> "Iterator[tuple[int, Request]]":
        """Return when requests are due that wait for no answer, in ns after the beginning, and which."""
        due = [zip(executor.schedule(), repeat(executor.request)) for executor in self.executors]
        due += [zip(self._burst(burst), repeat(self.executors[0].request)) for burst in self.bursts]
        in_order = heapq.merge(*due, key=itemgetter(0))
        if not self.pauses:
            return in_order
        is_outside = outside(self.pauses, self.length_s)
        return (each for each in in_order if is_outside(each[0]))

    def _burst(self, burst: tuple[float, float, float]) -> "Iterator[int]":
        first_s, last_s, rate_per_s = burst
        first_ns = round(first_s * _NS_PER_S)
        offsets_ns = uniform(rate_per_s, min(last_s, self.length_s) - first_s, random.Random(0))
        return (first_ns + offset_ns for offset_ns in offsets_ns)


def outside(spans_s: "tuple[tuple[float, float], ...]", end_s: float) -> "Callable[[int], bool]":
    """Return what says whether a time in ns is outside of spans of time, which end with the load."""
    spans_ns = [(round(first_s * _NS_PER_S), round(min(last_s, end_s) * _NS_PER_S)) for first_s, last_s in spans_s]
    return lambda start_ns: not any(first_ns <= start_ns < last_ns for first_ns, last_ns in spans_ns)


def _require_positive(load: object, *names: str) -> None:
    for name in names:
        if getattr(load, name) <= 0:
            raise ValueError(f"{name} must be above 0, not {getattr(load, name)}")
