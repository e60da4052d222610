import itertools
import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import called, json_of, sets, small_recipe
from timed_videos import nearest, numbers_shown, write_numbered

import everest
from everest.checkpoints.describe import describe_sampling
from everest.checkpoints.graph import make_graph
from everest.checkpoints.load import open_model
from everest.data.footage import FrameTimes, read_footage
from everest.data.frames import find_sampling
from everest.data.views import EvalViews, FinetuneViews, PretrainViews, ValidationViews
from everest.lists.sample import Sample
from everest.system.weights_header import read_header
from everest.video.reader import VideoError

SIZE = (32, 48)
RATES = (24, 25, 30, 60, 120)
UNEVEN = [0, 1, 2, 9, 10, 22, 23, 24, 40, 41, 55, 70, 71, 72, 73, 90]  # in 1/48 s


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Fraction]]]:
    """Files of a second with the times of their frames: at constant rates, and one at none."""
    folder = tmp_path_factory.mktemp("timed")
    made = {}
    for rate in RATES:
        path = write_numbered(folder / f"{rate}.mp4", range(rate), Fraction(1, rate))
        made[str(rate)] = path, [Fraction(i, rate) for i in range(rate)]
    path = write_numbered(folder / "uneven.mp4", UNEVEN, Fraction(1, 48))
    made["uneven"] = path, [Fraction(time, 48) for time in UNEVEN]
    path = write_numbered(folder / "25.avi", range(25), Fraction(1, 25), codec="ffv1")
    made["avi"] = path, [Fraction(i, 25) for i in range(25)]
    return made


NAMES = [*map(str, RATES), "uneven", "avi"]


@pytest.mark.parametrize("fps", [8, 12.5, 24, 25, 30, 50, 60])
@pytest.mark.parametrize("name", NAMES)
def test_a_timeline_has_the_frame_nearest_to_each_time(files, name: str, fps: float):
    path, seconds = files[name]
    numbers = read_footage(Sample(path=str(path)), fps).frame_ids
    assert numbers.tolist() == [nearest(seconds, j / Fraction(fps)) for j in range(len(numbers))]
    assert abs(len(numbers) / fps - FrameTimes.of(path).end) <= 0.5 / fps + 1e-6


def views_of(fps: float | None, way: str) -> list:
    common = {"frames": 4, "stride": 3, "size": SIZE, "sampling": way, "fps": fps}
    plain = {"flip": False, "crop_area": (1.0, 1.0), "rand_augment": None, "erasing": 0.0}
    return [
        PretrainViews(**common, flip=False, views_per_decode=1),
        FinetuneViews(**common, **plain),
        ValidationViews(**common),
        EvalViews(**common, clips=3, crops=1),
    ]


def expected_ids(view, length: int, rng: np.random.Generator, way: str) -> np.ndarray:
    ways = find_sampling(way)
    if isinstance(view, EvalViews):
        return np.stack(ways.views(length, 4, 3, 3))
    if isinstance(view, ValidationViews):
        return ways.center(length, 4, 3)[None]
    return (ways.pretrain if isinstance(view, PretrainViews) else ways.finetune)(length, 4, 3, rng)[None]


REFUSED = {("decord", "uneven"), ("decord", "avi")}  # they may read wrong frames
DECODERS = ("auto", "decord")


@pytest.mark.parametrize(
    ("decoder", "name"), [case for case in itertools.product(DECODERS, NAMES) if case not in REFUSED]
)
@pytest.mark.parametrize("way", ["dense", "segment", "spread"])
def test_every_stage_reads_the_frames_of_the_timeline(files, name: str, way: str, decoder: str):
    path, seconds = files[name]
    sample = Sample(path=str(path))
    for fps, timeline in ((15, read_footage(sample, 15).frame_ids), (None, np.arange(len(seconds)))):
        for view in views_of(fps, way):
            ids = expected_ids(view, len(timeline), np.random.default_rng(3), way)
            clips = view(sample, np.random.default_rng(3), decoder).frames  # (V, 3, T, H, W)
            assert [numbers_shown(clip) for clip in clips] == timeline[ids].tolist()


def test_the_timeline_of_a_segment_starts_at_its_first_frame_and_stays_inside(files):
    sample = Sample(path=str(files["60"][0]), start_frame=7, end_frame=37)  # half a second
    assert read_footage(sample, 10).frame_ids.tolist() == [7, 13, 19, 25, 31]
    uneven = Sample(path=str(files["uneven"][0]), start=20 / 48, end=60 / 48)  # frames at 22 to 55
    shown = read_footage(uneven, 24).frame_ids  # every 2/48 s from 22/48 to 69/48
    assert shown[:3].tolist() == [5, 7, 7]
    assert shown.min() == 5
    assert shown.max() == 10


def test_a_folder_of_images_has_no_frame_rate_and_a_rate_that_is_none_is_refused(files, tmp_path: Path):
    for number in range(4):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    with pytest.raises(VideoError, match=r"has no seconds; make a video .* and data\.fps: null"):
        everest.read_clip(tmp_path, frames=2, stride=1, size=32, fps=10)
    for fps in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="fps must be a number above 0"):
            everest.read_clip(files["24"][0], fps=fps)


FPS, RATE = 15, 40  # of the recipe, and of most files
OPTIONS = sets(f"data.fps={FPS}", "finetune.epochs=1", "finetune.warmup_epochs=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timed")
    for i in range(4):
        write_numbered(folder / f"clip{i}.mp4", range(RATE), Fraction(1, RATE))
    (folder / "train.csv").write_text("".join(f"clip{i}.mp4 {i % 2}\n" for i in range(4)))
    small_recipe(folder, folder)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    called("finetune", "--recipe", data / "tiny.yaml", "--init", "none", "-o", folder, "-q", *OPTIONS)
    return folder


@pytest.fixture
def alone(run: Path, tmp_path: Path) -> Path:
    """The weights without the recipe of their run."""
    return shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors")


def test_the_weights_state_the_rate_only_if_it_is_set(run: Path, classifier_run: Path):
    assert read_header(run / "model.safetensors").clip == {"stride": 2, "sampling": "dense", "fps": FPS}
    plain = read_header(classifier_run / "model.safetensors").clip
    assert plain == {"stride": 2, "sampling": "dense"}


def test_predictions_with_and_without_the_recipe_are_equal(run: Path, alone: Path, data: Path):
    command = ["predict", data / "clip1.mp4", "--views", "2x3", "--gpus", "cpu"]
    with_recipe = json_of(*command, "-c", run / "model.safetensors")
    assert with_recipe == json_of(*command, "-c", alone)
    assert with_recipe != json_of(*command, "-c", run, "--recipe", data / "tiny.yaml")


def test_windows_of_a_timeline_last_as_long_as_a_clip_and_an_export_states_the_rate(run: Path, data: Path):
    (row,) = json_of("timeline --gpus cpu", "-c", run, data / "clip0.mp4")
    first = row["windows"][0]
    assert first["end"] - first["start"] == pytest.approx(4 * 2 / FPS, abs=1e-3)
    clip = json.loads(make_graph(open_model(run, kind="transformer"), keep=None).metadata["clip"])
    assert clip["fps"] == FPS
    sampled = describe_sampling(stride=clip["stride"], sampling=clip["sampling"], fps=clip["fps"])
    assert sampled == "the frames of a clip are 2 frames at 15 per second apart"
