"""One batch on its way to the collector, and what whoever drives a queue is told to do.

A :class:`Delivery` decides when to try, and never waits: see :mod:`kongtrace.queue`, whose accounts it keeps.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from kongtrace.errors import BookkeepingError
from kongtrace.lua import lua_format

if TYPE_CHECKING:
    from collections.abc import Callable

    from kongtrace.queue import Queue
    from kongtrace.queue_parameters import Binding
    from kongtrace.queue_profile import Outcome

INSTANT_S: Final = 1e-5
"""Times that differ by less are the same: no timer is finer than that."""

_DOUBLINGS_MAX: Final = 1023
"""Two to the power of more is no longer a float."""


class Wait(NamedTuple):
    """Poll again at ``until`` (s), or as soon as ``Queue.wake`` is called, which no entry does unless ``or_entry``."""

    until: float
    or_entry: bool


class Send(NamedTuple):
    """Give ``entries`` to ``handler`` under ``handler_conf``, then call ``done``."""

    handler: Callable[..., Any]
    handler_conf: Any
    entries: list[Any]


Action = Wait | Send | None
"""What a job has to do next; None: it is at its end."""


class Job(Protocol):
    """What ``schedule`` is given to drive: a :class:`Queue`, or one :class:`Delivery` of its own."""

    def premature(self) -> None:
        """Take note, before the first poll, that the timer went off because the worker is exiting (N8, N10)."""

    def lost(self, now: float) -> bool:
        """Take note that the timer was not run, so that nobody polls; whether another is to be tried (N4, N5)."""

    def poll(self, now: float) -> Action:
        """Say what to do next."""

    def done(self, outcome: Outcome, now: float) -> None:
        """Take note of what came of the last :class:`Send`."""


class Delivery:
    """One batch on its way: tried, tried again after a growing delay, given up (kong-semantics Q19-Q22).

    Args:
        queue: keeps the accounts.
        binding: what the batch is sent with.
        entries: the batch, counted as in flight.

    Attributes:
        handler_conf: the handler's configuration for the next attempt.
    """

    __slots__ = (
        "_binding",
        "_due",
        "_ended",
        "_entries",
        "_is_resting",
        "_out",
        "_queue",
        "_retries",
        "_started",
        "handler_conf",
    )

    def __init__(self, queue: Queue, binding: Binding, entries: list[Any]) -> None:
        self._queue = queue
        self._binding = binding
        self._entries = entries
        self.handler_conf = binding.handler_conf
        self._started: float | None = None  # of the wall clock
        self._due = -inf
        self._is_resting = False
        self._retries = 0
        self._out = False
        self._ended = False

    def poll(self, now: float) -> Action:
        """The next attempt, the wait before it, or None when there will be none."""
        assert not self._out, "a batch is out: say what came of it first"
        if self._ended:
            return None
        if self._started is None:
            self._begin(now)
        elif not self._is_resting or now < self._due - INSTANT_S:
            self._is_resting = True  # even a pause of no length is one, in which others have their turn
            return Wait(self._due, or_entry=False)
        self._out = True
        return Send(self._binding.handler, self.handler_conf, self._entries)

    def done(self, outcome: Outcome, now: float) -> None:
        """Close the books on the batch, or fix the time of the next attempt."""
        assert self._out, "no batch is out"
        assert self._started is not None
        self._out = False
        if outcome.ok:
            self._acknowledge(outcome.refused)
            return
        queue, count = self._queue, len(self._entries)
        reason = "no error details returned by handler" if outcome.reason is None else outcome.reason
        self._tell("warn", "handler could not process entries: %s", reason)
        if outcome.reason is None:
            self._tell("error", "handler returned falsy value but no error information")
        delay = self._delay(outcome)
        latest = delay if queue.profile.bounds_retry_time else 0.0
        if not self._may_retry(outcome.status):
            self._tell("error", "collector refused the entries for good. %d queue entries were lost", count)
            queue.refused += count
            self._give_up()
        elif queue.is_past_exit(now + delay, self._binding.parameters.max_retry_time):
            self._end()
            queue.lose_at_exit(self._binding.parameters, count)
        elif queue.wall(now) - self._started + latest > self._binding.parameters.max_retry_time:
            self._tell(
                "error", "could not send entries due to max_retry_time exceeded. %d queue entries were lost", count
            )
            self._give_up()
            if queue.profile.honours_retry_after and outcome.retry_after_s:
                self._tell("warn", "collector asks to wait, the next entries do for %.0f s", outcome.retry_after_s)
                queue.held_until = now + outcome.retry_after_s
        else:
            self._due = now + delay
            self._is_resting = False
            self._retries += 1

    def premature(self) -> None:
        """Do nothing more, as Kong's job of its own (Q23)."""
        if self._queue.profile.loses_silently:
            self._end()
            self._queue.dropped_shutdown += len(self._entries)

    def lost(self, now: float) -> bool:
        """Lose the entries, which in profile safe counts and is told like an overflow."""
        queue, count = self._queue, len(self._entries)
        self._end()
        if queue.profile.loses_silently:
            queue.swallowed += count
        else:
            text = "no timer was left to send it, an entry was dropped"
            queue.complain(now, "timer", "error", text, parameters=self._binding.parameters)
            queue.dropped_overflow += count
        return False

    def _begin(self, now: float) -> None:
        queue = self._queue
        self._started = queue.wall(now)
        prefix = self._binding.parameters.prefix
        if queue.profile.formats_names and "%" in prefix:
            self._check_name(prefix)

    def _check_name(self, prefix: str) -> None:
        """Die as the job does when it says that it passes the entries on."""
        try:
            lua_format(prefix + "passing %d entries to handler", (len(self._entries),))
        except BookkeepingError:
            self._end()
            self._queue.swallowed += len(self._entries)
            raise

    def _acknowledge(self, refused: int) -> None:
        queue, count = self._queue, len(self._entries)
        self._end()
        if refused and queue.profile.counts_partial_success:
            refused = min(refused, count)
            self._tell("warn", "collector refused %d of %d queue entries", refused, count)
            queue.refused += refused
            queue.dropped_retries += refused
            count -= refused
        queue.acknowledged += count

    def _give_up(self) -> None:
        self._end()
        self._queue.dropped_retries += len(self._entries)

    def _end(self) -> None:
        self._ended = True
        self._queue.in_flight -= len(self._entries)

    def _may_retry(self, status: int | None) -> bool:
        retryable = self._queue.profile.retryable
        return retryable is None or status is None or status in retryable

    def _delay(self, outcome: Outcome) -> float:
        parameters, profile = self._binding.parameters, self._queue.profile
        doubled = 2.0 ** min(self._retries, _DOUBLINGS_MAX) * parameters.initial_retry_delay
        delay: float = min(parameters.max_retry_delay, doubled)
        if profile.jitter:
            delay *= 1 - profile.jitter * self._queue.random()
        if profile.honours_retry_after and outcome.retry_after_s is not None:
            delay = max(delay, outcome.retry_after_s)
        return delay

    def _tell(self, level: str, template: str, *arguments: object) -> None:
        self._queue.tell(self._binding.parameters, level, template, *arguments)
