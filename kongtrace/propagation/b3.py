"""Zipkin's B3: one header ``b3``, or several ``x-b3-*``.

Both are read, the single header taking precedence field by field; ``tracestate: b3=...`` counts as the single header.
Any of the headers makes the extraction succeed, even without ids (kong-semantics X13): with b3 listed before w3c, a
request that has a ``tracestate`` loses its trace (H33).

Source: kong-semantics X5, X6, X16, X17; https://github.com/openzipkin/b3-propagation.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from kongtrace.propagation.context import SPAN_ID_BYTES, Log, PropagationContext, fit
from kongtrace.propagation.fields import hex_ids, sampled_word

if TYPE_CHECKING:
    from kongtrace.propagation.headers import HeaderValue, RequestHeaders

IDS: Final = {"x-b3-traceid": (16, 32), "x-b3-spanid": (16,), "x-b3-parentspanid": (16,)}
"""The id headers, in the order of their warnings, and the digits of each."""

TRIGGERS: Final = ("b3", "tracestate", *IDS, "x-b3-sampled", "x-b3-flags")

SINGLE: Final = re.compile("([0-9A-Fa-f]+)-([0-9A-Fa-f]{16})-?([01d]?)-?([0-9A-Fa-f]*)")
"""Dashes around the decision are optional, as in Kong."""

DECISIONS: Final[dict[str, tuple[bool | None, str | None]]] = {
    "": (None, None),
    "0": (False, None),
    "1": (True, None),
    "d": (True, "1"),
}
"""The sampling state of the single header: (should_sample, flags)."""


class _Part(NamedTuple):
    """What one of the two forms says."""

    trace_id: bytes | None = None
    span_id: bytes | None = None
    parent_id: bytes | None = None
    should_sample: bool | None = None
    flags: HeaderValue | None = None


def extract(headers: RequestHeaders, log: Log) -> PropagationContext | None:
    """Read both forms; None when no header of either is there."""
    if all(headers.get(name) is None for name in TRIGGERS):
        return None
    text = _single_header(headers)
    first = _Part() if text is None else _read_single(text, log)
    second = _read_multi(headers, log)
    trace_id = first.trace_id or second.trace_id
    return PropagationContext(
        trace_id=trace_id,
        span_id=trace_id and (first.span_id or second.span_id),
        parent_id=trace_id and (first.parent_id or second.parent_id),
        reuse_span_id=True,
        should_sample=second.should_sample if first.should_sample is None else first.should_sample,
        flags=first.flags or second.flags,
        single_header=None if text is None else True,
    )


def _single_header(headers: RequestHeaders) -> str | None:
    value = headers.get("b3")
    if value is not None:
        return value if isinstance(value, str) else None
    state = headers.get("tracestate") or []
    members = [state] if isinstance(state, str) else state
    return next((member[3:] for member in members if member.startswith("b3=") and member != "b3="), None)


def _read_single(text: str, log: Log) -> _Part:
    if text and text in DECISIONS:
        should_sample, flags = DECISIONS[text]
        return _Part(should_sample=should_sample, flags=flags)
    parts = SINGLE.fullmatch(text)
    if parts is not None:
        trace_id, span_id, sampled, parent_id = parts.groups()
        if len(trace_id) in (16, 32) and len(parent_id) in (0, 16):
            return _Part(
                bytes.fromhex(trace_id), bytes.fromhex(span_id), bytes.fromhex(parent_id) or None, *DECISIONS[sampled]
            )
    log("warn", "b3 single header invalid; ignoring.")
    return _Part()


def _read_multi(headers: RequestHeaders, log: Log) -> _Part:
    should_sample = sampled_word(headers, "x-b3-sampled", log)
    flags = headers.get("x-b3-flags")
    if flags == "1":
        should_sample = True
    elif flags is not None:
        log("warn", "x-b3-flags header invalid; ignoring.")
    trace_id, span_id, parent_id = hex_ids(headers, IDS, log)
    return _Part(trace_id, span_id, parent_id, should_sample, flags)


def inject(context: PropagationContext, headers: RequestHeaders) -> dict[str, str]:
    """Write ``x-b3-*``; without ids the decision alone."""
    trace_id = context.outgoing_trace_id(16, 8)
    if trace_id is not None and context.span_id is not None:
        headers.set("x-b3-traceid", trace_id.hex())
        headers.set("x-b3-spanid", fit(context.span_id, SPAN_ID_BYTES).hex())
        if context.parent_id is not None:
            headers.set("x-b3-parentspanid", fit(context.parent_id, SPAN_ID_BYTES).hex())
    if context.flags is not None:
        headers.set("x-b3-flags", context.flags)
    else:
        headers.set("x-b3-sampled", context.sampled_digit)
    return _formats(trace_id)


def inject_single(context: PropagationContext, headers: RequestHeaders) -> dict[str, str]:
    """Write ``b3``; without ids the decision alone."""
    sampled = "" if context.should_sample is None else context.sampled_digit
    if context.flags == "1":
        sampled = "d"
    trace_id = context.outgoing_trace_id(16, 8)
    if trace_id is None or context.span_id is None:
        headers.set("b3", sampled or "0")
    else:
        parts = [trace_id.hex(), fit(context.span_id, SPAN_ID_BYTES).hex()]
        if sampled:
            parts.append(sampled)
        if context.parent_id is not None:
            parts.append(fit(context.parent_id, SPAN_ID_BYTES).hex())
        headers.set("b3", "-".join(parts))
    return _formats(trace_id)


def _formats(trace_id: bytes | None) -> dict[str, str]:
    return {"b3": "" if trace_id is None else trace_id.hex()}
