"""TensorBoard or Weights & Biases in addition to metrics.jsonl: one tracker run over all resumes.

The identity of the tracker's run is in env.json, under `tracker`.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from typing import TYPE_CHECKING, Final

from everest.config.yaml import read_yaml
from everest.errors import EnvironmentProblem
from everest.system.run_folder import RECIPE, RunFolder

if TYPE_CHECKING:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    Tracker = TensorBoardTracker | WandBTracker

PROJECT: Final = "everest"  # of Weights & Biases
TRACKER: Final = "tracker"  # in env.json: the name of the last tracker, and the id of its run


def make_tracker(name: str, run: RunFolder, *, steps_done: int | None) -> Tracker:
    """Start the tracker of that name, or continue its run; it knows the resolved recipe.

    Both write below the run folder. Weights & Biases works offline unless WANDB_MODE is set.

    Args:
        steps_done: of a resumed run, else None; TensorBoard replaces values that were logged after them.
    """
    recipe_text = (run.path / RECIPE).read_text(encoding="utf-8")
    if name == "tensorboard":  # its run is a folder, so that it has no id
        from accelerate.tracking import TensorBoardTracker

        purge_step = None if steps_done is None else steps_done + 1
        board = TensorBoardTracker(run.path.name, logging_dir=run.path / name, purge_step=purge_step)
        board.start()
        if steps_done is None:
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
