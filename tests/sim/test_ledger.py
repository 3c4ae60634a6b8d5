"""The accounts of spans, and what a death does to them."""

from sim.ledger import ACCOUNTS, GAUGES, Ledger, PoolBalance, close, pool_balance, standing, total


def published(**values):
    return dict.fromkeys([*ACCOUNTS, *GAUGES.values()], 0) | values


def test_living_worker_balances_with_what_it_holds():
    """What is open, queued or on its way stands in columns of its own and is not missing."""
    values = published(created=10, unsampled=1, enqueued=6, acknowledged=2, spans_open=3, queue_depth=3, in_flight=1)

    books = standing(values)

    assert (books.open, books.queued, books.in_flight) == (3, 3, 1)
    assert books.unaccounted == 0


def test_killed_worker_lost_what_it_held():
    """What a worker held when it died is booked from what it had published about it."""
    values = published(created=10, unsampled=1, enqueued=6, acknowledged=2, spans_open=3, queue_depth=3, in_flight=1)

    books = close(values, exited_cleanly=False)

    assert books == Ledger(
        created=10, unsampled=1, enqueued=6, acknowledged=2, lost_in_request=3, lost_in_queue=4, lost=7, unaccounted=0
    )


def test_worker_that_exits_cleanly_has_nothing_to_lose():
    """A span still held by a worker that left of its own accord has gone missing."""
    values = published(created=10, enqueued=9, acknowledged=7, spans_open=1, queue_depth=2)

    books = close(values, exited_cleanly=True)

    assert (books.lost_in_request, books.lost_in_queue) == (0, 0)
    assert books.unaccounted == 3


def test_worker_that_was_terminated_books_its_losses_itself():
    """Losses counted by the worker stand, and a later death adds only what it still held."""
    values = published(created=10, enqueued=6, lost_in_request=4, dropped_shutdown=6)

    assert close(values, exited_cleanly=True) == close(values, exited_cleanly=False)
    assert close(values, exited_cleanly=True).unaccounted == 0


def test_entries_that_the_queue_swallows_have_an_account():
    """A span that the queue loses without a word is not missing but swallowed."""  # Q29
    assert close(published(created=2, enqueued=2, acknowledged=1, swallowed=1), exited_cleanly=True).unaccounted == 0


def test_too_much_is_as_wrong_as_too_little():
    """A span booked twice is unaccounted for like one that is missing."""
    assert close(published(created=1, unsampled=2), exited_cleanly=True).unaccounted == 1
    assert close(published(created=1), exited_cleanly=True).unaccounted == 1


def test_errors_of_both_equations_add_up():
    """A span enqueued but not counted so is missed in both equations; they never make up for each other."""
    assert close(published(created=1, acknowledged=1), exited_cleanly=True).unaccounted == 2


def test_errors_of_two_workers_do_not_cancel_out():
    """One worker's missing span is not made good by another's surplus."""
    short = close(published(created=1), exited_cleanly=True)
    long = close(published(unsampled=1), exited_cleanly=True)

    both = total([short, long])

    assert (both.created, both.unsampled) == (1, 1)
    assert both.unaccounted == 2


def test_sum_of_no_ledgers_is_empty():
    """A run without workers has empty books."""
    assert total([]) == Ledger()


def test_pool_balance_shows_what_is_not_given_back():
    """Fetched objects are released, discarded, or still live."""
    values = {f"KONG_SPAN.{name}": n for name, n in zip(PoolBalance.__slots__, (10, 6, 1, 4, 6, 5), strict=True)}

    pool = pool_balance(values, "KONG_SPAN")

    assert pool == PoolBalance(fetched=10, released=6, discarded=1, hits=4, misses=6, free=5)
    assert pool.live == 3
    assert (pool + pool).live == 6
