import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import called, json_of, refused, sets

import everest
from everest.checkpoints.graph import make_graph
from everest.checkpoints.load import open_model
from everest.config.recipe import load_recipe
from everest.data.augment import OPERATIONS, RandAugment
from everest.data.views import EvalViews, FinetuneViews, PretrainViews, ValidationViews
from everest.errors import RecipeError
from everest.lists.sample import Sample
from everest.video.pixels import IMAGENET, IMAGENET_LUMA, PixelStatistics
from everest.video.reader import frames_in_order, luma, read_frames

GRAY = sets("data.channels=1")
EPOCHS = ("epochs=1", "warmup_epochs=0")
SHORT = sets(*(f"{stage}.{key}" for stage in ("pretrain", "finetune") for key in EPOCHS))
OTHER = PixelStatistics(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


@pytest.fixture(scope="module")
def gray_runs(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """Run folders `pretrain` and `finetune` of gray clips."""
    folder = tmp_path_factory.mktemp("gray")
    options = ["--recipe", recipe, "-q", *GRAY, *SHORT]
    called("pretrain", *options, "-o", folder / "pretrain")
    called("finetune", *options, "-o", folder / "finetune", "--init", folder / "pretrain")
    return folder


def test_gray_frames_are_the_luma_of_the_colors(clip_files: Path):
    path, ids = clip_files / "clip1.mp4", [3, 0, 9]
    gray, colors = read_frames(path, ids, channels=1), read_frames(path, ids)
    assert gray.shape == (*colors.shape[:3], 1)
    exact = colors.double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)  # ITU-R 601
    assert (gray.double() - exact[..., None]).abs().max() <= 0.5 + 1e-3
    in_order = torch.stack(list(frames_in_order(path, [0, 3, 9], channels=1)))
    assert torch.equal(in_order, read_frames(path, [0, 3, 9], channels=1))
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(luma(levels)[..., 0], levels[..., 0])  # gray stays as it is


def test_all_views_are_gray(clip_files: Path):
    common = {"frames": 4, "stride": 2, "size": (32, 32), "mean": (0.5,), "std": (0.2,)}
    augment = RandAugment(magnitude=9, std=0.5, ops=4)
    plain = {"flip": True, "crop_area": (0.5, 1.0), "rand_augment": augment, "erasing": 0.5}
    sample = Sample(path=str(clip_files / "clip0.mp4"))
    for view in (
        PretrainViews(**common, flip=True, views_per_decode=2),
        FinetuneViews(**common, **plain),
        ValidationViews(**common),
        EvalViews(**common, clips=2, crops=3),
    ):
        frames = view(sample, np.random.default_rng(1), "auto").frames
        assert frames.shape == (view.num_views, 1, 4, 32, 32)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_augmentation_works_on_gray_clips_as_on_equal_colors(name: str):
    rng = np.random.default_rng(0)
    gray = torch.from_numpy(rng.integers(0, 256, (2, 24, 32, 1), dtype=np.uint8))
    argument = OPERATIONS[name].argument(0.9)

    class Fixed(RandAugment):
        def draw(self, rng):
            return [(name, argument)]

    augment = Fixed(magnitude=9, std=0, ops=1)
    found, colors = augment(gray, rng), augment(gray.expand(-1, -1, -1, 3).contiguous(), rng)
    assert found.shape == gray.shape
    difference = (found.int() - colors.int()).abs()
    assert difference.max() <= 1, name  # sums of three equal channels are rounded


def test_commands_use_gray_clips_with_and_without_the_recipe(gray_runs, recipe, clip_files, tmp_path):
    run, video = gray_runs / "finetune", clip_files / "clip1.mp4"
    alone = Path(shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors"))
    command = ["predict", video, "--views", "2x3", "--gpus", "cpu"]
    predicted = json_of(*command, "-c", run)
    assert predicted == json_of(*command, "-c", alone)
    assert predicted == json_of(*command, "-c", run, "--recipe", recipe)  # the weights decide
    called("eval", "-c", run, "--gpus", "cpu", "-q", "--report", tmp_path / "page")
    features = ["-c", gray_runs / "pretrain", "--gpus", "cpu", "-o", tmp_path / "f.safetensors", "-q"]
    called("extract", video, *features)
    called("visualize-mask", video, "-c", gray_runs / "pretrain", "-o", tmp_path)
    called("select-frames", video, "-c", run, "--frames", 4, "--picture", tmp_path)
    colors = np.asarray(Image.open(tmp_path / "clip1-mask.png").convert("RGB")).astype(int)
    assert colors.any()


def test_a_graph_takes_gray_clips_and_transformers_none(gray_runs: Path, tmp_path: Path):
    graph = make_graph(open_model(gray_runs / "finetune"), keep=None)
    assert graph(torch.randn(2, 1, 4, 32, 32))[0].shape == (2, 2)
    message = refused("export --to hf", gray_runs / "finetune", "-o", tmp_path / "hf", code=6)
    assert "data.channels=1" in message
    assert not (tmp_path / "hf").exists()


def test_other_channels_are_refused_with_a_fix(gray_runs, autoencoder_run, classifier_run, recipe, tmp_path):
    for init, own, wanted in ((gray_runs / "pretrain", [], 1), (autoencoder_run, GRAY, 3)):
        options = ["--recipe", recipe, *own, "--init", init, "-o", tmp_path / "run"]
        ended = called("finetune", *options, code=6)
        assert f"set data.channels={wanted}" in ended.stderr
        assert len(ended.stderr.splitlines()) == 2  # the first names the weights
        assert not (tmp_path / "run").exists()
    ended = called("eval --gpus cpu", "-c", classifier_run, *GRAY, code=6)
    assert "trained on clips of 3 channels, the recipe has 1 channel; set data.channels=3" in ended.stderr


def test_other_statistics_are_stored_and_used(recipe: Path, clip_files: Path, tmp_path: Path):
    values = sets(f"data.mean={list(OTHER.mean)}", f"data.std={list(OTHER.std)}")
    called("pretrain -q", "--recipe", recipe, *SHORT, *values, "-o", tmp_path / "run")
    alone = Path(shutil.copy(tmp_path / "run" / "model.safetensors", tmp_path / "alone.safetensors"))
    model = everest.load_model(alone)
    assert model.pixels == OTHER
    assert (model.clip.mean, model.clip.std) == (OTHER.mean, OTHER.std)
    clip = everest.read_clip(clip_files / "clip0.mp4", like=model)
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (OTHER.mean, OTHER.std))
    torch.testing.assert_close(model.transform(clip_files / "clip0.mp4")[0], (clip / 255 - mean) / std)
    noise = torch.rand(1, model.encoder.grid.num_tokens, generator=torch.Generator().manual_seed(0))
    of_bytes = model(clip[None], noise=noise)
    of_floats = model(OTHER.normalize(clip)[None], noise=noise)
    torch.testing.assert_close(of_bytes.loss, of_floats.loss)
    torch.testing.assert_close(of_bytes.target_values, of_floats.target_values, atol=1e-4, rtol=1e-4)
    told = called("finetune", "--recipe", recipe, *SHORT, "--init", alone, "-o", tmp_path / "tuned").stderr
    assert "set data.mean=[0.4, 0.5, 0.6] and data.std=[0.2, 0.3, 0.25]" in told


def test_a_tokenizer_takes_frames_of_colors_and_other_channels_are_not_normalized():
    for setting, message in (
        ("data.channels=1", r"data\.channels: 1 does not go with a tokenizer, which codes colors"),
        ("model.input=differences", r"model\.input: must be frames with a tokenizer, which"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe("lvmae-128", overrides=[setting])
    for pixels, channels in ((IMAGENET, 1), (IMAGENET_LUMA, 3)):
        with pytest.raises(ValueError, match="expected uint8 frames"):
            pixels.normalize(torch.zeros(channels, 4, 8, 8, dtype=torch.uint8))


def test_create_model_makes_a_gray_model(clip_files: Path):
    options = {"frames": 4, "stride": 2, "size": 32, "tubelet": (2, 8, 8), "depth": 1}
    model = everest.create_model("vit-tiny", kind="classifier", num_classes=2, channels=1, **options).eval()
    assert model(model.transform(clip_files / "clip0.mp4")).shape == (1, 2)
    other = everest.create_model("vit-tiny", kind="pretrain", mean=OTHER.mean, std=OTHER.std, **options)
    assert other.pixels == OTHER
    with pytest.raises(RecipeError, match=r"data\.mean: 3 values, and data\.channels is 1"):
        everest.create_model("vit-tiny", kind="pretrain", channels=1, mean=OTHER.mean, **options)
