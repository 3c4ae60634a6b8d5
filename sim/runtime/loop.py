"""What a runtime takes from its asyncio event loop, whichever that is: delays and light threads."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import cast

from sim.light_thread import make_task
from sim.runtime import Cancelable


class LoopRuntime:
    """The part that the live and the virtual runtime share.

    Args:
        loop: the worker's event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.set_task_factory(make_task)  # type: ignore[arg-type]  # generators are no tasks any more
        self.now = loop.time
        self.call_soon = loop.call_soon

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: object) -> Cancelable:
        """Call back in `delay_s` s."""
        return self._loop.call_later(delay_s, callback, *arguments)

    def run(self, thread: Awaitable[object], done: Callable[[BaseException | None], object]) -> Cancelable:
        """Run a light thread; `done` gets the exception that ended it, or None."""
        task = self._loop.create_task(cast("Coroutine[object, object, object]", thread))
        task.add_done_callback(partial(_report, done))
        return task


def _report(done: Callable[[BaseException | None], object], task: "asyncio.Task[object]") -> None:
    done(asyncio.CancelledError() if task.cancelled() else task.exception())
