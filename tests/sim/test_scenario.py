import re
import shutil
from pathlib import Path

import pytest
import trustme

from sim.config import Nginx, Tracing
from sim.document import Override, parse_override
from sim.entity import Plugin, Route, Service
from sim.errors import UserError
from sim.faults import KINDS, Fault
from sim.pdk import QueueConfig
from sim.plugins.opentelemetry import OpenTelemetryConfig
from sim.scenario import (
    Collector,
    Latency,
    Upstream,
    _File,
    _Gateway,
    load,
)
from sim.threshold import METRICS
from sim.workload import (
    ConstantArrivalRate,
    ConstantVirtualUsers,
    RampingArrivalRate,
    RampingVirtualUsers,
    Request,
    Stage,
    UserStage,
    mean_rate_per_s,
    peak_rate_per_s,
)

SCENARIOS = Path(__file__).parents[2] / "scenarios"
DOCS = Path(__file__).parents[2] / "docs" / "scenarios.md"

FULL = """\
name: full # line 1
profile: safe
seed: 7
gateway:
  workers: 2
  tracing:
    instrumentations: [request, balancer]
    sampling_rate: 1.0
  nginx: {worker_shutdown_timeout: 10s}
  config:
    services:
      - {name: a, url: http://default, routes: [{paths: [/]}]}
    plugins:
      - name: opentelemetry
upstreams:
  default:
    latency: {p50: 2ms, p99: 20ms}
    status: {200: 0.99, 503: 0.01}
    body: 2KiB
collector: {latency: 5ms}
load:
  - executor: constant-arrival-rate
    rate: 300/s
    duration: 10s
    arrival: poisson
    request: {method: POST, path: /orders, headers: {Host: api.example.com}}
faults:
  - {at: 5s, target: worker, slot: 1, kind: kill}
thresholds:
  - ledger.unaccounted == 0
  - latency.p99 < 200ms
"""

MINIMAL = """\
name: minimal
gateway:
  config:
    services: [{name: a, host: default, routes: [{paths: [/]}]}]
upstreams:
  default: {}
load:
  - {executor: constant-arrival-rate, rate: 5/s, duration: 1s}
"""


@pytest.fixture
def scenario(tmp_path):
    """Load a scenario of the given text."""

    def read(text, *overrides):
        path = tmp_path / "a.yaml"
        path.write_text(text, encoding="utf-8")
        return load(str(path), overrides)

    return read


@pytest.fixture
def changed(scenario):
    """Load the full scenario with one piece of its text replaced."""

    def read(old, new):
        assert FULL.count(old) == 1
        return scenario(FULL.replace(old, new))

    return read


def test_a_scenario_is_read_into_plain_numbers(scenario):
    """Seconds, requests per second and bytes, whatever the file's units."""
    full = scenario(FULL)

    assert (full.name, full.profile, full.seed) == ("full", "safe", 7)
    assert (full.gateway.workers, full.gateway.profile, full.gateway.seed) == (2, "safe", 7)
    assert full.gateway.tracing.instrumentations == ("request", "balancer")
    assert full.gateway.nginx.worker_shutdown_timeout == 10.0
    assert [plugin.name for plugin in full.gateway.plugins] == ["opentelemetry"]
    assert (full.upstreams["default"].latency.p50, full.upstreams["default"].latency.p99) == (0.002, 0.02)
    assert full.upstreams["default"].body == 2048
    assert full.collector.latency == 0.005
    assert (full.load[0].rate, full.load[0].duration, full.load[0].arrival) == (300.0, 10.0, "poisson")
    assert (full.load[0].request.method, full.load[0].request.headers) == ("POST", {"Host": "api.example.com"})
    assert [(fault.at, fault.slot, fault.kind) for fault in full.faults] == [(5.0, 1, "kill")]
    assert [threshold.metric for threshold in full.thresholds] == ["ledger.unaccounted", "latency.p99"]
    assert full.duration_s == 10.0


