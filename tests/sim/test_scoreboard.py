"""Shared records that outlive their worker and are never seen torn."""

import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from sim import process
from sim.errors import UserError
from sim.ledger import Ledger
from sim.scoreboard import FIELD_INDEX, FIELDS, POOLS, RECORDS_PER_SLOT, Record, Scoreboard, State, new_row

TIMEOUT_S = 20.0


def row(**values):
    filled = new_row()
    for name, value in values.items():
        filled[FIELD_INDEX[name]] = value
    return filled


def test_every_field_has_a_name_of_its_own():
    """A name stands for one place in the row."""
    assert len(FIELD_INDEX) == len(FIELDS) == len(new_row())


def test_fresh_record_is_a_worker_that_starts_and_has_counted_nothing():
    """What the master opens is visible at once, before the worker has said a word."""
    scoreboard = Scoreboard(2)
    scoreboard.open(1, generation=3)

    (worker,) = scoreboard.read().workers

    assert (worker.slot, worker.generation, worker.serial, worker.pid, worker.exit_code) == (1, 3, 1, None, None)
    assert worker.state is State.STARTING
    assert set(worker.values.values()) == {0}


def test_published_row_is_read_by_name():
    """Every number published is found under its field's name."""
    scoreboard = Scoreboard(1)
    record = scoreboard.open(0, generation=1)
    record.started(4711)
    filled = new_row()
    filled[:] = type(filled)("q", range(len(FIELDS)))
    filled[FIELD_INDEX["state"]] = State.SERVING

    record.publish(filled)

    (worker,) = scoreboard.read().workers
    assert worker.pid == 4711
    assert worker.state is State.SERVING
    assert [worker.values[field.name] for field in FIELDS][1:] == list(range(1, len(FIELDS)))


def test_row_published_last_is_the_one_that_counts():
    """Each publication replaces the one before."""
    scoreboard = Scoreboard(1)
    record = scoreboard.open(0, generation=1)
    for requests in range(5):
        record.publish(row(requests=requests))

        assert scoreboard.read().sum("requests") == requests


def test_what_a_worker_published_is_seen_by_its_parent():
    """The memory is shared across the fork, in both directions of time."""
    scoreboard = Scoreboard(1)
    record = scoreboard.open(0, generation=1)
    child = process.start(lambda: record.publish(row(requests=7)), name="worker")

    assert process.reap(child, TIMEOUT_S) == 0
    assert scoreboard.read().sum("requests") == 7


def test_slots_that_come_later_are_seen_by_who_knew_the_earlier_ones():
    """A reload with more workers makes the memory longer: who shares it reads the new ones too."""
    scoreboard = Scoreboard(1)
    scoreboard.open(0, generation=1).publish(row(requests=1))

    def grow():
        scoreboard.grow(3)
        scoreboard.open(2, generation=2).publish(row(requests=4))

    assert scoreboard.read().sum("requests") == 1
    assert process.reap(process.start(grow, name="master"), TIMEOUT_S) == 0
    assert scoreboard.read().sum("requests") == 5
    assert [worker.slot for worker in scoreboard.read().workers] == [0, 2]
    scoreboard.grow(2)
    assert scoreboard.slots == 3


def test_memory_is_mapped_for_the_slots_that_there_are():
    """No address space is taken for workers that nobody has asked for: it may be limited, or not be overcommitted."""
    before = address_space()
    scoreboard = Scoreboard(2)

    assert address_space() - before < 4 * 2**20
    used, most = scoreboard.size_bytes
    assert used < most < 4 * 2**20


def address_space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def test_want_of_memory_is_told_with_what_to_do():
    """Where address space is limited, more workers than it has room for are refused, and those before stay."""
    scoreboard = Scoreboard(1)

    def grow():
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + 2**26,) * 2)
        with pytest.raises(UserError, match="no shared memory for 1000 workers: Cannot allocate memory") as raised:
            scoreboard.grow(1000)
        sys.exit(0 if (raised.value.field, scoreboard.slots) == ("workers", 1) else 1)

    assert process.reap(process.start(grow, name="master"), TIMEOUT_S) == 0
    assert scoreboard.open(0, generation=1).slot == 0


def test_counts_of_a_dead_worker_stay_in_the_sums():
    """The worker that takes over a slot counts from zero beside what the dead one left."""
    scoreboard = Scoreboard(1)
    first = scoreboard.open(0, generation=1)
    first.publish(row(requests=5, created=9, spans_open=9, requests_active=1))
    first.end(-signal.SIGKILL)
    second = scoreboard.open(0, generation=1)
    second.publish(row(requests=2, created=3, unsampled=3, requests_active=4))

    reading = scoreboard.read()

    assert [(w.serial, w.exit_code, w.state) for w in reading.workers] == [
        (1, -signal.SIGKILL, State.EXITED),
        (2, None, State.STARTING),
    ]
    assert reading.sum("requests") == 7
    assert reading.sum("requests_active") == 4
    assert reading.ledger == Ledger(created=12, lost_in_request=9, lost=9, unsampled=3)


