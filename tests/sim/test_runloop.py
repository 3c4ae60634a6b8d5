"""Requests whose handlers wait, in a virtual world: what becomes of them when their clients do not."""

import asyncio
import re
import sys
from contextlib import asynccontextmanager
from functools import partial

import pytest

from sim.config import Nginx, Tracing
from sim.entity import Plugin
from sim.entity import Upstream as UpstreamEntity
from tests.stage import LOOPBACK, Virtual

COUNTED = "Content-Length: 10\r\n"
BODY = b"0123456789"
CHUNKED = "Transfer-Encoding: chunked\r\n"
MALFORMED = b"3\r\nabc\r\nzz\r\n"


class Upstream(asyncio.Protocol):
    """Answers what comes with an empty 200, a counted body included, and keeps it; on one connection for all."""

    def __init__(self):
        self.received = b""
        self._answered_bytes = 0

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data
        head, _, body = self.received[self._answered_bytes :].partition(b"\r\n\r\n")
        if (size := re.search(rb"Content-Length: (\d+)", head)) and len(body) < int(size[1]):
            return
        self._answered_bytes = len(self.received)
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Service: 1\r\n\r\n")


class Scene:
    """A gateway with one plugin, a client, and an upstream with a kept connection."""

    def __init__(self, stage, gateway, client, upstream, ended, unhandled):
        self.stage = stage
        self.gateway = gateway
        self.client = client
        self.upstream = upstream
        self.ended = ended  # statuses of requests, as their log phases see them
        self.unhandled = unhandled  # exceptions that have reached the event loop

    def send(self, headers, *, path="/", method="POST"):
        self.client.send(method, path, headers=headers)

    def write(self, data):
        self.client.transport.write(data)

    def look_up(self):
        """Let a name be looked up until the test has its address."""
        resolved = asyncio.get_running_loop().create_future()
        self.stage.runtime.resolve = lambda _name: resolved
        return resolved

    async def all_ended(self, count=2):
        """Wait until so many requests have ended, and give whoever would come too late the time for it."""
        await self.stage.until(lambda: len(self.ended) >= count)
        await self.stage.wait(10)
        assert self.gateway.core.counts.active == 0
        assert self.unhandled == []

    def said(self, text):
        """The lines of the log that begin so, without what they name."""
        lines = [line.partition(", client: ")[0].partition(" ")[2] for _at, _level, line in self.gateway.log]
        return [line for line in lines if line.startswith(text)]


def played(play, *handlers, traced=False, **options):
    """Play with a gateway that has a plugin of these coroutine functions, by their names."""

    async def act(stage):
        async with set_up(stage, handlers, traced=traced, **options) as scene, asyncio.timeout(3600):
            return await play(scene)

    return Virtual().run(act)


@asynccontextmanager
async def set_up(stage, handlers, *, traced, **options):
    ended, unhandled = [], []

    def log(_self, kong, _conf):
        ended.append(kong.response.get_status())

    phases = {handler.__name__: staticmethod(handler) for handler in handlers}
    plugin = type("Waiting", (), {"PRIORITY": 1, "VERSION": "1", "log": log, **phases})
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
    upstream = Upstream()
    listener = await stage.runtime.listen(LOOPBACK, 0, lambda: upstream)
    tracing = Tracing(instrumentations=("all" if traced else "off",), sampling_rate=1.0)
    options = {"plugins": (Plugin(name="waiting"),), "tracing": tracing, **options}
    async with stage.gateway(listener.address[1], classes={"waiting": plugin}, **options) as gateway:
        client = await stage.connect(gateway.port)
        client.send()
        assert await client.answer() == 200
        yield Scene(stage, gateway, client, upstream, ended, unhandled)
    listener.close()


async def sleep(kong, method="POST"):
    if kong.request.get_method() == method:
        await kong.ngx.sleep(0.5)


async def read(kong):
    if kong.request.get_method() == "POST":
        await kong.request.get_raw_body()


async def sleep_and_read(kong):
    await sleep(kong)
    await read(kong)


async def sleep_and_replace(kong):
    await sleep(kong)
    if kong.request.get_method() == "POST":
        await kong.service.request.set_raw_body(b"other")


async def sleep_and_answer(kong):
    await sleep(kong)
    if kong.request.get_method() == "POST":
        kong.response.exit(200)


