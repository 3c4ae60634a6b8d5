"""Spans and log records as OTLP bytes: what Kong's ``kong/observability/otlp`` puts on the wire, written by hand.

The copy that the log phase keeps of a span *is* its encoding: :meth:`Encoder.encode_span` gives the bytes of one entry
of ``ScopeSpans.spans``, which refer to nothing, so the span can go back to its pool. A batch of such copies becomes a
request by concatenation (:func:`encode_traces`). Log records go the same way.

Theory of operation: a span is written by a fast path that knows the usual span alone: ids of 16 and 8 bytes, both
times set, a mapping of attributes. Whatever it trips over is written by the general path: the span is first turned
into plain dicts of OTLP's shape (:meth:`Encoder.transform_span`), then those into bytes. Both give the same bytes.
What makes the fast path fast: ids, name, kind and times are packed at once, with their tags and lengths; trace id and
parent, which the spans of a request share, get theirs once; what precedes the text of an attribute depends on its key
and on the length of the text alone, so it is remembered by those two. Texts are not remembered: what a span costs does
not depend on how often its values recur. A memo is a plain dict, and what it does not know a ``KeyError``: CPython
looks a dict of its own up in half the time that a subclass takes. It holds at most ``MEMO_ENTRIES_MAX`` entries and is
emptied when it is full.

Units and shapes: times are ns since the epoch; ids are bytes. Fields are written in the order of their numbers,
attributes in the order of their mapping (kong-semantics L4: no order is promised). A span is anything with the fields
of :class:`SpanData`.

Errors: :class:`~kongtrace.errors.ApiError` for what cannot be written, whatever a program has put into it. Kong finds
most of these when it sends the batch, and fails the whole batch; here the span that is at fault fails, when it is
handed over. So does one that would fail its batch where that is read, since it is nested too deeply.

Source: kong-semantics sections 11 (O13, O17-O19) and 12 (L1-L6); opentelemetry-proto 1.x; the protobuf wire format.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from kongtrace.errors import ApiError, KongTraceError
from kongtrace.event import Link
from kongtrace.lua import is_given

K = TypeVar("K")
V = TypeVar("V")
P = ParamSpec("P")

Plain = dict[str, Any]
"""A protobuf message as a plain dict, by field name; an absent field is a missing key."""

TRACE_ID_BYTES = 16
SPAN_ID_BYTES = 8

MEMO_ENTRIES_MAX = 256
"""Entries that a memo holds before it is emptied."""

MESSAGES_MAX = 100
"""Messages within each other that a reader takes by protobuf's default; of more it refuses the whole request."""

_RESOURCE_ROOM = MESSAGES_MAX - 2
_ENTRY_ROOM = MESSAGES_MAX - 3
"""How many of them may be within a resource; within a span or a log record, which stands in its scope."""

ATTRIBUTE_ROOM = _ENTRY_ROOM - 2
"""How many may be within the value of a span's attribute: a list takes two, a mapping three."""

SEVERITIES: dict[int, tuple[int, str]] = {
    8: (5, "DEBUG"),
    7: (9, "INFO"),
    6: (11, "NOTICE"),
    5: (13, "WARN"),
    4: (17, "ERR"),
    3: (19, "CRIT"),
    2: (21, "ALERT"),
    1: (23, "EMERG"),
}
"""OTLP severity number and text by nginx log level (L5)."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What distinguishes the encoding of one profile from the other's.

    Attributes:
        integer_keys: attributes that are written as integers whatever their value is (L3).
        integer_field: the field of ``AnyValue`` for a Python ``int``; Lua knows doubles only (L3).
        lua_tables: an empty mapping, and one with the keys 1 to n, is an array; bytes are a string like any other,
            although a collector may refuse a request with text that is not UTF-8. When false, a mapping is a
            mapping, and bytes that are not UTF-8 are a ``bytes_value`` (OTLP, common.proto).
        refuses: a name, a key or the body of a log record that is no text raises, and bytes among them are written
            as they are. When false, a name or a key is made text, and a body is written by what it is.
    """

    integer_keys: frozenset[str]
    integer_field: str
    lua_tables: bool
    refuses: bool


