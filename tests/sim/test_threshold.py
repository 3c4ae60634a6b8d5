import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sim.errors import FieldError
from sim.report.summary import LatencyMs, LoadEntry, Summary
from sim.threshold import LOAD_METRICS, METRICS, evaluate, parse, value_text

FORM = "write METRIC OP NUMBER: latency.p99 < 200ms"

SUMMARY = {
    "requests": {"sent": 200, "failed": 1, "status_5xx": 0},
    "latency_ms": {"p99": 150.0, "max": None},
    "ledger": {"unaccounted": 0},
    "loads": [
        {"completed": 80, "status_5xx": 0, "latency_ms": {"p99": 12.5}},
        {"completed": 20, "status_5xx": 5, "latency_ms": {"p99": None}},
    ],
}


@pytest.mark.parametrize(
    ("expression", "value", "passed"),
    [
        ("ledger.unaccounted == 0", 0, True),
        ("requests.failed == 0", 1, False),
        ("requests.failed != 0", 1, True),
        ("latency.p99 < 200ms", 150.0, True),
        ("latency.p99 <= 0.15s", 150.0, True),
        ("latency.p99>0", 150.0, True),
        ("requests.failed / requests.sent < 1%", 0.005, True),
        ("requests.failed / requests.sent >= 0.01", 0.005, False),
        ("load[0].latency.p99 < 20ms", 12.5, True),
        ("load[1].latency.p99 < 20ms", None, False),
        ("load[1].completed > 10", 20, True),
        ("load[1].status_5xx/load[1].completed <= 10%", 0.25, False),
        ("load[0].completed / requests.sent == 40%", 0.4, True),
    ],
)
def test_threshold_compares_a_metric_with_its_limit(expression, value, passed):
    """All relations, ratios, percentages and durations; of all requests or of those of one load."""
    (result,) = evaluate([parse(expression)], SUMMARY)

    assert result == {"expression": expression, "value": value, "passed": passed}


@given(st.integers(min_value=0, max_value=10_000_000))
@example(2035)
def test_latency_is_within_the_limit_that_names_it(latency_us):
    """Whatever floats make of ms and s."""
    limit = f"{latency_us // 1000}.{latency_us % 1000:03d}ms"

    assert parse(f"latency.p99 <= {limit}").holds(latency_us / 1000)
    assert parse(f"latency.p99 >= {limit}").holds(latency_us / 1000)


@pytest.mark.parametrize("expression", ["latency.max < 1h", "requests.failed / requests.status_5xx < 1%"])
def test_what_was_not_measured_does_not_pass(expression):
    """A run without answers proves nothing about latency; a ratio over nothing is no ratio."""
    (result,) = evaluate([parse(expression)], SUMMARY)

    assert result == {"expression": expression, "value": None, "passed": False}


@pytest.mark.parametrize(
    ("expression", "message", "cure"),
    [
        ("latency.p98 < 1s", "there is no metric latency.p98", "did you mean latency.p99?"),
        ("legder.unaccounted == 0", "there is no metric legder.unaccounted", "did you mean ledger.unaccounted?"),
        ("latency.p99 < 200", "expected a duration such as 30s or 2ms, not '200'", "write 200ms"),
        ("requests.failed < 1%", "expected a number, not '1%'", "requests.failed carries no unit"),
        ("requests.failed / requests.sent < 1ms", "expected a number or a percentage, not '1ms'", None),
        (
            "ledger.unaccounted = 0",
            "expected an expression, not 'ledger.unaccounted = 0'",
            "write METRIC OP NUMBER: latency.p99 < 200ms",
        ),
        (5, "expected an expression, not 5", FORM),
        ("load[1].latency.p99 < 200", "expected a duration such as 30s or 2ms, not '200'", "write 200ms"),
        ("load[1].latncy.p99 < 1s", "there is no metric load[1].latncy.p99", "did you mean load[1].latency.p99?"),
        ("load[1].sent > 0", "there is no metric load[1].sent", "did you mean load[1].unsent?"),
        ("load.latency.p99 < 1s", "there is no metric load.latency.p99", "did you mean latency.p99?"),
    ],
)
def test_a_wrong_expression_is_refused_with_a_suggestion(expression, message, cure):
    """An unknown metric, a missing unit and a broken expression each have their cure."""
    with pytest.raises(FieldError) as caught:
        parse(expression)
    assert (caught.value.message, caught.value.cure) == (message, cure)


def test_every_metric_is_a_field_of_the_summary():
    """What a threshold names is what summary.json holds."""
    sections = Summary.model_fields
    for section, name in METRICS.values():
        model = sections[section].annotation
        assert section == "ledger" or name in model.model_fields
    for first, *further in LOAD_METRICS.values():
        assert first in LoadEntry.model_fields
        assert set(further) <= LatencyMs.model_fields.keys()


@pytest.mark.parametrize(
    ("expression", "value", "text"),
    [
        ("latency.p99 < 200ms", 23.1963, "23.2 ms"),
        ("latency.p99 < 200ms", 12345.678, "12,346 ms"),
        ("latency.p99 < 200ms", 199.98, "199.98 ms"),
        ("latency.p99 < 200ms", 0.0, "0 ms"),
        ("load[3].latency.p99 < 200ms", 23.1963, "23.2 ms"),
        ("requests.failed / requests.sent < 1%", 0.0099996, "0.99996%"),
        ("ledger.lost / ledger.created < 50%", 0.28171, "28.2%"),
        ("ledger.created > 0", 1_234_567, "1,234,567"),
        ("workers.cpu_us_per_request < 500", None, "not measured"),
        ("of.another_version < 3", 2.99999, "3"),
    ],
)
def test_value_is_told_in_its_unit(expression, value, text):
    """With four digits, a share with three, and with more where the verdict could not be understood."""
    assert value_text(expression, value) == text


@given(
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    st.integers(0, 10**6),
    st.integers(-3000, 3000).map(lambda us: us / 1000) | st.floats(-1, 1),
)
def test_value_as_told_holds_where_the_value_does(relation, limit_ms, difference_ms):
    """Nobody reads 200 ms where less than 200 ms passed."""
    threshold = parse(f"latency.p99 {relation} {limit_ms}ms")
    value = abs(limit_ms + difference_ms)
    told = float(value_text(threshold.expression, value).removesuffix(" ms").replace(",", ""))

    assert threshold.holds(told) == threshold.holds(value)
