"""nginx's master cycle, decided without a process."""

import signal
from signal import SIGCHLD, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH

import pytest

from sim.cycle import (
    DEATHS_AT_ONCE_MAX,
    GENERATIONS_ALIVE_MAX,
    RESPAWN_DELAY_S_MAX,
    STATUS,
    Announce,
    CloseListeners,
    Cycle,
    Exit,
    Kill,
    Log,
    Reconfigure,
    ReopenLogs,
    Restore,
    Spawn,
    child_seed,
)

USER = 99
MS = 1_000_000


class World:
    """A machine without processes: what the cycle starts gets the pids 1001, 1002, ... in turn."""

    def __init__(self, slots=2, *, profile="kong", status=False, daemon=False):
        self.cycle = Cycle(daemon=daemon)
        self.now_ns = 0
        self.pid = 1000
        self.logs = []
        self.profile = profile
        self.do(self.cycle.begin([*range(slots), *([STATUS] if status else [])], profile))

    def reconfigured(self, slots=2):
        return self.do(self.cycle.reconfigured(range(slots), self.profile))

    def do(self, actions):
        self.logs += [(action.level, action.message) for action in actions if isinstance(action, Log)]
        for action in actions:
            if isinstance(action, Spawn):
                self.pid += 1
                self.cycle.started(action, self.pid, self.now_ns)
        return [action for action in actions if not isinstance(action, Log)]

    def turn(self, *signums, exits=(), ready=(), after_ms=0):
        self.now_ns += after_ms * MS
        signals = [(signum, USER) for signum in signums]
        return self.do(self.cycle.turn(self.now_ns, signals=signals, exits=exits, ready=ready))

    def alarm(self):
        """Let the time pass until the cycle wants to be asked, and return it with what it wants."""
        self.now_ns = self.cycle.deadline_ns
        return self.now_ns // MS, self.turn()


def serving(slots=2):
    world = World(slots)
    world.turn(ready=range(1001, 1001 + slots))
    world.turn(after_ms=60_000)
    world.logs.clear()
    return world


def test_one_worker_is_started_for_each_slot():
    """A cycle begins with a worker for every slot, all of the first generation."""
    actions = Cycle().begin(range(3), "kong")

    assert [action for action in actions if isinstance(action, Spawn)] == [Spawn(n, 1) for n in range(3)]


def test_generation_is_announced_when_all_its_workers_serve():
    """Readiness of the last worker completes the generation, whatever the order."""
    world = World(slots=2)

    assert world.turn(ready=[1002]) == []
    assert world.turn(ready=[1001]) == [Announce(1)]


def test_nothing_is_due_while_all_is_well():
    """A master at rest sleeps until something comes in."""
    assert serving().cycle.deadline_ns is None


@pytest.mark.parametrize("code", [-SIGKILL, 0, 1])
def test_worker_that_died_is_started_again_in_its_slot(code):
    """However a worker ends that nobody told to, its slot gets a new one at once."""  # W11
    world = serving()

    assert world.turn(SIGCHLD, exits=[(1002, code)]) == [Spawn(1, 1)]


def test_deaths_are_logged_in_the_words_of_nginx():
    """Death by a signal is an alert, an exit with a code a notice, and the signal that told it is logged too."""  # W11
    world = serving()

    world.turn(SIGCHLD, exits=[(1001, -SIGKILL)])
    world.turn(exits=[(1002, 3)])

    assert world.logs == [
        ("notice", "signal 17 (SIGCHLD) received from 99"),
        ("alert", "worker process 1001 exited on signal 9"),
        ("notice", "worker process 1002 exited with code 3"),
    ]


def test_respawned_worker_is_not_announced_again():
    """A generation is announced once."""
    world = serving()
    world.turn(exits=[(1002, -SIGKILL)])

    assert world.turn(ready=[1003]) == []


def test_readiness_of_a_worker_that_is_dead_already_is_passed_over():
    """A worker may say that it is ready and die before the master reads either."""
    world = World(slots=1)

    assert world.turn(exits=[(1001, -SIGKILL)], ready=[1001]) == [Spawn(0, 1)]
    assert world.turn(ready=[1002]) == [Announce(1)]


