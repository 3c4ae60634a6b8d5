"""The opentelemetry plugin: joins the client's trace, decides on sampling, and exports (kong-semantics section 11).

In *access* it reads the trace headers, takes the client's trace and parent over, decides, and writes the headers for
the upstream (O11-O15). In *log*, where nothing may wait, it turns every sampled span of the global tracer into its
encoded copy and puts that into the queue (O17); the exporter's timer does the rest.
"""

from typing import Any, ClassVar, Final
from uuid import NAMESPACE_URL, uuid5

from kongtrace import ApiError, NoopTracer, Span, Tracer, otlp, propagation, tracing_context
from kongtrace.context import TracingContext, span_list
from kongtrace.propagation import PropagationContext
from kongtrace.queue import Binding, QueueParameters
from kongtrace.tracer import PROPAGATION_ONLY
from sim import __version__
from sim.config import OpenTelemetryConfig, Plugin, validate_plugin_config
from sim.exporter import Exporter
from sim.instrumentation import BALANCER
from sim.pdk import Kong

SPANS_QUEUE: Final = "traces"
MARKED_UNSAMPLED: Final = "should_sample"
"""Key of the plugin's request table that propagation-only mode leaves (O12)."""


class OpenTelemetry:
    """The plugin for one configured entity."""

    NAME: ClassVar[str] = "opentelemetry"
    PRIORITY: ClassVar[int] = 14
    VERSION: ClassVar[str] = __version__

    def __init__(self, entity: Plugin, worker: Any) -> None:
        config = validate_plugin_config(self.NAME, entity.config)
        assert isinstance(config, OpenTelemetryConfig)
        profile = worker.profile
        self._now = worker.runtime.now
        self._counts = worker.counts
        self._config = config
        self._propagation_profile = propagation.PROFILES[profile]
        self._params = propagation.get_plugin_params(
            {"propagation": config.propagation.model_dump(exclude_none=True), "header_type": config.header_type}
        )
        self._encoder = otlp.Encoder(otlp.KONG if profile == "kong" else otlp.SAFE)
        self._otel: Tracer | NoopTracer | None = None
        if config.traces_endpoint is not None:
            self._bind(entity, config.traces_endpoint, worker.exporter, worker.node_id)

    def _bind(self, entity: Plugin, url: str, exporter: Exporter, node_id: str) -> None:
        config = self._config
        resource = self._encoder.encode_resource(config.resource_attributes, instance_id=node_id, version=__version__)
        endpoint = exporter.endpoint(
            url,
            config.headers,
            resource,
            connect_timeout=config.connect_timeout,
            send_timeout=config.send_timeout,
            read_timeout=config.read_timeout,
        )
        name = f"{entity.id}:{SPANS_QUEUE}"
        tag = f"{self.NAME} plugin {entity.id}" + (f" ({entity.instance_name})" if entity.instance_name else "")
        parameters = QueueParameters.of({**config.queue.model_dump(), "name": name, "log_tag": tag})
        self._queue = exporter.queues.queue(name)
        self._binding = Binding(parameters, exporter.send, endpoint)
        # To Kong's queue an entry is a table, whose size it does not know (Q4, H27).
        self._sizeless = exporter.queues.profile.enforces_bytes is False and config.queue.max_bytes is not None

    def access(self, kong: Kong) -> None:
        """Propagate (O11)."""
        if self._config.traces_endpoint is None:
            return
        request = kong.ctx._request  # noqa: SLF001 - headers in bulk are no part of the PDK
        tracing = tracing_context(request.ctx)
        propagation.propagate(
            self._params,
            request.headers,
            self._join,
            kong,
            request.ctx,
            tracing,
            plugin=kong.ctx.plugin,
            tracing=tracing,
            log=self._log_of(kong),
            profile=self._propagation_profile,
        )

    def header_filter(self, kong: Kong) -> None:
        """Tell the client the trace id (O16)."""
        name = self._config.http_response_header_for_traceid
        if name is None:
            return
        ctx = kong.ctx._request.ctx  # noqa: SLF001 - see above
        trace_id = tracing_context(ctx).raw_trace_id
        spans = span_list(ctx)
        if trace_id is None and spans:
            trace_id = spans[0].trace_id
        if trace_id is not None:
            kong.response.add_header(name, trace_id.hex())

    def log(self, kong: Kong) -> None:
        """Put a copy of every sampled span into the queue (O17)."""
        if self._config.traces_endpoint is None:
            return
        request = kong.ctx._request  # noqa: SLF001 - see above
        encoded: list[Any] = []
        trace_id = tracing_context(request.ctx).raw_trace_id
        kong.tracing.process_span(self._copy, encoded, trace_id, request, kong)
        if not encoded:
            return
        queue = self._queue
        before = queue.enqueued + queue.rejected
        try:
            refused = queue.enqueue_many(encoded, self._binding, self._now(), log_phase=True)
        finally:
            request.handled += queue.enqueued + queue.rejected - before
        for error in refused:
            kong.log.err(f"Failed to enqueue span to log server: {error}")

    def _copy(self, span: Span, encoded: list[Any], trace_id: bytes | None, request: Any, kong: Kong) -> None:
        if span.should_sample is False:
            request.handled += 1
            self._counts.unsampled += 1
            return
        try:
            data = self._encoder.encode_span(span, trace_id)
        except ApiError as error:
            request.handled += 1
            self._counts.rejected += 1
            kong.log.err(f"Failed to enqueue span to log server: {error}")
            return
        encoded.append(memoryview(data) if self._sizeless else data)

    def _join(
        self, received: PropagationContext, kong: Kong, ctx: dict[str, Any], tracing: TracingContext
    ) -> PropagationContext:
        """Join the client's trace and decide (O12-O15)."""
        tracer = self._tracer(kong)
        spans = span_list(ctx)
        if not spans:
            root = tracer.start_span("root", {"attributes": {PROPAGATION_ONLY: True}})
            kong.ctx.plugin[MARKED_UNSAMPLED] = False
        else:
            root = spans[0]
        injected = tracing.unlinked_spans.get(BALANCER) or root
        if received.trace_id is not None:
            injected.trace_id = received.trace_id
            tracing.raw_trace_id = received.trace_id
        parent_id = received.span_id if received.span_id is not None else received.parent_id
        if parent_id is not None:
            root.parent_id = parent_id
        sampled = kong.ctx.plugin.get(MARKED_UNSAMPLED)
        if sampled is None:
            sampled = tracer.get_sampling_decision(received.should_sample, self._config.sampling_rate)
        tracer.set_should_sample(sampled)
        injected.should_sample = sampled
        tracing.flags = propagation.trace_flags(
            received, sampled=bool(sampled), log=self._log_of(kong), profile=self._propagation_profile
        )
        received.trace_id = injected.trace_id
        received.span_id = injected.span_id
        received.should_sample = sampled
        received.parent_id = injected.parent_id
        return received

    def _tracer(self, kong: Kong) -> Any:
        tracer = kong.tracing
        if isinstance(tracer, NoopTracer):
            if self._otel is None:
                self._otel = tracer.new("otel")
            return self._otel
        return tracer

    def _log_of(self, kong: Kong) -> Any:
        return kong.log._write  # noqa: SLF001 - level and message as they come


def node_id(seed: int) -> str:
    """Return the id of the node, `service.instance.id`: the same for all workers of a run (O19)."""
    return str(uuid5(NAMESPACE_URL, f"kongsim/{seed}"))
