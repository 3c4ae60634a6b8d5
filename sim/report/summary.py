"""The summary of a run: ``summary.json``, schema ``kongsim.summary/1``; ``docs/summary-schema.md`` explains each field.

:func:`summarize` makes it from what the processes of a run reported; nothing in it refers to anything alive. A figure
that could not be measured is null, never 0. Latencies are in ms, CPU times in µs a request or in s, memory in MiB,
ledger accounts in spans, pools in objects.
"""

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from sim.faults import Fault
from sim.ledger import PoolBalance
from sim.scenario import Scenario
from sim.scoreboard import POOLS, Reading, Retired, Snapshot
from sim.threshold import evaluate
from sim.traces import SPANS_MAX
from sim.units import format_duration
from sim.workload import ClosedLoad, OpenLoad, mean_rate_per_s

SCHEMA: Final = "kongsim.summary/1"
FILE_NAME: Final = "summary.json"

Verdict = Literal["passed", "failed", "invalid", "interrupted"]

EXIT_CODES: Final[Mapping[Verdict, int]] = {"passed": 0, "failed": 99, "invalid": 98, "interrupted": 130}

BUSY_MAX: Final = 0.8
"""Share of a CPU beyond which the load generator itself holds virtual users up."""

_STATUS_CLASSES: Final = ("2xx", "3xx", "4xx", "5xx")
_NS_PER_US: Final = 1_000
_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000
_MIB: Final = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ThresholdResult(_Section):
    """One threshold, its measured value, in the unit of the metric, and whether it held."""

    expression: str
    value: float | None
    passed: bool


class Requests(_Section):
    """What became of the requests of the load."""

    offered: int
    sent: int
    completed: int
    failed: int
    unsent: int
    resent: int
    waited: int
    status_2xx: int
    status_3xx: int
    status_4xx: int
    status_5xx: int
    failed_by_reason: dict[str, int]
    by_status: dict[str, int]


class LatencyMs(_Section):
    """Time from the intended start of a request to the end of its answer, in ms."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    p99_9: float | None
    max: float | None


class Sampling(_Section):
    """Traces that upstreams with a sampler of their own were sent, and who kept them; all 0 without such."""

    traces: int
    gateway: int
    upstream: int
    both: int


class FaultWindow(_Section):
    """Requests that started while a fault was felt, beside all others; null without faults."""

    requests: int
    outside_requests: int
    latency_ms: LatencyMs
    outside_latency_ms: LatencyMs
    p99_ratio: float | None


class ErrorLog(_Section):
    """Lines of the gateway's error log."""

    lines: int
    bytes: int
    notice: int
    warn: int
    error: int
    crit: int
    alert: int
    emerg: int


class Load(_Section):
    """How well the load generator kept up."""

    offered_rate_per_s: float | None
    achieved_rate_per_s: float
    duration_s: float
    lag_ms: dict[str, float | None]
    connections_opened: int
    cpu_s: float


class LoadEntry(_Section):
    """What became of the requests of one of the loads."""

    executor: str
    request: str
    offered: int
    completed: int
    failed: int
    unsent: int
    completed_per_s: float | None
    status_2xx: int
    status_3xx: int
    status_4xx: int
    status_5xx: int
    by_status: dict[str, int]
    latency_ms: LatencyMs


class Collector(_Section):
    """What arrived at the collector: export requests, spans, and what is wrong with the traces that they make."""

    requests: int
    refused: int
    received_unique: int
    received_duplicates: int
    unchecked: int
    unanswered: int
    needless: int
    rejected: int
    received_per_s: float | None
    traces: int
    orphans: int
    outside_parent: int
    unfinished: int
    rootless: int
    multi_rooted: int


class Upstream(_Section):
    """What an upstream answered."""

    requests: int
    by_status: dict[str, int]
    cpu_s: float


class Pool(_Section):
    """The balance of one pool: fetched = released + discarded + live."""

    fetched: int
    released: int
    discarded: int
    live: int
    hits: int
    misses: int
    free: int


