"""The bundled plugins on real sockets."""

import json
import re
import socket
import threading
from contextlib import contextmanager

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from sim.entity import Plugin
from sim.plugins.request_termination import RequestTerminationConfig
from tests import peers
from tests.gateway import (
    TIMEOUT_S,
    attributes,
    echo,
    gateway_to,
    live,
    recording_collector,
    traced_gateway,
)


@contextmanager
def served(directory, *plugins, classes=None, **options):
    """Run a gateway to an echo with these plugins."""
    with echo() as upstream, live(directory, gateway_to(upstream, plugins=plugins, **options), classes) as gateway:
        yield gateway


# request-termination


@pytest.mark.parametrize(
    ("config", "status", "content_type", "content"),
    [
        ({}, 503, "application/json; charset=utf-8", b'{"message":"Service unavailable"}'),
        ({"status_code": 404}, 404, "application/json; charset=utf-8", b'{"message":"Not found"}'),
        ({"status_code": 403}, 403, None, b""),
        ({"status_code": 299, "message": "no"}, 299, "application/json; charset=utf-8", b'{"message":"no"}'),
        ({"status_code": 200, "body": "<p>", "content_type": "text/html"}, 200, "text/html", b"<p>"),
    ],
)
def test_request_termination_answers_in_place_of_the_service(tmp_path, config, status, content_type, content):
    """Status and message, or a body as it is."""
    with served(tmp_path, Plugin(name="request-termination", config=config)) as gateway:
        answer = gateway.request()

    assert (answer.status, answer.headers["Content-Type"], answer.content) == (status, content_type, content)


def test_request_termination_with_a_trigger_lets_others_pass(tmp_path):
    """A header or a query argument of that name sets it off."""
    config = {"status_code": 418, "trigger": "stop"}
    with served(tmp_path, Plugin(name="request-termination", config=config)) as gateway:
        statuses = [
            gateway.request().status,
            gateway.request("GET", "/?stop").status,
            gateway.request(headers={"Stop": "1"}).status,
        ]

    assert statuses == [200, 418, 418]


def test_request_termination_echoes_what_was_asked(tmp_path):
    """Request, matched route and service, and who answered."""
    config = {"status_code": 404, "echo": True}
    with served(tmp_path, Plugin(name="request-termination", config=config)) as gateway:
        answer = gateway.request("GET", "/a?b=c", headers={"X-Mine": "1"})
        said = json.loads(answer.content)

    assert (answer.status, said["message"]) == (404, "Not found")
    assert (said["request"]["path"], said["request"]["query"], said["request"]["method"]) == ("/a", {"b": "c"}, "GET")
    assert said["request"]["headers"]["x-mine"] == "1"
    assert (said["matched_route"]["name"], said["matched_service"]["name"]) == ("all", "orders")
    assert said["kong"]["worker_pid"] > 1


@pytest.mark.parametrize(
    "config",
    [
        {"status_code": 99},
        {"status_code": 600},
        {"message": "a", "body": "b"},
        {"message": "a", "content_type": "text/plain"},
        {"content_type": "text/plain"},
        {"echo": True, "body": "b"},
        {"trigger": "not a name"},
    ],
)
def test_request_termination_refuses_what_contradicts_itself(config):
    """Kong's ranges and exclusions hold."""
    with pytest.raises(ValueError, match="1 validation error"):
        RequestTerminationConfig.model_validate(config)


# correlation-id


@pytest.mark.parametrize(
    ("generator", "first", "second"),
    [
        ("uuid#counter", r"(?P<same>[0-9a-f-]{36})#1", r"(?P<same>[0-9a-f-]{36})#2"),
        ("uuid", r"(?P<other>[0-9a-f-]{36})", r"(?P<other>[0-9a-f-]{36})"),
        (
            "tracker",
            r"(?P<same>127\.0\.0\.1-\d+-\d+-\d+)-1-\d+\.\d{3}",
            r"(?P<same>127\.0\.0\.1-\d+-\d+-\d+)-2-\d+\.\d{3}",
        ),
    ],
)
def test_correlation_id_makes_ids_as_its_generator_says(tmp_path, generator, first, second):
    """A counter behind the worker's id, a new id each time, or where and as what the request came in."""
    config = {"generator": generator, "echo_downstream": True}
    request = b"GET / HTTP/1.1\r\nHost: g\r\n\r\n"
    with served(tmp_path, Plugin(name="correlation-id", config=config)) as gateway:
        answers = gateway.exchange(request + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).decode()

    ids = re.findall(r"Kong-Request-ID: (\S+)\r\n", answers)
    assert [bool(re.fullmatch(first, ids[0])), bool(re.fullmatch(second, ids[1]))] == [True, True]
    parts = re.fullmatch(first, ids[0]).groupdict() | {}
    again = re.fullmatch(second, ids[1]).groupdict()
    assert (parts == again) is ("same" in parts)


