"""The driver of a load: sends what its executors say, and accounts for it.

Theory of operation. One timer walks the schedule of what waits for no answer: arrivals, and users who come. What is due
goes to the pool of connections at once. Latency counts from the *intended* start, so neither a wait for a connection
nor what a client would have held back is hidden ("coordinated omission", G. Tene; the measure of wrk2). The next
request of a virtual user is intended when the answer to the last has come: a slow server gets fewer of them.

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
Virtual users have no schedule to fall behind.

Times in s and ms as named, ns inside.
"""

import asyncio
import resource
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from sim import peer
from sim.load.executor import Executor, Load, VirtualUsers, outside
from sim.load.latency import Latencies
from sim.load.pool import Pool
from sim.timerfd import TimerFd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sim.load.request import Request
    from sim.process import Connection

__all__ = ["drive", "invalid_reason"]

_NS_PER_S: Final = 1_000_000_000
_SWEEP_S: Final = 0.1  # how late a timeout may be noticed
_BATCH_MAX: Final = 64  # requests begun in a row before the loop may write them out
_SPARE_DESCRIPTORS: Final = 64  # beside those of connections

LAG_SHARE_MAX: Final = 0.1
"""Share of the measured latency that the generator's own lag may be, at the 99th percentile."""

LAG_MS_NEGLIGIBLE: Final = 10.0
"""Lag that is no sign of falling behind: three turns of Linux's scheduler (`base_slice_ns`, about 3 ms each), which a
process on a busy machine may have to wait now and then."""


def drive(control: "Connection", load: Load) -> None:
    """Drive the load from this process, as a peer; it ends by itself once every request has.

    Its report:
        state: `running` until the load is over, `draining` while answers are awaited, then `finished`.
        requests: `{offered, sent, completed, failed, unsent, outstanding, resent, waited}`: offered are those whose
            intended time has come, outstanding those under way (0 at the end), waited those that found all
            `connections_max` connections busy.
        by_status: completed requests by status.
        executors: `{offered, completed, failed, unsent, completed_per_s, by_status, latency_ms}` of each, in their
            order, once finished.
        busy_with_users: share of a CPU that the generator took while there were virtual users; None without any.
        failed_by_reason: failed requests by reason.
        latency_ms: `{p50, p90, p99, p99_9, max, mean}` of completed requests.
        latest: of the requests that were completed since the last report, `{requests, latency_ms}`.
        fault_window: of the completed requests that started while a fault was felt and of all others, `{requests,
            outside_requests}` and `{latency_ms, outside_latency_ms}`; None when there are no `windows`.
        lag_ms: the same of the generator's own lateness; each None where nothing arrived.
        histogram: the latencies for `Latencies.merge`, once finished.
        achieved_rate_per_s: requests sent, by the time that passed or the duration, whichever is longer.
        valid, invalid_reason: whether the figures count, once finished; see `invalid_reason`.
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
    """What became of the requests of an executor."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.users = executor if isinstance(executor, VirtualUsers) else None
        self.users_now = 0
        self.offered = 0
        self.unsent = 0
        self.failed_by_reason: Counter[str] = Counter()
        self.by_status: Counter[int] = Counter()
        self.latency = Latencies()

    def report(self, elapsed_s: float) -> dict[str, Any]:
        lasted_s = min(elapsed_s, self.executor.end_s) - self.executor.start_s
        return {
            "offered": self.offered,
            "completed": len(self.latency),
            "failed": self.failed_by_reason.total(),
            "unsent": self.unsent,
            "completed_per_s": len(self.latency) / lasted_s if lasted_s > 0 else None,
            "by_status": dict(self.by_status),
            "latency_ms": self.latency.summary_ms(),
        }


