"""Plays a recorded case of Kong's tracer against ours, under profile ``kong``.

A case is played step by step, and everything that was recorded is compared: results, errors, log lines, the state of
every span, the calls of a processor, the number of readings of the clock, and the ids in the order in which they were
drawn. A case with an operation, an argument or a field that this replay does not know fails; what is missing is nil.

What Python writes otherwise than Lua is translated here. A Lua function ignores what it is given beyond its parameters,
so that is cut off (`PARAMETERS`). A list that a span is to take further keys into is a mapping.
"""

from collections import Counter
from collections.abc import Callable
from inspect import signature
from typing import Any

from kongtrace import (
    KONG,
    NOOP_SPAN,
    PHASES,
    ApiError,
    Event,
    KongTraceError,
    NoopTracer,
    Phase,
    Span,
    Tracer,
    TracerProvider,
)
from kongtrace.context import KONG_PHASE, Trace, tracing_context
from kongtrace.lua import lua_table
from kongtrace.span import NoopSpan
from tests.conformance.deviations import FAILS, FIELDS, REFUSES, RETURNS, RULES, Rule, Step, is_called_noop
from tests.conformance.vectors import as_double, decode, lua_key, text_of

LEVELS = {"error": "ERR", "warn": "WARN"}
IDS = frozenset({"trace_id", "span_id", "parent_id"})
RUNTIME_ERRORS = (TypeError, AttributeError, KongTraceError)
"""What stands for an error of the Lua VM."""

PARAMETERS = {
    "new_tracer": 2,
    "set_global_tracer": 1,
    "start_span": 2,
    "create_span": 2,
    "link_span": 4,
    "set_active_span": 1,
    "active_span": 0,
    "get_root_span": 0,
    "get_spans": 0,
    "init_spans": 0,
    "set_should_sample": 1,
    "get_sampling_decision": 2,
    "sampler": 2,
    "set_attribute": 2,
    "add_event": 3,
    "record_error": 1,
    "set_status": 1,
    "finish": 1,
    "release": 0,
    "each_baggage_item": 0,
}
"""How many each function of Kong has; ``process_span`` passes on whatever it is given."""


OUTCOMES = {None: RETURNS, "api": REFUSES, "runtime": FAILS}


class Parted(Exception):  # noqa: N818  no error: the case ends
    """From here on the recorded tracer and ours are in different states."""


def known(record: dict[str, Any], *names: str) -> None:
    assert not record.keys() - set(names), f"unknown fields {record.keys() - set(names)}"


def plain(value: Any) -> Any:
    """A value with what Lua cannot tell apart made equal, and what it can made different."""
    match value:
        case bool() | float() if value is True or value is False or value != value:  # noqa: PLR0124  nan
            return {"$lua": str(value)}
        case bytes():
            return value.decode(errors="surrogateescape")
        case dict():
            # A field without a value is no field. A table with the keys 1 to n is a list, and so is an empty one.
            fields = {lua_key(key): plain(item) for key, item in value.items() if item is not None}
            is_list = fields.keys() == set(range(1, len(fields) + 1))
            return [fields[key] for key in sorted(fields)] if is_list else fields
        case Event():
            return plain(value._asdict())
        case list() | tuple():
            return [plain(item) for item in value]
    return value if not callable(value) else {"$fn": "function"}


def of_tracer(method: str) -> Callable[..., Any]:
    """The operation that is a tracer's method of that name."""
    return lambda self, tracer, args=(): getattr(self.tracers[tracer], method)(*args)


def of_span(method: str) -> Callable[..., Any]:
    """The operation that is a span's."""
    return lambda self, span, args=(): getattr(self.spans[span], method)(*args)


