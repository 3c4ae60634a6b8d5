"""Tables as Lua has them: fields and keys are one, and headers are found by name however it is written."""

import copy
import json
import pickle

import pytest

from sim.table import HeaderTable, Table, tables


def test_key_of_a_table_can_be_written_and_read_as_a_field():
    """Either way it is the same, and the table is a mapping like any other."""
    table = Table(a=1)
    table.b = table.a + 1
    table["c"] = 3

    assert table == {"a": 1, "b": 2, "c": 3}
    assert table.c == 3
    assert json.dumps(table) == '{"a": 1, "b": 2, "c": 3}'


def test_field_that_is_not_there_is_none_and_a_key_is_an_error():
    """The one is as in Lua, the other as in Python; a field that is deleted is not there, whether it was or not."""
    table = Table(a=1)
    del table.a, table.b

    assert table.a is None
    with pytest.raises(KeyError):
        table["a"]


def test_field_of_the_name_of_a_method_is_refused():
    """Reading it would give the method."""
    with pytest.raises(AttributeError, match=r'^items is a method of each mapping: write \["items"\]$'):
        Table().items = 1


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
@pytest.mark.parametrize("table", [Table(a={"b": 1}), HeaderTable({"a": "1"})])
def test_table_can_be_copied(table, again):
    """It stays what it is."""
    assert again(table) == table
    assert type(again(table)) is type(table)


def test_tables_are_made_of_mappings_at_any_depth():
    """Also of those in lists; what else there is stays as it is."""
    made = tables({"a": {"b": [{"c": (1, 2)}]}})

    assert made == {"a": {"b": [{"c": (1, 2)}]}}
    assert made.a.b[0].c == (1, 2)


@pytest.mark.parametrize("name", ["x-mine", "X-Mine", "x_mine", "X_MINE"])
def test_header_is_found_in_any_case_and_with_an_underscore_for_a_dash(name):
    """By key, by `get`, and by `in`."""
    headers = HeaderTable({"x-mine": "1"})

    assert (headers[name], headers.get(name), name in headers) == ("1", "1", True)
    assert headers == {"x-mine": "1"}
    assert json.dumps(headers) == '{"x-mine": "1"}'


def test_header_with_an_underscore_of_its_own_is_found_by_that():
    """The name as it stands there goes first."""
    assert HeaderTable({"x_mine": "1", "x-mine": "2"})["x_mine"] == "1"


def test_header_that_is_not_there_is_an_error_by_key_and_none_by_get():
    """As in any mapping; a number is no name."""
    headers = HeaderTable({"x-mine": "1"})

    assert (headers.get("X-Other"), headers.get("X-Other", "2"), 1 in headers) == (None, "2", False)
    with pytest.raises(KeyError, match="x-other"):
        headers["X-Other"]


def test_header_is_replaced_and_removed_however_its_name_is_written():
    """There is one of each name; a new one is written in lower case."""
    headers = HeaderTable({"x-mine": "1"})
    headers["X_Mine"] = "2"
    headers.update({"X-New": "3"}, X_Other="4")
    assert headers == {"x-mine": "2", "x-new": "3", "x-other": "4"}

    del headers["X-Mine"]
    assert headers.pop("X-New") == "3"
    assert dict(headers) == {**headers} == {"x-other": "4"}


def test_tables_joined_are_tables():
    """What is copied, or joined with a mapping, has fields as before, and headers in any case."""
    assert (Table(a=1) | {"b": 2}).b == Table(b=2).copy().b == 2
    headers = HeaderTable({"x-mine": "1"}) | {"X_Yours": "2"}
    headers |= {"X-New": "3"}
    assert (headers["X-Yours"], headers["x_new"], len(headers)) == ("2", "3", 3)
