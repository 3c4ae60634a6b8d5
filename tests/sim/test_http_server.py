"""The HTTP/1.1 server under origin and collector: framing, order, limits."""

import contextlib
import http.client
import socket
import time

import pytest

from sim import peer, process
from sim.faults import Fault
from sim.http_server import HEAD_BYTES_MAX, HttpConnection, HttpServer, response
from tests.peers import TIMEOUT_S, listening, wait_accepting

DELAY_NS = 5_000_000


class _Echo(HttpConnection):
    """Answers with method, target and body; a target that starts with /slow is answered later."""

    target = body = b""

    def on_url(self, part):
        self.target += part

    def on_body(self, part):
        self.body += part

    def request(self):
        request = b" ".join(filter(None, [self.parser.get_method(), self.target, self.body]))
        self.target = self.body = b""
        return request

    def respond(self, request, keep_alive):
        delay_ns = DELAY_NS if b"/slow" in request else 0
        return response(200, {}, request, head=request.startswith(b"HEAD"), keep_alive=keep_alive), delay_ns

    def sent(self):
        self.server.sent += 1


class _EchoServer(HttpServer):
    sent = 0

    def accept(self):
        return _Echo(self)


def _serve(sock, control, patience_s=0.0):
    server = _EchoServer()
    server.patience_s = patience_s
    peer.run(
        control,
        lambda stop: server.serve(sock, stop),
        lambda: {
            "accepted": server.accepted,
            "open": len(server.connections),
            "faults": list(server.faults),
            "busy": sum(connection._busy for connection in server.connections),
            "waiting": sum(len(connection._waiting) for connection in server.connections),
            "sent": server.sent,
        },
        server.obey,
    )


@pytest.fixture
def server():
    with listening(_serve) as running:
        yield running


@pytest.fixture
def client(server):
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        yield connection


def _read(client, until):
    """Read at least until the text has come."""
    received = b""
    while until not in received:
        part = client.recv(65536)
        assert part, received
        received += part
    return received


def _read_all(client):
    """Read until the server closes."""
    received = b""
    while part := client.recv(65536):
        received += part
    return received


def _bodies(client, count):
    """Return the bodies of `count` answers."""
    stream = client.makefile("rb")
    bodies = []
    for _ in range(count):
        assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
        headers = http.client.parse_headers(stream)
        bodies.append(stream.read(int(headers["Content-Length"])))
    return bodies


def _send_until_stuck(client, data):
    """Send until the server has not read for a second; return how much was sent."""
    client.settimeout(1.0)
    left = memoryview(data)
    try:
        while left:
            left = left[client.send(left) :]
    except TimeoutError:
        pass
    client.settimeout(TIMEOUT_S)
    return len(data) - len(left)


def test_connection_is_kept_alive(server, client):
    """Requests one after the other use one connection."""
    for number in range(3):
        client.sendall(b"GET /%d HTTP/1.1\r\n\r\n" % number)
        assert _read(client, b"/%d" % number).startswith(b"HTTP/1.1 200 OK\r\n")

    assert server.report() == {"accepted": 1, "open": 1, "faults": [], "busy": 0, "waiting": 0, "sent": 3}


