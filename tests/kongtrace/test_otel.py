"""Instrumentation made for OpenTelemetry's API runs on the worker's pooled spans."""

import asyncio
import contextvars
import gc
import json
import logging
import os
import subprocess
import sys
from contextlib import nullcontext, suppress

import pytest
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from kongtrace import KONG, PHASES, SAFE, GlobalTracer, Span, TracerProvider, otel, tracing_context
from kongtrace.checked import tracer_provider
from kongtrace.context import span_list
from kongtrace.findings import Code
from kongtrace.otlp import SAFE as SAFE_RULES
from kongtrace.otlp import Encoder
from kongtrace.span import CLIENT, INTERNAL, NOOP_SPAN, SERVER, STATUS_ERROR, STATUS_OK
from kongtrace.testing import EPOCH_NS, FakeClock, FakeEntropy

TRACE_ID, SPAN_ID = bytes(range(16)), bytes(range(1, 9))
REMOTE = SpanContext(
    int.from_bytes(TRACE_ID), int.from_bytes(SPAN_ID), True, TraceFlags(1), TraceState([("vendor", "x")])
)
SCOPE = {"otel.scope.name": "lib", "otel.scope.version": "1.0"}


class Worker:
    """A worker that traces through both APIs; `processed` has name and attributes of spans outside requests."""

    def __init__(self, profile=SAFE, make_provider=TracerProvider):
        self.logged = []
        self.processed = []
        self.handle = GlobalTracer()
        self.otel = otel.TracerProvider(self.process, self.handle)
        self.tracer = self.otel.get_tracer("lib", "1.0")
        self.provider = make_provider(
            time_ns=FakeClock(),
            random_bytes=FakeEntropy(),
            log=lambda level, message: self.logged.append((level, message)),
            profile=profile,
        )
        self.handle.use(self.provider)
        self.provider.set_global_tracer(self.provider.new("instrument"))

    def process(self, span):
        self.processed.append((span.name, dict(span.attributes)))

    def enter(self, ctx, phase="access"):
        self.provider.execution.enter(PHASES[phase], ctx)

    def begin(self):
        """Begin a request with a root span, as the gateway does; return its context."""
        ctx = {}
        self.enter(ctx)
        self.handle.set_active_span(self.handle.start_span("kong", span_kind=SERVER))
        return ctx

    def end(self, ctx):
        self.enter(ctx, "log")
        self.provider.end_request(ctx)
        self.enter(None, "timer")

    def live(self):
        return self.provider.spans.balance().live


@pytest.fixture
def worker():
    return Worker()


@pytest.fixture(autouse=True)
def _nothing_stays_current():
    yield
    assert trace.get_current_span() is trace.INVALID_SPAN


# In a request.


@pytest.mark.parametrize("rooted", [True, False])
def test_spans_of_tasks_beside_each_other_stand_beside_each_other(worker, rooted):
    """What is current in one task is nothing to another, though it is the active span of the request."""
    ctx = worker.begin()
    (root,) = span_list(ctx)
    if not rooted:
        worker.handle.set_active_span(None)

    async def work(name):
        with worker.tracer.start_as_current_span(name):
            dns = worker.handle.start_span(f"kong.dns of {name}")  # as the gateway does
            worker.handle.set_active_span(dns)
            await asyncio.sleep(0)
            dns.finish()
            with worker.tracer.start_as_current_span(f"in {name}"):
                await asyncio.sleep(0)

    async def handler():
        await asyncio.gather(work("first"), work("second"))
        worker.tracer.start_span("after").end()

    asyncio.run(handler())
    parents = {span.name: span.parent and span.parent.name for span in span_list(ctx)}
    above = "kong" if rooted else None
    top = {"first": above, "second": above, "after": above}
    below = {f"{what} {name}": name for name in ("first", "second") for what in ("in", "kong.dns of")}
    assert parents == {"kong": None, **top, **below}
    assert worker.handle.active_span() is (root if rooted else None)
    worker.end(ctx)


def test_spans_in_a_ring_do_not_stop_the_worker():
    """In profile `kong` a span released by hand may come back below its own child."""  # P12
    worker = Worker(KONG)
    ctx = worker.begin()
    outer = worker.handle.start_span("outer", {"attributes": {}})
    inner = worker.handle.start_span("inner", parent=outer)
    outer.release()
    assert worker.handle.start_span("outer again", parent=inner) is outer
    worker.handle.set_active_span(outer)
    worker.tracer.start_span("beside").end()
    assert span_list(ctx)[-1].parent is outer
    with worker.tracer.start_as_current_span("below"):
        outer.finish()
        inner.finish()
    assert worker.handle.active_span() is None
    worker.end(ctx)


@pytest.mark.parametrize("last", ["in its request", "in another"])
def test_span_that_outlives_its_parent_leaves_an_open_span_active(worker, last):
    """A task ends after the block that has made it: the gateway's own spans do not go below what has ended."""
    ctx = worker.begin()
    with worker.tracer.start_as_current_span("block"), worker.tracer.start_as_current_span("inner"):
        context = contextvars.copy_context()
    child = worker.tracer.start_as_current_span("child")
    context.run(child.__enter__)
    assert worker.handle.active_span().name == "child"
    if last == "in another":
        other = worker.begin()
    context.run(child.__exit__, None, None, None)

    if last == "in another":
        assert worker.handle.active_span() is span_list(other)[0]
        worker.end(other)
        worker.enter(ctx)
    assert worker.handle.active_span() is span_list(ctx)[0]
    worker.handle.active_span().finish()
    assert worker.handle.active_span() is None
    worker.end(ctx)


