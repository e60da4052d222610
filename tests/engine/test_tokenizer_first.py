import shutil
from pathlib import Path

import pytest
from small_runs import called, contents, refused, sets

from everest.system.run_folder import RunFolder

SMALL = (
    *("data.pretrain=train.csv", "data.test=train.csv", "data.classes=null", "data.num_classes=2"),
    *("data.frames=16", "train.workers=0", "train.micro_batch=2", "model.depth=1", "model.width=48"),
    *("tokenizer.channels=8", "tokenizer.epochs=null", "tokenizer.steps=2", "tokenizer.batch_size=4"),
    *("pretrain.epochs=1", "pretrain.warmup_epochs=0", "pretrain.batch_size=4"),
)


def command(folder: Path, output: Path, *changes: str) -> list[object]:
    """Pre-training of LVMAE with changed settings."""
    common = ["--recipe", "lvmae-demo", "--data", folder, "--gpus", "cpu", "-o", output]
    return ["pretrain", *common, *sets(*SMALL, *changes)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    """The run folder of both stages."""
    output = tmp_path_factory.mktemp("lvmae") / "run"
    called(*command(clip_files, output))
    return output


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["pretrain.probe.every=1", "pretrain.probe.list=nope.csv"], 4, "no such list or folder"),
        (["pretrain.views_per_decode=3"], 2, "batch_size 4 does not divide"),
        (["pretrain.probe.every=1", "pretrain.probe.list=train.csv", "data.classes=nope.txt"], 4, "nope.txt"),
    ],
)
def test_mistakes_of_pretraining_are_found_before_a_tokenizer_is_trained(
    clip_files: Path, tmp_path: Path, changes: list[str], code: int, message: str
):
    shown = refused(*command(clip_files, tmp_path / "run", *changes), code=code)
    assert message in shown
    assert "trained first" not in shown
    assert not (tmp_path / "run").exists()


def test_weights_of_another_size_are_refused_before_a_tokenizer_is_trained(
    autoencoder_run: Path, clip_files: Path, tmp_path: Path
):
    shown = refused(*command(clip_files, tmp_path / "run"), "--init", autoencoder_run, code=6)
    assert "trained first" not in shown
    assert not (tmp_path / "run").exists()


def test_mistakes_with_overwrite_remove_nothing(trained: Path, clip_files: Path):
    before = contents(trained)
    wrong = command(clip_files, trained, "pretrain.views_per_decode=3")
    assert "does not divide" in refused(*wrong, "--overwrite", code=2)
    assert contents(trained) == before


@pytest.mark.slow
def test_overwrite_keeps_a_tokenizer_that_another_run_uses(trained: Path, clip_files: Path, tmp_path: Path):
    first, second = Path(shutil.copytree(trained, tmp_path / "first")), tmp_path / "second"
    own = first / "tokenizer" / "model.safetensors"
    called(*command(clip_files, second, f"tokenizer.checkpoint={own}"))
    before = contents(first / "tokenizer")
    shown = called(*command(clip_files, first, "pretrain.batch_size=2"), "--overwrite").stderr
    assert f"{first / 'tokenizer'} is kept, because {second} uses it" in shown
    assert contents(first / "tokenizer") == before
    refusal = refused(*command(clip_files, first, "train.seed=5"), "--overwrite", code=2)
    assert f"--output {first / 'tokenizer'}: holds a run with different settings" in refusal
    shutil.rmtree(second)
    called(*command(clip_files, first), "--overwrite")
    assert contents(first / "tokenizer") != before


@pytest.mark.parametrize(
    "changes",
    [
        ["pretrain.probe.every=1", "pretrain.probe.list=train.csv"],
        ["pretrain.batch_size=2", "pretrain.base_lr=0.01", "model.depth=2", "pretrain.views_per_decode=2"],
        ["data.frames=32", "data.num_classes=null", "finetune.epochs=3", "train.ema=0.9"],
    ],
)
def test_a_finished_tokenizer_is_reused_after_changes_to_pretraining(trained, clip_files, tmp_path, changes):
    output = tmp_path / "run"
    own = shutil.copytree(trained / "tokenizer", output / "tokenizer")
    before = contents(own)
    called(*command(clip_files, output, *changes))
    assert contents(own) == before
    assert (output / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("tokenizer.keep=0.5", "tokenizer.keep (0.1, now 0.5)"),
        ("pretrain.stride=2", "pretrain.stride (1, now 2)"),
        ("pretrain.flip=false", "pretrain.flip (null, now false)"),
        ("data.size=48", "data.size (32, now 48)"),
        ("train.seed=5", "train.seed (0, now 5)"),
    ],
)
def test_a_tokenizer_with_other_settings_of_its_own_is_refused(
    trained: Path, clip_files: Path, tmp_path: Path, change: str, difference: str
):
    own = shutil.copytree(trained / "tokenizer", tmp_path / "run" / "tokenizer")
    before = contents(own)
    shown = refused(*command(clip_files, tmp_path / "run", change), code=2)
    assert f"{own}: holds a run with different settings: {difference}" in shown
    assert contents(own) == before


@pytest.mark.slow
def test_a_tokenizer_does_not_depend_on_the_weights_that_pretraining_starts_from(
    trained: Path, clip_files: Path, tmp_path: Path
):
    output = tmp_path / "run"
    called(*command(clip_files, output), "--init", trained)
    assert RunFolder(output / "tokenizer").environment().init is None
    assert str(trained) in str(RunFolder(output).environment().init)
