"""Fine-tuning with a teacher: its answers and their loss, runs, and what is refused."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from processes import TWO, UNMIXED, assert_resumes_after_a_kill, everest
from small_runs import called, equal, json_of, logged, refused, run, same_run, sets, weights
from task_runs import task_run

from everest.checkpoints.classifier_teacher import FrozenClassifier, open_classifier_teacher
from everest.checkpoints.load import open_model
from everest.config.heads import Head, Heads
from everest.config.recipe import load_recipe
from everest.errors import CheckpointError
from everest.models.classifier import VideoClassifier, answers, distillation_loss
from everest.models.cost import count_macs
from everest.models.memory import count_weights
from everest.models.of_recipe import classifier_spec
from everest.models.spec import ModelSpec
from everest.system.run_folder import RunFolder
from everest.tokenizer.feature_targets import TeacherUse
from everest.video.pixels import PixelStatistics


def taught_by(teacher: object, *others: str) -> list[str]:
    return sets(f"finetune.teacher={teacher}", *others)


def classifier_of(recipe: Path, heads: Heads, *overrides: str) -> VideoClassifier:
    torch.manual_seed(0)
    model = classifier_spec(load_recipe(recipe, overrides=overrides), heads).build().eval()
    assert isinstance(model, VideoClassifier)
    torch.nn.init.normal_(model.head.weight)
    return model


def frozen(
    model: VideoClassifier, pixels: PixelStatistics, names: tuple[str, ...] | None
) -> FrozenClassifier:
    use = TeacherUse(name="teacher", sha256="", width=model.num_classes, settings={})
    return FrozenClassifier(use, model, pixels, names)


# --- the loss -----------------------------------------------------------------------------------------------


def test_the_loss_of_two_classes_as_computed_by_hand():
    """Softened by 2, the teacher gives 3 to 1 and the student 1 to 1."""
    heads = (Head(outputs=2),)
    taught, logits = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert distillation_loss(logits, taught, heads, temperature=2).item() == pytest.approx(expected, abs=1e-6)
    yes = distillation_loss(
        logits[:, :1], taught[:, :1], (Head(task="multi-label", outputs=1),), temperature=2
    )
    assert yes.item() == pytest.approx(expected, abs=1e-6)


def test_the_gradient_is_that_of_the_cross_entropy_with_the_answers():
    heads = (Head(outputs=5), Head(task="multi-label", outputs=3), Head(task="regression", outputs=1))
    torch.manual_seed(0)
    taught, logits = torch.randn(4, 9), torch.randn(4, 9, requires_grad=True)
    distillation_loss(logits, taught, heads, temperature=1).backward()
    found, again = logits.grad, logits.detach().requires_grad_()
    one, several, number = again.split([5, 3, 1], -1)
    of_one, of_several, of_number = answers(taught, heads).split([5, 3, 1], -1)
    labels = F.binary_cross_entropy_with_logits(several, of_several)
    total = F.cross_entropy(one, of_one) + labels + F.smooth_l1_loss(number, of_number)
    (total / 3).backward()
    torch.testing.assert_close(found, again.grad)
    assert distillation_loss(taught, taught, heads, temperature=3) == 0


# --- the answers --------------------------------------------------------------------------------------------


def test_the_teacher_answers_in_the_order_of_the_students_classes(recipe: Path):
    model, clip = classifier_of(recipe, (Head(outputs=3),)), torch.randint(256, (2, 3, 4, 32, 32)).byte()
    teacher = frozen(model, model.pixels, ("run", "sit", "walk"))
    teacher.match((Head(outputs=3),), ("walk", "run", "sit"))
    with torch.no_grad():
        expected = model(clip)
    torch.testing.assert_close(teacher(clip), expected[:, [2, 0, 1]])
    torch.testing.assert_close(
        teacher(model.pixels.normalize(clip)), expected[:, [2, 0, 1]], rtol=1e-4, atol=1e-4
    )


def test_the_teacher_sees_frames_of_its_own_number_size_and_channels(recipe: Path):
    own = ("data.frames=4", "data.size=48", "data.mean=[0.1, 0.2, 0.3]")
    model = classifier_of(recipe, (Head(outputs=2),), *own)
    pixels = PixelStatistics(mean=(0.4,), std=(0.3,))
    clip = torch.randint(256, (2, 1, 8, 32, 32), dtype=torch.uint8)
    frames = (clip[:, :, ::2].float() / 255).flatten(0, 2).unsqueeze(1)
    large = F.interpolate(frames, (48, 48), mode="bilinear", antialias=True).view(2, 1, 4, 48, 48)
    with torch.no_grad():
        expected = model(model.pixels.normalize_unit_range(large.expand(-1, 3, -1, -1, -1)))
    torch.testing.assert_close(frozen(model, pixels, None)(clip), expected, rtol=1e-4, atol=1e-4)


def test_numbers_are_those_of_the_teacher_in_the_students_standardization(recipe: Path):
    taught = (Head(name="a", outputs=2), Head(name="b", task="regression", outputs=1, mean=5.0, std=2.0))
    heads = (replace(taught[1], mean=-1.0, std=4.0), taught[0])
    model, clip = classifier_of(recipe, taught), torch.randint(256, (2, 3, 4, 32, 32)).byte()
    teacher = frozen(model, model.pixels, None)
    teacher.match(heads, None)
    with torch.no_grad():
        expected = model.answers(model(clip))
    torch.testing.assert_close(answers(teacher(clip), heads), expected[:, [2, 0, 1]])


@pytest.mark.parametrize(
    ("heads", "names", "problem"),
    [
        ((Head(outputs=2),), ("run", "jump"), "has other classes than data.train: 'sit', 'jump'"),
        ((Head(outputs=3),), None, "the teacher has 2 classes, the labels 3"),
        ((Head(task="multi-label", outputs=2),), None, "answers single-label, the labels are multi-label"),
        ((Head(name="verb", outputs=2),), None, r"other heads \(only one\) than the recipe \(verb\)"),
    ],
)
def test_other_labels_are_refused(recipe: Path, heads: Heads, names: tuple[str, ...] | None, problem: str):
    model = classifier_of(recipe, (Head(outputs=2),))
    with pytest.raises(CheckpointError, match=problem):
        frozen(model, model.pixels, ("run", "sit")).match(heads, names)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("data.frames=6", "takes clips of 4 frames, and 6 are no multiple; set data.frames=4"),
        ("data.size=[32, 48]", r"frames of 32 x 32 pixels, .* other proportions; set data.size=\[32,32\]"),
    ],
)
def test_clips_that_cannot_become_the_teachers_are_refused(
    recipe: Path, classifier_run: Path, change: str, problem: str
):
    with pytest.raises(CheckpointError, match=problem):
        open_classifier_teacher(load_recipe(recipe, overrides=[f"finetune.teacher={classifier_run}", change]))


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(recipe: Path, classifier_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a smaller classifier, which learns from the answers alone."""
    folder = tmp_path_factory.mktemp("student") / "run"
    smaller = taught_by(classifier_run, "finetune.teacher_weight=1", "model.depth=1")
    run("finetune --init none -q", "--recipe", recipe, *smaller, "-o", folder)
    return folder