@pytest.mark.parametrize("request_head", [b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"])
def test_connection_closes_after_the_answer_when_the_client_will_have_it_so(client, request_head):
    """`Connection: close`, and HTTP/1.0, end the connection with the answer, which says so (RFC 9112 9.6)."""
    client.sendall(request_head)

    answer = _read_all(client)
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"GET /")


def test_request_after_the_last_one_is_not_answered(client):
    """What is pipelined behind `Connection: close` is left alone (RFC 9112 9.6)."""
    client.sendall(b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\nGET /more HTTP/1.1\r\n\r\n")

    assert _read_all(client).count(b"HTTP/1.1") == 1


def test_pipelined_requests_are_answered_in_order(client):
    """A slow answer is waited for by the quick ones behind it (RFC 9112 9.3.2)."""
    targets = [b"/slow/0", b"/1", b"/2", b"/slow/3", b"/4"]
    client.sendall(b"".join(b"GET %b HTTP/1.1\r\n\r\n" % target for target in targets))

    assert _bodies(client, len(targets)) == [b"GET " + target for target in targets]


def test_thousands_of_pipelined_requests_are_answered(client):
    """However many requests one read brings, all are answered."""
    count = 5000
    client.sendall(b"GET / HTTP/1.1\r\n\r\n" * count)

    assert len(_bodies(client, count)) == count


def test_client_that_reads_late_gets_every_answer(server, client):
    """Answers that the client does not read yet are not lost, and the rest is not read in the meantime."""
    count, size = 64, 1 << 20
    request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    sent = _send_until_stuck(client, request * count)

    whole = sent // len(request)
    assert 0 < whole < count
    assert _bodies(client, whole) == [b"POST / " + b"x" * size] * whole


def test_request_may_come_byte_by_byte(client):
    """Where the network cuts a request makes no difference."""
    for byte in b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi":
        client.sendall(bytes([byte]))

    assert _bodies(client, 1) == [b"POST /a hi"]


def test_chunked_body_is_read(client):
    """A chunked body belongs to its request; the next request begins after it."""
    client.sendall(b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3\r\nyou\r\n0\r\n\r\n")
    client.sendall(b"GET /b HTTP/1.1\r\n\r\n")

    assert _bodies(client, 2) == [b"POST /a hiyou", b"GET /b"]


def test_head_is_answered_without_a_body(client):
    """HEAD gets the header fields of the answer, and the next answer follows at once (RFC 9110 9.3.2)."""
    client.sendall(b"HEAD /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n")

    assert _read(client, b"GET /b") == (
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nGET /b"
    )


def test_client_that_waits_is_asked_for_the_body(client):
    """`Expect: 100-continue` is answered before the body comes (RFC 9110 10.1.1)."""
    client.sendall(b"PUT /a HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n")
    assert _read(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"

    client.sendall(b"hi")
    assert _read(client, b"hi").startswith(b"HTTP/1.1 200 OK\r\n")


def test_asking_for_the_body_waits_for_earlier_answers(client):
    """The interim answer stands in line too."""
    client.sendall(b"GET /slow HTTP/1.1\r\n\r\nPUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    received = _read(client, b"100 Continue")

    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    client.sendall(b"hi")
    assert _read(client, b"hi").endswith(b"PUT /a hi")


def test_client_of_http_1_0_is_not_asked_for_the_body(client):
    """An HTTP/1.0 client would take the interim answer for the answer (RFC 9110 10.1.1)."""
    client.sendall(b"PUT /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi")

    assert _read_all(client).startswith(b"HTTP/1.1 200 OK\r\n")


def test_upgrade_is_ignored(client):
    """A request that asks for another protocol is answered as one that does not (RFC 9110 7.8)."""
    client.sendall(b"GET /a HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET /b HTTP/1.1\r\n\r\n")

    assert _bodies(client, 2) == [b"GET /a", b"GET /b"]


def test_body_of_a_request_that_asks_for_an_upgrade_is_its_body(client):
    """curl and Java's client ask for h2c whenever they may; what follows is no request of its own."""  # RFC 9110 7.8
    smuggled = b"GET /smuggled HTTP/1.1\r\n\r\n"
    upgrade = b"PUT /a HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    sized = upgrade + b"Content-Length: %d\r\n\r\n%b" % (len(smuggled), smuggled)
    chunked = upgrade + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled)
    for request in (sized, chunked):
        client.sendall(request + b"PUT /b HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi")
        assert _bodies(client, 2) == [b"PUT /a " + smuggled, b"PUT /b hi"]


def test_body_of_a_request_that_asks_for_an_upgrade_may_come_late(client):
    """And the client may wait to be asked for it."""
    client.sendall(
        b"PUT /a HTTP/1.1\r\nConnection: close, Upgrade\r\nUpgrade: h2c\r\n"
        b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    assert _read(client, b"Continue\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sendall(b"hi")
    answer = _read_all(client)
    assert b"Connection: close" in answer
    assert answer.endswith(b"PUT /a hi")


def test_many_upgrades_in_one_read_are_many_requests(client):
    """However many they are."""
    client.sendall(b"GET /a HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" * 900)

    assert _bodies(client, 900) == [b"GET /a"] * 900


def test_malformed_request_is_answered_400_after_those_before_it(client):
    """What is not HTTP ends the connection, in its turn."""
    client.sendall(b"GET /slow HTTP/1.1\r\n\r\nthis is not HTTP\r\n\r\n")

    answers = _read_all(client)
    assert answers.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answers.endswith(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def test_endless_head_is_answered_431(client):
    """A head beyond the limit ends the connection."""
    client.sendall(b"GET / HTTP/1.1\r\nEndless: ")
    client.sendall(b"x" * (HEAD_BYTES_MAX + 1))

    assert _read(client, b"\r\n\r\n").startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(("excess", "status"), [(0, b"200"), (1, b"431")])
def test_head_that_comes_in_one_piece_is_held_to_the_limit_too(client, excess, status):
    """Its end is there when its size is looked at; what comes behind it does not count."""
    frame = b"GET /a HTTP/1.1\r\nLong: %b\r\n\r\n"
    head = frame % (b"x" * (HEAD_BYTES_MAX + excess - len(frame % b"")))
    assert len(head) == HEAD_BYTES_MAX + excess
    client.sendall(head + b"GET /b HTTP/1.1\r\n\r\n")

    assert _read(client, b"\r\n\r\n").startswith(b"HTTP/1.1 %b " % status)


def test_body_does_not_count_as_head(client):
    """A body may be larger than any head."""
    size = 4 * HEAD_BYTES_MAX
    client.sendall(b"POST /a HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

    (body,) = _bodies(client, 1)
    assert body.count(b"x") == size


def test_client_that_leaves_during_a_delay_is_forgotten(server, client):
    """An answer that nobody waits for is dropped."""
    _begin(server, _fault("slow", latency="1s"))  # long enough to leave in it
    client.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
    client.close()
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as other:
        other.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        assert _read(other, b"/slow").startswith(b"HTTP/1.1 200 OK\r\n")

        assert server.report() == {"accepted": 2, "open": 1, "faults": ["slow"], "busy": 0, "waiting": 0, "sent": 1}


def test_stopped_server_closes_its_connections(server, client):
    """When the server stops, connections end."""
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    _read(client, b"GET /")

    server.stop()
    with contextlib.suppress(ConnectionResetError):  # either is an end
        assert client.recv(1) == b""


def test_patient_server_answers_what_has_begun_before_it_stops():
    """A request that is being read, and one that is being answered; who has asked for nothing is not waited for."""
    with listening(_serve, patience_s=TIMEOUT_S) as server, contextlib.ExitStack() as opened:
        idle, reading, busy = (opened.enter_context(_connect(server)) for _ in range(3))
        idle.sendall(b"GET /a HTTP/1.1\r\n\r\n")
        assert _bodies(idle, 1) == [b"GET /a"]
        _begin(server, _fault("slow", latency="1s"))  # long enough to be seen at it
        reading.sendall(b"GET /r")
        busy.sendall(b"GET /b HTTP/1.1\r\n\r\n")
        while not server.report()["busy"]:
            process.wait([server.child.sentinel], 0.001)
        server.control.send("stop")
        assert idle.recv(1) == b""
        reading.sendall(b" HTTP/1.1\r\n\r\n")

        assert _read_all(busy).endswith(b"GET /b")
        assert b"Connection: close" in _read_all(reading)
        assert server.end()["open"] == 0


def test_patience_of_a_server_that_stops_ends():
    """A client that never comes to its point holds it up no longer."""
    with listening(_serve, patience_s=0.05) as server, _connect(server) as client:
        client.sendall(b"GET /")
        while not server.report()["open"]:
            process.wait([server.child.sentinel], 0.001)
        server.stop()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_response_without_a_body_says_nothing_of_its_length():
    """204 and 304 have no body and no Content-Length (RFC 9110 8.6)."""
    assert response(204, {"X-A": "1"}, b"ignored") == b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n"


# Faults.


def _fault(kind, **fields):
    return Fault.model_validate({"at": 0, "target": "collector", "kind": kind, **fields})


def _begin(server, fault):
    server.control.send((True, fault))
    return server.report()  # it has obeyed when it answers


def _end(server, fault):
    server.control.send((False, fault))
    server.report()


def _connect(server):
    return contextlib.closing(socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S))


@pytest.mark.parametrize("kind", ["refuse", "down"])
def test_unreachable_server_refuses_connections_until_the_fault_ends(server, kind):
    """The port is nobody's meanwhile, and its own again afterwards, more than once."""
    for _ in range(2):
        _begin(server, _fault(kind))
        with pytest.raises(ConnectionRefusedError):
            _connect(server)
        _end(server, _fault(kind))
        wait_accepting(server.port)
        with _connect(server) as client:
            client.sendall(b"GET /a HTTP/1.1\r\n\r\n")
            assert _bodies(client, 1) == [b"GET /a"]


def test_refusing_server_closes_idle_connections_and_finishes_the_others(server, client):
    """As one does that is taken out of service."""
    client.sendall(b"GET /a HTTP/1.1\r\n\r\n")
    assert _bodies(client, 1) == [b"GET /a"]
    _begin(server, _fault("slow", latency="1s"))  # long enough to be seen at it
    with _connect(server) as busy:
        busy.sendall(b"GET /b HTTP/1.1\r\n\r\n")
        while not server.report()["busy"]:
            process.wait([server.child.sentinel], 0.001)
        _begin(server, _fault("refuse"))
        assert _bodies(busy, 1) == [b"GET /b"]
        assert busy.recv(1) == b""
    assert client.recv(1) == b""


def test_server_that_is_down_resets_every_connection(server, client):
    """Also in the middle of a request."""
    client.sendall(b"GET /never-ends HTTP/1.1\r\n")
    assert _begin(server, _fault("down"))["open"] <= 1
    with pytest.raises(ConnectionResetError):
        _read_all(client)


def test_two_ways_of_being_unreachable_both_have_to_end(server):
    """The end of one does not end the other."""
    _begin(server, _fault("refuse"))
    _begin(server, _fault("down"))
    _end(server, _fault("refuse"))
    with pytest.raises(ConnectionRefusedError):
        _connect(server)
    _end(server, _fault("down"))
    wait_accepting(server.port)
    assert server.report()["faults"] == []


def test_hanging_server_accepts_and_answers_when_the_fault_ends(server):
    """In order; a client that has left meanwhile is not served."""
    _begin(server, _fault("hang"))
    with _connect(server) as patient, _connect(server) as impatient:
        for client in (patient, impatient):
            client.sendall(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
        impatient.close()
        patient.settimeout(0.1)
        with pytest.raises(TimeoutError):
            patient.recv(1)
        patient.settimeout(TIMEOUT_S)
        _end(server, _fault("hang"))
        assert _bodies(patient, 2) == [b"GET /a", b"GET /b"]


def test_hanging_server_keeps_the_answers_that_were_under_way(server, client):
    """They come at the end, before those to what came after them."""
    _begin(server, _fault("slow", latency="1s"))
    client.sendall(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
    while not server.report()["busy"]:
        process.wait([server.child.sentinel], 0.001)
    _begin(server, _fault("hang"))
    client.settimeout(1.5)  # longer than until the answer is due
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(TIMEOUT_S)
    _end(server, _fault("hang"))

    assert _bodies(client, 2) == [b"GET /a", b"GET /b"]


@pytest.mark.parametrize(
    "sent", [b"this is not HTTP\r\n\r\n", b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"]
)
def test_hanging_server_says_nothing_of_its_own(server, client, sent):
    """Neither a refusal nor a word that it waits for the body."""
    _begin(server, _fault("hang"))
    client.sendall(sent)
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(TIMEOUT_S)
    _end(server, _fault("hang"))

    assert _read(client, b"\r\n\r\n")


def test_server_that_leaves_answers_nothing_behind_the_answer_that_says_so(server, client):
    """What has come in line with it is not taken for answered either."""
    _begin(server, _fault("hang"))
    client.sendall(b"GET / HTTP/1.1\r\n\r\n" * 3)
    while server.report()["waiting"] < 3:
        process.wait([server.child.sentinel], 0.001)
    _begin(server, _fault("refuse"))
    _end(server, _fault("refuse"))
    _end(server, _fault("hang"))

    answered = _read_all(client)
    assert answered.count(b"HTTP/1.1 200 OK") == 1
    assert b"Connection: close" in answered
    assert server.report()["sent"] == 1


def test_slow_server_answers_later(server, client):
    """By the latency of the fault."""
    _begin(server, _fault("slow", latency="30ms"))
    begun_ns = time.monotonic_ns()
    client.sendall(b"GET /a HTTP/1.1\r\n\r\n")

    assert _bodies(client, 1) == [b"GET /a"]
    assert time.monotonic_ns() - begun_ns >= 30_000_000


def test_reset_comes_in_the_middle_of_a_request(server, client):
    """Its head has been read, its body never is."""
    _begin(server, _fault("reset"))
    client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nbegin")

    with pytest.raises(ConnectionResetError):
        _read_all(client)


def test_truncated_answer_is_half_an_answer_and_a_reset(server, client):
    """The client has reason to believe that its request arrived, and no certainty."""
    _begin(server, _fault("truncate"))
    client.sendall(b"GET /a HTTP/1.1\r\n\r\n")

    assert client.recv(100).startswith(b"HTTP/1.1 200")
    with pytest.raises(ConnectionResetError):
        client.recv(100)


def _slowness(client):
    """Return how long an answer takes, s."""
    begun_s = time.monotonic()
    client.sendall(b"GET /a HTTP/1.1\r\n\r\n")
    assert _bodies(client, 1) == [b"GET /a"]
    return time.monotonic() - begun_s


def test_later_fault_of_a_kind_takes_the_place_of_the_earlier(server, client):
    """The end of the earlier one changes nothing then."""
    _begin(server, _fault("slow", latency="10s"))
    _begin(server, _fault("slow", latency="10ms"))
    _end(server, _fault("slow", latency="10s"))

    assert 0.01 <= _slowness(client) < 10


def test_earlier_fault_of_a_kind_is_felt_again_when_the_later_ends(server, client):
    """For as long as it still lasts."""
    _begin(server, _fault("slow", latency="30ms"))
    _begin(server, _fault("slow", latency="10s"))
    _end(server, _fault("slow", latency="10s"))
    assert 0.03 <= _slowness(client) < 10

    _end(server, _fault("slow", latency="30ms"))
    assert server.report()["faults"] == []


@pytest.mark.parametrize("kind", ["refuse", "down"])
def test_server_is_unreachable_until_the_last_fault_of_a_kind_has_ended(server, kind):
    """One that comes twice, alike in everything, ends twice."""
    _begin(server, _fault(kind))
    _begin(server, _fault(kind))
    _end(server, _fault(kind))
    with pytest.raises(ConnectionRefusedError):
        _connect(server)
    _end(server, _fault(kind))
    wait_accepting(server.port)
