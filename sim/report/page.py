"""report.html: a run on one page: verdict and thresholds, plots over time, the tables of the terminal, the environment.

Plots are made of the samples of a run (`sim.report.recording`); a rate is that over the last second or more, since a
worker publishes its CPU time four times a second only. The page needs plotly, of the extra `report`.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.table import Table

from sim.faults import KINDS
from sim.report import html, tables
from sim.report.recording import LoadSample, Recording, Sample, WorkerSample
from sim.report.summary import Summary
from sim.scoreboard import FIELD_INDEX

FILES: Final = {
    "summary.json": "every figure of this page, for programs",
    "junit.xml": "the thresholds as tests, for a CI server",
    "workers.parquet": "each worker process over time",
    "spans.parquet": "each span that the collector received",
    "scenario.yaml": "the scenario as it was run: running it again repeats the run",
    "error.log": "the gateway's",
}
"""What stands beside the page in the folder of a run."""

_UNBROKEN: Final = 1 << 20  # columns: a page is as wide as its widest table
_POINTS_MAX: Final = 400  # of a line: more than a plot has pixels to show
_TOLD_AT_ONCE_MAX: Final = 12  # lines: what more have at one time would cover the plot
_RATE_S_MIN: Final = 1.0
_FIRST_REPORT_S: Final = 0.1  # a report before that is of a request or two
_HEIGHT_PX: Final = 290
_NS_PER_CENT: Final = 10_000_000  # of a core, in a second
_MIB: Final = 1 << 20
_CLASSES: Final = {"passed": "good", "failed": "bad", "invalid": "odd", "interrupted": "odd"}
_COLOURS: Final = ("#1f5fa8", "#d9781e", "#2e8b57", "#b8427f", "#6b56b3", "#8c6d1f", "#2aa1b3", "#a23b2d")
_SHADES: Final = ("192,40,45", "107,86,179", "150,105,11", "42,161,179", "90,100,115", "190,80,160")  # of faults

_Points = Sequence[tuple[float, float | None]]
_Samples = Sequence[tuple[float, WorkerSample]]
_Workers = Mapping[tuple[int, int], _Samples]
"""The samples of each worker process with their times, by slot and incarnation."""


def write(summary: Summary, recording: Recording, path: Path) -> None:
    """Write the page; raises OSError."""
    parts = list(tables.sections(summary, _UNBROKEN))
    thresholds = [content for title, content in parts if title == "thresholds"]
    load, *others = [(title, content) for title, content in parts if title != "thresholds"]
    content = [
        f"<p class='dim'>{html.escape(tables.headline(summary))}, begun {html.escape(_begun(summary))}</p>\n",
        _verdict(summary),
        _tiles(summary),
        *(f"<h2>Thresholds</h2>\n{_parts(shown)}" for shown in thresholds),
        _warnings(summary.warnings),
        "<h2>Requests and latency</h2>\n",
        _parts(load[1]),
        _plots(summary, recording.samples),
        "<h2>Workers and spans</h2>\n",
        *(f"<h3>{html.escape(_capital(title))}</h3>\n{_parts(shown)}" for title, shown in others),
        "<h2>Environment</h2>\n",
        _definitions(_environment(summary)),
        "<h2>Files of this run</h2>\n",
        _definitions((name, what) for name, what in FILES.items()),
    ]
    path.write_text(html.page(summary.scenario, "".join(content)), encoding="utf-8")


# Words and figures.


def _begun(summary: Summary) -> str:
    date, _t, time = summary.started_at.partition("T")
    return f"{date} {time[:8]} {time[12:]}"  # without the milliseconds


def _capital(title: str) -> str:
    return title[0].upper() + title[1:]


def _verdict(summary: Summary) -> str:
    asked, failed = len(summary.thresholds), sum(not threshold.passed for threshold in summary.thresholds)
    told = {
        "passed": f"thresholds that held: {asked} of {asked}" if asked else "no threshold was set",
        "failed": f"thresholds that did not hold: {failed} of {asked}",
        "invalid": f"the figures do not count: {summary.invalid_reason}",
        "interrupted": "the figures are those of the time before",
    }[summary.verdict]
    word = f"<b>{summary.verdict.upper()}</b>"
    return f"<p class='verdict {_CLASSES[summary.verdict]}'>{word} {html.escape(told)}</p>\n"


def _tiles(summary: Summary) -> str:
    requests, ledger = summary.requests, summary.ledger
    lost = f" ({ledger['lost'] / ledger['created']:.1%})" if ledger["created"] else ""
    tiles = (
        (f"{requests.completed:,}", f"of {requests.offered:,} requests completed"),
        (f"{requests.failed:,}", "requests failed"),
        (_ms(summary.latency_ms.p50), "latency p50"),
        (_ms(summary.latency_ms.p99), "latency p99"),
        (f"{ledger['created']:,}", "spans created"),
        (f"{ledger['lost']:,}", f"spans lost{lost}"),
        (f"{ledger['unaccounted']:,}", "spans unaccounted"),
    )
    shown = (
        f"<div class='tile'><b>{html.escape(figure)}</b><span>{html.escape(what)}</span></div>"
        for figure, what in tiles
    )
    return f"<div class='tiles'>{''.join(shown)}</div>\n"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"


def _parts(parts: Iterable[Table | str]) -> str:
    return "".join(f"<p>{html.escape(part)}</p>\n" if isinstance(part, str) else html.table(part) for part in parts)


def _warnings(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(warning)}</li>\n" for warning in warnings)
    return f"<h2>Warnings</h2>\n<ul class='odd'>{items}</ul>\n" if warnings else ""


def _environment(summary: Summary) -> Iterator[tuple[str, str]]:
    environment = summary.environment
    yield "kongsim", f"{summary.version}, {'' if environment.compiled else 'not '}compiled"
    yield "CPU", f"{environment.cpu}, {environment.cores} cores may be used"
    yield "memory", f"{environment.memory_mib:,} MiB"
    yield "system", f"{environment.kernel}, {environment.python}"
    yield "libraries", ", ".join(f"{name} {version}" for name, version in environment.versions.items())


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    shown = (f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>\n" for term, text in pairs)
    return f"<dl>{''.join(shown)}</dl>\n"


# Plots.


class _Line(NamedTuple):
    name: str
    points: _Points
    colour: str


def _plots(summary: Summary, samples: Sequence[Sample]) -> str:
    if not samples:
        return "<p>The run was too short for plots over time.</p>\n"
    load, workers = _load_samples(samples), _worker_samples(samples)
    end_s = samples[-1].elapsed_s
    windows = _windows(summary.faults, end_s)
    shadows = [_shadow(spans_s, colour) for spans_s, colour in zip(windows.values(), cycle(_SHADES))]
    of_load, of_workers = {"showlegend": True}, {"showlegend": False}
    latency: dict[str, Any] = of_load | {"yaxis": _LOGARITHMIC}
    drawn: list[tuple[str, list[_Line], dict[str, Any]]] = [
        ("Requests a second", _requests(load), of_load),
        ("Latency, ms", _latencies(load), latency),
        ("Requests a second, by worker", _by_worker(workers, _rate("requests")), of_workers),
        ("CPU of each worker, % of a core", _by_worker(workers, _rate("cpu_ns", _NS_PER_CENT)), of_workers),
        ("Spans queued or being sent, by worker", _by_worker(workers, _level("queue_depth", "in_flight")), of_workers),
        ("Resident memory of each worker, MiB", _by_worker(workers, _resident_mib), of_workers),
    ]
    figures = "".join(
        html.figure(title, [*shadows, *map(_trace, lines)], _layout(len(lines), end_s) | layout, _HEIGHT_PX)
        for title, lines, layout in drawn
    )
    keys = _keys(list(windows), sorted({slot for slot, _incarnation in workers}))
    return f"{keys}<div class='plots'>{figures}</div>\n<p class='dim'>{_NOTE}</p>\n"


_TICKS: Final = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
_LOGARITHMIC: Final = {"type": "log", "tickvals": _TICKS, "ticktext": [f"{tick:,g}" for tick in _TICKS]}
_NOTE: Final = (
    "Time is in seconds since the load began. Rates are those of the last second or more, of less in the first second; "
    "latencies are those of the requests that were answered in the last quarter of a second."
)


def _keys(faults: Sequence[str], slots: Sequence[int]) -> str:
    """Return what the colours stand for that several plots have in common."""
    keys = [f"<i style='{_shade(colour)}'></i>{name}" for name, colour in zip(faults, cycle(_SHADES))]
    if len(slots) <= len(_COLOURS):  # beyond that one colour is that of several
        keys += [f"<i class='line' style='background: {_colour(slot)}'></i>slot {slot}" for slot in slots]
    return f"<p class='keys'>{''.join(f'<span>{key}</span> ' for key in keys)}</p>\n"


def _shade(colour: str) -> str:
    return f"background: rgba({colour},.12); border: 1px solid rgba({colour},.6)"


def _trace(line: _Line) -> dict[str, Any]:
    points = _thinned(line.points)
    return {
        "x": [round(x, 3) for x, _y in points],
        "y": [None if y is None else float(f"{y:.5g}") for _x, y in points],
        "name": line.name,
        "mode": "lines+markers" if len(points) == 1 else "lines",
        "line": {"color": line.colour, "width": 1.7},
    }


def _thinned(points: _Points) -> _Points:
    """Return no more than can be seen: of each stretch its lowest and its highest point, so that no peak is lost."""
    stretch = -(-2 * len(points) // _POINTS_MAX)
    if stretch <= 2:
        return points
    seen: list[tuple[float, float | None]] = []
    for first in range(0, len(points), stretch):
        some = points[first : first + stretch]
        known = sorted((y, x) for x, y in some if y is not None)
        seen += sorted({(x, y) for y, x in (known[0], known[-1])}) if known else some[:1]
    return seen


def _layout(lines: int, end_s: float) -> dict[str, Any]:
    return {
        "xaxis": {"range": [0, end_s], "ticksuffix": " s"},
        "yaxis": {"rangemode": "tozero"},
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        "hovermode": "x unified" if lines <= _TOLD_AT_ONCE_MAX else "closest",
    }


def _windows(faults: Iterable[Mapping[str, Any]], end_s: float) -> dict[str, list[tuple[float, float]]]:
    """Return from when until when the faults of each kind were felt; an act, such as a kill, takes no time."""
    windows: dict[str, list[tuple[float, float]]] = {}
    for fault in faults:
        kind = KINDS[fault["target"]][fault["kind"]]
        lasts = "for" in (*kind.needs, *kind.takes)
        last_s = fault.get("ended_at_s", end_s if lasts else fault["at_s"])
        windows.setdefault(f"{fault['target']} {fault['kind']}", []).append((fault["at_s"], last_s))
    return windows


def _shadow(spans_s: Sequence[tuple[float, float]], colour: str) -> dict[str, Any]:
    """Return windows as one shape, since there may be thousands."""
    return {
        "x": [x for first_s, last_s in spans_s for x in (first_s, first_s, last_s, last_s, None)],
        "y": [0, 1, 1, 0, None] * len(spans_s),
        "yaxis": "y2",
        "mode": "lines",
        "line": {"color": f"rgba({colour},.6)", "width": 1},
        "fill": "toself",
        "fillcolor": f"rgba({colour},.12)",
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _colour(slot: int) -> str:
    return _COLOURS[slot % len(_COLOURS)]


def _load_samples(samples: Iterable[Sample]) -> list[LoadSample]:
    """Return what the load reported, each report once, from its beginning."""
    reports = {load.elapsed_s: load for load in (sample.load for sample in samples) if load.elapsed_s > _FIRST_REPORT_S}
    return [LoadSample(0.0, 0, 0, 0, None, None), *reports.values()]


def _worker_samples(samples: Iterable[Sample]) -> _Workers:
    found: dict[tuple[int, int], list[tuple[float, WorkerSample]]] = {}
    for sample in samples:
        for worker in sample.workers:
            found.setdefault((worker.slot, worker.incarnation), []).append((sample.elapsed_s, worker))
    return dict(sorted(found.items()))


def _requests(load: Sequence[LoadSample]) -> list[_Line]:
    colours = {"sent": _COLOURS[1], "completed": _COLOURS[0], "failed": "#c0282d"}
    points = {name: [(sample.elapsed_s, getattr(sample, name)) for sample in load] for name in colours}
    shown = [name for name in colours if name != "failed" or load[-1].failed]
    return [_Line(name, _rates(points[name]), colours[name]) for name in shown]


def _latencies(load: Sequence[LoadSample]) -> list[_Line]:
    p50 = [(sample.elapsed_s, sample.p50_ms) for sample in load]
    p99 = [(sample.elapsed_s, sample.p99_ms) for sample in load]
    return [_Line("p50", p50, _COLOURS[0]), _Line("p99", p99, _COLOURS[1])]


def _by_worker(workers: _Workers, points: Callable[[_Samples], _Points]) -> list[_Line]:
    """Return a line for each worker process; those of one slot have its colour."""
    return [
        _Line(f"slot {slot}, pid {samples[0][1].pid}", points(samples), _colour(slot))
        for (slot, _incarnation), samples in workers.items()
    ]


def _level(*names: str, unit: int = 1) -> Callable[[_Samples], list[tuple[float, float]]]:
    places = [FIELD_INDEX[name] for name in names]
    return lambda samples: [(x, sum(worker.values[place] for place in places) / unit) for x, worker in samples]


def _resident_mib(samples: _Samples) -> _Points:
    """Return what memory was resident; a worker that is starting has not measured it."""
    return [(x, mib or None) for x, mib in _level("rss_bytes", unit=_MIB)(samples)]


def _rate(name: str, unit: int = 1) -> Callable[[_Samples], _Points]:
    level = _level(name, unit=unit)
    return lambda samples: _rates(level(samples))


def _rates(points: Sequence[tuple[float, float]]) -> _Points:
    """Return how fast a counter grew, in units per second, over the last second or a little more at each point."""
    times_s = [x for x, _y in points]
    rates = []
    for x, y in points[1:]:
        x_before, y_before = points[max(0, bisect_right(times_s, x - _RATE_S_MIN) - 1)]
        rates.append((x, (y - y_before) / (x - x_before)))
    return rates
