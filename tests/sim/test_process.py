"""Children that never outlive their parent, and signals that come as messages."""

import functools
import gc
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from sim import process
from sim.errors import UserError
from sim.interruption import INTERRUPTS, leave_when_interrupted
from tests.peers import free_port

TIMEOUT_S = 20.0


def _tell_and_wait(control, *, parent=None):
    """Send one's pid, then wait for the pipe's end of file."""
    control.send(os.getpid())
    with pytest.raises(EOFError):
        control.recv()


def _started(target, *args, **options):
    ours, theirs = process.pipe()
    child = process.start(target, theirs, *args, name="child", closing=[ours], **options)
    theirs.close()
    return child, ours


def test_child_runs_its_target_and_exits_with_0():
    """A child runs its target with the arguments given and exits with 0."""
    child, control = _started(lambda control, word: control.send(word * 2), "ab")

    assert control.recv() == "abab"
    assert process.reap(child, TIMEOUT_S) == 0


def test_child_exits_with_the_code_that_it_chose():
    """The code of `sys.exit` is the child's exit code."""
    child, _control = _started(lambda _control: sys.exit(7))

    assert process.reap(child, TIMEOUT_S) == 7


def test_shared_counter_gives_each_number_once():
    """However many processes count at the same time."""
    counter, rounds = process.SharedCounter(), 30_000
    assert counter.numbers()() == 1

    def count(control):
        number = counter.numbers()
        control.send([number() for _ in range(rounds)])

    children = [_started(count) for _ in range(3)]

    given = [number for _child, control in children for number in control.recv()]

    assert sorted(given) == list(range(2, 2 + 3 * rounds))
    assert [process.reap(child, TIMEOUT_S) for child, _control in children] == [0] * 3


def test_child_starts_with_default_handlers_and_nothing_blocked():
    """What the parent does about signals is not inherited, but for ignoring what Python ignores."""

    def tell(control):
        callables = [int(s) for s in signal.valid_signals() if callable(signal.getsignal(s))]
        control.send((callables, signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGPIPE)))

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with process.Signals(signal.SIGUSR2):
            child, control = _started(tell)
            assert control.recv() == ([], set(), signal.SIG_IGN)
            process.reap(child, TIMEOUT_S)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_parent_keeps_its_signal_mask():
    """Forking leaves the parent's blocked signals as they were."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    child, _control = _started(lambda _control: None)

    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    process.reap(child, TIMEOUT_S)


def test_child_ignores_from_its_birth_what_it_is_told_to_ignore():
    """A signal named in `ignoring` does nothing, however early it comes."""
    for _ in range(20):
        child, control = _started(_tell_and_wait, ignoring=[signal.SIGINT])
        process.kill(child, signal.SIGINT)
        control.recv()
        control.close()
        assert process.reap(child, TIMEOUT_S) == 0


def test_signal_to_a_newborn_child_is_not_handled_by_its_parents_handler():
    """A signal that arrives right after the fork finds the default action, however early it comes."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(os.getpid()))
    try:
        for _ in range(20):
            child, _control = _started(_tell_and_wait)
            child.terminate()
            assert process.reap(child, TIMEOUT_S) == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == []


def test_child_sees_the_end_of_its_pipe():
    """A child that closes its parent's end of the pipe is told when the parent closes it too."""
    child, control = _started(_tell_and_wait)
    control.recv()

    control.close()

    assert process.reap(child, TIMEOUT_S) == 0


def test_child_does_not_keep_a_port_open_that_is_not_its_own():
    """A listening socket handed over in `closing` refuses connections as soon as its owner closes it."""
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        address = listener.getsockname()
        ours, theirs = process.pipe()
        child = process.start(_tell_and_wait, theirs, name="child", closing=[ours, listener])
        theirs.close()
        ours.recv()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    ours.close()
    process.reap(child, TIMEOUT_S)


def _parent_of_a_stuck_child(control):
    def stuck(control):
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        control.send(os.getpid())
        while True:
            time.monotonic()

    process.start(stuck, control, name="grandchild")
    _tell_and_wait(control)


def test_killing_the_parent_kills_a_child_that_is_stuck(ended):
    """After `kill -9` of its parent not even a child is left that ignores signals and never waits."""
    parent, control = _started(_parent_of_a_stuck_child)
    pids = {control.recv(), control.recv()}
    (grandchild,) = pids - {parent.pid}
    descriptor = os.pidfd_open(grandchild)

    parent.kill()

    assert ended(descriptor)
    assert process.reap(parent, TIMEOUT_S) == -signal.SIGKILL


def test_child_whose_parent_died_before_it_could_ask_for_its_death_ends_itself():
    """A child that finds itself adopted already exits without running its target."""
    ours, theirs = process.pipe()
    stranger = os.getppid()
    child = process._fork.Process(
        target=process._run_child, args=(stranger, (), (), lambda control: control.send("ran"), (theirs,))
    )
    child.start()
    theirs.close()

    assert process.reap(child, TIMEOUT_S) == 1
    with pytest.raises(EOFError):
        ours.recv()


def test_reap_kills_a_child_that_stays_too_long():
    """`reap` returns only when the child is gone, and says by which signal."""
    child, control = _started(_tell_and_wait)
    control.recv()

    assert process.reap(child, 0.01) == -signal.SIGKILL


def test_wait_returns_when_a_child_has_ended():
    """A child's sentinel can be waited for together with connections."""
    child, control = _started(lambda _control: None)

    assert child.sentinel in process.wait([child.sentinel, control], TIMEOUT_S)
    process.reap(child, TIMEOUT_S)


