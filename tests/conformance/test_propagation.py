"""Header propagation does what Kong's Lua code did (kong-semantics section 10).

Each family is one test: it replays every case under profile ``kong`` and compares every field that was recorded. A
case with a field that this replay does not know fails; a field of a context that no injector reads is left out, as Lua
passes over it. Headers and baggage are compared as byte strings. `pytest -rP` shows the number of comparisons.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

from kongtrace.context import TracingContext
from kongtrace.errors import ApiError, KongTraceError
from kongtrace.propagation import (
    INJECTORS,
    KONG,
    Headers,
    PropagationContext,
    extract_format,
    get_plugin_params,
    inject,
    propagate,
)
from tests.conformance.vectors import NULL, TextOfATable, cases, decode

FIELDS = {field.name for field in fields(PropagationContext)}
IDS = {"trace_id", "span_id", "parent_id"}
LEVELS = {"error": "ERR", "warn": "WARN"}
REMARKS = {"id", "category", "note"}
TABLE = re.compile("table(: |%3A%20)0x[0-9a-f]{6,16}")
"""The text that Lua makes of a table, as it stands in a context or, escaped, in a header."""


def plain(value: Any) -> Any:
    """A decoded value with byte strings as text, null as None, and one kind of empty table."""
    match value:
        case bytes():
            return value.decode(errors="surrogateescape")
        case {} | [] if not value:
            return []
        case dict():
            return {plain(key): plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
    return None if value is NULL else value


def read(value: Any) -> Any:
    return plain(decode(value))


class Joined:
    """Equals the text of several values, which Kong takes for that of their table (docs/deviations.md)."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and ("," in other or "%2C" in other)

    __hash__ = None  # type: ignore[assignment]


def expected_value(value: Any) -> Any:
    """A recorded value to compare with, once it was read."""
    match value:
        case TextOfATable():
            return Joined()
        case str() if TABLE.fullmatch(value):
            return Joined()
        case dict():
            return {key: expected_value(item) for key, item in value.items()}
        case list():
            return [expected_value(item) for item in value]
    return value


def context_from(recorded: dict[str, Any]) -> PropagationContext:
    return PropagationContext(**fields_from(recorded))


def fields_from(recorded: dict[str, Any]) -> dict[str, Any]:
    return {
        name: bytes.fromhex(value) if name in IDS and value is not None else read(value)
        for name, value in recorded.items()
        if name in FIELDS
    }


def as_recorded(context: PropagationContext | None) -> Any:
    if context is None:
        return None
    given = {name: getattr(context, name) for name in FIELDS if getattr(context, name) is not None}
    if "baggage" in given:
        given["baggage"] = dict(given["baggage"])
    return plain({name: value.hex() if name in IDS else value for name, value in given.items()})


class Outcome:
    """What one call did, in the terms of a vector's ``expect``."""

    def __init__(self, call: Callable[["Outcome"], dict[str, Any]]) -> None:
        self.logs: list[dict[str, str]] = []
        self.error: Exception | None = None
        self.seen: dict[str, Any] = {}
        try:
            self.seen |= call(self)
        except KongTraceError as error:
            self.error = error

    def log(self, level: str, message: str) -> None:
        self.logs.append({"level": LEVELS[level], "msg": message})

    def compare(self, expected: dict[str, Any]) -> int:
        """Fail unless everything that was expected happened, and nothing else; gives the number of comparisons."""
        expected = dict(expected)
        error = expected.pop("err", None)
        assert (self.error is not None) == (error is not None), f"raised {self.error!r}, expected {error}"
        if error is not None and error["kind"] != "runtime":
            assert (error["kind"], error["msg"]) == ("api", str(self.error))
        assert expected.pop("logs", []) == self.logs, "logs"
        # Lua tables do not hold nil: a field without a value may be absent or null.
        names = {name for name in {*expected, *self.seen} if name in self.seen or expected[name] is not None}
        for name in names:
            assert name in self.seen, f"nothing to compare {name} with"
            assert expected_value(read(expected.get(name))) == plain(self.seen[name]), name
        return len(names) + 2


def known(record: dict[str, Any], *names: str) -> None:
    assert not record.keys() - set(names), f"unknown fields {record.keys() - set(names)}"


def replay_extract(case: dict[str, Any]) -> Iterator[int]:
    known(case, *REMARKS, "format", "headers", "expect")
    known(case["expect"], "ctx", "logs", "err")

    def call(outcome: Outcome) -> dict[str, Any]:
        return {
            "ctx": as_recorded(extract_format(case["format"], Headers(read(case.get("headers")) or {}), outcome.log))
        }

    yield Outcome(call).compare(case["expect"])


def replay_inject(case: dict[str, Any]) -> Iterator[int]:
    known(case, *REMARKS, "format", "ctx", "expect")
    known(case["expect"], "headers", "trace_id_formats", "inject_error", "logs", "err")
    expected = dict(case["expect"])
    if "inject_error" in expected:  # Kong's propagate logs what the injector returned
        expected["logs"] = [*expected.get("logs", []), {"level": "ERR", "msg": expected.pop("inject_error")}]

    def call(outcome: Outcome) -> dict[str, Any]:
        headers = Recorded({})
        outcome.seen["headers"] = headers.was_set
        if case["format"] not in INJECTORS:
            # What is recorded is the injector; what `preserve` stands for is up to Kong's propagate.
            raise ApiError(f"no injector is called {case['format']!r}")
        formats = inject(
            {"inject": [case["format"]]},
            context_from(case.get("ctx") or {}),
            headers,
            plugin={},
            tracing=TracingContext(),
            log=outcome.log,
            profile=KONG,
        )
        return {} if formats is None else {"trace_id_formats": formats}

    yield Outcome(call).compare(expected)