def test_the_least_scenario_has_defaults(scenario):
    """Traced throughout at Kong's sampling rate, no faults, no thresholds, an even load."""
    least = scenario(MINIMAL)

    assert least.gateway.tracing.instrumentations == ("all",)
    assert least.gateway.tracing.sampling_rate == 0.01
    assert least.upstreams["default"].status == {200: 1.0}
    assert (least.load[0].arrival, least.load[0].request.method, least.load[0].request.path) == ("uniform", "GET", "/")
    assert (least.faults, least.thresholds, least.collector.latency) == ((), (), 0.0)


def test_a_seed_is_drawn_and_written_down(scenario):
    """A run without a seed can be repeated from what it leaves behind."""
    drawn = scenario(MINIMAL)

    assert scenario(drawn.as_run).seed == drawn.seed
    assert drawn.gateway.seed == drawn.seed


def test_as_run_is_the_same_scenario(scenario):
    """Overrides are part of it, and so are the comments."""
    ran = scenario(FULL, parse_override("load[0].rate=800/s"), Override(("seed",), 9, "--seed"))

    again = scenario(ran.as_run)

    assert again == ran
    assert (again.load[0].rate, again.seed) == (800.0, 9)
    assert "# line 1" in ran.as_run


def test_the_gateway_may_be_a_file_beside_the_scenario(scenario, tmp_path):
    """Its content takes the place of its name in what is run, so that the run's folder needs no other file."""
    (tmp_path / "kong.yml").write_text(
        "_format_version: '3.0'\nservices: [{name: a, host: default, routes: [{paths: [/]}]}]\n", encoding="utf-8"
    )
    by_name = scenario(MINIMAL, parse_override("gateway.config=kong.yml"))
    (tmp_path / "kong.yml").unlink()

    assert by_name.gateway.services == scenario(MINIMAL).gateway.services
    assert scenario(by_name.as_run).gateway == by_name.gateway


def test_a_mistake_in_the_gateway_file_names_that_file(scenario, tmp_path):
    """Not the scenario that refers to it."""
    (tmp_path / "kong.yml").write_text("services:\n  - name: a\n", encoding="utf-8")

    with pytest.raises(UserError, match=r"/kong\.yml:2: services\[0\]\.host: missing"):
        scenario(MINIMAL, parse_override("gateway.config=kong.yml"))


