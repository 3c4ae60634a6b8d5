from dataclasses import fields
from math import inf
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from kongtrace.delivery import Delivery, Job, Send, Wait
from kongtrace.errors import ApiError, BookkeepingError
from kongtrace.queue import ACCEPTED, QUEUES_KEPT, SIZED_ENTRIES_MAX, Counters, Queues
from kongtrace.queue_parameters import Binding, QueueParameters
from kongtrace.queue_profile import KONG, SAFE, Outcome, QueueProfile

TAKEN = Outcome(ok=True)
DOWN = Outcome(ok=False, reason="down")
FULL = "error: [] queue q: queue full, dropping old entries until processing is successful again"
NON_STRING = (
    "error: [] queue q: queuing non-string entry to a queue that has queue.max_bytes set, "
    "capacity monitoring will not be correct"
)
DEPRECATED = (
    "warn: the batch_span_count parameter is deprecated, please update your configuration to use "
    "queue.max_batch_size instead"
)

NUMBERS = {
    "name": "q",
    "max_batch_size": 1,
    "max_coalescing_delay": 1,
    "max_entries": 1,
    "max_retry_time": 1,
    "initial_retry_delay": 1,
    "max_retry_delay": 1,
}

both_profiles = pytest.mark.parametrize("profile", [KONG, SAFE], ids=lambda profile: profile.name)


def send() -> None:
    """A handler; the tests send nothing."""


class Worker:
    """A worker with one queue, whose jobs run when a test says so."""

    def __init__(self, profile: QueueProfile, **parameters: Any) -> None:
        self.lines: list[str] = []
        self.jobs: list[Job] = []
        self.names: list[str | None] = []
        self.refusal: str | None = None
        self.wakes = 0
        self.queues = Queues(profile, self.log, lambda: 0.5, self.schedule)
        self.queue = self.queues.queue("q")
        self.queue.wake = self.wake
        self.binding = Binding(QueueParameters("q", **parameters), send)

    def log(self, level: str, message: str) -> None:
        self.lines.append(f"{level}: {message}")

    def schedule(self, name: str | None, job: Job) -> str | None:
        if self.refusal is None:
            self.names.append(name)
            self.jobs.append(job)
        return self.refusal

    def wake(self) -> None:
        self.wakes += 1

    def put(self, *entries: Any, now: float = 0.0, log_phase: bool = False) -> None:
        for entry in entries:
            assert self.queue.enqueue(entry, self.binding, now, log_phase) == ACCEPTED

    def drain(self, now: float, outcome: Outcome = TAKEN) -> list[list[Any]]:
        """Send whatever can be sent at this moment; every attempt has the same outcome."""
        batches = []
        while isinstance(action := self.queue.poll(now), Send):
            batches.append(list(action.entries))
            self.queue.done(outcome, now)
        return batches

    def attempts(self, outcome: Outcome) -> list[float]:
        """Let every attempt have this outcome; the times of those there are before the batch is given up."""
        now, times = 0.0, []
        while (action := self.queue.poll(now)) is not None:
            if isinstance(action, Send):
                times.append(now)
                self.queue.done(outcome, now)
            else:
                now = action.until
        return times


# Its life.


@both_profiles
def test_a_queue_exists_from_its_first_entry_until_it_is_drained(profile):
    """It is absent, scheduled by the first entry, and absent again when its job finds nothing left."""
    worker = Worker(profile)  # Q10
    assert not worker.queue.exists
    worker.put("a")
    assert worker.queue.exists
    assert (worker.names, worker.jobs) == (["queue .q"], [worker.queue])  # Q13
    assert worker.drain(0) == [["a"]]
    assert not worker.queue.exists
    assert worker.queue.poll(0) is None


@both_profiles
def test_new_parameters_take_effect_once_the_queue_has_drained(profile):
    """While a queue exists, only the handler's configuration follows the newest entry."""
    worker = Worker(profile, max_batch_size=2)  # Q12
    worker.put("a", "b")
    worker.binding = Binding(QueueParameters("q", max_batch_size=1), send, {"version": 2})
    worker.put("c")
    first = worker.queue.poll(0)
    assert first == Send(send, {"version": 2}, ["a", "b"])
    worker.queue.done(TAKEN, 0)
    assert worker.drain(0) == []
    assert worker.drain(1) == [["c"]]
    worker.put("d", "e", now=1)
    assert worker.drain(1) == [["d"], ["e"]]


def test_a_retry_uses_the_newest_handler_configuration():
    """A batch that failed is sent again under the configuration of an entry that came meanwhile."""
    worker = Worker(KONG)  # Q12
    worker.put("a")
    worker.queue.poll(0)
    worker.binding = Binding(worker.binding.parameters, send, {"version": 2})
    worker.put("b", now=0.005)
    worker.queue.done(DOWN, 0.005)
    worker.queue.poll(0.005)
    assert worker.queue.poll(0.015) == Send(send, {"version": 2}, ["a"])


def test_queues_of_two_workspaces_are_two():
    """Workspace and name together identify a queue."""
    worker = Worker(KONG)  # Q10
    assert worker.queues.queue("q", "a") is worker.queues.queue("q", "a")
    assert worker.queues.queue("q", "a") is not worker.queues.queue("q", "b")


@both_profiles
def test_queues_without_work_are_forgotten_and_their_accounts_are_not(profile):
    """However many names there are: a queue is there while it has work, and few beyond that."""
    worker = Worker(profile)  # Q10
    queues, names = worker.queues, [f"tenant {number}" for number in range(50 * QUEUES_KEPT)]
    alive = WeakSet()
    for name in names:
        worker.queue = queue = queues.queue(name)
        worker.binding = Binding(QueueParameters(name), send)
        worker.put("a")
        alive.add(queue)
        if name != names[0]:
            worker.jobs.remove(queue)
            worker.drain(0)

    assert queues.queue(names[0]).exists
    assert len(alive) <= QUEUES_KEPT + 1
    accounts = queues.counters()
    assert (accounts.enqueued, accounts.acknowledged, accounts.queued) == (len(names), len(names) - 1, 1)