async def sleep_and_fail(kong):
    await sleep(kong)
    if kong.request.get_method() == "POST":
        raise ValueError("boom")


async def go_elsewhere(kong):
    if kong.request.get_method() == "POST":
        kong.service.set_target("elsewhere", int(kong.request.get_header("X-Port") or 80))


DOINGS = [sleep, read, sleep_and_read, sleep_and_replace, sleep_and_answer, sleep_and_fail]


def in_phase(phase, doing):
    """The handler of a phase that does so."""

    async def handler(kong, _conf):
        await doing(kong)

    handler.__name__ = phase
    return handler


# A client that leaves.


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
@pytest.mark.parametrize("doing", DOINGS)
def test_client_that_leaves_before_its_body_has_come_is_499_once_the_handler_has_ended(doing, traced):
    """Also when the handler asks for the body only then: nobody waits for what cannot come."""

    async def play(scene):
        before = scene.upstream.received
        scene.send(COUNTED)
        scene.write(b"abc")
        await scene.stage.wait(0.2)
        scene.client.transport.close()
        await scene.all_ended()
        assert scene.upstream.received == before
        assert scene.said("lua entry thread aborted") == []
        return scene.ended

    assert played(play, in_phase("access", doing), traced=traced) == [200, 499]


def test_worker_that_leaves_does_not_wait_for_a_body_whose_client_has_left():
    """Its request has ended."""

    async def play(scene):
        scene.send(COUNTED)
        await scene.stage.wait(0.2)
        scene.client.transport.close()
        scene.gateway.core.quit()
        await scene.gateway.rested.wait()
        return scene.ended

    assert played(play, in_phase("access", sleep_and_read)) == [200, 499]


# A body that is refused.


async def refused(scene, body):
    """The status that a client gets who sends such a body while a handler waits, once its request has ended."""
    scene.send(CHUNKED)
    await scene.stage.wait(0.2)
    scene.write(body)
    status = await scene.client.answer()
    await scene.client.closed.wait()
    await scene.all_ended()
    return status


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
@pytest.mark.parametrize("phase", ["rewrite", "access"])
@pytest.mark.parametrize("doing", DOINGS)
def test_request_whose_body_is_refused_while_a_handler_waits_has_one_answer_and_one_end(doing, phase, traced):
    """When the handler has ended, whatever it would have come to, the client gets the refusal and the end."""

    async def play(scene):
        before = scene.upstream.received
        status = await refused(scene, MALFORMED)
        assert scene.upstream.received == before
        assert scene.said("lua entry thread aborted") == []
        assert len(scene.said("client sent invalid request")) == 1
        return status, scene.client.whole.count(b"HTTP/1.1 "), b"Connection: close" in scene.client.whole, scene.ended

    assert played(play, in_phase(phase, doing), traced=traced) == (400, 2, True, [200, 400])


REFUSALS = {
    "too large": (b"400\r\n" + bytes(1024) + b"\r\n5\r\nhello\r\n", 413),
    "too slow": (b"", 408),
    "with too large a trailer": (b"0\r\nA: " + b"a" * 200_000, 431),
}


@pytest.mark.parametrize(("body", "status"), REFUSALS.values(), ids=REFUSALS)
def test_connection_whose_body_is_refused_while_a_handler_reads_it_is_closed(body, status):
    """Nobody could tell where the next request begins, and the client is told so."""

    async def play(scene):
        answered = await refused(scene, body)
        return answered, b"Connection: close" in scene.client.whole, scene.ended

    nginx = Nginx(client_body_timeout="2s", client_max_body_size="1KiB")
    assert played(play, in_phase("access", read), nginx=nginx) == (status, True, [200, status])


def test_refused_body_leaves_nothing_of_the_answer_that_it_came_too_late_for():
    """The service has answered, its answer waits for a handler, and the client gets the refusal alone."""

    async def response(kong, _conf):
        kong.response.set_header("X-Late", "yes")
        await sleep(kong)

    async def play(scene):
        scene.send(CHUNKED)
        await scene.stage.wait(0.2)
        scene.write(MALFORMED)
        await scene.client.closed.wait()
        await scene.all_ended()
        refusal = scene.client.received
        return await scene.client.answer(), refusal.count(b"X-Late") + refusal.count(b"X-Service"), scene.ended

    assert played(play, response) == (400, 0, [200, 400])


