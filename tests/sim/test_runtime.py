"""What only the virtual world has: a clock that jumps, errors in place of hangs, a network that can be shaped."""

import asyncio

import pytest

from sim.runtime import ConnectTimeoutError
from sim.runtime.virtual import (
    EPOCH_NS,
    EverybodyWaitsError,
    NotVirtualError,
    TimeStandsStillError,
    VirtualLoop,
    VirtualWorld,
)
from sim.upstream import Pool
from tests.stage import LOOPBACK, Client


@pytest.fixture
def world():
    return VirtualWorld(1)


async def forever():
    await asyncio.get_running_loop().create_future()


def test_waiting_takes_no_time_and_the_clock_says_it_did(world):
    """An hour is over at once; both clocks of the runtime have moved by it."""
    runtime = world.runtime("host")

    async def play():
        before = (runtime.now(), runtime.time_ns())
        await asyncio.sleep(3600)
        return runtime.now() - before[0], runtime.time_ns() - before[1], before[1]

    assert world.run(play()) == (3600.0, 3_600_000_000_000, EPOCH_NS)


def test_delays_do_not_drift(world):
    """Ten thousand delays of 0.1 s are exactly a thousand seconds."""

    async def play():
        for _ in range(10_000):
            await asyncio.sleep(0.1)
        return world.loop.now_ns

    assert world.run(play()) == 1_000 * 10**9


def test_equal_deadlines_keep_the_order_of_their_making(world):
    """No heap's whim decides who comes first."""
    called = []

    async def play():
        for number in range(100):
            world.loop.call_later(1 + (number % 3), called.append, (number % 3, number))
        await asyncio.sleep(10)

    world.run(play())
    assert called == sorted(called)


def test_cancelled_delay_moves_no_clock(world):
    """What was cancelled is not waited for."""

    async def play():
        world.loop.call_later(50, print).cancel()
        await asyncio.sleep(1)
        return world.loop.now_ns

    assert world.run(play()) == 10**9


def test_world_in_which_everybody_waits_is_an_error(world):
    """What would hang for ever is told at once, with the time at which it stopped."""

    async def play():
        await asyncio.sleep(2)
        await forever()

    with pytest.raises(EverybodyWaitsError, match=r"^2 s after the beginning everybody waits for ever$"):
        world.run(play())


def test_world_whose_time_stands_still_is_an_error(world, monkeypatch):
    """A loop that turns without getting anywhere is told too, and what turned comes to its end."""
    monkeypatch.setattr("sim.runtime.virtual.TURNS_MAX", 1000)
    ended = []

    async def play():
        try:
            while True:
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    with pytest.raises(TimeStandsStillError, match=r"^1000 turns of the loop at 0 s$"):
        world.run(play())
    assert ended == [True]


@pytest.mark.parametrize(
    "name",
    ["add_reader", "add_signal_handler", "create_connection", "create_server", "getaddrinfo", "run_in_executor"],
)
def test_what_the_virtual_world_lacks_raises_by_name(name):
    """Nothing half-works."""
    loop = VirtualLoop()
    with pytest.raises(NotVirtualError, match=f"^a virtual world has no {name}; "):
        getattr(loop, name)("any", "thing")
    loop.close()


def test_alarm_goes_off_to_the_nanosecond_until_it_is_closed(world):
    """It calls back at its deadline, then at the one it is told; a new deadline replaces the old."""
    runtime = world.runtime("host")
    called = []

    async def play():
        alarm = runtime.alarm(lambda now_ns: called.append(now_ns) or (now_ns + 5 if now_ns < 20 else None))
        alarm.arm(100)
        alarm.arm(11)
        await asyncio.sleep(1)
        alarm.arm(2 * 10**9)
        alarm.close()
        await asyncio.sleep(2)

    world.run(play())
    assert called == [11, 16, 21]


def test_hosts_draw_from_generators_of_their_own():
    """What one host draws changes nothing for the others; the same seed gives the same again."""

    def drawn(seed, *hosts):
        world = VirtualWorld(seed)
        draws = {host: world.runtime(host).random_bytes(8) for host in hosts}
        world.loop.close()
        return draws

    assert drawn(1, "a", "b")["b"] == drawn(1, "b")["b"] != drawn(2, "b")["b"]
    assert drawn(1, "a", "b")["a"] != drawn(1, "a", "b")["b"]


def test_segments_arrive_late_and_in_order():
    """A connection takes a round trip; what is sent later never arrives earlier, however the delays fall."""
    delays = iter([5, 7, *range(1000, 0, -1)])
    world = VirtualWorld(1, lambda _generator: next(delays))
    runtime = world.runtime("host")
    arrived = []

    class Server(asyncio.Protocol):
        def data_received(self, data):
            arrived.append((world.loop.now_ns, data))

    async def play():
        listener = await runtime.listen(LOOPBACK, 80, Server)
        client = await runtime.connect(LOOPBACK, 80, Client)
        connected_ns = world.loop.now_ns
        for number in range(10):
            client.transport.write(b"%d" % number)
        await asyncio.sleep(1)
        listener.close()
        return connected_ns

    assert world.run(play()) == 12
    assert [data for _at, data in arrived] == [b"%d" % number for number in range(10)]
    assert {at_ns for at_ns, _data in arrived} == {1012}


def test_silent_address_is_a_connect_timeout(world):
    """What no answer comes from, not even a refusal, costs the whole timeout."""
    runtime = world.runtime("host")
    world.network.silence(("10.0.0.9", 80))

    async def play():
        with pytest.raises(ConnectTimeoutError, match=r"^no connection within 60 s$"):
            await Pool(runtime).connect(("10.0.0.9", 80), 60)
        return runtime.now()

    assert world.run(play()) == 60.0


def test_connection_that_comes_as_its_time_is_over_is_not_kept(world):
    """It stands, and is cancelled before anybody learns of it: uvloop closes it and tells nobody."""
    runtime = world.runtime("host")

    async def connect(_host, _port, protocol):
        protocol().connection_made(asyncio.Transport())
        await asyncio.Event().wait()

    runtime.connect = connect

    async def play():
        pool = Pool(runtime)
        with pytest.raises(ConnectTimeoutError):
            await pool.connect((LOOPBACK, 80), 1)
        return pool.size

    assert world.run(play()) == 0


def test_address_has_one_listener(world):
    """A second one is refused; after the first has closed there is room."""
    runtime = world.runtime("host")

    async def play():
        first = await runtime.listen(LOOPBACK, 80, Client)
        with pytest.raises(OSError, match=r"^address already in use: 127\.0\.0\.1:80$"):
            await runtime.listen(LOOPBACK, 80, Client)
        first.close()
        return (await runtime.listen(LOOPBACK, 80, Client)).address

    assert world.run(play()) == (LOOPBACK, 80)


def test_names_are_the_networks(world):
    """A host that the network knows has an address; an address is its own."""
    world.network.hosts["collector"] = "10.0.0.2"
    runtime = world.runtime("host")

    async def play():
        return [await runtime.resolve(name) for name in ("collector", "10.0.0.7", "::1")]

    assert world.run(play()) == ["10.0.0.2", "10.0.0.7", "::1"]
