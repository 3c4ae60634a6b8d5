"""The replay takes every shape that a recorded step may have, and notices what is otherwise than it was recorded.

The cases are short recordings of Kong's tracer, for shapes that the given vectors have seldom or never. A step is what
is called, what it comes to, and, where ours comes to something else, `DIFFERS`, or `PARTS` if the case ends there.
"""

from typing import Any, NamedTuple

import pytest

from tests.conformance.deviations import RULES
from tests.conformance.replay import Replay

DIFFERS, PARTS = "differs", "parts"
TRACE_ID, SPAN_ID = "{:032x}".format, "{:016x}".format
RUNTIME_ERROR = {"err": {"kind": "runtime", "msg": "whatever Lua says"}}
NO_PHASE = {"err": {"kind": "api", "msg": "no phase in ngx.ctx.KONG_PHASE, (need one of log)"}}
NOOP = {"$noop_span": True}
NOTHING = {"$fn": "noop"}
COLLECT = {"$fn": "collect"}

Step = tuple[Any, ...]


def op(name: str, *differs: str, expect: Any = (), **fields: Any) -> Step:
    return {"op": name, **fields}, dict(expect), *differs


def make(label: str = "t", *options: Any, ret: Any = None, **fields: Any) -> Step:
    keys = {"spans_key": "KONG_SPANS", "active_key": "KONG_active_span"}
    ret = ret or {"tracer": {"$tracer": label, "name": label}, "name": label, **keys}
    return op("new_tracer", expect={"ret": ret}, args=[label, *options], **{"as": label}, **fields)


def start(label: str = "s", *options: Any, tracer: str = "t") -> Step:
    ret = NOOP if tracer == "noop" else {"span": {"$span": label}}
    return op("start_span", expect={"ret": ret}, tracer=tracer, args=[label, *options], **{"as": label})


def create(*args: Any, differs: tuple[str, ...] = ()) -> Step:
    return op("create_span", *differs, expect={"ret": {"span": {"$span": "c"}}}, tracer="t", args=args, **{"as": "c"})


def use(name: str, *args: Any, on: str = "t", differs: tuple[str, ...] = (), **expect: Any) -> Step:
    return op(name, *differs, expect=expect, tracer=on, args=list(args))


def call(name: str, *args: Any, on: str = "s", differs: tuple[str, ...] = (), **expect: Any) -> Step:
    return op(name, *differs, expect=expect, span=on, args=list(args))


def write(field: str, value: Any, *differs: str, on: str = "s", **expect: Any) -> Step:
    return op("write", *differs, expect=expect, span=on, field=field, value=value)


def read(field: str, *differs: str, on: str = "s", **expect: Any) -> Step:
    return op("read", *differs, expect=expect, span=on, field=field)


def dump(label: str = "s", number: int = 1, **fields: Any) -> Step:
    """The state of the `number`th span, by default a root."""
    state = {"name": label, "trace_id": TRACE_ID(number), "span_id": SPAN_ID(number), "kind": 1}
    state |= {"start_time_ns": 990 + 10 * number, "should_sample": True, "linked": True, "tracer": "t"} | fields
    ret = {name: value for name, value in state.items() if value is not None}
    return op("dump_span", expect={"ret": ret}, span=label)


def process(*extra: Any, shown: Any) -> Step:
    calls = [{"span": {"$span": "s"}, "extra": shown}]
    return use("process_span", COLLECT, *extra, calls=calls)


LOG = op("phase", ngx="log", kong="log")
END, NEXT = op("end_request"), op("new_request")
PAIRS = {"$pairs": [["trace_id", "mine"], ["parent_id", {"$rep": ["a", "b", 2]}], ["parent", None], [1, "list"]]}
PRETENDER = {"name": "noop", "more": 1}
GLOBAL = {"$tracer": "t", "name": "t"}