KONG = Rules(frozenset({"http.status_code"}), "double_value", True, True)
SAFE = Rules(frozenset(), "int_value", False, False)


class SpanData(Protocol):
    """The fields of a span that are read.

    Attributes:
        trace_id: bytes of any length, fitted to 16.
        span_id: bytes, written as they are; or None.
        parent_id: bytes of any length, fitted to 8; or None.
        name: text, or None.
        kind: number; None is 0.
        start_time_ns: ns since the epoch, or None.
        end_time_ns: ns since the epoch, or None while the span is open.
        attributes: mapping, or None.
        events: list of (name, time_ns, attributes), or None; a :class:`~kongtrace.event.Link` among them is a link.
        status: 0, 1 or 2; any other value is no status (L4).
    """

    trace_id: Any
    span_id: Any
    parent_id: Any
    name: Any
    kind: Any
    start_time_ns: Any
    end_time_ns: Any
    attributes: Any
    events: Any
    status: Any


# --- the wire format ---------------------------------------------------------------------------------------------
# A field is its tag, one byte here (number << 3 | wire type), and its content; text, bytes and messages (wire type 2)
# carry their length in front of it. Every field number of OTLP that is written is below 16.

_pack_double = struct.Struct("<d").pack
_pack_fixed32 = struct.Struct("<I").pack
_pack_fixed64 = struct.Struct("<Q").pack

_TRACE_ID = bytes((0x0A, TRACE_ID_BYTES))
_SPAN_ID = bytes((0x12, SPAN_ID_BYTES))
_PARENT_ID = bytes((0x22, SPAN_ID_BYTES))
_IDS_START_BYTES = len(_TRACE_ID) + TRACE_ID_BYTES + len(_SPAN_ID)
_PARENT_BYTES = len(_PARENT_ID) + SPAN_ID_BYTES
_KINDS = {kind: bytes((0x30, kind, 0x39)) for kind in range(1, 0x80)}
"""The field of a kind, and the tag of the start time, which comes next."""
_END = 0x41
_ATTRIBUTES = b"\x4a"
_STATUS = {0: b"\x7a\x00", 1: b"\x7a\x02\x18\x01", 2: b"\x7a\x02\x18\x02"}


_GROUPS = tuple(bytes((0x80 | group,)) for group in range(0x80))
"""Seven bits of a number, of which more follow."""
_SHORT = 0x400
_VARINTS = tuple(bytes((n,)) if n < 0x80 else _GROUPS[n & 0x7F] + bytes((n >> 7,)) for n in range(_SHORT))
_SPAN_STARTS = tuple(b"\x12" + size for size in _VARINTS)


def _varint(number: int) -> bytes:
    return _VARINTS[number] if number < _SHORT else _GROUPS[number & 0x7F] + _varint(number >> 7)


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


_SCOPE = _field(b"\x0a", _field(b"\x0a", b"kong-internal") + _field(b"\x12", b"0.1.0"))
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1


def _text(value: object) -> bytes:
    """UTF-8; bytes stand for themselves, as any Lua string does."""
    if isinstance(value, str):
        return value.encode(errors="replace")
    if isinstance(value, bytes):
        return value
    raise ApiError(f"text expected, not {value!r}")


def _integer(value: object) -> int:
    """An integer of 64 bits, in two's complement, from a number or its decimal numeral."""
    number = _lua_number(value) if isinstance(value, (str, bytes)) else value
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise ApiError(f"number expected, not {value!r}")
    if not _INT64_MIN <= number <= -_INT64_MIN:  # as in lua-protobuf, to which the one too many is the least
        raise ApiError("number has no integer representation")
    return int(number) & 0xFFFF_FFFF_FFFF_FFFF


def _lua_number(text: str | bytes) -> float | None:
    """The number that a decimal numeral denotes in Lua, or None; an empty one is 0 to lua-protobuf."""
    numeral = _text(text)  # Python takes digits of any script in a str, and none but ASCII's in bytes
    try:
        return None if b"_" in numeral else float(numeral or 0)
    except ValueError:
        return None


