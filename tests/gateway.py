"""A live gateway for tests: real master, real workers, and what stands before and behind them."""

import gzip
import http.client
import http.server
import json
import os
import socket
import ssl
import sys
import threading
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from signal import SIGHUP, SIGQUIT

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sim import process, worker
from sim.config import Gateway, Nginx, Tracing
from sim.entity import Plugin, Route, Service
from sim.error_log import ErrorLog
from sim.master import Master
from sim.plugins import BUNDLED
from sim.scoreboard import Scoreboard
from tests import peers

TIMEOUT_S = 30.0


class LiveGateway:
    """A master in a process of its own, with its scoreboard in view."""

    def __init__(self, gateway, directory, worker_main, reread=None):
        self.scoreboard = Scoreboard(gateway.workers)
        self.log = directory / "error.log"
        self._control, theirs = process.pipe()
        error_log = ErrorLog(self.log, gateway.log_level)
        master = Master(gateway, self.scoreboard, error_log=error_log, reread=reread, worker_main=worker_main)
        self.status_ports = [listener.getsockname()[1] for listener in master.status_listeners]
        self.ports = [listener.getsockname()[1] for listener in master.listeners]
        self.port = self.ports[0]
        self.process = process.start(
            lambda: sys.exit(master.cycle(lambda: theirs.send("announced"))), name="master", closing=[self._control]
        )
        theirs.close()
        master.close()
        error_log.close()

    def wait_announced(self):
        """Wait until it serves."""
        assert self._control.poll(TIMEOUT_S)
        assert self._control.recv() == "announced"

    def reload(self):
        """Have a new generation, and wait until it serves."""
        os.kill(self.process.pid, SIGHUP)
        self.wait_announced()

    def wait_logged(self, text):
        """Wait for a line of the error log that holds a text; return the line."""
        return self.wait_written(self.log, text)

    def wait_written(self, path, text):
        """Wait for a line of a file that holds a text; return the line."""
        for _ in range(int(TIMEOUT_S * 100)):
            for line in path.read_text().rpartition("\n")[0].splitlines():  # the last one may not be whole yet
                if text in line:
                    return line
            process.wait([self.process.sentinel], 0.01)
        raise AssertionError(f"{text!r} is not in {path}: {path.read_text()}")

    def connect(self):
        """Open a connection to it."""
        return socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)

    def request(self, method="GET", path="/", body=None, headers=None):
        """Make one request with the standard library's client; return the response with its body read."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)) as client:
            client.request(method, path, body, headers or {})
            answer = client.getresponse()
            answer.content = answer.read()
            return answer

    def exchange(self, data):
        """Send raw bytes on a connection of their own and return all that comes back."""
        with self.connect() as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR) if not data else None
            received = b""
            while chunk := client.recv(65536):
                received += chunk
            return received

    def wait_until(self, condition):
        """Wait until a reading of the scoreboard fulfils the condition, and return it."""
        for _ in range(int(TIMEOUT_S * 100)):
            if condition(reading := self.scoreboard.read()):
                return reading
            process.wait([self.process.sentinel], 0.01)
        raise AssertionError(f"it never came true; the log says {self.log.read_text()}")

    def wait_requests(self, count):
        """Wait until so many requests have ended and nothing is on its way; return the reading."""
        return self.wait_until(
            lambda r: (
                r.sum("requests") >= count
                and not (r.sum("requests_active") or r.sum("queue_depth") or r.sum("in_flight"))
            )
        )

    def stop(self, signum=SIGQUIT):
        """Tell it to leave, wait for its end, and return the final reading."""
        os.kill(self.process.pid, signum)
        self.process.join(TIMEOUT_S)
        assert self.process.exitcode == 0
        return self.scoreboard.read()

    def end(self):
        """See to it that it is gone."""
        if self.process.exitcode is None:
            self.process.kill()
        process.reap(self.process, TIMEOUT_S)
        self._control.close()


@contextmanager
def live(directory, gateway, classes=None, reread=None, **options):
    """Run a gateway; `classes` are plugins beside the bundled ones, `options` those of a worker's main."""
    worker_main = partial(worker.main, classes={**BUNDLED, **(classes or {})}, **options)
    running = LiveGateway(gateway, directory, worker_main, reread)
    try:
        running.wait_announced()
        running.wait_until(lambda reading: all(worker.pid for worker in reading.alive))
        yield running
    finally:
        running.end()


