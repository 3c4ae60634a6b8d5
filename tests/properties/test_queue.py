"""The queue against a naive one that moves entry by entry and permit by permit, in fake time with scripted outcomes."""

from collections.abc import Generator
from dataclasses import replace
from math import inf
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kongtrace.delivery import Send, Wait
from kongtrace.errors import KongTraceError
from kongtrace.queue import Queues
from kongtrace.queue_parameters import Binding, QueueParameters
from kongtrace.queue_profile import KONG, SAFE, Outcome, QueueProfile

TICK_S = 1 / 64  # sums of it are exact
LONG_S = 1000.0  # longer than any queue of these tests can take, given a collector that answers
RANDOM = 0.5

SIZES = st.lists(st.sampled_from([0, 5, 20, 60]), min_size=1, max_size=8)

Step = tuple[str, Any]  # "wait", "sleep", "hold" until a time or "send" entries


def ticks(longest: int) -> st.SearchStrategy[float]:
    return st.integers(0, longest).map(lambda count: count * TICK_S)


def rarely() -> st.SearchStrategy[bool]:
    return st.integers(0, 9).map(lambda number: number == 9)


def parameters() -> st.SearchStrategy[QueueParameters]:
    return st.builds(
        QueueParameters,
        name=st.just("q"),
        max_batch_size=st.integers(1, 6),
        max_coalescing_delay=st.sampled_from([1, 0.25, 2.5, 0]),
        max_entries=st.just(30) | st.integers(1, 8),
        max_bytes=st.sampled_from([None, None, None, 40]),
        max_retry_time=st.sampled_from([-1, 0, 2]),
        initial_retry_delay=st.just(0.125),
        max_retry_delay=st.just(0.5),
    )


def outcomes(profile: QueueProfile) -> st.SearchStrategy[Outcome]:
    failures = st.sampled_from([Outcome(ok=False, reason="reset"), Outcome(ok=False)])
    answers = st.builds(
        profile.outcome,
        st.sampled_from([200, 202, 400, 429, 503]),
        retry_after_s=st.sampled_from([None, None, 0.0, 1.0]),
        refused=st.integers(0, 2),
    )
    return st.just(Outcome(ok=True)) | failures | answers


class DiedError(Exception):
    """The naive job met what kills a job."""


