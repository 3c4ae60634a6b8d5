"""The error log: nginx's lines, levels, and files that are moved away."""

import os
import re
from pathlib import Path

import pytest

from sim.error_log import LEVELS, ErrorLog
from sim.errors import UserError


def test_line_is_in_the_format_of_nginx(tmp_path):
    """Local time, level, pid and message; a message of several lines is one."""
    log = ErrorLog(tmp_path / "error.log")

    log("error", "boom\nat line 1")

    pid = os.getpid()
    text = log.path.read_text()
    assert re.fullmatch(rf"\d{{4}}/\d\d/\d\d \d\d:\d\d:\d\d \[error\] {pid}#{pid}: boom at line 1\n", text)
    log.close()


def test_what_would_steer_a_terminal_is_escaped(tmp_path):
    """As in the access log: the answer of a collector that is logged may hold anything."""
    log = ErrorLog(tmp_path / "error.log")

    log("error", "response error: 500, body: \x1b[31mred\x00\r\ntab\tümlaut")

    assert log.path.read_text().endswith(r": response error: 500, body: \x1B[31mred\x00 tab" + "\tümlaut\n")
    log.close()


@pytest.mark.parametrize("level", LEVELS)
def test_levels_below_the_configured_one_are_not_written(tmp_path, level):
    """The log tells what is as severe as its level, or more."""
    log = ErrorLog(tmp_path / "error.log", level)
    for each in LEVELS:
        log(each, "message")

    written = re.findall(r"\[(\w+)\]", log.path.read_text())
    assert written == list(LEVELS[LEVELS.index(level) :])
    log.close()


def test_reopened_log_leaves_the_moved_file_alone(tmp_path):
    """What is logged after the rotation is in a new file under the old name."""  # W4
    log = ErrorLog(tmp_path / "error.log")
    log("notice", "before")
    moved = log.path.rename(tmp_path / "error.log.1")

    assert log.reopen() is None
    log("notice", "after")

    assert ("before" in moved.read_text(), "after" in moved.read_text()) == (True, False)
    assert "after" in log.path.read_text()
    log.close()


def test_log_that_cannot_be_reopened_goes_on_in_the_old_file(tmp_path):
    """A rotation gone wrong loses no line."""
    folder = tmp_path / "logs"
    folder.mkdir()
    log = ErrorLog(folder / "error.log")
    moved = folder.rename(tmp_path / "moved")

    assert isinstance(log.reopen(), FileNotFoundError)
    log("notice", "after")

    assert "after" in (moved / "error.log").read_text()
    log.close()


@pytest.mark.parametrize(("path", "descriptor"), [("/dev/stdout", 1), ("/dev/stderr", 2)])
def test_standard_output_is_shared_with_what_the_program_says_there(capfd, path, descriptor):
    """Where it is a file, lines of the log and others stand in the order of writing, none over another."""
    log = ErrorLog(Path(path))
    for number in range(3):
        os.write(descriptor, b"said %d\n" % number)
        log("notice", f"logged {number}")
    log.reopen()
    log("notice", "logged 3")
    log.close()

    text = capfd.readouterr()[descriptor - 1]
    told = ["said 0", "logged 0", "said 1", "logged 1", "said 2", "logged 2", "logged 3"]
    assert [line.rpartition(": ")[2] for line in text.splitlines()] == told


def test_log_that_cannot_be_opened_is_a_mistake_of_the_user(tmp_path):
    """One line names the setting, the file and the cause."""
    with pytest.raises(UserError, match=r"^error_log: cannot open .*: Is a directory; write the path of a file"):
        ErrorLog(tmp_path)
