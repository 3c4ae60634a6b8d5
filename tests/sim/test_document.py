import pytest

from sim.document import Document, Override, override, parse_override, parse_path, written
from sim.errors import FieldError, UserError


@pytest.fixture
def document(tmp_path):
    """Make a document of the given text."""

    def read(text):
        path = tmp_path / "a.yaml"
        path.write_text(text, encoding="utf-8")
        return Document.read(str(path))

    return read


def test_line_is_that_of_the_field(document):
    """Block and flow style alike, counted from 1."""
    read = document("# a comment\na:\n  - b: 1\n  - {c: 2,\n     d: 3}\n")

    assert [read.line(path) for path in (("a",), ("a", 0, "b"), ("a", 1), ("a", 1, "d"))] == [2, 3, 4, 5]


def test_line_of_an_absent_field_is_that_of_the_nearest_above(document):
    """A missing field is looked for where it would stand."""
    read = document("a:\n  b:\n    c: 1\n")

    assert read.line(("a", "b", "x", 0)) == 2


def test_line_of_a_number_that_names_a_field_is_found(document):
    """In a path it is the text that it is written as."""
    read = document("a:\n  b: 1\n  200: 2\n")

    assert [read.line(path) for path in (("a", 200), ("a", "200"))] == [3, 3]


def test_line_is_found_without_a_look_at_its_neighbours(document):
    """However many there are, to find the lines of all takes no longer for each."""

    class Places(dict):
        def __iter__(self):
            raise AssertionError("each of them is looked at")

    read = document("a:\n  - b: 1\n  - c: 2\n")
    for node in (read.root, read.root["a"]):
        node.lc.data = Places(node.lc.data)

    assert [read.line(path) for path in (("a",), ("a", 1), ("a", 1, "c"))] == [1, 3, 3]


def test_plain_data_holds_nothing_of_the_reader(document):
    """Scalars are Python's own, dates stay text, merged mappings are whole."""
    read = document("base: &b {x: 1}\na: {<<: *b, y: 0x10}\nd: 2020-01-01\nt: true\nn: ~\nf: 1.5\ns: 'on'\n")

    plain = read.plain()

    assert plain == {
        "base": {"x": 1},
        "a": {"x": 1, "y": 16},
        "d": "2020-01-01",
        "t": True,
        "n": None,
        "f": 1.5,
        "s": "on",
    }
    assert {type(value) for value in plain.values()} == {dict, str, bool, type(None), float}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.yaml:1: expected a mapping of fields, not nothing"),
        ("- a\n", "a.yaml:1: expected a mapping of fields, not a list"),
        ("a: [\n", "a.yaml:2: not YAML: "),
        ("a: 1\na: 2\n", 'a.yaml:2: not YAML: found duplicate key "a"'),
        (
            "a: 1\n---\nb: 2\n",
            "a.yaml:2: not YAML: expected a single document in the stream, but found another document",
        ),
        ("a:\n\tb: 1\n", "a.yaml:2: not YAML: found character '\\t' that cannot start any token; indent with spaces"),
        ("b: 1\na: \x07\n", "a.yaml:2: not YAML: unacceptable character #x0007"),
        ("a: *b\n", "a.yaml:1: not YAML: found undefined alias 'b'"),
        ("a: " + "[" * 600 + "\n", "a.yaml: nested too deeply"),
        ("a: !!python/object:os.system {}\n", "a.yaml:1: a: a value of kind tag:yaml.org,2002:python/object:os.system"),
        ("a: !!set {b}\n", "a.yaml:1: a: a value of kind CommentedSet cannot stand here"),
        ('a:\n  b: "\\ud800x"\n', "a.yaml:2: a.b: expected whole characters, not '\\ud800x'; write the other half too"),
        ('a:\n  "\\udc00": 1\n', "a.yaml:2: a: expected whole characters, not '\\udc00'; write the other half too"),
        ("a:\n  b: x\n  1.5: x\n", "a.yaml:3: a: a field's name is text, not 1.5; put the name in quotes"),
        ("a: 1\n~: x\n", "a.yaml:2: a field's name is text, not nothing; put the name in quotes"),
        ("a: 1\n? [b, c]\n: x\n", "a.yaml:2: a field's name is text, not a list; write a word before the colon"),
        ("a: 1\n? {b: c}\n: x\n", "a.yaml:2: a field's name is text, not a mapping; write a word before the colon"),
        ("a: 1\nb: " + "1" * 5000, "a.yaml:2: not YAML: Exceeds the limit (4300 digits) for integer string conversion"),
        ("a: 1\nb: &b {c: *b}\n", "a.yaml:2: not YAML: found a value that holds itself"),
        ("a: 1\nb: &b [*b]\n", "a.yaml:2: not YAML: found a value that holds itself"),
        ("a: 1\nb: &b\n  c:\n    - *b\n", "a.yaml:2: not YAML: found a value that holds itself"),
    ],
)
def test_what_is_no_mapping_of_plain_data_is_refused_in_one_line(document, text, message):
    """Each with the line where it goes wrong, as far as it has one."""
    with pytest.raises(UserError) as caught:
        document(text)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_character_that_json_writes_in_two_halves_is_one(document):
    """Beyond the BMP it takes two escapes."""  # RFC 8259 7
    assert document('a: "\\ud83d\\ude00"\n').plain() == {"a": "\U0001f600"}


