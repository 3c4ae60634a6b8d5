"""The vocabulary of faults, and when they begin and end."""

from itertools import product
from math import inf

import pytest

from sim.errors import FieldError, UserError
from sim.faults import KINDS, Fault, Timeline, parse_option
from sim.run import _MASTER_SIGNALS, _WORKER_SIGNALS

NEEDED = {"for": "1s", "latency": "1s", "status": 503, "rejected": 0.5, "limit": "100MiB", "rate": "10/s"}


def fault(at, kind="hang", target="collector", **fields):
    return Fault.model_validate({"at": at, "target": target, "kind": kind, **fields})


@pytest.mark.parametrize(("target", "kind"), [(target, kind) for target, kinds in KINDS.items() for kind in kinds])
def test_every_kind_takes_what_it_says(target, kind):
    """With what it needs and with all that it takes, and says so in plain numbers."""
    needs, takes = KINDS[target][kind].needs, KINDS[target][kind].takes
    optional = NEEDED | {"slot": 1, "upstream": "default", "retry_after": "2s"}

    least = fault("1s", kind, target, **{field: NEEDED[field] for field in needs})
    most = fault("1s", kind, target, **{field: optional[field] for field in (*needs, *takes)})

    assert (least.target, least.kind, least.at) == (target, kind, 1.0)
    told = most.told()
    assert (told["target"], told["kind"], told["planned_s"]) == (target, kind, 1.0)
    assert ("for_s" in told, "slot" in told) == ("for" in {*needs, *takes}, target == "worker")


def test_signals_cover_every_kind_of_worker_and_master():
    """But for the memory limit, which is watched."""
    assert set(KINDS["worker"]) == {*_WORKER_SIGNALS, "memory"}
    assert set(KINDS["master"]) == set(_MASTER_SIGNALS)


@pytest.mark.parametrize(
    ("made", "window_s"),
    [
        (fault("2s", **{"for": "3s"}), (2.0, 5.0)),
        (fault("2s"), (2.0, inf)),
        (fault("2s", "kill", "worker"), (2.0, 3.0)),
        (fault("2s", "memory", "worker", limit="1GiB"), (2.0, inf)),
    ],
)
def test_fault_is_felt_until_it_ends(made, window_s):
    """One without an end until the run ends, a single act for a second."""
    assert made.window_s == window_s


def happened(timeline, *times_s, can=lambda _event: True):
    """What is carried out when a timeline advances to each of some times, as `(planned for, fault, begins)`."""
    carried_out = []

    def carry_out(event):
        if can(event):
            carried_out.append(tuple(event))
            return True
        return False

    for elapsed_s in times_s:
        timeline.advance(elapsed_s, carry_out)
    return carried_out


def test_timeline_is_in_order_and_ends_come_before_beginnings():
    """So that one fault may follow another of its kind; all that is due is carried out at once."""
    first, second, forever = fault("1s", **{"for": "2s"}), fault("3s", **{"for": "1s"}), fault("2s", "refuse")
    timeline = Timeline([second, forever, first])
    assert timeline.to_begin == [first, forever, second]

    assert happened(timeline, 10.0) == [
        (1.0, first, True),
        (2.0, forever, True),
        (3.0, first, False),
        (3.0, second, True),
        (4.0, second, False),
    ]
    assert (timeline.next_s, timeline.to_begin) == (inf, [])


def test_fault_that_cannot_begin_yet_stays_due_and_ends_later():
    """It holds nothing else up, and lasts as long as it should."""
    stop, hang = fault("1s", "stop", "worker", **{"for": "2s"}), fault("2s")
    timeline = Timeline([stop, hang])

    assert happened(timeline, 4.0, can=lambda event: event.fault is hang) == [(2.0, hang, True)]
    assert (timeline.next_s, timeline.to_begin) == (1.0, [stop])
    assert happened(timeline, 5.0) == [(1.0, stop, True)]
    assert happened(timeline, 6.9, 7.0) == [(7.0, stop, False)]


def test_fault_that_cannot_begin_is_asked_for_once_each_time():
    """However many others are due."""
    asked = []
    timeline = Timeline([fault("0s", "kill", "worker"), *(fault("1s", "reload", "master") for _ in range(9))])

    happened(timeline, 2.0, can=lambda event: asked.append(event.fault.kind) or event.fault.kind == "reload")

    assert asked.count("kill") == 1


def test_repeated_faults_come_at_times_that_can_be_told():
    """Whatever sums of floats are."""
    repeated = fault("0s", "kill", "worker", every="50ms").occurrences(3.0)

    assert [each.at for each in repeated] == [k / 20 for k in range(60)]


def test_repeated_fault_comes_before_the_end_of_the_load_only():
    """The times are whole tenths of a second here, so that whole numbers say how often, and when."""
    for every, end in product(range(1, 41), repeat=2):
        for begin in (0, end // 3):
            repeated = fault(f"{begin * 100}ms", "kill", "worker", every=f"{every * 100}ms").occurrences(end / 10)
            assert [each.at for each in repeated] == [k / 10 for k in range(begin, end, every)], (begin, every, end)


def test_repeated_fault_of_less_than_a_ns_comes_too_often():
    """No clock tells its times apart."""
    with pytest.raises(FieldError, match="times, expected 10000 at most"):
        list(fault("0s", "kill", "worker", every="0.1ns").occurrences(1.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{at: 1s, kind: hnag}", "not 'hnag'; did you mean hang?"),
        ("{at: 1s, kind: kill}", "not 'kill'; kill is for target worker"),
        ("{at: 1s}", "fault.kind: missing; add kind"),
        ("{at: 1, kind: hang}", "fault.at: expected a duration such as 30s or 2ms, not 1; add the unit, one of"),
        ("hang", "expected a fault such as {at: 10s, for: 5s, kind: hang}, not 'hang'"),
        ("[hang]", "expected a fault such as {at: 10s, for: 5s, kind: hang}, not "),
        ("{at: 1s, kind: kill, target: worker}", "fault.target: expected collector, not 'worker'; leave it out"),
        ("{", "not YAML"),
    ],
)
def test_fault_of_an_option_is_checked_like_one_of_a_file(text, message):
    """In one line that repeats the option."""
    with pytest.raises(UserError) as caught:
        parse_option(text, "collector")

    assert str(caught.value).startswith(f"--fault {text}:")
    assert message in str(caught.value)
