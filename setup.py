"""Builds the distribution; the modules that a request walks through are compiled (docs/design.md, "What is compiled").

They are compiled in what is installed, not in a working copy (`pip install -e`), where an edit takes effect at once.
Where that is not possible, for want of a C compiler or of Python's headers, all stays Python: slower, not different.
"""

import sys
from pathlib import Path
from typing import Final

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

COMPILED: Final = (
    "cached_clock",
    "connection",
    "forwarding",
    "framing",
    "instrumentation",
    "outline",
    "phase_times",
    "phases",
    "plan",
    "proxy",
    "request",
    "resolver",
    "router",
    "runloop",
    "shared_row",
    "upstream",
    "worker",
)
"""Modules of `sim`; each knows the classes of the others as they are in C."""

MYPY_OPTIONS: Final = ("--config-file=", "--ignore-missing-imports", "--follow-imports=silent")
"""What the modules import need not be there when they are compiled; errors are found by `make check`."""

COMPILER_OPTIONS: Final = ("-fvisibility=hidden", "-fno-plt")
"""Calls go straight to their function: a request that finds the caches cold touches a twentieth fewer cache lines."""


class BuildAllOrNothing(build_ext):
    """Goes on without the compiled modules when one of them cannot be built."""

    def run(self) -> None:
        """Build them."""
        try:
            super().run()
        except (OSError, BaseError, CCompilerError) as error:
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            _warn(error)


def extensions() -> list[Extension]:
    """Return what there is to build, in C already; nothing where that cannot be had."""
    try:
        from mypyc.build import mypycify  # noqa: PLC0415 - whoever builds without isolation may lack it

        sources = [f"sim/{module}.py" for module in COMPILED]
        found = mypycify([*MYPY_OPTIONS, *sources], group_name="kongsim", opt_level="2", debug_level="0")
        for extension in found:
            extension.extra_compile_args += COMPILER_OPTIONS
    except (ImportError, SystemExit) as error:
        _warn(error)
        return []
    return found


def _warn(error: BaseException) -> None:
    print(f"kongsim is not compiled, and will be slower: {error}", file=sys.stderr)


setup(
    cmdclass={"build_ext": BuildAllOrNothing},
    ext_modules=extensions() if "bdist_wheel" in sys.argv else [],
)