# Its arguments.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("text", "arg #1 (queue_conf) must be a table"),
        ([1], "arg #1 (queue_conf) must include a name"),
        ({}, "arg #1 (queue_conf) must include a name"),
        ({"name": 5}, "arg #1 (queue_conf) must include a name"),
        ({"name": "q", "max_batch_size": "1"}, "arg #1 (queue_conf) max_batch_size must be a number"),
        ({"name": "q", "max_batch_size": True}, "arg #1 (queue_conf) max_batch_size must be a number"),
        (NUMBERS | {"max_bytes": "1"}, "arg #1 (queue_conf) max_bytes must be a number or nil"),
        (NUMBERS | {"max_bytes": 1}, "arg #1 (queue_conf) concurrency_limit must be a number"),
    ],
)
def test_a_bad_configuration_raises_with_the_text_of_kong(given, message):
    """What is no table, has no name or a parameter of the wrong type is refused by name."""
    with pytest.raises(ApiError) as raised:  # Q11
        QueueParameters.of(given)
    assert str(raised.value) == message


def test_a_configuration_record_has_to_be_complete():
    """`of` has no defaults, as Kong's queue has none; its schema has."""
    with pytest.raises(ApiError, match=r"max_retry_delay must be a number$"):  # Q11
        QueueParameters.of(
            {field.name: 1 for field in fields(QueueParameters)} | {"name": "q", "max_retry_delay": None}
        )


def test_a_handler_is_a_function_and_its_configuration_a_record():
    """Anything else is refused."""
    parameters = QueueParameters("q")  # Q11
    with pytest.raises(ApiError, match=r"^arg #2 \(handler\) must be a function$"):
        Binding(parameters, 5)
    for handler_conf in ("text", send):
        with pytest.raises(ApiError, match=r"^arg #3 \(handler_conf\) must be a table or nil$"):
            Binding(parameters, send, handler_conf)


@both_profiles
def test_none_is_no_entry(profile):
    """It is rejected, but it calls the queue into being."""
    worker = Worker(profile)  # Q11
    assert worker.queue.enqueue(None, worker.binding, 0) == (None, "entry must be a non-nil Lua value")
    assert worker.queue.exists
    assert worker.queue.counters() == Counters(rejected=1)
    assert worker.drain(0) == []


# Batches.


@both_profiles
def test_a_batch_leaves_when_it_is_full_or_its_delay_is_over(profile):
    """Five entries at once, three to a batch: three leave at once, two after the delay."""
    worker = Worker(profile, max_batch_size=3, max_coalescing_delay=1)  # Q16
    worker.put(1, 2, 3, 4, 5)
    assert worker.drain(0) == [[1, 2, 3]]
    assert worker.queue.poll(0) == Wait(1.0, or_entry=True)
    assert worker.drain(1.0) == [[4, 5]]


def test_an_entry_that_comes_less_than_50_ms_before_the_end_sends_the_batch():
    """So little of the delay counts as over."""
    worker = Worker(KONG, max_batch_size=3, max_coalescing_delay=1)  # Q16
    worker.put(1)
    worker.drain(0)
    worker.put(2, now=0.96)
    assert worker.wakes == 1
    assert worker.drain(0.96) == [[1, 2]]


@both_profiles
def test_entries_that_come_in_the_turn_in_which_the_delay_ends_stay_for_the_next_batch(profile):
    """The wait is over before they can end it."""
    worker = Worker(profile, max_batch_size=3, max_coalescing_delay=1)  # Q16
    worker.put(1)
    worker.drain(0)
    worker.put(2, 3, now=1.0)
    assert worker.drain(1.0) == [[1]]
    assert worker.drain(2.0) == [[2, 3]]


@both_profiles
def test_an_entry_wakes_the_job_only_when_that_changes_something(profile):
    """Entries gather unseen until one fills the batch."""
    worker = Worker(profile, max_batch_size=4)
    worker.put(1)
    worker.drain(0)
    worker.put(2, 3, now=0.5)
    assert worker.wakes == 0
    worker.put(4, now=0.5)
    assert worker.wakes == 1
    assert worker.drain(0.5) == [[1, 2, 3, 4]]


def test_each_entry_restarts_the_second_after_which_the_job_looks_up():
    """So a worker that leaves is noticed later."""
    worker = Worker(KONG, max_batch_size=5, max_coalescing_delay=10)  # Q16, Q17
    worker.put(1)
    worker.drain(0)
    worker.put(2, now=0.875)
    worker.drain(0.875)
    worker.queues.exit(0)
    assert worker.queue.poll(1.0) == Wait(1.875, or_entry=True)


