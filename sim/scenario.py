"""Scenario files: a gateway, what it stands between, the load on it, the faults in it, and what has to hold.

The words are those of k6 (``constant-arrival-rate``), Kong and nginx; ``docs/scenarios.md`` lists them all. Every value
carries its unit in the file and is a plain number here: seconds, requests per second, bytes. A word of the vocabulary
that this version cannot act on is refused by name; any other is an unknown field. Every mistake is a
:class:`~sim.errors.UserError` with file, line, field and cure, raised before anything is started.
"""

import math
import pathlib
import secrets
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

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
from sim.entity import Method
from sim.errors import FieldError, UserError, asked_for, meant, nearest, shown
from sim.faults import Fault
from sim.field import HeaderName, Many, Path, Rate01
from sim.plugin import is_file
from sim.plugins import BUNDLED
from sim.plugins.synthetic import SyntheticConfig
from sim.threshold import Threshold
from sim.threshold import parse as parse_threshold
from sim.units import Bytes, PerSecond, Seconds, format_duration

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


HeaderValue = Annotated[str, matching(r"[ -~]*", "a header value of printable ASCII")]


def _not_of_framing(name: str) -> str:
    if name.lower() in {"content-length", "transfer-encoding"}:
        raise FieldError("the body is sent with its length anyway", cure="leave it out")
    return name


class Request(Model):
    """The request that is sent again and again.

    Attributes:
        body: its content, sent in UTF-8 with its length.
    """

    method: Method = "GET"
    path: Path = "/"
    headers: dict[Annotated[HeaderName, AfterValidator(_not_of_framing)], HeaderValue] = Field(default_factory=dict)
    body: str = ""


_EXECUTORS: Final = ("constant-arrival-rate", "ramping-arrival-rate", "constant-vus", "ramping-vus")


VIRTUAL_USERS_MAX: Final = 1000
"""Virtual users of a load at most, each of whom has a connection."""

_Lasting = Annotated[Seconds, Field(gt=0), Field(ge=1e-9)]
_VirtualUsers = Annotated[int, Field(ge=0, le=VIRTUAL_USERS_MAX)]


class _Load(Model):
    """Requests of one kind, again and again.

    Attributes:
        startTime: seconds after the beginning of the run that the first is sent.
        request: what is sent.
    """

    words_not_built: ClassVar[Mapping[str, Mapping[str, tuple[str, str]]]] = {
        "executor": {
            "shared-iterations": ("it ends after so many requests", "constant-vus"),
            "per-vu-iterations": ("it ends after so many requests", "constant-vus"),
            "externally-controlled": ("it takes orders during the run", "ramping-arrival-rate"),
        }
    }

    startTime: Seconds = 0.0  # noqa: N815 - k6's name
    request: Request = Request()

    @model_validator(mode="before")
    @classmethod
    def _know_executor(cls, data: Any) -> Any:
        """Look at the executor first: by it the other fields are known or not."""
        if not isinstance(data, dict):
            return data
        if "executor" not in data:
            raise FieldError("missing", field="executor", cure="add executor")
        word = data["executor"]
        if word not in (*_EXECUTORS, *cls.words_not_built["executor"]):
            expected = f"expected {', '.join(_EXECUTORS[:-1])} or {_EXECUTORS[-1]}, not {shown(word)}"
            raise FieldError(expected, field="executor", cure=meant(word, _EXECUTORS))
        return data

    @property
    @abstractmethod
    def duration_s(self) -> float:
        """How long requests are sent, in seconds."""


