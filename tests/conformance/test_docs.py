"""The documentation of Kong's tracing API, page by page: its samples run, and what it says holds.

Five pages were handed over. The draft, the 3.9 and the unreleased tracing reference share their samples; beside them
stand the PDK page and the exporter guide. Each sample is a function here, translated from Lua line by line; in Python,
a call with a dot and one with a colon are the same (C1). Every sample runs in both profiles, through the handle that a
library's user imports and through the one that a plugin is given, and with tracing switched off.

Where a page and Kong's code differ, the code is followed and the documented usage works too (kong-semantics section 2,
"Documentation against code", C1 to C17). The guide in `docs/tracing.md` is executed at the end.
"""

import copy
import doctest
import json
import math
import re
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import ClassVar

import click
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv._incubating.attributes import (
    code_attributes,
    db_attributes,
    exception_attributes,
    faas_attributes,
    http_attributes,
    messaging_attributes,
    opentracing_attributes,
    rpc_attributes,
)

import kongtrace
from kongtrace import KONG, NOOP_SPAN, PHASES, SAFE, ApiError, Execution, NoopTracer, Span, TracerProvider, otlp
from sim import cli
from sim.config import INSTRUMENTATIONS, SAMPLING_RATE_DEFAULT, Tracing
from sim.entity import Plugin
from sim.instrumentation import Instrumentation
from sim.ngx import Network, Ngx
from sim.pdk import Kong
from sim.timers import Timers
from tests.stage import LOOPBACK, Virtual

DOCS = Path(__file__).parents[2] / "docs"
START_NS = 1_700_000_000_000_000_000
STEP_NS = 1_000  # what the clock goes on by each time it is read
MS_NS = 1_000_000
S_NS = 1_000_000_000

NGINX_PHASE = {"response": "access", "admin_api": "content"}
"""The nginx phase in which a Kong phase runs, where the two have different names (kong-semantics R1, C16)."""

DOCUMENTED_PHASES = ("rewrite", "access", "header_filter", "response", "body_filter", "log", "admin_api")
OTHER_PHASES = tuple(name for name, phase in PHASES.items() if not phase.spans)


class Worker:
    """What hosts the tracer: a clock, seeded ids, a log that is kept, timers, and one request at a time."""

    def __init__(self, profile=SAFE, *, instrumentations=("request",), sampling_rate=1.0):
        self.time = START_NS
        self.lines = []
        self.due = []
        self.ctx = None
        self.provider = TracerProvider(
            time_ns=self.time_ns,
            random_bytes=Random(7).randbytes,
            execution=Execution(),
            log=lambda level, message: self.lines.append((level, message)),
            profile=profile,
            sampling_rate=sampling_rate,
        )
        kongtrace.tracing.use(self.provider)
        self.provider.execution.enter(PHASES["init_worker"], {})
        self.timers = Timers(
            self,
            self.provider.execution,
            self.provider.log,
            pending_max=9,
            running_max=9,
            on_idle=lambda: None,
            on_end=self.provider.end_request,
        )
        instrumentation = Instrumentation(
            self.provider, Tracing(instrumentations=instrumentations, sampling_rate=sampling_rate)
        )
        network = Network(None, None, instrumentation)  # nobody connects
        self.kong = Kong(self.provider, self.timers, Ngx(self, self.provider.execution, self.timers, network))

    random, random_bytes = Random(7).random, Random(7).randbytes

    def time_ns(self):
        self.time += STEP_NS
        return self.time

    def now(self):
        """`ngx.now()`: s, to the ms (R8)."""
        return self.time // MS_NS / 1000

    def call_soon(self, callback, context=None):
        """What the timers ask of their runtime."""
        self.due.append(callback)

    def run_timers(self):
        due, self.due = self.due, []
        for callback in due:
            callback()

    def enter(self, phase):
        """Let a phase begin, by its name in Kong."""
        self.ctx["KONG_PHASE"] = phase
        self.provider.execution.enter(PHASES[NGINX_PHASE.get(phase, phase)], self.ctx)

    @contextmanager
    def request(self, phase="access"):
        """Serve a request from one phase on; the body may enter others. At its end its spans are released."""
        self.ctx = {}
        self.enter(phase)
        yield
        self.end_request()

    def end_request(self):
        self.enter("log")
        self.provider.end_request(self.ctx)
        self.provider.execution.enter(PHASES["timer"], {})

    def live(self):
        """Objects of each pool that are out."""
        return {tag: balance.live for tag, balance in self.provider.balances().items() if balance.live}

    def exported(self, *spans):
        """What a collector makes of spans."""
        encoder = otlp.Encoder(otlp.KONG if self.provider.profile is KONG else otlp.SAFE)
        resource = encoder.encode_resource(None, instance_id="a", version="3.9")
        body = otlp.encode_traces([encoder.encode_span(span) for span in spans], resource)
        request = ExportTraceServiceRequest.FromString(body)
        return list(request.resource_spans[0].scope_spans[0].spans)


@pytest.fixture(params=[KONG, SAFE], ids=lambda profile: profile.name)
def profile(request):
    """Each profile in turn."""
    return request.param


@pytest.fixture
def new_worker(profile):
    """Workers of a profile; afterwards the global tracer is what it was."""
    yield lambda **options: Worker(profile, **options)
    kongtrace.tracing.use(None)


@pytest.fixture
def worker(new_worker):
    """A worker whose tracing is on."""
    return new_worker()


@pytest.fixture(params=["kongtrace.tracing", "kong.tracing"])
def tracing(request, worker):
    """The global tracer, as a library's user imports it and as a plugin is given it."""
    return kongtrace.tracing if request.param == "kongtrace.tracing" else worker.kong.tracing


# The samples. Their comments say what the page says of a line; `ngx` is whoever knows the time.


