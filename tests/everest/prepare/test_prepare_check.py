import json
import re
import shutil
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import fill
from misbehaving import misbehave
from PIL import Image
from prepare_commands import check as checked
from prepare_commands import everest
from processes import kill_after
from small_runs import called, json_of, refused
from timed_videos import write_frames, write_numbered

from everest.data.footage import read_footage
from everest.lists.reading import read_samples
from everest.prepare.check import differences_by_headers
from everest.system.parts import open_parts
from everest.system.signals import signal_name
from everest.video.file_processes import Failure, map_in_processes
from everest.video.images import NO_SECONDS
from everest.video.stream import VideoError

PLAN = {"results": "files"}
BAD_IN_ODD = {  # of manifest.csv: files that cannot be decoded, or only in part
    "audio_only.mp4": "no video stream",
    "chunk_out_of_range.mp4": "no frame can be decoded",
    "text_renamed.mp4": "not a video file",
    "truncated_a.mp4": "no frame can be decoded",
    "truncated_b.mp4": "no frame can be decoded",
    "zero_bytes.mp4": "empty file",
    "corrupted_real.mp4": "damaged: ",
    "truncated_faststart.mp4": r"damaged: no intact frames from 5\.50 to 10\.00 s",
}


def check(*arguments, output: Path, code=0):
    return json_of("prepare check -q", *arguments, "-o", output, code=code)


def bad(result):
    return {Path(row["path"]).name: row["reason"] for row in result["bad"]}


def test_exactly_the_bad_files_of_a_real_collection_are_found(shared: Path, tmp_path: Path):
    result = check(shared / "videos" / "odd", output=tmp_path, code=4)
    assert bad(result).keys() == BAD_IN_ODD.keys()
    assert all(re.match(BAD_IN_ODD[name], reason) for name, reason in bad(result).items())
    assert (result["checked"], result["ok"]) == (35, 27)


def test_missing_videos_are_named(videos: Path, tmp_path: Path):
    (videos / "clip2.mp4").unlink()
    result = check(videos / "train.csv", output=tmp_path / "out", code=4)
    reason = "No such file or directory"
    assert bad(result) == {"clip2.mp4": reason}
    assert (tmp_path / "out" / "bad_videos.csv").read_text() == f"path,reason\n{videos}/clip2.mp4,{reason}\n"


def test_copies_are_found_within_and_between_lists_and_parts_are_no_copies(videos: Path, tmp_path: Path):
    shutil.copy(videos / "clip0.mp4", videos / "copy.mp4")
    train, test = (videos / f"{name}.csv" for name in ("train", "test"))
    train.write_text("clip0.mp4 0\nclip1.mp4 1\nclip2.mp4 0\nclip2.mp4 0\n")
    test.write_text("copy.mp4 1\nclip3.mp4 0\n")
    result = check(train, test, output=tmp_path / "out", code=4)
    copies = {"videos": [f"{videos}/clip0.mp4", f"{videos}/copy.mp4"], "lists": [str(train), str(test)]}
    assert result["duplicates"] == [
        {**copies, "leak": True, "labels_differ": True},
        {"videos": [f"{videos}/clip2.mp4"], "lists": [str(train)], "leak": False, "labels_differ": False},
    ]
    assert result["leaks"] == 1
    assert len(check(train, output=tmp_path / "out")["duplicates"]) == 1  # in one list: no failure
    unlabeled = videos / "pretrain.csv"
    unlabeled.write_text("path\nclip0.mp4\nclip1.mp4\n")
    assert check(train, unlabeled, output=tmp_path / "out")["leaks"] == 0  # pre-training may repeat them
    train.write_text("path,label,start,end\nclip0.mp4,0,0,1\nclip0.mp4,1,1,2\n")
    assert check(train, output=tmp_path / "parts")["duplicates"] == []


def test_segments_of_a_variable_frame_rate_are_looked_up(tmp_path: Path):
    times = [*range(15), *range(30, 1380, 30)]  # 30 frames a second, then one
    write_numbered(tmp_path / "a.mkv", times, Fraction(1, 30))
    (tmp_path / "train.csv").write_text("path,label,start,end\na.mkv,0,0.1,0.5\na.mkv,1,20,40\n")
    assert check(tmp_path / "train.csv", output=tmp_path / "out")["bad"] == []
    data = read_samples(tmp_path / "train.csv", root=tmp_path).samples
    assert [read_footage(sample, None).num_frames for sample in data] == [12, 20]


