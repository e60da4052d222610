"""The parts that the training commands share: options, processes, run folder, the loop with its display."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from everest.errors import RecipeError
from everest.system.launch import Devices, is_launched, is_main, read_devices, run_processes, visible_gpus
from everest_cli import options as o
from everest_cli.output import Display

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.system.run_folder import RunFolder
    from everest.train.context import RunContext
    from everest.train.setup import LossesOf
    from everest.train.training import Training


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
    tracker: o.TrackerName = o.TrackerChoice.none
    overfit_one_batch: o.OverfitOneBatch = False
    print_config: o.PrintConfig = False
    dry_run: o.DryRun = False
    quiet: o.Quiet = False
    command: str  # names the default run folder
    init: str | None = None  # the weights that the run starts from

    @property
    def resumed_folder(self) -> Path | None:
        """The run folder that --resume names.

        Raises:
            RecipeError: another option names a folder as well.
        """
        if self.resume in ("auto", "never"):
            return None
        if self.output or self.overwrite:
            raise RecipeError("--resume DIR continues in DIR: leave out --output and --overwrite")
        return Path(self.resume)

    def launch(self) -> Devices:
        """Call `launch` with --gpus and --processes."""
        return launch(self.gpus, self.processes)

    def may_resume(self, recipe: Recipe, path: Path) -> bool:
        """Check whether a run in `path` resumes an earlier one. Nothing is written.

        Raises:
            RecipeError: the run may not use this folder.
        """
        from everest.train.resume import RunRequest, check_output

        tokenizer = None if recipe.tokenizer is None else recipe.tokenizer.checkpoint
        sources = [Path(source) for source in (self.recipe, self.init, tokenizer) if source is not None]
        request = RunRequest(
            stage=self.command,
            recipe=recipe,
            init=self.init,
            one_batch=self.overfit_one_batch,
            sources=sources,
        )
        resumed = check_output(path, request, resume=self.resume != "never", overwrite=self.overwrite)
        if self.resumed_folder is not None and not resumed:
            raise RecipeError(f"--resume {path}: there is no run to resume")
        return resumed

    @contextmanager
    def context(self, recipe: Recipe, devices: Devices) -> Iterator[RunContext]:
        """Set up Accelerate's processes, the run folder and the display. Nothing is written yet."""
        from everest.system.accelerator import decide_on_main, end_training_on_error, make_accelerator
        from everest.system.run_folder import RunFolder, default_folder
        from everest.train.context import RunContext
        from everest.train.tracking import check_tracker

        def find_folder() -> tuple[RunFolder, bool]:
            path = self.resumed_folder or self.output or default_folder(self.command, recipe.name)
            return RunFolder(path), self.may_resume(recipe, path)

        check_tracker(self.tracker.value)
        accelerator = make_accelerator(
            recipe.train.precision, tf32=recipe.train.tf32, cpu=devices.kind == "cpu"
        )
        with end_training_on_error(accelerator), Display(quiet=self.quiet or not is_main()) as display:
            run, resumed = decide_on_main(accelerator, find_folder)
            yield RunContext(
                accelerator=accelerator,
                run=run,
                resumed=resumed,
                report=display.report,
                tracker=self.tracker.value,
                one_batch=self.overfit_one_batch,
            )


def training_command(name: str, **own_options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn `run(recipe, options, …)` into a typer command with all options of `TrainOptions`.

    Args:
        name: of the command.
        own_options: typer annotations of further, required options; `run` gets their values by name.
    """
    hints = get_type_hints(TrainOptions, include_extras=True)
    shared = [field for field in fields(TrainOptions) if field.name not in ("command", "init")]
    parameters = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in shared[1:]
    ]
    required = [
        Parameter(option, Parameter.KEYWORD_ONLY, annotation=annotation)
        for option, annotation in {"recipe": hints["recipe"], **own_options}.items()
    ]

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            own_values = {option: values.pop(option) for option in own_options}
            options = TrainOptions(command=name, **values)
            recipe = o.read_recipe(
                options.recipe,
                data=options.data,
                overrides=options.overrides,
                precision=options.precision,
                seed=options.seed,
            )
            if options.print_config:
                from everest.config.recipe import dump_recipe

                typer.echo(dump_recipe(recipe), nl=False)
            else:
                run(recipe, options, **own_values)

        # typer reads the options of a command from its signature and its annotations.
        command.__signature__ = Signature([*required, *parameters])  # type: ignore[attr-defined]
        command.__annotations__ = {part.name: part.annotation for part in (*required, *parameters)}
        command.__doc__ = run.__doc__
        return command

    return decorate


def launch(gpus: str, processes: int | None) -> Devices:
    """Return the devices of this process, or start the processes of the run and exit with their code."""
    if is_launched():
        return Devices(kind="cpu" if gpus == "cpu" else "cuda")
    devices = read_devices(gpus, processes)
    if devices.processes > 1:
        # Only `python -m` searches the working directory for modules first.
        by_module = Path(sys.argv[0]).name == "__main__.py"
        this_program = [sys.executable, *([] if by_module else ["-P"]), "-m", "everest_cli"]
        ended = run_processes(devices, [*this_program, *sys.argv[1:]])
        typer.echo(ended.errors, err=True, nl=False)
        raise typer.Exit(ended.code)
    os.environ.update(visible_gpus(devices.ids))
    return devices


def print_trial(training: Training, losses_of: LossesOf) -> None:
    """Run two forward and backward passes and print the estimates for the whole run, for --dry-run."""
    from everest.train.setup import try_one_pass

    estimates = try_one_pass(training, losses_of)
    estimates["peak_memory"] = f"{estimates.pop('memory_bytes') / 2**30:.2f} GiB"
    for name, value in estimates.items():
        typer.echo(f"{name.replace('_', ' ')}: {value}")


@contextmanager
def start_or_resume(training: Training, recipe: Recipe, *, init: str | None) -> Iterator[None]:
    """Write the first files of a run, or resume the run in its folder; the loop goes inside.

    The tracker ends with the run, even after an error: another stage may follow in this process.
    """
    from everest.config.recipe import dump_recipe
    from everest.train.setup import start_run

    try:
        start_run(training, dump_recipe(recipe), init=init)
        yield
    finally:
        if training.tracker is not None:
            training.tracker.finish()


def finish(training: Training) -> None:
    """Print the run folder, once over all processes."""
    training.accelerator.wait_for_everyone()
    training.accelerator.end_training()
    if is_main():
        typer.echo(training.run.path)
