"""Where a replayed step may come out otherwise than it was recorded: the rows of `docs/deviations.md`, as rules.

A rule knows the shape of a step, and what such a step comes to on either side. It is asked when a step comes out
otherwise than recorded, so it hides nothing that agrees. Where the two sides are in different states from then on, the
case ends with that step: what follows rests on it.
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from kongtrace import NOOP_SPAN, NoopTracer, Span, Tracer
from kongtrace.span import NoopSpan, ReleasedSpan

FIELDS = (
    *("name", "trace_id", "span_id", "parent_id", "parent", "kind", "start_time_ns", "end_time_ns", "should_sample"),
    *("attributes", "events", "status", "linked", "active", "tracer"),
)
"""What a span's state is made of."""

_METHODS = ("finish", "set_attribute", "add_event", "record_error", "set_status", "each_baggage_item", "release")
_OF_NOOP = {*_METHODS, "is_recording"} - {"release"}
_OURS_ALONE = "set_attributes"
_TRACERS = (Tracer, NoopTracer)
_OBJECTS = (Span, NoopSpan, *_TRACERS)
"""What is a table in Kong, and no mapping here."""

RETURNS, FAILS, REFUSES = "returns", "fails", "refuses"
"""What a step comes to: to refuse is to raise an error of Kong's own, to fail one of the VM."""

FAILS_OR_REFUSES = f"{FAILS} or {REFUSES}"
ANYTHING = f"{RETURNS} or {FAILS_OR_REFUSES}"


class Step(NamedTuple):
    """A step before it is played.

    Attributes:
        op: what is called.
        on: the span or the tracer that it is called on; None where it is on neither.
        args: with what.
        field: of the span, where one is read or written.
        value: what is written there.
        written: fields of that span that the case has written.
    """

    op: str
    on: Any
    args: list[Any]
    field: str | None
    value: Any
    written: AbstractSet[str | None]

    def option(self) -> Any:
        """The options of the call."""
        position = {"new_tracer": 1, "start_span": 1, "create_span": 1, "link_span": 3}.get(self.op)
        return self.arg(position) if position is not None else None

    def arg(self, position: int) -> Any:
        """One of the arguments; None where there are fewer."""
        return self.args[position] if position < len(self.args) else None

    def within_options(self, name: str) -> Any:
        """One of the options."""
        options = self.option()
        return options.get(name) if isinstance(options, dict) else None


class Rule(NamedTuple):
    """A row of the deviations.

    Attributes:
        applies: whether a step has its shape.
        kong: what it may come to in Kong.
        here: what it comes to here.
        parts: whether the two sides differ from then on.
        always_parts: whether they do even where the step comes to the same, unless that is a refusal.
    """

    applies: Callable[[Step], bool]
    kong: str
    here: str
    parts: bool = False
    always_parts: bool = False


def is_called_noop(value: object) -> bool:
    """Whether it is what Kong takes for a tracer because of its name, and is none."""
    name = value.get("name") if isinstance(value, dict) else value.name if isinstance(value, Span) else None
    return name in ("noop", b"noop")


def _reads(step: Step, *fields: str | None, on: type = Span) -> bool:
    return step.op == "read" and isinstance(step.on, on) and step.field in fields


def _writes(step: Step, *fields: str | None, on: type = Span) -> bool:
    return step.op == "write" and isinstance(step.on, on) and step.field in fields


def _is_foreign(field: str | None) -> bool:
    return field not in (*FIELDS, *_METHODS, _OURS_ALONE, "is_recording")


def _is_of_a_tracer(step: Step, *ops: str) -> bool:
    return step.op in ops and isinstance(step.on, Tracer)


def _has_a_false_id_above(step: Step) -> bool:
    if not _is_of_a_tracer(step, "start_span") or isinstance(step.option(), dict):
        return False
    active = step.on.active_span()
    return isinstance(active, Span) and (active.trace_id is False or active.span_id is False)


