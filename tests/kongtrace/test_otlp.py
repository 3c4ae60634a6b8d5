"""Spans and log records as OTLP (kong-semantics section 12), read back with the classes of opentelemetry-proto."""

import itertools
import math
import random
from collections import UserString
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ScopeLogs
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status

from kongtrace.errors import ApiError
from kongtrace.event import Event
from kongtrace.otlp import (
    KONG,
    MEMO_ENTRIES_MAX,
    SAFE,
    Encoder,
    Rules,
    encode_log,
    encode_logs,
    encode_traces,
    fit_id,
)
from kongtrace.phase import PHASES
from kongtrace.provider import TracerProvider
from kongtrace.span import NOOP_SPAN

TRACE_ID = bytes(range(16))
SPAN_ID = bytes(range(8))
PARENT_ID = bytes(range(8, 16))
NODE = {"instance_id": "node-1", "version": "3.9.0"}


def a_span(**fields: Any) -> SimpleNamespace:
    usual = {
        "trace_id": TRACE_ID,
        "span_id": SPAN_ID,
        "parent_id": PARENT_ID,
        "name": "kong.router",
        "kind": 1,
        "start_time_ns": 1_700_000_000_000_000_000,
        "end_time_ns": 1_700_000_000_000_000_256,
        "attributes": None,
        "events": None,
        "status": None,
    }
    return SimpleNamespace(**usual | fields)


def decoded(encoded: bytes) -> Span:
    (span,) = ScopeSpans.FromString(encoded).spans
    return span


def written(rules: Rules = KONG, **fields: Any) -> Span:
    return decoded(Encoder(rules).encode_span(a_span(**fields)))


def value_of(value: object, rules: Rules, key: Any = "k") -> AnyValue:
    (attribute,) = written(rules, attributes={key: value}).attributes
    assert attribute.key == key
    return attribute.value


def test_span_is_written_with_every_field():
    """Ids, name, kind, times, attributes, events and status arrive as they were."""  # L2-L4
    span = written(
        kind=3,
        attributes={"net.peer.name": "upstream", "http.status_code": 502},
        events=[Event("exception", 1_700_000_000_000_000_100, {"exception.message": "refused"}), Event("e", 5, None)],
        status=2,
    )
    assert (span.trace_id, span.span_id, span.parent_span_id) == (TRACE_ID, SPAN_ID, PARENT_ID)
    assert (span.name, span.kind, span.status.code) == ("kong.router", Span.SPAN_KIND_CLIENT, Status.STATUS_CODE_ERROR)
    assert span.end_time_unix_nano - span.start_time_unix_nano == 256
    assert {a.key: a.value for a in span.attributes} == {
        "net.peer.name": AnyValue(string_value="upstream"),
        "http.status_code": AnyValue(int_value=502),
    }
    assert [(e.name, e.time_unix_nano) for e in span.events] == [("exception", 1_700_000_000_000_000_100), ("e", 5)]
    assert span.events[0].attributes[0].value.string_value == "refused"


def test_raw_trace_id_takes_the_place_of_the_span_s_own():
    """The trace id that is handed in is written, fitted like any other."""  # O13, O17
    encoder = Encoder(KONG)
    raw = bytes(range(16, 32))
    for trace_id, expected in [(raw, raw), (b"\1\2", bytes(14) + b"\1\2"), (b"", bytes(16))]:
        assert decoded(encoder.encode_span(a_span(), trace_id)).trace_id == expected
        assert encoder.transform_span(a_span(), trace_id)["trace_id"] == expected


@pytest.mark.parametrize(
    ("identifier", "fitted"), [(b"", "0000"), (b"\1", "0001"), (b"\1\2", "0102"), (b"123", "3233")]
)
def test_id_is_fitted_from_the_left(identifier: bytes, fitted: str):
    """A shorter id gets zeros in front, a longer one keeps its end."""  # X1
    assert fit_id(identifier, 2).hex() == fitted


def test_unfinished_root_has_neither_end_nor_parent():
    """An end and a parent that are missing are not written."""  # L2
    span = written(end_time_ns=None, parent_id=None)
    assert (span.end_time_unix_nano, span.parent_span_id) == (0, b"")
    assert span.start_time_unix_nano == 1_700_000_000_000_000_000


