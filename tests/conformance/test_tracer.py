"""The tracer does what Kong's Lua code did (kong-semantics sections 3, 4, 6 to 9), replayed under profile ``kong``.

Every case is played step by step, and everything that was recorded is compared: results, errors, log lines, the state
of every span, the calls of a processor, the number of readings of the clock, and the ids in the order in which they
were drawn. A case with an operation, an argument or a field that this replay does not know fails. What differs on
purpose stands in `docs/deviations.md`, and here in `DEVIATIONS`. `pytest -rP` shows the number of comparisons.
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
from tests.conformance.vectors import as_double, cases, decode

LEVELS = {"error": "ERR", "warn": "WARN"}
IDS = frozenset({"trace_id", "span_id", "parent_id"})
FIELDS = (
    *("name", "trace_id", "span_id", "parent_id", "parent", "kind", "start_time_ns", "end_time_ns", "should_sample"),
    *("attributes", "events", "status", "linked", "active", "tracer"),
)
RUNTIME_ERRORS = (TypeError, AttributeError, KongTraceError)
"""What stands for an error of the Lua VM."""

DEVIATIONS: dict[str, Callable[["Replay", dict[str, Any], dict[str, Any]], bool]] = {
    "the no-op span has a harmless release": lambda replay, do, _: (
        do["op"] == "release" and replay.spans[do["span"]] is NOOP_SPAN
    ),
    "a span is recording": lambda replay, do, _: (
        do["op"] == "read" and do["field"] == "is_recording" and type(replay.spans[do["span"]]) is Span
    ),
    "a span has no fields of others": lambda replay, do, _: (
        do["op"] in {"read", "write"} and type(replay.spans[do["span"]]) is Span and not hasattr(Span, do["field"])
    ),
    "a table that is called noop is no tracer": lambda _, do, expect: (
        (do["op"] == "set_global_tracer" and do.get("args") == [{"name": "noop"}])
        or (do["op"] == "kong_tracing" and expect.get("ret") == "noop")
    ),
}
"""The steps whose outcome differs on purpose."""


def test_the_tracer_behaves_as_the_recorded_one():
    """Every step of every recorded case has the recorded outcome, and every case ends in the recorded state."""
    compared: Counter[str] = Counter()
    failures = {}
    for case in cases("tracer"):
        replay = Replay(case)
        try:
            replay.play()
        except Exception as error:  # noqa: BLE001  the other cases are to be seen too
            failures[f"{case['id']} {case['category']}"] = f"{type(error).__name__}: {error}"
        compared += replay.compared
        compared["cases"] += 1
    assert not failures, "\n".join(f"{name}: {error}" for name, error in failures.items())
    assert compared["cases"]
    print(dict(compared))


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
            fields = {key: plain(item) for key, item in value.items() if item is not None}
            is_list = fields.keys() == set(range(1, len(fields) + 1))
            return [fields[key] for key in sorted(fields)] if is_list else fields
        case Event():
            return plain(value._asdict())
        case list() | tuple():
            return [plain(item) for item in value]
    return value if not callable(value) else {"$fn": "function"}


class Replay:
    """One case: a fresh process, played from its first step to its last."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.has_states = not case["category"].startswith("random_") or case["category"] == "random_requests"
        self.compared: Counter[str] = Counter()
        self.logs: list[dict[str, str]] = []
        self.clock_calls = 0
        self.spans: dict[str, Any] = {}
        self.made: list[str] = []  # of spans made in the current request, oldest first
        self.tables: dict[str, Any] = {}
        self.called: list[dict[str, Any]] = []
        self.provider = TracerProvider(
            time_ns=self.time_ns, random_bytes=self.no_bytes, log=self.log, profile=KONG, sampling_rate=1
        )
        self.ids = {16: self.provider.trace_ids, 8: self.provider.span_ids}
        for size, supply in self.ids.items():
            supply.add([id_ for id_ in map(bytes.fromhex, case["rand"]) if len(id_) == size])
        self.tracers: dict[str, Any] = {"noop": self.provider.noop_tracer}
        self.kong_tracing: Any = None
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
                self.step(step["do"], step["expect"])
            except AssertionError as error:
                raise AssertionError(f"step {position} {step['do']}: {error}") from error
        self.equal("clock_calls", case["clock_calls"], self.clock_calls)
        self.equal("rand", 0, sum(len(supply.drawn) for supply in self.ids.values()))
        self.final(case["final"])
        return self.compared

    def step(self, do: dict[str, Any], expect: dict[str, Any]) -> None:
        known(expect, "ret", "err", "logs", "calls", "info")
        self.logs, self.called = [], []
        deviations = [name for name, applies in DEVIATIONS.items() if applies(self, do, expect)]
        operation: Callable[..., Any] = getattr(self, f"op_{do['op']}")
        arguments = {"as_" if name == "as" else name: value for name, value in do.items() if name not in {"op", "args"}}
        if "args" in do:
            arguments["args"] = [self.value(argument) for argument in do["args"]]
        signature(operation).bind(**arguments)  # an argument that the replay does not know
        error, returned = None, None
        try:
            returned = operation(**arguments)
        except RUNTIME_ERRORS as raised:
            error = raised
        if deviations:
            self.compared += Counter(f"deviation: {name}" for name in deviations)
            return
        self.error(expect.get("err"), error)
        if error is None:
            self.equal("ret", id_text(do, expect.get("ret")), returned)
        self.equal("logs", expect.get("logs", []), self.logs)
        if do["op"] == "process_span":
            self.equal("calls", expect["calls"], self.called)

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
        lists = {
            key: spans
            for key, trace in traces.items()
            if (spans := trace.spent if trace.spans is None else trace.spans) is not None
        }
        self.equal(
            "final spans", expected["spans"], {key: list(map(self.listed, spans)) for key, spans in lists.items()}
        )
        active = {
            f"{key.removesuffix('_SPANS')}_active_span": self.shown(trace.active) for key, trace in traces.items()
        }
        self.equal("final active", expected["active"], active)
        in_a_list = {id(span) for listed in lists.values() for span in listed}
        others = {
            label: self.state(self.spans[label])
            for label in self.made
            if label == self.label(self.spans[label])
            and id(self.spans[label]) not in in_a_list
            and self.state(self.spans[label])
        }
        self.equal("final other_spans", expected["other_spans"], others)

    def listed(self, span: Any) -> Any:
        return self.shown(span) if span is NOOP_SPAN else {**self.state(span), "label": self.label(span)}

    # Values.

    def value(self, recorded: Any, key: str = "") -> Any:  # noqa: PLR0911  one line for each notation
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
            case str() if key in IDS:
                return recorded.encode()
            case dict() if not any(name.startswith("$") for name in recorded):
                return {name: self.value(item, name) for name, item in recorded.items()}
            case list():
                return [self.value(item) for item in recorded]
        return decode(recorded)

    def collect(self, span: Any, *extra: Any) -> None:
        self.called.append({"span": self.shown(span)} | ({"extra": list(extra)} if extra else {}))

    def fail(self, *_: Any) -> None:
        raise ApiError("processor failed")

    def state(self, span: Any) -> dict[str, Any]:
        """The fields of a span in the notation of the vectors."""
        fields = {name: getattr(span, name) for name in FIELDS}
        return {
            name: value.hex() if name in IDS and isinstance(value, bytes) else self.shown(value)
            for name, value in fields.items()
            if value is not None
        } | ({"tracer": getattr(span.tracer, "name", None)} if span.tracer is not None else {})

    def shown(self, value: Any) -> Any:
        """A result in the notation of the vectors."""
        if value is NOOP_SPAN:
            return {"$noop_span": True}
        if isinstance(value, Span):
            return {"$span": self.label(value)}
        if isinstance(value, (Tracer, NoopTracer)):
            return self.tracer_result(value, None)
        return value

    def label(self, span: Any) -> str | None:
        return next((label for label, known_ in reversed(self.spans.items()) if known_ is span), None)

    def span_result(self, span: Any, label: str | None) -> Any:
        if label is not None:
            self.spans.pop(label, None)
            self.spans[label] = span
            self.made.append(label)
        if span is NOOP_SPAN:
            return {"$noop_span": True}
        return {"span": self.shown(span)} | ({"state": self.state(span)} if self.has_states else {})

    def tracer_result(self, tracer: Any, label: str | None) -> Any:
        label = next((name for name, other in self.tracers.items() if other is tracer), label)
        return {"$tracer": label, "name": tracer.name}

    # Operations.

    def op_phase(self, ngx: str, kong: str | None) -> None:
        self.phase, self.kong_phase = ngx, kong
        self.enter()

    def op_new_request(self) -> None:
        self.ctx = {}
        self.made.clear()
        self.enter()

    def op_config(self, tracing_sampling_rate: Any) -> None:
        self.provider.sampling_rate = decode(tracing_sampling_rate)

    def op_table(self, as_: str, value: Any) -> None:
        # A span takes further keys into the table that is given to it.
        self.tables[as_] = lua_table(self.value(value))

    def op_peek(self, value: Any) -> Any:
        return self.value(value)

    def op_new_tracer(self, via: str | None = None, args: Any = (), call: bool = False, as_: str | None = None) -> Any:
        maker = self.tracers[via] if via else self.provider.global_tracer
        tracer = (maker if call else maker.new)(*args)
        shown = self.tracer_result(tracer, as_)
        self.name_tracer(as_, tracer)
        if isinstance(tracer, NoopTracer):
            return {"tracer": shown, "name": "noop", "spans_key": "noop"}
        return {"tracer": shown, "name": tracer.name, "spans_key": tracer.spans_key, "active_key": tracer.active_key}

    def name_tracer(self, label: str | None, tracer: Any) -> None:
        if label is not None:
            self.tracers[label] = tracer

    def op_global_tracer(self, as_: str | None = None) -> Any:
        tracer = self.provider.global_tracer
        self.name_tracer(as_, tracer)
        return self.tracer_result(tracer, as_)

    def op_kong_tracing(self) -> Any:
        return None if self.kong_tracing is None else self.tracer_result(self.kong_tracing, None)

    def op_set_global_tracer(self, via: str | None = None, args: Any = ()) -> None:
        setter = self.tracers[via] if via else self.provider.global_tracer
        setter.set_global_tracer(*args)
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
        return self.tracers[tracer].set_active_span(*args)

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

    def op_process_span(self, tracer: str, args: Any = ()) -> None:
        return self.tracers[tracer].process_span(*args)

    def op_set_should_sample(self, tracer: str, args: Any = ()) -> None:
        return self.tracers[tracer].set_should_sample(*args)

    def op_get_sampling_decision(self, tracer: str, args: Any = ()) -> Any:
        return self.tracers[tracer].get_sampling_decision(*args)

    def op_sampler(self, tracer: str, args: Any = ()) -> Any:
        trace_id, *rate = args
        return list(self.tracers[tracer].sampler(as_id(trace_id), *rate))

    def op_set_attribute(self, span: str, args: Any = ()) -> None:
        return self.spans[span].set_attribute(*args)

    def op_add_event(self, span: str, args: Any = ()) -> None:
        return self.spans[span].add_event(*args)

    def op_record_error(self, span: str, args: Any = ()) -> None:
        return self.spans[span].record_error(*args)

    def op_set_status(self, span: str, args: Any = ()) -> None:
        return self.spans[span].set_status(*args)

    def op_finish(self, span: str, args: Any = ()) -> None:
        return self.spans[span].finish(*args)

    def op_release(self, span: str) -> None:
        self.spans[span].release()

    def op_each_baggage_item(self, span: str) -> Any:
        iterator = self.spans[span].each_baggage_item()
        return {"iterator": "function" if callable(iterator) else type(iterator).__name__, "first": iterator()}

    def op_dump_span(self, span: str) -> Any:
        return self.shown(NOOP_SPAN) if self.spans[span] is NOOP_SPAN else self.state(self.spans[span])

    def op_read(self, span: str, field: str) -> Any:
        value = getattr(self.spans[span], field, None)
        return value.hex() if field in IDS and isinstance(value, bytes) else self.shown(value)

    def op_write(self, span: str, field: str, value: Any = None) -> None:
        setattr(self.spans[span], field, self.value(value, field))

    def op_set_raw_trace_id(self, value: Any = None) -> None:
        tracing_context(self.ctx).raw_trace_id = as_id(self.value(value))

    def op_get_raw_trace_id(self) -> Any:
        trace_id = tracing_context(self.ctx).raw_trace_id
        return trace_id.hex() if isinstance(trace_id, bytes) else trace_id

    def op_add_trace_id_formats(self, value: Any) -> Any:
        return tracing_context(self.ctx).add_trace_id_formats(self.value(value))

    def op_set_flags(self, value: Any = None) -> None:
        tracing_context(self.ctx).flags = self.value(value)

    def op_get_flags(self) -> Any:
        return tracing_context(self.ctx).flags

    def op_set_unlinked_span(self, name: str, span: str | None = None) -> None:
        unlinked = tracing_context(self.ctx).unlinked_spans
        if span is None:
            unlinked.pop(name, None)
        else:
            unlinked[name] = self.spans[span]

    def op_get_unlinked_span(self, name: str) -> Any:
        return self.shown(tracing_context(self.ctx).unlinked_spans.get(name))

    def op_end_request(self) -> None:
        self.provider.end_request(self.ctx)


def id_text(do: dict[str, Any], recorded: Any) -> Any:
    """An id that was read from a span, in hexadecimal, however it was recorded."""
    return recorded["$hex"] if do.get("field") in IDS and isinstance(recorded, dict) else recorded


def as_id(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value
