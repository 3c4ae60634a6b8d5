"""CPU of one gateway worker for a request, against a bare proxy of the same libraries (`tests/bench/bare_proxy.py`).

Three proxies run at the same time before one upstream: the bare one, a worker with tracing off, and a worker that makes
and exports 8 spans a request; plain nginx is a fourth, for information, where it is installed. Each round loads one
after the other, in an order that turns, with the same open load; what counts is the CPU time that the kernel has booked
for the process (`/proc/PID/schedstat`, ns), per request completed. A ratio is formed within a round.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from sim import collector, origin
from sim.config import Tracing
from sim.entity import Plugin
from sim.load import driver
from sim.load.executor import ConstantArrivalRate, Load
from sim.load.request import Request
from sim.process import pipe, reap, start
from tests import peers
from tests.bench import bare_proxy
from tests.gateway import gateway_to, live

ROUNDS = 17
RATE_PER_S = 2500
ROUND_S = 0.75
SPANS = 8
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  upstream origin {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


def ratios() -> list[dict]:
    """Tracing off, and 8 spans a request exported, as multiples of the bare proxy."""
    with ExitStack() as stack:
        ports = _proxies(stack)
        for _name, port, _pid in ports:
            _load(port, seed=0)
        rounds = [_round(ports, number) for number in range(ROUNDS)]
    rows = [
        _row("gateway worker CPU per request, tracing off", [r["off"] / r["bare"] for r in rounds], "<= 1.6"),
        _row(f"the same, {SPANS} spans a request, exported", [r["on"] / r["bare"] for r in rounds], "<= 4.5"),
    ]
    if NGINX is None:
        return rows
    return [
        *rows,
        _row("gateway worker CPU per request, tracing off", [r["off"] / r["nginx"] for r in rounds], None, "nginx"),
        _row(f"the same, {SPANS} spans a request, exported", [r["on"] / r["nginx"] for r in rounds], None, "nginx"),
    ]


def _row(name: str, measured: list[float], goal: str | None, peer: str = "a bare uvloop + httptools proxy") -> dict:
    low, high = min(measured), max(measured)
    against = f"{peer}, {RATE_PER_S}/s"
    return {
        "name": name,
        "ratio": statistics.median(measured),
        "low": low,
        "high": high,
        "against": against,
        "goal": goal,
    }


def _proxies(stack: ExitStack) -> list[tuple[str, int, int]]:
    upstream = stack.enter_context(peers.listening(origin.serve, origin.Origin(body_bytes=1024)))
    receiver = stack.enter_context(peers.listening(collector.serve))
    port = peers.free_port()
    bare = start(bare_proxy.serve, port, upstream.port, name="bare")
    stack.callback(reap, bare, 0)
    proxies = [("bare", port, bare.pid)]
    off = gateway_to(upstream.port, tracing=Tracing(instrumentations=("off",)))
    on = gateway_to(upstream.port, collector=receiver.port, plugins=(Plugin(name="correlation-id"),))
    for name, gateway in (("off", off), ("on", on)):
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = stack.enter_context(live(directory, gateway))
        proxies.append((name, running.port, running.scoreboard.read().workers[0].pid))
    if NGINX is not None:
        proxies.append(("nginx", *_nginx(stack, upstream.port)))
    return proxies


def _nginx(stack: ExitStack, upstream: int) -> tuple[int, int]:
    """Run nginx, one process, as a plain proxy; give its port and pid."""
    port = peers.free_port()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, port=port, upstream=upstream))
    running = subprocess.Popen([NGINX, "-c", configuration, "-p", folder, "-e", folder / "error.log"])
    stack.callback(running.wait)
    stack.callback(running.kill)
    return port, running.pid


def _round(proxies: list[tuple[str, int, int]], number: int) -> dict[str, float]:
    first = number % len(proxies)
    turned = proxies[first:] + proxies[:first]
    used = {}
    for name, port, pid in turned:
        before = _cpu_ns(pid)
        completed = _load(port, seed=number)
        used[name] = (_cpu_ns(pid) - before) / completed
    print("  " + ", ".join(f"{name} {used[name] / 1000:.1f} us" for name, _, _ in proxies), file=sys.stderr)
    return used


def _load(port: int, seed: int) -> int:
    ours, theirs = pipe()
    request = Request(host="127.0.0.1", port=port)
    arrivals = ConstantArrivalRate(
        request=request, rate_per_s=RATE_PER_S, duration_s=ROUND_S, arrival="poisson", seed=seed
    )
    child = start(driver.drive, theirs, Load(executors=(arrivals,)), name="load", closing=[ours])
    theirs.close()
    report = ours.recv()
    reap(child, peers.TIMEOUT_S)
    ours.close()
    requests = report["requests"]
    assert requests["failed"] == 0, report
    return requests["completed"]


def _cpu_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


if __name__ == "__main__":
    for figures in ratios():
        print("{name}: {ratio:.2f} ({low:.2f} to {high:.2f}), goal {goal}, against {against}".format(**figures))
