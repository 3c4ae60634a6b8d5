"""The driver of an open load: every request starts at its intended time, whatever became of those before it.

Theory of operation. One timer walks the arrival schedule; what is due goes to the pool of connections at once. Latency
counts from the *intended* start, so neither a wait for a connection nor what a client would have held back is hidden
("coordinated omission", G. Tene; the measure of wrk2).

Every offered request ends in exactly one account: `completed` when a whole answer arrived, whatever its status;
`failed` when none did, by reason; `unsent` when its time had come and the load was stopped before it was sent.

| reason | |
|---|---|
| connect | no connection could be made |
| reset | the connection ended before the whole answer was there, and sending again was not safe (`sim.load.pool`) |
| timeout | no whole answer within `timeout_s` of the intended start, or `stop_timeout_s` after the load was stopped |
| bad_response | what came is not HTTP |

The generator's own lateness is measured too: `lag_ms`, from the intended start to the moment the driver gets to it
(timer, its own work, lack of CPU; never a slow server). A load that fell behind is not valid, see `invalid_reason`.

Times in s and ms as named, ns inside.
"""

import asyncio
import heapq
import random
import resource
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from sim import peer
from sim.load.arrivals import SCHEDULES, ramping, uniform
from sim.load.latency import Latencies
from sim.load.pool import Pool
from sim.timerfd import TimerFd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sim.load.request import Request
    from sim.process import Connection

__all__ = ["Arrivals", "ConstantArrivalRate", "OpenLoad", "RampingArrivalRate", "drive", "invalid_reason"]

_NS_PER_S: Final = 1_000_000_000
_SWEEP_S: Final = 0.1  # how late a timeout may be noticed
_BATCH_MAX: Final = 64  # requests begun in a row before the loop may write them out
_SPARE_DESCRIPTORS: Final = 64  # beside those of connections

LAG_SHARE_MAX: Final = 0.1
"""Share of the measured latency that the generator's own lag may be, at the 99th percentile."""

LAG_MS_NEGLIGIBLE: Final = 10.0
"""Lag that is no sign of falling behind: three turns of Linux's scheduler (`base_slice_ns`, about 3 ms each), which a
process on a busy machine may have to wait now and then."""


@dataclass(frozen=True, kw_only=True)
class Arrivals(ABC):
    """Arrivals of one request, again and again, whatever became of those before.

    Attributes:
        request: What arrives.
        start_s: When they begin, in s after the beginning of the load.
        arrival: `uniform` or `poisson`, see `sim.load.arrivals`.
        seed: Of the generator that draws them.

    Raises:
        ValueError: A value out of range; the message names it.
    """

    request: "Request"
    start_s: float = 0.0
    arrival: str = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arrival not in SCHEDULES:
            raise ValueError(f"arrival must be one of {', '.join(SCHEDULES)}, not {self.arrival!r}")

    @property
    def end_s(self) -> float:
        """When they are over, in s after the beginning of the load, also where the last one comes long before."""
        return self.start_s + self.length_s

    @property
    @abstractmethod
    def length_s(self) -> float:
        """How long they go on, in s."""

    def schedule(self) -> "Iterator[int]":
        """Return the intended starts, in ns after the beginning of the load."""
        starts_ns = self._drawn(random.Random(self.seed))
        offset_ns = round(self.start_s * _NS_PER_S)
        return (offset_ns + start_ns for start_ns in starts_ns) if offset_ns else starts_ns

    @abstractmethod
    def _drawn(self, generator: random.Random) -> "Iterator[int]":
        """Return the intended starts, in ns after `start_s`."""


@dataclass(frozen=True, kw_only=True)
class ConstantArrivalRate(Arrivals):
    """Arrivals of constant rate; the name is that of k6's executor.

    Attributes:
        rate_per_s: Requests per second.
        duration_s: How long they go on.
    """

    rate_per_s: float
    duration_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "rate_per_s", "duration_s")

    @property
    def length_s(self) -> float:
        """How long they go on, in s."""
        return self.duration_s

    def _drawn(self, generator: random.Random) -> "Iterator[int]":
        return SCHEDULES[self.arrival](self.rate_per_s, self.duration_s, generator)


