"""Plugins: what a handler is, in which order they run, and which run for a request.

A plugin is a class with a `PRIORITY`, a `VERSION`, and a method for each phase that it takes part in: `rewrite`,
`access`, `header_filter`, `body_filter` and `log`. An instance is made for each configured entity; a method takes the
PDK (`sim.pdk.Kong`). `rewrite` and `access` may be coroutines; the others are plain functions, since their phases must
not wait (kong-semantics R1).

Handlers run in descending priority, equal ones in descending order of name (R5). A plugin for a route goes before one
for its service, that before a global one of the same name. Rewrite knows no route yet: only global plugins run in it.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from sim.config import Gateway, Plugin

PHASE_METHODS: Final = ("rewrite", "access", "header_filter", "body_filter", "log")


class PluginInstance(Protocol):
    """A configured plugin; its class says what it is and is called with the configured entity and the worker."""

    NAME: ClassVar[str]
    PRIORITY: ClassVar[int]
    VERSION: ClassVar[str]

    def __init__(self, entity: Plugin, worker: Any) -> None: ...


PluginClass = type[PluginInstance]


@dataclass(frozen=True, slots=True)
class Handler:
    """One method of one configured plugin.

    Attributes:
        name: of the plugin.
        entity_id: of the configured entity, the key of its `kong.ctx.plugin`.
        call: the method.
        awaits: it is a coroutine function.
    """

    name: str
    entity_id: str
    call: Callable[[Any], Any]
    awaits: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The handlers of a request, by phase and in order."""

    rewrite: tuple[Handler, ...] = ()
    access: tuple[Handler, ...] = ()
    header_filter: tuple[Handler, ...] = ()
    body_filter: tuple[Handler, ...] = ()
    log: tuple[Handler, ...] = ()


class Plans:
    """The plans of a worker.

    Args:
        gateway: the configuration.
        classes: of the plugins that it names.
        worker: handed to the plugins.

    Attributes:
        instances: every configured plugin.
        everywhere: the plan where no route is known.
    """

    def __init__(self, gateway: Gateway, classes: Mapping[str, PluginClass], worker: Any) -> None:
        enabled = [entity for entity in gateway.plugins if entity.enabled]
        enabled.sort(key=lambda entity: (classes[entity.name].PRIORITY, entity.name), reverse=True)
        self._made = [(entity, classes[entity.name](entity, worker)) for entity in enabled]
        self.instances = tuple(instance for _entity, instance in self._made)
        self.everywhere = self._plan(route=None, service=None)
        self._by_route = {route.name: self._plan(route.name, route.service) for route in gateway.routes}

    def of_route(self, name: str) -> Plan:
        """Return the plan of a route."""
        return self._by_route[name]

    def _plan(self, route: str | None, service: str | None) -> Plan:
        chosen: dict[str, tuple[int, Plugin, Any]] = {}
        for entity, instance in self._made:
            if entity.route not in (None, route) or entity.service not in (None, service):
                continue
            rank = 2 * (entity.route is not None) + (entity.service is not None)
            if entity.name not in chosen or rank > chosen[entity.name][0]:
                chosen[entity.name] = (rank, entity, instance)
        return Plan(**{phase: _handlers(chosen, phase) for phase in PHASE_METHODS})


def _handlers(chosen: Mapping[str, tuple[int, Plugin, Any]], phase: str) -> tuple[Handler, ...]:
    methods = ((entity, getattr(instance, phase, None)) for _rank, entity, instance in chosen.values())
    return tuple(
        Handler(entity.name, entity.id, method, inspect.iscoroutinefunction(method))
        for entity, method in methods
        if method is not None
    )
