"""The phase engine: walks a request through its handlers, as `ngx_http_core_run_phases` does.

The handlers of *rewrite*, *access* and *content* stand in one flat tuple, made when the worker starts; a request keeps
its place in it, which is an iterator. A handler answers

- None: go on with the next;
- `AGAIN`: it is suspended, and calls `run` again when it can go on;
- `DONE`: it has taken the request over, whose answer will come;
- a status: the gateway answers with it itself.

What a phase permits is a column of `kongtrace.PHASES`. The filters and the log phase are no part of the tuple: they run
when there is something to filter, or nothing left to do (`sim.worker`).

A handler that awaits runs in a *light thread*: whenever it goes on, the worker's `Execution` says so first, so that the
tracer knows whose turn it is (kong-semantics R3).
"""

from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from typing import TYPE_CHECKING, Any, Final

from kongtrace import Execution, Phase

if TYPE_CHECKING:
    from sim.request import Request

AGAIN: Final = -2
DONE: Final = -4

Handler = Callable[["Request"], int | None]


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

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # type: ignore[return-value]  # send, throw and close are all that awaiting needs

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.send(None)


class PhaseEngine:
    """Runs the handlers of requests.

    Args:
        execution: told what runs.
        handlers: each with its phase, in order.
        finish: called with the request and the status that a handler answered with.
    """

    __slots__ = ("_enter", "_finish", "_handlers")

    def __init__(
        self,
        execution: Execution,
        handlers: tuple[tuple[Phase, Handler], ...],
        finish: Callable[["Request", int], None],
    ) -> None:
        self._enter = execution.enter
        self._handlers = handlers
        self._finish = finish

    def run(self, request: "Request") -> None:
        """Go on with `request` where it stands."""
        steps = request.steps
        if steps is None:
            steps = request.steps = iter(self._handlers)
        entered = None
        for phase, handler in steps:
            if phase is not entered:
                self._enter(phase, request.ctx)
                entered = phase
            answer = handler(request)
            if answer is not None:
                if answer > 0:
                    self._finish(request, answer)
                return
