"""What holds for every arrival schedule."""

import random
from fractions import Fraction
from math import ceil
from statistics import mean

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sim.load.arrivals import SCHEDULES, poisson, ramping, uniform
from sim.units import parse_duration, parse_rate

NS_PER_S = 1_000_000_000

rates = st.floats(min_value=0.1, max_value=100_000, allow_nan=False)
expected_counts = st.integers(min_value=0, max_value=2_000)
seeds = st.integers(min_value=0, max_value=2**32)
names = st.sampled_from(sorted(SCHEDULES))


@given(name=names, rate_per_s=rates, expected=expected_counts, seed=seeds)
def test_schedules_ascend_within_the_duration(name, rate_per_s, expected, seed):
    """Intended starts are whole ns, ascend, begin at 0 at the earliest and end before the duration does."""
    duration_s = expected / rate_per_s
    starts_ns = list(SCHEDULES[name](rate_per_s, duration_s, random.Random(seed)))

    assert all(isinstance(start_ns, int) for start_ns in starts_ns)
    assert starts_ns == sorted(starts_ns)
    assert all(0 <= start_ns < duration_s * NS_PER_S + 1 for start_ns in starts_ns)


@given(name=names, rate_per_s=rates, expected=expected_counts, seed=seeds)
def test_schedules_depend_on_their_arguments_alone(name, rate_per_s, expected, seed):
    """The same seed gives the same schedule."""
    first, second = (list(SCHEDULES[name](rate_per_s, expected / rate_per_s, random.Random(seed))) for _ in range(2))

    assert first == second


@given(rate_per_s=st.integers(min_value=1, max_value=5_000), duration_s=st.integers(min_value=1, max_value=3))
@example(rate_per_s=3, duration_s=1)
def test_uniform_schedule_has_rate_times_duration_arrivals(rate_per_s, duration_s):
    """Whole rates and durations give their product, to the arrival."""
    assert len(list(uniform(rate_per_s, duration_s, random.Random(0)))) == rate_per_s * duration_s


WRITTEN = {"/s": 1, "/min": 60, "/h": 3600}
MILLISECONDS = st.integers(min_value=1, max_value=100_000)


@given(number=st.integers(min_value=1, max_value=500), unit=st.sampled_from(list(WRITTEN)), duration_ms=MILLISECONDS)
@example(number=500, unit="/min", duration_ms=60_000)
@example(number=7, unit="/h", duration_ms=36_000_000)
def test_uniform_schedule_has_as_many_arrivals_as_its_rate_is_written(number, unit, duration_ms):
    """To the arrival, also where the rate is no number that a float can be."""
    starts_ns = uniform(parse_rate(f"{number}{unit}"), parse_duration(f"{duration_ms}ms"), random.Random(0))

    assert len(list(starts_ns)) == ceil(Fraction(number * duration_ms, WRITTEN[unit] * 1000))


@given(rate_per_s=rates, expected=st.integers(min_value=1, max_value=2_000))
def test_uniform_arrivals_are_one_gap_apart(rate_per_s, expected):
    """Gaps differ from `1 / rate` by the rounding to ns, and do not drift."""
    gap_ns = NS_PER_S / rate_per_s
    starts_ns = list(uniform(rate_per_s, expected / rate_per_s, random.Random(0)))

    assert len(starts_ns) == pytest.approx(expected, abs=1)
    assert all(abs(start_ns - index * gap_ns) <= 1 for index, start_ns in enumerate(starts_ns))


@given(rate_per_s=rates, expected=st.integers(min_value=100, max_value=2_000), seed=seeds)
def test_poisson_count_is_that_of_its_rate(rate_per_s, expected, seed):
    """The number of arrivals is within six standard deviations (its square root) of the mean."""
    count = len(list(poisson(rate_per_s, expected / rate_per_s, random.Random(seed))))

    assert abs(count - expected) <= 6 * expected**0.5


