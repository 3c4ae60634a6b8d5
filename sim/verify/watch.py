"""The watch: looks at plugins' handlers and timers while they run, and notes what they do wrong.

Theory of operation. A *watched class* is the plugin's class with each handler wrapped; a coroutine is watched step by
step, since between steps others run. Around each step a real clock runs, beside the virtual one: a step that takes long
and in which the thread computed, or gave the processor away by itself, has stalled the loop; one that was only
interrupted by other programs has not. Garbage, most of it the watch's own, is collected between steps. A stall counts
when two trials that run again have it on the same line, which an interval timer tells.

Tasks that a handler makes are watched like the handler, but what they raise is its affair: it may expect that.

Whatever the virtual world has not got, but the operating system has, is asked for elsewhere: an audit hook hears of
it (PEP 578). It stays for the life of the process, since none can be taken out, and is deaf outside steps.

Every timer belongs to a *lineage*: that of the request, or of the worker, from which it descends over however many
timers. So a storm and what is left behind are told of the request that began it.

The watch knows the plugins by their files. The place of a mistake is the first line of the user's own code on its
stack; what has none is the gateway's own affair.
"""

import _thread
import asyncio
import errno
import gc
import inspect
import resource
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from functools import cache, partial
from pathlib import Path
from sys import _getframe
from types import CodeType, CoroutineType, FrameType, TracebackType
from typing import Any, Final, Self

import kongtrace
from kongtrace import ApiError, Execution
from kongtrace.findings import Finding, Frame, Stack
from sim.light_thread import make_task
from sim.pdk.response import Exit
from sim.plugin import AWAITING_PHASES, PLAIN_PHASES
from sim.runtime.virtual import LACKING, NotVirtualError
from sim.timers import Answer, Timers
from sim.verify.mistakes import (
    BEHIND_THE_GATEWAY,
    ENDS_MORE,
    FORBIDDEN_CALL,
    ORPHAN_PARENT,
    RAISES,
    STALL,
    TIMER_LEFT,
    TIMER_STORM,
    WAITS_FOR_EVER,
    Key,
    Mistake,
)

BLOCKED_MS: Final = 10
"""A step that gives the processor away has stalled the loop when it takes this long; ten requests could have run."""

COMPUTED_MS: Final = 50
"""A step that computes has when it takes this long, of CPU time."""

STUCK_S: Final = 5.0
"""A step that has not come back after so many s of the real clock never will: it is broken off."""

STUCK_AGAIN_S: Final = COMPUTED_MS / 1000
"""The same of a handler that was broken off before in this trial, so that many such requests have an end."""

TIMERS_MAX: Final = 20
"""Timers that one request may set off, descendants included."""

REFUSED_AFTER: Final = 100
"""Timers of one lineage after which it gets no more, so that a trial ends."""

LEFT_MIN: Final = 3
"""Timers of one line that requests must have left behind; one or two may be the worker's, made when first needed."""

STACK_DEPTH_MAX: Final = 24

HANDLERS: Final = ("init_worker", "configure", *AWAITING_PHASES, *PLAIN_PHASES)

_NETWORK: Final = ("connect", "sendto", "sendmsg", "getaddrinfo", "gethostbyname", "gethostbyaddr")
_PROCESS: Final = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec")
_CONNECTIONS: Final = ("create_connection", "create_datagram_endpoint", "create_unix_connection", "getaddrinfo")
_SIGNAL: Final = ("os.kill", "os.killpg", "signal.pthread_kill")
_THREAD: Final = ("_thread.start_new_thread", "_thread.start_joinable_thread")
ELSEWHERE: Final = {
    **{f"socket.{name}": "the network" for name in _NETWORK},
    **dict.fromkeys(_PROCESS, "a process"),
    **dict.fromkeys(_SIGNAL, "a signal"),
    **dict.fromkeys(_THREAD, "a thread"),
    LACKING: "what it lacks here",
}
"""What a handler may ask the operating system for, by the audit event (PEP 578) that tells of it."""

_LINEAGE: Final = "KONGSIM_LINEAGE"
_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000
_PATHS: Final = sysconfig.get_paths()
_GATEWAY: Final = f"{Path(__file__).parents[1]}/"
_NOT_THE_USERS: Final = (
    "<",
    *(f"{_PATHS[name]}/" for name in ("stdlib", "purelib", "platlib")),
    f"{Path(kongtrace.__file__).parent}/",
    _GATEWAY,
)