def test_correlation_id_leaves_the_clients_own(tmp_path):
    """It goes to the service and back as the client sent it."""
    plugin = Plugin(name="correlation-id", config={"header_name": "X-Id", "echo_downstream": True})
    with served(tmp_path, plugin) as gateway:
        answer = gateway.request(headers={"X-Id": "mine"})

    assert answer.headers["X-Id"] == "mine"
    assert ["x-id", "mine"] in [[name.lower(), value] for name, value in json.loads(answer.content)["headers"]]


def test_correlation_id_is_told_also_where_there_is_no_route(tmp_path):
    """A client's empty one counts for none."""
    plugin = Plugin(name="correlation-id", config={"header_name": "X-Id", "echo_downstream": True})
    with served(tmp_path, plugin, route={"paths": ("/here",)}) as gateway:
        lost = gateway.request("GET", "/there")
        own = gateway.request("GET", "/there", headers={"X-Id": "mine"})
        empty = gateway.request("GET", "/here", headers={"X-Id": ""})

    assert (lost.status, own.headers["X-Id"]) == (404, "mine")
    assert re.fullmatch(r"[0-9a-f-]{36}#1", lost.headers["X-Id"])
    assert re.fullmatch(r"[0-9a-f-]{36}#2", empty.headers["X-Id"])


# synthetic


def test_synthetic_makes_the_spans_that_it_is_told_to(tmp_path):
    """Number, names, attributes of a size, events and nesting, in every phase."""
    config = {
        "rewrite": {"spans": {"count": 1, "name": "r"}},
        "access": {"spans": {"count": 3, "name": "a{n}", "attributes": 2, "attribute_size": "100B", "nesting": "deep"}},
        "header_filter": {"spans": {"count": 2, "name": "h", "events": 3}},
        "log": {"spans": {"count": 1, "name": "l"}},
    }
    with traced_gateway(tmp_path, plugins=(Plugin(name="synthetic", config=config),)) as (gateway, collector):
        assert gateway.request().status == 200
        gateway.wait_requests(1)
        reading = gateway.stop()
        spans = collector.wait_spans(reading.ledger.acknowledged)

    by_name = {span.name: span for span in spans}
    assert [by_name[f"a{n}"].parent_span_id for n in (2, 3)] == [by_name[f"a{n}"].span_id for n in (1, 2)]
    assert by_name["a1"].parent_span_id == by_name["kong.access.plugin.synthetic"].span_id
    assert attributes(by_name["a3"]) == {"synthetic.0": "x" * 100, "synthetic.1": "x" * 100}
    assert [event.name for event in by_name["h"].events] == ["synthetic"] * 3
    assert sum(span.name == "h" for span in spans) == 2
    assert {"r", "l"} <= by_name.keys()
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano > 0 for span in spans)
    assert reading.ledger.unaccounted == 0


def test_synthetic_uses_the_cpu_time_and_waits_as_long_as_it_is_told(tmp_path):
    """CPU time is the process's own, whoever else computes; waiting costs none."""
    requests, cpu_ms, wait_ms = 3, 20, 200
    config = {"access": {"cpu": f"{cpu_ms}ms", "wait": f"{wait_ms}ms", "spans": {"count": 1, "name": "work"}}}
    with traced_gateway(tmp_path, plugins=(Plugin(name="synthetic", config=config),)) as (gateway, collector):
        cpu_before_ns = gateway.wait_requests(0).sum("cpu_ns")
        for _ in range(requests):
            gateway.request()
        gateway.wait_requests(requests)
        reading = gateway.stop()
        spans = collector.wait_spans(reading.ledger.acknowledged)

    work = [span for span in spans if span.name == "work"]
    assert len(work) == requests
    assert all(span.end_time_unix_nano - span.start_time_unix_nano >= (cpu_ms + wait_ms - 1) * 1e6 for span in work)
    used_ms = (reading.sum("cpu_ns") - cpu_before_ns) / 1e6
    assert requests * cpu_ms <= used_ms < requests * (cpu_ms + wait_ms)


