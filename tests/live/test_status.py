"""The Status API of a live gateway."""

import http.client
import json
import os
import socket
from contextlib import closing
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sim.config import Gateway
from sim.entity import Plugin, Route, Service, Target, Upstream
from sim.scoreboard import State
from tests import peers
from tests.gateway import TIMEOUT_S, echo, gateway_to, live, traced_gateway


def ask(port, path, method="GET"):
    """Return status, headers and body of an answer of the Status API."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as client:
        client.request(method, path)
        answer = client.getresponse()
        return answer.status, answer.headers, answer.read()


def ask_json(port, path):
    status, _headers, body = ask(port, path)
    assert status == 200
    return json.loads(body)


@pytest.fixture
def gateway(tmp_path):
    with echo() as upstream, live(tmp_path, gateway_to(upstream, workers=2, status_listen="127.0.0.1:0")) as running:
        yield running


def status_pid(gateway):
    line = [line for line in gateway.log.read_text().splitlines() if "start status process" in line][-1]
    return int(line.rpartition(" ")[2])


def test_status_tells_of_requests_connections_and_memory(gateway):
    """What the workers have published is what is told."""
    for _ in range(3):
        assert gateway.request().status == 200
    gateway.wait_until(lambda reading: reading.sum("requests") == 3 and reading.sum("connections_active") == 0)
    with gateway.connect() as client:
        client.sendall(b"GET / HT")
        gateway.wait_until(lambda reading: reading.sum("connections_reading") == 1)
        server = ask_json(gateway.status_ports[0], "/status")["server"]

    assert (server["total_requests"], server["connections_accepted"], server["connections_handled"]) == (3, 4, 4)
    assert (server["connections_active"], server["connections_reading"], server["connections_waiting"]) == (1, 1, 0)
    memory = ask_json(gateway.status_ports[0], "/status?unit=b")["memory"]["workers_lua_vms"]
    for told, worker in zip(memory, gateway.scoreboard.read().alive, strict=True):
        assert told["pid"] == worker.pid
        assert told["http_allocated_gc"] == pytest.approx(psutil.Process(worker.pid).memory_info().rss, rel=0.2)


def test_status_disturbs_no_worker_and_does_not_depend_on_one(gateway):
    """It answers while every worker is stopped."""
    workers = [worker.pid for worker in gateway.scoreboard.read().alive]
    for pid in workers:
        os.kill(pid, SIGSTOP)
    try:
        assert ask_json(gateway.status_ports[0], "/status/ready") == {"message": "ready"}
    finally:
        for pid in workers:
            os.kill(pid, SIGCONT)
    assert gateway.request().status == 200


def test_killed_status_process_is_started_again(gateway):
    """Its port does not close, and the workers do not notice."""  # W11
    workers = gateway.scoreboard.read().workers
    pid = status_pid(gateway)

    os.kill(pid, SIGKILL)

    assert ask_json(gateway.status_ports[0], "/status/ready") == {"message": "ready"}
    gateway.wait_logged(f"[alert] {gateway.process.pid}#{gateway.process.pid}: status process {pid} exited on signal 9")
    gateway.wait_until(lambda _reading: status_pid(gateway) != pid)  # it may answer before the master says its pid
    assert [worker.pid for worker in gateway.scoreboard.read().workers] == [worker.pid for worker in workers]


def test_status_goes_on_over_a_reload_and_tells_of_the_new_generation(gateway):
    """The port stays, counters go on, and the process is a new one."""  # W10
    gateway.request()
    gateway.wait_requests(1)
    before = status_pid(gateway)
    gateway.reload()
    gateway.wait_until(lambda reading: {worker.generation for worker in reading.alive} == {2})
    gateway.wait_logged(f"status process {before} exited with code 0")

    told = ask(gateway.status_ports[0], "/metrics")[2].decode()
    assert "kongsim_generation 2.0" in told
    assert ask_json(gateway.status_ports[0], "/status")["server"]["total_requests"] == 1


def test_request_to_the_status_api_is_answered_over_a_reload(gateway):
    """The process that has begun to read it leaves only then, as nginx's do."""
    with closing(socket.create_connection(("127.0.0.1", gateway.status_ports[0]), TIMEOUT_S)) as client:
        client.sendall(b"GET /status/ready HTTP/1.1\r\n")
        before = status_pid(gateway)
        ask_json(gateway.status_ports[0], "/status/ready")  # it has read what came before
        gateway.reload()
        gateway.wait_logged("gracefully shutting down")
        client.sendall(b"Host: status\r\n\r\n")

        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    gateway.wait_logged(f"status process {before} exited with code 0")


