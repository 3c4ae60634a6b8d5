import errno
import io
import json
import re
import resource
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs
from pyarrow.parquet import ParquetFile
from rich.console import Console

from sim.capture import Arrival
from sim.document import parse_override
from sim.error_log import LEVELS
from sim.errors import UserError
from sim.ledger import Ledger, PoolBalance
from sim.report import junit, page, parquet, tables
from sim.report.environment import environment
from sim.report.folder import folder
from sim.report.progress import Progress
from sim.report.recording import Recording
from sim.report.summary import Summary, summarize
from sim.scenario import load
from sim.scoreboard import FIELD_INDEX, POOLS, RECORDS_PER_SLOT, Scoreboard, new_row

SCENARIO = Path(__file__).parents[2] / "scenarios" / "quickstart.yaml"
DOCS = Path(__file__).parents[2] / "docs" / "summary-schema.md"

LOAD = {
    "state": "finished",
    "requests": {
        "offered": 3000,
        "sent": 3000,
        "completed": 2998,
        "failed": 2,
        "unsent": 0,
        "outstanding": 0,
        "resent": 1,
        "waited": 4,
    },
    "by_status": {200: 2990, 503: 8},
    "failed_by_reason": {"reset": 2},
    "busy_with_users": None,
    "executors": [
        {
            "offered": 3000,
            "completed": 2998,
            "failed": 2,
            "unsent": 0,
            "completed_per_s": 299.8,
            "by_status": {200: 2990, 503: 8},
            "latency_ms": {"mean": 4.2, "p50": 3.11, "p90": 9.4, "p99": 21.4, "p99_9": 45.1, "max": 62.7},
        }
    ],
    "latency_ms": {"mean": 4.2, "p50": 3.11, "p90": 9.4, "p99": 21.4, "p99_9": 45.1, "max": 62.7},
    "latest": {
        "requests": 75,
        "latency_ms": {"mean": 4.1, "p50": 3.0, "p90": 9.0, "p99": 20.0, "p99_9": 30.0, "max": 31.0},
    },
    "fault_window": {
        "requests": 300,
        "outside_requests": 2698,
        "latency_ms": {"mean": 5.0, "p50": 3.2, "p90": 12.0, "p99": 40.0, "p99_9": 62.7, "max": 62.7},
        "outside_latency_ms": {"mean": 4.0, "p50": 3.1, "p90": 9.0, "p99": 20.0, "p99_9": 31.0, "max": 32.0},
    },
    "lag_ms": {"mean": 0.1, "p50": 0.1, "p90": 0.2, "p99": 0.4, "p99_9": 0.5, "max": 2.0},
    "histogram": "x",
    "achieved_rate_per_s": 299.8,
    "valid": True,
    "invalid_reason": None,
    "connections": {"opened": 12, "open": 0},
    "elapsed_s": 10.0,
    "cpu_s": 1.2,
}

ORIGIN = {
    "requests": 2998,
    "by_status": {200: 2990, 503: 8},
    "sampling": {"traces": 400, "gateway": 200, "upstream": 200, "both": 100},
    "cpu_s": 0.7,
}

COLLECTOR = {
    "requests": 121,
    "by_status": {200: 120, 413: 1},
    "bytes": 1_000_000,
    "received": 17_664,
    "received_unique": 17_664,
    "received_duplicates": 0,
    **dict.fromkeys(("unchecked", "unanswered", "needless", "rejected"), 0),
    "received_per_s": 1766.4,
    "traces": 3_000,
    **dict.fromkeys(("orphans", "outside_parent", "unfinished", "rootless", "multi_rooted"), 0),
    "captured": None,
    "connections": {"accepted": 2, "open": 0},
    "cpu_s": 0.5,
}


def publish(record, requests, **values):
    """Publish what a worker would have counted after so many requests of six spans."""
    row = new_row()
    counted = {
        "requests": requests,
        "responses_2xx": requests,
        "cpu_ns": 100_000_000 + requests * 300_000,
        "cpu_ns_at_ready": 100_000_000,
        "rss_bytes": 42 << 20,
        "loop_lag_ns_max": 3_200_000,
        "created": requests * 6,
        "enqueued": requests * 6,
        "acknowledged": requests * 6,
        "KONG_SPAN.fetched": requests * 6,
        "KONG_SPAN.released": requests * 6,
    }
    for name, value in (counted | values).items():
        row[FIELD_INDEX[name]] = value
    record.publish(row)


@pytest.fixture
def reading():
    """A scoreboard of two slots: one worker lived through, one was killed with spans in its hands, and replaced."""
    scoreboard = Scoreboard(2)
    held = {"enqueued": 4_188, "acknowledged": 4_088, "spans_open": 12, "queue_depth": 100}
    for slot, pid, exit_code, requests, values in (
        (0, 23415, 0, 1500, {}),
        (1, 23417, -9, 700, held),
        (1, 23418, 0, 800, {}),
    ):
        record = scoreboard.open(slot, 1)
        record.started(pid)
        publish(record, requests, **values)
        record.end(exit_code)
    return scoreboard.read()


@pytest.fixture
def summary(reading):
    """Summarize the quickstart with what was reported, or with something else."""

    def make(*overrides, interrupted=False, left_out=False, workers=reading, collector=(), **changes):
        scenario = load(str(SCENARIO), [parse_override(text) for text in overrides])
        return summarize(
            scenario,
            load=LOAD | changes,
            collector=COLLECTOR | dict(collector),
            upstreams={"default": ORIGIN},
            workers=workers,
            environment=environment(),
            started_at=datetime(2025, 1, 1, 12, tzinfo=UTC),
            elapsed_s=14.2,
            error_log={"lines": 9, "bytes": 700, "debug": 0, "info": 0, **dict.fromkeys(LEVELS[2:], 1)},
            faults=[{"at_s": 5.0, "target": "worker", "slot": 1, "kind": "kill", "pid": 23417}],
            not_carried_out=scenario.faults if left_out else (),
            interrupted=interrupted,
        )

    return make


def text_of(summary, width, **console):
    """Print a result at some width and return it."""
    out = io.StringIO()
    tables.show(summary, "runs/quickstart-1", Console(file=out, width=width, **console))
    return out.getvalue()