MISTAKES = [
    (
        "workers: 2",
        "workers: 0",
        "5: gateway.workers",
        "expected auto or a whole number from 1 to 1024, not 0; write 2",
    ),
    ("workers: 2", "worker: 2", "5: gateway.worker", "unknown field; did you mean workers?"),
    (
        "rate: 300/s",
        "rate: 300",
        "23: load[0].rate",
        "expected a rate such as 500/s, not 300; add the unit, one of /s, /min or /h",
    ),
    ("rate: 300/s", "rate: 0/s", "23: load[0].rate", "must be more than 0, not '0/s'"),
    (
        "duration: 10s",
        "duration: 10",
        "24: load[0].duration",
        "expected a duration such as 30s or 2ms, not 10; add the unit, one of ms, s, m or h",
    ),
    ("duration: 10s", "durations: 10s", "24: load[0].durations", "unknown field; did you mean duration?"),
    (
        "duration: 10s",
        "stages: []",
        "24: load[0].stages",
        "unknown field; known here: startTime, request, arrival, executor, rate, duration",
    ),
    ("    duration: 10s\n", "", "22: load[0].duration", "missing; add duration"),
    (
        "arrival: poisson",
        "arrival: poison",
        "25: load[0].arrival",
        "expected uniform or poisson, not 'poison'; did you mean poisson?",
    ),
    (
        "constant-arrival-rate",
        "shared-iterations",
        "22: load[0].executor",
        "shared-iterations is not built yet: it ends after so many requests; write constant-vus",
    ),
    (
        "constant-arrival-rate",
        "constant",
        "22: load[0].executor",
        (
            "expected constant-arrival-rate, ramping-arrival-rate, constant-vus or ramping-vus, not 'constant'; "
            "did you mean constant-vus?"
        ),
    ),
    (
        "constant-arrival-rate",
        "constant-arival-rate",
        "22: load[0].executor",
        (
            "expected constant-arrival-rate, ramping-arrival-rate, constant-vus or ramping-vus, "
            "not 'constant-arival-rate'; did you mean constant-arrival-rate?"
        ),
    ),
    ("executor: constant-arrival-rate", "vus: 5", "22: load[0].executor", "missing; add executor"),
    ("duration: 10s", "duration: 0.1ns", "24: load[0].duration", "must be at least 1e-09, not '0.1ns'"),
    (
        "constant-arrival-rate",
        "constant-vus",
        "23: load[0].rate",
        "unknown field; known here: startTime, request, executor, vus, duration",
    ),
    ("path: /orders", "path: orders", "26: load[0].request.path", "expected a path that begins with /, not 'orders'"),
    (
        "Host: api.example.com",
        "Content-Length: '5'",
        "26: load[0].request.headers.Content-Length",
        "the body is sent with its length anyway; leave it out",
    ),
    ("Host: api", "Ho st: api", "26: load[0].request.headers.Ho st", "expected the name of a header, not 'Ho st'"),
    ("profile: safe", "profile: sage", "2: profile", "expected kong or safe, not 'sage'; did you mean safe?"),
    ("seed: 7", "seed: seven", "3: seed", "expected a whole number, not 'seven'"),
    ("name: full", "name: 7", "1: name", "expected text, not 7; put it in quotes"),
    ("name: full", "name: a/b", "1: name", "expected a name of up to 64 letters, digits, dots and dashes, not 'a/b'"),
    (
        "http://default",
        "http://defult",
        "12: gateway.config.services[0].url",
        "there is no upstream defult; did you mean default?",
    ),
    (
        "{p50: 2ms, p99: 20ms}",
        "{p50: 2s, p99: 2ms}",
        "17: upstreams.default.latency.p99",
        "is less than p50; write at least the value of p50",
    ),
    (
        "{p50: 2ms, p99: 20ms}",
        "{p50: 0s, p99: 2ms}",
        "17: upstreams.default.latency.p50",
        "is 0 where p99 is not; write more than 0",
    ),
    ("{p50: 2ms, p99: 20ms}", "2ms", "17: upstreams.default.latency", "expected a mapping of fields, not '2ms'"),
    (
        "503: 0.01",
        "503: 0.02",
        "18: upstreams.default.status",
        "the shares add up to 1.01, expected 1; write {200: 0.99, 503: 0.01}",
    ),
    ("503: 0.01", "OK: 0.01", "18: upstreams.default.status.OK", "expected a whole number, not 'OK'"),
    (
        "  default:\n",
        "  load:\n",
        "16: upstreams.load",
        "load is the name of another process of a run; give the upstream another name",
    ),
    (
        "{latency: 5ms}",
        "{latency: 5}",
        "20: collector.latency",
        "expected a duration such as 30s or 2ms, not 5; add the unit, one of ms, s, m or h",
    ),
    (
        "target: worker",
        "target: collector",
        "28: faults[0].kind",
        (
            "expected one of refuse, down, hang, slow, status, reset, truncate, partial_success for target collector, "
            "not 'kill'; kill is for target worker"
        ),
    ),
    (
        "target: worker",
        "target: wroker",
        "28: faults[0].target",
        "expected collector, upstream, worker, master or load, not 'wroker'; did you mean worker?",
    ),
    (
        "kind: kill",
        "kind: kil",
        "28: faults[0].kind",
        "expected one of kill, stop, memory for target worker, not 'kil'; did you mean kill?",
    ),
    (
        "kind: kill",
        "kind: refuse",
        "28: faults[0].kind",
        (
            "expected one of kill, stop, memory for target worker, not 'refuse'; "
            "refuse is for target collector or upstream"
        ),
    ),
    (
        "kind: kill",
        "kind: kill, for: 3s",
        "28: faults[0].for",
        "does not belong to worker kill; leave it out; it takes at, every, slot",
    ),
    (
        "kind: kill",
        "kind: kill, every: 100us",
        "28: faults[0].every",
        "makes it come 50000 times, expected 10000 at most; write 1ms or more",
    ),
    (
        "kind: kill",
        "kind: memory, limit: 1GiB, every: 3s",
        "28: faults[0].every",
        "repeats what has no end; add for: 10s, how long it lasts",
    ),
    (
        "kind: kill",
        "kind: stop, for: 3s, every: 3s",
        "28: faults[0].every",
        "is no longer than the fault itself; write more than `for`",
    ),
    ("kind: kill", "kind: stop", "28: faults[0].for", "missing; add for: 10s, how long it lasts"),
    ("kind: kill", "kind: stop, for: 0s", "28: faults[0].for", "must be more than 0, not '0s'"),
    (
        "worker, slot: 1, kind: kill",
        "collector, kind: status, status: 429, retry_after: 100ms",
        "28: faults[0].retry_after",
        "expected whole seconds (RFC 9110 10.2.3); write 1s",
    ),
    (
        "worker, slot: 1, kind: kill",
        "upstream, upstream: defult, kind: hang",
        "28: faults[0].upstream",
        "there is no upstream defult; did you mean default?",
    ),
    (
        "slot: 1",
        "slot: 2",
        "28: faults[0].slot",
        "there is no worker in slot 2, gateway.workers is 2; slots are 0 to 1",
    ),
    ("at: 5s", "at: 10s", "28: faults[0].at", "comes when the load is over, after 10s; let it come earlier"),
    (
        "ledger.unaccounted == 0",
        "ledger.unacounted == 0",
        "30: thresholds[0]",
        "there is no metric ledger.unacounted; did you mean ledger.unaccounted?",
    ),
    ("< 200ms", "< 200", "31: thresholds[1]", "expected a duration such as 30s or 2ms, not '200'; write 200ms"),
    ("collector:", "colector:", "20: colector", "unknown field; did you mean collector?"),
    (
        "balancer]",
        "balance]",
        "7: gateway.tracing.instrumentations",
        "invalid tracing type: balance; did you mean balancer?",
    ),
    ("rate: 1.0", "rate: 1.5", "8: gateway.tracing.sampling_rate", "must be at most 1, not 1.5"),
]


