"""The tracer provider: what all tracers of one worker share.

It owns the pools, and is handed the clock, the ids, the log and the execution state of its worker; it makes tracers and
takes the spans of a request back when the request ends. Made after the fork, one per worker: nothing here is ever
shared between processes (kong-semantics P1).

Theory of operation of :meth:`TracerProvider.end_request`: the spans of the request are emptied first, all of them,
which drops every reference from span to span. What somebody still holds after that is held from outside the request.
Profile ``kong`` recycles it regardless, as the real pools do; profile ``safe`` leaves it to its holder (``discarded``),
and recycles neither attribute tables nor lists, which cost no more to make than to empty.
"""

from __future__ import annotations

from sys import getrefcount
from typing import TYPE_CHECKING, Any, NoReturn

from kongtrace.context import (
    DEFAULT_NAMESPACE,
    TRACING_CONTEXT,
    UNLINKED,
    Context,
    Execution,
    Trace,
)
from kongtrace.errors import ApiError, ReleasedSpanError
from kongtrace.ids import SPAN_ID_BYTES, TRACE_ID_BYTES, IdSupply
from kongtrace.noop import NoopTracer
from kongtrace.pool import Balance, Pool
from kongtrace.profile import SAFE, Profile
from kongtrace.span import AnySpan, Event, Span, clear, is_number
from kongtrace.tracer import Tracer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_UNHELD = 2
"""References to a span that is only in a list, as :func:`getrefcount` gives them: from the list and from the call."""


class SpentList(list[Span]):
    """Stands for the span list of a request that has ended: it is empty, and takes no span (E1)."""

    def __init__(self, give_up: Callable[[Iterable[Span]], None]) -> None:
        super().__init__()
        self._give_up = give_up

    def append(self, span: Span) -> NoReturn:
        """Refuse the span.

        Raises:
            ReleasedSpanError: always.
        """
        self._give_up([span])
        raise ReleasedSpanError("the span list of this request has been released")


