"""The tracer: starts spans, knows which one is active, and shows a request's spans to its exporters.

A tracer keeps no state of its own beyond its name, rate and namespace (kong-semantics T1): spans and the active span
live in the request context, pools and clock in the :class:`~kongtrace.provider.TracerProvider`. All tracers of a
namespace share one span list and one active span (T7, C10).

Calls are valid in the phases of :data:`kongtrace.phase.PHASES` whose column ``spans`` is true; elsewhere
:meth:`Tracer.start_span` gives the no-op span, :meth:`Tracer.active_span` gives None and
:meth:`Tracer.set_active_span` has no effect (T8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kongtrace.context import KONG_PHASE, UNLINKED, Trace, active_key, spans_key, tracing_context
from kongtrace.errors import ApiError
from kongtrace.sampler import Decision, sample
from kongtrace.span import INTERNAL, NOOP_SPAN, AnySpan, NoopSpan, Span, is_number

if TYPE_CHECKING:
    from kongtrace.noop import NoopTracer
    from kongtrace.provider import TracerProvider

PROPAGATION_ONLY = "kong.propagation_only"
"""Attribute of a root span that exists only so that headers can be written (O12)."""

_ADMIN_API = "admin_api"


class Tracer:
    """Starts and links spans in the request that runs now. Made by :meth:`TracerProvider.new`.

    Attributes:
        name: the instrumentation's name; :meth:`process_span` shows a tracer the spans of its own name (T9).
        namespace: whose span list and active span it uses, ``KONG`` unless isolated (C10).
        sampling_rate: 0 to 1.
    """

    __slots__ = (
        "__weakref__",
        "_execution",
        "_free_spans",
        "_provider",
        "_span_ids",
        "_span_pool",
        "_time_ns",
        "active_key",
        "name",
        "namespace",
        "sampling_rate",
        "spans_key",
    )

    def __init__(self, name: str, provider: TracerProvider, sampling_rate: Any, namespace: str) -> None:
        self.name = name
        self.namespace = namespace
        self.sampling_rate = sampling_rate
        self.active_key = active_key(namespace)
        self.spans_key = spans_key(namespace)
        self.bind(provider)

    def bind(self, provider: TracerProvider) -> None:
        """Work for ``provider`` from now on."""
        self._provider = provider
        self._execution = provider.execution
        self._time_ns = provider.time_ns
        self._span_ids = provider.span_ids.drawn
        self._span_pool = provider.spans
        self._free_spans = provider.spans.free

    def new(self, name: Any = None, options: dict[str, Any] | None = None) -> Tracer | NoopTracer:
        """Another tracer (D2): see :meth:`TracerProvider.new`."""
        return self._provider.new(name, options)

    __call__ = new

    def set_global_tracer(self, tracer: object = None) -> None:
        """Make ``tracer`` the global one (T5).

        Raises:
            ApiError: it is not a tracer.
        """
        self._provider.set_global_tracer(tracer)

    def start_span(
        self,
        name: str = None,  # type: ignore[assignment]  # a missing name is reported as Kong does
        options: dict[str, Any] | None = None,
        start_time_ns: int | None = None,
        span_kind: int | None = None,
        should_sample: bool | None = None,
        attributes: dict[str, Any] | None = None,
        parent: AnySpan | None = None,
        trace_id: bytes | None = None,
        parent_id: bytes | None = None,
    ) -> AnySpan:
        """A new span, linked into the request's span list (D4, S3-S8).

        Args:
            name: non-empty string.
            options: the arguments below as a mapping, as the Lua API takes them.
            start_time_ns: ns since the epoch; now when left out.
            span_kind: 0 to 5; 1 (internal) when left out.
            should_sample: the sampling decision where no parent has one (T12, C8).
            attributes: mapping, kept by reference (S4).
            parent: the parent span; the active span when left out.
            trace_id: bytes, used when there is no parent (T11).
            parent_id: bytes, used when there is no parent.

        Returns:
            The span; the no-op span in a phase that permits none.

        Raises:
            ApiError: an argument of the wrong type; nothing has been taken from the pool then.
        """
        ctx = self._execution.span_ctx
        if ctx is None:
            return NOOP_SPAN
        if type(name) is not str or not name:
            _check_name(name)
        if options is not None:
            return self.start_span(
                name,
                None,
                **_start_options(
                    options, start_time_ns, span_kind, should_sample, attributes, parent, trace_id, parent_id
                ),
            )
        if start_time_ns is not None or span_kind is not None or should_sample is not None or attributes is not None:
            _check_options(start_time_ns, span_kind, should_sample, attributes)

        try:
            trace = ctx[self.spans_key]
        except KeyError:
            trace = ctx[self.spans_key] = Trace()
        if not parent:
            parent = trace.active
        if type(parent) is Span:
            inherited = parent.trace_id
            sampled = parent.should_sample
            inherited_id = parent.span_id
        else:
            inherited, sampled, inherited_id = _identity(parent)
        if inherited is None:
            inherited = trace_id or self._provider.trace_ids.draw()
        if sampled is None:
            sampled = self._sampled(inherited) if should_sample is None else should_sample

        try:
            span = self._free_spans.pop()
        except IndexError:
            span = self._span_pool.make()
        span.parent = parent
        span.trace_id = inherited
        span.parent_id = parent_id if inherited_id is None else inherited_id
        span.should_sample = sampled
        span.tracer = self
        try:
            span.span_id = self._span_ids.pop()
        except IndexError:
            span.span_id = self._provider.span_ids.draw()
        span.kind = INTERNAL if span_kind is None else span_kind
        if attributes is not None:
            span.attributes = attributes
            self._provider.attributes.adopted += 1
        span.name = name
        if start_time_ns is None:
            time_ns = self._time_ns
            start_time_ns = time_ns()
        span.start_time_ns = start_time_ns
        spans = trace.spans
        if spans is None:
            spans = trace.spans = self._provider.storage.fetch()
        spans.append(span)
        return span

    def create_span(self, tracer: Tracer | None = None, options: dict[str, Any] | None = None, **given: Any) -> AnySpan:
        """A new span that is in no list yet: only its ids are needed so far (D16).

        Args:
            tracer: whose active span and sampler it uses, or None for neither.
            options: as for :meth:`start_span`; ``attributes`` and ``start_time_ns`` are taken when it is linked.
            given: the same as keyword arguments.

        Raises:
            ApiError: an argument of the wrong type.
        """
        fields = _merged(options, given)
        span = self._create(tracer, fields)
        ctx = self._execution.ctx
        if ctx is not None:
            ctx.setdefault(UNLINKED, []).append(span)
        return span

    def link_span(self, *arguments: Any, **given: Any) -> AnySpan:
        """Name a created span, start it, and put it into the span list (D16, S7).

        Takes ``(tracer, span, name, options)`` as Kong's function does, or ``(span, name, options)`` on the tracer that
        links. Linking twice lists the span twice.

        Raises:
            ApiError: the tracer or an option is of the wrong type.
            TypeError: there is no tracer.
        """
        if arguments and isinstance(arguments[0], (Span, NoopSpan)):
            arguments = (self, *arguments)
        tracer, span, name, options = (*arguments, None, None, None, None)[:4]
        if tracer is None or tracer is False:
            fields = _merged(options, given)
            _check_options(*map(fields.get, _CHECKED))
            self._fill(None, span, name, fields)
            raise TypeError("link_span needs a tracer: its span list takes the span")
        if not isinstance(tracer, Tracer):
            raise ApiError("invalid tracer")
        fields = _merged(options, given)
        return tracer._link(tracer, span, name, fields)

    def new_span(self, *arguments: Any, **given: Any) -> AnySpan | None:
        """The three functions that one page of the documentation calls by this name (C2).

        No argument: the active span. A span: make it the active one. A name: :meth:`start_span`.
        """
        if not arguments and not given:
            return self.active_span()
        if arguments and isinstance(arguments[0], (Span, NoopSpan)):
            self.set_active_span(arguments[0])
            return None
        return self.start_span(*arguments, **given)

    def active_span(self) -> AnySpan | None:
        """The active span of the running request, or None (D5)."""
        ctx = self._execution.span_ctx
        if ctx is None or self.spans_key not in ctx:
            return None
        trace: Trace = ctx[self.spans_key]
        return trace.active

    def set_active_span(self, span: AnySpan | None = None) -> None:
        """Make ``span`` the active one, the implicit parent of the next; None clears (D6, T10).

        Raises:
            TypeError: it cannot be a span.
        """
        ctx = self._execution.span_ctx
        if ctx is None:
            return
        try:
            trace = ctx[self.spans_key]
        except KeyError:
            trace = ctx[self.spans_key] = Trace()
        if span:
            try:
                span.active = True
            except AttributeError:
                _flag_active(span)
        trace.active = span or None

    def process_span(self, processor: Callable[..., object] = None, *extra: Any) -> None:  # type: ignore[assignment]
        """Show every span of this tracer's name, in the order of linking, to ``processor`` (D7, T9).

        Args:
            processor: called with the span and ``extra``; what it keeps must be a copy.
            extra: passed on.

        Raises:
            ApiError: the Kong phase is not log (R9), or ``processor`` cannot be called.
        """
        ctx = self._execution.ctx
        self._check_phase(ctx)
        if not callable(processor):
            raise ApiError("processor must be a function")
        name = self.name
        for span in self._linked():
            tracer = span.tracer
            if tracer is not None and tracer.name == name:
                processor(span, *extra)

    def init_spans(self) -> list[Span]:
        """A new span list for the running request, in place of the one it has (D17)."""
        trace = self._trace()
        if trace.spans is not None:
            self._provider.give_up(trace.spans)
        trace.spans = self._provider.storage.fetch()
        return trace.spans

    def get_spans(self) -> list[Span]:
        """The span list of the running request; made when there is none (D17, T15)."""
        trace = self._trace()
        if trace.spans is None:
            trace.spans = self._provider.storage.fetch()
        return trace.spans

    def get_root_span(self) -> AnySpan | None:
        """The first span of the list, or None (D17)."""
        spans = self._linked()
        return spans[0] if spans else None

    def set_should_sample(self, should_sample: bool | None = None) -> None:
        """Write the sampling flag of every span now in the list (T14)."""
        for span in self._linked():
            span.should_sample = should_sample

    def get_sampling_decision(
        self, parent_should_sample: bool | None = None, sampling_rate: float | None = None
    ) -> bool:
        """Whether this request is sampled (M5): a parent's False wins, a parent's True does not force.

        Args:
            parent_should_sample: the flag that came with the request, or None.
            sampling_rate: 0 to 1; the configured global rate when left out.

        Raises:
            TypeError: the root span has no attributes, in profile ``kong`` (M7).
        """
        ctx = self._context()
        spans = self._linked()
        if not spans or self._is_propagation_only(spans[0]):
            return False
        trace_id = tracing_context(ctx).raw_trace_id
        if parent_should_sample is False or not isinstance(trace_id, (bytes, str)):
            return bool(parent_should_sample)
        rate = self._provider.sampling_rate if sampling_rate is None or sampling_rate is False else sampling_rate
        sampled, error = self.sampler(trace_id, rate)  # type: ignore[arg-type]
        if error is not None:
            self._provider.log("error", f"sampler failure: {error}")
        return bool(sampled)

    def sampler(self, trace_id: bytes | None = None, rate: float | None = None) -> Decision:
        """The decision on a trace id at ``rate``, or at the tracer's own rate (M1)."""
        return sample(trace_id, self.sampling_rate if rate is None or rate is False else rate)  # type: ignore[arg-type]

    def _create(self, tracer: Tracer | None, options: dict[str, Any]) -> Span:
        _check_options(*map(options.get, _CHECKED))
        get = options.get
        parent = get("parent") or (tracer.active_span() if tracer is not None and tracer is not False else None)
        inherited, sampled, parent_id = _identity(parent)
        provider = self._provider
        trace_id = inherited if inherited is not None else get("trace_id") or provider.trace_ids.draw()
        if sampled is None:
            sampled = get("should_sample")
        if sampled is None:
            sampled = tracer is not None and tracer._sampled(trace_id)
        span = provider.spans.fetch()
        span.parent = parent
        span.trace_id = trace_id
        span.parent_id = parent_id if parent_id is not None else get("parent_id")
        span.should_sample = sampled
        span.tracer = tracer
        span.span_id = provider.span_ids.draw()
        kind = get("span_kind")
        span.kind = INTERNAL if kind is None else kind
        return span

    def _sampled(self, trace_id: bytes) -> bool:
        if self.sampling_rate == 1:
            return True
        sampled, error = self.sampler(trace_id)
        if error is not None:
            self._provider.log("error", f"sampler failure: {error}")
        return bool(sampled)

    def _link(self, tracer: Tracer, span: AnySpan, name: str, options: dict[str, Any]) -> AnySpan:
        _check_options(*map(options.get, _CHECKED))
        self._fill(tracer, span, name, options)
        self.get_spans().append(span)  # type: ignore[arg-type]  # the no-op span is listed too, as in Kong
        return span

    def _fill(self, tracer: Tracer | None, span: AnySpan, name: str, options: dict[str, Any]) -> None:
        start = options.get("start_time_ns")
        now = self._provider.time_ns() if start is None else start
        if not isinstance(span, Span):
            return
        if span.tracer is None:
            span.tracer = tracer
        pool = self._provider.attributes
        replaced = span.attributes
        pool.discarded += replaced is not None
        span.attributes = options.get("attributes")
        pool.adopted += span.attributes is not None
        span.start_time_ns = now
        span.name = name

    def _context(self) -> dict[str, Any]:
        ctx = self._execution.ctx
        if ctx is None:
            raise ApiError("no request found")
        return ctx

    def _trace(self) -> Trace:
        ctx = self._context()
        trace: Trace | None = ctx.get(self.spans_key)
        if trace is None:
            trace = ctx[self.spans_key] = Trace()
        return trace

    def _linked(self) -> Sequence[Span]:
        ctx = self._execution.ctx
        trace = ctx.get(self.spans_key) if ctx is not None else None
        return trace.spans or () if trace is not None else ()

    def _is_propagation_only(self, root: AnySpan) -> bool:
        attributes = root.attributes
        if attributes is None:
            if self._provider.profile.bare_root_raises:
                raise TypeError(f"the root span {root!r} has no attributes")
            return False
        return bool(attributes.get(PROPAGATION_ONLY))

    def _check_phase(self, ctx: dict[str, Any] | None) -> None:
        phase = ctx.get(KONG_PHASE) if ctx else None
        if phase == "log":
            return
        if phase is None:
            if self._execution.phase.name != "content":
                raise ApiError("no phase in ngx.ctx.KONG_PHASE, (need one of log)")
            phase = _ADMIN_API
        raise ApiError(f"function cannot be called in {phase} phase (only in: log)")

    def __repr__(self) -> str:
        return f"<Tracer {self.name!r} in {self.namespace}>"


