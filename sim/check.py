"""Risky settings of tracing and export, named before anything runs (`kongsim check`).

A rule looks at one opentelemetry plugin and at what stands around it, and yields what it finds: where, what follows in
numbers, what to do. `RULES` has them all by code; `docs/check.md` explains each with a wrong and a right example.

What a file does not say is not held against it. A kong.yml knows no load, so the rules that need a rate are asked only
when one is given; a scenario's own load, collector latency and longest outage are what is expected of it. Spans per
request are counted from the instrumentations and the plugins: one for the request, the router, the balancer's try and a
host name's resolution, and one for each phase of a plugin. Load is taken to be spread evenly over the workers, and at
its highest rate. What an attempt takes while the collector is away depends on how it is: a scenario's fault says so,
else it fails at once, as on a refused connection; what depends on it is told with it.

Rates in 1/s, times in s, sizes in bytes. Source: kong-semantics sections 8, 10, 11, 13, 14, 15 and 17.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kongtrace.queue_profile import PROFILES
from sim.config import INSTRUMENTATIONS, Gateway, Tracing
from sim.declarative import without_nulls
from sim.document import Document, FieldPath, written
from sim.errors import FieldError, UserError
from sim.exporter import seconds
from sim.outage import Attempts, Outage, outages, slowdowns_s
from sim.plugins import BUNDLED
from sim.plugins.opentelemetry import OpenTelemetryConfig, flaw
from sim.resolver import is_address
from sim.scenario import Scenario
from sim.units import format_duration, parse_duration, parse_rate
from sim.workload import peak_rate_per_s

OUTAGE_S: Final = 5.0
"""How long a collector may be away where nothing says otherwise: for a restart of one."""

ROUND_TRIP_S: Final = 0.005
"""What a request to a collector takes where nothing says otherwise: one in the same data centre, and its work."""

SPAN_BYTES: Final = 145
"""An encoded span, on an average of Kong's instrumentations."""

ENTRY_BYTES: Final = 200
"""The memory of a span that waits: what it is encoded, and Python's part."""

FULL_LINE_BYTES: Final = 390
"""A line of Kong's error log about a span that a full queue drops (reference figures of a real nginx)."""

UNTYPED_LINE_BYTES: Final = 290
"""A line about a span whose bytes the queue does not know; the text is that much shorter."""

ENTRIES_MAX: Final = 1_000_000
"""The largest `max_entries` (kong-semantics Q3)."""

RETRY_DELAY_S: Final = 5.0
"""A `max_retry_delay` that finds the collector soon when it is back, and lets it be while it is away."""


class Finding(NamedTuple):
    """What a rule found.

    Attributes:
        rule: its code, `KC001` and so on.
        file: where.
        line: in the file, from 1.
        field: path of the field that is risky, or that is missing.
        message: what follows from it, in numbers where a rate is known.
        cure: what to do.
    """

    rule: str
    file: str
    line: int
    field: str
    message: str
    cure: str

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{self.file}:{self.line}: {self.rule} {self.field}: {self.message}; {self.cure}"


class Expected(NamedTuple):
    """What a gateway is expected to meet.

    Attributes:
        requests_per_s: of all workers together; None: not known.
        outage_s: how long the collector may be away without a loss; None: as the file has it, else `OUTAGE_S`.
        round_trip_s: what an export request takes; None: as the file has it, else `ROUND_TRIP_S`.
    """

    requests_per_s: float | None = None
    outage_s: float | None = None
    round_trip_s: float | None = None