def test_span_joins_the_running_request_below_its_active_span(worker):
    """It comes from the worker's pool and stands in the request's list, with its scope as attributes."""
    ctx = worker.begin()

    worker.tracer.start_span("query", kind=SpanKind.CLIENT, attributes={"db": "x", "left out": None}).end()

    root, span = span_list(ctx)
    assert (span.name, span.kind, span.parent, span.trace_id) == ("query", CLIENT, root, root.trace_id)
    assert span.attributes == {**SCOPE, "db": "x"}
    assert span.start_time_ns < span.end_time_ns
    worker.end(ctx)
    assert worker.live() == 0


def test_current_span_is_the_parent_of_spans_of_both_apis(worker):
    """What is current for OpenTelemetry is active for Kong, and the root is so again afterwards."""
    ctx = worker.begin()

    with worker.tracer.start_as_current_span("outer"):
        worker.tracer.start_span("inner").end()
        worker.handle.start_span("kong.dns").finish()

    root, outer, inner, dns = span_list(ctx)
    assert [span.parent for span in (outer, inner, dns)] == [root, outer, outer]
    assert worker.handle.active_span() is root
    worker.end(ctx)


def test_child_joins_the_request_of_its_parent_across_awaits(worker):
    """Two requests whose tasks take turns: each span stands with its own, whichever the worker runs."""

    async def serve(ctx, name, turns):
        worker.enter(ctx)
        with worker.tracer.start_as_current_span(name):
            for _ in range(turns):
                await asyncio.sleep(0)
                with worker.tracer.start_as_current_span(f"{name} step"):
                    await asyncio.sleep(0)

    async def both():
        requests = [worker.begin(), worker.begin()]
        await asyncio.gather(serve(requests[0], "a", 3), serve(requests[1], "b", 2))
        return requests

    one, other = asyncio.run(both())

    assert [s.name for s in span_list(one)] == ["kong", "a", "a step", "a step", "a step"]
    assert [s.name for s in span_list(other)] == ["kong", "b", "b step", "b step"]
    for ctx in (one, other):
        root, work, *steps = span_list(ctx)
        assert work.parent is root
        assert all(step.parent is work for step in steps)
        assert all(span.end_time_ns for span in (work, *steps))
        worker.enter(ctx)
        assert worker.handle.active_span() is root
        worker.end(ctx)
    assert worker.live() == 0


def test_child_of_a_span_whose_request_was_given_up_records_nothing(worker):
    """There is no request that could end it."""
    ctx = worker.begin()
    parent = worker.tracer.start_span("parent")
    worker.provider.abandon_request(ctx)
    worker.enter(None, "timer")
    child = worker.tracer.start_span("child", trace.set_span_in_context(parent))
    assert not child.is_recording()
    assert worker.live() == 0


def test_remote_parent_continues_its_trace(worker):
    """Trace id, parent id, flag and trace state are those of the context that was received."""
    ctx = worker.begin()
    received = trace.set_span_in_context(NonRecordingSpan(REMOTE))

    span = worker.tracer.start_span("serve", received)
    child = worker.tracer.start_span("child", trace.set_span_in_context(span))

    kong = span_list(ctx)[1]
    assert (kong.trace_id, kong.parent_id, kong.parent, kong.should_sample) == (TRACE_ID, SPAN_ID, None, True)
    assert child.get_span_context().trace_state == REMOTE.trace_state
    assert child.get_span_context().trace_id == REMOTE.trace_id
    worker.end(ctx)


def test_context_without_a_span_starts_a_trace_of_its_own(worker):
    """Given expressly it means: no parent, though the request has an active span."""
    ctx = worker.begin()
    root = worker.handle.active_span()

    worker.tracer.start_span("apart", context_api.Context()).end()

    apart = span_list(ctx)[1]
    assert (apart.parent, apart.parent_id) == (None, None)
    assert apart.trace_id != root.trace_id
    assert worker.handle.active_span() is root
    worker.end(ctx)


def test_span_context_has_the_trace_id_that_is_exported(worker):
    """A client's trace that the request has joined is the one that outgoing headers carry."""  # O13, O17
    ctx = worker.begin()
    span = worker.tracer.start_span("call")

    tracing_context(ctx).raw_trace_id = TRACE_ID

    given = span.get_span_context()
    assert given.trace_id == int.from_bytes(TRACE_ID)
    assert given.span_id == int.from_bytes(span_list(ctx)[1].span_id)
    assert given.is_valid
    assert not given.is_remote
    worker.end(ctx)
    assert span.get_span_context() == given


def test_span_context_has_the_trace_id_and_the_decision_that_are_foretold(worker):
    """Whoever knows what a request is going to join tells the provider; the span itself stays as it is."""
    ctx = worker.begin()
    worker.provider.foretell = lambda asked: (TRACE_ID, False) if asked is ctx else None
    span = worker.tracer.start_span("call")

    given = span.get_span_context()
    assert (given.trace_id, given.trace_flags.sampled) == (int.from_bytes(TRACE_ID), False)
    assert (span_list(ctx)[1].trace_id != TRACE_ID, span_list(ctx)[1].should_sample) == (True, True)
    worker.end(ctx)
    assert span.get_span_context() == given


def test_flags_follow_the_decision(worker):
    """The decision that an exporter makes later is in the headers that go out after it."""  # T14
    ctx = worker.begin()
    span = worker.tracer.start_span("call")
    assert span.get_span_context().trace_flags.sampled

    worker.handle.set_should_sample(False)

    assert not span.get_span_context().trace_flags.sampled
    assert span.is_recording()
    worker.end(ctx)


# What a span takes.


