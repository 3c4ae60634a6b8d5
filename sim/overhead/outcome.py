"""What came of a measurement: every figure with its interval, the break-down, and the plain sentence."""

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from sim.overhead.arms import PARTS, Arm
from sim.overhead.blocks import Block
from sim.overhead.measurement import Measurement, cpu_us
from sim.overhead.statistics import CONFIDENCE, Interval, interval, mean_interval, paired
from sim.report.environment import environment

SCHEMA: Final = 1
CONTROL: Final = 1
"""Which arm is the baseline a second time."""

_MIB: Final = 1 << 20
_US_PER_S: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of an arm.

    Attributes:
        name: what it is, with its unit.
        digits: after the point.
        value: with its interval; None: not resolved.
        why: when it is None, the reason.
    """

    name: str
    digits: int
    value: Interval | None
    why: str = "too few blocks"

    def text(self) -> str:
        """Return it as a table shows it."""
        if self.value is None:
            return "not resolved"
        return f"{self.value.value:,.{self.digits}f} ± {self.value.half_width:,.{self.digits}f}"


@dataclass(frozen=True, slots=True)
class ArmOutcome:
    """The figures of one arm.

    Attributes:
        arm: name.
        is_control: it is the baseline a second time.
        figures: by key.
    """

    arm: str
    is_control: bool
    figures: Mapping[str, Figure]


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What each part of tracing costs, us of CPU a request.

    Attributes:
        arm: whose.
        parts: by name; the first is calling the tracer at all.
        export: what comes after the end of the spans, the last four parts together.
        total: all parts together.
        whole: the same, measured in other blocks of the same turns.
    """

    arm: str
    parts: Mapping[str, Figure]
    export: Figure
    total: Figure
    whole: Figure

    @property
    def closes(self) -> bool | None:
        """Whether sum and whole agree within their errors; None when either is not resolved."""
        total, whole = self.total.value, self.whole.value
        if total is None or whole is None:
            return None
        return abs(total.value - whole.value) <= math.hypot(total.half_width, whole.half_width)


@dataclass(frozen=True, slots=True)
class Outcome:
    """All of it."""

    measurement: Measurement
    arms: tuple[ArmOutcome, ...]
    breakdown: Breakdown | None
    sentence: str

    def to_json(self) -> str:
        """Return it as the text of overhead.json."""
        plan = self.measurement.plan
        content = {
            "schema": SCHEMA,
            "scenario": plan.scenario.name,
            "profile": plan.scenario.profile,
            "seed": plan.seed,
            "rate_per_s": plan.rate_per_s,
            "confidence": CONFIDENCE,
            "precision": self.measurement.precision,
            "sentence": self.sentence,
            "arms": [{"arm": arm.arm, "control": arm.is_control, "figures": _plain(arm.figures)} for arm in self.arms],
            "breakdown": self.breakdown
            and {
                "arm": self.breakdown.arm,
                "parts": _plain(self.breakdown.parts),
                **_plain(
                    {"export": self.breakdown.export, "total": self.breakdown.total, "whole": self.breakdown.whole}
                ),
                "closes": self.breakdown.closes,
            },
            "environment": environment().model_dump(),
        }
        return json.dumps(content, indent=2) + "\n"

    def write_figures(self, path: Path) -> None:
        """Write overhead.json; raises OSError."""
        path.write_text(self.to_json(), encoding="utf-8")

    def write_blocks(self, path: Path) -> None:
        """Write every block; raises OSError."""
        settled = set(map(id, self.measurement.settled))
        rows = [block.row() | {"settled": id(block) in settled} for block in self.measurement.blocks]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