class NaiveQueue:
    """What a queue does, as simply as it can be said; a table with a front and a back, and a semaphore."""

    def __init__(self, profile: QueueProfile) -> None:
        self.profile = profile
        self.exiting = self.dead = False
        self.exited_at = 0.0
        self.held_until = 0.0
        self.step = 0.0
        self.accounts = dict.fromkeys(
            (
                *("enqueued", "acknowledged", "swallowed", "rejected", "refused"),
                *("dropped_overflow", "dropped_retries", "dropped_shutdown"),
            ),
            0,
        )
        self.in_flight = 0
        self.job: Generator[Step, Any] | None = None
        self.doing: Step | None = None
        self.sent: list[tuple[float, list[bytes], Any]] = []
        self.clear()

    def clear(self) -> None:
        self.table: dict[int, bytes] = {}
        self.front = self.back = 1
        self.permits = self.taken = 0
        self.is_woken = False

    @property
    def depth(self) -> int:
        return self.back - self.front

    @property
    def is_waiting(self) -> bool:
        return self.doing is not None and self.doing[0] == "wait"

    @property
    def size(self) -> int:
        return sum(map(len, self.table.values()))

    # Producing.

    def enqueue(self, entry: bytes, binding: Binding, now: float, *, log_phase: bool) -> bool:
        """Whether the entry was taken; raises what kills the caller."""
        if self.job is None and not self.dead:
            self.clear()
            self.bound, self.delay_s = binding, binding.parameters.max_coalescing_delay
            self.job, self.doing = self.run(), ("sleep", now)
        self.newest = binding
        try:
            taken = self.admit(entry, log_phase=log_phase)
        except AssertionError:
            self.accounts["rejected"] += 1
            raise
        self.accounts["enqueued" if taken else "rejected"] += 1
        if taken and self.is_waiting and now < self.doing[1]:  # else the timer of the wait goes off first
            self.is_woken = True
        return taken

    def admit(self, entry: bytes, *, log_phase: bool) -> bool:
        limits = self.bound.parameters
        too_large = limits.max_bytes is not None and len(entry) > limits.max_bytes
        if too_large and self.profile.enforces_bytes:
            return False
        if self.depth == limits.max_entries:
            self.drop(log_phase=log_phase)
        if too_large:
            return False
        while limits.max_bytes is not None and self.size + len(entry) > limits.max_bytes:
            self.drop(log_phase=log_phase)
        if self.back >= self.front:
            self.table[self.back] = entry
        else:
            self.accounts["swallowed"] += 1
        self.back += 1
        self.permits += 1
        return True

    def drop(self, *, log_phase: bool) -> None:
        if self.profile.has_permits:
            assert self.permits - self.is_waiting > 0
            self.permits -= not (log_phase or self.is_waiting)
        elif self.permits:
            self.permits -= 1
        else:
            self.taken -= 1
        self.delete_front()
        self.accounts["dropped_overflow"] += 1

    def delete_front(self) -> None:
        if self.front not in self.table and self.bound.parameters.max_bytes is not None:
            raise DiedError
        self.table.pop(self.front, None)
        self.front += 1
        if self.front == self.back:
            self.front = self.back = 1

    # Consuming.

    def turn(self, now: float, outcome: Outcome | None = None) -> None:
        """Let the job go on for as long as it need not wait."""
        self.now = now
        while self.job is not None and self.doing is not None:
            what, value = self.doing
            if what == "send" and outcome is None:
                return
            if what != "send" and not self.is_woken and now < value - TICK_S / 1000:
                return
            answer = outcome if what == "send" else self.is_woken
            outcome, self.is_woken = None, False
            try:
                self.doing = next(self.job) if what in {"sleep", "hold"} else self.job.send(answer)
            except StopIteration:
                self.job = self.doing = None
            except DiedError:
                self.job = self.doing = None
                self.dead = True

    @property
    def wall(self) -> float:
        """What a clock says: to the ns, once it was set."""
        return round(self.now + self.step, 9) if self.step else self.now

    def elapsed(self, since: float) -> float:
        return self.wall - since

    def exit(self, now: float) -> None:
        self.exiting, self.exited_at = True, now
        if self.doing is not None and self.doing[0] == "hold":
            self.doing = "sleep", now

    def hold(self) -> Generator[Step, Any]:
        limit = self.bound.parameters.max_retry_time
        while self.now < self.held_until - TICK_S / 1000:
            if self.exiting and self.held_until - self.exited_at > limit:
                self.accounts["dropped_shutdown"] += len(self.table)
                self.clear()
                return
            yield "hold", self.held_until

    def run(self) -> Generator[Step, Any]:
        while self.depth > 0:
            yield from self.hold()
            if self.depth == 0:
                return
            yield from self.coalesce()
            self.give_back()
            batch = [self.table[place] for place in range(self.front, self.front + self.taken) if place in self.table]
            try:
                while self.taken:
                    self.delete_front()
                    self.taken -= 1
            except DiedError:
                self.accounts["swallowed"] += len(batch)
                raise
            yield from self.deliver(batch)

    def coalesce(self) -> Generator[Step, Any]:
        size = self.bound.parameters.max_batch_size
        if not self.profile.has_permits:
            size = min(size, self.bound.parameters.max_entries)
        self.permits -= 1
        self.taken, started = 1, self.wall
        while self.taken < size and self.delay_s - self.elapsed(started) >= 0.05:
            patience = min(self.delay_s - self.elapsed(started), 1.0)
            if self.exiting:
                self.delay_s = patience = 0.05
            if self.permits or (yield "wait", self.now + patience):
                self.permits -= 1
                self.taken += 1

    def give_back(self) -> None:
        """Leave for the next batch what this one has no bytes left for."""
        bytes_max = self.profile.batch_bytes_max
        while bytes_max is not None and self.taken > 1 and self.size_of_front() > bytes_max:
            self.taken -= 1
            self.permits += 1

    def size_of_front(self) -> int:
        return sum(len(self.table[place]) for place in range(self.front, self.front + self.taken))

    def deliver(self, batch: list[bytes]) -> Generator[Step, Any]:
        limits, profile = self.bound.parameters, self.profile
        self.in_flight, started, delay = len(batch), self.wall, limits.initial_retry_delay
        while True:
            self.sent.append((self.now, batch, self.newest.handler_conf))
            outcome: Outcome = yield "send", batch
            if outcome.ok:
                refused = min(outcome.refused, len(batch)) if profile.counts_partial_success else 0
                self.book(refused, len(batch) - refused)
                return
            pause = min(delay, limits.max_retry_delay) * (1 - profile.jitter * RANDOM)
            if profile.honours_retry_after:
                pause = max(pause, outcome.retry_after_s or 0)
            if profile.retryable is not None and outcome.status is not None and outcome.status not in profile.retryable:
                self.book(len(batch), 0)
                return
            if profile.bounds_exit and self.exiting and self.now + pause - self.exited_at > limits.max_retry_time:
                self.accounts["dropped_shutdown"] += len(batch) + len(self.table)
                self.in_flight = 0
                self.clear()
                return
            if self.elapsed(started) + pause * profile.bounds_retry_time > limits.max_retry_time:
                self.accounts["dropped_retries"] += len(batch)
                self.in_flight = 0
                if profile.honours_retry_after and outcome.retry_after_s is not None:
                    self.held_until = self.now + outcome.retry_after_s
                return
            yield "sleep", self.now + pause
            delay *= 2

    def book(self, refused: int, acknowledged: int) -> None:
        self.accounts["refused"] += refused
        self.accounts["dropped_retries"] += refused
        self.accounts["acknowledged"] += acknowledged
        self.in_flight = 0


