"""The result of a run as tables: what the user reads when it is over.

Numbers are right-aligned under headings that carry the unit. The ledger has a row for each account and a column for
each worker process, the dead ones too; where the columns do not fit side by side, they go on below. Colours appear on
a terminal only, and never carry anything that the words do not say.
"""

from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sim.ledger import LOSSES
from sim.threshold import value_text
from sim.units import about, format_duration, format_rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from sim.report.summary import LoadEntry, Summary, Worker

ACCOUNTS: Final = (
    ("created", "created"),
    ("copied_again", "+ copied again"),
    ("unsampled", "  unsampled"),
    ("unprocessed", "  unprocessed"),
    ("rejected", "  rejected"),
    ("lost_in_request", "  lost in request"),
    ("open", "  open"),
    ("enqueued", "  enqueued"),
    ("acknowledged", "    acknowledged"),
    ("dropped_overflow", "    dropped, overflow"),
    ("dropped_retries", "    dropped, retries"),
    ("dropped_refused", "    dropped, refused"),
    ("dropped_shutdown", "    dropped, shutdown"),
    ("swallowed", "    swallowed"),
    ("lost_in_queue", "    lost in queue"),
    ("queued", "    queued"),
    ("in_flight", "    in flight"),
    ("lost", "lost"),
    ("unaccounted", "unaccounted"),
)
"""The accounts of a ledger in the order of its equations: what is indented adds up to what it hangs under."""

_RARE: Final = frozenset({"copied_again", "open", "queued", "in_flight"})
"""Accounts that are empty as a rule, once all workers have ended; shown only when they are not."""

WIDTH_MIN: Final = 80
"""What the tables are made for; a terminal that is narrower breaks lines, where a table would cut off figures."""

_NAME_WIDTH: Final = 21
_COLUMN_WIDTH: Final = 11
_TITLE_WIDTH: Final = 60  # what tells a path from others, as a rule
_INDENT: Final = 2
_FAULT_COLUMNS: Final = frozenset({"at_s", "planned_s", "for_s", "ended_at_s", "target", "kind"})
_DETAILS: Final = {
    "latency_s": "latency {} s",
    "retry_after_s": "Retry-After {:.0f} s",
    "limit_bytes": "limit {:,} B",
    "rate_per_s": "{:g}/s more",
}
"""How the fields of a fault are shown, where not by name and value."""

VERDICT_STYLE: Final = {"passed": "bold green", "failed": "bold red", "invalid": "bold yellow", "interrupted": "bold"}


def show(summary: "Summary", folder: str, console: Console) -> None:
    """Print the result of a run that was written to ``folder``."""
    console.width = max(console.width, WIDTH_MIN)
    console.print(result(summary, console.width), highlight=False)
    # These lines are left to the terminal to break: in a file each is one line, and a path can be copied.
    for line in (*_warnings(summary), *_verdict(summary), Text(f"results in {folder}")):
        console.print(line, highlight=False, soft_wrap=True)


def result(summary: "Summary", width: int) -> "RenderableType":
    """Return the tables for a console of ``width`` columns."""
    return Group(*(_section(title, _spaced(parts)) for title, parts in sections(summary, width)))


def sections(summary: "Summary", width: int) -> "Iterable[tuple[str, Sequence[Table | str]]]":
    """Yield title and content of each section: tables, and lines under them; no line is wider than ``width``."""
    yield "load", _load(summary)
    yield "workers", [_workers(summary.workers)]
    yield from _ledger(summary, width)
    if summary.ledger["lost"]:
        yield "spans lost, by reason", [_lost(summary.ledger)]
    if summary.faults:
        yield "faults", _faults(summary)
    yield "pools and queue of each worker, objects", [_holdings(summary.workers)]
    yield "pools, objects of all workers", [_pools(summary)]
    yield "collector, spans", _collector(summary)
    if summary.sampling.traces:
        yield "sampling, traces", [_sampling(summary)]
    if summary.thresholds:
        yield "thresholds", [_thresholds(summary)]


def headline(summary: "Summary") -> str:
    """Return in one line how the scenario was run."""
    rate_per_s = summary.load.offered_rate_per_s
    users_alone = all(load.executor.endswith("vus") for load in summary.loads)
    users = "virtual users" if users_alone else "arrivals and virtual users"
    what = users if rate_per_s is None else format_rate(about(rate_per_s))
    shape = f"{what} for {format_duration(about(summary.load.duration_s))}"
    return f"profile {summary.profile}, seed {summary.seed}, {shape}, run of {summary.elapsed_s:.1f} s"


