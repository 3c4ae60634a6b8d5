"""The scoreboard: what every worker has counted, in shared memory, so that its death loses no count.

Theory of operation. The memory is a file without a name (memfd_create(2)), made before the first fork, so all processes
of a run share it and nothing is left behind when they end. It is as long as there are slots and takes up what has been
written to; a slot that comes later makes it longer, and each process maps that part when it first sees it. Each slot of
the gateway has `RECORDS_PER_SLOT` records and one total. A record belongs to one *incarnation* of the slot's worker:
the one that a respawn or a reload starts gets a fresh record, and the old one stays as the dead left it. When a slot
runs out of records, the master adds its oldest dead one to the slot's total, losses booked (`sim.ledger`), and hands it
out again.

Every word has one writer. A record's row is written by its worker alone, its header (whose it is, how it ended) and
the totals by the master alone; anybody may read at any time. No lock is held, so none can be left held. What is
published is kept in two copies: the writer fills the one that is not valid and then makes it so with one store of eight
bytes, the sequence number, whose lowest bit tells the valid copy. Killed before that store, it has published nothing;
after it, everything. A reader that finds the sequence number unchanged after copying has seen one whole row. Moving a
record into a total is a publication of the total, in which the record's serial number stands too, so the same store
both adds the record and strikes it out. (Stores are seen in the order they were made: x86-64 promises it.)

`Record.publish` takes about 0.2 us, so a worker calls it in every turn of its event loop in which something changed, at
once or before it waits again: what others can see of a worker, answers and exports, is then never ahead of its record
by more than that turn.

The layout of a row is `FIELDS`; units stand there. Beside its row each record has a tally (`sim.tally`), which stays
where it is when the record is handed out again.
"""

import mmap
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final, Literal
from weakref import finalize

from sim import ledger
from sim.errors import UserError
from sim.ledger import Ledger, PoolBalance
from sim.shared_row import SharedRow
from sim.tally import Numbers, Tally

POOLS: Final = ("KONG_SPAN", "KONG_SPAN_STORAGE", "KONG_SPAN_ATTRIBUTES", "KONG_SPAN_EVENTS")
"""The tags of the pools that are counted (kong-semantics P1)."""

RECORDS_PER_SLOT: Final = 32
"""Generations of one slot that may be alive at once, and a few dead ones to look back on."""


class State(IntEnum):
    """What a worker is doing (kong-semantics W14). Zero is what a fresh record says."""

    STARTING = 0
    SERVING = 1
    DRAINING = 2
    EXITED = 3


@dataclass(frozen=True, slots=True)
class Field:
    """One number of a record.

    Attributes:
        name: Its name.
        unit: What it counts.
        kind: "counter" adds up over workers and incarnations, of "peak" the largest counts, "gauge" is what stands now
            and ends with the worker.
    """

    name: str
    unit: str
    kind: Literal["counter", "gauge", "peak"]


FIELDS: Final = (
    # What a worker publishes with each request stands together: one call writes it.
    Field("state", "State", "gauge"),
    Field("requests", "requests whose log phase has run", "counter"),
    Field("requests_begun", "requests", "counter"),
    Field("responses_2xx", "responses", "counter"),
    Field("responses_3xx", "responses", "counter"),
    Field("responses_4xx", "responses", "counter"),
    Field("responses_5xx", "responses", "counter"),
    Field("connections", "connections accepted", "counter"),
    Field("requests_active", "requests", "gauge"),
    Field("connections_active", "connections of clients", "gauge"),
    Field("timers_pending", "timers", "gauge"),
    Field("timers_running", "timers", "gauge"),
    # The same, with each request that makes spans.
    *(Field(account, "spans", "counter") for account in ledger.ACCOUNTS),
    Field("spans_open", "spans created and not yet in an account", "gauge"),
    Field("queue_depth", "spans enqueued and not yet in a batch", "gauge"),
    Field("queue_depth_max", "spans", "peak"),
    Field("in_flight", "spans in a batch that is being sent or waits for a retry", "gauge"),
    *(
        Field(f"{tag}.{name}", "objects", "gauge" if name == "free" else "counter")
        for tag in POOLS
        for name in PoolBalance.__slots__
    ),
    # From time to time.
    Field("connections_refused", "connections closed at once, since worker_connections were in use", "counter"),
    Field("connections_reading", "connections on which a part of a request head has come", "gauge"),
    Field("queue_bytes", "bytes of the spans enqueued and not yet in a batch, as encoded", "gauge"),
    Field("queue_bytes_max", "bytes", "peak"),
    Field("cpu_ns", "ns of the process CPU clock", "counter"),
    Field("cpu_ns_at_ready", "ns of the process CPU clock when it began to serve", "counter"),
    Field("rss_bytes", "bytes", "gauge"),
    Field("loop_lag_ns_max", "ns that a turn of the event loop came late", "peak"),
)
"""The numbers of a row, in order."""

