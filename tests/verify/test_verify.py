"""`kongsim verify`: its report, its options, its programs."""

import gc
import io
import json
import os
import re
import shlex
import signal
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from pydantic_sarif import model as sarif

from sim.cli import commands
from sim.errors import UserError
from sim.plugins import BUNDLED
from sim.verify import program as programs_of_all_kinds
from sim.verify import search, trial, watch
from sim.verify.mistakes import GATEWAY_RULES, RULES
from sim.verify.program import Program, Reload, Visit, parse, plain_programs, programs
from sim.verify.search import Search
from sim.verify.trial import Suspects
from tests.conformance import test_docs
from tests.kongtrace.test_checked import TRUE_OF_SAMPLES
from tests.verify.pairs import PAIRS

WRONG = """
class Shop:
    PRIORITY = 1000
    VERSION = "1"

    def access(self, kong, conf):
        span = kong.tracing.start_span("load order")
        if kong.request.get_method() == "PUT":
            return
        span.finish()
        span.finish()
"""

RIGHT = """
class Shop:
    PRIORITY = 1000
    VERSION = "1"

    def access(self, kong, conf):
        kong.tracing.start_span("load order").finish()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few programs are drawn, of few requests, whatever terminal the tests are run in, and however busy the machine."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(search, "PROGRAMS", 10)
    monkeypatch.setattr(search, "SEARCH_S", 300.0)
    monkeypatch.setattr(search, "SHRINK_S", 60.0)
    monkeypatch.setattr(programs_of_all_kinds, "TIMES", (1, 1, 1, 2, 5))


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Write a plugin; the working directory is where it is."""
    monkeypatch.chdir(tmp_path)

    def write(source, name="shop.py"):
        (tmp_path / name).write_text(source)
        return name

    return write


@pytest.fixture
def verify(capsys):
    """Run the command; return exit code and what it printed."""

    def run(*arguments):
        code = commands.main(["verify", *arguments], prog_name="kongsim", standalone_mode=False)
        return code, capsys.readouterr().out

    return run


@pytest.mark.parametrize(("columns", "widest"), [("80", 80), ("400", 118)])
def test_report_fits_the_terminal(shop, verify, monkeypatch, columns, widest):
    """Words are not broken in two; beyond what is easily read nothing is gained."""
    monkeypatch.setenv("COLUMNS", columns)
    _code, out = verify(shop(WRONG))

    said = [line for line in out.splitlines() if line.startswith(("  why:", "  fix:", " " * 8))]
    assert widest - 20 < max(map(len, said)) <= widest


def test_report_tells_all_there_is_to_say(shop, verify):
    """Place, code, severity, message, stacks with source, why, fix, page, the smallest program and how to run it."""
    code, out = verify(shop(WRONG))
    assert code == 97
    first, second = out.split("\n\n")[:2]
    assert first.splitlines()[:5] == [
        "shop.py:7: KT005 warning: span never finished",
        "  the request ended first (plugin shop, phase access, span 'load order')",
        "  where:",
        "    shop.py:7, in access",
        '      span = kong.tracing.start_span("load order")',
    ]
    assert [line.split(":")[0].strip() for line in first.splitlines()[5:8]] == ["why", "fix", "see"]
    assert first.splitlines()[7] == "  see:  KT005 in docs/findings.md of kongsim's sources"
    assert first.splitlines()[8:] == [
        "  the smallest program that shows it:",
        "    sampling rate 1, instrumentations all",
        "    PUT /orders; the upstream answers",
        """  replay: kongsim verify shop.py --seed 0 --replay '{"steps":[{"method":"PUT"}]}'""",
    ]
    assert second.startswith("shop.py:11: KT015 note: span finished twice\n")
    assert "  the span was made here:\n    shop.py:7, in access\n" in second
    assert "\n\n2 mistakes (1 warning, 1 note): " in out


def test_terminal_shows_how_far_it_has_come(shop, verify, monkeypatch):
    """On standard error, in one line that is gone in the end; elsewhere nothing but the report is written."""
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    verify(shop(RIGHT))
    assert screen.getvalue() == ""
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    _code, out = verify("shop.py")
    shown = screen.getvalue().split("\r")
    assert shown[:2] == ["", "1 programs, 1 requests"]
    assert shown[-1] == "\x1b[K"
    assert f": {shown[-2].replace(' requests', ' requests, seed')}" in out


