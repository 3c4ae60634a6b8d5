"""The tracer provider: what all tracers of one worker share.

It owns the pools, and is handed the clock, the ids, the log and the execution state of its worker; it makes tracers and
takes the spans of a request back when the request ends. Made after the fork, one per worker: nothing here is ever
shared between processes (kong-semantics P1).

Theory of operation of :meth:`TracerProvider.end_request`: every reference from span to span is dropped first. What
somebody still holds after that is held from outside the request, and is emptied wholly. Profile ``kong`` recycles it
regardless, as the real pools do; profile ``safe`` leaves it to its holder (``discarded``), and recycles neither
attribute tables nor lists, which cost no more to make than to empty. What nobody holds is recycled with what the next
start overwrites still in it: nobody can tell, and half of the emptying is saved (`tests/bench/bench_span.py`).
"""

from __future__ import annotations

from sys import getrefcount
from typing import TYPE_CHECKING, Any

from kongtrace.context import (
    DEFAULT_NAMESPACE,
    LISTED_AGAIN,
    TRACING_CONTEXT,
    UNLINKED,
    UNLISTED,
    Context,
    Execution,
    Trace,
    count,
)
from kongtrace.errors import ApiError, ReleasedSpanError
from kongtrace.ids import SPAN_ID_BYTES, TRACE_ID_BYTES, IdSupply
from kongtrace.lua import is_given, is_number, is_table, is_text, lua_text
from kongtrace.noop import NoopTracer
from kongtrace.pool import Balance, ListPool, Pool, PooledList, Unpooled
from kongtrace.profile import SAFE, Profile
from kongtrace.span import AnySpan, ReleasedSpan, Span, clear
from kongtrace.tracer import Tracer, check_keywords, meant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kongtrace.event import Event


def _references_of_the_unheld() -> int:
    """What :func:`getrefcount` counts while a loop is at an object that only its list refers to."""
    return next(getrefcount(obj) for obj in [object()])


_UNHELD = _references_of_the_unheld()

_OPTIONS = ("sampling_rate", "namespace", "noop")


def _joinable(namespace: Any) -> str:
    if not (is_text(namespace) or is_number(namespace)):
        raise TypeError(f"a namespace must be a string, not {type(namespace).__name__}")
    return lua_text(namespace)


