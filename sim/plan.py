"""The plan of a request: the handlers of plugins that run for it, phase by phase.

A worker makes its plans when it starts (`sim.plugin.Plans`), and every request reads one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Handler:
    """One method of one configured plugin.

    Attributes:
        name: of the plugin.
        entity_id: of the configured entity, the key of its `kong.ctx.plugin`.
        call: the method; takes the PDK and `conf`.
        conf: the entity's configuration.
        awaits: it is a coroutine function.
        span: name of the span that is made of each of its calls (kong-semantics I7).
    """

    name: str
    entity_id: str
    call: Callable[[Any, Any], Any]
    conf: Any
    awaits: bool = False
    span: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The handlers of a request, by phase and in order.

    Attributes:
        awaiting: the phases in which one of them is a coroutine function.
        buffered: the whole answer of the service is read before anything of it is sent.
    """

    rewrite: tuple[Handler, ...] = ()
    access: tuple[Handler, ...] = ()
    response: tuple[Handler, ...] = ()
    header_filter: tuple[Handler, ...] = ()
    body_filter: tuple[Handler, ...] = ()
    log: tuple[Handler, ...] = ()
    awaiting: frozenset[str] = frozenset()
    buffered: bool = False