def test_send_signal_reaches_the_child_of_another_process():
    """A grandchild is signalled when it is named with its own parent."""
    parent, control = _started(_parent_of_a_stuck_child)
    (grandchild,) = {control.recv(), control.recv()} - {parent.pid}

    assert process.send_signal(grandchild, signal.SIGKILL, parent_pid=parent.pid) is True

    control.close()
    assert process.reap(parent, TIMEOUT_S) == 0


def test_send_signal_spares_a_stranger():
    """A living process that is not a child of the parent named is not signalled."""
    child, control = _started(_tell_and_wait)
    control.recv()

    assert process.send_signal(child.pid, signal.SIGKILL, parent_pid=os.getppid()) is False

    control.close()
    assert process.reap(child, TIMEOUT_S) == 0


def test_send_signal_reports_that_nobody_is_there():
    """A pid that is free, or a child that is dead but not reaped, is not signalled."""
    child, _control = _started(lambda _control: None)
    process.wait([child.sentinel], TIMEOUT_S)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert process.send_signal(child.pid, signal.SIGKILL, parent_pid=os.getpid()) is False
    process.reap(child, TIMEOUT_S)
    assert process.send_signal(child.pid, signal.SIGKILL, parent_pid=os.getpid()) is False


def alone(test):
    """Run a test in a child with one thread: whatever library has left another one here, a signal may go to that."""

    @functools.wraps(test)
    def run():
        assert process.reap(process.start(test, name=test.__name__), TIMEOUT_S) == 0

    return run


@alone
def test_signals_come_as_messages_with_their_sender():
    """A signal taken names its sender and runs no handler."""
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    try:
        with process.Signals(signal.SIGUSR1, signal.SIGINT) as signals:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGUSR1)

            assert process.wait([signals], TIMEOUT_S) == [signals]
            assert sorted(signals.take()) == [(signal.SIGINT, os.getpid()), (signal.SIGUSR1, os.getpid())]
            assert signals.take() == []
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == []


@alone
def test_a_signal_that_another_thread_takes_is_held_back_too():
    """A library may have made one, or a plugin of the user, which has not blocked what this thread has."""
    leave_when_interrupted()
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    with process.Signals(*INTERRUPTS) as signals:
        for signum in INTERRUPTS:
            os.kill(os.getpid(), signum)
            while not (taken := signals.take()):
                pass
            assert taken == [(signum, os.getpid())]
    over.set()
    thread.join()


@alone
def test_signals_of_a_process_that_is_about_to_end_do_not_kill_it():
    """A second one may come when the first has ended all but the process itself."""

    def end():
        with process.Signals(signal.SIGQUIT, until_exit=True):
            pass
        os.kill(os.getpid(), signal.SIGQUIT)

    child = process.start(end, name="ending")
    child.join(30)
    assert child.exitcode == 0


@alone
def test_signals_not_taken_are_forgotten_at_the_end():
    """Closing leaves no signal pending that would end the process afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with process.Signals(signal.SIGUSR1):
        os.kill(os.getpid(), signal.SIGUSR1)

    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert signal.sigpending() == set()


@alone
def test_death_of_a_child_comes_as_a_message():
    """SIGCHLD names the child that has ended."""
    with process.Signals(signal.SIGCHLD) as signals:
        child, _control = _started(lambda _control: None)

        assert process.wait([signals], TIMEOUT_S) == [signals]
        assert signals.take() == [(signal.SIGCHLD, child.pid)]
        process.reap(child, TIMEOUT_S)


def test_pid_file_holds_the_pid_while_it_stands(tmp_path):
    """It is written at the start and gone at the end."""
    path = tmp_path / "kongsim.pid"
    with process.PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"

    assert not path.exists()


def test_pid_file_that_a_living_process_holds_is_refused(tmp_path):
    """The message names the file, the pid and what to do; the file stays as it was."""
    path = tmp_path / "kongsim.pid"
    with process.PidFile(path):
        with pytest.raises(UserError) as caught:
            process.PidFile(path)

        pid = os.getpid()
        cure = f"end it with kill -QUIT {pid}, or write another file"
        assert str(caught.value) == f"pid: {path}: already running, with pid {pid}; {cure}"
        assert path.read_text() == f"{pid}\n"


def test_pid_file_that_a_crash_left_behind_is_taken_over(tmp_path):
    """A pid in it, even that of a living process, says nothing when nobody holds the file."""
    path = tmp_path / "kongsim.pid"
    path.write_text("1\n")

    with process.PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_pid_file_in_a_missing_folder_is_a_mistake_of_the_user(tmp_path):
    """One line, no traceback."""
    with pytest.raises(UserError, match=r"^pid: cannot write .*: No such file or directory; write the path of a file"):
        process.PidFile(tmp_path / "missing" / "kongsim.pid")


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_device_is_no_pid_file(device):
    """It is refused in one line, stays where it is, and nothing is left open."""
    gc.collect()  # what an earlier test has left in a cycle would close its descriptors at any time
    opened = [*map(str, Path("/proc/self/fd").iterdir())]

    with pytest.raises(UserError, match=f"^pid: cannot write {device}: Invalid argument; write the path of a file"):
        process.PidFile(Path(device))

    assert Path(device).exists()
    assert [*map(str, Path("/proc/self/fd").iterdir())] == opened


def test_pid_file_that_a_full_disk_does_not_take_is_not_left_behind(tmp_path):
    """An empty one would say that somebody runs, and not who."""
    path = tmp_path / "kongsim.pid"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(UserError, match=r"^pid: cannot write .*: File too large; write the path of a file"):
            process.PidFile(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert not path.exists()
