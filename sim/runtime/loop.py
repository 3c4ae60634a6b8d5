"""What a runtime takes from its asyncio event loop, whichever that is: delays and light threads."""

import asyncio
from collections.abc import Callable
from contextvars import Context

from sim.light_thread import LightThread, make_task, run
from sim.runtime import Cancelable


class LoopRuntime:
    """The part that the live and the virtual runtime share.

    Args:
        loop: the worker's event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.set_task_factory(make_task)
        self.now = loop.time
        self.call_soon = loop.call_soon

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: object) -> Cancelable:
        """Call back in `delay_s` s, in no request's context: one arms what is for all."""
        return self._loop.call_later(delay_s, callback, *arguments, context=Context())

    def run(self, thread: LightThread, done: Callable[[BaseException | None], object]) -> Cancelable:
        """Run a light thread; `done` gets the exception that ended it, or None, when its tasks have ended too."""
        return run(self._loop, thread, done)
