"""OpenTelemetry's environment variables for an OTLP exporter, as one setting for all exporters of a gateway.

Read once, by the process that reads the configuration; workers get what came of it. A variable for traces goes before
the one for all signals; an empty one counts as not set. What a plugin's configuration says goes before all of them.

| variable, with `TRACES_` before `ENDPOINT` and so on, or without | |
|---|---|
| `OTEL_EXPORTER_OTLP_ENDPOINT` | base URL, to which `/v1/traces` is added; the one for traces is taken as it is |
| `OTEL_EXPORTER_OTLP_HEADERS` | `name=value,name=value`, values percent-encoded |
| `OTEL_EXPORTER_OTLP_TIMEOUT` | ms that one attempt may take; 0: no limit |
| `OTEL_EXPORTER_OTLP_COMPRESSION` | `gzip` or `none` |
| `OTEL_EXPORTER_OTLP_CERTIFICATE` | file of trusted authorities, PEM |
| `OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE` | file of the certificate that a collector is shown, PEM |
| `OTEL_EXPORTER_OTLP_CLIENT_KEY` | file of its key, PEM, not encrypted |
| `OTEL_EXPORTER_OTLP_PROTOCOL` | `http/protobuf` alone |

Any other that begins so, such as those for logs and metrics, has no effect and gets a line of warning. A number or a
word that does not fit is warned about too and counts as not set, as the specification has it. Errors: `UserError` names
the variable; where to send, and as whom, is not guessed.

Source: OpenTelemetry specification, "OpenTelemetry Protocol Exporter" and "Environment Variable Specification"
(*Numeric*, *Timeout*, *Enum*).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

from ruamel.yaml.comments import CommentedMap

from sim.config import Export
from sim.document import Document, Override
from sim.errors import FieldError, UserError, shown
from sim.field import TIMEOUT_MS_MAX

PREFIX: Final = "OTEL_EXPORTER_OTLP_"
TRACES_PATH: Final = "v1/traces"


class _UnfitError(FieldError):
    """A number or a word that is to be warned about and passed over."""


def read(environ: Mapping[str, str]) -> Export:
    """Return what the variables say; raises UserError."""
    document, warnings = Document("environment", CommentedMap()), []
    for field, word, convert in _FIELDS:
        for name in (f"{PREFIX}TRACES_{word}", f"{PREFIX}{word}"):
            text = environ.get(name, "").strip()
            if not text:
                continue
            try:
                document.set(Override((field,), convert(text, name), name))
                break
            except _UnfitError as error:
                warnings.append(f"{name}: {error.message}; it counts as not set")
            except FieldError as error:
                raise UserError(error.message, file=name, cure=error.cure) from None
    warnings += _without_effect(environ)
    return document.validate(Export, {**document.plain(), "warnings": tuple(warnings)})


def _without_effect(environ: Mapping[str, str]) -> Iterator[str]:
    read_here = {f"{PREFIX}{signal}{word}" for _, word, _ in _FIELDS for signal in ("", "TRACES_")}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in read_here and environ[name].strip():
            because = next(because for pattern, because in _NOT_READ if re.match(pattern, name.removeprefix(PREFIX)))
            yield f"{name} has no effect: {because}"


def _endpoint(text: str, name: str) -> str:
    return text if "TRACES_" in name else f"{text.rstrip('/')}/{TRACES_PATH}"


def _headers(text: str, _name: str) -> dict[str, str]:
    headers = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise FieldError(f"expected name=value, not {shown(pair)}", cure="write api-key=secret,other=value")
        headers[key.strip()] = unquote(value.strip())
    return headers


def _seconds(text: str, _name: str) -> float:
    if re.fullmatch(r"\d{1,10}", text, re.ASCII) is None or int(text) > TIMEOUT_MS_MAX:
        raise _UnfitError(f"expected whole ms such as 10000, at most {TIMEOUT_MS_MAX}, not {shown(text)}")
    return int(text) / 1000


def _word(*known: str) -> Callable[[str, str], str]:
    def convert(text: str, _name: str) -> str:
        if text.lower() not in known:
            raise _UnfitError(f"expected {' or '.join(known)}, not {shown(text)}")
        return text.lower()

    return convert


def _as_it_is(text: str, _name: str) -> str:
    return text


_FIELDS: Final[tuple[tuple[str, str, Callable[[str, str], Any]], ...]] = (
    ("traces_endpoint", "ENDPOINT", _endpoint),
    ("headers", "HEADERS", _headers),
    ("timeout", "TIMEOUT", _seconds),
    ("compression", "COMPRESSION", _word("gzip", "none")),
    ("certificate", "CERTIFICATE", _as_it_is),
    ("client_certificate", "CLIENT_CERTIFICATE", _as_it_is),
    ("client_key", "CLIENT_KEY", _as_it_is),
    ("protocol", "PROTOCOL", _word("http/protobuf")),
)
"""Field of `Export`, last word of the variable's name, and how its text becomes the field's value."""

_NOT_READ: Final = (
    ("METRICS?_", "no metrics are exported"),
    ("LOGS_", "logs are sent by the settings for traces, to the plugin's logs_endpoint"),
    ("((TRACES|SPAN)_)?INSECURE$", "http or https in the endpoint says whether it is secured"),
    ("", "it is not known"),
)
"""How the names of variables begin that nobody reads here, and why not."""
