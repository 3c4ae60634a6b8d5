"""Plugins are loaded from files and modules, and run in Kong's order."""

import itertools
import sys
from pathlib import Path

import pytest

from sim import declarative
from sim import plugin as plugins
from sim.config import Gateway
from sim.document import Document
from sim.entity import Plugin, Route, Service
from sim.errors import UserError
from sim.plugin import Plans
from sim.plugins import BUNDLED

GOOD = """\
from pydantic import BaseModel


class Greeter:
    PRIORITY = 1000
    VERSION = "1.0"

    class Config(BaseModel):
        greeting: str = "hello"

    async def access(self, kong, conf):
        pass
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a plugin from the source of a file called `greeter.py`."""
    monkeypatch.chdir(tmp_path)

    def load(source=GOOD):
        (tmp_path / "greeter.py").write_text(source, encoding="utf-8")
        return plugins.load(["greeter.py"], BUNDLED)

    return load


def test_plugin_is_called_as_its_file_unless_it_says_otherwise(load):
    """`my_plugin.py` holds `my-plugin`; the bundled plugins are there too."""
    assert load().keys() - BUNDLED.keys() == {"greeter"}
    assert "polite" in load(GOOD.replace("    PRIORITY", '    NAME = "polite"\n    PRIORITY'))


def test_file_is_read_anew_each_time(load):
    """A reload brings what stands in the file now, however soon after."""
    first, second = load()["greeter"], load(GOOD.replace("1000", "2000"))["greeter"]

    assert (first.PRIORITY, second.PRIORITY) == (1000, 2000)


def test_file_does_not_take_the_place_of_a_module_of_its_name(tmp_path):
    """A plugin in `json.py` is no obstacle to who imports json."""
    (tmp_path / "json.py").write_text(GOOD, encoding="utf-8")
    loaded = plugins.load([str(tmp_path / "json.py")], {})

    import json

    assert loaded["json"].PRIORITY == 1000
    assert json.loads("1") == 1


def test_plugin_may_be_a_module(tmp_path, monkeypatch):
    """A dotted name is looked for as Python looks for modules."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "greeter.py").write_text(GOOD, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    assert plugins.load(["mine.greeter"], {})["greeter"].VERSION == "1.0"


def test_package_may_bring_forward_what_its_modules_hold(tmp_path, monkeypatch):
    """All of it is read anew each time; a base class that it builds upon is no plugin of it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "brought").mkdir()
    (tmp_path / "brought" / "__init__.py").write_text("from .handler import Greeter\n", encoding="utf-8")
    for priority in (1000, 20_000):
        source = GOOD.replace("1000", str(priority))
        (tmp_path / "brought" / "handler.py").write_text(source, encoding="utf-8")
        assert priority == plugins.load(["brought"], {})["brought"].PRIORITY

    own = "from .handler import Greeter\n\n\nclass Polite(Greeter):\n    NAME = 'polite'\n"
    (tmp_path / "brought" / "__init__.py").write_text(own, encoding="utf-8")
    assert plugins.load(["brought"], {}).keys() == {"polite"}


def test_handler_may_do_without_self(load):
    """A linter asks for it where nothing of the instance is used."""
    assert load(GOOD.replace("    async def access(self, ", "    @staticmethod\n    async def access("))
    assert load(GOOD.replace("    async def access(self, ", "    @classmethod\n    async def access(cls, "))


