"""What tracing costs, with its uncertainty: arms, statistics, and a short measurement with real processes."""

import asyncio
import csv
import errno
import gc
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import plotly.graph_objects
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kongtrace import queue_profile
from sim import cli
from sim.config import Export, Gateway, Tracing
from sim.entity import Plugin
from sim.errors import UserError
from sim.interruption import INTERRUPTS
from sim.load.request import Request
from sim.overhead import bench as overhead_bench
from sim.overhead import command as overhead_command
from sim.overhead import load as overhead_load
from sim.overhead import measurement, page, tables
from sim.overhead.arms import OPENTELEMETRY, PARTS, Arm
from sim.overhead.bench import Bench, MeasurementError, Plan
from sim.overhead.blocks import Block, Load, Reading
from sim.overhead.measurement import Measurement, divided, parts_of, with_again
from sim.overhead.outcome import Outcome, outcome
from sim.overhead.statistics import VALUES_MIN, Interval, interval, mean_interval, paired, warm_up
from sim.overhead.worker import Worker
from sim.phase_times import TimedRunloop
from sim.process import pipe
from sim.runloop import Runloop
from sim.runtime.virtual import VirtualWorld
from sim.scenario import load

ROOT = Path(__file__).parents[2]

SCENARIO = """
name: small
profile: kong
seed: 3
gateway:
  workers: 1
  config:
    services: [{name: orders, url: "http://default", routes: [{name: all, paths: [/]}]}]
    plugins: [{name: opentelemetry}]
upstreams: {default: {}}
load: [{executor: constant-arrival-rate, rate: 400/s, duration: 1s}]
"""


@pytest.fixture
def scenario_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SCENARIO)
    return path


# Statistics.


@given(st.integers(0, 2**32), st.floats(0.1, 10))
def test_interval_holds_the_truth_as_often_as_it_says(seed, scale):
    """Of 200 intervals of normal values some 95 % hold the mean: never fewer than 82 %, which chance does not do."""
    draw = random.Random(seed)
    intervals = [interval(draw.gauss(5, scale) for _ in range(30)) for _ in range(200)]

    assert sum(one.low <= 5 <= one.high for one in intervals) >= 164


def test_interval_withstands_what_a_machine_does_now_and_then():
    """One stolen slice in twenty blocks moves a mean by half its value, and this hardly."""
    values = [100.0 + k % 5 for k in range(40)] + [1100.0, 1200.0]

    one = interval(values)

    assert abs(one.value - 102) < 1
    assert one.half_width < 2
    assert sum(values) / len(values) > 125


def test_interval_of_too_few_values_is_none():
    """Nothing is said rather than something wide."""
    assert interval([1.0] * (VALUES_MIN - 1)) is None
    assert interval([1.0] * VALUES_MIN) == Interval(1.0, 1.0, 1.0, VALUES_MIN)


def test_rare_events_count_in_a_plain_mean():
    """What happens in one block of twenty is not trimmed away."""
    values = [0.0] * 38 + [20.0] * 2

    assert mean_interval(values).value == 1
    assert interval(values).value == 0
    assert mean_interval([1.0] * VALUES_MIN) == Interval(1.0, 1.0, 1.0, VALUES_MIN)
    assert mean_interval([1.0]) is None


def test_pairs_take_out_what_both_have():
    """A drift that both sides follow leaves their difference alone."""
    drift = [k**2 for k in range(20)]

    difference = paired([one + 3 for one in drift], drift)

    assert (difference.value, difference.half_width) == (3, 0)
    assert difference.excludes_zero


@given(st.integers(0, 2**32))
def test_warm_up_is_found_where_it_is(seed):
    """A series that falls for 20 values and then stays is cut near there, and never by more than half."""
    draw = random.Random(seed)
    series = [100 + 50 * max(0, 20 - k) / 20 + draw.gauss(0, 1) for k in range(100)]

    assert 10 <= warm_up(series) <= 50


def test_warm_up_of_a_short_series_is_unknown():
    """Two batches of five are needed."""
    assert warm_up([1.0] * 9) is None
    assert warm_up([1.0] * 10) == 0


# Arms.


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("off", Arm("off", "off")),
        ("0.1", Arm("0.1", "0.1")),
        ("1.0-export", Arm("1.0-export", "1.0", exports=False)),
        ("1+checked", Arm("1+checked", "1", is_checked=True)),
        (" noop@HEAD~1 ", Arm("noop@HEAD~1", "noop", revision="HEAD~1")),
    ],
)
def test_arm_is_read(text, arm):
    """Base, what is added or left out, revision."""
    assert Arm.parse(text) == arm


@pytest.mark.parametrize("text", ["", "on", "2", "0.1+", "0.1+missing.py", "missing.yaml", "-export"])
def test_what_is_no_arm_is_told(text):
    """One line that names the option and says what would be one."""
    with pytest.raises(UserError) as told:
        Arm.parse(text)

    assert told.value.field == "--arms"
    assert told.value.cure


GATEWAY = Gateway(
    tracing=Tracing(instrumentations=("request", "router"), sampling_rate=0.5),
    plugins=(
        Plugin(name="correlation-id"),
        Plugin(name=OPENTELEMETRY, config={"sampling_rate": 0.5, "queue": {"max_batch_size": 50}}),
    ),
)


@pytest.mark.parametrize("base", ["off", "noop"])
def test_arm_without_spans_has_no_exporter(base):
    """Other plugins stay; the no-op arm keeps the instrumentations that call the tracer."""
    given = Arm.parse(base).gateway(GATEWAY, "http://127.0.0.1:1/v1/traces")

    assert [plugin.name for plugin in given.plugins] == ["correlation-id"]
    assert given.tracing.instrumentations == (("off",) if base == "off" else ("request", "router"))