def test_client_whose_body_is_refused_while_its_service_is_looked_up_is_told_and_cut_off():
    """No handler waits, but the name server's answer does not come."""

    async def play(scene):
        resolved = scene.look_up()
        scene.send(CHUNKED)
        await scene.stage.wait(0.2)
        scene.write(MALFORMED)
        status = await scene.client.answer()
        resolved.set_result(LOOPBACK)
        await scene.client.closed.wait()
        await scene.all_ended()
        return status, b"Connection: close" in scene.client.whole, scene.ended

    assert played(play, in_phase("access", go_elsewhere)) == (400, True, [200, 400])


# A body that is long in coming.


def test_handler_that_has_waited_in_vain_for_a_body_may_wait_again():
    """A time limit of one's own ends that wait alone, and not those of other tasks."""

    async def read_impatiently(kong):
        if kong.request.get_method() == "POST":
            patient = asyncio.create_task(kong.request.get_raw_body())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(kong.request.get_raw_body(), 0.1)
            again = await kong.request.get_raw_body()
            kong.response.exit(200, headers={"X-Read": repr([again, await patient])})

    async def play(scene):
        scene.send(COUNTED)
        await scene.stage.wait(0.2)
        scene.write(BODY)
        return await scene.client.answer(), b"X-Read: [b'0123456789', b'0123456789']" in scene.client.whole

    assert played(play, in_phase("access", read_impatiently)) == (200, True)


@pytest.mark.parametrize("headers", [COUNTED, COUNTED + "Expect: 100-continue\r\n"], ids=["at once", "with leave"])
@pytest.mark.parametrize("doing", [sleep_and_read, sleep])
def test_body_has_its_time_from_when_it_is_asked_for(doing, headers):
    """A client cannot be late with what nobody reads, or has given it leave to send; then it can."""

    async def slowly(kong):
        await kong.ngx.sleep(5)
        await doing(kong)

    async def play(scene, *, late_s):
        scene.send(headers)
        if "Expect" in headers:
            await scene.stage.until(lambda: b" 100 " in scene.client.whole)
            scene.client.received = b""
        else:
            await scene.stage.wait(5.5)
        await scene.stage.wait(late_s)
        scene.write(BODY)
        return await scene.client.answer()

    nginx = Nginx(client_body_timeout="2s")
    for late_s, status in ((1.5, 200), (3, 408)):
        assert played(partial(play, late_s=late_s), in_phase("access", slowly), nginx=nginx) == status


def test_body_has_its_time_while_its_service_is_looked_up():
    """Nobody reads it then either."""

    async def play(scene):
        resolved = scene.look_up()
        scene.send(COUNTED + f"X-Port: {scene.upstream.transport.get_extra_info('sockname')[1]}\r\n")
        await scene.stage.wait(5)
        resolved.set_result(LOOPBACK)
        await scene.stage.wait(1)
        scene.write(BODY)
        return await scene.client.answer()

    assert played(play, in_phase("access", go_elsewhere), nginx=Nginx(client_body_timeout="2s")) == 200


# A body that is asked for when the service has answered.


LARGE = b"x" * 65_537


async def tell(kong):
    """Read the body, and tell the client how long it is."""
    if kong.request.get_method() == "POST":
        kong.response.set_header("X-Read", str(len(await kong.request.get_raw_body())))


@pytest.mark.parametrize(
    ("body", "reads_before", "status"),
    [(BODY, False, 200), (BODY, True, 200), (LARGE, True, 200), (LARGE, False, 500)],
    ids=["small", "small and read before", "large and read before", "large"],
)
def test_body_is_there_in_response_as_a_whole_or_not_at_all(body, reads_before, status):
    """One that is large is not kept unless a handler has waited for it before."""

    async def play(scene):
        scene.send(f"Content-Length: {len(body)}\r\n")
        await scene.stage.wait(0.2)
        scene.write(body[:3])
        await scene.stage.wait(0.2)
        scene.write(body[3:])
        answered = await scene.client.answer()
        told = [line for line in scene.client.whole.split(b"\r\n") if line.startswith(b"X-Read: ")]
        return answered, told, len(scene.said("lua entry thread aborted"))

    handlers = [in_phase("response", tell), *([in_phase("access", read)] if reads_before else [])]
    told = [b"X-Read: %d" % len(body)] if status == 200 else []
    assert played(play, *handlers) == (status, told, 0 if told else 1)


