"""What a run shows while it goes on: a live view on a terminal, one line where nobody watches.

A run calls :meth:`Progress.start` when it listens, :meth:`Progress.update` a few times a second, and
:meth:`Progress.close` before anything else is printed, also after an error.
"""

from typing import TYPE_CHECKING, Any, Final, TypedDict

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sim.scoreboard import Reading
from sim.units import format_duration, format_rate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from sim.scenario import Scenario

_REFRESHES_PER_S: Final = 4
_BAR_WIDTH: Final = 24


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
        load = scenario.load[0]
        what = f"{format_rate(load.rate)} for {format_duration(load.duration)}"
        self._console.print(
            f"{scenario.name}: {scenario.gateway.workers} workers on {url}, profile {scenario.profile}, {what}",
            highlight=False,
            soft_wrap=True,
        )
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=_REFRESHES_PER_S, transient=True)
            self._live.start()

    def update(self, moment: Moment) -> None:
        """Show a moment of the run."""
        if self._live is not None:
            self._live.update(self._view(moment))
            self._before = moment

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _view(self, moment: Moment) -> "RenderableType":
        return Group(self._clock(moment), _load(moment["load"]), _spans(moment), self._workers(moment))

    def _clock(self, moment: Moment) -> "RenderableType":
        total_s = self._scenario.duration_s
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            ProgressBar(total=total_s, completed=min(moment["elapsed_s"], total_s), width=_BAR_WIDTH),
            f"{moment['elapsed_s']:.1f} s of {total_s:g} s",
            str(moment["load"]["state"]),
        )
        return grid

    def _workers(self, moment: Moment) -> "RenderableType":
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("slot", "pid", "state", "requests", "per s", "CPU %", "RSS MiB", "queue", "open"):
            table.add_column(heading, justify="left" if heading == "state" else "right")
        earlier = (
            {(worker.slot, worker.serial): worker for worker in self._before["workers"].workers} if self._before else {}
        )
        passed_s = moment["elapsed_s"] - self._before["elapsed_s"] if self._before else 0.0
        for worker in moment["workers"].alive:
            values = worker.values
            before = earlier.get((worker.slot, worker.serial))
            gained = {name: values[name] - before.values[name] if before else 0 for name in ("requests", "cpu_ns")}
            table.add_row(
                str(worker.slot),
                str(worker.pid),
                worker.state.name.lower(),
                f"{values['requests']:,}",
                f"{gained['requests'] / passed_s:.0f}" if passed_s else "",
                f"{gained['cpu_ns'] / passed_s / 1e7:.0f}" if passed_s else "",
                f"{values['rss_bytes'] / (1 << 20):.0f}",
                f"{values['queue_depth'] + values['in_flight']:,}",
                f"{values['spans_open']:,}",
            )
        return table


def _load(load: "Mapping[str, Any]") -> "RenderableType":
    requests, latency = load["requests"], load["latency_ms"]
    return _facts(
        (
            "requests",
            f"{requests['sent']:,} sent",
            f"{requests['completed']:,} completed",
            f"{requests['failed']:,} failed",
        ),
        ("latency", *(f"{name} {latency[name]:.1f} ms" for name in ("p50", "p99", "max"))),
    )


def _spans(moment: Moment) -> "RenderableType":
    ledger = moment["workers"].ledger
    lost = ledger.created - ledger.unsampled - ledger.acknowledged - ledger.open - ledger.queued - ledger.in_flight
    return _facts(
        (
            "spans",
            f"{ledger.created:,} created",
            f"{ledger.acknowledged:,} acknowledged",
            f"{lost:,} lost",
        )
    )


def _facts(*rows: tuple[str, ...]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, *facts in rows:
        grid.add_row(Text(name, style="dim"), *facts)
    return grid