def test_summary_has_the_promised_fields(summary):
    """Scripts may rely on these, of this schema."""
    written = json.loads(summary().to_json())

    assert written["schema"] == "kongsim.summary/1"
    assert (written["scenario"], written["profile"], written["seed"]) == ("quickstart", "kong", 7)
    assert written["requests"].items() >= {"offered": 3000, "sent": 3000, "completed": 2998, "failed": 2}.items()
    assert written["requests"].items() >= {"status_2xx": 2990, "status_5xx": 8}.items()
    assert written["latency_ms"] == LOAD["latency_ms"]
    assert written["collector"].items() >= {"received_unique": 17_664, "received_duplicates": 0, "refused": 1}.items()
    assert written["upstreams"]["default"]["by_status"] == {"200": 2990, "503": 8}
    assert written["environment"].keys() == {"cpu", "cores", "memory_mib", "kernel", "python", "compiled", "versions"}
    assert written["thresholds"][0] == {"expression": "ledger.unaccounted == 0", "value": 0, "passed": True}


def test_summary_tells_every_worker_process_apart(summary):
    """The dead one keeps its figures, and what it held is in its ledger."""
    workers = summary().workers

    assert [(worker.slot, worker.pid, worker.ended) for worker in workers] == [
        (0, 23415, "exit 0"),
        (1, 23417, "SIGKILL"),
        (1, 23418, "exit 0"),
    ]
    assert [worker.cpu_us_per_request for worker in workers] == [300.0, 300.0, 300.0]
    assert [worker.rss_mib for worker in workers] == [42.0, 42.0, 42.0]
    assert (workers[1].ledger["lost_in_request"], workers[1].ledger["lost_in_queue"]) == (12, 100)
    assert workers[0].pools["KONG_SPAN"].live == 0


def test_summary_adds_the_workers_up(summary):
    """Totals are sums, but for memory and lag, where the largest counts."""
    made = summary()

    assert (made.totals.requests, made.totals.spans, made.totals.deaths) == (3000, 18_000, 1)
    assert (made.totals.cpu_us_per_request, made.totals.rss_mib, made.totals.loop_lag_ms_max) == (300.0, 42.0, 3.2)
    assert made.totals.pools["KONG_SPAN"].fetched == 18_000
    assert made.totals.pools.keys() == set(POOLS)
    assert (made.ledger["created"], made.ledger["unaccounted"]) == (18_000, 0)


def test_what_a_worker_did_not_live_to_measure_is_null(summary):
    """One that is killed before it serves has no memory, CPU time or lag that anybody knows of, and 0 is none."""
    scoreboard = Scoreboard(1)
    record = scoreboard.open(0, 1)
    record.started(1)
    record.end(-9)
    nothing = summary(workers=scoreboard.read())

    served = scoreboard.open(0, 1)
    served.started(2)
    publish(served, 10)
    made = summary(workers=scoreboard.read())

    for account in (nothing.workers[0], nothing.totals, made.workers[0]):
        assert (account.rss_mib, account.cpu_s, account.loop_lag_ms_max) == (None, None, None)
    assert (made.totals.rss_mib, made.totals.cpu_s, made.totals.loop_lag_ms_max) == (42.0, 0.103, 3.2)
    assert text_of(nothing, 80)


def test_summary_keeps_what_too_many_incarnations_counted(summary):
    """When a slot's records are needed again, its earliest workers become one entry without a pid."""
    scoreboard = Scoreboard(1)
    for pid in range(1, RECORDS_PER_SLOT + 4):
        record = scoreboard.open(0, 1)
        record.started(pid)
        publish(record, 10)
        record.end(-9)

    made = summary(workers=scoreboard.read())

    earlier = made.workers[0]
    assert (earlier.pid, earlier.incarnations, earlier.requests, earlier.rss_mib) == (None, 3, 30, None)
    assert made.totals.deaths == RECORDS_PER_SLOT + 3
    assert "3 earlier" in text_of(made, 80)


@pytest.mark.parametrize(
    ("made_of", "verdict", "exit_code"),
    [
        ({}, "passed", 0),
        ({"overrides": ["thresholds=[requests.failed == 0]"]}, "failed", 99),
        ({"overrides": ["thresholds=[requests.failed == 0]"], "valid": False, "invalid_reason": "late"}, "invalid", 98),
        ({"valid": False, "invalid_reason": "late", "interrupted": True}, "interrupted", 130),
    ],
)
def test_verdict_decides_the_exit_code(summary, made_of, verdict, exit_code):
    """Figures that do not count outweigh thresholds, and an interruption outweighs both."""
    made = summary(*made_of.pop("overrides", ()), **made_of)

    assert (made.verdict, made.exit_code) == (verdict, exit_code)
    assert verdict.upper() in text_of(made, 80)


def test_latency_is_null_when_nothing_was_completed(summary):
    """No answers are not fast answers."""
    made = summary(
        "thresholds=[latency.p99 < 1s]",
        requests=LOAD["requests"] | {"completed": 0},
        by_status={},
        latency_ms=dict.fromkeys(LOAD["latency_ms"], 0.0),
    )

    assert made.latency_ms.p99 is None
    assert made.verdict == "failed"
    assert "not measured" in text_of(made, 80)


TWO_LOADS = (
    "load=[{executor: constant-arrival-rate, rate: 250/s, duration: 10s},"
    "{executor: ramping-arrival-rate, startTime: 5s, stages: [{target: 100/s, duration: 10s}],"
    " request: {method: POST, path: '/orders?a=%20'}}]"
)


def test_each_of_several_loads_has_its_own_account(summary):
    """In the order of the file, by what is sent; the rate of all is that over the whole time."""
    of_post = LOAD["executors"][0] | {"offered": 500, "completed": 0, "failed": 500, "completed_per_s": 0.0}
    of_post |= {"by_status": {}, "latency_ms": {}}
    made = summary(TWO_LOADS, executors=[*LOAD["executors"], of_post])

    assert [(load.request, load.offered, load.failed) for load in made.loads] == [
        ("GET /", 3000, 2),
        ("POST /orders?a=%20", 500, 500),
    ]
    assert made.loads[0].by_status == {"200": 2990, "503": 8}
    assert (made.loads[0].latency_ms.p99, made.loads[1].latency_ms.p99) == (21.4, None)
    assert made.load.duration_s == 15
    assert made.load.offered_rate_per_s == 3000 / 15
    text = text_of(made, 80)
    assert re.search(r"\[0\] GET / +2,998 +2 +8 +300 +3.11 +21.40 +62.70", text)
    assert re.search(r"\[1\] POST /orders\?a=%20 +0 +500 +0 +0 +- +- +-", text)


