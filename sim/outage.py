"""Outages of a collector, and what a queue makes of one: when it tries, gives a batch up, and notices the end.

An attempt lasts until it has failed: no time on a refused connection, the whole of `read_timeout` on one that hangs.
The delays between attempts are the queue's (`kongtrace.queue`), the longest ones where they are random. A queue is
taken to have a batch at any time, since spans go on coming.

Times are in s, after the beginning of the outage. Source: kong-semantics Q16-Q22, H30.
"""

import math
import sys
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final, NamedTuple

from kongtrace.queue_profile import PROFILES, QueueProfile
from sim.exporter import seconds
from sim.faults import Fault
from sim.pdk import QueueConfig
from sim.plugins.opentelemetry import OpenTelemetryConfig
from sim.scenario import Scenario
from sim.units import format_duration

AT_ONCE_S: Final = 0.1
"""An attempt that fails within this time fails at once: thirteen of them add a second to what delays make."""

_ATTEMPTS: Final = range(sys.maxsize)


class Outage(NamedTuple):
    """How the collector is away.

    Attributes:
        lasts_s: for how long.
        attempt_s: what an attempt takes until it has failed.
        retry_after_s: what it asks senders to wait between attempts.
        loaded_s: for how long of it requests come.
        answers_last: it answers the attempt that is under way when it is back.
    """

    lasts_s: float
    attempt_s: float = 0.0
    retry_after_s: float = 0.0
    loaded_s: float = math.inf
    answers_last: bool = False

    @property
    def fails_until_s(self) -> float:
        """When the last attempt has failed."""
        return self.lasts_s if self.answers_last else self.lasts_s + self.attempt_s

    def __str__(self) -> str:
        """Return what is taken for granted of attempts."""
        attempt_s = float(f"{self.attempt_s:.2g}")
        how = "attempts fail at once" if attempt_s < AT_ONCE_S else f"an attempt takes {format_duration(attempt_s)}"
        apart = f", {format_duration(self.retry_after_s)} apart at least" if self.retry_after_s else ""
        return f"where {how}{apart}"


@dataclass(frozen=True, slots=True)
class Attempts:
    """What a queue tries in an outage.

    Attributes:
        queue: its parameters.
        profile: its profile.
        outage: that it meets.
    """

    queue: QueueConfig
    profile: QueueProfile
    outage: Outage

    def started_s(self, number: int) -> float:
        """When an attempt starts after the first one, which has the number 0; with jitter it is earlier (Q20)."""
        queue, outage = self.queue, self.outage
        first, asked = queue.initial_retry_delay, outage.retry_after_s
        longest = max(queue.max_retry_delay, asked)
        below, most = (min(number, _doublings(delay / first)) for delay in (asked, longest))
        delays_s = below * asked + first * (2.0**most - 2.0**below) + (number - most) * longest
        return delays_s + number * outage.attempt_s

    def failed_s(self, number: int) -> float:
        """When that attempt has failed."""
        return self.started_s(number) + self.outage.attempt_s

    @property
    def patience_s(self) -> float:
        """When a batch is given up after its first attempt: profile kong looks at the limit after the attempt (Q21)."""
        limit_s = self.queue.max_retry_time
        if self.profile.bounds_retry_time:
            return self.failed_s(max(0, bisect_right(_ATTEMPTS, limit_s, key=self.started_s) - 1))
        return self.failed_s(bisect_right(_ATTEMPTS, limit_s, key=self.failed_s))

    @property
    def period_s(self) -> float:
        """From the first attempt at a batch that is given up to that at the next, which waits if it is asked to."""
        return self.patience_s + self.outage.retry_after_s

    @property
    def given_up(self) -> int:
        """How many batches are given up, one after the other; 0 too where that takes no time, and all of them are."""
        failing_s = self.outage.fails_until_s - self.patience_s
        return max(0, math.ceil(failing_s / self.period_s)) if self.period_s else 0

    @property
    def noticed_s(self) -> float:
        """When the queue finds out that an outage is over, after its beginning: at the next attempt."""
        lasts_s, period_s = self.outage.lasts_s, self.period_s
        if not period_s:
            return lasts_s
        given_up_s = lasts_s // period_s * period_s
        since_s = lasts_s - given_up_s
        number = bisect_left(_ATTEMPTS, since_s, key=self.started_s)
        if self.outage.answers_last and number and self.failed_s(number - 1) >= since_s:
            return lasts_s
        return given_up_s + min(self.started_s(number), period_s)


def _doublings(ratio: float) -> int:
    """How often 1 is to be doubled until it is no less than a ratio."""
    return math.ceil(math.log2(ratio)) if ratio > 1 else 0


def outages(scenario: Scenario, config: OpenTelemetryConfig, trip_s: float) -> list[Outage]:
    """Return the outages of a scenario; faults that follow one another are one, which is as its longest part is.

    Args:
        scenario: with the faults.
        config: of the plugin that exports.
        trip_s: what an export request takes when nothing is wrong.
    """
    found: list[tuple[float, Outage]] = []  # each with its beginning
    for fault in sorted(scenario.faults, key=lambda fault: fault.at):
        outage, begins_s = _outage_by(fault, scenario, config, trip_s), fault.at
        if outage is None:
            continue
        if found and begins_s <= found[-1][0] + found[-1][1].lasts_s:
            begins_s, before = found.pop()
            lasts_s = max(before.lasts_s, fault.at + outage.lasts_s - begins_s)
            outage = max(before, outage, key=lambda part: part.lasts_s)._replace(lasts_s=lasts_s)
        found.append((begins_s, outage._replace(loaded_s=scenario.duration_s - begins_s)))
    return [outage for _, outage in found]


def _outage_by(fault: Fault, scenario: Scenario, config: OpenTelemetryConfig, trip_s: float) -> Outage | None:
    """Return the outage that a fault makes; None: what is sent gets through, or is not tried again."""
    profile = PROFILES[scenario.profile]
    patience_s = min(seconds(config.read_timeout), profile.attempt_s or math.inf)
    is_retried = fault.status not in profile.accepted and fault.status in (profile.retryable or (fault.status,))
    attempts_s = {"refuse": 0.0, "down": 0.0, "reset": 0.0, "truncate": trip_s, "hang": math.inf}
    attempts_s |= {"status": trip_s} if is_retried else {}
    attempts_s |= {"slow": math.inf} if trip_s + fault.latency >= patience_s else {}
    if fault.target != "collector" or fault.kind not in attempts_s:
        return None
    return Outage(
        scenario.duration_s - fault.at if fault.lasts is None else fault.lasts,
        min(attempts_s[fault.kind], patience_s),
        fault.retry_after or 0.0 if profile.honours_retry_after else 0.0,
        answers_last=fault.kind == "hang",
    )


def slowdowns_s(scenario: Scenario, config: OpenTelemetryConfig, trip_s: float) -> list[tuple[float, float, float]]:
    """Return what an export request takes while the collector is slow, how long it is, and how long requests come.

    A slowness beyond the exporter's patience is none of them: it is an outage. The arguments are those of `outages`.
    """
    return [
        (trip_s + fault.latency, min(fault.window_s[1], scenario.duration_s) - fault.at, scenario.duration_s - fault.at)
        for fault in scenario.faults
        if (fault.target, fault.kind) == ("collector", "slow") and _outage_by(fault, scenario, config, trip_s) is None
    ]
