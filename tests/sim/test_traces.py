"""What the collector counts and finds in the traces it received."""

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags

from sim.traces import FINDINGS, TOLERANCE_NS, Traces

TRACE = b"t" * 16
MS = 1_000_000
T0 = 1_700_000_000 * 1000 * MS

HAS_IS_REMOTE = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
IS_REMOTE = SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


def _id(name):
    return name.encode().rjust(8, b"-")


def _span(name, parent=None, *, trace_id=TRACE, begin_ms=0.0, end_ms=10.0, kind=Span.SPAN_KIND_INTERNAL, flags=0):
    """A span with its name as id; times in ms after T0, an end of None for unfinished."""
    return Span(
        trace_id=trace_id,
        span_id=_id(name),
        parent_span_id=_id(parent) if parent else b"",
        name=name,
        kind=kind,
        flags=flags,
        start_time_unix_nano=T0 + round(begin_ms * MS),
        end_time_unix_nano=0 if end_ms is None else T0 + round(end_ms * MS),
    )


def _traces(*spans):
    traces = Traces()
    for span in spans:
        traces.add(span)
    return traces


def _findings(*spans):
    """Return what is wrong with the spans, without what is not."""
    return {name: count for name, count in _traces(*spans).findings().items() if count}


def test_span_that_comes_again_is_a_duplicate():
    """A span is known by trace id and span id together, whatever else it holds."""
    traces = _traces(_span("a"), _span("a", end_ms=5), _span("b", "a"), _span("a", trace_id=b"u" * 16))

    assert (traces.received, traces.unique, traces.seen) == (4, 3, 2)


def test_add_tells_whether_the_span_is_new():
    """The first of each is new."""
    traces = Traces()

    assert [traces.add(_span("a")), traces.add(_span("a"))] == [True, False]


def test_whole_tree_has_no_findings():
    """One root, children within their parents: nothing is wrong, and all is counted as 0."""
    spans = [_span("root"), _span("child", "root", begin_ms=1, end_ms=9), _span("leaf", "child", begin_ms=2, end_ms=3)]

    assert _traces(*spans).findings() == dict.fromkeys(FINDINGS, 0)


def test_order_of_arrival_does_not_matter():
    """A child may come before its parent, as spans do when they are exported as they end."""
    assert _findings(_span("leaf", "child"), _span("child", "root"), _span("root")) == {}


def test_span_without_its_parent_is_an_orphan():
    """The parent's id is not in the trace, and nothing says that it should not be."""
    assert _findings(_span("root"), _span("child", "lost"), _span("leaf", "child")) == {"orphans": 1}


@pytest.mark.parametrize("kind", [Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CONSUMER])
def test_entry_span_may_have_its_parent_elsewhere(kind):
    """A client gave the parent's id in a header: the span is the root of what we see."""
    assert _findings(_span("root", "client's", kind=kind), _span("child", "root")) == {}


@pytest.mark.parametrize(
    ("kind", "flags", "findings"),
    [
        (Span.SPAN_KIND_INTERNAL, HAS_IS_REMOTE | IS_REMOTE, {}),
        (Span.SPAN_KIND_SERVER, HAS_IS_REMOTE, {"orphans": 1, "rootless": 1}),
        (Span.SPAN_KIND_INTERNAL, IS_REMOTE, {"orphans": 1, "rootless": 1}),
    ],
)
def test_flags_decide_where_the_parent_is(kind, flags, findings):
    """Flags that know whether the parent is remote have the last word (OTLP, SpanFlags); the kind is only a sign."""
    assert _findings(_span("root", "elsewhere", kind=kind, flags=flags)) == findings


def test_entry_span_whose_parent_is_here_is_its_child():
    """A service that calls itself has a SERVER span below its CLIENT span in one trace, and one root."""
    spans = [_span("root"), _span("call", "root", kind=Span.SPAN_KIND_CLIENT)]

    assert _findings(*spans, _span("served", "call", kind=Span.SPAN_KIND_SERVER)) == {}


def test_parent_id_of_zeros_is_none():
    """Eight zero bytes are no id (OTLP)."""
    root = _span("root")
    root.parent_span_id = bytes(8)

    assert _findings(root) == {}


@pytest.mark.parametrize(
    ("begin_ms", "end_ms", "findings"),
    [
        (0, 10, {}),
        (-1, 11, {}),
        (-1.001, 10, {"outside_parent": 1}),
        (0, 11.001, {"outside_parent": 1}),
        (-2, 12, {"outside_parent": 1}),
    ],
)
def test_child_stays_within_its_parent(begin_ms, end_ms, findings):
    """A child may stick out of its parent by the tolerance on either side, no further."""
    assert TOLERANCE_NS == MS
    assert _findings(_span("root"), _span("child", "root", begin_ms=begin_ms, end_ms=end_ms)) == findings


def test_span_without_an_end_is_unfinished():
    """It is not outside its parent, nor are its children outside it."""
    spans = [_span("root", end_ms=None), _span("child", "root", end_ms=None), _span("leaf", "child", end_ms=50)]

    assert _findings(*spans) == {"unfinished": 2}


def test_trace_has_one_root():
    """None, and more than one, are found."""
    assert _findings(_span("a"), _span("b")) == {"multi_rooted": 1}
    assert _findings(_span("a", "b"), _span("b", "a")) == {"rootless": 1}
    assert _findings(_span("a", "a")) == {"rootless": 1}


def test_findings_are_of_now():
    """What was wrong only because a span was still under way is right once it has come."""
    traces = _traces(_span("child", "root"))
    assert traces.findings()["orphans"] == traces.findings()["rootless"] == 1

    traces.add(_span("root"))
    assert traces.findings() == dict.fromkeys(FINDINGS, 0)


def test_forgotten_traces_stay_counted():
    """Counts and findings outlive what they were taken from; a span that comes again later is new."""
    traces = _traces(_span("child", "lost"), _span("other", trace_id=b"u" * 16))
    traces.forget([TRACE, b"unknown"])

    assert (traces.unique, traces.seen) == (2, 2)
    assert traces.findings() == dict.fromkeys(FINDINGS, 0) | {"orphans": 1, "rootless": 1}
    assert traces.add(_span("child", "lost"))
    assert not traces.add(_span("other", trace_id=b"u" * 16))


def test_beyond_the_limit_spans_are_counted_and_not_known():
    """Those known before stay known, and forgetting makes room."""
    traces = Traces(spans_max=2)

    added = [traces.add(_span(name)) for name in "abca"]

    assert added == [True, True, False, False]
    assert (traces.received, traces.unique, traces.unchecked) == (4, 2, 1)
    assert not traces.knows(TRACE, _id("c"))
    traces.forget([TRACE])
    assert traces.add(_span("c"))
