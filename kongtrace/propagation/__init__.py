"""Trace context in request headers: read it in one format, write it in others.

Theory of operation. :func:`propagate` is called once per plugin and request. It reads the headers with the first
format in ``extract`` that yields something, gives the context to the plugin's callback, removes the headers in
``clear``, and writes what the callback gives back in every format in ``inject``. Ids are bytes inside, whatever the
header looked like; the size in which a trace id came is remembered, so that it goes out in the same size where the
format allows it. What a client sent malformed is logged and ignored.

A format is one module with an extractor and an injector, both plain functions; the tables below name them.

Parameters (``params``): a mapping with ``extract``, ``clear``, ``inject`` (lists) and ``default_format``, any of them
absent or None; :func:`get_plugin_params` makes it from a plugin's configuration, older options included.

Source: kong-semantics section 10; Kong's ``kong/observability/tracing/propagation/init.lua``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kongtrace.errors import ApiError
from kongtrace.lua import is_given
from kongtrace.propagation import aws, b3, datadog, gcp, instana, jaeger, ot, w3c
from kongtrace.propagation.context import Log, MissingFieldError, PropagationContext, UnguardedError
from kongtrace.propagation.fields import decimal
from kongtrace.propagation.headers import Headers, HeaderValue, RequestHeaders, single

if TYPE_CHECKING:
    from kongtrace.context import TracingContext

__all__ = [
    "CARRIERS",
    "EXTRACTORS",
    "INJECTORS",
    "KONG",
    "PROFILES",
    "SAFE",
    "HeaderValue",
    "Headers",
    "Log",
    "MissingFieldError",
    "Profile",
    "PropagationContext",
    "RequestHeaders",
    "UnguardedError",
    "clear",
    "extract",
    "extract_format",
    "get_plugin_params",
    "inject",
    "propagate",
    "trace_flags",
]

Extractor = Callable[[RequestHeaders, Log], PropagationContext | None]
"""Reads a format: None when its headers are absent or useless, else a context with ids of any size."""

Injector = Callable[[PropagationContext, RequestHeaders], dict[str, str]]
"""Writes a format; gives the trace id as written, under the format's name."""

_Entry = TypeVar("_Entry")

EXTRACTORS: Final[dict[str, Extractor]] = {
    "w3c": w3c.extract,
    "b3": b3.extract,
    "jaeger": jaeger.extract,
    "ot": ot.extract,
    "datadog": datadog.extract,
    "aws": aws.extract,
    "gcp": gcp.extract,
    "instana": instana.extract,
}

_EXTRACTED: Final = frozenset(EXTRACTORS)

INJECTORS: Final[dict[str, Injector]] = {
    "w3c": w3c.inject,
    "b3": b3.inject,
    "b3-single": b3.inject_single,
    "jaeger": jaeger.inject,
    "ot": ot.inject,
    "datadog": datadog.inject,
    "aws": aws.inject,
    "gcp": gcp.inject,
    "instana": instana.inject,
}

CARRIERS: Final = frozenset(
    {
        *("traceparent", "uber-trace-id", "x-amzn-trace-id", "x-cloud-trace-context", "x-instana-t"),
        *(datadog.TRACE_ID, datadog.PARENT_ID, datadog.PRIORITY),
        *b3.TRIGGERS,
        *ot.TRIGGERS,
    }
)
"""Headers without which no format has anything to read."""

PRESERVE: Final = "preserve"
DEFAULT_FORMAT: Final = "w3c"

LEGACY_EXTRACT: Final = ("b3", "w3c", "jaeger", "ot", "datadog", "aws", "gcp", "instana")
"""The order of extraction that ``header_type`` implies (X29)."""

EXTRACTED_FROM: Final = "extracted_from"
"""Key of the extracted format in a plugin's context (X26)."""

NOTHING: Final = PropagationContext()


def _any_field(context: PropagationContext) -> bool:
    """Kong's rule: a context with at least one field set has been found (X13)."""
    return context.trace_id is not None or context != NOTHING


def _trace_decision_or_baggage(context: PropagationContext) -> bool:
    """There is something to go on: a trace, a decision or baggage, not only a header that could have held it."""
    return context.trace_id is not None or context.should_sample is not None or context.baggage is not None


