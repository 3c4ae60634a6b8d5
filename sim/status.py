"""The Status API: what the workers are doing, for whoever asks, on a port of its own.

It is answered by a process of its own that reads the scoreboard. No worker notices, and one that hangs or has died is
seen like any other. What is counted is what the workers have published: counters and queues as of their last turn,
memory, bytes of the queues, CPU and pools as of the last quarter of a second.

| path | answer |
|---|---|
| `/status` | Kong's JSON: connections, requests, memory; `?unit=` b, k, m or g and `?scale=` digits, as in Kong |
| `/status/ready` | 200 when every slot of the newest generation serves, else 503 |
| `/timers` | JSON: timers pending and running, of all workers and of each |
| `/metrics` | Prometheus text |

Names of metrics: Kong's where Kong has one; OpenTelemetry's for what an SDK tells about itself (semantic conventions,
*SDK metrics*, status development), written as Prometheus writes them; `kongsim_...` for the rest.
"""

import asyncio
import gc
import hashlib
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import accumulate
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import uvloop
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sim import __version__
from sim.config import Gateway
from sim.error_log import ErrorLog
from sim.http_server import HttpConnection, HttpServer, response
from sim.ledger import Ledger
from sim.plugins.opentelemetry import node_id
from sim.plugins.prometheus import HEALTH, KONG_BUCKETS_MS, SOURCES, UPSTREAM_BUCKETS_MS, Prometheus
from sim.process import Connection
from sim.scoreboard import POOLS, Reading, Scoreboard, State
from sim.tally import STANDING, Key, Kind, Subject

_JSON: Final = {"Content-Type": "application/json; charset=utf-8"}
SCALE_MAX: Final = 99
"""Digits behind the point, at most; those that Lua can write."""

QUIT_S_MAX: Final = 1.0
"""How long requests that have begun may go on when the process is to quit: an answer takes milliseconds."""

_UNITS: Final = {"b": ("", 0), "k": ("KiB", 10), "m": ("MiB", 20), "g": ("GiB", 30)}
_NS_PER_S: Final = 1_000_000_000
_PROCESSOR: Final = "batching_span_processor"
_WORKSPACE: Final = "default"
_ROUTE: Final = ("service", "route")
_EXPORTER: Final = "otlp_http_span_exporter"


@dataclass(frozen=True, slots=True)
class StatusArgs:
    """What the status process is given at its fork.

    Attributes:
        gateway: The configuration.
        scoreboard: It only reads.
        listeners: Sockets that listen.
        ready: It sends its pid once, when it answers and has its signal handlers: QUIT, TERM, INT, USR1.
        error_log: Reopened when USR1 comes.
    """

    gateway: Gateway
    scoreboard: Scoreboard
    listeners: list[socket.socket]
    ready: Connection
    error_log: ErrorLog


def main(args: StatusArgs) -> None:
    """Answer until told to leave."""
    gc.freeze()  # the master's objects are never garbage here
    uvloop.run(_serve(args))


async def _serve(args: StatusArgs) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    status = Status(args.gateway, args.scoreboard)
    servers = [_Server(status) for _ in args.listeners]

    def quit_() -> None:
        for server in servers:
            server.patience_s = QUIT_S_MAX
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    loop.add_signal_handler(signal.SIGQUIT, quit_)
    loop.add_signal_handler(signal.SIGUSR1, args.error_log.reopen)
    args.ready.send(os.getpid())
    await asyncio.gather(*(server.serve(sock, stop) for server, sock in zip(servers, args.listeners, strict=True)))


class _Server(HttpServer):
    def __init__(self, status: "Status") -> None:
        super().__init__()
        self.status = status

    def accept(self) -> "_Connection":
        return _Connection(self)


class _Connection(HttpConnection):
    server: _Server

    def __init__(self, server: _Server) -> None:
        super().__init__(server)
        self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def request(self) -> tuple[str, str]:
        url, self._url = self._url, b""
        return self.parser.get_method().decode("latin-1"), url.decode("latin-1")

    def respond(self, request: tuple[str, str], keep_alive: bool) -> tuple[bytes, int]:
        method, target = request
        status, headers, body = self.server.status.answer(method, target)
        return response(status, headers, body, head=method == "HEAD", keep_alive=keep_alive), 0


