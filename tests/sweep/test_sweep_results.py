"""The numbers that a sweep reads from its runs."""

import copy
from pathlib import Path
from typing import Any

import pytest

from everest.errors import RecipeError
from everest.sweep.report import make_report
from everest.sweep.results import metrics_of_run, read_results, write_results

DOCUMENT: dict[str, Any] = {
    **{"recipe": "r", "summary": "", "stages": ["pretrain"], "against": "a", "equal": "steps"},
    **{"metric": "pretrain_loss", "jobs": {"all": 1, "finished": 1}, "failures": []},
    "arms": [
        {
            "arm": "a",
            "overrides": {},
            "seeds": [{"seed": 0, "gmacs": 1.0, "hours": 0.5, "metrics": {"pretrain_loss": 0.5}}],
        }
    ],
}
VALIDATIONS = [
    {"step": 2, "val_top1": 50.0, "val_macro_f1": 70.0, "val_loss": 0.5},
    {"step": 4, "val_top1": 80.0, "val_macro_f1": 60.0, "val_loss": 0.9},
    {"step": 6, "val_top1": 80.0, "val_macro_f1": 65.0, "val_loss": 0.8},
    {"step": 8, "val_top1": 70.0, "val_macro_f1": 65.0, "val_loss": 0.1},
]


@pytest.mark.parametrize(("best", "step"), [("top1", 6), ("macro_f1", 2), ("loss", 8)])
def test_all_validation_metrics_are_those_of_the_weights_that_were_kept(tmp_path: Path, best: str, step: int):
    (tmp_path / "recipe.yaml").write_text(f"finetune: {{best: {best}}}\n")
    rows = [{"step": 1, "loss": 1.0}, *VALIDATIONS]
    kept = next(row for row in VALIDATIONS if row["step"] == step)
    assert metrics_of_run("finetune", tmp_path, rows) == {
        name: value for name, value in kept.items() if name != "step"
    }


def test_results_are_read_as_they_were_written(tmp_path: Path):
    write_results(tmp_path, DOCUMENT)
    assert read_results(tmp_path) == DOCUMENT
    assert make_report(DOCUMENT)["arms"][0]["mean"] == 0.5


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((name, None) for name in DOCUMENT),
        ("jobs", {}),
        ("arms", []),
        ("failures", [{}]),
        ("arms.0.arm", 5),
        ("arms.0.seeds.0.metrics", None),
        ("arms.0.seeds.0.metrics.pretrain_loss", "0.5"),
        ("arms.0.seeds.0.metrics.pretrain_loss", 1e300),
        ("arms.0.seeds.0.gmacs", None),
    ],
)
def test_damaged_results_are_refused_in_a_line(tmp_path: Path, place: str, value: object):
    document = copy.deepcopy(DOCUMENT)
    *parents, last = place.split(".")
    part: Any = document
    for name in parents:
        part = part[int(name)] if name.isdigit() else part[name]
    part[last] = value
    write_results(tmp_path, document)
    with pytest.raises(RecipeError, match=rf"results.json: damaged \({place}") as refusal:
        read_results(tmp_path)
    assert "\n" not in str(refusal.value)
