"""The machine of the lifecycle notices what is broken: each of these variants has one fault."""

from collections.abc import Callable
from copy import copy

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from kongtrace import KONG, SAFE, Span, Tracer, TracerProvider, pool, provider, span, tracer
from tests.properties.lifecycle import machine

SEARCH = settings(
    max_examples=3000,  # the search ends with the first failure; which examples come depends on what else is imported
    stateful_step_count=50,
    derandomize=True,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.generate],  # a fault need only be found
    suppress_health_check=list(HealthCheck),
)

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch], None]


def forgetful_of(field: str) -> Fault:
    """A pool that leaves one field of a span as it was."""

    def fault(patch: Patch) -> None:
        clear = span.clear

        def forget(obj: Span) -> None:
            kept = getattr(obj, field, None)
            clear(obj)
            setattr(obj, field, kept)

        patch.setattr(provider, "clear", forget)
        patch.setattr(TracerProvider, "_take_back", TracerProvider._release_singly)

    return fault


def forgetful_at_once(field: str) -> Fault:
    """An end of the request that leaves one field where it gives all spans back at once."""

    def fault(patch: Patch) -> None:
        take_back = TracerProvider._take_back

        def forget(self, spans):
            kept = [getattr(each, field) for each in spans]
            take_back(self, spans)
            for each, value in zip(spans, kept, strict=True):
                if each.span_id is not None:
                    setattr(each, field, value)

        patch.setattr(TracerProvider, "_take_back", forget)

    return fault


def pool_takes_all_at_once_when_due(patch: Patch) -> None:
    take_back = TracerProvider._take_back

    def take(self, spans):
        due = self.spans.due
        self.spans.due = max(due, len(spans) + 1)
        take_back(self, spans)
        self.spans.due += due - max(due, len(spans) + 1)

    patch.setattr(TracerProvider, "_take_back", take)


def pool_of_tables_keeps_one_more(patch: Patch) -> None:
    release_all = pool.Pool.release_all

    def wider(self, objs):
        self.free_max += 1
        release_all(self, objs)
        self.free_max -= 1

    patch.setattr(pool.Pool, "release_all", wider)


def pool_of_tables_keeps_what_is_in_them(patch: Patch) -> None:
    def keep(self, objs):
        for obj in objs:
            content = copy(obj)
            self.release(obj)
            (obj.update if isinstance(obj, dict) else obj.extend)(content)

    patch.setattr(pool.Pool, "release_all", keep)


def pool_keeps_one_more(patch: Patch) -> None:
    init = pool.Pool.__init__

    def wider(self, *arguments, **options):
        init(self, *arguments, **options)
        self.free_max += 1

    patch.setattr(pool.Pool, "__init__", wider)


def pool_is_never_replaced(patch: Patch) -> None:
    def keep(self):
        self._replaced += pool.RELEASES_MAX - self.due
        self.due = pool.RELEASES_MAX

    patch.setattr(pool.Pool, "_replace", keep)


def pool_is_first_in_first_out(patch: Patch) -> None:
    release = pool.Pool.release

    def put_in_front(self, obj):
        free = len(self.free)
        release(self, obj)
        if len(self.free) > free:
            self.free.insert(0, self.free.pop())

    patch.setattr(pool.Pool, "release", put_in_front)


def balance_is_off_by_one(patch: Patch) -> None:
    leave, release = pool.Pool.leave, pool.Pool.release

    def miscount(original):
        def counted(self, obj):
            original(self, obj)
            self.given_up += len(self.free) == 1

        return counted

    patch.setattr(pool.Pool, "leave", miscount(leave))
    patch.setattr(pool.Pool, "release", miscount(release))


def release_runs_twice(patch: Patch) -> None:
    release = pool.Pool.release

    def twice(self, obj):
        release(self, obj)
        release(self, obj)

    patch.setattr(pool.Pool, "release", twice)


def finish_leaves_the_active_span(patch: Patch) -> None:
    finish = Span.finish

    def leave(self, end_time_ns=None):
        active, self.active = self.active, None
        finish(self, end_time_ns)
        self.active = active

    patch.setattr(Span, "finish", leave)


def finish_clears_the_active_span(patch: Patch) -> None:
    finish = Span.finish

    def clear(self, end_time_ns=None):
        finish(self, end_time_ns)
        if self.tracer is not None and self.end_time_ns is not None:
            self.tracer.set_active_span(None)

    patch.setattr(Span, "finish", clear)


def second_finish_counts(patch: Patch) -> None:
    finish = Span.finish

    def again(self, end_time_ns=None):
        self.end_time_ns = None
        finish(self, end_time_ns)

    patch.setattr(Span, "finish", again)


