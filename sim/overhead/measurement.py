"""A measurement: the stages of it, and when each has seen enough.

    paced      every arm at the scenario's rate: CPU, latency, bytes; goes on until precise enough or the time is up
    saturated  every arm as fast as the worker can
    memory     every arm alone in fresh workers: memory, allocations
    parts      the last exporting arm, with one part of tracing more at each step, for the break-down

Times in seconds of the monotonic clock.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from sim.overhead.arms import PARTS, Arm
from sim.overhead.bench import Bench, Launch, Plan
from sim.overhead.blocks import Block
from sim.overhead.statistics import VALUES_MIN, Interval, paired, warm_up

STAGES: Final = ("paced", "saturated", "memory", "parts")

LAUNCH_S: Final = 10.0
"""How long a worker is measured before it is started anew."""

SATURATED_S: Final = 0.1
"""How long a saturated block lasts."""

TURNS_MIN: Final = 2 * VALUES_MIN
"""Turns of a launch at least, whatever time there is: fewer leave nothing to judge by once the warm-up is taken off."""

SATURATED_SHARE: Final = 0.25
PARTS_SHARE: Final = 1.0
"""How long the other stages may last, of what the paced one may."""

MEMORY_LAUNCHES: Final = VALUES_MIN
MEMORY_REQUESTS: Final = 400
COUNTED_REQUESTS: Final = 100
MEMORY_RATE_PER_S: Final = 1000.0
"""At least, before the memory is looked at: a slow scenario would make that the longest stage."""

AGAIN: Final = "again"
"""What the second arm is called that is the same as the baseline: their difference is known to be 0."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of a fresh worker with one arm, after its first requests.

    Attributes:
        arm: name.
        rss_bytes: resident.
        pool_bytes: of what waits in the pools.
        allocations: for each request.
    """

    arm: str
    rss_bytes: int
    pool_bytes: int
    allocations: float


@dataclass
class Measurement:
    """What was measured.

    Attributes:
        plan: what was to be measured.
        precision: asked of the CPU that an arm adds, as a share of the baseline's.
        blocks: all of them, warm-ups too.
        settled: those that count.
        footprints: of the memory stage.
        parts: the arms of the break-down, in order; empty when none exports.
        wholes: the first and the last of them again, under other names.
        elapsed_s: of the paced stage.
    """

    plan: Plan
    precision: float
    blocks: list[Block] = field(default_factory=list)
    settled: list[Block] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    parts: tuple[Arm, ...] = ()
    wholes: tuple[Arm, ...] = ()
    elapsed_s: float = 0.0

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms of every stage but the last: baseline, the same again, the others."""
        return with_again(self.plan.arms)

    def values(self, stage: str, arm: str, figure: Callable[[Block], float]) -> list[float]:
        """Return a figure of each settled block of an arm, in order of turns."""
        return [figure(block) for block in self.settled if block.stage == stage and block.arm == arm]

    def added(self, arm: str, figure: Callable[[Block], float], stage: str = "paced") -> Interval | None:
        """Return what an arm has more than the baseline, turn by turn."""
        baseline = self.plan.arms[0].name
        return paired(self.values(stage, arm, figure), self.values(stage, baseline, figure))

    @property
    def asked_us(self) -> float:
        """How far, us, what an arm adds to the CPU time of a request may lie on either side of the figure told."""
        values = self.values("paced", self.plan.arms[0].name, cpu_us)
        return self.precision * sum(values) / len(values) if values else 0.0

    def is_resolved(self, added: Interval | None) -> bool:
        """Whether what an arm adds to the CPU time of a request, us, is known as precisely as asked."""
        return added is not None and added.half_width <= self.asked_us


def cpu_us(block: Block) -> float:
    """CPU time for each request."""
    return block.cpu_us


