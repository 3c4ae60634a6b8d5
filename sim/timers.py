"""Timers as `ngx.timer` has them: callbacks that belong to no request, with limits and a premature end.

A timer is *pending* from its creation to its expiry and *running* from the start of its callback until that and all it
awaits have ended (kong-semantics N5). A callback is called with `premature` first: True when the worker is exiting and
the timer has not reached its time (N3, N8). It runs in phase `timer`, with a context of its own.

Delays in s, truncated to whole ms (N1).
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from kongtrace import PHASES, Execution
from sim.phases import LightThread
from sim.runtime import Cancelable, Runtime

TIMER = PHASES["timer"]

Callback = Callable[..., object]
"""Called with `premature` first; what it gives is awaited when it can be."""
Answer = tuple[bool | None, str | None]
"""True and None; or None and the reason why not, in nginx's words."""


class Timers:
    """The timers of one worker.

    Args:
        runtime: where delays come from.
        execution: told what runs.
        log: takes a level and a message.
        pending_max: `lua_max_pending_timers` (N4).
        running_max: `lua_max_running_timers` (N4).
        on_idle: called whenever no timer is pending or running any more.
        on_end: called with the context of a callback that has ended.

    Attributes:
        running: timers whose callback has not ended.
        exiting: the worker is leaving (W16).
    """

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
    ) -> None:
        self._runtime = runtime
        self._execution = execution
        self._log = log
        self._pending_max = pending_max
        self._running_max = running_max
        self._on_idle = on_idle
        self._on_end = on_end
        self._pending: dict[int, tuple[Cancelable, Callback, tuple[Any, ...]]] = {}
        self._created = 0
        self.running = 0
        self.exiting = False

    @property
    def pending(self) -> int:
        """Timers that have not expired."""
        return len(self._pending)

    def at(self, delay_s: float, callback: Callback, *arguments: Any) -> Answer:
        """Call `callback(premature, *arguments)` once, in `delay_s` s (N1)."""
        if self.exiting and delay_s > 0:
            return None, "process exiting"
        if len(self._pending) >= self._pending_max:
            return None, "too many pending timers"
        self._created += 1
        number = self._created
        milliseconds = int(delay_s * 1000)
        expire = partial(self._expire, number, premature=False)
        handle = (
            self._runtime.call_later(milliseconds / 1000, expire) if milliseconds else self._runtime.call_soon(expire)
        )
        self._pending[number] = (handle, callback, arguments)
        return True, None

    def exit(self) -> None:
        """The worker is exiting: every pending timer expires now, prematurely (N8)."""
        self.exiting = True
        for number in tuple(self._pending):
            self._pending[number][0].cancel()
            self._expire(number, premature=True)

    def _expire(self, number: int, *, premature: bool) -> None:
        _handle, callback, arguments = self._pending.pop(number)
        if self.running >= self._running_max:
            code = getattr(callback, "__code__", None)
            where = f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(callback)
            limit = f"{self._running_max} lua_max_running_timers are not enough"
            self._log("alert", f"lua failed to run timer with function defined at {where}: {limit}")
            return
        self.running += 1
        ctx: dict[str, Any] = {}
        self._execution.enter(TIMER, ctx)
        try:
            awaited = callback(premature, *arguments)
        except Exception as error:  # noqa: BLE001 - whatever a callback raises is logged, nobody is told (N9)
            self._ended(ctx, error)
            return
        if isinstance(awaited, Awaitable):
            self._runtime.run(LightThread(awaited, self._execution, TIMER, ctx), partial(self._ended, ctx))
        else:
            self._ended(ctx, None)

    def _ended(self, ctx: dict[str, Any], error: BaseException | None) -> None:
        self.running -= 1
        if ctx:
            self._on_end(ctx)
        if error is not None and not isinstance(error, asyncio.CancelledError):
            self._log("error", f"lua entry thread aborted: runtime error: {error!r}, context: ngx.timer")
        if not self.running and not self._pending:
            self._on_idle()
