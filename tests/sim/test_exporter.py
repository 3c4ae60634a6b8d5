"""The exporter's own part: where it sends, and how it reads an answer."""

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from sim.exporter import Endpoint, _refused, _retry_after

NOW_S = 1_793_534_400.0  # 2026-11-01 12:00:00 GMT


def endpoint(url, **headers):
    return Endpoint.of(url, headers, b"", connect_timeout=1, read_timeout=1)


def test_endpoint_is_what_the_url_says():
    """Host, port and target come from the URL; the port has a default."""
    made = endpoint("http://collector:4318/v1/traces?key=1")
    assert (made.host, made.port) == ("collector", 4318)
    assert made.head.startswith(b"POST /v1/traces?key=1 HTTP/1.1\r\nHost: collector:4318\r\n")
    assert endpoint("http://collector").port == 80


def test_configured_headers_are_sent_and_may_replace_the_content_type():
    """Each request has the headers of the configuration; a Content-Type there stands instead of ours."""  # O18
    assert b"Content-Type: application/x-protobuf\r\nX-Key: 1\r\n" in endpoint("http://c/", **{"X-Key": "1"}).head
    assert endpoint("http://c/", **{"Content-Type": "a/b"}).head.count(b"Content-Type") == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"120", 120.0),
        (b"Sun, 01 Nov 2026 12:00:30 GMT", 30.0),
        (b"Sun, 01 Nov 2026 11:00:00 GMT", 0.0),
        (b"soon", None),
        (None, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value, seconds):
    """Seconds or an HTTP date; what is neither is as if it were not there."""  # RFC 9110 10.2.3
    lines = [] if value is None else [(b"Retry-After", value)]
    assert _retry_after(lines, NOW_S) == seconds


def test_partial_success_says_how_many_spans_were_refused():
    """The count stands in the answer's body; an empty or foreign body refuses none."""
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 7
    assert [_refused(body) for body in (response.SerializeToString(), b"", b"\xff not protobuf")] == [7, 0, 0]