def test_reload_can_switch_the_status_api_off(tmp_path):
    """The process leaves and the port closes."""
    with echo() as upstream:
        address = f"127.0.0.1:{peers.free_port()}"  # which nobody else gets when it is closed
        now, later = (gateway_to(upstream, status_listen=where) for where in (address, "off"))
        with live(tmp_path, now, reread=lambda: later) as gateway:
            pid = status_pid(gateway)
            gateway.reload()
            gateway.wait_logged(f"status process {pid} exited with code 0")
            with pytest.raises(ConnectionRefusedError):
                ask(gateway.status_ports[0], "/status")


def test_metrics_of_a_traced_gateway_balance(tmp_path):
    """The accounts that a Prometheus scrapes add up, and every line is in its format."""
    with traced_gateway(tmp_path, status_listen="127.0.0.1:0") as (gateway, _collector):
        for _ in range(5):
            gateway.request()
        gateway.wait_requests(5)
        status, headers, body = ask(gateway.status_ports[0], "/metrics")

    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    accounts = {sample.labels["account"]: sample.value for sample in families["kongsim_ledger_spans"].samples}
    assert accounts["created"] == accounts["acknowledged"] > 0
    assert accounts["unaccounted"] == 0
    assert families["otel_sdk_span_started"].samples[0].value == accounts["created"]
    assert families["kong_nginx_requests_total"].samples[0].value == 5


def samples(gateway):
    """The samples of the metrics, by name and labels without those that say nothing here."""
    text = ask(gateway.status_ports[-1], "/metrics")[2].decode()
    told = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sorted((k, v) for k, v in sample.labels.items() if k not in ("workspace", "consumer", "subsystem"))
            told[sample.name, *(f"{key}={value}" for key, value in labels)] = sample.value
    return told


def counted(port, **config):
    """A gateway with a prometheus plugin, two routes and an upstream one of whose targets is dead."""
    checks = {"passive": {"unhealthy": {"tcp_failures": 1}}}
    targets = (Target(target=f"127.0.0.1:{port}"), Target(target=f"127.0.0.1:{peers.free_port()}"))
    return gateway_to(
        port,
        workers=2,
        status_listen="127.0.0.1:0",
        upstreams=(Upstream(name="pool", targets=targets, healthchecks=checks),),
        services=(Service(name="orders", host="pool"), Service(name="gone", host="127.0.0.1", port=1, retries=0)),
        routes=(
            Route(name="good", service="orders", paths=("/good",)),
            Route(name="bad", service="gone", paths=("/bad",)),
            Route(name="mine", paths=("/mine",)),
        ),
        plugins=(Plugin(name="prometheus", config=config),),
    )


def test_requests_are_told_by_route_over_deaths_and_reloads(tmp_path):
    """Kong's names and labels; a worker that is killed, and one that leaves, have counted for good."""
    request = "kong_http_requests_total code={} route={} service={} source={}".format
    with echo() as upstream:
        gateway = counted(upstream, status_code_metrics=True)
        with live(tmp_path, gateway, reread=lambda: gateway) as running:
            for path, times in (("/good", 6), ("/bad", 2), ("/mine", 1), ("/nowhere", 1)):
                for _ in range(times):
                    running.request(path=path)
            reading = running.wait_requests(10)
            for worker in reading.alive:
                os.kill(worker.pid, SIGKILL)
            running.wait_until(lambda r: [w.serial for w in r.alive if w.state is State.SERVING] == [2, 2])
            running.request(path="/good")
            running.reload()
            running.request(path="/good")
            running.wait_requests(12)

            told = {" ".join(name): value for name, value in samples(running).items() if "requests_total" in name[0]}

    assert {name: value for name, value in told.items() if name.startswith("kong_http_")} == {
        request(200, "good", "orders", "service"): 8,
        request(502, "bad", "gone", "kong"): 2,
        request(503, "mine", "", "kong"): 1,
    }


