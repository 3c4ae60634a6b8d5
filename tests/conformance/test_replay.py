"""The replays themselves, with cases of our own for what no recorded case touches, in the notation of the vectors.

What each case expects follows from kong-semantics. It passes, and fails as soon as it expects something else.
"""

from copy import deepcopy
from typing import Any, Final, NamedTuple

import pytest

from tests.conformance.test_queue import compare_run

LIMITS: Final = {
    "concurrency_limit": 1,
    "initial_retry_delay": 0.01,
    "max_batch_size": 1,
    "max_coalescing_delay": 1,
    "max_entries": 10_000,
    "max_retry_delay": 60,
    "max_retry_time": 60,
}


class QueueCase(NamedTuple):
    """A case of the family queue, whose handlers take everything and whose queues are absent in the end.

    Attributes:
        queues: by label, in what they differ from `LIMITS`.
        actions: what is done.
        trace: what comes of it.
        wrong: a place in the trace, and a record that is not there.
    """

    queues: dict[str, dict[str, Any]]
    actions: list[dict[str, Any]]
    trace: list[dict[str, Any]]
    wrong: tuple[int, dict[str, Any]]

    def case(self, trace: list[dict[str, Any]]) -> dict[str, Any]:
        """In the notation of the vectors."""
        calls = [record["queue"] for record in self.trace if record["ev"] == "call"]
        return {
            "queues": {label: LIMITS | limits for label, limits in self.queues.items()},
            "handlers": {label: [{"returns": [True]}] for label in self.queues},
            "actions": self.actions,
            "trace": trace,
            "final": {
                "t": self.trace[-1]["t"],
                "queues": {label: {"exists": False, "handler_calls": calls.count(label)} for label in self.queues},
            },
        }


def put(t: int, queue: str, entry: Any, **more: Any) -> dict[str, Any]:
    return {"do": "enqueue", "t": t, "queue": queue, "entry": entry, **more}


def acted(i: int, t: int, **seen: Any) -> dict[str, Any]:
    return {"ev": "action", "i": i, "t": t, **seen}


def called(t: int, queue: str, *entries: int, n: int = 1) -> dict[str, Any]:
    return {"ev": "call", "t": t, "queue": queue, "n": n, "entries": list(entries)}


QUEUE_CASES: Final = {
    "the first entry of a burst wakes a job, though a later one fills the batch": QueueCase(  # Q16
        {"q": {"max_batch_size": 3}, "z": {}},
        [put(0, "q", "a"), put(10, "q", "b"), put(10, "z", "x"), put(10, "q", "c")],
        [acted(0, 0), acted(1, 10), acted(2, 10), acted(3, 10), called(10, "q", 0, 1, 3), called(10, "z", 2)],
        (4, called(10, "z", 2)),
    ),
    "delays that end together end in the order of the last entries": QueueCase(  # Q16
        {"q": {"max_batch_size": 9}, "z": {"max_batch_size": 9}},
        [put(0, "q", "a"), put(0, "z", "x"), put(10, "z", "b"), put(20, "q", "c")],
        [acted(0, 0), acted(1, 0), acted(2, 10), acted(3, 20), called(1000, "z", 1, 2), called(1000, "q", 0, 3)],
        (4, called(1000, "q", 0, 3)),
    ),
}


@pytest.mark.parametrize("what", QUEUE_CASES)
def test_the_replay_of_queues_tells_a_right_record_from_a_wrong_one(what):
    """What is expected passes, and one record that is not there fails."""
    case = QUEUE_CASES[what]
    compare_run(case.case(case.trace))
    position, record = case.wrong
    wrong = deepcopy(case.trace)
    wrong[position] = record
    with pytest.raises(AssertionError, match=f"^record {position} is "):
        compare_run(case.case(wrong))