class QueueMachine(RuleBasedStateMachine):
    """Both queues get the same entries, outcomes and time; the real one is polled only when it has to be."""

    profile: QueueProfile

    @initialize(first=parameters(), second=parameters())
    def start(self, first: QueueParameters, second: QueueParameters) -> None:
        self.now = 0.0
        self.bindings = [Binding(first, print, {"v": 1}), Binding(second, print, {"v": 2})]
        self.queue = Queues(self.profile, lambda *_: None, lambda: RANDOM, self.schedule).queue("q")
        self.queue.wake = self.wake
        self.naive = NaiveQueue(self.profile)
        self.serial = 0
        self.until = inf
        self.is_due = self.is_out = False
        self.sent: list[tuple[float, list[bytes], Any]] = []
        self.outcomes: dict[bytes, bool] = {}  # of the entries sent so far: whether they were taken

    # What a driver does.

    def schedule(self, _name: str | None, _job: object) -> None:
        self.is_due = True

    def wake(self) -> None:
        self.is_due = True

    def turn(self) -> None:
        while not self.is_out and (self.is_due or self.until <= self.now):
            self.is_due, self.until = False, inf
            try:
                action = self.queue.poll(self.now)
            except KongTraceError:
                return
            match action:
                case Wait(until):
                    self.until = until
                case Send():
                    self.take(action)

    def take(self, action: Send) -> None:
        self.is_out = True
        assert len(action.entries) <= self.queue._size + 1 - TICK_S
        bytes_max = self.profile.batch_bytes_max
        assert bytes_max is None or len(action.entries) == 1 or sum(map(len, action.entries)) <= bytes_max
        for entry in action.entries:
            assert not self.outcomes.get(entry), "sent again although it was taken"
        fresh = [entry for entry in action.entries if entry not in self.outcomes]
        assert fresh == sorted(fresh)
        assert fresh in ([], action.entries), "a batch stays what it was"
        assert not fresh or not self.outcomes or fresh[0] > max(self.outcomes), "in the order they came"
        self.outcomes |= dict.fromkeys(action.entries, False)
        self.sent.append((self.now, action.entries, action.handler_conf))

    def both_turn(self) -> None:
        self.turn()
        self.naive.turn(self.now)

    # What happens to it.

    @rule(sizes=SIZES, log_phase=st.booleans(), many=st.booleans(), which=rarely())
    def enqueue(self, sizes: list[int], log_phase: bool, many: bool, which: bool) -> None:
        binding = self.bindings[which]
        entries = [self.entry(size) for size in sizes]
        try:
            if many:
                self.queue.enqueue_many(entries, binding, self.now, log_phase)
            else:
                for entry in entries:
                    self.queue.enqueue(entry, binding, self.now, log_phase)
            raised = False
        except KongTraceError:
            raised = True
        try:
            for entry in entries:
                self.naive.enqueue(entry, binding, self.now, log_phase=log_phase)
            assert not raised
        except AssertionError:
            assert raised, "the naive queue raised"
        self.both_turn()

    def entry(self, size: int) -> bytes:
        self.serial += 1
        return b"%06d" % self.serial + bytes(size)

    @rule(seconds=ticks(8) | ticks(100))
    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.next_due()) <= end:
            self.now = due
            self.both_turn()
        self.now = end

    @precondition(lambda self: self.next_due() < inf)
    @rule(sizes=SIZES, log_phase=st.booleans(), many=st.booleans(), which=rarely())
    def enqueue_when_a_wait_ends(self, **how: Any) -> None:
        """In the turn in which its time comes."""
        self.now = self.next_due()
        self.enqueue(**how)

    def next_due(self) -> float:
        doing = self.naive.doing
        theirs = doing[1] if doing is not None and doing[0] != "send" else inf
        return max(self.now, min(self.until, theirs)) if min(self.until, theirs) < inf else inf

    @precondition(lambda self: self.is_out)
    @rule(data=st.data(), more=st.integers(0, 10))
    def answer(self, data: st.DataObject, more: int) -> None:
        self.is_answered(data.draw(outcomes(self.profile)))
        while self.is_out and more:
            self.is_answered(Outcome(ok=True))
            more -= 1

    @precondition(lambda self: self.is_out)
    @rule()
    def take_all(self) -> None:
        while self.is_out:
            self.is_answered(Outcome(ok=True))

    def is_answered(self, outcome: Outcome) -> None:
        _, entries, _ = self.sent[-1]
        self.outcomes |= dict.fromkeys(entries, outcome.ok)
        self.is_out, self.is_due = False, True
        self.queue.done(outcome, self.now)
        self.turn()
        self.naive.turn(self.now, outcome)

    @rule(turn=rarely())
    def exit(self, turn: bool) -> None:
        if turn:
            self.queue.exit(self.now)
            self.naive.exit(self.now)
            self.both_turn()

    @rule(turn=rarely(), seconds=st.sampled_from([-3.0, -0.5, 0.5, 10.0]))
    def set_clock(self, turn: bool, seconds: float) -> None:
        seconds *= turn
        self.queue.clock_stepped(seconds)
        self.naive.step += seconds * self.profile.reads_wall_clock

    # What holds.

    @invariant()
    def no_entry_is_unaccounted_for(self) -> None:
        """What was enqueued is in exactly one account."""
        is_ = self.queue.counters()
        dropped = is_.dropped_overflow + is_.dropped_retries + is_.dropped_shutdown
        assert is_.enqueued == is_.acknowledged + dropped + is_.swallowed + is_.queued + is_.in_flight
        assert min(is_) >= 0

    @invariant()
    def it_does_what_the_naive_queue_does(self) -> None:
        """The same is sent at the same time under the same configuration, and stands in the same accounts."""
        is_ = self.queue.counters()._asdict()
        assert {name: is_[name] for name in self.naive.accounts} == self.naive.accounts
        assert (is_["queued"], is_["in_flight"]) == (len(self.naive.table), self.naive.in_flight)
        assert len(self.sent) == len(self.naive.sent)
        for (t, *what), (t_naive, *what_naive) in zip(self.sent, self.naive.sent, strict=True):
            assert abs(t - t_naive) < TICK_S / 100
            assert what == what_naive
        del self.sent[:-1], self.naive.sent[:-1]

    @invariant()
    def limits_are_never_passed(self) -> None:
        """No more entries and bytes wait than the queue was made for."""
        if not self.queue.exists:
            return
        is_, limits = self.queue.counters(), self.queue._parameters
        assert is_.queued <= limits.max_entries
        assert limits.max_bytes is None or is_.bytes <= limits.max_bytes

    def teardown(self) -> None:
        """Given a collector that takes everything, the queue drains, unless its job is dead."""
        if not hasattr(self, "queue"):
            return
        deadline = self.now + LONG_S
        while self.queue.exists and not self.queue._dead:
            if self.is_out:
                self.is_answered(Outcome(ok=True))
            else:
                assert self.next_due() < deadline, "a queue that nothing will ever move"
                self.advance(self.next_due() - self.now)
            self.it_does_what_the_naive_queue_does()
        self.no_entry_is_unaccounted_for()
        is_ = self.queue.counters()
        assert self.queue._dead or is_.queued == is_.in_flight == 0
        assert self.profile is KONG or (is_.swallowed == 0 and not self.queue._dead)


class KongMachine(QueueMachine):
    profile = KONG


class SafeMachine(QueueMachine):
    profile = SAFE


class SmallRequestMachine(QueueMachine):
    profile = replace(SAFE, batch_bytes_max=70)


TestKongQueue = KongMachine.TestCase
TestKongQueue.settings = settings(stateful_step_count=100)
TestSafeQueue = SafeMachine.TestCase
TestSafeQueue.settings = settings(stateful_step_count=100)
TestQueueOfSmallRequests = SmallRequestMachine.TestCase
TestQueueOfSmallRequests.settings = settings(stateful_step_count=100)
