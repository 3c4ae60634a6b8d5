"""One block: a stretch of load on one arm, and what the worker spent meanwhile."""

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Reading:
    """The worker's counters at one moment, of the arm that has the block.

    Attributes:
        cpu_ns: the process's own clock.
        wall_ns: monotonic.
        requests: whose log phase has run.
        spans: taken from the pool.
        gc_ns: CPU time inside the garbage collector.
        release_ns: inside the release of spans, where an arm takes the time of that.
    """

    cpu_ns: int
    wall_ns: int
    requests: int
    spans: int
    gc_ns: int
    release_ns: int

    def since(self, before: Self) -> "Reading":
        """Return what was spent between two readings."""
        later, earlier = asdict(self), asdict(before)
        return Reading(**{name: later[name] - earlier[name] for name in later})


@dataclass(frozen=True, slots=True)
class Load:
    """What the load says of a block.

    Attributes:
        completed: requests answered.
        failed: requests without an answer.
        errors: answers of 5xx.
        p50_ms: median latency, from the intended start.
        p99_ms: its 99th percentile.
        lag_p99_ms: of the generator's own lateness.
        elapsed_s: from the first start to the last answer.
    """

    completed: int
    failed: int
    errors: int
    p50_ms: float
    p99_ms: float
    lag_p99_ms: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Block:
    """One block of one arm.

    Attributes:
        stage: "paced", "saturated" or "parts".
        launch: number of the worker process.
        turn: number of the set of blocks, one of each arm, that it belongs to.
        place: its place in the set.
        arm: name.
        spent: by the worker, from the first request to rest.
        load: what the load says.
        sent_bytes: bodies of export requests.
    """

    stage: str
    launch: int
    turn: int
    place: int
    arm: str
    spent: Reading
    load: Load
    sent_bytes: int

    @property
    def cpu_us(self) -> float:
        """CPU time of the worker for each request, us."""
        return self.spent.cpu_ns / self.spent.requests / 1000

    def row(self) -> dict[str, Any]:
        """Return it flat, for a file."""
        named = {"stage": self.stage, "launch": self.launch, "turn": self.turn, "place": self.place, "arm": self.arm}
        return named | asdict(self.spent) | asdict(self.load) | {"sent_bytes": self.sent_bytes}
