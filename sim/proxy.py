"""One proxied exchange: the request to a target, its answer to the client, other tries when one fails.

A try that fails before the answer's head has come is followed by another, up to the service's `retries`, unless the
request may have had an effect, its method being not idempotent and sent (RFC 9110 9.2.2; nginx, `proxy_next_upstream`),
or its body is gone: one that is large and is sent as it comes is not kept. An answer that is not valid, or whose head
is too large, is no such failure but the end (nginx: `error timeout`, the default, does not name `invalid_header`). A
kept connection that turns out to be closed is no try. What finally fails is 502, or 504 when time ran out. Once the
answer's head has gone to the client, a failure can only be told by closing the connection.
"""

from itertools import compress
from typing import TYPE_CHECKING, Final

from kongtrace import PHASES
from sim.config import KONG_VERSION
from sim.connection_table import NoConnectionLeftError
from sim.framing import BODILESS, LENGTHLESS, HeaderLines, has_line
from sim.light_thread import LightThread
from sim.outline import NOT_FORWARDED, ResponseOutline
from sim.request import USUAL_OPTIONS, Request, Try, without
from sim.runtime import ConnectTimeoutError
from sim.upstream import (
    OUT_OF_FILES,
    TIMED_OUT,
    UpstreamConnection,
    system_error,
)

if TYPE_CHECKING:
    from sim.entity import Service
    from sim.router import Match
    from sim.runloop import Runloop

BALANCER: Final = PHASES["balancer"]
NOT_IDEMPOTENT: Final = frozenset({"POST", "LOCK", "PATCH"})
"""Methods that nginx does not send twice."""

SERVER: Final = b"kong/" + KONG_VERSION.encode()
"""What the gateway calls itself in `Server` and `Via`."""

VIA: Final = b"1.1 " + SERVER
_VIA_OF: Final = {
    version: b"Via: %b %b\r\nConnection: keep-alive\r\n\r\n" % (version.encode(), SERVER) for version in ("1.0", "1.1")
}
NO_CONTENT: Final = 204
NOT_MODIFIED: Final = 304
_LENGTH: Final = b"content-length"
_TYPE: Final = b"content-type"
_CONNECTION: Final = b"connection"
_NOT_FORWARDED_TEXT: Final = frozenset(name.decode() for name in NOT_FORWARDED)