@pytest.mark.parametrize(("old", "new", "place", "message"), MISTAKES)
def test_a_mistake_is_one_line_with_file_line_field_and_cure(changed, old, new, place, message):
    """Every word of the vocabulary, misspelt, mistyped, out of range or not built yet."""
    with pytest.raises(UserError) as caught:
        changed(old, new)

    assert str(caught.value).split("/a.yaml:")[1] == f"{place}: {message}"
    assert "\n" not in str(caught.value)


SEVERAL_LOADS = """\
  - {executor: constant-arrival-rate, rate: 20/s, duration: 2s, startTime: 3s}
  - executor: ramping-arrival-rate
    startRate: 10/s
    startTime: 500ms
    stages: [{target: 50/s, duration: 2s}, {target: 0/s, duration: 1s}]
    request: {method: POST, path: /orders, body: '{"wanted": 2}'}
"""


def test_loads_go_on_side_by_side(scenario):
    """Each from its startTime on, k6's word; the whole lasts until the last is over."""
    several = scenario(MINIMAL + SEVERAL_LOADS)

    assert several.duration_s == 5.0
    assert mean_rate_per_s(several.load) == (5 + 40 + 60 + 25) / 5
    assert several.load[2].request.body == '{"wanted": 2}'


ONE_AFTER_THE_OTHER = """\
  - executor: ramping-arrival-rate
    startRate: 7/s
    stages: [{target: 7/s, duration: 100ms}, {target: 7/s, duration: 200ms}]
  - {executor: constant-arrival-rate, rate: 6/s, duration: 200ms, startTime: 300ms}
"""  # beside 5/s of the first load; in floats 0.1 + 0.2 are more than 0.3


