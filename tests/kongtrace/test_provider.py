"""A provider makes the tracers of a worker, and takes the spans of a request back when it ends."""

from contextlib import contextmanager, suppress
from copy import copy, deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kongtrace import (
    KONG,
    NOOP_SPAN,
    PHASES,
    PROFILES,
    SAFE,
    ApiError,
    NoopTracer,
    ReleasedSpanError,
    Span,
    TracerProvider,
)
from kongtrace import pool as pools
from kongtrace.ids import IDS_PER_BLOCK, IdSupply
from kongtrace.testing import FakeEntropy, TracedWorker

both_profiles = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
EMPTY = [name for name in Span.__slots__ if not name.startswith("_")]


def provider(profile=SAFE):
    return TracerProvider(time_ns=lambda: 0, random_bytes=FakeEntropy(), profile=profile)


def fields(span):
    return {name: getattr(span, name) for name in EMPTY}


def live(worker):
    return {tag: balance.live for tag, balance in worker.provider.balances().items() if balance.live}


@contextmanager
def request_of(worker):
    """A request that nobody looks at: a span that is in a variable is held."""
    ctx = worker.begin()
    yield
    worker.provider.end_request(ctx)


def trace_a_request(worker, *names):
    """A request with a span of each name, of which the first is active."""
    with request_of(worker):
        tracer = worker.provider.global_tracer
        for name in names:
            span = tracer.start_span(name, attributes={"given": name})
            span.set_attribute("set", 1)
            span.add_event("event")
            if tracer.active_span() is None:
                tracer.set_active_span(span)
            del span


# Tracers.


def test_a_tracer_has_a_name_a_rate_and_a_namespace():
    """All can be left out; the caller's options get the rate that is in force."""  # D2, T3
    tracer = provider().new()
    assert (tracer.name, tracer.sampling_rate, tracer.spans_key) == ("default", 1.0, "KONG_SPANS")
    tracer = provider().new("mine", options := {"namespace": "APART"})
    assert (tracer.name, tracer.spans_key) == ("mine", "APART_SPANS")
    assert options == {"namespace": "APART", "sampling_rate": 1.0}


@pytest.mark.parametrize("name", [True, {}, ["x"], float("nan")])
def test_a_name_is_a_string(name):
    """Lua makes a key of it."""
    with pytest.raises(TypeError, match="name of a tracer"):
        provider().new(name)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_name_in_bytes_is_the_same_in_text(profile):
    """A string of Lua is either."""
    new = provider(profile).new
    assert new(b"mine").name == "mine"
    assert new("mine", {"namespace": b"APART"}).namespace is new(b"mine", {"namespace": "APART"}).namespace


@pytest.mark.parametrize("options", [5, 0, "x", "", True])
def test_options_are_a_mapping(options):
    """Lua indexes them."""
    with pytest.raises(TypeError, match="options of a tracer"):
        provider().new("x", options)


@pytest.mark.parametrize(
    ("namespace", "key"),
    [("", "_SPANS"), (0, "0_SPANS"), (7.0, "7_SPANS"), (b"B", "B_SPANS"), (False, "KONG_SPANS"), (None, "KONG_SPANS")],
)
def test_only_nil_and_false_stand_for_the_default_namespace(namespace, key):
    """An empty text and zero are true in Lua; a number is joined as Lua writes it."""
    assert provider().new("x", {"namespace": namespace}).spans_key == key


@pytest.mark.parametrize("namespace", [True, {}, ["x"]])
def test_a_namespace_is_a_string(namespace):
    """Lua joins it with the rest of the key."""
    with pytest.raises(TypeError, match="a namespace must be a string"):
        provider().new("x", {"namespace": namespace})


@pytest.mark.parametrize("noop", [0, "", {}])
def test_any_value_but_nil_and_false_asks_for_the_noop_tracer(noop):
    """Zero and empty values are true in Lua."""  # T3
    worker = provider()
    assert worker.new("x", {"noop": noop}) is worker.noop_tracer


@pytest.mark.parametrize("tracer", [0, "", 1])
def test_linking_wants_a_tracer_or_nothing(tracer):
    """What is true in Lua and no table is refused before anything is changed."""
    span = (real := provider().new("x")).create_span(None)
    with pytest.raises(ApiError, match=r"^invalid tracer$"):
        real.link_span(tracer, span, "name")
    assert span.name is None


