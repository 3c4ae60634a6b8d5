"""The checked span: a build of the tracer that reports misuse, for plugin authors and for tests.

Public names: :func:`tracer_provider` makes a provider in one of the modes of :class:`~kongtrace.findings.Mode`. In mode
``off`` that is the plain :class:`~kongtrace.provider.TracerProvider`, and nothing is paid. In the others it is a
:class:`CheckedProvider`, whose ``findings``, a :class:`~kongtrace.findings.FindingLog`, has what was found. What the
codes mean stands in :mod:`kongtrace.findings` and `docs/findings.md`. Calls have the results that they have without the
checks, except that mode ``raise`` raises :class:`~kongtrace.findings.FindingError`, and that recycling is not seen.

    provider = tracer_provider("report", on_finding=lambda found: print(found.text()), time_ns=..., random_bytes=...)

Theory of operation.

*Handles.* The plain span is recycled: whoever kept it sees the span of another request, and nobody can tell. Here a
handle is used once. When a span is released, its handle becomes a :class:`ReleasedSpan` for good, and a new handle
takes its place in the pool's free list; likewise its tables. So the generation of a span is its identity, and a stale
handle is recognised however late it is used, while the balances of the pools are those of the plain build. To withhold
handles from the pool for a while (quarantine) would do too, until the while is over, and would change the balances.

*Holders.* After the end of a request nothing may hold what was lent to it. What is still referenced then is looked at
again some :data:`SWEEP_REQUESTS` requests later (:mod:`kongtrace.custody`), and reported with its holder;
:meth:`CheckedProvider.sweep` looks at once, for the end of a worker.

*Stacks* begin with the first caller outside this package. Mode ``count`` takes one line of them.

*Tables.* Of a table that a caller gave, a copy is kept that the span's own methods change too: whoever else changes the
table is found out when the span ends, and when its request does.

Not seen are spans of requests that never end, and what is done behind a span's back with a table that it made itself.
"""

from __future__ import annotations

from functools import cache
from inspect import iscoroutine
from sys import _getframe, getrefcount
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from kongtrace.context import DEFAULT_NAMESPACE, KONG_PHASE, TRACING_CONTEXT, UNLINKED, Context, Trace, spans_key
from kongtrace.custody import Custody, Held, description, holder
from kongtrace.findings import Code, Finding, FindingLog, Frame, Mode, Stack
from kongtrace.lua import is_number, is_table, is_text, lua_type
from kongtrace.noop import NoopTracer
from kongtrace.otlp import ATTRIBUTE_ROOM
from kongtrace.pool import ListPool, PooledList
from kongtrace.provider import TracerProvider
from kongtrace.span import AnySpan, ReleasedSpan, Span, SpanCopy
from kongtrace.tracer import PROPAGATION_ONLY, Tracer, is_processor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from kongtrace.pool import Pool, Unpooled

T = TypeVar("T")

SWEEP_REQUESTS = 100
"""Requests from one look at what is held to the next."""

CUSTODY_MAX = 10_000
"""Held objects that bring the next look forward."""

NAMES_MAX = 200
"""Names of spans that one tracer may have; of tracers that requests may make."""

KEYS_MAX = 200
"""Names of attributes that spans of one name may have."""

ATTRIBUTES_MAX = 128
"""Attributes of one span, and events; OpenTelemetry's SDKs keep no more (`OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT`)."""

VALUE_CHARACTERS_MAX = 16_384
"""Length of a value; backends keep some thousands."""

TRACERS_MAX = 20
"""How often requests may make a tracer of one name."""

DISTINCT_MAX = 1000
"""Names of tracers that are watched."""

STACK_DEPTH_MAX = 24
"""Lines of a stack."""

TOLERANCE_NS = 1_000_000
"""How far a child may reach beyond its parent (kong-semantics H19)."""

SPAN, ATTRIBUTES, EVENTS, LIST = "the span", "its attributes", "its events", "the list that begins with the span"
"""What is lent."""

_DAY_NS = 86_400 * 10**9
_BEYOND_NS = 10**19  # the year 2286
_REQUEST = "KONG_CHECKED"
_DEFAULT_KEY = spans_key(DEFAULT_NAMESPACE)
_FIELDS = frozenset(name for name in Span.__slots__ if not name.startswith("_")) | {"linked"}

_OURS = frozenset(f"kongtrace.{name}" for name in ("checked", "span", "tracer", "provider", "pool", "otel"))
"""Modules that read and write spans on their own account."""


def tracer_provider(
    mode: Mode | str = Mode.OFF, *, on_finding: Callable[[Finding], object] | None = None, **arguments: Any
) -> TracerProvider:
    """A provider of tracers that checks as ``mode`` says.

    Args:
        mode: "off", "count", "report" or "raise".
        on_finding: called with each finding the first time; in modes "report" and "raise".
        arguments: of :class:`~kongtrace.provider.TracerProvider`.

    Raises:
        ValueError: there is no such mode.
    """
    if Mode(mode) is Mode.OFF:
        return TracerProvider(**arguments)
    return CheckedProvider(FindingLog(Mode(mode), on_finding), **arguments)


