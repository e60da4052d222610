import json
import math
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from processes import TWO, everest, killed_run_of_two, stop_after
from safetensors.torch import load_file, save_file
from small_runs import equal, sets, weights
from tokenizer_runs import recipe, set_up, train
from torch import Tensor, nn

from everest import tokenizer_training
from everest.engine.state import tensors_of_part
from everest.engine.step import set_lr
from everest.errors import CheckpointError, DivergedError
from everest.system.run_folder import RunFolder
from everest.tokenizer import loss as tokenizer_loss
from everest.tokenizer.loss import ADVERSARY_BETAS, PERCEPTUAL_FRAMES, Adversary, perceptual_distance
from everest.tokenizer_training import TokenizerTraining, load_perceptual_network
from everest.video.pixels import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["recipe"]  # a fixture

GAN = ["--set", "tokenizer.loss.gan=0.1"]
STEPS = 15  # of a run here, one an epoch
LONG = [*GAN, "--set", f"tokenizer.epochs={STEPS}"]
FIRST = 3  # a fifth: the first step with the discriminator, from 0


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gan") / "run"
    train(recipe, folder, *LONG)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The weights of a small network of timm, which stands in for the ResNet-50."""
    monkeypatch.setattr(tokenizer_training, "PERCEPTUAL_NETWORK", "test_resnet")
    torch.manual_seed(0)
    return timm.create_model("test_resnet").state_dict()


def with_adversary(recipe: Path, folder: Path, *overrides: str) -> tuple[TokenizerTraining, Adversary]:
    """The stage of a tokenizer with a discriminator."""
    stage = set_up(recipe, folder, "tokenizer.loss.gan=0.1", *overrides)
    return stage, stage.objective.adversary


def step_rows(folder: Path) -> list[dict]:
    return [row for row in RunFolder(folder).rows() if "loss" in row]


def metrics(folder: Path) -> list[dict]:
    """The metrics of a run but for times and memory."""
    measured = {"clips_per_second", "data_wait", "memory_bytes"}
    return [{k: v for k, v in row.items() if k not in measured} for row in RunFolder(folder).rows()]


def newest(folder: Path) -> dict[str, Tensor]:
    """All tensors of the newest state."""
    return load_file(sorted((folder / "state").glob("*.safetensors"))[-1])


def test_terms_are_logged_without_their_weights_and_the_loss_with_them(recipe: Path, trained: Path):
    said = train(recipe, trained, "--set", f"tokenizer.epochs={STEPS}", code=2)
    assert "tokenizer.loss.gan (0.1, now 0.0)" in said  # another run
    rows = step_rows(trained)
    adversarial = {"generator", "discriminator", "r1", "discriminator_grad_norm"}
    for row in rows[:FIRST]:
        assert row["loss"] == row["reconstruction"]
        assert adversarial.isdisjoint(row)
    for row in rows[FIRST:]:
        assert row["loss"] == pytest.approx(row["reconstruction"] + 0.1 * row["generator"], rel=1e-6)
        assert all(0 < row[name] < math.inf for name in adversarial)


def test_the_discriminator_is_in_the_state_and_not_in_the_weights(recipe, trained, tmp_path):
    state = newest(trained)
    stage, adversary = with_adversary(recipe, tmp_path / "run")
    fresh = adversary.discriminator.state_dict()
    saved = tensors_of_part(state, "discriminator")
    assert saved.keys() == fresh.keys()
    assert not any(torch.equal(saved[name], fresh[name]) for name in fresh if "weight" in name)
    optimizer = tensors_of_part(state, "discriminator_optimizer")
    assert {name.rpartition("/")[2] for name in optimizer} == {"step", "exp_avg", "exp_avg_sq"}
    steps = {value.item() for name, value in optimizer.items() if name.endswith("/step")}
    assert steps == {STEPS - FIRST}
    names = stage.training.trained_model.state_dict().keys()
    saved, average = tensors_of_part(state, "model"), tensors_of_part(state, "ema")
    assert average.keys() == saved.keys() == weights(trained).keys() == names


def test_the_discriminator_has_betas_and_a_peak_of_its_own_and_the_tokenizers_schedule(recipe, tmp_path):
    own = ["tokenizer.betas=[0.9, 0.95]", "tokenizer.lr=1e-3"]
    stage, _ = with_adversary(recipe, tmp_path / "run", *own)
    optimizer = stage.training.networks[1].optimizer
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025])
    assert {group["betas"] for group in optimizer.param_groups} == {ADVERSARY_BETAS}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 3 * FIRST])
def test_a_killed_run_resumes_to_the_same_bits_discriminator_included(recipe, trained, tmp_path, rows):
    """Killed before the discriminator begins, and after."""
    parts = tmp_path / "parts"
    assert stop_after(recipe, ["train-tokenizer", *LONG], parts, signal.SIGKILL, rows=rows) == -signal.SIGKILL
    said = train(recipe, parts, *LONG)
    at = int(re.search(r"resuming after step (\d+)", said)[1])
    assert (at <= FIRST) == (rows == 2)
    assert metrics(parts) == metrics(trained)
    assert equal(newest(parts), newest(trained))
    assert equal(weights(parts), weights(trained))


@pytest.mark.slow
def test_two_processes_add_up_to_the_gradients_of_one(recipe: Path, tmp_path: Path):
    """Of one step: Adam's first moments are the gradients there, for the first beta is 0."""
    step = ["tokenizer.epochs=1", "tokenizer.full_batches=1.0"]
    options = [*GAN, *sets(*step)]
    train(recipe, tmp_path / "one", *options, "--gpus", "cpu")
    everest("train-tokenizer", "--recipe", recipe, "-o", tmp_path / "two", *options, *TWO)
    one, two = (tensors_of_part(newest(tmp_path / run), "discriminator_optimizer") for run in ("one", "two"))
    assert one.keys() == two.keys() != set()
    for name in (name for name in one if name.endswith("/exp_avg")):
        assert (two[name] - one[name]).norm() <= 1e-4 * one[name].norm(), name
    rows = [step_rows(tmp_path / name)[0] for name in ("one", "two")]
    for name in ("loss", "reconstruction", "generator", "discriminator", "r1", "discriminator_grad_norm"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-4)