def load_title(number: int, request: str) -> str:
    """Return how one of several loads is called, without the end of a long path."""
    title = f"[{number}] {request}"
    return title if len(title) <= _TITLE_WIDTH else title[: _TITLE_WIDTH - 1] + "…"


def _spaced(parts: "Sequence[Table | str]") -> Group:
    """Put a blank line above each table but the first."""
    lines: list[RenderableType] = [parts[0]]
    for part in parts[1:]:
        lines += [part] if isinstance(part, str) else ["", part]
    return Group(*lines)


def _load(summary: "Summary") -> "Sequence[Table | str]":
    requests, latency, load = summary.requests, summary.latency_ms, summary.load
    counts = _table("requests", "offered", "sent", "completed", "failed", "5xx", "offered /s", "sent /s")
    counts.add_row(
        "",
        *(f"{count:,}" for count in (requests.offered, requests.sent, requests.completed, requests.failed)),
        f"{requests.status_5xx:,}",
        _number(load.offered_rate_per_s, 1),
        f"{load.achieved_rate_per_s:,.1f}",
    )
    times = _table("latency, ms", "mean", "p50", "p90", "p99", "p99.9", "max", "generator lag p99")
    shown = (latency.mean, latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max, load.lag_ms["p99"])
    times.add_row("", *(_number(value, 2) for value in shown))
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in requests.failed_by_reason.items() if count)
    each = [_loads(summary.loads)] if len(summary.loads) > 1 else []
    return [counts, *([f"failed: {reasons}"] if reasons else []), times, *each]


def _loads(loads: "Iterable[LoadEntry]") -> Table:
    table = _table("load", "completed", "failed", "5xx", "per s", "p50 ms", "p99 ms", "max ms")
    request, *figures = table.columns
    request.justify, request.overflow = "left", "fold"
    for column in figures:
        column.no_wrap = True
    for number, load in enumerate(loads):
        counts = (load.completed, load.failed, load.status_5xx)
        latency = (load.latency_ms.p50, load.latency_ms.p99, load.latency_ms.max)
        table.add_row(
            Text(load_title(number, load.request)),
            *(f"{count:,}" for count in counts),
            _number(load.completed_per_s, 0),
            *(_number(value, 2) for value in latency),
        )
    return table


def _workers(workers: "Iterable[Worker]") -> Table:
    table = _table("slot", "pid", "ended", "requests", "spans", "CPU us/req", "RSS MiB", "lag ms")
    for worker in workers:
        table.add_row(
            str(worker.slot),
            str(worker.pid) if worker.pid else f"{worker.incarnations} earlier",
            worker.ended or "",
            f"{worker.requests:,}",
            f"{worker.spans:,}",
            _number(worker.cpu_us_per_request, 0),
            _number(worker.rss_mib, 1),
            _number(worker.loop_lag_ms_max, 1),
        )
    return table


