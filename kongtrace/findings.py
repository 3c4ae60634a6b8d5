"""Findings: what the checked span has to say about misuse, and the log that keeps and counts it.

Every kind of misuse has a stable code, ``KT001`` and up; :data:`RULES` says of each what it is called, how bad it is,
why it hurts in the real gateway and how to mend it. `docs/findings.md` shows each with a wrong and a right program. A
code is never given to another rule.

A :class:`FindingLog` counts every occurrence and keeps one :class:`Finding` for each code and call site, so that a
mistake made in each of a million requests is one entry with a count. It keeps :data:`SITES_MAX` of them at most; what
comes later is counted in ``omitted``.

No source file is read here before somebody asks for text: a stack is kept as file names, lines and functions.
Severities and the labels H1 to H51 are those of kong-semantics section 17.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from traceback import StackSummary, format_list
from typing import TYPE_CHECKING, NamedTuple, Never

from kongtrace.errors import KongTraceError

if TYPE_CHECKING:
    from collections.abc import Callable

SITES_MAX = 1000
"""Distinct findings that a log keeps."""

PAGE = "docs/findings.md of kongsim's sources"
"""Where each code has its section. The pages are part of the source distribution, not of what is installed."""


class Mode(StrEnum):
    """What becomes of a finding.

    Attributes:
        OFF: nothing is checked: the plain provider is used, and pays nothing.
        COUNT: occurrences are counted by code.
        REPORT: and each finding is kept with its stacks, and told once.
        RAISE: and every occurrence of a warning or an error raises :class:`FindingError`.
    """

    OFF = "off"
    COUNT = "count"
    REPORT = "report"
    RAISE = "raise"

    @classmethod
    def _missing_(cls, value: object) -> Never:
        raise ValueError(f"there is no mode {value!r}; expected one of {', '.join(cls)}")


class Severity(IntEnum):
    """How bad it is: a note, a probable mistake or loss, wrong data or a crash."""

    NOTE = 0
    WARNING = 1
    ERROR = 2


class Code(StrEnum):
    """The kinds of misuse."""

    USE_AFTER_RELEASE = "KT001"
    DOUBLE_RELEASE = "KT002"
    RELEASED_OPEN = "KT003"
    RELEASED_NEEDED = "KT004"
    NEVER_FINISHED = "KT005"
    LEFT_ACTIVE = "KT006"
    FOREIGN_REQUEST = "KT007"
    CALLERS_TABLE = "KT008"
    SHARED_TABLE = "KT009"
    FORBIDDEN_PHASE = "KT010"
    PROCESSED_WRONGLY = "KT011"
    LIVE_SPAN_KEPT = "KT012"
    SHALLOW_COPY = "KT013"
    WRONG_UNIT = "KT014"
    FINISHED_TWICE = "KT015"
    CHANGED_AFTER_FINISH = "KT016"
    VALUE_TYPE = "KT017"
    NAME_CARDINALITY = "KT018"
    MIXED_FLAGS = "KT019"
    FLAG_OF_ONE_SPAN = "KT020"
    OUTSIDE_PARENT = "KT021"
    NAMESPACE_NOT_EXPORTED = "KT022"
    TRACER_NOT_EXPORTED = "KT023"
    ERROR_WITHOUT_STATUS = "KT024"
    OUTLIVES_REQUEST = "KT025"
    CHANGED_AFTER_EXPORT = "KT026"
    BARE_ROOT = "KT027"
    TRACER_PER_REQUEST = "KT028"
    LISTED_TWICE = "KT029"
    FINISHED_AFTER_EXPORT = "KT030"
    KEY_CARDINALITY = "KT031"
    ATTRIBUTE_SIZE = "KT032"


class Rule(NamedTuple):
    """What is to be said of one code, whichever program breaks it.

    Attributes:
        title: what is wrong, in a few words.
        severity: how bad it is.
        why: what happens in the real gateway.
        fix: how to mend it.
        source: labels of kong-semantics.
    """

    title: str
    severity: Severity
    why: str
    fix: str
    source: str


_NOTE, _WARNING, _ERROR = Severity

RULES: dict[Code, Rule] = {
    Code.USE_AFTER_RELEASE: Rule(
        "span used after its release",
        _ERROR,
        "The span's memory belongs to the pool again, or to a span of another request: a write is lost, raises,"
        " or lands in somebody else's trace, depending on how full the pool was.",
        "Finish with the span before its request ends; what is needed later, copy out of it while it is live.",
        "H5, P7",
    ),
    Code.DOUBLE_RELEASE: Rule(
        "span released twice",
        _ERROR,
        "If the first release went into a full pool, the second puts the same tables into it once more, and two"
        " unrelated spans share them; otherwise it raises.",
        "Release a span at most once, or not at all: the end of the request does it.",
        "H9, P11",
    ),
    Code.RELEASED_OPEN: Rule(
        "span released before it was finished",
        _WARNING,
        "A released span has no name, times or tracer any more, so that no exporter sees it: the operation is"
        " missing from the trace.",
        "Call `finish()` and leave the release to the end of the request.",
        "S6, S16, T9",
    ),
    Code.RELEASED_NEEDED: Rule(
        "span released while others need it",
        _ERROR,
        "Releasing takes a span neither out of the span list nor out of the active slot, nor away from its"
        " children: they refer to an empty object, which soon is the span of another request; without its root"
        " the sampling decision fails.",
        "Leave the release to the end of the request.",
        "H10, S16",
    ),
    Code.NEVER_FINISHED: Rule(
        "span never finished",
        _WARNING,
        "It is exported without an end: backends show no duration, or drop the span.",
        "Finish the span on every way out of the handler, errors and early returns included (`try` ... `finally`).",
        "H3, E6",
    ),
    Code.LEFT_ACTIVE: Rule(
        "active span not restored",
        _ERROR,
        "Every later span of the request becomes its child, other plugins' and the gateway's own included. In the"
        " log phase one of two spans is left without an end: the root, in whose place the gateway ends this one; or"
        " this one, where the last try of the balancer was good and is traced, since that makes the root active again.",
        "Finish a span that was made active before its handler returns: that makes its parent active again.",
        "H4, I13, T10",
    ),
    Code.FOREIGN_REQUEST: Rule(
        "span used from another request",
        _ERROR,
        "A worker serves many requests in turns. A span in module state is seen by all of them: one request"
        " writes into the trace of another, and after the end of the first into a recycled object.",
        "Keep spans in the request's context, or ask for `active_span()`; never in module or plugin state.",
        "H45, R3, R4",
    ),
    Code.CALLERS_TABLE: Rule(
        "attribute table still held by its caller",
        _ERROR,
        "The table is not copied. At the end of the request it is emptied and goes into the pool: a constant is"
        " empty from the second request on, and an unrelated span writes into it.",
        "Give each span a table of its own: a literal, or `dict(TABLE)`.",
        "H7, S4, P9",
    ),
    Code.SHARED_TABLE: Rule(
        "one attribute table on two spans",
        _ERROR,
        "What is set on one span shows on the other. At the end of the request the table goes into the pool"
        " twice, and two unrelated spans of later requests share it.",
        "Give each span a table of its own: a literal, or `dict(table)`.",
        "H8, P10",
    ),
    Code.FORBIDDEN_PHASE: Rule(
        "span call in a phase that has no spans",
        _WARNING,
        "The call has no effect and says so nowhere: the span is the noop span, and whatever is recorded on it"
        " is lost. (In ssl_cert spans are made, and lost when the context is emptied.)",
        "Trace in rewrite, access, header_filter, body_filter or log; for work done in a timer or balancer, note"
        " its times and make the span in the log phase.",
        "H20, H40, T8",
    ),
    Code.PROCESSED_WRONGLY: Rule(
        "process_span outside the log phase, or with a function that awaits",
        _ERROR,
        "Outside log the call raises and ends the handler; a function that yields raises too, since log permits"
        " neither sockets nor sleeps.",
        "Call `process_span` in the log phase, with a plain function that copies; send from a timer.",
        "H44, R2, R9",
    ),
    Code.LIVE_SPAN_KEPT: Rule(
        "process_span's function kept the live span",
        _ERROR,
        "When the timer that was to send it runs, the span has been emptied, or belongs to another request: the"
        " exporter sends foreign or empty data.",
        "Encode or copy what is needed inside the function; hand only that to the timer.",
        "H5, H24, E3",
    ),
    Code.SHALLOW_COPY: Rule(
        "copy of a span shares its tables",
        _ERROR,
        "A shallow copy refers to the span's attributes, events and parent, which are recycled: when it is sent,"
        " its attributes are empty or those of another request.",
        "Copy the tables too, and drop `parent` and `tracer`, as `copy.deepcopy(span)` does; or encode the span inside"
        " the function.",
        "H6, C12",
    ),
    Code.WRONG_UNIT: Rule(
        "time of a span is not in ns, or its end precedes its start",
        _WARNING,
        "An end before the start is logged and ignored: the span stays open, and stays active if it was. A time"
        " in another unit puts the span into another decade of the trace.",
        "Leave the time out, or give integer nanoseconds since the epoch: s * 10**9, ms * 10**6.",
        "H2, C5, S9",
    ),
    Code.FINISHED_TWICE: Rule(
        "span finished twice",
        _NOTE,
        "The second call is ignored, its end time included. Two places believe that the span is theirs to end.",
        "Let the code that starts a span be the one that finishes it, once.",
        "S9",
    ),
    Code.CHANGED_AFTER_FINISH: Rule(
        "span changed after it was finished",
        _WARNING,
        "Kong's documentation forbids it, and OpenTelemetry ignores such changes. Here it works by accident, and"
        " only until an exporter has run.",
        "Set attributes, events and status before `finish()`.",
        "S6, C4",
    ),
    Code.VALUE_TYPE: Rule(
        "attribute value of a type that cannot be exported",
        _WARNING,
        "The value is stored, an error with a traceback is logged at each call, and the attribute is exported"
        " without a value.",
        "Use strings, numbers, booleans, and lists or mappings of these; write `str(value)` for anything else.",
        "H42, S11, L3",
    ),
    Code.NAME_CARDINALITY: Rule(
        "span names without bound",
        _WARNING,
        "Backends group by name and keep an index of it: ids or paths in names make it grow without limit and"
        " the groups useless.",
        "Name the operation (`load order`); put what varies into an attribute.",
        "H38",
    ),
    Code.MIXED_FLAGS: Rule(
        "mixed sampling flags in one trace",
        _ERROR,
        "Exporters drop the spans whose flag is false: the trace arrives in pieces.",
        "Decide once for the whole request, before the first child; pass `parent` so that children inherit the"
        " decision.",
        "H17, T12",
    ),
    Code.FLAG_OF_ONE_SPAN: Rule(
        "sampling flag changed on one span only",
        _ERROR,
        "Its relatives keep their flag. Spans whose parent is dropped arrive as orphans.",
        "Call `tracer.set_should_sample(flag)`, which writes the flag on every span of the request.",
        "H16, T14",
    ),
    Code.OUTSIDE_PARENT: Rule(
        "child span outside its parent's time",
        _WARNING,
        "Backends show negative gaps or move the spans. It comes from mixed clocks (cached ms beside ns), or"
        " from a parent that ends too early.",
        "Take all times of a trace from one clock, and finish children before their parent.",
        "H19, R8",
    ),
    Code.NAMESPACE_NOT_EXPORTED: Rule(
        "namespace that nobody exports",
        _NOTE,
        "Spans of a namespace other than KONG have a list of their own: no bundled exporter asks for it, and its"
        " objects go to the garbage collector instead of the pool.",
        "Export them with `process_span` on a tracer of that namespace, or leave the option out.",
        "H13, E2",
    ),
    Code.TRACER_NOT_EXPORTED: Rule(
        "tracer whose spans no exporter asks for",
        _WARNING,
        "An exporter sees the spans of the tracer that it asks, by name: those of another tracer are not"
        " exported, and their children become orphans.",
        "Start spans on the global tracer, or call `process_span` on your own tracer too.",
        "H12, T9, O17",
    ),
    Code.ERROR_WITHOUT_STATUS: Rule(
        "error recorded without a status",
        _NOTE,
        "`record_error` adds an event and leaves the status alone: searches and alerts for failed spans do not"
        " find this one.",
        "Call `set_status(2)` as well.",
        "C17, S14",
    ),
    Code.OUTLIVES_REQUEST: Rule(
        "span held after its request",
        _ERROR,
        "Whoever still holds it holds an object of the pool. It will be the span of another request, so that any"
        " use reads or writes foreign data.",
        "Drop the reference when the request ends; keep a copy of what is needed.",
        "H5, H24, H45",
    ),
    Code.CHANGED_AFTER_EXPORT: Rule(
        "span changed after it was exported",
        _WARNING,
        "The exporter has encoded the span: the change reaches nobody.",
        "Change spans before the log phase, or in a log handler of higher priority than the exporter's.",
        "H48, R5",
    ),
    Code.BARE_ROOT: Rule(
        "sampling decision on a root span without attributes",
        _ERROR,
        "Kong looks at the root's attributes without asking whether there are any: the access handler raises,"
        " and the client gets status 500.",
        "Give the first span of a request an attribute when it starts.",
        "H15, M7",
    ),
    Code.TRACER_PER_REQUEST: Rule(
        "tracer made again in every request",
        _NOTE,
        "Since 3.9 each call builds a new tracer with all its functions, which costs more than a span.",
        "Make the tracer once, when the module is loaded or the worker starts.",
        "H46, T2",
    ),
    Code.LISTED_TWICE: Rule(
        "span released by hand before another starts",
        _WARNING,
        "A released span stays in the list of its request. The next span that starts, in this request or another, is"
        " likely to get the same object: that list has it too, so that it is exported twice, and is emptied when the"
        " first request ends.",
        "Leave the release to the end of the request.",
        "S16, P12",
    ),
    Code.FINISHED_AFTER_EXPORT: Rule(
        "span finished after it was exported",
        _WARNING,
        "The exporter has encoded the span without an end: backends show no duration, or drop the span.",
        "Finish spans before the log phase, or in a log handler of higher priority than the exporter's.",
        "E6, H3, R5",
    ),
    Code.KEY_CARDINALITY: Rule(
        "attribute names without bound",
        _WARNING,
        "Backends make a column or an index of each attribute: ids in their names make it grow until new ones are"
        " refused.",
        "Name the attribute after what it is (`order.id`); put what varies into its value.",
        "H38",
    ),
    Code.ATTRIBUTE_SIZE: Rule(
        "attributes or events too many or too large",
        _WARNING,
        "They are copied, queued and sent with each span: memory of the worker, bytes on the wire, and limits of"
        " collectors and backends, which cut or drop what is larger.",
        "Keep to what somebody will search for; keep bodies, dumps and lists out of spans.",
        "H38",
    ),
}


class Frame(NamedTuple):
    """One line of a stack.

    Attributes:
        filename: of the source.
        line: counted from 1.
        function: its name.
    """

    filename: str
    line: int
    function: str


Stack = tuple[Frame, ...]
"""Call site first, its callers after it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One misuse at one place.

    Attributes:
        code: which rule is broken.
        message: what this program did.
        span_name: of the span, or None.
        phase: the nginx phase in which it happened.
        misuse: where it happened. For something left undone: where the span was made, made active or processed.
        creation: where the span was made; None when no span is concerned.
    """

    code: Code
    message: str
    span_name: str | None
    phase: str
    misuse: Stack
    creation: Stack | None

    @property
    def title(self) -> str:
        """What is wrong, in a few words."""
        return RULES[self.code].title

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return RULES[self.code].severity

    @property
    def why(self) -> str:
        """What happens in the real gateway."""
        return RULES[self.code].why

    @property
    def fix(self) -> str:
        """How to mend it."""
        return RULES[self.code].fix

    def text(self) -> str:
        """Everything there is to say, with source lines where the files can be read."""
        stacks = [f"where:\n{_text(self.misuse)}"]
        if self.creation is not None and self.creation != self.misuse:
            stacks.append(f"the span was made here:\n{_text(self.creation)}")
        name = "" if self.span_name is None else f"span {self.span_name!r}, "
        return (
            f"{self.code} {self.title} ({self.severity.name.lower()})\n{self.message} ({name}phase {self.phase})\n"
            + "".join(stacks)
            + f"why: {self.why}\nfix: {self.fix}\nsee: {self.code} in {PAGE}\n"
        )


class FindingError(KongTraceError):
    """A finding, in mode raise.

    Attributes:
        finding: what was found.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.text())
        self.finding = finding


