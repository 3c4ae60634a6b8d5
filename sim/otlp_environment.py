"""OpenTelemetry's environment variables for an OTLP exporter, as one setting for all exporters of a gateway.

Read once, by the process that reads the configuration; workers get what came of it. A variable for traces goes before
the one for all signals; an empty one counts as not set. What a plugin's configuration says goes before all of them.

| variable, with `TRACES_` before its last word or without | |
|---|---|
| `OTEL_EXPORTER_OTLP_ENDPOINT` | base URL, to which `/v1/traces` is added; the one for traces is taken as it is |
| `OTEL_EXPORTER_OTLP_HEADERS` | `name=value,name=value`, values percent-encoded |
| `OTEL_EXPORTER_OTLP_TIMEOUT` | ms that one attempt may take |
| `OTEL_EXPORTER_OTLP_COMPRESSION` | `gzip` or `none` |
| `OTEL_EXPORTER_OTLP_CERTIFICATE` | file of trusted authorities, PEM |
| `OTEL_EXPORTER_OTLP_PROTOCOL` | `http/protobuf` alone |

Errors: `UserError` names the variable.

Source: OpenTelemetry specification, "OpenTelemetry Protocol Exporter".
"""

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from ruamel.yaml.comments import CommentedMap

from sim.config import Export
from sim.document import Document, Override
from sim.errors import FieldError, UserError, shown

PREFIX: Final = "OTEL_EXPORTER_OTLP_"
TRACES_PATH: Final = "v1/traces"
PROTOCOL: Final = "http/protobuf"


def read(environ: Mapping[str, str]) -> Export:
    """Return what the variables say; raises UserError."""
    document = Document("environment", CommentedMap())
    for field, word, convert in _FIELDS:
        name, value = _find(environ, word)
        if not value:
            continue
        try:
            document.set(Override((field,), convert(value, name), name))
        except FieldError as error:
            raise UserError(error.message, file=name, cure=error.cure) from None
    name, protocol = _find(environ, "PROTOCOL")
    if protocol and protocol != PROTOCOL:
        raise UserError(f"expected {PROTOCOL}, not {shown(protocol)}", file=name, cure="unset it, or set that")
    return document.validate(Export, document.plain())


def _find(environ: Mapping[str, str], word: str) -> tuple[str, str]:
    """Return name and value of the variable that counts."""
    names = (f"{PREFIX}TRACES_{word}", f"{PREFIX}{word}")
    return next(((name, value) for name in names if (value := environ.get(name, "").strip())), (names[-1], ""))


def _endpoint(value: str, name: str) -> str:
    return value if "TRACES_" in name else f"{value.rstrip('/')}/{TRACES_PATH}"


def _headers(value: str, _name: str) -> dict[str, str]:
    headers = {}
    for pair in filter(None, (part.strip() for part in value.split(","))):
        key, equals, text = pair.partition("=")
        if not equals:
            raise FieldError(f"expected name=value, not {shown(pair)}", cure="write api-key=secret,other=value")
        headers[key.strip()] = unquote(text.strip())
    return headers


def _seconds(value: str, _name: str) -> float:
    try:
        return int(value) / 1000
    except ValueError:
        raise FieldError(f"expected whole ms, not {shown(value)}", cure="write 10000") from None


def _as_it_is(value: str, _name: str) -> str:
    return value


_FIELDS: Final[tuple[tuple[str, str, Callable[[str, str], Any]], ...]] = (
    ("traces_endpoint", "ENDPOINT", _endpoint),
    ("headers", "HEADERS", _headers),
    ("timeout", "TIMEOUT", _seconds),
    ("compression", "COMPRESSION", _as_it_is),
    ("certificate", "CERTIFICATE", _as_it_is),
)
"""Field of `Export`, last word of the variable's name, and how its text becomes the field's value."""
