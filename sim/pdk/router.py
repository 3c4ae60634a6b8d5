"""`kong.router`: where the request goes, in tables with the fields of Kong's entities; one not set is not there.

They are made once for a worker, so a plugin does not write to them.
"""

from collections.abc import Iterable
from typing import Any

from kongtrace import Execution
from sim.entity import Route, Service
from sim.pdk.part import ROUTED, Part, permitted
from sim.table import Table, tables


class Router(Part):
    """`kong.router`.

    Args:
        execution: what the worker runs.
        routes: of the gateway.
        services: of the gateway.
    """

    _path = "kong.router"

    def __init__(self, execution: Execution, routes: Iterable[Route], services: Iterable[Service]) -> None:
        super().__init__(execution)
        self._services = {service.name: _table(service) for service in services}
        self._routes = {route.name: _table(route) for route in routes}
        for route in self._routes.values():
            if route.service is not None:
                route.service = Table(id=self._services[route.service].id)

    @permitted(*ROUTED)
    def get_route(self) -> Table | None:
        """Return the route, or None."""
        match = self._request.match
        return self._routes[match.route.name] if match is not None else None

    @permitted(*ROUTED)
    def get_service(self) -> Table | None:
        """Return the service as it is configured, or None."""
        match = self._request.match
        if match is None or match.route.service is None:
            return None
        return self._services[match.route.service]


def _table(entity: Route | Service) -> Table:
    fields: dict[str, Any] = entity.model_dump(mode="json")
    table: Table = tables({name: value for name, value in fields.items() if value not in (None, [], {})})
    return table
