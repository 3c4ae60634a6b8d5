"""The tracer: starts spans, knows which one is active, and shows a request's spans to its exporters.

A tracer keeps no state of its own beyond its name, rate and namespace (kong-semantics T1): spans and the active span
live in the request context, pools and clock in the :class:`~kongtrace.provider.TracerProvider`. All tracers of a
namespace share one span list and one active span (T7, C10).

Calls are valid in the phases of :data:`kongtrace.phase.PHASES` whose column ``spans`` is true; elsewhere
:meth:`Tracer.start_span` gives the no-op span, :meth:`Tracer.active_span` gives None and
:meth:`Tracer.set_active_span` has no effect (T8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kongtrace.context import (
    KONG_PHASE,
    LISTED_AGAIN,
    UNLINKED,
    UNLISTED,
    Context,
    Trace,
    active_key,
    count,
    tracing_context,
)
from kongtrace.errors import ApiError, ReleasedSpanError
from kongtrace.lua import is_given, is_number, is_table, is_text, lua_table
from kongtrace.noop import NoopTracer
from kongtrace.sampler import Decision, sample
from kongtrace.span import (
    INTERNAL,
    MISSING,
    NOOP_SPAN,
    AnySpan,
    NoopSpan,
    ReleasedSpan,
    RelinkedSpan,
    Span,
    SpanCopy,
    flag_active,
    line,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

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
        "_attributes",
        "_constant",
        "_execution",
        "_free_spans",
        "_provider",
        "_span_ids",
        "_storage",
        "_time_ns",
        "_trace_ids",
        "name",
        "namespace",
        "sampling_rate",
    )

    def __init__(self, name: str, provider: TracerProvider, sampling_rate: Any, namespace: str) -> None:
        self.name = name
        self.namespace = provider.execution.namespace(namespace)
        self.sampling_rate = sampling_rate
        # Most rates need no look at the trace id.
        self._constant = sample(b"", sampling_rate).sampled
        self.bind(provider)

    def bind(self, provider: TracerProvider) -> None:
        """Work for ``provider`` from now on, as one of its own class: it may have been made before there was any."""
        self.__class__ = provider.tracer_class
        self._provider = provider
        self._execution = provider.execution
        self.namespace = provider.execution.namespace(self.namespace.name)
        self._time_ns = provider.time_ns
        self._span_ids = provider.span_ids.drawn
        self._trace_ids = provider.trace_ids.drawn
        self._storage = provider.storage
        self._free_spans = provider.spans.free
        self._attributes = provider.attributes

    @property
    def spans_key(self) -> str:
        """Where its namespace keeps the span list in the request context."""
        return self.namespace.spans_key

    @property
    def active_key(self) -> str:
        """The name that Kong has for the place of its namespace's active span."""
        return active_key(self.namespace.name)

    def new(self, name: Any = None, options: dict[str, Any] | None = None, **given: Any) -> Tracer | NoopTracer:
        """Another tracer (D2), its options in a mapping or as keyword arguments: see :meth:`TracerProvider.new`."""
        return self._provider.new(name, options, **given)

    __call__ = new

    def set_global_tracer(self, tracer: object = None) -> None:
        """Make ``tracer`` the global one (T5).

        Raises:
            ApiError: it is not a tracer.
        """
        self._provider.set_global_tracer(tracer)

    def start_span(  # noqa: C901, PLR0912, PLR0915  # one frame: the calls of shorter functions would double its cost
        self,
        name: str = MISSING,
        options: dict[str, Any] | None = None,
        start_time_ns: int | None = None,
        span_kind: int | None = None,
        should_sample: bool | None = None,
        attributes: dict[str, Any] | None = None,
        parent: AnySpan | None = None,
    ) -> AnySpan:
        """A new span, linked into the request's span list (D4, S3-S8).

        Args:
            name: non-empty string.
            options: the arguments below as a mapping, as the Lua API takes them, and ``trace_id`` and ``parent_id``
                (bytes), which are used when there is no parent (T11).
            start_time_ns: ns since the epoch; now when left out.
            span_kind: 0 to 5; 1 (internal) when left out.
            should_sample: the sampling decision where no parent has one (T12, C8).
            attributes: mapping, kept by reference (S4).
            parent: the parent span; the active span when left out.

        Returns:
            The span; the no-op span in a phase that permits none.

        Raises:
            ApiError: an argument of the wrong type; nothing has been taken from the pool then.
            ReleasedSpanError: the request has ended, in profile ``kong``.
        """
        trace = self.namespace.trace
        if trace is None:
            ctx = self._execution.span_ctx
            if ctx is None:
                return NOOP_SPAN
        if type(name) is not str or not name:
            _check_name(name)
        if options is not None:
            return self._start_with(options, name, start_time_ns, span_kind, should_sample, attributes, parent)
        if (
            (span_kind is not None and type(span_kind) is not int)
            or (attributes is not None and type(attributes) is not dict)
            or (start_time_ns is not None and type(start_time_ns) is not int)
            or (should_sample is not None and type(should_sample) is not bool)
        ):
            _check_options(start_time_ns, span_kind, should_sample, attributes)
            attributes = lua_table(attributes)
        if trace is None:
            assert ctx is not None
            trace = self._new_trace(ctx, self._storage.fetch())

        if parent is None:
            parent = trace.active
        if parent is None:
            trace_id = parent_id = sampled = None
        else:
            try:
                trace_id = parent.trace_id
                parent_id = parent.span_id
                sampled = parent.should_sample
            except AttributeError:
                parent, trace_id, sampled, parent_id = _plain_parent(parent, trace.active)
        if trace_id is None:
            trace_id = self._trace_ids.pop() if self._trace_ids else self._provider.trace_ids.draw()
        if sampled is None:
            sampled = should_sample
            if sampled is None:
                sampled = self._constant
                if sampled is None:
                    sampled = self.decide(trace_id)

        try:
            span = self._free_spans.pop()
        except IndexError:
            span = self._provider.spans.fetch()
        try:
            span.span_id = self._span_ids.pop()
        except IndexError:
            span.span_id = self._provider.span_ids.draw()
        span.trace_id = trace_id
        span.parent_id = parent_id
        span.parent = parent
        span.should_sample = sampled
        span.name = name
        span.tracer = self
        span.kind = INTERNAL if span_kind is None else span_kind
        if start_time_ns is None:
            time_ns = self._time_ns
            span.start_time_ns = time_ns()
        else:
            span.start_time_ns = start_time_ns
        if attributes is not None:
            span.attributes = attributes
            self._attributes.adopted += 1
        try:
            trace.spans.append(span)  # type: ignore[union-attr]
        except (AttributeError, ReleasedSpanError):
            # There is no list yet, since a span was made active first; or no longer.
            self._list(span, trace)
        return span

    def create_span(self, tracer: Tracer | None = None, options: dict[str, Any] | None = None, **given: Any) -> AnySpan:
        """A new span that is in no list yet: only its ids are needed so far (D16).

        Args:
            tracer: whose active span and sampler it uses, or None for neither.
            options: as for :meth:`start_span`; ``attributes`` and ``start_time_ns`` are taken when it is linked.
            given: the same as keyword arguments.

        Raises:
            ApiError: an argument of the wrong type.
            TypeError: there is no such keyword.
        """
        span = self._create(meant(tracer), _checked(options, given))
        ctx = self._execution.ctx
        if ctx is None:
            self._provider.give_up([span])
        elif UNLINKED in ctx:
            ctx[UNLINKED].append(span)
        else:
            ctx[UNLINKED] = [span]
        return span

    def link_span(self, *arguments: Any, **given: Any) -> AnySpan:
        """Name a created span, start it, and put it into the span list (D16, S7).

        Takes ``(tracer, span, name, options)`` as Kong's function does, or ``(span, name, options)`` on the tracer that
        links. Linking twice lists the span twice.

        Raises:
            ApiError: the tracer or an option is of the wrong type, or there is no request.
            TypeError: there is no tracer, no span but a copy of one, or no such keyword.
        """
        if arguments and isinstance(arguments[0], (Span, NoopSpan)):
            arguments = (self, *arguments)
        tracer, span, name, options = (*arguments, None, None, None, None)[:4]
        tracer = meant(tracer)
        if is_given(tracer) and not isinstance(tracer, (Tracer, NoopTracer)) and not is_table(tracer):
            raise ApiError("invalid tracer")
        fields = _checked(options, given)
        _check_span(span)
        is_linked = span.linked
        if isinstance(span, Span):
            self._provider.reclaim(span)
        self._refill(tracer, span, name, fields)
        ctx = self._execution.ctx
        if ctx is None or not isinstance(tracer, Tracer):
            if not is_linked:
                self._lose(ctx, span)
            self._context()
            raise TypeError("link_span needs a tracer: its span list takes the span")
        tracer._list(span, tracer.trace())  # noqa: SLF001  one of ours
        unlinked = ctx.get(UNLINKED)
        if is_linked:
            count(ctx, LISTED_AGAIN, 1)
        elif unlinked and span is unlinked[-1]:
            del unlinked[-1]
            if not unlinked:
                del ctx[UNLINKED]
        elif span is NOOP_SPAN:
            count(ctx, UNLISTED, -1)
        return span  # type: ignore[no-any-return]  # one or the other kind of span

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
        trace = self.namespace.trace
        return None if trace is None else trace.active

    def set_active_span(self, span: AnySpan | None = None) -> None:
        """Make ``span`` the active one, the implicit parent of the next; None clears (D6, T10).

        Raises:
            TypeError: it cannot be a span.
        """
        trace = self.namespace.trace
        if trace is None:
            if self._execution.span_ctx is None:
                return
            trace = self.trace()
        try:
            span.active = True  # type: ignore[union-attr]
        except AttributeError:
            flag_active(span)
        trace.active = span

    def process_span(self, processor: Callable[..., object] = MISSING, *extra: Any) -> None:
        """Show every span of this tracer's name, in the order of linking, to ``processor`` (D7, T9).

        Args:
            processor: called with the span and ``extra``; what it keeps must be a copy.
            extra: passed on.

        Raises:
            ApiError: the Kong phase is not log (R9), or ``processor`` cannot be called.
            AttributeError: a span has a tracer that can have no name, in profile ``kong``.
        """
        ctx = self._execution.ctx
        self._check_phase(ctx)
        if not is_processor(processor):
            raise ApiError("processor must be a function")
        name = self.name
        process: Callable[[AnySpan], object] = (lambda span: processor(span, *extra)) if extra else processor
        for span in self.get_spans():
            tracer = span.tracer
            if tracer is self or self._name_of(tracer) == name:
                process(span)

    def _name_of(self, tracer: Any) -> object:
        """The name of what a span has for a tracer, which may be anything (D16).

        Raises:
            AttributeError: it is of a type that has no fields, in profile ``kong``.
        """
        match tracer:
            case dict():
                return tracer.get("name")
            case None | False | str() | bytes() | list():
                return None
        return tracer.name if self._provider.profile.nil_raises else getattr(tracer, "name", None)

    def init_spans(self) -> list[Span]:
        """A new span list for the running request, in place of the one it has (D17)."""
        trace = self.trace()
        if trace.spans:
            count(self._context(), UNLISTED, len(trace.spans))
        self._provider.settle(trace)
        trace.spent = None
        return self.list_of(trace)

    def get_spans(self) -> list[Span]:
        """The span list of the running request; made when there is none (D17, T15)."""
        trace = self.namespace.trace
        if trace is None:
            trace = self.trace()
        return self.list_of(trace) if trace.spans is None else trace.spans

    def get_root_span(self) -> AnySpan | None:
        """The first span of the list, or None (D17)."""
        spans = self.get_spans()
        return spans[0] if spans else None

    def set_should_sample(self, should_sample: bool | None = None) -> None:
        """Write the sampling flag of every span now in the list (T14)."""
        for span in self.get_spans():
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
            AttributeError: something else than attributes was written there.
        """
        spans = self.get_spans()
        if not spans or self._is_propagation_only(spans[0]):
            return False
        trace_id: Any = tracing_context(self._context()).raw_trace_id
        if parent_should_sample is False or not is_given(trace_id):
            return is_given(parent_should_sample)
        if sampling_rate is None or sampling_rate is False:
            sampling_rate = self._provider.sampling_rate
        return is_given(sampling_rate) and self.decide(trace_id, sampling_rate)

    def sampler(self, trace_id: bytes = MISSING, rate: float | None = None) -> Decision:
        """The decision on a trace id at ``rate``, or at the tracer's own rate (M1)."""
        return sample(trace_id, rate if is_given(rate) else self.sampling_rate)

    def decide(self, trace_id: bytes, rate: float | None = None) -> bool:
        """The same as :meth:`sampler`; a failure is logged and means no (T12)."""
        sampled, error = sample(trace_id, self.sampling_rate if rate is None or rate is False else rate)
        if error is not None:
            self._provider.log("error", f"sampler failure: {error}")
        return bool(sampled)

    def _new_trace(self, ctx: Context, spans: list[Span] | None) -> Trace:
        trace = Trace()
        trace.spans = spans
        trace.active = None
        trace.spent = None
        namespace = self.namespace
        ctx[namespace.spans_key] = trace
        if ctx is self._execution.span_ctx:
            namespace.trace = trace
        return trace

    def trace(self) -> Trace:
        """The trace of the running request; made when there is none."""
        trace = self.namespace.trace
        if trace is not None:
            return trace
        ctx = self._context()
        trace = ctx.get(self.namespace.spans_key)
        return self._new_trace(ctx, None) if trace is None else trace

    def list_of(self, trace: Trace) -> list[Span]:
        """The span list of a trace; made when there is none. That of a request that has ended is what it was (E1)."""
        if trace.spans is not None:
            return trace.spans
        if trace.spent is not None:
            self._storage.look_at(trace.spent)
            return trace.spent
        trace.spans = self._storage.fetch()
        return trace.spans

    def _list(self, span: Any, trace: Trace) -> None:
        """List a span; where the list has been released, the span is lost (E1)."""
        try:
            self.list_of(trace).append(span)
        except ReleasedSpanError:
            self._provider.give_up([span])
            raise

    def _start_with(self, options: object, name: str, *given: Any) -> Span:
        """Start a span with options in a mapping; arguments go first."""
        named = zip((*_CHECKED, "parent"), given, strict=True)
        fields = _checked(options, {option: value for option, value in named if value is not None})
        span = self._create(self, fields)
        self._fill(self, span, name, fields)
        self._list(span, self.trace())
        return span

    def _create(self, tracer: Any, options: Mapping[str, Any]) -> Span:
        get = options.get
        provider = self._provider
        span = provider.spans.fetch()
        parent: Any = get("parent")
        has_tracer = is_given(tracer)
        if parent is None or parent is False:
            parent = tracer.active_span() if has_tracer else tracer
        span.parent = parent
        trace_id: Any
        trace_id, sampled, inherited_id = _identity(parent)
        if trace_id is None:
            trace_id = get("trace_id")
            if trace_id is None or trace_id is False:
                trace_id = provider.trace_ids.draw()
        if sampled is None:
            sampled = get("should_sample")
        if sampled is None:
            sampled = has_tracer and tracer.decide(trace_id)
        span.trace_id = trace_id
        span.parent_id = get("parent_id") if inherited_id is None else inherited_id
        span.should_sample = sampled
        span.span_id = provider.span_ids.draw()
        is_linked = isinstance(span, RelinkedSpan)
        if isinstance(span, ReleasedSpan):
            span.fetched(tracer)
        else:
            span.tracer = tracer
            span.name = None  # type: ignore[assignment]  # until it is linked
        if not is_linked:
            span.start_time_ns = None  # type: ignore[assignment]  # the same
        kind = get("span_kind")
        span.kind = INTERNAL if kind is None else kind
        return span

    def _fill(self, tracer: Tracer | NoopTracer | None, span: AnySpan, name: str, options: Mapping[str, Any]) -> None:
        start = options.get("start_time_ns")
        now = self._provider.time_ns() if start is None else start
        if not isinstance(span, Span):
            return
        if not is_given(span.tracer):
            span.tracer = tracer
        pool = self._attributes
        pool.given_up += span.attributes is not None
        span.attributes = lua_table(options.get("attributes"))
        pool.adopted += span.attributes is not None
        span.start_time_ns = now
        span.name = name

    def _refill(self, tracer: Any, span: AnySpan, name: str, options: Mapping[str, Any]) -> None:
        """Fill in a span that may have been released: then it is in its pool all the same."""
        if type(span) is RelinkedSpan:
            span.__class__ = ReleasedSpan  # type: ignore[assignment]
        self._fill(tracer, span, name, options)
        if type(span) is ReleasedSpan and self._provider.profile.recycles_held_objects:
            span.__class__ = RelinkedSpan

    def _lose(self, ctx: Context | None, span: AnySpan) -> None:
        """Book out a span that has got a start and no list."""
        if ctx is not None and span in ctx.get(UNLINKED, ()):
            ctx[UNLINKED].remove(span)
            count(ctx, UNLISTED, 1)
        self._provider.give_up([span])

    def _context(self) -> Context:
        ctx = self._execution.ctx
        if ctx is None:
            raise ApiError("no request found")
        return ctx

    def _is_propagation_only(self, root: AnySpan) -> bool:
        attributes: Any = root.attributes
        if attributes is None:
            if self._provider.profile.nil_raises:
                raise TypeError(f"the root span {root!r} has no attributes")
            return False
        if isinstance(attributes, (str, bytes, list)):
            return False
        return bool(attributes.get(PROPAGATION_ONLY, False) is not False)

    def _check_phase(self, ctx: dict[str, Any] | None) -> None:
        phase = ctx.get(KONG_PHASE) if ctx is not None else None
        if phase == "log":
            return
        if phase is None:
            if self._execution.phase.name != "content":
                raise ApiError("no phase in ngx.ctx.KONG_PHASE, (need one of log)")
            phase = _ADMIN_API
        raise ApiError(f"function cannot be called in {phase} phase (only in: log)")

    def __repr__(self) -> str:
        return f"<Tracer {self.name!r} in {self.namespace.name}>"


