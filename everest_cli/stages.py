"""`everest pretrain`, `finetune` and `train-tokenizer`: their options and display."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from everest.errors import RecipeError
from everest.system.processes import is_main
from everest.system.run_folder import Decoder
from everest_cli import options as o
from everest_cli.options import Precision, option, read_recipe
from everest_cli.output import Display, say
from everest_cli.processes import start_processes

if TYPE_CHECKING:
    from everest.stages import Stage

Tracker = Literal["none", "tensorboard", "wandb"]  # metrics go there in addition to metrics.jsonl
INIT = ("--init C", "Run folder, .safetensors, hf:OWNER/NAME or timm:NAME to start from, or none.")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options that all training commands share, in addition to --recipe."""

    data: str | None = o.DATA_ROOT
    overrides: list[str] | None = o.OVERRIDES
    output: Path | None = option("--output -o DIR", "Run folder [runs/COMMAND/RECIPE-TIME].")
    resume: str = option(
        "--resume auto|never|DIR", "Resume the run in --output (auto), in DIR, or never.", "auto"
    )
    overwrite: bool = o.OVERWRITE
    gpus: str = o.GPUS
    processes: int | None = o.PROCESSES
    precision: Precision | None = option("--precision", "Override train.precision.")
    seed: int | None = option("--seed N", "Override train.seed.")
    tracker: Tracker = option("--tracker", "Log curves and images to TensorBoard or W&B (offline).", "none")
    overfit_one_batch: bool = option(
        "--overfit-one-batch", "Overfit the first batch, to check that the model can learn.", False
    )
    print_config: bool = option("--print-config", "Print all settings and stop.", False)
    dry_run: bool = option(
        "--dry-run", "Check everything, try two passes, estimate time and memory; write nothing.", False
    )
    quiet: bool = o.QUIET


def _train(
    command: str,
    recipe_file: str,
    options: TrainOptions,
    *,
    init: str = "none",
    decoder: Decoder | None = None,
) -> Path | None:
    """Train the stage of a command in each process; prints and returns the run folder, if there is one."""
    recipe = read_recipe(
        recipe_file,
        data=options.data,
        overrides=options.overrides,
        precision=options.precision,
        seed=options.seed,
    )
    if options.print_config:
        from everest.config.recipe import dump_recipe

        typer.echo(dump_recipe(recipe), nl=False)
        raise typer.Exit()
    if init == "none" and decoder is not None:
        raise RecipeError("--decoder needs --init, whose decoder it keeps or replaces")
    start = None
    if init != "none":
        from everest.checkpoints.init import find_init

        output = options.output if options.resume in ("auto", "never") else Path(options.resume)
        start = find_init(init, output=output, overwrite=options.overwrite, decoder=decoder)
    devices = start_processes(options.gpus, options.processes)

    from everest.engine.context import RunOptions
    from everest.stages import run_stage  # here: in the processes that train

    run = RunOptions(
        command=command,
        recipe_file=recipe_file,
        output=options.output,
        resume=options.resume,
        overwrite=options.overwrite,
        cpu=devices.kind == "cpu",
        tracker=options.tracker,
        one_batch=options.overfit_one_batch,
        init=start,
    )
    trial = _print_trial if options.dry_run else None
    with Display(quiet=options.quiet or not is_main()) as display:
        training = run_stage(recipe, run, display.report, trial=trial)
    if options.dry_run:
        return None
    if is_main():
        typer.echo(training.run.path)
    return training.run.path


def _print_trial(stage: Stage) -> None:
    """Run two forward and backward passes and print the estimates for the whole run."""
    from everest.profiling.measure import try_one_pass

    estimates = try_one_pass(stage.training, stage.losses)
    estimates["peak_memory"] = f"{estimates.pop('memory_bytes') / 2**30:.2f} GiB"
    for name, value in estimates.items():
        typer.echo(f"{name.replace('_', ' ')}: {value}")


def pretrain(
    *,
    recipe: str = o.RECIPE,
    options: TrainOptions,
    init: str = option(*INIT, "none"),
    decoder: Decoder | None = option(
        "--decoder",
        "Keep the decoder of --init (between views: the projector), or start fresh [keep if it fits].",
    ),
) -> None:
    """Train an encoder on unlabeled videos; prints the run folder.

    Example: everest pretrain --recipe ucf101 --data /data/ucf101 --output runs/ucf101

    Continue from other weights: everest pretrain --recipe ucf101 --init hf:MCG-NJU/videomae-base
    """
    folder = _train("pretrain", recipe, options, init=init, decoder=decoder)
    if folder is None or not is_main() or options.quiet:
        return
    words = ["everest", "finetune", "--recipe", recipe, "--init", str(folder)]
    words += ["--output", f"{folder}-finetune"]
    words += [] if options.data is None else ["--data", options.data]
    for text in options.overrides or []:
        words += [] if text.startswith(("pretrain.", "data.pretrain=")) else ["--set", text]
    say(f"next:\n  {shlex.join(words)}\n  {shlex.join(['everest', 'probe', '--checkpoint', str(folder)])}")


def finetune(*, recipe: str = o.RECIPE, options: TrainOptions, init: str = option(*INIT, "")) -> None:
    """Train a classifier from a pre-trained encoder; prints the run folder.

    Example: everest finetune --recipe ucf101 --init runs/ucf101 --data /data/ucf101
    """
    _train("finetune", recipe, options, init=init)


def train_tokenizer(*, recipe: str = o.RECIPE, options: TrainOptions) -> None:
    """Train LVMAE's tokenizer: codes and importance of tokens; prints the run folder.

    Example: everest train-tokenizer --recipe lvmae-demo --data VIDEOS --output runs/tokenizer
    """
    _train("train-tokenizer", recipe, options)
