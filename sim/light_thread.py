"""Light threads: what a worker runs in turns. Each belongs to a request, or to a timer.

Whenever one goes on, the worker's `Execution` says so first, so that the tracer knows whose turn it is (kong-semantics
R3). What a light thread makes a task of is a light thread of the same request, as with `ngx.thread.spawn`; else a task
would go on in whichever request had the last turn. `asyncio.gather`, `wait_for` and `TaskGroup` make tasks. Who runs a
light thread waits for these too, as nginx does, so that none touches a request that has ended.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from functools import partial
from typing import Any

from kongtrace import Execution, Phase


class LightThread(Coroutine[Any, Any, Any]):
    """A coroutine that tells its worker's `Execution` whenever it goes on.

    Attributes:
        tasks: those of its tasks, and of theirs, that have not ended; None before the first.
    """

    __slots__ = ("_ctx", "_execution", "_phase", "_steps", "tasks")

    def __init__(self, awaitable: Awaitable[Any], execution: Execution, phase: Phase, ctx: dict[str, Any]) -> None:
        self._steps: Generator[Any, Any, Any] = (
            awaitable.__await__() if not isinstance(awaitable, Coroutine) else awaitable  # type: ignore[assignment]
        )
        self._execution = execution
        self._phase = phase
        self._ctx = ctx
        self.tasks: set[asyncio.Task[Any]] | None = None

    def send(self, value: Any) -> Any:
        """Go on."""
        self._execution.enter(self._phase, self._ctx)
        try:
            return self._steps.send(value)
        except SystemExit as error:
            raise _failed(error) from error

    def throw(self, *error: Any) -> Any:
        """Go on with an exception."""
        self._execution.enter(self._phase, self._ctx)
        try:
            return self._steps.throw(*error)
        except SystemExit as left:
            raise _failed(left) from left

    def close(self) -> None:
        """Give it up."""
        self._steps.close()

    def make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
        """Make a task that is a light thread of the same request and phase."""
        if self.tasks is None:
            self.tasks = set()
        thread = LightThread(coroutine, self._execution, self._phase, self._ctx)
        thread.tasks = self.tasks
        task = asyncio.Task(thread, loop=loop, **options)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def cancel_tasks(self) -> None:
        """Let its tasks end, as `ngx.exit` does."""
        for task in tuple(self.tasks or ()):
            task.cancel()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # type: ignore[return-value]  # send, throw and close are all that awaiting needs

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.send(None)


def _failed(error: SystemExit) -> RuntimeError:
    """Return what a light thread fails of that calls `sys.exit`: asyncio would end the worker, with all requests."""
    return RuntimeError(f"SystemExit: {error}").with_traceback(error.__traceback__)


def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    """Make a task, a light thread where one makes it: the task factory of every runtime's loop."""
    maker = asyncio.current_task(loop)
    if maker is not None and isinstance(thread := maker.get_coro(), LightThread):
        return thread.make_task(loop, coroutine, **options)
    return asyncio.Task(coroutine, loop=loop, **options)


def run(
    loop: asyncio.AbstractEventLoop, thread: LightThread, done: Callable[[BaseException | None], object]
) -> "asyncio.Task[Any]":
    """Run a light thread; `done` gets the exception that ended it, or None, when its tasks have ended too."""
    task = loop.create_task(thread)
    task.add_done_callback(partial(_ended, thread, done))
    return task


def _ended(
    thread: LightThread, done: Callable[[BaseException | None], object], task: "asyncio.Task[Any]", *_last: object
) -> None:
    if thread.tasks:
        next(iter(thread.tasks)).add_done_callback(partial(_ended, thread, done, task))
    else:
        done(asyncio.CancelledError() if task.cancelled() else task.exception())