class StuckError(BaseException):
    """Raised in a handler that does not come back; no handler catches it by mistake."""


class LeftError(Exception):
    """Raised in place of what is no `Exception`, SystemExit above all: it would end the verification, or a request."""


class Lineage:
    """All timers that descend from one request, or from the worker.

    Attributes:
        of_request: it began in a request.
        created: timers made so far.
    """

    __slots__ = ("created", "of_request")

    def __init__(self, *, of_request: bool) -> None:
        self.of_request = of_request
        self.created = 0


class Watch:
    """What is seen in one trial.

    Args:
        files: of the plugins, each with the plugin's name.
        locates: stalls are told with their line; else only that there was one.
        breaks_off: a step that does not come back is broken off, by the alarm clock of the process (SIGALRM).
        isolates: the operating system's network and processes fail, as if they were not there.

    Attributes:
        mistakes: what was found, by what makes them the same.
        stalled: the handlers of which a step has stalled the loop, by their first lines.
        stuck: those of which one was broken off.
        timers: those that have not ended, each with its lineage and where it was made.
        waiting: coroutines that have not ended, each with its first line.
        execution: of the gateway that runs now.
    """

    def __init__(
        self, files: Mapping[str, str], *, locates: bool, breaks_off: bool = True, isolates: bool = True
    ) -> None:
        _listen()
        self._files = files
        self._isolates = isolates
        self._locates = locates
        self._breaks_off = breaks_off
        self._worker = Lineage(of_request=False)
        self.mistakes: dict[Key, Mistake] = {}
        self.stalled: set[Frame] = set()
        self.stuck: set[Frame] = set()
        self.timers: dict[object, tuple[Lineage, Stack]] = {}
        self.waiting: dict[Steps, Frame] = {}
        self.execution = Execution()

    # What is found.

    def found(self, finding: Finding) -> None:
        """Take a finding of the tracer; what the gateway did with a span of its own is no plugin's mistake."""
        place = self._place(finding.misuse)
        by = finding.misuse[0].filename
        if place is not None and (by in self._files or not by.startswith(_GATEWAY)):
            self._keep(Mistake.of_finding(finding, place, self._plugin(finding.misuse)))

    def tell(self, code: str, message: str, stack: Stack, phase: str | None = None) -> None:
        """Take a finding of the gateway."""
        place = self._place(stack)
        if place is not None:
            phase = phase or self.execution.phase.name
            self._keep(Mistake(code, message, self._plugin(stack), phase, None, place, stack))

    def tell_by_callback(self, code: str, message: str) -> None:
        """Take a finding of a callback that a plugin has left to the event loop: no line of the plugin is known."""
        first = Frame(next(iter(self._files)), 1, "<module>")
        self.tell(code, f"a callback of the event loop: {message}", (first,))

    def raised(self, error: BaseException) -> bool:
        """A handler has raised, or a task; whether that is a plugin's affair."""
        if isinstance(error, LeftError):
            return True  # that has been told already
        stack = _stack_of_error(error)
        if isinstance(error, KeyboardInterrupt) and not (stack and self._is_users(stack[0].filename)):
            return False  # that is the user's, who interrupts from outside
        place = self._place(stack)
        if place is None and error.__cause__ is not None:
            # A StopIteration that leaves a coroutine comes as the cause of a RuntimeError.
            stack = _stack_of_error(error.__cause__)
            place = self._place(stack)
        if place is None:
            return False
        if any(
            key[1:] == (place.filename, place.line) and key[0].startswith(("KT", BEHIND_THE_GATEWAY))
            for key in self.mistakes
        ):
            return True  # that has been told already
        code = RAISES
        if isinstance(error, NotVirtualError):
            code = BEHIND_THE_GATEWAY
        elif isinstance(error, ApiError) and _is_forbidden(str(error)):
            code = FORBIDDEN_CALL
        self.tell(code, f"{type(error).__name__}: {error}", stack)
        return True

    def orphaned(self, header: str, parent_id: str, stack: Stack) -> None:
        """A header for the upstream names a span that is none of the request's."""
        self.tell(ORPHAN_PARENT, f"{header} names the parent {parent_id}, which no span of the request is", stack)

    def stall(self, milliseconds: float, stack: Stack) -> None:
        """A step has stalled the loop, if anybody waited for it meanwhile."""
        if self.execution.phase.name == "init_worker":
            return
        self.stalled.add(stack[-1])
        if self._locates:
            self.tell(STALL, f"the loop stood still for about {_rounded(milliseconds):g} ms", stack)

    def asked_elsewhere(self, event: str, arguments: tuple[object, ...], caller: FrameType) -> None:
        """A handler asks the operating system for something, or the event loop for what it has from there.

        Raises:
            ConnectionRefusedError: it does not get it.
        """
        if self.execution.phase.name == "init_worker":
            return
        if event == LACKING:
            event = str(arguments[0])
            what, message = event, f"the event loop is asked for {event}"
            refused = event in _CONNECTIONS
        else:
            what = ELSEWHERE[event]
            message = f"the operating system is asked for {what} ({event})"
            refused = event not in _THREAD
        self.tell(BEHIND_THE_GATEWAY, message, _running[-1].stack(caller))
        if self._isolates and refused:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"the virtual world has not got {what}: {event}")

    def task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
        """Make a task of the loop, and note whose it is; one of a plugin's is watched."""
        step = _running[-1] if _running else None
        stack = () if step is None else step.stack(_getframe(1))
        if step is None or not self.is_by_user(stack):
            return _Task(self, coroutine, loop=loop, **options)
        if inspect.iscoroutine(coroutine):
            coroutine = TaskSteps(self, coroutine, step.tasks, stack)
        task = make_task(loop, coroutine, **options)
        step.tasks.append((task, stack))
        return task

    def guarded(self, stop: Callable[[], None]) -> Callable[[], None]:
        """Return the `stop` of an event loop that does so for asyncio itself, and else is told."""

        def stopping() -> None:
            caller = _getframe(1)
            if caller.f_globals.get("__name__") == "asyncio.base_events":
                stop()
                return
            message = "the event loop is told to stop, and the worker ends with it"
            stack = stack_of(caller)
            if self.is_by_user(stack):
                self.tell(ENDS_MORE, message, stack)
            else:
                self.tell_by_callback(ENDS_MORE, message)

        return stopping

    def lets_cancel(self, caller: FrameType) -> bool:
        """Whether a task of the gateway may be cancelled; it is told if not."""
        stack = stack_of(caller)
        if caller.f_globals.get("__name__") == "asyncio.runners" or not (_running and self.is_by_user(stack)):
            return True
        self.tell(ENDS_MORE, "a task is cancelled that the handler has not made", stack)
        return False

    def ended(self, tasks: "Tasks") -> None:
        """A handler has ended that made these tasks."""
        for task, stack in tasks:
            if not task.done() and not task.cancelling():
                self.tell(BEHIND_THE_GATEWAY, "a task of the event loop goes on after its handler", stack)
        # Each refers to the list, and would be garbage only when the collector comes by, and the spans of its context.
        tasks.clear()

    # Timers.

    def lineage(self) -> Lineage:
        """Return the lineage of what runs now."""
        ctx = self.execution.ctx
        if ctx is None or (not self.execution.phase.spans and self.execution.phase.name != "timer"):
            return self._worker
        found: Lineage = ctx.setdefault(_LINEAGE, Lineage(of_request=True))
        return found

    def adopt(self, lineage: Lineage) -> None:
        """What runs now, a timer, is of this lineage."""
        if self.execution.ctx is not None:
            self.execution.ctx[_LINEAGE] = lineage

    def left_behind(self, requests: int) -> None:
        """All requests have ended long ago: tell what they have left behind."""
        left: dict[tuple[Frame, ...], int] = {}
        for lineage, stack in self.timers.values():
            if lineage.of_request:
                left[stack[:1]] = left.get(stack[:1], 0) + 1
        for lineage, stack in self.timers.values():
            count = left.pop(stack[:1], 0) if lineage.of_request else 0
            if count >= LEFT_MIN and 2 * count >= requests:
                self.tell(TIMER_LEFT, f"{requests} requests have left {count} timers behind", stack, "timer")

    def not_leaving(self, seconds: float) -> None:
        """The worker was told to leave so long ago, and timers keep it."""
        for _lineage, stack in self.timers.values():
            message = f"the worker was told to leave, and {seconds:g} s later this timer goes on"
            self.tell(TIMER_LEFT, message, stack, "timer")

    def not_ending(self, how: str) -> None:
        """A handler never returns."""
        for first in self.waiting.values():
            self.tell(WAITS_FOR_EVER, f"{first.function} {how}", (first,))

    # Places.

    def _place(self, stack: Stack) -> Frame | None:
        return next((frame for frame in stack if self._is_users(frame.filename)), None)

    def _plugin(self, stack: Stack) -> str:
        names = (self._files[frame.filename] for frame in stack if frame.filename in self._files)
        return next(names, next(iter(self._files.values())))

    def is_by_user(self, stack: Stack) -> bool:
        """Whether the user's code is nearer than the gateway's."""
        by = next((frame for frame in stack if self._is_users(frame.filename) or _is_gateways(frame.filename)), None)
        return by is not None and self._is_users(by.filename)

    def _is_users(self, filename: str) -> bool:
        # A relative name is that of a file that was compiled elsewhere.
        return filename in self._files or (filename.startswith("/") and not filename.startswith(_NOT_THE_USERS))

    def _keep(self, mistake: Mistake) -> None:
        self.mistakes.setdefault(mistake.key, mistake)

    # Handlers.

    def watched(self, plugin: Any) -> Any:
        """Return the class of a plugin with its handlers wrapped."""
        handlers = {name: self._wrapped(getattr(plugin, name), name) for name in HANDLERS if hasattr(plugin, name)}
        return type(plugin.__name__, (plugin,), {**handlers, "__module__": plugin.__module__})

    def _wrapped(self, handler: Callable[..., Any], name: str) -> Callable[..., Any]:
        first = _first_line(handler)

        if inspect.iscoroutinefunction(handler):

            async def awaiting(*arguments: Any) -> Any:
                return await Steps(self, handler(*arguments), first)

            return awaiting

        def plain(*arguments: Any) -> Any:
            with Step(self, first) as step:
                given = handler(*arguments)
            self.ended(step.tasks)
            if isinstance(given, Awaitable):
                cure = f": write async def {name}" if name in AWAITING_PHASES else ""
                self.tell(FORBIDDEN_CALL, f"{name} returned something to await, which nobody awaits{cure}", (first,))
                if isinstance(given, Coroutine):
                    given.close()
            return given

        return plain


