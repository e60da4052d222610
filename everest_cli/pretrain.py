"""`everest pretrain`"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from everest.errors import RecipeError
from everest_cli.output import say
from everest_cli.train_tokenizer import run_stage
from everest_cli.training_command import (
    DecoderChoice,
    DecoderMode,
    InitName,
    TrainOptions,
    finish,
    print_trial,
    training_command,
)

if TYPE_CHECKING:
    from everest.config.settings import Recipe


@training_command("pretrain", init=InitName, decoder=DecoderMode)
def pretrain(
    recipe: Recipe, options: TrainOptions, init: str = "none", decoder: DecoderChoice | None = None
) -> None:
    """Train an encoder on unlabeled videos; prints the run folder.

    Example: everest pretrain --recipe ucf101 --data /data/ucf101 --output runs/ucf101

    Continue from other weights: everest pretrain --recipe ucf101 --init hf:MCG-NJU/videomae-base
    """
    if init == "none" and decoder is not None:
        raise RecipeError("--decoder: only with --init, which may have a decoder")
    options = options.with_init(init, None if decoder is None else decoder.value)
    devices = options.launch()

    from everest.pretraining import pretrain, pretraining_loss, set_up_pretraining
    from everest.train.start import start_or_resume
    from everest.train.tokenizer_first import with_tokenizer

    train = None if options.dry_run else partial(run_stage, options=options)
    recipe, run = with_tokenizer(
        recipe, options.of_run(devices), train=train, set_up=set_up_pretraining, notify=say
    )
    with options.context(recipe, run) as context:
        training = set_up_pretraining(recipe, context)
        if options.dry_run:
            print_trial(training, lambda clip: [pretraining_loss(training.model, clip)])
            return
        with start_or_resume(training, recipe):
            pretrain(training)
    finish(training)
