"""Generations of workers under load: what a client and the ledger see of a reload, a drain and its end."""

import asyncio
import http.client
import os
import re
import socket
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM

import pytest

from sim import origin, process
from sim.config import Nginx
from sim.entity import Plugin
from sim.scoreboard import State
from tests import peers
from tests.gateway import TIMEOUT_S, echo, gateway_to, live, recording_collector, traced_gateway


class Client(threading.Thread):
    """Sends requests one after the other until it is told to stop; a failed one ends it."""

    def __init__(self, port, *, kept):
        super().__init__(daemon=True)
        self.port = port
        self.kept = kept
        self.stopping = threading.Event()
        self.answered = 0
        self.again = 0
        self.connections = 0
        self.failure = None
        self._connection = None
        self._used = False

    def run(self):
        try:
            while not self.stopping.is_set():
                self.ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test reports it
            self.failure = error
        finally:
            self.forget()

    def ask(self):
        """Make a request; once more when a kept connection was closed before the answer (RFC 9112 9.3.1)."""
        try:
            self.exchange()
        except (http.client.RemoteDisconnected, ConnectionError):
            if not self._used:
                raise
            self.forget()
            self.again += 1
            self.exchange()
        self.answered += 1

    def exchange(self):
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
            self._used = False
            self.connections += 1
        self._connection.request("GET", "/")
        answer = self._connection.getresponse()
        assert (answer.status, len(answer.read())) == (200, 100)
        self._used = True
        if not self.kept or answer.will_close:
            self.forget()

    def forget(self):
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def until(condition):
    """Wait for a condition that other threads bring about."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        process.wait([], 0.005)


@pytest.mark.parametrize("kept", [False, True], ids=["connection for each request", "kept connections"])
def test_ten_reloads_under_a_steady_stream_fail_no_request(tmp_path, kept):
    """Every request of every client is answered, and each span of every generation is in its account."""  # W10
    upstream = peers.listening(origin.serve, origin=origin.Origin(body_bytes=100))
    with (
        upstream as peer,
        recording_collector() as collector,
        live(tmp_path, gateway_to(peer.port, collector=collector.port, workers=2)) as gateway,
    ):
        clients = [Client(gateway.port, kept=kept) for _ in range(3)]
        progress = partial(zip, clients, strict=True)
        for client in clients:
            client.start()
        for _ in range(10):
            before = [client.answered for client in clients]
            gateway.reload()
            until(lambda before=before: all(c.failure or c.answered > n + 20 for c, n in progress(before)))
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join(TIMEOUT_S)

        assert [client.failure for client in clients] == [None] * 3
        answered = sum(client.answered for client in clients)
        reading = gateway.stop()
        assert {worker.generation for worker in reading.workers} == set(range(1, 12))
        assert [worker.exit_code for worker in reading.workers] == [0] * 22
        assert reading.sum("requests") == reading.sum("responses_2xx") == answered
        ledger = reading.ledger
        assert ledger.created == ledger.enqueued == ledger.acknowledged > 0
        assert ledger.created % answered == 0
        assert (ledger.unaccounted, ledger.open, ledger.queued, ledger.in_flight) == (0, 0, 0, 0)
        assert len({span.span_id for span in collector.spans()}) == ledger.created
        if kept:
            assert sum(client.connections for client in clients) >= 10  # connections did not outlive their generation


class Unlicensed:
    """A plugin that cannot be made."""

    PRIORITY = 1
    VERSION = "1"

    def __init__(self):
        raise RuntimeError("no licence")

    def log(self, kong, conf):
        """Never run."""


def test_reload_with_a_plugin_that_cannot_be_made_changes_nothing(tmp_path):
    """The log says why in a line for each worker; the old generation serves, and is respawned."""  # W10, W11
    classes = {"unlicensed": Unlicensed}
    with echo() as upstream:
        later = gateway_to(upstream, plugins=[Plugin(name="unlicensed")], status_listen="127.0.0.1:0")
        now = gateway_to(upstream, status_listen="127.0.0.1:0")
        with live(tmp_path, now, classes, reread=lambda: later) as gateway:
            os.kill(gateway.process.pid, SIGHUP)
            gateway.wait_logged("plugin unlicensed cannot be made: RuntimeError: no licence")
            gateway.wait_logged("no worker of generation 2 can start: generation 1 goes on")
            assert gateway.request().status == 200

            [worker] = gateway.wait_until(lambda reading: len(reading.alive) == 1).alive
            os.kill(worker.pid, SIGKILL)
            gateway.wait_until(lambda r: [w.serial for w in r.alive if w.state is State.SERVING] == [3])
            assert gateway.request().status == 200
            assert "Traceback" not in gateway.log.read_text()


def test_client_that_has_not_asked_yet_is_served_by_the_worker_that_leaves(tmp_path):
    """A connection made before the reload and used after it gets its answer, and is closed then."""  # W12
    with echo() as upstream, live(tmp_path, gateway_to(upstream)) as gateway, gateway.connect() as client:
        reading = gateway.wait_until(lambda reading: reading.sum("connections_active") == 1)
        gateway.reload()
        gateway.wait_until(lambda reading: State.DRAINING in [worker.state for worker in reading.alive])

        client.sendall(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
        with client.makefile("rb") as answer:
            text = answer.read()

        assert text.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nConnection: close\r\n" in text
        reading = gateway.wait_until(lambda reading: [worker.generation for worker in reading.alive] == [2])
        assert [worker.values["requests"] for worker in reading.workers] == [1, 0]


def test_idle_kept_connection_is_closed_at_a_reload(tmp_path):
    """The old worker does not wait for clients that may never ask again."""  # W12
    with echo() as upstream, live(tmp_path, gateway_to(upstream)) as gateway, gateway.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
        gateway.wait_requests(1)
        gateway.reload()

        with client.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 200 OK\r\n")
        gateway.wait_until(lambda reading: [worker.generation for worker in reading.alive] == [2])


class Busy:
    """A plugin that computes for as long as a file is not there."""

    PRIORITY = 1
    VERSION = "1"

    def access(self, kong, conf):
        """Let nobody else run."""
        if kong.request.get_path() == "/busy":
            Path(conf["begun"]).touch()
            while not Path(conf["end"]).exists():
                pass


def test_request_that_has_come_when_the_worker_is_told_to_leave_is_answered(tmp_path):
    """A kept connection is idle only when nothing waits in it to be read: else to close it fails a request."""
    begun, end = tmp_path / "begun", tmp_path / "end"
    plugin = Plugin(name="busy", config={"begun": str(begun), "end": str(end)})
    ask = b"GET /%b HTTP/1.1\r\nHost: g\r\n\r\n"
    with (
        echo() as upstream,
        live(tmp_path, gateway_to(upstream, plugins=[plugin]), {"busy": Busy}) as gateway,
        ExitStack() as stack,
    ):
        kept = [stack.enter_context(gateway.connect()) for _ in range(20)]
        for client in kept:
            client.sendall(ask % b"first")
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        [worker] = gateway.scoreboard.read().alive
        with gateway.connect() as busy:
            busy.sendall(ask % b"busy")
            until(begun.exists)
            os.kill(worker.pid, SIGQUIT)
            for client in kept:
                client.sendall(ask % b"second")
            end.touch()
            answers = []
            for client in kept:
                with client.makefile("rb") as answer:
                    answers.append(answer.read())

    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 200 "] * 20
    assert all(b"\r\nConnection: close\r\n" in answer for answer in answers)


def test_answer_that_the_client_reads_slowly_is_complete_though_the_worker_leaves(tmp_path):
    """A worker that quits stays until the last byte of its last answer is on its way."""  # W12
    size = 32 << 20  # more than the kernel buffers
    upstream = peers.listening(origin.serve, origin=origin.Origin(body_bytes=size))
    with upstream as peer, live(tmp_path, gateway_to(peer.port)) as gateway:
        with gateway.connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
            first = client.recv(1000)
            os.kill(gateway.process.pid, SIGQUIT)
            gateway.wait_logged("gracefully shutting down")
            received = len(first)
            while data := client.recv(1 << 20):
                received += len(data)

        assert received == first.index(b"\r\n\r\n") + 4 + size
        gateway.process.join(TIMEOUT_S)
        assert gateway.process.exitcode == 0


def test_shutdown_timeout_cuts_requests_off_and_runs_their_log_phase(tmp_path):
    """After `worker_shutdown_timeout` the connection is closed, the request ends with 499, its spans are booked."""
    options = {"nginx": Nginx(worker_shutdown_timeout="200ms")}
    with peers.serving(asyncio.Protocol) as upstream, recording_collector() as collector:
        gateway = gateway_to(upstream, collector=collector.port, **options)
        with live(tmp_path, gateway) as running, running.connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
            running.wait_until(lambda reading: reading.sum("requests_active") == 1)
            reading = running.stop()

            assert client.recv(1) == b""
        assert (reading.sum("requests"), reading.sum("responses_4xx")) == (1, 1)
        assert reading.ledger.unaccounted == reading.ledger.open == 0
        assert reading.ledger.created == reading.ledger.acknowledged > 0


def test_worker_tells_of_its_end_in_the_words_of_nginx(tmp_path):
    """A graceful exit and a fast one each leave their lines, with the worker's pid."""  # W12
    told = {}
    for signum in (SIGQUIT, SIGTERM):
        directory = tmp_path / signum.name
        directory.mkdir()
        with echo() as upstream, live(directory, gateway_to(upstream)) as gateway:
            (worker,) = gateway.scoreboard.read().alive
            gateway.stop(signum)
            lines = gateway.log.read_text().splitlines()
            told[signum] = [line.split(": ", 1)[1] for line in lines if f" {worker.pid}#{worker.pid}: " in line]

    assert told == {SIGQUIT: ["gracefully shutting down", "exiting", "exit"], SIGTERM: ["exiting", "exit"]}


