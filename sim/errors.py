"""What the user did wrong: one line that names the place, the expectation and the cure.

The command line prints ``str(error)`` and exits with code 2; no traceback, nothing started. A mistake in the program
itself is never a :class:`UserError`.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user that the user can mend.

    Attributes:
        message: what is wrong, and what was expected.
        file: path of the file that holds the mistake, as the user wrote it.
        line: line in ``file``, counted from 1.
        field: path of the field, such as ``load[0].rate``, or the option of the command line.
        cure: what to do about it.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        field: str | None = None,
        cure: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.line = line
        self.field = field
        self.cure = cure

    def __str__(self) -> str:
        """Return ``FILE:LINE: FIELD: message; cure``, without the parts that are unknown, as one line."""
        place = self.file if self.line is None else f"{self.file or '<input>'}:{self.line}"
        text = ": ".join(part for part in (place, self.field, self.message) if part)
        return " ".join((f"{text}; {self.cure}" if self.cure else text).split())