class _Request:
    """What the checks know of one request; kept in its context.

    Attributes:
        asked: key of the span list and name of each tracer that ``process_span`` was called on.
        tables: which span owns an attribute table that was given, by the table's id.
        in_log: the log phase has begun.
        leaked: spans that were found active when they should not be, or the root that was not when it should.
        cleared: where it was last said that no span is active, and in which phase.
    """

    __slots__ = ("asked", "cleared", "in_log", "leaked", "tables")

    def __init__(self) -> None:
        self.asked: set[tuple[str, str]] = set()
        self.tables: dict[int, _Record] = {}
        self.in_log = False
        self.cleared: tuple[Stack, str] | None = None
        self.leaked: set[_Record] = set()


class _Record:
    """What the checks know of one span, also after its release.

    Attributes:
        request: to which it belongs; None when it was made outside any.
        phase: in which it was made.
        creation: where it was made.
        name: of the span, once it is linked and if it is text.
        table: its attribute table, while it is live, when the caller gave one.
        has_callers_table: the caller gave one.
        written: what stands in that table by right; None when nobody has an eye on it.
        activated: where it was last made active.
        flagged: where its sampling flag was last written by hand.
        error: where an error was last recorded on it.
        kept: where a processor was called that kept it, and how many references there were before.
        unshown: how many references there were before any processor that still keeps it was called.
        copied: where a processor was called that kept one of its tables, and how many references there were before.
        let_go: where it was released by hand.
        read: where it was last read or written after its release.
        released: it has been given back.
        shown: a processor has seen it.
        mistimed: its end was refused.
    """

    __slots__ = (
        "activated",
        "copied",
        "creation",
        "error",
        "flagged",
        "has_callers_table",
        "kept",
        "let_go",
        "mistimed",
        "name",
        "phase",
        "read",
        "released",
        "request",
        "shown",
        "table",
        "unshown",
        "written",
    )

    def __init__(self, request: _Request | None, phase: str, creation: Stack) -> None:
        self.request = request
        self.phase = phase
        self.creation = creation
        self.name: str | None = None
        self.table: dict[str, Any] | None = None
        self.written: dict[str, Any] | None = None
        self.activated: Stack | None = None
        self.flagged: Stack | None = None
        self.error: Stack | None = None
        self.kept: tuple[Stack, int] | None = None
        self.copied: tuple[Stack, int] | None = None
        self.unshown = 0
        self.let_go: Stack | None = None
        self.read: Frame | None = None
        self.has_callers_table = self.shown = self.mistimed = self.released = False

    def own(self, table: dict[str, Any] | None) -> None:
        """Have the table that the caller gave, in place of an earlier one."""
        if self.request is not None:
            if self.table is not None:
                self.request.tables.pop(id(self.table), None)
            if table is not None:
                self.request.tables[id(table)] = self
        self.table = table
        self.written = None if table is None else {**table}
        self.has_callers_table |= table is not None

    def write(self, key: str, value: object) -> None:
        """The span has changed its table by :meth:`Span.set_attribute`."""
        if self.written is not None:
            self.written[key] = value
            if value is None:
                del self.written[key]

    def changes(self) -> list[object]:
        """The keys of the caller's table that another hand has changed since it was given, or since the last call."""
        table, written = self.table, self.written
        if table is None or written is None:
            return []
        self.written = {**table}
        return [key for key in {**table, **written} if table.get(key) is not written.get(key)]

    def is_table_held(self) -> bool:
        """Whether anybody but the span has its table."""
        return getrefcount(self.table) > _UNHELD


def _references_of_the_unheld() -> int:
    record = _Record(None, "", ())
    record.table = {}
    span = [record.table]
    return getrefcount(record.table) if span else 0


_UNHELD = _references_of_the_unheld()
"""What :func:`getrefcount` counts of a table that a span and its record refer to."""

_NOBODY = _Record(None, "", ())
"""Stands for what is known of a span that waits in the pool, or that is none of a checked tracer's."""

_FLAG: Any = Span.__dict__["should_sample"]


class CheckedSpan(Span):
    """A span whose every call is checked; what it does is what :class:`~kongtrace.span.Span` does."""

    __slots__ = ("__weakref__", "record")

    _provider: CheckedProvider
    record: _Record

    def __init__(self) -> None:
        self.record = _NOBODY

    @property
    def should_sample(self) -> bool | None:
        """The sampling flag."""
        return _FLAG.__get__(self)  # type: ignore[no-any-return]

    @should_sample.setter
    def should_sample(self, value: bool | None) -> None:
        _FLAG.__set__(self, value)
        if not _is_ours(_getframe(1)):
            self.record.flagged = self._provider.stack()

    def finish(self, end_time_ns: Any = None) -> None:
        """See :meth:`Span.finish`."""
        if self._provider.touched(self, "finish"):
            self._provider.finishing(self, end_time_ns)
        super().finish(end_time_ns)

    def set_attribute(self, key: Any = None, value: Any = None) -> None:
        """See :meth:`Span.set_attribute`."""
        self._provider.changing(self, "set_attribute", {key: value} if is_text(key) else None)
        super().set_attribute(key, value)
        self.record.write(key, value)

    def add_event(self, name: Any = None, attributes: Any = None, time_ns: Any = None) -> None:
        """See :meth:`Span.add_event`."""
        self._provider.changing(self, "add_event", attributes)
        super().add_event(name, attributes, time_ns)

    def record_error(self, err: object = None) -> None:
        """See :meth:`Span.record_error`."""
        super().record_error(err)
        self.record.error = self._provider.stack()

    def set_status(self, status: Any = None) -> None:
        """See :meth:`Span.set_status`."""
        self._provider.changing(self, "set_status")
        super().set_status(status)

    def release(self) -> None:
        """See :meth:`Span.release`."""
        if self._provider.touched(self, "release"):
            self._provider.releasing(self)
        super().release()

    def __copy__(self) -> SpanCopy:
        """See :meth:`Span.__copy__`."""
        self._provider.touched(self, "copy")
        return super().__copy__()


