"""The places that a worker has for connections."""

import pytest

from sim.connection_table import ConnectionTable


class Client:
    def __init__(self, closed):
        self.close = lambda: closed.append(self)


class World:
    """A worker of 32 places."""

    def __init__(self, *, used, idle=0):
        self.now_s = 100.0
        self.used = used
        self.closed = []
        self.clients = [Client(self.closed) for _ in range(idle)]
        self.lines = []
        self.table = ConnectionTable(
            32, lambda: self.used, lambda: self.clients, lambda: self.now_s, lambda *line: self.lines.append(line)
        )


def test_connection_is_admitted_without_a_word_while_there_is_room():
    """Below a sixteenth of the places being free, nothing happens."""
    world = World(used=29, idle=5)

    assert world.table.admits()
    assert (world.closed, world.lines) == ([], [])


@pytest.mark.parametrize(("idle", "closed"), [(1, 1), (16, 2), (400, 32)])
def test_idle_clients_make_room_when_few_places_are_left(idle, closed):
    """An eighth of them is closed, at least one and at most 32, the oldest first."""
    world = World(used=30, idle=idle)

    assert world.table.admits()
    assert world.closed == world.clients[:closed]
    assert world.lines == [("warn", "32 worker_connections are not enough, reusing connections")]


def test_reuse_is_logged_once_a_second():
    """A worker that is always nearly full does not flood its log."""
    world = World(used=30, idle=1)
    for after_s in (0, 0.5, 0.6):
        world.now_s += after_s
        world.table.admits()

    assert len(world.lines) == 2


def test_no_connection_is_admitted_when_all_places_are_taken():
    """The refusal is an alert in nginx's words."""
    world = World(used=32)

    assert not world.table.admits()
    assert world.lines == [("alert", "32 worker_connections are not enough")]
