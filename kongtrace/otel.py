"""OpenTelemetry's tracing API on Kong's spans: instrumentation made for OpenTelemetry runs unchanged in a worker.

    from kongtrace import otel
    opentelemetry.trace.set_tracer_provider(otel.TracerProvider())

A tracer from here starts spans with the global tracer (:data:`kongtrace.tracing`), so they come from the worker's
pools, stand in the list of the request they belong to, are exported with it and released at its end, and a checked
provider watches them. Both lines may run before the fork: tracers follow the global tracer to the provider that their
worker uses. Where that tracer is the no-op one, or the phase permits no spans (kong-semantics T8), spans do not record.

Theory of operation.

*Parent and request.* Which span is current is OpenTelemetry's affair, kept in `contextvars`, so it follows a task
through every await. A span remembers the request that it belongs to: a child joins the request of its parent, whichever
request the worker runs at that moment. Where no span of OpenTelemetry is current, the parent is the active span of the
running request, or what the topmost of OpenTelemetry's above it is below: those are current in another task.
A context given expressly, with no span in it, starts a trace of its own (OpenTelemetry specification, Trace API,
"Determining the Parent Span from a Context"). A span that ``start_as_current_span`` makes current becomes Kong's active
span too, if its request is the one that runs, so that the gateway's own spans go below it.

*Outside requests.* A span that has no parent here and starts while no request runs begins a trace of its own, when
there is somebody to take it: ``process`` gets each sampled span once the last open span of the trace has ended; then
all are released. The worker executes such a trace only within the calls of this API: nobody else can tell which of
several is whose, so that Kong's API sees none of them. While ``process`` is at work no span is recorded: it would be
processed too, and so on without end.

*Ended.* What is done to a span after its end is ignored and logged; a checked provider reports it.

*Amiss.* No call raises that does not raise in opentelemetry-sdk: what cannot be kept is logged and left out.

OTLP as Kong writes it has no place for some of what the API takes, which goes where the specification puts it for other
formats: the scope into the attributes ``otel.scope.name`` and ``otel.scope.version``, the description of a status into
``otel.status_description``. Links, which Kong's spans have not (L2), stand among the events (:mod:`kongtrace.event`).

Needs the extra ``kongsim[otel]`` (opentelemetry-api); without it the import raises
:class:`~kongtrace.errors.KongTraceError`.
"""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from functools import wraps
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry.semconv.attributes.exception_attributes import (
    EXCEPTION_ESCAPED,
    EXCEPTION_STACKTRACE,
    EXCEPTION_TYPE,
)
from opentelemetry.semconv.attributes.otel_attributes import (
    OTEL_SCOPE_NAME,
    OTEL_SCOPE_VERSION,
    OTEL_STATUS_DESCRIPTION,
)

from kongtrace.checked import CheckedProvider, CheckedSpan
from kongtrace.context import KONG_PHASE, TRACING_CONTEXT, Context, Execution
from kongtrace.errors import ApiError, KongTraceError
from kongtrace.event import LINK_EVENT, Link
from kongtrace.global_tracer import GlobalTracer, tracing
from kongtrace.lua import is_number
from kongtrace.phase import PHASES, Phase
from kongtrace.span import NOOP_SPAN, STATUS_ERROR, STATUS_OK, AnySpan, line
from kongtrace.span import Span as KongSpan
from kongtrace.tracer import leave_ended

try:
    from opentelemetry import context as context_api
    from opentelemetry import trace
    from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
    from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
except ImportError as error:
    raise KongTraceError("kongtrace.otel needs opentelemetry-api: install kongsim[otel]") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from opentelemetry.util.types import Attributes, AttributeValue

    from kongtrace.provider import TracerProvider as KongProvider

    Arguments = tuple[
        str, context_api.Context | None, SpanKind, Attributes, Sequence[trace.Link] | None, int | None, bool, bool
    ]

