r"""The access log: a line for each request, in nginx's format `combined`, which is Kong's default.

    $remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent"

Lines are gathered and written with one call in each turn of the worker's loop in which a request ended, so that lines
of several workers never mix. The time is that of the end of the request, on the local wall clock, in whole seconds.

What comes from the client is escaped as nginx does it: a quote, a backslash and every byte outside printable ASCII
become `\xHH`, so that no client can forge a line. A variable without a value is `-`.
"""

import re
import time
from base64 import b64decode
from binascii import Error as Base64Error
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sim.error_log import LogFile

if TYPE_CHECKING:
    from sim.request import RefusedRequest, Request

_ESCAPED: Final = re.compile(rb'["\\\x00-\x1f\x7f-\xff]')
_NS_PER_S: Final = 1_000_000_000


def escaped(value: bytes) -> bytes:
    """Return how the log shows what a client has sent."""
    return _ESCAPED.sub(lambda match: b"\\x%02X" % match[0][0], value)


class AccessLog(LogFile):
    """Writes a line for each request to the file `path`.

    Raises:
        UserError: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "access_log")
        self._lines: list[bytes] = []
        self._second = 0
        self._stamp = b""

    def note(self, request: "Request | RefusedRequest") -> None:
        """Add the line of a request that has ended, or was refused; `flush` writes it."""
        second = request.connection.runloop.time_ns() // _NS_PER_S
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(second)).encode()
        user = referer = agent = b"-"
        for name, value in request.lines:
            match len(name):
                case 7 if name.lower() == b"referer":
                    referer = escaped(value) or b"-"
                case 10 if name.lower() == b"user-agent":
                    agent = escaped(value) or b"-"
                case 13 if name.lower() == b"authorization":
                    user = escaped(_user(value)) or b"-"
        self._lines.append(
            b'%b - %b [%b] "%b" %03d %d "%b" "%b"\n'
            % (
                request.client_ip.encode() or b"unix:",
                user,
                self._stamp,
                escaped(request.request_line) or b"-",
                request.status,
                request.body_bytes_sent,
                referer,
                agent,
            )
        )

    def flush(self) -> None:
        """Write what was noted."""
        if self._lines:
            self.append(b"".join(self._lines))
            self._lines.clear()


def _user(authorization: bytes) -> bytes:
    """Return the name in an `Authorization: Basic` header (RFC 7617), nothing when it is another or malformed."""
    scheme, _, credentials = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return b""
    try:
        return b64decode(credentials.strip(), validate=True).partition(b":")[0]
    except Base64Error:
        return b""