@pytest.mark.parametrize(
    ("loads", "peak_per_s"),
    [
        ("", 5),
        (SEVERAL_LOADS, 50),
        ("  - {executor: constant-arrival-rate, rate: 20/s, duration: 1s, startTime: 1s}\n", 20),
        ("  - {executor: constant-arrival-rate, rate: 20/s, duration: 1s, startTime: 999ms}\n", 25),
        ("  - {executor: ramping-arrival-rate, stages: [{target: 20/s, duration: 2s}]}\n", 20),
        ("  - {executor: ramping-arrival-rate, startRate: 20/s, stages: [{target: 0/s, duration: 2s}]}\n", 25),
        ("  - {executor: ramping-arrival-rate, stages: [{target: 10/s, duration: 2s}]}\n", 10),
        ("  - {executor: ramping-arrival-rate, stages: [{target: 8/s, duration: 2s}]}\n", 9),
        (ONE_AFTER_THE_OTHER, 12),
    ],
)
def test_peak_rate_is_that_of_all_loads_together(scenario, loads, peak_per_s):
    """Where they are most at one time, which need not be where any of them is."""
    assert peak_rate_per_s(scenario(MINIMAL + loads).load) == peak_per_s


USERS = """\
  - {executor: constant-vus, vus: 8, duration: 2s}
  - executor: ramping-vus
    startTime: 1s
    stages: [{target: 20, duration: 3s}, {target: 0, duration: 1s}]
"""


def test_virtual_users_are_read(scenario):
    """A closed load has no rate, and so has a run with one: nobody knows it before."""
    with_users = scenario(MINIMAL + USERS)

    assert with_users.load[1].course == ((2.0, 8, 8),)
    assert with_users.load[2].course == ((3.0, 1, 20), (1.0, 20, 0))
    assert with_users.duration_s == 5.0
    assert (mean_rate_per_s(with_users.load), peak_rate_per_s(with_users.load)) == (None, 5)
    assert peak_rate_per_s(scenario(MINIMAL.replace("arrival-rate, rate: 5/s", "vus")).load) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "constant-vus",
            "constant-vu",
            (
                "9: load[1].executor: expected constant-arrival-rate, ramping-arrival-rate, constant-vus or "
                "ramping-vus, not 'constant-vu'; did you mean constant-vus?"
            ),
        ),
        ("vus: 8", "vus: 0", "9: load[1].vus: must be at least 1, not 0"),
        ("vus: 8", "vus: 1001", "9: load[1].vus: must be at most 1000, not 1001"),
        ("vus: 8", "vus: 8/s", "9: load[1].vus: expected a whole number, not '8/s'"),
        ("target: 20", "target: 20/s", "12: load[2].stages[0].target: expected a whole number, not '20/s'"),
        (
            "startTime: 1s\n    stages: [{target: 20, ",
            "startVUs: 0\n    stages: [{target: 0, ",
            "12: load[2].stages: there is never a user; write a target of more than 0",
        ),
        (
            "vus: 8",
            "gracefulStop: 1s",
            (
                "9: load[1].gracefulStop: gracefulStop is not built yet: it bounds how long answers are waited for; "
                "leave it out"
            ),
        ),
    ],
)
def test_a_mistake_in_virtual_users_is_told_with_its_place(scenario, old, new, message):
    """As everywhere."""
    assert old in USERS
    with pytest.raises(UserError) as told:
        scenario(MINIMAL + USERS.replace(old, new))

    assert str(told.value).split("/a.yaml:")[1] == message


