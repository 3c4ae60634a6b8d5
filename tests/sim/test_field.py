import pytest
from pydantic import ValidationError

from sim.config import Export


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
