"""Scenario files: a gateway, what it stands between, the load on it, the faults in it, and what has to hold.

The words are those of k6 (``constant-arrival-rate``), Kong and nginx; ``docs/scenarios.md`` lists them all. Every value
carries its unit in the file and is a plain number here: seconds, requests per second, bytes. A word of the vocabulary
that this version cannot act on is refused by name; any other is an unknown field. Every mistake is a
:class:`~sim.errors.UserError` with file, line, field and cure, raised before anything is started.
"""

import math
import pathlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sim import plugin as plugins
from sim.config import (
    SYSTEM,
    Addresses,
    Gateway,
    Instrumentations,
    Listen,
    Nginx,
    ProfileName,
    Seed,
    Tracing,
    Workers,
    available_cpus,
    divided,
)
from sim.declarative import is_kong_yml, read_entities, require_use, with_stand_ins
from sim.document import Document, FieldPath, Model, NotEmpty, Override, matching
from sim.errors import FieldError, UserError, asked_for, nearest, shown
from sim.faults import Fault
from sim.field import Many, Rate01
from sim.plugin import is_file
from sim.plugins import BUNDLED
from sim.plugins.synthetic import SyntheticConfig
from sim.threshold import Threshold
from sim.threshold import parse as parse_threshold
from sim.units import Bytes, Seconds, format_duration
from sim.workload import ClosedLoad, Load, OpenLoad, duration_s

_NAME: Final = matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name of up to 64 letters, digits, dots and dashes")
Name = Annotated[str, _NAME]
"""A name that can be part of a host name and of a folder."""


def _probabilities(mix: dict[int, float]) -> dict[int, float]:
    if not math.isclose(sum(mix.values()), 1.0, abs_tol=1e-9):
        raise FieldError(f"the shares add up to {sum(mix.values()):g}, expected 1", cure="write {200: 0.99, 503: 0.01}")
    return mix


class Latency(Model):
    """Median and 99th percentile of a lognormal distribution, in seconds; equal ones are a fixed latency."""

    p50: Seconds
    p99: Seconds

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.p99 < self.p50:
            raise FieldError("is less than p50", field="p99", cure="write at least the value of p50")
        if self.p50 == 0 < self.p99:
            raise FieldError("is 0 where p99 is not", field="p50", cure="write more than 0")
        return self


Hosts = Many[Annotated[str, matching(r"[^\s/:]+", "a host name")]]


class Upstream(Model):
    """A built-in origin server, reached under its name as the host of a service or a target.

    Attributes:
        hosts: other names under which it is reached, such as those in a kong.yml of the real gateway.
        latency: from a request's last byte to its answer.
        status: share of each status among the answers.
        body: bytes of each answer's body.
        sampling_rate: of a sampler of its own, OpenTelemetry's ``traceidratio``; None: it has none.
    """

    latency: Latency = Latency(p50=0, p99=0)
    status: Annotated[
        dict[Annotated[int, Field(ge=200, le=599)], Annotated[float, Field(ge=0, le=1)]], AfterValidator(_probabilities)
    ] = Field(default_factory=lambda: {200: 1.0})
    body: Bytes = 0
    hosts: Hosts = ()
    sampling_rate: Rate01 | None = None


class Collector(Model):
    """The built-in collector.

    Attributes:
        latency: seconds from an export request's last byte to its answer.
        hosts: host names under which it is reached, such as that in a kong.yml of the real gateway.
    """

    latency: Seconds = 0.0
    hosts: Hosts = ()


class _Tracing(Tracing):
    """In a scenario tracing is on unless it says otherwise."""

    instrumentations: Instrumentations = ("all",)


class _Gateway(Model):
    """The gateway's part of the file."""

    listen: Listen = ("127.0.0.1:0",)
    status_listen: Addresses = ()
    workers: Workers = Field(default_factory=available_cpus)
    config: Any
    tracing: _Tracing = _Tracing()
    nginx: Nginx = Field(default_factory=Nginx)
    plugin_paths: Many[str] = ()
    stand_ins: dict[str, SyntheticConfig] = Field(default_factory=dict)


_PROCESSES: Final = frozenset({"collector", "master", "load"})


def _not_a_process(name: str) -> str:
    if name.lower() in _PROCESSES:
        raise FieldError(f"{name} is the name of another process of a run", cure="give the upstream another name")
    return name