class DiscardedSpan(CheckedSpan):
    """What the handle of a span becomes that a full pool left as it was (P5): it works, and every use is a finding."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name in _FIELDS and not _is_ours(caller := _getframe(1)):
            self._provider.read(self, f"{name} was read", caller)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in _FIELDS and not _is_ours(caller := _getframe(1)):
            self._provider.read(self, f"{name} was written", caller)
        object.__setattr__(self, name, value)


class CheckedReleasedSpan(DiscardedSpan, ReleasedSpan):
    """What the handle of every other span becomes that is released: its methods refuse as well."""

    __slots__ = ()


class CheckedTracer(Tracer):
    """A tracer whose every call is checked; what it does is what :class:`~kongtrace.tracer.Tracer` does."""

    __slots__ = ()

    _provider: CheckedProvider

    def start_span(self, *arguments: Any, **given: Any) -> AnySpan:
        """See :meth:`Tracer.start_span`."""
        span = super().start_span(*arguments, **given)
        self._provider.started(span)
        return span

    def create_span(self, *arguments: Any, **given: Any) -> AnySpan:
        """See :meth:`Tracer.create_span`."""
        span = super().create_span(*arguments, **given)
        if isinstance(span, CheckedSpan):
            self._provider.created(span)
        return span

    def link_span(self, *arguments: Any, **given: Any) -> AnySpan:
        """See :meth:`Tracer.link_span`."""
        span = super().link_span(*arguments, **given)
        if isinstance(span, CheckedSpan) and self._provider.touched(span, "link_span"):
            self._provider.linked(span)
        return span

    def set_active_span(self, span: AnySpan | None = None) -> None:
        """See :meth:`Tracer.set_active_span`."""
        if isinstance(span, CheckedSpan):
            self._provider.activating(span)
        elif span is None:
            self._provider.clearing()
        super().set_active_span(span)

    def process_span(self, processor: Any = None, *extra: Any) -> None:
        """See :meth:`Tracer.process_span`."""
        super().process_span(self._provider.processing(self, processor), *extra)

    def get_sampling_decision(self, *arguments: Any, **given: Any) -> bool:
        """See :meth:`Tracer.get_sampling_decision`."""
        self._provider.deciding(self.get_root_span())
        return super().get_sampling_decision(*arguments, **given)


class CheckedProvider(TracerProvider):
    """Makes checked tracers, and judges what is done with their spans.

    Args:
        findings: takes what is found.
        arguments: of :class:`~kongtrace.provider.TracerProvider`.

    Attributes:
        findings: the same.
        context_of_task: gives the context of the request that the running task belongs to, where something else tells
            it than the execution, whose request may have the turn meanwhile; else None.
        remembers: whether a span's own request is meant wherever no other runs, since its API keeps the two together.
        wrappers: types whose instances stand for a span.
        carriers: types whose instances may hold those, and spans, after the request.
    """

    __slots__ = ("_custody", "_depth", "_ended", "_freed", "_keys", "_made", "_names", "findings")

    span_class = CheckedSpan
    released_class = CheckedReleasedSpan
    tracer_class = CheckedTracer
    context_of_task: Callable[[], Context | None] = staticmethod(lambda: None)
    remembers: Callable[[Span], bool] = staticmethod(lambda _span: False)
    wrappers: tuple[type, ...] = ()
    carriers: tuple[type, ...] = (CheckedSpan, Trace, _Record)

    def __init__(self, findings: FindingLog, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.findings = findings
        self._depth = 1 if findings.mode is Mode.COUNT else STACK_DEPTH_MAX
        self._custody: Custody[_Record] = Custody()
        self._ended = 0
        # Spans released by hand that are still listed, and whose memory is free for the next.
        self._freed: list[_Record] = []
        self._names: dict[str, set[str]] = {}
        self._keys: dict[str | None, set[Any]] = {}
        self._made: dict[Any, int] = {}

    def new(self, name: Any = None, options: dict[str, Any] | None = None, **given: Any) -> Tracer | NoopTracer:
        """See :meth:`TracerProvider.new`."""
        tracer = super().new(name, options, **given)
        if self.execution.span_ctx is not None and (name in self._made or len(self._made) < DISTINCT_MAX):
            self._made[name] = made = self._made.get(name, 0) + 1
            if made > TRACERS_MAX:
                self._report(Code.TRACER_PER_REQUEST, f"requests have made tracer {name!r} {made} times")
            elif len(self._made) > NAMES_MAX:
                self._report(Code.TRACER_PER_REQUEST, f"requests have made tracers of more than {NAMES_MAX} names")
        return tracer

    # What spans and tracers tell, before they do it or right after.

    def started(self, span: AnySpan) -> None:
        """A span was started; it is the noop span where there can be none."""
        phase = self.execution.phase.name
        if not isinstance(span, CheckedSpan):
            self._report(Code.FORBIDDEN_PHASE, f"start_span() gave the noop span in phase {phase}")
            return
        self.created(span)
        self.linked(span)
        if phase == "ssl_cert":
            self._report(Code.FORBIDDEN_PHASE, f"the span is lost at the end of phase {phase}", span.record)

    def created(self, span: CheckedSpan) -> None:
        """A span was taken from the pool."""
        ctx = self.execution.ctx
        request = None if ctx is None else ctx.setdefault(_REQUEST, _Request())
        span.record = _Record(request, self.execution.phase.name, self.stack())
        parent = span.parent.record if isinstance(span.parent, CheckedSpan) else _NOBODY
        if parent.released:
            self._report(Code.USE_AFTER_RELEASE, "a span was started below a released one", parent)
        elif parent is not _NOBODY and parent.request is not request:
            self._report(Code.FOREIGN_REQUEST, "a span was started below one of another request", parent)
        if self._freed:
            freed = self._freed.pop()
            message = f"another span has started in {'its' if freed.request is request else 'another'} request since"
            self.findings.add(self._finding(Code.LISTED_TWICE, message, freed, freed.let_go))

    def linked(self, span: CheckedSpan) -> None:
        """A span got its name and, maybe, a table from the caller."""
        record = span.record
        record.name = span.name if is_text(span.name) else None
        if span.attributes is not None:
            self._adopt(record, span.attributes)
            if len(span.attributes) > ATTRIBUTES_MAX:
                self._report(Code.ATTRIBUTE_SIZE, f"the span begins with {len(span.attributes)} attributes", record)
        record.own(span.attributes)
        self._check_values(record, span.attributes)
        if record.name is not None and isinstance(span.tracer, (Tracer, NoopTracer)):
            self._check_name(record, record.name, span.tracer.name)

    def touched(self, span: CheckedSpan, method: str) -> bool:
        """A method is called; whether the span is live, so that there is more to look at."""
        record = span.record
        if record.released:
            code = Code.DOUBLE_RELEASE if method == "release" else Code.USE_AFTER_RELEASE
            self._report(code, f"{method}() was called on a released span", record)
            return False
        self._look_at_log()
        ctx = self.execution.ctx
        running = None if ctx is None else ctx.get(_REQUEST)
        if record.request is not None and running is not record.request and not self._is_meant(span, running):
            self._report(
                Code.FOREIGN_REQUEST, f"{method}() was called while the span's request was not running", record
            )
        return True

    def _is_meant(self, span: CheckedSpan, running: _Request | None) -> bool:
        """Whether it is the span's own request that a call is made for, though another has the turn, or none."""
        if running is None and self.remembers(span):
            return True
        ctx = self.context_of_task()
        return ctx is not None and ctx.get(_REQUEST) is span.record.request

    def read(self, span: DiscardedSpan, what: str, caller: FrameType) -> None:
        """A field of a released span was used; told once where one line uses several."""
        record = span.record
        site = Frame(caller.f_code.co_filename, caller.f_lineno, caller.f_code.co_name)
        if record.read != site:
            record.read = site
            self._report(Code.USE_AFTER_RELEASE, f"its {what} after the release", record)

    def changing(self, span: CheckedSpan, method: str, attributes: object = None) -> None:
        """What an exporter will see is changed."""
        if not self.touched(span, method):
            return
        record = span.record
        if record.shown:
            self._report(Code.CHANGED_AFTER_EXPORT, f"{method}() was called after process_span()", record)
        elif span.end_time_ns is not None:
            self._report(Code.CHANGED_AFTER_FINISH, f"{method}() was called after finish()", record)
        self._check_values(record, attributes)
        if method == "set_attribute" and span.attributes is not None and len(span.attributes) == ATTRIBUTES_MAX:
            self._report(Code.ATTRIBUTE_SIZE, f"the span has {ATTRIBUTES_MAX} attributes already", record)
        elif method == "add_event" and span.events is not None and len(span.events) == ATTRIBUTES_MAX:
            self._report(Code.ATTRIBUTE_SIZE, f"the span has {ATTRIBUTES_MAX} events already", record)

    def late(self, span: CheckedSpan, method: str) -> None:
        """A method is called on a span that has ended, and has no effect."""
        if self.touched(span, method):
            if method == "finish":
                self.finishing(span, None)
            else:
                self.changing(span, method)

    def finishing(self, span: CheckedSpan, end_time_ns: Any) -> None:
        """The span is about to end."""
        record = span.record
        start_time_ns = span.start_time_ns
        if span.end_time_ns is not None:
            if record.request is not None and record in record.request.leaked:
                # The gateway ends what was left active, whatever it is.
                return
            self._report(Code.FINISHED_TWICE, "finish() was called again", record)
            return
        keys = record.changes()
        if keys and record.is_table_held():
            message = f"its caller has changed {_listed(keys)} in the table that it gave"
            self.findings.add(self._finding(Code.CALLERS_TABLE, message, record, record.creation))
        if record.shown:
            self._report(Code.FINISHED_AFTER_EXPORT, "finish() was called after process_span()", record)
        elif is_number(end_time_ns) and span.linked and not start_time_ns <= end_time_ns < _BEYOND_NS:
            record.mistimed = True
            self._report(
                Code.WRONG_UNIT,
                f"finish({_shown(end_time_ns)}) was called on a span that began at {_shown(start_time_ns)}",
                record,
            )

    def releasing(self, span: CheckedSpan) -> None:
        """The span is about to be released by hand."""
        record = span.record
        trace = span.tracer.namespace.trace if isinstance(span.tracer, Tracer) else None
        found = [
            self._finding(Code.RELEASED_NEEDED, f"release() was called on {role}", record)
            for role in _roles(span, trace)
        ]
        if span.linked and span.end_time_ns is None:
            found.append(self._finding(Code.RELEASED_OPEN, "release() was called before finish()", record))
        self.findings.add(*found)
        if span.linked:
            record.let_go = self.stack()
            self._freed.append(record)

    def activating(self, span: CheckedSpan) -> None:
        """The span is about to be made active."""
        if not self.touched(span, "set_active_span"):
            return
        span.record.activated = self.stack()
        if self.execution.span_ctx is None:
            phase = self.execution.phase.name
            self._report(Code.FORBIDDEN_PHASE, f"set_active_span() has no effect in phase {phase}", span.record)

    def clearing(self) -> None:
        """No span is to be active."""
        ctx = self.execution.span_ctx
        if ctx is not None and _REQUEST in ctx:
            ctx[_REQUEST].cleared = self.stack(), self.execution.phase.name

    def deciding(self, root: AnySpan | None) -> None:
        """The sampling decision is about to look at the root span."""
        if isinstance(root, CheckedSpan) and root.attributes is None:
            self._report(Code.BARE_ROOT, "get_sampling_decision() met a root span without attributes", root.record)

    def processing(self, tracer: Tracer, processor: Any) -> Any:
        """Spans are about to be shown to ``processor``; gives the function to show them to."""
        self._look_at_log()
        ctx = self.execution.ctx
        phase = None if ctx is None else ctx.get(KONG_PHASE)
        if ctx is None or phase != "log":
            where = phase or self.execution.phase.name
            self._report(Code.PROCESSED_WRONGLY, f"process_span() was called in phase {where}")
        elif is_processor(processor):
            request: _Request = ctx.setdefault(_REQUEST, _Request())
            request.asked.add((tracer.spans_key, tracer.name))
            _forgive(tracer.get_spans())
            return self._watched(processor)
        return processor

    def stack(self) -> Stack:
        """Where the call that runs in this package comes from."""
        frame: FrameType | None = _getframe(1)
        while frame is not None and _leads_here(frame.f_globals.get("__name__")):
            frame = frame.f_back
        lines: list[Frame] = []
        while frame is not None and len(lines) < self._depth:
            code = frame.f_code
            lines.append(Frame(code.co_filename, frame.f_lineno, code.co_name))
            frame = frame.f_back
        return tuple(lines)

    # The end of spans.

    def release(self, span: Span) -> None:
        """See :meth:`TracerProvider.release`."""
        lent = list(_lent([span]))
        super().release(span)
        self._retire(lent)
        # The span itself is still in its request's list.
        self._custody.take(held for held in lent if held.table is not None)

    def end_request(self, ctx: Context) -> None:
        """See :meth:`TracerProvider.end_request`.

        Raises:
            FindingError: in mode raise, once the request has ended.
        """
        for _key, spans in self._lists(ctx):
            _forgive(spans)
        request = self._forget(ctx)
        found = [] if request is None else self._gathered(self._examined(ctx, request))
        lent = list(self._lent(ctx))
        super().end_request(ctx)
        if TRACING_CONTEXT in ctx:
            # The gateway's very last act is to empty the context (E1): what it refers to is not held.
            ctx[TRACING_CONTEXT].unlinked_spans.clear()
        self._retire_lists(ctx)
        self._retire(lent)
        self._custody.take(lent)
        self._ended += 1
        if self._ended % SWEEP_REQUESTS == 0 or len(self._custody) > CUSTODY_MAX:
            found += self._gathered(self._overdue())
        self.findings.add(*found)

    def abandon_request(self, ctx: Context) -> None:
        """See :meth:`TracerProvider.abandon_request`."""
        self._forget(ctx)
        super().abandon_request(ctx)

    def sweep(self) -> None:
        """See :meth:`TracerProvider.sweep`.

        Raises:
            FindingError: in mode raise.
        """
        self.findings.add(*self._gathered(self._overdue()), *self._gathered(self._overdue()))

    def _forget(self, ctx: Context) -> _Request | None:
        """Take what is known of a request out of its context; None when it had no span."""
        request: _Request | None = ctx.pop(_REQUEST, None)
        if self._freed:
            self._freed = [record for record in self._freed if record.request is not request]
        return request

    def _lent(self, ctx: Context) -> Iterator[Held[_Record]]:
        yield from _lent([span for span in ctx.get(UNLINKED, ()) if not span.linked])
        for _key, spans in self._lists(ctx):
            yield from _lent(spans)
            if isinstance(spans[0], CheckedSpan):
                yield Held(spans[0].record, LIST, table=spans)

    def _lists(self, ctx: Context) -> Iterator[tuple[str, list[Span]]]:
        """The span lists of a request that are not empty, with their keys."""
        for key in self._keys_of(ctx):
            if ctx[key].spans:
                yield key, ctx[key].spans

    def _keys_of(self, ctx: Context) -> Iterator[str]:
        """Where a request has its traces."""
        return (namespace.spans_key for namespace in self.execution.namespaces if namespace.spans_key in ctx)

    def _retire_lists(self, ctx: Context) -> None:
        """Put new lists in the place of those that the context of an ended request still refers to."""
        if isinstance(self.storage, ListPool):
            lists = [ctx[key].spent for key in self._keys_of(ctx)]
            for spans in lists:
                self.storage.look_at(spans)
            _renew(self.storage, set(map(id, lists)), PooledList)

    def _retire(self, lent: list[Held[_Record]]) -> None:
        """Make the handles that were lent unusable, and put new ones in their places in the pools."""
        used = set()
        for held in lent:
            obj = held.lent()
            used.add(id(obj))
            held.of.own(None)
            held.of.released = True
            if type(obj) is CheckedSpan:
                obj.__class__ = CheckedReleasedSpan if obj.span_id is None else DiscardedSpan
        _renew(self.spans, used, self._new_span)
        _renew(self.attributes, used, dict[str, Any])
        _renew(self.events, used, PooledList)

    # Judgement.

    def _gathered(self, findings: Iterator[Finding]) -> list[Finding]:
        """Findings, so far as they can be had: what they look at may be anything, and a request has to end."""
        gathered: list[Finding] = []
        try:
            gathered.extend(findings)
        except Exception as error:  # noqa: BLE001  a program's own values may raise whatever they like
            self.log("error", f"a check came to nothing: {error!r}")
        return gathered

    def _examined(self, ctx: Context, request: _Request) -> Iterator[Finding]:
        """What is wrong with a request that ends now."""
        yield from self._left_active(ctx, request)
        for key, listed in self._lists(ctx):
            spans = list({id(span): span for span in listed if _is_live(span)}.values())
            for span in spans:
                yield from self._end(span, request, is_root=span is listed[0])
                yield from self._bounds(span, request)
                yield from self._exports(span, request, key)
            yield from self._flags(spans)

    def _look_at_log(self) -> None:
        """Look at what is active when the log phase begins, which is when the first call is made in it."""
        ctx = self.execution.ctx
        if ctx is None or self.execution.phase.name != "log":
            return
        request: _Request | None = ctx.get(_REQUEST)
        if request is not None and not request.in_log:
            request.in_log = True
            self.findings.add(*self._left_active(ctx, request))

    def _left_active(self, ctx: Context, request: _Request) -> Iterator[Finding]:
        for key, spans in self._lists(ctx):
            active, root = ctx[key].active, spans[0]
            if active is None and request.cleared is not None and _is_live(root) and _is_abandoned(root):
                request.leaked.add(root.record)
                message = "the root span was active, and then no span was"
                yield self._finding(Code.LEFT_ACTIVE, message, root.record, *request.cleared)
            if not _is_live(active) or not active.linked or active is root or active.record in request.leaked:
                continue
            request.leaked.add(active.record)
            message = "the span was made active and still is, when only the root span may be"
            yield self._finding(Code.LEFT_ACTIVE, message, active.record, active.record.activated)

    def _end(self, span: CheckedSpan, request: _Request, *, is_root: bool) -> Iterator[Finding]:
        record = span.record
        if span.end_time_ns is None:
            # A span that was left active is open itself, or leaves the root open in its place (I13): told already.
            told = record.mistimed or record in request.leaked or (is_root and request.leaked)
            if not told and not _only_carries_ids(span):
                yield self._finding(Code.NEVER_FINISHED, "the request ended first", record, record.creation)
        elif (times := _times(span)) is None or times[1] - times[0] > _DAY_NS:
            message = f"the span lasts from {_shown(span.start_time_ns)} to {_shown(span.end_time_ns)}, "
            message += "more than a day" if times else "which are no two numbers"
            yield self._finding(Code.WRONG_UNIT, message, record, record.creation)
        if span.end_time_ns is not None and (keys := record.changes()):
            message = f"{_listed(keys)} in the table that the caller gave was changed after finish()"
            yield self._finding(Code.CHANGED_AFTER_FINISH, message, record, record.creation)
        if record.error is not None and span.status is None:
            message = "record_error() was called and set_status() was not"
            yield self._finding(Code.ERROR_WITHOUT_STATUS, message, record, record.error)

    def _bounds(self, span: CheckedSpan, request: _Request) -> Iterator[Finding]:
        parent, times = span.parent, _times(span)
        if not _is_live(parent) or (outer := _times(parent)) is None or times is None or request.leaked:
            return
        early = outer[0] - times[0]
        late = times[1] - outer[1]
        if TOLERANCE_NS < max(early, late) < _DAY_NS:
            how = f"begins {early / 1e6:g} ms before" if early > TOLERANCE_NS else f"ends {late / 1e6:g} ms after"
            message = f"the span {how} its parent {parent.name!r}"
            yield self._finding(Code.OUTSIDE_PARENT, message, span.record, span.record.creation)

    def _exports(self, span: CheckedSpan, request: _Request, key: str) -> Iterator[Finding]:
        asked = {name for list_key, name in request.asked if list_key == key}
        tracer, record = span.tracer, span.record
        if not isinstance(tracer, (Tracer, NoopTracer)) or tracer is self.global_tracer or tracer.name in asked:
            return
        if _only_carries_ids(span):
            return
        if asked:
            message = f"exporters asked for {', '.join(sorted(asked))} and not for tracer {tracer.name!r}"
            yield self._finding(Code.TRACER_NOT_EXPORTED, message, record, record.creation)
        elif key != _DEFAULT_KEY:
            message = f"nobody asked for namespace {tracer.namespace.name!r}"
            yield self._finding(Code.NAMESPACE_NOT_EXPORTED, message, record, record.creation)

    def _flags(self, spans: list[CheckedSpan]) -> Iterator[Finding]:
        first_of_trace: dict[bytes, CheckedSpan] = {}
        for span in spans:
            first = first_of_trace.setdefault(span.trace_id, span) if is_text(span.trace_id) else span
            other = span.parent if _is_live(span.parent) else first
            if (span.should_sample, other.should_sample) not in [(True, False), (False, True)]:
                continue
            by_hand = span.record.flagged or other.record.flagged
            message = f"the flag is {span.should_sample}, and that of {other.name!r} is {other.should_sample}"
            code = Code.MIXED_FLAGS if by_hand is None else Code.FLAG_OF_ONE_SPAN
            yield self._finding(code, message, span.record, by_hand or span.record.creation)

    def _adopt(self, record: _Record, table: dict[str, Any]) -> None:
        earlier = self._custody.give_back(table)
        if earlier is not None:
            self._report(Code.CALLERS_TABLE, f"the table was that of span {earlier.name!r}, now released", record)
        other = record.request.tables.get(id(table)) if record.request is not None else None
        if other is not None and other is not record:
            # What either sets shows on both.
            other.written = None
            self._report(Code.SHARED_TABLE, f"the table is that of span {other.name!r} too", record)

    def _check_values(self, record: _Record, attributes: object) -> None:
        if isinstance(attributes, dict):
            for key, value in attributes.items():
                flaw = _flaw(value)
                if flaw is not None:
                    self._report(Code.VALUE_TYPE, f"the value of {_shown(key)} is {flaw}", record)
                elif isinstance(value, (str, bytes)) and len(value) > VALUE_CHARACTERS_MAX:
                    message = f"the value of {_shown(key)} has {len(value)} characters"
                    self._report(Code.ATTRIBUTE_SIZE, message, record)
                self._check_key(record, key)

    def _check_key(self, record: _Record, key: object) -> None:
        if record.name not in self._keys and len(self._keys) >= DISTINCT_MAX:
            return
        keys = self._keys.setdefault(record.name, set())
        if key not in keys:
            if len(keys) < KEYS_MAX:
                keys.add(key)
            else:
                message = f"spans {record.name!r} have more than {KEYS_MAX} names of attributes"
                self._report(Code.KEY_CARDINALITY, message, record)

    def _check_name(self, record: _Record, name: str, tracer: str) -> None:
        if tracer not in self._names and len(self._names) >= DISTINCT_MAX:
            return
        names = self._names.setdefault(tracer, set())
        if name not in names:
            if len(names) < NAMES_MAX:
                names.add(name)
            else:
                message = f"tracer {tracer!r} has more than {NAMES_MAX} names of spans"
                self._report(Code.NAME_CARDINALITY, message, record)

    def _watched(self, processor: Callable[..., object]) -> Callable[..., None]:
        where = self.stack()

        def show(span: CheckedSpan, *extra: Any) -> None:
            references, of_tables = getrefcount(span), _references(span)
            answer = processor(span, *extra)
            record = span.record
            record.shown = True
            record.kept = _keeper(record.kept, references, getrefcount(span), where)
            record.copied = _keeper(record.copied, of_tables, _references(span), where)
            if iscoroutine(answer):
                # Told here; the interpreter need not tell it again.
                answer.close()
                self._report(Code.PROCESSED_WRONGLY, "process_span() was given a function that awaits", record)

        return show

    def _overdue(self) -> Iterator[Finding]:
        """What is still held though it was lent to a request long ago."""
        for held in self._custody.turn():
            record = held.of
            code, where, phase = _suspicion(held)
            if self.findings.knows(code, where[0]):
                yield self._finding(code, f"{held.what} is still held after the request", record, where, phase)
                continue
            by = holder(held.lent(), self.carriers, self.wrappers)
            if by is None:
                continue
            if isinstance(by, Span):
                code = Code.SHALLOW_COPY
                if record.copied is not None:
                    where, phase = record.copied[0], "log"
            message = f"after the request {description(by, held.lent())} still holds {held.what}"
            yield self._finding(code, message, record, where, phase)

    def _report(self, code: Code, message: str, record: _Record | None = None) -> None:
        self.findings.add(self._finding(code, message, record))

    def _finding(
        self, code: Code, message: str, record: _Record | None, where: Stack | None = None, phase: str | None = None
    ) -> Finding:
        """A finding of what happens now; or of what happened `where`, in the phase that the span was made in."""
        now = self.execution.phase.name
        if record is None:
            return Finding(code, message, None, now, self.stack(), None)
        if where is None:
            return Finding(code, message, record.name, now, self.stack(), record.creation)
        return Finding(code, message, record.name, phase or record.phase, where, record.creation)


