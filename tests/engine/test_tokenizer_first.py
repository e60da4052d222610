import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
from small_runs import called, contents, refused, sets

from everest.config.recipe import recipe_for_run
from everest.config.settings import Recipe
from everest.engine import tokenizer_first
from everest.engine.context import RunContext, RunOptions
from everest.pretraining import set_up_pretraining
from everest.system.run_folder import INIT, RunFolder
from everest.tokenizer.clips import held_out_clips, tokenizer_clips, tokenizer_depends_on
from everest.tokenizer.spec import tokenizer_spec

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


def test_the_prepared_model_is_gone_when_the_memory_of_the_device_is_released(
    clip_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The passes of the tokenizer are planned by the free memory, and the accelerator holds the model."""
    models, alive = [], []

    def set_up(recipe: Recipe, context: RunContext) -> None:
        models.append(weakref.ref(set_up_pretraining(recipe, context).training.model))

    def release(*, garbage_collection: bool) -> None:
        assert garbage_collection
        gc.collect()
        alive.append(models[0]() is not None)

    monkeypatch.setattr(tokenizer_first, "clear_device_cache", release)
    recipe = recipe_for_run("lvmae-demo", data=str(clip_files), overrides=SMALL)
    options = RunOptions(command="pretrain", recipe_file="lvmae-demo", output=tmp_path / "run", cpu=True)
    nothing = {"train": lambda recipe, options: None, "notify": lambda text: None}
    tokenizer_first.with_tokenizer(recipe, options, set_up=set_up, **nothing)
    assert alive == [False]


def test_a_correct_run_is_prepared_silently(clip_files: Path, tmp_path: Path):
    shown = called(*command(clip_files, tmp_path / "run", "pretrain.probe.every=1")).stderr
    assert shown.count("is trained first") == 1


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
    assert RunFolder(output / "tokenizer").read_env(INIT) is None
    assert str(trained) in RunFolder(output).read_env(INIT)


def read_by_tokenizer(recipe: Recipe) -> list[Any]:
    """The values that a tokenizer is trained and measured with."""
    train, held_out = tokenizer_clips(recipe), held_out_clips(recipe)
    lists = [[sample.video_id for sample in clips.samples] for clips in (train, held_out)]
    return [tokenizer_spec(recipe), train.make_views, held_out.make_views, train.decoder, train.seed, *lists]


@pytest.mark.parametrize(
    "change",
    [
        *("data.frames=32", "data.num_classes=null", "data.mean=[0.5, 0.5, 0.5]", "pretrain.flip=false"),
        *("data.std=[0.5, 0.5, 0.5]", "data.task=multi-label", "data.train=other.csv", "data.size=48"),
        *("data.test=other.csv", "data.val=other.csv", "data.fps=8", "data.pretrain=other.csv"),
        *("pretrain.stride=2", "pretrain.sampling=spread", "pretrain.views_per_decode=2", "train.seed=1"),
        *("data.flip=false", "pretrain.epochs=5", "tokenizer.levels=[4, 4]", "train.checkpointing=true"),
        *("train.shard=full", "model.depth=3", "eval.clips=2", "finetune.stride=4", "data.decoder=pyav"),
    ],
)
@pytest.mark.parametrize("also", [(), ("data.val=train.csv", "pretrain.flip=true")])
def test_the_settings_of_a_tokenizer_are_those_that_it_reads(clip_files, tmp_path, change, also):
    folder = shutil.copytree(clip_files, tmp_path / "data")
    (folder / "other.csv").write_text("clip0.mp4 0\nclip1.mp4 1\n")
    base, changed = (
        recipe_for_run("lvmae-demo", data=str(folder), overrides=[*SMALL, *also, *more])
        for more in ((), (change,))
    )
    depends = tokenizer_depends_on(change.split("=")[0], changed)
    assert depends == (read_by_tokenizer(base) != read_by_tokenizer(changed))
