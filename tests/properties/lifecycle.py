"""The lifecycle of spans against a naive account of it: requests, spans and pools kept as lists, dicts and counters.

`machine` gives the state machine of one profile, over the providers that a factory makes; the test runs it over the
real one, its teeth over broken ones. Profile `kong` is driven through legal use only: what Kong makes of the rest is
held fast by the recorded cases of `tests/conformance`.
"""

import hashlib
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kongtrace import KONG, NOOP_SPAN, PHASES, ApiError, Event, Profile, Span, Tracer, TracerProvider, otlp, pool
from kongtrace.context import KONG_PHASE
from kongtrace.testing import FakeClock, attribute_values

FREE_MAX = 3
RELEASES_MAX = 7
"""Limits of the pools, small enough that every run reaches them."""

OPEN_REQUESTS = 2
ENDED_SPANS = 8  # those of ended requests that are looked at, the last ones
TRACERS = {  # name: options
    "all": {"sampling_rate": 1.0},
    "half": {"sampling_rate": 0.5},
    "none": {"sampling_rate": 0.0},
    "apart": {"sampling_rate": 0.5, "namespace": "APART"},
}
EXCEPTION = "exception"
TOUCHES = {"attributes", "attribute", "event", "status", "active", "finish"}
"""What a request does to its spans when it is served as a whole."""


def random_bytes(seed: int) -> Callable[[int], bytes]:
    """Bytes without repetition, but for runs of sixteen zeros, every other block."""
    blocks = 0

    def draw(count: int) -> bytes:
        nonlocal blocks
        blocks += 1
        block = hashlib.shake_128(f"{seed} {blocks}".encode()).digest(count)
        return bytes(16) + block[16:-16] + bytes(16) if blocks % 2 else block

    return draw


FIELDS = (
    *("tracer", "parent", "name", "kind", "trace_id", "span_id", "parent_id", "should_sample", "start_time_ns"),
    *("end_time_ns", "attributes", "events", "status", "active"),
)


class NaivePool:
    """What a pool does, release by release."""

    def __init__(self) -> None:
        self.free: list[Any] = []
        self.since_replaced = 0
        self.fetched = self.hits = self.adopted = self.released = self.discarded = 0

    def fetch(self) -> Any:
        """The object that comes back, or None when it must be a new one."""
        self.fetched += 1
        self.hits += bool(self.free)
        return self.free.pop() if self.free else None

    def adopt(self) -> None:
        self.fetched += 1
        self.adopted += 1

    def has_room(self) -> bool:
        return self.since_replaced + 1 < RELEASES_MAX and len(self.free) < FREE_MAX

    def release(self, obj: Any) -> bool:
        """Say whether it was kept, and so emptied."""
        kept = self.has_room()
        self.since_replaced += 1
        if self.since_replaced == RELEASES_MAX:
            self.free, self.since_replaced = [], 0
        if kept:
            self.free.append(obj)
        self.released += kept
        self.discarded += not kept
        return kept

    def balance(self) -> tuple[int, ...]:
        made = self.fetched - self.hits - self.adopted
        live = self.fetched - self.released - self.discarded
        return (self.fetched, self.hits, made, self.released, self.discarded, live, len(self.free))


class NaiveSpan:
    """What a span should say of itself."""

    def __init__(self, real: Span, parent: "NaiveSpan | None", tracer: Tracer | None, **fields: Any) -> None:
        self.real = real
        self.parent = parent
        self.tracer = tracer
        self.name: str | None = None
        self.kind = 1
        self.trace_id: bytes = b""
        self.span_id: bytes = b""
        self.parent_id: bytes | None = None
        self.should_sample: bool | None = None
        self.start_time_ns: int | None = None
        self.end_time_ns: int | None = None
        self.attributes: dict[str, Any] | None = None
        self.events: list[Event] | None = None
        self.status: int | None = None
        self.active: bool | None = None
        self.table: dict[str, Any] | None = None  # the objects that go to the pools with the span
        self.list: list[Event] | None = None
        self.gone = False  # released, or given up
        self.__dict__.update(fields)

    @property
    def linked(self) -> bool:
        return self.start_time_ns is not None

    def left(self) -> list[str]:
        """Fields of the real span that are not empty."""
        return [name for name in FIELDS if getattr(self.real, name) is not None]

    def agree(self) -> None:
        real = self.real
        for field in FIELDS[2:]:
            assert getattr(real, field) == getattr(self, field), (field, getattr(real, field), getattr(self, field))
        assert real.parent is (self.parent.real if self.parent else None), "parent"
        assert real.tracer is self.tracer, "tracer"