@pytest.mark.parametrize("rules", [KONG, SAFE])
@pytest.mark.parametrize("time_ns", [1.7e18, 2.75, 2**63 - 1, 2.0**63, 0, -1])
def test_time_may_be_any_number_of_64_bits(rules: Rules, time_ns: float):
    """A fraction of a ns is cut off, as lua-protobuf does, which takes 2**63 too."""
    span = written(rules, start_time_ns=time_ns)
    assert span.start_time_unix_nano == int(time_ns) % 2**64


@pytest.mark.parametrize("time_ns", [2**63 + 1, 1e300, math.nan, -math.inf])
def test_time_beyond_64_bits_is_refused(time_ns: float):
    """What has no integer representation raises, in Kong's words."""
    with pytest.raises(ApiError, match=r"^number has no integer representation$"):
        Encoder(KONG).encode_span(a_span(end_time_ns=time_ns))


@pytest.mark.parametrize("kind", [None, False, 0, 1, 5, 127, 300])
def test_kind_is_written_whatever_its_number(kind: int | None):
    """No kind is kind 0, and so is false."""  # L2
    assert written(kind=kind).kind == (kind or 0)


@pytest.mark.parametrize("status", [None, 3, -1, 1.5])
def test_other_statuses_are_no_status(status: float | None):
    """Only 0, 1 and 2 give a status."""  # L4
    assert not written(status=status).HasField("status")
    assert written(status=0).HasField("status")


@pytest.mark.parametrize(
    ("value", "kong", "safe"),
    [
        ("", AnyValue(string_value=""), AnyValue(string_value="")),
        ("text", AnyValue(string_value="text"), AnyValue(string_value="text")),
        ("é" * 300, AnyValue(string_value="é" * 300), AnyValue(string_value="é" * 300)),
        ("lone \ud800", AnyValue(string_value="lone ?"), AnyValue(string_value="lone ?")),
        (True, AnyValue(bool_value=True), AnyValue(bool_value=True)),
        (False, AnyValue(bool_value=False), AnyValue(bool_value=False)),
        (0, AnyValue(double_value=0), AnyValue(int_value=0)),
        (-7, AnyValue(double_value=-7), AnyValue(int_value=-7)),
        (1.5, AnyValue(double_value=1.5), AnyValue(double_value=1.5)),
        (2**53 + 1, AnyValue(double_value=2**53), AnyValue(int_value=2**53 + 1)),
        (2**63, AnyValue(double_value=2**63), AnyValue(double_value=2**63)),
        (b"text", AnyValue(string_value="text"), AnyValue(string_value="text")),
        (object(), AnyValue(), AnyValue()),
        (print, AnyValue(), AnyValue()),
    ],
)
def test_value_is_written_by_its_type(value: object, kong: AnyValue, safe: AnyValue):
    """Lua has one type of number, and it is double; OTLP has two."""  # L3
    assert (value_of(value, KONG), value_of(value, SAFE)) == (kong, safe)


def test_number_beyond_every_double_is_infinite():
    """As the literal would be in Lua; not a number is a number too."""  # L3
    for rules in (KONG, SAFE):
        assert value_of(10**400, rules) == value_of(math.inf, rules) == AnyValue(double_value=math.inf)
        assert value_of(-(10**400), rules) == AnyValue(double_value=-math.inf)
        assert math.isnan(value_of(math.nan, rules).double_value)


def test_subclass_is_written_as_what_it_is_a_kind_of():
    """A text type and an integer type of one's own are a text and an integer."""

    class Text(str):
        __slots__ = ()

    class Number(int):
        __slots__ = ()

    assert value_of(Text("x"), SAFE) == AnyValue(string_value="x")
    assert value_of(Number(5), SAFE) == AnyValue(int_value=5)
    assert value_of(UserString("no str"), SAFE) == AnyValue()


