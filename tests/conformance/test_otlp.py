"""OTLP encoding does what Kong's Lua code did (kong-semantics section 12).

Every case is replayed under profile ``kong`` and every recorded field is compared: the transformed spans, the prepared
log records, the payload byte by byte, what the payload decodes to, and errors. A case with a field or of a kind that
this replay does not know fails. `pytest -rP` shows the number of comparisons.

Two rules. Lua has no order of attributes (L4): the recording walked tables in sorted order, so the replay hands over
mappings in that order. And the bits of NaN depend on the platform: the recorded ones are read as the usual ones.

What one side is known to refuse alone (docs/deviations.md, OTLP) is not compared any further where it does so.
"""

import re
import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kongtrace.errors import ApiError
from kongtrace.lua import is_table, is_text, lua_length, lua_table
from kongtrace.otlp import KONG, TRACE_ID_BYTES, Encoder, encode_log, encode_logs, encode_traces, fit_id
from tests.conformance.vectors import BooleanKey, cases, decode

REMARKS = {"id", "category", "note"}
SPAN_FIELDS = ("trace_id", "span_id", "parent_id", "name", "kind", "start_time_ns", "end_time_ns")
SPAN_TABLES = ("attributes", "events", "status", "should_sample")
IDS = ("trace_id", "span_id", "parent_id", "parent_span_id")
NODE = {"instance_id": "11111111-2222-3333-4444-555555555555", "version": "3.12.0-vectors"}
INTEGERS = {
    *("start_time_ns", "end_time_ns", "time_ns", "time_unix_nano", "observed_time_unix_nano"),
    *("kind", "flags", "http.status_code"),
}
NUMERAL = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?(e[-+]?[0-9]+)?")
LUA_NAN, PYTHON_NAN = (b"\x21" + bits for bits in (b"\0\0\0\0\0\0\xf8\xff", struct.pack("<d", float("nan"))))


def known(record: dict[str, Any], *names: str) -> None:
    assert not record.keys() - set(names), f"unknown fields {record.keys() - set(names)}"


def in_sorted_order(value: Any) -> Any:
    """A decoded value whose mappings are in the order in which the recording walked them."""
    match value:
        case dict():
            # Its own boolean is what a key is written from.
            table = {key.key if isinstance(key, BooleanKey) else key: item for key, item in value.items()}
            return {key: in_sorted_order(table[key]) for key in sorted(table, key=sort_key)}
        case list():
            return [in_sorted_order(item) for item in value]
    return value


def sort_key(key: Any) -> tuple[bool, Any]:
    is_text = isinstance(key, (str, bytes))
    return is_text, key.encode() if isinstance(key, str) else key


def comparable(value: Any) -> Any:
    """A value with one kind of empty table, and a NaN that equals itself."""
    match value:
        case {} | [] if not value:
            return []
        case dict():
            return {key: comparable(item) for key, item in value.items()}
        case list():
            return [comparable(item) for item in value]
        case float() if value != value:  # noqa: PLR0124 - NaN
            return "NaN"
    return value


def read(value: Any) -> Any:
    return in_sorted_order(decode(value))


def from_hex(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: bytes.fromhex(value) if name in IDS and isinstance(value, str) else value
        for name, value in record.items()
    }


def to_hex(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value.hex() if name in IDS else value for name, value in record.items()}


def span_from(recorded: dict[str, Any]) -> SimpleNamespace:
    known(recorded, *SPAN_FIELDS, *SPAN_TABLES)
    given = from_hex({name: read(value) for name, value in recorded.items()})
    given["events"] = events_from(given.get("events"))
    if given.get("status") is True:  # no status to Lua, and to Python 1
        given["status"] = None
    return SimpleNamespace(**dict.fromkeys((*SPAN_FIELDS, *SPAN_TABLES)) | given)


def events_from(recorded: Any) -> Any:
    """What is in a table under 1, 2 and so on as events; anything else as it is."""
    if not is_table(recorded):
        return recorded
    table = lua_table(recorded)
    return [event_from(table[place]) for place in range(1, lua_length(table) + 1)]


def event_from(recorded: Any) -> Any:
    if not is_table(recorded):
        return recorded
    return tuple(map(lua_table(recorded).get, ("name", "time_ns", "attributes")))


def is_refused_here(name: Any, value: Any) -> bool:
    """Whether a field holds what Kong would write, or take for nothing."""
    if name == "status":
        return is_table(value)
    return name in INTEGERS and (value != value or (is_text(value) and not NUMERAL.fullmatch(str(value))))  # noqa: PLR0124 - NaN


