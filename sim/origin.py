"""The built-in upstream: an origin server (RFC 9110 3.6) that answers every request as its model says.

Latency is drawn from the lognormal distribution whose median and 99th percentile are the given ones: service times
are skewed to the right, and two quantiles are what an operator knows of them. Equal quantiles give a fixed latency, and
0 none at all. The status of each answer is drawn from a mix; the body is the same for all. Everything comes from one
seed, in order of arrival. Faults may be on (`sim.http_server`); with `status` every answer has that status.

With a `sampling_rate` it decides on tracing as an OpenTelemetry service with a sampler of its own does, on the trace id
that it is sent (W3C `traceparent`): `traceidratio` compares the last 8 bytes, big-endian, with the rate times 2^64
(OpenTelemetry specification, SDK, TraceIdRatioBased; the bytes are those that its SDKs read). It counts how often the
gateway and it agree.

Latencies are in ms, sizes in bytes. The peer contract is that of `sim.peer`.
"""

import bisect
import itertools
import math
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

from sim import peer
from sim.http_server import HttpConnection, HttpServer, response

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from sim.process import Connection

__all__ = ["Origin", "OriginServer", "serve"]

_Z99: Final = NormalDist().inv_cdf(0.99)
_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How the upstream behaves.

    Attributes:
        latency_p50_ms: Median of the time from a request's last byte to its answer, in ms.
        latency_p99_ms: Its 99th percentile, in ms; equal to the median, every request takes just that long.
        status: Probability of each status; they add up to 1.
        body_bytes: Size of every body.
        seed: Of the generator that all draws come from.
        sampling_rate: Of its own sampler, 0 to 1; None: it has none.

    Raises:
        ValueError: A value out of range; the message names it.
    """

    latency_p50_ms: float = 0.0
    latency_p99_ms: float = 0.0
    status: "Mapping[int, float]" = field(default_factory=lambda: {200: 1.0})
    body_bytes: int = 0
    seed: int = 0
    sampling_rate: float | None = None

    def __post_init__(self) -> None:
        if self.latency_p50_ms < 0:
            raise ValueError(f"latency_p50_ms must be at least 0, not {self.latency_p50_ms}")
        if self.latency_p99_ms < self.latency_p50_ms:
            raise ValueError(
                f"latency_p99_ms must be at least latency_p50_ms ({self.latency_p50_ms}), not {self.latency_p99_ms}"
            )
        if self.latency_p50_ms == 0 < self.latency_p99_ms:
            raise ValueError("latency_p50_ms must be above 0 where latency_p99_ms is: no lognormal has median 0")
        if self.sampling_rate is not None and not 0 <= self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be 0 to 1, not {self.sampling_rate}")
        if self.body_bytes < 0:
            raise ValueError(f"body_bytes must be at least 0, not {self.body_bytes}")
        for status, probability in self.status.items():
            if not 200 <= status <= 599:
                raise ValueError(f"status must be 200 to 599, not {status}")
            if probability < 0:
                raise ValueError(f"the probability of status {status} must be at least 0, not {probability}")
        if not math.isclose(sum(self.status.values()), 1.0, abs_tol=1e-9):
            raise ValueError(f"the probabilities of status must add up to 1, not {sum(self.status.values())}")

    def latencies_ns(self, generator: random.Random) -> "Callable[[], int]":
        """Return a function that draws one latency in ns."""
        if self.latency_p50_ms == self.latency_p99_ms:
            fixed_ns = round(self.latency_p50_ms * _NS_PER_MS)
            return lambda: fixed_ns
        mu = math.log(self.latency_p50_ms * _NS_PER_MS)
        sigma = math.log(self.latency_p99_ms / self.latency_p50_ms) / _Z99
        return lambda: round(generator.lognormvariate(mu, sigma))

    def statuses(self, generator: random.Random) -> "Callable[[], int]":
        """Return a function that draws one status."""
        values = [status for status, probability in self.status.items() if probability]
        if len(values) == 1:
            return lambda: values[0]
        bounds = list(itertools.accumulate(self.status[status] for status in values[:-1]))
        return lambda: values[bisect.bisect_right(bounds, generator.random())]


class _Connection(HttpConnection):
    server: "OriginServer"

    def request(self) -> bool:
        return bool(self.parser.get_method() == b"HEAD")

    def respond(self, request: bool, keep_alive: bool) -> tuple[bytes, int]:
        server = self.server
        status = server.draw_status()
        if fault := server.faults.get("status"):
            status = fault.status
        server.by_status[status] += 1
        return server.response(status, request, keep_alive), server.draw_latency_ns()


class _SamplingConnection(_Connection):
    """Decides on each trace that it is sent."""

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if name.lower() == b"traceparent":
            self.server.sample(value)


_TRACEPARENT: Final = re.compile(rb"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")


class OriginServer(HttpServer):
    """The origin on one event loop; `serve` runs one in a process of its own."""

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        generator = random.Random(origin.seed)
        self.draw_latency_ns = origin.latencies_ns(generator)
        self.draw_status = origin.statuses(generator)
        self.by_status: Counter[int] = Counter()
        self.sampling = Counter(dict.fromkeys(("traces", "gateway", "upstream", "both"), 0))
        self._bound = None if origin.sampling_rate is None else round(origin.sampling_rate * 2**64)
        self._body = b"x" * origin.body_bytes
        self._responses: dict[tuple[int, bool, bool], bytes] = {}

    def response(self, status: int, head: bool, keep_alive: bool) -> bytes:
        """Return the response of a status, made once."""
        made = self._responses.get((status, head, keep_alive))
        if made is None:
            made = response(status, {"Content-Type": "text/plain"}, self._body, head=head, keep_alive=keep_alive)
            self._responses[status, head, keep_alive] = made
        return made

    def accept(self) -> _Connection:
        """Return the protocol of a new connection."""
        return _Connection(self) if self._bound is None else _SamplingConnection(self)

    def sample(self, traceparent: bytes) -> None:
        """Decide on a trace as `traceidratio` does, and count who keeps it."""
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None:
            return
        assert self._bound is not None
        gateway = bool(int(match[2], 16) & 1)
        upstream = int(match[1][16:], 16) < self._bound
        self.sampling.update(traces=1, gateway=gateway, upstream=upstream, both=gateway and upstream)

    def report(self) -> dict[str, Any]:
        """Return what `serve` reports."""
        return {
            "requests": self.by_status.total(),
            "by_status": dict(self.by_status),
            "sampling": dict(self.sampling),
            "connections": self.accepted,
            "cpu_s": time.process_time(),
        }


def serve(sock: "socket.socket", control: "Connection", origin: Origin) -> None:
    """Run the origin in this process, on the bound socket `sock`, as a peer.

    Its report: `requests` answered or being answered, `by_status` their number by status (that occurred),
    `sampling` how many `traces` it was sent and how many of them `gateway`, `upstream` and `both` keep, `connections`
    accepted, `cpu_s` the CPU time of the process.
    """
    server = OriginServer(origin)
    peer.run(control, lambda stop: server.serve(sock, stop), server.report, server.obey)