def _flag_active(span: Any) -> None:
    if not isinstance(span, dict):
        raise TypeError(f"the active span must be a span, not {type(span).__name__}")
    span["active"] = True


def _check_name(name: object) -> None:
    if not isinstance(name, (str, bytes)) or not name:
        raise ApiError("invalid span name")


_CHECKED = ("start_time_ns", "span_kind", "should_sample", "attributes")


def _check_options(start_time_ns: object, span_kind: object, should_sample: object, attributes: object) -> None:
    """Check the types of the options in Kong's order (S3)."""
    if start_time_ns is not None and not is_number(start_time_ns):
        raise ApiError("invalid start time")
    if span_kind is not None and not is_number(span_kind):
        raise ApiError("invalid start kind")
    if should_sample is not None and not isinstance(should_sample, bool):
        raise ApiError("invalid sampled")
    if attributes is not None and not isinstance(attributes, (dict, list)):
        raise ApiError("invalid attributes")


def _merged(options: object, given: dict[str, Any]) -> dict[str, Any]:
    if options is None:
        return given
    if not isinstance(options, (dict, list)):
        raise ApiError("invalid options type")
    if isinstance(options, list):
        return given
    return {**options, **given} if given else options


_START_OPTIONS = (*_CHECKED, "parent", "trace_id", "parent_id")


def _start_options(options: object, *given: object) -> dict[str, Any]:
    """The options that start_span knows, arguments before the mapping."""
    fields = _merged(options, {})
    return {
        name: fields.get(name) if value is None else value for name, value in zip(_START_OPTIONS, given, strict=True)
    }


def _identity(parent: Any) -> tuple[bytes | None, bool | None, bytes | None]:
    """Trace id, sampling flag and span id of a parent, which may be any object with fields (T11)."""
    if parent is None:
        return None, None, None
    if isinstance(parent, (Span, NoopSpan)):
        return parent.trace_id, parent.should_sample, parent.span_id
    if isinstance(parent, dict):
        return parent.get("trace_id"), parent.get("should_sample"), parent.get("span_id")
    if isinstance(parent, (str, bytes, list)):
        return None, None, None
    raise TypeError(f"a parent must be a span, not {type(parent).__name__}")