def _double(value: float) -> bytes:
    try:
        return _pack_double(value)
    except struct.error:  # an int beyond every double
        return _pack_double(math.inf if value > 0 else -math.inf)


def _key_values(tag: bytes, entries: Iterable[Plain]) -> bytes:
    """Repeated ``KeyValue``."""
    return b"".join(_key_value(tag, entry["key"], entry["value"]) for entry in entries)


def _key_value(tag: bytes, key: object, value: Plain) -> bytes:
    return _field(tag, _filled(b"\x0a", _text(key)) + _field(b"\x12", _any_value(value)))


def _any_value(value: Plain) -> bytes:
    """``AnyValue``: the one field that is set, or nothing."""
    for field, content in value.items():
        return _ANY_VALUE[field](content)
    return b""


_ANY_VALUE: dict[str, Callable[[Any], bytes]] = {
    "string_value": lambda text: _field(b"\x0a", _text(text)),
    "bool_value": lambda truth: b"\x10\x01" if truth else b"\x10\x00",
    "int_value": lambda number: b"\x18" + _varint(_integer(number)),
    "double_value": lambda number: b"\x21" + _double(number),
    "array_value": lambda array: _field(b"\x2a", b"".join(_field(b"\x0a", _any_value(v)) for v in array["values"])),
    "kvlist_value": lambda kvlist: _field(b"\x32", _key_values(b"\x0a", kvlist["values"])),
    "bytes_value": lambda content: _field(b"\x3a", content),
}


# Fields without explicit presence: the default of proto3 is not written.


def _filled(tag: bytes, content: bytes) -> bytes:
    return _field(tag, content) if content else b""


def _fixed64(tag: bytes, value: object) -> bytes:
    return tag + _pack_fixed64(number) if value is not None and (number := _integer(value)) else b""


def _fixed32(tag: bytes, value: object) -> bytes:
    return tag + _pack_fixed32(number & 0xFFFF_FFFF) if value is not None and (number := _integer(value)) else b""


def _enum(tag: bytes, value: object) -> bytes:
    return tag + _varint(number) if value is not None and (number := _integer(value)) else b""


def _name(tag: bytes, text: object) -> bytes:
    return _filled(tag, _text(text)) if text is not None else b""


def _span(plain: Plain) -> bytes:
    return b"".join(
        (
            _field(b"\x0a", plain["trace_id"]),
            _filled(b"\x12", plain.get("span_id", b"")),
            _filled(b"\x22", plain["parent_span_id"]),
            _name(b"\x2a", plain.get("name")),
            _enum(b"\x30", plain["kind"]),
            _fixed64(b"\x39", plain.get("start_time_unix_nano")),
            _fixed64(b"\x41", plain.get("end_time_unix_nano")),
            _key_values(_ATTRIBUTES, plain.get("attributes", ())),
            b"".join(_field(b"\x5a", _event(event)) for event in plain.get("events", ())),
            b"".join(_field(b"\x6a", _link(link)) for link in plain.get("links", ())),
            _STATUS[plain["status"]["code"]] if "status" in plain else b"",
        )
    )


def _event(plain: Plain) -> bytes:
    return (
        _fixed64(b"\x09", plain.get("time_unix_nano"))
        + _name(b"\x12", plain.get("name"))
        + _key_values(b"\x1a", plain.get("attributes", ()))
    )


def _link(plain: Plain) -> bytes:
    return (
        _field(b"\x0a", plain["trace_id"])
        + _field(b"\x12", plain["span_id"])
        + _name(b"\x1a", plain["trace_state"])
        + _key_values(b"\x22", plain["attributes"])
        + _fixed32(b"\x35", plain["flags"])
    )


