"""The share of kept tokens on a moving object, for several motions of the camera.

    python benchmarks/importance.py --videos VIDEOS

VIDEOS has `clips.csv` with the columns path, source and split. Composites (`composites.py`) are made of test
clips and have a known moving object: a token is on it if the object covers at least a quarter of its tubelet,
or of the one before. The importance is that of pixels, as in `everest visualize-mask` without a checkpoint.
`evidence_page.py` writes the table.

T frames, H W pixels, N tokens.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from composites import CAMERAS, FRAMES, make_composite
from measuring import HERE, machine
from torch import Tensor

from everest.methods.grid import num_kept
from everest.methods.importance import RawPixels
from everest.methods.ranked import FrameDifference, RedundancyRobust
from everest.methods.selector import measure

TUBELET: Final = (2, 8, 8)  # of frames of 112 pixels: the grid of 16 x 16 pixels at 224
SLICES: Final = FRAMES // TUBELET[0]
LIMIT: Final = "the tokens of the object first"  # not a measure: what the best one could reach
KEPT: Final = (0.1, 0.3, 0.6)
COVERED: Final = 0.25  # our choice
SEED: Final = 1
RESULTS: Final = HERE / "results" / "importance.json"
MEASURES: Final = {
    "L2": RedundancyRobust(),
    "L2, shift": RedundancyRobust(align="shift", cuts="detect"),
    "L2, affine": RedundancyRobust(align="affine", cuts="detect"),
    "frame difference": FrameDifference(),
    "frame difference, affine": FrameDifference(align="affine", cuts="detect"),
}


def importance_of(strategy: RedundancyRobust | FrameDifference, frames: Tensor) -> Tensor:
    """The importance (N,) of pixels (T, H, W, 3) uint8."""
    found = measure(strategy, frames.movedim(-1, 0)[None], RawPixels(TUBELET))
    assert found is not None
    return found[0]


def on_object(mask: Tensor) -> Tensor:
    """Whether the object covers each token of (T, H, W), or covered it in the slice before: (N,) bool."""
    covered = F.avg_pool3d(mask[None, None].float(), TUBELET)[0, 0].flatten(1) >= COVERED  # (slices, places)
    before = torch.cat([covered[:1], covered[:-1]])
    return (covered | before).flatten()


def measure_composites(images: list[Path], objects: list[Path], count: int) -> list[dict[str, Any]]:
    """For each camera and measure: the mean precision and recall of the kept tokens, and a cut's share."""
    rows = []
    for camera in CAMERAS:
        rng = np.random.default_rng(SEED)  # the same scenes for each camera, except for shakes and cuts
        found: dict[str, list[list[float]]] = defaultdict(list)
        chance = []
        for _ in range(count):
            clip = make_composite(camera, images, objects, rng)
            inside = on_object(clip.mask)
            chance.append(inside.float().mean().item())
            found[LIMIT].append(_shares(inside.float(), inside))
            for name, strategy in MEASURES.items():
                found[name].append(_shares(importance_of(strategy, clip.frames), inside))
        for name, values in found.items():
            means = np.mean(values, axis=0).tolist()
            row: dict[str, Any] = {"camera": camera, "measure": name, "composites": count}
            for number, kept in enumerate(KEPT):
                precision, recall, of_cut = means[3 * number : 3 * number + 3]
                row[f"{kept:g}"] = {"precision": precision, "recall": recall}
                if name != LIMIT:  # whose tokens of the object are equal
                    row[f"{kept:g}"]["of_cut"] = of_cut
            rows.append(row | {"chance": float(np.mean(chance))})
    return rows


def _shares(importance: Tensor, inside: Tensor) -> list[float]:
    """Precision, recall, and the share of the kept tokens in the slice after the middle, for each of KEPT."""
    order = importance.argsort(descending=True, stable=True)
    after_middle = torch.arange(len(order)) // (len(order) // SLICES) == SLICES // 2
    shares = []
    for kept in KEPT:
        chosen = order[: num_kept(len(order), kept)]
        hits = inside[chosen].sum().item()
        shares += [hits / len(chosen), hits / max(1, int(inside.sum()))]
        shares.append(after_middle[chosen].float().mean().item())
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--composites", type=int, default=40, help="of each camera")
    parser.add_argument("--split", default="test", help="of the clips; train was used for choices")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with (arguments.videos / "clips.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == arguments.split]

    def paths(*sources: str) -> list[Path]:
        """In the order of the sources."""
        return [arguments.videos / row["path"] for name in sources for row in rows if row["source"] == name]

    sources = (paths("tennis", "surveillance"), paths("interaction", "tabletennis"))
    document = {"machine": machine(), "composites": measure_composites(*sources, arguments.composites)}
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(arguments.output)


if __name__ == "__main__":
    main()
