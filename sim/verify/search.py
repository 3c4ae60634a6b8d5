"""The search: many programs, and for each mistake the smallest that shows it.

The programs in which one thing is unusual come first, then those that hypothesis draws from one seed. All of them are
run, and every mistake is kept with the smallest that showed it. If that is no plain one, hypothesis looks for the
mistake again, which costs nothing since what was run is remembered, and shrinks it. Each part has its time; what is
left unshrunk when that is over is reported as it was found.

Times in s, of a real clock: they bound the search and decide nothing else.
"""

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from kongtrace.findings import Frame
from sim.errors import UserError
from sim.verify import trial
from sim.verify.mistakes import FORBIDDEN_CALL, STALL, Key, Mistake
from sim.verify.program import Program, plain_programs, programs

PROGRAMS: Final = 250
"""Programs that hypothesis draws, unless time is over before: some thousands of requests."""

SEARCH_S: Final = 20.0
"""How long programs are run."""

SHRINK_S: Final = 3.0
"""How long one mistake is shrunk, and at most `SEARCH_S` all of them."""

KEPT_MAX: Final = 50
"""Mistakes that are reported; who has more mends these first."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A mistake, and the smallest program found that shows it.

    Attributes:
        mistake: what is wrong.
        program: that shows it.
        calls: a plugin has called a service in it.
    """

    mistake: Mistake
    program: Program
    calls: bool = False


@dataclass(slots=True)
class Verdict:
    """What was found.

    Attributes:
        shown: the mistakes, worst first, then by place.
        seed: of the programs.
        programs: that were run.
        requests: that ended in their log phase.
        called: services that plugins have called, `host:port`.
        seconds: that it took.
    """

    shown: list[Shown] = field(default_factory=list)
    seed: int = 0
    programs: int = 0
    requests: int = 0
    called: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Search:
    """Runs programs, and remembers what came of each.

    Args:
        suspects: the plugins under test.
        seed: that programs are drawn from.
        told: called with the numbers of programs and requests so far, after each program.
    """

    def __init__(
        self,
        suspects: trial.Suspects,
        seed: int,
        told: Callable[[int, int], object] = lambda _programs, _requests: None,
    ) -> None:
        self._suspects = suspects
        self._outcomes: dict[Program, trial.Outcome] = {}
        self._first: dict[Key, tuple[Mistake, Program]] = {}
        self._stalls: set[Frame] = set()
        self._requests = 0
        self._told = told
        self._plain = dict.fromkeys(plain_programs())
        self.seed = seed

    def run(self) -> Verdict:
        """Look for mistakes.

        Raises:
            UserError: a plugin cannot be loaded.
        """
        began_s = time.monotonic()
        if (refused := self._refused()) is not None:
            return refused
        verdict = Verdict(seed=self.seed)
        gc.collect()
        gc.freeze()
        try:
            self._explore(began_s + SEARCH_S)
            end_s = time.monotonic() + SEARCH_S
            verdict.shown = [self._smallest(key, end_s) for key in list(self._first)[:KEPT_MAX]]
        finally:
            gc.unfreeze()
        verdict.shown.sort(key=lambda shown: (-shown.mistake.rule.severity, shown.mistake.place, shown.mistake.code))
        verdict.programs = len(self._outcomes)
        verdict.requests = self._requests
        verdict.called = sorted({place for outcome in self._outcomes.values() for place in outcome.called})
        verdict.seconds = time.monotonic() - began_s
        return verdict

    def replay(self, program: Program) -> Verdict:
        """Run one program alone.

        Raises:
            UserError: a plugin cannot be loaded.
        """
        began_s = time.monotonic()
        if (refused := self._refused()) is not None:
            return refused
        outcome = trial.run(self._suspects, program)
        shown = [Shown(mistake, program, bool(outcome.called)) for mistake in outcome.mistakes]
        return Verdict(shown, self.seed, 1, outcome.requests, sorted(outcome.called), time.monotonic() - began_s)

    def _refused(self) -> Verdict | None:
        """Return the verdict on a plugin that is not loaded because of a mistake; None where there is no such one."""
        try:
            with trial.unheard():
                self._suspects.load()
        except UserError as error:
            return Verdict([Shown(_awaiting(error), Program(()))], self.seed)
        return None

    def _try(self, program: Program) -> trial.Outcome:
        outcome = self._outcomes.get(program)
        if outcome is None:
            outcome = self._outcomes[program] = trial.run(self._suspects, program, self._stalls)
            if any(mistake.code == STALL for mistake in outcome.mistakes):
                self._stalls |= outcome.stalled
            self._requests += outcome.requests
            self._told(len(self._outcomes), self._requests)
            for mistake in outcome.mistakes:
                first = self._first.setdefault(mistake.key, (mistake, program))
                if program.requests < first[1].requests:
                    self._first[mistake.key] = (mistake, program)
        return outcome

    def _explore(self, end_s: float) -> None:
        def enough(program: Program) -> bool:
            if time.monotonic() < end_s:
                self._try(program)
            return False

        for program in self._plain:
            enough(program)
        self._find(enough, shrinks=False)

    def _smallest(self, key: Key, end_s: float) -> Shown:
        """Shrink the program that shows a mistake."""
        end_s = min(end_s, time.monotonic() + SHRINK_S)

        mistake, first = self._first[key]
        if first in self._plain:
            return Shown(mistake, first, bool(self._outcomes[first].called))

        def shows(program: Program) -> bool:
            if program not in self._outcomes and time.monotonic() >= end_s:
                return False
            outcome = self._try(program)
            if key[0] == STALL:
                # Of handlers that are known to stall only that is noted, not the line.
                return mistake.misuse[-1] in outcome.stalled
            return any(other.key == key for other in outcome.mistakes)

        found = self._find(shows, shrinks=True)
        program = found if found is not None and found.requests <= first.requests else first
        outcome = self._try(program)
        told = next((m for m in outcome.mistakes if m.key == key), mistake)
        return Shown(told, program, bool(outcome.called))

    def _find(self, condition: Callable[[Program], bool], *, shrinks: bool) -> Program | None:
        """Return the smallest program that hypothesis finds; the same ones are drawn each time."""
        try:
            import hypothesis  # noqa: PLC0415 - an extra
            from hypothesis.errors import NoSuchExample, Unsatisfiable  # noqa: PLC0415 - the same
        except ImportError:
            raise UserError("verify needs hypothesis", cure="install kongsim[testing]") from None
        settings = hypothesis.settings(
            max_examples=PROGRAMS,
            database=None,
            deadline=None,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink) if shrinks else (hypothesis.Phase.generate,),
            suppress_health_check=list(hypothesis.HealthCheck),
            derandomize=False,
        )
        try:
            return hypothesis.find(programs(), condition, settings=settings, random=random.Random(self.seed))
        except (NoSuchExample, Unsatisfiable):
            return None


def _awaiting(error: UserError) -> Mistake:
    """Return the mistake that kept a plugin from being loaded, if it is one; else raise the error again."""
    if not error.message.endswith(" must not wait") or error.file is None or error.line is None:
        raise error
    plugin, phase = error.message.split()[:2]
    place = Frame(error.file, error.line, phase)
    message = f"{phase} is a coroutine function: the gateway does not load it"
    return Mistake(FORBIDDEN_CALL, message, plugin.rstrip(":"), phase, None, place, (place,))
