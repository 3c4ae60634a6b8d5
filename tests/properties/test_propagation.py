"""What holds for every context and every client: round trips, and survival."""

import re
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kongtrace.context import TracingContext
from kongtrace.propagation import (
    EXTRACTORS,
    INJECTORS,
    KONG,
    PROFILES,
    SAFE,
    Headers,
    PropagationContext,
    UnguardedError,
    extract,
    extract_format,
    inject,
    propagate,
)


def silent(_level, _message):
    """A log that nobody reads."""


def ids(size):
    return st.binary(min_size=size, max_size=size).filter(any)


def any_text():
    """Header text as it comes from any bytes."""
    return st.binary(max_size=60).map(lambda octets: octets.decode(errors="surrogateescape"))


# A field name of HTTP, in lower case as it is after a round trip.
BAGGAGE_KEYS = st.from_regex(r"[a-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True)

CONTEXTS = st.builds(
    PropagationContext,
    trace_id=ids(16),
    span_id=ids(8),
    parent_id=st.none() | ids(8),
    should_sample=st.sampled_from([None, True, False]),
    baggage=st.none() | st.dictionaries(BAGGAGE_KEYS, any_text(), min_size=1, max_size=3),
    trace_id_original_size=st.sampled_from([None, 8, 16]),
)


@dataclass(frozen=True)
class Carries:
    """What survives in a format; ids always do."""

    sizes: tuple[int, ...]  # of the trace id, bytes; the default first
    undecided: bool | None  # what "no decision" becomes
    parent: bool = False
    baggage: bool = False
    zeros: bool = True  # whether a trace id of zeros is taken for one


FORMATS = {
    "w3c": Carries((16,), undecided=False),
    "b3": Carries((16, 8), undecided=False, parent=True),
    "b3-single": Carries((16, 8), undecided=None, parent=True),
    "jaeger": Carries((16, 8), undecided=False, parent=True, baggage=True, zeros=False),
    "ot": Carries((8, 16), undecided=None, baggage=True),
    "datadog": Carries((8,), undecided=None, zeros=False),
    "aws": Carries((16,), undecided=False),
    "gcp": Carries((16,), undecided=False),
    "instana": Carries((16, 8), undecided=False),
}

TRACE_HEADERS = sorted(
    {
        *("traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled"),
        *("x-b3-flags", "uber-trace-id", "uberctx-k", "ot-tracer-traceid", "ot-tracer-spanid", "ot-tracer-sampled"),
        *("ot-baggage-k", "x-datadog-trace-id", "x-datadog-parent-id", "x-datadog-sampling-priority"),
        *("x-amzn-trace-id", "x-cloud-trace-context", "x-instana-t", "x-instana-s", "x-instana-l"),
    }
)

PLAUSIBLE = st.text("0123456789abcdefABCDEFdn=;:-/+% \n\x85Root1Parent", max_size=60) | st.sampled_from(
    [
        "1",
        "0",
        "d",
        "-1",
        "true",
        "b3=1",
        "0" * 32,
        "0af7651916cd43dd8448eb211c80319c",
        "b7ad6b7169203331",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "0af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0:1",
        "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1",
        "0af7651916cd43dd8448eb211c80319c/99999999999999999999;o=1",
        "9" * 5000,
    ]
)
VALUES = any_text() | PLAUSIBLE
ANY_HEADERS = st.dictionaries(
    st.sampled_from(TRACE_HEADERS),
    VALUES | st.lists(VALUES, min_size=2, max_size=3) | st.lists(VALUES, min_size=16, max_size=16),
    max_size=8,
)
ANY_PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "extract": st.lists(st.sampled_from([*EXTRACTORS]), max_size=4) | st.none(),
        "inject": st.lists(st.sampled_from(["preserve", *INJECTORS]), max_size=4) | st.none(),
        "clear": st.lists(st.sampled_from(TRACE_HEADERS), max_size=3) | st.none(),
        "default_format": st.sampled_from([*INJECTORS]),
    },
)


def test_every_format_has_its_round_trip():
    """A new format needs a line in the table above."""
    assert FORMATS.keys() == INJECTORS.keys()


