"""A client's connection, on wires of memory: what is served, what is refused and with which status."""

import itertools
import json
import random

import h11
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kongtrace import ApiError
from sim.config import Nginx
from sim.entity import Plugin, Route
from tests.hostile import SOAK, hostile_parts
from tests.wire import Wired

HOST = b"Host: g\r\n"


def post(headers=b"", body=b"", line=b"POST / HTTP/1.1"):
    return line + b"\r\n" + HOST + headers + b"\r\n" + body


def chunked(body):
    return post(b"Transfer-Encoding: chunked\r\n", body)


def answers(received, *methods):
    """The responses in what was received, as another implementation reads them: status, headers, body."""
    client = h11.Connection(h11.CLIENT)
    client.receive_data(received)
    found = []
    for method in methods:
        client.send(h11.Request(method=method, target="/", headers=[("Host", "g")]))
        client.send(h11.EndOfMessage())
        body = b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            assert event not in (h11.NEED_DATA, h11.PAUSED), received
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
        found.append((head.status_code, dict(head.headers), bytes(body)))
        if client.our_state is h11.DONE and client.their_state is h11.DONE:
            client.start_next_cycle()
    assert client.trailing_data[0] == b""
    return found


# What is refused.

REFUSED = {
    "bare LF after the request line": (b"GET / HTTP/1.1\nHost: g\r\n\r\n", 400),
    "bare LF after a header": (b"GET / HTTP/1.1\r\nHost: g\nA: b\r\n\r\n", 400),
    "bare LF at the end": (b"GET / HTTP/1.1\r\nHost: g\r\n\n", 400),
    "bare LF everywhere": (b"GET / HTTP/1.1\nHost: g\n\n", 400),
    "bare CR in a value": (b"GET / HTTP/1.1\r\nHost: g\r\nA: b\rc\r\n\r\n", 400),
    "folded line": (b"GET / HTTP/1.1\r\nHost: g\r\nA: b\r\n c\r\n\r\n", 400),
    "folded line, tab": (b"GET / HTTP/1.1\r\nHost: g\r\nA: b\r\n\tc\r\n\r\n", 400),
    "folded Transfer-Encoding": (post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"), 400),
    "blank before the first name": (b"GET / HTTP/1.1\r\n Host: g\r\n\r\n", 400),
    "blank before the colon": (b"GET / HTTP/1.1\r\nHost : g\r\n\r\n", 400),
    "blank in a name": (post(b"A B: c\r\n"), 400),
    "no name": (post(b": c\r\n"), 400),
    "no colon": (post(b"abc\r\n"), 400),
    "parenthesis in a name": (post(b"A(: c\r\n"), 400),
    "control character in a name": (post(b"A\x01: c\r\n"), 400),
    "NUL in a value": (post(b"A: a\x00b\r\n"), 400),
    "control character in a value": (post(b"A: a\x01b\r\n"), 400),
    "NUL in the target": (b"GET /\x00 HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "blank in the target": (b"GET /a b HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "tab in the target": (b"GET /a\tb HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "fragment in the target": (b"GET /a#b HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "half a triplet in the path": (b"GET /a%4 HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "no triplet in the path": (b"GET /%zz HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "NUL in a triplet": (b"GET /a%00b HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "path above the root": (b"GET /a//../../b HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "path above the root, in triplets": (b"GET /a%2f.%2e/%2e. HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "target without a slash": (b"GET a HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "target of another scheme": (b"GET ftp://g/ HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "target with credentials": (b"GET http://me@g/ HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "blank after the version": (b"GET / HTTP/1.1 \r\nHost: g\r\n\r\n", 400),
    "method in lower case": (b"get / HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "unknown method": (b"FROB / HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "CONNECT": (b"CONNECT g:80 HTTP/1.1\r\nHost: g\r\n\r\n", 405),
    "TRACE": (b"TRACE / HTTP/1.1\r\nHost: g\r\n\r\n", 405),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/0.9, written out": (b"GET / HTTP/0.9\r\nHost: g\r\n\r\n", 400),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: g\r\n\r\n", 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/9.9": (b"GET / HTTP/9.9\r\nHost: g\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: g\r\nHost: g\r\n\r\n", 400),
    "two Hosts, absolute target": (b"GET http://g/ HTTP/1.1\r\nHost: g\r\nHost: h\r\n\r\n", 400),
    "two Hosts, HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: g\r\nHost: g\r\n\r\n", 400),
    "empty Host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "blank in Host": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "slash in Host": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "credentials in Host": (b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
    "port of Host that is no number": (b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    "Content-Length +5": (post(b"Content-Length: +5\r\n", b"hello"), 400),
    "Content-Length -5": (post(b"Content-Length: -5\r\n", b"hello"), 400),
    "Content-Length 0x5": (post(b"Content-Length: 0x5\r\n", b"hello"), 400),
    "Content-Length 5,5": (post(b"Content-Length: 5,5\r\n", b"hello"), 400),
    "Content-Length 5 5": (post(b"Content-Length: 5 5\r\n", b"hello"), 400),
    "Content-Length, empty": (post(b"Content-Length:\r\n", b"hello"), 400),
    "Content-Length of 2^63": (post(b"Content-Length: 9223372036854775808\r\n", b"hello"), 400),
    "Content-Length of 5000 digits": (post(b"Content-Length: " + b"0" * 4999 + b"5\r\n", b"hello"), 400),
    "Content-Length of 2^64": (post(b"Content-Length: 18446744073709551616\r\n", b"hello"), 400),
    "two equal Content-Lengths": (post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"), 400),
    "two different Content-Lengths": (post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"), 400),
    "Content-Length, Transfer-Encoding": (
        post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        400,
    ),
    "Transfer-Encoding, Content-Length": (
        post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
        400,
    ),
    "Transfer-Encoding of HTTP/1.0": (
        post(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", line=b"POST / HTTP/1.0"),
        400,
    ),
    "chunked twice": (post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), 400),
    "two Transfer-Encodings": (
        post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        400,
    ),
    "chunked, then identity": (post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"), 400),
    "identity": (post(b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n"), 501),
    "gzip": (post(b"Transfer-Encoding: gzip\r\n", b"0\r\n\r\n"), 501),
    "gzip, then chunked": (post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), 501),
    "xchunked": (post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"), 501),
    "quoted chunked": (post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"), 501),
    "chunked with a parameter": (post(b"Transfer-Encoding: chunked;q=1\r\n", b"0\r\n\r\n"), 501),
    "empty element, chunked": (post(b"Transfer-Encoding: ,chunked\r\n", b"0\r\n\r\n"), 501),
    "vertical tab, chunked": (post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"), 400),
    "long target": (b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\nHost: g\r\n\r\n", 414),
    "long header line": (post(b"A: " + b"a" * 8192 + b"\r\n"), 431),
    "long header name": (post(b"a" * 8192 + b": b\r\n"), 431),
    "many header lines": (post(b"".join(b"A-%d: b\r\n" % number for number in range(4000))), 431),
    "endless target": (b"GET /" + b"a" * 100_000, 414),
    "endless header line": (b"GET / HTTP/1.1\r\nA: " + b"a" * 100_000, 431),
    "endless header lines": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000, 431),
}
"""Header sections that two readers could take in two ways, or that ask for too much; each with its status."""


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("whole", [True, False], ids=["at once", "byte by byte"])
def test_ambiguous_or_excessive_header_section_is_refused_and_the_connection_closed(data, status, whole):
    """Nothing reaches an upstream; the client gets the status, and Kong's message, and the end."""  # RFC 9112 3, 5, 6
    wired = Wired()
    client = wired.client()
    client.send(data) if whole else client.send(*(data[n : n + 1] for n in range(len(data))))

    [(answered, headers, body)] = answers(client.received(), "GET")
    assert answered == status
    assert (headers[b"connection"], headers[b"server"]) == (b"close", b"kong/3.9.1")
    assert json.loads(body)["request_id"].encode() == headers[b"x-kong-request-id"]
    assert client.wire.ended
    assert wired.understood == []
    assert [level for level, _ in wired.lines] == ["info"]
    assert (wired.worker.counts.requests, wired.worker.counts.active) == (1, 0)


REFUSED_BODIES = {
    "chunk size -3": b"-3\r\nabc\r\n0\r\n\r\n",
    "chunk size 0x3": b"0x3\r\nabc\r\n0\r\n\r\n",
    "blank after the chunk size": b"3 \r\nabc\r\n0\r\n\r\n",
    "blank before the chunk size": b" 3\r\nabc\r\n0\r\n\r\n",
    "no chunk size": b"\r\nabc\r\n0\r\n\r\n",
    "chunk size of 2^64": b"10000000000000000\r\nabc",
    "bare LF after the chunk size": b"3\nabc\r\n0\r\n\r\n",
    "bare LF in a chunk extension": b"3;a\nabc\r\n0\r\n\r\n",
    "bare CR in a chunk extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "bare LF after the chunk": b"3\r\nabc\n0\r\n\r\n",
    "nothing after the chunk": b"3\r\nabc0\r\n\r\n",
    "chunk that is too long": b"3\r\nabcd\r\n0\r\n\r\n",
    "bare LF after the last chunk": b"0\r\n\n",
    "trailer without a colon": b"0\r\nabc\r\n\r\n",
    "folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "Content-Length in the trailer": b"0\r\nContent-Length: 5\r\n\r\n",
    "Transfer-Encoding in the trailer": b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
}
"""Chunked bodies that two readers could take in two ways."""


@pytest.mark.parametrize("body", REFUSED_BODIES.values(), ids=REFUSED_BODIES)
@pytest.mark.parametrize("whole", [True, False], ids=["at once", "byte by byte"])
def test_malformed_chunked_body_is_400_and_gives_the_upstream_up(body, whole):
    """What was passed on cannot be taken back, so the upstream's connection is cut before the request is whole."""
    wired = Wired(kept=1)
    upstream = wired.upstreams[0]
    data = chunked(body)
    client = wired.client()
    client.send(data) if whole else client.send(*(data[n : n + 1] for n in range(len(data))))

    [(status, headers, _)] = answers(client.received(), "POST")
    assert (status, headers[b"connection"]) == (400, b"close")
    assert upstream.wire.aborted
    assert wired.understood == []
    assert (wired.worker.counts.requests, wired.worker.counts.active) == (1, 0)


def test_endless_chunk_extension_and_endless_trailer_are_refused():
    """What carries no content is not read for ever."""
    for body in (b"3;" + b"a" * 200_000, b"0\r\n" + b"A: b\r\n" * 40_000, b"0\r\nA: " + b"a" * 200_000):
        client = Wired().client()
        data = chunked(body)
        client.send(*(data[n : n + 4096] for n in range(0, len(data), 4096)))
        assert client.received().startswith(b"HTTP/1.1 431 ")


def test_request_before_a_malformed_one_is_answered_first():
    """The refusal comes in its turn, also when all arrives in one read."""
    wired = Wired()
    client = wired.client()
    client.send(
        b"GET /1 HTTP/1.1\r\nHost: g\r\n\r\nGET /2 HTTP/1.1\r\nHost: g\r\n\r\nGET /3 HTTP/1.1\r\nHost : g\r\n\r\n"
    )

    assert [status for status, _, _ in answers(client.received(), "GET", "GET", "GET")] == [200, 200, 400]
    assert [request.target for request, _, _ in wired.understood] == [b"/1", b"/2"]


def test_request_in_line_whose_body_is_malformed_is_refused_in_its_turn():
    """It never begins; the one before is answered."""
    wired = Wired()
    client = wired.client()
    client.send(b"GET /1 HTTP/1.1\r\nHost: g\r\n\r\n" + chunked(b"x\r\n"))

    assert [status for status, _, _ in answers(client.received(), "GET", "POST")] == [200, 400]
    assert [request.target for request, _, _ in wired.understood] == [b"/1"]


def test_request_in_line_is_answered_though_the_next_one_is_too_large():
    """What is refused before it stands in line takes nobody's place there."""
    wired = Wired(nginx=Nginx(client_max_body_size="1KiB"))
    client = wired.client()
    gets = b"".join(b"GET /%d HTTP/1.1\r\nHost: g\r\n\r\n" % number for number in (1, 2))
    client.send(gets + post(b"Content-Length: 5000\r\n"))

    assert [status for status, _, _ in answers(client.received(), "GET", "GET", "POST")] == [200, 200, 413]
    assert [request.target for request, _, _ in wired.understood] == [b"/1", b"/2"]


@pytest.mark.parametrize(
    ("accept", "content_type", "start"),
    [
        (b"*/*", b"application/json; charset=utf-8", b'{\n  "message":"%b",\n  "request_id":"'),
        (
            b"text/html,*/*;q=0.8",
            b"text/html; charset=utf-8",
            b"<!doctype html><title>Error</title><h1>Error</h1><p>%b.",
        ),
        (b"application/xml", b"application/xml; charset=utf-8", b'<?xml version="1.0"?><error><message>%b</message>'),
        (b"text/plain", b"text/plain; charset=utf-8", b"%b\nrequest_id: "),
    ],
)
def test_errors_of_the_gateways_own_are_told_as_the_client_accepts(accept, content_type, start):
    """Kong's forms: JSON, HTML, XML or plain text, of a route that is not there and of what is no request."""
    wired = Wired(routes=(Route(name="all", service="orders", paths=("/a",)),))
    line = b"Host: g\r\nAccept: %b\r\n" % accept
    nowhere = wired.client().send(b"GET /b HTTP/1.1\r\n" + line + b"\r\n").received()
    malformed = wired.client().send(b"GET /a HTTP/1.1\r\n" + line + b"A: b\r\nContent-Length: x\r\n\r\n").received()

    for received, message in ((nowhere, b"no Route matched with those values"), (malformed, b"Bad request")):
        [(_, headers, body)] = answers(received, "GET")
        assert headers[b"content-type"] == content_type
        assert body.startswith(start % message)


def test_every_answer_has_a_date():
    """The upstream's where it has one; else that of the gateway's clock (RFC 9110 6.6.1)."""
    wired = Wired(routes=(Route(name="all", service="orders", paths=("/a",)),))
    own = b"Thu, 01 Jan 1970 00:16:40 GMT"
    for request in (b"GET /a HTTP/1.1\r\nHost: g\r\n\r\n", b"GET /b HTTP/1.1\r\nHost: g\r\n\r\n", b"x\r\n\r\n"):
        [(_, headers, _)] = answers(wired.client().send(request).received(), "GET")
        assert headers[b"date"] == own

    theirs = b"Fri, 02 Jan 1970 00:00:00 GMT"
    for upstream in wired.upstreams:
        upstream.turn = list  # it does not answer by itself
    client = wired.client().send(b"GET /a HTTP/1.1\r\nHost: g\r\n\r\n")
    [asked] = [upstream for upstream in wired.upstreams if upstream.wire.written]
    asked.protocol.data_received(b"HTTP/1.1 200 OK\r\nDATE: %b\r\nContent-Length: 0\r\n\r\n" % theirs)
    assert client.received().lower().count(b"\r\ndate: ") == client.received().count(theirs) == 1


@pytest.mark.parametrize(
    ("body", "error", "told"),
    [
        (
            b"he",
            BrokenPipeError(32, "Broken pipe"),
            "writev() failed (32: Broken pipe) while sending request to upstream",
        ),
        (b"he", None, "upstream prematurely closed connection while sending request to upstream"),
        (
            b"hello",
            ConnectionResetError(104, "Connection reset by peer"),
            "recv() failed (104: Connection reset by peer) while reading response header from upstream",
        ),
    ],
)
def test_upstream_that_breaks_off_is_502_and_told_in_nginxs_words(body, error, told):
    """What failed, and what the worker was about."""
    wired = Wired(kept=1)
    [upstream] = wired.upstreams
    upstream.turn = list  # it does not answer
    client = wired.client().send(post(b"Content-Length: 5\r\n", body))
    upstream.protocol.connection_lost(error)

    assert client.received().startswith(b"HTTP/1.1 502 ")
    assert [text.partition(", client: ")[0] for level, text in wired.lines if level == "error"] == [f"*1 {told}"]


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 2"], ids=["kept connection", "answer"])
@pytest.mark.parametrize(
    ("parts", "bodies"),
    [
        ([post(b"Content-Length: 1\r\n", b"x", line=b"PUT / HTTP/1.1")], [b"x"]),
        ([post(b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n0\r\n\r\n", line=b"DELETE / HTTP/1.1")], [b"x"]),
        ([post(b"Content-Length: 1\r\n", b"x")], []),
        ([post(b"Content-Length: 1\r\n", line=b"PUT / HTTP/1.1"), b"x"], [b"x"]),
        ([post(b"Content-Length: 65537\r\n", bytes(65_537), line=b"PUT / HTTP/1.1")], []),
    ],
    ids=["counted", "chunked", "not idempotent", "in two reads", "large"],
)
def test_body_is_sent_again_with_its_request(parts, bodies, begun):
    """Be it that a kept connection was closed or that the try failed; what is large is not kept."""  # RFC 9110 9.2.2
    wired = Wired()
    asked = wired.upstreams[-1]
    asked.turn = list  # it does not answer
    client = wired.client().send(*parts)
    if begun:
        asked.protocol.data_received(begun)
    asked.protocol.connection_lost(None)
    wired.turn()

    assert [body for _request, body, _trailers in wired.understood] == bodies
    assert client.received().startswith(b"HTTP/1.1 200 " if bodies else b"HTTP/1.1 502 ")


@pytest.mark.parametrize("body", [b"", b"he"])
def test_answer_that_breaks_off_goes_to_the_client_as_far_as_it_has_come(body):
    """Without its head a client would ask again, of its own accord."""  # RFC 9112 9.3.1
    wired = Wired(kept=1)
    [upstream] = wired.upstreams
    upstream.turn = list
    client = wired.client().send(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
    upstream.protocol.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)
    upstream.protocol.connection_lost(None)

    head, _, received = client.received().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert received == body
    assert (client.wire.closing, client.wire.aborted) == (True, False)
    assert [entry[1:3] for entry in wired.logged] == [(200, len(body))]


# What is told of the refused.


def refused(*parts, client_timeout_s=0.0, leaving=False, **options):
    """What the access log gets of requests that are not served, and what the error log says of them."""
    wired = Wired(**options)
    client = wired.client()
    client.send(*parts)
    if client_timeout_s:
        wired.runtime.advance(client_timeout_s)
    if leaving:
        client.leave()
    return [entry for entry in wired.logged if entry[1] != 200], [
        text for level, text in wired.lines if level == "info"
    ]


FIRST_LINES = {
    "of a method that is none": ([b"FROB /x?y HTTP/1.1\r\nHost: g\r\n\r\n"], b"FROB /x?y HTTP/1.1"),
    "of TLS": ([b"\x16\x03\x01\x02\x00"], b"\x16\x03\x01\x02\x00"),
    "before a bad header": ([b"GET /x HTTP/1.1\r\nHost : g\r\n\r\n"], b"GET /x HTTP/1.1"),
    "of a head without Host": ([b"GET /x HTTP/1.1\r\n\r\n"], b"GET /x HTTP/1.1"),
    "that comes byte by byte": ([bytes([b]) for b in b"GET /x HTTP/1.1\r\nHost : g\r\n"], b"GET /x HTTP/1.1"),
    "of a head in two reads": ([b"GET /x HTTP/1.1\r\nA: b\r\n", b"Host : g\r\n\r\n"], b"GET /x HTTP/1.1"),
    "after another request": ([b"GET /a HTTP/1.1\r\nHost: g\r\n\r\nGET /x HTTP/1.1\r\n\r\n"], b"GET /x"),
    "that is not known any more": ([b"GET /a HTTP/1.1\r\nHost: g\r\n\r\n\x16\x03"], b""),
}


@pytest.mark.parametrize(("parts", "line"), FIRST_LINES.values(), ids=FIRST_LINES)
def test_refused_request_has_a_line_in_the_access_log(parts, line):
    """Its first line as it came, as far as it is known; the status, and the bytes of the answer's body."""
    [(request_line, status, sent)], _ = refused(*parts)

    assert (request_line, status) == (line, 400)
    assert sent > 0


def test_refused_request_is_named_in_the_error_log():
    """Connection, client, request and host, in nginx's words, as far as they are known."""
    _, told = refused(b"GET /x HTTP/1.1\r\nHost: g\r\nUser-Agent: probe\r\nContent-Length: x\r\n\r\n")

    asked = 'client: 192.0.2.1, server: kong, request: "GET /x HTTP/1.1", host: "g"'
    assert told == [f"*1 client sent invalid request: Invalid character in Content-Length, {asked}"]


WORDS = {
    "no host": (
        b"GET / HTTP/1.1\r\n\r\n",
        ("info", 'client sent HTTP/1.1 request without "Host" header while reading client request headers'),
    ),
    "a slow head": (
        b"GET / HTTP/1.1\r\n",
        ("info", "client timed out (110: Connection timed out) while reading client request headers"),
    ),
    "a large body": (
        b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 5000\r\n\r\n",
        ("error", "client intended to send too large body: 5000 bytes"),
    ),
    "a large body in chunks": (
        b"POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n%b\r\n5\r\nhello\r\n" % bytes(1024),
        ("error", "client intended to send too large chunked body: 1024+5 bytes"),
    ),
}


@pytest.mark.parametrize(("data", "told"), WORDS.values(), ids=WORDS)
def test_refusal_is_told_in_nginxs_words(data, told):
    """What an operator looks for, at the level at which nginx tells it: a body that is too large is an error."""
    wired = Wired(nginx=Nginx(client_max_body_size="1KiB", client_header_timeout="1s"))
    wired.client().send(data)
    wired.runtime.advance(5)

    [(level, text)] = [line for line in wired.lines if line[1].startswith("*1 client")]
    assert (level, text.removeprefix("*1 ").partition(", client: ")[0]) == told


def test_target_is_logged_as_it_was_sent():
    """Whatever form it has (nginx, `$request`)."""
    wired = Wired()
    wired.client().send(b"GET HTTP://g/x?y HTTP/1.1\r\nHost: g\r\n\r\n")

    assert wired.logged[0][:2] == (b"GET HTTP://g/x?y HTTP/1.1", 200)


def test_refused_request_is_not_blamed_on_another_client():
    """What is under way for others has no part in it."""
    wired = Wired(kept=1)
    wired.upstreams[0].turn = list  # it does not answer
    wired.client("192.0.2.8").send(b"GET /theirs HTTP/1.1\r\nHost: g\r\n\r\n")
    wired.client("192.0.2.9").send(b"garbage\r\n\r\n")

    [line] = [text for level, text in wired.lines if level == "info"]
    assert line.startswith("*2 client sent invalid request: ")
    assert line.endswith(', client: 192.0.2.9, server: kong, request: "garbage"')


def test_client_that_goes_away_in_the_midst_of_a_head_is_400_in_the_log():
    """Nothing is sent to it. One that has sent nothing is nobody's request."""
    head = b"GET /x HTTP/1.1\r\nUser-Agent: probe\r\nA"
    assert refused(head, leaving=True) == (
        [(b"GET /x HTTP/1.1", 400, 0, b"probe")],
        ['*1 client prematurely closed connection, client: 192.0.2.1, server: kong, request: "GET /x HTTP/1.1"'],
    )
    assert refused(leaving=True) == ([], [])
    assert refused(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n", leaving=True) == ([], [])


def test_statuses_of_refusals_are_those_of_their_answers():
    """408, 413, 414, 417 and 431 like any other."""
    slow = refused(b"GET /x HTTP/1.1\r\n", nginx=Nginx(client_header_timeout="1s"), client_timeout_s=5)
    large = refused(post(b"Content-Length: 5000\r\n"), nginx=Nginx(client_max_body_size="1KiB"))
    long = refused(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: g\r\n\r\n")
    fat = refused(b"GET /x HTTP/1.1\r\nHost: g\r\nA: " + b"b" * 9000 + b"\r\n\r\n")

    told = [(line[:8], status) for [(line, status, *_)], _ in (slow, large, long, fat)]
    assert told == [(b"GET /x H", 408), (b"POST / H", 413), (b"GET /aaa", 414), (b"GET /x H", 431)]


# What is understood.


def understood(data, *, plugins=()):
    """The requests that the upstream understood: method, target, header names and body; and what the client got."""
    wired = Wired(plugins=plugins)
    client = wired.client()
    client.send(data)
    told = [
        (request.method, request.target, dict(request.headers), bytes(body)) for request, body, _ in wired.understood
    ]
    return told, client.received()


def test_body_of_a_request_that_asks_for_an_upgrade_is_its_body():
    """No upgrade is offered: what follows belongs to this request, and is no request of its own."""  # RFC 9110 7.8
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: g\r\n\r\n"
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    size = b"Content-Length: %d\r\n" % len(smuggled)
    second = b"GET /2 HTTP/1.1\r\nHost: g\r\n\r\n"
    chunks = b"Transfer-Encoding: chunked\r\n"
    for data in (
        post(upgrade + size, smuggled),
        post(upgrade + chunks, b"%x\r\n%b\r\n0\r\nA: b\r\n\r\n" % (len(smuggled), smuggled)),
    ):
        told, _ = understood(data + second)
        assert [(method, target, body) for method, target, _, body in told] == [
            (b"POST", b"/", smuggled),
            (b"GET", b"/2", b""),
        ]
        assert b"upgrade" not in told[0][2]


def test_many_upgrades_in_one_read_are_many_requests():
    """Each is answered as if it had not asked, however many there are."""
    one = b"GET / HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    told, received = understood(one * 800)
    assert len(told) == 800
    assert len(answers(received, *["GET"] * 800)) == 800


def test_trailers_are_dropped_and_become_no_headers_of_the_next_request():
    """A trailer section is read and not passed on."""  # RFC 9112 7.1.2; nginx drops them
    data = chunked(b"3;ext=1\r\nabc\r\n0\r\nX-Late: 1\r\nX-Later: 2\r\n\r\n") + b"GET /2 HTTP/1.1\r\nHost: g\r\n\r\n"
    told, _ = understood(data)
    assert [body for *_, body in told] == [b"abc", b""]
    assert {b"x-late", b"x-later"} & (told[0][2].keys() | told[1][2].keys()) == set()


@pytest.mark.parametrize(
    "target", [b"/a/..", b"/a/../", b"/a//..", b"/.../b", b"/..a", b"/a%2F..", b"/?a=%zz", b"/a%20b"]
)
def test_path_that_stays_below_its_root_is_served_as_it_came(target):
    """Dots and triplets are no mistake; in a query anything may stand (nginx)."""
    wired = Wired()
    wired.client().send(b"GET %b HTTP/1.1\r\nHost: g\r\n\r\n" % target)
    assert len(wired.understood) == 1


def test_absolute_target_names_the_host():
    """The Host header counts for nothing beside it."""  # RFC 9112 3.2.2
    told, _ = understood(b"GET http://Other:81/a?b HTTP/1.1\r\nHost: g\r\n\r\n")
    [(_, target, headers, _)] = told
    assert (target, headers[b"x-forwarded-host"]) == (b"/a?b", b"other")
    [(_, target, _, _)], _ = understood(b"GET http://other?b HTTP/1.1\r\nHost: g\r\n\r\n")
    assert target == b"/?b"


@pytest.mark.parametrize("name", [b"Connection", b"proxy-connection"])
def test_http_1_0_needs_no_host_and_closes_unless_asked_to_stay(name):
    """HTTP/1.0 closes; `Connection: keep-alive` keeps it, and what some send in its place."""  # RFC 9112 9.3, C.2.2
    wired = Wired()
    client = wired.client().send(b"GET /1 HTTP/1.0\r\n%b: keep-alive\r\n\r\n" % name)
    assert not client.wire.closing
    client.send(b"GET /2 HTTP/1.0\r\n\r\n")
    assert client.wire.closing
    assert client.received().count(b"HTTP/1.1 200 OK\r\n") == 2
    via = [dict(request.headers)[b"via"] for request, _, _ in wired.understood]
    assert via == [b"1.0 kong/3.9.1"] * 2


def test_continue_is_for_clients_that_can_take_it():
    """HTTP/1.0 has no interim responses, and other expectations are passed over as nginx does."""  # RFC 9110 10.1.1
    head = b"Content-Length: 3\r\nExpect: 100-Continue\r\n"
    assert Wired().client().send(post(head)).received() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert Wired().client().send(post(head, line=b"POST / HTTP/1.0")).received() == b""
    assert Wired().client().send(post(b"Content-Length: 3\r\nExpect: x\r\n")).received() == b""


def test_length_is_written_anew():
    """What the upstream is told is the number that was understood, not the text."""
    [(_, _, headers, body)], _ = understood(post(b"Content-Length:\t0005  \r\n", b"hello"))
    assert (headers[b"content-length"], body) == (b"5", b"hello")


def test_empty_lines_before_a_request_are_passed_over():
    """Some clients send one after a body."""  # RFC 9112 2.2
    told, _ = understood(
        b"\r\n\r\n" + post(b"Content-Length: 2\r\n", b"ok") + b"\r\n\r\nGET /2 HTTP/1.1\r\nHost: g\r\n\r\n"
    )
    assert [target for _, target, _, _ in told] == [b"/", b"/2"]


def test_pipelined_requests_that_are_answered_at_once_do_not_pile_up():
    """A thousand requests without a route, waiting behind one with a route, are a thousand answers."""
    wired = Wired(routes=(Route(name="yes", service="orders", paths=("/yes",)),))
    client = wired.client()
    client.send(b"GET /yes HTTP/1.1\r\nHost: g\r\n\r\n" + b"GET /no HTTP/1.1\r\nHost: g\r\n\r\n" * 1500)
    found = answers(client.received(), *["GET"] * 1501)
    assert [status for status, _, _ in found] == [200] + [404] * 1500
    assert not client.wire.closing


def test_every_pipelined_request_has_a_start():
    """Also those that came in the read of another one."""
    wired = Wired(routes=())
    wired.client().send(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n" * 3)
    assert [request.started_ns for request in wired.ended] == [wired.runtime.time_ns()] * 3


# A request that is answered before its body has come.

NEXT = b"GET /next HTTP/1.1\r\nHost: g\r\n\r\n"
UNREAD = {
    "in one read": (post(b"Content-Length: 5\r\n", b"hello"),),
    "in parts": (post(b"Content-Length: 5\r\n"), b"he", b"llo"),
    "in chunks": (chunked(b"5\r\nhe"), b"llo\r\n", b"0\r\nX-Late: 1\r\n\r\n"),
    "behind an upgrade": (post(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n", b"GE"), b"T /"),
    "larger than the limit, in chunks": (chunked(b"400\r\n"), bytes(1024) + b"\r\n5\r\nhello\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("parts", UNREAD.values(), ids=UNREAD)
def test_rest_of_a_body_is_dropped_and_the_connection_goes_on(parts):
    """A client whose request needs no upstream need not connect again for the next one, as with nginx."""
    wired = Wired(routes=(), nginx=Nginx(client_max_body_size="1KiB"))
    client = wired.client().send(*parts, NEXT)
    found = answers(client.received(), "POST", "GET")
    assert [(status, headers[b"connection"]) for status, headers, _ in found] == [(404, b"keep-alive")] * 2
    assert [request.target for request in wired.ended] == [b"/", b"/next"]
    assert client.connection.idle


def test_client_that_waits_for_leave_to_send_its_body_is_not_waited_for():
    """It has its answer, and what it sends next may be the body or not."""  # RFC 9110 10.1.1
    wired = Wired(routes=())
    client = wired.client().send(post(b"Expect: 100-continue\r\nContent-Length: 5\r\n"))
    [(status, headers, _)] = answers(client.received(), "POST")
    assert (status, headers[b"connection"]) == (404, b"close")
    assert client.wire.ended


def test_rest_of_a_body_that_is_malformed_ends_the_connection():
    """The request has had its answer: there is no other one."""
    wired = Wired(routes=())
    client = wired.client().send(chunked(b"5\r\nhe"))
    answered = client.received()
    client.send(b"lloXX")
    assert client.wire.ended
    assert client.received() == answered
    [(level, text)] = [line for line in wired.lines if "invalid" in line[1]]
    assert (level, text.startswith("*1 client sent invalid request: ")) == ("info", True)
    assert text.endswith(
        ', client: 192.0.2.1, server: kong, request: "POST / HTTP/1.1", host: "g", '
        f'request_id: "{wired.ended[0].id.decode()}"'
    )
    assert len(wired.ended) == len(wired.logged) == 1


@pytest.mark.parametrize(("pause_s", "cut_after_s"), [(4, 32), (7, 7)])
def test_rest_of_a_body_is_waited_for_so_long_and_no_longer(pause_s, cut_after_s):
    """Five seconds for the next part and thirty for all (nginx, `lingering_timeout`, `lingering_time`)."""
    wired = Wired(routes=())
    client = wired.client().send(post(b"Content-Length: 100\r\n"))
    waited_s = 0
    while not client.wire.closing:
        client.send(b"a")
        wired.runtime.advance(pause_s)
        waited_s += pause_s
    assert waited_s == cut_after_s


def test_connection_whose_body_is_dropped_is_not_idle():
    """A worker that leaves closes it once the body has come; one that is short of connections does not take it."""
    wired = Wired(routes=())
    client = wired.client().send(post(b"Content-Length: 5\r\n", b"he"))
    assert not client.connection.reusable
    wired.worker.runloop.draining = True
    client.connection.close_if_idle()
    assert not client.wire.closing
    client.send(b"llo")
    assert client.wire.closing


class Passing:
    """A plugin that passes on what a client has sent in a query, as it is."""

    NAME = "passing"
    PRIORITY = 10
    VERSION = "1"

    @staticmethod
    def access(kong, _conf):
        """Write the argument into every place that there is."""
        text = kong.request.get_query_arg("text")
        service = kong.service.request
        service.set_path("/" + text)
        service.set_raw_query(text)
        refused = []
        for write in (
            lambda: service.set_method(text),
            lambda: service.set_header("Host", text),
            lambda: service.set_header("X-Text", text),
            lambda: service.add_header(text, "1"),
            lambda: service.set_headers({"X-Text": [text]}),
        ):
            try:
                write()
            except ApiError:
                refused.append(write)
        service.set_header("X-Refused", len(refused))


def test_what_a_plugin_passes_on_becomes_no_line_of_its_own():
    """A client cannot have a plugin write a header, or a request, for it."""
    wired = Wired(plugins=(Plugin(name="passing"),), classes={"passing": Passing})
    wired.client().send(b"GET /?text=a%0d%0aX-Evil:%20b%0d%0a%0d%0aGET%20/evil HTTP/1.1\r\nHost: g\r\n\r\n")
    [(request, _, _)] = wired.understood
    headers = dict(request.headers)
    assert b"x-evil" not in headers
    assert (request.target[:17], headers[b"x-refused"]) == (b"/a%0D%0AX-Evil:%2", b"5")


# However it is cut.

CONVERSATION = (
    b"GET /1?a=b HTTP/1.1\r\nHost: Example.com:8000\r\nAccept: */*\r\nX-Empty:\r\n\r\n"
    + post(b"Content-Length: 11\r\nConnection: x-drop\r\nX-Drop: 1\r\n", b"hello\r\n\r\nab")
    + chunked(b"4;a=b\r\nwiki\r\n5\r\npedia\r\n0\r\nX-Late: 1\r\n\r\n")
    + post(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n", b"GET")
    + b"\r\nHEAD /head HTTP/1.1\r\nHost: g\r\n\r\n"
    + b"DELETE /last HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n"
)
METHODS = ("GET", "POST", "POST", "POST", "HEAD", "DELETE")


def converse(parts):
    wired = Wired()
    client = wired.client().send(*parts)
    told = [
        (
            request.method,
            request.target,
            [line for line in request.headers if line[0] != b"x-kong-request-id"],
            bytes(body),
        )
        for request, body, _ in wired.understood
    ]
    got = [(status, headers[b"connection"], body) for status, headers, body in answers(client.received(), *METHODS)]
    assert client.wire.closing
    return told, got


@given(cuts=st.lists(st.integers(1, len(CONVERSATION) - 1), max_size=12, unique=True))
def test_conversation_means_the_same_however_it_is_cut_into_reads(cuts):
    """The upstream understands the same requests, and the client gets the same answers."""
    bounds = [0, *sorted(cuts), len(CONVERSATION)]
    parts = [CONVERSATION[start:end] for start, end in itertools.pairwise(bounds)]
    assert converse(parts) == converse([CONVERSATION])


def test_conversation_means_the_same_byte_by_byte():
    """The finest cut of all."""
    parts = [CONVERSATION[n : n + 1] for n in range(len(CONVERSATION))]
    told, got = converse(parts)
    assert (told, got) == converse([CONVERSATION])
    assert [target for _, target, _, _ in told] == [b"/1?a=b", b"/", b"/", b"/", b"/head", b"/last"]
    assert [body for *_, body in told] == [b"", b"hello\r\n\r\nab", b"wikipedia", b"GET", b"", b""]


# Limits and times.


def test_body_above_the_limit_is_413():
    """Counted, it is refused before it is read; chunked, when there is too much of it."""
    limited = {"nginx": Nginx(client_max_body_size="10B")}
    for data in (post(b"Content-Length: 11\r\n"), chunked(b"8\r\n12345678\r\n3\r\n123\r\n0\r\n\r\n")):
        wired = Wired(**limited)
        client = wired.client().send(data)
        assert client.received().startswith(b"HTTP/1.1 413 ")
        assert (client.wire.ended, wired.understood) == (True, [])
    for data in (post(b"Content-Length: 10\r\n", b"1234567890"), chunked(b"a\r\n1234567890\r\n0\r\n\r\n")):
        assert Wired(**limited).client().send(data).received().startswith(b"HTTP/1.1 200 ")


def drip(wired, data, times, pause_s):
    """Send the same bytes again and again, with pauses."""
    client = wired.client()
    for _ in range(times):
        client.send(data)
        wired.runtime.advance(pause_s)
    return client


def test_header_section_that_takes_too_long_is_408():
    """However steadily it drips."""
    wired = Wired(nginx=Nginx(client_header_timeout="10s"))
    client = wired.client().send(b"GET / HTTP/1.1\r\n")
    for _ in range(4):
        wired.runtime.advance(2)
        assert client.received() == b""
        client.send(b"A: b\r\n")
    wired.runtime.advance(4)
    assert client.received().startswith(b"HTTP/1.1 408 ")


def test_body_that_pauses_too_long_is_408():
    """What counts is the time between two reads; the upstream's connection is cut."""
    wired = Wired(nginx=Nginx(client_body_timeout="10s"), kept=1)
    upstream = wired.upstreams[0]
    client = wired.client().send(post(b"Content-Length: 100\r\n"))
    for _ in range(3):
        wired.runtime.advance(8)
        client.send(b"a")
    assert client.received() == b""
    wired.runtime.advance(12)
    assert client.received().startswith(b"HTTP/1.1 408 ")
    assert upstream.wire.aborted


def test_idle_connection_is_closed_without_a_word():
    """After its last answer, or when nothing has ever come."""
    wired = Wired(nginx=Nginx(keepalive_timeout="20s", client_header_timeout="10s"))
    fresh, used = wired.client(), wired.client().send(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
    answered = used.received()
    wired.runtime.advance(12)
    assert (fresh.wire.closing, used.wire.closing) == (True, False)
    wired.runtime.advance(10)
    assert used.wire.closing
    assert (fresh.received(), used.received()) == (b"", answered)


def test_request_that_is_being_answered_is_not_idle():
    """The client may wait as long as the upstream may take."""
    wired = Wired(nginx=Nginx(keepalive_timeout="1s", client_header_timeout="1s", client_body_timeout="1s"), kept=1)
    wired.upstreams.clear()
    client = wired.client().send(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
    wired.runtime.advance(30)
    assert not client.wire.closing


@pytest.mark.parametrize(
    ("limits", "served"),
    [
        ({"keepalive_requests": 2}, 2),
        ({"keepalive_requests": 1}, 1),
        ({"keepalive_requests": 0}, 1),
        ({"keepalive_timeout": "0s"}, 1),
    ],
)
def test_connection_serves_so_many_requests_and_no_more(limits, served):
    """The last answer says so; `keepalive_requests` 0, and `keepalive_timeout` 0, is one, as in nginx."""
    wired = Wired(nginx=Nginx(**limits))
    client = wired.client().send(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n" * 3)
    found = answers(client.received(), *["GET"] * served)
    assert [headers[b"connection"] for _, headers, _ in found] == [b"keep-alive"] * (served - 1) + [b"close"]
    assert client.wire.closing
    assert len(wired.understood) == served


def test_client_that_does_not_read_is_cut_off():
    """`send_timeout`: unless something of its answer has gone meanwhile."""
    wired = Wired(nginx=Nginx(send_timeout="10s"))
    client = wired.client().send(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
    client.connection.pause_writing()
    for _ in range(3):
        wired.runtime.advance(8)
        del client.wire.written[:10]
    assert not client.wire.closing
    wired.runtime.advance(13)
    assert client.wire.aborted


def test_refused_client_that_goes_on_sending_is_cut_off():
    """What it sends is dropped, for five seconds."""
    wired = Wired()
    client = wired.client().send(b"GET / HTTP/1.1\r\n\r\n")
    client.wire.take()
    for _ in range(4):
        client.connection.data_received(b"more")
        wired.runtime.advance(1)
    assert not client.wire.aborted
    wired.runtime.advance(3)
    assert client.wire.aborted


def test_requests_wait_while_the_client_does_not_read():
    """A client that pipelines and never reads holds one answer's worth of memory."""
    wired = Wired()
    client = wired.client()
    client.connection.pause_writing()
    client.send(b"GET /1 HTTP/1.1\r\nHost: g\r\n\r\nGET /2 HTTP/1.1\r\nHost: g\r\n\r\n")
    assert (wired.understood, client.wire.reading) == ([], False)
    client.connection.resume_writing()
    wired.turn()
    assert (len(wired.understood), client.wire.reading) == (2, True)


def test_no_timer_runs_without_clients():
    """The sweep over the clients' deadlines ends with them."""
    wired = Wired(kept=0)
    client = wired.client()
    wired.runtime.advance(5)
    client.leave()
    wired.runtime.advance(20)
    assert wired.runtime.due == []


# Hostile input.


def test_hostile_input_reaches_no_upstream_malformed_and_leaves_nothing_behind():
    """Whatever comes in, what goes out is valid to another implementation, and a steady client is served meanwhile."""
    generator = random.Random(11)
    wired = Wired(kept=2)
    steady = wired.client()
    base = None
    for number in range(1_000_000 if SOAK else 3000):
        hostile = wired.client()
        hostile.send(*hostile_parts(generator))
        assert (received := hostile.received()) == b"" or received.startswith(b"HTTP/1.1 ")
        hostile.leave()
        wired.turn()
        if number % 100 == 0:
            steady.send(b"GET /steady HTTP/1.1\r\nHost: g\r\n\r\n")
            assert steady.wire.take().startswith(b"HTTP/1.1 200 ")
            wired.runtime.advance(1)
        if number == 1000:
            base = psutil.Process().memory_info().rss
        for kept in (wired.understood, wired.lines, wired.logged, wired.ended):
            kept.clear()
    assert wired.worker.counts.active == 0
    assert list(wired.worker.runloop.connections) == [steady.connection]
    assert psutil.Process().memory_info().rss - base < 8 << 20
