"""The tracer does what Kong's Lua code did (kong-semantics sections 3, 4, 6 to 9), replayed under profile ``kong``.

`tests/conformance/replay.py` plays the recorded cases, and says what is compared; what differs on purpose stands in
`docs/deviations.md` and, as rules, in `tests/conformance/deviations.py`. `pytest -rP` shows the number of comparisons,
and how often a rule was needed.
"""

from collections import Counter

from tests.conformance.replay import Replay
from tests.conformance.vectors import cases


def test_the_tracer_behaves_as_the_recorded_one():
    """Every step of every recorded case has the recorded outcome, and every case ends in the recorded state."""
    compared: Counter[str] = Counter()
    failures = {}
    for case in cases("tracer"):
        replay = Replay(case)
        try:
            replay.play()
        except Exception as error:  # noqa: BLE001  the other cases are to be seen too
            failures[f"{case['id']} {case['category']}"] = f"{type(error).__name__}: {error}"
        compared += replay.compared
        compared["cases"] += 1
    assert not failures, "\n".join(f"{name}: {error}" for name, error in failures.items())
    assert compared["cases"]
    print(dict(compared))