def test_a_segment_is_bad_only_if_no_clip_can_be_read_from_it(videos: Path, tmp_path: Path):
    rows = [f"clip0.mp4,0,{span}\n" for span in ("1,1.01", "1.07,1.1", "1.95,")]  # 16 frames a second
    (videos / "run").mkdir()
    Image.new("RGB", (8, 8)).save(videos / "run" / "0.png")
    (videos / "train.csv").write_text(f"path,label,start,end\n{''.join(rows)}run,1,1,\n")
    result = check(videos / "train.csv", output=tmp_path, code=4)
    unread = set()
    for sample in read_samples(videos / "train.csv", root=videos).samples:
        try:
            read_footage(sample, None)
        except VideoError:
            unread.add(Path(sample.video_id).name)
    assert bad(result).keys() == unread
    assert bad(result) == {
        "clip0.mp4#1.07s-1.1s": "no frame between 1.07 s and 1.1 s; the last is at 1.94 s",
        "clip0.mp4#1.95s-": "no frame after 1.95 s; the last is at 1.94 s",
        "run#1.0s-": f"{NO_SECONDS}, or use start_frame and end_frame, and data.fps: null",
    }


def test_a_folder_of_images_is_a_video(tmp_path: Path):
    (tmp_path / "data" / "run").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "data" / "run" / f"{number}.png")
    assert check(tmp_path / "data", output=tmp_path)["frames"]["max"] == 3
    (tmp_path / "data" / "run" / "1.png").write_bytes(b"broken")
    assert "cannot" in bad(check(tmp_path / "data", output=tmp_path, code=4))["run"]
    Image.new("RGB", (8, 16)).save(tmp_path / "data" / "run" / "1.png")
    assert bad(check(tmp_path / "data", output=tmp_path, code=4))["run"] == "images of different sizes"


