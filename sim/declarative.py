"""Kong's declarative format: services, routes and plugins, from a ``kong.yml`` or from the part of a scenario.

Formats 1.1, 2.1 and 3.0; routes and plugins nested in what they belong to, or beside it with a reference by name or id.
A field that is null counts as left out. What Kong knows and this gateway does not simulate is never passed over in
silence: where it would decide which requests are answered and how, the file is refused; where it works beside the
request, or is another plugin, a warning names it. Both carry file and line.
"""

import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

from pydantic import Field
from ruamel.yaml.comments import CommentedMap

from sim import plugin as plugins
from sim.config import (
    Addresses,
    Export,
    FileOrOff,
    FilePath,
    Gateway,
    Listen,
    LogLevel,
    Nginx,
    Plugin,
    ProfileName,
    Route,
    Service,
    Tracing,
    Url,
    Workers,
    available_cpus,
)
from sim.document import Document, FieldPath, Model, Override, not_built
from sim.errors import UserError, nearest, shown
from sim.plugins import BUNDLED

FORMAT_VERSIONS: Final = ("1.1", "2.1", "3.0")

_BUNDLED: Final = frozenset(
    "acl acme ai-azure-content-safety ai-prompt-decorator ai-prompt-guard ai-prompt-template ai-proxy"  # noqa: SIM905 - readable
    " ai-request-transformer ai-response-transformer aws-lambda azure-functions basic-auth bot-detection"
    " correlation-id cors datadog file-log grpc-gateway grpc-web hmac-auth http-log ip-restriction jwt key-auth"
    " ldap-auth loggly oauth2 opentelemetry post-function pre-function prometheus proxy-cache rate-limiting redirect"
    " request-size-limiting request-termination request-transformer response-ratelimiting response-transformer session"
    " standard-webhooks statsd syslog tcp-log udp-log zipkin".split()
)
"""The plugins that come with Kong: a file may name them, a warning says which do nothing here."""

_LABELS: Final = frozenset({"tags", "created_at", "updated_at", "_comment", "_ignore"})
"""Fields that label an entity and change nothing."""

_FILE_LABELS: Final = frozenset({"_transform", "_comment", "_ignore", "_info", "_workspace"})

_HTTP: Final = (["http"], ["https"], ["http", "https"], ["https", "http"])

_Table = Mapping[tuple[str, str], tuple[tuple[object, ...], str]]

_LEFT_ASIDE: Final[_Table] = {
    ("file", "consumers"): (([],), "nobody is authenticated"),
    ("file", "consumer_groups"): (([],), "nobody is authenticated"),
    ("file", "certificates"): (([],), "connections are plain HTTP"),
    ("file", "ca_certificates"): (([],), "connections are plain HTTP"),
    ("file", "snis"): (([],), "connections are plain HTTP"),
    ("file", "vaults"): (([],), "references to secrets stay as they are"),
    ("route", "request_buffering"): ((True,), "there is nothing to switch off"),
    ("route", "response_buffering"): ((True,), "there is nothing to switch off"),
    ("route", "regex_priority"): ((0,), "no path is a regular expression"),
    ("route", "https_redirect_status_code"): ((426,), "connections are plain HTTP"),
}
"""Fields by kind of entity: the values that ask for nothing, and why any other is left aside with a warning."""

_REFUSED: Final[_Table] = {
    ("file", "upstreams"): (([],), "it balances load over targets"),
    ("file", "targets"): (([],), "it balances load over targets"),
    ("service", "enabled"): ((True,), "it switches a service off"),
    ("service", "client_certificate"): ((), "it needs TLS"),
    ("service", "ca_certificates"): (([],), "it needs TLS"),
    ("service", "tls_verify"): ((False,), "it needs TLS"),
    ("service", "tls_verify_depth"): ((), "it needs TLS"),
    ("route", "protocols"): (_HTTP, "it matches on other protocols than HTTP"),
    ("route", "headers"): (({},), "it matches on headers"),
    ("route", "snis"): (([],), "it matches on TLS names"),
    ("route", "sources"): (([],), "it matches on TCP addresses"),
    ("route", "destinations"): (([],), "it matches on TCP addresses"),
    ("route", "expression"): ((), "it matches by an expression"),
    ("route", "priority"): ((0,), "it orders expressions"),
    ("route", "path_handling"): (("v0",), "it joins paths another way"),
    ("plugin", "protocols"): ((*_HTTP, ["grpc", "grpcs", "http", "https"]), "it is for some protocols"),
    ("plugin", "consumer"): ((), "it is for one consumer"),
    ("plugin", "consumer_group"): ((), "it is for a group of consumers"),
    ("plugin", "ordering"): ((), "it orders plugins other than by priority"),
    ("plugin", "condition"): ((), "it is for some requests"),
}
"""Fields by kind of entity: the values that ask for nothing, and what any other would do; such a file is refused."""


_ENDPOINT_CURE: Final = "add traces_endpoint: http://127.0.0.1:4318/v1/traces"


class Entities(NamedTuple):
    """Services, routes and plugins, flat, with references by name, and what was left aside."""

    services: tuple[Service, ...]
    routes: tuple[Route, ...]
    plugins: tuple[Plugin, ...]
    warnings: tuple[str, ...]


