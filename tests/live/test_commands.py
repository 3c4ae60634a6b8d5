"""The commands as a user types them: processes of their own, signals, what they print, how they exit."""

import http.client
import json
import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGQUIT

import psutil
import pytest

from tests.gateway import TIMEOUT_S, echo, recording_collector
from tests.runs import valid_run

QUICK = (
    *("--set", "upstreams.default.latency={p50: 1s, p99: 1s}"),  # a busy machine's delays are small beside it
    *("--set", "thresholds=[ledger.unaccounted == 0]"),
    *("--set", "load[0].duration=2s"),
    *("--set", "load[0].rate=100/s"),
    *("--set", "faults=[{at: 1s, target: worker, slot: 1, kind: kill}]"),
)


@contextmanager
def command(*arguments, **variables):
    """Run `kongsim` with these arguments, and environment variables."""
    running = subprocess.Popen(
        [sys.executable, "-m", "sim", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | variables,
    )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


def read_until(running, pattern):
    """Read lines until one matches; return the match."""
    while line := running.stdout.readline():
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"no line matches {pattern}; it exited with {running.wait(TIMEOUT_S)}")


def end(running, signum):
    """Signal it; return what it still prints and its exit code."""
    running.send_signal(signum)
    text = running.stdout.read()
    return text, running.wait(TIMEOUT_S)


def get(url, headers):
    return answer_of("GET", url, headers)[:2]


def answer_of(method, url, headers):
    host, _, path = url.removeprefix("http://").partition("/")
    with closing(http.client.HTTPConnection(host, timeout=TIMEOUT_S)) as client:
        client.request(method, f"/{path}", headers=headers)
        answer = client.getresponse()
        return answer.status, answer.read(), answer.headers


def test_any_client_gets_the_upstreams_answer_and_the_collector_shows_its_trace(tmp_path):
    """`serve` and `collector` in the foreground: the trace of that very request is shown with its parents."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    kong_yml = tmp_path / "kong.yml"
    with echo() as upstream, command("collector", "--listen", "127.0.0.1:0") as collector:
        collector_url = read_until(collector, r"OTLP/HTTP traces to (\S+)")[1]
        service = {"name": "orders", "url": f"http://127.0.0.1:{upstream}", "routes": [{"name": "r", "paths": ["/"]}]}
        plugins = [{"name": "opentelemetry", "config": {"queue": {"max_coalescing_delay": 0.1}}}]
        kong_yml.write_text(json.dumps({"_format_version": "3.0", "services": [service], "plugins": plugins}))
        traced = ("--tracing-instrumentations", "all", "--tracing-sampling-rate", "1", "--collector", collector_url)
        quiet = "--status-listen", "off"
        with command("serve", str(kong_yml), "--listen", "127.0.0.1:0", *quiet, "--workers", "2", *traced) as gateway:
            url = read_until(gateway, r"listening on (http://[^,\s]+)")[1]

            status, body = get(f"{url}/a", {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"})

            assert (status, json.loads(body)["path"]) == (200, "/a")
            assert read_until(collector, rf"trace {trace_id}")
            root = collector.stdout.readline()
            assert "kong" in root
            assert end(gateway, SIGQUIT)[1] == 0
        text, code = end(collector, SIGINT)
        assert "├── kong.router" in text
        assert "kong.balancer" in text
        assert "orphans 0" in text
        assert code == 0


def test_a_gateway_takes_its_collector_from_the_environment(tmp_path, monkeypatch):
    """Endpoint and compression of `OTEL_EXPORTER_OTLP_*` are those of a plugin that names no endpoint."""
    kong_yml = tmp_path / "kong.yml"
    with echo() as upstream, recording_collector() as collector:
        service = {"name": "orders", "url": f"http://127.0.0.1:{upstream}", "routes": [{"name": "r", "paths": ["/"]}]}
        plugins = [{"name": "opentelemetry", "config": {"queue": {"max_coalescing_delay": 0.1}}}]
        kong_yml.write_text(json.dumps({"_format_version": "3.0", "services": [service], "plugins": plugins}))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        options = ("--listen", "127.0.0.1:0", "--status-listen", "off", "--workers", "1")
        traced = ("--tracing-instrumentations", "all", "--tracing-sampling-rate", "1")
        with command("serve", str(kong_yml), *options, *traced) as gateway:
            url = read_until(gateway, r"listening on (http://[^,\s]+)")[1]
            assert get(f"{url}/a", {})[0] == 200
            assert "kong" in {span.name for span in collector.wait_spans(1)}
            assert end(gateway, SIGQUIT)[1] == 0


def test_gateway_is_configured_by_kongs_environment(tmp_path):
    """A container's variables are all that it takes: file, addresses, workers, tracing, log level."""
    kong_yml = tmp_path / "kong.yml"
    with echo() as upstream, command("collector", "--listen", "127.0.0.1:0") as collector:
        collector_url = read_until(collector, r"OTLP/HTTP traces to (\S+)")[1]
        service = {"name": "a", "url": f"http://127.0.0.1:{upstream}", "routes": [{"name": "r", "paths": ["/"]}]}
        plugin = {
            "name": "opentelemetry",
            "config": {"traces_endpoint": collector_url, "queue": {"max_coalescing_delay": 0.1}},
        }
        kong_yml.write_text(json.dumps({"_format_version": "3.0", "services": [service], "plugins": [plugin]}))
        variables = {
            "KONG_DECLARATIVE_CONFIG": str(kong_yml),
            "KONG_DATABASE": "off",
            "KONG_PROXY_LISTEN": "127.0.0.1:0 reuseport backlog=16384, localhost:0",
            "KONG_STATUS_LISTEN": "off",
            "KONG_NGINX_WORKER_PROCESSES": "1",
            "KONG_TRACING_INSTRUMENTATIONS": "request",
            "KONG_TRACING_SAMPLING_RATE": "1",
            "KONG_LOG_LEVEL": "warn",
        }
        with command("serve", **variables) as gateway:
            warned = gateway.stdout.readline()
            urls = re.findall(r"http://[^,\s]+", read_until(gateway, r"listening on .*, workers: 1,")[0])
            statuses = [get(f"{url}/a", {})[0] for url in urls]
            assert read_until(collector, r"trace [0-9a-f]{32}")
            text, code = end(gateway, SIGQUIT)
        shown, _code = end(collector, SIGINT)

    assert warned.startswith("KONG_PROXY_LISTEN: reuseport backlog=16384 of 127.0.0.1:0 is not simulated")
    assert (statuses, code) == ([200, 200], 0)
    assert "[notice]" not in text
    assert "kong.router" not in shown


