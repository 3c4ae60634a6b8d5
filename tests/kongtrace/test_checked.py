"""The checked span: what it finds, where, and that it finds nothing else.

`docs/findings.md` has a wrong and a right program for every code (`tests/conformance/test_findings.py` runs them). Here
are the other ways to go wrong, the programs that look wrong and are not, the modes, the log of findings, and the
promise that checking changes nothing else.
"""

import copy
import gc
import inspect
import linecache
from contextlib import contextmanager, suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kongtrace
from kongtrace import (
    KONG,
    NOOP_SPAN,
    PHASES,
    SAFE,
    KongTraceError,
    ReleasedSpanError,
    Span,
    Tracer,
    TracerProvider,
    checked,
    otlp,
    tracing_context,
)
from kongtrace import findings as findings_module
from kongtrace.checked import CheckedProvider, CheckedSpan, tracer_provider
from kongtrace.findings import Code, FindingError, FindingLog, Mode, Severity
from kongtrace.span import SpanCopy
from kongtrace.tracer import PROPAGATION_ONLY
from sim.config import Tracing
from sim.instrumentation import Instrumentation
from tests.conformance import test_docs

START_NS = 1_700_000_000_000_000_000
STEP_NS = 1_000
MS_NS = 1_000_000
S_NS = 1_000_000_000


class Worker:
    """What hosts the tracer: a clock, seeded ids, and requests that go through their phases."""

    def __init__(self, mode="report", profile=KONG, **arguments):
        self.time = START_NS
        self.provider = tracer_provider(
            mode, time_ns=self.time_ns, random_bytes=Random(7).randbytes, profile=profile, **arguments
        )
        self.tracer = self.provider.new("shop")
        self.provider.set_global_tracer(self.tracer)

    def time_ns(self):
        self.time += STEP_NS
        return self.time

    def now(self):
        """`ngx.now()`: s, to the ms."""
        return self.time // MS_NS / 1000

    def enter(self, ctx, phase, handler=None):
        ctx["KONG_PHASE"] = phase
        self.provider.execution.enter(PHASES[phase], ctx)
        return handler and handler()

    def enter_timer(self):
        self.provider.execution.enter(PHASES["timer"], {})

    def begin(self, root=True, phase="access"):
        ctx = {}
        self.enter(ctx, phase)
        if root:
            self.tracer.set_active_span(self.tracer.start_span("kong", attributes={"http.method": "GET"}))
        return ctx

    def end(self, ctx, log=None):
        self.enter(ctx, "log")
        if (active := self.tracer.active_span()) is not None:
            active.finish()
        if log is not None:
            log()
        self.provider.end_request(ctx)
        self.enter_timer()

    def serve(self, access=None, log=None, root=True):
        ctx = self.begin(root)
        self.enter(ctx, "access", access)
        self.end(ctx, log)

    def codes(self):
        """What is found, once everything has been looked at."""
        self.provider.sweep()
        return set(self.provider.findings.counts)


@pytest.fixture(params=[KONG, SAFE], ids=lambda profile: profile.name)
def profile(request):
    """Each profile in turn."""
    return request.param


# Programs that are wrong. The line with the comment "found" is the one to report.


