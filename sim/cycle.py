"""nginx's master cycle as a decision, and what one worker of one generation is given.

What came in and what time it is go in, what is to be done comes out: nothing here forks, signals, waits or reads a
clock, so crash storms, lost races and three seconds of escalation are tested without one process and in no time.
`sim.master` is the part that acts.

Theory of operation. A signal only raises a flag (`SIGNALS`, the table that nginx has in `ngx_process.c`). Each turn
asks in nginx's order: reap, terminate, quit, reconfigure, reopen, no-accept (kong-semantics W8).

- A dead worker is started again in its slot, unless it was told to leave, the master is leaving, or its exit code says
  that another try is in vain (W11). nginx does so without pause; here, so that a worker that cannot live does not take
  the machine with it, a slot whose workers keep dying young waits longer each time. What is young is a matter of the
  profile (`Respawn`).
- Terminate: TERM at once and at every alarm, whose interval doubles from `ALARM_S_FIRST`; when the interval that passed
  is longer than `ALARM_S_PATIENCE`, KILL: 3.15 s after the start (W9). A user who sends the same signal again after the
  first alarm is not made to wait: KILL at once. What comes before it is no second wish: timeout(1) sends each signal to
  a process, then to its group.
- Quit: QUIT once to each worker (W1). One that is still starting has no handler for it yet and gets it when ready.
- Reconfigure: a new generation is started beside the old one, which is told to quit when the new one is *ready*, where
  nginx naps 100 ms (W10). An old worker that dies meanwhile is not replaced: its successor is on its way. The new
  generation may have more slots or fewer.
- No-accept: the workers quit and the master stays, without them, until it is told to reconfigure or to leave. Only a
  daemon hears the signal (W6): a terminal sends it to its foreground processes whenever its size changes.

Beside the workers there may be one process that answers the Status API, in slot `STATUS`, kept as they are: nginx calls
such children helper processes.

Times in ns on a monotonic clock, handed in; names in `_S` in seconds.
"""

import hashlib
import signal
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from sim.access_log import AccessLog
from sim.config import Gateway
from sim.error_log import ErrorLog
from sim.process import Connection, SharedCounter
from sim.scoreboard import Record

ALARM_S_FIRST: Final = 0.05  # kong-semantics W9
ALARM_S_PATIENCE: Final = 1.0  # kong-semantics W9
DEATHS_AT_ONCE_MAX: Final = 3
RESPAWN_DELAY_S_FIRST: Final = 0.1
RESPAWN_DELAY_S_MAX: Final = 5.0
GENERATIONS_ALIVE_MAX: Final = 16
PROCESSES_MAX: Final = 1024  # kong-semantics W17
EXIT_FATAL: Final = 2  # kong-semantics W11: the code of a worker that must not be respawned

STATUS: Final = -1
"""The slot of the process that answers the Status API."""

_NS_PER_S: Final = 1_000_000_000
_DOUBLINGS_MAX: Final = 16

SIGNALS: Final = {
    signal.SIGCHLD: ("reap", ""),
    signal.SIGTERM: ("terminate", ", exiting"),
    signal.SIGINT: ("terminate", ", exiting"),
    signal.SIGQUIT: ("quit", ", shutting down"),
    signal.SIGHUP: ("reconfigure", ", reconfiguring"),
    signal.SIGUSR1: ("reopen", ", reopening logs"),
    signal.SIGUSR2: ("change_binary", ", ignored: there is no binary to change to"),
    signal.SIGWINCH: ("no_accept", ", stop accepting connections"),
}
"""What each signal asks of the master, and how the log says so (kong-semantics W1-W7)."""


@dataclass(frozen=True, slots=True)
class Respawn:
    """What a profile takes for a worker that died young.

    Attributes:
        calm_life_s: One that served has died young when it did so within so many seconds of its start. One that never
            served always has: no client misses it, and a machine that forks nothing else serves nobody.
    """

    calm_life_s: float


RESPAWN: Final = {"kong": Respawn(calm_life_s=0.0), "safe": Respawn(calm_life_s=1.0)}
"""By profile. nginx has no back-off at all (W11): in `kong` a worker that served is replaced at once, always."""


def process_name(slot: int) -> str:
    """Return what the error log calls the process of a slot."""
    return "status process" if slot == STATUS else "worker process"