class TracerProvider:
    """Makes the tracers of one worker and keeps what they share.

    Args:
        time_ns: the wall clock, ns since the epoch.
        random_bytes: gives that many random bytes; ids are drawn from it in blocks.
        execution: what the worker runs now; a new one when left out.
        log: takes a level ("debug", "info", "notice", "warn", "error") and a message.
        profile: ``SAFE`` or ``KONG``.
        sampling_rate: the configured ``tracing_sampling_rate``, 0 to 1 (D20).

    Attributes:
        foretell: given a request's context, what its trace id and sampling decision will be, where somebody is known to
            replace those that its spans have yet (:mod:`kongtrace.otel` asks); None: nobody will.

    Raises:
        TypeError: ``profile`` is no profile.
    """

    __slots__ = (
        "_ends_usable",
        "_memo",
        "_recycles_held",
        "attributes",
        "events",
        "execution",
        "foretell",
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
    released_class: type[ReleasedSpan] = ReleasedSpan
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
        if not isinstance(profile, Profile):
            raise TypeError(f"profile must be kongtrace.SAFE or kongtrace.KONG, not {profile!r}")
        self.time_ns = time_ns
        self.trace_ids = IdSupply(random_bytes, TRACE_ID_BYTES)
        self.span_ids = IdSupply(random_bytes, SPAN_ID_BYTES)
        self.execution = execution or Execution()
        self.log = log
        self.profile = profile
        self.sampling_rate = sampling_rate
        self.storage: ListPool[Span] | Unpooled[list[Span]] = Unpooled(list)
        self.attributes: Pool[dict[str, Any]] | Unpooled[dict[str, Any]] = Unpooled(dict)
        self.events: ListPool[Event] | Unpooled[list[Event]] = Unpooled(list)
        if profile.recycles_held_objects:
            self.storage = ListPool("KONG_SPAN_STORAGE", self.give_up)
            self.attributes = Pool("KONG_SPAN_ATTRIBUTES", dict, lambda table: table.clear())
            self.events = ListPool("KONG_SPAN_EVENTS")
        # Each span draws an id, so that the supply of ids counts them.
        self.spans: Pool[Span] = Pool("KONG_SPAN", self._new_span, clear, fetched=self.span_ids.used)
        self.noop_tracer = NoopTracer(self)
        self.global_tracer: Tracer | NoopTracer = self.noop_tracer
        self.on_global_tracer: Callable[[], None] = lambda: None
        self.foretell: Callable[[Context], tuple[bytes, bool] | None] = lambda _ctx: None
        self._recycles_held = profile.recycles_held_objects
        self._ends_usable = not profile.ends_unusable
        self._memo: dict[object, Tracer] = {}

    def new(self, name: Any = None, options: dict[str, Any] | None = None, **given: Any) -> Tracer | NoopTracer:
        """A tracer (D2).

        Args:
            name: the tracer's name, "default" when left out.
            options: ``sampling_rate`` (default 1.0, written into the table as Kong does, T3), ``namespace`` (default
                "KONG"), ``noop`` (true gives the no-op tracer).
            given: the same as keyword arguments, which go first.

        Raises:
            TypeError: name or namespace is neither a string nor a number, the options are no mapping, or there is no
                such keyword.
        """
        check_keywords(given, _OPTIONS)
        name = name if is_given(name) else "default"
        if not (is_text(name) or is_number(name)) or name != name:  # noqa: PLR0124  nan is no key in Lua
            raise TypeError(f"the name of a tracer must be a string, not {type(name).__name__}")
        name = lua_text(name) if isinstance(name, bytes) else name
        if is_given(options) and not is_table(options):
            raise TypeError(f"the options of a tracer must be a mapping, not {type(options).__name__}")
        # A table without named fields has no options.
        fields = options if isinstance(options, dict) else {}
        fields = {**fields, **given} if given else fields
        namespace, rate = fields.get("namespace"), fields.get("sampling_rate")
        namespace = _joinable(namespace) if is_given(namespace) else DEFAULT_NAMESPACE
        rate = rate if is_given(rate) else 1.0
        by_name = self.profile.memo_by_name
        identity = (namespace, name, str(rate))
        known = self._memo.get(f"{namespace}_{name}" if by_name else identity)
        if known is not None:
            return known
        if is_given(fields.get("noop")):
            return self.noop_tracer
        fields["sampling_rate"] = rate
        tracer = self._memo[name if by_name else identity] = self.tracer_class(name, self, rate, namespace)
        return tracer

    def set_global_tracer(self, tracer: object) -> None:
        """Make ``tracer`` the global one (T5).

        Raises:
            ApiError: it is not a tracer.
        """
        tracer = meant(tracer)
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
        if UNLINKED in ctx:
            self._end_unlinked(ctx)
        for namespace in self.execution.namespaces:
            trace: Trace | None = ctx.get(namespace.spans_key)
            if trace is None:
                continue
            spans = trace.spans
            if self._ends_usable:
                del ctx[namespace.spans_key]
                trace.active = None
                if namespace.trace is trace:
                    namespace.trace = None
            elif namespace.name != DEFAULT_NAMESPACE:
                self.settle(trace)
                continue
            trace.spans = None
            if spans is None:
                self._end_again(trace)
                continue
            self._take_back(spans)
            if self._recycles_held:
                # Kong's context refers to it as before, and shows whom it is lent to next.
                trace.spent = spans
                self.storage.release(spans)
                if spans:
                    self._empty(spans)
            else:
                # Whoever keeps the list must not see in it what its spans are used for next.
                spans.clear()

    def _empty(self, spans: list[Span]) -> None:
        """Empty the spans of a list that its pool has not taken: it shows them, and they wait for their next use."""
        for span in spans:
            if isinstance(span, Span) and span._settled is None and type(span) is self.span_class:
                clear(span)
                span.__class__ = self.released_class

    def _end_again(self, trace: Trace) -> None:
        """Take back what the released list of a trace has, since it was lent to another, and release it once more."""
        if trace.spent is not None and isinstance(self.storage, ListPool):
            self._take_back(trace.spent)
            self.storage.release_again(trace.spent)

    def _end_unlinked(self, ctx: Context) -> None:
        unlinked = [span for span in ctx.pop(UNLINKED) if not span.linked]
        if self.profile.keeps_unlinked:
            self.give_up(unlinked)
        else:
            ctx.pop(TRACING_CONTEXT, None)
            self._take_back(unlinked)

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

    def sweep(self) -> None:
        """The worker ends: look at what is still held after its request, where that is checked."""

    def release(self, span: Span) -> None:
        """Take one span back before its request ends (S16)."""
        ctx = self.execution.ctx
        if ctx is not None and span in ctx.get(UNLINKED, ()):
            ctx[UNLINKED].remove(span)
            if not span.linked:
                count(ctx, UNLISTED, 1)
        self._release(span, is_held=True)

    def settle(self, trace: Trace) -> None:
        """Book the spans of a trace out, and its list: they are left to the garbage collector."""
        if trace.spans is not None:
            self.give_up(trace.spans)
            self.storage.given_up += 1
            trace.spent, trace.spans = trace.spans, None
        elif trace.spent is not None:
            # It may have been added to since.
            self.give_up(trace.spent)

    def give_up(self, spans: Iterable[AnySpan]) -> None:
        """Book spans out, and what belongs to them: they are left to the garbage collector."""
        for span in dict.fromkeys(spans):
            # One that was released by hand, and the no-op span, have no id.
            if isinstance(span, Span) and span.span_id is not None and span._settled is None:
                span._settled = (span.attributes is not None, span.events is not None)
                self._book_out(*span._settled, times=1)

    def has_given_up(self, span: Span) -> bool:
        """Whether no request will take a span back: the balance has it already."""
        return span._settled is not None

    def reclaim(self, span: Span) -> None:
        """Undo that where a span that was booked out is linked, or released by hand, all the same."""
        if span._settled is not None:
            self._book_out(*span._settled, times=-1)
            span._settled = None

    def _book_out(self, has_attributes: bool, has_events: bool, *, times: int) -> None:
        self.spans.given_up += times
        self.attributes.given_up += times * has_attributes
        self.events.given_up += times * has_events

    def made_in(self, ctx: Context) -> tuple[int, int]:
        """What a request has made; asked before its end.

        Returns:
            The number of its spans, where one that is listed several times counts as often (T7), and how often that is
            more than once.
        """
        listed = 0
        for namespace in self.execution.namespaces:
            trace: Trace | None = ctx.get(namespace.spans_key)
            if trace is not None and trace.spans is not None:
                listed += len(trace.spans)
        if UNLINKED in ctx:
            listed += sum(1 for span in ctx[UNLINKED] if not span.linked and span.span_id is not None)
        return listed + ctx.get(UNLISTED, 0), ctx.get(LISTED_AGAIN, 0)

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
        return {
            "KONG_SPAN": self.spans.balance(),
            "KONG_SPAN_STORAGE": self.storage.balance(),
            "KONG_SPAN_ATTRIBUTES": self.attributes.balance(),
            "KONG_SPAN_EVENTS": self.events.balance(),
        }

    def _new_span(self) -> Span:
        span = self.span_class()
        span._provider = self
        clear(span)
        return span

    def _release(self, span: Span, *, is_held: bool) -> None:
        self.reclaim(span)
        # Anything can be written into a field; a pool takes what it can lend.
        if isinstance(span.attributes, dict):
            self.attributes.release(span.attributes)
        if isinstance(span.events, PooledList):
            self.events.release(span.events)
        if is_held and not self._recycles_held:
            self.spans.leave(span)
        else:
            self.spans.release(span)
        if span.span_id is not None:
            # The pool is full, and has left it as it was.
            span._settled = (span.attributes is not None, span.events is not None)
            self.events.look_at(span.events)
        elif is_held:
            span.__class__ = self.released_class

    def _release_singly(self, spans: list[Span]) -> None:
        for span in spans:
            if isinstance(span, Span) and span.span_id is not None:
                is_held = getrefcount(span) > _UNHELD
                self._release(span, is_held=is_held)

    def _take_back(self, spans: list[Span]) -> None:
        """Release each span that has not been released yet, in order: all at once where the pool has room."""
        pool = self.spans
        count = len(spans)
        if count >= pool.due or count > pool.free_max - len(pool.free):
            self._release_singly(spans)
            return
        recycles = self._recycles_held
        if recycles:
            self._release_tables(spans)
        are_unheld = True
        for span in reversed(spans):  # children first: they hold their parents
            if span.span_id is None:
                # Released by hand, or the no-op span.
                are_unheld = False
                continue
            # Separate statements: a chain of them takes half as many instructions more.
            span.parent = None
            span.attributes = None
            span.events = None
            span.end_time_ns = None
            span.status = None
            span.active = None
            if getrefcount(span) > _UNHELD:
                are_unheld = False
        span = None  # type: ignore[assignment]
        if are_unheld or (recycles and self._are_emptied(spans)):
            pool.due -= count
            pool.free += spans
        else:
            self._release_singly(spans)

    def _release_tables(self, spans: list[Span]) -> None:
        """Release what belongs to spans, where each stands first; those that were released have given it back."""
        tables: list[dict[str, Any]] = []
        events: list[list[Event]] = []
        for span in spans:
            if span.span_id is not None:
                if span._settled is not None:
                    self.reclaim(span)
                table = span.attributes
                if type(table) is dict or isinstance(table, dict):
                    tables.append(table)
                    span.attributes = None
                if span.events is not None and isinstance(span.events, PooledList):
                    events.append(span.events)
                    span.events = None
        self.attributes.release_all(tables)
        if events:
            self.events.release_all(events)

    def _are_emptied(self, spans: list[Span]) -> bool:
        """Empty the spans that somebody holds; not when one is listed twice or has been released by hand."""
        if len(set(spans)) < len(spans) or any(span.span_id is None for span in spans):
            return False
        for span in spans:
            if getrefcount(span) > _UNHELD:
                clear(span)
                span.__class__ = self.released_class
        return True
