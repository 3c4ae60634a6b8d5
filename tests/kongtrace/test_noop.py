"""The no-op tracer does nothing, and everything that the real one does can be asked of it."""

import inspect

import pytest

from kongtrace import NOOP_SPAN, NoopTracer, Tracer
from kongtrace.testing import TracedWorker


@pytest.fixture
def noop():
    worker = TracedWorker()
    worker.begin()
    return worker.provider.noop_tracer


def test_it_has_every_function_of_a_tracer():
    """What works with tracing on works with tracing off."""  # T6
    internal = {"bind", "decide", "list_of", "trace", "sampler"}  # Kong's has no sampler either
    public = {name for name, _ in inspect.getmembers(Tracer, inspect.isfunction) if not name.startswith("_")}
    assert public - internal <= set(dir(NoopTracer))


def test_spans_are_the_noop_span(noop):
    """Nothing is checked."""  # T6
    assert noop.start_span() is noop.start_span("", 5, attributes=5) is NOOP_SPAN
    assert noop.create_span() is noop.create_span(5, 5) is NOOP_SPAN


@pytest.mark.parametrize(
    "call",
    [
        lambda noop: noop.link_span(None, None, None),
        lambda noop: noop.active_span(),
        lambda noop: noop.set_active_span(5),
        lambda noop: noop.process_span(5),
        lambda noop: noop.init_spans(),
        lambda noop: noop.get_spans(),
        lambda noop: noop.get_root_span(),
        lambda noop: noop.set_should_sample(True),
        lambda noop: noop.get_sampling_decision(True, 1),
    ],
)
def test_every_other_call_gives_nothing(noop, call):
    """Not even a list."""  # T6
    assert call(noop) is None


def test_new_span_is_what_it_stands_for(noop):
    """A name starts, a span activates, nothing asks."""  # C2
    assert noop.new_span("work") is NOOP_SPAN
    assert noop.new_span(NOOP_SPAN) is noop.new_span() is None


def test_it_makes_real_tracers(noop):
    """That is how tracing is switched on."""  # T6
    tracer = noop.new("real", sampling_rate=0.5)
    assert (tracer.name, tracer.sampling_rate) == ("real", 0.5)
    assert noop("real", {"sampling_rate": 0.5}) is tracer
    noop.set_global_tracer(tracer)


def test_writing_to_it_is_swallowed(noop):
    """One instance serves all."""  # T6
    noop.name = "other"
    noop.anything = 1
    assert noop.name == "noop"
    assert not hasattr(noop, "anything")


def test_a_span_made_for_it_ends_without_an_active_span():
    """A span can belong to the no-op tracer: it is timed, and restores nothing."""  # D16
    worker = TracedWorker()
    with worker.request():
        tracer = worker.provider.global_tracer
        span = tracer.create_span(worker.provider.noop_tracer, {"should_sample": True})
        assert span.tracer is worker.provider.noop_tracer
        tracer.set_active_span(span)
        span.finish()
        assert tracer.active_span() is span
        tracer.set_active_span(None)
