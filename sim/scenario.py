"""Scenario files: a gateway, what it stands between, the load on it, the faults in it, and what has to hold.

The words are those of k6 (``constant-arrival-rate``), Kong and nginx; ``docs/scenarios.md`` lists them all. Every value
carries its unit in the file and is a plain number here: seconds, requests per second, bytes. A word of the vocabulary
that this version cannot act on is refused by name; any other is an unknown field. Every mistake is a
:class:`~sim.errors.UserError` with file, line, field and cure, raised before anything is started.
"""

import math
import pathlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sim import plugin as plugins
from sim.config import (
    Addresses,
    Gateway,
    HeaderName,
    Instrumentations,
    Listen,
    Many,
    Method,
    Nginx,
    Path,
    ProfileName,
    Seed,
    Tracing,
    Workers,
    available_cpus,
)
from sim.declarative import Entities, read_entities
from sim.document import Document, Model, NotEmpty, Override, matching
from sim.errors import FieldError, UserError, shown
from sim.plugin import is_file
from sim.plugins import BUNDLED
from sim.threshold import Threshold
from sim.threshold import parse as parse_threshold
from sim.units import Bytes, PerSecond, Seconds, format_duration

Name = Annotated[str, matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name of letters, digits, dots and dashes")]
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


class Upstream(Model):
    """A built-in origin server, reached under its name as the host of a service.

    Attributes:
        latency: from a request's last byte to its answer.
        status: share of each status among the answers.
        body: bytes of each answer's body.
    """

    latency: Latency = Latency(p50=0, p99=0)
    status: Annotated[
        dict[Annotated[int, Field(ge=200, le=599)], Annotated[float, Field(ge=0, le=1)]], AfterValidator(_probabilities)
    ] = Field(default_factory=lambda: {200: 1.0})
    body: Bytes = 0


class Collector(Model):
    """The built-in collector.

    Attributes:
        latency: seconds from an export request's last byte to its answer.
    """

    latency: Seconds = 0.0


HeaderValue = Annotated[str, matching(r"[ -~]*", "a header value of printable ASCII")]


class Request(Model):
    """The request that is sent again and again."""

    method: Method = "GET"
    path: Path = "/"
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)


class ConstantArrivalRate(Model):
    """An open load: requests arrive at a rate, whatever became of those before.

    Attributes:
        rate: requests per second.
        duration: seconds that they arrive.
        arrival: ``uniform``, evenly spaced, or ``poisson``, as many independent clients make them.
        request: what is sent.
    """

    fields_not_built: ClassVar[Mapping[str, str]] = {
        "startTime": "it delays a load",
        "timeUnit": "it divides the rate; write rate: 500/s",
        "stages": "it varies the rate over time",
        "startRate": "it varies the rate over time",
        "vus": "it makes a closed load of virtual users",
        "preAllocatedVUs": "it makes a closed load of virtual users",
        "maxVUs": "it makes a closed load of virtual users",
        "iterations": "it makes a closed load of virtual users",
        "gracefulStop": "it waits for virtual users",
    }
    words_not_built: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "executor": {
            "ramping-arrival-rate": "it varies the rate over time",
            "constant-vus": "it makes a closed load of virtual users",
            "ramping-vus": "it makes a closed load of virtual users",
            "shared-iterations": "it makes a closed load of virtual users",
            "per-vu-iterations": "it makes a closed load of virtual users",
            "externally-controlled": "it takes orders during the run",
        }
    }

    executor: Literal["constant-arrival-rate"]
    rate: Annotated[PerSecond, Field(gt=0)]
    duration: Annotated[Seconds, Field(gt=0)]
    arrival: Literal["uniform", "poisson"] = "uniform"
    request: Request = Request()


class Fault(Model):
    """Something that goes wrong at a given time.

    Attributes:
        at: seconds after the beginning of the load.
        target: what it hits.
        slot: which worker, from 0.
        kind: ``kill``: the worker gets SIGKILL.
    """

    fields_not_built: ClassVar[Mapping[str, str]] = {
        "for": "it ends a fault after a while",
        "every": "it repeats a fault",
        "latency": "it slows a target down",
        "status": "it answers with a status",
        "upstream": "it names one of several upstreams",
    }
    words_not_built: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "target": {
            "collector": "faults hit workers only",
            "upstream": "faults hit workers only",
            "master": "faults hit workers only",
            "load": "faults hit workers only",
        },
        "kind": {
            "refuse": "it refuses connections",
            "hang": "it accepts and never answers",
            "slow": "it answers late",
            "status": "it answers with an error",
            "reset": "it resets connections",
            "terminate": "it sends SIGTERM",
            "quit": "it sends SIGQUIT",
            "reload": "it starts a new generation of workers",
            "stop": "it stops a process for a while",
            "block": "it blocks the event loop",
        },
    }

    at: Seconds
    target: Literal["worker"]
    slot: Annotated[int, Field(ge=0)] = 0
    kind: Literal["kill"]


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
    nginx: Nginx = Nginx()
    plugin_paths: Many[str] = ()


