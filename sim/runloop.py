"""The runloop: what the gateway does with a request in each phase, in Kong's order (kong-semantics R1, E1).

    rewrite   root span, global plugins        header_filter  status into the root span, plugins
    access    router, plugins, target          body_filter    plugins, once for each part
    content   the proxied exchange             log            balancer spans, end of the root, plugins, release

Errors of a handler: in rewrite, access and response the client gets 500 and later phases run; in a filter the
connection is closed, since the answer is under way; in log nothing more of that phase runs (R6, E4). In every case the
log phase runs and the request ends. In profile `safe` its spans are released whatever happens; in profile `kong` a log
handler that raises leaves them to the garbage collector (E4).

While a handler waits, nobody looks at the client (nginx, `lua_check_client_abort off`): a client that goes away
meanwhile is found gone when the handler has ended, and only then the log phase runs (499). So it is with a body that is
refused meanwhile: only then the client gets the refusal, whatever the handler would have had it get.
"""

import asyncio
from binascii import hexlify
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from math import inf
from typing import TYPE_CHECKING, Any, Final

from kongtrace import NOOP_SPAN, PHASES, NoopSpan, Phase, TracerProvider
from kongtrace.context import KONG_PHASE, Context
from kongtrace.ids import IdSupply
from kongtrace.span import STATUS_ERROR
from sim.balancer import Address, Balancer
from sim.config import Gateway, Nginx
from sim.forwarding import Forwarding
from sim.framing import BODILESS, LENGTHLESS, HeaderLines, Refusal, has_line, level_of_refusal
from sim.instrumentation import Instrumentation
from sim.light_thread import LightThread
from sim.pdk import Exit, Kong
from sim.pdk.response import accepted, error_body, status_message
from sim.phases import AGAIN, DONE, Handler, PhaseEngine
from sim.plan import Handler as PluginHandler
from sim.plan import Plan
from sim.plugin import Plans
from sim.plugin_error import described, place_of
from sim.proxy import SERVER, VIA, BufferedExchange, ProxiedExchange, lacks_body
from sim.request import ARG, BODY_BYTES_HELD_MAX, EXITED, SERVICE_BODY, Part, RefusedRequest, Request, without
from sim.resolver import Resolver, is_address
from sim.router import Match, Router
from sim.upstream import Pool

if TYPE_CHECKING:
    from sim.connection import ClientConnection
    from sim.runtime import Runtime

REWRITE: Final = PHASES["rewrite"]
ACCESS: Final = PHASES["access"]
CONTENT: Final = PHASES["content"]
HEADER_FILTER: Final = PHASES["header_filter"]
BODY_FILTER: Final = PHASES["body_filter"]
LOG: Final = PHASES["log"]

REQUEST_ID_DIGITS: Final = 32

UPGRADE_REQUIRED: Final = 426

NO_ROUTE: Final = "no Route matched with those values"
"""Kong's words when no route is the request's."""

NO_PEER: Final = "failure to get a peer from the ring-balancer"
"""Kong's words when no target of an upstream is to be had."""

CLIENT_CLOSED_REQUEST: Final = 499
"""nginx's status of a request whose client has gone."""

SWEEP_S_MAX: Final = 1.0
"""How late a client's timeout may be at most."""

UPSTREAM_LATENCY: Final = b"X-Kong-Upstream-Latency"
PROXY_LATENCY: Final = b"X-Kong-Proxy-Latency"
RESPONSE_LATENCY: Final = b"X-Kong-Response-Latency"
VIA_LINE: Final = (b"Via", VIA)
SERVER_LINE: Final = (b"Server", SERVER)

_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000
_STATUS_LINES: Final = {
    status: b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()) for status in (s.value for s in HTTPStatus)
}
_KEPT_ALIVE: Final = b"Connection: keep-alive\r\n\r\n"
_CLOSED: Final = b"Connection: close\r\n\r\n"


class _Numbers(dict[int, bytes]):
    """Numbers as they are written; the usual ones are found sooner than written."""

    def __missing__(self, number: int) -> bytes:
        return b"%d" % number


written_ms: Final = _Numbers((number, b"%d" % number) for number in range(1000))
"""Latencies as they are written."""


