from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import called

from everest.config.recipe import load_recipe
from everest.data.short_videos import FITTING, largest_stride, padding_notice, read_lengths
from everest.data.stages import pretrain_clips
from everest.errors import DataError
from everest.lists.reading import read_samples
from everest.video.writer import write_video


@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=60), frames=st.sampled_from([1, 4, 8, 16]))
def test_the_suggested_stride_is_the_largest_that_fits_nearly_all_videos(lengths: list[int], frames: int):
    stride = largest_stride(lengths, frames)

    def share(stride: int) -> float:
        return sum(length < frames * stride for length in lengths) / len(lengths)

    if stride is not None:
        assert share(stride) <= FITTING < share(stride + 1)
    else:
        assert share(1) > FITTING


def test_short_videos_are_reported_once_with_a_stride_that_fits(tmp_path: Path, recipe: Path):
    notice = (
        "4 of 4 videos (100%) are shorter than a clip of 4 frames at stride 9 (36 frames): frames are "
        "repeated; pretrain.stride=8 fits"
    )
    for stride in (8, 9):
        options = ["--recipe", recipe, "--set", f"pretrain.stride={stride}", "-o", tmp_path / str(stride)]
        shown = called("pretrain", *options).stderr
        assert shown.count("shorter than a clip") == shown.count(notice) == (stride == 9)
        assert "shorter than a clip" not in called("pretrain", *options).stderr  # the finished run is resumed
    long = ["--set", "data.frames=40", "--set", "data.size=16"]  # no stride fits
    shown = called("finetune --dry-run --init none", "--recipe", recipe, *long).stderr
    assert "lower data.frames: most videos have 32 frames or more" in shown


def test_videos_of_one_frame_are_named_as_images(tmp_path: Path, recipe: Path):
    for number in range(2):
        write_video(tmp_path / f"{number}.mp4", torch.zeros(1, 32, 32, 3, dtype=torch.uint8), fps=16)
    (tmp_path / "images.csv").write_text("".join(f"{tmp_path / f'{i}.mp4'} {i}\n" for i in range(2)))
    images = ["--set", f"data.train={tmp_path / 'images.csv'}"]
    shown = called("finetune --dry-run --init none", "--recipe", recipe, *images).stderr
    assert "frames are repeated; most are single images, which show no motion" in shown


def test_one_video_that_is_slow_to_fail_ends_no_run(tmp_path, clip_files, monkeypatch):
    monkeypatch.setattr("everest.data.short_videos.SECONDS", 0.0)
    (tmp_path / "broken.mp4").write_text("no video")
    samples = read_samples(clip_files / "train.csv", root=clip_files, labeled=True).samples
    broken = replace(samples[0], path=str(tmp_path / "broken.mp4"))
    for place in range(4):
        mixed = [*samples[:place], broken, *samples[place + 1 :]]
        assert set(read_lengths(mixed, None)) <= {32}
    with pytest.raises(DataError, match="none of the videos can be read"):
        read_lengths([broken], None)


@pytest.mark.parametrize(
    ("number", "of_what"), [(3, "none of the videos"), (70, "none of 64 videos examined")]
)
def test_videos_of_which_none_can_be_read_end_the_run_before_it_writes_a_folder(
    tmp_path: Path, recipe: Path, number: int, of_what: str
):
    for i in range(number):
        (tmp_path / f"{i}.mp4").write_text("no video")
    (tmp_path / "broken.csv").write_text("".join(f"{tmp_path / f'{i}.mp4'}\n" for i in range(number)))
    options = ["--recipe", recipe, "--set", f"data.train={tmp_path / 'broken.csv'}", "-o", tmp_path / "run"]
    shown = called("pretrain", *options, code=4).stderr
    assert f"{of_what} can be read, first {tmp_path}/" in shown
    assert "not a video file" in shown
    assert not (tmp_path / "run").exists()


def test_short_windows_are_called_windows(tmp_path: Path, clip_files: Path):
    rows = [f"{clip_files}/clip{number}.mp4,0,0.5" for number in range(4)]
    (tmp_path / "windows.csv").write_text("\n".join(["path,start,end", *rows]))
    samples = read_samples(tmp_path / "windows.csv", root=tmp_path, labeled=False).samples
    clips = pretrain_clips(load_recipe("small", overrides=["pretrain.stride=2", f"data.root={clip_files}"]))
    clips = replace(clips, samples=samples)
    assert (padding_notice(clips, "pretrain") or "").startswith(
        "4 of 4 windows (100%) are shorter than a clip"
    )
