"""What may stand in a field of a file: the types that entities, settings and plugins' configurations share.

A type checks what it is given and raises :class:`~sim.errors.FieldError`, which says what was expected.
"""

import re
from contextlib import suppress
from typing import Annotated, Final, TypeVar
from urllib.parse import SplitResult, quote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from sim.document import matching
from sim.errors import FieldError, shown

T = TypeVar("T")

TIMEOUT_MS_MAX: Final = 2**31 - 2

PORTS: Final = {"http": 80, "https": 443}
"""The port of a URL that names none, by its scheme."""

_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 5.6.2, RFC 6265 4.1.1
_VISIBLE: Final = "".join(map(chr, range(ord("!"), ord("~") + 1)))

_URL_CHARACTERS: Final = re.compile(r"[!-\[\]-~]+")  # what is visible in ASCII, but for the backslash


def url_parts(value: object) -> SplitResult:
    """Split a URL of http or https; its port can be read then; raises FieldError."""
    parts = None
    if isinstance(value, str) and _URL_CHARACTERS.fullmatch(value):
        with suppress(ValueError):  # a bracket without its pair
            parts = urlsplit(value)
    if parts is None or parts.scheme not in PORTS or not parts.hostname:
        raise FieldError(f"expected a URL such as http://127.0.0.1:4318/v1/traces, not {shown(value)}")
    with suppress(ValueError):
        if parts.port != 0:
            return parts
    raise FieldError(f"expected a port from 1 to 65535 in {shown(value)}")


def host_of(parts: SplitResult) -> str:
    """Return the host of a URL as it is written: `hostname` is in lower case, the name of an upstream need not be."""
    place = parts.netloc.rpartition("@")[2]
    return place[1:].partition("]")[0] if place.startswith("[") else place.partition(":")[0]


def _endpoint(value: object) -> object:
    if "@" in url_parts(value).netloc:
        cure = "write a header: Authorization, with Basic and both in base64"
        raise FieldError("expected a URL without user and password, which are not sent", cure=cure)
    return value


def percent_encoded(path: str) -> str:
    """Return a path, with its query, that can stand in the first line of a request; raises FieldError."""
    encoded = quote(path, safe=_VISIBLE, errors="surrogatepass")
    if encoded != path:
        expected = "a path whose blanks, control characters and characters beyond ASCII are percent-encoded"
        raise FieldError(f"expected {expected}, not {shown(path)}", cure=f"write {encoded}")
    return path


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise FieldError(f"expected a path that begins with /, not {shown(text)}")
    return percent_encoded(text)


Many = Annotated[tuple[T, ...], Strict(strict=False)]
"""A list in a file, a tuple in the program."""
Path = Annotated[str, AfterValidator(_path)]
HeaderName = Annotated[str, matching(_NAME, "the name of a header")]
CookieName = Annotated[str, matching(_NAME, "the name of a cookie")]
HeaderValue = Annotated[str, matching(r"[^\x00-\x08\x0a-\x1f\x7f]*", "a header value, without line breaks")]
Rate01 = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TimeoutMs = Annotated[int, Field(ge=1, le=TIMEOUT_MS_MAX)]
Url = Annotated[str, BeforeValidator(_endpoint)]
"""Where something is posted to, without user and password."""
