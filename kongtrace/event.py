"""What a span's list of events holds: events, and the links that OpenTelemetry's spans have and Kong's have not (L2).

A link stands among the events, so it lives exactly as long as its span, and a span without links pays nothing. To an
exporter that knows no links, such as one that was made for Kong, it is an event ``link`` whose attributes say where it
leads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

LINK_EVENT = "link"
"""Name of the event that a link is to those who know no links."""


class Event(NamedTuple):
    """One event of a span.

    Attributes:
        name: what happened.
        time_ns: when, ns since the epoch.
        attributes: mapping, or None when none were given.
    """

    name: str
    time_ns: int
    attributes: dict[str, Any] | None


class Link(Event):
    """A link to another span.

    Attributes:
        trace_id: of that span; 16 bytes.
        span_id: of the same; 8 bytes.
        trace_state: of the same, as W3C writes it.
        flags: of the same, as OTLP has them (``Span.Link.flags``).
        own_attributes: those that were given with the link.
    """

    trace_id: bytes
    span_id: bytes
    trace_state: str
    flags: int
    own_attributes: Mapping[str, Any]
