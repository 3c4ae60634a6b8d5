"""Peers and other servers in processes of their own, for tests."""

import asyncio
import contextlib
import os
import signal
import socket

from sim import process

TIMEOUT_S = 30.0


class Peer:
    """A peer under test, seen from its parent."""

    def __init__(self, child, control, port=None):
        self.child = child
        self.control = control
        self.port = port

    def receive(self):
        """Return the next report that the peer sends."""
        assert self.control.poll(TIMEOUT_S)
        return self.control.recv()

    def report(self):
        """Ask for a report."""
        self.control.send("report")
        return self.receive()

    def stop(self):
        """Stop the peer and return its final report."""
        self.control.send("stop")
        return self.end()

    def end(self):
        """Await the peer's end and return its final report."""
        report = self.receive()
        assert process.reap(self.child, TIMEOUT_S) == 0
        return report

    def signal(self, signum):
        os.kill(self.child.pid, signum)


@contextlib.contextmanager
def started(target, *args, **options):
    """Fork a peer that runs `target(control, *args, **options)`."""
    ours, theirs = process.pipe()
    child = process.start(lambda: target(theirs, *args, **options), name="peer", closing=[ours])
    theirs.close()
    try:
        yield Peer(child, ours)
    finally:
        ours.close()
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        process.reap(child, TIMEOUT_S)


def listener():
    """Return a socket that listens on a port of its own.

    Its connections wait for no acknowledgement (Nagle): head and body of an answer would come 40 ms after one another.
    """
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@contextlib.contextmanager
def listening(target, *args, **options):
    """Fork a peer that runs `target(sock, control, *args, **options)` on a port of its own."""
    with (
        listener() as sock,
        started(lambda control: target(sock, control, *args, **options)) as peer,
    ):
        peer.port = sock.getsockname()[1]
        sock.close()  # it is the peer's: kept here, it would go on accepting when the peer does not
        yield peer


@contextlib.contextmanager
def serving(protocol):
    """Fork a server whose connections are `protocol()`; give its port."""

    async def serve(sock):
        server = await asyncio.get_running_loop().create_server(protocol, sock=sock)
        await server.serve_forever()

    with listener() as sock:
        child = process.start(lambda: asyncio.run(serve(sock)), name="server")
        try:
            yield sock.getsockname()[1]
        finally:
            os.kill(child.pid, signal.SIGKILL)
            process.reap(child, TIMEOUT_S)


def wait_accepting(port):
    """Wait until connections to a port are accepted."""
    for _ in range(int(TIMEOUT_S * 100)):
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), TIMEOUT_S).close()
            return
        process.wait([], 0.01)
    raise AssertionError(f"connections to port {port} are refused")


def free_port():
    """Return a port that nobody listens on, and that nobody gets who asks for any while these tests run.

    A socket stays bound to it. Who is told the number can bind it too (SO_REUSEADDR), and listen there.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port = holder.getsockname()[1]
    holder.detach()
    return port
