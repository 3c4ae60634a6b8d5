import json

import pytest

from kongtrace import Execution
from sim.pdk.request import ClientRequest
from sim.plugin_error import described, place_of


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
