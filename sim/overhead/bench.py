"""The bench: the processes of a measurement, and what is asked of them, block by block.

Theory of operation. Origins, collector and load stand through the whole measurement; the measured worker is started
anew several times (a *launch*), with the arms' gateways made in another order each time, so that what memory layout and
hash seed do to one arm is not taken for what the arm costs. Within a launch, *turns*: in each every arm has one block,
in random order, with the same arrivals. What differs between arms is compared within a turn, so that what the machine
does meanwhile falls on all alike.

A block's account runs from its first request until the arm is at rest: what it left in the queue has been sent.

A signal that interrupts is heard wherever an answer is waited for, and only there: nothing disturbs the end of the
processes, and the checkouts are taken away. The processes leave what comes from the keyboard to this one.

Times in seconds of the monotonic clock.
"""

import json
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self

from sim import collector, origin
from sim.cycle import child_seed
from sim.errors import UserError
from sim.interruption import INTERRUPTS
from sim.load.request import Request
from sim.master import listen, url_of
from sim.overhead import load
from sim.overhead.arms import Arm
from sim.overhead.blocks import Block, Load, Reading
from sim.process import Connection, Process, Signals, kill, pipe, reap, run, start, wait
from sim.scenario import Scenario
from sim.workload import open_loads

BLOCK_S: Final = 0.05
"""How long requests arrive in a block. The shorter, the more alike is what the machine does to the blocks of one turn:
on two shared cores, 25 s of blocks of 0.06, 0.15 and 0.5 s left intervals of 2.7, 4.1 and 6.8 %."""

BLOCK_REQUESTS_MIN: Final = 20
SATURATED_CONNECTIONS: Final = 32
"""Requests under way in a saturated block, as in the reference's figures."""

SATURATED_MIX: Final = 1000
"""Requests of a saturated block before it begins with the first again."""

ANSWER_S_MAX: Final = 120.0
UNANSWERED_S: Final = 30.0
"""A request that has no answer for so long will have none."""

END_S_MAX: Final = 5.0

_OF_THE_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_HOST: Final = "127.0.0.1"
_WORKER: Final = Path("sim/overhead/worker.py")
_MS_PER_S: Final = 1000


class MeasurementError(Exception):
    """A process of a measurement failed; the message names it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how.

    Attributes:
        scenario: the gateway, its upstreams and collector, and the load.
        arms: the first is the baseline.
        rate_per_s: of paced blocks, for one worker.
        seed: of every random choice.
        out_dir: an existing folder.
        others: the scenarios of arms that are files, by file.
    """

    scenario: Scenario
    arms: tuple[Arm, ...]
    rate_per_s: float
    seed: int
    out_dir: Path
    others: Mapping[str, Scenario] = field(default_factory=dict)

    @property
    def block_requests(self) -> int:
        """Requests of a paced block."""
        return max(BLOCK_REQUESTS_MIN, round(self.rate_per_s * BLOCK_S))


def _await_answer(signals: Signals, answering: socket.socket | Connection, timeout_s: float) -> None:
    """Wait until there is an answer to be read, or the end of the process that owes it.

    Raises:
        TimeoutError: there is none in time.
        KeyboardInterrupt: a signal has come.
    """
    ready = wait([signals, answering], timeout_s)
    if signals in ready:
        raise KeyboardInterrupt
    if not ready:
        raise TimeoutError("timed out")


