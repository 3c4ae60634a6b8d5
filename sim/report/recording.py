"""What is kept of a run while it goes on, for the files that show it over time: samples, and the collector's capture.

Theory of operation. A run hands over each moment that its view shows, four a second; a sample is what is worth keeping
of one, packed. Of `ROWS_MAX` rows, each that of one worker, every second sample is given up, and from then on every
second moment is not looked at: a run of any length takes the same memory, some 20 MB at most, and an hour of two
workers has all of its samples.
"""

from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from sim.capture import Capture

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sim.report.progress import Moment
    from sim.scoreboard import Snapshot

__all__ = ["ROWS_MAX", "LoadSample", "Recording", "Sample", "WorkerSample"]

ROWS_MAX: Final = 30_000
"""How many rows of workers are kept."""

_NS_PER_S: Final = 1_000_000_000


class LoadSample(NamedTuple):
    """The load at one moment.

    Attributes:
        elapsed_s: since its beginning, when it reported.
        sent, completed, failed: requests until then.
        p50_ms, p99_ms: latency of those completed since the report before; None without any.
    """

    elapsed_s: float
    sent: int
    completed: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None


class WorkerSample(NamedTuple):
    """A living worker at one moment.

    Attributes:
        slot, incarnation, generation, pid: which, as in the summary.
        values: its numbers, in the order of `sim.scoreboard.FIELDS`.
    """

    slot: int
    incarnation: int
    generation: int
    pid: int | None
    values: "array[int]"


class Sample(NamedTuple):
    """One moment.

    Attributes:
        elapsed_s: since the beginning of the load.
        load, workers: what they were then.
    """

    elapsed_s: float
    load: LoadSample
    workers: tuple[WorkerSample, ...]


class Recording:
    """What is kept of one run, to be made before its processes are forked.

    Args:
        rows_max: How many rows of workers are kept.

    Attributes:
        capture: What the collector took in.
        samples: By time.
        load_steady_ns: When the load began, by the monotonic clock.
        load_unix_ns: The same, by the wall clock.
    """

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self.capture = Capture()
        self.samples: list[Sample] = []
        self.load_steady_ns = self.load_unix_ns = 0
        self._rows_max = rows_max
        self._rows = 0
        self._every = 1
        self._moments = 0

    def begin(self, load_s: float, unix_ns: int) -> None:
        """Note when the load began.

        Args:
            load_s: by the monotonic clock.
            unix_ns: what the wall clock showed when that one was at 0.
        """
        self.load_steady_ns = round(load_s * _NS_PER_S)
        self.load_unix_ns = unix_ns + self.load_steady_ns

    def add(self, moment: "Moment") -> None:
        """Take a sample, if it is its turn."""
        turn, self._moments = self._moments, self._moments + 1
        if turn % self._every:
            return
        workers = tuple(map(_worker, moment["workers"].alive))
        self.samples.append(Sample(moment["elapsed_s"], _load(moment["load"]), workers))
        self._rows += _rows(workers)
        if self._rows > self._rows_max:
            self.samples = self.samples[::2]
            self._rows = sum(_rows(sample.workers) for sample in self.samples)
            self._every *= 2


def _rows(workers: tuple[WorkerSample, ...]) -> int:
    """Return what a moment counts for: one without workers takes room too."""
    return max(1, len(workers))


def _load(report: "Mapping[str, Any]") -> LoadSample:
    requests, latest = report["requests"], report["latest"]
    p50_ms, p99_ms = (latest["latency_ms"][name] if latest["requests"] else None for name in ("p50", "p99"))
    return LoadSample(report["elapsed_s"], requests["sent"], requests["completed"], requests["failed"], p50_ms, p99_ms)


def _worker(snapshot: "Snapshot") -> WorkerSample:
    values = array("q", snapshot.values.values())
    return WorkerSample(snapshot.slot, snapshot.serial, snapshot.generation, snapshot.pid, values)