def test_silence_is_told_in_one_line(shop, verify):
    """A plugin without mistakes gets its figures and exit code 0."""
    code, out = verify(shop(RIGHT))
    assert code == 0
    assert out.startswith("no mistakes: ")
    assert out.count("\n") == 1


def test_replay_runs_what_the_report_says(shop, verify):
    """The line of the report runs one program, and shows the mistake again."""
    _code, out = verify(shop(WRONG), "--select", "KT005")
    line = next(line for line in out.splitlines() if "replay: " in line)
    code, again = verify(*shlex.split(line.partition("kongsim verify ")[2]))
    assert code == 97
    assert again.splitlines()[0] == out.splitlines()[0]
    assert "1 program, 1 request" in again


@pytest.mark.parametrize("options", [(), ("--replay", '{"steps":[{"method":"GET"}]}')])
def test_coroutine_function_where_nothing_waits_is_a_mistake(shop, verify, options):
    """The gateway does not load it, and that is what is reported, also of one program alone."""
    file = shop(RIGHT + "\n    async def log(self, kong, conf):\n        pass\n")

    code, out = verify(file, *options)

    assert code == 97
    assert out.startswith("shop.py:9: KG001 error: ")
    assert "log is a coroutine function: the gateway does not load it" in out


def test_same_seed_gives_the_same_report(shop, verify):
    """But for the time that it took."""
    file = shop(WRONG)
    first, second = (verify(file, "--seed", "5")[1].rpartition(",")[0] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ((), ["KT005", "KT015"]),
        (("--select", "KT015"), ["KT015"]),
        (("--select", "KG,KT01"), ["KT015"]),
        (("--ignore", "KT"), []),
        (("--select", "KT", "--ignore", "KT005"), ["KT015"]),
    ],
)
def test_codes_are_selected_and_ignored(shop, verify, options, codes):
    """By their whole name, or by how they begin; what does not count does not decide the exit code."""
    code, out = verify(shop(WRONG), "--format", "json", *options)
    assert [mistake["code"] for mistake in json.loads(out)["mistakes"]] == codes
    assert code == (97 if codes else 0)


def test_json_has_every_field(shop, verify):
    """Whatever the text says stands in a field."""
    _code, out = verify(shop(WRONG), "--format", "json", "--select", "KT015")
    told = json.loads(out)
    assert (told["schema"], told["plugins"], told["seed"]) == ("kongsim-verify/1", ["shop.py"], 0)
    (mistake,) = told["mistakes"]
    assert (mistake["file"], mistake["line"], mistake["plugin"], mistake["phase"]) == ("shop.py", 11, "shop", "access")
    assert mistake["stack"][0] == {"file": "shop.py", "line": 11, "function": "access"}
    assert mistake["creation"][0]["line"] == 7
    assert all(mistake[field] for field in ("why", "fix", "title", "severity", "source", "program", "replay"))


