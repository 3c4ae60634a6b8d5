"""Risky settings are found, each by its rule, where they stand and with what follows; good ones are let be."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from kongtrace.delivery import Send
from kongtrace.queue import Queue
from kongtrace.queue_parameters import Binding, QueueParameters
from kongtrace.queue_profile import PROFILES, Outcome
from sim import check, declarative, scenario
from sim.check import OUTAGE_S, RULES, Expected, check_gateway, check_scenario, spans_per_request
from sim.config import Tracing
from sim.document import Document
from sim.errors import UserError
from tests.sim.test_cli import kongsim  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
NOTHING = Expected()
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
"""This takes the place of what the profile says (`tests/conftest.py`): that the machine may be busy is said again."""

RAW = ": all resource attributes are exported as they are written"
SHOWN = ("batch_ceiling", "collector_outage", "max_bytes")
"""Scenarios that show what risky settings lead to."""

BASE = """\
name: base
seed: 1
gateway:
  workers: 2
  tracing: {instrumentations: [all], sampling_rate: 1.0}
  config:
    services: [{name: a, url: http://default, routes: [{paths: [/]}]}]
    plugins:
      - name: opentelemetry
        config: {}
upstreams: {default: {}}
load: [{executor: constant-arrival-rate, rate: 100/s, duration: 10s}]
"""

KONG_YML = """\
_format_version: "3.0"
services:
  - name: a
    url: http://127.0.0.1:9
    routes:
      - paths: [/]
        plugins:
          - name: opentelemetry
            config:
              traces_endpoint: http://127.0.0.1:4318/v1/traces
              queue:
                max_entries: 1000
plugins: [{name: opentelemetry, enabled: false, config: {traces_endpoint: http://a/, queue: {max_bytes: 1}}}]
"""


@pytest.fixture
def findings(tmp_path):
    """Check a base scenario with a part laid over it, or with a configuration of its plugin."""

    def run(part, expected=NOTHING, **top):
        yaml = YAML()
        root = yaml.load(BASE) | top
        given = yaml.load(part) if isinstance(part, str) else part
        if given.keys() & {"gateway", "faults", "collector"}:
            for key, value in given.items():
                if key == "gateway":
                    root["gateway"] |= value
                else:
                    root[key] = value
        else:
            root["gateway"]["config"]["plugins"][0]["config"] = given
        file = tmp_path / "scenario.yaml"
        with file.open("w", encoding="utf-8") as out:
            yaml.dump(root, out)
        return check_scenario(scenario.load(str(file)), expected)

    return run


def sections():
    """Rule, wrong and right example of each section of the page."""
    for section in PAGE.split("\n## ")[1:]:
        wrong, right = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
        yield section[:5], wrong, right


@pytest.mark.parametrize(("rule", "wrong", "right"), list(sections()))
def test_rule_finds_the_wrong_example_and_lets_the_right_one_be(rule, wrong, right, findings):
    """The page's examples are what the rule says they are, and break no other rule."""
    expected = Expected(round_trip_s=0.004 if rule in ("KC004", "KC014") else None)
    assert {finding.rule for finding in findings(wrong, expected)} == {rule}
    assert findings(right, expected) == []


@pytest.mark.parametrize(
    ("own", "everywhere", "found"),
    [("0.5", "0.1", True), ("1.0", "0.1", True), ("0.1", "0.1", False), (None, "0.1", False), ("0.5", None, False)],
)
def test_kong_yml_has_two_rates_where_the_environment_sets_one(kongsim, tmp_path, monkeypatch, own, everywhere, found):  # noqa: F811 - the fixture
    """Where nobody has set the gateway's, there is one rate; a plugin that leaves its own out is always right."""
    if everywhere is not None:
        monkeypatch.setenv("KONG_TRACING_SAMPLING_RATE", everywhere)
    file, config = tmp_path / "kong.yml", "traces_endpoint: http://127.0.0.1:4318/v1/traces"
    config += "" if own is None else f"\n              sampling_rate: {own}"
    text = KONG_YML.replace("traces_endpoint: http://127.0.0.1:4318/v1/traces", config, 1)
    file.write_text(text.replace("max_entries: 1000", "max_entries: 10000"), encoding="utf-8")

    code, out, _err = kongsim("check", str(file))

    assert ("KC008" in out, code) == ((True, 97) if found else (False, 0))
    assert ("leave it out, or give both the same value" in out) == found


def test_every_rule_has_a_section():
    """The page and the table of rules know each other."""
    assert [rule for rule, _, _ in sections()] == list(RULES)


@pytest.mark.parametrize("file", sorted((ROOT / "scenarios").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_scenarios_have_findings_only_where_they_show_one(file):
    """A good example raises no alarm, a bad one does."""
    found = check_scenario(scenario.load(str(file)), Expected())
    assert bool(found) == (file.stem in SHOWN), found


def test_a_finding_tells_the_consequence_in_numbers(findings):
    """At 300 spans/s for each worker, 1000 entries are 3.3 s; what is being sent came before."""
    [found] = findings({"queue": {"max_entries": 1000}})
    assert found.message == (
        "at 300 spans/s this queue holds 3.3s of outage, and 5s are to be survived; from then on the oldest spans are "
        "dropped, each with an error line, 117 kB/s of log"
    )
    assert found.cure == "set it to 1600, about 320 kB for each worker"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$(headers.a) or $(headers.b)", "the text after $(headers.a) is exported: ' or $(headers.b)'"),
        ("$(headers.a)or 'b'", "the text after $(headers.a) is exported: \"or 'b'\""),
        ("$(os.exit)", f"$(os.exit) is no template{RAW}"),
        ("$(headers)", f"$(headers) is no template{RAW}"),
        ("$(headers.a or b)", f"$(headers.a or b) is no template{RAW}"),
        ("a $(headers.a", "$(headers.a is not closed: it is exported as it is written"),
    ],
)
def test_what_looks_like_a_template_and_is_none_is_found(text, message, findings):
    """So that nobody looks for the client's team and finds the template."""  # O19
    [found] = findings({"resource_attributes": {"good": "x", "team": text}})
    assert (found.rule, found.message) == ("KC015", message)
    assert found.field.endswith(".resource_attributes.team")


@pytest.mark.parametrize(
    "text",
    ["$(headers.a)", "$(headers['a b'] or shared.b or \"x\")", "$(query_params.a)-$(uri_captures[1])", "this or that"],
)
def test_templates_and_texts_are_let_be(text, findings):
    """Whatever of it is filled in."""  # O19
    assert findings({"resource_attributes": {"team": text}}) == []


def test_a_batch_is_not_given_up_before_the_limit_has_been_looked_at(findings):
    """That is after the 14th attempt, 82 s after the first; only then a batch is lost, and no more than that."""  # Q21
    roomy = {"queue": {"max_entries": 100_000}}
    assert findings(roomy, Expected(outage_s=81)) == []
    [found] = findings(roomy, Expected(outage_s=120))
    assert found.field.endswith(".max_retry_time")
    assert found.message == (
        "a batch is given up after 82s where attempts fail at once: 1 of up to 200 spans in 120s of outage"
    )
    assert found.cure.startswith("set it to 120, which saves these alone")


def test_no_outage_costs_nothing(findings):
    """Nothing is given up, and the queue is never full."""
    assert findings({"queue": {}}, Expected(outage_s=0)) == []


def test_no_batch_is_advised_that_would_kill_its_job(findings):
    """What KC004 says to set is nothing that KC003 finds."""
    load = [{"executor": "constant-arrival-rate", "rate": "10000/s", "duration": "10s"}]
    queue = {"queue": {"max_entries": 1_000_000}}
    slow = Expected(round_trip_s=0.2)
    [found] = findings(queue, slow, load=load)
    assert found.cure == "sample less, or use more workers: 12000 would do, but more than 7997 kill their job"
    assert findings(queue, slow, load=load, profile="safe")[0].cure == "set it to 12000, or sample less"


def test_a_queue_has_to_hold_what_comes_until_the_next_attempt(findings):
    """By default it comes up to 41 s late: here at 81.91 s, while the collector is back after 60 s."""  # Q20, Q21
    [found] = findings({"queue": {"max_entries": 20_000}}, Expected(outage_s=60))
    assert (
        "67s of outage, and 60s are to be survived, 22s more until the next attempt where attempts fail at once; "
        "from then"
    ) in found.message
    assert found.cure.startswith("set it to 20000, and max_retry_delay to 5, about ")


@given(
    st.sampled_from(["kong", "safe"]),
    st.integers(2, 20),
    st.sampled_from([20, 100, 200]),
    st.sampled_from([2, 10, 50]),
    st.sampled_from([0.25, 8, 64]),
    st.sampled_from([0.5, 4, 60]),
    st.sampled_from([1, 7, 20]),
)
@settings(suppress_health_check=SUPPRESSED, max_examples=50)
def test_a_queue_overflows_where_it_is_said_to(findings, profile, rate, entries, batch, longest, limit, outage_s):
    """The queue itself drops spans if a finding says so, in the worst case: a batch is sent as the outage begins."""
    queue = {
        "max_entries": max(entries, batch),
        "max_batch_size": batch,
        "max_retry_delay": longest,
        "max_retry_time": limit,
    }
    load = [{"executor": "constant-arrival-rate", "rate": f"{rate}/s", "duration": "1000s"}]
    found = findings({"queue": queue}, Expected(outage_s=outage_s), load=load, profile=profile)

    dropped, dropped_by_more = (
        dropped_in_outage(PROFILES[profile], queue, spans_per_s, outage_s) for spans_per_s in (3 * rate, 3 * rate + 1)
    )
    is_found = any(finding.field.endswith(".max_entries") for finding in found)
    assert is_found or not dropped, dropped
    assert dropped_by_more or not is_found, found  # a part of a span is none


def dropped_in_outage(profile, parameters, rate, outage_s):
    """How many of the spans that come one by one a queue drops until an attempt finds the collector back."""
    queue = Queue("q", profile, lambda *_: None, lambda: 0.0, lambda *_: None)
    binding = Binding(QueueParameters("q", **parameters), print)
    queue.enqueue_many([b"span"] * parameters["max_batch_size"], binding, 0.0)
    action, now, arrived = queue.poll(0.0), 0.0, 0
    while not (isinstance(action, Send) and now >= outage_s):
        if isinstance(action, Send):
            queue.done(Outcome(ok=False, reason="down"), now)
            action = queue.poll(now)
        elif action is not None and action.until <= (arrived + 1) / rate:
            now = action.until
            action = queue.poll(now)
        else:
            arrived += 1
            now = arrived / rate
            queue.enqueue(b"span", binding, now)
            if action is None or action.or_entry:
                action = queue.poll(now)
    return queue.dropped_overflow


def test_a_queue_that_gives_up_at_once_loses_everything_and_is_never_full(findings):
    """Nothing waits, so there is nothing to be made larger."""
    [found] = findings({"queue": {"max_retry_time": -1, "max_entries": 300}})
    assert found.message == "what fails is given up at once: of 5s of outage every span is lost"


@given(
    st.sampled_from(["kong", "safe"]),
    st.integers(1, 5_000),
    st.sampled_from([0.0078125, 0.25, 2]),
    st.sampled_from([0.015625, 0.25, 8, 64]),
    st.sampled_from([-1, 0, 0.5, 4, 60]),
    st.sampled_from([1, 10, 100, 400]),
    st.sampled_from(
        ["kind: refuse", "kind: hang", "kind: slow, latency: 6s", "kind: status, status: 503, retry_after: 9s"]
    ),
)
@settings(suppress_health_check=SUPPRESSED)
def test_the_cure_cures(findings, profile, rate, initial, longest, limit, outage_s, fault):
    """What findings say to set is enough, whatever was set before."""
    delays = {"initial_retry_delay": initial, "max_retry_delay": longest}
    queue = {"max_retry_time": limit, "max_entries": 200, **delays}
    load = [{"executor": "constant-arrival-rate", "rate": f"{rate}/s", "duration": "10s"}]
    faults = YAML().load(f"[{{at: 1s, for: 1s, target: collector, {fault}}}]")
    top = {"load": load, "faults": faults, "profile": profile}
    expected = Expected(outage_s=outage_s, round_trip_s=0.001)
    for _ in range(2):  # what is given up does not fill a queue, and what is not does
        for finding in findings({"queue": queue}, expected, **top):
            if "not even" in finding.cure:
                return
            queue[finding.field.rpartition(".")[2]] = int(re.search(r"set it to (\d+)", finding.cure)[1])
            if delay := re.search(r"max_retry_delay to (\d+)", finding.cure):
                queue["max_retry_delay"] = int(delay[1])
    assert findings({"queue": queue}, expected, **top) == []


def test_an_attempt_lasts_as_long_as_the_fault_lets_it(findings):
    """A collector that hangs is given up after its timeout each time: so a batch is given up at 65 s, not at 82 s."""
    load = [{"executor": "constant-arrival-rate", "rate": "10/s", "duration": "100s"}]

    def told(fault, **top):
        faults = {"faults": [{"at": "1s", "for": "70s", "target": "collector", **fault}]}
        return [found.message for found in findings(faults, load=load, **top)]

    late = "a batch is given up after 65s where an attempt takes 5s: 1 of up to 200 spans in 70s of outage"
    assert told({"kind": "refuse"}) == told({"kind": "reset"}) == []
    assert told({"kind": "hang"}) == told({"kind": "slow", "latency": "6s"}) == [late]
    [slow] = told({"kind": "status", "status": 503}, collector={"latency": "4s"})
    assert slow.startswith("a batch is given up after 68s where an attempt takes 4s: 1 of")
    later = {"kind": "status", "status": 503, "retry_after": "25s"}
    [asked] = told(later, profile="safe")
    assert asked.startswith("a batch is given up after 50s where attempts fail at once, 25s apart at least: 1 of")
    assert told(later) == []
    [beyond] = told(later | {"retry_after": "90s"}, profile="safe")
    assert beyond.startswith(
        "a batch is given up after 5ms where attempts fail at once, 90s apart at least: 1 of up to"
    )


def test_a_collector_that_is_slow_for_a_while_has_a_ceiling_too(findings):
    """What comes above it has to wait in the queue until the collector is quick again."""
    load = [{"executor": "constant-arrival-rate", "rate": "100/s", "duration": "60s"}]
    slow = {"faults": [{"at": "10s", "for": "70s", "target": "collector", "kind": "slow", "latency": "995ms"}]}

    def told(max_entries):
        queue = {"queue": {"max_entries": max_entries}}
        plugins = [{"name": "opentelemetry", "config": queue}]
        services = [{"name": "a", "url": "http://default", "routes": [{"paths": ["/"]}]}]
        gateway = {"gateway": {"config": {"services": services, "plugins": plugins}}}
        return findings(slow | gateway, load=load)

    assert told(5200) == []
    [found] = told(4000)
    assert (found.rule, found.cure) == ("KC004", "set it to 600, or sample less")
    assert found.message == (
        "one queue sends 200 spans each 1s, at most 200/s, and 300/s are expected of each worker: in 50s of that 5,200 "
        "spans pile up, and 4000 can wait"
    )


def test_faults_that_follow_each_other_are_one_outage(findings):
    """The collector is away until the last of them has ended."""
    load = [{"executor": "constant-arrival-rate", "rate": "100/s", "duration": "60s"}]
    parts = [("1s", "25s", "refuse"), ("26s", "25s", "down"), ("56s", "1s", "hang")]
    faults = {"faults": [{"at": at, "for": lasts, "target": "collector", "kind": kind} for at, lasts, kind in parts]}
    [found] = findings(faults, load=load)
    assert "50s are to be survived" in found.message


def test_an_outage_costs_what_the_load_brings_in_it(findings):
    """Where it goes on when the load has ended, nothing more comes."""
    load = [{"executor": "constant-arrival-rate", "rate": "100/s", "duration": "60s"}]

    def told(at):
        return findings({"faults": [{"at": at, "for": "50s", "target": "collector", "kind": "refuse"}]}, load=load)

    assert told("30s") == []
    [found] = told("10s")
    assert "50s are to be survived" in found.message


@pytest.mark.parametrize(
    ("config", "expected", "rule"),
    [
        ({"queue": {"max_bytes": 0}}, Expected(), "KC001"),
        ({"queue": {"max_retry_time": -1}}, Expected(), "KC005"),
        ({"queue": {}}, Expected(outage_s=61), "KC005"),
        ({"propagation": {"default_format": "w3c", "clear": ["b3"]}}, Expected(), "KC010"),
        ({"propagation": {"default_format": "w3c", "extract": []}}, Expected(), "KC010"),
    ],
)
def test_a_rule_knows_every_form_of_its_mistake(config, expected, rule, findings):
    """Different settings have the same consequence."""
    assert {finding.rule for finding in findings(config, expected)} == {rule}


def test_words_beside_a_misplaced_all_count(findings):
    """What is listed is made, and the request's span always (I2, I3); behind the first `all` another is idle."""

    def told(*words):
        tracing = {"instrumentations": list(words), "sampling_rate": 1.0}
        config = {"services": [{"name": "a", "url": "http://default"}], "plugins": [{"name": "opentelemetry"}]}
        return [found.message for found in findings({"gateway": {"tracing": tracing, "config": config}})]

    only = "all counts in the first place only: of 9 kinds of span none but {} is made"
    assert told("request", "all") == [only.format("request")]
    assert told("router", "balancer", "all") == [only.format("request, router, balancer")]
    assert told("all", "all") == []


def test_null_is_left_out_at_any_depth(findings):
    """As a dump of Kong's database has it: every field that is not set."""
    nulls = {"queue": {"max_entries": None, "max_bytes": None}, "headers": {"a": None}, "batch_span_count": None}
    assert findings(nulls) == []


def test_a_read_timeout_of_0_is_that_of_nginx(findings):
    """60 s, not none at all."""
    found = [{finding.rule for finding in findings({"read_timeout": 0}, Expected(round_trip_s=s))} for s in (59, 60)]
    assert [("KC014" in rules) for rules in found] == [False, True]


def test_profile_safe_has_no_traps_to_find(findings):
    """What only the real gateway does wrong is no finding there."""
    assert findings({"queue": {"max_bytes": 100_000_000}}, profile="safe") == []
    assert findings({"queue": {"max_batch_size": 8000, "max_entries": 7000}}, profile="safe") == []


def test_bytes_of_profile_safe_bound_its_queue_too(findings):
    """Where they do, and how many they have to be; none at all take nothing."""
    [found] = findings({"queue": {"max_bytes": 100_000}}, profile="safe")
    assert found.field.endswith(".queue.max_bytes")
    assert found.message.startswith("at 300 spans/s this queue holds 2.3s of outage")
    assert found.cure.startswith("set it to 232000, about 320 kB")
    assert findings({"queue": {"max_bytes": 232_000}}, profile="safe") == []
    for none in (0, -1):
        nothing, overflow = findings({"queue": {"max_bytes": none}}, profile="safe")
        assert (nothing.rule, overflow.rule) == ("KC001", "KC005")
        assert overflow.message.startswith("at 300 spans/s this queue holds 0s of outage")


def test_a_scenario_names_its_own_outage(findings):
    """Its longest fault of the collector is what is to be survived, unless somebody expects another."""
    outage = {"faults": [{"at": "1s", "for": "50s", "target": "collector", "kind": "refuse"}]}
    load = [{"executor": "constant-arrival-rate", "rate": "100/s", "duration": "60s"}]
    assert [finding.rule for finding in findings(outage, load=load)] == ["KC005"]
    assert findings(outage, Expected(outage_s=OUTAGE_S), load=load) == []


def test_arrivals_are_judged_although_nobody_knows_what_virtual_users_send(findings):
    """They come on top; how much that is can be told."""
    outage = {"faults": [{"at": "1s", "for": "50s", "target": "collector", "kind": "refuse"}]}
    arrivals = {"executor": "constant-arrival-rate", "rate": "100/s", "duration": "60s"}
    users = {"executor": "constant-vus", "duration": "60s"}
    assert [finding.rule for finding in findings(outage, load=[arrivals, users])] == ["KC005"]
    assert findings(outage, load=[users]) == []
    assert [finding.rule for finding in findings(outage, Expected(requests_per_s=100), load=[users])] == ["KC005"]


@pytest.mark.parametrize(
    ("fault", "profiles"),
    [
        ({"kind": "down", "for": "50s"}, {"kong", "safe"}),
        ({"kind": "hang"}, {"kong", "safe"}),  # until the run ends
        ({"kind": "status", "status": 503, "for": "50s"}, {"kong", "safe"}),
        ({"kind": "status", "status": 202, "for": "50s"}, {"kong"}),
        ({"kind": "status", "status": 400, "for": "50s"}, {"kong"}),
        ({"kind": "slow", "latency": "20ms", "for": "50s"}, set()),
        ({"kind": "slow", "latency": "5s", "for": "50s"}, {"kong", "safe"}),
        ({"kind": "partial_success", "rejected": 0.5, "for": "50s"}, set()),
    ],
)
@pytest.mark.parametrize("profile", ["kong", "safe"])
def test_an_outage_is_what_makes_the_queue_wait(fault, profiles, profile, findings):
    """What is taken, if late or in part, or refused for good, is not tried again."""
    load = [{"executor": "constant-arrival-rate", "rate": "100/s", "duration": "60s"}]
    found = findings({"faults": [{"at": "1s", "target": "collector", **fault}]}, load=load, profile=profile)
    assert bool(found) == (profile in profiles)


def test_a_kong_yml_is_judged_by_the_rate_that_is_given(tmp_path):
    """File, line and field are those of the plugin, wherever it is nested; one that is switched off does not count."""
    file = tmp_path / "kong.yml"
    file.write_text(KONG_YML, encoding="utf-8")
    gateway = declarative.load(str(file)).model_copy(update={"workers": 2})
    document = Document.read(str(file))
    assert check_gateway(gateway, document, Expected()) == []
    [found] = check_gateway(gateway, document, Expected(requests_per_s=100))
    assert (found.rule, found.file, found.line) == ("KC005", str(file), 12)
    assert found.field == "services[0].routes[0].plugins[0].config.queue.max_entries"


def test_a_kong_yml_beside_a_scenario_is_named_itself(tmp_path):
    """The finding stands in the file where the setting stands."""
    (tmp_path / "kong.yml").write_text(KONG_YML.replace("http://127.0.0.1:9", "http://default"), encoding="utf-8")
    head, _, tail = BASE.partition("  config:\n")
    file = tmp_path / "scenario.yaml"
    file.write_text(f"{head}  config: kong.yml\n{tail[tail.index('upstreams') :]}", encoding="utf-8")
    [found] = check_scenario(scenario.load(str(file)), Expected())
    assert (Path(found.file).name, found.line) == ("kong.yml", 12)


def test_what_plugins_share_is_looked_at_too(tmp_path):
    """A configuration that stands once in a file of decK's, in services as at the top."""
    text = """\
_format_version: "3.0"
_plugin_configs: {otel: {traces_endpoint: "http://127.0.0.1:4318/v1/traces", queue: {max_bytes: 5}}}
services: [{name: a, url: "http://127.0.0.1:9", plugins: [{name: opentelemetry, _config: otel}]}]
plugins: [{name: opentelemetry, _config: otel, config: {queue: {max_bytes: null}}}]
"""
    file = tmp_path / "kong.yml"
    file.write_text(text, encoding="utf-8")

    found = check_gateway(declarative.load(str(file)), Document.read(str(file)), Expected())

    assert [(finding.rule, finding.line) for finding in found] == [("KC001", 3)]


def test_a_kong_yml_is_judged_by_the_tracing_that_the_environment_sets(tmp_path):
    """Instrumentations and rate count where they are told; where they are not, nothing is held against the file."""
    file = tmp_path / "kong.yml"
    file.write_text(KONG_YML, encoding="utf-8")
    document, expected = Document.read(str(file)), Expected(requests_per_s=100)

    def told(**tracing):
        gateway = declarative.load(str(file)).model_copy(update={"workers": 1, "tracing": Tracing(**tracing)})
        return [(found.rule, found.line, found.field) for found in check_gateway(gateway, document, expected, tracing)]

    too_many = ("KC005", 12, "services[0].routes[0].plugins[0].config.queue.max_entries")
    assert told() == [too_many]
    assert told(sampling_rate=0.1) == []
    assert told(instrumentations=("request",)) == []
    assert told(instrumentations=("off",)) == [("KC013", 8, "tracing.instrumentations")]
    assert told(instrumentations=("request", "all")) == [("KC012", 8, "tracing.instrumentations")]


def test_spans_per_request_are_those_of_the_instrumentations(findings, tmp_path):
    """All of them with one plugin that has two phases are six; what is switched off does not count."""
    findings({})
    gateway = scenario.load(str(tmp_path / "scenario.yaml")).gateway
    assert spans_per_request(gateway, known=True) == 6

    def with_words(*words):
        tracing = gateway.tracing.model_copy(update={"instrumentations": words})
        return spans_per_request(gateway.model_copy(update={"tracing": tracing}), known=True)

    assert [with_words("off"), with_words("request"), with_words("router", "plugin_access")] == [0, 1, 3]
    assert spans_per_request(gateway.model_copy(update={"tracing": gateway.tracing}), known=False) == 6


def test_command_prints_findings_and_exits_with_97(kongsim, tmp_path):  # noqa: F811 - the fixture
    """As lines or as JSON; without a finding the exit code is 0."""
    file = tmp_path / "kong.yml"
    file.write_text(KONG_YML, encoding="utf-8")
    options = ("--rate", "100/s", "--workers", "1")
    code, out, _ = kongsim("check", file, *options)
    assert (code, out.startswith(f"{file}:12: KC005 services[0].")) == (97, True)
    code, out, _ = kongsim("check", file, *options, "--format", "json")
    [found] = json.loads(out)
    assert (code, found["rule"], found["line"]) == (97, "KC005", 12)
    assert kongsim("check", file)[:2] == (0, f"{file}: configuration ok\n")
    assert kongsim("check", file, *options, "--outage", "1s")[0] == 0


@pytest.mark.parametrize("option", ["--rate=5/s", "--workers=2", "--profile=safe", "--plugin=a.py", "--stand-in=a={}"])
def test_command_refuses_for_a_scenario_what_the_scenario_says(kongsim, option):  # noqa: F811 - the fixture
    """Passed over in silence, it would be taken for what was checked."""
    code, _, err = kongsim("check", ROOT / "scenarios" / "quickstart.yaml", option)
    assert (code, err.startswith(f"kongsim: {option.partition('=')[0]}: is for a kong.yml")) == (2, True)


def test_command_takes_the_rate_of_virtual_users(kongsim):  # noqa: F811 - the fixture
    """Which no scenario says."""
    users = ROOT / "scenarios" / "capacity.yaml"
    assert kongsim("check", users, "--rate", "10/s")[0] == 0
    code, out, _ = kongsim("check", users, "--rate", "100000/s")
    assert (code, "KC005" in out) == (97, True)
    assert kongsim("check", users, "--workers", "2")[0] == 2


def test_command_judges_a_kong_yml_by_its_profile(kongsim, tmp_path):  # noqa: F811 - the fixture
    """What `kongsim serve --profile safe` does not do is no finding of it."""
    file = tmp_path / "kong.yml"
    file.write_text(KONG_YML.replace("max_entries: 1000", "max_bytes: 1000"), encoding="utf-8")
    assert kongsim("check", file)[1].startswith(f"{file}:12: KC001 ")
    assert kongsim("check", file, "--profile", "safe")[0] == 0


@pytest.mark.parametrize(("option", "value"), [("rate", "5"), ("outage", "long"), ("round_trip", "-1s")])
def test_a_mistake_in_an_option_names_it(option, value):
    """As everywhere, one line with expectation and cure."""
    with pytest.raises(UserError, match=f"^--{option.replace('_', '-')}: expected a "):
        check.expected_of({option: value})