class Recorded(Headers):
    """Request headers that note what was done to them."""

    __slots__ = ("was_cleared", "was_set")

    def __init__(self, lines: dict[str, Any]) -> None:
        super().__init__(lines)
        self.was_set: dict[str, str] = {}
        self.was_cleared: list[str] = []

    def set(self, name: str, value: str, /) -> None:
        self.was_set[name] = value
        super().set(name, value)

    def clear(self, name: str, /) -> None:
        self.was_cleared.append(name)
        super().clear(name)


def replay_propagate(case: dict[str, Any]) -> Iterator[int]:
    known(case, *REMARKS, "headers", "calls", "expect")
    assert len(case["calls"]) == len(case["expect"])
    headers = Recorded(read(case.get("headers")) or {})
    tracing = TracingContext()
    plugins: dict[str, dict[str, Any]] = {}
    for call, expected in zip(case["calls"], case["expect"], strict=True):
        known(call, "plugin", "config", "callback", "params", "params_twice")
        known(
            expected,
            *("params", "extracted", "cleared", "set", "outgoing", "extracted_from", "trace_id_formats", "logs", "err"),
        )
        headers.was_set, headers.was_cleared = {}, []
        plugin = plugins.setdefault(call.get("plugin", "p"), {})
        yield one_propagation(call, headers, plugin, tracing).compare(expected)


def as_config(recorded: dict[str, Any] | None) -> dict[str, Any]:
    """A plugin's configuration, in which an empty table is a mapping."""
    config = decode(recorded) or {}
    propagation = config.get("propagation")
    is_table = propagation == [] or isinstance(propagation, dict)
    return options(config) | ({"propagation": options(dict(propagation))} if is_table else {})


def options(recorded: dict[str, Any]) -> dict[str, Any]:
    """Options of propagation; null is no format, and unset elsewhere (docs/deviations.md)."""
    return {
        name: NULL if (name, value) == ("default_format", NULL) else plain(value) for name, value in recorded.items()
    }


def one_propagation(
    call: dict[str, Any], headers: Recorded, plugin: dict[str, Any], tracing: TracingContext
) -> Outcome:
    def run(outcome: Outcome) -> dict[str, Any]:
        config = as_config(call.get("config"))
        if call.get("params"):
            for _ in range(2 if call.get("params_twice") else 1):
                params = get_plugin_params(config)
            outcome.seen["params"] = dict(params)
        else:
            params = config
        outcome.seen |= {"set": headers.was_set, "cleared": headers.was_cleared}
        try:
            formats = propagate(
                params,
                headers,
                callback_from(call["callback"], outcome.seen) if call.get("callback") is not None else None,
                plugin=plugin,
                tracing=tracing,
                log=outcome.log,
                profile=KONG,
            )
        finally:
            outcome.seen |= {"outgoing": all_of(headers), "extracted_from": plugin.get("extracted_from")}
        return {} if formats is None else {"trace_id_formats": dict(formats)}

    return Outcome(run)


def all_of(headers: Headers) -> dict[str, Any]:
    """Every header by its name, those too that lie beyond the hundredth line and cannot be read (X30)."""
    lines = headers.lines()
    lists_of_one = {name: value for name, value in headers.items() if isinstance(value, list) and len(value) == 1}
    return dict(Headers(lines, seen_max=len(lines)).items()) | lists_of_one


def callback_from(recorded: dict[str, Any], seen: dict[str, Any]) -> Callable[[PropagationContext], PropagationContext]:
    known(recorded, "set", "unset", "replace")

    def callback(context: PropagationContext) -> PropagationContext:
        seen["extracted"] = as_recorded(context)
        if recorded.get("replace"):
            context = PropagationContext()
        changed = fields_from((recorded.get("set") or {}) | dict.fromkeys(recorded.get("unset") or []))
        return replace(context, **changed)

    return callback


REPLAYS = {
    "propagation_extract": replay_extract,
    "propagation_inject": replay_inject,
    "propagate": replay_propagate,
}


@pytest.mark.parametrize(("family", "replay"), REPLAYS.items())
def test_propagation_matches_the_recorded_lua(family: str, replay: Callable[[dict[str, Any]], Iterator[int]]) -> None:
    """Every recorded field of every case is the same here."""
    replayed = compared = 0
    failures = []
    for case in cases(family):
        replayed += 1
        try:
            compared += sum(replay(case))
        except Exception as failure:  # noqa: BLE001  the other cases are to be seen too
            failures.append(f"{case['id']} ({case['category']}): {type(failure).__name__}: {failure}")
    print(f"{family}: {replayed} cases, {compared} comparisons, {len(failures)} differ")
    assert not failures, f"{len(failures)} of {replayed} cases differ:\n" + "\n".join(failures[:20])
    assert replayed, f"{family} has no case"
