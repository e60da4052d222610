"""`everest pretrain`"""

from __future__ import annotations

import shlex
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from everest.errors import RecipeError, UserError
from everest.system.processes import is_main
from everest_cli import options as o
from everest_cli.option_groups import grouped
from everest_cli.output import say
from everest_cli.train_tokenizer import run_stage
from everest_cli.training_command import DecoderMode, InitName, TrainOptions, finish, print_trial

if TYPE_CHECKING:
    from everest.config.settings import Recipe


@grouped
def pretrain(
    recipe: o.RecipeName, options: TrainOptions, init: InitName = "none", decoder: DecoderMode = None
) -> None:
    """Train an encoder on unlabeled videos; prints the run folder.

    Example: everest pretrain --recipe ucf101 --data /data/ucf101 --output runs/ucf101

    Continue from other weights: everest pretrain --recipe ucf101 --init hf:MCG-NJU/videomae-base
    """
    settings = options.read_recipe(recipe)
    if init == "none" and decoder is not None:
        raise RecipeError("--decoder: only with --init, which may have a decoder")
    run = options.launch("pretrain", recipe, init=init, decoder=decoder)

    from everest.engine.start import start_or_resume
    from everest.engine.tokenizer_first import with_tokenizer
    from everest.pretraining import pretrain, pretraining_output, set_up_pretraining

    train = None if options.dry_run else partial(run_stage, options=options)
    settings, run = with_tokenizer(settings, run, train=train, set_up=set_up_pretraining, notify=say)
    with options.context(settings, run) as context:
        stage = set_up_pretraining(settings, context)
        training = stage.training
        if options.dry_run:
            print_trial(training, lambda clip: [pretraining_output(training.model, clip).loss])
            return
        with start_or_resume(training, settings):
            pretrain(stage)
    finish(training)
    if is_main() and not options.quiet:
        say("\n  ".join(["next:", *_next_commands(recipe, options, settings, training.run.path)]))


def _next_commands(recipe: str, options: TrainOptions, settings: Recipe, run: Path) -> list[str]:
    """The commands that use the encoder of a run; without labels of its data, LABELED is to be filled in."""
    from everest.lists.stage import find_source, read_stage

    labeled = tested = False
    with suppress(UserError):
        read_stage(settings.data, "train", labeled=True, may_miss=True)
        labeled = True
        find_source(settings.data, "test", labeled=True)
        tested = True
    data = options.data if labeled else "LABELED"
    words = ["everest", "finetune", "--recipe", recipe, *([] if data is None else ["--data", data])]
    others = [
        text for text in options.overrides or [] if not text.startswith(("pretrain.", "data.pretrain="))
    ]
    words += [word for text in others for word in ("--set", text)]
    name = str(run)
    output = name.removesuffix("-pretrain") if name.endswith("-pretrain") else f"{name}-finetune"
    words += ["--init", name, "--output", output]
    probe = ["everest", "probe", "--checkpoint", str(run)]
    return [shlex.join(words), *([shlex.join(probe)] if tested else [])]