def test_a_tracer_is_given_again_for_the_same_options_in_profile_safe():
    """One that differs in namespace or rate is another one."""  # T2
    new = provider(SAFE).new
    first = new("x")
    assert new("x") is first
    assert new("x", {"sampling_rate": 0.5}) is not first
    assert new("x", {"namespace": "APART"}) is not first


def test_the_memo_of_tracers_is_mistaken_in_profile_kong():
    """It is written by name and read by namespace and name."""  # T2
    new = provider(KONG).new
    assert new("x") is not new("x")
    trap = new("APART_x")
    assert new("x", {"namespace": "APART"}) is trap
    assert new("x", {"namespace": "APART", "noop": True}) is trap


def test_the_noop_tracer_can_be_asked_for():
    """All get the same one, and it is the global one until another is set."""  # T3, T4
    ours = provider()
    assert ours.new("x", {"noop": True}) is ours.noop_tracer is ours.global_tracer


def test_a_profile_is_no_name():
    """The word of a configuration is refused at once, and what to write instead is named."""
    with pytest.raises(TypeError, match=r"^profile must be kongtrace\.SAFE or kongtrace\.KONG, not 'kong'$"):
        provider("kong")


def test_a_global_tracer_is_set_and_told():
    """Whoever follows it is called."""  # T5
    ours, told = provider(), []
    ours.on_global_tracer = lambda: told.append(ours.global_tracer)
    tracer = ours.new("mine")
    tracer.set_global_tracer(tracer)
    tracer.set_global_tracer(ours.noop_tracer)
    assert told == [tracer, ours.noop_tracer]


@pytest.mark.parametrize("value", [None, 5, "noop", {}, {"name": "noop"}])
def test_only_a_tracer_becomes_global(value):
    """The one that is set stays."""  # T5
    ours = provider()
    with pytest.raises(ApiError, match=r"^invalid tracer$"):
        ours.set_global_tracer(value)
    assert isinstance(ours.global_tracer, NoopTracer)


# Ids.


def test_ids_are_drawn_in_blocks():
    """One draw of randomness serves many spans."""
    entropy = FakeEntropy()
    supply = IdSupply(entropy, 8)
    ids = [supply.draw() for _ in range(3 * IDS_PER_BLOCK)]
    assert entropy.draws == 3
    assert len(set(ids)) == supply.used() == 3 * IDS_PER_BLOCK


def test_no_id_is_all_zero():
    """Such an id means none (W3C Trace Context 3.2.2.3)."""
    good = b"\x01" * 8
    blocks = iter([bytes(8) * IDS_PER_BLOCK, bytes(8) * (IDS_PER_BLOCK - 1) + good])
    supply = IdSupply(lambda _: next(blocks), 8)
    assert supply.draw() == good
    assert supply.drawn == []


def test_ids_can_be_supplied():
    """They are taken first, in their order."""
    supply = IdSupply(FakeEntropy(), 8)
    supply.add([b"first---", b"second--"])
    assert [supply.draw(), supply.draw()] == [b"first---", b"second--"]
    assert supply.used() == 2


# The end of a request.


@both_profiles
def test_after_a_request_nothing_of_it_is_live(profile):
    """Spans, tables, events and list are booked out."""  # E1
    worker = TracedWorker(profile)
    for _ in range(3):
        trace_a_request(worker, "root", "child")
    assert live(worker) == {}
    assert worker.provider.balances()["KONG_SPAN"].fetched == 6


@both_profiles
def test_spans_are_used_again(profile):
    """The next request makes no span when nobody holds those of the last."""  # P2
    worker = TracedWorker(profile)
    for _ in range(3):
        trace_a_request(worker, "root", "child")
    balance = worker.provider.balances()["KONG_SPAN"]
    assert (balance.misses, balance.hits, balance.released, balance.free) == (2, 4, 6, 2)


@both_profiles
def test_a_span_from_the_pool_is_like_a_new_one(profile):
    """Nothing of its former life is left."""  # P6
    worker = TracedWorker(profile)
    trace_a_request(worker, "root", "child")
    with request_of(worker):
        span = worker.provider.global_tracer.start_span("again")
        assert span.attributes is span.events is span.end_time_ns is span.status is span.active is span.parent is None
        ahead = worker.provider.global_tracer.create_span()
        assert {name for name, value in fields(ahead).items() if value is not None} == {
            *("kind", "should_sample", "span_id", "trace_id"),
        }