def is_refused_there(name: Any, value: Any) -> bool:
    """Whether a field is false, which is nothing here."""
    return name in {"status", "attributes", "events"} and value is False


def holds(value: Any, is_odd: Callable[[Any, Any], bool], name: Any = None) -> bool:
    """Whether there is such a field in a value, however deep."""
    match value:
        case dict():
            return is_odd(name, value) or any(holds(item, is_odd, key) for key, item in value.items())
        case list():
            return is_odd(name, value) or any(holds(item, is_odd) for item in value)
    return is_odd(name, value)


def read_message(descriptor: Descriptor, data: bytes) -> dict[str, Any]:
    """What is on the wire, in the notation of the vectors: fields that are absent there are absent here."""
    message: dict[str, Any] = {}
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        field = descriptor.fields_by_number[tag >> 3]
        size = {1: 8, 5: 4}.get(tag & 7)
        if tag & 7 == 0:
            number, position = read_varint(data, position)
            value = integer(field, number)
        else:
            if size is None:
                size, position = read_varint(data, position)
            content, position = data[position : position + size], position + size
            assert len(content) == size, f"{field.full_name} is cut off"
            value = READ[field.type](field, content)
        if field.is_repeated:
            message.setdefault(field.name, []).append(value)
        else:
            assert field.name not in message, f"{field.full_name} twice"
            message[field.name] = value
    return message


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte, position = data[position], position + 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, position


def integer(field: FieldDescriptor, number: int) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_BOOL:
            return bool(number)
        case FieldDescriptor.TYPE_INT64:
            return str(number - (1 << 64) if number >> 63 else number)
    return number


def text(_field: FieldDescriptor, content: bytes) -> str | bytes:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


READ: dict[int, Callable[[FieldDescriptor, bytes], Any]] = {
    FieldDescriptor.TYPE_MESSAGE: lambda field, content: read_message(field.message_type, content),
    FieldDescriptor.TYPE_STRING: text,
    FieldDescriptor.TYPE_BYTES: lambda _, content: content.hex(),
    FieldDescriptor.TYPE_DOUBLE: lambda _, content: struct.unpack("<d", content)[0],
    FieldDescriptor.TYPE_FIXED64: lambda _, content: str(struct.unpack("<Q", content)[0]),
    FieldDescriptor.TYPE_FIXED32: lambda _, content: struct.unpack("<I", content)[0],
}


class Outcome:
    """What one encoding did, in the terms of a vector's ``expect``.

    Args:
        steps: name and value of what comes of it, until it raises.
        given: what is encoded.
    """

    def __init__(self, steps: Iterator[tuple[str, Any]], given: Any) -> None:
        self.given = given
        self.error: Exception | None = None
        self.seen: dict[str, Any] = {}
        try:
            self.seen.update(steps)
        except (ApiError, TypeError) as error:
            self.error = error

    def compare(self, expected: dict[str, Any], *unrecorded: str) -> int:
        """Fail unless what was recorded happened; gives the number of comparisons."""
        if self.is_known_to_differ(expected):
            return 1
        expected = dict(expected)
        error = expected.pop("err", None)
        assert (self.error is not None) == (error is not None), f"raised {self.error!r}, expected {error}"
        if error is not None and error["kind"] != "runtime":
            assert (error["kind"], error["msg"]) == ("api", str(self.error))
        assert expected.keys() | set(unrecorded) == self.seen.keys() | set(unrecorded)
        for name, recorded in expected.items():
            assert self.same(name, recorded), f"{name}: {self.seen[name]!r}, expected {recorded!r}"
        return len(expected) + 1

    def is_known_to_differ(self, recorded: dict[str, Any]) -> bool:
        error = recorded.get("err")
        if error is not None and holds(self.given, is_refused_there):
            return True
        is_the_same = error is not None and (error["kind"] == "runtime" or error["msg"] == str(self.error))
        went_as_far = recorded.keys() <= {"err", *self.seen}
        return self.error is not None and not (is_the_same and went_as_far) and holds(self.given, is_refused_here)

    def same(self, name: str, recorded: Any) -> bool:
        if name == "payload":
            payload: bytes = bytes.fromhex(recorded)
            return payload.replace(LUA_NAN, PYTHON_NAN) == self.seen[name]
        return comparable(decode(recorded)) == comparable(self.seen[name])


