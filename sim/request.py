"""One request: what the client asked, where it stands in the phases, what is answered.

A `Request` lives from the end of its header section to the end of its log phase and belongs to one connection. Its
`ctx` is `ngx.ctx`: empty at first, emptied at the end. Times in ns since the epoch.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPMethod
from typing import TYPE_CHECKING, Any, Final

from kongtrace import ApiError
from kongtrace.context import KONG_PHASE
from kongtrace.lua import lua_lower, lua_type
from kongtrace.propagation import Headers
from sim.access_log import escaped
from sim.framing import (
    HeaderLines,
    Refusal,
    check_path,
    check_transfer_coding,
    hosts,
    length_of,
    octets,
    split_absolute,
)
from sim.outline import FORWARDING, RequestOutline

if TYPE_CHECKING:
    from kongtrace import Phase
    from sim.balancer import Choice
    from sim.connection import ClientConnection
    from sim.plan import Handler, Plan
    from sim.proxy import ProxiedExchange
    from sim.router import Match

REQUEST: Final = "REQUEST"
"""Key under which a request's `ctx` holds the request itself."""

ARG: Final = "KONG_ARG"
"""Key of the `Part` that body_filter is working on."""

BODY_BUFFER: Final = "KONG_BODY_BUFFER"
"""Key of the parts that body_filter holds back."""

EXITED: Final = "KONG_EXITED"
"""Key that is there when a plugin or the gateway has answered by itself."""

SERVICE_BODY: Final = "KONG_SERVICE_BODY"
"""Key of the body of a buffered answer."""

CTX_SHARED: Final = "KONG_SHARED_CTX"
"""Key of `kong.ctx.shared`."""

CTX_PLUGIN: Final = "KONG_PLUGIN_CTX"
"""Key of the tables of `kong.ctx.plugin`, by entity."""

VERSIONS: Final = ("1.1", "1.0")
"""Versions of HTTP that are served."""

_METHODS: Final = {method.value.encode(): method.value for method in HTTPMethod}
"""The usual methods as text: found sooner than decoded."""

BODY_BYTES_HELD_MAX: Final = 64 * 1024
"""How much of a body is read ahead of the upstream, and kept of one that is sent before it has come as a whole."""

NOT_SERVED: Final = frozenset({"CONNECT", "TRACE"})
"""Methods that nginx answers with 405."""

USUAL_OPTIONS: Final = frozenset({b"keep-alive", b"close"})
"""Values of the Connection header that name no other header."""


def _shown(value: bytes) -> str:
    return escaped(value).decode("ascii")


class Try:
    """One attempt to get an answer from a target (kong-semantics I14).

    Attributes:
        address: of the target.
        port: of the target.
        start_ns: when the balancer chose it.
        latency_ns: how long choosing took.
        connect_ns: how long connecting took; 0 on a kept connection.
        state: None when it went well, else "failed".
        code: the status that a failure amounts to.
    """

    __slots__ = ("address", "code", "connect_ns", "latency_ns", "port", "start_ns", "state")

    def __init__(self, address: str, port: int, start_ns: int) -> None:
        self.address = address
        self.port = port
        self.start_ns = start_ns
        self.latency_ns = 0
        self.connect_ns = 0
        self.state: str | None = None
        self.code = 0


@dataclass(slots=True)
class Outgoing:
    """What plugins have changed in the request to the service; None: nothing.

    Attributes:
        method: in capitals.
        path: the whole path.
        query: without `?`.
        host: the Host header.
        buffered: the whole answer is read before anything of it is sent.
    """

    method: bytes | None = None
    path: bytes | None = None
    query: bytes | None = None
    host: bytes | None = None
    buffered: bool = False


@dataclass(slots=True)
class Part:
    """A part of an answer's body on its way to the client: `ngx.arg`, so it can be indexed with 1 and 2.

    Attributes:
        chunk: the bytes; None when they are held back.
        eof: it is the last one, or a plugin has made it so.
    """

    chunk: bytes | None
    eof: bool

    def __getitem__(self, index: int) -> bytes | bool | None:
        return (self.chunk, self.eof)[index - 1]

    def __setitem__(self, index: int, value: Any) -> None:
        if index != 1:
            raise ApiError(f"ngx.arg[{index}] cannot be set")
        if not isinstance(value, bytes | str | None):
            raise ApiError(f"bad chunk data type: {lua_type(value)}")
        self.chunk = octets(value) if isinstance(value, str) else value


