"""The phases of a request as nginx names them, and what each permits.

One table serves the tracer, the gateway and the documentation (kong-semantics R1, T8, R2, N2).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phase:
    """One nginx phase and its permissions.

    Attributes:
        name: the name that ``ngx.get_phase()`` gives.
        spans: the tracer works here; elsewhere it answers with the no-op span (T8).
        yields: sockets, sleeps and whatever else suspends the handler are allowed (R2).
        timers: timers can be created (N2).
    """

    name: str
    spans: bool
    yields: bool
    timers: bool

    @property
    def context(self) -> str:
        """What nginx calls the handlers of the phase in its messages."""
        return "ngx.timer" if self.name == "timer" else f"{self.name}_by_lua*"


PHASES: dict[str, Phase] = {
    phase.name: phase
    for phase in (
        #     name                     spans  yields timers
        Phase("init", False, False, False),
        Phase("init_worker", False, False, True),
        Phase("ssl_client_hello", False, True, True),
        Phase("ssl_cert", True, True, True),
        Phase("ssl_session_fetch", False, True, True),
        Phase("ssl_session_store", False, False, True),
        Phase("set", False, False, True),
        Phase("rewrite", True, True, True),
        Phase("preread", False, True, True),
        Phase("access", True, True, True),
        Phase("content", True, True, True),
        Phase("balancer", False, False, True),
        Phase("header_filter", True, False, True),
        Phase("body_filter", True, False, True),
        Phase("log", True, False, True),
        Phase("timer", False, True, True),
        Phase("exit_worker", False, False, False),
    )
}
