"""The replay of header propagation understands every case that the vectors' format allows, and tells a wrong one.

The cases below are made by hand, in the notation of the vectors, of what the given ones do not show.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.test_propagation import REPLAYS

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
IDS = {"trace_id": TRACE_ID, "span_id": SPAN_ID}
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
EXTRACTED = {**IDS, "should_sample": True, "w3c_flags": 1, "trace_id_original_size": 16}
RAISES = {"kind": "runtime", "msg": "attempt to index a nil value"}
NULL = {"$null": True}
ADDRESS = "0x7f3a5c0e9d48"

UBER_TRACE_ID = f"{TRACE_ID}:{SPAN_ID}:0:01"
REPEATED = {"uber-trace-id": UBER_TRACE_ID, "uberctx-k": ["a", "b"]}
JAEGER = {
    **IDS,
    "parent_id": "0000000000000000",
    "should_sample": True,
    "reuse_span_id": True,
    "trace_id_original_size": 16,
}


def extraction(headers: dict[str, Any], name: str, context: dict[str, Any] | None) -> dict[str, Any]:
    """A case of extraction."""
    return {"format": name, "headers": headers, "expect": {"ctx": context}}


def injection(name: str, context: dict[str, Any], headers: dict[str, Any], **expected: Any) -> dict[str, Any]:
    """A case of injection."""
    return {"format": name, "ctx": context, "expect": {"headers": headers, **expected}}


def propagation(
    headers: dict[str, Any], call: dict[str, Any], written: dict[str, Any], **expected: Any
) -> dict[str, Any]:
    """A case of propagation with one call, which writes some headers and removes none."""
    same = {"cleared": [], "set": written, "outgoing": headers | written, "extracted_from": None}
    return {"headers": headers, "calls": [call], "expect": [same | expected]}


def w3c(**config: Any) -> dict[str, Any]:
    """A configuration that reads and writes traceparent."""
    return {"extract": ["w3c"], "inject": ["w3c"]} | config


W3C = {"trace_id_formats": {"w3c": TRACE_ID}, "extracted_from": "w3c"}
MANY = {f"x-{number}": "" for number in range(99)} | {"x-last": ["1", "2"]}

CASES = {
    "a callback without fields": (
        "propagate",
        propagation(TRACEPARENT, {"config": w3c(), "callback": {}}, TRACEPARENT, extracted=EXTRACTED, **W3C),
    ),
    "a callback that replaces the context by nothing": (
        "propagate",
        propagation(
            TRACEPARENT,
            {"config": w3c(), "callback": {"replace": True}},
            {},
            extracted=EXTRACTED,
            extracted_from="w3c",
            logs=[{"level": "ERR", "msg": "w3c injector context is invalid: field trace_id not found in context"}],
        ),
    ),
    "a callback that sets what no injector reads": (
        "propagate",
        propagation(
            TRACEPARENT,
            {"config": w3c(), "callback": {"set": {"extra": 1, "tracestate": "a=b"}, "unset": ["other"]}},
            TRACEPARENT,
            extracted=EXTRACTED,
            **W3C,
        ),
    ),
    "a context with what no injector reads": (
        "propagation_inject",
        injection(
            "w3c",
            {**IDS, "should_sample": True, "invalid_id": True, "tracestate": "a=b"},
            TRACEPARENT,
            trace_id_formats={"w3c": TRACE_ID},
        ),
    ),
    "an injector by a name of the configuration": ("propagation_inject", injection("preserve", IDS, {}, err=RAISES)),
    "an injector that does not exist": ("propagation_inject", injection("zipkin", IDS, {}, err=RAISES)),
    "a repeated baggage header": (
        "propagation_extract",
        extraction(REPEATED, "jaeger", JAEGER | {"baggage": {"k": f"table: {ADDRESS}"}}),
    ),
    "a repeated baggage header, its address left out": (
        "propagation_extract",
        extraction(REPEATED, "jaeger", JAEGER | {"baggage": {"k": "table: 0xADDR"}}),
    ),
    "a repeated baggage header that goes on": (
        "propagate",
        propagation(
            REPEATED,
            {"config": {"extract": ["jaeger"], "inject": ["ot"]}, "callback": {}},
            {
                "ot-tracer-traceid": TRACE_ID,
                "ot-tracer-spanid": SPAN_ID,
                "ot-tracer-sampled": "1",
                "ot-baggage-k": f"table%3A%20{ADDRESS}",
            },
            extracted=JAEGER | {"baggage": {"k": f"table: {ADDRESS}"}},
            extracted_from="jaeger",
            trace_id_formats={"ot": TRACE_ID},
        ),
    ),
    "a list of one value as a header": (
        "propagate",
        propagation(
            {},
            {"config": {"inject": ["b3"]}, "callback": {"set": {"flags": ["1"]}}},
            {"x-b3-flags": ["1"]},
            extracted={},
            trace_id_formats={"b3": ""},
        ),
    ),
    "more than a hundred header lines": (
        "propagate",
        propagation(MANY | TRACEPARENT, {"config": {"extract": ["w3c"]}, "callback": {}}, {}, extracted={}),
    ),
    "null as the default format, where it is asked for": (
        "propagate",
        propagation({}, {"config": w3c(inject=["preserve"], default_format=NULL)}, {}, err=RAISES),
    ),
    "null as the default format, where it is not": (
        "propagate",
        propagation(
            TRACEPARENT, {"config": w3c(inject=["preserve"], default_format=NULL, clear=NULL)}, TRACEPARENT, **W3C
        ),
    ),
    "null as the default format of an older option": (
        "propagate",
        propagation(
            {},
            {"config": {"header_type": "ignore", "propagation": {"default_format": NULL}}, "params": True},
            {},
            params={"default_format": NULL, "inject": [NULL]},
            err=RAISES,
        ),
    ),
    "a propagation section that is false": (
        "propagate",
        propagation(
            {},
            {"config": {"header_type": "ignore", "default_header_type": "b3", "propagation": False}, "params": True},
            {"x-b3-sampled": "0"},
            params={"default_format": "b3", "inject": ["b3"]},
            trace_id_formats={"b3": ""},
        ),
    ),
    "a propagation section that is an empty table": (
        "propagate",
        propagation(
            {},
            {"config": {"header_type": "ignore", "propagation": []}, "params": True, "params_twice": True},
            {},
            params={"inject": []},
        ),
    ),
}


def replayed(family: str, case: dict[str, Any]) -> int:
    """Replay a case; the number of comparisons."""
    return sum(REPLAYS[family]({"id": "by hand", "category": "by hand", **case}))


def passes(family: str, case: dict[str, Any]) -> bool:
    """Whether a case is as expected."""
    try:
        replayed(family, case)
    except AssertionError:
        return False
    return True


def wrong(expected: Any) -> Iterator[Any]:
    """What is expected, with one thing in it changed at a time; but the text of an error of Lua's says nothing."""
    match expected:
        case {"kind": "runtime"}:
            yield expected | {"kind": "api"}
        case {"$null": True}:
            yield "null"
        case dict() | list() if expected:
            places = expected if isinstance(expected, dict) else range(len(expected))
            for place in places:
                for changed in wrong(expected[place]):
                    copied = copy.copy(expected)
                    copied[place] = changed
                    yield copied
        case str():
            yield expected[:-1] + "?"
        case bool() | None:
            yield not expected
        case int():
            yield expected + 1
        case _:
            yield {"more": 1}


