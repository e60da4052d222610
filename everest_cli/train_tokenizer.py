"""`everest train-tokenizer`"""

from __future__ import annotations

from functools import partial

from everest_cli import options as o
from everest_cli.option_groups import grouped
from everest_cli.training_command import TrainOptions


@grouped
def train_tokenizer(recipe: o.RecipeName, options: TrainOptions) -> None:
    """Train LVMAE's tokenizer: codes and importance of tokens; prints the run folder.

    Example: everest train-tokenizer --recipe lvmae-demo --data VIDEOS --output runs/tokenizer
    """
    settings = options.read_recipe(recipe)
    run = options.launch("train-tokenizer", recipe)

    from everest.stages import run_stage
    from everest.train_tokenizer import set_up_tokenizer

    options.train(partial(run_stage, set_up_tokenizer), settings, run)