def test_sarif_has_rules_results_and_stacks(shop, verify):
    """The log is of version 2.1.0: each result points to its rule and its line."""
    _code, out = verify(shop(WRONG), "--format", "sarif")
    log = json.loads(out)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert rules == ["KT005", "KT015"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "shop.py"
    assert [result["level"] for result in run["results"]] == ["warning", "note"]
    assert len(run["results"][1]["stacks"]) == 2


def test_sarif_is_what_the_standard_says(shop, verify, tmp_path):
    """The log fits the schema of version 2.1.0, which knows no other property; places are URI references (3.4)."""
    folder = "my plugins, 100%"
    (tmp_path / folder).mkdir()
    _code, out = verify(shop(WRONG, f"{folder}/shop.py"), "--format", "sarif")
    log = sarif.StaticAnalysisResultsFormatSarifVersion210JsonSchema.model_validate_json(out, strict=True)
    assert log.version.value == "2.1.0"
    (run,) = log.runs
    assert [rule.id for rule in run.tool.driver.rules] == [result.ruleId for result in run.results]
    frames = [frame.location for result in run.results for stack in result.stacks for frame in stack.frames]
    places = [*(result.locations[0] for result in run.results), *frames]
    assert {place.physicalLocation.artifactLocation.uri for place in places} == {"my%20plugins%2C%20100%25/shop.py"}


def test_sarif_names_what_lies_elsewhere_absolutely(shop, verify, tmp_path, monkeypatch):
    """A file outside the working directory has a `file` URI."""
    file = shop(WRONG)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _code, out = verify(str(tmp_path / file), "--format", "sarif", "--select", "KT015")
    place = json.loads(out)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == (tmp_path / file).as_uri()


def test_sarif_names_a_file_whose_name_is_no_text(shop, verify, tmp_path):
    """The bytes of its name are escaped one by one."""
    folder = os.fsdecode(b"gr\xff\xdfe")
    (tmp_path / folder).mkdir()
    _code, out = verify(shop(WRONG, f"{folder}/shop.py"), "--format", "sarif", "--select", "KT015")
    place = json.loads(out)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "gr%FF%DFe/shop.py"


def test_github_gets_annotations(shop, verify):
    """One workflow command for each mistake, on one line."""
    _code, out = verify(shop(WRONG), "--format", "github")
    lines = out.splitlines()
    assert lines[0].startswith(
        "::warning file=shop.py,line=7,title=KT005 span never finished::the request ended first%0A"
    )
    assert lines[1].startswith("::notice file=shop.py,line=11,title=KT015 span finished twice::")
    assert len(lines) == 3


def test_github_gets_paths_that_do_not_end_early(shop, verify, tmp_path):
    """What ends a property of a workflow command is escaped in a path too."""
    (tmp_path / "a,b").mkdir()
    _code, out = verify(shop(WRONG, "a,b/shop.py"), "--format", "github", "--select", "KT015")
    assert out.startswith("::notice file=a%2Cb/shop.py,line=11,title=")


def test_baseline_keeps_old_mistakes_quiet(shop, verify):
    """What is in it is not reported, also when its line has moved; what is new is."""
    assert verify(shop(WRONG), "--write-baseline", "known.json")[0] == 0
    moved = "# a comment\n" + WRONG
    assert verify(shop(moved), "--baseline", "known.json")[0] == 0
    worse = moved + "        span.set_attribute('rows', 3)\n"
    code, out = verify(shop(worse), "--baseline", "known.json", "--format", "json")
    assert code == 97
    assert [mistake["code"] for mistake in json.loads(out)["mistakes"]] == ["KT016"]


DEEP = 1_000_000 * "["


@pytest.mark.parametrize("text", [RIGHT, "{}", "[]", '{"schema": 1}', "\N{LATIN SMALL LETTER E WITH ACUTE}", DEEP])
def test_baseline_takes_the_place_of_nothing_else(shop, verify, text):
    """A file that is none is told before the search, and stays as it was."""
    other = shop(text, "other.txt")

    with pytest.raises(UserError, match=r"^other\.txt: is no baseline, and would be overwritten; name another file$"):
        verify(shop(RIGHT), "--write-baseline", other)

    assert Path(other).read_text() == text


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("", "--write-baseline: expected a file, not an empty name"),
        ("folder", "folder: is a folder, expected a file; name folder/baseline.json"),
        ("none/known.json", "none/known.json: there is no folder none; make it first"),
        # Which of them fails depends on the version of Python.
        (300 * "a", f"{300 * 'a'}: cannot be (read|written): File name too long"),
        ("shop.py/known.json", "shop.py/known.json: there is no folder shop.py; make it first"),
    ],
)
def test_baseline_needs_a_place(shop, verify, place, line):
    """What cannot be written is one line."""
    Path("folder").mkdir()

    with pytest.raises(UserError, match=f"^{line}"):
        verify(shop(RIGHT), "--write-baseline", place, "--replay", '{"steps":[{}]}')


