"""The collector: an OTLP/HTTP receiver for traces that counts and checks what it receives.

It answers as the OpenTelemetry Protocol specification (1.9, "OTLP/HTTP") has it, at `POST /v1/traces`:

| status | when | |
|---|---|---|
| 200 | spans accepted, all of them | `ExportTraceServiceResponse` |
| 400 | the body cannot be decoded, or a span has no well-formed ids | nothing of it is counted |
| 404 | another path | |
| 405 | another method | with `Allow` |
| 413 | more than `BODY_BYTES_MAX` of body, as sent or after decompression | |
| 415 | another content type than protobuf and JSON, or another coding than gzip | with `Accept-Encoding` |

A response is in the encoding of its request. Bodies of errors are a `google.rpc.Status` with a message, in JSON where
the request was in neither encoding. In JSON, ids are hex (not base64), and unknown fields are ignored.

Faults may be on (`sim.faults`, `sim.http_server`). With `status`, spans are taken in only if it is one of success; with
`partial_success`, all but a share of them. In the middle of an answer (`truncate`), and with an answer that comes too
late (`slow`), they have been taken in though their sender does not know.

A span whose sender has seen no 200 is *unanswered*: it will probably come again, and if it does not, it stands in the
sender's books as lost though it is here. So of `received_unique` spans at least those that are not unanswered are
acknowledged by their senders, and a span that comes again though it was answered is *needless*: there is no reason.

Run by a scenario it is a peer (`sim.peer`), forgets nothing and its counts are exact up to `sim.traces.SPANS_MAX`; a
span costs some 190 bytes, one that is unanswered as much again. What it takes in it may keep too (`sim.capture`).
Alone in the foreground it shows traces as they come, some 200 a second at most, and forgets each `FORGET_S` after its
last span; a duplicate later than that counts as new. What is checked is told in `sim.traces`. Sizes in bytes, latency
in ms.
"""

import asyncio
import base64
import gzip
import io
import json
import signal
import socket
import time
import zlib
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httptools
import uvloop
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status as TraceStatus
from rich.console import Console

from sim import peer
from sim.capture import Arrival
from sim.errors import UserError
from sim.http_server import HttpConnection, HttpServer, response
from sim.trace_tree import render_trace
from sim.traces import FINDINGS, Traces, is_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from google.protobuf.message import Message
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from sim.capture import Capture
    from sim.faults import Fault
    from sim.process import Connection

__all__ = ["BODY_BYTES_MAX", "PATH", "CollectorServer", "serve", "serve_forever"]

PATH: Final = "/v1/traces"

BODY_BYTES_MAX: Final = 20 * 1024 * 1024
"""The limit that OTLP recommends."""

QUIET_S: Final = 1.5
"""How long after its latest span a trace is shown: Kong's queue may hold the rest of it back for 1 s
(`max_coalescing_delay`)."""

ROOT_WAIT_S: Final = 10.0
"""How long a trace without a root is waited for before it is shown as it is."""

SHOWN_MAX: Final = 50
"""How many traces are shown at once, 3 ms each: senders wait for their answers meanwhile."""

FORGET_S: Final = 300.0
"""How long a trace is remembered in the foreground; Kong retries for 82 s at most by default."""

_TICK_S: Final = 0.25
_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000
_SUCCESS: Final = range(200, 300)
_PROTOBUF: Final = "application/x-protobuf"
_JSON: Final = "application/json"
_ID_FIELDS: Final = ("traceId", "spanId", "parentSpanId")
_TRACE_ID_BYTES: Final = 16
_SPAN_ID_BYTES: Final = 8


