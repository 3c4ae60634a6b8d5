"""Thresholds: what a run has to hold, as expressions over its summary.

An expression is ``METRIC OP NUMBER`` or ``METRIC / METRIC OP NUMBER``: ``ledger.unaccounted == 0``,
``latency.p99 < 200ms``, ``requests.failed / requests.sent < 1%``. Metrics are the fields of ``summary.json``
(``METRICS`` says which), those of one load with its number: ``load[1].latency.p99``. A latency is compared with a
duration, a ratio with a number or a percentage, a count with a number. A metric that the run could not measure, or a
ratio over nothing, has no value and does not pass.
"""

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from sim.errors import FieldError, nearest, shown
from sim.ledger import Ledger
from sim.units import parse_duration

_MS_PER_S: Final = 1_000
_MS_DIGITS: Final = 9  # of a limit, behind the point: 2.035 ms in s, times 1000, are a trifle less
_DECIMALS_MAX: Final = 20

_STATUSES: Final = ("status_2xx", "status_3xx", "status_4xx", "status_5xx")
_LATENCIES: Final = ("mean", "p50", "p90", "p99", "p99_9", "max")
_NAMES: Final = {
    ("requests", "requests"): (
        *("offered", "sent", "completed", "failed", "unsent", "resent", "waited"),
        *_STATUSES,
    ),
    ("latency", "latency_ms"): _LATENCIES,
    ("ledger", "ledger"): Ledger.__slots__,
    ("collector", "collector"): (
        *("requests", "refused", "received_unique", "received_duplicates", "unchecked", "unanswered", "needless"),
        *("rejected", "received_per_s", "traces"),
        *("orphans", "outside_parent", "unfinished", "rootless", "multi_rooted"),
    ),
    ("workers", "totals"): (
        *("requests", "spans", "deaths", "cpu_s"),
        *("cpu_us_per_request", "rss_mib", "loop_lag_ms_max", "queue_depth_max", "queue_bytes_max"),
    ),
    ("fault_window", "fault_window"): ("requests", "outside_requests", "p99_ratio"),
    ("sampling", "sampling"): ("traces", "gateway", "upstream", "both"),
    ("error_log", "error_log"): ("lines", "bytes", "warn", "error", "crit", "alert", "emerg"),
}

METRICS: Final = {f"{prefix}.{name}": (section, name) for (prefix, section), names in _NAMES.items() for name in names}
"""Where each metric stands in ``summary.json``."""

LOAD_METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    **{name: (name,) for name in ("offered", "completed", "failed", "unsent", "completed_per_s", *_STATUSES)},
    **{f"latency.{name}": ("latency_ms", name) for name in _LATENCIES},
}
"""Where each metric of a load stands in its entry of ``summary.json``."""

_OPERATORS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}

_EXPRESSION = re.compile(r"\s*([\w.[\]]+)\s*(?:/\s*([\w.[\]]+)\s*)?(==|!=|<=|>=|<|>)\s*(\S+)\s*", re.ASCII)
_OF_LOAD = re.compile(r"load\[(\d{1,4})\]\.", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,30}(\.\d{1,30})?", re.ASCII)
_PERCENTAGE = re.compile(r"(-?\d{1,30}(?:\.\d{1,30})?)%", re.ASCII)


