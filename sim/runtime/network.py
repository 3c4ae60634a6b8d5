"""A network in memory: TCP as asyncio's protocols see it, without a socket.

Theory of operation. A connection is two `Endpoint`s, each the transport of one protocol. What one writes is cut into
segments, which reach the other after the network's delay, in the order in which they were sent. Data, the end of a
stream (FIN) and a reset (RST) travel the same way. At most `WINDOW_BYTES` are under way or wait at a receiver that does
not read; more waits at the sender, whose protocol is told to pause above its high-water mark and to resume below the
low one: that is back-pressure.

| what happens | what the other side sees |
|---|---|
| `close` | all that was written, then `eof_received`, then `connection_lost(None)` unless it keeps its half open |
| `write_eof` | the same, and its own half stays open |
| `abort` | the same, without what still waited at the sender |
| either of them before all was read, or data for a side that has gone | `connection_lost(ConnectionResetError)` |
| nobody listens | the connect fails: `ConnectionRefusedError` |
| the address is silent (`silence`) | a connect never ends |

Sizes in bytes, times in ns. Left out: loss, reordering and congestion, none of which a loopback or a rack shows to the
program above TCP.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from sim.runtime.virtual import VirtualLoop

Address = tuple[str, int]

WINDOW_BYTES: Final = 256 * 1024
"""What TCP takes before it makes a sender wait: about what Linux's buffers hold on loopback."""

SEGMENT_BYTES_MAX: Final = 64 * 1024
"""The most that one read brings."""

HIGH_WATER_BYTES: Final = 64 * 1024
"""asyncio's default."""

PORT_FIRST: Final = 49_152
"""First of the ports that are chosen (RFC 6335 6)."""

_PORTS: Final = 65_536 - PORT_FIRST
_FIN: Final = b""


