"""Sampling by trace id, as Kong does it.

The first 8 bytes of the trace id, read as a little-endian unsigned integer, are compared with ``rate * 2**64``
(kong-semantics M2). OpenTelemetry's own ratio sampler reads the *last* 8 bytes, big-endian, so that the two decide
differently on the same id.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from kongtrace.lua import is_number

SAMPLING_BYTES = 8
"""Bytes of the trace id that decide (M2)."""

INVALID_FRACTION = "invalid fraction"
TOO_SHORT = f"sampling needs trace ID to be longer than {SAMPLING_BYTES} bytes to work"


class Decision(NamedTuple):
    """What a sampler says.

    Attributes:
        sampled: True or False; None when it cannot decide.
        error: why not, or None.
    """

    sampled: bool | None
    error: str | None


SAMPLED = Decision(sampled=True, error=None)
DROPPED = Decision(sampled=False, error=None)
_INVALID_RATE = Decision(None, INVALID_FRACTION)
_SHORT_ID = Decision(None, TOO_SHORT)


def sample(trace_id: bytes, rate: Any) -> Decision:
    """Decide on ``trace_id`` at ``rate`` (M1, M2).

    Args:
        trace_id: bytes; its length matters only for a rate between 0 and 1.
        rate: number; 1 and above samples everything, 0 and below nothing.

    Raises:
        TypeError: the trace id is None and the rate is between 0 and 1.
    """
    if type(rate) is not float and not is_number(rate):
        return _INVALID_RATE
    if rate >= 1:
        return SAMPLED
    if rate <= 0:
        return DROPPED
    if len(trace_id) < SAMPLING_BYTES:
        return _SHORT_ID
    leading = int.from_bytes(trace_id[:SAMPLING_BYTES], "little")
    return SAMPLED if leading < _bound(rate) else DROPPED


@lru_cache(maxsize=64)
def _bound(rate: float) -> int:
    if math.isnan(rate):
        # LuaJIT's conversion of a NaN to an unsigned 64-bit integer.
        return 1 << 63
    return int(rate * 2.0**64)
