"""LVMAE end to end on small real videos: the tokenizer first, then targets from it, fine-tuning, a test."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from small_runs import called, contents, json_of, refused, sets

import everest
from everest.system.run_folder import RunFolder
from everest.system.weights import read_weights, state_hash
from everest.tokenizer.frozen_tokenizer import FrozenTokenizer

SMALL = (
    *("data.pretrain=train.csv", "data.test=train.csv", "data.classes=null", "data.num_classes=2"),
    *("data.frames=16", "train.workers=0", "train.micro_batch=2", "model.depth=1", "model.width=48"),
    *("tokenizer.channels=8", "tokenizer.epochs=1", "tokenizer.warmup_epochs=0", "tokenizer.batch_size=4"),
    *("pretrain.epochs=2", "pretrain.batch_size=4", "pretrain.warmup_epochs=0"),
    *("finetune.epochs=1", "finetune.batch_size=4", "finetune.warmup_epochs=0"),
)
LVMAE = ("--recipe", "lvmae-demo", "--gpus", "cpu", *sets(*SMALL))


def run(command: str, folder: Path, *options: object) -> str:
    return called(command, *LVMAE, "--data", folder, *options).stderr


def command(folder: Path, output: Path, *changes: str) -> list[object]:
    """Pre-training with changed settings."""
    return ["pretrain", *LVMAE, "--data", folder, "-o", output, *sets(*changes)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    """The run folder of both stages."""
    output = tmp_path_factory.mktemp("lvmae") / "run"
    shown = run("pretrain", clip_files, "-o", output)
    assert f"{output / 'tokenizer'} is trained first" in shown
    return output


def test_the_run_names_the_tokenizer_that_it_trained(trained: Path):
    tokenizer = trained / "tokenizer" / "model.safetensors"
    recipe = yaml.safe_load((trained / "recipe.yaml").read_text())
    assert recipe["tokenizer"]["checkpoint"] == str(tokenizer.resolve())
    with safe_open(trained / "model.safetensors", framework="pt") as file:
        used = json.loads(file.metadata()["settings"])["tokenizer"]
        assert not any("tokenizer" in name for name in file.keys())  # noqa: SIM118
    assert used["sha256"] == state_hash(read_weights(tokenizer).tensors)
    assert (trained / "tokenizer" / "report.json").is_file()


def test_a_run_moves_with_its_tokenizer(trained: Path, clip_files: Path, tmp_path: Path):
    before, moved = hash_of_tokenizer(trained), shutil.copytree(trained, tmp_path / "elsewhere")
    files = contents(moved)
    trained.rename(tmp_path / "gone")
    try:
        run("pretrain", clip_files, "-o", moved)  # done already: nothing is trained, and nothing refused
        called("pretrain --gpus cpu", "--recipe", moved / "recipe.yaml", "-o", moved)
        assert hash_of_tokenizer(moved) == before
        run("pretrain", clip_files, "-o", moved, "--dry-run")
        assert contents(moved) == files
        (moved / "model.safetensors").unlink()
        shutil.rmtree(moved / "state")  # as in a run that has not come to a save
        run("pretrain", clip_files, "-o", moved)
        assert hash_of_tokenizer(moved) == before
    finally:
        (tmp_path / "gone").rename(trained)


def test_a_tokenizer_that_was_trained_again_is_another(trained: Path, clip_files: Path, tmp_path: Path):
    tokenizer = shutil.copytree(trained / "tokenizer", tmp_path / "tokenizer") / "model.safetensors"
    named = ["--set", f"tokenizer.checkpoint={tokenizer}"]
    run("pretrain", clip_files, "-o", tmp_path / "run", *named)
    other = read_weights(tokenizer)
    next(iter(other.tensors.values())).add_(1.0)
    other.save(tokenizer)
    shown = refused("pretrain", *LVMAE, "--data", clip_files, "-o", tmp_path / "run", *named, code=2)
    assert f"its run used another tokenizer than the current {tokenizer}" in shown
    # A run without a tokenizer is another.
    shown = refused("pretrain --recipe small --gpus cpu", "--data", clip_files, "-o", trained, code=2)
    assert "holds a run with different settings" in shown


def test_a_copied_run_has_its_own_tokenizer(trained: Path, clip_files: Path, tmp_path: Path):
    copied, file = shutil.copytree(trained, tmp_path / "copy"), trained / "tokenizer" / "model.safetensors"
    content = file.read_bytes()
    try:
        file.write_bytes((trained / "model.safetensors").read_bytes())
        own = read_weights(copied / "tokenizer" / "model.safetensors")
        assert hash_of_tokenizer(copied) == state_hash(own.tensors)
        features = ["extract", clip_files, "-c", trained, "-o", tmp_path / "f.npz", "--gpus", "cpu"]
        assert f"{file}: the tokenizer of this model is another one; put it back" in refused(
            *features, code=6
        )
    finally:
        file.write_bytes(content)


def hash_of_tokenizer(folder: Path) -> str:
    """Of the tokenizer that a run's model uses."""
    model = everest.load_model(folder)
    return state_hash(model.tokenizer.tokenizer.state_dict())


