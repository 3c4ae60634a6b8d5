"""The baseline: mistakes that are known and wait to be mended, so that only new ones count.

A file of JSON with an entry for each: code, file, function and the line's text. Line numbers are not in it, so that it
holds while the file changes around them.
"""

import json
import linecache
from pathlib import Path
from typing import Any, Final

from sim.document import parse_json
from sim.errors import UserError
from sim.verify.formats import path
from sim.verify.mistakes import Mistake
from sim.verify.search import Shown, Verdict

_KIND: Final = "kongsim-verify-baseline/"
SCHEMA: Final = f"{_KIND}1"

Entry = tuple[str, str, str, str]


def entry(mistake: Mistake) -> Entry:
    """Return what a mistake is known by."""
    place = mistake.place
    source = linecache.getline(place.filename, place.line).strip()
    return mistake.code, path(place), place.function, source


def require_place(file: str) -> None:
    """Refuse what no baseline can be written to, and a file that holds anything but a baseline, of whatever version.

    Raises:
        UserError: what it holds would be lost, or it cannot be a file.
    """
    if not file:
        raise UserError("expected a file, not an empty name", file="--write-baseline")
    path = Path(file)
    try:
        if path.is_dir():
            raise UserError("is a folder, expected a file", file=file, cure=f"name {path / 'baseline.json'}")
        if not path.exists() and not path.parent.is_dir():
            raise UserError(f"there is no folder {path.parent}", file=file, cure="make it first")
        if not path.is_file() or not path.stat().st_size:
            return
        is_baseline = str(parse_json(path.read_text(encoding="utf-8"))["schema"]).startswith(_KIND)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=file, cure="name another file") from None
    except (ValueError, KeyError, TypeError):
        is_baseline = False
    if not is_baseline:
        raise UserError("is no baseline, and would be overwritten", file=file, cure="name another file")


def write(file: str, verdict: Verdict) -> None:
    """Write the mistakes of a verdict.

    Raises:
        UserError: the file cannot be written.
    """
    names = ("code", "file", "function", "source")
    entries = sorted({entry(shown.mistake) for shown in verdict.shown})
    told = {"schema": SCHEMA, "mistakes": [dict(zip(names, known, strict=True)) for known in entries]}
    try:
        Path(file).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", file=file) from error


def read(file: str) -> frozenset[Entry]:
    """Return the known mistakes.

    Raises:
        UserError: the file cannot be read, or is none.
    """
    try:
        told: Any = parse_json(Path(file).read_text(encoding="utf-8"))
        if told["schema"] != SCHEMA:
            raise UserError(f"schema is {told['schema']!r}, expected {SCHEMA!r}", file=file, cure="write it again")
        return frozenset((m["code"], m["file"], m["function"], m["source"]) for m in told["mistakes"])
    except OSError as error:
        cure = "write it with --write-baseline"
        raise UserError(f"cannot be read: {error.strerror}", file=file, cure=cure) from error
    except (ValueError, KeyError, TypeError) as error:
        cure = "name one that --write-baseline has written"
        raise UserError("is no baseline", file=file, cure=cure) from error


def without_known(shown: list[Shown], known: frozenset[Entry]) -> list[Shown]:
    """Return the mistakes that are new."""
    return [one for one in shown if entry(one.mistake) not in known]