@pytest.mark.slow
def test_a_killed_run_of_two_resumes_to_the_same_bits(recipe: Path, tmp_path: Path):
    command = ["train-tokenizer", "--recipe", recipe, *LONG, "--set", "train.micro_batch=1"]
    whole, parts = killed_run_of_two(command, tmp_path, rows=3 * FIRST)
    assert metrics(parts) == metrics(whole)
    assert equal(newest(parts), newest(whole))


@pytest.mark.parametrize("broken", ["discriminator", "tokenizer"])
def test_what_is_not_finite_in_one_leaves_both_as_they_were(recipe: Path, tmp_path: Path, broken: str):
    stage, adversary = with_adversary(recipe, tmp_path / "run")
    training = stage.training
    (tmp_path / "run").mkdir()
    modules = {"discriminator": adversary.discriminator, "tokenizer": training.model}
    next(modules[broken].parameters()).register_hook(lambda gradient: gradient * math.nan)
    before = {name: [p.clone() for p in module.parameters()] for name, module in modules.items()}
    with pytest.raises(DivergedError):
        whole_step(stage)
    for name, module in modules.items():
        assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before[name], strict=True)), name
        assert all(p.grad is None for p in module.parameters())
    moments = training.networks[1].optimizer.state.values()
    assert all(not value.any() for state in moments for value in state.values())
    noted = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    norm = "discriminator_grad_norm" if broken == "discriminator" else "grad_norm"
    assert noted[norm] == "nan"
    assert math.isfinite(float(noted["loss"]))


def whole_step(stage: TokenizerTraining) -> None:
    stage.training.steps_done = 1  # the first step has learning rate 0
    with closing(stage.training.remaining_steps()) as steps:
        step = next(steps)
        for batch in step.batches():
            step.backward(stage.losses(batch, step))
        step.update()


def test_the_perceptual_term_is_logged_and_leaves_nothing_behind(recipe, tmp_path, small, monkeypatch):
    monkeypatch.setattr(tokenizer_loss, "IMAGE_SIDE", 64)
    network = tmp_path / "network.safetensors"
    save_file(small, network)
    options = ["tokenizer.loss.perceptual=0.1", f"tokenizer.loss.perceptual_weights={network}"]
    for name in ("one", "two"):
        train(recipe, tmp_path / name, *sets(*options, "tokenizer.epochs=1"))
    for row in step_rows(tmp_path / "one"):
        assert row["perceptual"] > 0
        assert row["loss"] == pytest.approx(row["reconstruction"] + 0.1 * row["perceptual"], rel=1e-6)
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")
    names = set(weights(tmp_path / "one"))
    assert {name.split("/", 1)[1] for name in newest(tmp_path / "one") if name.startswith("model/")} == names
    assert {name.split("/")[0] for name in newest(tmp_path / "one")} == {"model", "optimizer", "ema"}


