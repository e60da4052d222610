"""An interactive page: a clip next to its kept tokens, with sliders for frame and keep ratio.

The page is one file that contains its images; the browser grays out the tokens that are not kept.

T frames, H W pixels, N tokens.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from everest.errors import RecipeError
from everest.figures.animation import FPS
from everest.figures.drawing import jpeg_uri
from everest.figures.legend import CHOICES, ShownFrames, choice_text, token_text
from everest.figures.mask_view import GRAY, MaskView
from everest.methods.grid import TokenGrid
from everest.system.files import write_text
from everest.system.hub import warn_on_main
from everest.system.text import escape_bytes


def ranks_of(order: Tensor) -> list[int]:
    """Return the rank of each token in a permutation (N,) of token ids, the first to keep in front."""
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks.tolist()


def strategy_ranks(orders: Mapping[str, Tensor], grid: TokenGrid, *, seed: int) -> dict[str, list[int]]:
    """Return the rank of every token by strategy: the first `ratio * N` ranks are kept.

    Args:
        orders: (N,) token ids of each strategy that measures, the first to keep in front; `tube` and
            `random` are added.
    """
    noise = torch.from_numpy(np.random.default_rng(seed).random(grid.num_tokens, dtype=np.float32))
    ranks = {name: ranks_of(order) for name, order in orders.items()}
    places = noise[: grid.per_slice].argsort(stable=True)  # one map for all slices
    slices = torch.arange(grid.t).view(1, -1) * grid.per_slice
    ranks["tube"] = ranks_of((places.view(-1, 1) + slices).flatten())
    ranks["random"] = ranks_of(noise.argsort(stable=True))
    return ranks


def write_page(
    path: Path, views: Sequence[MaskView], frames: Tensor, *, measured: str, source: ShownFrames, seed: int
) -> None:
    """Write the page; it opens with the first view that measures, and its keep ratio.

    Strategies that do not rank the tokens, such as running cells, are named in a notice.

    Args:
        frames: (T, H, W, 3) uint8.
        measured: the source of the importance, in words.
        seed: of the random strategies.
    Raises:
        RecipeError: none of the strategies measures importance.
    """
    # Several keep ratios of a strategy are one entry: the page has a slider for the ratio.
    orders = {view.title: view.order for view in views if view.order is not None}
    if not orders:
        raise RecipeError("a page needs a strategy that measures, such as redundancy-robust")
    first = next(view for view in views if view.order is not None)
    grid = first.grid
    # In steps of the slider, rounded up: the page rounds the number of tokens down.
    keep = -(-1000 * len(first.kept) // grid.num_tokens) / 10
    ranks = strategy_ranks(orders, grid, seed=seed)
    if missing := dict.fromkeys(view.title for view in views if view.title not in ranks):
        names = ", ".join(missing)
        warn_on_main(f"{path}: no {names}, which does not rank the tokens; --format png shows it")
    choices = {name: CHOICES[name] for name in ranks if name in CHOICES}
    choices |= {view.title: choice_text(view) for view in views if view.title in orders}
    data = {
        "frames": [jpeg_uri(frame) for frame in frames],
        "numbers": source.numbers,
        "size": [frames.size(2), frames.size(1)],
        "grid": [grid.t, grid.h, grid.w],
        "ranks": ranks,
        "choices": choices,
    }
    parts = {
        "TITLE": html.escape(escape_bytes(str(source))),
        "MEASURED": html.escape(measured),
        "TOKEN": token_text(first.tubelet, numbered=True),
        "OPTIONS": "".join(f'<option value="{name}">{name}</option>' for name in ranks),
        "LAST": str(frames.size(0) - 1),
        "KEEP": f"{keep:g}",
        "LEAST": f"{min(keep, 1):g}",
        "GRAY": f"rgb({', '.join([str(round(GRAY * 255))] * 3)})",
        "FPS": str(FPS),
        "DATA": json.dumps(data).replace("</", "<\\/"),
    }
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    # In one pass: a video may be named like a placeholder.
    write_text(path, re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]], page))
