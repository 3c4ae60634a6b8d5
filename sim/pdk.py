"""The PDK: what a plugin's handler is given, in the shape of Kong's Plugin Development Kit.

One `Kong` serves a worker; what it says is about the request that runs now, as Kong's global `kong` does. Header names
are case-insensitive; values are text.
"""

from collections.abc import Callable, Mapping
from typing import Any

from kongtrace import Execution, NoopTracer, Tracer, TracerProvider
from sim.request import REQUEST, Request
from sim.timers import Timers


class Exit(Exception):  # noqa: N818 - it is the end of a request, not an error
    """A handler has answered the request itself."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers


class _Part:
    """A part of the PDK that speaks of the running request."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    @property
    def _request(self) -> Request:
        ctx = self._execution.ctx
        if ctx is None or REQUEST not in ctx:
            raise RuntimeError("no request found")
        request: Request = ctx[REQUEST]
        return request


class ClientRequest(_Part):
    """`kong.request`: what the client asked."""

    def get_method(self) -> str:
        """Return the method, in capitals."""
        return self._request.method

    def get_path(self) -> str:
        """Return the path, without query."""
        return self._request.path

    def get_host(self) -> str:
        """Return the host, in lower case and without port."""
        return self._request.host

    def get_header(self, name: str) -> str | None:
        """Return a header's first value, or None."""
        value = self._request.headers.get(name.lower())
        return value[0] if isinstance(value, list) else value

    def get_headers(self) -> dict[str, str | list[str]]:
        """Return all headers by name in lower case."""
        return dict(self._request.headers.items())


class Response(_Part):
    """`kong.response`: what the client gets."""

    def exit(self, status: int, body: bytes | str = b"", headers: Mapping[str, str] | None = None) -> None:
        """Answer now; no later access handler runs."""
        raise Exit(status, body.encode() if isinstance(body, str) else body, headers or {})

    def get_status(self) -> int:
        """Return the status."""
        return self._request.status

    def set_header(self, name: str, value: str) -> None:
        """Replace a header."""
        self.clear_header(name)
        self.add_header(name, value)

    def add_header(self, name: str, value: str) -> None:
        """Add a header line."""
        self._request.response_lines.append((name.encode("latin-1"), value.encode("utf-8", "surrogateescape")))

    def clear_header(self, name: str) -> None:
        """Remove a header."""
        key = name.lower().encode("latin-1")
        request = self._request
        request.response_lines = [line for line in request.response_lines if line[0].lower() != key]


class ServiceRequest(_Part):
    """`kong.service.request`: what the upstream gets."""

    def set_header(self, name: str, value: str) -> None:
        """Replace a header."""
        self._request.headers.set(name, value)

    def clear_header(self, name: str) -> None:
        """Remove a header."""
        self._request.headers.clear(name)


class Service:
    """`kong.service`."""

    def __init__(self, execution: Execution) -> None:
        self.request = ServiceRequest(execution)


class Client(_Part):
    """`kong.client`: who asks."""

    def get_ip(self) -> str:
        """Return the address that the connection comes from."""
        return self._request.connection.peer

    get_forwarded_ip = get_ip


class Ctx(_Part):
    """`kong.ctx`: tables that live as long as the request."""

    plugin_id: str = ""

    @property
    def shared(self) -> dict[str, Any]:
        """The table that all plugins share."""
        shared: dict[str, Any] = self._request.ctx.setdefault("KONG_SHARED", {})
        return shared

    @property
    def plugin(self) -> dict[str, Any]:
        """The running plugin's own table."""
        tables: dict[str, dict[str, Any]] = self._request.ctx.setdefault("KONG_PLUGIN_CTX", {})
        return tables.setdefault(self.plugin_id, {})


class Log:
    """`kong.log`: a line in the error log."""

    def __init__(self, write: Callable[[str, str], None]) -> None:
        self._write = write

    def __call__(self, message: str) -> None:
        """Log at level notice."""
        self._write("notice", message)

    def debug(self, message: str) -> None:
        """Log at level debug."""
        self._write("debug", message)

    def info(self, message: str) -> None:
        """Log at level info."""
        self._write("info", message)

    notice = __call__

    def warn(self, message: str) -> None:
        """Log at level warn."""
        self._write("warn", message)

    def err(self, message: str) -> None:
        """Log at level error."""
        self._write("error", message)


class Kong:
    """`kong`.

    Args:
        provider: of the worker's tracers.
        timers: of the worker.
    """

    def __init__(self, provider: TracerProvider, timers: Timers) -> None:
        execution = provider.execution
        self._provider = provider
        self.request = ClientRequest(execution)
        self.response = Response(execution)
        self.service = Service(execution)
        self.client = Client(execution)
        self.ctx = Ctx(execution)
        self.log = Log(provider.log)
        self.timer = timers

    @property
    def tracing(self) -> Tracer | NoopTracer:
        """The global tracer."""
        return self._provider.global_tracer