def leave_ended(tracer: Tracer | NoopTracer) -> None:
    """Make what is open active in place of a span that has ended.

    Finishing the active span makes its parent active, whether it is open or not (S9): where tasks wait at once and end
    in any order, what has ended stays active, and all that follows goes below it (T10).
    """
    active = tracer.active_span()
    above = next((span for span in line(active) if span.end_time_ns is None), None)
    if above is not active:
        tracer.set_active_span(above)


def meant(tracer: Any) -> Any:
    """The tracer that a handle stands for (:attr:`GlobalTracer.stands_for`), else what was given."""
    return getattr(tracer, "stands_for", tracer)


def is_processor(processor: object) -> bool:
    """Whether spans can be shown to it: a tracer can be called too, but is a table in Lua."""
    return callable(processor) and not isinstance(meant(processor), (Tracer, NoopTracer))


def _check_span(span: object) -> None:
    if not isinstance(span, (Span, NoopSpan)):
        raise TypeError(f"link_span needs a span, not {type(span).__name__}")
    if isinstance(span, SpanCopy):
        raise TypeError("link_span needs a span, not a copy of one, which belongs to no request")


def _check_name(name: object) -> None:
    if not is_text(name) or not name:
        raise ApiError("invalid span name")


_CHECKED = ("start_time_ns", "span_kind", "should_sample", "attributes")
_OPTIONS = (*_CHECKED, "parent", "trace_id", "parent_id")


