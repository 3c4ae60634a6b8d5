"""What `kongsim overhead` prints."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.overhead.outcome import ArmOutcome, Outcome

_TABLES = (
    ("CPU of the worker", ("cpu_us", "added_us", "added_us_per_span", "added_percent")),
    ("requests", ("saturation_rps", "busy_percent", "sent_bytes", "allocations", "gc_percent")),
    ("latency at the load's rate", ("p50_ms", "added_p50_ms", "p99_ms", "added_p99_ms")),
    ("memory", ("rss_mib", "pool_kib")),
)


def show(outcome: Outcome, folder: str, console: Console) -> None:
    """Print the figures of every arm, the break-down and the sentence."""
    tables = [_table(title, keys, outcome.arms) for title, keys in _TABLES]
    if outcome.breakdown is not None:
        tables.append(_parts(outcome))
    for table in tables:
        console.print(table, "", sep="\n")
    console.print(f"{outcome.sentence}\n", style="bold", highlight=False, markup=False)
    for reason, arms in _unresolved(outcome.arms).items():
        told = f"not resolved, {', '.join(arms)}: {reason}"
        console.print(told, style="yellow", highlight=False, markup=False)
    if any(figure.value is None for arm in outcome.arms for figure in arm.figures.values()):
        console.print("more --time resolves more, and so does a wider --precision", highlight=False)
    console.print("all with 95 % intervals", highlight=False)
    console.print(f"results in {folder}", highlight=False, markup=False, soft_wrap=True)


def _unresolved(arms: Sequence[ArmOutcome]) -> dict[str, list[str]]:
    """The arms that lack a figure, by the reason why."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        for reason in dict.fromkeys(figure.why for figure in arm.figures.values() if figure.value is None):
            found.setdefault(reason, []).append(arm.arm)
    return found


def _table(title: str, keys: Sequence[str], arms: Sequence[ArmOutcome]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("arm", overflow="fold")
    for key in keys:
        name = next((arm.figures[key].name for arm in arms if key in arm.figures), "")
        table.add_column(name, justify="right", no_wrap=True)
    for arm in arms:
        cells = [arm.figures[key].text() if key in arm.figures else "" for key in keys]
        table.add_row(Text(f"{arm.arm} (A/A)" if arm.is_control else arm.arm), *cells)
    return table


def _parts(outcome: Outcome) -> Table:
    breakdown = outcome.breakdown
    assert breakdown is not None
    title = Text(f"where the tracing of {breakdown.arm} goes, us CPU a request", style="table.title")
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("part")
    table.add_column("us/req", justify="right", no_wrap=True)
    for name, figure in breakdown.parts.items():
        table.add_row(f"  {name}", figure.text())
    table.add_row("all parts", breakdown.total.text())
    table.add_row(f"  {breakdown.export.name}", breakdown.export.text())
    agrees = {True: "agrees", False: "DIFFERS", None: ""}[breakdown.closes]
    table.add_row(f"{breakdown.whole.name}  {agrees}", breakdown.whole.text())
    return table