def test_load_with_a_long_path_takes_a_few_lines(summary):
    """Whose figures are all there all the same."""
    made = summary(TWO_LOADS.replace("/orders", "/orders" * 40), executors=LOAD["executors"] * 2)
    lines = text_of(made, 80).splitlines()

    assert max(map(len, lines)) <= 80
    [first] = [number for number, line in enumerate(lines) if "[1] POST" in line]
    assert re.search(r"POST +2,998 +2 +8 +300 +3.11 +21.40 +62.70", lines[first])
    assert lines[first + 3].rstrip().endswith("/…")
    assert not lines[first + 4].strip()


USERS = "load=[{executor: ramping-vus, startVUs: 2, stages: [{target: 8, duration: 10s}, {target: 0, duration: 5s}]}]"


def test_virtual_users_have_no_rate_and_no_lag(summary):
    """Nothing is told of what nobody asked for."""
    made = summary(USERS, lag_ms=dict.fromkeys(LOAD["lag_ms"]))

    assert (made.load.offered_rate_per_s, made.load.lag_ms["p99"]) == (None, None)
    assert made.loads[0].executor == "ramping-vus"
    text = text_of(made, 80)
    assert ", virtual users for 15s, run of" in text
    mixed = summary(
        USERS.replace("load=[", "load=[{executor: constant-arrival-rate, rate: 1/s, duration: 1s}, "),
        executors=2 * LOAD["executors"],
    )
    assert ", arrivals and virtual users for 15s, run of" in text_of(mixed, 80)
    assert re.search(r"3,000 +3,000 +2,998 +2 +8 +- +299.8", text)
    assert re.search(r"45.10 +62.70 +-\n", text)


def test_virtual_users_who_waited_for_the_generator_are_told(summary):
    """It is one process: what it cannot do nobody has asked of the gateway."""
    told = "the load generator was busy 81% of the time that it had virtual users: they waited for it too"

    assert summary(busy_with_users=0.81).warnings[0].startswith(told)
    assert not summary(busy_with_users=0.8).warnings
    failed = {"completed": 100, "failed": 2900}
    assert not summary(busy_with_users=0.81, requests=LOAD["requests"] | failed).warnings


def test_a_single_load_is_told_once(summary):
    """What the table of all says need not be said again."""
    assert "each load" not in text_of(summary(), 80)


def test_summary_is_read_as_it_was_written(summary, tmp_path):
    """Another program of this version can take it up again."""
    made = summary()
    made.write(tmp_path / "summary.json")

    assert Summary.model_validate_json((tmp_path / "summary.json").read_text(encoding="utf-8")) == made


def test_every_field_of_the_summary_is_documented():
    """Nobody has to guess what a figure means."""
    words = set(re.findall(r"\w+", DOCS.read_text(encoding="utf-8")))

    schema = Summary.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    between = {"status_3xx", "status_4xx"}  # "status_2xx to status_5xx"
    assert {name for model in models for name in model["properties"]} - between <= words
    assert set(asdict(Ledger())) <= words


@pytest.mark.parametrize("width", [80, 120])
def test_result_fits_the_width(summary, width):
    """No line is longer than the terminal is wide, and none is cut."""
    lines = text_of(summary(), width).splitlines()

    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


def test_result_is_plain_when_it_is_not_a_terminal(summary):
    """No escape sequences in a file or a pipe."""
    made = summary()

    assert "\x1b" not in text_of(made, 80)
    assert "\x1b" in text_of(made, 80, force_terminal=True, color_system="standard")


def test_result_shows_the_ledger_of_each_process_and_in_all(summary):
    """A column each, the accounts in rows; every figure of the ledger is there."""
    made = summary()
    out = text_of(made, 80)

    rows = {row[: tables._NAME_WIDTH + 2].strip(): row.split()[-4:] for row in ledger_lines(out)}
    assert rows["created"] == ["9,000", "4,200", "4,800", "18,000"]
    assert rows["lost in request"] == ["0", "12", "0", "12"]
    assert rows["lost in queue"] == ["0", "100", "0", "100"]
    assert rows["unaccounted"] == ["0", "0", "0", "0"]
    shown = len(rows) + len(tables._RARE)
    assert shown == len(asdict(Ledger()))


def test_ledger_columns_go_on_below_where_they_do_not_fit(summary):
    """Many workers on a narrow terminal: two blocks, the sum at the very end."""
    scoreboard = Scoreboard(8)
    for slot in range(8):
        record = scoreboard.open(slot, 1)
        record.started(100 + slot)
        publish(record, 10)
        record.end(0)

    out = text_of(summary(workers=scoreboard.read()), 80)

    assert max(map(len, out.splitlines())) <= 80
    created = [re.findall(r"[\d,]+", line) for line in out.splitlines() if line.strip().startswith("created")]
    assert created == [["60"] * 5, ["60"] * 3 + ["480"]]


def test_failed_thresholds_say_so_in_words(summary):
    """Without colours too."""
    out = text_of(summary("thresholds=[requests.failed == 0, requests.failed / requests.sent < 1%]"), 80)

    assert re.search(r"requests\.failed == 0 +2 +FAILED", out)
    assert re.search(r"requests\.failed / requests\.sent < 1% +0\.0667% +passed", out)


def test_a_narrow_terminal_cuts_no_figure_off(summary):
    """Its lines are broken where it ends; half a number would be another one."""
    assert text_of(summary(), 40) == text_of(summary(), 80)
    assert "…" not in text_of(summary(), 40)


def test_what_is_no_table_is_not_broken(summary):
    """A path can be copied, and a warning found with grep, however long."""
    told = summary()
    long = told.model_copy(update={"warnings": ["long " * 40]})
    out = io.StringIO()
    tables.show(long, "runs/" + "[b]folder/" * 20, Console(file=out, width=80))

    assert out.getvalue().splitlines()[-1] == "results in runs/" + "[b]folder/" * 20
    assert "warning: " + ("long " * 40) in out.getvalue()


