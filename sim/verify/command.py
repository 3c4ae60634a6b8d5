"""The command `kongsim verify`: from its options to a report on standard output and an exit code."""

import linecache
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sim.document import parse_json
from sim.errors import UserError, nearest, printable
from sim.verify import baseline as _baseline
from sim.verify.formats import FORMATS
from sim.verify.mistakes import RULES
from sim.verify.outside import SAMPLE, read_answers
from sim.verify.program import parse
from sim.verify.search import Search
from sim.verify.trial import Suspects

EXIT_MISTAKES: Final = 97

_TOLD_MAX: Final = 5
"""Services that one line names at most."""


def run(
    plugins: tuple[str, ...],
    form: str,
    seed: int,
    *,
    config: str | None = None,
    answers: str | None = None,
    select: str | None = None,
    ignore: str | None = None,
    baseline: str | None = None,
    write_baseline: str | None = None,
    replay: str | None = None,
) -> int:
    """Verify plugins and print the report; return 97 when there are mistakes that count, else 0.

    Raises:
        UserError: an option or a plugin is not as it should be.
    """
    linecache.checkcache()
    if form not in FORMATS:
        raise UserError(f"there is no format {form}", field="--format", cure=nearest(form, FORMATS))
    selected, ignored = _codes("--select", select), _codes("--ignore", ignore)
    known = frozenset() if baseline is None else _baseline.read(baseline)
    if write_baseline is not None:
        _baseline.require_place(write_baseline)
    suspects = Suspects(plugins, _configs(config), _answers(answers))
    with _progress() as told:
        search = Search(suspects, seed, told)
        verdict = search.run() if replay is None else search.replay(parse(replay))
    _tell_uncalled(suspects.answers, verdict.called)
    verdict.shown = [
        shown
        for shown in verdict.shown
        if (not selected or shown.mistake.code.startswith(selected))
        and not (ignored and shown.mistake.code.startswith(ignored))
    ]
    if write_baseline is not None:
        _baseline.write(write_baseline, verdict)
        sys.stderr.write(f"{write_baseline}: {len(verdict.shown)} known from now on\n")
        return 0
    verdict.shown = _baseline.without_known(verdict.shown, known)
    sys.stdout.write(FORMATS[form](suspects, verdict))
    sys.stdout.flush()  # here a full disk can be told
    return EXIT_MISTAKES if verdict.shown else 0


@contextmanager
def _progress() -> Iterator[Callable[[int, int], object]]:
    """Show on a terminal how far it has come."""
    screen = sys.stderr
    if not screen.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _programs, _requests: None
        return

    def show(programs: int, requests: int) -> None:
        screen.write(f"\r{programs:,} programs, {requests:,} requests")
        screen.flush()

    try:
        yield show
    finally:
        screen.write("\r\x1b[K")
        screen.flush()


def _codes(option: str, given: str | None) -> tuple[str, ...]:
    codes = tuple(word.strip() for word in (given or "").split(",") if word.strip())
    for code in codes:
        if not any(rule.startswith(code) for rule in RULES):
            raise UserError(f"there is no code {code}", field=option, cure=nearest(code, RULES))
    return codes


def _configs(given: str | None) -> dict[str, dict[str, Any]]:
    if given is None:
        return {}
    configs = _json("--config", given, """write '{"shop": {"limit": 3}}'""")
    if not isinstance(configs, dict) or not all(isinstance(value, dict) for value in configs.values()):
        raise UserError("must be a mapping by plugin", field="--config", cure="""write '{"shop": {"limit": 3}}'""")
    return configs


def _answers(given: str | None) -> dict[str, Any]:
    if given is None:
        return {}
    answers = _json("--answers", given, SAMPLE)
    try:
        read_answers(answers)
    except UserError as error:
        raise UserError(error.message, field="--answers", cure=error.cure) from None
    return dict(answers)


def _json(option: str, given: str, cure: str) -> Any:
    try:
        return parse_json(given)
    except ValueError as error:
        raise UserError(f"is no JSON: {error}", field=option, cure=cure) from None


def _tell_uncalled(answers: Iterable[str], called: Sequence[str]) -> None:
    """Tell of a service that was given an answer and that nobody has called: its name may be misspelt."""
    hosts = {host for place in called for host in (place, place.rpartition(":")[0])}
    for host in answers:
        if host.lower() not in hosts:
            were = f"called were {', '.join(called[:_TOLD_MAX])}" if called else "no service was called"
            sys.stderr.write(printable(f"--answers: nobody has called {host}; {were}") + "\n")
