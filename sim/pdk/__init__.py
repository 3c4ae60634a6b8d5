"""The PDK: what a plugin's handler is given, in the shape of Kong's Plugin Development Kit.

One `Kong` serves a worker; what it says is about the request that runs now, as Kong's global `kong` does. Functions
raise `kongtrace.ApiError` in a phase in which Kong does not permit them (kong-semantics R9); `docs/plugins.md` lists
them all. Header names are case-insensitive; header values are text, bodies bytes.
"""

from typing import Any, Final

from kongtrace import Execution, NoopTracer, Tracer, TracerProvider
from sim.absence import Incomplete
from sim.config import KONG_VERSION, Gateway
from sim.ngx import Ngx
from sim.pdk.configuration import Configuration
from sim.pdk.log import Log, Records, Telemetry
from sim.pdk.node import Node
from sim.pdk.part import IN_REQUEST, WITH_CLIENT, Part, permitted
from sim.pdk.queue import Queue, QueueConfig
from sim.pdk.request import ClientRequest
from sim.pdk.response import Exit, Response
from sim.pdk.router import Router
from sim.pdk.service import Service
from sim.request import CTX_PLUGIN, CTX_SHARED
from sim.table import Table
from sim.timers import Timers

__all__ = ["Exit", "Kong", "QueueConfig"]

_NOTHING: Final = Gateway(log_level="debug")


class Client(Part):
    """`kong.client`: who asks."""

    _path = "kong.client"

    @permitted(*WITH_CLIENT)
    def get_ip(self) -> str:
        """Return the address that the connection comes from."""
        return self._request.connection.peer

    @permitted(*WITH_CLIENT)
    def get_port(self) -> int:
        """Return the port that the connection comes from."""
        return int(self._request.connection.transport.get_extra_info("peername")[1])

    @permitted(*WITH_CLIENT)
    def get_forwarded_ip(self) -> str:
        """Return the address of the client: the connection's, unless a trusted proxy names another."""
        return self._request.client_ip

    get_forwarded_port = get_port

    @permitted(*WITH_CLIENT)
    def get_protocol(self, allow_terminated: bool = False) -> str | None:
        """Return "http", or "https" where the route is for nothing else; None without a route.

        Args:
            allow_terminated: a trusted proxy that says so in `X-Forwarded-Proto` has received it over TLS.
        """
        request = self._request
        if request.match is None:
            return None
        protocols = request.match.route.protocols
        if len(protocols) == 1:
            return protocols[0]
        forwarded = request.connection.runloop.forwarding.named(request, "proto") if allow_terminated else None
        return "https" if forwarded == "https" else "http"

    @permitted(*WITH_CLIENT)
    def get_consumer(self) -> None:
        """Return None: nobody is authenticated."""

    @permitted(*WITH_CLIENT)
    def get_credential(self) -> None:
        """Return None: nobody is authenticated."""


class Ctx(Part):
    """`kong.ctx`: tables that live as long as the request."""

    _path = "kong.ctx"

    @property
    def shared(self) -> Table:
        """The table that all plugins share."""
        ctx = self._request.ctx
        shared: Table | None = ctx.get(CTX_SHARED)
        if shared is None:
            shared = ctx[CTX_SHARED] = Table()
        return shared

    @property
    def plugin(self) -> Table:
        """The running plugin's own table."""
        request = self._request
        tables: dict[str, Table] = request.ctx.setdefault(CTX_PLUGIN, {})
        entity_id = request.handler.entity_id if request.handler is not None else ""
        table = tables.get(entity_id)
        if table is None:
            table = tables[entity_id] = Table()
        return table


class Plugin(Part):
    """`kong.plugin`: the running plugin itself."""

    _path = "kong.plugin"

    @permitted(*IN_REQUEST)
    def get_id(self) -> str:
        """Return the id of the entity that configures it."""
        handler = self._request.handler
        return handler.entity_id if handler is not None else ""


class Kong(Incomplete):
    """`kong`.

    Args:
        provider: of the worker's tracers.
        timers: of the worker.
        ngx: what nginx's own API offers.
        node_id: of the node.
        gateway: the configuration; left out, there is nothing but a log, of every level.
        worker: the gateway of the worker, for the plugins that come with it.

    Attributes:
        request: what the client asked.
        response: what the client gets.
        service: where the request goes.
        client: who asks.
        router: the route and the service.
        ctx: tables of the request.
        plugin: the running plugin.
        log: lines in the error log.
        telemetry: log records for an exporter.
        node: who serves.
        timer: timers.
        queue: queues of a plugin's own.
        ngx: nginx's own API: time, sleep, sockets, HTTP.
        db: a database.
        configuration: settings of the gateway.
        version: of Kong, whose behaviour the gateway has.
        version_num: the same as a number, 30901 for 3.9.1.
        records: log records that wait for an exporter; no part of Kong's PDK.
        worker: as given; no part of Kong's PDK.
    """

    _path = "kong"
    version: Final = KONG_VERSION
    version_num: Final = int("{:d}{:02d}{:02d}".format(*map(int, KONG_VERSION.split("."))))

    def __init__(
        self,
        provider: TracerProvider,
        timers: Timers,
        ngx: Ngx,
        *,
        node_id: str = "",
        gateway: Gateway = _NOTHING,
        worker: Any = None,
    ) -> None:
        execution: Execution = provider.execution
        self._provider = provider
        self.request = ClientRequest(execution)
        self.response = Response(execution)
        self.service = Service(execution, frozenset(upstream.name for upstream in gateway.upstreams))
        self.client = Client(execution)
        self.router = Router(execution, gateway.routes, gateway.services)
        self.ctx = Ctx(execution)
        self.plugin = Plugin(execution)
        self.records = Records(provider)
        self.log = Log(provider, self.records, gateway.log_level, self)
        self.telemetry = Telemetry(self.records)
        self.node = Node(node_id)
        self.timer = timers
        self.queue = Queue(execution, worker)
        self.ngx = ngx
        self.db = ngx.db
        self.configuration = Configuration(gateway)
        self.worker = worker

    @property
    def tracing(self) -> Tracer | NoopTracer:
        """The global tracer."""
        return self._provider.global_tracer
