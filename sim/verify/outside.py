"""Outside: the services that plugins call, one under every name, address and port that the gateway's own are not.

What they do is what the latest request says (`Visit.called`): a service is up or down at a moment, for whoever calls it
then, a timer too. It is found out anew for each connection, which takes one HTTP exchange and is closed. A name gets an
address of its own, which the gateway's resolver remembers as it would any other. https is answered as http is, since
the virtual world has no TLS.

| called | a call |
|---|---|
| is unknown | the name does not exist; to an address there is no route |
| refuses, is silent | there is no connection, at once or ever |
| answers once | the first is answered, those after it are refused |
| answers, fails, is slow, resets, breaks off, talks nonsense | HTTP: as of the upstream |

Who is told something that is not HTTP takes it, and says nothing, or to each part of it the text that the user gives
(`read_answers`); when it fails it closes. So a caller that waits for more finds out how good its timeout is.

Sizes in bytes.
"""

import asyncio
import errno
import ipaddress
import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from sim.document import explain
from sim.errors import UserError, shown
from sim.field import HeaderName, HeaderValue
from sim.http_server import HttpConnection, HttpServer, response
from sim.runtime.virtual import VirtualRuntime, VirtualWorld
from sim.verify.program import Visit

if TYPE_CHECKING:
    from sim.runtime import Runtime, Tls
    from sim.runtime.network import Address, Network

SLOW_NS: Final = 300_000_000
NONSENSE: Final = b"HTTP/9 nonsense\r\n\r\n"

REFUSING: Final = ("192.0.2.8", 80)
SILENT: Final = ("192.0.2.9", 80)
UNKNOWN: Final = "unknown.test"
"""Where the gateway's own service is to be had when it is not: addresses of RFC 5737, which are nobody's."""

_NAMED: Final = ipaddress.IPv4Network("198.18.0.0/15")
"""Addresses of names, which are nobody's either (RFC 2544)."""

_NS_PER_S: Final = 1_000_000_000
_LABEL: Final = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\.?")
_JSON: Final = {"content-type": "application/json"}
_FRAMING: Final = frozenset({"content-length", "transfer-encoding", "connection"})
_HEADERS: Final = TypeAdapter(dict[HeaderName, HeaderValue])
_FIELDS: Final = ("status", "headers", "body")
SAMPLE: Final = """write '{"quota.internal": {"status": 200, "body": {"limit": 3}}}'"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answers when it does.

    Attributes:
        status: of HTTP.
        headers: of HTTP.
        body: of HTTP; None: as large as the request says (`Visit.answer`).
        text: what is said to each part of what is not HTTP.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    text: bytes = b""


Answers = Mapping[str, Answer]
"""Answers by host, or by host and port."""

USUAL: Final = Answer()


def read_answers(told: Any) -> dict[str, Answer]:
    """Read what services answer, by `host` or `host:port`: a mapping for HTTP, a text for any other protocol.

    A mapping has `status`, `headers` and `body`, each optional; a body that is no text is made one, in JSON.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(told, Mapping):
        raise UserError("must be a mapping by host", cure=SAMPLE)
    return {str(host).lower(): _answer(str(host), answer) for host, answer in told.items()}


def _answer(host: str, told: Any) -> Answer:
    if isinstance(told, str | bytes):
        return Answer(text=_octets(told))
    if not isinstance(told, Mapping):
        raise UserError(f"{host}: expected a mapping or a text, not {shown(told)}", cure=SAMPLE)
    for name in told:
        if name not in _FIELDS:
            raise UserError(f"{host}: it has the unknown field {name}", cure=f"known here: {', '.join(_FIELDS)}")
    status, headers, body = told.get("status", 200), told.get("headers"), told.get("body")
    if type(status) is not int or not 200 <= status <= 599:
        raise UserError(f"{host}: status cannot be {shown(status)}", cure="write a number from 200 to 599")
    headers = {} if headers is None else headers
    if not isinstance(headers, Mapping):
        raise UserError(f"{host}: headers cannot be {shown(headers)}", cure="write a mapping by name")
    try:
        named = _HEADERS.validate_python({str(name).lower(): str(value) for name, value in headers.items()})
    except ValidationError as error:
        message, cure, _below = explain(details := error.errors()[0])
        raise UserError(f"{host}: headers.{details['loc'][0]}: {message}", cure=cure) from None
    for name in _FRAMING & named.keys():
        raise UserError(f"{host}: the header {name} is that of the body and the connection", cure="leave it out")
    if body is None or isinstance(body, str | bytes):
        return Answer(status, named, None if body is None else _octets(body))
    return Answer(status, _JSON | named, json.dumps(body).encode())