def _log_record(plain: Plain) -> bytes:
    return b"".join(
        (
            _fixed64(b"\x09", plain.get("time_unix_nano")),
            _enum(b"\x10", plain.get("severity_number")),
            _name(b"\x1a", plain.get("severity_text")),
            _field(b"\x2a", _any_value(plain["body"])),
            _key_values(b"\x32", plain["attributes"]),
            _fixed32(b"\x45", plain.get("flags")),
            _filled(b"\x4a", plain.get("trace_id", b"")),
            _filled(b"\x52", plain.get("span_id", b"")),
            _fixed64(b"\x59", plain.get("observed_time_unix_nano")),
        )
    )


# --- the encoder -------------------------------------------------------------------------------------------------


class _UnusualError(Exception):
    """The fast path does not know this span."""


_UNUSUAL = Exception
"""What the fast path trips over: what a program has put into a span may raise anything."""


def _refusing(write: Callable[P, V]) -> Callable[P, V]:
    """Raise ApiError for whatever ``write`` trips over; what else this package raises is not about the value."""

    @wraps(write)
    def guarded(*arguments: P.args, **given: P.kwargs) -> V:
        try:
            return write(*arguments, **given)
        except KongTraceError:
            raise
        except _UNUSUAL as error:
            raise ApiError(f"a field that cannot be written: {error}") from None

    return guarded


def _remember(memo: dict[K, V], key: K, value: V) -> V:
    if len(memo) >= MEMO_ENTRIES_MAX:
        memo.clear()
    memo[key] = value
    return value


def _of(memos: dict[str, dict[int, bytes]], key: str) -> dict[int, bytes]:
    """The memo of one key."""
    memo = memos.get(key)
    return _remember(memos, key, {}) if memo is None else memo


_Head = tuple[bytes, Callable[..., bytes], Callable[..., bytes]]


