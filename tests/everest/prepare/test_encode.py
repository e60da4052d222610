import csv
import os
import re
import shutil
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from damage import fill
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from processes import kill_when
from small_runs import called, json_of, refused
from small_runs import contents as all_contents
from timed_videos import write_frames

from everest.lists.reading import read_samples
from everest.prepare.encode import EncodedFile, choose_size, expectation_text
from everest.video.index import CountedIndex
from everest.video.metadata import inspect_video
from everest.video.reader import frame_times, read_frames, video_info

SIZES = st.integers(1, 5000)


everest, error, summary = (partial(call, "prepare encode") for call in (called, refused, json_of))


def contents(folder: Path) -> dict[Path, bytes]:
    """All files below a folder, but for the files that mark the settings."""
    return {path: data for path, data in all_contents(folder).items() if not path.name.startswith(".encode-")}


@given(SIZES, SIZES, st.integers(16, 1000))
def test_a_new_size_is_even_no_larger_and_of_the_same_shape(height: int, width: int, short_side: int):
    new = choose_size(height, width, short_side)
    assert all(side % 2 == 0 and side >= 2 for side in new)
    assert all(side <= max(old, 2) for side, old in zip(new, (height, width), strict=True))
    scale = min(short_side, height, width) / min(height, width)
    exact = (height * scale, width * scale)
    assert all(-2.001 < side - want <= 1 for side, want in zip(new, exact, strict=True))


KINDS = ["vfr_made.mp4", "odd_321x181_made.mp4", "rotate90_phone.mov", "mpeg4_bframes.avi"]


@pytest.mark.parametrize("name", [*KINDS, "animated.gif"])
def test_frames_and_times_stay(shared: Path, tmp_path: Path, name: str):
    same_video(shared / "videos" / "odd" / name, tmp_path)


@pytest.mark.parametrize(
    "name", [*KINDS, "gray_pixfmt_made.mp4", "h264_10bit.mp4", "yuv444p_audio.mp4", "one_frame_h264.mp4"]
)
def test_motion_jpeg_has_the_same_frames_times_and_marks(shared: Path, tmp_path: Path, name: str):
    made = same_video(shared / "videos" / "odd" / name, tmp_path, "--codec", "mjpeg")
    index = inspect_video(made).index
    assert index.sizes.size == len(index)  # each frame is read by its position
    again = summary(tmp_path / "in", "-o", tmp_path / "out", "--short-side", 128, "--codec", "mjpeg")
    assert again["encoded"] == 0


@pytest.mark.slow
def test_frames_and_times_of_all_kinds_of_files_stay(shared: Path, tmp_path: Path):
    folder = shared / "videos" / "odd"
    with (folder / "manifest.csv").open() as file:
        good = [row["name"] for row in csv.DictReader(file) if row["expected"].startswith("decode")]
    for name in good:
        if name not in ("corrupted_real.mp4", "truncated_faststart.mp4"):  # not whole: refused
            same_video(folder / name, tmp_path / name)
            same_video(folder / name, tmp_path / f"{name} as images", "--codec", "mjpeg")


def same_video(source: Path, tmp_path: Path, *options: str) -> Path:
    """Encode a video, and compare number, times and looks of its frames with those of the new file."""
    (tmp_path / "in").mkdir(parents=True)
    shutil.copy(source, tmp_path / "in")
    everest(tmp_path / "in", "-o", tmp_path / "out", "--short-side", 128, *options)
    (made,) = (tmp_path / "out").glob("*.mp4")
    before, after = video_info(source), video_info(made)
    assert after.num_frames == before.num_frames, source.name
    size = choose_size(before.height, before.width, 128)
    assert (after.height, after.width) == size
    assert frame_times(made) == pytest.approx(frame_times(source), abs=1e-4), source.name
    ids = np.linspace(0, before.num_frames - 1, 5).astype(int).tolist()
    encoded = read_frames(made, ids).permute(0, 3, 1, 2).float()
    original = read_frames(source, ids).permute(0, 3, 1, 2).float()
    original = torch.nn.functional.interpolate(original, size, mode="bilinear", antialias=True)
    # Of 255; colors of half the positions, quantized.
    assert (encoded - original).abs().mean() < 6, source.name
    return made


