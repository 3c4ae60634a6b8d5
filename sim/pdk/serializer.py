"""`kong.log.serialize`: what Kong's logging plugins write of a request, as JSON, and what plugins have set in it.

Times in ms; a time that there is none of is as Kong writes it: 0, and -1 of a service that was not asked. The trace id
stands there in every format in which a tracing plugin has written it (kong-semantics X25, X31).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from kongtrace import ApiError, Execution
from kongtrace.lua import lua_text
from sim.pdk.part import IN_REQUEST, Part, permitted
from sim.request import Request, Try
from sim.table import HeaderTable, Table

if TYPE_CHECKING:
    from sim.pdk import Kong

VALUES: Final = "serialize_values"
"""Key of what plugins have set, in the order in which they have; Kong's."""

WORKSPACE: Final = "0dc6f45b-8f8d-40d2-a504-473544ee190b"
"""Id of the workspace, `default`, that Kong has where a file declares none."""

MODES: Final = ("set", "add", "replace")

_REDACTED: Final = ("authorization", "proxy-authorization")
_SOURCES: Final = {"service": "upstream", "exit": "kong", "error": "kong"}
_SCALAR: Final = (str, int, float)
_NS_PER_MS: Final = 1_000_000
_SETTING: Final = tuple(phase for phase in IN_REQUEST if phase not in ("error", "admin_api"))


class Serializer(Part):
    """The part of `kong.log` that serializes.

    Args:
        execution: what the worker runs.
        kong: the other parts of the PDK.
    """

    _path = "kong.log"

    def __init__(self, execution: Execution, kong: "Kong") -> None:
        super().__init__(execution)
        self._kong = kong

    @permitted("log")
    def serialize(self) -> Table:
        """Return what Kong's logging plugins write of the request, as a table for JSON, with what plugins have set."""
        request = self._request
        entry: Table = _plain({name: part for name, part in _entry(self._kong, request).items() if part is not None})
        for key, value, mode in request.ctx.get(VALUES, ()):
            _set(entry, key, _plain(value), mode)
        return entry

    @permitted(*_SETTING)
    def set_serialize_value(self, key: str, value: Any, options: Mapping[str, Any] | None = None) -> None:
        """Set what `serialize` gives for a key; a dot in it leads into a table, and None removes.

        Args:
            key: such as `tenant.id`.
            value: what JSON can hold; looked at by `serialize`.
            options: `{"mode": "add"}` sets it only where there is nothing, `"replace"` only where there is something.

        Raises:
            ApiError: the key is no text, or there is no such mode.
        """
        if not isinstance(key, str):
            raise ApiError("key must be a string")
        mode = (options or {}).get("mode") or "set"
        if mode not in MODES:
            raise ApiError("mode must be 'set', 'add' or 'replace'")
        note(self._request.ctx, key, value, mode)


def note(ctx: dict[str, Any], key: str, value: Any, mode: str = "set") -> None:
    """Set a value of the serialized log of a request."""
    ctx.setdefault(VALUES, []).append((key, value, mode))


def _entry(kong: "Kong", request: Request) -> dict[str, Any]:
    ctx = request.ctx
    uri = request.target.decode("latin-1")
    return {
        "request": {
            "id": request.id.decode(),
            "uri": uri,
            "url": f"http://{request.host}:{request.connection.port}{uri}",
            "method": request.method,
            "querystring": kong.request.get_query(),
            "headers": _redacted(kong.request.get_headers()),
            "size": _size(request),
        },
        "upstream_uri": _upstream_uri(request),
        "upstream_status": _upstream_status(request),
        "response": {
            "status": request.status,
            "headers": kong.response.get_headers(),
            "size": request.connection.sent_bytes,
        },
        "latencies": {
            "request": kong.ngx.time_ns() // _NS_PER_MS - request.started_ns // _NS_PER_MS,
            "kong": ctx.get("KONG_PROXY_LATENCY", ctx.get("KONG_RESPONSE_LATENCY", 0)),
            "proxy": ctx.get("KONG_WAITING_TIME", -1),
            "receive": ctx.get("KONG_RECEIVE_TIME", 0),
        },
        "tries": [_try(attempt) for attempt in request.tries],
        "route": kong.router.get_route(),
        "service": kong.router.get_service(),
        "client_ip": request.client_ip,
        "started_at": kong.request.get_start_time(),
        "source": _SOURCES[kong.response.get_source()],
        "workspace": WORKSPACE,
        "workspace_name": "default",
    }


def _redacted(headers: HeaderTable[str | list[str]]) -> HeaderTable[str | list[str]]:
    headers.update({name: "REDACTED" for name in _REDACTED if name in headers})
    return headers


def _size(request: Request) -> int:
    """Return the bytes of a request: its head, and its body without the frames of chunks."""
    head = len(request.request_line) + sum(len(name) + len(value) + 4 for name, value in request.lines) + 4
    return head + request.body_bytes


def _upstream_uri(request: Request) -> str:
    if request.match is None:
        return ""
    path, query = request.match.upstream_path, request.target.partition(b"?")[2]
    if (changed := request.outgoing) is not None:
        path, query = changed.path or path, query if changed.query is None else changed.query
    return (path + b"?" + query if query else path).decode("latin-1")


def _upstream_status(request: Request) -> str:
    """Return the statuses of all tries, as nginx lists them."""
    answer = request.upstream_response
    statuses = [str(attempt.code) for attempt in request.tries if attempt.state is not None]
    return ", ".join([*statuses, str(answer[0])] if answer is not None else statuses)


def _try(attempt: Try) -> dict[str, Any]:
    told: dict[str, Any] = {
        "ip": attempt.address,
        "port": attempt.port,
        "balancer_start": attempt.start_ns // _NS_PER_MS,
        "balancer_start_ns": attempt.start_ns,
        "balancer_latency": attempt.latency_ns // _NS_PER_MS,
        "balancer_latency_ns": attempt.latency_ns,
    }
    return told if attempt.state is None else told | {"state": attempt.state, "code": attempt.code}


def _plain(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Return a copy of a value that JSON can hold.

    Raises:
        ApiError: it cannot hold it.
    """
    if value is None or isinstance(value, _SCALAR):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if id(value) not in above:
        above = (*above, id(value))
        if isinstance(value, (list, tuple)):
            return [_plain(inner, above) for inner in value]
        if isinstance(value, (dict, Mapping)) and all(map(_is_key, value)):
            # Most are text or numbers, and need no copy.
            return Table(
                {
                    key: inner if inner is None or isinstance(inner, _SCALAR) else _plain(inner, above)
                    for key, inner in value.items()
                }
            )
    allowed = "a non-self-referencial table containing numbers, string and booleans"
    raise ApiError(f"value must be nil, a number, string, boolean or {allowed}")


def _is_key(key: object) -> bool:
    return isinstance(key, _SCALAR)


def _set(entry: Table, key: str, value: Any, mode: str) -> None:
    *above, last = key.split(".")
    table: Any = entry
    for step in above:
        if table.get(step) is None:
            if mode == "replace":
                return
            table[step] = Table()
        table = table[step]
        if not isinstance(table, dict):
            what = f"Subkey '{step}' is not a table. It's {lua_text(table)}"
            raise ApiError(f"The key '{key}' could not be used as a serialize value. {what}")
    is_there = table.get(last) is not None
    if mode != "set" and is_there != (mode == "replace"):
        return
    if value is None:
        table.pop(last, None)
    else:
        table[last] = value