def with_again(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Return the arms with the baseline twice."""
    return (arms[0], replace(arms[0], name=f"{arms[0].name} {AGAIN}"), *arms[1:])


def parts_of(whole: Arm) -> tuple[Arm, ...]:
    """Return the arms of an arm's break-down: no tracing, the no-op tracer, then part by part."""
    off = replace(whole, name=f"{whole.name} until off", base="off", exports=False)
    return (off, whole.part(None), *(whole.part(part) for part in PARTS))


def divided(arms: Sequence[Arm]) -> Arm | None:
    """Return the arm that the break-down is of: the last that exports plain spans, by the code that runs here."""
    plain = [arm for arm in arms if arm.rate and arm.exports and not arm.is_checked and arm.revision is None]
    return plain[-1] if plain else None


def measure(plan: Plan, *, time_s: float, precision: float, told: Callable[[str, float], None]) -> Measurement:
    """Measure everything.

    Args:
        plan: what.
        time_s: how long the paced stage may last.
        precision: see `Measurement`.
        told: called with the name of the stage and the share of it that is done: 0 as it begins, 1 when it is over.

    Raises:
        UserError: an arm cannot be started.
        MeasurementError: a process failed.
    """
    measured = Measurement(plan, precision)
    whole = divided(plan.arms)
    if whole is not None:
        measured.parts = parts_of(whole)
        measured.wholes = (replace(measured.parts[0], name=f"{whole.name} off"), whole)
    with Bench(plan) as bench:
        pace(bench, measured, time_s, told)
        saturate(bench, measured, time_s * SATURATED_SHARE, told)
        footprints(bench, measured, told)
        if measured.parts:
            divide(bench, measured, time_s * PARTS_SHARE, told)
    return measured


def pace(bench: Bench, measured: Measurement, time_s: float, told: Callable[[str, float], None]) -> None:
    """Run paced turns until every arm is resolved or the time is up."""
    begun_s = time.monotonic()

    def enough() -> bool:
        added = [measured.added(arm.name, cpu_us) for arm in measured.arms[1:]]
        return all(map(measured.is_resolved, added))

    _turns(bench, measured, "paced", measured.arms, time_s, told, enough)
    measured.elapsed_s = time.monotonic() - begun_s


def saturate(bench: Bench, measured: Measurement, time_s: float, told: Callable[[str, float], None]) -> None:
    """Run saturated turns for a while."""
    _turns(bench, measured, "saturated", measured.arms, time_s, told, lambda: False)


def divide(bench: Bench, measured: Measurement, time_s: float, told: Callable[[str, float], None]) -> None:
    """Run paced turns of the arms that do one part more each."""
    _turns(bench, measured, "parts", (*measured.parts, *measured.wholes), time_s, told, lambda: False)


def footprints(bench: Bench, measured: Measurement, told: Callable[[str, float], None]) -> None:
    """Start each arm alone several times, and look at its memory."""
    rounds = [arm for _ in range(MEMORY_LAUNCHES) for arm in measured.plan.arms]
    for done, arm in enumerate(rounds):
        told("memory", done / len(rounds))
        with bench.launch([arm]) as launch:
            measured.footprints.append(_footprint(bench, launch, arm))
    told("memory", 1.0)


def _footprint(bench: Bench, launch: Launch, arm: Arm) -> Footprint:
    worker, _number = launch.places[arm.name]
    rate_per_s = bench.plan.rate_per_s
    bench.requests(launch, arm, MEMORY_REQUESTS, max(MEMORY_RATE_PER_S, rate_per_s))
    memory = worker.ask(order="memory")
    file = bench.plan.out_dir / f"allocations-{launch.number}.bin"  # an older revision counts into one
    try:
        worker.ask(order="count", file=str(file.resolve()))
        bench.requests(launch, arm, COUNTED_REQUESTS, rate_per_s)
        allocations = worker.ask(order="counted")["allocations"] / COUNTED_REQUESTS
    finally:
        file.unlink(missing_ok=True)
    return Footprint(arm.name, memory["rss_bytes"], memory["pool_bytes"], allocations)


def _turns(
    bench: Bench,
    measured: Measurement,
    stage: str,
    arms: Sequence[Arm],
    time_s: float,
    told: Callable[[str, float], None],
    enough: Callable[[], bool],
) -> None:
    """Run turns of a stage, launch after launch, and note which of their blocks count."""
    begun_s, share = time.monotonic(), 0.0
    told(stage, share)
    saturated_s = SATURATED_S if stage == "saturated" else 0.0
    kept = len(measured.settled)
    done: list[Block] = []
    while time.monotonic() < begun_s + time_s:
        blocks: list[Block] = []
        with bench.launch(arms) as launch:
            until_s = min(time.monotonic() + LAUNCH_S, begun_s + time_s)
            while time.monotonic() < until_s or len(blocks) < TURNS_MIN * len(arms):
                blocks += bench.turn(launch, stage, arms, saturated_s)
                measured.settled[kept:] = [*done, *_settled(blocks, len(arms))]
                # Where the turns are long, those that a launch has at least take longer than the time there is.
                turns = len(blocks) / len(arms)
                share = max(share, min(1.0, (time.monotonic() - begun_s) / time_s, turns / TURNS_MIN))
                told(stage, share)
                if enough():
                    break
        measured.blocks += blocks
        done += _settled(blocks, len(arms))
        measured.settled[kept:] = done
        if enough():
            break
    told(stage, 1.0)


def _settled(blocks: Sequence[Block], arms: int) -> Iterable[Block]:
    """The blocks of a launch without those of its warm-up; none before it has settled."""
    turns = [blocks[start : start + arms] for start in range(0, len(blocks), arms)]
    skipped = warm_up([sum(block.cpu_us for block in turn) for turn in turns])
    return [] if skipped is None else [block for turn in turns[skipped:] for block in turn]