class _OpenLoad(_Load):
    """An open load: requests arrive at their times, whatever became of those before.

    Attributes:
        arrival: ``uniform``, evenly spaced, or ``poisson``, as many independent clients make them.
    """

    fields_not_built: ClassVar[Mapping[str, str]] = {
        "timeUnit": "it divides the rate; write rate: 500/s",
        "preAllocatedVUs": "it makes virtual users before they are needed",
        "maxVUs": "it bounds the requests under way",
        "gracefulStop": "it bounds how long answers are waited for",
    }

    arrival: Literal["uniform", "poisson"] = "uniform"

    @property
    @abstractmethod
    def stages_per_s(self) -> tuple[tuple[float, float, float], ...]:
        """Duration in s and rate per s at the beginning and the end of each stage."""

    @property
    def duration_s(self) -> float:
        """How long requests arrive, in seconds."""
        return sum(length_s for length_s, _first, _last in self.stages_per_s)

    @property
    def mean_rate_per_s(self) -> float:
        """Requests per second, on average."""
        return sum(length_s * (first + last) / 2 for length_s, first, last in self.stages_per_s) / self.duration_s

    @property
    def lines(self) -> Iterator[tuple[float, float, float, float]]:
        """Begin and end of each stage in s after the beginning of the run, and the rates per s there."""
        begin_s = round(self.startTime, _NS_DIGITS)
        for length_s, first, last in self.stages_per_s:
            end_s = round(begin_s + length_s, _NS_DIGITS)
            yield begin_s, end_s, first, last
            begin_s = end_s


class ConstantArrivalRate(_OpenLoad):
    """Requests arrive at a constant rate.

    Attributes:
        rate: requests per second.
        duration: seconds that they arrive.
    """

    executor: Literal["constant-arrival-rate"]
    rate: Annotated[PerSecond, Field(gt=0)]
    duration: _Lasting

    @property
    def stages_per_s(self) -> tuple[tuple[float, float, float], ...]:
        """Duration in s and rate per s at the beginning and the end of each stage."""
        return ((self.duration, self.rate, self.rate),)


class Stage(Model):
    """A part of a ramping load.

    Attributes:
        target: requests per second at its end.
        duration: seconds.
    """

    target: PerSecond
    duration: _Lasting


class RampingArrivalRate(_OpenLoad):
    """The rate of arrivals goes in straight lines from stage to stage.

    Attributes:
        startRate: requests per second at the beginning.
        stages: in order.
    """

    executor: Literal["ramping-arrival-rate"]
    startRate: PerSecond = 0.0  # noqa: N815 - k6's name
    stages: Annotated[Many[Stage], NotEmpty]

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if not any((self.startRate, *(stage.target for stage in self.stages))):
            raise FieldError("every rate is 0", field="stages", cure="write a target of more than 0/s")
        return self

    @property
    def stages_per_s(self) -> tuple[tuple[float, float, float], ...]:
        """Duration in s and rate per s at the beginning and the end of each stage."""
        rates = (self.startRate, *(stage.target for stage in self.stages))
        return tuple((stage.duration, rates[k], rates[k + 1]) for k, stage in enumerate(self.stages))


class _ClosedLoad(_Load):
    """A closed load: virtual users each wait for an answer before they send the next request."""

    fields_not_built: ClassVar[Mapping[str, str]] = {
        "gracefulStop": "it bounds how long answers are waited for",
        "gracefulRampDown": "it bounds how long a user who goes is waited for",
    }

    @property
    @abstractmethod
    def stages_users(self) -> tuple[tuple[float, int, int], ...]:
        """Duration in s and users at the beginning and the end of each stage."""

    @property
    def duration_s(self) -> float:
        """How long requests are sent, in seconds."""
        return sum(length_s for length_s, _first, _last in self.stages_users)


class ConstantVirtualUsers(_ClosedLoad):
    """So many users from the beginning to the end.

    Attributes:
        vus: users.
        duration: seconds that they send requests.
    """

    executor: Literal["constant-vus"]
    vus: Annotated[_VirtualUsers, Field(ge=1)] = 1
    duration: _Lasting

    @property
    def stages_users(self) -> tuple[tuple[float, int, int], ...]:
        """Duration in s and users at the beginning and the end of each stage."""
        return ((self.duration, self.vus, self.vus),)


class UserStage(Model):
    """A part of a ramping load of users.

    Attributes:
        target: users at its end.
        duration: seconds.
    """

    target: _VirtualUsers
    duration: _Lasting