def _ledger(summary: "Summary", width: int) -> "Iterable[tuple[str, Sequence[Table]]]":
    columns = [(_heading(worker), worker.ledger) for worker in summary.workers] + [("all", summary.ledger)]
    at_once = max(1, (width - _INDENT - _NAME_WIDTH) // _COLUMN_WIDTH)
    for first in range(0, len(columns), at_once):
        yield ("ledger, spans" if not first else "ledger, continued"), [_accounts(columns[first : first + at_once])]


def _accounts(columns: "Sequence[tuple[str, dict[str, int]]]") -> Table:
    table = Table(box=None, padding=0, pad_edge=False, header_style="dim")
    table.add_column("", width=_NAME_WIDTH)
    for heading, _ledger in columns:
        table.add_column(heading, justify="right", width=_COLUMN_WIDTH, vertical="bottom")
    for account, label in ACCOUNTS:
        figures = [ledger[account] for _heading, ledger in columns]
        if account in _RARE and not any(figures):
            continue
        cells = [Text(f"{figure:,}", style=_figure_style(account, figure)) for figure in figures]
        table.add_row(Text(label, style="bold" if account == "unaccounted" else ""), *cells)
    return table


def _lost(ledger: "dict[str, int]") -> Table:
    table = _table("reason", "spans", "of created")
    table.columns[0].justify = "left"
    reasons = {label.strip(): ledger[account] for account, label in ACCOUNTS if account in LOSSES}
    for reason, spans in [*sorted(reasons.items(), key=lambda lost: -lost[1]), ("all", ledger["lost"])]:
        if spans:
            table.add_row(reason, f"{spans:,}", f"{spans / ledger['created']:.1%}")
    return table


def _faults(summary: "Summary") -> "Sequence[Table]":
    table = _table("at s", "to s", "target", "kind", "")
    for column in table.columns[2:]:
        column.justify = "left"
    for fault in summary.faults:
        details = ", ".join(_detail(name, value) for name, value in fault.items() if name not in _FAULT_COLUMNS)
        end = fault.get("ended_at_s")
        table.add_row(
            f"{fault['at_s']:.2f}", "" if end is None else f"{end:.2f}", fault["target"], fault["kind"], details
        )
    window = summary.fault_window
    times = _table("p99, ms", "during faults", "otherwise", "ratio", "queue at most, spans of a worker")
    times.add_row(
        "",
        _number(window.latency_ms.p99, 2),
        _number(window.outside_latency_ms.p99, 2),
        _number(window.p99_ratio, 2),
        f"{summary.totals.queue_depth_max:,}",
    )
    return [table, times]


def _detail(name: str, value: object) -> str:
    shown = f"{len(value)} workers" if isinstance(value, list) else value
    return _DETAILS.get(name, f"{name} {{}}").format(shown)


def _figure_style(account: str, figure: int) -> str:
    if account == "unaccounted":
        return "bold red" if figure else "bold green"
    return "" if figure else "dim"


def _heading(worker: "Worker") -> str:
    lines = (f"slot {worker.slot}", str(worker.pid or f"{worker.incarnations} earlier"), worker.ended or "")
    return "\n".join(line for line in lines if line)


def _pools(summary: "Summary") -> Table:
    table = _table("pool", "fetched", "made anew", "released", "discarded", "live")
    table.columns[0].justify = "left"
    for tag, pool in summary.totals.pools.items():
        figures = (pool.fetched, pool.misses, pool.released, pool.discarded, pool.live)
        table.add_row(tag, *(f"{figure:,}" for figure in figures))
    return table


def _holdings(workers: "Iterable[Worker]") -> Table:
    table = _table("slot", "pid", "pool hits", "misses", "hit rate", "in pools", "live", "queue max")
    for worker in workers:
        hits, misses, free, live = (
            sum(getattr(pool, name) for pool in worker.pools.values()) for name in ("hits", "misses", "free", "live")
        )
        table.add_row(
            str(worker.slot),
            str(worker.pid) if worker.pid else f"{worker.incarnations} earlier",
            *(f"{hits:,}", f"{misses:,}", f"{hits / (hits + misses):.1%}" if hits + misses else "-"),
            *(f"{free:,}", f"{live:,}", f"{worker.queue_depth_max:,}"),
        )
    return table


def _collector(summary: "Summary") -> "Sequence[Table | str]":
    collector = summary.collector
    spans = _table("received", "per s", "again", "unanswered", "rejected", "orphans", "unfinished")
    spans.add_row(
        f"{collector.received_unique:,}",
        _number(collector.received_per_s, 0),
        *(f"{count:,}" for count in (collector.received_duplicates, collector.unanswered, collector.rejected)),
        *(f"{count:,}" for count in (collector.orphans, collector.unfinished)),
    )
    requests = f"{collector.requests:,} requests, {collector.refused:,} of them refused"
    return [spans, f"in {collector.traces:,} traces, by {requests}"]


def _sampling(summary: "Summary") -> Table:
    sampling = summary.sampling
    table = _table("sent upstream", "kept by the gateway", "by the upstream", "by both")
    kept = (sampling.gateway, sampling.upstream, sampling.both)
    table.add_row(f"{sampling.traces:,}", *(f"{count:,} ({count / sampling.traces:.1%})" for count in kept))
    return table


def _thresholds(summary: "Summary") -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("expression", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("")
    for threshold in summary.thresholds:
        word, style = ("passed", "green") if threshold.passed else ("FAILED", "bold red")
        table.add_row(threshold.expression, value_text(threshold.expression, threshold.value), Text(word, style=style))
    return table


def _warnings(summary: "Summary") -> "Iterable[RenderableType]":
    return (Text(f"warning: {warning}", style="yellow") for warning in summary.warnings)


def _verdict(summary: "Summary") -> "Iterable[RenderableType]":
    head = Text.assemble(
        (summary.verdict.upper(), VERDICT_STYLE[summary.verdict]), f"  {summary.scenario}, {headline(summary)}"
    )
    lines: list[RenderableType] = ["", head]
    if summary.verdict == "invalid":
        lines.append(f"the figures do not count: {summary.invalid_reason}")
    return lines


def _section(title: str, content: "RenderableType") -> "RenderableType":
    return Group("", Text(title, style="bold"), Padding(content, (0, 0, 0, _INDENT), expand=False))


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