def test_a_file_that_unfolds_without_end_is_refused(document):
    """Aliases of aliases cannot exhaust the memory."""
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 9))

    with pytest.raises(UserError, match="more than 100000 values"):
        document("l0: &l0 x\n" + levels)


def test_a_missing_file_is_looked_for_nearby(tmp_path):
    """A misspelt name is mended; other names are listed; a missing folder is named."""
    (tmp_path / "quickstart.yaml").touch()

    for name, cure in (
        ("quikstart.yaml", f"did you mean {tmp_path}/quickstart.yaml?"),
        ("zzz.yaml", f"in {tmp_path} there is quickstart.yaml"),
        ("none/a.yaml", f"there is no folder {tmp_path}/none"),
    ):
        with pytest.raises(UserError) as caught:
            Document.read(str(tmp_path / name))
        assert str(caught.value) == f"{tmp_path / name}: no such file; {cure}"

    (tmp_path / "quikstart.yaml").symlink_to("elsewhere")
    with pytest.raises(UserError, match=r"quikstart\.yaml: no such file; did you mean .*/quickstart\.yaml\?"):
        Document.read(str(tmp_path / "quikstart.yaml"))


def test_what_cannot_be_read_is_refused(tmp_path):
    """Folders, other encodings, impossible names."""
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")

    for name, message in (("", "is a folder"), ("latin.yaml", "is not UTF-8 text"), ("a\0b", "cannot be read")):
        with pytest.raises(UserError, match=message):
            Document.read(f"{tmp_path}/{name}")


def test_an_override_takes_the_place_of_a_value_and_answers_for_it(document):
    """Errors at or below the field name the option, not a line."""
    read = document("a: {b: 1}\n")

    read.set(Override(("a", "b"), 2, "--b"))
    read.set(Override(("c", "d"), 3, "--d"))

    assert read.plain() == {"a": {"b": 2}, "c": {"d": 3}}
    assert str(read.error("wrong", ("a", "b", "x"))) == "--b: a.b.x: wrong"
    assert str(read.error("wrong", ("a",))) == f"{read.file}:1: a: wrong"
    assert str(read.error("unknown field", ("c",))) == "--d: c: unknown field"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("a[2]", "--x: a: has no 2, it has 1 entries"),
        ("a[2].b", "--x: a: has no 2, it has 1 entries"),
        ("s.b", "--x: s: has no field b, it is 'text'"),
        ("s.b.c", "--x: s: has no b, it is 'text'"),
        ("a.b", "--x: a: has no b, it has 1 entries"),
    ],
)
def test_an_override_of_what_is_not_there_is_refused(document, field, message):
    """A list is not lengthened, a scalar has no fields."""
    with pytest.raises(UserError) as caught:
        document("a: [1]\ns: text\n").set(override(field, "1", "--x"))
    assert str(caught.value) == message


def test_an_override_that_is_no_yaml_has_no_line():
    """What is one value for a shell may be more for YAML."""
    with pytest.raises(UserError) as caught:
        override("listen", "[::1]:0", "--listen")
    reason = "not YAML: expected '<document start>', but found '<scalar>'"
    assert str(caught.value) == f"--listen: {reason}; put the value in quotes"


def test_text_keeps_the_comments_of_the_author(document):
    """What is written is what was read, with the overrides."""
    read = document("# about a\na: 1 # one\nb:\n  - 2\n")

    read.set(Override(("a",), 5, "--a"))

    assert read.text() == "# about a\na: 5 # one\nb:\n  - 2\n"


@pytest.mark.parametrize("text", ["load[0].rate", "a", "a.b.c", "a[1][2].c"])
def test_paths_are_written_as_they_are_read(text):
    """Brackets hold positions, dots part names."""
    assert written(parse_path(text)) == text


def test_positions_may_follow_a_dot():
    """`load.0.rate` is `load[0].rate`."""
    assert parse_path("load.0.rate") == parse_path("load[0].rate") == ("load", 0, "rate")


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "a[", "a[x]", "a]b", "[]"])
def test_what_is_no_path_is_refused(text):
    """The message shows the form."""
    with pytest.raises(FieldError, match=r"^expected a field such as load\[0\]\.rate, not "):
        parse_path(text)


def test_parse_override_reads_values_as_yaml():
    """Numbers, lists and texts with units; everything after the first equals sign is the value."""
    assert parse_override("a.b=5").value == 5
    assert parse_override("a=[x, y]").value == ["x", "y"]
    assert parse_override("a=latency.p99 == 1ms").value == "latency.p99 == 1ms"
    with pytest.raises(UserError, match=r"^--set a: expected FIELD=VALUE; write --set"):
        parse_override("a")
