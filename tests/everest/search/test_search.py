import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_features import write_features
from small_runs import called, json_of, refused, run

from everest.errors import UserError
from everest.lists.sample import Sample
from everest.search.neighbors import nearest, read_feature_file, read_query

ANGLES = np.radians([0, 10, 12, 40, 90, 180])
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1) * [[3.0], [1], [2], [5], [1], [1]]
VIDEOS = ["a.mp4", "b.mp4"]
WINDOWS = [(0, 0.0, 2.0), (0, 1.0, 3.0), (1, 0.0, 2.0), (1, 1.0, 3.0), (1, 4.0, 6.0), (0, 4.0, 6.0)]


@given(seed=st.integers(0, 99), width=st.integers(1, 40), top=st.integers(1, 30))
@settings(max_examples=30)
def test_neighbors_are_those_of_a_sort_of_all_similarities(tmp_path_factory, seed, width, top):
    features = np.random.default_rng(seed).normal(size=(20, width))
    path = tmp_path_factory.mktemp("features") / "f.safetensors"
    file = read_feature_file(write_features(path, features, [f"{row}.mp4" for row in range(20)]))
    found = nearest(file, read_query("7.mp4", file, None), top=top)
    units = file.units.astype(np.float64)
    cosine = units @ units[7]
    expected = [row for row in np.argsort(-cosine, kind="stable") if row != 7][:top]
    assert np.allclose([cosine[each.row] for each in found], cosine[expected], atol=1e-6)
    assert np.allclose([each.similarity for each in found], cosine[expected], atol=1e-6)
    exact = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert np.allclose(cosine, exact @ exact[7], atol=1e-6)


def test_own_videos_and_overlapping_windows_are_left_out(tmp_path: Path):
    file = read_feature_file(write_features(tmp_path / "f.safetensors", CIRCLE, VIDEOS, windows=WINDOWS))
    query = read_query("a.mp4@0", file, None)
    found = nearest(file, query, top=9)
    assert [each.row for each in found] == [2, 4]  # 3 overlaps with 2
    assert [each.similarity for each in found] == pytest.approx(np.cos(ANGLES[[2, 4]]), abs=1e-3)
    whole = read_query("b.mp4", file, None)  # windows at 12, 40 and 90 degrees
    assert whole.rows == (2, 3, 4)
    assert [each.similarity for each in nearest(file, whole, top=1)] == pytest.approx(
        [np.cos(np.radians(2))], abs=1e-3
    )


def test_segments_of_a_video_overlap_if_they_may_share_time(tmp_path: Path):
    names = ["a#0s-2.0s", "./a#1.0s-3.0s", "a#2.0s-", "b#0-20", "b#20-40", "b#0.5s-1.0s", "a"]
    file = read_feature_file(write_features(tmp_path / "f.safetensors", np.ones((7, 2)), names))
    overlapping = [file.overlapping(row).tolist() for row in range(7)]
    assert overlapping == [[0, 1, 6], [0, 1, 2, 6], [1, 2, 6], [3, 5], [4, 5], [3, 4, 5], [0, 1, 2, 6]]


def test_a_query_is_a_name_or_a_moment(tmp_path: Path):
    file = read_feature_file(write_features(tmp_path / "f.safetensors", CIRCLE, VIDEOS, windows=WINDOWS))
    rows = {text: read_query(text, file, None).rows for text in ("a.mp4@1", "a.mp4@1.8", "b.mp4@3.6")}
    assert rows == {"a.mp4@1": (1,), "a.mp4@1.8": (1,), "b.mp4@3.6": (4,)}
    for row in range(6):
        assert read_query(file.name(row), file, None).rows == (row,)
    assert read_query(str(Path("a.mp4").absolute()), file, None).rows == (0, 1, 5)
    for text, message in (
        ("a.mp4@7", "a.mp4@7: the windows of this video in .* end at 6.00 s"),
        ("a.mp4@-1", "must be a number of seconds from 0 on"),
        ("a.mp4@x", "neither a row of .* nor a video"),
        ("c.mp4", "c.mp4: neither a row of .* nor a video"),
    ):
        with pytest.raises(UserError, match=message):
            read_query(text, file, None)


