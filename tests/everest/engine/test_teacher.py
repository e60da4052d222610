import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from image_models import as_timm, image_model, images, weights_of
from processes import assert_resumes_after_a_kill
from small_runs import RECIPE, called, json_of, logged, refused, run, sets, small_recipe, weights

from everest import load_model
from everest.checkpoints.frozen import find_frozen, open_teacher
from everest.checkpoints.load import open_model
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.methods.targets import FeatureTargets
from everest.models.cost import count_macs
from everest.models.spec import pretrain_spec, teacher_in_step
from everest.video.pixels import IMAGENET, normalize


def taught_by(teacher: object, *others: str) -> list[str]:
    return sets(f"pretrain.target={{kind: features, teacher: {teacher}}}", *others)


@pytest.fixture(scope="module")
def teacher(autoencoder_run: Path) -> Path:
    return autoencoder_run


@pytest.fixture(scope="module")
def student(recipe: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "run"
    run("pretrain", "--recipe", recipe, *taught_by(teacher), "-o", folder, "-q")
    return folder


def taught(recipe: Path, teacher: Path, *overrides: str) -> Recipe:
    """The settings of a student."""
    target = f"pretrain.target={{kind: features, teacher: {teacher}}}"
    return load_recipe(recipe, overrides=[target, *overrides])


def test_the_targets_are_the_features_of_the_teachers_tokens(recipe: Path, teacher: Path):
    frames = torch.randint(256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    ids = torch.tensor([[0, 5, 31], [7, 8, 9]])
    targets = FeatureTargets(teacher="a").make(
        (2, 8, 8), IMAGENET, open_teacher(taught(recipe, teacher), str(teacher))
    )
    model = open_model(teacher).transformer
    every = torch.arange(32).expand(2, -1)
    with torch.no_grad():
        expected = F.layer_norm(model.encode(frames, every), (24,))
    found = targets.values(frames, ids)
    torch.testing.assert_close(found, torch.stack([expected[b, ids[b]] for b in range(2)]))
    torch.testing.assert_close(targets.values(normalize(frames), ids), found, rtol=1e-4, atol=1e-4)
    assert found.mean(-1).abs().max() < 1e-6


def test_the_loss_is_the_mean_absolute_error_of_the_tokens_that_count():
    targets = FeatureTargets(teacher="a").make((2, 8, 8), IMAGENET)
    prediction, values = torch.zeros(1, 2, 3), torch.tensor([[[1.0, -2.0, 3.0], [5.0, 5.0, 5.0]]])
    assert targets.loss(prediction, values.half(), torch.tensor([[True, False]])) == 2
    assert targets.loss(prediction, values, torch.tensor([[True, True]])) == 3.5


@pytest.mark.parametrize("channels", [3, 1])
def test_an_image_model_with_larger_patches_sees_larger_frames(recipe: Path, tmp_path: Path, channels: int):
    """A teacher of 16 pixels a patch sees 64 x 64 pixels where the student sees 32 x 32 in patches of 8, and
    each time index by itself."""
    image = image_model(img_size=64, patch_size=16)
    weights_of(image).save(tmp_path / "image.safetensors")
    settings = taught(recipe, tmp_path / "image.safetensors", f"data.channels={channels}")
    teacher = open_teacher(settings, str(tmp_path / "image.safetensors"))
    still = images()[:, :channels]
    clips = still.unsqueeze(2).expand(-1, -1, 4, -1, -1)  # (B, C, T, H, W)
    large = F.interpolate(still.expand(-1, 3, -1, -1) / 255, (64, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = image.forward_features(as_timm(255 * large))[:, image.num_prefix_tokens :]  # (B, 16, D)
    found = teacher(clips)  # (B, 2 * 16, D)
    torch.testing.assert_close(found, expected.repeat(1, 2, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(recipe: Path, teacher: Path, tmp_path: Path):
    command = ["pretrain", *taught_by(teacher, "pretrain.epochs=40"), "--gpus", "cpu"]
    assert_resumes_after_a_kill(recipe, command, tmp_path, rows=5)


def test_an_average_of_weights_does_not_change_what_the_teacher_teaches(recipe, teacher, student, tmp_path):
    run("pretrain -q", "-r", recipe, *taught_by(teacher, "train.ema=0.5"), "-o", tmp_path / "averaged")
    assert logged(tmp_path / "averaged") == logged(student)


def test_what_follows_needs_no_teacher(recipe, teacher, student, tmp_path, clip_files):
    moved = tmp_path / "moved"
    teacher.rename(moved)
    try:
        model = load_model(student)
        with pytest.raises(ValueError, match="opened without its teacher"):
            model(torch.zeros(1, 3, 4, 32, 32))
        video = clip_files / "clip0.mp4"
        run("visualize-mask", video, "-c", student, "-o", tmp_path / "mask")
        run("extract", video, "-c", student, "-o", tmp_path / "features.safetensors")
        run("finetune", "--recipe", recipe, "--init", student, "-o", tmp_path / "classifier", "-q")
        message = refused("export --to hf", student, "-o", tmp_path / "hf", code=6)
        assert "pretrain.target.kind=features" in message
        again = ["pretrain", "--recipe", recipe, "--init", student, "-q"]
        pixels = called(*again, "-o", tmp_path / "pixels")
        assert "the decoder starts fresh: it predicts other targets" in pixels.stderr
        kept = called(*again, *taught_by(moved), "-o", tmp_path / "kept")
        assert "the decoder is also kept" in kept.stderr
    finally:
        moved.rename(teacher)


def test_a_run_keeps_its_teacher_which_may_be_moved(recipe: Path, teacher: Path, tmp_path: Path):
    own = Path(shutil.copy(teacher / "model.safetensors", tmp_path / "teacher.safetensors"))
    command = ["pretrain", "--recipe", recipe, "-o", tmp_path / "run", "-q"]
    run(*command, *taught_by(own))
    own = own.rename(tmp_path / "moved.safetensors")
    run(*command, *taught_by(own))
    stored = open_model(own).weights
    replace(stored, tensors={name: value + 1 for name, value in stored.tensors.items()}).save(own)
    message = refused(*command, *taught_by(own), code=2)
    assert f"its run used another teacher than the current {own}" in message


def test_profile_counts_the_teacher(recipe: Path, teacher: Path):
    stage = json_of("profile", "--recipe", recipe, *taught_by(teacher))["stages"]["pretrain"]
    spec = teacher_in_step(pretrain_spec(taught(recipe, teacher), find_frozen(taught(recipe, teacher))))
    assert stage["teacher_gmacs"] == count_macs(spec).total / 1e9 > 0
    assert stage["model_state"]["teacher"] == 4 * sum(
        tensor.numel() for name, tensor in weights(teacher).items() if name.startswith("encoder.")
    )
    measured = json_of("profile", "--recipe", recipe, *taught_by(teacher), "--measure", "--batch", 2)
    assert measured["stages"]["pretrain"]["measured"]["clips_per_second"] > 0
    assert "GMACs of the frozen teacher" in run("profile", "--recipe", recipe, *taught_by(teacher))


def test_teachers_that_do_not_fit_are_refused(recipe: Path, teacher: Path, tmp_path: Path, clip_files: Path):
    def message(named: object, *others: str, code: int = 6) -> str:
        return refused("pretrain -r", recipe, *taught_by(named, *others), "-o", tmp_path / "run", code=code)

    assert "no such checkpoint" in message(tmp_path / "nothing")
    assert "set model.tubelet=[2,8,8]" in message(teacher, "model.tubelet=[3,8,8]", "data.frames=6")
    luma = small_recipe(tmp_path, clip_files, text=RECIPE.replace("frames: 4", "frames: 4, channels: 1"))
    run("pretrain", "--recipe", luma, "-o", tmp_path / "luma", "-q")
    assert "the teacher sees luma only; set data.channels=1" in message(tmp_path / "luma")
    without = ["--recipe", recipe, "--set=pretrain.target.kind=features", "-o", tmp_path / "run"]
    assert "pretrain.target.teacher" in refused("pretrain", *without, code=2)
