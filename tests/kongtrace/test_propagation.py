"""Trace headers: reading them, writing them, and what a hostile client can do (kong-semantics section 10)."""

import doctest
from dataclasses import replace
from pathlib import Path

import pytest

from kongtrace.context import TracingContext
from kongtrace.errors import ApiError
from kongtrace.propagation import (
    CARRIERS,
    EXTRACTORS,
    INJECTORS,
    KONG,
    SAFE,
    Headers,
    PropagationContext,
    UnguardedError,
    extract,
    extract_format,
    get_plugin_params,
    inject,
    propagate,
    trace_flags,
)

TRACE_ID = bytes.fromhex("0af7651916cd43dd8448eb211c80319c")
SPAN_ID = bytes.fromhex("b7ad6b7169203331")
TRACEPARENT = f"00-{TRACE_ID.hex()}-{SPAN_ID.hex()}-01"
CONTEXT = PropagationContext(trace_id=TRACE_ID, span_id=SPAN_ID, should_sample=True)
ALL_FORMATS = [*EXTRACTORS]


class Log(list[tuple[str, str]]):
    """A log that keeps its lines."""

    def __call__(self, level: str, message: str) -> None:
        self.append((level, message))


def read(name, headers, log=None):
    return extract_format(name, Headers(headers), Log() if log is None else log)


def written(name, context, profile=SAFE):
    headers = Headers()
    inject({"inject": [name]}, context, headers, plugin={}, tracing=TracingContext(), log=Log(), profile=profile)
    return dict(headers.items())


def run(params, headers, callback=None, *arguments, plugin=None, tracing=None, log=None, profile=KONG):
    """Propagate in a fresh request."""
    return propagate(
        params,
        headers,
        callback,
        *arguments,
        plugin={} if plugin is None else plugin,
        tracing=tracing or TracingContext(),
        log=Log() if log is None else log,
        profile=profile,
    )


# What goes in, what goes out


@pytest.mark.parametrize(
    ("name", "headers"),
    [
        ("w3c", {"traceparent": TRACEPARENT}),
        ("b3", {"x-b3-traceid": TRACE_ID.hex(), "x-b3-spanid": SPAN_ID.hex(), "x-b3-sampled": "1"}),
        ("b3-single", {"b3": f"{TRACE_ID.hex()}-{SPAN_ID.hex()}-1"}),
        ("jaeger", {"uber-trace-id": f"{TRACE_ID.hex()}:{SPAN_ID.hex()}:0:01"}),
        (
            "ot",
            {"ot-tracer-traceid": "8448eb211c80319c", "ot-tracer-spanid": SPAN_ID.hex(), "ot-tracer-sampled": "1"},
        ),
        (
            "datadog",
            {
                "x-datadog-trace-id": "9532127138774266268",
                "x-datadog-parent-id": "13235353014750950193",
                "x-datadog-sampling-priority": "1",
            },
        ),
        ("aws", {"x-amzn-trace-id": "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1"}),
        ("gcp", {"x-cloud-trace-context": f"{TRACE_ID.hex()}/13235353014750950193;o=1"}),
        ("instana", {"x-instana-t": TRACE_ID.hex(), "x-instana-s": SPAN_ID.hex(), "x-instana-l": "1"}),
    ],
)
def test_injector_writes_the_headers_of_its_format(name, headers):
    """Each format has its own notation of the same context; ot and datadog have room for half of the trace id."""
    # X15..X23, X32
    assert headers == written(name, CONTEXT)


@pytest.mark.parametrize("decision", [0, ""])
@pytest.mark.parametrize("name", INJECTORS)
def test_every_decision_but_false_is_to_sample(name, decision):
    """Lua takes a number and a text for true, whatever they are."""
    # X15..X23
    assert written(name, CONTEXT) == written(name, replace(CONTEXT, should_sample=decision))


@pytest.mark.parametrize("name", ["jaeger", "ot"])
def test_baggage_is_written_as_text(name):
    """Numbers and booleans have the text that Lua gives them, as keys too."""
    # X18, X19
    prefix = {"jaeger": "uberctx-", "ot": "ot-baggage-"}[name]
    headers = written(name, replace(CONTEXT, baggage={"user": 5, "half": 0.5, "tested": True, 1: "a b"}))
    baggage = {key.removeprefix(prefix): value for key, value in headers.items() if key.startswith(prefix)}
    assert baggage == {"user": "5", "half": "0.5", "tested": "true", "1": "a%20b"}


