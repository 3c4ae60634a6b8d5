"""The live runtime: uvloop, real sockets, the system's clocks and resolver.

The generator of random numbers is seeded from the run's seed, the worker's place and the system's entropy: the first
two make a run's choices its own, the last makes ids differ from every other run's (and of every forked worker).
"""

import asyncio
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import cast

from sim.runtime import Cancelable


class LiveRuntime:
    """A worker's runtime on a running event loop.

    Args:
        loop: the worker's event loop.
        seed: of the worker's random choices; ids draw fresh entropy besides.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seed: int) -> None:
        self._loop = loop
        self.time_ns = time.time_ns
        self.now = loop.time
        self.random = random.Random(seed).random
        self.random_bytes = random.Random(os.urandom(32)).randbytes

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> Cancelable:
        """Call back after the current turn of the event loop, before it waits again."""
        return self._loop.call_soon(callback, *arguments)

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: object) -> Cancelable:
        """Call back in `delay_s` s."""
        return self._loop.call_later(delay_s, callback, *arguments)

    def run(self, thread: Awaitable[object], done: Callable[[BaseException | None], object]) -> Cancelable:
        """Run a light thread; `done` gets the exception that ended it, or None."""
        task = self._loop.create_task(cast("Coroutine[object, object, object]", thread))
        task.add_done_callback(partial(_report, done))
        return task

    async def connect(self, host: str, port: int, protocol: Callable[[], asyncio.BaseProtocol]) -> object:
        """Open a TCP connection to an address; raises OSError."""
        _transport, made = await self._loop.create_connection(protocol, host, port)
        return made

    async def resolve(self, name: str) -> str:
        """Return an address of a host name, IPv4 before IPv6; raises OSError."""
        found = await self._loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def _report(done: Callable[[BaseException | None], object], task: "asyncio.Task[object]") -> None:
    done(asyncio.CancelledError() if task.cancelled() else task.exception())
