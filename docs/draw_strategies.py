"""Draw docs/strategies.png: what every strategy sees and predicts of one rendered clip.

python docs/draw_strategies.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import everest
from everest.masks import FrameWise, RandomSpaceTime, RunningCell, Tube
from everest.selection import FrameDifference, RedundancyRobust, Selector, choose
from everest.tokens import TokenGrid, patchify, unpatchify

SIZE, FRAMES, TUBELET = 112, 16, (2, 8, 8)
STRATEGIES: dict[str, Selector] = {
    "redundancy-robust": RedundancyRobust(),
    "… order: ascending": RedundancyRobust(order="ascending"),
    "frame-difference": FrameDifference(),
    "tube": Tube(),
    "random": RandomSpaceTime(),
    "frame": FrameWise(),
    "running-cell, V2": RunningCell(),
    "running-cell, MAR": RunningCell(encoder="running-cell", mask_ratio=0.5),
}


def moving_clip() -> Tensor:
    """(3, T, H, W) uint8: a disc that crosses a smooth background, a square that stays, a camera's noise."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    background = np.stack([0.35 + 0.3 * x, 0.45 + 0.2 * y, 0.5 + 0.2 * (1 - x)])  # (3, H, W)
    background[:, 70:95, 12:37] = np.array([0.2, 0.3, 0.7])[:, None, None]
    camera_noise = np.random.default_rng(0)
    frames = []
    for number in range(FRAMES):
        frame = background.copy()
        disc = (x - 0.15 - 0.045 * number) ** 2 + (y - 0.3 - 0.02 * number) ** 2 < 0.012
        frame[:, disc] = np.array([0.95, 0.75, 0.2])[:, None]
        frames.append((frame + 0.01 * camera_noise.standard_normal(frame.shape)).clip(0, 1))
    return torch.from_numpy(np.stack(frames, axis=1) * 255).to(torch.uint8)


def tinted(frames: Tensor, selector: Selector, embed: torch.nn.Module) -> Tensor:
    """(T, H, W, 3) in [0, 1]: visible tokens as they are, predicted ones reddish, others grey."""
    grid = TokenGrid.of_clip(frames=FRAMES, size=(SIZE, SIZE), tubelet=TUBELET)
    noise = torch.rand(1, grid.num_tokens, generator=torch.Generator().manual_seed(3))
    chosen = choose(selector, everest.normalise(frames)[None], grid, embed, noise)
    patches = patchify(frames[None].float() / 255, TUBELET)[0]  # (N, 3, t, p, q)
    shown = torch.full_like(patches, 0.85)
    red = torch.tensor([0.9, 0.15, 0.1]).view(3, 1, 1, 1)
    shown[chosen.target[0]] = 0.45 * patches[chosen.target[0]] + 0.55 * red
    shown[chosen.visible[0]] = patches[chosen.visible[0]]
    return unpatchify(shown[None], grid)[0].movedim(0, -1)


def main() -> None:
    torch.manual_seed(0)
    model = everest.create_model("vit-tiny", kind="pretrain", size=SIZE, tubelet=TUBELET)
    clip = moving_clip()
    rows = {"frames": clip.movedim(0, -1).float() / 255}
    rows |= {name: tinted(clip, selector, model.encoder.patch_embed) for name, selector in STRATEGIES.items()}
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(10, 1.13 * len(rows)), dpi=90)
        axes = figure.subplots(len(rows), FRAMES // 2)
        for (name, row), line in zip(rows.items(), axes, strict=True):
            for ax, frame in zip(line, row[::2], strict=True):
                ax.imshow(frame.numpy(), interpolation="nearest")
                ax.set(xticks=[], yticks=[])
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        figure.tight_layout(pad=0.4)
        figure.savefig(Path(__file__).with_name("strategies.png"))


if __name__ == "__main__":
    main()
