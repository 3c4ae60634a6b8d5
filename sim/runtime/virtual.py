"""The virtual runtime: a clock that moves only when everybody waits, a network in memory, randomness from one seed.

An hour takes no time, and a run repeats itself from its seed, byte for byte.

Theory of operation. `VirtualLoop` is asyncio's own event loop with another way to wait. As long as a callback is ready,
time stands still. When none is, the loop does not sleep: the clock jumps to the earliest deadline, and what is due then
becomes ready. Deadlines are integer ns and equal ones keep the order in which they were made, so nothing depends on a
heap's whims. If there is no deadline either, nobody can ever go on, which on a real loop is a hang: here it raises
`EverybodyWaitsError`. A world whose time stands still for `TURNS_MAX` turns raises `TimeStandsStillError`.

Code takes no time: a span whose handler does not wait starts and ends at the same ns.

What the virtual world does not have (sockets, descriptors, signals, threads, processes) raises `NotVirtualError`, which
names it.

Modelled on the selector of async-solipsism, which has no order of equal deadlines, no latency and no reset. Times in s
for asyncio, else in ns.
"""

import asyncio
import heapq
import random
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn, TypeVar

from sim.runtime import Alarm, Listener, Tls
from sim.runtime.loop import LoopRuntime
from sim.runtime.network import Network

EPOCH_NS: Final = 1_767_225_600_000_000_000
"""When a virtual world begins: 2026-01-01 00:00:00 UTC."""

TURNS_MAX: Final = 1_000_000
"""Turns of the loop within one ns, which no program that gets anywhere needs."""

LACKING: Final = "sim.runtime.virtual.lacking"
"""Audit event (PEP 578) of what was asked for and is not there; its argument is the name."""

_NS_PER_S: Final = 1_000_000_000

T = TypeVar("T")


class VirtualError(RuntimeError):
    """Base of the errors of the virtual world."""


class EverybodyWaitsError(VirtualError):
    """No callback is ready and no deadline is set: nothing will ever happen again."""


class TimeStandsStillError(VirtualError):
    """The loop turns and turns and time does not pass."""