def write_class(folder: Path, frames: Sequence[int], *, rate=25, size=(48, 64)) -> None:
    """Write a different video of each number of frames."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(folder.name))
    for number, count in enumerate(frames):
        noise = rng.integers(256, size=(count, *size, 3), dtype=np.uint8)
        write_frames(folder / f"{number}.mp4", noise, codec="libx264", rate=rate)


def test_classes_recorded_alike_give_no_warning(tmp_path: Path):
    write_class(tmp_path / "data" / "groom", (25, 27, 30, 33, 35))
    write_class(tmp_path / "data" / "rear", (27, 30, 33, 34, 35))
    assert check(tmp_path / "data", output=tmp_path)["class_differences"] == []


def test_classes_that_differ_in_the_camera_or_in_length_are_named_with_numbers(tmp_path: Path):
    data = tmp_path / "data"
    write_class(data / "groom", (25, 26, 30, 34, 35))
    write_class(data / "rear", (33, 34, 36, 38, 39), rate=30)
    write_class(data / "sit", (24, 25, 40, 49, 50), size=(64, 96))
    write_class(data / "single", (200,), rate=50)  # one video shows no system
    rates, lengths, sizes = check(data, output=tmp_path)["class_differences"]
    assert (rates["of"], rates["unit"]) == ("frame rate", "frames/s")
    assert [*rates["classes"]] == ["groom", "rear", "sit"]
    assert rates["classes"]["rear"] == {"min": 30, "median": 30, "max": 30}
    assert (lengths["of"], lengths["unit"]) == ("length", "s")
    assert lengths["classes"]["sit"] == {"min": 0.96, "median": 1.6, "max": 2.0}
    classes = {"groom": "64x48", "rear": "64x48", "sit": "96x64"}
    assert sizes == {"of": "frame size", "unit": "pixels", "classes": classes}
    by_class = read_samples(data, root=data).by_class
    assert differences_by_headers(by_class) == [rates, sizes]
    plan = called("train", data, "--model", "linear", "--dry-run").stdout
    assert "warning: classes differ in frame size: mostly 64x48 in 'groom', 'rear', 96x64 in 'sit'" in plan
    shown = checked(data, "-o", tmp_path).stdout
    for text in ("classes differ in frame rate: median 25 frames/s in 'groom', 30 frames/s in 'rear'",
                 "length: median 1.2 s in 'groom' (1 to 1.4), 1.6 s in 'sit' (0.96 to 2)"):  # fmt: skip
        assert text in shown


def test_a_class_apart_is_named_and_segments_count_by_their_own_length(tmp_path: Path):
    write_class(tmp_path / "data", (60,))
    lengths = {"a": 1, "b": 1.1}  # the medians are near
    rows = [
        f"0.mp4,{name},{0.1 * at},{0.1 * at + length}" for name, length in lengths.items() for at in range(5)
    ]
    (tmp_path / "data" / "train.csv").write_text("\n".join(["path,label,start,end", *rows]))
    (difference,) = check(tmp_path / "data" / "train.csv", output=tmp_path)["class_differences"]
    assert difference["of"] == "length"
    assert difference["classes"]["b"]["min"] == pytest.approx(1.1)


def kept_results(folder: Path) -> list[dict[str, Any]]:
    """The results that a check has kept."""
    with open_parts(folder / "checked_videos", PLAN) as parts:
        joined = parts.joined()
    assert joined is not None
    return [row for results in joined.results for row in results]


def test_the_lengths_of_the_videos_of_a_recipe_are_reported(videos: Path, tmp_path: Path):
    options = ["--recipe", "custom", "--data", videos, "--set", "data.test=null"]
    result = check(*options, output=tmp_path / "out")
    assert (result["checked"], result["ok"]) == (4, 4)
    assert result["frames"] == {"min": 32, "median": 32, "max": 32}
    assert result["seconds"]["max"] == 2.0
    assert result["written"] == []
    assert not (tmp_path / "out" / "bad_videos.csv").exists()


def test_a_video_in_place_of_a_list_and_one_without_a_class_are_named(clip_files: Path, tmp_path: Path):
    shutil.copy(clip_files / "clip0.mp4", tmp_path / "list.csv")
    for file, what in ((clip_files / "clip0.mp4", "file that ends"), (tmp_path / "list.csv", "video")):
        for command in (["check"], ["split", "-o", tmp_path / "lists"]):
            message = refused(f"prepare {command[0]}", file, *command[1:], code=4)
            assert f"{file}: expected a list or a folder of videos, not a {what}" in message
        message = refused("prepare annotations", file, code=4)
        assert f"{file}: expected a file of annotations, not a {what}" in message
    for number, name in enumerate(("run", "walk")):
        (tmp_path / "all" / name).mkdir(parents=True)
        shutil.copy(clip_files / f"clip{number}.mp4", tmp_path / "all" / name)
    shutil.copy(clip_files / "clip3.mp4", tmp_path / "all" / "loose.mp4")
    shown = checked(tmp_path / "all", "-o", tmp_path / "out")
    assert "left out, next to the class folders and without a class: loose.mp4" in shown.stderr


def test_the_lists_of_a_recipe_are_read_as_its_stages_read_them(videos: Path, tmp_path: Path):
    (videos / "more" / "beach").mkdir(parents=True)
    shutil.copy(videos / "clip1.mp4", videos / "more" / "beach" / "again.mp4")
    (videos / "train.csv").write_text("clip0.mp4 run\nclip1.mp4 walk\n")
    (videos / "test.csv").write_text("clip2.mp4 walk\n")
    options = ["--recipe", "custom", "--data", videos, "--set", "data.pretrain=more"]
    result = check(*options, output=tmp_path / "out")
    assert (result["checked"], result["duplicates"]) == (4, [])  # videos for pre-training may repeat others
    assert [row["class"] for row in result["classes"]] == ["run", "walk"]
    (videos / "test.csv").write_text("clip2.mp4 wlak\n")
    message = checked(*options, "-o", tmp_path / "out", code=4).stderr
    assert f"{videos}/test.csv:1: unknown class 'wlak'; did you mean 'walk'?" in message
    assert "sets the lists and the task" in checked(*options, "--task", "regression", code=2).stderr


@pytest.mark.parametrize("workers", [1, 3])
def test_a_crash_or_hang_costs_its_item_only(workers: int, monkeypatch: pytest.MonkeyPatch):
    items = ["a", "crash", "b", "hang", "c", "exit", "d"]
    preloaded: list[str] = []
    monkeypatch.setattr(get_context("forkserver"), "set_forkserver_preload", preloaded.extend)
    found = dict(map_in_processes(partial(misbehave), items, workers=workers, timeout=1.0))
    assert preloaded == ["misbehaving"]
    assert found == {
        **{"a": "A", "b": "B", "c": "C", "d": "D"},
        "crash": Failure("the decoder was ended by SIGSEGV"),
        "hang": Failure("not decoded within 1 s"),
        "exit": Failure("the decoder ended with code 3"),
    }
    assert signal_name(-40) == "signal 40"  # a real-time signal


def test_a_video_that_takes_too_long_or_is_fixed_is_looked_at_again(videos, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(256, size=(2000, 64, 64, 3), dtype=np.uint8)
    write_frames(videos / "clip1.mp4", noise, codec="mpeg4", rate=25)
    with monkeypatch.context() as patch:
        patch.setattr("everest_cli.prepare.CHECK_SECONDS", 0.01)
        result = check(videos / "train.csv", output=tmp_path / "out", code=4)
    assert bad(result)["clip1.mp4"] == "not decoded within 0.01 s"
    assert check(videos / "train.csv", output=tmp_path / "out")["ok"] == 4
    good = (videos / "clip1.mp4").read_bytes()
    (videos / "clip1.mp4").write_bytes(good[:500])
    assert check(videos / "train.csv", output=tmp_path / "out", code=4)["ok"] == 3
    (videos / "clip1.mp4").write_bytes(good)
    assert check(videos / "train.csv", output=tmp_path / "out")["ok"] == 4


def many(folder: Path, clip: Path, count: int) -> Path:
    """A list of `count` different files of one clip's frames: what follows the video is not read."""
    for number in range(count):
        (folder / f"{number:03}.mp4").write_bytes(clip.read_bytes() + f"{number:08}".encode())
    (folder / "bad.mp4").write_bytes(b"")
    rows = [f"{number:03}.mp4 {number % 2}" for number in range(count)]
    (folder / "train.csv").write_text("\n".join([*rows[:5], "bad.mp4 0", *rows[5:]]))
    return folder / "train.csv"


