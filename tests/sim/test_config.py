import os

import pytest
from pydantic import ValidationError

from sim.config import Gateway, Nginx, affinity, parse_address
from sim.entity import Plugin
from sim.errors import FieldError
from sim.plugins.opentelemetry import OpenTelemetryConfig


@pytest.mark.parametrize(
    ("text", "address"), [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:8000", ("::1", 8000)), ("gw:65535", ("gw", 65535))]
)
def test_address_is_split_into_host_and_port(text, address):
    """IPv6 hosts stand in brackets."""
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["8000", ":8000", "host:", "host:65536", "::1:8000", "http://h:1", "h:1\n", "*:8000", None, 8000]
)
def test_address_of_another_form_is_refused(text):
    """The message names the form."""
    with pytest.raises(FieldError, match=r"^expected host:port, not "):
        parse_address(text)


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
