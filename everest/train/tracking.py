"""TensorBoard or Weights & Biases beside metrics.jsonl, through Accelerate."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from everest.errors import EnvironmentProblem
from everest.system.run_folder import RunFolder

PICTURES: Final = 20  # ours: reconstructions shown over a whole run


class Tracker(Protocol):
    """What Accelerate's trackers have in common."""

    name: str

    def log(self, values: dict[str, Any], step: int) -> None: ...

    def log_images(self, values: dict[str, Any], step: int, **options: Any) -> None: ...

    def finish(self) -> None:
        """Write out what is left."""
        ...


def make_tracker(name: str, run: RunFolder) -> Tracker | None:
    """The tracker of that name, writing below the run folder; None for `none`.

    Weights & Biases works offline unless WANDB_MODE says otherwise.

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
    """Raise EnvironmentProblem when the package of a tracker is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise EnvironmentProblem(f"--tracker {name}: the package is not installed; run `pip install {name}`")


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a row of metrics.jsonl can be drawn as a curve."""
    return {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}


def picture_is_due(epoch: int, epochs: int) -> bool:
    """Whether the epoch that has just ended, from 1, is shown."""
    return epoch % max(1, epochs // PICTURES) == 0


def show(tracker: Tracker, name: str, rows: Iterable[Tensor], step: int) -> None:
    """Log clips (T, H, W, 3) float32 in [0, 1] as one picture, one below the other, frames side by side."""
    lines = [row.permute(1, 0, 2, 3).flatten(1, 2) for row in rows]  # (H, T * W, 3)
    picture = torch.cat(lines)[None].numpy()  # (1, rows * H, T * W, 3)
    # TensorBoard expects channels first unless told; W&B takes no such word.
    options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
    tracker.log_images({name: picture}, step=step, **options)