@pytest.mark.parametrize(("family", "case"), CASES.values(), ids=CASES)
def test_replay_takes_every_case_of_the_format(family: str, case: dict[str, Any]) -> None:
    """It compares all that is expected."""
    expected = case["expect"] if family != "propagate" else case["expect"][0]
    assert replayed(family, case) >= len(expected)


@pytest.mark.parametrize(("family", "case"), CASES.values(), ids=CASES)
def test_replay_tells_a_wrong_expectation(family: str, case: dict[str, Any]) -> None:
    """Whatever is changed in what is expected, the case fails."""
    assert [expected for expected in wrong(case["expect"]) if passes(family, case | {"expect": expected})] == []


@pytest.mark.parametrize("text", ["table", "table: ", f"a table: {ADDRESS}", f"table: {ADDRESS},b", "table: 0xyz", "a"])
def test_other_texts_are_no_text_of_a_table(text: str) -> None:
    """Only the text that Lua makes of a table stands for the values of a header that was sent several times."""
    assert not passes("propagation_extract", extraction(REPEATED, "jaeger", JAEGER | {"baggage": {"k": text}}))


@pytest.mark.parametrize("address", [ADDRESS, "0xADDR"])
def test_text_of_a_table_stands_for_several_values_alone(address: str) -> None:
    """A header that was sent once has its own text."""
    context = JAEGER | {"baggage": {"k": f"table: {address}"}}
    assert not passes("propagation_extract", extraction(REPEATED | {"uberctx-k": "a"}, "jaeger", context))


def test_mistake_of_the_replay_is_no_error_of_kongs() -> None:
    """Only what the library raises on purpose counts as raised."""
    with pytest.raises(TypeError):
        replayed("propagation_inject", injection("w3c", {"trace_id": 5}, {}, err=RAISES))