def create_a_tracer(tracing, _ngx):
    """Draft, 3.9, unreleased: "Create a tracer"."""
    # A new one ...
    custom = tracing.new("custom-tracer")
    # ... or Kong's own.
    return custom, tracing


def sample_traces(tracing, _ngx):
    """Draft, 3.9, unreleased: "Sampling traces"."""
    # One trace in ten.
    return tracing.new("custom-tracer", {"sampling_rate": 0.1})


def create_a_span(tracing, _ngx):
    """Draft, 3.9, unreleased: "Create a span"."""
    tracer = tracing
    return tracer.start_span("my-span")


def create_a_span_with_options(tracing, ngx):
    """Draft, 3.9, unreleased: "Create a span", its properties."""
    options = {
        # Not now, but when the clock that nginx caches stood still.
        "start_time_ns": ngx.now() * 1e9,
        # A server's span.
        "span_kind": 2,
        # Whatever the sampler would say.
        "should_sample": True,
    }
    return tracing.start_span("my-span", options)


def finish_a_span(tracing, _ngx):
    """Draft, 3.9, unreleased: "Create a span", its end."""
    span = tracing.start_span("my-span")
    # The operation is over.
    span.finish()
    return span


def set_and_get_the_active_span(tracing, _ngx):
    """Draft, 3.9, unreleased: "Get or set the active span"."""
    tracer = tracing
    span = tracer.start_span("my-span")
    tracer.set_active_span(span)
    # The one just set.
    active_span = tracer.active_span()
    return span, active_span


def start_below_the_global_active_span(tracing, _ngx):
    """Draft, 3.9, unreleased: "Scope"."""
    # What is active for Kong's own tracer is to be the parent of a span of another tracer.
    global_tracer = tracing
    tracer = tracing.new("custom-tracer")
    root_span = global_tracer.active_span()
    span = tracer.start_span("my-span", {"parent": root_span})
    return root_span, span


def set_an_attribute(tracing, _ngx):
    """Draft, 3.9, unreleased: "Set the span attributes"."""
    tracer = tracing
    span = tracer.start_span("my-span")
    span.set_attribute("key", "value")
    return span


def add_an_event(tracing, _ngx):
    """Draft, 3.9, unreleased: "Set the span events"."""
    span = tracing.start_span("my-span")
    span.add_event("my-event", {"key": "value"})
    return span


def record_an_error(tracing, _ngx):
    """Draft, 3.9, unreleased: "Record error message"."""
    span = tracing.start_span("my-span")
    span.record_error("my-error-message")
    # The long way to the same event.
    span.add_event("exception", {"exception.message": "my-error-message"})
    return span


def set_the_status(tracing, _ngx):
    """3.9, unreleased: "Set the span status"; the draft names the codes and does not call it."""
    span = tracing.start_span("my-span")
    # An error.
    span.set_status(2)
    return span


def release_a_span(tracing, _ngx):
    """Draft, 3.9, unreleased: "Release the span (optional)"."""
    span = tracing.start_span("my-span")
    span.release()
    return span


def finish_a_span_with_a_time(tracing, ngx):
    """PDK: the usage of `span:finish`."""
    span = tracing.start_span("my-span")
    span.finish()
    # Again, now with a time; the factor is the page's.
    time = ngx.now()
    span.finish(time * 100000000)
    return span


def set_attributes_of_each_type(tracing, _ngx):
    """PDK: the usage of `span:set_attribute`."""
    span = tracing.start_span("my-span")
    span.set_attribute("net.transport", "ip_tcp")
    span.set_attribute("net.peer.port", 443)
    span.set_attribute("exception.escaped", True)
    return span


def gather_the_spans(tracing, _ngx):
    """Exporter guide: "Gathering the spans"; the page leaves the call of `process_span` to the reader (C15)."""
    tracer = tracing
    gathered = []

    def span_processor(span):
        # A copy of the top level, to be worked on once the original is gone.
        span_dup = copy.copy(span)
        gathered.append(span_dup)

    tracer.process_span(span_processor)
    return gathered


SAMPLES = (
    *(create_a_tracer, sample_traces, create_a_span, create_a_span_with_options, finish_a_span),
    *(set_and_get_the_active_span, start_below_the_global_active_span, set_an_attribute, add_an_event),
    *(record_an_error, set_the_status, release_a_span, finish_a_span_with_a_time, set_attributes_of_each_type),
    gather_the_spans,
)


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_sample_runs_in_a_request_and_leaves_nothing_behind(sample, worker, tracing):
    """A sample of any of the five pages raises nothing, logs nothing, and its memory is back after the request."""
    with worker.request("log"):
        sample(tracing, worker)

    assert worker.lines == []
    assert worker.live() == {}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("handle", ["kongtrace.tracing", "kong.tracing"])
def test_every_sample_is_harmless_while_tracing_is_off(sample, handle, new_worker):
    """A sample of any of the five pages runs with tracing off, `span:release()` included (C9)."""
    worker = new_worker(instrumentations=("off",))
    with worker.request("log"):
        sample(kongtrace.tracing if handle == "kongtrace.tracing" else worker.kong.tracing, worker)

    assert worker.lines == []
    assert worker.live() == {}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("phase", OTHER_PHASES)
def test_every_sample_but_the_exporters_is_harmless_where_no_span_is_permitted(sample, phase, worker, tracing):
    """A sample that runs in a timer, or wherever the tracer gives the noop span, raises nothing and makes no span."""
    with worker.request():
        worker.enter(phase)
        if sample is gather_the_spans:
            with pytest.raises(ApiError):
                sample(tracing, worker)
        else:
            sample(tracing, worker)

    assert worker.lines == []
    assert worker.provider.balances()["KONG_SPAN"].fetched == 0