def test_helper_beside_a_file_is_told_where_it_is(load, tmp_path):
    """Python does not look there, as the folder of a plugin is no place of modules."""
    (tmp_path / "helper.py").touch()
    with pytest.raises(UserError) as refused:
        load("from helper import x\n")

    reason = "cannot be loaded: ModuleNotFoundError: No module named 'helper'"
    assert str(refused.value) == f"greeter.py:1: {reason}; it is in {tmp_path}: set PYTHONPATH to that"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = (", "greeter.py:1: is no Python: '(' was never closed"),
        (
            "import nothing_there",
            "greeter.py:1: cannot be loaded: ModuleNotFoundError: No module named 'nothing_there'",
        ),
        ("\n\nx = 1 / 0", "greeter.py:3: cannot be loaded: ZeroDivisionError: division by zero"),
        ("", "greeter.py: holds no plugin: a class with PRIORITY and VERSION; write PRIORITY = 1000, VERSION = '1'"),
        (GOOD.replace("1000", "'high'"), "greeter.py:4: Greeter: PRIORITY is 'high', expected a whole number"),
        (GOOD.replace("VERSION", "REVISION"), "greeter.py:4: Greeter: has no VERSION; write VERSION = '1.0'"),
        (GOOD.replace("(BaseModel)", ""), "greeter.py:4: Greeter: Config is no pydantic model"),
        (
            GOOD.replace("    PRIORITY", "    NAME = 'a b'\n    PRIORITY"),
            "Greeter: NAME is 'a b', expected a name such as",
        ),
        (
            GOOD.replace("access", "entry"),
            "greeter.py:4: Greeter: has no handler; write one of rewrite, access, response",
        ),
        (
            GOOD.replace("access", "log"),
            "greeter.py:11: Greeter: log must not wait; write def log, and wait in a timer",
        ),
        (
            GOOD + "        yield\n",
            "greeter.py:11: Greeter: access is a generator, which nobody would run; leave the yield out",
        ),
        (GOOD.replace("access", "header_filter"), "greeter.py:11: Greeter: header_filter must not wait"),
        (GOOD.replace("access", "body_filter"), "greeter.py:11: Greeter: body_filter must not wait"),
        (
            GOOD.replace("kong, conf", "kong"),
            "greeter.py:11: Greeter: access is called with kong, conf; write def access(self, kong, conf)",
        ),
        (
            GOOD.replace("access", "response")
            + "\n    def log(self, kong, conf): pass\n    def body_filter(self, kong, conf): pass\n",
            "greeter.py:11: Greeter: has response beside header_filter or body_filter; keep response, or the filters",
        ),
        (GOOD + GOOD.replace("class Greeter", "class Other"), "two plugins are named greeter; give each a NAME"),
        ("import sys\n\nsys.exit('no licence')\n", "greeter.py:3: cannot be loaded: SystemExit: no licence"),
        (
            GOOD.replace("    PRIORITY", "    NAME = 'opentelemetry'\n    PRIORITY"),
            "greeter.py: there is a plugin opentelemetry already",
        ),
    ],
)
def test_plugin_that_cannot_work_is_refused_with_one_line(load, source, message):
    """File, line, what is wrong and what to do."""
    with pytest.raises(UserError) as refused:
        load(source)

    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("greter.py", "greter.py: cannot be read: No such file or directory; did you mean greeter.py?"),
        ("mine/greeter.py", "mine/greeter.py: cannot be read: No such file or directory; there is no folder mine"),
        (
            "empty/greeter.py",
            "empty/greeter.py: cannot be read: No such file or directory; in empty there is no other file of Python",
        ),
        (
            "no.such.module",
            "no.such.module: there is no module no; give a file, or set PYTHONPATH to where it is",
        ),
        (".", "expected a file such as greeter.py, or a module such as mine.greeter, not '.'"),
    ],
)
def test_plugin_that_is_not_there_is_told_in_one_line(load, place, message):
    """A misspelt file is told which one was meant."""
    load()
    Path("empty").mkdir()
    with pytest.raises(UserError) as refused:
        plugins.load([place], {})

    assert str(refused.value) == message


