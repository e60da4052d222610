"""The processes of a run, with its folder, its options and its display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch.distributed as dist
from accelerate import Accelerator

from everest.config.run_options import RunOptions
from everest.config.settings import Recipe
from everest.engine.folder_check import FolderCheck, FolderRules
from everest.errors import EnvironmentProblem, RecipeError
from everest.system.accelerator import decide_on_main, make_accelerator
from everest.system.events import Emit, notice, warning
from everest.system.launch import find_lost_peer
from everest.system.private_apis import abort_process_group
from everest.system.run_folder import InitFile, RunFolder
from everest.system.signals import Stopped

if TYPE_CHECKING:
    from everest.checkpoints.init import InitWeights


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The processes, the folder and the display of a run."""

    accelerator: Accelerator
    run_folder: RunFolder
    resumed: bool  # the folder already holds the run
    emit: Emit
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
            self.emit(notice(text))

    def warn(self, *texts: str | None) -> None:
        """Show each warning that is not None to the user."""
        for text in filter(None, texts):
            self.emit(warning(text))

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
def run_context(options: RunOptions, recipe: Recipe, emit: Emit, rules: FolderRules) -> Iterator[RunContext]:
    """Set up Accelerate's processes and the run folder; the run goes inside. Nothing is written yet.

    Args:
        rules: what the stage declares about its folder.
    """
    tracker = options.tracker
    if tracker != "none" and find_spec(tracker) is None:
        raise EnvironmentProblem(
            f"--tracker {tracker}: the package is not installed; run `pip install {tracker}`"
        )
    accelerator = make_accelerator(recipe.train.precision, cpu=options.cpu)
    init_file = None
    try:
        folder = decide_on_main(accelerator, lambda: options.folder(recipe.name))
        options = replace(options, output=folder)
        if options.init is not None:
            from everest.checkpoints.init import init_of_run  # here: it reads weights of other programs, too

            with accelerator.main_process_first():  # which downloads what the others then find
                init_file, _ = init_of_run(options)
        elif options.decoder is not None:
            raise RecipeError("decoder: needs init (--init), whose decoder it keeps or replaces")
        check = FolderCheck(
            run=RunFolder(folder), recipe=recipe, options=options, init_file=init_file, rules=rules
        )
        resumed = decide_on_main(accelerator, check.is_resumed)
        yield RunContext(
            accelerator=accelerator,
            run_folder=check.run,
            resumed=resumed,
            emit=emit,
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