class Request:
    """What the gateway knows of one request.

    Raises:
        Refusal: its header section is ambiguous, or asks for what is not served.

    Attributes:
        connection: the client's.
        raw_method: in capitals, as sent.
        method: the same as text.
        asked: the target as sent.
        target: path and query of it.
        raw_path: the part of the target before `?`.
        version: of HTTP, "1.1" or "1.0".
        lines: header lines as sent.
        outline: of these.
        authority: whom the request is for, host and port: the target's if it is absolute, else the Host header's.
        client_ip: address of the client for whom it is made; the peer's, unless a trusted proxy names another.
        text_headers: `headers`, once a plugin has looked at them, and may have changed them.
        host: the same in lower case, without port; "" when HTTP/1.0 names none.
        content_length: of the body; None when it is chunked; 0 when there is none.
        asks_upgrade: it would rather speak another protocol.
        names_host: it has a Host header.
        is_plain: nothing among its header lines needs a second look when they are passed on: no Connection header
            that names others, no X-Forwarded-*.
        expects_continue: the client waits for leave to send its body.
        keep_alive: whether the client wants to go on after the answer.
        id: 32 hexadecimal digits (`X-Kong-Request-Id`).
        started_ns: when its first byte was read.
        ctx: the request context.
        steps: what is left of the phase engine's handlers; None before the first.
        match: the route, once found.
        plan: the plugins that run.
        handler: the plugin's handler that runs, or ran last.
        tries: what the balancer tried.
        address: of the target, and its port.
        hostname: of the target, "" when an address was configured.
        upstream_host: what the `Host` header tells the target.
        choice: of the targets, when the service's host is an upstream.
        upstream_ns: from the first try to the head of the answer.
        exchange: with the upstream, once it has begun.
        outgoing: what plugins have changed for the upstream.
        upstream_response: status and header lines of the service's answer, as they came.
        body: parts of the body, for the upstream and for whom it may be sent to again.
        body_bytes: of the body that have come.
        body_gone: it was sent as it came, and is not kept any more.
        body_end: set when nothing more of the body comes; None as long as nobody has asked for it.
        status: of the answer; 0 before it is known.
        response_lines: header lines of the answer, before they are written.
        body_ended_ns: when the last part of the body passed the filter, 0 before, and where nobody can make a span.
        handled: spans that an exporter has taken care of, each once.
        copied: copies of spans that its log phase has put into queues of plugins' own.
        head_bytes: bytes of the answer's status line and headers, once written.
        header_sent: the answer has begun.
        complete: the whole request has been read.
        done: its log phase has run.
    """

    __slots__ = (
        "address",
        "asked",
        "asks_upgrade",
        "authority",
        "body",
        "body_bytes",
        "body_end",
        "body_ended_ns",
        "body_gone",
        "choice",
        "client_ip",
        "complete",
        "connection",
        "content_length",
        "copied",
        "ctx",
        "done",
        "exchange",
        "expects_continue",
        "handled",
        "handler",
        "head_bytes",
        "header_sent",
        "host",
        "hostname",
        "id",
        "is_plain",
        "keep_alive",
        "lines",
        "match",
        "method",
        "names_host",
        "outgoing",
        "outline",
        "plan",
        "raw_method",
        "raw_path",
        "response_lines",
        "started_ns",
        "status",
        "steps",
        "target",
        "text_headers",
        "tries",
        "upstream_host",
        "upstream_ns",
        "upstream_response",
        "version",
    )

    def __init__(
        self,
        connection: "ClientConnection",
        raw_method: bytes,
        target: bytes,
        lines: HeaderLines,
        outline: RequestOutline,
        version: str,
        keep_alive: bool,
        started_ns: int,
    ) -> None:
        self.connection = connection
        self.client_ip = connection.peer
        self.raw_method = raw_method
        self.method = _METHODS.get(raw_method) or raw_method.decode("latin-1")
        self.target = self.asked = target
        self.lines = lines
        self.outline = outline
        self.version = version
        self.keep_alive = keep_alive
        self.started_ns = started_ns
        self.host = ""
        self.authority: bytes = b""
        self.content_length: int | None = 0
        self.expects_continue = False
        self.asks_upgrade = False
        self.is_plain = True
        self.names_host = False
        self._read_lines()
        self._read_target()
        self.text_headers: Headers | None = None
        self.ctx: dict[str, Any] = {REQUEST: self, KONG_PHASE: "rewrite"}
        self.steps: Iterator[tuple[Phase, Callable[[Request], int | None]]] | None = None
        self.match: Match | None = None
        self.plan: Plan | None = None
        self.handler: Handler | None = None
        self.outgoing: Outgoing | None = None
        self.upstream_response: tuple[int, HeaderLines] | None = None
        self.body_end: asyncio.Event | None = None
        self.tries: list[Try] = []
        self.address: tuple[str, int]
        self.hostname = ""
        self.upstream_host: bytes
        self.choice: Choice | None = None
        self.upstream_ns = 0
        self.exchange: ProxiedExchange | None = None
        self.body: list[bytes] = []
        self.body_bytes = 0
        self.body_gone = False
        self.status = 0
        self.response_lines: HeaderLines = []
        self.body_ended_ns = 0
        self.handled = 0
        self.copied = 0
        self.head_bytes = 0
        self.header_sent = False
        self.complete = False
        self.done = False
        self.id = b""

    @property
    def path(self) -> str:
        """The path as sent, as text."""
        return self.raw_path.decode("latin-1")

    @property
    def request_line(self) -> bytes:
        """The first line, as the client has sent it (nginx, `$request`)."""
        return b"%b %b HTTP/%b" % (self.raw_method, self.asked, self.version.encode())

    @property
    def named(self) -> str:
        """What a line of the error log says of the request that caused it, in nginx's words and order."""
        target = ""
        if self.tries:
            address, port = self.tries[-1].address, self.tries[-1].port
            host = f"[{address}]" if ":" in address else address
            path = self.match.upstream_path if self.match else b""
            query = b"".join(self.target.partition(b"?")[1:])
            target = f', upstream: "http://{host}:{port}{_shown(path)}{_shown(query)}"'
        named = _named(self.client_ip, self.request_line, target, self.authority)
        return f'{named}, request_id: "{self.id.decode()}"' if self.id else named

    @property
    def body_bytes_sent(self) -> int:
        """Bytes of the answer without its head that were written so far (nginx, `$body_bytes_sent`)."""
        return max(0, self.connection.sent_bytes - self.head_bytes)

    @property
    def headers(self) -> Headers:
        """The headers as plugins see and change them; what they leave is what the upstream gets."""
        if self.text_headers is None:
            lines = self.lines
            self.text_headers = Headers(
                [(name.lower().decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in lines]
            )
        return self.text_headers

    async def read_body(self) -> bytes:
        """Wait until the whole body has come and return it; it stays in `body` for the upstream.

        Raises:
            ApiError: it has gone to the upstream as it came.
            ConnectionError: it does not come: the client has gone, or what it has sent of it is refused.
        """
        if self.body_gone:
            kept = f"only one of at most {BODY_BYTES_HELD_MAX} bytes is kept"
            raise ApiError(f"the body has gone to the service as it came, and {kept}: read it in access")
        if self.body_end is None:
            self.body_end = asyncio.Event()
        if not (self.complete or self.body_end.is_set()):
            if self.expects_continue:
                self.connection.ask_for_body()
                self.expects_continue = False
            self.connection.resume_body()
            await self.body_end.wait()
        if not self.complete:
            raise ConnectionError("the body has not come as a whole")
        return b"".join(self.body)

    def keep_sent(self, data: bytes) -> None:
        """Keep a part of the body that is being sent for another try, unless there is too much of it."""
        if not self.body_gone:
            self.body.append(data)
            self.drop_large_body()

    def drop_large_body(self) -> None:
        """Keep no more of a body that is large and goes to the upstream before it has come as a whole."""
        if self.body_bytes > BODY_BYTES_HELD_MAX and not self.complete:
            self.body_gone = True
            self.body = []

    def replace_body(self, body: bytes) -> None:
        """Send another body to the upstream; the client's must have been read."""
        self.body = [body] if body else []
        self.content_length = len(body)

    def forwarded_lines(self) -> HeaderLines:
        """The header lines to pass on, as the plugins left them."""
        if self.text_headers is None:
            return self.lines
        return [(n.encode("latin-1"), v.encode("utf-8", "surrogateescape")) for n, v in self.text_headers.lines()]

    def _read_lines(self) -> None:
        if self.version not in VERSIONS:
            raise Refusal(505 if self.version > "1.1" else 400, f"client sent version {self.version}")
        for place, name in self.outline.noted:
            _NOTED[name](self, self.lines[place][1])
        if not self.names_host and self.version == "1.1":
            without = 'client sent HTTP/1.1 request without "Host" header'
            raise Refusal(400, f"{without} while reading client request headers")

    def _read_target(self) -> None:
        if self.method in NOT_SERVED:
            raise Refusal(405, f"client sent {self.method} method")
        if self.target[0] != _SLASH:
            self.authority, self.target = split_absolute(self.target)
        if _NUMBER_SIGN in self.target:
            raise Refusal(400, "client sent a fragment in the request target")
        if self.authority or self.version == "1.1":
            self.host = hosts[self.authority]
        self.raw_path = self.target.partition(b"?")[0] if _QUESTION_MARK in self.target else self.target
        if _PERCENT_SIGN in self.raw_path or b"/." in self.raw_path:
            check_path(self.raw_path)


def _named(client_ip: str, request_line: bytes, target: str, authority: bytes) -> str:
    asked = f', request: "{_shown(request_line)}"' if request_line else ""
    host = f', host: "{_shown(authority)}"' if authority else ""
    return f", client: {client_ip}, server: kong{asked}{target}{host}"


class RefusedRequest:
    """A request that is not served, with what has been read of its head.

    Attributes:
        connection: the client's.
        status: that it is refused with; 400 when its client has gone in the midst of it.
        reason: for the error log.
        request_line: its first line as far as it has come; empty when that is not known any more.
        lines: its header lines, as far as they have come.
        body_bytes_sent: of the answer, without its head.
    """

    __slots__ = ("body_bytes_sent", "connection", "lines", "reason", "request_line", "status")

    def __init__(
        self, connection: "ClientConnection", status: int, reason: str, request_line: bytes, lines: HeaderLines
    ) -> None:
        self.connection = connection
        self.status = status
        self.reason = reason
        self.request_line = request_line
        self.lines = lines
        self.body_bytes_sent = 0

    @property
    def client_ip(self) -> str:
        """The address that the connection comes from."""
        return self.connection.peer

    @property
    def named(self) -> str:
        """What a line of the error log says of it (`Request.named`)."""
        host = next((value for name, value in self.lines if name.lower() == b"host"), b"")
        return _named(self.client_ip, self.request_line, "", host)


def _note_host(request: Request, value: bytes) -> None:
    if request.names_host:
        raise Refusal(400, "client sent duplicate host header")
    request.names_host = True
    request.authority = value.rstrip(b" \t")


def _note_length(request: Request, value: bytes) -> None:
    request.content_length = length_of(value)


def _note_coding(request: Request, value: bytes) -> None:
    check_transfer_coding(value, request.version)
    request.content_length = None


def _note_expectation(request: Request, value: bytes) -> None:
    request.expects_continue = request.version == "1.1" and value.rstrip(b" \t").lower() == b"100-continue"


def _note_upgrade(request: Request, _value: bytes) -> None:
    request.asks_upgrade = True


def _note_options(request: Request, value: bytes) -> None:
    request.is_plain = request.is_plain and value.lower() in USUAL_OPTIONS


def _note_proxy(request: Request, _value: bytes) -> None:
    request.is_plain = False


_NOTED: Final[Mapping[bytes, Callable[[Request, bytes], None]]] = {
    b"host": _note_host,
    b"content-length": _note_length,
    b"transfer-encoding": _note_coding,
    b"expect": _note_expectation,
    b"upgrade": _note_upgrade,
    b"connection": _note_options,
    **dict.fromkeys(FORWARDING, _note_proxy),
}
_NUMBER_SIGN, _PERCENT_SIGN, _QUESTION_MARK, _SLASH = b"#%?/"


def without(lines: HeaderLines, name: str) -> HeaderLines:
    """Return header lines without those of a name, in which an underscore stands for a dash too."""
    key = octets(lua_lower(name).replace("_", "-"))
    return [line for line in lines if line[0].lower() != key]