def check_keywords(given: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse a keyword that no option has; in a mapping Kong looks at what it knows, and at nothing else.

    Raises:
        TypeError: there is one.
    """
    for name in given:
        if name not in known:
            raise TypeError(f"unexpected keyword argument {name!r}, expected one of {', '.join(known)}")


def _check_options(start_time_ns: object, span_kind: object, should_sample: object, attributes: object) -> None:
    """Check the types of the options in Kong's order (S3)."""
    if start_time_ns is not None and type(start_time_ns) is not int and not is_number(start_time_ns):
        raise ApiError("invalid start time")
    if span_kind is not None and type(span_kind) is not int and not is_number(span_kind):
        raise ApiError("invalid start kind")
    if should_sample is not None and not isinstance(should_sample, bool):
        raise ApiError("invalid sampled")
    if attributes is not None and type(attributes) is not dict and not is_table(attributes):
        raise ApiError("invalid attributes")


def _checked(options: object, given: dict[str, Any]) -> Mapping[str, Any]:
    """Options in a mapping, and those given by name, which go first; their types have been checked."""
    if given:
        check_keywords(given, _OPTIONS)
    fields = given
    # A table without named fields has no options.
    if isinstance(options, dict):
        fields = {**options, **given} if given else options
    elif options is not None and not is_table(options):
        raise ApiError("invalid options type")
    get = fields.get
    _check_options(get("start_time_ns"), get("span_kind"), get("should_sample"), get("attributes"))
    return fields


_Identity = tuple[bytes | None, bool | None, bytes | None]


def _identity(parent: Any) -> _Identity:
    """Trace id, sampling flag and span id of a parent, which may be any object with fields (T11); no id is False."""
    try:
        trace_id, is_sampled, span_id = parent.trace_id, parent.should_sample, parent.span_id
    except AttributeError:
        match parent:
            case None | False | str() | bytes() | list():
                return None, None, None
            case dict():
                trace_id, is_sampled, span_id = map(parent.get, ("trace_id", "should_sample", "span_id"))
            case bool() | int() | float():
                raise TypeError(f"a parent must be a span, not {type(parent).__name__}") from None
            case _:
                raise
    return None if trace_id is False else trace_id, is_sampled, None if span_id is False else span_id


def _plain_parent(parent: Any, active: Any) -> tuple[Any, bytes | None, bool | None, bytes | None]:
    """The same for a parent that is no span; False stands for none, which is the active span."""
    parent = active if parent is False else parent
    return parent, *_identity(parent)
