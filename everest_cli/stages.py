"""`everest train` and `demo` run all steps; `pretrain`, `finetune` and `train-tokenizer` run a step each."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from everest.config.heads import TaskName
from everest.config.run_options import RunOptions, RunStage, StageOptions
from everest.errors import RecipeError
from everest.system.processes import is_main
from everest.system.run_folder import DecoderStart
from everest_cli import options as o
from everest_cli.options import argument, local_path, option, refuse, run_in_each_process
from everest_cli.output import Display, hint, print_json, print_table
from everest_workflows.project.options import ProjectOptions

if TYPE_CHECKING:
    from everest.engine.training import Stage


@dataclass(frozen=True, kw_only=True)
class TrainOptions(StageOptions):
    """The options that all training commands share, in addition to --recipe."""

    gpus: str = o.GPUS
    processes: int | None = o.PROCESSES
    dry_run: bool = option("--dry-run", "Check, try two steps, estimate time and memory; no files.", False)


def _train(
    stage: RunStage,
    recipe_file: str,
    options: TrainOptions,
    *,
    init: str | None = "none",
    decoder: DecoderStart | None = None,
) -> Path | None:
    """Train a stage in each process; print and return the run folder, or None for a dry run."""
    from everest.checkpoints.init import recipe_for_init

    resumes_folder = options.resume not in ("auto", "never")
    problem = "--resume DIR continues in DIR: leave out --output and --overwrite"
    refuse({problem: resumes_folder and (options.output or options.overwrite)})
    if not init:
        raise RecipeError(
            "--init: missing; give a run folder, a .safetensors file, hf:OWNER/NAME, timm:NAME or "
            "timm:NAME=FILE, or `none` to train from scratch"
        )
    run_options = RunOptions.of(options, stage=stage, recipe_file=recipe_file, init=init, decoder=decoder)
    recipe = recipe_for_init(run_options)
    check = None if run_options.init is None else partial(_check_init, run_options)
    run_options = replace(run_options, cpu=run_in_each_process(options.gpus, options.processes, check=check))

    from everest.stages import run_stage  # imported here, in the processes that train

    with Display() as display:
        dry_run = _print_dry_run if options.dry_run else None
        run = run_stage(recipe, run_options, display.emit, dry_run=dry_run)
    if options.dry_run:
        return None
    if is_main():
        typer.echo(run.path)
    return run.path


def _check_init(options: RunOptions) -> None:
    """Check the weights of --init before processes start; of everest's files only the header is read."""
    from everest.checkpoints.init import check_init, init_of_run

    logging.disable(logging.WARNING)  # the main process reports the chosen weights
    try:
        init, resumed = init_of_run(options)
        check_init(init, resumed=resumed)
    finally:
        logging.disable(logging.NOTSET)


def _print_dry_run(stage: Stage) -> None:
    """Time forward and backward passes and print the estimates for the whole run."""
    from everest.profiling.timing import try_step

    estimates = try_step(stage)
    estimates["peak_memory"] = f"{estimates.pop('memory_bytes') / 2**30:.2f} GiB"
    for name, value in estimates.items():
        typer.echo(f"{name.replace('_', ' ')}: {value}")


def pretrain(
    *,
    recipe: str = o.RECIPE,
    options: TrainOptions,
    init: str = option(*o.INIT, "none"),
    decoder: DecoderStart | None = option(
        "--decoder",
        "Keep the decoder of --init (between views: the projector), or start fresh [keep if it fits].",
    ),
) -> None:
    """Train an encoder on unlabeled videos; prints the run folder.

    Example: everest pretrain --recipe ucf101 --data /data/ucf101 --output runs/ucf101

    Continue from other weights: everest pretrain --recipe ucf101 --init hf:MCG-NJU/videomae-base
    """
    folder = _train("pretrain", recipe, options, init=init, decoder=decoder)
    if folder is None or not is_main():
        return
    from_images = init.startswith("timm:")  # the recipe of the run has their encoder
    words = ["everest", "finetune", "--recipe", str(folder / "recipe.yaml") if from_images else recipe]
    words += ["--init", str(folder), "--output", f"{folder}-finetune"]
    words += [] if options.data is None or from_images else ["--data", options.data]
    for text in [] if from_images else options.overrides or []:
        words += [] if text.startswith(("pretrain.", "data.pretrain=")) else ["--set", text]
    hint(f"next:\n  {shlex.join(words)}\n  {shlex.join(['everest', 'probe', '--checkpoint', str(folder)])}")


