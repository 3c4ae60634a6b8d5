"""Google Cloud: ``x-cloud-trace-context: <trace id>/<span id in decimal>;o=<0 or 1>``.

A header without ``o=1`` says "not sampled". Source: kong-semantics X11, X22.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kongtrace.propagation.context import Log, PropagationContext
from kongtrace.propagation.fields import from_decimal, to_decimal

if TYPE_CHECKING:
    from kongtrace.propagation.headers import RequestHeaders

TRACE_CONTEXT: Final = re.compile("([0-9a-f]{32})/([0-9]{1,20})(?:;o=([0-9]))?$")
"""Lower-case digits only; ``$`` forgives a final newline, as PCRE's does."""


def extract(headers: RequestHeaders, log: Log) -> PropagationContext | None:
    """Read ``x-cloud-trace-context``; None when it is absent, repeated or malformed."""
    value = headers.get("x-cloud-trace-context")
    if not isinstance(value, str):
        return None
    parts = TRACE_CONTEXT.match(value)
    if parts is None:
        log("warn", "invalid GCP header; ignoring.")
        return None
    return PropagationContext(
        trace_id=bytes.fromhex(parts[1]), span_id=from_decimal(parts[2]), should_sample=parts[3] == "1"
    )


def inject(context: PropagationContext, headers: RequestHeaders) -> dict[str, str]:
    """Write ``x-cloud-trace-context``."""
    trace_id, span_id = context.outgoing_ids("gcp", 16)
    text = trace_id.hex()
    headers.set("x-cloud-trace-context", f"{text}/{to_decimal(span_id)};o={context.sampled_digit}")
    return {"gcp": text}
