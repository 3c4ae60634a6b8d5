"""Mistakes: what is wrong with a plugin, where, why it hurts and how to mend it.

The tracer's findings, KT001 and up, come from `kongtrace.findings`; the gateway's own, KG001 and up, stand here in the
same form. A code is never given to another rule.
"""

from dataclasses import dataclass
from typing import Final

from kongtrace.findings import PAGE as TRACER_PAGE
from kongtrace.findings import RULES as TRACER_RULES
from kongtrace.findings import Finding, Frame, Rule, Severity, Stack

PAGE: Final = "docs/verify.md of kongsim's sources"

FORBIDDEN_CALL: Final = "KG001"
STALL: Final = "KG002"
TIMER_STORM: Final = "KG003"
TIMER_LEFT: Final = "KG004"
RAISES: Final = "KG005"
ORPHAN_PARENT: Final = "KG006"
BEHIND_THE_GATEWAY: Final = "KG007"
WAITS_FOR_EVER: Final = "KG008"
ENDS_MORE: Final = "KG009"

GATEWAY_RULES: Final[dict[str, Rule]] = {
    FORBIDDEN_CALL: Rule(
        "socket, wait or other call that the phase forbids",
        Severity.ERROR,
        "header_filter, body_filter and log run to their end without a pause, so nginx refuses whatever waits. The call"
        " raises and ends the handler, and with it the rest of the phase for all plugins; in log the request's spans do"
        " not come back to the pool either. What a plain handler returns is never awaited.",
        "Copy what is needed, and do the work in a timer without delay: `kong.timer.at(0, work, copied)`.",
        "H21, H44, R2, R6, R9",
    ),
    STALL: Rule(
        "handler blocks the event loop",
        Severity.ERROR,
        "A worker has one event loop: while a handler sleeps, computes, or reads a file or socket without the gateway,"
        " no other request of the worker goes on, and timeouts pass unseen.",
        "Wait with the gateway's own functions (`await kong.ngx.sleep(...)`, `kong.ngx.socket`, `kong.ngx.http`), and"
        " keep long computations out of requests.",
        "R3, R8",
    ),
    TIMER_STORM: Rule(
        "timers without bound",
        Severity.WARNING,
        "The worker has room for `lua_max_pending_timers` and runs `lua_max_running_timers` at once. Over that, new"
        " timers are refused, also other plugins', and expired ones are lost.",
        "Collect what is to be done, and let one timer of the worker do it; look at what `at` returns.",
        "H22, N4",
    ),
    TIMER_LEFT: Rule(
        "timer left behind",
        Severity.WARNING,
        "What each request leaves behind adds up until no timer can be made any more. A timer that does not heed"
        " `premature` keeps a leaving worker alive, so that each reload leaves one more generation in memory.",
        "Start what recurs once, in `init_worker`; end it when `premature` is true.",
        "H23, H50, N8, W12",
    ),
    RAISES: Rule(
        "handler raises",
        Severity.ERROR,
        "In access the client gets 500; in the other phases the rest of the phase is skipped, other plugins' handlers"
        " included. In log that is often the exporter, and nothing of the request comes back to the pools.",
        "Expect what may be missing: no route, no answer of the service, a header sent twice or not at all.",
        "H25, R6, E4",
    ),
    ORPHAN_PARENT: Rule(
        "headers for the upstream name a parent that is never exported",
        Severity.ERROR,
        "The upstream's spans hang below a span that no backend ever gets: the trace is torn in two at the gateway.",
        "Inject the id of a span of this request that is sampled and exported: the gateway's own, through the"
        " opentelemetry plugin, or one that `start_span` gave.",
        "H18, H16",
    ),
    BEHIND_THE_GATEWAY: Rule(
        "I/O behind the gateway's back",
        Severity.WARNING,
        "What does not go through `kong` is not seen: no phase forbids it, no timeout or limit bounds it, no span shows"
        " it, and a leaving worker does not wait for it.",
        "Use `kong.ngx.socket`, `kong.ngx.http`, `kong.ngx.sleep` and `kong.timer`.",
        "N3, R2, W12",
    ),
    WAITS_FOR_EVER: Rule(
        "handler waits for ever",
        Severity.ERROR,
        "The request is never answered, holds its spans and its connection, and keeps a leaving worker alive.",
        "Give everything that waits a timeout (`settimeout`), and let nobody wait for what may not come.",
        "W12, W13",
    ),
    ENDS_MORE: Rule(
        "handler ends what is not its own",
        Severity.ERROR,
        "A worker has one event loop for all its requests. Who stops it ends the worker, and the requests, spans and"
        " queues that it holds are lost. Who cancels a request's task gives its client 500.",
        "End a request with `kong.response.exit`, and cancel only tasks that the handler has made itself.",
        "R3, E5, H31",
    ),
}

RULES: Final[dict[str, Rule]] = {**{str(code): rule for code, rule in TRACER_RULES.items()}, **GATEWAY_RULES}
"""Every rule, by code."""

Key = tuple[str, str, int]
"""Code, file and line: what makes two mistakes the same."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake at one place.

    Attributes:
        code: which rule is broken.
        message: what this plugin did.
        plugin: its name.
        phase: in which it happened.
        span_name: of the span, or None.
        place: the plugin's own line.
        misuse: the whole stack, call site first.
        creation: where the span was made, or None.
    """

    code: str
    message: str
    plugin: str
    phase: str
    span_name: str | None
    place: Frame
    misuse: Stack
    creation: Stack | None = None

    @classmethod
    def of_finding(cls, finding: Finding, place: Frame, plugin: str) -> "Mistake":
        """Make one of what the tracer has found."""
        return cls(
            str(finding.code),
            finding.message,
            plugin,
            finding.phase,
            finding.span_name,
            place,
            finding.misuse,
            finding.creation,
        )

    @property
    def key(self) -> Key:
        """What makes it the same as another."""
        return self.code, self.place.filename, self.place.line

    @property
    def rule(self) -> Rule:
        """What is to be said of it, whichever plugin it is."""
        return RULES[self.code]

    @property
    def page(self) -> str:
        """Where it is explained."""
        return PAGE if self.code in GATEWAY_RULES else TRACER_PAGE
