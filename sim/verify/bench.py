"""The bench: a gateway for the tests of a plugin, used from plain functions; what waits, waits in virtual time.

    bench = Bench()
    bench.use("greeter.py", greeting="howdy")
    bench.answer("quota.internal", body={"limit": 3})
    answer = bench.get("/orders?name=Ada")

Plugins are told before the first request. What `kongsim verify` looks for is looked for here too. When a handler has
stalled, all that the test did is done again at its end, in two more worlds: what stalls there on the same line counts.
"""

import asyncio
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from kongtrace import tracing
from sim.collector import CollectorServer
from sim.config import Tracing
from sim.document import explain
from sim.errors import UserError, nearest
from sim.runtime.virtual import EverybodyWaitsError, TimeStandsStillError
from sim.verify.mistakes import STALL, Key, Mistake
from sim.verify.outside import read_answers
from sim.verify.program import CALLED, UPSTREAMS, Program, Visit
from sim.verify.trial import Suspects, Trial, files_of, look_again, misconfigured, unheard
from sim.verify.watch import Watch

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

T = TypeVar("T")

Deed = Callable[[Trial], Coroutine[Any, Any, T]]
"""Something that a test has done in a world, and that can be done in another."""

EXPORT_S = 5.0
"""More than an exporter coalesces."""


