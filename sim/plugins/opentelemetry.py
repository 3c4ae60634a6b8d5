"""The opentelemetry plugin: joins the client's trace, decides on sampling, and exports (kong-semantics section 11).

In *access* it reads the trace headers, takes the client's trace and parent over, decides, and writes the headers for
the upstream (O11-O15). In *log*, where nothing may wait, it turns every sampled span of the global tracer into its
encoded copy and puts that into the queue (O17), and the log records of the request into another one (O20); the
exporter's timers do the rest.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Final, Literal
from uuid import NAMESPACE_URL, uuid5

from pydantic import Field, model_validator

from kongtrace import ApiError, NoopTracer, Span, Tracer, otlp, propagation, tracing_context
from kongtrace.context import KONG_PHASE, TRACING_CONTEXT, TracingContext, span_list
from kongtrace.propagation import PropagationContext
from kongtrace.queue_parameters import Binding, QueueParameters
from kongtrace.sampler import sample
from kongtrace.tracer import PROPAGATION_ONLY
from sim import __version__
from sim.document import Model
from sim.errors import FieldError, shown
from sim.field import TIMEOUT_MS_MAX, HeaderName, HeaderValue, Many, Rate01, Url
from sim.instrumentation import BALANCER
from sim.pdk import Kong, QueueConfig
from sim.pdk.request import decoded_args
from sim.pdk.serializer import note
from sim.request import CTX_SHARED, EXITED, REQUEST, Request

SPANS_QUEUE: Final = "traces"
LOGS_QUEUE: Final = "logs"
MARKED_UNSAMPLED: Final = "should_sample"
"""Key of the plugin's request table that propagation-only mode leaves (O12)."""

_BEFORE_JOINING: Final = frozenset({"rewrite", "access"})
"""Kong phases in which a request may yet join the client's trace."""

_SHOULD_SAMPLE: Final = attrgetter("should_sample")

ExtractFormat = Literal["w3c", "b3", "jaeger", "ot", "datadog", "aws", "gcp", "instana"]
InjectFormat = Literal[ExtractFormat, "b3-single"]


class OpenTelemetryQueueConfig(QueueConfig):
    """A queue's parameters, with the batch size that the plugin has by default (kong-semantics O4)."""

    max_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 200


class Propagation(Model):
    """Which header formats are read, removed and written (kong-semantics X28); None is: not configured."""

    default_format: InjectFormat
    extract: Many[ExtractFormat] | None = None
    clear: Many[HeaderName] | None = None
    inject: Many[Literal[InjectFormat, "preserve"]] | None = None