def test_arm_of_a_rate_samples_at_it():
    """Both the tracer's rate and the plugin's own, which would go first (O9); a batch is not waited for long."""
    given = Arm.parse("0.1").gateway(GATEWAY, "http://127.0.0.1:1/v1/traces")

    exporter = given.plugins[1]
    assert given.tracing.sampling_rate == exporter.config["sampling_rate"] == 0.1
    assert exporter.config["traces_endpoint"] == "http://127.0.0.1:1/v1/traces"
    assert exporter.config["queue"] == {"max_batch_size": 50, "max_coalescing_delay": 0.1}


def test_arm_of_a_rate_brings_what_the_scenario_lacks():
    """Instrumentations and exporter, where the scenario has neither."""
    given = Arm.parse("1.0").gateway(Gateway(), "http://127.0.0.1:1/v1/traces")

    assert given.tracing.instrumentations == ("all",)
    assert [plugin.name for plugin in given.plugins] == [OPENTELEMETRY]


def test_arm_of_a_file_is_the_gateway_that_the_file_has(scenario_file):
    """Two equal files measure equal: nothing is added to one that does not trace."""
    arm = Arm.parse(str(scenario_file))
    plain = GATEWAY.model_copy(update={"tracing": Tracing(), "plugins": GATEWAY.plugins[:1]})

    assert arm.gateway(plain, "http://127.0.0.1:1/v1/traces") == plain


def test_arm_of_a_file_exports_to_the_collector_that_is_there(scenario_file):
    """What its exporter does not say is the measurement's; its rate and its place among the plugins stay."""
    arm = Arm.parse(str(scenario_file))
    gateway = GATEWAY.model_copy(update={"plugins": GATEWAY.plugins[::-1]})

    given = arm.gateway(gateway, "http://127.0.0.1:1/v1/traces")

    assert given.tracing == gateway.tracing
    assert [plugin.name for plugin in given.plugins] == [OPENTELEMETRY, "correlation-id"]
    assert given.plugins[0].config == {
        "sampling_rate": 0.5,
        "traces_endpoint": "http://127.0.0.1:1/v1/traces",
        "queue": {"max_batch_size": 50, "max_coalescing_delay": 0.1},
    }


# Sums.

SETTLED = 40


def made_up(costs, scenario, wide=0.0, rate="1.0"):
    """A measurement whose arms cost exactly so much, us a request, but for noise of `wide` us."""
    draw = random.Random(1)
    arms = (Arm("off", "off"), Arm(rate, rate))
    measured = Measurement(Plan(scenario, arms, 500.0, 1, None), 0.01)
    measured.parts = parts_of(arms[1])
    measured.wholes = (replace(measured.parts[0], name=f"{rate} off"), arms[1])
    named = dict(zip(("off", "off again", rate), (costs[0], costs[0], costs[-1]), strict=True))
    stages = {"paced": named, "saturated": named}
    parts = {arm.name: cost for arm, cost in zip(measured.parts, costs, strict=True)}
    stages["parts"] = parts | {f"{rate} off": costs[0], rate: costs[-1]}
    for stage, arms_of_stage in stages.items():
        for turn in range(SETTLED):
            for place, (arm, cost) in enumerate(arms_of_stage.items()):
                cpu_ns = round((cost + draw.gauss(0, wide)) * 100 * 1000)
                spent = Reading(cpu_ns, cpu_ns, 100, 0 if "off" in arm else 800, 0, 2 * 100 * 1000)
                block = Block(stage, 0, turn, place, arm, spent, Load(100, 0, 0, 2.0, 9.0, 0.1, cpu_ns / 1e9), 0)
                measured.settled.append(block)
    measured.blocks = measured.settled
    return measured


COSTS = [100.0, 104.0, 112.0, 114.0, 115.0, 119.0, 120.0, 120.5, 122.0]


def test_sum_of_a_measurement(scenario_file):
    """What an arm adds, a request, a span and as a share of the worker; and the sentence that says so."""
    told = outcome(made_up(COSTS, load(str(scenario_file))))

    off, again, traced = told.arms
    assert again.is_control
    assert again.figures["added_us"].value == Interval(0, 0, 0, SETTLED)
    assert traced.figures["added_us"].value.value == 22
    assert traced.figures["added_us_per_span"].value.value == 2.75
    assert traced.figures["added_percent"].value.value == pytest.approx(1.1)
    assert "added_us" not in off.figures
    assert told.sentence == (
        "Tracing at 100% costs 1.10 % ± 0.00 % of a worker at 500 requests/s (22.00 ± 0.00 us a request)."
    )


@pytest.mark.parametrize(("rate", "share"), [("0.001", "0.1%"), ("0.015", "1.5%"), ("0", "0%"), ("0.29", "29%")])
def test_sentence_names_the_rate_as_it_is(scenario_file, rate, share):
    """A small one is not rounded to none."""
    told = outcome(made_up(COSTS, load(str(scenario_file)), rate=rate))

    assert told.sentence.startswith(f"Tracing at {share} costs ")


def test_break_down_adds_up(scenario_file):
    """Each part is what its step adds; making and releasing are told apart by the time that releasing took."""
    breakdown = outcome(made_up(COSTS, load(str(scenario_file)))).breakdown

    parts = {name: figure.value.value for name, figure in breakdown.parts.items()}
    assert parts["instrumentation"] == 4
    assert parts["create"] + parts["release"] == 8
    assert parts["release"] == 2
    assert [parts[name] for name in PARTS[1:]] == [after - before for before, after in pairwise(COSTS[2:])]
    assert breakdown.export.value.value == sum(parts[name] for name in ("copy", "enqueue", "encode", "send"))
    assert sum(parts.values()) == breakdown.total.value.value == breakdown.whole.value.value == 22
    assert breakdown.closes


