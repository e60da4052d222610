from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import called, json_of, refused

from everest.inference.bouts import Window, bouts_of_classes, merge_windows, present_classes, smoothed

TIMES = np.arange(64) / 4


def windows_at(*starts: float) -> list[Window]:
    """Windows of one second; 4 frames a second."""
    return [Window(start=at, end=at + 1, first=int(at * 4), length=4) for at in starts]


def spans(
    labels: str, *, min_seconds: float, starts: tuple[float, ...] = ()
) -> list[tuple[float, float, str]]:
    """The bouts of windows that follow each other; "-" is no class."""
    best = [
        {"label": None if label == "-" else label, "index": None if label == "-" else ord(label)}
        | {"probability": 0.5}
        for label in labels
    ]
    windows = windows_at(*(starts or map(float, range(len(labels)))))
    merged = merge_windows(windows, best, TIMES, background=None, min_seconds=min_seconds)
    return [(bout["start"], bout["end"], bout["label"] or "-") for bout in merged]


def test_a_short_bout_takes_the_class_of_the_nearest_longer_one():
    assert spans("aaabaaa", min_seconds=2) == [(0, 7, "a")]
    assert spans("aaabccc", min_seconds=2) == [(0, 4, "a"), (4, 7, "c")]  # as near: the earlier one
    assert spans("aaabbaccc", min_seconds=3) == [(0, 5, "a"), (5, 9, "c")]
    assert spans("aa-aa", min_seconds=2) == [(0, 5, "a")]
    assert spans("abab", min_seconds=2) == [(0, 4, "-")]  # no longer one
    assert spans("aab", min_seconds=1) == [(0, 2, "a"), (2, 3, "b")]


def test_a_gap_separates_bouts_whatever_their_length():
    starts = (0.0, 1.0, 5.0)
    assert spans("aab", min_seconds=2, starts=starts) == [(0, 2, "a"), (5, 6, "-")]


@given(labels=st.text("ab-", min_size=1, max_size=16), seconds=st.integers(0, 5))
def test_no_bout_is_shorter_unless_nothing_lasts(labels: str, seconds: int):
    found = spans(labels, min_seconds=seconds)
    assert (found[0][0], found[-1][1]) == (0, len(labels))
    assert all(before[1] == after[0] and before[2] != after[2] for before, after in pairwise(found))
    assert all(end - start >= seconds for start, end, _ in found) or found == [(0, len(labels), "-")]
    again = "".join(label * round(end - start) for start, end, label in found)
    assert spans(again, min_seconds=seconds) == found or found == [(0, len(labels), "-")]


def test_smoothing_is_the_mean_over_the_windows_around():
    windows = windows_at(*(number / 2 for number in range(6)))
    probabilities = torch.tensor([[0.0], [1.0], [0.0], [0.0], [0.9], [0.0]])
    found = smoothed(windows, probabilities, 1.0)[:, 0].tolist()
    assert found == pytest.approx([1 / 2, 1 / 3, 1 / 3, 0.3, 0.3, 0.45])  # half a second to each side
    assert torch.equal(smoothed(windows, probabilities, 0.2), probabilities)


def test_a_class_lasts_between_its_thresholds_in_both_directions():
    column = [0.1, 0.5, 0.8, 0.5, 0.3, 0.5, 0.1, 0.5, 0.5]
    windows = windows_at(*map(float, range(8)), 9.0)
    probabilities = torch.tensor(column)[:, None]
    high, low = torch.tensor(0.7), torch.tensor(0.4)
    present = present_classes(windows, probabilities, high, low)
    assert present[:, 0].nonzero()[:, 0].tolist() == [1, 2, 3]  # the others never reach 0.7
    bouts = bouts_of_classes(windows, probabilities, present, ["a"], TIMES)
    assert [(bout["start"], bout["end"]) for bout in bouts] == [(1, 4)]
    same = present_classes(windows, probabilities, high, high)
    assert torch.equal(same, probabilities >= high)
    # A gap ends the bout: the last window is not next to the one before it.
    apart = present_classes(windows, torch.tensor([*column[:7], 0.8, 0.5])[:, None], high, low)
    assert apart[:, 0].nonzero()[:, 0].tolist() == [1, 2, 3, 7]


def test_rules_change_the_bouts_of_a_model_and_not_its_windows(tags_run: Path, clip_files: Path):
    command = ("predict", clip_files / "clip1.mp4", "-c", tags_run, "--timeline", "--window", 0.5, "-q")
    (plain,) = json_of(*command)
    (all_present,) = json_of(*command, "--threshold", "0,0", "--smooth", 1)
    assert all_present["windows"] == plain["windows"]
    assert {bout["label"] for bout in all_present["bouts"]} == {"run", "sit", "walk"}
    assert all((bout["start"], bout["end"]) == (0, 2) for bout in all_present["bouts"])
    (none_lasts,) = json_of(*command, "--threshold", "0", "--min-seconds", 3)
    assert none_lasts["bouts"] == []


def test_rules_that_go_with_no_head_or_are_no_numbers_are_refused(
    classifier_run: Path, tags_run: Path, scores_run: Path, clip_files: Path
):
    for run, options, message in (
        (classifier_run, ["--threshold", "0.5"], "--threshold: is for multi-label models"),
        (tags_run, ["--threshold", "0.4,0.6"], "must be HIGH,LOW with 1 >= HIGH >= LOW >= 0"),
        (tags_run, ["--threshold", "much"], "give HIGH,LOW or one number"),
        (scores_run, ["--smooth", "1"], "--smooth: goes with classes, and this model predicts numbers"),
        (classifier_run, ["--min-seconds", "inf"], "--min-seconds: must be a number of seconds from 0 on"),
    ):
        command = ("predict", clip_files / "clip0.mp4", "-c", run, "--timeline", "--bouts", *options)
        assert message in refused(*command, code=2)


def test_a_timeline_that_is_all_background_is_named(classifier_run: Path, clip_files: Path):
    command = ("predict", clip_files / "clip0.mp4", "-c", classifier_run, "--timeline", "--bouts")
    assert "all is background; without --background" in called(*command, "--background", 1).stderr
