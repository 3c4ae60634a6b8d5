"""The gateway inside one worker: all that is made after the fork and knows neither process nor socket nor signal.

Tracer provider, timers, pools, queues, plugins and runloop of one worker, on whatever `Runtime` it is given. Whoever
hosts it lets connections in and is told when it has come to rest: `sim.worker` hosts it in a process, on sockets and
the real clock.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

import kongtrace
from kongtrace import PHASES, TracerProvider, queue_profile, tracing
from kongtrace.context import KONG_PHASE, Execution
from sim.config import Gateway
from sim.connection import ClientConnection
from sim.connection_table import ConnectionTable
from sim.exporter import Exporter
from sim.health_check import HealthChecks
from sim.instrumentation import Instrumentation
from sim.ngx import Network, Ngx
from sim.pdk import Kong
from sim.phase_times import TimedRunloop
from sim.plugin import Plans, PluginClass
from sim.plugin_error import described, place_of, users_place
from sim.plugins import BUNDLED
from sim.plugins.opentelemetry import node_id
from sim.plugins.prometheus import subjects
from sim.request import REQUEST, RefusedRequest, Request
from sim.resolver import Resolver
from sim.runloop import Counts, Runloop
from sim.runtime import Runtime
from sim.tally import Tally
from sim.timers import Timers
from sim.upstream import Pool


class WorkerGateway:
    """What one worker serves with. Making it makes its tracer provider the one of `kongtrace.tracing`.

    Args:
        gateway: the configuration.
        runtime: where time, randomness, connections and delays come from.
        log: takes a level and a message.
        held: places of the connection table that its host takes: listening sockets, and one for the master.
        on_change: called when a count has changed.
        on_rest: called once, when it drains and no connection of a client and no timer is left.
        slot: the worker's place among the others.
        tally: what is counted by subject; None: nobody reads it.
        number: gives the number of a client's new connection; None: they are counted here, from 1.
        classes: the plugins that there are.
        make_provider: makes the tracer provider, such as a checked one (`kongtrace.checked.tracer_provider`).
        make_exporter: makes the exporter, such as one that only counts.
        make_timers: makes the timers, such as watched ones (`sim.verify`).
        on_logged: called with each request after its log phase, and each that was refused, such as the access log.
        keeps_times: the times of phases are kept even where no plugin may read them.

    Attributes:
        configuration: as given.
        profile: "kong" or "safe".
        runtime: as given.
        node_id: of the node.
        provider: of the worker's tracers.
        timers: of the worker.
        pool: connections to upstreams.
        exporter: drives the queues.
        counts: what the runloop counts.
        kong: the PDK.
        runloop: serves the requests.
        plans: which plugins run.
        draining: it was told to leave.
        table: the places for connections.
        tally: as given.
        arriving: connections of clients that its host has accepted and not yet made.
    """

    def __init__(
        self,
        gateway: Gateway,
        runtime: Runtime,
        log: Callable[[str, str], None],
        *,
        held: int = 0,
        on_change: Callable[[], None],
        on_rest: Callable[[], None],
        slot: int = 0,
        tally: Tally | None = None,
        number: Callable[[], int] | None = None,
        classes: Mapping[str, PluginClass] = BUNDLED,
        make_provider: Callable[..., TracerProvider] = TracerProvider,
        make_exporter: Callable[..., Exporter] = Exporter,
        make_timers: Callable[..., Timers] = Timers,
        on_logged: Callable[[Request | RefusedRequest], None] | None = None,
        keeps_times: bool = False,
    ) -> None:
        self.configuration = gateway
        self.tally = tally or Tally.alone(subjects(gateway))
        self._log = log
        self._held = held
        self.arriving: set[ClientConnection] = set()
        self._on_change = on_change
        self._on_rest = on_rest
        self.draining = self._leaving = False
        execution = Execution()
        self.table = ConnectionTable(
            gateway.nginx.worker_connections, self._connections_used, self._reusable_clients, runtime.now, log
        )
        self.profile = gateway.profile
        self.runtime = runtime
        self.node_id = node_id(gateway.seed)
        self.provider = make_provider(
            time_ns=runtime.time_ns,
            random_bytes=runtime.random_bytes,
            execution=execution,
            log=partial(_log_of_request, log, execution),
            profile=kongtrace.PROFILES[gateway.profile],
            sampling_rate=gateway.tracing.sampling_rate,
        )
        tracing.use(self.provider)
        init: dict[str, object] = {KONG_PHASE: "init_worker"}
        self.provider.execution.enter(PHASES["init_worker"], init)
        self.timers = make_timers(
            runtime,
            self.provider.execution,
            log,
            pending_max=gateway.nginx.lua_max_pending_timers,
            running_max=gateway.nginx.lua_max_running_timers,
            admits=self.table.admits,
            on_idle=self.rest,
            on_end=self._end_timer,
        )
        self.pool = Pool(runtime, self.table.admits)
        resolver = Resolver(runtime, gateway.hosts)
        instrumentation = Instrumentation(self.provider, gateway.tracing)
        self.exporter = make_exporter(
            queue_profile.PROFILES[gateway.profile],
            runtime,
            self.timers,
            resolver,
            gateway.export,
            gateway.nginx.lua_ssl_trusted_certificate,
            log,
            on_change,
            self.table.admits,
        )
        self.counts = Counts()
        self.kong = Kong(
            self.provider,
            self.timers,
            Ngx(
                runtime,
                self.provider.execution,
                self.timers,
                Network(resolver, self.pool, instrumentation, gateway.nginx.lua_ssl_trusted_certificate),
                slot=slot,
                workers=gateway.workers,
            ),
            node_id=self.node_id,
            gateway=gateway,
            worker=self,
        )
        self.plans = Plans(gateway, {**classes, **gateway.plugin_classes})
        self.plans.start(self.kong)
        self.runloop = (TimedRunloop if keeps_times or may_read_times(gateway) else Runloop)(
            gateway,
            self.provider,
            runtime,
            self.pool,
            self.plans,
            self.kong,
            instrumentation,
            resolver,
            self.counts,
            number or count(1).__next__,
            on_change,
            self.rest,
            on_logged,
        )
        for balancer in self.runloop.balancers.values():
            HealthChecks(balancer, self.timers, self.pool, self.runloop.resolver, log)
        self._end_timer(init)

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what a plugin's task or callback has raised and nobody has asked for; for the event loop."""
        error = context.get("exception")
        if error is None or users_place(error) is None:
            loop.default_exception_handler(context)
        else:
            what = f"{place_of(error)}: {described(error)}"
            self._log("error", f"lua user thread aborted: runtime error: {what}")

    def connection(self) -> ClientConnection:
        """Return the protocol of a client's new connection."""
        return ClientConnection(self.runloop)

    def quit(self) -> None:
        """Leave gracefully: close idle connections and expire the timers; requests get time to end (W12, W13)."""
        if self.draining:
            return
        self._log("notice", "gracefully shutting down")
        self.draining = self.runloop.draining = True
        for connection in tuple(self.runloop.connections):
            connection.close_if_idle()
        self.exporter.queues.exit(self.runtime.now())
        self.exporter.other_queues.exit(self.runtime.now())
        self.timers.exit()
        timeout_s = self.configuration.nginx.worker_shutdown_timeout
        if timeout_s:
            self.runtime.call_later(timeout_s, self._cut_off)
        self._on_change()
        self.rest()

    def terminate(self) -> None:
        """Leave at once: what requests and queues hold is booked as lost (W2, E5)."""
        self._leaving = True
        self._log("notice", "exiting")
        self.counts.lost_in_request += self.provider.spans.balance().live
        self.exporter.queues.abandon()
        self.exporter.other_queues.abandon()

    async def close(self) -> None:
        """Run what comes last, `exit_worker`, and give every connection back.

        Requests under way end without a log phase. After a graceful exit there are none; what is open all the same was
        left behind by somebody, and is an alert (W12).
        """
        self.provider.execution.enter(PHASES["exit_worker"], {})
        if self.draining:
            for number, left in enumerate(self.pool.left_open()):
                socket = left.transport.get_extra_info("socket")
                self._log("alert", f"open socket #{socket.fileno() if socket else '?'} left in connection {number}")
        self.exporter.close()
        self.runloop.leave_behind()
        while self.runloop.connections or self.pool.open or not self.exporter.is_closed:
            self.pool.close()
            for connection in tuple(self.runloop.connections):  # also those that were just being accepted
                if connection.request is not None:
                    connection.request.done = True
                    connection.request = None
                connection.transport.abort()
            turn = asyncio.get_running_loop().create_future()
            self.runtime.call_soon(turn.set_result, None)
            await turn
        self.provider.sweep()
        self._log("notice", "exit")

    def _cut_off(self) -> None:
        for connection in tuple(self.runloop.connections):
            connection.transport.abort()

    def rest(self) -> None:
        """Look whether it has come to rest; called whenever something has ended."""
        if self.draining and not self._leaving and self._is_at_rest():
            self._leaving = True
            # What this turn still brings, such as a timer without delay, is waited for too.
            self.runtime.call_soon(self._leave)

    def _leave(self) -> None:
        self._leaving = False
        if self._is_at_rest():
            self._leaving = True
            self._log("notice", "exiting")
            self.exporter.queues.close()
            self.exporter.other_queues.close()
            self._on_rest()

    def _is_at_rest(self) -> bool:
        serving = self.arriving or self.runloop.connections or self.counts.active
        return self.draining and not (serving or self.timers.running or self.timers.pending)

    def _connections_used(self) -> int:
        own = self.pool.size + self.exporter.connections + self.timers.running
        clients = self.runloop.connections
        return self._held + sum(arrival not in clients for arrival in self.arriving) + len(clients) + own

    def _reusable_clients(self) -> list[ClientConnection]:
        return [connection for connection in self.runloop.connections if connection.reusable]

    def _end_timer(self, ctx: dict[str, object]) -> None:
        self.runloop.end_timer(ctx)


def may_read_times(gateway: Gateway) -> bool:
    """Return whether a plugin may read the times of phases: one that does not come with the program."""
    return any(plugin.name not in BUNDLED for plugin in gateway.plugins)


def _log_of_request(log: Callable[[str, str], None], execution: Execution, level: str, message: str) -> None:
    """Log; a line that is written while a request is handled names that and its connection, as nginx's do."""
    ctx = execution.ctx
    request = ctx.get(REQUEST) if ctx else None
    log(level, f"*{request.connection.number} {message}{request.named}" if request is not None else message)
