"""Two runs side by side (`kongsim compare`): what was asked of them, their figures and their thresholds.

:func:`read` takes up the folder of a run, :func:`compare` makes a :class:`Comparison` of two, which is the JSON
document, schema ``kongsim.compare/1``, and :func:`show` prints it; ``docs/compare.md`` explains each field. The first
run is A, the second B, and a change is B - A.

A summary may be older than this program, or newer: a figure that it lacks is not measured, and what it has more is left
aside. Figures are in the units of ``summary.json``: requests, spans, ms, us, MiB, 1/s. Nothing here says whether a
change is more than noise: a run is one observation, which has no interval.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.document import Document, FieldPath, explain, read_text, written
from sim.errors import FieldError, UserError, printable, shown
from sim.report.summary import EXIT_CODES, FILE_NAME, Verdict
from sim.report.tables import ACCOUNTS, VERDICT_STYLE, WIDTH_MIN, load_title
from sim.threshold import value_text

SCHEMA: Final = "kongsim.compare/1"

FIGURE_MAX: Final = 10**15
"""No figure of a run comes near it; what is larger is none."""

NOISE: Final = (
    "a difference in CPU or latency between two runs says little; kongsim overhead measures one with intervals"
)

_BASE_MIN: Final = 1e-9
"""Of what is less, a change is told in no percent: it would be of nothing."""

_SCENARIO: Final = "scenario.yaml"
_MACHINE: Final = ("cpu", "cores", "memory_mib", "kernel")
_TOLD_ELSEWHERE: Final = frozenset({"name", "profile", "seed", "thresholds"})
"""Fields of a scenario that the summary has too, or that have a table of their own."""


class Figure(NamedTuple):
    """A figure that is compared.

    Attributes:
        label: in the table.
        path: in ``summary.json``.
        digits: after the point.
    """

    label: str
    path: str
    digits: int


_SPANS_PER_REQUEST: Final = "spans_per_request"
"""The one figure that a summary does not have: it is made of the two of `_PARTS`."""

_PARTS: Final = ("totals.spans", "totals.requests")

FIGURES: Final[Mapping[str, Sequence[Figure]]] = {
    "requests": (
        Figure("completed", "requests.completed", 0),
        Figure("failed", "requests.failed", 0),
        Figure("5xx", "requests.status_5xx", 0),
        Figure("sent /s", "load.achieved_rate_per_s", 1),
    ),
    "latency, ms": (
        Figure("p50", "latency_ms.p50", 2),
        Figure("p90", "latency_ms.p90", 2),
        Figure("p99", "latency_ms.p99", 2),
        Figure("p99.9", "latency_ms.p99_9", 2),
        Figure("max", "latency_ms.max", 2),
    ),
    "workers": (
        Figure("CPU us/req", "totals.cpu_us_per_request", 1),
        Figure("RSS MiB, largest", "totals.rss_mib", 1),
        Figure("lag ms, most", "totals.loop_lag_ms_max", 1),
        Figure("queue max, spans", "totals.queue_depth_max", 0),
        Figure("spans/req", _SPANS_PER_REQUEST, 2),
    ),
    "ledger, spans": tuple(Figure(label, f"ledger.{account}", 0) for account, label in ACCOUNTS),
    "collector, spans": (
        Figure("received", "collector.received_unique", 0),
        Figure("again", "collector.received_duplicates", 0),
    ),
}
"""The figures by the title of their table."""

LOAD_FIGURES: Final = (
    Figure("completed", "completed", 0),
    Figure("failed", "failed", 0),
    Figure("per s", "completed_per_s", 1),
    Figure("p50 ms", "latency_ms.p50", 2),
    Figure("p99 ms", "latency_ms.p99", 2),
    Figure("max ms", "latency_ms.max", 2),
)
"""The figures of each of several loads, by their path in its entry."""

_ALWAYS: Final = frozenset({"ledger.lost", "ledger.unaccounted"})
"""The accounts that are told even when they are empty in both runs: that is what one wants to know of them."""


class _Read(BaseModel):
    """What is read of a summary; fields that this version does not know are left aside."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


_Number = Annotated[float, Field(allow_inf_nan=False, ge=-FIGURE_MAX, le=FIGURE_MAX)] | None


