"""The span, and the inert one that stands in for it.

A span is created, linked into its request's span list, finished, and at the end of the request released (kong-semantics
S6). Finishing and releasing are different moments: a finished span can still be read and written.

Ownership: a span belongs to the request that started it, from creation to release; whoever needs it longer takes a
copy. ``attributes`` and ``events`` belong to the span; a mapping given as ``attributes`` is stored, not copied (S4).
After release every field is None and a call of a method is an error; profile ``kong`` soon lends the span to another
request, whoever still holds it (P6, P7). A span takes no weak reference, which would show it waiting in the pool.

All times are integers in ns since the epoch, wall clock.
"""

from __future__ import annotations

from copy import deepcopy
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.semconv.attributes.exception_attributes import EXCEPTION_MESSAGE

from kongtrace.errors import ApiError
from kongtrace.event import Event
from kongtrace.lua import is_given, is_number, is_table, is_text, lua_text, lua_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kongtrace.noop import NoopTracer
    from kongtrace.provider import TracerProvider
    from kongtrace.tracer import Tracer

UNSPECIFIED, INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = range(6)
"""Span kinds (S1)."""

STATUS_UNSET, STATUS_OK, STATUS_ERROR = range(3)
"""Status codes (S15)."""

EXCEPTION_EVENT = "exception"
"""Name of the event that :meth:`Span.record_error` adds (S14)."""

LINE_MAX = 100
"""Spans above each other that are looked at."""

MISSING: Any = None
"""Default of an argument that must be given: Kong reports its absence as a wrong type."""


_CARRIED = (str, int, float, bytes, list, dict, tuple)
"""Types of attribute values that an exporter can write (S11)."""


