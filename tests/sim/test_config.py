import os

import pytest
from pydantic import ValidationError

from sim.config import Export, Gateway, Nginx, Plugin, Route, Service, affinity, parse_address
from sim.errors import FieldError
from sim.plugins.opentelemetry import OpenTelemetryConfig


@pytest.mark.parametrize(
    ("text", "address"), [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:8000", ("::1", 8000)), ("gw:65535", ("gw", 65535))]
)
def test_address_is_split_into_host_and_port(text, address):
    """IPv6 hosts stand in brackets."""
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["8000", ":8000", "host:", "host:65536", "::1:8000", "http://h:1", "h:1\n", None, 8000]
)
def test_address_of_another_form_is_refused(text):
    """The message names the form."""
    with pytest.raises(FieldError, match=r"^expected host:port, not "):
        parse_address(text)


@pytest.mark.parametrize(
    "url",
    [
        *("collector:4318", "//a", "ftp://a/", "http://", "http:///x", "http://a b/", "http://a/x y", "http://a/\nx"),
        *("http://a\\b/", "http://a/\u00e9", "http://[::1/", 7, None),
    ],
)
def test_endpoint_that_is_no_url_is_refused(url):
    """What would be another request line, or no host, is found before anything runs."""
    with pytest.raises(ValidationError, match=r"expected a URL such as http://127\.0\.0\.1:4318/v1/traces, not "):
        Export.model_validate({"traces_endpoint": url if url is not None else []})


@pytest.mark.parametrize("who", ["user:secret@", "user@", "@"])
def test_endpoint_that_says_who_sends_is_refused(who):
    """Nobody would send it, and the collector would turn everything away; a header says it. The secret is not shown."""
    with pytest.raises(ValidationError, match="expected a URL without user and password, which") as refused:
        Export.model_validate({"traces_endpoint": f"https://{who}a:4318/v1/traces"})
    assert "secret" not in str(refused.value.errors(include_input=False))


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1"])
def test_endpoint_with_a_port_that_is_none_is_refused(port):
    """A port that is left out is that of the scheme."""
    with pytest.raises(ValidationError, match="expected a port from 1 to 65535 in "):
        Export(traces_endpoint=f"http://a:{port}/")


def test_gateway_has_the_defaults_of_kong():
    """Tracing is off, one trace in a hundred would be sampled, and a quitting worker waits for ever."""
    gateway = Gateway()

    assert gateway.tracing.instrumentations == ("off",)  # D20
    assert gateway.tracing.sampling_rate == 0.01  # V2
    assert gateway.nginx.worker_shutdown_timeout == 0  # W12
    assert (gateway.nginx.lua_max_pending_timers, gateway.nginx.lua_max_running_timers) == (16_384, 4_096)  # N4


def test_workers_auto_is_one_for_each_usable_cpu():
    """As nginx counts processors."""  # W16
    assert Gateway.model_validate({"workers": "auto"}).workers == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("workers", [0, -1, 1025, 1.5, True, "two", None])
def test_workers_out_of_range_are_refused(workers):
    """From one worker to the most that a master keeps."""  # W17
    with pytest.raises(ValidationError, match="expected auto or a whole number from 1 to 1024"):
        Gateway.model_validate({"workers": workers})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["requests"], "invalid tracing type: requests"),
        (["off", "router"], "other types are mutually exclusive"),
        ([], "at least one entry"),
    ],
)
def test_instrumentations_are_checked_as_kong_checks_them(words, message):
    """Unknown words and `off` beside others are start-up errors."""  # I1
    with pytest.raises(ValidationError, match=message):
        Gateway.model_validate({"tracing": {"instrumentations": words}})


def test_service_url_stands_for_its_parts():
    """`url` is shorthand for host, port and path."""
    service = Service.model_validate({"name": "orders", "url": "http://default:9000/api"})

    assert (service.host, service.port, service.path) == ("default", 9000, "/api")
    assert Service.model_validate({"name": "orders", "url": "http://default"}).port == 80


def test_service_has_the_defaults_of_kong():
    """A minute for each step, and five retries."""
    service = Service(name="orders", host="default")

    assert (service.connect_timeout, service.write_timeout, service.read_timeout) == (60_000, 60_000, 60_000)
    assert (service.retries, service.port, service.path) == (5, 80, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "http://a", "host": "b"},
        {"url": "http://a:99999"},
        {"url": "a"},
        {"host": "a b"},
        {"host": "a", "connect_timeout": 0},
        {"host": "a", "retries": 40_000},
        {"host": "a", "protocol": "grpc"},
        {},
    ],
)
def test_service_out_of_range_is_refused(fields):
    """Kong's ranges hold."""
    with pytest.raises(ValidationError):
        Service.model_validate({"name": "orders"} | fields)


def test_route_needs_something_to_match():
    """A route without paths, hosts and methods is an error, as in Kong."""
    assert Route(name="all", service="orders", paths=("/",)).strip_path
    with pytest.raises(ValidationError, match="matches nothing"):
        Route(name="all", service="orders")


def test_ids_are_the_same_in_every_run_and_differ_by_scope():
    """A queue is named after its plugin's id, so it must not change between runs."""  # O18
    of_all = Plugin(name="opentelemetry")

    assert of_all.id == Plugin(name="opentelemetry").id
    assert of_all.id != Plugin(name="opentelemetry", service="orders").id