class _File(Model):
    """The file as a whole."""

    name: Name
    profile: ProfileName = "kong"
    seed: Seed
    gateway: _Gateway
    upstreams: dict[Annotated[Name, AfterValidator(_not_a_process)], Upstream] = Field(default_factory=dict)
    collector: Collector = Collector()
    load: Annotated[Many[Load], NotEmpty]
    faults: Many[Fault] = ()
    thresholds: Many[Annotated[Threshold, BeforeValidator(parse_threshold)]] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario, checked.

    Attributes:
        name: what summary and run folder are called.
        faults: each as often as it comes.
        document: what it was read from, overrides, seed and ``kong.yml`` in place.
        kong_yml: the file that ``gateway.config`` names; None: it holds the configuration itself.
    """

    name: str
    profile: ProfileName
    seed: int
    gateway: Gateway
    upstreams: Mapping[str, Upstream]
    collector: Collector
    load: tuple[OpenLoad | ClosedLoad, ...]
    faults: tuple[Fault, ...]
    thresholds: tuple[Threshold, ...]
    document: Document = field(repr=False, compare=False)
    kong_yml: Document | None = field(repr=False, compare=False)

    @property
    def as_run(self) -> str:
        """The file as it is run: run this and get the same run."""
        return self.document.text()

    @property
    def duration_s(self) -> float:
        """How long requests arrive, in seconds: until the last load is over."""
        return duration_s(self.load)

    def addresses(self, servers: Mapping[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
        """Return where each name of the collector and of an upstream leads, given where these listen."""
        named: dict[str, Collector | Upstream] = {"collector": self.collector, **self.upstreams}
        return {host: servers[name] for name, server in named.items() for host in (name, *server.hosts)}

    def placed(self, error: UserError) -> UserError:
        """Return an error of the gateway's start with the file and line of its field."""
        if error.file is not None or error.field is None:
            return error
        return self.document.error(error.message, ("gateway", error.field), cure=error.cure)


def load(file: str | Document, overrides: Iterable[Override] = ()) -> Scenario:
    """Read and check a scenario; one without a seed gets a random one; raises UserError."""
    document = Document.read(file) if isinstance(file, str) else file
    if is_kong_yml(document):
        cure = "serve it with kongsim serve, or name it in the gateway.config of a scenario"
        raise UserError("is a kong.yml, expected a scenario", file=document.file, cure=cure)
    for override in overrides:
        document.set(override)
    if "seed" not in document.root:
        document.set(Override(("seed",), secrets.randbits(32), "drawn seed"))
    _place_authorities(document)
    content = document.validate(_File, document.plain())
    classes = with_stand_ins(_plugin_classes(document, content), content.gateway.stand_ins, document, _STAND_INS)
    kong_yml = _kong_yml(document, content)
    provided = {"collector", *content.upstreams, *_hosts(document, content)}
    place = (document, _CONFIG) if kong_yml is None else (kong_yml, ())
    entities = read_entities(*place, provided=provided, classes=classes)
    require_use(content.gateway.stand_ins, entities, document, _STAND_INS)
    told = ("listen", "status_listen", "workers", "tracing", "nginx")
    settings = {name: getattr(content.gateway, name) for name in told}
    settings |= {"profile": content.profile, "seed": content.seed, "plugin_classes": classes}
    gateway = Gateway.model_validate(settings | entities._asdict())
    _require_loads(document, content)
    faults = tuple(_faults(document, content))
    return Scenario(
        name=content.name,
        profile=content.profile,
        seed=content.seed,
        gateway=gateway,
        upstreams=content.upstreams,
        collector=content.collector,
        load=content.load,
        faults=faults,
        thresholds=content.thresholds,
        document=document,
        kong_yml=kong_yml,
    )


_CONFIG: Final = ("gateway", "config")
_PLUGIN_PATHS: Final = ("gateway", "plugin_paths")
_STAND_INS: Final = ("gateway", "stand_ins")
_AUTHORITIES: Final = "lua_ssl_trusted_certificate"