def test_one_and_true_do_not_share_a_memo():
    """Values that are equal in Python but not in OTLP keep their types, whichever comes first."""
    for rules, one in [(KONG, AnyValue(double_value=1)), (SAFE, AnyValue(int_value=1))]:
        encoder = Encoder(rules)
        for value, expected in [(1, one), (True, AnyValue(bool_value=True)), (1.0, AnyValue(double_value=1))] * 2:
            (attribute,) = decoded(encoder.encode_span(a_span(attributes={"k": value}))).attributes
            assert expected == attribute.value


@pytest.mark.parametrize("value", [7, "text"])
def test_keys_that_are_equal_in_python_alone_do_not_share_a_memo(value: object):
    """Profile ``safe`` makes a key text, and 1, True and 1.0 are three texts, whichever comes first."""
    encoder = Encoder(SAFE)
    for key in [1, True, 1.0, "1"] * 2:
        (attribute,) = decoded(encoder.encode_span(a_span(attributes={key: value}))).attributes
        assert attribute.key == str(key)


def test_spans_of_one_request_may_share_ids_of_unusual_length():
    """Each gets them fitted, not only the first, and those after them get their own."""  # X1
    shared = {"trace_id": b"\1" * 5, "parent_id": b"\2" * 9}
    spans = [a_span(), a_span(**shared), a_span(**shared), a_span()]
    together = Encoder(KONG).encode_spans(spans)
    assert together == [Encoder(KONG).encode_span(span) for span in spans]
    assert [decoded(span).trace_id for span in together[1:3]] == [bytes(11) + b"\1" * 5] * 2


def test_integer_key_is_an_integer_at_any_depth_of_maps():
    """The rule for ``http.status_code`` holds in a map and for events, not in a list."""  # L3
    plain = Encoder(KONG).transform_span(
        a_span(
            attributes={"http.status_code": "404", "m": {"http.status_code": 200.0}, "l": [200]},
            events=[("e", 1, {"http.status_code": 500})],
        )
    )
    assert plain["attributes"] == [
        {"key": "http.status_code", "value": {"int_value": "404"}},
        {
            "key": "m",
            "value": {"kvlist_value": {"values": [{"key": "http.status_code", "value": {"int_value": 200.0}}]}},
        },
        {"key": "l", "value": {"array_value": {"values": [{"double_value": 200}]}}},
    ]
    assert plain["events"][0]["attributes"] == [{"key": "http.status_code", "value": {"int_value": 500}}]
    assert written(attributes={"http.status_code": "404"}).attributes[0].value == AnyValue(int_value=404)
    assert written(attributes={"http.status_code": ""}).attributes[0].value == AnyValue(int_value=0)


OTHER_SCRIPTS = ["\N{ARABIC-INDIC DIGIT TWO}", "\N{NO-BREAK SPACE}2"]


@pytest.mark.parametrize("value", ["teapot", "1_0", *OTHER_SCRIPTS, True, print, 1e100])
def test_integer_key_that_is_no_integer_is_refused_by_kong_alone(value: object):
    """Kong fails the batch, so the span is refused; profile ``safe`` writes what it is."""  # L3
    with pytest.raises(ApiError):
        written(attributes={"http.status_code": value})
    assert value_of(value, SAFE, "http.status_code") == value_of(value, SAFE)


def test_lua_s_tables_are_arrays_when_their_keys_count():
    """An empty table and one with the keys 1 to n are arrays to Lua; in profile ``safe`` they stay mappings."""  # L3
    for table in ({}, {1: "a", 2: "b"}, {2: "b", 1: "a"}):
        assert [v.string_value for v in value_of(table, KONG).array_value.values] == [*"ab"][: len(table)]
        assert [v.key for v in value_of(table, SAFE).kvlist_value.values] == list(map(str, table))
        assert value_of(table, SAFE).HasField("kvlist_value")
    assert value_of({0: "a", 1: "b"}, SAFE).HasField("kvlist_value")
    with pytest.raises(ApiError, match="text expected, not True"):
        value_of({True: "a"}, KONG)
    assert value_of(("a", ("b",)), KONG) == value_of(["a", ["b"]], SAFE)


