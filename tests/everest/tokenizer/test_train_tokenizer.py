import json
import shutil
from pathlib import Path

import pytest
import torch
from processes import TWO, assert_resumes_after_a_kill, everest
from small_runs import equal, json_of, logged, refused, run, sets, weights
from tokenizer_runs import recipe, set_up, train

from everest.checkpoints.describe import load_model
from everest.checkpoints.load import open_model
from everest.errors import CheckpointError
from everest.evaluation.tokenizer_validation import set_target_statistics
from everest.system.run_folder import RunFolder
from everest.system.weights import read_weights
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer

__all__ = ["recipe"]  # a fixture


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "run"
    train(recipe, folder)
    return folder


def test_a_run_leaves_its_weights_to_the_bit_a_report_and_a_picture(trained: Path):
    stored, model = read_weights(trained / "model.safetensors"), load_model(trained)
    assert (stored.kind, stored.step, stored.recipe) == ("tokenizer", 3, "tiny")
    assert isinstance(model, AdaptiveTokenizer)
    assert not model.training
    assert equal(model.state_dict(), stored.tensors)
    rows = [row for row in RunFolder(trained).rows() if "psnr_own" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(
        {"change_ratio", "overlap", "largest_time_index_fraction", "perplexity"} <= row.keys() for row in rows
    )
    report = json.loads((trained / "report.json").read_text())
    assert report["psnr"].keys() == {"own", "random", "all"}
    assert (report["clips"], report["kept"], report["ranked"]) == (4, 12, 48)
    assert report["held_out"]
    assert (trained / "report.png").read_bytes().startswith(b"\x89PNG")


def test_targets_are_measured_on_all_tokens_of_the_training_set(recipe: Path, trained: Path, tmp_path: Path):
    training = set_up(recipe, tmp_path / "run").training
    model = load_model(trained)
    clips = torch.cat([training.dataset.read((0, i)).frames for i in range(4)]).float() / 255
    with torch.no_grad():
        values = model.encode(clips).values.flatten(0, 1)
    assert torch.allclose(model.target_mean, values.mean(dim=0), atol=1e-5)
    assert torch.allclose(model.target_std, values.std(dim=0, unbiased=False), atol=1e-5)
    again = model.target_std.clone()
    set_target_statistics(model, training.dataset, train=training.recipe.train)
    assert torch.equal(again, model.target_std)


def test_the_scorer_learns_in_masked_steps_only(recipe: Path, tmp_path: Path):
    one_step = ("tokenizer.epochs=1", "tokenizer.warmup_epochs=0", "tokenizer.ema=null")
    untrained = set_up(recipe, tmp_path / "fresh").validator.untrained
    for full_batches, learns in ((0.0, True), (1.0, False)):
        folder = tmp_path / str(full_batches)
        train(recipe, folder, *sets(*one_step, f"tokenizer.full_batches={full_batches}"))
        pairs = zip(untrained.parameters(), load_model(folder).scorer.parameters(), strict=True)
        assert all(torch.equal(before, after) for before, after in pairs) == (not learns)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(recipe: Path, tmp_path: Path):
    assert_resumes_after_a_kill(recipe, ["train-tokenizer", *sets("tokenizer.epochs=16")], tmp_path, rows=5)
    whole, parts = (tmp_path / name / "report.json" for name in ("whole", "parts"))
    assert parts.read_text() == whole.read_text()


@pytest.mark.slow
def test_two_processes_train_what_one_does(recipe: Path, tmp_path: Path):
    """With steps that use all tokens among the others: no process waits for gradients of the scorer."""
    command = ["train-tokenizer", "--recipe", recipe, "--set", "tokenizer.epochs=8"]
    run(*command, "-o", tmp_path / "one", "--gpus", "cpu")
    everest(*command, "-o", tmp_path / "two", *TWO)
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), rel=1e-2)


@pytest.mark.parametrize("lost", ["report.json", "content of report.json", "model.safetensors", "state"])
def test_a_finished_run_gives_back_what_was_lost(recipe: Path, trained: Path, tmp_path: Path, lost: str):
    folder = shutil.copytree(trained, tmp_path / "run")
    whole, report = weights(folder), (folder / "report.json").read_text()
    if lost == "state":
        shutil.rmtree(folder / lost)
        (folder / "report.json").unlink()
    elif lost.startswith("content"):
        (folder / "report.json").write_text(report[:-20])
    else:
        (folder / lost).unlink()
    train(recipe, folder)
    assert equal(weights(folder), whole)
    assert (folder / "report.json").read_text() == report