Tasks = list[tuple["asyncio.Task[Any]", Stack]]
"""Tasks that a handler has made, and where."""


Lets = Callable[[BaseException], bool]
"""Whether an exception may leave a step."""


class Step:
    """One step of a handler, from one wait to the next; a real clock runs meanwhile.

    Args:
        watch: that looks at it.
        first: line of the handler.
        tasks: takes those that it makes.
        lets: whether an exception may leave it.
        origin: where the task was made that it belongs to, if that is not the handler's.

    Attributes:
        watch: the same.
        tasks: the same.
    """

    __slots__ = (
        "_alarm_s",
        "_caught",
        "_collects",
        "_cpu_ns",
        "_first",
        "_gave_away",
        "_lets",
        "_origin",
        "_previous",
        "_wall_ns",
        "tasks",
        "watch",
    )

    def __init__(
        self, watch: Watch, first: Frame, tasks: Tasks | None = None, lets: Lets | None = None, origin: Stack = ()
    ) -> None:
        self.watch = watch
        self._origin = origin
        self.tasks: Tasks = [] if tasks is None else tasks
        self._lets = lets or _lets_handler
        self._first = first
        self._caught: Stack = ()

    def __enter__(self) -> Self:
        _running.append(self)
        self._collects = gc.isenabled()
        gc.disable()
        self._gave_away = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        self._cpu_ns = time.thread_time_ns()
        self._wall_ns = time.perf_counter_ns()
        if self.watch._breaks_off:  # noqa: SLF001 - the two are one
            self._previous = signal.signal(signal.SIGALRM, self._note)
            stuck_s = STUCK_AGAIN_S if self._first in self.watch.stuck else STUCK_S
            first_s = BLOCKED_MS / 1000 if self.watch._locates else stuck_s  # noqa: SLF001 - the same
            # Last: what it takes to begin, on a busy machine, is not what the handler takes.
            self._alarm_s = signal.setitimer(signal.ITIMER_REAL, first_s, stuck_s)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: TracebackType | None) -> None:
        wall_ns = time.perf_counter_ns() - self._wall_ns
        _running.remove(self)
        if self._collects:
            gc.enable()
        if self.watch._breaks_off:  # noqa: SLF001 - see above
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._previous)
            delay_s, interval_s = self._alarm_s
            if delay_s:
                # Somebody else's alarm, maybe of a test that takes too long.
                signal.setitimer(signal.ITIMER_REAL, max(delay_s - wall_ns / _NS_PER_S, 1e-6), interval_s)
        if isinstance(error, StuckError):
            self.watch.tell(STALL, f"the handler had not come back after {STUCK_S:g} s", self._caught)
            self.watch.stuck.add(self._first)
            return
        if wall_ns >= BLOCKED_MS * _NS_PER_MS:
            cpu_ns = time.thread_time_ns() - self._cpu_ns
            gave_away = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw > self._gave_away
            if (gave_away and 2 * cpu_ns < wall_ns) or cpu_ns >= COMPUTED_MS * _NS_PER_MS:
                self.watch.stall(wall_ns / _NS_PER_MS, (*self._caught, self._first))
        if error is None or self._lets(error):
            return
        is_plugins = self.watch.raised(error)
        if isinstance(error, KeyboardInterrupt) and not is_plugins:
            return
        if not isinstance(error, Exception):
            raise LeftError(f"{type(error).__name__}: {error}") from error

    def stack(self, caller: FrameType) -> Stack:
        """What it does now, and for whom."""
        frames = stack_of(caller)
        entry = next((index for index, frame in enumerate(frames) if frame.filename == __file__), len(frames))
        return frames[:entry] + self._origin

    def _note(self, _signum: int, frame: FrameType | None) -> None:
        if _is_at_the_edge(frame):
            return
        before, self._caught = self._caught, self._caught or stack_of(frame)
        if before or not self.watch._locates:  # noqa: SLF001 - see above
            raise StuckError


