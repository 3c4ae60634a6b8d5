import pytest
from pydantic import ValidationError

from sim.config import Export
from sim.entity import Route, Service
from sim.workload import Request


@pytest.mark.parametrize(
    "url",
    [
        *("collector:4318", "//a", "ftp://a/", "http://", "http:///x", "http://a b/", "http://a/x y", "http://a/\nx"),
        *("http://a\\b/", "http://a/\u00e9", "http://[::1/", 7, None),
    ],
)
def test_endpoint_that_is_no_url_is_refused(url):
    """What would be another request line, or no host, is found before anything runs."""
    with pytest.raises(ValidationError, match=r"expected a URL such as http://127\.0\.0\.1:4318/v1/traces, not "):
        Export.model_validate({"traces_endpoint": url if url is not None else []})


@pytest.mark.parametrize("who", ["user:secret@", "user@", "@"])
def test_endpoint_that_says_who_sends_is_refused(who):
    """Nobody would send it, and the collector would turn everything away; a header says it. The secret is not shown."""
    with pytest.raises(ValidationError, match="expected a URL without user and password, which") as refused:
        Export.model_validate({"traces_endpoint": f"https://{who}a:4318/v1/traces"})
    assert "secret" not in str(refused.value.errors(include_input=False))


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1"])
def test_endpoint_with_a_port_that_is_none_is_refused(port):
    """A port that is left out is that of the scheme."""
    with pytest.raises(ValidationError, match="expected a port from 1 to 65535 in "):
        Export(traces_endpoint=f"http://a:{port}/")


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("/a b", "/a%20b"),
        ("/\u00fc", "/%C3%BC"),
        ("/a\nb", "/a%0Ab"),
        ("/\x7f", "/%7F"),
        ("/\ud800", "/%ED%A0%80"),
        ("/a%20b c/%2F", "/a%20b%20c/%2F"),
    ],
)
def test_path_that_has_to_be_encoded_is_shown_as_it_is_to_be_written(path, encoded):
    """It does begin with /, and whoever wrote it may not know what else is asked of it."""
    expected = "a path whose blanks, control characters and characters beyond ASCII are percent-encoded"
    for prefix, model, fields in (
        ("", Request, lambda path: {"path": path}),
        ("", Service, lambda path: {"name": "a", "host": "b", "path": path}),
        ("", Route, lambda path: {"name": "a", "paths": [path]}),
        ("~", Route, lambda path: {"name": "a", "paths": [path]}),
    ):
        with pytest.raises(ValidationError) as refused:
            model.model_validate(fields(prefix + path))
        mistake, *_ = refused.value.errors()
        error = mistake["ctx"]["error"]
        assert error.message == f"expected {expected}, not {prefix + path!r}"
        assert error.cure == f"write {prefix}{encoded}"
        model.model_validate(fields(prefix + encoded))


def test_query_of_a_request_is_encoded_like_its_path():
    """Both stand in the first line."""
    with pytest.raises(ValidationError, match="percent-encoded"):
        Request.model_validate({"path": "/a?q=d e"})
    assert Request.model_validate({"path": "/a?q=d%20e&f=%2F"}).path == "/a?q=d%20e&f=%2F"
