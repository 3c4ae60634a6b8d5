"""The entities of kong.yml, with Kong's own field names, ranges and defaults: services, routes, upstreams, plugins.

``connect_timeout``, ``write_timeout`` and ``read_timeout`` are in ms, as Kong's; other durations are in seconds.
"""

import re
from typing import Annotated, Any, Final, Literal, Self
from uuid import NAMESPACE_URL, uuid5
from warnings import catch_warnings

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sim.document import Model, NotEmpty, matching
from sim.errors import FieldError, shown
from sim.field import (
    PORTS,
    CookieName,
    HeaderName,
    HeaderValue,
    Many,
    Path,
    TimeoutMs,
    host_of,
    percent_encoded,
    url_parts,
)

TARGET_PORT_DEFAULT: Final = 8000
"""Kong's, for a target that names none."""


POSIX_CLASSES: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\s",
    "upper": "A-Z",
    "word": r"\w",
    "xdigit": "0-9A-Fa-f",
}
"""What stands for a class such as `[:digit:]` in a set (pcre2pattern, "Posix character classes")."""

_SET: Final = r"\[\^?\]?(?:\\.|\[[:.=][^\]]*[:.=]\]|[^\]\\])*\]"
_PARTS: Final = re.compile(rf"\\.|{_SET}|\(\?i\)|\(\?#[^)]*\)|\(\?<(?![=!])|[()|]", re.DOTALL)
_POSIX_CLASS: Final = re.compile(r"\[[:.=]([^\]]*)[:.=]\]")
_ESCAPE_OR_CLASS: Final = re.compile(rf"\\.|{_POSIX_CLASS.pattern}", re.DOTALL)


def path_pattern(text: str) -> re.Pattern[str]:
    """Compile the regular expression of a route's path, without its `~`, which Kong would give to PCRE.

    Raises:
        FieldError: it is none that can be read here.
    """
    try:
        with catch_warnings(action="ignore", category=FutureWarning):
            # Python warns of what may mean more than characters in a set some day; to PCRE it never does.
            return re.compile(_Translation().of(text), re.ASCII)
    except (re.error, OverflowError) as error:
        reason = str(error)
    except RecursionError:
        reason = "nested too deeply"
    raise FieldError(f"{shown(text)} is no regular expression that can be used here: {reason}")


class _Translation:
    """From PCRE's regular expressions to Python's, in what they share.

    PCRE's `(?i)` holds to the end of its group, over alternatives (pcre2pattern, "Internal option setting"). Python has
    it for a group alone: `a(?i)b|c` is `a(?i:b)|(?i:c)`.
    """

    def __init__(self) -> None:
        self._ignores_case = [False]  # since a `(?i)`, in the expression and in each group that is open

    def of(self, text: str) -> str:
        """Return the same expression in Python's form."""
        python = _PARTS.sub(self._part, text)
        return python + ")" * self._ignores_case[0]

    def _part(self, found: re.Match[str]) -> str:
        part, groups = found[0], self._ignores_case
        match part:
            case "(?i)":
                before, groups[-1] = groups[-1], True
                return "" if before else "(?i:"
            case "|" if groups[-1]:
                return ")|(?i:"
            case ")":
                if len(groups) == 1:
                    raise re.error("unbalanced parenthesis", found.string, found.start())
                return "))" if groups.pop() else ")"
            case "(" | "(?<":
                groups.append(False)
                return "(" if part == "(" else "(?P<"
            case r"\z":
                return r"\Z"
        return _python_set(part) if part[0] == "[" else part


def _python_set(part: str) -> str:
    """Return a set with its classes of POSIX, which Python does not know, written out."""
    if _POSIX_CLASS.fullmatch(part):
        raise re.error(f"{part} stands outside of a set")
    return part[0] + _ESCAPE_OR_CLASS.sub(_posix_class, part[1:])


def _posix_class(found: re.Match[str]) -> str:
    if found[1] is None:
        return found[0]
    if found[1] not in POSIX_CLASSES or found[0][1] != ":":
        raise re.error(f"{found[0]} is not known")
    return POSIX_CLASSES[found[1]]


