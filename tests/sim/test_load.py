"""The load generator: an open load, honest latencies, an account for every request."""

import asyncio
import random
import re
import resource
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from sim import process
from sim.load.driver import LAG_MS_NEGLIGIBLE, drive, invalid_reason
from sim.load.executor import ConstantArrivalRate, Load, RampingArrivalRate, VirtualUsers
from sim.load.latency import LATENCY_US_MAX, Latencies
from sim.load.pool import Pool
from sim.load.request import Request
from sim.origin import Origin
from sim.origin import serve as serve_origin
from tests.peers import free_port, listening, serving, started

ARRIVALS = frozenset({"rate_per_s", "duration_s", "arrival", "seed", "start_s"})
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def _to(port, **fields):
    return Request(host="127.0.0.1", port=port, **fields)


def _constant(request=None, **fields):
    return ConstantArrivalRate(request=request or _to(1), **{"rate_per_s": 200, "duration_s": 0.25} | fields)


def _load(request=None, **fields):
    of_arrivals = {name: fields.pop(name) for name in ARRIVALS & fields.keys()}
    return Load(executors=(_constant(request, **of_arrivals),), **fields)


def _starts_ns(load):
    return [start_ns for start_ns, _request in load.schedule()]


def _driving(port, *, method="GET", body=b"", **fields):
    return started(drive, _load(_to(port, method=method, body=body), **fields))


def _driven(port, **options):
    with _driving(port, **options) as driver:
        return driver.end()


class _Server(asyncio.Protocol):
    """A server for one kind of behaviour; `answer` is called with the number of the request on its connection."""

    def connection_made(self, transport):
        self.transport = transport
        self.requests = 0

    def data_received(self, data):
        for _ in range(data.count(b"\r\n\r\n")):
            self.requests += 1
            self.answer()

    def answer(self):
        self.transport.write(OK)


def _answering(answer):
    """Give the port of a server that answers with these bytes, then closes where they say so."""

    class Answering(_Server):
        def answer(self):
            self.transport.write(answer)
            if b"close" in answer:
                self.transport.close()

    return serving(Answering)


class _Silent(_Server):
    def answer(self):
        pass


class _ClosesUnanswered(_Server):
    def answer(self):
        self.transport.close()


def _together(count):
    """Give the port of a server that answers nobody before so many requests have come, and then all."""
    asked = []

    class Together(_Server):
        def answer(self):
            asked.append(self.transport)
            if len(asked) == count:
                for transport in asked:
                    transport.write(OK)

    return serving(Together)


class _ClosesAtTheSecond(_Server):
    """Answers one request on each connection and closes at the next, as a server does whose keep-alive ran out."""

    def answer(self):
        if self.requests == 1:
            self.transport.write(OK)
        else:
            self.transport.close()


class _AnswersPartly(_Server):
    def answer(self):
        if self.requests == 1:
            self.transport.write(OK)
        else:
            self.transport.write(OK[:20])
            self.transport.close()


def _balance(report):
    requests = report["requests"]
    return requests["offered"] - requests["completed"] - requests["failed"] - requests["unsent"]


def _reported(driver, condition):
    """Ask for reports until one fulfils the condition; return it."""
    while not condition(report := driver.report()):
        process.wait([driver.child.sentinel], 0.01)
    return report


def _keeps_pace(report):
    """Whether what a busy machine has delayed the generator by is little beside the time that has passed."""
    return report["lag_ms"]["max"] <= report["elapsed_s"] * 1000 / 20


# The request.


def test_request_is_encoded_as_http():
    """Method, target, Host and the given header fields make the head."""
    request = Request(host="gateway", port=8000, path="/a?b=c", headers={"X-A": "1"})

    assert request.encoded == b"GET /a?b=c HTTP/1.1\r\nHost: gateway:8000\r\nX-A: 1\r\n\r\n"


def test_request_keeps_a_host_that_it_is_given():
    """A `Host` header, however spelled, replaces the one made from host and port."""
    request = Request(host="127.0.0.1", port=8000, headers={"host": "example.com"})

    assert request.encoded == b"GET / HTTP/1.1\r\nhost: example.com\r\n\r\n"


def test_request_puts_an_ipv6_address_in_brackets():
    """RFC 9110 7.2."""
    assert b"Host: [::1]:80\r\n" in Request(host="::1", port=80).encoded