@pytest.mark.parametrize("name", INJECTORS)
def test_injector_leaves_the_context_as_it_was(name):
    """Several injectors see the same context."""
    # X27
    context = PropagationContext(trace_id=b"\1", span_id=b"\2" * 9, parent_id=b"\3", baggage={"k": "v"}, flags="1")
    before = PropagationContext(trace_id=b"\1", span_id=b"\2" * 9, parent_id=b"\3", baggage={"k": "v"}, flags="1")
    written(name, context)
    assert before == context


@pytest.mark.parametrize(
    ("received", "name", "header", "sent"),
    [
        (8, "b3", "x-b3-traceid", "8448eb211c80319c"),
        (16, "b3", "x-b3-traceid", TRACE_ID.hex()),
        (None, "b3", "x-b3-traceid", TRACE_ID.hex()),
        (4, "b3", "x-b3-traceid", TRACE_ID.hex()),
        (16, "ot", "ot-tracer-traceid", TRACE_ID.hex()),
        (8, "instana", "x-instana-t", "8448eb211c80319c"),
        (8, "w3c", "traceparent", TRACEPARENT),
    ],
)
def test_trace_id_goes_out_in_the_size_in_which_it_came(received, name, header, sent):
    """The received size is kept where the format has it, else the format's default is used."""
    # X14
    context = PropagationContext(
        trace_id=TRACE_ID, span_id=SPAN_ID, should_sample=True, trace_id_original_size=received
    )
    assert sent == written(name, context)[header]


def test_short_jaeger_ids_are_padded_inside():
    """The internal sizes are 16 and 8 bytes; the received size is remembered."""
    # X33
    context = read("jaeger", {"uber-trace-id": "abc:1:0:3"})
    assert (
        PropagationContext(
            trace_id=bytes.fromhex("abc".rjust(32, "0")),
            span_id=bytes.fromhex("1".rjust(16, "0")),
            parent_id=bytes(8),
            reuse_span_id=True,
            should_sample=True,
            trace_id_original_size=2,
        )
        == context
    )


def test_long_datadog_id_is_converted_whatever_its_length():
    """A decimal id longer than Python converts at once keeps its last bytes and its size."""
    # X9
    number = 10**9000 + 7
    context = read("datadog", {"x-datadog-trace-id": "1" + "0" * 8999 + "7"})
    assert (number % 2**128).to_bytes(16, "big") == context.trace_id
    assert (number.bit_length() + 7) // 8 == context.trace_id_original_size


def test_aws_parent_that_is_not_hexadecimal_becomes_other_bytes():
    """Kong checks the length of Parent, not its digits; pairs of digits are converted, the rest is taken as it is."""
    # X10
    context = read("aws", {"x-amzn-trace-id": "Parent=zz0102030405060f"})
    assert context.span_id == b"z\1\2\3\4\5\6\x0f"


@pytest.mark.parametrize(
    "header",
    [
        "2",
        "abc-b7ad6b7169203331-1",
        f"{TRACE_ID.hex()}-b7ad6b716920333",
        f"{TRACE_ID.hex()}-b7ad6b7169203331-1-b7ad6b716920333",
        f"{TRACE_ID.hex()}-b7ad6b7169203331-0123456789abcdef",  # the 0 is taken for the decision
        f"{TRACE_ID.hex()}-b7ad6b7169203331-1\n",
    ],
)
def test_malformed_single_b3_header_carries_no_ids(header):
    """It is logged; the context says that the single header was there."""
    # X5
    log = Log()
    assert read("b3", {"b3": header}, log) == PropagationContext(reuse_span_id=True, single_header=True)
    assert log == [("warn", "b3 single header invalid; ignoring.")]


def test_gcp_span_id_has_up_to_twenty_digits():
    """What does not fit into 8 bytes keeps the last ones; more digits are malformed."""
    # X11
    context = read("gcp", {"x-cloud-trace-context": f"{TRACE_ID.hex()}/{2**64 + 5}"})
    assert (context.span_id, context.should_sample) == (bytes(7) + b"\5", False)
    assert read("gcp", {"x-cloud-trace-context": f"{TRACE_ID.hex()}/{10**20}"}) is None


def test_extracted_baggage_is_read_only():
    """A plugin that wants other baggage sets another mapping."""
    context = read("ot", {"ot-tracer-sampled": "1", "ot-baggage-user": "caf%C3%A9+1"})
    assert context.baggage == {"user": "café 1"}
    with pytest.raises(TypeError):
        context.baggage["user"] = "other"


