"""The context of a run, which all of its stages share."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator

from everest.system.events import Report
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
    one_batch: bool = False  # overfit the first batch, to check that the model can learn at all
