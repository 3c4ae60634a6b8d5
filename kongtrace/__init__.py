"""Kong's tracing API in Python: the tracer that a gateway worker embeds.

It does no I/O: the clock, randomness, the log and the running phase are handed in, so that the same code runs live, in
virtual time and under hypothesis.

The map: ``tracing`` is the global tracer; a :class:`TracerProvider` makes tracers and owns the pools of one worker;
:mod:`kongtrace.span` is what a tracer starts; :mod:`kongtrace.context` is what a request carries;
:mod:`kongtrace.propagation` reads and writes trace headers; :mod:`kongtrace.queue` batches what the log phase hands
over and :mod:`kongtrace.otlp` turns it into bytes. On :mod:`kongtrace.otel` runs what was made for OpenTelemetry.
"""

from kongtrace.context import Execution, TracingContext, tracing_context
from kongtrace.errors import ApiError, KongTraceError, ReleasedSpanError
from kongtrace.event import Event
from kongtrace.global_tracer import GlobalTracer, tracing
from kongtrace.noop import NoopTracer
from kongtrace.phase import PHASES, Phase
from kongtrace.profile import KONG, PROFILES, SAFE, Profile
from kongtrace.provider import TracerProvider
from kongtrace.span import NOOP_SPAN, NoopSpan, Span
from kongtrace.tracer import Tracer

__all__ = [
    "KONG",
    "NOOP_SPAN",
    "PHASES",
    "PROFILES",
    "SAFE",
    "ApiError",
    "Event",
    "Execution",
    "GlobalTracer",
    "KongTraceError",
    "NoopSpan",
    "NoopTracer",
    "Phase",
    "Profile",
    "ReleasedSpanError",
    "Span",
    "Tracer",
    "TracerProvider",
    "TracingContext",
    "tracing",
    "tracing_context",
]
