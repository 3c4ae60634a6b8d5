"""The span ledger: double-entry book-keeping for spans, so that none is ever lost without being missed.

Every span that a worker creates ends in exactly one account, and every entry of its queue too:

    created + copied_again = unsampled + unprocessed + enqueued + rejected + lost_in_request          (+ open)
    enqueued = acknowledged + dropped_overflow + dropped_retries + dropped_refused + dropped_shutdown + swallowed
               + lost_in_queue                                                           (+ queued + in_flight)

`copied_again` are the copies of a span beyond its first: one that was linked twice is exported twice (kong-semantics
T7), one that two exporters see is copied by both, and what a plugin queues outside the log phase is a copy more. In
brackets what still stands while the worker lives. A worker counts both sides of each equation where things happen and
publishes, beside them, what it holds: `spans_open`, `queue_depth`, `in_flight`. What a worker held when it *died* is
what is lost, and is booked from these; never as the difference of the two sides. Therefore `unaccounted`, that
difference, is a real check: it is 0 unless a span went missing, also after `kill -9`. A worker that exits of its own
accord books what it gives up itself, so what it still holds then has gone missing.

`swallowed` are the entries that Kong's queue loses without a word (kong-semantics Q29). `lost` adds up what was
meant for the collector and is not known to have arrived there (`LOSSES`).

A pool keeps a balance of its own: fetched = released + discarded + live; live is 0 at rest, but for what the core
never releases (P13).

Source: kong-semantics sections 9 and 13. All figures are numbers of spans, or of pooled objects.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ACCOUNTS: Final = {
    "created": "made by a tracer of the worker",
    "copied_again": "copies beyond a span's first: linked twice, seen by two exporters, queued outside the log phase",
    "unsampled": "seen by an exporter, and not sampled",
    "unprocessed": "seen by no exporter: there is none, it failed before, tracing is off, or a plugin sends by itself",
    "enqueued": "copied to the exporter's queue",
    "rejected": "not taken by the queue: too large, cannot be encoded, or the queue is smaller than a batch",
    "lost_in_request": "open, or finished but not yet handed on, when the worker died or was terminated",
    "acknowledged": "sent, and accepted by the collector, or called sent by the plugin whose queue it is",
    "dropped_overflow": "dropped as the oldest of a full queue",
    "dropped_retries": "given up after max_retry_time",
    "dropped_refused": "given up at once, since the collector wants them neither now nor later",
    "dropped_shutdown": "queued or being sent when the worker was terminated, or its exit took too long",
    "swallowed": "lost by Kong's queue without a word of its own (kong-semantics Q29, H26)",
}
"""The accounts that a worker keeps, and what stands in each."""

GAUGES: Final = {"open": "spans_open", "queued": "queue_depth", "in_flight": "in_flight"}
"""What still stands in a living worker's books, by the name of what the worker publishes about it."""

EQUATIONS: Final = (
    (("created", "copied_again"), ("unsampled", "unprocessed", "enqueued", "rejected", "lost_in_request", "open")),
    (
        ("enqueued",),
        (
            "acknowledged",
            "dropped_overflow",
            "dropped_retries",
            "dropped_refused",
            "dropped_shutdown",
            "swallowed",
            "lost_in_queue",
            "queued",
            "in_flight",
        ),
    ),
)
"""The accounts that make up each left side and its right side."""

LOSSES: Final = (
    "rejected",
    "lost_in_request",
    "dropped_overflow",
    "dropped_retries",
    "dropped_refused",
    "dropped_shutdown",
    "swallowed",
    "lost_in_queue",
)
"""The accounts of spans that were meant for the collector and are not known to have arrived."""


@dataclass(frozen=True, slots=True)
class _Books:
    """Accounts; adding two adds account by account."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Ledger(_Books):
    """The accounts of one worker, or the sum of several."""

    created: int = 0
    copied_again: int = 0
    unsampled: int = 0
    unprocessed: int = 0
    enqueued: int = 0
    rejected: int = 0
    lost_in_request: int = 0
    acknowledged: int = 0
    dropped_overflow: int = 0
    dropped_retries: int = 0
    dropped_refused: int = 0
    dropped_shutdown: int = 0
    swallowed: int = 0
    lost_in_queue: int = 0
    open: int = 0
    queued: int = 0
    in_flight: int = 0
    lost: int = 0
    unaccounted: int = 0


def _balance(accounts: "Mapping[str, int]") -> Ledger:
    def sum_of(names: "Iterable[str]") -> int:
        return sum(accounts.get(name, 0) for name in names)

    missing = (abs(sum_of(left) - sum_of(right)) for left, right in EQUATIONS)
    return Ledger(**accounts, lost=sum_of(LOSSES), unaccounted=sum(missing))


def standing(values: "Mapping[str, int]") -> Ledger:
    """Return the books of a living worker, from the `ACCOUNTS` and `GAUGES` that it published."""
    accounts = {name: values[name] for name in ACCOUNTS}
    return _balance(accounts | {name: values[gauge] for name, gauge in GAUGES.items()})


def close(values: "Mapping[str, int]", *, exited_cleanly: bool) -> Ledger:
    """Return the books of a worker that has ended, from the last `ACCOUNTS` and `GAUGES` that it published.

    Args:
        values: By name, as published.
        exited_cleanly: With code 0; else what it held is booked as lost.
    """
    accounts = {name: values[name] for name in ACCOUNTS}
    if not exited_cleanly:
        accounts["lost_in_request"] += values["spans_open"]
        accounts["lost_in_queue"] = values["queue_depth"] + values["in_flight"]
    return _balance(accounts)


def total(ledgers: "Iterable[Ledger]") -> Ledger:
    """Add up ledgers; what is unaccounted in one cannot be made good by another."""
    return sum(ledgers, start=Ledger())


@dataclass(frozen=True, slots=True)
class PoolBalance(_Books):
    """The books of one pool; `free` objects lie in it now."""

    fetched: int = 0
    released: int = 0
    discarded: int = 0
    hits: int = 0
    misses: int = 0
    free: int = 0

    @property
    def live(self) -> int:
        """Objects fetched and not given back."""
        return self.fetched - self.released - self.discarded


def pool_balance(values: "Mapping[str, int]", tag: str) -> PoolBalance:
    """Return the balance of the pool `tag` from what a worker published about it."""
    return PoolBalance(*(values[f"{tag}.{name}"] for name in PoolBalance.__slots__))