class UnitError(ValueError):
    """A unit or scale that nobody knows; the message is for who asked."""


def size(count: int, unit: str, scale: int) -> str | int:
    """Return a number of bytes as Kong's `/status` tells it: a number for `b`, else text such as `1.50 MiB`.

    Raises:
        UnitError: An unknown unit, or a scale below 0 or above `SCALE_MAX`.
    """
    if unit.lower() not in _UNITS:
        raise UnitError(f"invalid unit '{unit}' (expected 'k/K', 'm/M', or 'g/G')")
    if scale < 0:
        raise UnitError("scale must be equal or greater than 0")
    if scale > SCALE_MAX:
        raise UnitError(f"scale must be at most {SCALE_MAX}")
    name, bits = _UNITS[unit.lower()]
    return f"{count / (1 << bits):.{scale}f} {name}" if name else count


class Status:
    """The answers of the Status API.

    Args:
        gateway: The configuration.
        scoreboard: It only reads.
    """

    def __init__(self, gateway: Gateway, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard
        self._read = scoreboard.read
        self._workers = gateway.workers
        entities = gateway.model_dump_json(include={"services", "routes", "plugins"})
        self._configuration_hash = hashlib.blake2b(entities.encode(), digest_size=16).hexdigest()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Metrics(gateway, scoreboard))
        if any(plugin.enabled and plugin.name == Prometheus.NAME for plugin in gateway.plugins):
            self._registry.register(_Tallied(scoreboard))
        self._paths: Mapping[str, Callable[[Mapping[str, list[str]]], tuple[int, dict[str, str], bytes]]] = {
            "/status": self._status,
            "/status/ready": self._ready,
            "/timers": self._timers,
            "/metrics": self._metrics,
        }

    def answer(self, method: str, target: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer to a request."""
        try:
            url = urlsplit(target)
        except ValueError:
            return _json(HTTPStatus.BAD_REQUEST, {"message": "Bad request"})
        answer = self._paths.get(url.path.rstrip("/"))
        if answer is None:
            return _json(HTTPStatus.NOT_FOUND, {"message": "Not found", "paths": list(self._paths)})
        if method not in ("GET", "HEAD"):
            status, headers, body = _json(HTTPStatus.METHOD_NOT_ALLOWED, {"message": "Method not allowed"})
            return status, headers | {"Allow": "GET, HEAD"}, body
        return answer(parse_qs(url.query))

    def _status(self, query: Mapping[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        reading, unit = self._read(), query.get("unit", ["m"])[-1]
        try:
            scale = int(query.get("scale", ["2"])[-1])
            allocated, capacity = (size(count, unit, scale) for count in self._scoreboard.size_bytes)
            vms = [
                {"http_allocated_gc": size(worker.values["rss_bytes"], unit, scale), "pid": worker.pid}
                for worker in reading.alive
            ]
        except ValueError as error:
            message = str(error) if isinstance(error, UnitError) else "scale must be a number"
            return _json(HTTPStatus.BAD_REQUEST, {"message": message})
        told = {
            "configuration_hash": self._configuration_hash,
            "database": {"reachable": True},
            "memory": {
                "workers_lua_vms": vms,
                "lua_shared_dicts": {"scoreboard": {"allocated_slabs": allocated, "capacity": capacity}},
            },
            "server": {
                **{f"connections_{state}": count for state, count in _connections(reading).items()},
                "total_requests": reading.sum("requests_begun"),
            },
        }
        return _json(HTTPStatus.OK, told)

    def _ready(self, _query: Mapping[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        alive = self._read().alive
        generation = max((worker.generation for worker in alive), default=0)
        serving = {w.slot for w in alive if w.generation == generation and w.state is State.SERVING}
        if len(serving) >= self._workers:
            return _json(HTTPStatus.OK, {"message": "ready"})
        return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"message": f"{len(serving)} of {self._workers} workers serve"})

    def _timers(self, _query: Mapping[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        reading = self._read()
        workers = [
            {
                "worker": {"id": worker.slot, "count": self._workers, "pid": worker.pid},
                "stats": {"sys": _timers(worker.values)},
            }
            for worker in reading.alive
        ]
        total = {name: reading.sum(f"timers_{name}") for name in ("pending", "running")}
        total["total"] = sum(total.values())
        return _json(HTTPStatus.OK, {"worker": {"count": self._workers}, "stats": {"sys": total}, "workers": workers})

    def _metrics(self, _query: Mapping[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        return HTTPStatus.OK, {"Content-Type": CONTENT_TYPE_PLAIN_0_0_4}, generate_latest(self._registry)


def _json(status: HTTPStatus, told: Mapping[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return status, _JSON, json.dumps(told).encode()


def _timers(values: Mapping[str, int]) -> dict[str, int]:
    pending, running = values["timers_pending"], values["timers_running"]
    return {"pending": pending, "running": running, "total": pending + running}


def _connections(reading: Reading) -> dict[str, int]:
    """Return nginx's counts: clients accepted and kept so far, and those open now by what they are doing."""
    active, reading_head = reading.sum("connections_active"), reading.sum("connections_reading")
    writing = reading.sum("requests_active")
    return {
        "accepted": reading.sum("connections"),
        "handled": reading.sum("connections") - reading.sum("connections_refused"),
        "active": active,
        "reading": reading_head,
        "writing": writing,
        "waiting": max(0, active - reading_head - writing),
    }


class _Metrics(Collector):
    """Makes the metrics of one scrape from one reading of the scoreboard."""

    def __init__(self, gateway: Gateway, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard
        self._read = scoreboard.read
        self._node_id = node_id(gateway.seed)
        self._queue_capacity = sum(
            plugin.config.get("queue", {}).get("max_entries", 10_000)
            for plugin in gateway.plugins
            if plugin.enabled and plugin.name == "opentelemetry"
        )

    def collect(self) -> Iterator[Metric]:
        reading = self._read()
        yield from self._kong(reading)
        yield from self._otel(reading)
        yield from _workers(reading)
        yield from _pools(reading)

    def _kong(self, reading: Reading) -> Iterator[Metric]:
        node = self._node_id
        yield _gauge("kong_node_info", "Kong Node metadata information", {(node, __version__): 1}, "node_id", "version")
        yield _gauge("kong_datastore_reachable", "Datastore reachable from Kong, 0 is unreachable", {(): 1})
        counts = {(node, "http", state): count for state, count in _connections(reading).items()}
        counts[node, "http", "total"] = reading.sum("connections")
        about = "Number of connections by subsystem"
        yield _gauge("kong_nginx_connections_total", about, counts, "node_id", "subsystem", "state")
        about, counts_of_node = "Total number of requests", {(node, "http"): reading.sum("requests_begun")}
        yield _gauge("kong_nginx_requests_total", about, counts_of_node, "node_id", "subsystem")
        timers = {(state,): reading.sum(f"timers_{state}") for state in ("running", "pending")}
        yield _gauge("kong_nginx_timers", "Total number of Nginx timers", timers, "state")
        memory = {(node, str(worker.pid), "http"): worker.values["rss_bytes"] for worker in reading.alive}
        about, labels = "Resident memory of each worker, in bytes", ("node_id", "pid", "kong_subsystem")
        yield _gauge("kong_memory_workers_lua_vms_bytes", about, memory, *labels)
        labels, key = ("node_id", "shared_dict", "kong_subsystem"), (node, "scoreboard", "http")
        allocated, capacity = self._scoreboard.size_bytes
        about = "Shared memory in use, in bytes"
        yield _gauge("kong_memory_lua_shared_dict_bytes", about, {key: allocated}, *labels)
        about = "Shared memory that may be used, in bytes"
        yield _gauge("kong_memory_lua_shared_dict_total_bytes", about, {key: capacity}, *labels)

    def _otel(self, reading: Reading) -> Iterator[Metric]:
        books = reading.ledger
        yield _gauge("otel_sdk_span_live", "Spans that have been created and not ended", {(): books.open})
        yield _counter("otel_sdk_span_started", "Spans that have been created", {(): books.created})
        yield from _component("otel_sdk_processor_span", _PROCESSOR, _processed(books))
        component = _PROCESSOR, f"{_PROCESSOR}/0"
        labels = "otel_component_type", "otel_component_name"
        about = "Spans in the queues of all workers"
        yield _gauge("otel_sdk_processor_span_queue_size", about, {component: books.queued}, *labels)
        capacity = self._queue_capacity * len(reading.alive)
        about = "Spans that the queues of all workers can hold"
        yield _gauge("otel_sdk_processor_span_queue_capacity", about, {component: capacity}, *labels)
        component = _EXPORTER, f"{_EXPORTER}/0"
        about = "Spans that are being sent or wait for a retry"
        yield _gauge("otel_sdk_exporter_span_inflight", about, {component: books.in_flight}, *labels)
        exported = {
            "": books.acknowledged,
            "max_retry_time": books.dropped_retries,
            "rejected": books.dropped_refused,
        }
        yield from _component("otel_sdk_exporter_span", _EXPORTER, exported)
        accounts = {(name,): getattr(books, name) for name in Ledger.__slots__}
        yield _gauge("kongsim_ledger_spans", "Spans by account of the ledger", accounts, "account")


def _processed(books: Ledger) -> dict[str, int]:
    """Return the spans that have left the queue, by the cause when they left it for nothing."""
    return {
        "": books.acknowledged + books.dropped_retries + books.dropped_refused,
        "queue_full": books.dropped_overflow,
        "too_large": books.rejected,
        "swallowed": books.swallowed,
        "process_terminated": books.dropped_shutdown + books.lost_in_queue,
    }


def _component(prefix: str, kind: str, by_error: Mapping[str, int]) -> Iterator[Metric]:
    verb = {"otel_sdk_processor_span": "processed", "otel_sdk_exporter_span": "exported"}[prefix]
    values = {(kind, f"{kind}/0", error): count for error, count in by_error.items()}
    about = f"Spans that have been {verb}, or lost for the reason given"
    yield _counter(f"{prefix}_{verb}", about, values, "otel_component_type", "otel_component_name", "error_type")


def _workers(reading: Reading) -> Iterator[Metric]:
    states = {(state.name.lower(),): 0 for state in State if state is not State.EXITED}
    for worker in reading.alive:
        if worker.state is not State.EXITED:
            states[worker.state.name.lower(),] += 1
    yield _gauge("kongsim_workers", "Worker processes by state", states, "state")
    generation = max((worker.generation for worker in reading.alive), default=0)
    yield _gauge("kongsim_generation", "Generation of the configuration in force", {(): generation})
    classes = {(f"{hundreds}xx",): reading.sum(f"responses_{hundreds}xx") for hundreds in (2, 3, 4, 5)}
    yield _counter("kongsim_http_responses", "Responses by class of their status", classes, "class")
    slots = sorted({account.slot for account in reading.accounts})
    cpu, started, lag, waiting = (dict.fromkeys(slots, 0) for _ in range(4))
    for account in reading.accounts:
        cpu[account.slot] += account.values["cpu_ns"]
        started[account.slot] += getattr(account, "incarnations", 1)
    for worker in reading.alive:
        lag[worker.slot] = max(lag[worker.slot], worker.values["loop_lag_ns_max"])
        waiting[worker.slot] += worker.values["queue_bytes"]
    about = "CPU time of all workers that the slot has had"
    yield _counter("kongsim_worker_cpu_seconds", about, {(str(s),): ns / _NS_PER_S for s, ns in cpu.items()}, "slot")
    about = "Worker processes that the slot has had"
    yield _counter("kongsim_worker_starts", about, {(str(slot),): count for slot, count in started.items()}, "slot")
    about = "The latest that a turn of the event loop came, over the life of the worker"
    lags = {(str(slot),): ns / _NS_PER_S for slot, ns in lag.items()}
    yield _gauge("kongsim_worker_loop_lag_max_seconds", about, lags, "slot")
    about = "Bytes of the spans in the queues of the slot's workers, as encoded"
    yield _gauge("kongsim_worker_queue_bytes", about, {(str(slot),): size for slot, size in waiting.items()}, "slot")


def _pools(reading: Reading) -> Iterator[Metric]:
    objects, fetches = {}, {}
    for tag in POOLS:
        objects[tag, "live"] = sum(worker.pools[tag].live for worker in reading.alive)
        objects[tag, "free"] = sum(worker.pools[tag].free for worker in reading.alive)
        fetches[tag, "hit"] = sum(account.pools[tag].hits for account in reading.accounts)
        fetches[tag, "miss"] = sum(account.pools[tag].misses for account in reading.accounts)
    yield _gauge("kongsim_pool_objects", "Objects of each pool, in use or waiting in it", objects, "pool", "state")
    yield _counter("kongsim_pool_fetches", "Objects taken from each pool, or made anew", fetches, "pool", "result")


class _Tallied(Collector):
    """Makes the metrics of the prometheus plugin from the tallies of all workers."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard

    def collect(self) -> Iterator[Metric]:
        names = self._scoreboard.numbers.names()
        left_out, counts, standing = 0, Counter[Key](), Counter[Key]()
        for lives, tally in self._scoreboard.tallies():
            left_out += tally.left_out
            for key, value in tally.read().items():
                if key.number in names and (lives or key.kind not in STANDING):
                    (standing if key.kind in STANDING else counts)[key] += value
        yield _counter("kong_nginx_metric_errors", "Number of counts for which there was no cell", {(): left_out})
        yield _requests_by_route(names, counts)
        yield from _latencies(names, counts)
        yield _target_health(names, standing)


def _requests_by_route(names: Mapping[int, Subject], counts: Mapping[Key, int]) -> Metric:
    requests = {
        (*names[key.number], str(key.detail // 2), SOURCES[key.detail % 2], _WORKSPACE, ""): count
        for key, count in counts.items()
        if key.kind is Kind.REQUESTS
    }
    about = "HTTP status codes per consumer/service/route in Kong"
    return _counter("kong_http_requests", about, requests, *_ROUTE, "code", "source", "workspace", "consumer")


_LATENCIES: Final = (
    ("kong", "Latency added by Kong and its plugins", Kind.KONG_LATENCY, Kind.KONG_LATENCY_MS, KONG_BUCKETS_MS),
    ("upstream", "Latency of the upstream", Kind.UPSTREAM_LATENCY, Kind.UPSTREAM_LATENCY_MS, UPSTREAM_BUCKETS_MS),
    ("request", "Latency of requests", Kind.REQUEST_LATENCY, Kind.REQUEST_LATENCY_MS, UPSTREAM_BUCKETS_MS),
)


def _latencies(names: Mapping[int, Subject], counts: Mapping[Key, int]) -> Iterator[Metric]:
    for name, about, kind, kind_of_sum, bounds_ms in _LATENCIES:
        labels = (*_ROUTE, "workspace")
        family = HistogramMetricFamily(f"kong_{name}_latency_ms", f"{about} for each service/route", labels=labels)
        for number in sorted({key.number for key in counts if key.kind is kind}):
            in_buckets = [counts.get(Key(kind, number, bucket), 0) for bucket in range(len(bounds_ms) + 1)]
            bounds = (*map(str, bounds_ms), "+Inf")
            buckets = list(zip(bounds, map(float, accumulate(in_buckets)), strict=True))
            sum_ms = counts.get(Key(kind_of_sum, number, 0), 0)
            family.add_metric((*names[number], _WORKSPACE), buckets, sum_ms)
        yield family


def _target_health(names: Mapping[int, Subject], standing: Mapping[Key, int]) -> Metric:
    states = {}
    for key, workers in standing.items():
        upstream, target, address = names[key.number]
        states[upstream, target, address, HEALTH[key.detail], "http"] = min(1, workers)
    about = "Health status of targets of upstream. States = healthchecks_off|healthy|unhealthy|dns_error"
    labels = ("upstream", "target", "address", "state", "subsystem")
    return _gauge("kong_upstream_target_health", f"{about}, 1 where a worker takes it for that", states, *labels)


_Values = Mapping[Any, float]
"""Values by the tuple of their labels."""


def _gauge(name: str, about: str, values: _Values, *labels: str) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for labelled, value in values.items():
        family.add_metric(labelled, value)
    return family


def _counter(name: str, about: str, values: _Values, *labels: str) -> Metric:
    family = CounterMetricFamily(name, about, labels=labels)
    for labelled, value in values.items():
        family.add_metric(labelled, value)
    return family
