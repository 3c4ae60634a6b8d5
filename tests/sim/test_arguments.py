"""What plugins hand over is written as Kong writes it: the texts are LuaJIT's."""

import pytest

from sim.arguments import checked_args, checked_header, encoded_args

NUMBERS = {
    2.0: "2",
    0.1 + 0.2: "0.3",
    1.5: "1.5",
    10**14: "1e+14",
    10**20: "1e+20",
    12_345_678_901_234: "12345678901234",
    1e-5: "1e-05",
    float("inf"): "inf",
    -0.0: "-0",
}


@pytest.mark.parametrize(("number", "text"), NUMBERS.items())
def test_number_in_a_header_or_an_argument_is_written_as_lua_writes_it(number, text):
    """`tostring` of it, with 14 digits: a whole number has no point, and no sum shows its last bits."""
    assert checked_header("X", [number, number]) == [text, text]
    assert encoded_args(checked_args({"a": [number]})) == f"a={text.replace('+', '%2B')}"


def test_boolean_in_a_header_is_a_word_and_in_an_argument_its_presence():
    """As in Kong: `ngx.encode_args` writes a name alone for true, and nothing for false."""
    assert checked_header("X", [True, False]) == ["true", "false"]
    assert encoded_args(checked_args({"a": True, "b": False})) == "a"