def child_seed(seed: int, *names: str | int) -> int:
    """Return the seed of the part `names` of a run with `seed`: 63 bits, independent of those of other parts."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True, slots=True)
class WorkerArgs:
    """What a worker is given at its fork.

    A worker that cannot start exits with `EXIT_FATAL`; one that is told to leave, after its work, with 0.

    Attributes:
        slot: Its `worker_id`, 0 to n - 1.
        generation: Of the configuration, from 1; raised by each reload.
        gateway: The configuration.
        listeners: Sockets that listen, non-blocking, shared by all workers; it closes them when it accepts no more.
        record: Its record of the scoreboard; it alone publishes there.
        ready: It sends its pid once, when it accepts connections and has its signal handlers: QUIT, TERM, INT, USR1.
        seed: Of all its randomness; each incarnation has its own.
        connections: Numbers those of clients, of all workers together.
        error_log: `error_log(level, message)`, with nginx's levels; `reopen()` when USR1 comes.
        access_log: A line for each request; None when it is off.
    """

    slot: int
    generation: int
    gateway: Gateway
    listeners: list[socket.socket]
    record: Record
    ready: Connection
    seed: int
    connections: SharedCounter
    error_log: ErrorLog
    access_log: AccessLog | None = None


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork the process of a slot and report it with `Cycle.started`."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Send a signal to a worker."""

    pid: int
    signum: signal.Signals


@dataclass(frozen=True, slots=True)
class Log:
    """Write a line to the error log."""

    level: str
    message: str


@dataclass(frozen=True, slots=True)
class CloseListeners:
    """Accept no more: the master's copies of the listening sockets are closed."""


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """Read the configuration again and report success with `Cycle.reconfigured`."""


@dataclass(frozen=True, slots=True)
class Restore:
    """Take the configuration that was in force before the last `Reconfigure` again."""


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    """Open the log files again under their names."""


@dataclass(frozen=True, slots=True)
class Announce:
    """All workers of a generation serve."""

    generation: int


@dataclass(frozen=True, slots=True)
class Exit:
    """Leave: no worker is left."""

    code: int


Action = Spawn | Kill | Log | CloseListeners | Reconfigure | Restore | ReopenLogs | Announce | Exit


@dataclass(slots=True)
class _Child:
    """A worker that has not been reaped."""

    slot: int
    generation: int
    pid: int
    started_ns: int
    ready: bool = False
    exiting: bool = False


@dataclass(slots=True)
class _Generation:
    """What a configuration asks for.

    Attributes:
        number: From 1, raised by each reload.
        slots: That its processes have.
        respawn_rule: Of its profile.
        fatal: Slots of which no process can start.
        resting: Its workers were told to quit, after no-accept.
    """

    number: int
    slots: tuple[int, ...]
    respawn_rule: Respawn
    fatal: set[int] = field(default_factory=set)
    resting: bool = False

    @property
    def is_hopeless(self) -> bool:
        """Whether no worker of it can start."""
        return self.fatal.issuperset(slot for slot in self.slots if slot != STATUS)


