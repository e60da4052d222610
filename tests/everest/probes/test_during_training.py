import json
from pathlib import Path

import numpy as np
import pytest
from processes import TWO, everest
from small_runs import called, equal, refused, weights

from everest.checkpoints.describe import load_model
from everest.inference.opened_model import OpenedModel
from everest.probes.collapse import feature_std, rank_me
from everest.system.run_folder import RunFolder

PROBED = ["--set", "pretrain.probe.every=1", "--set", "pretrain.probe.list=train.csv"]
KEYS = ("step", "probe_knn", "probe_linear", "probe_chance", "rank_me", "feature_std", "heldout_loss")


def probes(run: Path) -> list[dict]:
    return [{key: row[key] for key in KEYS} for row in RunFolder(run).rows() if "rank_me" in row]


def losses(run: Path) -> list[dict]:
    names = ("step", "loss", "lr", "grad_norm")
    return [{name: row[name] for name in names} for row in RunFolder(run).rows() if "loss" in row]


def pretrain(recipe: Path, run: Path, *settings: str, options: tuple = ()) -> str:
    sets = [word for text in settings for word in ("--set", text)]
    return called("pretrain", "--recipe", recipe, "-o", run, "--gpus", "cpu", *sets, *options).stderr


@pytest.mark.parametrize("settings", [(), ("train.ema=0.5", "train.workers=1")])
def test_a_run_with_probes_has_the_weights_and_losses_of_one_without(recipe, tmp_path, settings):
    pretrain(recipe, tmp_path / "plain", *settings)
    pretrain(recipe, tmp_path / "probed", *settings, options=tuple(PROBED))
    assert losses(tmp_path / "probed") == losses(tmp_path / "plain")
    assert equal(weights(tmp_path / "probed"), weights(tmp_path / "plain"))
    assert [row["step"] for row in probes(tmp_path / "probed")] == [0, 1, 2, 3]
    assert probes(tmp_path / "plain") == []


def test_a_probe_that_a_kill_prevented_is_made_on_resume(recipe, tmp_path):
    pretrain(recipe, tmp_path / "whole", options=tuple(PROBED))
    run = RunFolder(tmp_path / "parts")
    pretrain(recipe, run.path, options=tuple(PROBED))
    for step in (3, 2):  # killed after the save and before the probe: after the last step, and before it
        kept = [row for row in run.rows() if row["step"] < step or (row["step"] == step and "loss" in row)]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        for state in sorted((run.path / "state").glob("step-*"))[step - 3 :] if step < 3 else []:
            state.unlink()
        pretrain(recipe, run.path, options=tuple(PROBED))
        assert probes(run.path) == probes(tmp_path / "whole")
        assert losses(run.path) == losses(tmp_path / "whole")
    assert equal(weights(run.path), weights(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "full"])
def test_two_processes_probe_as_one(recipe, tmp_path, shard):
    options = ["--recipe", recipe, *PROBED, "--set", "pretrain.probe.metric=linear"]
    called("pretrain", *options, "-o", tmp_path / "one", "-q", "--gpus", "cpu")
    everest("pretrain", *options, "-o", tmp_path / "two", "-q", *TWO, "--set", f"train.shard={shard}")
    one, two = probes(tmp_path / "one"), probes(tmp_path / "two")
    assert two[0] == pytest.approx(one[0], rel=1e-6)  # later weights differ by the order of sums
    assert [row["step"] for row in two] == [0, 1, 2, 3]
    for row, other in zip(one, two, strict=True):
        assert other["heldout_loss"] == pytest.approx(row["heldout_loss"], abs=1e-4)


def test_the_last_probe_measures_the_features_that_the_weights_give(recipe, tmp_path, clip_files):
    pretrain(recipe, tmp_path / "run", "data.fps=null", options=tuple(PROBED))
    opened = OpenedModel.of(load_model(tmp_path / "run"), clips=1, crops=1)
    clips = [opened.module.clip.read(clip_files / f"clip{i}.mp4") for i in range(4)]
    features = np.concatenate([opened.features(clip[None])["pooled"].numpy() for clip in clips])
    features = features[:, : features.shape[1] // 4]  # the mean of the tokens alone
    last = probes(tmp_path / "run")[-1]
    assert last["probe_chance"] == 50
    assert last["rank_me"] == pytest.approx(rank_me(features), rel=1e-4)
    assert last["feature_std"] == pytest.approx(feature_std(features), rel=1e-4)


def test_without_labels_and_held_out_videos_the_measures_are_of_the_training_videos(recipe, tmp_path):
    pretrain(recipe, tmp_path / "run", "pretrain.probe.every=2", "data.val=null")
    rows = probes(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 2, 3]
    assert all(row[key] is None for row in rows for key in ("probe_knn", "probe_linear", "heldout_loss"))
    assert all(1 <= row["rank_me"] <= 4 for row in rows)


def test_the_held_out_loss_is_of_the_same_clips_and_masks_at_every_probe(recipe, tmp_path):
    frozen = ("pretrain.base_lr=1.0e-20", "pretrain.min_lr=0", "pretrain.selection.strategy=random")
    frozen += ("pretrain.selection.visible_ratio=0.5", "pretrain.weight_decay=0")
    pretrain(recipe, tmp_path / "run", *frozen, options=tuple(PROBED))
    assert len({row["heldout_loss"] for row in probes(tmp_path / "run")}) == 1


def test_probes_need_one_class_for_each_video(recipe, tmp_path):
    options = ["--recipe", recipe, "-o", tmp_path / "run", *PROBED]
    shown = refused("pretrain", *options, "--set", "data.task=multi-label", code=2)
    assert "pretrain.probe.list: needs one class for each video" in shown
    shown = refused("pretrain", *options, "--set", "pretrain.probe.list=missing.csv", code=4)
    assert "missing.csv: no such list or folder" in shown
    assert not (tmp_path / "run").exists()


def test_rank_and_std_have_their_known_values():
    eye = np.eye(8, dtype=np.float32)
    assert rank_me(eye) == pytest.approx(8, rel=1e-5)
    assert rank_me(np.ones((8, 5), dtype=np.float32)) == pytest.approx(1, abs=1e-3)
    assert rank_me(np.zeros((3, 5), dtype=np.float32)) == 1
    assert feature_std(np.ones((8, 5), dtype=np.float32)) == pytest.approx(0, abs=1e-7)
    drawn = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
    assert feature_std(drawn) == pytest.approx(1, rel=0.01)
    assert rank_me(drawn) == pytest.approx(16, rel=0.01)
