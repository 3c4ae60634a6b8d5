"""What holds for the collector's counts and findings, whatever arrives and in whatever order."""

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sim.traces import FINDINGS, Traces

MS = 1_000_000


def _span(trace, number, parent, begin_ns, end_ns):
    return Span(
        trace_id=bytes([trace + 1]) * 16,
        span_id=bytes([number + 1]) * 8,
        parent_span_id=b"" if parent is None else bytes([parent + 1]) * 8,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=begin_ns,
        end_time_unix_nano=end_ns,
    )


@st.composite
def whole_trees(draw):
    """Traces of one root each, every span within its parent."""
    spans = []
    for trace in range(draw(st.integers(0, 4))):
        intervals = [(0, 1_000 * MS)]
        spans.append(_span(trace, 0, None, *intervals[0]))
        for number in range(1, draw(st.integers(1, 8))):
            parent = draw(st.integers(0, number - 1))
            begin_ns, end_ns = sorted(draw(st.tuples(*[st.integers(*intervals[parent])] * 2)))
            intervals.append((begin_ns, end_ns))
            spans.append(_span(trace, number, parent, begin_ns, max(1, end_ns)))
    return spans


@st.composite
def any_spans(draw):
    """Spans of a few traces with few ids, so that duplicates, orphans and circles are frequent."""
    numbers = st.integers(0, 5)
    times = st.integers(0, 5).map(lambda ms: ms * MS)
    fields = st.tuples(st.integers(0, 2), numbers, st.none() | numbers, times, times)
    return [_span(*values) for values in draw(st.lists(fields, max_size=30))]


def _traces(spans):
    traces = Traces()
    for span in spans:
        traces.add(span)
    return traces


@given(spans=whole_trees(), shuffle=st.randoms(use_true_random=False))
def test_whole_trees_have_no_findings_in_any_order(spans, shuffle):
    """A tree that is whole is found whole, however its spans arrive."""
    shuffle.shuffle(spans)

    assert _traces(spans).findings() == dict.fromkeys(FINDINGS, 0)


@given(spans=any_spans())
def test_counts_are_those_of_sets(spans):
    """Exact counts: what a set of trace ids and a set of span ids would hold."""
    traces = _traces(spans)

    assert traces.received == len(spans)
    assert traces.unique == len({(span.trace_id, span.span_id) for span in spans})
    assert traces.seen == len({span.trace_id for span in spans})


@given(spans=any_spans(), asked=st.sets(st.integers(0, 30)))
def test_findings_do_not_depend_on_when_they_were_asked_for(spans, asked):
    """Asking in between changes nothing of the final findings."""
    traces = Traces()
    for index, span in enumerate(spans):
        traces.add(span)
        if index in asked:
            traces.findings()

    assert traces.findings() == _traces(spans).findings()


@given(spans=any_spans())
def test_findings_are_those_of_a_naive_search(spans):
    """Orphans, unfinished spans, rootless and multi-rooted traces, found by looking at all spans for each."""
    firsts = {(span.trace_id, span.span_id): span for span in reversed(spans)}
    trace_ids = {trace_id for trace_id, _ in firsts}
    roots = [sum(not span.parent_span_id for (of, _), span in firsts.items() if of == one) for one in trace_ids]
    parents = [(span.trace_id, span.parent_span_id) for span in firsts.values() if span.parent_span_id]
    findings = _traces(spans).findings()

    assert findings["orphans"] == sum(parent not in firsts for parent in parents)
    assert findings["unfinished"] == sum(not span.end_time_unix_nano for span in firsts.values())
    assert findings["rootless"] == roots.count(0)
    assert findings["multi_rooted"] == sum(count > 1 for count in roots)