class _Settings(Model):
    """What a gateway of its own is told beside the file."""

    listen: Listen = ("127.0.0.1:8000",)
    status_listen: Addresses = ("127.0.0.1:8007",)
    log_level: LogLevel = "notice"
    error_log: FilePath | None = None
    access_log: FileOrOff = None
    pid: FilePath | None = None
    workers: Workers = Field(default_factory=available_cpus)
    profile: ProfileName = "kong"
    tracing: Tracing = Tracing()
    nginx: Nginx = Nginx()
    collector: Url | None = None


def load(
    file: str, settings: Iterable[Override] = (), export: Export | None = None, plugin_paths: Iterable[str] = ()
) -> Gateway:
    """Read a ``kong.yml`` for a gateway of its own; raises UserError.

    ``settings`` are the fields of :class:`Gateway` that are not entities, and ``collector``, the URL for the
    opentelemetry plugins that name none; without it, and without an endpoint in ``export``, each has to.
    ``plugin_paths`` are the files or modules of further plugins.
    """
    export = export or Export()
    told = Document("settings", CommentedMap())
    for setting in settings:
        told.set(setting)
    told_settings = told.validate(_Settings, told.plain())
    collector = told_settings.collector or export.traces_endpoint
    classes = plugins.load(plugin_paths, BUNDLED)
    entities = read_entities(Document.read(file), provided={"collector"} if collector else (), classes=classes)
    values = {name: getattr(told_settings, name) for name in _Settings.model_fields if name != "collector"}
    values |= {"plugin_classes": classes, "seed": secrets.randbits(32), "export": export}
    gateway = Gateway.model_validate({**values, **entities._asdict()})
    return gateway.exporting_to(collector) if collector else gateway


def is_kong_yml(document: Document) -> bool:
    """Whether a file is a Kong declarative file, and not a scenario."""
    return "_format_version" in document.root


def read_entities(
    document: Document, path: FieldPath = (), *, provided: Collection[str] = (), classes: plugins.Classes = BUNDLED
) -> Entities:
    """Read services, routes and plugins, nested or not, from the mapping at ``path``.

    Args:
        document: the file.
        path: where in the file they stand.
        provided: built-in servers, by name. With ``collector``, a plugin that exports traces need not say where to;
            with others, a service whose host is a single word has to name one of these.
        classes: the plugins that there are.

    Raises:
        UserError: a mistake in the file, or something that is not built yet.
    """
    reader = _EntityReader(document, provided, classes)
    reader.file(document.plain(path), path)
    return Entities(tuple(reader.services), tuple(reader.routes), tuple(reader.plugins), tuple(reader.warnings))