def test_attributes(worker):
    """Values are kept as they are; None and keys that are no text are refused and logged."""
    ctx = worker.begin()
    span = worker.tracer.start_span("work")

    span.set_attribute("text", "x")
    span.set_attributes({"number": 1, "list": (1, 2)})
    span.set_attribute("none", None)
    span.set_attribute(7, "x")

    assert span_list(ctx)[1].attributes == {**SCOPE, "text": "x", "number": 1, "list": (1, 2)}
    assert [message for _, message in worker.logged] == [
        "attribute 'none' was not set: the value is None",
        "attribute 7 was not set: invalid key",
    ]
    worker.end(ctx)


def test_events_names_and_times(worker):
    """Times that are given are kept."""
    ctx = worker.begin()
    span = worker.tracer.start_span("work", start_time=EPOCH_NS)

    span.add_event("cache miss", {"key": "a"}, EPOCH_NS + 1)
    span.add_event("again")
    span.update_name("better")
    span.end(EPOCH_NS + 2)

    kong = span_list(ctx)[1]
    assert (kong.name, kong.start_time_ns, kong.end_time_ns) == ("better", EPOCH_NS, EPOCH_NS + 2)
    assert kong.events[0] == ("cache miss", EPOCH_NS + 1, {"key": "a"})
    assert kong.events[1].name == "again"
    worker.end(ctx)


@pytest.mark.parametrize(
    ("calls", "status", "description"),
    [
        ([(Status(StatusCode.ERROR, "bad"),)], STATUS_ERROR, "bad"),
        ([(StatusCode.ERROR, "bad")], STATUS_ERROR, "bad"),
        ([(StatusCode.UNSET,)], None, None),
        ([(StatusCode.ERROR, "bad"), (StatusCode.UNSET,)], STATUS_ERROR, "bad"),
        ([(StatusCode.ERROR, "bad"), (StatusCode.OK,)], STATUS_OK, None),
        ([(StatusCode.OK,), (StatusCode.ERROR, "bad")], STATUS_OK, None),
    ],
)
def test_status(worker, calls, status, description):
    """Unset changes nothing, and ok is final."""
    ctx = worker.begin()
    span = worker.tracer.start_span("work")

    for arguments in calls:
        span.set_status(*arguments)

    kong = span_list(ctx)[1]
    assert kong.status == status
    assert kong.attributes.get("otel.status_description") == description
    worker.end(ctx)


def test_recorded_exception_says_what_and_where(worker):
    """Type, message and stack trace, whatever the caller adds, at the time it gives."""
    ctx = worker.begin()
    span = worker.tracer.start_span("work")

    try:
        {}["order"]
    except KeyError as error:
        span.record_exception(error, {"order": 7}, timestamp=EPOCH_NS)

    name, time_ns, attributes = span_list(ctx)[1].events[0]
    assert (name, time_ns) == ("exception", EPOCH_NS)
    assert (attributes["exception.type"], attributes["exception.message"]) == ("KeyError", "'order'")
    assert attributes["order"] == 7
    assert attributes["exception.escaped"] == "False"
    assert "test_recorded_exception_says_what_and_where" in attributes["exception.stacktrace"]
    worker.end(ctx)


def test_links_are_exported(worker):
    """Those of the start and those added later, in their order, with state, flags and attributes; events stay apart."""
    ctx = worker.begin()
    near = worker.tracer.start_span("near").get_span_context()

    span = worker.tracer.start_span("work", links=[Link(REMOTE, {"order": 7}), None])
    span.add_event("received")
    span.add_link(near)
    span.end()

    (sent,) = ScopeSpans.FromString(Encoder(SAFE_RULES).encode_span(span_list(ctx)[2])).spans
    remote, local = sent.links
    assert (remote.trace_id, remote.span_id, remote.trace_state) == (TRACE_ID, SPAN_ID, "vendor=x")
    assert [(pair.key, pair.value.int_value) for pair in remote.attributes] == [("order", 7)]
    assert (local.trace_id, local.span_id) == (near.trace_id.to_bytes(16), near.span_id.to_bytes(8))
    assert (local.trace_state, len(local.attributes)) == ("", 0)
    assert (remote.flags, local.flags) == (0x301, 0x101)  # sampled; whether it is remote is known; it is
    assert [event.name for event in sent.events] == ["received"]
    worker.end(ctx)


def test_link_that_leads_nowhere_is_left_out(worker):
    """One whose ids are zeros is kept for its attributes or its state, and is nothing without them."""
    ctx = worker.begin()
    span = worker.tracer.start_span("work", links=[Link(trace.INVALID_SPAN_CONTEXT)])
    span.add_link(trace.INVALID_SPAN_CONTEXT)
    span.add_link(trace.INVALID_SPAN_CONTEXT, {"queue": "orders"})

    (link,) = Encoder(SAFE_RULES).transform_span(span_list(ctx)[1])["links"]

    assert (link["trace_id"], link["span_id"]) == (bytes(16), bytes(8))
    assert link["attributes"] == [{"key": "queue", "value": {"string_value": "orders"}}]
    worker.end(ctx)


def test_link_is_an_event_to_those_who_know_no_links(worker):
    """An exporter made for Kong, whose spans have no links, copies it as one that says where it leads."""  # L2
    ctx = worker.begin()
    worker.tracer.start_span("work", links=[Link(REMOTE, {"order": 7})])

    copied = json.loads(json.dumps(span_list(ctx)[1].events))

    [[name, time_ns, attributes]] = copied
    assert (name, time_ns) == ("link", span_list(ctx)[1].events[0].time_ns)
    assert attributes == {"trace_id": TRACE_ID.hex(), "span_id": SPAN_ID.hex(), "order": 7}
    worker.end(ctx)


