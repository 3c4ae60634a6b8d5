"""What plugins find below `kong.ngx`."""

import asyncio
import sqlite3
from types import SimpleNamespace

import pytest

from kongtrace import NOOP_SPAN, PHASES, Execution
from sim.ngx import Database


def test_database_closes_its_connection_when_nobody_has_it_any_more():
    """A worker that is gone leaves no open connection behind, of which Python would warn."""
    execution = Execution()
    execution.enter(PHASES["access"], {})
    database = Database(execution, SimpleNamespace(db_query=lambda *_: NOOP_SPAN))

    async def asked(database):
        return await database.query("SELECT 1 AS one")

    assert asyncio.run(asked(database)) == ([{"one": 1}], None)
    connection = database._connection
    del database
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        connection.execute("SELECT 1")
