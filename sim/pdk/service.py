"""`kong.service`: the target, what it is asked and what it has answered."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from kongtrace import ApiError, Execution
from sim.pdk.part import HEADERS_TO_SERVICE, OF_SERVICE, TO_SERVICE, Part, permitted
from sim.pdk.request import encoded_args, parsed_body
from sim.pdk.response import headers_of
from sim.request import SERVICE_BODY, Outgoing, Request
from sim.resolver import is_address

HTTP_PORT: Final = 80
TOKENS_MAX: Final = 1024
"""Names of headers, and methods, of which it is remembered that they may be written."""

FORM: Final = "application/x-www-form-urlencoded"


class ServiceRequest(Part):
    """`kong.service.request`: what the service gets."""

    @permitted(*TO_SERVICE)
    def enable_buffering(self) -> None:
        """Read the whole answer before anything of it is sent: `kong.service.response.get_raw_body` has it then."""
        request = self._request
        if request.plan is None:
            raise ApiError("buffering can be enabled once the route is known")
        request.plan = replace(request.plan, buffered=True)

    @permitted(*TO_SERVICE)
    def set_scheme(self, scheme: str) -> None:
        """Set the protocol; there is only "http"."""
        if scheme != "http":
            raise ApiError("invalid scheme: " + scheme)

    @permitted(*TO_SERVICE)
    def set_path(self, path: str) -> None:
        """Replace the path, that of the service included."""
        if not isinstance(path, str) or not path.startswith("/"):
            raise ApiError("path must start with /")
        _outgoing(self._request).path = quote(path, _IN_TARGET).encode()

    @permitted(*TO_SERVICE)
    def set_raw_query(self, query: str) -> None:
        """Replace the query."""
        _outgoing(self._request).query = quote(query, _IN_TARGET).encode()

    @permitted(*TO_SERVICE)
    def set_query(self, args: Mapping[str, Any]) -> None:
        """Replace the query by arguments: a value, True for none, or a list of values each."""
        _outgoing(self._request).query = encoded_args(dict(args)).encode("latin-1")

    @permitted(*TO_SERVICE)
    def set_method(self, method: str) -> None:
        """Replace the method."""
        _outgoing(self._request).method = _token(method.upper()).encode()

    @permitted(*HEADERS_TO_SERVICE)
    def set_header(self, name: str, value: object) -> None:
        """Replace a header; `Host` is what the service is called."""
        if name.lower() == "host":
            _outgoing(self._request).host = _text(value).encode("latin-1")
        else:
            self._request.headers.set(_token(name), _text(value))

    @permitted(*HEADERS_TO_SERVICE)
    def add_header(self, name: str, value: object) -> None:
        """Add a header line."""
        self._request.headers.add(_token(name), _text(value))

    @permitted(*HEADERS_TO_SERVICE)
    def clear_header(self, name: str) -> None:
        """Remove a header."""
        self._request.headers.clear(name)

    @permitted(*HEADERS_TO_SERVICE)
    def set_headers(self, headers: Mapping[str, object]) -> None:
        """Replace several headers; a list stands for several lines."""
        request = self._request
        for name, value in headers.items():
            request.headers.clear(name)
            for one in value if isinstance(value, list | tuple) else [value]:
                request.headers.add(_token(name), _text(one))

    @permitted(*TO_SERVICE)
    async def set_raw_body(self, body: bytes | str) -> None:
        """Replace the body, once the client's has been read."""
        await self._request.read_body()
        self._request.replace_body(body.encode() if isinstance(body, str) else body)

    @permitted(*TO_SERVICE)
    async def set_body(self, args: Mapping[str, Any], mimetype: str | None = None) -> None:
        """Replace the body by a mapping, as a form or as JSON, as `mimetype` or the client's Content-Type says."""
        request = self._request
        header = request.headers.get("content-type")
        kind = mimetype or str(header[0] if isinstance(header, list) else header or FORM).partition(";")[0].strip()
        if kind == FORM:
            body = encoded_args(dict(args)).encode()
        elif kind == "application/json":
            body = json.dumps(args).encode()
        else:
            raise ApiError(f"unsupported content type {kind}")
        await request.read_body()
        request.replace_body(body)
        request.headers.set("content-type", kind)


