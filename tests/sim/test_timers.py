"""Timers as `ngx.timer` has them."""

import asyncio
import re

import pytest

from kongtrace import PHASES, ApiError, Execution
from sim.runtime.live import LiveRuntime
from sim.timers import Timers


class Bench:
    """Timers on a live loop, with what they logged and called."""

    def __init__(self, loop, *, pending_max=10, running_max=5):
        self.logs = []
        self.called = []
        self.ended = []
        self.idle = asyncio.Event()
        self.execution = Execution()
        self.execution.enter(PHASES["init_worker"], {})
        self.timers = Timers(
            LiveRuntime(loop, 1),
            self.execution,
            lambda level, message: self.logs.append((level, message)),
            pending_max=pending_max,
            running_max=running_max,
            on_idle=self.idle.set,
            on_end=self.ended.append,
        )

    def callback(self, premature, *arguments):
        self.called.append((premature, *arguments, self.execution.phase.name, self.execution.ctx))


def played(play, **limits):
    """Run `play(bench)` on a loop and return the bench."""

    async def run():
        bench = Bench(asyncio.get_running_loop(), **limits)
        await asyncio.wait_for(play(bench), 30)
        return bench

    return asyncio.run(run())


def test_callback_runs_later_in_a_context_of_its_own():
    """A zero delay never calls back before `at` returns; the callback sees phase timer and no request."""  # N3, N7

    async def play(bench):
        assert bench.timers.at(0, bench.callback, "a") == (True, None)
        assert (bench.called, len(bench.timers.pending)) == ([], 1)
        await bench.idle.wait()

    assert played(play).called == [(False, "a", "timer", {})]


def test_equal_delays_come_in_order_of_creation():
    """Timers of the same delay run in the order in which they were made."""  # N7

    async def play(bench):
        for number in range(5):
            bench.timers.at(0, bench.callback, number)
        await bench.idle.wait()

    assert [call[1] for call in played(play).called] == list(range(5))


def test_too_many_pending_timers_are_refused():
    """At the limit creation answers with nginx's reason, and nothing is logged."""  # N4

    async def play(bench):
        answers = [bench.timers.at(60, bench.callback) for _ in range(3)]
        assert answers == [(True, None), (True, None), (None, "too many pending timers")]
        bench.timers.exit()

    assert played(play, pending_max=2).logs == []


def test_too_many_running_timers_are_lost_with_an_alert():
    """Over the limit a callback is not run, not even prematurely; one line says so, and whoever asked for it."""  # N4
    going_on, lost = [], []

    async def play(bench):
        release = asyncio.Event()

        async def handler(premature):
            going_on.append(premature)
            await release.wait()

        for _ in range(3):
            bench.timers.at(0, handler, on_lost=lambda: lost.append(bench.timers.running))
        while len(bench.logs) < 1:
            await asyncio.sleep(0)
        assert bench.timers.running == 2
        release.set()
        await bench.idle.wait()

    ((level, message),) = played(play, running_max=2).logs
    assert going_on == [False, False]
    assert lost == [2]
    assert level == "alert"
    assert message.endswith("2 lua_max_running_timers are not enough")
    assert "lua failed to run timer with function defined at" in message


def test_exit_expires_every_pending_timer_prematurely():
    """Leaving calls back at once with premature; from then on only a zero delay is accepted."""  # N8

    async def play(bench):
        bench.timers.at(3600, bench.callback, "an hour")
        bench.timers.exit()
        assert bench.called == [(True, "an hour", "timer", {})]
        assert bench.timers.at(1, bench.callback) == (None, "process exiting")
        assert bench.timers.at(0, bench.callback, "now") == (True, None)
        await bench.idle.wait()

    assert [call[:2] for call in played(play).called] == [(True, "an hour"), (False, "now")]


class Bang(BaseException):
    """No error of a program, as those that look for one would say."""


@pytest.mark.parametrize("kind", [ValueError, SystemExit, Bang])
@pytest.mark.parametrize("awaits", [False, True])
def test_exception_in_a_callback_is_logged_and_nobody_is_told(awaits, kind):
    """A callback that raises ends; the others go on, and the worker can leave."""  # N9

    async def play(bench):
        def fails(_premature):
            raise kind("boom")

        async def fails_later(_premature):
            await asyncio.sleep(0)
            raise kind("boom")

        bench.timers.at(0, fails_later if awaits else fails)
        bench.timers.at(0, bench.callback)
        while not (bench.logs and bench.called):
            await asyncio.sleep(0)
        assert bench.timers.running == 0

    ((level, message),) = played(play).logs
    place = rf"{re.escape(__file__)}:\d+"
    what = f"(RuntimeError: )?{kind.__name__}: boom"
    told = f"lua entry thread aborted: runtime error: {place}: {what}, context: ngx.timer"
    assert level == "error"
    assert re.fullmatch(told, message)


