"""Processes: fork, signal, reap, and nothing else.

The one module that knows `multiprocess` and what Linux offers around it, as nginx keeps such things in `os/unix`.

Theory of operation. A child is forked with every signal blocked and unblocks them once it stands on its own feet:
Python's handlers reset to the default action, its parent's wake-up descriptor forgotten, the death of its parent
bound to its own (`PR_SET_PDEATHSIG`). A signal sent in between stays pending and is neither lost nor handled by the
parent's handler. Whoever's parent is killed with -9 is killed by the kernel, and so are its children in turn: no
orphan is left, also not of a child that is stuck in a loop, which is why the signal is KILL.
The kernel binds that to the *thread* that forked, so only main threads fork here.

Signals reach a long-lived parent as messages on a descriptor (signalfd(2)), never as handlers: there is no code that
may run between any two others, and the sender's pid comes with them, which nginx prints.

Linux only. Times in seconds.
"""

import ctypes
import fcntl
import os
import signal
import struct
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from weakref import finalize

import multiprocess
import multiprocess.connection

from sim.errors import UserError

if TYPE_CHECKING:
    # `multiprocess` carries no types; its surface is that of the standard library's module.
    from collections.abc import Iterable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess as Process
    from typing import Any, Protocol

    class Closable(Protocol):
        """A socket, connection or file."""

        def close(self) -> None: ...

    class HasFileno(Protocol):
        """What can be waited for: a socket, connection, `Signals`."""

        def fileno(self) -> int: ...

else:
    from multiprocess.connection import Connection
    from multiprocess.context import ForkProcess as Process

__all__ = [
    "Connection",
    "PidFile",
    "Process",
    "SharedCounter",
    "Signals",
    "has_terminal",
    "kill",
    "pipe",
    "reap",
    "run",
    "send_signal",
    "start",
    "wait",
]

_fork = multiprocess.get_context("fork")
_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
_SFD_CLOEXEC_NONBLOCK: Final = os.O_CLOEXEC | os.O_NONBLOCK  # <sys/signalfd.h> defines them as these
_SIGSET_BYTES: Final = 128  # sizeof(sigset_t), glibc and musl
_SIGINFO: Final = struct.Struct("=IiiI112x")  # signalfd_siginfo: signo, errno, code, pid, the rest


