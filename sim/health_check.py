"""Active health checks: requests of the gateway's own that find out which targets are healthy.

Healthy targets are probed every `healthy.interval`, those that are out every `unhealthy.interval`, by a timer of the
worker; `concurrency` of them at once. A probe is a `GET` of `http_path` in HTTP/1.0 on a connection of its own, closed
once the status has come; its `Host` names no port, as Kong's; only the status counts. What is concluded from it is the
balancer's (`sim.balancer`).

In Kong one worker of the node probes for all; here each worker does for itself. Times in s.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from sim.balancer import Address, Balancer
from sim.framing import HeaderLines
from sim.outline import ResponseOutline
from sim.resolver import Resolver
from sim.router import bracketed
from sim.runtime import ConnectTimeoutError
from sim.timers import Timers
from sim.upstream import Pool, UpstreamConnection

if TYPE_CHECKING:
    from sim.entity import ActiveChecks


INTERVAL_S_MIN: Final = 0.001
"""What `ngx.timer.every` takes (N1)."""


class HealthChecks:
    """The active checks of one upstream in one worker; does nothing unless an interval is set.

    Args:
        balancer: told what is found.
        timers: of the worker.
        pool: opens connections.
        resolver: of the worker.
        log: takes a level and a message.
    """

    def __init__(
        self, balancer: Balancer, timers: Timers, pool: Pool, resolver: Resolver, log: Callable[[str, str], None]
    ) -> None:
        self._balancer = balancer
        self._timers = timers
        self._pool = pool
        self._resolver = resolver
        self._log = log
        self._checks = checks = balancer.upstream.healthchecks.active
        self._request = _request(checks)
        self._under_way: dict[Address, None] = {}
        if checks.type != "http":
            return
        for states, interval_s in (
            (("healthy", "mostly_healthy"), checks.healthy.interval),
            (("unhealthy", "mostly_unhealthy"), checks.unhealthy.interval),
        ):
            if interval_s:
                timers.every(max(interval_s, INTERVAL_S_MIN), self._begin, states)

    def _begin(self, premature: bool, states: tuple[str, ...]) -> None:
        if premature:
            return
        due = [a for a in self._balancer.addresses if a.weight and a.state in states and a not in self._under_way]
        self._under_way |= dict.fromkeys(due)
        for first in range(min(self._checks.concurrency, len(due))):
            share = due[first :: self._checks.concurrency]
            created, _reason = self._timers.at(0, self._probe_each, share, on_lost=partial(self._forget, share))
            if not created:
                self._forget(share)

    async def _probe_each(self, premature: bool, addresses: list[Address]) -> None:
        try:
            for address in addresses if not premature else ():
                await self._probe(address)
        finally:
            self._forget(addresses)

    def _forget(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            self._under_way.pop(address, None)

    async def _probe(self, address: Address) -> None:
        try:
            endpoint = await self._resolver.resolve(address.name, address.port)
        except OSError as error:
            self._log("error", f"[healthcheck] ({self._balancer.name}) {address.name} could not be resolved: {error}")
            self._balancer.report_failure(address, timeout=False, probed=True)
            return
        try:
            connection = await self._pool.connect(endpoint, self._checks.timeout)
        except OSError as error:
            timeout = isinstance(error, ConnectTimeoutError)
            self._balancer.report_failure(address, timeout=timeout, probed=True)
            return
        probe = _Probe(connection)
        host = self._balancer.host or bracketed(address.name).encode()
        connection.send(probe, self._request % host, timeout_s=self._checks.timeout, bodiless=False)
        status = await probe.status
        if status:
            self._balancer.report_status(address, status, probed=True)
            return
        place = f"'{address.name} ({endpoint[0]}:{endpoint[1]})'"
        name = self._balancer.name
        self._log("error", f"[healthcheck] ({name}) failed to receive status line from {place}: {probe.reason}")
        self._balancer.report_failure(address, timeout=probe.timeout, probed=True)


class _Probe:
    """Waits for a status, and gives its connection up once it has one: that goes to nobody else."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.reason = ""
        self.timeout = False

    def on_head(self, status: int, lines: HeaderLines, outline: ResponseOutline) -> None:
        """Take the status; the rest of the answer, be it there already, is nobody's."""
        del lines, outline
        self._connection.give_up(self)
        self._settle(status)

    def on_body(self, data: bytes) -> None:
        """Leave the body alone."""

    def on_end(self) -> None:
        """The response is complete."""

    def on_flush(self) -> None:
        """All that one read has brought was passed on."""

    def on_lost(self, connection: UpstreamConnection, reason: str, *, timeout: bool) -> None:
        """There will be no status."""
        del connection
        self.reason, self.timeout = "timeout" if timeout else reason, timeout
        self._settle(0)

    def pause(self) -> None:
        """Nothing more is sent anyway."""

    def resume(self) -> None:
        """Nothing more is sent anyway."""

    def _settle(self, status: int) -> None:
        if not self.status.done():
            self.status.set_result(status)


def _request(checks: "ActiveChecks") -> bytes:
    lines = [f"{name}: {value}" for name, values in checks.headers.items() for value in values]
    head = "\r\n".join([f"GET {checks.http_path} HTTP/1.0", *lines]).replace("%", "%%").encode()
    return head + b"\r\nHost: %b\r\n\r\n"
