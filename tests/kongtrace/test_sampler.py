"""The sampler reads the first eight bytes of a trace id, little-endian, and compares them with the rate."""

import pytest

from kongtrace.sampler import INVALID_FRACTION, TOO_SHORT, sample

# kong-semantics M3: at rate 0.5 a big-endian reading decides otherwise in the first two cases.
VECTORS = [
    ("92a54b3e1a7c4f2da9e44b8a6f3e1dab", True),
    ("4bf92f3577b34da6a3ce929d0e0e4736", False),
    ("0000000000000000", True),
    ("ffffffffffffffff", False),
    ("0000000000000080", False),
    ("ffffffffffffff7f", True),
]


@pytest.mark.parametrize(("trace_id", "sampled"), VECTORS)
def test_half_of_the_ids_are_sampled_at_a_rate_of_a_half(trace_id, sampled):
    """The bound lies at 2**63; the bound itself is not sampled."""  # M2, M3
    assert sample(bytes.fromhex(trace_id), 0.5) == (sampled, None)


@pytest.mark.parametrize("rate", [1, 1.0, 7, float("inf")])
def test_everything_is_sampled_at_a_rate_of_one_and_above(rate):
    """At such a rate the trace id does not matter, not even its length."""  # M1
    assert sample(b"", rate) == (True, None)


@pytest.mark.parametrize("rate", [0, 0.0, -3, float("-inf")])
def test_nothing_is_sampled_at_a_rate_of_zero_and_below(rate):
    """At such a rate the trace id does not matter, not even its length."""  # M1
    assert sample(b"", rate) == (False, None)


@pytest.mark.parametrize("rate", ["0.5", None, True, {}, [1]])
def test_a_rate_that_is_no_number_is_an_error_value(rate):
    """The sampler does not raise: it says that it cannot decide, and why."""  # M1
    assert sample(bytes(16), rate) == (None, INVALID_FRACTION)


def test_seven_bytes_are_too_short_and_eight_are_enough():
    """The text asks for more than eight bytes, the code for eight."""  # M1
    assert sample(bytes(7), 0.5) == (None, TOO_SHORT)
    assert sample(bytes(8), 0.5) == (True, None)


def test_a_missing_trace_id_raises():
    """Between 0 and 1 there must be an id to look at."""  # M1
    with pytest.raises(TypeError):
        sample(None, 0.5)


@pytest.mark.parametrize("size", [8, 9, 16, 32])
def test_only_the_first_eight_bytes_decide(size):
    """What follows them changes nothing."""  # M2
    head = bytes.fromhex("92a54b3e1a7c4f2d")
    assert sample(head + b"\xff" * (size - 8), 0.5) == sample(head + b"\x00" * (size - 8), 0.5)