@dataclass(frozen=True)
class Answer:
    """What a client got.

    Attributes:
        status: 0 when the connection closed without an answer.
        headers: by name in lower case, the last of each.
        body: bytes.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Bench:
    """A gateway to send requests to.

    Attributes:
        mistakes: what was found so far.
        log: the error log, level and message of each line.
    """

    def __init__(self) -> None:
        self._places: list[str] = []
        self._configs: dict[str, dict[str, Any]] = {}
        self._answers: dict[str, Any] = {}
        self._program = Program(())
        self._trial: Trial | None = None
        self._suspects: Suspects
        self._watch: Watch
        self._runner: asyncio.Runner
        self._spans: list[Span] = []
        self._deeds: list[Deed[Any]] = []
        self.mistakes: list[Mistake] = []
        self.log: list[tuple[str, str]] = []

    def use(self, place: str, **config: Any) -> None:
        """Run a plugin: a file, a module or the name of a bundled one, with this configuration.

        Raises:
            UserError: it cannot be loaded, its configuration is wrong, or a request was made already.
        """
        if self._trial is not None:
            raise UserError("a request was made already", field=place, cure="use plugins before the first request")
        before = Suspects(tuple(self._places)).read()
        self._places.append(place)
        for name, plugin in Suspects(tuple(self._places)).read().items():
            if name not in before:
                if wrong := misconfigured(name, plugin, config):
                    raise UserError(wrong, file=place)
                self._configs[name] = config

    def answer(
        self,
        host: str,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        text: str | bytes | None = None,
    ) -> None:
        """Say what a service that plugins call answers from now on, when it does.

        Args:
            host: of it; or host and port, `quota.internal:8080`.
            status: of HTTP.
            headers: of HTTP.
            body: of HTTP: bytes or text, or what JSON can say.
            text: of another protocol, in place of all these: what is said to each part of what comes.

        Raises:
            UserError: no service can answer that.
        """
        told = {"status": status, "headers": headers, "body": body} if text is None else text
        answers = self._answers | {host: told}
        read_answers(answers)
        self._answers = answers

    def trace(self, sampling_rate: float = 1.0, instrumentations: str | Iterable[str] = "all") -> None:
        """Set how the gateway traces; else it traces everything.

        Args:
            sampling_rate: 0 to 1.
            instrumentations: words of Kong's `tracing_instrumentations`, divided by commas or in a list.

        Raises:
            UserError: there is no such word or rate, or a request was made already.
        """
        if self._trial is not None:
            raise UserError("a request was made already", cure="trace before the first request")
        words = instrumentations.split(",") if isinstance(instrumentations, str) else instrumentations
        told = {"sampling_rate": sampling_rate, "instrumentations": [word.strip() for word in words]}
        try:
            asked = Tracing.model_validate(told)
        except ValidationError as error:
            message, cure, _below = explain(details := error.errors()[0])
            raise UserError(message, field=str(details["loc"][0]), cure=cure) from None
        self._program = Program((), asked.sampling_rate, ",".join(asked.instrumentations))

    def get(self, path: str = "/", **options: Any) -> Answer:
        """Make a GET request; see `request`."""
        return self.request("GET", path, **options)

    def request(
        self,
        method: str,
        path: str = "/",
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        upstream: str = "answers",
        called: str = "answers",
        abort_s: float | None = None,
    ) -> Answer:
        """Make a request and return its answer.

        Args:
            method: of it.
            path: with the query.
            headers: beside Host and what frames the body.
            body: of it.
            upstream: what the service does: "answers", "fails", "is slow", "refuses" and so on (`UPSTREAMS`).
            called: what every other service does that plugins call, until the next request (`CALLED`).
            abort_s: after which the client goes away, s.

        Raises:
            UserError: the service cannot do that.
        """
        for field_name, does, known in (("upstream", upstream, UPSTREAMS), ("called", called, CALLED)):
            if does not in known:
                raise UserError(f"no service {does}", field=field_name, cure=nearest(does, known))
        visit, told, answers = (
            Visit(method=method, upstream=upstream, called=called),
            dict(headers or {}),
            self._answers,
        )

        def ask(trial: Trial) -> Coroutine[Any, Any, Answer]:
            trial.outside.answers = read_answers(answers)
            return _request(trial, visit, path, told, body, abort_s)

        return self._run(ask)

    def advance(self, seconds: float) -> None:
        """Let time pass: timers go off, queues send."""
        self._run(lambda trial: trial.pause(seconds))

    @property
    def spans(self) -> "list[Span]":
        """The spans that have reached the collector, in order of arrival; waits for those on their way."""
        self.advance(EXPORT_S)
        return list(self._spans)

    def finish(self) -> list[Mistake]:
        """Let the worker leave, and return all that was found."""
        trial, self._trial = self._trial, None
        if trial is not None:
            with self._runner, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._runner.run(trial.end())
            tracing.use(None)
            self._note(trial)
            if self._watch.stalled:
                last, again = look_again(self._stalls_again, lambda stalls: stalls.keys())
                self.mistakes += [last[key] for key in last if key in again]
        return self.mistakes

    def close(self) -> None:
        """Give everything up."""
        if self._trial is not None:
            self._trial = None
            self._runner.close()
            tracing.use(None)

    def _started(self) -> Trial:
        if self._trial is None:
            suspects = Suspects(tuple(self._places), self._configs, self._answers)
            classes = suspects.load()
            self._suspects = suspects
            self._watch = Watch(files_of(classes), locates=False, breaks_off=False, isolates=False)
            self._trial = Trial(
                suspects,
                classes,
                self._program,
                self._watch,
                collector=CollectorServer(0.0, self._spans.append),
                log=lambda level, message: self.log.append((level, message)),
            )
            loop = self._trial.world.loop
            self._runner = asyncio.Runner(loop_factory=lambda: loop)
            self._run(Trial.begin)
        return self._trial

    def _run(self, deed: Deed[T]) -> T:
        trial = self._started()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = self._runner.run(deed(trial))
        self._note(trial)
        self._deeds.append(deed)
        return given

    def _stalls_again(self) -> dict[Key, Mistake]:
        """Do it all again, and return the stalls with their lines."""
        suspects = self._suspects

        async def play() -> None:
            for deed in (*self._deeds, Trial.end):
                await deed(trial)

        with unheard():
            classes = suspects.load()
            watch = Watch(files_of(classes), locates=True, isolates=False)
            trial = Trial(suspects, classes, self._program, watch, collector=CollectorServer(0.0, lambda _span: None))
            with suppress(TimeStandsStillError, EverybodyWaitsError):
                trial.world.run(play())
        tracing.use(None)
        return {key: mistake for key, mistake in watch.mistakes.items() if mistake.code == STALL}

    def _note(self, trial: Trial) -> None:
        known = {mistake.key for mistake in self.mistakes}
        self.mistakes += [mistake for key, mistake in self._watch.mistakes.items() if key not in known]
        if trial.crashes:
            raise trial.crashes[0]


async def _request(
    trial: Trial, visit: Visit, path: str, headers: Mapping[str, str], body: bytes, abort_s: float | None
) -> Answer:
    client = await trial.send(visit, path, headers, body)
    if abort_s is not None:
        trial.runtime.call_later(abort_s, client.transport.abort)
    await client.over
    return _parsed(b"".join(client.received))


def _parsed(data: bytes) -> Answer:
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return Answer(0)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(body)
    return Answer(int(first.split()[1]), headers, body)


def _joined(chunks: bytes) -> bytes:
    body = b""
    with suppress(ValueError):
        while size := int(chunks.partition(b"\r\n")[0] or b"0", 16):
            _line, _, chunks = chunks.partition(b"\r\n")
            body, chunks = body + chunks[:size], chunks[size + 2 :]
    return body
