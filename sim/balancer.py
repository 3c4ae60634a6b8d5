"""The balancer: which target of an upstream gets a try, and what is concluded from how it went.

A `Balancer` is one upstream in one worker; each request that goes through it has a `Choice`, which gives one target
after the other as tries fail. Kong's algorithms, in Kong's words:

- `round-robin`: a wheel with as many places for each target as its weight says, shuffled once, walked by all requests.
- `consistent-hashing`: a ring of `slots` points; a target has 160 of them on average, more with more weight, where the
  hash (xxHash32) of its address and a number says; a request goes to the first point at or below the hash of what
  `hash_on` names. The points are Kong's, so a key leads to the target to which the real gateway leads it, as long as
  targets are addresses; one that is a name is placed by its name, by Kong by the addresses that it resolves to.
- `least-connections`: the target with the fewest requests under way, for its weight.
- `latency`: the target with the lowest average of what requests took, which fades within 10 s, for its weight.

The next try after a failed one: the last two never take a target again that has failed this request (`latency` gives up
when all have; `least-connections` begins again). The first two do not look: the wheel goes on, the ring gives the same
target again as long as it counts as healthy. In profile `safe` they too prefer one that has not been tried.

Health. Failures are counted by kind (HTTP status, TCP, timeout), successes too; one success forgets the failures and
one failure the successes. As many in a row as the checks say, and the target is taken out, or comes back. Passive
checks see every try. A target that is out gets no request, so passive checks alone never bring it back. Kong reports
a failed try when it chooses the next one, and what finally fails by the status that the client gets: a connection
refused in the last try is a 502, which by default counts for nothing. In Kong health is common to all workers; here
each has its own.

Times in s, weights as in the file.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import exp, gcd
from typing import TYPE_CHECKING, Final, Literal, Protocol
from urllib.parse import parse_qsl

from sim.entity import ActiveChecks, PassiveChecks, Target, Upstream
from sim.resolver import Resolver, is_address
from sim.router import authority, normalized

if TYPE_CHECKING:
    from sim.request import Request
    from sim.runtime import Runtime

POINTS_PER_TARGET: Final = 160
POINTS_MIN: Final = 1_000
DECAY_S: Final = 10.0
GATEWAY_TIMEOUT: Final = 504

Log = Callable[[str, str], None]
"""Takes a level and a message."""

Verdict = Literal["healthy", "unhealthy"]
State = Literal["healthy", "mostly_healthy", "mostly_unhealthy", "unhealthy"]
Kind = Literal["SUCCESS", "HTTP", "TCP", "TIMEOUT"]


class Address:
    """A target as one worker sees it.

    Attributes:
        name: host of the target, a name or an address.
        port: of the target.
        weight: of the target.
        endpoint: where it is reached; None as long as its name has not been resolved.
        unknown: its name was looked up in vain.
        host: what the `Host` header says, without the upstream's `host_header`.
        available: whether it gets requests.
        state: what the checks think of it.
        counts: of what the checks count.
        connections: requests under way (least-connections).
        took_s: average of what requests took, and when it was last touched (latency).
    """

    __slots__ = (
        "available",
        "connections",
        "counts",
        "endpoint",
        "host",
        "name",
        "port",
        "state",
        "took_s",
        "touched_s",
        "unknown",
        "weight",
    )

    def __init__(self, target: Target, hosts: Mapping[str, tuple[str, int]]) -> None:
        self.name, self.port, self.weight = target.host, target.port, target.weight
        self.endpoint = (self.name, self.port) if is_address(self.name) else hosts.get(self.name.lower())
        self.unknown = False
        self.host = authority(self.name, self.port, 80)
        self.available = True
        self.state: State = "healthy"
        self.counts: dict[Kind, int] = {"SUCCESS": 0, "HTTP": 0, "TCP": 0, "TIMEOUT": 0}
        self.connections = 0
        self.took_s = 0.0
        self.touched_s = 0.0

    def decayed(self, took_s: float, now_s: float) -> float:
        """Return the average when another request took `took_s`."""
        share = exp(-max(0.0, now_s - self.touched_s) / DECAY_S)
        return self.took_s * share + took_s * (1 - share)


class Choice:
    """The targets of one request, one after the other.

    Attributes:
        balancer: whose targets they are.
        key: what is hashed.
        cookie: a header line for the client, when it shall come back with a cookie.
        address: the target now in use.
        tried: those that have failed.
    """

    __slots__ = ("address", "balancer", "cookie", "key", "started_s", "tried")

    def __init__(self, balancer: "Balancer", key: str) -> None:
        self.balancer = balancer
        self.key = key
        self.cookie: bytes | None = None
        self.address: Address | None = None
        self.tried: list[Address] = []
        self.started_s = 0.0

    def next(self) -> Address | None:
        """Choose a target; None when there is none to be had."""
        self._let_go()
        self.address = self.balancer.choose(self)
        if self.address is not None:
            self.address.connections += 1
            self.started_s = self.balancer.now()
        return self.address

    def failed(self, *, timeout: bool) -> None:
        """The try failed, and another one comes."""
        address = self.address
        assert address is not None
        self.balancer.report_failure(address, timeout=timeout)
        self.tried.append(address)

    def ended(self, status: int) -> None:
        """The request has ended with `status`."""
        address = self.address
        if address is None:
            return
        self.balancer.report_end(address, status, self.balancer.now() - self.started_s)
        self._let_go()

    def _let_go(self) -> None:
        if self.address is not None:
            self.address.connections -= 1
            self.address = None


class Algorithm(Protocol):
    """How a target is chosen.

    Attributes:
        avoids_tried: it takes no target that has failed the request.
        starts_over: when all have, it begins again.
    """

    avoids_tried: bool
    starts_over: bool

    def choose(self, choice: Choice, excluded: list[Address]) -> Address | None:
        """Choose among the available targets that are not excluded."""


class RoundRobin:
    """The wheel."""

    avoids_tried = False
    starts_over = True

    def __init__(self, addresses: list[Address], runtime: "Runtime") -> None:
        divisor = gcd(*(address.weight for address in addresses)) or 1
        wheel = [address for address in addresses for _ in range(address.weight // divisor)]
        for last in range(len(wheel) - 1, 0, -1):
            other = int(runtime.random() * (last + 1))
            wheel[last], wheel[other] = wheel[other], wheel[last]
        self._wheel = wheel
        self._pointer = -1

    def choose(self, choice: Choice, excluded: list[Address]) -> Address | None:
        """Take the next place of the wheel."""
        del choice
        wheel = self._wheel
        for _ in wheel:
            self._pointer = (self._pointer + 1) % len(wheel)
            address = wheel[self._pointer]
            if address.available and address.endpoint is not None and address not in excluded:
                return address
        return None


class ConsistentHashing:
    """The ring."""

    avoids_tried = False
    starts_over = True

    def __init__(self, addresses: list[Address], slots: int) -> None:
        self._points = max(slots, POINTS_MIN)
        self._ring: dict[int, Address] = {}
        total = sum(address.weight for address in addresses)
        for address in sorted(addresses, key=lambda address: (address.name, address.port)):
            share = address.weight / total * len(addresses) * POINTS_PER_TARGET if total else 0
            self._place(address, max(int(share), min(address.weight, 1)))

    def _place(self, address: Address, entries: int) -> None:
        number = 0
        while entries and number < self._points:
            number += 1
            # Kong writes the colon twice.
            point = xxhash32(f"{address.name}::{address.port} {number}".encode()) % self._points
            if point not in self._ring:
                self._ring[point] = address
                entries -= 1

    def choose(self, choice: Choice, excluded: list[Address]) -> Address | None:
        """Walk down from the hash of the key."""
        start = xxhash32(choice.key.encode("latin-1", "replace")) % self._points
        for step in range(self._points):
            address = self._ring.get((start - step) % self._points)
            if address is not None and address.available and address.endpoint is not None and address not in excluded:
                return address
        return None


class _Best:
    """The target with the lowest score."""

    avoids_tried = True
    starts_over = True

    def __init__(self, addresses: list[Address], runtime: "Runtime") -> None:
        self._addresses = [address for address in addresses if address.weight]
        self._now = runtime.now

    def choose(self, choice: Choice, excluded: list[Address]) -> Address | None:
        """Compare all."""
        del choice
        open_to = [a for a in self._addresses if a.available and a.endpoint is not None and a not in excluded]
        return min(open_to, key=self.score, default=None)

    def score(self, address: Address) -> float:
        """Return what is to be low."""
        raise NotImplementedError


class LeastConnections(_Best):
    """Fewest requests under way, the one to come counted, for the weight."""

    def score(self, address: Address) -> float:
        """Return the requests under way for each unit of weight."""
        return (address.connections + 1) / address.weight


class LowestLatency(_Best):
    """Quickest answers, for the weight."""

    starts_over = False

    def score(self, address: Address) -> float:
        """Return the time that requests took for each unit of weight."""
        return address.decayed(0.0, self._now()) / address.weight


@dataclass(frozen=True, slots=True)
class _Checks:
    """Checks, ready to be asked.

    Attributes:
        healthy: statuses that speak for a target.
        unhealthy: statuses that speak against it.
        limits: how many of a kind decide; 0: none does.
    """

    healthy: frozenset[int]
    unhealthy: frozenset[int]
    limits: Mapping[Kind, int]

    @classmethod
    def of(cls, checks: PassiveChecks | ActiveChecks) -> "_Checks":
        good, bad = checks.healthy, checks.unhealthy
        limits: Mapping[Kind, int] = {
            "SUCCESS": good.successes,
            "HTTP": bad.http_failures,
            "TCP": bad.tcp_failures,
            "TIMEOUT": bad.timeouts,
        }
        return cls(frozenset(good.http_statuses), frozenset(bad.http_statuses), limits)


class Balancer:
    """One upstream in one worker.

    Args:
        upstream: the entity.
        runtime: for time, randomness.
        hosts: names, in lower case, whose address is known from the beginning.
        log: of the worker.
        avoids_tried: whatever the algorithm, a try goes to a target that has not failed the request, if there is one.

    Attributes:
        name: of the upstream.
        addresses: its targets.
        host: what the `Host` header says, if the upstream says it.
        now: the clock.
    """

    def __init__(
        self,
        upstream: Upstream,
        runtime: "Runtime",
        hosts: Mapping[str, tuple[str, int]],
        log: Log,
        *,
        avoids_tried: bool = False,
    ) -> None:
        self.name = upstream.name
        self.addresses = [Address(target, hosts) for target in upstream.targets]
        self.host = upstream.host_header.encode() if upstream.host_header else None
        self.now = runtime.now
        self.upstream = upstream
        self._random_bytes = runtime.random_bytes
        self._log = log
        self._named = [address for address in self.addresses if address.endpoint is None]
        self._algorithm = _algorithm(upstream, self.addresses, runtime)
        self._avoids_tried = avoids_tried or self._algorithm.avoids_tried
        self._hash_on = _hash_on(upstream)
        self._passive = _Checks.of(upstream.healthchecks.passive)
        self._active = _Checks.of(upstream.healthchecks.active)
        self._healthy = self._is_healthy()

    def begin(self, request: "Request") -> Choice:
        """Return the choice for a request, which has not chosen yet."""
        choice = Choice(self, "")
        for hash_on in self._hash_on:
            found = hash_on(request)
            if found is not None:
                choice.key = found
                break
        else:
            if "cookie" in (self.upstream.hash_on, self.upstream.hash_fallback):
                choice.key = str(uuid.UUID(bytes=self._random_bytes(16), version=4))
                crumb = f"{self.upstream.hash_on_cookie}={choice.key}; Path={self.upstream.hash_on_cookie_path}"
                choice.cookie = f"{crumb}; Same-Site=Lax; HttpOnly".encode()
        return choice

    def choose(self, choice: Choice) -> Address | None:
        """Choose for a request; None when no target is to be had."""
        if not self._healthy:
            return None
        excluded = choice.tried if self._avoids_tried else []
        address = self._algorithm.choose(choice, excluded)
        if address is None and excluded and self._algorithm.starts_over:
            choice.tried.clear()
            address = self._algorithm.choose(choice, [])
        return address

    def unresolved(self, resolver: Resolver) -> list[Address]:
        """Return the targets whose names have to be looked up before anything can be chosen."""
        missing = []
        for address in self._named:
            try:
                known = resolver.known(address.name, address.port)
            except OSError:
                address.endpoint, address.unknown = None, True
                continue
            if known is not None:
                address.endpoint, address.unknown = known, False
            else:
                missing.append(address)
        if not any(a.available and a.weight and a.endpoint is not None for a in self.addresses):
            return missing
        # One that was looked up in vain keeps nobody waiting who can go elsewhere.
        for address in missing:
            if address.unknown:
                resolver.ask(address.name)
        return [address for address in missing if not address.unknown]

    def report_failure(self, address: Address, *, timeout: bool, probed: bool = False) -> None:
        """A connection to a target failed, or a wait for it was in vain."""
        self._count(address, "unhealthy", "TIMEOUT" if timeout else "TCP", probed=probed)

    def report_status(self, address: Address, status: int, *, probed: bool = False) -> None:
        """A target answered."""
        checks = self._active if probed else self._passive
        if status in checks.healthy:
            self._count(address, "healthy", "SUCCESS", probed=probed)
        elif status in checks.unhealthy or not status:
            self._count(address, "unhealthy", "HTTP", probed=probed)

    def report_end(self, address: Address, status: int, took_s: float) -> None:
        """A request has ended."""
        address.took_s = address.decayed(took_s, self.now())
        address.touched_s = self.now()
        if status == GATEWAY_TIMEOUT:
            self.report_failure(address, timeout=True)
        else:
            self.report_status(address, status)

    def _count(self, address: Address, verdict: Verdict, kind: Kind, *, probed: bool) -> None:
        limit = (self._active if probed else self._passive).limits[kind]
        if not limit or address.state == verdict:
            return
        counts = address.counts
        counts[kind] += 1
        endpoint = address.endpoint or (address.name, address.port)
        place = f"{address.name}({endpoint[0]}:{endpoint[1]})"
        self._log(
            "warn", f"[healthcheck] ({self.name}) {verdict} {kind} increment ({counts[kind]}/{limit}) for '{place}'"
        )
        for other in counts:
            if (other == "SUCCESS") != (kind == "SUCCESS"):
                counts[other] = 0
        if counts[kind] >= limit:
            address.state = verdict
            self._set_available(address, available=verdict == "healthy")
        elif address.state == "healthy":
            address.state = "mostly_healthy"
        elif address.state == "unhealthy":
            address.state = "mostly_unhealthy"

    def _set_available(self, address: Address, *, available: bool) -> None:
        address.available = available
        healthy = self._is_healthy()
        if healthy != self._healthy:
            self._healthy = healthy
            told = "HEALTHY" if healthy else "UNHEALTHY"
            self._log("warn", f"[healthchecks] balancer {self.name} reported health status changed to {told}")

    def _is_healthy(self) -> bool:
        total = sum(address.weight for address in self.addresses)
        available = sum(address.weight for address in self.addresses if address.available)
        return bool(total) and available / total * 100 > self.upstream.healthchecks.threshold


def _algorithm(upstream: Upstream, addresses: list[Address], runtime: "Runtime") -> Algorithm:
    match upstream.algorithm:
        case "round-robin":
            return RoundRobin(addresses, runtime)
        case "consistent-hashing":
            return ConsistentHashing(addresses, upstream.slots)
        case "least-connections":
            return LeastConnections(addresses, runtime)
        case "latency":
            return LowestLatency(addresses, runtime)


HashOn = Callable[["Request"], str | None]
"""Gives what is hashed, None when the request has it not."""


def _hash_on(upstream: Upstream) -> tuple[HashOn, ...]:
    """Return what to hash, and what else when that is missing."""
    first = (upstream.hash_on_header, upstream.hash_on_query_arg, upstream.hash_on_uri_capture)
    second = (upstream.hash_fallback_header, upstream.hash_fallback_query_arg, upstream.hash_fallback_uri_capture)
    given = ((upstream.hash_on, first), (upstream.hash_fallback, second))
    return tuple(
        partial(_HASHED[word], name=dict(zip(_NAMED, names, strict=True)).get(word) or upstream.hash_on_cookie or "")
        for word, names in given
        if word in _HASHED
    )


def _address(request: "Request", name: str) -> str | None:
    del name
    return request.client_ip


def _path(request: "Request", name: str) -> str | None:
    del name
    return normalized(request.path)


def _header(request: "Request", name: str) -> str | None:
    wanted = name.lower().encode()
    values = [value for other, value in request.forwarded_lines() if other.lower() == wanted]
    return b", ".join(values).decode("latin-1") if values else None


def _cookie(request: "Request", name: str) -> str | None:
    pairs = (pair.strip().partition("=") for pair in (_header(request, "cookie") or "").split(";"))
    return next((value for other, _equals, value in pairs if other == name), None)


def _query_arg(request: "Request", name: str) -> str | None:
    query = request.target.partition(b"?")[2].decode("latin-1")
    values = [value for other, value in parse_qsl(query, keep_blank_values=True, encoding="latin-1") if other == name]
    return ",".join(sorted(values)) if values else None


def _capture(request: "Request", name: str) -> str | None:
    captures = request.match.captures if request.match is not None else None
    if captures is None:
        return None
    if not name.isdecimal():
        return captures.named.get(name)
    return captures.unnamed[int(name) - 1] if 0 < int(name) <= len(captures.unnamed) else None


_NAMED: Final = ("header", "query_arg", "uri_capture")

_HASHED: Final[Mapping[str, Callable[..., str | None]]] = {
    "ip": _address,
    "path": _path,
    "header": _header,
    "cookie": _cookie,
    "query_arg": _query_arg,
    "uri_capture": _capture,
}
"""What `hash_on` can say. Nobody is authenticated, so there is no `consumer`."""


def xxhash32(data: bytes) -> int:
    """Return xxHash32 with seed 0 (its published specification)."""
    size, mask = len(data), 0xFFFFFFFF
    position, left = 0, size
    if size >= 16:
        lanes = [(_PRIME_1 + _PRIME_2) & mask, _PRIME_2, 0, -_PRIME_1 & mask]
        while left >= 16:
            for lane in range(4):
                word = int.from_bytes(data[position : position + 4], "little")
                lanes[lane] = _rotated(lanes[lane] + word * _PRIME_2, 13) * _PRIME_1 & mask
                position += 4
            left -= 16
        hashed = sum(_rotated(lane, turn) for lane, turn in zip(lanes, (1, 7, 12, 18), strict=True))
    else:
        hashed = _PRIME_5
    hashed += size
    while left >= 4:
        word = int.from_bytes(data[position : position + 4], "little")
        hashed = _rotated(hashed + word * _PRIME_3, 17) * _PRIME_4
        position, left = position + 4, left - 4
    for byte in data[position:]:
        hashed = _rotated(hashed + byte * _PRIME_5, 11) * _PRIME_1
    hashed &= mask
    hashed = (hashed ^ hashed >> 15) * _PRIME_2 & mask
    hashed = (hashed ^ hashed >> 13) * _PRIME_3 & mask
    return hashed ^ hashed >> 16


def _rotated(word: int, bits: int) -> int:
    word &= 0xFFFFFFFF
    return (word << bits | word >> 32 - bits) & 0xFFFFFFFF


_PRIME_1, _PRIME_2, _PRIME_3, _PRIME_4, _PRIME_5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