class OpenTelemetryConfig(Model):
    """Configuration of the plugin (kong-semantics O1-O10); timeouts in ms.

    The deprecated `endpoint`, `batch_span_count` and `batch_flush_delay` are read into what replaced them (O1, Q27).
    """

    traces_endpoint: Url | None = None
    logs_endpoint: Url | None = None
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    resource_attributes: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    queue: OpenTelemetryQueueConfig = OpenTelemetryQueueConfig()
    connect_timeout: Annotated[int, Field(ge=0, le=TIMEOUT_MS_MAX)] = 1_000
    send_timeout: Annotated[int, Field(ge=0, le=TIMEOUT_MS_MAX)] = 5_000
    read_timeout: Annotated[int, Field(ge=0, le=TIMEOUT_MS_MAX)] = 5_000
    http_response_header_for_traceid: HeaderName | None = None
    header_type: Literal[InjectFormat, "preserve", "ignore"] = "preserve"
    sampling_rate: Rate01 | None = None
    propagation: Propagation = Propagation(default_format="w3c")

    @model_validator(mode="before")
    @classmethod
    def _replace_deprecated(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if "endpoint" in data:
            data.setdefault("traces_endpoint", data.pop("endpoint"))
        queue = dict(data["queue"]) if isinstance(data.get("queue"), dict) else {}
        for old, default, new, known in _LEGACY_QUEUE:
            if (value := data.pop(old, default)) != default:
                if type(value) is not int or value not in known:
                    expected = f"expected a whole number from {known[0]} to {known[-1]}"
                    raise FieldError(f"{expected}, not {shown(value)}", field=old)
                queue[new] = value
        return data | {"queue": queue} if queue else data


_LEGACY_QUEUE: Final = (
    ("batch_span_count", 200, "max_batch_size", range(1, 1_000_001)),
    ("batch_flush_delay", 3, "max_coalescing_delay", range(3_601)),
)


class OpenTelemetry:
    """The plugin."""

    NAME: ClassVar[str] = "opentelemetry"
    PRIORITY: ClassVar[int] = 14
    VERSION: ClassVar[str] = __version__
    Config = OpenTelemetryConfig

    def __init__(self) -> None:
        self._entities: dict[str, _Entity] = {}

    def configure(self, kong: Kong, configs: Mapping[str, OpenTelemetryConfig]) -> None:
        """Bind each entity to its queues."""
        self._entities = {entity_id: _Entity(kong, entity_id, config) for entity_id, config in configs.items()}
        kong.worker.provider.foretell = self._foretell

    def access(self, kong: Kong, conf: OpenTelemetryConfig) -> None:
        """Propagate (O11)."""
        if conf.traces_endpoint is not None:
            request = _request(kong)
            self._entities[_entity_id(request)].propagate(kong, request)

    def header_filter(self, kong: Kong, conf: OpenTelemetryConfig) -> None:
        """Tell the client the trace id (O16)."""
        name = conf.http_response_header_for_traceid
        if name is None:
            return
        ctx = _request(kong).ctx
        trace_id = tracing_context(ctx).raw_trace_id
        spans = span_list(ctx)
        if trace_id is None and spans:
            trace_id = spans[0].trace_id
        if trace_id is not None:
            kong.response.add_header(name, trace_id.hex())

    def log(self, kong: Kong, conf: OpenTelemetryConfig) -> None:
        """Put a copy of every sampled span into the queue, and of every log record into another (O17, O20)."""
        request = _request(kong)
        entity = self._entities[request.handler.entity_id]  # type: ignore[union-attr]  # it is this one that runs
        if conf.traces_endpoint is not None:
            entity.enqueue_spans(kong, request)
        if conf.logs_endpoint is not None:
            entity.enqueue_logs(kong, request)

    def _foretell(self, ctx: dict[str, Any]) -> tuple[bytes, bool] | None:
        """Return what trace id and decision of a request become in access (`kongtrace.otel`); None once they are."""
        request: Request | None = ctx.get(REQUEST)
        if request is None or request.plan is None or ctx.get(KONG_PHASE) not in _BEFORE_JOINING or EXITED in ctx:
            return None
        for handler in request.plan.access:
            if handler.name == self.NAME:
                return self._entities[handler.entity_id].foretell(request)
        return None


def _request(kong: Kong) -> Request:
    return kong.request._request  # noqa: SLF001 - headers in bulk and the request's accounts are no part of the PDK


def _entity_id(request: Request) -> str:
    assert request.handler is not None
    return request.handler.entity_id


class _Entity:
    """What one configured entity keeps in a worker."""

    def __init__(self, kong: Kong, entity_id: str, config: OpenTelemetryConfig) -> None:
        worker = kong.worker
        self._id = entity_id
        self._now = worker.runtime.now
        self._provider = worker.provider
        self._counts = worker.counts
        self._config = config
        self._node_id = worker.node_id
        self._propagation_profile = propagation.PROFILES[worker.profile]
        self._params = propagation.get_plugin_params(
            {"propagation": config.propagation.model_dump(exclude_none=True), "header_type": config.header_type}
        )
        self._encoder = otlp.Encoder(otlp.KONG if worker.profile == "kong" else otlp.SAFE)
        self._otel: Tracer | NoopTracer | None = None
        self._templates = any("$(" in value for value in config.resource_attributes.values())
        self._exporter = worker.exporter
        names = {entity.id: entity.instance_name for entity in worker.configuration.plugins}
        self._tag = f"{OpenTelemetry.NAME} plugin {entity_id}" + (
            f" ({names[entity_id]})" if names.get(entity_id) else ""
        )
        # To Kong's queue an entry is a table, whose size it does not know (Q4, H27).
        self._sizeless = self._exporter.queues.profile.enforces_bytes is False and config.queue.max_bytes is not None
        if config.traces_endpoint is not None:
            self._spans_binding = self._bind(config.traces_endpoint, SPANS_QUEUE, config.resource_attributes)
        if config.logs_endpoint is not None:
            self._logs_binding = self._bind(config.logs_endpoint, LOGS_QUEUE, config.resource_attributes)
            kong.records.wanted = True

    def _bind(self, url: str, queue: str, attributes: Mapping[str, str]) -> Binding:
        config = self._config
        endpoint = self._exporter.endpoint(
            url,
            config.headers,
            self._encoder.encode_resource(attributes, instance_id=self._node_id, version=__version__),
            connect_timeout=config.connect_timeout,
            send_timeout=config.send_timeout,
            read_timeout=config.read_timeout,
            encode=otlp.encode_traces if queue == SPANS_QUEUE else otlp.encode_logs,
        )
        name = f"{self._id}:{queue}"
        parameters = QueueParameters.of({**config.queue.model_dump(), "name": name, "log_tag": self._tag})
        return Binding(parameters, self._exporter.send, endpoint)

    def _render(self, kong: Kong, request: Request) -> None:
        """Fill the resource attributes' templates in, with the first request that exports (O19, L6)."""
        self._templates = False
        try:
            attributes = rendered(self._config.resource_attributes, request)
        except TemplateError as error:
            kong.log.warn(f"failed to render resource attributes: {error}")
            return
        if self._config.traces_endpoint is not None:
            self._spans_binding = self._bind(self._config.traces_endpoint, SPANS_QUEUE, attributes)
        if self._config.logs_endpoint is not None:
            self._logs_binding = self._bind(self._config.logs_endpoint, LOGS_QUEUE, attributes)

    def propagate(self, kong: Kong, request: Request) -> None:
        """Read, decide, write (O11)."""
        tracing, plugin = tracing_context(request.ctx), kong.ctx.plugin
        formats = propagation.propagate(
            self._params,
            request.headers,
            self._join,
            kong,
            request.ctx,
            tracing,
            plugin,
            plugin=plugin,
            tracing=tracing,
            log=kong.log.write,
            profile=self._propagation_profile,
        )
        if formats is not None:
            note(request.ctx, "trace_id", formats)

    def foretell(self, request: Request) -> tuple[bytes, bool] | None:
        """Return what `propagate` will find and decide; nothing is changed. None: it has done so, or will not."""
        tracing = tracing_context(request.ctx)
        if self._config.traces_endpoint is None or tracing.flags is not None or tracing.raw_trace_id is None:
            return None
        try:
            received = propagation.extract(
                self._params, request.headers, plugin={}, log=_silent, profile=self._propagation_profile
            )
        except propagation.UnguardedError:  # the request will fail of it
            return None
        trace_id = received.trace_id or tracing.raw_trace_id
        rate = self._config.sampling_rate
        rate = self._provider.sampling_rate if rate is None else rate
        return trace_id, received.should_sample is not False and bool(sample(trace_id, rate).sampled)

    def enqueue_spans(self, kong: Kong, request: Request) -> None:
        """Enqueue a copy of every sampled span (O17)."""
        spans: list[Span] = []
        kong.tracing.process_span(spans.append)
        sampled = spans
        if not all(map(_SHOULD_SAMPLE, spans)):
            sampled = [span for span in spans if span.should_sample is not False]
        tracing: TracingContext | None = request.ctx.get(TRACING_CONTEXT)
        trace_id = tracing.raw_trace_id if tracing is not None else None
        rejected: list[ApiError] = []
        encoded: Sequence[object]
        encoded = self._encoder.encode_spans(sampled, trace_id, rejected)
        if len(encoded) < len(spans):
            self._counts.unsampled += len(spans) - len(sampled)
            self._counts.rejected += len(rejected)
            self._tell_refused(kong, "span", rejected)
        queue = self._exporter.queues.queue(self._spans_binding.parameters.name)
        before = queue.enqueued + queue.rejected
        try:
            if encoded:
                if self._templates:
                    self._render(kong, request)
                if self._sizeless:
                    encoded = list(map(memoryview, encoded))  # type: ignore[arg-type]  # bytes, each
                refused = queue.enqueue_many(encoded, self._spans_binding, self._now(), log_phase=True)
                if refused:
                    self._tell_refused(kong, "span", refused)
        finally:
            handled = len(spans) - len(encoded) + queue.enqueued + queue.rejected - before
            if request.handled:  # what another exporter has taken care of before is what this one saw first
                self._counts.copied_again += min(request.handled, handled)
                handled = max(request.handled, handled)
            request.handled = handled

    def _tell_refused(self, kong: Kong, what: str, errors: Iterable[object]) -> None:
        for error in errors:
            kong.log.err(f"Failed to enqueue {what} to log server: {error}")

    def enqueue_logs(self, kong: Kong, request: Request) -> None:
        """Enqueue the log records of the request, and those of the worker that belong to none, as far as there is room.

        The newest are dropped, unlike spans (O20).
        """
        tracing = tracing_context(request.ctx)
        of_request, of_worker = kong.records.take(request.ctx)
        if not (of_request or of_worker):
            return
        if self._templates:
            self._render(kong, request)
        encoded = [
            *self._encode_logs(kong, of_request, tracing.raw_trace_id, tracing.flags),
            *self._encode_logs(kong, of_worker, None, None),
        ]
        queue = self._exporter.other_queues.queue(self._logs_binding.parameters.name)
        dropped = 0
        for entry in encoded:
            if queue.can_enqueue(entry):
                _, error = queue.enqueue(entry, self._logs_binding, self._now(), log_phase=True)
                if error is not None:
                    self._tell_refused(kong, "log record", [error])
            else:
                dropped += 1
        if dropped:
            kong.log.notice(f"the log queue is full, {dropped} log records were dropped")

    def _encode_logs(
        self, kong: Kong, logs: Iterable[dict[str, Any]], trace_id: bytes | None, flags: int | None
    ) -> Iterator[bytes | memoryview]:
        """Give log records as they are queued; one that cannot be written is no reason to lose the others."""
        for log in logs:
            try:
                [record] = self._encoder.prepare_logs([log], trace_id, flags)
                encoded = otlp.encode_log(record)
                yield memoryview(encoded) if self._sizeless else encoded
            except ApiError as error:
                self._tell_refused(kong, "log record", [error])

    def _join(
        self,
        received: PropagationContext,
        kong: Kong,
        ctx: dict[str, Any],
        tracing: TracingContext,
        plugin: dict[str, Any],
    ) -> PropagationContext:
        """Join the client's trace and decide (O12-O15)."""
        tracer = self._tracer(kong)
        spans = span_list(ctx)
        if not spans:
            root = tracer.start_span("root", {"attributes": {PROPAGATION_ONLY: True}})
            plugin[MARKED_UNSAMPLED] = False
        else:
            root = spans[0]
        injected = tracing.unlinked_spans.get(BALANCER) or root
        if received.trace_id is not None:
            injected.trace_id = received.trace_id
            tracing.raw_trace_id = received.trace_id
        parent_id = received.span_id if received.span_id is not None else received.parent_id
        if parent_id is not None:
            root.parent_id = parent_id
        sampled = plugin.get(MARKED_UNSAMPLED)
        if sampled is None:
            sampled = tracer.get_sampling_decision(received.should_sample, self._config.sampling_rate)
        tracer.set_should_sample(sampled)
        injected.should_sample = sampled
        tracing.flags = propagation.trace_flags(
            received, sampled=bool(sampled), log=kong.log.write, profile=self._propagation_profile
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


def _silent(_level: str, _message: str) -> None:
    """Say nothing of what is malformed: whoever reads it in earnest does."""


# Templates of resource attributes: text with `$(headers.x-team or "none")` in it.


class TemplateError(ValueError):
    """A template that cannot be filled in."""


_EXPRESSION: Final = re.compile(r"\$\((.*?)\)")
_ALTERNATIVE: Final = re.compile(r"""\s*or\s*["'$]""")  # which somebody meant to be one, outside
_SOURCES: Final = ("headers", "query_params", "uri_captures", "shared")
_TERM: Final = re.compile(
    rf"""\s*(?:({"|".join(_SOURCES)})((?:\.[\w-]+|\[(?:"[^"]*"|'[^']*'|\d+)\])+)"""
    r"""|"([^"]*)"|'([^']*)')\s*(or\b|$)"""
)
_STEP: Final = re.compile(r"""\.([\w-]+)|\["([^"]*)"\]|\['([^']*)'\]|\[(\d+)\]""")


def rendered(attributes: Mapping[str, str], request: Request) -> dict[str, str]:
    """Return attributes with their templates filled in from a request (O19).

    `$(headers.name)`, `$(query_params.name)`, `$(uri_captures.name)` and `$(shared.name)`, or `["name"]` in the place
    of `.name`; `or` gives what is taken when there is none, a text in quotes for example. What is not there is empty.

    Raises:
        TemplateError: an expression is something else.
    """
    sources: dict[str, Callable[[], Any]] = {
        "headers": lambda: dict(request.headers.items()),
        "query_params": lambda: _query_params(request),
        "uri_captures": lambda: _uri_captures(request),
        "shared": lambda: request.ctx.get(CTX_SHARED, {}),
    }

    def value(match: re.Match[str]) -> str:
        found = _evaluated(match[1], sources)
        return "" if found is None else str(found)

    return {name: _EXPRESSION.sub(value, text) for name, text in attributes.items()}


def flaw(text: str) -> str | None:
    """Return what is wrong with what looks like a template in a resource attribute; None: nothing is."""
    for template in _EXPRESSION.finditer(text):
        try:
            _evaluated(template[1], dict.fromkeys(_SOURCES, dict))
        except TemplateError as error:
            return f"{error}: all resource attributes are exported as they are written"
        if _ALTERNATIVE.match(text, template.end()):
            return f"the text after {template[0]} is exported: {text[template.end() :]!r}"
    _, unclosed, rest = _EXPRESSION.sub("", text).partition("$(")
    return f"{unclosed}{rest} is not closed: it is exported as it is written" if unclosed else None


def _query_params(request: Request) -> dict[str, Any]:
    return dict(decoded_args(request.target.partition(b"?")[2].decode("latin-1")))


def _uri_captures(request: Request) -> dict[str, str]:
    captures = request.match.captures if request.match is not None else None
    if captures is None:
        return {}
    return {**{str(number): text for number, text in enumerate(captures.unnamed, 1)}, **captures.named}


def _evaluated(expression: str, sources: Mapping[str, Callable[[], Any]]) -> Any:
    position = 0
    found: Any = None
    while True:
        term = _TERM.match(expression, position)
        if term is None:
            raise TemplateError(f"$({expression}) is no template")
        if found is None:
            found = (
                _looked_up(sources[term[1]](), term[2])
                if term[1]
                else next(t for t in term.group(3, 4) if t is not None)
            )
        if not term[5]:
            return found
        position = term.end()


def _looked_up(table: Any, path: str) -> Any:
    for step in _STEP.finditer(path):
        key = next(group for group in step.groups() if group is not None)
        if not isinstance(table, Mapping):
            return None
        table = table.get(key, table.get(key.lower().replace("_", "-")))
    return table[0] if isinstance(table, list) and table else table


def node_id(seed: int) -> str:
    """Return the id of the node, `service.instance.id`: the same for all workers of a run (O19)."""
    return str(uuid5(NAMESPACE_URL, f"kongsim/{seed}"))