class NaiveRequest:
    """One request: per namespace a list and an active span, and what was never listed."""

    def __init__(self) -> None:
        self.ctx: dict[str, Any] = {}
        self.phase = "rewrite"
        self.spans: list[NaiveSpan] = []  # every one made, and not given back
        self.made = 0
        self.linked_again = 0
        self.lists: dict[str, list[NaiveSpan]] = {}
        self.storage: dict[str, Any] = {}
        self.active: dict[str, NaiveSpan | None] = {}

    def linked(self) -> list[NaiveSpan]:
        return [span for span in self.spans if span.linked]


requests = st.integers(0, OPEN_REQUESTS - 1)
tracers = st.sampled_from(list(TRACERS))
picks = st.integers(0, 7)
names = st.sampled_from(["kong", "kong.router", "query"])
keys = st.sampled_from(["http.method", "db.system", "try_count"])
flags = st.sampled_from([None, True, False])
moments = st.sampled_from([0, 1, 1000])


class Lifecycle(RuleBasedStateMachine):
    """Two requests at a time in one worker, their spans made by four tracers in two namespaces."""

    profile: Profile
    make: Callable[..., TracerProvider]

    @initialize(seed=st.integers(0, 3))
    def start_worker(self, seed: int) -> None:
        self.limits = pool.FREE_MAX, pool.RELEASES_MAX
        pool.FREE_MAX, pool.RELEASES_MAX = FREE_MAX, RELEASES_MAX
        self.clock = FakeClock(step_ns=0)
        self.provider = type(self).make(
            time_ns=self.clock, random_bytes=random_bytes(seed), profile=self.profile, log=self.log
        )
        self.tracers: dict[str, Tracer] = {
            name: self.provider.new(name, dict(options)) for name, options in TRACERS.items()
        }
        self.logged: list[str] = []
        self.pools = {tag: NaivePool() for tag in ("spans", "storage", "attributes", "events")}
        self.requests = [NaiveRequest() for _ in range(OPEN_REQUESTS)]
        self.ended: list[NaiveSpan] = []
        self.given: list[tuple[Any, Any]] = []  # attributes of spans that are gone, and as they were
        self.copies: list[tuple[Any, Any]] = []
        self.encoder = otlp.Encoder(otlp.KONG if self.profile is KONG else otlp.SAFE)
        self.ids: set[bytes] = set()
        self.given_ids = 0

    def teardown(self) -> None:
        if hasattr(self, "limits"):
            pool.FREE_MAX, pool.RELEASES_MAX = self.limits

    def log(self, _level: str, message: str) -> None:
        self.logged.append(message)

    # The account.

    def enter(self, index: int) -> NaiveRequest:
        request = self.requests[index]
        request.ctx[KONG_PHASE] = request.phase
        self.provider.execution.enter(PHASES[request.phase], request.ctx)
        return request

    def pick(self, spans: list[NaiveSpan], number: int) -> NaiveSpan | None:
        return spans[number % len(spans)] if spans else None

    def fetched(self, tag: str, obj: Any) -> None:
        """Profile `kong` gives the object released last, else a new one; profile `safe` any that nobody has."""
        expected = self.pools[tag].fetch()
        if expected is not None and self.profile is KONG:
            assert obj is expected, f"not the object of {tag} that was released last"

    def listed(self, request: NaiveRequest, namespace: str) -> list[NaiveSpan]:
        if namespace not in request.lists:
            request.lists[namespace] = []
            request.storage[namespace] = request.ctx[f"{namespace}_SPANS"].spans
            self.fetched("storage", request.storage[namespace])
        return request.lists[namespace]

    def new_id(self, id_: bytes, size: int) -> None:
        """Ids have their length, are never all zero and never repeat."""
        assert len(id_) == size
        assert any(id_)
        assert id_ not in self.ids
        self.ids.add(id_)

    def made(
        self, request: NaiveRequest | None, real: Any, tracer: Tracer | None, options: dict[str, Any], **fields: Any
    ) -> NaiveSpan:
        """Account for a new span; what it inherits follows T11 and T12."""
        assert isinstance(real, Span)
        self.fetched("spans", real)
        parent = options.get("parent")
        if parent is None and tracer is not None and request is not None and PHASES[request.phase].spans:
            parent = request.active.get(tracer.namespace.name)
        span = NaiveSpan(real, parent, tracer, span_id=real.span_id, trace_id=real.trace_id, **fields)
        self.new_id(real.span_id, 8)
        if parent is not None:
            span.trace_id, span.parent_id, span.should_sample = parent.trace_id, parent.span_id, parent.should_sample
        elif "trace_id" in options:
            span.trace_id, span.parent_id = options["trace_id"], options["parent_id"]
        else:
            self.new_id(real.trace_id, 16)
        if span.should_sample is None:
            span.should_sample = options.get("should_sample")
        if span.should_sample is None:
            rate = tracer.sampling_rate if tracer else 0
            span.should_sample = int.from_bytes(span.trace_id[:8], "little") < int(rate * 2.0**64)
        span.kind = options.get("span_kind", 1)
        if request is not None:
            request.spans.append(span)
            request.made += 1
        return span

    def adopt(self, span: NaiveSpan, attributes: dict[str, Any] | None) -> None:
        span.table, span.attributes = attributes, deepcopy(attributes)
        if attributes is not None:
            self.pools["attributes"].adopt()

    def options_of(self, request: NaiveRequest, data: st.DataObject) -> dict[str, Any]:
        options: dict[str, Any] = {}
        parent = self.pick(request.linked(), data.draw(picks)) if data.draw(st.booleans()) else None
        if parent is not None:
            options["parent"] = parent
        elif data.draw(st.booleans()):
            self.given_ids += 1
            given = hashlib.sha256(str(self.given_ids).encode()).digest()
            options |= {"trace_id": given[:16], "parent_id": given[16:24]}
        if data.draw(st.booleans()):
            options |= {"span_kind": data.draw(st.integers(0, 5)), "should_sample": data.draw(flags)}
        return options

    @staticmethod
    def real(options: dict[str, Any]) -> dict[str, Any]:
        return {name: value.real if name == "parent" else value for name, value in options.items()}

    # Phases and time.

    @rule(request=requests, phase=st.sampled_from(["access", "access", "header_filter", "log", "balancer"]))
    def enter_phase(self, request: int, phase: str) -> None:
        self.requests[request].phase = phase
        self.enter(request)

    @rule(nanoseconds=moments)
    def advance_time(self, nanoseconds: int) -> None:
        self.clock.advance(nanoseconds)

    # Spans.

    @rule(request=requests, name=tracers, span=names, attributes=st.none() | st.dictionaries(keys, attribute_values()))
    def start_span(self, request: int, name: str, span: str, attributes: dict[str, Any] | None) -> None:
        self._start(self.enter(request), name, span, {}, {} if attributes is None else {"attributes": attributes})

    @rule(request=requests, name=tracers, span=names, back=moments, by_name=st.booleans(), data=st.data())
    def start_span_with_options(
        self, request: int, name: str, span: str, back: int, by_name: bool, data: st.DataObject
    ) -> None:
        options = self.options_of(self.requests[request], data)
        start = {"start_time_ns": self.clock.now_ns - back}
        self._start(self.enter(request), name, span, options, start, by_name=by_name)

    @rule(request=requests, name=tracers, span=names)
    def start_active_span(self, request: int, name: str, span: str) -> None:
        started = self._start(self.enter(request), name, span, {}, {})
        if started is not None:
            self._activate(self.requests[request], self.tracers[name], started)

    def _start(
        self,
        request: NaiveRequest,
        name: str,
        span_name: str,
        options: dict[str, Any],
        start: dict[str, Any],
        *,
        by_name: bool = True,
    ) -> NaiveSpan | None:
        tracer = self.tracers[name]
        given = {**self.real(options), **start}
        # What is no keyword argument can only be given in a table.
        named = by_name and "trace_id" not in given
        real = tracer.start_span(span_name, **given) if named else tracer.start_span(span_name, given)
        if not PHASES[request.phase].spans:
            assert real is NOOP_SPAN
            return None
        span = self.made(
            request, real, tracer, options, name=span_name, start_time_ns=start.get("start_time_ns", self.clock.now_ns)
        )
        self.adopt(span, start.get("attributes"))
        self.listed(request, tracer.namespace.name).append(span)
        return span

    @rule(request=requests, name=st.none() | tracers, data=st.data())
    def create_span(self, request: int, name: str | None, data: st.DataObject) -> None:
        entered = self.enter(request)
        tracer = self.tracers[name] if name else None
        options = self.options_of(entered, data)
        real = self.tracers["all"].create_span(tracer, self.real(options))
        self.made(entered, real, tracer, options)

    @rule(name=tracers)
    def create_span_in_a_timer(self, name: str) -> None:
        """A span that belongs to no request is given up at once."""
        self.provider.execution.enter(PHASES["timer"], None)
        tracer = self.tracers[name]
        assert tracer.start_span("kong") is NOOP_SPAN
        assert tracer.active_span() is None
        self._give_up([self.made(None, tracer.create_span(None), None, {})])

    @rule(request=requests, name=tracers, pick=picks, span=names, attributes=st.none() | st.just({"try_count": 1}))
    def link_span(self, request: int, name: str, pick: int, span: str, attributes: dict[str, Any] | None) -> None:
        entered, tracer = self.enter(request), self.tracers[name]
        target = self.pick([span for span in entered.spans if not span.linked], pick)
        if target is None:
            return
        attributes = deepcopy(attributes)
        given = None if attributes is None else {"attributes": attributes}
        assert tracer.link_span(target.real, span, given) is target.real
        self.pools["attributes"].discarded += target.table is not None
        self.adopt(target, attributes)
        target.name, target.start_time_ns = span, self.clock.now_ns
        target.tracer = target.tracer or tracer
        self.listed(entered, tracer.namespace.name).append(target)

    @rule(request=requests, name=tracers, pick=st.none() | picks)
    def set_active_span(self, request: int, name: str, pick: int | None) -> None:
        entered = self.enter(request)
        target = None if pick is None else self.pick(entered.linked(), pick)
        self._activate(entered, self.tracers[name], target)

    def _activate(self, request: NaiveRequest, tracer: Tracer, span: NaiveSpan | None) -> None:
        tracer.set_active_span(span.real if span else None)
        if not PHASES[request.phase].spans:
            return
        request.active[tracer.namespace.name] = span
        if span is not None:
            span.active = True

    @rule(request=requests, pick=picks, key=keys, value=st.none() | attribute_values())
    def set_attribute(self, request: int, pick: int, key: str, value: Any) -> None:
        span = self.pick(self.enter(request).spans, pick)
        if span is not None:
            self._set_attribute(span, key, value)

    def _set_attribute(self, span: NaiveSpan, key: str, value: Any) -> None:
        span.real.set_attribute(key, value)
        if span.attributes is None:
            span.table, span.attributes = span.real.attributes, {}
            self.fetched("attributes", span.table)
        if value is None:
            span.attributes.pop(key, None)
        else:
            span.attributes[key] = deepcopy(value)

    @rule(request=requests, pick=picks, attributes=st.none() | st.dictionaries(keys, st.integers()))
    def add_event(self, request: int, pick: int, attributes: dict[str, Any] | None) -> None:
        span = self.pick(self.enter(request).spans, pick)
        if span is not None:
            span.real.add_event("retry", attributes)
            self._happened(span, Event("retry", self.clock.now_ns, deepcopy(attributes)))

    @rule(request=requests, pick=picks, error=st.sampled_from(["timeout", "connection refused"]))
    def record_error(self, request: int, pick: int, error: str) -> None:
        span = self.pick(self.enter(request).spans, pick)
        if span is not None:
            span.real.record_error(error)
            self._happened(span, Event(EXCEPTION, self.clock.now_ns, {"exception.message": error}))

    def _happened(self, span: NaiveSpan, event: Event) -> None:
        if span.events is None:
            span.list, span.events = span.real.events, []
            self.fetched("events", span.list)
        span.events.append(event)

    @rule(request=requests, pick=picks, status=st.integers(0, 2))
    def set_status(self, request: int, pick: int, status: int) -> None:
        span = self.pick(self.enter(request).spans, pick)
        if span is not None:
            span.real.set_status(status)
            span.status = status

    @rule(request=requests, pick=picks, after=st.none() | st.sampled_from([-1, 0, 1, 1000]))
    def finish(self, request: int, pick: int, after: int | None) -> None:
        """The active span after finish is the parent, if the span was the active one (S9)."""
        entered = self.enter(request)
        span = self.pick(entered.linked(), pick)
        if span is not None:
            self._finish(entered, span, after)

    @rule(request=requests, name=tracers)
    def finish_active_span(self, request: int, name: str) -> None:
        entered = self.enter(request)
        span = entered.active.get(self.tracers[name].namespace.name)
        if span is not None:
            self._finish(entered, span, None)

    def _finish(self, request: NaiveRequest, span: NaiveSpan, after: int | None) -> None:
        logged = len(self.logged)
        span.real.finish(None if after is None else span.start_time_ns + after)
        if span.end_time_ns is not None:
            return
        if after is not None and after < 0:
            assert self.logged[logged:] == [f"invalid span duration: {after} for span: {span.name}"]
            return
        span.end_time_ns = self.clock.now_ns if after is None else span.start_time_ns + after
        namespace = span.tracer.namespace.name
        if PHASES[request.phase].spans and span.active and request.active.get(namespace) is span:
            request.active[namespace] = span.parent
            span.active = None
            if span.parent is not None:
                span.parent.active = True

    @rule(request=requests, name=tracers, flag=flags)
    def set_should_sample(self, request: int, name: str, flag: bool | None) -> None:
        entered, tracer = self.enter(request), self.tracers[name]
        tracer.set_should_sample(flag)
        for span in self.listed(entered, tracer.namespace.name):
            span.should_sample = flag

    @rule(
        request=requests,
        name=tracers,
        bad=st.sampled_from([{"name": ""}, {"name": "x", "span_kind": "2"}, {"name": "x", "attributes": 1}]),
    )
    def a_bad_call_takes_nothing(self, request: int, name: str, bad: dict[str, Any]) -> None:
        """A refused call takes nothing from the pools; the balances tell."""
        entered = self.enter(request)
        try:
            span = self.tracers[name].start_span(**bad)
        except ApiError:
            return
        assert span is NOOP_SPAN
        assert not PHASES[entered.phase].spans

    @rule(request=requests, name=tracers)
    def init_spans(self, request: int, name: str) -> None:
        """A new list takes the place of the old one, whose spans are left to the garbage collector (D17)."""
        entered, tracer = self.enter(request), self.tracers[name]
        namespace = tracer.namespace.name
        if entered.linked():
            return  # the old spans would still be reachable as parents
        tracer.init_spans()
        if namespace in entered.lists:
            self._forget(entered.lists.pop(namespace))
        self.listed(entered, namespace)

    # Looking at spans.

    @rule(request=requests, name=tracers)
    def process_span(self, request: int, name: str) -> None:
        """The processor sees exactly the linked spans of the tracer's name, in the order of linking (T9)."""
        entered, tracer = self.enter(request), self.tracers[name]
        if entered.phase == "log":
            self._process(entered, tracer)
            return
        try:
            tracer.process_span(print)
        except ApiError:
            return
        raise AssertionError("process_span is for the log phase")

    def _process(self, request: NaiveRequest, tracer: Tracer) -> None:
        seen: list[Span] = []
        self.provider.new(tracer.name, dict(TRACERS[tracer.name])).process_span(seen.append)
        listed = self.listed(request, tracer.namespace.name)
        assert list(map(id, seen)) == [id(span.real) for span in listed if span.tracer.name == tracer.name]

    @rule(request=requests, pick=picks)
    def copy(self, request: int, pick: int) -> None:
        """A copy tells what the span tells."""
        span = self.pick(self.enter(request).linked(), pick)
        if span is None:
            return
        copied = self.encoder.transform_span(span.real)
        assert copied["name"] == span.name
        assert copied["trace_id"] == span.trace_id
        assert copied["span_id"] == span.span_id
        self.copies.append((copied, deepcopy(copied)))
        self.copies.append((self.encoder.encode_span(span.real), self.encoder.encode_span(span.real)))
        del self.copies[:-6]

    # The end.

    @rule(request=requests, pick=picks)
    def release_unlinked(self, request: int, pick: int) -> None:
        """A span that was never linked can be given back by hand (S16)."""
        entered = self.enter(request)
        span = self.pick([span for span in entered.spans if not span.linked], pick)
        if span is None:
            return
        span.real.release()
        self._release(span)
        entered.spans.remove(span)

    @rule(pick=picks)
    def use_after_release(self, pick: int) -> None:
        """In profile `safe` a span that has been released takes nothing, is not lent, and says so in the log."""
        span = self.pick(self.ended, pick)
        if span is not None:
            logged = len(self.logged)
            span.real.set_attribute("try_count", 1)
            span.real.finish()
            span.real.release()
            assert len(self.logged) == logged + 3

    @precondition(lambda self: self.profile is not KONG)
    @rule(request=requests, name=tracers, pick=picks, span=names)
    def link_again(self, request: int, name: str, pick: int, span: str) -> None:
        """Linking twice lists the span twice (S7)."""
        entered, tracer = self.enter(request), self.tracers[name]
        target = self.pick(entered.lists.get(tracer.namespace.name, []), pick)
        if target is not None:
            tracer.link_span(target.real, span)
            self.pools["attributes"].discarded += target.table is not None
            target.name, target.start_time_ns = span, self.clock.now_ns
            entered.linked_again += 1
            target.table = target.attributes = None
            self.listed(entered, tracer.namespace.name).append(target)

    @rule(
        request=requests,
        running=requests,
        by_hand=st.sets(picks, max_size=3),
        held=st.booleans(),
        exporter=st.none() | tracers,
    )
    def end_request(self, request: int, running: int, by_hand: set[int], held: bool, exporter: str | None) -> None:
        """After a request's end none of its spans is live, and all are empty; another one may run meanwhile."""
        self._end(request, running, by_hand=by_hand, held=held, exporter=exporter)

    @rule(
        request=requests,
        name=tracers,
        spans=st.lists(st.just(TOUCHES) | st.sets(st.sampled_from(sorted(TOUCHES))), max_size=5),
        held=st.booleans(),
    )
    def serve(self, request: int, name: str, spans: list[set[str]], held: bool) -> None:
        """A request goes on to its end, so that many do: what one leaves in the pools, the next is given."""
        self.requests[request].phase = "access"
        entered, finished = self.enter(request), []
        for touched in spans:
            given = {"attributes": {"db.system": "mysql"}} if "attributes" in touched else {}
            span = self._start(entered, name, "query", {}, given)
            assert span is not None
            if "attribute" in touched:
                self._set_attribute(span, "try_count", 1)
            if "event" in touched:
                span.real.add_event("retry")
                self._happened(span, Event("retry", self.clock.now_ns, None))
            if "status" in touched:
                span.real.set_status(2)
                span.status = 2
            if "active" in touched:
                self._activate(entered, self.tracers[name], span)
            if "finish" in touched:
                finished.append(span)
        for span in reversed(finished):
            self._finish(entered, span, None)
        # Nobody holds what is in no variable.
        finished = span = None  # type: ignore[assignment]
        self._end(request, request, by_hand=set(), held=held, exporter=name)

    def _end(self, request: int, running: int, *, by_hand: set[int], held: bool, exporter: str | None) -> None:
        self.requests[request].phase = "log"
        entered = self.enter(request)
        self._is_one_tree(entered)
        if exporter is not None:
            self._process(entered, self.tracers[exporter])
        for number in by_hand:
            span = self.pick(entered.linked(), number)
            if span and not span.gone and (self.profile is not KONG or self.pools["spans"].has_room()):
                span.real.release()
                self._release(span)
        if self.profile is not KONG:
            self._let_go(entered, held=held)
        self._is_counted(entered)
        self.enter(running)
        self.provider.end_request(entered.ctx)
        unlinked = [span for span in entered.spans if not span.linked]
        if self.profile is KONG:
            self._give_up(unlinked)
        else:
            self._release_all(unlinked)
        for namespace, spans in entered.lists.items():
            if namespace != "KONG" and self.profile is KONG:
                self._forget(spans)
            else:
                self._release_all(spans)
                if self.pools["storage"].release(entered.storage[namespace]) or self.profile is not KONG:
                    assert entered.storage[namespace] == [], "the list of an ended request is empty"
        # Nothing is left to take back, or to give up.
        if self.profile is KONG:
            self.provider.abandon_request(entered.ctx)
        else:
            self.provider.end_request(entered.ctx)
        self._replace(request, running)

    def _let_go(self, request: NaiveRequest, *, held: bool) -> None:
        """Profile `safe` lends only what nobody holds: hold the spans beyond the end, or let them go before it."""
        if held:
            self.ended = [*self.ended, *request.spans][-ENDED_SPANS:]
        for span in request.spans:
            if not held:
                del span.real

    @rule(request=requests, running=requests)
    def abandon_request(self, request: int, running: int) -> None:
        """A request whose log phase failed gives up its spans; nothing is recycled (E4)."""
        entered = self.requests[request]
        self._is_counted(entered)
        self.enter(running)
        self.provider.abandon_request(entered.ctx)
        self._give_up([span for span in entered.spans if not span.linked])
        for spans in entered.lists.values():
            self._forget(spans)
        self._replace(request, running)

    def _is_counted(self, request: NaiveRequest) -> None:
        """A request knows how many spans it made, wherever they have gone."""
        made, again = self.provider.made_in(request.ctx)
        assert (made - again, again) == (request.made, request.linked_again)

    def _replace(self, ended: int, running: int) -> None:
        """The request that runs goes on, whichever has ended."""
        if running != ended:
            for name in TRACERS:
                self._start(self.requests[running], name, "kong", {}, {})
        self.requests[ended] = NaiveRequest()

    def _release_all(self, spans: list[NaiveSpan]) -> None:
        for span in spans:
            self._release(span)

    def _release(self, span: NaiveSpan) -> None:
        if span.gone:
            return
        span.gone = True
        is_kong = self.profile is KONG
        if span.table is not None and not is_kong:
            self.given = [*self.given, (span.table, deepcopy(span.attributes))][-ENDED_SPANS:]
        if span.table is not None and self.pools["attributes"].release(span.table) and is_kong:
            assert span.table == {}, "released attributes are empty"
        if span.list is not None and self.pools["events"].release(span.list) and is_kong:
            assert span.list == [], "a released list of events is empty"
        kept = self.pools["spans"].release(getattr(span, "real", None))
        if hasattr(span, "real") and (kept or not is_kong):
            assert not span.left(), f"a released span is empty, but for {span.left()}"

    def _give_up(self, spans: list[NaiveSpan]) -> None:
        for span in spans:
            if span.gone:
                continue
            span.gone = True
            self.pools["spans"].discarded += 1
            self.pools["attributes"].discarded += span.table is not None
            self.pools["events"].discarded += span.list is not None

    def _forget(self, spans: list[NaiveSpan]) -> None:
        self._give_up(spans)
        self.pools["storage"].discarded += 1

    @staticmethod
    def _is_one_tree(request: NaiveRequest) -> None:
        """Every exported trace is one tree: one root, and every other span below a span of the same trace."""
        traces: dict[bytes, dict[bytes, Span]] = {}
        for span in request.linked():
            traces.setdefault(span.real.trace_id, {})[span.real.span_id] = span.real
        for spans in traces.values():
            roots = [span for span in spans.values() if span.parent_id not in spans]
            assert len(roots) == 1, f"{len(roots)} roots"
            for span in spans.values():
                for _ in spans:
                    span = spans.get(span.parent_id, span)  # noqa: PLW2901  the way up
                assert span is roots[0]

    # What always holds.

    @invariant()
    def every_span_tells_what_was_done_to_it(self) -> None:
        """A span from the pool differs in nothing from a new one, and nobody else writes to it."""
        for request in self.requests:
            for span in request.spans:
                span.agree()

    @invariant()
    def no_object_belongs_to_two(self) -> None:
        """No span is in two requests at once; no two spans share attributes or events."""
        spans = [span for request in self.requests for span in request.spans] + self.ended
        for objects in (
            [span.real for span in spans],
            [span.real.attributes for span in spans if span.real.attributes is not None],
            [span.real.events for span in spans if span.real.events is not None],
        ):
            assert len({id(obj) for obj in objects}) == len(objects)

    @invariant()
    def lists_and_active_spans_are_those_of_the_request(self) -> None:
        """Each request has its own span list and active span in each namespace."""
        for index, request in enumerate(self.requests):
            self.enter(index)
            for tracer in self.tracers.values():
                namespace = tracer.namespace.name
                active = request.active.get(namespace) if PHASES[request.phase].spans else None
                assert tracer.active_span() is (active.real if active else None), "the active span"
                trace = request.ctx.get(tracer.spans_key)
                listed = [] if trace is None or trace.spans is None else trace.spans
                assert list(map(id, listed)) == [id(span.real) for span in request.lists.get(namespace, [])]

    @invariant()
    def what_is_kept_beyond_the_request_stays_as_it_was(self) -> None:
        """A copy is unaffected by release; in profile `safe` so are attributes, and a held span stays empty."""
        for copied, as_it_was in self.copies:
            assert copied == as_it_was
        for span in self.ended:
            assert not span.left(), "a span that is held is not lent"
        for table, as_it_was in self.given:
            assert table == as_it_was, "attributes stay as they were for whoever gave or took them"

    @invariant()
    def pools_keep_no_more_than_their_limit(self) -> None:
        """No free list is longer than its limit, and none holds an object twice or one that is not empty.

        Profile `safe` keeps spans alone.
        """
        for tag in self.pools if self.profile is KONG else ["spans"]:
            free = getattr(self.provider, tag).free
            assert len(free) <= FREE_MAX
            assert len({id(obj) for obj in free}) == len(free)
            assert not any(free) or tag == "spans"

    @invariant()
    def balances_are_exact(self) -> None:
        """Fetched = released + discarded + live, and each of them is what was counted."""
        for tag, naive in self.pools.items():
            balance = getattr(self.provider, tag).balance()
            if self.profile is KONG:
                assert tuple(balance) == naive.balance(), tag
            elif tag != "spans":
                assert not any(balance), tag
            else:  # what goes back to the pool depends on who else holds it
                live = naive.fetched - naive.released - naive.discarded
                assert (balance.fetched, balance.live) == (naive.fetched, live), tag
                assert balance.fetched == balance.released + balance.discarded + balance.live, tag


def machine(profile: Profile, make: Callable[..., TracerProvider] = TracerProvider) -> type[Lifecycle]:
    """The machine of one profile, over the providers that `make` makes."""
    return type(f"Lifecycle_{profile.name}", (Lifecycle,), {"profile": profile, "make": staticmethod(make)})
