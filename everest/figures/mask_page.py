"""An interactive page: a clip next to its kept tokens, with sliders for frame and keep ratio.

The page is one file that contains its images; the browser grays out the tokens that are not kept.

T frames, H W pixels, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from everest.errors import RecipeError
from everest.figures.animation import FPS
from everest.figures.drawing import jpeg_uri, write_page
from everest.figures.legend import CHOICES, ShownFrames, choice_text, token_text
from everest.figures.masks import GRAY, MaskView
from everest.methods.grid import TokenGrid
from everest.system.hub import warn_on_main


def strategy_ranks(orders: Mapping[str, Tensor], grid: TokenGrid, *, seed: int) -> dict[str, list[int]]:
    """Return the rank of every token by strategy: the first `ratio * N` ranks are kept.

    Args:
        orders: (N,) token ids of each strategy that measures, the first to keep in front; `tube` and
            `random` are added.
    """
    noise = torch.from_numpy(np.random.default_rng(seed).random(grid.num_tokens, dtype=np.float32))
    places = noise[: grid.per_slice].argsort(stable=True)  # one map for all slices
    tube = places.view(-1, 1) + torch.arange(grid.t) * grid.per_slice  # (places, t)
    orders = {**orders, "tube": tube.flatten(), "random": noise.argsort(stable=True)}
    return {name: order.argsort().tolist() for name, order in orders.items()}


def write_mask_page(
    path: Path, views: Sequence[MaskView], frames: Tensor, *, measured: str, source: ShownFrames, seed: int
) -> None:
    """Write the page; it opens with the first view that measures, and its keep ratio.

    Strategies that do not rank the tokens, such as running cells, are named in a notice.

    Args:
        frames: (T, H, W, 1 or 3) uint8.
        measured: the source of the importance, in words.
        seed: of the random strategies.
    """
    # Several keep ratios of a strategy are one entry: the page has a slider for the ratio.
    measuring = [view for view in views if view.importance is not None]
    if not measuring:
        raise RecipeError("a page needs a strategy that measures, such as redundancy-robust")
    first = measuring[0]
    orders = {view.title: view.order for view in measuring}
    ranks = strategy_ranks(orders, first.grid, seed=seed)
    if missing := dict.fromkeys(view.title for view in views if view.title not in ranks):
        names = ", ".join(missing)
        warn_on_main(f"{path}: no {names}, which does not rank the tokens; --format png shows it")
    # In steps of the slider, rounded up: the page rounds the number of tokens down.
    keep = -(-1000 * len(first.kept) // first.grid.num_tokens) / 10
    data = {
        "frames": [jpeg_uri(frame) for frame in frames],
        "numbers": source.numbers,
        "size": [frames.size(2), frames.size(1)],
        "grid": [first.grid.t, first.grid.h, first.grid.w],
        "ranks": ranks,
        "choices": {name: CHOICES[name] for name in ("tube", "random")}
        | {view.title: choice_text(view) for view in measuring},
    }
    write_page(
        path,
        "figures",
        "mask_page.html",
        title=source,
        measured=measured,
        token=token_text(first.tubelet, numbered=True),
        keep=f"{keep:g}",
        least=f"{min(keep, 1):g}",
        gray=f"rgb({', '.join([str(round(GRAY * 255))] * 3)})",
        fps=FPS,
        data=data,
    )