def _forgive(spans: list[Span]) -> None:
    """Processors that have kept spans for a while, to look at all of them, have let go meanwhile."""
    for span in spans:
        if isinstance(span, CheckedSpan):
            record = span.record
            if record.kept is None or getrefcount(span) <= record.unshown:
                record.kept = None
                record.unshown = getrefcount(span)
            if record.copied is not None and _references(span) <= record.copied[1]:
                record.copied = None


def _is_live(span: AnySpan | None) -> TypeGuard[CheckedSpan]:
    """Whether it is a span that has not been released."""
    return type(span) is CheckedSpan and not span.record.released


def _times(span: CheckedSpan) -> tuple[int, int] | None:
    """Start and end of a span; None when either is no number, since anything can be written into a field."""
    start, end = span.start_time_ns, span.end_time_ns
    return None if end is None or not is_number(start) or not is_number(end) else (start, end)


def _only_carries_ids(span: CheckedSpan) -> bool:
    """Whether the span is there for the headers alone, and is not meant to be exported (O12)."""
    return isinstance(span.attributes, dict) and bool(span.attributes.get(PROPAGATION_ONLY))


def _is_abandoned(root: CheckedSpan) -> bool:
    """Whether a root span that was active is open, and has not been told of."""
    record = root.record
    is_told = record.request is None or record in record.request.leaked
    return root.end_time_ns is None and record.activated is not None and not is_told