@given(rate_per_s=st.floats(min_value=0.1, max_value=10_000), seed=seeds)
def test_poisson_gaps_are_exponential(rate_per_s, seed):
    """The mean gap is `1 / rate`, and gaps shorter than it are more frequent: 1 - 1/e of all."""
    count = 2_000
    starts_ns = list(poisson(rate_per_s, 2 * count / rate_per_s, random.Random(seed)))[:count]
    gaps_ns = [later - earlier for earlier, later in zip([0, *starts_ns], starts_ns, strict=False)]
    mean_gap_ns = NS_PER_S / rate_per_s

    assert mean(gaps_ns) == pytest.approx(mean_gap_ns, rel=6 / count**0.5)
    assert sum(gap_ns < mean_gap_ns for gap_ns in gaps_ns) / count == pytest.approx(0.632, abs=6 * 0.482 / count**0.5)


RATES = st.integers(0, 200).map(float)


@given(
    st.lists(st.tuples(st.floats(0.1, 5), RATES, RATES), min_size=1, max_size=4),
    st.sampled_from(list(SCHEDULES)),
    st.integers(),
)
def test_ramping_schedules_ascend_within_the_stages(stages, arrival, seed):
    """In order, none before the beginning or after the end, and the same for the same seed."""
    starts_ns = list(ramping(stages, arrival, random.Random(seed)))

    assert starts_ns == sorted(starts_ns)
    assert all(0 <= start_ns <= sum(duration_s for duration_s, _, _ in stages) * 1e9 + 1 for start_ns in starts_ns)
    assert starts_ns == list(ramping(stages, arrival, random.Random(seed)))


@given(st.lists(st.tuples(st.integers(1, 5).map(float), RATES, RATES), min_size=1, max_size=4))
def test_ramping_schedule_has_as_many_arrivals_as_the_area_under_its_rate(stages):
    """Within each stage, whatever came before it."""
    starts_ns = list(ramping(stages, "uniform", random.Random(0)))

    end_s = area = 0.0
    for duration_s, first, last in stages:
        end_s += duration_s
        area += duration_s * (first + last) / 2
        assert abs(sum(start_ns < end_s * 1e9 for start_ns in starts_ns) - area) <= 1


TENTHS = st.tuples(st.integers(1, 30), st.integers(0, 100), st.integers(0, 100))


@given(st.lists(TENTHS, min_size=1, max_size=4))
@example([(3, 20, 0), (7, 0, 0), (1, 7, 33)])
def test_ramping_schedule_has_no_arrival_at_its_end(stages):
    """As many as the area says, to the arrival, whatever floats make of tenths of a second."""
    in_floats = [(tenths / 10, float(first), float(last)) for tenths, first, last in stages]
    starts_ns = list(ramping(in_floats, "uniform", random.Random(0)))

    assert len(starts_ns) == ceil(sum(Fraction(tenths, 10) * (first + last) / 2 for tenths, first, last in stages))
    assert all(start_ns < sum(tenths for tenths, _, _ in stages) * 100_000_000 for start_ns in starts_ns)


def test_ramp_may_begin_where_a_request_has_just_arrived():
    """The area of the stages before it may be a trifle more than a whole number, and its own rate 0."""
    starts_ns = list(ramping([(1.9, 38.0, 0.0)] * 10 + [(1.0, 0.0, 10.0)], "uniform", random.Random(0)))

    assert len(starts_ns) == 361 + 5


@given(st.integers(1, 200).map(float), st.integers(1, 5).map(float))
def test_ramp_without_slope_is_a_constant_rate(rate_per_s, duration_s):
    """The same arrivals, within the rounding to a nanosecond."""
    flat = ramping([(duration_s, rate_per_s, rate_per_s)], "uniform", random.Random(0))
    constant = uniform(rate_per_s, duration_s, random.Random(0))

    assert all(abs(one_ns - other_ns) <= 1 for one_ns, other_ns in zip(flat, constant, strict=True))
