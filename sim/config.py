"""The gateway's settings: what nginx and Kong are told, with Kong's own names, ranges and defaults.

:class:`Gateway` is all that a master and its workers need; :mod:`sim.declarative` and :mod:`sim.scenario` read it from
files. Durations are in seconds.

Sources: kong-semantics I1 (instrumentations), N4 (timers), W12, W16 (workers).
"""

import os
import pathlib
import re
import resource
import ssl
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sim.document import Model, NotEmpty
from sim.entity import Plugin, Route, Service, Upstream
from sim.errors import FieldError, nearest, shown
from sim.field import HeaderName, HeaderValue, Many, Rate01, Url
from sim.units import Bytes, Seconds

ProfileName = Literal["kong", "safe"]

KONG_VERSION: Final = "3.9.1"
"""The version of Kong whose behaviour the gateway has."""

WORKERS_MAX: Final = 1024
"""Child processes that a master keeps at most (kong-semantics W17)."""

CONNECTIONS_MAX: Final = 1_000_000
"""Connections of a worker."""

CONNECTIONS_AUTO: Final = (1_024, 16_384)
"""The fewest and the most that it has when it is left to the limit of open files; Kong's."""

CPUS_MAX: Final = 1024
"""CPUs that a mask can name (glibc, ``CPU_SETSIZE``)."""

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


UNIX_PEERS: Final = "unix:"
"""What stands for all peers on sockets of the file system (nginx, `set_real_ip_from`); here there are none."""


def parse_address(text: object) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 host stands in brackets; raises FieldError."""
    match = (
        re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]*]+):(\d{1,5})", text, re.ASCII) if isinstance(text, str) else None
    )
    if match is None or int(match[2]) > 65535:
        raise FieldError(f"expected host:port, not {shown(text)}", cure="write 127.0.0.1:8000; port 0 is any free one")
    return match[1].strip("[]"), int(match[2])


def divided(text: str) -> list[str]:
    """Return the parts of a text that is divided by commas."""
    return [part.strip() for part in text.split(",")]


def _addresses(value: object) -> object:
    """Read one address, several divided by commas, a list of them, or ``off``."""
    if value == "off":
        return ()
    addresses = divided(value) if isinstance(value, str) else value
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
    if text == UNIX_PEERS:
        return text
    try:
        ip_network(text if isinstance(text, str) else "", strict=False)
    except ValueError:
        raise FieldError(
            f"expected an address or a block of them, not {shown(text)}", cure="write 10.0.0.0/8, or 0.0.0.0/0 for all"
        ) from None
    return text


def _real_ip_header(name: str) -> str:
    if name == "proxy_protocol":
        raise FieldError("proxy_protocol is not read: connections begin with HTTP", cure="write the name of a header")
    return name


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


SYSTEM: Final = "system"
"""What stands for the authorities that the system trusts (Kong, `lua_ssl_trusted_certificate`)."""


def trusting(authorities: Sequence[str | bytes]) -> ssl.SSLContext:
    """Make the context of a client that takes the certificates of these: certificates in PEM format, or `SYSTEM`.

    Raises:
        OSError: one of them is something else.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for authority in authorities:
        if isinstance(authority, bytes):
            with _as_file(authority) as path:
                context.load_verify_locations(path)
        else:
            context.load_default_certs()
    return context


