"""Times of the phases, which Kong keeps in a request's `ngx.ctx` and plugins read there (kong-semantics R10).

Wall clock in ms unless a name ends with `_NS`:

    KONG_PROCESSING_START                    when the first byte of the request was read
    KONG_<PHASE>_START, _ENDED_AT, _TIME     of rewrite, access, balancer, response, header_filter, body_filter; of log
                                             the start alone
    KONG_BODY_FILTER_ENDED_AT_NS             when the last part of the body had passed
    KONG_LOG_START_NS                        when the log phase began
    KONG_PROXIED                             true once access has ended with a target
    KONG_PROXY_LATENCY                       from the first byte until the last target was chosen; proxied requests
    KONG_WAITING_TIME, KONG_RECEIVE_TIME     from then to the answer's head, or all of a buffered one, and on to its
                                             last part; the same
    KONG_RESPONSE_LATENCY                    from the first byte to the head of an answer of the gateway's own

A start is the cached time, an end is read after `ngx.update_time()` (R8). A phase that has begun and not ended gets its
end from the next that begins, and a body filter from the log phase. Where a plugin has emptied `ngx.ctx`,
a time without its start is 0.

Only plugins that do not come with the program can read all that, so a worker without any runs the plain `Runloop`.
"""

from functools import partial
from typing import Any, Final

from kongtrace import Phase
from kongtrace.lua import is_number, lua_text
from sim.cached_clock import CachedClock
from sim.framing import has_line
from sim.phases import Handler
from sim.request import Request
from sim.runloop import (
    ACCESS,
    CONTENT,
    PROXY_LATENCY,
    RESPONSE_LATENCY,
    REWRITE,
    SERVER_LINE,
    UPSTREAM_LATENCY,
    VIA_LINE,
    Runloop,
    written_ms,
)

_NS_PER_MS: Final = 1_000_000
Keys = tuple[str, str, str]
"""Of a phase's start, its end, and the time between."""


def _keys(phase: str) -> Keys:
    return f"KONG_{phase}_START", f"KONG_{phase}_ENDED_AT", f"KONG_{phase}_TIME"


_REWRITE: Final = _keys("REWRITE")
_ACCESS: Final = _keys("ACCESS")
_BALANCER: Final = _keys("BALANCER")
_RESPONSE: Final = _keys("RESPONSE")
_HEADER_FILTER: Final = _keys("HEADER_FILTER")
_BODY_FILTER: Final = _keys("BODY_FILTER")
_ENDING: Final = (_REWRITE, _ACCESS, _RESPONSE, _HEADER_FILTER, _BODY_FILTER)
"""Phases that end with the next at the latest, in order."""

_OF_PROXIED: Final = ((UPSTREAM_LATENCY, "KONG_WAITING_TIME"), (PROXY_LATENCY, "KONG_PROXY_LATENCY"))
_OF_OWN: Final = ((RESPONSE_LATENCY, "KONG_RESPONSE_LATENCY"),)
"""Headers of a proxied answer, and of one of the gateway's own, by what the context has of them."""

_VIA: Final = b"via"
_SERVER: Final = b"server"
_REQUEST_ID: Final = b"x-kong-request-id"
_REPLACED_OF_PROXIED: Final = frozenset({UPSTREAM_LATENCY.lower(), PROXY_LATENCY.lower(), _VIA, _REQUEST_ID})
_REPLACED_OF_OWN: Final = frozenset({RESPONSE_LATENCY.lower(), _SERVER, _REQUEST_ID})


