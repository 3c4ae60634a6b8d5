"""The lifecycle of spans against a naive account of it, in both profiles; sampling over many trace ids."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from kongtrace import PROFILES, TracerProvider
from kongtrace.testing import FakeClock, FakeEntropy, trace_ids
from tests.properties.lifecycle import machine

IDS = 4_000
STRAY_MAX = 20  # one search in 200 million strays further: 2 / e**20


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_lifecycle_is_what_a_naive_account_says(profile):
    """Whatever requests do, in whatever order, spans, pools and balances are what the naive account says."""
    run_state_machine_as_test(machine(profile), settings=settings(stateful_step_count=60))


@given(seed=st.integers(), rate=st.floats(0, 1))
def test_the_share_of_sampled_traces_is_the_rate(seed, rate):
    """Over many random trace ids the share that is sampled is within the bounds of a binomial distribution (M4)."""
    tracer = provider().new("sampler", {"sampling_rate": rate})
    block = FakeEntropy(seed)(16 * IDS)
    sampled = sum(tracer.sampler(block[at : at + 16]).sampled for at in range(0, len(block), 16))
    assert IDS * divergence(sampled / IDS, rate) <= STRAY_MAX


def divergence(share, rate):
    """How far a share strays from its rate, by the bound of Chernoff: it is as good for the rarest as for any other."""
    if not 0 < rate < 1:
        return 0 if share == rate else math.inf
    parts = ((share, rate), (1 - share, 1 - rate))
    return sum(part * math.log(part / expected) for part, expected in parts if part)


@given(trace_id=trace_ids(), rate=st.floats(0, 1), other=st.floats(0, 1))
def test_a_decision_is_a_function_of_trace_id_and_rate(trace_id, rate, other):
    """Two workers decide alike on one trace id, and what a rate samples every higher rate samples (M2)."""
    low, high = sorted([rate, other])
    first, second = (provider().new("sampler", {"sampling_rate": low}) for _ in range(2))
    assert first.sampler(trace_id) == second.sampler(trace_id)
    assert first.sampler(trace_id, high or low).sampled >= first.sampler(trace_id).sampled


def provider() -> TracerProvider:
    return TracerProvider(time_ns=FakeClock(), random_bytes=FakeEntropy())
