"""TensorBoard, Weights & Biases or MLflow in addition to metrics.jsonl: one tracker run over all resumes.

The identity of the tracker's run is in env.json, under `tracker`.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Callable
from typing import Any, Final, Protocol

from everest.config.yaml import read_yaml
from everest.errors import EnvironmentProblem
from everest.system.run_folder import RECIPE, RunFolder
from everest.train.plan import StagePlan

IMAGES: Final = 20  # our choice: reconstructions shown over the whole run
PROJECT: Final = "everest"  # of Weights & Biases; the experiment of MLflow
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


def make_tracker(
    name: str,
    run: RunFolder,
    *,
    notify: Callable[[str], None],
    steps_done: int = 0,
    resumed: bool = False,
) -> Tracker | None:
    """Start the tracker of that name, or continue its run; it knows the resolved recipe. None for `none`.

    All of them write below the run folder by default. Weights & Biases works offline unless WANDB_MODE is
    set, and MLflow uses MLFLOW_TRACKING_URI if that is set.

    Args:
        notify: is called with a warning if the tracker fails later.
        steps_done: of a resumed run; TensorBoard replaces values that were logged after them.
        resumed: whether the run is resumed.
    Raises:
        EnvironmentProblem: its package is not installed.
    """
    if name == "none":
        return None
    check_tracker(name)
    recipe_text = (run.path / RECIPE).read_text(encoding="utf-8")
    if name == "tensorboard":
        return _tensorboard(run, recipe_text, purge_step=steps_done + 1 if resumed else None)
    known = run.read_env(TRACKER) or {}
    run_id = known.get("id") if known.get("name") == name else None
    settings = read_yaml(recipe_text, RECIPE)
    if name == "wandb":
        run_id = run_id or secrets.token_hex(8)
        tracker = _wandb(run, run_id, settings)
    else:
        from everest.train.mlflow_tracking import MLflowRun

        tracker = MLflowRun.start(run, PROJECT, run_id=run_id, settings=settings, notify=notify)
        run_id = tracker.run_id
    run.note(TRACKER, {"name": name, "id": run_id})
    return tracker


def _tensorboard(run: RunFolder, recipe_text: str, *, purge_step: int | None) -> Tracker:
    """Its run is a folder, so that it has no id."""
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker(run.path.name, logging_dir=run.path / "tensorboard", purge_step=purge_step)
    tracker.start()
    if purge_step is None:
        tracker.writer.add_text("recipe", f"```yaml\n{recipe_text}```", global_step=0)
    return tracker


def _wandb(run: RunFolder, run_id: str, settings: dict[str, Any]) -> Tracker:
    from accelerate.tracking import WandBTracker

    os.environ.setdefault("WANDB_MODE", "offline")
    tracker = WandBTracker(PROJECT, name=run.path.name, dir=str(run.path), id=run_id, resume="allow")
    tracker.start()
    tracker.store_init_configuration(settings)
    return tracker


def check_tracker(name: str) -> None:
    """Raise EnvironmentProblem if the package of a tracker is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise EnvironmentProblem(f"--tracker {name}: the package is not installed; run `pip install {name}`")


def image_is_due(plan: StagePlan, step: int) -> bool:
    """Whether to show a reconstruction at the checkpoint after `step` updates."""
    checkpoint, checkpoints = step // plan.checkpoint_steps, plan.steps // plan.checkpoint_steps
    return checkpoint % max(1, checkpoints // IMAGES) == 0
