"""Trackers: the recipe, the curves and the probes of a run, in one tracker run over all resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import called, metrics

from everest.system.run_folder import RunFolder
from everest.train.tracking import MLflowRun

PROBED = ["--set", "pretrain.probe.every=1", "--set", "pretrain.probe.list=train.csv"]


def needs_mlflow() -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="the store of MLflow needs sqlalchemy")


@pytest.fixture
def resumed(tmp_path: Path, recipe: Path):
    """Trains with a tracker, forgets the last step, and resumes with the same tracker."""

    def train(tracker: str) -> Path:
        run = tmp_path / "run"
        command = ["pretrain", "--recipe", recipe, "-o", run, "-q", *PROBED]
        called(*command, "--tracker", tracker)
        newest = sorted((run / "state").glob("step-*"))[-1]
        newest.unlink()
        (run / "model.safetensors").unlink()
        called(*command, "--tracker", tracker)
        return run

    return train


def test_tensorboard_has_the_recipe_the_probes_and_no_step_twice(resumed):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = resumed("tensorboard")
    folders = {file.parent for file in (run / "tensorboard").rglob("events.*")}
    assert len(folders) == 1
    read = accumulator.EventAccumulator(str(folders.pop()))
    read.Reload()
    logged = {event.step: event.value for event in read.Scalars("loss")}
    assert logged == pytest.approx({row["step"]: row["loss"] for row in metrics(run) if "loss" in row})
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3]
    assert {event.step for event in read.Images("reconstruction")} == {1, 2, 3}
    probed = {row["step"]: row["rank_me"] for row in RunFolder(run).rows() if "rank_me" in row}
    assert {event.step: event.value for event in read.Scalars("rank_me")} == pytest.approx(probed)
    (text,) = read.Tensors("recipe/text_summary")
    assert "base_lr: 0.1" in text.tensor_proto.string_val[0].decode()


@pytest.mark.slow
def test_mlflow_has_one_run_with_the_recipe_the_curves_and_the_images(resumed, monkeypatch):
    needs_mlflow()
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = resumed("mlflow")
    client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("everest")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert RunFolder(run).read_env("tracker") == {"name": "mlflow", "id": found.info.run_id}
    assert found.info.status == "FINISHED"
    assert found.data.params["pretrain.base_lr"] == "0.1"
    assert json.loads(found.data.params["model.tubelet"]) == [2, 8, 8]
    last = [row for row in metrics(run) if "loss" in row][-1]
    assert found.data.metrics["loss"] == last["loss"]
    steps = [metric.step for metric in client.get_metric_history(found.info.run_id, "rank_me")]
    assert sorted(steps) == [0, 1, 2, 3, 3]  # the last step was trained twice
    assert any("reconstruction" in path.name for path in (run / "mlflow").rglob("*.png"))


def test_mlflow_takes_any_key_and_images_of_a_shared_store_are_not_in_a_run_folder(tmp_path, monkeypatch):
    needs_mlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    settings = {"finetune": {"class_weights": {"Jab (left)": 2.0, "who?": 1.0}}}
    tracker = MLflowRun.start(RunFolder(tmp_path / "run"), run_id=None, settings=settings, notify=said.append)
    found = tracker.client.get_run(tracker.run_id)
    assert found.data.params == {
        "finetune.class_weights.Jab _left_": "2.0",
        "finetune.class_weights.who_": "1.0",
    }
    assert str(tmp_path / "run") not in found.info.artifact_uri
    assert said == []


def test_a_training_continues_without_the_store_of_mlflow(tmp_path, monkeypatch):
    needs_mlflow()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run, said = RunFolder(tmp_path / "run"), []
    run.path.mkdir()
    tracker = MLflowRun.start(run, run_id=None, settings={}, notify=said.append)
    tracker.log({"loss": 1.0}, step=1)
    tracker.client.delete_run(tracker.run_id)
    for step in (2, 3):
        tracker.log({"loss": 0.5}, step=step)
    tracker.finish()
    (warning,) = said
    assert warning.startswith("warning: --tracker mlflow: ")
    assert warning.endswith("the training continues, and metrics.jsonl has all values")
    (metric,) = tracker.client.get_metric_history(tracker.run_id, "loss")
    assert metric.step == 1


def test_wandb_continues_its_run_with_the_recipe(resumed, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = resumed("wandb")
    run_id = RunFolder(run).read_env("tracker")["id"]
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2  # of one run: `wandb sync` joins them by the id
    assert {folder.name.rsplit("-", 1)[1] for folder in folders} == {run_id}


def test_another_tracker_and_a_new_run_have_another_identity(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.start("name: tiny\n", plan={})
    run.note("tracker", {"name": "mlflow", "id": "1"})
    assert run.read_env("tracker") == {"name": "mlflow", "id": "1"}
    assert run.read_env("plan") == {}
    run.start("name: tiny\n", plan={})
    assert run.read_env("tracker") is None
