"""`kong.request`: what the client asked.

Header names are case-insensitive, and an underscore finds a dash. The `forwarded` functions give what a trusted proxy
says (`trusted_ips`), else the same as those of their name without it. The functions that need the body wait for it.
"""

import re
from contextlib import suppress
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Final
from urllib.parse import unquote_plus, unquote_to_bytes

from kongtrace.lua import lua_lower
from sim import cjson
from sim.arguments import checked_number, checked_text
from sim.framing import octets
from sim.pdk.headers import HEADERS_MAX, checked_max_headers, gathered
from sim.pdk.part import BEFORE_CONTENT, IN_REQUEST, Part, permitted
from sim.table import HeaderTable

ARGS_MAX: Final = 100
"""Query arguments that are looked at, unless a plugin says how many."""

ARGS_SEEN_MAX: Final = 1_000
"""How many it may ask for."""

PORT_MAX: Final = 65_535

_NS_PER_MS: Final = 1_000_000
_HOST_AND_PORT: Final = re.compile(r"(?:.*@)?(\[[^\]]*\]|[^:]*):?(.*)", re.DOTALL)

Args = dict[str, str | bool | list[str | bool]]


class ClientRequest(Part):
    """`kong.request`."""

    _path = "kong.request"

    @permitted(*IN_REQUEST)
    def get_scheme(self) -> str:
        """Return "http"."""
        return "http"

    @permitted(*IN_REQUEST)
    def get_host(self) -> str:
        """Return the host, in lower case and without port."""
        return self._request.host

    @permitted("certificate", *IN_REQUEST)
    def get_port(self) -> int:
        """Return the port that the connection came in on."""
        return self._request.connection.port

    @permitted(*IN_REQUEST)
    def get_forwarded_scheme(self) -> str:
        """Return "http", or what a trusted proxy says in `X-Forwarded-Proto`."""
        return (self._forwarded("proto") or "http").lower()

    @permitted(*IN_REQUEST)
    def get_forwarded_host(self) -> str:
        """Return the host that a trusted proxy names in `X-Forwarded-Host`, else the request's."""
        named = self._forwarded("host")
        return _HOST_AND_PORT.match(named)[1].lower() if named else self._request.host  # type: ignore[index]  # all match

    @permitted(*IN_REQUEST)
    def get_forwarded_port(self) -> int:
        """Return the port that a trusted proxy names in `X-Forwarded-Port` or `-Host`, else the connection's."""
        behind_host = _HOST_AND_PORT.match(self._forwarded("host") or "")[2]  # type: ignore[index]  # all match
        for port in (self._forwarded("port"), behind_host):
            if port and port.isdecimal() and 0 < int(port) <= PORT_MAX:
                return int(port)
        return self._request.connection.port

    @permitted(*IN_REQUEST)
    def get_http_version(self) -> float:
        """Return the version of HTTP, 1.0 or 1.1."""
        return float(self._request.version)

    @permitted(*IN_REQUEST)
    def get_method(self) -> str:
        """Return the method, in capitals."""
        return self._request.method

    @permitted(*IN_REQUEST)
    def get_path(self) -> str:
        """Return the path, normalised as RFC 3986 section 6 asks, without query."""
        return normalized(self._request.path)

    @permitted(*IN_REQUEST)
    def get_forwarded_path(self) -> str:
        """Return what a trusted proxy says in `X-Forwarded-Path`, else the same path."""
        return self._forwarded("path") or normalized(self._request.path)

    @permitted(*IN_REQUEST)
    def get_forwarded_prefix(self) -> str | None:
        """Return what a trusted proxy says in `X-Forwarded-Prefix`, else the prefix that the route strips, or None.

        The latter is escaped, as the service gets it.
        """
        match = self._request.match
        stripped = match.stripped.decode() if match is not None else ""
        return self._forwarded("prefix") or stripped or None

    @permitted(*IN_REQUEST)
    def get_raw_path(self) -> str:
        """Return the path as sent, without query."""
        return self._request.path

    @permitted(*IN_REQUEST)
    def get_path_with_query(self) -> str:
        """Return path and query as sent."""
        return self._request.target.decode("latin-1")

    @permitted(*IN_REQUEST)
    def get_raw_query(self) -> str:
        """Return the query as sent, without `?`."""
        return self._request.target.partition(b"?")[2].decode("latin-1")

    @permitted(*IN_REQUEST)
    def get_query_arg(self, name: str) -> str | bool | None:
        """Return the first value of an argument of the query; True when it has none; None when it is not there."""
        value = self._query().get(checked_text(name, "query argument name"))
        return value[0] if isinstance(value, list) else value

    @permitted(*IN_REQUEST)
    def get_query(self, max_args: int = ARGS_MAX) -> Args:
        """Return the arguments of the query: a value, True where there is none, or a list where there are several."""
        return self._query(checked_number(max_args, "max_args", 1, ARGS_SEEN_MAX))

    @permitted(*IN_REQUEST)
    def get_header(self, name: str) -> str | None:
        """Return a header's first value, or None."""
        value = self._request.headers.get(lua_lower(checked_text(name, "header name")))
        return value[0] if isinstance(value, list) else value

    @permitted(*IN_REQUEST)
    def get_headers(self, max_headers: int = HEADERS_MAX) -> HeaderTable[str | list[str]]:
        """Return all headers by name, in any case and with `_` for `-`; in lower case when they are listed."""
        most = checked_max_headers(max_headers)
        headers = self._request.headers
        return HeaderTable(headers.items() if most == HEADERS_MAX else gathered(headers.lines()[:most]))

    @permitted(*IN_REQUEST)
    def get_start_time(self) -> int:
        """Return when the request began, ms since the epoch."""
        return self._request.started_ns // _NS_PER_MS

    @permitted(*IN_REQUEST)
    def get_uri_captures(self) -> dict[str, Any]:
        """Return what the route's regular expression captured: `unnamed`, a list, and `named`, a mapping."""
        match = self._request.match
        if match is None or match.captures is None:
            return {"unnamed": [], "named": {}}
        unnamed, named = match.captures
        return {"unnamed": [_text(one) for one in unnamed], "named": {name: _text(one) for name, one in named.items()}}

    @permitted(*BEFORE_CONTENT)
    async def get_raw_body(self) -> bytes:
        """Wait for the whole body and return it."""
        return await self._request.read_body()

    @permitted(*BEFORE_CONTENT)
    async def get_body(self, mimetype: str | None = None) -> tuple[Any, str | None, str | None]:
        """Wait for the whole body; return what it says, None or the reason why not, and its media type.

        A form (URL-encoded or multipart) is a mapping, JSON is what it stands for.
        """
        request = self._request
        header = request.headers.get("content-type")
        content_type = (header[0] if isinstance(header, list) else header) or ""
        given = content_type if mimetype is None else checked_text(mimetype, "mimetype")
        kind = given.partition(";")[0].strip().lower()
        if not kind:
            return None, "missing content type", None
        body = await request.read_body()
        return *parsed_body(kind, content_type, body), kind

    def _forwarded(self, name: str) -> str | None:
        request = self._request
        named = request.connection.runloop.forwarding.named(request, name)
        return _text(named) if named is not None else None

    def _query(self, max_args: int = ARGS_MAX) -> Args:
        return decoded_args(self._request.target.partition(b"?")[2].decode("latin-1"), max_args)


