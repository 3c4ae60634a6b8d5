"""The client side of an exchange, on a wire of memory: whoever does not wait for the answer leaves nothing open."""

import asyncio

import pytest

from kongtrace import KONG
from kongtrace.testing import TracedWorker
from sim.config import Tracing
from sim.http_client import exchange
from sim.instrumentation import Instrumentation
from sim.ngx import Http, Network
from sim.upstream import Pool, UpstreamConnection
from tests.wire import Calendar, Wire

PLACE = ("192.0.2.9", 80)
REQUEST = b"GET / HTTP/1.1\r\nHost: u\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"


class Told:
    """The next exchange on a connection, which is told nothing here."""


@pytest.fixture
def pool():
    return Pool(Calendar())


@pytest.fixture
def connection(pool):
    made = UpstreamConnection(pool, PLACE)
    made.connection_made(Wire())
    return made


async def begin(awaitable):
    """Let a task wait for something; return it."""
    task = asyncio.ensure_future(awaitable)
    await asyncio.sleep(0)
    return task


async def cancelled(task):
    """Cancel a task and wait for its end."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_connection_is_closed_when_nobody_waits_for_the_answer_any_more(pool, connection):
    """It would stay open, with its answer still to come, until the time for reading is over."""

    async def play():
        asking = exchange(connection, REQUEST, timeout_s=60, bodiless=False, body_bytes_max=9)
        await cancelled(await begin(asking))

    asyncio.run(play())
    assert connection.transport.aborted
    connection.connection_lost(None)
    assert not pool.open
    assert pool.take(PLACE) is None


def test_connection_that_has_been_given_back_is_left_to_whom_it_serves_by_then(pool, connection):
    """The answer has come in the turn in which the wait for it is given up, and the next has taken the connection."""
    following = Told()

    async def play():
        asking = await begin(exchange(connection, REQUEST, timeout_s=60, bodiless=False, body_bytes_max=9))
        assert connection.transport.take() == REQUEST
        connection.data_received(RESPONSE)
        assert pool.take(PLACE) is connection
        connection.send(following, REQUEST, timeout_s=60)
        await cancelled(asking)

    asyncio.run(play())
    assert not connection.transport.closing
    assert connection.exchange is following


class Resolver:
    """Knows every name."""

    async def resolve(self, _host, port):
        return PLACE[0], port


def test_span_of_a_request_that_nobody_waits_for_any_more_ends_and_says_so(pool, connection):
    """It would be exported without an end (H3)."""
    worker = TracedWorker(KONG)
    instrumentation = Instrumentation(worker.provider, Tracing(instrumentations=("all",), sampling_rate=1.0))
    pool.keep(connection)
    ctx = worker.begin()

    async def play():
        client = Http(worker.provider.execution, Network(Resolver(), pool, instrumentation)).new()
        await cancelled(await begin(client.request_uri("http://u.test/")))

    asyncio.run(play())
    asked, *_ = [span for span in worker.provider.global_tracer.get_spans() if span.name == "kong.internal.request"]
    assert asked.end_time_ns is not None
    assert [event.attributes for event in asked.events] == [{"exception.message": "aborted"}]
    worker.end(ctx)
    worker.check()