def test_plugin_that_kongtrace_refuses_is_told_where_it_asks(load, monkeypatch):
    """Its author can mend nothing in kongtrace."""
    monkeypatch.delitem(sys.modules, "kongtrace.otel", raising=False)
    monkeypatch.delattr("kongtrace.otel", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.context.contextvars_context", None)  # as if it were not installed
    with pytest.raises(UserError) as refused:
        load(f"\nfrom kongtrace import otel\n{GOOD}")

    reason = "KongTraceError: kongtrace.otel needs opentelemetry-api: install kongsim[otel]"
    assert str(refused.value) == f"greeter.py:2: cannot be loaded: {reason}"


def entities(load, config):
    """Read a kong.yml that configures the plugin."""
    text = f"_format_version: '3.0'\nplugins:\n  - name: greeter\n    config: {config}\n"
    Path("kong.yml").write_text(text, encoding="utf-8")
    return declarative.read_entities(Document.read("kong.yml"), classes=load())


@pytest.mark.parametrize("config", ["[]", "[{name: greeter, enabled: false}]"])
def test_plugin_that_nothing_configures_is_told(load, tmp_path, config):
    """Its author wonders why it does not run."""
    (tmp_path / "kong.yml").write_text(f"_format_version: '3.0'\nplugins: {config}\n", encoding="utf-8")
    classes = load()

    assert declarative.read_entities(Document.read("kong.yml"), classes=classes).warnings == (
        "kong.yml:2: plugins: plugin greeter does not run: no plugin of that name is configured here and enabled",
    )


@pytest.mark.parametrize("phase", ["certificate", "balancer", "ws_client_frame"])
def test_handler_of_a_phase_that_does_not_exist_here_is_told(load, phase):
    """With its line, and the handlers that there are; the plugin runs."""
    parameters = "self, kong" if phase == "exit_worker" else "self, kong, conf"
    source = f"{GOOD}\n    def {phase}({parameters}):\n        pass\n"
    text = "_format_version: '3.0'\nplugins:\n  - name: greeter\n"
    Path("kong.yml").write_text(text, encoding="utf-8")

    (warning,) = declarative.read_entities(Document.read("kong.yml"), classes=load(source)).warnings
    told, cure = warning.split("; ")
    assert told == f"greeter.py:14: Greeter: {phase} is never called: there is no such phase here"
    assert cure.startswith("handlers are init_worker, configure, rewrite, access, ")


@pytest.mark.parametrize(
    ("method", "meant"),
    [
        ("rewrit(self, kong, conf)", "rewrite"),
        ("header_filters(self, kong, conf)", "header_filter"),
        ("init_workers(self, kong)", "init_worker"),
        ("logs(self, kong, *conf)", "log"),
    ],
)
def test_handler_whose_name_is_misspelt_is_a_mistake(load, method, meant):
    """It would never be called, and nobody would say so."""
    name = method.partition("(")[0]
    cure = f"write {meant}; of another method begin the name with _"
    with pytest.raises(UserError, match=rf"^greeter\.py:14: Greeter: {name} is no handler, .*; {cure}$"):
        load(f"{GOOD}\n    def {method}:\n        pass\n")


@pytest.mark.parametrize(
    "method", ["_rewrit(self, kong, conf)", "logs(self, line)", "respond(self, kong, conf)", "acces(self, kong, conf)"]
)
def test_method_that_is_no_handler_may_have_any_other_name(load, method):
    """A private one, one that cannot be called as a handler is, one whose name is not that near, a handler's helper."""
    assert "greeter" in load(f"{GOOD}\n    def {method}:\n        pass\n")


def test_configuration_is_checked_by_the_plugins_model(load):
    """A mistake has the file, line and field of the kong.yml."""
    assert entities(load, "{greeting: hi}").plugins[0].config == {"greeting": "hi"}
    with pytest.raises(UserError, match=r"^kong\.yml:4: plugins\[0\]\.config\.greeting: "):
        entities(load, "{greeting: 1}")
    with pytest.raises(UserError, match=r"^kong\.yml:4: plugins\[0\]\.config\.greting: "):
        entities(load, "{greting: hi}")


class Recorder:
    """A plugin that takes part in access."""

    PRIORITY = 10
    VERSION = "1"

    def access(self, kong, conf):
        """Take part."""


class Higher(Recorder):
    """The same, earlier."""

    PRIORITY = 11


class Waiting(Recorder):
    """The same, waiting."""

    async def access(self, kong, conf):
        """Take part."""


CLASSES = {"a": Recorder, "b": Recorder, "c": Higher, "w": Waiting}


def planned(*entities):
    """Plans for a route `r` of a service `s`, and of what stands elsewhere."""
    gateway = Gateway(
        services=(Service(name="s", host="h"),),
        routes=(Route(name="r", service="s", paths=("/",)), Route(name="other", service="s", paths=("/o",))),
        plugins=entities,
    )
    return Plans(gateway, CLASSES)


def test_plugin_that_cannot_be_made_is_a_mistake_of_its_author():
    """What its constructor raises is told with the place, and no worker can start with it."""

    class Unlicensed(Recorder):
        def __init__(self):
            raise RuntimeError("no licence")

    class Leaving(Recorder):
        def __init__(self):
            sys.exit(3)

    class Demanding(Recorder):
        def __init__(self, licence):
            self.licence = licence

    for plugin, message in (
        (Unlicensed, "RuntimeError: no licence"),
        (Leaving, "SystemExit: 3"),
        (Demanding, "TypeError: .*__init__.. missing 1 required positional argument: 'licence'"),
    ):
        entity = Plugin(name="greeter")
        with pytest.raises(UserError, match=rf"test_plugin\.py:[0-9]+: plugin greeter cannot be made: {message}$"):
            Plans(Gateway(plugins=(entity,)), {"greeter": plugin})


def test_handlers_run_by_priority_and_equal_ones_by_name_downwards():
    """Descending priority, then descending name, whatever the order of the file."""  # R5
    for names in itertools.permutations("abc"):
        plans = planned(*(Plugin(name=name) for name in names))
        assert [handler.name for handler in plans.by_route["r"].access] == ["c", "b", "a"]


def test_plugin_of_a_route_goes_before_that_of_its_service_and_the_global_one():
    """The nearest one runs, in the place of the others; rewrite knows only the global one."""
    plans = planned(
        Plugin(name="a", config={"of": "all"}),
        Plugin(name="a", service="s", config={"of": "service"}),
        Plugin(name="a", service="s", route="r", config={"of": "both"}),
        Plugin(name="a", route="r", config={"of": "route"}),
    )

    assert [handler.conf["of"] for handler in plans.by_route["r"].access] == ["both"]
    assert [handler.conf["of"] for handler in plans.by_route["other"].access] == ["service"]
    assert [handler.conf["of"] for handler in plans.everywhere.access] == ["all"]


def test_plan_knows_which_phases_wait():
    """What need not wait is not run as if it did."""
    assert planned(Plugin(name="a")).everywhere.awaiting == frozenset()
    assert planned(Plugin(name="a"), Plugin(name="w")).everywhere.awaiting == {"access"}


def test_plugin_is_one_instance_whatever_it_is_configured_for():
    """As in Kong, what a plugin keeps in itself is the worker's."""
    plans = planned(Plugin(name="a"), Plugin(name="a", route="r"))
    of_all, of_route = plans.everywhere.access[0], plans.by_route["r"].access[0]

    assert of_all.call.__self__ is of_route.call.__self__
    assert of_all.entity_id != of_route.entity_id
