"""`kong.log` and `kong.telemetry`: lines in the error log, and log records for an exporter.

A line begins as Kong's do: `[kong] file.py:12 [my-plugin] message`. While a plugin exports logs, each line is kept as a
record too, with the span that was active; `kong.telemetry.log` makes records that are in no log (kong-semantics O20).
"""

import os
from collections.abc import Mapping
from sys import _getframe
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from kongtrace import TracerProvider
from sim.absence import Incomplete
from sim.pdk.serializer import Serializer
from sim.request import REQUEST

if TYPE_CHECKING:
    from sim.pdk import Kong

LEVELS: Final = {"debug": 8, "info": 7, "notice": 6, "warn": 5, "error": 4, "crit": 3, "alert": 2, "emerg": 1}
"""nginx's numbers of its levels, in the scale that log records are made from (`kongtrace.otlp.SEVERITIES`)."""

RECORDS_MAX: Final = 1_000
"""Log records that one request, and one worker outside of requests, keeps at most (O20)."""

RECORDS: Final = "KONG_LOG_RECORDS"
"""Key of a request's log records in its context."""

_Record = dict[str, Any]


class Records:
    """The log records of a worker, while anybody exports them.

    Args:
        provider: of the worker's tracers.

    Attributes:
        wanted: a plugin exports logs.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._outside: list[_Record] = []
        self.wanted = False

    def take(self, ctx: dict[str, Any]) -> tuple[list[_Record], list[_Record]]:
        """Give what the request has kept, and what the worker has kept outside of requests; both are empty then."""
        outside, self._outside = self._outside, []
        return [record for record in ctx.pop(RECORDS, ()) if record], [record for record in outside if record]

    def add(self, level: str, body: Any, attributes: Mapping[str, Any]) -> None:
        """Keep a record, or say once that there are too many."""
        execution = self._provider.execution
        ctx = execution.ctx
        in_request = ctx is not None and REQUEST in ctx
        kept: list[_Record] = ctx.setdefault(RECORDS, []) if ctx is not None and in_request else self._outside
        if len(kept) >= RECORDS_MAX:
            if len(kept) == RECORDS_MAX:
                kept.append({})
                self._provider.log("notice", f"{RECORDS_MAX} log records are kept already, the others are dropped")
            return
        now_ns = self._provider.time_ns()
        record: _Record = {
            "log_level": LEVELS[level],
            "body": body,
            "attributes": dict(attributes),
            "time_unix_nano": now_ns,
            "observed_time_unix_nano": now_ns,
        }
        if in_request and ctx is not None:
            active = self._provider.global_tracer.active_span()
            record["span_id"] = getattr(active, "span_id", None)
            record["attributes"].setdefault("request.id", ctx[REQUEST].id.decode())
        kept.append(record)


class Log(Serializer):
    """`kong.log`: called, or by level; several arguments are concatenated, with nothing between them.

    Args:
        provider: of the worker's tracers; its log takes the lines.
        records: of the worker.
        level: the least severe that is written, and kept.
        kong: the other parts of the PDK.
    """

    def __init__(self, provider: TracerProvider, records: Records, level: str, kong: "Kong") -> None:
        super().__init__(provider.execution, kong)
        self._least = LEVELS[level]
        self._write_line = provider.log
        self._records = records

    def __call__(self, *message: object) -> None:
        """Log at level notice."""
        self._log("notice", message)

    def debug(self, *message: object) -> None:
        """Log at level debug."""
        self._log("debug", message)

    def info(self, *message: object) -> None:
        """Log at level info."""
        self._log("info", message)

    def notice(self, *message: object) -> None:
        """Log at level notice."""
        self._log("notice", message)

    def warn(self, *message: object) -> None:
        """Log at level warn."""
        self._log("warn", message)

    def err(self, *message: object) -> None:
        """Log at level error."""
        self._log("error", message)

    def crit(self, *message: object) -> None:
        """Log at level crit."""
        self._log("crit", message)

    def alert(self, *message: object) -> None:
        """Log at level alert."""
        self._log("alert", message)

    def emerg(self, *message: object) -> None:
        """Log at level emerg."""
        self._log("emerg", message)

    def inspect(self, *values: object) -> None:
        """Log values as Python shows them, at level debug."""
        self._log("debug", (" ".join(map(repr, values)),))

    def write(self, level: str, message: str) -> None:
        """Log at a level by its name."""
        self._log(level, (message,))

    def _log(self, level: str, message: tuple[object, ...]) -> None:
        if LEVELS[level] > self._least:
            return
        text = "".join(map(str, message))
        frame = _getframe(2)
        ctx = self._execution.ctx
        request = ctx.get(REQUEST) if ctx is not None else None
        plugin = f" [{request.handler.name}]" if request is not None and request.handler is not None else ""
        where = f"{_file(frame)}:{frame.f_lineno}"
        self._write_line(level, f"[kong] {where}{plugin} {text}")
        if self._records.wanted:
            source = {"introspection.source": _file(frame), "introspection.current.line": frame.f_lineno}
            self._records.add(level, text, source)


class Telemetry(Incomplete):
    """`kong.telemetry`.

    Args:
        records: of the worker.
    """

    _path = "kong.telemetry"

    def __init__(self, records: Records) -> None:
        self._records = records

    def log(
        self, plugin_name: Any, plugin_config: Any, message_type: Any, message: Any, attributes: Any = None
    ) -> tuple[bool | None, str | None]:
        """Keep a log record that goes to the exporter alone (O20).

        Args:
            plugin_name: text.
            plugin_config: of the plugin.
            message_type: text, the attribute `message.type`.
            message: text, the record's body.
            attributes: mapping, or None.

        Returns:
            True and None; or None and the reason why not.
        """
        for name, value in {"plugin_name": plugin_name, "message_type": message_type, "message": message}.items():
            if not isinstance(value, str):
                return None, f"{name} must be a string"
        if plugin_config is None or not isinstance(attributes, Mapping | None):
            return None, f"{'attributes' if plugin_config is not None else 'plugin_config'} must be a table"
        if not self._records.wanted:
            return None, "Telemetry logging is disabled"
        named = {"message.type": message_type, "plugin.name": plugin_name}
        self._records.add("info", message, {**(attributes or {}), **named})
        return True, None


def _file(frame: FrameType) -> str:
    return os.path.basename(frame.f_code.co_filename)  # noqa: PTH119 - a name, at each line of the log
