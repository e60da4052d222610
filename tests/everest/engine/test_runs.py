import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import STEPS, append, make_run
from small_runs import called, refused
from typer.testing import Result

from everest.errors import RecipeError
from everest.system.locks import training_lock
from everest.system.run_folder import RunFolder


def listed(*arguments: object, code: int = 0) -> Result:
    return called("runs", *arguments, code=code)


def summary(run: Path) -> dict[str, Any]:
    (only,) = json.loads(listed(run, "--json").stdout)
    return only


def test_state_follows_from_what_is_logged_and_saved(tmp_path: Path):
    for logged, saved, finished, state in (
        (0, None, None, "started"),
        (3, None, None, "started"),
        (5, 4, None, "resumable"),
        (10, 10, None, "resumable"),  # killed before its last measurement
        (10, 10, 10, "finished"),
        (10, 8, 10, "resumable"),  # the weights are others
        (9, 9, 10, "resumable"),  # resumed from an older state, because the last one was damaged
    ):
        path = tmp_path / f"{logged}-{saved}-{finished}"
        run = make_run(path, logged=logged, saved=saved, finished=finished)
        assert summary(run)["state"] == state


def test_a_run_is_listed_with_its_newest_step_and_best_accuracy(tmp_path: Path):
    run = make_run(tmp_path / "run", logged=4, saved=4, command="finetune")
    for step, top1 in ((2, 50.0), (4, 40.0)):
        append(run, json.dumps({"step": step, "val_top1": top1, "val_top5": 100.0}) + "\n")
    append(run, '{"step": 5, "lo')  # being written, or cut off by a kill
    assert 0 <= (listed_run := summary(run)).pop("age_seconds") < 60
    best = {"best_metric": "top1", "best_value": 50.0}
    progress = {"state": "resumable", "step": 4, "steps": STEPS, "loss": 0.25, "problem": None}
    names = {"path": str(run), "command": "finetune", "recipe": "my-recipe"}
    assert listed_run == names | progress | best


@pytest.mark.parametrize(
    ("best", "logged", "shown"),
    [
        ("macro_f1", ({"top1": 88.9, "macro_f1": 47.1}, {"top1": 66.7, "macro_f1": 58.5}), "macro F1 58.5"),
        ("null", ({"map": 40.0, "macro_f1": 80.0}, {"map": 38.0, "macro_f1": 90.0}), "mAP 40.0"),
        ("null", ({"mae": 3.5, "r2": 0.1}, {"mae": 4.5, "r2": 0.5}), "mean absolute error 3.5"),
        ("loss", ({"top1": 90.0, "loss": 2.0}, {"top1": 80.0, "loss": 1.5}), "loss 1.5"),
    ],
)
def test_the_best_validation_is_that_of_the_metric_that_chooses_the_weights(best, logged, shown, tmp_path):
    run = make_run(tmp_path / "run", logged=4, saved=4, command="finetune")
    (run / "recipe.yaml").write_text(f"name: mine\nfinetune: {{best: {best}}}\n")
    for step, values in enumerate(logged, start=1):
        append(run, json.dumps({"step": step, **{f"val_{name}": v for name, v in values.items()}}) + "\n")
    assert shown in listed(run).stdout


def test_a_run_is_running_while_a_process_claims_it(tmp_path: Path):
    run = make_run(tmp_path / "run", logged=3, saved=2)
    with training_lock(run):
        assert summary(run)["state"] == "running"
        with pytest.raises(RecipeError, match="another process trains it now"), training_lock(run):
            pass
    assert summary(run)["state"] == "resumable"


def test_runs_are_found_at_any_depth_in_order_and_nothing_else(tmp_path: Path):
    for name in ("b/deep/run", "a", "a/inside", ".hidden", "state/first"):
        make_run(tmp_path / name)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "recipe.yaml").write_text("name: alone\n")
    paths = [row["path"] for row in json.loads(listed(tmp_path, "--json").stdout)]
    assert paths == [str(tmp_path / name) for name in ("a", "a/inside", "b/deep/run", "state/first")]


def test_a_damaged_run_is_named_and_hides_no_other(tmp_path: Path):
    texts = {"env.json": "[]", "metrics.jsonl": "no row\n", "recipe.yaml": "a: [\n", "model.safetensors": "x"}
    for name, text in texts.items():
        make_run(tmp_path / name / "good", logged=3)
        (make_run(tmp_path / name / "bad", logged=STEPS, saved=STEPS, finished=STEPS) / name).write_text(text)
        shown = listed(tmp_path / name, "--json")
        assert [run["state"] for run in json.loads(shown.stdout)] == ["damaged", "started"]
        assert name in shown.stderr


def test_a_run_skips_damaged_rows_that_a_listing_reports(tmp_path: Path):
    run = make_run(tmp_path / "run", logged=2)
    append(run, '{"step": "x"}\n{"step": 3, "loss": 0.5}\n{"step": 4')
    rows, problems = RunFolder(run).read_metrics()
    assert [row["step"] for row in rows] == [row["step"] for row in RunFolder(run).rows()] == [1, 2, 3]
    file = run / "metrics.jsonl"
    assert problems == [f"{file}:3: not a row of metrics (invalid literal for int() with base 10: 'x')"]


def test_table_has_a_line_for_each_run_and_takes_no_name_for_markup(tmp_path: Path):
    deep = tmp_path / ("long-" * 20) / "[red]" / "[/x]"
    make_run(deep, logged=5, saved=4)
    make_run(tmp_path / "two")
    lines = listed(tmp_path).stdout.splitlines()
    assert len(lines) == 3
    assert str(deep) in lines[1]
    assert "resumable" in lines[1]
    assert "5/10" in lines[1]
    assert "0.2000" in lines[1]


def test_an_empty_folder_is_no_error_and_a_missing_one_is(tmp_path: Path):
    shown = listed(tmp_path)
    assert shown.stdout == ""
    assert "no run folder" in shown.stderr
    assert listed(tmp_path, "--json").stdout == "[]\n"
    assert "no folder" in refused("runs", tmp_path / "missing", code=2)