def sampler_ignores_the_parent(patch: Patch) -> None:
    start = Tracer.start_span

    def ignore(self, *arguments, **options):
        started = start(self, *arguments, **options)
        if isinstance(started, Span) and started.parent is not None:
            started.should_sample = self.decide(started.trace_id)
        return started

    patch.setattr(Tracer, "start_span", ignore)


def sampler_reads_the_other_end(patch: Patch) -> None:
    decide = Tracer.decide
    patch.setattr(Tracer, "decide", lambda self, trace_id, rate=None: decide(self, trace_id[::-1], rate))


def end_forgets_a_namespace(patch: Patch) -> None:
    end = TracerProvider.end_request

    def forget(self, ctx):
        ctx.pop("APART_SPANS", None)
        end(self, ctx)

    patch.setattr(TracerProvider, "end_request", forget)


def end_forgets_a_span(patch: Patch) -> None:
    take_back = TracerProvider._take_back
    patch.setattr(TracerProvider, "_take_back", lambda self, spans: take_back(self, spans[1:]))


def _stop_the_running_request(patch: Patch, after: str) -> None:
    method = getattr(TracerProvider, after)

    def stop(self, ctx):
        method(self, ctx)
        for namespace in self.execution.namespaces:
            namespace.trace = None

    patch.setattr(TracerProvider, after, stop)


def end_stops_the_running_request(patch: Patch) -> None:
    _stop_the_running_request(patch, "end_request")


def abandon_stops_the_running_request(patch: Patch) -> None:
    _stop_the_running_request(patch, "abandon_request")


def end_forgets_unlinked_spans(patch: Patch) -> None:
    end = TracerProvider.end_request

    def forget(self, ctx):
        ctx.pop(provider.UNLINKED, None)
        end(self, ctx)

    patch.setattr(TracerProvider, "end_request", forget)


def end_recycles_what_is_held(patch: Patch) -> None:
    patch.setattr(pool.Pool, "leave", pool.Pool.release)
    patch.setattr(TracerProvider, "_take_back", TracerProvider._release_singly)


class _Uncleared(list[Span]):
    def clear(self) -> None:
        """Keep what is in it."""


def end_leaves_spans_in_a_kept_list(patch: Patch) -> None:
    init = TracerProvider.__init__

    def keeping(self, **options):
        init(self, **options)
        self.storage.fetch = _Uncleared

    patch.setattr(TracerProvider, "__init__", keeping)


def end_takes_all_spans_for_unheld(patch: Patch) -> None:
    patch.setattr(provider, "getrefcount", lambda _obj: 0)


def release_by_hand_is_not_counted(patch: Patch) -> None:
    patch.setattr(provider, "count", lambda *_: None)


def second_link_is_not_counted(patch: Patch) -> None:
    patch.setattr(tracer, "count", lambda *_: None)


def abandon_forgets_the_spans(patch: Patch) -> None:
    patch.setattr(TracerProvider, "settle", lambda self, trace: None)


def events_are_shared(patch: Patch) -> None:
    init, add_event = TracerProvider.__init__, Span.add_event
    shared = []

    def begin(self, **options):
        init(self, **options)
        shared.clear()  # an example that depended on those before it would not be the same again

    def share(self, *arguments, **options):
        if self.events is None:
            self.events = shared
        add_event(self, *arguments, **options)

    patch.setattr(TracerProvider, "__init__", begin)
    patch.setattr(Span, "add_event", share)


def attributes_are_shared(patch: Patch) -> None:
    set_attribute = Span.set_attribute

    def share(self, *arguments, **options):
        if self.attributes is None and self.parent is not None:
            self.attributes = self.parent.attributes
        set_attribute(self, *arguments, **options)

    patch.setattr(Span, "set_attribute", share)


def process_span_ignores_the_name(patch: Patch) -> None:
    patch.setattr(
        Tracer,
        "process_span",
        lambda self, processor, *extra: (self._check_phase(self._execution.ctx), [*map(processor, self.get_spans())]),
    )


def process_span_wants_the_very_tracer(patch: Patch) -> None:
    process = Tracer.process_span
    patch.setattr(
        Tracer,
        "process_span",
        lambda self, processor, *extra: process(
            self, lambda each, *more: each.tracer is self and processor(each, *more), *extra
        ),
    )


def decision_skips_finished_spans(patch: Patch) -> None:
    def skip(self, should_sample=None):
        for each in self.get_spans():
            if each.end_time_ns is None:
                each.should_sample = should_sample

    patch.setattr(Tracer, "set_should_sample", skip)


def early_end_counts(patch: Patch) -> None:
    def end(self, end_time_ns):
        self.end_time_ns = end_time_ns
        return True

    patch.setattr(Span, "_end", end)