class Held(_Read):
    """What became of a threshold in one run: its value, in the unit of the metric, and whether it held."""

    value: _Number = None
    passed: bool


class _LatencyMs(_Read):
    p50: _Number = None
    p99: _Number = None
    max: _Number = None


class _Load(_Read):
    request: str
    completed: _Number = None
    failed: _Number = None
    completed_per_s: _Number = None
    latency_ms: _LatencyMs = _LatencyMs()

    def figure(self, path: str) -> float | None:
        """Return a figure by its path; None: not measured."""
        value: float | None = attrgetter(path)(self)
        return value


class _Threshold(Held):
    expression: str


class Head(_Read):
    """Which run it is.

    Attributes:
        folder: as the user named it.
    """

    folder: str = ""
    scenario: str
    profile: str
    seed: int
    version: str | None = None
    started_at: str | None = None
    verdict: Verdict
    invalid_reason: str | None = None


class Run(Head):
    """One run, as far as it is compared.

    Attributes:
        as_run: the fields of its ``scenario.yaml``; None: it has none.
    """

    schema_: Literal["kongsim.summary/1"] = Field(alias="schema")
    thresholds: list[_Threshold] = Field(default_factory=list)
    requests: dict[str, Any] = Field(default_factory=dict)
    latency_ms: dict[str, Any] = Field(default_factory=dict)
    load: dict[str, Any] = Field(default_factory=dict)
    loads: list[_Load] = Field(default_factory=list)
    ledger: dict[str, Any] = Field(default_factory=dict)
    collector: dict[str, Any] = Field(default_factory=dict)
    totals: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    as_run: dict[Any, Any] | None = None

    @model_validator(mode="after")
    def _measured(self) -> Self:
        for path in (*_PARTS, *(figure.path for figure in _figures() if figure.path != _SPANS_PER_REQUEST)):
            value = self._value(path)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and abs(value) <= FIGURE_MAX):
                raise FieldError(f"expected a number or null, not {shown(value)}", field=path)
        return self

    def figure(self, path: str) -> float | None:
        """Return a figure by its path; None: not measured."""
        if path == _SPANS_PER_REQUEST:
            spans, requests = map(self.figure, _PARTS)
            return spans / requests if spans is not None and requests else None
        value: float | None = self._value(path)
        return value

    def _value(self, path: str) -> Any:
        section, name = path.split(".")
        return getattr(self, section).get(name)


class Difference(BaseModel):
    """A field that was not asked for alike; null: it is not set."""

    field: str
    a: Any
    b: Any


class Change(BaseModel):
    """A figure of both runs, what it changed by, and that in percent of A where that is more than 0; null: unknown."""

    a: float | int | None
    b: float | int | None
    change: float | int | None
    change_percent: float | None


class LoadChange(BaseModel):
    """The figures of a load that sent the same request in both runs, by their path in its entry of the summary."""

    number: int
    request: str
    figures: dict[str, Change]


class ThresholdChange(BaseModel):
    """A threshold in both runs; null: it was not asked there."""

    expression: str
    a: Held | None
    b: Held | None

    @property
    def changed(self) -> bool:
        """Whether both were asked, and one of them held."""
        return self.a is not None and self.b is not None and self.a.passed != self.b.passed

    @property
    def broke(self) -> bool:
        """Whether it held in A and does not in B."""
        return self.changed and self.a is not None and self.a.passed


