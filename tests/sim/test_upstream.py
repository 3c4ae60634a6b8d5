"""A connection to an upstream, on a wire of memory: what becomes of an exchange, and how long it may take."""

import asyncio
import ssl

import pytest
import trustme
import uvloop

from sim.http_client import exchange
from sim.runtime import Tls
from sim.runtime.live import LiveRuntime
from sim.upstream import TRIM_S, Pool, UpstreamConnection
from tests.wire import Calendar, Wire

PLACE = ("192.0.2.9", 80)
REQUEST = b"GET / HTTP/1.1\r\nHost: u\r\n\r\n"
RESPONSE = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"


class Told:
    """An exchange that notes what it is told."""

    def __init__(self):
        self.notes = []

    def on_head(self, status, _lines, _outline):
        self.notes.append(status)

    def on_body(self, data):
        self.notes.append(data)

    def on_end(self):
        self.notes.append("end")

    def on_flush(self):
        """Nothing is held back."""

    def on_lost(self, _connection, reason, *, timeout):
        self.notes.append("timeout" if timeout else reason)

    def pause(self):
        """Everything has been written."""

    def resume(self):
        """The same."""


@pytest.fixture
def runtime():
    return Calendar()


@pytest.fixture
def pool(runtime):
    return Pool(runtime)


@pytest.fixture
def connection(pool):
    made = UpstreamConnection(pool, PLACE)
    made.connection_made(Wire())
    return made


def lose(connection, error=None):
    """Let the other side close, as a transport tells it."""
    connection.transport.closing = True
    connection.connection_lost(error)


def test_connection_that_is_lost_before_its_first_request_tells_the_exchange(runtime, connection):
    """It stood when it was opened, and the worker comes to it some turns later."""
    lose(connection)
    connection.send(told := Told(), REQUEST, timeout_s=60)
    runtime.advance(0)
    assert told.notes == ["upstream prematurely closed connection"]


@pytest.mark.parametrize("closes", [True, False])
def test_response_that_comes_before_the_request_is_the_response(runtime, connection, closes):
    """A server that is too busy says so at once."""
    connection.data_received(RESPONSE)
    if closes:
        lose(connection)
    connection.send(told := Told(), REQUEST, timeout_s=60)
    assert told.notes == []
    runtime.advance(0)
    assert told.notes == [503, b"busy", "end"]
    assert connection.transport.reading is not closes


def test_connection_on_which_something_has_come_unasked_is_not_kept(pool, connection):
    """Whoever opened it does not need it any more, and the next would get a foreign answer."""
    connection.data_received(RESPONSE)
    pool.keep(connection)
    assert pool.take(PLACE) is None
    assert connection.transport.closing


def test_pool_forgets_a_place_that_it_keeps_no_connection_to(runtime, pool, connection):
    """Plugins may ask for any number of them."""
    for host in range(1, 100):
        assert pool.take((f"192.0.2.{host}", 80)) is None
    pool.keep(connection)
    assert list(pool._idle) == [PLACE]

    lose(connection)
    runtime.advance(2 * TRIM_S)
    assert list(pool._idle) == []
    assert runtime.due == []


def test_response_that_nobody_reads_does_not_come_too_late(runtime, connection):
    """While it is held, the other side cannot send; afterwards its time counts anew (nginx, `proxy_read_timeout`)."""
    connection.send(told := Told(), REQUEST, timeout_s=2)
    connection.data_received(RESPONSE[:-1])
    connection.hold()
    runtime.advance(60)
    assert told.notes == [503, b"bus"]
    connection.release()
    runtime.advance(1)
    assert told.notes == [503, b"bus"]
    runtime.advance(3)
    assert told.notes == [503, b"bus", "timeout"]


def test_exchange_that_has_ended_cannot_give_up_the_connection_of_the_next(connection):
    """Nobody would tell that one that its answer does not come."""
    connection.send(first := Told(), REQUEST, timeout_s=60)
    connection.transport.take()
    connection.data_received(RESPONSE)
    connection.send(second := Told(), REQUEST, timeout_s=60)
    connection.give_up(first)
    connection.data_received(RESPONSE)
    assert first.notes == second.notes == [503, b"busy", "end"]


