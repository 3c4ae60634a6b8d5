"""The gateway's configuration: what nginx and Kong are told, with Kong's own field names, ranges and defaults.

:class:`Gateway` is all that a master and its workers need; :mod:`sim.declarative` and :mod:`sim.scenario` read it from
files. Durations are in seconds, but for the fields of Kong that are in milliseconds: ``connect_timeout``,
``write_timeout``, ``send_timeout`` and ``read_timeout``.

Sources: kong-semantics I1 (instrumentations), N4 (timers), O1-O10 (plugin), Q1-Q9, Q27 (queue), W12, W16 (workers).
"""

import os
import re
import resource
import ssl
from collections.abc import Collection
from contextlib import suppress
from ipaddress import ip_network
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

from pydantic import AfterValidator, BeforeValidator, Field, Strict, model_validator

from sim.document import Model, NotEmpty, matching
from sim.errors import FieldError, nearest, shown
from sim.units import Bytes, Seconds

T = TypeVar("T")

Many = Annotated[tuple[T, ...], Strict(strict=False)]
"""A list in a file, a tuple in the program."""

ProfileName = Literal["kong", "safe"]

WORKERS_MAX: Final = 1024
"""Child processes that a master keeps at most (kong-semantics W17)."""

CONNECTIONS_MAX: Final = 1_000_000
"""Connections of a worker."""

CONNECTIONS_AUTO: Final = (1_024, 16_384)
"""The fewest and the most that it has when it is left to the limit of open files; Kong's."""

CPUS_MAX: Final = 1024
"""CPUs that a mask can name (glibc, ``CPU_SETSIZE``)."""

TARGET_PORT_DEFAULT: Final = 8000
"""Kong's, for a target that names none."""

TIMEOUT_MS_MAX: Final = 2**31 - 2

SEED_MAX: Final = 2**63 - 1

INSTRUMENTATIONS: Final = (
    "off",
    "all",
    "request",
    "db_query",
    "dns_query",
    "router",
    "http_client",
    "balancer",
    "plugin_rewrite",
    "plugin_access",
    "plugin_header_filter",
)
"""The words of ``tracing_instrumentations`` (kong-semantics I1)."""

SAMPLING_RATE_DEFAULT: Final = 0.01
"""Kong's ``tracing_sampling_rate`` (kong-semantics V2)."""


