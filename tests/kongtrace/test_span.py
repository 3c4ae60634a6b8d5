"""A span is filled, finished and released; every call that Kong refuses is refused in Kong's words."""

import copy

import pytest

from kongtrace import KONG, NOOP_SPAN, PROFILES, SAFE, ApiError, Event, ReleasedSpanError, Span, otlp
from kongtrace.testing import EPOCH_NS, TracedWorker

both_profiles = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)


@pytest.fixture
def worker():
    worker = TracedWorker()
    worker.begin()
    return worker


@pytest.fixture
def tracer(worker):
    return worker.provider.global_tracer


@pytest.fixture
def span(tracer):
    return tracer.start_span("work")


def test_finish_stamps_the_time(worker, span):
    """Without an argument a span ends now."""  # S9
    worker.clock.advance(500)
    span.finish()
    assert span.end_time_ns == EPOCH_NS + 1_500


@pytest.mark.parametrize("end", [EPOCH_NS, EPOCH_NS + 1, EPOCH_NS + 0.5])
def test_finish_takes_an_end_that_is_not_before_the_start(span, end):
    """Equal to the start is valid, and so is any number."""  # S9
    span.finish(end)
    assert span.end_time_ns == end


def test_an_end_before_the_start_leaves_the_span_open(worker, tracer, span):
    """It is logged, not raised; the span stays active, and can still be finished."""  # S9, C5
    tracer.set_active_span(span)
    span.finish(EPOCH_NS - 3)
    assert span.end_time_ns is None
    assert tracer.active_span() is span
    assert worker.logged == [("error", "invalid span duration: -3 for span: work")]
    span.finish()
    assert span.end_time_ns is not None


@pytest.mark.parametrize(
    ("name", "text"), [(b"caf\xc3\xa9", "café"), (b"\xff", "\udcff"), (5, "5"), (None, "nil")], ids=repr
)
def test_the_log_names_a_span_whatever_its_name_is(worker, tracer, name, text):
    """Linking takes any name; bytes that are not UTF-8 survive as in headers."""  # S9
    span = tracer.link_span(tracer, tracer.create_span(tracer), name)
    span.finish(span.start_time_ns - 1)
    assert worker.logged == [("error", f"invalid span duration: -1 for span: {text}")]


@pytest.mark.parametrize("end", ["soon", True, [1]])
def test_an_end_that_is_no_number_is_refused(span, end):
    """The span stays open."""  # S9
    with pytest.raises(ApiError, match=r"^invalid span end time$"):
        span.finish(end)
    assert span.end_time_ns is None


def test_finishing_again_changes_nothing(span):
    """The first end stands; nothing is checked any more."""  # S9
    span.finish()
    end = span.end_time_ns
    span.finish("soon")
    assert span.end_time_ns == end


def test_finish_makes_the_parent_active_again(tracer, span):
    """When the active span ends, its parent is the active one, and flagged so."""  # S9
    tracer.set_active_span(span)
    child = tracer.start_span("child")
    tracer.set_active_span(child)
    child.finish()
    assert tracer.active_span() is span
    assert (span.active, child.active) == (True, None)
    span.finish()
    assert tracer.active_span() is None


def test_a_span_that_is_not_the_active_one_leaves_the_active_one_alone(tracer, span):
    """A parent that ends before its active child clears nothing, and keeps its flag."""  # S10
    tracer.set_active_span(span)
    child = tracer.start_span("child")
    tracer.set_active_span(child)
    span.finish()
    assert tracer.active_span() is child
    assert span.active is True


def test_finish_in_a_phase_without_spans_restores_nothing(worker, tracer, span):
    """There the active span reads as none."""  # S10, T8
    tracer.set_active_span(span)
    ctx = worker.provider.execution.ctx
    worker.enter("balancer", ctx)
    span.finish()
    worker.enter("access", ctx)
    assert span.end_time_ns is not None
    assert tracer.active_span() is span