class ProxiedExchange:
    """The exchange of one request.

    Args:
        runloop: of the worker.
        request: whose target is chosen.
    """

    __slots__ = (
        "_bodiless",
        "_body_begun",
        "_chunked_answer",
        "_connection",
        "_held",
        "_request",
        "_runloop",
        "_try",
    )

    def __init__(self, runloop: "Runloop", request: Request) -> None:
        self._runloop = runloop
        self._request = request
        self._body_begun = False
        self._bodiless = False
        self._chunked_answer = False
        self._connection: UpstreamConnection | None = None
        self._held = False
        self._try: Try

    def begin(self) -> None:
        """Send the request to the target, on a kept connection if there is one."""
        runloop, request = self._runloop, self._request
        time_ns = runloop.time_ns
        address = request.address
        attempt = self._try = Try(address[0], address[1], time_ns())
        request.tries.append(attempt)
        connection = runloop.pool.take(address)
        if connection is not None:
            self._send(connection)
        else:
            self._connect()

    def send_body(self, data: bytes) -> None:
        """Pass a part of the body on, or keep it until there is a connection."""
        if self._connection is None:
            self._runloop.hold_body(self._request, data)
        else:
            self._request.keep_sent(data)
            self._connection.write(self._framed(data))

    def end_body(self) -> None:
        """The whole request has been read."""
        connection = self._connection
        if connection is not None:
            if self._request.content_length is None:
                connection.write(b"0\r\n\r\n")
            connection.end_request()

    def cancel(self) -> None:
        """The client has gone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.give_up(self)

    def hold_response(self) -> None:
        """The client does not read: read no more of the answer."""
        if self._connection is not None and not self._held:
            self._held = True
            self._connection.hold()

    def release_response(self) -> None:
        """The client reads again."""
        if self._connection is not None and self._held:
            self._held = False
            self._connection.release()

    def _connect(self) -> None:
        runloop, request = self._runloop, self._request
        address, timeout_s = request.address, self._service.connect_timeout / 1000
        made: list[UpstreamConnection] = []
        before_ns = runloop.time_ns()
        self._try.latency_ns = before_ns - self._try.start_ns

        async def connect() -> None:
            made.append(await runloop.pool.connect(address, timeout_s))

        def go_on(error: BaseException | None) -> None:
            self._try.connect_ns = runloop.time_ns() - before_ns
            if request.done:
                if made:
                    runloop.pool.keep(made[0])
            elif error is None:
                self._send(made[0])
            elif isinstance(error, NoConnectionLeftError):
                self._without_connection()
            elif isinstance(error, OSError) and error.errno in OUT_OF_FILES:
                runloop.execution.enter(BALANCER, request.ctx)
                runloop.log_line("alert", f"{system_error('socket()', error)} while connecting to upstream")
                self._without_connection()
            else:
                timeout = isinstance(error, ConnectTimeoutError)
                reason = TIMED_OUT if timeout else system_error("connect()", error)
                may_repeat = self._may_repeat(sent=False)
                self._failed(f"{reason} while connecting to upstream", timeout=timeout, may_repeat=may_repeat)

        runloop.runtime.run(LightThread(connect(), runloop.execution, BALANCER, request.ctx), go_on)

    def _without_connection(self) -> None:
        """The worker has no connection left, for no target (nginx)."""
        self._try.state, self._try.code = "failed", 500
        self._runloop.respond(self._request, 500)

    def _send(self, connection: UpstreamConnection) -> None:
        request = self._request
        match = request.match
        assert match is not None
        self._connection = connection
        data = self._head(match)
        if request.body:
            data = b"".join((data, *map(self._framed, request.body)))
            request.drop_large_body()
        if request.content_length is None and request.complete:
            data += b"0\r\n\r\n"
        if not request.complete:
            request.connection.resume_body()  # before it is sent, for that may be too much for the upstream already
        connection.send(
            self,
            data,
            timeout_s=match.terms.read_timeout_s,
            bodiless=request.method == "HEAD" if request.outgoing is None else _asks_head(request),
            whole=request.complete,
        )
        if request.expects_continue and not request.complete:
            request.expects_continue = False
            request.connection.ask_for_body()

    def _head(self, match: "Match") -> bytes:
        """The head of the request to the upstream."""
        request = self._request
        method, path, query = request.raw_method, match.upstream_path, request.target[len(request.raw_path) :]
        host = request.authority if match.terms.preserve_host and request.authority else request.upstream_host
        if (changed := request.outgoing) is not None:
            method, path, host = changed.method or method, changed.path or path, changed.host or host
            if changed.query is not None:
                query = b"?" + changed.query if changed.query else b""
        out = [b" ".join((method, path + query, b"HTTP/1.1\r\nHost:", host))]
        if request.text_headers is not None and request.is_plain:
            lines = request.text_headers.lines()
            text = [f"{name}: {value}" for name, value in lines if name not in _NOT_FORWARDED_TEXT]
            if text:
                out.append("\r\n".join(text).encode("utf-8", "surrogateescape"))
        elif request.is_plain:
            out += [name + b": " + value for name, value in compress(request.lines, request.outline.passed)]
        else:
            lines_left = _without_options(request.forwarded_lines())
            out += [name + b": " + value for name, value in lines_left if name.lower() not in NOT_FORWARDED]
        if request.content_length is None:
            out.append(b"Transfer-Encoding: chunked")
        elif request.content_length or request.method in ("POST", "PUT", "PATCH"):
            out.append(b"Content-Length: %d" % request.content_length)
        forwarded = self._runloop.forwarding.lines(request)
        out += (forwarded, b"X-Kong-Request-Id: " + request.id, _VIA_OF[request.version])
        return b"\r\n".join(out)

    def _framed(self, data: bytes) -> bytes:
        return data if self._request.content_length is not None else b"%x\r\n%b\r\n" % (len(data), data)

    # The connection calls these.

    def on_head(self, status: int, lines: HeaderLines, outline: ResponseOutline) -> None:
        """Filter the head and write it."""
        request = self._request
        has_length = self._take_head(status, lines, outline)
        if not self._runloop.header_filter(request):
            self._give_up()
            return
        if request.plan is not None and request.plan.header_filter:
            status = request.status
            if status in LENGTHLESS:
                request.response_lines = without(request.response_lines, "Content-Length")
            has_length = has_line(request.response_lines, _LENGTH)
        if request.outgoing is not None and request.method != "HEAD" and _asks_head(request):
            # The length is that of a body that does not come.
            request.response_lines = without(request.response_lines, "Content-Length")
            has_length = False
        self._bodiless = request.method == "HEAD" or status in BODILESS
        if not has_length and not self._bodiless:
            if request.version == "1.1":
                self._chunked_answer = True
                request.response_lines.append((b"Transfer-Encoding", b"chunked"))
            else:
                request.keep_alive = False
        self._runloop.write_head(request)

    def _take_head(self, status: int, lines: HeaderLines, outline: ResponseOutline) -> bool:
        """Make the answer's head of the upstream's; return whether it tells the body's length."""
        request = self._request
        request.status = status
        request.upstream_response = (status, lines)
        time_ns = self._runloop.time_ns
        now_ns = time_ns()
        request.upstream_ns = now_ns - self._try.start_ns
        # What plugins have set before stands first.
        kept = request.response_lines
        if kept:
            kept = request.response_lines = _beside(kept, lines)
        kept += compress(lines, outline.passed)
        if not outline.has_date:
            kept.append(self._runloop.date_line(now_ns))
        has_length = outline.has_length
        if status == NO_CONTENT and has_length:
            has_length = False
            request.response_lines = kept = without(kept, "Content-Length")
        if outline.options:
            options = _connection_options(lines)
            if not options <= USUAL_OPTIONS:
                request.response_lines = kept = [line for line in kept if line[0].lower() not in options]
                has_length = has_length and _LENGTH not in options
        return has_length

    def on_body(self, data: bytes) -> None:
        """Filter a part of the body and write it."""
        request = self._request
        if request.done:
            return
        runloop = self._runloop
        filtered = runloop.body_filter(request, data, last=False) if runloop.makes_spans else data
        if filtered is None:
            self._give_up()
            return
        if filtered:
            self._write_body(filtered)
        if request.body_ended_ns:
            # A plugin has ended it: the client is told at once, not when the service comes to its end (ngx_lua).
            self._body_begun = True
            self._end_body()

    def on_end(self) -> None:
        """The answer is complete."""
        request = self._request
        self._connection = None
        if request.done:
            return
        runloop = self._runloop
        filtered = runloop.body_filter(request, b"", last=True) if runloop.makes_spans else b""
        if filtered is None:
            self._give_up()
            return
        if filtered:
            self._write_body(filtered)
        self._end_body()
        request.connection.flush()
        runloop.end(request)

    def _write_body(self, data: bytes) -> None:
        if self._bodiless:
            return
        self._body_begun = True
        part = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked_answer else data
        self._request.connection.out.append(part)

    def _end_body(self) -> None:
        """Write the last chunk of a body in chunks, once."""
        if self._chunked_answer:
            self._chunked_answer = False
            self._request.connection.out.append(b"0\r\n\r\n")

    def on_flush(self) -> None:
        """Send what one read has brought; a head waits for the first part of the body (nginx, `postpone_output`)."""
        if self._body_begun and not self._request.done:
            self._request.connection.flush()

    def on_lost(self, connection: UpstreamConnection, reason: str, *, timeout: bool) -> None:
        """Try again, or tell the client."""
        self._connection = None
        request = self._request
        if request.done:
            return
        if request.header_sent:
            self._runloop.execution.enter(BALANCER, request.ctx)
            self._runloop.log_line("error", f"{reason} while reading upstream")
            # What has come of the answer goes to the client, who sees by its end that it is not whole. nginx closes the
            # connection also where a plugin has ended the body before.
            request.connection.close(lingering=not request.complete)
            self._runloop.end(request)
        elif connection.reused and not connection.answered and not timeout and self._may_repeat(sent=True):
            request.tries.pop()
            self.begin()
        else:
            stage = "reading response header from" if connection.whole_request_sent else "sending request to"
            may_repeat = not connection.invalid and self._may_repeat(sent=True)
            self._failed(f"{reason} while {stage} upstream", timeout=timeout, may_repeat=may_repeat)

    def pause(self) -> None:
        """The upstream does not read."""
        self._request.connection.pause_body()
        if self._connection is not None:
            self._connection.wait_to_write(self._service.write_timeout / 1000)

    def resume(self) -> None:
        """It reads again."""
        self._request.connection.resume_body()

    @property
    def _service(self) -> "Service":
        match = self._request.match
        assert match is not None
        assert match.service is not None
        return match.service

    def _may_repeat(self, *, sent: bool) -> bool:
        return not self._request.body_gone and not (sent and self._request.method in NOT_IDEMPOTENT)

    def _failed(self, reason: str, *, timeout: bool, may_repeat: bool) -> None:
        request, runloop = self._request, self._runloop
        attempt = self._try
        attempt.code = 504 if timeout else 502
        runloop.execution.enter(BALANCER, request.ctx)
        attempt.state = "failed"
        runloop.log_line("error", reason)
        if may_repeat and len(request.tries) <= self._service.retries:
            if runloop.choose_again(request, timeout=timeout):
                self.begin()
            return
        runloop.execution.enter(PHASES["content"], request.ctx)
        runloop.respond(request, attempt.code)

    def _give_up(self) -> None:
        self.cancel()
        self._runloop.end(self._request)


