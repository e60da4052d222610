"""The parts that the training commands share: options, processes, the stage with its display."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everest.system.launch import Devices, read_devices, run_processes
from everest.system.processes import is_launched, is_main
from everest.system.run_folder import Decoder
from everest_cli import options as o
from everest_cli.option_values import read_recipe
from everest_cli.output import Display

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.engine.context import RunOptions
    from everest.engine.training import Training
    from everest.stages import Stage
    from everest.suggest.devices import Purpose

InitName = Annotated[
    str,
    typer.Option(
        "--init",
        metavar="C",
        help="Run folder, .safetensors, hf:OWNER/NAME or timm:NAME to start from, or none.",
    ),
]
DecoderMode = Annotated[
    Decoder | None,
    typer.Option(
        "--decoder",
        help="Keep the decoder of --init (between views: the projector), or start fresh [keep if it fits].",
    ),
]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options that all training commands share, in addition to --recipe."""

    data: o.DataRoot = None
    overrides: o.Overrides = None
    output: o.Output = None
    resume: o.ResumeMode = "auto"
    overwrite: o.Overwrite = False
    gpus: o.Gpus = "auto"
    processes: o.Processes = None
    precision: o.PrecisionMode = None
    seed: o.Seed = None
    tracker: o.TrackerName = "none"
    overfit_one_batch: o.OverfitOneBatch = False
    print_config: o.PrintConfig = False
    dry_run: o.DryRun = False
    quiet: o.Quiet = False

    def read_recipe(self, name: str, *, purpose: Purpose = "pretrain") -> Recipe:
        """Read the recipe with the changes of the options; with --print-config, print it and exit.

        Args:
            purpose: of the recipe `auto`.
        """
        recipe = read_recipe(
            name,
            data=self.data,
            overrides=self.overrides,
            precision=self.precision,
            seed=self.seed,
            cpu=self.gpus == "cpu",
            purpose=purpose,
        )
        if self.print_config:
            from everest.config.recipe import dump_recipe

            typer.echo(dump_recipe(recipe), nl=False)
            raise typer.Exit()
        return recipe

    def launch(
        self, command: str, recipe_file: str, *, init: str = "none", decoder: Decoder | None = None
    ) -> RunOptions:
        """Find the weights of --init, start the processes of the run, and return its options in each of them.

        Args:
            command: names the default run folder.
        """
        found = None
        if init != "none":
            from everest.checkpoints.start import find_init

            output = self.output if self.resume in ("auto", "never") else Path(self.resume)
            found = find_init(init, output=output, overwrite=self.overwrite, decoder=decoder)
        devices = launch(self.gpus, self.processes)

        from everest.engine.context import RunOptions

        return RunOptions(
            command=command,
            recipe_file=recipe_file,
            output=self.output,
            resume=self.resume,
            overwrite=self.overwrite,
            cpu=devices.kind == "cpu",
            tracker=self.tracker,
            one_batch=self.overfit_one_batch,
            init=found,
        )

    def train(self, run_stage: Callable[..., Training], recipe: Recipe, run: RunOptions) -> Path | None:
        """Train a stage with a display, and print and return its run folder; None after --dry-run."""
        trial = _print_trial if self.dry_run else None
        with Display(quiet=self.quiet or not is_main()) as display:
            training = run_stage(recipe, run, display.report, trial=trial)
        if self.dry_run:
            return None
        if is_main():
            typer.echo(training.run.path)
        return training.run.path


def launch(gpus: str, processes: int | None) -> Devices:
    """Return the devices of this process, or start the processes of the run and exit with their code."""
    if is_launched():
        return Devices(kind="cpu" if gpus == "cpu" else "cuda")
    devices = read_devices(gpus, processes)
    if devices.processes > 1:
        code, errors = run_processes(devices, [*this_program(), *sys.argv[1:]])
        typer.echo(errors, err=True, nl=False)
        raise typer.Exit(code)
    os.environ.update(devices.environment)
    return devices


def this_program() -> list[str]:
    """Return the words that start `everest` again, as this process was started."""
    # Only `python -m` searches the working directory for modules first.
    by_module = Path(sys.argv[0]).name == "__main__.py"
    return [sys.executable, *([] if by_module else ["-P"]), "-m", "everest_cli"]


def _print_trial(stage: Stage) -> None:
    """Run two forward and backward passes and print the estimates for the whole run."""
    from everest.profiling.measure import try_one_pass

    estimates = try_one_pass(stage.training, stage.losses)
    estimates["peak_memory"] = f"{estimates.pop('memory_bytes') / 2**30:.2f} GiB"
    for name, value in estimates.items():
        typer.echo(f"{name.replace('_', ' ')}: {value}")
