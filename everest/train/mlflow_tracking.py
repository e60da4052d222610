"""One run of MLflow. The client is used directly: it has no active run that a second training would share.

A training outlives its store: if a value cannot be written, a warning is shown, and no further values are
written until the run is resumed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

from everest.errors import EnvironmentProblem, shown
from everest.system.json_text import json_text
from everest.system.run_folder import RunFolder

STORE: Final = "mlflow.db"  # in the run folder, unless MLFLOW_TRACKING_URI names a server or another store
LONGEST: Final = 500  # letters of a parameter, in every version of MLflow
MOST_PARAMS: Final = 100  # of a request
REFUSED: Final = re.compile(
    r"[^\w.\-/ ]"
)  # letters that no name of a parameter has, in every version of MLflow


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
        experiment: str,
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
            found = client.get_experiment_by_name(experiment)
            place = None if shared else (run.path.absolute() / "mlflow").as_uri()
            number = found.experiment_id if found else client.create_experiment(experiment, place)
            made = client.create_run(number, run_name=run.path.name).info.run_id
            texts = {REFUSED.sub("_", key): shown(value, most=LONGEST) for key, value in _flat(settings)}
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


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The settings by their keys, such as `pretrain.base_lr`."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json_text(value)
