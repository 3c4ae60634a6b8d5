"""`tracing` may be imported before there is a worker, and stands for the global tracer of the provider in use."""

from functools import partial

import pytest

from kongtrace import NOOP_SPAN, PHASES, ApiError, GlobalTracer, Span, TracerProvider
from kongtrace.checked import tracer_provider
from kongtrace.testing import FakeClock, FakeEntropy, TracedWorker


@pytest.fixture
def handle():
    return GlobalTracer()


@pytest.fixture
def worker():
    worker = TracedWorker()
    worker.begin()
    return worker


def test_without_a_provider_it_is_the_noop_tracer(handle):
    """Nothing is recorded."""  # T4
    assert handle.name == "noop"
    assert handle.start_span("work") is NOOP_SPAN
    assert handle.active_span() is None


def test_it_follows_the_provider_in_use(handle, worker):
    """Its calls are those of the global tracer."""  # D1
    handle.use(worker.provider)
    span = handle.start_span("work", span_kind=2)
    handle.set_active_span(span)
    assert handle.active_span() is worker.provider.global_tracer.active_span() is span
    assert handle.name == worker.provider.global_tracer.name


def test_it_follows_the_global_tracer(handle, worker):
    """Whoever sets another one is followed at once."""  # T4, T5
    handle.use(worker.provider)
    other = handle.new("other")
    handle.set_global_tracer(other)
    assert handle.start_span("work").tracer is other
    worker.provider.set_global_tracer(worker.provider.noop_tracer)
    assert handle.start_span("work") is NOOP_SPAN
    with pytest.raises(ApiError):
        handle.set_global_tracer(5)


def test_a_tracer_made_before_there_is_a_provider_comes_to_life(handle, worker):
    """Until then it gives the noop span."""  # D2
    tracer = handle.new("early", sampling_rate=0.5, namespace="APART")
    assert handle("early", {"noop": True}).name == "noop"
    assert tracer.start_span("work") is NOOP_SPAN
    handle.use(worker.provider)
    span = tracer.start_span("work")
    assert isinstance(span, Span)
    assert tracer.spans_key == "APART_SPANS"
    worker.provider.end_request(worker.provider.execution.ctx)
    assert worker.provider.balances()["KONG_SPAN"].live == 0


def test_it_can_be_taken_back(handle, worker):
    """Then it is as it was."""
    handle.use(worker.provider)
    handle.use(None)
    assert handle.start_span("work") is NOOP_SPAN


def test_it_tells_what_it_stands_for(handle, worker):
    """The representation names the tracer."""
    assert "NoopTracer" in repr(handle)
    handle.use(worker.provider)
    assert repr(worker.provider.global_tracer) in repr(handle)


def test_it_may_be_given_wherever_a_tracer_is(handle, worker):
    """A span that is made or linked with it is the global tracer's, whatever the handle stands for later."""  # D16, T5
    handle.use(worker.provider)
    tracer, mine = worker.provider.global_tracer, handle.new("mine")
    made = handle.create_span(handle, {"span_kind": 3})
    assert (made.tracer, made.kind, made.should_sample) == (tracer, 3, True)
    assert handle.link_span(handle, made, "made").name == "made"
    linked = mine.link_span(handle, mine.create_span(None), "linked")
    assert linked.tracer is tracer
    assert tracer.get_spans() == [made, linked]
    handle.set_active_span(made)
    assert mine.create_span(handle).parent is made
    for setter in (worker.provider, handle, mine, worker.provider.noop_tracer):
        setter.set_global_tracer(handle)
        assert worker.provider.global_tracer is tracer


@pytest.mark.parametrize("make_provider", [TracerProvider, partial(tracer_provider, "report")])
def test_it_processes_no_span(handle, make_provider):
    """It can be called, but it is a tracer and no function; with checked spans too."""  # D7
    provider = make_provider(time_ns=FakeClock(), random_bytes=FakeEntropy())
    handle.use(provider)
    handle.set_global_tracer(handle.new("instrument"))
    provider.execution.enter(PHASES["log"], {"KONG_PHASE": "log"})
    handle.start_span("work")
    for tracer in (handle, provider.global_tracer):
        with pytest.raises(ApiError, match=r"^processor must be a function$"):
            handle.process_span(tracer)


def test_without_a_provider_it_may_be_given_too(handle):
    """The no-op tracer makes no span and links none."""  # T6
    assert handle.create_span(handle) is NOOP_SPAN
    assert handle.link_span(handle, NOOP_SPAN, "none") is None


def test_its_sampler_is_the_global_tracers(handle, worker):
    """The no-op tracer has none."""  # D18, T6
    assert not hasattr(handle, "sampler")
    handle.use(worker.provider)
    handle.set_global_tracer(handle.new("half", sampling_rate=0.5))
    assert handle.sampler(bytes(8)) == (True, None)
    assert handle.sampler(b"\xff" * 8) == (False, None)


@pytest.mark.parametrize("call", ["new", "__call__"])
def test_a_misspelt_option_is_told(handle, worker, call):
    """As a keyword, that is; a mapping may have more, as in Lua. So it is with every tracer."""  # D2
    for tracer in (handle, worker.provider.noop_tracer, worker.provider.global_tracer):
        with pytest.raises(TypeError, match="'sample_rate', expected one of sampling_rate, namespace, noop"):
            getattr(tracer, call)("mine", sample_rate=0.1)
        assert getattr(tracer, call)("mine", {"sample_rate": 0.1}).sampling_rate == 1.0
