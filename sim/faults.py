"""Faults: what goes wrong in a run, when it begins and when it ends.

`KINDS` is the vocabulary: for each target its kinds, and for each kind the fields that it takes. A fault with `for`
ends after that time; one without lasts until the run ends, or is over at once where it is a single act, such as a kill.
One with `every` comes again and again (`Fault.occurrences`).

Who carries them out: collector and upstream themselves (`sim.http_server`), told when a fault begins and when it ends;
worker and master get signals from the run (`sim.run`); the load has them in its schedule from the start (`sim.load`).

Times in seconds, sizes in bytes, rates per second.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import Field, model_validator
from ruamel.yaml.comments import CommentedMap

from sim.document import Document, Model, override
from sim.errors import FieldError, UserError, meant, shown
from sim.units import Bytes, PerSecond, Seconds, format_duration

__all__ = ["KINDS", "Event", "Fault", "Kind", "Timeline", "parse_option"]

OCCURRENCES_MAX: Final = 10_000
"""How often one fault may come."""

_NS_PER_S: Final = 1_000_000_000

AFTERMATH_S: Final = 1.0
"""How long a fault that is over at once is felt: what a queue waits for a batch to fill, ten times a respawn."""


class Kind(NamedTuple):
    """One kind of fault.

    Attributes:
        meaning: what happens.
        needs: fields that it cannot be without.
        takes: fields that it may have.
    """

    meaning: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


_SERVER: Final = {
    "refuse": Kind(
        "connections are refused; an open one is closed once its request under way is answered", (), ("for",)
    ),
    "down": Kind("as if the process were dead: connections are reset at once, new ones refused", (), ("for",)),
    "hang": Kind("connections are accepted, and nothing is answered until the end", (), ("for",)),
    "slow": Kind("each answer takes `latency` longer", ("latency",), ("for",)),
    "status": Kind("each request is answered with `status`", ("status",), ("for", "retry_after")),
    "reset": Kind("the connection is reset in the middle of each request", (), ("for",)),
    "truncate": Kind("the connection is reset in the middle of each answer", (), ("for",)),
}

KINDS: Final[Mapping[str, Mapping[str, Kind]]] = {
    "collector": _SERVER
    | {
        "partial_success": Kind(
            "a share of the spans, `rejected`, is refused, the rest accepted", ("rejected",), ("for",)
        )
    },
    "upstream": {
        name: kind._replace(takes=(*(field for field in kind.takes if field != "retry_after"), "upstream"))
        for name, kind in _SERVER.items()
    },
    "worker": {
        "kill": Kind("SIGKILL", (), ("slot",)),
        "stop": Kind("SIGSTOP, and SIGCONT at the end: the whole process stands still", ("for",), ("slot",)),
        "memory": Kind("SIGKILL when resident memory exceeds `limit`, as in a container", ("limit",), ("for", "slot")),
    },
    "master": {
        "reload": Kind("SIGHUP: a new generation of workers, the old one quits"),
        "quit": Kind("SIGQUIT: workers finish their requests and drain their queues"),
        "terminate": Kind("SIGTERM: workers leave at once"),
    },
    "load": {
        "burst": Kind("`rate` more requests arrive", ("for", "rate")),
        "pause": Kind("no request arrives", ("for",)),
    },
}
"""What can go wrong, by target and kind."""

_OPTIONS: Final = {
    "for": "for: 10s, how long it lasts",
    "slot": "slot: 0, which worker",
    "upstream": "upstream: default, which of them",
    "latency": "latency: 2s, how much longer each answer takes",
    "status": "status: 503",
    "retry_after": "retry_after: 1s",
    "rejected": "rejected: 0.1, the share of the spans that is refused",
    "limit": "limit: 200MiB, how much memory it may use",
    "rate": "rate: 500/s, how many more requests arrive",
}


class Fault(Model):
    """Something that goes wrong at a given time.

    Attributes:
        at: seconds after the beginning of the load.
        every: seconds from one beginning to the next; None: it comes once.
        lasts: seconds until it ends; None: until the run ends, or it is a single act.
        target: what it hits.
        kind: what happens, see `KINDS`.
        slot: which worker, from 0.
        upstream: which upstream; None: all of them.
        latency: seconds by which answers are later.
        status: of the answers.
        retry_after: whole seconds, the header of that name.
        rejected: share of the spans of each export request, 0 to 1.
        limit: bytes of resident memory.
        rate: requests per second.
    """

    at: Seconds
    every: Annotated[Seconds, Field(gt=0)] | None = None
    lasts: Annotated[Seconds, Field(gt=0)] | None = Field(None, alias="for")
    target: Literal["collector", "upstream", "worker", "master", "load"]
    kind: str
    slot: Annotated[int, Field(ge=0)] = 0
    upstream: str | None = None
    latency: Seconds = 0.0
    status: Annotated[int, Field(ge=200, le=599)] = 200
    retry_after: Seconds | None = None
    rejected: Annotated[float, Field(gt=0, le=1)] = 1.0
    limit: Annotated[Bytes, Field(gt=0)] | None = None
    rate: Annotated[PerSecond, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _kind_has_its_fields(self) -> Self:
        kinds = KINDS[self.target]
        if self.kind not in kinds:
            message = f"expected one of {', '.join(kinds)} for target {self.target}, not {shown(self.kind)}"
            raise FieldError(message, field="kind", cure=_home(self.kind) or meant(self.kind, kinds))
        kind, given = kinds[self.kind], self._given
        for field in kind.needs:
            if field not in given:
                raise FieldError("missing", field=field, cure=f"add {_OPTIONS[field]}")
        for field in given:
            if field not in ("at", "every", "target", "kind", *kind.needs, *kind.takes):
                takes = ", ".join(("at", "every", *kind.needs, *kind.takes))
                raise FieldError(
                    f"does not belong to {self.target} {self.kind}", field=field, cure=f"leave it out; it takes {takes}"
                )
        if self.retry_after is not None and self.retry_after % 1:
            raise FieldError("expected whole seconds (RFC 9110 10.2.3)", field="retry_after", cure="write 1s")
        if self.every is not None and self.window_s[1] == inf:
            raise FieldError("repeats what has no end", field="every", cure=f"add {_OPTIONS['for']}")
        if self.every is not None and self.lasts is not None and self.lasts >= self.every:
            raise FieldError("is no longer than the fault itself", field="every", cure="write more than `for`")
        return self

    def occurrences(self, end_s: float) -> Iterator[Self]:
        """Return each time that it comes before the end of the load, as a fault of its own.

        Raises:
            FieldError: it comes more often than `OCCURRENCES_MAX`.
        """
        if self.every is None:
            yield self
            return
        # Counted in ns, as the arrivals are: a sum of floats that is an end, or just beside it, is not told apart.
        begin_ns, every_ns = round(self.at * _NS_PER_S), max(1, round(self.every * _NS_PER_S))
        starts_ns = range(begin_ns, round(end_s * _NS_PER_S), every_ns)
        if (count := len(starts_ns)) > OCCURRENCES_MAX:
            message = f"makes it come {count} times, expected {OCCURRENCES_MAX} at most"
            raise FieldError(message, field="every", cure=f"write {format_duration(end_s / OCCURRENCES_MAX)} or more")
        for start_ns in starts_ns:
            yield self.model_copy(update={"at": start_ns / _NS_PER_S})

    @property
    def window_s(self) -> tuple[float, float]:
        """From when until when it is felt, after the beginning of the load; without an end, infinity."""
        if self.lasts is not None:
            return self.at, self.at + self.lasts
        return self.at, self.at + AFTERMATH_S if self.is_act else inf

    @property
    def is_act(self) -> bool:
        """Whether it is over at once."""
        return self.lasts is None and "for" not in KINDS[self.target][self.kind].takes

    def told(self) -> dict[str, Any]:
        """Return the fields that the file has, in plain numbers, those of time with their unit: for the summary."""
        given = {"lasts" if field == "for" else field: field for field in self._given}
        return {_TOLD.get(field, field): getattr(self, name) for name, field in given.items()} | (
            {"slot": self.slot} if self.target == "worker" else {}
        )

    @property
    def _given(self) -> list[str]:
        return ["for" if name == "lasts" else name for name in type(self).model_fields if name in self.model_fields_set]


_TOLD: Final = {
    "at": "planned_s",
    "every": "every_s",
    "for": "for_s",
    "latency": "latency_s",
    "retry_after": "retry_after_s",
    "limit": "limit_bytes",
    "rate": "rate_per_s",
}


def _home(kind: str) -> str | None:
    """Return the cure for a kind that is another target's."""
    targets = [target for target, kinds in KINDS.items() if kind in kinds]
    return f"{kind} is for target {' or '.join(targets)}" if targets else None


