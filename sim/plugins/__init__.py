"""The bundled plugins, by name."""

from collections.abc import Mapping
from typing import Final

from sim.plugin import PluginClass
from sim.plugins.correlation_id import CorrelationId
from sim.plugins.opentelemetry import OpenTelemetry

BUNDLED: Final[Mapping[str, PluginClass]] = {plugin.NAME: plugin for plugin in (CorrelationId, OpenTelemetry)}