class NotVirtualError(VirtualError, NotImplementedError):
    """The virtual world does not have what was asked for."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop on a virtual clock.

    Attributes:
        now_ns: since the world began.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self._clock_resolution = 1 / _NS_PER_S
        self._deadlines: list[tuple[int, int, asyncio.TimerHandle]] = []  # a heap: deadline, order of creation
        self._made = 0
        self._turns = 0
        self._selector = self  # `BaseEventLoop` waits in `self._selector.select`

    def time(self) -> float:
        """Return the virtual clock, s."""
        return self.now_ns / _NS_PER_S

    def call_at(  # type: ignore[override]  # typeshed types the arguments with a TypeVarTuple
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Call back at a time of this clock."""
        return self.call_at_ns(round(when * _NS_PER_S), callback, *args, context=context)

    def call_later(  # type: ignore[override]  # the same
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Call back in `delay` s."""
        return self.call_at_ns(self.now_ns + round(delay * _NS_PER_S), callback, *args, context=context)

    def call_at_ns(
        self, deadline_ns: int, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Call back at a time of this clock, ns."""
        handle = asyncio.TimerHandle(deadline_ns / _NS_PER_S, callback, args, self, context)
        self._made += 1
        heapq.heappush(self._deadlines, (deadline_ns, self._made, handle))
        return handle

    def spend(self, duration_ns: int) -> None:
        """Let time pass at once, as code does that computes."""
        self.now_ns += duration_ns
        if duration_ns:
            self._turns = 0

    # What `BaseEventLoop` asks of a loop.

    def select(self, timeout: float | None) -> list[asyncio.TimerHandle]:
        """Return what is due; move the clock if nothing is ready (`timeout` None)."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][2].cancelled():
            heapq.heappop(deadlines)
        if timeout is None:
            if not deadlines:
                raise EverybodyWaitsError(f"{self.now_ns / _NS_PER_S:g} s after the beginning everybody waits for ever")
            if deadlines[0][0] > self.now_ns:
                self.now_ns = deadlines[0][0]
                self._turns = 0
        self._turns += 1
        if self._turns > TURNS_MAX:
            self._turns = 0  # what is cancelled now has its turns to end
            raise TimeStandsStillError(f"{TURNS_MAX} turns of the loop at {self.now_ns / _NS_PER_S:g} s")
        due = []
        while deadlines and deadlines[0][0] <= self.now_ns:
            due.append(heapq.heappop(deadlines)[2])
        return due

    def _process_events(self, event_list: list[asyncio.TimerHandle]) -> None:
        self._ready.extend(event_list)  # type: ignore[attr-defined]  # `BaseEventLoop`'s, to which a loop adds

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""


def _lacks(name: str) -> Callable[..., NoReturn]:
    def refuse(*_arguments: object, **_options: object) -> NoReturn:
        sys.audit(LACKING, name)
        raise NotVirtualError(f"a virtual world has no {name}; ask the Runtime, or use the live one")

    return refuse


for _name in (
    *("add_reader", "remove_reader", "add_writer", "remove_writer"),
    *("add_signal_handler", "remove_signal_handler"),
    *("create_connection", "create_server", "create_datagram_endpoint", "connect_accepted_socket"),
    *("create_unix_connection", "create_unix_server", "start_tls", "sendfile"),
    *("sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into", "sock_sendall", "sock_sendto"),
    *("sock_connect", "sock_accept", "sock_sendfile"),
    *("connect_read_pipe", "connect_write_pipe", "subprocess_exec", "subprocess_shell"),
    *("getaddrinfo", "getnameinfo", "run_in_executor"),
):
    setattr(VirtualLoop, _name, _lacks(_name))


class VirtualWorld:
    """Everything there is: a clock, a network, and the seed that every choice comes from.

    Args:
        seed: of all randomness.
        delay_ns: one-way delay of each segment, drawn per segment; given the world's generator. None: there is none.

    Attributes:
        loop: the clock.
        network: that joins the hosts.
    """

    def __init__(self, seed: int, delay_ns: Callable[[random.Random], int] | None = None) -> None:
        self.loop = VirtualLoop()
        self._seed = seed
        delays = self.generator("network")
        self.network = Network(self.loop, None if delay_ns is None else lambda: delay_ns(delays))

    def generator(self, name: str) -> random.Random:
        """Return the random numbers of one of the world's parts; each has its own, whatever the others draw."""
        return random.Random(f"{self._seed}/{name}")

    def runtime(self, name: str) -> "VirtualRuntime":
        """Return the runtime of one host."""
        return VirtualRuntime(self, self.generator(name))

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` to its end; what it leaves behind is cancelled.

        Raises:
            EverybodyWaitsError: it can never come to its end.
            TimeStandsStillError: it makes no progress.
        """
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            return runner.run(main)


class VirtualRuntime(LoopRuntime):
    """The runtime of one host of a virtual world; made by `VirtualWorld.runtime`."""

    def __init__(self, world: VirtualWorld, generator: random.Random) -> None:
        super().__init__(world.loop)
        self._clock = world.loop
        self._network = world.network
        self.random = generator.random
        self.random_bytes = generator.randbytes

    def time_ns(self) -> int:
        """Return the wall clock, ns since the epoch."""
        return EPOCH_NS + self._clock.now_ns

    def spend_cpu(self, seconds: float) -> None:
        """Move the clock."""
        self._clock.spend(round(seconds * _NS_PER_S))

    def alarm(self, callback: Callable[[int], int | None]) -> Alarm:
        """Make an alarm; it is not armed."""
        return VirtualAlarm(self._clock, callback)

    async def connect(self, host: str, port: int, protocol: Callable[[], Any], tls: Tls | None = None) -> object:
        """Open a TCP connection to an address and return its protocol; raises OSError."""
        made = await self._network.connect((host, port), protocol)
        if tls is not None:  # only now: where nobody listens, the reason is the usual one
            _lacks("TLS")()
        return made

    def unsent_bytes(self, transport: asyncio.Transport) -> int:
        """Return the bytes that were written and that the other side has no room for."""
        return transport.get_write_buffer_size()

    async def listen(self, host: str, port: int, protocol: Callable[[], Any]) -> Listener:
        """Accept TCP connections at an address, port 0 being any that is free; raises OSError."""
        return self._network.listen((host, port), protocol)

    async def resolve(self, name: str) -> str:
        """Return an address of a host name; raises OSError."""
        return self._network.resolve(name)


class VirtualAlarm:
    """An alarm of the virtual clock."""

    def __init__(self, loop: VirtualLoop, callback: Callable[[int], int | None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def now_ns(self) -> int:
        """Return the virtual clock."""
        return self._loop.now_ns

    def arm(self, deadline_ns: int) -> None:
        """Set the deadline, in place of an earlier one; one that has passed already is due at once, 0 is none."""
        self.close()
        if deadline_ns:
            self._handle = self._loop.call_at_ns(deadline_ns, self._expire)

    def close(self) -> None:
        """Never call back again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _expire(self) -> None:
        deadline_ns = self._callback(self._loop.now_ns)
        self.arm(deadline_ns or 0)
