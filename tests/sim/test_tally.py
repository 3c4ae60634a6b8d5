"""Counts by subject in shared memory: none gets lost with its worker, and none goes back."""

from sim.scoreboard import RECORDS_PER_SLOT, Scoreboard
from sim.tally import CELLS, Key, Kind, Numbers, Tally

ROUTE, OTHER = ("orders", "all"), ("orders", "some")


def tally(*subjects):
    return Tally.alone(subjects or (ROUTE,))


def test_subjects_have_numbers_for_good():
    """What comes later changes no number; what was never named has none."""
    numbers = Numbers()
    numbers.add([ROUTE])
    numbers.add([OTHER, ROUTE])

    assert (numbers.of(ROUTE), numbers.of(OTHER), numbers.of(("x",))) == (0, 1, None)
    assert numbers.names() == {0: ROUTE, 1: OTHER}


def test_counts_are_read_by_their_keys():
    """Each kind, subject and detail is a count of its own."""
    counted = tally(ROUTE, OTHER)
    for _ in range(3):
        counted.add(Kind.REQUESTS, 0, 401)
    counted.add(Kind.REQUESTS, 1, 401)
    counted.add(Kind.KONG_LATENCY_MS, 0, 0, 250)
    counted.add(Kind.KONG_LATENCY_MS, 0, 0, 50)

    assert counted.read() == {
        Key(Kind.REQUESTS, 0, 401): 3,
        Key(Kind.REQUESTS, 1, 401): 1,
        Key(Kind.KONG_LATENCY_MS, 0, 0): 300,
    }


def test_next_worker_counts_on_and_says_anew_what_stands():
    """A count never goes back; the health that the dead has seen is not the living's."""
    counted = tally()
    counted.add(Kind.REQUESTS, 0, 401)
    counted.put(Kind.TARGET_HEALTH, 0, 1, 1)

    counted.begin()
    counted.add(Kind.REQUESTS, 0, 401)
    counted.add(Kind.REQUESTS, 0, 1000)

    assert counted.read() == {
        Key(Kind.REQUESTS, 0, 401): 2,
        Key(Kind.TARGET_HEALTH, 0, 1): 0,
        Key(Kind.REQUESTS, 0, 1000): 1,
    }


def test_what_finds_no_cell_is_left_out_and_counted():
    """The others go on."""
    counted = tally()
    for detail in range(CELLS + 2):
        counted.add(Kind.REQUESTS, 0, detail)
    counted.add(Kind.REQUESTS, 0, 0)

    read = counted.read()
    assert (len(read), sum(read.values()), counted.left_out) == (CELLS, CELLS + 1, 2)
    counted.begin()
    assert counted.read() == read


def test_tallies_of_all_incarnations_add_up():
    """However often the records of a slot are handed out again."""
    scoreboard = Scoreboard(1)
    scoreboard.numbers.add([ROUTE])
    for _ in range(3 * RECORDS_PER_SLOT):
        record = scoreboard.open(0, generation=1)
        record.tally.begin()
        record.tally.add(Kind.REQUESTS, 0, 401)
        record.end(-9)
    living = scoreboard.open(0, generation=1)
    living.tally.add(Kind.REQUESTS, 0, 401)

    found = [(lives, read) for lives, one in scoreboard.tallies() if (read := one.read())]
    assert sum(read[Key(Kind.REQUESTS, 0, 401)] for _, read in found) == 3 * RECORDS_PER_SLOT + 1
    assert sum(lives for lives, _ in found) == 1
