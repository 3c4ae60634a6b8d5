"""Two runs are put side by side: what was asked, what was measured, and which thresholds held."""

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sim.errors import UserError
from sim.report import compare as comparisons
from sim.report.compare import FIGURE_MAX, FIGURES, NOISE, Comparison, Run, compare, read, show
from sim.report.summary import Summary
from tests.runs import valid_run
from tests.sim.test_cli import files, kongsim  # noqa: F401 - fixtures

PAGE = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")

MADE = {
    "schema": "kongsim.summary/1",
    "version": "0.1.0",
    "scenario": "outage",
    "profile": "kong",
    "seed": 7,
    "started_at": "2026-01-01T12:00:00.000+00:00",
    "verdict": "passed",
    "invalid_reason": None,
    "thresholds": [],
    "requests": {"completed": 2_000, "failed": 0, "status_5xx": 0, "by_status": {"200": 2_000}},
    "latency_ms": {"p50": 4.0, "p90": 8.0, "p99": 20.0, "p99_9": 40.0, "max": 50.0},
    "load": {"achieved_rate_per_s": 200.0},
    "loads": [],
    "ledger": {"created": 16_000, "enqueued": 16_000, "acknowledged": 16_000, "lost": 0, "unaccounted": 0},
    "collector": {"received_unique": 16_000, "received_duplicates": 0},
    "totals": {
        "requests": 2_000,
        "spans": 16_000,
        "cpu_us_per_request": 400.0,
        "rss_mib": 50.0,
        "loop_lag_ms_max": 1.0,
        "queue_depth_max": 200,
    },
    "environment": {"cpu": "Chip 1", "cores": 2, "kernel": "Linux 6", "python": "CPython 3.11.7", "compiled": True},
}

SCENARIO = {
    "name": "outage",
    "seed": 7,
    "gateway": {"workers": 2, "tracing": {"instrumentations": ["all"], "sampling_rate": 1.0}},
    "load": [{"executor": "constant-arrival-rate", "rate": "200/s", "duration": "10s"}],
    "thresholds": ["ledger.lost == 0"],
}

PATHS = [figure.path for figures in FIGURES.values() for figure in figures]


def run(as_run=SCENARIO, **changes):
    """A run like the one above but for some fields; those of a section that is given are laid over it."""
    made = {
        name: {**value, **changes[name]} if name in changes and isinstance(value, dict) else changes.get(name, value)
        for name, value in MADE.items()
    }
    return Run.model_validate(made).model_copy(update={"folder": "runs/1", "as_run": as_run})


def threshold(expression, value, passed):
    """A threshold as a summary has it."""
    return {"expression": expression, "value": value, "passed": passed}


def screen(comparison, width=80, **console):
    """What is printed, on a terminal of some width."""
    out = io.StringIO()
    show(comparison, Console(file=out, width=width, **console))
    return out.getvalue()


def rows(comparison):
    """The rows that are printed: the words of each, by its label."""
    lines = (re.split(r" {2,}", line.strip()) for line in screen(comparison).splitlines())
    return {label: cells for label, *cells in lines}


def test_figures_stand_side_by_side_with_their_change():
    """A, B, what B has more, and that in percent of A."""
    b = run(requests={"completed": 1_500}, latency_ms={"p99": 23.0}, totals={"cpu_us_per_request": 390.0})
    told = rows(compare(run(), b))

    assert told["completed"] == ["2,000", "1,500", "-500", "-25.0%"]
    assert told["p99"] == ["20.00", "23.00", "+3.00", "+15.0%"]
    assert told["CPU us/req"] == ["400.0", "390.0", "-10.0", "-2.5%"]
    assert told["spans/req"] == ["8.00", "8.00", "0"]


def of_load(request, p99, **figures):
    """A load as a summary has it."""
    figures = {"completed": 100, "failed": 0, "completed_per_s": 10.0} | figures
    return {"request": request, "latency_ms": {"p50": 1.0, "p99": p99, "max": p99}, **figures}