def test_request_with_content_says_how_long_it_is():
    """A body has its Content-Length; POST says so of an empty one too (RFC 9110 8.6)."""
    assert Request(host="a", port=1, body=b"hi").encoded.endswith(b"\r\nContent-Length: 2\r\n\r\nhi")
    assert Request(host="a", port=1, method="POST").encoded.endswith(b"\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    "fields",
    [{"method": "GE T"}, {"path": "/a b"}, {"path": ""}, {"headers": {"A\r\nB": "1"}}, {"headers": {"A": "1\r\nB: 2"}}],
)
def test_request_refuses_what_would_break_the_head(fields):
    """Nothing in a request can become a header line of its own."""
    with pytest.raises(ValueError, match=r"^(method, path and names of headers|header A must hold)"):
        Request(host="a", port=1, **fields)


# The model.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate_per_s": 0}, "rate_per_s must be above 0, not 0"),
        ({"duration_s": -1}, "duration_s must be above 0, not -1"),
        ({"connections_max": 0}, "connections_max must be above 0, not 0"),
        ({"arrival": "bursty"}, "arrival must be one of uniform, poisson, not 'bursty'"),
    ],
)
def test_load_refuses_what_cannot_be(fields, message):
    """A value out of range is named."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _load(**fields)


# Latencies.


def _reference(latencies_us):
    histogram = HdrHistogram(1, LATENCY_US_MAX, 3)
    for latency_us in latencies_us:
        histogram.record_value(latency_us)
    return histogram


def _latencies(latencies_us):
    latencies = Latencies()
    for latency_us in latencies_us:
        latencies.record(latency_us)
    return latencies


def _drawn_us(seed, count=5000):
    generator = random.Random(seed)
    return [round(generator.lognormvariate(8, 2)) for _ in range(count)]


def test_latencies_are_summed_up_as_hdr_histogram_does():
    """Percentiles, max and mean are those of the library's own histogram."""
    drawn_us = _drawn_us(seed=1)
    reference = _reference(drawn_us)

    assert _latencies(drawn_us).summary_ms() == {
        "p50": reference.get_value_at_percentile(50) / 1000,
        "p90": reference.get_value_at_percentile(90) / 1000,
        "p99": reference.get_value_at_percentile(99) / 1000,
        "p99_9": reference.get_value_at_percentile(99.9) / 1000,
        "max": reference.get_max_value() / 1000,
        "mean": pytest.approx(reference.get_mean_value() / 1000),
    }


@pytest.mark.parametrize(
    ("count", "p50", "p90", "p99", "p99_9"),
    [(1, 1, 1, 1, 1), (2, 1, 2, 2, 2), (5, 3, 5, 5, 5), (6, 3, 6, 6, 6), (1000, 500, 900, 990, 999)],
)
def test_percentile_is_that_of_the_nearest_rank(count, p50, p90, p99, p99_9):
    """So large a share of the latencies is no longer, also where they are few."""
    summary_ms = _latencies([1000 * rank for rank in range(1, count + 1)]).summary_ms()

    percentiles_ms = [summary_ms[name] for name in ("p50", "p90", "p99", "p99_9")]
    assert percentiles_ms == pytest.approx([p50, p90, p99, p99_9], rel=0.001)


def test_latencies_are_encoded_as_hdr_histogram_does():
    """The encoding can be read by any HdrHistogram."""
    drawn_us = _drawn_us(seed=2)
    decoded = HdrHistogram.decode(_latencies(drawn_us).encode())

    assert decoded.get_percentile_to_value_dict([50, 99, 100]) == _reference(drawn_us).get_percentile_to_value_dict(
        [50, 99, 100]
    )


def test_merged_latencies_are_those_of_all():
    """Two encoded histograms merged are the histogram of both."""
    first_us, second_us = _drawn_us(seed=3), _drawn_us(seed=4)
    merged = Latencies().merge([_latencies(first_us).encode(), _latencies(second_us).encode()])

    assert merged.summary_ms() == _latencies(first_us + second_us).summary_ms()
    assert len(merged) == 10_000


def test_no_latencies_sum_up_to_0():
    """Without a single answer there is nothing to tell."""
    assert set(Latencies().summary_ms().values()) == {0.0}
    assert len(Latencies().merge([Latencies().encode()])) == 0


def test_latency_beyond_an_hour_counts_as_an_hour():
    """The histogram ends at its limit, to within its precision."""
    latencies = _latencies([10 * LATENCY_US_MAX])

    assert latencies.summary_ms()["max"] == pytest.approx(LATENCY_US_MAX / 1000, rel=0.001)


# Validity.


def test_load_that_keeps_its_schedule_is_valid():
    """A lag of a few turns of the scheduler, or small beside the latency, is no reason."""
    assert invalid_reason({"p99": LAG_MS_NEGLIGIBLE}, {"p99": 1.0}) is None
    assert invalid_reason({"p99": 99.0}, {"p99": 1000.0}) is None


