"""What holds for any span: its bytes read back as the span, whatever is in it, and hold nothing of it."""

import math
import struct
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import assume, example, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import ScopeLogs
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from kongtrace.errors import ApiError
from kongtrace.event import Link
from kongtrace.otlp import KONG, MEMO_ENTRIES_MAX, SAFE, Encoder, Rules, encode_log, encode_logs, encode_traces


class FakeSpan(SimpleNamespace):
    """A usual span, but for what is given."""

    def __init__(self, **fields: Any) -> None:
        usual = {"trace_id": bytes(16), "span_id": bytes(8), "name": "n", "kind": 1}
        times = {"start_time_ns": 1, "end_time_ns": 2}
        super().__init__(**usual | times | dict.fromkeys(("parent_id", "attributes", "events", "status")) | fields)


def a_link(attributes: dict[str, Any]) -> Link:
    link = Link("link", 1, {"trace_id": "", **attributes})
    link.trace_id, link.span_id, link.trace_state, link.flags = bytes(16), bytes(8), "a=b", 0x301
    link.own_attributes = attributes
    return link


texts = st.text()  # any code point, lone surrogates too
keys = texts.filter(lambda key: key not in KONG.integer_keys)
numbers = st.integers() | st.floats() | st.integers(-(2**63), 2**63 - 1)
scalars = texts | st.booleans() | numbers | st.none() | st.text("ab", max_size=400)
values = st.recursive(
    scalars | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | st.integers(0, 3), inner, max_size=4),
    max_leaves=10,
)
tables = st.dictionaries(keys, values, max_size=6)
times_ns = st.integers(0, 2**63 - 1)
ids = st.binary(max_size=40)
events = st.tuples(texts, times_ns, tables | st.none())
spans = st.builds(
    FakeSpan,
    trace_id=st.binary(min_size=16, max_size=16) | ids,
    span_id=st.binary(min_size=8, max_size=8) | ids | st.none(),
    parent_id=st.binary(min_size=8, max_size=8) | ids | st.none(),
    name=texts | st.none(),
    kind=st.integers(1, 5) | st.integers(0, 2**31 - 1) | st.none(),
    start_time_ns=times_ns,
    end_time_ns=times_ns | st.none(),
    attributes=tables | st.none(),
    events=st.lists(events | st.builds(a_link, tables), max_size=3) | st.none(),
    status=st.sampled_from([None, 0, 1, 2, 3, 2.0]),
)
safe_encoder = Encoder(SAFE)  # used by all examples, so that its memos are never fresh


def utf_8(text: str) -> str:
    return text.encode(errors="replace").decode()


def any_value(value: object) -> AnyValue:
    """OTLP's value for a Python value, by the letter of the specification."""
    wanted = AnyValue()
    match value:
        case bool():
            wanted.bool_value = value
        case int() if -(2**63) <= value < 2**63:
            wanted.int_value = value
        case int() | float():
            wanted.double_value = as_double(value)
        case str():
            wanted.string_value = utf_8(value)
        case bytes() if is_utf_8(value):
            wanted.string_value = value.decode()
        case bytes():
            wanted.bytes_value = value
        case list():
            wanted.array_value.SetInParent()
            wanted.array_value.values.extend(map(any_value, value))
        case dict():
            wanted.kvlist_value.SetInParent()
            wanted.kvlist_value.values.extend(key_values(value))
    return wanted


def as_double(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, 1 if number > 0 else -1)


def is_utf_8(value: bytes) -> bool:
    return value.decode(errors="ignore").encode() == value


def key_values(table: Any) -> list[KeyValue]:
    return [KeyValue(key=utf_8(str(key)), value=any_value(value)) for key, value in table.items() if value is not None]


def expected(span: FakeSpan) -> Span:
    status = {} if span.status not in (0, 1, 2) else {"status": {"code": int(span.status)}}
    message = Span(
        trace_id=span.trace_id.rjust(16, b"\0")[-16:],
        span_id=span.span_id or b"",
        parent_span_id=b"" if span.parent_id is None else span.parent_id.rjust(8, b"\0")[-8:],
        name=utf_8(span.name or ""),
        start_time_unix_nano=span.start_time_ns,
        end_time_unix_nano=span.end_time_ns or 0,
        attributes=key_values(span.attributes or {}),
        events=[
            Span.Event(name=utf_8(name), time_unix_nano=time_ns, attributes=key_values(attributes or {}))
            for name, time_ns, attributes in filter(lambda event: not isinstance(event, Link), span.events or [])
        ],
        links=[
            Span.Link(
                trace_id=link.trace_id,
                span_id=link.span_id,
                trace_state=link.trace_state,
                attributes=key_values(link.own_attributes),
                flags=link.flags,
            )
            for link in span.events or []
            if isinstance(link, Link)
        ],
        **status,
    )
    message.kind = span.kind or 0
    return message