def test_each_of_several_loads_stands_beside_that_of_the_same_request():
    """By its place; another request in that place is no change of this one."""
    a = run(loads=[of_load("GET /", 5.0), of_load("GET /a", 5.0), of_load("PUT /" + "b" * 99, 5.0)])
    b = run(loads=[of_load("GET /", 6.0, completed=90), of_load("POST /a", 9.0), of_load("PUT /" + "b" * 99, 5.0)])
    comparison = compare(a, b)

    assert [(load.number, load.request) for load in comparison.loads] == [(0, "GET /"), (2, "PUT /" + "b" * 99)]
    assert comparison.loads[0].figures["latency_ms.p99"].change == 1.0
    told = screen(comparison)
    assert re.search(r"^\[0\] GET / +A +B +change +\n  completed +100 +90 +-10 +-10.0%", told, re.MULTILINE)
    assert re.search(r"^  p99 ms +5.00 +6.00 +\+1.00 +\+20.0%", told, re.MULTILINE)
    assert max(map(len, told.splitlines()[2:-3])) <= 80


def test_single_loads_are_not_compared_again():
    """Their figures are those of the runs; an older summary tells of none."""
    one, two = [of_load("GET /", 5.0)], [of_load("GET /", 5.0), of_load("GET /a", 5.0)]

    assert compare(run(loads=one), run(loads=one)).loads == []
    assert compare(run(loads=two), run()).loads == []
    assert [load.request for load in compare(run(loads=one), run(loads=two)).loads] == ["GET /"]


def test_what_grew_from_nothing_has_no_percentage():
    """Of 0 there is none; ten times as much and more is told as a factor."""
    told = rows(compare(run(), run(requests={"failed": 3}, latency_ms={"p99": 240.0, "p90": 76.0})))

    assert told["failed"] == ["0", "3", "+3"]
    assert told["p99"] == ["20.00", "240.00", "+220.00", "12x"]
    assert told["p90"] == ["8.00", "76.00", "+68.00", "+850.0%"]


def test_a_figure_that_was_not_measured_is_no_zero():
    """It is shown as such, and nothing changed by it."""
    comparison = compare(run(), run(latency_ms={"p99": None}, totals={"requests": 0}))
    told = rows(comparison)

    assert told["p99"] == ["20.00", "not measured"]
    assert told["spans/req"] == ["8.00", "not measured"]
    assert comparison.figures["latency_ms.p99"].model_dump() == {
        "a": 20.0,
        "b": None,
        "change": None,
        "change_percent": None,
    }


def test_accounts_that_are_empty_in_both_are_left_out():
    """But for what was lost or is missing: that there is nothing is what one wants to know."""
    told = rows(compare(run(), run(ledger={"dropped_overflow": 40, "acknowledged": 15_960, "lost": 40})))

    assert told["dropped, overflow"] == ["not measured", "40"]
    assert told["lost"] == ["0", "40", "+40"]
    assert told["unaccounted"] == ["0", "0", "0"]
    assert "dropped, retries" not in told


def test_an_older_summary_lacks_figures_and_a_newer_one_has_more():
    """Neither is an error: one is not measured, the other is left aside."""
    promised = {name: MADE[name] for name in ("schema", "scenario", "profile", "seed", "verdict")}
    newer = {**MADE, "weather": "fair", "latency_ms": {**MADE["latency_ms"], "p99_99": "late"}}

    told = rows(compare(Run.model_validate(promised), Run.model_validate(newer)))

    assert told["p99"] == ["not measured", "20.00"]
    assert told["completed"] == ["not measured", "2,000"]


def test_what_was_asked_differently_is_told_by_its_path():
    """With both values, as they were written."""
    as_run = {
        **SCENARIO,
        "gateway": {"workers": 4, "tracing": {"instrumentations": ["router", "balancer"], "sampling_rate": 1}},
        "load": [{**SCENARIO["load"][0], "rate": "300/s"}],
        "collector": {"latency": "5ms"},
    }
    b = run(as_run, seed=8, version="0.2.0", environment={"python": "CPython 3.13.0"})
    told = {difference.field: (difference.a, difference.b) for difference in compare(run(), b).differences}

    assert told == {
        "seed": (7, 8),
        "gateway.workers": (2, 4),
        "gateway.tracing.instrumentations": (["all"], ["router", "balancer"]),
        "load[0].rate": ("200/s", "300/s"),
        "collector.latency": (None, "5ms"),
        "version": ("0.1.0", "0.2.0"),
        "environment.python": ("CPython 3.11.7", "CPython 3.13.0"),
    }
    assert rows(compare(run(), b))["collector.latency"] == ["not set", "5ms"]


