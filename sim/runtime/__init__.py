"""The runtime: where gateway code gets time, randomness, connections and delays from.

Phases, plugins, instrumentation, timers and the exporter never ask the operating system; they ask the `Runtime` of
their worker. The live one (`sim.runtime.live`) is uvloop with real sockets. Times: `time_ns` is the wall clock in ns
since the epoch; `now` is monotonic, in s; delays are in s.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol


class Cancelable(Protocol):
    """A delayed call that has not happened yet."""

    def cancel(self) -> object:
        """See to it that it does not happen."""


class Runtime(Protocol):
    """What the world offers to a worker."""

    def time_ns(self) -> int:
        """Return the wall clock, ns since the epoch."""

    def now(self) -> float:
        """Return the monotonic clock, s."""

    def random_bytes(self, count: int) -> bytes:
        """Return `count` random bytes; no two workers draw the same."""

    def random(self) -> float:
        """Return a random number, 0 <= x < 1."""

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> Cancelable:
        """Call back after the current turn of the event loop, before it waits again."""

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: object) -> Cancelable:
        """Call back in `delay_s` s."""

    def run(self, thread: Awaitable[object], done: Callable[[BaseException | None], object]) -> Cancelable:
        """Run a light thread; `done` gets the exception that ended it, or None."""

    def connect(self, host: str, port: int, protocol: Callable[[], asyncio.BaseProtocol]) -> Awaitable[object]:
        """Open a TCP connection to an address; raises OSError."""

    def resolve(self, name: str) -> Awaitable[str]:
        """Return an address of a host name; raises OSError."""