@both_profiles
def test_the_handle_of_an_ended_span_is_empty(profile):
    """Whoever kept a span past its request sees nothing in it."""  # P6, H5
    worker = TracedWorker(profile)
    with request_of(worker):
        kept = worker.provider.global_tracer.start_span("kept", attributes={"a": 1})
    assert fields(kept) == dict.fromkeys(EMPTY)


@both_profiles
def test_a_list_that_is_kept_shows_no_span_of_another_request(profile):
    """It is empty from the end of its own on."""  # P6, H5
    worker = TracedWorker(profile)
    with request_of(worker):
        worker.provider.global_tracer.start_span("own")
        kept = worker.provider.global_tracer.get_spans()
    assert kept == []
    with request_of(worker):
        worker.provider.global_tracer.create_span()
        assert kept == []


@both_profiles
def test_the_end_of_a_request_leaves_the_running_one_alone(profile):
    """A request may be ended while another runs, which keeps its list and its active span."""
    worker = TracedWorker(profile)
    tracer = worker.provider.global_tracer
    first = worker.begin()
    tracer.start_span("gone")
    worker.begin()
    tracer.set_active_span(tracer.start_span("root"))
    worker.provider.end_request(first)
    assert tracer.start_span("child").parent.name == "root"
    assert [span.name for span in tracer.get_spans()] == ["root", "child"]


def test_a_held_span_is_lent_to_another_request_in_profile_kong():
    """The stale handle writes into a span of somebody else."""  # P7, H5
    worker = TracedWorker(KONG)
    with request_of(worker):
        stale = worker.provider.global_tracer.start_span("first")
    with request_of(worker):
        span = worker.provider.global_tracer.start_span("second")
        stale.set_attribute("written", "by the first")
        assert span is stale
        assert span.attributes == {"written": "by the first"}


def test_a_held_span_is_left_to_its_holder_in_profile_safe():
    """Its place in the pool is taken by nobody, the others are used again."""
    worker = TracedWorker(SAFE)
    with request_of(worker):
        worker.provider.global_tracer.start_span("free")
        stale = worker.provider.global_tracer.start_span("held")
    with request_of(worker):
        spans = {id(worker.provider.global_tracer.start_span(name)) for name in "ab"}
        assert id(stale) not in spans
    balance = worker.provider.balances()["KONG_SPAN"]
    assert (balance.fetched, balance.hits, balance.released, balance.discarded) == (4, 1, 3, 1)


def test_a_parent_that_only_its_children_hold_is_used_again_in_profile_safe():
    """References from span to span do not count."""
    worker = TracedWorker(SAFE)
    with request_of(worker):
        tracer = worker.provider.global_tracer
        tracer.set_active_span(tracer.start_span("root"))
        tracer.set_active_span(tracer.start_span("child"))
        tracer.start_span("grandchild")
    assert worker.provider.balances()["KONG_SPAN"].free == 3


def test_a_given_table_is_emptied_and_lent_in_profile_kong():
    """The caller's mapping goes into the pool with the span."""  # P9, H7
    worker, mine = TracedWorker(KONG), {"a": 1}
    with request_of(worker):
        worker.provider.global_tracer.start_span("first", attributes=mine)
    assert mine == {}
    with request_of(worker):
        worker.provider.global_tracer.start_span("second").set_attribute("b", 2)
        assert mine == {"b": 2}


def test_one_table_on_two_spans_is_shared_by_two_later_ones_in_profile_kong():
    """It is in the pool twice."""  # P10, H8
    worker, mine = TracedWorker(KONG), {"a": 1}
    with request_of(worker):
        for name in "ab":
            worker.provider.global_tracer.start_span(name, attributes=mine)
    with request_of(worker):
        spans = [worker.provider.global_tracer.start_span(name) for name in "cd"]
        for span in spans:
            span.set_attribute(span.name, 1)
        assert spans[0].attributes is spans[1].attributes is mine
        assert mine == {"c": 1, "d": 1}


