"""What `pretrain` and `finetune` do alike: processes, run folder, the loop with its display.

LVMAE's two stages in one command: the tokenizer is trained first where none is given.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from everest.errors import RecipeError
from everest.system.launch import Devices, is_launched, is_main, read_devices, run_processes, visible_gpus
from everest_cli.output import Display

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.system.launch import Devices
    from everest.system.run_folder import RunFolder
    from everest.train.setup import LossesOf, RunContext
    from everest.train.training import Training


def launch(gpus: str, processes: int | None) -> Devices:
    """The devices of this process; where more are due, start them and leave with their exit code."""
    if is_launched():
        return Devices(kind="cpu" if gpus == "cpu" else "cuda")
    devices = read_devices(gpus, processes)
    if devices.processes > 1:
        ended = run_processes(devices, [*_this_program(), *sys.argv[1:]])
        typer.echo(ended.errors, err=True, nl=False)
        raise typer.Exit(ended.code)
    os.environ.update(visible_gpus(devices.ids))
    return devices


def _this_program() -> list[str]:
    """What starts everest again. Only `python -m` looks for modules in the working directory first."""
    by_module = Path(sys.argv[0]).name == "__main__.py"
    return [sys.executable, *([] if by_module else ["-P"]), "-m", "everest_cli"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What the options of a training command say beside its recipe."""

    command: str
    recipe: str  # as the user named it
    output: Path | None
    resume: str
    overwrite: bool
    gpus: str
    processes: int | None
    init: str | None = None
    tracker: str = "none"
    one_batch: bool = False
    quiet: bool = False

    def launch(self) -> Devices:
        """See the function of this name."""
        return launch(self.gpus, self.processes)

    @contextmanager
    def place(self, recipe: Recipe, devices: Devices) -> Iterator[RunContext]:
        """Where the stage runs: Accelerate's processes, the run folder, a display."""
        from everest.system.accelerator import decide_on_main, end_training_on_error, make_accelerator
        from everest.train.setup import RunContext
        from everest.train.tracking import check_tracker

        check_tracker(self.tracker)
        accelerator = make_accelerator(
            recipe.train.precision, tf32=recipe.train.tf32, cpu=devices.kind == "cpu"
        )
        with end_training_on_error(accelerator), Display(quiet=self.quiet or not is_main()) as display:
            run, resumed = decide_on_main(accelerator, lambda: self._run(recipe))
            yield RunContext(
                accelerator=accelerator,
                run=run,
                resumed=resumed,
                report=display.report,
                tracker=self.tracker,
                one_batch=self.one_batch,
            )

    def _run(self, recipe: Recipe) -> tuple[RunFolder, bool]:
        """The run folder, and whether it continues the run that is there. Nothing is written yet."""
        from everest.system.run_folder import RunFolder, default_folder

        path = self.named or self.output or default_folder(self.command, recipe.name)
        return RunFolder(path), self.check(recipe, path)

    @property
    def named(self) -> Path | None:
        """The run that --resume names.

        Raises:
            RecipeError: another option names one, too.
        """
        if self.resume in ("auto", "never"):
            return None
        if self.output or self.overwrite:
            raise RecipeError("--resume DIR goes on in DIR: leave out --output and --overwrite")
        return Path(self.resume)

    def check(self, recipe: Recipe, path: Path) -> bool:
        """Whether a run into `path` continues the one that is there. Nothing is written.

        Raises:
            RecipeError: it may not go there.
        """
        from everest.train.resume import RunRequest, check_output

        sources = [Path(source) for source in (self.recipe, self.init) if source is not None]
        asked = RunRequest(recipe=recipe, init=self.init, one_batch=self.one_batch, sources=sources)
        resumed = check_output(path, asked, resume=self.resume != "never", overwrite=self.overwrite)
        if self.named is not None and not resumed:
            raise RecipeError(f"--resume {path}: no run to go on with")
        return resumed


def print_recipe(recipe: Recipe) -> None:
    """The resolved recipe, as --print-config shows it."""
    from everest.config.recipe import dump_recipe

    typer.echo(dump_recipe(recipe), nl=False)


def print_trial(training: Training, losses_of: LossesOf) -> None:
    """Run two passes and print what they say of the whole run, as --dry-run does."""
    from everest.train.setup import try_one_pass

    told = try_one_pass(training, losses_of)
    told["peak_memory"] = f"{told.pop('memory_bytes') / 2**30:.2f} GiB"
    for name, value in told.items():
        typer.echo(f"{name.replace('_', ' ')}: {value}")


@contextmanager
def start_or_resume(
    training: Training, place: RunContext, recipe: Recipe, *, init: str | None
) -> Iterator[None]:
    """Around the loop: the run's first files are written, or the run that is there goes on.

    However it ends, its tracker ends with it: another stage may follow in this process.
    """
    from everest.config.recipe import dump_recipe
    from everest.train.setup import start_run

    try:
        start_run(training, place, dump_recipe(recipe), init=init)
        yield
    finally:
        if training.tracker is not None:
            training.tracker.finish()


def finish(training: Training, place: RunContext) -> None:
    """Print the run folder, once over all processes."""
    training.accelerator.wait_for_everyone()
    training.accelerator.end_training()
    if is_main():
        typer.echo(place.run.path)
