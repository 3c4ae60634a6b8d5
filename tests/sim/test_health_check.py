"""Active health checks go on whatever becomes of one of their timers."""

import asyncio
from types import SimpleNamespace

import uvloop

from sim.entity import ActiveChecks
from sim.health_check import HealthChecks
from sim.resolver import Resolver
from sim.runtime.live import LiveRuntime
from tests import stage

PROBES = 3


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


def test_probes_go_on_after_timers_that_were_not_run():
    """The one that comes round, and the one that probes, for want of a connection each."""  # N4, N5, N6

    async def scenario():
        runtime = LiveRuntime(asyncio.get_running_loop(), seed=1)
        timers = stage.timers(runtime, places=[False, True, False])
        checks = ActiveChecks.model_validate({"healthy": {"interval": 0.01}})
        balancer = SimpleNamespace(
            upstream=SimpleNamespace(healthchecks=SimpleNamespace(active=checks)),
            addresses=[Target()],
            report_failure=lambda *_, **__: None,
        )
        pool = Refusing()
        HealthChecks(balancer, timers, pool, Resolver(runtime, {}), print)
        await pool.enough.wait()
        timers.exit()

    uvloop.run(asyncio.wait_for(scenario(), 30))
