"""A trial: one program, run through a gateway with watched plugins and checked spans in a virtual world.

One worker, a service that behaves as each request's visit says, a collector that takes what the opentelemetry plugin
exports, and clients. When all requests have ended the world stays quiet for `QUIET_S`, long enough for every retry of
a queue; then the worker leaves. A reload is that in the middle: as every worker is a process of its own, the plugin is
loaded anew for the next.

A trial reads no clock but the virtual one, and draws nothing: the same program has the same mistakes each time, except
for stalls, for which see `sim.verify.watch`. Times in s.
"""

import asyncio
import contextlib
import inspect
import io
import sys
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from pydantic import ValidationError

from kongtrace import PHASES, propagation, tracing
from kongtrace.checked import CheckedProvider, CheckedSpan, tracer_provider
from kongtrace.context import span_list
from kongtrace.findings import Frame
from sim.config import Gateway, Nginx, Tracing
from sim.entity import Plugin, Route, Service
from sim.errors import UserError
from sim.gateway import WorkerGateway
from sim.http_server import HttpServer, response
from sim.pdk import Kong
from sim.plugin import PluginClass, configuration, load
from sim.plugins import BUNDLED
from sim.request import RefusedRequest, Request
from sim.runtime.virtual import EverybodyWaitsError, TimeStandsStillError, VirtualWorld
from sim.verify.mistakes import RAISES, STALL, Key
from sim.verify.outside import REFUSING, SILENT, UNKNOWN, ActingConnection, Outside, OutsideRuntime, read_answers
from sim.verify.program import Program, Reload, Visit
from sim.verify.watch import Watch, WatchedTimers, stack_of

if TYPE_CHECKING:
    from sim.runtime import Listener, Runtime
    from sim.verify.mistakes import Mistake

T = TypeVar("T")

LOOKS_MAX: Final = 4
"""How often a stall is looked at, while it comes each time."""

QUIET_S: Final = 200.0
"""More than twice the 82 s that a queue retries (kong-semantics Q21)."""

PATIENCE_S: Final = 900.0
"""A request that has not ended after that, by the virtual clock, never will."""

MARK: Final = "x-verify"
"""Header that tells the service and the interfering plugin which request it is."""

TRACE_HEADERS: Final = {
    "traceparent": "w3c",
    "b3": "b3",
    "x-b3-spanid": "b3",
    "uber-trace-id": "jaeger",
    "ot-tracer-spanid": "ot",
    "x-datadog-parent-id": "datadog",
    "x-amzn-trace-id": "aws",
    "x-cloud-trace-context": "gcp",
    "x-instana-s": "instana",
}
"""Headers that name a parent, each with its format."""

_HOST: Final = "127.0.0.1"
_HOSTS: Final = {"refuses": "refused.test", "is silent": "silent.test", "is unknown": UNKNOWN}
_SERVED: Final = "orders.test"
_UNROUTED: Final = "nowhere.test"
_NGINX: Final = Nginx.model_validate({"worker_shutdown_timeout": "5s"}).model_copy(
    update={"lua_ssl_trusted_certificate": ()}
)
"""No certificate is ever looked at, and reading the system's takes long enough to be a stall."""

_INJECTED: Final = "KONGSIM_INJECTED"
_TRACE_ID: Final = "0af7651916cd43dd8448eb211c80319c"
_SPAN_ID: Final = "b7ad6b7169203331"
_TRACE_LINES: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "sampled": (f"traceparent: 00-{_TRACE_ID}-{_SPAN_ID}-01",),
    "unsampled": (f"traceparent: 00-{_TRACE_ID}-{_SPAN_ID}-00",),
    "b3": (f"x-b3-traceid: {_TRACE_ID}", f"x-b3-spanid: {_SPAN_ID}", "x-b3-sampled: 1"),
    "malformed": ("traceparent: 00-xyz-1-01", "tracestate: a=1", "x-b3-traceid: not hex"),
    "twice": (f"traceparent: 00-{_TRACE_ID}-{_SPAN_ID}-01",) * 2,
}


