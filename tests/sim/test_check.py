"""Risky settings are found, each by its rule, where they stand and with what follows; good ones are let be."""

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sim import check, declarative, scenario
from sim.check import OUTAGE_S, RULES, Expected, check_gateway, check_scenario, spans_per_request
from sim.document import Document
from sim.errors import UserError
from tests.sim.test_cli import kongsim  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
NOTHING = Expected()
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


def test_every_rule_has_a_section():
    """The page and the table of rules know each other."""
    assert [rule for rule, _, _ in sections()] == list(RULES)


@pytest.mark.parametrize("file", sorted((ROOT / "scenarios").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_scenarios_have_findings_only_where_they_show_one(file):
    """A good example raises no alarm, a bad one does."""
    found = check_scenario(scenario.load(str(file)), Expected())
    assert bool(found) == (file.stem in SHOWN), found


def test_a_finding_tells_the_consequence_in_numbers(findings):
    """At 300 spans/s for each worker, 1000 and 200 entries are 4 s."""
    [found] = findings({"queue": {"max_entries": 1000}})
    assert found.message == (
        "at 300 spans/s this queue holds 4s of outage, and 5s are to be survived; from then on the oldest spans are "
        "dropped, each with an error line, 117 kB/s of log"
    )
    assert found.cure == "set it to 1500, about 300 kB for each worker"


def test_the_cure_cures(findings):
    """What a finding says to set is enough."""
    assert findings({"queue": {"max_entries": 1500}}) == []


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


def test_profile_safe_has_no_traps_to_find(findings):
    """What only the real gateway does wrong is no finding there."""
    assert findings({"queue": {"max_bytes": 100_000_000}}, profile="safe") == []
    assert findings({"queue": {"max_batch_size": 8000, "max_entries": 7000}}, profile="safe") == []


def test_a_scenario_names_its_own_outage(findings):
    """Its longest fault of the collector is what is to be survived, unless somebody expects another."""
    outage = {"faults": [{"at": "1s", "for": "50s", "target": "collector", "kind": "refuse"}]}
    load = [{"executor": "constant-arrival-rate", "rate": "100/s", "duration": "60s"}]
    assert [finding.rule for finding in findings(outage, load=load)] == ["KC005"]
    assert findings(outage, Expected(outage_s=OUTAGE_S), load=load) == []


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


@pytest.mark.parametrize(("option", "value"), [("rate", "5"), ("outage", "long"), ("round_trip", "-1s")])
def test_a_mistake_in_an_option_names_it(option, value):
    """As everywhere, one line with expectation and cure."""
    with pytest.raises(UserError, match=f"^--{option.replace('_', '-')}: expected a "):
        check.expected_of({option: value})