def serve(
    sock: "socket.socket", control: "Connection", *, latency_ms: float = 0.0, capture: "Capture | None" = None
) -> None:
    """Run the collector in this process, on the bound socket `sock`, as a peer.

    Its report:
        requests, by_status, bytes: requests, by the status of the answer, and the size of their bodies as sent.
        received: spans, of which `received_unique` are different ones, `received_duplicates` came again, and
            `unchecked` came when the limit was reached, so that nobody knows which they are.
        unanswered: different ones whose sender has seen no 200.
        needless: those that came again though their sender had seen one.
        rejected: spans not taken in that an answer of `partial_success` told of.
        received_per_s: different spans that came after the first request, by the time from it to the last one; None
            without two requests.
        traces: different ones, and what is wrong with them: `orphans, outside_parent, unfinished, rootless,
            multi_rooted`, see `sim.traces`.
        captured: spans that are kept in the capture; None without one.
        connections: accepted.
        cpu_s: CPU time of the process.

    Args:
        sock: Where to listen.
        control: The peer's end of the pipe.
        latency_ms: How long after a request its answer is sent.
        capture: Where to keep what is taken in.
    """
    server = CollectorServer(latency_ms, capture=capture)
    peer.run(control, lambda stop: server.serve(sock, stop), server.report, server.obey)


def serve_forever(
    host: str, port: int, *, latency_ms: float = 0.0, faults: "Iterable[Fault]" = (), console: Console | None = None
) -> None:
    """Run the collector in the foreground until SIGINT or SIGTERM.

    Prints where to send traces, each trace once its root has come and `QUIET_S` passed, and totals at the end.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.
        latency_ms: How long after a request its answer is sent.
        faults: What goes wrong, and when after the start.
        console: Where to print, else standard output.

    Raises:
        UserError: The address cannot be listened on.
    """
    try:
        sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # `create_server` adds the address once more
        raise UserError(f"cannot listen on {host}:{port}: {reason}", cure="choose another host or port") from error
    uvloop.run(_show_forever(sock, latency_ms, faults, console or Console()))


_SpanKey = tuple[bytes, bytes]
"""Trace id and span id."""


class _Upload(NamedTuple):
    method: str
    path: str
    content_type: str
    coding: str
    body: bytes | None  # None: too large


class _Refusal(Exception):  # noqa: N818 - it is the answer that is named, not an error of ours
    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class _Connection(HttpConnection):
    server: "CollectorServer"

    def __init__(self, server: "CollectorServer") -> None:
        super().__init__(server)
        self._begin()
        self._unanswered: list[_SpanKey] = []  # of the request under way

    def _begin(self) -> None:
        self._target = b""
        self._content_type = ""
        self._coding = ""
        self._body: list[bytes] = []
        self._body_bytes = 0

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        match name.lower():
            case b"content-type":
                self._content_type = value.decode("latin-1").partition(";")[0].strip().lower()
            case b"content-encoding":
                self._coding = value.decode("latin-1").strip().lower()

    def on_body(self, part: bytes) -> None:
        self._body_bytes += len(part)
        if self._body_bytes <= BODY_BYTES_MAX:
            self._body.append(part)
        else:
            self._body.clear()  # the rest is read too, so that the client gets to read the answer

    def request(self) -> _Upload:
        self.server.bytes += self._body_bytes
        body = b"".join(self._body) if self._body_bytes <= BODY_BYTES_MAX else None
        method = self.parser.get_method().decode("latin-1")
        upload = _Upload(method, _path(self._target), self._content_type, self._coding, body)
        self._begin()
        return upload

    def respond(self, request: _Upload, keep_alive: bool) -> tuple[bytes, int]:
        server = self.server
        encode = _ENCODERS.get(request.content_type, _encode_json)
        headers = {"Content-Type": _PROTOBUF if encode is _encode_protobuf else _JSON}
        self._unanswered = []
        try:
            status, answer, received = server.receive(request)
            body = encode(answer)
            if status == HTTPStatus.OK:
                self._unanswered = received
        except _Refusal as refusal:
            status, body = refusal.status, encode(_status_message(str(refusal)))
            headers |= refusal.headers
        server.by_status[status] += 1
        head = request.method == "HEAD"
        return response(status, headers, body, head=head, keep_alive=keep_alive), server.latency_ns

    def sent(self) -> None:
        self.server.unanswered.difference_update(self._unanswered)


