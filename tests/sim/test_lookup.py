"""Look-ups of names that nobody answers for: what they hold up, and what they do not."""

import asyncio
import errno
import socket
import threading

import pytest
import uvloop

from sim.runtime import lookup
from sim.runtime.live import LiveRuntime

ADDRESS = "192.0.2.7"
NOBODY = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


class System:
    """A system whose resolver is silent about some names until it is let, and then knows nothing of them."""

    def __init__(self):
        self.asked = []
        self.let = threading.Event()

    def getaddrinfo(self, name, _port, **_hints):
        self.asked.append(name)
        if name.startswith("silent"):
            self.let.wait()
            raise NOBODY
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::7", 0, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ADDRESS, 0)),
        ]


@pytest.fixture
def system(monkeypatch):
    """It is let at the end, so that no thread is left."""
    made = System()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.let.set()
    for thread in threading.enumerate():
        if thread.name == "look-up":
            thread.join()


def run(play):
    async def act():
        async with asyncio.timeout(30):
            return await play(LiveRuntime(asyncio.get_running_loop(), 1))

    return uvloop.run(act())


def test_names_that_nobody_answers_for_keep_no_other_waiting(system):
    """The names of a whole upstream; IPv4 goes before IPv6."""

    async def play(runtime):
        silent = [asyncio.ensure_future(runtime.resolve(f"silent{number}")) for number in range(100)]
        await asyncio.sleep(0)
        assert await runtime.resolve("known") == ADDRESS
        assert not any(answer.done() for answer in silent)
        system.let.set()
        return await asyncio.gather(*silent, return_exceptions=True)

    assert run(play) == [NOBODY] * 100


def test_so_many_are_looked_up_at_once_and_the_others_in_their_order(system, monkeypatch):
    """Each begins when another has ended, also when whoever wanted that one has given up."""
    monkeypatch.setattr(lookup, "LOOKUPS_MAX", 2)

    async def play(runtime):
        answers = [asyncio.ensure_future(runtime.resolve(name)) for name in ("silent1", "silent2", "a", "b")]
        while len(system.asked) < 2:
            await asyncio.sleep(0)
        answers[0].cancel()
        system.let.set()
        return await asyncio.gather(*answers[1:], return_exceptions=True)

    assert run(play) == [NOBODY, ADDRESS, ADDRESS]
    assert [sorted(system.asked[:2]), sorted(system.asked[2:])] == [["silent1", "silent2"], ["a", "b"]]


def test_system_without_a_thread_left_is_an_error_of_the_system(monkeypatch):
    """Whoever wants the name can go on without it."""

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    async def play(runtime):
        with pytest.raises(OSError, match="can't start new thread") as raised:
            await runtime.resolve("known")
        return raised.value.errno

    assert run(play) == errno.EAGAIN


def test_what_is_found_when_the_loop_has_closed_is_dropped(system):
    """Its worker has left, and its thread ends without a word."""
    before = set(threading.enumerate())  # a name of an earlier test may still be looked up, where the system is slow

    async def play(runtime):
        asked = asyncio.ensure_future(runtime.resolve("silent"))
        while not system.asked:
            await asyncio.sleep(0)
        asked.cancel()

    run(play)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "look-up" and thread not in before]
    system.let.set()
    thread.join()
