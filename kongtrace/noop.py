"""The tracer that does nothing: the global tracer until tracing is switched on (kong-semantics T4, T6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kongtrace.context import Namespace
from kongtrace.span import NOOP_SPAN, NoopSpan, Span

if TYPE_CHECKING:
    from kongtrace.provider import TracerProvider
    from kongtrace.tracer import Tracer


class NoopTracer:
    """Every call of the tracer's API, without effect, but for those that make a real one. A provider has one.

    Writing to it is swallowed.
    """

    __slots__ = ("_provider",)

    name = "noop"
    namespace = Namespace("")
    """It is never entered: there is no active span."""
    _provider: TracerProvider

    def __init__(self, provider: TracerProvider) -> None:
        object.__setattr__(self, "_provider", provider)

    def new(self, name: Any = None, options: dict[str, Any] | None = None, **given: Any) -> Tracer | NoopTracer:
        """A tracer (D2), its options in a mapping or as keyword arguments: see :meth:`TracerProvider.new`."""
        return self._provider.new(name, options, **given)

    __call__ = new

    def set_global_tracer(self, tracer: object = None) -> None:
        """Make ``tracer`` the global one (T5): see :meth:`TracerProvider.set_global_tracer`."""
        self._provider.set_global_tracer(tracer)

    def start_span(  # has the parameters of the real one, since any number of them would make the call dearer
        self,
        name: Any = None,
        options: Any = None,
        start_time_ns: Any = None,
        span_kind: Any = None,
        should_sample: Any = None,
        attributes: Any = None,
        parent: Any = None,
    ) -> NoopSpan:
        """The no-op span."""
        return NOOP_SPAN

    def create_span(self, *_: Any, **__: Any) -> NoopSpan:
        """The no-op span."""
        return NOOP_SPAN

    def new_span(self, *arguments: Any, **_: Any) -> NoopSpan | None:
        """The no-op span for a name; None for a span, and for no argument (C2): see :meth:`Tracer.new_span`."""
        return NOOP_SPAN if arguments and not isinstance(arguments[0], (Span, NoopSpan)) else None

    def link_span(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def active_span(self) -> None:
        """No span is active."""

    def set_active_span(self, span: Any = None) -> None:
        """Do nothing."""

    def process_span(self, processor: Any = None, *_: Any) -> None:
        """Do nothing: there is no span to process."""

    def init_spans(self) -> None:
        """Do nothing."""

    def get_spans(self) -> None:
        """There is no span list."""

    def get_root_span(self) -> None:
        """There is no root span."""

    def set_should_sample(self, should_sample: Any = None) -> None:
        """Do nothing."""

    def get_sampling_decision(self, parent_should_sample: Any = None, sampling_rate: Any = None) -> None:
        """There is no decision."""

    def __setattr__(self, name: str, value: object) -> None:
        """Swallow the write (T6)."""

    def __repr__(self) -> str:
        return "<NoopTracer>"
