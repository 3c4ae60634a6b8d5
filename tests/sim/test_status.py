"""The Status API's answers, made from a scoreboard that says what it is told to."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sim.config import Gateway
from sim.entity import Plugin
from sim.scoreboard import FIELD_INDEX, Scoreboard, State, new_row
from sim.status import Status

GATEWAY = Gateway(workers=2, plugins=(Plugin(name="opentelemetry", config={"traces_endpoint": "http://c/v1/traces"}),))


class World:
    """Two workers; the one in slot 0 has counted, and one before it was killed."""

    def __init__(self):
        self.scoreboard = Scoreboard(2)
        dead = self.scoreboard.open(0, 1)
        dead.started(100)
        counted = {"requests": 5, "requests_begun": 6, "requests_active": 1, "connections": 3}
        self.publish(dead, **counted, created=40, unprocessed=30, spans_open=10, cpu_ns=1_000_000_000)
        dead.end(-9)
        self.records = [self.scoreboard.open(slot, 1) for slot in range(2)]
        for slot, record in enumerate(self.records):
            record.started(101 + slot)
        self.publish(
            self.records[0],
            state=State.SERVING,
            requests=7,
            requests_begun=9,
            requests_active=2,
            responses_2xx=6,
            responses_5xx=1,
            connections=10,
            connections_refused=1,
            connections_active=6,
            connections_reading=1,
            timers_pending=4,
            timers_running=3,
            rss_bytes=3 << 20,
            cpu_ns=2_500_000_000,
            created=80,
            enqueued=80,
            acknowledged=50,
            dropped_overflow=5,
            dropped_retries=8,
            queue_depth=10,
            queue_bytes=1_150,
            in_flight=7,
        )
        self.publish(self.records[1], state=State.SERVING, rss_bytes=1 << 20)
        self.status = Status(GATEWAY, self.scoreboard)

    def publish(self, record, **values):
        row = new_row()
        for name, value in values.items():
            row[FIELD_INDEX[name]] = value
        record.publish(row)

    def json(self, target):
        status, headers, body = self.status.answer("GET", target)
        assert headers["Content-Type"] == "application/json; charset=utf-8"
        return status, json.loads(body)

    def metrics(self):
        """Return every sample by name and labels, without the node's id."""
        status, headers, body = self.status.answer("GET", "/metrics")
        assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        return {
            (
                sample.name,
                *(value for label, value in sorted(sample.labels.items()) if label != "node_id"),
            ): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }


@pytest.fixture
def world():
    return World()


def test_status_has_the_shape_of_kong(world):
    """Counters are those of all workers that ever were, gauges those of the living; memory is each worker's."""
    status, told = world.json("/status")

    assert status == 200
    assert told["server"] == {
        "connections_accepted": 13,
        "connections_handled": 12,
        "connections_active": 6,
        "connections_reading": 1,
        "connections_writing": 2,
        "connections_waiting": 3,
        "total_requests": 15,
    }
    assert told["memory"]["workers_lua_vms"] == [
        {"http_allocated_gc": "3.00 MiB", "pid": 101},
        {"http_allocated_gc": "1.00 MiB", "pid": 102},
    ]
    assert told["memory"]["lua_shared_dicts"].keys() == {"scoreboard"}
    assert told["database"] == {"reachable": True}
    assert len(told["configuration_hash"]) == 32


def test_no_counter_goes_back_when_a_worker_dies(world):
    """Whatever it was doing: a counter that does is taken for one that has begun anew, and counted twice."""
    before = world.metrics()
    for record in world.records:
        record.end(-9)
    after = world.metrics()

    states = ("active", "reading", "writing", "waiting")
    standing = {("kong_nginx_connections_total", state, "http") for state in states}
    counters = {key for key in before if key[0].endswith("_total")} - standing
    assert ("kong_nginx_requests_total", "http") in counters
    assert {key: (before[key], after[key]) for key in counters if after[key] < before[key]} == {}


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("?unit=b", 3145728),
        ("?unit=k", "3072.00 KiB"),
        ("?unit=K&scale=0", "3072 KiB"),
        ("?unit=g&scale=4", "0.0029 GiB"),
    ],
)
def test_memory_is_told_in_the_unit_asked_for(world, query, told):
    """`unit` and `scale` are Kong's."""
    assert world.json(f"/status{query}")[1]["memory"]["workers_lua_vms"][0]["http_allocated_gc"] == told


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("unit=x", "invalid unit 'x' (expected 'k/K', 'm/M', or 'g/G')"),
        ("scale=-1", "scale must be equal or greater than 0"),
        ("scale=100", "scale must be at most 99"),
        ("scale=x", "scale must be a number"),
    ],
)
def test_unknown_unit_or_scale_is_400(world, query, message):
    """The message is Kong's."""
    assert world.json(f"/status?{query}") == (400, {"message": message})