class _Driver:
    def __init__(self, load: Load) -> None:
        self._load = load
        # The accounts.
        self._accounts = {executor.request: _Account(executor) for executor in load.executors}
        self._outstanding = 0
        self._latency = Latencies()  # until the last report
        self._latency_latest = Latencies()  # since then
        self._latency_inside = Latencies()  # of those that started while a fault was felt
        self._is_outside = outside(load.windows, load.length_s) if load.windows else None
        self._lag = Latencies()  # of arrivals: users have no time to keep
        self._users_from: tuple[int, int] | None = None  # the first user's coming: CPU time and time, both in ns
        self._users_until = (0, 0)  # the last one's going, or the end
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
        account, now_ns = self._accounts[request], time.monotonic_ns()
        latency_us = (now_ns - intended_ns) // 1000
        account.latency.record(latency_us)
        account.by_status[status] += 1
        self._latency_latest.record(latency_us)
        if self._is_outside is not None and not self._is_outside(intended_ns - self._begun_ns):
            self._latency_inside.record(latency_us)
        self._end(request, account, now_ns)

    def failed(self, request: "Request", reason: str) -> None:
        """Account for a request that gets no answer."""
        account = self._accounts[request]
        account.failed_by_reason[reason] += 1
        self._end(request, account, time.monotonic_ns())

    def report(self) -> dict[str, Any]:
        """Return the report of `drive`."""
        now_ns = self._finished_ns or time.monotonic_ns()
        elapsed_s = (now_ns - self._begun_ns) / _NS_PER_S
        accounts = self._accounts.values()
        latest, self._latency_latest = self._latency_latest, Latencies()
        latency_ms = self._latency.add(latest).summary_ms()
        by_status, failed_by_reason = Counter[int](), Counter[str]()
        for account in accounts:
            by_status.update(account.by_status)
            failed_by_reason.update(account.failed_by_reason)
        lag_ms = self._lag.summary_ms()
        reason = self._invalid_reason(lag_ms) if self._finished_ns else None
        return {
            "state": "finished" if self._finished_ns else "draining" if self._arrived_ns else "running",
            "requests": {
                "offered": sum(account.offered for account in accounts),
                "sent": self._pool.sent,
                "completed": by_status.total(),
                "failed": failed_by_reason.total(),
                "unsent": sum(account.unsent for account in accounts),
                "outstanding": self._outstanding,
                "resent": self._pool.resent,
                "waited": self._pool.waited,
            },
            "by_status": dict(by_status),
            "executors": [account.report(elapsed_s) for account in accounts] if self._finished_ns else None,
            "failed_by_reason": dict(failed_by_reason),
            "latency_ms": latency_ms,
            "latest": {"requests": len(latest), "latency_ms": latest.summary_ms()},
            "fault_window": self._fault_window(),
            "lag_ms": lag_ms if len(self._lag) else dict.fromkeys(lag_ms),
            "busy_with_users": self._busy_with_users(),
            "histogram": self._latency.encode() if self._finished_ns else None,
            "achieved_rate_per_s": self._pool.sent * _NS_PER_S / max(1, (self._arrived_ns or now_ns) - self._begun_ns),
            "valid": reason is None,
            "invalid_reason": reason,
            "connections": {"opened": self._pool.opened_total, "peak": self._pool.peak},
            "begun_s": self._begun_ns / _NS_PER_S,
            "elapsed_s": elapsed_s,
            "cpu_s": time.process_time(),
        }

    def _invalid_reason(self, lag_ms: "Mapping[str, float]") -> str | None:
        """Of what arrived: where any latency may be the generator's own, no figure counts."""
        arrived = (account for account in self._accounts.values() if account.users is None)
        reasons = (invalid_reason(lag_ms, account.latency.summary_ms()) for account in arrived)
        return next(filter(None, reasons), None)

    def _busy_with_users(self) -> float | None:
        if self._users_from is None or self._users_until <= self._users_from:
            return None
        cpu_ns, passed_ns = (until - since for until, since in zip(self._users_until, self._users_from, strict=True))
        return cpu_ns / passed_ns

    def _fault_window(self) -> dict[str, Any] | None:
        if self._is_outside is None:
            return None
        inside, outside = self._latency_inside, self._latency.without(self._latency_inside)
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
            self._begin(intended_ns, request, now_ns)
            self._advance()
            now_ns = time.monotonic_ns()
        if self._next is not None:
            return self._next[0]
        if now_ns < self._end_ns:
            return self._end_ns
        self._over.set()
        return None

    def _begin(self, intended_ns: int, request: "Request", now_ns: int) -> None:
        account = self._accounts[request]
        if account.users is None:
            self._lag.record((now_ns - intended_ns) // 1000)
        elif account.users_now < account.users.users_at(now_ns - self._begun_ns):
            self._users_from = self._users_from or _time_spent()
            account.users_now += 1
            intended_ns = now_ns
        else:
            return  # the user who was to go has not gone yet
        account.offered += 1
        self._outstanding += 1
        self._pool.begin(request, intended_ns)

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
        if any(account.users_now for account in self._accounts.values()):
            self._users_until = _time_spent()
        self._check_settled()

    def _end(self, request: "Request", account: _Account, now_ns: int) -> None:
        """End a request; its user sends the next one, unless it is time to go."""
        if account.users is not None and not self._arrived_ns:
            if account.users_now <= account.users.users_at(now_ns - self._begun_ns):
                account.offered += 1
                # The connection is idle once this answer has been accounted for.
                asyncio.get_running_loop().call_soon(self._pool.begin, request, now_ns)
                return
            account.users_now -= 1
            self._users_until = _time_spent()
        self._outstanding -= 1
        self._check_settled()

    def _check_settled(self) -> None:
        if self._next is None and not self._outstanding:
            self._settled.set()

    def _sweep(self) -> None:
        self._pool.give_up(time.monotonic_ns() - round(self._load.timeout_s * _NS_PER_S))
        asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)


def _time_spent() -> tuple[int, int]:
    return time.process_time_ns(), time.monotonic_ns()


async def _first(*events: asyncio.Event) -> None:
    await asyncio.wait([asyncio.ensure_future(event.wait()) for event in events], return_when=asyncio.FIRST_COMPLETED)


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard)
        )
