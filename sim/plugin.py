"""Plugins: what a handler is, where it is loaded from, in which order handlers run, and which run for a request.

A plugin is a class with a `PRIORITY`, a `VERSION`, a method for each phase that it takes part in, and, where it can be
configured, a pydantic model `Config`. As in Kong there is one instance for each worker; a method takes the PDK
(`sim.pdk.Kong`) and the configuration of the entity that it runs for: an instance of `Config`, or the mapping as
written where there is no model. `init_worker(kong)` runs once, `configure(kong, configs)` after it with the
configuration of every entity by its id.

`rewrite`, `access` and `response` may be coroutine functions; `header_filter`, `body_filter` and `log` are plain ones,
since their phases must not wait (kong-semantics R1). A plugin with `response` reads the whole answer first, so it has
no use for the filters, and may not have both.

Handlers run in descending priority, equal ones in descending order of name (R5). A plugin for a route goes before one
for its service, that before a global one of the same name. Rewrite knows no route yet: only global plugins run in it.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final, Protocol, TypeVar

from pydantic import BaseModel

from sim.config import Gateway
from sim.entity import Plugin
from sim.errors import UserError, nearest, shown
from sim.plan import Handler, Plan
from sim.plugin_error import described, place_of, users_place
from sim.table import tables

T = TypeVar("T")

AWAITING_PHASES: Final = ("rewrite", "access", "response")
"""Phases whose handlers may wait."""

PLAIN_PHASES: Final = ("header_filter", "body_filter", "log")
"""Phases whose handlers must not."""

_FILES: Final = "kongsim_plugins"
"""The package, in name only, of what is loaded from files: `json.py` is not to take the place of `json`."""

_AT_START: Final = ("init_worker", "configure")
_HANDLERS: Final = (*_AT_START, *AWAITING_PHASES, *PLAIN_PHASES)

NEVER_CALLED: Final = (
    *("certificate", "client_hello", "balancer", "preread", "exit_worker"),
    *("ws_handshake", "ws_client_frame", "ws_upstream_frame", "ws_close"),
)
"""Handlers that a plugin may have in Kong, or looks for among nginx's phases, and that nobody calls here."""

_MISSPELT_FROM: Final = 0.85
"""How near a method's name is to a handler's (`difflib`) that is meant to be that: `acces`, `header_filters`."""


class PluginClass(Protocol):
    """What the class of a plugin has; its methods are optional, see the module."""

    PRIORITY: ClassVar[int]
    VERSION: ClassVar[str]

    def __call__(self) -> Any:
        """Make the instance of a worker."""


Classes = Mapping[str, PluginClass]
"""Plugins by name."""


