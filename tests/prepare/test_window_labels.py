from pathlib import Path
from time import process_time

import pytest

from everest.annotations.bout import Bout
from everest.config.heads import Head
from everest.errors import DataError
from everest.lists.labels import indices
from everest.lists.reading import read_samples
from everest.lists.sample import Sample
from everest.lists.writing import write_list
from everest.prepare.window_labels import label_samples, label_windows

VIDEO = "/data/a.mp4"


def bout(start: float, end: float, label: str) -> Bout:
    return Bout(video=VIDEO, start=start, end=end, label=label)


def samples(*windows: tuple[float, float]) -> list[Sample]:
    return [Sample(path=VIDEO, start=start, end=end) for start, end in windows]


@pytest.mark.parametrize(
    ("bouts", "expected"),
    [
        ([(0, 1)], [["a"], []]),  # half of the window
        ([(0, 0.9)], [["a"], []]),  # the whole bout
        ([(1.5, 2.25)], [["a"], []]),  # 0.5 of 0.75 s
        ([(1.5, 2.5)], [["a"], ["a"]]),  # half of it in each
        ([(1.5, 9)], [[], ["a"]]),
        ([(0.5, 3)], [["a"], ["a"]]),
        ([(0.5, 1), (1.25, 9)], [["a"], ["a"]]),  # 1.25 of 2 s together
        ([(2, 2)], [[], ["a"]]),  # a point belongs to the window that it starts
        ([(1.999, 1.999)], [["a"], []]),
        ([(4, 5)], [[], []]),
        ([], [[], []]),
    ],
)
def test_half_of_the_window_or_of_a_bout_makes_a_label(bouts: list, expected: list):
    labels = label_windows([(0, 2), (2, 4)], [bout(start, end, "a") for start, end in bouts])
    assert [list(each) for each in labels] == expected


def test_many_bouts_in_many_windows_of_any_order_are_labeled_in_little_time():
    windows, began = [(float(start), start + 1.0) for start in reversed(range(100_000))], process_time()
    labels = label_windows(windows, [bout(start, start + 1, "a") for start in range(0, 100_000, 20)])
    assert [place for place, each in enumerate(labels) if each] == list(range(19, 100_000, 20))
    assert process_time() - began < 1


def test_a_list_of_windows_has_one_class_or_the_background(tmp_path: Path):
    bouts = {VIDEO: [bout(0, 2, "walk"), bout(2, 3.5, "run"), bout(5.9, 6.1, "walk")]}
    windows = samples((0, 2), (2, 4), (4, 5.5), (5.5, 7))
    labeled, names, task = label_samples(windows, bouts)
    assert (names, task) == (["background", "run", "walk"], "single-label")
    assert [sample.labels for sample in labeled] == [(2,), (1,), (0,), (2,)]
    write_list(tmp_path / "windows.csv", labeled, root=tmp_path, class_names=names)
    lines = (tmp_path / "windows.csv").read_text().splitlines()
    assert lines[:2] == ["path,label,start,end", f"{VIDEO},walk,0,2"]


def test_overlapping_bouts_make_several_labels(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"")
    path = str(tmp_path / "a.mp4")
    bouts = {path: [bout(0, 2, "walk"), bout(1, 4, "call")]}
    windows = [Sample(path=path, start=start, end=start + 2) for start in (0.0, 2.0, 4.0)]
    labeled, names, task = label_samples(windows, bouts)
    assert (names, task) == (["call", "walk"], "multi-label")
    assert [sample.labels for sample in labeled] == [((0, 1),), ((0,),), ((),)]
    file = tmp_path / "windows.csv"
    write_list(file, labeled, root=tmp_path, class_names=names)
    assert file.read_text().splitlines()[1:] == ["a.mp4,call|walk,0,2", "a.mp4,call,2,4", "a.mp4,,4,6"]
    again = read_samples(file, root=tmp_path, heads=(Head(task="multi-label", outputs=0),))
    assert (list(again.samples), again.class_names) == (labeled, ("call", "walk"))
    # With one class, it is the one with the most seconds in the window.
    labeled, names, task = label_samples(windows, bouts, task="single-label")
    shown = [names[index] for sample in labeled for label in sample.labels for index in indices(label)]
    assert shown == ["walk", "call", "background"]


@pytest.mark.parametrize("name", ["a|b", " a", "a\nb"])
def test_names_that_a_list_cannot_hold_are_refused(name: str):
    with pytest.raises(DataError, match="rename it in the annotations"):
        label_samples(samples((0, 2)), {VIDEO: [bout(0, 1, name)]})
