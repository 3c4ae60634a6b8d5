"""The collector receives OTLP/HTTP as the specification says, and counts exactly."""

import contextlib
import gzip
import http.client
import io
import json
import os
import signal
import socket
import time

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from rich.console import Console

from sim import process
from sim.capture import Capture
from sim.collector import BODY_BYTES_MAX, SHOWN_MAX, serve, serve_forever
from sim.errors import UserError
from sim.faults import Fault, parse_option
from tests.peers import TIMEOUT_S, listening, started, wait_accepting

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
T0 = 1_700_000_000_000_000_000


@pytest.fixture
def collector():
    with listening(serve) as running:
        yield running


def _request(*spans, **fields):
    """An export request of spans given as (span id, parent id), one second long, in one trace."""
    request = ExportTraceServiceRequest()
    for span_id, parent_id in spans:
        request.resource_spans.add().scope_spans.add().spans.add(
            **{
                "trace_id": b"t" * 16,
                "span_id": span_id,
                "parent_span_id": parent_id,
                "name": "span",
                "start_time_unix_nano": T0,
                "end_time_unix_nano": T0 + 1_000_000_000,
            }
            | fields
        )
    return request.SerializeToString()


ONE_SPAN = _request((b"a" * 8, b""))


def _post(port, body, content_type=PROTOBUF, method="POST", path="/v1/traces", **headers):
    """Send a request; return the answer and its body."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if content_type:
        headers["Content-Type"] = content_type
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer, answer.read()


def _counts(report, *names):
    return tuple(report[name] for name in names)


# What is right.


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
def test_sdk_exporter_delivers_its_traces(collector, compression):
    """The exporter of opentelemetry-sdk is understood: every span arrives once, as part of a whole tree."""
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{collector.port}/v1/traces", compression=compression)
    provider = TracerProvider(shutdown_on_exit=False)
    results = []

    class Exporter:
        def export(self, spans):
            results.append(exporter.export(spans))

        def shutdown(self):
            exporter.shutdown()

    provider.add_span_processor(SimpleSpanProcessor(Exporter()))
    tracer = provider.get_tracer("test")
    for _ in range(3):
        with tracer.start_as_current_span("root"), tracer.start_as_current_span("child") as span:
            span.set_attribute("key", [1, 2])
    provider.shutdown()
    report = collector.stop()

    if compression is Compression.Deflate:  # OTLP knows gzip alone
        assert set(results) == {SpanExportResult.FAILURE}
        assert report["by_status"] == {415: 6}
    else:
        assert results == [SpanExportResult.SUCCESS] * 6
        assert report["by_status"] == {200: 6}
        assert _counts(report, "received", "received_unique", "received_duplicates", "traces") == (6, 6, 0, 3)
        assert _counts(report, "orphans", "outside_parent", "unfinished", "rootless", "multi_rooted") == (0,) * 5


def test_protobuf_is_answered_in_protobuf(collector):
    """Full success is 200 and an ExportTraceServiceResponse without partial success."""
    answer, body = _post(collector.port, ONE_SPAN)

    assert (answer.status, answer.getheader("Content-Type")) == (200, PROTOBUF)
    assert ExportTraceServiceResponse.FromString(body) == ExportTraceServiceResponse()


def test_json_is_answered_in_json(collector):
    """JSON has hex ids of either case, integers as numbers or text, and unknown fields, which are ignored."""
    trace_id = "5B8EFFF798038103D269B633813FC60C"
    spans = [
        {"traceId": trace_id, "spanId": "EEE19B7EC3C1B174", "name": "root", "kind": 2, "unknown": 1}
        | {
            "startTimeUnixNano": str(T0),
            "endTimeUnixNano": T0 + 1000,
            "links": [{"traceId": trace_id, "spanId": "1" * 16}],
        },
        {"traceId": trace_id.lower(), "spanId": "eee19b7ec3c1b175", "parentSpanId": "eee19b7ec3c1b174", "name": "child"}
        | {"startTimeUnixNano": T0, "endTimeUnixNano": str(T0 + 1000)},
    ]
    upload = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
    answer, body = _post(collector.port, json.dumps(upload), "application/json; charset=utf-8")
    report = collector.stop()

    assert (answer.status, answer.getheader("Content-Type"), json.loads(body)) == (200, JSON, {})
    assert _counts(report, "received_unique", "traces", "orphans", "rootless", "multi_rooted") == (2, 1, 0, 0, 0)


def test_gzipped_body_is_understood(collector):
    """`Content-Encoding: gzip`, of several members too (RFC 1952 2.2)."""
    for body in (gzip.compress(ONE_SPAN), gzip.compress(ONE_SPAN[:10]) + gzip.compress(ONE_SPAN[10:])):
        assert _post(collector.port, body, Content_Encoding="gzip")[0].status == 200

    assert _counts(collector.stop(), "received", "received_unique") == (2, 1)


def test_empty_request_is_a_success(collector):
    """A request without spans is accepted (OTLP, "Full Success")."""
    assert _post(collector.port, b"")[0].status == 200
    assert _post(collector.port, "{}", JSON)[0].status == 200
    assert collector.stop()["received"] == 0


def test_path_may_come_as_a_whole_url(collector):
    """Absolute form (RFC 9112 3.2.2) and a query make no difference."""
    assert _post(collector.port, ONE_SPAN, path="http://any.where/v1/traces?a=b")[0].status == 200


def test_span_that_is_sent_again_is_a_duplicate(collector):
    """A retry whose first answer got lost is counted as such."""
    for _ in range(3):
        _post(collector.port, ONE_SPAN)
    report = collector.stop()

    assert _counts(report, "requests", "received", "received_unique", "received_duplicates") == (3, 3, 1, 2)
    assert report["bytes"] == 3 * len(ONE_SPAN)


def test_report_tells_what_is_wrong_with_the_traces(collector):
    """A span without its parent is an orphan, one without an end unfinished."""
    _post(collector.port, _request((b"a" * 8, b""), (b"b" * 8, b"lost----"), end_time_unix_nano=0))

    assert _counts(collector.report(), "orphans", "unfinished", "outside_parent") == (1, 2, 0)


def test_answer_comes_after_its_latency():
    """The collector can be as slow as it is told to be."""
    with listening(serve, latency_ms=50.0) as collector:
        begun_ns = time.monotonic_ns()
        _post(collector.port, ONE_SPAN)
        assert time.monotonic_ns() - begun_ns >= 50_000_000


# What is wrong.


def _json_span(**fields):
    span = {"traceId": "ab" * 16, "spanId": "ab" * 8} | fields
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"\xff\xff\xff", PROTOBUF, "not an ExportTraceServiceRequest: "),
        (ONE_SPAN[:-5], PROTOBUF, "not an ExportTraceServiceRequest: "),
        (b"{", JSON, "not an ExportTraceServiceRequest: "),
        (b"\xff", JSON, "not an ExportTraceServiceRequest: "),
        (b"[]", JSON, "not an ExportTraceServiceRequest: "),
        (b"7", JSON, "not an ExportTraceServiceRequest: "),
        (b"null", JSON, "not an ExportTraceServiceRequest: "),
        (b'{"resourceSpans": {}}', JSON, "not an ExportTraceServiceRequest: "),
        (b'{"resourceSpans": [7]}', JSON, "not an ExportTraceServiceRequest: "),
        (b"[" * 100_000, JSON, "not an ExportTraceServiceRequest: "),
        (_json_span(spanId="no hex"), JSON, "not an ExportTraceServiceRequest: "),
        (_json_span(spanId=7), JSON, "not an ExportTraceServiceRequest: "),
        (_json_span(kind=float("inf")), JSON, "not an ExportTraceServiceRequest: "),
        (_json_span(status="\ud800"), JSON, "not an ExportTraceServiceRequest: "),
        (b'{"resourceSpans": "\\ud800"}', JSON, "not an ExportTraceServiceRequest: "),
        (_json_span(spanId="ab"), JSON, "span '': span_id must be 8 bytes, not all zero"),
        (
            _request((b"a" * 8, b""), trace_id=b"short"),
            PROTOBUF,
            "span 'span': trace_id must be 16 bytes, not all zero",
        ),
        (
            _request((b"a" * 8, b""), trace_id=bytes(16)),
            PROTOBUF,
            "span 'span': trace_id must be 16 bytes, not all zero",
        ),
        (_request((b"", b"")), PROTOBUF, "span 'span': span_id must be 8 bytes, not all zero"),
        (_request((bytes(8), b"")), PROTOBUF, "span 'span': span_id must be 8 bytes, not all zero"),
        (_request((b"a" * 8, b"short")), PROTOBUF, "span 'span': parent_span_id must be 8 bytes, or left out"),
    ],
)
def test_malformed_body_is_refused_as_a_whole(collector, body, content_type, message):
    """400 with a Status that says why (OTLP, "Bad Data"), and nothing is counted."""
    answer, status = _post(collector.port, body, content_type)

    assert (answer.status, answer.getheader("Content-Type")) == (400, content_type)
    text = json.loads(status)["message"] if content_type == JSON else Status.FromString(status).message
    assert text.startswith(message)
    assert collector.stop()["received"] == 0


def test_request_with_one_bad_span_counts_none(collector):
    """400 means that nothing was taken, so nothing is lost or doubled when the client mends it."""
    assert _post(collector.port, _request((b"a" * 8, b""), (b"bad", b"")))[0].status == 400
    assert collector.stop()["received"] == 0


@pytest.mark.parametrize("path", ["/", "/v1/traces/", "/v1/metrics", "/v1/logs", "*"])
def test_other_paths_are_not_found(collector, path):
    """404 says where traces go."""
    answer, status = _post(collector.port, ONE_SPAN, path=path)

    assert answer.status == 404
    assert Status.FromString(status).message == "nothing here; send traces to /v1/traces"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_not_allowed(collector, method):
    """405 names the method that is (RFC 9110 15.5.6); who did not say what it reads gets JSON."""
    answer, status = _post(collector.port, None, None, method=method)

    assert (answer.status, answer.getheader("Allow"), answer.getheader("Content-Type")) == (405, "POST", JSON)
    assert json.loads(status) == {"message": f"send traces with POST, not {method}"}


def test_head_gets_no_body(collector):
    """HEAD is no method of OTLP either, and its answer has a head alone."""
    answer, body = _post(collector.port, None, None, method="HEAD")

    assert (answer.status, body) == (405, b"")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/protobuf"])
def test_other_content_types_are_not_supported(collector, content_type):
    """415 names those that are."""
    answer, status = _post(collector.port, ONE_SPAN, content_type)

    assert answer.status == 415
    assert json.loads(status)["message"].startswith("send traces as application/x-protobuf or application/json, not ")


def test_other_codings_are_not_supported(collector):
    """415 names those that are (RFC 9110 15.5.16)."""
    answer, _ = _post(collector.port, ONE_SPAN, Content_Encoding="br")

    assert (answer.status, answer.getheader("Accept-Encoding")) == (415, "gzip, identity")


@pytest.mark.parametrize(
    "body",
    [b"no gzip", gzip.compress(ONE_SPAN)[:-9], gzip.compress(ONE_SPAN)[:12] + b"\xff" * 30],
    ids=["no gzip", "cut short", "overwritten"],
)
def test_broken_gzip_is_refused(collector, body):
    """400, as for any body that cannot be decoded."""
    answer, status = _post(collector.port, body, Content_Encoding="gzip")

    assert answer.status == 400
    assert Status.FromString(status).message.startswith("not gzip, as Content-Encoding says: ")


def test_x_gzip_is_gzip(collector):
    """As RFC 9110 8.4.1.3 has it."""
    answer, _ = _post(collector.port, gzip.compress(ONE_SPAN), Content_Encoding="x-gzip")

    assert (answer.status, collector.stop()["received"]) == (200, 1)


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_body_beyond_the_limit_is_too_large(collector, coding):
    """413 names the limit, for what is sent and for what it unfolds to; the connection stays usable."""
    zeros = bytes(BODY_BYTES_MAX + 1)
    body = gzip.compress(zeros) if coding == "gzip" else zeros
    answer, status = _post(collector.port, body, Content_Encoding=coding)

    assert answer.status == 413
    assert Status.FromString(status).message == f"send at most {BODY_BYTES_MAX} bytes of body"
    assert answer.getheader("Connection") is None
    assert collector.report()["bytes"] == len(body)


# In the foreground.


@contextlib.contextmanager
def _foreground(**options):
    """Run `serve_forever` in a process; give the process, a stream of what it prints, and its port."""
    reading, writing = os.pipe()

    def run(_control):
        with os.fdopen(writing, "w", buffering=1) as output:
            serve_forever("127.0.0.1", 0, console=Console(file=output), **options)

    with started(run) as running, os.fdopen(reading) as output:
        os.close(writing)
        url = output.readline().split()[-1]
        yield running.child, output, int(url.rpartition(":")[2].partition("/")[0])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_foreground_shows_traces_and_totals(signum):
    """Each trace is shown once its root has come, totals follow at the end, and the exit is clean."""
    with _foreground() as (child, output, port):
        _post(port, _request((b"b" * 8, b"a" * 8)))
        _post(port, ONE_SPAN)
        assert [output.readline() for _ in range(3)] == [
            f"trace {'74' * 16}  1000.000 ms  2 spans\n",
            "└── span  1000.000 ms\n",
            "    └── span  1000.000 ms\n",
        ]
        os.kill(child.pid, signum)
        assert output.read() == (
            "requests 2, received 2, received_unique 2, received_duplicates 0, unanswered 0, traces 1, "
            "orphans 0, outside_parent 0, unfinished 0, rootless 0, multi_rooted 0\n"
        )
        assert process.reap(child, TIMEOUT_S) == 0


def test_foreground_shows_what_is_left_at_its_end():
    """A trace that still waited for its root is shown before the totals."""
    with _foreground() as (child, output, port):
        _post(port, _request((b"b" * 8, b"lost----")))
        os.kill(child.pid, signal.SIGTERM)
        text = output.read()
        assert process.reap(child, TIMEOUT_S) == 0

    assert "span  1000.000 ms  (orphan)\n" in text
    assert "orphans 1" in text


def test_foreground_does_not_show_more_traces_than_senders_can_wait_for():
    """Those that come too fast are told by their number; they are counted like the others."""
    traces = [_request((b"a" * 8, b""), trace_id=bytes([number]) * 16) for number in range(1, SHOWN_MAX + 4)]
    with _foreground() as (child, output, port):
        _post(port, b"".join(traces))  # one message: repeated fields are joined
        os.kill(child.pid, signal.SIGTERM)
        text = output.read()
        assert process.reap(child, TIMEOUT_S) == 0

    assert text.count("\n└── span") == SHOWN_MAX
    assert "\nand 3 traces more, which are counted but not shown" in text
    assert f" traces {SHOWN_MAX + 3}," in text


def test_foreground_carries_faults_out_at_their_times():
    """They are told as they begin and end."""
    fault = parse_option("{at: 0s, for: 2s, kind: status, status: 503}", "collector")  # long enough to be felt
    with _foreground(faults=[fault]) as (child, output, port):
        assert output.readline() == "fault status begins\n"
        assert _post(port, ONE_SPAN)[0].status == 503
        assert output.readline() == "fault status ends\n"
        assert _post(port, ONE_SPAN)[0].status == 200
        os.kill(child.pid, signal.SIGTERM)
        assert "received 1" in output.read()
        assert process.reap(child, TIMEOUT_S) == 0


def test_foreground_repeats_a_fault():
    """As often as it comes, until the end."""
    fault = parse_option("{at: 0s, for: 50ms, every: 100ms, kind: status, status: 503}", "collector")
    with _foreground(faults=[fault]) as (child, output, _port):
        told = [output.readline() for _ in range(6)]
        os.kill(child.pid, signal.SIGTERM)
        assert process.reap(child, TIMEOUT_S) == 0

    assert told == ["fault status begins\n", "fault status ends\n"] * 3


def test_foreground_may_begin_unreachable():
    """A fault at the very start is no different."""
    fault = parse_option("{at: 0s, for: 2s, kind: refuse}", "collector")  # long enough to be felt
    with _foreground(faults=[fault]) as (child, output, port):
        assert output.readline() == "fault refuse begins\n"
        with pytest.raises(ConnectionRefusedError):
            _post(port, ONE_SPAN)
        assert output.readline() == "fault refuse ends\n"
        wait_accepting(port)
        assert _post(port, ONE_SPAN)[0].status == 200
        os.kill(child.pid, signal.SIGTERM)
        assert process.reap(child, TIMEOUT_S) == 0


def test_foreground_refuses_a_host_that_nobody_knows():
    """A name that cannot be resolved is the user's to mend too."""
    with pytest.raises(UserError, match=r"^cannot listen on no\.such\.host\.invalid:0: .+; choose another"):
        serve_forever("no.such.host.invalid", 0, console=Console(file=io.StringIO()))