# The tracing reference: "Before you start" and "Create a tracer".


def test_a_program_that_sets_up_nothing_has_a_tracer_that_does_nothing():
    """The draft, the 3.9 and the unreleased reference: by default the tracer is a NoopTracer (D1, T4)."""
    tracing = kongtrace.tracing
    span = tracing.start_span("my-span")

    assert span is NOOP_SPAN
    assert not span.is_recording
    assert tracing.name == "noop"
    assert tracing.active_span() is None


def test_the_tracer_is_first_made_when_tracing_is_configured(new_worker):
    """The 3.9 and the unreleased reference: `tracing_instrumentations` replaces the NoopTracer (T4)."""
    assert isinstance(new_worker(instrumentations=("off",)).kong.tracing, NoopTracer)
    assert kongtrace.tracing.name == "noop"

    assert new_worker(instrumentations=("all",)).kong.tracing.name == "instrument"
    assert kongtrace.tracing.name == "instrument"


@pytest.mark.parametrize(
    ("option", "older", "value"),
    [
        ("--tracing-instrumentations", "--opentelemetry-tracing", "all"),
        ("--tracing-sampling-rate", "--opentelemetry-tracing-sampling-rate", "0.5"),
    ],
)
def test_the_older_name_of_the_switch_means_the_same(option, older, value):
    """The draft calls the switch `opentelemetry_tracing`; that name is an alias of `tracing_instrumentations` (C13)."""

    def given(name):
        assert isinstance(cli.serve, click.Command)
        return cli.serve.make_context("serve", [name, value, "kong.yml"]).params

    assert given(older) == given(option)


def test_a_new_tracer_and_the_global_one_stand_side_by_side(worker, tracing):
    """The sample "Create a tracer" of the draft, the 3.9 and the unreleased reference gives both tracers."""
    custom, global_tracer = create_a_tracer(tracing, worker)

    assert custom.name == "custom-tracer"
    assert global_tracer.name == "instrument"


def test_a_tracer_is_made_by_calling_the_global_one(worker, tracing):
    """The full example of the exporter guide makes its tracer with a call: `kong.tracing("name")` is `new` (D3)."""
    with worker.request():
        span = tracing("custom-tracer").start_span("my-span")

        assert span.tracer.name == "custom-tracer"


def test_a_tracer_that_a_module_makes_when_it_is_loaded_comes_to_life_with_its_worker(new_worker):
    """The draft, the 3.9 and the unreleased reference make tracers at the top of a module, before a worker exists."""
    tracer = kongtrace.tracing.new("custom-tracer")
    assert tracer.start_span("my-span") is NOOP_SPAN

    worker = new_worker()
    with worker.request():
        assert isinstance(tracer.start_span("my-span"), Span)
    assert worker.live() == {}


# "Sampling traces".


@pytest.mark.parametrize("keywords", [False, True], ids=["table", "keywords"])
def test_options_of_a_tracer_are_a_table_or_keyword_arguments(worker, tracing, keywords):
    """The sample "Sampling traces" works with a mapping, as the three references have it, and as Python would (D2)."""
    tracer = tracing.new("custom-tracer", sampling_rate=0.1) if keywords else sample_traces(tracing, worker)

    assert tracer.name == "custom-tracer"
    assert tracer.sampling_rate == 0.1


def sampled_share(worker, tracer, requests):
    sampled = 0
    for _ in range(requests):
        with worker.request():
            sampled += tracer.start_span("my-span").should_sample
    return sampled / requests


def test_a_rate_of_a_tenth_samples_one_request_in_ten(worker, tracing):
    """The 3.9 and the unreleased reference: at 0.1 one of ten requests is traced, over many trace ids (C11, M4)."""
    share = sampled_share(worker, sample_traces(tracing, worker), 10_000)

    assert math.isclose(share, 0.1, abs_tol=0.02)


@pytest.mark.parametrize(("options", "share"), [({"sampling_rate": 1}, 1), ({}, 1), ({"sampling_rate": 0}, 0)])
def test_a_rate_of_one_samples_every_request_and_is_the_default(worker, tracing, options, share):
    """The draft: the rate of a tracer is 1.0 by default; the 3.9 and the unreleased reference: 1 samples all (D2)."""
    assert sampled_share(worker, tracing.new("custom-tracer", options), 500) == share


def test_the_global_tracer_samples_one_request_in_a_hundred_unless_configured():
    """What the pages say of the default rate holds for a tracer of one's own, not for Kong's (C11, V2)."""
    assert Tracing().sampling_rate == SAMPLING_RATE_DEFAULT == 0.01


def test_a_request_is_sampled_as_a_whole(worker, tracing):
    """The 3.9 and the unreleased reference speak of sampled *requests*: all spans below one root share its flag."""
    tracer = sample_traces(tracing, worker)
    for _ in range(100):
        with worker.request():
            root = tracer.start_span("root")
            tracer.set_active_span(root)
            flags = {tracer.start_span("child").should_sample for _ in range(5)}

            assert flags == {root.should_sample}


# "Create a span".


def test_spans_nest_to_a_tree_with_one_root(worker, tracing):
    """The draft, the 3.9 and the unreleased reference: a trace has a root span and, below it, its sub-spans."""
    with worker.request():
        root = create_a_span(tracing, worker)
        tracing.set_active_span(root)
        child = tracing.start_span("child")
        tracing.set_active_span(child)
        grandchild = tracing.start_span("grandchild")

        assert tracing.get_root_span() is root
        assert [span.parent for span in (root, child, grandchild)] == [None, root, child]
        assert [span.parent_id for span in (root, child, grandchild)] == [None, root.span_id, child.span_id]
        assert {span.trace_id for span in (child, grandchild)} == {root.trace_id}