F = TypeVar("F", bound="Callable[..., Any]")

CONTENT, TIMER = PHASES["content"], PHASES["timer"]

_KINDS = {kind: kind.value + 1 for kind in SpanKind}
"""Kong counts the kinds as OTLP does, from 1 (S1)."""

_NAMELESS = "unnamed"
_PLAIN = frozenset((str, bool, int, float))
_INTERNAL = SpanKind.INTERNAL
_Context = context_api.Context
_SPAN_KEY = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, context_api.Context())))
"""Where a context keeps its span: reading and writing it here saves six of the API's calls for each span."""

_PROCESSING = context_api.create_key("kongtrace-processing")
_IN_PROCESSOR = _Context({_PROCESSING: True, context_api._SUPPRESS_INSTRUMENTATION_KEY: True})  # noqa: SLF001 - as the sdk
"""What is current in ``process``, and in the tasks that it makes."""

_SAMPLED, _NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
_NO_STATE = TraceState()
_REMOTENESS_KNOWN, _REMOTE = 0x100, 0x200
"""What a link's flags have beside those of W3C (OTLP, `SpanFlags`)."""


def _context_calls() -> tuple[
    Callable[[], context_api.Context], Callable[[context_api.Context], Any], Callable[[Any], None]
]:
    """What reads, attaches and detaches the current context.

    That is the context variable itself, at half the cost of the API's functions, unless the user has chosen another
    implementation of the context.
    """
    if type(getattr(context_api, "_RUNTIME_CONTEXT", None)) is not ContextVarsRuntimeContext:
        return context_api.get_current, context_api.attach, context_api.detach
    token = context_api.attach(context_api.Context())
    context_api.detach(token)
    variable = token.var
    return variable.get, variable.set, variable.reset


_current_context, _attach, _detach = _context_calls()


class TracerProvider(trace.TracerProvider):
    """What `opentelemetry.trace.set_tracer_provider` takes.

    Args:
        process: called with each sampled span of a trace that began outside any request, when the trace is complete;
            what it keeps must be a copy. Spans that start in it, or in a task that it makes, do not record. Left out,
            no span outside requests does.
        handle: the global tracer that is followed.
    """

    def __init__(self, process: Callable[[KongSpan], object] | None = None, handle: GlobalTracer = tracing) -> None:
        self.process = process
        self.handle = handle

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,  # noqa: ARG002  # OTLP as Kong writes it has no place for it
        attributes: Attributes = None,
    ) -> Tracer:
        """A tracer for one instrumentation scope; ``attributes`` of the scope go into each of its spans."""
        scope: dict[str, Any] = {OTEL_SCOPE_NAME: instrumenting_module_name or ""}
        if instrumenting_library_version:
            scope[OTEL_SCOPE_VERSION] = instrumenting_library_version
        return Tracer(self, {**scope, **(attributes or {})})


class LocalTrace:
    """A trace that began outside any request of the worker.

    Args:
        process: see :class:`TracerProvider`.
        provider: whose spans they are.

    Attributes:
        ctx: the context that its spans are in.
        open: how many have not ended.
    """

    __slots__ = ("_process", "_provider", "ctx", "open")

    def __init__(self, process: Callable[[KongSpan], object], provider: KongProvider) -> None:
        self._process = process
        self._provider = provider
        self.ctx: Context = {}
        self.open = 0

    def ended(self) -> None:
        """One of its spans has ended; after the last all are shown to ``process`` and released."""
        self.open -= 1
        if self.open:
            return
        provider, ctx = self._provider, self.ctx
        ctx[KONG_PHASE] = "log"
        token = _attach(_IN_PROCESSOR)
        try:
            # In a phase that permits no spans.
            with running(provider.execution, ctx, TIMER):
                provider.global_tracer.process_span(self._show)
        except Exception as error:  # noqa: BLE001  # the API lets no error through to the instrumented program
            provider.log("error", f"the spans of a trace could not be processed: {error!r}")
        finally:
            _detach(token)
            provider.end_request(ctx)

    def _show(self, span: KongSpan) -> None:
        if span.should_sample:
            self._process(span)


