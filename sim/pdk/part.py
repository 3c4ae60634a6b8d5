"""What every part of the PDK stands on: the running request, and the phases in which a function may be called."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from kongtrace import ApiError, Execution
from kongtrace.context import KONG_PHASE
from sim.absence import Incomplete
from sim.request import REQUEST, Request

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Part")

ADMIN_API: Final = "admin_api"

IN_REQUEST: Final = ("rewrite", "access", "response", "header_filter", "body_filter", "log", "error", ADMIN_API)
BEFORE_CONTENT: Final = ("rewrite", "access", "response", "error", ADMIN_API)
BEFORE_HEAD: Final = ("rewrite", "access", "response", "header_filter", "error", ADMIN_API)
AFTER_CONTENT: Final = ("response", "header_filter", "body_filter", "log", "error", ADMIN_API)
OF_SERVICE: Final = ("response", "header_filter", "body_filter", "log")
ROUTED: Final = ("access", "balancer", "response", "header_filter", "body_filter", "log", "preread")
WITH_CLIENT: Final = ("certificate", *IN_REQUEST)
TO_SERVICE: Final = ("rewrite", "access")
HEADERS_TO_SERVICE: Final = ("rewrite", "access", "balancer")
"""Kong phases in Kong's order, which is the order in its messages."""


class Part(Incomplete):
    """A part of the PDK that speaks of the running request.

    Args:
        execution: what the worker runs.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    @property
    def _request(self) -> Request:
        try:
            request: Request = self._execution.ctx[REQUEST]  # type: ignore[index]  # None is one of the errors
        except (KeyError, TypeError):
            raise ApiError("no request found") from None
        return request


def permitted(*phases: str) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Let a function be called in these Kong phases only (kong-semantics R9).

    The decorated function has them as its attribute `phases`, and raises ApiError elsewhere.
    """
    allowed = frozenset(phases)
    listed = ", ".join(phases)

    def decorate(function: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @wraps(function)
        def guarded(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
            execution = self._execution
            ctx = execution.ctx
            phase: str | None = ctx.get(KONG_PHASE) if ctx is not None else None
            if phase not in allowed:
                _check(phase, execution, allowed, listed)
            return function(self, *args, **kwargs)

        guarded.phases = phases  # type: ignore[attr-defined]  # for the documentation
        return cast("Callable[Concatenate[S, P], R]", guarded)

    return decorate


def _check(phase: str | None, execution: Execution, allowed: frozenset[str], listed: str) -> None:
    if phase is None:
        if execution.phase.name != "content":
            raise ApiError(f"no phase in ngx.ctx.KONG_PHASE, (need one of {listed})")
        phase = ADMIN_API
    if phase not in allowed:
        raise ApiError(f"function cannot be called in {phase} phase (only in: {listed})")


def phases_of(function: Any) -> tuple[str, ...] | None:
    """The Kong phases in which a function of the PDK may be called; None: in all."""
    return getattr(function, "phases", None)
