"""Kong's environment variables."""

import resource

import pytest

from sim.declarative import load
from sim.document import Override
from sim.errors import UserError
from sim.kong_environment import read


@pytest.fixture
def gateway(tmp_path):
    """Read an empty kong.yml with these variables, and options of the command line."""
    path = tmp_path / "kong.yml"
    path.write_text("_format_version: '3.0'\n", encoding="utf-8")

    def configured(*options, **variables):
        return load(str(path), [*read({f"KONG_{name}": text for name, text in variables.items()}).settings, *options])

    return configured


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("PROXY_LISTEN", "0.0.0.0:8000, [::1]:8001", "listen", ("0.0.0.0:8000", "[::1]:8001")),
        ("PROXY_LISTEN", "localhost:8000 reuseport backlog=16384", "listen", ("localhost:8000",)),
        ("PROXY_LISTEN", "127.0.0.1:8000,127.0.0.1:8443 ssl http2", "listen", ("127.0.0.1:8000",)),
        ("PROXY_LISTEN", ",127.0.0.1:8000,, ", "listen", ("127.0.0.1:8000",)),
        ("STATUS_LISTEN", "127.0.0.1:8100", "status_listen", ("127.0.0.1:8100",)),
        ("STATUS_LISTEN", "off", "status_listen", ()),
        ("LOG_LEVEL", "warn", "log_level", "warn"),
        ("PROXY_ERROR_LOG", "/dev/stderr", "error_log", "/dev/stderr"),
        ("PROXY_ACCESS_LOG", "off", "access_log", None),
        ("TRUSTED_IPS", "10.0.0.0/8, ::1", "trusted_ips", ("10.0.0.0/8", "::1")),
        ("TRUSTED_IPS", "10.0.0.0/8, unix:", "trusted_ips", ("10.0.0.0/8", "unix:")),
        ("REAL_IP_HEADER", "X-Forwarded-For", "real_ip_header", "X-Forwarded-For"),
        ("REAL_IP_HEADER", "CF-Connecting-IP", "real_ip_header", "CF-Connecting-IP"),
        ("REAL_IP_RECURSIVE", "on", "real_ip_recursive", True),
        ("NGINX_HTTP_KEEPALIVE_TIMEOUT", "10", "nginx.keepalive_timeout", 10.0),
        ("NGINX_HTTP_KEEPALIVE_TIMEOUT", "75s 1m", "nginx.keepalive_timeout", 75.0),
        ("NGINX_HTTP_KEEPALIVE_TIMEOUT", "0", "nginx.keepalive_timeout", 0.0),
        ("NGINX_HTTP_KEEPALIVE_REQUESTS", "7", "nginx.keepalive_requests", 7),
        ("NGINX_HTTP_KEEPALIVE_REQUESTS", "0", "nginx.keepalive_requests", 0),
        ("NGINX_WORKER_PROCESSES", "3", "workers", 3),
        ("NGINX_MAIN_WORKER_PROCESSES", "2", "workers", 2),
        ("NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT", "1m 30s", "nginx.worker_shutdown_timeout", 90),
        ("NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT", "10", "nginx.worker_shutdown_timeout", 10),
        ("NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT", "0", "nginx.worker_shutdown_timeout", 0),
        ("NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT", "1m 30", "nginx.worker_shutdown_timeout", 90),
        ("NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT", "1h2m3s4ms", "nginx.worker_shutdown_timeout", 3723.004),
        ("NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT", "1w 1d", "nginx.worker_shutdown_timeout", 8 * 86_400),
        ("NGINX_MAIN_WORKER_CPU_AFFINITY", "0001 0010", "nginx.worker_cpu_affinity", ("0001", "0010")),
        ("NGINX_EVENTS_WORKER_CONNECTIONS", "1000", "nginx.worker_connections", 1000),
        ("NGINX_HTTP_CLIENT_MAX_BODY_SIZE", "0", "nginx.client_max_body_size", 0),
        ("NGINX_HTTP_CLIENT_MAX_BODY_SIZE", "500", "nginx.client_max_body_size", 500),
        ("NGINX_HTTP_CLIENT_MAX_BODY_SIZE", "8k", "nginx.client_max_body_size", 8 * 1024),
        ("NGINX_HTTP_CLIENT_MAX_BODY_SIZE", "10M", "nginx.client_max_body_size", 10 * 1024**2),
        ("NGINX_HTTP_LUA_MAX_PENDING_TIMERS", "20", "nginx.lua_max_pending_timers", 20),
        ("LUA_MAX_PENDING_TIMERS", "20", "nginx.lua_max_pending_timers", 20),
        ("NGINX_HTTP_LUA_MAX_RUNNING_TIMERS", "10", "nginx.lua_max_running_timers", 10),
        ("LUA_MAX_RUNNING_TIMERS", "10", "nginx.lua_max_running_timers", 10),
        ("LUA_SSL_TRUSTED_CERTIFICATE", "system", "nginx.lua_ssl_trusted_certificate", ("system",)),
        ("TRACING_INSTRUMENTATIONS", "request, router", "tracing.instrumentations", ("request", "router")),
        ("OPENTELEMETRY_TRACING", "all", "tracing.instrumentations", ("all",)),
        ("TRACING_SAMPLING_RATE", "0.5", "tracing.sampling_rate", 0.5),
        ("OPENTELEMETRY_TRACING_SAMPLING_RATE", "1", "tracing.sampling_rate", 1),
    ],
)
def test_variable_sets_its_field(gateway, name, text, field, value):
    """As Kong reads it."""
    read_value = gateway(**{name: text})
    for step in field.split("."):
        read_value = getattr(read_value, step)
    assert read_value == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "LOG_LEVEL",
            "loud",
            "KONG_LOG_LEVEL: log_level: expected debug, info, notice, warn, error, crit, alert or emerg",
        ),
        ("PROXY_LISTEN", "8000", "KONG_PROXY_LISTEN: expected host:port, not '8000'; write off, or addresses such as"),
        ("PROXY_LISTEN", "127.0.0.1:8000 fast", "KONG_PROXY_LISTEN: unknown flag 'fast' in '127.0.0.1:8000 fast'"),
        ("PROXY_LISTEN", "127.0.0.1:8443 ssl", "KONG_PROXY_LISTEN: no address without TLS is left; add one"),
        ("PROXY_LISTEN", "off", "KONG_PROXY_LISTEN: listen:"),
        ("PROXY_LISTEN", ",", "KONG_PROXY_LISTEN: no address without TLS is left; add one"),
        ("REAL_IP_HEADER", "X Real", "KONG_REAL_IP_HEADER: real_ip_header: expected the name of a header"),
        ("REAL_IP_HEADER", "proxy_protocol", "KONG_REAL_IP_HEADER: real_ip_header: proxy_protocol is not read"),
        ("NGINX_WORKER_PROCESSES", "many", "KONG_NGINX_WORKER_PROCESSES: workers: expected auto or a whole number"),
        (
            "NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT",
            "1000d",
            "KONG_NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT: nginx.worker_shutdown_timeout: expected a duration of at most ",
        ),
        (
            "NGINX_EVENTS_WORKER_CONNECTIONS",
            "many",
            "KONG_NGINX_EVENTS_WORKER_CONNECTIONS: nginx.worker_connections: expected auto or a whole number",
        ),
        ("NGINX_HTTP_KEEPALIVE_TIMEOUT", "75s soon", "KONG_NGINX_HTTP_KEEPALIVE_TIMEOUT: expected a time as nginx"),
        ("NGINX_HTTP_KEEPALIVE_TIMEOUT", "75s 60s 1s", "KONG_NGINX_HTTP_KEEPALIVE_TIMEOUT: expected one time, or two"),
        ("TRACING_SAMPLING_RATE", "2", "KONG_TRACING_SAMPLING_RATE: tracing.sampling_rate: must be at most 1, not 2"),
        ("TRACING_INSTRUMENTATIONS", "requests", "KONG_TRACING_INSTRUMENTATIONS: tracing.instrumentations: invalid"),
        (
            "LUA_MAX_PENDING_TIMERS",
            "0",
            "KONG_LUA_MAX_PENDING_TIMERS: nginx.lua_max_pending_timers: must be at least 1",
        ),
    ],
)
def test_bad_value_names_the_variable(gateway, name, text, message):
    """One line: the variable, what was expected, what stands there."""
    with pytest.raises(UserError) as caught:
        gateway(**{name: text})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


