"""The capture: the spans that a collector took in, as they came, for whoever reads them when the run is over.

Theory of operation. It is memory that both processes share, mapped before the fork, to which the collector appends the
export requests and which the run reads. Nothing is decoded or looked up meanwhile, so a request costs a copy of its
bytes, and memory is taken up as it is written to. That ends at `SPANS_MAX` spans or `BYTES_MAX` bytes, whichever comes
first: from the first request on that does not fit nothing is kept, so what is kept is the beginning without a gap.

Times in ns of `time.monotonic_ns`, sizes in bytes.
"""

import mmap
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["BYTES_MAX", "SPANS_MAX", "Arrival", "Capture"]

SPANS_MAX: Final = 100_000
"""How many spans are kept, duplicates too: some 1.5 s of work for who decodes them."""

BYTES_MAX: Final = 32 << 20
"""How many bytes they may have; a span of the gateway's has some 150."""

_HEADER: Final = struct.Struct("<QII")  # when it came, rejected spans, bytes of the message: 0 where nothing follows


class Arrival(NamedTuple):
    """One export request.

    Attributes:
        arrived_ns: when it came.
        rejected: how many of its spans, the first ones, were not taken in.
        message: an `ExportTraceServiceRequest`.
    """

    arrived_ns: int
    rejected: int
    message: bytes


class Capture:
    """Export requests in shared memory, to be made before the processes that share it are forked.

    Args:
        spans_max: How many spans are kept.
        bytes_max: How many bytes.

    Attributes:
        spans: How many are kept, as the process that adds them knows.
    """

    def __init__(self, spans_max: int = SPANS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._memory = mmap.mmap(-1, bytes_max)
        self._spans_max = spans_max
        self._end = 0
        self._full = False
        self.spans = 0

    def add(self, arrival: Arrival, spans: int) -> None:
        """Keep a request of which so many spans were taken in, unless there is no room for it (collector)."""
        start = self._end + _HEADER.size
        end = start + len(arrival.message)
        self._full = self._full or self.spans + spans > self._spans_max or end > len(self._memory)
        if self._full or not spans:
            return
        self._memory[start:end] = arrival.message
        _HEADER.pack_into(self._memory, self._end, arrival.arrived_ns, arrival.rejected, len(arrival.message))
        self._end = end
        self.spans += spans

    def __iter__(self) -> Iterator[Arrival]:
        """Yield what is kept, in the order in which it came."""
        start = 0
        while start + _HEADER.size <= len(self._memory):
            arrived_ns, rejected, size = _HEADER.unpack_from(self._memory, start)
            if not size:
                return
            end = start + _HEADER.size + size
            yield Arrival(arrived_ns, rejected, self._memory[start + _HEADER.size : end])
            start = end