def parse_address(text: object) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 host stands in brackets; raises FieldError."""
    match = (
        re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})", text, re.ASCII) if isinstance(text, str) else None
    )
    if match is None or int(match[2]) > 65535:
        raise FieldError(f"expected host:port, not {shown(text)}", cure="write 127.0.0.1:8000; port 0 is any free one")
    return match[1].strip("[]"), int(match[2])


def _addresses(value: object) -> object:
    """Read one address, several divided by commas, a list of them, or ``off``."""
    if value == "off":
        return ()
    addresses = [text.strip() for text in value.split(",")] if isinstance(value, str) else value
    if not isinstance(addresses, list | tuple):
        raise FieldError(f"expected host:port, not {shown(value)}", cure="write 127.0.0.1:8000; port 0 is any free one")
    for index, address in enumerate(addresses):
        parse_address(address)
        if address in addresses[:index]:
            raise FieldError(f"{address} stands twice", cure="leave one out")
    return tuple(addresses)


def _cpu_masks(value: object) -> object:
    masks = tuple(value.split()) if isinstance(value, str) else value
    if not isinstance(masks, list | tuple) or not all(isinstance(mask, str) for mask in masks):
        raise FieldError(f"expected auto or masks such as 01 10, not {shown(value)}", cure="put the masks in quotes")
    for mask in masks[1:] if masks[:1] == ("auto",) else masks:
        if re.fullmatch("[01]+", mask) is None or "1" not in mask or len(mask) > CPUS_MAX:
            message = f'invalid mask "{mask}": expected 0 and 1 for each CPU, the last digit for CPU 0, at least one 1'
            raise FieldError(message, cure='write "0001 0010", or auto')
    if masks[:1] == ("auto",) and len(masks) > 2:
        raise FieldError("auto takes one mask: of the CPUs to choose from", cure='write "auto 0101"')
    return masks


def affinity(masks: tuple[str, ...], slot: int, available: Collection[int]) -> frozenset[int]:
    """Return the CPUs that ``worker_cpu_affinity`` gives to a worker; an empty set leaves them to the kernel.

    A worker beyond the last mask has the last one; ``auto`` gives each worker one CPU, in turn (nginx).

    Args:
        masks: as written.
        slot: of the worker.
        available: the CPUs that the master may use, which ``auto`` chooses from.
    """
    if not masks:
        return frozenset()
    if masks[0] != "auto":
        return _cpus(masks[min(slot, len(masks) - 1)])
    chosen = sorted(_cpus(masks[1]) if len(masks) > 1 else available)
    return frozenset({chosen[slot % len(chosen)]})


def _cpus(mask: str) -> frozenset[int]:
    return frozenset(cpu for cpu, digit in enumerate(reversed(mask)) if digit == "1")


def _ip_block(text: object) -> object:
    try:
        ip_network(text if isinstance(text, str) else "", strict=False)
    except ValueError:
        raise FieldError(
            f"expected an address or a block of them, not {shown(text)}", cure="write 10.0.0.0/8, or 0.0.0.0/0 for all"
        ) from None
    return text


def available_cpus() -> int:
    """Return the number of CPUs that this process may use: what ``auto`` workers are."""
    return len(os.sched_getaffinity(0))


def _workers(value: object) -> object:
    if value == "auto":
        return available_cpus()
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= WORKERS_MAX:
        return value
    raise FieldError(f"expected auto or a whole number from 1 to {WORKERS_MAX}, not {shown(value)}", cure="write 2")


def available_connections() -> int:
    """Return what ``auto`` connections of a worker are: as many files as it may have open, 1024 to 16384 (Kong)."""
    limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = CONNECTIONS_AUTO[-1]
    return most if limit == resource.RLIM_INFINITY else min(max(limit, CONNECTIONS_AUTO[0]), most)


def _connections(value: object) -> object:
    if value == "auto":
        return available_connections()
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= CONNECTIONS_MAX:
        return value
    raise FieldError(
        f"expected auto or a whole number from 1 to {CONNECTIONS_MAX}, not {shown(value)}", cure="write 16384"
    )


def _instrumentations(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if word not in INSTRUMENTATIONS:
            raise FieldError(f"invalid tracing type: {word}", cure=nearest(word, INSTRUMENTATIONS))
    if words[0] == "off" and len(words) > 1:
        raise FieldError("off stands alone: other types are mutually exclusive", cure="write [off], or leave off out")
    return words


def _url(value: object) -> object:
    parts = None
    if isinstance(value, str) and _URL_CHARACTERS.fullmatch(value):
        with suppress(ValueError):  # a bracket without its pair
            parts = urlsplit(value)
    if parts is None or parts.scheme not in _PORTS or not parts.hostname:
        raise FieldError(f"expected a URL such as http://127.0.0.1:4318/v1/traces, not {shown(value)}")
    _port_of(value, 80)
    return value


def _endpoint(value: object) -> object:
    if "@" in urlsplit(str(_url(value))).netloc:
        cure = "write a header: Authorization, with Basic and both in base64"
        raise FieldError("expected a URL without user and password, which are not sent", cure=cure)
    return value


_URL_CHARACTERS: Final = re.compile(r"[!-\[\]-~]+")  # what is visible in ASCII, but for the backslash


SYSTEM: Final = "system"
"""What stands for the authorities that the system trusts (Kong, `lua_ssl_trusted_certificate`)."""


def _authorities(file: object) -> object:
    try:
        ssl.create_default_context(cafile=str(file))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FieldError(f"expected a file of certificates in PEM format, {shown(file)} is none: {reason}") from None
    return file


_PORTS: Final = {"http": 80, "https": 443}


def _port_of(url: object, default: int) -> int:
    with suppress(ValueError):
        port = urlsplit(str(url)).port
        if port != 0:
            return default if port is None else port
    raise FieldError(f"expected a port from 1 to 65535 in {shown(url)}")


def path_pattern(text: str) -> re.Pattern[str]:
    """Compile the regular expression of a route's path, without its `~`, which Kong would give to PCRE.

    Raises:
        FieldError: it is none that can be read here.
    """
    python = re.sub(r"\(\?<(?![=!])", "(?P<", text.replace(r"\z", r"\Z"))
    python = re.sub(r"(?<=.)\(\?i\)(.*)", r"(?i:\1)", python)
    try:
        return re.compile(python, re.ASCII)
    except re.error as error:
        raise FieldError(f"{shown(text)} is no regular expression that can be used here: {error}") from None


def _route_path(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"~?/[!-~]*", value):
        raise FieldError(
            f"expected a path that begins with /, or with ~/ for a regular expression, not {shown(value)}",
            cure="write /orders or ~/orders/\\d+$",
        )
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


Path = Annotated[str, matching(r"/[!-~]*", "a path that begins with /")]
RoutePath = Annotated[str, BeforeValidator(_route_path)]
RouteHost = Annotated[str, BeforeValidator(_route_host)]
Method = Annotated[str, matching(r"[A-Z]+", "a method in capitals, such as GET")]
HeaderName = Annotated[str, matching(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", "the name of a header")]
Instrumentations = Annotated[Many[str], NotEmpty, AfterValidator(_instrumentations)]
Rate01 = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TimeoutMs = Annotated[int, Field(ge=1, le=TIMEOUT_MS_MAX)]
Url = Annotated[str, BeforeValidator(_endpoint)]
HeaderValue = Annotated[str, matching(r"[^\x00-\x08\x0a-\x1f\x7f]*", "a header value, without line breaks")]
Authorities = Annotated[str, AfterValidator(_authorities)]
"""The path of a file with the certificates of authorities, in PEM format."""
AuthoritiesOrSystem = Annotated[Authorities | None, BeforeValidator(lambda value: None if value == SYSTEM else value)]
Addresses = Annotated[Many[str], BeforeValidator(_addresses)]
"""``host:port``, several divided by commas, or ``off``."""
Listen = Annotated[Addresses, NotEmpty]
CpuMasks = Annotated[Many[str], BeforeValidator(_cpu_masks)]
LogLevel = Literal["debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"]
FilePath = Annotated[str, Field(min_length=1)]
FileOrOff = Annotated[FilePath | None, BeforeValidator(lambda value: None if value == "off" else value)]
RealIpHeader = Literal["X-Real-IP", "X-Forwarded-For"]
IpBlock = Annotated[str, BeforeValidator(_ip_block)]
Workers = Annotated[int, BeforeValidator(_workers)]
Timeout = Annotated[Seconds, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, le=SEED_MAX)]


class Tracing(Model):
    """What Kong's ``tracing_instrumentations`` and ``tracing_sampling_rate`` say."""

    instrumentations: Instrumentations = ("off",)
    sampling_rate: Rate01 = SAMPLING_RATE_DEFAULT