@dataclass(frozen=True, slots=True)
class Exporting:
    """An opentelemetry plugin, and what stands around it.

    Attributes:
        given: its configuration as written.
        config: the same with defaults.
        gateway: that it belongs to.
        scenario: that runs the gateway; None: a kong.yml, which knows neither tracing nor workers.
        told: fields of the gateway's tracing that somebody set; a scenario knows all of them.
        requests_per_s: of all workers; None: not known.
        attempts: that its queue makes in the outage that is to be survived.
        round_trip_s: of an export request.
        slowdowns_s: what it takes while the collector is slow, for how long that is, and for how long requests come.
    """

    given: Mapping[str, Any]
    config: OpenTelemetryConfig
    gateway: Gateway
    scenario: Scenario | None
    told: Collection[str]
    requests_per_s: float | None
    attempts: Attempts
    round_trip_s: float
    slowdowns_s: Sequence[tuple[float, float, float]]

    @property
    def is_kong(self) -> bool:
        """Whether the real gateway's traps are there."""
        return self.gateway.profile == "kong"

    @property
    def sampling_rate(self) -> float:
        """Share of traces that are exported: the plugin's own rate replaces the global one (M5, O14)."""
        own = self.config.sampling_rate
        known = self.gateway.tracing.sampling_rate if "sampling_rate" in self.told else 1.0
        return known if own is None else own

    @property
    def spans_per_s(self) -> float | None:
        """What one worker's queue gets; None: no rate is known, or nothing is exported."""
        if self.requests_per_s is None:
            return None
        requests_per_s = self.requests_per_s / self.gateway.workers
        spans = spans_per_request(self.gateway, known="instrumentations" in self.told)
        return requests_per_s * spans * self.sampling_rate


def expected_of(options: Mapping[str, str | None]) -> Expected:
    """Read what the command line says of `rate`, `outage` and `round_trip`; raises UserError."""
    parsers = {"rate": parse_rate, "outage": parse_duration, "round_trip": parse_duration}
    told = {}
    for name, parse in parsers.items():
        text = options.get(name)
        try:
            told[name] = None if text is None else parse(text)
        except FieldError as error:
            raise UserError(error.message, field=f"--{name.replace('_', '-')}", cure=error.cure) from None
    return Expected(told["rate"], told["outage"], told["round_trip"])


class Risk(NamedTuple):
    """What a rule sees.

    Attributes:
        path: of the field, below the plugin's configuration; one that begins with `TOP` is the scenario's.
        message: what follows from it.
        cure: what to do.
    """

    path: FieldPath
    message: str
    cure: str


Rule = Callable[[Exporting], Iterator[Risk]]

TOP: Final = ".."


def max_bytes_has_no_effect(plugin: Exporting) -> Iterator[Risk]:
    """Kong does not know the bytes of a span (Q4, H27); nobody gets one into no bytes."""
    max_bytes, rate = plugin.config.queue.max_bytes, plugin.spans_per_s
    if max_bytes is None or (max_bytes > 0 and not plugin.is_kong):
        return
    if max_bytes <= 0:
        consequence = "no span is taken at all: the queue is full from the start"
    else:
        storm = f", {_rate(rate)} lines/s or {_size(rate * UNTYPED_LINE_BYTES)}/s of log" if rate else ""
        consequence = f"bounds nothing, since a span has no bytes for Kong; each costs an error line{storm}"
    yield Risk(("queue", "max_bytes"), consequence, "remove it; max_entries is what bounds this queue")


def queue_is_smaller_than_a_batch(plugin: Exporting) -> Iterator[Risk]:
    """Enqueue raises when the job holds all permits (H28)."""
    queue = plugin.config.queue
    if plugin.is_kong and queue.max_entries < queue.max_batch_size:
        yield Risk(
            ("queue", "max_entries"),
            f"{queue.max_entries} waiting spans can never make a batch of {queue.max_batch_size}: once they are there, "
            "each further span raises in the log phase, and the request's spans are never recycled",
            f"set it to {50 * queue.max_batch_size} or more, or max_batch_size to at most {queue.max_entries}",
        )


