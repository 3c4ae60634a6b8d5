"""The load of a scenario: what is sent, when and by whom, in the words of k6's executors.

Seconds, requests per second and users, whatever the units of the file; times count from the beginning of the run.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from sim.document import Model, NotEmpty, matching
from sim.entity import Method
from sim.errors import FieldError, meant, shown
from sim.field import HeaderName, Many, Path
from sim.units import PerSecond, Seconds

_Amount = TypeVar("_Amount", int, float)

_NS_DIGITS: Final = 9  # behind the point, of seconds: a sum of stages is told from no time in a file

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
        without_anything: what is said, with its cure, of stages in which nothing is sent.
    """

    without_anything: ClassVar[tuple[str, str]]
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

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if not any(amount for _duration_s, *ends in self.course for amount in ends):
            message, cure = self.without_anything
            raise FieldError(message, field="stages", cure=cure)
        return self

    @property
    @abstractmethod
    def course(self) -> tuple[tuple[float, float, float], ...]:
        """Duration in s, and rate per s or users at the beginning and the end of each stage."""

    @property
    def duration_s(self) -> float:
        """How long requests are sent, in seconds."""
        return sum(length_s for length_s, _first, _last in self.course)


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

    without_anything = ("every rate is 0", "write a target of more than 0/s")

    arrival: Literal["uniform", "poisson"] = "uniform"

    @property
    def mean_rate_per_s(self) -> float:
        """Requests per second, on average."""
        return sum(length_s * (first + last) / 2 for length_s, first, last in self.course) / self.duration_s

    @property
    def lines(self) -> Iterator[tuple[float, float, float, float]]:
        """Begin and end of each stage in s after the beginning of the run, and the rates per s there."""
        begin_s = round(self.startTime, _NS_DIGITS)
        for length_s, first, last in self.course:
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
    def course(self) -> tuple[tuple[float, float, float], ...]:
        """Duration in s and rate per s at the beginning and the end of its one stage."""
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

    @property
    def course(self) -> tuple[tuple[float, float, float], ...]:
        """Duration in s and rate per s at the beginning and the end of each stage."""
        return _course(self.startRate, ((stage.duration, stage.target) for stage in self.stages))


class _ClosedLoad(_Load):
    """A closed load: virtual users each wait for an answer before they send the next request."""

    fields_not_built: ClassVar[Mapping[str, str]] = {
        "gracefulStop": "it bounds how long answers are waited for",
        "gracefulRampDown": "it bounds how long a user who goes is waited for",
    }
    without_anything = ("there is never a user", "write a target of more than 0")


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
    def course(self) -> tuple[tuple[float, int, int], ...]:
        """Duration in s and users at the beginning and the end of its one stage."""
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

    @property
    def course(self) -> tuple[tuple[float, int, int], ...]:
        """Duration in s and users at the beginning and the end of each stage."""
        return _course(self.startVUs, ((stage.duration, stage.target) for stage in self.stages))


def _course(first: _Amount, stages: Iterable[tuple[float, _Amount]]) -> tuple[tuple[float, _Amount, _Amount], ...]:
    """Let each stage, of a duration and a target, begin where the one before it has ended."""
    course = []
    for duration_s, target in stages:
        course.append((duration_s, first, target))
        first = target
    return tuple(course)


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


def open_loads(loads: Iterable[OpenLoad | ClosedLoad]) -> list[OpenLoad]:
    """Return the loads whose requests arrive at a rate."""
    return [load for load in loads if isinstance(load, OpenLoad)]


def duration_s(loads: Iterable[OpenLoad | ClosedLoad]) -> float:
    """Return when the last load is over."""
    return round(max(load.startTime + load.duration_s for load in loads), _NS_DIGITS)


def arriving_s(loads: Iterable[OpenLoad | ClosedLoad]) -> float:
    """Return how long any requests arrive, without the time in which none do."""
    total_s = until_s = 0.0
    for begin_s, end_s, _first, _last in sorted(line for load in open_loads(loads) for line in load.lines):
        total_s += max(0.0, end_s - max(begin_s, until_s))
        until_s = max(until_s, end_s)
    return total_s


def mean_rate_per_s(loads: Sequence[OpenLoad | ClosedLoad]) -> float | None:
    """Return the requests of all loads per second, on average; None: virtual users have no rate."""
    arriving = open_loads(loads)
    if len(arriving) < len(loads):
        return None
    return sum(load.mean_rate_per_s * load.duration_s for load in arriving) / duration_s(loads)


def peak_rate_per_s(loads: Iterable[OpenLoad | ClosedLoad]) -> float | None:
    """Return the requests that arrive per second where they are most, at the beginning or the end of a stage.

    None: none arrive. What virtual users send comes on top.
    """
    lines = [line for load in open_loads(loads) for line in load.lines]
    ends = {time_s for line in lines for time_s in line[:2]}
    after = (sum(_rate(line, t) for line in lines if line[0] <= t < line[1]) for t in ends)
    before = (sum(_rate(line, t) for line in lines if line[0] < t <= line[1]) for t in ends)
    return max((*after, *before), default=None)


def _rate(line: tuple[float, float, float, float], time_s: float) -> float:
    begin_s, end_s, first, last = line
    return first + (last - first) * (time_s - begin_s) / (end_s - begin_s)