RULES: dict[str, Rule] = {
    # On purpose.
    "the no-op span has a harmless release": Rule(
        lambda step: step.op == "release" and step.on is NOOP_SPAN, FAILS, RETURNS
    ),
    "the no-op span has a release to read": Rule(lambda step: _reads(step, "release", on=NoopSpan), RETURNS, RETURNS),
    "a span has no fields of others": Rule(
        lambda step: _writes(step, step.field) and (step.field == _OURS_ALONE or _is_foreign(step.field)),
        *(RETURNS, FAILS),
    ),
    "nor are they there to be read": Rule(
        lambda step: _reads(step, *step.written) and _is_foreign(step.field), RETURNS, RETURNS
    ),
    "a table that is called noop is no tracer": Rule(
        lambda step: step.op == "set_global_tracer" and is_called_noop(step.arg(0)), RETURNS, REFUSES
    ),
    # Because Python is not Lua.
    "a span is recording": Rule(lambda step: _reads(step, "is_recording"), RETURNS, RETURNS),
    "there is a method for several attributes": Rule(
        lambda step: _reads(step, _OURS_ALONE, on=(Span, NoopSpan)),
        RETURNS,
        RETURNS,
    ),
    "a released span has methods": Rule(lambda step: _reads(step, *_METHODS, on=ReleasedSpan), RETURNS, RETURNS),
    "a method is no field": Rule(
        lambda step: _writes(step, *_METHODS, "is_recording", "linked"), RETURNS, FAILS, parts=True
    ),
    "the no-op span stays as it is": Rule(
        lambda step: (
            _reads(step, *step.written & _OF_NOOP, on=NoopSpan) or (step.on is NOOP_SPAN and step.op in step.written)
        ),
        *(ANYTHING, ANYTHING),
    ),
    "what has a start is linked": Rule(
        lambda step: _writes(step, "start_time_ns") and (step.value is None) == bool(step.on.linked),
        *(RETURNS, RETURNS),
        parts=True,
        always_parts=True,
    ),
    "a span or a tracer is no mapping of options": Rule(
        lambda step: step.op == "new_tracer" and isinstance(step.option(), _OBJECTS), RETURNS, FAILS, parts=True
    ),
    "a span or a tracer is no options, nor attributes": Rule(
        lambda step: (
            _is_of_a_tracer(step, "start_span", "create_span", "link_span")
            and (isinstance(step.option(), _OBJECTS) or isinstance(step.within_options("attributes"), _OBJECTS))
        ),
        *(f"{RETURNS} or {FAILS}", REFUSES),
        parts=True,
    ),
    "nor attributes of an event": Rule(
        lambda step: step.op == "add_event" and isinstance(step.arg(1), _OBJECTS), RETURNS, REFUSES, parts=True
    ),
    "a tracer is no parent": Rule(
        lambda step: (
            _is_of_a_tracer(step, "start_span", "create_span") and isinstance(step.within_options("parent"), _TRACERS)
        ),
        *(f"{RETURNS} or {FAILS}", FAILS),
        parts=True,
        always_parts=True,
    ),
    "a tracer cannot be active": Rule(
        lambda step: _is_of_a_tracer(step, "set_active_span") and isinstance(step.arg(0), _TRACERS),
        *(RETURNS, FAILS),
        parts=True,
    ),
    "a function can": Rule(
        lambda step: (
            _is_of_a_tracer(step, "set_active_span") and callable(step.arg(0)) and not isinstance(step.arg(0), _TRACERS)
        ),
        *(FAILS, RETURNS),
        parts=True,
    ),
    "false is an id of the active span": Rule(_has_a_false_id_above, RETURNS, RETURNS, parts=True, always_parts=True),
    "a tracer is made with options": Rule(
        lambda step: step.op == "new_tracer" and isinstance(step.option(), str | bytes), RETURNS, FAILS, parts=True
    ),
    "nan is no name": Rule(
        lambda step: step.op == "new_tracer" and step.arg(0) != step.arg(0), RETURNS, FAILS, parts=True
    ),
    "a list can decide": Rule(lambda step: step.op == "sampler" and isinstance(step.arg(0), list), FAILS, RETURNS),
    "a list can decide for a span": Rule(
        lambda step: (
            _is_of_a_tracer(step, "start_span", "create_span") and isinstance(step.within_options("trace_id"), list)
        ),
        *(FAILS, RETURNS),
        parts=True,
    ),
    "a span or a tracer is no trace id": Rule(
        lambda step: isinstance(step.arg(0) if step.op == "sampler" else step.within_options("trace_id"), _OBJECTS),
        *(RETURNS, FAILS),
        parts=True,
    ),
    "any name can be logged": Rule(
        lambda step: step.op == "finish" and isinstance(step.on, Span) and _has_no_text(step.on.name), FAILS, RETURNS
    ),
    "a span is linked with or without its tracer": Rule(
        lambda step: _is_of_a_tracer(step, "link_span") and isinstance(step.arg(0), (Span, NoopSpan)),
        *(FAILS_OR_REFUSES, ANYTHING),
        parts=True,
        always_parts=True,
    ),
    "a table is no span": Rule(
        lambda step: _is_of_a_tracer(step, "link_span") and isinstance(step.arg(1), (dict, list, *_TRACERS)),
        *(RETURNS, FAILS),
        parts=True,
        always_parts=True,
    ),
}
"""By the difference that they stand for."""


def _has_no_text(name: object) -> bool:
    return isinstance(name, (dict, list)) or callable(name)
