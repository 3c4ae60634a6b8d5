"""Light threads: what a worker runs in turns. Each belongs to a request, or to a timer.

Whenever one goes on, the worker's `Execution` says so first, so that the tracer knows whose turn it is (kong-semantics
R3). What a light thread makes a task of is a light thread of the same request, as with `ngx.thread.spawn`; else a task
would go on in whichever request had the last turn. `asyncio.gather`, `wait_for` and `TaskGroup` make tasks.
"""

import asyncio
from collections.abc import Awaitable, Coroutine, Generator, Iterator
from typing import Any

from kongtrace import Execution, Phase


class LightThread(Coroutine[Any, Any, Any]):
    """A coroutine that tells its worker's `Execution` whenever it goes on."""

    __slots__ = ("_ctx", "_execution", "_phase", "_steps")

    def __init__(self, awaitable: Awaitable[Any], execution: Execution, phase: Phase, ctx: dict[str, Any]) -> None:
        self._steps: Generator[Any, Any, Any] = (
            awaitable.__await__() if not isinstance(awaitable, Coroutine) else awaitable  # type: ignore[assignment]
        )
        self._execution = execution
        self._phase = phase
        self._ctx = ctx

    def send(self, value: Any) -> Any:
        """Go on."""
        self._execution.enter(self._phase, self._ctx)
        return self._steps.send(value)

    def throw(self, *error: Any) -> Any:
        """Go on with an exception."""
        self._execution.enter(self._phase, self._ctx)
        return self._steps.throw(*error)

    def close(self) -> None:
        """Give it up."""
        self._steps.close()

    def beside(self, coroutine: Coroutine[Any, Any, Any]) -> "LightThread":
        """Return one of the same request and phase that runs another coroutine."""
        return LightThread(coroutine, self._execution, self._phase, self._ctx)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # type: ignore[return-value]  # send, throw and close are all that awaiting needs

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.send(None)


def make_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> "asyncio.Task[Any]":
    """Make a task, a light thread where one makes it: the task factory of every runtime's loop."""
    maker = asyncio.current_task(loop)
    if maker is not None and isinstance(thread := maker.get_coro(), LightThread):
        coroutine = thread.beside(coroutine)
    return asyncio.Task(coroutine, loop=loop, **options)