@pytest.mark.parametrize("profile", [KONG, SAFE])
def test_links_go_with_their_span(profile):
    """Whether it is released by hand or with its request: the next spans have none, and no list stays out."""
    worker = Worker(profile)
    for release in (True, False):
        ctx = worker.begin()
        worker.tracer.start_span("work", links=[Link(REMOTE)]).end()
        if release:
            span_list(ctx)[1].release()
        worker.end(ctx)

    ctx = worker.begin()
    span = worker.tracer.start_span("later")
    span.add_event("fetches a list")
    assert "links" not in Encoder(SAFE_RULES).transform_span(span_list(ctx)[1])
    worker.end(ctx)
    assert {tag: balance.live for tag, balance in worker.provider.balances().items() if balance.live} == {}


def test_links_of_a_span_outside_requests(worker):
    """Whoever processes it has them with the span."""
    sent = []
    provider = otel.TracerProvider(lambda span: sent.append(Encoder(SAFE_RULES).transform_span(span)), worker.handle)

    provider.get_tracer("lib").start_span("job", links=[Link(REMOTE)]).end()

    assert [link["trace_id"] for link in sent[0]["links"]] == [TRACE_ID]
    assert worker.live() == 0


# Blocks and functions.


@pytest.mark.parametrize(("opened", "escaped"), [("start_as_current_span", "False"), ("start_span", "True")])
def test_exception_that_leaves_the_block_is_recorded(worker, opened, escaped):
    """It becomes an event and the status, the span ends, and the exception goes on; the event is the sdk's."""
    ctx = worker.begin()

    with pytest.raises(ValueError, match=r"^bad$"), getattr(worker.tracer, opened)("work"):
        raise ValueError("bad")

    kong = span_list(ctx)[1]
    assert kong.events[0].attributes["exception.type"] == "ValueError"
    assert kong.events[0].attributes["exception.escaped"] == escaped
    assert (kong.status, kong.attributes["otel.status_description"]) == (STATUS_ERROR, "ValueError: bad")
    assert kong.end_time_ns is not None
    worker.end(ctx)


@pytest.mark.parametrize("opened", ["start_as_current_span", "start_span"])
def test_exception_is_not_recorded_where_nobody_asked(worker, opened):
    """Both can be switched off; what is no `Exception` is none of the span's business."""
    ctx = worker.begin()
    options = {"record_exception": False, "set_status_on_exception": False}

    with suppress(ValueError), getattr(worker.tracer, opened)("quiet", **options):
        raise ValueError
    with suppress(KeyboardInterrupt), getattr(worker.tracer, opened)("left"):
        raise KeyboardInterrupt

    for kong in span_list(ctx)[1:]:
        assert (kong.events, kong.status) == (None, None)
        assert kong.end_time_ns is not None
    worker.end(ctx)


def test_block_can_leave_its_span_open(worker):
    """`end_on_exit` false: the span goes on after the block."""
    ctx = worker.begin()

    with worker.tracer.start_as_current_span("work", end_on_exit=False) as span:
        pass

    assert span.is_recording()
    assert trace.get_current_span() is trace.INVALID_SPAN
    span.end()
    worker.end(ctx)


def test_block_of_a_span_that_is_current_already_ends_it(worker):
    """Whoever enters it again gets the same span; what is current stays so until the outer block is left."""
    ctx = worker.begin()

    with worker.tracer.start_as_current_span("handler") as handler:
        with trace.get_current_span() as same:
            assert same is handler
            with same:
                pass
            assert not handler.is_recording()
        assert trace.get_current_span() is handler
    assert trace.get_current_span() is trace.INVALID_SPAN
    with worker.tracer.start_as_current_span("next request"):
        pass

    assert [span.name for span in span_list(ctx)] == ["kong", "handler", "next request"]
    assert all(span.end_time_ns for span in span_list(ctx)[1:])
    worker.end(ctx)


def test_span_that_its_block_has_left_open_can_be_entered(worker):
    """The second block starts nothing and makes nothing current, but records what leaves it and ends the span."""
    ctx = worker.begin()
    with worker.tracer.start_as_current_span("work", end_on_exit=False) as span:
        pass

    with suppress(ValueError), span:
        assert trace.get_current_span() is trace.INVALID_SPAN
        raise ValueError

    _root, kong = span_list(ctx)
    assert kong.events[0].attributes["exception.escaped"] == "True"
    assert kong.end_time_ns is not None
    worker.end(ctx)


def test_block_that_records_nothing_can_be_entered_again(worker):
    """What it was asked for cannot be had: every call is harmless."""
    block = worker.otel.get_tracer("lib").start_as_current_span("work")
    worker.otel.process = None

    with block, block as span:
        span.set_attribute("rows", 3)
        span.end()

    assert not span.is_recording()
    assert span.get_span_context() == trace.INVALID_SPAN_CONTEXT
    assert worker.logged == []


def test_decorated_functions_have_a_span_for_each_call(worker):
    """Also coroutine functions, whose span lasts until they return."""
    ctx = worker.begin()

    @worker.tracer.start_as_current_span("plain")
    def plain(x):
        return x, trace.get_current_span().is_recording()

    @worker.tracer.start_as_current_span("awaited")
    async def awaited(x):
        await asyncio.sleep(0)
        return x, trace.get_current_span().is_recording()

    assert [plain(1), plain(2), asyncio.run(awaited(3))] == [(1, True), (2, True), (3, True)]
    assert [span.name for span in span_list(ctx)] == ["kong", "plain", "plain", "awaited"]
    assert all(span.end_time_ns for span in span_list(ctx)[1:])
    worker.end(ctx)


def test_span_of_this_api_can_be_made_current_by_the_apis_own_function(worker):
    """`use_span` works as with any implementation."""
    ctx = worker.begin()
    span = worker.tracer.start_span("work")

    with suppress(ValueError), trace.use_span(span, end_on_exit=True):
        worker.tracer.start_span("below").end()
        raise ValueError

    _root, kong, below = span_list(ctx)
    assert below.parent is kong
    assert kong.status == STATUS_ERROR
    assert not span.is_recording()
    worker.end(ctx)