class Cycle:
    """The state of a master, and its decisions.

    Args:
        daemon: It has no terminal.
    """

    def __init__(self, *, daemon: bool = False) -> None:
        self.signals = SIGNALS.keys() if daemon else SIGNALS.keys() - {signal.SIGWINCH}
        self._generations = 0  # that have been started
        self._current = _Generation(0, (), RESPAWN["kong"])
        self._former: _Generation | None = None  # that serves until the current one does
        self._children: dict[int, _Child] = {}
        self._early_deaths: dict[int, int] = {}  # in a row
        self._due_ns: dict[int, int] = {}  # when the next process of a slot shall start
        self._unready: set[int] = set()  # slots of this generation whose first process is awaited
        self._stop_signum: signal.Signals | None = None
        self._quitting = False
        self._flags: set[str] = set()
        self._alarm_interval_s = ALARM_S_FIRST
        self._alarm_ns: int | None = None

    @property
    def deadline_ns(self) -> int | None:
        """When the next turn is due though nothing comes in; None: never."""
        if self._leaving:
            return self._alarm_ns
        return min(self._due_ns.values(), default=None)

    @property
    def generation(self) -> int:
        """The number of the generation whose workers are started again."""
        return self._current.number

    @property
    def _leaving(self) -> bool:
        return self._quitting or self._stop_signum is not None

    def begin(self, slots: Iterable[int], profile: str) -> list[Action]:
        """Start the first generation: a worker for each of `slots`, `STATUS` for the Status API."""
        return [Log("notice", "start worker processes"), *self.reconfigured(slots, profile)]

    def reconfigured(self, slots: Iterable[int], profile: str) -> list[Action]:
        """Start a generation from the configuration that was just read."""
        if self._generations and not (self._unready or self._current.is_hopeless):
            self._former = self._current
        self._generations += 1
        self._current = _Generation(self._generations, tuple(slots), RESPAWN[profile])
        self._unready = set(self._current.slots)
        return self._start(self._current.slots)

    def _start(self, slots: Iterable[int]) -> list[Action]:
        self._early_deaths = dict.fromkeys(self._current.slots, 0)
        self._due_ns = {}
        return [Spawn(slot, self.generation) for slot in slots]

    def started(self, spawn: Spawn, pid: int, now_ns: int) -> None:
        """Note the worker that a `Spawn` has become."""
        self._children[pid] = _Child(spawn.slot, spawn.generation, pid, now_ns)

    def turn(
        self,
        now_ns: int,
        *,
        signals: Iterable[tuple[signal.Signals, int]] = (),
        exits: Iterable[tuple[int, int]] = (),
        ready: Iterable[int] = (),
    ) -> list[Action]:
        """Decide what to do now.

        Args:
            now_ns: The time.
            signals: That came in since the last turn, each with its sender's pid.
            exits: Workers reaped since then: pid and exit code, -N for signal N.
            ready: The pids of workers that have begun to serve since then.
        """
        actions = self._hear(signals)
        for pid, code in exits:
            actions += self._reap(self._children.pop(pid), code, now_ns)
        for pid in ready:
            actions += self._welcome(pid)
        return actions + self._act(now_ns)

    def _hear(self, signals: Iterable[tuple[signal.Signals, int]]) -> list[Action]:
        logs: list[Action] = []
        self._flags = set()
        for signum, sender in signals:
            flag, meaning = SIGNALS[signum]
            logs.append(Log("notice", f"signal {signum} ({signum.name}) received from {sender}{meaning}"))
            insists = signum is self._stop_signum and self._alarm_interval_s > ALARM_S_FIRST
            self._flags.add("kill" if insists else flag)
            if flag == "terminate":
                self._stop_signum = self._stop_signum or signum
            elif flag == "quit":
                self._quitting = True
        return logs

    def _act(self, now_ns: int) -> list[Action]:
        if self._leaving and not self._children:
            return [Log("notice", "exit"), Exit(0)]
        if self._current.is_hopeless and not (self._leaving or self._current.resting or self._workers):
            return [Log("emerg", "no worker process is left that may be respawned"), Exit(EXIT_FATAL)]
        if self._stop_signum:
            return self._terminate(now_ns)
        if self._quitting:
            return [*self._quit(self._children.values()), *([CloseListeners()] if "quit" in self._flags else [])]
        actions: list[Action] = []
        if "reconfigure" in self._flags:
            actions.append(self._reconfigure())
        if "reopen" in self._flags:
            actions.append(ReopenLogs())
            actions += [Kill(pid, signal.SIGUSR1) for pid, child in self._children.items() if child.ready]
        if "no_accept" in self._flags:
            for generation in filter(None, (self._current, self._former)):
                generation.resting = True
            self._due_ns = {slot: due_ns for slot, due_ns in self._due_ns.items() if slot == STATUS}
            actions += self._quit(self._workers)
        return actions + self._respawn_due(now_ns)

    @property
    def _workers(self) -> list[_Child]:
        return [child for child in self._children.values() if child.slot != STATUS]

    def _reconfigure(self) -> Action:
        generations = len({child.generation for child in self._children.values()})
        if generations >= GENERATIONS_ALIVE_MAX:
            return Log("alert", f"not reconfiguring: workers of {generations} generations are still alive")
        if len(self._children) + len(self._current.slots) > PROCESSES_MAX:
            return Log("alert", f"not reconfiguring: no more than {PROCESSES_MAX} processes can be spawned")
        return Reconfigure()

    def _reap(self, child: _Child, code: int, now_ns: int) -> list[Action]:
        who = f"{process_name(child.slot)} {child.pid} exited"
        log = Log("alert", f"{who} on signal {-code}") if code < 0 else Log("notice", f"{who} with code {code}")
        outdated = child.generation != self.generation
        if child.exiting or outdated or self._leaving or (self._current.resting and child.slot != STATUS):
            return [log]
        if code == EXIT_FATAL:
            self._current.fatal.add(child.slot)
            fatal = Log("alert", f"{who} with fatal code {code} and cannot be respawned")
            hopeless = self._current.is_hopeless and self._former is not None
            return [fatal, *(self._give_up() if hopeless else self._complete(child.slot))]
        return [log, *self._respawn(child, now_ns)]

    def _respawn(self, child: _Child, now_ns: int) -> list[Action]:
        calm_life_s = self._current.respawn_rule.calm_life_s
        early = not child.ready or now_ns - child.started_ns < calm_life_s * _NS_PER_S
        deaths = self._early_deaths[child.slot] = self._early_deaths[child.slot] + 1 if early else 0
        if deaths <= DEATHS_AT_ONCE_MAX:
            return [Spawn(child.slot, self.generation)]
        doublings = min(deaths - DEATHS_AT_ONCE_MAX - 1, _DOUBLINGS_MAX)
        delay_s = min(RESPAWN_DELAY_S_FIRST * 2**doublings, RESPAWN_DELAY_S_MAX)
        self._due_ns[child.slot] = now_ns + int(delay_s * _NS_PER_S)
        place = "" if child.slot == STATUS else f" of slot {child.slot}"
        how = f"within {calm_life_s:g} s of its start" if calm_life_s else "before it served"
        died = f"the {process_name(child.slot)}{place} has died {deaths} times in a row {how}"
        return [Log("error", f"{died}, next start in {delay_s:g} s")]

    def _respawn_due(self, now_ns: int) -> list[Action]:
        due = [slot for slot, due_ns in self._due_ns.items() if now_ns >= due_ns]
        for slot in due:
            del self._due_ns[slot]
        return [Spawn(slot, self.generation) for slot in due]

    def _welcome(self, pid: int) -> list[Action]:
        child = self._children.get(pid)
        if child is None:  # it died right after it had said so
            return []
        child.ready = True
        if child.exiting:
            return [Kill(pid, signal.SIGQUIT)]
        return self._complete(child.slot) if child.generation == self.generation else []

    def _complete(self, slot: int) -> list[Action]:
        if slot not in self._unready:
            return []
        self._unready.remove(slot)
        if self._unready or self._current.is_hopeless:
            return []
        self._former = None
        old = [child for child in self._children.values() if child.generation != self.generation]
        return [Announce(self.generation), *self._quit(old)]

    def _give_up(self) -> list[Action]:
        """Go back to the generation that still serves."""
        assert self._former is not None
        given_up = self.generation
        self._current, self._former = self._former, None
        self._unready = set()
        log = Log("alert", f"no worker of generation {given_up} can start: generation {self.generation} goes on")
        theirs = [child for child in self._children.values() if child.generation != self.generation]
        kept = {child.slot for child in self._children.values() if child.generation == self.generation}
        wanted = {STATUS} if self._current.resting else set(self._current.slots)
        missing = [slot for slot in self._current.slots if slot in wanted - kept - self._current.fatal]
        return [log, Restore(), *self._quit(theirs), *self._start(missing)]

    def _quit(self, children: Iterable[_Child]) -> list[Action]:
        staying = [child for child in children if not child.exiting]
        for child in staying:
            child.exiting = True
        return [Kill(child.pid, signal.SIGQUIT) for child in staying if child.ready]

    def _terminate(self, now_ns: int) -> list[Action]:
        if "kill" in self._flags:
            return [Kill(pid, signal.SIGKILL) for pid in self._children]
        if self._alarm_ns is not None and now_ns < self._alarm_ns:
            return []
        signum = signal.SIGKILL if self._alarm_interval_s > ALARM_S_PATIENCE else signal.SIGTERM
        if self._alarm_ns is not None and signum is signal.SIGTERM:
            self._alarm_interval_s *= 2
        self._alarm_ns = now_ns + int(self._alarm_interval_s * _NS_PER_S)
        return [Kill(pid, signum) for pid in self._children]
