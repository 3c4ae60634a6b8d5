"""The scoreboard beside a plain list of everything that was ever published."""

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from sim import scoreboard
from sim.ledger import Ledger
from sim.scoreboard import FIELD_INDEX, Scoreboard, new_row

SLOTS = 2
RECORDS = 3  # few, so that they are soon handed out again


class ScoreboardMachine(RuleBasedStateMachine):
    """Workers start, count, and die in any order; a model keeps a dictionary for each."""

    workers = Bundle("workers")

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(scoreboard, "RECORDS_PER_SLOT", RECORDS)
        self.scoreboard = Scoreboard(SLOTS)
        self.model = []

    def teardown(self):
        self.patch.undo()

    @rule(target=workers, slot=st.integers(0, SLOTS - 1))
    def start(self, slot):
        alive = [worker for worker in self.model if worker["slot"] == slot and worker["code"] is None]
        if len(alive) == RECORDS:
            with pytest.raises(RuntimeError):
                self.scoreboard.open(slot, generation=1)
            return None
        worker = {"slot": slot, "code": None, "counts": Counter(), "row": new_row()}
        worker["record"] = self.scoreboard.open(slot, generation=1)
        self.model.append(worker)
        return worker

    @rule(worker=workers, requests=st.integers(0, 3), spans=st.integers(0, 3), active=st.integers(0, 5))
    def count(self, worker, requests, spans, active):
        if worker is None or worker["code"] is not None:
            return
        worker["counts"] += Counter(requests=requests, created=spans, spans_open=spans)
        worker["counts"]["requests_active"] = active
        for name, value in worker["counts"].items():
            worker["row"][FIELD_INDEX[name]] = value
        worker["record"].publish(worker["row"])

    @rule(worker=consumes(workers))
    def die(self, worker):
        if worker is not None:
            worker["record"].end(-9)
            worker["code"] = -9

    @invariant()
    def counters_of_all_workers_add_up(self):
        reading = self.scoreboard.read()
        for name in ("requests", "created"):
            assert reading.sum(name) == sum(worker["counts"][name] for worker in self.model)

    @invariant()
    def gauges_of_the_living_add_up(self):
        alive = [worker for worker in self.model if worker["code"] is None]
        reading = self.scoreboard.read()
        assert reading.sum("requests_active") == sum(worker["counts"]["requests_active"] for worker in alive)
        assert len(reading.alive) == len(alive)

    @invariant()
    def every_incarnation_is_counted_once(self):
        reading = self.scoreboard.read()
        retired = sum(slot.incarnations for slot in reading.retired)
        assert retired + len(reading.workers) == len(self.model)

    @invariant()
    def books_balance(self):
        created = sum(worker["counts"]["created"] for worker in self.model)
        held = sum(worker["counts"]["spans_open"] for worker in self.model if worker["code"] is None)
        lost = created - held
        assert self.scoreboard.read().ledger == Ledger(created=created, open=held, lost_in_request=lost, lost=lost)


TestScoreboard = ScoreboardMachine.TestCase
