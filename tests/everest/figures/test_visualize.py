import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import called, json_of, refused
from tiny_models import save_model, tiny

import everest
from everest.config.recipe import load_recipe
from everest.data.crops import resize
from everest.data.views import EvalViews
from everest.figures.masks import MaskSettings
from everest.lists.sample import Sample
from everest.methods.grid import TokenGrid
from everest.methods.importance import RawPixels
from everest.methods.selection import count_kept_tokens
from everest.methods.strategies import RedundancyRobust
from everest.models.vit import frame_differences
from everest.video.writer import write_video

SMALL = ["--size", "32", "--frames", "8", "--stride", "2"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 frames of 64 x 96: a bright square crosses the upper half in frames 16 to 48, else all rests."""
    path = tmp_path_factory.mktemp("video") / "moves.mp4"
    frames = torch.full((64, 64, 96, 3), 60, dtype=torch.uint8)
    for number in range(64):
        left = 2 * min(max(number - 16, 0), 32)
        frames[number, 8:24, left : left + 16] = 230
    write_video(path, frames, 24)
    return path


def test_kept_tokens_are_where_something_moves(video: Path, tmp_path: Path):
    (row,) = json_of("visualize-mask", video, *SMALL, "--keep", "0.2", "--out", tmp_path)
    t, h, w = row["grid"]
    assert (t, h, w) == (4, 2, 3)  # 32 x 48 pixels: the frame's own shape
    upper = [i for i in range(t * h * w) if (i // w) % h == 0]
    assert len(row["kept"]) == int(0.2 * t * h * w)
    assert set(row["kept"]) <= set(upper)
    assert set(row["visible"]) <= set(row["kept"])
    assert (row["strategy"], row["embedding"]) == ("redundancy-robust", "pixels")
    assert sum(row["kept_per_slice"]) == len(row["kept"])
    assert row["written"] == [str(tmp_path / "moves-mask.png")]
    assert (row["frames"], row["frames_total"]) == (list(range(24, 40, 2)), 64)
    command = ["visualize-mask", video, *SMALL, "--strategy", "tube", "--seed", 3, "--overwrite"]
    (row,) = json_of(*command, "--out", tmp_path)
    x = everest.normalize(everest.read_clip(video, frames=8, stride=2, size=(32, 48)))[None]
    assert row["visible"] == everest.select_tokens(x, strategy="tube", seed=3).visible[0].tolist()


def test_a_checkpoint_measures_and_predicts(video: Path, tmp_path: Path, autoencoder_run: Path):
    (row,) = json_of("visualize-mask", video, "-c", autoencoder_run, "--stride", 2, "--out", tmp_path)
    assert (row["grid"], row["embedding"]) == ([2, 4, 4], "checkpoint")
    x = everest.normalize(everest.read_clip(video, frames=4, stride=2, size=32))[None]
    chosen = everest.select_tokens(x, model=everest.load_model(autoencoder_run))
    assert set(chosen.visible[0].tolist()) <= set(row["kept"])


def test_a_classifier_is_shown_with_its_own_tokens_and_stride(video: Path, tmp_path: Path, recipe: Path):
    own = ["--set=finetune.selection.keep_ratio=0.5", "--set=finetune.stride=3"]
    run = tmp_path / "run"
    called("finetune --init none -q", "--recipe", recipe, *own, "-o", run)
    model = everest.load_model(run)
    (row,) = json_of("visualize-mask", video, "-c", run, "--out", tmp_path)
    assert row["kept"] == model.encode_kept(model.transform(video))[0][0].tolist()
    (other,) = json_of("visualize-mask", video, "-c", run, "--keep", "0.25", "--out", tmp_path, "--overwrite")
    assert len(other["kept"]) * 2 == len(row["kept"])


def test_a_checkpoint_is_shown_with_the_sampling_and_the_size_of_its_clips(video: Path, tmp_path: Path):
    file, model = tmp_path / "spread.safetensors", tiny("pretrain")
    save_model(file, model.spec, model, clip={"stride": 2, "sampling": "spread"})
    command = ["visualize-mask", video, "-c", file, "--out", tmp_path, "--overwrite"]
    (row,) = json_of(*command, "--frames", 8, "--size", 32)
    assert row["frames"] == list(range(4, 64, 8))
    (row,) = json_of(*command, "--stride", 3)
    assert [b - a for a, b in itertools.pairwise(row["frames"])] == [3] * 7
    assert "--frames 16: the model of --checkpoint takes 8" in refused(*command, "--frames", 16, code=2)
    assert "--size 64: the model of --checkpoint takes 32" in refused(*command, "--size", 64, code=2)


TOKENS = """
base: small
data: {frames: 8, size: [48, 64], channels: 1}
model: {tubelet: [2, 8, 8], input: differences}
pretrain: {stride: 3, selection: {strategy: redundancy-robust, keep_ratio: 0.25}}
"""


def test_a_recipe_shows_the_clips_and_tokens_that_training_uses(video: Path, tmp_path: Path):
    recipe = tmp_path / "my.yaml"
    recipe.write_text(TOKENS)
    shown = ("visualize-mask", video, "--recipe", recipe, "--overwrite", "--out", tmp_path)
    (row,) = json_of(*shown)
    assert (row["grid"], row["keep"]) == ([4, 6, 8], 0.25)
    assert [b - a for a, b in itertools.pairwise(row["frames"])] == [3] * 7
    pixels = load_recipe(recipe).data.pixels
    clips = {"frames": 8, "stride": 3, "size": (48, 64), "sampling": "dense"}
    make_views = EvalViews(**clips, mean=pixels.mean, std=pixels.std, clips=1, crops=1)
    views = make_views(Sample(path=str(video)), np.random.default_rng(), "auto")
    seen = frame_differences(pixels.normalize(views.frames), pixels)
    strategy = load_recipe(recipe).pretrain.selection
    importance = strategy.importance(seen, RawPixels((2, 8, 8), pixels))
    most = importance[0].argsort(descending=True, stable=True)[: len(row["kept"])]
    assert row["kept"] == most.sort().values.tolist()


def test_options_win_over_the_recipe(video: Path, tmp_path: Path):
    recipe = tmp_path / "my.yaml"
    recipe.write_text(TOKENS.replace(", input: differences", ""))
    shown = ("visualize-mask", video, "--recipe", recipe, "--overwrite", "--out", tmp_path)
    (row,) = json_of(*shown, "--frames", 4, "--stride", 5, "--size", 32, "--keep", 0.5)
    assert (row["grid"], row["keep"]) == ([2, 4, 6], 0.5)
    assert row["frames"][1] - row["frames"][0] == 5
    rows = json_of(*shown, "--compare")
    assert [row["strategy"] for row in rows] == ["random", "tube", "running-cell", "redundancy-robust"]
    rows = json_of(*shown, "--compare", "--strategy", "frame-difference", "--keep", 0.5)
    kept = [(row["strategy"], row["keep"]) for row in rows[-2:]]
    assert kept == [("redundancy-robust", 0.5), ("frame-difference", 0.5)]
    recipe.write_text("base: small\npretrain: {selection: {strategy: tube}}\n")
    (row,) = json_of(*shown, "--keep", 0.2, "--size", 64)
    assert row["strategy"] == "tube"


def test_chosen_strategies_are_drawn_into_a_file_and_named_by_their_paper(video: Path, tmp_path: Path):
    out = tmp_path / "masks.pdf"
    shown = ("visualize-mask", video, *SMALL, "--strategy", "tube,redundancy_robust,frame", "-o")
    rows = json_of(*shown, out)
    assert [row["strategy"] for row in rows] == ["tube", "redundancy-robust", "frame"]
    assert rows[0]["written"] == [str(out)]
    assert out.read_bytes().startswith(b"%PDF")
    titles = [title for title, _ in MaskSettings().list_strategies(["tube", "frame"], [], compare=True)]
    assert titles[1:] == [
        "running-cell (VideoMAE V2)",
        "redundancy-robust (EVEREST)",
        "tube (VideoMAE)",
        "frame",
    ]
    shutil.copy(video, tmp_path / "other.mp4")
    message = refused(*shown, tmp_path / "two.pdf", tmp_path / "other.mp4", code=2)
    assert "two.pdf: a file for 2 videos; name a folder" in message
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("recipe: small\nvariants: {a: {}, b: {pretrain.steps: 9}}\n")
    assert "sweep.yaml: a sweep file, not a recipe" in refused("visualize-mask", video, "-r", sweep, code=2)


def test_frames_are_drawn_where_something_moves(video: Path):
    options = ["--size", "32", "--frames", "8", "--stride", "5", "--keep", "0.1"]
    row = json_of("select-frames", video, *options)
    assert row["frames_total"] == 64
    assert len(row["candidate_pairs"]) == 6
    assert sum(row["counts"]) == int(0.1 * 6 * 2 * 3)
    assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert row["frames"] == [number for pair in row["selected_pairs"] for number in pair]
    assert row["selected_pairs"] == sorted(row["selected_pairs"])
    assert len(row["frames"]) == 8
    numbers = [number for pair in row["candidate_pairs"] for number in pair]
    assert numbers == list(range(numbers[0], numbers[0] + 5 * 12, 5))
    x = everest.normalize(resize(everest.read_frames(video, numbers), (32, 48), antialias=True))[None]
    strategy, grid = RedundancyRobust(keep_ratio=0.1), TokenGrid(t=6, h=2, w=3)
    counts = count_kept_tokens(strategy, strategy.importance(x, RawPixels((2, 16, 16))), grid)
    assert row["counts"] == counts[0].tolist()
    assert json_of("select-frames", video, *options) == row
    assert json_of("select-frames", video, *options, "--seed", "1") != row


@pytest.mark.parametrize(("alpha", "pairs"), [(1.5, 6), (2.75, 11)])
def test_candidates_cover_the_whole_video_unless_a_stride_is_given(video: Path, alpha: float, pairs: int):
    options = ["--size", "32", "--frames", "8", "--alpha", str(alpha)]
    row = json_of("select-frames", video, *options)
    numbers = [number for pair in row["candidate_pairs"] for number in pair]
    assert len(row["candidate_pairs"]) == pairs
    part = row["frames_total"] / len(numbers)
    assert numbers[0] < part
    assert numbers[-1] >= row["frames_total"] - part
    assert max(numbers[i + 1] - numbers[i] for i in range(len(numbers) - 1)) <= part + 1
    middle = json_of("select-frames", video, *options, "--stride", "1")["candidate_pairs"]
    assert middle[-1][-1] - middle[0][0] == 2 * pairs - 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["mask", "gone.mp4"], 4, "gone.mp4: no such video or folder"),
        (["mask", "VIDEO", "--keep", "0"], 2, "give keep ratios above 0"),
        (["mask", "VIDEO", *SMALL, "--keep", "0.01"], 2, "--keep: redundancy-robust keeps none of"),
        (["mask", "VIDEO", "--keep", "half"], 2, "give keep ratios above 0"),
        (["mask", "VIDEO", "--strategy", "tub"], 2, "did you mean 'tube'"),
        (["mask", "VIDEO", "--frames", "7"], 2, "must be a multiple of the tubelet's (2)"),
        (["mask", "VIDEO", "-r", "smal"], 2, "did you mean 'small'"),
        (["mask", "VIDEO", "-r", "lvmae-demo"], 2, "learned-importance needs a trained tokenizer"),
        (["mask", "VIDEO", "-c", "gone"], 6, "gone: no such checkpoint"),
        (["select", "VIDEO", "--frames", "5"], 2, "must be a multiple of 2"),
        (["select", "VIDEO", "--alpha", "inf"], 2, "'--alpha': must be at most"),
        (["select", "VIDEO", "--frames", "64"], 4, "but --frames and --alpha ask for 96 candidates"),
        (["select", "VIDEO", "--keep", "2"], 2, "--keep 2"),
    ],
)
def test_impossible_options_are_reported_in_one_line(video, tmp_path, arguments, code, message):
    command, *options = [str(video) if part == "VIDEO" else part for part in arguments]
    out, name = (["--out", tmp_path], "visualize-mask") if command == "mask" else ([], "select-frames")
    assert message in refused(name, *options, *out, code=code)
    assert not list(tmp_path.iterdir())


def test_figures_are_replaced_only_with_overwrite_and_the_drawn_frames_are_printed(video, tmp_path):
    masks, frames = tmp_path / "moves-mask.png", tmp_path / "moves-frames.png"
    select = ["select-frames", video, "--size", "32", "--frames", "4", "--picture", tmp_path]
    for command, figure in ((["visualize-mask", video, *SMALL, "--out", tmp_path], masks), (select, frames)):
        figure.write_text("precious")
        assert f"{figure}: exists" in called(*command, code=2).stderr
        assert figure.read_text() == "precious"
        shown = called(*command, "--overwrite")
        assert figure.stat().st_size > 1000
    row = json_of(*select, "--overwrite")
    assert row["picture"] == str(frames)
    assert shown.stdout == f"{video}: {' '.join(map(str, row['frames']))}\n"
    with Image.open(frames) as picture:
        assert (picture.format, picture.width > 800) == ("PNG", True)


@pytest.mark.parametrize("command", [("visualize-mask", "--out"), ("select-frames", "--picture")])
def test_two_videos_of_one_name_are_refused(video: Path, tmp_path: Path, command: tuple[str, str]):
    name, option = command
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(video, tmp_path / folder)
    message = refused(name, tmp_path, option, tmp_path / "out", "--overwrite", code=2)
    assert f"{tmp_path / 'a' / 'moves.mp4'} and {tmp_path / 'b' / 'moves.mp4'}" in message
    assert not (tmp_path / "out").exists()


def test_an_unreadable_video_does_not_stop_the_others(video: Path, tmp_path: Path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("no video")
    shutil.copy(video, tmp_path / "videos" / "b.mp4")
    result = called("visualize-mask", tmp_path / "videos", *SMALL, "--out", tmp_path, code=4)
    assert "a.mp4: not a video file" in result.stderr
    assert result.stdout.split() == [str(tmp_path / "b-mask.png")]
    result = called("select-frames", tmp_path / "videos", "--size", "32", "--frames", "4", code=4)
    assert result.stdout.startswith(str(tmp_path / "videos" / "b.mp4"))
    (row,) = json_of("select-frames", tmp_path / "videos", "--size", "32", "--frames", "4", code=4)
    assert row["video"] == str(tmp_path / "videos" / "b.mp4")  # a list, as if both were readable