@pytest.mark.parametrize("max_batch_size", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("max_entries", [3, 4, 5, 6])
def test_entries_of_one_turn_can_be_dropped_although_the_job_waits_for_them(max_batch_size, max_entries):
    """It has not had the time to collect them."""
    worker = Worker(KONG, max_batch_size=max_batch_size, max_entries=max_entries)  # H28
    worker.put(1)
    worker.drain(0)
    worker.put(*range(2, max_entries + 3), now=0.5)
    (batch, *_) = worker.drain(0.5) + worker.drain(1.0)
    assert batch == list(range(3, max_entries + 3))[:max_batch_size]


def test_a_poll_before_its_time_changes_nothing():
    """The same wait is answered again."""
    worker = Worker(KONG, max_batch_size=3)
    worker.put(1)
    assert worker.queue.poll(0) == worker.queue.poll(0.999) == Wait(1.0, or_entry=True)


@both_profiles
def test_entries_sent_together_need_not_be_of_one_kind(profile):
    """Anything but None can be queued, false too."""
    worker = Worker(profile, max_batch_size=4)
    worker.put(False, 0, "", [])
    assert worker.drain(0) == [[False, 0, "", []]]


@both_profiles
def test_enqueue_many_is_a_loop_over_enqueue(profile):
    """It accepts, drops and rejects the same entries."""
    worker, loop = (Worker(profile, max_batch_size=2, max_entries=3, max_bytes=10) for _ in range(2))
    entries = ["a", "bb", "much too large", "c", None, "d", "e"]
    errors = worker.queue.enqueue_many(entries, worker.binding, 0)
    results = [loop.queue.enqueue(entry, loop.binding, 0) for entry in entries]
    assert errors == [error for _, error in results if error is not None]
    assert worker.queue.counters() == loop.queue.counters()
    assert worker.lines == loop.lines


def test_enqueue_many_into_a_full_queue_drops_as_many():
    """The last ones stay."""
    worker = Worker(SAFE, max_batch_size=5, max_entries=5)
    assert worker.queue.enqueue_many(range(20), worker.binding, 0) == []
    assert worker.drain(0) == [[15, 16, 17, 18, 19]]


@both_profiles
@pytest.mark.parametrize("batch_is_out", [False, True])
def test_enqueue_many_into_a_full_queue_is_the_same_as_one_by_one(profile, batch_is_out):
    """Also once the queue has said that it is full: accounts, lines and what is left are the same."""
    together, alone = (Worker(profile, max_batch_size=4, max_entries=10) for _ in range(2))
    for now, entries in enumerate([range(14), range(14, 17), range(17, 29), range(29, 30), range(30, 33)]):
        together.queue.enqueue_many(entries, together.binding, 60.0 * now)
        alone.put(*entries, now=60.0 * now)
        if batch_is_out and now == 0:
            assert isinstance(together.queue.poll(0), Send)
            assert isinstance(alone.queue.poll(0), Send)
            together.queue.enqueue_many(range(4), together.binding, 0)
            alone.put(*range(4))
        assert together.queue.counters() == alone.queue.counters()
        assert together.lines == alone.lines
    if batch_is_out:
        together.queue.done(TAKEN, 300.0)
        alone.queue.done(TAKEN, 300.0)
    assert together.drain(300.0) == alone.drain(300.0)
    assert together.queue.counters() == alone.queue.counters()
    assert together.lines == alone.lines


# Retries.


def test_delays_double_until_the_batch_is_given_up():
    """With defaults the 14th attempt starts after 81.91 s, fails, and is the last."""
    worker = Worker(KONG)  # Q20, Q21
    worker.put("a")
    assert worker.attempts(DOWN) == pytest.approx([0.01 * (2**n - 1) for n in range(14)])
    assert worker.lines[-1] == (
        "error: [] queue q: could not send entries due to max_retry_time exceeded. 1 queue entries were lost"
    )
    assert worker.queue.counters() == Counters(enqueued=1, dropped_retries=1)


def test_delays_are_capped():
    """No delay is longer than max_retry_delay."""
    worker = Worker(KONG, initial_retry_delay=1, max_retry_delay=3, max_retry_time=8)  # Q20
    worker.put("a")
    assert worker.attempts(DOWN) == [0, 1, 3, 6, 9]


@both_profiles
def test_the_driver_is_told_of_every_pause(profile):
    """A pause of no length is a turn of the event loop nevertheless, as with Kong's sleep."""
    worker = Worker(profile, initial_retry_delay=0)  # Q20
    worker.put("a")
    assert isinstance(worker.queue.poll(0), Send)
    worker.queue.done(DOWN, 0)
    assert worker.queue.poll(0) == Wait(0, or_entry=False)
    assert worker.drain(0) == [["a"]]


@both_profiles
def test_without_retry_time_there_is_one_attempt(profile):
    """-1 stands for no retry at all."""
    worker = Worker(profile, max_retry_time=-1)  # Q21
    worker.put("a")
    assert worker.attempts(DOWN) == [0]


def test_a_failure_without_a_reason_is_logged_as_such():
    """Two lines: what happened, and that nobody said why."""
    worker = Worker(KONG)  # Q19
    worker.put("a")
    worker.queue.poll(0)
    worker.queue.done(Outcome(ok=False), 0)
    assert worker.lines == [
        "warn: [] queue q: handler could not process entries: no error details returned by handler",
        "error: [] queue q: handler returned falsy value but no error information",
    ]


def test_a_long_series_of_retries_does_not_overflow():
    """Past the range of a float the delay stays at its cap."""
    worker = Worker(KONG, initial_retry_delay=1, max_retry_delay=1, max_retry_time=1100)
    worker.put("a")
    assert len(worker.attempts(DOWN)) == 1102


def test_entries_behind_a_failing_batch_wait():
    """One batch at a time."""
    worker = Worker(KONG)  # Q22
    worker.put("a", "b")
    assert worker.drain(0, DOWN) == [["a"]]
    assert worker.queue.poll(0) == Wait(0.01, or_entry=False)
    assert worker.queue.counters() == Counters(enqueued=2, queued=1, in_flight=1)
    assert worker.drain(0.01) == [["a"], ["b"]]


def test_safe_never_tries_again_later_than_max_retry_time():
    """A batch is given up when its next attempt would come too late, not an attempt after that."""
    worker = Worker(SAFE, initial_retry_delay=2, max_retry_delay=2, max_retry_time=3.5)
    worker.put("a")
    times = worker.attempts(DOWN)
    assert times == [0, 1.5, 3]  # 2 s, less half of the jitter's half


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500, 501, 301])
def test_safe_retries_nothing_that_cannot_get_better(status):
    """Statuses that OTLP does not call retryable end the batch at once."""
    worker = Worker(SAFE)
    worker.put("a")
    assert worker.attempts(SAFE.outcome(status, "no")) == [0]
    assert worker.queue.counters() == Counters(enqueued=1, dropped_retries=1, refused=1)
    assert worker.lines == [
        f"warn: [] queue q: handler could not process entries: response error: {status}, body: no",
        "error: [] queue q: collector refused the entries for good. 1 queue entries were lost",
    ]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_safe_waits_as_long_as_it_is_asked_to(status):
    """`Retry-After` is the least delay."""
    worker = Worker(SAFE)
    worker.put("a")
    assert worker.drain(0, SAFE.outcome(status, retry_after_s=7.0)) == [["a"]]
    assert worker.queue.poll(0) == Wait(7.0, or_entry=False)


def test_a_batch_given_up_leaves_the_wish_to_wait_to_the_next():
    """A collector that asks for more than max_retry_time gets no second batch before that, nor a third."""
    worker = Worker(SAFE, max_retry_time=60)  # OTLP/HTTP Throttling
    worker.put("a", "b")
    assert worker.drain(0, SAFE.outcome(429, retry_after_s=90.0)) == [["a"]]
    assert worker.queue.poll(0) == worker.queue.poll(89) == Wait(90.0, or_entry=False)
    assert worker.queue.counters() == Counters(enqueued=2, dropped_retries=1, queued=1)
    assert worker.lines[-1] == "warn: [] queue q: collector asks to wait, the next entries do for 90 s"
    assert worker.drain(90) == [["b"]]
    worker.put("c", now=91)
    assert worker.drain(91, SAFE.outcome(503, retry_after_s=90.0)) == [["c"]]
    worker.put("d", now=100)
    assert worker.queue.poll(100) == Wait(181.0, or_entry=False)