class Nginx(Model):
    """Directives of nginx and of its Lua module; the defaults are Kong's.

    Attributes:
        worker_shutdown_timeout: seconds after which a quitting worker closes its connections; 0 waits for ever (W12).
        worker_connections: connections that a worker has open at most, those to upstreams, listening sockets and
            running timers included (N5); ``auto`` in a file is as many as it may have files open, 1024 to 16384.
        worker_cpu_affinity: the CPUs of each worker; :func:`affinity` reads it.
        client_header_timeout: seconds within which a client sends a header section, else 408.
        client_body_timeout: seconds between two reads of a request's body, else 408.
        client_max_body_size: bytes of the largest body, else 413; 0 is any size.
        send_timeout: seconds between two writes to a client that does not read, else its connection is cut.
        keepalive_timeout: seconds that an idle connection of a client stays open.
        keepalive_requests: requests that one connection serves at most.
        lua_max_pending_timers: timers of a worker that wait at most (N4).
        lua_max_running_timers: timers of a worker that run at most (N4).
        lua_ssl_trusted_certificate: file of the authorities that the certificate of an https collector, or of a server
            that a plugin asks, may come from; None: those of the system, Kong's `system`.
    """

    worker_shutdown_timeout: Seconds = 0.0
    worker_connections: Annotated[int, BeforeValidator(_connections)] = Field(default_factory=available_connections)
    worker_cpu_affinity: CpuMasks = ()
    client_header_timeout: Timeout = 60.0
    client_body_timeout: Timeout = 60.0
    client_max_body_size: Bytes = 0
    send_timeout: Timeout = 60.0
    keepalive_timeout: Timeout = 75.0
    keepalive_requests: Annotated[int, Field(ge=1)] = 10_000
    lua_max_pending_timers: Annotated[int, Field(ge=1)] = 16_384
    lua_max_running_timers: Annotated[int, Field(ge=1)] = 4_096
    lua_ssl_trusted_certificate: AuthoritiesOrSystem = None


