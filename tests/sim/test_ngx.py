"""What plugins find below `kong.ngx`."""

import asyncio
import gc
import sqlite3
import threading
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


def test_database_may_be_collected_in_any_thread():
    """A collection runs where it runs; what it closes is in use nowhere."""
    execution = Execution()
    execution.enter(PHASES["timer"], None)
    database = Database(execution, SimpleNamespace(db_query=lambda *_: NOOP_SPAN))
    said = []
    thread = threading.Thread(target=_ask, args=(database, said))
    thread.start()
    thread.join()
    del thread
    assert said == [([{"one": 1}], None)]
    del database
    gc.collect()  # an error of a finalizer fails the test


def _ask(database, said):
    async def asked():
        said.append(await database.query("SELECT 1 AS one"))

    asyncio.run(asked())
