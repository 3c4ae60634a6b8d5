"""What the names of a header section tell: the same whatever was seen before, and in bounded memory."""

from hypothesis import given
from hypothesis import strategies as st

from sim.outline import (
    FORWARDING,
    HOP_BY_HOP,
    LINES_MAX,
    NAMES_BYTES_MAX,
    NOT_FORWARDED,
    NOT_RETURNED,
    OUTLINES_MAX,
    names_of,
    request_outlines,
    response_outlines,
)

WORDS = sorted(FORWARDING | HOP_BY_HOP | {b"host", b"content-length", b"date", b"x-kong-request-id", b"accept", b"a"})
NAMES = st.lists(st.sampled_from(WORDS).flatmap(lambda name: st.sampled_from([name, name.title()])), max_size=6)


@given(st.lists(NAMES, max_size=4))
def test_request_passes_on_what_ends_nowhere_and_notes_what_concerns_the_gateway(sections):
    """Each line is judged by its name in any case, in a memo that has seen others."""
    for names in sections:
        outline = request_outlines[names_of([(name, b"") for name in names])]

        assert outline.passed == tuple(name.lower() not in NOT_FORWARDED for name in names)
        assert all(names[place].lower() == name for place, name in outline.noted)
        noted = {place for place, _name in outline.noted}
        assert all(place in noted for place, name in enumerate(names) if name.lower() in FORWARDING | {b"host"})
        assert outline.has_options == any(name.lower().endswith(b"connection") for name in names)


@given(st.lists(NAMES, max_size=4))
def test_response_gives_back_what_concerns_no_connection_and_knows_its_frame(sections):
    """Length, codings, options and date are found wherever they stand, in any case."""
    for names in sections:
        outline = response_outlines[tuple(names)]
        lower = [name.lower() for name in names]

        assert outline.passed == tuple(name not in NOT_RETURNED for name in lower)
        assert [lower[place] for place in outline.codings] == [b"transfer-encoding"] * lower.count(b"transfer-encoding")
        assert [lower[place] for place in outline.options] == [b"connection"] * lower.count(b"connection")
        assert outline.has_length == (b"content-length" in lower)
        assert outline.has_date == (b"date" in lower)
        assert outline.is_framed == (b"content-length" in lower or b"transfer-encoding" in lower)


def test_same_names_have_one_outline():
    """What was worked out once is not worked out again."""
    assert request_outlines[(b"Host", b"A")] is request_outlines[(b"Host", b"A")]
    assert request_outlines[(b"host", b"A")] is not request_outlines[(b"Host", b"A")]


def test_client_that_sends_ever_new_names_fills_no_memory():
    """Only so many sequences are remembered, and none that is long."""
    request_outlines.clear()
    for number in range(3 * OUTLINES_MAX):
        request_outlines[(b"Host", b"%d" % number)]
        assert len(request_outlines) <= OUTLINES_MAX
    request_outlines.clear()
    many = (b"a",) * (LINES_MAX + 1)
    long = (b"a" * (NAMES_BYTES_MAX + 1),)

    assert request_outlines[many].passed == (True,) * len(many)
    assert request_outlines[long].passed == (True,)
    assert not request_outlines