class Tracer(trace.Tracer):
    """Starts spans for one instrumentation scope. Made by :meth:`TracerProvider.get_tracer`."""

    def __init__(self, provider: TracerProvider, scope: dict[str, Any]) -> None:
        self._provider = provider
        self._handle = provider.handle
        self._scope = scope

    def start_span(
        self,
        name: str,
        context: context_api.Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[trace.Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        into: Span | None = None,
    ) -> trace.Span:
        """A new span, see `opentelemetry.trace.Tracer.start_span`; ``start_time`` in ns since the epoch.

        ``into`` is the span to fill in place of a new one; Kong's becomes its request's active one, if that runs.
        """
        # One frame, as in the tracer below: this is the way of every span of a request.
        handle = self._handle
        provider = handle.provider
        parent: Any = (_current_context() if context is None else context).get(_SPAN_KEY)
        table = _without_none({**self._scope, **attributes}) if attributes else self._scope.copy()
        number = None if kind is _INTERNAL else _KINDS.get(kind)
        span = Span() if into is None else into
        below = type(parent)
        try:
            if (
                (below is CurrentSpan or below is Span)
                and parent.span.span_id is parent.id
                and (home := parent.home).ctx is provider.execution.ctx
                and home.provider is provider
            ):
                span.home = home
                # An attribute that is a bound method is called faster from a variable.
                start_span = handle.start_span
                made: Any = start_span(name, None, start_time, number, None, table, parent.span)
                if into is not None:
                    set_active_span = handle.set_active_span
                    set_active_span(made)
            else:
                made = self._start_elsewhere(span, parent, context, (name, None, start_time, number, None, table))
                if into is not None and made is not NOOP_SPAN and span.home.ctx is provider.execution.ctx:
                    handle.set_active_span(made)
        except ApiError:
            # What Kong refuses, OpenTelemetry takes.
            name, start_time = self._acceptable(name, start_time)
            return self.start_span(
                name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception, into
            )
        if made is NOOP_SPAN:
            span.home, span.span, span.id = _NOWHERE, made, b""  # type: ignore[assignment]  # every call comes late
            return NonRecordingSpan(trace.get_current_span(context).get_span_context())
        span.span = made
        span.id = made.span_id
        if not (record_exception and set_status_on_exception):
            span.on_exception(record_exception, set_status_on_exception)
        if links:
            span.add_links(links)
        return span

    def start_as_current_span(  # type: ignore[override]  # the same use, as context manager or decorator
        self,
        name: str,
        context: context_api.Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[trace.Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> CurrentSpan:
        """A span that starts when entered, and is the current one until left; also decorates functions."""
        span = CurrentSpan()
        span.tracer = self
        span.arguments = name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
        span.end_on_exit = end_on_exit
        span.again = 0
        return span

    def _acceptable(self, name: object, start_time: object) -> tuple[str, Any]:
        """A name and a time that a span can start with."""
        if start_time is not None and not is_number(start_time):
            log = self._handle.provider.log
            log("warn", f"the start of a span is no number: {start_time!r}; it begins now")
            start_time = None
        return str(name or "") or _NAMELESS, start_time

    def _start_elsewhere(
        self, span: Span, parent: Any, context: context_api.Context | None, fields: tuple[Any, ...]
    ) -> AnySpan:
        """Start a span that is not below one of the running request."""
        handle = self._handle
        provider = handle.provider
        execution = provider.execution
        local = None
        if type(parent) in _SPANS and parent.home.provider is provider:
            if parent.span.span_id is not parent.id or provider.has_given_up(parent.span):
                parent.late("start_span")
                return NOOP_SPAN
            span.home = parent.home
            local = parent.home.local
            with running(execution, parent.home.ctx):
                made = handle.start_span(*fields, parent.span)
        elif execution.span_ctx is not None:
            made = self._start_first(span, parent, context, fields)
        elif self._provider.process is None or _PROCESSING in _current_context():
            return NOOP_SPAN
        else:
            local = LocalTrace(self._provider.process, provider)
            with running(execution, local.ctx):
                made = self._start_first(span, parent, context, fields, local)
        if local is not None and made is not NOOP_SPAN:
            local.open += 1
        return made

    def _start_first(
        self,
        span: Span,
        parent: Any,
        context: context_api.Context | None,
        fields: tuple[Any, ...],
        local: LocalTrace | None = None,
    ) -> AnySpan:
        """Start a span that has no parent of this API, in the running request or as the first of ``local``."""
        handle = self._handle
        provider = handle.provider
        state = _NO_STATE
        if parent is None and context is None:
            made = _start_beside(handle, fields)
        else:
            received = trace.get_current_span(context).get_span_context()
            state = received.trace_state
            apart = received.is_valid or context is not None
            made = _start_apart(handle, fields, received) if apart else handle.start_span(*fields)
        if isinstance(made, KongSpan):
            ctx = provider.execution.span_ctx
            assert ctx is not None
            span.home = Home(provider, ctx, local, state, made.trace_id, made.should_sample)
        return made


class Home:
    """Where a span belongs, with all that came below it.

    Attributes:
        provider: that the spans come from.
        ctx: of the request, or of the trace, that they belong to.
        local: that trace, when it began outside any request.
        trace_state: of what the first of them continues.
        trace_id: as it was when last asked for; 16 bytes.
        sampled: the same of the sampling flag.
    """

    __slots__ = ("ctx", "local", "provider", "sampled", "trace_id", "trace_state")

    def __init__(
        self,
        provider: KongProvider | None,
        ctx: Context,
        local: LocalTrace | None,
        trace_state: TraceState,
        trace_id: bytes,
        sampled: bool | None,
    ) -> None:
        self.provider = provider
        self.ctx = ctx
        self.local = local
        self.trace_state = trace_state
        self.trace_id = trace_id
        self.sampled = sampled


_NOWHERE = Home(None, {}, None, TraceState(), b"", None)


class Span(trace.Span):
    """A span of OpenTelemetry's API, written through to one of the worker's; see `opentelemetry.trace.Span`.

    Attributes:
        span: the pooled span; the no-op span where nothing is recorded.
        id: its span id. The pooled span has another, or none, once it was released: that is how a late call is known.
        home: where it belongs.
        records_exceptions: an exception that leaves a block of this span becomes an event.
        sets_status_on_exception: the same, of the status.
    """

    __slots__ = ("home", "id", "span")

    span: KongSpan
    id: bytes
    home: Home

    records_exceptions = True
    sets_status_on_exception = True

    def on_exception(self, record: bool, set_status: bool) -> None:
        """Say what an exception does that leaves a block of this span."""
        self.records_exceptions = record
        self.sets_status_on_exception = set_status

    def get_span_context(self) -> SpanContext:
        """Its identity. The trace id is the one under which the request is exported (kong-semantics O17).

        That is the client's, also before the request has joined its trace, where it is known that it will: what carries
        the id elsewhere goes on in the same trace.
        """
        span, home = self.span, self.home
        if span.span_id is self.id:
            foretold = home.provider.foretell(home.ctx) if home.provider is not None else None
            if foretold is not None:
                home.trace_id, home.sampled = foretold
            else:
                home.sampled, home.trace_id = span.should_sample, span.trace_id
                tracing_context = home.ctx.get(TRACING_CONTEXT)
                if tracing_context is not None and tracing_context.raw_trace_id is not None:
                    home.trace_id = tracing_context.raw_trace_id
        return SpanContext(
            int.from_bytes(home.trace_id, "big"),
            int.from_bytes(self.id, "big"),
            is_remote=False,
            trace_flags=_SAMPLED if home.sampled else _NOT_SAMPLED,
            trace_state=home.trace_state,
        )

    def is_recording(self) -> bool:
        """Whether it is open. Kong's spans record also when unsampled (T13): the decision may come later."""
        return self.span.end_time_ns is None and self.span.span_id is self.id

    def end(self, end_time: int | None = None) -> None:
        """End it; a time before its start counts as its start."""
        span = self.span
        if span.end_time_ns is not None or span.span_id is not self.id:
            self.late("finish")
            return
        home = self.home
        execution = home.provider.execution  # type: ignore[union-attr]
        if end_time is None and execution.ctx is home.ctx:
            span.finish()
        else:
            self._finish(end_time)
        if span.end_time_ns < span.start_time_ns:  # type: ignore[operator]  # it has ended
            # It was to begin later: the end is refused as one that is given.
            end_time, span.end_time_ns = span.end_time_ns, None
            self._finish(end_time)
        if home.local is not None:
            # None of its spans is ever active.
            home.local.ended()
            return
        parent = span.parent
        try:
            if parent is not None and parent.end_time_ns is not None:
                self._leave_ended()
        except AttributeError:
            # It is below what is no span: Kong takes any table for a parent.
            return

    def _finish(self, end_time: int | None) -> None:
        """Finish the pooled span in its request, whatever the time is."""
        span, provider = self.span, self.home.provider
        assert provider is not None
        with running(provider.execution, self.home.ctx):
            try:
                span.finish(end_time)
            except ApiError:
                self._log(f"the end of a span is no number: {end_time!r}; it ends now")
                span.finish()
            if span.end_time_ns is None:
                span.finish(span.start_time_ns)

    def _leave_ended(self) -> None:
        """Make an open span the active one in place of one that this has outlived: finishing has made that active."""
        provider, handle = self.home.provider, self.span.tracer
        assert provider is not None
        assert handle is not None
        with running(provider.execution, self.home.ctx):
            leave_ended(handle)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set several attributes."""
        for key, value in (attributes or {}).items():
            self.set_attribute(key, value)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set one attribute; None is refused."""
        span = self.span
        if span.span_id is not self.id or span.end_time_ns is not None or value is None or type(key) is not str:
            self._refuse_attribute(key, value)
            return
        attributes = span.attributes
        if type(value) in _PLAIN and attributes is not None and type(span) is KongSpan:
            # What `Span.set_attribute` would do, at half the cost.
            attributes[key] = value
        else:
            span.set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Append an event; ``timestamp`` in ns since the epoch."""
        span = self._open("add_event")
        if span is not None:
            span.add_event(str(name), dict(attributes) if attributes else None, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Append a link; one that leads nowhere needs attributes or a trace state (specification, Trace API, Link)."""
        span = self._open("add_link")
        if span is None or context is None or not (context.is_valid or attributes or context.trace_state):
            return
        try:
            trace_id, span_id = context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big")
        except OverflowError:
            self._log("a link was not added: its ids are too long or negative")
            return
        own = dict(attributes or {})
        span.add_event(LINK_EVENT, {"trace_id": trace_id.hex(), "span_id": span_id.hex(), **own})
        assert span.events is not None
        link = span.events[-1] = Link(*span.events[-1])
        link.trace_id, link.span_id, link.own_attributes = trace_id, span_id, own
        link.trace_state = context.trace_state.to_header()
        link.flags = context.trace_flags | _REMOTENESS_KNOWN | (context.is_remote and _REMOTE)

    def add_links(self, links: Sequence[trace.Link]) -> None:
        """Append the links that it starts with."""
        provider = self.home.provider
        assert provider is not None
        with running(provider.execution, self.home.ctx):
            try:
                for link in filter(None, links):
                    self.add_link(link.context, link.attributes)
            except (AttributeError, TypeError, ValueError) as error:
                self._log(f"links were not added: {error}")

    def update_name(self, name: str) -> None:
        """Give it another name."""
        span = self._open("update_name")
        if span is not None and name:
            span.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status: unset is ignored, and ok is final (OpenTelemetry specification, Trace API, Set Status)."""
        span = self._open("set_status")
        if span is None:
            return
        if isinstance(status, Status):
            code, description = status.status_code, status.description
        else:
            code = status
        if code is StatusCode.UNSET or span.status == STATUS_OK:
            return
        span.set_status(STATUS_OK if code is StatusCode.OK else STATUS_ERROR)
        if code is StatusCode.ERROR and description:
            span.set_attribute(OTEL_STATUS_DESCRIPTION, description)
        else:
            span.set_attribute(OTEL_STATUS_DESCRIPTION, None)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Append an event that describes an exception (semantic conventions, Exceptions)."""
        span = self._open("record_error")
        if span is None:
            return
        span.record_error(str(exception))
        assert span.events is not None
        event = span.events[-1]
        assert event.attributes is not None
        event.attributes[EXCEPTION_TYPE] = _type_name(exception)
        event.attributes[EXCEPTION_STACKTRACE] = "".join(traceback.format_exception(exception))
        event.attributes[EXCEPTION_ESCAPED] = str(escaped)
        event.attributes.update(attributes or {})
        if timestamp is not None:
            span.events[-1] = event._replace(time_ns=timestamp)

    def failed(self, error: BaseException, *, escaped: bool = False) -> None:
        """An exception leaves a block of this span."""
        if not self.is_recording():
            return
        if self.records_exceptions:
            self.record_exception(error, escaped=escaped)
        if self.sets_status_on_exception:
            self.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")

    def late(self, method: str) -> None:
        """Report a call that comes after the end; where nothing is recorded, any is harmless."""
        if self.home is _NOWHERE:
            return
        provider = self.span._provider  # noqa: SLF001 - the same package
        if isinstance(provider, CheckedProvider) and isinstance(self.span, CheckedSpan):
            provider.late(self.span, method)
        self._log(f"{method}() was called on a span that has ended")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End with the block that it was the context manager of."""
        if isinstance(error, Exception):
            self.failed(error, escaped=True)
        self.end()

    def _open(self, method: str) -> KongSpan | None:
        """The pooled span while it is this one and open; else the call is reported."""
        span = self.span
        if span.span_id is self.id and span.end_time_ns is None:
            return span
        self.late(method)
        return None

    def _refuse_attribute(self, key: Any, value: Any) -> None:
        if self._open("set_attribute") is not None:
            self._log(f"attribute {key!r} was not set: {'the value is None' if value is None else 'invalid key'}")

    def _log(self, message: str) -> None:
        self.span._provider.log("warn", message)  # noqa: SLF001 - the same package

    def __repr__(self) -> str:
        return f"<otel.Span {self.id.hex()}>"


class CurrentSpan(Span):
    """A span that is current in its block, or in each call of the function that it decorates.

    The block and its span are one object: to make two would cost as much as the span itself. So it is entered as a
    block once, and after that as the span, see :meth:`Span.__exit__`.

    Attributes:
        tracer: starts it.
        arguments: of :meth:`Tracer.start_span`, until it is entered.
        end_on_exit: it ends with the block.
        again: how often it has been entered as the span, and not been left.
    """

    __slots__ = ("_token", "again", "arguments", "end_on_exit", "tracer")

    tracer: Tracer
    arguments: Arguments
    end_on_exit: bool
    again: int

    def __enter__(self) -> trace.Span:
        """Start it and make it current; where it cannot record, a non-recording one."""
        try:
            # Each by its name: a call with `*` costs a third of the span.
            name, context, kind, attributes, links, start_time, records, sets = self.arguments
        except TypeError:
            self.again += 1
            return self
        self.arguments = None  # type: ignore[assignment]  # it starts once
        made = self.tracer.start_span(name, context, kind, attributes, links, start_time, records, sets, self)
        values = _current_context().copy()
        values[_SPAN_KEY] = made
        self._token = _attach(_Context(values))
        return made

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Make current what was so before, and end."""
        if self.again:
            self.again -= 1
            super().__exit__(kind, error, where)
            return
        try:
            _detach(self._token)
        except (ValueError, RuntimeError):
            # Left in another context than it was entered in, or twice: the API logs it.
            context_api.detach(self._token)
        if error is not None and isinstance(error, Exception):
            self.failed(error)
        if self.end_on_exit:
            self.end()

    def __call__(self, function: F) -> F:
        """Decorate a function, or a coroutine function."""
        if iscoroutinefunction(function):

            @wraps(function)
            async def awaited(*arguments: Any, **given: Any) -> Any:
                with self._another():
                    return await function(*arguments, **given)

            return awaited  # type: ignore[return-value]

        @wraps(function)
        def called(*arguments: Any, **given: Any) -> Any:
            with self._another():
                return function(*arguments, **given)

        return called  # type: ignore[return-value]

    def _another(self) -> CurrentSpan:
        return self.tracer.start_as_current_span(*self.arguments, self.end_on_exit)


_SPANS = frozenset((Span, CurrentSpan))
"""Asked for by their type: `isinstance` takes five times as long for a class of the API."""


@contextmanager
def running(execution: Execution, ctx: Context, phase: Phase = CONTENT) -> Iterator[None]:
    """Let the request of ``ctx`` run meanwhile, in ``phase`` unless it runs already."""
    before = execution.phase, execution.ctx
    if execution.ctx is not ctx:
        execution.enter(phase, ctx)
    try:
        yield
    finally:
        execution.enter(*before)


def _context_of_task() -> Context | None:
    """The context of the request whose span is current: OpenTelemetry's context follows a task, Kong's does not."""
    current = _current_context().get(_SPAN_KEY)
    return current.home.ctx if type(current) in _SPANS else None  # type: ignore[attr-defined]


def _remembers(span: KongSpan) -> bool:
    """Whether a span was started through this API, whose spans know their request."""
    return span.attributes is not None and OTEL_SCOPE_NAME in span.attributes


CheckedProvider.context_of_task = staticmethod(_context_of_task)
CheckedProvider.remembers = staticmethod(_remembers)
CheckedProvider.wrappers = (Span,)
# What is called back later keeps the context of its request.
CheckedProvider.carriers = (*CheckedProvider.carriers, context_api.Context)


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None} if None in table.values() else table


def _start_beside(handle: GlobalTracer, fields: tuple[Any, ...]) -> AnySpan:
    """Start a span below the active one, but not below one of this API, which is current in another task alone."""
    above = active = handle.active_span()
    for span in line(active):
        if span.attributes is not None and OTEL_SCOPE_NAME in span.attributes:
            above = span.parent
    if above is None and active is not None:
        return _start_apart(handle, fields, trace.INVALID_SPAN_CONTEXT)
    return handle.start_span(*fields, above)


def _start_apart(handle: GlobalTracer, fields: tuple[Any, ...], received: SpanContext) -> AnySpan:
    """Start a span whose parent is elsewhere, or nowhere: no span of the running request."""
    options: dict[str, Any] = {}
    if received.is_valid:
        options["trace_id"] = received.trace_id.to_bytes(16, "big")
        options["parent_id"] = received.span_id.to_bytes(8, "big")
        options["should_sample"] = received.trace_flags.sampled
    active = handle.active_span()
    handle.set_active_span(None)
    try:
        return handle.start_span(fields[0], options, *fields[2:])
    finally:
        handle.set_active_span(active)


def _type_name(exception: BaseException) -> str:
    kind = type(exception)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
