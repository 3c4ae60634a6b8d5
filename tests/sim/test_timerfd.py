"""A timer finer than the event loop's."""

import asyncio
import os
import time

import pytest
import uvloop

from sim.timerfd import SPACING_NS, TimerFd

TIMEOUT_S = 20.0


def _fired_at(deadlines_ns):
    """Return when a timer fired that is armed for one deadline after the other, in ns after it was made."""

    async def run():
        loop = asyncio.get_running_loop()
        fired_ns = []
        done = loop.create_future()
        begun_ns = time.monotonic_ns()
        waiting = [begun_ns + deadline_ns for deadline_ns in deadlines_ns]

        def fire(now_ns):
            fired_ns.append(now_ns - begun_ns)
            if waiting:
                return waiting.pop(0)
            done.set_result(None)
            return None

        timer = TimerFd(loop, fire)
        timer.arm(waiting.pop(0))
        await asyncio.wait_for(done, TIMEOUT_S)
        timer.close()
        return fired_ns

    return uvloop.run(run())


def test_timer_fires_after_its_deadline_and_never_before():
    """Each deadline is met after it has passed."""
    deadlines_ns = [300_000, 2_700_000, 4_100_000]

    for deadline_ns, fired_ns in zip(deadlines_ns, _fired_at(deadlines_ns), strict=True):
        assert fired_ns >= deadline_ns


def test_wake_ups_keep_their_distance():
    """A deadline that follows at once is met with the next wake-up, a spacing later."""
    first_ns, second_ns = _fired_at([100_000, 100_001])

    assert second_ns - first_ns >= SPACING_NS


def test_deadline_in_the_past_is_due_at_once():
    """Arming with a deadline that has passed fires."""
    (fired_ns,) = _fired_at([-1_000_000])

    assert fired_ns >= 0


def test_timer_without_a_deadline_does_not_fire():
    """A timer whose callback returned None is silent until it is armed again."""

    async def run():
        loop = asyncio.get_running_loop()
        fired = []
        timer = TimerFd(loop, fired.append)
        other = loop.create_future()
        timer.arm(time.monotonic_ns())
        later = TimerFd(loop, lambda _now_ns: other.set_result(None))
        later.arm(time.monotonic_ns() + 10 * SPACING_NS)
        await asyncio.wait_for(other, TIMEOUT_S)
        timer.close()
        later.close()
        return fired

    assert len(uvloop.run(run())) == 1


def test_closed_timer_gives_its_descriptor_back():
    """After `close` the descriptor is free for another."""

    async def run():
        timer = TimerFd(asyncio.get_running_loop(), lambda _now_ns: None)
        os.fstat(timer._fd)
        timer.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(timer._fd)

    uvloop.run(run())


@pytest.mark.parametrize("deadline_ns", [1, 10**18])
def test_deadline_can_be_taken_back(deadline_ns):
    """Arming with 0 takes a deadline back, whether it has passed or not."""

    async def run():
        loop = asyncio.get_running_loop()
        fired = []
        timer = TimerFd(loop, fired.append)
        timer.arm(deadline_ns)
        timer.arm(0)
        other = loop.create_future()
        later = TimerFd(loop, lambda _now_ns: other.set_result(None))
        later.arm(time.monotonic_ns() + SPACING_NS)
        await asyncio.wait_for(other, TIMEOUT_S)
        timer.close()
        later.close()
        return fired

    assert uvloop.run(run()) == []