class BufferedExchange(ProxiedExchange):
    """An exchange whose answer is read as a whole before anything of it goes to the client (kong-semantics R1)."""

    __slots__ = ("_parts",)

    def __init__(self, runloop: "Runloop", request: Request) -> None:
        super().__init__(runloop, request)
        self._parts: list[bytes] = []

    def on_head(self, status: int, lines: HeaderLines, outline: ResponseOutline) -> None:
        """Keep the head."""
        self._take_head(status, lines, outline)
        request = self._request
        if not lacks_body(request):
            # The body is framed anew, since plugins may replace it.
            request.response_lines = without(request.response_lines, "Content-Length")

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body."""
        self._parts.append(data)

    def on_end(self) -> None:
        """The answer is complete: hand it over."""
        self._connection = None
        if not self._request.done:
            self._runloop.respond_buffered(self._request, b"".join(self._parts))

    def on_flush(self) -> None:
        """Nothing is sent yet."""

    def on_lost(self, connection: UpstreamConnection, reason: str, *, timeout: bool) -> None:
        """Tell the client when half of an answer has come; else as ever."""
        request = self._request
        if request.upstream_response is None or request.done:
            super().on_lost(connection, reason, timeout=timeout)
            return
        self._connection = None
        self._runloop.execution.enter(BALANCER, request.ctx)
        self._runloop.log_line("error", f"{reason} while reading upstream")
        request.upstream_response, request.response_lines = None, []
        self._runloop.respond(request, 504 if timeout else 502)


def lacks_body(request: Request) -> bool:
    """Whether the service's answer speaks of a body that does not come with it (RFC 9110 8.6)."""
    answer = request.upstream_response
    if answer is None:
        return False
    return answer[0] == NOT_MODIFIED or (request.method == "HEAD" and _asks_head(request))


def _asks_head(request: Request) -> bool:
    """Whether the service is asked with HEAD, be it because a plugin says so."""
    changed = request.outgoing
    return changed.method == b"HEAD" if changed is not None and changed.method else request.method == "HEAD"


def _beside(kept: HeaderLines, lines: HeaderLines) -> HeaderLines:
    """Return what plugins have set before, but for what there can be once and the upstream's answer says (nginx)."""
    taken = {_LENGTH} | ({_TYPE} if has_line(lines, _TYPE) else set())
    return [line for line in kept if line[0].lower() not in taken]


def _connection_options(lines: HeaderLines) -> set[bytes]:
    """The headers that the Connection header names as its own (RFC 9110 7.6.1)."""
    values = [value for name, value in lines if name.lower() == _CONNECTION]
    return {option.strip().lower() for value in values for option in value.split(b",")}


def _without_options(lines: HeaderLines) -> HeaderLines:
    options = _connection_options(lines)
    return [line for line in lines if line[0].lower() not in options]