def test_clips_too_small_for_a_discriminator_are_refused(recipe: Path, tmp_path: Path):
    said = train(recipe, tmp_path / "run", *GAN, "--set", "data.size=16", code=2)
    assert "tokenizer.loss.gan: clips of 16 x 16 pixels are too small for the discriminator" in said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def network() -> nn.Module:
    """Small, with what a ResNet has."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 7, stride=8), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()


def clips(seed: int, frames: int = 8, side: int = 32) -> Tensor:
    return torch.rand(2, 3, frames, side, side, generator=torch.Generator().manual_seed(seed))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_few_frames_are_drawn_and_the_same_draw_gives_the_same_distance(network: nn.Module):
    distance = partial(perceptual_distance, network)
    assert distance(clips(0), clips(0), rng()) == 0
    generator = rng()
    first, second = (distance(clips(0), clips(1), generator) for _ in range(2))
    assert first != second
    assert distance(clips(0), clips(1), rng()) == first > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):  # logits are compared in float32
        assert distance(clips(0), clips(1), rng()).dtype == torch.float32


@pytest.mark.parametrize("side", [32, 400])
def test_the_distance_is_that_of_the_logits_of_scaled_normalized_frames(network: nn.Module, side: int):
    reconstructed, real = clips(0, PERCEPTUAL_FRAMES, side), clips(1, PERCEPTUAL_FRAMES, side)
    found = perceptual_distance(network, reconstructed, real, rng())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    logits = [
        network((scaled(clip.movedim(1, 2).flatten(0, 1)) - mean) / std) for clip in (reconstructed, real)
    ]
    assert found.item() == pytest.approx((logits[0] - logits[1]).square().mean().item(), rel=1e-4)


def scaled(frames: Tensor) -> Tensor:
    """(N, 3, H, W) to (N, 3, 224, 224) by Pillow, whose filter grows as a image shrinks."""
    planes = [Image.fromarray(plane.numpy()) for plane in frames.flatten(0, 1)]
    small = [np.asarray(plane.resize((224, 224), Image.Resampling.BILINEAR)) for plane in planes]
    return torch.from_numpy(np.stack(small)).view(-1, 3, 224, 224)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "without counters"])
def test_weights_come_from_a_file(small: dict[str, Tensor], tmp_path: Path, kind: str):
    if kind == "pth":
        path = tmp_path / "net.pth"
        torch.save(small, path)
    else:
        path = tmp_path / "net.safetensors"
        left_out = "num_batches_tracked" if kind == "without counters" else "nothing"
        save_file({name: value for name, value in small.items() if left_out not in name}, path)
    loaded = load_perceptual_network(str(path)).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in small.items())


def test_other_missing_damaged_and_unsafe_weights_are_refused(small: dict[str, Tensor], tmp_path: Path):
    assert "net.pth: no such checkpoint" in refused(tmp_path / "net.pth")
    torch.save({"state_dict": small, "run": subprocess.Popen}, tmp_path / "net.pth")
    assert "refused, nothing of it ran" in refused(tmp_path / "net.pth")
    path = tmp_path / "net.safetensors"
    save_file(small | {"fc.bias": torch.full_like(small["fc.bias"], torch.nan)}, path)
    assert "net.safetensors: fc.bias has 1000 values that are no finite numbers" in refused(path)
    del small["fc.weight"]
    save_file(small | {"more": torch.zeros(1)}, path)
    assert "1 missing (fc.weight); 1 unexpected (more)" in refused(path)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError, match=r"^tokenizer\.loss\.perceptual_weights: ") as caught:
        load_perceptual_network(str(path))
    assert caught.value.exit_code == 6
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, tokenizer_training.PERCEPTUAL_WEIGHTS, "hf:nonsense"])
def test_what_is_not_reachable_and_what_is_wrong_are_told_apart(tmp_path: Path, weights: str | None):
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    code = f"from everest.tokenizer_training import load_perceptual_network as load; load({weights!r})"
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    kind, message = shown.stderr.strip().splitlines()[-1].split(": ", 1)
    assert message.startswith("tokenizer.loss.perceptual_weights: hf:")
    wrong = weights == "hf:nonsense"
    assert kind == f"everest.errors.{'CheckpointError' if wrong else 'EnvironmentProblem'}"
    assert message.endswith("or set it to a local file of weights")
    assert ("write hf:OWNER/NAME" in message) == wrong
