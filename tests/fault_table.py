"""What each fault costs: `python -m tests.fault_table [STRETCH]` prints a row for each fault and profile.

The faults are those of the tests (`tests.faults`), with all their times `STRETCH` times as long (8 without it: 6.4 s of
load and 2.4 s of a fault), so that a 99th percentile means something. Some six minutes; run it on an idle machine.
"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from tests.faults import CASES, LOAD_MS, ROOMY, losses, run, unexplained

STRETCH = 8
WIDTH = 170


def stretched(text, by):
    """Faults, or a queue, with their times so many times as long, those of single attempts excepted."""
    text = re.sub(r"(at|for): (\d+)ms", lambda time: f"{time[1]}: {int(time[2]) * by}ms", text)
    return re.sub(r"(max_retry_time): ([\d.]+)", lambda time: f"{time[1]}: {float(time[2]) * by}", text)


def row(name, profile, stretch):
    """Run one case; return its figures as text, what is wrong last."""
    case = CASES[name]
    fields = {"rate": "200/s", "duration": f"{LOAD_MS * stretch}ms", "queue": ROOMY} | case.fields
    fields["queue"] = stretched(fields["queue"], stretch)
    with TemporaryDirectory() as directory:
        summary = run(Path(directory), profile, stretched(case.faults, stretch), **fields)
    window, collector = summary.fault_window, summary.collector
    lost = ", ".join(f"{account} {spans:,}" for account, spans in losses(summary).items())
    counts = (summary.ledger["created"], collector.received_unique, collector.received_duplicates)
    latencies = (window.latency_ms.p99, window.outside_latency_ms.p99, window.p99_ratio)
    return (
        *(name, profile),
        *(f"{count:,}" for count in counts),
        lost or "none",
        *("-" if value is None else f"{value:.2f}" for value in latencies),
        "; ".join(unexplained(summary, case.in_doubt)) or str(summary.ledger["unaccounted"]),
    )


def main(stretch):
    """Run all cases and print the table."""
    console = Console(stderr=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in (
        "fault",
        "profile",
        "created",
        "received",
        "again",
        "lost, by reason",
        "p99 ms",
        "outside",
        "ratio",
        "unaccounted",
    ):
        table.add_column(heading, justify="left" if heading in ("fault", "profile", "lost, by reason") else "right")
    for name in CASES:
        for profile in ("kong", "safe"):
            with console.status(f"{name}, {profile} ..."):
                table.add_row(*row(name, profile, stretch))
    Console(width=WIDTH).print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else STRETCH)
