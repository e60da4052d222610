"""Small projects of `everest train`: videos, the options of a short training, and a result."""

from pathlib import Path
from typing import Any

import torch
from small_runs import sets

from everest.video.writer import write_video

STEPS = sets("finetune.steps=3", "finetune.warmup_steps=1", "train.workers=0", "finetune.batch_size=4")
FEW = [*STEPS, *sets("model.depth=1", "data.size=32")]
BY_PERSON = ["--group", r"(p\d)_", *FEW]
RESULT: dict[str, Any] = {
    "metric": "top1",
    "value": 90.0,
    "interval": [80.0, 97.0],
    "chance": 50.0,
    "majority": 60.0,
    "majority_class": "run",
    "linear_pixels": 70.0,
    "difference": None,
    **{"candidates": [], "chosen": "network", "reason": ""},
    **{"videos": 20, "groups": 20, "skipped": 0, "report": "", "checkpoint": ""},
}
NETWORK_ROW = {"name": "network", "metric": "top1", "validation": None, "test": 70.0, "interval": None}


def moving(path: Path, steps: list[tuple[int, int]], seed: int) -> None:
    """Write a video of a picture that moves so many (rows, columns) in each frame."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
    picture, row, column, frames = picture.repeat_interleave(8, 0).repeat_interleave(8, 1), 0, 0, []
    for down, right in steps:
        row, column = row + down, column + right
        frames.append(picture.roll((row, column), dims=(0, 1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, torch.stack(frames), fps=10)
