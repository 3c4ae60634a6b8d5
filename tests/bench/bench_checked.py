"""What the checks cost: nothing where they are off, and how much where they are on.

The workload is a request of 8 spans: a root with 4 attributes, 7 children with one attribute each, 5 of them made
active; all are shown to an exporter that looks at two fields, and taken back. A round serves some requests on both
sides, in turns; the ratio is formed within the round. `ratio` is the median of the rounds, `low` and `high` are their
quartiles: how many times the time of the plain provider. Run alone: `python -m tests.bench.bench_checked`.
"""

import statistics
from collections.abc import Callable
from ssl import RAND_bytes
from time import perf_counter_ns, time_ns
from typing import Any

from kongtrace import KONG, PHASES, TracerProvider
from kongtrace.checked import CheckedProvider, tracer_provider
from kongtrace.span import Span

ROUNDS = 25
TURNS = 6  # a round
REQUESTS = 20  # a turn
AGAINST = "the plain provider"
OFF_GOAL = "<= 1.05"
"""What is measured there is the plain provider against itself, so that this is noise."""

Request = Callable[[], None]


def requests_of(provider: TracerProvider) -> Request:
    """A function that serves one request."""
    tracer = provider.new("bench")
    access, log = PHASES["access"], PHASES["log"]
    enter = provider.execution.enter

    def export(span: Span) -> None:
        assert span.name
        assert span.end_time_ns

    def serve() -> None:
        ctx: dict[str, Any] = {"KONG_PHASE": "access"}
        enter(access, ctx)
        root = tracer.start_span(
            "kong",
            attributes={"http.method": "GET", "http.host": "api.test", "http.scheme": "http", "net.peer.ip": "::1"},
        )
        tracer.set_active_span(root)
        for number in range(7):
            span = tracer.start_span("kong.plugin")
            if number < 5:
                tracer.set_active_span(span)
            span.set_attribute("plugin", "acl")
            span.finish()
        root.finish()
        ctx["KONG_PHASE"] = "log"
        enter(log, ctx)
        tracer.process_span(export)
        provider.end_request(ctx)

    return serve


def provider_of(mode: str) -> TracerProvider:
    """A provider in profile kong, checked or not."""
    return tracer_provider(mode, time_ns=time_ns, random_bytes=RAND_bytes, profile=KONG)


def ratios() -> list[dict[str, Any]]:
    """How many times the plain provider's time each mode takes."""
    return [
        row("span checks, mode off", "off", OFF_GOAL),
        row("span checks, mode count", "count", None),
        row("span checks, mode report", "report", None),
    ]


def row(name: str, mode: str, goal: str | None) -> dict[str, Any]:
    plain = TracerProvider(time_ns=time_ns, random_bytes=RAND_bytes, profile=KONG)
    checked = provider_of(mode)
    sides = requests_of(checked), requests_of(plain)
    for serve in sides:
        spend(serve)
    measured = [one_round(*sides) for _ in range(ROUNDS)]
    if isinstance(checked, CheckedProvider):
        assert not checked.findings.counts
    low, median, high = statistics.quantiles(measured, n=4)
    figures = {"ratio": round(median, 2), "low": round(low, 2), "high": round(high, 2)}
    return {"name": name, **figures, "against": AGAINST, "goal": goal}


def one_round(checked: Request, plain: Request) -> float:
    spent = [0, 0]
    for turn in range(TURNS):
        for side, serve in ((0, checked), (1, plain)) if turn % 2 else ((1, plain), (0, checked)):
            spent[side] += spend(serve)
    return spent[0] / spent[1]


def spend(serve: Request) -> int:
    start = perf_counter_ns()
    for _ in range(REQUESTS):
        serve()
    return perf_counter_ns() - start


if __name__ == "__main__":
    for figures in ratios():
        print("{name}: {ratio} times ({low} to {high}) {against}, goal {goal}".format(**figures))
