"""`everest runs`: states are told from files as a run, a killed run and a finished one leave them."""

import json
from pathlib import Path

import torch

from everest.engine.state import SavedState
from everest.system.weights import Weights

STEPS = 10
PLAN = {"videos": 8, "samples": "", "processes": 1, "micro_batch": 4, "batch_size": 4, "steps": STEPS}


def make_run(path: Path, *, logged=0, saved=None, finished=None, command="pretrain") -> Path:
    """A run folder that has logged and saved so many steps of 10."""
    path.mkdir(parents=True)
    environment = {"stage": command, "plan": PLAN | ({} if finished is None else {"finished": finished})}
    (path / "env.json").write_text(json.dumps(environment))
    (path / "recipe.yaml").write_text("name: my-recipe\n")
    rows = [{"step": i, "loss": 1 / i, "lr": 0.1, "clips_per_second": 2.0} for i in range(1, logged + 1)]
    if logged:
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if saved is not None:
        state = SavedState(step=saved, tensors={"model/w": torch.zeros(1)}, notes={})
        state.save(path / "state")
        weights = Weights(kind="pretrain", settings={}, classes=None, recipe="r", step=saved)
        weights.save(path / "model.safetensors")
    return path


def append(run: Path, text: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(text)