FIELD_INDEX: Final[Mapping[str, int]] = {field.name: index for index, field in enumerate(FIELDS)}
"""Where each number stands in a row."""

_HEADER: Final = ("serial", "generation", "pid", "exit_code")
_SERIAL, _GENERATION, _PID, _EXIT_CODE = range(len(_HEADER))
_NOT_ENDED: Final = 1 << 62  # no exit code
_TOTAL: Final = ("struck_serial", "incarnations", "deaths", *FIELD_INDEX, *(f"ledger.{n}" for n in Ledger.__slots__))
_WORD_BYTES: Final = 8
_BLOCK_BYTES: Final = 512  # stat(2), st_blocks
_PAGE_SIZE: Final = mmap.ALLOCATIONGRANULARITY // _WORD_BYTES  # a part of the memory that is mapped begins with one


class Record:
    """What one incarnation of a worker has counted: written by the worker, its header by the master.

    Attributes:
        slot: of the worker.
        tally: what it counts by subject.
    """

    __slots__ = ("_header", "_row", "publish", "slot", "tally")

    def __init__(self, slot: int, words: memoryview, tally: Tally) -> None:
        self.slot = slot
        self.tally = tally
        self._header = words[: len(_HEADER)]
        self._row = SharedRow(words[len(_HEADER) :], len(FIELDS))
        self.publish = self._row.publish
        """Called by the worker with its whole row, an `array("q")` in the order of `FIELDS`."""

    @staticmethod
    def size() -> int:
        """Return the words that a record takes up."""
        return len(_HEADER) + SharedRow.size(len(FIELDS))

    @property
    def serial(self) -> int:
        """The incarnation's number, over the whole slot; 0 when the record is free."""
        number: int = self._header[_SERIAL]
        return number

    @property
    def free(self) -> bool:
        """Whether it is nobody's."""
        return self.serial == 0

    @property
    def ended(self) -> bool:
        """Whether its worker has been reaped."""
        return bool(self._header[_EXIT_CODE] != _NOT_ENDED)

    def begin(self, serial: int, generation: int) -> None:
        """Take a free record for a worker about to be forked (master)."""
        self._row.publish(new_row())
        self._header[_GENERATION] = generation
        self._header[_PID] = 0
        self._header[_EXIT_CODE] = _NOT_ENDED
        self._header[_SERIAL] = serial  # last: from here on it counts

    def started(self, pid: int) -> None:
        """Note the pid of the worker just forked (master)."""
        self._header[_PID] = pid

    def end(self, exit_code: int) -> None:
        """Note that the worker was reaped, with its exit code, or -N for signal N (master)."""
        self._header[_EXIT_CODE] = exit_code

    def give_up(self) -> None:
        """Make the record nobody's (master)."""
        self._header[_SERIAL] = 0

    def read(self) -> "Snapshot | None":
        """Return what the record says now, None when it is free."""
        while True:
            serial, generation, pid, exit_code = self._header.tolist()
            row = self._row.read()[1]
            if self._header[_SERIAL] == serial:
                break
        if serial == 0:
            return None
        ended = None if exit_code == _NOT_ENDED else exit_code
        return Snapshot(self.slot, generation, serial, pid or None, ended, dict(zip(FIELD_INDEX, row, strict=True)))


def new_row() -> "array[int]":
    """Make a row of zeros for `Record.publish`."""
    return array("q", bytes(_WORD_BYTES * len(FIELDS)))


