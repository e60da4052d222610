"""The parts of a run that no recipe has: the choices of its user, and what all of its stages share."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator

from everest.errors import RecipeError
from everest.system.events import Report, notice
from everest.system.run_folder import Decoder, Init, RunFolder

if TYPE_CHECKING:
    from everest.checkpoints.init import InitWeights


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The choices of a run that are not in its recipe, as its command or a notebook gives them."""

    command: str  # the stage, and the default run folder: pretrain, finetune or train-tokenizer
    recipe_file: str  # or the name of a recipe
    output: str | Path | None = None  # the run folder
    resume: str = "auto"  # auto, never, or the folder of the run to resume
    overwrite: bool = False
    cpu: bool = False
    tracker: str = "none"  # or tensorboard, wandb
    one_batch: bool = False  # overfit the first batch, to check that the model can learn at all
    init: str | Path | None = None  # run folder or weights to start from; None or "none": from scratch
    decoder: Decoder | None = None  # of `init`; None: keep it if it fits

    @property
    def resumed_folder(self) -> Path | None:
        """The run folder that `resume` names."""
        if self.resume in ("auto", "never"):
            return None
        if self.output or self.overwrite:
            raise RecipeError("--resume DIR continues in DIR: leave out --output and --overwrite")
        return Path(self.resume)

    def folder(self, recipe: str) -> Path:
        """The run folder: the named one, else runs/COMMAND/RECIPE-TIME, numbered if that exists already."""
        named = self.resumed_folder or self.output
        if named:
            return Path(named)
        folder = Path("runs") / self.command / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
        numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
        return next(path for path in itertools.chain([folder], numbered) if not path.exists())


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The processes, the folder and the display of a run."""

    accelerator: Accelerator
    run: RunFolder
    resumed: bool  # the folder already holds the run
    report: Report
    options: RunOptions
    init: Init | None = None  # the weights that the run starts from
    # On a GPU: the numbers of a step are read, and files are written, while it computes the next step.
    overlaps: bool = False

    def notice(self, *texts: str | None) -> None:
        """Show each line of text that is not None to the user."""
        for text in texts:
            if text is not None:
                self.report(notice(text))

    def read_init(self) -> InitWeights | None:
        """Read the weights that the run starts from, if any, and show which they are."""
        if self.init is None:
            return None

        from everest.checkpoints.init import read_init

        init = read_init(self.init, resumed=self.run if self.resumed else None)
        if init.weights is not None:
            self.notice(init.notice())
        return init