def test_synthetic_that_is_told_nothing_does_nothing(tmp_path):
    """Without configuration no span and no error."""
    with served(tmp_path, Plugin(name="synthetic"), tracing={"instrumentations": ("request",)}) as gateway:
        assert gateway.request().status == 200
        gateway.wait_requests(1)
        reading = gateway.stop()
        assert "[error]" not in gateway.log.read_text()

    assert reading.ledger.created == 1


# trace-exporter


@contextmanager
def line_server(count):
    """A server that takes `count` connections and keeps the lines of each."""
    received = []

    def take(server):
        for _ in range(count):
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as stream:
                received.append(stream.readlines())

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT_S)
        thread = threading.Thread(target=take, args=(server,))
        thread.start()

        def lines():
            thread.join(TIMEOUT_S)
            return received

        yield server.getsockname()[1], lines


@pytest.mark.parametrize("profile", ["kong", "safe"])
def test_trace_exporter_sends_each_trace_as_one_line_of_json(tmp_path, profile):
    """Sampled spans of its own tracer and the global one, in order of start, and whole."""  # D22
    with line_server(3) as (port, lines):
        plugin = Plugin(name="trace-exporter", config={"host": "localhost", "port": port, "custom_spans": True})
        with served(tmp_path, plugin, profile=profile) as gateway:
            for number in range(3):
                assert gateway.request("GET", f"/{number}").status == 200
            traces = [json.loads(line) for (line,) in lines()]
            reading = gateway.stop()
            log = gateway.log.read_text()

    for trace in traces:
        spans = {span["name"]: span for span in trace}
        root = spans["kong"]
        assert {"rewrite", "access", "header_filter", "kong", "kong.router", "kong.balancer"} <= spans.keys()
        assert [span["start_time_ns"] for span in trace] == sorted(span["start_time_ns"] for span in trace)
        assert {span["trace_id"] for span in trace} == {root["trace_id"]}
        assert re.fullmatch("[0-9a-f]{32}", root["trace_id"])
        assert root["attributes"]["http.method"] == "GET"
        assert spans["rewrite"]["parent_id"] is not None
        assert "tracer" not in root
        assert "parent" not in root
    assert {trace[0]["attributes"]["http.url"][-2:] for trace in traces} == {"/0", "/1", "/2"}
    assert reading.ledger.unaccounted == 0
    assert "[error]" not in log


def test_trace_exporter_that_reaches_nobody_says_so(tmp_path):
    """The reason stands in the error log, and requests go on."""
    config = {"host": "127.0.0.1", "port": peers.free_port()}
    with served(tmp_path, Plugin(name="trace-exporter", config=config)) as gateway:
        assert gateway.request().status == 200
        gateway.stop()
        assert "connect err: connection refused" in gateway.log.read_text()


# opentelemetry


class Talks:
    """Logs, in a request and outside of one."""

    PRIORITY = 100
    VERSION = "1"

    def init_worker(self, kong):
        """Log outside of any request."""
        kong.timer.at(0, lambda _premature: kong.log.notice("from a timer"))

    def access(self, kong, conf):
        """Log under the plugin's span."""
        kong.log.warn("order ", 7, " is late")  # noqa: PLE1205 - it concatenates its arguments
        kong.ctx.shared["team"] = "blue"
        kong.response.set_header("X-Told", str(kong.telemetry.log("talks", conf, "order", "shipped", {"order.id": 7})))
        assert kong.telemetry.log("talks", conf, 1, "shipped") == (None, "message_type must be a string")
        if conf.get("odd"):
            within_itself = []
            within_itself.append(within_itself)
            assert kong.telemetry.log("talks", conf, "order", "odd", {"list": within_itself}) == (True, None)
        for number in range(conf.get("many", 0)):
            kong.log.notice(f"line {number}")
        kong.log.info("too little to be logged")


