"""`kong.response`: what the client gets."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn

from kongtrace import ApiError
from kongtrace.lua import lua_lower
from sim.arguments import checked_body, checked_header, checked_table, checked_text, encoded_json
from sim.framing import octets
from sim.pdk.headers import HEADERS_MAX, checked_max_headers, headers_of
from sim.pdk.part import AFTER_CONTENT, BEFORE_HEAD, Part, permitted
from sim.request import ARG, BODY_BUFFER, EXITED, Request, without
from sim.request import Part as BodyPart
from sim.table import HeaderTable

JSON: Final = "application/json; charset=utf-8"

Value = str | int | float | bool
Headers = Mapping[str, Value | list[Value] | tuple[Value, ...]]
Body = bytes | str | Mapping[str, Any] | list[Any] | None

_NO_TEXT: Final = b"\n"
"""What Kong sends of a body that is set to an empty text."""

_STATUS_MIN, _FINAL_MIN, _ERROR_MIN, _STATUS_MAX = 100, 200, 400, 599

MESSAGES: Final = {
    400: "Bad request",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    411: "Length required",
    412: "Precondition failed",
    413: "Payload too large",
    414: "URI too long",
    417: "Expectation failed",
    431: "Request header or cookie too large",
    494: "Request header or cookie too large",
    500: "An unexpected error occurred",
    502: "An invalid response was received from the upstream server",
    503: "The upstream server is currently unavailable",
    504: "The upstream server is timing out",
}
"""What Kong says of a status, where it does not use the status's own name."""

_FORMS: Final = {
    "application/json": (JSON, '{{\n  "message":{message},\n  "request_id":{id}\n}}'),
    "text/html": (
        "text/html; charset=utf-8",
        "<!doctype html><title>Error</title><h1>Error</h1><p>{text}.</p><p>request_id: {plain_id}</p>",
    ),
    "application/xml": (
        "application/xml; charset=utf-8",
        '<?xml version="1.0"?><error><message>{text}</message><requestid>{plain_id}</requestid></error>',
    ),
    "text/plain": ("text/plain; charset=utf-8", "{text}\nrequest_id: {plain_id}"),
}
"""Media types in which an error can be told: content type and form."""