class RampingVirtualUsers(_ClosedLoad):
    """The number of users goes in straight lines from stage to stage.

    Attributes:
        startVUs: users at the beginning.
        stages: in order.
    """

    executor: Literal["ramping-vus"]
    startVUs: _VirtualUsers = 1  # noqa: N815 - k6's name
    stages: Annotated[Many[UserStage], NotEmpty]

    @model_validator(mode="after")
    def _has_users(self) -> Self:
        if not any((self.startVUs, *(stage.target for stage in self.stages))):
            raise FieldError("there is never a user", field="stages", cure="write a target of more than 0")
        return self

    @property
    def stages_users(self) -> tuple[tuple[float, int, int], ...]:
        """Duration in s and users at the beginning and the end of each stage."""
        users = (self.startVUs, *(stage.target for stage in self.stages))
        return tuple((stage.duration, users[k], users[k + 1]) for k, stage in enumerate(self.stages))


OpenLoad = ConstantArrivalRate | RampingArrivalRate
ClosedLoad = ConstantVirtualUsers | RampingVirtualUsers


def _executor_tag(load: object) -> str:
    word = load.get("executor") if isinstance(load, dict) else getattr(load, "executor", None)
    return f"[{word if word in _EXECUTORS else _EXECUTORS[0]}]"


Load = Annotated[
    Annotated[ConstantArrivalRate, Tag("[constant-arrival-rate]")]
    | Annotated[RampingArrivalRate, Tag("[ramping-arrival-rate]")]
    | Annotated[ConstantVirtualUsers, Tag("[constant-vus]")]
    | Annotated[RampingVirtualUsers, Tag("[ramping-vus]")],
    Discriminator(_executor_tag),
]
"""A load, by its executor."""


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
        return _duration_s(self.load)

    @property
    def open_loads(self) -> tuple[OpenLoad, ...]:
        """The loads whose requests arrive at a rate."""
        return tuple(load for load in self.load if isinstance(load, OpenLoad))

    @property
    def arriving_s(self) -> float:
        """How long any requests arrive, in seconds, without the time in which none do."""
        total_s = until_s = 0.0
        for begin_s, end_s, _first, _last in sorted(line for load in self.open_loads for line in load.lines):
            total_s += max(0.0, end_s - max(begin_s, until_s))
            until_s = max(until_s, end_s)
        return total_s

    @property
    def mean_rate_per_s(self) -> float | None:
        """Requests of all loads per second, on average; None: virtual users have no rate."""
        if len(self.open_loads) < len(self.load):
            return None
        return sum(load.mean_rate_per_s * load.duration_s for load in self.open_loads) / self.duration_s

    @property
    def peak_rate_per_s(self) -> float | None:
        """Requests that arrive per second where they are most, at the beginning or the end of a stage; None: none do.

        What virtual users send comes on top.
        """
        if not self.open_loads:
            return None
        lines = [line for load in self.open_loads for line in load.lines]
        ends = {time_s for line in lines for time_s in line[:2]}
        after = (sum(_rate(line, t) for line in lines if line[0] <= t < line[1]) for t in ends)
        before = (sum(_rate(line, t) for line in lines if line[0] < t <= line[1]) for t in ends)
        return max(*after, *before)

    def addresses(self, servers: Mapping[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
        """Return where each name of the collector and of an upstream leads, given where these listen."""
        named: dict[str, Collector | Upstream] = {"collector": self.collector, **self.upstreams}
        return {host: servers[name] for name, server in named.items() for host in (name, *server.hosts)}

    def placed(self, error: UserError) -> UserError:
        """Return an error of the gateway's start with the file and line of its field."""
        if error.file is not None or error.field is None:
            return error
        return self.document.error(error.message, ("gateway", error.field), cure=error.cure)


def _duration_s(loads: Iterable[OpenLoad | ClosedLoad]) -> float:
    return round(max(load.startTime + load.duration_s for load in loads), _NS_DIGITS)


def _rate(line: tuple[float, float, float, float], time_s: float) -> float:
    begin_s, end_s, first, last = line
    return first + (last - first) * (time_s - begin_s) / (end_s - begin_s)


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


_NS_DIGITS: Final = 9  # behind the point, of seconds: a sum of stages is told from no time in a file

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
    workers, duration_s = content.gateway.workers, _duration_s(content.load)
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
        if fault.at >= duration_s:
            message = f"comes when the load is over, after {format_duration(duration_s)}"
            raise document.error(message, (*place, "at"), cure="let it come earlier")
        try:
            yield from fault.occurrences(duration_s)
        except FieldError as error:
            raise document.error(error.message, (*place, str(error.field)), cure=error.cure) from None