@pytest.mark.parametrize("name", FORMATS)
@given(sent=CONTEXTS)
def test_what_is_injected_is_extracted(name, sent):
    """A format gives back what it can carry, and nothing else."""
    carries = FORMATS[name]
    # A parent right after the span id looks like a decision when it begins with one (X5).
    assume(name != "b3-single" or sent.should_sample is not None or (sent.parent_id or b"\xff").hex()[0] not in "01d")
    size = sent.trace_id_original_size if sent.trace_id_original_size in carries.sizes else carries.sizes[0]
    # Where a trace id of zeros is none, the half that is sent must not be all zero.
    assume(carries.zeros or any(sent.trace_id[-size:]))
    headers = Headers()
    inject({"inject": [name]}, sent, headers, plugin={}, tracing=TracingContext(), log=silent, profile=KONG)
    received = extract_format(name.removesuffix("-single"), Headers(headers.lines()), silent)
    assert received.trace_id == sent.trace_id[-size:].rjust(16, b"\0")
    assert received.span_id == sent.span_id
    assert received.should_sample == (carries.undecided if sent.should_sample is None else sent.should_sample)
    nobody = bytes(8) if name == "jaeger" else None
    assert received.parent_id == ((sent.parent_id or nobody) if carries.parent else None)
    assert received.baggage == (sent.baggage if carries.baggage else None)


@pytest.mark.parametrize("name", ["b3", "b3-single"])
@given(sent=CONTEXTS)
def test_debug_flag_of_b3_forces_the_decision(name, sent):
    """The flag travels in both forms and means "sampled" to the receiver."""
    headers = Headers()
    flagged = replace(sent, flags="1")
    inject({"inject": [name]}, flagged, headers, plugin={}, tracing=TracingContext(), log=silent)
    received = extract_format("b3", headers, silent)
    assert (received.flags, received.should_sample) == ("1", True)


@pytest.mark.parametrize("name", EXTRACTORS)
@given(headers=ANY_HEADERS)
def test_extraction_survives_every_client(name, headers):
    """Profile `safe` never raises; profile `kong` only where Kong does. Ids always have their internal sizes."""
    params = {"extract": [name]}
    context = extract(params, Headers(headers), plugin={}, log=silent, profile=SAFE)
    sizes = {"trace_id": 16, "span_id": 8, "parent_id": 8}
    assert all(len(getattr(context, name) or bytes(size)) == size for name, size in sizes.items())
    try:
        faithful = extract(params, Headers(headers), plugin={}, log=silent, profile=KONG)
    except UnguardedError:
        assert context == PropagationContext()
    else:
        assert context in (faithful, PropagationContext())


@given(headers=ANY_HEADERS, params=ANY_PARAMS, outgoing=st.none() | CONTEXTS)
def test_propagation_never_loses_the_request(headers, params, outgoing):
    """Whatever the client sent: no exception, and the headers that are not of tracing pass unchanged."""
    request = Headers({**headers, "host": "example.org", "x-other": ["1", "2"]})

    def callback(extracted):
        return extracted if outgoing is None else outgoing

    propagate(params, request, callback, plugin={}, tracing=TracingContext(), log=silent, profile=SAFE)
    remaining = list(request.lines())  # those that nobody has seen, behind so many others, pass too
    others = [line for line in remaining if line[0] in {"host", "x-other"}]
    assert others == [("host", "example.org"), ("x-other", "1"), ("x-other", "2")]
    removed = set(params.get("clear") or ())
    assert headers.keys() - removed <= {name for name, _ in remaining}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@given(headers=ANY_HEADERS, sent=CONTEXTS, names=st.lists(st.sampled_from([*INJECTORS]), min_size=1, unique=True))
def test_complete_context_is_written_in_every_format(profile, headers, sent, names):
    """With both ids set nothing fails, and the published ids are those in the headers."""
    request = Headers(headers)
    published = inject(
        {"inject": names}, sent, request, plugin={}, tracing=TracingContext(), log=silent, profile=profile
    )
    assert published.keys() == {name.removesuffix("-single") for name in names}
    written = " ".join(value for _, value in request.lines()).replace("Root=1-", "").replace("-", "")
    assert all(re.search(re.escape(identifier), written) for identifier in published.values())


@given(lines=st.lists(st.tuples(st.text("aAkKÉé\u212a-_", min_size=1, max_size=2), any_text()), max_size=12))
def test_headers_pass_on_every_line(lines):
    """No line is lost, and lines of one name keep their order; names that differ in case are one, as bytes are."""
    passed = list(Headers(lines, seen_max=8).lines())
    assert len(passed) == len(lines)
    sent = [(name.encode().lower().decode(), value) for name, value in lines]
    for one in {name for name, _ in sent}:
        assert [value for name, value in sent if name == one] == [value for name, value in passed if name == one]