def overfull_request(worker):
    """A request with one span more than the pool takes; gives that span, which keeps its fields, and its events."""
    with request_of(worker):
        spans = [worker.provider.global_tracer.start_span("filling") for _ in range(pools.FREE_MAX + 1)]
        spans[-1].add_event("before")
    return spans[-1]


def span_that_is_lent_the_events_of(holder, worker):
    """The next span, with an event of its own; until it is lent the list, whoever kept that can add none."""
    with pytest.raises(ReleasedSpanError, match="list has been released"):
        holder.add_event("stale")
    span = worker.provider.global_tracer.start_span("next")
    span.add_event("mine")
    assert [event.name for event in span.events] == ["mine"]
    return span


def test_released_events_take_none_until_they_are_lent_again():
    """A span for which the pool had no room keeps the list of its events, which has lost its count."""  # P5, P6, S13
    worker = TracedWorker(KONG)
    stale = overfull_request(worker)
    with request_of(worker):
        span = span_that_is_lent_the_events_of(stale, worker)
        stale.add_event("stale")
        assert [event.name for event in span.events] == ["mine", "stale"]


def test_a_shallow_copy_adds_no_event_to_a_list_that_has_been_released():
    """It shares the list, which is for the next span."""  # C12, H6
    worker = TracedWorker(KONG)
    with request_of(worker):
        span = worker.provider.global_tracer.start_span("copied")
        span.add_event("before")
        copied = copy(span)
        copied.add_event("shared")
        assert [event.name for event in span.events] == ["before", "shared"]
        del span
    with request_of(worker):
        span_that_is_lent_the_events_of(copied, worker)
    assert live(worker) == {}


def test_events_that_are_lent_to_two_are_counted_by_the_second():
    """Their list is in the pool twice; the second holder counts from 1 again, and takes the first's places."""  # P10
    worker = TracedWorker(KONG)
    overfull_request(worker).release()
    with request_of(worker):
        spans = [worker.provider.global_tracer.start_span(name) for name in "abc"]
        for span, event in zip([spans[0], spans[0], spans[1], spans[2], spans[0], spans[1]], "uvwxyz", strict=True):
            span.add_event(event)
        assert spans[0].events is spans[1].events
        assert [event.name for event in spans[0].events] == ["w", "y", "z"]
        assert [event.name for event in spans[2].events] == ["x"]
    assert live(worker) == {}


def test_tables_are_left_alone_in_profile_safe():
    """What the caller gave, and what a shallow copy shares, keeps its content."""  # H6, H7
    worker, mine = TracedWorker(SAFE), {"a": 1}
    with request_of(worker):
        span = worker.provider.global_tracer.start_span("first", attributes=mine)
        span.add_event("event")
        events = span.events
    trace_a_request(worker, "next")
    assert mine == {"a": 1}
    assert [event.name for event in events] == ["event"]


def test_an_ended_context_is_spent_in_profile_kong():
    """Its list is empty and takes no span, until it is lent again."""  # E1
    worker = TracedWorker(KONG)
    ctx = worker.begin()
    tracer = worker.provider.global_tracer
    tracer.start_span("before")
    ahead = tracer.create_span(tracer)
    worker.provider.end_request(ctx)
    assert (tracer.get_spans(), tracer.get_root_span()) == ([], None)
    for start in (
        lambda: tracer.start_span("after"),
        lambda: tracer.start_span("after", {}),
        lambda: tracer.link_span(tracer, ahead, "after"),
    ):
        with pytest.raises(ReleasedSpanError, match="list has been released"):
            start()
    assert live(worker) == {}


def with_an_ended_request(times=1):
    """A worker, its tracer, and the context of a request of one span that has been ended so often."""
    worker = TracedWorker(KONG)
    tracer = worker.provider.global_tracer
    ctx = worker.begin()
    tracer.start_span("before")
    for _ in range(times):
        worker.provider.end_request(ctx)
    return worker, tracer, ctx


def test_an_ended_context_shows_whom_its_list_is_lent_to_in_profile_kong():
    """The context keeps the list itself, which the next one to have none is given."""  # E1, P2
    worker, tracer, ctx = with_an_ended_request()
    apart = worker.provider.new("apart", namespace="APART")
    spans = [apart.start_span("lent")]
    assert tracer.get_spans() == spans
    spans.append(tracer.start_span("after"))
    assert apart.get_spans() == spans
    worker.provider.abandon_request(ctx)
    assert live(worker) == {}