@pytest.mark.parametrize("text", ["", '{"schema": "kongsim-verify-baseline/0"}'])
def test_baseline_takes_the_place_of_an_older_one(shop, verify, text):
    """Whatever version it has, and of a file that holds nothing."""
    older = shop(text, "known.json")

    assert verify(shop(WRONG), "--write-baseline", older, "--replay", '{"steps":[{}]}')[0] == 0

    assert len(json.loads(Path(older).read_text())["mistakes"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "xml"), "--format: there is no format xml; known here: text, json, sarif, github"),
        (("--select", "KT999"), "--select: there is no code KT999; did you mean KT"),
        (("--baseline", "none.json"), "none.json: cannot be read: No such file or directory; write it with"),
        (("--baseline", "shop.py"), "shop.py: is no baseline; name one that --write-baseline has written"),
        (("--replay", "{}"), "--replay: is no program: it is no mapping with steps; give the line as it was printed"),
        (("--baseline", "deep.json"), "deep.json: is no baseline; name one that --write-baseline has written"),
        (("--replay", DEEP), "--replay: is no program: nested too deeply; give the line as it was printed"),
        (("--config", DEEP), "--config: is no JSON: nested too deeply; write '"),
        (("--config", "[]"), "--config: must be a mapping by plugin"),
        (("--config", '{"chop": {}}'), "--config: there is no plugin chop here; these are: shop"),
    ],
)
def test_wrong_option_is_told_in_one_line(shop, verify, arguments, message):
    """Which one, what was expected, what to do."""
    shop(DEEP, "deep.json")
    with pytest.raises(UserError) as raised:
        verify(shop(RIGHT), *arguments)
    assert str(raised.value).startswith(message)


def test_configuration_is_checked_and_given(shop, verify):
    """A plugin with a model needs what the model needs."""
    source = RIGHT.replace("class Shop:", "from pydantic import BaseModel\n\n\nclass Shop:").replace(
        "    def access", "    class Config(BaseModel):\n        limit: int\n\n    def access"
    )
    with pytest.raises(UserError, match=r"^--config: shop\.limit: Field required; write --config"):
        verify(shop(source))
    assert verify(shop(source), "--config", '{"shop": {"limit": 3}}', "--replay", '{"steps":[{}]}')[0] == 0


def test_several_plugins_run_together(shop, verify):
    """Each mistake is told of the plugin that it is in."""
    shop(RIGHT, "good.py")
    shop(WRONG, "bad.py")
    _code, out = verify("good.py", "bad.py", "--format", "json")
    assert {mistake["plugin"] for mistake in json.loads(out)["mistakes"]} == {"bad"}


def test_mistake_in_a_module_that_the_plugin_uses_is_told_where_it_is(shop, verify, tmp_path, monkeypatch):
    """The place is the innermost line of the user's own code; what the gateway and libraries do is not."""
    monkeypatch.syspath_prepend(tmp_path)
    shop("def work(tracing):\n    tracing.start_span('load')\n", "shop_tracing.py")
    file = shop(
        RIGHT.replace('kong.tracing.start_span("load order").finish()', "work(kong.tracing)").replace(
            "\nclass", "from shop_tracing import work\n\n\nclass"
        )
    )
    _code, out = verify(file, "--format", "json", "--replay", '{"steps":[{}]}')
    (mistake,) = json.loads(out)["mistakes"]
    assert (mistake["code"], mistake["file"], mistake["line"], mistake["plugin"]) == (
        "KT005",
        "shop_tracing.py",
        2,
        "shop",
    )


def test_failure_shrinks_to_the_smallest_program(shop, monkeypatch):
    """What takes a retried POST and a reload is found, and nothing else is left in the program that shows it."""
    monkeypatch.setattr(search, "PROGRAMS", 60)
    file = shop(
        textwrap.dedent("""
        class Shop:
            PRIORITY = 1000
            VERSION = "1"

            def log(self, kong, conf):
                if kong.request.get_method() == "POST" and kong.response.get_status() >= 500:
                    kong.tracing.start_span("failed")
        """)
    )
    verdict = Search(Suspects((file,)), 3).run()
    (shown,) = verdict.shown
    (visit,) = shown.program.steps
    assert shown.program.sampling_rate == 1.0
    assert (visit.method, visit.times, visit.body, visit.abort_ms, visit.trace) == ("POST", 1, 0, None, "none")
    assert shown.program.requests == 1


