import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import assert_resumes_after_a_kill
from small_runs import called, equal, sets, weights

from everest.engine.health import ValidationHistory
from everest.engine.listing import summarize
from everest.system.run_folder import RunFolder
from everest.system.weights_header import read_header

STEPS = sets("finetune.steps=30", "finetune.patience=2", "finetune.mixup=0")


def by_top1(rows: list[dict[str, Any]]) -> ValidationHistory:
    return ValidationHistory(rows, "top1")


def validation(step: int, top1: float, loss: float) -> dict[str, float]:
    return {"step": step, "val_top1": top1, "val_loss": loss}


@given(st.lists(st.tuples(st.sampled_from([0.0, 50.0, 100.0]), st.sampled_from([0.5, 1.0, 2.0])), min_size=1))
def test_the_best_is_the_first_of_the_highest_accuracy_with_the_lowest_loss(results):
    rows = [validation(step, top1, loss) for step, (top1, loss) in enumerate(results, start=1)]
    validations = by_top1([])
    better = [validations.add(row) for row in rows]
    best = max(rows, key=lambda row: (row["val_top1"], -row["val_loss"], -row["step"]))
    assert validations.best == best
    assert max(row["step"] for row, is_new in zip(rows, better, strict=True) if is_new) == best["step"]
    assert validations.since_best == len(rows) - best["step"]
    assert by_top1(rows).best == best


@pytest.mark.parametrize(
    ("losses", "warns"),
    [
        ([(2.0, 2.0), (1.0, 1.5), *[(0.5, 1.9)] * 5], True),  # training falls, validation rises by a quarter
        ([(2.0, 2.0), (1.0, 1.5), *[(0.5, 1.7)] * 5], False),  # rises by less than a fifth
        ([(2.0, 2.0), (0.5, 1.5), *[(1.0, 1.9)] * 5], False),  # both rise: no overfitting
        ([(2.0, 2.0), (1.0, 1.5), *[(0.97, 1.9)] * 5], False),  # training hardly falls
        ([(2.0, 2.0), (1.0, 1.5), *[(0.5, 1.9)] * 4], False),  # not yet five validations
        ([(2.0, 2.0), (1.0, 1.5), *[(0.5, 1.6)] * 4, (0.5, 2.2)], False),  # a single high one
        ([(2.0, 2.0), (1.0, 1.5), *[(0.5, 1.4)] * 5], False),
        ([(500.0, 400.0), (90.0, 1.5), *[(30.0, 1.9)] * 5], False),  # falls from a peak: it diverged
    ],
)
def test_overfitting_is_a_rising_validation_loss_beside_a_falling_training_loss(losses, warns):
    rows = []
    for step, (train, val) in enumerate(losses, start=1):
        rows += [{"step": step, "loss": train}, validation(step, 50.0, val)]
    warning = by_top1(rows).overfitting_warning(math.log(4))
    assert (warning is not None) == warns
    if warning:
        assert warning.startswith("overfitting: since step 2, the validation loss rose from 1.5 to 1.9, and ")


def test_with_a_background_class_the_mean_class_accuracy_chooses(tmp_path, recipe, clip_files):
    labels = ("background", "background", "background", "run")
    lines = [f"{clip_files}/clip{number}.mp4,{label}" for number, label in enumerate(labels)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines, ""]))
    folder, data = tmp_path / "run", [f"data.{key}={tmp_path}/list.csv" for key in ("train", "val", "test")]
    changes = sets(*data, "data.num_classes=null", "finetune.steps=4", "finetune.mixup=0")
    ended = called("finetune", "--init", "none", "--recipe", recipe, "-o", folder, *changes)
    shown = ended.stderr
    assert "validation mean class accuracy " in shown
    assert " % (most frequent class 75.0 %), " in shown
    assert "best validation mean class accuracy " in shown
    assert summarize(folder).best_metric == "mean_class_accuracy"
    table = called("eval", "-c", folder).stdout
    assert -1 < table.index("top-1") < table.index("mean class accuracy")
    assert "always the most frequent class" in table


def test_patience_ends_a_run_which_is_finished_then(tmp_path: Path, recipe: Path):
    folder = tmp_path / "run"
    still = sets("finetune.base_lr=1e-12", "finetune.min_lr=0")  # so that nothing gets better
    command = ["finetune", "--init", "none", "--recipe", recipe, "-o", folder, *STEPS, *still]
    ended = called(*command)
    rows = RunFolder(folder).rows()
    validated = [row["step"] for row in rows if "val_top1" in row]
    best = by_top1(rows).best
    assert validated.index(best["step"]) == len(validated) - 3
    assert f"step {validated[-1]}: no improvement in the last 2 validations" in ended.stderr
    assert rows[-1]["step"] == validated[-1] < 30
    assert read_header(folder / "best.safetensors").step == best["step"]
    summary = f"on 4 videos (one center view each; chance 50.0 %) after step {best['step']} of 30"
    assert summary in ended.stderr
    assert "(chance 50.0 %, best " in ended.stderr
    assert summarize(folder).state == "finished"
    called(*command)
    assert RunFolder(folder).rows() == rows
    last = weights(folder)
    (folder / "model.safetensors").unlink()
    called(*command)  # written again from the state
    assert equal(weights(folder), last)
    assert summarize(folder).state == "finished"
    shutil.rmtree(folder / "state")
    called(*command)
    assert equal(weights(folder), last)
    assert RunFolder(folder).rows() == rows


@pytest.mark.slow
def test_a_killed_run_with_a_budget_in_steps_resumes_to_the_same_bits(tmp_path: Path, recipe: Path):
    # 3 of 4 videos a step, so that batches begin in one epoch and end in the next
    batches = ("finetune.cutmix=0", "finetune.batch_size=3", "train.micro_batch=3")
    command = ["finetune", "--init", "none", *STEPS, *sets("finetune.patience=30", *batches)]
    assert_resumes_after_a_kill(recipe, command, tmp_path, rows=9)
