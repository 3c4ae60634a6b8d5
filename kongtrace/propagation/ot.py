"""OpenTracing: ``ot-tracer-traceid``, ``ot-tracer-spanid``, ``ot-tracer-sampled`` and baggage in ``ot-baggage-*``.

Source: kong-semantics X8, X19.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kongtrace.propagation.context import Log, PropagationContext
from kongtrace.propagation.fields import hex_ids, read_baggage, sampled_word, write_baggage

if TYPE_CHECKING:
    from kongtrace.propagation.headers import RequestHeaders

IDS: Final = {"ot-tracer-traceid": (16, 32), "ot-tracer-spanid": (16,)}
"""The id headers, in the order of their warnings, and the digits of each."""

TRIGGERS: Final = ("ot-tracer-sampled", *IDS)
BAGGAGE: Final = "ot-baggage-"


def extract(headers: RequestHeaders, log: Log) -> PropagationContext | None:
    """Read ``ot-tracer-*``; None when none of them is there."""
    if all(headers.get(name) is None for name in TRIGGERS):
        return None
    should_sample = sampled_word(headers, "ot-tracer-sampled", log)
    trace_id, span_id = hex_ids(headers, IDS, log)
    return PropagationContext(
        trace_id=trace_id,
        span_id=trace_id and span_id,
        should_sample=should_sample,
        baggage=read_baggage(headers, BAGGAGE),
    )


def inject(context: PropagationContext, headers: RequestHeaders) -> dict[str, str]:
    """Write ``ot-tracer-*`` and the baggage."""
    trace_id, span_id = context.outgoing_ids("ot", 8, 16)
    text = trace_id.hex()
    headers.set("ot-tracer-traceid", text)
    headers.set("ot-tracer-spanid", span_id.hex())
    if context.should_sample is not None:
        headers.set("ot-tracer-sampled", context.sampled_digit)
    write_baggage(headers, BAGGAGE, context.baggage)
    return {"ot": text}
