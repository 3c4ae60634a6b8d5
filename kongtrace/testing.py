"""For the tests of code that traces: a worker to trace in, a fixture that finds leaked spans, hypothesis strategies.

Activate the fixtures with ``pytest_plugins = ["kongtrace.testing"]`` in ``conftest.py``, or import what is needed. As
in all of this package nothing here reads a clock or draws randomness: :class:`FakeClock` and :class:`FakeEntropy` are
handed in, so that a test sees the same times and ids each time it runs.

A span leaks when its request ends before it is finished, or while it is still the active one, or when it is released
before; a request leaks when nobody ends it (kong-semantics H3, H4, S16).

Needs the extra ``kongsim[testing]`` (pytest and hypothesis); without it the import raises
:class:`~kongtrace.errors.KongTraceError`.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kongtrace.context import KONG_PHASE, Context, span_list
from kongtrace.errors import ApiError, KongTraceError
from kongtrace.global_tracer import tracing
from kongtrace.otlp import SAFE as OTLP_RULES
from kongtrace.otlp import Encoder
from kongtrace.phase import PHASES
from kongtrace.profile import SAFE, Profile
from kongtrace.provider import TracerProvider
from kongtrace.span import CLIENT, CONSUMER, INTERNAL, PRODUCER, SERVER, Span
from kongtrace.tracer import Tracer

try:
    import pytest
    from hypothesis import strategies as st
except ImportError as error:
    raise KongTraceError("kongtrace.testing needs pytest and hypothesis: install kongsim[testing]") from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kongtrace.global_tracer import GlobalTracer

EPOCH_NS = 1_700_000_000_000_000_000
"""First reading of a :class:`FakeClock`: 2023-11-14T22:13:20Z in ns."""

GLOBAL_TRACER = "instrument"
"""Name of the global tracer (T4)."""

_UNLISTED = "KONGTRACE_TESTING_UNLISTED"
"""Key of the spans of a request whose list was replaced."""

_INT64 = st.integers(-(2**63), 2**63 - 1)


class FakeClock:
    """A wall clock that stands still between readings.

    Args:
        now_ns: its first reading, ns since the epoch.
        step_ns: by how much each reading moves it on; 1 us when left out, so that every span lasts.
    """

    def __init__(self, now_ns: int = EPOCH_NS, step_ns: int = 1_000) -> None:
        self.now_ns = now_ns
        self.step_ns = step_ns

    def __call__(self) -> int:
        """Read it: ns since the epoch."""
        now_ns = self.now_ns
        self.now_ns += self.step_ns
        return now_ns

    def advance(self, ns: int) -> None:
        """Move it by ``ns``; a wall clock may step backward too."""
        self.now_ns += ns


class FakeEntropy:
    """Random-looking bytes that are the same for the same ``seed``, and do not repeat."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.draws = 0

    def __call__(self, count: int) -> bytes:
        """Draw ``count`` bytes."""
        self.draws += 1
        return hashlib.shake_128(f"{self.seed} {self.draws}".encode()).digest(count)


class _WatchedTracer(Tracer):
    """Keeps sight of the spans whose list it replaces: they may be finished yet."""

    __slots__ = ()

    def init_spans(self) -> list[Span]:
        """See :meth:`Tracer.init_spans`."""
        self._context().setdefault(_UNLISTED, []).extend(self.trace().spans or ())
        return super().init_spans()


class _WatchedProvider(TracerProvider):
    """Adds to ``leaks`` when a span is released by hand before it is finished: nothing of it is left later."""

    __slots__ = ("leaks",)

    tracer_class = _WatchedTracer
    leaks: list[str]

    def release(self, span: Span) -> None:
        """See :meth:`TracerProvider.release`."""
        if span.linked and span.end_time_ns is None:
            self.leaks.append(f"span {span.name!r} was released before it was finished")
        super().release(span)


