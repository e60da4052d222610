"""Information-intensive frame selection on one video, to look at: candidates, counts, chances, what is drawn.

S candidate slices (pairs of frames), t slices of a clip, N tokens, D draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everest.data.crops import resize
from everest.errors import DataError
from everest.mask_view import Transformer
from everest.methods.frame_selection import draw_slices, kept_per_slice, num_candidates
from everest.methods.grid import TokenGrid
from everest.methods.importance import RawPixels
from everest.methods.strategies import FrameDifference, RedundancyRobust
from everest.video.pixels import normalise
from everest.video.reader import probe, read_frames


@dataclass(frozen=True, kw_only=True)
class FrameView:
    """The draw of one video's clip."""

    video: Path
    frames_total: int
    alpha: float
    seed: int
    numbers: list[tuple[int, ...]]  # S: frame numbers of each candidate slice
    frames: Tensor  # (S * p, H, W, 3) uint8, the candidates
    counts: Tensor  # (S,) kept tokens
    drawn: Tensor  # (t,) candidate numbers, ascending
    inclusion: Tensor | None  # (S,) share of D draws that took a candidate

    @property
    def probabilities(self) -> list[float]:
        """The chance of each candidate in the first draw: c_i / sum of c (EVEREST §4.2)."""
        total = max(int(self.counts.sum()), 1)
        return [round(count / total, 6) for count in self.counts.tolist()]

    def told(self) -> dict[str, Any]:
        """For scripts."""
        selected = [self.numbers[i] for i in self.drawn.tolist()]
        found: dict[str, Any] = {
            "video": str(self.video),
            "frames_total": self.frames_total,
            "alpha": self.alpha,
            "candidate_pairs": [list(pair) for pair in self.numbers],
            "counts": self.counts.tolist(),
            "probabilities": self.probabilities,
            "selected_pairs": [list(pair) for pair in selected],
            "frames": [number for pair in selected for number in pair],
            "seed": self.seed,
        }
        if self.inclusion is not None:
            found["inclusion"] = [round(share, 6) for share in self.inclusion.tolist()]
        return found


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How frames are drawn from a video.

    Args:
        frames: T, of the clip; `alpha` times as many are candidates.
        size: pixels of the shorter side at which change is measured without a model.
        draws: how often to draw for `inclusion`; 0 for never.
    """

    selector: RedundancyRobust | FrameDifference
    frames: int
    stride: int
    alpha: float
    size: int
    seed: int
    draws: int
    model: Transformer | None

    def view(self, video: Path) -> FrameView:
        """Read the middle of a video and draw.

        Raises:
            VideoError: the video cannot be read.
            DataError: it is shorter than the candidates at one frame a step.
        """
        embed = RawPixels((2, 16, 16)) if self.model is None else self.model.encoder.patch_embed
        pair = embed.tubelet[0]
        slices = self.frames // pair
        candidates = num_candidates(slices, self.alpha)
        info = probe(video)
        if info.frames < candidates * pair:
            raise DataError(
                f"{video}: {info.frames} frames, fewer than the {candidates * pair} candidates; "
                "choose a smaller --frames or --alpha"
            )
        stride = min(self.stride, info.frames // (candidates * pair))
        start = (info.frames - ((candidates * pair - 1) * stride + 1)) // 2
        ids = [start + stride * i for i in range(candidates * pair)]
        frames = read_frames(video, ids)  # (S * p, H, W, 3)
        x = normalise(resize(frames, self._size(info.height, info.width), antialias=True))[None]
        grid = TokenGrid.of_clip(frames=x.size(2), size=(x.size(3), x.size(4)), tubelet=embed.tubelet)
        importance = self.selector.importance(x, embed)
        counts = kept_per_slice(self.selector, importance, grid)  # (1, S)
        uniform = torch.from_numpy(
            np.random.default_rng(self.seed).random((1 + self.draws, candidates), dtype=np.float32)
        )
        drawn = draw_slices(counts.expand(1 + self.draws, -1), uniform, slices)  # (1 + D, t)
        return FrameView(
            video=video,
            frames_total=info.frames,
            alpha=self.alpha,
            seed=self.seed,
            numbers=[tuple(ids[i : i + pair]) for i in range(0, len(ids), pair)],
            frames=frames,
            counts=counts[0],
            drawn=drawn[0],
            inclusion=_inclusion(drawn[1:], candidates) if self.draws else None,
        )

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.model is not None:
            encoder = self.model.encoder
            _, p, q = encoder.patch_embed.tubelet
            return encoder.grid.h * p, encoder.grid.w * q
        scale = self.size / min(height, width)
        return max(round(height * scale / 16), 1) * 16, max(round(width * scale / 16), 1) * 16


def _inclusion(drawn: Tensor, candidates: int) -> Tensor:
    """(S,) the share of the draws (D, t) in which each candidate was taken."""
    return torch.bincount(drawn.flatten(), minlength=candidates) / len(drawn)
