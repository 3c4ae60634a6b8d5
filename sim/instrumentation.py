"""Instrumentations: the spans that the core makes of a request, of the types in `tracing_instrumentations`.

Each type is a method. When the worker starts, the no-op tracer takes the place of one that is not enabled, so that the
way of a request asks nothing (kong-semantics I1-I19); the balancer's, which does more than start a span, returns at
once. Only the first word of the list is tested for `all` and `off` (I2). The root span is made whenever the list is not
`off` (I3); so is that of a plugin's own request, `http_client` listed or not, by an accident of Kong's (I12).

Attribute names come from the published semantic conventions; those that Kong still uses are the older ones.
"""

from asyncio import CancelledError
from typing import Any, Final

from opentelemetry.semconv._incubating.attributes import db_attributes, http_attributes, net_attributes

from kongtrace import NoopSpan, Span, TracerProvider, tracing_context
from kongtrace.context import span_list
from kongtrace.span import CLIENT, SERVER, STATUS_ERROR
from kongtrace.tracer import leave_ended
from sim.config import INSTRUMENTATIONS, Tracing
from sim.request import Request, Try

HTTP_METHOD: Final = http_attributes.HTTP_METHOD
HTTP_URL: Final = http_attributes.HTTP_URL
HTTP_HOST: Final = http_attributes.HTTP_HOST
HTTP_SCHEME: Final = http_attributes.HTTP_SCHEME
HTTP_FLAVOR: Final = http_attributes.HTTP_FLAVOR
HTTP_CLIENT_IP: Final = http_attributes.HTTP_CLIENT_IP
HTTP_STATUS_CODE: Final = http_attributes.HTTP_STATUS_CODE
HTTP_ROUTE: Final = http_attributes.HTTP_ROUTE
NET_PEER_IP: Final = net_attributes.NET_PEER_IP
NET_PEER_PORT: Final = net_attributes.NET_PEER_PORT
NET_PEER_NAME: Final = net_attributes.NET_PEER_NAME

# Kong's own, in no convention.
KONG_REQUEST_ID: Final = "kong.request.id"
TRY_COUNT: Final = "try_count"
DNS_DOMAIN: Final = "dns.record.domain"
DNS_PORT: Final = "dns.record.port"
DNS_IP: Final = "dns.record.ip"

BALANCER: Final = "balancer"
"""Name under which the tracing context keeps the span made ahead for the last try (I15)."""

DB_SYSTEM: Final = db_attributes.DB_SYSTEM
DB_STATEMENT: Final = db_attributes.DB_STATEMENT
HTTP_USER_AGENT: Final = http_attributes.HTTP_USER_AGENT

_NS_PER_MS: Final = 1_000_000