class TracedWorker:
    """One worker as far as a tracer can see it: requests come, go through phases, and end.

    Args:
        profile: ``SAFE`` or ``KONG``.

    Attributes:
        clock: the :class:`FakeClock` of the worker.
        provider: its :class:`~kongtrace.provider.TracerProvider`; the global tracer samples everything.
        logged: level and message of every log line.
        exported: a copy of every span of every ended request, in order of linking, in the shape of
            :meth:`kongtrace.otlp.Encoder.transform_span`; one that has no such form is logged instead.
        leaks: what went wrong so far, a sentence each.
    """

    def __init__(self, profile: Profile = SAFE) -> None:
        self.clock = FakeClock()
        self.logged: list[tuple[str, str]] = []
        self.exported: list[dict[str, Any]] = []
        self.leaks: list[str] = []
        self.provider = _WatchedProvider(
            time_ns=self.clock,
            random_bytes=FakeEntropy(),
            log=lambda level, message: self.logged.append((level, message)),
            profile=profile,
        )
        self.provider.leaks = self.leaks
        self.provider.set_global_tracer(self.provider.new(GLOBAL_TRACER))
        self._encoder = Encoder(OTLP_RULES)
        self._open: list[Context] = []

    def begin(self, phase: str = "access") -> Context:
        """A new request, entered in ``phase``; gives its context."""
        ctx: Context = {}
        self.enter(phase, ctx)
        self._open.append(ctx)
        return ctx

    def enter(self, phase: str, ctx: Context | None) -> None:
        """From now on ``phase`` runs for the request ``ctx``, or for none, as in a timer.

        Raises:
            KongTraceError: nginx has no such phase.
        """
        if phase not in PHASES:
            raise KongTraceError(f"there is no phase {phase!r}; expected one of {', '.join(PHASES)}")
        if ctx is not None:
            ctx[KONG_PHASE] = phase
        self.provider.execution.enter(PHASES[phase], ctx)

    def end(self, ctx: Context) -> None:
        """End a request: look for leaks, copy its spans, and take them back."""
        self.enter("log", ctx)
        self._look_at(ctx)  # by a function of its own: what this frame held would count as held by somebody
        self.provider.end_request(ctx)
        self._open = [other for other in self._open if other is not ctx]
        self.enter("timer", None)

    @contextmanager
    def request(self, phase: str = "access") -> Iterator[Context]:
        """A request for the length of a ``with`` block; then the one goes on within which it was made.

        It ends as any other when the block raises: after a handler that raised, the gateway goes on to the log phase.
        """
        outer_phase, outer = self.provider.execution.phase.name, self.provider.execution.ctx
        ctx = self.begin(phase)
        try:
            yield ctx
        finally:
            self.end(ctx)
            if any(other is outer for other in self._open):
                self.enter(outer_phase, outer)

    def check(self) -> None:
        """Find what has leaked.

        Raises:
            AssertionError: something has; each leak stands on a line of its own.
        """
        leaks = list(self.leaks)
        leaks += [f"{len(self._open)} request(s) were never ended"] if self._open else []
        live = {tag: balance.live for tag, balance in self.provider.balances().items() if balance.live}
        if live and not self._open:
            leaks.append(f"objects are still out: {live}")
        if leaks:
            raise AssertionError("\n".join(leaks))

    def _look_at(self, ctx: Context) -> None:
        """Look for leaks in a request that is about to end, and copy its spans."""
        for namespace in self.provider.execution.namespaces:
            active = namespace.trace.active if namespace.trace is not None else None
            if isinstance(active, Span) and active.span_id:
                self.leaks.append(f"span {active.name!r} was still active when its request ended")
            for span in span_list(ctx, namespace.name):
                if span.span_id:
                    self._export(span)
                    self._look_at_end(span)
        for span in ctx.pop(_UNLISTED, ()):
            if span.span_id:
                self._look_at_end(span)

    def _look_at_end(self, span: Span) -> None:
        if span.end_time_ns is None:
            self.leaks.append(f"span {span.name!r} was never finished")

    def _export(self, span: Span) -> None:
        try:
            self.exported.append(self._encoder.transform_span(span))
        except ApiError as error:
            self.provider.log("error", f"span {span.name!r} cannot be exported: {error}")


