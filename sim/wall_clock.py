"""The wall clock, which can be set: how far it has been since it was last looked at.

What sets it little by little (adjtime(3), NTP's slewing, 0.5 ms in a second) is no step; an operator, NTP after a long
sleep, or a virtual machine that was stopped makes one. Times in s.
"""

import time
from collections.abc import Callable
from typing import Final

STEP_S_MIN: Final = 0.1
"""What counts as a step: more than slewing makes between two looks, less than NTP steps by (128 ms)."""


_NS_PER_S: Final = 1_000_000_000


class WallClock:
    """The wall clock beside one that nobody sets.

    Args:
        time_ns: reads it, ns.
        steady_ns: reads the other, ns.
    """

    def __init__(self, time_ns: Callable[[], int], steady_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._time_ns = time_ns
        self._steady_ns = steady_ns
        self._ahead_ns = time_ns() - steady_ns()

    def step_s(self) -> float:
        """Return by how much the clock has been set forward since the last look (back if negative); 0: not at all."""
        ahead_ns = self._time_ns() - self._steady_ns()
        step_s, self._ahead_ns = (ahead_ns - self._ahead_ns) / _NS_PER_S, ahead_ns
        return step_s if abs(step_s) >= STEP_S_MIN else 0.0
