"""One request: what the client asked, where it stands in the phases, what is answered.

A `Request` lives from the end of its header section to the end of its log phase and belongs to one connection. Its
`ctx` is `ngx.ctx`: empty at first, emptied at the end. Times in ns since the epoch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kongtrace.propagation import Headers

if TYPE_CHECKING:
    from sim.balancer import Choice
    from sim.connection import ClientConnection
    from sim.plugin import Plan
    from sim.proxy import ProxiedExchange
    from sim.router import Match

REQUEST: Final = "REQUEST"
"""Key under which a request's `ctx` holds the request itself."""

HeaderLines = list[tuple[bytes, bytes]]

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that concern one connection and are not passed on (RFC 9110 7.6.1)."""


@dataclass(slots=True)
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

    address: str
    port: int
    start_ns: int
    latency_ns: int = 0
    connect_ns: int = 0
    state: str | None = None
    code: int = 0


class Request:
    """What the gateway knows of one request.

    Attributes:
        connection: the client's.
        method: in capitals.
        target: path and query as sent.
        path: the part of the target before `?`.
        version: of HTTP, "1.1" or "1.0".
        lines: header lines as sent.
        authority: the Host header as sent.
        host: the same in lower case, without port.
        content_length: of the body; None when it is chunked; 0 when there is none.
        expects_continue: the client waits for leave to send its body.
        keep_alive: whether the client wants to go on after the answer.
        id: 32 hexadecimal digits (`X-Kong-Request-Id`).
        started_ns: when its first byte was read.
        ctx: the request context.
        phase_index: place in the phase engine's handlers.
        match: the route, once found.
        plan: the plugins that run.
        tries: what the balancer tried.
        address: of the target, and its port.
        hostname: of the target, "" when an address was configured.
        upstream_host: what the `Host` header tells the target.
        choice: of the targets, when the service's host is an upstream.
        upstream_ns: from the first try to the head of the answer.
        exchange: with the upstream, once it has begun.
        body: parts of the body that wait for the upstream.
        status: of the answer; 0 before it is known.
        response_lines: header lines of the answer, before they are written.
        body_ended_ns: when the last part of the body passed the filter, 0 before.
        handled: spans that an exporter has taken care of.
        head_bytes: bytes of the answer's status line and headers, once written.
        header_sent: the answer has begun.
        complete: the whole request has been read.
        done: its log phase has run.
    """

    __slots__ = (
        "_headers",
        "address",
        "authority",
        "body",
        "body_ended_ns",
        "choice",
        "complete",
        "connection",
        "content_length",
        "ctx",
        "done",
        "exchange",
        "expects_continue",
        "handled",
        "head_bytes",
        "header_sent",
        "host",
        "hostname",
        "id",
        "keep_alive",
        "lines",
        "match",
        "method",
        "path",
        "phase_index",
        "plan",
        "response_lines",
        "started_ns",
        "status",
        "target",
        "tries",
        "upstream_host",
        "upstream_ns",
        "version",
    )

    def __init__(
        self,
        connection: "ClientConnection",
        method: str,
        target: bytes,
        lines: HeaderLines,
        version: str,
        *,
        keep_alive: bool,
        started_ns: int,
    ) -> None:
        self.connection = connection
        self.method = method
        self.target = target
        self.path = target.partition(b"?")[0].decode("latin-1")
        self.lines = lines
        self.version = version
        self.keep_alive = keep_alive
        self.started_ns = started_ns
        self.host = ""
        self.authority = b""
        self.content_length: int | None = 0
        self.expects_continue = False
        self._read_lines()
        self._headers: Headers | None = None
        self.ctx: dict[str, Any] = {REQUEST: self}
        self.phase_index = 0
        self.match: Match | None = None
        self.plan: Plan | None = None
        self.tries: list[Try] = []
        self.address = ("", 0)
        self.hostname = ""
        self.upstream_host = b""
        self.choice: Choice | None = None
        self.upstream_ns = 0
        self.exchange: ProxiedExchange | None = None
        self.body: list[bytes] = []
        self.status = 0
        self.response_lines: HeaderLines = []
        self.body_ended_ns = 0
        self.handled = 0
        self.head_bytes = 0
        self.header_sent = False
        self.complete = False
        self.done = False
        self.id = b""

    @property
    def request_line(self) -> bytes:
        """The first line, as the client has sent it (nginx, `$request`)."""
        return b"%b %b HTTP/%b" % (self.method.encode(), self.target, self.version.encode())

    @property
    def body_bytes_sent(self) -> int:
        """Bytes of the answer without its head that were written so far (nginx, `$body_bytes_sent`)."""
        return max(0, self.connection.sent_bytes - self.head_bytes)

    @property
    def headers(self) -> Headers:
        """The headers as plugins see and change them; what they leave is what the upstream gets."""
        if self._headers is None:
            self._headers = Headers(
                (name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in self.lines
            )
        return self._headers

    def forwarded_lines(self) -> HeaderLines:
        """The header lines to pass on, as the plugins left them."""
        if self._headers is None:
            return self.lines
        return [(n.encode("latin-1"), v.encode("utf-8", "surrogateescape")) for n, v in self._headers.lines()]

    def _read_lines(self) -> None:
        for name, value in self.lines:
            size = len(name)
            if size == 4 and name.lower() == b"host":
                self.authority = value
            elif size == 14 and name.lower() == b"content-length":
                self.content_length = int(value)
            elif size == 17 and name.lower() == b"transfer-encoding":
                self.content_length = None
            elif size == 6 and name.lower() == b"expect":
                self.expects_continue = value.lower() == b"100-continue"
        host = self.authority.decode("latin-1").lower()
        self.host = host[: host.rindex(":")] if ":" in host and not host.endswith("]") else host
