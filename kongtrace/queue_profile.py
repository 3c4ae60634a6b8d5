"""What distinguishes the queue of one profile from the other's, and what a try to send a batch comes to.

The state machine is one (`kongtrace.queue`); the differences are the fields of :class:`QueueProfile`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

BATCH_BYTES_MAX: Final = 16 * 1024 * 1024
"""What profile ``safe`` puts into a request at most: the OpenTelemetry collector takes 20 MiB, uncompressed."""

ATTEMPT_S: Final = 10.0
"""What profile ``safe`` gives a whole attempt: the default of ``OTEL_EXPORTER_OTLP_TIMEOUT``."""


class Outcome(NamedTuple):
    """What came of sending a batch; made by :meth:`QueueProfile.outcome`, or by hand when there was no answer.

    Attributes:
        ok: the batch was taken.
        reason: why it was not, for the log.
        status: HTTP status; None: no answer.
        retry_after_s: s that the collector asks to wait.
        refused: entries that the collector refused while it took the others.
    """

    ok: bool
    reason: str | None = None
    status: int | None = None
    retry_after_s: float | None = None
    refused: int = 0


@dataclass(frozen=True, slots=True)
class QueueProfile:
    """What distinguishes the queue of one profile from the other's; ``docs/profiles.md`` has the sources.

    Attributes:
        name: as in :class:`kongtrace.profile.Profile`.
        accepted: statuses that count as success (O18, H29).
        retryable: statuses after which a batch is tried again; None: all. No answer at all is always tried again.
        honours_retry_after: a ``Retry-After`` of the collector is the least delay, also before the next batch.
        jitter: the largest share by which a delay is shortened at random.
        bounds_retry_time: no attempt starts later than ``max_retry_time`` s after the first; else the limit is looked
            at only after a failure (Q21).
        bounds_exit: an exiting worker tries no batch again later than ``max_retry_time`` s after its exit began, and
            drops with that batch all that wait behind it; else each of them has that time for itself (Q25, H32).
        counts_partial_success: entries that an answer of success refuses are not counted as acknowledged.
        enforces_bytes: ``max_bytes`` holds: what has no size is refused, and what is too large is refused before
            anything is dropped for it; else Q14(f) and Q15.
        has_permits: entries are counted by a semaphore (H28, Q29).
        loses_silently: entries that nobody will ever send are accepted: a job that cannot be scheduled (Q13, H26), or
            whose timer is not run (N4, N5), a limit that is neither 1 nor -1, a job of its own that finds the worker
            exiting (Q23).
        formats_names: the queue's name is part of a format string, so a percent sign in it kills the job.
        batch_entries_max: a larger batch kills the job; None: no limit (H26).
        reads_wall_clock: delays are measured by a clock that can be set (Q26).
        complaint_interval_s: what concerns single entries is logged at most once in this time, s; 0: each time.
        compression: of what is sent, "gzip" or "none", unless the operator says otherwise.
        batch_bytes_max: strings of a batch are no longer together than this, B, a single one excepted; None: no limit.
        attempt_s: s that an attempt may take as a whole, unless the operator says otherwise; None: no limit.
    """

    name: str
    accepted: range
    retryable: frozenset[int] | None
    honours_retry_after: bool
    jitter: float
    bounds_retry_time: bool
    bounds_exit: bool
    counts_partial_success: bool
    enforces_bytes: bool
    has_permits: bool
    loses_silently: bool
    formats_names: bool
    batch_entries_max: int | None
    reads_wall_clock: bool
    complaint_interval_s: float
    compression: str
    batch_bytes_max: int | None
    attempt_s: float | None

    def outcome(self, status: int, body: str = "", *, retry_after_s: float | None = None, refused: int = 0) -> Outcome:
        """What an answer of the collector means for a batch (O18).

        Args:
            status: HTTP status.
            body: of the answer, for the log.
            retry_after_s: seconds that the header ``Retry-After`` asks for.
            refused: entries that the collector accepted the request without (OTLP ``partial_success``).
        """
        if status in self.accepted:
            return Outcome(ok=True, status=status, refused=refused)
        reason = f"response error: {status}, body: {body}"
        return Outcome(ok=False, reason=reason, status=status, retry_after_s=retry_after_s)


KONG = QueueProfile(
    name="kong",
    accepted=range(200, 201),
    retryable=None,
    honours_retry_after=False,
    jitter=0.0,
    bounds_retry_time=False,
    bounds_exit=False,
    counts_partial_success=False,
    enforces_bytes=False,
    has_permits=True,
    loses_silently=True,
    formats_names=True,
    batch_entries_max=7997,
    reads_wall_clock=True,
    complaint_interval_s=0.0,
    compression="none",
    batch_bytes_max=None,
    attempt_s=None,
)
SAFE = QueueProfile(
    name="safe",
    accepted=range(200, 300),
    retryable=frozenset({429, 502, 503, 504}),
    honours_retry_after=True,
    jitter=0.5,
    bounds_retry_time=True,
    bounds_exit=True,
    counts_partial_success=True,
    enforces_bytes=True,
    has_permits=False,
    loses_silently=False,
    formats_names=False,
    batch_entries_max=None,
    reads_wall_clock=False,
    complaint_interval_s=60.0,
    compression="gzip",
    batch_bytes_max=BATCH_BYTES_MAX,
    attempt_s=ATTEMPT_S,
)
PROFILES: Final = {profile.name: profile for profile in (KONG, SAFE)}
