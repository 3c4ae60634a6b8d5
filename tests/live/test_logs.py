"""Access log and error log of a live gateway."""

import asyncio
import os
import re
import resource
import signal
import socket
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from signal import SIGKILL, SIGTERM, SIGUSR1

import psutil
import pytest

from sim.scoreboard import State
from sim.worker import ACCEPT_DELAY_S
from tests import peers
from tests.gateway import TIMEOUT_S, echo, gateway_to, live

LINE = re.compile(
    r'(?P<addr>\S+) - - \[[^]]+\] "(?P<request>[^"]*)" (?P<status>\d{3}) (?P<bytes>\d+)'
    r' "(?P<referer>[^"]*)" "(?P<agent>[^"]*)"'
)


def parsed(path):
    """Return the fields of every line; each has to be whole."""
    found = [LINE.fullmatch(line) for line in path.read_text().splitlines()]
    assert None not in found
    return [match.groupdict() for match in found]


def test_each_request_has_its_line(tmp_path):
    """Request, status, bytes of the body, referer and agent, whatever became of the request."""
    path = tmp_path / "access.log"
    with echo() as upstream:
        gateway = gateway_to(upstream, route={"paths": ("/api",)}, access_log=str(path))
        with live(tmp_path, gateway) as running:
            headers = {"User-Agent": "probe/1", "Referer": "http://a/"}
            first = running.request("GET", "/api/x?y=1", headers=headers)
            second = running.request("HEAD", "/api")
            third = running.request("GET", "/nowhere")
            fourth = running.request("GET", "/api/chunked")
            running.stop()

    lines = parsed(path)
    assert lines[0] == {
        "addr": "127.0.0.1",
        "request": "GET /api/x?y=1 HTTP/1.1",
        "status": "200",
        "bytes": str(len(first.content)),
        "referer": "http://a/",
        "agent": "probe/1",
    }
    told = [(line["request"].split()[0], int(line["status"]), int(line["bytes"])) for line in lines[1:3]]
    assert told == [("HEAD", second.status, 0), ("GET", 404, len(third.content))]
    assert int(lines[3]["bytes"]) > len(fourth.content)  # with the framing of chunks, as nginx counts


def test_reloads_that_name_other_logs_leave_no_descriptor_behind(tmp_path):
    """The master closes what it writes to no more, and what it had opened for a configuration that it cannot take."""
    with echo() as upstream, socket.create_server(("127.0.0.1", 0)) as taken:
        first = gateway_to(upstream, access_log=str(tmp_path / "0.log"))
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        turns = [
            first.model_copy(update={"access_log": str(tmp_path / f"{n}.log"), "error_log": str(tmp_path / f"{n}.err")})
            for n in range(1, 5)
        ]
        bad = turns[0].model_copy(update={"listen": (*first.listen, busy)})
        coming = iter([turns[0], bad, *turns[1:]])
        with live(tmp_path, first, reread=lambda: next(coming)) as running:
            master = psutil.Process(running.process.pid)

            def reload():
                running.reload()
                running.wait_until(lambda reading: len(reading.alive) == 1)
                return master.num_fds()

            before = reload()
            os.kill(master.pid, signal.SIGHUP)
            running.wait_written(tmp_path / "1.err", "Address already in use")
            assert [reload() for _ in range(3)] == [before] * 3


def test_client_that_leaves_is_499_in_the_log(tmp_path):
    """A request that nobody waits for any more has its line too."""
    path = tmp_path / "access.log"
    upstream = peers.serving(asyncio.Protocol)
    with upstream as port, live(tmp_path, gateway_to(port, access_log=str(path))) as running:
        with running.connect() as client:
            client.sendall(b"GET /slow HTTP/1.1\r\nHost: g\r\n\r\n")
            running.wait_until(lambda reading: reading.sum("requests_active") == 1)
        running.wait_requests(1)
        running.stop()

    assert [(line["request"], line["status"], line["bytes"]) for line in parsed(path)] == [
        ("GET /slow HTTP/1.1", "499", "0")
    ]


@pytest.mark.parametrize("signum", ["QUIT", "TERM"])
def test_no_line_of_an_answered_request_is_lost_at_the_end(tmp_path, signum):
    """What several workers have answered is all there when they have left, each line whole."""
    path = tmp_path / "access.log"
    with echo() as upstream, live(tmp_path, gateway_to(upstream, access_log=str(path), workers=2)) as running:
        for number in range(60):
            running.exchange(b"GET /%d HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n" % number)
        running.wait_requests(60)
        running.stop(getattr(signal, f"SIG{signum}"))

    assert sorted(line["request"] for line in parsed(path)) == sorted(f"GET /{n} HTTP/1.1" for n in range(60))