class Worker(_Section):
    """One worker process; those of a slot that were too many to tell apart are added up, without pid."""

    slot: int
    generation: int | None
    incarnation: int | None
    incarnations: int
    pid: int | None
    ended: str | None
    requests: int
    status_2xx: int
    status_3xx: int
    status_4xx: int
    status_5xx: int
    connections: int
    spans: int
    cpu_s: float | None
    cpu_us_per_request: float | None
    rss_mib: float | None
    loop_lag_ms_max: float | None
    queue_depth_max: int
    queue_bytes_max: int
    ledger: dict[str, int]
    pools: dict[str, Pool]


class Totals(_Section):
    """All workers together; memory is that of the largest."""

    requests: int
    spans: int
    deaths: int
    cpu_s: float | None
    cpu_us_per_request: float | None
    rss_mib: float | None
    loop_lag_ms_max: float | None
    queue_depth_max: int
    queue_bytes_max: int
    pools: dict[str, Pool]


class Environment(_Section):
    """What the run ran on."""

    cpu: str
    cores: int
    memory_mib: int
    kernel: str
    python: str
    compiled: bool = False
    versions: dict[str, str]


class Summary(_Section):
    """The whole result of a run."""

    schema_: Literal["kongsim.summary/1"] = Field(SCHEMA, alias="schema")
    version: str
    scenario: str
    profile: str
    seed: int
    started_at: str
    elapsed_s: float
    verdict: Verdict
    invalid_reason: str | None
    thresholds: list[ThresholdResult]
    requests: Requests
    latency_ms: LatencyMs
    load: Load
    loads: list[LoadEntry]
    ledger: dict[str, int]
    collector: Collector
    upstreams: dict[str, Upstream]
    sampling: Sampling
    totals: Totals
    workers: list[Worker]
    faults: list[dict[str, Any]]
    fault_window: FaultWindow
    error_log: ErrorLog
    warnings: list[str]
    environment: Environment

    @property
    def exit_code(self) -> int:
        """The exit code of the command line for this verdict."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> str:
        """Return the content of ``summary.json``."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write ``summary.json``; raises OSError."""
        path.write_text(self.to_json(), encoding="utf-8")


def summarize(
    scenario: Scenario,
    *,
    load: Mapping[str, Any],
    collector: Mapping[str, Any],
    upstreams: Mapping[str, Mapping[str, Any]],
    workers: Reading,
    environment: Environment,
    started_at: datetime,
    elapsed_s: float,
    error_log: Mapping[str, int],
    faults: Sequence[Mapping[str, Any]] = (),
    not_carried_out: Iterable[Fault] = (),
    interrupted: bool = False,
) -> Summary:
    """Put together what a run has told.

    Args:
        scenario: what was run.
        load: last report of :mod:`sim.load.driver`.
        collector: last report of :mod:`sim.collector`.
        upstreams: last report of each :mod:`sim.origin`, by name.
        workers: the scoreboard, read when all workers had been reaped.
        environment: what it ran on.
        started_at: wall-clock time of the beginning, with its time zone.
        elapsed_s: from the beginning to the end of the last process.
        error_log: what :func:`sim.error_log.count_lines` says of the gateway's.
        faults: those that were carried out: ``{at_s, target, kind}`` and what else is known of each.
        not_carried_out: those that were not.
        interrupted: the user ended it.
    """
    sections = {
        "requests": _requests(load),
        "latency_ms": _latency(load["latency_ms"], load["requests"]["completed"]),
        "loads": [_load_entry(*each) for each in zip(scenario.load, load["executors"], strict=True)],
        "fault_window": _fault_window(load["fault_window"]),
        "sampling": {name: sum(r["sampling"][name] for r in upstreams.values()) for name in Sampling.model_fields},
        "error_log": {name: error_log[name] for name in ErrorLog.model_fields},
        "ledger": asdict(workers.ledger),
        "collector": _collector(collector),
        "totals": _totals(workers),
    }
    thresholds = evaluate(scenario.thresholds, sections)
    return Summary.model_validate(
        {
            **sections,
            "version": version("kongsim"),
            "scenario": scenario.name,
            "profile": scenario.profile,
            "seed": scenario.seed,
            "started_at": started_at.isoformat(timespec="milliseconds"),
            "elapsed_s": round(elapsed_s, 3),
            "verdict": _verdict(thresholds, valid=load["valid"], interrupted=interrupted),
            "invalid_reason": load["invalid_reason"],
            "thresholds": thresholds,
            "load": {
                "offered_rate_per_s": mean_rate_per_s(scenario.load),
                "achieved_rate_per_s": load["achieved_rate_per_s"],
                "duration_s": scenario.duration_s,
                "lag_ms": load["lag_ms"],
                "connections_opened": load["connections"]["opened"],
                "cpu_s": load["cpu_s"],
            },
            "upstreams": {name: _upstream(report) for name, report in upstreams.items()},
            "workers": [_worker(account) for account in sorted(workers.accounts, key=_birth) if _incarnations(account)],
            "faults": faults,
            "warnings": [
                *scenario.gateway.warnings,
                *_caveats(collector, not_carried_out, interrupted=interrupted),
                *_held_up_by(load),
            ],
            "environment": environment,
        }
    )