def test_baggage_that_is_not_utf8_survives():
    """Bytes that are no UTF-8 go out as they came in."""
    context = read("jaeger", {"uber-trace-id": "1:2:0:1", "uberctx-k": "%E2%9C"})
    assert written("jaeger", context)["uberctx-k"] == "%E2%9C"


def test_repeated_baggage_header_is_joined():
    """The values of a repeated header form one list (RFC 9110, 5.3)."""
    context = read("jaeger", {"uber-trace-id": "1:2:0:1", "uberctx-k": ["a", "b"]})
    assert context.baggage == {"k": "a,b"}


# The order of things


@pytest.mark.parametrize("name", EXTRACTORS)
def test_format_looks_first_for_a_header_that_is_known_to_carry_it(name):
    """Where none of these headers is there no format is asked, so each must have nothing to say without them."""
    asked = []

    class Asked(Headers):
        def get(self, name, /):
            asked.append(name)

    assert extract_format(name, Asked({"host": "a"}), pytest.fail) is None
    assert set(asked) <= CARRIERS


def test_first_format_that_yields_something_wins():
    """Extraction follows the list and stops at the first success."""
    # X25
    plugin = {}
    headers = Headers({"traceparent": TRACEPARENT, "uber-trace-id": "1:2:0:1"})
    context = extract({"extract": ["gcp", "jaeger", "w3c"]}, headers, plugin=plugin, log=Log())
    assert ("jaeger", bytes(15) + b"\1") == (plugin["extracted_from"], context.trace_id)


def test_malformed_format_gives_way_to_the_next():
    """A malformed header is logged and ignored."""
    # X2
    log = Log()
    headers = Headers({"traceparent": "00-bad", "uber-trace-id": "1:2:0:1"})
    context = extract({"extract": ["w3c", "jaeger"]}, headers, plugin={}, log=log)
    assert bytes(15) + b"\1" == context.trace_id
    assert log == [("warn", "invalid W3C traceparent header; ignoring.")]


def test_callback_decides_what_is_injected():
    """It gets the extracted context and the further arguments; what it returns goes out."""
    # X25

    def callback(context, span_id):
        assert context.trace_id == TRACE_ID
        context.span_id = span_id
        return context

    headers = Headers({"traceparent": TRACEPARENT})
    run({"extract": ["w3c"], "inject": ["w3c"]}, headers, callback, b"\x11" * 8)
    assert f"00-{TRACE_ID.hex()}-{'11' * 8}-01" == headers.get("traceparent")


def test_headers_are_cleared_before_they_are_injected():
    """A header that is cleared and injected is there afterwards."""
    # X25
    headers = Headers({"traceparent": TRACEPARENT, "tracestate": "a=b", "x-other": "1"})
    run({"extract": ["w3c"], "clear": ["Traceparent", "tracestate"], "inject": ["w3c"]}, headers)
    assert dict(headers.items()) == {"x-other": "1", "traceparent": TRACEPARENT}


@pytest.mark.parametrize(
    ("headers", "default", "sent"),
    [
        ({"uber-trace-id": "1:2:0:1"}, "w3c", "uber-trace-id"),
        ({"b3": f"{TRACE_ID.hex()}-{SPAN_ID.hex()}-1"}, "w3c", "b3"),
        ({"x-b3-traceid": TRACE_ID.hex(), "x-b3-spanid": SPAN_ID.hex()}, "w3c", "x-b3-traceid"),
        ({}, "gcp", "x-cloud-trace-context"),
        ({}, None, "traceparent"),
    ],
)
def test_preserve_is_the_received_format_or_the_default_or_w3c(headers, default, sent):
    """`preserve` answers in the format, and for b3 in the form, in which the context came."""
    # X26
    request = Headers(headers)
    params = {"extract": ["b3", "jaeger"], "inject": ["preserve"], "default_format": default}

    def callback(context):
        context.trace_id, context.span_id = TRACE_ID, SPAN_ID
        return context

    for name in headers:
        params.setdefault("clear", []).append(name)
    run(params, request, callback)
    assert sent in dict(request.items())