def test_block_left_in_another_context_is_logged_by_the_api(worker, caplog):
    """As with any implementation: the context cannot be put back there, and the span ends all the same."""
    ctx = worker.begin()
    block = worker.tracer.start_as_current_span("work")

    contextvars.Context().run(block.__enter__)
    block.__exit__(None, None, None)

    assert [record.message for record in caplog.records] == ["Failed to detach context"]
    assert span_list(ctx)[1].end_time_ns is not None
    worker.end(ctx)


def test_context_that_the_user_has_chosen_is_used(tmp_path):
    """OTEL_PYTHON_CONTEXT names another implementation: each block is attached to it and detached from it."""
    (tmp_path / "told.py").write_text(
        "from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext\n"
        "class Told(ContextVarsRuntimeContext):\n"
        "    def attach(self, context):\n"
        "        print('attach', bool(context))\n"
        "        return super().attach(context)\n"
        "    def detach(self, token):\n"
        "        super().detach(token)\n"
        "        print('detach')\n"
    )
    (tmp_path / "told-1.dist-info").mkdir()
    (tmp_path / "told-1.dist-info/METADATA").write_text("Name: told\nVersion: 1\n")
    (tmp_path / "told-1.dist-info/entry_points.txt").write_text("[opentelemetry_context]\ntold = told:Told\n")
    program = (
        "from kongtrace import otel\n"
        "print('block')\n"
        "with otel.TracerProvider().get_tracer('lib').start_as_current_span('work'):\n"
        "    pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OTEL_PYTHON_CONTEXT": "told"}

    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout

    assert printed.partition("block\n")[2].split("\n") == ["attach True", "detach", ""]


# What is given amiss.


class Foreign:
    """No span, but it has what Kong's API asks of a parent."""

    trace_id, span_id, should_sample = TRACE_ID, SPAN_ID, True


@pytest.mark.parametrize("active", [{"trace_id": TRACE_ID, "span_id": SPAN_ID}, Foreign()])
def test_active_span_may_be_any_table(worker, active):
    """Kong's API takes it for one: it is the parent, and active again when the span below it has ended."""
    ctx = worker.begin()
    worker.handle.set_active_span(active)

    with worker.tracer.start_as_current_span("work"):
        pass

    kong = span_list(ctx)[1]
    assert (kong.parent, kong.trace_id, kong.parent_id) == (active, TRACE_ID, SPAN_ID)
    assert kong.end_time_ns is not None
    assert worker.handle.active_span() is active
    worker.end(ctx)


@pytest.mark.parametrize("numbers", [(2**128 + 1, 1), (1, 2**64), (-1, 1)])
def test_link_whose_ids_are_none_is_logged_and_left_out(worker, numbers):
    """Nobody could be told where it leads."""
    ctx = worker.begin()
    amiss = Link(SpanContext(*numbers, is_remote=True), {"queue": "orders"})

    span = worker.tracer.start_span("work", links=[amiss, Link(REMOTE)])
    span.add_link(amiss.context, amiss.attributes)

    assert [event.trace_id for event in span_list(ctx)[1].events] == [TRACE_ID]
    assert [message for _, message in worker.logged] == ["a link was not added: its ids are too long or negative"] * 2
    worker.end(ctx)


@pytest.mark.parametrize("links", [5, [5], [Link(REMOTE, ["odd"])]])
def test_what_is_no_link_is_logged_and_left_out(worker, links):
    """The span is started by then, and can be ended: outside requests its trace would never be complete."""
    worker.tracer.start_span("job", links=links).end()

    assert worker.processed == [("job", SCOPE)]
    assert [message.partition(":")[0] for _, message in worker.logged] == ["links were not added"]
    assert worker.live() == 0


def test_times_that_are_none_are_logged_and_count_as_now(worker):
    """The span is recorded all the same, in a request and outside."""
    ctx = worker.begin()
    worker.tracer.start_span("work", start_time="noon").end("midnight")
    kong = span_list(ctx)[1]
    assert EPOCH_NS < kong.start_time_ns < kong.end_time_ns
    worker.end(ctx)

    with worker.tracer.start_as_current_span("job", start_time="noon"):
        pass

    assert worker.processed == [("job", SCOPE)]
    assert worker.logged == [
        ("warn", "the start of a span is no number: 'noon'; it begins now"),
        ("warn", "the end of a span is no number: 'midnight'; it ends now"),
        ("warn", "the start of a span is no number: 'noon'; it begins now"),
    ]
    assert worker.live() == 0


# The end.


def test_ended_span_takes_nothing(worker):
    """What comes after the end is ignored and logged, a second end too."""
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.end()
    kong = span_list(ctx)[1]
    before = {name: getattr(kong, name) for name in ("name", "end_time_ns", "status", "events")}

    span.set_attribute("late", 1)
    span.add_event("late")
    span.update_name("late")
    span.set_status(StatusCode.ERROR)
    span.record_exception(ValueError())
    span.add_link(REMOTE)
    span.end()

    assert {name: getattr(kong, name) for name in before} == before
    assert kong.attributes == SCOPE
    assert [level for level, _ in worker.logged] == ["warn"] * 7
    worker.end(ctx)


def test_end_before_the_start_counts_as_the_start(worker):
    """The span ends, and the log says what was wrong."""  # S9
    ctx = worker.begin()
    span = worker.tracer.start_span("work")

    span.end(1)

    kong = span_list(ctx)[1]
    assert kong.end_time_ns == kong.start_time_ns
    assert worker.logged[0][1].startswith("invalid span duration")
    worker.end(ctx)