class Plans:
    """The plans of a worker. Making them makes the plugins' instances; `start` lets these begin.

    Args:
        gateway: the configuration.
        classes: of the plugins that it names.

    Attributes:
        everywhere: the plan where no route is known.
        by_route: the plan of each route, by its name.

    Raises:
        UserError: a plugin's instance cannot be made.
    """

    def __init__(self, gateway: Gateway, classes: Classes) -> None:
        enabled = [entity for entity in gateway.plugins if entity.enabled]
        enabled.sort(key=lambda entity: (classes[entity.name].PRIORITY, entity.name), reverse=True)
        names = dict.fromkeys(entity.name for entity in enabled)
        self._instances = {name: _instance(name, classes[name]) for name in names}
        self._made = [(entity, configuration(classes[entity.name], entity.config)) for entity in enabled]
        self.everywhere = self._plan(route=None, service=None)
        self.by_route = {route.name: self._plan(route.name, route.service) for route in gateway.routes}

    def start(self, kong: Any) -> None:
        """Run `init_worker` of every plugin and then `configure`, in order of priority; what fails is logged."""
        for name, instance in self._instances.items():
            if (init_worker := getattr(instance, "init_worker", None)) is not None:
                _begin(kong, name, init_worker)
        for name, instance in self._instances.items():
            if (configure := getattr(instance, "configure", None)) is not None:
                confs = {entity.id: conf for entity, conf in self._made if entity.name == name}
                _begin(kong, name, configure, confs)

    def _plan(self, route: str | None, service: str | None) -> Plan:
        chosen: dict[str, tuple[int, Plugin, Any]] = {}
        for entity, conf in self._made:
            if entity.route not in (None, route) or entity.service not in (None, service):
                continue
            rank = 2 * (entity.route is not None) + (entity.service is not None)
            if entity.name not in chosen or rank > chosen[entity.name][0]:
                chosen[entity.name] = (rank, entity, conf)
        handlers = {phase: self._handlers(chosen, phase) for phase in (*AWAITING_PHASES, *PLAIN_PHASES)}
        awaiting = frozenset(phase for phase in AWAITING_PHASES if any(handler.awaits for handler in handlers[phase]))
        return Plan(**handlers, awaiting=awaiting, buffered=bool(handlers["response"]))

    def _handlers(self, chosen: Mapping[str, tuple[int, Plugin, Any]], phase: str) -> tuple[Handler, ...]:
        methods = (
            (entity, conf, getattr(self._instances[entity.name], phase, None))
            for _rank, entity, conf in chosen.values()
        )
        return tuple(
            Handler(
                entity.name,
                entity.id,
                method,
                conf,
                inspect.iscoroutinefunction(method),
                f"kong.{phase}.plugin.{entity.name}",
            )
            for entity, conf, method in methods
            if method is not None
        )


def _instance(name: str, plugin: PluginClass) -> Any:
    try:
        return plugin()
    except (Exception, SystemExit) as error:
        file, line = users_place(error) or (inspect.getfile(plugin), _line(plugin))
        message = f"plugin {name} cannot be made: {type(error).__name__}: {error}"
        raise UserError(message, file=file, line=line) from error


def _begin(kong: Any, name: str, handler: Callable[..., object], *arguments: object) -> None:
    try:
        handler(kong, *arguments)
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything, and the worker serves
        kong.log.err(f"{handler.__name__} of plugin {name} failed: {place_of(error)}: {described(error)}")


def configuration(plugin: PluginClass, config: Mapping[str, Any]) -> Any:
    """Return what the handlers of an entity are given, a table without a model; raises pydantic's ValidationError."""
    model: type[BaseModel] | None = getattr(plugin, "Config", None)
    return tables(config) if model is None else model.model_validate(dict(config))


def load(places: Iterable[str], bundled: Classes) -> dict[str, PluginClass]:
    """Return the bundled plugins, and those of the user.

    Args:
        places: files (`plugins/greeter.py`) or modules (`mine.greeter`); each is read anew, so that a reload brings
            what stands there now.
        bundled: what there is already.

    Raises:
        UserError: a file or module that cannot be read, or holds no plugin, or one that cannot work.
    """
    classes = dict(bundled)
    for place in places:
        for name, plugin in _read(place).items():
            if name in classes:
                raise UserError(f"there is a plugin {name} already", file=place, cure="give it another NAME")
            classes[name] = plugin
    return classes


def is_file(place: str) -> bool:
    """Whether a place is a file, and not a module."""
    return place.endswith(".py") or "/" in place


def _read(place: str) -> dict[str, PluginClass]:
    module = _file_module(place) if is_file(place) else _named_module(place)
    file = getattr(module, "__file__", None) or place
    here = [value for value in vars(module).values() if _is_plugin(value)]
    # A package may bring forward what its modules hold; what else is imported is a base class, or another plugin.
    found = [value for value in here if value.__module__ == module.__name__]
    found = found or [value for value in here if value.__module__.startswith(f"{module.__name__}.")]
    if not found:
        raise UserError(
            "holds no plugin: a class with PRIORITY and VERSION", file=file, cure="write PRIORITY = 1000, VERSION = '1'"
        )
    default = module.__name__.rpartition(".")[2].replace("_", "-")
    plugins: dict[str, PluginClass] = {}
    for plugin in found:
        name = _checked(plugin, default, file)
        if name in plugins:
            raise UserError(f"two plugins are named {name}", file=file, line=_line(plugin), cure="give each a NAME")
        plugins[name] = plugin
    return plugins


