"""A master with real workers and real signals, as nginx's."""

import os
import re
import socket
import sys
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from signal import SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH

import pytest

from sim import cycle, process
from sim.config import Gateway, parse_address
from sim.error_log import ErrorLog
from sim.errors import UserError
from sim.master import Master, serve
from sim.process import Signals
from sim.scoreboard import Scoreboard, State
from tests import peers, tiny_worker

TIMEOUT_S = 30.0


class Running:
    """A master in a process of its own, with its scoreboard in view."""

    def __init__(self, directory, worker_main, gateway, reread, *, daemon):
        self.scoreboard = Scoreboard(gateway.workers)
        self.log = directory / "error.log"
        self.control, theirs = process.pipe()
        error_log = ErrorLog(self.log)
        master = Master(
            gateway,
            self.scoreboard,
            error_log=error_log,
            reread=reread,
            worker_main=worker_main,
        )
        self.address = master.listeners[0].getsockname()
        self.process = process.start(
            partial(_cycle, master, theirs, daemon=daemon), name="master", closing=[self.control]
        )
        theirs.close()
        master.close()
        error_log.close()

    def wait_announced(self):
        assert self.control.poll(TIMEOUT_S)
        assert self.control.recv() == "announced"

    def wait_until(self, condition):
        """Wait until a reading of the scoreboard fulfils the condition, and return it."""
        for _ in range(int(TIMEOUT_S * 100)):
            if condition(reading := self.scoreboard.read()):
                return reading
            process.wait([self.process.sentinel], 0.01)
        raise AssertionError("it never came true")

    def signal(self, *signums):
        for signum in signums:
            os.kill(self.process.pid, signum)

    def exit_code(self):
        self.process.join(TIMEOUT_S)
        return self.process.exitcode

    def connect(self, address=None):
        """Return the pid of the worker that answers."""
        place = parse_address(address) if address else self.address
        with socket.create_connection(place, TIMEOUT_S) as connection, connection.makefile() as answer:
            return int(answer.readline())

    def alive(self):
        reading = self.wait_until(lambda reading: reading.alive and all(w.pid for w in reading.alive))
        return {worker.pid for worker in reading.alive}

    def wait_logged(self, text, times=1):
        """Wait until so many lines of the log begin so."""
        for _ in range(int(TIMEOUT_S * 100)):
            if sum(line.startswith(text) for line in self.logged()) >= times:
                return
            process.wait([self.process.sentinel], 0.01)
        raise AssertionError(f"it is not in the log: {self.logged()}")

    def logged(self):
        """Return the log's lines without their times and the writer's pid."""
        return [line.split("] ")[0].split("[")[1] + ": " + line.split(": ", 1)[1] for line in self.lines()]

    def lines(self):
        return self.log.read_text().rpartition("\n")[0].splitlines()  # the last one may not be whole yet

    def wait_refused(self, address=None):
        """Wait until nobody listens on an address."""
        place = parse_address(address) if address else self.address
        for _ in range(int(TIMEOUT_S * 100)):
            try:
                socket.create_connection(place, TIMEOUT_S).close()
            except ConnectionRefusedError:
                return
            process.wait([], 0.01)
        raise AssertionError(f"connections to {place} are accepted")


def _cycle(master, control, *, daemon):
    if daemon:
        os.setsid()
    sys.exit(master.cycle(lambda: control.send("announced")))


def free_address():
    """Return an address that nobody listens on."""
    return f"127.0.0.1:{peers.free_port()}"


@contextmanager
def running(
    directory, worker_main=tiny_worker.serve, *, workers=2, gateway=None, reread=None, announced=True, daemon=False
):
    master = Running(directory, worker_main, gateway or Gateway(workers=workers), reread, daemon=daemon)
    try:
        if announced:
            master.wait_announced()
        yield master
    finally:
        with suppress(ProcessLookupError):
            master.signal(SIGKILL)
        process.reap(master.process, TIMEOUT_S)


