"""`kongsim overhead`: what the options ask for, the measurement with its progress, and the files that come of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sim.errors import FieldError, UserError, shown
from sim.overhead import page
from sim.overhead.arms import Arm
from sim.overhead.bench import MeasurementError, Plan
from sim.overhead.measurement import STAGES, measure
from sim.overhead.outcome import Outcome, outcome
from sim.scenario import Scenario, load
from sim.units import parse_duration, parse_rate
from sim.workload import ClosedLoad, arriving_s, mean_rate_per_s

__all__ = ["Asked", "MeasurementError", "asked", "measured"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for.

    Attributes:
        scenario: whose gateway is measured.
        arms: the first is the baseline.
        rate_per_s: load of the measured worker.
        time_s: how long the comparison may last.
        precision: share of the baseline's CPU time for a request.
        others: the scenarios of arms that are files, by file.
    """

    scenario: Scenario
    arms: tuple[Arm, ...]
    rate_per_s: float
    time_s: float
    precision: float
    others: Mapping[str, Scenario] = field(default_factory=dict)


def asked(scenario: Scenario, options: Mapping[str, str | None]) -> Asked:
    """Read the options `arms`, `rate`, `time` and `precision`; raises UserError."""
    arms = tuple(map(Arm.parse, str(options["arms"]).split(",")))
    if len({arm.name for arm in arms}) < len(arms):
        raise UserError("an arm stands there twice", field="--arms", cure="the baseline is measured twice anyway")
    if len(arms) < 2:
        raise UserError("expected two arms or more", field="--arms", cure="write --arms off,0.1")
    rate_per_s = _mean_rate_per_s(scenario) / scenario.gateway.workers
    if options["rate"]:
        rate_per_s = _read("--rate", parse_rate, options["rate"])
    time_s = _read("--time", parse_duration, options["time"])
    precision = _read("--precision", _share, options["precision"])
    others = _others(scenario, arms)
    for arm in arms:
        arm.require_runnable(others.get(arm.base, scenario).gateway)
    return Asked(scenario, arms, rate_per_s, time_s, precision, others)


def _mean_rate_per_s(scenario: Scenario) -> float:
    """Return the rate while anything arrives: a worker that waits costs nothing."""
    mean_per_s = mean_rate_per_s(scenario.load)
    if mean_per_s is None:
        closed = next(index for index, load in enumerate(scenario.load) if isinstance(load, ClosedLoad))
        cure = "measure a scenario with constant-arrival-rate"
        raise scenario.document.error("virtual users have no rate", ("load", closed, "executor"), cure=cure)
    return mean_per_s * scenario.duration_s / arriving_s(scenario.load)


def _others(scenario: Scenario, arms: Sequence[Arm]) -> dict[str, Scenario]:
    """Read the scenarios of arms that are files; raises UserError, also for an upstream that nobody starts."""
    others = {arm.base: load(arm.base) for arm in arms if arm.is_file}
    for other in others.values():
        for name in (name for name in other.upstreams if name not in scenario.upstreams):
            message = f"{scenario.document.file} has no such upstream, and its upstreams serve every arm"
            raise other.document.error(message, ("upstreams", name), cure="add it there")
    return others


def _read(option: str, parse: Callable[[object], float], text: str | None) -> float:
    """Read the value of an option, which has to be above 0."""
    try:
        if (value := parse(text)) > 0:
            return value
    except FieldError as error:
        raise UserError(error.message, field=option, cure=error.cure) from None
    raise UserError(f"expected more than 0, not {text}", field=option, cure="leave it out for the default")


def _share(text: object) -> float:
    number, percent, rest = str(text).partition("%")
    with suppress(ValueError):
        share = float(number) / (100 if percent else 1)
        if isfinite(share) and not rest:
            return share
    raise FieldError(f"expected a share such as 1%, not {shown(text)}", cure="write 1%")


def measured(asked: Asked, out_dir: Path, console: Console) -> Outcome:
    """Measure, with a bar for each stage.

    Raises:
        UserError: an arm cannot be started.
        MeasurementError: a process failed.
        KeyboardInterrupt: the measurement was interrupted.
    """
    plan = Plan(asked.scenario, asked.arms, asked.rate_per_s, asked.scenario.seed, out_dir, asked.others)
    with shown_on(console) as told:
        return outcome(measure(plan, time_s=asked.time_s, precision=asked.precision, told=told))


@contextmanager
def shown_on(console: Console) -> Iterator[Callable[[str, float], None]]:
    """Show on a terminal how far each stage is; gives what is told of that, as :func:`measure` does.

    Drawn when something is told: a thread that draws would take time from what is measured, and processes are forked.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Elsewhere an empty line would be left of them.
    bars = Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    bar_of = {stage: bars.add_task(stage, total=1.0, start=False) for stage in STAGES}

    def told(stage: str, share: float) -> None:
        with suppress(OSError):  # a terminal that is gone stops the view and not the measurement
            bars.start_task(bar_of[stage])
            bars.update(bar_of[stage], completed=share, refresh=True)

    with suppress(OSError):
        bars.start()
    try:
        yield told
    finally:
        with suppress(OSError):
            bars.stop()


def writers(outcome: Outcome) -> dict[str, Callable[[Path], None]]:
    """Return what writes the files of a measurement, by name: figures, raw blocks and page."""
    return {
        "overhead.json": outcome.write_figures,
        "blocks.csv": outcome.write_blocks,
        "overhead.html": partial(page.write, outcome),
    }