def test_a_wish_to_wait_holds_no_worker_that_leaves():
    """Where it goes beyond the time that an exiting worker has for retries, what waits is dropped."""
    worker = Worker(SAFE, max_retry_time=60)  # W12, H32
    worker.put("a", "b", "c")
    worker.drain(0, SAFE.outcome(429, retry_after_s=90.0))
    worker.queues.exit(20)
    assert worker.wakes == 1
    assert worker.queue.poll(20) is None
    assert worker.queue.counters() == Counters(enqueued=3, dropped_retries=1, dropped_shutdown=2)
    assert worker.lines[-1] == (
        "error: [] queue q: worker is exiting and its time for retries is over. 2 queue entries were lost"
    )


def test_a_wish_to_wait_for_ever_is_heard():
    """Until the worker leaves; a number of many digits is infinite."""
    worker = Worker(SAFE)
    worker.put("a", "b")
    worker.drain(0, SAFE.outcome(429, retry_after_s=inf))
    assert worker.queue.poll(1e9) == Wait(inf, or_entry=False)
    worker.queues.exit(1e9)
    assert worker.queue.poll(1e9) is None


def test_a_worker_that_leaves_waits_as_it_is_asked_to_if_it_can():
    """The rest is sent within its time for retries."""
    worker = Worker(SAFE, max_retry_time=60)
    worker.put("a", "b")
    worker.drain(0, SAFE.outcome(429, retry_after_s=70.0))
    worker.queues.exit(20)
    assert worker.queue.poll(20) == Wait(70.0, or_entry=False)
    assert worker.drain(70) == [["b"]]


def test_kong_retries_whatever_failed():
    """A bad request is sent again for a minute, and a wish to wait is not heard."""
    worker = Worker(KONG)  # Q20, O18
    worker.put("a")
    worker.drain(0, KONG.outcome(400, retry_after_s=7.0))
    assert worker.queue.poll(0) == Wait(0.01, or_entry=False)


@pytest.mark.parametrize("status", [201, 202, 204])
def test_kong_takes_no_other_success_than_200(status):
    """The batch is sent again although it was taken."""
    assert not KONG.outcome(status).ok  # O18, H29
    assert SAFE.outcome(status).ok


def test_safe_counts_what_a_partial_success_refused():
    """It is not acknowledged, and not sent again."""
    worker = Worker(SAFE, max_batch_size=5)
    worker.put(1, 2, 3, 4, 5)
    assert worker.drain(0, SAFE.outcome(200, refused=2)) == [[1, 2, 3, 4, 5]]
    assert worker.queue.counters() == Counters(enqueued=5, acknowledged=3, dropped_retries=2, refused=2)
    assert worker.lines == ["warn: [] queue q: collector refused 2 of 5 queue entries"]


# Overflow.


def test_a_full_queue_drops_its_oldest_entry_and_says_so_each_time():
    """The warning comes once, the error for every entry dropped."""
    worker = Worker(KONG, max_entries=5, max_batch_size=5)  # Q14(a), Q14(b)
    worker.put(1, 2, 3, 4, 5, 6, 7)
    assert worker.lines == ["warn: [] queue q: queue at 80% capacity", FULL, FULL]
    assert worker.drain(0) == [[3, 4, 5, 6, 7]]
    assert worker.lines[-1] == "info: [] queue q: queue resumed processing"  # Q18
    assert worker.queue.counters() == Counters(enqueued=7, dropped_overflow=2, acknowledged=5)


def test_the_capacity_warning_comes_again_after_the_queue_has_been_emptier():
    """An enqueue that sees less than 80 % re-arms it."""
    worker = Worker(KONG, max_entries=5, max_batch_size=1)  # Q14(a)
    worker.put(1, 2, 3, 4, 5)
    assert len(worker.lines) == 1
    for _ in range(3):
        worker.queue.poll(0)
        worker.queue.done(TAKEN, 0)
    worker.put(6, 7, 8)
    assert worker.lines == ["warn: [] queue q: queue at 80% capacity"] * 2


def test_safe_logs_drops_once_a_minute():
    """The next line tells how many there were meanwhile."""
    worker = Worker(SAFE, max_entries=2, max_batch_size=2)
    worker.put(*range(100))
    worker.put(100, now=60.0)
    assert worker.lines[1:] == [FULL, f"{FULL} (and 97 times since this was logged last)"]


def test_bytes_are_limited_by_dropping_the_oldest():
    """As many go as the new entry needs."""
    worker = Worker(KONG, max_bytes=10, max_batch_size=2)  # Q14(d)
    worker.put("aaaa", b"bbbb", "cc", "dddddddd")
    assert worker.lines == ["error: [] queue q: byte capacity exceeded, 2 queue entries were dropped"]
    assert worker.queue.counters() == Counters(enqueued=4, dropped_overflow=2, queued=2, bytes=10)
    assert worker.queue.is_full()


def test_a_string_counts_as_its_bytes():
    """Not as its characters."""
    worker = Worker(SAFE, max_bytes=10)
    worker.put("\N{EURO SIGN}")
    assert worker.queue.counters().bytes == 3


@pytest.mark.parametrize(("profile", "kept"), [(KONG, ["b"]), (SAFE, ["a", "b"])], ids=["kong", "safe"])
def test_an_entry_too_large_costs_an_old_one_in_kong_only(profile, kept):
    """Kong makes room before it looks at the size."""
    worker = Worker(profile, max_bytes=10, max_entries=2, max_batch_size=2)  # Q14(c), Q15
    worker.put("a", "b")
    error = "string to be queued is longer (11 bytes) than the queue's max_bytes (10 bytes)"
    assert worker.queue.enqueue("x" * 11, worker.binding, 0) == (None, error)
    assert worker.lines[-1] == f"error: [] queue q: {error}"
    assert worker.drain(0) + worker.drain(1) == [kept]


def test_kong_does_not_know_the_size_of_a_record():
    """It counts as nothing, with an error each time."""
    worker = Worker(KONG, max_bytes=10)  # Q14(f), Q15, H27
    worker.put({"name": "span"}, {"name": "span"})
    assert worker.queue.counters().bytes == 0
    assert worker.lines == [NON_STRING] * 2


