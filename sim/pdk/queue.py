"""`kong.queue`: queues of a plugin's own, as Kong's module `kong.tools.queue` gives them (kong-semantics section 13).

What a handler must not wait for it puts into a queue, and a function of the plugin's gets it in batches, in a timer.
When a batch goes out, what is tried again, what a full queue drops and what a worker that leaves still sends is as in
the exporter's queues, for these are the exporter's (`sim.exporter`): `kongtrace.queue` decides and counts.

An entry that is a copy of a span is a span to the ledger, like the encoded ones of the opentelemetry plugin, and its
accounts are theirs. What the log phase of a request queues is told to the request, at whose end it becomes clear
whether it is the first copy (`sim.runloop`); queued later, the span has been booked, and the copy is one more. Other
entries, such as text, are in no account of spans: a plugin that queues both has two queues of a name.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from kongtrace import PHASES, ApiError, Execution, Span
from kongtrace.queue import Queue as WorkersQueue
from kongtrace.queue_parameters import Binding, QueueParameters
from kongtrace.queue_profile import Outcome
from sim.document import Model
from sim.pdk.part import Part
from sim.request import REQUEST

_LOG: Final = PHASES["log"]
_NS_PER_S: Final = 1_000_000_000
_BINDINGS_KEPT: Final = 1_000

Handler = Callable[[Any, list[Any]], Any]
"""Sends `(handler_conf, entries)`, and says True; or None and the reason why not, or raises. May be awaited."""


class QueueConfig(Model):
    """Parameters of a queue (kong-semantics Q1-Q8); delays and times are in seconds."""

    max_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    max_coalescing_delay: Annotated[float, Field(ge=0, le=3_600)] = 1.0
    max_entries: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    max_bytes: int | None = None
    max_retry_time: Annotated[float, Field(allow_inf_nan=False)] = 60.0
    initial_retry_delay: Annotated[float, Field(ge=0.001, le=1_000_000)] = 0.01
    max_retry_delay: Annotated[float, Field(ge=0.001, le=1_000_000)] = 60.0
    concurrency_limit: Literal[1, -1] = 1


class Queue(Part):
    """`kong.queue`.

    Args:
        execution: what the worker runs.
        worker: the gateway of the worker.
    """

    def __init__(self, execution: Execution, worker: Any) -> None:
        super().__init__(execution)
        self._worker = worker
        self._bindings: dict[str, Binding] = {}  # the newest by the queue's name

    def get_plugin_params(self, plugin_name: str, config: Any, queue_name: str | None = None) -> QueueParameters:
        """Return what `queue` in the plugin's configuration says, with a name for the queue and a tag for the log.

        Args:
            plugin_name: for the tag.
            config: of the plugin; what its record does not say is as in `QueueConfig`.
            queue_name: of the queue; the id of the entity when left out, so that each has its own.

        Raises:
            ApiError: a parameter is of the wrong type, or no request runs.
        """
        handler, worker = self._request.handler, self._worker
        entity_id = handler.entity_id if handler is not None else ""
        fields = {"plugin_instance_name": _instance_name(worker, entity_id), **dict(config)}
        fields["queue"] = {**_DEFAULTS, **dict(fields.get("queue") or {})}
        wall_s = worker.runtime.time_ns() / _NS_PER_S
        record = worker.exporter.queues.get_plugin_params(
            plugin_name, fields, queue_name, plugin_id=entity_id, wall_s=wall_s
        )
        return QueueParameters.of(record)

    def enqueue(
        self, queue_conf: QueueParameters | Mapping[str, Any], handler: Handler, handler_conf: Any, entry: Any
    ) -> tuple[bool | None, str | None]:
        """Let `handler(handler_conf, entries)` have an entry soon, in a batch; give True, or None and the reason.

        Args:
            queue_conf: what `get_plugin_params` gave, or a mapping that says all of it (Q11).
            handler: a plain or a coroutine function.
            handler_conf: the plugin's configuration, a mapping or None; of several the newest counts (Q12).
            entry: anything but None; a copy of a span is one to the ledger.

        Raises:
            ApiError: an argument is of the wrong type (Q11), or the queue has no room (Q14, profile kong).
        """
        binding = self._bound(_parameters(queue_conf), handler, handler_conf)
        execution = self._execution
        if isinstance(entry, Span):
            self._copied()
        queue = self._queue(binding.parameters.name, entry)
        return queue.enqueue(entry, binding, self._worker.runtime.now(), log_phase=execution.phase is _LOG)

    def can_enqueue(self, queue_conf: QueueParameters | Mapping[str, Any], entry: Any) -> bool:
        """Return whether an entry fits without another being dropped for it (Q24)."""
        return self._queue(_parameters(queue_conf).name, entry).can_enqueue(entry)

    def _queue(self, name: str, entry: object) -> WorkersQueue:
        exporter = self._worker.exporter
        queues = exporter.queues if isinstance(entry, Span) else exporter.other_queues
        queue: WorkersQueue = queues.queue(name)
        return queue

    def _bound(self, parameters: QueueParameters, handler: Handler, handler_conf: Any) -> Binding:
        """Return the binding of an entry: the last one of that name, if it is the same."""
        if not callable(handler):
            raise ApiError("arg #2 (handler) must be a function")
        known, called = self._bindings.get(parameters.name), _Called(handler)
        if (
            known is not None
            and known.handler_conf is handler_conf
            and known.handler == called
            and known.parameters == parameters
        ):
            return known
        if len(self._bindings) >= _BINDINGS_KEPT:
            self._bindings.clear()  # an entry gets another one like it
        binding = self._bindings[parameters.name] = Binding(parameters, called, handler_conf)
        return binding

    def _copied(self) -> None:
        ctx = self._execution.ctx
        if self._execution.phase is _LOG and ctx is not None and REQUEST in ctx:
            ctx[REQUEST].copied += 1
        else:
            self._worker.counts.copied_again += 1


@dataclass(frozen=True, slots=True)
class _Called:
    """A handler, as who drives a queue calls it (Q19)."""

    handler: Handler

    async def __call__(self, conf: Any, entries: list[Any]) -> Outcome:
        try:
            answer = self.handler(conf, list(entries))  # its own: what it takes out stays in the batch
            if isinstance(answer, Awaitable):
                # In a task of its own, a handler that cancels itself cancels no more than this attempt.
                answer = await asyncio.get_running_loop().create_task(_awaited(answer))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # the worker ends
                raise
            return Outcome(ok=False, reason=repr(error))
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it raises, the batch is tried again
            return Outcome(ok=False, reason=repr(error))
        ok, reason = (*answer, None, None)[:2] if isinstance(answer, tuple) else (answer, None)
        return Outcome(ok=ok is True, reason=None if reason is None else str(reason))


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


_DEFAULTS: Final = QueueConfig().model_dump()


def _parameters(queue_conf: QueueParameters | Mapping[str, Any]) -> QueueParameters:
    return queue_conf if isinstance(queue_conf, QueueParameters) else QueueParameters.of(queue_conf)


def _instance_name(worker: Any, entity_id: str) -> str | None:
    return next((entity.instance_name for entity in worker.configuration.plugins if entity.id == entity_id), None)