def _octets(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


class Outside:
    """Everything that is not the gateway's own.

    Args:
        world: whose it is.
        answers: what services answer, where they do.

    Attributes:
        answers: the same; it may be replaced.
        called: whom plugins have called, `host:port`.
    """

    def __init__(self, world: VirtualWorld, answers: Answers) -> None:
        self._network: Network = world.network
        self._network.silence(SILENT)
        self._server = _Server()
        self._visit = Visit()
        self._has_answered = False
        self._addresses: dict[str, str] = {}
        self._names: dict[str, str] = {}  # by address
        self._doors: dict[Address, None] = {}
        self.answers = answers
        self.called: dict[str, None] = {}

    def open(self, runtime: "Runtime") -> None:
        """Be ready."""
        self._server.open(runtime.alarm)

    def obey(self, visit: Visit) -> None:
        """Do from now on what a request says."""
        self._visit = visit
        self._has_answered = False

    def resolve(self, name: str) -> str:
        """Return the address of a name that is none; raises OSError."""
        if name == UNKNOWN or self._visit.called == "is unknown" or not _NAME.fullmatch(name):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        name = name.lower()
        if name not in self._addresses:
            address = str(_NAMED[1 + len(self._addresses) % (_NAMED.num_addresses - 1)])
            self._addresses[name], self._names[address] = address, name
        return self._addresses[name]

    def has(self, address: "Address") -> bool:
        """Whether it is an address of these services."""
        return address in self._doors or not (address == REFUSING or self._network.knows(address))

    async def connect(self, address: "Address", protocol: Callable[[], Any]) -> object:
        """Connect to one of these services, if that can be had; raises OSError."""
        called = self._visit.called
        if called == "answers once":
            called = "refuses" if self._has_answered else "answers"
            self._has_answered = True
        self.called[self._place(address)] = None
        try:
            return await self._network.connect(self._door(address, called), protocol)
        except ConnectionRefusedError as error:
            if called == "is unknown":
                raise OSError(errno.EHOSTUNREACH, "No route to host") from None
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused") from error

    def _door(self, address: "Address", called: str) -> "Address":
        if called in {"refuses", "is unknown"}:
            return REFUSING
        if called == "is silent":
            return SILENT
        if address not in self._doors:
            self._doors[address] = None
            self._network.listen(address, partial(self._accept, address))
        return address

    def _accept(self, address: "Address") -> "_Connection":
        place = self._place(address)
        host = place.rpartition(":")[0]
        return _Connection(self._server, self._visit, self.answers.get(place) or self.answers.get(host) or USUAL)

    def _place(self, address: "Address") -> str:
        host, port = address
        return f"{self._names.get(host, host)}:{port}"


class OutsideRuntime(VirtualRuntime):
    """The runtime of a host to which all that is not there is outside.

    Args:
        world: it is in.
        name: of the host.
        outside: the rest.
    """

    def __init__(self, world: VirtualWorld, name: str, outside: Outside) -> None:
        super().__init__(world, world.generator(name))
        self._outside = outside

    async def connect(self, host: str, port: int, protocol: Callable[[], Any], tls: "Tls | None" = None) -> object:
        """Open a connection to an address and return its protocol; raises OSError."""
        if self._outside.has((host, port)):
            return await self._outside.connect((host, port), protocol)
        return await super().connect(host, port, protocol, tls)

    async def resolve(self, name: str) -> str:
        """Return an address of a host name; raises OSError."""
        return self._outside.resolve(name)


class ActingConnection(HttpConnection):
    """A connection to a service that does what a program says."""

    def act(self, does: str, data: bytes, body_bytes: int) -> tuple[bytes, int]:
        """Return what `respond` does.

        Args:
            does: one of `UPSTREAMS`.
            data: the whole answer.
            body_bytes: how much of it is body.
        """
        match does:
            case "is slow":
                return data, SLOW_NS
            case "resets":
                self.transport.abort()
                return b"", 0
            case "breaks off":
                self._keep_alive = False
                return data[: len(data) - 1 - body_bytes // 2], 0
            case "talks nonsense":
                self._keep_alive = False
                return NONSENSE, 0
        return data, 0


class _Server(HttpServer):
    """What the connections share."""

    def accept(self) -> HttpConnection:
        """Never asked: each connection is told whose it is."""
        raise NotImplementedError


class _Connection(ActingConnection):
    """A connection to a service, of one exchange.

    Args:
        server: shared by all.
        visit: what the service does.
        answer: with which it answers, if it does.
    """

    def __init__(self, server: _Server, visit: Visit, answer: Answer) -> None:
        super().__init__(server)
        self._visit = visit
        self._answer = answer
        self._is_http = True
        self._leaving = True

    def data_received(self, data: bytes) -> None:
        """Hear what is said, in whatever protocol."""
        if self._is_http:
            super().data_received(data)
        else:
            self._reply()

    def _refuse(self, _status: HTTPStatus) -> None:
        """It is no HTTP."""
        self._is_http, self._last = False, True
        self._reply()

    def request(self) -> bool:
        """Return whether it is a HEAD request."""
        return bool(self.parser.get_method() == b"HEAD")

    def respond(self, request: bool, keep_alive: bool) -> tuple[bytes, int]:
        """Answer, or not."""
        answer = self._answer
        if self._visit.called == "fails":
            answer = Answer(HTTPStatus.SERVICE_UNAVAILABLE)
        body = b"x" * self._visit.answer if answer.body is None else answer.body
        data = response(answer.status, answer.headers, body, head=request, keep_alive=keep_alive)
        return self.act(self._visit.called, data, len(body))

    def _reply(self) -> None:
        """Say what is said to what is not HTTP."""
        text = self._answer.text
        match self._visit.called:
            case "is slow":
                asyncio.get_running_loop().call_later(SLOW_NS / _NS_PER_S, self.transport.write, text)
            case "fails":
                self.transport.close()
            case "resets":
                self.transport.abort()
            case "breaks off":
                self.transport.write(text[: len(text) // 2])
                self.transport.close()
            case "talks nonsense":
                self.transport.write(NONSENSE)
                self.transport.close()
            case _:
                self.transport.write(text)