def test_kong_takes_no_record_at_all_when_max_bytes_is_0():
    """The queue is full from the start, and there is nothing to drop."""
    worker = Worker(KONG, max_bytes=0)  # H27
    with pytest.raises(ApiError, match=r"^queue should not be full after dropping entries$"):
        worker.queue.enqueue({"name": "span"}, worker.binding, 0)
    assert worker.queue.counters() == Counters(rejected=1)


def test_safe_refuses_what_it_cannot_measure():
    """Where there is a byte limit, it holds."""
    worker = Worker(SAFE, max_bytes=10)
    error = "entry must be a string: the queue has max_bytes set"
    assert worker.queue.enqueue({"name": "span"}, worker.binding, 0) == (None, error)


@both_profiles
def test_room_can_be_asked_for(profile):
    """What fits and whether anything does; into an absent queue everything."""
    worker = Worker(profile, max_entries=2, max_bytes=10)  # Q24
    assert worker.queue.can_enqueue("x" * 11)
    assert not worker.queue.is_full()
    worker.put("aaaa")
    assert worker.queue.can_enqueue("bbbbbb")
    assert not worker.queue.can_enqueue("bbbbbbb")
    worker.put("b")
    assert worker.queue.is_full()
    assert not worker.queue.can_enqueue("c")


# The semaphore.


def test_kong_cannot_drop_while_its_job_holds_all_permits():
    """A queue that is smaller than a batch raises in the face of the plugin."""
    worker = Worker(KONG, max_entries=2, max_batch_size=3)  # H28
    worker.put(1, 2)
    worker.drain(0)
    with pytest.raises(BookkeepingError, match=r"^assertion failed!$"):
        worker.queue.enqueue(3, worker.binding, 0.5)
    assert worker.queue.counters() == Counters(enqueued=2, rejected=1, queued=2)
    assert worker.drain(1.0) == [[1, 2]]


def test_safe_sends_a_batch_as_soon_as_the_queue_is_full():
    """A queue that is smaller than a batch limits the batch."""
    worker = Worker(SAFE, max_entries=2, max_batch_size=3)
    worker.put(1, 2)
    assert worker.drain(0) == [[1, 2]]


def outage(profile, *, log_phase):
    """A queue of 100 that 60 entries too many came to while its job was trying to send the first."""
    worker = Worker(profile, max_entries=100, max_batch_size=40)
    worker.put(*range(40))
    worker.queue.poll(0)
    worker.put(*range(100, 260), log_phase=log_phase)
    worker.queue.done(TAKEN, 0)
    return worker


def test_drops_in_the_log_phase_make_entries_vanish_later():
    """The job takes a permit for every drop, the front passes the back, and what is put there is never seen."""
    worker = outage(KONG, log_phase=True)  # Q29
    assert worker.queue.counters() == Counters(enqueued=200, acknowledged=40, dropped_overflow=60, queued=100)
    for expected in (40, 40, 20):  # 160 permits for 100 entries: the third batch is 20 short
        assert len(worker.queue.poll(0).entries) == expected
        last = expected == 20
        if not last:
            worker.queue.done(TAKEN, 0)
    worker.lines.clear()
    worker.put(*range(300, 330), now=0.1, log_phase=True)
    assert worker.queue.counters().swallowed == 20
    assert worker.queue.counters().queued == 10
    assert worker.lines == []
    worker.queue.done(TAKEN, 0.2)
    assert worker.drain(0.2) == [list(range(320, 330))]


def test_a_drop_before_the_job_has_woken_up_makes_an_entry_vanish_later():
    """Who asks for a permit at once gives way to the job, which still stands in line for it."""  # Q29, H51
    worker = Worker(KONG, max_entries=3, max_batch_size=10)
    worker.put(0)
    assert worker.drain(0) == []
    worker.put(1, 2, 3, now=0.1)
    assert worker.drain(0.1) == []
    assert worker.queue.poll(1.0).entries == [1, 2, 3]
    worker.put(4, now=1.2)
    worker.queue.done(TAKEN, 1.5)
    assert worker.drain(3) == []
    assert worker.queue.counters() == Counters(enqueued=5, acknowledged=3, dropped_overflow=1, swallowed=1)


def test_a_queue_ends_while_its_front_is_ahead():
    """With nothing left to send the job goes, and the next entry finds a new queue."""
    worker = outage(KONG, log_phase=True)  # Q29
    assert [len(batch) for batch in worker.drain(0)] == [40, 40, 20]
    assert not worker.queue.exists
    worker.put("new")
    assert worker.drain(1) == []
    assert worker.drain(2) == [["new"]]


@pytest.mark.parametrize(("profile", "log_phase"), [(KONG, False), (SAFE, True)], ids=["timer", "safe"])
def test_no_entry_vanishes_elsewhere(profile, log_phase):
    """A drop from a timer takes its permit along; profile safe has no permits."""
    worker = outage(profile, log_phase=log_phase)
    worker.put(*range(300, 330), log_phase=log_phase)
    batches = worker.drain(0) + worker.drain(1)
    assert [entry for batch in batches for entry in batch][-30:] == list(range(300, 330))
    assert worker.queue.counters().swallowed == 0


def test_a_job_with_permits_too_many_dies_where_bytes_are_counted():
    """It asks for the size of an entry that is not there."""
    worker = Worker(KONG, max_bytes=10, max_batch_size=3)  # Q29, H26
    worker.put("aaaaa", "bbbbb", "ccccc", log_phase=True)
    with pytest.raises(BookkeepingError, match="attempt to get length of a nil value"):
        worker.queue.poll(0)
    assert worker.queue.exists
    assert worker.queue.counters() == Counters(enqueued=3, dropped_overflow=1, swallowed=2)


# Jobs that die, and jobs that never were.


def test_a_batch_of_more_than_7997_entries_kills_the_job():
    """The queue stays, and nobody drains it any more."""
    worker = Worker(KONG, max_batch_size=7998)  # H26
    worker.put(*range(7998))
    with pytest.raises(BookkeepingError, match="too many results to unpack"):
        worker.queue.poll(0)
    assert worker.queue.exists
    assert worker.queue.poll(100) is None
    assert worker.queue.counters() == Counters(enqueued=7998, queued=7998)


def test_safe_has_no_limit_to_a_batch():
    """But for max_batch_size."""
    worker = Worker(SAFE, max_batch_size=9000)
    worker.put(*range(9000))
    assert [len(batch) for batch in worker.drain(0)] == [9000]


