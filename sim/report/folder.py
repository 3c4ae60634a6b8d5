"""The folder of a run: ``runs/NAME-DATE-TIME`` unless the user names one; made before anything is started."""

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Make the folder of a run and put ``scenario.yaml`` into it.

    Args:
        scenario: what is run.
        out: the folder that the user named; what it holds of an earlier run is removed.

    Raises:
        UserError: it cannot be made or written; when the run itself raises one, because it could not start, the folder
            is removed again, unless it was there before.
    """
    if out == "":
        raise UserError("expected a folder, not an empty name", file="--out", cure=_CURE)
    try:
        existed = out is not None and Path(out).exists()
        path = _new(scenario.name) if out is None else Path(out)
        path.mkdir(parents=True, exist_ok=True)
        as_run = path / "scenario.yaml"
        if _is_another(as_run, scenario):
            raise UserError("is the scenario itself, and would be overwritten", file=str(as_run), cure=_CURE)
        for name in _RESULTS:  # who finds one there may take it for that of this run, also when this run has none
            (path / name).unlink(missing_ok=True)
        as_run.write_text(scenario.as_run, encoding="utf-8")
    except OSError as error:
        where = str(error.filename or out or RUNS)
        raise UserError(f"cannot write there: {error.strerror}", file=where, cure=_CURE) from None
    try:
        yield path
    except UserError:
        if not existed:
            shutil.rmtree(path)
        raise


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