def reads_a_field_late(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.finish()
    worker.end(ctx)
    return span.name  # found


def writes_a_field_late(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.finish()
    worker.end(ctx)
    span.kind = 3  # found


def calls_a_method_it_fetched_early(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    finish = span.finish
    finish()
    worker.end(ctx)
    finish()  # found


def starts_a_child_late(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.finish()
    worker.end(ctx)
    ctx = worker.begin()
    worker.tracer.start_span("child", parent=span).finish()  # found
    worker.end(ctx)


def copies_late(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.finish()
    worker.end(ctx)
    copy.copy(span)  # found


def makes_a_span_active_late(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.finish()
    worker.end(ctx)
    ctx = worker.begin()
    root = worker.tracer.active_span()
    worker.tracer.set_active_span(span)  # found
    worker.tracer.set_active_span(root)
    worker.end(ctx)


def writes_after_releasing_by_hand(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.finish()
    span.release()
    with suppress(KongTraceError):
        span.set_attribute("rows", 3)  # found
    del span
    worker.end(ctx)


def reads_a_span_that_was_never_linked_late(worker):
    ctx = worker.begin()
    span = worker.tracer.create_span(worker.tracer)
    worker.end(ctx)
    return span.span_id  # found


def encodes_late(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.finish()
    worker.end(ctx)
    encoder = otlp.Encoder(otlp.SAFE)
    encoder.encode_span(span)  # found


def releases_late(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.finish()
    worker.end(ctx)
    span.release()  # found


def releases_the_root(worker):
    ctx = worker.begin(root=False)
    root = worker.tracer.start_span("root")
    root.finish()
    root.release()  # found
    worker.end(ctx)


def releases_the_active_span(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.finish()
    root = worker.tracer.active_span()
    worker.tracer.set_active_span(span)
    span.release()  # found
    worker.tracer.set_active_span(root)
    worker.end(ctx)


def leaves_a_child_active_without_any_log_phase(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    worker.tracer.set_active_span(span)  # found
    worker.provider.end_request(ctx)


def leaves_no_span_active(worker):
    ctx = worker.begin()
    worker.tracer.set_active_span(None)  # found
    worker.tracer.start_span("work").finish()
    worker.end(ctx)


def leaves_a_finished_span_active(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.finish()
    worker.tracer.set_active_span(span)  # found
    worker.end(ctx)


def starts_below_a_span_of_another_request(worker):
    first = worker.begin()
    span = worker.tracer.start_span("work")
    second = worker.begin()
    worker.tracer.start_span("child", parent=span).finish()  # found
    worker.end(second)
    worker.enter(first, "access", span.finish)
    worker.end(first)


def uses_a_span_in_a_timer_while_its_request_lives(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    worker.enter_timer()
    span.set_attribute("rows", 3)  # found
    worker.enter(ctx, "access", span.finish)
    worker.end(ctx)


def keeps_a_table_in_an_object(worker):
    class Plugin:
        labels = None

    def access():
        plugin.labels = {"team": "orders"}
        worker.tracer.start_span("work", attributes=plugin.labels).finish()  # found

    plugin = Plugin()
    worker.serve(access)
    worker.provider.sweep()


def changes_the_table_that_it_gave(worker):
    def access():
        labels = {"team": "orders"}
        span = worker.tracer.start_span("work", attributes=labels)  # found
        span.set_attribute("weight", 2)
        labels["rows"] = 3
        span.finish()

    worker.serve(access)


def takes_out_of_the_table_that_it_gave(worker):
    def access():
        labels = {"team": "orders"}
        span = worker.tracer.start_span("work", attributes=labels)  # found
        del labels["team"]
        span.finish()

    worker.serve(access)


def changes_the_table_that_it_gave_after_the_end(worker):
    def access():
        labels = {"team": "orders"}
        worker.tracer.start_span("work", attributes=labels).finish()  # found
        labels["rows"] = 3

    worker.serve(access)


def keeps_a_table_that_was_given_when_linking(worker):
    tables = []

    def access():
        tables.append({"team": "orders"})
        span = worker.tracer.create_span(worker.tracer)  # found
        worker.tracer.link_span(span, "work", {"attributes": tables[0]})
        span.finish()

    worker.serve(access)
    worker.provider.sweep()


def keeps_a_table_while_an_exporter_copies_rightly(worker):
    tables = []

    def access():
        tables.append({"team": "orders"})
        worker.tracer.start_span("work", attributes=tables[0]).finish()  # found

    worker.serve(access, lambda: exported(worker, []))
    worker.provider.sweep()


def gives_a_table_again_after_releasing_by_hand(worker):
    def access():
        span = worker.tracer.start_span("first", attributes=labels)
        span.finish()
        span.release()

    labels = {"team": "orders"}
    worker.serve(access)
    worker.serve(lambda: worker.tracer.start_span("second", attributes=labels).finish())  # found


def releases_while_another_request_goes_on(worker):
    def access():
        span = worker.tracer.start_span("work")
        span.finish()
        span.release()  # found

    first, second = worker.begin(), worker.begin()
    worker.enter(first, "access", access)
    worker.enter(second, "access", lambda: worker.tracer.start_span("other").finish())
    worker.end(first)
    worker.end(second)


def releases_one_after_the_other(worker):
    def access():
        for number in range(20):
            span = worker.tracer.start_span("work", attributes={"number": number})
            span.finish()
            span.release()  # found

    worker.serve(access)


def links_two_spans_with_one_table(worker):
    def access():
        labels = {"team": "orders"}
        worker.tracer.start_span("first", attributes=labels).finish()
        span = worker.tracer.create_span(worker.tracer)
        worker.tracer.link_span(span, "second", {"attributes": labels})  # found
        span.finish()

    worker.serve(access)


def makes_a_span_active_in_the_balancer(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    worker.enter(ctx, "balancer")
    worker.tracer.set_active_span(span)  # found
    worker.enter(ctx, "access", span.finish)
    worker.end(ctx)


def starts_a_span_in_ssl_cert(worker):
    ctx = worker.begin(root=False, phase="ssl_cert")
    worker.tracer.start_span("handshake").finish()  # found
    worker.provider.end_request(ctx)


def processes_with_a_coroutine_function(worker):
    async def processor(span):
        pass

    worker.serve(log=lambda: worker.tracer.process_span(processor))  # found


def keeps_live_spans_for_a_timer(worker):
    class Exporter:
        batch = ()

        def log(self):
            gathered = []
            worker.tracer.process_span(lambda span, gathered: gathered.append(span), gathered)  # found
            self.batch = tuple(gathered)

    exporter = Exporter()
    worker.serve(log=exporter.log)
    worker.provider.sweep()


def keeps_the_attributes_for_a_timer(worker):
    batch = []
    worker.serve(log=lambda: worker.tracer.process_span(lambda span: batch.append(span.attributes)))  # found
    worker.provider.sweep()


def keeps_the_attributes_without_an_exporter(worker):
    kept = []

    def access():
        span = worker.tracer.start_span("work")  # found
        span.set_attribute("team", "orders")
        kept.append(span.attributes)
        span.finish()

    worker.serve(access)
    worker.provider.sweep()


def keeps_a_copy_with_its_parent(worker):
    kept = []

    def access():
        span = worker.tracer.start_span("work")  # found
        child = worker.tracer.start_span("child", parent=span)
        kept.append(copy.copy(child))
        child.finish()
        span.finish()

    worker.serve(access)
    worker.provider.sweep()


def keeps_the_events_without_an_exporter(worker):
    kept = []

    def access():
        span = worker.tracer.start_span("work")  # found
        span.add_event("queued")
        kept.append(span.events)
        span.finish()

    worker.serve(access)
    worker.provider.sweep()


def ends_in_the_far_future(worker):
    worker.serve(lambda: worker.tracer.start_span("work").finish(worker.time * 1000))  # found


def starts_in_seconds(worker):
    worker.serve(
        lambda: worker.tracer.start_span("work", start_time_ns=START_NS // S_NS, parent=NOOP_SPAN).finish()  # found
    )


def adds_an_event_after_the_end(worker):
    def access():
        span = worker.tracer.start_span("work")
        span.finish()
        span.add_event("late")  # found

    worker.serve(access)


def sets_the_status_after_the_end(worker):
    def access():
        span = worker.tracer.start_span("work")
        span.finish()
        span.set_status(1)  # found

    worker.serve(access)


def gives_a_value_of_no_type_when_starting(worker):
    worker.serve(lambda: worker.tracer.start_span("work", attributes={"callback": print}).finish())  # found


def nests_a_value_of_no_type(worker):
    def access():
        span = worker.tracer.start_span("work")
        span.set_attribute("rows", [{"id": object()}])  # found
        span.finish()

    worker.serve(access)


def nests_a_value_of_no_type_in_a_mapping(worker):
    def access():
        span = worker.tracer.start_span("work")
        span.set_attribute("row", {"id": object()})  # found
        span.finish()

    worker.serve(access)


def adds_an_event_for_each_row(worker):
    def access():
        span = worker.tracer.start_span("work")
        for number in range(129):
            span.add_event("row", {"number": number})  # found
        span.finish()

    worker.serve(access)


def starts_with_many_attributes(worker):
    def access():
        rows = {f"row {number}": number for number in range(129)}
        worker.tracer.start_span("work", attributes=rows).finish()  # found

    worker.serve(access)


def gives_an_event_a_value_of_no_type(worker):
    def access():
        span = worker.tracer.start_span("work")
        span.add_event("queued", {"at": object()})  # found
        span.finish()

    worker.serve(access)


def starts_a_second_root_with_another_decision(worker):
    def access():
        trace_id = worker.tracer.active_span().trace_id
        options = {"parent": NOOP_SPAN, "trace_id": trace_id, "should_sample": False}
        worker.tracer.start_span("work", options).finish()  # found

    worker.serve(access)


def changes_the_flag_of_a_parent(worker):
    def access():
        span = worker.tracer.start_span("work")
        worker.tracer.active_span().should_sample = False  # found
        span.finish()

    worker.serve(access)


def ends_long_after_the_parent(worker):
    def access():
        span = worker.tracer.start_span("work")
        child = worker.tracer.start_span("child", parent=span)  # found
        span.finish()
        worker.time += 2 * MS_NS
        child.finish()

    worker.serve(access)


def keeps_a_span_while_an_exporter_copies_rightly(worker):
    kept = []

    def access():
        kept.append(worker.tracer.start_span("work"))  # found
        kept[0].finish()

    worker.serve(access, lambda: exported(worker, []))
    worker.provider.sweep()


def keeps_a_span_while_an_exporter_gathers_them(worker):
    kept = []

    def access():
        kept.append(worker.tracer.start_span("work"))  # found
        kept[0].finish()

    def log():
        gathered = []
        worker.tracer.process_span(gathered.append)
        assert [span.name for span in gathered] == ["kong", "work"]

    worker.serve(access, log)
    worker.provider.sweep()


def keeps_a_table_while_an_exporter_gathers_them(worker):
    tables = []

    def access():
        tables.append({"a": 1})
        worker.tracer.start_span("work", attributes=tables[0]).finish()  # found

    def log():
        gathered = []
        worker.tracer.process_span(lambda span: gathered.append(span.attributes))
        assert gathered[1] == {"a": 1}

    worker.serve(access, log)
    worker.provider.sweep()


def keeps_spans_while_others_gather_them(worker):
    kept = []

    def gather():
        worker.tracer.process_span([].append)

    def log():
        gather()
        worker.tracer.process_span(kept.append)  # found
        gather()

    worker.serve(log=log)
    worker.provider.sweep()


def keeps_copies_with_their_parents(worker):
    kept = []

    def access():
        parent = worker.tracer.start_span("work", attributes={"a": 1})
        worker.tracer.start_span("step", attributes={"b": 2}, parent=parent).finish()
        parent.finish()

    def log():
        worker.tracer.process_span(lambda span: kept.append(copy.copy(span)))  # found

    worker.serve(access, log)
    worker.provider.sweep()
    assert {finding.misuse[0].line for finding in worker.provider.findings.findings} == {
        worker.provider.findings.findings[0].misuse[0].line
    }


def keeps_the_span_list(worker):
    kept = []
    ctx = worker.begin(root=False)
    worker.tracer.start_span("work").finish()  # found
    kept.append(worker.tracer.get_spans())
    worker.end(ctx)
    worker.provider.sweep()


def keeps_a_span_in_a_context_that_is_never_emptied(worker):
    contexts = []

    def access():
        span = worker.tracer.start_span("work")  # found
        span.finish()
        contexts.append(worker.provider.execution.ctx)
        contexts[0]["shop.span"] = span

    worker.serve(access)
    worker.provider.sweep()


def records_an_error_after_the_export(worker):
    def log():
        worker.tracer.process_span(lambda span: span.name)
        span = worker.tracer.get_root_span()
        span.record_error("late")  # found
        span.set_status(2)

    worker.serve(log=log)


WRONG = {
    reads_a_field_late: {Code.USE_AFTER_RELEASE},
    writes_a_field_late: {Code.USE_AFTER_RELEASE},
    calls_a_method_it_fetched_early: {Code.USE_AFTER_RELEASE},
    starts_a_child_late: {Code.USE_AFTER_RELEASE},
    copies_late: {Code.USE_AFTER_RELEASE},
    makes_a_span_active_late: {Code.USE_AFTER_RELEASE},
    writes_after_releasing_by_hand: {Code.USE_AFTER_RELEASE},
    reads_a_span_that_was_never_linked_late: {Code.USE_AFTER_RELEASE},
    encodes_late: {Code.USE_AFTER_RELEASE},
    releases_late: {Code.DOUBLE_RELEASE},
    releases_the_root: {Code.RELEASED_NEEDED},
    releases_the_active_span: {Code.RELEASED_NEEDED},
    leaves_a_child_active_without_any_log_phase: {Code.LEFT_ACTIVE},
    leaves_no_span_active: {Code.LEFT_ACTIVE},
    leaves_a_finished_span_active: {Code.LEFT_ACTIVE},
    starts_below_a_span_of_another_request: {Code.FOREIGN_REQUEST},
    uses_a_span_in_a_timer_while_its_request_lives: {Code.FOREIGN_REQUEST},
    keeps_a_table_in_an_object: {Code.CALLERS_TABLE},
    changes_the_table_that_it_gave: {Code.CALLERS_TABLE},
    takes_out_of_the_table_that_it_gave: {Code.CALLERS_TABLE},
    changes_the_table_that_it_gave_after_the_end: {Code.CHANGED_AFTER_FINISH},
    keeps_a_table_that_was_given_when_linking: {Code.CALLERS_TABLE},
    keeps_a_table_while_an_exporter_copies_rightly: {Code.CALLERS_TABLE},
    releases_one_after_the_other: {Code.LISTED_TWICE},
    gives_a_table_again_after_releasing_by_hand: {Code.CALLERS_TABLE},
    releases_while_another_request_goes_on: {Code.LISTED_TWICE},
    links_two_spans_with_one_table: {Code.SHARED_TABLE},
    makes_a_span_active_in_the_balancer: {Code.FORBIDDEN_PHASE},
    starts_a_span_in_ssl_cert: {Code.FORBIDDEN_PHASE},
    processes_with_a_coroutine_function: {Code.PROCESSED_WRONGLY},
    keeps_live_spans_for_a_timer: {Code.LIVE_SPAN_KEPT},
    keeps_the_attributes_for_a_timer: {Code.SHALLOW_COPY},
    keeps_the_attributes_without_an_exporter: {Code.SHALLOW_COPY},
    keeps_a_copy_with_its_parent: {Code.SHALLOW_COPY},
    keeps_the_events_without_an_exporter: {Code.SHALLOW_COPY},
    ends_in_the_far_future: {Code.WRONG_UNIT},
    starts_in_seconds: {Code.WRONG_UNIT},
    adds_an_event_after_the_end: {Code.CHANGED_AFTER_FINISH},
    sets_the_status_after_the_end: {Code.CHANGED_AFTER_FINISH},
    gives_a_value_of_no_type_when_starting: {Code.VALUE_TYPE},
    nests_a_value_of_no_type: {Code.VALUE_TYPE},
    nests_a_value_of_no_type_in_a_mapping: {Code.VALUE_TYPE},
    adds_an_event_for_each_row: {Code.ATTRIBUTE_SIZE},
    starts_with_many_attributes: {Code.ATTRIBUTE_SIZE},
    gives_an_event_a_value_of_no_type: {Code.VALUE_TYPE},
    starts_a_second_root_with_another_decision: {Code.MIXED_FLAGS},
    changes_the_flag_of_a_parent: {Code.FLAG_OF_ONE_SPAN},
    ends_long_after_the_parent: {Code.OUTSIDE_PARENT},
    keeps_a_span_while_an_exporter_copies_rightly: {Code.OUTLIVES_REQUEST},
    keeps_a_span_while_an_exporter_gathers_them: {Code.OUTLIVES_REQUEST},
    keeps_a_table_while_an_exporter_gathers_them: {Code.CALLERS_TABLE},
    keeps_spans_while_others_gather_them: {Code.LIVE_SPAN_KEPT},
    keeps_copies_with_their_parents: {Code.SHALLOW_COPY},
    keeps_the_span_list: {Code.OUTLIVES_REQUEST},
    keeps_a_span_in_a_context_that_is_never_emptied: {Code.OUTLIVES_REQUEST},
    records_an_error_after_the_export: {Code.CHANGED_AFTER_EXPORT},
}


@pytest.mark.parametrize("program", WRONG, ids=lambda program: program.__name__)
def test_misuse_is_found_where_it_happens(program, profile):
    """A wrong program gives its code alone, in either profile, with the line and the stack of the span's making."""
    worker = Worker(profile=profile)
    with suppress(KongTraceError):
        program(worker)
    lines, first = inspect.getsourcelines(program)
    expected = first + next(index for index, line in enumerate(lines) if line.rstrip().endswith("# found"))

    assert worker.codes() == WRONG[program]
    finding = worker.provider.findings.findings[0]
    assert (finding.misuse[0].filename, finding.misuse[0].line) == (__file__, expected)
    assert finding.creation is None or finding.creation[0].filename == __file__


@pytest.mark.parametrize(
    ("program", "phase"),
    [
        (leaves_no_span_active, "access"),
        (keeps_live_spans_for_a_timer, "log"),
        (keeps_the_attributes_for_a_timer, "log"),
        (keeps_a_span_while_an_exporter_copies_rightly, "access"),
    ],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_finding_tells_the_phase_of_the_mistake(program, phase):
    """Not that of the span, which may have been made long before."""
    worker = Worker()
    program(worker)
    worker.provider.sweep()
    assert {finding.phase for finding in worker.provider.findings.findings} == {phase}


# Programs that look wrong and are right.


def restores_the_active_span_by_hand(worker):
    def access():
        root = worker.tracer.active_span()
        span = worker.tracer.start_span("work")
        worker.tracer.set_active_span(span)
        worker.tracer.set_active_span(root)
        span.finish()

    worker.serve(access)


def has_no_span_active_for_a_while(worker):
    def access():
        root = worker.tracer.active_span()
        worker.tracer.set_active_span(None)
        worker.tracer.set_active_span(root)

    worker.serve(access)


def finishes_the_root_by_hand(worker):
    def access():
        worker.tracer.get_root_span().finish()
        worker.tracer.set_active_span(None)

    worker.serve(access)


def sets_attributes_beside_those_that_it_gave(worker):
    def access():
        labels = {"team": "orders", "rows": 1}
        span = worker.tracer.start_span("work", attributes=labels)
        span.set_attribute("weight", 2)
        span.set_attribute("rows", None)
        span.set_attribute("team", "stock")
        span.finish()

    worker.serve(access)


def writes_into_the_attributes_of_its_span(worker):
    def access():
        span = worker.tracer.start_span("work", attributes={"team": "orders"})
        span.attributes["rows"] = 3
        span.finish()

    worker.serve(access)


def releases_a_leaf(worker):
    def access():
        span = worker.tracer.start_span("work")
        span.finish()
        span.release()

    worker.serve(access)


def abandons_a_span_made_ahead(worker):
    def access():
        ahead = worker.tracer.create_span(None, {"parent": worker.tracer.get_root_span()})
        tracing_context(worker.provider.execution.ctx).unlinked_spans["balancer"] = ahead

    worker.serve(access)


def links_a_span_made_ahead_in_log(worker):
    def access():
        worker.provider.execution.ctx["ahead"] = worker.tracer.create_span(worker.tracer)

    def log():
        ahead = worker.provider.execution.ctx["ahead"]
        root = worker.tracer.get_root_span()
        worker.tracer.link_span(ahead, "balancer", {"start_time_ns": root.start_time_ns})
        ahead.finish(root.end_time_ns)

    ctx = worker.begin()
    worker.enter(ctx, "access", access)
    worker.end(ctx, log)
    ctx.clear()


def never_finishes_a_root_that_only_carries_headers(worker):
    worker.serve(lambda: worker.tracer.start_span("root", {"attributes": {PROPAGATION_ONLY: True}}), root=False)


def keeps_spans_while_it_sorts_them(worker):
    sent = []

    def log():
        gathered = []
        worker.tracer.process_span(gathered.append)
        gathered.sort(key=lambda span: span.start_time_ns)
        sent.append([(span.name, dict(span.attributes or {})) for span in gathered])

    worker.serve(log=log)


def holds_a_span_in_a_handler_that_goes_on(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.finish()
    worker.end(ctx)
    worker.provider.sweep()
    del span


def holds_a_span_in_a_handler_that_waits(worker):
    def handler():
        span = worker.tracer.start_span("work")
        span.finish()
        yield
        del span

    ctx = worker.begin()
    waiting = handler()
    next(waiting)
    worker.end(ctx)
    worker.provider.sweep()
    waiting.close()


def gives_one_mapping_of_options_twice(worker):
    def access():
        options = {"span_kind": 3}
        worker.tracer.start_span("first", options).finish()
        worker.tracer.start_span("second", options).finish()

    worker.serve(access)


def releases_every_leaf_at_last(worker):
    def access():
        spans = [worker.tracer.start_span("work", attributes={"number": number}) for number in range(20)]
        for span in spans:
            span.finish()
        while spans:
            spans.pop().release()

    worker.serve(access)


def creates_a_span_outside_any_request(worker):
    worker.provider.execution.enter(PHASES["init_worker"], None)
    worker.tracer.create_span(worker.tracer)


def links_a_span_again_and_again(worker):
    def access():
        span = worker.tracer.create_span(worker.tracer)
        for number in range(20):
            worker.tracer.link_span(span, "work", {"attributes": {"number": number}})
            worker.tracer.start_span("other", attributes={"number": number}).finish()
        span.finish()

    worker.serve(access)


def links_the_noop_span(worker):
    worker.serve(lambda: worker.tracer.link_span(NOOP_SPAN, "work"))


def releases_a_span_made_ahead(worker):
    def access():
        worker.tracer.create_span(worker.tracer).release()
        worker.tracer.start_span("work").finish()

    worker.serve(access)


def releases_a_leaf_in_the_balancer(worker):
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    worker.enter(ctx, "balancer")
    span.finish()
    span.release()
    worker.end(ctx)


def asks_an_empty_request_for_its_spans(worker):
    worker.serve(log=lambda: worker.tracer.process_span(print), root=False)


def empties_its_context_late(worker):
    def access():
        ahead = worker.tracer.create_span(worker.tracer)
        tracing_context(ctx).unlinked_spans["balancer"] = ahead
        worker.tracer.link_span(ahead, "balancer")
        ahead.finish()

    ctx = worker.begin()
    worker.enter(ctx, "access", access)
    worker.end(ctx)
    worker.provider.sweep()


def makes_a_tracer_again_and_again_outside_requests(worker):
    worker.enter_timer()
    for _ in range(50):
        worker.provider.new("stock")


def asks_for_the_active_span_in_a_timer(worker):
    worker.enter_timer()
    worker.tracer.active_span()
    worker.tracer.set_active_span(None)


RIGHT = (
    restores_the_active_span_by_hand,
    has_no_span_active_for_a_while,
    finishes_the_root_by_hand,
    sets_attributes_beside_those_that_it_gave,
    writes_into_the_attributes_of_its_span,
    releases_a_leaf,
    abandons_a_span_made_ahead,
    links_a_span_made_ahead_in_log,
    never_finishes_a_root_that_only_carries_headers,
    keeps_spans_while_it_sorts_them,
    holds_a_span_in_a_handler_that_goes_on,
    holds_a_span_in_a_handler_that_waits,
    gives_one_mapping_of_options_twice,
    releases_every_leaf_at_last,
    creates_a_span_outside_any_request,
    links_a_span_again_and_again,
    links_the_noop_span,
    releases_a_span_made_ahead,
    releases_a_leaf_in_the_balancer,
    asks_an_empty_request_for_its_spans,
    empties_its_context_late,
    makes_a_tracer_again_and_again_outside_requests,
    asks_for_the_active_span_in_a_timer,
)


@pytest.mark.parametrize("program", RIGHT, ids=lambda program: program.__name__)
def test_right_programs_are_silent(program, profile):
    """A program that only looks wrong gives no finding, however often it runs."""
    worker = Worker(profile=profile)
    for _ in range(3):
        program(worker)

    assert worker.codes() == set()


# Random programs.

names = st.sampled_from(["load order", "query", "render"])
values = st.one_of(st.text(), st.integers(), st.booleans(), st.floats(), st.lists(st.text(), max_size=2))
tables = st.dictionaries(st.sampled_from("abc"), values, max_size=2)


@st.composite
def operations(draw, depth=0):
    """An operation with its span and what is done below it, as nested tuples."""
    children = draw(st.lists(operations(depth + 1), max_size=2)) if depth < 2 else []
    return (
        draw(names),
        draw(st.none() | tables),
        draw(st.sampled_from(["active", "parent", "ahead"])),
        draw(st.lists(st.sampled_from(["attribute", "event", "error", "status"]), max_size=3)),
        children,
    )


def perform(worker, operation):
    """Do what an operation says; a generator that yields where a handler might wait."""
    tracer = worker.tracer
    name, table, way, calls, children = operation
    attributes = None if table is None else dict(table)
    parent = tracer.active_span()
    if way == "ahead":
        span = tracer.create_span(tracer)
        yield
        tracer.link_span(span, name, {"attributes": attributes})
    else:
        span = tracer.start_span(name, attributes=attributes, parent=parent)
    if way == "active":
        tracer.set_active_span(span)
    for call in calls:
        {
            "attribute": lambda: span.set_attribute("rows", 3),
            "event": lambda: span.add_event("queued", {"at": 1}),
            "error": lambda: (span.record_error("no"), span.set_status(2)),
            "status": lambda: span.set_status(1),
        }[call]()
    for child in children:
        yield
        yield from perform(worker, child)
    span.finish()


def exported(worker, sent):
    """Take what an exporter takes of each span."""
    fields = ("name", "kind", "start_time_ns", "end_time_ns", "trace_id", "span_id", "parent_id", "status")

    def keep(span):
        sent.append([getattr(span, field) for field in fields] + [repr(span.attributes), repr(span.events)])

    worker.tracer.process_span(keep)


def serve_in_turns(worker, requests):
    """Serve requests at once, each a list of operations; give what was exported."""
    sent = []
    contexts = [worker.begin() for _ in requests]
    handlers = [
        (ctx, step)
        for ctx, operations in zip(contexts, requests, strict=True)
        for step in [(wait for operation in operations for wait in perform(worker, operation))]
    ]
    while handlers:
        ctx, step = handlers.pop(0)
        worker.enter(ctx, "access")
        with suppress(StopIteration):
            next(step)
            handlers.append((ctx, step))
    for ctx in contexts:
        worker.end(ctx, lambda: exported(worker, sent))
    return sent


request_lists = st.lists(st.lists(operations(), max_size=3), min_size=1, max_size=3)


@given(request_lists, st.sampled_from([KONG, SAFE]))
def test_correct_programs_are_silent(requests, profile):
    """Whatever requests do correctly, at once and one after another, gives no finding."""
    worker = Worker(profile=profile)
    for _ in range(2):
        serve_in_turns(worker, requests)

    assert worker.codes() == set()


@given(request_lists, st.sampled_from([KONG, SAFE]), st.sampled_from(["count", "report", "raise"]))
def test_checking_changes_no_result_and_no_balance(requests, profile, mode):
    """A correct program exports the same spans and leaves the same balances, checked or not."""
    plain, watched = Worker("off", profile), Worker(mode, profile)
    for _ in range(2):
        assert serve_in_turns(watched, requests) == serve_in_turns(plain, requests)

    assert watched.provider.balances() == plain.provider.balances()


# Handles and pools.


def test_a_stale_handle_never_reaches_into_a_later_span():
    """In profile kong a kept span is that of a later request; checked, it stays the one that has gone (P7)."""
    spans = {}
    for mode in ("off", "count"):
        worker = Worker(mode)
        ctx = worker.begin(root=False)
        stale = worker.tracer.start_span("work")
        stale.finish()
        worker.end(ctx)
        worker.begin(root=False)
        spans[mode] = (stale, worker.tracer.start_span("later"))

    assert spans["off"][0] is spans["off"][1]
    assert spans["count"][0] is not spans["count"][1]


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("named", [["work"], []], ids=["with spans", "empty"])
def test_the_list_of_an_ended_request_is_lent_to_nobody(named, times):
    """Unchecked its context shows the next one's spans, and balances as much when it is ended twice (E1, P10)."""
    shown, balances = {}, {}
    for mode in ("off", "count"):
        worker = Worker(mode)
        ctx = worker.begin(root=False)
        for name in named:
            worker.tracer.start_span(name).finish()
        spans = worker.tracer.get_spans()
        for _ in range(times):
            worker.provider.end_request(ctx)
            with pytest.raises(ReleasedSpanError, match="list has been released"):
                worker.tracer.start_span("late")
        worker.begin(root=False)
        worker.tracer.start_span("later").finish()
        shown[mode] = [span.name for span in spans]
        balances[mode] = worker.provider.balances()

    assert shown == {"off": ["later"], "count": []}
    assert balances["off"] == balances["count"]


def test_the_pools_are_full_and_replaced_as_in_the_plain_build():
    """Requests of more spans than a pool holds, and more releases than it counts, balance as unchecked (P4, P5)."""
    balances = []
    for mode in ("off", "count"):
        worker = Worker(mode)

        def access(worker=worker):
            for number in range(230):
                worker.tracer.start_span("work", attributes={"number": number}).finish()

        for _ in range(100):
            worker.serve(access)
        balances.append(worker.provider.balances())

    assert balances[0] == balances[1]


def test_a_span_that_a_full_pool_left_as_it_was_still_works():
    """As it does unchecked; that it was used is told (P5)."""
    for mode in ("off", "count"):
        worker = Worker(mode)
        worker.provider.spans.free_max = 0
        ctx = worker.begin(root=False)
        kept = worker.tracer.start_span("work")
        worker.end(ctx)
        kept.finish(kept.start_time_ns + 1)

        assert kept.end_time_ns == kept.start_time_ns + 1
        if mode == "count":
            assert Code.USE_AFTER_RELEASE in worker.codes()


def test_events_that_have_been_released_take_none():
    """As unchecked: also where their list has been lent before (P6)."""
    for mode in ("off", "count"):
        worker = Worker(mode)
        worker.provider.spans.free_max = 0
        for _ in range(2):
            ctx = worker.begin(root=False)
            kept = worker.tracer.start_span("work")
            kept.add_event("before")
            worker.end(ctx)
            with pytest.raises(ReleasedSpanError, match="list has been released"):
                kept.add_event("after")


ODD = [
    ("trace_id", bytearray(16)),
    ("should_sample", []),
    ("start_time_ns", "soon"),
    ("end_time_ns", "late"),
    ("end_time_ns", 10**5000),
    ("attributes", "none"),
    ("status", {}),
]
"""Fields of a span that a program writes, with what is none of their values."""


def writes_into(worker, field, value):
    """A request with a span that has an odd field, above a usual one."""

    def access():
        span = worker.tracer.start_span("work")
        worker.tracer.start_span("child", parent=span).finish()
        span.finish()
        setattr(span, field, value)

    worker.serve(access)


@pytest.mark.parametrize(("field", "value"), ODD, ids=[f"{field}-{type(value).__name__}" for field, value in ODD])
def test_a_request_with_an_odd_span_ends_as_in_the_plain_build(field, value, profile):
    """What a program writes into a field is examined as it is: the request ends, and the log has no more to say."""
    logged = []
    plain, watched = (Worker(mode, profile, log=lambda *line: logged.append(line)) for mode in ("off", "report"))
    for worker in (plain, watched):
        with suppress(AttributeError):  # profile kong empties whatever stands for the attributes
            writes_into(worker, field, value)

    assert watched.provider.balances() == plain.provider.balances()
    assert logged == []
    assert watched.codes() <= {Code.WRONG_UNIT}


def test_times_that_are_no_numbers_are_found():
    """A span that no exporter can write is told of where it was made (KT014)."""
    worker = Worker()
    writes_into(worker, "start_time_ns", "soon")

    assert worker.codes() == {Code.WRONG_UNIT}
    (finding,) = worker.provider.findings.findings
    assert finding.message.startswith("the span lasts from 'soon' to 17")
    assert finding.message.endswith(", which are no two numbers")


class Hostile:
    """A value that cannot even be compared."""

    __hash__ = None

    def __eq__(self, other):
        raise LookupError(other)


@pytest.mark.parametrize("mode", ["count", "report", "raise"])
def test_a_request_ends_whatever_its_examination_meets(mode, profile):
    """What cannot be examined is logged, and costs neither the request its end nor the next one its findings."""
    logged = []
    worker = Worker(mode, profile, log=lambda *line: logged.append(line))
    writes_into(worker, "should_sample", Hostile())

    assert worker.provider.balances()["KONG_SPAN"].live == 0
    assert logged == [("error", "a check came to nothing: LookupError(True)")]
    with suppress(FindingError):
        never_finish(worker)
    assert worker.codes() == {Code.NEVER_FINISHED}


def within_itself(kind):
    """A list or mapping that contains itself, twice."""
    table = kind()
    if kind is dict:
        table.update(a=table, b=table)
    else:
        table += [table, table]
    return table


def nested(depth, wrap=lambda value: [value]):
    """A value within so many lists."""
    value = "x"
    for _ in range(depth):
        value = wrap(value)
    return value


ENDLESS = {"list": within_itself(list), "mapping": within_itself(dict), "deep": nested(1500)}


@pytest.mark.parametrize("value", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize(
    "give",
    [
        lambda tracer, value: tracer.start_span("work").set_attribute("rows", value),
        lambda tracer, value: tracer.start_span("work").add_event("queued", {"rows": value}),
        lambda tracer, value: tracer.start_span("work", attributes={"rows": value}),
        lambda tracer, value: tracer.link_span(tracer.create_span(), "work", attributes={"rows": value}),
    ],
    ids=["set", "event", "start", "link"],
)
def test_a_value_without_end_is_found_and_taken(give, value, profile):
    """A table within itself, or nested deeply, is stored as in the plain build, and found where it is given (KT017)."""
    worker = Worker(profile=profile)

    def access():
        give(worker.tracer, value)
        worker.tracer.get_spans()[-1].finish()

    worker.serve(access)
    assert worker.codes() == {Code.VALUE_TYPE}
    (finding,) = worker.provider.findings.findings
    assert finding.message == "the value of 'rows' is nested too deeply, or within itself"


def test_a_value_is_nested_as_deeply_as_an_exporter_takes_it():
    """Each mapping takes the room of one and a half lists."""
    lists, mappings = [nested(47), nested(48)], [nested(depth, lambda value: {"k": value}) for depth in (31, 32)]
    for fits, does_not in (lists, mappings):
        worker = Worker()
        worker.begin()
        span = worker.tracer.start_span("work")
        span.set_attribute("rows", fits)
        assert worker.codes() == set()
        span.set_attribute("rows", does_not)
        assert worker.codes() == {Code.VALUE_TYPE}


@pytest.mark.parametrize("key", [["rows"], {}, None, 1], ids=repr)
def test_a_key_that_is_no_text_is_refused_as_in_the_plain_build(key):
    """It is the span that refuses it, whether the key can be one of a mapping or not."""
    for mode in ("off", "report"):
        worker = Worker(mode)
        worker.begin()
        with pytest.raises(kongtrace.ApiError, match=r"^invalid key$"):
            worker.tracer.active_span().set_attribute(key, 3)


@pytest.mark.parametrize("name", [["work"], {}, None, 1], ids=repr)
def test_a_name_that_is_no_text_is_taken_when_a_span_is_linked(name, profile):
    """Linking looks at no name, so that neither do the checks."""
    worker = Worker(profile=profile)
    worker.begin()
    span = worker.tracer.link_span(worker.tracer.create_span(), name, attributes={"rows": 3})

    assert span.name == name
    assert worker.codes() == set()


def test_a_request_whose_log_phase_failed_is_given_up_without_a_judgement(profile):
    """What a failed log handler leaves behind is its own fault (E4)."""
    worker = Worker(profile=profile)
    ctx = worker.begin()
    worker.tracer.start_span("work")
    worker.provider.abandon_request(ctx)

    assert worker.provider.balances()["KONG_SPAN"].live == 0
    assert worker.codes() == set()


def test_a_tracer_that_a_module_makes_before_its_worker_exists_is_checked():
    """Tracers from the global handle are checked once a checked provider is set."""
    early = kongtrace.tracing.new("early")
    worker = Worker()
    kongtrace.tracing.use(worker.provider)
    try:
        worker.serve(lambda: early.start_span("work"))
    finally:
        kongtrace.tracing.use(None)

    assert worker.codes() == {Code.NEVER_FINISHED}


def test_a_shallow_copy_is_an_unchecked_span_with_the_same_fields():
    """`copy.copy` gives what can be read for as long as one likes."""
    worker = Worker()
    worker.begin()
    span = worker.tracer.start_span("work", attributes={"team": "orders"})
    copied = copy.copy(span)

    assert type(copied) is SpanCopy
    assert (copied.name, copied.span_id, copied.attributes) == ("work", span.span_id, {"team": "orders"})


# Holders.


def test_the_holder_is_named(profile):
    """A span in module state is reported with the name of the variable and its module."""
    worker = Worker(profile=profile)
    module = {"__name__": "shop", "worker": worker}
    source = "def access():\n    global last\n    last = worker.tracer.start_span('work')\n    last.finish()\n"
    exec(source, module)
    worker.serve(module["access"])
    worker.provider.sweep()

    (finding,) = worker.provider.findings.findings
    assert finding.code is Code.OUTLIVES_REQUEST
    assert finding.message == "after the request last of module shop still holds the span"


def test_a_holder_from_before_the_fork_is_found_too(profile):
    """Workers freeze what they inherit: the garbage collector does not see a module's list, and its span is found."""
    worker = Worker(profile=profile)
    kept = []

    def access():
        kept.append(worker.tracer.start_span("work"))
        kept[0].finish()

    gc.freeze()
    try:
        worker.serve(access)
        worker.provider.sweep()
    finally:
        gc.unfreeze()

    (finding,) = worker.provider.findings.findings
    assert finding.code is Code.OUTLIVES_REQUEST
    assert "the garbage collector does not see" in finding.message


def test_what_is_held_is_looked_at_without_being_asked():
    """After enough requests a span that is held is reported, once for its call site, and counted each time."""
    worker = Worker()
    kept = []

    def access():
        kept.append(worker.tracer.start_span("work"))
        kept[-1].finish()

    for _ in range(300):
        worker.serve(access)

    (finding,) = worker.provider.findings.findings
    assert finding.code is Code.OUTLIVES_REQUEST
    assert 100 <= worker.provider.findings.counts[Code.OUTLIVES_REQUEST] <= 200


# Messages and bounds.


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "message"),
    [(-3, 1, "the span begins 3 ms before its parent 'work'"), (1, 12, "the span ends 2 ms after its parent 'work'")],
)
def test_the_message_tells_how_far_a_child_reaches(start_ms, end_ms, message):
    """It says on which side of its parent the child stands out, and by how much."""
    worker = Worker()
    ctx = worker.begin(root=False)
    parent = worker.tracer.start_span("work", start_time_ns=START_NS)
    child = worker.tracer.start_span("child", start_time_ns=START_NS + start_ms * MS_NS, parent=parent)
    child.finish(START_NS + end_ms * MS_NS)
    parent.finish(START_NS + 10 * MS_NS)
    worker.end(ctx)

    assert [finding.message for finding in worker.provider.findings.findings] == [message]


def test_one_line_that_reads_several_fields_late_is_counted_once():
    """An exporter that reads a released span, field by field, has made one mistake."""
    worker = Worker()
    ctx = worker.begin()
    span = worker.tracer.start_span("work")
    span.finish()
    worker.end(ctx)
    assert (span.name, span.kind, span.status) == (None, None, None)

    assert worker.provider.findings.counts == {Code.USE_AFTER_RELEASE: 1}


def test_names_are_watched_for_a_bounded_number_of_tracers():
    """Names of tracers may be without bound themselves."""
    worker = Worker()
    for number in range(checked.DISTINCT_MAX + 10):
        tracer = worker.provider.new(f"tracer {number}")
        worker.serve(lambda tracer=tracer: tracer.start_span("work").finish())

    assert len(worker.provider._names) == checked.DISTINCT_MAX


# Modes.


def never_finish(worker):
    """The shortest wrong program."""
    worker.serve(lambda: worker.tracer.start_span("work"))


def test_mode_off_is_the_plain_build():
    """What is not checked is made of the plain classes."""
    worker = Worker("off")
    worker.begin()

    assert type(worker.provider) is TracerProvider
    assert type(worker.tracer) is Tracer
    assert type(worker.tracer.active_span()) is Span


def test_off_is_the_default():
    """Who asks for no mode gets no checks."""
    assert type(tracer_provider(time_ns=int, random_bytes=bytes)) is TracerProvider


def test_there_are_no_other_modes():
    """A mode that does not exist is refused by name."""
    with pytest.raises(ValueError, match=r"^there is no mode 'loud'; expected one of off, count, report, raise$"):
        tracer_provider("loud", time_ns=int, random_bytes=bytes)


def test_mode_count_keeps_nothing_but_numbers():
    """Occurrences are counted by code; there is no finding to look at, and nobody is called."""
    told = []
    worker = Worker("count", on_finding=told.append)
    for _ in range(5):
        never_finish(worker)

    assert worker.provider.findings.counts == {Code.NEVER_FINISHED: 5}
    assert worker.provider.findings.findings == told == []


def test_mode_report_tells_each_place_once():
    """A mistake made again and again is one finding with a number."""
    told = []
    worker = Worker("report", on_finding=told.append)
    for _ in range(5):
        never_finish(worker)

    (finding,) = told
    assert worker.provider.findings.findings == told
    assert worker.provider.findings.times(finding) == 5


def test_mode_raise_raises_every_time():
    """Each occurrence raises, the first and the next, with the finding."""
    worker = Worker("raise")
    for _ in range(2):
        with pytest.raises(FindingError, match=r"^KT005 span never finished") as raised:
            never_finish(worker)

        assert raised.value.finding.code is Code.NEVER_FINISHED


def test_mode_raise_raises_before_the_call_has_an_effect():
    """A release that is a mistake is not carried out."""
    worker = Worker("raise")
    worker.begin()
    span = worker.tracer.start_span("work")

    with pytest.raises(FindingError):
        span.release()
    assert span.name == "work"


def test_mode_raise_raises_from_the_encoder_too():
    """A span that is encoded late is a finding there, not one more span that cannot be written."""
    worker = Worker("raise")
    refused = []
    with pytest.raises(FindingError, match=r"^KT001 "):
        encodes_late(worker)
    ctx = worker.begin()
    span = worker.tracer.active_span()
    worker.end(ctx)
    with pytest.raises(FindingError, match=r"^KT001 "):
        otlp.Encoder(otlp.SAFE).encode_spans([span], None, refused)
    assert refused == []


def test_mode_raise_ends_the_request_first(profile):
    """What is wrong with a request is raised when its spans have been taken back."""
    worker = Worker("raise", profile)
    with pytest.raises(FindingError):
        never_finish(worker)

    assert worker.provider.balances()["KONG_SPAN"].live == 0


def test_mode_raise_lets_notes_pass():
    """A note is kept and does not raise."""
    worker = Worker("raise")

    def access():
        span = worker.tracer.start_span("work")
        span.finish()
        span.finish()

    worker.serve(access)
    (finding,) = worker.provider.findings.findings
    assert (finding.code, finding.severity) == (Code.FINISHED_TWICE, Severity.NOTE)


@pytest.mark.parametrize("mode", ["count", "report"])
def test_a_checked_misuse_has_the_result_of_the_plain_one(mode):
    """In profile kong a call on a released span raises, whether it is checked or not (P11)."""
    for worker in (Worker("off"), Worker(mode)):
        ctx = worker.begin()
        span = worker.tracer.start_span("work")
        span.finish()
        worker.end(ctx)
        with pytest.raises(kongtrace.ReleasedSpanError):
            span.set_status(2)


# The log of findings.


def find(log, code=Code.NEVER_FINISHED, line=1):
    """Add a finding at a line."""
    site = findings_module.Frame(__file__, line, "handler")
    log.add(findings_module.Finding(code, "message", "work", "access", (site,), (site,)))


def test_the_log_keeps_a_bounded_number_of_places():
    """What finds the log full is counted and not kept."""
    log = FindingLog(Mode.REPORT)
    for line in range(findings_module.SITES_MAX + 7):
        find(log, line=line)
    find(log, line=0)

    assert len(log.findings) == findings_module.SITES_MAX
    assert log.omitted == 7
    assert log.counts[Code.NEVER_FINISHED] == findings_module.SITES_MAX + 8
    assert "7 more at other places" in log.report()


def test_the_report_begins_with_what_is_worst():
    """Errors come before warnings, warnings before notes, each with its number."""
    log = FindingLog(Mode.REPORT)
    for code in (Code.FINISHED_TWICE, Code.NEVER_FINISHED, Code.LEFT_ACTIVE, Code.NEVER_FINISHED):
        find(log, code)
    report = log.report()

    positions = [report.index(f"\n\n{code} ") for code in (Code.LEFT_ACTIVE, Code.NEVER_FINISHED, Code.FINISHED_TWICE)]
    assert positions == sorted(positions)
    assert f"{Code.NEVER_FINISHED} span never finished: 2\n" in report
    assert "found: 2 times" in report


def test_the_text_of_a_finding_has_everything():
    """Code, title, severity, message, both stacks with their source, reason, remedy, and the page."""
    worker = Worker()

    def access():
        span = worker.tracer.start_span("load order")
        span.set_attribute("total", object())
        span.finish()

    worker.serve(access)
    (finding,) = worker.provider.findings.findings
    text = finding.text()

    for part in (
        "KT017 attribute value of a type that cannot be exported (warning)",
        "the value of 'total' is of type object (span 'load order', phase access)",
        'span.set_attribute("total", object())',
        'span = worker.tracer.start_span("load order")',
        f"why: {finding.why}",
        f"fix: {finding.fix}",
        "see: KT017 in docs/findings.md of kongsim's sources",
    ):
        assert part in text


def test_no_source_is_read_before_somebody_asks_for_text():
    """Finding something reads no file; the text of a finding does."""
    linecache.clearcache()
    worker = Worker()
    never_finish(worker)
    assert __file__ not in linecache.cache

    worker.provider.findings.report()
    assert __file__ in linecache.cache


def test_a_clean_run_says_so():
    """Without findings the report is one line."""
    worker = Worker()
    worker.serve()

    assert worker.provider.findings.report() == "no findings\n"


# The documentation's samples, and the gateway's own spans.

TRUE_OF_SAMPLES = {
    "release_a_span": {Code.RELEASED_OPEN},  # C4: it takes releasing for an end
    "record_an_error": {Code.ERROR_WITHOUT_STATUS},  # C17
    "finish_a_span_with_a_time": {Code.FINISHED_TWICE},
}
"""What is rightly said of samples that were handed over."""


@contextmanager
def completed(worker, ctx, sample):
    """Serve a request of the gateway, and finish what a sample leaves open, as its page says elsewhere."""
    worker.enter(ctx, "rewrite")
    worker.tracer.set_active_span(worker.tracer.start_span("kong", attributes={"http.method": "GET"}))
    worker.enter(ctx, "access")
    yield
    listed = [] if sample is test_docs.release_a_span else worker.tracer.get_spans()
    for span in reversed(listed):
        if span.end_time_ns is None:
            span.finish()
    worker.end(ctx)


@pytest.mark.parametrize("sample", test_docs.SAMPLES)
def test_samples_of_the_documentation_give_no_false_finding(sample, profile):
    """The samples of the customer's documentation, completed, give what is wrong with them and nothing else."""
    worker = Worker(profile=profile)
    for _ in range(2):
        ctx = {}
        with completed(worker, ctx, sample):
            if sample is test_docs.gather_the_spans:
                worker.enter(ctx, "log")
                worker.tracer.active_span().finish()  # the gateway's first act there
            sample(worker.tracer, worker)

    assert worker.codes() == TRUE_OF_SAMPLES.get(sample.__name__, set())


def test_the_samples_copy_is_a_finding_when_it_is_used_as_its_page_says():
    """The exporter guide copies shallowly "so it can be processed after the original one is cleared" (C12)."""
    worker = Worker()
    gathered = []
    worker.serve(log=lambda: gathered.extend(test_docs.gather_the_spans(worker.tracer, worker)))

    assert worker.codes() == {Code.SHALLOW_COPY}


def test_the_full_example_of_the_exporter_guide_leaves_its_span_active(profile):
    """Its exporter is right; the span that it keeps active until log is not (D22, C10, H4)."""
    worker = Worker(profile=profile)
    timers = test_docs.Worker().timers
    kongtrace.tracing.use(None)
    exporter = test_docs.TraceExporter(worker.tracer, timers, lambda data: None)
    worker.serve(exporter.access, exporter.log)

    assert worker.codes() == {Code.LEFT_ACTIVE}


class Peer:
    """The connection of a request that the instrumentation asks for its peer."""

    peer = "127.0.0.1"


def test_the_gateways_own_instrumentation_is_silent(profile):
    """Root, router, plugin, name resolution and balancer spans, with a failed try, give no finding."""
    from sim.outline import RequestOutline
    from sim.request import Request, Try

    worker = Worker(profile=profile)
    instrumentation = Instrumentation(worker.provider, Tracing(instrumentations=("all",), sampling_rate=1.0))
    worker.tracer = worker.provider.global_tracer
    for _ in range(150):
        lines, outline = [(b"Host", b"gateway")], RequestOutline.of((b"Host",))
        request = Request(Peer(), b"GET", b"/", lines, outline, "1.1", keep_alive=True, started_ns=worker.time_ns())
        ctx = request.ctx
        worker.enter(ctx, "rewrite", lambda request=request: instrumentation.request(request))
        instrumentation.plugin_rewrite("kong.rewrite.plugin.correlation-id").finish()
        worker.enter(ctx, "access", lambda request=request: instrumentation.precreate_balancer(request))
        instrumentation.router().finish()
        instrumentation.plugin_access("kong.access.plugin.cors").finish()
        instrumentation.dns_answer(instrumentation.dns_query("upstream", 80), ("127.0.0.1", 80))
        failed = Try("127.0.0.1", 80, worker.time_ns())
        failed.latency_ns, failed.connect_ns, failed.state, failed.code = 10, 10, "failed", 502
        request.tries = [failed, Try("127.0.0.1", 81, worker.time_ns())]
        worker.enter(ctx, "header_filter", lambda request=request: instrumentation.status(request))
        request.body_ended_ns = worker.time_ns()
        worker.enter(ctx, "log", lambda request=request: instrumentation.log(request))
        exported(worker, [])
        worker.provider.end_request(ctx)
        ctx.clear()

    assert worker.codes() == set()
    assert isinstance(worker.provider, CheckedProvider)
    assert worker.provider.span_class is CheckedSpan