class Exit(BaseException):
    """A handler has answered the request itself."""

    def __init__(self, status: int, body: bytes | None, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers


class Response(Part):
    """`kong.response`."""

    _path = "kong.response"

    @permitted(*AFTER_CONTENT)
    def get_status(self) -> int:
        """Return the status."""
        return self._request.status

    @permitted(*AFTER_CONTENT)
    def get_header(self, name: str) -> str | None:
        """Return a header's first value, or None."""
        value = headers_of(self._request.response_lines).get(_key(checked_text(name, "header name")))
        return value[0] if isinstance(value, list) else value

    @permitted(*AFTER_CONTENT)
    def get_headers(self, max_headers: int = HEADERS_MAX) -> HeaderTable[str | list[str]]:
        """Return all headers by name, in any case and with `_` for `-`; in lower case when they are listed."""
        return HeaderTable(headers_of(self._request.response_lines[: checked_max_headers(max_headers)]))

    @permitted(*AFTER_CONTENT)
    def get_source(self) -> str:
        """Return who made the response: "service", "exit" (a plugin or the gateway) or "error"."""
        request = self._request
        if EXITED in request.ctx:
            return "exit"
        return "service" if request.upstream_response is not None else "error"

    @permitted(*BEFORE_HEAD)
    def set_status(self, status: int) -> None:
        """Replace the status."""
        self._check_not_sent()
        self._request.status = self._final(status)

    @permitted(*BEFORE_HEAD)
    def set_header(self, name: str, value: Value | list[Value]) -> None:
        """Replace a header."""
        self._set({name: value})

    @permitted(*BEFORE_HEAD)
    def add_header(self, name: str, value: Value) -> None:
        """Add a header line."""
        self._check_not_sent()
        self._request.response_lines += self._lines({name: value})

    @permitted(*BEFORE_HEAD)
    def clear_header(self, name: str) -> None:
        """Remove a header."""
        self._check_not_sent()
        request = self._request
        request.response_lines = without(request.response_lines, checked_text(name, "header name"))

    @permitted(*BEFORE_HEAD)
    def set_headers(self, headers: Headers) -> None:
        """Replace several headers."""
        self._set(checked_table(headers, "headers"))

    @permitted("body_filter")
    def get_raw_body(self) -> bytes | None:
        """Return the whole body with its last part; hold each part before that back, and return None."""
        request = self._request
        arg: BodyPart = request.ctx[ARG]
        held: list[bytes] = request.ctx.setdefault(BODY_BUFFER, [])
        held.append(arg.chunk or b"")
        arg.chunk = None
        if not arg.eof:
            return None
        arg.chunk = b"".join(held)
        del request.ctx[BODY_BUFFER]
        return arg.chunk

    @permitted("body_filter")
    def set_raw_body(self, body: bytes | str) -> None:
        """Replace the part that is passing, as the last; Content-Length stays, unless a header_filter clears it."""
        ctx = self._request.ctx
        part: BodyPart = ctx[ARG]
        part.chunk = checked_body(body) or _NO_TEXT
        part.eof = True
        ctx.pop(BODY_BUFFER, None)

    @permitted(*BEFORE_HEAD)
    def exit(self, status: int, body: Body = None, headers: Headers | None = None) -> NoReturn:
        """Answer now; the phase ends for every plugin, header_filter, body_filter and log run (R7).

        A mapping or a list becomes JSON.
        """
        self._check_not_sent()
        self._final(status)
        if not isinstance(body, bytes | str | Mapping | list | None):
            raise ApiError("body must be a nil, string or table")
        lines = self._given(headers)
        if isinstance(body, Mapping | list):
            body = encoded_json(body, "body encoding failed while flushing response")
            if not any(name.lower() == b"content-type" for name, _value in lines):
                lines.append((b"Content-Type", JSON.encode()))
        raise Exit(status, octets(body) if isinstance(body, str) else body, lines)

    @permitted(*BEFORE_HEAD)
    def error(self, status: int, message: str | None = None, headers: Headers | None = None) -> NoReturn:
        """Answer with an error, in the form that the client accepts: JSON, HTML, XML or plain text."""
        self._check_not_sent()
        _checked_status(status, _ERROR_MIN)
        if not isinstance(message, str | None):
            raise ApiError("message must be a nil or string")
        request = self._request
        content_type, body = error_body(accepted(request), request.id, message or status_message(status))
        raise Exit(status, body, [*self._given(headers), (b"Content-Type", content_type.encode())])

    def _final(self, status: int) -> int:
        """Return the status; the connection ends with one that its client takes for interim."""
        if _checked_status(status) < _FINAL_MIN:
            self._request.keep_alive = False
        return status

    def _set(self, headers: Mapping[str, Any]) -> None:
        self._check_not_sent()
        request = self._request
        lines = self._lines(headers)
        for name in {name for name, _value in lines}:
            request.response_lines = without(request.response_lines, name.decode())
        request.response_lines += lines

    def _given(self, headers: Headers | None) -> list[tuple[bytes, bytes]]:
        if not isinstance(headers, Mapping | None):
            raise ApiError("headers must be a nil or table")
        return self._lines(headers or {})

    def _lines(self, headers: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
        """Return headers as lines, but for those that are the gateway's own to write."""
        lines = []
        for name, value in headers.items():
            values = checked_header(name, value)
            match _key(name):
                case "transfer-encoding":
                    pass
                case "connection":
                    if any("close" in one.lower() for one in values):
                        self._request.keep_alive = False
                case _:
                    written = name.replace("_", "-").encode()
                    lines += [(written, octets(one)) for one in values]
        return lines

    def _check_not_sent(self) -> None:
        if self._request.header_sent:
            raise ApiError("headers have already been sent")


def status_message(status: int) -> str:
    """Return what Kong says of an error's status."""
    try:
        return MESSAGES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return f"The upstream server responded with {status}"


def accepted(request: Request) -> str:
    """Return what a client accepts, as far as it has said so."""
    accept = request.headers.get("accept")
    return ",".join(accept) if isinstance(accept, list) else accept or ""


def error_body(accept: str, request_id: bytes, message: str) -> tuple[str, bytes]:
    """Return content type and body of an error, as the client's Accept header asks, JSON unless it does."""
    content_type, form = _FORMS[_preferred(accept)]
    plain_id = request_id.decode()
    written = json.dumps(message, ensure_ascii=False)
    text = form.format(message=written, id=json.dumps(plain_id), text=message, plain_id=plain_id)
    return content_type, octets(text)


def _preferred(accept: str) -> str:
    """Return the first of the media types that a client wants most and that an error can be told in."""
    wishes = []
    for wish in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in wish.split(";"))
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        wishes.append((-float(quality) if quality.replace(".", "", 1).isdecimal() else 0.0, kind))
    wishes.sort(key=lambda wish: wish[0])
    return next((kind for _quality, kind in wishes if kind in _FORMS), "application/json")


def _key(name: str) -> str:
    return lua_lower(name).replace("_", "-")


def _checked_status(status: int, least: int = _STATUS_MIN) -> int:
    if not isinstance(status, int) or isinstance(status, bool):
        raise ApiError("code must be a number")
    if not least <= status <= _STATUS_MAX:
        raise ApiError(f"code must be a number between {least} and {_STATUS_MAX}")
    return status