def present(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Have a client show a certificate, and prove with its key that it is its own: both in PEM format.

    Raises:
        OSError: they are something else, or the key is encrypted.
    """
    with _as_file(certificate) as certificate_path, _as_file(key) as key_path:
        # Without a password it would be asked for on the terminal.
        context.load_cert_chain(certificate_path, key_path, password="")


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Make a file in memory, for OpenSSL takes certificates and keys from files; gives its path."""
    with os.fdopen(os.memfd_create("pem"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _authorities(file: object) -> object:
    content = _content(file)
    try:
        trusting([content])
    except OSError as error:
        raise FieldError(f"expected a file of certificates in PEM format, {shown(file)} is none: {error}") from None
    return content


def _content(file: object) -> bytes:
    """Read a file once, when the configuration is read: a worker that starts later has what the first one had."""
    try:
        return pathlib.Path(str(file)).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FieldError(f"expected a file in PEM format, {shown(file)} cannot be read: {reason}") from None


Instrumentations = Annotated[Many[str], NotEmpty, AfterValidator(_instrumentations)]

Authorities = Annotated[bytes, BeforeValidator(_authorities)]
"""Certificates of authorities in PEM format; written as the path of their file."""

Trusted = Annotated[
    Many[str],  # as written: an error of `str | bytes`, which they become, would name a type of Python's
    BeforeValidator(lambda value: divided(value) if isinstance(value, str) else value),
    NotEmpty,
    AfterValidator(lambda names: tuple(name if name == SYSTEM else _authorities(name) for name in names)),
]
"""Several of these, divided by commas, or `SYSTEM` among them."""

Pem = Annotated[bytes, BeforeValidator(_content)]
"""What stands in a file in PEM format; written as its path."""

Addresses = Annotated[Many[str], BeforeValidator(_addresses)]
"""``host:port``, several divided by commas, or ``off``."""

Listen = Annotated[Addresses, NotEmpty]
CpuMasks = Annotated[Many[str], BeforeValidator(_cpu_masks)]
LogLevel = Literal["debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"]
FilePath = Annotated[str, Field(min_length=1)]
FileOrOff = Annotated[FilePath | None, BeforeValidator(lambda value: None if value == "off" else value)]
RealIpHeader = Annotated[HeaderName, AfterValidator(_real_ip_header)]
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
        keepalive_timeout: seconds that an idle connection of a client stays open; 0 closes it after each request.
        keepalive_requests: requests that one connection serves at most; 0 is one.
        lua_max_pending_timers: timers of a worker that wait at most (N4).
        lua_max_running_timers: timers of a worker that run at most (N4).
        lua_ssl_trusted_certificate: files of the authorities that the certificate of an https collector, or of a server
            that a plugin asks, may come from; `SYSTEM`: those of the system.
    """

    worker_shutdown_timeout: Seconds = 0.0
    worker_connections: Annotated[int, BeforeValidator(_connections)] = Field(default_factory=available_connections)
    worker_cpu_affinity: CpuMasks = ()
    client_header_timeout: Timeout = 60.0
    client_body_timeout: Timeout = 60.0
    client_max_body_size: Bytes = 0
    send_timeout: Timeout = 60.0
    keepalive_timeout: Seconds = 75.0
    keepalive_requests: Annotated[int, Field(ge=0)] = 10_000
    lua_max_pending_timers: Annotated[int, Field(ge=1)] = 16_384
    lua_max_running_timers: Annotated[int, Field(ge=1)] = 4_096
    lua_ssl_trusted_certificate: Trusted = (SYSTEM,)


class Export(Model):
    """What OpenTelemetry's environment variables say of every exporter (`sim.otlp_environment`).

    Attributes:
        traces_endpoint: for plugins that name none.
        headers: added to each request, where the plugin does not say otherwise.
        timeout: s that one attempt may take; 0: no limit beside the plugin's; None: as the profile has it.
        compression: None: as the profile has it.
        certificate: goes before ``lua_ssl_trusted_certificate``.
        client_certificate: that a secured collector is shown.
        client_key: its key.
        protocol: the only one that there is.
        warnings: variables that are not followed, one line each.
    """

    traces_endpoint: Url | None = None
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    compression: Literal["gzip", "none"] | None = None
    certificate: Authorities | None = None
    client_certificate: Pem | None = None
    client_key: Annotated[Pem | None, Field(repr=False)] = None
    protocol: Literal["http/protobuf"] = "http/protobuf"
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _client_is_known_by_its_key(self) -> Self:
        given = [name for name in ("client_certificate", "client_key") if getattr(self, name) is not None]
        if len(given) == 1:
            raise FieldError("certificate and key go together, and the other one is not set", field=given[0])
        if self.client_certificate is None or self.client_key is None:
            return self
        try:
            present(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self.client_certificate, self.client_key)
        except OSError as error:
            message = f"expected a certificate and its key, in PEM format and not encrypted: {error.strerror or error}"
            raise FieldError(message, field="client_certificate") from None
        return self


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
        trusted_ips: addresses, or blocks of them, of proxies whose `X-Forwarded-*` headers are believed; `UNIX_PEERS`
            among them have no effect.
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