@pytest.mark.parametrize("fault", ["kind: pause, for: 1s", "kind: burst, for: 1s, rate: 5/s"])
def test_virtual_users_have_no_schedule_that_a_fault_could_change(scenario, fault):
    """They send when an answer has come."""
    with pytest.raises(UserError, match=r":13: faults\[0\]\.target: virtual users do not arrive; write a load of"):
        scenario(MINIMAL + USERS + f"faults: [{{at: 1s, target: load, {fault}}}]")


@pytest.mark.parametrize(("loads", "cure"), [(SEVERAL_LOADS, "loads are 0 to 2"), ("", "the only one is load[0]")])
def test_a_threshold_names_a_load_that_is_there(scenario, loads, cure):
    """By its place in the list, from 0."""
    thresholds = "thresholds:\n  - load[0].completed > 0\n  - load[0].failed / load[3].offered < 1%\n"
    with pytest.raises(UserError) as told:
        scenario(MINIMAL + loads + thresholds)

    assert str(told.value).endswith(f": thresholds[1]: there is no load 3; {cure}")


def test_a_fault_may_come_until_the_last_load_is_over(scenario):
    """And no later."""
    faults = "faults: [{at: 4999ms, target: master, kind: reload}]"
    assert scenario(MINIMAL + SEVERAL_LOADS + faults).faults
    with pytest.raises(UserError, match=r"faults\[0\]\.at: comes when the load is over, after 5s"):
        scenario(MINIMAL + SEVERAL_LOADS + faults.replace("4999ms", "5s"))


@pytest.mark.parametrize("config", ["", "[]", "5"])
def test_gateway_config_is_a_mapping_or_a_file(scenario, config):
    """Nothing else."""
    with pytest.raises(UserError, match=r"gateway\.config: expected services, routes and plugins, or the path of"):
        scenario(MINIMAL, parse_override(f"gateway.config={config}"))


def test_a_missing_gateway_file_is_named_where_it_is_asked_for(scenario):
    """The path is relative to the scenario, and names nearby are offered."""
    with pytest.raises(UserError, match=r"gateway\.config: /.*/kong\.yml: no such file; in /.* there is a\.yaml"):
        scenario(MINIMAL, parse_override("gateway.config=kong.yml"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothere.py", r"/.*/nothere\.py: cannot be read: No such file or directory; did you mean there\.py\?"),
        ("no.such.module", r"no\.such\.module: there is no module no; give a file, or set PYTHONPATH to where it is"),
        ("'a b'", r"expected a file such as greeter\.py, or a module such as mine\.greeter, not 'a b'"),
        ("there.py", r"/.*/there\.py: holds no plugin: a class with PRIORITY and VERSION; write PRIORITY = 1000, "),
    ],
)
def test_a_plugin_that_is_not_there_is_named_where_it_is_asked_for(scenario, tmp_path, path, message):
    """In the line of the list, or as the option that lays it over the file."""
    good = "class Good:\n    PRIORITY = 1\n    VERSION = '1'\n\n    def log(self, kong, conf):\n        pass\n"
    (tmp_path / "good.py").write_text(good, encoding="utf-8")
    (tmp_path / "there.py").touch()

    text = MINIMAL.replace("gateway:\n", f"gateway:\n  plugin_paths:\n    - good.py\n    - {path}\n")
    with pytest.raises(UserError, match=rf"a\.yaml:5: gateway\.plugin_paths\[1\]: {message}"):
        scenario(text)
    option = f"gateway.plugin_paths=[{path}]"
    with pytest.raises(UserError, match=rf"^--set {re.escape(option)}: gateway\.plugin_paths\[0\]: {message}"):
        scenario(MINIMAL, parse_override(option))


def test_the_first_mistake_of_the_file_is_named(scenario):
    """In the order of the lines."""
    with pytest.raises(UserError, match=r"a\.yaml:1: name: expected text"):
        scenario(MINIMAL.replace("minimal", "[]").replace("5/s", "5"))