NO_SIZES = ("8q", "2KiB", "2 k", "1.5m", "10MB", "500B", "k", "-1", "\u0663k", "1" * 40)
NO_TIMES = ("soon", "1.5s", "100us", "1 s", "30s 1m", "75s 60s", "10S", "1y", "1M", "1" * 40)
NGINX_SIZE = ("CLIENT_MAX_BODY_SIZE", "a size", "500, 8k or 10m")
NGINX_TIME = ("SEND_TIMEOUT", "a time", "10s, 500ms or 1m 30s")


@pytest.mark.parametrize(
    ("name", "kind", "cure", "text"),
    [*((*NGINX_SIZE, text) for text in NO_SIZES), *((*NGINX_TIME, text) for text in NO_TIMES)],
)
def test_sizes_and_times_are_written_as_in_nginx(gateway, name, kind, cure, text):
    """What nginx would refuse is refused, also what a scenario would take, and the line says how it is written."""
    with pytest.raises(UserError) as caught:
        gateway(**{f"NGINX_HTTP_{name}": text})
    told = f"KONG_NGINX_HTTP_{name}: expected {kind} as nginx writes it, not {text!r}"
    assert str(caught.value) == f"{told}; write {cure}"


@pytest.mark.parametrize(
    ("limit", "connections"), [(500, 1_024), (2_000, 2_000), (20_000, 16_384), (resource.RLIM_INFINITY, 16_384)]
)
def test_connections_are_as_many_as_files_may_be_open(gateway, monkeypatch, limit, connections):
    """Kong's `auto`, which is its default: within 1024 and 16384."""
    monkeypatch.setattr(resource, "getrlimit", lambda _resource: (limit, 1_000_000))
    assert gateway().nginx.worker_connections == connections
    assert gateway(NGINX_EVENTS_WORKER_CONNECTIONS="auto").nginx.worker_connections == connections