def test_each_request_is_a_trace_of_its_own(worker, tracing):
    """The draft, the 3.9 and the unreleased reference: what one request starts has nothing to do with the next."""
    ids = set()
    for _ in range(10):
        with worker.request():
            span = create_a_span(tracing, worker)
            ids.add(span.trace_id)

            assert span.parent is None
            assert tracing.get_spans() == [span]
    assert len(ids) == 10


def test_a_span_takes_its_properties_from_a_table(worker, tracing):
    """The sample of the properties in the draft, the 3.9 and the unreleased reference sets start, kind and flag."""
    with worker.request():
        span = create_a_span_with_options(tracing, worker)

        assert span.start_time_ns == worker.now() * 1e9
        assert span.kind == 2
        assert span.should_sample is True


def test_a_span_takes_its_properties_from_keyword_arguments(worker, tracing):
    """The same properties as Python passes them."""
    with worker.request():
        span = tracing.start_span("my-span", start_time_ns=START_NS - S_NS, span_kind=2, should_sample=True)

        assert (span.start_time_ns, span.kind, span.should_sample) == (START_NS - S_NS, 2, True)


def test_a_start_time_of_the_references_reaches_the_collector_in_ns(worker, tracing):
    """The start `ngx.now() * 1e9` of the draft, the 3.9 and the unreleased reference is a fraction in Python."""
    with worker.request():
        span = create_a_span_with_options(tracing, worker)
        span.finish()
        (exported,) = worker.exported(span)

    assert exported.start_time_unix_nano == int(worker.now() * 1e9)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *enumerate(
            f"SPAN_KIND_{word}" for word in ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
        )
    ],
)
def test_the_six_span_kinds_are_those_of_opentelemetry(worker, tracing, kind, name):
    """The kinds 0 to 5 in the draft, the 3.9 and the unreleased reference mean to a collector what the pages say."""
    with worker.request():
        (exported,) = worker.exported(tracing.start_span("my-span", {"span_kind": kind}))

    assert exported.SpanKind.Name(exported.kind) == name


def test_should_sample_takes_precedence_over_the_sampler(worker, tracing):
    """The draft, the 3.9 and the unreleased reference: `should_sample = true` ignores the sampling decision (C8)."""
    tracer = tracing.new("custom-tracer", {"sampling_rate": 0})
    with worker.request():
        assert tracer.start_span("my-span").should_sample is False
        assert create_a_span_with_options(tracer, worker).should_sample is True


def test_should_sample_does_not_take_precedence_over_the_parent_nor_over_a_later_decision(worker, tracing):
    """The three references promise more than the code keeps: a parent's decision stands, a later one wins (C8)."""
    with worker.request():
        parent = tracing.start_span("parent", {"should_sample": False})
        child = tracing.start_span("child", {"should_sample": True, "parent": parent})
        other = tracing.start_span("other", {"should_sample": True})
        assert child.should_sample is False

        tracing.set_should_sample(False)
        assert other.should_sample is False


def test_finish_ends_the_span_now(worker, tracing):
    """The sample of the end in the draft, the 3.9 and the unreleased reference sets the end time."""
    with worker.request():
        span = finish_a_span(tracing, worker)

        assert span.end_time_ns == worker.time


def test_a_finished_span_is_not_released(worker, tracing):
    """The three references and the PDK page say that finishing clears the span; it only ends it (C4, S6)."""
    with worker.request():
        span = set_an_attribute(tracing, worker)
        span.finish()
        span.set_attribute("later", 1)
        span.add_event("later")

        assert span.name == "my-span"
        assert span.attributes == {"key": "value", "later": 1}
        assert worker.live()["KONG_SPAN"] == 1


def test_finishing_twice_keeps_the_first_end(worker, tracing):
    """The samples of the PDK page finish one span twice: the second call is without effect (S9)."""
    with worker.request():
        span = finish_a_span_with_a_time(tracing, worker)

        assert span.end_time_ns == worker.time


# "Get or set the active span" and "Scope".


def test_a_started_span_is_not_active(worker, tracing):
    """The draft, the 3.9 and the unreleased reference: the active span is set by hand."""
    with worker.request():
        create_a_span(tracing, worker)

        assert tracing.active_span() is None


def test_the_active_span_is_the_one_that_was_set(worker, tracing):
    """The sample of the draft, the 3.9 and the unreleased reference gets back the span that it set."""
    with worker.request():
        span, active = set_and_get_the_active_span(tracing, worker)

        assert active is span


def test_the_active_span_is_the_parent_of_the_next(worker, tracing):
    """The draft, the 3.9 and the unreleased reference: the active span is what is being executed."""
    with worker.request():
        span, _active = set_and_get_the_active_span(tracing, worker)

        assert tracing.start_span("child").parent is span


def test_finishing_the_active_span_makes_its_parent_active(worker, tracing):
    """The draft, the 3.9 and the unreleased reference: a finished span gives its place to its parent (C6)."""
    with worker.request():
        parent, _active = set_and_get_the_active_span(tracing, worker)
        child, _active = set_and_get_the_active_span(tracing, worker)

        child.finish()
        assert tracing.active_span() is parent
        parent.finish()
        assert tracing.active_span() is None


def test_finishing_a_span_that_is_not_active_changes_nothing(worker, tracing):
    """What the three references say of a finished span holds only for the one that is active (C6, S10)."""
    with worker.request():
        span, _active = set_and_get_the_active_span(tracing, worker)
        beside = tracing.start_span("beside")
        below, _active = set_and_get_the_active_span(tracing, worker)

        beside.finish()
        span.finish()
        assert tracing.active_span() is below


