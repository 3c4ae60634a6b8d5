"""The correlation-id plugin: an id of the request in a header, the client's own when it sent one."""

from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import Field

from sim import __version__
from sim.document import Model
from sim.pdk import Kong
from sim.pdk.serializer import note

_ID: str = "correlation_id"


class CorrelationIdConfig(Model):
    """Configuration of the plugin.

    Attributes:
        header_name: of the header that carries the id to the upstream.
        generator: `uuid#counter`, one id for each worker with a running number; `uuid`, a new one each time; `tracker`,
            address and port that the client spoke to, pid, connection, request on the connection, and time.
        echo_downstream: the client gets the header too.
    """

    header_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "Kong-Request-ID"
    generator: Literal["uuid#counter", "uuid", "tracker"] = "uuid#counter"
    echo_downstream: bool = False


class CorrelationId:
    """The plugin."""

    NAME: ClassVar[str] = "correlation-id"
    PRIORITY: ClassVar[int] = 100_001
    VERSION: ClassVar[str] = __version__
    Config = CorrelationIdConfig

    def __init__(self) -> None:
        self._prefix = ""
        self._counter = 0

    def init_worker(self, kong: Kong) -> None:
        """Draw the worker's own id."""
        self._prefix = _uuid(kong)

    def access(self, kong: Kong, conf: CorrelationIdConfig) -> None:
        """Take the client's id over, or make one."""
        correlation_id = kong.request.get_header(conf.header_name)
        if not correlation_id:
            correlation_id = self._next(kong, conf.generator)
            kong.service.request.set_header(conf.header_name, correlation_id)
        kong.ctx.plugin[_ID] = correlation_id
        note(kong.ngx.ctx, _ID, correlation_id)

    def header_filter(self, kong: Kong, conf: CorrelationIdConfig) -> None:
        """Tell the client, also where the request came no further."""
        if conf.echo_downstream:
            correlation_id = kong.ctx.plugin.get(_ID) or kong.request.get_header(conf.header_name)
            kong.response.set_header(conf.header_name, correlation_id or self._next(kong, conf.generator))

    def _next(self, kong: Kong, generator: str) -> str:
        if generator == "uuid":
            return _uuid(kong)
        if generator == "tracker":
            return _track(kong)
        self._counter += 1
        return f"{self._prefix}#{self._counter}"


def _track(kong: Kong) -> str:
    connection = kong.request._request.connection  # noqa: SLF001 - connections are no part of the PDK
    address = connection.transport.get_extra_info("sockname")[0]
    where = f"{address}-{kong.request.get_port()}-{kong.ngx.worker.pid()}-{connection.number}-{connection.requests}"
    return f"{where}-{kong.ngx.now():.3f}"


def _uuid(kong: Kong) -> str:
    return str(UUID(bytes=kong.ngx.random_bytes(16), version=4))