class Encoder:
    """Writes spans and log records; a worker has one, for its memos.

    Args:
        rules: what the profile prescribes.
    """

    __slots__ = ("_heads", "_integers", "_rules", "_text_starts")

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        # By name; by key and length; by key and value.
        self._heads: dict[str, _Head] = {}
        self._text_starts: dict[str, dict[int, bytes]] = {}
        self._integers: dict[str, dict[int, bytes]] = {}

    def encode_span(self, span: SpanData, trace_id: bytes | None = None) -> bytes:
        """The bytes of one entry of ``ScopeSpans.spans``, ready to be concatenated; they refer to nothing.

        Args:
            span: the span; finished or not.
            trace_id: the raw trace id of the request, in place of the span's own (O13, O17).

        Raises:
            ApiError: the span has no trace id, or holds something that cannot be written.
        """
        [encoded] = self.encode_spans((span,), trace_id)
        return encoded

    def encode_spans(  # noqa: C901, PLR0912 - one loop without a call in it, which would cost a tenth of a span
        self, spans: Iterable[SpanData], trace_id: bytes | None = None, refused: list[ApiError] | None = None
    ) -> list[bytes]:
        """The same for the spans of one request, which is faster than one by one: what they share is written once.

        Args:
            spans: finished or not.
            trace_id: see :meth:`encode_span`.
            refused: takes the error of each span that cannot be written, and the others are written; without it the
                first of these errors is raised.
        """
        heads, text_starts, integers = self._heads, self._text_starts, self._integers
        trace = parent = ids = parent_field = None
        encoded: list[bytes] = []
        for span in spans:
            try:
                if span.trace_id is not trace:
                    own = span.trace_id if trace_id is None else trace_id
                    if len(own) != TRACE_ID_BYTES:
                        raise _UnusualError
                    ids, trace = _TRACE_ID + own + _SPAN_ID, span.trace_id
                span_id = span.span_id
                start = span.start_time_ns
                end = span.end_time_ns
                if len(span_id) != SPAN_ID_BYTES or not (start and end):
                    raise _UnusualError
                try:
                    name, pack, pack_with_parent = heads[span.name]
                except KeyError:
                    name, pack, pack_with_parent = self._learn_name(span.name)
                parent_id = span.parent_id
                if parent_id is None:
                    body = pack(ids, span_id, name, _KINDS[span.kind], start, _END, end)
                else:
                    if parent_id is not parent:
                        if len(parent_id) != SPAN_ID_BYTES:
                            raise _UnusualError
                        parent_field, parent = _PARENT_ID + parent_id, parent_id
                    body = pack_with_parent(ids, span_id, parent_field, name, _KINDS[span.kind], start, _END, end)
                attributes = span.attributes
                if attributes is not None:
                    for key, value in attributes.items():
                        try:
                            if type(value) is str:
                                text = value.encode()
                                body += text_starts[key][len(text)] + text
                            elif type(value) is int:
                                body += integers[key][value]
                            else:
                                body += self._attribute(key, value)
                        except KeyError:
                            body += self._learn_attribute(key, value)
                if span.events is not None:
                    body += self._events(span.events)
                if span.status is not None:
                    body += _STATUS.get(span.status, b"")
                try:
                    encoded.append(_SPAN_STARTS[len(body)] + body)
                except IndexError:
                    encoded.append(_field(b"\x12", body))
            except _UNUSUAL:
                encoded += self._unusual(span, trace_id, refused)
        return encoded

    @_refusing
    def transform_span(self, span: SpanData, trace_id: bytes | None = None) -> Plain:
        """A copy of a span as plain dicts in the shape of OTLP: what an exporter of another format keeps of it.

        Nothing in it is shared with the span, however deep (H6). Ids are fitted, values carry their type:
        ``{"trace_id": ..., "attributes": [{"key": "http.method", "value": {"string_value": "GET"}}], ...}``. A field
        that the span does not have is left out, except ``parent_span_id``, then empty, and ``kind``, then 0 (L2).

        Args:
            span: the span; finished or not.
            trace_id: the raw trace id of the request, in place of the span's own (O13, O17).

        Raises:
            ApiError: the span has no trace id, an id that is not bytes, or attributes that are no mapping; or it holds
                something else that has no such form, such as a list within itself.
        """
        trace_id = span.trace_id if trace_id is None else trace_id
        if trace_id is None:
            raise ApiError("span without a trace id")
        return _present(
            {
                "trace_id": fit_id(trace_id, TRACE_ID_BYTES),
                "span_id": span.span_id,
                "parent_span_id": b"" if span.parent_id is None else fit_id(span.parent_id, SPAN_ID_BYTES),
                "name": self._plain_name(span.name),
                "kind": span.kind if is_given(span.kind) else 0,
                "start_time_unix_nano": span.start_time_ns,
                "end_time_unix_nano": span.end_time_ns,
                "attributes": self._plain_attributes(span.attributes, _ENTRY_ROOM),
                "events": self._plain_events(span.events),
                "links": self._plain_links(span.events),
                "status": {"code": span.status} if span.status in _STATUS else None,
            }
        )

    @_refusing
    def encode_resource(self, attributes: Mapping[str, Any] | None, *, instance_id: str, version: str) -> bytes:
        """The resource of every request of one configuration; made once, kept with the configuration (L6, O19).

        Args:
            attributes: the configured ones, which override the defaults.
            instance_id: id of the node, ``service.instance.id``.
            version: version of the gateway, ``service.version``.

        Raises:
            ApiError: an attribute cannot be written.
        """
        defaults = {"service.name": "kong", "service.instance.id": instance_id, "service.version": version}
        merged = sorted({**defaults, **(attributes or {})}.items(), key=lambda item: _text(item[0]))
        return _field(b"\x0a", _key_values(b"\x0a", self._plain_entries(dict(merged), _RESOURCE_ROOM)))

    @_refusing
    def prepare_logs(self, logs: Iterable[Mapping[str, Any]], trace_id: bytes | None, flags: int | None) -> list[Plain]:
        """Log records in the shape of OTLP (L5).

        Args:
            logs: mappings with ``log_level`` (nginx's number), ``body``, ``attributes`` (required),
                ``time_unix_nano``, ``observed_time_unix_nano`` and ``span_id``; the others may be missing.
            trace_id: bytes, or None.
            flags: W3C trace flags, or None.

        Raises:
            ApiError: the attributes of one are no mapping, or it holds something else that has no such form.
        """
        return [self._plain_log(log, trace_id, flags) for log in logs]

    def _attribute(self, key: object, value: object) -> bytes:
        """A span's attribute; one that is None is not there."""
        if value is None:
            return b""
        return _key_value(_ATTRIBUTES, self._plain_text(key), self._plain_value(key, value, ATTRIBUTE_ROOM))

    def _learn_attribute(self, key: object, value: str | int) -> bytes:
        """The same, which the memos did not know.

        They keep keys that are texts, of which equal ones are written alike, unlike 1 and True; and none whose texts
        are written as something else.
        """
        attribute = self._attribute(key, value)
        if type(key) is str:
            if type(value) is int:
                _remember(_of(self._integers, key), value, attribute)
            elif key not in self._rules.integer_keys:
                size = len(_text(value))
                _remember(_of(self._text_starts, key), size, attribute[: len(attribute) - size])
        return attribute

    def _learn_name(self, name: Any) -> _Head:
        """The field of a name; what packs it with ids, kind and times, for a root and for a child."""
        if type(name) is not str:
            raise _UnusualError
        field = _name(b"\x2a", name)
        size = len(field)
        root = struct.Struct(f"<{_IDS_START_BYTES}s8s{size}s3sqBq").pack
        child = struct.Struct(f"<{_IDS_START_BYTES}s8s{_PARENT_BYTES}s{size}s3sqBq").pack
        return _remember(self._heads, name, (field, root, child))

    def _unusual(self, span: SpanData, trace_id: bytes | None, refused: list[ApiError] | None) -> list[bytes]:
        """The bytes of a span that the fast path does not know; none if it cannot be written."""
        try:
            return [self._encode_unusual(span, trace_id)]
        except ApiError as error:
            if refused is None:
                raise
            refused.append(error)
            return []

    @_refusing
    def _encode_unusual(self, span: SpanData, trace_id: bytes | None) -> bytes:
        return _field(b"\x12", _span(self.transform_span(span, trace_id)))

    def _events(self, events: Any) -> bytes:
        plain = self._plain_events(events) or ()
        if len(plain) < len(events):
            raise _UnusualError  # there are links among them
        return b"".join([_field(b"\x5a", _event(event)) for event in plain])

    def _plain_log(self, log: Mapping[str, Any], trace_id: bytes | None, flags: int | None) -> Plain:
        plain = {field: value for field, value in log.items() if field != "log_level"}
        number, text = SEVERITIES.get(log.get("log_level"), (None, None))  # type: ignore[arg-type]  # None is no level
        attributes = self._plain_attributes(log.get("attributes"), _ENTRY_ROOM)
        if attributes is None:
            raise ApiError("invalid attributes")
        plain |= {
            "severity_number": number,
            "severity_text": text,
            "trace_id": trace_id,
            "flags": flags,
            "attributes": attributes,
            "body": self._plain_body(log.get("body")),
        }
        return _present(plain)

    def _plain_body(self, body: object) -> Plain:
        if body is None:
            return {}
        return {"string_value": body} if self._rules.refuses else self._plain_value(None, body, _ENTRY_ROOM - 1)

    def _plain_attributes(self, attributes: object, room: int) -> list[Plain] | None:
        if attributes is None or attributes is False:
            return None
        if isinstance(attributes, (list, tuple)):
            attributes = dict(enumerate(attributes, start=1))
        if not isinstance(attributes, Mapping):
            raise ApiError("invalid attributes")
        return self._plain_entries(attributes, room)

    def _plain_events(self, events: object) -> list[Plain] | None:
        if not isinstance(events, (list, tuple)):
            return None
        return [
            _present(
                {
                    "name": self._plain_name(name),
                    "time_unix_nano": time_ns,
                    "attributes": self._plain_attributes(attributes, _ENTRY_ROOM - 1),
                }
            )
            for name, time_ns, attributes in [event for event in events if type(event) is not Link]
        ]

    def _plain_links(self, events: object) -> list[Plain] | None:
        if not isinstance(events, (list, tuple)):
            return None
        links = [
            {
                "trace_id": event.trace_id,
                "span_id": event.span_id,
                "trace_state": event.trace_state,
                "attributes": self._plain_entries(event.own_attributes, _ENTRY_ROOM - 1),
                "flags": event.flags,
            }
            for event in events
            if type(event) is Link
        ]
        return links or None

    def _plain_entries(self, mapping: Mapping[Any, Any], room: int) -> list[Plain]:
        """The entries of a mapping, in a message that has room for so many within each other.

        One that is None is not there, as in any Lua table.
        """
        return [
            {"key": self._plain_text(key), "value": self._plain_value(key, value, room - 2)}
            for key, value in mapping.items()
            if value is not None
        ]

    def _plain_name(self, name: object) -> object:
        return None if name is None else self._plain_text(name)

    def _plain_text(self, text: object) -> object:
        """A name or a key."""
        if self._rules.refuses or isinstance(text, str):
            return text
        return text.decode(errors="replace") if isinstance(text, bytes) else str(text)

    def _plain_value(self, key: object, value: object, room: int) -> Plain:
        """``AnyValue`` of an attribute or of an element, whose key is None (L3), with room for so many within it."""
        if room < 1 and (room < 0 or isinstance(value, (list, tuple, dict))):
            raise ApiError("a value nested too deeply, or within itself")
        if isinstance(value, (list, tuple)):
            return {"array_value": {"values": [self._plain_value(None, element, room - 2) for element in value]}}
        if isinstance(value, dict):
            if self._rules.lua_tables and _counts(value):
                return self._plain_value(None, [value[index] for index in range(1, len(value) + 1)], room)
            return {"kvlist_value": {"values": self._plain_entries(value, room - 1)}}
        field = "int_value" if key in self._rules.integer_keys else self._field_of(value)
        return {field: value} if field else {}

    def _field_of(self, value: object) -> str | None:
        """The field of ``AnyValue`` for a scalar; None for what OTLP has no type for."""
        match value:
            case bool():
                return "bool_value"
            case str():
                return "string_value"
            case float():
                return "double_value"
            case int():
                return self._rules.integer_field if _INT64_MIN <= value <= _INT64_MAX else "double_value"
            case bytes():
                return "string_value" if self._rules.lua_tables or _is_utf8(value) else "bytes_value"
        return None


