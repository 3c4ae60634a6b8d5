"""The load of an overhead measurement: blocks on kept connections, one arm at a time.

A *paced* block is open: each request starts at its intended time, and latency counts from it. A *saturated* block is
closed: each connection sends its next request when the answer to the last has come, for as long as the block lasts.
Connections stay open from block to block, so that no block pays for them.

The process takes orders from its pipe, a `Paced` or a `Saturated`, and answers each with a `sim.overhead.blocks.Load`.
"""

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final

import uvloop

from sim.load.arrivals import SCHEDULES
from sim.load.latency import Latencies
from sim.load.pool import Pool
from sim.load.request import Request
from sim.overhead.blocks import Load
from sim.process import Connection
from sim.timerfd import TimerFd

CONNECTIONS_MAX: Final = 256
_NS_PER_S: Final = 1_000_000_000
SERVER_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class Paced:
    """A block at a rate.

    Attributes:
        requests: what is sent, in order; all to one address.
        rate_per_s: requests per second.
        arrival: see `sim.load.arrivals`.
        seed: of the arrivals.
    """

    requests: Sequence[Request]
    rate_per_s: float
    arrival: str
    seed: int


@dataclass(frozen=True, slots=True)
class Saturated:
    """A block as fast as the worker can.

    Attributes:
        requests: what is sent, in order, again and again; all to one address.
        connections: requests under way at any time.
        duration_s: how long new ones are sent.
    """

    requests: Sequence[Request]
    connections: int
    duration_s: float


def serve(control: Connection) -> None:
    """Carry out blocks in this process until the pipe ends."""
    gc.freeze()
    uvloop.run(_serve(control))


async def _serve(control: Connection) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    targets: dict[int, _Target] = {}  # by port
    blocks: set[asyncio.Task[None]] = set()

    async def carry_out(order: Paced | Saturated) -> None:
        target = targets.setdefault(order.requests[0].port, _Target())
        block = target.paced(order) if isinstance(order, Paced) else target.saturated(order)
        load = await block
        with contextlib.suppress(OSError):
            control.send(load)

    def obey() -> None:
        try:
            order = control.recv()
        except (EOFError, OSError):
            loop.remove_reader(control.fileno())
            if not ended.done():
                ended.set_result(None)
            return
        task = loop.create_task(carry_out(order))
        blocks.add(task)
        task.add_done_callback(over)

    def over(task: asyncio.Task[None]) -> None:
        blocks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not ended.done():
            ended.set_exception(error)

    loop.add_reader(control.fileno(), obey)
    await ended
    for target in targets.values():
        target.pool.close()


class _Target:
    """One arm, as the load sees it: its connections, and the accounts of the block under way."""

    def __init__(self) -> None:
        self.pool = Pool(CONNECTIONS_MAX, self)

    async def paced(self, block: Paced) -> Load:
        """Send at the intended times, and wait for the answers."""
        self._begin(block)
        self._left = len(block.requests)
        begun_ns = time.monotonic_ns()
        starts = _starts(block, begun_ns)
        following: int | None = next(starts)

        def send_due(now_ns: int) -> int | None:
            nonlocal following
            while following is not None and following <= now_ns:
                self._lag.record((now_ns - following) // 1000)
                self.pool.begin(next(self._requests), following)
                following = next(starts, None)
            return following

        timer = TimerFd(asyncio.get_running_loop(), send_due)
        timer.arm(begun_ns)
        await self._over
        timer.close()
        return self._load(begun_ns)

    async def saturated(self, block: Saturated) -> Load:
        """Keep so many requests under way, and wait for the last answers."""
        self._begin(block)
        self._left = block.connections
        begun_ns = time.monotonic_ns()
        self._until_ns = begun_ns + round(block.duration_s * _NS_PER_S)
        for _ in range(block.connections):
            self.pool.begin(next(self._requests), begun_ns)
        await self._over
        return self._load(begun_ns)

    def completed(self, _request: Request, intended_ns: int, status: int) -> None:
        """Account for an answer."""
        now_ns = time.monotonic_ns()
        self._completed += 1
        self._errors += status >= SERVER_ERROR
        self._latency.record((now_ns - intended_ns) // 1000)
        self._one_less(now_ns)

    def failed(self, _request: Request, _reason: str) -> None:
        """Account for a request without an answer."""
        self._failed += 1
        self._one_less(time.monotonic_ns())

    def _begin(self, block: Paced | Saturated) -> None:
        self._requests = cycle(block.requests)
        self._latency, self._lag = Latencies(), Latencies()
        self._completed = self._failed = self._errors = self._left = self._until_ns = 0
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _one_less(self, now_ns: int) -> None:
        if now_ns < self._until_ns:
            # The connection is idle once this answer has been accounted for.
            asyncio.get_running_loop().call_soon(self.pool.begin, next(self._requests), now_ns)
            return
        self._left -= 1
        if not self._left:
            self._over.set_result(None)

    def _load(self, begun_ns: int) -> Load:
        latency_ms = self._latency.summary_ms()
        return Load(
            completed=self._completed,
            failed=self._failed,
            errors=self._errors,
            p50_ms=latency_ms["p50"],
            p99_ms=latency_ms["p99"],
            lag_p99_ms=self._lag.summary_ms()["p99"],
            elapsed_s=(time.monotonic_ns() - begun_ns) / _NS_PER_S,
        )


def _starts(block: Paced, begun_ns: int) -> Iterator[int]:
    """Yield an intended start for each request: another length of the schedule would be another load."""
    schedule = SCHEDULES[block.arrival](block.rate_per_s, float("1e6"), random.Random(block.seed))
    for _ in block.requests:
        yield begun_ns + next(schedule)


def in_turn(shares: Sequence[float]) -> Iterator[int]:
    """Yield numbers for ever, each as often as its share says, and as evenly as can be.

    As nginx balances by weight: it is the turn of whichever lags most behind its share.
    """
    total, owed = sum(shares), [0.0] * len(shares)
    while True:
        owed = [each + share for each, share in zip(owed, shares, strict=True)]
        turn = owed.index(max(owed))
        owed[turn] -= total
        yield turn
