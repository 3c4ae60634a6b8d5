"""A YAML file that remembers where everything stands.

Reads YAML 1.2, keeps the line of each field, takes overrides, gives the plain data to a model and turns what the model
objects to into a :class:`~sim.errors.UserError` that names file, line, field, expectation and cure. Dates stay text,
duplicate keys are refused, and :meth:`Document.text` writes the file again with the comments of its author.

A path is a tuple of keys and list positions, ``("load", 0, "rate")``; people read and write it as ``load[0].rate``.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from sim.errors import FieldError, UserError, meant, nearest, shown

FieldPath = tuple[str | int, ...]

NODES_MAX = 100_000
"""Values in one file at most, aliases counted each time: a file that unfolds beyond this is a mistake."""

NAMES_MAX = 8
"""Neighbours that are listed when a file is missing."""

_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_TOKEN = re.compile(r"\(('<[^']+>'),\)")  # how the reader names what it has found


class Model(BaseModel):
    """Base of everything read from a file: immutable, without coercion, closed to unknown fields.

    Attributes:
        fields_not_built: fields that belong to the vocabulary and cannot be used yet, and what each would do.
        words_not_built: the same for the words of a field, by field, each with the word to write in its place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    fields_not_built: ClassVar[Mapping[str, str]] = {}
    words_not_built: ClassVar[Mapping[str, Mapping[str, tuple[str, str]]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _know_every_word(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for field, words in cls.words_not_built.items():
            word = data.get(field)
            if isinstance(word, str) and word in words:
                meaning, instead = words[word]
                raise not_built(word, meaning, field=field, cure=f"write {instead}")
        known = [info.alias or name for name, info in cls.model_fields.items()]
        for key in data:
            if key in cls.fields_not_built:
                raise not_built(str(key), cls.fields_not_built[key], field=str(key))
            if key not in known:
                raise FieldError("unknown field", field=str(key), cure=nearest(key, known))
        return data


def not_built(word: str, meaning: str, *, field: str | None = None, cure: str = "leave it out") -> FieldError:
    """Return the error for a word that belongs to the vocabulary and cannot be used yet."""
    return FieldError(f"{word} is not built yet: {meaning}", field=field, cure=cure)


def matching(pattern: str, expected: str) -> AfterValidator:
    """Return the validator of a text that has to match ``pattern`` as a whole; ``expected`` says so in words."""
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise FieldError(f"expected {expected}, not {shown(text)}")
        return text

    return AfterValidator(check)


def _not_empty(entries: tuple[Any, ...]) -> tuple[Any, ...]:
    if not entries:
        raise FieldError("expected at least one entry, not an empty list")
    return entries


NotEmpty = AfterValidator(_not_empty)
"""The validator of a list that needs an entry."""

M = TypeVar("M", bound=Model)


class Override(NamedTuple):
    """A value that takes the place of a file's; ``origin`` stands for file and line in errors."""

    path: FieldPath
    value: Any
    origin: str


class Document:
    """One YAML file, its lines and the overrides laid over it."""

    def __init__(self, file: str, root: Any) -> None:
        self.file = file
        self.root = root
        self._overrides: dict[FieldPath, str] = {}

    @classmethod
    def read(cls, file: str) -> Self:
        """Read a file; raises UserError when it is missing, unreadable, not YAML or not a mapping."""
        document = cls(file, _parse(read_text(file), file))
        if not isinstance(document.root, CommentedMap):
            raise UserError(f"expected a mapping of fields, not {shown(document.root)}", file=file, line=1)
        document.plain()
        return document

    def plain(self, path: FieldPath = ()) -> Any:
        """Return the data at ``path`` as plain dicts, lists and scalars."""
        budget = iter(range(NODES_MAX))
        try:
            return _plain(self._node(path), path, budget)
        except RecursionError:
            raise UserError("nested too deeply", file=self.file, line=self.line(path)) from None
        except StopIteration:
            raise UserError(f"more than {NODES_MAX} values", file=self.file, line=self.line(path)) from None
        except _UnreadableError as error:
            file, line, _ = self.place((*error.path, *error.key))
            raise UserError(error.message, file=file, line=line, field=written(error.path), cure=error.cure) from None

    def line(self, path: FieldPath) -> int:
        """Return the line of the field at ``path``, or of the nearest field above it, counted from 1."""
        node, line = self.root, self.root.lc.line if hasattr(self.root, "lc") else 0
        for step in path:
            try:
                places = node.lc.data
                # In a path, keys of all kinds are the text that they are written as.
                key = step if step in places else next(key for key in places if str(key) == str(step))
                line = places[key][0]
                node = node[key]
            except (AttributeError, KeyError, IndexError, TypeError, StopIteration):
                break
        return int(line) + 1

    def place(self, path: FieldPath = ()) -> tuple[str, int | None, str | None]:
        """Return file, line and field of what stands at ``path``, as errors name them."""
        origin = next((origin for at, origin in self._overrides.items() if path[: len(at)] == at), None)
        field = written(path) or None
        return (self.file, self.line(path), field) if origin is None else (origin, None, field)

    def error(self, message: str, path: FieldPath = (), *, cure: str | None = None) -> UserError:
        """Return the error for the field at ``path``."""
        file, line, field = self.place(path)
        return UserError(message, file=file, line=line, field=field, cure=cure)

    def set(self, override: Override) -> None:
        """Lay a value over a field; mappings on the way are made."""
        path, value, origin = override
        *above, last = path
        node = self.root
        for depth, step in enumerate(above):
            if isinstance(node, CommentedMap) and node.get(step) is None:
                node[step] = CommentedMap()
                self._overrides[path[: depth + 1]] = origin
            node = self._child(node, step, path[: depth + 1], origin)
        if isinstance(node, CommentedSeq):
            self._child(node, last, path, origin)
        elif not isinstance(node, CommentedMap):
            raise UserError(f"has no field {last}, it is {shown(node)}", file=origin, field=written(path[:-1]))
        node[last] = value
        self._overrides[path] = origin

    def text(self) -> str:
        """Return the file with its overrides, as YAML, comments kept."""
        out = io.StringIO()
        _yaml().dump(self.root, out)
        return out.getvalue()

    def validate(self, model: type[M], data: Any, path: FieldPath = ()) -> M:
        """Return ``data``, which stands at ``path``, as a model; raises UserError for the first mistake."""
        try:
            return model.model_validate(data)
        except ValidationError as error:
            mistakes = (details for details in error.errors() if details["type"] != "default_factory_not_called")
            raise min((self._located(details, path) for details in mistakes), key=_order) from None

    def _located(self, details: ErrorDetails, path: FieldPath) -> UserError:
        message, cure, below = explain(details)
        # In brackets stand what is no field of the file: "[key]", and the tags that choose among models.
        where = tuple(step for step in details["loc"] if not str(step).startswith("["))
        return self.error(message, (*path, *where, *below), cure=cure)

    def _node(self, path: FieldPath) -> Any:
        node = self.root
        for step in path:
            node = node[step]
        return node

    def _child(self, node: Any, step: str | int, path: FieldPath, origin: str) -> Any:
        try:
            return node[step]
        except (KeyError, IndexError, TypeError):
            size = f", it has {len(node)} entries" if isinstance(node, CommentedSeq) else f", it is {shown(node)}"
            raise UserError(f"has no {step}{size}", file=origin, field=written(path[:-1])) from None


def written(path: FieldPath) -> str:
    """Return a path as people write it: ``load[0].rate``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def parse_path(text: str) -> FieldPath:
    """Read a path such as ``load[0].rate`` or ``load.0.rate``; raises FieldError."""
    steps = tuple(int(index or word) if (index or word).isdecimal() else word for index, word in _STEP.findall(text))
    if not steps or written(steps) != re.sub(r"\.(\d+)(?=\.|\[|$)", r"[\1]", text):
        raise FieldError(f"expected a field such as load[0].rate, not {shown(text)}")
    return steps


def parse_override(text: str) -> Override:
    """Read ``FIELD=VALUE``; raises UserError."""
    origin = f"--set {text}"
    field, equals, value = text.partition("=")
    if not equals:
        raise UserError("expected FIELD=VALUE", file=origin, cure="write --set load[0].rate=800/s")
    return override(field.strip(), value, origin)


def override(field: str, value: str, origin: str) -> Override:
    """Read a field and its value as they would stand in a file, such as ``500/s`` or ``[a, b]``; raises UserError."""
    try:
        return Override(parse_path(field), _parse(value, origin), origin)
    except FieldError as error:
        raise UserError(error.message, file=origin, cure=error.cure) from None
    except UserError as error:
        more = "<document start>" in error.message  # than one value
        raise UserError(error.message, file=origin, cure="put the value in quotes" if more else None) from None


class _UnreadableError(Exception):
    """A value that plain data cannot hold, or the key of one."""

    def __init__(self, message: str, path: FieldPath, cure: str, *key: Any) -> None:
        super().__init__(message)
        self.message, self.path, self.cure, self.key = message, path, cure, key


class _Constructor(RoundTripConstructor):
    """Reads dates as the text that they are, and says of everything that it cannot read where it stands."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """See `RoundTripConstructor.construct_object`, which makes null of what holds itself."""
        if node in self.recursive_objects and node not in self.constructed_objects:
            raise ConstructorError(problem="found a value that holds itself", problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (MarkedYAMLError, RecursionError):
            raise
        except Exception as error:  # noqa: BLE001 - on broken numbers and tags the reader fails in many ways
            problem = str(error).partition("\n")[0].partition(";")[0]
            raise ConstructorError(problem=problem, problem_mark=node.start_mark) from None


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", RoundTripConstructor.construct_yaml_str)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.Constructor = _Constructor
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def read_text(file: str) -> str:
    """Return the text of a file; raises UserError when it is missing, unreadable or not UTF-8."""
    path = Path(file)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such file", file=file, cure=_neighbour(path)) from None
    except IsADirectoryError:
        raise UserError("is a folder, expected a file", file=file, cure=_neighbour(path / "x")) from None
    except PermissionError:
        raise UserError("no permission to read it", file=file, cure="change its mode or its owner") from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", file=file, cure="save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=file) from None


def parse_json(text: str) -> Any:
    """Return what a text of JSON holds; raises ValueError where it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _neighbour(path: Path) -> str | None:
    try:
        entries = sorted(entry for entry in path.parent.iterdir() if entry.name != path.name)
        names = {entry.stem: entry.name for entry in entries if entry.suffix in {".yaml", ".yml"}}
    except OSError:
        return f"there is no folder {path.parent}"
    close = get_close_matches(path.stem, names, n=1)
    if close:
        return f"did you mean {path.parent / names[close[0]]}?"
    are = "are" if len(names) > 1 else "is"
    return f"in {path.parent} there {are} {', '.join(list(names.values())[:NAMES_MAX])}" if names else None


def _parse(text: str, file: str) -> Any:
    try:
        return _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context or "not YAML")
        if problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        problem = _TOKEN.sub(r"\1", " ".join(problem.split()))
        cure = "indent with spaces" if r"'\t'" in problem else None
        raise UserError(f"not YAML: {problem}", file=file, line=mark.line + 1 if mark else None, cure=cure) from None
    except RecursionError:
        raise UserError("nested too deeply", file=file) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"not YAML: {str(error).partition(chr(10))[0]}", file=file, line=line) from None
    except Exception as error:  # noqa: BLE001 - on broken numbers and tags the reader fails in many ways
        raise UserError(f"not YAML: {str(error).partition(chr(10))[0]}", file=file) from None


def _plain(node: Any, path: FieldPath, budget: Iterator[int]) -> Any:
    next(budget)
    match node:
        case None | bool():
            return node
        case str():
            return _text(node, path)
        case int():
            return int(node)
        case float():
            return float(node)
        case dict() if _tag(node) is None:
            return {_key(key, path): _plain(value, (*path, _key(key, path)), budget) for key, value in node.items()}
        case list() if _tag(node) is None:
            return [_plain(value, (*path, index), budget) for index, value in enumerate(node)]
        case _:
            kind = _tag(node) or type(node).__name__
            raise _UnreadableError(f"a value of kind {kind} cannot stand here", path, "write it without a tag")


def _tag(node: Any) -> str | None:
    tag: str | None = getattr(getattr(node, "tag", None), "value", None)
    return tag


def _key(key: Any, path: FieldPath) -> str | int:
    if isinstance(key, bool) or not isinstance(key, str | int):
        cure = "write a word before the colon" if isinstance(key, Mapping | Sequence) else "put the name in quotes"
        raise _UnreadableError(f"a field's name is text, not {shown(key)}", path, cure, key)
    return _text(key, path, key) if isinstance(key, str) else int(key)


def _text(node: str, path: FieldPath, *key: str) -> str:
    """Return text of whole characters: JSON writes one beyond the BMP as a pair of escapes (RFC 8259 7)."""
    try:
        return node.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        message, cure = f"expected whole characters, not {shown(str(node))}", "write the other half too"
        raise _UnreadableError(message, path, cure, *key) from None


def _order(error: UserError) -> tuple[int, str]:
    return (error.line or 0, error.field or "")


def explain(details: ErrorDetails) -> tuple[str, str | None, FieldPath]:
    """Return message, cure and the field below, in the words of this program, for what a model objects to."""
    given, limits, problem = shown(details["input"]), details.get("ctx", {}), details["type"]
    match problem:
        case "value_error" if isinstance(limits["error"], FieldError):
            error = limits["error"]
            return error.message, error.cure, (error.field,) if error.field else ()
        case "missing":
            return "missing", f"add {details['loc'][-1]}", ()
        case "literal_error":
            words = [word.strip("'") for word in re.split(", | or ", limits["expected"])]
            return (
                f"expected {limits['expected'].replace(chr(39), '')}, not {given}",
                meant(details["input"], words),
                (),
            )
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            bound, relation = next((limits[name], word) for name, word in _RELATIONS.items() if name in limits)
            return f"must be {relation} {bound if isinstance(bound, int) else f'{bound:g}'}, not {given}", None, ()
        case _ if problem in _EXPECTED:
            expected, cure = _EXPECTED[problem]
            return f"expected {expected}, not {given}", cure, ()
        case _:
            return f"{details['msg'][:1].lower()}{details['msg'][1:]}, not {given}", None, ()


_RELATIONS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}

_EXPECTED = {
    "int_type": ("a whole number", None),
    "int_from_float": ("a whole number", None),
    "float_type": ("a number", None),
    "finite_number": ("a finite number", None),
    "bool_type": ("true or false", None),
    "string_type": ("text", "put it in quotes"),
    "dict_type": ("a mapping of fields", None),
    "model_type": ("a mapping of fields", None),
    "tuple_type": ("a list", "begin each entry with a dash"),
    "string_too_short": ("some text", None),
}