@contextmanager
def logging_gateway(directory, config, talks=None, **options):
    """Run a gateway that exports logs, and traces, to recording collectors."""
    with echo() as upstream, recording_collector() as traces, recording_collector() as logs:
        endpoints = {
            "traces_endpoint": f"http://127.0.0.1:{traces.port}/v1/traces",
            "logs_endpoint": f"http://127.0.0.1:{logs.port}/v1/logs",
            "queue": {"max_coalescing_delay": 0.1},
        }
        plugins = (Plugin(name="opentelemetry", config=endpoints | config), Plugin(name="talks", config=talks or {}))
        with live(directory, gateway_to(upstream, plugins=plugins, **options), {"talks": Talks}) as gateway:
            yield gateway, traces, logs


def records(collector):
    """The log records that have come, and the resource of the first."""
    requests = [ExportLogsServiceRequest.FromString(body) for body in collector._peer.report()]
    resource = requests[0].resource_logs[0].resource
    return [
        r for q in requests for rl in q.resource_logs for scope in rl.scope_logs for r in scope.log_records
    ], resource


@pytest.mark.parametrize(("profile", "told"), [("kong", "queuing non-string entry"), ("safe", "the log queue is full")])
def test_opentelemetry_bounds_the_bytes_of_log_records_as_the_profile_does(profile, told, tmp_path):
    """To Kong's queue they are tables of no size, and each is an error; in `safe` the newest find no room."""  # Q15
    config = {"queue": {"max_coalescing_delay": 3600, "max_bytes": 2_500}, "traces_endpoint": None}
    with logging_gateway(tmp_path, config, {"many": 30}, profile=profile) as (gateway, _traces, logs):
        gateway.request()
        gateway.wait_requests(1)
        gateway.stop()
        found, _resource = records(logs)
        log = gateway.log.read_text()

    arrived = [record.body.string_value for record in found if record.body.string_value.startswith("line ")]
    every = [f"line {number}" for number in range(30)]
    assert arrived == every[: len(arrived)] != []
    assert (arrived == every) == (profile == "kong")
    assert told in log
    assert "lua entry thread aborted" not in log


