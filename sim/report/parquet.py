"""workers.parquet and spans.parquet: the workers over time, and the spans that arrived, for who asks questions of them.

`docs/run-folder.md` explains each column. Needs pyarrow, of the extra `report`.
"""

import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pyarrow.parquet import ParquetWriter

from sim.report.recording import Recording
from sim.scoreboard import FIELD_INDEX, FIELDS, State

__all__ = ["SPANS", "WORKERS", "write_spans", "write_workers"]

WORKERS: Final = pa.schema(
    [
        ("elapsed_s", pa.float64()),
        ("time_ns", pa.int64()),
        *((name, pa.int32()) for name in ("slot", "incarnation", "generation", "pid")),
        ("state", pa.string()),
        *((field.name.replace(".", "_"), pa.int64()) for field in FIELDS if field.name != "state"),
    ]
)
"""A row for each living worker process at each moment, by time."""

SPANS: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("trace_id", "span_id", "parent_span_id", "name", "kind")),
        ("start_ns", pa.int64()),
        ("end_ns", pa.int64()),
        *((name, pa.string()) for name in ("status", "status_message", "attributes", "events", "links")),
        *((name, pa.string()) for name in ("scope", "service", "resource")),
        ("received_ns", pa.int64()),
        ("duplicate", pa.bool_()),
    ]
)
"""A row for each span that arrived, as often as it did, in the order of arrival."""

_ROWS_AT_ONCE: Final = 20_000
_INT64_MAX: Final = (1 << 63) - 1
_NS_PER_S: Final = 1_000_000_000
_STATE: Final = FIELD_INDEX["state"]
_KINDS: Final = {number: name.removeprefix("SPAN_KIND_").lower() for name, number in Span.SpanKind.items()}
_STATUSES: Final = {number: name.removeprefix("STATUS_CODE_").lower() for name, number in Status.StatusCode.items()}
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_Row = tuple[Any, ...]


def write_workers(recording: Recording, path: Path) -> None:
    """Write the samples of a run; raises OSError."""
    _write(_worker_rows(recording), WORKERS, path)


def write_spans(recording: Recording, path: Path) -> None:
    """Write the spans that were kept of a run; raises OSError."""
    _write(_span_rows(recording), SPANS, path)


def _write(rows: Iterator[_Row], schema: pa.Schema, path: Path) -> None:
    # Of a path pyarrow would ask whether it is an address.
    with path.open("wb") as file, ParquetWriter(file, schema, compression="zstd") as writer:
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            columns = zip(*some, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _worker_rows(recording: Recording) -> Iterator[_Row]:
    for sample in recording.samples:
        time_ns = recording.load_unix_ns + round(sample.elapsed_s * _NS_PER_S)
        for worker in sample.workers:
            values = worker.values.tolist()
            state = State(values.pop(_STATE)).name.lower()
            yield sample.elapsed_s, time_ns, *worker[:-1], state, *values


def _span_rows(recording: Recording) -> Iterator[_Row]:
    seen: set[bytes] = set()
    for arrived_ns, rejected, message in recording.capture:
        received_ns = arrived_ns - recording.load_steady_ns + recording.load_unix_ns
        for span, *origin in islice(_spans(message), rejected, None):
            key = span.trace_id + span.span_id
            yield *_told(span), *origin, received_ns, key in seen
            seen.add(key)


def _spans(message: bytes) -> Iterator[tuple[Span, str, str | None, str]]:
    """Yield each span of an export request with its scope, its service and its resource."""
    for group in ExportTraceServiceRequest.FromString(message).resource_spans:
        attributes = _plain(group.resource.attributes)
        resource, name = _json(attributes), attributes.get("service.name")
        service = name if isinstance(name, str) else None
        for scoped in group.scope_spans:
            for span in scoped.spans:
                yield span, scoped.scope.name, service, resource


def _told(span: Span) -> _Row:
    return (
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex() or None,
        span.name,
        _KINDS.get(span.kind, str(span.kind)),
        _time_ns(span.start_time_unix_nano),
        _time_ns(span.end_time_unix_nano),
        _STATUSES.get(span.status.code, str(span.status.code)),
        span.status.message or None,
        _json(_plain(span.attributes)) if span.attributes else "{}",  # most have none, and encoding takes its time
        _json([*map(_event, span.events)]) if span.events else None,
        _json([*map(_link, span.links)]) if span.links else None,
    )


def _event(event: Span.Event) -> dict[str, Any]:
    return {"name": event.name, "time_ns": _time_ns(event.time_unix_nano), "attributes": _plain(event.attributes)}


def _link(link: Span.Link) -> dict[str, Any]:
    return {"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex(), "attributes": _plain(link.attributes)}


def _time_ns(unix_ns: int) -> int | None:
    """Return a time, None where there is none: 0, or after the year 2262, which no table of ns can hold."""
    return unix_ns if 0 < unix_ns <= _INT64_MAX else None


def _plain(attributes: Sequence[KeyValue]) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    match kind:
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _plain(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()
        case "double_value" if not math.isfinite(value.double_value):
            return str(value.double_value)  # JSON has no such number
        case _:
            return getattr(value, kind)