class GivesUp(Told):
    """Needs no more of an answer than its head."""

    def __init__(self, connection):
        super().__init__()
        self.connection = connection

    def on_head(self, status, lines, outline):
        super().on_head(status, lines, outline)
        self.connection.give_up(self)


@pytest.mark.parametrize("length", [len(RESPONSE), -2, -4])
def test_connection_that_is_given_up_amid_an_answer_is_not_kept(pool, connection, length):
    """Though the rest came in the same read; the exchange hears no more of it."""
    connection.send(told := GivesUp(connection), REQUEST, timeout_s=60)
    connection.data_received(RESPONSE[:length])
    assert told.notes == [503]
    assert connection.transport.aborted
    assert pool.take(PLACE) is None
    lose(connection)
    assert told.notes == [503]


@pytest.mark.parametrize("line", [b"", b"Connection: close\r\n"], ids=["kept", "closed"])
@pytest.mark.parametrize("is_taken", [True, False])
def test_connection_on_which_a_request_still_waits_to_be_sent_is_not_kept(pool, connection, line, is_taken):
    """The next request would wait behind it, and closing would wait for it; the answer counts all the same."""
    connection.send(told := Told(), REQUEST, timeout_s=60)
    if is_taken:
        connection.transport.take()
    connection.data_received(RESPONSE.replace(b"Content", line + b"Content"))
    assert told.notes == [503, b"busy", "end"]
    assert connection.transport.aborted is not is_taken
    assert pool.take(PLACE) is (connection if is_taken and not line else None)


class Hasty(asyncio.Protocol):
    """Answers a request at its head, and reads nothing more of one that is a PUT."""

    def __init__(self):
        self.closed = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, _error):
        self.closed.set()

    def data_received(self, data):
        if b" HTTP/1.1" in data:
            self.transport.write(RESPONSE)
        if data.startswith(b"PUT"):
            self.transport.pause_reading()


@pytest.mark.parametrize(("method", "is_kept"), [(b"GET", True), (b"PUT", False)])
def test_connection_of_tls_whose_request_waits_below_it_is_not_kept(method, is_kept):
    """Its own buffer is empty: the library below has taken all, and the system has not."""
    authority = trustme.CA()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("u").configure_cert(theirs)
    authority.configure_trust(ours)
    body = bytes(32 * 2**20 if method == b"PUT" else 0)  # more than the buffers of a connection hold

    async def play():
        upstream = Hasty()
        server = await asyncio.get_running_loop().create_server(lambda: upstream, "127.0.0.1", 0, ssl=theirs)
        pool = Pool(LiveRuntime(asyncio.get_running_loop(), 1))
        place = (*server.sockets[0].getsockname(), Tls(ours, "u"))
        connection = await pool.connect(place, 30)
        request = b"%b / HTTP/1.1\r\nHost: u\r\nContent-Length: %d\r\n\r\n%b" % (method, len(body), body)
        answer = await exchange(connection, request, timeout_s=30, bodiless=False, body_bytes_max=9)
        assert (answer.status, answer.body) == (503, b"busy")
        kept = pool.take(place)
        server.close()
        pool.close()
        upstream.transport.abort()
        await upstream.closed.wait()
        while pool.open:
            await asyncio.sleep(0)
        return kept is connection

    assert uvloop.run(play()) is is_kept


@pytest.mark.parametrize(
    ("size", "told"), [(65_000, 200), (66_000, "upstream sent an invalid response: too big header")]
)
def test_header_section_has_a_limit_however_it_arrives(connection, size, told):
    """In one read with the body, too."""
    connection.send(exchange := Told(), REQUEST, timeout_s=60)
    connection.data_received(b"HTTP/1.1 200 OK\r\nA: " + b"a" * size + b"\r\nContent-Length: 0\r\n\r\n")
    assert exchange.notes[0] == told
