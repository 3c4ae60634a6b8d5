"""The trace-exporter plugin: the custom exporter of Kong's documentation, complete (kong-semantics D22).

In *log* it copies every sampled span of its own tracer and of the global one, drops what refers to live objects, writes
the ids as hexadecimal digits, sorts by start time and encodes all as one line of JSON: only then, since spans are
recycled when the log phase is over, and since nothing there may wait, a timer with no delay sends the line over TCP.
"""

import json
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from kongtrace import Span
from sim import __version__
from sim.document import Model
from sim.pdk import Kong

TRACER: Final = "trace-exporter"

_FIELDS: Final = (
    *("name", "trace_id", "span_id", "parent_id", "kind", "start_time_ns", "end_time_ns"),
    *("should_sample", "attributes", "status"),
)
"""What is copied of a span, apart from its events: not `tracer`, and not `parent`."""


class TraceExporterConfig(Model):
    """Configuration of the plugin.

    Attributes:
        host: that takes the lines, a name or an address.
        port: of it.
        custom_spans: make a span of its own in rewrite, access and header_filter, each left active for the next to end,
            as the exporter of Kong's tests does; `kongsim verify` rightly finds fault with that.
        timeout: of each operation of the socket, ms.
    """

    host: str
    port: Annotated[int, Field(ge=1, le=65_535)]
    custom_spans: bool = False
    timeout: Annotated[int, Field(ge=1)] = 10_000


class TraceExporter:
    """The plugin."""

    NAME: ClassVar[str] = "trace-exporter"
    PRIORITY: ClassVar[int] = 1001
    VERSION: ClassVar[str] = __version__
    Config = TraceExporterConfig

    def __init__(self) -> None:
        self._tracer: Any

    def init_worker(self, kong: Kong) -> None:
        """Make the tracer, once (H46)."""
        self._tracer = kong.tracing(TRACER)

    def rewrite(self, kong: Kong, conf: TraceExporterConfig) -> None:
        """Start a span below the root."""
        if conf.custom_spans:
            tracer = self._tracer
            tracer.set_active_span(tracer.start_span("rewrite", {"parent": kong.tracing.active_span()}))

    def access(self, _kong: Kong, conf: TraceExporterConfig) -> None:
        """End that span and start the next."""
        self._next(conf, "access")

    def header_filter(self, _kong: Kong, conf: TraceExporterConfig) -> None:
        """End that span and start the next."""
        self._next(conf, "header_filter")

    def log(self, kong: Kong, conf: TraceExporterConfig) -> None:
        """Copy, encode, and let a timer send."""
        tracer = self._tracer
        if conf.custom_spans and (span := tracer.active_span()) is not None:
            span.finish()
        copies: list[dict[str, Any]] = []
        tracer.process_span(_copy, copies)
        kong.tracing.process_span(_copy, copies)
        if not copies:
            return
        copies.sort(key=lambda copy: copy["start_time_ns"])
        # Encoded here: a timer sees what is recycled.
        line = json.dumps(copies, default=_text) + "\n"
        created, error = kong.timer.at(0, _send, kong, conf, line)
        if not created:
            kong.log.err(f"failed to create timer: {error}")

    def _next(self, conf: TraceExporterConfig, name: str) -> None:
        if not conf.custom_spans:
            return
        tracer = self._tracer
        before: Any = tracer.active_span()
        if before is not None and before.is_recording and before.tracer.name == TRACER:
            before.finish()
        tracer.set_active_span(tracer.start_span(name))


def _copy(span: Span, copies: list[dict[str, Any]]) -> None:
    if span.should_sample is False:
        return
    copy: dict[str, Any] = {field: getattr(span, field) for field in _FIELDS}
    for field in ("trace_id", "span_id", "parent_id"):
        if copy[field] is not None:
            copy[field] = copy[field].hex()
    copy["events"] = [
        {"name": event.name, "time_ns": event.time_ns, "attributes": event.attributes} for event in span.events or ()
    ]
    copies.append(copy)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


async def _send(premature: bool, kong: Kong, conf: TraceExporterConfig, line: str) -> None:
    # A timer that the worker's leaving has set off early sends as well: there will be no other.
    del premature
    sock = kong.ngx.socket.tcp()
    sock.settimeout(conf.timeout)
    connected, error = await sock.connect(conf.host, conf.port)
    if not connected:
        kong.log.err(f"connect err: {error}")
        return
    sent, error = await sock.send(line)
    if not sent:
        kong.log.err(f"send err: {error}")
    sock.close()
