import re
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from small_runs import called, json_of, refused, run
from video_kinds import COUNT, RATE, written

from everest.config.heads import Head
from everest.errors import DataError
from everest.lists.labels import class_indices
from everest.lists.reading import read_samples, read_unlabeled
from everest.lists.sample import Sample
from everest.lists.writing import write_list
from everest.video.reader import video_damage_text, video_info
from everest_workflows.annotations.bout import Bout
from everest_workflows.recordings.window_labels import label_samples, label_windows
from everest_workflows.recordings.window_lists import choose_windows

FPS, SECONDS = 10, 40
MOVING = (22, 26)  # seconds
OPTIONS = {"crf": "28", "preset": "veryfast"}


def write_scene(path: Path) -> Path:
    """A textured image with the noise of a camera, which moves for four seconds only."""
    rng = np.random.default_rng(0)
    width, height = 64, 48
    image = np.kron(rng.integers(40, 200, (height // 8, width // 8, 3)), np.ones((8, 8, 1)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(FPS * SECONDS):
            shift = 3 * number if MOVING[0] * FPS <= number < MOVING[1] * FPS else 0
            pixels = np.roll(image, shift, axis=1) + rng.normal(0, 2, image.shape)
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.mp4")


def windows(*words: object, code: int = 0) -> dict:
    return json_of("prepare", "windows", "--json", "-q", *words, code=code)


def spans(file: Path) -> list[tuple[str, float | None, float | None]]:
    samples = read_unlabeled(file, root=file.parent).samples
    return [(Path(sample.path).name, sample.start, sample.end) for sample in samples]


def test_all_windows_of_a_file_and_of_a_segment(tmp_path: Path, scene: Path):
    shutil.copy(scene, tmp_path / "a b.mp4")
    found = windows(tmp_path / "a b.mp4", "--seconds", 16, "--step", 8, "-o", tmp_path / "w.csv")
    assert spans(tmp_path / "w.csv") == [("a b.mp4", at, at + 16) for at in (0, 8, 16, 24)]
    assert found["hours"] == pytest.approx(4 * 16 / 3600)
    listed = tmp_path / "segments.csv"
    listed.write_text('path,start,end,start_frame,end_frame\n"a b.mp4",30,,,\n"a b.mp4",,,5,65\n')
    run("prepare", "windows", listed, "--seconds", 4, "-o", tmp_path / "s.csv", "-q")
    expected = [(30, 34), (34, 38), (0.5, 4.5)]
    assert [span[1:] for span in spans(tmp_path / "s.csv")] == expected
    run("prepare", "windows", scene, "--seconds", 60, "-o", tmp_path / "short.csv", "-q")
    assert spans(tmp_path / "short.csv") == [("scene.mp4", 0, 40)]


def test_the_seed_alone_decides(tmp_path: Path, scene: Path):
    lists = []
    for number, seed in enumerate((3, 3, 4)):
        file = tmp_path / f"{number}.csv"
        windows(scene, "--seconds", 1, "--hours", 0.003, "--seed", seed, "-o", file)
        lists.append(file.read_bytes())
    assert lists[0] == lists[1] != lists[2]
    assert len(lists[0].splitlines()) == 11


def test_windows_go_on_after_a_damage(tmp_path: Path):
    video = written(tmp_path, "ts", "h264-b", "lost packet at 0.45")
    shown = called("prepare windows", video, "--seconds", 0.2, "-o", tmp_path / "w.csv", code=4)
    found = re.search(r"video.ts: damaged: no intact frames from (\S+) to (\S+) s", shown.stderr)
    begin, end = map(float, found.groups())
    assert 0.3 < begin < end < COUNT / RATE - 0.3
    expected = [at / 5 for at in range(8) if (at + 1) / 5 <= begin + 0.01 or at / 5 >= end - 0.01]
    assert [start for _, start, _ in spans(tmp_path / "w.csv")] == pytest.approx(expected)
    damage = video_damage_text(video)
    assert [float(damage.split()[at]) for at in (5, 7)] == pytest.approx([begin, end], abs=2 / RATE)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        *(("mkv", "h264-b"), ("mkv", "vp9"), ("mp4", "h264-b"), ("flv", "h264-b"), ("ts", "h264-b")),
        *(("asf", "mpeg4"), ("asf", "wmv2"), ("asf", "h264-b"), ("avi", "mpeg4"), ("avi", "h264-b")),
    ],
)
def test_no_window_touches_what_a_cut_removed(tmp_path: Path, container: str, codec: str):
    video = written(tmp_path, container, codec, "cut at 0.62")
    damage = video_damage_text(video)
    shown = called("prepare windows", video, "--seconds", 0.04, "-o", tmp_path / "w.csv", code=4)
    assert f"{video}: {damage}; no windows there" in shown.stderr
    last = max(end or 0 for *_, end in spans(tmp_path / "w.csv"))
    assert last == pytest.approx(float(damage.split()[5]), abs=0.041)
    assert last <= float(damage.split()[5]) + 1e-6


def test_unreadable_files_are_named_and_damaged_ones_used_to_the_damage(tmp_path: Path, scene: Path):
    data = scene.read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    growing = write_scene(tmp_path / "whole.ts")
    (tmp_path / "growing.ts").write_bytes(growing.read_bytes()[: growing.stat().st_size // 2])
    growing.unlink()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    found = windows(tmp_path, "--seconds", 4, "-o", tmp_path / "w.csv", code=4)
    assert {Path(row["path"]).name for row in found["failed"]} == {"empty.mp4", "text.mp4", "cut.mp4"}
    listed = spans(tmp_path / "w.csv")
    assert {name for name, *_ in listed} == {"growing.ts"}
    end = video_info(tmp_path / "growing.ts").num_frames / FPS
    assert 10 < max(end or 0 for *_, end in listed) <= end + 0.2
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "0.png")
    images = refused("prepare", "windows", tmp_path / "images", "--seconds=4", "-o", tmp_path / "n", code=4)
    assert images.endswith(
        "a folder of images has no seconds; make a video of it by everest prepare encode\n"
    )
    alone = refused("prepare", "windows", tmp_path / "empty.mp4", "--seconds=4", "-o", tmp_path / "n", code=4)
    assert "empty file" in alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hours", 1, "--count", 2], "use one of them"),
        (["--hours", 0.0001], "less than one window"),
        (["--hours", "inf"], "--hours inf: must be"),
        (["--hours", "nan"], "--hours"),
        (["--hours", 1e300], "--hours 1e+300: must be"),
        (["--seconds", "inf"], "--seconds: must be a number of seconds from 0.001 on, not inf"),
        (["--step", "inf"], "--step: must be a number of seconds from 0.001 on, not inf"),
    ],
)
def test_wrong_options_are_usage_errors(tmp_path: Path, scene: Path, options: list, message: str):
    words = ["prepare", "windows", scene, "--seconds", 4, *options, "-o", tmp_path / "w.csv"]
    assert message in refused(*words, code=2)
    assert not list(tmp_path.iterdir())


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
    shown = [names[index] for sample in labeled for label in sample.labels for index in class_indices(label)]
    assert shown == ["walk", "call", "background"]


@pytest.mark.parametrize("name", ["a|b", " a", "a\nb"])
def test_names_that_a_list_cannot_hold_are_refused(name: str):
    with pytest.raises(DataError, match="rename it in the annotations"):
        label_samples(samples((0, 2)), {VIDEO: [bout(0, 1, name)]})


def test_windows_are_spread_evenly_over_all_recordings():
    (chosen,) = choose_windows([100], 10, seed=0)
    assert set(np.diff(chosen)) == {10}
    for count, expected in ((15, [5, 0, 10]), (99, [10, 0, 20]), (None, [10, 0, 20])):
        assert [*map(len, choose_windows([10, 0, 20], count, seed=1))] == expected
