import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from everest.converters import timm_images
from everest.converters.timm_images import load_network
from everest.errors import CheckpointError
from everest.tokenizer.loss import FRAMES, perceptual_distance
from everest.video.pixels import IMAGENET_MEAN, IMAGENET_STD


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
def test_the_distance_is_that_of_the_logits_of_scaled_normalised_frames(network: nn.Module, side: int):
    rebuilt, real = clips(0, FRAMES, side), clips(1, FRAMES, side)
    found = perceptual_distance(network, rebuilt, real, rng())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    logits = [network((scaled(clip.movedim(1, 2).flatten(0, 1)) - mean) / std) for clip in (rebuilt, real)]
    assert found.item() == pytest.approx((logits[0] - logits[1]).square().mean().item(), rel=1e-4)


def scaled(frames: Tensor) -> Tensor:
    """(N, 3, H, W) to (N, 3, 224, 224) by Pillow, whose filter grows as a image shrinks."""
    planes = [Image.fromarray(plane.numpy()) for plane in frames.flatten(0, 1)]
    small = [np.asarray(plane.resize((224, 224), Image.Resampling.BILINEAR)) for plane in planes]
    return torch.from_numpy(np.stack(small)).view(-1, 3, 224, 224)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The weights of a small network of timm, which stands in for the ResNet-50."""
    monkeypatch.setattr(timm_images, "RESNET", "test_resnet")
    return timm.create_model("test_resnet").state_dict()


@pytest.mark.parametrize("kind", ["safetensors", "pth", "without counters"])
def test_weights_come_from_a_file(small: dict[str, Tensor], tmp_path: Path, kind: str):
    if kind == "pth":
        path = tmp_path / "net.pth"
        torch.save(small, path)
    else:
        path = tmp_path / "net.safetensors"
        left_out = "num_batches_tracked" if kind == "without counters" else "nothing"
        save_file({name: value for name, value in small.items() if left_out not in name}, path)
    loaded = load_network(str(path)).state_dict()
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
        load_network(str(path))
    assert caught.value.exit_code == 6
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, timm_images.RESNET_WEIGHTS, "hf:nonsense"])
def test_what_is_not_reachable_and_what_is_wrong_are_told_apart(tmp_path: Path, weights: str | None):
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    code = f"from everest.converters.timm_images import load_network; load_network({weights!r})"
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    kind, message = shown.stderr.strip().splitlines()[-1].split(": ", 1)
    assert message.startswith("tokenizer.loss.perceptual_weights: hf:")
    wrong = weights == "hf:nonsense"
    assert kind == f"everest.errors.{'CheckpointError' if wrong else 'EnvironmentProblem'}"
    assert message.endswith("or set it to a local file of weights")
    assert ("write hf:OWNER/NAME" in message) == wrong
