"""Batching queue: gathers entries into batches, tries each until it is taken, drops the oldest entry when it is full.

It decides and never waits. Whoever drives it sleeps, sends, and says what time it is: seconds of a clock that never
goes back, from any origin. The driver, one per queue, is a loop:

1. The ``schedule`` that was handed in starts it, which happens when an entry comes to an absent queue.
2. It polls. The answer is :class:`Send`: send the entries and tell ``done`` what came of it, then poll again; or
   :class:`Wait`: poll again at that time, or earlier when ``Queue.wake`` is called; or None: there is nothing left, the
   loop ends.

Theory of operation. A queue is *absent* until an entry comes; then a job is *scheduled*. The job takes the first entry
and *coalesces*: it waits for more until the batch is full or ``max_coalescing_delay`` s have passed since that first
entry. The batch leaves the queue and is *delivered*: tried, and after a failure tried again, each delay twice the one
before. Then comes the next batch; one at a time. When no entry is left the queue is absent again, and takes new
parameters from the entry that calls it back; while it exists, only the handler's configuration follows the newest
entry (kong-semantics Q10-Q13, Q16-Q22). With ``concurrency_limit`` -1 there is no queue: every entry is a job of its
own (Q23).

Kong counts entries with a semaphore, and so do we: a *permit* per entry waiting, which the job takes as it collects and
the drop of an oldest entry takes back. Three traps follow from it. While the job holds all permits and waits for more,
nothing can be dropped: enqueue raises (H28). In the log phase a permit cannot be taken, so a drop there leaves one too
many (Q29): the job then collects more permits than there are entries, the front of the queue passes its back, and what
is enqueued until the back has caught up is never seen by anybody: ``swallowed``. And a job that dies leaves a queue
that nobody drains (H26). Profile ``kong`` has all three, profile ``safe`` none; their differences are the fields of
:class:`~kongtrace.queue_profile.QueueProfile`.

Most entries meet none of this, and need not wake the job either: `Queue._settle` finds out how far the next entries may
go straight to the back of the queue, and `Queue.enqueue` asks no more than that.

Accounts. ``enqueued = acknowledged + dropped_overflow + dropped_retries + dropped_shutdown + swallowed + queued +
in_flight``, at any time. Entries that `enqueue` refuses, with an error or by raising, are ``rejected``.

Errors: :class:`~kongtrace.errors.ApiError` for a bad argument, with Kong's text; :class:`BookkeepingError` where
Kong's own bookkeeping fails.

Source: kong-semantics section 13; OTLP specification, "OTLP/HTTP Response".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from itertools import accumulate, islice
from math import ceil, floor, inf
from sys import maxsize
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kongtrace.delivery import INSTANT_S, Action, Delivery, Job, Wait
from kongtrace.errors import ApiError, BookkeepingError, KongTraceError
from kongtrace.lua import is_given, lua_format, lua_length
from kongtrace.queue_parameters import Binding, QueueParameters

if TYPE_CHECKING:
    from kongtrace.queue_profile import Outcome, QueueProfile

CAPACITY_WARNING_THRESHOLD: Final = 0.8
"""Share of ``max_entries`` from which on the queue warns (Q14)."""

COALESCE_POLL_S: Final = 1.0
"""A coalescing job looks at least this often whether the worker is exiting (Q16)."""

COALESCE_MIN_S: Final = 0.05
"""A coalescing delay of which less remains counts as over; also the whole delay of an exiting worker (Q16, Q17)."""

LEGACY_WARNING_INTERVAL_S: Final = 60.0
"""A legacy parameter is warned about at most once in this time (Q27)."""

QUEUES_KEPT: Final = 32
"""Queues that are kept while they are absent; of more names those that have no work are forgotten."""

SIZED_ENTRIES_MAX: Final = 10_000
"""Entries whose bytes are added up; of a longer queue the oldest so many stand for the others. Some 100 us."""

UTF8_BYTES_MAX: Final = 4
"""Bytes of one character at most."""

_ENTRIES_MAX: Final = maxsize
"""More than there can be."""

_WALL_DIGITS: Final = 9
"""Decimal places of s that the wall clock has once it was set; what a sum of floats has beyond is its error."""

Log = Callable[[str, str], object]
"""Takes a level ("info", "warn", "error") and a message."""


class Counters(NamedTuple):
    """The accounts of a queue in entries, but for ``bytes``; the equation stands in the module's docstring.

    Attributes:
        enqueued: accepted.
        acknowledged: sent and taken.
        dropped_overflow: dropped as the oldest of a full queue.
        dropped_retries: given up after a failure.
        dropped_shutdown: held when the worker was terminated or its exit took too long, or found by a job that came too
            late.
        swallowed: lost without a word (Q29, H26, Q23, N4).
        rejected: not accepted.
        refused: those of ``dropped_retries`` that the collector did not want, now or ever.
        queued: waiting.
        in_flight: in a batch that is being sent or waits to be sent again.
        bytes: of the waiting entries, where there is a ``max_bytes``.
    """

    enqueued: int = 0
    acknowledged: int = 0
    dropped_overflow: int = 0
    dropped_retries: int = 0
    dropped_shutdown: int = 0
    swallowed: int = 0
    rejected: int = 0
    refused: int = 0
    queued: int = 0
    in_flight: int = 0
    bytes: int = 0


Schedule = Callable[[str | None, Job], str | None]
"""Starts a job in the background as soon as the caller has yielded, under a name or without one (Q13, Q23).

