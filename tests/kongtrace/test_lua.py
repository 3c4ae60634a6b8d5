import pytest

from kongtrace.errors import BookkeepingError
from kongtrace.lua import (
    is_given,
    is_number,
    is_table,
    is_text,
    lua_format,
    lua_length,
    lua_lower,
    lua_table,
    lua_text,
    lua_type,
)


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        (None, set()),
        (False, set()),
        (True, {"given"}),
        (0, {"given", "number"}),
        (0.5, {"given", "number"}),
        ("", {"given", "text"}),
        (b"", {"given", "text"}),
        ([], {"given", "table"}),
        ({}, {"given", "table"}),
    ],
)
def test_a_value_has_the_kind_that_lua_gives_it(value, kinds):
    """Only nil and false are false, and a boolean is no number."""
    questions = {"given": is_given, "number": is_number, "text": is_text, "table": is_table}

    assert {kind for kind, is_one in questions.items() if is_one(value)} == kinds


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "nil"), (True, "true"), (1e15, "1e+15"), (3, "3"), (0.1, "0.1"), (b"\xff", "\udcff"), ("a", "a")],
)
def test_a_value_has_the_text_that_lua_gives_it(value, text):
    """Numbers have 14 digits."""
    assert lua_text(value) == text


@pytest.mark.parametrize(
    ("text", "lower"), [("X-Trace_1", "x-trace_1"), ("AÉ\udcc9Z", "aÉ\udcc9z"), ("\u212aEY", "\u212aey"), ("", "")]
)
def test_only_the_letters_from_a_to_z_have_a_lower_case(text, lower):
    """Lua compares bytes: a letter beyond ASCII stays, and none becomes one of ASCII, as the sign of Kelvin does."""
    assert lua_lower(text) == lower


def test_functions_have_the_word_that_lua_has_for_them():
    """Other types keep Python's."""
    assert (lua_type(print), lua_type(1j)) == ("function", "complex")


def test_a_list_is_a_table_with_the_keys_from_one():
    """It can take further keys then, and the list is left alone."""
    assert lua_table(["a", "b"]) == {1: "a", 2: "b"}


@pytest.mark.parametrize(("table", "length"), [([7, 7], 2), ({1: "a", 2: "b", 4: "d"}, 2), ({"n": 3}, 0)])
def test_the_length_of_a_table_is_how_many_numbers_from_one_are_keys(table, length):
    """Other keys do not count."""
    assert lua_length(table) == length


@pytest.mark.parametrize("value", [7, 0.5, print])
def test_what_is_no_table_has_no_length(value):
    """The text is Lua's."""
    with pytest.raises(BookkeepingError, match="attempt to get length of a "):
        lua_length(value)


def test_a_template_takes_its_arguments_in_their_order():
    """A percent sign is doubled."""
    assert lua_format("%s: %d of %5.1f, 100%%", ("q", 3, 0.25)) == "q: 3 of   0.2, 100%"


@pytest.mark.parametrize("directive", ["%q", "%5q", "%a", "%.2A", "%p", "%F"])
def test_a_directive_that_luajit_has_takes_an_argument(directive):
    """Though Python has no such one."""
    assert lua_format(f"{directive} %d", (3, 4)).endswith(" 4")
    with pytest.raises(BookkeepingError, match=r"^bad argument #3 to 'format' \(value expected\)$"):
        lua_format(f"{directive} %d", (3,))


@pytest.mark.parametrize(
    ("template", "message"),
    [("%y", "invalid option '%y' to 'format'"), ("%d", "#2 to 'format' (value"), ("%d%d", "#3 to 'format' (value")],
)
def test_a_template_that_lua_refuses_is_refused(template, message):
    """An unknown directive, or one without an argument."""
    with pytest.raises(BookkeepingError) as refused:
        lua_format(template, (1,) if template == "%d%d" else ())
    assert message in str(refused.value)