class Replay:
    """One case: a fresh process, played from its first step to its last."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.has_states = not case["category"].startswith("random_") or case["category"] == "random_requests"
        self.compared: Counter[str] = Counter()
        self.logs: list[dict[str, str]] = []
        self.clock_calls = 0
        self.spans: dict[str, Any] = {}
        self.labels: dict[int, tuple[str, Any]] = {}  # by the identity of the span, which is kept for it
        self.made: list[str] = []  # of spans made in the current request, oldest first
        self.tables: dict[str, Any] = {}
        self.called: list[dict[str, Any]] = []
        self.provider = TracerProvider(
            time_ns=self.time_ns, random_bytes=self.no_bytes, log=self.log, profile=KONG, sampling_rate=1
        )
        self.ids = {16: self.provider.trace_ids, 8: self.provider.span_ids}
        for size, supply in self.ids.items():
            supply.add([id_ for id_ in map(bytes.fromhex, case.get("rand", ())) if len(id_) == size])
        self.tracers: dict[str, Any] = {"noop": self.provider.noop_tracer}
        self.kong_tracing: Any = None
        self.written: dict[int, set[str | None]] = {}  # fields, by the identity of the span
        self.pretender: Any = None  # what is no tracer and is the global one in Kong: it is called noop
        self.ctx: dict[str, Any] = {}
        self.phase = "access"
        self.kong_phase: str | None = "access"
        self.enter()

    # What the tracer is given.

    def time_ns(self) -> int:
        clock = self.case["clock"]
        self.clock_calls += 1
        return as_double(clock["start"] + (self.clock_calls - 1) * clock["step"])

    def no_bytes(self, count: int) -> bytes:
        raise AssertionError(f"{count} random bytes more than were recorded")

    def log(self, level: str, message: str) -> None:
        self.logs.append({"level": LEVELS[level], "msg": message})

    def enter(self) -> None:
        if self.kong_phase is None:
            self.ctx.pop(KONG_PHASE, None)
        else:
            self.ctx[KONG_PHASE] = self.kong_phase
        # A phase that the table does not have permits no spans (T8).
        phase = PHASES.get(self.phase) or Phase(self.phase, spans=False, yields=False, timers=False)
        self.provider.execution.enter(phase, self.ctx)

    # The case.

    def play(self) -> Counter[str]:
        case = self.case
        known(case, "id", "category", "note", "clock", "rand", "clock_calls", "steps", "final", "depends_on")
        for position, step in enumerate(case["steps"]):
            known(step, "do", "expect")
            try:
                self.step(step["do"], step.get("expect", {}))
            except AssertionError as error:
                raise AssertionError(f"step {position} {step['do']}: {error}") from error
            except Parted:
                return self.compared
        self.equal("clock_calls", case.get("clock_calls", self.clock_calls), self.clock_calls)
        self.equal("rand", 0, sum(len(supply.drawn) for supply in self.ids.values()))
        if "final" in case:
            self.final(case["final"])
        return self.compared

    def step(self, do: dict[str, Any], expect: dict[str, Any]) -> None:
        known(expect, "ret", "err", "logs", "calls", "info")
        self.logs, self.called = [], []
        operation: Callable[..., Any] = getattr(self, f"op_{do['op']}")
        arguments = self.arguments(do)
        signature(operation).bind(**arguments)  # an argument that the replay does not know
        step = self.called_step(do, arguments)
        rules = {name: rule for name, rule in RULES.items() if rule.applies(step)}
        error, returned = None, None
        try:
            returned = operation(**arguments)
        except RUNTIME_ERRORS as raised:
            error = raised
        try:
            self.compare(do, expect, error, returned)
        except AssertionError:
            kong = OUTCOMES[expect.get("err", {}).get("kind")]
            here = REFUSES if isinstance(error, ApiError) else FAILS if error else RETURNS
            if not self.excused(rules, lambda rule: kong in rule.kong and here in rule.here, lambda rule: rule.parts):
                raise
        else:
            # Kong refuses what it has looked at; before that it has done nothing.
            if expect.get("err", {}).get("kind") != "api":
                self.excused(rules, lambda rule: rule.always_parts, lambda rule: rule.always_parts)

    def excused(self, rules: dict[str, Rule], counts: Callable[[Rule], bool], parts: Callable[[Rule], bool]) -> bool:
        """Whether a rule says that the step may come out so; the case ends where it says that too."""
        counted = {name: rule for name, rule in rules.items() if counts(rule)}
        self.compared += Counter(f"deviation: {name}" for name in counted)
        if any(map(parts, counted.values())):
            self.compared["cases cut short"] += 1
            raise Parted
        return bool(counted)

    def arguments(self, do: dict[str, Any]) -> dict[str, Any]:
        """The arguments of an operation of the replay."""
        arguments = {"as_" if name == "as" else name: value for name, value in do.items() if name not in {"op", "args"}}
        given = do.get("args") or []
        parameters = PARAMETERS.get(do["op"], len(given))
        if parameters and given:
            arguments["args"] = [self.value(argument) for argument in given[:parameters]]
        return arguments

    def called_step(self, do: dict[str, Any], arguments: dict[str, Any]) -> Step:
        """What the rules know of a step."""
        on = self.spans[do["span"]] if do.get("span") is not None else self.tracers.get(do.get("tracer", ""))
        field = do.get("field")
        value = self.value(do.get("value"), field or "")
        return Step(do["op"], on, arguments.get("args", []), field, value, self.written.get(id(on), set()))

    def compare(self, do: dict[str, Any], expect: dict[str, Any], error: BaseException | None, returned: Any) -> None:
        self.error(expect.get("err"), error)
        if error is None:
            self.equal("ret", as_read(do, expect.get("ret")), returned)
        self.equal("logs", expect.get("logs", []), self.logs)
        if do["op"] == "process_span":
            self.equal("calls", expect.get("calls", []), self.called)

    def error(self, expected: dict[str, str] | None, raised: BaseException | None) -> None:
        self.compared["err"] += 1
        assert (raised is not None) == (expected is not None), f"raised {raised!r}, expected {expected}"
        if expected is not None:
            known(expected, "kind", "msg")
            assert expected["kind"] in {"api", "runtime"}
            if expected["kind"] == "api":
                assert expected["msg"] == str(raised)
            else:
                assert not isinstance(raised, ApiError), f"raised {raised!r}, expected a runtime error"

    def equal(self, what: str, expected: Any, actual: Any) -> None:
        self.compared[what] += 1
        if plain(decode(expected)) != plain(actual):
            raise AssertionError(f"{what}: expected {expected}, not {actual}")

    def final(self, expected: dict[str, Any]) -> None:
        known(expected, "spans", "active", "other_spans")
        traces = {key: trace for key, trace in self.ctx.items() if isinstance(trace, Trace)}
        lists = {key: trace.spent if trace.spans is None else trace.spans for key, trace in traces.items()}
        lists = {key: spans for key, spans in lists.items() if spans is not None}
        listed = {key: list(map(self.listed, spans)) for key, spans in lists.items()}
        self.equal("final spans", expected.get("spans", {}), listed)
        active = {
            f"{key.removesuffix('_SPANS')}_active_span": self.shown(trace.active) for key, trace in traces.items()
        }
        self.equal("final active", expected.get("active", {}), active)
        in_a_list = {id(span) for spans in lists.values() for span in spans}
        others = {
            label: self.state(self.spans[label])
            for label in self.made
            if label == self.label(self.spans[label])
            and id(self.spans[label]) not in in_a_list
            and self.state(self.spans[label])
        }
        self.equal("final other_spans", expected.get("other_spans", {}), others)

    def listed(self, span: Any) -> Any:
        return self.shown(span) if span is NOOP_SPAN else {**self.state(span), "label": self.label(span)}

    # Values.

    def value(self, recorded: Any, key: Any = "") -> Any:  # noqa: PLR0911  one line for each notation
        """An argument as the Python object that it stands for; `key` is the option's name."""
        match recorded:
            case {"$span": label}:
                return self.spans[label]
            case {"$tracer": label}:
                return self.tracers[label]
            case {"$ref": label}:
                return self.tables[label]
            case {"$noop_span": True}:
                return NOOP_SPAN
            case {"$fn": ("collect" | "raise") as name}:
                return self.collect if name == "collect" else self.fail
            case {"$pairs": pairs}:
                named = [(lua_key(self.value(name)), item) for name, item in pairs]
                return {name: self.value(item, name) for name, item in named if item is not None}
            case str() | {"$rep": _} if key in IDS:
                return as_id(decode(recorded))
            case dict() if not any(name.startswith("$") for name in recorded):
                return {name: self.value(item, name) for name, item in recorded.items() if item is not None}
            case list():
                items = [self.value(item) for item in recorded]
                return lua_table(items) if key == "parent" else items
        return decode(recorded)

    def collect(self, span: Any, *extra: Any) -> None:
        shown = {"extra": [self.shown(argument) for argument in extra]} if extra else {}
        self.called.append({"span": self.shown(span)} | shown)

    def fail(self, *_: Any) -> None:
        raise ApiError("processor failed")

    def state(self, span: Any) -> dict[str, Any]:
        """The fields of a span in the notation of the vectors."""
        fields = {name: getattr(span, name) for name in FIELDS}
        return {
            name: value.hex() if name in IDS and isinstance(value, bytes) else self.shown(value)
            for name, value in fields.items()
            if value is not None
        } | ({"tracer": self.name_of(span.tracer)} if span.tracer is not None else {})

    def name_of(self, tracer: Any) -> Any:
        """The name of a span's tracer, or what it has in the place of one."""
        if isinstance(tracer, (dict, list)):
            return self.shown(lua_table(tracer).get("name"))
        return self.shown(getattr(tracer, "name", None) if is_object(tracer) else tracer)

    def shown(self, value: Any) -> Any:  # noqa: PLR0911  the same
        """A result in the notation of the vectors."""
        match value:
            case NoopSpan():
                return {"$noop_span": True}
            case Span():
                return {"$span": self.label(value)}
            case Tracer() | NoopTracer():
                return self.tracer_result(value, None)
            case Event():
                return self.shown(value._asdict())
            case dict():
                return {key: self.shown(item) for key, item in value.items()}
            case list() | tuple():
                return [self.shown(item) for item in value]
        return value

    def label(self, span: Any) -> str | None:
        return self.labels.get(id(span), (None,))[0]

    def span_result(self, span: Any, label: str | None) -> Any:
        if label is not None:
            self.spans[label] = span
            self.labels[id(span)] = label, span
            self.made.append(label)
        if span is NOOP_SPAN:
            return {"$noop_span": True}
        return {"span": self.shown(span)} | ({"state": self.state(span)} if self.has_states else {})

    def tracer_result(self, tracer: Any, label: str | None) -> Any:
        label = next((name for name, other in self.tracers.items() if other is tracer), label)
        return {"$tracer": label, "name": tracer.name}

    # Operations.

    def op_phase(self, ngx: str | None = None, kong: str | None = None) -> None:
        self.phase, self.kong_phase = str(ngx), kong
        self.enter()

    def op_new_request(self) -> None:
        self.ctx = {}
        self.made.clear()
        self.enter()

    def op_config(self, tracing_sampling_rate: Any = None) -> None:
        self.provider.sampling_rate = decode(tracing_sampling_rate)

    def op_table(self, as_: str, value: Any = None) -> None:
        # A span takes further keys into the table that is given to it.
        self.tables[as_] = lua_table(self.value(value))

    def op_peek(self, value: Any = None) -> Any:
        return self.shown(self.value(value))

    def op_new_tracer(self, via: str | None = None, args: Any = (), call: bool = False, as_: str | None = None) -> Any:
        maker = self.tracers[via] if via else self.global_tracer()
        tracer = (maker if call else maker.new)(*args)
        shown = self.tracer_result(tracer, as_)
        self.name_tracer(as_, tracer)
        if isinstance(tracer, NoopTracer):
            return {"tracer": shown, "name": "noop", "spans_key": "noop"}
        return {"tracer": shown, "name": tracer.name, "spans_key": tracer.spans_key, "active_key": tracer.active_key}

    def name_tracer(self, label: str | None, tracer: Any) -> None:
        if label is not None:
            self.tracers[label] = tracer

    def global_tracer(self) -> Any:
        return self.provider.global_tracer if self.pretender is None else self.pretender

    def op_global_tracer(self, as_: str | None = None) -> Any:
        tracer = self.global_tracer()
        self.name_tracer(as_, tracer)
        return self.global_result(tracer)

    def op_kong_tracing(self) -> Any:
        return None if self.kong_tracing is None else self.global_result(self.kong_tracing)

    def global_result(self, tracer: Any) -> Any:
        """A tracer; its name, if it is none."""
        return self.tracer_result(tracer, None) if isinstance(tracer, (Tracer, NoopTracer)) else self.name_of(tracer)

    def op_set_global_tracer(self, via: str | None = None, args: Any = ()) -> None:
        setter = self.tracers[via] if via else self.global_tracer()
        set_global_tracer = setter.set_global_tracer
        pretender = args[0] if args and is_called_noop(args[0]) else None
        try:
            set_global_tracer(*args)
        except ApiError:
            if pretender is not None:
                self.pretender = self.kong_tracing = pretender
            raise
        self.pretender = None
        self.kong_tracing = self.provider.global_tracer

    def op_start_span(self, tracer: str, args: Any = (), as_: str | None = None) -> Any:
        return self.span_result(self.tracers[tracer].start_span(*args), as_)

    def op_create_span(self, tracer: str, args: Any = (), as_: str | None = None) -> Any:
        return self.span_result(self.tracers[tracer].create_span(*args), as_)

    def op_link_span(self, tracer: str, args: Any = (), as_: str | None = None) -> Any:
        span = self.tracers[tracer].link_span(*args)
        if span is None:
            return None
        result = self.span_result(span, as_)
        # Unlike the others, this one shows the no-op span as a span, with the fields that it has.
        return {"span": result} | ({"state": {}} if self.has_states else {}) if span is NOOP_SPAN else result

    def op_set_active_span(self, tracer: str, args: Any = ()) -> None:
        return self.tracers[tracer].set_active_span(*map(lua_table, args))

    def op_active_span(self, tracer: str) -> Any:
        return self.shown(self.tracers[tracer].active_span())

    def op_get_root_span(self, tracer: str) -> Any:
        return self.shown(self.tracers[tracer].get_root_span())

    def op_get_spans(self, tracer: str) -> Any:
        return self.list_result(self.tracers[tracer].get_spans())

    def op_init_spans(self, tracer: str) -> Any:
        return self.list_result(self.tracers[tracer].init_spans())

    def list_result(self, spans: Any) -> Any:
        if spans is None:
            return None
        return {"spans": [self.shown(span) for span in spans], "count": spans.item_count}

    op_process_span = of_tracer("process_span")
    op_set_should_sample = of_tracer("set_should_sample")
    op_get_sampling_decision = of_tracer("get_sampling_decision")
    op_add_event = of_span("add_event")
    op_record_error = of_span("record_error")
    op_set_status = of_span("set_status")
    op_finish = of_span("finish")

    def op_sampler(self, tracer: str, args: Any = ()) -> Any:
        return list(self.tracers[tracer].sampler(*map(as_id, args[:1]), *args[1:]))

    def op_set_attribute(self, span: str, args: Any = ()) -> None:
        return self.spans[span].set_attribute(*map(text_of, args[:1]), *args[1:])

    def op_release(self, span: str) -> None:
        self.spans[span].release()

    def op_each_baggage_item(self, span: str) -> Any:
        iterator = self.spans[span].each_baggage_item()
        return {"iterator": "function" if callable(iterator) else type(iterator).__name__, "first": iterator()}

    def op_dump_span(self, span: str) -> Any:
        return self.shown(NOOP_SPAN) if self.spans[span] is NOOP_SPAN else self.state(self.spans[span])

    def op_read(self, span: str, field: str) -> Any:
        value = None if field.startswith("_") else getattr(self.spans[span], field, None)
        return value.hex() if field in IDS and isinstance(value, bytes) else self.shown(value)

    def op_write(self, span: str, field: str, value: Any = None) -> None:
        self.written.setdefault(id(self.spans[span]), set()).add(field)
        if field.startswith("_"):
            raise AttributeError(f"{field!r} is none of a span's fields")
        setattr(self.spans[span], field, lua_table(self.value(value, field)))

    def op_set_raw_trace_id(self, value: Any = None) -> None:
        tracing_context(self.ctx).raw_trace_id = as_id(self.value(value))

    def op_get_raw_trace_id(self) -> Any:
        trace_id = tracing_context(self.ctx).raw_trace_id
        return trace_id.hex() if isinstance(trace_id, bytes) else trace_id

    def op_add_trace_id_formats(self, value: Any = None) -> Any:
        return tracing_context(self.ctx).add_trace_id_formats(self.value(value))

    def op_set_flags(self, value: Any = None) -> None:
        tracing_context(self.ctx).flags = self.value(value)

    def op_get_flags(self) -> Any:
        return tracing_context(self.ctx).flags

    def op_set_unlinked_span(self, name: str | None = None, span: str | None = None) -> None:
        unlinked = tracing_context(self.ctx).unlinked_spans
        if span is None:
            unlinked.pop(name, None)
        else:
            unlinked[name] = self.spans[span]

    def op_get_unlinked_span(self, name: str | None = None) -> Any:
        return self.shown(tracing_context(self.ctx).unlinked_spans.get(name))

    def op_end_request(self) -> None:
        self.provider.end_request(self.ctx)


def as_read(do: dict[str, Any], recorded: Any) -> Any:
    """What was read of a span: an id in hexadecimal, however it was recorded; events without their number."""
    match do.get("field"), recorded:
        case (("trace_id" | "span_id" | "parent_id"), {"$hex": text}):
            return text
        case "events", {"$pairs": pairs}:
            return {"$pairs": [[key, item] for key, item in pairs if key != 0]}
    return recorded


def as_id(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def is_object(value: Any) -> bool:
    """Whether it is of a kind that has fields in Lua."""
    return isinstance(value, (Span, NoopSpan, Tracer, NoopTracer))