class NetworkListener:
    """Accepts connections at an address.

    Attributes:
        address: where.
        protocol: makes the protocol of a new connection.
    """

    def __init__(self, network: "Network", address: Address, protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        self._network = network
        self.address = address
        self.protocol = protocol

    def close(self) -> None:
        """Accept no more; what is connected stays so."""
        self._network.forget(self)


class Network:
    """What joins the hosts of a virtual world.

    Args:
        loop: the clock.
        delay_ns: draws the one-way delay of a segment; None: there is none.

    Attributes:
        hosts: names that can be resolved.
    """

    def __init__(self, loop: "VirtualLoop", delay_ns: Callable[[], int] | None = None) -> None:
        self.loop = loop
        self.hosts: dict[str, str] = {}
        self.delay_ns: Callable[[], int] = delay_ns or (lambda: 0)
        self._listeners: dict[Address, NetworkListener] = {}
        self._silent: dict[Address, None] = {}
        self._ports = 0

    def listen(self, address: Address, protocol: Callable[[], asyncio.BaseProtocol]) -> NetworkListener:
        """Accept connections; port 0 is any that is free.

        Raises:
            OSError: somebody listens there already.
        """
        host, port = address
        while not port or (not address[1] and (host, port) in self._listeners):
            port = self._port()
        if (host, port) in self._listeners:
            raise OSError(f"address already in use: {host}:{port}")
        listener = self._listeners[host, port] = NetworkListener(self, (host, port), protocol)
        return listener

    def forget(self, listener: NetworkListener) -> None:
        """Nobody listens there any more."""
        if self._listeners.get(listener.address) is listener:
            del self._listeners[listener.address]

    def knows(self, address: Address) -> bool:
        """Whether somebody listens there, or swallows what comes."""
        return address in self._listeners or address in self._silent

    def silence(self, address: Address) -> None:
        """From now on swallow whatever asks `address` for a connection, as a firewall does."""
        self._silent[address] = None

    def resolve(self, name: str) -> str:
        """Return an address of a host name, which an address is itself; raises OSError."""
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(name))
        if name not in self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.hosts[name]

    async def connect(self, address: Address, protocol: Callable[[], asyncio.BaseProtocol]) -> asyncio.BaseProtocol:
        """Open a connection and return its protocol; raises OSError."""
        made: asyncio.Future[asyncio.BaseProtocol] = self.loop.create_future()
        if address not in self._silent:
            self.after_delay(self._arrive, address, protocol, made)
        return await made

    def after_delay(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call back when a segment sent now arrives."""
        self.loop.call_at_ns(self.loop.now_ns + self.delay_ns(), callback, *arguments)

    def _arrive(
        self,
        address: Address,
        protocol: Callable[[], asyncio.BaseProtocol],
        made: "asyncio.Future[asyncio.BaseProtocol]",
    ) -> None:
        listener = self._listeners.get(address)
        if listener is None:
            self.after_delay(_refuse, made, address)
            return
        if made.done():
            return
        local = ("127.0.0.1", self._port())
        server, client = Endpoint(self, address, local), Endpoint(self, local, address)
        server.pair(client)
        server.begin(listener.protocol())
        self.after_delay(_connected, client, protocol, made)

    def _port(self) -> int:
        self._ports += 1
        return PORT_FIRST + (self._ports - 1) % _PORTS


def _refuse(made: "asyncio.Future[asyncio.BaseProtocol]", address: Address) -> None:
    if not made.done():
        made.set_exception(ConnectionRefusedError(f"connection refused: {address[0]}:{address[1]}"))


def _connected(
    client: "Endpoint", protocol: Callable[[], asyncio.BaseProtocol], made: "asyncio.Future[asyncio.BaseProtocol]"
) -> None:
    if made.done():
        client.disown()
        return
    client.begin(protocol())
    made.set_result(client.get_protocol())


class Endpoint(asyncio.Transport):
    """One side of a connection.

    Args:
        network: that carries what is written.
        local: its own address.
        remote: the other side's.
    """

    def __init__(self, network: Network, local: Address, remote: Address) -> None:
        super().__init__({"sockname": local, "peername": remote})
        self._network = network
        self._protocol: asyncio.Protocol
        self._peer: Endpoint
        # Sending.
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._window = WINDOW_BYTES
        self._arrival_ns = 0
        self._high, self._low = HIGH_WATER_BYTES, HIGH_WATER_BYTES // 4
        self._paused_protocol = False
        self._eof = False
        # Receiving.
        self._arrived: deque[bytes] = deque()
        self._reading = True
        self._begun = False
        self._end_told = False
        # The end.
        self._closing = False
        self._closed = False
        self._unread = False

    def pair(self, peer: "Endpoint") -> None:
        """Join two sides."""
        self._peer, peer._peer = peer, self

    def begin(self, protocol: asyncio.BaseProtocol) -> None:
        """The connection stands."""
        self._protocol = cast("asyncio.Protocol", protocol)
        self._begun = True
        protocol.connection_made(self)
        self._feed()

    def disown(self) -> None:
        """Whoever asked for the connection has gone meanwhile."""
        self._protocol = asyncio.Protocol()
        self._begun = True
        self.abort()

    # asyncio.BaseTransport and asyncio.ReadTransport.

    def is_closing(self) -> bool:
        """Whether it is closing or closed."""
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another protocol go on."""
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def is_reading(self) -> bool:
        """Whether what arrives is passed on."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Pass nothing on."""
        self._reading = False

    def resume_reading(self) -> None:
        """Pass on again."""
        if not self._reading and not self._closing:
            self._reading = True
            self._network.loop.call_soon(self._feed)

    # asyncio.WriteTransport.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; never waits."""
        if self._closing or not data:
            return
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        self._unsent.append(bytes(data))
        self._unsent_bytes += len(data)
        self._send()
        if self._unsent_bytes > self._high and not self._paused_protocol:
            self._paused_protocol = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Send all of them."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """It can."""
        return True

    def write_eof(self) -> None:
        """Close its own half once all is sent."""
        if not self._eof and not self._closing:
            self._eof = True
            self._send()

    def get_write_buffer_size(self) -> int:
        """Return the bytes that wait for the receiver."""
        return self._unsent_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return low and high water."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set high and low water."""
        self._high = HIGH_WATER_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    def close(self) -> None:
        """Close once all is sent; nothing more is read."""
        if not self._closing:
            self._shut()

    def abort(self) -> None:
        """Close at once; what waits to be sent is lost."""
        if not self._closed:
            self._unsent.clear()
            self._unsent_bytes = 0
            self._shut()

    # What travels.

    def _send(self) -> None:
        while self._unsent and self._window > 0:
            data = self._unsent[0]
            part = data[: min(self._window, SEGMENT_BYTES_MAX)]
            if len(part) == len(data):
                self._unsent.popleft()
            else:
                self._unsent[0] = data[len(part) :]
            self._window -= len(part)
            self._unsent_bytes -= len(part)
            self._carry(self._peer._arrive, part)
        if self._eof and not self._unsent and not self._end_told:
            self._end_told = True
            if self._unread:
                self._carry(self._peer._reset)
            else:
                self._carry(self._peer._arrive, _FIN)

    def _carry(self, deliver: Callable[..., object], *arguments: object) -> None:
        loop = self._network.loop
        self._arrival_ns = max(self._arrival_ns, loop.now_ns + self._network.delay_ns())
        loop.call_at_ns(self._arrival_ns, deliver, *arguments)

    def _arrive(self, data: bytes) -> None:
        if self._closing:
            if data and not self._peer._closed:
                self._carry(self._peer._reset)
            return
        self._arrived.append(data)
        if len(self._arrived) == 1:
            self._feed()

    def _reset(self) -> None:
        if not self._closed:
            self._end(ConnectionResetError("connection reset by peer"))

    def _taken(self, count: int) -> None:
        """The other side has read so much."""
        self._window += count
        if self._closed:
            return
        self._send()
        if self._paused_protocol and self._unsent_bytes <= self._low:
            self._paused_protocol = False
            self._protocol.resume_writing()
        self._end_if_sent()

    def _feed(self) -> None:
        while self._arrived and self._reading and self._begun and not self._closing:
            data = self._arrived.popleft()
            if data:
                self._network.after_delay(self._peer._taken, len(data))
                self._protocol.data_received(data)
            elif not self._protocol.eof_received():
                self.close()

    # The end.

    def _shut(self) -> None:
        self._closing = self._eof = True
        if any(self._arrived):
            self._unread = True
            self._end_told = False
            self._arrived.clear()
        self._send()
        self._end_if_sent()

    def _end_if_sent(self) -> None:
        if self._closing and not self._unsent:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if not self._closed:
            self._closing = self._closed = self._eof = True
            self._unsent.clear()
            self._arrived.clear()
            self._network.loop.call_soon(self._protocol.connection_lost, error)