_PROCESSES: Final = frozenset({"collector", "master", "load"})


def _not_a_process(name: str) -> str:
    if name in _PROCESSES:
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
    load: Annotated[Many[ConstantArrivalRate], NotEmpty]
    faults: Many[Fault] = ()
    thresholds: Many[Annotated[Threshold, BeforeValidator(parse_threshold)]] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario, checked.

    Attributes:
        name: what summary and run folder are called.
        document: what it was read from, overrides, seed and ``kong.yml`` in place.
    """

    name: str
    profile: ProfileName
    seed: int
    gateway: Gateway
    upstreams: Mapping[str, Upstream]
    collector: Collector
    load: tuple[ConstantArrivalRate, ...]
    faults: tuple[Fault, ...]
    thresholds: tuple[Threshold, ...]
    document: Document = field(repr=False, compare=False)

    @property
    def as_run(self) -> str:
        """The file as it is run: run this and get the same run."""
        return self.document.text()

    @property
    def duration_s(self) -> float:
        """How long requests arrive, in seconds."""
        return sum(load.duration for load in self.load)

    def placed(self, error: UserError) -> UserError:
        """Return an error of the gateway's start with the file and line of its field."""
        if error.file is not None or error.field is None:
            return error
        return self.document.error(error.message, ("gateway", error.field), cure=error.cure)


def load(file: str, overrides: Iterable[Override] = ()) -> Scenario:
    """Read and check a scenario; one without a seed gets a random one; raises UserError."""
    document = Document.read(file)
    for override in overrides:
        document.set(override)
    if "seed" not in document.root:
        document.set(Override(("seed",), secrets.randbits(32), "drawn seed"))
    content = document.validate(_File, document.plain())
    classes = plugins.load(_plugin_paths(document, content), BUNDLED)
    entities = _entities(document, content, classes)
    told = ("listen", "status_listen", "workers", "tracing", "nginx")
    settings = {name: getattr(content.gateway, name) for name in told}
    settings |= {"profile": content.profile, "seed": content.seed, "plugin_classes": classes}
    gateway = Gateway.model_validate(settings | entities._asdict())
    _check_load(document, content)
    _check_faults(document, content)
    return Scenario(
        name=content.name,
        profile=content.profile,
        seed=content.seed,
        gateway=gateway,
        upstreams=content.upstreams,
        collector=content.collector,
        load=content.load,
        faults=content.faults,
        thresholds=content.thresholds,
        document=document,
    )


_CONFIG: Final = ("gateway", "config")


def _plugin_paths(document: Document, content: _File) -> tuple[str, ...]:
    """Return where the plugins are; files stand beside the scenario, and are named so that it runs from anywhere."""
    folder = pathlib.Path(document.file).parent
    paths = tuple(str((folder / path).resolve()) if is_file(path) else path for path in content.gateway.plugin_paths)
    if paths:
        document.root["gateway"]["plugin_paths"] = list(paths)
    return paths


def _entities(document: Document, content: _File, classes: plugins.Classes) -> Entities:
    """Read ``gateway.config``, or the file that it names beside the scenario, which then takes its place."""
    config, provided = content.gateway.config, {"collector", *content.upstreams}
    if isinstance(config, dict):
        return read_entities(document, _CONFIG, provided=provided, classes=classes)
    if not isinstance(config, str):
        message = f"expected services, routes and plugins, or the path of a kong.yml, not {shown(config)}"
        raise document.error(message, _CONFIG)
    path = pathlib.Path(document.file).parent / config
    try:
        kong_yml = Document.read(str(path))
    except UserError as error:
        if error.line is not None:
            raise
        raise document.error(f"{path}: {error.message}", _CONFIG, cure=error.cure) from None
    document.root["gateway"]["config"] = kong_yml.root
    return read_entities(kong_yml, provided=provided, classes=classes)


def _check_load(document: Document, content: _File) -> None:
    if len(content.load) > 1:
        raise document.error("a second load is not built yet", ("load", 1), cure="leave it out")


def _check_faults(document: Document, content: _File) -> None:
    workers, duration_s = content.gateway.workers, content.load[0].duration
    for index, fault in enumerate(content.faults):
        if fault.slot >= workers:
            message = f"there is no worker in slot {fault.slot}, gateway.workers is {workers}"
            raise document.error(message, ("faults", index, "slot"), cure=f"slots are 0 to {workers - 1}")
        if fault.at >= duration_s:
            message = f"comes when the load is over, after {format_duration(duration_s)}"
            raise document.error(message, ("faults", index, "at"), cure="let it come earlier")