class Comparison(BaseModel):
    """The whole comparison of two runs."""

    schema_: Literal["kongsim.compare/1"] = Field(default=SCHEMA, alias="schema")
    a: Head
    b: Head
    differences: list[Difference]
    figures: dict[str, Change]
    loads: list[LoadChange]
    thresholds: list[ThresholdChange]
    cautions: list[str]

    @property
    def broken(self) -> list[str]:
        """The thresholds that held in A and do not in B."""
        return [threshold.expression for threshold in self.thresholds if threshold.broke]

    @property
    def exit_code(self) -> int:
        """The exit code of the command line: figures that do not count outweigh thresholds, as with a run."""
        if "invalid" in {self.a.verdict, self.b.verdict}:
            return EXIT_CODES["invalid"]
        return EXIT_CODES["failed" if self.broken else "passed"]

    def to_json(self) -> str:
        """Return it as a JSON document, in ASCII: what a name holds cannot steer a terminal."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, allow_nan=False) + "\n"


def read(folder: str) -> Run:
    """Read the folder of a run; raises UserError when it is none, or cannot be read."""
    file = Path(folder) / FILE_NAME
    with suppress(OSError, ValueError):  # a path that cannot be looked at is told when it is read
        _require_run(folder)
    text = read_text(str(file))
    try:
        run = Run.model_validate_json(text)
    except ValidationError as error:
        details = min(error.errors(), key=lambda details: details["loc"] != ("schema",))  # it explains all others
        if details["type"] == "json_invalid":
            problem = f"is no JSON: {details['ctx']['error']}"
            raise UserError(problem, file=str(file), cure="run the scenario again") from None
        message, _cure, below = explain(details)
        field = written((*details["loc"], *below))
        cure = "read it with the kongsim that wrote it" if field == "schema" else "run the scenario again"
        raise UserError(message, file=str(file), field=field or None, cure=cure) from None
    scenario = Path(folder) / _SCENARIO
    as_run = Document.read(str(scenario)).plain() if scenario.exists() else None
    return run.model_copy(update={"folder": folder, "as_run": as_run})


def _require_run(folder: str) -> None:
    path = Path(folder)
    if not folder:
        raise UserError("expected the folder of a run, not an empty name", cure="name two that kongsim run has written")
    if not _is_there(path):
        raise UserError("no such folder", file=folder, cure=_near(path) or "name one that kongsim run has written")
    if path.is_file():
        raise UserError("is a file, expected the folder of a run", file=folder, cure=f"name {path.parent}")
    if _is_there(path / FILE_NAME):
        return
    if _is_there(path / "overhead.json"):
        cure = "name what you compare in --arms of kongsim overhead"
        raise UserError("holds a measurement of overhead, no run", file=folder, cure=cure)
    cure = "name the folder of a run that came to its end"
    raise UserError(f"has no {FILE_NAME}", file=folder, cure=cure)


def _is_there(path: Path) -> bool:
    """Whether there is such a file; raises OSError where that cannot be looked at, of which Path.exists may say no."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _near(path: Path) -> str | None:
    """Return the cure for a misspelt folder: the run beside it that was probably meant."""
    runs = {file.parent.name: file.parent for file in path.parent.glob(f"*/{FILE_NAME}")}
    close = get_close_matches(path.name, runs, n=1)
    return f"did you mean {runs[close[0]]}?" if close else None


def compare(a: Run, b: Run) -> Comparison:
    """Compare two runs, thresholds that changed their verdict first."""
    return Comparison(
        a=a,
        b=b,
        differences=list(_differences(*_asked(a, b))),
        figures={figure.path: _change(a.figure(figure.path), b.figure(figure.path)) for figure in _figures()},
        loads=list(_loads(a, b)),
        thresholds=sorted(_thresholds(a, b), key=lambda threshold: not threshold.changed),
        cautions=list(_cautions(a, b)),
    )


def _figures() -> Iterator[Figure]:
    return (figure for figures in FIGURES.values() for figure in figures)


def _asked(a: Run, b: Run) -> tuple[Any, Any]:
    """What was asked of each run: fields of the summary, and those of the scenario if they are known of both."""
    scenarios = ({}, {}) if a.as_run is None or b.as_run is None else (a.as_run, b.as_run)
    of_a, of_b = (
        {
            **{name: getattr(run, name) for name in ("scenario", "profile", "seed")},
            **{name: value for name, value in scenario.items() if name not in _TOLD_ELSEWHERE},
            "version": run.version,
            "environment": _environment(run),
        }
        for run, scenario in zip((a, b), scenarios, strict=True)
    )
    return of_a, of_b


def _environment(run: Run) -> dict[str, Any]:
    """Whether the gateway is compiled was not told before it could be."""
    return {"compiled": False, **run.environment}


def _differences(a: Any, b: Any, path: FieldPath = ()) -> Iterator[Difference]:
    """Tell the fields below a path in which two files differ, down to plain values and lists of such."""
    of_a, of_b = _fields(a), _fields(b)
    if of_a is not None and of_b is not None and (of_a or of_b):
        for step in dict.fromkeys([*of_a, *of_b]):
            yield from _differences(of_a.get(step), of_b.get(step), (*path, step))
    elif a != b and _text(a) != _text(b):  # a number that is none differs from itself
        yield Difference(field=written(path), a=a, b=b)


