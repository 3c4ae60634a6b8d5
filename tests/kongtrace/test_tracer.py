"""A tracer starts spans below the active one, links what was made ahead, decides on sampling, shows its own spans."""

import pytest

from kongtrace import (
    KONG,
    NOOP_SPAN,
    PHASES,
    PROFILES,
    SAFE,
    ApiError,
    ReleasedSpanError,
    Span,
    tracing_context,
)
from kongtrace.context import KONG_PHASE
from kongtrace.testing import EPOCH_NS, TracedWorker

both_profiles = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
TRACE_ID = bytes(range(16))


@pytest.fixture
def worker():
    worker = TracedWorker(KONG)
    worker.begin()
    return worker


@pytest.fixture
def tracer(worker):
    return worker.provider.global_tracer


# Options.


@pytest.mark.parametrize("call", ["start_span", "create_span", "link_span"])
def test_a_keyword_that_is_no_option_is_told(tracer, call):
    """Nothing has been started then."""  # S2
    arguments = {"start_span": ("work",), "create_span": (tracer,), "link_span": (tracer.create_span(tracer), "work")}
    with pytest.raises(TypeError, match="unexpected keyword argument 'kind'"):
        getattr(tracer, call)(*arguments[call], kind=3)
    assert tracer.get_spans() == []


# Starting.


def test_a_span_without_parent_is_a_root(tracer):
    """It has ids of its own, kind internal, the clock's time, and the tracer's decision."""  # S1, T11, T12
    span = tracer.start_span("root")
    assert (len(span.trace_id), len(span.span_id)) == (16, 8)
    assert (span.name, span.kind, span.start_time_ns, span.should_sample) == ("root", 1, EPOCH_NS, True)
    assert span.parent is span.parent_id is span.end_time_ns is span.attributes is span.events is span.status is None
    assert span.tracer is tracer
    assert span.linked is True


def test_a_span_continues_the_trace_of_the_active_one(tracer):
    """It takes over trace id and decision, and knows its parent."""  # S8, T11, T12
    root = tracer.start_span("root", should_sample=False)
    tracer.set_active_span(root)
    child = tracer.start_span("child", should_sample=True)
    assert (child.trace_id, child.parent_id, child.parent) == (root.trace_id, root.span_id, root)
    assert child.span_id != root.span_id
    assert child.should_sample is False


def test_a_parent_can_be_given(tracer):
    """It goes before the active span."""  # S8
    root, other = tracer.start_span("root"), tracer.start_span("other")
    tracer.set_active_span(root)
    assert tracer.start_span("child", {"parent": other}).parent is other
    assert tracer.start_span("child", parent=other).parent is other


def test_ids_can_be_given_to_a_root_alone(tracer):
    """A parent's ids go first; an empty trace id counts as given."""  # T11
    given = {"trace_id": TRACE_ID, "parent_id": b"parent"}
    root = tracer.start_span("root", given)
    assert (root.trace_id, root.parent_id) == (TRACE_ID, b"parent")
    child = tracer.start_span("child", {**given, "trace_id": b"other", "parent": root})
    assert (child.trace_id, child.parent_id) == (TRACE_ID, root.span_id)
    assert tracer.start_span("empty", {"trace_id": b""}).trace_id == b""


def test_below_the_noop_span_a_trace_begins(tracer):
    """It is a parent without ids."""  # T11
    span = tracer.start_span("child", {"parent": NOOP_SPAN, "parent_id": b"remote"})
    assert span.parent is NOOP_SPAN
    assert (len(span.trace_id), span.parent_id, span.should_sample) == (16, b"remote", True)


def test_a_parent_may_be_any_mapping_with_ids(tracer):
    """Kong's parent is a table."""  # T11
    parent = {"trace_id": TRACE_ID, "span_id": b"12345678", "should_sample": False}
    tracer.set_active_span(parent)
    span = tracer.start_span("child")
    assert (span.trace_id, span.parent_id, span.should_sample) == (TRACE_ID, b"12345678", False)
    assert parent["active"] is True
    assert tracer.start_span("other", parent=False).parent is parent


