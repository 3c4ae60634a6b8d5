"""The gateway of pytest's fixture: what blocks it is found by a second look, which disturbs nobody."""

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from sim.errors import UserError
from sim.verify.bench import Bench
from sim.verify.program import CALLED, UPSTREAMS
from sim.verify.trial import look_again

DOCS = Path(__file__).parents[2] / "docs"

BLOCKING = """
import os
import time


class Shop:
    PRIORITY = 1000
    VERSION = "1"

    def access(self, kong, conf):
        if {condition}:
            time.sleep(0.03)
"""


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def shop(tmp_path):
    """Write a plugin that blocks under a condition."""

    def write(condition):
        file = tmp_path / "shop.py"
        file.write_text(BLOCKING.format(condition=condition))
        return str(file)

    return write


def test_handler_that_blocks_is_found(bench, shop):
    """The requests of the test are made again, and the line that stalls again is told, once."""
    place = shop("kong.request.get_path() == '/slow'")
    bench.use(place)
    bench.get("/quick")
    bench.advance(3.0)
    bench.get("/slow")

    assert [(m.code, m.place.filename, m.place.line) for m in bench.finish()] == [("KG002", place, 12)]


def test_stall_that_does_not_come_again_is_no_mistake(bench, shop, monkeypatch):
    """What happens once in a process, such as the import of a module, or a busy machine, causes no alarm."""
    monkeypatch.setenv("COLD", "1")
    bench.use(shop("os.environ.pop('COLD', None)"))
    bench.get("/slow")

    assert "COLD" not in os.environ
    assert bench.finish() == []


@pytest.mark.parametrize(
    ("looks", "seen", "again"),
    [
        (["a", "a"], 2, "a"),
        (["a", "b", "a"], 3, "a"),
        (["a", "bc", "c"], 3, "c"),
        (["a", ""], 2, ""),
        ([""], 1, ""),
        (["a", "b", "c", "d"], 4, ""),
    ],
)
def test_a_stall_is_looked_at_until_two_looks_agree(looks, seen, again):
    """On a busy machine the line is uncertain; a stall that stays away once is none."""
    taken = []

    def look():
        taken.append(set(looks[len(taken)]))
        return taken[-1]

    assert look_again(look, lambda found: found) == (set(looks[seen - 1]), set(again))
    assert len(taken) == seen


def test_second_look_leaves_the_alarm_clock_as_it_was(bench, shop):
    """It may be set to end a test that takes too long."""
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append("alarm"))
    signal.setitimer(signal.ITIMER_REAL, 1000.0, 500.0)
    try:
        bench.use(shop("True"))
        bench.get("/slow")
        assert [mistake.code for mistake in bench.finish()] == ["KG002"]
        delay_s, interval_s = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < delay_s < 1000
        assert interval_s == 500
        assert heard == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


CONNECTING = """
import socket


class Shop:
    PRIORITY = 1000
    VERSION = "1"

    def access(self, kong, conf):
        socket.create_connection(("127.0.0.1", {port})).close()
"""


def test_network_of_the_test_is_there_and_its_use_is_told(bench, tmp_path):
    """A test may have servers of its own, which generated requests must not reach; going past the gateway is told."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "shop.py").write_text(CONNECTING.format(port=server.getsockname()[1]))
        bench.use(str(tmp_path / "shop.py"))
        assert bench.get("/orders").status == 200
        server.accept()[0].close()

    assert [(m.code, m.place.line) for m in bench.finish()] == [("KG007", 10)]


DEMANDING = """
from pydantic import BaseModel


class {name}:
    PRIORITY = 1000
    VERSION = "1"

    class Config(BaseModel):
        limit: int

    def access(self, kong, conf):
        kong.response.set_header("X-{name}", str(conf.limit))
"""


def test_plugins_may_demand_a_configuration(bench, tmp_path):
    """What `use` is given is the configuration of the plugin that it names, and of no other."""
    for name in ("First", "Second"):
        (tmp_path / f"{name.lower()}.py").write_text(DEMANDING.format(name=name))
    bench.use(str(tmp_path / "first.py"), limit=3)
    bench.use(str(tmp_path / "second.py"), limit=4)
    answer = bench.get()

    assert (answer.headers["x-first"], answer.headers["x-second"]) == ("3", "4")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "first.py: first.limit: Field required"),
        ({"limit": 3, "limits": 4}, "first.py: first.limits: Extra inputs are not permitted"),
    ],
)
def test_use_tells_what_is_wrong_with_a_configuration(bench, tmp_path, monkeypatch, config, expected):
    """At once, with the plugin's file and field."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first.py").write_text(DEMANDING.format(name="First"))
    with pytest.raises(UserError) as raised:
        bench.use("first.py", **config)
    assert str(raised.value) == expected


def test_page_lists_what_services_do():
    """Every word that `upstream` and `called` take stands there."""
    page = (DOCS / "verify.md").read_text()
    listed = re.search(r"`upstream` is what the service does:(.*?)With `quota.py`", page, re.DOTALL)[1]
    assert re.findall(r'"(.*?)"', listed) == [*UPSTREAMS, "answers once"]
    table = re.findall(
        r"^\| ([a-z ,]+) \|", page.partition("### What plugins call")[2].partition("###")[0], re.MULTILINE
    )
    assert [word for row in table[1:] for word in row.split(", ")] == list(CALLED)


@pytest.mark.parametrize("instrumentations", ["request,router", ["request", "router"], ("request", "router")])
def test_several_instrumentations_are_given_as_text_or_list(bench, shop, instrumentations):
    """As Kong's setting, or as Python has it."""
    bench.trace(1, instrumentations)
    bench.use(shop("False"))
    bench.get()
    assert [span.name for span in bench.spans] == ["kong", "kong.router"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"instrumentations": "request,ruoter"},
            "instrumentations: invalid tracing type: ruoter; did you mean router?",
        ),
        ({"instrumentations": []}, "instrumentations: expected at least one entry, not an empty list"),
        ({"sampling_rate": 2}, "sampling_rate: must be at most 1, not 2"),
    ],
)
def test_tracing_that_cannot_be_is_told(bench, given, message):
    """At once."""
    with pytest.raises(UserError) as raised:
        bench.trace(**given)
    assert str(raised.value).startswith(message)


def test_tracing_is_set_before_the_first_request(bench, shop):
    """As plugins are: what the gateway has begun with, it keeps."""
    bench.use(shop("False"))
    bench.get()
    with pytest.raises(UserError, match="a request was made already; trace before the first request"):
        bench.trace(0.5)