class ServiceResponse(Part):
    """`kong.service.response`: what the service has answered, whatever plugins have made of it since."""

    @permitted(*OF_SERVICE)
    def get_status(self) -> int | None:
        """Return the status; None when the service has not answered."""
        answer = self._request.upstream_response
        return answer[0] if answer is not None else None

    @permitted(*OF_SERVICE)
    def get_header(self, name: str) -> str | None:
        """Return a header's first value, or None."""
        value = self._headers().get(name.lower().replace("_", "-"))
        return value[0] if isinstance(value, list) else value

    @permitted(*OF_SERVICE)
    def get_headers(self) -> dict[str, str | list[str]]:
        """Return all headers by name in lower case."""
        return self._headers()

    @permitted(*OF_SERVICE)
    def get_raw_body(self) -> bytes:
        """Return the body; it is there when the answer was buffered."""
        return self._body()

    @permitted(*OF_SERVICE)
    def get_body(self, mimetype: str | None = None) -> tuple[Any, str | None]:
        """Return what the body says, as a form or JSON, or None and the reason why not."""
        content_type = self._headers().get("content-type") or ""
        content_type = content_type[0] if isinstance(content_type, list) else content_type
        kind = mimetype or content_type.partition(";")[0].strip().lower()
        return parsed_body(kind, content_type, self._body())

    def _headers(self) -> dict[str, str | list[str]]:
        answer = self._request.upstream_response
        return headers_of(answer[1]) if answer is not None else {}

    def _body(self) -> bytes:
        body: bytes | None = self._request.ctx.get(SERVICE_BODY)
        if body is None:
            raise ApiError(
                "service body is only available with buffered proxying (see: kong.service.request."
                "enable_buffering function)"
            )
        return body


class Service(Part):
    """`kong.service`.

    Attributes:
        request: what it gets.
        response: what it has answered.
    """

    def __init__(self, execution: Execution, upstreams: frozenset[str]) -> None:
        super().__init__(execution)
        self.request = ServiceRequest(execution)
        self.response = ServiceResponse(execution)
        self._upstreams = upstreams

    @permitted("access")
    def set_upstream(self, name: str) -> tuple[bool | None, str | None]:
        """Let the targets of an upstream get the request; None and the reason when there is no such upstream."""
        if name not in self._upstreams:
            return None, f"could not find an Upstream named '{name}'"
        self._change(host=name)
        return True, None

    @permitted("access")
    def set_target(self, host: str, port: int) -> None:
        """Let the request go to a host, name or address, and port."""
        if not isinstance(port, int) or not 0 <= port <= 65_535:
            raise ApiError("port must be an integer between 0 and 65535: given " + str(port))
        self._change(host=host, port=port)

    @permitted("access")
    def set_retries(self, retries: int) -> None:
        """Set how often another try is made."""
        self._change(retries=retries)

    @permitted("access")
    def set_timeouts(self, connect_timeout: int, write_timeout: int, read_timeout: int) -> None:
        """Set the timeouts, ms."""
        self._change(connect_timeout=connect_timeout, write_timeout=write_timeout, read_timeout=read_timeout)

    def _change(self, **fields: Any) -> None:
        request = self._request
        match = request.match
        if match is None or match.service is None:
            raise ApiError("the request has no service")
        service = match.service.model_copy(update=fields)
        request.match = replace(match, service=service)
        if "host" in fields:
            address = (service.host, service.port) if is_address(service.host) else None
            host = service.host if service.port == HTTP_PORT else f"{service.host}:{service.port}"
            request.match = replace(request.match, address=address, upstream_host=host.encode())


def _outgoing(request: Request) -> Outgoing:
    if request.outgoing is None:
        request.outgoing = Outgoing()
    return request.outgoing


def _text(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if _BREAKS_LINES.search(text):
        # What a client has a plugin write must not become a line, or a request, of its own.
        raise ApiError(f"invalid header value: {text!r}")
    return text


@lru_cache(TOKENS_MAX)
def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ApiError(f"invalid name: {text!r}")
    return text


_BREAKS_LINES: Final = re.compile(r"[\r\n\0]")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_IN_TARGET: Final = "/?:@!$&'()*+,;=%[]"