def test_opentelemetry_exports_log_records_with_the_span_that_was_active(tmp_path):
    """Each line of a request, with level, trace, span and flags; others have no trace."""  # O15, O20, L5
    with logging_gateway(tmp_path, {}) as (gateway, traces, logs):
        answer = gateway.request(headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
        gateway.wait_requests(1)
        reading = gateway.stop()
        found, _resource = records(logs)
        spans = {span.name: span for span in traces.wait_spans(reading.ledger.acknowledged)}

    by_body = {record.body.string_value: record for record in found}
    late, shipped, timer = by_body["order 7 is late"], by_body["shipped"], by_body["from a timer"]
    assert answer.headers["X-Told"] == "(True, None)"
    assert (late.severity_number, late.severity_text, late.flags) == (13, "WARN", 1)
    assert late.span_id == spans["kong.access.plugin.talks"].span_id
    assert late.trace_id == spans["kong"].trace_id == bytes.fromhex("ab" * 16)
    assert attributes(late)["introspection.source"] == "test_bundled.py"
    assert attributes(late)["request.id"] == answer.headers["X-Kong-Request-Id"]
    assert attributes(shipped)["order.id"] == 7
    assert (attributes(shipped)["message.type"], attributes(shipped)["plugin.name"]) == ("order", "talks")
    assert (timer.severity_text, timer.trace_id, timer.span_id) == ("NOTICE", b"", b"")
    assert late.time_unix_nano > 1_700_000_000_000_000_000
    # It is less severe than `log_level` asks for.
    assert "too little to be logged" not in by_body
    # Log records are in no account of spans.
    assert reading.ledger.unaccounted == 0
    assert reading.ledger.enqueued == reading.ledger.acknowledged == len(spans) == reading.ledger.created


def test_opentelemetry_loses_a_record_that_cannot_be_written_and_no_other(tmp_path):
    """One line says why; those of the worker come as well."""  # L5
    with logging_gateway(tmp_path, {}, {"odd": True}) as (gateway, traces, logs):
        gateway.request()
        gateway.wait_requests(1)
        reading = gateway.stop()
        found, _resource = records(logs)
        log = gateway.log.read_text()
        traces.wait_spans(reading.ledger.acknowledged)

    assert {"order 7 is late", "shipped", "from a timer"} <= {record.body.string_value for record in found}
    assert log.count("Failed to enqueue log record to log server: a value nested too deeply, or within itself") == 1
    assert reading.ledger.enqueued == reading.ledger.acknowledged == reading.ledger.created


def test_opentelemetry_keeps_a_thousand_records_of_a_request(tmp_path):
    """The others are dropped, and one line says so."""  # O20
    with logging_gateway(tmp_path, {}, {"many": 1_500}) as (gateway, _traces, logs):
        gateway.request()
        gateway.wait_requests(1)
        gateway.stop()
        found, _resource = records(logs)
        log = gateway.log.read_text()

    assert len([record for record in found if record.trace_id]) == 1_000
    assert log.count("1000 log records are kept already") == 1


def test_opentelemetry_drops_the_newest_records_when_the_queue_is_full(tmp_path):
    """What does not fit is dropped before it is enqueued, unlike spans."""  # O20
    queue = {"max_entries": 3, "max_batch_size": 3, "max_coalescing_delay": 0.1}
    with logging_gateway(tmp_path, {"queue": queue}, {"many": 50}) as (gateway, _traces, logs):
        gateway.request()
        gateway.wait_requests(1)
        gateway.stop()
        found, _resource = records(logs)
        log = gateway.log.read_text()

    assert [r.body.string_value for r in found if r.trace_id][:2] == ["order 7 is late", "shipped"]
    assert "log records were dropped" in log


def test_opentelemetry_fills_resource_attributes_in_from_the_first_request(tmp_path):
    """Headers, query and shared context, with something to take instead; later requests change nothing."""  # O19, L6
    templates = {
        "service.name": "orders",
        "tenant": '$(headers["X-Tenant"])-$(query_params.region or "nowhere")',
        "team": "$(shared.team)",
        "missing": "$(headers.nothing)!",
    }
    with logging_gateway(tmp_path, {"resource_attributes": templates}) as (gateway, _traces, logs):
        for tenant in ("a", "b"):
            gateway.request("GET", f"/?region={tenant}", headers={"X-Tenant": tenant})
        gateway.wait_requests(2)
        gateway.stop()
        _found, resource = records(logs)

    told = attributes(resource)
    assert (told["service.name"], told["tenant"], told["team"], told["missing"]) == ("orders", "a-a", "blue", "!")
    assert len(told["service.instance.id"]) == 36


def test_opentelemetry_uses_raw_values_when_a_template_cannot_be_filled_in(tmp_path):
    """One warning says why, and the export goes on."""  # O19
    with logging_gateway(tmp_path, {"resource_attributes": {"a": "$(os.exit)"}}) as (gateway, _traces, logs):
        gateway.request()
        gateway.wait_requests(1)
        gateway.stop()
        _found, resource = records(logs)
        log = gateway.log.read_text()

    assert attributes(resource)["a"] == "$(os.exit)"
    assert log.count("failed to render resource attributes: $(os.exit) is no template") == 1


def test_opentelemetry_tells_the_client_the_trace(tmp_path):
    """The response header has the trace id in hexadecimal digits, also without instrumentations."""  # O12, O16
    with recording_collector() as traces:
        config = {
            "traces_endpoint": f"http://127.0.0.1:{traces.port}/v1/traces",
            "http_response_header_for_traceid": "X-Trace",
        }
        plugin = Plugin(name="opentelemetry", config=config)
        with served(tmp_path, plugin, tracing={"instrumentations": ("off",)}) as gateway:
            answer = gateway.request(headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
            plain = gateway.request()

    assert answer.headers["X-Trace"] == "ab" * 16
    assert re.fullmatch("[0-9a-f]{32}", plain.headers["X-Trace"])