def test_awaiting_callback_keeps_its_context_whoever_runs_between():
    """Two callbacks that take turns each see their own context whenever they go on."""  # R3, N3
    seen = {}

    async def play(bench):
        async def handler(_premature, name):
            ctx = bench.execution.ctx
            ctx["name"] = name
            for _ in range(3):
                await asyncio.sleep(0)
                seen.setdefault(name, []).append(bench.execution.ctx["name"])

        bench.timers.at(0, handler, "a")
        bench.timers.at(0, handler, "b")
        await bench.idle.wait()

    played(play)
    assert seen == {"a": ["a"] * 3, "b": ["b"] * 3}


def test_value_that_a_callback_gives_is_not_awaited():
    """A plain function may give anything; it has ended when it returns."""

    async def play(bench):
        bench.timers.at(0, lambda _premature: 7)
        await bench.idle.wait()
        assert bench.timers.running == 0

    assert played(play).logs == []


def test_context_of_a_callback_is_handed_back_when_it_holds_something():
    """What a callback has left in its context is seen to by whoever keeps the books."""

    async def play(bench):
        bench.timers.at(0, lambda _premature: bench.execution.ctx.update(left="over"))
        bench.timers.at(0, lambda _premature: None)
        await bench.idle.wait()

    assert played(play).ended == [{"left": "over"}]


def test_every_goes_on_until_the_worker_leaves():
    """The next occurrence is armed before the callback runs; the last call is premature, then there is none."""  # N6

    async def play(bench):
        assert bench.timers.every(0.001, bench.callback, "tick") == (True, None)
        while len(bench.called) < 3:
            await asyncio.sleep(0.001)
        bench.timers.exit()
        await bench.idle.wait()

    called = played(play).called
    assert [premature for premature, *_ in called[:3]] == [False] * 3
    assert (called[-1][0], called[-2][0]) == (True, False)


def test_every_goes_on_after_an_exception():
    """A callback that raises is called again, and each exception is logged."""  # N9

    async def play(bench):
        def fail(premature):
            bench.callback(premature)
            raise RuntimeError("boom")

        bench.timers.every(0.001, fail)
        while len(bench.called) < 2:
            await asyncio.sleep(0.001)
        bench.timers.exit()

    bench = played(play)
    assert len(bench.logs) == len(bench.called) >= 2
    assert "boom" in bench.logs[0][1]


def test_occurrences_of_every_may_overlap():
    """A callback that waits longer than the interval is running several times at once."""  # N6

    async def play(bench):
        together = asyncio.Event()

        async def wait(_premature):
            if bench.timers.running == 2:
                together.set()
            await together.wait()

        bench.timers.every(0.001, wait)
        await together.wait()
        bench.timers.exit()
        await bench.idle.wait()

    played(play)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda timers: timers.at(), "expecting at least 2 arguments but got 0"),
        (lambda timers: timers.at(0), "expecting at least 2 arguments but got 1"),
        (lambda timers: timers.every(1), "expecting at least 2 arguments but got 1"),
        (lambda timers: timers.at(0, "f"), "Lua function expected"),
        (lambda timers: timers.at("soon", print), "number expected"),
        (lambda timers: timers.at(-1, print), "negative"),
        (lambda timers: timers.every(0, print), "delay cannot be zero"),
        (lambda timers: timers.every(0.0009, print), "delay cannot be zero"),
    ],
)
def test_misuse_is_an_error_in_nginxs_words(call, message):
    """An argument that is missing or of the wrong type is told at the call."""  # N1, N2

    async def play(bench):
        with pytest.raises(ApiError, match=message):
            call(bench.timers)

    played(play)


def test_worker_that_exits_permits_no_timer():
    """The last hook of a worker cannot leave work behind."""  # N2, R1

    async def play(bench):
        bench.execution.enter(PHASES["exit_worker"], {})
        with pytest.raises(ApiError, match=r"^API disabled in the context of exit_worker_by_lua\*$"):
            bench.timers.at(0, bench.callback)

    played(play)
