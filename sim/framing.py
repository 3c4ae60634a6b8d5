"""Which messages are unambiguous: the rules of RFC 9112 that go beyond the grammar of a header section.

The grammar is that of llhttp in its strict form, which refuses by itself: lines that end without CR LF, folded lines, a
blank before the colon, NUL and other control characters, a Content-Length that is no number or stands twice or beside
Transfer-Encoding, and malformed chunks. What it lets pass and two readers could take in two ways is refused here. A
gateway passes nothing on as it came: it frames anew, from what was understood here alone (RFC 9112 11.2).
"""

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from sim.memo import Memo

HeaderLines = list[tuple[bytes, bytes]]

LINE_BYTES_MAX: Final = 8 * 1024
"""Longest request line, and longest header line; nginx's `large_client_header_buffers 4 8k`."""

HEAD_BYTES_MAX: Final = 32 * 1024
"""Largest header section, and largest trailer section; the same."""

CONTENT_LENGTH_MAX: Final = 2**63 - 1
"""Largest Content-Length, nginx's."""

LENGTHLESS: Final = frozenset({*range(100, 200), 204})
"""Statuses of answers that have neither a body nor a Content-Length (RFC 9110 8.6)."""

BODILESS: Final = LENGTHLESS | {304}
"""Statuses of answers that have no body (RFC 9112 6.3)."""

_CONTENT_TOO_LARGE: Final = 413
_LENGTH_DIGITS_MAX: Final = 19

HOSTS_MAX: Final = 1024
HOST_BYTES_MAX: Final = 255
"""Values of Host that are remembered, and their length at most: that of a name (RFC 1035 2.3.4)."""

_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]+)(?::[0-9]{0,5})?")  # RFC 3986 3.2.2
_NO_TRIPLET: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00")
_INVALID_PATH: Final = "client sent invalid request while reading client request line"
_ABSOLUTE: Final = re.compile(rb"https?://([^/?]+)(.*)", re.IGNORECASE | re.DOTALL)


class Refusal(Exception):  # noqa: N818 - what a client did, not an error of the program
    """A request that is not served.

    Attributes:
        status: of the answer.
        reason: for the error log, in nginx's manner.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def octets(text: str) -> bytes:
    """Return text as it is sent: what has come in and was no UTF-8 goes out as it came."""
    return text.encode("utf-8", "surrogateescape")


def level_of_refusal(status: int) -> str:
    """Return the level at which nginx logs why a request is refused."""
    return "error" if status == _CONTENT_TOO_LARGE else "info"


class InvalidResponseError(Exception):
    """A response that no client may take."""


def length_of(value: bytes) -> int:
    """Return what a Content-Length says, whose grammar has been checked.

    Raises:
        Refusal: it is larger than any body, or has so many zeros in front that it looks so.
    """
    digits = value.strip(b" \t")
    if len(digits) > _LENGTH_DIGITS_MAX or int(digits) > CONTENT_LENGTH_MAX:
        raise Refusal(400, "client sent invalid Content-Length header")
    return int(digits)


def _host_of(authority: bytes) -> str:
    """Return the host of an authority, in lower case and without port (RFC 9112 3.2).

    Raises:
        Refusal: it is none.
    """
    match = _HOST.fullmatch(authority)
    if match is None:
        raise Refusal(400, "client sent invalid host header")
    return match[1].decode("ascii").lower()


hosts: Final = Memo(_host_of, HOSTS_MAX, lambda authority: len(authority) <= HOST_BYTES_MAX)
"""The host of an authority, in lower case and without port; raises Refusal where it is none."""


def split_absolute(target: bytes) -> tuple[bytes, bytes]:
    """Return authority and origin-form of a target that begins with no slash (RFC 9112 3.2.2).

    Raises:
        Refusal: it is no absolute-form of HTTP.
    """
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise Refusal(400, "client sent invalid request target")
    authority, rest = match.groups()
    return authority, rest if rest.startswith(b"/") else b"/" + rest


def check_path(path: bytes) -> None:
    """See to it that a path has its triplets whole, no zero byte, and no segment above its root (nginx).

    Raises:
        Refusal: it has not.
    """
    if _NO_TRIPLET.search(path):
        raise Refusal(400, _INVALID_PATH)
    depth = 0
    for segment in unquote_to_bytes(path).split(b"/"):
        depth += -1 if segment == b".." else segment not in (b"", b".")
        if depth < 0:
            raise Refusal(400, _INVALID_PATH)


def head_size(lines: HeaderLines) -> int:
    """Return the bytes that header lines take."""
    return sum([len(name) + len(value) + 4 for name, value in lines])


def check_head_size(target: bytes, lines: HeaderLines) -> None:
    """See to it that a request's header section is within the limits, each line and all of it.

    Raises:
        Refusal: it is too large.
    """
    if len(target) > LINE_BYTES_MAX:
        raise Refusal(414, "client sent too long URI")
    sizes = [len(name) + len(value) + 4 for name, value in lines]
    if len(target) + sum(sizes) > HEAD_BYTES_MAX or max(sizes, default=0) > LINE_BYTES_MAX:
        raise Refusal(431, "client sent too large header")


def check_transfer_coding(value: bytes, version: str) -> None:
    """See to it that a request's Transfer-Encoding is the one that is known (RFC 9112 6.1).

    Raises:
        Refusal: it is another one, or one that the version does not have.
    """
    if version == "1.0":
        raise Refusal(400, "client sent HTTP/1.0 request with Transfer-Encoding header")
    if value.rstrip(b" \t").lower() != b"chunked":
        raise Refusal(501, "client sent unknown Transfer-Encoding")


def has_line(lines: HeaderLines, name: bytes) -> bool:
    """Whether one of the header lines has this name, given in lower case."""
    size = len(name)
    for line in lines:  # noqa: SIM110 - a generator would cost twice as much
        if len(line[0]) == size and line[0].lower() == name:
            return True
    return False


def check_response_coding(value: bytes) -> None:
    """See to it that a response's Transfer-Encoding is the one that is known.

    Raises:
        InvalidResponseError: it is another one.
    """
    if value.rstrip(b" \t").lower() != b"chunked":
        raise InvalidResponseError("unknown Transfer-Encoding")