class FindingLog:
    """Counts what is found, and keeps one finding for each code and call site.

    Args:
        mode: COUNT, REPORT or RAISE.
        on_finding: called with each finding the first time; never in mode COUNT.

    Attributes:
        counts: occurrences of each code.
        omitted: occurrences that found the log full: they are counted by code and not kept.
    """

    def __init__(self, mode: Mode, on_finding: Callable[[Finding], object] | None = None) -> None:
        self.mode = mode
        self.counts: Counter[Code] = Counter()
        self.omitted = 0
        self._on_finding = on_finding
        self._times: Counter[tuple[Code, Frame]] = Counter()
        self._findings: dict[tuple[Code, Frame], Finding] = {}

    def add(self, *findings: Finding) -> None:
        """Count occurrences, and keep the first of each kind and place.

        Raises:
            FindingError: in mode RAISE, for the first that is more than a note; all have been kept then.
        """
        for finding in findings:
            self._keep(finding)
        for finding in findings:
            if self.mode is Mode.RAISE and finding.severity > Severity.NOTE:
                raise FindingError(finding)

    def _keep(self, finding: Finding) -> None:
        self.counts[finding.code] += 1
        place = finding.code, finding.misuse[0]
        if place not in self._times and len(self._times) >= SITES_MAX:
            self.omitted += 1
            return
        self._times[place] += 1
        if self.mode is not Mode.COUNT and place not in self._findings:
            self._findings[place] = finding
            if self._on_finding is not None:
                self._on_finding(finding)

    def knows(self, code: Code, site: Frame) -> bool:
        """Whether this was found at this place before."""
        return (code, site) in self._times

    @property
    def findings(self) -> list[Finding]:
        """What was found, in the order of first occurrence; empty in mode COUNT."""
        return list(self._findings.values())

    def times(self, finding: Finding) -> int:
        """How often it was found at its place."""
        return self._times[finding.code, finding.misuse[0]]

    def report(self) -> str:
        """All findings as text, worst first; one line when there are none."""
        total = self.counts.total()
        if not total:
            return "no findings\n"
        lines = [f"{code} {RULES[code].title}: {times}\n" for code, times in sorted(self.counts.items())]
        found = sorted(self.findings, key=lambda finding: -finding.severity)
        texts = [f"\n{finding.text()}found: {self.times(finding)} times\n" for finding in found]
        more = f"\n{self.omitted} more at other places\n" if self.omitted else ""
        return "".join(lines + texts) + more


def _text(stack: Stack) -> str:
    """A stack as tracebacks show it, innermost call last; reads the source lines."""
    lines = [(frame.filename, frame.line, frame.function, None) for frame in reversed(stack)]
    return "".join(format_list(StackSummary.from_list(lines)))
