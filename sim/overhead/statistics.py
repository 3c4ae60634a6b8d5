"""Intervals of paired differences, and where a warm-up ends.

Sources. Interval: the t interval of the trimmed mean with winsorised variance (J. W. Tukey, D. H. McLaughlin, "Less
vulnerable confidence and significance procedures for location based on a single sample", Sankhya A 25, 1963), since a
shared machine now and then steals a slice of a block, and a mean follows such outliers. Warm-up: MSER-5, the marginal
standard error rule on means of five (K. P. White, "An effective truncation heuristic for bias reduction in simulation
output", Simulation 69, 1997). Stopping once an interval is narrow, whatever lies in it, keeps its coverage (Y. S. Chow,
H. Robbins, "On the asymptotic theory of fixed-width sequential confidence intervals for the mean", 1965); stopping once
it excludes 0 would not.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats
from scipy.stats import mstats

CONFIDENCE: Final = 0.95
TRIMMED: Final = 0.1
"""Share of the values left out at each end."""

VALUES_MIN: Final = 8
"""Values that an interval needs: with fewer the trimming leaves nothing out, and the t quantile is wide."""

_BATCH: Final = 5


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the interval that holds it with 95 % confidence.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        count: values that it was made of.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Half of the interval's width: the figure after the sign ±."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether the figure differs from 0."""
        return not self.low <= 0 <= self.high

    def scaled(self, factor: float) -> "Interval":
        """Return the interval in another unit."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(self.value * factor, low, high, self.count)


def interval(values: Iterable[float]) -> Interval | None:
    """Return the interval of what the values scatter about; None for fewer than `VALUES_MIN`."""
    given = np.asarray([*values], dtype=float)
    if len(given) < VALUES_MIN:
        return None
    limits = (TRIMMED, TRIMMED)
    low, high = mstats.trimmed_mean_ci(given, limits=limits, alpha=1 - CONFIDENCE)
    return Interval(float(mstats.trimmed_mean(given, limits=limits)), float(low), float(high), len(given))


def mean_interval(values: Iterable[float]) -> Interval | None:
    """Return the t interval of the plain mean, for what happens rarely and must not be trimmed away."""
    given = np.asarray([*values], dtype=float)
    if len(given) < VALUES_MIN:
        return None
    mean = float(given.mean())
    half_width = float(stats.sem(given) * stats.t.ppf((1 + CONFIDENCE) / 2, len(given) - 1))
    return Interval(mean, mean - half_width, mean + half_width, len(given))


def paired(ones: Sequence[float], others: Sequence[float]) -> Interval | None:
    """Return the interval of the difference, one minus other, of values that were measured side by side."""
    return interval(one - other for one, other in zip(ones, others, strict=True))


def warm_up(series: Sequence[float]) -> int | None:
    """Return how many values at the beginning belong to the warm-up, by MSER-5: half of them at most.

    None for fewer than two batches: nobody can tell yet.
    """
    batches = [sum(series[i : i + _BATCH]) / _BATCH for i in range(0, len(series) - _BATCH + 1, _BATCH)]
    if len(batches) < 2:
        return None
    errors = [_squared_error(batches[start:]) for start in range(len(batches) // 2 + 1)]
    return errors.index(min(errors)) * _BATCH


def _squared_error(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / len(values) ** 2
