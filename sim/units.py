"""Durations, rates and sizes as people write them, and as plain numbers.

A value carries its unit: ``30s``, ``1m30s``, ``2ms``, ``500/s``, ``2KiB``. Inside the program a duration is a float in
seconds, a rate a float per second, a size an int in bytes. A zero needs no unit; any other bare number is refused,
because it could mean anything. The sums are exact: ``format_x`` writes a text that ``parse_x`` reads back as the same
number.

Raises:
    FieldError: the text is no such value, or is beyond the limit.
"""

import math
import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator

from sim.errors import FieldError, shown

DURATION_S_MAX = 366 * 86_400
"""The longest duration: a year, enough for any run and small enough for every timer."""

RATE_PER_S_MAX = 1_000_000
"""The highest rate; no worker of this program comes near it."""

SIZE_BYTES_MAX = 1 << 30
"""The largest size: bodies are held in memory."""

_SECONDS = {
    "d": Decimal(86_400),
    "h": Decimal(3_600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("1e-3"),
    "us": Decimal("1e-6"),
    "ns": Decimal("1e-9"),
}
_PER_SECOND = {"s": 1, "m": 60, "min": 60, "h": 3_600}
_BYTES = {
    "B": 1,
    "kB": 1_000,
    "KiB": 1 << 10,
    "MB": 1_000_000,
    "MiB": 1 << 20,
    "GB": 1_000_000_000,
    "GiB": 1 << 30,
}

_NUMBER = r"\d{1,30}(?:\.\d{1,30})?"
_DURATION_PART = re.compile(rf"({_NUMBER})({'|'.join(sorted(_SECONDS, key=len, reverse=True))})", re.ASCII)
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+", re.ASCII)
_RATE = re.compile(rf"({_NUMBER}) ?/ ?({'|'.join(sorted(_PER_SECOND, key=len, reverse=True))})", re.ASCII)
_SIZE = re.compile(rf"({_NUMBER}) ?({'|'.join(sorted(_BYTES, key=len, reverse=True))})", re.ASCII)


def parse_duration(value: object) -> float:
    """Read a duration such as ``30s``, ``2ms`` or ``1m30s``, in seconds."""
    if _is_zero(value):
        return 0.0
    text = _text(value, _DURATION, "a duration such as 30s or 2ms", "ms, s, m or h")
    return _limited(
        float(sum(Decimal(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))),
        DURATION_S_MAX,
        "a duration of at most 366d",
        text,
    )


def parse_rate(value: object) -> float:
    """Read a rate such as ``500/s`` or ``30/min``, in events per second."""
    if _is_zero(value):
        return 0.0
    text = _text(value, _RATE, "a rate such as 500/s", "/s, /min or /h")
    number, unit = _parts(_RATE, text)
    return _limited(float(Decimal(number) / _PER_SECOND[unit]), RATE_PER_S_MAX, "a rate of at most 1000000/s", text)


def parse_size(value: object) -> int:
    """Read a size such as ``2KiB`` or ``500B``, in whole bytes."""
    if _is_zero(value):
        return 0
    text = _text(value, _SIZE, "a size such as 2KiB or 500B", "B, kB, KiB, MB or MiB")
    number, unit = _parts(_SIZE, text)
    size = Decimal(number) * _BYTES[unit]
    if size % 1:
        raise FieldError(f"expected whole bytes, not {shown(text)}")
    return int(_limited(float(size), SIZE_BYTES_MAX, "a size of at most 1GiB", text))


def format_duration(seconds: float) -> str:
    """Write a duration in the unit that suits it: ``30s``, ``2ms``, ``150us``."""
    unit = next((unit for unit in ("s", "ms", "us") if Decimal(repr(seconds)) >= _SECONDS[unit]), "ns")
    return f"{_plain(Decimal(repr(seconds)) / _SECONDS[unit])}{unit}" if seconds else "0s"


def format_rate(per_second: float) -> str:
    """Write a rate in events per second: ``500/s``."""
    return f"{_plain(Decimal(repr(per_second)))}/s"


def about(number: float) -> float:
    """Round a number to the six digits that a reader has use for: 100/min are 1.66667/s."""
    return float(f"{number:.6g}")


Seconds = Annotated[float, BeforeValidator(parse_duration)]
"""A duration in a file, seconds in the program."""

PerSecond = Annotated[float, BeforeValidator(parse_rate)]
"""A rate in a file, events per second in the program."""

Bytes = Annotated[int, BeforeValidator(parse_size)]
"""A size in a file, bytes in the program."""


def _is_zero(value: object) -> bool:
    return value == "0" or (isinstance(value, int | float) and not isinstance(value, bool) and value == 0)


def _text(value: object, pattern: re.Pattern[str], expected: str, units: str) -> str:
    if isinstance(value, str) and pattern.fullmatch(value.strip()):
        return value.strip()
    bare = isinstance(value, int | float) and not isinstance(value, bool)
    raise FieldError(
        f"expected {expected}, not {shown(value)}",
        cure=f"add the unit, one of {units}" if bare else f"write a number and its unit, one of {units}",
    )


def _parts(pattern: re.Pattern[str], text: str) -> tuple[str, str]:
    match = pattern.fullmatch(text)
    assert match is not None
    number, unit = match.groups()
    return number, unit


def _limited(value: float, limit: float, expected: str, text: str) -> float:
    if not math.isfinite(value) or value > limit:
        raise FieldError(f"expected {expected}, not {shown(text)}")
    return value


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"