INJECTED = {
    "traceparent": {"traceparent": "00-{trace}-{parent}-01"},
    "b3": {"b3": "{trace}-{parent}-1"},
    "x-b3-spanid": {"x-b3-traceid": "{trace}", "x-b3-spanid": "{parent}", "x-b3-sampled": "1"},
    "uber-trace-id": {"uber-trace-id": "{trace}:{parent}:0:1"},
    "ot-tracer-spanid": {"ot-tracer-traceid": "{trace}", "ot-tracer-spanid": "{parent}", "ot-tracer-sampled": "1"},
    "x-datadog-parent-id": {
        "x-datadog-trace-id": "5",
        "x-datadog-parent-id": "{number}",
        "x-datadog-sampling-priority": "1",
    },
    "x-amzn-trace-id": {"x-amzn-trace-id": "Root=1-{trace:.8}-{trace:.24};Parent={parent};Sampled=1"},
    "x-cloud-trace-context": {"x-cloud-trace-context": "{trace}/{number};o=1"},
    "x-instana-s": {"x-instana-t": "{trace}", "x-instana-s": "{parent}", "x-instana-l": "1"},
}
"""For each header that names a parent, the headers of its format."""

INJECTING = """
class Shop:
    PRIORITY = 1
    VERSION = "1"

    def access(self, kong, conf):
        root = kong.tracing.get_root_span()
        if root is not None and root.should_sample:
            parent = {parent}
            told = dict(trace=root.trace_id.hex(), parent=parent.hex(), number=int.from_bytes(parent))
            for name, value in {headers}.items():
                kong.service.request.set_header(name, value.format(**told))
"""


@pytest.mark.parametrize("header", trial.TRACE_HEADERS)
def test_orphan_parent_is_found_in_every_format(shop, header):
    """A parent that nobody exports is told of whichever header names it; the root span's id is none."""
    file = shop(INJECTING.format(parent="b'orphaned'", headers=INJECTED[header]))
    assert [(m.code, m.message.split()[0]) for m in trial.run(Suspects((file,)), Program((Visit(),))).mistakes] == [
        ("KG006", header)
    ]
    file = shop(INJECTING.format(parent="root.span_id", headers=INJECTED[header]))
    assert trial.run(Suspects((file,)), Program((Visit(),))).mistakes == ()


def test_trace_header_that_cannot_be_read_names_no_parent(shop):
    """What a plugin writes may be nonsense: the verification goes on."""
    headers = dict.fromkeys(INJECTED, "nonsense") | {"x-datadog-trace-id": "5", "x-b3-traceid": "5"}
    file = shop(INJECTING.format(parent="b''", headers=headers))
    assert trial.run(Suspects((file,)), Program((Visit(),))).mistakes == ()


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("nonsense", "Expecting value: line 1 column 1 (char 0)"),
        ("[1]", "it is no mapping with steps"),
        ("{}", "it is no mapping with steps"),
        ('{"steps":[7]}', "step 7 is no mapping"),
        ('{"steps":[{"bogus":1}]}', "it has the unknown field bogus"),
        ('{"steps":[],"bogus":1}', "it has the unknown field bogus"),
        ('{"steps":[{"times":"x"}]}', "times cannot be 'x'"),
        ('{"steps":[{"times":true}]}', "times cannot be True"),
        ('{"steps":[{"times":100000000}]}', "times is 250 at most, not 100000000"),
        ('{"steps":[{"body":1000001}]}', "body is 1000000 at most, not 1000001"),
        ('{"steps":[{"abort_ms":60001}]}', "abort_ms is 60000 at most, not 60001"),
        ('{"steps":[{},{},{},{},{},{},{}]}', "it has 7 steps, 6 at most"),
        ('{"steps":[{"gap_ms":-1}]}', "gap_ms cannot be -1"),
        ('{"steps":[{"abort_ms":"x"}]}', "abort_ms cannot be 'x'"),
        ('{"steps":[{"path":7}]}', "path cannot be 7"),
        ('{"steps":[{"upstream":"x"}]}', "upstream cannot be 'x'"),
        ('{"steps":[],"sampling_rate":2}', "sampling_rate cannot be 2"),
        ('{"steps":[],"instrumentations":"x"}', "instrumentations cannot be 'x'"),
    ],
)
def test_line_that_is_no_program_is_told(line, wrong):
    """Which field is wrong, so that one may write programs by hand."""
    with pytest.raises(UserError) as raised:
        parse(line)
    assert str(raised.value) == f"--replay: is no program: {wrong}; give the line as it was printed"


@given(program=programs())
def test_program_survives_its_line(program):
    """What is printed can be read again."""
    assert parse(program.line()) == program


def test_plain_programs_differ_from_the_usual_in_one_thing():
    """The first is one request; each of the others has one thing more."""
    first, *others = plain_programs()
    assert first == Program((Visit(),))
    assert len(set(others)) == len(others) > 45
    for program in others:
        words = program.text()
        assert parse(program.line()).text() == words


