"""OpenTelemetry's environment variables for an OTLP exporter are read once, and what they say is what is done."""

import pytest
import trustme

from sim.config import Export
from sim.errors import UserError
from sim.otlp_environment import read

PREFIX = "OTEL_EXPORTER_OTLP_"


def environment(**variables):
    return {PREFIX + name: value for name, value in variables.items()}


def test_no_variable_says_nothing():
    """Others do not count, and an empty one counts as not set."""
    assert read({"HOME": "/", **environment(ENDPOINT="", HEADERS=" ")}) == Export()


def test_endpoint_is_a_base_and_the_one_for_traces_is_complete():
    """`/v1/traces` is added to the base only."""
    assert read(environment(ENDPOINT="http://a:4318/")).traces_endpoint == "http://a:4318/v1/traces"
    both = environment(ENDPOINT="http://a:4318", TRACES_ENDPOINT="https://b/x")
    assert read(both).traces_endpoint == "https://b/x"


def test_headers_are_pairs_with_encoded_values():
    """Pairs are divided by commas; values are percent-encoded."""
    assert read(environment(HEADERS="api-key=a%20b, x=1=2,")).headers == {"api-key": "a b", "x": "1=2"}


def test_timeout_is_in_milliseconds():
    """The variable has ms, the setting s."""
    assert read(environment(TIMEOUT="2500")).timeout == 2.5


def test_a_variable_for_traces_goes_first():
    """It replaces the one for all signals."""
    given = environment(COMPRESSION="gzip", TRACES_COMPRESSION="none", TIMEOUT="1", TRACES_TIMEOUT="2000")
    assert read(given) == Export(compression="none", timeout=2.0)


def test_certificate_is_a_file_of_authorities(tmp_path):
    """It is read at once, to tell a mistake before anything is started."""
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(file)
    assert read(environment(CERTIFICATE=str(file))).certificate == str(file)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ENDPOINT": "a:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: traces_endpoint: expected a URL such as "),
        ({"HEADERS": "key"}, "OTEL_EXPORTER_OTLP_HEADERS: expected name=value, not 'key'; write "),
        ({"HEADERS": "a=b%0d%0aInjected: x"}, "OTEL_EXPORTER_OTLP_HEADERS: headers.a: expected a header value"),
        ({"TIMEOUT": "10s"}, "OTEL_EXPORTER_OTLP_TIMEOUT: expected whole ms, not '10s'; write 10000"),
        ({"TRACES_TIMEOUT": "0"}, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: timeout: must be more than 0, not 0"),
        ({"COMPRESSION": "zstd"}, "OTEL_EXPORTER_OTLP_COMPRESSION: compression: expected gzip or none, not 'zstd'"),
        ({"CERTIFICATE": "/none.pem"}, "OTEL_EXPORTER_OTLP_CERTIFICATE: certificate: expected a file of certificates"),
        ({"PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf, not 'grpc'; unset it"),
    ],
)
def test_a_mistake_names_its_variable(variables, message):
    """One line with variable, expectation and cure."""
    with pytest.raises(UserError) as raised:
        read(environment(**variables))
    assert str(raised.value).startswith(message)