class Span:
    """One operation of a trace. Made by a tracer, never by hand.

    Attributes:
        name: string; None before the span is linked.
        trace_id: 16 random bytes, or inherited, or given (any length).
        span_id: 8 random bytes.
        parent_id: bytes, or None for a root.
        parent: the parent span, or None.
        kind: 0 unspecified, 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
        start_time_ns: ns since the epoch; None before the span is linked.
        end_time_ns: ns since the epoch; None while the span is open.
        should_sample: the sampling flag.
        attributes: mapping, or None until the first attribute.
        events: list of :class:`Event`, or None until the first event.
        status: number, or None.
        active: True once the span was made the active one.
        tracer: the tracer that made the span, or else the one that linked it, or None.
    """

    __slots__ = (
        "_provider",
        "_settled",
        "active",
        "attributes",
        "end_time_ns",
        "events",
        "kind",
        "name",
        "parent",
        "parent_id",
        "should_sample",
        "span_id",
        "start_time_ns",
        "status",
        "trace_id",
        "tracer",
    )

    _provider: TracerProvider
    _settled: tuple[bool, bool] | None  # None unless the provider's books are closed on it: had it attributes, events?
    name: str
    trace_id: bytes
    span_id: bytes | Any  # None after release
    parent_id: bytes | None
    parent: AnySpan | None
    kind: int
    start_time_ns: int
    end_time_ns: int | None
    should_sample: bool | None
    attributes: dict[str, Any] | None
    events: list[Event] | None
    status: float | None
    active: bool | None
    tracer: Tracer | NoopTracer | None
    is_recording = True

    @property
    def linked(self) -> bool | None:
        """True once the span is in a span list: linking is what starts it."""
        return True if self.start_time_ns is not None else None

    def finish(self, end_time_ns: float | None = None) -> None:
        """End the span and, when it is the active one, make its parent active (S9).

        Args:
            end_time_ns: ns since the epoch; now when left out. An end before the start is logged and ignored: the span
                stays open. A second call has no effect.

        Raises:
            ApiError: ``end_time_ns`` is not a number.
            ReleasedSpanError: the span has been released (in profile ``safe`` that is logged).
        """
        if self.end_time_ns is not None:
            return
        if end_time_ns is None:
            time_ns = self._provider.time_ns
            self.end_time_ns = time_ns()
        elif type(end_time_ns) is int and end_time_ns >= self.start_time_ns:
            self.end_time_ns = end_time_ns
        elif not self._end(end_time_ns):
            return
        if self.active:
            try:
                trace = self.tracer.namespace.trace  # type: ignore[union-attr]
            except AttributeError:
                trace = self._provider.trace_of_nobody()
            if trace is not None and trace.active is self:
                parent = self.parent
                if parent is not None:
                    try:
                        parent.active = True
                    except AttributeError:
                        flag_active(parent)
                trace.active = parent
                self.active = None

    def set_attribute(self, key: str = MISSING, value: Any = None) -> None:
        """Set one attribute; ``None`` removes it (S11).

        Args:
            key: string.
            value: string, number, boolean, list or mapping. Anything else is logged at level error, but for a span or a
                tracer, and stored all the same; the exporter writes it without a value.

        Raises:
            ApiError: ``key`` is not a string.
            ReleasedSpanError: the span has been released (in profile ``safe`` that is logged).
        """
        if type(key) is not str and not is_text(key):
            raise ApiError("invalid key")
        kind = type(value)
        if kind is not str and kind is not int and kind is not bool and not isinstance(value, _CARRIED):
            self._set_unusual(key, value)
            return
        attributes = self.attributes
        if attributes is not None:
            attributes[key] = value
            return
        free = self._provider.attributes.free
        if free is None:
            self.attributes = {key: value}
        else:
            attributes = self.attributes = free.pop() if free else self._provider.attributes.fetch()
            attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes; the same as one :meth:`set_attribute` for each (documented usage, C3)."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(
        self,
        name: str = MISSING,
        attributes: dict[str, Any] | None = None,
        time_ns: int | None = None,
    ) -> None:
        """Append an event (S13).

        Args:
            name: string.
            attributes: mapping, kept by reference, never pooled.
            time_ns: ns since the epoch; now when left out.

        Raises:
            ApiError: ``name`` is not a string, or ``attributes`` is neither None nor a mapping.
            ReleasedSpanError: the span has been released (in profile ``safe`` that is logged), or its events have been.
        """
        if not is_text(name):
            raise ApiError("invalid name")
        if attributes is not None and not is_table(attributes):
            raise ApiError("invalid attribute")
        provider = self._provider
        events = self.events
        if events is None:
            events = self.events = provider.events.fetch()
        now = provider.time_ns() if time_ns is None or time_ns is False else time_ns
        events.append(Event(name, now, attributes))

    def record_error(self, err: object = None) -> None:
        """Append the event ``exception`` with the attribute ``exception.message`` (S14); the status is left alone."""
        message = err if isinstance(err, (str, bytes)) else lua_text(err)
        self.add_event(EXCEPTION_EVENT, {EXCEPTION_MESSAGE: message})

    def set_status(self, status: float = MISSING) -> None:
        """Set the status: 0 unset, 1 ok, 2 error; any number is stored (S15).

        Raises:
            ApiError: ``status`` is not a number.
            ReleasedSpanError: the span has been released (in profile ``safe`` that is logged).
        """
        if not is_number(status):
            raise ApiError("invalid status")
        self.status = status

    def release(self) -> None:
        """Give the memory back now instead of at the end of the request (S16).

        The span stays in the span list of its request, which skips it from then on.

        Raises:
            ReleasedSpanError: the span has been released (in profile ``safe`` that is logged).
        """
        self._provider.release(self)

    def each_baggage_item(self) -> Callable[[], None]:
        """A callable that does nothing; Kong's placeholder for baggage (D19)."""
        return _nothing

    def __copy__(self) -> SpanCopy:
        """A copy that shares attributes and events, as Lua's ``table.clone`` gives it (C12)."""
        copied = SpanCopy.__new__(SpanCopy)
        for name in Span.__slots__:
            setattr(copied, name, getattr(self, name))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> SpanCopy:
        """A copy with attributes and events of its own, and without parent and tracer: it can be kept (E3)."""
        copied = self.__copy__()
        copied.parent = copied.tracer = None
        copied.attributes = deepcopy(self.attributes, memo)
        events = self.events
        # In a plain list: one of a pool's would be a copy of what its holder can do with it.
        copied.events = deepcopy(list(events) if isinstance(events, list) else events, memo)
        return copied

    def _end(self, end_time_ns: float) -> bool:
        if not is_number(end_time_ns):
            raise ApiError("invalid span end time")
        if end_time_ns < self.start_time_ns:
            duration = lua_text(end_time_ns - self.start_time_ns)
            self._provider.log("error", f"invalid span duration: {duration} for span: {lua_text(self.name)}")
            return False
        self.end_time_ns = end_time_ns  # type: ignore[assignment]  # a number is kept as it was given
        return True

    def _set_unusual(self, key: str, value: object) -> None:
        provider = self._provider
        attributes = self.attributes
        if attributes is None:
            attributes = self.attributes = provider.attributes.fetch()
        if value is None:
            attributes.pop(key, None)
            return
        # Kong's spans and tracers are tables.
        if not isinstance(value, (Span, NoopSpan, provider.tracer_class, type(provider.noop_tracer))):
            provider.log("error", f"invalid span attribute value type: {lua_type(value)}")
        attributes[key] = value

    def __repr__(self) -> str:
        if not self.span_id:
            return "<Span released>"
        return f"<Span {_SHOWN.repr(self.name)} {_digits(self.trace_id)}/{_digits(self.span_id)}>"