def batch_kills_its_job(plugin: Exporting) -> Iterator[Risk]:
    """Lua unpacks no more than 7997 entries (H26)."""
    size, most = plugin.config.queue.max_batch_size, PROFILES[plugin.gateway.profile].batch_entries_max
    if most is not None and size > most:
        yield Risk(
            ("queue", "max_batch_size"),
            f"a batch of more than {most} spans kills the job that sends it; nobody drains the queue any more, and all "
            f"that comes after the first {plugin.config.queue.max_entries} spans pushes older ones out",
            f"set it to at most {most}; 200 to 2000 is usual",
        )


def batches_are_slower_than_spans(plugin: Exporting) -> Iterator[Risk]:
    """One batch at a time: the ceiling is batch size over round trip (Q22), for good or while the collector is slow."""
    rate, queue = plugin.spans_per_s, plugin.config.queue
    if rate is None or queue.concurrency_limit == -1:
        return
    for trip_s, lasts_s, loaded_s in ((plugin.round_trip_s, math.inf, math.inf), *plugin.slowdowns_s):
        ceiling = queue.max_batch_size / trip_s if trip_s else math.inf
        if rate <= ceiling:
            continue
        piled = _piled(rate, queue.max_batch_size, trip_s, lasts_s, loaded_s)
        if piled <= queue.max_entries:
            continue
        lost = f"{_rate(rate - ceiling)} spans/s are lost once {queue.max_entries} wait"
        if lasts_s < math.inf:
            lost = (
                f"in {format_duration(lasts_s)} of that {_rate(piled)} spans pile up, and {queue.max_entries} can wait"
            )
        needed, most = _round_up(2 * rate * trip_s), PROFILES[plugin.gateway.profile].batch_entries_max
        cure = f"set it to {needed}, or sample less"
        if most is not None and needed > most:
            cure = f"sample less, or use more workers: {needed} would do, but more than {most} kill their job"
        yield Risk(
            ("queue", "max_batch_size"),
            f"one queue sends {queue.max_batch_size} spans each {format_duration(_rounded(trip_s))}, at most "
            f"{_rate(ceiling)}/s, and {_rate(rate)}/s are expected of each worker: {lost}",
            cure,
        )
        return


def _piled(rate: float, batch_size: int, trip_s: float, lasts_s: float, loaded_s: float) -> float:
    """Return how many spans wait at most while requests of this length are sent, the first as the time begins."""
    if lasts_s == math.inf:
        return math.inf
    return _backlog_max(rate, batch_size, trip_s, min(math.ceil(lasts_s / trip_s) * trip_s, loaded_s))


def _backlog_max(rate: float, batch_size: int, period_s: float, filling_s: float) -> float:
    """Return how many spans wait at most: each period ends with room for a batch, the first one begins with none."""
    taken = math.ceil(filling_s / period_s) - 1
    peaks_s = {min(filling_s, period_s): 0, taken * period_s: max(0, taken - 1), filling_s: taken}
    return max(rate * at_s - batch_size * before for at_s, before in peaks_s.items())


def outage_is_longer_than_the_queue(plugin: Exporting) -> Iterator[Risk]:
    """A batch is given up after its time, and the oldest are dropped when the queue is full (Q14, Q20-Q22, H30)."""
    attempts = plugin.attempts
    if attempts.given_up or (attempts.outage.lasts_s and not attempts.period_s):
        yield _batches_are_given_up(plugin)
    if plugin.spans_per_s and attempts.period_s and plugin.config.queue.concurrency_limit == 1:
        yield from _queue_overflows(plugin, plugin.spans_per_s)