def _is_plugin(value: object) -> bool:
    return inspect.isclass(value) and hasattr(value, "PRIORITY")


def _checked(plugin: Any, default: str, file: str) -> str:
    """Return the name of a plugin that can work."""

    def wrong(message: str, of: object, cure: str) -> UserError:
        return UserError(f"{plugin.__name__}: {message}", file=file, line=_line(of), cure=cure)

    name = getattr(plugin, "NAME", default)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._~-]*", name):
        raise wrong(f"NAME is {shown(name)}, expected a name such as my-plugin", plugin, "write NAME = 'my-plugin'")
    if not isinstance(plugin.PRIORITY, int) or isinstance(plugin.PRIORITY, bool):
        raise wrong(f"PRIORITY is {shown(plugin.PRIORITY)}, expected a whole number", plugin, "write PRIORITY = 1000")
    if not isinstance(getattr(plugin, "VERSION", None), str):
        raise wrong("has no VERSION", plugin, "write VERSION = '1.0'")
    model = getattr(plugin, "Config", None)
    if model is not None:
        _check_model(model, wrong, plugin)
    _check_handlers(plugin, wrong)
    return name


def _check_model(model: Any, wrong: Callable[[str, object, str], UserError], plugin: Any) -> None:
    if not (inspect.isclass(model) and issubclass(model, BaseModel)):
        raise wrong("Config is no pydantic model", plugin, "write class Config(BaseModel)")
    if "extra" not in model.model_config:
        # A word that the model does not know is a mistake, as everywhere in the file.
        model.model_config["extra"] = "forbid"
        model.model_rebuild(force=True)


def uncalled(plugin: PluginClass) -> list[str]:
    """Return a line for each handler of a plugin that nobody calls, since there is no such phase here."""
    return [
        str(
            UserError(
                f"{getattr(plugin, '__name__', '')}: {name} is never called: there is no such phase here",
                file=_file(getattr(plugin, name)),
                line=_line(getattr(plugin, name)),
                cure=f"handlers are {', '.join(_HANDLERS)}",
            )
        )
        for name in NEVER_CALLED
        if inspect.isfunction(getattr(plugin, name, None)) and _takes(plugin, name, _parameters(name))
    ]


def _check_handlers(plugin: Any, wrong: Callable[[str, object, str], UserError]) -> None:
    _check_spelling(plugin, wrong)
    takes_part = [phase for phase in _HANDLERS if hasattr(plugin, phase)]
    if not takes_part:
        raise wrong("has no handler", plugin, f"write one of {', '.join((*AWAITING_PHASES, *PLAIN_PHASES))}")
    for phase in takes_part:
        method = getattr(plugin, phase)
        if phase not in AWAITING_PHASES and inspect.iscoroutinefunction(method):
            raise wrong(
                f"{phase} must not wait", method, f"write def {phase}, and wait in a timer: kong.timer.at(0, f)"
            )
        if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
            raise wrong(f"{phase} is a generator, which nobody would run", method, "leave the yield out")
        _check_parameters(plugin, phase, wrong)
    if "response" in takes_part and {"header_filter", "body_filter"}.intersection(takes_part):
        raise wrong(
            "has response beside header_filter or body_filter", plugin.response, "keep response, or the filters"
        )


