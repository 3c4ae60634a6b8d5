"""Whether a request waits for a collector that does not answer.

One worker with every request traced; in each run the collector hangs for every other second. The latency of requests
that start in such a second stands against that of the others in the same run.
"""

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.faults import IMPATIENT, run

RUNS = 5
SECONDS = 10
RATE = "300/s"
QUEUE = "{max_retry_time: 60, max_retry_delay: 0.1}"


def ratios():
    """p99 and median of the latency with a hanging collector, by that with a healthy one."""
    hangs = [f"{{at: {second}s, for: 1s, target: collector, kind: hang}}" for second in range(1, SECONDS, 2)]
    windows = []
    for _ in range(RUNS):
        with TemporaryDirectory() as directory:
            fields = {"rate": RATE, "duration": f"{SECONDS}s", "queue": QUEUE, "read_timeout": IMPATIENT}
            summary = run(Path(directory), "kong", f"[{', '.join(hangs)}]", **fields)
        windows.append((summary.fault_window.latency_ms, summary.fault_window.outside_latency_ms))
    return [
        _row("request latency, p99, collector hanging", [hung.p99 / healthy.p99 for hung, healthy in windows]),
        _row("request latency, median, collector hanging", [hung.p50 / healthy.p50 for hung, healthy in windows]),
    ]


def _row(name, values):
    return {
        "name": name,
        "ratio": median(values),
        "low": min(values),
        "high": max(values),
        "against": "collector healthy, same runs",
        "goal": "<= 1.2",
    }
