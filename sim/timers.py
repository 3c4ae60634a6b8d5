"""Timers as `ngx.timer` has them: callbacks that belong to no request, with limits and a premature end.

`at` sets off once, `every` again and again: the next occurrence is armed at the expiry of the one before, so that runs
may overlap, and none is armed once the worker is exiting (kong-semantics N6).

A timer is *pending* from its creation to its expiry and *running* from the start of its callback until that and all it
awaits have ended (kong-semantics N5). A callback is called with `premature` first: True when the worker is exiting and
the timer has not reached its time (N3, N8). It runs in phase `timer`, with a context of its own.

Delays in s, truncated to whole ms (N1).
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import Any, Final

from kongtrace import PHASES, ApiError, Execution
from sim.absence import Incomplete
from sim.connection_table import unlimited
from sim.light_thread import LightThread
from sim.plugin_error import described, place_of
from sim.runtime import Cancelable, Runtime

TIMER = PHASES["timer"]

Callback = Callable[..., object]
"""Called with `premature` first; what it gives is awaited when it can be."""
Answer = tuple[bool | None, str | None]
"""True and None; or None and the reason why not, in nginx's words."""


_MISSING: Any = object()
_DELAY_S_MAX: Final = sys.float_info.max / 1000
"""Beyond it there are no ms to count."""


class _Timer:
    """One timer.

    Attributes:
        handle: the delayed call.
        callback: called at expiry.
        arguments: after `premature`.
        interval_ms: after which it is armed again; 0: it is not.
        on_lost: called when it expires and is not run; None: nobody is told.
    """

    __slots__ = ("arguments", "callback", "handle", "interval_ms", "on_lost")

    def __init__(
        self,
        callback: Callback,
        arguments: tuple[Any, ...],
        interval_ms: int,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self.handle: Cancelable
        self.callback = callback
        self.arguments = arguments
        self.interval_ms = interval_ms
        self.on_lost = on_lost


class Timers(Incomplete):
    """The timers of one worker.

    Args:
        runtime: where delays come from.
        execution: told what runs.
        log: takes a level and a message.
        pending_max: `lua_max_pending_timers` (N4).
        running_max: `lua_max_running_timers` (N4).
        admits: whether the worker has a connection left, of which a running timer takes one (N5); without, it is lost.
        on_idle: called whenever no timer is pending or running any more.
        on_end: called with the context of a callback that has ended.

    Attributes:
        pending: timers that have not expired.
        running: number of timers whose callback has not ended.
        exiting: the worker is leaving (W16).
    """

    _path = "kong.timer"

    def __init__(
        self,
        runtime: Runtime,
        execution: Execution,
        log: Callable[[str, str], None],
        *,
        pending_max: int,
        running_max: int,
        on_idle: Callable[[], None],
        on_end: Callable[[dict[str, Any]], None],
        admits: Callable[[], bool] = unlimited,
    ) -> None:
        self._runtime = runtime
        self._execution = execution
        self._log = log
        self._pending_max = pending_max
        self._running_max = running_max
        self._admits = admits
        self._on_idle = on_idle
        self._on_end = on_end
        self.pending: dict[_Timer, None] = {}
        self.running = 0
        self.exiting = False

    def at(
        self,
        delay_s: float = _MISSING,
        callback: Callback = _MISSING,
        *arguments: Any,
        on_lost: Callable[[], None] | None = None,
    ) -> Answer:
        """Call `callback(premature, *arguments)` once, in `delay_s` s (N1).

        Args:
            delay_s: s.
            callback: see `Callback`.
            arguments: for it.
            on_lost: called in its place where it is not run, for want of a running timer or a connection (N4, N5);
                nginx tells its log alone.

        Raises:
            ApiError: an argument is missing or of the wrong type, or the phase permits no timer (N2).
        """
        self._check(delay_s, callback)
        return self._set(_Timer(callback, arguments, 0, on_lost), int(delay_s * 1000))

    def every(self, interval_s: float = _MISSING, callback: Callback = _MISSING, *arguments: Any) -> Answer:
        """Call `callback(premature, *arguments)` every `interval_s` s (N1, N6).

        Raises:
            ApiError: as `at`; or the interval is shorter than 1 ms.
        """
        self._check(interval_s, callback)
        interval_ms = int(interval_s * 1000)
        if interval_ms < 1:
            raise ApiError("delay cannot be zero")
        return self._set(_Timer(callback, arguments, interval_ms), interval_ms)

    def exit(self) -> None:
        """The worker is exiting: every pending timer expires now, prematurely (N8)."""
        self.exiting = True
        for timer in tuple(self.pending):
            timer.handle.cancel()
            self._expire(timer, premature=True)

    def _check(self, delay_s: object, callback: object) -> None:
        given = (delay_s is not _MISSING) + (callback is not _MISSING)
        if given < 2:
            raise ApiError(f"expecting at least 2 arguments but got {given}")
        if not isinstance(delay_s, int | float) or isinstance(delay_s, bool):
            raise ApiError(f"bad argument #1 to 'timer' (number expected, got {type(delay_s).__name__})")
        if not abs(delay_s) <= _DELAY_S_MAX:
            raise ApiError("delay must be finite")
        if delay_s < 0:
            raise ApiError("delay must not be negative")
        if not callable(callback):
            raise ApiError("Lua function expected")
        phase = self._execution.phase
        if not phase.timers:
            raise ApiError(f"API disabled in the context of {phase.context}")

    def _set(self, timer: _Timer, delay_ms: int) -> Answer:
        if self.exiting and delay_ms:
            return None, "process exiting"
        if len(self.pending) >= self._pending_max:
            return None, "too many pending timers"
        self._arm(timer, delay_ms)
        return True, None

    def _arm(self, timer: _Timer, delay_ms: int) -> None:
        expire = partial(self._expire, timer, premature=False)
        runtime = self._runtime
        if delay_ms:
            timer.handle = runtime.call_later(delay_ms / 1000, expire)
        else:
            timer.handle = runtime.call_soon(expire, context=Context())
        self.pending[timer] = None

    def _expire(self, timer: _Timer, *, premature: bool) -> None:
        del self.pending[timer]
        if timer.interval_ms and not self.exiting:
            self._arm(timer, timer.interval_ms)
        callback = timer.callback
        if self.running >= self._running_max:
            code = getattr(callback, "__code__", None)
            where = f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(callback)
            limit = f"{self._running_max} lua_max_running_timers are not enough"
            self._log("alert", f"lua failed to run timer with function defined at {where}: {limit}")
            self._lose(timer)
            return
        if not self._admits():
            self._lose(timer)
            return
        self.running += 1
        ctx: dict[str, Any] = {}
        self._execution.enter(TIMER, ctx)
        try:
            awaited = callback(premature, *timer.arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a callback raises is logged, nobody is told (N9)
            self._ended(ctx, error)
            return
        if isinstance(awaited, Awaitable):
            self._runtime.run(LightThread(awaited, self._execution, TIMER, ctx), partial(self._ended, ctx))
        else:
            self._ended(ctx, None)

    def _lose(self, timer: _Timer) -> None:
        if timer.on_lost is not None:
            timer.on_lost()
        self._rest()

    def _ended(self, ctx: dict[str, Any], error: BaseException | None) -> None:
        self.running -= 1
        if ctx:
            self._on_end(ctx)
        if error is not None and not isinstance(error, asyncio.CancelledError):
            what = f"{place_of(error)}: {described(error)}"
            self._log("error", f"lua entry thread aborted: runtime error: {what}, context: ngx.timer")
        self._rest()

    def _rest(self) -> None:
        if not self.running and not self.pending:
            self._on_idle()