def test_a_span_of_one_tracer_is_the_parent_of_another_tracers(worker, tracing):
    """The sample "Scope" of the three references joins a custom tracer's span to the global tracer's active one."""
    with worker.request():
        root, _active = set_and_get_the_active_span(tracing, worker)
        found, span = start_below_the_global_active_span(tracing, worker)

        assert found is root
        assert span.parent is root
        assert span.trace_id == root.trace_id
        assert span.tracer.name == "custom-tracer"


def test_tracers_share_the_active_span_unless_their_namespace_isolates_them(worker, tracing):
    """The three references imply an active span for each tracer; it is one for each namespace (C10, T7)."""
    with worker.request():
        root, _active = set_and_get_the_active_span(tracing, worker)
        shared = tracing.new("custom-tracer")
        isolated = tracing.new("isolated-tracer", {"namespace": "mine"})

        assert shared.active_span() is root
        assert isolated.active_span() is None
        span = isolated.start_span("my-span")
        isolated.set_active_span(span)
        assert span.parent is None
        assert isolated.active_span() is span
        assert tracing.active_span() is root
        assert (isolated.get_spans(), tracing.get_spans()) == ([span], [root])


# "Set the span attributes".


def test_an_attribute_is_a_key_with_a_value(worker, tracing):
    """The sample of the draft, the 3.9 and the unreleased reference sets one attribute."""
    with worker.request():
        assert set_an_attribute(tracing, worker).attributes == {"key": "value"}


def test_set_attributes_takes_a_table(worker, tracing):
    """The draft, the 3.9 and the unreleased reference name `set_attributes`; it sets each entry of a table (C3)."""
    with worker.request():
        span = set_an_attribute(tracing, worker)
        table = {"key": "new", "other": 2}
        span.set_attributes(table)
        table["later"] = True

        assert span.attributes == {"key": "new", "other": 2}


CONVENTIONS = {
    "general": (code_attributes.CODE_FUNCTION_NAME, "work"),
    "http": (http_attributes.HTTP_REQUEST_METHOD, "GET"),
    "database": (db_attributes.DB_SYSTEM_NAME, "postgresql"),
    "rpc": (rpc_attributes.RPC_METHOD, "Get"),
    "messaging": (messaging_attributes.MESSAGING_BATCH_MESSAGE_COUNT, 3.0),
    "faas": (faas_attributes.FAAS_COLDSTART, True),
    "exceptions": (exception_attributes.EXCEPTION_TYPE, "OSError"),
    "compatibility": (opentracing_attributes.OPENTRACING_REF_TYPE, "child_of"),
}
"""One attribute of each semantic convention that the three references list."""


def test_attributes_of_every_semantic_convention_reach_the_collector(worker, tracing):
    """The draft, the 3.9 and the unreleased reference list eight conventions; a span carries all of them (D21)."""
    with worker.request():
        span = create_a_span(tracing, worker)
        for key, value in CONVENTIONS.values():
            span.set_attribute(key, value)
        (exported,) = worker.exported(span)

    values = {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in exported.attributes}
    assert values == dict(CONVENTIONS.values())


# "Set the span events" and "Record error message".


def test_an_event_has_a_name_a_time_and_attributes(worker, tracing):
    """The sample of the draft, the 3.9 and the unreleased reference adds one event, at the time of the call."""
    with worker.request():
        (event,) = add_an_event(tracing, worker).events

        assert event == ("my-event", worker.time, {"key": "value"})


def test_events_stay_in_order(worker, tracing):
    """The draft, the 3.9 and the unreleased reference: events are a series in time."""
    with worker.request():
        span = create_a_span(tracing, worker)
        for name in "abc":
            span.add_event(name)

        assert [event.name for event in span.events] == ["a", "b", "c"]
        assert [event.time_ns for event in span.events] == sorted(event.time_ns for event in span.events)


def test_recording_an_error_is_adding_an_exception_event(worker, tracing):
    """The sample of the draft, the 3.9 and the unreleased reference does the same thing in two ways (C17)."""
    with worker.request():
        span = record_an_error(tracing, worker)
        recorded, added = ((event.name, event.attributes) for event in span.events)

        assert recorded == added == ("exception", {"exception.message": "my-error-message"})
        assert span.status is None


# "Set the span status".


@pytest.mark.parametrize(
    ("status", "name"), [(0, "STATUS_CODE_UNSET"), (1, "STATUS_CODE_OK"), (2, "STATUS_CODE_ERROR")]
)
def test_the_three_status_codes_are_those_of_opentelemetry(worker, tracing, status, name):
    """The codes in the three references and on the PDK page mean to a collector what the pages say; no event (C14)."""
    with worker.request():
        span = create_a_span(tracing, worker)
        span.set_status(status)
        (exported,) = worker.exported(span)

        assert span.status == status
        assert span.events is None
        assert exported.status.StatusCode.Name(exported.status.code) == name


def test_the_status_of_the_sample_is_error(worker, tracing):
    """The sample of the 3.9 and the unreleased reference sets status 2."""
    with worker.request():
        assert set_the_status(tracing, worker).status == 2


def test_a_table_is_no_status(worker, tracing):
    """The three references speak of a table, their samples pass a number; the code takes numbers alone (S15)."""
    with worker.request(), pytest.raises(ApiError, match=r"^invalid status$"):
        create_a_span(tracing, worker).set_status({"code": 2})


# "Release the span".


def test_a_span_released_by_hand_is_back_in_the_pool_and_not_released_again(worker, tracing):
    """The sample of the draft, the 3.9 and the unreleased reference gives the memory back early (S16)."""
    with worker.request():
        kept = create_a_span(tracing, worker)
        release_a_span(tracing, worker)

        assert worker.live()["KONG_SPAN"] == 1
        assert kept.name == "my-span"
    assert worker.live() == {}
    balance = worker.provider.balances()["KONG_SPAN"]
    assert balance.fetched == balance.released + balance.discarded == 2


