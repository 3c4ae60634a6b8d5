"""The worker under measurement: one process, one event loop, and the gateways of several arms, each on its own port.

Started afresh (`python -m sim.overhead.worker`), not forked, so that it can be of another revision of the code and has
nothing of its parent's memory. It takes orders from standard input and answers on standard output, a JSON object on a
line each:

    {"scenario": FILE, "arms": [...], "hosts": {...}, "traces_endpoint": URL, "seed": N}
                             -> {"ports": [...]}          once, at the beginning; an arm is the fields of `Arm`
    {"order": "read", "arm": N}       -> a reading        at once
    {"order": "rest", "arm": N}       -> a reading        when the arm has no request, no span and no batch under way
    {"order": "memory"}               -> {"rss_bytes": N, "pool_bytes": N}
    {"order": "count", "file": PATH}  -> {}               counts allocations from now on; older ones do in PATH
    {"order": "counted"}              -> {"allocations": N}

`{"error": TEXT}` answers a first line that cannot be carried out. The end of standard input ends the process. Both are
moved to other descriptors at once: what a plugin prints goes to standard error, and there is nothing for it to read.
"""

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import uvloop

from kongtrace import tracing
from sim.config import Gateway
from sim.errors import UserError
from sim.gateway import WorkerGateway, may_read_times
from sim.overhead.arms import Arm, TimedProvider
from sim.runtime.live import LiveRuntime
from sim.scenario import Scenario, load

_HOST: Final = "127.0.0.1"
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_LEVELS: Final = ("error", "crit", "alert", "emerg")


def main() -> None:
    """Serve until standard input ends."""
    gc.freeze()
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    # The bench has gone, and nobody waits for an answer.
    with contextlib.suppress(ConnectionError):
        uvloop.run(_serve(orders, answers))


async def _serve(orders: TextIO, answers: TextIO) -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), orders)

    def answer(told: Mapping[str, Any]) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    try:
        worker = Worker(json.loads(await lines.readline()))
        answer({"ports": await worker.listen()})
    except (UserError, OSError) as error:
        answer({"error": str(error)})
        return
    while line := await lines.readline():
        order = json.loads(line)
        answer(await worker.carry_out(order.pop("order"), **order))
    await worker.close()


class Worker:
    """The gateways of all arms, and the counters that they share.

    Args:
        told: the first line.
    """

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._traces_endpoint = told["traces_endpoint"]
        self._runtime = LiveRuntime(asyncio.get_running_loop(), told["seed"])
        self._rest: asyncio.Future[None] | None = None
        self._gc_ns = self._gc_begun_ns = 0
        self._counting = contextlib.ExitStack()
        self._count_file: int  # in memory, open while allocations are counted
        gc.callbacks.append(self._collecting)
        scenario = load(told["scenario"])
        self._servers = {name: (host, port) for name, (host, port) in told["hosts"].items()}
        arms = [Arm(**fields) for fields in told["arms"]]
        configured = [self._configured(scenario, arm) for arm in arms]
        # What a worker does for plugins that may read the times of phases is no cost of the one that is measured.
        keeps_times = any(map(may_read_times, configured))
        self._gateways = [
            WorkerGateway(
                gateway,
                self._runtime,
                _log,
                on_change=self._changed,
                on_rest=_nothing,
                make_provider=arm.make_provider,
                make_exporter=arm.make_exporter,
                keeps_times=keeps_times,
            )
            for arm, gateway in zip(arms, configured, strict=True)
        ]

    async def listen(self) -> list[int]:
        """Open the ports of all arms."""
        self._listeners = [await self._runtime.listen(_HOST, 0, arm.connection) for arm in self._gateways]
        return [listener.address[1] for listener in self._listeners]

    async def carry_out(self, order: str, **given: Any) -> dict[str, Any]:
        """Carry out an order and return the answer."""
        if order == "rest":
            return await self._end(self._gateways[given["arm"]])
        if order == "read":
            return self._begin(self._gateways[given["arm"]])
        if order == "count":
            return self._count()
        return {"memory": self._memory, "counted": self._counted}[order]()

    async def close(self) -> None:
        """Close every socket."""
        for listener in self._listeners:
            listener.close()
        for gateway in self._gateways:
            gateway.exporter.queues.abandon()
            await gateway.close()

    def _configured(self, scenario: Scenario, arm: Arm) -> Gateway:
        its = load(arm.base) if arm.is_file else scenario
        given = arm.gateway(its.gateway, self._traces_endpoint)
        return given.model_copy(update={"hosts": given.hosts | its.addresses(self._servers)})

    def _begin(self, gateway: WorkerGateway) -> dict[str, Any]:
        tracing.use(gateway.provider)
        return self._reading(gateway)

    async def _end(self, gateway: WorkerGateway) -> dict[str, Any]:
        self._current = gateway
        self._rest = asyncio.get_running_loop().create_future()
        self._changed()
        await self._rest
        self._rest = None
        return self._reading(gateway)

    def _changed(self) -> None:
        if self._rest is not None and not self._rest.done() and _is_at_rest(self._current):
            self._rest.set_result(None)

    def _reading(self, gateway: WorkerGateway) -> dict[str, Any]:
        provider = gateway.provider
        return {
            "cpu_ns": time.process_time_ns(),
            "wall_ns": time.monotonic_ns(),
            "requests": gateway.counts.requests,
            "spans": provider.spans.balance().fetched,
            "gc_ns": self._gc_ns,
            "release_ns": provider.release_ns if isinstance(provider, TimedProvider) else 0,
        }

    def _collecting(self, phase: str, _told: Mapping[str, int]) -> None:
        if phase == "start":
            self._gc_begun_ns = time.process_time_ns()
        else:
            self._gc_ns += time.process_time_ns() - self._gc_begun_ns

    def _memory(self) -> dict[str, Any]:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return {"rss_bytes": pages * _PAGE_BYTES, "pool_bytes": sum(map(_pool_bytes, self._gateways))}

    def _count(self) -> dict[str, Any]:
        from memray import FileDestination, Tracker  # noqa: PLC0415 - it is heavy, and few orders need it

        gc.collect()
        # In memory: where a disk is full memray stops counting, and what it has counted looks like all.
        self._count_file = os.memfd_create("allocations")
        destination = FileDestination(_path(self._count_file), overwrite=True, compress_on_exit=False)
        self._counting.enter_context(Tracker(destination=destination, trace_python_allocators=True))
        return {}

    def _counted(self) -> dict[str, Any]:
        from memray import FileReader  # noqa: PLC0415 - the same

        self._counting.close()
        with os.fdopen(self._count_file), FileReader(_path(self._count_file)) as reader:
            allocations = reader.metadata.total_allocations
        return {"allocations": allocations}


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _is_at_rest(gateway: WorkerGateway) -> bool:
    exporter = gateway.exporter
    waiting = [queues.counters() for queues in (exporter.queues, exporter.other_queues)]
    return not (gateway.counts.active or any(queue.queued or queue.in_flight for queue in waiting))


def _pool_bytes(gateway: WorkerGateway) -> int:
    provider = gateway.provider
    pools = (provider.spans, provider.storage, provider.attributes, provider.events)
    return sum(sys.getsizeof(free) for pool in pools for free in pool.free or ())


def _log(level: str, message: str) -> None:
    if level in _LEVELS:
        sys.stderr.write(f"[{level}] {message}\n")


def _nothing() -> None:
    return None


if __name__ == "__main__":
    main()