@pytest.mark.parametrize(
    "sample",
    [
        Sample(path="a#b.mp4"),
        Sample(path="a.mp4", start=0.5, end=12.0),
        Sample(path="a.mp4", start=0.5),
        Sample(path="a.mp4", end=1e-05),
        Sample(path="a#1-2.mp4", start_frame=3, end_frame=9),
        Sample(path="a.mp4", start_frame=3),
    ],
)
def test_a_name_of_a_segment_is_read_back(sample: Sample):
    for each in (sample, Sample(path=sample.video_id), Sample(path=f"{sample.video_id}#")):
        found = Sample.from_video_id(each.video_id)
        assert (found.video_id, found.path) == (each.video_id, each.path)


def test_only_files_with_a_vector_a_row_are_searched(tmp_path: Path):
    path = write_features(tmp_path / "f.safetensors", np.ones((1, 2, 3)), ["a"])
    message = refused("search", "a", "--features", path, code=4)
    assert "its features are (1, 2, 3), not one vector a row" in message
    assert "not a .safetensors file of features" in refused("search", "a", "--features", __file__, code=4)


@pytest.fixture(scope="module")
def extracted(autoencoder_run, clip_files, tmp_path_factory) -> dict[str, Path]:
    """Files of features: of videos, and of windows."""
    folder = tmp_path_factory.mktemp("features")
    files = {"videos": folder / "videos.safetensors", "windows": folder / "windows.safetensors"}
    called("extract", clip_files, "-c", autoencoder_run, "--views", "2x1", "-o", files["videos"], "-q")
    window = ["--window", 0.75, "--step", 0.25]
    called("extract", clip_files, "-c", autoencoder_run, *window, "-o", files["windows"], "-q")
    return files


def test_a_copy_finds_its_original(extracted, autoencoder_run, clip_files, tmp_path):
    copy = shutil.copy(clip_files / "clip2.mp4", tmp_path / "copy.mp4")
    for kind, moment in (("videos", ""), ("windows", ""), ("windows", "@1.125")):
        command = ("search --top 2", f"{copy}{moment}", "--features", extracted[kind], "-c", autoencoder_run)
        (row,) = json_of(*command)
        first = row["neighbors"][0]
        assert first["video"] == str(clip_files / "clip2.mp4"), kind
        assert first["similarity"] == pytest.approx(1, abs=1e-3)
        if moment:
            assert (first["start"], first["end"]) == (0.75, 1.5)
        table = run(*command).splitlines()
        assert table[0] == f"{copy}{moment}"
        shown, name = table[1].split()
        assert (float(shown), name) == (pytest.approx(first["similarity"], abs=5e-4), first["name"])


def test_the_model_must_be_that_of_the_file(extracted, autoencoder_run, classifier_run, clip_files, tmp_path):
    copy = shutil.copy(clip_files / "clip2.mp4", tmp_path / "copy.mp4")
    command = ["search", copy, "--features", extracted["videos"]]
    assert "is not in" in refused(*command, code=2)
    assert "was written with other weights" in refused(*command, "-c", classifier_run, code=2)
    recipe = tmp_path / "other.yaml"
    recipe.write_text((autoencoder_run / "recipe.yaml").read_text().replace("stride: 2", "stride: 1"))
    message = refused(*command, "-c", autoencoder_run, "--recipe", recipe, code=2)
    assert "was written with other views" in message
    message = refused(
        "search", f"{copy}@7", "--features", extracted["windows"], "-c", autoencoder_run, code=4
    )
    assert "the video ends at 2.00 s" in message


def test_a_page_shows_the_results(extracted, clip_files, tmp_path):
    gone = tmp_path / "gone.mp4"
    file = read_feature_file(extracted["videos"])
    features = write_features(tmp_path / "f.safetensors", file.units, [*file.videos[:3], str(gone)])
    page = tmp_path / "page.html"
    command = ["search", clip_files / "clip0.mp4", "--features", features]
    called(*command, "--page", page)
    text = page.read_text()
    assert text.count('<video src="data:video/mp4;base64,') == 3  # the query and two neighbors
    assert text.count("No such file or directory") == 1
    assert "exists; choose another name" in refused(*command, "--page", page, code=2)
    assert "is an input of this command" in refused(*command, "--page", features, "--overwrite", code=2)
    assert json.loads(run(*command, "--json"))[0]["query"] == str(clip_files / "clip0.mp4")