def test_false_in_a_parent_is_no_id(tracer):
    """It is the decision alone that can be false."""  # T11
    parent = {"trace_id": False, "span_id": False, "should_sample": False}
    for options in (None, {"parent_id": b"remote"}):
        tracer.set_active_span(parent)
        span = tracer.start_span("child", options)
        assert (len(span.trace_id), span.should_sample, span.parent_id) == (16, False, options and b"remote")
    assert tracer.start_span("below", parent={"trace_id": b"", "span_id": b""}).trace_id == b""


@pytest.mark.parametrize("make", ["start_span", "create_span"])
def test_false_in_a_span_above_is_no_id(tracer, make):
    """A given id takes its place, and else there is none; an empty one is one."""  # T11
    above = tracer.start_span("above")
    above.trace_id = above.span_id = False
    first = "below" if make == "start_span" else tracer
    below = getattr(tracer, make)(first, {"parent": above})
    assert (len(below.trace_id), below.parent_id) == (16, None)
    below = getattr(tracer, make)(first, {"parent": above, "trace_id": b"t", "parent_id": b"p"})
    assert (below.trace_id, below.parent_id) == (b"t", b"p")
    above.trace_id = above.span_id = b""
    below = getattr(tracer, make)(first, {"parent": above, "trace_id": b"t", "parent_id": b"p"})
    assert (below.trace_id, below.parent_id) == (b"", b"")


@pytest.mark.parametrize("parent", [5, True, 1.5])
def test_what_has_no_fields_is_no_parent(tracer, parent):
    """Nothing is listed then."""
    with pytest.raises(TypeError, match="parent must be a span"):
        tracer.start_span("child", parent=parent)
    assert tracer.get_spans() == []


@pytest.mark.parametrize("as_mapping", [True, False], ids=["mapping", "arguments"])
def test_options_are_a_mapping_or_arguments(tracer, as_mapping):
    """Both mean the same."""  # S2, D4
    attributes = {"a": 1}
    options = {"start_time_ns": 7, "span_kind": 2, "should_sample": False, "attributes": attributes}
    span = tracer.start_span("work", options) if as_mapping else tracer.start_span("work", **options)
    assert (span.start_time_ns, span.kind, span.should_sample) == (7, 2, False)
    assert span.attributes is attributes


def test_arguments_go_before_the_mapping(tracer):
    """What is said twice is said by name."""
    assert tracer.start_span("work", {"span_kind": 2, "start_time_ns": 7}, span_kind=3).kind == 3


@pytest.mark.parametrize("value", [0, 0.0])
def test_zero_is_a_value(tracer, value):
    """In Lua only nil and false are nothing."""
    span = tracer.start_span("work", {"start_time_ns": value, "span_kind": value})
    assert (span.start_time_ns, span.kind) == (value, value)


@pytest.mark.parametrize("name", [None, "", 5, True, {}, b""], ids=repr)
def test_a_span_needs_a_name(tracer, name):
    """Nothing is made then."""  # S3
    with pytest.raises(ApiError, match=r"^invalid span name$"):
        tracer.start_span(name)
    assert tracer.get_spans() == []