def gateway_to(port, *, plugins=(), collector=None, service=None, route=None, **options):
    """Configure a gateway with one service on a port of this machine, traced when there is a collector."""
    if collector is not None:
        endpoint = {
            "traces_endpoint": f"http://127.0.0.1:{collector}/v1/traces",
            "queue": {"max_coalescing_delay": 0.1},
        }
        plugins = (*plugins, Plugin(name="opentelemetry", config=endpoint))
    return Gateway(
        **{
            "workers": 1,
            "tracing": Tracing(instrumentations=("all",), sampling_rate=1.0),
            "nginx": Nginx(worker_shutdown_timeout="30s"),
            "hosts": {"upstream": ("127.0.0.1", port)},
            "services": (Service(**{"name": "orders", "host": "upstream", "retries": 2} | (service or {})),),
            "routes": (Route(**{"name": "all", "service": "orders", "paths": ("/",)} | (route or {})),),
            "plugins": tuple(plugins),
        }
        | options
    )


class _Echo(http.server.BaseHTTPRequestHandler):
    """Answers with what it was asked, in JSON; `/chunked` does so in chunks."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.read_body()
        told = {"method": self.command, "path": self.path, "headers": self.headers.items(), "body": body.decode()}
        data = json.dumps(told).encode()
        self.send_response(200)
        if self.path.endswith("/chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (data[:10], data[10:]):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer

    def read_body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_):
        pass


class _Recorder(_Echo):
    """A collector that keeps every body it gets."""

    bodies: list

    def answer(self):
        body = self.read_body()
        self.bodies.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = answer


def _serve(sock, control, handler):
    bodies = []
    server = http.server.ThreadingHTTPServer(
        sock.getsockname(), type("Handler", (handler,), {"bodies": bodies}), bind_and_activate=False
    )
    server.daemon_threads = True
    server.socket.close()
    server.socket = sock
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with suppress(EOFError):
        while control.recv() == "report":
            control.send(list(bodies))


@contextmanager
def echo():
    """Run an upstream of another implementation (the standard library's) that answers with what it was asked."""
    with peers.listening(_serve, _Echo) as peer:
        yield peer.port


class Recorded:
    """What a recording collector got."""

    def __init__(self, peer):
        self._peer = peer
        self.port = peer.port

    def bodies(self):
        """Return the bodies that have come."""
        return self._peer.report()

    def spans(self):
        """Return the spans that have come."""
        requests = map(ExportTraceServiceRequest.FromString, self.bodies())
        return [s for q in requests for r in q.resource_spans for scope in r.scope_spans for s in scope.spans]

    def wait_spans(self, count):
        """Wait until so many spans have come; return all."""
        for _ in range(int(TIMEOUT_S * 100)):
            if len(spans := self.spans()) >= count:
                return spans
            process.wait([self._peer.child.sentinel], 0.01)
        raise AssertionError(f"{len(spans)} spans have come: {[span.name for span in spans]}")


def _serve_recorder(sock, control, certificate):
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(context)
        sock = context.wrap_socket(sock, server_side=True)
    _serve(sock, control, _Recorder)


@contextmanager
def recording_collector(certificate=None):
    """Run a collector of another implementation, whose spans the test can look at; secured with a certificate."""
    with peers.listening(_serve_recorder, certificate) as peer:
        yield Recorded(peer)


@contextmanager
def traced_gateway(directory, *, plugins=(), classes=None, **options):
    """Run echo upstream, recording collector and a gateway between them."""
    with ExitStack() as stack:
        upstream = stack.enter_context(echo())
        collector = stack.enter_context(recording_collector())
        gateway = gateway_to(upstream, collector=collector.port, plugins=plugins, **options)
        yield stack.enter_context(live(directory, gateway, classes)), collector


class Base:
    """What every plugin of a test has."""

    PRIORITY = 100
    VERSION = "1"


@contextmanager
def served(directory, *classes, configs=(), **options):
    """Run a gateway to an echo with plugins of these classes, each configured once."""
    named = {cls.__name__.lower(): cls for cls in classes}
    plugins = tuple(Plugin(name=name, config=dict(configs).get(name, {})) for name in named)
    with echo() as upstream, live(directory, gateway_to(upstream, plugins=plugins, **options), named) as gateway:
        yield gateway


def attributes(span):
    """Return a span's attributes as a dict of plain values."""
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in span.attributes}