def test_what_is_too_uncertain_has_no_number(scenario_file):
    """The figure says why, and so does the sentence."""
    told = outcome(made_up(COSTS, load(str(scenario_file)), wide=40.0))

    figure = told.arms[2].figures["added_us"]
    assert figure.value is None
    assert figure.text() == "not resolved"
    assert told.sentence.startswith("Tracing at 100%: what it costs is not resolved, ±")
    shown = json.loads(told.to_json())["arms"][2]["figures"]["added_us"]
    assert shown == {"name": "added us", "resolved": False, "why": figure.why}


def test_interval_of_the_control_is_always_told(scenario_file):
    """However wide: it shows what the method would say of nothing."""
    told = outcome(made_up(COSTS, load(str(scenario_file)), wide=40.0))

    told_of_nothing = told.arms[1].figures["added_us"].value
    assert told_of_nothing is not None
    assert told_of_nothing.half_width > told.measurement.asked_us


def test_what_is_not_resolved_is_told_once_for_each_reason(scenario_file):
    """With the arms that it is true of, and what resolves more."""
    measured = made_up(COSTS, load(str(scenario_file)), wide=40.0)
    console = Console(record=True, width=140, file=io.StringIO())

    tables.show(outcome(measured), "out", console)

    lines = [line for line in console.export_text().splitlines() if line.startswith(("not resolved", "more"))]
    assert "not resolved, off, 1.0: too few workers" in lines
    (wide,) = [line for line in lines if "wider" in line and "more" not in line]
    assert re.fullmatch(r"not resolved, 1\.0: ± [\d.]+ us is wider than the ± [\d.]+ us that were asked", wide)
    assert lines[-1] == "more --time resolves more, and so does a wider --precision"


def test_page_shows_each_arm_resolved_or_not(scenario_file, tmp_path):
    """An arm without a figure has its place in the plot, which says so."""
    page.write(outcome(made_up(COSTS, load(str(scenario_file)), wide=40.0)), tmp_path / "overhead.html")

    shown = (tmp_path / "overhead.html").read_text()
    assert '"ticktext":["off again (A/A)","1.0"]' in shown
    assert shown.count('"text":"not resolved"') == 1


def test_break_down_is_called_what_it_is(scenario_file, tmp_path):
    """It is of the tracing alone: what else an arm does, a plugin of its own say, is in none of the parts."""
    made = outcome(made_up(COSTS, load(str(scenario_file))))
    console = Console(record=True, width=140, file=io.StringIO())

    tables.show(made, "out", console)
    page.write(made, tmp_path / "overhead.html")

    assert "where the tracing of 1.0 goes, us CPU a request" in console.export_text()
    assert "Where the tracing of 1.0 goes, us a request" in (tmp_path / "overhead.html").read_text()


def test_page_fits_a_narrow_screen(scenario_file, tmp_path):
    """A telephone does not shrink it, and no bar of buttons lies over the titles of the plots."""
    page.write(outcome(made_up(COSTS, load(str(scenario_file)))), tmp_path / "overhead.html")

    shown = (tmp_path / "overhead.html").read_text()
    assert "<meta name='viewport' content='width=device-width'>" in shown
    drawn = shown.rpartition("<h1>")[2]  # plotly itself comes before it
    assert drawn.count('"displayModeBar":false') == drawn.count("Plotly.newPlot(") == 2


def test_page_asks_plotly_for_what_it_knows(scenario_file, tmp_path):
    """Every property of a plot is one of plotly's: the browser would pass over a wrong one in silence."""
    page.write(outcome(made_up(COSTS, load(str(scenario_file)))), tmp_path / "overhead.html")

    plots = re.findall(r"Plotly\.newPlot\(document[.\w]+,(.*)\)</script>", (tmp_path / "overhead.html").read_text())
    assert len(plots) == 2
    for traces, layout, _config in (json.loads(f"[{arguments}]") for arguments in plots):
        plotly.graph_objects.Figure(traces, layout)


def test_page_escapes_the_names_of_arms(scenario_file, tmp_path):
    """They may be those of files, which hold what they like."""
    made = outcome(made_up(COSTS, load(str(scenario_file))))
    page.write(replace(made, sentence="Arm off+<img src=x>.py & more"), tmp_path / "overhead.html")

    shown = (tmp_path / "overhead.html").read_text()
    assert "Arm off+&lt;img src=x&gt;.py &amp; more" in shown
    assert "<img src=x>" not in shown


@pytest.mark.parametrize(
    ("arms", "whole"),
    [
        ("off,0.1,1.0", "1.0"),
        ("off,1.0,noop", "1.0"),
        ("off,0.1,1.0+checked", "0.1"),
        ("off,0.1,1.0@HEAD", "0.1"),
        ("off,1.0+checked,1.0-export,0", None),
    ],
)
def test_break_down_is_of_the_last_arm_that_exports_plain_spans(arms, whole):
    """What leaves a part out has plain spans, of this code: nothing could be said of checked ones."""
    found = divided([*map(Arm.parse, arms.split(","))])

    assert (found and found.name) == whole