class _EntityReader:
    """Walks a declarative file and flattens it."""

    def __init__(self, document: Document, provided: Collection[str], classes: plugins.Classes) -> None:
        self.document = document
        self.classes = classes
        self.collector_provided = "collector" in provided
        self.upstreams = sorted(name for name in provided if name != "collector")
        self.services: list[Service] = []
        self.routes: list[Route] = []
        self.plugins: list[Plugin] = []
        self.warnings: list[str] = []
        self._names: dict[tuple[str, str], str] = {}
        self._scopes: set[tuple[str, str | None, str | None]] = set()

    def file(self, data: Any, path: FieldPath) -> None:
        """Read the mapping that holds all lists."""
        data = self._simulated("file", data, path)
        version = data.pop("_format_version", FORMAT_VERSIONS[-1])
        if version not in FORMAT_VERSIONS:
            raise self.document.error(
                f"expected one of {', '.join(FORMAT_VERSIONS)}, not {shown(version)}",
                (*path, "_format_version"),
                cure="put it in quotes" if str(version) in FORMAT_VERSIONS else None,
            )
        entries = {key: self._entries(data, key, path) for key in ("services", "routes", "plugins")}
        for key in data:
            known = ("services", "routes", "plugins", "_format_version")
            raise self.document.error("unknown field", (*path, key), cure=nearest(key, known))
        for entry, where in entries["services"]:
            self._service(entry, where)
        for entry, where in entries["routes"]:
            self._route(entry, where, None)
        for entry, where in entries["plugins"]:
            self._plugin(entry, where, {})

    def _service(self, data: Any, path: FieldPath) -> None:
        data = self._simulated("service", data, path)
        routes, plugins = self._entries(data, "routes", path), self._entries(data, "plugins", path)
        data.setdefault("name", f"service-{len(self.services) + 1}")
        service = self.document.validate(Service, data, path)
        self._check_host(service.host, (*path, "url" if "url" in data else "host"))
        self.services.append(service)
        self._declare("service", service, path)
        for entry, where in routes:
            self._route(entry, where, service.name)
        for entry, where in plugins:
            self._plugin(entry, where, {"service": service.name})

    def _check_host(self, host: str, path: FieldPath) -> None:
        one_word = re.fullmatch(r"[A-Za-z0-9_-]+", host, re.ASCII)
        if self.upstreams and one_word and host not in self.upstreams and host != "localhost":
            raise self.document.error(f"there is no upstream {host}", path, cure=nearest(host, self.upstreams))

    def _route(self, data: Any, path: FieldPath, service: str | None) -> None:
        data = self._simulated("route", data, path)
        plugins = self._entries(data, "plugins", path)
        for index, value in enumerate(data["paths"] if isinstance(data.get("paths"), list) else ()):
            if isinstance(value, str) and value.startswith("~"):
                raise self._not_built(value, "paths are prefixes", (*path, "paths", index), cure="begin it with /")
        data.setdefault("name", f"route-{len(self.routes) + 1}")
        data["service"] = self._scope("service", data, path, service)
        if data["service"] is None:
            raise self._not_built("a route without service", "each route leads to a service", path, cure="add it")
        route = self.document.validate(Route, data, path)
        self.routes.append(route)
        self._declare("route", route, path)
        for entry, where in plugins:
            self._plugin(entry, where, {"route": route.name})

    def _plugin(self, data: Any, path: FieldPath, scope: Mapping[str, str]) -> None:
        data = self._simulated("plugin", data, path)
        for kind in ("service", "route"):
            data[kind] = self._scope(kind, data, path, scope.get(kind))
        data["config"] = _without_nulls(data.get("config", {}))
        plugin = self.document.validate(Plugin, data, path)
        if not plugin.enabled:
            return
        if plugin.name not in self.classes:
            self._leave_aside(plugin.name, path)
            return
        if (model := getattr(self.classes[plugin.name], "Config", None)) is not None:
            self.document.validate(model, plugin.config, (*path, "config"))
        if plugin.lacks_endpoint and not self.collector_provided:
            raise self.document.error("missing", (*path, "config", "traces_endpoint"), cure=_ENDPOINT_CURE)
        identity = (plugin.name, plugin.service, plugin.route)
        if identity in self._scopes:
            raise self.document.error(f"a second {plugin.name} for the same requests", path, cure="keep one of them")
        self._scopes.add(identity)
        self.plugins.append(plugin)

    def _leave_aside(self, name: str, path: FieldPath) -> None:
        if name not in _BUNDLED:
            message, cure = f"there is no plugin {shown(name)}", nearest(name, self.classes)
            raise self.document.error(message, (*path, "name"), cure=cure)
        self._warn(f"plugin {name} is not simulated: requests pass as if it were absent", (*path, "name"))

    def _simulated(self, kind: str, data: Any, path: FieldPath) -> dict[str, Any]:
        """Return the fields that are simulated; the others are refused, warned of, or only labels."""
        if not isinstance(data, dict):
            raise self.document.error(f"expected a mapping of fields, not {shown(data)}", path)
        labels = _FILE_LABELS if kind == "file" else _LABELS
        return {
            key: value
            for key, value in data.items()
            if key not in labels and value is not None and self._is_simulated((kind, key), value, (*path, key))
        }

    def _is_simulated(self, field: tuple[str, str], value: object, path: FieldPath) -> bool:
        for table in (_REFUSED, _LEFT_ASIDE):
            if field not in table:
                continue
            harmless, meaning = table[field]
            if value in harmless:
                return False
            if table is _REFUSED:
                raise self._not_built(field[1], meaning, path)
            self._warn(f"{field[1]} is not simulated: {meaning}", path)
            return False
        return True

    def _entries(self, data: dict[str, Any], key: str, path: FieldPath) -> list[tuple[Any, FieldPath]]:
        entries = data.pop(key, None)
        if not isinstance(entries, list | None):
            raise self.document.error(f"expected a list, not {shown(entries)}", (*path, key), cure="begin each with -")
        return [(entry, (*path, key, index)) for index, entry in enumerate(entries or ())]

    def _scope(self, kind: str, data: dict[str, Any], path: FieldPath, nested_in: str | None) -> str | None:
        """Return the name of the entity that ``data`` refers to, or that it is nested in."""
        given = data.pop(kind, None)
        if given is None:
            return nested_in
        key = next((given[k] for k in ("name", "id") if k in given), None) if isinstance(given, dict) else given
        name = self._names.get((kind, key)) if isinstance(key, str) else None
        if name is None or nested_in not in {None, name}:
            known = [known for other, known in self._names if other == kind]
            raise self.document.error(f"there is no {kind} {shown(key)}", (*path, kind), cure=nearest(key, known))
        return name

    def _declare(self, kind: str, entity: Service | Route, path: FieldPath) -> None:
        if (kind, entity.name) in self._names:
            message = f"a second {kind} named {shown(entity.name)}"
            raise self.document.error(message, (*path, "name"), cure="give it another name")
        self._names[kind, entity.name] = self._names[kind, entity.id] = entity.name

    def _not_built(self, word: str, meaning: str, path: FieldPath, *, cure: str | None = None) -> UserError:
        error = not_built(word, meaning)
        return self.document.error(error.message, path, cure=cure or error.cure)

    def _warn(self, message: str, path: FieldPath) -> None:
        self.warnings.append(str(self.document.error(message, path)))


def _without_nulls(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_nulls(value) for key, value in data.items() if value is not None}
    return data
