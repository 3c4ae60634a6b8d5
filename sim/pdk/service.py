"""`kong.service`: the target, what it is asked and what it has answered."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from kongtrace import ApiError, Execution
from kongtrace.lua import lua_lower
from sim.arguments import (
    checked_args,
    checked_body,
    checked_header,
    checked_integer,
    checked_table,
    checked_text,
    checked_token,
    encoded_args,
    encoded_json,
)
from sim.field import TIMEOUT_MS_MAX
from sim.framing import octets
from sim.pdk.headers import HEADERS_MAX, checked_max_headers, headers_of
from sim.pdk.part import HEADERS_TO_SERVICE, OF_SERVICE, TO_SERVICE, Part, permitted
from sim.pdk.request import parsed_body
from sim.request import SERVICE_BODY, Outgoing, Request
from sim.table import HeaderTable

PORT_MAX: Final = 65_535
RETRIES_MAX: Final = 32_767

FORM: Final = "application/x-www-form-urlencoded"


class ServiceRequest(Part):
    """`kong.service.request`: what the service gets."""

    _path = "kong.service.request"

    @permitted(*TO_SERVICE)
    def enable_buffering(self) -> None:
        """Read the whole answer before anything of it is sent: `kong.service.response.get_raw_body` has it then."""
        _outgoing(self._request).buffered = True

    @permitted(*TO_SERVICE)
    def set_scheme(self, scheme: str) -> None:
        """Set the protocol; there is only "http"."""
        if checked_text(scheme, "scheme") != "http":
            raise ApiError("invalid scheme: " + scheme)

    @permitted(*TO_SERVICE)
    def set_path(self, path: str) -> None:
        """Replace the path, that of the service included."""
        if not checked_text(path, "path").startswith("/"):
            raise ApiError("path must start with /")
        _outgoing(self._request).path = quote(path, _IN_TARGET, errors="surrogateescape").encode()

    @permitted(*TO_SERVICE)
    def set_raw_query(self, query: str) -> None:
        """Replace the query."""
        escaped = quote(checked_text(query, "query"), _IN_TARGET, errors="surrogateescape")
        _outgoing(self._request).query = escaped.encode()

    @permitted(*TO_SERVICE)
    def set_query(self, args: Mapping[str, Any]) -> None:
        """Replace the query by arguments: a value, True for none, or a list of values each."""
        _outgoing(self._request).query = encoded_args(checked_args(args)).encode("latin-1")

    @permitted(*TO_SERVICE)
    def set_method(self, method: str) -> None:
        """Replace the method."""
        method = checked_token(checked_text(method, "method"), "method")
        _outgoing(self._request).method = method.upper().encode()

    @permitted(*HEADERS_TO_SERVICE)
    def set_header(self, name: str, value: object) -> None:
        """Replace a header; `Host` is what the service is called; a list stands for several lines."""
        values = checked_header(name, value)
        _set(self._request, name, values)

    @permitted(*HEADERS_TO_SERVICE)
    def add_header(self, name: str, value: object) -> None:
        """Add a header line, or several."""
        values = checked_header(name, value)
        _add(self._request, name, values)

    @permitted(*HEADERS_TO_SERVICE)
    def clear_header(self, name: str) -> None:
        """Remove a header."""
        self._request.headers.clear(checked_text(name, "header"))

    @permitted(*HEADERS_TO_SERVICE)
    def set_headers(self, headers: Mapping[str, object]) -> None:
        """Replace several headers."""
        given = {name: checked_header(name, value) for name, value in checked_table(headers, "headers").items()}
        request = self._request
        for name, values in given.items():
            _set(request, name, values)

    @permitted(*TO_SERVICE)
    async def set_raw_body(self, body: bytes | str) -> None:
        """Replace the body, once the client's has been read."""
        octets = checked_body(body)
        await self._request.read_body()
        self._request.replace_body(octets)

    @permitted(*TO_SERVICE)
    async def set_body(self, args: Mapping[str, Any], mimetype: str | None = None) -> None:
        """Replace the body by a mapping, as a form or as JSON, as `mimetype` or the client's Content-Type says."""
        checked_table(args, "args")
        request = self._request
        header = request.headers.get("content-type")
        kind = mimetype or str(header[0] if isinstance(header, list) else header or FORM).partition(";")[0].strip()
        if kind == FORM:
            body = encoded_args(checked_args(args)).encode()
        elif kind == "application/json":
            body = octets(encoded_json(args, "Cannot serialise args"))
        else:
            raise ApiError(f"unsupported content type {kind}")
        await request.read_body()
        request.replace_body(body)
        request.headers.set("content-type", kind)


