"""When requests arrive: schedules of an open load, which no answer, late or lacking, can hold up.

A schedule is an iterator of intended starts in ns after the beginning of the load, in ascending order, all before the
end of the duration. Both are rounded to whole ns before they are compared: a rate such as 500/min is no float, and one
more would arrive at the very end. It depends on its arguments alone: the same generator state gives the same schedule.

- `uniform`: evenly spaced, the first at 0, as the `constant-arrival-rate` executor of k6 does.
- `poisson`: independent arrivals, as many unrelated clients make them; gaps are exponential, bursts happen.

Where the rate changes over time, `ramping`, either is stretched and squeezed: the arrivals of a rate of one per unit
are put where the area under the rate's curve has grown to theirs, as `ramping-arrival-rate` of k6 does.

Rates are per second, durations in seconds.
"""

import itertools
import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Schedule = Callable[[float, float, random.Random], Iterator[int]]

    Stage = tuple[float, float, float]

__all__ = ["SCHEDULES", "poisson", "ramping", "uniform"]

_NS_PER_S: Final = 1_000_000_000
_TRIFLE: Final = 1e-6  # of a request: what rounding may add to the area under a rate


def uniform(rate_per_s: float, duration_s: float, _generator: "random.Random") -> "Iterator[int]":
    """Yield `rate_per_s * duration_s` (rounded up) intended starts, one gap of `1 / rate_per_s` apart."""
    return _before(duration_s, (round(index * _NS_PER_S / rate_per_s) for index in itertools.count()))


def poisson(rate_per_s: float, duration_s: float, generator: "random.Random") -> "Iterator[int]":
    """Yield the intended starts of a Poisson process: `rate_per_s * duration_s` of them on average."""
    gaps_ns = (round(generator.expovariate(rate_per_s) * _NS_PER_S) for _ in itertools.count())
    return _before(duration_s, itertools.accumulate(gaps_ns))


SCHEDULES: "Final[dict[str, Schedule]]" = {"uniform": uniform, "poisson": poisson}
"""The schedules by the name that a scenario's `arrival` gives them."""


def ramping(stages: "Sequence[Stage]", arrival: str, generator: "random.Random") -> "Iterator[int]":
    """Yield the intended starts of a rate that goes in straight lines.

    Args:
        stages: Duration, and rate at the beginning and at the end of each.
        arrival: A key of `SCHEDULES`.
        generator: Of the draws.
    """
    if arrival == "poisson":
        areas = itertools.accumulate(generator.expovariate(1.0) for _ in itertools.count())
    else:
        areas = itertools.accumulate(itertools.repeat(1.0), initial=0.0)
    return _before(sum(duration_s for duration_s, _, _ in stages), _where(areas, stages))


def _before(end_s: float, starts_ns: "Iterable[int]") -> "Iterator[int]":
    end_ns = round(end_s * _NS_PER_S)
    return itertools.takewhile(lambda start_ns: start_ns < end_ns, starts_ns)


def _where(areas: "Iterator[float]", stages: "Iterable[Stage]") -> "Iterator[int]":
    """Yield when the area under the rate's curve has grown to each of `areas`, in ns."""
    area, begin_s, begin_area = next(areas), 0.0, 0.0
    for duration_s, first, last in stages:
        stage_area = duration_s * (first + last) / 2
        slope = (last - first) / duration_s
        while area - begin_area < stage_area - _TRIFLE:
            yield round((begin_s + _time_of(max(0.0, area - begin_area), first, slope)) * _NS_PER_S)
            area = next(areas)
        begin_s += duration_s
        begin_area += stage_area


def _time_of(area: float, first: float, slope: float) -> float:
    """Return when the area under `first + slope * t` is `area`, in a form that loses no digits."""
    return 2 * area / (first + math.sqrt(max(0.0, first * first + 2 * slope * area))) if area else 0.0
