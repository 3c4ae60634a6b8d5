"""Datadog: decimal ids in ``x-datadog-trace-id`` and ``x-datadog-parent-id``, and ``x-datadog-sampling-priority``.

Ids of 64 bits: a longer trace id loses its first half when it is injected. Source: kong-semantics X9, X20.
"""

from __future__ import annotations

import re
from typing import Final

from kongtrace.propagation.context import SPAN_ID_BYTES, Log, PropagationContext, fit
from kongtrace.propagation.fields import from_decimal, to_decimal
from kongtrace.propagation.headers import RequestHeaders, single

DECIMAL: Final = re.compile(r"[ \t-\r]*([0-9]+)[ \t-\r]*")
TRACE_ID: Final = "x-datadog-trace-id"
PARENT_ID: Final = "x-datadog-parent-id"
PRIORITY: Final = "x-datadog-sampling-priority"
PRIORITIES: Final = {"2": True, "1": True, "0": False, "-1": False}


def extract(headers: RequestHeaders, log: Log) -> PropagationContext | None:
    """Read ``x-datadog-*``; None when none of them is there, or the priority is malformed.

    Raises:
        UnguardedError: an id header was repeated (H34).
    """
    priority = headers.get(PRIORITY)
    if priority is None and headers.get(TRACE_ID) is None and headers.get(PARENT_ID) is None:
        return None
    should_sample = PRIORITIES.get(priority) if isinstance(priority, str) else None
    if priority is not None and should_sample is None:
        log("warn", f"{PRIORITY} header invalid; ignoring.")
        return None
    trace_digits = _digits(headers, TRACE_ID, log)
    span_digits = _digits(headers, PARENT_ID, log)
    return PropagationContext(
        trace_id=from_decimal(trace_digits) if trace_digits else None,
        span_id=from_decimal(span_digits) if trace_digits and span_digits else None,
        should_sample=should_sample,
    )


def _digits(headers: RequestHeaders, name: str, log: Log) -> str | None:
    value = headers.get(name)
    if value is None:
        return None
    number = DECIMAL.fullmatch(single(name, value))
    if number is None:
        log("warn", f"{name} header invalid; ignoring.")
        return None
    return number[1]


def inject(context: PropagationContext, headers: RequestHeaders) -> dict[str, str]:
    """Write what the context has of ids and decision."""
    trace_id = context.outgoing_trace_id(8)
    formats = {} if trace_id is None else {"datadog": to_decimal(trace_id)}
    if trace_id is not None:
        headers.set(TRACE_ID, formats["datadog"])
    if context.span_id is not None:
        headers.set(PARENT_ID, to_decimal(fit(context.span_id, SPAN_ID_BYTES)))
    if context.should_sample is not None:
        headers.set(PRIORITY, context.sampled_digit)
    return formats