class _Option(Model):
    fault: Fault


def parse_option(text: str, target: str) -> Fault:
    """Read a fault of one target from an option of the command line, such as ``{at: 5s, for: 10s, kind: hang}``.

    Raises:
        UserError: it is no such fault.
    """
    origin = f"--fault {text}"
    document = Document(origin, CommentedMap())
    given = override("fault", text, origin)
    if not isinstance(given.value, Mapping):
        message = f"expected a fault such as {{at: 10s, for: 5s, kind: hang}}, not {shown(given.value)}"
        raise UserError(message, file=origin)
    if (other := given.value.get("target", target)) != target:
        message = f"expected {target}, not {shown(other)}"
        raise UserError(message, file=origin, field="fault.target", cure="leave it out")
    document.set(given)
    document.set(override("fault.target", target, origin))
    return document.validate(_Option, document.plain()).fault


class Event(NamedTuple):
    """A fault begins, or ends.

    Attributes:
        at_s: after the beginning of the load.
        fault: which.
        begins: else it ends.
    """

    at_s: float
    fault: Fault
    begins: bool


class Timeline:
    """When faults begin and end, in order; of those at the same time, ends come first.

    An end is entered when its fault has begun, so that none can come before it.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._events = sorted((Event(fault.at, fault, begins=True) for fault in faults), key=_order)

    @property
    def next_s(self) -> float:
        """When something is due; infinity: there is nothing to come."""
        return self._events[0].at_s if self._events else inf

    @property
    def to_begin(self) -> list[Fault]:
        """The faults that have not begun."""
        return [event.fault for event in self._events if event.begins]

    def advance(self, elapsed_s: float, carry_out: Callable[[Event], bool]) -> None:
        """Have all carried out that is due; what cannot be yet, for which False is returned, stays so."""
        waiting = []
        while self.next_s <= elapsed_s:
            event = self._events.pop(0)
            if not carry_out(event):
                waiting.append(event)
            elif event.begins and event.fault.lasts is not None:
                # A worker may be waited for: what it is hit by lasts as long all the same.
                since_s = elapsed_s if event.fault.target == "worker" else event.at_s
                end = Event(since_s + event.fault.lasts, event.fault, begins=False)
                insort(self._events, end, key=_order)
        self._events[:0] = waiting


def _order(event: Event) -> tuple[float, bool]:
    return event.at_s, event.begins