def test_another_run_takes_a_tokenizer_by_its_folder(trained: Path, clip_files: Path, tmp_path: Path):
    tokenizer = f"tokenizer.checkpoint={trained / 'tokenizer'}"
    shown = run("pretrain", clip_files, "-o", tmp_path / "run", "--set", tokenizer)
    assert "trained first" not in shown
    one, other = (everest.load_model(folder) for folder in (trained, tmp_path / "run"))
    assert isinstance(one.tokenizer, FrozenTokenizer)
    assert state_hash(one.state_dict()) == state_hash(other.state_dict())


def test_dry_runs_and_scores_that_need_no_tokenizer_train_none(clip_files: Path, tmp_path: Path):
    run("pretrain --dry-run", clip_files, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    without = ["--set=pretrain.selection.score=frame-difference", "--set=pretrain.target.kind=pixels"]
    shown = run("pretrain", clip_files, "-o", tmp_path / "run", *without).partition("next:")[0]
    assert "tokenizer" not in shown
    assert not (tmp_path / "run" / "tokenizer").exists()


def test_the_encoder_is_fine_tuned_on_tubes_and_tested_on_all_tokens(trained, clip_files, tmp_path):
    tubes = sets("finetune.selection.strategy=tube-dropout", "finetune.selection.keep_ratio=0.5")
    run("finetune", clip_files, "-o", tmp_path / "run", "--init", trained, *tubes)
    assert json_of("eval", "-c", tmp_path / "run")["videos"] == 4
    model = everest.load_model(tmp_path / "run")
    clip = everest.normalize(everest.read_clip(clip_files / "clip0.mp4", frames=16, stride=1, size=32))[None]
    assert model.encode_kept(clip)[0].tolist() == [list(range(128))]


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["data.pretrain=nope.csv"], 4, "no such list or folder"),
        (["pretrain.views_per_decode=3"], 2, "batch_size 4 does not divide"),
        (None, 6, "its encoder differs from the recipe's"),  # weights of another size
    ],
)
def test_mistakes_are_found_before_a_tokenizer_is_trained(
    autoencoder_run, clip_files, tmp_path, changes, code, message
):
    start = [] if changes else ["--init", autoencoder_run]
    shown = refused(*command(clip_files, tmp_path / "run", *(changes or [])), *start, code=code)
    assert message in shown
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
def test_a_tokenizer_with_other_settings_is_refused(trained, clip_files, tmp_path, change, difference):
    own = shutil.copytree(trained / "tokenizer", tmp_path / "run" / "tokenizer")
    before = contents(own)
    shown = refused(*command(clip_files, tmp_path / "run", change), code=2)
    assert f"{own}: holds a run with different settings: {difference}" in shown
    assert contents(own) == before


@pytest.mark.slow
def test_a_tokenizer_does_not_depend_on_the_weights_of_init(trained, clip_files, tmp_path):
    output = tmp_path / "run"
    called(*command(clip_files, output), "--init", trained)
    assert RunFolder(output / "tokenizer").read_environment().init is None
    assert str(trained) in str(RunFolder(output).read_environment().init)
