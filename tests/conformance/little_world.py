"""A little world with everything in it that could make two runs differ; prints what happened, with its time in ns.

Run as a program with a seed: latencies and statuses drawn, clients that go away, a collector that goes and comes back,
a worker that leaves while requests are under way.
"""

import asyncio
import hashlib
import sys

from kongtrace import PHASES
from sim.collector import CollectorServer
from sim.config import Nginx
from sim.entity import Plugin
from sim.gateway import WorkerGateway
from sim.light_thread import LightThread
from sim.origin import Origin, OriginServer
from sim.runtime.virtual import VirtualWorld
from tests.gateway import gateway_to
from tests.stage import LOOPBACK, Client

CLIENTS = 12
REQUESTS = 8


def main(seed):
    world = VirtualWorld(seed, lambda generator: round(generator.expovariate(1 / 300_000)))
    lines = []

    def note(text):
        lines.append(f"{world.loop.now_ns} {text}")

    world.run(play(world, note, seed))
    print("\n".join(lines))


async def play(world, note, seed):
    runtime = world.runtime("worker 0")
    origin = OriginServer(
        Origin(latency_p50_ms=3, latency_p99_ms=80, status={200: 0.9, 503: 0.1}, body_bytes=3000, seed=seed)
    )
    origin.open(runtime.alarm)
    upstream = await runtime.listen(LOOPBACK, 0, origin.accept)
    collector = CollectorServer(2.0, lambda span: note(f"span {hashlib.sha256(span.SerializeToString()).hexdigest()}"))
    collector.open(runtime.alarm)
    receiver = await runtime.listen(LOOPBACK, 0, collector.accept)
    rested = asyncio.Event()
    gateway = WorkerGateway(
        gateway_to(
            upstream.address[1],
            collector=receiver.address[1],
            seed=seed,
            nginx=Nginx(worker_shutdown_timeout="2s"),
            plugins=(Plugin(name="correlation-id", config={"header_name": "X-Id", "echo_downstream": True}),),
        ),
        runtime,
        lambda level, message: note(f"{level} {message}"),
        on_change=lambda: None,
        on_rest=rested.set,
    )
    front = await runtime.listen(LOOPBACK, 0, gateway.connection)
    clients = [visit(world, note, front.address[1], number) for number in range(CLIENTS)]

    def outage():
        receiver.close()
        for connection in tuple(collector.connections):
            connection.transport.abort()

    async def recover():
        await runtime.listen(*receiver.address, collector.accept)

    def leave():
        front.close()
        gateway.quit()

    runtime.call_later(0.3, outage)
    recovery = LightThread(recover(), gateway.provider.execution, PHASES["timer"], {})
    runtime.call_later(0.9, runtime.run, recovery, lambda error: note(f"recovered {error}"))
    runtime.call_later(1.5, leave)
    await asyncio.gather(*clients)
    await rested.wait()
    note(f"counts {gateway.counts.requests} {gateway.counts.responses} {gateway.exporter.queues.counters()}")
    note(f"balances {gateway.provider.balances()}")
    await gateway.close()


async def visit(world, note, port, number):
    runtime = world.runtime(f"client {number}")
    for turn in range(REQUESTS):
        await pause(runtime, runtime.random() * 0.4)
        try:
            client = await runtime.connect(LOOPBACK, port, Client)
        except OSError as error:
            note(f"client {number}.{turn} {error}")
            continue
        client.send(path=f"/{number}/{turn}")
        if runtime.random() < 0.1:
            await pause(runtime, runtime.random() * 0.01)
            client.transport.abort()
            note(f"client {number}.{turn} went away")
            continue
        status = await client.answer()
        note(f"client {number}.{turn} {status} {hashlib.sha256(client.whole).hexdigest()}")
        client.transport.close()


async def pause(runtime, delay_s):
    over = asyncio.get_running_loop().create_future()
    runtime.call_later(delay_s, over.set_result, None)
    await over


if __name__ == "__main__":
    main(int(sys.argv[1]))