def _batches_are_given_up(plugin: Exporting) -> Risk:
    queue, outage, patience_s = plugin.config.queue, plugin.attempts.outage, plugin.attempts.patience_s
    enough_s = outage.fails_until_s
    if not plugin.is_kong:
        enough_s += max(outage.retry_after_s, min(queue.max_retry_delay, 2 * outage.lasts_s))
    lasts, after = format_duration(outage.lasts_s), f"{format_duration(_rounded(patience_s))} {outage}"
    cure = f"set it to {_round_up(enough_s)}"
    if not patience_s and (queue.concurrency_limit == -1 or not plugin.attempts.period_s):
        message = f"what fails is given up at once: of {lasts} of outage every span is lost"
    elif queue.concurrency_limit == -1:
        message = f"each span is given up after {after}, and {lasts} of outage are to be survived"
    else:
        batches = f"{plugin.attempts.given_up} of up to {queue.max_batch_size} spans"
        message = f"a batch is given up after {after}: {batches} in {lasts} of outage"
        cure += ", which saves these alone: the others wait behind them, as far as max_entries lets them"
    return Risk(("queue", "max_retry_time"), message, cure)


def _capacity(plugin: Exporting) -> tuple[str, int, int]:
    """Return what bounds the queue, how many spans it lets wait, and its unit in one span."""
    queue = plugin.config.queue
    if queue.max_bytes is not None and PROFILES[plugin.gateway.profile].enforces_bytes:
        in_bytes = max(0, queue.max_bytes) // SPAN_BYTES
        if in_bytes < queue.max_entries:
            return "max_bytes", in_bytes, SPAN_BYTES
    return "max_entries", queue.max_entries, 1


def _queue_overflows(plugin: Exporting, rate: float) -> Iterator[Risk]:
    queue, attempts, outage = plugin.config.queue, plugin.attempts, plugin.attempts.outage
    outage_s = min(outage.lasts_s, outage.loaded_s)
    late_s = min(attempts.noticed_s, outage.loaded_s) - outage_s
    field, capacity, factor = _capacity(plugin)
    # The batch that is being sent came before, and each that is given up makes room for one.
    period_s, batch_size = attempts.period_s, queue.max_batch_size
    if _backlog_max(rate, batch_size, period_s, outage_s + late_s) <= capacity:
        return
    taken = (
        0 if capacity <= rate * period_s else math.ceil((capacity - rate * period_s) / (rate * period_s - batch_size))
    )
    held_s = (capacity + taken * batch_size) / rate
    late = f", {format_duration(_rounded(late_s))} more until the next attempt {outage}" if late_s >= 1 else ""
    line = f", each with an error line, {_size(rate * FULL_LINE_BYTES)}/s of log" if plugin.is_kong else ""
    least_late_s = outage.fails_until_s - outage.lasts_s + max(outage.retry_after_s, RETRY_DELAY_S)
    needed = _round_up(rate * (outage_s + min(late_s, least_late_s)))
    sooner = f", and max_retry_delay to {RETRY_DELAY_S:g}" if late_s > least_late_s else ""
    yield Risk(
        ("queue", field),
        f"at {_rate(rate)} spans/s this queue holds {format_duration(_rounded(held_s))} of outage, and "
        f"{format_duration(outage_s)} are to be survived{late}; from then on the oldest spans are dropped{line}",
        f"set it to {needed * factor}{sooner}, about {_size(needed * ENTRY_BYTES)} for each worker"
        if needed <= ENTRIES_MAX
        else f"sample less, or use more workers: not even {ENTRIES_MAX} entries are enough",
    )


def every_span_is_a_job(plugin: Exporting) -> Iterator[Risk]:
    """Without a limit to concurrency there is no queue, and each span is a timer and a request (Q23, N4, H22)."""
    if plugin.config.queue.concurrency_limit != -1:
        return
    rate, limit = plugin.spans_per_s, plugin.gateway.nginx.lua_max_running_timers
    posts = f", {_rate(rate)} requests/s for each worker" if rate else ""
    reach = f", {format_duration(_rounded(limit / rate))} into an outage," if rate else ""
    yield Risk(
        ("queue", "concurrency_limit"),
        f"each span is a timer and a request of its own{posts}; more than {limit} at once{reach} are not run, and lost",
        "set it to 1: batches of max_batch_size over one connection",
    )


