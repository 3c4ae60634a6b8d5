"""What an upstream is told of the client: `X-Real-IP` and `X-Forwarded-*`, as Kong sets them.

A peer whose address is within `trusted_ips` is another proxy: what it says in `X-Forwarded-Proto`, `-Host`, `-Port`,
`-Path` and `-Prefix` is passed on, and it may name the client (`real_ip_header`, nginx's realip module). Of everybody
else these headers are replaced. `X-Forwarded-For` is always continued, with the peer's own address.
"""

import ipaddress
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sim.config import Gateway
    from sim.request import Request

PEERS_MAX: Final = 1024
"""Addresses of which it is remembered whether they are trusted."""


class Forwarding:
    """What the upstreams of one worker are told.

    Args:
        gateway: its `trusted_ips`, `real_ip_header` and `real_ip_recursive`.

    Attributes:
        trusts: whether anybody is trusted; if not, a request's client is its peer.
    """

    def __init__(self, gateway: "Gateway") -> None:
        networks = [ipaddress.ip_network(block, strict=False) for block in gateway.trusted_ips]
        self.trusts = bool(networks)
        self._real_ip_header = gateway.real_ip_header.lower().encode()
        self._is_recursive = gateway.real_ip_recursive

        @lru_cache(PEERS_MAX)
        def is_trusted(address: str) -> bool:
            found = _address(address)
            return found is not None and any(found in network for network in networks)

        self.is_trusted: Callable[[str], bool] = is_trusted

    def client_ip(self, request: "Request") -> str:
        """Return the address of the client for whom a request is made."""
        peer = request.connection.peer
        if not self.is_trusted(peer):
            return peer
        named = [part.strip() for line in _values(request, self._real_ip_header) for part in line.split(",")]
        if not self._is_recursive:
            named = named[-1:]
        client = peer
        for name in reversed(named):
            if _address(name) is None:
                return client
            client = name
            if not self.is_trusted(name):
                return client
        return client

    def lines(self, request: "Request") -> bytes:
        """Return the header lines, each with its end."""
        peer = request.connection.peer
        match = request.match
        before = b""
        for name, value in request.lines:
            if len(name) == 15 and name.lower() == b"x-forwarded-for":
                before += value + b", "
        path = request.target.partition(b"?")[0]
        prefix = match.prefix if match is not None and match.route.strip_path and match.prefix != "/" else ""
        proto, host, port = b"http", request.host.encode("latin-1"), b"%d" % request.connection.port
        told_prefix = prefix.encode("latin-1")
        if self.trusts and self.is_trusted(peer):
            proto, host, port, path, told_prefix = (
                next(iter(_values(request, b"x-forwarded-" + key)), own.decode("latin-1")).encode("latin-1")
                for key, own in (
                    (b"proto", proto),
                    (b"host", host),
                    (b"port", port),
                    (b"path", path),
                    (b"prefix", told_prefix),
                )
            )
        client = peer if before or not self.trusts else request.client_ip
        told = b"X-Real-IP: %b\r\nX-Forwarded-For: %b%b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\n" % (
            request.client_ip.encode(),
            before,
            client.encode(),
            proto,
            host,
        )
        told += b"X-Forwarded-Port: %b\r\nX-Forwarded-Path: %b\r\n" % (port, path)
        return told + b"X-Forwarded-Prefix: %b\r\n" % told_prefix if told_prefix else told


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _values(request: "Request", key: bytes) -> Iterator[str]:
    return (value.decode("latin-1") for name, value in request.lines if name.lower() == key)