@dataclass(frozen=True, slots=True)
class Profile:
    """What distinguishes the two profiles of propagation.

    Attributes:
        name: ``"kong"`` or ``"safe"``.
        guarded: what an extractor or injector may raise that is logged and passed over; all else goes to the caller.
            Kong lets a header that it cannot handle break the request (H34).
        found: whether a context ends the search for one. Kong takes an empty b3 context for one (X13, H33).
    """

    name: str
    guarded: tuple[type[Exception], ...]
    found: Callable[[PropagationContext], bool]


KONG: Final = Profile("kong", (MissingFieldError,), _any_field)
SAFE: Final = Profile("safe", (MissingFieldError, UnguardedError), _trace_decision_or_baggage)
PROFILES: Final = {profile.name: profile for profile in (KONG, SAFE)}


def get_plugin_params(config: Mapping[str, Any]) -> MutableMapping[str, Any]:
    """The propagation parameters of a plugin's configuration (X29).

    The older options ``header_type`` and ``default_header_type`` count when none of ``extract``, ``clear`` and
    ``inject`` is set. Their meaning is written into ``config["propagation"]``, so that they are converted once.

    Args:
        config: of the plugin; reads ``propagation``, ``header_type``, ``default_header_type``.
    """
    given: Any = config.get("propagation")
    params: MutableMapping[str, Any] = given if is_given(given) else {}
    if any(is_given(value) for option, value in params.items() if option != "default_format"):
        return params
    if is_given(config.get("default_header_type")):
        params["default_format"] = config["default_header_type"]
    header_type = config.get("header_type")
    if header_type == "ignore":
        default = params.get("default_format")
        params["inject"] = [] if default is None else [default]
    elif is_given(header_type):
        params["extract"] = list(LEGACY_EXTRACT)
        params["inject"] = [PRESERVE] if header_type == PRESERVE else [PRESERVE, header_type]
    return params


def _listed(params: Mapping[str, Any], option: str) -> Sequence[str]:
    """What an option lists; nothing while it is not set (X27)."""
    names = params.get(option)
    if isinstance(names, (list, tuple)):
        return names
    if is_given(names):
        raise ApiError(f"{option} must be a list, not {names!r}")
    return ()


def extract_format(name: str, headers: RequestHeaders, log: Log) -> PropagationContext | None:
    """Read one format; ids in the context have the internal sizes, 16 and 8 bytes (X1).

    Raises:
        ApiError: there is no such format.
        UnguardedError: a header that Kong's code does not guard against.
    """
    context = _format(EXTRACTORS, name)(headers, log)
    if context is not None:
        context.fit_received()
    return context


def extract(
    params: Mapping[str, Any],
    headers: RequestHeaders,
    *,
    plugin: MutableMapping[str, Any],
    log: Log,
    profile: Profile = SAFE,
) -> PropagationContext:
    """Read the headers with the first format in ``extract`` that yields something; empty when none does (X25, X27).

    Args:
        params: see the module.
        headers: of the request.
        plugin: the plugin's context in this request; the format goes to its key ``extracted_from``.
        log: takes the warnings.
        profile: see :class:`Profile`.

    Raises:
        ApiError: a format that does not exist, or an option that is no list.
        UnguardedError: profile ``kong`` only.
    """
    names = _listed(params, "extract")
    if isinstance(headers, Headers) and headers.lacks(CARRIERS) and _EXTRACTED.issuperset(names):
        # Most requests begin a trace: no need to ask each format.
        return PropagationContext()
    for name in names:
        try:
            context = extract_format(name, headers, log)
        except profile.guarded as error:
            log("warn", f"{error}; ignoring.")
            continue
        if context is not None and profile.found(context):
            plugin[EXTRACTED_FROM] = name
            return context
    return PropagationContext()


def clear(params: Mapping[str, Any], headers: RequestHeaders) -> None:
    """Remove the headers in ``clear``.

    Raises:
        ApiError: it is no list.
    """
    for name in _listed(params, "clear"):
        headers.clear(name)