def test_the_list_of_a_request_that_is_ended_twice_is_lent_to_two():
    """It is in the pool twice. The second holder counts from 1, and its spans take the places of the first's."""  # P10
    worker, tracer, _ = with_an_ended_request(times=2)
    first = worker.begin()
    tracer.start_span("lost")
    spans = [tracer.start_span("of the first")]
    second = worker.begin()
    assert [span.name for span in tracer.get_spans()] == ["lost", "of the first"]
    spans.insert(0, tracer.start_span("of the second"))
    assert tracer.get_spans() == spans
    for ended in (first, second, first):
        worker.provider.end_request(ended)
    assert (tracer.get_spans(), live(worker)) == ([], {})


def test_a_list_that_is_lent_to_two_namespaces_ends_with_the_default_one():
    """It was released twice; what its spans come to is in the balance once."""  # E2, P10
    worker, tracer, _ = with_an_ended_request(times=2)
    apart = worker.provider.new("apart", namespace="APART")
    with request_of(worker):
        tracer.start_span("hidden", attributes={"a": 1})
        apart.start_span("shown")
        assert [span.name for span in tracer.get_spans()] == ["shown"]
    assert (tracer.get_spans(), apart.get_spans(), live(worker)) == ([], [], {})


def test_the_end_of_a_request_is_that_of_the_one_its_list_is_lent_to():
    """Ended again, it takes the spans of another one back; that one's end finds the list released."""  # E1, P11
    worker = TracedWorker(KONG)
    tracer = worker.provider.global_tracer
    ended = worker.begin()
    tracer.start_span("before")
    worker.provider.end_request(ended)
    running = worker.begin()
    span = tracer.start_span("running", attributes={"a": 1})
    worker.provider.end_request(ended)
    assert span.name is None
    with pytest.raises(ReleasedSpanError, match="list has been released"):
        tracer.start_span("more")
    worker.provider.end_request(running)
    assert live(worker) == {}


def test_a_list_for_which_the_pool_has_no_room_stays_as_it_is():
    """A span that is started after the end of its request is listed there."""  # P5, P7
    worker = TracedWorker(KONG)
    worker.provider.storage.free_max = 0
    tracer = worker.provider.global_tracer
    ctx = worker.begin()
    spans = [tracer.start_span("before")]
    worker.provider.end_request(ctx)
    assert tracer.get_spans() == spans
    spans.append(tracer.start_span("after", attributes={"a": 1}))
    assert tracer.get_spans() == [spans[1], spans[1]]  # it was recycled
    worker.provider.end_request(ctx)
    assert live(worker) == {}


CALLS = {
    "begin": lambda worker, _: worker.begin(),
    "enter": lambda worker, ctx: worker.enter("access", ctx),
    "start": lambda worker, _: worker.provider.global_tracer.start_span("span", attributes={"a": 1}),
    "start with options": lambda worker, _: worker.provider.global_tracer.start_span("span", {"attributes": {"a": 1}}),
    "start apart": lambda worker, _: worker.provider.new("apart", namespace="APART").start_span("span"),
    "create": lambda worker, _: worker.provider.global_tracer.create_span(),
    "begin a list": lambda worker, _: worker.provider.global_tracer.init_spans(),
    "end": lambda worker, ctx: worker.provider.end_request(ctx),
    "end once more": lambda worker, ctx: worker.provider.end_request(ctx),
}


@given(steps=st.lists(st.tuples(st.sampled_from(list(CALLS)), st.integers(0, 7)), max_size=40))
def test_the_balance_holds_however_often_requests_are_ended(steps):
    """Of lists that are lent to two and spans that start after the end, nothing is live in the end."""  # E1, P10
    limits = pools.FREE_MAX, pools.RELEASES_MAX
    pools.FREE_MAX, pools.RELEASES_MAX = 3, 11
    try:
        worker = TracedWorker(KONG)
        contexts = [worker.begin()]
        for step, number in steps:
            with suppress(ReleasedSpanError):
                CALLS[step](worker, contexts[number % len(contexts)])
            if step == "begin":
                contexts.append(worker.provider.execution.ctx)
        for ctx in contexts:
            worker.provider.abandon_request(ctx)
        assert live(worker) == {}
    finally:
        pools.FREE_MAX, pools.RELEASES_MAX = limits