@pytest.mark.slow
def test_a_killed_check_resumes_and_reports_the_same(tmp_path: Path, clip_files: Path):
    rows = many(tmp_path, clip_files / "clip0.mp4", 80)
    whole = check(rows, output=tmp_path / "out", code=4)
    results = (tmp_path / "out" / "bad_videos.csv").read_text()
    shutil.rmtree(tmp_path / "out")
    kill_after(7, ["prepare", "check", rows, "-o", tmp_path / "out", "-q"])
    assert len(kept_results(tmp_path / "out")) == 7
    shown = checked(rows, "-o", tmp_path / "out", "--json", code=4)
    assert json.loads(shown.stdout) == whole
    assert "7 of 81 videos were checked before" in shown.stderr
    assert (tmp_path / "out" / "bad_videos.csv").read_text() == results
    assert len(kept_results(tmp_path / "out")) == 81


def test_a_full_disk_is_reported_and_the_check_resumes_once_there_is_room(videos: Path, small_disk: Path):
    arguments = [videos / "train.csv", "-o", small_disk / "out"]
    (small_disk / "out").mkdir()
    ballast = fill(small_disk)
    assert "plan.json: the disk is full; free some space" in checked(*arguments, code=5).stderr
    ballast.unlink()
    checked(*arguments)


def test_without_output_the_files_are_in_the_current_folder(videos, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = sorted(videos.iterdir())
    shown = checked(videos / "train.csv", "-q").stdout
    assert shown.endswith("\nprogress: checked_videos\n")
    assert [path.name for path in Path().iterdir()] == ["checked_videos"]
    assert sorted(videos.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "s3://bucket/train.csv"),
        ("check", "--recipe", "ucf101", "--set", "data.root=s3://bucket"),
        ("index", "hf://datasets/owner/name"),
        ("split", "s3://bucket/all.csv"),
        ("split", "all.csv", "--data", "s3://bucket"),
    ],
)
def test_commands_that_read_this_machine_only_say_so_of_a_url(arguments: tuple[str, ...]):
    said = everest("prepare", *arguments, code=2).stderr
    assert "is a URL; this command reads local files only" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "nothing to check: give a list or a folder, or --recipe"),
        (["none.csv"], 4, "none.csv: no such list or folder"),
        (["--recipe", "custom", "--set", "data.train=null", "--set", "data.test=null"], 2, "names no list"),
        (["empty"], 4, "empty: contains no videos"),
        (["train.index.json"], 4, "an index of shards; name the list or folder that they were made from"),
        (["train.csv", "--set", "data.frames=2"], 2, "--set needs --recipe"),
        (["train.csv", "-o", "train.csv/x"], 5, "cannot write"),
        (["train.csv", "parts"], 2, "plan.json: damaged"),
        (["train.csv", "-o", "run"], 2, "bad_videos.csv: exists"),
    ],
)
def test_what_cannot_be_meant(videos, monkeypatch, arguments, code, message):
    monkeypatch.chdir(videos)
    Path("empty").mkdir()
    Path("run").mkdir()
    Path("run/bad_videos.csv").write_text("path,reason\n")
    Path("train.index.json").write_text("{}")
    if "parts" in arguments:
        Path("checked_videos").mkdir()
        Path("checked_videos/plan.json").write_text("mine\n")
    assert message in checked(*(word for word in arguments if word != "parts"), code=code).stderr
    if "run" in arguments:
        checked(*arguments, "--overwrite")