def test_a_weight_of_0_is_the_run_without_a_teacher(recipe: Path, classifier_run: Path, tmp_path: Path):
    unused = taught_by(classifier_run, "finetune.teacher_weight=0")
    run("finetune --init none -q", "--recipe", recipe, "-o", tmp_path / "run", *unused)
    assert same_run(tmp_path / "run", classifier_run)
    rows = [row for row in RunFolder(tmp_path / "run").rows() if "loss" in row]
    assert all(row["label_loss"] == row["loss"] and row["teacher_loss"] > 0 for row in rows)


def test_a_weight_of_1_does_not_look_at_labels(
    recipe: Path, classifier_run: Path, student: Path, tmp_path: Path
):
    exchanged = tmp_path / "exchanged.csv"
    exchanged.write_text("".join(f"clip{i}.mp4 {1 - i % 2}\n" for i in range(4)))
    settings = ("finetune.teacher_weight=1", "model.depth=1", f"data.train={exchanged}")
    command = ["finetune --init none -q", "--recipe", recipe, "-o", tmp_path / "run"]
    run(*command, *taught_by(classifier_run, *settings))
    assert equal(weights(tmp_path / "run"), weights(student))


def test_what_follows_needs_no_teacher(classifier_run: Path, student: Path, clip_files: Path):
    moved = classifier_run.rename(classifier_run.with_name("moved"))
    try:
        run("predict", clip_files / "clip0.mp4", "-c", student)
        assert json_of("eval -q", "-c", student)["videos"] == 4
    finally:
        moved.rename(classifier_run)


