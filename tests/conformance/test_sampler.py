"""The sampler decides what Kong's Lua code decided (kong-semantics section 5).

Every case is replayed, and decision, error text and error are compared. A case with a field that this replay does not
know fails. `pytest -rP` shows the number of comparisons.
"""

from collections import Counter
from typing import Any

from kongtrace import KONG, ApiError, TracerProvider
from tests.conformance.vectors import cases, decode

FIELDS = {"id", "category", "note", "trace_id", "rate", "via", "decision", "error", "err"}
OTHER_RATE = 0.123  # of the tracer, when the rate is an argument


def test_the_sampler_decides_as_the_recorded_one():
    """Decision and error of every recorded trace id and rate are the same."""
    compared: Counter[str] = Counter()
    failures = {}
    for case in cases("sampler"):
        assert not case.keys() - FIELDS, f"unknown fields {case.keys() - FIELDS}"
        seen, expected = outcome(case), recorded(case)
        if seen != expected:
            failures[f"{case['id']} {case['category']}"] = f"{seen}, expected {expected}"
        compared["runtime errors" if seen == "runtime" else "decisions"] += 1
    assert not failures, "\n".join(f"{name}: {failure}" for name, failure in failures.items())
    assert compared
    print(dict(compared))


def recorded(case: dict[str, Any]) -> Any:
    if "err" not in case:
        return case.get("decision"), case.get("error")
    return "runtime" if case["err"]["kind"] == "runtime" else case["err"]["msg"]


def outcome(case: dict[str, Any]) -> Any:
    trace_id, rate = case.get("trace_id"), decode(case.get("rate"))
    trace_id = trace_id if trace_id is None else bytes.fromhex(trace_id)
    provider = TracerProvider(time_ns=lambda: 0, random_bytes=bytes, profile=KONG)
    try:
        match case["via"]:
            case "tracer":
                return tuple(provider.new("t", {"sampling_rate": rate}).sampler(trace_id))
            case "arg":
                return tuple(provider.new("t", {"sampling_rate": OTHER_RATE}).sampler(trace_id, rate))
    except ApiError as error:
        return str(error)
    except TypeError:
        return "runtime"
    raise AssertionError(f"unknown way {case['via']}")