def test_an_error_of_the_start_is_placed_in_the_file(scenario):
    """A busy port is known by its number only to whoever binds it."""
    loaded = scenario(MINIMAL.replace("gateway:\n", "gateway:\n  listen: 127.0.0.1:1\n"))

    placed = loaded.placed(UserError("cannot listen on 127.0.0.1:1", field="listen", cure="choose another"))

    assert str(placed).endswith("/a.yaml:3: gateway.listen: cannot listen on 127.0.0.1:1; choose another")
    other = UserError("no worker can start")
    assert loaded.placed(other) is other


def test_every_scenario_of_the_repository_loads(tmp_path):
    """What is shown to users works, from any folder."""
    copy = shutil.copytree(SCENARIOS, tmp_path / "copy")
    for path in copy.glob("*.yaml"):
        assert load(str(path)).name == path.stem


def test_the_documented_scenario_loads(scenario, tmp_path):
    """The example of the documentation is a scenario, but for the file that it names."""
    example = DOCS.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    (tmp_path / "kong.yml").write_text(
        "services: [{name: a, host: default, routes: [{paths: [/]}]}]\n", encoding="utf-8"
    )

    assert scenario(example).name == "checkout"


def test_an_upstream_is_reached_under_the_hosts_of_a_real_kong_yml(tmp_path):
    """Services and targets of the file lead to built-in origins, each host to one."""
    text = (
        "name: a\ngateway:\n  config:\n    upstreams: [{name: pool, targets: [{target: 'orders:80'}]}]\n"
        "    services: [{name: s, host: pool, routes: [{paths: [/]}]}, {name: t, host: catalog.internal}]\n"
        "upstreams: {one: {hosts: [orders, catalog.internal]}, two: {hosts: [HOST]}}\n"
        "load: [{executor: constant-arrival-rate, rate: 1/s, duration: 1s}]\n"
    )
    path = tmp_path / "a.yaml"
    path.write_text(text.replace("HOST", "more.internal"), encoding="utf-8")
    assert load(str(path)).upstreams["one"].hosts == ("orders", "catalog.internal")

    path.write_text(text.replace("HOST", "orders"), encoding="utf-8")
    with pytest.raises(UserError, match=r"a.yaml:6: upstreams.two.hosts\[0\]: orders leads elsewhere already"):
        load(str(path))


def test_a_fault_comes_before_the_end_of_the_load_whatever_the_sum_of_its_stages(scenario):
    """0.1 and 0.2 are not 0.3 to a computer."""
    stages = "[{target: 5/s, duration: 100ms}, {target: 5/s, duration: 200ms}]"
    text = re.sub(r"- .*", f"- {{executor: ramping-arrival-rate, stages: {stages}}}", MINIMAL)
    for at, every in (("300ms", ""), ("300ms", ", every: 1s")):
        with pytest.raises(UserError, match="comes when the load is over, after 300ms"):
            scenario(f"{text}faults:\n  - {{at: {at}{every}, target: master, kind: reload}}\n")


@pytest.mark.parametrize(
    ("upstreams", "error"),
    [
        ("{one: {hosts: [a.test]}, two: {hosts: [A.test]}}", "upstreams.two.hosts[0]: A.test leads elsewhere already"),
        ("{one: {}, two: {hosts: [One]}}", "upstreams.two.hosts[0]: One leads elsewhere already"),
        ("{one: {}, One: {}}", "upstreams.One: One leads elsewhere already"),
        ("{Collector: {}}", "upstreams.Collector: Collector is the name of another process"),
    ],
)
def test_names_that_differ_in_case_lead_to_one_server(scenario, upstreams, error):
    """As host names they are the same."""  # RFC 4343
    with pytest.raises(UserError, match=re.escape(error)):
        scenario(MINIMAL.replace("host: default", "host: 127.0.0.1").replace("\n  default: {}", f" {upstreams}"))


def test_an_upstream_is_reached_under_its_name_without_regard_to_case(scenario):
    """A service's host is a host name, unless it is the name of an upstream of the kong.yml."""
    assert scenario(MINIMAL.replace("host: default", "host: Default")).gateway.services[0].host == "Default"


