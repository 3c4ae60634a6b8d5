"""Programs: what happens to a gateway in one trial, as data that hypothesis draws and shrinks, and one line can hold.

Simple things come first in every choice, so that the smallest program that shows a mistake is also the plainest: one
GET that is answered, with nothing going wrong.

Times in ms of the virtual clock, sizes in bytes.
"""

import json
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sim.document import parse_json
from sim.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import SearchStrategy

T = TypeVar("T")

UPSTREAMS: Final = (
    *("answers", "fails", "is slow", "refuses", "resets", "breaks off", "talks nonsense", "is silent"),
    *("has no route", "is unknown"),
)
"""What the service does with a request."""

CALLED: Final = (
    *("answers", "fails", "is slow", "refuses", "answers once", "resets", "breaks off", "talks nonsense", "is silent"),
    "is unknown",
)
"""What any other service does that a plugin calls."""

TRACES: Final = ("none", "sampled", "unsampled", "b3", "malformed", "twice")
"""What trace headers the client sends."""

INTERFERENCES: Final = (
    "nothing",
    *("exits before", "exits after"),
    *(
        f"raises in {phase} {order}"
        for phase in ("rewrite", "access", "header_filter", "log")
        for order in ("before", "after")
    ),
)
"""What another plugin does to the request, before or after the ones under test."""

STEPS_MAX: Final = 6
TIMES_MAX: Final = 250
MS_MAX: Final = 60_000
BYTES_MAX: Final = 1_000_000
"""What one trial may hold at most, also when its program is written by hand, so that it comes to an end."""

TIMES: Final = (*(1,) * 13, 2, 3, 5, 5, 30, 30, TIMES_MAX)
"""How often a request is made; what adds up needs many."""

_METHODS: Final = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS")
_PATHS: Final = ("/orders", "/", "/orders/%C3%A9?q=1&q=2", "//a/../b;c?", "/" + "long/" * 100)
_BODIES: Final = (0, 10, 70_000)
_ABORTS_MS: Final = (None, 0, 1, 4, 30)
_GAPS_MS: Final = (1, 0, 20, 2_000)
_ANSWERS: Final = (100, 0, 200_000)
_RATES: Final = (1.0, 0.5, 0.0)
_INSTRUMENTATIONS: Final = ("all", "request", "off")
_CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "method": _METHODS,
    "path": _PATHS,
    "body": _BODIES,
    "trace": TRACES,
    "abort_ms": _ABORTS_MS,
    "upstream": UPSTREAMS,
    "answer": _ANSWERS,
    "called": CALLED,
    "interference": INTERFERENCES,
}
"""What a request may be, the usual first."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of a client, or several alike.

    Attributes:
        times: how many.
        gap_ms: from one to the next, and to what follows.
        method: of it.
        path: of it; the number of the request is added as `n`.
        body: of the request.
        trace: one of `TRACES`.
        abort_ms: after which the client goes away; None: it stays.
        upstream: one of `UPSTREAMS`.
        answer: bytes of the service's answer, and of any other's.
        called: one of `CALLED`, which holds until the next request.
        interference: one of `INTERFERENCES`.
    """

    times: int = 1
    gap_ms: int = 1
    method: str = "GET"
    path: str = "/orders"
    body: int = 0
    trace: str = "none"
    abort_ms: int | None = None
    upstream: str = "answers"
    answer: int = 100
    called: str = "answers"
    interference: str = "nothing"


@dataclass(frozen=True, slots=True)
class Reload:
    """The worker leaves, with what is under way, and another takes its place."""


@dataclass(frozen=True, slots=True)
class Program:
    """What happens in one trial.

    Attributes:
        steps: in order.
        sampling_rate: of the gateway.
        instrumentations: of the gateway, divided by commas.
    """

    steps: tuple[Visit | Reload, ...]
    sampling_rate: float = 1.0
    instrumentations: str = "all"

    @property
    def requests(self) -> int:
        """How many requests are made."""
        return sum(step.times for step in self.steps if isinstance(step, Visit))

    def line(self) -> str:
        """Return it as one line; what is as usual is left out."""
        steps = [_changed(step) if isinstance(step, Visit) else "reload" for step in self.steps]
        told = {name: value for name, value in _changed(self).items() if name != "steps"}
        return json.dumps({"steps": steps, **told}, separators=(",", ":"))

    def text(self, *, calls: bool = False) -> str:
        """Return it in words, a line for each step.

        Args:
            calls: plugins have called services; it is told what these do, also where that is as usual.
        """
        head = f"sampling rate {self.sampling_rate:g}, instrumentations {self.instrumentations}"
        return "\n".join([head, *(_words(step, calls=calls) for step in self.steps)])