def test_load_that_fell_behind_is_not_valid():
    """A lag that makes up much of the latency is told."""
    assert invalid_reason({"p99": 50.0}, {"p99": 60.0}) == (
        "the load generator fell behind its own schedule by 50 ms (p99), 10% of the latency at most may be its own; "
        "give it more CPU or a lower rate"
    )


# Live.


@pytest.mark.parametrize("arrival", ["uniform", "poisson"])
def test_every_offered_request_is_completed(arrival):
    """Against a server that answers, each request of the schedule is sent once and completed."""
    with listening(serve_origin, Origin(status={200: 0.5, 503: 0.5}, body_bytes=100)) as origin:
        report = _driven(origin.port, arrival=arrival)
        served = origin.stop()

    offered = len(_starts_ns(_load(arrival=arrival)))
    assert report["state"] == "finished"
    assert report["requests"] == {
        "offered": offered,
        "sent": offered,
        "completed": offered,
        "failed": 0,
        "unsent": 0,
        "outstanding": 0,
        "resent": 0,
        "waited": 0,
    }
    assert report["by_status"] == served["by_status"]
    assert 0 < report["achieved_rate_per_s"] <= offered / 0.25
    assert len(Latencies().merge([report["histogram"]])) == offered
    assert report["latency_ms"] == Latencies().merge([report["histogram"]]).summary_ms()


def test_connections_are_used_again():
    """One request after the other needs one connection."""
    with listening(serve_origin, Origin()) as origin:
        report = _driven(origin.port, rate_per_s=10, duration_s=0.5, connections_max=1)

    assert report["connections"] == {"opened": 1, "peak": 1}


def test_pool_grows_so_that_slow_answers_delay_nobody():
    """While answers are outstanding, further requests get connections of their own."""
    with _together(10) as port:
        report = _driven(port, rate_per_s=100, duration_s=0.1)

    assert report["connections"] == {"opened": 10, "peak": 10}
    assert report["requests"]["waited"] == 0


def test_latency_counts_from_the_intended_start():
    """A request that had to wait for a connection took longer by that, although the server answered it as quickly."""
    with listening(serve_origin, Origin(latency_p50_ms=50, latency_p99_ms=50)) as origin:
        origin.signal(signal.SIGSTOP)
        with _driving(origin.port, rate_per_s=100, duration_s=0.2, connections_max=1) as driver:
            _reported(driver, lambda report: report["requests"]["offered"] == 20 and _keeps_pace(report))
            origin.signal(signal.SIGCONT)
            report = driver.end()

    # 20 requests, 10 ms apart, each 50 ms behind the one before.
    assert report["requests"]["completed"] == 20
    assert report["requests"]["waited"] >= 10
    assert report["latency_ms"]["max"] >= 20 * 50 - 20 * 10
    assert report["valid"]


def test_stalled_server_cannot_hide():
    """All requests of a stall show its remainder, not only the one that hit it; the generator is not to blame."""
    stall_s = 0.5
    with listening(serve_origin, Origin()) as origin:
        origin.signal(signal.SIGSTOP)
        with _driving(origin.port, duration_s=3600) as driver:
            _reported(driver, lambda report: report["elapsed_s"] >= stall_s and _keeps_pace(report))
            origin.signal(signal.SIGCONT)
            report = driver.stop()

    assert report["requests"]["completed"] == report["requests"]["sent"] > 0
    assert report["latency_ms"]["max"] >= stall_s * 1000 * 0.9
    assert report["latency_ms"]["p90"] >= stall_s * 1000 * 0.5
    assert report["lag_ms"]["p50"] < report["latency_ms"]["max"] * 0.1


def test_stalled_generator_is_not_valid():
    """When the generator itself stood still, its lag shows it and the figures do not count."""
    with listening(serve_origin, Origin()) as origin, _driving(origin.port, duration_s=3600) as driver:
        _reported(driver, lambda report: report["requests"]["completed"])
        driver.signal(signal.SIGSTOP)
        time.sleep(0.5)  # the stall itself
        driver.signal(signal.SIGCONT)
        report = driver.stop()

    assert (report["requests"]["failed"], _balance(report)) == (0, 0)
    assert report["lag_ms"]["max"] >= 400
    assert not report["valid"]
    assert "fell behind" in report["invalid_reason"]


