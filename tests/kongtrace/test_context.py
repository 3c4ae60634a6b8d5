"""The request context carries traces and the tracing context; the execution says whose turn it is."""

import pytest

from kongtrace import NOOP_SPAN, PHASES, Execution, tracing_context
from kongtrace.context import Trace, active_key, span_list, spans_key
from kongtrace.testing import TracedWorker


def test_keys_are_named_after_the_namespace():
    """A namespace has two keys, as in Kong."""  # T1
    assert (spans_key("KONG"), active_key("KONG")) == ("KONG_SPANS", "KONG_active_span")


def test_the_tracing_context_is_made_once():
    """A request has one tracing context, whoever asks first."""  # X31
    ctx = {}
    assert tracing_context(ctx) is tracing_context(ctx)
    assert tracing_context({}) is not tracing_context(ctx)


def test_formats_of_several_plugins_are_merged():
    """Each adds the formats that it injected; the last one wins."""  # X31
    context = tracing_context({})
    context.add_trace_id_formats({"w3c": "aa"})
    assert context.add_trace_id_formats({"b3": "bb", "w3c": "cc"}) == {"w3c": "cc", "b3": "bb"}


def test_formats_are_added_to_the_first_that_there_are():
    """A plugin that had none to give, as datadog without a trace id, does not collect those of the others."""  # X31
    context = tracing_context({})
    context.add_trace_id_formats(none := {})
    context.add_trace_id_formats(first := {"w3c": "aa"})
    assert context.add_trace_id_formats({"b3": "bb"}) is first
    assert (none, first) == ({}, {"w3c": "aa", "b3": "bb"})


@pytest.mark.parametrize("formats", [None, "w3c", 5, False])
def test_formats_are_a_table(formats):
    """Whatever comes first is taken, and nothing can be added to it; nor can it be added to others."""  # X31
    context = tracing_context({})
    assert context.add_trace_id_formats(formats) is formats
    with pytest.raises(TypeError, match="trace id formats"):
        context.add_trace_id_formats({"b3": "bb"})
    context = tracing_context({})
    context.add_trace_id_formats({"w3c": "aa"})
    with pytest.raises(TypeError, match="trace id formats"):
        context.add_trace_id_formats(formats)


def test_a_list_of_formats_has_its_positions_as_keys():
    """It is a table as any other."""  # X31
    context = tracing_context({})
    assert context.add_trace_id_formats(["x"]) == {1: "x"}
    assert context.add_trace_id_formats(["y", "z"]) == {1: "y", 2: "z"}


def test_a_request_without_spans_has_an_empty_list():
    """Reading the list makes none."""
    ctx = {}
    assert list(span_list(ctx)) == []
    assert ctx == {}


def test_what_stands_in_the_context_is_counted_and_walked_like_the_list():
    """Code from Lua reads `ngx.ctx.KONG_SPANS`; there is nothing to count before there is a list."""  # T7
    worker = TracedWorker()
    ctx = worker.begin()
    tracer = worker.provider.global_tracer
    tracer.set_active_span(NOOP_SPAN)
    seen = ctx["KONG_SPANS"]
    assert (len(seen), list(seen)) == (0, [])
    spans = [tracer.start_span("one"), tracer.start_span("two")]
    assert (len(seen), list(seen), seen[0], seen[-1]) == (2, spans, *spans)
    with pytest.raises(IndexError):
        seen[2]
    worker.end(ctx)


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_the_context_is_open_to_spans_where_the_phase_permits(phase):
    """In every other phase there is no place for a span."""  # T8
    execution, ctx = Execution(), {}
    execution.enter(phase, ctx)
    assert execution.ctx is ctx
    assert (execution.span_ctx is ctx) is phase.spans


def test_phases_that_permit_spans_are_the_seven():
    """The list is Kong's."""  # T8
    spans = {phase.name for phase in PHASES.values() if phase.spans}
    assert spans == {"ssl_cert", "rewrite", "access", "content", "header_filter", "body_filter", "log"}


def test_entering_a_request_brings_its_traces_back():
    """A namespace shows the trace of the request that runs, also when it comes to be in the middle of one."""  # R3
    execution = Execution()
    first, second = {"KONG_SPANS": Trace()}, {}
    execution.enter(PHASES["access"], first)
    namespace = execution.namespace("KONG")
    assert namespace.trace is first["KONG_SPANS"]
    execution.enter(PHASES["access"], second)
    assert namespace.trace is None
    execution.enter(PHASES["balancer"], first)
    assert namespace.trace is None
    execution.enter(PHASES["log"], first)
    assert namespace.trace is first["KONG_SPANS"]
    assert execution.namespace("KONG") is namespace
