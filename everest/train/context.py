"""The context of a run, which all of its stages share; run_options needs set-up, which needs this file."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator

from everest.checkpoints.init import Start, read_start
from everest.system.events import Report
from everest.system.run_environment import Init
from everest.system.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The processes, the folder and the display of a run."""

    accelerator: Accelerator
    run: RunFolder
    resumed: bool  # the folder already holds the run
    report: Report
    tracker: str = "none"  # see everest.train.tracking
    # On a GPU: the numbers of a step are read, and files are written, while it computes the next step.
    overlaps: bool = False
    init: Init | None = None  # the weights that the run starts from
    one_batch: bool = False  # overfit the first batch, to check that the model can learn at all

    def read_start(self) -> Start | None:
        """Read the weights that the run starts from, if any.

        Raises:
            CheckpointError: see `everest.checkpoints.init.read_start`.
        """
        run = self.run if self.resumed else None
        return None if self.init is None else read_start(self.init, resumed=run)