def _fields(value: Any) -> dict[Any, Any] | None:
    """Return the fields of a mapping, or the entries of a list of such, by their names if they have; None: a value."""
    if isinstance(value, dict):
        return value
    if value is None or value == []:
        return {}
    if not isinstance(value, list) or not any(isinstance(entry, dict | list) for entry in value):
        return None
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in value]
    are_names = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return dict(zip(names if are_names else range(len(value)), value, strict=True))


def _change(a: float | None, b: float | None) -> Change:
    change = b - a if a is not None and b is not None else None
    percent = 100 * (change / a) if change is not None and a is not None and a >= _BASE_MIN else None
    return Change(a=a, b=b, change=change, change_percent=percent)


def _loads(a: Run, b: Run) -> Iterator[LoadChange]:
    """Compare the loads of the same place and request; what a single one did is told of the run already."""
    for number, (of_a, of_b) in enumerate(zip(a.loads, b.loads, strict=False)):
        if of_a.request == of_b.request and len(a.loads) + len(b.loads) > 2:
            figures = {path: _change(of_a.figure(path), of_b.figure(path)) for _label, path, _digits in LOAD_FIGURES}
            yield LoadChange(number=number, request=of_a.request, figures=figures)


def _thresholds(a: Run, b: Run) -> Iterator[ThresholdChange]:
    of_a, of_b = ({threshold.expression: threshold for threshold in run.thresholds} for run in (a, b))
    for expression in dict.fromkeys([*of_a, *of_b]):
        yield ThresholdChange(expression=expression, a=of_a.get(expression), b=of_b.get(expression))


def _cautions(a: Run, b: Run) -> Iterator[str]:
    """Tell what a reader of the figures has to know."""
    for name, run in (("A", a), ("B", b)):
        if run.verdict == "invalid":
            yield f"{name} is invalid, its figures do not count: {run.invalid_reason or 'it does not say why'}"
        elif run.verdict == "interrupted":
            yield f"{name} was interrupted: its figures are those of a shorter run"
        if run.as_run is None:
            yield f"{name} has no {_SCENARIO}: nobody knows what differs in the scenario"
    of_a, of_b = _environment(a), _environment(b)
    machine = [name for name in _MACHINE if None not in (of_a.get(name), of_b.get(name)) and of_a[name] != of_b[name]]
    if machine:
        yield f"the machines differ ({', '.join(machine)}): CPU and latency figures do not compare"
    if of_a["compiled"] != of_b["compiled"]:
        yield f"the gateway is compiled in {'A' if of_a['compiled'] else 'B'} alone: CPU figures do not compare"
    yield NOISE


_NAME_WIDTH: Final = 24
_FIGURE_WIDTH: Final = 14
_SHARE_WIDTH: Final = 12
_FIELD_SHARE: Final = 0.55
"""Of the width, what a field's path has at most; the rest is for its values."""

_TIMES_MIN: Final = 10
"""From here on a change is told as a factor: more than 900 % say nothing to anybody."""


def show(comparison: Comparison, console: Console) -> None:
    """Print a comparison."""
    console.width = max(console.width, WIDTH_MIN)
    blocks = [_asked_table(comparison.differences, console.width)]
    blocks += [_figure_table(title, figures, comparison.figures) for title, figures in FIGURES.items()]
    for load in comparison.loads:
        title = load_title(load.number, printable(load.request))
        blocks.append(_figure_table(title, LOAD_FIGURES, load.figures))
    if comparison.thresholds:
        blocks.append(_threshold_table(comparison.thresholds))
    for line in _heads(comparison):
        console.print(line, soft_wrap=True)
    for block in blocks:
        console.print("", block, sep="\n", highlight=False)
    console.print("")
    for caution in comparison.cautions:
        line = Text(f"caution: {printable(caution)}", style="yellow")
        console.print(line, soft_wrap=not console.is_terminal)  # in a file each is one line
    console.print(_end(comparison), soft_wrap=True)


