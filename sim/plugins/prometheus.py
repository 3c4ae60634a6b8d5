"""The prometheus plugin: counts requests by route, and tells of the health of targets; the Status API shows both.

Only what its configuration asks for is counted, as in Kong, where each of these may make many series: requests by
status (`status_code_metrics`), latencies (`latency_metrics`), targets (`upstream_health_metrics`). A worker's counts
stand in its tally (`sim.tally`), so nobody needs to ask it. Targets are looked at every second.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

from sim import __version__
from sim.balancer import Address, Balancer
from sim.config import Gateway
from sim.document import Model
from sim.entity import Upstream
from sim.pdk import Kong
from sim.resolver import is_address
from sim.tally import Kind, Subject

KONG_BUCKETS_MS: Final = (1, 2, 5, 7, 10, 15, 20, 30, 50, 75, 100, 200, 500, 750, 1_000)
"""Upper bounds of the buckets of what Kong adds; one more has none."""

UPSTREAM_BUCKETS_MS: Final = (25, 50, 80, 100, 250, 400, 700, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000)
"""The same of what the service, and the whole request, takes."""

SOURCES: Final = ("kong", "service")
"""Who has made an answer."""

HEALTH: Final = ("healthchecks_off", "healthy", "unhealthy", "dns_error")
"""States of a target."""

LOOK_S: Final = 1.0
"""How often targets are looked at."""

_NS_PER_MS: Final = 1_000_000
_WITHOUT_EFFECT: Final = ("per_consumer", "bandwidth_metrics", "ai_metrics", "wasm_metrics")


class PrometheusConfig(Model):
    """Configuration of the plugin; what it does not count has no effect.

    Attributes:
        status_code_metrics: requests by route, status and source.
        latency_metrics: of whole requests, of the service, and what is left of the one without the other.
        upstream_health_metrics: states of targets.
        per_consumer: no effect: nobody is authenticated.
        bandwidth_metrics: no effect: the bytes of requests are not counted.
        ai_metrics: no effect.
        wasm_metrics: no effect.
    """

    status_code_metrics: bool = False
    latency_metrics: bool = False
    upstream_health_metrics: bool = False
    per_consumer: bool = False
    bandwidth_metrics: bool = False
    ai_metrics: bool = False
    wasm_metrics: bool = False


class Prometheus:
    """The plugin."""

    NAME: ClassVar[str] = "prometheus"
    PRIORITY: ClassVar[int] = 13
    VERSION: ClassVar[str] = __version__
    Config = PrometheusConfig

    def configure(self, kong: Kong, configs: Mapping[str, PrometheusConfig]) -> None:
        """Begin to look at targets, if anybody wants to know of them."""
        for name in _WITHOUT_EFFECT:
            if any(getattr(config, name) for config in configs.values()):
                kong.log.warn(f"{name} is not simulated: it has no effect")
        if any(config.upstream_health_metrics for config in configs.values()):
            kong.timer.at(0, _look, kong)
            kong.timer.every(LOOK_S, _look, kong)

    def log(self, kong: Kong, conf: PrometheusConfig) -> None:
        """Count a request that has a route."""
        request = kong.request._request  # noqa: SLF001 - its times are no part of the PDK
        if request.match is None or not (conf.status_code_metrics or conf.latency_metrics):
            return
        tally = kong.worker.tally
        service = request.match.service
        number = tally.numbers.of((service.name if service is not None else "", request.match.route.name))
        if number is None:
            return
        answered = kong.response.get_source() == "service"
        if conf.status_code_metrics:
            tally.add(Kind.REQUESTS, number, 2 * request.status + answered)
        if conf.latency_metrics:
            total_ms = (kong.ngx.time_ns() - request.started_ns) // _NS_PER_MS
            upstream_ms = request.upstream_ns // _NS_PER_MS if answered else 0
            tally.add(Kind.REQUEST_LATENCY, number, bisect_left(UPSTREAM_BUCKETS_MS, total_ms))
            tally.add(Kind.REQUEST_LATENCY_MS, number, 0, total_ms)
            tally.add(Kind.KONG_LATENCY, number, bisect_left(KONG_BUCKETS_MS, total_ms - upstream_ms))
            tally.add(Kind.KONG_LATENCY_MS, number, 0, total_ms - upstream_ms)
            if answered:
                tally.add(Kind.UPSTREAM_LATENCY, number, bisect_left(UPSTREAM_BUCKETS_MS, upstream_ms))
                tally.add(Kind.UPSTREAM_LATENCY_MS, number, 0, upstream_ms)


def subjects(gateway: Gateway) -> Iterator[Subject]:
    """Yield what the plugin counts by, where it is configured: service and route; upstream, target and address."""
    if any(plugin.enabled and plugin.name == Prometheus.NAME for plugin in gateway.plugins):
        yield from ((route.service or "", route.name) for route in gateway.routes)
        yield from (_subject(upstream.name, t.host, t.port) for upstream in gateway.upstreams for t in upstream.targets)


def _subject(upstream: str, host: str, port: int) -> Subject:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return upstream, target, target if is_address(host) else ""


def _look(_premature: bool, kong: Kong) -> None:
    tally = kong.worker.tally
    for balancer in kong.worker.runloop.balancers.values():
        for address in balancer.addresses:
            number = tally.numbers.of(_subject(balancer.name, address.name, address.port))
            state = _state(balancer, address)
            for detail, name in enumerate(HEALTH if number is not None else ()):
                tally.put(Kind.TARGET_HEALTH, number, detail, name == state)


def _state(balancer: Balancer, address: Address) -> str:
    if address.unknown:
        return "dns_error"
    if not _is_checked(balancer.upstream):
        return "healthchecks_off"
    return "unhealthy" if address.state in ("unhealthy", "mostly_unhealthy") else "healthy"


def _is_checked(upstream: Upstream) -> bool:
    passive, active = upstream.healthchecks.passive, upstream.healthchecks.active
    counted: list[Any] = [passive.healthy.successes, active.healthy.interval, active.unhealthy.interval]
    counted += [passive.unhealthy.http_failures, passive.unhealthy.tcp_failures, passive.unhealthy.timeouts]
    return any(counted)