class ServiceResponse(Part):
    """`kong.service.response`: what the service has answered, whatever plugins have made of it since."""

    _path = "kong.service.response"

    @permitted(*OF_SERVICE)
    def get_status(self) -> int | None:
        """Return the status; None when the service has not answered."""
        answer = self._request.upstream_response
        return answer[0] if answer is not None else None

    @permitted(*OF_SERVICE)
    def get_header(self, name: str) -> str | None:
        """Return a header's first value, or None."""
        value = self._headers().get(lua_lower(name).replace("_", "-"))
        return value[0] if isinstance(value, list) else value

    @permitted(*OF_SERVICE)
    def get_headers(self, max_headers: int = HEADERS_MAX) -> HeaderTable[str | list[str]]:
        """Return all headers by name, in any case and with `_` for `-`; in lower case when they are listed."""
        return HeaderTable(self._headers(checked_max_headers(max_headers)))

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

    def _headers(self, most: int | None = None) -> dict[str, str | list[str]]:
        answer = self._request.upstream_response
        return headers_of(answer[1][:most]) if answer is not None else {}

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

    _path = "kong.service"

    def __init__(self, execution: Execution, upstreams: frozenset[str]) -> None:
        super().__init__(execution)
        self.request = ServiceRequest(execution)
        self.response = ServiceResponse(execution)
        self._upstreams = upstreams

    @permitted("access")
    def set_upstream(self, name: str) -> tuple[bool | None, str | None]:
        """Let the targets of an upstream get the request; None and the reason when there is no such upstream."""
        if checked_text(name, "host") not in self._upstreams:
            return None, f"could not find an Upstream named '{name}'"
        self._change(host=name)
        return True, None

    @permitted("access")
    def set_target(self, host: str, port: int) -> None:
        """Let the request go to a host, name or address, and port; `Host` is that host alone."""
        checked_header("Host", checked_text(host, "host"))
        self._change(host=host, port=checked_integer(port, "port", 0, PORT_MAX))
        _outgoing(self._request).host = octets(f"[{host}]" if ":" in host else host)

    @permitted("access")
    def set_retries(self, retries: int) -> None:
        """Set how often another try is made."""
        self._change(retries=checked_integer(retries, "retries", 0, RETRIES_MAX))

    @permitted("access")
    def set_timeouts(self, connect_timeout: int, write_timeout: int, read_timeout: int) -> None:
        """Set the timeouts, ms."""
        given = {"connect_timeout": connect_timeout, "write_timeout": write_timeout, "read_timeout": read_timeout}
        self._change(**{name: checked_integer(ms, name, 1, TIMEOUT_MS_MAX) for name, ms in given.items()})

    def _change(self, **fields: Any) -> None:
        request = self._request
        match = request.match
        if match is None or match.service is None:
            raise ApiError("the request has no service")
        request.match = match.to(match.service.model_copy(update=fields))


def _set(request: Request, name: str, values: list[str]) -> None:
    request.headers.clear(name)
    _add(request, name, values)


def _add(request: Request, name: str, values: list[str]) -> None:
    is_host = name.lower() == "host"
    headers = request.headers
    for value in values:
        if is_host:
            _outgoing(request).host = octets(value)
        else:
            headers.add(name, value)


def _outgoing(request: Request) -> Outgoing:
    if request.outgoing is None:
        request.outgoing = Outgoing()
    return request.outgoing


_IN_TARGET: Final = "/?:@!$&'()*+,;=%[]"