# Targets that are looked up.


def test_targets_are_looked_up_at_once_and_for_all_requests_together():
    """A name that is long in coming delays no other, and nobody asks for it again meanwhile."""
    targets = [{"target": f"{name}.example:80"} for name in ("slow", "other", "slowest")]
    pool = UpstreamEntity.model_validate({"name": "pool", "targets": targets})

    async def go_to_pool(kong):
        if kong.request.get_method() == "POST":
            kong.service.set_upstream("pool")

    async def play(scene):
        asked = {}

        def look_up(name):
            assert name not in asked
            asked[name] = asyncio.get_running_loop().create_future()
            return asked[name]

        scene.stage.runtime.resolve = look_up
        other = await scene.stage.connect(scene.gateway.port)
        scene.send("")
        other.send("POST")
        await scene.stage.wait(1)
        names = list(asked)
        for answer in asked.values():
            answer.set_exception(OSError("no such name"))
        statuses = [await scene.client.answer(), await other.answer()]
        return names, statuses, len(scene.said("other.example could not be resolved"))

    played_out = played(play, in_phase("access", go_to_pool), upstreams=(pool,))
    assert played_out == (["slow.example", "other.example", "slowest.example"], [503, 503], 2)


# A handler that raises what is no Exception.


class Odd(BaseException):
    """What `except Exception` does not catch."""


async def cancel_itself(kong):
    asyncio.current_task().cancel()
    await kong.ngx.sleep(1)


async def exit_in_a_task(_kong):
    async def leave():
        sys.exit("boom")

    await asyncio.gather(leave())


def raising(error):
    """A coroutine function that raises it."""

    async def fail(_kong):
        raise error

    return fail


ODDITIES = {
    "raises an exception of its own": raising(Odd("boom")),
    "raises GeneratorExit": raising(GeneratorExit("boom")),
    "raises SystemExit": raising(SystemExit("boom")),
    "raises CancelledError": raising(asyncio.CancelledError("boom")),
    "cancels itself": cancel_itself,
    "exits in a task": exit_in_a_task,
}


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
@pytest.mark.parametrize("phase", ["rewrite", "access", "response"])
@pytest.mark.parametrize("doing", ODDITIES.values(), ids=ODDITIES)
def test_handler_that_waits_may_raise_anything_and_the_client_gets_500(doing, phase, traced):
    """The log says so, and the log phase runs."""  # R6

    async def handler(kong):
        if kong.request.get_method() == "PUT":
            await doing(kong)

    async def play(scene):
        scene.send("", method="PUT")
        status = await scene.client.answer()
        await scene.all_ended()
        return status, len(scene.said("lua entry thread aborted: runtime error: ")), scene.ended

    assert played(play, in_phase(phase, handler), traced=traced) == (500, 1, [200, 500])


@pytest.mark.parametrize("kind", [Odd, GeneratorExit, SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize("phase", ["rewrite", "access", "header_filter", "body_filter", "log"])
def test_handler_that_does_not_wait_may_raise_anything_and_its_request_ends(phase, kind):
    """500, in a filter the end of the connection, in log nothing of it: as with any other exception."""  # R6, E4

    def handler(kong, _conf):
        if kong.request.get_method() == "PUT":
            raise kind("boom")

    async def play(scene):
        scene.send("", method="PUT")
        status = await scene.client.answer()
        await scene.stage.until(lambda: scene.gateway.core.counts.requests == 2)
        assert scene.unhandled == []
        return status, len(scene.said("lua entry thread aborted")) + len(scene.said("failed to run"))

    handler.__name__ = phase
    expected = 500 if phase in ("rewrite", "access") else 200 if phase == "log" else 0
    assert played(play, handler) == (expected, 1)


def test_handler_that_a_worker_leaves_behind_comes_to_no_end():
    """Its client has gone, and so is what its log phase would need."""

    async def sleep_long(kong):
        if kong.request.get_method() == "POST":
            await kong.ngx.sleep(3600)

    async def play(scene):
        scene.send(COUNTED)
        await scene.stage.wait(0.2)
        scene.client.transport.close()
        await scene.stage.wait(0.2)
        return scene

    scene = played(play, in_phase("access", sleep_long), traced=True)
    assert (scene.ended, scene.unhandled) == ([200], [])
    assert scene.said("lua entry thread aborted") + scene.said("failed to run") == []
