"""The error log, in nginx's format: `2026/07/01 12:00:00 [notice] 42#42: signal 15 (SIGTERM) received from 1, exiting`.

One line is one write to a file opened for appending, so lines of several processes never mix, and what is logged
before a `kill -9` is in the file. The clock is the local wall clock, as nginx's.
"""

import os
import time
from pathlib import Path
from typing import Final

LEVELS: Final = ("debug", "info", "notice", "warn", "error", "crit", "alert", "emerg")
"""nginx's levels, least to most severe."""

_STDERR: Final = 2


class ErrorLog:
    """Writes lines of at least `level` to the file `path`, or to standard error without one.

    Calling it logs: `log(level, message)`.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path | None = None, level: str = "notice") -> None:
        self.path = path
        self._levels = frozenset(LEVELS[LEVELS.index(level) :])
        self._descriptor = _STDERR
        self.reopen()

    def __call__(self, level: str, message: str) -> None:
        """Write one line when `level` is severe enough; a full disk is no reason to stop."""
        if level not in self._levels:
            return
        pid = os.getpid()
        stamp = time.strftime("%Y/%m/%d %H:%M:%S")
        line = f"{stamp} [{level}] {pid}#{pid}: {' '.join(message.splitlines())}\n"
        try:
            os.write(self._descriptor, line.encode(errors="backslashreplace"))
        except OSError:
            return

    def reopen(self) -> None:
        """Open the file again under its name, after a log rotation (USR1, kong-semantics W4)."""
        if self.path is None:
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.close()
        self._descriptor = descriptor

    def close(self) -> None:
        """Close the file; what is logged afterwards goes to standard error."""
        if self._descriptor != _STDERR:
            os.close(self._descriptor)
        self._descriptor = _STDERR