def test_an_exporter_does_not_see_a_span_that_was_released(worker, tracing):
    """The draft, the 3.9 and the unreleased reference make releasing optional; what is released is gone (T9)."""
    with worker.request():
        kept = create_a_span(tracing, worker)
        release_a_span(tracing, worker)
        worker.enter("log")
        seen = []
        tracing.process_span(seen.append)

        assert seen == [kept]


def test_the_noop_span_can_be_released(new_worker):
    """The sample of the three references fails in Kong while tracing is off; here it is harmless (C9, H11)."""
    worker = new_worker(instrumentations=("off",))
    with worker.request():
        assert release_a_span(kongtrace.tracing, worker) is NOOP_SPAN


def test_a_request_releases_its_spans_at_its_end_and_not_before(worker, tracing):
    """The draft, the 3.9 and the unreleased reference: without a release, the end of the request does it (E1)."""
    with worker.request():
        span = set_an_attribute(tracing, worker)
        span.add_event("my-event")
        span.finish()
        worker.enter("log")

        assert span.attributes == {"key": "value"}
        recycled = worker.provider.balances() if worker.provider.profile is KONG else ["KONG_SPAN"]
        assert worker.live() == dict.fromkeys(recycled, 1)
        del span
    assert worker.live() == {}


def test_what_a_request_released_the_next_one_uses_again(worker, tracing):
    """The draft, the 3.9 and the unreleased reference keep spans in a pool: no second span is made for the next."""
    for _ in range(10):
        with worker.request():
            create_a_span(tracing, worker)
    balance = worker.provider.balances()["KONG_SPAN"]

    assert (balance.fetched, balance.misses, balance.hits) == (10, 1, 9)


# "Visualize the trace".


def test_a_collector_reads_the_trace_as_it_was_made(worker, tracing):
    """The draft, the 3.9 and the unreleased reference: any OpenTelemetry backend understands the spans."""
    with worker.request():
        root = create_a_span_with_options(tracing, worker)
        tracing.set_active_span(root)
        child = record_an_error(tracing, worker)
        child.set_status(2)
        child.finish()
        root.finish()
        exported_root, exported_child = worker.exported(root, child)

        assert exported_root.trace_id == exported_child.trace_id == root.trace_id
        assert exported_root.parent_span_id == b""
        assert exported_child.parent_span_id == exported_root.span_id == root.span_id
        assert exported_child.end_time_unix_nano == child.end_time_ns
        assert [event.name for event in exported_child.events] == ["exception", "exception"]


# The PDK page.


@pytest.mark.parametrize("phase", DOCUMENTED_PHASES)
def test_the_three_functions_called_new_span_work_in_the_documented_phases(phase, worker, tracing):
    """The PDK page lists the phases of making a span, setting and getting the active one (C2, C16, D4-D6)."""
    with worker.request(phase):
        assert tracing.new_span() is None
        span = tracing.new_span("my-span", {"span_kind": 3})
        assert isinstance(span, Span)
        assert span.kind == 3
        assert tracing.new_span(span) is None
        assert tracing.new_span() is tracing.active_span() is span


@pytest.mark.parametrize("phase", DOCUMENTED_PHASES)
def test_the_functions_behind_new_span_work_in_the_documented_phases(phase, worker, tracing):
    """What the PDK page calls `new_span` is `start_span`, `set_active_span` and `active_span` (C2, C16, T8)."""
    with worker.request(phase):
        span = tracing.start_span("my-span", {"span_kind": 3})
        assert isinstance(span, Span)
        tracing.set_active_span(span)
        assert tracing.active_span() is span


@pytest.mark.parametrize("phase", OTHER_PHASES)
def test_in_no_other_phase_is_there_a_span(phase, worker, tracing):
    """Outside the phases of the PDK page a span is the noop span, and there is no active one (T8)."""
    with worker.request():
        span, _active = set_and_get_the_active_span(tracing, worker)
        worker.enter(phase)

        assert tracing.new_span("other") is tracing.start_span("other") is NOOP_SPAN
        assert tracing.new_span() is tracing.active_span() is None
        tracing.set_active_span(None)
        worker.enter("access")
        assert tracing.active_span() is span


def test_new_span_takes_the_name_and_the_options_of_a_span(worker, tracing):
    """The PDK page's third `new_span` takes a name and a table; Python's keyword arguments do as well (C2)."""
    with worker.request():
        assert tracing.new_span("my-span", {"start_time_ns": START_NS}).start_time_ns == START_NS
        assert tracing.new_span("my-span", start_time_ns=START_NS).start_time_ns == START_NS
        assert tracing.new_span(name="my-span").name == "my-span"


def test_new_span_of_the_noop_tracer_is_what_it_stands_for(new_worker):
    """While tracing is off the PDK page's three functions do what those behind them do (C2, T6)."""
    worker = new_worker(instrumentations=("off",))
    tracing = worker.kong.tracing
    with worker.request():
        assert tracing.new_span("my-span") is tracing.start_span("my-span") is NOOP_SPAN
        assert tracing.new_span(NOOP_SPAN) is tracing.set_active_span(NOOP_SPAN) is None
        assert tracing.new_span() is tracing.active_span() is None


def test_the_active_span_is_the_root_once_the_request_is_instrumented(worker, tracing):
    """The PDK page: the active span is the root by default, which the request's instrumentation sets (C7)."""
    with worker.request("rewrite"):
        assert tracing.active_span() is None
        root = tracing.start_span("kong", {"span_kind": 2})
        tracing.set_active_span(root)

        assert tracing.active_span() is tracing.get_root_span() is root