def quitting_worker_has_no_limit(plugin: Exporting) -> Iterator[Risk]:
    """A reload keeps the old workers until their last request has ended (W12, W13, H32, H50)."""
    faults = () if plugin.scenario is None else plugin.scenario.faults
    leaves = any(fault.target == "master" and fault.kind in ("reload", "quit") for fault in faults)
    if leaves and not plugin.gateway.nginx.worker_shutdown_timeout:
        patience = format_duration(_rounded(plugin.attempts.patience_s))
        which = "each of its batches keeps it" if plugin.is_kong else "its batches together keep it"
        stay = f"; with the collector down, {which} for {patience} more"
        yield Risk(
            (TOP, "gateway", "nginx", "worker_shutdown_timeout"),
            "is 0, and workers are told to quit: each stays for as long as its slowest request, with its memory and "
            f"its queue{stay}",
            "set it to 10s, and the supervisor's patience to more than that",
        )


def two_sampling_rates(plugin: Exporting) -> Iterator[Risk]:
    """The plugin's rate replaces the global one, of which nothing tells (O9, O14, M5)."""
    own, everywhere = plugin.config.sampling_rate, plugin.gateway.tracing.sampling_rate
    if "sampling_rate" not in plugin.told or own is None or own == everywhere:
        return
    rate = plugin.spans_per_s
    count = f", {_rate(rate)} spans/s for each worker" if rate else ""
    yield Risk(
        ("sampling_rate",),
        f"{own:.2%} of traces are exported{count}: it replaces tracing.sampling_rate, whose {everywhere:.2%} count for "
        "requests that this plugin does not see only",
        "leave it out, or give both the same value",
    )


def field_is_deprecated(plugin: Exporting) -> Iterator[Risk]:
    """What a coming version of Kong will refuse (O1, O5, O8, Q27)."""
    for field, instead in _DEPRECATED.items():
        if field in plugin.given:
            yield Risk((field,), "is deprecated and goes with a coming version of Kong", f"write {instead}")


_DEPRECATED: Final = {
    "endpoint": "traces_endpoint",
    "batch_span_count": "queue.max_batch_size",
    "batch_flush_delay": "queue.max_coalescing_delay",
    "header_type": "propagation, with extract, inject and default_format",
}


def parent_is_dropped(plugin: Exporting) -> Iterator[Risk]:
    """Nothing is read from the request, so each trace begins at the gateway (X27, X29)."""
    propagation = plugin.config.propagation
    cure = "add extract: [w3c], with the formats that your clients send"
    beginning = "the client's trace headers are not read: each of its traces is cut in two at the gateway"
    if propagation.extract is None and (propagation.inject is not None or propagation.clear is not None):
        yield Risk(("propagation", "inject" if propagation.inject is not None else "clear"), beginning, cure)
    elif propagation.extract == ():
        yield Risk(("propagation", "extract"), beginning, cure)
    elif plugin.config.header_type == "ignore" and propagation.extract is None:
        yield Risk(("header_type",), beginning, "remove it, or use propagation with extract")


def b3_hides_w3c(plugin: Exporting) -> Iterator[Risk]:
    """A tracestate makes the b3 extractor succeed without ids (X13, H33)."""
    extract = plugin.config.propagation.extract or ()
    if plugin.is_kong and "b3" in extract and "w3c" in extract and extract.index("b3") < extract.index("w3c"):
        yield Risk(
            ("propagation", "extract"),
            "a request with traceparent and any tracestate, as every OpenTelemetry sdk sends them, is taken for an "
            "empty b3 context: its trace is cut at the gateway, and the upstream gets two traces in its headers",
            "put w3c before b3",
        )


def all_is_not_first(plugin: Exporting) -> Iterator[Risk]:
    """`all` counts in the first place only (I2, H35)."""
    words = plugin.gateway.tracing.instrumentations
    if "instrumentations" in plugin.told and "all" in words[1:] and words[0] != "all":
        made = dict.fromkeys(("request", *(word for word in words if word != "all")))
        yield Risk(
            (TOP, "gateway", "tracing", "instrumentations"),
            f"all counts in the first place only: of {len(INSTRUMENTATIONS) - 2} kinds of span none but "
            f"{', '.join(made)} is made",
            "write [all]",
        )


