"""JSON that plugins send is that of Kong: what is expected here was written by lua-cjson 2.1.0, numbers by `%.16g`."""

import math

import pytest

from sim.arguments import encoded_json
from sim.cjson import DEPTH_MAX, decode, encode
from sim.framing import octets
from sim.pdk.response import error_body


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"n": 2.0, "m": [1, -0.0, 1.5, 0.1 + 0.2]}, b'{"n":2,"m":[1,-0,1.5,0.3]}'),
        ([10**15, 2**53, 10**16, 1e300, 1e-5], b"[1000000000000000,9007199254740992,1e+16,1e+300,1e-05]"),
        ({"a": True, "b": False, "c": None}, b'{"a":true,"b":false,"c":null}'),
        ({1: "x", 1.5: "y", 2.0: "z"}, b'{"1":"x","1.5":"y","2":"z"}'),
        ({}, b"{}"),
        ([[], (1, 2), {"a": []}], b'[[],[1,2],{"a":[]}]'),
        ("\xe9\U0001f600\u2028", b'"\xc3\xa9\xf0\x9f\x98\x80\xe2\x80\xa8"'),
        ("a/b\\\"'<", rb'''"a\/b\\\"'<"'''),
        ("\x00\x07\b\t\n\v\f\r\x1f\x7f", rb'"\u0000\u0007\b\t\n\u000b\f\r\u001f\u007f"'),
        (b"caf\xe9", b'"caf\xe9"'),
        ({b"k\xff": b"caf\xe9".decode(errors="surrogateescape")}, b'{"k\xff":"caf\xe9"}'),
    ],
)
def test_value_is_written_as_cjson_writes_it(value, written):
    """Whole numbers have no point, text goes out as it is, and what has come in and is no UTF-8 as it came."""
    assert octets(encode(value)) == written


CIRCLE = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": object()}, "Cannot serialise object: type not supported"),
        ({True: 1}, "Cannot serialise bool: table key must be a number or string"),
        ([math.inf], "Cannot serialise number: must not be NaN or Infinity"),
        ({math.nan: 1}, "Cannot serialise number: must not be NaN or Infinity"),
        (10**400, "Cannot serialise number: must not be NaN or Infinity"),
        (CIRCLE, "Cannot serialise, excessive nesting"),
    ],
)
def test_value_that_has_no_json_is_refused_in_cjsons_words(value, message):
    """A wrong argument is told where it is given."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        encode(value)
    with pytest.raises(ValueError, match=f"^Cannot serialise args: {message}$"):
        encoded_json(value, "Cannot serialise args")


def test_message_of_an_error_goes_out_as_it_is():
    """Kong writes it into the form with no other escapes than it needs."""
    _type, body = error_body("application/json", b"1", 'no "caf\udce9" at \xe9/')
    assert body == b'{\n  "message":"no \\"caf\xe9\\" at \xc3\xa9/",\n  "request_id":"1"\n}'


def nested(levels, beside=""):
    return ('{"a":' * levels + "1" + f"{beside}}}" * levels).encode()


def test_text_nested_too_deeply_is_refused():
    """At the depth where cjson does so, however far Python would go; what stands side by side does not count."""
    assert decode(nested(900, ',"b":[1,"[[",{}]')).keys() == {"a", "b"}
    for text in (nested(DEPTH_MAX + 1), nested(100_000)):
        with pytest.raises(ValueError, match="too many nested data structures"):
            decode(text)


def test_text_that_is_no_json_is_refused():
    """As such, whatever brackets it has."""
    with pytest.raises(ValueError, match="Expecting"):
        decode(b"[" * 2)