def test_trial_is_the_same_each_time(shop):
    """The same program has the same outcome; nothing is drawn, and no clock is read."""
    suspects = Suspects((shop(WRONG),))
    program = Program((Visit(times=20, gap_ms=0, upstream="is slow", abort_ms=4), Reload(), Visit(method="PUT")))
    assert trial.run(suspects, program) == trial.run(suspects, program)


def test_requests_of_a_program_all_end(shop):
    """Whatever happens to a request, its log phase runs once."""
    program = Program(
        tuple(
            step for plain in plain_programs() for step in plain.steps if isinstance(step, Visit) and step.times < 100
        )
    )
    outcome = trial.run(Suspects((shop(RIGHT),)), program)
    assert outcome.mistakes == ()
    gone_at_once = sum(step.times for step in program.steps if step.abort_ms == 0)
    assert program.requests - gone_at_once <= outcome.requests <= program.requests


CONFIGS = {
    "trace-exporter": {"host": "127.0.0.1", "port": 9},
    "synthetic": {
        "access": {"spans": {"count": 3, "attributes": 4, "events": 1, "nesting": "deep"}, "wait": "3ms"},
        "log": {"spans": {"count": 2}},
    },
    "correlation-id": {"echo_downstream": True},
}


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_plugins_are_silent(name):
    """No false alarm among the plugins that come with the gateway."""
    configs = {name: CONFIGS[name]} if name in CONFIGS else {}
    verdict = Search(Suspects((name,), configs), 0).run()
    assert [(shown.mistake.code, shown.mistake.place, shown.mistake.message) for shown in verdict.shown] == []


def test_custom_spans_of_the_exporter_have_the_findings_that_the_page_names():
    """They are made as in Kong's tests, and nobody is to take them for a model."""
    configs = {"trace-exporter": CONFIGS["trace-exporter"] | {"custom_spans": True}}
    verdict = Search(Suspects(("trace-exporter",), configs), 0).run()
    section = PAGE.partition("### `trace-exporter`")[2].partition("###")[0]
    assert {shown.mistake.code for shown in verdict.shown} == set(re.findall(r"KT\d+", section))


def test_bundled_plugins_are_silent_together():
    """Nor when all of them run."""
    names = tuple(name for name in BUNDLED if name != "request-termination")
    verdict = Search(Suspects(names, CONFIGS), 0).run()
    assert [(shown.mistake.code, shown.mistake.place, shown.mistake.message) for shown in verdict.shown] == []


@pytest.mark.parametrize("sample", test_docs.SAMPLES)
def test_samples_of_the_documentation_give_no_false_alarm(shop, sample):
    """The samples of the customer's documentation, in a plugin that ends what they leave open, give what is true."""
    phase = "log" if sample is test_docs.gather_the_spans else "access"
    file = shop(
        textwrap.dedent(f"""
        from tests.conformance.test_docs import {sample.__name__} as sample


        class Docs:
            PRIORITY = 1000
            VERSION = "1"

            def {phase}(self, kong, conf):
                before = list(kong.tracing.get_spans() or ())
                sample(kong.tracing, kong.ngx)
                if "{sample.__name__}" != "release_a_span":
                    for span in reversed(kong.tracing.get_spans() or ()):
                        if all(span is not old for old in before) and span.end_time_ns is None:
                            span.finish()
        """)
    )
    outcomes = [trial.run(Suspects((file,)), Program((visit,))) for visit in (Visit(), Visit(times=30))]
    found = {mistake.code for outcome in outcomes for mistake in outcome.mistakes}
    name = sample.__name__
    assert found <= {str(code) for code in TRUE_OF_SAMPLES.get(name, ())} | TRUE_IN_A_GATEWAY.get(name, set())


TRUE_IN_A_GATEWAY = {
    "create_a_tracer": {"KT028"},  # H46
    "sample_traces": {"KT028"},
    "start_below_the_global_active_span": {"KT023", "KT028"},  # H12: nobody exports its tracer's spans
    "release_a_span": {"KT029"},
}
"""What else is rightly said of samples when many requests run them beside an exporter."""