def _heads(comparison: Comparison) -> Iterator[Text]:
    heads = {"A": comparison.a, "B": comparison.b}
    width = max(len(head.verdict) for head in heads.values())
    for name, head in heads.items():
        told = f"{head.folder}: {head.scenario}, profile {head.profile}, seed {head.seed}"
        verdict = (head.verdict.upper().ljust(width), VERDICT_STYLE[head.verdict])
        yield Text.assemble(f"{name}  ", verdict, f"  {printable(told)}")


def _table(title: str, *, gap: int = 0, width: int | None = None) -> Table:
    """Return a table whose title stands among its headings, over the names of the rows."""
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(Text(title, style="bold not dim"), width=width, overflow="fold")
    return table


def _asked_table(differences: Sequence[Difference], width: int) -> Table | str:
    if not differences:
        return "no known difference in what was asked"
    path_width = int(width * _FIELD_SHARE)
    fields = [_broken(f"  {printable(difference.field)}", path_width) for difference in differences]
    # Its own width, so that the values are folded, however long they are, and not the fields.
    title = "what differs"
    widest = max(map(cell_len, "\n".join([title, *fields]).splitlines()))
    table = _table(title, gap=2, width=min(path_width, widest))
    for heading in ("A", "B"):
        table.add_column(heading, overflow="fold")
    for field, difference in zip(fields, differences, strict=True):
        table.add_row(Text(field), *(Text(printable(_text(value))) for value in (difference.a, difference.b)))
    return table


def _broken(path: str, width: int) -> str:
    """Break a path that is longer than a column where a field begins."""
    lines = [""]
    for step in re.split(r"(?<=\.)", path):
        if len(lines[-1]) + len(step) > width:
            lines.append(" " * 4)
        lines[-1] += step
    return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _figure_table(title: str, figures: Sequence[Figure], changes: Mapping[str, Change]) -> Table:
    table = _table(title, width=_NAME_WIDTH)
    for heading in ("A", "B", "change"):
        table.add_column(heading, justify="right", width=_FIGURE_WIDTH, overflow="fold")
    table.add_column("", justify="right", width=_SHARE_WIDTH)
    for label, path, digits in figures:
        change = changes[path]
        if change.a or change.b or path in _ALWAYS or not path.startswith("ledger."):
            table.add_row(f"  {label}", *_cells(change, digits))
    return table


def _cells(change: Change, digits: int) -> Iterator[str]:
    for figure in (change.a, change.b):
        yield "not measured" if figure is None else f"{figure:,.{digits}f}"
    if change.a is None or change.b is None:
        return
    shown_change = round(change.b, digits) - round(change.a, digits)  # else a row might not add up
    yield f"{shown_change:+,.{digits}f}" if shown_change else "0"
    if shown_change and change.change_percent is not None:
        yield _share(change.change_percent)


def _share(percent: float) -> str:
    times = 1 + percent / 100
    return f"{percent:+.1f}%" if times < _TIMES_MIN else f"{times:,.0f}x"


def _threshold_table(thresholds: Sequence[ThresholdChange]) -> Table:
    table = _table("thresholds", gap=2)
    for heading in ("A", "B"):
        table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
    for threshold in thresholds:
        cells = (cell for held in (threshold.a, threshold.b) for cell in _held(threshold.expression, held))
        table.add_row(Text(f"  {printable(threshold.expression)}"), *cells)
    return table


def _held(expression: str, held: Held | None) -> tuple[str, Text]:
    if held is None:
        return "not asked", Text("")
    word, style = ("passed", "green") if held.passed else ("FAILED", "bold red")
    return value_text(expression, held.value), Text(word, style=style)


def _end(comparison: Comparison) -> Text:
    if comparison.exit_code == EXIT_CODES["invalid"]:
        return Text("the figures of an invalid run do not count", style=VERDICT_STYLE["invalid"])
    if comparison.broken:
        broken = ", ".join(map(printable, comparison.broken))
        return Text(f"held in A and failed in B: {broken}", style=VERDICT_STYLE["failed"])
    if not any(threshold.a and threshold.b for threshold in comparison.thresholds):
        return Text("no threshold was asked of both")
    return Text("no threshold that held in A failed in B", style=VERDICT_STYLE["passed"])
