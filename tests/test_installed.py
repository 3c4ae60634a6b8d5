"""What is installed is compiled where that can be done."""

import shutil
import sysconfig
from pathlib import Path

import pytest

import sim
from sim.report.environment import environment

WORKING_COPY = Path(__file__).parents[1]


def test_the_gateway_is_compiled_where_there_is_a_compiler():
    """A module that mypyc cannot take leaves all of them as Python, with a line that an installer does not show."""
    if Path(sim.__file__).parents[1] == WORKING_COPY:
        pytest.skip("the working copy is never compiled")
    if shutil.which(sysconfig.get_config_var("CC").split()[0]) is None:
        pytest.skip("there is no C compiler")
    assert environment().compiled