def inject(
    params: Mapping[str, Any],
    context: PropagationContext,
    headers: RequestHeaders,
    *,
    plugin: Mapping[str, Any],
    tracing: TracingContext,
    log: Log,
    profile: Profile = SAFE,
) -> dict[str, str] | None:
    """Write ``context`` in every format in ``inject`` (X25, X27).

    Gives the trace id in every format in which it was written in this request, for the serialised log; None when
    nothing was to be injected or, with an error in the log, when one of the formats could not be (X24).

    Args:
        params: see the module.
        context: what to write; it is not changed.
        headers: of the request.
        plugin: the plugin's context, where :func:`extract` left the format for ``preserve``.
        tracing: of the request; collects the formats.
        log: takes the error.
        profile: see :class:`Profile`.

    Raises:
        ApiError: a format that does not exist, or an option that is no list.
        UnguardedError: profile ``kong`` only.
    """
    published = None
    failures = []
    for listed in _listed(params, "inject"):
        name = _preserved(params, context, plugin) if listed == PRESERVE else listed
        try:
            formats = _format(INJECTORS, name)(context, headers)
        except profile.guarded as error:
            failures.append(str(error))
        else:
            published = tracing.add_trace_id_formats(formats)
    if failures:
        log("error", ", ".join(failures))
        return None
    return published


def _preserved(params: Mapping[str, Any], context: PropagationContext, plugin: Mapping[str, Any]) -> str:
    """The format that ``preserve`` stands for (X26)."""
    default: Any = params.get("default_format")
    name: str = plugin.get(EXTRACTED_FROM) or (default if is_given(default) else DEFAULT_FORMAT)
    return "b3-single" if name == "b3" and is_given(context.single_header) else name


def propagate(
    params: Mapping[str, Any],
    headers: RequestHeaders,
    callback: Callable[..., PropagationContext] | None = None,
    *arguments: Any,
    plugin: MutableMapping[str, Any],
    tracing: TracingContext,
    log: Log,
    profile: Profile = SAFE,
) -> dict[str, str] | None:
    """Extract, call back, clear, inject (X25).

    Args:
        params: see the module.
        headers: of the request; read and changed.
        callback: called with the extracted context and ``arguments``; gives the context to inject, which may be the
            same object, changed. Without one, what was extracted is injected.
        arguments: for the callback.
        plugin: the plugin's context in this request (``kong.ctx.plugin``); key ``extracted_from`` is used.
        tracing: the tracing context of the request.
        log: takes warnings and errors.
        profile: see :class:`Profile`.

    Returns:
        As :func:`inject`: what the log serializer shows as ``trace_id``, or None when it shall not change.

    Raises:
        ApiError: a format that does not exist, or an option that is no list.
        UnguardedError: profile ``kong`` only; headers that were written before stay.
    """
    context = extract(params, headers, plugin=plugin, log=log, profile=profile)
    if callback is not None:
        context = callback(context, *arguments)
    clear(params, headers)
    return inject(params, context, headers, plugin=plugin, tracing=tracing, log=log, profile=profile)


FLAGS: Final = re.compile(r"[ \t-\r]*([+-]?)(?:0[xX]([0-9A-Fa-f]+)|([0-9]+))[ \t-\r]*")
SAMPLED_FLAG: Final = 1


def trace_flags(received: PropagationContext, *, sampled: bool, log: Log, profile: Profile = SAFE) -> int:
    """The flags that log records carry: those received, W3C's before B3's, or-ed with the sampled bit (O15).

    Raises:
        UnguardedError: profile ``kong`` only; ``x-b3-flags`` is not a whole number (H34).
    """
    try:
        flags = received.w3c_flags if received.w3c_flags is not None else _number(received.flags)
    except profile.guarded as error:
        log("warn", f"{error}; ignoring.")
        flags = 0
    return flags | (SAMPLED_FLAG if sampled else 0)


def _number(flags: HeaderValue | None) -> int:
    if flags is None:
        return 0
    number = FLAGS.fullmatch(single("x-b3-flags", flags))
    if number is None:
        raise UnguardedError(f"x-b3-flags header is not a number: {flags!r}")
    sign, hexadecimal, digits = number.groups()
    magnitude = decimal(digits) if digits else int(hexadecimal, 16)
    return -magnitude if sign == "-" else magnitude


def _format(formats: Mapping[str, _Entry], name: str) -> _Entry:
    try:
        return formats[name]
    except KeyError:
        raise ApiError(f"unknown header format {name!r}, expected one of {', '.join(formats)}") from None