def fit_id(identifier: bytes, size: int) -> bytes:
    """An id of ``size`` bytes: the last ones of a longer id, zeros before a shorter one (X1).

    Raises:
        ApiError: it is not bytes.
    """
    if not isinstance(identifier, bytes):
        raise ApiError(f"an id must be bytes, not {type(identifier).__name__}")
    return identifier[-size:].rjust(size, b"\0")


@_refusing
def encode_log(record: Plain) -> bytes:
    """The bytes of one entry of ``ScopeLogs.log_records``, from a record of :meth:`Encoder.prepare_logs` (L5).

    Raises:
        ApiError: the record holds something that cannot be written.
    """
    return _field(b"\x12", _log_record(record))


def encode_traces(spans: Iterable[bytes], resource: bytes) -> bytes:
    """An ``ExportTraceServiceRequest``: one resource, one scope, the spans (L1).

    Args:
        spans: from :meth:`Encoder.encode_span`.
        resource: from :meth:`Encoder.encode_resource`.
    """
    content = b"".join(spans)
    start = resource + b"\x12" + _varint(len(_SCOPE) + len(content)) + _SCOPE
    return b"".join((b"\x0a", _varint(len(start) + len(content)), start, content))


def encode_logs(records: Iterable[bytes], resource: bytes) -> bytes:
    """An ``ExportLogsServiceRequest``; the two requests have the same fields.

    Args:
        records: from :func:`encode_log`.
        resource: from :meth:`Encoder.encode_resource`.
    """
    return encode_traces(records, resource)


def _present(plain: Plain) -> Plain:
    return {field: value for field, value in plain.items() if value is not None}


def _counts(table: Mapping[Any, Any]) -> bool:
    """Whether the keys are 1 to n; True is none of them, though equal to 1."""
    return table.keys() == set(range(1, len(table) + 1)) and not any(isinstance(key, bool) for key in table)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
