"""W3C Trace Context: ``traceparent: 00-<trace id>-<span id>-<flags>``.

``tracestate`` passes through as it was received. Source: kong-semantics X4, X15;
https://www.w3.org/TR/trace-context-1/.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kongtrace.propagation.context import Log, PropagationContext
from kongtrace.propagation.fields import is_zero

if TYPE_CHECKING:
    from kongtrace.propagation.headers import RequestHeaders

TRACEPARENT: Final = re.compile("([0-9A-Fa-f]+)-([0-9A-Fa-f]+)-([0-9A-Fa-f]+)-([0-9A-Fa-f]+)")


def extract(headers: RequestHeaders, log: Log) -> PropagationContext | None:
    """Read ``traceparent``; None when it is absent, empty, repeated or malformed."""
    value = headers.get("traceparent")
    if not isinstance(value, str) or not value:
        return None
    parts = TRACEPARENT.fullmatch(value)
    if parts is None:
        log("warn", "invalid W3C traceparent header; ignoring.")
        return None
    version, trace_id, span_id, flags = parts.groups()
    if version != "00":
        log("warn", "invalid W3C Trace Context version; ignoring.")
    elif len(trace_id) != 32 or is_zero(trace_id):
        log("warn", "invalid W3C trace context trace ID; ignoring.")
    elif len(span_id) != 16 or is_zero(span_id):
        log("warn", "invalid W3C trace context parent ID; ignoring.")
    elif len(flags) != 2:
        log("warn", "invalid W3C trace context flags; ignoring.")
    else:
        number = int(flags, 16)
        return PropagationContext(
            trace_id=bytes.fromhex(trace_id),
            span_id=bytes.fromhex(span_id),
            should_sample=number & 1 == 1,
            w3c_flags=number,
        )
    return None


def inject(context: PropagationContext, headers: RequestHeaders) -> dict[str, str]:
    """Write ``traceparent``."""
    trace_id, span_id = context.outgoing_ids("w3c", 16)
    text = trace_id.hex()
    headers.set("traceparent", f"00-{text}-{span_id.hex()}-0{context.sampled_digit}")
    return {"w3c": text}
