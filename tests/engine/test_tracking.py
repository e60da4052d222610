from pathlib import Path

import pytest
from small_runs import called, metrics

from everest.system.run_folder import RunFolder

PROBED = ["--set", "pretrain.probe.every=1", "--set", "pretrain.probe.list=train.csv"]


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
    probed = {row["step"]: row["rank_me"] for row in RunFolder(run).rows() if "rank_me" in row}
    assert {event.step: event.value for event in read.Scalars("rank_me")} == pytest.approx(probed)
    (text,) = read.Tensors("recipe/text_summary")
    assert "base_lr: 0.1" in text.tensor_proto.string_val[0].decode()


def test_wandb_continues_its_run_with_the_recipe(resumed, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = resumed("wandb")
    tracker = RunFolder(run).environment().tracker
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2  # of one run: `wandb sync` joins them by the id
    assert {folder.name.rsplit("-", 1)[1] for folder in folders} == {tracker and tracker["id"]}
