from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import called

from everest.config.recipe import load_recipe
from everest.data.recipe_clips import examine_lengths, pretrain_clips
from everest.errors import DataError
from everest.lists.reading import read_unlabeled
from everest.prepare.stats import TOO_SHORT, largest_stride


@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=60), frames=st.sampled_from([1, 4, 8, 16]))
def test_the_largest_stride_fits_nearly_all_videos(lengths: list[int], frames: int):
    stride = largest_stride(lengths, frames)

    def share(stride: int) -> float:
        return sum(length < frames * stride for length in lengths) / len(lengths)

    if stride is not None:
        assert share(stride) <= TOO_SHORT < share(stride + 1)
    else:
        assert share(1) > TOO_SHORT


def test_short_videos_are_reported_once(tmp_path: Path, recipe: Path):
    notice = "4 of 4 videos (100%) are shorter than a clip of 4 frames at stride 9: frames are repeated"
    for stride in (8, 9):
        options = ["--recipe", recipe, "--set", f"pretrain.stride={stride}", "-o", tmp_path / str(stride)]
        shown = called("pretrain", *options).stderr
        assert shown.count("shorter than a clip") == shown.count(notice) == (stride == 9)
        assert "shorter than a clip" not in called("pretrain", *options).stderr  # the finished run is resumed


def test_one_video_that_is_slow_to_fail_ends_no_run(tmp_path: Path, clip_files: Path, monkeypatch):
    monkeypatch.setattr("everest.data.recipe_clips.EXAMINED_SECONDS", 0.0)
    (tmp_path / "broken.mp4").write_text("no video")
    clips = pretrain_clips(load_recipe("small", overrides=[f"data.root={clip_files}"]))
    broken = replace(clips.samples[0], path=str(tmp_path / "broken.mp4"))
    for place in range(4):
        mixed = [*clips.samples[:place], broken, *clips.samples[place + 1 :]]
        examine_lengths(replace(clips, samples=mixed))
    with pytest.raises(DataError, match="none of the 1 videos examined can be read"):
        examine_lengths(replace(clips, samples=[broken]))


def test_videos_of_which_none_can_be_read_end_the_run_before_it_writes_a_folder(tmp_path: Path, recipe: Path):
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_text("no video")
    (tmp_path / "broken.csv").write_text("".join(f"{tmp_path / f'{i}.mp4'}\n" for i in range(3)))
    options = ["--recipe", recipe, "--set", f"data.train={tmp_path / 'broken.csv'}", "-o", tmp_path / "run"]
    shown = called("pretrain", *options, code=4).stderr
    assert f"none of the 3 videos examined can be read, first {tmp_path}/" in shown
    assert "not a video file" in shown
    assert not (tmp_path / "run").exists()


def test_short_windows_are_called_windows(tmp_path: Path, clip_files: Path):
    rows = [f"{clip_files}/clip{number}.mp4,0,0.5" for number in range(4)]
    (tmp_path / "windows.csv").write_text("\n".join(["path,start,end", *rows]))
    samples = read_unlabeled(tmp_path / "windows.csv", root=tmp_path).samples
    clips = pretrain_clips(load_recipe("small", overrides=["pretrain.stride=2", f"data.root={clip_files}"]))
    notice = examine_lengths(replace(clips, samples=samples)) or ""
    assert notice.startswith("4 of 4 windows (100%) are shorter than a clip")
