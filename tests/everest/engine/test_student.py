"""Pre-training whose teacher is the frozen start of the run: `target: {kind: features, teacher: start}`."""

from pathlib import Path

import pytest
import torch
from processes import assert_resumes_after_a_kill
from safetensors.torch import load_file
from small_runs import called, json_of, problems_of, refused, run, sets, weights

from everest import load_model
from everest.config.recipe import load_recipe
from everest.models.student import Student, StudentSpec

STEPS = sets("data.size=32", "data.frames=2", "train.workers=0", "train.micro_batch=2", "train.save_every=1")
STEPS += sets("pretrain.steps=3", "pretrain.batch_size=2", "pretrain.warmup_steps=0")


@pytest.fixture(scope="module")
def start(image_file: Path) -> str:
    return f"timm:vit_tiny_patch16_224={image_file}"


@pytest.fixture(scope="module")
def command(start: str, clip_files: Path) -> list[object]:
    return ["pretrain", "-r", "adapt", "--init", start, "--data", clip_files, *STEPS, "--gpus", "cpu"]


@pytest.fixture(scope="module")
def student(command: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "run"
    called(*command, "-o", folder)
    return folder


def test_the_encoder_is_that_of_the_weights_with_joint_attention(student: Path, image_file: Path):
    model = load_model(student)
    assert isinstance(model, Student)
    assert (model.spec.model.attention, model.spec.model.tubelet) == ("joint", (1, 16, 16))
    before, after = load_file(image_file), weights(student)
    change = after["encoder.blocks.0.mlp.fc1.weight"] - before["blocks.0.mlp.fc1.weight"].float()
    assert 0 < change.abs().max() < 1e-2
    assert 0 < after["encoder.position.temporal"].abs().max() < 1e-2  # from zero
    assert not any(name.startswith(("decoder.", "teacher.")) for name in after)


def test_the_loss_compares_the_kept_tokens_with_the_features_of_the_start(student: Path):
    spec = load_model(student).spec
    assert isinstance(spec, StudentSpec)
    model = spec.build()
    clips = torch.randint(256, (2, 3, 2, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        ids = model.select_tokens(clips).visible  # (B, 2) of 8
        features = model.encoder(clips, ids)  # (B, 2, D)
        values = torch.full((2, 8, 192), 7.0)
        index = ids.unsqueeze(2).expand(-1, -1, 192)
        assert model(clips, values=values.scatter(1, index, features)).loss < 1e-12
        moved = values.scatter(1, index, features + 0.5)
        assert abs(model(clips, values=moved).loss - 0.5 * 0.5**2) < 1e-6
    with pytest.raises(ValueError, match="opened without its teacher"):
        model(clips)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(start: str, clip_files: Path, tmp_path: Path):
    many = [*STEPS, *sets("pretrain.steps=30")]
    command = ["pretrain", "--init", start, "--data", str(clip_files), *many, "--gpus", "cpu"]
    assert_resumes_after_a_kill(Path("adapt"), command, tmp_path, rows=5)


def test_what_follows_starts_from_the_student(student: Path, clip_files: Path, tmp_path: Path):
    run("extract", clip_files / "clip0.mp4", "-c", student, "-o", tmp_path / "features.safetensors")
    recipe = student / "recipe.yaml"
    options = sets(
        "finetune.steps=1", "finetune.warmup_steps=0", "finetune.batch_size=2", "data.num_classes=2"
    )
    tuned = called(
        "finetune", "-r", recipe, "--init", student, *options, "-o", tmp_path / "tuned", "--gpus", "cpu"
    )
    assert "weights: encoder of" in tuned.stderr
    assert load_model(tmp_path / "tuned").spec.selection.keep_ratio == 0.3
    assert "an encoder alone" in refused("export --to hf", student, "-o", tmp_path / "hf", code=6)


def test_a_recipe_takes_the_encoder_of_image_weights(start: str, clip_files: Path, tmp_path: Path):
    few = sets("data.frames=4", "pretrain.steps=1", "pretrain.batch_size=2", "train.workers=0")
    (tmp_path / "own.yaml").write_text("{base: small, data: {size: 30}}")
    pixels = ["pretrain", "-r", tmp_path / "own.yaml", "--init", start, "--data", clip_files, "--gpus", "cpu"]
    shown = called(*pixels, *few, "-o", tmp_path / "run")
    trained = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (trained.model.tubelet, trained.model.width, trained.model.depth) == ((1, 16, 16), None, None)
    assert (trained.data.size, trained.model.attention) == ((32, 32), "joint")
    assert f"finetune --recipe {tmp_path / 'run' / 'recipe.yaml'}" in shown.stderr
    assert "use --set model.depth=null" in refused(
        *pixels, *few, "--set=model.depth=4", "-o", tmp_path / "other", code=6
    )


def test_contradictions_with_a_teacher_that_is_the_start(clip_files: Path, tmp_path: Path):
    (problem,) = problems_of("adapt", "pretrain.selection.visible_ratio=0.1")
    assert "pretrain.selection: hides tokens, and pretrain.target.teacher=start compares" in problem
    (problem,) = problems_of("adapt", "pretrain.frame_selection.alpha=2")
    assert "pretrain.frame_selection.alpha: must be 1 with pretrain.target.teacher=start" in problem
    message = refused("pretrain -r adapt --data", clip_files, "-o", tmp_path / "run", code=2)
    assert "the run starts from no weights, whose features it would learn; name some with --init" in message


def test_profile_counts_the_start_as_a_teacher():
    stage = json_of("profile", "-r", "adapt")["stages"]["pretrain"]
    assert (stage["tokens"]["visible"], stage["tokens"]["total"]) == (192, 640)
    assert stage["teacher_gmacs"] > 2 * stage["gmacs"] > 0
