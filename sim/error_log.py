"""The error log, in nginx's format: `2026/07/01 12:00:00 [notice] 42#42: signal 15 (SIGTERM) received from 1, exiting`.

One line is one write to a file opened for appending, so lines of several processes never mix, and what is logged
before a `kill -9` is in the file. The clock is the local wall clock, as nginx's.
"""

import os
import re
import time
from pathlib import Path
from typing import Final

from sim.errors import UserError

LEVELS: Final = ("debug", "info", "notice", "warn", "error", "crit", "alert", "emerg")
"""nginx's levels, least to most severe."""

_STDERR: Final = 2
_STANDARD: Final = {Path("/dev/stdout"): 1, Path("/dev/stderr"): _STDERR}
"""What the process has inherited: opened again where it is a file, it would have a second place to write at."""


class LogFile:
    """A file that several processes append to, and that can be opened again under its name.

    Args:
        path: Where it is; None is standard error.
        field: The setting that names it.

    Raises:
        UserError: It cannot be opened.
    """

    def __init__(self, path: Path | None, field: str) -> None:
        self.path = path
        self._descriptor = _STDERR
        if path is not None:
            try:
                self._descriptor = _open(path)
            except OSError as error:
                cure = "write the path of a file in a folder that exists and may be written to"
                raise UserError(f"cannot open {path}: {error.strerror}", field=field, cure=cure) from None

    def append(self, data: bytes) -> None:
        """Write at the end; a full disk is no reason to stop."""
        try:
            written = os.write(self._descriptor, data)
            while written < len(data):  # a pipe or a nearly full disk took a part
                data = data[written:]
                written = os.write(self._descriptor, data)
        except OSError:
            return

    def reopen(self) -> OSError | None:
        """Open the file again under its name, after a log rotation; return why it cannot be, and go on with the old.

        USR1, kong-semantics W4.
        """
        if self.path is None:
            return None
        try:
            descriptor = _open(self.path)
        except OSError as error:
            return error
        self.close()
        self._descriptor = descriptor
        return None

    def close(self) -> None:
        """Close the file; what is appended afterwards goes to standard error."""
        if self._descriptor != _STDERR:
            os.close(self._descriptor)
        self._descriptor = _STDERR


def _open(path: Path) -> int:
    if path in _STANDARD:
        return os.dup(_STANDARD[path])
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


class ErrorLog(LogFile):
    """Writes lines of at least `level` to the file `path`, or to standard error without one.

    Calling it logs: `log(level, message)`.

    Attributes:
        levels: Those that are written.

    Raises:
        UserError: The file cannot be opened.
    """

    def __init__(self, path: Path | None = None, level: str = "notice") -> None:
        super().__init__(path, "error_log")
        self.levels = frozenset(LEVELS[LEVELS.index(level) :])

    def __call__(self, level: str, message: str) -> None:
        """Write one line when `level` is severe enough."""
        if level not in self.levels:
            return
        pid = os.getpid()
        stamp = time.strftime("%Y/%m/%d %H:%M:%S")
        text = message if message.isprintable() else _on_one_line(message)
        self.append(f"{stamp} [{level}] {pid}#{pid}: {text}\n".encode(errors="backslashreplace"))


def _on_one_line(message: str) -> str:
    """Join lines, and write what would steer a terminal as the access log does."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02X}", " ".join(message.splitlines()))


_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def count_lines(path: Path) -> dict[str, int]:
    """Count what was logged to a file: `lines`, their `bytes`, and the lines of each of `LEVELS`."""
    counts = {"lines": 0, "bytes": 0, **dict.fromkeys(LEVELS, 0)}
    with path.open("rb") as log:
        for line in log:
            counts["lines"] += 1
            counts["bytes"] += len(line)
            level = line.partition(b" [")[2].partition(b"] ")[0].decode("ascii", errors="replace")
            if level in LEVELS:
                counts[level] += 1
    return counts
