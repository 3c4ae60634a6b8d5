"""Peers: the processes around the gateway under test (origin, collector, load), all of one shape.

The parent forks a peer and holds the other end of its pipe. On `"report"` the peer sends its report back, a plain dict.
On `"stop"`, on the pipe's end of file and on SIGTERM it stops, sends its final report, and exits with 0; one that
comes to its own end (load) does the same unasked. So the last dict before the pipe's end of file is the final one.
Any other order is the peer's own, such as a fault that begins or ends.
SIGINT, SIGQUIT and SIGHUP are ignored: from the keyboard, and when the terminal is closed, they reach every process of
it, and it is the parent that decides.

The event loop is made here, after the fork: an epoll descriptor shared with the parent would serve neither.
"""

import asyncio
import contextlib
import gc
import signal
from typing import TYPE_CHECKING, Any

import uvloop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sim.process import Connection

__all__ = ["run"]


def run(
    control: "Connection",
    main: "Callable[[asyncio.Event], Awaitable[None]]",
    report: "Callable[[], dict[str, Any]]",
    obey: "Callable[[Any], object] | None" = None,
) -> None:
    """Run a peer in this freshly forked process until it ends.

    Args:
        control: The peer's end of the pipe.
        main: What the peer does. Given an event that is set when it shall stop; it may return earlier.
        report: The report as of now; called at any time once the event loop runs.
        obey: Takes the orders that are the peer's own; without it there are none.
    """
    for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    gc.freeze()  # the parent's objects are never garbage here: walking them would stall the loop for milliseconds
    uvloop.run(_run(control, main, report, obey))


async def _run(
    control: "Connection",
    main: "Callable[[asyncio.Event], Awaitable[None]]",
    report: "Callable[[], dict[str, Any]]",
    obey: "Callable[[Any], object] | None",
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def take() -> None:
        try:
            order = control.recv()
        except (EOFError, OSError):  # the parent is gone, or about to go
            order = "stop"
        if order == "report":
            control.send(report())
        elif order == "stop":
            loop.remove_reader(control.fileno())
            stop.set()
        elif obey is not None:
            obey(order)

    loop.add_reader(control.fileno(), take)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await main(stop)
    loop.remove_reader(control.fileno())
    with contextlib.suppress(OSError):  # nobody is left to read it
        control.send(report())
