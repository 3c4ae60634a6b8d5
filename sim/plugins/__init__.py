"""The bundled plugins, by name."""

from collections.abc import Mapping
from typing import Any, Final

from sim.plugins.correlation_id import CorrelationId
from sim.plugins.opentelemetry import OpenTelemetry
from sim.plugins.prometheus import Prometheus
from sim.plugins.request_termination import RequestTermination
from sim.plugins.synthetic import Synthetic
from sim.plugins.trace_exporter import TraceExporter

BUNDLED: Final[Mapping[str, Any]] = {
    plugin.NAME: plugin
    for plugin in (CorrelationId, OpenTelemetry, Prometheus, RequestTermination, Synthetic, TraceExporter)
}