def serving(count, generation=None):
    """Build the condition that so many workers serve; with a generation, also that all others have left."""

    def condition(reading):
        served = [w.generation for w in reading.alive if w.state is State.SERVING and w.pid]
        left = generation is None or {w.generation for w in reading.alive} == {generation}
        return len(served) == count and left

    return condition


def test_all_workers_serve_when_the_master_says_so(tmp_path):
    """The announcement comes when each slot's worker is ready; requests are answered and counted."""
    with running(tmp_path, workers=3) as master:
        reading = master.scoreboard.read()
        assert [(w.slot, w.generation, w.serial, w.state) for w in reading.workers] == [
            (slot, 1, 1, State.SERVING) for slot in range(3)
        ]
        answered = {master.connect() for _ in range(5)}

        assert answered <= master.alive()
        master.wait_until(lambda reading: reading.sum("requests") == 5)


def test_killed_worker_is_respawned_and_its_count_stays(tmp_path):
    """After `kill -9` another worker takes the slot; what the dead one counted is kept, its spans are lost."""  # W11
    with running(tmp_path, workers=1) as master:
        (pid,) = master.alive()
        assert [master.connect() for _ in range(3)] == [pid] * 3
        master.wait_until(lambda reading: reading.sum("requests") == 3)

        os.kill(pid, SIGKILL)

        reading = master.wait_until(lambda reading: serving(1)(reading) and len(reading.workers) == 2)
        dead, fresh = reading.workers
        assert (dead.pid, dead.slot, dead.exit_code, fresh.slot, fresh.serial) == (pid, 0, -SIGKILL, 0, 2)
        assert master.connect() == fresh.pid != pid
        reading = master.wait_until(lambda reading: reading.sum("requests") == 4)
        assert (reading.ledger.lost_in_request, reading.ledger.open, reading.ledger.unaccounted) == (3, 1, 0)
        # A worker may serve before the master has said that it has started it.
        master.wait_logged(f"notice: start worker process {fresh.pid}")
        assert f"alert: worker process {pid} exited on signal 9" in master.logged()


def test_no_connection_is_refused_while_the_only_worker_is_dead(tmp_path):
    """The listening socket stays with the master: a connection waits for the next worker."""
    with running(tmp_path, workers=1) as master:
        for _ in range(5):
            (pid,) = master.alive()
            os.kill(pid, SIGKILL)

            assert master.connect() != pid


@pytest.mark.parametrize("signum", [SIGTERM, SIGINT, SIGQUIT])
def test_master_leaves_with_all_its_workers(tmp_path, ended, signum):
    """After TERM, INT or QUIT no process is left, every worker has exited with 0, and the port is closed."""  # W1, W2
    with running(tmp_path, gateway=Gateway(workers=2, listen=free_address())) as master:
        workers = [os.pidfd_open(pid) for pid in master.alive()]

        master.signal(signum)

        assert master.exit_code() == 0
        assert ended(*workers)
        assert [(w.state, w.exit_code) for w in master.scoreboard.read().workers] == [(State.EXITED, 0)] * 2
        with pytest.raises(ConnectionRefusedError):
            master.connect()


def test_log_tells_the_story_in_the_words_of_nginx(tmp_path):
    """Start, signal with its sender, exits and the end are in the error log, in nginx's format."""
    with running(tmp_path, workers=1) as master:
        (pid,) = master.alive()
        master.signal(SIGTERM)
        assert master.exit_code() == 0

        assert master.logged() == [
            "notice: start worker processes",
            f"notice: start worker process {pid}",
            f"notice: signal 15 (SIGTERM) received from {os.getpid()}, exiting",
            f"notice: signal 17 (SIGCHLD) received from {pid}",
            f"notice: worker process {pid} exited with code 0",
            "notice: exit",
        ]
        stamp = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d"
        writer = f"{master.process.pid}#{master.process.pid}"
        assert all(re.fullmatch(rf"{stamp} \[notice\] {writer}: .+", line) for line in master.lines())