class Worker:
    """A measured worker, and the ports of the arms that it hosts."""

    def __init__(self, tree: Path, told: Mapping[str, Any], signals: Signals) -> None:
        self._signals = signals
        self._socket, theirs = socket.socketpair()
        with theirs:
            worker = partial(_exec, theirs, tree)
            self._process = start(worker, name="worker", closing=[self._socket], ignoring=_OF_THE_TERMINAL)
        self._socket.settimeout(ANSWER_S_MAX)
        self._stream = self._socket.makefile("rw", encoding="utf-8")
        try:
            self.ports: list[int] = self.ask(**told)["ports"]
        except BaseException:
            self.close()
            raise

    def ask(self, **order: Any) -> dict[str, Any]:
        """Have an order carried out, and return the answer."""
        try:
            self._stream.write(json.dumps(order) + "\n")
            self._stream.flush()
            _await_answer(self._signals, self._socket, ANSWER_S_MAX)
            line = self._stream.readline()
        except OSError as error:
            raise MeasurementError(f"the measured worker does not answer: {error}") from None
        if not line:
            raise MeasurementError(f"the measured worker has ended: exit code {reap(self._process, END_S_MAX)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer

    def reading(self, order: str, arm: int) -> Reading:
        """Return the counters of an arm."""
        return Reading(**self.ask(order=order, arm=arm))

    def close(self) -> None:
        """End it."""
        with self._socket, suppress(OSError):
            self._stream.close()
        kill(self._process, signal.SIGTERM)
        reap(self._process, END_S_MAX)


def _exec(theirs: socket.socket, tree: Path) -> None:
    # One CPU for the worker, the others for what stands around it: no migration, and caches of its own.
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[-1:])
    for descriptor in (0, 1):
        os.dup2(theirs.fileno(), descriptor)
    # The user's modules are found as from here, and those of this program in its tree.
    places = [
        str(tree),
        *(str(Path(place).resolve()) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    os.chdir(tree)
    os.execve(sys.executable, [sys.executable, "-m", "sim.overhead.worker"], environment)  # noqa: S606 - itself


class _Peer:
    """A process beside the worker."""

    def __init__(
        self, name: str, target: Callable[[Connection], None], closing: Iterable[Any], signals: Signals
    ) -> None:
        self.control, theirs = pipe()
        self._name = name
        self._signals = signals
        foreign = [*closing, self.control]
        self._process: Process = start(target, theirs, name=name, closing=foreign, ignoring=_OF_THE_TERMINAL)
        theirs.close()

    def ask(self, order: Any, within_s: float = ANSWER_S_MAX, late: str = "") -> Any:
        """Send an order and return the answer; `late` tells of one that does not come within that time."""
        try:
            self.control.send(order)
            _await_answer(self._signals, self.control, within_s)
            return self.control.recv()
        except (EOFError, OSError) as error:
            told = isinstance(error, TimeoutError) and late
            raise MeasurementError(told or f"the {self._name} process does not answer") from None

    def close(self) -> None:
        """End it."""
        self.control.close()
        kill(self._process, signal.SIGTERM)
        reap(self._process, END_S_MAX)


@dataclass
class Launch:
    """One life of the measured worker, or of one for each revision.

    Attributes:
        number: counted from 0.
        places: the worker that hosts each arm, by name, and the arm's number there.
    """

    number: int
    places: Mapping[str, tuple[Worker, int]]

    def close(self) -> None:
        """End its workers."""
        for worker in {id(worker): worker for worker, _ in self.places.values()}.values():
            worker.close()


@dataclass
class Bench:
    """The processes of a measurement; a context manager that ends them all."""

    plan: Plan
    _ended: ExitStack = field(default_factory=ExitStack)
    _launches: int = 0
    _turns: int = 0

    def __enter__(self) -> Self:
        scenario = self.plan.scenario
        self._random = random.Random(self.plan.seed)
        self._mix = load.in_turn([each.mean_rate_per_s * each.duration_s for each in open_loads(scenario.load)])
        with ExitStack() as ended:
            self._signals = ended.enter_context(Signals(*INTERRUPTS))
            listeners = {name: ended.enter_context(listen(_HOST, 0)) for name in ("collector", *scenario.upstreams)}
            self._hosts = {name: listener.getsockname()[:2] for name, listener in listeners.items()}
            self._endpoint = f"{url_of(listeners['collector'])}/v1/traces"
            made: list[_Peer] = []

            def peer(name: str, target: Callable[[Connection], None], kept: socket.socket | None) -> _Peer:
                foreign = [listener for listener in listeners.values() if listener is not kept]
                one = _Peer(name, target, [*foreign, *(other.control for other in made)], self._signals)
                made.append(one)
                ended.callback(one.close)
                return one

            for name, upstream in scenario.upstreams.items():
                model = origin.Origin(
                    latency_p50_ms=upstream.latency.p50 * _MS_PER_S,
                    latency_p99_ms=upstream.latency.p99 * _MS_PER_S,
                    status=upstream.status,
                    body_bytes=upstream.body,
                    seed=child_seed(scenario.seed, "origin", name),
                )
                peer(name, partial(origin.serve, listeners[name], origin=model), listeners[name])
            latency_ms = scenario.collector.latency * _MS_PER_S
            received = partial(collector.serve, listeners["collector"], latency_ms=latency_ms)
            self._collector = peer("collector", received, listeners["collector"])
            self._load = peer("load", load.serve, None)
            for listener in listeners.values():
                listener.close()
            self._trees = ended.enter_context(_trees({arm.revision for arm in self.plan.arms}))
            self._files = {"": self._written(scenario, "scenario.yaml")}
            for number, (file, other) in enumerate(self.plan.others.items()):
                self._files[file] = self._written(other, f"arm-{number}.yaml")
            self._ended = ended.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._ended:
            if kind is MeasurementError and self._signals.take():  # it has ended a process as well
                raise KeyboardInterrupt

    def _written(self, scenario: Scenario, name: str) -> str:
        path = (self.plan.out_dir / name).resolve()
        path.write_text(scenario.as_run, encoding="utf-8")
        return str(path)

    @contextmanager
    def launch(self, arms: Sequence[Arm]) -> Iterator[Launch]:
        """Start the measured worker, with the arms made in random order."""
        order = self._random.sample(arms, len(arms))
        number, self._launches = self._launches, self._launches + 1
        places: dict[str, tuple[Worker, int]] = {}
        launch = Launch(number, places)
        try:
            for revision, tree in self._trees.items():
                hosted = [arm for arm in order if arm.revision == revision]
                if hosted:
                    worker = Worker(tree, self._told(hosted, number), self._signals)
                    places |= {arm.name: (worker, index) for index, arm in enumerate(hosted)}
            yield launch
        finally:
            launch.close()

    def _told(self, arms: Iterable[Arm], number: int) -> dict[str, Any]:
        return {
            "scenario": self._files[""],
            "arms": [asdict(self._placed(arm)) for arm in arms],
            "hosts": self._hosts,
            "traces_endpoint": self._endpoint,
            "seed": child_seed(self.plan.seed, "worker", number),
        }

    def _placed(self, arm: Arm) -> Arm:
        """Name the files of an arm as they are named from anywhere."""
        plugins = tuple(str(Path(file).resolve()) for file in arm.plugins)
        return replace(arm, base=self._files.get(arm.base, arm.base), plugins=plugins)

    def turn(self, launch: Launch, stage: str, arms: Sequence[Arm], saturated_s: float = 0.0) -> list[Block]:
        """Give each arm one block, in random order and with the same arrivals; a saturated one lasts `saturated_s`."""
        turn, self._turns = self._turns, self._turns + 1
        seed = self._random.getrandbits(32)
        mix = list(islice(self._mix, SATURATED_MIX if saturated_s else self.plan.block_requests))
        blocks = []
        for place, arm in enumerate(self._random.sample(arms, len(arms))):
            worker, number = launch.places[arm.name]
            requests = self._requests(worker.ports[number], mix)
            order = (
                load.Saturated(requests, SATURATED_CONNECTIONS, saturated_s)
                if saturated_s
                else load.Paced(requests, self.plan.rate_per_s, self._arrival, seed)
            )
            received = self._collector.ask("report")["bytes"]
            before = worker.reading("read", number)
            loaded = self._loaded(order, arm)
            spent = worker.reading("rest", number).since(before)
            if failed := loaded.failed + loaded.errors * (not self._errors_are_meant):
                asked = loaded.failed + loaded.completed
                raise MeasurementError(f"{failed} of {asked} requests of arm {arm.name} failed")
            sent_bytes = self._collector.ask("report")["bytes"] - received
            blocks.append(Block(stage, launch.number, turn, place, arm.name, spent, loaded, sent_bytes))
        return blocks

    def requests(self, launch: Launch, arm: Arm, count: int, rate_per_s: float) -> None:
        """Let an arm serve so many requests, evenly spaced."""
        worker, number = launch.places[arm.name]
        worker.reading("read", number)
        requests = self._requests(worker.ports[number], islice(self._mix, count))
        self._loaded(load.Paced(requests, rate_per_s, "uniform", 0), arm)
        worker.reading("rest", number)

    def _loaded(self, order: load.Paced | load.Saturated, arm: Arm) -> Load:
        # Random arrivals may take longer than their rate says.
        takes_s = order.duration_s if isinstance(order, load.Saturated) else 3 * len(order.requests) / order.rate_per_s
        loaded: Load = self._load.ask(order, takes_s + UNANSWERED_S, f"requests of arm {arm.name} are not answered")
        return loaded

    def _requests(self, port: int, mix: Iterable[int]) -> tuple[Request, ...]:
        requests = [Request.of(each.request, _HOST, port) for each in open_loads(self.plan.scenario.load)]
        return tuple(requests[number] for number in mix)

    @property
    def _errors_are_meant(self) -> bool:
        """Whether an answer of 5xx may be one that the scenario asks of an upstream."""
        upstreams = self.plan.scenario.upstreams.values()
        return any(
            share for upstream in upstreams for status, share in upstream.status.items() if status >= load.SERVER_ERROR
        )

    @property
    def _arrival(self) -> str:
        return (
            "poisson" if any(load.arrival == "poisson" for load in open_loads(self.plan.scenario.load)) else "uniform"
        )


@contextmanager
def _trees(revisions: Iterable[str | None]) -> Iterator[dict[str | None, Path]]:
    """Check out the revisions that are asked for, each in a folder of its own, for as long as the block lasts."""
    here = Path(__file__).resolve().parents[2]
    trees: dict[str | None, Path] = {None: here}
    with ExitStack() as ended:
        for revision in sorted(revision for revision in revisions if revision is not None):
            _require_working_copy(here)
            folder = Path(ended.enter_context(tempfile.TemporaryDirectory(prefix="kongsim-")))
            ended.callback(_forget, here, folder / "tree")  # also when it is interrupted before it is there
            _git(here, "worktree", "add", "--detach", str(folder / "tree"), revision)
            if not (folder / "tree" / _WORKER).is_file():
                cure = "name a later one, or measure it with its own kongsim"
                raise UserError(f"revision {revision} is older than this command", field="--arms", cure=cure)
            trees[revision] = folder / "tree"
        yield trees


def _require_working_copy(folder: Path) -> None:
    """Refuse a folder that is no repository's own: git would take one around it, which knows nothing of this code."""
    if not (folder / ".git").exists():
        cure = "run kongsim from a clone of its repository, or leave the @ out"
        raise UserError("a revision needs a working copy of kongsim, and this is none", field="--arms", cure=cure)


def _forget(folder: Path, tree: Path) -> None:
    with suppress(FileNotFoundError):
        run("git", "worktree", "remove", "--force", str(tree), folder=folder)


def _git(folder: Path, *arguments: str) -> None:
    try:
        exit_code, told = run("git", *arguments, folder=folder)
    except FileNotFoundError:
        cure = "install it, or leave the @ out"
        raise UserError("a revision needs git, which is not installed", field="--arms", cure=cure) from None
    if exit_code:
        reason = (told.strip().splitlines() or ["it failed"])[-1]
        raise UserError(f"git {arguments[0]}: {reason}", field="--arms", cure="name a revision of this repository")