@pytest.mark.parametrize("value", ["x", b"x", 1, 1.5, True, False, [1], {"a": 1}, (1, 2)], ids=repr)
def test_values_that_an_exporter_can_write_are_stored(worker, span, value):
    """Strings, numbers, booleans and tables are taken without a word."""  # S11
    span.set_attribute("key", value)
    span.set_attribute("key", value)
    assert span.attributes == {"key": value}
    assert worker.logged == []


def test_none_removes_an_attribute(span):
    """Removing from a span that has no attributes gives it an empty mapping."""  # S11
    span.set_attribute("gone", None)
    assert span.attributes == {}
    span.set_attribute("key", 1)
    span.set_attribute("key", None)
    assert span.attributes == {}


def test_a_value_of_another_type_is_logged_and_stored(worker, span):
    """The caller is not interrupted."""  # S11, H42
    span.set_attribute("call", print)
    span.set_attribute("set", {1})
    assert span.attributes == {"call": print, "set": {1}}
    assert worker.logged == [
        ("error", "invalid span attribute value type: function"),
        ("error", "invalid span attribute value type: set"),
    ]


@both_profiles
@pytest.mark.parametrize("kind", ["span", "another span", "noop span", "tracer", "noop tracer", "in a list"])
def test_a_span_or_a_tracer_is_a_value_as_a_table_is(kind, profile):
    """Kong's are tables: nothing is logged; it is exported without a value."""  # S11, L3
    worker = TracedWorker(profile)
    tracer = worker.provider.global_tracer
    with worker.request("access"):
        span = tracer.start_span("work")
        value = {
            "span": span,
            "another span": tracer.start_span("other"),
            "noop span": NOOP_SPAN,
            "tracer": tracer,
            "noop tracer": worker.provider.noop_tracer,
            "in a list": [span, tracer],
        }[kind]
        span.set_attribute("key", value)
        assert span.attributes == {"key": value}
        for rules in (otlp.KONG, otlp.SAFE):
            assert b"key" in otlp.Encoder(rules).encode_span(span)
    assert worker.logged == []
    empty = {"array_value": {"values": [{}, {}]}} if kind == "in a list" else {}
    assert worker.exported[0]["attributes"] == [{"key": "key", "value": empty}]


@pytest.mark.parametrize("key", [None, 1, True, ("a",), {}], ids=repr)
def test_a_key_that_is_no_string_is_refused(span, key):
    """The span is as before."""  # S11
    with pytest.raises(ApiError, match=r"^invalid key$"):
        span.set_attribute(key, 1)
    assert span.attributes is None


def test_several_attributes_are_set_in_one_call(span):
    """The documentation has a function for it that Kong has not."""  # C3
    span.set_attributes({"a": 1, "b": "two"})
    assert span.attributes == {"a": 1, "b": "two"}


def test_events_are_kept_in_order(span):
    """Each has its time, which is now when none was given, and its attributes by reference."""  # S13
    attributes = {"k": 1}
    span.add_event("one")
    span.add_event("two", attributes, 7)
    assert span.events == [Event("one", EPOCH_NS + 1_000, None), Event("two", 7, attributes)]
    assert span.events[1].attributes is attributes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "invalid name"), ((5,), "invalid name"), (("e", 5), "invalid attribute"), (("e", "x"), "invalid attribute")],
)
def test_an_event_with_a_bad_argument_is_refused(span, arguments, message):
    """The span has no event then."""  # S13
    with pytest.raises(ApiError, match=f"^{message}$"):
        span.add_event(*arguments)
    assert span.events is None


@pytest.mark.parametrize(
    ("error", "text"),
    [
        *(("boom", "boom"), (b"boom", b"boom"), (None, "nil"), (True, "true"), (ValueError("bad"), "bad")),
        *((5, "5"), (1e15, "1e+15"), (-0.1, "-0.1"), (float("-inf"), "-inf"), (float("nan"), "nan")),
        # Halfway between two texts of 14 digits.
        *((687878552137785, "6.8787855213779e+14"), (-556279938824185, "-5.5627993882419e+14")),
    ],
    ids=repr,
)
def test_an_error_becomes_an_exception_event(span, error, text):
    """Its text is what Lua would make of it; the status is left alone."""  # S14, C17
    span.record_error(error)
    (event,) = span.events
    assert (event.name, event.attributes) == ("exception", {"exception.message": text})
    assert span.status is None