def status_line(status: int) -> bytes:
    """Return the first line of an answer, without its end."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status


class Counts:
    """What the runloop counts, for the scoreboard.

    Attributes:
        requests: whose log phase has run.
        responses: by hundreds of the status, index 0 to 5.
        connections: accepted.
        active: requests begun and not ended.
        unsampled: spans that an exporter saw and that were not sampled.
        unprocessed: spans that no exporter saw.
        rejected: spans that could not be encoded.
        copied_again: copies of a span beyond its first (`sim.ledger`).
        lost_in_request: spans open when the worker was terminated.
    """

    __slots__ = (
        "active",
        "connections",
        "copied_again",
        "lost_in_request",
        "rejected",
        "requests",
        "responses",
        "unprocessed",
        "unsampled",
    )

    def __init__(self) -> None:
        self.requests = self.connections = self.active = self.unsampled = self.unprocessed = self.rejected = (
            self.copied_again
        ) = self.lost_in_request = 0
        self.responses = [0] * 6


class Runloop:
    """Serves the requests of one worker.

    Args:
        gateway: the configuration.
        provider: of the worker's tracers.
        runtime: of the worker.
        pool: connections to upstreams.
        plans: which plugins run.
        kong: handed to them.
        instrumentation: of the worker.
        resolver: of the services' hosts.
        counts: what it counts.
        number: gives the number of a new connection.
        on_change: called when a count has changed.
        on_idle: called while draining, when no request is being served any more or a connection was closed.
        on_logged: called with each request after its log phase, and each that was refused; None for nobody.

    Attributes:
        connections: of clients.
        draining: the worker is leaving: connections are closed when they are idle.
        counts: see `Counts`.
        resolver: of the worker.
        balancers: by name of the upstream.
        nginx: limits and times of clients.
        keepalive_requests: of it, which every request asks for.
        forwarding: what upstreams are told of clients.
        makes_spans: there is somebody who could make a span, instrumentation or a plugin.
    """

    def __init__(
        self,
        gateway: Gateway,
        provider: TracerProvider,
        runtime: "Runtime",
        pool: Pool,
        plans: Plans,
        kong: Kong,
        instrumentation: Instrumentation,
        resolver: Resolver,
        counts: "Counts",
        number: Callable[[], int],
        on_change: Callable[[], None],
        on_idle: Callable[[], None],
        on_logged: Callable[[Request | RefusedRequest], None] | None = None,
    ) -> None:
        self.connections: dict[ClientConnection, None] = {}
        self.draining = False
        self.counts = counts
        self.runtime = runtime
        self.pool = pool
        self.time_ns = runtime.time_ns
        self.execution = provider.execution
        self.log_line = provider.log
        self._provider = provider
        self._request_ids = IdSupply(lambda size: hexlify(runtime.random_bytes(size // 2)), REQUEST_ID_DIGITS)
        self._drawn_ids = self._request_ids.drawn
        self._everywhere = plans.everywhere
        self._plan_of = plans.by_route
        self._kong = kong
        self.now = runtime.now
        self.nginx = gateway.nginx
        self.keepalive_requests = gateway.nginx.keepalive_requests if gateway.nginx.keepalive_timeout else 0
        self.forwarding = Forwarding(gateway)
        self._sweep_s = min(SWEEP_S_MAX, _shortest_timeout_s(gateway.nginx) / 10)
        self._sweeping = False
        self._number = number
        self._on_change = on_change
        self._on_idle = on_idle
        self._on_logged = on_logged
        self._releases_always = not provider.profile.recycles_held_objects
        self._router = Router(gateway.routes, gateway.services)
        self._match = self._traced_match if instrumentation.enabled else self._router.match
        self.resolver = resolver
        self.balancers = {
            upstream.name: Balancer(
                upstream, runtime, resolver.hosts, self.log_line, avoids_tried=gateway.profile == "safe"
            )
            for upstream in gateway.upstreams
        }
        self.instrumentation = instrumentation
        self._suspended: dict[Request, int] = {}  # and what each ends with when its handlers have; 0 is as they will
        self._date_second = -1
        self._date_line = (b"", b"")
        self.makes_spans = instrumentation.enabled or bool(gateway.plugins)
        handlers: list[tuple[Phase, Handler]] = [
            (REWRITE, self._rewrite),
            (ACCESS, self._route),
            *([(ACCESS, self._access)] if gateway.plugins else []),
            (ACCESS, self._target),
            (CONTENT, self._proxy),
        ]
        enter: Callable[[Phase, Context], object] = self.execution.enter
        if not self.makes_spans:
            # Nor does the phase concern anybody: the request is entered once.
            handlers = [(CONTENT, handler) for _phase, handler in handlers]
            enter = self._enter
        self._engine = PhaseEngine(enter, self._walked(handlers), self.respond)

    def _walked(self, handlers: list[tuple[Phase, Handler]]) -> tuple[tuple[Phase, Handler], ...]:
        """Return the handlers as a request meets them."""
        return tuple(handlers)

    def _enter(self, phase: Phase, ctx: Context) -> None:
        """Do what is left of `Execution.enter` where there are no spans: a line of the log names the request."""
        self.execution.phase = phase
        self.execution.ctx = ctx

    # What the connection calls.

    def accepted(self) -> int:
        """A connection was accepted; return its number."""
        self.counts.connections += 1
        if not self._sweeping:
            self._sweeping = True
            self.runtime.call_later(self._sweep_s, self._sweep)
        self._on_change()
        return self._number()

    def closed(self) -> None:
        """A connection was closed."""
        self._on_change()
        if self.draining:
            self._on_idle()

    def _sweep(self) -> None:
        """Let each connection look at its deadline: that is cheaper than to set a timer for each request."""
        now_s = self.now()
        for connection in tuple(self.connections):
            connection.expire(now_s)
        self._sweeping = bool(self.connections)
        if self._sweeping:
            self.runtime.call_later(self._sweep_s, self._sweep)

    def begin(self, request: Request) -> None:
        """Serve a request whose header section is complete; what has come of its body is there."""
        self.counts.active += 1
        if self.forwarding.trusts:
            request.client_ip = self.forwarding.client_ip(request)
        self._engine.run(request)

    def refuse(self, refused: RefusedRequest) -> bytes:
        """Book a request that is not served, since its header section is refused; return the answer."""
        request_id = self._request_ids.draw()
        accept = b",".join(value for name, value in refused.lines if name.lower() == b"accept").decode("latin-1")
        content_type, body = error_body(accept, request_id, status_message(refused.status))
        refused.body_bytes_sent = len(body)
        self.given_up(refused)
        lines = (
            self.date_line(self.time_ns()),
            (b"Content-Type", content_type.encode()),
            (b"Connection", b"close"),
            (b"Content-Length", b"%d" % len(body)),
            (b"Server", SERVER),
            (b"X-Kong-Request-Id", request_id),
        )
        head = [name + b": " + value for name, value in lines]
        return b"\r\n".join((status_line(refused.status), *head, b"", body))

    def given_up(self, refused: RefusedRequest) -> None:
        """Book a request that is not served."""
        counts = self.counts
        counts.requests += 1
        counts.responses[refused.status // 100] += 1
        self.execution.enter(CONTENT, None)  # whatever was handled last is not meant
        level = level_of_refusal(refused.status)
        self.log_line(level, f"*{refused.connection.number} {refused.reason}{refused.named}")
        if self._on_logged is not None:
            self._on_logged(refused)
        self._on_change()

    def refuse_body(self, request: Request, refusal: Refusal) -> None:
        """End a request whose body is refused: with its status, unless the answer has begun."""
        self.execution.enter(CONTENT, request.ctx)
        self.log_line(level_of_refusal(refusal.status), refusal.reason)
        if request in self._suspended:
            self._forestall(request, refusal.status)
            return
        exchange = request.exchange
        if exchange is not None:
            exchange.cancel()
        if request.header_sent:
            request.connection.abort()
            self.end(request)
        else:
            self._end_early(request, refusal.status)

    def _end_early(self, request: Request, status: int) -> None:
        """End a request of which no more comes: its client has gone, or its body is refused."""
        if status == CLIENT_CLOSED_REQUEST:
            request.status = status
            self.end(request)
            return
        if request.upstream_response is not None:
            request.upstream_response, request.response_lines = None, []
        request.keep_alive = False  # nobody could tell where the next request begins
        self.respond(request, status)

    def refuse_rest(self, request: Request, refusal: Refusal) -> None:
        """Note what is wrong with the rest of a body whose request has been answered."""
        self.execution.enter(CONTENT, None)
        self.log_line(level_of_refusal(refusal.status), f"*{request.connection.number} {refusal.reason}{request.named}")

    def body(self, request: Request, data: bytes) -> None:
        """Pass a part of the request's body on."""
        exchange = request.exchange
        if exchange is not None:
            exchange.send_body(data)
        elif not request.done:
            self.hold_body(request, data)

    def hold_body(self, request: Request, data: bytes) -> None:
        """Keep a part of the body until there is an upstream; read no more when it is enough, unless a plugin asks."""
        request.body.append(data)
        if request.body_end is None and request.body_bytes > BODY_BYTES_HELD_MAX:
            request.connection.pause_body()

    def body_complete(self, request: Request) -> None:
        """The whole request has been read."""
        exchange = request.exchange
        if exchange is not None:
            exchange.end_body()
        elif request.body_end is not None:
            request.body_end.set()

    def client_gone(self, request: Request) -> None:
        """The client has closed the connection (499)."""
        if request in self._suspended:
            self._forestall(request, CLIENT_CLOSED_REQUEST)
            return
        exchange = request.exchange
        if exchange is not None:
            exchange.cancel()
        if not request.header_sent:
            request.status = CLIENT_CLOSED_REQUEST
        self.end(request)

    def _forestall(self, request: Request, status: int) -> None:
        """Let a request end with a status when its handlers have ended, which wait no more for its body."""
        self._suspended[request] = status
        if request.body_end is None:
            request.body_end = asyncio.Event()
        request.body_end.set()

    def leave_behind(self) -> None:
        """The worker goes: requests whose handlers wait end without a log phase."""
        for request in self._suspended:
            request.done = True

    def client_blocked(self, request: Request) -> None:
        """The client does not read."""
        exchange = request.exchange
        if exchange is not None:
            exchange.hold_response()

    def client_unblocked(self, request: Request) -> None:
        """The client reads again."""
        exchange = request.exchange
        if exchange is not None:
            exchange.release_response()

    # Rewrite and access.

    def _rewrite(self, request: Request) -> int | None:
        ids = self._drawn_ids
        request.id = ids.pop() if ids else self._request_ids.draw()
        if self.makes_spans:
            self.instrumentation.request(request)
        plan = request.plan = self._everywhere
        return self._run_plugins(request, REWRITE, plan.rewrite) if plan.rewrite else None

    def _route(self, request: Request) -> int | None:
        find = self._match
        match = request.match = find(request)
        request.ctx[KONG_PHASE] = "access"
        if match is None:
            self.respond(request, 404, NO_ROUTE)
            return DONE
        if match.terms.https_only and self.forwarding.named(request, "proto") != "https":
            return self._require_https(request, match.route.https_redirect_status_code)
        request.plan = self._plan_of[match.terms.route]
        return None

    def _traced_match(self, request: Request) -> Match | None:
        self.instrumentation.precreate_balancer(request)
        span = self.instrumentation.router()
        match = self._router.match(request)
        if match is None:
            span.set_status(STATUS_ERROR)
        span.finish()
        return match

    def _require_https(self, request: Request, status: int) -> int:
        request.ctx[EXITED] = True
        if status == UPGRADE_REQUIRED:
            lines = [(b"Connection", b"Upgrade"), (b"Upgrade", b"TLS/1.2, HTTP/1.1")]  # RFC 9110 7.8
            self.respond(request, status, "Please use HTTPS protocol", lines)
        else:
            host = self.forwarding.named(request, "host") or request.host
            self._answer(request, status, b"", [(b"Location", b"https://" + host.encode("latin-1") + request.target)])
        return DONE

    def _access(self, request: Request) -> int | None:
        handlers = request.plan.access  # type: ignore[union-attr]  # it was found with the route
        return self._run_plugins(request, ACCESS, handlers) if handlers else None

    def _run_plugins(self, request: Request, phase: Phase, handlers: tuple[PluginHandler, ...]) -> int | None:
        """Run the handlers of rewrite or access."""
        in_access = phase is ACCESS
        start_span = self.instrumentation.plugin_access if in_access else self.instrumentation.plugin_rewrite
        plan = request.plan
        assert plan is not None
        if phase.name in plan.awaiting:
            return self._suspend(request, phase, self._run_waiting(request, handlers, start_span), self._engine.run)
        kong = self._kong
        for handler in handlers:
            span = start_span(handler.span)
            request.handler = handler
            call = handler.call
            try:
                call(kong, handler.conf)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - a handler may raise anything, and the request goes on (R6)
                return self._answered(request, self._interrupted(request, span, error))
            span.finish()
        return None

    async def _run_waiting(
        self, request: Request, handlers: tuple[PluginHandler, ...], start_span: Callable[[str], Any]
    ) -> int | Exit | None:
        kong = self._kong
        for handler in handlers:
            span = start_span(handler.span)
            request.handler = handler
            call = handler.call
            try:
                given = call(kong, handler.conf)
                if handler.awaits:
                    await given
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:
                if request.done:
                    # The worker was terminated.
                    raise
                return self._interrupted(request, span, error)
            span.finish()
        return None

    def _interrupted(self, request: Request, span: Any, error: BaseException) -> int | Exit:
        """Return what comes of a handler that did not return: its own answer, or 500."""
        if isinstance(error, Exit):
            span.finish()
            return error
        phase = request.ctx.get(KONG_PHASE) or self.execution.phase.name  # a plugin may have emptied its context
        if phase == "access":
            span.record_error(str(error))
            span.set_status(STATUS_ERROR)
            span.finish()
        # In rewrite the span stays open, as Kong leaves it (R6).
        if phase == "response":
            request.response_lines = []
        if not self._suspended.get(request):
            # Where the request ends otherwise, the error may come of just that.
            self._report(request, error, phase)
        return 500

    def _suspend(
        self,
        request: Request,
        phase: Phase,
        handlers: Coroutine[Any, Any, int | Exit | None],
        go_on: Callable[[Request], object],
    ) -> int:
        """Run handlers that may wait in a light thread; `go_on` when they have ended and nobody has answered."""
        self._suspended[request] = 0
        answer: list[int | Exit | None] = []

        async def collect() -> None:
            answer.append(await handlers)
            if answer[0] is not None:
                thread.cancel_tasks()

        def ended(error: BaseException | None) -> None:
            forestalled = self._suspended.pop(request)
            if request.done:
                # The worker was terminated.
                return
            if isinstance(error, KeyboardInterrupt):
                raise error
            self.execution.enter(phase, request.ctx)
            if not answer:
                assert error is not None
                answer.append(self._interrupted(request, NOOP_SPAN, error))
            if forestalled:
                self._end_early(request, forestalled)
            elif answer[0] is None:
                go_on(request)
            elif (status := self._answered(request, answer[0])) != DONE:
                self.respond(request, status)

        thread = LightThread(collect(), self.execution, phase, request.ctx)
        self.runtime.run(thread, ended)
        return AGAIN

    def _answered(self, request: Request, answer: int | Exit) -> int:
        """Send the answer of a plugin; a status is left to the caller."""
        if not isinstance(answer, Exit):
            return answer
        request.ctx[EXITED] = True
        names = {name.lower() for name, _value in answer.headers} | {_LENGTH}
        kept = [line for line in request.response_lines if line[0].lower() not in names]
        self._answer(request, answer.status, answer.body or b"", kept + answer.headers)
        return DONE

    def _target(self, request: Request) -> int | None:
        """Choose the target: resolve the service's host (R1: access, target selection)."""
        match = request.match
        assert match is not None
        service = match.service
        if service is None:
            self.respond(request, 503, "no Service found with those values")
            return DONE
        request.upstream_host = match.upstream_host
        if match.address is not None:
            request.address = match.address
            return None
        host, port = match.terms.host, match.terms.port
        if host in self.balancers:
            return self._balance(request, self.balancers[host])
        request.hostname = host
        instrumentation = self.instrumentation
        span = instrumentation.dns_query(host, port) if instrumentation.enabled else NOOP_SPAN
        try:
            known = self.resolver.known(host, port)
        except OSError as error:
            return self._resolved(request, span, error)
        if known is None:
            return self._resolve(request, span, host, port)
        if instrumentation.enabled:
            instrumentation.dns_answer(span, known)
        request.address = known
        return None

    def _resolve(self, request: Request, span: Any, host: str, port: int) -> int:
        found: list[tuple[str, int]] = []

        async def ask() -> None:
            found.append(await self.resolver.resolve(host, port))

        def go_on(error: BaseException | None) -> None:
            if request.done:
                return
            self.execution.enter(ACCESS, request.ctx)
            status = self._resolved(request, span, found[0] if error is None else error)
            if status is None:
                self._engine.run(request)

        self.runtime.run(LightThread(ask(), self.execution, ACCESS, request.ctx), go_on)
        return AGAIN

    def _resolved(self, request: Request, span: Any, found: tuple[str, int] | BaseException) -> int | None:
        self.instrumentation.dns_answer(span, found)
        if isinstance(found, BaseException):
            self.log_line("error", f"{request.hostname} could not be resolved: {found}")
            self.respond(request, 503, "name resolution failed")
            return DONE
        request.address = found
        return None

    def _balance(self, request: Request, balancer: Balancer) -> int | None:
        """Choose one of an upstream's targets, once their names are resolved."""
        request.choice = balancer.begin(request)
        unresolved = balancer.unresolved(self.resolver)
        return self._resolve_targets(request, unresolved) if unresolved else self._choose(request)

    def _resolve_targets(self, request: Request, unresolved: list[Address]) -> int:
        since_ns = self.time_ns()

        async def ask() -> None:
            for address in unresolved:
                span = self.instrumentation.dns_query(address.name, address.port, since_ns)
                found: tuple[str, int] | OSError
                try:
                    found = address.endpoint = await self.resolver.resolve(address.name, address.port)
                    address.unknown = False
                except OSError as error:
                    address.endpoint, address.unknown = None, True
                    self.log_line("error", f"{address.name} could not be resolved: {error}")
                    found = error
                if request.done:
                    # The client has gone, and its spans with it.
                    return
                self.instrumentation.dns_answer(span, found)

        def go_on(error: BaseException | None) -> None:
            if request.done:
                return
            assert error is None
            self.execution.enter(ACCESS, request.ctx)
            if self._choose(request) is None:
                self._engine.run(request)

        # All are asked for at once; then each is waited for under a span of its own.
        for address in unresolved:
            self.resolver.ask(address.name)
        self.runtime.run(LightThread(ask(), self.execution, ACCESS, request.ctx), go_on)
        return AGAIN

    def _choose(self, request: Request) -> int | None:
        if self._next_target(request):
            return None
        self.respond(request, 503, NO_PEER)
        return DONE

    def _next_target(self, request: Request) -> bool:
        choice = request.choice
        assert choice is not None
        address = choice.next()
        if address is None:
            return False
        assert address.endpoint is not None
        request.address = address.endpoint
        request.hostname = "" if is_address(address.name) else address.name
        request.upstream_host = choice.balancer.host or address.host
        return True

    def choose_again(self, request: Request, *, timeout: bool) -> bool:
        """Choose the target of the next try; False when there is none, and the client has been told."""
        choice = request.choice
        if choice is None:
            return True
        choice.failed(timeout=timeout)
        if self._next_target(request):
            return True
        self.log_line("error", f"failed to retry the dns/balancer resolver for {choice.balancer.name}' with: {NO_PEER}")
        self.execution.enter(CONTENT, request.ctx)
        self.respond(request, 503)
        return False

    def _proxy(self, request: Request) -> int | None:
        assert request.plan is not None
        changed = request.outgoing
        is_buffered = request.plan.buffered or (changed is not None and changed.buffered)
        kind = BufferedExchange if is_buffered else ProxiedExchange
        exchange = request.exchange = kind(self, request)
        exchange.begin()
        return DONE

    # The answer.

    def respond(
        self, request: Request, status: int, message: str | None = None, lines: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """Answer with a message of the gateway's own, by default the usual one of the status."""
        if status in _EXITS:
            request.ctx[EXITED] = True
        content_type, body = error_body(accepted(request), request.id, message or status_message(status))
        kept = request.response_lines
        if kept:
            kept = without(without(kept, "Content-Type"), "Content-Length")
        self._answer(request, status, body, [*kept, (b"Content-Type", content_type.encode()), *lines])

    def respond_buffered(self, request: Request, body: bytes) -> None:
        """Run the response phase of an answer that has been read as a whole, then send it (R1)."""
        plan = request.plan
        assert plan is not None
        request.exchange = None
        request.ctx[KONG_PHASE] = "response"
        request.ctx[SERVICE_BODY] = body
        self.execution.enter(ACCESS, request.ctx)
        if plan.response:
            handlers = self._run_waiting(request, plan.response, _no_span)
            self._suspend(request, ACCESS, handlers, partial(self._send_buffered, body))
        else:
            self._send_buffered(body, request)

    def _send_buffered(self, body: bytes, request: Request) -> None:
        self._answer(request, request.status, body, request.response_lines)

    def _answer(self, request: Request, status: int, body: bytes, lines: HeaderLines) -> None:
        # How long the body of a service's answer is that comes without it, only the service knows.
        is_length_known = body or not lacks_body(request)
        if is_length_known and not has_line(lines, _LENGTH):
            lines.append((b"Content-Length", b"%d" % len(body)))
        if request.upstream_response is None and not has_line(lines, _DATE):
            lines.append(self.date_line(self.time_ns()))
        request.status = status
        request.response_lines = lines
        if self.header_filter(request) and (filtered := self.body_filter(request, body, last=True)) is not None:
            if request.status in LENGTHLESS:
                request.response_lines = without(request.response_lines, "Content-Length")
            elif (filtered or is_length_known) and not has_line(request.response_lines, _LENGTH):
                request.response_lines.append((b"Content-Length", b"%d" % len(filtered)))
            self.write_head(request)
            if request.method != "HEAD" and request.status not in BODILESS:
                request.connection.out.append(filtered)
            request.connection.flush()
        self.end(request)

    def date_line(self, now_ns: int) -> tuple[bytes, bytes]:
        """Return the Date header of an answer that has none yet (RFC 9110 6.6.1)."""
        second = now_ns // _NS_PER_S
        if second != self._date_second:
            self._date_second = second
            self._date_line = (b"Date", formatdate(second, usegmt=True).encode())
        return self._date_line

    def header_filter(self, request: Request) -> bool:
        """Run the header_filter phase; False when it failed and the connection was closed (R6)."""
        if self.makes_spans:
            self.execution.enter(HEADER_FILTER, request.ctx)
            request.ctx[KONG_PHASE] = "header_filter"
            self.instrumentation.status(request)
        if request.choice is not None and request.choice.cookie is not None:
            request.response_lines.append((b"Set-Cookie", request.choice.cookie))
        plan = request.plan or self._everywhere
        if plan.header_filter and not self._filter_header(request, plan):
            return False
        self._sign(request)
        return True

    def _sign(self, request: Request) -> None:
        """Say of the gateway itself what it says last: no plugin sees it (Kong, `runloop.header_filter.after`)."""
        lines = request.response_lines
        if request.tries:
            last = request.tries[-1]
            # A service that has not answered was waited for until now.
            waited_ns = request.upstream_ns or self.time_ns() - last.start_ns
            lines += (
                (UPSTREAM_LATENCY, written_ms[(waited_ns - last.latency_ns) // _NS_PER_MS]),
                (PROXY_LATENCY, written_ms[(last.start_ns + last.latency_ns - request.started_ns) // _NS_PER_MS]),
                VIA_LINE,
            )
        else:
            lines.append((RESPONSE_LATENCY, written_ms[(self.time_ns() - request.started_ns) // _NS_PER_MS]))
        if request.upstream_response is None:
            if has_line(lines, _SERVER):
                lines = request.response_lines = without(lines, "Server")
            lines.append(SERVER_LINE)

    def _filter_header(self, request: Request, plan: Plan) -> bool:
        kong = self._kong
        for handler in plan.header_filter:
            span = self.instrumentation.plugin_header_filter(handler.span)
            request.handler = handler
            call = handler.call
            try:
                call(kong, handler.conf)
            except Exit as answer:
                span.finish()
                self._replace_answer(request, answer)
                return True
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - the connection is closed
                # The span stays open, as Kong leaves it (R6).
                self._filter_failed(request, error, "header_filter")
                return False
            span.finish()
        return True

    def _replace_answer(self, request: Request, answer: Exit) -> None:
        """Let a plugin's answer from header_filter take the place of what was on its way."""
        request.ctx[EXITED] = True
        request.status = answer.status
        names = {name.lower() for name, _value in answer.headers} | {b"content-length"}
        body = answer.body or b""
        kept = [line for line in request.response_lines if line[0].lower() not in names]
        request.response_lines = [*kept, *answer.headers, (b"Content-Length", b"%d" % len(body))]
        plan = request.plan or self._everywhere
        replacing = PluginHandler("", "", _replace_body, body)
        request.plan = replace(plan, body_filter=(replacing, *plan.body_filter))

    def body_filter(self, request: Request, data: bytes, *, last: bool) -> bytes | None:
        """Run the body_filter phase for one part and return what it has become.

        None: a handler failed, and the connection was closed (R6).
        """
        plan = request.plan or self._everywhere
        if plan.body_filter:
            return self._filter_body(request, plan, data, last=last)
        if last and self.makes_spans:
            request.body_ended_ns = self.time_ns()
        return data

    def _filter_body(self, request: Request, plan: Plan, data: bytes, *, last: bool) -> bytes | None:
        if request.body_ended_ns:
            return b""  # a plugin has ended the body: what follows is passed neither on nor to a filter (ngx_lua)
        if last:
            request.body_ended_ns = self.time_ns()
        ctx = request.ctx
        self.execution.enter(BODY_FILTER, ctx)
        ctx[KONG_PHASE] = "body_filter"
        kong = self._kong
        part = ctx[ARG] = Part(data, last)
        for handler in plan.body_filter:
            request.handler = handler
            call = handler.call
            try:
                call(kong, handler.conf)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - the same
                self._filter_failed(request, error, "body_filter")
                return None
        if part.eof:
            request.body_ended_ns = self.time_ns()
        return part.chunk or b""

    def write_head(self, request: Request) -> None:
        """Write status line and headers."""
        request.header_sent = True
        # The rest of the body is dropped as it comes; not of one that an upstream takes, nor of one that may not come:
        # its client waits for leave to send it.
        will_be_read = request.complete or (request.exchange is None and not request.expects_continue)
        keep_alive = request.keep_alive = request.keep_alive and will_be_read and not self.draining
        head = b"\r\n".join(
            (
                _STATUS_LINES.get(request.status) or status_line(request.status),
                *[name + b": " + value for name, value in request.response_lines],
                b"X-Kong-Request-Id: " + request.id,
                _KEPT_ALIVE if keep_alive else _CLOSED,
            )
        )
        request.head_bytes = len(head)
        request.connection.out.append(head)

    def _filter_failed(self, request: Request, error: BaseException, phase: str) -> None:
        self._report(request, error, phase)
        request.connection.abort()

    # The end.

    def end(self, request: Request) -> None:
        """Run the log phase and release what the request held; then its connection goes on."""
        if request.done:
            return
        request.done = True
        request.exchange = None
        counts = self.counts
        counts.requests += 1
        counts.active -= 1
        hundreds = request.status // 100
        counts.responses[hundreds if hundreds < 5 else 5] += 1  # noqa: FURB136 - cheaper than a call
        completed = not self.makes_spans or self._log(request)
        if self._on_logged is not None:
            self._on_logged(request)
        if self.makes_spans:
            self._end_spans(request, completed=completed)
        request.ctx.clear()
        if request.choice is not None:
            request.choice.ended(request.status)
        publish = self._on_change
        publish()
        request.connection.answered(request)
        if self.draining and not counts.active:
            self._on_idle()

    def _end_spans(self, request: Request, *, completed: bool) -> None:
        ctx = request.ctx
        self._book(ctx, request.handled, request.copied)
        if completed or self._releases_always:
            self._provider.end_request(ctx)
        else:
            self._provider.abandon_request(ctx)

    def _log(self, request: Request) -> bool:
        self.execution.enter(LOG, request.ctx)
        request.ctx[KONG_PHASE] = "log"
        kong = self._kong
        plan = request.plan or self._everywhere
        try:
            self.instrumentation.log(request)
            for handler in plan.log:
                request.handler = handler
                call = handler.call
                call(kong, handler.conf)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything, and the request ends (E4)
            self._report(request, error, "log")
            return False
        return True

    def end_timer(self, ctx: dict[str, Any]) -> None:
        """Take back what a timer's callback has left in its context: nobody exports it (T8)."""
        self._book(ctx)
        self._provider.end_request(ctx)

    def _book(self, ctx: dict[str, Any], handled: int = 0, copied: int = 0) -> None:
        made, again = self._provider.made_in(ctx)
        # What plugins have queued themselves are first of all the spans that nobody else has taken care of.
        first = min(copied, made - handled)
        self.counts.unprocessed += made - handled - first
        self.counts.copied_again += again + copied - first

    def _report(self, request: Request, error: BaseException, phase: str) -> None:
        """Log what a handler raised, in nginx's words (reference-figures D), and the plugin as `kong.log` names it."""
        nginx_phase = "access" if phase == "response" else phase
        plugin = f"[{request.handler.name}] " if request.handler is not None else ""
        what = f"{nginx_phase}_by_lua({place_of(error)}): {plugin}{described(error)}"
        waits = phase in ("rewrite", "access", "response")
        how = "lua entry thread aborted: runtime error" if waits else f"failed to run {phase}_by_lua*"
        self.log_line("error", f"{how}: {what}")


_DATE: Final = b"date"
_LENGTH: Final = b"content-length"
_SERVER: Final = b"server"

_EXITS: Final = frozenset({404})
"""Statuses of the gateway's own answers that are no failure of the service (`kong.response.get_source`)."""


def _no_span(_name: str) -> NoopSpan:
    return NOOP_SPAN


def _replace_body(kong: Kong, body: bytes) -> None:
    """Let the first part of an answer be `body`, and the others nothing."""
    arg = kong.ngx.arg
    arg.chunk = kong.ngx.ctx.pop(_REPLACEMENT, body)
    kong.ngx.ctx[_REPLACEMENT] = b""


_REPLACEMENT: Final = "KONG_RESPONSE_BODY"
"""Key of what the next part of a replaced body is; nothing once the first has gone."""


def _shortest_timeout_s(nginx: Nginx) -> float:
    keepalive_timeout = nginx.keepalive_timeout or inf
    return min(nginx.client_header_timeout, nginx.client_body_timeout, nginx.send_timeout, keepalive_timeout)
