import pytest

from sim.errors import FieldError
from sim.units import about, format_duration, format_rate, parse_duration, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("2ms", 0.002),
        ("150us", 0.00015),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        ("1d", 86400.0),
        (0, 0.0),
        ("0", 0.0),
    ],
)
def test_duration_is_read_in_seconds(text, seconds):
    """Every unit, sums of units and a bare zero."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "per_second"), [("500/s", 500.0), ("30/min", 0.5), ("7200 / h", 2.0)])
def test_rate_is_read_per_second(text, per_second):
    """Rates per minute and hour are converted."""
    assert parse_rate(text) == per_second


@pytest.mark.parametrize(("text", "size"), [("2KiB", 2048), ("1.5kB", 1500), ("500B", 500), ("1 MiB", 1 << 20)])
def test_size_is_read_in_bytes(text, size):
    """Binary and decimal prefixes are told apart."""
    assert parse_size(text) == size


@pytest.mark.parametrize("parse", [parse_duration, parse_rate, parse_size])
@pytest.mark.parametrize("value", [5, 5.0, "5", "", "fast", "-5s", "5 parsecs", "1e3s", "٣s", None, True, [], "5s\n5s"])
def test_anything_without_its_unit_is_refused(parse, value):
    """A bare number could mean anything; the message shows the form that is expected."""
    with pytest.raises(FieldError, match=r"^expected a (duration|rate|size) such as .*, not "):
        parse(value)


def test_a_bare_number_is_told_to_take_a_unit():
    """The cure differs from that of plain nonsense."""
    with pytest.raises(FieldError) as caught:
        parse_duration(5)
    assert caught.value.cure == "add the unit, one of ms, s, m or h"


@pytest.mark.parametrize(
    ("parse", "text"), [(parse_duration, "367d"), (parse_rate, "1000001/s"), (parse_size, "2GiB"), (parse_size, "1.5B")]
)
def test_values_beyond_the_limit_are_refused(parse, text):
    """Every quantity has a limit, and bytes are whole."""
    with pytest.raises(FieldError):
        parse(text)


def test_formats_choose_the_unit_that_suits():
    """People read the value that they would have written."""
    assert [format_duration(value) for value in (0, 2e-3, 1.5e-4, 10.0, 90.0)] == ["0s", "2ms", "150us", "10s", "90s"]
    assert [format_rate(value) for value in (0.5, 300.0)] == ["0.5/s", "300/s"]


def test_a_number_is_shown_with_the_digits_that_matter():
    """A view says 1.66667/s of 100/min; a file keeps all of it."""
    assert format_rate(about(parse_rate("100/min"))) == "1.66667/s"
    assert about(0.1 + 0.2) == 0.3
    assert about(86_400.0) == 86_400.0
