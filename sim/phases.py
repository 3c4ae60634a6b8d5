"""The phase engine: walks a request through its handlers, as `ngx_http_core_run_phases` does.

The handlers of *rewrite*, *access* and *content* stand in one flat tuple, made when the worker starts; a request keeps
its place in it, which is an iterator. A handler answers

- None: go on with the next;
- `AGAIN`: it is suspended, and calls `run` again when it can go on;
- `DONE`: it has taken the request over, whose answer will come;
- a status: the gateway answers with it itself.

What a phase permits is a column of `kongtrace.PHASES`. The filters and the log phase are no part of the tuple: they run
when there is something to filter, or nothing left to do (`sim.worker`).

A handler that awaits runs in a light thread (`sim.light_thread`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kongtrace import Phase

if TYPE_CHECKING:
    from kongtrace.context import Context
    from sim.request import Request

AGAIN: Final = -2
DONE: Final = -4

Handler = Callable[["Request"], int | None]


class PhaseEngine:
    """Runs the handlers of requests.

    Args:
        enter: told which phase runs, and with which context (`kongtrace.Execution.enter`).
        handlers: each with its phase, in order.
        finish: called with the request and the status that a handler answered with.
    """

    __slots__ = ("_enter", "_finish", "_handlers")

    def __init__(
        self,
        enter: Callable[[Phase, "Context"], object],
        handlers: tuple[tuple[Phase, Handler], ...],
        finish: Callable[["Request", int], None],
    ) -> None:
        self._enter = enter
        self._handlers = handlers
        self._finish = finish

    def run(self, request: "Request") -> None:
        """Go on with `request` where it stands."""
        steps = request.steps
        if steps is None:
            steps = request.steps = iter(self._handlers)
        enter, entered = self._enter, None
        for phase, handler in steps:
            if phase is not entered:
                enter(phase, request.ctx)
                entered = phase
            answer = handler(request)
            if answer is not None:
                if answer > 0:
                    self._finish(request, answer)
                return
