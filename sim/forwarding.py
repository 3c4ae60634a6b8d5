"""What an upstream is told of the client: `X-Real-IP` and `X-Forwarded-*`, as Kong sets them.

A peer whose address is within `trusted_ips` is another proxy: what it says in `X-Forwarded-Proto`, `-Host`, `-Port`,
`-Path` and `-Prefix` is passed on, and it may name the client (`real_ip_header`, nginx's realip module). Of everybody
else these headers are replaced. `X-Forwarded-For` is always continued, with the peer's own address.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from sim.config import UNIX_PEERS
from sim.framing import HOST_BYTES_MAX
from sim.memo import Memo

if TYPE_CHECKING:
    from sim.config import Gateway
    from sim.request import Request

PEERS_MAX: Final = 1024
"""Addresses of which it is remembered whether they are trusted, and what upstreams are told of them."""

_PORT_MAX: Final = 65_535
_BROADCAST: Final = "255.255.255.255"
_SEPARATORS: Final = " ,"
_WITH_PORT: Final = re.compile(r"(?:\[([^\]]*)\]|([^:\[]*)):0*([0-9]{1,5})")
_OCTETS: Final = re.compile(r"0*([0-9]{0,3})\.0*([0-9]{0,3})\.0*([0-9]{0,3})\.0*([0-9]{0,3})")


class Forwarding:
    """What the upstreams of one worker are told.

    Args:
        gateway: its `trusted_ips`, `real_ip_header` and `real_ip_recursive`.

    Attributes:
        trusts: whether anybody is trusted; if not, a request's client is its peer.
    """

    def __init__(self, gateway: "Gateway") -> None:
        networks = [ipaddress.ip_network(block, strict=False) for block in gateway.trusted_ips if block != UNIX_PEERS]
        self.trusts = bool(networks)
        self._real_ip_header = gateway.real_ip_header.lower().encode()
        # nginx compares the name as it is spelled, and takes the first line of every other header.
        self._takes_all_lines = gateway.real_ip_header == "X-Forwarded-For"
        self._is_recursive = gateway.real_ip_recursive

        self._of_stranger = Memo(_of_stranger, PEERS_MAX, lambda client: len(client[1]) <= HOST_BYTES_MAX)

        @lru_cache(PEERS_MAX)
        def is_trusted(address: str) -> bool:
            found = _address(address)
            if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
                found = found.ipv4_mapped  # `ngx_cidr_match` looks for it among the blocks of IPv4, and there alone
            return found is not None and any(found in network for network in networks)

        self.is_trusted: Callable[[str], bool] = is_trusted

    def client_ip(self, request: "Request") -> str:
        """Return the address of the client for whom a request is made (`ngx_http_get_forwarded_addr`)."""
        client = request.connection.peer
        if not self.is_trusted(client):
            return client
        values = list(_values(request, self._real_ip_header))
        for value in reversed(values) if self._takes_all_lines else values[:1]:
            for name in _from_the_end(value):
                address = _address_in(name)
                if address is None:
                    return client
                client = address
                if not self._is_recursive or not self.is_trusted(client):
                    return client
        return client

    def named(self, request: "Request", name: str) -> str | None:
        """Return what `X-Forwarded-` and `name` says; None when it is not there, or no trusted proxy says it."""
        if not self.trusts or not self.is_trusted(request.connection.peer):
            return None
        return next(iter([*_values(request, f"x-forwarded-{name}".encode())][::-1]), None)

    def lines(self, request: "Request") -> bytes:
        """Return the header lines, joined."""
        connection = request.connection
        match = request.match
        assert match is not None
        path = request.raw_path
        prefix = match.stripped
        if self.trusts or not request.is_plain:
            return self._full_lines(request, path, prefix)
        told = self._of_stranger[connection.peer, request.host, connection.port]
        if prefix:
            return b"%b%b\r\nX-Forwarded-Prefix: %b" % (told, path, prefix)
        return told + path

    def _full_lines(self, request: "Request", path: bytes, prefix: bytes) -> bytes:
        """The same, where what others have written before counts."""
        peer = request.connection.peer
        before = "".join(f"{value}, " for value in _values(request, b"x-forwarded-for"))
        told = {
            "X-Real-IP": request.client_ip,
            "X-Forwarded-For": before + (peer if before else request.client_ip),
            "X-Forwarded-Proto": "http",
            "X-Forwarded-Host": request.host,
            "X-Forwarded-Port": str(request.connection.port),
            "X-Forwarded-Path": path.decode("latin-1"),
            "X-Forwarded-Prefix": prefix.decode(),
        }
        for name in ("Proto", "Host", "Port", "Path", "Prefix"):
            told[f"X-Forwarded-{name}"] = self.named(request, name.lower()) or told[f"X-Forwarded-{name}"]
        return "\r\n".join(f"{name}: {value}" for name, value in told.items() if value).encode("latin-1")


def _of_stranger(client: tuple[str, str, int]) -> bytes:
    """The lines about a client that nobody is told about by others, up to the value of `X-Forwarded-Path`."""
    peer, host, port = client
    host_line = f"X-Forwarded-Host: {host}\r\n" if host else ""
    lines = f"X-Real-IP: {peer}\r\nX-Forwarded-For: {peer}\r\nX-Forwarded-Proto: http\r\n{host_line}"
    return f"{lines}X-Forwarded-Port: {port}\r\nX-Forwarded-Path: ".encode("latin-1")


def _from_the_end(value: str) -> Iterator[str]:
    """Give what stands between the separators of a line, the last first, as nginx cuts it.

    It looks for no separator in the line's first place: what begins with one, or is nothing else, is no address.
    """
    end = len(value)
    while True:
        while end > 1 and value[end - 1] in _SEPARATORS:
            end -= 1
        start = max(value.rfind(separator, 1, end) for separator in _SEPARATORS) + 1
        yield value[start:end]
        if not start:
            return
        end = start - 1


def _address_in(name: str) -> str | None:
    """Return the address that a proxy names, maybe with a port, in nginx's form of it (`ngx_parse_addr_port`)."""
    match = _WITH_PORT.fullmatch(name)
    if match is not None and 0 < int(match[3]) <= _PORT_MAX:
        name = match[1] or match[2] or ""
    address = None if "%" in name else _address(name)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return f"::ffff:{address.ipv4_mapped}"
    return None if address is None else str(address)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a text is; like nginx, take leading zeros for nothing, and all ones for no address."""
    match = _OCTETS.fullmatch(text)
    if match is not None:
        text = ".".join(octet or "0" for octet in match.groups())
    try:
        return None if text == _BROADCAST else ipaddress.ip_address(text)
    except ValueError:
        return None


def _values(request: "Request", key: bytes) -> Iterator[str]:
    return (value.decode("latin-1") for name, value in request.lines if name.lower() == key)
