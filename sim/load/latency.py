"""Latencies, counted in a histogram of high dynamic range (HDR): every percentile within 0.1 %, in bounded space.

Recorded in µs, from 0 to one hour; summaries in ms. Percentiles cannot be merged, histograms can: those of several
loads or runs are exchanged in HdrHistogram's own encoding (base64) and added up.

Theory of operation. The counts are kept by bucket in a dictionary, and the buckets are HdrHistogram's for three
significant digits: 1 µs wide below 2048 µs, then doubling with each power of two, some 22 000 at most. The library,
which is pure Python, encodes and decodes; asked for percentiles it would scan all buckets, and hold up a load
generator for tens of milliseconds at each report.
"""

import bisect
import itertools
from typing import TYPE_CHECKING, Final, Self

from hdrh.histogram import HdrHistogram

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LATENCY_US_MAX", "Latencies"]

LATENCY_US_MAX: Final = 3_600_000_000
"""The longest latency told apart; a longer one counts as this."""

_DIGITS: Final = 3
_BUCKET_BITS: Final = 11  # a value of n bits shares its bucket with those that differ in the last n - 11 only
_PER_MILLE: Final = {"p50": 500, "p90": 900, "p99": 990, "p99_9": 999, "max": 1000}


class Latencies:
    """A histogram of latencies."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}  # by the least value of the bucket, in µs

    def record(self, latency_us: int) -> None:
        """Count one latency."""
        bucket_us = _bucket(latency_us)
        self._counts[bucket_us] = self._counts.get(bucket_us, 0) + 1

    def merge(self, encoded: "Iterable[str]") -> Self:
        """Add encoded histograms to this one."""
        for text in encoded:
            for item in HdrHistogram.decode(text).get_recorded_iterator():
                bucket_us = _bucket(item.value_iterated_to)
                self._counts[bucket_us] = self._counts.get(bucket_us, 0) + item.count_at_value_iterated_to
        return self

    def add(self, others: "Latencies") -> Self:
        """Add others to these."""
        for bucket_us, count in others._counts.items():  # noqa: SLF001 - of its own kind
            self._counts[bucket_us] = self._counts.get(bucket_us, 0) + count
        return self

    def without(self, others: "Latencies") -> "Latencies":
        """Return the latencies that are not among `others`, which are some of these."""
        rest = Latencies()
        counts = others._counts  # noqa: SLF001 - of its own kind
        left = {bucket_us: count - counts.get(bucket_us, 0) for bucket_us, count in self._counts.items()}
        rest._counts = {bucket_us: count for bucket_us, count in left.items() if count}
        return rest

    def encode(self) -> str:
        """Return the histogram as text, for `merge`."""
        histogram = HdrHistogram(1, LATENCY_US_MAX, _DIGITS)
        for bucket_us, count in self._counts.items():
            histogram.record_value(bucket_us, count)
        text: bytes = histogram.encode()
        return text.decode()

    def summary_ms(self) -> dict[str, float]:
        """Return p50, p90, p99, p99_9, max and mean in ms; all 0 when nothing was recorded.

        A percentile is that of the nearest rank, rounded up: so large a share of all, at least, are no longer.
        It is told as the greatest value of the bucket that holds it, as HdrHistogram has it.
        """
        buckets_us = sorted(self._counts)
        totals = list(itertools.accumulate(self._counts[bucket_us] for bucket_us in buckets_us))
        if not totals:
            return dict.fromkeys((*_PER_MILLE, "mean"), 0.0)
        summary = {
            name: _greatest(buckets_us[bisect.bisect_left(totals, -(-share * totals[-1] // 1000))])
            for name, share in _PER_MILLE.items()
        }
        summary["mean"] = sum(_middle(bucket_us) * count for bucket_us, count in self._counts.items()) / totals[-1]
        return {name: value_us / 1000 for name, value_us in summary.items()}

    def __len__(self) -> int:
        """Return how many latencies were recorded."""
        return sum(self._counts.values())


def _bucket(latency_us: int) -> int:
    if latency_us < 1 << _BUCKET_BITS:
        return latency_us
    latency_us = min(latency_us, LATENCY_US_MAX)
    excess_bits = latency_us.bit_length() - _BUCKET_BITS
    return latency_us >> excess_bits << excess_bits


def _width(bucket_us: int) -> int:
    return 1 << max(0, bucket_us.bit_length() - _BUCKET_BITS)


def _greatest(bucket_us: int) -> float:
    return bucket_us + _width(bucket_us) - 1


def _middle(bucket_us: int) -> float:
    return bucket_us + _width(bucket_us) // 2