def finetune(*, recipe: str = o.RECIPE, options: TrainOptions, init: str | None = option(*o.INIT)) -> None:
    """Train a classifier from a pre-trained encoder; prints the run folder.

    Example: everest finetune --recipe ucf101 --init runs/ucf101 --data /data/ucf101
    """
    folder = _train("finetune", recipe, options, init=init)
    if folder is not None and is_main():
        hint(f"next:\n  {shlex.join(['everest', 'eval', '--checkpoint', str(folder)])}")


def train_tokenizer(*, recipe: str = o.RECIPE, options: TrainOptions) -> None:
    """Train LVMAE's tokenizer: codes and importance of tokens; prints the run folder.

    Example: everest train-tokenizer --recipe lvmae-demo --data VIDEOS --output runs/tokenizer
    """
    _train("train-tokenizer", recipe, options)


@dataclass(frozen=True, kw_only=True)
class TrainProjectOptions(ProjectOptions):
    """The options of `everest train`, by the names of the arguments of `everest.train`."""

    observers: list[str] | None = o.OBSERVER
    subject: str | None = o.SUBJECT
    init: str | None = option(*o.INIT, "none")
    task: TaskName | None = o.TASK
    overrides: list[str] | None = o.OVERRIDES
    output: Path | None = option("--output -o DIR", "Folder of all results [runs/train/NAME].")
    overwrite: bool = option("--overwrite", "Replace the results in --output; other files stay.", False)
    dry_run: bool = option("--dry-run", "Print the plan and an estimate of the time; write nothing.", False)


def train(
    *,
    videos: list[Path] = argument(
        "VIDEOS",
        "A folder of class folders or of lists (train.csv, …), or a list; with --annotations, of recordings.",
        parser=local_path,
    ),
    options: TrainProjectOptions,
    as_json: bool = o.AS_JSON,
) -> None:
    """Train and test a model on your videos; repeat the command to resume.

    Example: everest train VIDEOS --output runs/mine
    """
    if len(videos) > 1:
        raise RecipeError("VIDEOS: several folders or lists; list the clips in one table: path,class,group")

    from everest_workflows.project.result import ProjectResult
    from everest_workflows.project.summary import alarm_table, class_table, list_answer, list_rest
    from everest_workflows.project.train import train as train_project

    with Display() as display:
        result: dict[str, Any] = train_project(videos[0], **vars(options), emit=display.emit)
    if as_json:
        named = {} if options.dry_run else {result["metric"]: result["value"]}
        print_json({**result, **named})
    elif options.dry_run:
        typer.echo("\n".join(result["lines"]))
    else:
        finished = ProjectResult.of(result)
        typer.echo("\n".join(list_answer(finished)))
        if finished.behaviors:
            print_table(*class_table(finished))
        if finished.alarms:
            print_table(*alarm_table(finished))
        typer.echo("\n".join(list_rest(finished)))


def demo(
    recipe: Literal["demo", "lvmae-demo"] = option("--recipe -r", "EVEREST in 5 min, or LVMAE in 8.", "demo"),
    output: Path | None = option("--output -o DIR", "Folder for videos, runs and report [runs/RECIPE]."),
    overwrite: bool = o.OVERWRITE,
) -> None:
    """Pre-train, fine-tune and evaluate on rendered videos, in minutes; prints the report.

    Example: everest demo --output runs/demo
    """
    from everest_demo.demo import run_demo
    from everest_demo.lvmae import run_lvmae_demo
    from everest_demo.steps import REPORT, demo_folder

    folder = output or Path("runs") / recipe
    run = run_lvmae_demo if recipe == "lvmae-demo" else run_demo
    with demo_folder(folder, overwrite=overwrite), Display() as display:
        run(folder, emit=display.emit)
    typer.echo((folder / REPORT).read_text("utf-8"), nl=False)
    typer.echo(folder / REPORT)
