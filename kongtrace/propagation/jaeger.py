"""Jaeger: ``uber-trace-id: <trace id>:<span id>:<parent id>:<flags>`` and baggage in ``uberctx-*``.

Source: kong-semantics X7, X18; https://www.jaegertracing.io/docs/1.29/client-libraries/#propagation-format.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kongtrace.propagation.context import SPAN_ID_BYTES, Log, PropagationContext, fit
from kongtrace.propagation.fields import from_hex, is_zero, read_baggage, write_baggage

if TYPE_CHECKING:
    from kongtrace.propagation.headers import RequestHeaders

UBER_TRACE_ID: Final = re.compile("([0-9A-Fa-f]+):([0-9A-Fa-f]+):([0-9A-Fa-f]+):([0-9A-Fa-f]+)")
BAGGAGE: Final = "uberctx-"


def extract(headers: RequestHeaders, log: Log) -> PropagationContext | None:
    """Read ``uber-trace-id``; None when it is absent, empty, repeated or malformed."""
    value = headers.get("uber-trace-id")
    if not isinstance(value, str) or not value:
        return None
    parts = UBER_TRACE_ID.fullmatch(value)
    if parts is None:
        log("warn", "invalid jaeger uber-trace-id header; ignoring.")
        return None
    trace_id, span_id, parent_id, flags = parts.groups()
    if len(trace_id) > 32 or is_zero(trace_id):
        log("warn", "invalid jaeger trace ID; ignoring.")
        return None
    if len(parent_id) != 16 and not is_zero(parent_id):
        log("warn", "invalid jaeger parent ID; ignoring.")  # and used nevertheless, as in Kong
    if len(span_id) > 16 or is_zero(span_id):
        log("warn", "invalid jaeger span ID; ignoring.")
        return None
    if len(flags) > 2:
        log("warn", "invalid jaeger flags; ignoring.")
        return None
    return PropagationContext(
        trace_id=from_hex(trace_id),
        span_id=from_hex(span_id),
        parent_id=from_hex(parent_id),
        reuse_span_id=True,
        should_sample=int(flags, 16) & 1 == 1,
        baggage=read_baggage(headers, BAGGAGE),
    )


def inject(context: PropagationContext, headers: RequestHeaders) -> dict[str, str]:
    """Write ``uber-trace-id`` and the baggage."""
    trace_id, span_id = context.outgoing_ids("jaeger", 16, 8)
    text = trace_id.hex()
    parent = "0" if context.parent_id is None else fit(context.parent_id, SPAN_ID_BYTES).hex()
    headers.set("uber-trace-id", f"{text}:{span_id.hex()}:{parent}:0{context.sampled_digit}")
    write_baggage(headers, BAGGAGE, context.baggage)
    return {"jaeger": text}