@pytest.mark.parametrize(("interrupted", "why"), [(True, "the run was interrupted"), (False, "nobody was there")])
def test_a_fault_that_was_not_carried_out_says_why(summary, interrupted, why):
    """Who pressed Ctrl-C before its time looks for no worker that was missing."""
    warnings = summary(left_out=True, interrupted=interrupted).warnings

    assert warnings == [f"fault worker kill at 5s was not carried out: {why}"]


def test_progress_is_one_line_where_nobody_watches(reading):
    """A log gets what was started, not a picture of it."""
    out = io.StringIO()
    progress = Progress(Console(file=out, width=80))

    progress.start(load(str(SCENARIO)), "http://127.0.0.1:8000")
    progress.update({"elapsed_s": 1.0, "load": LOAD, "workers": reading, "collector": COLLECTOR})
    progress.close()

    assert out.getvalue() == "quickstart: 2 workers on http://127.0.0.1:8000, profile kong, 300/s for 10s\n"


def test_progress_tells_each_load():
    """Its rates, how long it goes on, and when it begins, where that is not at once."""
    out = io.StringIO()
    Progress(Console(file=out, width=80)).start(load(str(SCENARIO), [parse_override(TWO_LOADS)]), "http://127.0.0.1:1")

    assert out.getvalue().endswith(", profile kong, 250/s for 10s, 0/s to 100/s for 10s after 5s\n")


@pytest.mark.parametrize(
    ("load_of_users", "told"),
    [
        (USERS, "2 to 8 to 0 virtual users for 15s"),
        (USERS.replace("target: 0", "target: 2"), "2 to 8 to 2 virtual users for 15s"),
        ("load=[{executor: constant-vus, duration: 1m}]", "1 virtual user for 60s"),
        ("load=[{executor: constant-vus, vus: 2, duration: 1m}]", "2 virtual users for 60s"),
    ],
)
def test_progress_tells_how_many_users_there_are(load_of_users, told):
    """At the beginning and at the end of each stage."""
    out = io.StringIO()
    scenario = load(str(SCENARIO), [parse_override("faults=[]"), parse_override(load_of_users)])
    Progress(Console(file=out, width=80)).start(scenario, "http://127.0.0.1:1")

    assert out.getvalue().endswith(f", profile kong, {told}\n")


def test_progress_shows_living_workers_and_what_they_do():
    """Requests, their rate, CPU and queue of each worker, between two moments."""
    scoreboard = Scoreboard(1)
    record = scoreboard.open(0, 1)
    record.started(4711)
    out = io.StringIO()
    progress = Progress(Console(file=out, width=80, force_terminal=True, color_system=None))

    progress.start(load(str(SCENARIO)), "http://127.0.0.1:8000")
    for elapsed_s, requests in ((1.0, 100), (3.0, 500)):
        publish(record, requests, state=1, queue_depth=60, acknowledged=requests * 6 - 60)
        reports = {"load": LOAD | {"state": "running"}, "collector": COLLECTOR}
        progress.update({"elapsed_s": elapsed_s, "workers": scoreboard.read(), **reports})
    progress.close()

    out = out.getvalue()
    assert re.search(r"0 +4711 +serving +500 +200 +6 +42 +60 +0", out)
    assert "3.0 s of 10 s" in out
    assert re.search(r"spans +3,000 created +2,940 acknowledged +0 lost", out)


def test_progress_leaves_nothing_of_a_view_that_is_taller_than_the_terminal():
    """What does not fit is never printed, at the end neither: it would scroll away and could not be taken back."""
    scoreboard = Scoreboard(30)
    for slot in range(30):
        record = scoreboard.open(slot, 1)
        record.started(4700 + slot)
        publish(record, 1, state=1)
    out = io.StringIO()
    progress = Progress(Console(file=out, width=80, height=10, force_terminal=True, color_system=None))

    progress.start(load(str(SCENARIO)), "http://127.0.0.1:8000")
    reports = {"load": LOAD | {"state": "running"}, "collector": COLLECTOR}
    progress.update({"elapsed_s": 1.0, "workers": scoreboard.read(), **reports})
    progress.close()

    assert "4700" in out.getvalue()
    assert "4729" not in out.getvalue()


def test_progress_does_not_mind_a_terminal_that_is_gone():
    """Whoever closes the window ends the view, not the run."""

    class Gone(io.StringIO):
        def write(self, _text):
            raise OSError(errno.EIO, "Input/output error")

    progress = Progress(Console(file=Gone(), width=80, force_terminal=True))

    progress.start(load(str(SCENARIO)), "http://127.0.0.1:8000")
    reports = {"load": LOAD | {"state": "running"}, "collector": COLLECTOR}
    progress.update({"elapsed_s": 1.0, "workers": Scoreboard(1).read(), **reports})
    progress.close()


def test_progress_may_be_closed_before_it_started():
    """A run that fails early cleans up all the same."""
    Progress(Console(file=io.StringIO())).close()


def test_folder_keeps_no_result_of_an_earlier_run(tmp_path):
    """A run that fails or is interrupted leaves none that could be taken for its own; other files are not touched."""
    of_runs = ("summary.json", "junit.xml", "report.html", "spans.parquet", "workers.parquet")
    for name in (*of_runs, ".summary.json.part", "overhead.json", "overhead.html", "blocks.csv", "notes.txt"):
        (tmp_path / name).touch()

    with pytest.raises(KeyboardInterrupt), folder(load(str(SCENARIO)), str(tmp_path)):
        raise KeyboardInterrupt

    assert {path.name for path in tmp_path.iterdir()} == {"scenario.yaml", "notes.txt"}


def test_folder_holds_the_scenario_as_run(tmp_path, monkeypatch):
    """Each run has its own, named after the scenario."""
    monkeypatch.chdir(tmp_path)
    scenario = load(str(SCENARIO), [parse_override("load[0].rate=5/s")])

    with folder(scenario, None) as first, folder(scenario, None) as second:
        assert first != second
        assert re.fullmatch(r"runs/quickstart-\d{8}-\d{6}(-\d+)?", str(first))
        assert load(str(first / "scenario.yaml")) == scenario


