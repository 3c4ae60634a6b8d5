"""What is read from one trace header and written to another, and what can go wrong on the way.

Source: kong-semantics X1, X3, X14; Kong's ``extractors/_base.lua`` and ``injectors/_base.lua``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kongtrace.errors import KongTraceError
from kongtrace.lua import is_given

TRACE_ID_BYTES = 16
SPAN_ID_BYTES = 8

Log = Callable[[str, str], None]
"""``log(level, message)``; the levels used here are ``"warn"`` and ``"error"``."""


class MissingFieldError(KongTraceError):
    """An injector needs an id that the context does not have; Kong logs it and goes on (X24)."""


class UnguardedError(KongTraceError):
    """A value that Kong's code does not guard against: there it raises, and the client gets a 500 (H34).

    Profile ``kong`` lets it through; profile ``safe`` logs it and ignores the value.
    """


@dataclass(slots=True)
class PropagationContext:
    """The trace context of one request, independent of any header format. A field that is None is not set (X3).

    Attributes:
        trace_id: 16 bytes once extracted; a callback may set other sizes.
        span_id: 8 bytes, the span of the sender.
        parent_id: 8 bytes, the parent of that span; only b3 and jaeger send it.
        reuse_span_id: the format lets sender and receiver share one span (b3, jaeger).
        should_sample: the sender's decision; None leaves it to the receiver.
        baggage: key to text; read-only when it was extracted.
        flags: ``x-b3-flags`` as received, or ``"1"`` for a ``d`` in the single b3 header.
        w3c_flags: number in the last part of ``traceparent``.
        single_header: the b3 context came in the single header.
        trace_id_original_size: bytes of the trace id as received.
    """

    trace_id: bytes | None = None
    span_id: bytes | None = None
    parent_id: bytes | None = None
    reuse_span_id: bool | None = None
    should_sample: bool | None = None
    baggage: Mapping[str, str] | None = None
    flags: str | list[str] | None = None
    w3c_flags: int | None = None
    single_header: bool | None = None
    trace_id_original_size: int | None = None

    @property
    def sampled_digit(self) -> str:
        """The decision in one digit; one that is not made is 0 (X15 to X23)."""
        return "1" if is_given(self.should_sample) else "0"

    def fit_received(self) -> None:
        """Bring ids as received to the internal sizes, noting the size of the trace id (X1)."""
        if self.trace_id is not None:
            self.trace_id_original_size = len(self.trace_id)
            self.trace_id = fit(self.trace_id, TRACE_ID_BYTES)
        if self.span_id is not None:
            self.span_id = fit(self.span_id, SPAN_ID_BYTES)
        if self.parent_id is not None:
            self.parent_id = fit(self.parent_id, SPAN_ID_BYTES)

    def outgoing_trace_id(self, *sizes: int) -> bytes | None:
        """The trace id in the size in which it was received, if that is one of ``sizes``, else in the first (X14)."""
        if self.trace_id is None:
            return None
        received = self.trace_id_original_size
        return fit(self.trace_id, received if received in sizes else sizes[0])

    def outgoing_ids(self, injector: str, *sizes: int) -> tuple[bytes, bytes]:
        """Trace id (as above) and span id (8 bytes), for an injector that needs both.

        Raises:
            MissingFieldError: one of them is not set; the trace id is named first (X24).
        """
        trace_id, span_id = self.trace_id, self.span_id
        if trace_id is None or span_id is None:
            field = "trace_id" if trace_id is None else "span_id"
            raise MissingFieldError(f"{injector} injector context is invalid: field {field} not found in context")
        received = self.trace_id_original_size
        return fit(trace_id, received if received in sizes else sizes[0]), fit(span_id, SPAN_ID_BYTES)


def fit(identifier: bytes, size: int) -> bytes:
    """An id in ``size`` bytes: the last ones of a longer id, a shorter one padded with zeros on the left (X1)."""
    if len(identifier) == size:
        return identifier
    return identifier[-size:].rjust(size, b"\0")
