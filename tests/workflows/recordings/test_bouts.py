from itertools import pairwise
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everest.config.heads import Head
from everest_workflows.recordings.bouts import (
    NO_CLASS,
    BoutRules,
    WindowSpans,
    drop_short_runs,
    find_bouts,
    smooth_outputs,
)

FPS = 16


def windows_at(*starts: float) -> WindowSpans:
    """Windows of one second, of which the video ends with the last."""
    ends = np.array(starts, np.float64) + 1
    count = int(ends[-1] * FPS) if len(starts) else 0
    borders = np.arange(count + 1) / FPS
    return WindowSpans(starts=np.array(starts, np.float64), ends=ends, borders=borders, frames=(0, count))


@st.composite
def timelines(draw: st.DrawFn) -> tuple[WindowSpans, np.ndarray]:
    """Windows of one second, overlapping or apart, and their probabilities of three classes."""
    steps = draw(st.lists(st.integers(1, 12), max_size=11))
    windows = windows_at(*(float(start) / 8 for start in np.cumsum([0, *steps])))
    tenths = st.lists(st.integers(0, 10), min_size=3, max_size=3)
    rows = draw(st.lists(tenths, min_size=len(windows.starts), max_size=len(windows.starts)))
    return windows, np.array(rows, np.float32) / 10


@given(timeline=timelines(), background=st.none() | st.integers(0, 10).map(lambda tenths: tenths / 10))
def test_a_bout_has_the_class_of_the_nearest_window_at_each_time(timeline, background):
    windows, outputs = timeline
    names, best = ["a", "b", "c"], outputs.max(axis=1)
    found = find_bouts(windows, outputs, Head(outputs=3), names, BoutRules(background=background))
    centers = (windows.starts + windows.ends) / 2
    is_background = best < (background or 0.0)
    expected = [None if none else int(row.argmax()) for none, row in zip(is_background, outputs, strict=True)]

    for sixteenth in range(1, int(windows.ends[-1] * 16), 2):  # no border is at an odd 32nd of a second
        at = sixteenth / 16 + 1 / 32
        near = int(np.abs(centers - at).argmin())
        seen = [bout for bout in found if bout.start <= at < bout.end]
        if windows.starts[near] <= at < windows.ends[near]:
            (bout,) = seen
            assert bout.index == expected[near]
        else:
            assert seen == []  # between windows
    for bout in found:
        inside = [i for i, center in enumerate(centers) if bout.start <= center < bout.end]
        assert {expected[i] for i in inside} == {bout.index}
        assert bout.probability == pytest.approx(fmean(best[inside].tolist()), abs=1e-6)
        assert bout.label == (None if bout.index is None else names[bout.index])
        times = windows.times
        frames = np.flatnonzero((times >= bout.start - 5e-4) & (times < bout.end - 5e-4))
        assert (bout.start_frame, bout.end_frame) == (frames[0], frames[-1] + 1)
    for bout, after in pairwise(found):
        assert bout.end < after.start or bout.index != after.index


def spans(labels: str, *, min_seconds: float, starts=()) -> list[tuple[float, float, str]]:
    """The bouts of windows that follow each other; "-" is no class."""
    windows = windows_at(*(starts or map(float, range(len(labels)))))
    classes = np.array([NO_CLASS if label == "-" else ord(label) for label in labels])
    found = drop_short_runs(windows, classes, min_seconds)
    return [
        (windows.spans[a, 0], windows.spans[b - 1, 1], "-" if found[a] == NO_CLASS else chr(found[a]))
        for a, b in windows.find_runs(found)
    ]


def test_a_short_bout_takes_the_class_of_the_nearest_longer_one():
    assert spans("aaabaaa", min_seconds=2) == [(0, 7, "a")]
    assert spans("aaabccc", min_seconds=2) == [(0, 4, "a"), (4, 7, "c")]  # as near: the earlier one
    assert spans("aaabbaccc", min_seconds=3) == [(0, 5, "a"), (5, 9, "c")]
    assert spans("aa-aa", min_seconds=2) == [(0, 5, "a")]
    assert spans("abab", min_seconds=2) == [(0, 4, "-")]  # no longer one
    assert spans("aab", min_seconds=1) == [(0, 2, "a"), (2, 3, "b")]
    # A gap separates bouts, whatever their length.
    assert spans("aab", min_seconds=2, starts=(0.0, 1.0, 5.0)) == [(0, 2, "a"), (5, 6, "-")]


def test_smoothing_is_the_mean_over_the_windows_around():
    windows = windows_at(*(number / 2 for number in range(6)))
    outputs = np.array([[0.0], [1.0], [0.0], [0.0], [0.9], [0.0]], np.float32)
    found = smooth_outputs(windows, outputs, 1.0)[:, 0].tolist()
    assert found == pytest.approx([1 / 2, 1 / 3, 1 / 3, 0.3, 0.3, 0.45])  # half a second to each side
    assert np.array_equal(smooth_outputs(windows, outputs, 0.2), outputs)


def test_a_class_is_present_from_its_threshold_on():
    outputs = np.array([[0.1, 0.5, 0.8, 0.5, 0.3, 0.5]], np.float32).T
    head = Head(task="multi-label", outputs=1)
    found = find_bouts(windows_at(*map(float, range(6))), outputs, head, ["a"], BoutRules(threshold=0.5))
    assert [(bout.start, bout.end) for bout in found] == [(1, 4), (5, 6)]
    for none in (head, Head(outputs=1)):  # no window has no bout
        assert find_bouts(windows_at(), np.zeros((0, 1)), none, ["a"], BoutRules()) == []
