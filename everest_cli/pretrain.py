"""`everest pretrain`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everest_cli.tokenizer_first import with_tokenizer
from everest_cli.training_command import TrainOptions, finish, print_trial, start_or_resume, training_command

if TYPE_CHECKING:
    from everest.config.settings import Recipe


@training_command("pretrain")
def pretrain(recipe: Recipe, options: TrainOptions) -> None:
    """Train an encoder on unlabeled videos; prints the run folder.

    Example: everest pretrain --recipe ucf101 --data /data/ucf101 --output runs/ucf101
    """
    devices = options.launch()
    recipe, options = with_tokenizer(recipe, options, devices, train=not options.dry_run)

    from everest.pretrain import pretrain, pretraining_loss, set_up_pretraining

    with options.context(recipe, devices) as context:
        training = set_up_pretraining(recipe, context)
        if options.dry_run:
            print_trial(training, lambda clip: [pretraining_loss(training.model, clip)])
            return
        with start_or_resume(training, recipe, init=None):
            pretrain(training)
    finish(training)
