"""The cost of learning between views next to predicting pixels: a step of ViT-S with as many clips.

    python benchmarks/view_cost.py [--rounds 5]

One thread, CPU time of the forward and backward pass, in turns. Multiply-accumulates and saved values are
counted, as by `everest profile`. The table is in docs/methods.md.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Final

import torch
from measuring import HERE, alternate, markdown, publish, ratio, shown

from everest.config.recipe import load_recipe
from everest.models.mae import PretrainingModel
from everest.profiling.profile import StageCost, stage_spec

CLIPS: Final = 4
VIEWS: Final = "pretrain.objective=views"


def drawn(share: float) -> str:
    return f"pretrain.views={{keep_ratio: {share}, uniform: 1.0}}"


ARMS: Final[dict[str, tuple[str, ...]]] = {
    "EVEREST": (),
    "VideoMAE, 90 %": ("pretrain.selection={strategy: tube, mask_ratio: 0.9}",),
    "views of a tenth of the tokens": (VIEWS, drawn(0.1)),
    "the same with the task of the camera": (VIEWS, drawn(0.1), "pretrain.camera_motion=1"),
    "views of a quarter of the tokens": (VIEWS, drawn(0.25)),
    "the same with the task of the camera, as in `views`": (VIEWS, drawn(0.25), "pretrain.camera_motion=1"),
}


def step(model: PretrainingModel, clips: torch.Tensor, number: int) -> None:
    """One forward and backward pass, without the optimizer."""
    model.zero_grad(set_to_none=True)
    generator = torch.Generator().manual_seed(number)
    noise = torch.rand(len(clips), model.noise_layout.total, generator=generator)
    model(clips, noise=noise).loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    clips = torch.randint(0, 256, (CLIPS, 3, 16, 224, 224), dtype=torch.uint8)
    recipes = {
        name: load_recipe("ucf101", overrides=["model.backbone=vit-s", *changes])
        for name, changes in ARMS.items()
    }
    steps = {}
    for name, recipe in recipes.items():
        torch.manual_seed(0)
        model = stage_spec(recipe, "pretrain").build().train()
        assert isinstance(model, PretrainingModel)
        steps[name] = partial(step, model, clips)
    times = alternate(steps, rounds=rounds)
    rows = []
    for name, recipe in recipes.items():
        cost = StageCost(recipe, "pretrain", value_bytes=4)
        row = {"arm": name, "visible": cost.tokens["visible"], "gmacs": cost.gmacs}
        row["megabytes"] = cost.activation_bytes_per_clip / 1e6
        rows.append({**row, **ratio(times["EVEREST"], times[name]), "seconds": times[name].median})
    cells = [
        [row["arm"], str(row["visible"]), f"{row['gmacs']:.1f}", f"{row['megabytes']:.0f} MB", shown(row)]
        for row in rows
    ]
    head = ["pre-training", "encoded tokens", "GMACs forward", "activations", "speed of a step"]
    publish("view_cost", rows, markdown(head, cells), page=HERE.parent / "docs" / "methods.md")


if __name__ == "__main__":
    main()
