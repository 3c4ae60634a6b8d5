"""The router: which route, and so which service, a request goes to, and which path the service is asked for.

Kong's traditional router. A route matches when each of the criteria that it names does: one of its hosts, each of its
headers, one of its paths, one of its methods. A route with several paths counts as several routes. Of all that match,
the highest rank wins (`_rank`):

1. more kinds of criteria; of equally many those with hosts, then headers, then paths, then methods, then snis;
2. a wildcard host with a port, then hosts without a wildcard, then a path that is a regular expression;
3. more headers;
4. of regular expressions the higher `regex_priority`;
5. of prefixes the longer one;
6. the older route by `created_at`, then the order of the file.

Paths are compared in normal form: %-triplets of characters that need none are decoded, dot segments and double slashes
removed. Hosts are compared without regard to case, and without port unless the route names one.

Theory of operation. The order is decided once. A prefix, also the one that a regular expression begins with, is found
by looking up the beginnings of the path, in the lengths that occur, in a table; a route without one by its host when
that is plain; only what is left over is tried one by one. Findings are kept for the requests seen last, since most
repeat one (Kong keeps 5000, and as many failures). Kong itself first looks at routes that share the very host, path or
header that it noticed first, and so may take one of a lower rank of the same kinds of criteria; that is not imitated.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from kongtrace.lua import lua_lower
from sim.entity import Route, Service, path_pattern
from sim.resolver import is_address

if TYPE_CHECKING:
    from sim.framing import HeaderLines
    from sim.request import Request

FINDINGS_MAX: Final = 5_000
"""Requests whose route is remembered; when there are more, all are forgotten."""

PATH_SIZE_MAX: Final = 1_024
"""Characters of a path whose route is remembered, so that nobody fills the memory."""

_PORT_DEFAULT: Final = ":80"
_NO_LINES: Final["HeaderLines"] = []
_RESERVED: Final = frozenset("!#$%&'()*+,/:;=?@[]")
_LITERAL: Final = re.compile(r"[^\\^$.|?*+()\[\]{}]*")
_TRIPLET: Final = re.compile("%([0-9A-Fa-f]{2})")
_UNSAFE: Final = re.compile(r"[^!#$&'()*+,/:;=?@\[\]A-Za-z0-9\-._~%]")


class Captures(NamedTuple):
    """What the groups of a route's regular expression matched.

    Attributes:
        unnamed: every group, in order; "" for one that took no part.
        named: those with a name.
    """

    unnamed: tuple[str, ...]
    named: dict[str, str]


@dataclass(frozen=True, slots=True)
class Terms:
    """What each request needs to know of its route and service, as plain attributes: a model's cost more to read.

    Attributes:
        route: name of the route.
        https_only: plain requests are told to come again over TLS.
        preserve_host: the service gets the client's Host.
        strip_path: it does not get the part of the path that matched.
        host: of the service; "" without one.
        port: of the service.
        read_timeout_s: of the service.
        path: the first of the route's paths, as written; "" when it has none.
    """

    route: str
    https_only: bool
    preserve_host: bool
    strip_path: bool
    host: str
    port: int
    read_timeout_s: float
    path: str

    @classmethod
    def of(cls, route: Route, service: Service | None) -> "Terms":
        """Return those of a route and its service."""
        host, port, read_timeout = (service.host, service.port, service.read_timeout) if service else ("", 0, 0)
        https_only = route.protocols == ("https",)
        path = route.paths[0] if route.paths else ""
        return cls(route.name, https_only, route.preserve_host, route.strip_path, host, port, read_timeout / 1000, path)


@dataclass(frozen=True, slots=True)
class Match:
    """A route that a request matches.

    Attributes:
        route: the route.
        service: its service, if it has one.
        prefix: the beginning of the request's path that matched, "" when the route asks for no path.
        stripped: what of the prefix the service does not get, but for a mere slash; escaped.
        upstream_path: what the service is asked for, escaped.
        captures: of a path that is a regular expression.
        address: of the service, when its host is one and no name.
        upstream_host: host of the service and its port, unless it is the usual one.
        terms: see `Terms`.
    """

    route: Route
    service: Service | None
    prefix: str
    stripped: bytes
    upstream_path: bytes
    captures: Captures | None
    address: tuple[str, int] | None
    upstream_host: bytes
    terms: Terms

    def to(self, service: Service) -> "Match":
        """Return the same with another service, asked for the same."""
        terms, host = Terms.of(self.route, service), _host_of(service)
        return replace(self, service=service, address=_address_of(service), upstream_host=host, terms=terms)


class _Candidate:
    """A route with one of its paths, ready to be compared."""

    def __init__(self, route: Route, service: Service | None, path: str) -> None:
        self.route = route
        self.service = service
        self.path = path
        self.is_regex = path.startswith("~")
        self.prefix = _beginning(path[1:]) if self.is_regex else normalized(path)
        self.pattern = path_pattern(path[1:]) if self.is_regex else None
        hosts = [host.lower() for host in route.hosts]
        self.plain_hosts = frozenset(host for host in hosts if "*" not in host)
        self.wildcards = tuple(_wildcard(host) for host in hosts if "*" in host)
        self.methods = frozenset(route.methods)
        self.headers = tuple((name.lower().encode(), _header_test(values)) for name, values in route.headers.items())
        self.address = _address_of(service) if service is not None else None
        self.upstream_host = _host_of(service) if service is not None else b""
        self.terms = Terms.of(route, service)
        self.position = 0

    def matches(self, method: str, host: str, port: str, lines: "HeaderLines") -> bool:
        """Whether all but the path matches."""
        return (
            (not self.methods or method in self.methods)
            and (not self.route.hosts or self._is_host(host, port))
            and all(_has_header(name, is_wanted, lines) for name, is_wanted in self.headers)
        )

    def matched(self, path: str) -> Match | None:
        """Return the match for a path in normal form, if it is one."""
        if self.pattern is None:
            return self._found(path, len(self.prefix), None) if path.startswith(self.prefix) else None
        found = self.pattern.match(path)
        if found is None:
            return None
        captures = Captures(found.groups(""), found.groupdict("")) if self.pattern.groups else None
        return self._found(path, found.end(), captures)

    def _found(self, path: str, end: int, captures: Captures | None) -> Match:
        prefix, upstream_path = path[:end], self._upstream_path(path, end)
        stripped = _escaped(prefix) if self.route.strip_path and prefix != "/" else b""
        asked = prefix, stripped, upstream_path, captures
        return Match(self.route, self.service, *asked, self.address, self.upstream_host, self.terms)

    def _upstream_path(self, path: str, end: int) -> bytes:
        route, base = self.route, (self.service.path if self.service is not None else None) or "/"
        rest = _without_dots_ahead(path[end:]) if self.path else path[1:]
        joined = _JOIN[route.path_handling, route.strip_path](base, path, rest)
        return _escaped(joined)

    def _is_host(self, host: str, port: str) -> bool:
        with_port = host + port
        return (
            host in self.plain_hosts
            or with_port in self.plain_hosts
            or any(wildcard.match(with_port) for wildcard in self.wildcards)
        )


class Router:
    """Finds the route of a request."""

    def __init__(self, routes: tuple[Route, ...], services: tuple[Service, ...]) -> None:
        by_name = {service.name: service for service in services}
        candidates = [
            _Candidate(route, by_name[route.service] if route.service else None, path)
            for route in routes
            for path in (route.paths or ("",))
        ]
        candidates.sort(key=_rank)
        self._by_prefix: defaultdict[str, list[_Candidate]] = defaultdict(list)
        self._by_host: defaultdict[str, list[_Candidate]] = defaultdict(list)
        self._others: list[_Candidate] = []
        for position, candidate in enumerate(candidates):
            candidate.position = position
            self._index(candidate)
        self._prefix_sizes = sorted({len(prefix) for prefix in self._by_prefix})
        self._asks_port = any(re.search(r":\d+$", host) for route in routes for host in route.hosts)
        self._asks_headers = frozenset(name for candidate in candidates for name, _test in candidate.headers)
        self._found: dict[object, Match | None] = {}

    def match(self, request: "Request") -> Match | None:
        """Return the route of a request, None when there is none."""
        key: object = (request.method, request.host, request.raw_path)
        port, lines = _PORT_DEFAULT, _NO_LINES
        if self._asks_headers:
            lines = [line for line in request.forwarded_lines() if line[0].lower() in self._asks_headers]
            key = (key, *lines)
        if self._asks_port:
            port = _port_of(request.authority)
            key = (key, port)
        try:
            return self._found[key]
        except KeyError:
            pass
        found: Match | None = self._find(request.method, request.host, port, normalized(request.path), lines)
        if len(request.raw_path) + sum(len(value) for _name, value in lines) <= PATH_SIZE_MAX:
            if len(self._found) >= FINDINGS_MAX:
                self._found.clear()
            self._found[key] = found
        return found

    def _index(self, candidate: _Candidate) -> None:
        if candidate.prefix:
            self._by_prefix[candidate.prefix].append(candidate)
        elif candidate.plain_hosts and not candidate.wildcards:
            for host in {re.sub(r":\d+$", "", host) for host in candidate.plain_hosts}:
                self._by_host[host].append(candidate)
        else:
            self._others.append(candidate)

    def _find(self, method: str, host: str, port: str, path: str, lines: "HeaderLines") -> Match | None:
        candidates: list[_Candidate] = [*self._others, *self._by_host.get(host, ())]
        for size in self._prefix_sizes:
            candidates += self._by_prefix.get(path[:size], ())
        candidates.sort(key=_position)
        for candidate in candidates:
            if candidate.matches(method, host, port, lines):
                found = candidate.matched(path)
                if found is not None:
                    return found
        return None


def normalized(path: str) -> str:
    """Return a path without needless %-triplets, dot segments and double slashes (RFC 3986 6.2.2)."""
    if "%" in path:
        path = _TRIPLET.sub(_decoded, path)
    if "//" not in path and "/." not in path:
        return path
    kept: list[str] = []
    segments = re.sub("/{2,}", "/", path).split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)


def _beginning(regex: str) -> str:
    """Return what every path that matches begins with, as far as that is easily seen."""
    if "|" in regex:
        return ""
    literal = _LITERAL.match(regex)
    assert literal is not None
    return literal[0][:-1] if regex[literal.end() :][:1] in {"?", "*", "{"} else literal[0]


def _decoded(triplet: re.Match[str]) -> str:
    character = chr(int(triplet[1], 16))
    return triplet[0].upper() if character in _RESERVED else character


def _escaped(path: str) -> bytes:
    """Return a path as it may stand in a message: what was decoded to compare it ends no line (Kong, `tools/uri`)."""
    return _UNSAFE.sub(lambda unsafe: f"%{ord(unsafe[0]):02X}", path).encode()


def _join_rest(base: str, path: str, rest: str) -> str:
    if rest:
        return base.removesuffix("/") + "/" + rest.removeprefix("/")
    if base == "/":
        return base
    ends_with_slash = path.endswith("/") and (path != "/" or base.endswith("/"))
    return base.removesuffix("/") + ("/" if ends_with_slash else "")


def _join_whole(base: str, path: str, _rest: str) -> str:
    return base if path == "/" else base.removesuffix("/") + path


def _append_rest(base: str, _path: str, rest: str) -> str:
    return base + (rest.removeprefix("/") if base.endswith("/") else rest)


def _append_whole(base: str, path: str, _rest: str) -> str:
    return base + path[1:]


_JOIN: Final = {
    ("v0", True): _join_rest,
    ("v0", False): _join_whole,
    ("v1", True): _append_rest,
    ("v1", False): _append_whole,
}
"""By `path_handling` and `strip_path`: the service's path, the request's, and what is left of that without the prefix,
joined. v0 puts one slash between them, v1 as good as none."""


def _without_dots_ahead(rest: str) -> str:
    if rest in {".", ".."}:
        return ""
    return rest.removeprefix("../") if rest.startswith("../") else rest.removeprefix("./")


def _rank(candidate: _Candidate) -> tuple[float, ...]:
    route = candidate.route
    kinds = [bool(kind) for kind in (route.hosts, route.headers, candidate.path, route.methods, route.snis)]
    port_behind_wildcard = any("*" in host and re.search(r":\d+$", host) for host in route.hosts)
    return (
        -sum(kinds),
        *(-kind for kind in kinds),
        -port_behind_wildcard,
        -bool(candidate.plain_hosts and not candidate.wildcards),
        -candidate.is_regex,
        -len(candidate.headers),
        -route.regex_priority if candidate.is_regex else 0,
        0 if candidate.is_regex else -len(candidate.path),
        inf if route.created_at is None else route.created_at,
    )


def _position(candidate: _Candidate) -> int:
    return candidate.position


def _wildcard(host: str) -> re.Pattern[str]:
    pattern = re.escape(host).replace(r"\*", ".+")
    return re.compile(pattern + ("$" if re.search(r":\d+$", host) else r"(?::\d+)?$"))


def _address_of(service: Service) -> tuple[str, int] | None:
    return (service.host, service.port) if is_address(service.host) else None


def _host_of(service: Service) -> bytes:
    return authority(service.host, service.port, {"http": 80, "https": 443}[service.protocol])


def bracketed(host: str) -> str:
    """Return a host as an authority has it: an IPv6 address in brackets (RFC 3986 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def authority(host: str, port: int, usual: int) -> bytes:
    """Return what a `Host` header says: the port only when it is not the usual one (RFC 9110 7.2)."""
    name = bracketed(host)
    return (name if port == usual else f"{name}:{port}").encode()


def _port_of(authority: bytes) -> str:
    found = re.search(rb":\d+$", authority)
    return found[0].decode() if found else _PORT_DEFAULT


def _header_test(values: tuple[str, ...]) -> Callable[[str], object]:
    wanted = frozenset(map(lua_lower, values))
    if len(values) == 1 and values[0].startswith("~*"):
        pattern = path_pattern(values[0][2:])
        return lambda value: value in wanted or pattern.search(value)
    return wanted.__contains__


def _has_header(name: bytes, is_wanted: Callable[[str], object], lines: "HeaderLines") -> bool:
    given = (value.lower().decode("utf-8", "surrogateescape") for other, value in lines if other.lower() == name)
    return any(map(is_wanted, given))
