import csv
import hashlib
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from damage import fill
from processes import stop_after, wait_for_rows
from small_runs import called, equal, logged, metrics, refused, run, same_run, weights
from torch._dynamo.utils import counters

from everest.system.locks import is_running
from everest.system.run_folder import RunFolder


@pytest.fixture(scope="module")
def finetuned(recipe: Path, autoencoder_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune") / "run"
    run("finetune", "--recipe", recipe, "--init", autoencoder_run, "-o", folder)
    return folder


def tensor_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every safetensors file of a run: weights and states."""
    paths = sorted(folder.rglob("*.safetensors"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def test_a_run_folder_has_its_files(autoencoder_run: Path, finetuned: Path):
    files = {"recipe.yaml", "env.json", "metrics.jsonl", "model.safetensors", "state"}
    assert files <= {path.name for path in autoencoder_run.iterdir()}
    assert files | {"best.safetensors"} <= {path.name for path in finetuned.iterdir()}
    assert json.loads((finetuned / "env.json").read_text())["versions"]["torch"]
    assert [row["step"] for row in metrics(autoencoder_run)] == [1, 2, 3]


def test_pretraining_ends_with_commands_that_run(recipe: Path, clip_files: Path, tmp_path: Path):
    out = tmp_path / "a run"
    small = ["--recipe", recipe, "--set=pretrain.epochs=1", "--set=finetune.epochs=1", "--data", clip_files]
    shown = called("pretrain", *small, "-o", out)
    assert shown.stdout == f"{out}\n"
    start, finetune, probe = shown.stderr.splitlines()[-3:]
    assert (start, probe) == ("next:", f"  everest probe --checkpoint '{out}'")
    assert "pretrain.epochs" not in finetune
    tuned, _ = (called(*shlex.split(command)[1:], "--gpus", "cpu") for command in (finetune, probe))
    assert tuned.stderr.endswith(f"next:\n  everest eval --checkpoint '{out}-finetune'\n")
    assert (tmp_path / "a run-finetune" / "best.safetensors").is_file()
    assert "next:" not in called("pretrain", *small, "-o", out, "-q").stderr


def test_eval_prints_the_documented_accuracies(finetuned: Path, tmp_path: Path):
    predictions = tmp_path / "predictions.csv"
    result = json.loads(run("eval", "-c", finetuned, "--json", "-q", "--predictions", predictions))
    measured = {"top1", "top5", "mean_class_accuracy", "macro_f1", "clip_top1"}
    assert set(result["intervals"]) == measured
    accuracies = measured | {"majority_top1", "chance_top1", "chance_top5", "intervals", "per_class"}
    facts = {"videos", "groups", "views", "skipped", "seconds", "checkpoint", "recipe"}
    facts |= {"keep", "tokens", "gmacs"}
    assert set(result) == accuracies | facts
    assert result["videos"] == 4
    assert result["views"] == {"clips": 2, "crops": 3}
    assert result["majority_top1"] == 50.0
    assert (result["top5"], result["chance_top1"], result["chance_top5"]) == (100.0, 50.0, 100.0)
    with predictions.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert result["top1"] == 100 * sum(row["correct"] == "1" for row in rows) / 4


def test_same_seed_same_run_and_another_seed_another(recipe, autoencoder_run, finetuned, tmp_path):
    same, other, again = tmp_path / "same", tmp_path / "other", tmp_path / "again"
    shown = run("pretrain", "--recipe", recipe, "-o", same, "--set", "train.workers=2")  # change nothing
    assert shown.splitlines()[-1] == str(same)
    run("pretrain", "--recipe", recipe, "-o", other, "--set", "train.seed=1")
    assert metrics(same) == metrics(autoencoder_run) != metrics(other)
    assert tensor_files(same) == tensor_files(autoencoder_run) != tensor_files(other)
    run("finetune", "--recipe", recipe, "--init", autoencoder_run, "-o", again)
    assert {"model.safetensors", "best.safetensors"} < tensor_files(finetuned).keys()
    assert tensor_files(again) == tensor_files(finetuned)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        (["--set", "train.micro_batch=4"], {"rel": 1e-4}),  # without accumulation
        (["--set", "train.checkpointing=true"], {"abs": 1e-6}),
        (["--set", "train.clip_grad=100.0"], {"abs": 1e-6}),
        (["--set", "train.precision=bf16"], {"rel": 2e-2}),
    ],
)
def test_settings_of_memory_and_speed_change_no_loss(recipe, autoencoder_run, tmp_path, settings, tolerance):
    run("pretrain", "--recipe", recipe, "-o", tmp_path / "run", *settings)
    found, expected = logged(tmp_path / "run"), logged(autoencoder_run)
    assert found == pytest.approx(expected, **tolerance)
    if "bf16" in settings:
        assert found != expected
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "run").values())


@pytest.mark.slow
def test_a_run_that_is_under_way_is_left_alone(recipe: Path, tmp_path: Path):
    folder = tmp_path / "run"
    command = ["pretrain", "--recipe", str(recipe), "-o", str(folder), "--set", "pretrain.epochs=400"]
    process = subprocess.Popen([sys.executable, "-m", "everest_cli", *command, "-q"])
    wait_for_rows(folder, 2, process)
    for option in ([], ["--overwrite"]):
        assert "another process trains it now" in refused(*command, *option, code=2)
    process.terminate()
    assert process.wait(timeout=60) == 143
    rows = [row["step"] for row in RunFolder(folder).rows()]
    assert rows == list(range(1, len(rows) + 1))


@pytest.mark.parametrize(
    ("stage", "how", "code"),
    [
        ("pretrain", signal.SIGKILL, -9),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("pretrain", signal.SIGINT, 130),
                ("finetune", signal.SIGTERM, 143),
            )
        ),
    ],
)
def test_a_stopped_run_resumes_to_the_same_bits(recipe, autoencoder_run, tmp_path, stage, how, code):
    longer = ["--set", f"{stage}.epochs=40", "--set", "train.ema=0.9"]
    command = [stage, *longer, *(["--init", str(autoencoder_run)] if stage == "finetune" else [])]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(*command, "--recipe", recipe, "-o", whole)
    assert stop_after(recipe, command, parts, how, rows=6) == code
    run(*command, "--recipe", recipe, "-o", parts)
    assert same_run(parts, whole)
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_its_state(recipe: Path, small_disk: Path, tmp_path: Path):
    command, folder = ["pretrain", "--set", "pretrain.epochs=40"], small_disk / "run"
    assert stop_after(recipe, command, folder, signal.SIGTERM, rows=3) == 143
    done, ballast = len(RunFolder(folder).rows()), fill(small_disk)
    assert "the disk is full" in called(*command, "--recipe", recipe, "-o", folder, code=5).stderr
    ballast.unlink()
    run(*command, "--recipe", recipe, "-o", folder)
    run(*command, "--recipe", recipe, "-o", tmp_path / "whole")
    assert done < 40
    assert metrics(folder) == metrics(tmp_path / "whole")


@pytest.mark.slow  # SIGHUP of a closed terminal, with a worker: fast, in engine/test_killed.py
@pytest.mark.parametrize("how", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_whole_group_spares_the_workers(recipe: Path, tmp_path: Path, how: signal.Signals):
    command = ["pretrain", "--set", "pretrain.epochs=200", "--set", "train.workers=2"]
    folder = tmp_path / "run"
    assert stop_after(recipe, command, folder, how, rows=5, group=True) == 128 + how
    assert list((folder / "state").glob("*.safetensors"))
    assert not is_running(folder)


@pytest.mark.slow
def test_a_stop_signal_does_not_wait_for_a_batch_that_hangs(recipe: Path, tmp_path: Path):
    folder, longer = tmp_path / "run", ["--set", "pretrain.epochs=80", "--set", "train.workers=1"]
    command = ["pretrain", *longer, "--recipe", str(recipe), "-q", "--gpus", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "everest_cli", *command, "-o", str(folder)])
    wait_for_rows(folder, 3, process)
    (reader,) = psutil.Process(process.pid).children()
    reader.suspend()  # as in a read of a dead network mount
    time.sleep(1)  # until the batches that were read ahead are used up
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143  # less than `train.data_timeout`, on a busy machine, too
    assert not psutil.pid_exists(reader.pid)
    done = RunFolder(folder).rows()[-1]["step"]
    assert done < 80
    assert (folder / "state" / f"step-{done:09d}.safetensors").is_file()
    run(*command, "-o", folder)
    run(*command, "-o", tmp_path / "whole")
    assert equal(weights(folder), weights(tmp_path / "whole"))


def test_fp16_on_a_cpu_is_refused(recipe: Path, tmp_path: Path):
    command = ["pretrain --set train.precision=fp16 --gpus cpu", "--recipe", recipe, "-o", tmp_path / "run"]
    assert "needs a CUDA GPU" in called(*command, code=5).stderr


def test_one_batch_can_be_overfit(recipe: Path, tmp_path: Path):
    settings = ["--set", "pretrain.epochs=60", "--set", "pretrain.min_lr=0"]
    run("pretrain --overfit-one-batch", "--recipe", recipe, "-o", tmp_path / "run", *settings)
    losses = logged(tmp_path / "run")
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(recipe: Path, autoencoder_run: Path, tmp_path: Path):
    counters.clear()
    run("pretrain", "--recipe", recipe, "-o", tmp_path / "run", "--set", "train.compile=true")
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert logged(tmp_path / "run") == pytest.approx(logged(autoencoder_run), abs=1e-4)
    assert weights(tmp_path / "run").keys() == weights(autoencoder_run).keys()


def test_a_small_limit_clips_the_gradient(recipe: Path, autoencoder_run: Path, tmp_path: Path):
    run("pretrain", "--recipe", recipe, "-o", tmp_path / "run", "--set", "train.clip_grad=1e-9")
    clipped, free = metrics(tmp_path / "run"), metrics(autoencoder_run)
    assert clipped[0]["grad_norm"] == free[0]["grad_norm"]  # the norm before clipping
    first = clipped[0]["loss"]
    assert abs(first - clipped[-1]["loss"]) < abs(first - free[-1]["loss"])


def test_dry_run_prints_estimates_and_writes_nothing(recipe: Path, autoencoder_run: Path, tmp_path: Path):
    for command in (["pretrain"], ["finetune", "--init", autoencoder_run]):
        shown = run(*command, "--recipe", recipe, "-o", tmp_path / "run", "--dry-run")
        assert "seconds per pass" in shown
        assert "peak memory" in shown
    assert not (tmp_path / "run").exists()


def test_one_bad_video_is_named_once_and_replaced(recipe, clip_files, tmp_path):
    names = [f"{clip_files}/clip{i % 4}.mp4 {i % 2}" for i in range(7)]
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.csv").write_text("\n".join([*names, f"{tmp_path}/text.mp4 0"]) + "\n")
    options = ["--set", f"data.train={tmp_path}/list.csv", "--set", "data.max_bad=0.9"]
    shown = called("pretrain", "--recipe", recipe, *options, "-o", tmp_path / "run").stderr
    assert shown.count("text.mp4") == 1
    bad = (tmp_path / "run" / "bad_videos.csv").read_text()
    assert bad == f"path,reason\n{tmp_path}/text.mp4,not a video file\n"
