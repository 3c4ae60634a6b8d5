"""The live runtime: uvloop, real sockets, the system's clocks and resolver.

The generator of random numbers is seeded from the run's seed and the worker's place: they make a run's choices its own.
Ids come from OpenSSL's generator, as in Kong; it notices a fork, so that no two workers and no two runs have the same.
"""

import asyncio
import fcntl
import random
import socket
import termios
import time
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from ssl import RAND_bytes
from struct import Struct
from types import coroutine
from typing import Any, TypeVar

from sim.runtime import Alarm, Tls
from sim.runtime.lookup import Lookups
from sim.runtime.loop import LoopRuntime
from sim.timerfd import TimerFd

T = TypeVar("T")

_NS_PER_S = 1_000_000_000
_INT = Struct("i")


class LiveRuntime(LoopRuntime):
    """A worker's runtime on a running event loop.

    Args:
        loop: the worker's event loop.
        seed: of the worker's random choices, but for ids.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seed: int) -> None:
        super().__init__(loop)
        self._lookups = Lookups(loop)
        self.time_ns = time.time_ns
        self.random = random.Random(seed).random
        self.random_bytes = RAND_bytes

    def spend_cpu(self, seconds: float) -> None:
        """Compute until the process has used that many s of CPU time more."""
        end_ns = time.process_time_ns() + round(seconds * _NS_PER_S)
        while time.process_time_ns() < end_ns:
            pass

    def alarm(self, callback: Callable[[int], int | None]) -> Alarm:
        """Make an alarm; it is not armed."""
        return TimerFd(self._loop, callback)

    async def connect(self, host: str, port: int, protocol: Callable[[], Any], tls: Tls | None = None) -> object:
        """Open a TCP connection to an address, secured by `tls`, and return its protocol; raises OSError."""
        secured: dict[str, Any] = {} if tls is None else {"ssl": tls.context, "server_hostname": tls.server_name}
        opening = self._loop.create_connection(protocol, host, port, **secured)
        # A connection calls its protocol in the context that it was opened in, whoever uses it by then.
        _transport, made = await _in_context(Context(), opening)
        return made

    def unsent_bytes(self, transport: asyncio.Transport) -> int:
        """Return the bytes that were written and that the other side's system has not acknowledged (tcp(7))."""
        connected = transport.get_extra_info("socket")
        if connected is None:  # it is closed
            return 0
        (count,) = _INT.unpack(fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))
        return int(count) + transport.get_write_buffer_size()

    async def listen(self, host: str, port: int, protocol: Callable[[], Any]) -> "LiveListener":
        """Accept TCP connections at an address, port 0 being any that is free; raises OSError."""
        return LiveListener(await self._loop.create_server(protocol, host, port))

    async def resolve(self, name: str) -> str:
        """Return an address of a host name, IPv4 before IPv6; raises OSError."""
        try:
            found = await self._lookups.start(name)
        except UnicodeError:  # IDNA has no form for it: nobody can be asked for such a name (RFC 5891 4.4)
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
        return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


@coroutine
def _in_context(context: Context, opening: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Run a coroutine in a context of its own, within the task that awaits it."""
    step: Callable[[Any], Any] = opening.send
    value: Any = None
    while True:
        try:
            awaited = context.run(step, value)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # what the coroutine returns
        try:
            value = yield awaited
            step = opening.send
        except BaseException as error:  # noqa: BLE001  # for the coroutine, whatever it is
            step, value = opening.throw, error


class LiveListener:
    """A listening socket."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self.address: tuple[str, int] = server.sockets[0].getsockname()[:2]

    def close(self) -> None:
        """Accept no more; what is connected stays so."""
        self._server.close()