def test_a_list_of_names_is_compared_by_them():
    """A plugin that comes first moves no other one; where a name is missing or stands twice, it is the place."""
    plugins = [{"name": "opentelemetry", "config": {"queue": {"max_entries": 10}}}]
    more = [{"name": "jwt"}, {"name": "opentelemetry", "config": {"queue": {"max_entries": 20}}}]

    def fields(a, b):
        return [difference.field for difference in compare(run({"plugins": a}), run({"plugins": b})).differences]

    assert fields(plugins, more) == ["plugins.opentelemetry.config.queue.max_entries", "plugins.jwt.name"]
    assert fields(more, more[::-1]) == []
    assert fields([{"name": "a", "x": 1}, {"name": "a"}], [{"name": "a"}, {"name": "a"}]) == ["plugins[0].x"]


@pytest.mark.parametrize(
    ("a", "b", "fields"),
    [
        (
            {"faults": [{"at": "1s"}]},
            {"faults": [{"at": "1s"}, {"at": "2s", "slot": 0}]},
            ["faults[1].at", "faults[1].slot"],
        ),
        ({"faults": []}, {"faults": [{"at": "1s"}]}, ["faults[0].at"]),
        ({"upstreams": {"a": {}}}, {"upstreams": {"a": {}, "b": {}}}, ["upstreams.b"]),
        ({"gateway": {"config": "kong.yml"}}, {"gateway": {"config": {"plugins": []}}}, ["gateway.config"]),
        ({"x": None}, {}, []),
        ({"x": float("nan")}, {"x": float("nan")}, []),
        ({"name": "a", "thresholds": ["latency.p99 < 1s"]}, {"thresholds": ["latency.p99 < 2s"]}, []),
    ],
)
def test_what_one_scenario_alone_has_is_told_field_by_field(a, b, fields):
    """Null is the same as not set; thresholds have a table of their own."""
    assert [difference.field for difference in compare(run(a), run(b)).differences] == fields
    assert [difference.field for difference in compare(run(b), run(a)).differences] == fields


@pytest.mark.parametrize(
    ("changes", "caution"),
    [
        ({"environment": {"cpu": "Chip 2", "cores": 8}}, "the machines differ (cpu, cores): CPU and latency figures "),
        ({"environment": {"compiled": False}}, "the gateway is compiled in A alone: CPU figures do not compare"),
        ({"verdict": "invalid", "invalid_reason": "late"}, "B is invalid, its figures do not count: late"),
        ({"verdict": "interrupted"}, "B was interrupted: its figures are those of a shorter run"),
        ({"as_run": None}, "B has no scenario.yaml: nobody knows what differs in the scenario"),
    ],
)
def test_runs_that_do_not_compare_have_a_caution(changes, caution):
    """In plain words, beside that on noise, which always stands."""
    told = compare(run(), run(**changes))

    assert told.cautions[0].startswith(caution)
    assert told.cautions[1:] == [NOISE]
    assert f"caution: {told.cautions[0]}\ncaution: {NOISE}\n" in screen(told)
    assert compare(run(), run()).cautions == [NOISE]


@pytest.mark.parametrize("as_run", [SCENARIO, None])
def test_what_nobody_knows_is_not_called_the_same(as_run):
    """Where a scenario is missing more may differ than is told."""
    assert "\nno known difference in what was asked\n" in screen(compare(run(), run(as_run)))


def test_a_machine_that_an_older_summary_does_not_describe_is_not_called_another():
    """What is not known does not differ; before it could be told, no gateway was compiled."""
    plain = {**MADE["environment"], "compiled": False}
    older = {name: value for name, value in plain.items() if name not in ("kernel", "compiled")}
    a, b = (Run.model_validate({**MADE, "environment": told}) for told in (older, plain))

    assert not [caution for caution in compare(a, b).cautions if "compare" in caution]