@pytest.mark.parametrize(("profile", "sizes"), [(KONG, [5]), (SAFE, [2, 2, 1])], ids=["kong", "safe"])
def test_a_request_of_safe_stays_within_what_collectors_take(profile, sizes):
    """What exceeds 16 MiB together goes in several batches; an entry is never split."""
    worker = Worker(profile, max_batch_size=5)
    worker.put(*(bytes(7 * 1024 * 1024) for _ in range(5)))
    sent = worker.drain(0) + worker.drain(1) + worker.drain(2)
    assert [len(batch) for batch in sent] == sizes
    worker.put(bytes(20 * 1024 * 1024), b"a", now=3)
    sent = worker.drain(3) + worker.drain(4) + worker.drain(5)
    assert [len(batch) for batch in sent] == ([2] if profile is KONG else [1, 1])


@pytest.mark.parametrize("entry", ["\N{EURO SIGN}" * 6 * 1024 * 1024, {"name": "span"}], ids=["text", "record"])
def test_what_an_entry_adds_to_a_request_is_its_bytes(entry):
    """Text counts as UTF-8, what is no string as nothing."""
    worker = Worker(SAFE, max_batch_size=2)
    worker.put(entry, entry)
    assert [len(batch) for batch in worker.drain(0) + worker.drain(1)] == ([2] if isinstance(entry, dict) else [1, 1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("na%me", "invalid option '%m' to 'format'"),
        ("100%", "invalid option '%:' to 'format'"),
        ("%d", "bad argument #3 to 'format' (value expected)"),
        ("%s of", "bad argument #3 to 'format' (value expected)"),
        ("%q", "bad argument #3 to 'format' (value expected)"),
        ("%p%", "invalid option '%:' to 'format'"),
    ],
)
def test_a_percent_sign_in_its_name_kills_the_job(name, message):
    """The name is part of a format string."""
    worker = Worker(KONG)
    binding = Binding(QueueParameters(name), send)
    worker.queue.enqueue("a", binding, 0)
    with pytest.raises(BookkeepingError) as raised:
        worker.queue.poll(0)
    assert str(raised.value) == message
    assert worker.queue.counters() == Counters(enqueued=1, swallowed=1)


def test_the_share_in_the_capacity_warning_is_a_number():
    """A name that formats one gets over it, and fails at its second percent sign."""
    worker = Worker(KONG)
    binding = Binding(QueueParameters("%.0f%", max_entries=1), send)  # Q14
    worker.queue.enqueue("a", binding, 0)
    with pytest.raises(BookkeepingError, match=r"^invalid option '%:' to 'format'$"):
        worker.queue.enqueue("b", binding, 0)


def test_two_percent_signs_in_a_name_are_logged_as_one_or_two():
    """One where something was formatted into the line."""
    worker = Worker(KONG)
    worker.binding = Binding(QueueParameters("a%%b", max_retry_time=-1), send)
    worker.put("a")
    worker.drain(0, Outcome(ok=False))
    assert [line.split(": ")[1] for line in worker.lines] == ["[] queue a%b", "[] queue a%%b", "[] queue a%b"]


def test_safe_logs_a_name_as_it_is():
    """Whatever is in it."""
    worker = Worker(SAFE)
    worker.binding = Binding(QueueParameters("100%", log_tag="tag"), send)
    worker.put("a")
    worker.drain(0, DOWN)
    assert worker.lines == ["warn: [tag] queue 100%: handler could not process entries: down"]


def test_kong_does_not_notice_that_a_job_was_not_scheduled():
    """Entries gather in a queue that nobody drains."""
    worker = Worker(KONG, max_entries=2)  # Q13, H26
    worker.refusal = "too many pending timers"
    worker.put(1, 2, 3)
    assert worker.queue.counters() == Counters(enqueued=3, dropped_overflow=1, queued=2)


def test_safe_tells_that_a_job_was_not_scheduled():
    """And tries again with the next entry."""
    worker = Worker(SAFE)
    worker.refusal = "too many pending timers"
    error = "failed to schedule queue .q: too many pending timers"
    assert worker.queue.enqueue(1, worker.binding, 0) == (None, error)
    worker.refusal = None
    worker.put(2)
    assert worker.drain(0) == [[2]]


# Without a queue.


@both_profiles
def test_unlimited_concurrency_makes_every_entry_a_job(profile):
    """Batch size and limits do not apply, and there is no queue."""
    worker = Worker(profile, concurrency_limit=-1, max_entries=1, max_batch_size=5)  # Q23
    worker.put("a", "b")
    assert not worker.queue.exists
    assert worker.names == [None, None]
    assert [job.poll(0).entries for job in worker.jobs] == [["a"], ["b"]]
    worker.jobs[0].done(TAKEN, 0)
    worker.jobs[1].done(DOWN, 0)
    assert worker.jobs[0].poll(0) is None
    assert worker.queue.counters() == Counters(enqueued=2, acknowledged=1, in_flight=1)
    retry = worker.jobs[1].poll(0)
    assert worker.jobs[1].poll(retry.until).entries == ["b"]


@both_profiles
def test_a_job_that_cannot_be_created_is_an_error(profile):
    """Its text has Kong's spelling."""
    worker = Worker(profile, concurrency_limit=-1)  # Q23
    worker.refusal = "too many pending timers"
    error = "failed to crete timer: too many pending timers"
    assert worker.queue.enqueue("a", worker.binding, 0) == (None, error)
    assert worker.queue.enqueue(None, worker.binding, 0) == (None, "entry must be a non-nil Lua value")
    assert worker.queue.counters() == Counters(rejected=2)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [(KONG, Counters(enqueued=1, dropped_shutdown=1)), (SAFE, Counters(enqueued=1, in_flight=1))],
    ids=["kong", "safe"],
)
def test_a_premature_job_of_its_own_loses_its_entry_in_kong(profile, expected):
    """Profile safe sends it."""
    worker = Worker(profile, concurrency_limit=-1)  # Q23
    worker.put("a")
    (job,) = worker.jobs
    job.premature()
    assert isinstance(job, Delivery)
    assert isinstance(job.poll(0), Send) == (profile is SAFE)
    assert worker.queue.counters() == expected