def test_both_logs_can_be_rotated(tmp_path):
    """After the files were moved and USR1 was sent, master and workers write to new ones; no line is lost."""  # W4
    path = tmp_path / "access.log"
    with echo() as upstream, live(tmp_path, gateway_to(upstream, access_log=str(path), workers=2)) as running:
        running.request("GET", "/before")
        running.wait_requests(1)
        moved = path.rename(tmp_path / "access.log.1")
        running.log.rename(tmp_path / "error.log.1")
        os.kill(running.process.pid, SIGUSR1)
        for worker in running.scoreboard.read().alive:
            running.wait_until(lambda _reading: running.log.exists())
            running.wait_logged(f"{worker.pid}#{worker.pid}: logs reopened")
        running.request("GET", "/after")
        running.wait_requests(2)
        running.stop()
        assert running.log.read_text().endswith(": exit\n")

    assert [line["request"] for line in parsed(moved)] == ["GET /before HTTP/1.1"]
    assert [line["request"] for line in parsed(path)] == ["GET /after HTTP/1.1"]


def test_error_of_a_request_names_it(tmp_path):
    """Client, server, request, upstream and host stand at the end of the line, as nginx writes them."""
    port = peers.free_port()
    with live(tmp_path, gateway_to(port, service={"retries": 0})) as running:
        assert running.request("GET", "/x?y", headers={"Host": "api.example.com"}).status == 502

        line = running.wait_logged("[error]")
    asked = 'client: 127.0.0.1, server: kong, request: "GET /x?y HTTP/1.1"'
    where = f'upstream: "http://127.0.0.1:{port}/x?y", host: "api.example.com"'
    assert re.search(rf'{re.escape(f", {asked}, {where}")}, request_id: "[0-9a-f]{{32}}"$', line)
    assert re.search(r": \*1 connect\(\) failed \(111: Connection refused\) while connecting to upstream, ", line)


def test_connections_are_numbered_by_all_workers_together(tmp_path):
    """No two have one number: a worker that takes another's place, and a new generation, count on."""
    with live(tmp_path, gateway_to(peers.free_port(), service={"retries": 0}, workers=2)) as running:
        for turn in range(3):
            for _ in range(8):
                assert running.request().status == 502
            if turn == 0:
                os.kill(running.scoreboard.read().alive[0].pid, SIGKILL)
                running.wait_until(
                    lambda reading: len(reading.workers) == 3 and {w.state for w in reading.alive} == {State.SERVING}
                )
            elif turn == 1:
                running.reload()
        running.stop()
        numbers = re.findall(r": \*(\d+) connect\(\) failed ", running.log.read_text())

    assert sorted(map(int, numbers)) == list(range(1, 25))


def test_refused_request_has_its_line_in_both_logs(tmp_path):
    """What is no HTTP stands there as it came, escaped, with the status of the answer."""
    path = tmp_path / "access.log"
    with (
        echo() as upstream,
        live(tmp_path, gateway_to(upstream, access_log=str(path), log_level="info")) as running,
    ):
        assert running.exchange(b'GET /"x HTTP/1.1\r\nbad\r\n\r\n').startswith(b"HTTP/1.1 400 ")
        running.wait_logged('request: "GET /\\x22x HTTP/1.1"')
        reading = running.stop()

    assert [(line["request"], line["status"]) for line in parsed(path)] == [("GET /\\x22x HTTP/1.1", "400")]
    assert reading.sum("requests") == reading.sum("responses_4xx") == 1


@pytest.mark.parametrize(("level", "told"), [("warn", False), ("notice", True)])
def test_log_level_decides_what_is_told(tmp_path, level, told):
    """The end of a worker is a notice."""
    with echo() as upstream, live(tmp_path, gateway_to(upstream, log_level=level)) as running:
        running.stop(SIGTERM)
        assert ("start worker process" in running.log.read_text()) is told


def test_worker_without_a_file_descriptor_rests_and_says_so(tmp_path):
    """It serves who has waited once there are some; a request that needs another one is 500, after one try (nginx)."""
    request = b"GET / HTTP/1.1\r\nHost: g\r\n\r\n"
    with echo() as upstream, live(tmp_path, gateway_to(upstream)) as running:
        (worker,) = running.scoreboard.read().alive
        _soft, hard = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        held = max(int(entry.name) for entry in Path(f"/proc/{worker.pid}/fd").iterdir()) + 4
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (held, hard))
        began_s = time.monotonic()
        with ExitStack() as stack:
            first, *others = [stack.enter_context(running.connect()) for _ in range(held)]
            running.wait_logged("[crit]")
            first.sendall(request)
            assert first.recv(12) == b"HTTP/1.1 500"
            resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (hard, hard))
            rests_max = (time.monotonic() - began_s) / ACCEPT_DELAY_S + 1
            for client in others:
                client.sendall(request)
            answers = [client.recv(12) for client in others]
        lines = running.log.read_text().splitlines()
    told = Counter(re.findall(r"\[(crit|alert|error)\] \S+ (?:\*1 )?(.*? failed \(.*?\)[^,\n]*)", "\n".join(lines)))

    accept = "crit", "accept4() failed (24: Too many open files)"
    connect = "alert", "socket() failed (24: Too many open files) while connecting to upstream"
    assert told == {accept: told[accept], connect: 1}
    assert 1 <= told[accept] <= 1 + rests_max
    assert set(answers) == {b"HTTP/1.1 200"}