@given(spans)
@example(FakeSpan(trace_id=b"", span_id=None, name="\ud800", kind=128, start_time_ns=2**63 - 1, end_time_ns=0))
@example(FakeSpan(attributes={"\udfff": "\ud800", "": True, "one": 1, "nan": [math.nan], "nothing": {}}))
def test_bytes_read_back_as_the_span(span: FakeSpan):
    """Any tree of attributes, name, time, event, link and status arrives; the bytes are the protobuf library's."""
    encoded = safe_encoder.encode_span(span)
    wanted = ScopeSpans(spans=[expected(span)])
    assert encoded == wanted.SerializeToString(deterministic=True)
    assert repr(ScopeSpans.FromString(encoded)) == repr(wanted)  # by repr, since NaN equals nothing


@given(spans, st.sampled_from([KONG, SAFE]))
def test_both_paths_give_the_same_bytes(span: FakeSpan, rules: Rules):
    """The fast path differs from the general one in nothing but speed."""
    tables = [span.attributes, *(attributes for _, _, attributes in span.events or [])]
    assume(
        rules is SAFE or all(has_text_keys(list((table or {}).values())) for table in tables)
    )  # Kong refuses other keys
    encoder = Encoder(rules)
    general = encoder._encode_unusual(span, span.trace_id)
    assert encoder.encode_span(span) == general
    assert encoder.encode_span(span) == general  # the memos are filled now


def has_text_keys(value: object) -> bool:
    match value:
        case dict() if value.keys() == set(range(1, len(value) + 1)):  # an array
            return all(map(has_text_keys, value.values()))
        case dict():
            return all(isinstance(key, str) and has_text_keys(item) for key, item in value.items() if item is not None)
        case list():
            return all(map(has_text_keys, value))
    return True


anything = (
    values | st.sets(st.integers()) | st.builds(object) | st.lists(values, max_size=3) | st.tuples(values, values)
)
written_by_anyone = st.dictionaries(st.sampled_from(sorted(vars(FakeSpan()))), anything, min_size=1)


@given(written_by_anyone, st.sampled_from([KONG, SAFE]))
@example({"status": []}, SAFE)
@example({"events": [1]}, SAFE)
@example({"events": [("e", "soon", None)]}, SAFE)
def test_nonsense_in_a_span_costs_the_other_spans_nothing(fields: dict[str, Any], rules: Rules):
    """Whatever is written into the fields of a span, it is written or refused, and its neighbours are written."""
    refused: list[ApiError] = []
    usual = FakeSpan(name="usual")
    encoded = Encoder(rules).encode_spans([usual, FakeSpan(**fields), usual], None, refused)
    assert len(encoded) + len(refused) == 3
    assert all(type(error) is ApiError for error in refused)
    assert [encoded[0], encoded[-1]] == [Encoder(rules).encode_span(usual)] * 2


@given(st.lists(spans, max_size=6), st.binary(min_size=16, max_size=16))
def test_batch_is_the_concatenation_of_its_spans(batch: list[FakeSpan], trace_id: bytes):
    """Spans encoded one by one, by encoders that know nothing of each other, make one request."""
    resource = safe_encoder.encode_resource({"zone": "eu"}, instance_id="node", version="3.9.0")
    encoded = [Encoder(SAFE).encode_span(span, trace_id) for span in batch]
    request = ExportTraceServiceRequest.FromString(encode_traces(encoded, resource))
    (scope_spans,) = request.resource_spans[0].scope_spans
    wanted = [expected(FakeSpan(**vars(span) | {"trace_id": trace_id})) for span in batch]
    assert repr(list(scope_spans.spans)) == repr(wanted)
    assert b"".join(encoded) == ScopeSpans(spans=wanted).SerializeToString(deterministic=True)


def of_span(**fields: Any) -> Any:
    return ExportTraceServiceRequest.FromString(encode_traces([safe_encoder.encode_span(FakeSpan(**fields))], b""))


def of_log(**fields: Any) -> Any:
    records = safe_encoder.prepare_logs([{"attributes": {}} | fields], None, None)
    return ExportLogsServiceRequest.FromString(encode_logs(map(encode_log, records), b""))


def of_resource(value: object) -> Any:
    resource = safe_encoder.encode_resource({"k": value}, instance_id="node", version="3.9.0")
    return ExportTraceServiceRequest.FromString(encode_traces([], resource))