@pytest.mark.parametrize(
    ("profile", "expected", "lines"),
    [
        (KONG, Counters(enqueued=2, swallowed=2), []),
        (
            SAFE,
            Counters(enqueued=2, dropped_overflow=2),
            ["error: [] queue q: no timer was left to send it, an entry was dropped"],
        ),
    ],
    ids=["kong", "safe"],
)
def test_a_job_of_its_own_whose_timer_is_not_run_is_lost(profile, expected, lines):
    """In safe that is an overflow, and told once a minute."""
    worker = Worker(profile, concurrency_limit=-1)  # N4, Q23
    worker.put("a", "b")
    assert [job.lost(0) for job in worker.jobs] == [False, False]
    assert [job.poll(0) for job in worker.jobs] == [None, None]
    assert worker.queue.counters() == expected
    assert worker.lines == lines


def test_a_queue_of_kong_whose_timer_is_not_run_is_never_drained():
    """It fills, drops its oldest, and what it holds at the end of the worker is lost."""
    worker = Worker(KONG, max_entries=2)  # N4, H26
    worker.put("a", "b")
    assert not worker.jobs[0].lost(0)
    worker.put("c")
    assert worker.queue.poll(0) is None
    assert len(worker.jobs) == 1
    worker.queues.close()
    assert worker.queue.counters() == Counters(enqueued=3, dropped_overflow=1, swallowed=2)


def test_a_queue_of_safe_whose_timer_is_not_run_asks_for_another():
    """It is drained then; a worker that has come to its end before counts what it held."""
    worker = Worker(SAFE, max_coalescing_delay=0)
    worker.put("a", "b")
    assert worker.jobs[0].lost(0)
    assert worker.drain(1) == [["a"], ["b"]]
    worker.put("c")
    assert worker.jobs[1].lost(2)
    worker.queues.close()
    assert worker.queue.counters() == Counters(enqueued=3, acknowledged=2, dropped_shutdown=1)


def test_any_other_limit_swallows_everything_in_kong():
    """Entries are accepted, and that is the last that is heard of them."""
    worker = Worker(KONG, concurrency_limit=2)  # Q23
    worker.put("a", "b")
    assert (worker.jobs, worker.queue.exists) == ([], False)
    assert worker.queue.counters() == Counters(enqueued=2, swallowed=2)


def test_any_other_limit_is_an_error_in_safe():
    """It names the value."""
    worker = Worker(SAFE, concurrency_limit=2)
    assert worker.queue.enqueue("a", worker.binding, 0) == (None, "concurrency_limit must be 1 or -1, not 2")


# The end of a worker.


@both_profiles
def test_an_exiting_worker_coalesces_for_50_ms(profile):
    """Full batches leave at once, the rest a moment later."""
    worker = Worker(profile, max_batch_size=2, max_coalescing_delay=10)  # Q17
    worker.queues.exit(0)
    worker.put(1, 2, 3, 4, 5)
    assert worker.drain(0) == [[1, 2], [3, 4]]
    assert worker.queue.poll(0) == Wait(0.05, or_entry=True)
    assert worker.drain(0.05) == [[5]]


def test_a_wait_under_way_when_the_worker_leaves_is_not_cut_short():
    """The job looks up once a second."""
    worker = Worker(KONG, max_batch_size=2, max_coalescing_delay=10)  # Q16, Q17
    worker.put(1)
    assert worker.queue.poll(0) == Wait(1.0, or_entry=True)
    worker.queues.exit(0.5)
    assert worker.queue.poll(0.5) == Wait(1.0, or_entry=True)
    assert worker.queue.poll(1.0) == Wait(1.05, or_entry=True)
    assert worker.drain(1.05) == [[1]]


def test_a_batch_that_had_waited_longer_than_50_ms_takes_two_more_entries_when_the_worker_leaves():
    """One that wakes the job, and one before it looks at the time again."""
    worker = Worker(KONG, max_batch_size=9, max_coalescing_delay=10)  # Q17
    worker.put(1)
    worker.drain(0)
    worker.queues.exit(0)
    worker.put(2, 3, 4, 5, 6, now=0.5)
    assert worker.drain(0.5) == [[1, 2, 3]]


@pytest.mark.parametrize(("profile", "stays_s"), [(KONG, 3 * 15 + 0.05), (SAFE, 5.25)], ids=["kong", "safe"])
def test_an_exiting_worker_whose_collector_is_down_leaves_in_the_end(profile, stays_s):
    """In kong each batch has max_retry_time for itself, and an attempt more; in safe all of them together have it."""
    worker = Worker(profile, max_retry_time=10, initial_retry_delay=1, max_retry_delay=100, max_batch_size=2)
    worker.put(1, 2, 3, 4, 5)  # Q25, H32
    worker.queues.exit(0)
    assert worker.attempts(DOWN)[-1] == stays_s
    expected = {KONG: Counters(enqueued=5, dropped_retries=5), SAFE: Counters(enqueued=5, dropped_shutdown=5)}
    assert worker.queue.counters() == expected[profile]


def test_an_exiting_worker_of_safe_drains_for_as_long_as_the_collector_answers():
    """Only a failure ends it, and what comes after that is tried once."""
    worker = Worker(SAFE, max_retry_time=10, initial_retry_delay=1, max_batch_size=1)
    worker.put(1, 2, 3)
    worker.queues.exit(0)
    assert isinstance(worker.queue.poll(100), Send)
    worker.queue.done(TAKEN, 100)
    assert isinstance(worker.queue.poll(100), Send)
    worker.queue.done(DOWN, 200)
    assert worker.queue.poll(200) is None
    assert worker.lines[-1] == (
        "error: [] queue q: worker is exiting and its time for retries is over. 2 queue entries were lost"
    )
    worker.put(4, now=300)
    assert worker.drain(300, DOWN) == [[4]]
    assert worker.queue.counters() == Counters(enqueued=4, acknowledged=1, dropped_shutdown=3)


@both_profiles
def test_retries_of_an_exiting_worker_go_on(profile):
    """The worker stays until its queue has given up or got through, premature or not."""
    worker = Worker(profile, initial_retry_delay=1)  # Q25
    worker.put("a")
    worker.jobs[0].premature()
    worker.drain(0, DOWN)
    before = worker.queue.poll(0)
    worker.queues.exit(0)
    assert worker.queue.poll(0) == before