@dataclass(frozen=True)
class Snapshot:
    """One incarnation of a worker, as its record said at one instant.

    Attributes:
        slot: Its `worker_id`.
        generation: Of the configuration it was started from.
        serial: Counts the incarnations of the slot, from 1.
        pid: None while the fork has not returned: never 0, which kill(2) takes for the caller's whole group.
        exit_code: None while it has not been reaped; -N when signal N ended it.
        values: The published numbers by name.
    """

    slot: int
    generation: int
    serial: int
    pid: int | None
    exit_code: int | None
    values: Mapping[str, int]

    @property
    def state(self) -> State:
        """What it was doing when it last published; exited once it has been reaped."""
        return State(self.values["state"]) if self.exit_code is None else State.EXITED

    @cached_property
    def ledger(self) -> Ledger:
        """Its books: as they stand, or closed once it has been reaped."""
        if self.exit_code is None:
            return ledger.standing(self.values)
        return ledger.close(self.values, exited_cleanly=self.exit_code == 0)

    @property
    def pools(self) -> dict[str, PoolBalance]:
        """The balance of its pools by tag."""
        return {tag: ledger.pool_balance(self.values, tag) for tag in POOLS}


@dataclass(frozen=True)
class Retired:
    """The incarnations of a slot whose records were needed again, added up.

    Attributes:
        slot: Whose.
        incarnations: How many.
        deaths: How many of these did not exit with 0.
        values: Counters and peaks by name; gauges are 0.
        ledger: The sum of their books.
    """

    slot: int
    incarnations: int
    deaths: int
    values: Mapping[str, int]
    ledger: Ledger

    @property
    def pools(self) -> dict[str, PoolBalance]:
        """The balance of their pools by tag."""
        return {tag: ledger.pool_balance(self.values, tag) for tag in POOLS}