def test_spans_of_a_list_that_its_pool_refuses_are_released_all_the_same():
    """The ended request shows them, and they wait for their next use."""  # P4, P5, P7
    worker = TracedWorker(KONG)
    worker.provider.storage.free_max = 0
    ctx = worker.begin()
    worker.provider.global_tracer.start_span("a")
    worker.end(ctx)
    worker.enter("access", ctx)
    [shown] = worker.provider.global_tracer.get_spans()
    with pytest.raises(ReleasedSpanError):
        shown.set_attribute("leak", 1)
    worker.provider.end_request(ctx)
    assert live(worker) == {}


def test_an_ended_context_can_be_used_again_in_profile_safe():
    """It is as before the first span."""
    worker = TracedWorker(SAFE)
    ctx = worker.begin()
    tracer = worker.provider.global_tracer
    tracer.set_active_span(tracer.start_span("before"))
    worker.provider.end_request(ctx)
    assert tracer.active_span() is None
    assert tracer.start_span("after").parent is None
    worker.provider.end_request(ctx)
    assert live(worker) == {}


@pytest.mark.parametrize(("profile", "free", "discarded"), [(KONG, 1, 2), (SAFE, 3, 0)], ids=PROFILES)
def test_spans_that_kong_forgets_are_accounted_for(profile, free, discarded):
    """Those of other namespaces, and those that were never linked, are discarded in profile kong."""  # E2, P13
    worker = TracedWorker(profile)
    with request_of(worker):
        tracer = worker.provider.global_tracer
        tracer.start_span("mine")
        tracer.new("other", namespace="APART").start_span("apart")
        tracer.create_span(tracer)
    balance = worker.provider.balances()["KONG_SPAN"]
    assert (balance.free, balance.discarded, balance.live) == (free, discarded, 0)


@both_profiles
def test_an_odd_list_is_released_once_a_span(profile):
    """The no-op span, one listed twice, one released by hand and taken again: each counts once."""  # P11, P12
    worker = TracedWorker(profile)
    with request_of(worker):
        tracer = worker.provider.global_tracer
        tracer.start_span("first", attributes={"a": 1})
        twice = tracer.create_span(tracer)
        tracer.link_span(tracer, twice, "twice")
        tracer.link_span(tracer, twice, "twice", {"attributes": {"b": 2}})
        tracer.link_span(tracer, NOOP_SPAN, "noop")
        tracer.start_span("gone").release()
        tracer.start_span("last").add_event("event")
        ahead = tracer.create_span(tracer)
        ahead.release()
        del twice, ahead
    balance = worker.provider.balances()["KONG_SPAN"]
    assert (balance.fetched, balance.released + balance.discarded) == (5, 5)
    assert live(worker) == {}
    assert len({id(span) for span in worker.provider.spans.free}) == balance.free


@pytest.mark.parametrize("listed_again", ["taken again", "by hand"])
def test_a_span_that_is_listed_twice_gives_its_tables_back_once(listed_again):
    """It was released and taken again, or somebody has put it there himself."""  # P2, P12
    worker = TracedWorker(KONG)
    tables = [{"of": "twice"}, {"of": "between"}]
    with request_of(worker):
        tracer = worker.provider.global_tracer
        if listed_again == "taken again":
            tracer.start_span("released").release()
        tracer.start_span("twice", attributes=tables[0]).add_event("event")
        if listed_again == "by hand":
            tracer.get_spans().append(tracer.get_root_span())
        tracer.start_span("between", attributes=tables[1])
    assert live(worker) == {}
    with request_of(worker):
        for table in reversed(tables):
            span = worker.provider.global_tracer.start_span("next")
            span.set_attribute("of", "next")
            assert span.attributes is table