class TimedRunloop(Runloop):
    """A runloop that writes down when phases begin and end."""

    _clock: CachedClock

    def _walked(self, handlers: list[tuple[Phase, Handler]]) -> tuple[tuple[Phase, Handler], ...]:
        self._clock = self._kong.ngx.clock
        begins: dict[Phase, Handler] = {
            REWRITE: self._begin_rewrite,
            ACCESS: partial(self._begin, _ACCESS),
            CONTENT: self._begin_content,
        }
        timed: list[tuple[Phase, Handler]] = []
        for phase, handler in handlers:
            if phase in begins:
                timed.append((phase, begins.pop(phase)))
            timed.append((phase, handler))
        return tuple(timed)

    def _begin_rewrite(self, request: Request) -> None:
        request.ctx["KONG_PROCESSING_START"] = request.started_ns // _NS_PER_MS
        self._woken()
        self._begin(_REWRITE, request)

    def _begin_content(self, request: Request) -> None:
        self._end_open(request.ctx)
        request.ctx["KONG_PROXIED"] = True

    def respond_buffered(self, request: Request, body: bytes) -> None:
        """Note the start of the response phase."""
        self._woken()
        self._begin(_RESPONSE, request)
        super().respond_buffered(request, body)

    def header_filter(self, request: Request) -> bool:
        """Note start and end of the phase, and what has passed until then."""
        ctx = request.ctx
        if request.tries:
            self._woken()
        self._begin(_HEADER_FILTER, request)
        start_ms, began_ms = ctx["KONG_HEADER_FILTER_START"], request.started_ns // _NS_PER_MS
        if request.tries:
            last = request.tries[-1]
            chosen_ms = (last.start_ns + last.latency_ns) // _NS_PER_MS
            ctx["KONG_BALANCER_START"] = last.start_ns // _NS_PER_MS
            _end(ctx, _BALANCER, chosen_ms)
            ctx["KONG_PROXY_LATENCY"] = chosen_ms - began_ms
            ctx["KONG_WAITING_TIME"] = ctx.get("KONG_RESPONSE_START", start_ms) - chosen_ms
        else:
            ctx["KONG_RESPONSE_LATENCY"] = start_ms - began_ms
        completed = super().header_filter(request)
        if completed:
            _end(ctx, _HEADER_FILTER, self._clock.updated_ms())
        return completed

    def body_filter(self, request: Request, data: bytes, *, last: bool) -> bytes | None:
        """Note start and end of the phase."""
        ctx = request.ctx
        if "KONG_BODY_FILTER_START" not in ctx:
            self._begin(_BODY_FILTER, request)
        filtered = super().body_filter(request, data, last=last)
        if request.body_ended_ns and filtered is not None and _is_open(ctx, _BODY_FILTER):
            self._end_body(ctx, self._clock.updated_ms(), request.body_ended_ns)
        return filtered

    def _sign(self, request: Request) -> None:
        """Say it in the words of the context, which plugins have read and may have corrected, and instead of theirs."""
        ctx, answer = request.ctx, request.upstream_response
        latencies = _OF_PROXIED if request.tries else _OF_OWN
        replaced = _REPLACED_OF_PROXIED if request.tries else _REPLACED_OF_OWN
        lines = [line for line in request.response_lines if line[0].lower() not in replaced]
        for name, key in latencies:
            latency: Any = ctx.get(key)
            if is_number(latency):
                lines.append((name, written_ms.get(latency) or lua_text(latency).encode()))
        if request.tries:
            theirs = answer[1] if answer is not None else []
            lines += [line for line in theirs if line[0].lower() == _VIA]
            lines.append(VIA_LINE)
        if answer is None and not has_line(lines, _SERVER):
            lines.append(SERVER_LINE)
        request.response_lines = lines

    def _log(self, request: Request) -> bool:
        ctx = request.ctx
        now_ns = ctx["KONG_LOG_START_NS"] = self.time_ns()
        now_ms = ctx["KONG_LOG_START"] = self._clock.updated_ms()
        if _is_open(ctx, _BODY_FILTER):
            self._end_body(ctx, now_ms, now_ns)
        self._end_open(ctx, now_ms)
        return super()._log(request)

    def _begin(self, phase: Keys, request: Request) -> None:
        self._end_open(request.ctx)
        request.ctx[phase[0]] = self._clock.now_ms()

    def _woken(self) -> None:
        """Something has come in: nginx has read the clock then, whatever this turn of the event loop has read (R8)."""
        self._clock.updated_ms()

    def _end_open(self, ctx: dict[str, Any], at_ms: int | None = None) -> None:
        for phase in _ENDING:
            if _is_open(ctx, phase):
                _end(ctx, phase, self._clock.updated_ms() if at_ms is None else at_ms)

    def _end_body(self, ctx: dict[str, Any], at_ms: int, at_ns: int) -> None:
        _end(ctx, _BODY_FILTER, at_ms)
        ctx["KONG_BODY_FILTER_ENDED_AT_NS"] = at_ns
        if "KONG_PROXIED" in ctx:
            head_ms = ctx.get("KONG_HEADER_FILTER_START", at_ms)
            ctx["KONG_RECEIVE_TIME"] = at_ms - ctx.get("KONG_RESPONSE_START", head_ms)


def _is_open(ctx: dict[str, Any], phase: Keys) -> bool:
    start, ended_at, _time = phase
    return start in ctx and ended_at not in ctx


def _end(ctx: dict[str, Any], phase: Keys, at_ms: int) -> None:
    start, ended_at, time = phase
    ctx[ended_at] = at_ms
    ctx[time] = at_ms - ctx.get(start, at_ms)
