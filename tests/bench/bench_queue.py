"""What it costs to get a span through the queue, against the batch processor of opentelemetry-sdk.

The workload: spans come, leave in batches of 200 and are acknowledged at once, by an exporter that does nothing. The
sdk's processor takes a finished span and hands batches to a null exporter; its thread's CPU time counts. In the first
row spans are enqueued one by one, in the second the 8 of a request together.

The other rows set a long queue against a short one: what an operation costs does not depend on the number of entries.

A round measures both sides in turns, in CPU time of the process; the ratio is formed within the round. `ratio` is the
median of the rounds, `low` and `high` are their quartiles. Run alone: `python -m tests.bench.bench_queue`.
"""

import statistics
from collections.abc import Callable, Sequence
from time import process_time_ns
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from kongtrace.delivery import Send
from kongtrace.queue import Queues
from kongtrace.queue_parameters import Binding, QueueParameters
from kongtrace.queue_profile import SAFE, Outcome

ROUNDS = 25
SPANS = 8_000  # a round
BATCH = 200
REQUEST = 8  # spans
CAPACITY = 10_000
LONG, SHORT = 1_000_000, 1_000  # entries waiting
PROBES = 20_000  # operations on a long or short queue in a round
SPAN = bytes(114)  # as large as an encoded one
TAKEN = Outcome(ok=True)
AGAINST = "opentelemetry-sdk: BatchSpanProcessor.on_end, null exporter"


class NullExporter(SpanExporter):
    """Takes every span and does nothing."""

    def export(self, _spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


class Sdk:
    """The sdk's processor, and a span that is over."""

    def __init__(self) -> None:
        self.processor = BatchSpanProcessor(NullExporter(), max_queue_size=CAPACITY, max_export_batch_size=BATCH)
        self.span = TracerProvider().get_tracer("bench").start_span("kong")
        self.span.end()

    def run(self) -> None:
        on_end, span = self.processor.on_end, self.span
        for _ in range(SPANS):
            on_end(span)
        self.processor.force_flush()


class Kongtrace:
    """A queue whose collector takes everything at once."""

    def __init__(self, **parameters: Any) -> None:
        queues = Queues(SAFE, log=lambda *_: None, random=lambda: 0.5, schedule=lambda *_: None)
        self.queue = queues.queue("q")
        self.binding = Binding(QueueParameters("q", **parameters), print)

    def run_one_by_one(self) -> None:
        enqueue, binding = self.queue.enqueue, self.binding
        for _ in range(SPANS // BATCH):
            for _ in range(BATCH):
                enqueue(SPAN, binding, 0.0, True)
            self.send()

    def run_by_request(self) -> None:
        enqueue_many, binding = self.queue.enqueue_many, self.binding
        for _ in range(SPANS // BATCH):
            for _ in range(BATCH // REQUEST):
                enqueue_many([SPAN] * REQUEST, binding, 0.0, True)
            self.send()

    def send(self) -> None:
        while isinstance(self.queue.poll(0.0), Send):
            self.queue.done(TAKEN, 0.0)

    def fill(self, count: int) -> None:
        self.queue.enqueue_many([SPAN] * count, self.binding, 0.0)

    def pass_through(self) -> None:
        """As many come as leave."""
        for _ in range(PROBES // BATCH):
            for _ in range(BATCH):
                self.queue.enqueue(SPAN, self.binding, 0.0, True)
            self.queue.poll(0.0)
            self.queue.done(TAKEN, 0.0)

    def overflow(self) -> None:
        """Each that comes costs one that is there."""
        for _ in range(PROBES):
            self.queue.enqueue(SPAN, self.binding, 0.0, True)


def ratios() -> list[dict[str, Any]]:
    """How many times faster than the sdk's processor, and how little the length of the queue matters."""
    sdk = Sdk()
    ours = Kongtrace(max_batch_size=BATCH, max_entries=CAPACITY)
    try:
        rows = [
            row("queue a span and send it, one by one", sdk.run, ours.run_one_by_one, AGAINST, ">= 3"),
            row("queue a span and send it, 8 of a request", sdk.run, ours.run_by_request, AGAINST, ">= 5"),
        ]
    finally:
        sdk.processor.shutdown()
    long, short = (Kongtrace(max_batch_size=BATCH, max_entries=2 * count) for count in (LONG, SHORT))
    long.fill(LONG)
    short.fill(SHORT)
    against = f"the same with {SHORT} entries"
    rows.append(row("queue with 1 000 000 entries waiting", long.pass_through, short.pass_through, against, "<= 1.3"))
    long, short = (Kongtrace(max_batch_size=BATCH, max_entries=count) for count in (LONG, SHORT))
    long.fill(LONG)
    short.fill(SHORT)
    rows.append(row("full queue of 1 000 000 entries", long.overflow, short.overflow, against, "<= 1.3"))
    return rows


def row(name: str, other: Callable[[], None], ours: Callable[[], None], against: str, goal: str) -> dict[str, Any]:
    """The row of a benchmark: the CPU time of `other` over that of `ours`."""
    one_round(other, ours)  # warms both up
    low, median, high = statistics.quantiles([one_round(other, ours) for _ in range(ROUNDS)], n=4)
    figures = {"ratio": round(median, 2), "low": round(low, 2), "high": round(high, 2)}
    return {"name": name, **figures, "against": against, "goal": goal}


def one_round(other: Callable[[], None], ours: Callable[[], None]) -> float:
    spent = []
    for side in (other, ours):
        start = process_time_ns()
        side()
        spent.append(process_time_ns() - start)
    return spent[0] / spent[1]


if __name__ == "__main__":
    for figures in ratios():
        print("{name}: {ratio} ({low} to {high}), goal {goal}, against {against}".format(**figures))