def test_saturation_is_told_for_a_second_of_cpu(scenario_file):
    """When the load was too slow, its speed is not the worker's; how busy that was is told besides."""
    measured = made_up(COSTS, load(str(scenario_file)))
    measured.settled = [
        replace(block, load=replace(block.load, elapsed_s=2 * block.load.elapsed_s)) for block in measured.settled
    ]

    figures = outcome(measured).arms[0].figures

    assert figures["saturation_rps"].value.value == 1_000_000 / COSTS[0]
    assert figures["busy_percent"].value.value == 50


def test_turn_gives_every_arm_the_same_load(scenario_file, tmp_path):
    """Each arm has one block a turn, in an order that changes; spans and bytes are those of its configuration."""
    arms = with_again(tuple(map(Arm.parse, ("off", "noop", "1.0-export", "1.0"))))
    plan = Plan(load(str(scenario_file)), arms, 400.0, 5, tmp_path)

    with Bench(plan) as bench, bench.launch(arms) as launch:
        turns = [bench.turn(launch, "paced", arms) for _ in range(4)]

    assert len({tuple(block.arm for block in turn) for turn in turns}) > 1
    for turn in turns:
        by_arm = {block.arm: block for block in turn}
        assert by_arm.keys() == {arm.name for arm in arms}
        assert {block.load.completed for block in turn} == {plan.block_requests}
        spans = {arm: block.spent.spans / block.spent.requests for arm, block in by_arm.items()}
        assert spans["off"] == spans["off again"] == spans["noop"] == 0
        assert spans["1.0"] == spans["1.0-export"] > 4
        assert by_arm["1.0"].sent_bytes > 0
        assert by_arm["off"].sent_bytes == by_arm["1.0-export"].sent_bytes == 0
        assert all(block.cpu_us > 0 for block in turn)


SPANNING = """
class Spanning:
    PRIORITY = 5
    VERSION = "1"

    def access(self, kong, conf):
        kong.tracing.start_span("more").finish()
"""


def test_plugin_more_is_an_arm(scenario_file, tmp_path, monkeypatch):
    """A plugin from a file, named as seen from here, runs in its arm, and in no other."""
    (tmp_path / "spanning.py").write_text(SPANNING)
    monkeypatch.chdir(tmp_path)
    arms = (Arm.parse("1.0"), Arm.parse("1.0+spanning.py"))
    plan = Plan(load(str(scenario_file)), arms, 400.0, 5, tmp_path)

    with Bench(plan) as bench, bench.launch(arms) as launch:
        blocks = {block.arm: block.spent for block in bench.turn(launch, "paced", arms)}

    plain, more = (blocks[arm.name].spans / blocks[arm.name].requests for arm in arms)
    assert more == plain + 2  # the plugin's own, and that of its handler


@pytest.mark.parametrize(("plugins", "runloop"), [((), Runloop), (("spanning.py",), TimedRunloop)])
def test_times_of_phases_that_a_plugin_may_read_are_no_cost_of_its_own(scenario_file, tmp_path, plugins, runloop):
    """Where a plugin of one arm may read them, the others keep them too."""
    (tmp_path / "spanning.py").write_text(SPANNING)
    arms = [Arm.parse("off"), Arm("1.0", "1.0", plugins=tuple(str(tmp_path / plugin) for plugin in plugins))]

    async def runloops():
        nobody = ("127.0.0.1", 9)
        told = {"scenario": str(scenario_file), "arms": list(map(asdict, arms)), "seed": 0}
        hosts = {"default": nobody, "collector": nobody}
        worker = Worker(told | {"hosts": hosts, "traces_endpoint": "http://127.0.0.1:9"})
        gc.callbacks.remove(worker._collecting)
        return {type(gateway.runloop) for gateway in worker._gateways}

    assert asyncio.run(runloops()) == {runloop}


def test_measured_worker_finds_the_modules_that_the_scenario_names(tmp_path, monkeypatch):
    """Wherever Python looks for them, it does there too."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/spanning_module.py").write_text(SPANNING)
    monkeypatch.setenv("PYTHONPATH", "modules")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    path = tmp_path / "named.yaml"
    path.write_text(
        SCENARIO.replace("workers: 1", "workers: 1\n  plugin_paths: [spanning_module]").replace(
            "plugins: [", "plugins: [{name: spanning-module}, "
        )
    )
    arms = (Arm.parse("1.0"),)

    with Bench(Plan(load(str(path)), arms, 400.0, 5, tmp_path)) as bench, bench.launch(arms) as launch:
        (block,) = bench.turn(launch, "paced", arms)

    assert block.spent.spans > 0


def test_parts_do_one_thing_more_each(scenario_file, tmp_path):
    """Nothing leaves the worker before the last part, and spans are made from the first of them on."""
    arms = parts_of(Arm.parse("1.0"))
    plan = Plan(load(str(scenario_file)), arms, 400.0, 5, tmp_path)

    with Bench(plan) as bench, bench.launch(arms) as launch:
        blocks = {block.arm: block for block in bench.turn(launch, "parts", arms)}

    made = [bool(blocks[arm.name].spent.spans) for arm in arms]
    sent = [bool(blocks[arm.name].sent_bytes) for arm in arms]
    timed = [bool(blocks[arm.name].spent.release_ns) for arm in arms]
    assert made == [False, False, *[True] * len(PARTS)]
    assert sent == [*[False] * (len(arms) - 1), True]
    assert timed == [arm.until == "finish" for arm in arms]


def test_part_without_queues_takes_what_a_plugin_queues_itself():
    """It keeps nothing of that either."""
    make, world = Arm.parse("1.0").part("copy").make_exporter, VirtualWorld(0)
    with closing(world.loop):
        exporter = make(queue_profile.SAFE, world.runtime("worker"), None, None, Export(), (), print, print)
        queue = exporter.queues.queue("shipper")

        assert queue.can_enqueue(b"span")
        assert queue.enqueue(b"span", None, 0.0, log_phase=True) == (True, None)


def test_arm_that_cannot_start_is_told(scenario_file, tmp_path):
    """A revision that is not there is the user's mistake."""
    arms = (Arm.parse("off"), Arm.parse("off@no-such-revision"))

    with (
        pytest.raises(UserError, match="no-such-revision"),
        Bench(Plan(load(str(scenario_file)), arms, 400.0, 5, tmp_path)),
    ):
        pass