BAD_OPTIONS = [
    ({"start_time_ns": "now"}, "invalid start time"),
    ({"span_kind": "server"}, "invalid start kind"),
    ({"span_kind": True}, "invalid start kind"),
    ({"should_sample": 1}, "invalid sampled"),
    ({"attributes": "a=1"}, "invalid attributes"),
    ({"attributes": 5, "should_sample": 5, "span_kind": "x", "start_time_ns": {}}, "invalid start time"),
    ({"attributes": 5, "should_sample": 5, "span_kind": "x"}, "invalid start kind"),
    ({"attributes": 5, "should_sample": 5}, "invalid sampled"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
@pytest.mark.parametrize("make", ["start", "start by name", "create", "link"])
def test_options_are_checked_in_order_and_before_anything_happens(worker, tracer, make, options, message):
    """No object is taken, no id drawn, the clock not read."""  # S3
    made = tracer.create_span()
    before = worker.provider.balances(), worker.clock.now_ns, worker.provider.trace_ids.used()
    call = {
        "start": lambda: tracer.start_span("work", options),
        "start by name": lambda: tracer.start_span("work", **options),
        "create": lambda: tracer.create_span(tracer, options),
        "link": lambda: tracer.link_span(tracer, made, "work", options),
    }[make]
    with pytest.raises(ApiError, match=f"^{message}$"):
        call()
    assert (worker.provider.balances(), worker.clock.now_ns, worker.provider.trace_ids.used()) == before


@pytest.mark.parametrize("options", [5, "x", True])
def test_options_that_are_no_table_are_refused(tracer, options):
    """A list is a table without named fields."""  # S3
    with pytest.raises(ApiError, match=r"^invalid options type$"):
        tracer.start_span("work", options)
    assert tracer.start_span("work", []).name == "work"


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_a_phase_that_permits_no_spans_gives_the_noop_span(phase):
    """There nothing is checked, nothing active, and nothing can be made active."""  # T8
    worker = TracedWorker()
    ctx = worker.begin()
    tracer = worker.provider.global_tracer
    span = tracer.start_span("before")
    worker.enter(phase.name, ctx)
    tracer.set_active_span(span)
    if phase.spans:
        assert isinstance(tracer.start_span("work"), Span)
        assert tracer.active_span() is span
    else:
        assert tracer.start_span("", 5) is NOOP_SPAN
        assert tracer.active_span() is None


# Active.


def test_no_span_is_active_at_first(tracer):
    """Not even the root: whoever wants that sets it."""  # C7
    tracer.start_span("root")
    assert tracer.active_span() is None


def test_the_active_span_can_be_cleared(tracer):
    """The span that was active keeps its flag."""  # T10
    span = tracer.start_span("root")
    tracer.set_active_span(span)
    tracer.set_active_span(None)
    assert tracer.active_span() is None
    assert span.active is True


def test_a_span_can_be_active_before_there_is_a_list(worker, tracer):
    """The list comes with the first span."""
    tracer.set_active_span(NOOP_SPAN)
    assert worker.provider.balances()["KONG_SPAN_STORAGE"].live == 0
    span = tracer.start_span("work")
    assert tracer.get_spans() == [span]


@pytest.mark.parametrize("value", [5, "x", True])
def test_what_cannot_be_flagged_cannot_be_active(tracer, value):
    """The active span is as before."""
    with pytest.raises(TypeError, match="must be a span"):
        tracer.set_active_span(value)
    assert tracer.active_span() is None


# Made ahead.


def test_a_created_span_is_in_no_list_until_it_is_linked(tracer):
    """Its ids can be used before it has a name."""  # D16, S7
    span = tracer.create_span(tracer, {"span_kind": 3, "attributes": {"late": 1}, "start_time_ns": 7})
    assert len(span.span_id) == 8
    assert (span.name, span.start_time_ns, span.attributes, span.linked) == (None, None, None, None)
    assert tracer.get_spans() == []
    assert tracer.link_span(tracer, span, "ahead", {"start_time_ns": 7, "attributes": {"a": 1}}) is span
    assert (span.name, span.kind, span.start_time_ns, span.attributes) == ("ahead", 3, 7, {"a": 1})
    assert tracer.get_spans() == [span]


def test_both_calling_styles_link(tracer):
    """Kong's first parameter is the tracer, which is the receiver of a method."""  # D16
    first, second = tracer.create_span(tracer), tracer.create_span(tracer)
    tracer.link_span(tracer, first, "first")
    tracer.link_span(second, "second")
    assert [span.name for span in tracer.get_spans()] == ["first", "second"]


@pytest.mark.parametrize("nobody", [None, False])
def test_a_span_created_without_a_tracer_gets_the_one_that_links_it(tracer, nobody):
    """Before, it belongs to nobody and is not sampled: there is no sampler."""  # S7, S8, T12
    tracer.set_active_span(tracer.start_span("root"))
    span = tracer.create_span(nobody)
    assert span.tracer is span.parent is nobody
    assert span.should_sample is False
    tracer.link_span(tracer, span, "mine")
    assert span.tracer is tracer


def test_linking_twice_lists_twice(tracer):
    """The second name stands."""  # S7
    span = tracer.create_span(tracer)
    tracer.link_span(tracer, span, "once")
    tracer.link_span(tracer, span, "twice")
    assert tracer.get_spans() == [span, span]
    assert span.name == "twice"


@pytest.mark.parametrize("bad", [5, "tracer"])
def test_only_a_tracer_links(tracer, bad):
    """The list that takes the span is the tracer's."""
    span = tracer.create_span(tracer)
    with pytest.raises(ApiError, match=r"^invalid tracer$"):
        tracer.link_span(bad, span, "mine")
    with pytest.raises(TypeError):
        tracer.link_span(None, span, "mine")
    assert tracer.get_spans() == []


def relinked(tracer, linking, **options):
    """A span that has been released, and then linked by another tracer: it is in the pool."""
    span = tracer.start_span("first")
    span.release()
    linking.link_span(linking, span, "again", options)
    return span


def test_a_span_that_is_linked_after_its_release_is_listed_but_not_usable(tracer):
    """It has got fields again, and no methods."""  # P7
    span = relinked(tracer, other := tracer.new("other"), start_time_ns=5, attributes={"a": 1})
    assert (span.name, span.start_time_ns, span.attributes, span.linked) == ("again", 5, {"a": 1}, True)
    assert span.tracer is other
    assert tracer.get_spans() == [span, span]
    for call in (span.finish, span.release, lambda: span.set_attribute("b", 2), lambda: span.set_status(2)):
        with pytest.raises(ReleasedSpanError):
            call()


@pytest.mark.parametrize("options", [None, {}], ids=["fast", "options"])
def test_a_start_that_fetches_such_a_span_leaves_it_to_the_tracer_that_linked_it(worker, tracer, options):
    """All else is new."""  # P7
    span = relinked(tracer, other := tracer.new("other"), start_time_ns=5, attributes={"a": 1})
    assert tracer.start_span("new", options) is span
    assert span.tracer is other
    assert (span.name, span.start_time_ns, span.attributes) == ("new", EPOCH_NS + 1_000, None)
    span.set_attribute("b", 2)
    span.release()
    assert tracer.start_span("newer").tracer is tracer
    assert {pool: balance.live for pool, balance in worker.provider.balances().items()} == {
        "KONG_SPAN": 1,
        "KONG_SPAN_STORAGE": 1,
        "KONG_SPAN_ATTRIBUTES": 0,
        "KONG_SPAN_EVENTS": 0,
    }


def test_a_creation_that_fetches_such_a_span_leaves_it_as_it_was_linked(tracer):
    """But for its ids and kind."""  # P7
    span = relinked(tracer, other := tracer.new("other"), start_time_ns=5, attributes={"a": 1})
    assert tracer.create_span(tracer) is span
    assert span.tracer is other
    assert (span.name, span.start_time_ns, span.attributes) == ("again", 5, {"a": 1})
    span.set_attribute("b", 2)
    assert span.attributes == {"a": 1, "b": 2}


@pytest.mark.parametrize("options", [None, {}], ids=["without options", "with options"])
def test_a_start_keeps_what_kong_does_not_write_in_a_released_span(worker, tracer, options):
    """Whoever held it has written there after its release: it gets no tracer where it has one."""  # P7
    stale = tracer.start_span("gone")
    stale.release()
    other = worker.provider.new("other")
    stale.tracer, stale.status, stale.name, stale.attributes = other, 2, "written", {"a": 1}
    span = tracer.start_span("new", options)
    assert span is stale
    assert (span.tracer, span.status, span.name, span.attributes) == (other, 2, "new", None)
    span.set_attribute("b", 2)
    assert span.attributes == {"b": 2}


def test_a_creation_keeps_what_kong_does_not_write_in_a_released_span(worker, tracer):
    """Name and attributes are the linking's to write."""  # P7
    stale = tracer.start_span("gone")
    stale.release()
    other = worker.provider.new("other")
    stale.tracer, stale.status, stale.name, stale.attributes = other, 2, "written", {"a": 1}
    span = tracer.create_span(tracer)
    assert span is stale
    assert (span.tracer, span.status, span.name, span.attributes) == (other, 2, "written", {"a": 1})
    span.set_attribute("b", 2)
    assert span.attributes == {"a": 1, "b": 2}


def test_such_a_span_can_be_linked_once_more(tracer):
    """It is listed once more."""  # P7, S7
    span = relinked(tracer, other := tracer.new("other"), attributes={"a": 1})
    tracer.link_span(tracer, span, "third")
    assert (span.name, span.attributes, span.tracer) == ("third", None, other)
    assert tracer.get_spans() == [span] * 3
    assert tracer.start_span("new").tracer is other


@pytest.mark.parametrize("nothing", [None, 5, "span", {}], ids=repr)
def test_only_a_span_is_linked(worker, tracer, nothing):
    """Nothing is listed, and no time is read."""  # D16
    before = worker.clock.now_ns
    with pytest.raises(TypeError, match=r"^link_span needs a span, not "):
        tracer.link_span(tracer, nothing, "mine")
    assert tracer.get_spans() == []
    assert worker.clock.now_ns == before


def test_a_failed_link_gives_a_span_no_tracer(tracer):
    """It still gets the one that does link it."""  # S7
    span = tracer.create_span(None)
    with pytest.raises(TypeError):
        tracer.link_span(False, span, "mine")
    tracer.link_span(tracer, span, "mine")
    assert span.tracer is tracer


def test_the_noop_span_can_be_linked_when_another_was_made_and_released(tracer):
    """The request knows of no span then that was made and not linked."""  # S16, P13
    tracer.create_span(tracer).release()
    tracer.link_span(tracer, NOOP_SPAN, "none")
    assert tracer.get_spans() == [NOOP_SPAN]


@both_profiles
def test_attributes_in_a_list_have_its_positions_as_keys(profile):
    """Others can be set beside them, and no later request gets a list to put its attributes in."""  # S4, P9
    worker = TracedWorker(profile)
    ctx = worker.begin()
    tracer = worker.provider.global_tracer
    first = tracer.start_span("first", attributes=["a", "b"])
    first.set_attribute("key", "c")
    assert first.attributes == {1: "a", 2: "b", "key": "c"}
    tracer.link_span(tracer, second := tracer.create_span(tracer), "second", {"attributes": ["a"]})
    assert second.attributes == {1: "a"}
    worker.end(ctx)
    worker.begin()
    for name in ("third", "fourth"):
        span = tracer.start_span(name)
        span.set_attribute("key", "c")
        assert span.attributes == {"key": "c"}


def test_a_list_of_attributes_does_not_hinder_the_sampling_decision(tracer, worker):
    """It is looked for a mark that it cannot have."""  # M5
    tracer.start_span("root", attributes=["a"])
    tracing_context(worker.provider.execution.ctx).raw_trace_id = TRACE_ID
    assert tracer.get_sampling_decision(None, 1) is True


@pytest.mark.parametrize("attributes", ["text", b"text", ["a"]])
def test_attributes_that_are_no_mapping_have_no_mark_for_the_sampling_decision(tracer, worker, attributes):
    """They were written into the field; Lua finds nothing in a string or a list, and fails at anything else."""  # M5
    root = tracer.start_span("root")
    root.attributes = attributes
    tracing_context(worker.provider.execution.ctx).raw_trace_id = TRACE_ID
    assert tracer.get_sampling_decision(None, 1) is True
    root.attributes = 5
    with pytest.raises(AttributeError):
        tracer.get_sampling_decision(None, 1)


def test_a_span_created_outside_any_request_is_left_to_its_holder():
    """It is in the balance as discarded, at once."""  # P13
    worker = TracedWorker()
    span = worker.provider.global_tracer.create_span()
    assert len(span.span_id) == 8
    assert worker.provider.balances()["KONG_SPAN"].live == 0


@both_profiles
def test_an_active_span_without_a_tracer_ends_as_the_profile_has_it(profile):
    """Kong fails where it asks the tracer for the active span; profile safe takes the default namespace's."""  # S9
    worker = TracedWorker(profile)
    worker.begin()
    tracer = worker.provider.global_tracer
    root = tracer.start_span("root")
    tracer.set_active_span(root)
    span = tracer.create_span(None, {"parent": root})
    tracer.set_active_span(span)
    if profile is KONG:
        with pytest.raises(TypeError):
            span.finish()
        assert tracer.active_span() is span
    else:
        span.finish()
        assert tracer.active_span() is root
    assert span.end_time_ns is not None


# The list.


def test_tracers_of_a_namespace_share_list_and_active_span(tracer):
    """Spans of both stand in the order of linking."""  # T7, C10
    other = tracer.new("other")
    root = tracer.start_span("root")
    tracer.set_active_span(root)
    child = other.start_span("child")
    assert child.parent is root
    assert tracer.get_spans() is other.get_spans()
    assert tracer.get_spans() == [root, child]


def test_a_namespace_of_its_own_isolates(tracer):
    """It has its own list, root and active span."""  # C10
    other = tracer.new("other", {"namespace": "APART"})
    root = tracer.start_span("root")
    tracer.set_active_span(root)
    assert other.active_span() is None
    span = other.start_span("apart")
    assert span.parent is None
    assert (other.get_spans(), other.get_root_span()) == ([span], span)
    assert tracer.get_spans() == [root]
    assert (other.spans_key, other.active_key) == ("APART_SPANS", "APART_active_span")


def test_requests_that_take_turns_keep_their_spans_apart(worker, tracer):
    """Whoever runs again finds its own active span and list."""  # R3
    first = worker.provider.execution.ctx
    one = tracer.start_span("one")
    tracer.set_active_span(one)
    second = worker.begin()
    assert tracer.active_span() is None
    two = tracer.start_span("two")
    worker.enter("access", first)
    assert tracer.active_span() is one
    three = tracer.start_span("three")
    assert tracer.get_spans() == [one, three]
    worker.enter("access", second)
    assert tracer.get_spans() == [two]


def test_init_spans_begins_a_new_list(worker, tracer):
    """The spans of the old one are given up."""  # D17
    tracer.start_span("old")
    assert tracer.init_spans() == []
    new = tracer.start_span("new")
    assert tracer.get_spans() == [new]
    balances = worker.provider.balances()
    assert (balances["KONG_SPAN"].discarded, balances["KONG_SPAN"].live) == (1, 1)
    assert balances["KONG_SPAN_STORAGE"].live == 1


def test_the_root_is_the_first_of_the_list(tracer):
    """There is none before the first span."""  # D17
    assert tracer.get_root_span() is None
    root = tracer.start_span("root")
    tracer.start_span("next")
    assert tracer.get_root_span() is root


# Showing.


def test_process_span_shows_a_tracer_the_spans_of_its_name(worker, tracer):
    """In the order of linking, with the arguments given, and not those that were released."""  # D7, T9
    other, twin = tracer.new("other"), tracer.new(tracer.name)
    first = tracer.start_span("first")
    other.start_span("others")
    gone = tracer.start_span("gone")
    last = twin.start_span("last")
    gone.release()
    worker.provider.execution.ctx[KONG_PHASE] = "log"
    seen = []
    tracer.process_span(lambda *arguments: seen.append(arguments), 1, "two")
    assert seen == [(first, 1, "two"), (last, 1, "two")]


@pytest.mark.parametrize(
    ("kong", "nginx", "message"),
    [
        ("access", "access", "function cannot be called in access phase (only in: log)"),
        ("response", "access", "function cannot be called in response phase (only in: log)"),
        (None, "content", "function cannot be called in admin_api phase (only in: log)"),
        (None, "timer", "no phase in ngx.ctx.KONG_PHASE, (need one of log)"),
    ],
)
def test_process_span_belongs_into_the_log_phase(worker, tracer, kong, nginx, message):
    """The guard looks at Kong's phase, not nginx's."""  # R9, H44
    ctx = {} if kong is None else {KONG_PHASE: kong}
    worker.provider.execution.enter(PHASES[nginx], ctx)
    with pytest.raises(ApiError) as refused:
        tracer.process_span(print)
    assert str(refused.value) == message


@pytest.mark.parametrize("processor", [None, 5, "print", "a tracer"])
def test_a_processor_is_called(worker, tracer, processor):
    """What cannot be called is refused, and so is a tracer, whose call makes another."""  # D7
    worker.provider.execution.ctx[KONG_PHASE] = "log"
    with pytest.raises(ApiError, match=r"^processor must be a function$"):
        tracer.process_span(tracer if processor == "a tracer" else processor)


def test_a_span_is_shown_by_the_name_of_what_it_has_for_a_tracer(worker, tracer):
    """Kong takes any table, and text too, for a tracer when a parent is given; only a table has a name."""  # D16, T9
    root = tracer.start_span("root")
    named = {"name": tracer.name}
    for owner in ("x", {}, [1], {"name": "other"}, named):
        created = tracer.create_span(owner, {"parent": root})
        assert created.tracer is owner
        tracer.link_span(tracer, created, "child")
    worker.provider.execution.ctx[KONG_PHASE] = "log"
    seen = []
    tracer.process_span(seen.append)
    assert [(span.name, span.tracer) for span in seen] == [("root", tracer), ("child", named)]


@pytest.mark.parametrize("owner", [5, True, print], ids=repr)
@both_profiles
def test_a_span_whose_tracer_can_have_no_name_is_a_trap_of_profile_kong(profile, owner):
    """Kong looks for the name without asking."""  # D16, T9
    worker = TracedWorker(profile)
    ctx = worker.begin()
    tracer = worker.provider.global_tracer
    root = tracer.start_span("root")
    tracer.link_span(tracer, tracer.create_span(owner, {"parent": root}), "child")
    ctx[KONG_PHASE] = "log"
    seen = []
    if profile is SAFE:
        tracer.process_span(seen.append)
    else:
        with pytest.raises(AttributeError):
            tracer.process_span(seen.append)
    assert seen == [root]


def test_a_failed_link_leaves_a_span_with_the_table_that_was_to_link_it(tracer):
    """The next one finds that it has a tracer."""  # S7
    span = tracer.create_span(None)
    table = {"name": "table"}
    with pytest.raises(TypeError, match="needs a tracer"):
        tracer.link_span(table, span, "mine")
    assert tracer.link_span(tracer, span, "mine").tracer is table


# Sampling.


def test_the_flag_of_all_listed_spans_can_be_written(tracer):
    """The noop span is skipped, an unlinked one is not reached, a later one inherits."""  # T14
    root = tracer.start_span("root")
    tracer.link_span(tracer, NOOP_SPAN, "noop")
    ahead = tracer.create_span(tracer)
    tracer.set_active_span(root)
    tracer.set_should_sample(False)
    assert (root.should_sample, ahead.should_sample) == (False, True)
    assert tracer.start_span("child").should_sample is False


def test_a_rate_decides_by_trace_id(worker):
    """The same id gets the same answer from every tracer of that rate."""  # M2, M4
    first, second = (worker.provider.new(name, {"sampling_rate": 0.5}) for name in ("one", "two"))
    ids = [worker.provider.trace_ids.draw() for _ in range(200)]
    decisions = [first.start_span("root", {"trace_id": trace_id}).should_sample for trace_id in ids]
    assert decisions == [second.sampler(trace_id).sampled for trace_id in ids]
    assert 60 < sum(decisions) < 140


@pytest.mark.parametrize(
    ("rate", "trace_id", "error"),
    [
        ("all", TRACE_ID, "invalid fraction"),
        (0.5, b"short", "sampling needs trace ID to be longer than 8 bytes to work"),
    ],
)
def test_a_sampler_that_cannot_decide_means_no(worker, rate, trace_id, error):
    """It is logged, and the span is made."""  # T12
    span = worker.provider.new("odd", {"sampling_rate": rate}).start_span("root", {"trace_id": trace_id})
    assert span.should_sample is False
    assert worker.logged == [("error", f"sampler failure: {error}")]


@pytest.fixture
def decided(worker, tracer):
    """Decide for a request that has a root with attributes and a raw trace id below the middle."""
    tracer.start_span("root", attributes={"a": 1})
    tracing_context(worker.provider.execution.ctx).raw_trace_id = bytes(16)
    return tracer.get_sampling_decision


def test_a_parents_no_wins_and_its_yes_does_not_force(decided):
    """A client's flag that says yes leaves the decision to the rate."""  # M5, M6, H37
    assert decided(False, 1) is False
    assert decided(True, 0) is False
    assert decided(True, 1) is True
    assert decided(None, 0.5) is True


def test_the_configured_rate_decides_when_none_is_given(worker, decided):
    """It is the gateway's, not the tracer's."""  # M5
    assert decided() is True
    worker.provider.sampling_rate = 0
    assert decided() is False


def test_without_a_root_nothing_is_sampled(tracer):
    """There is nothing to export."""  # M5
    assert tracer.get_sampling_decision(True, 1) is False


def test_a_root_for_propagation_only_is_not_sampled(tracer, worker):
    """It was made so that headers could be written."""  # M5, O12
    tracer.start_span("root", attributes={"kong.propagation_only": True})
    tracing_context(worker.provider.execution.ctx).raw_trace_id = bytes(16)
    assert tracer.get_sampling_decision(True, 1) is False


def test_without_a_raw_trace_id_the_parents_flag_decides(worker, tracer):
    """No trace id, no ratio."""  # M5
    tracer.start_span("root", attributes={})
    for absent in (None, False):
        tracing_context(worker.provider.execution.ctx).raw_trace_id = absent
        assert tracer.get_sampling_decision(True, 0) is True
        assert tracer.get_sampling_decision(None, 1) is False


@both_profiles
def test_a_root_without_attributes_is_a_trap_of_profile_kong(profile):
    """Kong looks into them without asking."""  # M7, H15
    worker = TracedWorker(profile)
    worker.begin()
    tracer = worker.provider.global_tracer
    tracer.start_span("root")
    if profile is SAFE:
        assert tracer.get_sampling_decision(True, 1) is True
    else:
        with pytest.raises(TypeError, match="has no attributes"):
            tracer.get_sampling_decision(True, 1)


# The rest.


def test_new_span_is_what_the_documentation_calls_three_functions(tracer):
    """No argument asks, a span activates, a name starts."""  # C2
    assert tracer.new_span() is None
    span = tracer.new_span("work", {"span_kind": 2})
    assert span.kind == 2
    assert tracer.new_span(span) is None
    assert tracer.new_span() is span


def test_a_tracer_makes_others(tracer):
    """By method and by call, with a mapping or by keyword."""  # D2, D3
    assert tracer.new("one").name == "one"
    assert tracer("two", {"sampling_rate": 0.5}).sampling_rate == 0.5
    assert tracer.new("three", namespace="APART").spans_key == "APART_SPANS"


def test_outside_a_request_there_is_no_list():
    """Whoever asks for it is told so."""
    with pytest.raises(ApiError, match="no request found"):
        TracedWorker().provider.global_tracer.get_spans()
