"""AWS X-Ray: ``x-amzn-trace-id: Root=1-<8 digits>-<24 digits>;Parent=<span id>;Sampled=<0 or 1>``.

Source: kong-semantics X10, X21;
https://docs.aws.amazon.com/xray/latest/devguide/xray-concepts.html#xray-concepts-tracingheader.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kongtrace.propagation.context import Log, PropagationContext

if TYPE_CHECKING:
    from kongtrace.propagation.headers import RequestHeaders

ROOT: Final = re.compile("1-([0-9A-Fa-f]{8})-([0-9A-Fa-f]{24})")
HEX_PAIR: Final = re.compile(b"[0-9A-Fa-f]{2}")
BLANKS: Final = " \t\n\v\f\r"
PARENT_BYTES: Final = 16
SAMPLED: Final = {"0": False, "1": True}


def extract(headers: RequestHeaders, log: Log) -> PropagationContext | None:
    """Read ``x-amzn-trace-id``; None when it is absent, repeated or malformed. Unknown keys are ignored."""
    header = headers.get("x-amzn-trace-id")
    if not isinstance(header, str):
        return None
    context = PropagationContext()
    for pair in header.split(";"):
        key, _, rest = pair.partition("=")
        problem = _take(context, key.strip(BLANKS), rest.partition("=")[0].strip(BLANKS))
        if problem:
            log("warn", f"invalid aws header {problem}; ignoring.")
            return None
    return context


def _take(context: PropagationContext, key: str, value: str) -> str | None:
    """Put one pair into the context; gives what is wrong with it."""
    match key:
        case "Root":
            root = ROOT.fullmatch(value)
            if root is None:
                return "trace id"
            context.trace_id = bytes.fromhex(root[1] + root[2])
        case "Parent":
            octets = value.encode(errors="surrogateescape")
            if len(octets) != PARENT_BYTES:
                return "parent id"
            context.span_id = _from_hex_pairs(octets)
        case "Sampled":
            context.should_sample = SAMPLED.get(value)
            if context.should_sample is None:
                return "sampled flag"
    return None


def _from_hex_pairs(octets: bytes) -> bytes:
    """Kong does not verify the digits of ``Parent``: what is no pair of them stays as it is (X10)."""
    return HEX_PAIR.sub(lambda pair: bytes.fromhex(pair[0].decode()), octets)


def inject(context: PropagationContext, headers: RequestHeaders) -> dict[str, str]:
    """Write ``x-amzn-trace-id``."""
    trace_id, span_id = context.outgoing_ids("aws", 16)
    text = trace_id.hex()
    parent, sampled = span_id.hex(), context.sampled_digit
    headers.set("x-amzn-trace-id", f"Root=1-{text[:8]}-{text[8:]};Parent={parent};Sampled={sampled}")
    return {"aws": text}