def test_foreground_refuses_an_address_in_use():
    """A port that is taken is the user's to mend, in one line."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match=r"^cannot listen on 127\.0\.0\.1:\d+: Address already in use; choose another"),
    ):
        serve_forever("127.0.0.1", taken.getsockname()[1], console=Console(file=io.StringIO()))


# Faults.


def _begin(collector, **fields):
    fault = Fault.model_validate({"at": 0, "target": "collector", **fields})
    collector.control.send((True, fault))
    collector.report()


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_status_that_is_no_success_takes_nothing_in(collector, status):
    """It is answered with a `google.rpc.Status`, and with `Retry-After` if there is one."""
    _begin(collector, kind="status", status=status, retry_after="2s")

    answer, body = _post(collector.port, ONE_SPAN)

    assert answer.status == status
    assert answer.headers["Retry-After"] == "2"
    assert Status.FromString(body).message == "fault of kind status"
    assert _counts(collector.stop(), "received", "requests", "by_status") == (0, 1, {status: 1})


def test_status_of_success_takes_spans_in_and_leaves_them_unanswered(collector):
    """OTLP knows 200 only, so their sender may send them again, and has a reason."""  # H29
    _begin(collector, kind="status", status=202)

    assert [_post(collector.port, ONE_SPAN)[0].status for _ in range(2)] == [202, 202]

    report = collector.stop()
    assert _counts(report, "received_unique", "received_duplicates", "unanswered", "needless") == (1, 1, 1, 0)


def test_partial_success_tells_how_many_spans_are_refused(collector):
    """The share of them is not taken in."""
    _begin(collector, kind="partial_success", rejected=0.25)

    answer, body = _post(collector.port, _request(*((b"%d" % k * 8, b"") for k in range(8))))

    assert answer.status == 200
    assert ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans == 2
    assert _counts(collector.stop(), "received_unique", "rejected", "unanswered") == (6, 2, 0)


@pytest.mark.parametrize(("share", "rejected"), [(0.4, 8), (0.1, 2), (0.5, 10), (1, 20)])
def test_partial_success_refuses_its_share_of_spans_that_come_one_by_one(collector, share, rejected):
    """What is no whole span of one request is carried over to the next."""
    _begin(collector, kind="partial_success", rejected=share)

    for k in range(20):
        _post(collector.port, _request((b"%08d" % k, b"")))

    assert _counts(collector.stop(), "received_unique", "rejected") == (20 - rejected, rejected)


def test_capture_holds_what_was_taken_in():
    """Each request as protobuf and as often as it came, none that was refused; what was rejected of one is told."""
    capture, before_ns = Capture(), time.monotonic_ns()
    four = _request(*((b"%d" % k * 8, b"") for k in range(4)))
    with listening(serve, capture=capture) as collector:
        _post(collector.port, ONE_SPAN)
        _post(collector.port, _json_span(name="of JSON"), JSON)
        _post(collector.port, gzip.compress(ONE_SPAN), Content_Encoding="gzip")
        _post(collector.port, b"no protobuf")
        _begin(collector, kind="partial_success", rejected=0.25)
        _post(collector.port, four)
        report = collector.stop()

    kept = list(capture)
    assert [(arrival.message, arrival.rejected) for arrival in kept if arrival is not kept[1]] == [
        (ONE_SPAN, 0),
        (ONE_SPAN, 0),
        (four, 1),
    ]
    (group,) = ExportTraceServiceRequest.FromString(kept[1].message).resource_spans
    assert group.scope_spans[0].spans[0].name == "of JSON"
    assert _counts(report, "captured", "received") == (6, 6)
    times_ns = [before_ns, *(arrival.arrived_ns for arrival in kept), time.monotonic_ns()]
    assert times_ns == sorted(times_ns)


def test_span_that_comes_again_after_its_answer_is_needless(collector):
    """Its sender had no reason."""
    for _ in range(2):
        _post(collector.port, ONE_SPAN)

    assert _counts(collector.stop(), "received_duplicates", "needless", "unanswered") == (1, 1, 0)


def test_span_whose_sender_has_left_is_unanswered(collector):
    """It was taken in, and the answer found nobody."""
    _begin(collector, kind="slow", latency="1s")  # long enough to leave in it
    with contextlib.closing(socket.create_connection(("127.0.0.1", collector.port), TIMEOUT_S)) as client:
        head = f"POST /v1/traces HTTP/1.1\r\nContent-Type: {PROTOBUF}\r\nContent-Length: {len(ONE_SPAN)}\r\n\r\n"
        client.sendall(head.encode() + ONE_SPAN)
        while not collector.report()["received"]:
            process.wait([collector.child.sentinel], 0.001)
    _post(collector.port, _request((b"b" * 8, b"")))  # its answer comes after that one was due

    assert _counts(collector.stop(), "received_unique", "unanswered") == (2, 1)


def test_rate_is_that_from_the_first_request_to_the_last(collector):
    """One request has no rate."""
    _post(collector.port, ONE_SPAN)
    assert collector.report()["received_per_s"] is None

    _post(collector.port, _request((b"b" * 8, b"a" * 8)))
    assert collector.stop()["received_per_s"] > 0
