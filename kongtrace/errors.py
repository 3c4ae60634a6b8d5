"""Errors of the tracer: one base, few children.

A programmer's mistake raises; what Kong logs and survives is logged here too, through the ``log`` callable that is
handed in. The texts of :class:`ApiError` are Kong's own, so that code which matches on them keeps working.
"""

from __future__ import annotations


class KongTraceError(Exception):
    """Base of everything that this package raises on purpose."""


class ApiError(KongTraceError, ValueError):
    """A call of the tracing API with a bad argument or in a forbidden phase; the text is Kong's (kong-semantics S3)."""


class ReleasedSpanError(KongTraceError, RuntimeError):
    """A method was called on a span whose memory has gone back to the pool (kong-semantics P7, P11)."""


class BookkeepingError(KongTraceError, RuntimeError):
    """Kong's own bookkeeping failed, as profile ``kong`` reproduces it (kong-semantics H26-H28); the text is Lua's."""