class Case(NamedTuple):
    """What is called one after the other, how many ids are drawn, and how often the clock is read."""

    steps: list[Step]
    traces: int = 1
    spans: int = 1
    clock_calls: int = 1
    final: dict[str, Any] | None = None

    def recorded(self) -> dict[str, Any]:
        """The case as the vectors have it."""
        ids = [TRACE_ID(number + 1) for number in range(self.traces)]
        ids += [SPAN_ID(number + 1) for number in range(self.spans)]
        return {
            "id": "own",
            "category": "random_own",
            "clock": {"start": 1000, "step": 10},
            "rand": ids,
            "clock_calls": self.clock_calls,
            "steps": [{"do": do, "expect": expect} for do, expect, *_ in self.steps],
            **({} if self.final is None else {"final": self.final}),
        }


CASES = {
    "what is missing is nil": Case(
        [
            op("phase", ngx="access"),
            op("config"),
            op("table", **{"as": "a"}),
            op("peek"),
            op("set_raw_trace_id"),
            op("add_trace_id_formats"),
            op("add_trace_id_formats", value={"w3c": "aa"}, expect=RUNTIME_ERROR),
            op("get_unlinked_span"),
            make(),
            op("sampler", tracer="t", expect={"ret": [True, None]}),
            op("process_span", tracer="t", expect={**NO_PHASE, "calls": []}),
        ],
        *(0, 0, 0),
    ),
    "ids may be repeated text": Case(
        [
            make(),
            start("s", {"trace_id": {"$rep": ["e1:", "x", 2]}, "parent_id": {"$rep": ["", "y", 1]}}),
            dump(trace_id="65313a7878", parent_id="79"),
            use("sampler", {"$rep": ["a", "b", 9]}, 0.5, ret=[True, None]),
        ],
        traces=0,
    ),
    "options may stand in a table of pairs": Case(
        [
            make(),
            start("s", PAIRS),
            dump(trace_id="6d696e65", parent_id="616262"),
            start("c", {"$pairs": [["parent", {"$span": "s"}], [1, 2]]}),
            dump("c", 2, trace_id="6d696e65", parent_id=SPAN_ID(1), parent={"$span": "s"}),
        ],
        *(0, 2, 2),
    ),
    "what a processor is given besides is shown, and what is in it": Case(
        [
            make(),
            start(),
            op("table", value={"k": [{"$span": "s"}]}, **{"as": "a"}),
            LOG,
            process({"$span": "s"}, NOOP, shown=[{"$span": "s"}, NOOP]),
            process({"$tracer": "t"}, 5, {"$tracer": "noop"}, shown=[GLOBAL, 5, {"$tracer": "noop", "name": "noop"}]),
            process({"$ref": "a"}, None, shown=[{"k": [{"$span": "s"}]}, None]),
            process({"$pairs": [[5, {"$span": "s"}]]}, NOTHING, shown=[{"$pairs": [[5, {"$span": "s"}]]}, NOTHING]),
        ],
    ),
    "spans and tracers are shown in attributes": Case(
        [
            make(),
            start("s", {"attributes": {"list": [NOOP, {"$tracer": "t"}]}}),
            call("set_attribute", "self", {"$span": "s"}),
            call("add_event", "e", {"of": {"$span": "s"}}),
            dump(
                attributes={"list": [NOOP, GLOBAL], "self": {"$span": "s"}},
                events=[{"name": "e", "time_ns": 1010, "attributes": {"of": {"$span": "s"}}}],
            ),
            read(
                "events",
                ret={"$pairs": [[0, 1], [1, {"name": "e", "time_ns": 1010, "attributes": {"of": {"$span": "s"}}}]]},
            ),
        ],
        clock_calls=2,
    ),
    "what is more than a function's parameters is ignored": Case(
        [
            make("t", None, 5),
            start("s", None, 5),
            use("set_active_span", {"$span": "s"}, 1),
            use("active_span", 1, ret={"$span": "s"}),
            use("get_spans", 1, ret={"spans": [{"$span": "s"}], "count": 1}),
            call("set_attribute", "k", 1, 2),
            call("add_event", "e", None, 5, None),
            call("record_error", "e", 1),
            call("set_status", 1, 2),
            call("finish", None, None),
            dump(
                attributes={"k": 1},
                events=[
                    {"name": "e", "time_ns": 5},
                    {"name": "exception", "time_ns": 1010, "attributes": {"exception.message": "e"}},
                ],
                status=1,
                end_time_ns=1020,
            ),
            create(None, None, 5),
            use("link_span", {"$tracer": "t"}, {"$span": "c"}, "n", None, 5, ret={"span": {"$span": "c"}}),
            use("set_should_sample", False, 5),
            use("get_sampling_decision", True, None, 5, ret=True),
            use("sampler", "abcdefgh", 1, 5, ret=[True, None]),
            call("release", 5),
            start("n", 2, 3, 4, 5, 6, 7, 8, 9, tracer="noop"),
            call("finish", 1, 2, on="n"),
            call("set_status", 1, 2, on="n"),
            call("add_event", 1, 2, 3, 4, on="n"),
            use("set_active_span", 1, 2, on="noop"),
            op("set_global_tracer", args=[{"$tracer": "t"}, 5]),
        ],
        *(2, 2, 4),
    ),
    "a table that is called noop is the global tracer until there is another": Case(
        [
            make(),
            op("set_global_tracer", DIFFERS, args=[PRETENDER]),
            op("kong_tracing", expect={"ret": "noop"}),
            op("global_tracer", expect={"ret": "noop"}, **{"as": "g"}),
            use("start_span", "s", on="g", **RUNTIME_ERROR),
            op("new_tracer", args=["u"], expect=RUNTIME_ERROR),
            op("set_global_tracer", args=[{"$tracer": "t"}], expect=RUNTIME_ERROR),
            op("set_global_tracer", DIFFERS, args=[{"$tracer": "g"}], via="t"),
            op(
                "set_global_tracer",
                args=[{"name": "other"}],
                via="t",
                expect={"err": {"kind": "api", "msg": "invalid tracer"}},
            ),
            op("kong_tracing", expect={"ret": "noop"}),
            op("set_global_tracer", args=[{"$tracer": "t"}], via="t"),
            op("kong_tracing", expect={"ret": GLOBAL}),
            make("u"),
        ],
        *(0, 0, 0),
    ),
    "so is a span of that name, and a shared table": Case(
        [
            make(),
            start("noop"),
            op("set_global_tracer", DIFFERS, args=[{"$span": "noop"}]),
            op("kong_tracing", expect={"ret": "noop"}),
            op("table", value=PRETENDER, **{"as": "a"}),
            op("set_global_tracer", args=[{"$ref": "a"}], expect=RUNTIME_ERROR),
            op("set_global_tracer", DIFFERS, args=[{"$ref": "a"}], via="t"),
            op("global_tracer", expect={"ret": "noop"}),
        ],
    ),
    "what a span has that Kong's has not is not missed": Case(
        [
            make(),
            start(),
            read("is_recording", DIFFERS),
            read("set_attributes", DIFFERS),
            read("finish", ret={"$fn": "function"}),
            read("_provider"),
            read("foo"),
            write("foo", 1, DIFFERS),
            read("foo", DIFFERS, ret=1),
            write("_provider", 1, DIFFERS),
            call("release"),
            read("is_recording", DIFFERS),
            read("finish", DIFFERS),
            write("foo", 1, DIFFERS),
        ],
    ),
    "what is written to the no-op span is not forgotten": Case(
        [
            start("n", tracer="noop"),
            read("release", DIFFERS, on="n"),
            call("release", on="n", differs=(DIFFERS,), **RUNTIME_ERROR),
            write("is_recording", False, on="n"),
            write("name", "n", on="n"),
            read("name", on="n"),
            write("is_recording", True, on="n"),
            read("is_recording", DIFFERS, on="n", ret=True),
            write("finish", 5, on="n"),
            call("finish", on="n", differs=(DIFFERS,), **RUNTIME_ERROR),
        ],
        *(0, 0, 0),
    ),
    "text and the same in bytes are one key, 1 and true are two": Case(
        [
            make(),
            start(),
            call("set_attribute", "k", 1),
            call("set_attribute", {"$hex": "6b"}, {"$pairs": [[True, "a"], [1, "b"], [{"$hex": "6b"}, "c"]]}),
            call("set_attribute", {"$hex": "ff"}, 1),
            dump(attributes={"$pairs": [["k", {"$pairs": [[1, "b"], [True, "a"], ["k", "c"]]}], [{"$hex": "ff"}, 1]]}),
        ],
    ),
    "a list that is written, or made active, takes fields": Case(
        [
            make(),
            start(),
            write("attributes", ["x"]),
            call("set_attribute", "a", 1),
            write("events", []),
            call("add_event", "e", **RUNTIME_ERROR),
            dump(attributes={"$pairs": [[1, "x"], ["a", 1]]}, events=[]),
            use("set_active_span", ["z"]),
            use("active_span", ret={"$pairs": [[1, "z"], ["active", True]]}),
            start("c", {"parent": ["p"]}),
            use("set_active_span", {"$span": "c"}),
            call("finish", on="c"),
            use("active_span", ret={"$pairs": [[1, "p"], ["active", True]]}),
        ],
        *(2, 2, 4),
    ),
    "whatever a span has for a tracer is shown": Case(
        [
            make(),
            start(),
            create({"name": "t", "more": 1}, {"parent": {"$span": "s"}}),
            use("link_span", {"$tracer": "t"}, {"$span": "c"}, "c", ret={"span": {"$span": "c"}}),
            dump("c", 2, trace_id=TRACE_ID(1), parent_id=SPAN_ID(1), parent={"$span": "s"}),
            create(5, {"parent": {"$span": "s"}}),
            read("tracer", on="c", ret=5),
            create(NOTHING, {"parent": {"$span": "s"}}),
            read("tracer", on="c", ret={"$fn": "function"}),
            create(False, {"parent": {"$span": "s"}}),
            read("tracer", on="c", ret=False),
        ],
        *(1, 5, 2),
    ),
    "what Lua cannot log, or take for an id, is no error here": Case(
        [
            make(),
            start(),
            use("link_span", {"$tracer": "t"}, {"$span": "s"}, {"a": 1}, ret={"span": {"$span": "s"}}),
            call("finish", 1, differs=(DIFFERS,), **RUNTIME_ERROR),
            use("sampler", [1, 2, 3, 4, 5, 6, 7, 8], 0.5, differs=(DIFFERS,), **RUNTIME_ERROR),
        ],
        clock_calls=2,
    ),
    "a label may be given again": Case(
        [
            make(),
            start(),
            start(),
            use("get_spans", ret={"spans": [{"$span": "s"}, {"$span": "s"}], "count": 2}),
            dump(number=2),
        ],
        *(2, 2, 2),
    ),
    "a list that has been released has no count until it is lent": Case(
        [
            make(),
            start(),
            END,
            use("get_spans", ret={"spans": []}),
            END,
            NEXT,
            start("u"),
            NEXT,
            use("get_spans", ret={"spans": [{"$span": "u"}], "count": 0}),
        ],
        *(2, 2, 2),
        final={
            "spans": {
                "KONG_SPANS": [
                    {"name": "u", "trace_id": TRACE_ID(2), "span_id": SPAN_ID(2), "kind": 1, "start_time_ns": 1010}
                    | {"should_sample": True, "linked": True, "tracer": "t", "label": "u"}
                ]
            },
            "active": {},
            "other_spans": {},
        },
    ),
}