class CollectorServer(HttpServer):
    """The collector on one event loop; `serve` runs one in a process of its own.

    Args:
        latency_ms: How long after a request its answer is sent.
        listener: Gets every new span.
        capture: Keeps every request.
    """

    def __init__(
        self,
        latency_ms: float,
        listener: "Callable[[Span], None] | None" = None,
        capture: "Capture | None" = None,
    ) -> None:
        super().__init__()
        self.traces = Traces()
        self.by_status: Counter[int] = Counter()
        self.bytes = 0
        self.rejected = 0
        self._rejected_rest = 0.0  # what was no whole span of the requests so far
        self.needless = 0
        self.unanswered: set[_SpanKey] = set()
        self._first_spans = 0
        self._first_ns = self._latest_ns = 0  # of the requests that brought spans
        self.latency_ns = round(latency_ms * _NS_PER_MS)
        self._listener = listener
        self._capture = capture

    def accept(self) -> _Connection:
        """Return the protocol of a new connection."""
        return _Connection(self)

    def receive(self, upload: _Upload) -> "tuple[int, ExportTraceServiceResponse, list[_SpanKey]]":
        """Take in the spans of a request, all of them or, with a `_Refusal`, none.

        Returns:
            The status, the answer's message, and which spans it is about.
        """
        request = _decoded(upload)
        spans = _spans(request)
        fault = self.faults.get("status")
        status = fault.status if fault else int(HTTPStatus.OK)
        if fault and status not in _SUCCESS:
            headers = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:.0f}"}
            raise _Refusal(status, "fault of kind status", **headers)
        answer = ExportTraceServiceResponse()
        rejected = 0
        if partial := self.faults.get("partial_success"):
            share = self._rejected_rest + partial.rejected * len(spans)
            rejected = min(round(share), len(spans))
            self._rejected_rest = share - rejected
            spans = spans[rejected:]
            self.rejected += rejected
            answer.partial_success.rejected_spans = rejected
            answer.partial_success.error_message = "fault of kind partial_success"
        self._note_time(len(spans))
        if self._capture is not None:
            self._capture.add(Arrival(self._latest_ns, rejected, request.SerializeToString()), len(spans))
        return status, answer, [self._take_in(span) for span in spans]

    def _take_in(self, span: "Span") -> _SpanKey:
        key = span.trace_id, span.span_id
        if self.traces.add(span):
            self.unanswered.add(key)
            if self._listener:
                self._listener(span)
        elif key not in self.unanswered and self.traces.knows(*key):
            self.needless += 1
        return key

    def forget(self, trace_ids: "list[bytes]") -> None:
        """Free the memory of traces that nothing more is expected of."""
        if trace_ids:
            self.traces.forget(trace_ids)
            gone = dict.fromkeys(trace_ids)
            self.unanswered = {key for key in self.unanswered if key[0] not in gone}

    def _note_time(self, spans: int) -> None:
        self._latest_ns = self.now_ns()
        if not self._first_ns:
            self._first_ns, self._first_spans = self._latest_ns, spans

    def report(self) -> dict[str, Any]:
        """Return what `serve` reports."""
        traces, spanned_ns = self.traces, self._latest_ns - self._first_ns
        return {
            "requests": self.by_status.total(),
            "by_status": {int(status): count for status, count in self.by_status.items()},
            "bytes": self.bytes,
            "received": traces.received,
            "received_unique": traces.unique,
            "received_duplicates": traces.received - traces.unique - traces.unchecked,
            "unchecked": traces.unchecked,
            "unanswered": len(self.unanswered),
            "needless": self.needless,
            "rejected": self.rejected,
            "received_per_s": (traces.unique - self._first_spans) * _NS_PER_S / spanned_ns if spanned_ns else None,
            "traces": traces.seen,
            **traces.findings(),
            "captured": None if self._capture is None else self._capture.spans,
            "connections": self.accepted,
            "cpu_s": time.process_time(),
        }


