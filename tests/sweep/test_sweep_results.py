"""The numbers that a sweep reads from its runs."""

import json
from pathlib import Path

import pytest

from everest.config.recipe import load_recipe
from everest.sweep.results import metrics_of
from everest.sweep.works import make_work

VALIDATIONS = [
    {"step": 2, "val_top1": 50.0, "val_macro_f1": 70.0, "val_loss": 0.5},
    {"step": 4, "val_top1": 80.0, "val_macro_f1": 60.0, "val_loss": 0.9},
    {"step": 6, "val_top1": 80.0, "val_macro_f1": 65.0, "val_loss": 0.8},
    {"step": 8, "val_top1": 70.0, "val_macro_f1": 65.0, "val_loss": 0.1},
]


@pytest.mark.parametrize(("best", "step"), [("top1", 6), ("macro_f1", 2), ("loss", 8)])
def test_all_validation_metrics_are_those_of_the_weights_that_were_kept(tmp_path: Path, best: str, step: int):
    recipe = load_recipe("small", overrides=[f"finetune.best={best}"])
    work = make_work("finetune", recipe, needs=None, init="none")
    run = work.run(tmp_path)
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(f"finetune: {{best: {best}}}\n")
    (run / "env.json").write_text("{}")
    rows = [{"step": 1, "loss": 1.0}, *VALIDATIONS]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = next(row for row in VALIDATIONS if row["step"] == step)
    assert metrics_of(work, tmp_path) == {name: value for name, value in kept.items() if name != "step"}