@pytest.mark.parametrize("status", [0, 1, 2, 7, 1.5])
def test_any_number_is_a_status(span, status):
    """No event is added."""  # S15, C14
    span.set_status(status)
    assert (span.status, span.events) == (status, None)


@pytest.mark.parametrize("status", ["2", None, True, {}], ids=repr)
def test_a_status_that_is_no_number_is_refused(span, status):
    """The status stays unset."""  # S15
    with pytest.raises(ApiError, match=r"^invalid status$"):
        span.set_status(status)
    assert span.status is None


def test_a_finished_span_can_still_be_changed(span):
    """What is written after the end is exported."""  # S6
    span.finish()
    span.set_attribute("late", 1)
    span.add_event("late")
    span.set_status(2)
    assert (span.attributes, len(span.events), span.status) == ({"late": 1}, 1, 2)


@both_profiles
def test_release_empties_a_span_and_gives_everything_back(profile):
    """Every field is None, and nothing of it is out."""  # S16, P6
    worker = TracedWorker(profile)
    with worker.request():
        span = worker.provider.global_tracer.start_span("work")
        span.set_attribute("key", 1)
        span.add_event("event")
        span.set_status(1)
        span.release()
        fields = [name for name in Span.__slots__ if not name.startswith("_")]
        assert {name: getattr(span, name) for name in fields} == dict.fromkeys(fields)
        assert not span.linked
        balances = worker.provider.balances()
        assert [balances[tag].live for tag in ("KONG_SPAN", "KONG_SPAN_ATTRIBUTES", "KONG_SPAN_EVENTS")] == [0, 0, 0]
        assert repr(span) == "<Span released>"


