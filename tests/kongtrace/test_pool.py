"""A pool recycles what was released last, within limits, and its balance tells what became of every object."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kongtrace import ReleasedSpanError, pool
from kongtrace.pool import FREE_MAX, RELEASES_MAX, Balance, ListPool, Pool, PooledList, Unpooled


def lists():
    return Pool("LISTS", list, list.clear)


def test_an_empty_pool_makes_a_new_object():
    """What is fetched from an empty pool has been made for it."""  # P2
    objects = lists()
    assert objects.fetch() == []
    assert objects.balance() == Balance(fetched=1, hits=0, misses=1, released=0, discarded=0, live=1, free=0)


def test_the_object_released_last_is_fetched_first():
    """A pool is last in, first out."""  # P2
    objects = lists()
    first, second = objects.fetch(), objects.fetch()
    objects.release(first)
    objects.release(second)
    assert objects.fetch() is second
    assert objects.fetch() is first


def test_a_released_object_is_empty():
    """Release clears an object before its next use."""  # P6
    objects = lists()
    objects.release([1, 2])
    assert objects.fetch() == []


def test_a_full_pool_discards_without_clearing():
    """What finds no room keeps its content, and counts as discarded."""  # P5, P7
    objects = lists()
    for _ in range(FREE_MAX):
        objects.release([1])
    objects.release(late := [1])
    assert late == [1]
    assert objects.balance().free == FREE_MAX
    assert objects.balance().discarded == 1


def test_a_pool_is_thrown_away_when_its_releases_are_counted_up():
    """The release that completes the count finds an empty pool, and is neither stored nor cleared."""  # P4
    objects = lists()
    for _ in range(RELEASES_MAX - 1):
        objects.release(objects.fetch())
    assert objects.balance().free == 1
    objects.release(last := [1])
    assert last == [1]
    assert objects.balance().free == 0
    objects.release(objects.fetch())
    assert objects.balance().free == 1


def test_discarded_objects_count_towards_the_replacement():
    """Every release is counted, that into a full pool too."""  # P4
    objects = lists()
    for _ in range(RELEASES_MAX - 1):
        objects.release([])
    assert objects.balance().free == FREE_MAX
    objects.release([])
    assert objects.balance().free == 0


def test_an_object_that_is_left_to_its_holder_is_cleared_and_not_kept():
    """Leaving an object empties it, and keeps it out of the free list."""
    objects = lists()
    objects.leave(held := [1])
    assert held == []
    assert objects.balance()[3:] == (0, 1, -1, 0)


def test_where_nothing_is_pooled_all_is_new_and_nothing_is_counted():
    """What is released stays as it is with whoever holds it."""
    objects = Unpooled(list)
    objects.release(table := objects.fetch())
    table.append(1)
    assert objects.fetch() == []
    assert table == [1]
    assert set(objects.balance()) == {0}


@pytest.fixture
def list_pool():
    """One that is empty."""
    return ListPool("LISTS")


def test_a_released_list_has_no_count_and_takes_nothing(list_pool):
    """Its count stood in it; whoever kept it shares the list with whom it is lent to next."""  # P6
    list_pool.release(kept := list_pool.fetch())
    list_pool.look_at(kept)
    assert (kept, kept.item_count) == ([], None)
    with pytest.raises(ReleasedSpanError, match="list has been released"):
        kept.append(2)
    assert list_pool.fetch() is kept
    kept.append(3)
    list_pool.look_at(kept)
    assert (kept, kept.item_count) == ([3], 1)


def test_a_list_that_is_lent_to_two_counts_from_1_for_the_second(list_pool):
    """It was released twice; what it has is not counted, and is replaced one by one."""  # P10
    list_pool.release(released := list_pool.fetch())
    list_pool.release_again(released)
    assert list_pool.fetch() is released
    released.append(1)
    released.append(2)
    assert list_pool.fetch() is released
    assert (released, released.item_count) == ([1, 2], 0)
    for item in (3, 4, 5):
        released.append(item)
    assert (released, released.item_count) == ([3, 4, 5], 3)
    assert list_pool.balance().live == 2


def test_what_a_list_has_is_given_up_when_it_is_lent_to_a_second():
    """Nobody will find it there again."""  # P10
    given_up = []
    objects = ListPool("LISTS", given_up.extend)
    objects.release(released := objects.fetch())
    objects.release_again(released)
    objects.fetch().append(1)
    objects.fetch().append(2)
    assert (released, given_up) == ([2], [1])


def test_of_two_holders_of_a_list_the_first_to_release_it_takes_it_from_the_other(list_pool):
    """Until it is lent again."""  # P10
    list_pool.release(released := list_pool.fetch())
    list_pool.release_again(released)
    for _ in range(2):
        list_pool.fetch()
    list_pool.release(released)
    with pytest.raises(ReleasedSpanError, match="list has been released"):
        released.append(1)
    list_pool.release(released)
    assert list_pool.balance().live == 0


def test_a_list_that_found_no_room_is_as_it_was(list_pool):
    """It has kept its count."""  # P5, P7
    list_pool.free_max = 0
    list_pool.fetch().append(0)
    list_pool.release(kept := list_pool.fetch())
    list_pool.look_at(kept)
    kept.append(1)
    assert (kept, kept.item_count) == ([1], 1)


def test_a_list_that_was_thrown_away_with_its_pool_stays_released(list_pool):
    """Nobody will be lent it."""  # P4, P6
    list_pool.release(kept := list_pool.fetch())
    list_pool.due = 1
    list_pool.release(last := PooledList())
    list_pool.look_at(kept)
    with pytest.raises(ReleasedSpanError, match="list has been released"):
        kept.append(1)
    last.append(1)
    assert list_pool.fetch() is not kept


def test_a_list_that_is_lent_stays_so_when_its_pool_is_thrown_away(list_pool):
    """It was in it once more."""  # P4, P10
    list_pool.release(released := list_pool.fetch())
    list_pool.release_again(released)
    list_pool.fetch().append(1)
    list_pool.due = 1
    list_pool.release(PooledList())
    released.append(2)
    assert released == [1, 2]


@given(steps=st.lists(st.sampled_from(["fetch", "release", "release again", "adopt", "many", "give up"]), max_size=80))
def test_the_balance_holds_whatever_happens(steps):
    """Fetched is released and discarded and live; misses and hits are fetched; free is what a count gives."""
    limits = pool.FREE_MAX, pool.RELEASES_MAX
    pool.FREE_MAX, pool.RELEASES_MAX = 3, 7
    try:
        objects = lists()
        out: list[list[int]] = []
        fetched = given_back = 0
        for step in steps:
            if step == "fetch":
                out.append(objects.fetch())
                fetched += 1
            elif step == "adopt":
                out.append([])
                objects.adopted += 1
                fetched += 1
            elif step == "many":
                given_back += len(out)
                objects.release_all(out)
                out = []
            elif step == "give up" and out:
                out.pop()
                objects.given_up += 1
                given_back += 1
            elif out:
                objects.release(out.pop())
                given_back += 1
            balance = objects.balance()
            assert balance.fetched == fetched
            assert balance.live == len(out) == fetched - given_back
            assert balance.fetched == balance.released + balance.discarded + balance.live
            assert balance.fetched == balance.hits + balance.misses + objects.adopted
            assert balance.free == len(objects.free) <= objects.free_max
    finally:
        pool.FREE_MAX, pool.RELEASES_MAX = limits


@given(counts=st.lists(st.integers(0, 9), max_size=12))
def test_many_releases_at_once_do_what_as_many_single_ones_do(counts):
    """Releasing a list leaves the same objects in the pool, in the same order, and the same balance."""
    limits = pool.FREE_MAX, pool.RELEASES_MAX
    pool.FREE_MAX, pool.RELEASES_MAX = 5, 17
    try:
        at_once, singly = lists(), lists()
        for count in counts:
            out = [at_once.fetch() for _ in range(count)]
            same = [singly.fetch() for _ in range(count)]
            for number, (one, other) in enumerate(zip(out, same, strict=True)):
                one.append(number)
                other.append(number)
            at_once.release_all(out)
            for each in same:
                singly.release(each)
            assert at_once.free == singly.free
            assert at_once.balance() == singly.balance()
    finally:
        pool.FREE_MAX, pool.RELEASES_MAX = limits
