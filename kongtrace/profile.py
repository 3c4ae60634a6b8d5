"""The two profiles of the tracer, as data.

``KONG`` is faithful to the real gateway, hazards included; ``SAFE`` keeps the same calls and results and takes the
hazards out. The code reads these fields and nothing else; ``docs/profiles.md`` lists the source behind each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """What distinguishes one profile of the tracer from the other.

    Attributes:
        name: the word that scenarios, reports and the command line use.
        recycles_held_objects: an object goes back to its pool although somebody else still holds it, so that a stale
            handle reaches into another request (kong-semantics P7, P9, P10; H5, H7, H8). When false, a span that
            is held is left to its holder, and lists and mappings are always new: spans alone are pooled, and counted.
        released_span_raises: a method called on a released span raises (P11, H9); when false the call is logged at
            level error and has no effect.
        nil_raises: reading a field of nothing raises, as in Lua: the attributes of a root span that has none (M7, H15),
            the tracer of an active span that has none. When false the first gives no answer, and the second stands for
            the default namespace.
        keeps_unlinked: spans that were created and never linked are left to the garbage collector at the end of the
            request (P13); when false they go back to the pool with the others.
        ends_unusable: the span list stays in the context after the end of the request, released, so that a span started
            after it raises, or is listed where the list has been lent since (E1); when false the context is as before
            the first span.
        memo_by_name: tracers are remembered by name and looked up by namespace and name, so that a tracer called
            ``NS_x`` is given for ``x`` in ``NS``, and every other call makes a new one (T2). When false a tracer is
            given again for the same name, namespace and rate.
    """

    name: str
    recycles_held_objects: bool
    released_span_raises: bool
    nil_raises: bool
    keeps_unlinked: bool
    ends_unusable: bool
    memo_by_name: bool


KONG = Profile("kong", True, True, True, True, True, True)
SAFE = Profile("safe", False, False, False, False, False, False)
PROFILES: dict[str, Profile] = {profile.name: profile for profile in (KONG, SAFE)}