@pytest.mark.parametrize("is_file", [False, True])
def test_arm_reaches_an_upstream_under_its_other_hosts(tmp_path, is_file):
    """As a run does; the hosts of an arm that is a file are its own."""
    named = SCENARIO.replace("http://default", "http://orders.internal")
    named = named.replace("default: {}", "default: {hosts: [orders.internal]}")
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(SCENARIO if is_file else named)
    second.write_text(named)
    arms = (Arm.parse(str(second) if is_file else "off"),)
    plan = Plan(load(str(first)), arms, 400.0, 5, tmp_path, {str(second): load(str(second))})

    with Bench(plan) as bench, bench.launch(arms) as launch:
        (block,) = bench.turn(launch, "paced", arms)

    assert (block.load.failed, block.load.errors) == (0, 0)


def test_arm_of_a_file_has_no_upstreams_but_those_of_the_first(tmp_path, scenario_file):
    """One that nobody starts is told with its line, before anything is started."""
    other = tmp_path / "other.yaml"
    other.write_text(SCENARIO.replace("upstreams: {default: {}}", "upstreams:\n  default: {}\n  more: {}"))
    options = {"arms": f"off,{other}", "rate": None, "time": "1s", "precision": "1%"}

    with pytest.raises(UserError) as told:
        overhead_command.asked(load(str(scenario_file)), options)

    assert str(told.value) == (
        f"{other}:12: upstreams.more: {scenario_file} has no such upstream, and its upstreams serve every arm; "
        "add it there"
    )


DEMANDING = """
from pydantic import BaseModel


class Quota:
    PRIORITY = 1000
    VERSION = "1"

    class Config(BaseModel):
        url: str

    def access(self, kong, conf):
        kong.tracing.start_span(conf.url).finish()
"""


def test_plugin_that_needs_a_configuration_is_told_before_anything_is_started(scenario_file, tmp_path, monkeypatch):
    """With file and field, and with the way to configure it; so is one that cannot be loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quota.py").write_text(DEMANDING)
    (tmp_path / "broken.py").write_text("import nothing_like_it\n")
    options = {"arms": "1.0,1.0+quota.py", "rate": None, "time": "1s", "precision": "1%"}

    with pytest.raises(UserError) as told:
        overhead_command.asked(load(str(scenario_file)), options)
    assert str(told.value) == (
        "quota.py: quota.url: missing, and + gives a plugin no configuration;"
        " configure it in a scenario of its own, and name that file as the arm"
    )
    with pytest.raises(UserError, match=r"^broken\.py:1: cannot be loaded: ModuleNotFoundError"):
        overhead_command.asked(load(str(scenario_file)), options | {"arms": "1.0,1.0+broken.py"})


def test_plugin_is_configured_in_a_scenario_that_is_an_arm(scenario_file, tmp_path):
    """As the page on the method says."""
    (tmp_path / "quota.py").write_text(DEMANDING)
    other = tmp_path / "with-quota.yaml"
    other.write_text(
        SCENARIO.replace("workers: 1", "workers: 1\n  plugin_paths: [quota.py]")
        .replace("plugins: [", "plugins: [{name: quota, config: {url: asked}}, ")
        .replace("  workers: 1", "  tracing: {sampling_rate: 1.0}\n  workers: 1")
    )
    options = {"arms": f"1.0,{other}", "rate": None, "time": "1s", "precision": "1%"}
    asked = overhead_command.asked(load(str(scenario_file)), options)
    plan = Plan(asked.scenario, asked.arms, 400.0, 5, tmp_path, asked.others)

    with Bench(plan) as bench, bench.launch(asked.arms) as launch:
        blocks = {block.arm: block.spent for block in bench.turn(launch, "paced", asked.arms)}

    plain, more = (blocks[arm.name].spans / blocks[arm.name].requests for arm in asked.arms)
    assert more == plain + 2


def test_revision_needs_a_working_copy(scenario_file, tmp_path, monkeypatch):
    """What is installed has no revisions, least of all those of a repository that it happens to lie in."""
    monkeypatch.setattr(overhead_bench, "__file__", str(tmp_path / "site-packages/sim/overhead/bench.py"))
    arms = (Arm.parse("off"), Arm.parse("off@HEAD"))

    with (
        pytest.raises(UserError, match=r"^--arms: a revision needs a working copy of kongsim, and this is none; run"),
        Bench(Plan(load(str(scenario_file)), arms, 400.0, 5, tmp_path)),
    ):
        pass


def test_revision_without_the_command_is_told(scenario_file, tmp_path, monkeypatch):
    """The first commit knew nothing of this; the checkout is gone again."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # others may have checkouts at the same time
    git = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    first = git(["git", "rev-list", "--max-parents=0", "HEAD"]).stdout.split()[0]
    arms = (Arm.parse("off"), Arm.parse(f"off@{first}"))

    with (
        pytest.raises(UserError, match="older than this command"),
        Bench(Plan(load(str(scenario_file)), arms, 400.0, 5, tmp_path)),
    ):
        pass

    assert str(tmp_path) not in git(["git", "worktree", "list"]).stdout


