"""The parts that the training commands share: options, processes, run folder, the loop with its display."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from everest.system.launch import Devices, read_devices, run_processes, visible_gpus
from everest.system.processes import is_launched, is_main
from everest.system.run_environment import Decoder, Init
from everest_cli import options as o
from everest_cli.option_values import TrackerChoice, read_recipe
from everest_cli.output import Display

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.profiling.dry_run import LossesOf
    from everest.suggest.choices import Purpose
    from everest.train.context import RunContext
    from everest.train.run_options import RunOptions
    from everest.train.training import Training


class DecoderChoice(StrEnum):
    """The use of the decoder of --init."""

    keep = "keep"
    fresh = "fresh"


InitName = Annotated[
    str,
    typer.Option(
        "--init",
        metavar="C",
        help="Run folder, .safetensors, hf:OWNER/NAME or timm:NAME to start from, or none.",
    ),
]
DecoderMode = Annotated[
    DecoderChoice | None,
    typer.Option("--decoder", help="Of --init: keep it, or start fresh. Default: keep it if it fits."),
]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of a training command; typer reads those that are annotated as options."""

    recipe: o.RecipeName
    data: o.DataRoot = None
    overrides: o.Overrides = None
    output: o.Output = None
    resume: o.ResumeMode = "auto"
    overwrite: o.Overwrite = False
    gpus: o.Gpus = "auto"
    processes: o.Processes = None
    precision: o.PrecisionMode = None
    seed: o.Seed = None
    tracker: o.TrackerName = TrackerChoice.none
    overfit_one_batch: o.OverfitOneBatch = False
    print_config: o.PrintConfig = False
    dry_run: o.DryRun = False
    quiet: o.Quiet = False
    command: str  # names the default run folder
    init: Init | None = None  # the weights that the run starts from

    def with_init(self, name: str, decoder: Decoder | None = None) -> TrainOptions:
        """Find the weights of --init, if it names some."""
        if name == "none":
            return self
        from everest.checkpoints.init import find_init

        output = self.output if self.resume in ("auto", "never") else Path(self.resume)
        return replace(self, init=find_init(name, output=output, overwrite=self.overwrite, decoder=decoder))

    def launch(self) -> Devices:
        """Call `launch` with --gpus and --processes."""
        return launch(self.gpus, self.processes)

    def of_run(self, devices: Devices) -> RunOptions:
        """Return the options of the run itself, without the display's."""
        from everest.train.run_options import RunOptions

        return RunOptions(
            command=self.command,
            recipe_file=self.recipe,
            output=self.output,
            resume=self.resume,
            overwrite=self.overwrite,
            cpu=devices.kind == "cpu",
            tracker=self.tracker.value,
            one_batch=self.overfit_one_batch,
            init=self.init,
        )

    @contextmanager
    def context(self, recipe: Recipe, run: RunOptions) -> Iterator[RunContext]:
        """Set up Accelerate's processes, the run folder and the display. Nothing is written yet."""
        with (
            Display(quiet=self.quiet or not is_main()) as display,
            run.context(recipe, display.report) as context,
        ):
            yield context


def training_command(name: str, **own_options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn `run(recipe, options, …)` into a typer command with all options of `TrainOptions`.

    Args:
        name: of the command.
        own_options: typer annotations of further options; `run` gets their values by name, and has the
            defaults of those that are not required.
    """
    hints = get_type_hints(TrainOptions, include_extras=True)
    shared = [field for field in fields(TrainOptions) if field.name not in ("command", "init")]
    parameters = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in shared[1:]
    ]

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        own_parameters = [
            Parameter(option, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for option, annotation in own_options.items()
            for default in [signature(run).parameters[option].default]
        ]
        recipe_parameter = Parameter("recipe", Parameter.KEYWORD_ONLY, annotation=hints["recipe"])

        def command(**values: Any) -> None:
            own_values = {option: values.pop(option) for option in own_options}
            options = TrainOptions(command=name, **values)
            recipe = read_recipe(
                options.recipe,
                data=options.data,
                overrides=options.overrides,
                precision=options.precision,
                seed=options.seed,
                cpu=options.gpus == "cpu",
                purpose=_purpose(name, own_values.get("init")),
            )
            if options.print_config:
                from everest.config.recipe import dump_recipe

                typer.echo(dump_recipe(recipe), nl=False)
            else:
                run(recipe, options, **own_values)

        # typer reads the options of a command from its signature and its annotations.
        every = [recipe_parameter, *own_parameters, *parameters]
        command.__signature__ = Signature(every)  # type: ignore[attr-defined]
        command.__annotations__ = {part.name: part.annotation for part in every}
        command.__doc__ = run.__doc__
        return command

    return decorate


def _purpose(command: str, init: str | None) -> Purpose:
    """The purpose of the recipe `auto`, by the command and the option --init of `finetune`."""
    if command != "finetune":
        return "pretrain"
    return "scratch" if init == "none" else "finetune"


def launch(gpus: str, processes: int | None) -> Devices:
    """Return the devices of this process, or start the processes of the run and exit with their code."""
    if is_launched():
        return Devices(kind="cpu" if gpus == "cpu" else "cuda")
    devices = read_devices(gpus, processes)
    if devices.processes > 1:
        ended = run_processes(devices, [*this_program(), *sys.argv[1:]])
        typer.echo(ended.errors, err=True, nl=False)
        raise typer.Exit(ended.code)
    os.environ.update(visible_gpus(devices.ids))
    return devices


def this_program() -> list[str]:
    """Return the words that start `everest` again, as this process was started."""
    # Only `python -m` searches the working directory for modules first.
    by_module = Path(sys.argv[0]).name == "__main__.py"
    return [sys.executable, *([] if by_module else ["-P"]), "-m", "everest_cli"]


def print_trial(training: Training, losses_of: LossesOf) -> None:
    """Run two forward and backward passes and print the estimates for the whole run, for --dry-run."""
    from everest.profiling.dry_run import try_one_pass

    estimates = try_one_pass(training, losses_of)
    estimates["peak_memory"] = f"{estimates.pop('memory_bytes') / 2**30:.2f} GiB"
    for name, value in estimates.items():
        typer.echo(f"{name.replace('_', ' ')}: {value}")


def finish(training: Training) -> None:
    """Print the run folder, once over all processes."""
    training.accelerator.wait_for_everyone()
    training.accelerator.end_training()
    if is_main():
        typer.echo(training.run.path)
