"""The gateway's configuration: what nginx and Kong are told, with Kong's own field names, ranges and defaults.

:class:`Gateway` is all that a master and its workers need; :mod:`sim.declarative` and :mod:`sim.scenario` read it from
files. Durations are in seconds, but for the fields of Kong that are in milliseconds: ``connect_timeout``,
``write_timeout``, ``send_timeout`` and ``read_timeout``.

Sources: kong-semantics I1 (instrumentations), N4 (timers), O1-O10 (plugin), Q1-Q9, Q27 (queue), W12, W16 (workers).
"""

import os
import re
import ssl
from collections.abc import Collection
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

from pydantic import AfterValidator, BeforeValidator, Field, Strict, model_validator

from sim.document import Model, NotEmpty, matching, not_built
from sim.errors import FieldError, nearest, shown
from sim.units import Seconds

T = TypeVar("T")

Many = Annotated[tuple[T, ...], Strict(strict=False)]
"""A list in a file, a tuple in the program."""

ProfileName = Literal["kong", "safe"]

WORKERS_MAX: Final = 1024
"""Child processes that a master keeps at most (kong-semantics W17)."""

CPUS_MAX: Final = 1024
"""CPUs that a mask can name (glibc, ``CPU_SETSIZE``)."""

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


def available_cpus() -> int:
    """Return the number of CPUs that this process may use: what ``auto`` workers are."""
    return len(os.sched_getaffinity(0))


def _workers(value: object) -> object:
    if value == "auto":
        return available_cpus()
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= WORKERS_MAX:
        return value
    raise FieldError(f"expected auto or a whole number from 1 to {WORKERS_MAX}, not {shown(value)}", cure="write 2")


def _instrumentations(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if word not in INSTRUMENTATIONS:
            raise FieldError(f"invalid tracing type: {word}", cure=nearest(word, INSTRUMENTATIONS))
    if words[0] == "off" and len(words) > 1:
        raise FieldError("off stands alone: other types are mutually exclusive", cure="write [off], or leave off out")
    return words


def _url(value: object) -> object:
    parts = urlsplit(value) if isinstance(value, str) else None
    if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
        raise FieldError(f"expected a URL such as http://127.0.0.1:4318/v1/traces, not {shown(value)}")
    _port_of(value, 80)
    return value


def _authorities(file: object) -> object:
    try:
        ssl.create_default_context(cafile=str(file))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FieldError(f"expected a file of certificates in PEM format, {shown(file)} is none: {reason}") from None
    return file


def _port_of(url: object, default: int) -> int:
    try:
        return urlsplit(str(url)).port or default
    except ValueError:
        raise FieldError(f"expected a port from 1 to 65535 in {shown(url)}") from None


Path = Annotated[str, matching(r"/[!-~]*", "a path that begins with /")]
Method = Annotated[str, matching(r"[A-Z]+", "a method in capitals, such as GET")]
HeaderName = Annotated[str, matching(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", "the name of a header")]
Instrumentations = Annotated[Many[str], NotEmpty, AfterValidator(_instrumentations)]
Rate01 = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TimeoutMs = Annotated[int, Field(ge=1, le=TIMEOUT_MS_MAX)]
Url = Annotated[str, BeforeValidator(_url)]
HeaderValue = Annotated[str, matching(r"[^\x00-\x08\x0a-\x1f\x7f]*", "a header value, without line breaks")]
Authorities = Annotated[str, AfterValidator(_authorities)]
"""The path of a file with the certificates of authorities, in PEM format."""
Addresses = Annotated[Many[str], BeforeValidator(_addresses)]
"""``host:port``, several divided by commas, or ``off``."""
Listen = Annotated[Addresses, NotEmpty]
CpuMasks = Annotated[Many[str], BeforeValidator(_cpu_masks)]
LogLevel = Literal["debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"]
FilePath = Annotated[str, Field(min_length=1)]
FileOrOff = Annotated[FilePath | None, BeforeValidator(lambda value: None if value == "off" else value)]
Workers = Annotated[int, BeforeValidator(_workers)]
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
            running timers included (N5).
        worker_cpu_affinity: the CPUs of each worker; :func:`affinity` reads it.
        lua_max_pending_timers: timers of a worker that wait at most (N4).
        lua_max_running_timers: timers of a worker that run at most (N4).
        lua_ssl_trusted_certificate: file of the authorities that an https collector's certificate may come from; None:
            those of the system, Kong's `system`.
    """

    worker_shutdown_timeout: Seconds = 0.0
    worker_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 16_384
    worker_cpu_affinity: CpuMasks = ()
    lua_max_pending_timers: Annotated[int, Field(ge=1)] = 16_384
    lua_max_running_timers: Annotated[int, Field(ge=1)] = 4_096
    lua_ssl_trusted_certificate: Authorities | None = None


class Export(Model):
    """What OpenTelemetry's environment variables say of every exporter (`sim.otlp_environment`).

    Attributes:
        traces_endpoint: for plugins that name none.
        headers: added to each request, where the plugin does not say otherwise.
        timeout: s that one attempt may take; None: no limit beside the plugin's.
        compression: None: as the profile has it.
        certificate: goes before ``lua_ssl_trusted_certificate``.
    """

    traces_endpoint: Url | None = None
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    compression: Literal["gzip", "none"] | None = None
    certificate: Authorities | None = None


class Service(Model):
    """An upstream application; ``host`` is a name or an address, resolved by :attr:`Gateway.hosts` first.

    A file may give ``url`` in place of ``protocol``, ``host``, ``port`` and ``path``.
    """

    name: Annotated[str, Field(min_length=1)]
    protocol: Literal["http"] = "http"
    host: Annotated[str, matching(r"[^\s/:]+", "a host name or an address")]
    port: Annotated[int, Field(ge=0, le=65_535)] = 80
    path: Path | None = None
    connect_timeout: TimeoutMs = 60_000
    write_timeout: TimeoutMs = 60_000
    read_timeout: TimeoutMs = 60_000
    retries: Annotated[int, Field(ge=0, le=32_767)] = 5
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
            if parts.scheme == "https":
                raise not_built("https", "upstreams are plain HTTP")
            data |= {"host": parts.hostname, "port": _port_of(url, 80)}
        except FieldError as error:
            raise FieldError(error.message, cure=error.cure, field="url") from None
        return data | ({"path": parts.path} if parts.path else {})


class Route(Model):
    """Which requests go to a service, by the name of the service."""

    name: Annotated[str, Field(min_length=1)]
    service: str
    paths: Many[Path] = ()
    hosts: Many[Annotated[str, matching(r"[^\s/:]+(:\d+)?", "a host, such as api.example.com")]] = ()
    methods: Many[Method] = ()
    strip_path: bool = True
    preserve_host: bool = False
    id: str = Field(default_factory=lambda route: _id("route", route.get("name")))

    @model_validator(mode="after")
    def _matches_something(self) -> Self:
        if not (self.paths or self.hosts or self.methods):
            raise FieldError("matches nothing: paths, hosts and methods are empty", cure="add `paths: [/]`")
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
    nginx: Nginx = Nginx()
    hosts: dict[str, tuple[str, int]] = Field(default_factory=dict)
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
