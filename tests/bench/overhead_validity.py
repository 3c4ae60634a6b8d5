"""Whether `kongsim overhead` can be believed: false alarms where nothing differs, and a small difference that is found.

    python -m tests.bench.overhead_validity [AGAIN] [FOUND]

AGAIN short comparisons of a gateway with itself (40 by default): at most 5 % of their intervals may exclude 0. Then
FOUND comparisons (10) of at most 60 s with a plugin that keeps the CPU busy for 2 % of a request's CPU time: nearly all
should exclude 0. It prints every interval, and both counts. It takes up to 20 minutes; nothing else should run then.
"""

import sys
import tempfile
from pathlib import Path

from sim.overhead.arms import Arm
from sim.overhead.bench import Bench, Plan
from sim.overhead.measurement import Measurement, cpu_us, pace
from sim.overhead.statistics import Interval
from sim.scenario import Scenario, load

RATE_PER_S = 1000
AGAIN_S, FOUND_S = 8.0, 60.0
SHARE = 0.02
PRECISION = 0.005

SCENARIO = """
name: validity
seed: 1
gateway:
  workers: 1
  config:
    services: [{name: orders, url: "http://default", routes: [{name: all, paths: [/]}]}]
upstreams: {default: {}}
load: [{executor: constant-arrival-rate, rate: 1000/s, duration: 1s, arrival: poisson}]
"""

PLUGIN = """
from time import perf_counter_ns


class Busy:
    NAME = "busy"
    PRIORITY = 5
    VERSION = "1"

    def access(self, _kong, _conf):
        until = perf_counter_ns() + %d
        while perf_counter_ns() < until:
            pass
"""


def compared(scenario: Scenario, arms: tuple[Arm, ...], seed: int, time_s: float, folder: Path) -> Measurement:
    """The paced stage of a measurement, and no more."""
    plan = Plan(scenario, arms, RATE_PER_S, seed, folder)
    measured = Measurement(plan, PRECISION)
    with Bench(plan) as bench:
        pace(bench, measured, time_s, lambda _stage, _share: None)
    return measured


def told(name: str, interval: Interval | None) -> bool:
    """Print an interval; whether it excludes 0."""
    if interval is None:
        print(f"{name}: none")
        return False
    verdict = "differs" if interval.excludes_zero else "no difference"
    print(f"{name}: {interval.value:+.2f} us, {interval.low:+.2f} to {interval.high:+.2f}: {verdict}", flush=True)
    return interval.excludes_zero


def main(again: int, found: int) -> None:
    """Run both, and print the counts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "validity.yaml").write_text(SCENARIO)
        scenario = load(str(folder / "validity.yaml"))
        alarms = 0
        for seed in range(again):
            measured = compared(scenario, (Arm.parse("off"),), seed, AGAIN_S, folder)
            alarms += told(f"A/A {seed + 1}", measured.added("off again", cpu_us))
        if again:
            print(f"false alarms: {alarms} of {again}")
        hits = 0
        for seed in range(found):
            hits += told(f"2 % {seed + 1}", busy(scenario, 1000 + seed, folder))
        if found:
            print(f"found: {hits} of {found}")


def busy(scenario: Scenario, seed: int, folder: Path) -> Interval | None:
    """What a loop of 2 % of a request's CPU time adds to the same plugin with none."""
    idle, loop = folder / "idle.py", folder / "loop.py"
    idle.write_text(PLUGIN % 0)
    arms = (Arm.parse(f"off+{idle}"),)
    costs = compared(scenario, arms, seed, 5.0, folder).values("paced", arms[0].name, cpu_us)
    loop.write_text(PLUGIN % round(SHARE * 1000 * sum(costs) / len(costs)))
    measured = compared(scenario, (*arms, Arm.parse(f"off+{loop}")), seed, FOUND_S, folder)
    print(f"after {measured.elapsed_s:.0f} s, of {sum(costs) / len(costs):.1f} us: ", end="")
    return measured.added(f"off+{loop}", cpu_us)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:3]]
    main(*numbers, *(40, 10)[len(numbers) :])