def nothing_is_traced(plugin: Exporting) -> Iterator[Risk]:
    """Without instrumentations the plugin only passes headers on (O12, H12)."""
    if "instrumentations" in plugin.told and plugin.gateway.tracing.instrumentations[0] == "off":
        cure = "write [all] there, or leave traces_endpoint out"
        where = (TOP, "gateway", "tracing", "instrumentations")
        message = "is off: headers go to the upstream with the sampled bit off, and not one span is exported"
        yield Risk(where, message, cure)


def collector_is_slower_than_patience(plugin: Exporting) -> Iterator[Risk]:
    """A batch whose answer comes too late is sent again, though it was taken (Q22)."""
    trip_s, read_s = plugin.round_trip_s, seconds(plugin.config.read_timeout)
    if trip_s >= read_s:
        yield Risk(
            ("read_timeout",),
            f"the collector answers after {format_duration(trip_s)}, and is given up after {format_duration(read_s)}: "
            "each batch is sent again until max_retry_time, and the collector gets its spans many times",
            f"set it to {round(3000 * trip_s)}",
        )


def template_is_none(plugin: Exporting) -> Iterator[Risk]:
    """What cannot be filled in is exported as it is written (O19)."""
    for name, text in plugin.config.resource_attributes.items():
        if message := flaw(text):
            yield Risk(("resource_attributes", name), message, """write it as in $(headers.x_team or "none")""")


RULES: Final[Mapping[str, Rule]] = {
    "KC001": max_bytes_has_no_effect,
    "KC002": queue_is_smaller_than_a_batch,
    "KC003": batch_kills_its_job,
    "KC004": batches_are_slower_than_spans,
    "KC005": outage_is_longer_than_the_queue,
    "KC006": every_span_is_a_job,
    "KC007": quitting_worker_has_no_limit,
    "KC008": two_sampling_rates,
    "KC009": field_is_deprecated,
    "KC010": parent_is_dropped,
    "KC011": b3_hides_w3c,
    "KC012": all_is_not_first,
    "KC013": nothing_is_traced,
    "KC014": collector_is_slower_than_patience,
    "KC015": template_is_none,
}
"""The rules by code. A code is never given to another rule."""


def check_scenario(scenario: Scenario, expected: Expected) -> list[Finding]:
    """Return what is risky in a scenario, in the order of its lines.

    Its own load is the rate, unless one is expected since it has virtual users; what nobody expected otherwise is its
    collector's latency, and its longest outage.
    """
    trip_s = (scenario.collector.latency or None) if expected.round_trip_s is None else expected.round_trip_s
    rate = expected.requests_per_s or peak_rate_per_s(scenario.load)
    expected = expected._replace(requests_per_s=rate, round_trip_s=trip_s)
    document, below = (scenario.document, _CONFIG) if scenario.kong_yml is None else (scenario.kong_yml, ())
    return _findings(scenario.gateway, scenario, Tracing.model_fields, expected, document, below)


def check_gateway(
    gateway: Gateway, document: Document, expected: Expected, told: Collection[str] = ()
) -> list[Finding]:
    """Return what is risky in a kong.yml, in the order of its lines.

    Args:
        gateway: that it makes.
        document: the file.
        expected: what it is expected to meet.
        told: fields of its tracing that somebody set: the environment.
    """
    return _findings(gateway, None, told, expected, document, ())


def _outage(scenario: Scenario | None, config: OpenTelemetryConfig, expected: Expected, trip_s: float) -> Outage:
    """Return the outage that is to be survived: as long as expected, and of the kind of the scenario's longest."""
    found = [] if scenario is None else outages(scenario, config, trip_s)
    longest = max(found, key=lambda outage: outage.lasts_s, default=Outage(OUTAGE_S))
    return longest if expected.outage_s is None else longest._replace(lasts_s=expected.outage_s, loaded_s=math.inf)