def test_slot_never_runs_out_of_records_for_the_respawned():
    """However often a worker dies, nothing that it counted is lost and the memory stays the same."""
    scoreboard = Scoreboard(2)
    deaths = 3 * RECORDS_PER_SLOT
    for n in range(deaths):
        record = scoreboard.open(1, generation=1)
        record.publish(
            row(requests=1, created=2, spans_open=2, loop_lag_ns_max=n, rss_bytes=10, **{"KONG_SPAN.hits": 3})
        )
        record.end(-signal.SIGKILL)

        assert scoreboard.read().sum("requests") == n + 1

    reading = scoreboard.read()
    untouched, retired = reading.retired
    assert (untouched.incarnations, untouched.deaths) == (0, 0)
    assert (retired.incarnations, retired.deaths) == (deaths - RECORDS_PER_SLOT,) * 2
    assert retired.values["loop_lag_ns_max"] == deaths - RECORDS_PER_SLOT - 1
    assert retired.values["rss_bytes"] == 0
    assert reading.sum("KONG_SPAN.hits") == 3 * deaths
    assert reading.ledger == Ledger(created=2 * deaths, lost_in_request=2 * deaths, lost=2 * deaths)
    assert [worker.serial for worker in reading.workers] == list(range(deaths - RECORDS_PER_SLOT + 1, deaths + 1))


def test_records_of_the_living_are_never_taken():
    """Only the dead give their records up; a slot in which all live takes no further worker."""
    scoreboard = Scoreboard(1)
    records = [scoreboard.open(0, generation=n) for n in range(RECORDS_PER_SLOT)]
    with pytest.raises(RuntimeError, match=r"^slot 0 already has 32 workers alive$"):
        scoreboard.open(0, generation=99)

    records[5].end(0)

    assert scoreboard.open(0, generation=99) is records[5]
    assert len(scoreboard.read().alive) == RECORDS_PER_SLOT


def test_master_that_dies_while_it_adds_a_record_to_the_total_counts_nothing_twice(monkeypatch):
    """Between the total's publication and the record's freeing the record is in the total already, and only there."""
    scoreboard = Scoreboard(1)
    for _ in range(RECORDS_PER_SLOT):
        record = scoreboard.open(0, generation=1)
        record.publish(row(requests=1))
        record.end(0)
    monkeypatch.setattr(Record, "give_up", lambda _self: os._exit(1))
    master = process.start(lambda: scoreboard.open(0, generation=1), name="master")

    assert process.reap(master, TIMEOUT_S) == 1

    reading = scoreboard.read()
    assert reading.retired[0].incarnations == 1
    assert len(reading.workers) == RECORDS_PER_SLOT - 1
    assert reading.sum("requests") == RECORDS_PER_SLOT


def test_pools_are_read_by_tag():
    """Each pool's balance is made of the fields that carry its tag."""
    scoreboard = Scoreboard(1)
    record = scoreboard.open(0, generation=1)
    record.publish(row(**{"KONG_SPAN.fetched": 5, "KONG_SPAN.released": 2, "KONG_SPAN.discarded": 1}))

    (worker,) = scoreboard.read().workers

    assert tuple(worker.pools) == POOLS
    assert worker.pools["KONG_SPAN"].live == 2
    assert worker.pools["KONG_SPAN_EVENTS"].live == 0


def test_row_of_a_writer_killed_while_it_writes_is_whole():
    """A writer killed with -9 in a tight loop leaves a row that it published, a hundred times in a row."""
    scoreboard = Scoreboard(1)

    def write_for_ever(record, control):
        filled = new_row()
        control.send("writing")
        while True:
            for n in range(len(filled)):
                filled[n] += 1
            record.publish(filled)

    kills = 100
    for _ in range(kills):
        record = scoreboard.open(0, generation=1)
        ours, theirs = process.pipe()
        writer = process.start(write_for_ever, record, theirs, name="writer", closing=[ours])
        theirs.close()
        ours.recv()
        seen = [record.read().values for _ in range(20)]
        writer.kill()
        seen += [record.read().values for _ in range(20)]
        process.reap(writer, TIMEOUT_S)
        seen.append(record.read().values)
        record.end(writer.exitcode)

        assert [len(set(values.values())) for values in seen] == [1] * len(seen)
        requests = [values["requests"] for values in seen]
        assert requests == sorted(requests)
    reading = scoreboard.read()
    assert len(reading.workers) + reading.retired[0].incarnations == kills
    assert reading.sum("requests") == reading.sum("created") == reading.sum("KONG_SPAN.hits") > 0