def test_end_of_a_worker_is_told_after_its_signal_whenever_it_comes(tmp_path, monkeypatch):
    """Also when it comes between the two looks at what has happened: SIGCHLD was told later, or never."""
    may_leave, reap = tmp_path / "may leave", Master._reap

    def reluctant(args):
        with Signals(SIGTERM) as signals:
            args.ready.send(os.getpid())
            process.wait([signals], None)
            while not may_leave.exists():
                process.wait([], 0.01)

    def reap_late(master):
        if master._children and master._cycle.deadline_ns is not None:  # they were told to leave
            may_leave.touch()
            process.wait([child.sentinel for child, _record in master._children.values()], TIMEOUT_S)
        return reap(master)

    monkeypatch.setattr(Master, "_reap", reap_late)
    with running(tmp_path, reluctant, workers=1) as master:
        (pid,) = master.alive()
        master.signal(SIGTERM)
        assert master.exit_code() == 0

        assert master.logged()[-3:] == [
            f"notice: signal 17 (SIGCHLD) received from {pid}",
            f"notice: worker process {pid} exited with code 0",
            "notice: exit",
        ]


def test_killing_the_master_leaves_nothing(tmp_path, ended):
    """Workers do not outlive a master that is killed with -9, and the port is free."""
    with running(tmp_path, gateway=Gateway(workers=2, listen=free_address())) as master:
        workers = [os.pidfd_open(pid) for pid in master.alive()]

        master.signal(SIGKILL)

        assert master.exit_code() == -SIGKILL
        assert ended(*workers)
        with pytest.raises(ConnectionRefusedError):
            master.connect()


def test_workers_that_ignore_terminate_are_killed(tmp_path):
    """The escalation ends in KILL without being asked."""  # W9
    with running(tmp_path, tiny_worker.stubborn) as master:
        master.signal(SIGTERM)

        assert master.exit_code() == 0
        assert [w.exit_code for w in master.scoreboard.read().workers] == [-SIGKILL] * 2


def test_interrupting_twice_does_not_wait(tmp_path, monkeypatch):
    """A second Ctrl-C kills workers that do not leave; nothing is left behind."""  # W9
    monkeypatch.setattr(cycle, "ALARM_S_PATIENCE", 3600.0)  # the escalation would take that long to kill them
    with running(tmp_path, tiny_worker.defiant, workers=1) as master:
        master.signal(SIGINT)
        master.wait_logged("notice: heard SIGTERM", times=2)
        master.signal(SIGINT)

        assert master.exit_code() == 0
        assert sum("SIGINT" in line for line in master.logged()) == 2
        assert [w.exit_code for w in master.scoreboard.read().workers] == [-SIGKILL]


def test_terminate_while_workers_are_still_starting_leaves_nothing(tmp_path):
    """A master may be told to leave before a single worker serves."""
    with running(tmp_path, tiny_worker.never_ready, announced=False) as master:
        master.wait_until(lambda reading: len(reading.alive) == 2)
        master.signal(SIGTERM)

        assert master.exit_code() == 0
        assert master.scoreboard.read().alive == ()


def test_workers_that_fail_fatally_end_the_master_with_2(tmp_path):
    """A configuration that no worker can start with is not tried again."""  # W11
    with running(tmp_path, tiny_worker.fatal, announced=False) as master:
        assert master.exit_code() == 2
        assert [w.exit_code for w in master.scoreboard.read().workers] == [2, 2]


def test_mistake_of_the_user_found_by_a_worker_is_one_line(tmp_path, capfd):
    """A `UserError` in a worker is a fatal exit and a line of the log, not a traceback."""

    def mistaken(args):
        raise UserError("the plugin cannot be loaded", field="plugins[0]")

    with running(tmp_path, mistaken, workers=1, announced=False) as master:
        assert master.exit_code() == 2
        assert "emerg: plugins[0]: the plugin cannot be loaded" in master.logged()
    assert capfd.readouterr().err == ""


