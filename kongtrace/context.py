"""What one request carries: its context, the spans in it, and the tracing context of header propagation.

The request context is a plain ``dict``, as ``ngx.ctx`` is a plain table: it lives from the start of the rewrite phase
to the end of the log phase and belongs to one request (kong-semantics R4). The tracer keeps in it one :class:`Trace`
per namespace, under the key ``<namespace>_SPANS``: the span list and the active span, which Kong keeps under two keys
(T1).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kongtrace.lua import is_table, lua_table
from kongtrace.phase import PHASES, Phase

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kongtrace.span import AnySpan, Span

Context = dict[str, Any]

DEFAULT_NAMESPACE = "KONG"
KONG_PHASE = "KONG_PHASE"
"""Key of the Kong phase's name in the request context (R9)."""

TRACING_CONTEXT = "TRACING_CONTEXT"
UNLINKED = "KONG_SPANS_UNLINKED"
"""Key of the spans that were created in this request and may never be linked (P13)."""

NAMESPACES_MAX = 64
"""Namespaces whose keys are remembered."""

UNLISTED = "KONG_SPANS_UNLISTED"
"""Key of the number of spans that this request made and its lists do not tell of, less the no-op spans in them."""

LISTED_AGAIN = "KONG_SPANS_LISTED_AGAIN"
"""Key of how often a span was linked beyond its first time (T7)."""


@lru_cache(NAMESPACES_MAX)
def spans_key(namespace: str) -> str:
    """Where a namespace keeps its span list in the request context."""
    return f"{namespace}_SPANS"


def active_key(namespace: str) -> str:
    """The name that Kong has for the place of a namespace's active span."""
    return f"{namespace}_active_span"


class Trace:
    """The spans of one namespace in one request; it can be counted, walked and indexed like their list.

    Attributes:
        spans: the linked spans in the order of linking; None until there is a list, and after the request's end.
        active: the active span, or None.
        spent: the list from then on, when it has been released or given up; None before.
    """

    __slots__ = ("active", "spans", "spent")

    spans: list[Span] | None
    active: AnySpan | None
    spent: list[Span] | None

    def __len__(self) -> int:
        """How many spans are linked; Kong's table has that at its index 0."""
        return len(self.spans or ())

    def __iter__(self) -> Iterator[Span]:
        """The spans in the order of linking."""
        return iter(self.spans or ())

    def __getitem__(self, index: int) -> Span:
        """A span by its place, from 0; Kong counts from 1."""
        return (self.spans or ())[index]


class Namespace:
    """What tracers of one namespace share: one span list and one active span a request (T7, C10).

    Attributes:
        name: ``KONG`` unless a tracer asked for isolation.
        spans_key: where the request context keeps the :class:`Trace`.
        trace: that of the running request. None where there is none yet, and in a phase that permits no spans.
    """

    __slots__ = ("name", "spans_key", "trace")

    def __init__(self, name: str) -> None:
        self.name = name
        self.spans_key = spans_key(name)
        self.trace: Trace | None = None


class Execution:
    """What a worker executes at this moment: a phase, and the context of the request it belongs to.

    A worker has one; whoever runs a handler calls :meth:`enter` before it, again whenever a suspended handler goes on,
    and after having emptied the context. In a timer or at start-up the context belongs to no request.

    Attributes:
        phase: the nginx phase.
        ctx: the request context, or None where there is none.
        span_ctx: the request context where the phase permits spans, else None (T8).
        namespaces: all that any tracer uses.
    """

    __slots__ = ("ctx", "namespaces", "phase", "span_ctx")

    def __init__(self) -> None:
        self.namespaces: list[Namespace] = []
        self.span_ctx: Context | None = None
        self.enter(PHASES["init"], None)

    def enter(self, phase: Phase, ctx: Context | None) -> None:
        """From now on ``phase`` runs, with ``ctx``."""
        self.phase = phase
        self.ctx = ctx
        if phase.spans and ctx is not None:
            self.span_ctx = ctx
            for namespace in self.namespaces:
                namespace.trace = ctx.get(namespace.spans_key)
        else:
            self.span_ctx = None
            for namespace in self.namespaces:
                namespace.trace = None

    def namespace(self, name: str) -> Namespace:
        """The namespace of that name; made on first use."""
        for namespace in self.namespaces:
            if namespace.name == name:
                return namespace
        namespace = Namespace(name)
        self.namespaces.append(namespace)
        self.enter(self.phase, self.ctx)
        return namespace


class TracingContext:
    """The trace identity of a request, as propagation and export see it (section 10, X31).

    Attributes:
        raw_trace_id: the trace id as bytes, or None before it is known.
        trace_id_formats: the id in every injected format, for the serialised log; empty before any was injected.
        flags: the W3C or B3 flags that log records carry, or None (O15).
        unlinked_spans: spans made ahead of their time, by name (I15).
    """

    __slots__ = ("flags", "raw_trace_id", "trace_id_formats", "unlinked_spans")

    def __init__(self) -> None:
        self.raw_trace_id: bytes | None = None
        self.trace_id_formats: dict[str, str] = {}
        self.flags: int | None = None
        self.unlinked_spans: dict[str, AnySpan] = {}

    def add_trace_id_formats(self, formats: dict[str, str]) -> dict[str, str]:
        """Merge the ids that one plugin injected with those of the others; gives all of them (X31).

        Raises:
            TypeError: there are others, and ``formats`` is no table, or they are none.
        """
        if self.trace_id_formats == {}:
            self.trace_id_formats = lua_table(formats)  # type: ignore[assignment]  # whatever it is
        elif is_table(self.trace_id_formats) and is_table(formats):
            self.trace_id_formats.update(lua_table(formats) or {})
        else:
            raise TypeError(f"trace id formats must be mappings, not {self.trace_id_formats!r} and {formats!r}")
        return self.trace_id_formats


def tracing_context(ctx: Context) -> TracingContext:
    """The tracing context of a request, made on first use."""
    found: TracingContext | None = ctx.get(TRACING_CONTEXT)
    if found is None:
        found = ctx[TRACING_CONTEXT] = TracingContext()
    return found


def count(ctx: Context, key: str, number: int) -> None:
    """Add to one of the numbers that a context keeps."""
    ctx[key] = ctx.get(key, 0) + number


def span_list(ctx: Context, namespace: str = DEFAULT_NAMESPACE) -> Sequence[Span]:
    """The spans of a request in the order in which they were linked; empty when there are none."""
    trace: Trace | None = ctx.get(spans_key(namespace))
    return trace.spans or () if trace is not None else ()