def test_keyframes_are_close_and_bytes_are_the_same_each_time(videos: Path, tmp_path: Path):
    for name in ("one", "two"):
        everest(videos, "-o", tmp_path / name, "--gop", 5, "--short-side", 32)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    index = inspect_video(tmp_path / "one" / "clip0.mp4").index
    keys = np.searchsorted(index.times, index.key_times)
    assert np.diff([*keys, index.times.size]).max() <= 5


def test_lists_keep_labels_and_segments_and_leave_out_what_failed(videos: Path, tmp_path: Path):
    (videos / "ü ber").mkdir()
    (videos / "clip1.mp4").rename(videos / "ü ber" / 'it\'s, "one".mp4')
    (videos / "broken.mp4").write_bytes(b"no video")
    (videos / "seconds.tsv").write_text(
        "path,label,start,end,group\n"
        "clip0.mp4,kick,0.5,1.5,m 3\n"
        '"ü ber/it\'s, ""one"".mp4",hug,,1,\n'
        "broken.mp4,hug,,,\n"
        "clip0.mp4,hug,1,,m 4\n"
    )
    shown = summary(videos / "seconds.tsv", "-o", tmp_path / "out", code=4)
    broken = {"path": str(videos / "broken.mp4"), "reason": "not a video file"}
    assert (shown["failed"], shown["videos"], shown["encoded"]) == ([broken], 3, 2)
    named = (tmp_path / "out" / "bad_videos.csv").read_text().splitlines()[1]
    assert named.endswith("broken.mp4,not a video file")
    found = read_samples(Path(shown["lists"][0]), root=tmp_path / "out")
    assert found.class_names == ("hug", "kick")
    expected = [((1,), 0.5, 1.5, "m 3"), ((0,), None, 1.0, None), ((0,), 1.0, None, "m 4")]
    assert [(x.labels, x.start, x.end, x.group) for x in found.samples] == expected
    assert video_info(found.samples[1].path).num_frames == 32


