"""The sets of videos of the evidence that are not there already: rendered clips.

The rendered set is as of `everest demo`, of another seed: the recipe `demo` was selected with seed 0.
`resting.csv` has other unlabeled clips, three times as long, whose shape moves in one third of the time.

n clips, F frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everest_demo.event_pairs import event_set
from everest_demo.motions import DEMO_SET, NUM_FRAMES, paths_of
from everest_demo.rendering import render

SEED: Final = 1
LENGTH: Final = 3  # of a resting clip, in clips
RESTING: Final = "resting"


def write_set(folder: Path, *, pretrain: int, test_per_class: int) -> None:
    """Write both sets below a folder: pretrain.csv, resting.csv, train.csv, test.csv, classes.txt."""
    replace(DEMO_SET, pretrain=pretrain, test_per_class=test_per_class).write(folder, seed=SEED)
    resting = replace(
        DEMO_SET,
        num_frames=LENGTH * NUM_FRAMES,
        render=_render_resting,
        pretrain=pretrain,
        train_per_class=0,
        test_per_class=0,
    )
    resting.write(folder / RESTING, seed=SEED)
    lines = (folder / RESTING / "pretrain.csv").read_text().splitlines()
    (folder / f"{RESTING}.csv").write_text("".join(f"{RESTING}/{line}\n" for line in lines))


def write_events(folder: Path, **sizes: int) -> None:
    """Write the set of LVMAE's demo; `sizes` replace its own."""
    replace(event_set(), **sizes).write(folder, seed=SEED)


def _render_resting(classes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render clips (n, F, H, W, 3) whose shape rests before and after its motion."""
    paths = paths_of(classes, rng)
    first = rng.integers(0, (LENGTH - 1) * NUM_FRAMES + 1, (len(classes), 1))
    moment = np.clip(np.arange(LENGTH * NUM_FRAMES) - first, 0, NUM_FRAMES - 1)  # (n, F)
    centre = np.take_along_axis(paths.centre, moment[..., None], axis=1)  # (n, F, 2)
    turn, radius = (np.take_along_axis(values, moment, axis=1) for values in (paths.turn, paths.radius))
    return render(replace(paths, centre=centre, turn=turn, radius=radius), rng)