def test_refused_connection_fails_as_connect():
    """Where nobody listens, every request fails, and the load goes on."""
    report = _driven(free_port())

    assert report["failed_by_reason"] == {"connect": 50}
    assert report["requests"]["sent"] == 0
    assert _balance(report) == 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"this is not HTTP\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: a\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 200 OK\r\nX: close\r\nContent-Length: 9\r\n\r\nhi", "reset"),
        (b"HTTP/1.1 200 OK\r\nX: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", "reset"),
        (b"HTTP/1.1 100 Continue\r\nX: close\r\n\r\n", "reset"),
        (b"HTTP/1.1 200 OK\r\nX: close", "reset"),
    ],
)
def test_answer_that_is_not_whole_fails(answer, reason):
    """What is not HTTP, and what ends too early, is no answer."""
    with _answering(answer) as port:
        report = _driven(port, duration_s=0.05)

    assert report["failed_by_reason"] == {reason: 10}
    assert _balance(report) == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end",
        b"HTTP/1.0 200 OK\r\n\r\nclose",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    ],
)
def test_whole_answer_completes_however_it_is_framed(answer):
    """Length, chunks, status or the end of the connection mark the end of an answer (RFC 9112 6.3)."""
    status = int(re.findall(rb"HTTP/1.. (\d+)", answer)[-1])
    with _answering(answer) as port:
        report = _driven(port, duration_s=0.05)

    assert report["by_status"] == {status: 10}
    assert report["failed_by_reason"] == {}


def test_answer_to_head_is_its_head():
    """HEAD completes with the head, and the connection is used again (RFC 9110 9.3.2)."""
    with listening(serve_origin, Origin(body_bytes=1000)) as origin:
        report = _driven(origin.port, method="HEAD", rate_per_s=50, duration_s=0.2, connections_max=1)

    assert report["by_status"] == {200: 10}
    assert report["connections"]["opened"] == 1


def test_body_is_sent_with_each_request():
    """A request's content arrives; the server could not find the next request otherwise."""
    with listening(serve_origin, Origin()) as origin:
        report = _driven(origin.port, method="POST", body=b"x" * 100_000, connections_max=2)

    assert report["by_status"] == {200: 50}


def test_unanswered_request_times_out():
    """After `timeout_s` a request has failed, and its connection is given up."""
    with serving(_Silent) as port:
        report = _driven(port, duration_s=0.05, timeout_s=0.2)

    assert report["failed_by_reason"] == {"timeout": 10}


def test_connection_that_stands_as_it_is_given_up_is_not_waited_for():
    """It was cancelled a moment before: uvloop closes it and tells nobody."""
    reasons = []

    class Accounts:
        def failed(self, _request, reason):
            reasons.append(reason)

    class Wire(asyncio.Transport):
        def write(self, data):
            pass

    async def connect(protocol, _host, _port):
        try:
            await asyncio.Event().wait()
        finally:
            protocol().connection_made(Wire())

    async def play():
        asyncio.get_running_loop().create_connection = connect
        pool = Pool(1, Accounts())
        for intended_ns in (1, 2):
            pool.begin(_to(1), intended_ns)
            await asyncio.sleep(0)
            pool.give_up(intended_ns)
            await asyncio.sleep(0)
        return pool.peak

    assert asyncio.run(play()) == 1
    assert reasons == ["timeout"] * 2


def test_last_requests_are_waited_for_as_long_as_any():
    """An answer that comes in time completes its request, also when the load has long been over."""
    with listening(serve_origin, Origin(latency_p50_ms=400, latency_p99_ms=400)) as origin:
        report = _driven(origin.port, duration_s=0.05, stop_timeout_s=0.1)

    assert report["requests"]["completed"] == 10


def test_stopped_load_waits_no_longer_than_its_limit():
    """What is unanswered then has failed, also what waits for a connection."""
    with serving(_Silent) as port, _driving(port, duration_s=0.05, connections_max=2, stop_timeout_s=0.2) as driver:
        _reported(driver, lambda report: report["state"] == "draining" and report["requests"]["sent"] == 2)
        report = driver.stop()

    assert report["failed_by_reason"] == {"timeout": 10}
    assert report["requests"]["sent"] == 2
    assert report["elapsed_s"] < 60  # the requests' own timeout


def test_request_on_a_connection_that_the_server_closed_is_sent_again():
    """A server may close an idle connection just as a request is sent on it (RFC 9112 9.3.1): no failure."""
    with serving(_ClosesAtTheSecond) as port:
        report = _driven(port, connections_max=2)

    assert report["requests"]["completed"] == report["requests"]["sent"] == 50
    assert report["requests"]["resent"] > 0
    assert report["requests"]["failed"] == 0