def test_none_is_nil():
    """An entry that is None is not there; in a list it keeps its place, without a value."""
    for rules in (KONG, SAFE):
        assert [a.key for a in written(rules, attributes={"a": None, "b": 1, "c": None}).attributes] == ["b"]
        assert not value_of({"a": None, "b": None}, rules).kvlist_value.values
        assert [v.string_value for v in value_of(["x", None, "y"], rules).array_value.values] == ["x", "", "y"]


def test_bytes_that_are_not_utf_8():
    """Kong writes them as a string, which a strict reader refuses; profile ``safe`` as bytes, and mends names."""
    assert Encoder(KONG).encode_span(a_span(attributes={"k": b"\xff\x00"})).endswith(b"\x12\x04\x0a\x02\xff\x00")
    assert value_of(b"\xff\x00", SAFE) == AnyValue(bytes_value=b"\xff\x00")
    span = written(SAFE, name=b"\xff", attributes={b"\xffk": "v"}, events=[(b"\xff", 1, None)])
    assert (span.name, span.attributes[0].key, span.events[0].name) == ("\ufffd", "\ufffdk", "\ufffd")


def test_key_that_is_no_text():
    """Kong cannot send it; profile ``safe`` makes it text."""
    for attributes in ({404: "x"}, {404: 5}, ["x"]):
        with pytest.raises(ApiError, match=r"^text expected, not "):
            written(attributes=attributes)
    encoder = Encoder(SAFE)
    for key in (1, True, 1.0, 404):  # the first three are one key of a dict
        for value in ("x", 5):
            (attribute,) = decoded(encoder.encode_span(a_span(attributes={key: value}))).attributes
            assert attribute.key == str(key)


@pytest.mark.parametrize("attributes", ["text", True, 5])
def test_attributes_that_are_no_table_are_refused(attributes: object):
    """Kong's words, for a span, its events and a log record."""
    for call in (
        lambda encoder: encoder.encode_span(a_span(attributes=attributes)),
        lambda encoder: encoder.encode_span(a_span(events=[("e", 1, attributes)])),
        lambda encoder: encoder.transform_span(a_span(attributes=attributes)),
        lambda encoder: encoder.prepare_logs([{"attributes": attributes}], TRACE_ID, 1),
        lambda encoder: encoder.prepare_logs([{}], TRACE_ID, 1),
    ):
        with pytest.raises(ApiError, match=r"^invalid attributes$"):
            call(Encoder(KONG))
    assert written(attributes=MappingProxyType({"a": "b"})).attributes[0].key == "a"


def test_span_without_a_trace_id_is_refused():
    """The noop span, which has no ids, cannot be encoded by mistake."""
    for span in (NOOP_SPAN, a_span(trace_id=None)):
        with pytest.raises(ApiError, match=r"^span without a trace id$"):
            Encoder(KONG).encode_span(span)


@pytest.mark.parametrize("field", ["trace_id", "parent_id"])
@pytest.mark.parametrize("identifier", ["0af7651916cd43dd8448eb211c80319c", "0af7651916cd43dd", 7, [1]])
def test_span_whose_id_is_not_bytes_is_refused_and_the_others_are_not(field, identifier):
    """Nothing looks at an id that is given, before it is written."""  # S2
    refused = []
    spans = [a_span(), a_span(**{field: identifier}), a_span()]
    assert len(Encoder(SAFE).encode_spans(spans, None, refused)) == 2
    assert [str(error) for error in refused] == [f"an id must be bytes, not {type(identifier).__name__}"]


def test_span_with_an_attribute_that_contains_itself_is_refused_and_the_others_are_not():
    """So is one that is nested deeper than it can be written."""
    cyclic, deep = [], []
    cyclic.append(cyclic)
    for _ in range(2_000):
        deep = [deep]
    refused = []
    spans = [a_span(), *(a_span(attributes={"value": value}) for value in (cyclic, {"x": cyclic}, deep)), a_span()]
    assert len(Encoder(SAFE).encode_spans(spans, None, refused)) == 2
    assert {str(error) for error in refused} == {"a value nested too deeply, or within itself"}


def within_itself() -> list[Any]:
    value: list[Any] = []
    value.append({"value": value})
    return value


class Nameless:
    """A key that cannot be made text."""

    def __str__(self) -> str:
        raise LookupError("nameless")