TOO_SHORT = "sampler failure: sampling needs trace ID to be longer than 8 bytes to work"
NO_TRACER = {"tracer": {"$tracer": "noop", "name": "noop"}, "name": "noop", "spans_key": "noop"}
SHORT = op(
    "start_span",
    expect={"ret": {"span": {"$span": "s"}}, "logs": [{"level": "ERR", "msg": TOO_SHORT}]},
    **{"tracer": "t", "args": ["s", {"trace_id": NOOP}], "as": "s"},
)
TABLE = {"name": "n", "linked": True, "start_time_ns": 1000, "tracer": GLOBAL}
ACTIVE = [make(), start(), use("set_active_span", {"$span": "s"})]
LAST = {
    "a method is no field": [make(), start(), write("finish", NOTHING, PARTS)],
    "what marks a span is no field": [make(), start(), write("is_recording", False, PARTS)],
    "linked is no field": [make(), start(), write("linked", None, PARTS)],
    "a start links": [make(), create(), write("start_time_ns", 5, PARTS, on="c")],
    "no start unlinks": [make(), start(), write("start_time_ns", None, PARTS)],
    "a span is no options": [make(), start(), (*start("u", {"$span": "s"}), PARTS)],
    "a tracer is no options": [make(), (*make("u", {"$tracer": "noop"}), PARTS)],
    "a span is no attributes": [make(), (*start("s", {"attributes": NOOP}), PARTS)],
    "a span is no attributes of an event": [make(), start(), call("add_event", "e", {"$span": "s"}, differs=(PARTS,))],
    "a tracer is no parent": [make(), (*start("s", {"parent": {"$tracer": "noop"}}), PARTS)],
    "a span is no trace id": [make("t", {"sampling_rate": 0.5}), (*SHORT, PARTS)],
    "a tracer cannot be active": [make(), use("set_active_span", {"$tracer": "t"}, differs=(PARTS,))],
    "a function can be active": [make(), use("set_active_span", NOTHING, differs=(PARTS,), **RUNTIME_ERROR)],
    "false is inherited": [*ACTIVE, write("span_id", False), (*start("u"), PARTS)],
    "text is no options of a tracer": [
        make(),
        (*make("KONG_t"),),
        (*make("t", "x", ret=make("KONG_t")[1]["ret"]), PARTS),
    ],
    "nan is no name": [op("new_tracer", PARTS, expect={"ret": NO_TRACER}, args=[{"$num": "nan"}, {"noop": True}])],
    "a list decides": [
        make("t", {"sampling_rate": 0.5}),
        (*start("s", {"trace_id": [1] * 8})[:1], RUNTIME_ERROR, PARTS),
    ],
    "the tracer that links may be left out": [
        make(),
        create(),
        use("link_span", {"$span": "c"}, "c", differs=(PARTS,), **RUNTIME_ERROR),
    ],
    "a table is no span": [
        make(),
        use("link_span", {"$tracer": "t"}, {}, "n", differs=(PARTS,), ret={"span": TABLE}),
    ],
}
"""Cases that end with their last step, since what follows it would rest on a difference."""