class _Slot:
    """The records and the total of one slot."""

    def __init__(self, slot: int, words: memoryview, numbers: Numbers) -> None:
        self._slot = slot
        self._total = SharedRow(words, len(_TOTAL))
        words = words[SharedRow.size(len(_TOTAL)) :]
        rows, tallies = words[: RECORDS_PER_SLOT * Record.size()], words[RECORDS_PER_SLOT * Record.size() :]
        self._records = tuple(
            Record(
                slot,
                rows[Record.size() * k : Record.size() * (k + 1)],
                Tally(tallies[Tally.SIZE * k : Tally.SIZE * (k + 1)], numbers),
            )
            for k in range(RECORDS_PER_SLOT)
        )

    @staticmethod
    def size() -> int:
        """Return the words that a slot takes up, whole pages of them."""
        used = SharedRow.size(len(_TOTAL)) + RECORDS_PER_SLOT * (Record.size() + Tally.SIZE)
        return -(-used // _PAGE_SIZE) * _PAGE_SIZE

    def open(self, generation: int) -> Record:
        serial = max(record.serial for record in self._records) + 1
        takeable = [record for record in self._records if record.free or record.ended]
        if not takeable:
            raise RuntimeError(f"slot {self._slot} already has {RECORDS_PER_SLOT} workers alive")
        record = min(takeable, key=lambda record: record.serial)  # a free one, or the oldest
        if not record.free:
            self._retire(record)
        record.begin(serial, generation)
        return record

    def tallies(self) -> Iterator[tuple[bool, Tally]]:
        """Yield the tally of each record, and whether its worker lives."""
        return ((not (record.free or record.ended), record.tally) for record in self._records)

    def _retire(self, record: Record) -> None:
        snapshot = record.read()
        assert snapshot is not None
        total = dict(zip(_TOTAL, self._total.read()[1], strict=True))
        total["struck_serial"] = snapshot.serial
        total["incarnations"] += 1
        total["deaths"] += snapshot.exit_code != 0
        for field in FIELDS:
            value = snapshot.values[field.name]
            if field.kind == "counter":
                total[field.name] += value
            elif field.kind == "peak":
                total[field.name] = max(total[field.name], value)
        for name in Ledger.__slots__:
            total[f"ledger.{name}"] += getattr(snapshot.ledger, name)
        self._total.publish(array("q", total.values()))
        record.give_up()

    def read(self) -> tuple[Retired, list[Snapshot]]:
        while True:
            sequence, row = self._total.read()
            total = dict(zip(_TOTAL, row, strict=True))
            snapshots = [s for record in self._records if (s := record.read()) and s.serial != total["struck_serial"]]
            if self._total.sequence() == sequence:
                break
        books = Ledger(*(total[f"ledger.{name}"] for name in Ledger.__slots__))
        values = {name: total[name] for name in FIELD_INDEX}
        retired = Retired(self._slot, total["incarnations"], total["deaths"], values, books)
        return retired, sorted(snapshots, key=lambda snapshot: snapshot.serial)


@dataclass(frozen=True)
class Reading:
    """The whole scoreboard at (nearly) one instant.

    Attributes:
        workers: Every incarnation that has a record, by slot and then in order of birth.
        retired: The sum of the earlier ones, by slot.
    """

    workers: tuple[Snapshot, ...]
    retired: tuple[Retired, ...]

    @property
    def accounts(self) -> tuple[Snapshot | Retired, ...]:
        """Everything that was ever counted, once."""
        return (*self.workers, *self.retired)

    @property
    def alive(self) -> tuple[Snapshot, ...]:
        """The incarnations that have not been reaped."""
        return tuple(worker for worker in self.workers if worker.exit_code is None)

    def sum(self, name: str) -> int:
        """Add up a counter over all incarnations, or a gauge over the living."""
        kind = FIELDS[FIELD_INDEX[name]].kind
        assert kind != "peak", name
        accounts = self.alive if kind == "gauge" else self.accounts
        return sum(account.values[name] for account in accounts)

    @property
    def ledger(self) -> Ledger:
        """The books of all incarnations."""
        return ledger.total(account.ledger for account in self.accounts)


class Scoreboard:
    """Shared memory for the records of workers, to be made before the processes that share it are forked.

    Args:
        slots: That it has from the start; the master makes more with `grow`.

    Attributes:
        numbers: of the subjects of tallies; the master gives them.

    Raises:
        UserError: There is no memory for so many.
    """

    def __init__(self, slots: int) -> None:
        self._memory = os.memfd_create("scoreboard")
        finalize(self, os.close, self._memory)
        self.numbers = Numbers()
        self._seen: list[_Slot] = []
        os.ftruncate(self._memory, _PAGE_SIZE * _WORD_BYTES)
        self._head = self._mapped(0, _PAGE_SIZE)
        self.grow(slots)

    @property
    def slots(self) -> int:
        """How many slots there are, or have been."""
        number: int = self._head[0]
        return number

    @property
    def size_bytes(self) -> tuple[int, int]:
        """The bytes in use, and those that the slots may use."""
        memory = os.fstat(self._memory)
        return memory.st_blocks * _BLOCK_BYTES, memory.st_size

    def grow(self, slots: int) -> None:
        """Have so many slots at least (master).

        Raises:
            UserError: There is no memory for so many.
        """
        if slots <= self.slots:
            return
        try:
            os.ftruncate(self._memory, (_PAGE_SIZE + slots * _Slot.size()) * _WORD_BYTES)
            self._see(slots)
        except OSError as error:
            cure = "have fewer workers, or raise the limit of address space (ulimit -v)"
            message = f"no shared memory for {slots} workers: {error.strerror}"
            raise UserError(message, field="workers", cure=cure) from None
        self._head[0] = slots

    def open(self, slot: int, generation: int) -> Record:
        """Return a fresh record for a worker about to be forked (master).

        Raises:
            RuntimeError: All `RECORDS_PER_SLOT` records of the slot are held by living workers.
        """
        return self._known()[slot].open(generation)

    def read(self) -> Reading:
        """Return what all records say now."""
        slots = [slot.read() for slot in self._known()]
        return Reading(
            workers=tuple(worker for _retired, workers in slots for worker in workers),
            retired=tuple(retired for retired, _workers in slots),
        )

    def tallies(self) -> Iterator[tuple[bool, Tally]]:
        """Yield all tallies that there are, and whether the worker of each lives."""
        return (found for slot in self._known() for found in slot.tallies())

    def _known(self) -> list[_Slot]:
        """Return the slots."""
        self._see(self.slots)
        return self._seen

    def _see(self, slots: int) -> None:
        """Make views of those of so many slots that were not there before."""
        size, known = _Slot.size(), len(self._seen)
        new = slots - known
        if new > 0:
            words = self._mapped(_PAGE_SIZE + known * size, new * size)
            self._seen += [_Slot(known + k, words[k * size : (k + 1) * size], self.numbers) for k in range(new)]

    def _mapped(self, first: int, size: int) -> memoryview:
        """Return a part of the memory, in words."""
        return memoryview(mmap.mmap(self._memory, size * _WORD_BYTES, offset=first * _WORD_BYTES)).cast("q")