def replay_traces(case: dict[str, Any]) -> Iterator[int]:
    known(case, *REMARKS, "kind", "tables", "encodes", "expect")
    encoder = Encoder(KONG)
    resources = Resources(encoder, case.get("tables", {}))
    for encode, expected in zip(case["encodes"], case["expect"], strict=True):
        known(encode, "spans", "resource", "set")
        known(expected, "transformed", "payload", "decoded", "err")
        resources.assign(encode)
        steps = encode_batch(encoder, [span_from(span) for span in encode["spans"]], resources, encode)
        yield Outcome(steps, decode([encode, case.get("tables")])).compare(
            expected, *(["transformed"] if case["category"] == "random" else [])
        )


def encode_batch(
    encoder: Encoder, spans: list[SimpleNamespace], resources: "Resources", encode: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    yield "transformed", [to_hex(encoder.transform_span(span)) for span in spans]
    resource = resources.of(encode)
    payload = encode_traces([encoder.encode_span(span) for span in spans], resource)
    assert payload == encode_traces([encoder._encode_unusual(span, span.trace_id) for span in spans], resource)
    yield "payload", payload
    yield "decoded", read_message(ExportTraceServiceRequest.DESCRIPTOR, payload)


class Resources:
    """The rendered resource of each shared table, as a configuration keeps it (L6)."""

    def __init__(self, encoder: Encoder, tables: dict[str, Any]) -> None:
        self.encoder = encoder
        self.tables = {label: read(table) for label, table in tables.items()}
        self.rendered: dict[str, bytes] = {}

    def assign(self, encode: dict[str, Any]) -> None:
        if encode.get("set"):
            self.tables[encode["resource"]["$ref"]] |= read(encode["set"])

    def of(self, encode: dict[str, Any]) -> bytes:
        resource = encode.get("resource")
        label = resource.get("$ref") if resource else None
        if label is None:
            return self.encoder.encode_resource(read(resource), **NODE)
        if label not in self.rendered:
            self.rendered[label] = self.encoder.encode_resource(self.tables[label], **NODE)
        return self.rendered[label]


def replay_logs(case: dict[str, Any]) -> Iterator[int]:
    known(case, *REMARKS, "kind", "logs", "trace_id", "flags", "resource", "expect")
    known(case["expect"], "prepared", "payload", "decoded", "err")
    given = {name: decode(case.get(name)) for name in ("logs", "flags", "resource")}
    yield Outcome(encode_records(case), given).compare(case["expect"])


def encode_records(case: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    encoder = Encoder(KONG)
    trace_id = None if case.get("trace_id") is None else bytes.fromhex(case["trace_id"])
    prepared = encoder.prepare_logs([from_hex(read(log)) for log in case["logs"]], trace_id, case.get("flags"))
    yield "prepared", [to_hex(record) for record in prepared]
    payload = encode_logs(map(encode_log, prepared), encoder.encode_resource(read(case.get("resource")), **NODE))
    yield "payload", payload
    yield "decoded", read_message(ExportLogsServiceRequest.DESCRIPTOR, payload)


def replay_trace_id(case: dict[str, Any]) -> Iterator[int]:
    known(case, *REMARKS, "kind", "ids", "expect")
    for identifier, expected in zip(case["ids"], case["expect"], strict=True):
        assert fit_id(bytes.fromhex(identifier), TRACE_ID_BYTES).hex() == expected
        yield 1


REPLAYS = {"traces": replay_traces, "logs": replay_logs, "trace_id": replay_trace_id}


@pytest.mark.parametrize("kind", REPLAYS)
def test_encoding_matches_the_recorded_lua(kind: str) -> None:
    """Every recorded field of every case of the kind is the same here."""
    replayed = compared = 0
    failures = []
    for case in cases("otlp"):
        assert case["kind"] in REPLAYS, f"{case['id']}: unknown kind {case['kind']}"
        if case["kind"] != kind:
            continue
        replayed += 1
        try:
            compared += sum(REPLAYS[kind](case))
        except Exception as failure:  # noqa: BLE001  the other cases are to be seen too
            failures.append(f"{case['id']} ({case['category']}): {type(failure).__name__}: {failure}")
    print(f"{kind}: {replayed} cases, {compared} comparisons, {len(failures)} differ")
    assert not failures, f"{len(failures)} of {replayed} cases differ:\n" + "\n".join(failures[:20])
    if not replayed:
        pytest.skip(f"no case of kind {kind}")