def test_runs_that_begin_at_once_have_a_folder_each(tmp_path, monkeypatch):
    """Also where neither saw that of the other when it looked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    scenario = load(str(SCENARIO))

    with folder(scenario, None) as first, folder(scenario, None) as second:
        assert first != second


def test_folder_of_a_run_that_could_not_start_is_removed(tmp_path):
    """Unless it was there before."""
    scenario = load(str(SCENARIO))

    for path, remains in ((tmp_path / "new", False), (tmp_path, True)):
        with pytest.raises(UserError, match="busy"), folder(scenario, str(path)):
            raise UserError("busy")
        assert path.exists() == remains


def test_folder_is_that_of_one_run_at_a_time(tmp_path):
    """A second run is refused in one line, and touches nothing; when the first has ended the folder is free."""
    scenario, other = (load(str(SCENARIO), [parse_override(f"seed={seed}")]) for seed in (1, 2))
    out = tmp_path / "out"

    with folder(scenario, str(out)):
        (out / "summary.json").touch()
        with pytest.raises(UserError) as refused, folder(other, str(out)):
            pass
        assert str(refused.value) == f"{out}: another run is under way there; name another folder with --out"
        assert (out / "summary.json").exists()
        assert load(str(out / "scenario.yaml")) == scenario
    with folder(other, str(out)):
        assert {path.name for path in out.iterdir()} == {"scenario.yaml"}


def test_folder_of_a_run_that_was_killed_is_free(tmp_path):
    """What it leaves behind is in nobody's way."""
    code = f"from sim.report.folder import folder; from sim.scenario import load; out = {str(tmp_path)!r}\n"
    code += f"with folder(load({str(SCENARIO)!r}), out): print('held', flush=True); input()\n"
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, cwd=SCENARIO.parents[1], stdin=pipe, stdout=pipe, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is under way"), folder(load(str(SCENARIO)), str(tmp_path)):
            pass
        run.kill()

    with folder(load(str(SCENARIO)), str(tmp_path)) as path:
        assert path == tmp_path


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    """One line, with the cure."""
    (tmp_path / "file").touch()

    refused = pytest.raises(UserError, match=r"/file/x: cannot write there: .*; name another folder with --out")
    with refused, folder(load(str(SCENARIO)), str(tmp_path / "file" / "x")):
        pass


def test_folder_that_is_refused_stays_as_it_was(tmp_path):
    """Also when that shows only after its scenario.yaml was made."""
    (tmp_path / "summary.json").mkdir()

    refused = pytest.raises(UserError, match=r"/summary.json: cannot write there: Is a directory; name another folder")
    with refused, folder(load(str(SCENARIO)), str(tmp_path)):
        pass

    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("existed", [False, True])
def test_folder_that_takes_no_scenario_is_left_without_one(tmp_path, existed):
    """On a full disk: an empty scenario.yaml would be one that cannot be run."""
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    if existed:
        out.mkdir()
    scenario = load(str(SCENARIO))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write there: File too large"), folder(scenario, str(out)):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert ([*out.iterdir()] == []) if existed else not out.exists()


def test_spans_that_are_not_kept_are_told(summary):
    """Who counts the rows of spans.parquet knows that there were more."""
    assert summary(collector={"captured": 17_664}).warnings == []
    (warning,) = summary(collector={"captured": 9_000}).warnings

    assert warning.startswith("spans.parquet holds the first 9,000 of the 17,664 spans that arrived: ")


# Over time.


def recorded(moments=4, **limits):
    """A recording of two workers, of which the second is killed after two moments, and replaced."""
    recording = Recording(**limits)
    recording.begin(load_s=100.0, unix_ns=T0)
    scoreboard = Scoreboard(2)
    first, second = scoreboard.open(0, 1), scoreboard.open(1, 1)
    first.started(23415)
    second.started(23417)
    for turn in range(moments):
        if turn == 2:
            second.end(-9)
            second = scoreboard.open(1, 1)
            second.started(23418)
        for record in (first, second):
            publish(record, 100 * turn, state=1, queue_depth=turn, **{"KONG_SPAN.free": 7})
        requests = {"sent": 200 * turn, "completed": 200 * turn - turn, "failed": turn}
        load = LOAD | {"elapsed_s": turn + 0.5, "requests": LOAD["requests"] | requests}
        load |= {"latest": LOAD["latest"] | {"requests": 75 * (turn > 0)}}
        reading = scoreboard.read()
        recording.add({"elapsed_s": float(turn), "load": load, "workers": reading, "collector": COLLECTOR})
    return recording


T0 = 1_700_000_000_000_000_000


def test_recording_samples_living_workers_and_the_load():
    """The dead one has no more samples, its successor begins; what nobody completed has no latency."""
    samples = recorded().samples

    assert [[worker.pid for worker in sample.workers] for sample in samples] == [
        [23415, 23417],
        [23415, 23417],
        [23415, 23418],
        [23415, 23418],
    ]
    assert samples[0].load == (0.5, 0, 0, 0, None, None)
    assert samples[3].load == (3.5, 600, 597, 3, 3.0, 20.0)
    assert samples[3].workers[0].values[FIELD_INDEX["requests"]] == 300


def test_recording_of_a_load_without_workers_has_room_too():
    """They have left for good, and the load goes on for a day."""
    recording = Recording(rows_max=10)
    reading = Scoreboard(1).read()
    for turn in range(100):
        recording.add({"elapsed_s": float(turn), "load": LOAD, "workers": reading, "collector": COLLECTOR})

    assert len(recording.samples) <= 10


@pytest.mark.parametrize(("moments", "step_s"), [(5, 1), (6, 2), (10, 2), (11, 4), (100, 32)])
def test_recording_of_any_length_has_room(moments, step_s):
    """Beyond its rows every second sample is given up, again and again, and those that are left stand evenly."""
    samples = recorded(moments, rows_max=10).samples

    assert [sample.elapsed_s for sample in samples] == list(range(0, moments, step_s))


def test_workers_over_time_are_a_table(tmp_path):
    """A row for each worker and moment, with every number of the scoreboard."""
    parquet.write_workers(recorded(), tmp_path / "workers.parquet")

    rows = ParquetFile(tmp_path / "workers.parquet").read(use_threads=False).to_pylist()
    assert [(row["elapsed_s"], row["slot"], row["incarnation"], row["pid"]) for row in rows[3:6]] == [
        (1.0, 1, 1, 23417),
        (2.0, 0, 1, 23415),
        (2.0, 1, 2, 23418),
    ]
    assert (
        rows[-1].items()
        >= {
            "time_ns": T0 + 103_000_000_000,
            "generation": 1,
            "state": "serving",
            "requests": 300,
            "rss_bytes": 42 << 20,
            "queue_depth": 3,
            "KONG_SPAN_free": 7,
            "acknowledged": 1800,
        }.items()
    )
    assert len(rows[0]) == 6 + len(FIELD_INDEX)