def test_thresholds_that_changed_their_verdict_stand_first():
    """Then the others as A has them, and those that B alone was asked."""
    a = run(
        thresholds=[
            threshold("ledger.lost == 0", 0, True),
            threshold("latency.p99 < 30ms", 20, True),
            threshold("requests.sent > 5", 9, True),
            threshold("latency.p50 < 1ms", 4, False),
        ]
    )
    b = run(
        verdict="failed",
        thresholds=[
            threshold("latency.p50 < 1ms", 0.5, True),
            threshold("collector.orphans == 0", 0, True),
            threshold("latency.p99 < 30ms", None, False),
            threshold("ledger.lost == 0", 0, True),
        ],
    )
    comparison = compare(a, b)
    told = rows(comparison)

    assert [threshold.expression for threshold in comparison.thresholds] == [
        "latency.p99 < 30ms",
        "latency.p50 < 1ms",
        "ledger.lost == 0",
        "requests.sent > 5",
        "collector.orphans == 0",
    ]
    assert told["latency.p99 < 30ms"] == ["20 ms", "passed", "not measured", "FAILED"]
    assert told["requests.sent > 5"] == ["9", "passed", "not asked"]
    assert told["collector.orphans == 0"] == ["not asked", "0", "passed"]
    assert screen(comparison).splitlines()[-1] == "held in A and failed in B: latency.p99 < 30ms"


HELD, FAILED = ([threshold("ledger.lost == 0", 0, passed)] for passed in (True, False))


@pytest.mark.parametrize(
    ("a", "b", "exit_code", "end"),
    [
        ({"thresholds": HELD}, {"thresholds": HELD}, 0, "no threshold that held in A failed in B"),
        ({"thresholds": FAILED}, {"thresholds": FAILED}, 0, "no threshold that held in A failed in B"),
        ({"thresholds": FAILED}, {"thresholds": HELD}, 0, "no threshold that held in A failed in B"),
        ({"thresholds": HELD}, {"thresholds": FAILED}, 99, "held in A and failed in B: ledger.lost == 0"),
        ({}, {"thresholds": FAILED}, 0, "no threshold was asked of both"),
        ({"thresholds": HELD}, {"thresholds": FAILED, "verdict": "interrupted"}, 99, "held in A and failed in B: "),
        ({"thresholds": HELD}, {"thresholds": FAILED, "verdict": "invalid"}, 98, "the figures of an invalid run do "),
        ({"verdict": "invalid"}, {}, 98, "the figures of an invalid run do not count"),
    ],
)
def test_exit_code_is_99_when_a_threshold_broke_and_98_when_a_run_is_invalid(a, b, exit_code, end):
    """The last line says why; figures that do not count outweigh thresholds."""
    comparison = compare(run(**a), run(**b))

    assert comparison.exit_code == exit_code
    assert screen(comparison).splitlines()[-1].startswith(end)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_tables_fit_80_columns_and_nothing_is_cut_off(width):
    """A long value is folded; a narrower terminal breaks the lines by itself."""
    expression = "fault_window.outside_requests / fault_window.requests <= 99.5%"
    a = run(
        {"gateway": {"config": {"plugins": [{"config": {"traces_endpoint": "http://" + "a" * 90}}]}}},
        thresholds=[threshold(expression, None, False)],
        requests={"completed": 123_456_789},
        latency_ms={"max": None},
    )
    b = run({}, environment={"cpu": "Long Name of a Chip, 64-Core Processor @ 3.20GHz"}, requests={"completed": 1})
    told = screen(compare(a, b), width)
    tables = [line for line in told.splitlines() if not line.startswith("caution: ")]

    assert max(map(len, tables)) <= max(width, 80)
    assert "…" not in told
    assert "a" * 90 in re.sub(r"[^a]", "", told)
    assert told.count("not measured") >= 2


def test_a_path_that_does_not_fit_is_broken_where_a_field_begins():
    """The second line is indented, and the path can be read as one."""
    queue = {"plugins": [{"name": "opentelemetry", "config": {"queue": {"max_entries": 1000}}}]}
    comparison = compare(run({"gateway": {"config": {}}}), run({"gateway": {"config": queue}}))

    narrow, wide = screen(comparison), screen(comparison, 120)
    assert re.search(
        r"^  gateway\.config\.plugins\.opentelemetry\. +not set +1000 *\n    config\.queue", narrow, re.MULTILINE
    )
    assert re.search(
        r"^  gateway\.config\.plugins\.opentelemetry\.config\.queue\.max_entries +not set", wide, re.MULTILINE
    )


