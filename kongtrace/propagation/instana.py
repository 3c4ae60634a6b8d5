"""Instana: ``x-instana-t`` (trace id), ``x-instana-s`` (span id) and ``x-instana-l`` (level: 1 is sampled).

A request without a level is taken as not sampled. Source: kong-semantics X12, X23.
"""

from __future__ import annotations

from kongtrace.propagation.context import Log, MissingFieldError, PropagationContext, UnguardedError
from kongtrace.propagation.fields import HEX, from_hex
from kongtrace.propagation.headers import RequestHeaders, single


def extract(headers: RequestHeaders, log: Log) -> PropagationContext | None:
    """Read ``x-instana-*``; None unless trace id and span id were sent once each.

    Raises:
        UnguardedError: the level was repeated.
    """
    trace_value = headers.get("x-instana-t")
    if not isinstance(trace_value, str):
        return None
    trace_digits = HEX.match(trace_value)
    if trace_digits is None or len(trace_digits[0]) not in (16, 32):
        log("warn", "x-instana-t header invalid; ignoring.")  # digits of another length are used, as in Kong
    span_value = headers.get("x-instana-s")
    if not isinstance(span_value, str):
        return None
    span_digits = HEX.match(span_value)
    if span_digits is None:
        log("warn", "x-instana-s header invalid; ignoring.")
    level = headers.get("x-instana-l")
    return PropagationContext(
        trace_id=from_hex(trace_digits[0]) if trace_digits else None,
        span_id=from_hex(span_digits[0]) if span_digits else None,
        should_sample=level is not None and single("x-instana-l", level).startswith("1"),
    )


def inject(context: PropagationContext, headers: RequestHeaders) -> dict[str, str]:
    """Write the ids, and the level if it is decided.

    Raises:
        UnguardedError: an id is missing; the only injector of Kong's that needs ids and does not check.
    """
    try:
        trace_id, span_id = context.outgoing_ids("instana", 16, 8)
    except MissingFieldError as missing:
        raise UnguardedError(str(missing)) from None
    text = trace_id.hex()
    headers.set("x-instana-t", text)
    headers.set("x-instana-s", span_id.hex())
    if context.should_sample is not None:
        headers.set("x-instana-l", context.sampled_digit)
    return {"instana": text}
