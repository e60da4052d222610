"""TensorBoard or Weights & Biases in addition to metrics.jsonl: one tracker run over all resumes.

The identity of the tracker's run is in env.json, under `tracker`.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from typing import Any, Final, Protocol

from everest.config.yaml import read_yaml
from everest.engine.plan import StagePlan
from everest.errors import EnvironmentProblem
from everest.system.run_folder import RECIPE, RunFolder

IMAGES: Final = 20  # our choice: reconstructions shown over the whole run
PROJECT: Final = "everest"  # of Weights & Biases
TRACKER: Final = "tracker"  # in env.json: the name of the last tracker, and the id of its run


class Tracker(Protocol):
    """The methods of Accelerate's trackers that a run uses."""

    @property
    def name(self) -> str:
        """As --tracker has it."""
        ...

    def log(self, values: dict[str, Any], step: int) -> None: ...

    def log_images(self, values: dict[str, Any], step: int, **options: Any) -> None: ...

    def finish(self) -> None:
        """Write all buffered values."""
        ...


def make_tracker(name: str, run: RunFolder, *, steps_done: int, resumed: bool) -> Tracker | None:
    """Start the tracker of that name, or continue its run; it knows the resolved recipe. None for `none`.

    Both write below the run folder. Weights & Biases works offline unless WANDB_MODE is set.

    Args:
        steps_done: of a resumed run; TensorBoard replaces values that were logged after them.
        resumed: whether the run is resumed.
    """
    if name == "none":
        return None
    recipe_text = (run.path / RECIPE).read_text(encoding="utf-8")
    if name == "tensorboard":  # its run is a folder, so that it has no id
        from accelerate.tracking import TensorBoardTracker

        purge_step = steps_done + 1 if resumed else None
        board = TensorBoardTracker(run.path.name, logging_dir=run.path / name, purge_step=purge_step)
        board.start()
        if not resumed:
            board.writer.add_text("recipe", f"```yaml\n{recipe_text}```", global_step=0)
        return board

    from accelerate.tracking import WandBTracker

    known = run.read_env(TRACKER) or {}
    run_id = known["id"] if known.get("name") == name else secrets.token_hex(8)
    os.environ.setdefault("WANDB_MODE", "offline")
    tracker = WandBTracker(PROJECT, name=run.path.name, dir=str(run.path), id=run_id, resume="allow")
    tracker.start()
    tracker.store_init_configuration(read_yaml(recipe_text, RECIPE))
    run.note(TRACKER, {"name": name, "id": run_id})
    return tracker


def check_tracker(name: str) -> None:
    """Raise EnvironmentProblem if the package of a tracker is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise EnvironmentProblem(f"--tracker {name}: the package is not installed; run `pip install {name}`")


def image_is_due(plan: StagePlan, step: int) -> bool:
    """Whether to show a reconstruction at the checkpoint after `step` updates."""
    checkpoint, checkpoints = step // plan.checkpoint_steps, plan.steps // plan.checkpoint_steps
    return checkpoint % max(1, checkpoints // IMAGES) == 0
