"""The gateway simulator: processes, phases, plugins, load and reports around the tracer of `kongtrace`."""

from typing import Final

__version__: Final = "0.1.0"