def _lent(spans: list[Span]) -> Iterator[Held[_Record]]:
    """What is lent with spans: they themselves and their tables."""
    for span in spans:
        if isinstance(span, CheckedSpan):
            yield Held(span.record, SPAN, span=span)
            for what, table in ((ATTRIBUTES, span.attributes), (EVENTS, span.events)):
                if is_table(table):
                    yield Held(span.record, what, table=table)


def _renew(pool: Pool[T] | Unpooled[T], used: set[int], new: Callable[[], T]) -> None:
    """Put new objects in the places of used ones, which are the last of the free list."""
    free = pool.free
    if free is None:
        return
    for index in range(len(free) - 1, -1, -1):
        if id(free[index]) not in used:
            return
        free[index] = new()


def _roles(span: CheckedSpan, trace: Trace | None) -> Iterator[str]:
    """What a span is needed for."""
    if trace is None or not trace.spans or not span.linked:
        return
    if trace.spans[0] is span:
        yield "the root span"
    if trace.active is span:
        yield "the active span"
    for child in trace.spans:
        if _is_live(child) and child.parent is span and child.end_time_ns is None:
            yield f"the parent of the open span {child.name!r}"


def _suspicion(held: Held[_Record]) -> tuple[Code, Stack, str]:
    """What it probably means that something is held, where that began, and in which phase."""
    record = held.of
    is_span = held.what in {SPAN, LIST}
    kept = record.kept if is_span else record.copied
    if kept is not None:
        return Code.LIVE_SPAN_KEPT if is_span else Code.SHALLOW_COPY, kept[0], "log"
    if is_span:
        return Code.OUTLIVES_REQUEST, record.creation, record.phase
    is_callers = held.what == ATTRIBUTES and record.has_callers_table
    return Code.CALLERS_TABLE if is_callers else Code.SHALLOW_COPY, record.creation, record.phase