def _verdict(thresholds: Iterable[Mapping[str, Any]], *, valid: bool, interrupted: bool) -> Verdict:
    if interrupted:
        return "interrupted"
    if not valid:
        return "invalid"
    return "passed" if all(threshold["passed"] for threshold in thresholds) else "failed"


def _requests(load: Mapping[str, Any]) -> dict[str, Any]:
    counts = ("offered", "sent", "completed", "failed", "unsent", "resent", "waited")
    return {
        **{name: load["requests"][name] for name in counts},
        **_statuses(load),
        "failed_by_reason": load["failed_by_reason"],
    }


def _load_entry(load: OpenLoad | ClosedLoad, report: Mapping[str, Any]) -> dict[str, Any]:
    told = {"executor": load.executor, "request": f"{load.request.method} {load.request.path}", **_statuses(report)}
    return {**report, **told, "latency_ms": _latency(report["latency_ms"], report["completed"])}


def _statuses(report: Mapping[str, Any]) -> dict[str, Any]:
    by_status = _by_status(report)
    classes = {
        f"status_{name}": sum(count for status, count in by_status.items() if status[0] == name[0])
        for name in _STATUS_CLASSES
    }
    return {**classes, "by_status": by_status}


def _latency(latency_ms: Mapping[str, float], requests: int) -> Mapping[str, float | None]:
    return latency_ms if requests else dict.fromkeys(LatencyMs.model_fields)


def _fault_window(window: Mapping[str, Any] | None) -> dict[str, Any]:
    if window is None:
        nothing = _latency({}, 0)
        counts = {"requests": 0, "outside_requests": 0}
        return {**counts, "latency_ms": nothing, "outside_latency_ms": nothing, "p99_ratio": None}
    inside = _latency(window["latency_ms"], window["requests"])
    outside = _latency(window["outside_latency_ms"], window["outside_requests"])
    ratio = inside["p99"] / outside["p99"] if inside["p99"] and outside["p99"] else None
    return {**window, "latency_ms": inside, "outside_latency_ms": outside, "p99_ratio": ratio}


def _caveats(collector: Mapping[str, Any], not_carried_out: Iterable[Fault], *, interrupted: bool) -> Iterable[str]:
    """What a reader of the figures has to know."""
    why = "the run was interrupted" if interrupted else "nobody was there"
    for fault in not_carried_out:
        yield f"fault {fault.target} {fault.kind} at {format_duration(fault.at)} was not carried out: {why}"
    if collector["unchecked"]:
        yield (
            f"the collector knows {SPANS_MAX:,} spans at most: {collector['unchecked']:,} more came, "
            f"of which nobody knows whether they are new; choose a shorter load"
        )
    kept, taken_in = collector["captured"], collector["received"]
    if kept is not None and kept < taken_in:
        yield (
            f"spans.parquet holds the first {kept:,} of the {taken_in:,} spans that arrived: "
            f"a shorter load, or a lower sampling rate, has room for all"
        )


def _held_up_by(load: Mapping[str, Any]) -> Iterable[str]:
    """Say so where virtual users waited for the generator, which serves all of them on one CPU."""
    busy, requests = load["busy_with_users"], load["requests"]
    if busy is not None and busy > BUSY_MAX and requests["completed"] > requests["failed"]:
        yield (
            f"the load generator was busy {min(busy, 1):.0%} of the time that it had virtual users: "
            f"they waited for it too, and the gateway may be able to serve more"
        )


