"""The queue does what Kong's Lua queue did (kong-semantics section 13), replayed on a virtual clock.

Every case is played by a driver that sleeps and sends in virtual time, and its whole trace is compared in order. A case
with a record, field or action that this replay does not know fails. `pytest -rP` shows the number of comparisons.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from kongtrace.delivery import Job, Send, Wait
from kongtrace.errors import KongTraceError
from kongtrace.lua import is_table
from kongtrace.queue import Queues
from kongtrace.queue_parameters import Binding, QueueParameters
from kongtrace.queue_profile import KONG, Outcome
from tests.conformance.vectors import NULL, cases, decode, noop

LEVELS = {"info": "INFO", "warn": "WARN", "error": "ERR"}
TOLERANCE_MS = 0.1
ANY = QueueParameters("any")
FIRST, LATER = range(2)  # actions of a moment come before what it wakes and what is due


def test_a_queue_behaves_as_the_recorded_one():
    """Calls, entries, times, logs, results, errors, pauses and the end are those of the recording, case by case."""
    compare = {"run": compare_run, "plugin_params": compare_plugin_params}
    compared: Counter[str] = Counter()
    failures = []
    for case in cases("queue"):
        assert case["kind"] in compare, f"{case['id']}: unknown kind {case['kind']}"
        compared[f"cases of kind {case['kind']}"] += 1
        try:
            compared["comparisons"] += compare[case["kind"]](case)
        except Exception as error:  # noqa: BLE001  the other cases are to be seen too
            failures.append(f"{case['id']} {case['category']}: {type(error).__name__}: {error}")
    print(dict(compared))
    assert compared["comparisons"]
    assert not failures, "\n".join(failures)


def compare_run(case: dict[str, Any]) -> int:
    known(case, {"queues", "handlers", "actions", "trace", "final", "ties", "kong_fault", "float_sensitive"})
    seen = Run(case)
    seen.play()
    for position, (is_, should) in enumerate(zip(seen.trace, case["trace"], strict=False)):
        assert same_record(is_, should), f"record {position} is {is_}, was {should}"
    assert len(seen.trace) == len(case["trace"]), f"{len(seen.trace)} records, were {len(case['trace'])}"
    final = seen.final()
    assert abs(final["t"] - case["final"]["t"]) <= TOLERANCE_MS, f"ended at {final['t']}, was {case['final']['t']}"
    assert final["queues"] == case["final"]["queues"]
    seen.check_accounts()
    if len(case["queues"]) > 1:
        quiet = Run(case, wakes_each_time=False)
        quiet.play()
        assert sorted(map(repr, quiet.trace)) == sorted(map(repr, seen.trace)), "it matters which entries wake a job"
    return len(case["trace"]) + 1


def compare_plugin_params(case: dict[str, Any]) -> int:
    known(case, {"calls", "results"})
    logs: list[tuple[str, str]] = []
    queues = Queues(KONG, lambda level, message: logs.append((level, message)), random=lambda: 0.0, schedule=no_job)
    for call, result in zip(case["calls"], case["results"], strict=True):
        known(call, {"config", "plugin", "queue_name", "t"})
        known(result, {"ret", "config_after", "logs"})
        config, queue_name = plain(decode(call["config"])), call.get("queue_name")
        logs.clear()
        ret = queues.get_plugin_params(
            call["plugin"], config, queue_name, plugin_id="plugin-id", wall_s=call["t"] / 1000
        )
        assert ret == plain(decode(result["ret"]))
        assert config == plain(decode(result["config_after"]))
        assert [{"level": LEVELS[level], "msg": message} for level, message in logs] == result["logs"]
    return 3 * len(case["calls"])


def known(record: dict[str, Any], names: set[str]) -> None:
    unknown = record.keys() - names - {"id", "category", "kind", "note"}
    assert not unknown, f"unknown fields {unknown}"


def plain(value: Any) -> Any:
    """A decoded value with JSON's null as None, which stands for both in a configuration."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return None if value is NULL else value


def no_job(_name: str | None, _job: Job) -> None:
    return None


def cancelled() -> None:
    """What an event does whose time will not come."""


def same_record(is_: dict[str, Any], should: dict[str, Any]) -> bool:
    return is_.keys() == should.keys() and all(same_field(name, is_[name], should[name]) for name in is_)


def same_field(name: str, is_: Any, should: Any) -> bool:
    if name in {"t", "ms"}:
        return abs(is_ - should) <= TOLERANCE_MS
    if name == "err" and isinstance(should, dict):
        assert should["kind"] in {"api", "runtime"}, f"unknown kind of error {should}"
        return should["kind"] == "runtime" or is_["msg"] == should["msg"]
    if name == "msg":
        return is_ == (should if isinstance(should, str) else tostring(decode(should)))
    is_, should = table(is_), table(decode(should))
    return is_ == should and type(is_) is type(should)


