"""OpenTelemetry's environment variables for an OTLP exporter are read once, and what they say is what is done."""

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from sim.config import Export
from sim.errors import UserError, shown
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
    """The variable has ms, the setting s; 0 is no limit, which is not the same as not set."""
    assert read(environment(TIMEOUT="2500")).timeout == 2.5
    assert read(environment(TIMEOUT="0")).timeout == 0
    assert read({}).timeout is None


def test_a_variable_for_traces_goes_first():
    """It replaces the one for all signals."""
    given = environment(COMPRESSION="gzip", TRACES_COMPRESSION="none", TIMEOUT="1", TRACES_TIMEOUT="2000")
    assert read(given) == Export(compression="none", timeout=2.0)


def test_certificate_is_a_file_of_authorities(tmp_path):
    """It is read at once, to tell a mistake before anything is started."""
    file, authority = tmp_path / "ca.pem", trustme.CA()
    authority.cert_pem.write_to_path(file)
    assert read(environment(CERTIFICATE=str(file))).certificate == authority.cert_pem.bytes()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ENDPOINT": "a:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: traces_endpoint: expected a URL such as "),
        ({"HEADERS": "key"}, "OTEL_EXPORTER_OTLP_HEADERS: expected name=value, not 'key'; write "),
        ({"HEADERS": "a=b%0d%0aInjected: x"}, "OTEL_EXPORTER_OTLP_HEADERS: headers.a: expected a header value"),
        ({"CERTIFICATE": "/none.pem"}, "OTEL_EXPORTER_OTLP_CERTIFICATE: certificate: expected a file in PEM format, "),
        ({"CERTIFICATE": "/dev/null"}, "OTEL_EXPORTER_OTLP_CERTIFICATE: certificate: expected a file of certificates"),
        ({"CLIENT_KEY": "/dev/null"}, "OTEL_EXPORTER_OTLP_CLIENT_KEY: client_key: certificate and key go together"),
        (
            {"CLIENT_CERTIFICATE": "/none.pem", "CLIENT_KEY": "/none.pem"},
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: client_certificate: expected a file in PEM format, '/none.pem' ",
        ),
        (
            {"CLIENT_CERTIFICATE": "/dev/null", "CLIENT_KEY": "/dev/null"},
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: client_certificate: expected a certificate and its key, in PEM ",
        ),
    ],
)
def test_a_mistake_names_its_variable(variables, message):
    """One line with variable, expectation and cure."""
    with pytest.raises(UserError) as raised:
        read(environment(**variables))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("TIMEOUT", "10s", "whole ms such as 10000, at most 2147483646, not '10s'"),
        ("TIMEOUT", "-1", "whole ms such as 10000, at most 2147483646, not '-1'"),
        ("TRACES_TIMEOUT", "0.5", "whole ms such as 10000, at most 2147483646, not '0.5'"),
        ("TIMEOUT", "2147483647", "whole ms such as 10000, at most 2147483646, not '2147483647'"),
        ("TIMEOUT", "9" * 5_000, f"whole ms such as 10000, at most 2147483646, not {shown('9' * 5_000)}"),
        ("COMPRESSION", "zstd", "gzip or none, not 'zstd'"),
        ("PROTOCOL", "grpc", "http/protobuf, not 'grpc'"),
    ],
)
def test_number_or_word_that_does_not_fit_counts_as_not_set(name, text, expected):
    """All programs of a machine share the variables, so that one's word need not be another's; there is a warning."""
    warning = f"{PREFIX}{name}: expected {expected}; it counts as not set"
    assert read(environment(**{name: text})) == Export(warnings=(warning,))


def test_variable_for_all_signals_takes_the_place_of_one_for_traces_that_does_not_fit():
    """Which counts as not set."""
    said = read(environment(TRACES_TIMEOUT="soon", TIMEOUT="100", COMPRESSION="GZIP"))
    assert (said.timeout, said.compression, len(said.warnings)) == (0.1, "gzip", 1)


@pytest.mark.parametrize(
    ("name", "because"),
    [
        ("INSECURE", "http or https in the endpoint says whether it is secured"),
        ("TRACES_INSECURE", "http or https in the endpoint says whether it is secured"),
        ("SPAN_INSECURE", "http or https in the endpoint says whether it is secured"),
        ("LOGS_ENDPOINT", "logs are sent by the settings for traces, to the plugin's logs_endpoint"),
        ("LOGS_TIMEOUT", "logs are sent by the settings for traces, to the plugin's logs_endpoint"),
        ("METRICS_ENDPOINT", "no metrics are exported"),
        ("METRICS_TEMPORALITY_PREFERENCE", "no metrics are exported"),
        ("METRIC_INSECURE", "no metrics are exported"),
        ("ENDPIONT", "it is not known"),
    ],
)
def test_variable_that_does_nothing_is_warned_of(name, because):
    """Each that begins as those for an OTLP exporter do works, or gets a line that says why not."""
    assert read(environment(**{name: "x"})) == Export(warnings=(f"{PREFIX}{name} has no effect: {because}",))
    assert read(environment(**{name: " "})) == Export()


def test_variable_of_all_signals_that_one_for_traces_replaces_is_no_cause_for_a_warning():
    """It is for other programs too."""
    assert read(environment(TIMEOUT="1", TRACES_TIMEOUT="2000")).warnings == ()


def test_client_certificate_and_its_key_are_files(tmp_path):
    """They are tried at once, and a key that is encrypted asks nobody for its password."""
    issued = trustme.CA().issue_cert("client.test")
    cert, key, locked = (tmp_path / name for name in ("cert.pem", "key.pem", "locked.pem"))
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    locked.write_bytes(encrypted(key.read_bytes()))

    said = read(environment(CLIENT_CERTIFICATE=str(cert), CLIENT_KEY=str(key)))

    assert (said.client_certificate, said.client_key) == (cert.read_bytes(), key.read_bytes())
    with pytest.raises(UserError, match="in PEM format and not encrypted"):
        read(environment(CLIENT_CERTIFICATE=str(cert), CLIENT_KEY=str(locked)))


def encrypted(pem):
    key = serialization.load_pem_private_key(pem, None)
    form = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    return key.private_bytes(serialization.Encoding.PEM, *form)