def _collector(collector: Mapping[str, Any]) -> dict[str, Any]:
    refused = sum(count for status, count in collector["by_status"].items() if int(status) != HTTPStatus.OK)
    return {name: refused if name == "refused" else collector[name] for name in Collector.model_fields}


def _upstream(report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "requests": report["requests"],
        "by_status": _by_status(report),
        "cpu_s": report["cpu_s"],
    }


def _by_status(report: Mapping[str, Any]) -> dict[str, int]:
    return {str(status): count for status, count in sorted(report["by_status"].items())}


def _worker(account: Snapshot | Retired) -> dict[str, Any]:
    values = account.values
    return {
        **_identity(account),
        "slot": account.slot,
        "incarnations": _incarnations(account),
        "requests": values["requests"],
        **{f"status_{name}": values[f"responses_{name}"] for name in _STATUS_CLASSES},
        "connections": values["connections"],
        "spans": values["created"],
        "cpu_us_per_request": _cpu_us_per_request([account]),
        **_measurements([account]),
        "queue_depth_max": values["queue_depth_max"],
        "queue_bytes_max": values["queue_bytes_max"],
        "ledger": asdict(account.ledger),
        "pools": {tag: _pool(balance) for tag, balance in account.pools.items()},
    }


def _identity(account: Snapshot | Retired) -> dict[str, Any]:
    if isinstance(account, Retired):
        return dict.fromkeys(("generation", "incarnation", "pid", "ended"))
    return {
        "generation": account.generation,
        "incarnation": account.serial,
        "pid": account.pid,
        "ended": _ended(account.exit_code),
    }


def _measurements(accounts: Iterable[Snapshot | Retired]) -> dict[str, float | None]:
    """What workers measure of themselves from when they serve; of those that did not live to do so there is nothing."""
    measured = [account for account in accounts if account.values["cpu_ns"]]
    if not measured:
        return dict.fromkeys(("cpu_s", "rss_mib", "loop_lag_ms_max"))
    rss_bytes = [account.values["rss_bytes"] for account in measured if isinstance(account, Snapshot)]
    return {
        "cpu_s": sum(account.values["cpu_ns"] for account in measured) / _NS_PER_S,
        "rss_mib": max(rss_bytes) / _MIB if rss_bytes else None,
        "loop_lag_ms_max": max(account.values["loop_lag_ns_max"] for account in measured) / _NS_PER_MS,
    }


def _totals(workers: Reading) -> dict[str, Any]:
    accounts = workers.accounts
    return {
        "requests": workers.sum("requests"),
        "spans": workers.sum("created"),
        "deaths": sum(worker.exit_code not in {0, None} for worker in workers.workers)
        + sum(retired.deaths for retired in workers.retired),
        "cpu_us_per_request": _cpu_us_per_request(accounts),
        **_measurements(accounts),
        "queue_depth_max": max(account.values["queue_depth_max"] for account in accounts),
        "queue_bytes_max": max(account.values["queue_bytes_max"] for account in accounts),
        "pools": {tag: _pool(sum((a.pools[tag] for a in accounts), start=PoolBalance())) for tag in POOLS},
    }


def _cpu_us_per_request(accounts: Iterable[Snapshot | Retired]) -> float | None:
    """CPU time since a worker began to serve, by request: its start is not the requests' cost."""
    all_values = [account.values for account in accounts]
    requests = sum(values["requests"] for values in all_values)
    cpu_ns = sum(values["cpu_ns"] - values["cpu_ns_at_ready"] for values in all_values)
    return cpu_ns / _NS_PER_US / requests if requests else None


def _pool(balance: PoolBalance) -> dict[str, int]:
    return {name: getattr(balance, name) for name in Pool.model_fields}


def _incarnations(account: Snapshot | Retired) -> int:
    return 1 if isinstance(account, Snapshot) else account.incarnations


def _birth(account: Snapshot | Retired) -> tuple[int, int]:
    return account.slot, account.serial if isinstance(account, Snapshot) else 0


def _ended(exit_code: int | None) -> str | None:
    if exit_code is None:
        return None
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit {exit_code}"
