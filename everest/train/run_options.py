"""Where a stage runs: its device, its run folder, and whether it resumes the run that is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from everest.config.recipe import dump_recipe
from everest.config.settings import Recipe
from everest.errors import RecipeError
from everest.system.accelerator import decide_on_main, end_training_on_error, make_accelerator
from everest.system.events import Report
from everest.system.locks import claimed
from everest.system.run_environment import Init
from everest.system.run_folder import RunFolder, default_folder
from everest.train.context import RunContext
from everest.train.resume import RunRequest, check_output
from everest.train.setup import start_run
from everest.train.tracking import check_tracker
from everest.train.training import Training


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The choices of a run that are not in its recipe."""

    command: str  # names the default run folder
    recipe_file: str  # or the name of a recipe
    output: Path | None = None
    resume: str = "auto"  # auto, never, or the folder of the run to resume
    overwrite: bool = False
    cpu: bool = False
    tracker: str = "none"
    one_batch: bool = False  # overfit the first batch
    init: Init | None = None  # the weights that the run starts from

    @property
    def resumed_folder(self) -> Path | None:
        """The run folder that `resume` names.

        Raises:
            RecipeError: another option names a folder as well.
        """
        if self.resume in ("auto", "never"):
            return None
        if self.output or self.overwrite:
            raise RecipeError("--resume DIR continues in DIR: leave out --output and --overwrite")
        return Path(self.resume)

    def may_resume(self, recipe: Recipe, path: Path) -> bool:
        """Check whether a run in `path` resumes an earlier one. Nothing is written.

        Raises:
            RecipeError: the run may not use this folder.
        """
        tokenizer = None if recipe.tokenizer is None else recipe.tokenizer.checkpoint
        init = None if self.init is None else self.init.file
        sources = [Path(source) for source in (self.recipe_file, init, tokenizer) if source is not None]
        request = RunRequest(
            stage=self.command,
            recipe=recipe,
            init=self.init,
            one_batch=self.one_batch,
            sources=sources,
        )
        resumed = check_output(path, request, resume=self.resume != "never", overwrite=self.overwrite)
        if self.resumed_folder is not None and not resumed:
            raise RecipeError(f"--resume {path}: there is no run to resume")
        return resumed

    @contextmanager
    def context(self, recipe: Recipe, report: Report) -> Iterator[RunContext]:
        """Set up Accelerate's processes and the run folder. Nothing is written yet."""

        def find_folder() -> tuple[RunFolder, bool]:
            path = self.resumed_folder or self.output or default_folder(self.command, recipe.name)
            return RunFolder(path), self.may_resume(recipe, path)

        check_tracker(self.tracker)
        accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=self.cpu)
        with end_training_on_error(accelerator):
            run, resumed = decide_on_main(accelerator, find_folder)
            yield RunContext(
                accelerator=accelerator,
                run=run,
                resumed=resumed,
                report=report,
                tracker=self.tracker,
                overlaps=accelerator.device.type == "cuda",
                init=self.init,
                one_batch=self.one_batch,
            )


@contextmanager
def start_or_resume(training: Training, recipe: Recipe) -> Iterator[None]:
    """Write the first files of a run, or resume the run in its folder; the loop goes inside.

    The tracker ends with the run, even after an error: another stage may follow in this process. Until then
    no other process can train the run.

    Raises:
        RecipeError: another process trains the run.
    """
    main = training.accelerator.is_main_process
    with claimed(training.run.path) if main else nullcontext():
        try:
            start_run(training, dump_recipe(recipe))
            yield
        finally:
            if training.tracker is not None:
                training.tracker.finish()
