import csv
import os
import shutil
import tempfile
from pathlib import Path

import psutil
import pytest
import torch
from small_runs import refused, small_recipe

from everest.video.metadata import inspect_video
from everest.video.reader import VideoError, read_frames
from everest.video.writer import write_video

NOBODY = 65534  # a user without rights


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    frames = torch.arange(12, dtype=torch.uint8).mul(20).view(12, 1, 1, 1).expand(12, 48, 64, 3)
    write_video(path, frames.contiguous(), fps=8)
    return path


def data_set(folder: Path, video: Path, *, videos: int, broken: int) -> Path:
    """A recipe for a folder of links to one video, `broken` of them to text, with two epochs."""
    (folder / "clips").mkdir()
    text = folder / "text.mp4"
    text.write_text("no video")
    step = videos // broken
    for number in range(videos):
        is_broken = number % step == step - 1 and number // step < broken
        (folder / "clips" / f"{number:04d}.mp4").symlink_to(text if is_broken else video)
    changes = {"data: {": "data: {pretrain: clips, ", "micro_batch: 2": "micro_batch: 20"}
    return small_recipe(folder, folder, changes)


PASSES = ["--set", "pretrain.batch_size=20", "--set", "pretrain.epochs=2"]


def test_a_run_over_five_percent_of_broken_files_ends_with_code_4_and_the_list(video: Path, tmp_path: Path):
    recipe = data_set(tmp_path, video, videos=200, broken=10)
    message = refused("pretrain", "--recipe", recipe, "-o", tmp_path / "run", *PASSES, code=4)
    assert "samples could not be read, more than data.max_bad=0.01 allows" in message
    rows = list(csv.DictReader((tmp_path / "run" / "bad_videos.csv").read_text().splitlines()))
    assert 5 <= len(rows) <= 10
    assert all("not a video file" in row["reason"] for row in rows)


@pytest.mark.slow
def test_memory_stops_growing_over_thousands_of_opens(video: Path, shared: Path):
    odd = shared / "videos" / "odd"
    names = ["mpeg4_bframes.avi", "vp9_made.webm", "vfr_made.mp4", "portrait_354x492_2997.mp4"]
    process = psutil.Process()
    files = [video, *(odd / name for name in names), odd / "zero_bytes.mp4", odd / "corrupted_real.mp4"]
    grown = []  # bytes in 1000 opens; malloc keeps more and more at first
    while not grown or (grown[-1] > 2 * 2**20 and len(grown) < 15):
        before = process.memory_info().rss
        for opened in range(1000):
            try:
                read_frames(files[opened % len(files)], [0, 9])
            except VideoError as error:
                assert error.reason  # noqa: PT017
        grown.append(process.memory_info().rss - before)
    assert grown[-1] <= 2 * 2**20, grown


def test_protected_files_are_named(video: Path):
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:  # that other users may enter
        Path(folder).chmod(0o755)
        locked = Path(shutil.copy(video, folder))
        locked.chmod(0)
        try:
            if user == 0:  # who may read everything
                os.seteuid(NOBODY)
            with pytest.raises(VideoError, match=rf"{locked}: cannot be read: Permission denied"):
                inspect_video(locked)
        finally:
            os.seteuid(user)
