import pytest

from sim.errors import FieldError
from sim.report.summary import Summary
from sim.threshold import METRICS, evaluate, parse

FORM = "write METRIC OP NUMBER: latency.p99 < 200ms"

SUMMARY = {
    "requests": {"sent": 200, "failed": 1, "status_5xx": 0},
    "latency_ms": {"p99": 150.0, "max": None},
    "ledger": {"unaccounted": 0},
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
    ],
)
def test_threshold_compares_a_metric_with_its_limit(expression, value, passed):
    """All relations, ratios, percentages and durations."""
    (result,) = evaluate([parse(expression)], SUMMARY)

    assert result == {"expression": expression, "value": value, "passed": passed}


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
