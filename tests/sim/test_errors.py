import json

import pytest

from kongtrace import Execution
from sim.errors import SHOWN_MAX, UserError, described, nearest, place_of, shown
from sim.pdk.request import ClientRequest


def test_user_error_names_place_field_expectation_and_cure_in_one_line():
    """The text reads FILE:LINE: FIELD: message; cure."""
    error = UserError("expected a rate", file="a.yaml", line=3, field="load[0].rate", cure="write 500/s")

    assert str(error) == "a.yaml:3: load[0].rate: expected a rate; write 500/s"


def test_user_error_leaves_out_what_is_unknown():
    """A message alone is the whole text."""
    assert str(UserError("no scenario given")) == "no scenario given"
    assert str(UserError("no such file", file="a.yaml")) == "a.yaml: no such file"


def test_user_error_is_one_line_whatever_it_quotes():
    """A line break in any part becomes a blank."""
    assert str(UserError("not\nYAML", file="a.yaml", cure="mend\r\nit")) == "a.yaml: not YAML; mend it"


def test_user_error_does_not_steer_the_terminal():
    """Control characters of a file, such as those in a field's name, are replaced."""
    assert str(UserError("unknown field", file="a.yaml", field="\x1b[31m\x9bJ")) == "a.yaml: �[31m�J: unknown field"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "nothing"), (True, "true"), ({"a": 1}, "a mapping"), ([], "an empty list"), ("5s", "'5s'"), (5, "5")],
)
def test_shown_uses_the_words_of_yaml(value, text):
    """A user sees what stands in the file, not what Python makes of it."""
    assert shown(value) == text


def test_shown_is_short():
    """A long value is cut."""
    assert len(shown("x" * 500)) == SHOWN_MAX


def test_nearest_offers_the_likely_word_or_all():
    """A misspelling is mended; what resembles nothing gets the list."""
    assert nearest("servces", ["services", "routes"]) == "did you mean services?"
    assert nearest("zzz", ["services", "routes"]) == "known here: services, routes"
    assert nearest("zzz", []) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda: int("x"),
        lambda: json.loads("{"),
        lambda: ClientRequest(Execution()).get_method(),
        lambda: sorted([2, 1], key=lambda number: number / 0),
    ],
    ids=["builtin", "library", "gateway", "called back"],
)
def test_place_of_an_error_is_the_innermost_line_of_the_user(function):
    """Not one of what the user has called, be it Python's own or the gateway's."""
    with pytest.raises(Exception) as caught:
        function()

    assert place_of(caught.value) == f"{__file__}:{function.__code__.co_firstlineno}"


def test_error_that_was_never_raised_has_no_place():
    """A question mark stands there."""
    assert place_of(ValueError()) == "?"


@pytest.mark.parametrize(("target", "cure"), [({}, '; write ["x"]'), ("", "")])
def test_field_of_a_mapping_is_told_to_be_a_key(target, cure):
    """Who comes from Lua writes `ngx.ctx.x`; of what has no keys nothing is said."""
    with pytest.raises(AttributeError) as caught:
        print(target.x)

    assert described(caught.value) == f"AttributeError: {caught.value}{cure}"


def test_place_is_the_users_own_line_and_not_that_of_a_library():
    """Though the library raises, and is no part of this program."""
    library, own = {"__name__": "library"}, {"__name__": "shop"}
    exec(compile("def parse():\n    raise ValueError", "/lib/site-packages/library.py", "exec"), library)
    exec(compile("def access():\n\n    parse()", "/srv/shop.py", "exec"), own | {"parse": library["parse"]}, own)
    with pytest.raises(ValueError) as raised:
        _called(own["access"], library["parse"])
    assert place_of(raised.value) == "/srv/shop.py:3"


def _called(access, parse):
    access.__globals__["parse"] = parse
    access()


def test_exception_whose_text_cannot_be_made_is_described_all_the_same():
    """Its text is made by the plugin's own code."""

    class MuteError(Exception):
        def __str__(self):
            raise KeyError("text")

    assert described(MuteError()) == "MuteError, whose text cannot be made"
