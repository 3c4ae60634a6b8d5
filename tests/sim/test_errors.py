import pytest

from sim.errors import SHOWN_MAX, UserError, nearest, shown


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
