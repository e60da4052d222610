"""A data set in a layout of your own, from lists to an accuracy: python docs/examples/own_data.py FOLDER

The layout here: a folder for each animal, and the behavior in the name of the file. Two animals are for
training and one is for testing, so that the test shows an animal that the model has not seen.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch

import everest
from everest.video.writer import write_video

BEHAVIORS = {"rest": 0, "walk": 2}  # pixels that a square moves from frame to frame
SMALL = [  # one block and one epoch: seconds instead of minutes
    *("data.size=32", "data.frames=4", "model.backbone=vit-tiny", "model.tubelet=[2,8,8]", "model.depth=1"),
    *("finetune.epochs=1", "finetune.batch_size=4", "finetune.stride=2", "train.workers=0"),
]


def render(folder: Path) -> None:
    """Write FOLDER/ANIMAL/BEHAVIOR_NUMBER.mp4, in place of your own videos."""
    for animal in range(3):
        for name, speed in BEHAVIORS.items():
            for number in range(2):
                frames = torch.full((16, 48, 64, 3), 40 * animal, dtype=torch.uint8)
                for time in range(16):
                    left = 4 + number + speed * time
                    frames[time, 16:32, left : left + 16] = 220
                path = folder / f"animal{animal}" / f"{name}_{number}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_video(path, frames, fps=16)


def write_lists(folder: Path) -> None:
    """Lists with the columns `path`, `label` and `group`, relative to the folder."""
    videos = sorted(folder.glob("*/*.mp4"))
    for name, animals in (("train", ("animal0", "animal1")), ("test", ("animal2",))):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label", "group"])
            for path in videos:
                if path.parent.name in animals:
                    rows.writerow([path.relative_to(folder), path.stem.partition("_")[0], path.parent.name])


def main(folder: Path) -> float:
    render(folder)
    write_lists(folder)
    run = everest.finetune("small", data=folder, init="none", output=folder / "run", overrides=SMALL)
    result = everest.evaluate(everest.load_model(run))
    print(f"top-1 {result['top1']:.0f} % of {result['videos']} videos of an animal that was not trained on")
    return result["top1"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
