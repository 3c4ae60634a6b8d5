"""Kong's environment variables, `KONG_` and the name of a setting in capitals, as settings of a gateway of its own.

`kongsim serve` and `kongsim check` of a kong.yml read them, once; options of the command line go before them. A
scenario does not: the same file shall be the same run everywhere. An empty variable counts as not set. One that begins
with `KONG_` and means nothing here gets a line of warning. The table `_SETTINGS` is the list of those that do; besides:

| variable | |
|---|---|
| `KONG_DECLARATIVE_CONFIG` | the kong.yml, when the command line names none |
| `KONG_PLUGINS` | the plugins that the file may name; `bundled` are those that come with Kong |
| `KONG_PREFIX` | folder of the log files with a relative name |

Errors: `UserError` names the variable.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sim.config import parse_address
from sim.document import Override, override
from sim.errors import FieldError, UserError, shown

PREFIX: Final = "KONG_"

_LISTEN_USAGE: Final = "off, or addresses such as 0.0.0.0:8000 reuseport backlog=16384, 0.0.0.0:8443 ssl"
_NO_TLS: Final = frozenset({"ssl", "http2", "quic"})
_OF_THE_SOCKET: Final = re.compile(
    r"deferred|bind|reuseport|backlog=\d+|ipv6only=(on|off)|so_keepalive=\S+|proxy_protocol"
)


@dataclass(frozen=True, slots=True)
class KongEnvironment:
    """What the variables say.

    Attributes:
        file: path of the kong.yml; None when they name none.
        settings: to be laid under those of the command line.
        plugins: the plugins that the file may name; None: all that there are.
        warnings: what is asked for and nobody simulates, one line each.
    """

    file: str | None
    settings: tuple[Override, ...]
    plugins: tuple[str, ...] | None
    warnings: tuple[str, ...]


def read(environ: Mapping[str, str]) -> KongEnvironment:
    """Return what the variables say; raises UserError."""
    given = {
        name: text for name, value in sorted(environ.items()) if name.startswith(PREFIX) and (text := value.strip())
    }
    reader = _Reader(given)
    for name, text in given.items():
        reader.read(name.removeprefix(PREFIX), text)
    plugins = given.get("KONG_PLUGINS")
    return KongEnvironment(
        given.get("KONG_DECLARATIVE_CONFIG"),
        tuple(reader.settings),
        tuple(word.strip() for word in plugins.split(",")) if plugins else None,
        tuple(reader.warnings),
    )


class _Reader:
    """Turns variables into settings."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.prefix = Path(given.get("KONG_PREFIX", ""))
        self.settings: list[Override] = []
        self.warnings: list[str] = []
        self._set_by: dict[str, str] = {}

    def read(self, word: str, text: str) -> None:
        """Read one variable, named without `KONG_`."""
        if word in _SAID_ELSEWHERE:
            return
        name = PREFIX + word
        if word in _HARMLESS:
            if text.lower() not in _HARMLESS[word]:
                self.warnings.append(f"{name}: {text} is not simulated")
        elif word in _SETTINGS:
            field, convert = _SETTINGS[word]
            self._set(field, name, self._converted(convert, text, name))
        else:
            self.warnings.append(f"{name} is not simulated: it has no effect")

    def _set(self, field: str, name: str, value: Any) -> None:
        first = self._set_by.setdefault(field, name)
        if first != name:
            # Of two names of one setting the newer one counts, which the table has first.
            older = max(first, name, key=lambda other: list(_SETTINGS).index(other.removeprefix(PREFIX)))
            self.warnings.append(f"{older} has no effect: {first if older == name else name} says it")
            if older == name:
                return
            self.settings = [setting for setting in self.settings if setting.origin != first]
            self._set_by[field] = name
        self.settings.append(Override(tuple(field.split(".")), value, name))

    def _converted(self, convert: "_Convert", text: str, name: str) -> Any:
        try:
            return convert(self, text, name)
        except FieldError as error:
            raise UserError(error.message, file=name, cure=error.cure) from None

    # What the table names.

    def text(self, text: str, _name: str) -> str:
        """Take it as it is."""
        return text

    def number(self, text: str, name: str) -> Any:
        """Read it as a file would."""
        return override("value", text, name).value

    def words(self, text: str, _name: str) -> list[str]:
        """Read words divided by commas."""
        return [word.strip() for word in text.split(",")]

    def switch(self, text: str, _name: str) -> bool:
        """Read `on` or `off`."""
        if text not in {"on", "off"}:
            raise FieldError(f"expected on or off, not {shown(text)}")
        return text == "on"

    def duration(self, text: str, _name: str) -> str:
        """Read a time as nginx does: a number without a unit is in seconds."""
        if not _TIME.fullmatch(text):
            cure = "write 10s, 500ms or 1m 30s"
            raise FieldError(f"expected a time as nginx writes it, not {shown(text)}", cure=cure)
        time = _WEEKS.sub(lambda weeks: f"{int(weeks[1]) * 7}d", text.replace(" ", ""))
        return time + "s" * time[-1].isdecimal()

    def keepalive(self, text: str, name: str) -> str:
        """Read a time, and drop the one behind it, which nginx tells clients (`keepalive_timeout 75s 60s`)."""
        words = text.split()
        if len(words) > 2:
            raise FieldError(f"expected one time, or two, not {shown(text)}", cure="write 75s, or 1m30s 60s")
        time, *told = [self.duration(word, name) for word in words]
        if told:
            self.warnings.append(f"{name}: clients are not told of {told[0]} in a Keep-Alive header")
        return time

    def size(self, text: str, _name: str) -> str:
        """Read a size as nginx does: a number without a unit is in bytes."""
        found = _SIZE.fullmatch(text)
        if not found:
            raise FieldError(f"expected a size as nginx writes it, not {shown(text)}", cure="write 500, 8k or 10m")
        return found[1] + _UNITS[found[2].lower()]

    def log_file(self, text: str, name: str) -> str | None:
        """Read the path of a log, relative to the prefix, and drop the name of a format behind it."""
        path, _, form = text.partition(" ")
        if form:
            self.warnings.append(f"{name}: the format {form.strip()} is not simulated")
        return path if path == "off" else str(self.prefix / path)

    def addresses(self, text: str, name: str) -> list[str] | str:
        """Read addresses with flags; those for TLS are left out, with a line."""
        entries = [entry.strip() for entry in text.split(",") if entry.strip()]
        if entries[:1] == ["off"]:
            return "off"
        addresses: list[str] = []
        for entry in entries:
            address, *flags = entry.split()
            self._check_entry(entry, address, flags)
            if _NO_TLS & set(flags):
                self.warnings.append(f"{name}: {entry} is left out: connections are plain HTTP/1.1")
                continue
            of_socket = [flag for flag in flags if flag != "proxy_protocol"]
            if of_socket != flags:
                told = "a proxy that speaks it gets 400"
                self.warnings.append(f"{name}: proxy_protocol of {address} is not simulated: {told}")
            if of_socket:
                told = "all workers share one socket, and its queue is not set"
                self.warnings.append(f"{name}: {' '.join(of_socket)} of {address} is not simulated: {told}")
            addresses.append(address)
        if not addresses:
            raise FieldError("no address without TLS is left", cure="add one, such as 127.0.0.1:8000")
        return addresses

    def _check_entry(self, entry: str, address: str, flags: list[str]) -> None:
        unknown = [flag for flag in flags if flag not in _NO_TLS and not _OF_THE_SOCKET.fullmatch(flag)]
        if unknown:
            raise FieldError(f"unknown flag {shown(unknown[0])} in {shown(entry)}", cure=f"write {_LISTEN_USAGE}")
        try:
            parse_address(address)
        except FieldError:
            raise FieldError(f"expected host:port, not {shown(entry)}", cure=f"write {_LISTEN_USAGE}") from None