class Instrumentation:
    """The instrumentations of one worker; makes its tracer the global one when any is on (T4).

    Args:
        provider: of the worker's tracers.
        tracing: which types, and the sampling rate.

    Attributes:
        enabled: the list is not `off`.
    """

    def __init__(self, provider: TracerProvider, tracing: Tracing) -> None:
        words = tracing.instrumentations
        self.enabled = words[0] != "off"
        self._is_kong = provider.profile.name == "kong"
        if self.enabled:
            provider.set_global_tracer(provider.new("instrument", {"sampling_rate": tracing.sampling_rate}))
        tracer = self._tracer = provider.global_tracer
        types = INSTRUMENTATIONS if words[0] == "all" else words if self.enabled else ()
        of: dict[str, Any] = {kind: tracer if kind in types else provider.noop_tracer for kind in INSTRUMENTATIONS}
        self._router = of["router"]
        self._dns_query = of["dns_query"]
        self._db_query = of["db_query"]
        self._plugin_rewrite = of["plugin_rewrite"]
        self._plugin_access = of["plugin_access"]
        self._plugin_header_filter = of["plugin_header_filter"]
        self._has_balancer = "balancer" in types

    def request(self, request: Request) -> None:
        """Start the root span and make it active (I5, I18)."""
        if not self.enabled:
            return
        start_ns = request.started_ns
        if self._is_kong:
            # nginx notes a request's start in ms.
            start_ns -= start_ns % _NS_PER_MS
        host = request.host
        peer = request.connection.peer
        root = self._tracer.start_span(
            "kong",
            None,
            start_ns,
            SERVER,
            None,
            {
                HTTP_METHOD: request.method,
                HTTP_URL: f"http://{host}{request.target.decode('latin-1')}",
                HTTP_HOST: host,
                HTTP_SCHEME: "http",
                HTTP_FLAVOR: request.version,
                HTTP_CLIENT_IP: request.client_ip,
                NET_PEER_IP: peer,
                KONG_REQUEST_ID: request.id.decode(),
            },
        )
        tracing_context(request.ctx).raw_trace_id = root.trace_id
        self._tracer.set_active_span(root)

    def router(self) -> Span | NoopSpan:
        """Start the span of matching a route (I6)."""
        return _active(self._router, "kong.router")

    def plugin_rewrite(self, name: str) -> Span | NoopSpan:
        """Start the span of a plugin's rewrite handler, of this name (I7)."""
        return _active(self._plugin_rewrite, name)

    def plugin_access(self, name: str) -> Span | NoopSpan:
        """The same of its access handler."""
        return _active(self._plugin_access, name)

    def plugin_header_filter(self, name: str) -> Span | NoopSpan:
        """The same of its header_filter handler."""
        return _active(self._plugin_header_filter, name)

    def dns_query(self, name: str, port: int, since_ns: int | None = None) -> Span | NoopSpan:
        """Start the span of resolving a host (I9), which may have been asked for before, at `since_ns`."""
        return _active(self._dns_query, "kong.dns", CLIENT, {DNS_DOMAIN: name, DNS_PORT: port}, since_ns)

    def dns_answer(self, span: Span | NoopSpan, found: tuple[str, int] | BaseException) -> None:
        """End the span of resolving a host with what was found (I9), or with what it was given up for."""
        if isinstance(found, BaseException):
            span.record_error("aborted" if isinstance(found, CancelledError) else str(found))
            span.set_status(STATUS_ERROR)
        else:
            span.set_attribute(DNS_IP, found[0])
        span.finish()

    def leave_ended(self) -> None:
        """Let no span stay active that has ended, since several handlers' tasks have waited at once; Kong does."""
        if not self._is_kong:
            leave_ended(self._tracer)

    def db_query(self, system: str, statement: str) -> Span | NoopSpan:
        """Start the span of a query of a database (I10)."""
        return _active(self._db_query, "kong.database.query", None, {DB_SYSTEM: system, DB_STATEMENT: statement})

    def http_client(self, url: str, method: str, user_agent: str) -> Span | NoopSpan:
        """Start the span of a request that a plugin makes; it is not made active (I11)."""
        attributes = {
            HTTP_URL: url,
            HTTP_METHOD: method,
            HTTP_FLAVOR: "1.1",
            HTTP_USER_AGENT: user_agent,
        }
        span: Span | NoopSpan = self._tracer.start_span("kong.internal.request", None, None, CLIENT, None, attributes)
        return span

    def http_answer(self, span: Span | NoopSpan, status: int | None, error: str | None) -> None:
        """End that span: a status, or the error of a request that failed, which leaves the span's status unset."""
        if error is not None:
            span.record_error(error)
        if status is not None:
            span.set_attribute(HTTP_STATUS_CODE, status)
        span.finish()

    def precreate_balancer(self, request: Request) -> None:
        """Make the span of the last try ahead, since its id goes into the headers (I15)."""
        if not self._has_balancer:
            return
        spans = span_list(request.ctx)
        span = self._tracer.create_span(None, {"span_kind": CLIENT, "parent": spans[0] if spans else None})
        tracing_context(request.ctx).unlinked_spans[BALANCER] = span

    def status(self, request: Request) -> None:
        """Write status and route into the root span (I5)."""
        spans = span_list(request.ctx) if self.enabled else ()
        if spans:
            root = spans[0]
            root.set_attribute(HTTP_STATUS_CODE, request.status)
            root.set_attribute(HTTP_ROUTE, request.match.terms.path if request.match else "")

    def balancer(self, request: Request) -> None:
        """Make the spans of the tries (I14)."""
        if not self._has_balancer:
            return
        ahead = tracing_context(request.ctx).unlinked_spans.pop(BALANCER, None)
        last = len(request.tries)
        for number, attempt in enumerate(request.tries, 1):
            options = {
                "span_kind": CLIENT,
                "start_time_ns": attempt.start_ns,
                "attributes": {TRY_COUNT: number, NET_PEER_IP: attempt.address, NET_PEER_PORT: attempt.port},
            }
            if number == last and attempt.state is None and ahead is not None and not ahead.linked:
                self._tracer.set_active_span(ahead)
                self._tracer.link_span(self._tracer, ahead, "kong.balancer", options)
                self._name_peer(ahead, request, attempt)
                ahead.finish(request.body_ended_ns or None)
                return
            span = self._tracer.start_span("kong.balancer", options)
            if attempt.state is not None:
                span.set_attribute(HTTP_STATUS_CODE, attempt.code)
                span.set_status(STATUS_ERROR)
            self._name_peer(span, request, attempt)
            span.finish(attempt.start_ns + attempt.latency_ns + attempt.connect_ns)

    def log(self, request: Request) -> None:
        """End what is active, which is the root unless something leaked (I13)."""
        if not self.enabled:
            return
        self.balancer(request)
        active = self._tracer.active_span()
        if active is not None:
            active.finish(request.body_ended_ns or None)

    def _name_peer(self, span: Span | NoopSpan, request: Request, attempt: Try) -> None:
        if request.hostname:
            span.set_attribute(NET_PEER_NAME, request.hostname)
            span.set_attribute(NET_PEER_PORT, attempt.port)


def _active(
    tracer: Any,
    name: str,
    kind: int | None = None,
    attributes: dict[str, Any] | None = None,
    since_ns: int | None = None,
) -> Span | NoopSpan:
    span: Span | NoopSpan = tracer.start_span(name, None, since_ns, kind, None, attributes)
    tracer.set_active_span(span)
    return span