def test_failing_requests_end_a_measurement(tmp_path):
    """Figures of requests that fail are not those of the gateway."""
    path = tmp_path / "failing.yaml"
    path.write_text(SCENARIO.replace("http://default", "http://127.0.0.1:1"))
    arms = (Arm.parse("off"),)

    with (
        Bench(Plan(load(str(path)), arms, 400.0, 5, tmp_path)) as bench,
        bench.launch(arms) as launch,
        pytest.raises(MeasurementError, match="requests of arm off failed"),
    ):
        bench.turn(launch, "paced", arms)


def test_errors_that_the_scenario_asks_for_are_no_failures(tmp_path):
    """An upstream that answers 503 now and then is what is to be measured."""
    path = tmp_path / "failing.yaml"
    path.write_text(SCENARIO.replace("default: {}", "default: {status: {503: 1.0}}"))
    arms = (Arm.parse("off"),)

    with Bench(Plan(load(str(path)), arms, 400.0, 5, tmp_path)) as bench, bench.launch(arms) as launch:
        (block,) = bench.turn(launch, "paced", arms)

    assert block.load.errors == block.load.completed == 20


def test_virtual_users_have_no_rate_to_measure_at(tmp_path):
    """Whose fault it is is told with its line."""
    path = tmp_path / "users.yaml"
    path.write_text(SCENARIO.replace("duration: 1s}]", "duration: 1s}, {executor: constant-vus, duration: 1s}]"))
    options = {"arms": "off,noop", "rate": "5/s", "time": "1s", "precision": "1%"}

    with pytest.raises(UserError, match=r"users\.yaml:11: load\[1\]\.executor: virtual users have no rate; measure a"):
        overhead_command.asked(load(str(path)), options)


@pytest.mark.parametrize(("shares", "turns"), [((3, 1), "aabaaaba"), ((5, 1, 1), "aabacaa"), ((1,), "aaa")])
def test_loads_take_turns_by_their_shares(shares, turns):
    """As evenly as can be, in the order of nginx's weighted round robin."""
    in_order = overhead_load.in_turn(shares)

    assert "".join("abc"[next(in_order)] for _ in turns) == turns


@given(shares=st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=5), count=st.integers(1, 200))
def test_no_load_lags_behind_its_share(shares, count):
    """After any number of turns each has had its share of them, but for one turn for each of the others."""
    in_order = overhead_load.in_turn(shares)
    had = Counter(next(in_order) for _ in range(count))

    for number, share in enumerate(shares):
        assert had[number] == pytest.approx(count * share / sum(shares), abs=len(shares))


def test_rate_is_that_of_the_time_in_which_anything_arrives(tmp_path):
    """A worker that waits for its load costs nothing."""
    path = tmp_path / "late.yaml"
    second = "{executor: constant-arrival-rate, rate: 100/s, duration: 2s, startTime: 3s}"
    third = "{executor: constant-arrival-rate, rate: 200/s, duration: 1s, startTime: 3500ms}"
    path.write_text(SCENARIO.replace("duration: 1s}]", f"duration: 1s}}, {second}, {third}]"))
    options = {"arms": "off,noop", "rate": None, "time": "1s", "precision": "1%"}

    assert overhead_command.asked(load(str(path)), options).rate_per_s == pytest.approx((400 + 200 + 200) / 3)