class TracerProvider:
    """Makes the tracers of one worker and keeps what they share.

    Args:
        time_ns: the wall clock, ns since the epoch.
        random_bytes: gives that many random bytes; ids are drawn from it in blocks.
        execution: what the worker runs now; a new one when left out.
        log: takes a level ("debug", "info", "notice", "warn", "error") and a message.
        profile: ``SAFE`` or ``KONG``.
        sampling_rate: the configured ``tracing_sampling_rate``, 0 to 1 (D20).
    """

    __slots__ = (
        "_memo",
        "_recycles_held",
        "_spent",
        "attributes",
        "events",
        "execution",
        "global_tracer",
        "log",
        "noop_tracer",
        "on_global_tracer",
        "profile",
        "sampling_rate",
        "span_ids",
        "spans",
        "storage",
        "time_ns",
        "trace_ids",
    )

    span_class: type[Span] = Span
    tracer_class: type[Tracer] = Tracer

    def __init__(
        self,
        *,
        time_ns: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        execution: Execution | None = None,
        log: Callable[[str, str], None] = lambda _level, _message: None,
        profile: Profile = SAFE,
        sampling_rate: float = 1.0,
    ) -> None:
        self.time_ns = time_ns
        self.trace_ids = IdSupply(random_bytes, TRACE_ID_BYTES)
        self.span_ids = IdSupply(random_bytes, SPAN_ID_BYTES)
        self.execution = execution or Execution()
        self.log = log
        self.profile = profile
        self.sampling_rate = sampling_rate
        recycles = profile.recycles_held_objects
        self.storage: Pool[list[Span]] = Pool("KONG_SPAN_STORAGE", list, list.clear, recycles=recycles)
        self.attributes: Pool[dict[str, Any]] = Pool(
            "KONG_SPAN_ATTRIBUTES", dict, lambda table: table.clear(), recycles=recycles
        )
        self.events: Pool[list[Event]] = Pool("KONG_SPAN_EVENTS", list, list.clear, recycles=recycles)
        # Each span draws an id, so that the supply of ids counts them.
        self.spans: Pool[Span] = Pool("KONG_SPAN", self._new_span, clear, fetched=self.span_ids.used)
        self.noop_tracer = NoopTracer(self)
        self.global_tracer: Tracer | NoopTracer = self.noop_tracer
        self.on_global_tracer: Callable[[], None] = lambda: None
        self._recycles_held = recycles
        self._memo: dict[object, Tracer] = {}
        self._spent = SpentList(self.give_up)

    def new(self, name: Any = None, options: dict[str, Any] | None = None) -> Tracer | NoopTracer:
        """A tracer (D2).

        Args:
            name: the tracer's name, "default" when left out.
            options: ``sampling_rate`` (default 1.0, written into the table as Kong does, T3), ``namespace`` (default
                "KONG"), ``noop`` (true gives the no-op tracer).

        Raises:
            TypeError: the name is neither a string nor a number, or the options are no mapping.
        """
        name = "default" if name is None or name is False else name
        if not (isinstance(name, str) or is_number(name)):
            raise TypeError(f"the name of a tracer must be a string, not {type(name).__name__}")
        if options and not isinstance(options, (dict, list)):
            raise TypeError(f"the options of a tracer must be a mapping, not {type(options).__name__}")
        # A table without named fields has no options.
        fields = options if isinstance(options, dict) else {}
        namespace = fields.get("namespace") or DEFAULT_NAMESPACE
        rate = fields.get("sampling_rate")
        rate = 1.0 if rate is None or rate is False else rate
        by_name = self.profile.memo_by_name
        identity = (namespace, name, str(rate))
        known = self._memo.get(f"{namespace}_{name}" if by_name else identity)
        if known is not None:
            return known
        if fields.get("noop"):
            return self.noop_tracer
        fields["sampling_rate"] = rate
        tracer = self._memo[name if by_name else identity] = self.tracer_class(name, self, rate, namespace)
        return tracer

    def set_global_tracer(self, tracer: object) -> None:
        """Make ``tracer`` the global one (T5).

        Raises:
            ApiError: it is not a tracer.
        """
        if not isinstance(tracer, (Tracer, NoopTracer)):
            raise ApiError("invalid tracer")
        self.global_tracer = tracer
        self.on_global_tracer()

    def used_after_release(self, method: str) -> None:
        """Report a call of ``method`` on a released span.

        Raises:
            ReleasedSpanError: in a profile where the real span would fail.
        """
        message = f"{method}() was called on a span that has been released"
        if self.profile.released_span_raises:
            raise ReleasedSpanError(message)
        self.log("error", message)

    def end_request(self, ctx: Context) -> None:
        """Take back every span of a request; the last act of its log phase (E1 step 7).

        After it no span of the request is live. Spans of other namespaces than ``KONG`` and spans that were never
        linked are recycled in profile ``safe`` and left to the garbage collector in profile ``kong`` (E2, P13).
        """
        profile = self.profile
        if UNLINKED in ctx:
            unlinked = [span for span in ctx.pop(UNLINKED) if not span.linked]
            if profile.keeps_unlinked:
                self.give_up(unlinked)
            else:
                ctx.pop(TRACING_CONTEXT, None)
                self._take_back(unlinked)
        for namespace in self.execution.namespaces:
            key = namespace.spans_key
            if key not in ctx:
                continue
            trace: Trace = ctx[key]
            spans = trace.spans
            if not profile.ends_unusable:
                del ctx[key]
                trace.active = namespace.trace = None
            elif namespace.name != DEFAULT_NAMESPACE:
                self.settle(trace)
                continue
            if spans is not None and spans is not self._spent:
                trace.spans = self._spent
                self._take_back(spans)
                self.storage.release(spans)

    def abandon_request(self, ctx: Context) -> None:
        """Give up every span of a request whose log phase failed: nothing is recycled (E4)."""
        if UNLINKED in ctx:
            self.give_up(span for span in ctx.pop(UNLINKED) if not span.linked)
        for namespace in self.execution.namespaces:
            trace: Trace | None = ctx.pop(namespace.spans_key, None)
            if trace is not None:
                self.settle(trace)
                if namespace.trace is trace:
                    namespace.trace = None

    def release(self, span: Span) -> None:
        """Take one span back before its request ends (S16)."""
        ctx = self.execution.ctx
        if not span.linked and ctx is not None:
            ctx[UNLINKED] = [other for other in ctx.get(UNLINKED, ()) if other is not span]
        self._release(span)

    def settle(self, trace: Trace) -> None:
        """Book the spans of a trace out, and its list: they are left to the garbage collector."""
        if trace.spans is not None and trace.spans is not self._spent and not trace.settled:
            trace.settled = True
            self.give_up(trace.spans)
            self.storage.discarded += 1

    def give_up(self, spans: Iterable[AnySpan]) -> None:
        """Book spans out, and what belongs to them: they are left to the garbage collector."""
        for span in dict.fromkeys(spans):
            # One that was released by hand, and the no-op span, have no id.
            if span.span_id is not None:
                self.spans.discarded += 1
                self.attributes.discarded += span.attributes is not None
                self.events.discarded += span.events is not None

    def trace_of_nobody(self) -> Trace | None:
        """The trace of the running request for a span that has no tracer.

        Raises:
            TypeError: in profile ``kong``.
        """
        if self.profile.nil_raises:
            raise TypeError("a span without a tracer cannot be active when it is finished")
        return self.execution.namespace(DEFAULT_NAMESPACE).trace

    def balances(self) -> dict[str, Balance]:
        """The balance of each pool by its tag."""
        return {pool.tag: pool.balance() for pool in (self.spans, self.storage, self.attributes, self.events)}

    def _new_span(self) -> Span:
        span = self.span_class()
        span._provider = self  # noqa: SLF001  # a span is made here and nowhere else
        clear(span)
        return span

    def _release(self, span: Span) -> None:
        if span.attributes is not None:
            self.attributes.release(span.attributes)
        if span.events is not None:
            self.events.release(span.events)
        if self._recycles_held:
            self.spans.release(span)
        else:
            self.spans.leave(span)

    def _release_singly(self, spans: Iterable[AnySpan]) -> None:
        for span in spans:
            if isinstance(span, Span) and span.span_id is not None:
                self._release(span)

    def _take_back(self, spans: list[Span]) -> None:
        """Release each span that has not been released yet, in order: all at once where the pools have room."""
        pool, table_pool = self.spans, self.attributes
        count = len(spans)
        if len(pool.free) + count > pool.free_max or pool.due <= count or table_pool.due <= count:
            self._release_singly(spans)
            return
        tables: list[dict[str, Any]] = []
        rest: list[AnySpan] | None = None
        pending: Iterator[AnySpan] = iter(spans)
        for span in pending:
            if span.span_id is None:
                # Released by hand, listed twice, or the no-op span: from here on one by one.
                rest = [*pending]
                del spans[count - len(rest) - 1 :]
                break
            if span.attributes is not None:
                tables.append(span.attributes)
            if span.events is not None:
                self.events.release(span.events)
            span.tracer = span.parent = span.name = span.trace_id = span.span_id = span.parent_id = span.kind = None
            span.start_time_ns = span.end_time_ns = span.should_sample = span.attributes = span.events = None
            span.status = span.active = None
        span = None  # type: ignore[assignment]
        without_room = len(tables) + len(table_pool.free) - table_pool.free_max
        if without_room > 0:
            del tables[len(tables) - without_room :]
        else:
            without_room = 0
        for table in tables:
            table.clear()
        table_pool.put_back(tables, without_room)
        if self._recycles_held or sum(map(getrefcount, spans)) == _UNHELD * len(spans):
            pool.put_back(spans)
        else:
            unheld = [span for span in spans if getrefcount(span) <= _UNHELD + 1]
            pool.put_back(unheld, len(spans) - len(unheld))
        if rest:
            self._release_singly(rest)
