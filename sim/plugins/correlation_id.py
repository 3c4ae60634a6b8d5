"""The correlation-id plugin: an id of the request in a header, the client's own when it sent one."""

from typing import Any, ClassVar
from uuid import UUID

from sim import __version__
from sim.config import CorrelationIdConfig, Plugin, validate_plugin_config
from sim.pdk import Kong

_ID: str = "correlation_id"


class CorrelationId:
    """The plugin for one configured entity."""

    NAME: ClassVar[str] = "correlation-id"
    PRIORITY: ClassVar[int] = 100_001
    VERSION: ClassVar[str] = __version__

    def __init__(self, entity: Plugin, worker: Any) -> None:
        config = validate_plugin_config(self.NAME, entity.config)
        assert isinstance(config, CorrelationIdConfig)
        self._config = config
        self._random_bytes = worker.runtime.random_bytes
        self._prefix = self._uuid()
        self._counter = 0

    def access(self, kong: Kong) -> None:
        """Take the client's id over, or make one."""
        name = self._config.header_name
        correlation_id = kong.request.get_header(name)
        if correlation_id is None:
            correlation_id = self._next()
            kong.service.request.set_header(name, correlation_id)
        kong.ctx.plugin[_ID] = correlation_id

    def header_filter(self, kong: Kong) -> None:
        """Tell the client."""
        correlation_id = kong.ctx.plugin.get(_ID)
        if self._config.echo_downstream and correlation_id is not None:
            kong.response.set_header(self._config.header_name, correlation_id)

    def _next(self) -> str:
        if self._config.generator == "uuid":
            return self._uuid()
        self._counter += 1
        return f"{self._prefix}#{self._counter}"

    def _uuid(self) -> str:
        return str(UUID(bytes=self._random_bytes(16), version=4))