PLACES = {
    "attribute": (5, lambda value: of_span(attributes={"k": value})),
    "event": (6, lambda value: of_span(events=[("e", 1, {"k": value})])),
    "link": (6, lambda value: of_span(events=[a_link({"k": value})])),
    "log attribute": (5, lambda value: of_log(attributes={"k": value})),
    "log body": (4, lambda value: of_log(body=value)),
    "resource": (4, of_resource),
}
"""Where values stand: how many messages are around each in a request, and the request as it is read back."""


def levels(message: Message) -> int:
    """How many messages stand within each other in this one."""
    fields = [value for _, value in message.ListFields()]
    inner = [item for value in fields for item in (value if hasattr(value, "append") else [value])]
    return max((1 + levels(item) for item in inner if isinstance(item, Message)), default=0)


@pytest.mark.parametrize(("around", "request_of"), PLACES.values(), ids=PLACES)
@given(wraps=st.lists(st.sampled_from([list, dict]), min_size=25, max_size=50), core=st.sampled_from(["x", [], {}]))
@example(wraps=[list] * 46, core="x")
@example(wraps=[list] * 47, core="x")
@example(wraps=[list] * 48, core="x")
@example(wraps=[list] * 47, core=[])
@example(wraps=[list] * 48, core={})
@example(wraps=[dict] * 31, core="x")
@example(wraps=[dict] * 32, core="x")
@example(wraps=[dict] * 31 + [list], core="x")
def test_a_value_is_refused_when_a_reader_would_refuse_its_request(around: int, request_of: Any, wraps: Any, core: Any):
    """A value is written if protobuf's usual limit takes all that is around it and in it, and else not."""
    value, needed = core, around + (core != "x")
    for wrap in wraps:
        value = [value] if wrap is list else {"k": value}
        needed += 2 if wrap is list else 3
    if needed <= 100:
        assert levels(request_of(value)) == needed
    else:
        with pytest.raises(ApiError, match="nested too deeply"):
            request_of(value)


class Holder(str):
    """A text that can tell whether somebody still holds it."""

    __slots__ = ("__weakref__",)


@given(st.text(min_size=1), st.integers(1, 5))
def test_nothing_of_the_span_is_held(text: str, kind: int):
    """Neither the bytes nor the encoder keep the span, its tables or its values."""
    held = [Holder(text), Holder(text)]
    attributes = {"k": held[0], "l": [held[1]]}
    span = FakeSpan(kind=kind, attributes=attributes, events=[("e", 1, attributes)])
    watched = [weakref.ref(item) for item in (span, *held)]
    encoded = safe_encoder.encode_span(span)
    assert type(encoded) is bytes
    del span, attributes, held
    assert [item() for item in watched] == [None] * 3


@given(st.lists(st.tuples(texts, numbers | st.booleans() | texts), max_size=3 * MEMO_ENTRIES_MAX))
def test_memos_never_change_what_is_written(pairs: list[tuple[str, object]]):
    """Through one encoder for all spans, each span is what it is to a new one, and no memo passes its limit."""
    encoder = Encoder(SAFE)
    for key, value in pairs:
        span = FakeSpan(name=key, attributes={key: value})
        assert encoder.encode_span(span) == ScopeSpans(spans=[expected(span)]).SerializeToString(deterministic=True)
        by_key = encoder._integers, encoder._text_starts
        memos = encoder._heads, *by_key, *(memo for memos in by_key for memo in memos.values())
        assert max(map(len, memos)) <= MEMO_ENTRIES_MAX


@given(values, tables, times_ns, st.integers(0, 2**32 - 1), st.binary(max_size=16))
def test_log_record_reads_back(body: object, attributes: dict[str, Any], time_ns: int, flags: int, trace_id: bytes):
    """Body, attributes, times, flags and trace id of a log record arrive."""
    log = {"log_level": 4, "body": body, "attributes": attributes, "time_unix_nano": time_ns}
    (record,) = ScopeLogs.FromString(encode_log(*safe_encoder.prepare_logs([log], trace_id, flags))).log_records
    assert (record.time_unix_nano, record.flags, record.trace_id) == (time_ns, flags, trace_id)
    assert repr(record.body) == repr(any_value(body))
    assert repr(list(record.attributes)) == repr(key_values(attributes))


@given(st.floats())
def test_double_keeps_its_bits(number: float):
    """Zero keeps its sign, and every value its last bit."""
    (attribute,) = (
        ScopeSpans.FromString(safe_encoder.encode_span(FakeSpan(attributes={"k": number}))).spans[0].attributes
    )
    assert struct.pack("<d", attribute.value.double_value) == struct.pack("<d", number)
