"""The capture keeps export requests as they came, up to its limits, for another process to read."""

from sim import process
from sim.capture import Arrival, Capture

FIRST, SECOND, THIRD = (Arrival(k, 0, b"%d" % k * 10) for k in range(1, 4))


def test_capture_gives_back_what_it_was_given_in_order():
    """Time, rejected spans and bytes of each request; nothing of one that has no spans."""
    capture = Capture()
    assert list(capture) == []

    capture.add(FIRST, 2)
    capture.add(Arrival(7, 3, b"nothing was taken in"), 0)
    capture.add(Arrival(8, 3, b"three were not"), 5)

    assert list(capture) == [FIRST, Arrival(8, 3, b"three were not")]
    assert capture.spans == 7


def test_another_process_reads_what_one_has_added():
    """Also when that one was killed."""
    capture = Capture()
    ours, theirs = process.pipe()

    def collect():
        capture.add(FIRST, 1)
        theirs.send("added")
        theirs.recv()

    child = process.start(collect, name="collector", closing=[ours])
    theirs.close()
    assert ours.recv() == "added"
    process.reap(child, 0)

    assert list(capture) == [FIRST]


def test_nothing_is_kept_from_the_first_request_on_that_has_no_room():
    """A later one that would fit would leave a gap that nobody sees."""
    for limits in ({"spans_max": 5}, {"bytes_max": 64}):
        capture = Capture(**limits)
        capture.add(FIRST, 3)
        capture.add(Arrival(2, 0, b"2" * 50), 3)
        capture.add(THIRD, 1)

        assert (list(capture), capture.spans) == ([FIRST], 3)


def test_capture_may_be_full_to_the_last_byte():
    """It ends where its memory does."""
    capture = Capture(bytes_max=2 * (16 + 10))
    for arrival in (FIRST, SECOND, THIRD):
        capture.add(arrival, 1)

    assert list(capture) == [FIRST, SECOND]