def test_opentelemetry_has_the_defaults_of_kong():
    """Batches of 200, w3c when nothing is to be preserved."""  # O4, O6, O8, O10
    config = OpenTelemetryConfig(traces_endpoint="http://127.0.0.1:4318/v1/traces")

    assert (config.connect_timeout, config.send_timeout, config.read_timeout) == (1_000, 5_000, 5_000)
    assert (config.queue.max_batch_size, config.queue.max_coalescing_delay) == (200, 1.0)
    assert (config.queue.max_entries, config.queue.max_bytes, config.queue.concurrency_limit) == (10_000, None, 1)
    assert (config.queue.initial_retry_delay, config.queue.max_retry_delay) == (0.01, 60.0)
    assert (config.queue.max_retry_time, config.sampling_rate) == (60.0, None)
    assert (config.header_type, config.propagation.default_format) == ("preserve", "w3c")


def test_opentelemetry_reads_deprecated_fields_into_their_successors():
    """Values other than the old defaults are honoured."""  # O1, O5, Q27
    config = OpenTelemetryConfig.model_validate(
        {"endpoint": "http://c:4318/v1/traces", "batch_span_count": 50, "batch_flush_delay": 3}
    )

    assert config.traces_endpoint == "http://c:4318/v1/traces"
    assert (config.queue.max_batch_size, config.queue.max_coalescing_delay) == (50, 1.0)


@pytest.mark.parametrize(
    "config",
    [
        {"queue": {"max_batch_size": 0}},  # Q1
        {"queue": {"max_batch_size": 1_000_001}},
        {"queue": {"max_coalescing_delay": 3_601}},  # Q2
        {"queue": {"max_entries": 0}},  # Q3
        {"queue": {"max_retry_time": float("inf")}},  # Q5
        {"queue": {"initial_retry_delay": 0}},  # Q6
        {"queue": {"concurrency_limit": 2}},  # Q8
        {"resource_attributes": {"a": ""}},  # O3
        {"read_timeout": -1},  # O6
        {"header_type": "zipkin"},  # O8
        {"sampling_rate": 1.1},  # O9
        {"propagation": {"extract": ["w3c"]}},  # X28
        {"propagation": {"default_format": "w3c", "extract": ["b3-single"]}},  # X28
        {"logs_endpoint": "c:4318"},
        {"batch_span_count": "many"},
    ],
)
def test_opentelemetry_out_of_range_is_refused(config):
    """Kong's ranges hold."""
    with pytest.raises(ValidationError):
        OpenTelemetryConfig.model_validate(config)


def test_exporting_to_fills_in_missing_endpoints_only():
    """A plugin that names its own collector keeps it."""
    own = Plugin(name="opentelemetry", service="orders", config={"traces_endpoint": "http://own/v1/traces"})
    gateway = Gateway(plugins=(Plugin(name="opentelemetry"), own)).exporting_to("http://built-in/v1/traces")

    assert [plugin.config["traces_endpoint"] for plugin in gateway.plugins] == [
        "http://built-in/v1/traces",
        "http://own/v1/traces",
    ]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("127.0.0.1:0", ("127.0.0.1:0",)),
        ("0.0.0.0:8000, [::]:8000", ("0.0.0.0:8000", "[::]:8000")),
        (["a:1", "b:2"], ("a:1", "b:2")),
    ],
)
def test_listen_takes_one_address_or_several(written, read):
    """A text is divided by commas, as Kong's `proxy_listen` is."""
    assert Gateway(listen=written).listen == read


@pytest.mark.parametrize(
    ("written", "message"),
    [("a:1,a:1", "a:1 stands twice"), (8000, "expected host:port, not 8000"), ("a:1,", "expected host:port")],
)
def test_listen_of_another_form_is_refused(written, message):
    """The message names the address."""
    with pytest.raises(ValidationError, match=message):
        Gateway(listen=written)


def test_status_api_can_be_off_and_proxying_cannot():
    """`off` is no address."""
    assert Gateway(status_listen="off").status_listen == ()
    with pytest.raises(ValidationError):
        Gateway(listen="off")


@pytest.mark.parametrize(
    ("masks", "cpus"),
    [
        ("", [set()] * 4),
        ("01 10", [{0}, {1}, {1}, {1}]),
        ("0101 1010", [{0, 2}, {1, 3}, {1, 3}, {1, 3}]),
        ("auto", [{2}, {5}, {7}, {2}]),
        ("auto 0110", [{1}, {2}, {1}, {2}]),
    ],
)
def test_each_worker_has_the_cpus_of_its_mask(masks, cpus):
    """The last digit is CPU 0; the last mask serves the workers that are left; `auto` gives each one CPU in turn."""
    read = Nginx(worker_cpu_affinity=masks).worker_cpu_affinity

    assert [affinity(read, slot, {7, 5, 2}) for slot in range(4)] == cpus


@pytest.mark.parametrize("masks", ["012", "0000", "01 x", "auto 2", "auto 01 10", "1" * 1025, 101])
def test_masks_of_another_form_are_refused(masks):
    """One line says what a mask is."""
    with pytest.raises(ValidationError, match=r"mask"):
        Nginx(worker_cpu_affinity=masks)
