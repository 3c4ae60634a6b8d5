"""The replays themselves, with cases of our own for what no recorded case touches, in the notation of the vectors.

What each case expects follows from kong-semantics. It passes, and fails as soon as it expects something else.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Final, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from kongtrace.otlp import KONG, Encoder
from tests.conformance.test_otlp import NODE, read_message, replay_traces
from tests.conformance.test_queue import compare_run

LIMITS: Final = {
    "concurrency_limit": 1,
    "initial_retry_delay": 0.01,
    "max_batch_size": 1,
    "max_coalescing_delay": 1,
    "max_entries": 10_000,
    "max_retry_delay": 60,
    "max_retry_time": 60,
}


class QueueCase(NamedTuple):
    """A case of the family queue, whose queues are absent in the end.

    Attributes:
        queues: by label, in what they differ from `LIMITS`.
        actions: what is done.
        trace: what comes of it.
        wrong: a place in the trace, and a record that is not there.
        returns: what each call of a handler returns, the last one again and again.
    """

    queues: dict[str, dict[str, Any]]
    actions: list[dict[str, Any]]
    trace: list[dict[str, Any]]
    wrong: tuple[int, dict[str, Any]]
    returns: Sequence[list[Any]] = ([True],)

    def case(self, trace: list[dict[str, Any]]) -> dict[str, Any]:
        """In the notation of the vectors."""
        calls = [record["queue"] for record in self.trace if record["ev"] == "call"]
        return {
            "queues": {label: LIMITS | limits for label, limits in self.queues.items()},
            "handlers": {label: [{"returns": values} for values in self.returns] for label in self.queues},
            "actions": self.actions,
            "trace": trace,
            "final": {
                "t": self.trace[-1]["t"],
                "queues": {label: {"exists": False, "handler_calls": calls.count(label)} for label in self.queues},
            },
        }


def put(t: int, queue: str, entry: Any, **more: Any) -> dict[str, Any]:
    return {"do": "enqueue", "t": t, "queue": queue, "entry": entry, **more}


def acted(i: int, t: int, **seen: Any) -> dict[str, Any]:
    return {"ev": "action", "i": i, "t": t, **seen}


def called(t: int, queue: str, *entries: int, n: int = 1) -> dict[str, Any]:
    return {"ev": "call", "t": t, "queue": queue, "n": n, "entries": list(entries)}


def logged(t: int, level: str, message: str) -> dict[str, Any]:
    return {"ev": "log", "t": t, "level": level, "msg": f"[] queue q: {message}"}


def failed(reason: str) -> str:
    return f"handler could not process entries: {reason}"


def refused(argument: str) -> dict[str, Any]:
    return acted(0, 0, err={"kind": "api", "msg": argument})


FUNCTION: Final = {"$fn": "noop"}
NULL: Final = {"$null": True}
NAN: Final = {"$num": "nan"}
ONE_OF_MIXED_KEYS, THE_OTHER = ({"$pairs": [[2, "x"], ["a", number], [{"$hex": "ff"}, 1]]} for number in (1, 2))
AN_ADDRESS: Final = "function: 0xADDR"
GIVEN_UP: Final = "could not send entries due to max_retry_time exceeded. 1 queue entries were lost"
NO_REASON: Final = (
    failed("no error details returned by handler"),
    "handler returned falsy value but no error information",
    GIVEN_UP,
)
NON_STRING: Final = (
    "queuing non-string entry to a queue that has queue.max_bytes set, capacity monitoring will not be correct"
)
NO_LENGTH: Final = "attempt to get length of local 'entry' (a userdata value)"
NO_TABLE: Final = "arg #3 (handler_conf) must be a table or nil"

QUEUE_CASES: Final = {
    "the first entry of a burst wakes a job, though a later one fills the batch": QueueCase(  # Q16
        {"q": {"max_batch_size": 3}, "z": {}},
        [put(0, "q", "a"), put(10, "q", "b"), put(10, "z", "x"), put(10, "q", "c")],
        [acted(0, 0), acted(1, 10), acted(2, 10), acted(3, 10), called(10, "q", 0, 1, 3), called(10, "z", 2)],
        (4, called(10, "z", 2)),
    ),
    "delays that end together end in the order of the last entries": QueueCase(  # Q16
        {"q": {"max_batch_size": 9}, "z": {"max_batch_size": 9}},
        [put(0, "q", "a"), put(0, "z", "x"), put(10, "z", "b"), put(20, "q", "c")],
        [acted(0, 0), acted(1, 0), acted(2, 10), acted(3, 20), called(1000, "z", 1, 2), called(1000, "q", 0, 3)],
        (4, called(1000, "q", 0, 3)),
    ),
    "entries are told apart by what they hold, whatever their keys": QueueCase(
        {"q": {"max_batch_size": 3}},
        [put(0, "q", ONE_OF_MIXED_KEYS), put(0, "q", THE_OTHER), put(0, "q", ONE_OF_MIXED_KEYS)],
        [acted(0, 0), acted(1, 0), acted(2, 0), called(0, "q", 2, 1, 2)],
        (3, called(0, "q", 2, 2, 2)),
    ),
    "a function as the reason of a failure is told by its kind": QueueCase(  # Q19
        {"q": {"max_retry_time": -1}},
        [put(0, "q", "a")],
        [acted(0, 0), called(0, "q", 0), logged(0, "WARN", failed(AN_ADDRESS)), logged(0, "ERR", GIVEN_UP)],
        (2, logged(0, "WARN", failed("table: 0xADDR"))),
        returns=[[False, FUNCTION]],
    ),
    "null as the reason of a failure is told by its name": QueueCase(  # Q19
        {"q": {"max_retry_time": -1}},
        [put(0, "q", "a")],
        [acted(0, 0), called(0, "q", 0), logged(0, "WARN", failed("userdata: NULL")), logged(0, "ERR", GIVEN_UP)],
        (2, logged(0, "WARN", failed("nil"))),
        returns=[[False, NULL]],
    ),
    "a handler that returns nothing has failed": QueueCase(  # Q19
        {"q": {"max_retry_time": -1}},
        [put(0, "q", "a", raw_handler=FUNCTION)],
        [acted(0, 0), *map(logged, (0, 0, 0), ("WARN", "ERR", "ERR"), NO_REASON)],
        (1, called(0, "q", 0)),
    ),
    "a list is a table without a name": QueueCase(  # Q11
        {"q": {}},
        [put(0, "q", "a", raw_conf=[1])],
        [refused("arg #1 (queue_conf) must include a name")],
        (0, refused("arg #1 (queue_conf) must be a table")),
    ),
    "null has no length": QueueCase(  # Q14
        {"q": {"max_bytes": 10}},
        [put(0, "q", NULL)],
        [acted(0, 0, err={"kind": "runtime", "msg": NO_LENGTH}), logged(0, "ERR", NON_STRING)],
        (0, acted(0, 0)),
    ),
    "null can be queued where bytes do not count": QueueCase(  # Q11
        {"q": {}},
        [put(0, "q", NULL)],
        [acted(0, 0), called(0, "q", 0)],
        (0, acted(0, 0, ret=[None, "entry must be a non-nil Lua value"])),
    ),
    "a function is no configuration of a handler": QueueCase(  # Q11
        {"q": {}}, [put(0, "q", "a", handler_conf=FUNCTION)], [refused(NO_TABLE)], (0, acted(0, 0))
    ),
    "null is no configuration of a handler": QueueCase(  # Q11
        {"q": {}}, [put(0, "q", "a", handler_conf=NULL)], [refused(NO_TABLE)], (0, acted(0, 0))
    ),
}


@pytest.mark.parametrize("what", QUEUE_CASES)
def test_the_replay_of_queues_tells_a_right_record_from_a_wrong_one(what):
    """What is expected passes, and one record that is not there fails."""
    case = QUEUE_CASES[what]
    compare_run(case.case(case.trace))
    position, record = case.wrong
    wrong = deepcopy(case.trace)
    wrong[position] = record
    with pytest.raises(AssertionError, match=f"^record {position} is "):
        compare_run(case.case(wrong))


TRACE_ID: Final = "0af7651916cd43dd8448eb211c80319c"
NOTHING: Final[dict[str, Any]] = {}
REFUSED: Final = None


def otlp_case(given: dict[str, Any], written: dict[str, Any] | None) -> dict[str, Any]:
    """A case of the family otlp: one span with these fields, and what is on the wire of it; None: it raises."""
    expect: dict[str, Any] = {"err": {"kind": "runtime", "msg": "bad argument #2 to 'encode'"}}
    if written is not None:
        request = ExportTraceServiceRequest()
        scope_spans = request.resource_spans.add().scope_spans.add()
        scope_spans.scope.name, scope_spans.scope.version = "kong-internal", "0.1.0"
        scope_spans.spans.append(Span(trace_id=bytes.fromhex(TRACE_ID), **written))
        resource = Encoder(KONG).encode_resource(None, **NODE)
        request.resource_spans[0].MergeFromString(resource)
        payload = request.SerializeToString()
        expect = {"payload": payload.hex(), "decoded": read_message(request.DESCRIPTOR, payload)}
    span = {"trace_id": TRACE_ID} | given
    return {"kind": "traces", "category": "random", "encodes": [{"spans": [span]}], "expect": [expect]}


def status_code(value: Any) -> dict[str, Any]:
    return {"attributes": {"http.status_code": value}}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({"events": True}, NOTHING),
        ({"events": 5}, NOTHING),
        ({"events": {"a": 1}}, NOTHING),
        ({"events": {"$pairs": [[1, {"name": "e"}], ["a", 1]]}}, {"events": [Span.Event(name="e")]}),
        ({"events": [[]]}, {"events": [Span.Event()]}),
        ({"status": True}, NOTHING),
        ({"kind": True}, REFUSED),
    ],
    ids=repr,
)
def test_the_replay_of_spans_takes_any_value_for_a_field(given, written):
    """A table's list is what Lua walks, and what is no table has none."""  # L4
    assert list(replay_traces(otlp_case(given, written)))
    for wrong in (REFUSED if written is NOTHING else NOTHING, {"status": Status(code="STATUS_CODE_OK")}):
        with pytest.raises(AssertionError):
            list(replay_traces(otlp_case(given, wrong)))


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({"end_time_ns": "0x10"}, {"end_time_unix_nano": 16}),
        ({"end_time_ns": NAN}, {"end_time_unix_nano": 2**63}),
        ({"kind": "SPAN_KIND_SERVER"}, {"kind": "SPAN_KIND_SERVER"}),
        (status_code("nan"), NOTHING),
        (status_code("#200"), NOTHING),
        ({"status": {}}, NOTHING),
        ({"status": False}, REFUSED),
        ({"attributes": False}, REFUSED),
        ({"events": False}, REFUSED),
    ],
    ids=repr,
)
def test_the_replay_of_spans_knows_what_one_side_refuses(given, written):
    """Numerals that are none in Python, a table for a status; false, which is nothing here."""
    assert list(replay_traces(otlp_case(given, written)))


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({"end_time_ns": "16"}, REFUSED),
        ({"end_time_ns": 1e300}, {"end_time_unix_nano": 2**63}),
        ({"name": 5}, NOTHING),
        (status_code(False), NOTHING),
        ({"status": 0}, REFUSED),
        ({"attributes": {}}, REFUSED),
        ({"events": []}, REFUSED),
    ],
    ids=repr,
)
def test_the_replay_of_spans_lets_neither_side_refuse_anything_else(given, written):
    """Whatever else one side refuses, the other has to."""
    with pytest.raises(AssertionError, match=r"^raised "):
        list(replay_traces(otlp_case(given, written)))