def test_a_queue_that_is_new_to_an_exiting_worker_knows():
    """It hurries like the others."""
    worker = Worker(KONG)
    worker.queues.exit(0)
    assert worker.queues.queue("another").exiting


@both_profiles
def test_what_a_terminated_worker_holds_is_dropped(profile):
    """What waits, what is being sent, and jobs of their own."""
    worker = Worker(profile, max_batch_size=2)  # Q25, H31
    worker.put(1, 2, 3)
    worker.queue.poll(0)
    worker.queues.abandon()
    assert worker.queue.counters() == Counters(enqueued=3, dropped_shutdown=3)


# Time.


@pytest.mark.parametrize(("profile", "woken"), [(KONG, True), (SAFE, False)], ids=["kong", "safe"])
def test_a_wall_clock_set_forward_cuts_coalescing_short_in_kong(profile, woken):
    """The next entry finds the delay over; profile safe has a clock of its own."""
    worker = Worker(profile, max_batch_size=4, max_coalescing_delay=1)  # Q26
    worker.put(1)
    worker.drain(0)
    worker.queues.clock_stepped(10)
    worker.put(2, now=0.5)
    assert worker.drain(0.5) == ([[1, 2]] if woken else [])
    assert worker.drain(1.0) == ([] if woken else [[1, 2]])


def test_a_wall_clock_set_back_prolongs_the_retries_in_kong():
    """The limit comes later by as much."""
    worker = Worker(KONG, initial_retry_delay=1, max_retry_delay=1, max_retry_time=2)  # Q26
    worker.put("a")
    worker.drain(0, DOWN)
    worker.queues.clock_stepped(-3)
    assert len(worker.attempts(DOWN)) == 6


def test_a_step_of_the_wall_clock_leaves_no_rounding_error():
    """Exactly 50 ms of the delay remain, of which the job makes use, though sums of floats say less."""
    worker = Worker(KONG, max_batch_size=5)  # Q16, Q26
    worker.queues.exit(0)
    worker.queues.clock_stepped(-0.001)
    worker.put(1, now=0.057)
    assert worker.queue.poll(0.057) == Wait(pytest.approx(0.107), or_entry=True)
    worker.queues.clock_stepped(-5)
    assert worker.queue.poll(5.057) == Wait(pytest.approx(5.107), or_entry=True)


@pytest.mark.parametrize("parameter", ["max_entries", "max_batch_size"])
@both_profiles
def test_a_limit_may_be_infinite(profile, parameter):
    """Then there is none."""
    worker = Worker(profile, **{"max_batch_size": 3, parameter: inf})
    worker.put(1, 2)
    assert worker.drain(0) + worker.drain(1) == [[1, 2]]


# Parameters in a plugin's configuration.


def plugin_params(worker: Worker, config: dict[str, Any], wall_s: float = 1e9) -> dict[str, Any]:
    return dict(worker.queues.get_plugin_params("opentelemetry", config, None, plugin_id="id", wall_s=wall_s))


def test_a_plugin_gets_a_queue_of_its_own():
    """Its name is the plugin's id, its tag says whose it is."""
    worker = Worker(KONG)  # Q9
    assert plugin_params(worker, {"plugin_instance_name": "mine"}) == {
        "log_tag": "opentelemetry plugin id (mine)",
        "name": "id",
    }


def test_legacy_parameters_are_moved_and_warned_about_once_a_minute():
    """Their defaults are passed over."""
    worker = Worker(KONG)  # Q27
    config = {"queue": {"name": "q", "max_coalescing_delay": 1}, "batch_span_count": 50, "batch_flush_delay": 3}
    for seconds in (0, 59, 60):
        assert plugin_params(worker, config, 1e9 + seconds)["max_batch_size"] == 50
    assert config["queue"]["max_coalescing_delay"] == 1
    assert worker.lines == [DEPRECATED] * 2


def test_what_is_false_in_a_plugins_configuration_is_not_there():
    """As Lua has it."""
    worker = Worker(KONG)
    config = {"queue": False, "plugin_instance_name": False, "batch_span_count": False}  # Q9, Q27
    assert plugin_params(worker, config) == {"log_tag": "opentelemetry plugin id", "name": "id"}
    assert plugin_params(worker, {"queue": {"name": False}})["name"] == "id"
    assert worker.lines == []


# The whole.


def test_accounts_of_a_worker_are_the_sum_of_its_queues():
    """All of them, under all names."""
    worker = Worker(KONG)
    assert Queues(KONG, worker.log, lambda: 0.5, worker.schedule).counters() == Counters()
    worker.put(1, 2)
    worker.queues.queue("another").enqueue(3, worker.binding, 0)
    assert worker.queues.counters() == Counters(enqueued=3, queued=3)


def test_bytes_of_a_backlog_are_added_up():
    """Of all queues; what is being sent has left them."""
    worker = Worker(KONG, max_batch_size=2, max_coalescing_delay=0)
    assert worker.queues.backlog_bytes() == 0
    worker.put(b"a", b"bb", b"ccc", memoryview(b"dddd"))
    worker.queues.queue("another").enqueue(b"eeeee", worker.binding, 0)
    assert worker.queues.backlog_bytes() == 15
    worker.queue.poll(0)
    assert worker.queues.backlog_bytes() == 14


def test_entries_that_are_no_bytes_have_none():
    """A plugin's own queue may hold copies of spans."""
    worker = Worker(KONG)
    worker.put(object(), object())
    assert worker.queues.backlog_bytes() == 0


def test_bytes_of_a_long_backlog_are_reckoned_from_its_oldest_entries():
    """So that a queue of a million costs no more to look at than one of ten thousand."""
    worker = Worker(KONG, max_entries=1_000_000)
    worker.put(*[b"aaaa"] * SIZED_ENTRIES_MAX)
    assert worker.queue.backlog_bytes() == 4 * SIZED_ENTRIES_MAX
    worker.put(*[b"bb"] * SIZED_ENTRIES_MAX)
    assert worker.queue.backlog_bytes() == 4 * 2 * SIZED_ENTRIES_MAX


def test_the_documentation_gives_a_source_for_every_difference():
    """`docs/profiles.md` has a row for each field of `QueueProfile`."""
    lines = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text().splitlines()
    for field in fields(QueueProfile):
        assert field.name == "name" or any(line.startswith(f"| `{field.name}` |") for line in lines)
