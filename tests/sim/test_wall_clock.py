"""Steps of the wall clock are told apart from its drift."""

from sim.wall_clock import WallClock

MS = 1_000_000


def test_a_step_is_told_once():
    """Forward or back, by as much as it was; what is slewed meanwhile is no step, however much it adds up to."""
    wall, steady = [1_000_000 * MS], [50_000 * MS]
    clock = WallClock(lambda: wall[0], lambda: steady[0])
    steps = []
    for set_by_ms in (0, 3_600_000, 0, -500, *[90] * 5):
        steady[0] += 250 * MS
        wall[0] += (250 + set_by_ms) * MS
        steps.append(clock.step_s())
    assert steps == [0.0, 3600.0, 0.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0]
