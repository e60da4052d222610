"""Information-intensive frame selection on one video: candidates, counts, probabilities, sampled frames.

The figure follows EVEREST's Figures 3 and 10.

S candidate time indices (pairs of p = 2 frames), t time indices of a clip, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everest.checkpoints.describe import find_training_clip
from everest.checkpoints.load import LoadedModel
from everest.data.crops import resize
from everest.data.footage import read_footage
from everest.data.frames import spread_frames
from everest.errors import DataError, RecipeError
from everest.figures.masks import NO_MODEL, scale_size
from everest.figures.rows import ROW_LENGTH, SMALL_POINTS, format_range, with_three_channels
from everest.figures.style import COLORS, LIGHT_GRAY, escape_dollars, saved_figure
from everest.lists.sample import Sample
from everest.methods.grid import TokenGrid, num_candidates
from everest.methods.selection import RedundancyRobust, count_kept_tokens, sample_time_indices
from everest.video.reader import read_frames, video_info


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """The options of `select-frames`."""

    keep: float = 0.3  # fraction of kept tokens among the tokens of all candidates
    frames: int = 16  # frames of the clip
    stride: int | None = None  # largest stride of the candidates, in the middle; None spreads them out
    alpha: float = 1.5  # candidates per selected frame
    size: int = 224  # pixels of the shorter side; a checkpoint has its own size
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class FrameSelection:
    """The candidates of one video, and the candidates that were sampled for a clip."""

    video: Path
    options: SelectionOptions
    frames_total: int
    numbers: list[tuple[int, ...]]  # S: frame numbers of each candidate time index
    frames: Tensor  # (S * p, H, W, 3) uint8, the candidates; gray if the model takes luma
    counts: Tensor  # (S,) number of kept tokens per candidate
    sampled: Tensor  # (t,) candidate numbers, ascending

    def to_dict(self) -> dict[str, Any]:
        """Return the values of --json."""
        selected = [self.numbers[i] for i in self.sampled.tolist()]
        counts = self.counts.tolist()
        total = max(sum(counts), 1)
        return {
            "video": str(self.video),
            "frames_total": self.frames_total,
            "alpha": self.options.alpha,
            "candidate_pairs": [list(pair) for pair in self.numbers],
            "counts": counts,
            # The probability of each candidate in the first draw: c_i / sum of c (EVEREST §4.2).
            "probabilities": [round(count / total, 6) for count in counts],
            "selected_pairs": [list(pair) for pair in selected],
            "frames": [number for pair in selected for number in pair],
            "seed": self.options.seed,
        }


def select_video_frames(
    video: Path, options: SelectionOptions, checkpoint: LoadedModel | None
) -> FrameSelection:
    """Select the frames of a clip from `alpha` times as many candidates of a video, at random by change.

    Args:
        checkpoint: its embedding measures change, at its frame rate and size; None: raw pixels measure it.
    """
    model, info, fps, embed = None, video_info(video), None, NO_MODEL
    size = scale_size(options.size, info, multiples=NO_MODEL.tubelet[1:])
    if checkpoint is not None:
        model, clip = checkpoint.transformer, find_training_clip(checkpoint)
        size, fps, embed = model.spec.size, clip and clip.fps, model.embedding
    pair = embed.tubelet[0]
    if options.frames % pair:
        raise RecipeError(f"--frames {options.frames}: must be a multiple of {pair}")
    num_time_indices = options.frames // pair
    wanted = num_candidates(num_time_indices, options.alpha) * pair
    footage = read_footage(Sample(path=str(video)), fps)
    count = footage.num_frames
    if count < wanted:
        rate = "" if fps is None else f" at {fps:g} per second"
        raise DataError(
            f"{video}: {count} frames{rate}, but --frames and --alpha ask for {wanted} candidates; choose a "
            "smaller one"
        )
    positions = spread_frames(count, wanted, 0.5)
    if options.stride is not None:
        stride = min(options.stride, count // wanted)
        positions = (count - ((wanted - 1) * stride + 1)) // 2 + stride * np.arange(wanted)
    ids: list[int] = footage.file_ids(positions).tolist()
    candidates = read_frames(video, ids, channels=embed.pixels.channels)  # (S * p, H, W, C)
    x = embed.pixels.normalize(resize(candidates, size, antialias=True))[None]
    x = x if model is None else model.to_input(x)
    grid = TokenGrid.of_clip(frames=x.size(2), size=(x.size(3), x.size(4)), tubelet=embed.tubelet)
    strategy = RedundancyRobust(keep_ratio=options.keep)
    counts = count_kept_tokens(strategy, strategy.importance(x, embed), grid)  # (1, S)
    uniform = np.random.default_rng(options.seed).random(counts.shape, dtype=np.float32)
    (sampled,) = sample_time_indices(counts, torch.from_numpy(uniform), num_time_indices)  # (t,)
    return FrameSelection(
        video=video,
        options=options,
        frames_total=info.num_frames,
        numbers=[tuple(ids[i : i + pair]) for i in range(0, len(ids), pair)],
        frames=with_three_channels(candidates),
        counts=counts[0],
        sampled=sampled,
    )


def draw_selection(path: Path, selection: FrameSelection) -> None:
    """Draw the first frame of every candidate pair, faded unless sampled, and their counts below."""
    num_pairs = len(selection.numbers)
    sampled = set(selection.sampled.tolist())
    rows = -(-num_pairs // ROW_LENGTH)
    height, width = selection.frames.shape[1:3]
    column = min(1.5 * max(width / height, 0.6), 1.8)  # inches
    line = column * height / width + 0.35
    names = [format_range(pair) for pair in selection.numbers]
    colors = [COLORS[0] if number in sampled else LIGHT_GRAY for number in range(num_pairs)]
    first_frames = selection.frames[:: len(selection.numbers[0])].numpy() / 255
    with saved_figure(path, (column * ROW_LENGTH + 0.8, line * rows + 2.6), points=9, framed=True) as figure:
        grid = figure.add_gridspec(rows + 1, ROW_LENGTH, height_ratios=[line] * rows + [1.7])
        for number, (frame, name) in enumerate(zip(first_frames, names, strict=True)):
            panel = figure.add_subplot(grid[divmod(number, ROW_LENGTH)])
            panel.axis("off")
            panel.imshow(frame if number in sampled else frame + (1 - frame) * 0.72)  # faded to white
            panel.set_title(name, fontsize=SMALL_POINTS, color=COLORS[0] if number in sampled else "#666666")
        counts = figure.add_subplot(grid[rows, :])
        counts.bar(range(num_pairs), selection.counts.numpy(), color=colors)
        step = -(-num_pairs // 24)  # 24 names fit under the bars
        counts.set_xticks(range(0, num_pairs, step), names[::step], fontsize=SMALL_POINTS)
        counts.set(xlabel="frames of the pair, counted from 0 in the video", ylabel="kept tokens")
        title = f"{selection.video.name}: {len(sampled)} of {num_pairs} candidate pairs are sampled (blue)"
        figure.suptitle(escape_dollars(title), fontsize=10)