@dataclass(frozen=True)
class Suspects:
    """The plugins under test.

    Attributes:
        places: files, modules, or names of bundled plugins.
        configs: configuration by name of plugin.
        answers: what the services that they call answer, as `sim.verify.outside.read_answers` takes it.
    """

    places: tuple[str, ...]
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> dict[str, PluginClass]:
        """Return the classes by name, read anew.

        Raises:
            UserError: one cannot be read or cannot work.
        """
        bundled = {place: BUNDLED[place] for place in self.places if place in BUNDLED}
        loaded = load([place for place in self.places if place not in BUNDLED], BUNDLED)
        return bundled | {name: plugin for name, plugin in loaded.items() if name not in BUNDLED}

    def load(self) -> dict[str, PluginClass]:
        """Return the classes by name, read anew.

        Raises:
            UserError: one cannot be read or cannot work, or its configuration is wrong.
        """
        classes = self.read()
        for name in self.configs:
            if name not in classes:
                raise UserError(
                    f"there is no plugin {name} here", field="--config", cure=f"these are: {', '.join(classes)}"
                )
        for name, plugin in classes.items():
            if wrong := misconfigured(name, plugin, self.configs.get(name, {})):
                raise UserError(wrong, field="--config", cure=f"""write --config '{{"{name}": {{...}}}}'""")
        return classes