class ReleasedSpan(Span):
    """What somebody still holds of a span that has been released: its fields are None, and its methods refuse (P11).

    In profile ``kong`` it waits in the pool all the same; the tracer that starts a span with it makes a span of it
    again (P7).
    """

    __slots__ = ()

    def finish(self, end_time_ns: Any = None) -> None:  # noqa: ARG002  the same parameters
        """Refuse, as every method does.

        Raises:
            ReleasedSpanError: in a profile where the real span would fail; in profile ``safe`` that is logged.
        """
        self._provider.used_after_release("finish")

    def set_attribute(self, key: Any = None, value: Any = None) -> None:  # noqa: ARG002  see above
        """See :meth:`finish`."""
        self._provider.used_after_release("set_attribute")

    def add_event(self, name: Any = None, attributes: Any = None, time_ns: Any = None) -> None:  # noqa: ARG002  see above
        """See :meth:`finish`."""
        self._provider.used_after_release("add_event")

    def set_status(self, status: Any = None) -> None:  # noqa: ARG002  see above
        """See :meth:`finish`."""
        self._provider.used_after_release("set_status")

    def release(self) -> None:
        """See :meth:`finish`."""
        self._provider.used_after_release("release")

    def each_baggage_item(self) -> Callable[[], None]:
        """See :meth:`finish`."""
        self._provider.used_after_release("each_baggage_item")
        return _nothing

    def __copy__(self) -> SpanCopy:
        """A copy whose methods refuse like those of the span."""
        copied = super().__copy__()
        copied.__class__ = ReleasedSpan  # type: ignore[assignment]
        return copied

    @property
    def tracer(self) -> Tracer | NoopTracer | None:
        """None, or what has been written there; the one that starts a span with it has given it an id before."""
        return _TRACER.__get__(self)  # type: ignore[no-any-return]

    @tracer.setter
    def tracer(self, tracer: Tracer | NoopTracer | None) -> None:
        if self.span_id is None:
            _TRACER.__set__(self, tracer)
        else:
            self.fetched(tracer)
            # To start is to link, which takes them away (S7).
            self.attributes = None

    def fetched(self, tracer: Tracer | NoopTracer | None) -> None:
        """Be a span again, of ``tracer`` where there is none since the release."""
        self.__class__ = self._provider.span_class  # type: ignore[assignment]
        if not is_given(self.tracer):
            self.tracer = tracer