def test_worker_that_cannot_live_does_not_take_the_machine_with_it(tmp_path):
    """A slot that keeps dying is started less and less often, which the log says."""

    def short_lived(args):
        os._exit(1)

    with running(tmp_path, short_lived, workers=1, announced=False) as master:
        master.wait_until(lambda reading: len(reading.workers) >= 5)
        master.signal(SIGTERM)

        assert master.exit_code() == 0
        delays = [
            line for line in master.logged() if line.startswith("error: the worker process of slot 0 has died 4 times")
        ]
        assert len(delays) == 1


def test_reload_replaces_all_workers_without_refusing_anyone(tmp_path):
    """After HUP a new generation serves, the old one leaves, and the port never closes."""  # W10
    with running(tmp_path, reread=lambda: Gateway(profile="safe", workers=2)) as master:
        old = master.alive()

        master.signal(SIGHUP)

        master.wait_announced()
        reading = master.wait_until(lambda reading: len(reading.alive) == 2)
        assert {worker.generation for worker in reading.alive} == {2}
        assert {worker.pid for worker in reading.workers if worker.exit_code == 0} == old
        assert master.connect() in master.alive()
        hangups = [line for line in master.logged() if line.endswith(f"received from {os.getpid()}, reconfiguring")]
        assert hangups == [f"notice: signal 1 (SIGHUP) received from {os.getpid()}, reconfiguring"]


def test_reload_of_a_broken_configuration_changes_nothing(tmp_path):
    """The mistake is one line of the log; the old workers go on serving."""  # W10

    def broken():
        raise UserError("expected a whole number, not 'x'", file="kong.yml", line=3, field="workers")

    with running(tmp_path, reread=broken) as master:
        old = master.alive()
        master.signal(SIGHUP)
        master.wait_logged("emerg: kong.yml:3: workers: expected a whole number, not 'x'")

        assert master.connect() in old
        assert master.alive() == old


def test_reload_warns_of_what_it_leaves_aside(tmp_path):
    """As the start does on standard error: what is new in the file and has no effect is a line of the log."""
    warning = "kong.yml:3: plugins[0].name: plugin acl is not simulated"
    with running(tmp_path, reread=lambda: Gateway(workers=1, warnings=(warning,))) as master:
        master.signal(SIGHUP)
        master.wait_announced()

        assert master.logged().count(f"warn: {warning}") == 1


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_reload_changes_the_number_of_workers(tmp_path, before, after):
    """The new generation has as many workers as the new configuration says; every old one leaves."""  # W10
    with running(tmp_path, workers=before, reread=lambda: Gateway(workers=after)) as master:
        master.signal(SIGHUP)
        master.wait_announced()

        reading = master.wait_until(serving(after, generation=2))
        assert [worker.slot for worker in reading.alive] == list(range(after))
        old = [worker.exit_code for worker in reading.workers if worker.generation == 1]
        assert old == [0] * before


def test_reload_opens_new_addresses_closes_removed_ones_and_keeps_the_others(tmp_path):
    """The kept socket is the same one; the port of a removed address is closed once the old workers have left."""
    kept, removed, added = free_address(), free_address(), free_address()
    now = Gateway(workers=1, listen=f"{kept}, {removed}")
    later = Gateway(workers=1, listen=f"{kept}, {added}")
    with running(tmp_path, gateway=now, reread=lambda: later) as master:
        assert master.connect(kept) == master.connect(removed)
        with pytest.raises(ConnectionRefusedError):
            master.connect(added)

        master.signal(SIGHUP)

        master.wait_announced()
        master.wait_until(serving(1, generation=2))
        assert master.connect(kept) == master.connect(added)
        with pytest.raises(ConnectionRefusedError):
            master.connect(removed)