def start(
    target: "Callable[..., object]",
    *args: object,
    name: str,
    closing: "Iterable[Closable]" = (),
    ignoring: "Iterable[signal.Signals]" = (),
) -> Process:
    """Fork a child that runs `target(*args)` and exits: 0, the code of a `SystemExit`, or 1 after an exception.

    Args:
        target: What the child runs, with default signal handlers and no signal blocked, until its parent dies at most.
        args: Handed over by the fork itself: nothing is pickled, so sockets and locks are fine.
        name: Shown in messages.
        closing: What the child inherits but shall not keep, such as the parent's end of its pipe (whose end of file it
            could not see otherwise) and other processes' listening sockets (which would go on accepting in its hands).
        ignoring: Signals that do nothing to the child from its birth on.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        inherited = os.getpid(), tuple(closing), tuple(ignoring), target, args
        child: Process = _fork.Process(target=_run_child, args=inherited, name=name)
        child.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return child


def _run_child(
    parent_pid: int,
    closing: "tuple[Closable, ...]",
    ignoring: "tuple[signal.Signals, ...]",
    target: "Callable[..., object]",
    args: "tuple[object, ...]",
) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent_pid:  # it died before the line above, so its death will not be told
        os._exit(1)
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        if callable(signal.getsignal(signum)):  # what Python ignores (SIGPIPE) stays ignored
            signal.signal(signum, signal.SIG_DFL)
    for signum in ignoring:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for resource in closing:
        resource.close()
    target(*args)


def run(program: str, *arguments: str, folder: Path) -> tuple[int, str]:
    """Run another program to its end; return its exit code and what it wrote to standard error.

    It comes to its end also when this process is interrupted meanwhile: half of its work could not be undone.

    Raises:
        FileNotFoundError: there is no such program.
    """
    command = [program, *arguments]
    nothing, out = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdin=nothing, stdout=nothing, stderr=out, text=True) as child:  # noqa: S603 - no shell
        try:
            _out, told = child.communicate()
        except BaseException:
            child.wait()
            raise
    return child.returncode, told


def kill(process: Process, signum: int) -> None:
    """Signal a child of this process; once it has ended there is nobody to be signalled."""
    if process.exitcode is None:  # so it is not reaped, and the pid is its own
        assert process.pid is not None
        os.kill(process.pid, signum)


def reap(process: Process, timeout_s: float) -> int:
    """Wait for a child to end, kill it when it takes longer than `timeout_s`; return its exit code, -N for signal N."""
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        process.join()
    exit_code = process.exitcode
    assert exit_code is not None
    return exit_code


def pipe() -> tuple[Connection, Connection]:
    """Make a two-way pipe of Python objects."""
    ends: tuple[Connection, Connection] = _fork.Pipe()
    return ends


def wait(objects: "Sequence[HasFileno | int]", timeout_s: float | None) -> "list[Any]":
    """Wait until any of `objects` can be read (a child's `sentinel`: has ended), at most `timeout_s`; return these."""
    ready: list[Any] = multiprocess.connection.wait(objects, timeout_s)
    return ready


def send_signal(pid: int, signum: int, *, parent_pid: int) -> bool:
    """Signal the child `pid` of another process, `parent_pid`; False when there is no such living child.

    A pid may be taken over by a stranger at any moment. The descriptor cannot: it is opened first, then what it
    stands for is checked, then signalled.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError):
        return False
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[:2]
        if int(parent) != parent_pid or state in "ZX":
            return False
        signal.pidfd_send_signal(descriptor, signum)
    except (ProcessLookupError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)
    return True


class SharedCounter:
    """Counts up, together with all processes that are forked after it was made; each number is given once, 1 first.

    It is the size of a file in memory. A byte that is appended gets a place of its own, whoever appends at the same
    time, and leaves the offset behind it (open(2), O_APPEND). So there is no lock that one who is killed could leave
    held. An offset that processes share would not do: Linux moves it for two of them at once (seen on 6.18).
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("counter")
        finalize(self, os.close, self._file)

    def numbers(self) -> Callable[[], int]:
        """Return what gives the next number, in this process alone: one that is forked then asks again."""
        own = os.open(f"/proc/self/fd/{self._file}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

        def number() -> int:
            os.write(own, b"\0")
            return os.lseek(own, 0, os.SEEK_CUR)

        finalize(number, os.close, own)
        return number


class Signals:
    """Signals as messages: blocked while this stands, and read from a descriptor that `wait` can wait for.

    To be made before any thread, since a signal goes to whichever thread has not blocked it.

    Args:
        signums: which.
        until_exit: they stay blocked when this is closed: the process is about to end, and one more shall not kill it.
    """

    def __init__(self, *signums: signal.Signals, until_exit: bool = False) -> None:
        self._until_exit = until_exit
        mask = sum(1 << (signum - 1) for signum in signums).to_bytes(_SIGSET_BYTES, "little")
        self._unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
        self._descriptor: int = _libc.signalfd(-1, mask, _SFD_CLOEXEC_NONBLOCK)
        if self._descriptor < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), "signalfd")

    def fileno(self) -> int:
        """Return the descriptor; it can be read when a signal has come."""
        return self._descriptor

    def take(self) -> list[tuple[signal.Signals, int]]:
        """Return the signals that have come since the last call, each with the pid of its sender (0: the kernel)."""
        taken: list[tuple[signal.Signals, int]] = []
        while True:
            try:
                signum, _errno, _code, pid = _SIGINFO.unpack(os.read(self._descriptor, _SIGINFO.size))
            except BlockingIOError:
                return taken
            taken.append((signal.Signals(signum), pid))

    def close(self) -> None:
        """Forget the signals that were not taken and let later ones do what they did before, if any shall."""
        self.take()
        os.close(self._descriptor)
        if not self._until_exit:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._unblocked)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def has_terminal() -> bool:
    """Whether this process has a controlling terminal, which a daemon has not."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class PidFile:
    """A file that holds the pid of this process while it stands; None for no file.

    It is locked as long as its process or a child of it lives, so what a crash has left behind is in nobody's way and a
    living holder is never overlooked, whatever pids have been given to others since.

    Raises:
        UserError: It cannot be written, or another process holds it.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is None:
            return
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._take(path)
        except OSError as error:
            cure = "write the path of a file in a folder that exists and may be written to"
            raise UserError(f"cannot write {path}: {error.strerror}", field="pid", cure=cure) from None

    def _take(self, path: Path) -> None:
        """Lock the file and write the pid; what fails leaves no descriptor, and no file without a pid."""
        with ExitStack() as undone:
            undone.callback(os.close, self._descriptor)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = path.read_text(errors="replace").strip()
                cure = f"end it with kill -QUIT {pid}, or write another file" if pid else "write another file"
                raise UserError(f"{path}: already running, with pid {pid}", field="pid", cure=cure) from None
            os.ftruncate(self._descriptor, 0)  # a device refuses, so that none is ever removed
            undone.callback(path.unlink, missing_ok=True)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())
            undone.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
