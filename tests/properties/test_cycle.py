"""The master's cycle on a machine where anything may happen at any time, and no process is needed for it."""

from signal import SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1, SIGWINCH

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sim.cycle import RESPAWN_DELAY_S_MAX, STATUS, Announce, Cycle, Exit, Kill, Reconfigure, Restore, Spawn

SLOTS = 3
NS_PER_S = 1_000_000_000
ESCALATION_S = 3.15  # W9


class CycleMachine(RuleBasedStateMachine):
    """Signals, deaths, readiness and time in any order; `workers` are those alive, by pid."""

    def __init__(self):
        super().__init__()
        self.cycle = Cycle(daemon=True)
        self.now_ns = 0
        self.pid = 1000
        self.workers = {}
        self.quit_sent = set()
        self.fatal = set()
        self.stopping_ns = None
        self.leaving = False
        self.exited = False
        self.resting = False
        self.slots = SLOTS
        self.announced = []
        self.former = None
        self.do(self.cycle.begin([*range(SLOTS), STATUS], "kong"))

    def do(self, actions):
        for action in actions:
            assert not self.exited, "nothing follows an exit"
            match action:
                case Spawn(slot, generation):
                    self.spawn(action, slot, generation)
                case Kill(pid, signum):
                    assert pid in self.workers, "only the living are signalled"
                    if signum is SIGQUIT:
                        assert pid not in self.quit_sent, "QUIT is sent once"
                        assert self.workers[pid]["ready"], "QUIT finds a handler"
                        self.quit_sent.add(pid)
                    if signum is SIGKILL:
                        assert self.stopping_ns is not None, "KILL is for those who were asked before"
                case Announce(generation):
                    self.announced.append(generation)
                case Restore():
                    self.restore()
                case Reconfigure():
                    self.reconfigure()
                case Exit(code):
                    self.exit(code)

    def exit(self, code):
        if self.leaving:
            assert not self.workers, "the master leaves last"
        else:
            assert {worker["slot"] for worker in self.workers.values()} <= {STATUS}
            assert self.fatal >= set(range(self.slots))
            assert not self.resting
        assert code == (0 if self.leaving else 2)
        self.exited = True

    def reconfigure(self):
        if self.cycle.generation in self.announced:
            self.former = self.cycle.generation, self.slots, self.fatal, self.resting
        self.fatal = set()
        self.resting = False
        self.slots = 1 + self.cycle.generation % SLOTS
        self.do(self.cycle.reconfigured([*range(self.slots), STATUS], "safe"))

    def restore(self):
        assert self.fatal >= set(range(self.slots)), "a generation that can start is not given up"
        generation, self.slots, self.fatal, resting = self.former
        self.resting = self.resting or resting
        assert self.cycle.generation == generation, "what goes on is what served"

    def spawn(self, action, slot, generation):
        assert not self.leaving, "nobody is started by a master that leaves"
        assert slot not in self.fatal, "a fatal exit is final"
        assert slot < self.slots, "a slot belongs to the generation"
        assert slot == STATUS or not self.resting, "no worker is started by a master that rests"
        taken = [w for w in self.workers.values() if (w["slot"], w["generation"]) == (slot, generation)]
        assert not taken, "a slot has one worker in each generation"
        self.pid += 1
        self.workers[self.pid] = {"slot": slot, "generation": generation, "ready": False}
        self.cycle.started(action, self.pid, self.now_ns)

    def turn(self, **events):
        self.do(self.cycle.turn(self.now_ns, **events))

    @precondition(lambda self: not self.exited)
    @rule(signum=st.sampled_from([SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGWINCH]))
    def signal(self, signum):
        self.resting = self.resting or (signum is SIGWINCH and not self.leaving)
        self.leaving = self.leaving or signum in {SIGTERM, SIGINT, SIGQUIT}
        if signum in {SIGTERM, SIGINT} and self.stopping_ns is None:
            self.stopping_ns = self.now_ns
        self.turn(signals=[(signum, 1)])

    @precondition(lambda self: self.workers and not self.exited)
    @rule(data=st.data(), code=st.sampled_from([-SIGKILL, 0, 1, 2]))
    def die(self, data, code):
        pid = data.draw(st.sampled_from(sorted(self.workers)))
        worker = self.workers.pop(pid)
        current = worker["generation"] == self.cycle.generation
        if code == 2 and current and not self.leaving:
            self.fatal.add(worker["slot"])
        self.turn(exits=[(pid, code)])

    @precondition(lambda self: not self.exited and any(not worker["ready"] for worker in self.workers.values()))
    @rule(data=st.data())
    def become_ready(self, data):
        pid = data.draw(st.sampled_from(sorted(pid for pid, worker in self.workers.items() if not worker["ready"])))
        self.workers[pid]["ready"] = True
        self.turn(ready=[pid])

    @rule(ms=st.integers(0, 6000))
    def time_passes(self, ms):
        until_ns = self.now_ns + ms * 1_000_000
        while not self.exited and self.cycle.deadline_ns is not None and self.cycle.deadline_ns <= until_ns:
            assert self.cycle.deadline_ns > self.now_ns, "a turn moves the deadline on"
            self.now_ns = self.cycle.deadline_ns
            self.turn()
        self.now_ns = until_ns

    @invariant()
    def deadline_is_never_far(self):
        if self.cycle.deadline_ns is not None and not self.exited:
            assert self.cycle.deadline_ns - self.now_ns <= max(RESPAWN_DELAY_S_MAX, 2 * ESCALATION_S) * NS_PER_S

    @invariant()
    def each_slot_is_served_or_about_to_be(self):
        if self.leaving or self.exited:
            return
        served = {w["slot"] for w in self.workers.values() if w["generation"] == self.cycle.generation}
        missing = {STATUS, *(() if self.resting else range(self.slots))} - served - self.fatal
        assert not missing or self.cycle.deadline_ns is not None

    @invariant()
    def generations_are_announced_once_and_in_order(self):
        assert self.announced == sorted(set(self.announced))

    def teardown(self):
        """Whatever happened before, TERM ends everything within the escalation, if KILL kills."""
        if self.exited:
            return
        self.signal(SIGTERM)
        started_ns = self.now_ns
        while not self.exited and self.workers:
            assert self.now_ns - started_ns <= 2 * ESCALATION_S * NS_PER_S
            self.now_ns = self.cycle.deadline_ns
            actions = self.cycle.turn(self.now_ns)
            self.do(actions)
            killed = {action.pid for action in actions if isinstance(action, Kill) and action.signum is SIGKILL}
            for pid in killed:
                del self.workers[pid]
            if killed:
                self.turn(exits=[(pid, -SIGKILL) for pid in sorted(killed)])
        assert self.exited


TestCycle = CycleMachine.TestCase