def export(*spans, service="kong"):
    """The bytes of an export request."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    if service:
        group.resource.attributes.add(key="service.name", value={"string_value": service})
    group.scope_spans.add(scope={"name": "kong-internal"}, spans=spans)
    return request.SerializeToString()


def spans_of(recording, tmp_path):
    parquet.write_spans(recording, tmp_path / "spans.parquet")
    return ParquetFile(tmp_path / "spans.parquet").read(use_threads=False).to_pylist()


def test_spans_are_a_table_with_a_row_for_each_that_arrived(tmp_path):
    """As often as they came, the later ones marked; without those that the collector refused."""
    recording = recorded()
    root = Span(trace_id=b"t" * 16, span_id=b"a" * 8, name="kong", kind=2, start_time_unix_nano=T0)
    child = Span(trace_id=b"t" * 16, span_id=b"b" * 8, parent_span_id=b"a" * 8, name="kong.router", kind=1)
    child.start_time_unix_nano, child.end_time_unix_nano = T0 + 5, T0 + 7
    recording.capture.add(Arrival(103_000_000_000, 0, export(root, child)), 2)
    recording.capture.add(Arrival(104_000_000_000, 1, export(root, child)), 1)

    rows = spans_of(recording, tmp_path)

    assert [(row["name"], row["duplicate"]) for row in rows] == [
        ("kong", False),
        ("kong.router", False),
        ("kong.router", True),
    ]
    assert rows[0].items() >= {"parent_span_id": None, "kind": "server", "end_ns": None, "status": "unset"}.items()
    assert rows[2] == {
        "trace_id": "74" * 16,
        "span_id": "62" * 8,
        "parent_span_id": "61" * 8,
        "name": "kong.router",
        "kind": "internal",
        "start_ns": T0 + 5,
        "end_ns": T0 + 7,
        "status": "unset",
        "status_message": None,
        "attributes": "{}",
        "events": None,
        "links": None,
        "scope": "kong-internal",
        "service": "kong",
        "resource": '{"service.name":"kong"}',
        "received_ns": T0 + 104_000_000_000,
        "duplicate": True,
    }


def test_what_a_span_carries_is_json_in_the_table(tmp_path):
    """Attributes, events and links keep their types; what JSON lacks is text."""
    recording = recorded()
    span = Span(trace_id=b"t" * 16, span_id=b"a" * 8, start_time_unix_nano=2**64 - 1)
    values = {
        "text": ({"string_value": "caf\u00e9"}, "caf\u00e9"),
        "whole": ({"int_value": 2**62}, 2**62),
        "number": ({"double_value": 9000.0}, 9000.0),
        "infinite": ({"double_value": float("inf")}, "inf"),
        "yes": ({"bool_value": True}, True),
        "bytes": ({"bytes_value": b"\x00\xff"}, "00ff"),
        "none": ({}, None),
        "list": ({"array_value": {"values": [{"int_value": 1}, {}]}}, [1, None]),
        "map": ({"kvlist_value": {"values": [{"key": "a", "value": {"int_value": 1}}]}}, {"a": 1}),
    }
    for key, (value, _expected) in values.items():
        span.attributes.add(key=key, value=value)
    span.events.add(name="exception", time_unix_nano=T0).attributes.add(key="k", value={"string_value": "v"})
    span.links.add(trace_id=b"u" * 16, span_id=b"c" * 8)
    span.status.code, span.status.message = 2, "refused"
    recording.capture.add(Arrival(0, 0, export(span, service=None)), 1)

    (row,) = spans_of(recording, tmp_path)

    assert json.loads(row["attributes"]) == {key: expected for key, (_value, expected) in values.items()}
    assert json.loads(row["events"]) == [{"name": "exception", "time_ns": T0, "attributes": {"k": "v"}}]
    assert json.loads(row["links"]) == [{"trace_id": "75" * 16, "span_id": "63" * 8, "attributes": {}}]
    assert (row["status"], row["status_message"], row["service"]) == ("error", "refused", None)
    assert row["start_ns"] is None  # the last ns that 64 bits can tell


def test_a_resource_says_the_same_of_its_service_in_both_columns(tmp_path):
    """The last of several values, as in every object of JSON; what is no text is no name."""
    recording = recorded()
    for values in (["a", "b"], [3]):
        request = ExportTraceServiceRequest()
        group = request.resource_spans.add()
        for value in values:
            kind = "string_value" if isinstance(value, str) else "int_value"
            group.resource.attributes.add(key="service.name", value={kind: value})
        group.scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"a" * 8)
        recording.capture.add(Arrival(0, 0, request.SerializeToString()), 1)

    assert [(row["service"], row["resource"]) for row in spans_of(recording, tmp_path)] == [
        ("b", '{"service.name":"b"}'),
        (None, '{"service.name":3}'),
    ]


def test_a_run_without_samples_and_spans_has_empty_tables(tmp_path):
    """With all of their columns, so that a query finds none instead of failing."""
    recording = Recording()
    parquet.write_workers(recording, tmp_path / "workers.parquet")

    assert spans_of(recording, tmp_path) == []
    assert ParquetFile(tmp_path / "spans.parquet").schema_arrow.names == parquet.SPANS.names
    assert ParquetFile(tmp_path / "workers.parquet").schema_arrow.names == parquet.WORKERS.names


@pytest.mark.parametrize("name", ["s3:", "file:", "caf\udce9"])
def test_tables_are_written_into_a_folder_of_any_name(tmp_path, monkeypatch, name):
    """It is a path and no address, and may be in another encoding."""
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir()
    parquet.write_workers(recorded(), folder / "workers.parquet")
    parquet.write_spans(recorded(), folder / "spans.parquet")

    assert {path.name for path in folder.iterdir()} == {"workers.parquet", "spans.parquet"}


def test_every_column_is_documented():
    """Nobody has to guess a unit."""
    words = set(re.findall(r"\w+", (DOCS.parent / "run-folder.md").read_text(encoding="utf-8")))

    pools = {f"{tag}_{name}" for tag in POOLS[1:] for name in PoolBalance.__slots__}  # "the same of"
    assert {*parquet.WORKERS.names, *parquet.SPANS.names} - pools <= words
    assert set(POOLS) <= words


# report.html.


class Shown(HTMLParser):
    """A page as it is read: its text, what stands in each cell of its tables, and its plots."""

    def __init__(self, summary, recording, tmp_path):
        super().__init__()
        self.rows, self.text, self.inside, self.tags = [], [], [], Counter()
        page.write(summary, recording, tmp_path / "report.html")
        self.source = (tmp_path / "report.html").read_text(encoding="utf-8")
        self.feed(self.source.replace(get_plotlyjs(), ""))
        self.close()
        drawn = re.findall(r"Plotly\.newPlot\(document[.\w]+,(.*)\)</script>", self.source)
        self.plots = [json.loads(f"[{arguments}]") for arguments in drawn]

    def handle_starttag(self, tag, _attributes):
        self.tags[tag] += 1
        self.inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if {"script", "style"}.isdisjoint(self.inside):
            self.text.append(data)
        if {"th", "td"} & set(self.inside):
            self.rows[-1][-1] += data

    def lines(self, plot):
        """The lines of a plot that stand in the page's order, by name; shadows of faults have none."""
        return {trace["name"]: trace for trace in self.plots[plot][0] if "name" in trace}


