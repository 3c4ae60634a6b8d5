"""The folder of a run: ``runs/NAME-DATE-TIME`` unless the user names one; made before anything is started.

It is that of one run at a time: a run holds its ``scenario.yaml`` locked, and leaves no file behind for that.
"""

import fcntl
import itertools
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sim.errors import UserError

if TYPE_CHECKING:
    from sim.scenario import Scenario

RUNS: Final = Path("runs")
"""Where the folders of runs are, below the current one."""

_RESULTS: Final = (
    *("summary.json", "junit.xml", "report.html", "spans.parquet", "workers.parquet"),
    *("overhead.json", "overhead.html", "blocks.csv"),
)
_CURE: Final = "name another folder with --out"


@contextmanager
def folder(scenario: "Scenario", out: str | None) -> Iterator[Path]:
    """Make the folder of a run, put ``scenario.yaml`` into it, and keep other runs out of it until the block ends.

    Args:
        scenario: what is run.
        out: the folder that the user named; what it holds of an earlier run is removed.

    Raises:
        UserError: it cannot be made or written, or another run is under way there; when the run itself raises one,
            because it could not start, the folder is removed again, unless it was there before.
    """
    if out == "":
        raise UserError("expected a folder, not an empty name", file="--out", cure=_CURE)
    with ExitStack() as held:
        try:
            existed = out is not None and Path(out).exists()
            path = _new(scenario.name) if out is None else Path(out)
            path.mkdir(parents=True, exist_ok=True)
            as_run = path / "scenario.yaml"
            if _is_another(as_run, scenario):
                raise UserError("is the scenario itself, and would be overwritten", file=str(as_run), cure=_CURE)
            held.enter_context(_locked(as_run))
            with ExitStack() as undone:
                if not existed:
                    undone.callback(shutil.rmtree, path)
                elif not as_run.stat().st_size:  # it holds nothing but the lock
                    undone.callback(as_run.unlink)
                _remove_results(path)
                as_run.write_text(scenario.as_run, encoding="utf-8")
                undone.pop_all()
        except BlockingIOError:
            raise UserError("another run is under way there", file=str(path), cure=_CURE) from None
        except OSError as error:
            where = str(error.filename or out or RUNS)
            raise UserError(f"cannot write there: {error.strerror}", file=where, cure=_CURE) from None
        try:
            yield path
        except UserError:
            if not existed:
                shutil.rmtree(path)
            raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give the place to write a file at, which takes the file's own when the block ends; raises OSError.

    Whatever ends the program or the writing meanwhile, half a file has no name by which it could be taken for a result.
    """
    written = _unfinished(path)
    try:
        yield written
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def _remove_results(path: Path) -> None:
    """Remove those of an earlier run, which would be taken for those of one that has none; raises OSError."""
    for file in map(path.joinpath, _RESULTS):
        file.unlink(missing_ok=True)
        _unfinished(file).unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a file, which is made if need be, as long as this process or a child of it lives at most; raises OSError."""
    with file.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _is_another(as_run: Path, scenario: "Scenario") -> bool:
    """Whether this is the file of the scenario, and not as it is run: with a ``kong.yml`` beside it, say."""
    file = Path(scenario.document.file)
    return (
        as_run.exists()
        and file.exists()
        and as_run.samefile(file)
        and as_run.read_text(encoding="utf-8") != scenario.as_run
    )


def _new(name: str) -> Path:
    """Make a folder that no other run has, not one that begins at this moment either; raises OSError."""
    RUNS.mkdir(exist_ok=True)
    stem = f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(path for path in map(RUNS.joinpath, names) if _is_made(path))


def _is_made(path: Path) -> bool:
    """Make a folder, unless it is there already."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True