@pytest.mark.parametrize("phase", [*DOCUMENTED_PHASES, *OTHER_PHASES])
def test_methods_of_a_span_work_in_every_phase(phase, worker, tracing):
    """The PDK page gives no phases for the methods of a span: they work wherever the span is at hand (D8-D12)."""
    with worker.request():
        span = create_a_span(tracing, worker)
        worker.enter(phase)
        span.set_attribute("key", "value")
        span.add_event("my-event", {"key": "value"}, START_NS)
        span.record_error("my-error-message")
        span.set_status(2)
        span.finish(START_NS + S_NS)

        assert span.attributes == {"key": "value"}
        assert [event.name for event in span.events] == ["my-event", "exception"]
        assert span.status == 2
        assert span.end_time_ns == START_NS + S_NS


def test_an_end_in_units_of_1e8_is_reported_and_leaves_the_span_open(worker, tracing):
    """The usage of `span:finish` on the PDK page mistakes the unit, so the end comes before the start (C5, H2)."""
    with worker.request():
        span = create_a_span(tracing, worker)
        time = worker.now()
        span.finish(time * 100000000)

        assert span.end_time_ns is None
        ((level, message),) = worker.lines
        assert level == "error"
        assert message.startswith("invalid span duration: -")
        assert message.endswith(" for span: my-span")


def test_an_end_in_ns_is_the_end(worker, tracing):
    """The PDK page names the parameter `end_time_ns`: that unit is right."""
    with worker.request():
        span = create_a_span(tracing, worker)
        span.finish(span.start_time_ns + 5)

        assert span.end_time_ns == span.start_time_ns + 5


def test_an_attribute_is_a_string_a_number_or_a_boolean(worker, tracing, profile):
    """The samples of `span:set_attribute` on the PDK page reach the collector with their types (L3)."""
    with worker.request():
        span = set_attributes_of_each_type(tracing, worker)
        (exported,) = worker.exported(span)

        assert span.attributes == {"net.transport": "ip_tcp", "net.peer.port": 443, "exception.escaped": True}
    kinds = {pair.key: pair.value.WhichOneof("value") for pair in exported.attributes}
    assert kinds == {
        "net.transport": "string_value",
        "net.peer.port": "double_value" if profile is KONG else "int_value",  # Lua's numbers are doubles
        "exception.escaped": "bool_value",
    }


def test_an_events_attributes_and_time_may_be_left_out(worker, tracing):
    """The PDK page marks both as optional: an event then has none, and the time of the call (S13)."""
    with worker.request():
        span = create_a_span(tracing, worker)
        span.add_event("bare")
        now = worker.time
        span.add_event("timed", None, START_NS)

        assert span.events == [("bare", now, None), ("timed", START_NS, None)]


@pytest.mark.parametrize("phase", [phase for phase in DOCUMENTED_PHASES if phase != "log"])
def test_process_span_is_for_the_log_phase_alone(phase, worker, tracing):
    """The PDK page lists one phase for `process_span`; elsewhere it says which one it is in (D7, R9)."""
    expected = rf"^function cannot be called in {phase} phase \(only in: log\)$"
    with worker.request(phase), pytest.raises(ApiError, match=expected):
        tracing.process_span(print)


def test_process_span_shows_every_span_of_its_tracer_in_order(worker, tracing):
    """The PDK page: the processor takes a span; it is called for each, in the order of their start (T9)."""
    with worker.request():
        started = [tracing.start_span(name) for name in "abc"]
        tracing.new("custom-tracer").start_span("foreign")
        worker.enter("log")
        seen = []
        tracing.process_span(seen.append)

        assert seen == started


def test_a_processor_must_be_a_function(worker, tracing):
    """The PDK page gives the processor's type (D7)."""
    with worker.request("log"), pytest.raises(ApiError, match=r"^processor must be a function$"):
        tracing.process_span("print")


def test_the_log_phase_has_timers_and_no_sockets():
    """The PDK page: no socket is available in the log phase, `ngx.timer.at` is (R2)."""
    assert not PHASES["log"].yields
    assert PHASES["log"].timers
    assert PHASES["timer"].yields


# The exporter guide.


def test_a_shallow_copy_keeps_what_a_span_is_after_the_original_is_cleared(worker, tracing):
    """The sample of the exporter guide copies spans that outlive their request, and the next one (C12)."""
    with worker.request():
        span = create_a_span(tracing, worker)
        span.finish()
        before = {name: getattr(span, name) for name in ("name", "trace_id", "span_id", "start_time_ns", "end_time_ns")}
        worker.enter("log")
        (gathered,) = gather_the_spans(tracing, worker)
        del span
    with worker.request():
        create_a_span(tracing, worker)

    assert {name: getattr(gathered, name) for name in before} == before


def test_a_shallow_copy_shares_its_tables_with_the_original(worker, tracing, profile):
    """The exporter guide's copy is shallow: Kong recycles the tables in it, profile `safe` leaves them (C12, H6)."""
    with worker.request():
        span = set_an_attribute(tracing, worker)
        span.add_event("my-event")
        worker.enter("log")
        (gathered,) = gather_the_spans(tracing, worker)
        del span

        assert gathered.attributes == {"key": "value"}
        assert [event.name for event in gathered.events] == ["my-event"]
    kept = profile is SAFE
    assert gathered.attributes == ({"key": "value"} if kept else {})
    assert [event.name for event in gathered.events] == (["my-event"] if kept else [])