class Export(Model):
    """What OpenTelemetry's environment variables say of every exporter (`sim.otlp_environment`).

    Attributes:
        traces_endpoint: for plugins that name none.
        headers: added to each request, where the plugin does not say otherwise.
        timeout: s that one attempt may take; 0: no limit beside the plugin's; None: as the profile has it.
        compression: None: as the profile has it.
        certificate: goes before ``lua_ssl_trusted_certificate``.
        client_certificate: file of the certificate that a secured collector is shown, PEM.
        client_key: file of its key, PEM.
        protocol: the only one that there is.
        warnings: variables that are not followed, one line each.
    """

    traces_endpoint: Url | None = None
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    compression: Literal["gzip", "none"] | None = None
    certificate: Authorities | None = None
    client_certificate: FilePath | None = None
    client_key: FilePath | None = None
    protocol: Literal["http/protobuf"] = "http/protobuf"
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _client_is_known_by_its_key(self) -> Self:
        given = [name for name in ("client_certificate", "client_key") if getattr(self, name) is not None]
        if len(given) == 1:
            raise FieldError("certificate and key go together, and the other one is not set", field=given[0])
        if self.client_certificate is None:
            return self
        try:
            # Without a password it would be asked for on the terminal.
            ssl.create_default_context().load_cert_chain(self.client_certificate, self.client_key, password="")
        except OSError as error:
            message = f"expected a certificate and its key, in PEM format and not encrypted: {error.strerror or error}"
            raise FieldError(message, field="client_certificate") from None
        return self


class Service(Model):
    """An upstream application; ``host`` is the name of an :class:`Upstream`, another name, or an address.

    Names are resolved by :attr:`Gateway.hosts` first. ``https`` is spoken without TLS. A file may give ``url`` in place
    of ``protocol``, ``host``, ``port`` and ``path``.
    """

    name: Annotated[str, Field(min_length=1)]
    protocol: Literal["http", "https"] = "http"
    host: Annotated[str, matching(r"[^\s/:]+|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]+", "a host name or an address")]
    port: Annotated[int, Field(ge=0, le=65_535)] = 80
    path: Path | None = None
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
            _url(url)
            parts = urlsplit(url)
            data |= {"protocol": parts.scheme, "host": parts.hostname, "port": _port_of(url, _PORTS[parts.scheme])}
        except FieldError as error:
            raise FieldError(error.message, cure=error.cure, field="url") from None
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
    headers: dict[HeaderName, Many[str]] = Field(default_factory=dict)
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
    hash_on_cookie: str | None = None
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


class Gateway(Model):
    """Everything that a master and its workers are told.

    Attributes:
        profile: ``kong`` is faithful to the real gateway, ``safe`` avoids its traps.
        seed: of every random draw of the gateway.
        listen: where clients are awaited; port 0 is any free one. :func:`parse_address` splits an address.
        status_listen: where the Status API answers; nowhere when it is empty.
        log_level: least severity of what the error log tells.
        error_log: path of the error log; None is standard error.
        access_log: path of the access log; None, in a file ``off``, writes none.
        pid: path of the file that holds the master's pid while it runs; None writes none.
        workers: ``nginx_worker_processes``; ``auto`` in a file is one for each CPU that the process may use.
        trusted_ips: addresses, or blocks of them, of proxies whose `X-Forwarded-*` headers are believed.
        real_ip_header: where a trusted proxy names the client.
        real_ip_recursive: trusted addresses that it names are passed over.
        hosts: addresses of host names that need no DNS, each with the port that replaces the service's.
        export: what the environment says of exporters.
        plugin_classes: the plugins beside the bundled ones, by name (`sim.plugin.load`).
        warnings: what the file asks for and nobody simulates, one line each.
    """

    profile: ProfileName = "kong"
    seed: Seed = 0
    listen: Listen = ("127.0.0.1:0",)
    status_listen: Addresses = ()
    log_level: LogLevel = "notice"
    error_log: FilePath | None = None
    access_log: FileOrOff = None
    pid: FilePath | None = None
    workers: Workers = 1
    tracing: Tracing = Tracing()
    nginx: Nginx = Field(default_factory=Nginx)
    trusted_ips: Many[IpBlock] = ()
    real_ip_header: RealIpHeader = "X-Real-IP"
    real_ip_recursive: bool = False
    hosts: dict[str, tuple[str, int]] = Field(default_factory=dict)
    upstreams: tuple[Upstream, ...] = ()
    services: tuple[Service, ...] = ()
    routes: tuple[Route, ...] = ()
    plugins: tuple[Plugin, ...] = ()
    export: Export = Export()
    plugin_classes: dict[str, Any] = Field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()

    def exporting_to(self, traces_endpoint: str) -> Self:
        """Return the gateway with ``traces_endpoint`` for each opentelemetry plugin that names none."""
        plugins = tuple(
            plugin.model_copy(update={"config": {"traces_endpoint": traces_endpoint} | plugin.config})
            if plugin.lacks_endpoint
            else plugin
            for plugin in self.plugins
        )
        return self.model_copy(update={"plugins": plugins})


def _id(kind: str, *names: str | None) -> str:
    """Return the id that Kong would give an entity of a file: the same in every run."""
    return str(uuid5(NAMESPACE_URL, "/".join((kind, *(name or "" for name in names)))))