def test_failed_injectors_are_logged_together_and_nothing_is_published():
    """The other formats are written, and their ids are published by the next plugin of the request."""
    # X24, X31
    log, tracing, headers = Log(), TracingContext(), Headers()
    context = PropagationContext(trace_id=TRACE_ID)
    arguments = {"plugin": {}, "tracing": tracing, "log": log}
    published = inject({"inject": ["w3c", "datadog", "ot"]}, context, headers, **arguments)
    assert published is None
    assert log == [
        (
            "error",
            (
                "w3c injector context is invalid: field span_id not found in context, "
                "ot injector context is invalid: field span_id not found in context"
            ),
        )
    ]
    assert headers.get("x-datadog-trace-id") == "9532127138774266268"
    assert {"datadog": "9532127138774266268", "gcp": TRACE_ID.hex()} == inject(
        {"inject": ["gcp"]}, CONTEXT, headers, **arguments
    )


def test_nothing_is_done_without_parameters():
    """Unset lists switch their step off."""
    # X27
    headers = Headers({"traceparent": TRACEPARENT})
    assert run({"extract": None, "clear": None, "inject": None}, headers) is None
    assert dict(headers.items()) == {"traceparent": TRACEPARENT}


@pytest.mark.parametrize("params", [{"extract": ["b3-single"]}, {"inject": ["zipkin"]}])
def test_unknown_format_is_named(params):
    """The mistake of a configuration is an error that lists the formats."""
    with pytest.raises(ApiError, match=r"^unknown header format '(b3-single|zipkin)', expected one of w3c, b3, "):
        run(params, Headers())


@pytest.mark.parametrize("default", ["", "zipkin"])
def test_default_format_that_is_none_is_named_when_it_is_asked_for(default):
    """An empty one too: only an unset one stands for w3c."""
    # X26
    params = {"extract": ["jaeger"], "inject": ["preserve"], "default_format": default}
    run(params, Headers({"uber-trace-id": "1:2:0:1"}))
    with pytest.raises(ApiError, match=f"^unknown header format '{default}', expected one of w3c, b3, "):
        run(params, Headers())


@pytest.mark.parametrize("given", ["traceparent", "", 0, True, {"a": "w3c"}])
@pytest.mark.parametrize("option", ["extract", "clear", "inject"])
def test_option_that_is_no_list_is_named(option, given):
    """A single name, above all, is no list of its letters."""
    # X27, X28
    with pytest.raises(ApiError, match=f"^{option} must be a list, not "):
        run({option: given}, Headers({"traceparent": TRACEPARENT}))


@pytest.mark.parametrize(
    ("single_header", "sent"), [(None, "x-b3-traceid"), (False, "x-b3-traceid"), (True, "b3"), (0, "b3")]
)
def test_single_header_is_answered_when_anything_but_false_says_so(single_header, sent):
    """The callback may say it with any value that Lua takes for true."""
    # X26
    headers = Headers()
    params = {"inject": ["preserve"], "default_format": "b3"}
    run(params, headers, lambda _: replace(CONTEXT, single_header=single_header))
    assert sent in dict(headers.items())


# Legacy options


@pytest.mark.parametrize(
    ("config", "params"),
    [
        ({}, {}),
        ({"header_type": "preserve"}, {"extract": [*EXTRACTORS], "inject": ["preserve"]}),
        ({"header_type": "jaeger"}, {"extract": [*EXTRACTORS], "inject": ["preserve", "jaeger"]}),
        ({"header_type": "ot", "propagation": False}, {"extract": [*EXTRACTORS], "inject": ["preserve", "ot"]}),
        (
            {"header_type": "ignore", "default_header_type": "ot"},
            {"default_format": "ot", "inject": ["ot"]},
        ),
        (
            {"header_type": "ignore", "propagation": {"default_format": "gcp"}},
            {"default_format": "gcp", "inject": ["gcp"]},
        ),
        ({"header_type": "b3", "propagation": {"clear": []}}, {"clear": []}),
        (
            {"header_type": None, "propagation": {"clear": None, "default_format": "w3c"}},
            {"clear": None, "default_format": "w3c"},
        ),
    ],
)
def test_legacy_options_become_parameters(config, params):
    """`header_type` counts unless one of extract, clear and inject is set."""
    # X29
    converted = get_plugin_params(config)
    if "extract" in params:
        assert sorted(params["extract"]) == sorted(converted["extract"])
        assert converted["extract"][:2] == ["b3", "w3c"]
    assert {**params, "extract": None} == {**converted, "extract": None}


def test_legacy_options_are_converted_once():
    """The result stands in the plugin's own configuration."""
    # X29
    config = {"header_type": "jaeger", "propagation": {"default_format": "w3c"}}
    params = get_plugin_params(config)
    assert params is config["propagation"]
    config["header_type"] = "ignore"
    assert get_plugin_params(config)["inject"] == ["preserve", "jaeger"]