def test_page_has_every_field_of_the_json(shop, verify):
    """And no other."""
    page = (Path(__file__).parents[2] / "docs/verify.md").read_text()
    section = page.partition("## The JSON document")[2].partition("\n## ")[0]
    told = [name for row in re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)", row)]
    report = json.loads(verify(shop(WRONG), "--format", "json")[1])
    assert sorted(told) == sorted([*report, *report["mistakes"][0]])


def test_page_has_every_code_of_the_gateway():
    """The table of `docs/verify.md` is the table of the program."""
    page = (Path(__file__).parents[2] / "docs/verify.md").read_text()
    told = [(code, rule.title, rule.severity.name.lower(), rule.source) for code, rule in GATEWAY_RULES.items()]
    rows = [line for line in page.splitlines() if line.startswith("| KG")]
    assert rows == [f"| {' | '.join(row)} |" for row in told]


def test_every_code_has_a_wrong_and_a_right_plugin():
    """No rule is without an example that goes through the gateway."""
    marked = "\n".join(wrong for wrong, _right in PAIRS.values())
    assert [code for code in RULES if f"# {code}" not in marked] == []


PAGE = (Path(__file__).parents[2] / "docs/plugins.md").read_text()
SAMPLES = {
    block.splitlines()[0].removeprefix("# "): block
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    if "PRIORITY" in block
}
"""The plugins of the page on plugins, by the name of their file."""