def test_request_that_is_not_idempotent_is_never_sent_again():
    """POST may have been carried out (RFC 9110 9.2.2): it fails."""
    with serving(_ClosesAtTheSecond) as port:
        report = _driven(port, method="POST", connections_max=2)

    assert report["requests"]["resent"] == 0
    assert report["failed_by_reason"]["reset"] == 50 - report["requests"]["completed"] > 0


def test_request_on_a_fresh_connection_is_never_sent_again():
    """A server that closes a connection on its first request means it."""
    with serving(_ClosesUnanswered) as port:
        report = _driven(port)

    assert report["requests"]["resent"] == 0
    assert report["failed_by_reason"] == {"reset": 50}


def test_request_whose_answer_began_is_never_sent_again():
    """Once a byte of the answer has come, the request was carried out."""
    with serving(_AnswersPartly) as port:
        report = _driven(port, connections_max=2)

    assert report["requests"]["resent"] == 0
    assert report["failed_by_reason"]["reset"] == 50 - report["requests"]["completed"] > 0


def test_stopped_load_awaits_what_is_under_way():
    """On `stop` no further request is sent, and none counts whose time has not come; the account closes."""
    with (
        listening(serve_origin, Origin(latency_p50_ms=100, latency_p99_ms=100)) as origin,
        _driving(origin.port, duration_s=366 * 86_400) as driver,
    ):
        _reported(driver, lambda report: report["requests"]["completed"])
        report = driver.stop()

    requests = report["requests"]
    assert 0 < requests["completed"] == requests["sent"] == requests["offered"] - requests["unsent"]
    assert requests["offered"] <= report["elapsed_s"] * 200 + 1
    assert requests["failed"] == 0
    assert _balance(report) == 0


def test_progress_is_told_at_any_time():
    """A report of a running load balances too: what is neither completed nor failed is outstanding."""
    with (
        listening(serve_origin, Origin(latency_p50_ms=20, latency_p99_ms=20)) as origin,
        _driving(origin.port, duration_s=3600) as driver,
    ):
        while not (report := driver.report())["requests"]["outstanding"]:
            assert _balance(report) == 0
        assert report["state"] == "running"
        assert _balance(report) == report["requests"]["outstanding"]
        assert report["histogram"] is None


@pytest.mark.parametrize(
    "lasting",
    [
        lambda to, length_s: _load(to, rate_per_s=0.5 / length_s, duration_s=length_s),
        lambda to, length_s: _load(to, rate_per_s=100, duration_s=length_s, pauses=((0.1, length_s),)),
        lambda to, length_s: Load(
            executors=(RampingArrivalRate(request=to, stages=((0.1, 100.0, 0.0), (length_s - 0.1, 0.0, 0.0))),)
        ),
    ],
    ids=["constant", "paused", "ramping"],
)
def test_load_lasts_its_whole_duration(lasting):
    """However early its last request arrives: what is to happen later still does, as in k6."""
    with serving(_Server) as port:
        with started(drive, lasting(_to(port), 0.5)) as driver:
            assert driver.end()["elapsed_s"] >= 0.5
        with started(drive, lasting(_to(port), 60.0)) as driver:
            count = len(_starts_ns(lasting(_to(port), 60.0)))
            report = _reported(driver, lambda report: report["requests"]["completed"] == count)
            assert report["state"] == "running"
            driver.stop()


def test_load_that_waits_for_its_end_can_be_stopped():
    """Nothing arrives any more, and nobody has to wait for that."""
    with serving(_Server) as port, _driving(port, rate_per_s=1 / 3600, duration_s=3600) as driver:
        _reported(driver, lambda report: report["requests"]["completed"])
        report = driver.stop()

    assert report["requests"]["offered"] == report["requests"]["completed"] == 1
    assert report["elapsed_s"] < 3600


def test_load_without_arrivals_ends():
    """A Poisson schedule may be empty."""
    seed = next(seed for seed in range(100) if not _starts_ns(_load(rate_per_s=1, arrival="poisson", seed=seed)))
    report = _driven(free_port(), rate_per_s=1, arrival="poisson", seed=seed)

    assert report["requests"]["offered"] == 0
    assert report["valid"]