# From a request to spans.


def _path(target: bytes) -> str:
    try:
        return (httptools.parse_url(target).path or b"").decode("latin-1")
    except httptools.HttpParserInvalidURLError:
        return ""


def _decoded(upload: _Upload) -> ExportTraceServiceRequest:
    if upload.path != PATH:
        raise _Refusal(HTTPStatus.NOT_FOUND, f"nothing here; send traces to {PATH}")
    if upload.method != "POST":
        raise _Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"send traces with POST, not {upload.method}", Allow="POST")
    if upload.content_type not in _DECODERS:
        raise _Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"send traces as {' or '.join(_DECODERS)}, not {upload.content_type or 'without a content type'}",
        )
    body = _decompressed(upload)
    try:
        return _DECODERS[upload.content_type](body)
    except (DecodeError, json_format.ParseError, ValueError, RecursionError) as error:
        raise _Refusal(HTTPStatus.BAD_REQUEST, f"not an ExportTraceServiceRequest: {error}") from error


def _spans(request: ExportTraceServiceRequest) -> "list[Span]":
    spans = [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
    for span in spans:
        _check_ids(span)
    return spans


def _decompressed(upload: _Upload) -> bytes:
    body = upload.body
    if body is not None and upload.coding in ("gzip", "x-gzip"):
        try:
            body = gzip.GzipFile(fileobj=io.BytesIO(body)).read(BODY_BYTES_MAX + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise _Refusal(HTTPStatus.BAD_REQUEST, f"not gzip, as Content-Encoding says: {error}") from error
    elif upload.coding not in ("", "identity"):
        raise _Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"send the body gzipped or as it is, not in {upload.coding}",
            **{"Accept-Encoding": "gzip, identity"},
        )
    if body is None or len(body) > BODY_BYTES_MAX:
        raise _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {BODY_BYTES_MAX} bytes of body")
    return body


def _check_ids(span: "Span") -> None:
    """Refuse ids that OTLP calls invalid: of another length, or all zeros."""
    if len(span.trace_id) != _TRACE_ID_BYTES or not any(span.trace_id):
        raise _Refusal(HTTPStatus.BAD_REQUEST, f"span {span.name!r}: trace_id must be 16 bytes, not all zero")
    if len(span.span_id) != _SPAN_ID_BYTES or not any(span.span_id):
        raise _Refusal(HTTPStatus.BAD_REQUEST, f"span {span.name!r}: span_id must be 8 bytes, not all zero")
    if len(span.parent_span_id) not in (0, _SPAN_ID_BYTES):
        raise _Refusal(HTTPStatus.BAD_REQUEST, f"span {span.name!r}: parent_span_id must be 8 bytes, or left out")


def _decode_protobuf(body: bytes) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(body)


def _decode_json(body: bytes) -> ExportTraceServiceRequest:
    decoded = json.loads(body, object_hook=_hex_to_base64)
    if not isinstance(decoded, dict):
        raise ValueError("it must be a JSON object")  # noqa: TRY004 - of the body's content, not of a program's types
    try:
        return json_format.ParseDict(decoded, ExportTraceServiceRequest(), ignore_unknown_fields=True)
    except (OverflowError, SystemError) as error:  # an infinite integer; a field whose name is half a surrogate pair
        raise ValueError("a number or a name in it is none that can be") from error


def _hex_to_base64(message: dict[str, Any]) -> dict[str, Any]:
    """Turn OTLP's hex ids into what protobuf's JSON has for bytes; no other message has fields of these names."""
    for name in _ID_FIELDS:
        if isinstance(message.get(name), str):
            message[name] = base64.urlsafe_b64encode(bytes.fromhex(message[name])).decode()
    return message


# From an answer to bytes.


def _status_message(message: str) -> TraceStatus:
    # `google.rpc.Status` is not among our dependencies; the message of the trace status is the same field, 2, a string.
    return TraceStatus(message=message.encode(errors="replace").decode())  # it may quote what is no Unicode


def _encode_protobuf(message: "Message") -> bytes:
    return message.SerializeToString()


def _encode_json(message: "Message") -> bytes:
    return json_format.MessageToJson(message, indent=None).encode()


_DECODERS: "Final[dict[str, Callable[[bytes], ExportTraceServiceRequest]]]" = {
    _PROTOBUF: _decode_protobuf,
    _JSON: _decode_json,
}
_ENCODERS: "Final[dict[str, Callable[[Message], bytes]]]" = {_PROTOBUF: _encode_protobuf, _JSON: _encode_json}


# In the foreground.


async def _show_forever(sock: socket.socket, latency_ms: float, faults: "Iterable[Fault]", console: Console) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    screen = _Screen(console)
    server = CollectorServer(latency_ms, screen.take)
    console.print(f"collector: send OTLP/HTTP traces to {_url(sock)}", highlight=False, soft_wrap=True)

    def tick() -> None:
        now_s = loop.time()
        screen.show(screen.due(now_s))
        server.forget(screen.forgotten(now_s))
        loop.call_later(_TICK_S, tick)

    def begin(fault: "Fault") -> None:
        server.begin(fault)
        console.print(f"fault {fault.kind} begins", highlight=False)
        if fault.lasts is not None:  # counted from here: of two deadlines in one ms either may come first
            loop.call_later(fault.lasts, end, fault)
        if fault.every is not None:
            loop.call_later(fault.every, begin, fault)

    def end(fault: "Fault") -> None:
        server.end(fault)
        console.print(f"fault {fault.kind} ends", highlight=False)

    for fault in faults:
        loop.call_later(fault.at, begin, fault)
    tick()
    await server.serve(sock, stop)
    screen.show(list(screen.waiting))
    report = server.report()
    names = ("requests", "received", "received_unique", "received_duplicates", "unanswered", "traces", *FINDINGS)
    console.print(", ".join(f"{name} {report[name]}" for name in names), highlight=False, soft_wrap=True)


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}{PATH}" if ":" in host else f"http://{host}:{port}{PATH}"