def _check_spelling(plugin: Any, wrong: Callable[[str, object, str], UserError]) -> None:
    """See to it that no handler has a name that is nearly that of a phase, and is never called."""
    for name, method in inspect.getmembers(plugin, inspect.isfunction):
        if name.startswith("_") or name in _HANDLERS or name in NEVER_CALLED:
            continue
        near = get_close_matches(name, _HANDLERS, n=1, cutoff=_MISSPELT_FROM)
        # Beside the handler itself it is a method that helps it.
        if near and not hasattr(plugin, near[0]) and _takes(plugin, name, _parameters(near[0])):
            cure = f"write {near[0]}; of another method begin the name with _"
            raise wrong(f"{name} is no handler, and never called: these are {', '.join(_HANDLERS)}", method, cure)


def _check_parameters(plugin: Any, phase: str, wrong: Callable[[str, object, str], UserError]) -> None:
    given = _parameters(phase)
    if not _takes(plugin, phase, given):
        raise wrong(f"{phase} is called with {given}", getattr(plugin, phase), f"write def {phase}(self, {given})")


def _parameters(phase: str) -> str:
    return {"init_worker": "kong", "exit_worker": "kong", "configure": "kong, configs"}.get(phase, "kong, conf")


def _takes(plugin: Any, name: str, given: str) -> bool:
    """Return whether a method can be called with these."""
    is_bound = isinstance(inspect.getattr_static(plugin, name), staticmethod | classmethod)
    try:
        inspect.signature(getattr(plugin, name)).bind(*(() if is_bound else (None,)), *given.split(", "))
    except (TypeError, ValueError):
        return False
    return True


def _file(of: Any) -> str | None:
    return of.__code__.co_filename if inspect.isfunction(of) else None


def _line(of: Any) -> int | None:
    if inspect.isfunction(of):
        return of.__code__.co_firstlineno
    try:
        return inspect.getsourcelines(of)[1]
    except (OSError, TypeError):
        return None


def _file_module(place: str) -> ModuleType:
    path = Path(place)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=place, cure=_neighbour(path)) from None
    module = ModuleType(f"{_FILES}.{path.stem}")
    module.__file__ = place
    # Classes look their module up by name, dataclasses among them.
    sys.modules[module.__name__] = module
    _run(lambda: exec(compile(source, place, "exec"), module.__dict__), place)  # noqa: S102 - it is the user's program
    return module


def _neighbour(path: Path) -> str:
    """Return what else there is where a file cannot be read."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    names = sorted(other.name for other in path.parent.glob("*.py") if other.is_file() and other.name != path.name)
    return nearest(path.name, names) or f"in {path.parent} there is no other file of Python"


def _named_module(place: str) -> ModuleType:
    if not all(map(str.isidentifier, place.split("."))):
        message = f"expected a file such as greeter.py, or a module such as mine.greeter, not {shown(place)}"
        raise UserError(message)
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name == place or name.startswith(f"{place}.")]:
        del sys.modules[name]
    return _run(lambda: importlib.import_module(place), place)


def _run(program: Callable[[], T], place: str) -> T:
    try:
        return program()
    except (Exception, SystemExit) as error:
        raise _failure(error, place) from error


def _failure(error: BaseException, place: str) -> UserError:
    """Return what to tell the user of a module that does not load: where it failed, not where it was loaded from."""
    if isinstance(error, SyntaxError):
        return UserError(f"is no Python: {error.msg}", file=error.filename or place, line=error.lineno)
    if isinstance(error, ModuleNotFoundError) and error.name and place.startswith(error.name):
        told = f"there is no module {error.name}"
        return UserError(told, file=place, cure="give a file, or set PYTHONPATH to where it is")
    where = users_place(error) or (place, None)
    message = f"cannot be loaded: {type(error).__name__}: {error}"
    cure = _beside(error, Path(place).parent) if is_file(place) else None
    return UserError(message, file=where[0], line=where[1], cure=cure)


def _beside(error: BaseException, folder: Path) -> str | None:
    """Return the cure where a module is missing that stands beside the plugin's file, which Python does not look at."""
    name = error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else None
    if name and ((folder / f"{name}.py").is_file() or (folder / name).is_dir()):
        return f"it is in {folder.resolve()}: set PYTHONPATH to that"
    return None