ENOUGH = 2, 2  # ids


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_case_passes(case):
    """Each step comes out as recorded, or is known to differ; so many do as are marked."""
    compared = Replay(case.recorded()).play()
    deviations = sum(number for what, number in compared.items() if what.startswith("deviation"))
    assert deviations == sum(DIFFERS in step[2:] for step in case.steps)
    assert compared["rand"] == 1


@pytest.mark.parametrize("steps", LAST.values(), ids=LAST)
def test_a_case_ends_where_the_two_are_in_different_states(steps):
    """What comes after is not played."""
    compared = Replay(Case([*steps, op("not an operation")], *ENOUGH).recorded()).play()
    assert compared["cases cut short"] == 1
    assert "rand" not in compared


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_wrong_expectation_fails(case):
    """Of every step that is not known to differ: another result, another error, a line in the log."""
    for number, (do, expect, *differs) in enumerate(case.steps):
        if differs:
            continue
        wrong = [{**expect, "logs": [{"level": "ERR", "msg": "a line"}]}]
        if "err" in expect:
            wrong.append({name: value for name, value in expect.items() if name != "err"})
        else:
            wrong += [{**expect, "ret": "another"}, {**expect, **RUNTIME_ERROR}]
        for other in wrong:
            steps = [*case.steps[:number], (do, other), *case.steps[number + 1 :]]
            with pytest.raises(AssertionError):
                Replay(case._replace(steps=steps).recorded()).play()


@pytest.mark.parametrize("field", ["traces", "spans", "clock_calls"])
def test_what_is_left_over_fails(field):
    """An id that nobody has drawn, a reading of the clock that nobody has made."""
    case = CASES["a label may be given again"]
    with pytest.raises(AssertionError):
        Replay(case._replace(**{field: getattr(case, field) + 1}).recorded()).play()


def test_every_rule_is_needed():
    """Each is met by a case here."""
    compared = {}
    for case in [*CASES.values(), *(Case(steps, *ENOUGH) for steps in LAST.values())]:
        compared |= Replay(case.recorded()).play()
    assert {f"deviation: {name}" for name in RULES} - compared.keys() == set()