def test_reload_with_which_no_worker_can_start_leaves_all_as_it_was(tmp_path):
    """The old workers go on and are respawned again; an address that was to go is open, one that was to come is not."""
    removed, added = free_address(), free_address()

    def finicky(args):
        if args.gateway.profile == "safe":
            raise UserError("the plugin cannot be loaded", field="plugins[0]")
        tiny_worker.serve(args)

    now, later = Gateway(workers=2, listen=removed), Gateway(workers=2, listen=added, profile="safe")
    with running(tmp_path, finicky, gateway=now, reread=lambda: later) as master:
        old = master.alive()

        for generation in (2, 3):
            master.signal(SIGHUP)
            master.wait_logged(f"alert: no worker of generation {generation} can start: generation 1 goes on")

        assert master.logged().count("emerg: plugins[0]: the plugin cannot be loaded") == 4
        assert master.alive() == old
        master.wait_refused(added)  # it is closed when the log has said so
        os.kill(killed := master.connect(removed), SIGKILL)
        reading = master.wait_until(lambda r: killed not in {w.pid for w in r.alive} and serving(2, generation=1)(r))
        assert master.connect(removed) in {worker.pid for worker in reading.alive}


def test_reload_to_a_busy_address_keeps_the_old_generation(tmp_path):
    """What cannot be bound is one line of the log; the old workers go on, and nothing else was opened."""  # W10
    free = free_address()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        busy = f"127.0.0.1:{stranger.getsockname()[1]}"
        with running(tmp_path, workers=1, reread=lambda: Gateway(listen=[free, busy])) as master:
            old = master.alive()
            master.signal(SIGHUP)
            master.wait_logged(f"emerg: listen: cannot listen on {busy}: Address already in use; end the program that")

            assert master.connect() in old
            assert master.alive() == old
            with pytest.raises(ConnectionRefusedError):
                master.connect(free)


def test_reload_moves_the_error_log(tmp_path):
    """Master and workers of the new generation log to the new path; one that cannot be opened changes nothing."""
    moved, nowhere = tmp_path / "moved.log", tmp_path / "missing" / "error.log"
    configurations = iter([Gateway(workers=1, error_log=str(nowhere)), Gateway(workers=1, error_log=str(moved))])
    with running(tmp_path, workers=1, reread=lambda: next(configurations)) as master:
        master.signal(SIGHUP)
        master.wait_logged(f"emerg: error_log: cannot open {nowhere}: No such file or directory; write the path")
        master.signal(SIGHUP)
        master.wait_announced()
        master.wait_until(serving(1, generation=2))
        master.signal(SIGTERM)

        assert master.exit_code() == 0
        assert moved.read_text().endswith(": exit\n")
        assert "exit" not in [line.split(": ", 1)[1] for line in master.logged()]


def test_workers_of_a_daemon_quit_on_winch_and_come_back_on_hup(tmp_path):
    """The master stays without workers; connections wait in line until a new generation serves."""  # W6
    with running(tmp_path, workers=2, daemon=True) as master:
        master.signal(SIGWINCH)
        reading = master.wait_until(lambda reading: not reading.alive)
        assert [worker.exit_code for worker in reading.workers] == [0, 0]
        assert (
            f"notice: signal 28 (SIGWINCH) received from {os.getpid()}, stop accepting connections" in master.logged()
        )

        with socket.create_connection(master.address, TIMEOUT_S) as connection, connection.makefile() as answer:
            master.signal(SIGHUP)
            answered = int(answer.readline())
        master.wait_announced()
        assert answered in master.alive()


def test_signals_that_do_not_concern_a_worker_leave_it_alone(tmp_path):
    """HUP, USR2 and WINCH to a worker do nothing."""  # W3, W5
    with running(tmp_path, workers=1) as master:
        (pid,) = master.alive()
        for signum in (SIGHUP, SIGUSR2, SIGWINCH):
            os.kill(pid, signum)

        assert [master.connect() for _ in range(3)] == [pid] * 3


