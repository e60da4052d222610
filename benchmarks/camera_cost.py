"""The cost of measuring change without the camera, as a share of a pre-training step of ViT-S.

    python benchmarks/camera_cost.py

Measured on this CPU with one thread, of a camera that moves and of one that rests: steps with and without
alternate, and the share is the median of the ratios of neighbors. The time is that of the CPU: others on a
shared machine change the wall time more than the camera does. Counted: the values that the operations
write, and twice the multiply-accumulates of products.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from measuring import machine
from torch import Tensor

from everest.config.recipe import load_recipe
from everest.models.mae import MaskedAutoencoder
from everest.profiling.profile import FORWARD_AND_BACKWARD, stage_cost, stage_spec
from everest.profiling.uncommon_costs import camera_operations

RESULTS: Final = Path(__file__).parent / "results" / "camera_cost.json"
ALIGN: Final = ("shift", "affine")
CAMERAS: Final = {"moving": 4, "at rest": 0}  # pixels a frame


def clips_of_camera(speed: int, count: int) -> Tensor:
    """(count, 3, 16, 224, 224) uint8: a texture that moves by 0 to 5 pixels a frame."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(count, 3, 20, 30, generator=generator) * 255
    texture = F.interpolate(noise, size=(224, 300), mode="bicubic").clamp(0, 255).byte()
    return torch.stack([texture[..., speed * t : speed * t + 224] for t in range(16)], dim=2)


def model_with(align: str, cuts: str) -> MaskedAutoencoder:
    """EVEREST ViT-S of the paper's recipe for Kinetics."""
    torch.manual_seed(0)
    overrides = [
        "model.backbone=vit-s",
        f"pretrain.selection.align={align}",
        f"pretrain.selection.cuts={cuts}",
    ]
    model = stage_spec(load_recipe("k400", overrides=overrides), "pretrain").build().train()
    assert isinstance(model, MaskedAutoencoder)
    return model


def seconds(model: MaskedAutoencoder, clips: Tensor) -> float:
    """CPU time of one step without its optimizer."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(clips), model.encoder.grid.num_tokens, generator=generator)
    model.zero_grad(set_to_none=True)
    began = time.process_time()
    model(clips, noise=noise).loss.backward()
    return time.process_time() - began


def measured(clips: Tensor, rounds: int) -> dict[str, Any]:
    """The additional share of each kind of alignment."""
    models = {"none": model_with("none", "ignore")} | {align: model_with(align, "detect") for align in ALIGN}
    for model in models.values():
        seconds(model, clips)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            times[name].append(seconds(model, clips))
    found: dict[str, Any] = {"cpu_seconds_without": statistics.median(times["none"])}
    for align in ALIGN:
        ratios = sorted(own / plain - 1 for own, plain in zip(times[align], times["none"], strict=True))
        found[align] = {"share": statistics.median(ratios), "range": [ratios[0], ratios[-1]]}
    return found


def counted() -> dict[str, float]:
    """Operations of the alignment, relative to a step with the same clip."""
    overrides = ("model.backbone=vit-s",)
    cost = stage_cost(load_recipe("k400", overrides=overrides), "pretrain", value_bytes=4)
    step = 2e9 * FORWARD_AND_BACKWARD * cost.gmacs
    found = {}
    for align in ALIGN:
        recipe = load_recipe("k400", overrides=[*overrides, f"pretrain.selection.align={align}"])
        found[align] = camera_operations(stage_spec(recipe, "pretrain")) / step
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    document = {
        "machine": machine(),
        "clips": arguments.clips,
        "rounds": arguments.rounds,
        "counted": counted(),
        "measured": {
            camera: measured(clips_of_camera(speed, arguments.clips), arguments.rounds)
            for camera, speed in CAMERAS.items()
        },
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
