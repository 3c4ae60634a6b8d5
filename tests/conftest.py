"""What every test gets: hypothesis' profiles, an environment without the user's wishes, and no process left behind.

`HYPOTHESIS_PROFILE` chooses how long properties are searched: `dev` (the default), `ci` (the same examples each time)
or `soak` (for hours off).
"""

import ctypes
import os
import signal
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from sim.process import wait
from sim.report.environment import environment

# Speed is nobody's property here: the machine may be busy.
settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), max_examples=100, derandomize=True, print_blob=True)
settings.register_profile("soak", settings.get_profile("dev"), max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

# What this terminal is like, and what this user has set for Kong and OpenTelemetry, would be told in what is tested.
_OF_A_TERMINAL = {"COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
for _name in [*os.environ]:
    if _name in _OF_A_TERMINAL or (_name.startswith(("KONG_", "OTEL_")) and _name != "KONG_VECTORS"):
        del os.environ[_name]

GRACE_S = 10.0  # what the kernel and a busy machine may take to end a process that has been killed
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>

# Whoever loses its parent becomes a child of this process, and is found.
ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))


def pytest_report_header() -> str:
    """Say what is tested: the working copy, or what is installed and may be compiled."""
    return f"gateway: {'compiled' if environment().compiled else 'not compiled'}"


def children() -> list[int]:
    """Return the pids of this process's children, adopted ones and zombies included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there are none: by far the most tests, and much cheaper to ask than to search
        return []
    return [child.pid for child in psutil.Process().children()]


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    """Every process that a test starts, or that its processes start, has ended when the test ends."""
    before = set(children())
    yield
    started = {pid: os.pidfd_open(pid) for pid in children() if pid not in before}
    living = [pid for pid, descriptor in started.items() if not wait([descriptor], GRACE_S)]
    names = {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in living}
    for pid, descriptor in started.items():
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)
        os.waitpid(pid, 0)
    assert names == {}


@pytest.fixture
def ended():
    """Wait for the end of processes that may belong to others, given descriptors from `os.pidfd_open`."""
    opened = []

    def wait_for(*descriptors: int) -> bool:
        opened.extend(descriptors)
        return all(wait([descriptor], GRACE_S) for descriptor in descriptors)

    yield wait_for
    for descriptor in opened:
        os.close(descriptor)


@pytest.fixture
def interruptible():
    """Have SIGINT interrupt, also where this was started in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