# Hazards, in both profiles


@pytest.mark.parametrize(
    ("name", "headers", "message"),
    [
        ("datadog", {"x-datadog-trace-id": ["1", "2"]}, "x-datadog-trace-id header repeated; ignoring."),
        ("datadog", {"x-datadog-parent-id": ["1", "2"]}, "x-datadog-parent-id header repeated; ignoring."),
        (
            "instana",
            {"x-instana-t": TRACE_ID.hex(), "x-instana-s": SPAN_ID.hex(), "x-instana-l": ["1", "1"]},
            "x-instana-l header repeated; ignoring.",
        ),
        ("b3", {"x-b3-traceid": ["0"] * 16}, "x-b3-traceid header repeated; ignoring."),
        ("ot", {"ot-tracer-spanid": ["0"] * 16}, "ot-tracer-spanid header repeated; ignoring."),
    ],
)
def test_unguarded_header_breaks_the_request_in_profile_kong_alone(name, headers, message):
    """Profile `safe` logs and ignores what raises in Kong."""
    # H34
    log = Log()
    params = {"extract": [name, "w3c"]}
    request = Headers({**headers, "traceparent": TRACEPARENT})
    with pytest.raises(UnguardedError):
        extract(params, request, plugin={}, log=log, profile=KONG)
    assert extract(params, request, plugin={}, log=log, profile=SAFE).trace_id == TRACE_ID
    assert [("warn", message)] == log


def test_instana_without_ids_breaks_the_request_in_profile_kong_alone():
    """Profile `safe` reports it as it does for the other formats."""
    # X23
    params = {"inject": ["instana"]}
    log = Log()
    with pytest.raises(UnguardedError):
        run(params, Headers(), profile=KONG, log=log)
    assert run(params, Headers(), profile=SAFE, log=log) is None
    assert log == [("error", "instana injector context is invalid: field trace_id not found in context")]


@pytest.mark.parametrize("profile", [KONG, SAFE])
def test_repeated_b3_flags_go_on_as_they_came(profile):
    """Only the decision of a single one is understood, but all of them are passed on, each in a line of its own."""
    # X6, X16
    log, request = (
        Log(),
        Headers({"x-b3-flags": ["1", "1"], "x-b3-traceid": TRACE_ID.hex(), "x-b3-spanid": SPAN_ID.hex()}),
    )
    run({"extract": ["b3"], "inject": ["b3", "w3c"]}, request, profile=profile, log=log)
    assert log == [("warn", "x-b3-flags header invalid; ignoring.")]
    assert [value for name, value in request.lines() if name == "x-b3-flags"] == ["1", "1"]
    assert request.get("traceparent") == f"00-{TRACE_ID.hex()}-{SPAN_ID.hex()}-00"


def test_header_that_is_set_to_a_list_has_a_line_for_each():
    """The list stays its owner's."""
    values, headers = ["1", "2"], Headers({"x-a": "0"})
    headers.set("X-A", values)
    headers.add("x-a", "3")
    assert headers.lines() == [("x-a", "1"), ("x-a", "2"), ("x-a", "3")]
    assert values == ["1", "2"]


def test_a_character_of_baggage_may_be_half_escaped():
    """It is the text that its bytes are."""
    # X8
    headers = Headers({"ot-tracer-traceid": SPAN_ID.hex(), "ot-baggage-city": "%C3\udca9ze"})
    assert extract_format("ot", headers, Log()).baggage == {"city": "éze"}


@pytest.mark.parametrize(
    ("profile", "found", "sent"),
    [(KONG, "b3", {"x-b3-sampled": "0"}), (SAFE, "w3c", {})],
)
def test_b3_before_w3c_loses_the_trace_in_profile_kong_alone(profile, found, sent):
    """Any tracestate makes b3 succeed with nothing in it; profile `safe` looks further."""
    # H33, X13
    plugin = {}
    received = {"traceparent": TRACEPARENT, "tracestate": "rojo=1"}
    headers = Headers(received)
    params = {"extract": ["b3", "w3c"], "inject": ["preserve"]}
    run(params, headers, plugin=plugin, profile=profile)
    assert found == plugin["extracted_from"]
    assert received | sent == dict(headers.items())


