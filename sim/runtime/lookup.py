"""Look-ups of host names in the system, each in a thread of its own: getaddrinfo(3) waits, and there is no other way.

Theory of operation. uvloop's look-ups are libuv's, which runs two at once: two names whose servers are silent keep all
others waiting. Here up to `LOOKUPS_MAX` run at once, and more wait in line. A thread that is amid a look-up cannot be
told to stop; so they are daemons, whose end nobody awaits: a worker leaves when it wants to (kong-semantics W2), and
what is found after that is dropped. A thread looks up and does nothing else; all the rest is done in turns of the loop.
It is started when it is needed, which is rare, as answers are kept (`sim.resolver`), and ends with its answer.
"""

import asyncio
import errno
import socket
import threading
from collections import deque
from contextlib import suppress
from typing import Any, Final

LOOKUPS_MAX: Final = 128
"""Look-ups at once: more than an upstream has names as a rule, so that one whose names are dead harms no other."""

Found = list[tuple[Any, ...]]
"""What getaddrinfo(3) has found."""


class Lookups:
    """The look-ups of one worker.

    Args:
        loop: in whose turns it is called and calls back.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running = 0
        self._waiting: deque[tuple[str, asyncio.Future[Found]]] = deque()

    def start(self, name: str) -> "asyncio.Future[Found]":
        """Look a name up as soon as may be; what getaddrinfo(3) finds, or raises."""
        answer: asyncio.Future[Found] = self._loop.create_future()
        self._waiting.append((name, answer))
        self._go_on()
        return answer

    def _go_on(self) -> None:
        while self._waiting and self._running < LOOKUPS_MAX:
            name, answer = self._waiting.popleft()
            thread = threading.Thread(target=self._look_up, args=(name, answer), name="look-up", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system has no thread left
                _settle(answer, OSError(errno.EAGAIN, str(error)))
            else:
                self._running += 1

    def _look_up(self, name: str, answer: "asyncio.Future[Found]") -> None:
        found: Found | Exception
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except Exception as error:  # noqa: BLE001 - it is raised to whoever wants the name
            found = error
        with suppress(RuntimeError):  # the loop is closed: the worker has left
            self._loop.call_soon_threadsafe(self._end, answer, found)

    def _end(self, answer: "asyncio.Future[Found]", found: Found | Exception) -> None:
        self._running -= 1
        _settle(answer, found)
        self._go_on()


def _settle(answer: "asyncio.Future[Found]", found: Found | Exception) -> None:
    if answer.done():
        return  # whoever waited has given up
    if isinstance(found, Exception):
        answer.set_exception(found)
    else:
        answer.set_result(found)
