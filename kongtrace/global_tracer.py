"""Global state department: ``tracing``, the one piece of module state in this package.

``from kongtrace import tracing`` may stand at the top of any module, long before the worker that runs it has forked.
So the name is a handle that follows the global tracer: it is the no-op tracer until :meth:`GlobalTracer.use` has been
called and instrumentation is on (kong-semantics T4). Tracers made from it work for whichever provider is in use: before
there is one they are inert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from kongtrace.context import Execution
from kongtrace.noop import NoopTracer
from kongtrace.provider import TracerProvider
from kongtrace.tracer import Tracer

if TYPE_CHECKING:
    from collections.abc import Callable

    from kongtrace.sampler import Decision
    from kongtrace.span import AnySpan, Span


def _no_time() -> int:
    raise RuntimeError("no tracer provider has been set")


def _no_bytes(_count: int) -> bytes:
    raise RuntimeError("no tracer provider has been set")


def _unset() -> TracerProvider:
    """The provider before there is one: it executes no request, so that its tracers give the no-op span."""
    return TracerProvider(time_ns=_no_time, random_bytes=_no_bytes, execution=Execution())


class GlobalTracer:
    """The handle behind ``tracing``: every call goes to the global tracer of the provider that is set now.

    Wherever a tracer is asked for the handle may be given: it is that tracer which is meant.

    Attributes:
        provider: the one that is set now; until :meth:`use` was called one that executes no request.
    """

    if TYPE_CHECKING:
        name: str
        start_span: Callable[..., AnySpan]
        create_span: Callable[..., AnySpan]
        new_span: Callable[..., AnySpan | None]
        link_span: Callable[..., AnySpan | None]
        active_span: Callable[[], AnySpan | None]
        set_active_span: Callable[..., None]
        process_span: Callable[..., None]
        init_spans: Callable[[], list[Span] | None]
        get_spans: Callable[[], list[Span] | None]
        get_root_span: Callable[[], AnySpan | None]
        set_should_sample: Callable[..., None]
        get_sampling_decision: Callable[..., bool | None]

    def __init__(self) -> None:
        self.provider = _unset()
        self._made: WeakSet[Tracer] = WeakSet()
        self._follow()

    def new(self, name: Any = None, options: dict[str, Any] | None = None, **given: Any) -> Tracer | NoopTracer:
        """A tracer (D2), its options in a mapping or as keyword arguments: see :meth:`TracerProvider.new`."""
        tracer = self.provider.new(name, options, **given)
        if isinstance(tracer, Tracer):
            self._made.add(tracer)
        return tracer

    __call__ = new

    @property
    def stands_for(self) -> Tracer | NoopTracer:
        """The global tracer."""
        return self.provider.global_tracer

    @property
    def sampler(self) -> Callable[..., Decision]:
        """The sampler of the global tracer: see :meth:`Tracer.sampler`. The no-op tracer has none, as in Kong."""
        return self.provider.global_tracer.sampler  # type: ignore[union-attr]  # said above

    def set_global_tracer(self, tracer: object = None) -> None:
        """Make ``tracer`` the one that this handle stands for (T5).

        Raises:
            ApiError: it is not a tracer.
        """
        self.provider.set_global_tracer(tracer)

    def use(self, provider: TracerProvider | None) -> None:
        """Serve ``provider`` from now on, and so do all tracers that were made from this handle.

        None takes the handle back to its first state.
        """
        self.provider = provider or _unset()
        for tracer in self._made:
            tracer.bind(self.provider)
        self.provider.on_global_tracer = self._follow
        self._follow()

    def _follow(self) -> None:
        # Bound methods as attributes of the instance: a call through the handle costs no more than on the tracer.
        tracer = self.provider.global_tracer
        for name in _FORWARDED:
            setattr(self, name, getattr(tracer, name))

    def __repr__(self) -> str:
        return f"<tracing: {self.provider.global_tracer!r}>"


_OWN = {"new", "set_global_tracer"}
_FORWARDED = tuple(name for name in dir(NoopTracer) if not name.startswith("_") and name not in _OWN)

tracing = GlobalTracer()
