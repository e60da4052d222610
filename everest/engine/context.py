"""The options of a run that are not in its recipe, its processes, and its folder: new, resumed or refused.

Leftovers of killed processes are ignored: a run that has not started, and unfinished files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from accelerate import Accelerator

from everest.config.recipe import RESUME_MAY_CHANGE, flat_values, load_recipe, recipe_values
from everest.config.run_options import RunOptions
from everest.config.settings import Recipe
from everest.errors import EnvironmentProblem, OptionError, RecipeError, differing, first_names
from everest.system.accelerator import decide_on_main, make_accelerator
from everest.system.events import Report, notice, warning
from everest.system.files import IN_USE_FIX, is_unfinished
from everest.system.launch import find_lost_peer
from everest.system.locks import refuse_running
from everest.system.private_apis import abort_process_group
from everest.system.run_folder import (
    ENVIRONMENT_FILE,
    RECIPE_FILE,
    RUN_FILES,
    STATE_FOLDER,
    TOKENIZER_FOLDER,
    InitFile,
    RunFolder,
    is_tokenizer_file,
    tokenizer_file,
)
from everest.system.signals import Stopped

if TYPE_CHECKING:
    from everest.checkpoints.init import InitWeights


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The processes, the folder and the display of a run."""

    accelerator: Accelerator
    run_folder: RunFolder
    resumed: bool  # the folder already holds the run
    report: Report
    options: RunOptions
    init_file: InitFile | None = None  # the weights that the run starts from; None: from scratch
    # On a GPU: the numbers of a step are read, and files are written, while it computes the next step.
    overlaps: bool = False
    warned: set[str] = field(default_factory=set)  # kinds of warnings that have been shown

    @property
    def bytes_per_value(self) -> int:
        """The bytes of a value that is saved for the backward pass, by precision."""
        return 4 if self.accelerator.mixed_precision == "no" else 2

    def notice(self, *texts: str | None) -> None:
        """Show each line of text that is not None to the user."""
        for text in filter(None, texts):
            self.report(notice(text))

    def warn(self, *texts: str | None) -> None:
        """Show each warning that is not None to the user."""
        for text in filter(None, texts):
            self.report(warning(text))

    def warn_once(self, kind: str, text: str | None) -> None:
        """Show a warning, if there is one and none of its kind has been shown."""
        if text is not None and kind not in self.warned:
            self.warned.add(kind)
            self.warn(text)

    def read_init_weights(self) -> InitWeights | None:
        """Read the weights that the run starts from, if any, and show which they are."""
        if self.init_file is None:
            return None

        from everest.checkpoints.init import read_init

        init_weights = read_init(self.init_file, resumed=self.run_folder if self.resumed else None)
        if init_weights.weights is not None:
            self.notice(init_weights.notice())
        return init_weights


@contextmanager
def run_context(
    options: RunOptions, recipe: Recipe, report: Report, *, ignores: Callable[[str], bool] = lambda key: False
) -> Iterator[RunContext]:
    """Set up Accelerate's processes and the run folder; the run goes inside. Nothing is written yet.

    Args:
        ignores: whether the stage does not depend on the setting of this key, so that a resume may change it.
    """
    tracker = options.tracker
    if tracker != "none" and find_spec(tracker) is None:
        raise EnvironmentProblem(
            f"--tracker {tracker}: the package is not installed; run `pip install {tracker}`"
        )
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=options.cpu)
    init_file = None
    try:
        folder = decide_on_main(accelerator, lambda: options.folder(recipe.name))
        options = replace(options, output=folder)
        if options.init is not None:
            from everest.checkpoints.init import find_init  # here: it reads weights of other programs, too

            with accelerator.main_process_first():  # which downloads what the others then find
                init_file = find_init(
                    options.init, output=folder, overwrite=options.overwrite, decoder=options.decoder
                )
        elif options.decoder is not None:
            raise RecipeError("decoder: needs init (--init), whose decoder it keeps or replaces")
        run = RunFolder(folder)
        resumed = decide_on_main(accelerator, lambda: _is_resumed(run, recipe, options, init_file, ignores))
        yield RunContext(
            accelerator=accelerator,
            run_folder=run,
            resumed=resumed,
            report=report,
            options=options,
            init_file=init_file,
            overlaps=accelerator.device.type == "cuda",
        )
    except BaseException as error:
        lost = find_lost_peer(error)  # known only while the connections are open
        # A failing process closes its connections, which might otherwise abort it while it exits. NCCL ends a
        # communicator only when all its processes do, and the others may wait in a collective for this one.
        # After a signal, all processes have left the loop.
        if dist.is_initialized() and dist.get_backend() == "nccl" and not isinstance(error, Stopped):
            abort_process_group()
        accelerator.end_training()
        if lost is not None:
            raise lost from error
        raise