def test_option_of_the_command_line_goes_before_the_variable(gateway):
    """Whoever types it means it."""
    assert gateway(Override(("workers",), 4, "--workers"), NGINX_WORKER_PROCESSES="2").workers == 4


@pytest.mark.parametrize(
    ("variables", "warnings"),
    [
        ({"KONG_UPSTREAM_KEEPALIVE": "60"}, ["KONG_UPSTREAM_KEEPALIVE is not simulated: it has no effect"]),
        ({"KONG_DATABASE": "postgres"}, ["KONG_DATABASE: postgres is not simulated"]),
        ({"KONG_DATABASE": "off", "KONG_ADMIN_LISTEN": "off", "KONG_ROUTER_FLAVOR": "traditional"}, []),
        ({"KONG_LOG_LEVEL": " ", "KONG_X": ""}, []),
        ({"KONGSIM": "1", "PATH": "/bin"}, []),
        (
            {"KONG_PROXY_LISTEN": "0.0.0.0:8000 reuseport, 0.0.0.0:8443 ssl"},
            [
                (
                    "KONG_PROXY_LISTEN: reuseport of 0.0.0.0:8000 is not simulated: all workers share one socket, and"
                    " its queue is not set"
                ),
                "KONG_PROXY_LISTEN: 0.0.0.0:8443 ssl is left out: connections are plain HTTP/1.1",
            ],
        ),
        (
            {"KONG_NGINX_HTTP_KEEPALIVE_TIMEOUT": "75s 60s"},
            ["KONG_NGINX_HTTP_KEEPALIVE_TIMEOUT: clients are not told of 60s in a Keep-Alive header"],
        ),
        (
            {"KONG_PROXY_LISTEN": "0.0.0.0:8000 proxy_protocol"},
            ["KONG_PROXY_LISTEN: proxy_protocol of 0.0.0.0:8000 is not simulated: a proxy that speaks it gets 400"],
        ),
        (
            {"KONG_OPENTELEMETRY_TRACING": "off", "KONG_TRACING_INSTRUMENTATIONS": "all"},
            ["KONG_OPENTELEMETRY_TRACING has no effect: KONG_TRACING_INSTRUMENTATIONS says it"],
        ),
        (
            {"KONG_PROXY_ACCESS_LOG": "logs/access.log json"},
            ["KONG_PROXY_ACCESS_LOG: the format json is not simulated"],
        ),
    ],
)
def test_what_means_nothing_here_gets_a_line(variables, warnings):
    """One for each variable; a value that asks for what is the case anyway gets none."""
    assert list(read(variables).warnings) == warnings


def test_newer_name_of_a_setting_counts(gateway):
    """Whichever comes first in the alphabet."""
    gateway_ = gateway(OPENTELEMETRY_TRACING="off", TRACING_INSTRUMENTATIONS="all")
    assert gateway_.tracing.instrumentations == ("all",)
    assert gateway(NGINX_MAIN_WORKER_PROCESSES="2", NGINX_WORKER_PROCESSES="3").workers == 2


def test_prefix_is_the_folder_of_relative_logs(gateway):
    """As Kong's working directory."""
    logs = gateway(PREFIX="/usr/local/kong", PROXY_ERROR_LOG="logs/error.log", PROXY_ACCESS_LOG="/dev/stdout")
    assert (logs.error_log, logs.access_log) == ("/usr/local/kong/logs/error.log", "/dev/stdout")


def test_file_and_plugins_are_told():
    """Whoever reads the file asks for them."""
    told = read({"KONG_DECLARATIVE_CONFIG": "/etc/kong/kong.yml", "KONG_PLUGINS": "bundled, my-plugin"})
    assert (told.file, told.plugins, told.warnings) == ("/etc/kong/kong.yml", ("bundled", "my-plugin"), ())
    assert read({}).plugins is None