@pytest.mark.parametrize("width", [80, 100, 120])
def test_long_values_leave_the_paths_whole(width):
    """What is folded is the values; a path is still broken only where a field begins."""

    def exporting_to(host):
        plugin = {"name": "opentelemetry", "config": {"traces_endpoint": f"http://{host}"}}
        return run({"gateway": {"config": {"plugins": [plugin]}}})

    comparison = compare(exporting_to("collector"), exporting_to("a" * 200))

    head, *rows = screen(comparison, width).split("\n\n")[1].splitlines()

    pieces = [piece for row in rows if (piece := row[: head.index("A")].strip())]
    assert "".join(pieces) == "gateway.config.plugins.opentelemetry.config.traces_endpoint"
    assert all(piece.endswith(".") for piece in pieces[:-1])
    assert "".join(rows).count("a") > 200


def test_a_caution_is_one_line_where_it_is_kept():
    """A terminal gets it broken between words, a file as it is."""
    comparison = compare(run(), run(verdict="invalid", invalid_reason="late " * 40))

    assert f"\ncaution: {NOISE}\n" in screen(comparison)
    for line in screen(comparison, force_terminal=True, color_system=None).splitlines():
        assert len(line) <= 80


def test_colours_carry_nothing_that_the_words_do_not_say():
    """Without them every word is there, and a pipe gets none."""
    comparison = compare(run(thresholds=HELD), run(thresholds=FAILED, verdict="failed"))
    plain = screen(comparison, 200)
    coloured = screen(comparison, 200, force_terminal=True, color_system="standard")

    assert "\x1b" not in plain
    assert "\x1b" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_names_of_a_file_do_not_steer_the_terminal():
    """Control characters are replaced, and markup is text; the JSON document escapes them."""
    evil = "\x1b[31m\x9b2J[bold]:smile:\n"
    comparison = compare(
        run({evil: 1}, scenario=evil, thresholds=[threshold(evil, 0, True)]),
        run({"x": evil}, verdict="invalid", invalid_reason=evil, environment={"cpu": evil}),
    )
    told = screen(comparison, 120, force_terminal=True, color_system=None)

    assert set(re.findall(r"[^ -~\n�]", told)) == set()
    assert "[bold]:smile:" in told
    assert re.fullmatch(r"[ -~\n]+", comparison.to_json())
    assert json.loads(comparison.to_json())["a"]["scenario"] == evil


def test_json_is_the_same_as_a_document():
    """Schema, runs, differences, figures by their path, thresholds, cautions."""
    document = json.loads(compare(run(thresholds=HELD), run({**SCENARIO, "x": 1}, thresholds=FAILED)).to_json())

    assert list(document) == ["schema", "a", "b", "differences", "figures", "loads", "thresholds", "cautions"]
    assert document["schema"] == "kongsim.compare/1"
    assert document["a"].items() >= {"folder": "runs/1", "scenario": "outage", "verdict": "passed", "seed": 7}.items()
    assert document["differences"] == [{"field": "x", "a": None, "b": 1}]
    assert list(document["figures"]) == PATHS
    assert document["thresholds"] == [
        {
            "expression": "ledger.lost == 0",
            "a": {"value": 0, "passed": True},
            "b": {"value": 0, "passed": False},
        }
    ]


def test_every_field_of_the_document_is_documented():
    """Nobody has to guess what it means."""
    words = set(re.findall(r"\w+", PAGE))
    schema = Comparison.model_json_schema()

    assert {name for model in [schema, *schema["$defs"].values()] for name in model["properties"]} <= words
    assert {comparisons._SPANS_PER_REQUEST} <= words


