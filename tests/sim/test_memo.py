"""A memo: made once, bounded, and without what it is told not to keep."""

import pytest

from sim.memo import Memo


def test_value_is_made_once_for_a_key():
    """The second look finds what the first has made."""
    made = []
    memo = Memo(lambda key: made.append(key) or -key, 10)

    assert [memo[1], memo[2], memo[1]] == [-1, -2, -1]
    assert made == [1, 2]


def test_full_memo_forgets_everything_and_goes_on():
    """It never holds more than it may."""
    memo = Memo(str, 3)

    assert [memo[key] for key in range(10)] == [str(key) for key in range(10)]
    assert dict(memo) == {9: "9"}


def test_what_is_not_to_be_kept_and_what_raises_is_made_each_time():
    """Large keys and failures take no place."""
    memo = Memo(lambda key: 10 // key, 10, lambda key: key < 5)

    assert (memo[7], memo[2]) == (1, 5)
    with pytest.raises(ZeroDivisionError):
        memo[0]
    assert dict(memo) == {2: 5}
