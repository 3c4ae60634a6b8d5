"""The router: which route, and so which service, a request goes to.

As Kong's traditional router ranks them: a route that asks for more (methods, hosts, paths) comes before one that asks
for less, a longer path before a shorter one, then in order of the file. A route's host may be `*.example.com` or
`example.*`. Findings are kept for the targets seen last, since most requests repeat one.
"""

from dataclasses import dataclass
from typing import Final

from sim.config import Route, Service
from sim.resolver import is_address

FINDINGS_MAX: Final = 1024
"""Targets whose route is remembered; when there are more, all are forgotten."""


@dataclass(frozen=True, slots=True)
class Match:
    """A route that a request matches.

    Attributes:
        route: the route.
        service: its service.
        prefix: the path of the route that matched, "" when it asks for none.
        address: of the service, when its host is one and no name.
    """

    route: Route
    service: Service
    prefix: str
    address: tuple[str, int] | None

    def upstream_path(self, path: str) -> str:
        """Return the path that the service is asked for: its own, then the request's with or without the prefix."""
        rest = path[len(self.prefix) :] if self.route.strip_path else path
        base = (self.service.path or "").rstrip("/")
        return f"{base}/{rest.lstrip('/')}" if rest or not base else base


class Router:
    """Finds the route of a request."""

    def __init__(self, routes: tuple[Route, ...], services: tuple[Service, ...]) -> None:
        by_name = {service.name: service for service in services}
        candidates = [
            Match(route, service, prefix, (service.host, service.port) if is_address(service.host) else None)
            for route in routes
            for service in (by_name[route.service],)
            for prefix in (route.paths or ("",))
        ]
        self._candidates = sorted(candidates, key=_rank)
        self._found: dict[tuple[str, str, str], Match | None] = {}

    def match(self, method: str, host: str, path: str) -> Match | None:
        """Return the route of a request, None when there is none.

        Args:
            method: in capitals.
            host: without port, in lower case.
            path: without query.
        """
        key = (method, host, path)
        if key in self._found:
            return self._found[key]
        if len(self._found) >= FINDINGS_MAX:
            self._found.clear()
        found = self._found[key] = next((c for c in self._candidates if _matches(c, method, host, path)), None)
        return found


def _rank(match: Match) -> tuple[int, int, int]:
    route = match.route
    asked = bool(route.methods) + bool(route.hosts) + bool(match.prefix)
    plain_hosts = bool(route.hosts) and not any("*" in host for host in route.hosts)
    return -asked, -plain_hosts, -len(match.prefix)


def _matches(candidate: Match, method: str, host: str, path: str) -> bool:
    route = candidate.route
    return (
        path.startswith(candidate.prefix)
        and (not route.methods or method in route.methods)
        and (not route.hosts or any(_is_host(pattern, host) for pattern in route.hosts))
    )


def _is_host(pattern: str, host: str) -> bool:
    pattern = pattern.partition(":")[0].lower()
    if pattern.startswith("*"):
        return host.endswith(pattern[1:]) and len(host) >= len(pattern)
    if pattern.endswith("*"):
        return host.startswith(pattern[:-1]) and len(host) >= len(pattern)
    return host == pattern