def test_gateway_is_ready_when_every_slot_serves(world):
    """A generation that starts is not ready, though the old one still drains."""
    assert world.json("/status/ready") == (200, {"message": "ready"})

    world.publish(world.records[1], state=State.DRAINING)
    world.scoreboard.open(1, 2).started(103)

    assert world.json("/status/ready") == (503, {"message": "0 of 2 workers serve"})


def test_timers_are_told_of_all_workers_and_of_each(world):
    """The sum stands where Kong has its own, the workers beside it."""
    _status, told = world.json("/timers")

    assert told["stats"]["sys"] == {"pending": 4, "running": 3, "total": 7}
    assert told["workers"][0] == {
        "worker": {"id": 0, "count": 2, "pid": 101},
        "stats": {"sys": {"pending": 4, "running": 3, "total": 7}},
    }
    assert len(told["workers"]) == 2


def test_metrics_have_the_names_of_kong_where_kong_has_one(world):
    """Connections by state, requests, timers and memory."""
    told = world.metrics()

    states = {"accepted": 13, "handled": 12, "active": 6, "reading": 1, "writing": 2, "waiting": 3, "total": 13}
    assert {key[1]: n for key, n in told.items() if key[0] == "kong_nginx_connections_total"} == states
    assert told["kong_nginx_requests_total", "http"] == 15
    assert (told["kong_nginx_timers", "pending"], told["kong_nginx_timers", "running"]) == (4, 3)
    assert told["kong_memory_workers_lua_vms_bytes", "http", "101"] == 3 << 20
    assert told["kong_node_info", "0.1.0"] == 1


def test_spans_and_queues_have_the_names_of_opentelemetry(world):
    """Started, live, processed, queued, in flight and exported, failures by their cause."""
    told = world.metrics()
    processor = "batching_span_processor/0", "batching_span_processor"
    exporter = "otlp_http_span_exporter/0", "otlp_http_span_exporter"

    assert told["otel_sdk_span_started_total",] == 120
    assert told["otel_sdk_processor_span_queue_size", *processor] == 10
    assert told["otel_sdk_processor_span_queue_capacity", *processor] == 20_000
    assert told["otel_sdk_processor_span_processed_total", "", *processor] == 58
    assert told["otel_sdk_processor_span_processed_total", "queue_full", *processor] == 5
    assert told["otel_sdk_exporter_span_inflight", *exporter] == 7
    assert told["otel_sdk_exporter_span_exported_total", "", *exporter] == 50
    assert told["otel_sdk_exporter_span_exported_total", "max_retry_time", *exporter] == 8


def test_ledger_is_one_metric_with_a_label(world):
    """Every account stands in it, those of the dead too, and nothing is unaccounted."""
    told = {key[1]: value for key, value in world.metrics().items() if key[0] == "kongsim_ledger_spans"}

    assert (told["created"], told["unprocessed"], told["lost_in_request"], told["enqueued"]) == (120, 30, 10, 80)
    assert (told["queued"], told["in_flight"], told["unaccounted"]) == (10, 7, 0)


def test_workers_are_told_by_slot(world):
    """CPU time and starts add up over all that the slot has had."""
    told = world.metrics()

    assert told["kongsim_worker_cpu_seconds_total", "0"] == 3.5
    assert (told["kongsim_worker_starts_total", "0"], told["kongsim_worker_starts_total", "1"]) == (2, 1)
    assert told["kongsim_workers", "serving"] == 2
    assert told["kongsim_http_responses_total", "5xx"] == 1
    assert (told["kongsim_worker_queue_bytes", "0"], told["kongsim_worker_queue_bytes", "1"]) == (1_150, 0)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [("GET", "/", 404), ("GET", "/statusx", 404), ("POST", "/status", 405), ("HEAD", "/metrics", 200)],
)
def test_other_paths_and_methods_are_refused(world, method, target, status):
    """404 names the paths that there are; 405 the methods."""
    answered, headers, body = world.status.answer(method, target)

    assert answered == status
    assert headers.get("Allow") == ("GET, HEAD" if status == 405 else None)
    if status == 404:
        assert json.loads(body)["paths"] == ["/status", "/status/ready", "/timers", "/metrics"]


@pytest.mark.parametrize("target", ["//[", "http://[::1/status"])
def test_malformed_target_is_400(world, target):
    """It says who is asked in a form that nobody can be asked in."""
    assert world.json(target) == (400, {"message": "Bad request"})
