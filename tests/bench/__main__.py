"""Runs every benchmark: `python -m tests.bench` prints a table and writes `.bench/latest.json`.

A benchmark is a module `bench_*.py` with a function `ratios()`, which gives rows `{name, ratio, low, high, against,
goal}`. A goal is text such as `">= 15"`, or None where a figure is for information. Nothing here fails for being slow.
Each module runs in a process of its own, so that none meets the threads and caches of another.
"""

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sim.report.environment import environment

FOLDER = Path(__file__).parent
RESULT = Path(".bench/latest.json")
WIDTH = 150


def main(names: list[str]) -> None:
    """Run the benchmarks of these names, all when there are none."""
    console = Console(stderr=True)
    modules = names or sorted(path.stem for path in FOLDER.glob("bench_*.py"))
    rows = []
    for name in modules:
        with console.status(f"{name} ..."):
            rows += measured(name)
        console.print(f"{name}: done")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")
    Console(width=WIDTH).print(table(rows))
    console.print(f"written to {RESULT}")


def measured(name: str) -> list[dict]:
    """The rows of one module."""
    program = f"import json; from tests.bench import {name}; print(json.dumps({name}.ratios()))"
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict]) -> Table:
    """The rows as a table; `met` where the median reaches the goal."""
    gateway = "compiled" if environment().compiled else "not compiled"
    title = f"ratios within one run: median and range; the gateway is {gateway}"
    shown = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("what", "against"):
        shown.add_column(heading)
    for heading in ("ratio", "low", "high", "goal"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("")
    for row in rows:
        figures = (f"{row[name]:.2f}" for name in ("ratio", "low", "high"))
        shown.add_row(row["name"], row["against"], *figures, row["goal"] or "", verdict(row))
    return shown


def verdict(row: dict) -> str:
    """Whether a row's ratio reaches its goal."""
    if row["goal"] is None:
        return ""
    relation, bound = row["goal"].split()
    held = row["ratio"] >= float(bound) if relation == ">=" else row["ratio"] <= float(bound)
    return "met" if held else "NOT MET"


if __name__ == "__main__":
    main(sys.argv[1:])