SHOP_HOSTS = ("orders-1.internal:8080", "orders-2.internal:8080", "catalog.internal:8080")


def test_closed_standard_error_is_no_other_file(tmp_path):
    """What is opened next must not be taken for it: the error log was written into the pid file."""
    config, pid = tmp_path / "kong.yml", tmp_path / "pid"
    config.write_text("_format_version: '3.0'\n")
    serve = ("serve", str(config), "--listen", "127.0.0.1:0", "--status-listen", "off", "--workers", "1")
    program = (sys.executable, "-m", "sim", *serve, "--pid", str(pid))
    running = subprocess.Popen(["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *program], stdout=subprocess.PIPE, text=True)
    try:
        read_until(running, "listening on")
        assert pid.read_text() == f"{running.pid}\n"
        assert end(running, SIGQUIT) == ("", 0)
    finally:
        running.kill()
        running.communicate()


def test_configuration_of_a_real_shop_is_served(tmp_path):
    """Services, routes, an upstream and plugins of every scope, in front of servers of another implementation."""
    kong_yml = tmp_path / "kong.yml"
    text = Path("scenarios/shop/kong.yml").read_text(encoding="utf-8")
    with ExitStack() as stack:
        ports = [stack.enter_context(echo()) for _ in SHOP_HOSTS]
        collector = stack.enter_context(recording_collector())
        for host, port in zip(SHOP_HOSTS, ports, strict=True):
            text = text.replace(host, f"127.0.0.1:{port}")
        kong_yml.write_text(text.replace("collector.internal:4318", f"127.0.0.1:{collector.port}"), encoding="utf-8")
        options = ("--listen", "127.0.0.1:0", "--status-listen", "off", "--workers", "1", "--stand-in", "key-auth={}")
        options += ("--tracing-instrumentations", "all", "--tracing-sampling-rate", "1")
        stand_in = "rate-limiting={access: {spans: {count: 1, name: redis}}}"
        gateway = stack.enter_context(command("serve", str(kong_yml), "--stand-in", stand_in, *options))
        url = read_until(gateway, r"listening on (http://[^,\s]+)")[1]

        def ask(path, headers=None, method="GET"):
            status, body, received = answer_of(method, url + path, headers or {})
            return status, json.loads(body) if body.startswith(b"{") else {}, received

        orders = [ask(f"/orders/{number}") for number in range(6)]
        assert [(status, told["path"]) for status, told, _ in orders] == [
            (200, f"/api/orders/{number}") for number in range(6)
        ]
        assert Counter(dict(told["headers"])["Host"] for _status, told, _ in orders) == {
            f"127.0.0.1:{ports[0]}": 4,
            f"127.0.0.1:{ports[1]}": 2,
        }
        assert ask("/orders", method="DELETE")[0] == 404

        status, told, received = ask("/catalog/shoes", {"Host": "m.shop.example.com"})
        assert (status, told["path"], dict(told["headers"])["Host"]) == (200, "/v2/shoes", "m.shop.example.com")
        assert ("X-Request-Id" in received, "X-Beta-Request-Id" in received) == (True, False)
        _status, _told, received = ask("/catalog/shoes", {"Host": "shop.example.com", "X-Channel": "Beta"})
        assert ("X-Request-Id" in received, "X-Beta-Request-Id" in received) == (False, True)

        assert ask("/legacy")[0] == 404
        assert ask("/ping")[:2] == (200, {"message": "pong"})
        status, _told, received = ask("/account?a=b", {"Host": "shop.example.com"})
        assert (status, received["Location"]) == (301, "https://shop.example.com/account?a=b")

        assert end(gateway, SIGQUIT)[1] == 0  # what waited for more has been sent now
        names = {span.name for span in collector.spans()}
        assert {"kong.access.plugin.rate-limiting", "redis", "kong.access.plugin.key-auth", "kong.balancer"} <= names


def test_quickstart_in_short_balances(tmp_path):
    """The shipped scenario, shortened, a worker killed in it: exit code 0, nothing unaccounted."""
    run = valid_run("scenarios/quickstart.yaml", "--json", "--out", tmp_path / "run", *QUICK)
    summary = json.loads(run.stdout)

    assert (run.returncode, summary["verdict"]) == (0, "passed")
    assert summary["ledger"]["unaccounted"] == 0
    assert 0 < summary["ledger"]["acknowledged"] <= summary["collector"]["received_unique"]
    assert [worker["ended"] for worker in summary["workers"]].count("SIGKILL") == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_run_in_order(tmp_path, times):
    """Ctrl-C, also twice: exit code 130, and no process of the run is left."""
    with command("run", "scenarios/quickstart.yaml", "--out", str(tmp_path / "run")) as running:
        started = psutil.Process(running.pid)
        read_until(running, "quickstart")
        family = started.children(recursive=True)
        assert len(family) >= 5
        for _ in range(times):
            running.send_signal(SIGINT)
        running.communicate(timeout=TIMEOUT_S)

    assert running.returncode == 130
    assert psutil.wait_procs(family, timeout=TIMEOUT_S)[1] == []


GREETER = """
class Greeter:
    PRIORITY = 1000
    VERSION = "1.0"

    def access(self, kong, conf):
        kong.response.exit(200, "{}")
"""


def test_gateway_runs_a_plugin_from_a_file_and_after_a_reload_its_new_code(tmp_path):
    """`--plugin` names the file; HUP reads it anew, and a mistake in it keeps the old generation."""
    plugin, kong_yml = tmp_path / "greeter.py", tmp_path / "kong.yml"
    routes = [{"name": "r", "paths": ["/"], "plugins": [{"name": "greeter"}]}]
    service = {"name": "orders", "url": "http://127.0.0.1:9", "routes": routes}
    kong_yml.write_text(json.dumps({"_format_version": "3.0", "services": [service]}))
    plugin.write_text(GREETER.format("hello"))
    options = ("--listen", "127.0.0.1:0", "--workers", "1", "--status-listen", "off", "--plugin", str(plugin))
    with command("serve", str(kong_yml), *options) as gateway:
        url = read_until(gateway, r"listening on (http://[^,\s]+)")[1]
        assert get(url, {}) == (200, b"hello")

        plugin.write_text(GREETER.format("howdy"))
        gateway.send_signal(SIGHUP)
        read_until(gateway, "exited with code 0")
        assert get(url, {}) == (200, b"howdy")

        plugin.write_text(GREETER.replace("(self", "[self"))
        gateway.send_signal(SIGHUP)
        assert read_until(gateway, r"greeter\.py:6: is no Python")
        assert get(url, {}) == (200, b"howdy")
        assert end(gateway, SIGQUIT)[1] == 0


NODE = """class Node:
    PRIORITY = 1
    VERSION = "1"

    def access(self, kong, conf):
        kong.response.exit(200, kong.node.get_id())
"""


def test_node_keeps_its_id_over_a_reload_and_no_other_has_it(tmp_path):
    """Else every series of its metrics, and `service.instance.id`, would begin anew with each HUP."""
    plugin, kong_yml = tmp_path / "node.py", tmp_path / "kong.yml"
    plugin.write_text(NODE)
    routes = [{"name": "r", "paths": ["/"], "plugins": [{"name": "node"}]}]
    service = {"name": "orders", "url": "http://127.0.0.1:9", "routes": routes}
    kong_yml.write_text(json.dumps({"_format_version": "3.0", "services": [service]}))
    options = ("--listen", "127.0.0.1:0", "--workers", "1", "--status-listen", "off", "--plugin", str(plugin))
    seen = []
    for _ in range(2):
        with command("serve", str(kong_yml), *options) as gateway:
            url = read_until(gateway, r"listening on (http://[^,\s]+)")[1]
            before = get(url, {})
            gateway.send_signal(SIGHUP)
            read_until(gateway, "exited with code 0")
            assert get(url, {}) == before
            seen.append(before)
            assert end(gateway, SIGQUIT)[1] == 0
    assert seen[0] != seen[1]


@pytest.mark.parametrize("name", ["serve", "check"])
def test_mistake_in_a_plugin_is_one_line_and_exit_code_2(tmp_path, name):
    """Nothing is started."""
    plugin, kong_yml = tmp_path / "greeter.py", tmp_path / "kong.yml"
    kong_yml.write_text("_format_version: '3.0'\n")
    plugin.write_text(GREETER.replace("def access", "async def log"))
    with command(name, str(kong_yml), "--plugin", str(plugin)) as refused:
        text, _ = refused.communicate(timeout=TIMEOUT_S)

    assert text.splitlines() == [
        f"kongsim: {plugin}:6: Greeter: log must not wait; write def log, and wait in a timer: kong.timer.at(0, f)"
    ]
    assert refused.returncode == 2


SPANNER = """
class Spanner:
    PRIORITY = 1000
    VERSION = "1.0"

    def access(self, kong, conf):
        kong.tracing.start_span("mine").finish()
"""

SCENARIO = """
name: mine
seed: 1
gateway:
  workers: 1
  config:
    services: [{name: a, host: default, routes: [{name: r, paths: [/]}]}]
    plugins: [{name: spanner}, {name: synthetic, config: {access: {cpu: 1ms, wait: 2ms, spans: {count: 2}}}}]
  tracing: {instrumentations: [request], sampling_rate: 1.0}
  plugin_paths: [plugins/spanner.py]
upstreams: {default: {body: 1KiB}}
load: [{executor: constant-arrival-rate, rate: 20/s, duration: 500ms}]
thresholds: [ledger.unaccounted == 0, requests.failed == 0]
"""


def test_scenario_runs_a_plugin_of_its_own_and_runs_again_from_its_folder(tmp_path):
    """Its path is relative to the scenario; the scenario as run finds it from anywhere."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "spanner.py").write_text(SPANNER)
    (tmp_path / "mine.yaml").write_text(SCENARIO)
    for scenario, out in (("mine.yaml", "first"), ("first/scenario.yaml", "second")):
        with command("run", str(tmp_path / scenario), "--out", str(tmp_path / out), "--json") as running:
            text, _ = running.communicate(timeout=TIMEOUT_S * 2)
        summary = json.loads(text[text.index("{") :])
        assert summary["requests"]["completed"] == 10
        assert summary["ledger"]["created"] == 10 * (1 + 1 + 2)
        assert summary["ledger"]["unaccounted"] == 0