def _route_path(value: object) -> object:
    if not isinstance(value, str) or not value.startswith(("/", "~/")):
        raise FieldError(
            f"expected a path that begins with /, or with ~/ for a regular expression, not {shown(value)}",
            cure="write /orders or ~/orders/\\d+$",
        )
    percent_encoded(value)
    if value.startswith("~"):
        path_pattern(value[1:])
    elif "//" in value:
        raise FieldError(f"a path must not have empty segments, but {shown(value)} has", cure="write each / once")
    return value


def _route_host(value: object) -> object:
    host = r"[^\s/:*]+"
    if isinstance(value, str) and re.fullmatch(rf"({host}|\*\.{host}|{host}\.\*|\[[0-9A-Fa-f:.]+\])(:\d+)?", value):
        return value
    raise FieldError(
        f"expected a host, or a wildcard such as *.example.com or example.*, not {shown(value)}",
        cure="the asterisk stands for the first or for the last labels",
    )


def _route_headers(headers: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    for name, values in headers.items():
        if name.lower() == "host":
            raise FieldError("host is no header to match on", field=name, cure="write it in hosts")
        if len(values) == 1 and values[0].startswith("~*"):
            path_pattern(values[0][2:])
    return headers


def _target_parts(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+)(?::(\d{1,5}))?", text, re.ASCII)
    port = int(match[2] or TARGET_PORT_DEFAULT) if match else 0
    if match is None or not 0 < port <= 65535:
        raise FieldError(f"expected host:port, not {shown(text)}", cure="write 10.0.0.1:8000 or orders.internal:8000")
    return match[1].strip("[]"), port


def _target(value: object) -> object:
    _target_parts(value if isinstance(value, str) else str(value))
    return value


RoutePath = Annotated[str, BeforeValidator(_route_path)]
RouteHost = Annotated[str, BeforeValidator(_route_host)]
ServicePath = Annotated[Path, matching(r"[^?#]*", "a path without query and fragment")]
Method = Annotated[str, matching(r"[A-Z]+", "a method in capitals, such as GET")]


class Service(Model):
    """An upstream application; ``host`` is the name of an :class:`Upstream`, another name, or an address.

    The name of an upstream is meant where it stands letter by letter, as in Kong; of other names the case is nothing.
    They are resolved by :attr:`sim.config.Gateway.hosts` first. ``https`` is spoken without TLS. A file may give
    ``url`` in place of ``protocol``, ``host``, ``port`` and ``path``.
    """

    name: Annotated[str, Field(min_length=1)]
    protocol: Literal["http", "https"] = "http"
    host: Annotated[str, matching(r"[^\s/:]+|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]+", "a host name or an address")]
    port: Annotated[int, Field(ge=0, le=65_535)] = 80
    path: ServicePath | None = None
    connect_timeout: TimeoutMs = 60_000
    write_timeout: TimeoutMs = 60_000
    read_timeout: TimeoutMs = 60_000
    retries: Annotated[int, Field(ge=0, le=32_767)] = 5
    enabled: bool = True
    id: str = Field(default_factory=lambda service: _id("service", service.get("name")))

    @model_validator(mode="before")
    @classmethod
    def _split_url(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "url" not in data:
            return data
        data = dict(data)
        url = data.pop("url")
        for field in ("protocol", "host", "port", "path"):
            if field in data:
                raise FieldError("stands beside url, which says it too", field=field, cure="keep one of the two")
        try:
            parts = url_parts(url)
        except FieldError as error:
            raise FieldError(error.message, cure=error.cure, field="url") from None
        if "@" in parts.netloc or parts.query or parts.fragment:
            cure = "leave user, query and fragment out"
            raise FieldError("expected a URL of host, port and path", cure=cure, field="url")
        data |= {"protocol": parts.scheme, "host": host_of(parts), "port": parts.port or PORTS[parts.scheme]}
        return data | ({"path": parts.path} if parts.path else {})


class Route(Model):
    """Which requests go to a service, by the name of the service; without one they get 503 after the plugins.

    Attributes:
        protocols: with `https` alone, a request over plain HTTP is told to come again over TLS.
        paths: prefixes, and regular expressions behind a `~`.
        headers: values by name, any of which has to be there; one value behind `~*` is a regular expression.
        snis: names of TLS; on plain HTTP they match and only count (as in Kong).
        created_at: seconds since the epoch; of routes of one rank the oldest comes first.
    """

    name: Annotated[str, Field(min_length=1)]
    service: str | None = None
    protocols: Annotated[Many[Literal["http", "https"]], NotEmpty] = ("http", "https")
    paths: Many[RoutePath] = ()
    hosts: Many[RouteHost] = ()
    methods: Many[Method] = ()
    headers: Annotated[dict[HeaderName, Annotated[Many[str], NotEmpty]], AfterValidator(_route_headers)] = Field(
        default_factory=dict
    )
    snis: Many[str] = ()
    strip_path: bool = True
    preserve_host: bool = False
    path_handling: Literal["v0", "v1"] = "v0"
    regex_priority: int = 0
    https_redirect_status_code: Literal[426, 301, 302, 307, 308] = 426
    created_at: int | None = None
    id: str = Field(default_factory=lambda route: _id("route", route.get("name")))

    @model_validator(mode="after")
    def _matches_something(self) -> Self:
        if not (self.paths or self.hosts or self.methods or self.headers or self.snis):
            raise FieldError("matches nothing: it has no paths, hosts, methods or headers", cure="add `paths: [/]`")
        return self


class Target(Model):
    """One of the servers behind an upstream; ``target`` is ``host:port``, port 8000 when left out."""

    target: Annotated[str, BeforeValidator(_target)]
    weight: Annotated[int, Field(ge=0, le=65_535)] = 100

    @property
    def host(self) -> str:
        """Name or address."""
        return _target_parts(self.target)[0]

    @property
    def port(self) -> int:
        """Port."""
        return _target_parts(self.target)[1]


Algorithm = Literal["round-robin", "consistent-hashing", "least-connections", "latency"]
HashOn = Literal["none", "consumer", "ip", "header", "cookie", "path", "query_arg", "uri_capture"]

Limit = Annotated[int, Field(ge=0, le=255)]
"""How often something has to happen; 0 is never."""

Statuses = Many[Annotated[int, Field(ge=100, le=999)]]
Interval = Annotated[float, Field(ge=0, le=65_535)]
_GOOD_STATUSES: Final = (*range(200, 209), 226, *range(300, 309))


class PassiveHealthy(Model):
    """Which answers to requests speak for a target, and how many of them make it healthy."""

    http_statuses: Statuses = _GOOD_STATUSES
    successes: Limit = 0


class Unhealthy(Model):
    """Which answers to requests speak against a target, and how many failures of a kind make it unhealthy."""

    http_statuses: Statuses = (429, 500, 503)
    http_failures: Limit = 0
    tcp_failures: Limit = 0
    timeouts: Limit = 0


class PassiveChecks(Model):
    """What is concluded from the requests that are proxied anyway."""

    type: Literal["http", "https", "tcp", "grpc", "grpcs"] = "http"
    healthy: PassiveHealthy = PassiveHealthy()
    unhealthy: Unhealthy = Unhealthy()


class ProbedHealthy(PassiveHealthy):
    """The same of probes; ``interval`` is how often healthy targets are probed, in seconds, 0: never."""

    http_statuses: Statuses = (200, 302)
    interval: Interval = 0


class ProbedUnhealthy(Unhealthy):
    """The same of probes; ``interval`` is how often unhealthy targets are probed, in seconds, 0: never."""

    http_statuses: Statuses = (429, 404, 500, 501, 502, 503, 504, 505)
    interval: Interval = 0


class ActiveChecks(Model):
    """Probes: requests of the gateway's own; ``timeout`` in seconds."""

    type: Literal["http", "https", "tcp", "grpc", "grpcs"] = "http"
    timeout: Annotated[float, Field(gt=0, le=65_535)] = 1
    concurrency: Annotated[int, Field(ge=1)] = 10
    http_path: Path = "/"
    headers: dict[HeaderName, Many[HeaderValue]] = Field(default_factory=dict)
    healthy: ProbedHealthy = ProbedHealthy()
    unhealthy: ProbedUnhealthy = ProbedUnhealthy()


class Healthchecks(Model):
    """How an upstream learns which of its targets are healthy.

    Attributes:
        threshold: share of the weight, in percent, that has to be available, or none is.
    """

    active: ActiveChecks = ActiveChecks()
    passive: PassiveChecks = PassiveChecks()
    threshold: Annotated[float, Field(ge=0, le=100)] = 0


class Upstream(Model):
    """A name that stands for several servers: a service whose host it is goes to one of its targets.

    ``hash_on`` without an ``algorithm`` asks for consistent-hashing.
    """

    name: Annotated[str, matching(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", "a host name")]
    algorithm: Algorithm = "round-robin"
    slots: Annotated[int, Field(ge=10, le=65_536)] = 10_000
    hash_on: HashOn = "none"
    hash_on_header: HeaderName | None = None
    hash_on_cookie: CookieName | None = None
    hash_on_cookie_path: Path = "/"
    hash_on_query_arg: str | None = None
    hash_on_uri_capture: str | None = None
    hash_fallback: HashOn = "none"
    hash_fallback_header: HeaderName | None = None
    hash_fallback_query_arg: str | None = None
    hash_fallback_uri_capture: str | None = None
    host_header: Annotated[str, matching(r"[^\s/]+", "a host name")] | None = None
    healthchecks: Healthchecks = Healthchecks()
    targets: Many[Target] = ()
    id: str = Field(default_factory=lambda upstream: _id("upstream", upstream.get("name")))

    @model_validator(mode="before")
    @classmethod
    def _hash_when_told_what(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("hash_on", "none") != "none" and "algorithm" not in data:
            return data | {"algorithm": "consistent-hashing"}
        return data

    @model_validator(mode="after")
    def _knows_what_to_hash(self) -> Self:
        for way, word in (("hash_on", self.hash_on), ("hash_fallback", self.hash_fallback)):
            field = "hash_on_cookie" if word == "cookie" else f"{way}_{word}"
            if word in {"header", "cookie", "query_arg", "uri_capture"} and getattr(self, field) is None:
                raise FieldError(f"missing, {way} is {word}", field=field, cure=f"add {field}")
        if self.hash_fallback != "none" and self.hash_on in {"none", "cookie"}:
            raise FieldError(f"must be none, hash_on is {self.hash_on}", field="hash_fallback", cure="leave it out")
        if self.hash_fallback == self.hash_on and self.hash_on in {"consumer", "ip", "path"}:
            raise FieldError("is the same as hash_on", field="hash_fallback", cure="leave it out")
        return self


class Plugin(Model):
    """A plugin, global or for one service or route, by name; ``config`` is as written, and is known to be valid."""

    name: str
    config: dict[str, Any] = Field(default_factory=dict)
    service: str | None = None
    route: str | None = None
    enabled: bool = True
    instance_name: str | None = None
    id: str = Field(
        default_factory=lambda plugin: _id("plugin", plugin.get("name"), plugin.get("service"), plugin.get("route"))
    )

    @property
    def lacks_endpoint(self) -> bool:
        """Whether it exports and does not say where to."""
        endpoints = {"traces_endpoint", "endpoint", "logs_endpoint"}
        return self.name == "opentelemetry" and not endpoints & self.config.keys()


def _id(kind: str, *names: str | None) -> str:
    """Return the id that Kong would give an entity of a file: the same in every run."""
    return str(uuid5(NAMESPACE_URL, "/".join((kind, *(name or "" for name in names)))))
