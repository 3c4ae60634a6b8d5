"""The request that a load sends again and again, and where it goes."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sim import workload

__all__ = ["Request"]

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110 9.2.2
_WITH_CONTENT: Final = frozenset({"POST", "PUT", "PATCH"})  # say so even when it is empty (RFC 9110 8.6)


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A request template. Two are told apart even where they send the same: each has a load of its own.

    Attributes:
        host: Name or address to connect to.
        port: Port to connect to.
        method: HTTP method.
        path: Request target: path and query.
        headers: Header fields beside those of framing; `Host` is `host:port` unless given.
        body: Content, if any.

    Raises:
        ValueError: Something that cannot stand in a request head; the message names it.
    """

    host: str
    port: int
    method: str = "GET"
    path: str = "/"
    headers: "Mapping[str, str]" = field(default_factory=dict)
    body: bytes = b""

    def __post_init__(self) -> None:
        for text in (self.method, self.path, *self.headers):
            if not text or not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError(f"method, path and names of headers are ASCII without blanks, not {text!r}")
        for name, value in self.headers.items():
            if not value.isprintable():
                raise ValueError(f"header {name} must hold no control character, not {value!r}")

    @classmethod
    def of(cls, asked: "workload.Request", host: str, port: int) -> Self:
        """Return the request that a scenario asks for, to be sent to an address."""
        body = asked.body.encode()
        return cls(host=host, port=port, method=asked.method, path=asked.path, headers=asked.headers, body=body)

    @cached_property
    def is_head(self) -> bool:
        """Whether the answer has no body, whatever its head says (RFC 9110 9.3.2)."""
        return self.method == "HEAD"

    @property
    def is_idempotent(self) -> bool:
        """Whether sending it twice does no harm (RFC 9110 9.2.2)."""
        return self.method in _IDEMPOTENT

    @cached_property
    def encoded(self) -> bytes:
        """The request as it is sent."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        headers = {} if "host" in map(str.lower, self.headers) else {"Host": f"{host}:{self.port}"}
        headers |= self.headers
        if self.body or self.method in _WITH_CONTENT:
            headers["Content-Length"] = str(len(self.body))
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body
