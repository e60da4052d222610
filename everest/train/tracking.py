"""TensorBoard, Weights & Biases or MLflow in addition to metrics.jsonl: one tracker run over all resumes.

The identity of the tracker's run is in env.json, under `tracker`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final, Protocol

from everest.config.yaml import read_yaml
from everest.errors import EnvironmentProblem, shown
from everest.system.json_text import json_text
from everest.system.run_folder import RECIPE, RunFolder
from everest.train.plan import StagePlan
from everest.train.resume import flat

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
    steps_done: int,
    resumed: bool,
) -> Tracker | None:
    """Start the tracker of that name, or continue its run; it knows the resolved recipe. None for `none`.

    All of them write below the run folder by default. Weights & Biases works offline unless WANDB_MODE is
    set, and MLflow uses MLFLOW_TRACKING_URI if that is set.

    Args:
        notify: is called with a warning if the tracker fails later.
        steps_done: of a resumed run; TensorBoard replaces values that were logged after them.
        resumed: whether the run is resumed.
    Raises:
        EnvironmentProblem: MLflow cannot reach its store.
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
    known = run.read_env(TRACKER) or {}
    run_id = known.get("id") if known.get("name") == name else None
    settings = read_yaml(recipe_text, RECIPE)
    if name == "wandb":
        from accelerate.tracking import WandBTracker

        run_id = run_id or secrets.token_hex(8)
        os.environ.setdefault("WANDB_MODE", "offline")
        tracker = WandBTracker(PROJECT, name=run.path.name, dir=str(run.path), id=run_id, resume="allow")
        tracker.start()
        tracker.store_init_configuration(settings)
    else:
        tracker = MLflowRun.start(run, run_id=run_id, settings=settings, notify=notify)
        run_id = tracker.run_id
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


STORE: Final = "mlflow.db"  # in the run folder, unless MLFLOW_TRACKING_URI names a server or another store
LONGEST: Final = 500  # letters of a parameter, in every version of MLflow
MOST_PARAMS: Final = 100  # of a request
REFUSED: Final = re.compile(r"[^\w.\-/ ]")  # letters that no version of MLflow takes in a parameter's name


@dataclass(kw_only=True)
class MLflowRun:
    """A run of MLflow that is being written; see everest.train.tracking.Tracker."""

    client: Any
    run_id: str
    notify: Callable[[str], None]
    name: str = "mlflow"
    is_lost: bool = field(default=False, init=False)  # the store has refused a value

    @classmethod
    def start(
        cls,
        run: RunFolder,
        *,
        run_id: str | None,
        settings: dict[str, Any],
        notify: Callable[[str], None],
    ) -> MLflowRun:
        """Create a run with the settings as its parameters, or continue the run `run_id`.

        Args:
            notify: is called with a warning if the store is lost while the run is trained.
        Raises:
            EnvironmentProblem: MLflow cannot reach its store, or has no such run.
        """
        mlflow, entities = import_module("mlflow"), import_module("mlflow.entities")
        shared = os.environ.get("MLFLOW_TRACKING_URI")
        uri = shared or f"sqlite:///{run.path.absolute() / STORE}"
        try:
            client = mlflow.MlflowClient(uri)
            if run_id is not None:
                client.update_run(run_id, status="RUNNING")
                return cls(client=client, run_id=run_id, notify=notify)
            found = client.get_experiment_by_name(PROJECT)
            place = None if shared else (run.path.absolute() / "mlflow").as_uri()
            number = found.experiment_id if found else client.create_experiment(PROJECT, place)
            made = client.create_run(number, run_name=run.path.name).info.run_id
            texts = {}
            for key, value in flat(settings).items():
                text = value if isinstance(value, str) else json_text(value)
                texts[REFUSED.sub("_", key)] = shown(text, most=LONGEST)
            params = [entities.Param(key, text) for key, text in texts.items()]
            for first in range(0, len(params), MOST_PARAMS):
                client.log_batch(made, params=params[first : first + MOST_PARAMS])
        except (mlflow.MlflowException, ImportError) as error:
            raise EnvironmentProblem(f"--tracker mlflow: {shown(error, most=300)} ({uri})") from error
        return cls(client=client, run_id=made, notify=notify)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log the numbers of a row."""
        entities, now = import_module("mlflow.entities"), int(1000 * time.time())
        metrics = [entities.Metric(name, value, now, step) for name, value in values.items()]
        self._write(self.client.log_batch, metrics)

    def log_images(self, values: dict[str, Any], step: int, **options: Any) -> None:
        """Log the first of the images (n, H, W, 3) uint8 of each name."""
        for name, images in values.items():
            self._write(self.client.log_image, images[0], key=name, step=step)

    def finish(self) -> None:
        """Mark the run as finished; a resumed run marks it as running again."""
        self._write(self.client.set_terminated)

    def _write(self, method: Callable[..., Any], *values: Any, **options: Any) -> None:
        if self.is_lost:
            return
        try:
            method(self.run_id, *values, **options)
        except (import_module("mlflow").MlflowException, OSError) as error:
            self.is_lost = True
            why = shown(error, most=300)
            self.notify(
                f"warning: --tracker mlflow: {why}; the training continues, and metrics.jsonl has all values"
            )
