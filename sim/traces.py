"""What the collector knows of the traces it received: exact counts, and whether they are whole trees.

Theory of operation. A span is known by trace id and span id; one that comes again (a retry whose answer got lost) is a
duplicate and changes nothing. Of each span only what the checks need is kept, packed: about 190 bytes in a trace of
eight, so a run of a million spans takes 190 MB, and nothing is ever forgotten unless `forget` is told to. That ends at
`SPANS_MAX` spans: from then on a span that is not known is *unchecked*, counted, and looked at no further. Trees are
checked when `findings` are asked for, and only those that grew since.

What the parts of a trace are:

- A *root* has no parent id, or a parent id that is not in the trace and belongs to another service: the span's flags
  say that its parent is remote (OTLP, `SpanFlags`), or say nothing and the span is of kind SERVER or CONSUMER, whose
  parent was given by the client in a header.
- An *orphan* has a parent id that is not in the trace, and is no root.

What is wrong with a trace:

| finding | counts |
|---|---|
| `orphans` | spans |
| `outside_parent` | spans that begin more than `TOLERANCE_NS` before their parent or end more than that after it |
| `unfinished` | spans without an end time |
| `rootless` | traces without a root |
| `multi_rooted` | traces with more than one root |

Times in ns since the Unix epoch, ids in bytes.
"""

import struct
from collections import Counter
from typing import TYPE_CHECKING, Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["FINDINGS", "SPANS_MAX", "TOLERANCE_NS", "Traces", "has_remote_parent", "is_root"]

FINDINGS: Final = ("orphans", "outside_parent", "unfinished", "rootless", "multi_rooted")

TOLERANCE_NS: Final = 1_000_000
"""How far a child may stick out of its parent: a request's start is read from nginx's clock, which ticks in ms."""

SPANS_MAX: Final = 5_000_000
"""How many spans are known at once: 950 MB of them."""

_ROW: Final = struct.Struct("<8sQQ?")  # parent id, start, end, has a remote parent
_NO_PARENT: Final = bytes(8)
_ENTRY_KINDS: Final = (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CONSUMER)
_REMOTENESS_KNOWN: Final = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE: Final = SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


class Traces:
    """The spans received, by trace.

    Attributes:
        received: Spans added, duplicates too.
        unique: Different ones.
        unchecked: Those of `received` that came when `spans_max` were known, and are not among them.
        seen: Different traces.
    """

    def __init__(self, spans_max: int = SPANS_MAX) -> None:
        self.received = 0
        self.unique = 0
        self.unchecked = 0
        self.seen = 0
        self._spans_left = spans_max
        self._traces: dict[bytes, dict[bytes, bytes]] = {}  # by trace id, then span id: packed rows
        self._unchecked: set[bytes] = set()
        self._findings: Counter[str] = Counter(dict.fromkeys(FINDINGS, 0))
        self._flawed: dict[bytes, Counter[str]] = {}  # what each trace contributes to them

    def add(self, span: Span) -> bool:
        """Take in a span with well-formed ids; return whether it is new."""
        self.received += 1
        trace_id, span_id = span.trace_id, span.span_id
        spans = self._traces.get(trace_id)
        if spans is not None and span_id in spans:
            return False
        if not self._spans_left:
            self.unchecked += 1
            return False
        self._spans_left -= 1
        if spans is None:
            spans = self._traces[trace_id] = {}
            self.seen += 1
        spans[span_id] = _ROW.pack(
            span.parent_span_id, span.start_time_unix_nano, span.end_time_unix_nano, has_remote_parent(span)
        )
        self.unique += 1
        self._unchecked.add(trace_id)
        return True

    def knows(self, trace_id: bytes, span_id: bytes) -> bool:
        """Return whether the span has come and is not forgotten."""
        return span_id in self._traces.get(trace_id, ())

    def findings(self) -> dict[str, int]:
        """Return what is wrong as of now; a trace of which spans are still under way may look worse than it is."""
        for trace_id in self._unchecked:
            self._findings.subtract(self._flawed.pop(trace_id, {}))
            found = _check(self._traces[trace_id])
            if found:
                self._findings.update(found)
                self._flawed[trace_id] = found
        self._unchecked.clear()
        return dict(self._findings)

    def forget(self, trace_ids: "Iterable[bytes]") -> None:
        """Free the memory of traces that nothing more is expected of; what was found of them stays counted."""
        self.findings()
        for trace_id in trace_ids:
            self._spans_left += len(self._traces.pop(trace_id, ()))
            self._flawed.pop(trace_id, None)


def has_remote_parent(span: Span) -> bool:
    """Return whether the span's parent, where it has one, is of another service."""
    flags = span.flags
    if flags & _REMOTENESS_KNOWN:
        return bool(flags & _REMOTE)
    return span.kind in _ENTRY_KINDS


def is_root(span: Span, span_ids: "Mapping[bytes, object]") -> bool:
    """Return whether the span is a root of the trace that consists of `span_ids`."""
    return _is_root(span.parent_span_id, has_remote_parent(span), span_ids)


def _is_root(parent_id: bytes, remote_parent: bool, span_ids: "Mapping[bytes, object]") -> bool:
    return parent_id in (b"", _NO_PARENT) or (remote_parent and parent_id not in span_ids)


def _check(spans: "Mapping[bytes, bytes]") -> Counter[str]:
    found: Counter[str] = Counter()
    roots = 0
    for row in spans.values():
        parent_id, start_ns, end_ns, remote_parent = _ROW.unpack(row)
        if not end_ns:
            found["unfinished"] += 1
        if _is_root(parent_id, remote_parent, spans):
            roots += 1
        elif parent_id not in spans:
            found["orphans"] += 1
        else:
            _, parent_start_ns, parent_end_ns, _ = _ROW.unpack(spans[parent_id])
            if start_ns < parent_start_ns - TOLERANCE_NS or 0 < parent_end_ns < end_ns - TOLERANCE_NS:
                found["outside_parent"] += 1
    if not roots:
        found["rootless"] = 1
    elif roots > 1:
        found["multi_rooted"] = 1
    return found
