"""What users write: every value survives writing and reading, and no text, however broken, ends in a traceback."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sim.declarative import read_entities
from sim.document import Document, override, parse_path, written
from sim.errors import UserError
from sim.scenario import load
from sim.units import (
    DURATION_S_MAX,
    RATE_PER_S_MAX,
    SIZE_BYTES_MAX,
    format_duration,
    format_rate,
    parse_duration,
    parse_rate,
    parse_size,
)

QUICKSTART = (Path(__file__).parents[2] / "scenarios" / "quickstart.yaml").read_text(encoding="utf-8")

KONG_YML = """\
_format_version: "3.0"
services:
  - name: orders
    url: http://127.0.0.1:9000/api
    routes:
      - {name: all, paths: [/], methods: [GET]}
plugins:
  - name: opentelemetry
    route: all
    config: {traces_endpoint: "http://127.0.0.1:4318/v1/traces", queue: {max_batch_size: 10}}
consumers: [{username: me}]
"""

BARE = ["0", "-1", "1e400", ".nan", ".inf", "5", "5s", "5/s", "5%", "true", "~", "''", "2020-01-01", "0x_", "9" * 5000]
OTHER = ["[]", "{}", "[[]]", "{a: {b: 1}}", "'\\0'", "x" * 300, "*a", "&a 1", "!!binary x", "!a b", "? a", "|", "\x85"]
VALUES = st.sampled_from(BARE + OTHER)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file to write scenarios into."""
    return tmp_path_factory.mktemp("scenario") / "scenario.yaml"


def loads_or_is_refused(read):
    """Run `read`: what it says about a mistake is one line, and never a traceback."""
    refusal = "loaded"
    try:
        read()
    except UserError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) == 1


@given(st.floats(min_value=0, max_value=DURATION_S_MAX, allow_subnormal=False).filter(lambda s: s == 0 or s > 1e-12))
def test_durations_survive_writing_and_reading(seconds):
    """A duration that is written is read as the very same number."""
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.floats(min_value=1e-9, max_value=RATE_PER_S_MAX))
def test_rates_survive_writing_and_reading(per_second):
    """A rate that is written is read as the very same number."""
    assert parse_rate(format_rate(per_second)) == per_second


@given(st.integers(0, SIZE_BYTES_MAX), st.sampled_from([("B", 1), ("kB", 1000), ("KiB", 1 << 10), ("MiB", 1 << 20)]))
def test_sizes_are_whole_bytes_in_any_unit(size, unit):
    """A size that is written in a unit is read as that many bytes."""
    name, factor = unit
    assert parse_size(f"{size // factor}{name}") == size // factor * factor


@given(
    st.lists(st.integers(0, 99) | st.text("abcxyz_-", min_size=1), min_size=1).filter(lambda p: isinstance(p[0], str))
)
def test_paths_survive_writing_and_reading(steps):
    """A path that is written is read as the very same path."""
    assert parse_path(written(tuple(steps))) == tuple(steps)


@given(data=st.data())
def test_any_mutation_of_a_scenario_loads_or_is_refused_in_one_line(path, data):
    """Pieces removed, doubled, replaced, whole lines swapped: a scenario or one line about it, never a traceback."""
    path.write_text(data.draw(mutations(QUICKSTART)), encoding="utf-8")

    loads_or_is_refused(lambda: load(str(path)))


@given(data=st.data())
def test_any_mutation_of_a_kong_yml_loads_or_is_refused_in_one_line(path, data):
    """The same for the gateway's own file."""
    path.write_text(data.draw(mutations(KONG_YML)), encoding="utf-8")

    loads_or_is_refused(lambda: read_entities(Document.read(str(path))))


@given(content=st.binary(max_size=200))
@example(b"\xff\xfe")
@example(b"%YAML 9.9\n---\na: 1\n")
def test_any_file_loads_or_is_refused_in_one_line(path, content):
    """Whatever is in it."""
    path.write_bytes(content)

    loads_or_is_refused(lambda: load(str(path)))


@given(data=st.data())
def test_any_override_is_taken_or_refused_in_one_line(path, data):
    """At any field of the scenario, any value of any type."""
    path.write_text(QUICKSTART, encoding="utf-8")
    field = data.draw(st.sampled_from(fields(Document.read(str(path)).plain())))
    value = data.draw(VALUES | st.text(max_size=20))

    loads_or_is_refused(lambda: load(str(path), [override(written(field), value, "--set")]))


@given(data=st.data())
def test_a_mistake_names_the_field_that_was_broken(path, data):
    """A value that no field takes is refused at its own field, or at one below or above it."""
    path.write_text(QUICKSTART, encoding="utf-8")
    field = data.draw(st.sampled_from(fields(Document.read(str(path)).plain())))

    with pytest.raises(UserError) as caught:
        load(str(path), [override(written(field), "[[{}]]", "--set")])

    assert caught.value.field is not None
    named = parse_path(caught.value.field)
    shorter = min(len(named), len(field))
    assert named[:shorter] == field[:shorter]


@st.composite
def mutations(draw, text):
    """Draw a text that is some edits away from `text`."""
    lines = text.splitlines(keepends=True)
    for _edit in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        match draw(st.sampled_from(["drop", "double", "swap", "value", "cut", "insert", "indent"])):
            case "drop":
                lines[at] = ""
            case "double":
                lines[at] = line * 2
            case "swap":
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], line
            case "value":
                key, colon, _rest = line.partition(":")
                lines[at] = f"{key}{colon or ':'} {draw(VALUES)}\n"
            case "cut":
                lines[at] = line[: draw(st.integers(0, len(line)))] + line[draw(st.integers(0, len(line))) :]
            case "insert":
                where = draw(st.integers(0, len(line)))
                lines[at] = line[:where] + draw(st.text(max_size=3) | VALUES) + line[where:]
            case "indent":
                lines[at] = draw(st.sampled_from(["  ", "\t", "- "])) + line
    return "".join(lines)


def fields(data, path=()):
    """List the paths of all fields in plain data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    below = [deeper for key, value in items for deeper in fields(value, (*path, key))]
    return [path, *below] if path else below