def _is_resumed(
    run: RunFolder,
    recipe: Recipe,
    options: RunOptions,
    init_file: InitFile | None,
    ignores: Callable[[str], bool],
) -> bool:
    """Whether the folder already holds the run; RecipeError if the run cannot use the folder."""
    names: set[str] = set()  # files of a run that has started, or of other programs
    if run.path.exists():
        if not run.path.is_dir():
            raise OptionError(f"output {run.path}: a file is in the way; choose another folder")
        refuse_running(run.path)
        names = {file.name for file in run.path.iterdir() if not is_unfinished(file.name)}
        # The tokenizer's run in the folder may be at any step: it is trained first.
        names.discard(TOKENIZER_FOLDER)
        if run.state.is_dir() and all(is_unfinished(file.name) for file in run.state.iterdir()):
            names.discard(STATE_FOLDER)
        if run.has_environment():
            names.discard(ENVIRONMENT_FILE)
    if not names:
        if options.must_exist:
            raise OptionError(f"resume {run.path}: there is no run to resume")
        return False
    if options.overwrite:
        _check_overwrite(run, recipe, options, init_file)
        return False
    _check_resume(run, recipe, options, init_file, ignores)
    return True


def _check_overwrite(run: RunFolder, recipe: Recipe, options: RunOptions, init_file: InitFile | None) -> None:
    """Refuse to remove what the run reads, and what no run has written."""
    inputs = [
        options.recipe_file,
        init_file and init_file.file,
        recipe.tokenizer and recipe.tokenizer.checkpoint,
        recipe.pretrain.teacher if options.stage == "pretrain" else None,
    ]
    folder, tokenizer = run.path.resolve(), tokenizer_file(run.path).resolve()
    lost = [
        f"{name}, which the run reads"
        for name in map(Path, filter(None, inputs))
        # The stage of the tokenizer decides about its own.
        if name.resolve() != tokenizer and name.resolve().is_relative_to(folder)
    ]
    if not run.has_environment():
        foreign = [run.path / name for name in RUN_FILES if (run.path / name).exists()]
        lost += [f"{file}, which no run has written" for file in foreign]
    if lost:
        raise OptionError(f"output {run.path}: --overwrite would remove {lost[0]}; choose another folder")


def _check_resume(
    run: RunFolder,
    recipe: Recipe,
    options: RunOptions,
    init_file: InitFile | None,
    ignores: Callable[[str], bool],
) -> None:
    """Refuse a folder without a run, and a run with other settings."""
    folder = f"output {run.path}"
    if not (run.path / RECIPE_FILE).is_file():
        raise OptionError(f"{folder}: is not a run folder; choose another, or use --overwrite")
    if options.resume == "never":
        raise OptionError(f"{folder}: holds a run, and resume is off; {IN_USE_FIX}")
    if not run.has_environment():
        raise OptionError(
            f"{folder}: {ENVIRONMENT_FILE} is missing or not of a run; restore it, or choose another folder"
        )

    saved = flat_values(recipe_values(load_recipe(run.path / RECIPE_FILE, imports=False)))
    given = flat_values(recipe_values(recipe))
    may_change = {*RESUME_MAY_CHANGE, "train.micro_batch"}  # the plan refuses passes of another size
    may_change |= set(filter(ignores, saved.keys() | given.keys()))
    # A frozen model may have been moved: its hash is compared with that in the weights when it is read.
    for key in ("tokenizer.checkpoint", "pretrain.target.teacher"):
        old, new = saved.get(key), given.get(key)
        is_own = is_tokenizer_file(str(old)) and Path(str(new)) == tokenizer_file(run.path).resolve()
        if old and new and (is_own or run.weights.is_file()):
            may_change.add(key)
    for key in may_change:
        saved.pop(key, None)
        given.pop(key, None)

    environment = run.read_environment()
    before = {"command": environment.stage, "--overfit-one-batch": environment.one_batch}
    now = {"command": options.stage, "--overfit-one-batch": options.one_batch}
    before |= {"--init": environment.init, "--decoder": environment.decoder if init_file else None}
    now |= {"--init": init_file and init_file.file, "--decoder": init_file and init_file.decoder}
    if differences := [*differing(before, now), *differing(saved, given)]:
        shown = first_names(differences, 3)
        raise OptionError(
            f"{folder}: holds a run with different settings: {shown}; use its values, or {IN_USE_FIX}"
        )