def misconfigured(name: str, plugin: PluginClass, config: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the configuration of a plugin, if anything is."""
    try:
        configuration(plugin, config)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, (name, *first['loc'])))}: {first['msg']}"
    return None


class Outcome(NamedTuple):
    """What came of a trial.

    Attributes:
        mistakes: that were found.
        requests: that ended in their log phase.
        stalled: first lines of the handlers that stalled the loop.
        called: services that were called, `host:port`.
    """

    mistakes: "tuple[Mistake, ...]"
    requests: int
    stalled: frozenset[Frame]
    called: frozenset[str]


class InterferenceError(Exception):
    """Another plugin raises."""


def run(suspects: Suspects, program: Program, known_stalls: Container[Frame] = ()) -> Outcome:
    """Run a program.

    Args:
        suspects: the plugins under test.
        program: what happens.
        known_stalls: first lines of handlers that are known to stall: they are not looked into again.

    Raises:
        UserError: a plugin cannot be loaded.
    """
    outcome = _run(suspects, program, locates=False)
    if all(handler in known_stalls for handler in outcome.stalled):
        return outcome
    last, again = look_again(
        lambda: _run(suspects, program, locates=True),
        lambda look: {mistake.key for mistake in look.mistakes if mistake.code == STALL},
    )
    mistakes = tuple(mistake for mistake in last.mistakes if mistake.code != STALL or mistake.key in again)
    return last._replace(mistakes=mistakes, stalled=last.stalled & outcome.stalled)


def look_again(look: Callable[[], T], stalls: Callable[[T], AbstractSet[Key]]) -> tuple[T, AbstractSet[Key]]:
    """Look at what has stalled until two looks have a stall at the same line.

    Whatever this machine was doing meanwhile, it will not do twice at the same line; what stalls by itself stalls each
    time, though on a busy machine the line is told late or early.

    Args:
        look: has everything done again.
        stalls: of a look.

    Returns:
        The last look, and those of its stalls that an earlier one had.
    """
    before: set[Key] = set()
    for _ in range(LOOKS_MAX):
        last = look()
        found = stalls(last)
        again = found & before
        if again or not found:
            break
        before |= found
    return last, again


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Show nothing of what plugins print meanwhile, or are warned of."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield


def _run(suspects: Suspects, program: Program, *, locates: bool) -> Outcome:
    with unheard():
        classes = suspects.load()
        watch = Watch(files_of(classes), locates=locates)
        trial = Trial(suspects, classes, program, watch)
        try:
            trial.world.run(trial.play())
        except TimeStandsStillError:
            watch.not_ending("turns and turns, and no time passes")
        except EverybodyWaitsError:
            watch.not_ending("waits for what will never come")
        except (SystemExit, KeyboardInterrupt) as error:
            # Out of a callback of the event loop.
            if not watch.raised(error):
                if isinstance(error, KeyboardInterrupt):
                    raise
                watch.tell_by_callback(RAISES, f"SystemExit: {error}")
        finally:
            tracing.use(None)
    if trial.crashes:
        raise trial.crashes[0]
    found, called = tuple(watch.mistakes.values()), frozenset(trial.outside.called)
    return Outcome(found, trial.requests, frozenset(watch.stalled), called)


def files_of(classes: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of plugins, each with the name of its plugin."""
    return {inspect.getfile(plugin): name for name, plugin in classes.items()}


def _no_log(_level: str, _message: str) -> None:
    pass


def _nothing() -> None:
    pass


class Trial:
    """One program in one world; or requests by hand, between `begin` and `end`.

    Args:
        suspects: the plugins under test.
        classes: the same, loaded.
        program: what happens.
        watch: looks at it.
        collector: takes what is exported; None: the service does, and drops it.
        log: takes a level and a message.

    Attributes:
        world: in which it happens.
        outside: the services that plugins call.
        runtime: of all but the worker.
        gateway: that serves now.
        front: where it listens.
        visits: how the service treats requests, by their mark.
        requests: that ended in their log phase.
        crashes: exceptions that no plugin is to blame for.
    """

    def __init__(
        self,
        suspects: Suspects,
        classes: dict[str, PluginClass],
        program: Program,
        watch: Watch,
        *,
        collector: HttpServer | None = None,
        log: Callable[[str, str], None] = _no_log,
    ) -> None:
        self._suspects = suspects
        self._classes: dict[str, PluginClass] | None = classes
        self._program = program
        self._watch = watch
        self._collector = collector
        self._log = log
        self._rested: asyncio.Event
        self._upstream = self._receiver = (_HOST, 0)
        self.gateway: WorkerGateway
        self.front: Listener
        self.visits: dict[str, Visit] = {}
        self.requests = 0
        self.crashes: list[BaseException] = []
        self.world = VirtualWorld(0, lambda _generator: 50_000)
        self.outside = Outside(self.world, read_answers(suspects.answers))
        self.runtime: Runtime = self.world.runtime("outside")
        self._runtime = OutsideRuntime(self.world, "gateway", self.outside)
        loop = self.world.loop
        loop.set_exception_handler(self._unhandled)
        loop.set_task_factory(watch.task)
        loop.stop = watch.guarded(loop.stop)  # type: ignore[method-assign]  # of this one loop

    async def begin(self) -> None:
        """Start service, collector and worker."""
        self.outside.open(self.runtime)
        self._upstream = self._receiver = await self._serve(ServiceServer(self.visits))
        if self._collector is not None:
            self._receiver = await self._serve(self._collector)
        await self._start()

    async def end(self) -> None:
        """Wait for the requests to end and the world to be quiet, and let the worker leave."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self.gateway.counts.active:
                    await self.pause(0.1)
        except TimeoutError:
            self._watch.not_ending(f"has not returned after {PATIENCE_S:g} s")
        else:
            # What a timer holds now, it will have let go when the world has been quiet.
            self._sweep()
        await self.pause(QUIET_S)
        self._watch.left_behind(self.requests + self.gateway.counts.requests)
        await self._leave()

    async def _serve(self, server: HttpServer) -> tuple[str, int]:
        server.open(self.runtime.alarm)
        return (await self.runtime.listen(_HOST, 0, server.accept)).address

    async def play(self) -> None:
        """Run the program from beginning to end."""
        await self.begin()
        clients: list[asyncio.Future[None]] = []
        for step in self._program.steps:
            if isinstance(step, Reload):
                await self._leave()
                await self._start()
                continue
            for _ in range(step.times):
                clients.append(await self._visit(step))
                await self.pause(step.gap_ms / 1000)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*clients)
        await self.end()

    async def pause(self, delay_s: float) -> None:
        """Let time pass."""
        over = asyncio.Event()
        self.runtime.call_later(delay_s, over.set)
        await over.wait()

    # The worker.

    async def _start(self) -> None:
        classes = self._suspects.load() if self._classes is None else self._classes
        self._classes = None
        watch = self._watch
        self._rested = asyncio.Event()
        companions: list[Any] = [Interfering.of(order, self.visits) for order in self._orders()]
        gateway = self.gateway = WorkerGateway(
            self._configuration(classes, [companion.NAME for companion in companions]),
            self._runtime,
            self._log,
            on_change=_nothing,
            on_rest=self._rested.set,
            classes={
                **BUNDLED,
                **{name: watch.watched(plugin) for name, plugin in classes.items()},
                **{companion.NAME: companion for companion in companions},
            },
            make_provider=self._provider,
            make_timers=partial(WatchedTimers, watch),
            on_logged=self._logged,
        )
        _note_injections(gateway.kong, watch)
        self.front = await self.runtime.listen(_HOST, 0, gateway.connection)

    def _provider(self, **arguments: Any) -> CheckedProvider:
        provider = tracer_provider("report", on_finding=self._watch.found, **arguments)
        assert isinstance(provider, CheckedProvider)
        self._watch.execution = provider.execution
        return provider

    async def _leave(self) -> None:
        gateway = self.gateway
        self.front.close()
        gateway.quit()
        try:
            async with asyncio.timeout(QUIET_S):
                await self._rested.wait()
        except TimeoutError:
            self._watch.not_leaving(QUIET_S)
        self._sweep()
        self.requests += gateway.counts.requests
        gateway.terminate()
        await gateway.close()
        self._watch.timers.clear()

    def _sweep(self) -> None:
        # Nothing runs: what ran last, and its spans, are not referred to any more.
        self._watch.execution.enter(PHASES["timer"], None)
        assert isinstance(self.gateway.provider, CheckedProvider)
        self.gateway.provider.sweep()

    def _orders(self) -> Iterable[str]:
        visits = [step for step in self._program.steps if isinstance(step, Visit)]
        return [order for order in ("before", "after") if any(v.interference.endswith(order) for v in visits)]

    def _configuration(self, classes: Mapping[str, PluginClass], companions: Iterable[str]) -> Gateway:
        exporter = {"traces_endpoint": f"http://{_HOST}:{self._receiver[1]}/v1/traces"}
        configs = {name: dict(self._suspects.configs.get(name, {})) for name in classes}
        if "opentelemetry" in configs:
            configs["opentelemetry"] = exporter | configs["opentelemetry"]
        elif self._program.instrumentations != "off":
            configs["opentelemetry"] = exporter
        hosts = [_SERVED, *_HOSTS.values()]
        return Gateway(
            tracing=Tracing(
                instrumentations=tuple(self._program.instrumentations.split(",")),
                sampling_rate=self._program.sampling_rate,
            ),
            nginx=_NGINX,
            hosts={_SERVED: self._upstream, "refused.test": REFUSING, "silent.test": SILENT},
            services=tuple(
                Service(name=host, host=host, retries=1, connect_timeout=2_000, read_timeout=5_000) for host in hosts
            ),
            routes=tuple(Route(name=host, service=host, hosts=(host,), paths=("/",)) for host in hosts),
            plugins=tuple(
                Plugin(name=name, config=config)
                for name, config in (configs | {name: {} for name in companions}).items()
            ),
        )

    def _logged(self, request: Request | RefusedRequest) -> None:
        """Look whether the upstream was told a parent that it will never see (kong-semantics H18)."""
        if isinstance(request, RefusedRequest):
            return
        stack = request.ctx.get(_INJECTED)
        if stack is None or not request.tries or request.tries[-1].state is not None:
            return
        sampled = {}
        for namespace in self._watch.execution.namespaces:
            for span in span_list(request.ctx, namespace.name):
                if isinstance(span, CheckedSpan) and not span.record.released:
                    sampled[span.span_id] = span.should_sample
        for name, form in TRACE_HEADERS.items():
            parent = None if request.headers.get(name) is None else _parent_named(form, request.headers)
            if parent is not None and parent.hex() != _SPAN_ID and not sampled.get(parent):
                self._watch.orphaned(name, parent.hex(), stack)

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception) and not self._watch.raised(error):
            self.crashes.append(error)

    # Clients.

    async def _visit(self, visit: Visit) -> "asyncio.Future[None]":
        """Begin a request; return what is done when the client has its answer, or has gone."""
        number = len(self.visits)
        mark = "&" if "?" in visit.path else "?"
        client = await self.send(visit, f"{quote(visit.path, safe='/?%=&;,.')}{mark}n={number}")
        if visit.abort_ms is not None and not client.over.done():
            self.runtime.call_later(visit.abort_ms / 1000, client.transport.abort)
        return client.over

    async def send(
        self, visit: Visit, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> "Client":
        """Send a request, and return its client.

        Args:
            visit: what happens to it.
            path: with the query.
            headers: beside what the visit says.
            body: None: as large as the visit says.
        """
        number = len(self.visits)
        self.visits[str(number)] = visit
        self.outside.obey(visit)
        client = Client(asyncio.get_running_loop().create_future())
        try:
            await self.runtime.connect(*self.front.address, lambda: client)
        except OSError:
            client.over.set_result(None)
            return client
        host = _UNROUTED if visit.upstream == "has no route" else _HOSTS.get(visit.upstream, _SERVED)
        body = b"x" * visit.body if body is None else body
        lines = [
            f"{visit.method} {path} HTTP/1.1",
            f"Host: {host}",
            f"{MARK}: {number}",
            "Connection: close",
            *_TRACE_LINES[visit.trace],
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
            *([f"Content-Length: {len(body)}"] if body else []),
        ]
        client.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        return client


def _parent_named(form: str, headers: Any) -> bytes | None:
    """The parent that headers of a format name, unless they say that it is not sampled, or cannot be read."""
    try:
        told = propagation.extract_format(form, headers, _no_log)
    except propagation.UnguardedError:
        return None
    return None if told is None or told.should_sample is False else (told.span_id or told.parent_id)


class Client(asyncio.Protocol):
    """A client of one request.

    Args:
        over: done when the connection has closed.

    Attributes:
        over: the same.
        received: parts of the answer.
    """

    transport: asyncio.Transport

    def __init__(self, over: "asyncio.Future[None]") -> None:
        self.over = over
        self.received: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self.received.append(data)

    def connection_lost(self, _error: Exception | None) -> None:
        """The answer has come, or will not."""
        if not self.over.done():
            self.over.set_result(None)


class ServiceServer(HttpServer):
    """The service and the collector: it answers as each request's visit says.

    Args:
        visits: by their mark; what has none comes from an exporter.
    """

    def __init__(self, visits: Mapping[str, Visit]) -> None:
        super().__init__()
        self.visits = visits

    def accept(self) -> "ServiceConnection":
        """Return the protocol of a new connection."""
        return ServiceConnection(self)


class ServiceConnection(ActingConnection):
    """A connection to the service."""

    server: ServiceServer

    def __init__(self, server: ServiceServer) -> None:
        super().__init__(server)
        self._mark = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note the mark."""
        super().on_header(name, value)
        if name.lower() == MARK.encode():
            self._mark = value.decode("latin-1")

    def request(self) -> tuple[str, bool]:
        """Return the mark, and whether it is a HEAD request."""
        mark, self._mark = self._mark, ""
        return mark, self.parser.get_method() == b"HEAD"

    def respond(self, request: tuple[str, bool], keep_alive: bool) -> tuple[bytes, int]:
        """Answer, or not."""
        mark, head = request
        visit = self.server.visits.get(mark, _USUAL)
        status = 503 if visit.upstream == "fails" else 200
        data = response(status, {}, b"x" * visit.answer, head=head, keep_alive=keep_alive)
        return self.act(visit.upstream, data, visit.answer)


_USUAL: Final = Visit()


class Interfering:
    """Another plugin, which raises or answers as the visits say."""

    NAME = ""
    PRIORITY = 0
    VERSION = "1"
    visits: Mapping[str, Visit]

    @classmethod
    def of(cls, order: str, visits: Mapping[str, Visit]) -> "type[Interfering]":
        """Make the one that runs before or after the others."""
        priority = 10**6 if order == "before" else -(10**6)
        return type(cls.__name__, (cls,), {"NAME": f"verify-{order}", "PRIORITY": priority, "visits": visits})

    def rewrite(self, kong: Kong, _conf: object) -> None:
        """Interfere."""
        self._raise_in("rewrite", kong)

    def access(self, kong: Kong, _conf: object) -> None:
        """Interfere, or answer."""
        if self._told(kong) == f"exits {self._order}":
            kong.response.exit(403, b"")
        self._raise_in("access", kong)

    def header_filter(self, kong: Kong, _conf: object) -> None:
        """Interfere."""
        self._raise_in("header_filter", kong)

    def log(self, kong: Kong, _conf: object) -> None:
        """Interfere."""
        self._raise_in("log", kong)

    @property
    def _order(self) -> str:
        return self.NAME.partition("-")[2]

    def _told(self, kong: Kong) -> str:
        mark = kong.request.get_header(MARK)
        return self.visits[mark].interference if mark is not None and mark in self.visits else "nothing"

    def _raise_in(self, phase: str, kong: Kong) -> None:
        if self._told(kong) == f"raises in {phase} {self._order}":
            raise InterferenceError


def _note_injections(kong: Kong, watch: Watch) -> None:
    """Have each request's context tell where a plugin has written a trace header for the upstream."""
    to_service: Any = kong.service.request

    def noting(write: Callable[..., Any]) -> Callable[..., Any]:
        def written(names: Any, *arguments: Any) -> Any:
            for name in [names] if isinstance(names, str) else list(names):
                if str(name).lower() in TRACE_HEADERS and watch.execution.ctx is not None:
                    watch.execution.ctx[_INJECTED] = stack_of(sys._getframe(1))  # noqa: SLF001 - what inspect does, without reading files
            return write(names, *arguments)

        return written

    for method in ("set_header", "add_header", "set_headers"):
        setattr(to_service, method, noting(getattr(to_service, method)))