def test_a_second_call_encodes_what_changed_only(videos: Path, tmp_path: Path):
    first = summary(videos, "-o", tmp_path / "out")
    before = contents(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mp4")}
    second = summary(videos, "-o", tmp_path / "out")
    assert (first["encoded"], second["encoded"], second["videos"]) == (4, 0, 4)
    assert contents(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mp4")} == times
    assert second["bytes"] == first["bytes"]
    os.utime(videos / "clip2.mp4", ns=(0, 0))  # of the same size
    shutil.copy(videos / "clip1.mp4", videos / "clip0.mp4")
    assert summary(videos, "-o", tmp_path / "out")["encoded"] == 2
    assert torch.equal(*(read_frames(tmp_path / "out" / f"clip{i}.mp4", range(32)) for i in (0, 1)))
    videos.rename(tmp_path / "moved")
    assert summary(tmp_path / "moved", "-o", tmp_path / "out")["encoded"] == 0


@pytest.mark.parametrize("padding", [0, 8])  # the sizes are equal, or not
def test_the_file_of_another_video_of_the_same_name_is_not_replaced(videos, tmp_path, padding):
    for number, day in enumerate(("day1", "day2"), start=1):
        (tmp_path / day).mkdir()
        shutil.copy(videos / f"clip{number}.mp4", tmp_path / day / "a.mp4")
    sizes = [(tmp_path / day / "a.mp4").stat().st_size for day in ("day1", "day2")]
    for day, size in zip(("day1", "day2"), sizes, strict=True):
        extra = max(sizes) - size + (padding if day == "day2" else 0)
        with (tmp_path / day / "a.mp4").open("ab") as file:
            file.write(bytes(extra))  # ignored by decoders
    os.utime(tmp_path / "day2" / "a.mp4", ns=(0, 0))  # the clock of files may be coarse
    (tmp_path / "day1" / "train.csv").write_text("a.mp4 0\n")
    (tmp_path / "day2" / "test.csv").write_text("a.mp4 0\n")
    everest(tmp_path / "day1" / "train.csv", "-o", tmp_path / "small")
    before = (tmp_path / "small" / "a.mp4").read_bytes()
    (failed,) = summary(tmp_path / "day2" / "test.csv", "-o", tmp_path / "small", code=4)["failed"]
    assert failed["path"] == str(tmp_path / "day2" / "a.mp4")
    target = tmp_path / "small" / "a.mp4"
    assert f"{target} is of another video" in failed["reason"]
    assert "choose another --output, or use --overwrite" in failed["reason"]
    assert target.read_bytes() == before
    everest(tmp_path / "day2" / "test.csv", "-o", tmp_path / "small", "--overwrite")
    assert target.read_bytes() != before


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_a_killed_call_resumes_to_the_same_files(videos: Path, tmp_path: Path, codec: str):
    for i in range(40):
        os.link(videos / f"clip{i % 4}.mp4", videos / f"copy{i:02d}.mp4")
    everest(videos, "-o", tmp_path / "whole", "--codec", codec)
    parts = tmp_path / "parts"
    command = ["prepare", "encode", videos, "-o", parts, "--codec", codec]
    kill_when(lambda: len(list(parts.glob("*.mp4"))) >= 5, *command)
    shown = summary(videos, "-o", parts, "--codec", codec)
    assert 0 < shown["encoded"] < 44
    assert contents(parts) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_other_settings_or_other_files_are_refused(videos: Path, tmp_path: Path):
    everest(videos, "-o", tmp_path / "out")
    before = contents(tmp_path / "out")
    for other in (("--gop", 6), ("--codec", "mjpeg")):
        assert "was encoded with other settings" in error(videos, "-o", tmp_path / "out", *other, code=2)
    assert contents(tmp_path / "out") == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("precious")
    assert "holds other files (thesis.txt)" in error(videos, "-o", tmp_path / "thesis", code=2)
    assert "a file is in the way" in error(videos, "-o", tmp_path / "thesis" / "thesis.txt", code=2)
    everest(videos, "-o", tmp_path / "out", "--gop", 6, "--overwrite")
    assert contents(tmp_path / "out") != before
    shutil.copy(videos / "clip2.mp4", tmp_path / "out" / "clip0.mp4")  # of another program
    (failed,) = summary(videos, "-o", tmp_path / "out", "--gop", 6, code=4)["failed"]
    assert failed["path"] == str(videos / "clip0.mp4")
    assert "not by this command" in failed["reason"]
    assert (tmp_path / "out" / "clip0.mp4").read_bytes() == (videos / "clip2.mp4").read_bytes()


@pytest.mark.parametrize("options", [("--codec", "mjpeg", "--crf", 18), ("--codec", "mjpeg", "--gop", 1)])
def test_settings_of_the_other_codec_are_refused(videos: Path, tmp_path: Path, options: tuple[str, ...]):
    assert "have no effect with --codec mjpeg" in error(videos, "-o", tmp_path / "out", *options, code=2)


def test_sources_are_never_written_over(videos: Path, tmp_path: Path):
    before = contents(videos)
    assert "is inside" in error(videos, "-o", videos / "small", "--overwrite", code=2)
    (tmp_path / "lists").mkdir()
    shutil.copy(videos / "train.csv", tmp_path / "lists" / "train.csv")
    arguments = (tmp_path / "lists" / "train.csv", "--data", videos, "-o", videos, "--overwrite")
    assert "an input of this command" in error(*arguments, code=2)
    assert contents(videos) == before


def test_two_folders_keep_apart_and_names_that_clash_are_reported(videos: Path, tmp_path: Path):
    shutil.copytree(videos, tmp_path / "more")
    everest(videos, tmp_path / "more", "-o", tmp_path / "out")
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.mp4")}
    assert names == {f"{folder}/clip{i}.mp4" for folder in ("videos", "more") for i in range(4)}
    lists = [tmp_path / "a.csv", tmp_path / "more" / "b.csv"]
    for file in lists:
        file.write_text("videos/clip0.mp4 0\n")
    shutil.copytree(videos, tmp_path / "more" / "videos")
    assert "would both become" in error(*lists, "-o", tmp_path / "clash", code=2)
    same = [tmp_path / "a.csv", tmp_path / "a.txt"]
    same[1].write_text("videos/clip1.mp4 0\n")
    assert "two of the new lists would be called a.csv" in error(*same, "-o", tmp_path / "same", code=2)


def test_names_whose_end_only_looks_like_a_suffix_stay_whole(tmp_path: Path):
    for day in (1, 2):
        (tmp_path / "in" / f"mouse.day{day}").mkdir(parents=True)
        for number in range(2):
            image = Image.new("RGB", (32, 32), (100 * day, 0, 0))
            image.save(tmp_path / "in" / f"mouse.day{day}" / f"{number}.png")
    everest(tmp_path / "in", "-o", tmp_path / "out")
    videos = [tmp_path / "out" / f"mouse.day{day}.mp4" for day in (1, 2)]
    assert [int(read_frames(video, [0])[0, 0, 0, 0]) for video in videos] == pytest.approx([100, 200], abs=9)
    called("select-frames", tmp_path / "in", "--frames", 2, "--picture", tmp_path / "figures")
    sampled = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert sampled == ["mouse.day1-frames.png", "mouse.day2-frames.png"]


def test_numbered_images_become_a_video_in_the_order_of_their_numbers(tmp_path: Path):
    (tmp_path / "in" / "film").mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number,) * 3).save(tmp_path / "in" / "film" / f"frame{number}.png")
    assert summary(tmp_path / "in", "-o", tmp_path / "out")["encoded"] == 1
    made = tmp_path / "out" / "film.mp4"
    assert video_info(made).num_frames == 12
    grays = read_frames(made, range(12)).float().mean(dim=(1, 2, 3))
    assert (grays - 20 * torch.arange(12)).abs().max() < 6
    assert summary(tmp_path / "in" / "film", "-o", tmp_path / "out")["encoded"] == 0  # the same video


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_next_call_resumes(videos: Path, small_disk: Path, tmp_path: Path):
    output = small_disk / "out"
    everest(videos, "-o", output)
    (output / "clip3.mp4").unlink()
    ballast = fill(small_disk)
    assert "the disk is full" in error(videos, "-o", output, code=5)
    ballast.unlink()
    assert summary(videos, "-o", output)["encoded"] == 1
    everest(videos, "-o", tmp_path / "whole")
    assert contents(output) == contents(tmp_path / "whole")