_NUMBER: Final = "[0-9]{1,18}"
_SIZE: Final = re.compile(f"({_NUMBER})([kKmMgG]?)")
_UNITS: Final = {"": "B", "k": "KiB", "m": "MiB", "g": "GiB"}
_TIME: Final = re.compile("".join(f"(?:{_NUMBER}{unit} *)?" for unit in ("w", "d", "h", "m(?!s)", "(?:s|$)", "ms")))
_WEEKS: Final = re.compile("([0-9]+)w")

_Convert = Callable[[_Reader, str, str], Any]

_SETTINGS: Final[Mapping[str, tuple[str, _Convert]]] = {
    "PROXY_LISTEN": ("listen", _Reader.addresses),
    "STATUS_LISTEN": ("status_listen", _Reader.addresses),
    "LOG_LEVEL": ("log_level", _Reader.text),
    "PROXY_ERROR_LOG": ("error_log", _Reader.log_file),
    "PROXY_ACCESS_LOG": ("access_log", _Reader.log_file),
    "NGINX_MAIN_WORKER_PROCESSES": ("workers", _Reader.number),
    "NGINX_WORKER_PROCESSES": ("workers", _Reader.number),
    "NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT": ("nginx.worker_shutdown_timeout", _Reader.duration),
    "NGINX_MAIN_WORKER_CPU_AFFINITY": ("nginx.worker_cpu_affinity", _Reader.text),
    "NGINX_EVENTS_WORKER_CONNECTIONS": ("nginx.worker_connections", _Reader.number),
    "NGINX_HTTP_LUA_MAX_PENDING_TIMERS": ("nginx.lua_max_pending_timers", _Reader.number),
    "LUA_MAX_PENDING_TIMERS": ("nginx.lua_max_pending_timers", _Reader.number),
    "NGINX_HTTP_LUA_MAX_RUNNING_TIMERS": ("nginx.lua_max_running_timers", _Reader.number),
    "LUA_MAX_RUNNING_TIMERS": ("nginx.lua_max_running_timers", _Reader.number),
    "NGINX_HTTP_CLIENT_HEADER_TIMEOUT": ("nginx.client_header_timeout", _Reader.duration),
    "NGINX_HTTP_CLIENT_BODY_TIMEOUT": ("nginx.client_body_timeout", _Reader.duration),
    "NGINX_HTTP_CLIENT_MAX_BODY_SIZE": ("nginx.client_max_body_size", _Reader.size),
    "NGINX_HTTP_SEND_TIMEOUT": ("nginx.send_timeout", _Reader.duration),
    "NGINX_HTTP_KEEPALIVE_TIMEOUT": ("nginx.keepalive_timeout", _Reader.keepalive),
    "NGINX_HTTP_KEEPALIVE_REQUESTS": ("nginx.keepalive_requests", _Reader.number),
    "TRUSTED_IPS": ("trusted_ips", _Reader.words),
    "REAL_IP_HEADER": ("real_ip_header", _Reader.text),
    "REAL_IP_RECURSIVE": ("real_ip_recursive", _Reader.switch),
    "LUA_SSL_TRUSTED_CERTIFICATE": ("nginx.lua_ssl_trusted_certificate", _Reader.text),
    "TRACING_INSTRUMENTATIONS": ("tracing.instrumentations", _Reader.words),
    "OPENTELEMETRY_TRACING": ("tracing.instrumentations", _Reader.words),
    "TRACING_SAMPLING_RATE": ("tracing.sampling_rate", _Reader.number),
    "OPENTELEMETRY_TRACING_SAMPLING_RATE": ("tracing.sampling_rate", _Reader.number),
}
"""Variables, the field of the settings that each sets, and how its text is read; the newer name of a setting first."""

_SAID_ELSEWHERE: Final = frozenset({"DECLARATIVE_CONFIG", "PLUGINS", "PREFIX"})

_HARMLESS: Final[Mapping[str, tuple[str, ...]]] = {
    "DATABASE": ("off",),
    "ROLE": ("traditional",),
    "ROUTER_FLAVOR": ("traditional", "traditional_compatible"),
    "ADMIN_LISTEN": ("off",),
    "ADMIN_GUI_LISTEN": ("off",),
    "STREAM_LISTEN": ("off",),
    "CLUSTER_LISTEN": ("off",),
    "NGINX_DAEMON": ("off",),
    "ANONYMOUS_REPORTS": ("off", "false"),
    "VITALS": ("off",),
}
"""Variables whose usual value asks for what is the case anyway."""