Returns why it cannot, or None.
"""

Result = tuple[bool | None, str | None]
ACCEPTED: Final[Result] = (True, None)


class Queue:
    """One queue of one worker, absent or not, and its accounts.

    Args:
        key: the queue's identity, workspace and name joined by a dot (Q10).
        profile: ``KONG`` or ``SAFE``.
        log: takes what Kong would log.
        random: gives a number in [0, 1), for the jitter.
        schedule: starts the job that drains the queue, or sends one entry.

    Attributes:
        exists: not absent (Q10, Q24).
        wake: called when a job that waits should be polled, because of an entry or because the worker is leaving,
            though not from within this call; the driver sets it.
        exiting: the worker is on its way out.
        held_until: the collector wants no other batch before this time, s.
    """

    def __init__(
        self, key: str, profile: QueueProfile, log: Log, random: Callable[[], float], schedule: Schedule
    ) -> None:
        self.key = key
        self.profile = profile
        self.log = log
        self.random = random
        self._schedule = schedule
        self.wake: Callable[[], object] = _nobody
        self.exiting = False
        self._exited_at = inf
        self.held_until = -inf
        self._step = 0.0  # s by which the wall clock has been set forward
        self._complaints: dict[str, tuple[float, int]] = {}  # by kind: when logged last, how often not since
        self._entries: deque[Any] = deque()
        self.enqueued = self.acknowledged = self.rejected = self.refused = self.swallowed = self.in_flight = 0
        self.dropped_overflow = self.dropped_retries = self.dropped_shutdown = 0
        self._leave()

    def _leave(self) -> None:
        """Be absent."""
        self.exists = self._dead = self._is_stranded = False
        self._binding = self._bound = _UNBOUND  # the newest, and the one that brought parameters and handler
        self._parameters = _UNBOUND.parameters
        self._delivery: Delivery | None = None
        self._entries.clear()
        self.bytes = 0
        self._warned = self._resuming = False
        # The job: permits that it has collected, whether it waits for more and until when, whether it has been woken,
        # and that by an entry that came in time.
        self._collected = 0
        self._waiting = self._woken = self._in_time = False
        self._wake_at = self._started = 0.0
        # Permits too many, and entries by which the front is ahead of the back (Q29).
        self._surplus = self._overtaken = 0
        # Entries may go straight to the back while fewer than this are there and it is not yet that time.
        self._capacity = self._quiet_below = 0
        self._quiet_until = inf
        self._is_replacing = False  # each entry that comes costs the oldest, and no more is to be asked

    # What producers call.

    def enqueue(self, entry: object, binding: Binding, now: float, log_phase: bool = False) -> Result:
        """Add an entry.

        Args:
            entry: anything but None; a string (``str`` or ``bytes``) where ``max_bytes`` is to be right.
            binding: what to enqueue it with.
            now: s.
            log_phase: the caller is in a request's log phase, where no permit can be taken (Q29).

        Returns:
            (True, None), or (None, why not).

        Raises:
            ApiError: profile ``kong`` only: there is no room, although there should be (Q14e).
            BookkeepingError: profile ``kong`` only: there is nothing that could be dropped (H28).
        """
        if (
            len(self._entries) < self._quiet_below
            and now < self._quiet_until
            and binding is self._binding
            and entry is not None
        ):
            self._entries.append(entry)
            self.enqueued += 1
            return ACCEPTED
        return self._enqueue(entry, binding, now, log_phase=log_phase)

    def enqueue_many(
        self, entries: Sequence[object], binding: Binding, now: float, log_phase: bool = False
    ) -> list[str]:
        """Add several entries in order: the same as to `enqueue` each, but faster.

        Returns:
            The errors of those that were refused.
        """
        count, waiting = len(entries), len(self._entries)
        if binding is self._binding and all(entries):  # None is not all that is false, but nothing false is usual
            if waiting + count <= self._quiet_below and now < self._quiet_until:
                self._entries.extend(entries)
                self.enqueued += count
                return []
            if self._is_replacing and count <= waiting:
                self._replace(entries, now)
                return []
        errors: list[str] = []
        position = 0
        while position < count:
            is_quiet = binding is self._binding and now < self._quiet_until
            room = self._quiet_below - len(self._entries) if is_quiet else 0
            part = entries[position : position + max(room, 1)]
            position += len(part)
            if room > 0 and None not in part:
                self._entries.extend(part)
                self.enqueued += len(part)
                continue
            for entry in part:
                _, error = self.enqueue(entry, binding, now, log_phase)
                if error is not None:
                    errors.append(error)
        return errors

    def is_full(self) -> bool:
        """Whether nothing more fits without a drop; an absent queue is never full (Q24)."""
        return self.exists and self._is_full()

    def is_idle(self) -> bool:
        """Whether it is absent, and nothing is to be remembered of it but its accounts."""
        return not (self.exists or self.in_flight or self.held_until > -inf)

    def can_enqueue(self, entry: object) -> bool:
        """Whether ``entry`` fits without a drop; into an absent queue everything does (Q24)."""
        return not self.exists or self._fits(_string_size(entry))

    # What the driver calls.

    def premature(self) -> None:
        """Go on all the same (Q25)."""

    def lost(self, now: float) -> bool:  # noqa: ARG002 - the same for all jobs
        """Be a queue that nobody drains (H26), in profile safe until another timer is."""
        self._dead = self.profile.loses_silently
        self._is_stranded = True
        return not self._dead

    def poll(self, now: float) -> Action:
        """Say what the job has to do next; None: nothing any more.

        Raises:
            BookkeepingError: profile ``kong`` only: the job dies here, and nobody will drain the queue (H26).
        """
        if self._dead or not self.exists:
            return None
        self._is_stranded = False
        try:
            return self._process(now)
        except BookkeepingError:
            self._dead = True
            raise
        finally:
            self._settle()

    def done(self, outcome: Outcome, now: float) -> None:
        """Take note of what came of the last :class:`Send`; then poll again."""
        assert self._delivery is not None, "no batch is out"
        self._delivery.done(outcome, now)

    def exit(self, now: float) -> None:
        """The worker is leaving: coalesce no longer than needed (Q17). Retries go on (Q25)."""
        self.exiting, self._exited_at = True, now
        self._settle()
        if now < self.held_until:
            self.wake()

    def is_past_exit(self, retry_at: float, max_retry_time: float) -> bool:
        """Whether a retry would come too late for a worker that is leaving."""
        return self.exiting and self.profile.bounds_exit and retry_at - self._exited_at > max_retry_time

    def lose_at_exit(self, parameters: QueueParameters, taken: int = 0) -> None:
        """Let go of what waits, and of as many entries taken from it: the worker is leaving and has no time for it."""
        lost = taken + self.drop_waiting()
        text = "worker is exiting and its time for retries is over. %d queue entries were lost"
        self.tell(parameters, "error", text, lost)
        self.dropped_shutdown += lost

    def drop_waiting(self) -> int:
        """Let go of what waits; whoever asks for it keeps the accounts of what is returned."""
        count = len(self._entries)
        self._entries.clear()
        self.bytes = 0
        return count

    def abandon(self) -> None:
        """The worker is terminated: all that it holds is lost (Q25). No other call may follow."""
        self.dropped_shutdown += len(self._entries) + self.in_flight
        self.in_flight = 0
        self._leave()

    def close(self) -> None:
        """The worker has come to its end of its own accord: what nobody drains is lost (H26)."""
        if self._dead:
            self.swallowed += self.drop_waiting()
        elif self._is_stranded:
            self.dropped_shutdown += self.drop_waiting()

    def clock_stepped(self, seconds: float) -> None:
        """The wall clock was set forward by ``seconds`` (back if negative), which only profile ``kong`` feels (Q26)."""
        if self.profile.reads_wall_clock:
            self._step += seconds
            self._settle()

    def counters(self) -> Counters:
        """The accounts now."""
        return Counters(*self.figures())

    def figures(self) -> tuple[int, ...]:
        """The same as a plain tuple, which costs a third, for whoever asks after every request."""
        return (
            self.enqueued,
            self.acknowledged,
            self.dropped_overflow,
            self.dropped_retries,
            self.dropped_shutdown,
            self.swallowed,
            self.rejected,
            self.refused,
            len(self._entries),
            self.in_flight,
            self.bytes,
        )

    def backlog_bytes(self) -> int:
        """Bytes of the entries that wait, 0 where they are no bytes: exact up to `SIZED_ENTRIES_MAX`, then about."""
        waiting = len(self._entries)
        try:
            if waiting <= SIZED_ENTRIES_MAX:
                return sum(map(len, self._entries))
            return waiting * sum(map(len, islice(self._entries, SIZED_ENTRIES_MAX))) // SIZED_ENTRIES_MAX
        except TypeError:  # such as a copy of a span
            return 0

    # Enqueueing, in the order of Q14.

    def _enqueue(self, entry: object, binding: Binding, now: float, *, log_phase: bool) -> Result:
        try:
            if self.exists:
                self._binding = binding
                error = self._join(entry, now, log_phase=log_phase)
            else:
                error = self._enter(entry, binding, now, log_phase=log_phase)
        except KongTraceError:
            self.rejected += 1
            raise
        finally:
            self._settle()
        if error is not None:
            self.rejected += 1
            return None, error
        return ACCEPTED

    def _enter(self, entry: object, binding: Binding, now: float, *, log_phase: bool) -> str | None:
        """Enqueue the first entry of an absent queue."""
        limit = binding.parameters.concurrency_limit
        if limit == -1:
            return self._send_alone(entry, binding)
        if limit != 1 and not self.profile.loses_silently:
            return f"concurrency_limit must be 1 or -1, not {limit}"
        error = self._appear(binding)
        if error is not None:
            return error
        self._binding = binding
        try:
            return self._join(entry, now, log_phase=log_phase)
        finally:
            if limit != 1:  # no job was scheduled for it and nobody remembers it
                self.swallowed += len(self._entries)
                self._leave()

    def _join(self, entry: object, now: float, *, log_phase: bool) -> str | None:
        if entry is None:
            return _NIL
        self._catch_up()
        error = None
        if len(self._entries) < self._capacity and not (self._warned or self._overtaken):  # no limit is near
            self._append(entry)
        else:
            error = self._admit(entry, now, log_phase=log_phase)
        if error is None and self._waiting and not self._woken:
            self._woken, self._in_time = True, now < self._wake_at - INSTANT_S
            self.wake()
        return error

    def _send_alone(self, entry: object, binding: Binding) -> str | None:
        if entry is None:
            return _NIL
        error = self._schedule(None, Delivery(self, binding, [entry]))
        if error is not None:
            return f"failed to crete timer: {error}"
        self.enqueued += 1
        self.in_flight += 1
        return None

    def _appear(self, binding: Binding) -> str | None:
        """Exist again, with new parameters, and have a job scheduled."""
        parameters = binding.parameters
        if parameters.concurrency_limit == 1:
            error = self._schedule(f"queue {self.key}", self)
            if error is not None and not self.profile.loses_silently:
                return f"failed to schedule queue {self.key}: {error}"
        self.exists = True
        self._bound, self._parameters = binding, parameters
        self._coalescing_s = parameters.max_coalescing_delay
        max_entries = min(parameters.max_entries, _ENTRIES_MAX)
        size = min(parameters.max_batch_size, _ENTRIES_MAX)
        self._size = ceil(size if self.profile.has_permits else min(size, max_entries))
        if parameters.max_bytes is None:
            self._capacity = min(ceil(CAPACITY_WARNING_THRESHOLD * max_entries), floor(max_entries))
        return None

    def _admit(self, entry: object, now: float, *, log_phase: bool) -> str | None:
        max_entries, max_bytes = self._parameters.max_entries, self._parameters.max_bytes
        size = _string_size(entry)
        if max_bytes is not None and self.profile.enforces_bytes:
            error = self._oversize(size, max_bytes, now)
            if error is not None:
                return error
        self._warn_of_capacity(now, max_entries)
        if self._room() == 0:
            self.complain(now, "full", "error", _FULL)
            self._drop_oldest(log_phase=log_phase)
        if max_bytes is not None:
            error = self._make_room(size, max_bytes, now, log_phase=log_phase)
            if error is not None:
                return error
        if not self.profile.enforces_bytes and not self._fits(size):
            raise ApiError("queue should not be full after dropping entries")
        if max_bytes is not None:
            if size is None:
                self.complain(now, "non-string", "error", _NON_STRING)
                size = lua_length(entry)
            self.bytes += size
        self._append(entry)
        return None

    def _warn_of_capacity(self, now: float, max_entries: float) -> None:
        if self._depth < max_entries * CAPACITY_WARNING_THRESHOLD:
            self._warned = False
        elif not self._warned:
            self.complain(now, "capacity", "warn", "queue at %s%% capacity", 80)
            self._warned = True

    def _oversize(self, size: int | None, max_bytes: float, now: float) -> str | None:
        if size is None:
            error = "entry must be a string: the queue has max_bytes set"
        elif size > max_bytes:
            error = _TOO_LARGE % (size, max_bytes)
        else:
            return None
        self.complain(now, "size", "error", error)
        return error

    def _make_room(self, size: int | None, max_bytes: float, now: float, *, log_phase: bool) -> str | None:
        """Drop the oldest entries until ``size`` bytes more fit; None: it is no string and counts as none."""
        if size is None:
            return None
        if size > max_bytes:
            return self._oversize(size, max_bytes, now)
        dropped = 0
        while size > self._room_bytes(max_bytes):
            self._drop_oldest(log_phase=log_phase)
            dropped += 1
        if dropped:
            self.complain(now, "bytes", "error", "byte capacity exceeded, %d queue entries were dropped", dropped)
        return None

    def _append(self, entry: object) -> None:
        self.enqueued += 1
        if self._overtaken:  # the front has passed this place already (Q29)
            self._overtaken -= 1
            self.swallowed += 1
        else:
            self._entries.append(entry)

    def _replace(self, entries: Sequence[object], now: float) -> None:
        """Put entries in the place of the oldest ones of a full queue: as `_admit` for each."""
        count = len(entries)
        self.complain(now, "full", "error", _FULL, times=count)
        waiting = self._entries
        for _ in entries:
            waiting.popleft()
        waiting.extend(entries)
        self.enqueued += count
        self.dropped_overflow += count
        self._resuming = True

    def _drop_oldest(self, *, log_phase: bool) -> None:
        if self.profile.has_permits:
            if self._permits - self._waiting <= 0:
                raise BookkeepingError("assertion failed!")
            # No permit is taken in the log phase, nor while the job still stands in the line for the one that wakes it.
            self._surplus += log_phase or self._waiting
        elif self._permits == 0:
            self._collected -= 1
        entry = self._entries.popleft()
        if self._parameters.max_bytes is not None:
            self.bytes -= _size(entry)
        self.dropped_overflow += 1
        self._resuming = True

    # Capacity (Q24).

    @property
    def _depth(self) -> int:
        """Entries between front and back; negative when the front has passed the back (Q29)."""
        return len(self._entries) - self._overtaken

    @property
    def _permits(self) -> int:
        """What the semaphore counts: a permit per entry, and those too many, less what the job has collected."""
        return len(self._entries) - self._overtaken + self._surplus - self._collected

    def _room(self) -> float:
        max_bytes = self._parameters.max_bytes
        room = self._parameters.max_entries - self._depth
        if room < 0 or (max_bytes is not None and self.bytes > max_bytes):
            raise ApiError("queue should not be over capacity")
        return room

    def _room_bytes(self, max_bytes: float) -> float:
        self._room()
        return max_bytes - self.bytes

    def _is_full(self) -> bool:
        return self._room() == 0 or self.bytes == self._parameters.max_bytes

    def _fits(self, size: int | None) -> bool:
        max_bytes = self._parameters.max_bytes
        if self._is_full() or self._room() < 1:
            return False
        return max_bytes is None or size is None or size <= max_bytes - self.bytes

    # The job (Q16-Q18).

    def _process(self, now: float) -> Action:
        while True:
            delivery = self._delivery
            if delivery is not None:
                delivery.handler_conf = self._binding.handler_conf
                action = delivery.poll(now)
                if action is not None:
                    return action
                self._delivery = None
            if not self._waiting:
                if len(self._entries) <= self._overtaken:
                    self._leave()
                    return None
                if now < self.held_until - INSTANT_S:
                    if not self.is_past_exit(self.held_until, self._parameters.max_retry_time):
                        return Wait(self.held_until, or_entry=False)
                    self.lose_at_exit(self._parameters)
                    continue
                self._collected = 1
                self._started = self.wall(now)
            wait = self._coalesce(now)
            if wait is not None:
                return wait
            batch = self._take_batch()
            if self._resuming:
                self.tell(self._parameters, "info", "queue resumed processing")
                self._resuming = False
            self.in_flight += len(batch)
            self._delivery = Delivery(self, self._bound, batch)

    def _coalesce(self, now: float) -> Wait | None:
        """Collect permits until the batch is full or the delay is over."""
        if self._waiting:
            if self._woken:
                self._collected += self._in_time  # else the wait was over before: what came stays where it is
            else:
                self._catch_up()
                if now < self._wake_at - INSTANT_S:
                    return Wait(self._wake_at, or_entry=True)
            self._waiting = self._woken = False
        while self._collected < self._size:
            remaining = self._coalescing_s - (self.wall(now) - self._started)
            if remaining < COALESCE_MIN_S:
                break
            wait = min(remaining, COALESCE_POLL_S)
            if self.exiting:
                self._coalescing_s = wait = COALESCE_MIN_S
            permits = self._permits
            if permits <= 0:
                self._waiting = True
                self._wake_at = now + wait
                return Wait(self._wake_at, or_entry=True)
            self._collected += 1 if self.exiting else min(self._size - self._collected, permits)
        return None

    def _catch_up(self) -> None:
        """Collect the permits of entries that came while the job was waiting and did not need to wake it."""
        if self._waiting and not self._woken:
            self._collected += self._permits

    def _take_batch(self) -> list[Any]:
        """Take as many entries as permits were collected, or what there is, and let the front pass the back (Q29)."""
        count, entries_max = self._collected, self.profile.batch_entries_max
        if entries_max is not None and count > entries_max:
            raise BookkeepingError("too many results to unpack")
        entries = self._entries
        bytes_max = self.profile.batch_bytes_max
        if bytes_max is not None:
            self._collected = count = _within(entries, count, bytes_max)
        if len(entries) <= 2 * count:  # it is quicker to put the rest back than to take one after the other
            every = list(entries)
            entries.clear()
            entries.extend(every[count:])
            batch = every[:count]
        else:
            batch = [entries.popleft() for _ in range(count)]
        self._collected = count - len(batch)
        if self._parameters.max_bytes is not None:
            self.bytes -= sum(map(_size, batch))
            if self._collected:
                self.swallowed += len(batch)
                raise BookkeepingError("attempt to get length of a nil value")
        self._overtaken += self._collected
        self._collected = 0
        return batch

    def _settle(self) -> None:
        """Find out how far the next entries can go straight to the back, unseen by the job.

        They can while no limit is near. While the job waits for them, they can until one fills the batch or comes so
        late that the job would leave at once, provided that the job need not look up before the batch's own end and
        that the batch is full before the queue is: else it matters which permits the job has seen.

        A full queue that has said so replaces its oldest entries, unless there are permits or bytes to keep books of,
        or the job waits for entries.
        """
        self._quiet_below, self._quiet_until = self._capacity, inf
        self._is_replacing = False
        if self._warned or self._overtaken:
            self._quiet_below = 0
            if not (self._waiting or self.profile.has_permits) and self._parameters.max_bytes is None:
                self._is_replacing = len(self._entries) == self._parameters.max_entries
        elif self._waiting and not self._woken:
            end = self._started - self._step + self._coalescing_s
            is_steady = not self.exiting and abs(end - self._wake_at) < INSTANT_S
            if is_steady and self._size < self._parameters.max_entries:
                self._quiet_below = min(self._capacity, self._size - self._surplus - 1)
                self._quiet_until = end - COALESCE_MIN_S - INSTANT_S
            else:
                self._quiet_below = 0

    # Time and log.

    def wall(self, now: float) -> float:
        """The time by which delays are measured, s."""
        return round(now + self._step, _WALL_DIGITS) if self._step else now

    def tell(self, parameters: QueueParameters, level: str, template: str, *arguments: object) -> None:
        """Log a line with the queue's prefix, which Kong formats as a part of the template."""
        prefix = parameters.prefix
        if not arguments:
            self.log(level, prefix + template)
        elif self.profile.formats_names and "%" in prefix:
            self.log(level, lua_format(prefix + template, arguments))
        else:
            self.log(level, prefix + template % arguments)

    def complain(
        self,
        now: float,
        kind: str,
        level: str,
        template: str,
        *arguments: object,
        times: int = 1,
        parameters: QueueParameters | None = None,
    ) -> None:
        """Log what single entries give cause to, each kind no more often than the profile has it."""
        logged, unlogged = self._complaints.get(kind, (-inf, 0))
        if now - logged < self.profile.complaint_interval_s:
            self._complaints[kind] = (logged, unlogged + times)
            return
        self._complaints[kind] = (now, times - 1)
        if unlogged:
            template, arguments = template + " (and %d times since this was logged last)", (*arguments, unlogged)
        self.tell(self._parameters if parameters is None else parameters, level, template, *arguments)