def test_worker_with_exit_code_2_is_never_started_again():
    """A fatal exit empties its slot for good; the others go on."""  # W11
    world = serving()

    assert world.turn(exits=[(1001, 2)]) == []

    assert ("alert", "worker process 1001 exited with fatal code 2 and cannot be respawned") in world.logs
    assert world.cycle.deadline_ns is None


def test_master_whose_last_worker_failed_fatally_exits_with_2():
    """A master that could never serve again does not linger."""
    world = World(slots=2)

    assert world.turn(exits=[(1001, 2)]) == []
    assert world.turn(exits=[(1002, 2)]) == [Exit(2)]
    assert world.logs[-1] == ("emerg", "no worker process is left that may be respawned")


def test_generation_is_announced_without_the_slots_that_failed_fatally():
    """The workers that can serve complete the generation."""
    world = World(slots=2)
    world.turn(ready=[1001])

    assert world.turn(exits=[(1002, 2)]) == [Announce(1)]


def test_slot_that_keeps_dying_waits_longer_each_time():
    """After some respawns at once, as in nginx, the delay doubles up to its limit."""
    world = World(slots=1)
    delays_ms = []
    for death in range(DEATHS_AT_ONCE_MAX + 8):
        actions = world.turn(exits=[(world.pid, -SIGKILL)])
        if death < DEATHS_AT_ONCE_MAX:
            assert actions == [Spawn(0, 1)]
            continue
        assert actions == []
        died_ns = world.now_ns
        at_ms, actions = world.alarm()
        delays_ms.append(at_ms - died_ns // MS)
        assert actions == [Spawn(0, 1)]

    assert delays_ms == [100, 200, 400, 800, 1600, 3200, 5000, RESPAWN_DELAY_S_MAX * 1000]


def test_slot_whose_worker_lived_is_respawned_at_once_again():
    """A calm life ends the delays: in profile `kong` to serve is enough, in `safe` it takes a second."""
    for profile, life_ms in (("kong", 0), ("safe", 1000)):
        world = World(slots=1, profile=profile)
        for _ in range(DEATHS_AT_ONCE_MAX + 1):
            world.turn(exits=[(world.pid, -SIGKILL)])
        world.alarm()
        world.turn(ready=[world.pid])

        assert world.turn(exits=[(world.pid, -SIGKILL)], after_ms=life_ms) == [Spawn(0, 1)]


def test_workers_that_serve_and_die_are_a_storm_in_profile_safe_alone():
    """nginx replaces at once, always; profile `safe` waits when workers die within a second of their start."""  # W11
    spawned = {}
    for profile in ("kong", "safe"):
        world = World(slots=1, profile=profile)
        for _ in range(10):
            pid = world.pid
            world.turn(ready=[pid])
            world.turn(exits=[(pid, -SIGKILL)], after_ms=999)
            if world.pid == pid:
                break
        spawned[profile] = world.pid - 1001

    assert spawned == {"kong": 10, "safe": DEATHS_AT_ONCE_MAX}


def test_slot_that_keeps_dying_does_not_delay_the_others():
    """Delays are a slot's own."""
    world = World(slots=2)
    for _ in range(DEATHS_AT_ONCE_MAX + 1):
        (worker,) = [pid for pid, child in world.cycle._children.items() if child.slot == 0]
        world.turn(exits=[(worker, -SIGKILL)])

    assert world.turn(exits=[(1002, -SIGKILL)]) == [Spawn(1, 1)]


@pytest.mark.parametrize("signum", [SIGTERM, SIGINT])
def test_terminate_is_sent_to_all_workers_at_once(signum):
    """TERM and INT stop the workers without waiting for their work."""  # W2
    world = serving()

    assert world.turn(signum) == [Kill(1001, SIGTERM), Kill(1002, SIGTERM)]
    assert world.logs == [("notice", f"signal {int(signum)} ({signum.name}) received from 99, exiting")]


def test_terminate_is_sent_again_until_patience_ends():
    """The alarm doubles from 50 ms; when the interval has passed 1 s, KILL follows, 3.15 s after the start."""  # W9
    world = serving(slots=1)
    start_ms = world.now_ns // MS
    sent = [(0, world.turn(SIGTERM))]
    for _ in range(7):
        at_ms, actions = world.alarm()
        sent.append((at_ms - start_ms, actions))

    assert sent[:-1] == [
        *((at_ms, [Kill(1001, SIGTERM)]) for at_ms in (0, 50, 150, 350, 750, 1550)),
        (3150, [Kill(1001, SIGKILL)]),
    ]


def test_events_between_alarms_do_not_repeat_terminate():
    """While the alarm runs, the death of one worker sends nothing to the others."""  # W9
    world = serving()
    world.turn(SIGTERM)

    assert world.turn(SIGCHLD, exits=[(1001, 0)], after_ms=10) == []


@pytest.mark.parametrize("signum", [SIGTERM, SIGINT])
def test_asking_twice_to_terminate_kills(signum):
    """Ctrl-C twice does not wait for the escalation."""
    world = serving(slots=1)
    world.turn(signum)
    world.alarm()

    assert world.turn(signum, after_ms=1) == [Kill(1001, SIGKILL)]


@pytest.mark.parametrize("signum", [SIGTERM, SIGINT])
def test_signal_that_comes_twice_at_once_asks_once(signum):
    """timeout(1) sends it to the process and then to its group: before the first alarm nobody has lost patience."""
    world = serving(slots=1)
    world.turn(signum)

    assert world.turn(signum, after_ms=49) == []


def test_term_after_interrupt_does_not_kill():
    """A terminal's Ctrl-C followed by the parent's TERM is one request, not two."""
    world = serving(slots=1)
    world.turn(SIGINT)

    assert world.turn(SIGTERM, after_ms=1) == []


def test_master_exits_when_no_worker_is_left():
    """After TERM or QUIT the master leaves with the last of its workers, and respawns none."""  # W11, W15
    world = serving()
    world.turn(SIGTERM)

    assert world.turn(exits=[(1001, 0)]) == []
    assert world.turn(exits=[(1002, -SIGKILL)]) == [Exit(0)]


def test_quit_lets_workers_finish():
    """QUIT goes to each worker, and the master accepts no more."""  # W1
    world = serving()

    assert world.turn(SIGQUIT) == [Kill(1001, SIGQUIT), Kill(1002, SIGQUIT), CloseListeners()]
    assert world.cycle.deadline_ns is None


def test_worker_told_to_quit_is_not_told_again():
    """A second QUIT reaches nobody."""  # W8
    world = serving()
    world.turn(SIGQUIT)

    assert [action for action in world.turn(SIGQUIT) if isinstance(action, Kill)] == []


def test_worker_that_is_still_starting_is_told_to_quit_when_ready():
    """A worker without a handler yet would die of QUIT instead of leaving."""
    world = World(slots=2)
    world.turn(ready=[1001])

    assert world.turn(SIGQUIT) == [Kill(1001, SIGQUIT), CloseListeners()]
    assert world.turn(ready=[1002]) == [Kill(1002, SIGQUIT)]


def test_terminate_overtakes_quit():
    """A drain that takes too long can be cut short."""  # W8
    world = serving(slots=1)
    world.turn(SIGQUIT)

    assert world.turn(SIGTERM, after_ms=1000) == [Kill(1001, SIGTERM)]


def test_stop_during_a_crash_storm_starts_nothing_more():
    """A respawn that was due is forgotten when the master leaves."""
    world = World(slots=1)
    for _ in range(DEATHS_AT_ONCE_MAX + 1):
        world.turn(exits=[(world.pid, -SIGKILL)])

    assert world.turn(SIGQUIT) == [Exit(0)]


def test_reload_starts_the_new_generation_before_it_quits_the_old():
    """Old workers are told to quit when the new ones serve, not before and not later."""  # W10
    world = serving()

    assert world.turn(SIGHUP) == [Reconfigure()]
    assert world.reconfigured() == [Spawn(0, 2), Spawn(1, 2)]
    assert world.turn(ready=[1003]) == []
    assert world.turn(ready=[1004]) == [Announce(2), Kill(1001, SIGQUIT), Kill(1002, SIGQUIT)]
    assert world.turn(exits=[(1001, 0), (1002, 0)]) == []


def test_reload_may_change_the_number_of_workers():
    """The new generation has its own number of slots; a worker beyond the old ones is kept like any other."""  # W10
    world = serving(slots=1)
    world.turn(SIGHUP)

    assert world.reconfigured(slots=3) == [Spawn(0, 2), Spawn(1, 2), Spawn(2, 2)]
    assert world.turn(ready=[1002, 1003]) == []
    assert world.turn(ready=[1004]) == [Announce(2), Kill(1001, SIGQUIT)]
    assert world.turn(exits=[(1004, -SIGKILL)]) == [Spawn(2, 2)]

    world.turn(SIGHUP)
    assert world.reconfigured(slots=1) == [Spawn(0, 3)]
    world.turn(ready=[world.pid])
    assert world.turn(exits=[(1003, -SIGKILL)]) == []


def test_reload_that_fails_changes_nothing():
    """Without a new configuration the old generation goes on."""  # W10
    world = serving()
    world.turn(SIGHUP)

    assert world.turn(exits=[(1001, -SIGKILL)]) == [Spawn(0, 1)]


def test_old_worker_that_dies_during_a_reload_is_not_replaced():
    """Its successor of the new generation is on its way already."""
    world = serving()
    world.turn(SIGHUP)
    world.reconfigured()

    assert world.turn(exits=[(1001, -SIGKILL)]) == []


def test_generation_of_which_no_worker_can_start_is_given_up():
    """A configuration with which no worker can live costs no service: the former one is in force again."""
    world = serving()
    world.turn(SIGHUP)
    world.reconfigured()

    assert world.turn(exits=[(1003, 2)]) == []
    assert world.turn(exits=[(1004, 2)]) == [Restore()]

    assert world.logs[-1] == ("alert", "no worker of generation 2 can start: generation 1 goes on")
    assert world.turn(exits=[(1001, -SIGKILL)]) == [Spawn(0, 1)]


def test_workers_that_died_during_a_vain_reload_are_started_again():
    """Those that nobody replaced, since their successors were on their way, are missing now."""
    world = serving()
    world.turn(SIGHUP)
    world.reconfigured()
    world.turn(exits=[(1002, -SIGKILL)])

    assert world.turn(exits=[(1003, 2), (1004, 2)]) == [Restore(), Spawn(1, 1)]


def test_status_process_of_a_generation_that_is_given_up_leaves():
    """It does not make a generation: without workers there is nobody to take the place of the old ones."""
    world = World(slots=1, status=True)
    world.turn(ready=[1001, 1002])
    world.turn(SIGHUP)
    world.do(world.cycle.reconfigured([0, STATUS], "kong"))
    world.turn(ready=[1004])

    assert world.turn(exits=[(1003, 2)]) == [Restore(), Kill(1004, SIGQUIT)]
    assert world.turn(exits=[(1004, 0)]) == []


def test_reload_after_a_vain_one_begins_a_generation_of_its_own():
    """A number is not given twice; what failed is nobody's to wait for."""
    world = serving()
    world.turn(SIGHUP)
    world.reconfigured()
    world.turn(exits=[(1003, 2), (1004, 2)])
    world.turn(SIGHUP)

    assert world.reconfigured() == [Spawn(0, 3), Spawn(1, 3)]
    assert world.turn(ready=[1005, 1006]) == [Announce(3), Kill(1001, SIGQUIT), Kill(1002, SIGQUIT)]


def test_daemon_without_workers_has_none_after_a_vain_reload():
    """What rested goes on resting."""  # W6
    world = World(slots=1, daemon=True)
    world.turn(ready=[1001])
    world.turn(SIGWINCH)
    world.turn(exits=[(1001, 0)])
    world.turn(SIGHUP)
    world.reconfigured(slots=1)

    assert world.turn(exits=[(1002, 2)]) == [Restore()]
    assert world.turn(SIGCHLD) == []


def test_reload_is_refused_while_too_many_generations_drain():
    """Generations that never leave do not pile up without a limit."""
    world = serving(slots=1)
    for _ in range(GENERATIONS_ALIVE_MAX - 1):
        assert world.turn(SIGHUP) == [Reconfigure()]
        world.reconfigured(slots=1)
        world.turn(ready=[world.pid])

    assert world.turn(SIGHUP) == []
    assert world.logs[-1] == ("alert", "not reconfiguring: workers of 16 generations are still alive")


def test_reopening_logs_is_passed_on():
    """USR1 reopens the master's log and goes to every worker that can hear it."""  # W4
    world = World(slots=2)
    world.turn(ready=[1001])

    assert world.turn(SIGUSR1) == [ReopenLogs(), Kill(1001, SIGUSR1)]


def test_there_is_no_new_binary_to_change_to():
    """USR2 is logged and harmless."""  # W5
    assert serving().turn(SIGUSR2) == []


def test_daemon_without_workers_stays_until_it_is_told_more():
    """WINCH lets the workers quit and keeps the master; none is started again until HUP."""  # W6
    world = World(slots=2, daemon=True)
    world.turn(ready=[1001, 1002])

    assert world.turn(SIGWINCH) == [Kill(1001, SIGQUIT), Kill(1002, SIGQUIT)]
    assert world.logs[-1] == ("notice", "signal 28 (SIGWINCH) received from 99, stop accepting connections")
    assert world.turn(exits=[(1001, 0), (1002, 0)]) == []
    assert world.cycle.deadline_ns is None
    assert world.turn(SIGHUP) == [Reconfigure()]
    assert world.reconfigured() == [Spawn(0, 2), Spawn(1, 2)]
    assert world.turn(exits=[(1003, -SIGKILL)]) == [Spawn(0, 2)]


def test_daemon_without_workers_can_be_stopped():
    """After WINCH, QUIT has nobody to wait for."""  # W6
    world = World(slots=1, daemon=True)
    world.turn(ready=[1001])
    world.turn(SIGWINCH)
    world.turn(exits=[(1001, -SIGKILL)])

    assert world.turn(SIGQUIT) == [Exit(0)]


def test_master_on_a_terminal_does_not_hear_that_its_size_has_changed():
    """WINCH is caught by a daemon only."""  # W6
    assert SIGWINCH in Cycle(daemon=True).signals
    assert Cycle().signals == Cycle(daemon=True).signals - {SIGWINCH}


def test_status_process_is_kept_like_a_worker():
    """It is started with its generation, awaited, respawned, and told to leave with it."""
    world = World(slots=1, status=True)
    assert world.turn(ready=[1001]) == []
    assert world.turn(ready=[1002]) == [Announce(1)]

    assert world.turn(exits=[(1002, -SIGKILL)]) == [Spawn(STATUS, 1)]
    assert world.logs[-1] == ("alert", "status process 1002 exited on signal 9")
    assert world.turn(ready=[1003]) == []
    assert world.turn(SIGQUIT) == [Kill(1001, SIGQUIT), Kill(1003, SIGQUIT), CloseListeners()]
    assert world.turn(exits=[(1001, 0)]) == []
    assert world.turn(exits=[(1003, 0)]) == [Exit(0)]


def test_status_process_does_not_keep_a_master_without_workers_alive():
    """When no worker can live, the status process has nothing to tell."""
    world = World(slots=1, status=True)

    assert world.turn(exits=[(1001, 2)]) == [Exit(2)]


def test_workers_serve_on_without_a_status_process():
    """A status process that cannot start costs no service."""
    world = World(slots=1, status=True)
    world.turn(ready=[1001])

    assert world.turn(exits=[(1002, 2)]) == [Announce(1)]
    assert world.turn(SIGCHLD) == []


def test_signal_numbers_are_logged_as_on_the_command_line():
    """The log shows the number that `kill -NUMBER` takes."""
    world = serving()

    world.turn(SIGQUIT)

    assert world.logs == [("notice", "signal 3 (SIGQUIT) received from 99, shutting down")]
    assert isinstance(SIGQUIT, signal.Signals)


def test_seeds_of_parts_are_stable_and_differ():
    """A part's seed depends on the run's seed and its own name alone."""
    assert child_seed(7, "worker", 0, 1) == child_seed(7, "worker", 0, 1) == 4774177910254308878
    assert len({child_seed(seed, "worker", slot, 1) for seed in range(10) for slot in range(10)}) == 100
    assert all(0 <= child_seed(seed) < 2**63 for seed in range(100))
