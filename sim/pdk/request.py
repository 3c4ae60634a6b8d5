"""`kong.request`: what the client asked.

Header names are case-insensitive, and an underscore finds a dash. No address is trusted, so the `forwarded` functions
give what the connection says. The functions that need the body wait for it.
"""

import json
import re
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from kongtrace import ApiError
from sim.pdk.part import BEFORE_CONTENT, IN_REQUEST, Part, permitted

ARGS_MAX: Final = 100
"""Query arguments and headers that are looked at."""

_MS_PER_NS: Final = 1e-6

Args = dict[str, str | bool | list[str | bool]]


class ClientRequest(Part):
    """`kong.request`."""

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
        return int(self._request.connection.transport.get_extra_info("sockname")[1])

    get_forwarded_scheme = get_scheme
    get_forwarded_host = get_host
    get_forwarded_port = get_port

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

    get_forwarded_path = get_path

    @permitted(*IN_REQUEST)
    def get_forwarded_prefix(self) -> str | None:
        """Return the prefix that the route strips, or None."""
        match = self._request.match
        return (match.prefix or None) if match is not None and match.route.strip_path else None

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
        value = self._query().get(name)
        return value[0] if isinstance(value, list) else value

    @permitted(*IN_REQUEST)
    def get_query(self, max_args: int = ARGS_MAX) -> Args:
        """Return the arguments of the query: a value, True where there is none, or a list where there are several."""
        return self._query(max_args)

    @permitted(*IN_REQUEST)
    def get_header(self, name: str) -> str | None:
        """Return a header's first value, or None."""
        value = self._request.headers.get(name.lower())
        return value[0] if isinstance(value, list) else value

    @permitted(*IN_REQUEST)
    def get_headers(self) -> dict[str, str | list[str]]:
        """Return all headers by name in lower case."""
        return dict(self._request.headers.items())

    @permitted(*IN_REQUEST)
    def get_start_time(self) -> int:
        """Return when the request began, ms since the epoch."""
        return int(self._request.started_ns * _MS_PER_NS)

    @permitted(*IN_REQUEST)
    def get_uri_captures(self) -> dict[str, Any]:
        """Return what the route's regular expression captured: `unnamed`, a list, and `named`, a mapping."""
        match = self._request.match
        if match is None or match.captures is None:
            return {"unnamed": [], "named": {}}
        return {"unnamed": list(match.captures.unnamed), "named": dict(match.captures.named)}

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
        kind = mimetype or content_type.partition(";")[0].strip().lower()
        body = await request.read_body()
        return *parsed_body(kind, content_type, body), kind or None

    def _query(self, max_args: int = ARGS_MAX) -> Args:
        return decoded_args(self._request.target.partition(b"?")[2].decode("latin-1"), max_args)


def parsed_body(kind: str, content_type: str, body: bytes) -> tuple[Any, str | None]:
    """Return what a body of media type `kind` says, or the reason why not."""
    if kind == "application/x-www-form-urlencoded":
        return decoded_args(body.decode("latin-1")), None
    if kind == "application/json":
        try:
            return json.loads(body), None
        except ValueError:
            return None, "invalid json body"
    if kind == "multipart/form-data":
        message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode("latin-1") + body)
        if not message.is_multipart():
            return None, "invalid multipart body"
        parts: list[Any] = list(message.iter_parts())
        named = ((part.get_param("name", header="content-disposition"), part) for part in parts)
        return {str(name): part.get_payload(decode=True) for name, part in named if name is not None}, None
    return None, f"unsupported content type '{kind}'"


def decoded_args(query: str, max_args: int = ARGS_MAX) -> Args:
    """Return the arguments of a URL-encoded text, `max_args` at most."""
    if max_args < 1:
        raise ApiError("max_args must be >= 1")
    args: Args = {}
    for pair in [pair for pair in query.split("&") if pair][:max_args]:
        name, sign, text = pair.partition("=")
        value: str | bool = parse_qsl(f"a={text}", keep_blank_values=True)[0][1] if sign else True
        key = parse_qsl(f"a={name}", keep_blank_values=True)[0][1]
        earlier = args.get(key)
        if earlier is None:
            args[key] = value
        elif isinstance(earlier, list):
            earlier.append(value)
        else:
            args[key] = [earlier, value]
    return args


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
    text = "/" + "/".join(kept)
    return text.encode("latin-1").decode("utf-8", "surrogateescape")


def encoded_args(args: dict[str, Any]) -> str:
    """Return arguments URL-encoded, in the order of their names."""
    pairs = []
    for name, value in sorted(args.items()):
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is True:
                pairs.append(quote(name, safe=""))
            elif one is not False:
                pairs.append(f"{quote(name, safe='')}={quote(str(one), safe='')}")
    return "&".join(pairs)
