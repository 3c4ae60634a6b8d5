"""A worker's gateway on wires of memory: no socket, no loop, no process, and every turn in the test's hands.

Behind it stands an upstream of another implementation (h11), which takes nothing that is not valid HTTP/1.1.
"""

import asyncio
import json
import random

import h11

from sim.config import Gateway, Tracing
from sim.entity import Route, Service
from sim.gateway import WorkerGateway
from sim.upstream import UpstreamConnection

ADDRESS = ("127.0.0.1", 8080)


class Wire(asyncio.Transport):
    """One end of a connection: keeps what is written to it, in order."""

    def __init__(self, **facts):
        super().__init__()
        self._facts = facts
        self.written = bytearray()
        self.reading = True
        self.closing = False
        self.ended = False
        self.aborted = False

    def get_extra_info(self, name, default=None):
        return self._facts.get(name, default)

    def write(self, data):
        assert not self.ended
        if not self.closing:
            self.written += data

    def take(self):
        """Return what was written since the last time."""
        taken = bytes(self.written)
        self.written.clear()
        return taken

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.ended = True

    def pause_reading(self):
        assert self.reading
        self.reading = False

    def resume_reading(self):
        assert not self.reading
        self.reading = True

    def is_closing(self):
        return self.closing

    def close(self):
        self.closing = True

    def abort(self):
        self.closing = self.aborted = True
        self.written.clear()

    def get_write_buffer_size(self):
        return len(self.written)


class Calendar:
    """A runtime whose time stands still until the test moves it."""

    def __init__(self):
        self.now_s = 1000.0
        self.entropy = random.Random(7)
        self.random = self.entropy.random
        self.random_bytes = self.entropy.randbytes
        self.due = []

    def time_ns(self):
        return int(self.now_s * 1_000_000_000)

    def now(self):
        return self.now_s

    def call_soon(self, callback, *arguments, context=None):
        self.due.append((self.now_s, callback, arguments))

    def call_later(self, delay_s, callback, *arguments):
        self.due.append((self.now_s + delay_s, callback, arguments))

    def run(self, thread, done):
        """Run a light thread that has nothing to wait for."""
        try:
            thread.send(None)
        except StopIteration:
            done(None)
        else:
            raise AssertionError("it waits")

    def advance(self, seconds):
        """Move the time, calling back on the way what becomes due."""
        end_s = self.now_s + seconds
        while due := [entry for entry in self.due if entry[0] <= end_s]:
            first = min(due, key=lambda entry: entry[0])
            self.due.remove(first)
            self.now_s = max(self.now_s, first[0])
            first[1](*first[2])
        self.now_s = end_s


class Upstream:
    """An h11 server at the end of one kept connection: answers each request with what it has understood."""

    def __init__(self, wired, number):
        self.wire = Wire()
        self.protocol = UpstreamConnection(wired.worker.pool, ADDRESS)
        self.protocol.connection_made(self.wire)
        self.server = h11.Connection(h11.SERVER)
        self.number = number
        self.request, self.body = None, b""

    def turn(self):
        """Take what has come; return the requests that are complete."""
        understood = []
        if self.wire.closing:
            return understood
        self.server.receive_data(taken) if (taken := self.wire.take()) else None
        while True:
            event = self.server.next_event()
            if isinstance(event, h11.Request):
                self.request, self.body = event, b""
            elif isinstance(event, h11.Data):
                self.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                understood.append((self.request, self.body, event.headers))
                self.answer()
            else:
                return understood

    def answer(self):
        request = self.request
        told = json.dumps([request.method.decode(), request.target.decode(), self.body.decode("latin-1")]).encode()
        head = h11.Response(status_code=200, headers=[("Content-Length", str(len(told)))], reason=b"OK")
        answer = self.server.send(head)
        if request.method != b"HEAD":
            answer += self.server.send(h11.Data(data=told))
        answer += self.server.send(h11.EndOfMessage())
        self.server.start_next_cycle()
        self.protocol.data_received(answer)


class Client:
    """One client's connection to the gateway."""

    def __init__(self, wired, peer="192.0.2.1"):
        self.wired = wired
        self.wire = Wire(peername=(peer, 40000), sockname=("127.0.0.1", 8000))
        self.connection = wired.worker.connection()
        self.connection.connection_made(self.wire)

    def send(self, *parts):
        """Let the gateway read each part in a read of its own, with a turn after each."""
        for part in parts:
            self.wait_to_read()
            if self.wire.closing:
                break
            self.connection.data_received(part)
            self.wired.turn()
        return self

    def wait_to_read(self):
        """A kernel would hold back what is not read; here the gateway must come to read in time."""
        self.wired.turn()
        assert self.wire.reading or self.wire.closing, "nothing is read any more"

    def received(self):
        """Return what the gateway has sent."""
        return bytes(self.wire.written)

    def leave(self):
        self.connection.connection_lost(None)


class Wired:
    """A worker's gateway, the connections behind it, and what they have understood."""

    def __init__(self, *, plugins=(), classes=None, kept=4, **options):
        gateway = Gateway(
            **{
                "tracing": Tracing(instrumentations=("off",)),
                "services": (Service(name="orders", host=ADDRESS[0], port=ADDRESS[1]),),
                "routes": (Route(name="all", service="orders", paths=("/",), strip_path=False),),
                "plugins": tuple(plugins),
            }
            | options
        )
        self.runtime = Calendar()
        self.lines = []
        self.ended = []  # requests
        self.logged = []  # what an access log has of them
        self.worker = WorkerGateway(
            gateway,
            self.runtime,
            lambda level, message: self.lines.append((level, message)),
            on_change=lambda: None,
            on_rest=lambda: None,
            on_logged=self.note,
            **({"classes": classes} if classes else {}),
        )
        self.upstreams = []
        self.understood = []
        for _ in range(kept):
            self.add_upstream()

    def note(self, request):
        self.ended.append(request)
        agents = [value for name, value in request.lines if name.lower() == b"user-agent"]
        self.logged.append((request.request_line, request.status, request.body_bytes_sent, *agents))

    def add_upstream(self):
        upstream = Upstream(self, len(self.upstreams))
        self.upstreams.append(upstream)
        self.worker.pool.keep(upstream.protocol)
        return upstream

    def client(self, peer="192.0.2.1"):
        return Client(self, peer)

    def turn(self):
        """Let the upstreams answer until nothing happens any more."""
        while any(self._turn(upstream) for upstream in self.upstreams):
            pass

    def _turn(self, upstream):
        understood = upstream.turn()
        self.understood += understood
        if upstream.wire.closing and upstream.protocol in self.worker.pool.open:
            upstream.protocol.connection_lost(None)
            self.upstreams.remove(upstream)
            self.add_upstream()
        return bool(understood)
