"""When requests arrive: schedules of an open load, which no answer, late or lacking, can hold up.

A schedule is an iterator of intended starts in ns after the beginning of the load, in ascending order, all within the
duration. It depends on its arguments alone: the same generator state gives the same schedule.

- `uniform`: evenly spaced, the first at 0, as the `constant-arrival-rate` executor of k6 does.
- `poisson`: independent arrivals, as many unrelated clients make them; gaps are exponential, bursts happen.

Rates are per second, durations in seconds.
"""

import itertools
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    Schedule = Callable[[float, float, random.Random], Iterator[int]]

__all__ = ["SCHEDULES", "poisson", "uniform"]

_NS_PER_S: Final = 1_000_000_000


def uniform(rate_per_s: float, duration_s: float, _generator: "random.Random") -> "Iterator[int]":
    """Yield `rate_per_s * duration_s` (rounded up) intended starts, one gap of `1 / rate_per_s` apart."""
    end_ns = round(duration_s * _NS_PER_S)
    starts_ns = (int(index * _NS_PER_S / rate_per_s) for index in itertools.count())
    return itertools.takewhile(lambda start_ns: start_ns < end_ns, starts_ns)


def poisson(rate_per_s: float, duration_s: float, generator: "random.Random") -> "Iterator[int]":
    """Yield the intended starts of a Poisson process: `rate_per_s * duration_s` of them on average."""
    end_ns = round(duration_s * _NS_PER_S)
    gaps_ns = (round(generator.expovariate(rate_per_s) * _NS_PER_S) for _ in itertools.count())
    return itertools.takewhile(lambda start_ns: start_ns < end_ns, itertools.accumulate(gaps_ns))


SCHEDULES: "Final[dict[str, Schedule]]" = {"uniform": uniform, "poisson": poisson}
"""The schedules by the name that a scenario's `arrival` gives them."""
