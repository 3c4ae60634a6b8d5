"""Every mistake that `kongsim verify` knows: the wrong plugin is found, by code and line; the right one is silent."""

import re

import pytest

from sim.verify import program, search
from sim.verify.search import Search
from sim.verify.trial import Suspects
from tests.verify.pairs import PAIRS, plugin

MANY = {"unbounded names", "unbounded attribute names", "tracer made in every request"}
"""What takes hundreds of requests to show."""


@pytest.fixture(autouse=True)
def quick(monkeypatch, name):
    """The programs in which one thing is unusual, and a few that are drawn; shrinking has its own tests."""
    monkeypatch.setattr(search, "PROGRAMS", 8)
    monkeypatch.setattr(program, "TIMES", (1, 250) if name in MANY else (1, 1, 1, 2, 5))
    monkeypatch.setattr(search, "SHRINK_S", 0.0)
    monkeypatch.setattr(search, "SEARCH_S", 120.0)


def verified(tmp_path, source):
    file = tmp_path / "shop.py"
    file.write_text(plugin(source))
    return str(file), Search(Suspects((str(file),)), 0).run()


def marks(source):
    """What the comments say: code and line."""
    lines = enumerate(plugin(source).splitlines(), 1)
    return {(mark[1], number) for number, line in lines if (mark := re.search(r"# (K[GT]\d+)$", line))}


@pytest.mark.parametrize("name", PAIRS)
def test_wrong_plugin_is_found(tmp_path, name):
    """The line that the comment marks is reported, with its code, and with nothing that is not wrong with it too."""
    wrong, _right = PAIRS[name]
    file, verdict = verified(tmp_path, wrong)
    found = {(s.mistake.code, s.mistake.place.line) for s in verdict.shown if s.mistake.place.filename == file}
    assert marks(wrong) <= found
    assert {s.mistake.plugin for s in verdict.shown} <= {"shop", "Shop"}


@pytest.mark.parametrize("name", PAIRS)
def test_right_plugin_is_silent(tmp_path, name):
    """The same done right gives no finding."""
    _wrong, right = PAIRS[name]
    _file, verdict = verified(tmp_path, right)
    assert [(s.mistake.code, s.mistake.place.line, s.mistake.message) for s in verdict.shown] == []
    assert verdict.requests > 50