@pytest.mark.parametrize("current", [True, False])
def test_end_before_a_start_that_was_given_counts_as_the_start(worker, current):
    """A span that begins in the future lasts no negative time, and what it was below is active again."""  # S9
    ctx = worker.begin()
    later = EPOCH_NS + 10**10

    if current:
        with worker.tracer.start_as_current_span("work", start_time=later):
            pass
    else:
        worker.tracer.start_span("work", start_time=later).end()

    root, kong = span_list(ctx)
    assert kong.start_time_ns == kong.end_time_ns == later
    assert worker.logged[0][1].startswith("invalid span duration")
    assert worker.handle.active_span() is root
    worker.end(ctx)


def test_trace_outside_requests_that_ends_before_its_start_is_processed(worker):
    """Once, with the end that counts."""
    ends = []
    worker.otel.process = lambda span: ends.append((span.start_time_ns, span.end_time_ns))

    worker.tracer.start_span("job", start_time=EPOCH_NS + 10**10).end()
    worker.tracer.start_span("job", start_time=EPOCH_NS).end(1)

    assert ends == [(EPOCH_NS + 10**10,) * 2, (EPOCH_NS,) * 2]
    assert worker.live() == 0


@pytest.mark.parametrize("profile", [KONG, SAFE])
def test_span_kept_after_its_request_touches_no_other(profile):
    """Its pooled span is another request's by then: nothing is written, and nothing starts below it."""  # P7, H5
    worker = Worker(profile)
    first = worker.begin()
    kept = worker.tracer.start_span("kept")
    worker.end(first)
    second = worker.begin()
    other = worker.tracer.start_span("other")

    kept.set_attribute("late", 1)
    kept.end()
    below = worker.tracer.start_span("below", trace.set_span_in_context(kept))

    assert not kept.is_recording()
    assert isinstance(below, NonRecordingSpan)
    assert below.get_span_context().span_id == kept.get_span_context().span_id
    assert other.is_recording()
    assert [span.name for span in span_list(second)] == ["kong", "other"]
    assert span_list(second)[1].attributes == SCOPE
    other.end()
    worker.end(second)


# Where nothing can be recorded.


def test_nothing_is_recorded_while_tracing_is_off():
    """The tracer made before there is a worker is inert, and so is one whose global tracer is the no-op."""  # T4
    provider = otel.TracerProvider(handle=GlobalTracer())

    span = provider.get_tracer("lib").start_span("work")

    assert not span.is_recording()
    assert span.get_span_context() == trace.INVALID_SPAN_CONTEXT


def test_unrecorded_span_carries_its_parent_on(worker):
    """So the trace of the caller is not broken by a gateway that does not trace."""
    worker.provider.set_global_tracer(worker.provider.noop_tracer)
    ctx = worker.begin()

    with worker.tracer.start_as_current_span("work", trace.set_span_in_context(NonRecordingSpan(REMOTE))) as span:
        assert trace.get_current_span().get_span_context() == REMOTE

    assert not span.is_recording()
    worker.end(ctx)


def test_tracing_turned_off_within_a_block(worker):
    """What begins from then on is not recorded, and what is open ends."""
    ctx = worker.begin()

    with worker.tracer.start_as_current_span("outer") as outer:
        worker.provider.set_global_tracer(worker.provider.noop_tracer)
        with worker.tracer.start_as_current_span("inner") as inner:
            assert not inner.is_recording()
            assert inner.get_span_context() == outer.get_span_context()

    assert [span.name for span in span_list(ctx)] == ["kong", "outer"]
    assert span_list(ctx)[1].end_time_ns is not None
    worker.end(ctx)


def test_phase_without_spans_gives_none():
    """In a timer nothing is recorded, as Kong has it."""  # T8
    worker = Worker()
    worker.otel.process = None
    worker.enter({}, "timer")

    assert not worker.tracer.start_span("work").is_recording()
    assert worker.live() == 0


# Outside requests.


def test_trace_outside_requests_is_processed_when_its_last_span_has_ended(worker):
    """A child that outlives its root is waited for; then all are shown in order and released."""
    with worker.tracer.start_as_current_span("job") as job:
        child = worker.tracer.start_span("child")
    assert not job.is_recording()
    assert worker.processed == []

    child.end()

    assert worker.processed == [("job", SCOPE), ("child", SCOPE)]
    assert worker.live() == 0


def test_traces_outside_requests_do_not_mix(worker):
    """Tasks of their own make traces of their own."""

    async def job(name):
        with worker.tracer.start_as_current_span(name) as span:
            await asyncio.sleep(0)
            worker.tracer.start_span(f"{name} child").end()
            return span.get_span_context().trace_id

    async def both():
        return await asyncio.gather(job("a"), job("b"))

    ids = asyncio.run(both())

    assert len(set(ids)) == 2
    assert [name for name, _ in worker.processed] == ["a", "a child", "b", "b child"]
    assert worker.live() == 0


def test_unsampled_trace_outside_requests_is_released_unseen(worker):
    """Nobody is shown what is not sampled."""
    worker.provider.set_global_tracer(worker.provider.new("never", {"sampling_rate": 0}))

    worker.tracer.start_span("job").end()

    assert worker.processed == []
    assert worker.live() == 0


def test_failing_processor_harms_nobody(worker):
    """Its exception is logged; the spans are released."""
    worker.otel.process = lambda _span: 1 / 0

    worker.tracer.start_span("job").end()

    assert worker.logged == [
        ("error", "the spans of a trace could not be processed: ZeroDivisionError('division by zero')")
    ]
    assert worker.live() == 0