def table(value: Any) -> Any:
    """A value in which an empty list is an empty dict, since Lua has one empty table."""
    if isinstance(value, dict):
        return {name: table(item) for name, item in value.items()}
    return [table(item) for item in value] if isinstance(value, list) and value else {} if value == [] else value


class Run:
    """A worker of one case: its queues, its handlers, its timers.

    Args:
        case: what is done in it.
        wakes_each_time: with several queues, each entry wakes its job, which decides whose turn is first.
    """

    def __init__(self, case: dict[str, Any], *, wakes_each_time: bool = True) -> None:
        self.case = case
        self.wakes_each_time = wakes_each_time and len(case["queues"]) > 1
        self.trace: list[dict[str, Any]] = []
        self.t = 0.0  # ms
        self.events: list[list[Any]] = []  # time, rank, order, what happens
        self.order = count()
        self.waits: dict[Job, list[Any]] = {}  # the event that ends the wait of each job
        self.timers_fail = False
        self.handler_calls: Counter[str] = Counter()
        self.entries: dict[str, int] = {}
        self.bindings: dict[str, Binding] = {}
        self.handlers = {label: partial(noop, label) for label in case["queues"]}
        self.labels = {handler: label for label, handler in self.handlers.items()}
        self.queues = Queues(KONG, self.log, random=lambda: 0.0, schedule=self.schedule)
        for label in case["queues"]:
            self.queue(label)
        self.changes = [action["t"] for action in case["actions"] if action["do"] in {"exit", "clock_jump"}]

    def queue(self, label: str, conf: Any = None) -> Any:
        """The queue of a label, or of the name that a configuration gives in its place."""
        name = (self.case["queues"][label] if conf is None else conf).get("name", label)
        queue = self.queues.queue(name if isinstance(name, str) else label)
        queue.wake = partial(self.wake, queue)
        return queue

    # Time.

    def play(self) -> None:
        for index, action in enumerate(self.case["actions"]):
            self.at(action["t"], FIRST, partial(self.act, index, action))
        while self.events:
            t, _, _, happen = heapq.heappop(self.events)
            if happen is not cancelled:
                self.t = t
                happen()

    def at(self, t: float, rank: int, happen: Callable[[], None]) -> list[Any]:
        event = [t, rank, next(self.order), happen]
        heapq.heappush(self.events, event)
        return event

    def later(self, happen: Callable[[], None]) -> None:
        self.at(self.t, LATER, happen)

    def record(self, ev: str, **values: Any) -> None:
        self.trace.append({"ev": ev, "t": self.t, **values})

    def log(self, level: str, message: str) -> None:
        self.record("log", level=LEVELS[level], msg=message)

    # Jobs.

    def wake(self, queue: Any) -> None:
        """Have the queue's wait end in a moment, unless its time comes first: then the job has seen the entry."""
        wait = self.waits[queue]
        self.later(lambda: self.turn(queue) if self.waits.get(queue) is wait else None)

    def schedule(self, name: str | None, job: Job) -> str | None:
        if name is None and self.timers_fail:
            return "too many pending timers"
        self.later(partial(self.turn, job))
        return None

    def turn(self, job: Job, *, failed: bool = False) -> None:
        """Poll the job, and do what it says."""
        now = self.t / 1000
        if job in self.waits:
            self.waits.pop(job)[-1] = cancelled
        try:
            action = job.poll(now)
        except KongTraceError as error:
            self.record("worker_error", err={"kind": "api", "msg": str(error)})
            return
        match action:
            case Wait(until, or_entry):
                if failed and not or_entry:
                    self.record("retry_wait", ms=(until - now) * 1000)
                self.waits[job] = self.at(round(until * 1000, 2), LATER, partial(self.turn, job))
            case Send():
                self.send(job, action)
            case _:
                assert action is None

    def send(self, job: Job, action: Send) -> None:
        label = self.labels.get(action.handler)
        if label is None:  # it does nothing, and nobody sees it
            self.end(job, Outcome(ok=False))
            return
        self.handler_calls[label] += 1
        n = self.handler_calls[label]
        entries = [entry if isinstance(entry, bool) else self.entries[key(entry)] for entry in action.entries]
        conf = {} if action.handler_conf is None else {"handler_conf": action.handler_conf}
        self.record("call", queue=label, n=n, entries=entries, **conf)
        steps = self.case["handlers"][label]
        step = steps[min(n, len(steps)) - 1]
        known(step, {"duration", "returns", "raises"})
        returned = partial(self.returned, job, label, n, step)
        if "duration" in step:
            self.at(round(self.t + step["duration"] * 1000, 2), LATER, returned)
        else:
            returned()

    def returned(self, job: Job, label: str, n: int, step: dict[str, Any]) -> None:
        if "duration" in step:
            self.record("call_end", queue=label, n=n)
        self.end(job, outcome_of(step))

    def end(self, job: Job, outcome: Outcome) -> None:
        job.done(outcome, self.t / 1000)
        self.turn(job, failed=not outcome.ok)

    # Actions.

    def act(self, index: int, action: dict[str, Any]) -> None:
        before = len(self.trace)
        do = getattr(self, f"do_{action['do']}")
        try:
            seen = {"ret": ret} if (ret := do(index, action)) not in ([True], None) else {}
        except KongTraceError as error:
            seen = {"err": {"kind": "api", "msg": str(error)}}
        self.trace.insert(before, {"ev": "action", "i": index, "t": self.t, **seen})

    def do_enqueue(self, index: int, action: dict[str, Any]) -> list[Any]:
        known(action, {"do", "t", "queue", "entry", "handler_conf", "conf", "raw_conf", "raw_handler"})
        label, entry = action["queue"], in_python(action.get("entry"))
        conf = {"name": label} | self.case["queues"][label] | action.get("conf", {})
        handler = decode(action["raw_handler"]) if "raw_handler" in action else self.handlers[label]
        conf = action.get("raw_conf", conf)
        binding = self.binding(conf, handler, action.get("handler_conf"))
        self.entries[key(entry)] = index
        ok, error = self.queue(label, conf).enqueue(entry, binding, self.t / 1000)
        return [ok] if error is None else [ok, error]

    def binding(self, conf: Any, handler: Any, handler_conf: Any) -> Binding:
        """The same object for the same arguments, as a plugin would have it.

        Unless in this very moment the worker begins to leave or the clock jumps, which a waiting job is to see, or
        jobs take turns: an entry wakes its job for certain when its binding is new (docs/deviations.md, Queue).
        """
        called_with = key([conf, repr(handler), handler_conf])
        if self.t in self.changes or self.wakes_each_time:
            self.bindings.pop(called_with, None)
        if called_with not in self.bindings:
            conf = table(decode(conf))
            if is_table(conf):  # what is to be called is looked at before the parameters
                Binding(ANY, handler, in_python(handler_conf))
            self.bindings[called_with] = Binding(QueueParameters.of(conf), handler, in_python(handler_conf))
        return self.bindings[called_with]

    def do_exists(self, _index: int, action: dict[str, Any]) -> list[Any]:
        known(action, {"do", "t", "queue"})
        return [self.queue(action["queue"]).exists]

    def do__exists(self, _index: int, action: dict[str, Any]) -> list[Any]:
        known(action, {"do", "t", "queue"})
        queue = self.queue(action["queue"])
        return [queue.counters().queued > 0 if queue.exists else None]

    def do_is_full(self, _index: int, action: dict[str, Any]) -> list[Any]:
        known(action, {"do", "t", "queue"})
        return [self.queue(action["queue"]).is_full()]

    def do_can_enqueue(self, _index: int, action: dict[str, Any]) -> list[Any]:
        known(action, {"do", "t", "queue", "entry"})
        return [self.queue(action["queue"]).can_enqueue(decode(action.get("entry")))]

    def do_exit(self, _index: int, action: dict[str, Any]) -> None:
        known(action, {"do", "t"})
        self.queues.exit(action["t"] / 1000)

    def do_clock_jump(self, _index: int, action: dict[str, Any]) -> None:
        known(action, {"do", "t", "ms"})
        self.queues.clock_stepped(action["ms"] / 1000)

    def do_timers_fail(self, _index: int, action: dict[str, Any]) -> None:
        known(action, {"do", "t", "value"})
        self.timers_fail = action["value"]

    # The end.

    def final(self) -> dict[str, Any]:
        return {
            "t": self.t,
            "queues": {
                label: {"exists": self.queue(label).exists, "handler_calls": self.handler_calls[label]}
                for label in self.case["queues"]
            },
        }

    def check_accounts(self) -> None:
        total = self.queues.counters()
        dropped = total.dropped_overflow + total.dropped_retries + total.dropped_shutdown
        assert total.enqueued == total.acknowledged + dropped + total.swallowed + total.queued + total.in_flight


def in_python(value: Any) -> Any:
    """A value that is passed on; for null stands a function, which is no table and has no length either."""
    decoded = decode(value)
    return noop if decoded is NULL else decoded


def key(value: Any) -> str:
    """What tells entries apart, as the recording did: their value."""
    match value:
        case dict():
            return ", ".join(sorted(f"{key(name)}: {key(item)}" for name, item in value.items())).join("{}")
        case list():
            return ", ".join(map(key, value)).join("[]")
    return repr(value)


def outcome_of(step: dict[str, Any]) -> Outcome:
    """What a handler's result means: only exactly true is success, and only nil and false are no reason (Q19)."""
    ok, reason, *_ = (False, decode(step["raises"])) if "raises" in step else (*decode(step["returns"]), None, None)
    return Outcome(ok=ok is True, reason=None if reason is None or reason is False else tostring(reason))


def tostring(value: Any) -> str:
    """A Lua value as Lua prints it, with addresses as the recording writes them."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value:.14g}"
        case str() | bytes():
            return value if isinstance(value, str) else value.decode(errors="surrogateescape")
    if value is NULL:
        return "userdata: NULL"
    return f"{'function' if callable(value) else 'table'}: 0xADDR"