def _place_authorities(document: Document) -> None:
    """Name the files of trusted authorities, which stand beside the scenario, so that they are found from anywhere."""
    node: object = document.root
    for step in ("gateway", "nginx"):
        node = node.get(step) if isinstance(node, dict) else None
    if isinstance(node, dict) and (given := node.get(_AUTHORITIES)):
        files, folder = divided(given) if isinstance(given, str) else given, pathlib.Path(document.file).parent
        if isinstance(files, list) and all(isinstance(file, str) for file in files):
            node[_AUTHORITIES] = [file if file == SYSTEM else str((folder / file).resolve()) for file in files]


def _plugin_classes(document: Document, content: _File) -> dict[str, plugins.PluginClass]:
    """Load the plugins; their files stand beside the scenario, and are named so that it runs from anywhere."""
    folder, classes = pathlib.Path(document.file).parent, dict(BUNDLED)
    for index, path in enumerate(content.gateway.plugin_paths):
        place = str((folder / path).resolve()) if is_file(path) else path
        with asked_for(*document.place((*_PLUGIN_PATHS, index))):
            classes = plugins.load([place], classes)
        document.root["gateway"]["plugin_paths"][index] = place
    return classes


def _kong_yml(document: Document, content: _File) -> Document | None:
    """Read the file that ``gateway.config`` names, beside the scenario, and put it in its place; None for a mapping."""
    config = content.gateway.config
    if isinstance(config, dict):
        return None
    if not isinstance(config, str):
        message = f"expected services, routes and plugins, or the path of a kong.yml, not {shown(config)}"
        raise document.error(message, _CONFIG)
    path = pathlib.Path(document.file).parent / config
    with asked_for(*document.place(_CONFIG)):
        kong_yml = Document.read(str(path))
    document.root["gateway"]["config"] = kong_yml.root
    return kong_yml


def _hosts(document: Document, content: _File) -> set[str]:
    """Return the other names of upstreams; each name, of whatever case, leads to one server."""
    named: list[tuple[str, str, FieldPath]] = [(name, name, ("upstreams", name)) for name in content.upstreams]
    for name, upstream in content.upstreams.items():
        named += [(host, name, ("upstreams", name, "hosts", index)) for index, host in enumerate(upstream.hosts)]
    named += [(host, "collector", ("collector", "hosts", index)) for index, host in enumerate(content.collector.hosts)]
    servers: dict[str, str] = {}
    for host, server, place in named:
        if servers.setdefault(host.lower(), server) != server:
            raise document.error(f"{host} leads elsewhere already", place, cure="leave it out")
    return {host for upstream in content.upstreams.values() for host in upstream.hosts}


def _require_loads(document: Document, content: _File) -> None:
    """Refuse a threshold of a load that is not there."""
    last = len(content.load) - 1
    for index, threshold in enumerate(content.thresholds):
        for load in threshold.loads:
            if load > last:
                cure = f"loads are 0 to {last}" if last else "the only one is load[0]"
                raise document.error(f"there is no load {load}", ("thresholds", index), cure=cure)


def _faults(document: Document, content: _File) -> Iterator[Fault]:
    """Check the faults, and return each as often as it comes."""
    workers, lasts_s = content.gateway.workers, duration_s(content.load)
    for index, fault in enumerate(content.faults):
        place = ("faults", index)
        if fault.slot >= workers:
            message = f"there is no worker in slot {fault.slot}, gateway.workers is {workers}"
            raise document.error(message, (*place, "slot"), cure=f"slots are 0 to {workers - 1}")
        if fault.upstream is not None and fault.upstream not in content.upstreams:
            message = f"there is no upstream {fault.upstream}"
            raise document.error(message, (*place, "upstream"), cure=nearest(fault.upstream, content.upstreams))
        if fault.target == "upstream" and not content.upstreams:
            cure = "add upstreams: {default: {}}, and let a service have it as its host"
            raise document.error("there is no built-in upstream", (*place, "target"), cure=cure)
        if fault.target == "load" and any(isinstance(load, ClosedLoad) for load in content.load):
            cure = "write a load of arrivals, or another fault"
            raise document.error("virtual users do not arrive", (*place, "target"), cure=cure)
        if fault.at >= lasts_s:
            message = f"comes when the load is over, after {format_duration(lasts_s)}"
            raise document.error(message, (*place, "at"), cure="let it come earlier")
        try:
            yield from fault.occurrences(lasts_s)
        except FieldError as error:
            raise document.error(error.message, (*place, str(error.field)), cure=error.cure) from None