@pytest.mark.parametrize("profile", [KONG, SAFE])
def test_processor_that_is_instrumented_is_not_traced(profile):
    """Its spans would be processed in their turn, and so on: none is recorded, nor any in a task that it makes."""
    worker = Worker(profile)
    shown = []
    contexts = []

    def process(span):
        shown.append(span.name)
        contexts.append(contextvars.copy_context())
        with worker.tracer.start_as_current_span("POST"), worker.tracer.start_as_current_span("connect"):
            assert not trace.get_current_span().is_recording()
        worker.tracer.start_span("below", trace.set_span_in_context(current)).end()
        worker.handle.start_span("kong.dns").finish()

    worker.otel.process = process
    current = worker.tracer.start_span("job")
    with trace.use_span(current):
        worker.tracer.start_span("step").end()
        current.end()
        assert trace.get_current_span() is current
    contexts[0].run(lambda: worker.tracer.start_span("POST").end())

    assert shown == ["job", "step"]
    assert worker.logged == []
    assert worker.live() == 0
    worker.tracer.start_span("next").end()
    assert shown == ["job", "step", "next"]


def test_instrumentation_of_libraries_is_off_in_a_processor(worker):
    """As it is while the sdk exports."""
    instrumented = []
    worker.otel.process = lambda _span: instrumented.append(is_instrumentation_enabled())

    worker.tracer.start_span("job").end()

    assert instrumented == [False]
    assert is_instrumentation_enabled()


def test_processor_that_is_interrupted_leaves_nothing_behind(worker):
    """What is no `Exception` goes on to the program; the spans are released, and the next ones are recorded."""

    def interrupted(_span):
        raise KeyboardInterrupt

    worker.otel.process = interrupted
    with pytest.raises(KeyboardInterrupt):
        worker.tracer.start_span("job").end()
    worker.otel.process = worker.process
    worker.tracer.start_span("next").end()

    assert worker.processed == [("next", SCOPE)]
    assert worker.live() == 0


def test_what_runs_goes_on_beside_a_trace_of_its_own(worker):
    """A timer's turn keeps its own context, whether a trace that began in it is open or complete."""
    ctx = {}
    worker.enter(ctx, "timer")

    with worker.tracer.start_as_current_span("job"):
        assert runs(worker) == ("timer", ctx)

    assert runs(worker) == ("timer", ctx)
    assert worker.processed == [("job", SCOPE)]


def runs(worker):
    """What the worker executes: the phase, and the context."""
    execution = worker.provider.execution
    return execution.phase.name, execution.ctx


def traces_outside_requests():
    """How many there are in memory."""
    gc.collect()
    return sum(type(obj) is otel.LocalTrace for obj in gc.get_objects())


def without_provider(worker):
    worker.handle.use(None)


def without_tracing(worker):
    worker.provider.set_global_tracer(worker.provider.noop_tracer)


@pytest.mark.parametrize("turn_off", [without_provider, without_tracing])
def test_root_that_is_not_recorded_leaves_nothing_behind(worker, turn_off):
    """While tracing is off a worker may run its jobs for years."""
    turn_off(worker)
    provider = worker.handle.provider
    before = provider.execution.phase, provider.execution.ctx
    others = traces_outside_requests()  # of earlier tests

    for _ in range(3):
        with worker.tracer.start_as_current_span("job") as job:
            assert not job.is_recording()

    assert (provider.execution.phase, provider.execution.ctx) == before
    assert traces_outside_requests() == others


def test_traces_outside_requests_that_overlap_are_forgotten_when_complete(worker):
    """Each begins before the one before it has ended, without end; and at last none runs."""
    before, others = runs(worker), traces_outside_requests()
    job = worker.tracer.start_span("job")
    for _ in range(5):
        job, last = worker.tracer.start_span("job"), job
        last.end()
    del last

    assert traces_outside_requests() == others + 1
    job.end()

    assert runs(worker) == before
    assert worker.processed == [("job", SCOPE)] * 6
    assert worker.live() == 0


def test_kongs_own_spans_outside_requests_are_none(worker):
    """A trace that is open there takes in nothing of the tasks beside it, and of its own what is OpenTelemetry's."""
    opened = asyncio.Event()

    async def job():
        with worker.tracer.start_as_current_span("job"):
            opened.set()
            await asyncio.sleep(0)
            assert worker.handle.start_span("kong.dns") is NOOP_SPAN
            worker.tracer.start_span("step").end()

    async def beside():
        await opened.wait()
        assert worker.handle.start_span("of nobody") is NOOP_SPAN
        assert worker.handle.active_span() is None

    async def both():
        await asyncio.gather(job(), beside())

    asyncio.run(both())

    assert [name for name, _ in worker.processed] == ["job", "step"]
    assert worker.live() == 0


# Several workers.


def test_current_span_of_another_provider_is_a_remote_parent():
    """What was current before the fork continues its trace in the worker, and is not written."""
    before, after = Worker(), Worker()
    ctx = before.begin()
    with before.tracer.start_as_current_span("boot") as boot:
        served = after.begin()
        span = after.tracer.start_span("work")
        assert span_list(served)[1].parent is None
        assert span.get_span_context().trace_id == boot.get_span_context().trace_id
        after.end(served)
    before.end(ctx)


# The sanitizer.


def checked_worker():
    found = []
    worker = Worker(make_provider=lambda **given: tracer_provider("report", on_finding=found.append, **given))
    return worker, found


def test_checked_provider_finds_a_span_that_never_ends():
    """The finding points at the line that called OpenTelemetry's API."""
    worker, found = checked_worker()
    ctx = worker.begin()

    worker.tracer.start_span("forgotten")
    worker.handle.get_root_span().finish()
    worker.end(ctx)

    assert [finding.code for finding in found] == [Code.NEVER_FINISHED]
    assert found[0].misuse[0].filename == __file__