CALLS = {
    "finish": lambda span: span.finish(),
    "finish at": lambda span: span.finish(5),
    "set_attribute": lambda span: span.set_attribute("k", 1),
    "set_attribute None": lambda span: span.set_attribute("k", None),
    "set_attribute bad": lambda span: span.set_attribute(5, 1),
    "add_event": lambda span: span.add_event("e"),
    "add_event bad": lambda span: span.add_event("e", 5),
    "record_error": lambda span: span.record_error("e"),
    "set_status": lambda span: span.set_status(1),
    "set_status bad": lambda span: span.set_status("1"),
    "release": lambda span: span.release(),
    "each_baggage_item": lambda span: span.each_baggage_item(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_on_a_released_span_raises_in_profile_kong(call):
    """The real span has lost its methods."""  # P11, H5, H9
    worker = TracedWorker(KONG)
    with worker.request():
        span = worker.provider.global_tracer.start_span("work")
        span.release()
        with pytest.raises(ReleasedSpanError, match=r"\(\) was called on a span that has been released$"):
            call(span)
        assert span.attributes is span.events is span.end_time_ns is span.status is None


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_on_a_released_span_is_logged_in_profile_safe(call):
    """It has no effect."""  # H5, H9
    worker = TracedWorker(SAFE)
    with worker.request():
        span = worker.provider.global_tracer.start_span("work")
        span.release()
        call(span)
        assert span.attributes is span.events is span.end_time_ns is span.status is None
    ((level, message),) = worker.logged
    assert level == "error"
    assert message.endswith("() was called on a span that has been released")


def test_a_copy_keeps_its_fields_when_the_span_is_released(span):
    """A shallow copy is enough for the fields; tables need one of their own."""  # D22
    span.set_attribute("key", 1)
    copied = copy.copy(span)
    copied.attributes = dict(span.attributes)
    ids = span.trace_id, span.span_id
    span.release()
    assert (copied.name, copied.trace_id, copied.span_id, copied.attributes) == ("work", *ids, {"key": 1})


@both_profiles
@pytest.mark.parametrize("attributes", [None, {"key": 1}])
def test_a_copy_takes_nothing_from_the_pools_and_gives_nothing_back(attributes, profile):
    """Its memory is no pool's, and its tables are the span's or its own."""  # C12
    worker = TracedWorker(profile)
    worker.begin()
    span = worker.provider.global_tracer.start_span("work", attributes=attributes)
    before = worker.provider.balances()
    copied = copy.copy(span)
    copied.set_attribute("key", 2)
    copied.add_event("event")
    copied.release()
    assert worker.provider.balances() == before
    assert copied.attributes == {"key": 2}
    assert span.attributes == (attributes and {"key": 2})
    assert (span.events, [event.name for event in copied.events]) == (None, ["event"])


@both_profiles
def test_a_deep_copy_can_be_kept(profile):
    """It has attributes and events of its own, and refers to nothing of the request."""  # C12, E3
    worker = TracedWorker(profile)
    tracer = worker.provider.global_tracer
    with worker.request("access"):
        root = tracer.start_span("root")
        tracer.set_active_span(root)
        span = tracer.start_span("work", attributes={"list": [1, 2]})
        span.add_event("seen", {"n": 1}, 5)
        span.finish()
        copied = copy.deepcopy(span)
        expected = (span.name, span.trace_id, span.span_id, root.span_id, span.end_time_ns)
        span.attributes["list"].append(3)
        span.set_attribute("late", 1)
        span.add_event("late")
        root.finish()
        del span, root
    with worker.request("access"):
        tracer.start_span("other", attributes={"other": 1}).finish()
    assert (copied.name, copied.trace_id, copied.span_id, copied.parent_id, copied.end_time_ns) == expected
    assert copied.attributes == {"list": [1, 2]}
    assert copied.events == [Event("seen", 5, {"n": 1})]
    assert type(copied.events) is list
    assert copied.parent is copied.tracer is None


def test_a_span_tells_its_name_and_ids(span):
    """The representation is for logs."""
    assert repr(span) == f"<Span 'work' {span.trace_id.hex()}/{span.span_id.hex()}>"


def test_repr_shows_ids_that_were_written_as_text(span):
    """An exporter writes them into its copy in hexadecimal digits."""  # D22
    copied = copy.copy(span)
    copied.trace_id, copied.span_id = copied.trace_id.hex(), copied.span_id.hex()
    assert repr(copied) == repr(span)


class Unshowable:
    """What has no representation."""

    def __repr__(self):
        raise ValueError


@pytest.mark.parametrize("field", ["name", "trace_id", "span_id"])
@pytest.mark.parametrize("value", [None, 5, b"x", [[[[[[[[1]]]]]]]], {"a": 1}, Unshowable(), "x" * 100_000])
def test_repr_never_raises(span, field, value):
    """Nor is it long, whatever has been written into a field."""
    copied = copy.copy(span)
    setattr(copied, field, value)
    assert len(repr(copied)) < 300


def test_baggage_is_a_placeholder(span):
    """The callable does nothing."""  # D19
    assert span.each_baggage_item()() is None


def test_the_noop_span_takes_everything_and_keeps_nothing():
    """It has no ids and no name, is not recording, and swallows writes."""  # S17, C9
    NOOP_SPAN.finish("soon")
    NOOP_SPAN.set_attribute(5, print)
    NOOP_SPAN.set_attributes(None)
    NOOP_SPAN.add_event(5, 5)
    NOOP_SPAN.record_error(None)
    NOOP_SPAN.set_status("bad")
    NOOP_SPAN.release()
    NOOP_SPAN.name = "name"
    NOOP_SPAN.anything = 1
    assert NOOP_SPAN.each_baggage_item()() is None
    assert NOOP_SPAN.is_recording is False
    assert {getattr(NOOP_SPAN, name) for name in Span.__slots__ if not name.startswith("_")} == {None}
    assert not hasattr(NOOP_SPAN, "anything")


def test_the_noop_span_has_every_method_of_the_real_one():
    """What works on a span works on the noop span."""
    public = {name for name in dir(Span) if not name.startswith("_")}
    assert public <= set(dir(NOOP_SPAN))