def _plain(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {
        key: {"name": figure.name}
        | (
            {"resolved": False, "why": figure.why}
            if figure.value is None
            else {
                "resolved": True,
                "value": figure.value.value,
                "low": figure.value.low,
                "high": figure.value.high,
                "count": figure.value.count,
            }
        )
        for key, figure in figures.items()
    }


def outcome(measured: Measurement) -> Outcome:
    """Draw the sum of a measurement."""
    arms = tuple(_arm(measured, arm, number) for number, arm in enumerate(measured.arms))
    breakdown = _breakdown(measured) if measured.parts else None
    return Outcome(measured, arms, breakdown, _sentence(measured, arms))


def _arm(measured: Measurement, arm: Arm, number: int) -> ArmOutcome:
    figures = {
        "cpu_us": Figure("CPU us/req", 1, interval(measured.values("paced", arm.name, cpu_us))),
        "saturation_rps": Figure("saturated req/s", 0, interval(measured.values("saturated", arm.name, _capacity_rps))),
        "busy_percent": Figure("busy %", 0, interval(measured.values("saturated", arm.name, _busy_percent))),
        "p50_ms": Figure("p50 ms", 2, interval(measured.values("paced", arm.name, lambda block: block.load.p50_ms))),
        "p99_ms": Figure("p99 ms", 2, interval(measured.values("paced", arm.name, lambda block: block.load.p99_ms))),
        "sent_bytes": Figure("sent B/req", 0, interval(measured.values("paced", arm.name, _sent_bytes))),
        "gc_percent": Figure("GC %", 2, mean_interval(measured.values("paced", arm.name, _gc_percent))),
    }
    if number != CONTROL:
        figures |= {
            "rss_mib": _footprint(measured, arm.name, "RSS MiB", 1, lambda one: one.rss_bytes / _MIB),
            "pool_kib": _footprint(measured, arm.name, "pools KiB", 1, lambda one: one.pool_bytes / 1024),
            "allocations": _footprint(measured, arm.name, "allocs/req", 0, lambda one: one.allocations),
        }
    if number:
        figures |= _added(measured, arm.name, is_control=number == CONTROL)
    return ArmOutcome(arm.name, number == CONTROL, figures)


def _added(measured: Measurement, arm: str, *, is_control: bool) -> dict[str, Figure]:
    """What an arm has more than the baseline; of the control the interval is what counts, so it is always told."""
    added = measured.added(arm, cpu_us)
    resolved = added if is_control or measured.is_resolved(added) else None
    why = "too few blocks"
    if added is not None:
        why = f"± {added.half_width:.2f} us is wider than the ± {measured.asked_us:.2f} us that were asked"
    spans = interval(measured.values("paced", arm, lambda block: block.spent.spans / block.spent.requests))
    has_spans = spans is not None and spans.value > 0
    per_span = resolved.scaled(1 / spans.value) if resolved and spans and has_spans else None
    share = resolved.scaled(measured.plan.rate_per_s * 100 / _US_PER_S) if resolved else None
    return {
        "added_us": Figure("added us", 2, resolved, why),
        **({"added_us_per_span": Figure("us/span", 3, per_span, why)} if has_spans else {}),
        "added_percent": Figure("% of a worker", 2, share, why),
        "added_p50_ms": Figure("added p50 ms", 3, measured.added(arm, lambda block: block.load.p50_ms)),
        "added_p99_ms": Figure("added p99 ms", 2, measured.added(arm, lambda block: block.load.p99_ms)),
    }


def _capacity_rps(block: Block) -> float:
    """Requests for each second of CPU: what the worker serves when nothing but its CPU holds it up."""
    return block.spent.requests / block.spent.cpu_ns * _NS_PER_S


def _busy_percent(block: Block) -> float:
    return 100 * block.spent.cpu_ns / block.load.elapsed_s / _NS_PER_S


def _footprint(measured: Measurement, arm: str, name: str, digits: int, figure: Callable[[Any], float]) -> Figure:
    values = interval(figure(one) for one in measured.footprints if one.arm == arm)
    return Figure(name, digits, values, "too few workers")


def _sent_bytes(block: Block) -> float:
    return block.sent_bytes / block.spent.requests


def _gc_percent(block: Block) -> float:
    return 100 * block.spent.gc_ns / block.spent.cpu_ns


def _breakdown(measured: Measurement) -> Breakdown:
    names = [arm.name for arm in measured.parts]
    costs = [measured.values("parts", name, cpu_us) for name in names]
    steps = [paired(after, before) for before, after in pairwise(costs)]
    figures = dict(zip(("instrumentation", *PARTS), steps, strict=True))
    # The release is a part of making spans as long as these are pooled: it is timed, and taken from there.
    finish = 2 + PARTS.index("finish")
    timed = measured.parts[finish].name
    releases = measured.values("parts", timed, lambda block: block.spent.release_ns / block.spent.requests / 1000)
    making = [one - other for one, other in zip(costs[2], costs[1], strict=True)]
    figures["create"] = paired(making, releases)
    figures["release"] = interval(releases)
    order = ("instrumentation", "create", "attributes", "finish", "release", "copy", "enqueue", "encode", "send")
    parts = {name: Figure(name, 2, figures[name]) for name in order}
    off, whole = (measured.values("parts", arm.name, cpu_us) for arm in measured.wholes)
    return Breakdown(
        measured.wholes[1].name,
        parts,
        Figure("export: copy, enqueue, encode, send", 2, paired(costs[-1], costs[finish])),
        Figure("all parts", 2, paired(costs[-1], costs[0])),
        Figure("the whole, in blocks of its own", 2, paired(whole, off)),
    )


def _sentence(measured: Measurement, arms: tuple[ArmOutcome, ...]) -> str:
    told = [
        _told(measured, arm, one) for arm, one in zip(measured.arms, arms, strict=True) if "added_us" in one.figures
    ]
    return " ".join(told[1:] or told)


def _told(measured: Measurement, arm: Arm, one: ArmOutcome) -> str:
    share, added = one.figures["added_percent"].value, one.figures["added_us"]
    name = f"Tracing at {arm.rate * 100:.6g}%" if arm.rate is not None and arm.name == arm.base else f"Arm {arm.name}"
    rate = f"{measured.plan.rate_per_s:,.0f} requests/s"
    if share is None:
        return f"{name}: what it costs is not resolved, {added.why}."
    return (
        f"{name} costs {share.value:.2f} % ± {share.half_width:.2f} % of a worker at {rate} "
        f"({added.text()} us a request)."
    )
