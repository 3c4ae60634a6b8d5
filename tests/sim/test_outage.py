"""What is said of a queue in an outage is what the queue does."""

from hypothesis import given
from hypothesis import strategies as st

from kongtrace.delivery import Wait
from kongtrace.queue import Queue
from kongtrace.queue_parameters import Binding, QueueParameters
from kongtrace.queue_profile import KONG, SAFE, Outcome
from sim.outage import Attempts, Outage
from sim.pdk import QueueConfig


@given(
    st.sampled_from([KONG, SAFE]),
    st.sampled_from([0.0078125, 0.25, 2]),
    st.sampled_from([0.015625, 0.25, 8, 64]),
    st.sampled_from([-1, 0, 0.25, 4, 60]),
    st.sampled_from([0.125, 1, 7, 100]),
    st.sampled_from([0, 0.25, 5]),
    st.sampled_from([0, 0.5, 16, 128]),
    st.booleans(),
)
def test_attempts_are_those_of_the_queue(
    profile, initial, longest, limit, outage_s, attempt_s, retry_after_s, answers_last
):
    """When a batch is given up, and when an outage is noticed to be over, is what the queue itself does."""
    queue = {"initial_retry_delay": initial, "max_retry_delay": longest, "max_retry_time": limit}
    asked_s = retry_after_s if profile.honours_retry_after else 0
    outage = Outage(outage_s, attempt_s, asked_s, answers_last=answers_last)
    attempts = Attempts(QueueConfig.model_validate(queue), profile, outage)

    given_up, noticed_s = what_the_queue_does(profile, queue, outage)

    assert attempts.given_up == len(given_up)
    assert given_up[:1] in ([], [attempts.patience_s])
    assert attempts.noticed_s == noticed_s


def what_the_queue_does(profile, parameters, outage):
    """When a queue that always has a batch gives up in an outage, and when it has the first answer after it."""
    queue = Queue("q", profile, lambda *_: None, lambda: 0.0, lambda *_: None)
    binding = Binding(QueueParameters("q", max_coalescing_delay=0, **parameters), print)
    now, given_up = 0.0, []
    queue.enqueue(b"a", binding, now)
    while True:
        action = queue.poll(now)
        if isinstance(action, Wait):
            now = action.until
            continue
        if now >= outage.lasts_s:
            return given_up, now
        if outage.answers_last and now + outage.attempt_s >= outage.lasts_s:
            return given_up, outage.lasts_s
        queue.enqueue(b"a", binding, now)
        now += outage.attempt_s
        before = queue.dropped_retries
        queue.done(Outcome(ok=False, reason="down", retry_after_s=outage.retry_after_s or None), now)
        if queue.dropped_retries > before:
            given_up.append(now)
            if given_up == [0.0, 0.0]:  # all that come are
                return [], outage.lasts_s