@pytest.fixture
def shown(summary, tmp_path):
    """Write a page and read it."""
    return lambda made=None, recording=None: Shown(made or summary(), recording or recorded(), tmp_path)


def test_page_says_first_what_came_of_the_run(summary, shown):
    """Verdict and thresholds, each with its value."""
    page = shown(summary("thresholds=[requests.failed == 0, requests.failed / requests.sent < 1%]"))

    text = "".join(page.text)
    assert (
        text.index("FAILED") < text.index("thresholds that did not hold: 1 of 2") < text.index("Requests and latency")
    )
    assert page.rows[:3] == [
        ["expression", "value", ""],
        ["requests.failed == 0", "2", "FAILED"],
        ["requests.failed / requests.sent < 1%", "0.0667%", "passed"],
    ]


def test_page_says_when_the_run_was_in_its_time_zone(summary, shown):
    """Who reads it may be in another one."""
    made = summary().model_copy(update={"started_at": "2026-01-02T03:04:05.678+05:30"})

    assert "begun 2026-01-02 03:04:05 +05:30" in "".join(shown(made).text)


def test_page_has_the_tables_of_the_terminal(summary, shown):
    """Every one of them, cell by cell, and the ledger in one piece."""
    made = summary()
    page = shown(made)

    expected = []
    for _title, parts in tables.sections(made, 10_000):
        for table in (part for part in parts if not isinstance(part, str)):
            columns = [[column.header, *column.cells] for column in table.columns]
            expected += [[str(cell) for cell in row] for row in zip(*columns, strict=True)]
    assert sorted(page.rows) == sorted(expected)
    assert ["", "slot 0\n23415\nexit 0", "slot 1\n23417\nSIGKILL", "slot 1\n23418\nexit 0", "all"] in page.rows
    assert ["  enqueued", "9,000", "4,188", "4,800", "17,988"] in page.rows


def test_page_plots_the_load_over_time(shown):
    """Rates are those of a second or more; failed requests are a line when there are any."""
    page = shown()

    rates = page.lines(0)
    assert (rates["sent"]["x"], rates["sent"]["y"]) == ([0.5, 1.5, 2.5, 3.5], [0, 200, 200, 200])
    assert rates["failed"]["y"] == [0, 1, 1, 1]
    assert page.lines(1)["p99"]["y"] == [None, None, 20, 20, 20]
    assert [title for title in page.text if title.startswith("Latency")] == ["Latency, ms"]


def test_page_plots_each_worker_process(shown):
    """Those of one slot have its colour; one that has died has no more points."""
    page = shown()

    names = ["slot 0, pid 23415", "slot 1, pid 23417", "slot 1, pid 23418"]
    assert [list(page.lines(plot)) for plot in range(2, 6)] == [names] * 4
    waiting, resident, cpu = page.lines(4), page.lines(5), page.lines(3)
    assert (waiting[names[0]]["x"], waiting[names[0]]["y"]) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert (waiting[names[1]]["x"], waiting[names[2]]["x"]) == ([0, 1], [2, 3])
    assert resident[names[0]]["y"] == [42] * 4
    assert cpu[names[0]]["y"] == [3] * 3
    colours = [waiting[name]["line"]["color"] for name in names]
    assert colours[0] != colours[1] == colours[2]


def test_page_tells_nothing_of_the_first_moment_of_the_load(shown):
    """One request in a millisecond is not a thousand a second, nor is its latency a percentile."""
    recording = recorded()
    first = recording.samples[0]
    load = first.load._replace(elapsed_s=0.001, sent=1, p50_ms=1.0, p99_ms=1.0)
    recording.samples[0] = first._replace(load=load)
    page = shown(recording=recording)

    assert page.lines(0)["sent"]["x"] == [1.5, 2.5, 3.5]
    assert page.lines(1)["p99"]["y"] == [None, 20, 20, 20]


def test_page_draws_no_memory_of_a_worker_that_has_not_measured_it(shown):
    """One that has just been forked is not empty."""
    recording = recorded()
    recording.samples[0].workers[0].values[FIELD_INDEX["rss_bytes"]] = 0

    assert shown(recording=recording).lines(5)["slot 0, pid 23415"]["y"] == [None, 42, 42, 42]


def test_page_shades_faults_while_they_last(summary, shown):
    """Each kind has its shade, named once; an act is a line, and one without an end lasts until the run's."""
    faults = [
        {"at_s": 1.0, "ended_at_s": 1.5, "target": "collector", "kind": "refuse"},
        {"at_s": 2.0, "ended_at_s": 2.25, "target": "collector", "kind": "refuse"},
        {"at_s": 1.0, "target": "worker", "kind": "kill", "slot": 1, "pid": 1},
        {"at_s": 2.5, "target": "upstream", "kind": "slow", "latency_s": 1.0},
        {"at_s": 2.75, "target": "worker", "kind": "stop", "slot": 1, "pid": 1, "for_s": 9.0},
    ]
    page = shown(summary().model_copy(update={"faults": faults}))

    for traces, *_ in page.plots:
        windows = [sorted(set(trace["x"]) - {None}) for trace in traces if "name" not in trace]
        assert windows == [[1.0, 1.5, 2.0, 2.25], [1.0], [2.5, 3.0], [2.75, 3.0]]
    text = "".join(page.text)
    assert [text.count(name) for name in ("collector refuse", "worker kill", "upstream slow")] == [1, 1, 1]