def test_tables_are_recycled_in_the_order_of_their_spans():
    """A span that is listed again gives its table back where it stands first."""  # P2, P6, T7
    worker = TracedWorker(KONG)
    tables = [{"of": "again"}, {"of": "between"}]
    with request_of(worker):
        tracer = worker.provider.global_tracer
        again = tracer.start_span("again")
        tracer.start_span("between", attributes=tables[1])
        tracer.link_span(tracer, again, "again", {"attributes": tables[0]})
    with request_of(worker):
        span = worker.provider.global_tracer.start_span("next")
        span.set_attribute("of", "next")
        assert span.attributes is tables[1]


def released_without_a_request(worker, tracer):
    """It was created where no request runs."""
    worker.provider.execution.enter(PHASES["timer"], None)
    tracer.create_span(tracer).release()


def linked_without_a_request(worker, tracer):
    """A list wants a request."""
    span = tracer.create_span(tracer)
    running = worker.provider.execution
    phase, ctx = running.phase, running.ctx
    running.enter(PHASES["timer"], None)
    with pytest.raises(ApiError, match="no request"):
        tracer.link_span(tracer, span, "late")
    running.enter(phase, ctx)


def linked_in_a_later_request(worker, tracer):
    """It was created where no request runs."""
    running = worker.provider.execution
    phase, ctx = running.phase, running.ctx
    running.enter(PHASES["timer"], None)
    span = tracer.create_span(tracer)
    running.enter(phase, ctx)
    tracer.link_span(tracer, span, "late", {"attributes": {"a": 1}})


def linked_by_no_tracer(worker, tracer):
    """Kong's function takes one that has a list."""
    for nobody in (None, worker.provider.noop_tracer):
        with pytest.raises(TypeError, match="needs a tracer"):
            tracer.link_span(nobody, tracer.create_span(tracer), "nobody's")


def released_after_its_request_was_given_up(worker, tracer):
    """Its handler did not know."""
    spans = [tracer.start_span("kept", attributes={"a": 1}), tracer.create_span(tracer)]
    spans[0].add_event("event")
    worker.provider.abandon_request(worker.provider.execution.ctx)
    for span in spans:
        span.release()


def released_after_its_list_was_replaced(_worker, tracer):
    """The new list does not have it."""
    span = tracer.start_span("kept", attributes={"a": 1})
    tracer.init_spans()
    span.set_attribute("b", 2)
    span.release()


def linked_into_the_list_that_replaced_its_own(_worker, tracer):
    """It is in a list again."""
    span = tracer.start_span("kept", attributes={"a": 1})
    tracer.init_spans()
    tracer.link_span(tracer, span, "again")


def released_twice_while_the_pool_is_full(worker, tracer):
    """The pool leaves it as it is, and in profile `kong` so does a second release."""
    worker.provider.spans.free_max = 0
    span = tracer.start_span("kept", attributes={"a": 1})
    span.release()
    if span.span_id is not None:
        span.release()


ODD_LIVES = (
    *(released_without_a_request, linked_without_a_request, linked_in_a_later_request, linked_by_no_tracer),
    *(released_after_its_request_was_given_up, released_after_its_list_was_replaced),
    *(linked_into_the_list_that_replaced_its_own, released_twice_while_the_pool_is_full),
)


@both_profiles
@pytest.mark.parametrize("lives", ODD_LIVES, ids=[lives.__name__ for lives in ODD_LIVES])
def test_a_span_is_in_the_balance_once_however_it_lives(lives, profile):
    """Nothing is live after its request, and nothing has been given back that was never out."""
    worker = TracedWorker(profile)
    with request_of(worker):
        lives(worker, worker.provider.global_tracer)
    assert live(worker) == {}


@both_profiles
@pytest.mark.parametrize("value", [False, 5, "text", (), [1], object()], ids=lambda value: type(value).__name__)
def test_whatever_is_written_into_a_field_a_request_ends(value, profile):
    """What is no table goes into no pool."""
    worker = TracedWorker(profile)
    with request_of(worker):
        for field in ("attributes", "events"):
            setattr(worker.provider.global_tracer.start_span(field), field, value)
        released = worker.provider.global_tracer.start_span("by hand")
        released.attributes = released.events = value
        released.release()
        del released
    assert live(worker) == {}
    assert {type(kept) for kept in worker.provider.attributes.free or ()} <= {dict}


