"""What a masked autoencoder keeps, sees and predicts, as frames and as a picture.

T frames, H W pixels, N tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from everest.files import write_atomically
from everest.models.mae import MaskedAutoencoder, Reconstruction
from everest.pixels import normalise, unnormalise
from everest.tokens import TokenGrid, patchify, unpatchify

GREY = 0.55  # of what is left out: neither black nor white, which videos have


class Rows(NamedTuple):
    """The same clip four times, each (T, H, W, 3) float32 in [0, 1]."""

    frames: Tensor
    kept: Tensor
    visible: Tensor
    predicted: Tensor  # visible tokens as they are, targets as predicted


@torch.inference_mode()
def reconstruct(model: MaskedAutoencoder, clip: Tensor, *, noise: Tensor) -> Rows:
    """Run the model on one clip (3, T, H, W) uint8, or on the candidates that it draws a clip from.

    Args:
        noise: (N,) uniform in [0, 1).
    """
    device = model.mask_token.device
    frames = normalise(clip.to(device))[None]  # (1, 3, T, H, W)
    out: Reconstruction = model(frames, noise=noise[None].to(device))
    tubelet, grid = model.encoder.patch_embed.tubelet, model.encoder.grid
    patches = patchify(unnormalise(out.frames), tubelet)[0]  # (N, 3, t, p, q)
    visible, target = out.selection.visible[0], out.selection.target[0]

    def only(*ids: Tensor) -> Tensor:
        shown = torch.full_like(patches, GREY)
        chosen = torch.cat(ids)
        shown[chosen] = patches[chosen]
        return shown

    predicted = only(visible)
    predicted[target] = model.targets.pixels(out.prediction, out.frames, out.selection.target)[0]
    parts = (patches, only(visible, target), only(visible), predicted)
    return Rows(*(_as_frames(part, grid) for part in parts))


def _as_frames(patches: Tensor, grid: TokenGrid) -> Tensor:
    return unpatchify(patches[None], grid)[0].movedim(0, -1).clamp(0, 1).cpu()


def draw_rows(path: Path, rows: Rows, *, title: str) -> None:
    """A PNG with a column for each slice's first frame and a labelled line for each of the four rows."""
    labels = {"frames": "frames", "kept": "kept", "visible": "seen", "predicted": "predicted"}
    t = rows.frames.size(0)
    step = max(1, t // 8)
    columns = range(0, t, step)
    height, width = rows.frames.shape[1:3]
    with matplotlib.rc_context({"font.size": 11}):
        figure = Figure(figsize=(1.3 * len(columns) + 1, 1.3 * height / width * len(labels) + 0.7), dpi=120)
        axes = figure.subplots(len(labels), len(columns), squeeze=False)
        for (name, label), line in zip(labels.items(), axes, strict=True):
            for ax, frame in zip(line, columns, strict=True):
                ax.imshow(getattr(rows, name)[frame].numpy(), interpolation="nearest")
                ax.set(xticks=[], yticks=[])
            line[0].set_ylabel(label)
        for ax, frame in zip(axes[0], columns, strict=True):
            ax.set_title(f"frame {frame}", fontsize=9)
        figure.suptitle(title)
        figure.tight_layout()
        write_atomically(path, lambda part: figure.savefig(part, format="png"))