def parsed_body(kind: str, content_type: str, body: bytes) -> tuple[Any, str | None]:
    """Return what a body of media type `kind` says, or the reason why not."""
    if kind == "application/x-www-form-urlencoded":
        return decoded_args(body.decode("utf-8", "surrogateescape")), None
    if kind == "application/json":
        with suppress(ValueError):
            if isinstance(said := cjson.decode(body), dict | list):
                return said, None
        return None, "invalid json body"
    if kind == "multipart/form-data":
        with suppress(RecursionError, IndexError):  # the parser's own, at a header such as `((((` or `a; b*`
            if (parts := _parts(content_type, body)) is not None:
                return parts, None
        return None, "invalid multipart body"
    return None, f"unsupported content type '{kind}'"


def _parts(content_type: str, body: bytes) -> dict[str, bytes] | None:
    """Return the named parts of a multipart body as they come, of whatever type; None where there are none at all."""
    boundary = _header_section(octets(f"Content-Type: {content_type}")).get_boundary()
    delimiter = rb"(?:^|\r?\n)--%b(--)?[ \t]*(?=\r?\n|$)" % re.escape(octets(boundary or ""))  # RFC 2046 5.1.1
    _before, *rest = re.split(delimiter, body)
    if not boundary or not rest:
        return None
    found = {}
    for ends, part in zip(rest[::2], rest[1::2], strict=True):
        if ends:
            break
        head, *content = _EMPTY_LINE.split(part, maxsplit=1)
        name = _header_section(head.lstrip(b"\r\n")).get_param("name", header="content-disposition")
        if name is not None:
            found[str(name)] = b"".join(content)
    return found


def _header_section(lines: bytes) -> Message:
    return BytesParser(policy=HTTP).parsebytes(lines, headersonly=True)


_EMPTY_LINE: Final = re.compile(rb"\r?\n\r?\n")


def decoded_args(query: str, max_args: int = ARGS_MAX) -> Args:
    """Return the arguments of a URL-encoded text, `max_args` at most."""
    pairs = (pair.partition("=") for pair in [pair for pair in query.split("&") if pair][:max_args])
    return gathered((_decoded(name), _decoded(text) if sign else True) for name, sign, text in pairs)


def _decoded(text: str) -> str:
    return unquote_plus(text, errors="surrogateescape")


_RESERVED: Final = "!*'();:@&=+$,/?#[]%"


def normalized(path: str) -> str:
    """Return a path with unreserved octets decoded, dots resolved and slashes merged."""
    if "%" not in path and "//" not in path and "/." not in path:
        return path

    def decode(match: re.Match[str]) -> str:
        character = unquote_to_bytes(match[0]).decode("latin-1")
        return match[0].upper() if character in _RESERVED else character

    decoded = re.sub(r"%[0-9A-Fa-f]{2}", decode, path)
    kept: list[str] = []
    segments = decoded.split("/")
    for position, segment in enumerate(segments):
        last = position == len(segments) - 1
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
        if last and segment in ("", ".", ".."):
            kept.append("")
    return _text("/" + "/".join(kept))


def _text(latin: str) -> str:
    """Return as UTF-8 what the gateway itself handles as one character for each byte."""
    return latin.encode("latin-1").decode("utf-8", "surrogateescape")