@dataclass(frozen=True, kw_only=True)
class RampingArrivalRate(Arrivals):
    """Arrivals whose rate goes in straight lines; the name is that of k6's executor.

    Attributes:
        stages: Duration in s, and rate per s at the beginning and at the end of each.
    """

    stages: tuple[tuple[float, float, float], ...]

    @property
    def length_s(self) -> float:
        """How long they go on, in s."""
        return sum(duration_s for duration_s, _first, _last in self.stages)

    def _drawn(self, generator: random.Random) -> "Iterator[int]":
        return ramping(self.stages, self.arrival, generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoad:
    """What arrives at one address, side by side, over the same connections.

    Attributes:
        arrivals: Each with a request of its own.
        connections_max: Connections at most; more requests than that at once wait, and their latency shows it.
        timeout_s: How long an answer is waited for, from the intended start; the default is k6's.
        stop_timeout_s: How long answers are waited for at most once the load has been stopped.
        pauses: From when until when nothing arrives, in s.
        bursts: From when until when more of the first arrivals' requests come, in s, and how many a second.
        windows: From when until when faults are felt, in s: latencies of requests that start then are told apart.

    Raises:
        ValueError: A value out of range; the message names it.
    """

    arrivals: tuple[Arrivals, ...]
    connections_max: int = 1000
    timeout_s: float = 60.0
    stop_timeout_s: float = 5.0
    pauses: tuple[tuple[float, float], ...] = ()
    bursts: tuple[tuple[float, float, float], ...] = ()
    windows: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        _require_positive(self, "connections_max", "timeout_s", "stop_timeout_s")

    @property
    def length_s(self) -> float:
        """How long the load lasts, in s."""
        return max(arrivals.end_s for arrivals in self.arrivals)

    def schedule(self) -> "Iterator[tuple[int, Request]]":
        """Return the intended starts, in ns after the beginning, and what is sent then."""
        requests = [zip(arrivals.schedule(), repeat(arrivals.request)) for arrivals in self.arrivals]
        requests += [zip(self._burst(burst), repeat(self.arrivals[0].request)) for burst in self.bursts]
        due = heapq.merge(*requests, key=itemgetter(0))
        if not self.pauses:
            return due
        is_outside = _outside(self.pauses, self.length_s)
        return (each for each in due if is_outside(each[0]))

    def _burst(self, burst: tuple[float, float, float]) -> "Iterator[int]":
        first_s, last_s, rate_per_s = burst
        first_ns = round(first_s * _NS_PER_S)
        offsets_ns = uniform(rate_per_s, min(last_s, self.length_s) - first_s, random.Random(0))
        return (first_ns + offset_ns for offset_ns in offsets_ns)


def _require_positive(load: object, *names: str) -> None:
    for name in names:
        if getattr(load, name) <= 0:
            raise ValueError(f"{name} must be above 0, not {getattr(load, name)}")


def _outside(spans_s: "tuple[tuple[float, float], ...]", end_s: float) -> "Callable[[int], bool]":
    spans_ns = [(round(first_s * _NS_PER_S), round(min(last_s, end_s) * _NS_PER_S)) for first_s, last_s in spans_s]
    return lambda start_ns: not any(first_ns <= start_ns < last_ns for first_ns, last_ns in spans_ns)


def drive(control: "Connection", load: OpenLoad) -> None:
    """Drive the load from this process, as a peer; it ends by itself once every request has.

    Its report:
        state: `running` until the load is over, `draining` while answers are awaited, then `finished`.
        requests: `{offered, sent, completed, failed, unsent, outstanding, resent, waited}`: offered are those whose
            intended time has come, outstanding those under way (0 at the end), waited those that found all
            `connections_max` connections busy.
        by_status: completed requests by status.
        arrivals: `{offered, completed, failed, unsent, by_status, latency_ms}` of each of the load's, in their order.
        failed_by_reason: failed requests by reason.
        latency_ms: `{p50, p90, p99, p99_9, max, mean}` of completed requests.
        latest: of the requests that were completed since the last report, `{requests, latency_ms}`.
        fault_window: of the completed requests that started while a fault was felt and of all others, `{requests,
            outside_requests}` and `{latency_ms, outside_latency_ms}`; None when there are no `windows`.
        lag_ms: the same of the generator's own lateness.
        histogram: the latencies for `Latencies.merge`, once finished.
        achieved_rate_per_s: requests sent, by the time that passed or the duration, whichever is longer.
        valid, invalid_reason: whether the figures count; see `invalid_reason`.
        connections: `{opened, peak}`: all of them, and the most at once.
        begun_s: the beginning, in s of `time.monotonic`, which all processes share.
        elapsed_s, cpu_s: time since the beginning; CPU time of the process.
    """
    driver = _Driver(load)
    peer.run(control, driver.run, driver.report)


def invalid_reason(lag_ms: "Mapping[str, float]", latency_ms: "Mapping[str, float]") -> str | None:
    """Return why the figures of a load do not count, None when they do.

    Every latency contains the lag of its request, so with a large lag it is the generator that was measured. Judged
    where the tail is read, at the 99th percentile, by `LAG_MS_NEGLIGIBLE` and `LAG_SHARE_MAX`.

    Args:
        lag_ms: The lag, as `Latencies.summary_ms` gives it.
        latency_ms: The latency, the same way.
    """
    if lag_ms["p99"] <= max(LAG_MS_NEGLIGIBLE, LAG_SHARE_MAX * latency_ms["p99"]):
        return None
    return (
        f"the load generator fell behind its own schedule by {lag_ms['p99']:.0f} ms (p99), "
        f"{LAG_SHARE_MAX:.0%} of the latency at most may be its own; give it more CPU or a lower rate"
    )


class _Account:
    """What became of the requests of one of the arrivals."""

    def __init__(self) -> None:
        self.offered = 0
        self.unsent = 0
        self.failed_by_reason: Counter[str] = Counter()
        self.by_status: Counter[int] = Counter()
        self.latency = Latencies()

    def report(self) -> dict[str, Any]:
        return {
            "offered": self.offered,
            "completed": len(self.latency),
            "failed": self.failed_by_reason.total(),
            "unsent": self.unsent,
            "by_status": dict(self.by_status),
            "latency_ms": self.latency.summary_ms(),
        }


class _Driver:
    def __init__(self, load: OpenLoad) -> None:
        self._load = load
        # The accounts.
        self._accounts = {arrivals.request: _Account() for arrivals in load.arrivals}
        self._outstanding = 0
        self._latency_latest = Latencies()  # since the last report
        self._latency_inside = Latencies()  # of those that started while a fault was felt
        self._is_outside = _outside(load.windows, load.length_s) if load.windows else None
        self._lag = Latencies()
        # The load under way.
        self._pool = Pool(load.connections_max, self)
        self._due: Iterator[tuple[int, Request]] = iter(())
        self._next: tuple[int, Request] | None = None  # the next intended start, and what is sent then
        self._begun_ns = 0
        self._end_ns = 0  # when it is over, however long before that the last request arrives
        self._arrived_ns = 0  # when it was over or stopped; 0 until then
        self._finished_ns = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Send what the schedule says until the load is over or `stop` is set, then wait for the answers."""
        _allow_descriptors(self._load.connections_max + _SPARE_DESCRIPTORS)
        self._over, self._settled = asyncio.Event(), asyncio.Event()
        self._begun_ns = time.monotonic_ns()
        self._end_ns = self._begun_ns + round(self._load.length_s * _NS_PER_S)
        self._due = ((self._begun_ns + offset_ns, request) for offset_ns, request in self._load.schedule())
        self._advance()
        timer = TimerFd(asyncio.get_running_loop(), self._send_due)
        timer.arm(self._next[0] if self._next else self._end_ns)
        self._sweep()
        await _first(self._over, stop)
        timer.close()
        self._leave_unsent()
        await _first(self._settled, stop)
        try:
            async with asyncio.timeout(self._load.stop_timeout_s):
                await self._settled.wait()
        except TimeoutError:
            self._pool.give_up(time.monotonic_ns())
            await self._settled.wait()
        self._finished_ns = time.monotonic_ns()
        self._pool.close()

    def completed(self, request: "Request", intended_ns: int, status: int) -> None:
        """Account for a request whose whole answer has arrived."""
        account = self._accounts[request]
        latency_us = (time.monotonic_ns() - intended_ns) // 1000
        account.latency.record(latency_us)
        account.by_status[status] += 1
        self._latency_latest.record(latency_us)
        if self._is_outside is not None and not self._is_outside(intended_ns - self._begun_ns):
            self._latency_inside.record(latency_us)
        self._settle_one()

    def failed(self, request: "Request", reason: str) -> None:
        """Account for a request that gets no answer."""
        self._accounts[request].failed_by_reason[reason] += 1
        self._settle_one()

    def report(self) -> dict[str, Any]:
        """Return the report of `drive`."""
        now_ns = self._finished_ns or time.monotonic_ns()
        accounts = self._accounts.values()
        latency, by_status, failed_by_reason = Latencies(), Counter[int](), Counter[str]()
        for account in accounts:
            latency.add(account.latency)
            by_status.update(account.by_status)
            failed_by_reason.update(account.failed_by_reason)
        latency_ms, lag_ms = latency.summary_ms(), self._lag.summary_ms()
        latest, self._latency_latest = self._latency_latest, Latencies()
        reason = invalid_reason(lag_ms, latency_ms)
        return {
            "state": "finished" if self._finished_ns else "draining" if self._arrived_ns else "running",
            "requests": {
                "offered": sum(account.offered for account in accounts),
                "sent": self._pool.sent,
                "completed": len(latency),
                "failed": failed_by_reason.total(),
                "unsent": sum(account.unsent for account in accounts),
                "outstanding": self._outstanding,
                "resent": self._pool.resent,
                "waited": self._pool.waited,
            },
            "by_status": dict(by_status),
            "arrivals": [account.report() for account in accounts],
            "failed_by_reason": dict(failed_by_reason),
            "latency_ms": latency_ms,
            "latest": {"requests": len(latest), "latency_ms": latest.summary_ms()},
            "fault_window": self._fault_window(latency),
            "lag_ms": lag_ms,
            "histogram": latency.encode() if self._finished_ns else None,
            "achieved_rate_per_s": self._pool.sent * _NS_PER_S / max(1, (self._arrived_ns or now_ns) - self._begun_ns),
            "valid": reason is None,
            "invalid_reason": reason,
            "connections": {"opened": self._pool.opened_total, "peak": self._pool.peak},
            "begun_s": self._begun_ns / _NS_PER_S,
            "elapsed_s": (now_ns - self._begun_ns) / _NS_PER_S,
            "cpu_s": time.process_time(),
        }

    def _fault_window(self, latency: Latencies) -> dict[str, Any] | None:
        if self._is_outside is None:
            return None
        inside, outside = self._latency_inside, latency.without(self._latency_inside)
        return {
            "requests": len(inside),
            "outside_requests": len(outside),
            "latency_ms": inside.summary_ms(),
            "outside_latency_ms": outside.summary_ms(),
        }

    def _send_due(self, now_ns: int) -> int | None:
        for _ in range(_BATCH_MAX):
            if self._next is None or self._next[0] > now_ns:
                break
            intended_ns, request = self._next
            self._accounts[request].offered += 1
            self._outstanding += 1
            self._lag.record((now_ns - intended_ns) // 1000)
            self._pool.begin(request, intended_ns)
            self._advance()
            now_ns = time.monotonic_ns()
        if self._next is not None:
            return self._next[0]
        if now_ns < self._end_ns:
            return self._end_ns
        self._over.set()
        return None

    def _advance(self) -> None:
        self._next = next(self._due, None)

    def _leave_unsent(self) -> None:
        self._arrived_ns = time.monotonic_ns()
        # What would have come later is not walked: of a load of a day that takes longer than anybody waits for it.
        while self._next is not None and self._next[0] <= self._arrived_ns:
            account = self._accounts[self._next[1]]
            account.offered += 1
            account.unsent += 1
            self._advance()
        self._next = None
        self._check_settled()

    def _settle_one(self) -> None:
        self._outstanding -= 1
        self._check_settled()

    def _check_settled(self) -> None:
        if self._next is None and not self._outstanding:
            self._settled.set()

    def _sweep(self) -> None:
        self._pool.give_up(time.monotonic_ns() - round(self._load.timeout_s * _NS_PER_S))
        asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)


async def _first(*events: asyncio.Event) -> None:
    await asyncio.wait([asyncio.ensure_future(event.wait()) for event in events], return_when=asyncio.FIRST_COMPLETED)


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard)
        )