def parse(line: str) -> Program:
    """Return the program that `Program.line` wrote.

    Raises:
        UserError: it is none.
    """
    try:
        told = parse_json(line)
        if not isinstance(told, dict) or not isinstance(told.get("steps"), list):
            raise ValueError("it is no mapping with steps")  # noqa: TRY301, TRY004 - as whatever else is wrong
        if len(told["steps"]) > STEPS_MAX:
            raise ValueError(f"it has {len(told['steps'])} steps, {STEPS_MAX} at most")  # noqa: TRY301 - the same
        steps = tuple(Reload() if step == "reload" else _read(Visit, step) for step in told["steps"])
        return _read(Program, told | {"steps": steps})
    except ValueError as error:
        raise UserError(f"is no program: {error}", field="--replay", cure="give the line as it was printed") from None


def _read(kind: type[T], told: Any) -> T:
    """Make a step or a program of a mapping; raises ValueError."""
    if not isinstance(told, dict):
        raise ValueError(f"step {told!r} is no mapping")  # noqa: TRY004 - see `parse`
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # both are dataclasses
    for name, value in told.items():
        if name not in names:
            raise ValueError(f"it has the unknown field {name}")
        if not _ALLOWED[name](value):
            raise ValueError(f"{name} cannot be {value!r}")
        if value is not None and name in _MOST and value > _MOST[name]:
            raise ValueError(f"{name} is {_MOST[name]} at most, not {value}")
    return kind(**told)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_ALLOWED: "Final[dict[str, Callable[[Any], bool]]]" = {
    "times": _is_count,
    "gap_ms": _is_count,
    "method": _is_text,
    "path": _is_text,
    "body": _is_count,
    "trace": TRACES.__contains__,
    "abort_ms": lambda value: value is None or _is_count(value),
    "upstream": UPSTREAMS.__contains__,
    "answer": _is_count,
    "called": CALLED.__contains__,
    "interference": INTERFERENCES.__contains__,
    "steps": lambda value: isinstance(value, tuple),
    "sampling_rate": lambda value: type(value) in {int, float} and 0 <= value <= 1,
    "instrumentations": _INSTRUMENTATIONS.__contains__,
}
"""What may stand in each field of a step or a program."""

_MOST: Final = {"times": TIMES_MAX, "gap_ms": MS_MAX, "abort_ms": MS_MAX, "body": BYTES_MAX, "answer": BYTES_MAX}


def programs() -> "SearchStrategy[Program]":
    """Return the strategy of programs.

    Raises:
        UserError: hypothesis is not installed.
    """
    try:
        from hypothesis import strategies as st  # noqa: PLC0415 - an extra
    except ImportError:
        raise UserError("verify needs hypothesis", cure="install kongsim[testing]") from None

    def mostly(choices: tuple[T, ...]) -> "SearchStrategy[T]":
        # The first is the usual one; whatever is unusual in many ways at once hides more than it shows.
        return st.sampled_from((*choices[:1] * len(choices), *choices))

    visits = st.builds(
        Visit,
        times=st.sampled_from(TIMES),
        gap_ms=mostly(_GAPS_MS),
        method=mostly(_METHODS),
        path=mostly(_PATHS),
        body=mostly(_BODIES),
        trace=mostly(TRACES),
        abort_ms=mostly(_ABORTS_MS),
        upstream=mostly(UPSTREAMS),
        answer=mostly(_ANSWERS),
        called=mostly(CALLED),
        interference=mostly(INTERFERENCES),
    )
    steps = st.lists(visits | visits | visits | st.builds(Reload), min_size=1, max_size=STEPS_MAX).map(tuple)
    return st.builds(Program, steps, mostly(_RATES), mostly(_INSTRUMENTATIONS))


def plain_programs() -> "Iterator[Program]":
    """Return one request, and all programs that differ from it in one thing."""
    plain = Visit()
    yield Program((plain,))
    for name, choices in _CHOICES.items():
        for value in choices[1:]:
            yield Program((replace(plain, **{name: value}),))
    for times in sorted(set(TIMES))[1:]:
        yield Program((replace(plain, times=times),))
    yield Program((replace(plain, times=3, gap_ms=0, upstream="is slow"), Reload(), plain))
    for rate in _RATES[1:]:
        yield Program((plain,), sampling_rate=rate)
    for word in _INSTRUMENTATIONS[1:]:
        yield Program((plain,), instrumentations=word)


def _changed(of: Any) -> dict[str, Any]:
    named = {field.name: (getattr(of, field.name), field.default) for field in fields(of)}
    return {name: value for name, (value, default) in named.items() if default is MISSING or value != default}


def _words(step: Visit | Reload, *, calls: bool) -> str:
    if isinstance(step, Reload):
        return "reload: the worker leaves, another takes its place"
    words = [f"{step.times} times {step.gap_ms} ms apart: " if step.times > 1 else ""]
    words.append(f"{step.method} {step.path if len(step.path) < 40 else step.path[:37] + '...'}")
    words.append(f", body of {step.body} bytes" if step.body else "")
    words.append(f", trace headers {step.trace}" if step.trace != "none" else "")
    words.append(f"; the upstream {step.upstream}")
    words.append(f"; what the plugin calls {step.called}" if calls or step.called != "answers" else "")
    words.append(f"; another plugin {step.interference}" if step.interference != "nothing" else "")
    words.append(f"; the client goes away after {step.abort_ms} ms" if step.abort_ms is not None else "")
    return "".join(words)