def test_more_connections_than_descriptors_were_allowed():
    """The driver raises its own limit of open files to what `connections_max` needs, where it may."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("the hard limit of open files is too low")

    def drive_with_few_descriptors(control, *args):
        # What is open already counts too, and a forked child has whatever its parent had.
        highest = max(int(descriptor.name) for descriptor in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 50, hard))
        drive(control, *args)

    with (
        _together(200) as port,
        started(drive_with_few_descriptors, _load(_to(port), rate_per_s=1000, duration_s=0.2)) as driver,
    ):
        report = driver.end()

    assert report["requests"]["completed"] == 200
    assert report["connections"]["peak"] == 200


def test_paused_load_sends_nothing_meanwhile():
    """What would have arrived in the pause does not arrive later."""
    starts_ns = _starts_ns(_load(rate_per_s=100, duration_s=1, pauses=((0.2, 0.5),)))

    assert len(starts_ns) == 70
    assert not [start_ns for start_ns in starts_ns if 0.2e9 <= start_ns < 0.5e9]


def test_pause_swallows_what_comes_before_its_end():
    """A thousand a second for a tenth of it are a hundred, though no float is exactly 1.2."""
    starts_ns = _starts_ns(_load(rate_per_s=1000, duration_s=2, pauses=((1.1, 1.1 + 0.1),)))

    assert len(starts_ns) == 1900


def test_burst_comes_on_top_of_the_load_and_ends_with_it():
    """In order, and none after the end of the load."""
    starts_ns = _starts_ns(_load(rate_per_s=100, duration_s=1, bursts=((0.2, 0.4, 1000.0), (0.9, 5.0, 1000.0))))

    assert len(starts_ns) == 100 + 200 + 100
    assert starts_ns == sorted(starts_ns)
    assert sum(0.2e9 <= start_ns < 0.4e9 for start_ns in starts_ns) == 20 + 200


def test_burst_is_of_the_requests_that_arrive_first_in_the_list():
    """Whether these arrive at that time or not."""
    first, second = _to(1), _to(1)
    arrivals = (_constant(first, rate_per_s=10, duration_s=0.1), _constant(second, rate_per_s=10, duration_s=1))
    sent = Counter(request for _ns, request in Load(executors=arrivals, bursts=((0.5, 0.6, 100.0),)).schedule())

    assert sent == {first: 1 + 10, second: 10}


def test_arrivals_begin_at_their_time_and_go_on_side_by_side():
    """The load lasts until the last of them are over; what comes first is sent first, whoever asks for it."""
    late = RampingArrivalRate(request=_to(1), start_s=0.5, stages=((1.0, 10.0, 10.0),))
    early = _constant(rate_per_s=10, duration_s=1)
    load = Load(executors=(late, early))
    sent = list(load.schedule())

    assert load.length_s == 1.5
    assert [start_ns for start_ns, _request in sent] == sorted(start_ns for start_ns, _request in sent)
    assert [ns for ns, request in sent if request is early.request] == [k * 100_000_000 for k in range(10)]
    assert [ns for ns, request in sent if request is late.request] == [k * 100_000_000 for k in range(5, 15)]


def test_answers_are_told_apart_by_what_was_asked():
    """Whatever went before over the same connection: a HEAD, whose answer has no body, or a POST, which has one."""
    head, post = _to(0, method="HEAD"), _to(0, method="POST", body=b"x" * 10)
    with listening(serve_origin, Origin(body_bytes=1000)) as origin:
        to_origin = [replace(request, port=origin.port) for request in (head, post)]
        load = Load(
            executors=(
                _constant(to_origin[0], rate_per_s=100, duration_s=0.2),
                _constant(to_origin[1], rate_per_s=50, duration_s=0.2, start_s=0.1),
            ),
            connections_max=1,
        )
        with started(drive, load) as driver:
            report = driver.end()

    assert report["connections"]["opened"] == 1
    assert [(each["offered"], each["completed"], each["by_status"]) for each in report["executors"]] == [
        (20, 20, {200: 20}),
        (10, 10, {200: 10}),
    ]
    assert report["requests"]["completed"] == 30
    assert max(each["latency_ms"]["max"] for each in report["executors"]) == report["latency_ms"]["max"]


def test_every_load_has_its_own_account_of_failure():
    """Also of what was never sent, since the load was stopped; nobody knows a rate where nothing was completed."""
    with serving(_Silent) as port:
        load = Load(
            executors=(_constant(_to(port), duration_s=0.05), _constant(_to(port), rate_per_s=1, duration_s=3600)),
            timeout_s=0.1,
            stop_timeout_s=0.1,
        )
        with started(drive, load) as driver:
            _reported(driver, lambda report: report["requests"]["failed"] >= 11)
            report = driver.stop()

    first, second = report["executors"]
    assert (first["offered"], first["failed"], first["completed_per_s"]) == (10, 10, 0.0)
    assert second["offered"] == second["failed"] + second["unsent"] >= 1
    assert _balance(report) == 0


def test_rate_of_a_load_is_that_of_its_own_time():
    """Not of the time before it began, or after it was over."""
    with serving(_Server) as port:
        late = _constant(_to(port), rate_per_s=100, duration_s=0.2, start_s=0.3)
        never = _constant(_to(port), rate_per_s=100, duration_s=3600, start_s=1800)
        with started(drive, Load(executors=(late, never))) as driver:
            _reported(driver, lambda report: report["elapsed_s"] > 0.6)
            report = driver.stop()

    assert [each["completed_per_s"] for each in report["executors"]] == [pytest.approx(100), None]


def test_load_beside_a_slow_one_is_judged_by_its_own_latency():
    """A slow load hides nothing: the figures of the fast one would be the generator's own."""
    with (
        listening(serve_origin, Origin(latency_p50_ms=2000, latency_p99_ms=2000)) as slow,
        serving(_Server) as fast,
        started(
            drive,
            Load(
                executors=(
                    _constant(_to(fast), rate_per_s=100, duration_s=1.0),
                    _constant(_to(slow.port), rate_per_s=100, duration_s=1.0),
                ),
            ),
        ) as driver,
    ):
        _reported(driver, lambda report: report["requests"]["offered"] >= 50)
        driver.signal(signal.SIGSTOP)
        time.sleep(0.15)
        driver.signal(signal.SIGCONT)
        report = driver.end()

    assert report["latency_ms"]["p99"] >= 2000
    assert not report["valid"]