def event_happens_at_the_start(patch: Patch) -> None:
    add_event = Span.add_event
    patch.setattr(
        Span,
        "add_event",
        lambda self, name, attributes=None, time_ns=None: add_event(self, name, attributes, self.start_time_ns),
    )


def process_span_goes_backward(patch: Patch) -> None:
    process = Tracer.process_span

    def reverse(self, processor, *extra):
        seen = []
        process(self, seen.append, *extra)
        for each in reversed(seen):
            processor(each, *extra)

    patch.setattr(Tracer, "process_span", reverse)


def ids_repeat(patch: Patch) -> None:
    init = TracerProvider.__init__

    def repeating(self, *, random_bytes, **options):
        init(self, random_bytes=lambda count: bytes(at // 16 % 5 + 1 for at in range(count)), **options)

    patch.setattr(TracerProvider, "__init__", repeating)


def ids_may_be_zero(patch: Patch) -> None:
    from kongtrace.ids import IdSupply

    def draw(self):
        block = self._random_bytes(self._unpack.size)
        ids = self._unpack.unpack(block)
        self.drawn += ids
        self._supplied += len(ids)
        return self.drawn.pop()

    patch.setattr(IdSupply, "draw", draw)


def kind_by_name_is_ignored(patch: Patch) -> None:
    start = Tracer.start_span

    def ignore(self, name, options=None, span_kind=None, **given):
        return start(self, name, options, **given)

    patch.setattr(Tracer, "start_span", ignore)


def abandoned_list_is_counted_each_time(patch: Patch) -> None:
    settle = TracerProvider.settle

    def again(self, trace):
        trace.spans = trace.spans or trace.spent
        settle(self, trace)

    patch.setattr(TracerProvider, "settle", again)


def parent_is_the_root(patch: Patch) -> None:
    start = Tracer.start_span

    def below_root(self, *arguments, **options):
        started = start(self, *arguments, **options)
        if isinstance(started, Span) and started.parent is not None:
            started.parent_id = self.get_spans()[0].span_id
        return started

    patch.setattr(Tracer, "start_span", below_root)


KONG_FAULTS = {
    **{f"forgets {field}": forgetful_of(field) for field in ("events", "status", "active", "end_time_ns", "tracer")},
    **{
        fault.__name__: fault
        for fault in (
            *(pool_keeps_one_more, pool_is_never_replaced, pool_is_first_in_first_out, balance_is_off_by_one),
            *(pool_takes_all_at_once_when_due, pool_of_tables_keeps_one_more, pool_of_tables_keeps_what_is_in_them),
            *(process_span_wants_the_very_tracer, abandoned_list_is_counted_each_time, kind_by_name_is_ignored),
            *(
                release_runs_twice,
                end_forgets_unlinked_spans,
                abandon_forgets_the_spans,
                end_takes_all_spans_for_unheld,
            ),
        )
    },
}
SAFE_FAULTS = {
    **{
        f"forgets {field} at once": forgetful_at_once(field)
        for field in ("attributes", "events", "status", "active", "end_time_ns")
    },
    **{
        fault.__name__: fault
        for fault in (
            *(
                decision_skips_finished_spans,
                early_end_counts,
                event_happens_at_the_start,
            ),
            *(finish_leaves_the_active_span, finish_clears_the_active_span, second_finish_counts),
            *(sampler_ignores_the_parent, sampler_reads_the_other_end, parent_is_the_root),
            *(end_forgets_a_namespace, end_forgets_a_span, end_forgets_unlinked_spans, end_recycles_what_is_held),
            *(end_stops_the_running_request, abandon_stops_the_running_request, end_leaves_spans_in_a_kept_list),
            *(
                end_takes_all_spans_for_unheld,
                release_by_hand_is_not_counted,
                second_link_is_not_counted,
                events_are_shared,
                attributes_are_shared,
                process_span_ignores_the_name,
                process_span_goes_backward,
            ),
            *(ids_repeat, ids_may_be_zero),
        )
    },
}


@pytest.mark.parametrize("fault", KONG_FAULTS.values(), ids=KONG_FAULTS)
def test_a_fault_is_noticed_in_profile_kong(fault, monkeypatch):
    """The machine fails over a provider that recycles and has one fault."""
    fault(monkeypatch)
    assert is_noticed(KONG)


@pytest.mark.parametrize("fault", SAFE_FAULTS.values(), ids=SAFE_FAULTS)
def test_a_fault_is_noticed_in_profile_safe(fault, monkeypatch):
    """The machine fails over a provider that lends nothing that is held, and has one fault."""
    fault(monkeypatch)
    assert is_noticed(SAFE)


def is_noticed(profile) -> bool:
    try:
        run_state_machine_as_test(machine(profile), settings=SEARCH)
    except AssertionError:
        return True
    return False