WRITERS = {
    "encode_span": lambda encoder, table: encoder.encode_span(a_span(attributes=table)),
    "event": lambda encoder, table: encoder.encode_span(a_span(events=[("e", 1, table)])),
    "transform_span": lambda encoder, table: encoder.transform_span(a_span(attributes=table)),
    "encode_resource": lambda encoder, table: encoder.encode_resource(table, **NODE),
    "prepare_logs": lambda encoder, table: encoder.prepare_logs([{"attributes": table}], TRACE_ID, 1),
    "body": lambda encoder, table: encoder.prepare_logs([{"body": table, "attributes": {}}], TRACE_ID, 1),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(
    ("table", "error"),
    [
        ({"value": within_itself()}, r"^a value nested too deeply, or within itself$"),
        ({"value": {Nameless(): 1}}, r"^a field that cannot be written: nameless$"),
    ],
    ids=["within itself", "nameless"],
)
def test_whatever_cannot_be_written_is_an_api_error(write, table, error):
    """Whoever calls the encoder has one error to expect, whatever a program has put into its tables."""
    with pytest.raises(ApiError, match=error):
        write(Encoder(SAFE), table)


@pytest.mark.parametrize("fields", [{"events": [1]}, {"status": []}, {"parent_id": 7}, {"events": [(1, 2)]}], ids=repr)
def test_a_span_with_an_odd_field_has_no_plain_form(fields):
    """What an exporter of another format calls refuses as the encoder does."""
    with pytest.raises(ApiError):
        Encoder(SAFE).transform_span(a_span(**fields))


@pytest.mark.parametrize("fields", [{"trace_id": 7}, {"flags": "x"}, {"span_id": "text"}, {"attributes": 5}], ids=repr)
def test_a_log_record_with_an_odd_field_is_refused(fields):
    """A record that somebody else has made is written, or refused."""
    with pytest.raises(ApiError):
        encode_log({"body": {}, "attributes": []} | fields)


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 900, 1023, 1024, 16_383, 16_384, 100_000])
def test_span_may_be_of_any_length(size: int):
    """Lengths of one, two and three bytes are written alike."""
    span = written(name="n" * size, attributes={"k": "v" * size}, parent_id=None)
    assert (span.name, span.attributes[0].value.string_value) == ("n" * size, "v" * size)


def test_memos_are_bounded():
    """Names, keys, lengths and numbers without end leave no more than the limit behind."""
    encoder = Encoder(KONG)
    for i in range(3 * MEMO_ENTRIES_MAX):
        span = decoded(encoder.encode_span(a_span(name=f"n{i}", attributes={f"k{i}": "v", "k": "v" * i, "port": i})))
        assert (span.name, [a.key for a in span.attributes]) == (f"n{i}", [f"k{i}", "k", "port"])
        by_key = encoder._integers, encoder._text_starts
        memos = encoder._heads, *by_key, *(memo for memos in by_key for memo in memos.values())
        assert max(map(len, memos)) <= MEMO_ENTRIES_MAX


def test_transformed_span_shares_nothing_with_the_span():
    """What a custom exporter keeps does not change when the span is recycled."""  # H6
    span = a_span(attributes={"l": [{"a": ["x"]}]}, events=[("e", 1, {"b": {"c": ["y"]}})], status=1)
    encoder = Encoder(KONG)
    plain, again = encoder.transform_span(span), encoder.transform_span(span)
    span.attributes["l"][0]["a"].append("z")
    span.attributes.clear()
    span.events[0][2]["b"]["c"].append("z")
    span.events.clear()
    assert plain == again


def test_encoded_span_outlives_the_release_of_the_span():
    """The copy that the log phase takes holds nothing of the pooled span."""  # O17
    ticks = itertools.count(1_700_000_000_000_000_000, 256)
    provider = TracerProvider(time_ns=lambda: next(ticks), random_bytes=random.Random(7).randbytes)
    provider.execution.enter(PHASES["access"], {})
    real = provider.new("test").start_span("kong", {"span_kind": 2})
    real.set_attribute("http.method", "GET")
    real.record_error("boom")
    real.finish()
    trace_id, span_id = real.trace_id, real.span_id
    encoded = Encoder(KONG).encode_span(real)
    real.release()
    assert real.attributes is None
    span = decoded(encoded)
    assert (span.trace_id, span.span_id, span.name, span.kind) == (trace_id, span_id, "kong", Span.SPAN_KIND_SERVER)
    assert (span.attributes[0].key, span.events[0].name) == ("http.method", "exception")
    assert span.end_time_unix_nano > span.start_time_unix_nano > 0


