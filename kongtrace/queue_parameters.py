"""What a queue is made with, under Kong's names, and what an entry brings to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from kongtrace.errors import ApiError
from kongtrace.lua import is_number


@dataclass(frozen=True, slots=True)
class QueueParameters:
    """What a queue is made with, under Kong's names (kong-semantics Q1-Q9).

    Attributes:
        name: identifies the queue within a workspace.
        log_tag: stands in front of its log lines.
        max_batch_size: entries in one batch.
        max_coalescing_delay: s to wait for more after the first entry of a batch.
        max_entries: entries waiting.
        max_bytes: bytes waiting; None: no limit.
        max_retry_time: s after which a failing batch is given up; -1: after the first failure.
        initial_retry_delay: s before the second attempt.
        max_retry_delay: s between attempts, at most.
        concurrency_limit: 1: one batch after the other; -1: every entry is a job of its own.
        prefix: what every log line starts with.

    Raises:
        ApiError: a parameter is of the wrong type (Q11).
    """

    name: str
    log_tag: str | None = None
    max_batch_size: float = 1
    max_coalescing_delay: float = 1
    max_entries: float = 10_000
    max_bytes: float | None = None
    max_retry_time: float = 60
    initial_retry_delay: float = 0.01
    max_retry_delay: float = 60
    concurrency_limit: float = 1
    prefix: str = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ApiError("arg #1 (queue_conf) must include a name")
        for parameter in _NUMBERS:
            value, is_optional = getattr(self, parameter), parameter == "max_bytes"
            if not (is_number(value) or (is_optional and value is None)):
                raise ApiError(f"arg #1 (queue_conf) {parameter} must be a number{' or nil' if is_optional else ''}")
        object.__setattr__(self, "prefix", f"[{self.log_tag or ''}] queue {self.name}: ")

    @classmethod
    def of(cls, conf: Mapping[str, Any] | list[Any]) -> QueueParameters:
        """The parameters in a configuration record that says all of them: there is no default here, as in Kong (Q11).

        Raises:
            ApiError: a parameter is missing or of the wrong type.
        """
        if isinstance(conf, list):
            conf = {}  # it has no names
        if not isinstance(conf, Mapping):
            raise ApiError("arg #1 (queue_conf) must be a table")
        given: list[Any] = [conf.get(name) for name in _GIVEN]
        return cls(*given)


_GIVEN: Final = tuple(parameter.name for parameter in fields(QueueParameters) if parameter.init)

_NUMBERS: Final = (
    "max_batch_size",
    "max_coalescing_delay",
    "max_entries",
    "max_retry_time",
    "initial_retry_delay",
    "max_retry_delay",
    "max_bytes",
    "concurrency_limit",
)
"""In the order in which Kong looks at them (Q11)."""


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """What an entry is enqueued with. A producer keeps one and makes another when its configuration changes.

    Attributes:
        parameters: for the queue, if it is absent (kong-semantics Q12).
        handler: what batches are sent with, if the queue is absent; a function, for the driver to call.
        handler_conf: the handler's configuration, from now on; a record or None.

    Raises:
        ApiError: an attribute is of the wrong type (Q11).
    """

    parameters: QueueParameters
    handler: Callable[..., Any]
    handler_conf: Any = None

    def __post_init__(self) -> None:
        if not callable(self.handler):
            raise ApiError("arg #2 (handler) must be a function")
        if isinstance(self.handler_conf, str | bytes | int | float) or callable(self.handler_conf):
            raise ApiError("arg #3 (handler_conf) must be a table or nil")
