"""Double entry: whatever happens to spans, the books balance; whatever is not booked, they tell."""

from hypothesis import given
from hypothesis import strategies as st

from sim.ledger import ACCOUNTS, GAUGES, close, standing, total

# What can happen to a span: where it was, where it goes, and the accounts that say so.
EVENTS = {
    "create": (None, "spans_open", ["created"]),
    "release unsampled": ("spans_open", None, ["unsampled"]),
    "release unseen": ("spans_open", None, ["unprocessed"]),
    "refuse": ("spans_open", None, ["rejected"]),
    "enqueue": ("spans_open", "queue_depth", ["enqueued"]),
    "copy again": (None, "queue_depth", ["copied_again", "enqueued"]),
    "overflow": ("queue_depth", None, ["dropped_overflow"]),
    "swallow": ("queue_depth", None, ["swallowed"]),
    "send": ("queue_depth", "in_flight", []),
    "acknowledge": ("in_flight", None, ["acknowledged"]),
    "give up": ("in_flight", None, ["dropped_retries"]),
    "be refused": ("in_flight", None, ["dropped_refused"]),
    "terminate a request": ("spans_open", None, ["lost_in_request"]),
    "terminate the queue": ("queue_depth", None, ["dropped_shutdown"]),
    "terminate a batch": ("in_flight", None, ["dropped_shutdown"]),
}


def lives():
    """A worker's life: numbers that choose among the events possible at that moment."""
    return st.lists(st.integers(0, len(EVENTS) - 1), max_size=60)


def live(choices):
    """Return what a worker publishes after such a life, and every booking that it made."""
    values = dict.fromkeys([*ACCOUNTS, *GAUGES.values()], 0)
    booked = []
    for choice in choices:
        possible = [event for event in EVENTS.values() if event[0] is None or values[event[0]]]
        source, target, accounts = possible[choice % len(possible)]
        for place, step in ((source, -1), (target, 1)):
            if place:
                values[place] += step
        for account in accounts:
            values[account] += 1
            booked.append(account)
    return values, booked


@given(lives())
def test_books_of_any_life_balance_while_it_lasts_and_after_any_death(choices):
    """No order of legal events leaves anything unaccounted: alive, or killed at that moment."""
    values, _booked = live(choices)

    assert standing(values).unaccounted == 0
    killed = close(values, exited_cleanly=False)
    assert killed.unaccounted == 0
    assert killed.lost == (
        killed.created + killed.copied_again - killed.unsampled - killed.unprocessed - killed.acknowledged
    )
    assert (killed.open, killed.queued, killed.in_flight) == (0, 0, 0)


@given(lives())
def test_worker_that_leaves_in_order_balances_exactly_when_it_holds_nothing(choices):
    """A clean exit books no losses: what is still held is missed, span by span."""
    values, _booked = live(choices)

    held = sum(values[gauge] for gauge in GAUGES.values())

    assert close(values, exited_cleanly=True).unaccounted == held


@given(lives().filter(bool), st.data())
def test_any_booking_that_is_forgotten_is_missed(choices, data):
    """A single booking left out makes the books wrong, whichever it is and however the worker ends."""
    values, booked = live(choices)
    values[data.draw(st.sampled_from(booked))] -= 1

    assert standing(values).unaccounted > 0
    assert close(values, exited_cleanly=False).unaccounted > 0


@given(st.lists(lives(), max_size=5))
def test_sum_of_balanced_books_balances(workers):
    """Adding up workers adds up their accounts and invents nothing."""
    ledgers = [close(live(choices)[0], exited_cleanly=False) for choices in workers]

    both = total(ledgers)

    assert both.created == sum(books.created for books in ledgers)
    assert both.unaccounted == 0
