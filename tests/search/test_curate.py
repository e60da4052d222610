"""Near-duplicates, and what to label next."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_features import write_features
from small_runs import called, json_of, refused, run

import everest
from everest.inference.model import OpenedModel
from everest.lists.reading import read_samples
from everest.lists.sample import Sample
from everest.search.duplicates import THRESHOLD, find_duplicates
from everest.search.feature_file import read_feature_file
from everest.search.select import k_center, labeled_rows, uncertainty


def on_circle(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_a_group_is_a_row_and_all_that_is_similar_to_it(tmp_path: Path):
    # b is similar to a and to c, and c is not similar to a: it is no copy of a.
    features = on_circle(0, 9, 18, 90, 95, 180)
    file = read_feature_file(write_features(tmp_path / "f.safetensors", features, [*"abcdef"]))
    groups = find_duplicates(file, np.cos(np.radians(10)))
    assert [(group.kept, [copy.row for copy in group.copies]) for group in groups] == [(0, [1]), (3, [4])]
    assert groups[1].copies[0].similarity == pytest.approx(np.cos(np.radians(5)), abs=1e-3)


@given(seed=st.integers(0, 99), threshold=st.floats(0.3, 0.99))
@settings(max_examples=20)
def test_what_is_kept_has_no_duplicates_and_each_copy_one(
    tmp_path_factory: pytest.TempPathFactory, seed: int, threshold: float
):
    features = np.random.default_rng(seed).normal(size=(300, 3))  # more than one block of rows
    path = tmp_path_factory.mktemp("features") / "f.safetensors"
    file = read_feature_file(write_features(path, features, [f"{row}.mp4" for row in range(300)]))
    groups = find_duplicates(file, threshold)
    units = file.units.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    cosine = units @ units.T
    copies = {copy.row: group.kept for group in groups for copy in group.copies}
    assert len(copies) == sum(len(group.copies) for group in groups)
    kept = [row for row in range(300) if row not in copies]
    assert (cosine[np.ix_(kept, kept)] - 2 * np.eye(len(kept)) < threshold + 1e-6).all()
    assert all(cosine[row, first] > threshold - 1e-6 and first < row for row, first in copies.items())


def test_windows_of_a_video_are_compared_on_request_but_not_overlapping_ones(tmp_path: Path):
    windows = [(0, 0.0, 2.0), (0, 1.0, 3.0), (0, 3.0, 5.0), (1, 0.0, 2.0)]
    path = write_features(tmp_path / "f.safetensors", on_circle(0, 1, 2, 3), ["a", "b"], windows=windows)
    file = read_feature_file(path)
    found = {
        own: [[copy.row for copy in group.copies] for group in find_duplicates(file, 0.99, own=own)]
        for own in (False, True)
    }
    assert found == {False: [[3]], True: [[2, 3]]}


def test_segments_of_a_video_that_overlap_are_no_copies(tmp_path: Path):
    names = ["a#0s-2.0s", "./a#1.0s-3.0s", "a#2.0s-", "b#0-20", "b#20-40", "b#0.5s-1.0s", "a"]
    file = read_feature_file(write_features(tmp_path / "f.safetensors", on_circle(*range(7)), names))
    overlapping = [np.flatnonzero(file.overlapping(row)).tolist() for row in range(7)]
    assert overlapping == [[0, 1, 6], [0, 1, 2, 6], [1, 2, 6], [3, 5], [4, 5], [3, 4, 5], [0, 1, 2, 6]]
    groups = find_duplicates(file, 0.99, own=True)
    assert [(group.kept, [copy.row for copy in group.copies]) for group in groups] == [(0, [2, 3, 4, 5])]


def test_the_lists_of_duplicates_and_of_the_others(tmp_path: Path, clip_files: Path):
    for number in range(3):
        shutil.copy(clip_files / f"clip{number}.mp4", tmp_path)
    videos = [str(tmp_path / f"clip{number}.mp4") for number in range(3)]
    features = write_features(tmp_path / "f.safetensors", on_circle(0, 90, 1), videos)
    command = ["curate duplicates", "--features", features, "-o", tmp_path / "copies.csv"]
    (group,) = json_of(*command, "--kept", tmp_path / "kept.csv")
    (copy,) = group["copies"]
    assert (group["kept"], copy["name"]) == (videos[0], videos[2])
    assert copy["similarity"] == pytest.approx(np.cos(np.radians(1)), abs=5e-4)  # of float16
    rows = list(csv.DictReader((tmp_path / "copies.csv").read_text().splitlines()))
    assert [(row["path"], row["group"], row["similarity"]) for row in rows] == [
        (videos[0], videos[0], "1.0000"),
        (videos[2], videos[0], f"{copy['similarity']:.4f}"),
    ]
    assert len(read_samples(tmp_path / "copies.csv", root=tmp_path, labeled=False).samples) == 2
    kept = read_samples(tmp_path / "kept.csv", root=tmp_path, labeled=False).samples
    assert [sample.path for sample in kept] == videos[:2]
    assert "exists; choose another name" in refused(*command, code=2)
    text = run(*command, "--overwrite", "--threshold", 0.9).splitlines()[-1]
    assert text == f"1 groups with 1 copies among 3 rows: {tmp_path / 'copies.csv'}"
    one_file = ["--kept", tmp_path / "x" / ".." / "copies.csv", "--overwrite"]
    assert "--output and --kept: both name" in refused(*command, *one_file, code=2)
    assert "must be more than 0 and at most 1" in refused(*command, "--overwrite", "--threshold", 2, code=2)


def test_equal_rows_reach_the_highest_threshold_and_times_are_exact(tmp_path: Path):
    row = np.random.default_rng(0).normal(size=(1, 768))
    windows = [(0, 12345.125, 12347.0), (1, 0.0, 2.0), (2, 0.0, 2.0)]
    features = np.concatenate([row, row, 1.1 * row + 0.1])
    path = write_features(tmp_path / "f.safetensors", features, [*"abc"], windows=windows)
    (group,) = json_of("curate duplicates", "--features", path, "-o", tmp_path / "d.csv", "--threshold", 1)
    assert [copy["similarity"] for copy in group["copies"]] == [1.0]
    assert "12345.125" in (tmp_path / "d.csv").read_text()


def test_a_video_is_not_replaced_and_nothing_written_if_one_is_missing(tmp_path: Path, clip_files: Path):
    shutil.copy(clip_files / "clip0.mp4", tmp_path)
    videos = [f"{tmp_path}/clip0.mp4", f"{tmp_path}/missing.mp4"]
    features = write_features(tmp_path / "f.safetensors", on_circle(0, 1), videos)
    for words in (("duplicates", "-o"), ("duplicates", "-o", tmp_path / "d.csv", "--kept"), ("select", "-o")):
        count = ["--count", 2] if words[0] == "select" else []
        command = ["curate", words[0], "--features", features, *count, "--overwrite", *words[1:]]
        assert "is an input of this command" in refused(*command, tmp_path / "clip0.mp4", code=2)
    assert "missing.mp4" in refused(*command, tmp_path / "next.csv", code=4)
    assert {file.name for file in tmp_path.iterdir()} == {"clip0.mp4", "f.safetensors"}


def test_each_choice_is_the_row_farthest_from_all_before():
    units = on_circle(0, 5, 10, 90, 100, 200).astype(np.float32)
    # The mean is at 46 degrees. Then 200 is farthest from 10, and 100 is 90 degrees from the nearest.
    assert k_center(units, 3, ()) == [2, 5, 4]
    assert k_center(units, 2, [0]) == [5, 4]
    assert sorted(k_center(units, 6, ())) == list(range(6))


def test_rows_with_labels_are_those_that_share_time_with_one(tmp_path: Path):
    windows = [(0, 0.0, 2.0), (0, 2.0, 4.0), (0, 3.0, 5.0), (1, 0.0, 2.0)]
    path = write_features(tmp_path / "f.safetensors", on_circle(0, 1, 2, 3), ["a", "b"], windows=windows)
    file = read_feature_file(path)
    for sample, expected in (
        (Sample(path="a", start=2.0, end=3.0), [1]),
        (Sample(path="a"), [0, 1, 2]),
        (Sample(path=str(Path("a").absolute()), start=3.5), [1, 2]),
        (Sample(path="c"), []),
    ):
        assert np.flatnonzero(labeled_rows(file, [sample])).tolist() == expected


def test_the_table_has_the_times_of_segments_in_frames(
    tmp_path: Path, clip_files: Path, monkeypatch: pytest.MonkeyPatch
):
    names = [f"{clip_files / 'clip0.mp4'}#{part}" for part in ("4-8", "8-", "1.0s-")]  # 16 frames a second
    features = write_features(tmp_path / "f.safetensors", on_circle(0, 90, 180), names)
    called("curate select", "--features", features, "--count", 3, "-o", tmp_path / "next.csv")
    rows = csv.DictReader((tmp_path / "next.labels.csv").read_text().splitlines())
    times = sorted((row["start"], row["end"]) for row in rows)
    assert times == [("0.250", "0.500"), ("0.500", "2.000"), ("1.000", "2.000")]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    message = refused("curate select", "--features", features, "--count", 3, "-o", ".", code=5)
    assert "cannot write .: it is a folder" in message


def test_a_selection_is_a_list_and_a_table_to_fill_in_and_is_not_repeated(
    autoencoder_run: Path, clip_files: Path, tmp_path: Path
):
    features = tmp_path / "f.safetensors"
    window = ["--window", 0.5, "-o", features]
    called("extract", clip_files, "-c", autoencoder_run, *window, "-q")
    command = ["curate select", "--features", features, "--count", 6]
    chosen, table = tmp_path / "next.csv", tmp_path / "next.labels.csv"
    assert run(*command, "-o", chosen).split() == [str(chosen), str(table)]
    samples = read_samples(chosen, root=tmp_path, labeled=False).samples
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(samples) == 6
    for sample, row in zip(samples, rows, strict=True):
        assert row == {
            **{"video": sample.path, "label": ""},
            **{"start": f"{sample.start:.3f}", "end": f"{sample.end:.3f}"},
        }
    called(*command, "--labeled", table, "-o", tmp_path / "more.csv")
    again = read_samples(tmp_path / "more.csv", root=tmp_path, labeled=False).samples
    assert {sample.video_id for sample in samples}.isdisjoint(sample.video_id for sample in again)
    both = tmp_path / "both.txt"
    both.write_text("path,start,end\n" + "".join(chosen.read_text().partition("\n")[2]))
    message = refused(*command[:-1], 11, "--labeled", both, "-o", tmp_path / "no.csv", code=2)
    assert "has 10 rows without labels" in message
    whole = tmp_path / "whole.npz"
    called("extract", clip_files, "-c", autoencoder_run, "-o", whole, "-q")
    called("curate select", "--features", whole, "--count", 2, "-o", tmp_path / "videos.csv")
    rows = list(csv.DictReader((tmp_path / "videos.labels.csv").read_text().splitlines()))
    assert [(row["start"], row["end"]) for row in rows] == [("0.000", "2.000")] * 2


def test_uncertain_rows_are_those_whose_best_classes_are_near(
    classifier_run: Path, autoencoder_run: Path, clip_files: Path, tmp_path: Path
):
    features = tmp_path / "f.npz"
    called("extract", clip_files, "-c", classifier_run, "--clips", 1, "--crops", 1, "-o", features, "-q")
    probabilities = [
        [found["probability"] for found in row["predictions"]]
        for row in json_of("predict", clip_files, "-c", classifier_run, "--clips", 1, "--crops", 1)
    ]
    model = OpenedModel.of(everest.load_model(classifier_run), clips=1, crops=1)
    found = uncertainty(read_feature_file(features), model)
    assert found == pytest.approx([1 - (first - second) for first, second in probabilities], abs=1e-3)
    views = ["--clips", 1, "--crops", 1]
    command = ["curate select", "--features", features, "--count", 2, "--uncertain", *views]
    called(*command, "-c", classifier_run, "-o", tmp_path / "next.csv")
    message = refused(*command, "-o", tmp_path / "no.csv", code=2)
    assert "--uncertain and --checkpoint go together" in message
    message = refused(*command, "-c", autoencoder_run, "-o", tmp_path / "no.csv", code=6)
    assert "classifier" in message


@pytest.mark.parametrize("task", ["tags", "scores", "heads"])
def test_other_tasks(request: pytest.FixtureRequest, clip_files: Path, tmp_path: Path, task: str):
    checkpoint = request.getfixturevalue(f"{task}_run")
    features = tmp_path / "f.npz"
    views = ["--clips", 1, "--crops", 1]
    called("extract", clip_files, "-c", checkpoint, *views, "-o", features, "-q")
    command = ["curate select", "--features", features, "--count", 2, "--uncertain", "-c", checkpoint, *views]
    if task == "scores":
        message = refused(*command, "-o", tmp_path / "next.csv", code=2)
        assert "this model predicts numbers" in message
        return
    called(*command, "-o", tmp_path / "next.csv")
    module = everest.load_model(checkpoint)
    found = uncertainty(read_feature_file(features), OpenedModel.of(module, clips=1, crops=1))
    assert ((found >= 0) & (found <= 1)).all()


def test_the_help_states_the_threshold():
    assert f"[{THRESHOLD}]" in " ".join(run("curate", "duplicates", "--help").split())