_EDGES: Final = frozenset({Step.__enter__.__code__, Step.__exit__.__code__})


def _is_at_the_edge(frame: FrameType | None) -> bool:
    """Whether a step begins or ends there: nobody would catch what is raised, and the alarm would stay."""
    while frame is not None and frame.f_code not in _EDGES:
        frame = frame.f_back
    return frame is not None


_running: Final[list[Step]] = []
"""The step that runs now, if any."""


@cache
def _listen() -> None:
    def heard(event: str, arguments: tuple[object, ...], depth: int = 1) -> None:
        if event in ELSEWHERE and _running:
            _running[-1].watch.asked_elsewhere(event, arguments, _getframe(depth))

    sys.addaudithook(heard)
    if sys.version_info < (3, 12):
        # Before that Python itself tells of no thread.
        start: Any = _thread.start_new_thread

        def starting(*arguments: Any) -> int:
            heard("_thread.start_new_thread", arguments, depth=2)
            return int(start(*arguments))

        threading._start_new_thread = _thread.start_new_thread = starting  # type: ignore[attr-defined]  # noqa: SLF001 - what `Thread` calls


def _lets_handler(error: BaseException) -> bool:
    return isinstance(error, Exit)


def _lets_coroutine(error: BaseException) -> bool:
    if isinstance(error, asyncio.CancelledError):
        # By the gateway, or else the handler has done it itself.
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, (Exit, StopIteration))


