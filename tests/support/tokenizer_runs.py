"""`everest train-tokenizer` on real files, run, stopped, resumed and misused as a user would."""

from pathlib import Path

import pytest
from small_runs import called, small_recipe

from everest.config.recipe import load_recipe
from everest.config.run_options import RunOptions
from everest.engine.context import RunContext
from everest.system.accelerator import make_accelerator
from everest.system.events import ignore_event
from everest.system.run_folder import RunFolder
from everest.tokenizer_training import TokenizerTraining, set_up_tokenizer_training

RECIPE = """
summary: small enough for a test
data: {frames: 8, size: 32, test: train.csv}
model: {backbone: vit-tiny, tubelet: [2, 8, 8]}
train: {workers: 0, micro_batch: 2, precision: fp32}
pretrain: {stride: 2}
tokenizer: {size: tiny-8, channels: 8, frames: 8, keep: 0.25,
            epochs: 3, batch_size: 4, lr: 1.0e-2, ema: 0.5}
"""


def train(recipe: Path, folder: Path, *options: str, code: int = 0) -> str:
    """What is said on stderr."""
    result = called("train-tokenizer", "--recipe", recipe, "-o", folder, *options, code=code)
    if code == 0 and "--dry-run" not in options:
        assert result.stdout == f"{folder}\n"
    return result.stderr


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    """A recipe of `clip_files` for a tiny tokenizer."""
    return small_recipe(tmp_path_factory.mktemp("recipe"), clip_files, text=RECIPE)


def set_up(recipe: Path, folder: Path, *overrides: str) -> TokenizerTraining:
    settings = load_recipe(recipe, overrides=list(overrides))
    accelerator = make_accelerator(settings.train.precision, cpu=True)
    context = RunContext(
        accelerator=accelerator,
        run_folder=RunFolder(folder),
        resumed=False,
        emit=ignore_event,
        options=RunOptions(stage="train-tokenizer", recipe_file=str(recipe)),
    )
    return set_up_tokenizer_training(settings, context)
