"""The tracer provider: what all tracers of one worker share.

It owns the pools, and is handed the clock, the ids, the log and the execution state of its worker; it makes tracers and
takes the spans of a request back when the request ends. Made after the fork, one per worker: nothing here is ever
shared between processes (kong-semantics P1).

Theory of operation of :meth:`TracerProvider.end_request`: the spans of the request are emptied first, all of them, which
drops every reference from span to span. What somebody still holds after that is held from outside the request. Profile
``kong`` recycles it regardless, as the real pools do; profile ``safe`` leaves it to its holder (``discarded``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct
from sys import getrefcount
from typing import Any

from kongtrace.context import DEFAULT_NAMESPACE, TRACING_CONTEXT, UNLINKED, Context, Execution, Trace, spans_key
from kongtrace.errors import ApiError, ReleasedSpanError
from kongtrace.noop import NoopTracer
from kongtrace.pool import Balance, Pool, balances
from kongtrace.profile import SAFE, Profile
from kongtrace.span import Event, Span, clear
from kongtrace.tracer import Tracer

TRACE_ID_BYTES = 16
SPAN_ID_BYTES = 8
IDS_PER_BLOCK = 512

_DEFAULT_KEY = spans_key(DEFAULT_NAMESPACE)

_SPENT: tuple[Span, ...] = ()
"""Stands for the span list of a request that has ended: it is empty, and nothing can be appended to it."""


class IdSupply:
    """An endless supply of random ids, drawn in blocks because one draw costs more than the id.

    Args:
        random_bytes: gives that many random bytes.
        size: bytes of one id. No id is all zero (W3C Trace Context 3.2.2.3).

    Attributes:
        drawn: ids that wait for use; take one with ``drawn.pop()``, and with :meth:`draw` when it is empty.
    """

    __slots__ = ("_random_bytes", "_unpack", "_zero", "drawn")

    def __init__(self, random_bytes: Callable[[int], bytes], size: int) -> None:
        self._random_bytes = random_bytes
        self._unpack = Struct(f"{size}s" * IDS_PER_BLOCK)
        self._zero = bytes(size)
        self.drawn: list[bytes] = []

    def draw(self) -> bytes:
        """The next id."""
        if not self.drawn:
            block = self._random_bytes(self._unpack.size)
            while self._zero in block:
                block = self._random_bytes(self._unpack.size)
            self.drawn.extend(self._unpack.unpack(block))
        return self.drawn.pop()


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
        "_keys",
        "_memo",
        "attributes",
        "events",
        "execution",
        "global_tracer",
        "log",
        "new_attributes",
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
        self.noop_tracer = NoopTracer(self)
        self.global_tracer: Tracer | NoopTracer = self.noop_tracer
        self.on_global_tracer: Callable[[], None] = lambda: None
        self.spans: Pool[Span] = Pool("KONG_SPAN", lambda: self.span_class(self), clear)
        self.storage: Pool[list[Span]] = Pool("KONG_SPAN_STORAGE", list, list.clear)
        self.attributes: Pool[dict[str, Any]] = Pool("KONG_SPAN_ATTRIBUTES", dict, lambda table: table.clear())
        self.events: Pool[list[Event]] = Pool("KONG_SPAN_EVENTS", list, list.clear)
        self._memo: dict[Any, Tracer] = {}
        self._keys: list[str] = [_DEFAULT_KEY]
        self.new_attributes: Callable[[], dict[str, Any]] = (
            self.attributes.fetch if profile.recycles_held_objects else self.attributes.make
        )

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
        options = {} if options is None or options is False else options
        if not isinstance(name, (str, bytes, int, float)) or isinstance(name, bool):
            raise TypeError(f"the name of a tracer must be a string, not {type(name).__name__}")
        if not isinstance(options, (dict, list)):
            raise TypeError(f"the options of a tracer must be a mapping, not {type(options).__name__}")
        fields: dict[str, Any] = options if isinstance(options, dict) else {}
        namespace = fields.get("namespace") or DEFAULT_NAMESPACE
        known = self._memo.get(f"{namespace}_{name}")
        if known is not None:
            return known
        if fields.get("noop"):
            return self.noop_tracer
        rate = fields.get("sampling_rate")
        rate = fields["sampling_rate"] = 1.0 if rate is None or rate is False else rate
        # Kong looks a tracer up by namespace and name and stores it by name alone (T2).
        tracer = self._memo[name] = self.tracer_class(name, self, rate, namespace)
        if tracer.spans_key not in self._keys:
            self._keys.append(tracer.spans_key)
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

    def release(self, span: Span) -> None:
        """Take one span back before its request ends (S16)."""
        if self.profile.recycles_held_objects:
            self._recycle(span)
        else:
            self._detach(span)

    def end_request(self, ctx: Context) -> None:
        """Take back every span of a request; the last act of its log phase (E1 step 7).

        After it no span of the request is live. Spans of other namespaces than ``KONG`` and spans that were never
        linked are recycled in profile ``safe`` and left to the garbage collector in profile ``kong`` (E2, P13).
        """
        unlinked = ctx.pop(UNLINKED, None)
        if self.profile.recycles_held_objects:
            if unlinked is not None:
                self.give_up([span for span in unlinked if span.name is None])
            for key in self._keys:
                trace: Trace | None = ctx.get(key)
                if trace is None or trace.spans is None:
                    continue
                if key == _DEFAULT_KEY:
                    self._take_back(trace.spans)
                    self.storage.release(trace.spans)
                else:
                    self.give_up(trace.spans)
                    self.storage.discard()
                trace.spans = _SPENT  # type: ignore[assignment]
            return
        if unlinked is not None:
            ctx.pop(TRACING_CONTEXT, None)
            self._take_back([span for span in unlinked if span.name is None])
            del unlinked
        for key in self._keys:
            trace = ctx.pop(key, None)
            if trace is not None and trace.spans is not None:
                trace.active = None
                self._take_back(trace.spans)
                self.storage.release(trace.spans)

    def abandon_request(self, ctx: Context) -> None:
        """Give up every span of a request whose log phase failed: nothing is recycled (E4)."""
        self.give_up([span for span in ctx.pop(UNLINKED, ()) if span.name is None])
        for key in self._keys:
            trace: Trace | None = ctx.pop(key, None)
            if trace is not None and trace.spans is not None:
                self.give_up(trace.spans)
                self.storage.discard()

    def balances(self) -> dict[str, Balance]:
        """The balance of each pool by its tag."""
        return balances((self.spans, self.storage, self.attributes, self.events))  # type: ignore[arg-type]

    def _take_back(self, spans: list[Span]) -> None:
        count = len(spans)
        spares_held = not self.profile.recycles_held_objects
        if self.spans.is_due(count) or self.attributes.is_due(count):
            if not spares_held:
                self._take_back_singly(spans)
                return
            self.spans.replace()
            self.attributes.replace()
        elif self.spans.room() < count and not spares_held:
            self._take_back_singly(spans)
            return
        room = 0 if spares_held else self.attributes.room()
        with_table = 0
        tables: list[dict[str, Any]] = []
        cleared: list[Span] = []
        for span in spans:
            if span.span_id is None:
                # Released by hand, listed twice, or the no-op span.
                continue
            table = span.attributes
            if table is not None:
                with_table += 1
                if len(tables) < room:
                    table.clear()
                    tables.append(table)
            if span.events is not None:
                self.events.release(span.events)
            span.tracer = span.parent = span.name = span.trace_id = span.span_id = span.parent_id = span.kind = None  # type: ignore[assignment]
            span.start_time_ns = span.end_time_ns = span.should_sample = span.attributes = span.events = None  # type: ignore[assignment]
            span.status = span.active = None
            cleared.append(span)
        self.attributes.put_back(tables, with_table)
        released = len(cleared)
        if spares_held:
            # The request's list, `cleared`, the loop's variable and the call's argument hold the span.
            span = None  # type: ignore[assignment]
            cleared = [span for span in cleared if getrefcount(span) <= 4][: self.spans.room()]
        self.spans.put_back(cleared, released)

    def _take_back_singly(self, spans: list[Span]) -> None:
        for span in spans:
            if span.span_id is not None:
                self._recycle(span)

    def _recycle(self, span: Span) -> None:
        if span.attributes is not None:
            self.attributes.release(span.attributes)
        if span.events is not None:
            self.events.release(span.events)
        self.spans.release(span)

    def _detach(self, span: Span) -> None:
        self.give_up([span])
        clear(span)

    def give_up(self, spans: Iterable[Span]) -> None:
        """Leave spans to the garbage collector, and say so in the balance."""
        for span in spans:
            if span.span_id is None:
                continue
            self.spans.discarded += 1
            self.attributes.discarded += span.attributes is not None
            self.events.discarded += span.events is not None
