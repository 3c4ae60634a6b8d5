"""Tables as plugins know them from Lua: `kong.ctx.shared`, a configuration without a model, and headers."""

from collections.abc import Mapping, MutableMapping
from typing import Any, TypeVar

from kongtrace.lua import lua_lower

V = TypeVar("V")


class Table(dict[str, Any]):
    """A mapping whose keys are fields too, as in Lua: `table.x` is `table["x"]`, and None where there is none.

    Raises:
        AttributeError: a field is written whose name is that of a method of mappings.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself looks for
            raise AttributeError(name)
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(dict, name):
            raise AttributeError(f'{name} is a method of each mapping: write ["{name}"]')
        self[name] = value

    def __delattr__(self, name: str) -> None:
        self.pop(name, None)

    def copy(self) -> "Table":
        """Return another table with the same keys."""
        return Table(self)

    def __or__(self, other: Any) -> Any:
        return Table(super().__or__(other))


def tables(value: Any) -> Any:
    """Return a value with a `Table` in the place of each mapping in it; a list without any stays the same."""
    match value:
        case Mapping():
            return Table({key: tables(inner) for key, inner in value.items()})
        case list():
            made = [tables(inner) for inner in value]
            return value if all(inner is before for inner, before in zip(made, value, strict=True)) else made
        case _:
            return value


class HeaderTable(dict[str, V]):
    """Headers by name: listed in lower case, found in any case and with an underscore for a dash (Kong)."""

    __slots__ = ()

    def __getitem__(self, name: str) -> V:
        return super().__getitem__(self._found(name))

    def __setitem__(self, name: str, value: V) -> None:
        super().__setitem__(self._found(name), value)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(self._found(name))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(self._found(name))

    # A dict's own go by the name as it is written.
    get = MutableMapping.get  # type: ignore[assignment]
    pop = MutableMapping.pop
    setdefault = MutableMapping.setdefault
    update = MutableMapping.update

    def copy(self) -> "HeaderTable[V]":
        """Return the same headers, as another table."""
        return HeaderTable(self)

    def __or__(self, other: Any) -> Any:
        made = self.copy()
        made.update(other)
        return made

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def _found(self, name: Any) -> Any:
        """Return a name as it stands here, or would."""
        if super().__contains__(name) or not isinstance(name, str):
            return name
        return lua_lower(name).replace("_", "-")
