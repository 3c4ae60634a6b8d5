"""Addresses of host names."""

import asyncio
import socket

import pytest

from sim import light_thread
from sim.resolver import ANSWERS_MAX, ERROR_TTL_S, STALE_TTL_S, TTL_S, Resolver, is_address


class FakeRuntime:
    """A runtime whose clock stands still and whose resolver knows one name, as long as it is not told to fail."""

    def __init__(self):
        self.now_s = 100.0
        self.asked = []
        self.address = "192.0.2.1"
        self.error = None

    def now(self):
        return self.now_s

    def call_soon(self, callback, *arguments, context):
        asyncio.get_running_loop().call_soon(callback, *arguments, context=context)

    def run(self, thread, done):
        return light_thread.run(asyncio.get_running_loop(), thread, done)

    async def resolve(self, name):
        self.asked.append(name)
        if self.error:
            raise self.error
        if not name.startswith("known"):
            raise OSError(f"{name} is not known")
        return self.address


@pytest.fixture
def runtime():
    return FakeRuntime()


def resolve(resolver, name, port=80):
    return asyncio.run(resolver.resolve(name, port))


def test_static_table_goes_first_and_replaces_the_port(runtime):
    """A host of the static table needs nobody, and brings its own port."""
    resolver = Resolver(runtime, {"upstream": ("127.0.0.1", 8080)})
    assert resolver.known("upstream", 80) == resolve(resolver, "upstream") == ("127.0.0.1", 8080)
    assert runtime.asked == []


def test_names_are_compared_without_regard_to_case(runtime):
    """Those of the static table and those that were asked for (RFC 4343; Kong's DNS client keeps lower case)."""
    resolver = Resolver(runtime, {"Orders.Internal": ("127.0.0.1", 8080)})
    assert resolver.known("orders.INTERNAL", 80) == ("127.0.0.1", 8080)
    assert resolve(resolver, "Known.Test") == resolver.known("known.test", 80) == ("192.0.2.1", 80)
    assert runtime.asked == ["known.test"]


def test_answer_is_kept_for_its_time(runtime):
    """The system is asked once, and again when the answer has grown old: which serves meanwhile, and nobody waits."""
    resolver = Resolver(runtime, {})

    async def play():
        assert resolver.known("known", 81) is None
        assert [await resolver.resolve("known", 81) for _ in range(2)] == [("192.0.2.1", 81)] * 2
        assert runtime.asked == ["known"]

        runtime.now_s += TTL_S + 1
        runtime.address = "192.0.2.2"
        assert [resolver.known("known", 81) for _ in range(2)] == [("192.0.2.1", 81)] * 2
        await resolver.ask("known").wait()
        assert resolver.known("known", 81) == ("192.0.2.2", 81)
        assert runtime.asked == ["known"] * 2

    asyncio.run(play())


def test_failure_is_kept_for_a_shorter_time(runtime):
    """A name that has no address fails at once for a while, then the system is asked again."""
    resolver = Resolver(runtime, {})
    for _ in range(2):
        with pytest.raises(OSError, match="nowhere is not known"):
            resolve(resolver, "nowhere")
    assert runtime.asked == ["nowhere"]

    runtime.now_s += ERROR_TTL_S + 1
    assert resolver.known("nowhere", 80) is None


def test_address_serves_for_a_while_when_nobody_can_be_asked_any_more(runtime):
    """The last one stays, and the system is asked again soon; in the end the name has none."""
    resolver = Resolver(runtime, {})

    async def play():
        await resolver.resolve("known", 80)
        runtime.error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        runtime.now_s += TTL_S + 1
        await resolver.ask("known").wait()
        assert resolver.known("known", 81) == ("192.0.2.1", 81)
        assert len(runtime.asked) == 2

        runtime.now_s += ERROR_TTL_S + 1
        assert resolver.known("known", 80) == ("192.0.2.1", 80)
        await resolver.ask("known").wait()
        assert len(runtime.asked) == 3

        runtime.now_s += STALE_TTL_S
        with pytest.raises(OSError, match="Temporary failure"):
            await resolver.resolve("known", 80)

    asyncio.run(play())


def test_name_that_is_gone_has_no_address_any_more(runtime):
    """Whoever was asked knows that there is none."""
    resolver = Resolver(runtime, {})

    async def play():
        await resolver.resolve("known", 80)
        runtime.now_s += TTL_S + 1
        runtime.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        await resolver.ask("known").wait()
        with pytest.raises(OSError, match="not known"):
            await resolver.resolve("known", 80)
        with pytest.raises(OSError, match="not known"):
            resolver.known("known", 80)

    asyncio.run(play())


def test_mistake_of_who_asks_is_raised_to_them(runtime):
    """Such as a name that no text of C can hold."""
    runtime.error = ValueError("embedded null character")
    with pytest.raises(ValueError, match="embedded null"):
        resolve(Resolver(runtime, {}), "known\0")


class SlowRuntime(FakeRuntime):
    """Whose resolver says nothing until it is let."""

    def __init__(self):
        super().__init__()
        self.let = asyncio.Event()

    async def resolve(self, name):
        self.asked.append(name)
        await self.let.wait()
        return "192.0.2.1"


@pytest.mark.parametrize("impatient", [False, True])
def test_name_that_several_want_at_once_is_asked_for_once(impatient):
    """Also if the first of them gives up."""
    runtime = SlowRuntime()
    resolver = Resolver(runtime, {})

    async def ask():
        waiting = [asyncio.create_task(resolver.resolve("known", port)) for port in (80, 81, 82)]
        while not runtime.asked:
            await asyncio.sleep(0)
        if impatient:
            waiting.pop(0).cancel()
        runtime.let.set()
        return await asyncio.gather(*waiting)

    expected = [("192.0.2.1", port) for port in (80, 81, 82)]
    assert asyncio.run(ask()) == expected[impatient:]
    assert runtime.asked == ["known"]


def test_answers_are_bounded(runtime):
    """However many names are asked for, a bounded number is kept."""
    resolver = Resolver(runtime, {})

    async def ask():
        for number in range(ANSWERS_MAX + 10):
            await resolver.resolve(f"known{number}", 80)

    asyncio.run(ask())
    assert len(resolver._answers) <= ANSWERS_MAX


@pytest.mark.parametrize(
    ("host", "is_one"), [("127.0.0.1", True), ("::1", True), ("localhost", False), ("1.2.3", False)]
)
def test_address_is_told_from_a_name(host, is_one):
    """What is an address already is never looked up."""
    assert is_address(host) is is_one