def test_worker_leaves_that_is_terminated_in_the_turn_of_an_arrival(tmp_path):
    """A connection that has just come is closed with the others, and not waited for when it is gone already."""
    with echo() as upstream, live(tmp_path, gateway_to(upstream)) as gateway, ExitStack() as clients:
        (worker,) = gateway.scoreboard.read().alive
        os.kill(worker.pid, SIGSTOP)
        for _ in range(5):
            clients.enter_context(gateway.connect())
        os.kill(worker.pid, SIGTERM)
        os.kill(worker.pid, SIGCONT)

        gateway.wait_logged(f"worker process {worker.pid} exited with code 0")


class Forgetful:
    """A plugin that takes a connection of the worker's and forgets it."""

    PRIORITY = 1
    VERSION = "1"

    async def access(self, kong, conf):
        """Connect, and leave it at that."""
        await kong.ngx.http.new()._network.pool.connect(("127.0.0.1", conf["port"]), 60)
        kong.response.exit(200)


def test_connection_that_nobody_has_given_back_is_an_alert_at_the_end(tmp_path):
    """A worker that leaves gracefully expects that none is open but those it keeps; nginx's words."""  # W12
    with socket.create_server(("127.0.0.1", 0)) as silent, echo() as upstream:
        plugin = Plugin(name="forgetful", config={"port": silent.getsockname()[1]})
        with live(tmp_path, gateway_to(upstream, plugins=[plugin]), {"forgetful": Forgetful}) as gateway:
            assert gateway.request().status == 200
            gateway.stop()

            lines = [line for line in gateway.log.read_text().splitlines() if "[alert]" in line]
    assert len(lines) == 1
    assert re.search(r" open socket #\d+ left in connection \d+$", lines[0])


def test_generations_that_died_are_in_the_books_too(tmp_path):
    """Workers killed in the middle of reloads lose what they held, and nothing else."""  # W10, W11
    with traced_gateway(tmp_path, workers=2) as (gateway, _collector):
        for count in (1, 2, 3):
            assert gateway.request().status == 200
            gateway.wait_until(lambda reading, count=count: reading.sum("requests") == count)
            victim = gateway.wait_until(lambda reading: all(w.pid for w in reading.alive)).alive[-1]
            os.kill(victim.pid, SIGKILL)
            gateway.wait_logged(f"worker process {victim.pid} exited")
            gateway.wait_until(
                lambda reading: (
                    [w.state for w in reading.alive] == [State.SERVING] * 2 and all(w.pid for w in reading.alive)
                )
            )
            gateway.reload()
            gateway.wait_until(lambda reading: len({worker.generation for worker in reading.alive}) == 1)
        reading = gateway.stop()

        assert reading.sum("requests") == 3
        assert reading.ledger.unaccounted == 0
        assert sum(worker.exit_code == -SIGKILL for worker in reading.workers) == 3