def test_new_binary_is_declined_in_the_log(tmp_path):
    """USR2 to the master is a line of the log and nothing else."""  # W5
    with running(tmp_path, workers=1) as master:
        master.signal(SIGUSR2)
        text = f"signal 12 (SIGUSR2) received from {os.getpid()}, ignored: there is no binary to change to"
        master.wait_logged(f"notice: {text}")

        assert master.connect() in master.alive()


def test_logs_are_reopened_by_master_and_workers(tmp_path):
    """After USR1 all write to a new file under the old name."""  # W4
    with running(tmp_path, workers=1) as master:
        rotated = master.log.rename(tmp_path / "error.log.1")
        assert not master.log.exists()

        master.signal(SIGUSR1)
        while not (master.log.exists() and "notice: reopening logs" in master.logged()):
            process.wait([master.process.sentinel], 0.01)
        master.signal(SIGTERM)

        assert master.exit_code() == 0
        assert master.logged()[-1] == "notice: exit"
        assert "start worker processes" in rotated.read_text()


def test_workers_draw_from_seeds_of_their_own(tmp_path):
    """No two incarnations share a seed, and the same run gives the same ones."""

    def tell_seed(args):
        args.error_log("notice", f"slot {args.slot} serial {args.record.serial} seed {args.seed}")
        tiny_worker.serve(args)

    seen = []
    for directory in (tmp_path / "a", tmp_path / "b"):
        directory.mkdir()
        with running(directory, tell_seed, workers=2) as master:
            slot_1 = master.scoreboard.read().workers[1]
            os.kill(slot_1.pid, SIGKILL)
            master.wait_until(lambda reading: serving(2)(reading) and len(reading.workers) == 3)
            seen.append(sorted(line for line in master.logged() if "seed" in line))

    assert seen[0] == seen[1]
    assert len({line.split("seed ")[1] for line in seen[0]}) == 3


def test_serving_in_the_foreground_prints_where_and_logs_to_the_terminal():
    """`serve` prints its address once it serves, and INT ends it with 0 and without a traceback."""
    pipes = [os.pipe(), os.pipe()]

    def run():
        for number, (_read, write) in enumerate(pipes, 1):
            os.dup2(write, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.exit(serve(Gateway(workers=1)))

    server = process.start(run, name="serve")
    with ExitStack() as stack:
        for _read, write in pipes:
            os.close(write)
        printed, logged = (stack.enter_context(os.fdopen(read)) for read, _write in pipes)
        out = printed.readline()
        process.kill(server, SIGINT)
        assert process.reap(server, TIMEOUT_S) == 0
        out, err = out + printed.read(), logged.read()

    assert re.fullmatch(rf"listening on http://127\.0\.0\.1:\d+, workers: 1, profile: kong, pid: {server.pid}\n", out)
    assert re.search(r"\[notice\] \d+#\d+: signal 2 \(SIGINT\) received from \d+, exiting\n", err)
    assert "Traceback" not in err


def test_serving_goes_on_though_nobody_reads_standard_output(tmp_path):
    """A reader that has gone, as `head` does, ends neither the start nor a reload."""
    read, write = os.pipe()
    log = tmp_path / "error.log"

    def run():
        os.close(read)
        sys.stdout = os.fdopen(write, "w")
        sys.exit(serve(Gateway(workers=1, error_log=str(log))))

    def wait_for(text, count):
        while not (log.exists() and log.read_text().count(text) == count):
            assert not process.wait([server.sentinel], 0.01)

    server = process.start(run, name="serve")
    os.close(write)
    assert os.read(read, 1)
    os.close(read)
    process.kill(server, SIGHUP)
    wait_for(": gracefully shutting down", 1)
    process.kill(server, SIGQUIT)

    assert process.reap(server, TIMEOUT_S) == 0