class _Screen:
    """The traces that wait to be shown, and those that have been."""

    def __init__(self, console: Console) -> None:
        self.waiting: dict[bytes, list[Span]] = {}  # by trace id
        self._console = console
        self._latest_s: dict[bytes, float] = {}  # when each trace got its latest span, oldest first

    def take(self, span: "Span") -> None:
        self.waiting.setdefault(span.trace_id, []).append(span)
        self._latest_s.pop(span.trace_id, None)
        self._latest_s[span.trace_id] = asyncio.get_running_loop().time()

    def due(self, now_s: float) -> list[bytes]:
        idle_s = {trace_id: now_s - self._latest_s[trace_id] for trace_id in self.waiting}
        return [
            trace_id
            for trace_id, spans in self.waiting.items()
            if idle_s[trace_id] >= ROOT_WAIT_S or (idle_s[trace_id] >= QUIET_S and _has_root(spans))
        ]

    def show(self, trace_ids: "Sequence[bytes]") -> None:
        for trace_id in trace_ids[:SHOWN_MAX]:
            self._console.print(render_trace(self.waiting.pop(trace_id)), highlight=False)
        if passed_over := trace_ids[SHOWN_MAX:]:
            for trace_id in passed_over:
                del self.waiting[trace_id]
            text = f"and {len(passed_over)} traces more, which are counted but not shown: they come too fast for that"
            self._console.print(text, highlight=False, soft_wrap=True)

    def forgotten(self, now_s: float) -> list[bytes]:
        old = []
        for trace_id, latest_s in self._latest_s.items():
            if now_s - latest_s < FORGET_S:
                break
            old.append(trace_id)
        for trace_id in old:
            del self._latest_s[trace_id]
        return old


def _has_root(spans: "list[Span]") -> bool:
    span_ids = {span.span_id: None for span in spans}
    return any(is_root(span, span_ids) for span in spans)
