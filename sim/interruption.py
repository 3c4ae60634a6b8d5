"""Interruption: what ends the program at once, as long as there is nothing that has to be ended in order.

Theory of operation. From its first line on (`sim.__main__`) the program leaves at a signal of the user: importing,
reading, checking and verifying leave nothing behind. Not by an exception, which would come between any two lines: where
Python is clearing something away it prints the exception and forgets it, and other code may catch it. What has to be
brought to an end, processes and the results of a run, holds the signals back meanwhile (`sim.process.Signals`).
"""

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
"""Ctrl-C, what kill(1), timeout(1) and service managers send, Ctrl-backslash, and the end of the terminal."""

EXIT_INTERRUPTED: Final = 130

_STANDARD_ERROR: Final = 2


def leave_when_interrupted() -> None:
    """Have each signal of the user end the program, with one line, unless whoever started it has that ignored."""
    for signum in INTERRUPTS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _leave)


def ignore_interrupts() -> None:
    """Have no signal of the user do anything any more: all is done and told, and Python takes its time to leave."""
    for signum in INTERRUPTS:
        signal.signal(signum, signal.SIG_IGN)


def _leave(signum: int, _frame: "FrameType | None") -> None:
    if signum in signal.pthread_sigmask(signal.SIG_BLOCK, ()):  # it is held back, and has come by way of another thread
        signal.raise_signal(signum)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)  # one line is enough
    with suppress(OSError):
        line = b"kongsim: interrupted\n"
        os.write(_STANDARD_ERROR, b"\n" + line if os.isatty(_STANDARD_ERROR) else line)  # there it is behind a ^C
    os._exit(EXIT_INTERRUPTED)