# Virtual users.


def _users(port, *stages, **fields):
    return VirtualUsers(request=_to(port), stages=stages, **fields)


@pytest.mark.parametrize(
    ("stages", "elapsed_s", "users"),
    [
        (((10.0, 5, 5),), 0.0, 5),
        (((10.0, 5, 5),), 9.999, 5),
        (((10.0, 5, 5),), 10.0, 0),
        (((10.0, 0, 10),), 0.999, 0),
        (((10.0, 0, 10),), 1.0, 1),
        (((10.0, 0, 10), (5.0, 10, 0)), 10.0, 10),
        (((10.0, 0, 10), (5.0, 10, 0)), 10.001, 10),
        (((10.0, 0, 10), (5.0, 10, 0)), 12.501, 5),
        (((10.0, 0, 10), (5.0, 10, 0)), 12.49, 6),
        (((10.0, 1, 0),), 9.9, 1),
    ],
)
def test_number_of_users_goes_in_straight_lines(stages, elapsed_s, users):
    """In whole ones: one comes when its number is reached, and goes when the line has fallen by one, as in k6."""
    assert _users(1, *stages).users_at(round(elapsed_s * 1e9)) == users
    assert _users(1, *stages, start_s=2.5).users_at(round((elapsed_s + 2.5) * 1e9)) == users
    assert _users(1, *stages, start_s=2.5).users_at(0) == 0


@given(
    start_s=st.floats(0.0, 1e5),
    before=st.tuples(st.floats(0.001, 1e4), st.integers(0, 1000)),
    rising=st.tuples(st.floats(0.01, 1e4), st.integers(0, 1000)),
)
def test_user_is_wanted_when_it_comes(start_s, before, rising):
    """Whatever rounding makes of the time: one that is not counted then would never come."""
    (before_s, first), (rising_s, more) = before, rising
    stages = ((before_s, first, first), (rising_s, first, first + more), (1.0, first + more, 0))
    executor = _users(1, *stages, start_s=start_s)

    wanted = [executor.users_at(due_ns) for due_ns in executor.schedule()]

    assert wanted == [first] * first + [first + user for user in range(1, more + 1)]


def _slowly():
    """A server whose answers take 20 ms each."""
    return listening(serve_origin, Origin(latency_p50_ms=20, latency_p99_ms=20))


def test_users_wait_for_their_answers():
    """Never more requests under way than there are users, and as many requests as the server lets through."""
    with _slowly() as origin, started(drive, Load(executors=(_users(origin.port, (1.0, 3, 3)),))) as driver:
        while (report := driver.report())["elapsed_s"] < 0.5:
            assert report["requests"]["outstanding"] <= 3
        report = driver.end()

    requests = report["requests"]
    assert 3 < requests["offered"] == requests["completed"] <= 3 * (1000 / 20 + 1)
    assert report["connections"] == {"opened": 3, "peak": 3}
    assert report["latency_ms"]["p50"] >= 20
    assert set(report["lag_ms"].values()) == {None}
    assert report["valid"]
    assert 0 < report["busy_with_users"] <= 1