def test_checked_provider_finds_what_comes_after_the_end():
    """Ignored calls are mistakes all the same."""
    worker, found = checked_worker()
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.end()

    span.set_attribute("late", 1)
    span.end()
    worker.handle.get_root_span().finish()
    worker.end(ctx)
    span.add_event("later")

    assert [finding.code for finding in found] == [
        Code.CHANGED_AFTER_FINISH,
        Code.FINISHED_TWICE,
        Code.USE_AFTER_RELEASE,
    ]


def test_start_with_links_below_a_span_of_another_request_is_silent():
    """A task that outlives its turn starts its spans while another request runs: what is given at the start is fine."""
    worker, found = checked_worker()
    one = worker.begin()
    above = worker.tracer.start_span("above")
    other = worker.begin()

    worker.tracer.start_span("below", trace.set_span_in_context(above), links=[Link(REMOTE)]).end()

    assert [type(event) for event in span_list(one)[2].events] == [otel.Link]
    assert found == []
    for ctx in (one, other):
        worker.enter(ctx)
        worker.end(ctx)


def test_task_of_a_request_may_use_its_spans_while_another_request_runs():
    """Whose a task is tells the span that is current in it, whichever request has the worker's turn."""
    worker, found = checked_worker()
    one = worker.begin()
    with worker.tracer.start_as_current_span("task") as span:
        other = worker.begin()
        span.set_attribute("rows", 3)
        span.add_event("read")
        span.add_link(REMOTE)
        span.set_status(StatusCode.OK)

    assert found == []
    for ctx in (one, other):
        worker.enter(ctx)
        worker.handle.get_root_span().finish()
        worker.end(ctx)


@pytest.mark.parametrize("timer", [None, {}])
def test_span_may_be_used_while_no_request_runs(timer):
    """It remembers its request, so that a callback may end it: between the turns of requests, or in a timer's."""
    worker, found = checked_worker()
    ctx = worker.begin()
    span = worker.tracer.start_span("call")
    worker.enter(timer, "timer")

    span.set_attribute("status", 200)
    span.add_event("answered")
    span.add_link(REMOTE)
    span.record_exception(ValueError())
    span.set_status(StatusCode.ERROR, "bad")
    span.end()

    worker.enter(ctx)
    worker.handle.get_root_span().finish()
    worker.end(ctx)
    assert found == []


def test_tasks_outside_requests_may_use_their_spans_at_once():
    """Nothing runs there but they."""
    worker, found = checked_worker()

    async def job(number):
        span = worker.tracer.start_span("job")
        with trace.use_span(span):
            await asyncio.sleep(0)
        span.set_attribute("number", number)
        span.add_event("done")
        span.end()

    async def both():
        await asyncio.gather(job(1), job(2))

    asyncio.run(both())

    assert [attributes["number"] for _, attributes in worker.processed] == [1, 2]
    assert found == []


@pytest.mark.parametrize("current", [True, False])
def test_span_that_another_request_has_left_somewhere_is_found(current):
    """It is used by a task of this request, or by the request itself."""
    worker, found = checked_worker()
    one = worker.begin()
    left = worker.tracer.start_span("left")
    other = worker.begin()

    with worker.tracer.start_as_current_span("mine") if current else nullcontext():
        left.set_attribute("rows", 3)

    assert [finding.code for finding in found] == [Code.FOREIGN_REQUEST]
    for ctx in (one, other):
        worker.enter(ctx)
        worker.end(ctx)


def overdue(worker, ctx):
    """End a request and let so much time pass that what is still held is found."""
    worker.handle.get_root_span().finish()
    worker.end(ctx)
    worker.provider.sweep()


def test_span_in_the_context_of_a_callback_that_is_still_due_is_silent():
    """Whatever is called back later keeps the context of its request, and so the spans that were current."""
    worker, found = checked_worker()
    ctx = worker.begin()

    with worker.tracer.start_as_current_span("outer"), worker.tracer.start_as_current_span("inner"):
        due = contextvars.copy_context()
    overdue(worker, ctx)

    assert found == []
    del due


def test_span_that_the_program_keeps_is_found():
    """Who has it is told, and not that it is wrapped."""
    worker, found = checked_worker()
    ctx = worker.begin()
    kept = []

    with worker.tracer.start_as_current_span("work") as span:
        due = contextvars.copy_context()
        kept.append(span)
    del span
    overdue(worker, ctx)

    assert [(finding.code, finding.message) for finding in found] == [
        (Code.OUTLIVES_REQUEST, "after the request a list still holds the span")
    ]
    del due


def test_correct_program_is_silent():
    """Legal use of every call gives no finding."""
    worker, found = checked_worker()
    ctx = worker.begin()
    with suppress(ValueError), worker.tracer.start_as_current_span("outer", attributes={"a": 1}) as span:
        span.add_event("x", {"b": 2})
        span.add_link(REMOTE, {"c": 3})
        with worker.tracer.start_as_current_span("inner", links=[Link(REMOTE)]):
            raise ValueError
    worker.handle.get_root_span().finish()
    del span
    worker.end(ctx)
    worker.provider.sweep()

    assert found == []
    assert worker.live() == 0


def test_scope_attributes_and_names_that_are_missing(worker):
    """Attributes of the scope go into its spans; a span without a name has one that says so."""
    ctx = worker.begin()

    worker.otel.get_tracer("", attributes={"team": "a"}).start_span("").end()

    span = span_list(ctx)[1]
    assert isinstance(span, Span)
    assert (span.name, span.kind) == ("unnamed", INTERNAL)
    assert span.attributes == {"otel.scope.name": "", "team": "a"}
    worker.end(ctx)


def test_log_records_need_no_handler_of_ours(worker, caplog):
    """What the bridge has to say goes to the worker's log, not to Python's."""
    ctx = worker.begin()
    with caplog.at_level(logging.DEBUG):
        worker.tracer.start_span("work").set_attribute("none", None)

    assert caplog.records == []
    assert worker.logged
    worker.end(ctx)