@dataclass(frozen=True, slots=True)
class Threshold:
    """One expression.

    Attributes:
        expression: as written.
        metric: a key of ``METRICS``, or one of ``LOAD_METRICS`` behind ``load[0].`` or another number.
        over: the metric that it is divided by, if any.
        relation: ``==``, ``!=``, ``<=``, ``>=``, ``<`` or ``>``.
        limit: in the unit of the metric: ms for a latency.
    """

    expression: str
    metric: str
    over: str | None
    relation: str
    limit: float

    def evaluate(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``{expression, value, passed}`` for a summary in the shape of ``summary.json``."""
        value = _measured(summary, self.metric)
        if value is not None and self.over is not None:
            over = _measured(summary, self.over)
            value = value / over if over else None
        return {"expression": self.expression, "value": value, "passed": value is not None and self.holds(value)}

    @property
    def loads(self) -> list[int]:
        """The loads that it names."""
        return [int(named[1]) for metric in (self.metric, self.over or "") if (named := _OF_LOAD.match(metric))]

    def holds(self, value: float) -> bool:
        """Whether a value of the metric, in its unit, is within the limit."""
        return _OPERATORS[self.relation](value, self.limit)


def parse(value: object) -> Threshold:
    """Read an expression; raises FieldError."""
    match = _EXPRESSION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise FieldError(
            f"expected an expression, not {shown(value)}", cure="write METRIC OP NUMBER: latency.p99 < 200ms"
        )
    metric, over, relation, limit = match.groups()
    for name in (metric, over):
        if name is not None and name not in _known(name):
            raise FieldError(f"there is no metric {name}", cure=_meant(name))
    return Threshold(match[0].strip(), metric, over, relation, _limit(limit, metric, over))


def evaluate(thresholds: Iterable[Threshold], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Evaluate all thresholds over one summary."""
    return [threshold.evaluate(summary) for threshold in thresholds]


def value_text(expression: str, value: float | None) -> str:
    """Return a value in the unit of its metric, ms for a latency or a share where it is one, rounded.

    It keeps as many digits as it needs to tell the verdict: 199.98 ms are less than 200 ms.

    Args:
        expression: of the threshold; one of another version may have metrics that this one does not know.
        value: None: not measured.
    """
    if value is None:
        return "not measured"
    scale, unit, digits = 1, "", 4
    if "%" in expression:
        scale, unit, digits = 100, "%", 3
    elif _is_latency(expression) and "/" not in expression:
        unit = " ms"
    holds: Callable[[float], bool] = bool
    with suppress(FieldError):
        holds = parse(expression).holds
    value *= scale
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    text = f"{value:.{digits}g}"
    for decimals in range(max(0, places), _DECIMALS_MAX):
        text = f"{value:,.{decimals}f}"
        if holds(float(text.replace(",", "")) / scale) == holds(value / scale):
            break
    return (text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text) + unit


def _known(name: str) -> Collection[str]:
    """The metrics among which a name is: those of the load that it names, or of the run."""
    load = _OF_LOAD.match(name)
    return [load[0] + metric for metric in LOAD_METRICS] if load else METRICS


def _meant(name: str) -> str | None:
    known = _known(name)
    section = [metric for metric in known if metric.split(".")[0] == name.split(".", maxsplit=1)[0]]
    return nearest(name, section or known)


def _is_latency(metric: str) -> bool:
    return _OF_LOAD.sub("", metric, count=1).startswith("latency.")


def _limit(text: str, metric: str, over: str | None) -> float:
    if over is None and _is_latency(metric):
        try:
            return round(parse_duration(text) * _MS_PER_S, _MS_DIGITS)
        except FieldError as error:
            raise FieldError(error.message, cure="write 200ms") from None
    if over is not None and (percentage := _PERCENTAGE.fullmatch(text)):
        return float(percentage[1]) / 100
    if not _NUMBER.fullmatch(text):
        expected = "a number" if over is None else "a number or a percentage"
        raise FieldError(
            f"expected {expected}, not {shown(text)}", cure=f"{metric} carries no unit" if over is None else None
        )
    return float(text)


def _measured(summary: Mapping[str, Any], metric: str) -> float | None:
    path: tuple[str | int, ...]
    if load := _OF_LOAD.match(metric):
        path = ("loads", int(load[1]), *LOAD_METRICS[metric[load.end() :]])
    else:
        path = METRICS[metric]
    found: Any = summary
    for step in path:
        found = found[step]
    value: float | None = found
    return value