def test_a_fault_of_upstreams_hits_one_of_the_scenario(scenario):
    """Where all that it has stands elsewhere, there is nothing that a fault could be carried out by."""
    text = MINIMAL.replace("host: default", "host: 127.0.0.1").replace("upstreams:\n  default: {}\n", "")
    with pytest.raises(UserError) as caught:
        scenario(f"{text}faults:\n  - {{at: 1ms, target: upstream, kind: refuse}}\n")

    told = str(caught.value)
    assert ":8: faults[0].target: there is no built-in upstream; add upstreams: {default: {}}" in told


def test_a_fault_with_every_comes_until_the_load_is_over(scenario):
    """Each time as a fault of its own, at its own time."""
    loaded = scenario(FULL.replace("kind: kill", "kind: stop, for: 500ms, every: 2s"))

    assert [(fault.at, fault.lasts, fault.kind) for fault in loaded.faults] == [
        (5.0, 0.5, "stop"),
        (7.0, 0.5, "stop"),
        (9.0, 0.5, "stop"),
    ]
    assert [fault.told()["every_s"] for fault in loaded.faults] == [2.0] * 3
    assert len(scenario(loaded.as_run).faults) == 3


def test_every_word_of_the_vocabulary_is_documented():
    """Fields, words that are not built yet, and metrics."""
    words = set(re.findall(r"[\w-]+", DOCS.read_text(encoding="utf-8")))

    for model in (
        *(_File, _Gateway, Tracing, Nginx, Upstream, Latency, Collector, Request),
        *(ConstantArrivalRate, RampingArrivalRate, Stage, Fault),
        *(ConstantVirtualUsers, RampingVirtualUsers, UserStage),
    ):
        assert {info.alias or name for name, info in model.model_fields.items()} <= words
        assert {word for meanings in model.words_not_built.values() for word in meanings} <= words
    assert {kind for kinds in KINDS.values() for kind in kinds} <= words
    for model in (Service, Route, Plugin, OpenTelemetryConfig, QueueConfig):
        assert set(model.model_fields) <= words
    assert {name for metric in METRICS for name in metric.split(".")} <= words


def test_authorities_of_a_scenario_stand_beside_it(scenario, tmp_path, monkeypatch):
    """Wherever it is run from, and also the copy of it that lies in the folder of a run."""
    authority = trustme.CA().cert_pem
    authority.write_to_path(tmp_path / "ca.pem")
    beside = FULL.replace("10s}\n  config", "10s, lua_ssl_trusted_certificate: ca.pem}\n  config")
    monkeypatch.chdir("/")

    loaded = scenario(beside)

    assert loaded.gateway.nginx.lua_ssl_trusted_certificate == (authority.bytes(),)
    assert str(tmp_path / "ca.pem") in loaded.as_run
    with pytest.raises(UserError, match=r"a.yaml:9: .*certificate: expected a file in PEM format.* No such file"):
        scenario(beside.replace("ca.pem", "none.pem"))
    for written in ('"system, ca.pem"', "[system, ca.pem]"):
        several = scenario(beside.replace("ca.pem", written)).gateway.nginx
        assert several.lua_ssl_trusted_certificate == ("system", authority.bytes())


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[system, 5]", r"certificate\[1\]: expected text, not 5; put it in quotes"),
        ("[true]", r"certificate\[0\]: expected text, not true; put it in quotes"),
        ("[system, [a]]", r"certificate\[1\]: expected text, not a list; put it in quotes"),
    ],
)
def test_authority_that_is_no_text_is_named_by_its_place(scenario, written, message):
    """Before any file is looked for."""
    with pytest.raises(UserError, match=rf"a.yaml:9: .*{message}$"):
        scenario(FULL.replace("10s}\n  config", f"10s, lua_ssl_trusted_certificate: {written}}}\n  config"))