def test_request_holds_one_resource_and_one_scope():
    """A batch is the concatenation of its spans."""  # L1, O19
    encoder = Encoder(KONG)
    spans = [encoder.encode_span(a_span(name=name)) for name in "abc"]
    resource = encoder.encode_resource({"service.name": "edge", "zone": "eu", "nodes": 3}, **NODE)
    request = ExportTraceServiceRequest.FromString(encode_traces(spans, resource))
    (resource_spans,) = request.resource_spans
    (scope_spans,) = resource_spans.scope_spans
    assert (scope_spans.scope.name, scope_spans.scope.version) == ("kong-internal", "0.1.0")
    assert [span.name for span in scope_spans.spans] == ["a", "b", "c"]
    assert {a.key: a.value for a in resource_spans.resource.attributes} == {
        "service.name": AnyValue(string_value="edge"),
        "service.instance.id": AnyValue(string_value="node-1"),
        "service.version": AnyValue(string_value="3.9.0"),
        "zone": AnyValue(string_value="eu"),
        "nodes": AnyValue(double_value=3),
    }


def test_resource_does_not_depend_on_the_order_of_its_attributes():
    """Equal configurations give equal bytes, in every worker."""  # L4
    encoder = Encoder(SAFE)
    assert encoder.encode_resource({"a": 1, "z": 2}, **NODE) == encoder.encode_resource({"z": 2, "a": 1}, **NODE)
    assert encoder.encode_resource(None, **NODE) == encoder.encode_resource({}, **NODE)


def test_log_records_carry_severity_trace_and_both_times():
    """The level is nginx's; trace id and flags are those of the request."""  # L5
    encoder = Encoder(KONG)
    log = {
        "log_level": 5,
        "body": "slow",
        "attributes": {"request.id": "abc"},
        "time_unix_nano": 1000,
        "observed_time_unix_nano": 2000,
        "span_id": SPAN_ID,
    }
    records = encoder.prepare_logs([log, log | {"log_level": 99, "body": None}], TRACE_ID, 1)
    assert log["log_level"] == 5
    resource = encoder.encode_resource(None, **NODE)
    request = ExportLogsServiceRequest.FromString(encode_logs(map(encode_log, records), resource))
    first, second = request.resource_logs[0].scope_logs[0].log_records
    assert (first.severity_number, first.severity_text) == (LogRecord.FromString(b"\x10\x0d").severity_number, "WARN")
    assert (first.time_unix_nano, first.observed_time_unix_nano) == (1000, 2000)
    assert (first.trace_id, first.span_id, first.flags) == (TRACE_ID, SPAN_ID, 1)
    assert (first.body.string_value, first.attributes[0].key) == ("slow", "request.id")
    assert (second.severity_number, second.severity_text, second.body) == (0, "", AnyValue())


def test_flags_are_their_low_32_bits():
    """They are written unless all bits are 0, as lua-protobuf does."""  # L5
    fields = {0: b"", 1: b"\x45\1\0\0\0", 2**32: b"\x45\0\0\0\0", 2**32 + 1: b"\x45\1\0\0\0"}
    for flags, field in fields.items():
        assert encode_log({"body": {}, "attributes": [], "flags": flags})[4:] == field


def test_body_that_is_no_text():
    """Kong fails the batch, so the record is refused; profile ``safe`` writes what it is."""
    logs = [{"body": {"code": 5}, "attributes": {}}]
    with pytest.raises(ApiError, match=r"^text expected, not "):
        encode_log(*Encoder(KONG).prepare_logs(logs, None, None))
    (record,) = ScopeLogs.FromString(encode_log(*Encoder(SAFE).prepare_logs(logs, None, None))).log_records
    assert record.body.kvlist_value.values[0].value.int_value == 5