def test_users_come_and_go():
    """Each sends a request when it comes, and nobody who is one too many sends another; they come again when wanted."""
    stages = ((0.1, 8, 8), (0.001, 8, 2), (3600.0, 2, 2))
    with _slowly() as origin, started(drive, Load(executors=(_users(origin.port, *stages),))) as driver:
        _reported(driver, lambda report: report["elapsed_s"] > 0.2 and report["requests"]["outstanding"] <= 2)
        for _ in range(10):
            assert driver.report()["requests"]["outstanding"] <= 2
        report = driver.stop()

    assert report["connections"]["opened"] == 8
    assert report["requests"]["completed"] == report["requests"]["offered"] > 8


def test_user_who_waits_for_an_answer_is_not_replaced():
    """One who was to go and is wanted again before its answer has come has never gone."""
    stages = ((0.1, 4, 4), (0.001, 4, 0), (0.001, 0, 4), (3600.0, 4, 4))
    with (
        serving(_Silent) as port,
        started(drive, Load(executors=(_users(port, *stages),), stop_timeout_s=0.1)) as driver,
    ):
        _reported(driver, lambda report: report["elapsed_s"] > 0.3)
        report = driver.stop()

    assert report["requests"]["offered"] == report["failed_by_reason"]["timeout"] == 4


def test_load_of_users_who_only_go_has_them_at_first():
    """None is lost by how late the first look at the time is."""
    with _slowly() as origin, started(drive, Load(executors=(_users(origin.port, (0.5, 3, 0)),))) as driver:
        report = driver.end()

    assert report["connections"]["opened"] == 3


def test_user_whose_request_fails_goes_on():
    """As k6's do; each failure is in the account."""
    with started(drive, Load(executors=(_users(free_port(), (0.2, 2, 2)),))) as driver:
        report = driver.end()

    assert report["failed_by_reason"]["connect"] == report["requests"]["offered"] > 2
    assert _balance(report) == 0


def test_users_are_stopped_with_the_load():
    """They wait for their answers, and send nothing more."""
    with (
        listening(serve_origin, Origin(latency_p50_ms=50, latency_p99_ms=50)) as origin,
        started(drive, Load(executors=(_users(origin.port, (3600.0, 5, 5)),))) as driver,
    ):
        _reported(driver, lambda report: report["requests"]["completed"])
        report = driver.stop()

    assert report["state"] == "finished"
    assert report["requests"]["completed"] == report["requests"]["offered"] == report["requests"]["sent"]


def test_users_and_arrivals_go_on_side_by_side():
    """The lag is that of the arrivals."""
    with serving(_Server) as port:
        load = Load(executors=(_users(port, (0.2, 2, 2)), _constant(_to(port), rate_per_s=50, duration_s=0.4)))
        with started(drive, load) as driver:
            report = driver.end()

    users, arrivals = report["executors"]
    assert users["completed"] == users["offered"] > 2
    assert (arrivals["offered"], arrivals["completed"]) == (20, 20)
    assert report["lag_ms"]["max"] is not None


def test_latencies_of_requests_that_start_in_a_window_are_told_apart():
    """Inside and outside add up to all; without windows there is nothing to tell."""
    with serving(_Server) as port:
        report = _driven(port, rate_per_s=100, duration_s=0.5, windows=((0.1, 0.3), (0.2, 0.4)))
        whole = _driven(port, rate_per_s=100, duration_s=0.1)

    window = report["fault_window"]
    assert (window["requests"], window["outside_requests"]) == (30, 20)
    assert max(window["latency_ms"]["max"], window["outside_latency_ms"]["max"]) == report["latency_ms"]["max"]
    assert whole["fault_window"] is None


def test_latest_latencies_are_those_since_the_report_before():
    """Each request is in one report: together they are all of them, and after the last there is none."""
    latest = []
    with serving(_Server) as port, _driving(port, rate_per_s=100, duration_s=3600) as driver:
        while sum(each["requests"] > 0 for each in latest) < 3:
            latest.append(driver.report()["latest"])
        final = driver.stop()

    assert sum(each["requests"] for each in (*latest, final["latest"])) == final["requests"]["completed"]
    assert final["latest"]["latency_ms"]["max"] <= final["latency_ms"]["max"]


def test_ramping_load_sends_what_its_stages_say():
    """From 0 to 100 a second in half a second, and down again: 50 requests."""
    stages = ((0.5, 0.0, 100.0), (0.5, 100.0, 0.0))
    with (
        serving(_Server) as port,
        started(drive, Load(executors=(RampingArrivalRate(request=_to(port), stages=stages),))) as load,
    ):
        report = load.end()

    assert (report["requests"]["offered"], report["requests"]["completed"]) == (50, 50)