def _flaw(value: object, room: int = ATTRIBUTE_ROOM) -> str | None:
    """Why a value cannot be exported, for what it is or for what is in it; None when it can.

    Args:
        value: the value.
        room: how many messages of OTLP may still be nested within its own.
    """
    if room < 0:
        return "nested too deeply, or within itself"
    inner: Iterable[object]
    if isinstance(value, dict):
        inner, room = value.values(), room - 3
    elif isinstance(value, (list, tuple)):
        inner, room = value, room - 2
    elif value is None or isinstance(value, (str, bytes, int, float)):
        return None
    else:
        return f"of type {lua_type(value)}"
    return next((flaw for flaw in (_flaw(item, room) for item in inner) if flaw is not None), None)


def _keeper(known: tuple[Stack, int] | None, before: int, after: int, where: Stack) -> tuple[Stack, int] | None:
    """Where something was kept: by an earlier processor, unless that has let go meanwhile, or by this one."""
    if known is not None and before > known[1]:
        return known
    return (where, before) if after > before else None


def _references(span: CheckedSpan) -> int:
    """How many references there are to the tables of a span."""
    return sum(getrefcount(table) for table in (span.attributes, span.events) if table is not None)


def _listed(keys: list[object]) -> str:
    return ", ".join(map(_shown, keys[:3])) + (", ..." if len(keys) > 3 else "")


def _shown(value: object) -> str:
    """A program's value in a message; its type where it cannot be shown, such as a number of 5000 digits."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  see CheckedProvider._gathered
        return f"a {type(value).__name__}"


def _is_ours(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") in _OURS


@cache
def _leads_here(module: str | None) -> bool:
    """Whether a module is of this package, or copies on behalf of others."""
    return module == "copy" or str(module).startswith("kongtrace.")
