"""The runtime: where gateway code gets time, randomness, connections and delays from.

Phases, plugins, instrumentation, timers and the exporter never ask the operating system; they ask the `Runtime` of
their worker. There are two: the live one (`sim.runtime.live`) is uvloop with real sockets, the virtual one
(`sim.runtime.virtual`) a clock that moves only when everybody waits, with a network in memory. Each runs on an asyncio
event loop, so futures, tasks and `asyncio.timeout` go by the runtime's time too.

Times: `time_ns` is the wall clock in ns since the epoch; `now` is monotonic, in s; delays are in s.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, Final, NamedTuple, Protocol

from sim.light_thread import LightThread

NO_SUCH_NAME: Final = socket.EAI_NONAME
"""Number of the error that `Runtime.resolve` raises for a name that does not exist; others say that nobody knows."""


class ConnectTimeoutError(OSError):
    """No connection within the time given."""


class Tls(NamedTuple):
    """How a connection is secured.

    Attributes:
        context: what is checked, and against whom.
        server_name: whose certificate is expected, and asked for (SNI).
    """

    context: ssl.SSLContext
    server_name: str


class Cancelable(Protocol):
    """A delayed call that has not happened yet."""

    def cancel(self) -> object:
        """See to it that it does not happen."""


class Listener(Protocol):
    """Accepts connections.

    Attributes:
        address: where, with the port that was chosen.
    """

    address: tuple[str, int]

    def close(self) -> None:
        """Accept no more; what is connected stays so."""


class Alarm(Protocol):
    """Calls back once its deadline has passed, more finely than `Runtime.call_later`; ns of a clock of its own.

    The callback gets the time now and returns the next deadline, None for none.
    """

    def now_ns(self) -> int:
        """Return the time of its clock."""

    def arm(self, deadline_ns: int) -> None:
        """Set the deadline, in place of an earlier one; one that has passed already is due at once, 0 is none."""

    def close(self) -> None:
        """Never call back again."""


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

    def call_soon(
        self, callback: Callable[..., object], *arguments: object, context: Context | None = None
    ) -> Cancelable:
        """Call back after the current turn of the event loop, before it waits again."""

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: object) -> Cancelable:
        """Call back in `delay_s` s, in an empty context (`contextvars`)."""

    def alarm(self, callback: Callable[[int], int | None]) -> Alarm:
        """Make an alarm; it is not armed."""

    def spend_cpu(self, seconds: float) -> None:
        """Compute for that many s of CPU time, and let nobody else run meanwhile."""

    def run(self, thread: LightThread, done: Callable[[BaseException | None], object]) -> Cancelable:
        """Run a light thread; `done` gets the exception that ended it, or None, when its tasks have ended too."""

    def connect(self, host: str, port: int, protocol: Callable[[], Any], tls: Tls | None = None) -> Awaitable[object]:
        """Open a TCP connection to an address, secured by `tls`, and return its protocol; raises OSError."""

    def unsent_bytes(self, transport: asyncio.Transport) -> int:
        """Return the bytes that were written and that the other side's system has not acknowledged."""

    def listen(self, host: str, port: int, protocol: Callable[[], Any]) -> Awaitable[Listener]:
        """Accept TCP connections at an address, port 0 being any that is free; raises OSError."""

    def resolve(self, name: str) -> Awaitable[str]:
        """Return an address of a host name; raises OSError."""