def test_every_figure_is_a_field_of_the_summary():
    """Or what is compared would never be measured."""
    models = {name: info.annotation for name, info in Summary.model_fields.items()}
    ledger = set(FIGURES["ledger, spans"])

    for figure in {figure for figures in FIGURES.values() for figure in figures} - ledger:
        section, _, name = figure.path.partition(".")
        assert figure.path == comparisons._SPANS_PER_REQUEST or name in models[section].model_fields


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty folder to work in, with the folder of a run."""
    monkeypatch.chdir(tmp_path)
    Path("run-1").mkdir()
    Path("run-1/summary.json").write_text(json.dumps(MADE), encoding="utf-8")
    Path("run-1/scenario.yaml").write_text("name: outage\nseed: 7\n", encoding="utf-8")
    return tmp_path


def test_the_folder_of_a_run_is_read(runs):
    """The summary, and the scenario as it was run."""
    taken = read("run-1")

    assert (taken.folder, taken.scenario, taken.as_run) == ("run-1", "outage", {"name": "outage", "seed": 7})
    Path("run-1/scenario.yaml").unlink()
    assert read("run-1").as_run is None


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("", "expected the folder of a run, not an empty name; name two that kongsim run has written"),
        ("run-2", "run-2: no such folder; did you mean run-1?"),
        ("elsewhere", "elsewhere: no such folder; name one that kongsim run has written"),
        ("run-1/summary.json", "run-1/summary.json: is a file, expected the folder of a run; name run-1"),
        ("empty", "empty: has no summary.json; name the folder of a run that came to its end"),
        (
            "overhead",
            "overhead: holds a measurement of overhead, no run; name what you compare in --arms of kongsim overhead",
        ),
        ("a" * 300, f"{'a' * 300}/summary.json: cannot be read: File name too long"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line(runs, folder, line):
    """It names the folder, what was expected and what to do."""
    Path("empty").mkdir()
    Path("overhead").mkdir()
    Path("overhead/overhead.json").touch()

    with pytest.raises(UserError) as refused:
        read(folder)
    assert str(refused.value) == line


AGAIN = "run the scenario again"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", f"is no JSON: EOF while parsing a value at line 1 column 0; {AGAIN}"),
        ('{"schema": ', f"is no JSON: EOF while parsing a value at line 1 column 11; {AGAIN}"),
        ("[]", f"expected a mapping of fields, not an empty list; {AGAIN}"),
        ("{}", "schema: missing; read it with the kongsim that wrote it"),
        (
            json.dumps(MADE | {"schema": "kongsim.summary/2", "verdict": "unsure"}),
            "schema: expected kongsim.summary/1, not 'kongsim.summary/2'; read it with the kongsim that wrote it",
        ),
        (
            json.dumps(MADE | {"verdict": 3}),
            f"verdict: expected passed, failed, invalid or interrupted, not 3; {AGAIN}",
        ),
        (json.dumps(MADE | {"ledger": [1]}), f"ledger: expected a mapping of fields, not a list; {AGAIN}"),
        (
            json.dumps(MADE | {"latency_ms": {"p99": "20ms"}}),
            f"latency_ms.p99: expected a number or null, not '20ms'; {AGAIN}",
        ),
        (
            json.dumps(MADE | {"totals": {"requests": True}}),
            f"totals.requests: expected a number or null, not true; {AGAIN}",
        ),
        (
            json.dumps(MADE | {"requests": {"failed": 1e16}}),
            f"requests.failed: expected a number or null, not 1e+16; {AGAIN}",
        ),
        (json.dumps(MADE | {"thresholds": [{"passed": True}]}), f"thresholds[0].expression: missing; {AGAIN}"),
    ],
)
def test_a_summary_that_is_none_is_one_line(runs, text, line):
    """It names the file, the field, what was expected and what to do."""
    Path("run-1/summary.json").write_text(text, encoding="utf-8")

    with pytest.raises(UserError) as refused:
        read("run-1")
    assert str(refused.value) == f"run-1/summary.json: {line}"


def test_files_that_are_no_text_are_one_line(runs):
    """A summary that is binary, or a scenario that is no YAML."""
    Path("run-1/scenario.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(UserError, match=r"^run-1/scenario\.yaml:1: not YAML: "):
        read("run-1")

    Path("run-1/summary.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"^run-1/summary\.json: is not UTF-8 text; "):
        read("run-1")


def test_a_mistake_is_exit_code_2(runs, kongsim):  # noqa: F811 - the fixture
    """On stderr, and nothing on stdout."""
    code, out, err = kongsim("compare", "run-1", "run-2")

    assert (code, out) == (2, "")
    assert err == "kongsim: run-2: no such folder; did you mean run-1?\n"


# The properties that hold for any two runs.

numbers = st.none() | st.integers(-FIGURE_MAX, FIGURE_MAX) | st.floats(-FIGURE_MAX, FIGURE_MAX)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(0, 3), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def any_run(draw):
    """A run that may lack anything that a summary does not promise, with any name and any figure."""
    sections = {}
    for path in PATHS:
        section, _, name = path.partition(".")
        if name and draw(st.booleans()):
            sections.setdefault(section, {})[name] = draw(numbers)
    expressions = st.sampled_from(["ledger.lost == 0", "latency.p99 < 30ms", "a / b < 1%"]) | st.text(max_size=8)
    thresholds = st.builds(threshold, expressions, numbers, st.booleans())
    environment = st.dictionaries(st.sampled_from(["cpu", "cores", "compiled", "versions"]), values, max_size=4)
    made = Run.model_validate(
        {
            "schema": "kongsim.summary/1",
            **{name: draw(st.text(max_size=12)) for name in ("scenario", "profile", "invalid_reason")},
            "seed": draw(st.integers()),
            "verdict": draw(st.sampled_from(["passed", "failed", "invalid", "interrupted"])),
            "thresholds": draw(st.lists(thresholds, max_size=4)),
            "environment": draw(environment),
            "loads": draw(st.lists(st.builds(of_load, st.text(max_size=8), numbers, completed=numbers), max_size=3)),
            **sections,
        }
    )
    as_run = draw(st.none() | st.dictionaries(st.sampled_from(["gateway", "load", "faults"]), values))
    return made.model_copy(update={"folder": draw(st.text(max_size=12)), "as_run": as_run})


@given(any_run(), any_run())
def test_any_two_runs_can_be_compared(a, b):
    """Nothing raises, nothing steers the terminal, and the document is one."""
    comparison = compare(a, b)

    assert screen(comparison).replace("\n", "").isprintable()
    assert json.loads(comparison.to_json())["schema"] == "kongsim.compare/1"
    assert comparison.exit_code in {0, 98, 99}


@given(any_run())
def test_a_run_does_not_differ_from_itself(made):
    """No difference, no change, no threshold that changed."""
    comparison = compare(made, made)

    assert comparison.differences == []
    assert {change.change for change in comparison.figures.values()} <= {0, None}
    assert not any(threshold.changed for threshold in comparison.thresholds)


@given(any_run(), any_run())
def test_b_beside_a_mirrors_a_beside_b(a, b):
    """What one has more the other has less."""
    one, other = compare(a, b), compare(b, a)

    def mirrored(entries, key):
        return {(getattr(entry, key), repr(entry.b), repr(entry.a)) for entry in entries}

    def plain(entries, key):
        return {(getattr(entry, key), repr(entry.a), repr(entry.b)) for entry in entries}

    assert plain(one.differences, "field") == mirrored(other.differences, "field")
    assert plain(one.thresholds, "expression") == mirrored(other.thresholds, "expression")
    for path, change in one.figures.items():
        assert (change.a, change.b) == (other.figures[path].b, other.figures[path].a)
        assert change.change is None or change.change == -other.figures[path].change


def test_two_real_runs_are_compared_on_the_command_line(files, kongsim):  # noqa: F811 - fixtures
    """The second has twice the load, so that a threshold breaks: that is exit code 99."""
    asked = "thresholds=[requests.sent <= 25, ledger.unaccounted == 0]"
    for out, rate in (("a", "50/s"), ("b", "100/s")):
        finished = valid_run("short.yaml", "--out", out, "--set", asked, "--set", f"load[0].rate={rate}", cwd=files)
        assert finished.returncode == (0 if out == "a" else 99), finished.stderr

    code, told, err = kongsim("compare", "a", "b")
    assert (code, err) == (99, "")
    assert re.search(r"^  load\[0\]\.rate +50/s +100/s$", told, re.MULTILINE)
    assert re.search(r"^  completed +25 +50 +\+25 +\+100\.0%$", told, re.MULTILINE)
    assert told.endswith("held in A and failed in B: requests.sent <= 25\n")

    code, told, _err = kongsim("compare", "a", "b", "--json")
    document = json.loads(told)
    assert code == 99
    assert [difference["field"] for difference in document["differences"]] == ["load[0].rate"]
    measured = [path for path in PATHS if document["figures"][path]["b"] is None]
    assert measured == []

    code, told, _err = kongsim("compare", "a", "a")
    assert (code, "no known difference in what was asked\n" in told) == (0, True)
