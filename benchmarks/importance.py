"""The importance of tokens against optical flow, and the share of kept tokens on a moving object.

    python benchmarks/importance.py --videos VIDEOS

VIDEOS has `clips.csv` with the columns path, source, group and split. The rank correlation is measured on
real clips of each source; its interval is a bootstrap over groups, too narrow for few of them. Composites
(`composites.py`) are made of test clips and have a known moving object: a token is on it if the object covers
at least a quarter of its tubelet, or of the one before. OpenCV computes the flow (Farneback). The importance
is that of pixels, as in `everest visualize-mask` without a checkpoint. `evidence_page.py` writes the tables.

T frames, H W pixels, N tokens.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from composites import CAMERAS, FRAMES, SIZE, make_composite
from measuring import HERE, machine
from scipy.stats import bootstrap, spearmanr
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from everest.methods.grid import num_kept
from everest.methods.importance import RawPixels
from everest.methods.ranked import FrameDifference, RedundancyRobust
from everest.methods.selector import measure
from everest.video.reader import probe, read_frames

TUBELET: Final = (2, 8, 8)  # of frames of 112 pixels: the grid of 16 x 16 pixels at 224
LIMIT: Final = "the tokens of the object first"  # not a measure: what the best one could reach
KEPT: Final = (0.1, 0.3, 0.6)
COVERED: Final = 0.25  # our choice
COMPOSITES: Final = 40  # of each camera
CLIPS: Final = 24  # of each source
SEED: Final = 1
RESULTS: Final = HERE / "results" / "importance.json"

Measure = Callable[[Tensor], Tensor]  # frames (T, H, W, 3) uint8 to (N,) float


def by_strategy(strategy: RedundancyRobust | FrameDifference) -> Measure:
    """The importance of a strategy on pixels."""

    def measured(frames: Tensor) -> Tensor:
        found = measure(strategy, frames.movedim(-1, 0)[None], RawPixels(TUBELET))
        assert found is not None
        return found[0]

    return measured


def optical_flow(frames: Tensor) -> Tensor:
    """(T, H, W, 2) float32: how far each pixel has moved since the frame before; zero in the first frame."""
    gray = [cv2.cvtColor(frame.numpy(), cv2.COLOR_RGB2GRAY) for frame in frames]
    flows = [np.zeros((SIZE, SIZE, 2), np.float32)]
    for before, now in pairwise(gray):
        start = np.zeros((SIZE, SIZE, 2), np.float32)
        flows.append(cv2.calcOpticalFlowFarneback(before, now, start, 0.5, 4, 9, 3, 5, 1.1, 0))
    return torch.from_numpy(np.stack(flows))


def flow_length(frames: Tensor) -> Tensor:
    """The mean length (N,) of the flow in each tubelet."""
    return tokens_of(optical_flow(frames).norm(dim=-1))


def flow_without_camera(frames: Tensor) -> Tensor:
    """The same after subtracting the median flow of each frame."""
    flow = optical_flow(frames)
    median = flow.flatten(1, 2).median(dim=1).values  # (T, 2)
    return tokens_of((flow - median[:, None, None]).norm(dim=-1))


def tokens_of(values: Tensor) -> Tensor:
    """The mean of values (T, H, W) in each tubelet: (N,)."""
    return F.avg_pool3d(values[None, None].float(), TUBELET)[0, 0].flatten()


MEASURES: Final[dict[str, Measure]] = {
    "L2": by_strategy(RedundancyRobust()),
    "L2, shift": by_strategy(RedundancyRobust(align="shift", cuts="detect")),
    "L2, affine": by_strategy(RedundancyRobust(align="affine", cuts="detect")),
    "frame difference": by_strategy(FrameDifference()),
    "frame difference, affine": by_strategy(FrameDifference(align="affine", cuts="detect")),
    "optical flow": flow_length,
    "optical flow without its median": flow_without_camera,
}


def on_object(mask: Tensor) -> Tensor:
    """Whether the object covers each token, or covered it in the slice before: (N,) bool."""
    covered = tokens_of(mask).view(FRAMES // TUBELET[0], -1) >= COVERED  # (slices, places)
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
            for name, importance in MEASURES.items():
                found[name].append(_shares(importance(clip.frames), inside))
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
    slices = FRAMES // TUBELET[0]
    after_middle = torch.arange(len(order)) // (len(order) // slices) == slices // 2
    shares = []
    for kept in KEPT:
        chosen = order[: num_kept(len(order), kept)]
        hits = inside[chosen].sum().item()
        shares += [
            hits / len(chosen),
            hits / max(1, int(inside.sum())),
            after_middle[chosen].float().mean().item(),
        ]
    return shares


def correlate(clips: dict[str, list[tuple[Path, str]]]) -> list[dict[str, Any]]:
    """The rank correlation of each measure with optical flow, for each source."""
    rows = []
    for source, of_source in clips.items():
        by_group: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for path, group in of_source:
            frames = _frames(path)
            flow = flow_length(frames)
            later = len(flow) // (FRAMES // TUBELET[0])  # the first slice copies the importance of the next
            for name in ("L2", "frame difference"):
                found: Any = spearmanr(MEASURES[name](frames)[later:], flow[later:])
                by_group[name][group].append(float(found.statistic))
        for name, groups in by_group.items():
            means = np.array([np.mean(values) for values in groups.values()])
            interval = bootstrap((means,), np.mean, rng=np.random.default_rng(SEED)).confidence_interval
            rows.append(
                {
                    "source": source,
                    "measure": name,
                    "clips": len(of_source),
                    "groups": len(groups),
                    "correlation": float(means.mean()),
                    "interval": [float(interval.low), float(interval.high)],
                }
            )
    return rows


def _frames(path: Path) -> Tensor:
    """T frames (T, H, W, 3) uint8 from the middle of a clip, squashed to a square."""
    count = probe(path).frames
    numbers = np.minimum(max(0, (count - FRAMES) // 2) + np.arange(FRAMES), count - 1)
    return resize(read_frames(path, numbers.tolist()).movedim(-1, 1), [SIZE, SIZE], antialias=True).movedim(
        1, -1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--composites", type=int, default=COMPOSITES, help="of each camera")
    parser.add_argument("--clips", type=int, default=CLIPS, help="of each source")
    parser.add_argument(
        "--split", default="test", help="of the clips in composites; train was used for choices"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    videos: Path = arguments.videos
    rng = np.random.default_rng(SEED)
    with (videos / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_source: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for row in rows:
        if row["split"] == "train":
            by_source[row["source"]].append((videos / row["path"], row["group"]))
    chosen = {
        source: [clips[i] for i in rng.permutation(len(clips))[: arguments.clips]]
        for source, clips in by_source.items()
    }

    def paths(*sources: str) -> list[Path]:
        """Of the chosen split, in the order of the sources."""
        wanted = [row for source in sources for row in rows if row["source"] == source]
        return [videos / row["path"] for row in wanted if row["split"] == arguments.split]

    document = {
        "machine": machine(),
        "correlation": correlate(chosen),
        "composites": measure_composites(
            paths("tennis", "surveillance"), paths("interaction", "tabletennis"), arguments.composites
        ),
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(arguments.output)


if __name__ == "__main__":
    main()