class Queues:
    """The queues of one worker, by workspace and name; made after the fork.

    Args:
        profile: ``KONG`` or ``SAFE``.
        log: takes what Kong would log.
        random: gives a number in [0, 1).
        schedule: starts a job in the background.
    """

    def __init__(self, profile: QueueProfile, log: Log, random: Callable[[], float], schedule: Schedule) -> None:
        self.profile = profile
        self._log = log
        self._random = random
        self._schedule = schedule
        self._exited_at: float | None = None
        self._queues: dict[str, Queue] = {}
        self._swept_at = QUEUES_KEPT
        self._forgotten = _NONE  # the accounts of all that were
        self._warned: dict[tuple[str, str], float] = {}

    def queue(self, name: str, workspace: str = "") -> Queue:
        """The queue of that name, absent or not; one that is absent may soon be another object (Q10)."""
        key = f"{workspace}.{name}"
        queue = self._queues.get(key)
        if queue is None:
            if len(self._queues) >= self._swept_at:
                self._forget_absent()
            queue = self._queues[key] = Queue(key, self.profile, self._log, self._random, self._schedule)
            if self._exited_at is not None:
                queue.exit(self._exited_at)
        return queue

    def _forget_absent(self) -> None:
        """Keep nothing of absent queues but their accounts: who names queues by tenant would fill the memory."""
        absent = [queue for queue in self._queues.values() if queue.is_idle()]
        self._forgotten = _sum([self._forgotten, *map(Queue.figures, absent)])
        for queue in absent:
            del self._queues[queue.key]
        self._swept_at = max(QUEUES_KEPT, 2 * len(self._queues))

    def exit(self, now: float) -> None:
        """The worker is leaving (:meth:`Queue.exit`)."""
        self._exited_at = now
        for queue in self._queues.values():
            queue.exit(now)

    def abandon(self) -> None:
        """The worker is terminated (:meth:`Queue.abandon`)."""
        for queue in self._queues.values():
            queue.abandon()

    def close(self) -> None:
        """The worker has come to its end (:meth:`Queue.close`)."""
        for queue in self._queues.values():
            queue.close()

    def clock_stepped(self, seconds: float) -> None:
        """The wall clock was set (:meth:`Queue.clock_stepped`)."""
        for queue in self._queues.values():
            queue.clock_stepped(seconds)

    def counters(self) -> Counters:
        """The accounts of all queues together."""
        return Counters(*self.figures())

    def figures(self) -> tuple[int, ...]:
        """The same as a plain tuple (:meth:`Queue.figures`)."""
        figures = list(map(Queue.figures, self._queues.values()))
        if self._forgotten is not _NONE or not figures:
            figures.append(self._forgotten)
        return figures[0] if len(figures) == 1 else _sum(figures)

    def backlog_bytes(self) -> int:
        """Bytes that wait in all queues (:meth:`Queue.backlog_bytes`)."""
        return sum(queue.backlog_bytes() for queue in self._queues.values())

    def get_plugin_params(
        self,
        plugin_name: str,
        config: Mapping[str, Any],
        queue_name: str | None,
        *,
        plugin_id: str,
        wall_s: float,
    ) -> MutableMapping[str, Any]:
        """The queue's configuration record in a plugin's, with the legacy parameters moved to their new places (Q27).

        Args:
            plugin_name: for the log tag.
            config: of the plugin; its record ``queue``, where there is one, is completed in place.
            queue_name: name of the queue; None: ``plugin_id``. A name in the record goes first.
            plugin_id: identifies the plugin's instance.
            wall_s: s since the epoch; the first minute of it counts as warned about.
        """
        record: MutableMapping[str, Any] = config["queue"] if is_given(config.get("queue")) else {}
        instance = config.get("plugin_instance_name")
        record["log_tag"] = f"{plugin_name} plugin {plugin_id}" + (f" ({instance})" if is_given(instance) else "")
        if not is_given(record.get("name")):
            record["name"] = plugin_id if queue_name is None else queue_name
        for legacy, default, parameter, warning in _LEGACY:
            value = config.get(legacy)
            if not is_given(value) or value == default:
                continue
            if parameter is not None:
                record[parameter] = value
            self._warn(record["name"], warning, wall_s)
        return record

    def _warn(self, name: str, warning: str, wall_s: float) -> None:
        if wall_s - self._warned.get((name, warning), 0.0) >= LEGACY_WARNING_INTERVAL_S:
            self._warned[name, warning] = wall_s
            self._log("warn", warning)