class RelinkedSpan(ReleasedSpan):
    """A span that was linked after its release, in profile ``kong``: it is listed, and waits in the pool all the same.

    The tracer that fetches it makes a span of it again, but it stays with the tracer that linked it, and what is only
    created has kept name, start and attributes (P7).
    """

    __slots__ = ()

    @property
    def tracer(self) -> Tracer | NoopTracer | None:
        """The tracer that linked it; written by the one that starts a span with it, which takes the attributes away."""
        return _TRACER.__get__(self)  # type: ignore[no-any-return]

    @tracer.setter
    def tracer(self, tracer: Tracer | NoopTracer | None) -> None:
        self.fetched(tracer)
        self._provider.attributes.given_up += self.attributes is not None
        self.attributes = None


_TRACER: Any = vars(Span)["tracer"]


class SpanCopy(Span):
    """What :func:`copy.copy` and :func:`copy.deepcopy` make of a span. It belongs to no request and to no pool."""

    __slots__ = ()

    def set_attribute(self, key: str = MISSING, value: Any = None) -> None:
        """See :meth:`Span.set_attribute`."""
        if self.attributes is None:
            self.attributes = {}
        super().set_attribute(key, value)

    def add_event(
        self, name: str = MISSING, attributes: dict[str, Any] | None = None, time_ns: int | None = None
    ) -> None:
        """See :meth:`Span.add_event`."""
        if self.events is None:
            self.events = []
        self._provider.events.look_at(self.events)
        super().add_event(name, attributes, time_ns)

    def release(self) -> None:
        """Do nothing: there is no memory to give back."""


def clear(span: Span) -> None:
    """Empty every field: what the pool does to a span (P6)."""
    span.tracer = span.parent = span.name = span.trace_id = span.span_id = span.parent_id = None  # type: ignore[assignment]
    span.kind = span.start_time_ns = span.end_time_ns = span.should_sample = span.attributes = None  # type: ignore[assignment]
    span.events = span.status = span.active = span._settled = None  # noqa: SLF001  as much a field as the others


def line(span: AnySpan | None) -> Iterator[Span]:
    """A span and those above it, so far as it is no ring, which the release of a span by hand can make of it (P12)."""
    for _ in range(LINE_MAX):
        if not isinstance(span, Span):
            return
        yield span
        span = span.parent


def flag_active(span: Any) -> None:
    """Flag as active what is no span: a plain mapping. A list cannot be flagged; None and False stand for none.

    Raises:
        TypeError: it cannot be a span.
    """
    if isinstance(span, dict):
        span["active"] = True
    elif span is not None and span is not False and not isinstance(span, list):
        raise TypeError(f"the active span must be a span, not {type(span).__name__}")


_SHOWN: Final = Repr()
_SHOWN.maxstring = _SHOWN.maxother = 100
"""Shows whatever was written into a field, and never raises."""


def _digits(value: object) -> str:
    """An id in hexadecimal digits, as which exporters write it into their copies too."""
    return _SHOWN.repr(value.hex() if isinstance(value, bytes) else value).strip("'")


def _nothing() -> None:
    return None


class NoopSpan:
    """The span that records nothing, given where tracing is off or the phase forbids it (S17).

    It has no ids and no name; every method accepts anything; writing to it is swallowed. One instance serves all.
    """

    __slots__ = ()

    is_recording = False
    name = trace_id = span_id = parent_id = parent = tracer = kind = start_time_ns = end_time_ns = None
    should_sample = attributes = events = status = linked = active = None

    def finish(self, end_time_ns: Any = None) -> None:
        """Do nothing."""

    def set_attribute(self, key: Any = None, value: Any = None) -> None:
        """Do nothing."""

    def set_attributes(self, attributes: Any = None) -> None:
        """Do nothing."""

    def add_event(self, name: Any = None, attributes: Any = None, time_ns: Any = None) -> None:
        """Do nothing."""

    def record_error(self, err: Any = None) -> None:
        """Do nothing."""

    def set_status(self, status: Any = None) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing; Kong's no-op span lacks this method and fails (C9, H11)."""

    def each_baggage_item(self) -> Callable[[], None]:
        """A callable that does nothing."""
        return _nothing

    def __setattr__(self, name: str, value: object) -> None:
        """Swallow the write (S17)."""

    def __repr__(self) -> str:
        return "<NoopSpan>"


NOOP_SPAN = NoopSpan()

AnySpan = Span | NoopSpan
