"""What the user did wrong: one line that names the place, the expectation and the cure.

The command line prints ``str(error)`` and exits with code 2; no traceback, nothing started. A mistake in the program
itself is never a :class:`UserError`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches

SHOWN_MAX = 60
"""Characters of a value that a message shows at most."""

_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


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
        return printable(" ".join((f"{text}; {self.cure}" if self.cure else text).split()))


@contextmanager
def asked_for(file: str, line: int | None = None, field: str | None = None) -> Iterator[None]:
    """Name where a file is asked for, in the errors of it that have no line: those it is rather there to mend."""
    try:
        yield
    except UserError as error:
        if error.line is not None:
            raise
        message = f"{error.file}: {error.message}" if error.file else error.message
        raise UserError(message, file=file, line=line, field=field, cure=error.cure) from None


class FieldError(ValueError):
    """A value that does not fit its field; whoever knows the file and the line makes it a :class:`UserError`.

    Attributes:
        message: what was expected, and what stands there.
        cure: what to do about it.
        field: name of the field below the one that is being read, when the fault lies there.
    """

    def __init__(self, message: str, *, cure: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure
        self.field = field


def shown(value: object) -> str:
    """Return how a message shows a value of the user: short, on one line, in the words of YAML."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case Mapping():
            return "a mapping" if value else "an empty mapping"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case _:
            text = repr(value)
            return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}..."


def printable(text: str) -> str:
    """Return a text of somebody else without what would steer a terminal or break the line."""
    return text if text.isprintable() else "".join(char if char.isprintable() else _UNPRINTABLE for char in text)


def meant(word: object, known: Iterable[str]) -> str | None:
    """Return the cure for a misspelt word: the known word it was probably meant to be, None where none is near."""
    close = get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else None


def nearest(word: object, known: Iterable[str]) -> str | None:
    """Return the cure for a misspelt word: the known word it was probably meant to be, else all of them."""
    words = list(known)
    return meant(word, words) or (f"known here: {', '.join(words)}" if words else None)
