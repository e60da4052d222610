"""An interactive page: a clip with sliders for frame and keep ratio, and a menu of strategies.

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
from everest.figures.masks import MaskView
from everest.figures.pictures import jpeg_uri
from everest.methods.grid import TokenGrid
from everest.system.files import write_text
from everest.system.names import escape_bytes


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


def write_page(path: Path, views: Sequence[MaskView], frames: Tensor, *, title: str, seed: int) -> None:
    """Write the page; it opens with the strategy and the keep ratio of the first view.

    Args:
        frames: (T, H, W, 3) uint8.
        seed: of the random strategies.
    Raises:
        RecipeError: none of the strategies measures importance.
    """
    # Several keep ratios of a strategy are one entry: the page has a slider for the ratio.
    orders = {view.title.splitlines()[0]: view.order for view in views if view.order is not None}
    if not orders:
        raise RecipeError("a page needs a strategy that measures, such as redundancy-robust")
    grid = views[0].grid
    ranks = strategy_ranks(orders, grid, seed=seed)
    data = {
        "frames": [jpeg_uri(frame) for frame in frames],
        "size": [frames.size(2), frames.size(1)],
        "grid": [grid.t, grid.h, grid.w],
        "ranks": ranks,
    }
    options = "".join(f'<option value="{name}">{name}</option>' for name in ranks)
    parts = {
        "TITLE": html.escape(escape_bytes(title)),
        "OPTIONS": options,
        "LAST": str(frames.size(0) - 1),
        "KEEP": str(round(len(views[0].kept) / grid.num_tokens * 100)),
        "DATA": json.dumps(data).replace("</", "<\\/"),
    }
    # In one pass: a video may be named like a placeholder.
    write_text(path, re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]], PAGE))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>@TITLE@</title>
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<style>
body { font: 16px/1.4 system-ui, sans-serif; margin: 1.5rem auto; max-width: 46rem; padding: 0 1rem; }
canvas { width: 100%; image-rendering: auto; display: block; }
label { display: grid; grid-template-columns: 8rem 1fr 6rem; gap: 0.6rem; margin: 0.5rem 0; }
</style></head><body>
<h1 style="font-size:1.1rem">@TITLE@</h1>
<canvas id="view"></canvas>
<label>frame <input id="frame" type="range" min="0" max="@LAST@" value="0">
<output id="frameText"></output></label>
<label>kept <input id="keep" type="range" min="1" max="100" value="@KEEP@">
<output id="keepText"></output></label>
<label>strategy <select id="strategy">@OPTIONS@</select><output id="count"></output></label>
<script id="data" type="application/json">@DATA@</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent);
const [width, height] = data.size, [slices, rows, columns] = data.grid;
const of = id => document.getElementById(id), canvas = of("view"), context = canvas.getContext("2d");
canvas.width = width; canvas.height = height;
const images = data.frames.map(source => { const image = new Image(); image.src = source; return image; });
function draw() {
  const frame = +of("frame").value, keep = +of("keep").value / 100;
  const ranks = data.ranks[of("strategy").value], limit = Math.floor(ranks.length * keep + 1e-9);
  const slice = Math.floor(frame * slices / images.length), first = slice * rows * columns;
  const w = width / columns, h = height / rows;
  context.drawImage(images[frame], 0, 0);
  context.fillStyle = "rgb(140,140,140)";
  let kept = 0;
  for (let place = 0; place < rows * columns; place++) {
    if (ranks[first + place] < limit) { kept++; continue; }
    context.fillRect((place % columns) * w, Math.floor(place / columns) * h, w, h);
  }
  of("frameText").textContent = frame;
  of("keepText").textContent = Math.round(keep * 100) + " %";
  of("count").textContent = kept + " of " + rows * columns;
}
for (const id of ["frame", "keep"]) of(id).addEventListener("input", draw);
of("strategy").addEventListener("change", draw);
Promise.all(images.map(image => image.decode())).then(draw);
</script></body></html>
"""
