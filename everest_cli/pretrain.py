"""`everest pretrain`"""

from __future__ import annotations

import shlex
from pathlib import Path

from everest.errors import RecipeError
from everest.system.processes import is_main
from everest_cli import options as o
from everest_cli.option_groups import grouped
from everest_cli.output import say
from everest_cli.training_command import DecoderMode, InitName, TrainOptions


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
        raise RecipeError("--decoder needs --init, whose decoder it keeps or replaces")
    run = options.launch("pretrain", recipe, init=init, decoder=decoder)

    from everest.stages import run_pretraining

    folder = options.train(run_pretraining, settings, run)
    if folder is not None and is_main() and not options.quiet:
        say("\n  ".join(["next:", *_next_commands(recipe, options, folder)]))


def _next_commands(recipe: str, options: TrainOptions, run: Path) -> list[str]:
    """The commands that use the encoder of a run."""
    words = ["everest", "finetune", "--recipe", recipe, "--init", str(run), "--output", f"{run}-finetune"]
    words += [] if options.data is None else ["--data", options.data]
    for text in options.overrides or []:
        words += [] if text.startswith(("pretrain.", "data.pretrain=")) else ["--set", text]
    return [shlex.join(words), shlex.join(["everest", "probe", "--checkpoint", str(run)])]