class TraceExporter:
    """The full example of the exporter guide, a plugin (D22)."""

    PRIORITY = 1001

    def __init__(self, tracing, timers, send):
        self._tracing = tracing
        self._tracer = tracing("tcp-trace-exporter")
        self._timers = timers
        self._send = send

    def access(self):
        self._tracer.set_active_span(self._tracer.start_span("exporter's own", {"attributes": {"key": "value"}}))

    def log(self):
        active = self._tracer.active_span()
        if active is not None:
            active.finish()
        spans = []
        self._tracer.process_span(self._copy, spans)
        self._tracing.process_span(self._copy, spans)
        spans.sort(key=lambda span: span["start_time_ns"])
        assert self._timers.at(0, self._post, json.dumps(spans)) == (True, None)

    def _copy(self, span, spans):
        if span.should_sample is False:
            return
        ids = {name: (getattr(span, name) or b"").hex() for name in ("trace_id", "span_id", "parent_id")}
        fields = ("name", "kind", "start_time_ns", "end_time_ns", "attributes", "events", "status")
        spans.append({field: getattr(span, field) for field in fields} | ids)

    def _post(self, _premature, data):
        self._send(data)


def test_the_full_example_exports_what_the_request_did_after_the_request_is_gone(worker, tracing):
    """The exporter guide's example sends both tracers' sampled spans from a timer, and they are still right (D22)."""
    sent = []
    exporter = TraceExporter(tracing, worker.timers, sent.append)
    with worker.request():
        root = tracing.start_span("kong", {"span_kind": 2})
        tracing.set_active_span(root)
        exporter.access()
        late = tracing.start_span("late", {"start_time_ns": START_NS - S_NS})
        late.record_error("my-error-message")
        late.finish(START_NS)
        tracing.start_span("dropped", {"parent": NOOP_SPAN, "should_sample": False})
        worker.enter("log")
        exporter.log()
        expected_ids = [(span.trace_id.hex(), span.span_id.hex()) for span in (late, root)]
        del root, late
        assert sent == []
    for _ in range(3):
        with worker.request():
            record_an_error(tracing, worker).set_attribute("foreign", 1)
    worker.run_timers()

    late, root, own = json.loads(sent[0])
    assert [span["name"] for span in (late, root, own)] == ["late", "kong", "exporter's own"]
    assert [(span["trace_id"], span["span_id"]) for span in (late, root)] == expected_ids
    assert late["parent_id"] == own["span_id"]
    assert own["parent_id"] == root["span_id"]
    assert own["attributes"] == {"key": "value"}
    assert own["end_time_ns"] > own["start_time_ns"]
    assert late["events"][0][2] == {"exception.message": "my-error-message"}
    assert worker.live() == {}
    assert worker.lines == []


def test_the_full_example_exports_its_own_spans_while_tracing_is_off(new_worker):
    """The exporter guide's example survives a NoopTracer: its own tracer goes on, the global one has none."""
    worker = new_worker(instrumentations=("off",))
    sent = []
    exporter = TraceExporter(kongtrace.tracing, worker.timers, sent.append)
    with worker.request():
        exporter.access()
        worker.enter("log")
        exporter.log()
    worker.run_timers()

    assert [span["name"] for span in json.loads(sent[0])] == ["exporter's own"]
    assert worker.live() == {}


# The guide of this project.

BLOCK = re.compile(r"^```(?P<kind>pycon|python)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["tracing.md"])
def test_every_example_of_the_guide_gives_what_it_shows(page):
    """The Python on a page runs from top to bottom, as one session, and prints what stands under it."""
    text = (DOCS / page).read_text()
    blocks = list(BLOCK.finditer(text))
    assert blocks
    session = {}
    runner = doctest.DocTestRunner(verbose=False)
    try:
        for block in blocks:
            line = text.count("\n", 0, block.start("text"))
            if block["kind"] == "python":
                exec(compile("\n" * line + block["text"], page, "exec"), session)
                continue
            test = doctest.DocTestParser().get_doctest(block["text"], session, page, page, line)
            runner.run(test, clear_globs=False)
            session = test.globs
    finally:
        kongtrace.tracing.use(None)

    assert runner.summarize(verbose=False).failed == 0


class Traced:
    """A plugin that gives cause for a span of each kind, and notes what was made."""

    PRIORITY = 10
    VERSION = "1"

    made: ClassVar[set[tuple[str, int]]] = set()

    def rewrite(self, _kong, _conf):
        """Have a handler."""

    async def access(self, kong, conf):
        """Ask the database and the service."""
        await kong.db.query("SELECT 1")
        await kong.ngx.http.new().request_uri(f"http://{LOOPBACK}:{conf['port']}/")

    def header_filter(self, _kong, _conf):
        """Have a handler."""

    def log(self, kong, _conf):
        """Note."""
        self.made.update((span.name, span.kind) for span in kong.tracing.get_spans())


ROW = re.compile(
    r"^\| `(?P<word>\w+)`(?P<any>, and every other)? \| `(?P<span>kong[\w.]*)` \| (?P<kind>\d) \|", re.MULTILINE
)
SPANS = list(ROW.finditer((DOCS / "tracing.md").read_text().replace("NAME", "traced")))


@pytest.mark.parametrize("word", ["all", *(row["word"] for row in SPANS)])
def test_the_gateway_makes_the_spans_of_the_table(word):
    """Those of the word, and those that any word brings."""  # I1-I12

    async def play(stage):
        Traced.made.clear()
        async with stage.origin() as upstream:
            options = {
                "plugins": (Plugin(name="traced", config={"port": upstream}),),
                "tracing": Tracing(instrumentations=(word,), sampling_rate=1.0),
            }
            async with stage.gateway(upstream, classes={"traced": Traced}, **options) as gateway:
                client = await stage.connect(gateway.port)
                client.send()
                assert await client.answer() == 200, gateway.log
                await stage.until(lambda: Traced.made)

    Virtual().run(play)
    assert {row["word"] for row in SPANS} == set(INSTRUMENTATIONS) - {"all", "off"}
    told = {(row["span"], int(row["kind"])) for row in SPANS if row["any"] or word in {row["word"], "all"}}
    assert told == Traced.made