def _moved(legacy: str, parameter: str) -> str:
    return f"the {legacy} parameter is deprecated, please update your configuration to use queue.{parameter} instead"


_WITHOUT_EFFECT: Final = (
    "the retry_count parameter no longer works, please update your configuration to use "
    "initial_retry_delay and max_retry_time instead"
)

_LEGACY: Final = (
    ("retry_count", 10, None, _WITHOUT_EFFECT),
    ("queue_size", 1, "max_batch_size", _moved("queue_size", "max_batch_size")),
    ("flush_timeout", 2, "max_coalescing_delay", _moved("flush_timeout", "max_coalescing_delay")),
    ("batch_span_count", 200, "max_batch_size", _moved("batch_span_count", "max_batch_size")),
    ("batch_flush_delay", 3, "max_coalescing_delay", _moved("batch_flush_delay", "max_coalescing_delay")),
)
"""Legacy parameter, the default that is passed over, where its value goes, what is said about it (Q27)."""

_NIL: Final = "entry must be a non-nil Lua value"

_FULL: Final = "queue full, dropping old entries until processing is successful again"

_TOO_LARGE: Final = "string to be queued is longer (%d bytes) than the queue's max_bytes (%d bytes)"

_NON_STRING: Final = (
    "queuing non-string entry to a queue that has queue.max_bytes set, capacity monitoring will not be correct"
)


def _nobody() -> None:
    """Nobody is there to be woken, or to send."""


def _sum(figures: list[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*figures, strict=True)))


def _string_size(entry: object) -> int | None:
    """Bytes of a string; None: it is none."""
    if isinstance(entry, bytes):
        return len(entry)
    return len(entry.encode()) if isinstance(entry, str) else None


def _size(entry: object) -> int:
    """What an entry counts for where there is a ``max_bytes``."""
    size = _string_size(entry)
    return lua_length(entry) if size is None else size


def _within(entries: deque[Any], count: int, bytes_max: int) -> int:
    """How many of the first ``count`` entries have no more bytes together than ``bytes_max``; one at least."""
    with suppress(TypeError):  # an entry without a length has no bytes to count either
        if sum(map(len, islice(entries, count))) <= bytes_max // UTF8_BYTES_MAX:
            return count
    sizes = accumulate(_string_size(entry) or 0 for entry in islice(entries, count))
    return max(1, sum(1 for size in sizes if size <= bytes_max))


_NONE: Final[tuple[int, ...]] = tuple(Counters())
"""The accounts of no queue."""

_UNBOUND: Final = Binding(QueueParameters(""), _nobody)
"""What an absent queue is bound to."""