_CONFIG: Final = ("gateway", "config")


def _findings(
    gateway: Gateway,
    scenario: Scenario | None,
    told: Collection[str],
    expected: Expected,
    document: Document,
    below: FieldPath,
) -> list[Finding]:
    found = []
    for given, path in plugins_named("opentelemetry", document.plain(below), below):
        config = OpenTelemetryConfig.model_validate(given)
        trip_s = ROUND_TRIP_S if expected.round_trip_s is None else expected.round_trip_s
        outage = _outage(scenario, config, expected, trip_s)
        attempts = Attempts(config.queue, PROFILES[gateway.profile], outage)
        slow_s = [] if scenario is None else slowdowns_s(scenario, config, trip_s)
        plugin = Exporting(given, config, gateway, scenario, told, expected.requests_per_s, attempts, trip_s, slow_s)
        for code, rule in RULES.items():
            for field, message, cure in rule(plugin):
                where, at = (document, (*path, "config", *field))
                named = at
                if field[0] == TOP and scenario is not None:
                    where, at = scenario.document, field[1:]
                    named = at
                elif field[0] == TOP:  # the environment says it, of the gateway that the plugin is in
                    at, named = path, field[2:]
                found.append(Finding(code, where.file, where.line(at), written(named), message, cure))
    return sorted(dict.fromkeys(found), key=lambda finding: (finding.file, finding.line, finding.rule))


def plugins_named(
    name: str, node: Any, path: FieldPath, shared: Mapping[str, Any] | None = None
) -> Iterator[tuple[dict[str, Any], FieldPath]]:
    """Find the configurations of a plugin, wherever in a declarative file they stand; those switched off do not count.

    Args:
        name: of the plugin.
        node: what stands at `path`.
        path: where to look.
        shared: configurations by name; None: those of `node` (decK's `_plugin_configs`).
    """
    shared = node.get("_plugin_configs") or {} if shared is None else shared
    for key in ("plugins", "services", "routes"):
        for index, entity in enumerate(node.get(key) or ()):
            where = (*path, key, index)
            if key != "plugins":
                yield from plugins_named(name, entity, where, shared)
            elif entity.get("name") == name and entity.get("enabled") is not False:
                yield without_nulls(shared.get(entity.get("_config"), {}) | (entity.get("config") or {})), where


def spans_per_request(gateway: Gateway, *, known: bool) -> int:
    """Count the spans of a request that is answered by the first target tried.

    Args:
        gateway: the configuration.
        known: its instrumentations are; else all of them are assumed.
    """
    words = gateway.tracing.instrumentations if known else ("all",)
    if words[0] == "off":
        return 0
    is_named = any(not is_address(service.host) for service in gateway.services)
    once = {"router": 1, "balancer": 1, "dns_query": int(is_named)}
    every = {**BUNDLED, **gateway.plugin_classes}
    classes = {plugin.name: every[plugin.name] for plugin in gateway.plugins if plugin.enabled}
    for phase in ("rewrite", "access", "header_filter"):
        once[f"plugin_{phase}"] = sum(1 for made in classes.values() if hasattr(made, phase))
    return 1 + sum(count for word, count in once.items() if words[0] == "all" or word in words)


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 1 else f"{per_s:.2g}"


def _size(size_bytes: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.{1 if size_bytes < 10 * factor else 0}f} {unit}"
    return f"{size_bytes:.0f} B"


def _rounded(seconds: float) -> float:
    """Two digits are as exact as an expected rate is."""
    return float(f"{seconds:.2g}")


def _round_up(number: float) -> int:
    """The next number with two digits that are not 0."""
    step = int(10 ** max(0, math.floor(math.log10(max(number, 1))) - 1))
    return math.ceil(number / step) * step
