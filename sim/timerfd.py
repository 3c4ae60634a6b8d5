"""A timer finer than the event loop's: a deadline in nanoseconds on a descriptor of the kernel (timerfd_create(2)).

uvloop rounds delays to whole milliseconds (libuv's clock has no finer step), which is longer than a fast gateway takes
to answer: arrivals and latencies drawn from a distribution would all be wrong by up to one. A timerfd is readable some
50 µs after its deadline. Waking up a sleeping process is what costs (20 µs of CPU and more on a virtual machine), so
wake-ups are kept `SPACING_NS` apart, and deadlines in between are served together, at most that late.

Linux only. Times in nanoseconds of `time.monotonic_ns`.
"""

import ctypes
import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)

_CLOCK_MONOTONIC: Final = 1  # <linux/time.h>, the clock of `time.monotonic_ns`
_TFD_TIMER_ABSTIME: Final = 1  # <sys/timerfd.h>
_TFD_CLOEXEC_NONBLOCK: Final = os.O_CLOEXEC | os.O_NONBLOCK  # <sys/timerfd.h> defines them as these
_ITimerSpec = ctypes.c_long * 4  # struct itimerspec: interval s, ns; value s, ns
_NS_PER_S: Final = 1_000_000_000

SPACING_NS: Final = 200_000
"""Least time between a wake-up and the next: 5000 a second at most."""


class TimerFd:
    """Calls back on the event loop once its deadline has passed.

    Args:
        loop: The running event loop.
        callback: Called with the time now; returns the next deadline, None for none.
    """

    def __init__(self, loop: "asyncio.AbstractEventLoop", callback: "Callable[[int], int | None]") -> None:
        self._fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_CLOEXEC_NONBLOCK)
        if self._fd < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), "timerfd_create")
        self._spec = _ITimerSpec()
        self._loop = loop
        self._callback = callback
        loop.add_reader(self._fd, self._expire)

    @staticmethod
    def now_ns() -> int:
        """Return the time of `time.monotonic_ns`."""
        return time.monotonic_ns()

    def arm(self, deadline_ns: int) -> None:
        """Set the deadline, in place of an earlier one; one that has passed already is due at once, 0 is none."""
        spec = self._spec
        spec[2], spec[3] = divmod(deadline_ns, _NS_PER_S)
        _libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, spec, None)

    def close(self) -> None:
        """Give the descriptor back."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _expire(self) -> None:
        now_ns = time.monotonic_ns()
        deadline_ns = self._callback(now_ns)
        # Arming also takes the readiness back, so there is nothing to read.
        self.arm(0 if deadline_ns is None else max(deadline_ns, now_ns + SPACING_NS))
