"""What a run runs on, for its summary: figures of two machines are not to be compared by accident."""

import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from sim.report.summary import Environment

_PACKAGES: Final = ("uvloop", "httptools", "protobuf", "multiprocess", "opentelemetry-proto")
_MIB: Final = 1 << 20


def environment() -> Environment:
    """Describe this machine and the libraries that decide about speed."""
    return Environment(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB,
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        compiled=_is_compiled(),
        versions={name: version(name) for name in _PACKAGES},
    )


def _is_compiled() -> bool:
    """Whether a request walks through machine code (`setup.py`)."""
    found = find_spec("sim.runloop")
    return found is not None and not str(found.origin).endswith(".py")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