@pytest.mark.parametrize(
    ("received", "sampled", "flags"),
    [
        (PropagationContext(), True, 1),
        (PropagationContext(), False, 0),
        (PropagationContext(w3c_flags=2, flags="1"), True, 3),
        (PropagationContext(w3c_flags=1), False, 1),
        (PropagationContext(flags="1"), False, 1),
        (PropagationContext(flags=" 0x10 "), True, 17),
        (PropagationContext(flags="-6"), True, -5),
        (PropagationContext(flags="+" + 6_000 * "0" + "6"), True, 7),
    ],
)
def test_flags_of_log_records_are_the_received_ones_and_the_sampled_bit(received, sampled, flags):
    """W3C flags come before b3 flags; a sampled bit that was received is never cleared."""
    # O15
    assert flags == trace_flags(received, sampled=sampled, log=Log(), profile=KONG)


@pytest.mark.parametrize("flags", ["d", "", "1 1", "0x", ["1", "1"]])
def test_b3_flags_that_are_no_number_break_the_request_in_profile_kong_alone(flags):
    """Profile `safe` logs them and takes 0."""
    # H34, O15
    received, log = PropagationContext(flags=flags), Log()
    with pytest.raises(UnguardedError):
        trace_flags(received, sampled=True, log=log, profile=KONG)
    assert trace_flags(received, sampled=True, log=log, profile=SAFE) == 1
    assert [(level, message.endswith("ignoring.")) for level, message in log] == [("warn", True)]


# Headers


def test_header_is_found_in_any_case_and_with_underscores():
    """A `_` in the wanted name finds a `-`; a `_` in a name that was sent stays."""
    headers = Headers([("X-B3-TraceId", "1"), ("x_other", "2")])
    assert [headers.get(name) for name in ("x-b3-traceid", "X-B3-TRACEID", "x_b3_traceid", "x_other", "x-other")] == [
        "1",
        "1",
        "1",
        "2",
        None,
    ]


def test_letters_beyond_ascii_have_no_other_case_in_the_name_of_a_header():
    """A name is bytes, of which only A to Z have a lower case: the sign of Kelvin is no `k`, and `É` no `é`."""
    # X7, X8
    headers = Headers([("x-\u212aey", "1"), ("X-É", "2"), ("h", "3"), ("Y-É", "4")], seen_max=3)
    assert [headers.get(name) for name in ("x-key", "x-\u212aey", "x-é", "x-É", "X_É")] == [None, "1", None, "2", "2"]
    for name in ("x-key", "y-é"):
        headers.clear(name)
        headers.set(name, "5")
    assert headers.lines() == [
        *(("x-\u212aey", "1"), ("x-É", "2"), ("h", "3"), ("x-key", "5"), ("y-é", "5")),
        ("y-É", "4"),
    ]


def test_key_of_baggage_keeps_its_letters_beyond_ascii():
    """What the client calls it is what the service reads."""
    # X8
    headers = Headers({"OT-Tracer-Sampled": "1", "OT-Baggage-ÉA": "v"})
    assert extract_format("ot", headers, Log()).baggage == {"Éa": "v"}


def test_repeated_header_is_a_list():
    """Values are kept in the order in which they came, equal ones too."""
    headers = Headers([("a", "1"), ("b", "2"), ("A", "1"), ("a", "3")])
    assert headers.get("a") == ["1", "1", "3"]
    assert list(headers.lines()) == [("a", "1"), ("a", "1"), ("a", "3"), ("b", "2")]


def test_setting_a_header_replaces_all_its_lines():
    """Setting and clearing are for the name, however often and wherever it was sent."""
    headers = Headers([("a", "1"), ("a", "2"), ("a", "3"), ("b", "4")], seen_max=2)
    headers.set("A", "5")
    assert list(headers.lines()) == [("a", "5"), ("b", "4")]
    headers.clear("B")
    headers.clear("not-there")
    assert list(headers.lines()) == [("a", "5")]


def test_headers_after_the_hundredth_are_passed_on_unseen():
    """Kong looks at the first 100 header lines."""
    # X30
    headers = Headers([(f"x-{number}", "") for number in range(100)] + [("traceparent", TRACEPARENT)])
    assert headers.get("traceparent") is None
    assert extract({"extract": ALL_FORMATS}, headers, plugin={}, log=Log()) == PropagationContext()
    assert ("traceparent", TRACEPARENT) in list(headers.lines())


def test_examples_of_the_users_page_run():
    """What the documentation shows is what happens."""
    page = Path(__file__).parents[2] / "docs" / "propagation.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert (result.failed, result.attempted > 0) == (0, True)