def test_a_run_keeps_its_teacher(recipe: Path, classifier_run: Path, student: Path, tmp_path: Path):
    own, folder = tmp_path / "teacher.safetensors", tmp_path / "run"
    shutil.copy(classifier_run / "best.safetensors", own)
    shutil.copytree(student, folder)
    command = ["finetune --init none -q", "--recipe", recipe, "-o", folder]
    smaller = ("finetune.teacher_weight=1", "model.depth=1")
    run(*command, *taught_by(own, *smaller))  # the same weights at another place
    message = refused(*command, *taught_by(student, *smaller), code=2)
    assert "holds a run with another teacher than" in message
    message = refused(*command, *sets(*smaller), code=2)
    assert "holds a run with other settings: finetune.teacher" in message
    message = refused(*command, *taught_by(folder, *smaller), "--overwrite", code=2)
    assert "--overwrite would remove" in message


def test_the_commands_refuse_what_is_no_classifier(recipe: Path, autoencoder_run: Path, tmp_path: Path):
    command = ["finetune --init none -q", "--recipe", recipe, "-o", tmp_path / "run"]
    assert "a pretrain checkpoint where a classifier one is needed" in refused(
        *command, *taught_by(autoencoder_run), code=6
    )
    assert "no such checkpoint" in refused(*command, *taught_by("nothing"), code=6)
    planned = ["sweep", recipe, "-o", tmp_path / "sweep", "--dry-run", "--stages", "finetune,eval"]
    arms = ["--over", "finetune.teacher=null,nothing"]
    assert "teacher=nothing: nothing: no such checkpoint" in refused(*planned, *arms, code=6)


def test_profile_counts_the_teacher_of_fine_tuning(recipe: Path, classifier_run: Path):
    spec = open_model(classifier_run).spec
    assert isinstance(spec, ModelSpec)
    stages = json_of("profile", "--recipe", recipe, *taught_by(classifier_run, "data.frames=8"))["stages"]
    assert stages["finetune"]["teacher_gmacs"] == count_macs(spec).total / 1e9
    assert stages["finetune"]["model_state"]["teacher"] == 4 * count_weights(spec).total
    assert "teacher_gmacs" not in stages["eval"]
    assert "teacher" not in stages["pretrain"]["model_state"]


def test_other_strides_are_reported_and_the_dry_run_runs_the_teacher(
    recipe: Path, classifier_run: Path, tmp_path: Path
):
    options = taught_by(classifier_run, "finetune.stride=3", "model.depth=1")
    found = called("finetune --init none", "--recipe", recipe, *options, "-o", tmp_path / "run", "--dry-run")
    assert "was trained on a frame every 2 frames of the video, and sees one every " in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_killed_run_resumes_to_the_same_bits(
    recipe: Path, classifier_run: Path, autoencoder_run: Path, tmp_path: Path, lora: bool
):
    init = autoencoder_run if lora else "none"
    options = taught_by(classifier_run, "finetune.epochs=40", f"finetune.lora.rank={2 * lora}")
    command = ["finetune", "--init", str(init), *options, "--gpus", "cpu"]
    assert_resumes_after_a_kill(recipe, command, tmp_path, rows=5)


@pytest.mark.slow
def test_two_processes_with_half_the_batch_each_equal_one(recipe: Path, classifier_run: Path, tmp_path: Path):
    options = ["--init", "none", "--recipe", recipe, *taught_by(classifier_run, *UNMIXED)]
    run("finetune", *options, "-o", tmp_path / "one", "--gpus", "cpu")
    everest("finetune", *options, "-o", tmp_path / "two", *TWO)
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), abs=1e-5)


@pytest.mark.slow
def test_arms_of_a_sweep_may_differ_in_the_teacher(recipe: Path, classifier_run: Path, tmp_path: Path):
    run(
        *("sweep", recipe, "-o", tmp_path / "sweep", "--stages", "finetune,eval", "--seeds", "1", "-q"),
        *("--over", f"finetune.teacher=null,{classifier_run}", "--gpus", "cpu"),
    )
    without, taught = json_of("sweep report", tmp_path / "sweep")["arms"]
    assert taught["gmacs"] > without["gmacs"]


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["tags", "scores", "mixed"])
def test_other_labels_are_learned_from_a_teacher(labels: str, clip_files: Path, tmp_path: Path):
    teacher = task_run(tmp_path, clip_files, labels)
    recipe = teacher.parent / "tiny.yaml"
    run("finetune --init none -q", "--recipe", recipe, *taught_by(teacher), "-o", tmp_path / "student")
    rows = [row for row in RunFolder(tmp_path / "student").rows() if "loss" in row]
    assert all(
        row["loss"] == pytest.approx(0.1 * row["label_loss"] + 0.9 * row["teacher_loss"], abs=1e-5)
        for row in rows
    )