CONFIGS_OF_SAMPLES = {
    "quota.py": {"quota": {"url": "http://127.0.0.1:9/"}},
    "offers.py": {"offers": {"urls": ["http://127.0.0.1:9/"]}},
    "redact.py": {"redact": {"word": "secret"}},
    "shipper.py": {"shipper": {"url": "http://127.0.0.1:9/spans"}},
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_of_the_page_on_plugins_are_silent(shop, name):
    """What the page shows is right."""
    verdict = Search(Suspects((shop(SAMPLES[name], name),), CONFIGS_OF_SAMPLES.get(name, {})), 0).run()
    assert [(shown.mistake.code, shown.mistake.place, shown.mistake.message) for shown in verdict.shown] == []


def test_handler_that_never_comes_back_is_broken_off_and_told(shop, monkeypatch):
    """An endless loop is a mistake with its line, and no end of the verification either."""
    monkeypatch.setattr(watch, "STUCK_S", 0.2)
    monkeypatch.setattr(search, "SEARCH_S", 2.0)
    file = shop(
        RIGHT.replace(
            '        kong.tracing.start_span("load order").finish()',
            "        while True:\n            try:\n                len('')\n            except Exception: pass",
        )
    )
    verdict = Search(Suspects((file,)), 0).run()
    codes = {(shown.mistake.code, shown.mistake.message) for shown in verdict.shown}
    assert ("KG002", "the handler had not come back after 0.2 s") in codes
    assert verdict.seconds < 60


def test_many_requests_that_never_come_back_are_broken_off_sooner(shop, monkeypatch):
    """Only the first takes the whole of a program's patience."""
    monkeypatch.setattr(watch, "STUCK_S", 1.0)
    monkeypatch.setattr(watch, "STUCK_AGAIN_S", 0.01)
    file = shop(RIGHT.replace('        kong.tracing.start_span("load order").finish()', "        while True: pass"))
    verdict = Search(Suspects((file,)), 0).replay(Program((Visit(times=20),)))
    assert [shown.mistake.message for shown in verdict.shown] == ["the handler had not come back after 1 s"]
    assert verdict.requests == 20
    assert verdict.seconds < 20


def test_alarm_that_comes_while_a_step_ends_is_not_heard(shop, monkeypatch):
    """The handler has come back, and nobody is there to catch what would be raised: it would leave the alarm behind."""

    class Steps(list):
        def remove(self, step):
            for _ in range(3):
                signal.raise_signal(signal.SIGALRM)
            super().remove(step)

    monkeypatch.setattr(watch, "_running", Steps())
    verdict = Search(Suspects((shop(RIGHT),)), 0).replay(Program((Visit(times=2),)))
    assert (verdict.requests, verdict.shown) == (2, [])
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


LOUD = """
import sys

print("imported")
print("imported", file=sys.stderr)


class Shop:
    PRIORITY = 1000
    VERSION = "1"

    def access(self, kong, conf):
        print("served")
        print("served", file=sys.stderr)
"""


@pytest.mark.parametrize("options", [(), ("--replay", '{"steps":[{}]}')])
def test_what_a_plugin_prints_is_not_shown(shop, capsys, options):
    """Neither when it is loaded nor when it runs, so that a report is nothing but a report."""
    commands.main(["verify", shop(LOUD), "--format", "json", *options], prog_name="kongsim", standalone_mode=False)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["mistakes"] == []
    assert printed.err == ""


@pytest.mark.parametrize(
    ("does", "code", "message"),
    [
        ("loop.call_soon(sys.exit, 3)", "KG005", "a callback of the event loop: SystemExit: 3"),
        (
            "loop.call_soon(loop.stop)",
            "KG009",
            "a callback of the event loop: the event loop is told to stop, and the worker ends with it",
        ),
    ],
)
def test_callback_that_would_end_the_worker_is_told_of_the_plugin(shop, does, code, message):
    """No line of the plugin is known any more when the event loop calls it back."""
    body = f"        loop = asyncio.get_running_loop()\n        {does}\n"
    file = shop("import asyncio, sys\n" + RIGHT + body)
    (mistake,) = Search(Suspects((file,)), 0).replay(Program((Visit(),))).shown
    assert (mistake.mistake.code, mistake.mistake.place.filename, mistake.mistake.message) == (code, file, message)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("phase", ["access", "log"])
def test_user_who_interrupts_is_obeyed(shop, phase):
    """A signal from outside ends the verification, whatever the plugin is doing."""
    body = f"    def {phase}(self, kong, conf):\n        signal.raise_signal(signal.SIGINT)\n"
    file = shop("import signal\n" + RIGHT.partition("    def")[0] + body)
    with pytest.raises(KeyboardInterrupt):
        Search(Suspects((file,)), 0).run()


def test_builtin_function_may_be_a_handler(shop):
    """It has no line of its own."""
    file = shop(RIGHT.partition("    def")[0] + "    access = print\n")
    shown = Search(Suspects((file,)), 0).replay(Program((Visit(),))).shown
    assert [(s.mistake.code, s.mistake.message) for s in shown] == []


INSTRUMENTED = """
import asyncio

from opentelemetry import trace

from kongtrace import otel

PROVIDER = otel.TracerProvider()
tracer = PROVIDER.get_tracer("shop")
far = trace.SpanContext(7, 8, is_remote=True)


class Shop:
    PRIORITY = 1000
    VERSION = "1"

    async def access(self, kong, conf):
        with tracer.start_as_current_span("look up", links=[trace.Link(far)]) as span:
            await asyncio.gather(self.part(kong, 1), self.part(kong, 2))
            span.set_attribute("found", True)

    async def part(self, kong, number):
        with tracer.start_as_current_span("part", attributes={"number": number}) as span:
            await kong.ngx.sleep(0.01 * number)
            span.set_attribute("rows", 3)
            span.add_event("read")
            span.add_link(far)
"""


def test_spans_of_opentelemetry_in_tasks_of_a_handler_are_silent(shop, monkeypatch):
    """Their context follows the tasks, in whichever turn these run, and ends with them."""
    monkeypatch.setattr(programs_of_all_kinds, "TIMES", (1, 1, 5, 50))
    verdict = Search(Suspects((shop(INSTRUMENTED),)), 0).run()
    assert [(shown.mistake.code, shown.mistake.place, shown.mistake.message) for shown in verdict.shown] == []


def test_garbage_is_not_collected_on_a_handlers_account(shop):
    """A collection takes longer than a stall where many requests have left garbage, most of it not the plugin's."""
    steps = """
    async def access(self, kong, conf):
        assert not gc.isenabled()
        await asyncio.gather(self.part(kong))
        assert not gc.isenabled()

    async def part(self, kong):
        assert not gc.isenabled()

    def log(self, kong, conf):
        assert not gc.isenabled()
        kong.timer.at(0, lambda premature: [].append(1 / (not gc.isenabled())))
"""
    file = shop("import asyncio, gc\n" + RIGHT.partition("    def")[0] + steps)
    verdict = Search(Suspects((file,)), 0).replay(Program((Visit(times=5, gap_ms=0),)))
    assert [(shown.mistake.code, shown.mistake.message) for shown in verdict.shown] == []
    assert gc.isenabled()