@both_profiles
def test_a_copy_is_not_linked(profile):
    """It belongs to no request and to no pool."""
    worker = TracedWorker(profile)
    with request_of(worker):
        tracer = worker.provider.global_tracer
        span = tracer.start_span("own")
        for copied in (copy(span), deepcopy(span)):
            with pytest.raises(TypeError, match="not a copy"):
                tracer.link_span(tracer, copied, "copy")
        assert tracer.get_spans() == [span]
        del span, copied
    assert [type(span) for span in worker.provider.spans.free] == [Span]


@both_profiles
def test_a_span_that_another_request_has_linked_counts_there(profile):
    """The request that created it has made none."""
    worker = TracedWorker(profile)
    tracer = worker.provider.global_tracer
    creating = worker.begin()
    span = tracer.create_span(tracer)
    linking = worker.begin()
    tracer.link_span(tracer, span, "linked")
    assert worker.provider.made_in(linking) == (1, 0)
    worker.provider.end_request(linking)
    assert worker.provider.made_in(creating) == (0, 0)
    worker.provider.end_request(creating)
    assert live(worker) == {}


@both_profiles
@pytest.mark.parametrize("name", ["KONG_UNLINKED", "KONG_UNLISTED", "KONG_SPANS_LISTED_AGAIN"])
def test_a_namespace_has_a_name_of_its_own(name, profile):
    """Whatever it is called, nothing else in the context is."""
    worker = TracedWorker(profile)
    with request_of(worker):
        tracer = worker.provider.new("apart", namespace=name)
        tracer.start_span("listed")
        tracer.create_span(tracer)
        tracer.link_span(tracer, NOOP_SPAN, "noop")
    assert live(worker) == {}


def test_a_copy_of_an_ended_context_begins_anew_in_profile_safe():
    """It has a list of its own."""
    worker = TracedWorker()
    ctx = worker.begin()
    tracer = worker.provider.global_tracer
    tracer.start_span("first")
    copied = dict(ctx)
    worker.provider.end_request(ctx)
    worker.provider.execution.enter(PHASES["access"], copied)
    assert tracer.get_spans() == []
    tracer.start_span("second")
    assert [span.name for span in tracer.get_spans()] == ["second"]
    worker.provider.end_request(copied)
    assert live(worker) == {}


@both_profiles
def test_a_request_whose_log_phase_failed_is_given_up(profile):
    """Nothing is recycled, and nothing stays in the balance."""  # E4, H25
    worker = TracedWorker(profile)
    ctx = worker.begin()
    tracer = worker.provider.global_tracer
    tracer.start_span("root", attributes={"a": 1}).add_event("event")
    tracer.create_span(tracer)
    tracer.new("other", namespace="APART").start_span("apart")
    worker.provider.abandon_request(ctx)
    balance = worker.provider.balances()["KONG_SPAN"]
    assert (balance.fetched, balance.discarded, balance.free) == (3, 3, 0)
    assert live(worker) == {}


@both_profiles
def test_pools_stay_small_however_many_requests_there_are(profile, monkeypatch):
    """Whatever is recycled, thrown away or held, a worker keeps no more than its pools' limits."""  # P4, P5
    monkeypatch.setattr(pools, "RELEASES_MAX", 1_000)
    worker = TracedWorker(profile)
    held = []
    sizes = set()
    for number in range(2_000):
        with request_of(worker):
            tracer = worker.provider.global_tracer
            spans = [tracer.start_span("work", attributes={"n": number}) for _ in range(number % 7)]
            held = [*spans[:1], *held[:3]]
            del spans
        sizes |= {balance.free for balance in worker.provider.balances().values()}
        assert live(worker) == {}
    assert max(sizes) <= pools.FREE_MAX
    assert all(
        balance.fetched == balance.released + balance.discarded for balance in worker.provider.balances().values()
    )


@both_profiles
def test_a_large_request_fills_the_pool_and_no_more(profile):
    """What finds no room is discarded; in profile kong it keeps its content."""  # P5, P7
    worker = TracedWorker(profile)
    names = [str(number) for number in range(pools.FREE_MAX + 50)]
    with request_of(worker):
        last = [worker.provider.global_tracer.start_span(name) for name in names][-1]
    balance = worker.provider.balances()["KONG_SPAN"]
    assert balance.free <= pools.FREE_MAX
    assert balance.live == 0
    assert last.name == (names[-1] if profile is KONG else None)