def test_page_of_a_long_run_draws_no_more_than_can_be_seen(shown):
    """A line has some hundred points, however many samples there are."""
    page = shown(recording=recorded(2_500))

    assert all(200 < len(trace["x"]) <= 400 for traces, *_ in page.plots for trace in traces if len(trace["x"]) > 5)


def test_page_of_a_long_run_loses_no_peak(shown):
    """One moment among thousands is seen, be it the highest or the lowest."""
    recording = recorded(2_500)
    for turn, depth in ((333, 1_000_000), (1_777, -1)):
        recording.samples[turn].workers[0].values[FIELD_INDEX["queue_depth"]] = depth

    waiting = shown(recording=recording).lines(4)["slot 0, pid 23415"]

    told = dict(zip(waiting["x"], waiting["y"], strict=True))
    assert (told[333], told[1_777]) == (1_000_000, -1)


def test_page_of_a_run_without_samples_has_no_plots(shown):
    """It was over before the first; all else is there."""
    page = shown(recording=Recording())

    assert page.plots == []
    assert "too short for plots" in "".join(page.text)
    assert ["unaccounted", "0", "0", "0", "0"] in page.rows


def test_page_escapes_what_users_write(summary, shown):
    """Names, expressions, warnings and reasons are text, whatever they hold."""
    bad = "<script>alert(1)</script><img src=x>&amp;\"'"
    made = summary()
    threshold = made.thresholds[0].model_copy(update={"expression": bad})
    changes = {"scenario": bad, "warnings": [bad], "thresholds": [threshold], "verdict": "invalid"}
    environment = made.environment.model_copy(update={"cpu": bad})
    harmless = shown()
    page = shown(made.model_copy(update=changes | {"invalid_reason": bad, "environment": environment}))

    assert page.tags["script"] == harmless.tags["script"]
    assert page.tags["img"] == 0
    assert "".join(page.text).count(bad) == 6  # the title of the window, and the heading, are the scenario's name
    assert bad not in page.source


def test_page_needs_nothing_else(shown):
    """No file, style or script of elsewhere; it has plotly itself, and fits a narrow screen."""
    page = shown()

    own = page.source.partition("<script>")[0] + page.source.rpartition("<h1>")[2]
    assert not re.findall(r"(?:src|href)=|https?://|@import|url\(", own)
    assert own.count("Plotly.newPlot(") == len(page.plots) == 6
    assert page.source.count('"displayModeBar":false') == 6
    assert "width=device-width" in own


def test_page_asks_plotly_for_what_it_knows(shown):
    """Every property of a plot is one of plotly's: the browser would pass over a wrong one in silence."""
    for traces, layout, _config in shown().plots:
        Figure(traces, layout)


def test_page_names_the_files_beside_it(shown):
    """Who has got the page alone knows what else there is."""
    text = "".join(shown().text)

    assert all(name in text for name in ("summary.json", "junit.xml", "workers.parquet", "spans.parquet", "error.log"))


# junit.xml.


def suite_of(summary, tmp_path):
    """Write a run as a test suite and return its one suite, and its test cases by name."""
    junit.write(summary, tmp_path / "junit.xml")
    (suite,) = ET.parse(tmp_path / "junit.xml").getroot()
    return suite, {case.get("name"): case for case in suite.iter("testcase")}


def test_each_threshold_is_a_test_case(summary, tmp_path):
    """Named by its expression; one that did not hold is a failure with its value."""
    made = summary("thresholds=[requests.failed == 0, requests.failed / requests.sent < 1%, latency.p99 < 20ms]")

    suite, cases = suite_of(made, tmp_path)

    assert list(cases) == [junit.RUN, *(threshold.expression for threshold in made.thresholds)]
    failures = {name: case.find("failure") for name, case in cases.items()}
    assert [name for name, failure in failures.items() if failure is not None] == [
        "requests.failed == 0",
        "latency.p99 < 20ms",
    ]
    assert failures["latency.p99 < 20ms"].get("message") == "21.4 ms"
    assert failures["latency.p99 < 20ms"].text == "latency.p99 < 20ms does not hold: 21.4 ms"
    assert {name: suite.get(name) for name in ("name", "tests", "failures", "errors", "time", "timestamp")} == {
        "name": "quickstart",
        "tests": "4",
        "failures": "2",
        "errors": "0",
        "time": "14.200",
        "timestamp": made.started_at,
    }


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"valid": False, "invalid_reason": "late by <1 s> & more"}, "invalid", "late by <1 s> & more"),
        ({"interrupted": True}, "interrupted", "the run was interrupted"),
    ],
)
def test_a_run_whose_figures_do_not_count_is_an_error(summary, tmp_path, changes, kind, reason):
    """It is the run's own test case that has it, and the counts of the suite tell it."""
    suite, cases = suite_of(summary(**changes), tmp_path)

    (error,) = suite.iter("error")
    assert cases[junit.RUN].find("error") is error
    assert (error.get("type"), error.get("message"), suite.get("errors")) == (kind, reason, "1")


def test_a_run_without_thresholds_is_a_suite_of_one(summary, tmp_path):
    """A CI server that finds no test case takes that for a mistake."""
    suite, cases = suite_of(summary("thresholds=[]"), tmp_path)

    assert (list(cases), suite.get("tests"), suite.get("failures")) == ([junit.RUN], "1", "0")


def test_no_text_breaks_the_suite(summary, tmp_path):
    """What XML cannot hold at all is replaced: a form feed in an expression, say."""
    (threshold, *_) = summary().thresholds
    odd = threshold.model_copy(update={"expression": 'latency.p99\f<\x00"1&ms', "passed": False})

    _suite, cases = suite_of(summary().model_copy(update={"thresholds": [odd]}), tmp_path)

    assert 'latency.p99\N{REPLACEMENT CHARACTER}<\N{REPLACEMENT CHARACTER}"1&ms' in cases


def ledger_lines(out):
    """The rows of the first ledger block of a result."""
    lines = out.splitlines()
    start = lines.index("ledger, spans") + 4
    return lines[start : lines.index("", start)]
