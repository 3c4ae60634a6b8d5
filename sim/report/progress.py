"""What a run shows while it goes on: a live view on a terminal, one line where nobody watches.

A run calls :meth:`Progress.start` when it listens, :meth:`Progress.update` a few times a second, and
:meth:`Progress.close` before anything else is printed, also after an error. A terminal that is gone, or cannot be
written to, stops the view and not the run.
"""

from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypedDict

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from sim.scoreboard import Reading, Snapshot
from sim.units import about, format_duration, format_rate
from sim.workload import OpenLoad

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import RenderableType

    from sim.scenario import Scenario
    from sim.workload import ClosedLoad

_BAR_WIDTH: Final = 24
_NS_PER_S: Final = 1_000_000_000
_MIB: Final = 1 << 20


class Moment(TypedDict):
    """What is known of a run at one moment.

    Attributes:
        elapsed_s: since the beginning of the load.
        load: a report of :mod:`sim.load.driver`.
        workers: the scoreboard.
        collector: a report of :mod:`sim.collector`.
    """

    elapsed_s: float
    load: "Mapping[str, Any]"
    workers: Reading
    collector: "Mapping[str, Any]"


class Progress:
    """The view of one run, on ``console``, which is best that of stderr: stdout is for the result."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._scenario: Scenario
        self._before: Moment | None = None

    def start(self, scenario: "Scenario", url: str) -> None:
        """Show that the gateway listens on ``url``."""
        self._scenario = scenario
        workers = f"{scenario.gateway.workers} worker{'s' * (scenario.gateway.workers > 1)}"
        loads = ", ".join(map(_shape, scenario.load))
        with suppress(OSError):
            self._console.print(
                f"{scenario.name}: {workers} on {url}, profile {scenario.profile}, {loads}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            if self._console.is_terminal:
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()

    def update(self, moment: Moment) -> None:
        """Show a moment of the run."""
        if self._live is not None:
            with suppress(OSError):
                self._live.update(self._view(moment), refresh=True)
            self._before = moment

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._live is not None:
            with suppress(OSError):
                self._live.update("", refresh=True)  # its last view is shown whole, also when no terminal is so tall
                self._live.stop()
            self._live = None

    def _view(self, moment: Moment) -> "RenderableType":
        return Group(self._clock(moment), _facts(moment), _workers(moment, self._before))

    def _clock(self, moment: Moment) -> "RenderableType":
        total_s, elapsed_s = self._scenario.duration_s, moment["elapsed_s"]
        bar = ProgressBar(total=total_s, completed=min(elapsed_s, total_s), width=_BAR_WIDTH)
        grid = Table.grid(padding=(0, 2))
        grid.add_row(bar, f"{elapsed_s:.1f} s of {total_s:g} s", str(moment["load"]["state"]))
        return grid


def _shape(load: "OpenLoad | ClosedLoad") -> str:
    begins = f" after {format_duration(about(load.startTime))}" if load.startTime else ""
    return f"{_amount(load)} for {format_duration(about(load.duration_s))}{begins}"


def _amount(load: "OpenLoad | ClosedLoad") -> str:
    if isinstance(load, OpenLoad):
        return _course(format_rate(about(rate)) for _duration_s, *ends in load.course for rate in ends)
    users = _course(str(count) for _duration_s, *ends in load.course for count in ends)
    return f"{users} virtual user{'s' * (users != '1')}"


def _course(amounts: "Iterable[str]") -> str:
    return " to ".join(amount for amount, _alike in groupby(amounts))


def _facts(moment: Moment) -> Table:
    requests, latency = moment["load"]["requests"], moment["load"]["latency_ms"]
    ledger = moment["workers"].ledger
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_row("requests", *(f"{requests[name]:,} {name}" for name in ("sent", "completed", "failed")))
    grid.add_row("latency", *(f"{name} {latency[name]:.1f} ms" for name in ("p50", "p99", "max")))
    grid.add_row("spans", *(f"{getattr(ledger, name):,} {name}" for name in ("created", "acknowledged", "lost")))
    return grid


def _workers(moment: Moment, before: Moment | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("slot", "pid", "state", "requests", "per s", "CPU %", "RSS MiB", "queue", "open"):
        table.add_column(heading, justify="left" if heading == "state" else "right")
    for worker in moment["workers"].alive:
        values = worker.values
        table.add_row(
            str(worker.slot),
            str(worker.pid),
            worker.state.name.lower(),
            f"{values['requests']:,}",
            _rate(worker, "requests", moment, before),
            _rate(worker, "cpu_ns", moment, before, unit=_NS_PER_S // 100),
            f"{values['rss_bytes'] // _MIB}",
            f"{values['queue_depth'] + values['in_flight']:,}",
            f"{values['spans_open']:,}",
        )
    return table


def _rate(worker: Snapshot, counter: str, moment: Moment, before: Moment | None, *, unit: int = 1) -> str:
    """Return how fast a counter of a worker grows, in units per second; nothing for one just seen."""
    if before is None or moment["elapsed_s"] <= before["elapsed_s"]:
        return ""
    passed_s = moment["elapsed_s"] - before["elapsed_s"]
    same = (seen for seen in before["workers"].workers if (seen.slot, seen.serial) == (worker.slot, worker.serial))
    return next((f"{(worker.values[counter] - seen.values[counter]) / unit / passed_s:,.0f}" for seen in same), "")
