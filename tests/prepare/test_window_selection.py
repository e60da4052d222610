import numpy as np

from everest.prepare.windows import OVERHEAD, choose_windows, why_none, window_activity
from everest.video.packet_sizes import PacketSizes


def packets_of(sizes, kinds) -> PacketSizes:
    """A packet each second."""
    seconds = np.arange(len(sizes), dtype=np.float64)
    parts = {"sizes": np.array(sizes), "kinds": np.array(kinds, dtype=np.int8), "missing": ()}
    return PacketSizes(seconds=seconds, end=float(len(sizes)), **parts)


def test_activity_is_the_size_relative_to_the_median_of_the_kind():
    usual, large = 100, 2 * (100 + OVERHEAD) - OVERHEAD
    packets = packets_of([9999, usual, usual, large, usual, 36, 36, 36], [0, 1, 1, 1, 1, 2, 2, 2])
    assert window_activity(packets, np.arange(8.0), 1.0).tolist() == [0, 1, 1, 2, 1, 1, 1, 1]
    windows = window_activity(packets, np.array([0.0, 2.0, 3.5, 100.0]), 2.0)
    # The keyframe is left out; packets 1; 2, 3; 4, 5; none.
    assert windows.tolist() == [1, 1.5, 1, 0]


def test_a_constant_bitrate_and_files_of_keyframes_have_no_activity():
    rng = np.random.default_rng(0)
    still = packets_of(1000 + rng.integers(0, 100, 60), [1] * 60)
    moving = packets_of([1000] * 30 + [2000] * 30, [1] * 60)
    assert "constant" in (why_none(still) or "")
    assert why_none(moving) is None
    assert "keyframe" in (why_none(packets_of([100, 200], [0, 0])) or "")
    assert why_none(packets_of([1000] * 20, [1] * 20)) is None  # too short to know


def test_windows_are_spread_evenly_and_overlap_only_if_there_are_no_others():
    (chosen,) = choose_windows([100], None, count=10, apart=1, seed=0)
    assert set(np.diff(chosen)) == {10}
    (chosen,) = choose_windows([10], [np.arange(10.0)], count=10, apart=4, seed=0)
    assert chosen.tolist() == list(range(10))


def test_the_most_active_windows_are_chosen_and_a_busy_recording_gets_at_most_twice_its_share():
    scores = np.ones(100)
    scores[[20, 21, 22, 50, 51, 80]] = [5, 9, 7, 8, 6, 4]
    (chosen,) = choose_windows([100], [scores], count=4, apart=3, seed=0)
    assert {21, 50, 80} <= set(chosen.tolist())  # the fourth is the floor
    assert np.all(np.diff(chosen) >= 3)
    several = [np.full(100, 9.0), np.ones(100), np.ones(100), np.ones(100)]
    counts = list(map(len, choose_windows([100] * 4, several, count=40, apart=1, seed=0)))
    assert (counts[0], sum(counts)) == (20, 40)
