"""The peer of the gateway's benchmark: the least that a proxy on uvloop and httptools can do.

It parses requests and responses, keeps connections to one upstream, and passes on what it reads; no phases, no routes,
no accounts, no errors. Run as a process: `python -m tests.bench.bare_proxy LISTEN_PORT UPSTREAM_PORT`.
"""

import asyncio
import sys
from typing import Any

import httptools
import uvloop


class Upstream(asyncio.Protocol):
    """One connection to the upstream, serving one client's request at a time."""

    def __init__(self, idle: list["Upstream"]) -> None:
        self.idle = idle
        self.transport: Any = None
        self.client: Any = None
        self.parser = httptools.HttpResponseParser(self)
        self.lines: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.lines += (name, b": ", value, b"\r\n")

    def on_headers_complete(self) -> None:
        head = b"HTTP/1.1 %d OK\r\n%b\r\n" % (self.parser.get_status_code(), b"".join(self.lines))
        self.lines.clear()
        self.client.out.append(head)

    def on_body(self, data: bytes) -> None:
        self.client.out.append(data)

    def on_message_complete(self) -> None:
        client, self.client = self.client, None
        self.idle.append(self)
        client.transport.write(b"".join(client.out))
        client.out.clear()


class Client(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, port: int, idle: list[Upstream]) -> None:
        self.port = port
        self.idle = idle
        self.transport: Any = None
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.lines: list[bytes] = []
        self.out: list[bytes] = []
        self.connecting: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.lines += (name, b": ", value, b"\r\n")

    def on_message_complete(self) -> None:
        request = b"%b %b HTTP/1.1\r\n%b\r\n" % (self.parser.get_method(), self.url, b"".join(self.lines))
        self.lines.clear()
        if self.idle:
            self.send(self.idle.pop(), request)
        else:
            self.connecting = asyncio.ensure_future(self.connect(request))

    async def connect(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(lambda: Upstream(self.idle), "127.0.0.1", self.port)
        self.send(upstream, request)

    def send(self, upstream: Upstream, request: bytes) -> None:
        upstream.client = self
        upstream.transport.write(request)


async def main(listen_port: int, upstream_port: int) -> None:
    """Serve until killed."""
    idle: list[Upstream] = []
    server = await asyncio.get_running_loop().create_server(
        lambda: Client(upstream_port, idle), "127.0.0.1", listen_port
    )
    await server.serve_forever()


def serve(listen_port: int, upstream_port: int) -> None:
    """Serve in this process until killed."""
    uvloop.run(main(listen_port, upstream_port))


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