@pytest.fixture
def traced_worker() -> Iterator[TracedWorker]:
    """A worker whose provider ``tracing`` serves during the test; a leaked span or request fails the test."""
    worker = TracedWorker()
    with serving(worker.provider, tracing):
        yield worker
    worker.check()


@pytest.fixture
def tracer_provider(traced_worker: TracedWorker) -> TracerProvider:
    """The provider of :func:`traced_worker`."""
    return traced_worker.provider


@contextmanager
def serving(provider: TracerProvider, handle: GlobalTracer) -> Iterator[None]:
    """Let ``handle`` serve ``provider`` for the length of a ``with`` block.

    Tracers that were made from ``handle``, also when modules were imported, belong to ``provider`` meanwhile.
    """
    handle.use(provider)
    try:
        yield
    finally:
        handle.use(None)


def trace_ids() -> st.SearchStrategy[bytes]:
    """Trace ids: 16 bytes, not all zero."""
    return st.binary(min_size=16, max_size=16).filter(any)


def span_ids() -> st.SearchStrategy[bytes]:
    """Span ids: 8 bytes, not all zero."""
    return st.binary(min_size=8, max_size=8).filter(any)


def span_kinds() -> st.SearchStrategy[int]:
    """Span kinds, 1 to 5 (S1)."""
    return st.sampled_from([INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER])


def attribute_values() -> st.SearchStrategy[Any]:
    """Values that a span keeps and an exporter writes (S11): no NaN, so that equal means equal."""
    scalars = st.text(max_size=20) | _INT64 | st.floats(allow_nan=False) | st.booleans()
    return (
        scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=8), scalars, max_size=3)
    )


def attributes() -> st.SearchStrategy[dict[str, Any]]:
    """Mappings for :meth:`kongtrace.span.Span.set_attributes` or the option ``attributes``."""
    return st.dictionaries(st.text(min_size=1, max_size=20), attribute_values(), max_size=4)


@dataclass(frozen=True)
class SpanTree:
    """A span to be recorded, and those below it.

    Attributes:
        name: non-empty string.
        kind: 1 to 5.
        attributes: mapping.
        error: what :meth:`kongtrace.span.Span.record_error` is given, or None.
        children: recorded while this one is active.
    """

    name: str
    kind: int
    attributes: dict[str, Any]
    error: str | None
    children: tuple[SpanTree, ...]

    def record(self, tracer: Tracer | GlobalTracer) -> None:
        """Record the tree below the active span, with legal use alone: every span is finished, innermost first."""
        span = tracer.start_span(self.name, span_kind=self.kind, attributes=dict(self.attributes))
        tracer.set_active_span(span)
        if self.error is not None:
            span.record_error(self.error)
        for child in self.children:
            child.record(tracer)
        span.finish()

    def __len__(self) -> int:
        """How many spans it has."""
        return 1 + sum(map(len, self.children))


def span_trees(max_leaves: int = 8) -> st.SearchStrategy[SpanTree]:
    """Trees of spans, to be recorded by :meth:`SpanTree.record`."""

    def tree(children: st.SearchStrategy[tuple[SpanTree, ...]]) -> st.SearchStrategy[SpanTree]:
        error = st.none() | st.text(max_size=20)
        return st.builds(SpanTree, st.text(min_size=1, max_size=20), span_kinds(), attributes(), error, children)

    leaves = tree(st.just(()))
    return st.recursive(leaves, lambda below: tree(st.lists(below, max_size=3).map(tuple)), max_leaves=max_leaves)
