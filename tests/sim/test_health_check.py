"""Active health checks go on whatever becomes of one of their timers."""

import asyncio
from types import SimpleNamespace

import pytest
import uvloop

from sim.entity import ActiveChecks
from sim.health_check import HealthChecks
from sim.resolver import Resolver
from sim.runtime.live import LiveRuntime
from sim.upstream import Pool, UpstreamConnection
from tests import stage
from tests.wire import Wire

PROBES = 3
PLACE = ("127.0.0.1", 9)


class Target:
    """A healthy one."""

    name, port, weight, state = "127.0.0.1", 9, 1, "healthy"


class Refusing:
    """A pool whose every connection is refused; it lets a test wait for some of them."""

    def __init__(self):
        self.refused = 0
        self.enough = asyncio.Event()

    async def connect(self, *_where):
        self.refused += 1
        if self.refused == PROBES:
            self.enough.set()
        raise ConnectionRefusedError


def checking(runtime, timers, pool, **balancer):
    """Probe one target."""
    checks = ActiveChecks.model_validate({"healthy": {"interval": 0.01}})
    upstream = SimpleNamespace(healthchecks=SimpleNamespace(active=checks))
    balancer = SimpleNamespace(upstream=upstream, addresses=[Target()], host=None, **balancer)
    HealthChecks(balancer, timers, pool, Resolver(runtime, {}), print)


def test_probes_go_on_after_timers_that_were_not_run():
    """The one that comes round, and the one that probes, for want of a connection each."""  # N4, N5, N6

    async def scenario():
        runtime = LiveRuntime(asyncio.get_running_loop(), seed=1)
        timers = stage.timers(runtime, places=[False, True, False])
        pool = Refusing()
        checking(runtime, timers, pool, report_failure=lambda *_, **__: None)
        await pool.enough.wait()
        timers.exit()

    uvloop.run(asyncio.wait_for(scenario(), 30))


class Opening:
    """Opens wires for a pool; it lets a test wait for one."""

    def __init__(self, pool):
        self.pool = pool
        self.opened = asyncio.Queue()

    async def connect(self, place, _timeout_s):
        connection = UpstreamConnection(self.pool, place)
        connection.connection_made(Wire())
        self.opened.put_nowait(connection)
        return connection


@pytest.mark.parametrize("body", [b"ok", b""], ids=["whole", "head"])
def test_connection_of_a_probe_goes_to_nobody_else(body):
    """However much of the answer has come with its status; it is closed in the turn in which it has its status."""

    async def scenario():
        runtime = LiveRuntime(asyncio.get_running_loop(), seed=1)
        timers = stage.timers(runtime)
        opening, statuses = Opening(Pool(runtime)), asyncio.Queue()
        checking(runtime, timers, opening, report_status=lambda _address, status, **_: statuses.put_nowait(status))
        connection = await opening.opened.get()
        while not connection.transport.written:
            await asyncio.sleep(0)
        assert connection.transport.take().startswith(b"GET / HTTP/1.0")

        connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + body)
        assert opening.pool.take(PLACE) is None
        assert connection.transport.aborted
        assert await statuses.get() == 200
        timers.exit()

    uvloop.run(asyncio.wait_for(scenario(), 30))
