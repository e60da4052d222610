"""TensorBoard or Weights & Biases in addition to metrics.jsonl, through Accelerate."""

from __future__ import annotations

import importlib.util
import os
from typing import Any, Final, Protocol

from everest.errors import EnvironmentProblem
from everest.system.run_folder import RunFolder
from everest.train.plan import StagePlan

IMAGES: Final = 20  # our choice: reconstructions shown over the whole run


class Tracker(Protocol):
    """The methods of Accelerate's trackers."""

    name: str

    def log(self, values: dict[str, Any], step: int) -> None: ...

    def log_images(self, values: dict[str, Any], step: int, **options: Any) -> None: ...

    def finish(self) -> None:
        """Write all buffered values."""
        ...


def make_tracker(name: str, run: RunFolder) -> Tracker | None:
    """Start the tracker of that name, which writes below the run folder; None for `none`.

    Weights & Biases works offline unless WANDB_MODE is set.

    Raises:
        EnvironmentProblem: its package is not installed.
    """
    if name == "none":
        return None
    check_tracker(name)
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    if name == "tensorboard":
        tracker = TensorBoardTracker(run.path.name, logging_dir=run.path / "tensorboard")
    else:
        os.environ.setdefault("WANDB_MODE", "offline")
        tracker = WandBTracker("everest", name=run.path.name, dir=str(run.path))
    tracker.start()
    return tracker


def check_tracker(name: str) -> None:
    """Raise EnvironmentProblem if the package of a tracker is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise EnvironmentProblem(f"--tracker {name}: the package is not installed; run `pip install {name}`")


def image_is_due(plan: StagePlan, step: int) -> bool:
    """Whether to show a reconstruction at the checkpoint after `step` updates."""
    checkpoint, checkpoints = step // plan.checkpoint_steps, plan.steps // plan.checkpoint_steps
    return checkpoint % max(1, checkpoints // IMAGES) == 0
