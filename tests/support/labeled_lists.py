"""Lists of the small videos with several labels, numbers, or both, and recipes for them."""

from __future__ import annotations

from pathlib import Path

from small_runs import RECIPE

ROWS = {
    "tags": ("path,label", "clip0.mp4,run|jump", "clip1.mp4,run", "clip2.mp4,", "clip3.mp4,jump"),
    "speeds": ("path,label", "clip0.mp4,0.5", "clip1.mp4,1.25", "clip2.mp4,-2", "clip3.mp4,0"),
    "heads": (
        "path,label.verb,label.tags,label.speed",
        *("clip0.mp4,0,0|2,0.5", "clip1.mp4,1,,1.25", "clip2.mp4,0,1,-2", "clip3.mp4,1,1|2,0"),
    ),
}
SETTINGS = {
    "tags": "task: multi-label",
    "speeds": "task: regression",
    "heads": "heads: {verb: 2, tags: {multi-label: 3}, speed: regression}",
}


def labeled_recipe(folder: Path, clip_files: Path, name: str) -> Path:
    """A recipe that trains, validates and tests on the list `name`, which it writes to `folder`."""
    (folder / f"{name}.csv").write_text("".join(f"{row}\n" for row in ROWS[name]))
    data = f'data: {{root: "{clip_files}", train: "{folder}/{name}.csv", {SETTINGS[name]}, '
    text = RECIPE.replace("data: {", data).replace(", num_classes: 2", "")
    text = text.replace(
        "val: train.csv, test: train.csv", f'val: "{folder}/{name}.csv", test: "{folder}/{name}.csv"'
    )
    text = text.replace("cutmix: 1.0", "cutmix: 0.0")
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path
