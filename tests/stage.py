"""A gateway with what stands before and behind it on one event loop, real or virtual: the same play runs on both."""

import asyncio
from contextlib import asynccontextmanager

import uvloop

from kongtrace import PHASES, Execution, tracing
from sim.collector import CollectorServer
from sim.gateway import WorkerGateway
from sim.origin import Origin, OriginServer
from sim.runtime.live import LiveRuntime
from sim.runtime.virtual import VirtualWorld
from sim.timers import Timers
from tests.gateway import gateway_to
from tests.peers import free_port

LOOPBACK = "127.0.0.1"
TIMEOUT_S = 20.0
ROUNDING_S = 0.002  # uvloop counts whole milliseconds, from a time that it reads once a turn


def timers(runtime, places=(), on_idle=lambda: None):
    """Timers of a worker; `places` says of each in turn whether it finds a connection left, and later ones do."""  # N5
    execution = Execution()
    execution.enter(PHASES["init_worker"], {})
    left = iter(places)
    return Timers(
        runtime,
        execution,
        print,
        pending_max=9,
        running_max=9,
        on_idle=on_idle,
        on_end=print,
        admits=lambda: next(left, True),
    )


class Live:
    """The real world: uvloop and sockets. What takes hours elsewhere takes a moment here."""

    name = "live"
    patience = 1.0

    def run(self, play, seed=1):
        async def act():
            async with asyncio.timeout(TIMEOUT_S):
                return await play(Stage(self, LiveRuntime(asyncio.get_running_loop(), seed)))

        return uvloop.run(act())

    def scaled(self, *, virtual_s, live_s):
        return live_s

    def agree(self, measured_s, expected_s):
        """Whether nothing was early; a busy machine may be late."""
        return all(m >= e - ROUNDING_S for m, e in zip(measured_s, expected_s, strict=True))


class Virtual:
    """The virtual world: nothing takes time, and everything is in time."""

    name = "virtual"
    patience = 1.1

    def __init__(self, delay_ns=None):
        self._delay_ns = delay_ns

    def run(self, play, seed=1):
        world = VirtualWorld(seed, self._delay_ns)

        async def act():
            return await play(Stage(self, world.runtime("gateway"), world))

        return world.run(act())

    def scaled(self, *, virtual_s, live_s):
        return virtual_s

    def agree(self, measured_s, expected_s):
        """Whether everything was in time, to the ns."""
        return [round(m * 1e9) for m in measured_s] == [round(e * 1e9) for e in expected_s]


class Client(asyncio.Protocol):
    """A client of one connection."""

    def __init__(self):
        self.received = b""
        self.whole = b""
        self.closed = asyncio.Event()
        self.error = None
        self._more = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data
        self.whole += data
        self._more.set()

    def connection_lost(self, error):
        self.error = error
        self.closed.set()
        self._more.set()

    def send(self, method="GET", path="/", host="orders", headers=""):
        self.transport.write(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode())

    async def answer(self):
        """Return the status of the next answer, once it has come whole; 0 when the connection closed before."""
        while True:
            head, end, rest = self.received.partition(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"), 0
            )
            if end and len(rest) >= length:
                self.received = rest[length:]
                return int(head.split()[1])
            if self.closed.is_set():
                return 0
            self._more.clear()
            await self._more.wait()


class Hosted:
    """A gateway that serves."""

    def __init__(self, stage, config, **options):
        self.log = []
        self.rested = asyncio.Event()
        self.core = WorkerGateway(
            config,
            stage.runtime,
            lambda level, message: self.log.append((stage.elapsed_s(), level, message)),
            on_change=lambda: None,
            on_rest=self.rested.set,
            **options,
        )

    def times_of(self, text):
        """Return when lines with this text were logged, s."""
        return [at_s for at_s, _level, line in self.log if text in line]


class Stage:
    """What a play is given.

    Attributes:
        arm: the world that it is played in.
        runtime: of the gateway.
        world: the virtual one, or None.
    """

    def __init__(self, arm, runtime, world=None):
        self.arm = arm
        self.runtime = runtime
        self.world = world
        self._began_s = runtime.now()

    def elapsed_s(self):
        return self.runtime.now() - self._began_s

    async def wait(self, delay_s):
        """Wait so long."""
        over = asyncio.get_running_loop().create_future()
        self.runtime.call_later(delay_s, over.set_result, None)
        await over

    async def until(self, condition):
        """Wait until a condition holds; look at it after a ms, and ever more rarely where waiting takes no time."""
        delay_s = 0.001
        while not condition():
            await self.wait(delay_s)
            delay_s *= self.arm.patience

    async def dead_port(self):
        """Return a port where nobody listens."""
        if self.world is None:
            return free_port()
        listener = await self.runtime.listen(LOOPBACK, 0, Client)
        listener.close()
        await self.wait(0.01)
        return listener.address[1]

    async def connect(self, port):
        return await self.runtime.connect(LOOPBACK, port, Client)

    @asynccontextmanager
    async def serving(self, server, port=0):
        """Run an origin or a collector; give its port."""
        server.open(self.runtime.alarm)
        listener = await self.runtime.listen(LOOPBACK, port, server.accept)
        try:
            yield listener.address[1]
        finally:
            listener.close()
            server.close()

    def origin(self, **model):
        return self.serving(OriginServer(Origin(**model)))

    @asynccontextmanager
    async def collector(self, port=0):
        """Run a collector; give its port and the spans that come."""
        spans = []
        async with self.serving(CollectorServer(0.0, spans.append), port) as chosen:
            yield chosen, spans

    @asynccontextmanager
    async def gateway(self, port, *, classes=None, make_provider=None, **options):
        """Run a gateway to a port; give it, with its own port in `port`."""
        given = {"classes": classes, "make_provider": make_provider}
        hosted = Hosted(self, gateway_to(port, **options), **{k: v for k, v in given.items() if v is not None})
        listener = await self.runtime.listen(LOOPBACK, 0, hosted.core.connection)
        hosted.port = listener.address[1]
        hosted.listener = listener
        try:
            yield hosted
        finally:
            listener.close()
            await hosted.core.close()
            tracing.use(None)