def test_a_video_that_breaks_off_is_no_shorter_video(shared: Path, tmp_path: Path):
    """Afterwards, nothing would show that frames are missing."""
    source = shared / "videos" / "odd" / "truncated_faststart.mp4"
    (tmp_path / "list.csv").write_text(f"{source} 0\n")
    everest(tmp_path / "list.csv", "-o", tmp_path / "out", "-q", code=4)
    assert "no intact frames from 5.50 to 10.00 s" in (tmp_path / "out" / "bad_videos.csv").read_text()
    assert not list((tmp_path / "out").rglob("*.mp4"))


@pytest.mark.skipif("libvpx" not in av.codecs_available, reason="PyAV has no VP8 encoder")
def test_webm_of_vp8_is_encoded_only_if_it_is_complete(tmp_path: Path):
    """The index of such a file has no times, but its frames do."""
    source = tmp_path / "in" / "clip.webm"
    source.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    write_frames(source, noise, codec="libvpx", rate=8)
    assert isinstance(inspect_video(source).index, CountedIndex)
    everest(source.parent, "-o", tmp_path / "out")
    assert video_info(tmp_path / "out" / "clip.mp4").num_frames == 24
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    (shown,) = summary(source.parent, "-o", tmp_path / "cut", code=4)["failed"]
    assert "damaged: no intact frames from" in shown["reason"]


def test_the_first_videos_of_a_long_list_say_what_to_expect_of_all(videos: Path, tmp_path: Path):
    for number in range(40):
        os.link(videos / f"clip{number % 4}.mp4", videos / f"copy{number:02d}.mp4")
    shown = everest(videos, "-o", tmp_path / "out", "--codec", "mjpeg").stderr
    (line,) = (line for line in shown.splitlines() if "times as large" in line)
    factor = float(re.search(r"the first 32 videos became (\S+) times as large; expect", line)[1])
    sizes = [
        sum(path.stat().st_size for path in folder.glob("*.mp4")) for folder in (tmp_path / "out", videos)
    ]
    assert factor == pytest.approx(sizes[0] / sizes[1], rel=0.2)
    assert re.search(r"TB for all 44 \(\S+ TB are free\), and .* more$", line)
    (videos / "clip0.mp4").unlink()
    assert "times as large" not in everest(videos, "-o", tmp_path / "out", "--codec", "mjpeg").stderr


def test_expected_sizes_are_in_terabytes():
    files = [EncodedFile(Path("a.mp4"), True, 10**8, 22 * 10**8)] * 32
    text = expectation_text(files, num_videos=10**6, seconds=10**5, free=4 * 10**11)
    assert text == (
        "the first 32 videos became 22 times as large; expect 2,200.00 TB "
        "for all 1,000,000 (0.40 TB are free), and 27.8 h more"
    )