def test_connections_beyond_the_limit_are_closed_with_an_alert(tmp_path):
    """`worker_connections` counts the listening socket and the master's too; who has begun to ask keeps a place."""
    request = b"GET / HTTP/1.1\r\nHost: g\r\n\r\n"
    with echo() as upstream:
        gateway = gateway_to(upstream, nginx={"worker_connections": 6, "worker_shutdown_timeout": "30s"})
        with live(tmp_path, gateway) as running:
            clients = [running.connect() for _ in range(4)]
            for client in clients:
                client.sendall(request[:-2])
            running.wait_until(lambda reading: reading.sum("connections_reading") == 4)
            with running.connect() as refused:
                assert refused.recv(1) == b""
            assert running.wait_logged("[alert]").endswith(": 6 worker_connections are not enough")

            clients[0].sendall(request[-2:])  # there is none left for the upstream
            with clients[0].makefile("rb") as answer:
                assert answer.readline() == b"HTTP/1.1 500 Internal Server Error\r\n"
            clients.pop().close()
            running.wait_until(lambda reading: reading.sum("connections_active") == 3)
            clients[1].sendall(request[-2:])
            with clients[1].makefile("rb") as answer:
                assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
            for client in clients:
                client.close()
            reading = running.wait_requests(2)
            assert (reading.sum("connections"), reading.sum("connections_refused")) == (5, 1)


def test_idle_clients_make_room_for_others(tmp_path):
    """A kept connection is closed when places run out, and the log says so once."""
    with echo() as upstream:
        gateway = gateway_to(upstream, nginx={"worker_connections": 6, "worker_shutdown_timeout": "30s"})
        with live(tmp_path, gateway) as running, running.connect() as idle:
            idle.sendall(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
            running.wait_requests(1)
            others = [running.connect() for _ in range(3)]
            idle.settimeout(TIMEOUT_S)
            received = b""
            while data := idle.recv(65536):
                received += data
            assert received.startswith(b"HTTP/1.1 200 OK\r\n")
            assert "6 worker_connections are not enough, reusing connections" in running.wait_logged("[warn]")
            for other in others:
                other.close()


def test_workers_run_on_the_cpus_of_their_masks(tmp_path):
    """The kernel has each worker where `worker_cpu_affinity auto` puts it."""
    available = sorted(os.sched_getaffinity(0))
    with echo() as upstream:
        gateway = gateway_to(upstream, workers=2, nginx={"worker_cpu_affinity": "auto"})
        with live(tmp_path, gateway) as running:
            workers = running.scoreboard.read().alive
            assert [os.sched_getaffinity(worker.pid) for worker in workers] == [
                {available[slot % len(available)]} for slot in range(2)
            ]


def test_mask_without_a_cpu_of_this_machine_is_an_alert(tmp_path):
    """The worker serves on, wherever the kernel puts it; one line says what failed and which CPUs there are."""
    missing = 1000
    mask = "1" + "0" * missing
    with echo() as upstream, live(tmp_path, gateway_to(upstream, nginx={"worker_cpu_affinity": mask})) as running:
        assert running.request().status == 200
        line = running.wait_logged("[alert]")

    assert f"sched_setaffinity() failed (22: Invalid argument): cpu #{missing} of #" in line


def test_gateway_listens_on_several_addresses(tmp_path):
    """IPv4 and IPv6, each with all workers behind it."""
    with echo() as upstream:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
        path = tmp_path / "access.log"
        gateway = gateway_to(upstream, listen="127.0.0.1:0, [::1]:0", access_log=str(path))
        with live(tmp_path, gateway) as running:
            for host, port in zip(("127.0.0.1", "::1"), running.ports, strict=True):
                with socket.create_connection((host, port), TIMEOUT_S) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
                    with client.makefile("rb") as answer:
                        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
            running.stop()

        assert [line["addr"] for line in parsed(path)] == ["127.0.0.1", "::1"]