def test_latencies_are_told_in_kongs_buckets(tmp_path):
    """Each request is in one bucket of the whole and of Kong's share; of the service's when that has answered."""
    with echo() as upstream, live(tmp_path, counted(upstream, latency_metrics=True)) as running:
        running.request(path="/good")
        running.request(path="/bad")
        running.wait_requests(2)
        told = samples(running)

    good, bad = ("route=good", "service=orders"), ("route=bad", "service=gone")
    for kind, routes in (("kong", {good, bad}), ("request", {good, bad}), ("upstream", {good})):
        name = f"kong_{kind}_latency_ms"
        assert {name[1:] for name in told if name[0] == f"kong_{kind}_latency_ms_count"} == routes
        assert {told[f"{name}_count", *route] for route in routes} == {1}
        assert all(told[f"{name}_bucket", "le=+Inf", *route] == 1 for route in routes)
        buckets = [told[key] for key in told if key[0] == f"{name}_bucket" and key[2:] == good]
        assert buckets == sorted(buckets)
    assert not any(name[0].startswith("kong_http_requests") for name in told)


def test_health_of_targets_is_told(tmp_path):
    """One state of each is 1: of the dead target once it has failed a request; Kong's words."""
    with echo() as upstream:
        gateway = counted(upstream, upstream_health_metrics=True)
        targets = [target.target for target in gateway.upstreams[0].targets]
        with live(tmp_path, gateway) as running:

            def states():
                found = {}
                for name, value in samples(running).items():
                    if name[0] == "kong_upstream_target_health" and value:
                        labels = dict(label.split("=") for label in name[1:])
                        assert (labels["upstream"], labels["address"]) == ("pool", labels["target"])
                        found.setdefault(labels["target"], set()).add(labels["state"])
                return found

            running.wait_until(lambda _: states() == {target: {"healthy"} for target in targets})
            running.wait_until(lambda _: running.request(path="/good") and "unhealthy" in states()[targets[1]])
            assert states()[targets[0]] == {"healthy"}


def test_target_whose_name_was_looked_up_in_vain_is_a_dns_error(tmp_path):
    """Not before anybody has asked for it: names are looked up when they are needed."""
    with echo() as upstream:
        gateway = counted(upstream, upstream_health_metrics=True)
        target = "nowhere.invalid:80"
        gateway = gateway.model_copy(update={"upstreams": (Upstream(name="pool", targets=(Target(target=target),)),)})
        with live(tmp_path, gateway) as running:
            labels = ("address=", f"target={target}", "upstream=pool")

            def state():
                told = [key for key, value in samples(running).items() if value and set(labels) <= set(key)]
                return [label for key in told for label in key if label.startswith("state=")]

            running.wait_until(lambda _: state() == ["state=healthchecks_off"])
            running.wait_until(lambda _: running.request(path="/good").status == 503 and "state=dns_error" in state())


def test_backlog_of_a_worker_is_told_in_spans_and_in_bytes(tmp_path):
    """What waits in its queue, here for more to make a batch."""
    waiting = {"traces_endpoint": "http://127.0.0.1:9/v1/traces", "queue": {"max_coalescing_delay": 3600}}
    plugin = Plugin(name="opentelemetry", config=waiting)
    with echo() as upstream:
        configuration = gateway_to(upstream, plugins=(plugin,), status_listen="127.0.0.1:0")
        with live(tmp_path, configuration) as gateway:
            gateway.request()
            reading = gateway.wait_until(lambda reading: reading.sum("queue_bytes"))
            told = ask(gateway.status_ports[0], "/metrics")[2].decode()
            ended = gateway.stop(SIGTERM)

    spans, size = reading.sum("queue_depth"), reading.sum("queue_bytes")
    assert 50 < size / spans < 500  # two ids, two times, a name, some attributes
    assert f'kongsim_worker_queue_bytes{{slot="0"}} {size}.0' in told
    assert f'name="batching_span_processor/0",otel_component_type="batching_span_processor"}} {spans}.0' in told
    assert (ended.sum("queue_bytes"), ended.accounts[0].values["queue_bytes_max"]) == (0, size)


def test_status_process_reopens_the_log_too(gateway):
    """USR1 reaches it and does not end it."""  # W4
    pid = status_pid(gateway)
    os.kill(gateway.process.pid, SIGUSR1)
    gateway.wait_logged("logs reopened")

    assert ask(gateway.status_ports[0], "/nowhere")[0] == 404
    assert status_pid(gateway) == pid
    gateway.stop()


def test_gateway_without_status_listen_has_no_such_process(tmp_path):
    """It is off unless it is asked for."""
    assert Gateway().status_listen == ()
    with echo() as upstream, live(tmp_path, gateway_to(upstream)) as gateway:
        assert len(psutil.Process(gateway.process.pid).children()) == 1
