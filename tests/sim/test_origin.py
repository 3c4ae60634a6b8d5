"""The built-in upstream answers as its model says."""

import http.client
import random
import re
import time
from statistics import quantiles

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from kongtrace import sampler
from sim.origin import Origin, OriginServer, serve
from tests.peers import TIMEOUT_S, listening


def _ask(port, count=1, method="GET"):
    """Send requests over one connection; return status and body of each answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    answers = []
    for _ in range(count):
        connection.request(method, "/")
        answer = connection.getresponse()
        answers.append((answer.status, answer.read()))
    connection.close()
    return answers


def _drawn_ms(origin, count=20_000):
    draw_ns = origin.latencies_ns(random.Random(origin.seed))
    return [draw_ns() / 1e6 for _ in range(count)]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_any_request_is_answered_with_a_body_of_the_given_size(method):
    """Whatever is asked, the answer is 200 and `body_bytes` long."""
    with listening(serve, Origin(body_bytes=2048)) as origin:
        assert _ask(origin.port, method=method) == [(200, b"x" * 2048)]


def test_head_has_no_body():
    """HEAD is answered by a head."""
    with listening(serve, Origin(body_bytes=2048)) as origin:
        assert _ask(origin.port, count=2, method="HEAD") == [(200, b"")] * 2


def test_report_counts_requests_statuses_and_connections():
    """The report tells how many requests came, how they were answered, over how many connections."""
    with listening(serve, Origin(status={503: 1.0})) as origin:
        _ask(origin.port, count=3)
        _ask(origin.port)
        report = origin.stop()

    assert report.pop("cpu_s") > 0
    assert report == {
        "requests": 4,
        "by_status": {503: 4},
        "sampling": dict.fromkeys(("traces", "gateway", "upstream", "both"), 0),
        "connections": 2,
    }


def test_statuses_follow_the_mix():
    """Each status is drawn with its probability; one of probability 0 never."""
    draw = Origin(status={200: 0.9, 503: 0.1, 404: 0.0}).statuses(random.Random(1))
    drawn = [draw() for _ in range(10_000)]

    assert set(drawn) == {200, 503}
    assert 900 <= drawn.count(503) <= 1100


def test_same_seed_gives_the_same_answers():
    """Two origins of one seed answer the same statuses in the same order."""
    answers = []
    for _ in range(2):
        with listening(serve, Origin(status={200: 0.5, 503: 0.5}, seed=7)) as origin:
            answers.append(_ask(origin.port, count=50))

    assert answers[0] == answers[1]
    assert {status for status, _ in answers[0]} == {200, 503}


def test_latency_has_the_given_median_and_99th_percentile():
    """The lognormal distribution is fitted to both quantiles."""
    percentiles = quantiles(_drawn_ms(Origin(latency_p50_ms=2, latency_p99_ms=20, seed=1)), n=100)

    assert percentiles[49] == pytest.approx(2, rel=0.05)
    assert percentiles[98] == pytest.approx(20, rel=0.1)


def test_equal_quantiles_give_a_fixed_latency():
    """With p50 equal to p99 every request takes just that long."""
    assert set(_drawn_ms(Origin(latency_p50_ms=1.5, latency_p99_ms=1.5), count=10)) == {1.5}


def test_answer_comes_after_its_latency():
    """A client waits at least as long as the model says."""
    with listening(serve, Origin(latency_p50_ms=3, latency_p99_ms=3)) as origin:
        begun_ns = time.monotonic_ns()
        _ask(origin.port, count=10)
        assert time.monotonic_ns() - begun_ns >= 30_000_000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latency_p50_ms": -1}, "latency_p50_ms must be at least 0, not -1"),
        ({"latency_p50_ms": 5, "latency_p99_ms": 4}, "latency_p99_ms must be at least latency_p50_ms (5), not 4"),
        ({"latency_p99_ms": 4}, "latency_p50_ms must be above 0 where latency_p99_ms is: no lognormal has median 0"),
        ({"sampling_rate": 1.5}, "sampling_rate must be 0 to 1, not 1.5"),
        ({"body_bytes": -1}, "body_bytes must be at least 0, not -1"),
        ({"status": {99: 1.0}}, "status must be 200 to 599, not 99"),
        ({"status": {200: 1.5, 503: -0.5}}, "the probability of status 503 must be at least 0, not -0.5"),
        ({"status": {200: 0.5}}, "the probabilities of status must add up to 1, not 0.5"),
    ],
)
def test_model_refuses_what_cannot_be(fields, message):
    """A value out of range is named."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Origin(**fields)


_GENERATOR = random.Random(1)
TRACE_IDS = [_GENERATOR.randbytes(16) for _ in range(2_000)]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_origin_decides_as_the_sdk_does(rate):
    """Its sampler and the SDK's `TraceIdRatioBased` keep the same traces."""
    origin = OriginServer(Origin(sampling_rate=rate))
    sdk = TraceIdRatioBased(rate)

    for trace_id in TRACE_IDS:
        kept = sdk.should_sample(None, int.from_bytes(trace_id), "name").decision.is_sampled()
        before = origin.sampling["upstream"]
        origin.sample(b"00-%b-00f067aa0ba902b7-01" % trace_id.hex().encode())
        assert origin.sampling["upstream"] - before == kept


def test_kongs_and_opentelemetrys_sampler_decide_on_different_bytes():
    """In a row they keep the product of their rates, where two of the same kind would keep the lesser."""  # M2
    origin = OriginServer(Origin(sampling_rate=0.5))
    kong = [sampler.sample(trace_id, 0.5).sampled for trace_id in TRACE_IDS]

    for trace_id, kept in zip(TRACE_IDS, kong, strict=True):
        origin.sample(b"00-%b-00f067aa0ba902b7-%02d" % (trace_id.hex().encode(), kept))

    assert origin.sampling["traces"] == 2_000
    assert origin.sampling["gateway"] == sum(kong)
    assert 400 < origin.sampling["both"] < 600


def test_origin_reads_the_header_of_each_request():
    """What is no `traceparent` is not counted."""
    with listening(serve, Origin(sampling_rate=1.0)) as origin:
        connection = http.client.HTTPConnection("127.0.0.1", origin.port, timeout=TIMEOUT_S)
        for flags in ("00", "01", "zz"):
            connection.request("GET", "/", headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-{flags}"})
            connection.getresponse().read()
        connection.close()
        report = origin.stop()

    assert report["sampling"] == {"traces": 2, "gateway": 1, "upstream": 2, "both": 1}