def _lets_task(error: BaseException) -> bool:
    return isinstance(error, (Exception, Exit, asyncio.CancelledError))


class Steps:
    """A coroutine that is watched step by step."""

    def __init__(self, watch: Watch, coroutine: Any, first: Frame) -> None:
        self._watch = watch
        self._coroutine = coroutine
        self._first = first

    def __await__(self) -> Generator[Any, Any, Any]:
        """Run it."""
        coroutine = self._coroutine if isinstance(self._coroutine, Coroutine) else self._coroutine.__await__()
        value: Any = None
        error: BaseException | None = None
        tasks: Tasks = []
        self._watch.waiting[self] = self._first
        try:
            while True:
                try:
                    with Step(self._watch, self._first, tasks, _lets_coroutine):
                        waited = coroutine.send(value) if error is None else coroutine.throw(error)
                except StopIteration as end:
                    return end.value
                error = None
                try:
                    value = yield waited
                except GeneratorExit:
                    coroutine.close()
                    raise
                except BaseException as thrown:  # noqa: BLE001 - it is handed on
                    error = thrown
        finally:
            self._watch.waiting.pop(self, None)
            self._watch.ended(tasks)


class TaskSteps(Coroutine[Any, Any, Any]):
    """The coroutine of a task that a handler has made, watched step by step.

    Args:
        watch: that looks at it.
        coroutine: of the plugin.
        tasks: of the handler.
        origin: where the task was made.
    """

    def __init__(self, watch: Watch, coroutine: "CoroutineType[Any, Any, Any]", tasks: Tasks, origin: Stack) -> None:
        self._coroutine = coroutine
        self._step = partial(Step, watch, _frame_of(coroutine.cr_code), tasks, _lets_task, origin)

    def send(self, value: Any) -> Any:
        """See `Coroutine.send`."""
        with self._step():
            return self._coroutine.send(value)

    def throw(self, *thrown: Any) -> Any:
        """See `Coroutine.throw`."""
        with self._step():
            return self._coroutine.throw(*thrown)

    def close(self) -> None:
        """See `Coroutine.close`."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        """See `Coroutine.__await__`."""
        return (yield from self._coroutine.__await__())


class _Task(asyncio.Task[Any]):
    """A task of the gateway."""

    def __init__(self, watch: Watch, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._watch = watch

    def cancel(self, msg: Any = None) -> bool:
        """Cancel it, unless a plugin does that."""
        if not self.cancelling() and not self._watch.lets_cancel(_getframe(1)):
            return False
        return super().cancel(msg)


class WatchedTimers(Timers):
    """Timers of which each is watched.

    Args:
        watch: that looks at them.
        arguments: of `Timers`.
    """

    def __init__(self, watch: Watch, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._watch = watch

    def at(self, *arguments: Any, **options: Any) -> Answer:
        """See `Timers.at`."""
        return self._made(super().at, once=True, arguments=arguments, options=options)

    def every(self, *arguments: Any, **options: Any) -> Answer:
        """See `Timers.every`."""
        return self._made(super().every, once=False, arguments=arguments, options=options)

    def _made(
        self, make: Callable[..., Answer], *, once: bool, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Answer:
        watch = self._watch
        if len(arguments) < 2 or not callable(arguments[1]):
            return make(*arguments, **options)
        stack = stack_of(_getframe(2))
        lineage = watch.lineage()
        lineage.created += 1
        if lineage.of_request and lineage.created > TIMERS_MAX:
            watch.tell(TIMER_STORM, f"one request has set off more than {TIMERS_MAX} timers", stack)
            if lineage.created > REFUSED_AFTER:
                return None, "too many pending timers"
        token = object()
        callback = _WatchedCallback(watch, arguments[1], lineage, token, once=once)
        answer = make(arguments[0], callback, *arguments[2:], **options)
        # The job of a queue stays for as long as the queue has entries: that is the gateway's affair.
        if answer[0] and watch.is_by_user(stack):
            watch.timers[token] = (lineage, stack)
        elif answer[1] == "too many pending timers":
            watch.tell(TIMER_STORM, "no timer could be made: too many are pending", stack)
        return answer


class _WatchedCallback:
    """The callback of a timer."""

    def __init__(
        self, watch: Watch, callback: Callable[..., Any], lineage: Lineage, token: object, *, once: bool
    ) -> None:
        self._watch = watch
        self._callback = callback
        self._lineage = lineage
        self._token = token
        self._once = once
        self._first = _first_line(callback)

    def __call__(self, premature: bool, *arguments: Any) -> Any:
        watch = self._watch
        watch.adopt(self._lineage)
        try:
            with Step(watch, self._first) as step:
                given = self._callback(premature, *arguments)
            watch.ended(step.tasks)
        except BaseException:
            self._end(premature)
            raise
        if isinstance(given, Awaitable):
            return self._finish(given, premature)
        self._end(premature)
        return given

    async def _finish(self, given: Any, premature: bool) -> None:
        try:
            await Steps(self._watch, given, self._first)
        finally:
            self._end(premature)

    def _end(self, premature: bool) -> None:
        if self._once or premature:
            self._watch.timers.pop(self._token, None)


def _first_line(function: Callable[..., Any]) -> Frame:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return _frame_of(code) if code else Frame("<unknown>", 1, repr(function))


def _frame_of(code: CodeType) -> Frame:
    return Frame(code.co_filename, code.co_firstlineno, code.co_name)


def _stack_of_error(error: BaseException) -> Stack:
    frames = [
        Frame(frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    return tuple(reversed(frames))[:STACK_DEPTH_MAX]


def _is_gateways(filename: str) -> bool:
    return filename.startswith(_GATEWAY)


def stack_of(frame: FrameType | None) -> Stack:
    """Return the stack from a frame outwards."""
    lines: list[Frame] = []
    while frame is not None and len(lines) < STACK_DEPTH_MAX:
        lines.append(Frame(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(lines)


def _is_forbidden(message: str) -> bool:
    return message.startswith(("API disabled in the context of", "function cannot be called in"))


def _rounded(milliseconds: float) -> float:
    """The same in two runs that take nearly as long."""
    step = 10 if milliseconds < 100 else 50
    return max(step, step * round(milliseconds / step))
