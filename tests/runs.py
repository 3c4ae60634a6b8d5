"""Runs by the command line, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

from sim.report.summary import EXIT_CODES

ROOT = Path(__file__).parents[1]
RUN_S_MAX = 120.0
"""For a run of a second or two, on a machine that has other things to do."""

RUNS_MAX = 5


def valid_run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a scenario, once more where this machine was too busy for the figures to count."""
    command = [sys.executable, "-m", "sim", "run", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(RUNS_MAX):
        run = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=RUN_S_MAX, check=False
        )
        if run.returncode != EXIT_CODES["invalid"]:
            break
    return run