def test_requests_of_several_loads_take_turns(tmp_path):
    """Each comes as often as it does among all; those with a body too."""
    path = tmp_path / "mixed.yaml"
    failing = "{name: failing, url: 'http://failing', routes: [{name: posts, paths: [/posts], methods: [POST]}]}"
    posts = "{executor: constant-arrival-rate, rate: 5/s, duration: 2s, startTime: 1s, "
    posts += "request: {method: POST, path: /posts, body: text}}"
    path.write_text(
        SCENARIO.replace("paths: [/]}]}]", f"paths: [/]}}]}}, {failing}]")
        .replace("default: {}", "default: {}, failing: {status: {503: 1.0}}")
        .replace("duration: 1s}]", f"duration: 1s}}, {posts}]")
    )
    arms = (Arm.parse("off"), Arm.parse("noop"))

    with Bench(Plan(load(str(path)), arms, 400.0, 5, tmp_path)) as bench, bench.launch(arms) as launch:
        turns = [bench.turn(launch, "paced", arms) for _ in range(5)]
        saturated = bench.turn(launch, "saturated", arms, saturated_s=0.1)

    assert [[block.load.completed for block in turn] for turn in turns] == [[20, 20]] * 5
    errors = [[block.load.errors for block in turn] for turn in turns]
    assert sum(one for one, _other in errors) in {2, 3}  # 10 of 410 requests, of 100
    assert all(one == other for one, other in errors)
    for block in saturated:  # each time that the mix begins again, it may have one too many or too few
        rounds = 1 + block.load.completed / overhead_bench.SATURATED_MIX
        assert block.load.errors == pytest.approx(block.load.completed / 41, abs=1 + rounds)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_measurement_that_is_ended_leaves_no_checkout(scenario_file, tmp_path, signum):
    """As after Ctrl-C: the repository does not go on to know of a folder that nobody uses."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")

    def checkouts():
        told = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True)
        return told.stdout.count(str(tmp_path))

    arguments = ["overhead", str(scenario_file), "--arms", "off,off@HEAD", "--out", str(tmp_path / "out")]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "sim", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as measuring:
        while not checkouts() and measuring.poll() is None:
            pass
        measuring.send_signal(signum)
        _out, err = measuring.communicate()

    assert (measuring.returncode, err.splitlines()[-1]) == (130, "kongsim: interrupted")
    assert checkouts() == 0


def test_a_measurement_that_is_interrupted_again_ends_in_order(scenario_file, tmp_path, monkeypatch):
    """As timeout(1) does it: what comes while its processes are being ended neither disturbs that nor shows."""
    turn, kill = Bench.turn, overhead_bench.kill

    def signalled_turn(*given):
        signal.raise_signal(signal.SIGTERM)
        return turn(*given)

    def signalled_kill(*given):
        signal.raise_signal(signal.SIGTERM)
        kill(*given)

    monkeypatch.setattr(Bench, "turn", signalled_turn)
    monkeypatch.setattr(overhead_bench, "kill", signalled_kill)
    asked = overhead_command.Asked(load(str(scenario_file)), (Arm.parse("off"), Arm.parse("noop")), 400.0, 60.0, 0.01)
    shown = io.StringIO()

    with pytest.raises(KeyboardInterrupt):
        overhead_command.measured(asked, tmp_path, Console(file=shown))

    assert shown.getvalue() == ""


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("signum", INTERRUPTS, ids=lambda signum: signum.name)
def test_an_interrupt_of_the_whole_terminal_is_one_line(scenario_file, tmp_path, signum):
    """Ctrl-C, and the end of a terminal, reach every process of a measurement; none but the first tells of it."""
    command = [sys.executable, "-m", "sim", "overhead", str(scenario_file), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, process_group=0) as measuring:
        while measuring.poll() is None and not serving(measuring.pid):
            pass
        os.killpg(measuring.pid, signum)
        _out, err = measuring.communicate()

    assert (measuring.returncode, err.split("\n")) == (130, ["", "kongsim: interrupted", ""])


def serving(pid):
    """Whether the measured worker of a measurement serves."""
    for child in psutil.Process(pid).children():
        with suppress(psutil.Error):
            if "sim.overhead.worker" in child.cmdline():
                return any(socket.status == psutil.CONN_LISTEN for socket in child.net_connections())
    return False


def test_a_process_that_the_same_signal_has_ended_is_no_failure(scenario_file, tmp_path):
    """What goes to the whole group may be felt by another process first."""

    def measure():
        with Bench(Plan(load(str(scenario_file)), (Arm.parse("off"),), 400.0, 5, tmp_path)):
            signal.raise_signal(signal.SIGTERM)
            raise MeasurementError("the worker has ended")

    with pytest.raises(KeyboardInterrupt):
        measure()


def test_a_measurement_that_is_over_is_told_whatever_interrupts_it(scenario_file, tmp_path, monkeypatch, capsys):
    """Minutes of measuring are not lost to a signal that comes when there is nothing left to interrupt."""

    done = made_up(COSTS, load(str(scenario_file)))

    def over(*_given, **_named):
        signal.raise_signal(signal.SIGTERM)
        return done

    monkeypatch.setattr(overhead_command, "measure", over)
    monkeypatch.setattr(sys, "argv", ["kongsim", "overhead", str(scenario_file), "--json", "--out", str(tmp_path)])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    told = capsys.readouterr()
    assert (ended.value.code, told.err) == (0, "")
    assert (tmp_path / "overhead.json").read_text() == told.out
    assert {"overhead.html", "blocks.csv"} <= {path.name for path in tmp_path.iterdir()}


def test_progress_is_drawn_without_a_thread():
    """Where processes are forked, and CPU time is measured, there is one thread (docs.python.org, os.fork)."""
    drawn = io.StringIO()

    with overhead_command.shown_on(Console(file=drawn, force_terminal=True, width=60)) as told:
        told("paced", 0.5)
        assert threading.active_count() == 1
        told("paced", 1.0)

    assert [stage for stage in measurement.STAGES if stage not in drawn.getvalue()] == []
    assert "━" in drawn.getvalue()


def test_a_terminal_that_is_gone_ends_no_measurement():
    """Nothing can be drawn there."""
    ours, theirs = os.openpty()
    os.close(ours)
    with io.FileIO(theirs, "w") as descriptor:
        terminal = io.TextIOWrapper(descriptor, write_through=True)
        with overhead_command.shown_on(Console(file=terminal, force_terminal=True)) as told:
            told("paced", 0.5)


def test_a_file_that_cannot_be_written_costs_no_figures(scenario_file, tmp_path, monkeypatch, capsys):
    """It is named, the others are there, and the tables are shown."""

    def full(_outcome, path):
        path.write_text('{"schema": ')
        raise OSError(errno.ENOSPC, "No space left on device")

    done, out = made_up(COSTS, load(str(scenario_file))), tmp_path / "out"
    monkeypatch.setattr(overhead_command, "measure", lambda *_given, **_named: done)
    monkeypatch.setattr(Outcome, "write_figures", full)
    monkeypatch.setattr(sys, "argv", ["kongsim", "overhead", str(scenario_file), "--out", str(out)])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    told = capsys.readouterr()
    assert (ended.value.code, told.err) == (
        1,
        f"kongsim: {out}/overhead.json: cannot be written: No space left on device\n",
    )
    assert "Tracing at 100% costs" in told.out
    assert {path.name for path in out.iterdir()} == {"scenario.yaml", "blocks.csv", "overhead.html"}


def test_allocations_are_counted_whatever_the_disk_takes(scenario_file, tmp_path):
    """A count that a full disk cuts short would look like a small one."""
    out, arms = tmp_path / "out", (Arm.parse("off"),)
    out.mkdir()
    asked = load(str(scenario_file))

    with Bench(Plan(asked, arms, 400.0, 5, out)) as bench, bench.launch(arms) as launch:
        shutil.rmtree(out)
        footprint = measurement._footprint(bench, launch, arms[0])

    assert footprint.allocations > 10


@pytest.mark.parametrize("heard", [True, False], ids=["with an answer unread", "before it answers"])
def test_worker_whose_bench_has_gone_ends_in_silence(scenario_file, heard):
    """Whoever interrupts a measurement asked for no traceback of a process that has nobody to answer."""
    hosts = dict.fromkeys(("default", "collector"), ("127.0.0.1", 9))
    told = {"scenario": str(scenario_file), "arms": [asdict(Arm.parse("off"))], "hosts": hosts, "seed": 1}
    order = json.dumps(told | {"traces_endpoint": "http://127.0.0.1:9/v1/traces"}) + "\n"
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "sim.overhead.worker"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, text=True, cwd=ROOT) as worker:
        theirs.close()
        with ours:
            ours.sendall(order.encode())
            if heard:
                ours.recv(1, socket.MSG_PEEK)
        _out, err = worker.communicate()

    assert (worker.returncode, err) == (0, "")


def test_worker_keeps_no_memory_of_what_it_has_counted(scenario_file, tmp_path):
    """The next measurement of its memory would count that too."""
    arms = (Arm.parse("off"),)
    with Bench(Plan(load(str(scenario_file)), arms, 400.0, 5, tmp_path)) as bench, bench.launch(arms) as launch:
        worker, _ = launch.places["off"]
        for _ in range(2):
            worker.ask(order="count", file="")
            worker.ask(order="counted")
        opened = [str(descriptor.readlink()) for descriptor in Path(f"/proc/{worker._process.pid}/fd").iterdir()]

    assert [path for path in opened if "allocations" in path] == []


PRINTING = """
print("loaded")