def test_another_setting_is_another_run_and_a_dry_run_writes_nothing(recipe, trained, clip_files, tmp_path):
    said = train(recipe, trained, "--set", "tokenizer.keep=0.5", code=2)
    assert "tokenizer.keep (0.25, now 0.5)" in said
    train(recipe, tmp_path / "run", "--dry-run")
    said = train(Path("ucf101"), tmp_path / "run", "--data", str(clip_files), code=2)
    assert "ucf101: has no tokenizer section" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer.loss.gan=-0.1", "tokenizer.loss.gan: must be at least 0.0, not -0.1"),
        ("tokenizer.loss.perceptual=.nan", "tokenizer.loss.perceptual: must be"),
        ("tokenizer.keep=0", "tokenizer.keep: must be more than 0.0, not 0"),
        ("tokenizer.keep=0.01", "tokenizer.keep: 0.01 keeps none of a chunk's 48 ranked tokens"),
        ("tokenizer.levels=[8, 1]", "tokenizer.levels.1: must be at least 2, not 1"),
        ("tokenizer.levels=[1024, 1024, 1024, 1024]", "tokenizer.levels: 1099511627776 codes; at most 2^32"),
        ("tokenizer.frames=3", "tokenizer.frames: must be a multiple of 2 frames"),
        ("tokenizer.frames=6", "tokenizer.frames: clips of 8 frames do not divide into chunks of 6"),
        ("model.tubelet=[2, 4, 4]", "tokenizer.size: its tokens are of 2x8x8"),
        ("tokenizer.checkpoint=there", "tokenizer.checkpoint: there is trained already"),
    ],
)
def test_invalid_settings_are_reported(recipe: Path, tmp_path: Path, override: str, message: str):
    assert message in train(recipe, tmp_path / "run", "--set", override, code=2)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_is_no_encoder_nor_the_reverse(recipe, trained, autoencoder_run, clip_files, tmp_path):
    for command in (
        ["predict", clip_files / "clip0.mp4", "--checkpoint", trained],
        ["finetune", "--recipe", recipe, "--init", trained, "-o", tmp_path / "run"],
        ["eval", "--checkpoint", trained],
    ):
        assert "tokenizer" in refused(*command, code=6)
    with pytest.raises(CheckpointError, match="a pretrain checkpoint where a tokenizer one"):
        open_model(autoencoder_run, kind="tokenizer")


def test_a_tokenizer_shows_its_own_scores_only(trained: Path, clip_files: Path, tmp_path: Path):
    command = ["visualize-mask", clip_files / "clip0.mp4", "-c", trained, "--frames", "8", "--out", tmp_path]
    message = refused(*command, "--strategy", "tube", code=2)
    assert "--strategy: a tokenizer's scores choose by learned-importance" in message
    assert list(tmp_path.iterdir()) == []
    for strategy in ([], ["--strategy", "learned-importance", "--overwrite"]):
        shown = json_of(*command, *strategy)
        assert [row["strategy"] for row in shown] == ["learned-importance"]


def test_bad_videos_are_named_and_those_of_the_report_skipped(recipe: Path, clip_files: Path, tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video")
    names = [f"{clip_files}/clip{i % 4}.mp4 0" for i in range(7)]
    (tmp_path / "list.csv").write_text("\n".join([*names, f"{tmp_path}/text.mp4 0"]) + "\n")
    lists = [f"--set=data.{key}={tmp_path}/list.csv" for key in ("train", "val")]
    once = sets("data.max_bad=0.9", "tokenizer.epochs=1")
    said = train(recipe, tmp_path / "run", *lists, *once)
    assert "data.val skips" in said
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["clips"], report["skipped"], report["videos"]) == (7, 1, "val")
    said = train(recipe, tmp_path / "without", *once, "--set", "data.test=absent.csv")
    assert "the report is of videos that are trained on" in said
    assert not json.loads((tmp_path / "without" / "report.json").read_text())["held_out"]
