"""What the names in a header section tell before any value is looked at: which lines are noted, which are passed on.

Most messages have the very names of an earlier one, in its order: those of one client have, and those of one service.
So this is worked out once for a sequence of names and remembered; a message with many lines costs hardly more than one
with few.
"""

from dataclasses import dataclass
from typing import Final

from sim.memo import Memo

Names = tuple[bytes, ...]
"""Of the lines of a header section, as sent."""

OUTLINES_MAX: Final = 256
"""Sequences of names that are remembered; when there are more, all are forgotten."""

LINES_MAX: Final = 64
NAMES_BYTES_MAX: Final = 2048
"""Lines and bytes of names that are remembered, so that nobody fills the memory."""

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that concern one connection and are not passed on (RFC 9110 7.6.1)."""

FORWARDING: Final = frozenset(b"x-forwarded-" + key for key in (b"for", b"proto", b"host", b"port", b"path", b"prefix"))
"""Headers in which a proxy tells of its client."""

NOT_FORWARDED: Final = (
    HOP_BY_HOP | FORWARDING | {b"host", b"content-length", b"expect", b"proxy", b"x-real-ip", b"x-kong-request-id"}
)
"""Headers of a request that are not passed on: they are written anew, or end here."""

_TO_NGINX: Final = {b"x-accel-" + key for key in (b"buffering", b"charset", b"expires", b"limit-rate", b"redirect")}
NOT_RETURNED: Final = (
    HOP_BY_HOP | _TO_NGINX | {b"x-pad", b"x-kong-upstream-latency", b"x-kong-proxy-latency", b"x-kong-request-id"}
)
"""The same of a response; some are meant for the gateway (nginx, `ngx_http_proxy_hide_headers`)."""

_NOTED: Final = FORWARDING | {b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"connection"}
"""Headers of a request whose values the gateway looks at."""


@dataclass(frozen=True, slots=True)
class RequestOutline:
    """Of a request.

    Attributes:
        noted: place of each line whose value the gateway looks at, and its name in lower case.
        passed: for each line, whether the service gets it.
        has_options: it may say by a header whether the connection is to be kept.
    """

    noted: tuple[tuple[int, bytes], ...]
    passed: tuple[bool, ...]
    has_options: bool

    @classmethod
    def of(cls, names: Names) -> "RequestOutline":
        """Work it out."""
        lower = [name.lower() for name in names]
        noted = tuple((place, name) for place, name in enumerate(lower) if name in _NOTED)
        passed = tuple(name not in NOT_FORWARDED for name in lower)
        return cls(noted, passed, b"connection" in lower or b"proxy-connection" in lower)


@dataclass(frozen=True, slots=True)
class ResponseOutline:
    """Of a response.

    Attributes:
        passed: for each line, whether the client gets it.
        codings: places of Transfer-Encoding.
        options: places of Connection.
        has_length: there is a Content-Length.
        has_date: there is a Date.
        is_framed: it says where its body ends; otherwise its connection's end does.
    """

    passed: tuple[bool, ...]
    codings: tuple[int, ...]
    options: tuple[int, ...]
    has_length: bool
    has_date: bool
    is_framed: bool

    @classmethod
    def of(cls, names: Names) -> "ResponseOutline":
        """Work it out."""
        lower = [name.lower() for name in names]
        codings, options = (
            tuple(place for place, name in enumerate(lower) if name == wanted)
            for wanted in (b"transfer-encoding", b"connection")
        )
        passed = tuple(name not in NOT_RETURNED for name in lower)
        has_length = b"content-length" in lower
        return cls(passed, codings, options, has_length, b"date" in lower, has_length or bool(codings))


def names_of(lines: list[tuple[bytes, bytes]]) -> Names:
    """Return the names of a header section's lines."""
    return tuple([name for name, _ in lines])


def _is_usual(names: Names) -> bool:
    return len(names) <= LINES_MAX and sum(map(len, names)) <= NAMES_BYTES_MAX


request_outlines: Final = Memo(RequestOutline.of, OUTLINES_MAX, _is_usual)
response_outlines: Final = Memo(ResponseOutline.of, OUTLINES_MAX, _is_usual)