class Printing:
    PRIORITY = 5
    VERSION = "1"

    def access(self, kong, conf):
        print("served")
        try:
            input()
        except EOFError:
            return
        kong.response.exit(500)
"""

SILENT = """
import asyncio


class Silent:
    PRIORITY = 5
    VERSION = "1"

    async def access(self, kong, conf):
        await asyncio.Event().wait()
"""


def test_plugin_may_print_and_read(scenario_file, tmp_path, monkeypatch):
    """What it prints is no answer of the measured worker, and what it reads is no order to it."""
    (tmp_path / "printing.py").write_text(PRINTING)
    monkeypatch.chdir(tmp_path)
    arms = (Arm.parse("off"), Arm.parse("off+printing.py"))

    with Bench(Plan(load(str(scenario_file)), arms, 400.0, 5, tmp_path)) as bench, bench.launch(arms) as launch:
        blocks = bench.turn(launch, "paced", arms)

    assert [block.load.failed for block in blocks] == [0, 0]


def test_requests_that_are_never_answered_end_a_measurement(scenario_file, tmp_path, monkeypatch):
    """Which arm's is told, and soon."""
    (tmp_path / "silent.py").write_text(SILENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overhead_bench, "UNANSWERED_S", 0.5)
    arms = (Arm.parse("off+silent.py"),)

    with (
        Bench(Plan(load(str(scenario_file)), arms, 400.0, 5, tmp_path)) as bench,
        bench.launch(arms) as launch,
        pytest.raises(MeasurementError, match=r"^requests of arm off\+silent.py are not answered$"),
    ):
        bench.turn(launch, "paced", arms)


def test_load_that_is_given_up_ends_in_silence(caplog):
    """As when the user interrupts the measurement: a block under way is no error."""

    async def given_up():
        ours, theirs = pipe()
        requests = (Request(host="127.0.0.1", port=1),)
        ours.send(overhead_load.Paced(requests, 1e-6, "poisson", 1))  # in some days
        ours.close()
        await overhead_load._serve(theirs)
        theirs.close()

    asyncio.run(given_up())

    assert caplog.records == []


def fields(told, rows):
    """Every field of overhead.json but those of the environment, and every column of blocks.csv."""
    figures = {key: figure for arm in told["arms"] for key, figure in arm["figures"].items()}
    inner = {name for figure in figures.values() for name in figure}
    return {*told, *told["arms"][0], *told["breakdown"], *figures, *inner, *rows[0]}


def documented_fields():
    """What the page names in code."""
    page = (ROOT / "docs/overhead-method.md").read_text()
    section = page.partition("\n## overhead.json")[2].partition("\n## ")[0]
    return {word for code in re.findall(r"`([^`]*)`", section) for word in code.replace("[]", "").split()}


def test_command_measures_and_keeps_everything(scenario_file, tmp_path, monkeypatch, capsys):
    """Tables on stdout; figures, raw blocks, scenario and page in the folder."""
    monkeypatch.setattr(measurement, "MEMORY_LAUNCHES", 1)
    out = tmp_path / "out"
    command = ["kongsim", "overhead", str(scenario_file), "--arms", "off,1.0", "--time", "2s", "--precision", "50%"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(out)])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    shown = capsys.readouterr()
    assert (ended.value.code, shown.err) == (0, "")
    assert "off again (A/A)" in shown.out
    assert "where the tracing of 1.0 goes" in shown.out
    told = json.loads((out / "overhead.json").read_text())
    assert [arm["arm"] for arm in told["arms"]] == ["off", "off again", "1.0"]
    with (out / "blocks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["stage"] for row in rows} == {"paced", "saturated", "parts"}
    assert fields(told, rows) <= documented_fields()
    shown = (out / "overhead.html").read_text()
    assert told["sentence"] in shown
    assert "Plotly" in shown
    assert (out / "scenario.yaml").is_file()
    assert not list(out.glob("*.bin"))
