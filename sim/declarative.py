"""Kong's declarative format: services, routes and plugins, from a ``kong.yml`` or from the part of a scenario.

Formats 1.1, 2.1 and 3.0; routes and plugins nested in what they belong to, or beside it with a reference by name or id.
A field that is null counts as left out. What Kong knows and this gateway does not simulate is never passed over in
silence: where it would decide which requests are answered and how, the file is refused; where it works beside the
request, or is another plugin, a warning names it. Both carry file and line.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, Final, NamedTuple, NoReturn

from pydantic import Field
from ruamel.yaml.comments import CommentedMap

from sim import plugin as plugins
from sim.config import (
    Addresses,
    Export,
    FileOrOff,
    FilePath,
    Gateway,
    IpBlock,
    Listen,
    LogLevel,
    Nginx,
    ProfileName,
    RealIpHeader,
    Tracing,
    Workers,
    available_cpus,
)
from sim.document import Document, FieldPath, Model, Override
from sim.entity import Plugin, Route, Service, Target, Upstream
from sim.errors import UserError, asked_for, nearest, shown
from sim.field import Many, Url
from sim.plugins import BUNDLED
from sim.plugins.stand_in import PRIORITIES, stand_ins
from sim.plugins.synthetic import SyntheticConfig

FORMAT_VERSIONS: Final = ("1.1", "2.1", "3.0")

_BUNDLED: Final = frozenset(
    "acl acme ai-azure-content-safety ai-prompt-decorator ai-prompt-guard ai-prompt-template ai-proxy"  # noqa: SIM905 - readable
    " ai-request-transformer ai-response-transformer aws-lambda azure-functions basic-auth bot-detection"
    " correlation-id cors datadog file-log grpc-gateway grpc-web hmac-auth http-log ip-restriction jwt key-auth"
    " ldap-auth loggly oauth2 opentelemetry post-function pre-function prometheus proxy-cache rate-limiting redirect"
    " request-size-limiting request-termination request-transformer response-ratelimiting response-transformer session"
    " standard-webhooks statsd syslog tcp-log udp-log zipkin".split()
)
"""The plugins that come with Kong."""

_LABELS: Final = frozenset({"tags", "created_at", "updated_at", "_comment", "_ignore"})
"""Fields that label an entity and change nothing."""

_FILE_LABELS: Final = frozenset({"_transform", "_comment", "_ignore", "_info", "_workspace", "_konnect"})

_Table = Mapping[tuple[str, str], tuple[tuple[object, ...], str]]

_NO_CONSUMERS: Final = "nobody is authenticated"
_NO_TLS: Final = "connections are plain HTTP"

_CREDENTIALS: Final = (
    "acls",
    "basicauth_credentials",
    "hmacauth_credentials",
    "jwt_secrets",
    "keyauth_credentials",
    "keyauth_enc_credentials",
    "mtls_auth_credentials",
    "oauth2_authorization_codes",
    "oauth2_credentials",
    "oauth2_tokens",
    "consumer_group_consumers",
    "consumer_group_plugins",
)
"""What plugins add to the entities of Kong."""

_LEFT_ASIDE: Final[_Table] = {
    ("file", "consumers"): (([],), _NO_CONSUMERS),
    ("file", "consumer_groups"): (([],), _NO_CONSUMERS),
    **{("file", credentials): (([],), _NO_CONSUMERS) for credentials in _CREDENTIALS},
    ("file", "certificates"): (([],), _NO_TLS),
    ("file", "ca_certificates"): (([],), _NO_TLS),
    ("file", "snis"): (([],), _NO_TLS),
    ("file", "vaults"): (([],), "references to secrets stay as they are"),
    ("file", "key_sets"): (([],), "nothing is signed or verified"),
    ("file", "keys"): (([],), "nothing is signed or verified"),
    ("file", "filter_chains"): (([],), "WebAssembly filters do not run"),
    ("file", "partials"): (([],), "no plugin here takes one"),
    ("file", "rbac_roles"): (([],), "there is no Admin API"),
    ("service", "client_certificate"): ((), _NO_TLS),
    ("service", "ca_certificates"): (([],), _NO_TLS),
    ("service", "tls_verify"): ((False,), _NO_TLS),
    ("service", "tls_verify_depth"): ((), _NO_TLS),
    ("route", "request_buffering"): ((True,), "there is nothing to switch off"),
    ("route", "response_buffering"): ((True,), "there is nothing to switch off"),
    ("upstream", "client_certificate"): ((), _NO_TLS),
    ("upstream", "use_srv_name"): ((False,), "addresses are looked up without SRV records"),
    ("upstream", "sticky_sessions_cookie"): ((), "no session is sticky"),
    ("upstream", "sticky_sessions_cookie_path"): (("/",), "no session is sticky"),
    ("plugin", "ordering"): ((), "plugins run by priority"),
    ("plugin", "partials"): (([],), "no plugin here takes one"),
    ("plugin", "condition"): ((), "it runs for every request"),
}
"""Fields by kind of entity: the values that ask for nothing, and what becomes of any other, which a warning tells."""

_LEFT_OUT: Final[_Table] = {
    ("route", "sources"): (([],), "it matches on TCP addresses"),
    ("route", "destinations"): (([],), "it matches on TCP addresses"),
    ("route", "expression"): ((), "it matches by an expression"),
    ("plugin", "consumer"): ((), "it is for one consumer, and " + _NO_CONSUMERS),
    ("plugin", "consumer_group"): ((), "it is for a group of consumers, and " + _NO_CONSUMERS),
}
"""Fields by kind of entity: the values that ask for nothing; with any other the whole entity is left out."""

_KINDS: Final = ("upstreams", "targets", "services", "routes", "plugins")

_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9._~/%-]*")
"""What was no regular expression before format 3.0, where a `~` tells."""

_UNNEEDED_TRIPLET: Final = re.compile("%([0-9A-Fa-f]{2})")
_RESERVED: Final = frozenset("!#$%&'()*+,/:;=?@[]")

_OTHER_PROTOCOLS: Final = frozenset({"grpc", "grpcs", "tcp", "tls", "tls_passthrough", "udp", "ws", "wss"})

_LOOKS_LIKE_REGEX: Final = re.compile(r"[$*+?()\[\]{}|^\\]")


_STAND_IN: Final = "a stand-in can give it a cost"

_OWN: Final = "it is one of your own, name its file with --plugin FILE, in a scenario in gateway.plugin_paths"

_ENDPOINT_CURE: Final = "add traces_endpoint: http://127.0.0.1:4318/v1/traces"


class Entities(NamedTuple):
    """What a file describes, flat, with references by name, and what was left aside."""

    upstreams: tuple[Upstream, ...]
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
    nginx: Nginx = Field(default_factory=Nginx)
    trusted_ips: Many[IpBlock] = ()
    real_ip_header: RealIpHeader = "X-Real-IP"
    real_ip_recursive: bool = False
    collector: Url | None = None
    stand_ins: dict[str, SyntheticConfig] = Field(default_factory=dict)


def read(file: str) -> Document:
    """Read a file that is to be a ``kong.yml``; raises UserError when it cannot be one."""
    document = Document.read(file)
    if not is_kong_yml(document) and {"gateway", "load"} & document.root.keys():
        raise UserError("is a scenario, expected a kong.yml", file=file, cure="run it with kongsim run")
    return document


def load(
    file: str | Document,
    settings: Iterable[Override] = (),
    export: Export | None = None,
    *,
    enabled: Collection[str] | None = None,
    plugin_paths: Iterable[str] = (),
    seed: int = 0,
) -> Gateway:
    """Read a ``kong.yml`` for a gateway of its own; raises UserError.

    ``settings`` are the fields of :class:`Gateway` that are not entities; ``collector``, the URL for the opentelemetry
    plugins that name none: without it, and without an endpoint in ``export``, each has to; and ``stand_ins``.
    ``enabled`` are the plugins that the file may name, as ``KONG_PLUGINS`` lists them.
    ``plugin_paths`` are the files or modules of further plugins, as ``--plugin`` names them. ``seed`` is that of every
    random draw; the node's id follows from it, so it stays when the file is read again.
    """
    export = export or Export()
    told = Document("settings", CommentedMap())
    for setting in settings:
        told.set(setting)
    told_settings = told.validate(_Settings, told.plain())
    collector = told_settings.collector or export.traces_endpoint
    with asked_for("--plugin"):
        loaded = plugins.load(plugin_paths, BUNDLED)
    classes = with_stand_ins(loaded, told_settings.stand_ins, told, ("stand_ins",))
    if enabled is not None:
        enabled = {*enabled, *(name for name in classes if name not in BUNDLED)}
    provided = {"collector"} if collector else ()
    document = read(file) if isinstance(file, str) else file
    if document.root.get("_format_version") is None:
        raise document.error("missing", ("_format_version",), cure=f'add _format_version: "{FORMAT_VERSIONS[-1]}"')
    entities = read_entities(document, provided=provided, enabled=enabled, classes=classes)
    require_use(told_settings.stand_ins, entities, told, ("stand_ins",))
    if told_settings.collector and not any(plugin.lacks_endpoint for plugin in entities.plugins):
        unused = told.error("nothing is exported there: no opentelemetry plugin leaves out where to", ("collector",))
        entities = entities._replace(warnings=(*entities.warnings, str(unused)))
    beside = {"collector", "stand_ins"}
    values = {name: getattr(told_settings, name) for name in _Settings.model_fields if name not in beside}
    values |= {"plugin_classes": classes, "seed": seed, "export": export}
    gateway = Gateway.model_validate({**values, **entities._asdict()})
    return gateway.exporting_to(collector) if collector else gateway


def with_stand_ins(
    classes: plugins.Classes, configs: Mapping[str, SyntheticConfig], document: Document, path: FieldPath
) -> dict[str, plugins.PluginClass]:
    """Return the plugins with the stand-ins that stand at ``path``; raises UserError when one is not needed."""
    for name in configs:
        if name in classes and name not in PRIORITIES:
            raise document.error(f"plugin {name} runs itself and needs no stand-in", (*path, name), cure="leave it out")
    return {**classes, **stand_ins(configs)}


def require_use(names: Iterable[str], entities: Entities, document: Document, path: FieldPath) -> None:
    """Raise UserError when nobody needs a stand-in that stands at ``path``."""
    used = {plugin.name for plugin in entities.plugins}
    for name in names:
        if name not in used:
            message = f"there is no plugin {name} in the configuration to stand in for"
            raise document.error(message, (*path, name), cure="name one that a warning calls not simulated")


def is_kong_yml(document: Document) -> bool:
    """Whether a file is a Kong declarative file, which says so or has entities at its top, and not a scenario."""
    fields = document.root.keys()
    has_entities = bool({"services", "routes", "plugins"} & fields)
    return "_format_version" in fields or (has_entities and not {"gateway", "load"} & fields)


def read_entities(
    document: Document,
    path: FieldPath = (),
    *,
    provided: Collection[str] = (),
    enabled: Collection[str] | None = None,
    classes: plugins.Classes = BUNDLED,
) -> Entities:
    """Read services, routes and plugins, nested or not, from the mapping at ``path``.

    Args:
        document: the file.
        path: where in the file they stand.
        provided: built-in servers, by name. With ``collector``, a plugin that exports traces need not say where to;
            with others, a service whose host is a single word has to name one of these.
        enabled: plugins that the file may name, ``bundled`` being those of Kong; None: all.
        classes: the plugins that there are.

    Raises:
        UserError: a mistake in the file, or something that is not built yet.
    """
    reader = _EntityReader(document, provided, enabled, classes)
    reader.file(document.plain(path), path)
    reader.tell_of_idle_plugins(path)
    return reader.entities()


class _LeftOutError(Exception):
    """An entity cannot be simulated and is left out; a warning has told so."""


class _EntityReader:
    """Walks a declarative file and flattens it."""

    def __init__(
        self,
        document: Document,
        provided: Collection[str],
        enabled: Collection[str] | None = None,
        classes: plugins.Classes = BUNDLED,
    ) -> None:
        self.document = document
        bundled = {*_BUNDLED, *BUNDLED}
        self.enabled = None if enabled is None else {*enabled, *(bundled if "bundled" in enabled else ())}
        self.classes = classes
        self.collector_provided = "collector" in provided
        self.origins = sorted(name for name in provided if name != "collector")
        self.version = FORMAT_VERSIONS[-1]
        self.upstreams: dict[str, Upstream] = {}
        self.targets: defaultdict[str, list[Target]] = defaultdict(list)
        self.services: list[Service] = []
        self.routes: list[Route] = []
        self.plugins: list[Plugin] = []
        self.warnings: list[str] = []
        self._shared: Any = {}
        self._hosts: list[tuple[str, FieldPath]] = []
        self._names: dict[tuple[str, str], str] = {}
        self._left_out: set[tuple[str, str]] = set()
        self._scopes: set[tuple[str, str | None, str | None]] = set()

    def entities(self) -> Entities:
        """Return what was read."""
        upstreams = (u.model_copy(update={"targets": tuple(self.targets[n])}) for n, u in self.upstreams.items())
        disabled = {service.name for service in self.services if not service.enabled}
        routes = (route for route in self.routes if route.service not in disabled)
        return Entities(
            tuple(upstreams), tuple(self.services), tuple(routes), tuple(self.plugins), tuple(self.warnings)
        )

    def file(self, data: Any, path: FieldPath) -> None:
        """Read the mapping that holds all lists."""
        told = data.get("_info") if isinstance(data, dict) else None
        if isinstance(told, dict) and told.get("defaults"):
            self._warn("not simulated: what is left out has Kong's defaults", (*path, "_info", "defaults"))
        data = self._simulated("file", data, path)
        self._shared = data.pop("_plugin_configs", {})
        self.version = data.pop("_format_version", FORMAT_VERSIONS[-1])
        if self.version not in FORMAT_VERSIONS:
            raise self.document.error(
                f"expected one of {', '.join(FORMAT_VERSIONS)}, not {shown(self.version)}",
                (*path, "_format_version"),
                cure="put it in quotes" if str(self.version) in FORMAT_VERSIONS else None,
            )
        entries = {key: self._entries(data, key, path) for key in _KINDS}
        for key in data:
            raise self.document.error("unknown field", (*path, key), cure=nearest(key, (*_KINDS, "_format_version")))
        for entry, where in entries["upstreams"]:
            self._read(self._upstream, entry, where)
        for entry, where in entries["targets"]:
            self._read(self._target, entry, where, None)
        for entry, where in entries["services"]:
            self._read(self._service, entry, where)
        for entry, where in entries["routes"]:
            self._read(self._route, entry, where, None)
        for entry, where in entries["plugins"]:
            self._read(self._plugin, entry, where, {})
        for host, where in self._hosts:
            self._check_host(host, where)

    def _read(self, read: Callable[..., None], *given: Any) -> None:
        with suppress(_LeftOutError):
            read(*given)

    def _upstream(self, data: Any, path: FieldPath) -> None:
        data = self._simulated("upstream", data, path)
        targets = self._entries(data, "targets", path)
        checks = without_nulls(data.get("healthchecks", {}))
        active = checks.get("active") if isinstance(checks, dict) else None
        for field in ("https_sni", "https_verify_certificate"):
            if isinstance(active, dict) and active.pop(field, True) is not True:
                self._warn(f"not simulated: {_NO_TLS}", (*path, "healthchecks", "active", field))
        data["healthchecks"] = checks
        upstream = self.document.validate(Upstream, data, path)
        self._declare("upstream", upstream, path)
        self.upstreams[upstream.name] = upstream
        probes = upstream.healthchecks.active
        if probes.type != "http" and (probes.healthy.interval or probes.unhealthy.interval):
            self._warn(f"probes of type {probes.type} do not run", (*path, "healthchecks", "active", "type"))
        if "consumer" in (upstream.hash_on, upstream.hash_fallback):
            field = "hash_on" if upstream.hash_on == "consumer" else "hash_fallback"
            self._warn(f"there is no consumer to hash: {_NO_CONSUMERS}", (*path, field))
        for entry, where in targets:
            self._read(self._target, entry, where, upstream.name)

    def _target(self, data: Any, path: FieldPath, upstream: str | None) -> None:
        data = self._simulated("target", data, path)
        name = self._scope("upstream", data, path, upstream)
        if name is None:
            raise self.document.error("missing", (*path, "upstream"), cure="name the upstream that it belongs to")
        data.pop("id", None)
        target = self.document.validate(Target, data, path)
        if any((target.host, target.port) == (other.host, other.port) for other in self.targets[name]):
            raise self.document.error("a second target of this address", (*path, "target"), cure="keep one of them")
        self.targets[name].append(target)
        self._hosts.append((target.host, (*path, "target")))

    def _service(self, data: Any, path: FieldPath) -> None:
        data = self._simulated("service", data, path)
        routes, plugins = self._entries(data, "routes", path), self._entries(data, "plugins", path)
        data.setdefault("name", f"service-{len(self.services) + 1}")
        self._require_protocol("service", data, path)
        service = self.document.validate(Service, data, path)
        field = "url" if "url" in data else "host"
        if service.protocol == "https":
            self._warn(f"TLS is not simulated: {service.host} gets plain HTTP on port {service.port}", (*path, field))
        self._hosts.append((service.host, (*path, field)))
        self.services.append(service)
        self._declare("service", service, path)
        for entry, where in routes:
            self._read(self._route, entry, where, service.name)
        for entry, where in plugins:
            self._read(self._plugin, entry, where, {"service": service.name})

    def _check_host(self, host: str, path: FieldPath) -> None:
        one_word = re.fullmatch(r"[A-Za-z0-9_-]+", host, re.ASCII)
        names = {"localhost", *(origin.lower() for origin in self.origins)}
        if self.origins and one_word and host not in self.upstreams and host.lower() not in names:
            cure = nearest(host, [*self.origins, *self.upstreams])
            raise self.document.error(f"there is no upstream {host}", path, cure=cure)

    def _require_protocol(self, kind: str, data: dict[str, Any], path: FieldPath) -> None:
        """Leave out what is for no protocol of the web."""
        field = "protocols" if "protocols" in data else "protocol"
        words = data.get(field, "http")
        given = words if isinstance(words, list) else [words]
        if not all(isinstance(word, str) for word in given) or {"http", "https"} & set(given):
            return
        if set(given) <= _OTHER_PROTOCOLS:
            self._leave_out(kind, data, f"it is for {', '.join(given)}, and connections are plain HTTP", (*path, field))

    def _leave_out(self, kind: str, data: dict[str, Any], why: str, path: FieldPath) -> NoReturn:
        self._left_out |= {(kind, data[key]) for key in ("name", "id") if isinstance(data.get(key), str)}
        self._warn(f"this {kind} is left out: {why}", path)
        raise _LeftOutError

    def _route(self, data: Any, path: FieldPath, service: str | None) -> None:
        data = self._simulated("route", data, path)
        plugins = self._entries(data, "plugins", path)
        self._require_protocol("route", data, path)
        if isinstance(data.get("paths"), list):
            data["paths"] = [self._path(value, (*path, "paths", i)) for i, value in enumerate(data["paths"])]
        data.setdefault("name", f"route-{len(self.routes) + 1}")
        data["service"] = self._scope("service", data, path, service)
        route = self.document.validate(Route, data, path)
        if route.snis:
            self._warn(f"snis are not compared: {_NO_TLS}", (*path, "snis"))
        self.routes.append(route)
        self._declare("route", route, path)
        for entry, where in plugins:
            self._read(self._plugin, entry, where, {"route": route.name})

    def _path(self, value: Any, path: FieldPath) -> Any:
        """Return a route's path as format 3.0 would have it."""
        if not isinstance(value, str) or value.startswith("~"):
            return value
        if self.version != FORMAT_VERSIONS[-1]:
            return value if _PLAIN_PATH.fullmatch(value) else f"~{_UNNEEDED_TRIPLET.sub(_decoded_in_regex, value)}"
        if _LOOKS_LIKE_REGEX.search(value):
            told = f"{shown(value)} is compared as it stands; a regular expression begins with ~/ since format 3.0"
            self._warn(told, path)
        return value

    def _plugin(self, data: Any, path: FieldPath, scope: Mapping[str, str]) -> None:
        data = self._simulated("plugin", data, path)
        self._require_protocol("plugin", data, path)
        data.pop("protocols", None)
        for kind in ("service", "route"):
            data[kind] = self._scope(kind, data, path, scope.get(kind))
        data["config"] = without_nulls(self._config_of(data, path))
        plugin = self.document.validate(Plugin, data, path)
        if "id" in data:
            self._require_new("plugin", "with the id", plugin.id, (*path, "id"))
            self._names["plugin", plugin.id] = plugin.name
        if not plugin.enabled:
            return
        if self.enabled is not None and plugin.name not in self.enabled:
            cure = "add it to KONG_PLUGINS, or unset that"
            if plugin.name not in _BUNDLED:
                cure = f"name its file with --plugin FILE, or {cure}"
            raise self.document.error(f"plugin {plugin.name} is not enabled", (*path, "name"), cure=cure)
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

    def tell_of_idle_plugins(self, path: FieldPath) -> None:
        """Warn of plugins of the user that nothing configures, as is easily forgotten, and of handlers in vain."""
        configured = {plugin.name for plugin in self.plugins}
        for name in sorted(self.classes.keys() - BUNDLED.keys() - configured):
            told = f"plugin {name} does not run: no plugin of that name is configured here and enabled"
            self._warn(told, (*path, "plugins"))
        for name in sorted(configured & self.classes.keys() - BUNDLED.keys()):
            self.warnings += plugins.uncalled(self.classes[name])

    def _config_of(self, data: dict[str, Any], path: FieldPath) -> Any:
        """Return a plugin's configuration; what it leaves out may stand in one that several share, as decK has it."""
        config, shared = data.get("config", {}), data.pop("_config", None)
        if shared is None or not isinstance(config, dict):
            return config
        known = self._shared if isinstance(self._shared, dict) else {}
        if not isinstance(shared, str) or not isinstance(known.get(shared), dict):
            message = f"there is no configuration {shown(shared)} in _plugin_configs"
            raise self.document.error(message, (*path, "_config"), cure=nearest(shared, known))
        return known[shared] | config

    def _leave_aside(self, name: str, path: FieldPath) -> None:
        """Warn of a plugin that is not here; one whose name looks misspelt is a mistake."""
        known = {*self.classes, *_BUNDLED}
        is_told_of = name in _BUNDLED or (self.enabled is not None and name in self.enabled)
        if not is_told_of and get_close_matches(name, known, n=1, cutoff=0.85):
            cure = f"{nearest(name, known)} If {_OWN}; else list it in KONG_PLUGINS, or give it a stand-in"
            raise self.document.error(f"there is no plugin {shown(name)}", (*path, "name"), cure=cure)
        cures = _STAND_IN if name in _BUNDLED else f"if {_OWN}; {_STAND_IN}"
        self._warn(f"plugin {name} is not simulated: requests pass as if it were absent; {cures}", (*path, "name"))

    def _simulated(self, kind: str, data: Any, path: FieldPath) -> dict[str, Any]:
        """Return the fields that are simulated; the others are only labels, or a warning tells what becomes of them."""
        if not isinstance(data, dict):
            raise self.document.error(f"expected a mapping of fields, not {shown(data)}", path)
        labels = _FILE_LABELS if kind == "file" else _LABELS - {"created_at"} if kind == "route" else _LABELS
        given = {key: value for key, value in data.items() if key not in labels and value is not None}
        for key, value in given.items():
            harmless, why = _LEFT_OUT.get((kind, key), (None, ""))
            if harmless is not None and value not in harmless:
                self._leave_out(kind, given, why, (*path, key))
        return {key: value for key, value in given.items() if self._is_simulated((kind, key), value, (*path, key))}

    def _is_simulated(self, field: tuple[str, str], value: object, path: FieldPath) -> bool:
        if field in _LEFT_OUT:
            return False
        if field not in _LEFT_ASIDE:
            return True
        harmless, consequence = _LEFT_ASIDE[field]
        if value not in harmless:
            self._warn(f"not simulated: {consequence}", path)
        return False

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
        if not isinstance(key, str):
            raise self.document.error(f"expected a name or an id, not {shown(given)}", (*path, kind))
        name = self._names.get((kind, key))
        if (kind, key) in self._left_out:
            raise _LeftOutError
        if name is None or nested_in not in {None, name}:
            known = dict.fromkeys(known for (other, _key), known in self._names.items() if other == kind)
            raise self.document.error(f"there is no {kind} {shown(key)}", (*path, kind), cure=nearest(key, known))
        return name

    def _declare(self, kind: str, entity: Upstream | Service | Route, path: FieldPath) -> None:
        self._require_new(kind, "named", entity.name, (*path, "name"))
        self._require_new(kind, "with the id", entity.id, (*path, "id"))
        self._names[kind, entity.name] = self._names[kind, entity.id] = entity.name

    def _require_new(self, kind: str, called: str, key: str, path: FieldPath) -> None:
        if (kind, key) in self._names:
            message = f"a second {kind} {called} {shown(key)}"
            raise self.document.error(message, path, cure=f"give it another {path[-1]}")

    def _warn(self, message: str, path: FieldPath) -> None:
        self.warnings.append(str(self.document.error(message, path)))


def without_nulls(data: Any) -> Any:
    """Return data without the fields that are null, at any depth of mappings: to Kong they are left out."""
    if isinstance(data, dict):
        return {key: without_nulls(value) for key, value in data.items() if value is not None}
    return data


def _decoded_in_regex(triplet: re.Match[str]) -> str:
    """Decode what needs no %-triplet, so that it stands for itself in a regular expression."""
    character = chr(int(triplet[1], 16))
    if character in _RESERVED:
        return triplet[0].upper()
    return f"\\{character}" if character in ".^-{}\\|" else character
