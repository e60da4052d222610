"""The strategies that do not rank by change: masks and LVMAE's; and all strategies by their names.

B batch, N tokens, M target tokens, t h w the grid's time indices, rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

import torch
from pydantic import Discriminator
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.external import external
from everest.methods.grid import TokenGrid, TokenSelection, num_kept
from everest.methods.importance import Embedding, pixel_change
from everest.methods.selection import (
    FrameDifference,
    Ratio,
    RatioOrZero,
    RedundancyRobust,
    Sampled,
    Strategy,
    TopK,
    ascending,
    split,
)

__all__ = [  # the public names of everest.strategies
    "STRATEGIES",
    "AllTokens",
    "FrameDifference",
    "FrameWise",
    "LearnedImportance",
    "RandomSpaceTime",
    "Ratio",
    "RatioOrZero",
    "RedundancyRobust",
    "RunningCell",
    "Sampled",
    "Strategy",
    "TokenGrid",
    "TokenSelection",
    "TopK",
    "Tube",
    "TubeDropout",
    "num_kept",
    "split",
]

ScoreName = Literal["learned", "random", "frame-difference"]


def random_tubes(grid: TokenGrid, noise: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Draw tubes: the tokens at `num` random positions, the same at every time index.

    Args:
        noise: (B, N) uniform in [0, 1); only the numbers of the first time index count.
    Returns:
        The ids (B, t * num) of the sampled tokens and (B, t * (h*w - num)) of all others, ascending.
    """
    positions = noise[:, : grid.num_positions].argsort(dim=1, stable=True)  # (B, h*w)
    starts = torch.arange(grid.t, device=noise.device).view(1, -1, 1) * grid.num_positions  # (1, t, 1)
    sampled, others = ascending(positions[:, :num]), ascending(positions[:, num:])
    return (starts + sampled.unsqueeze(1)).flatten(1), (starts + others.unsqueeze(1)).flatten(1)


@dataclass(frozen=True, kw_only=True)
class Tube(Strategy):
    """VideoMAE's tube masking (Tong et al. 2022, §3.3): one random map, masked at every time index."""

    strategy: Literal["tube"] = "tube"
    mask_ratio: Ratio = 0.9  # VideoMAE §3.3; the number of masked positions is rounded down: 176 of 196

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        num_visible = grid.num_positions - num_kept(grid.num_positions, self.mask_ratio)
        return TokenSelection(*random_tubes(grid, noise, num_visible))


@dataclass(frozen=True, kw_only=True)
class RandomSpaceTime(Strategy):
    """ST-MAE's masking (Feichtenhofer et al. 2022, §3.2): tokens sampled uniformly from the whole clip."""

    ratio_setting: ClassVar[str] = "visible_ratio"
    strategy: Literal["random"] = "random"
    visible_ratio: Ratio = 0.1  # ST-MAE masks 90 %; the number of visible tokens is rounded down: 156 of 1568

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        tokens = torch.arange(grid.num_tokens, device=noise.device).expand(noise.size(0), -1)
        return split(tokens, noise, num_kept(grid.num_tokens, self.visible_ratio))


@dataclass(frozen=True, kw_only=True)
class FrameWise(Strategy):
    """VideoMAE's frame masking (Tong et al. 2022, Table 1b): whole time indices are masked and predicted."""

    strategy: Literal["frame"] = "frame"
    mask_ratio: Ratio = 0.875  # VideoMAE Table 1b; the number of masked time indices is rounded down: 7 of 8

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        num_visible = grid.t - num_kept(grid.t, self.mask_ratio)
        time_indices = noise[:, : grid.t].argsort(dim=1, stable=True)  # (B, t)
        positions = torch.arange(grid.num_positions, device=noise.device)  # (h*w,)
        visible, target = ascending(time_indices[:, :num_visible]), ascending(time_indices[:, num_visible:])
        return TokenSelection(
            *(
                (chosen.unsqueeze(2) * grid.num_positions + positions).flatten(1)
                for chosen in (visible, target)
            )
        )


@dataclass(frozen=True, kw_only=True)
class RunningCell(Strategy):
    """Running cells of 2 x 2 positions: those chosen in each cell move by one position with every time index.

    VideoMAE V2 (Wang et al. 2023, §3.2) predicts the cells and encodes a tube; tokens that are visible and
    predicted do not count in the loss. MAR (Qing et al. 2023, §3.2) encodes the cells and predicts the rest.
    The papers do not state the order of the positions. Here they are counted row by row, and the chosen
    positions move back (VideoMAE V2) or forward (MAR), as in the official code.
    """

    cell: ClassVar[int] = 2
    strategy: Literal["running-cell"] = "running-cell"
    encoder: Literal["tube", "running-cell"] = "tube"  # VideoMAE V2; MAR: running-cell
    mask_ratio: Ratio = 0.9  # VideoMAE V2; MAR: 0.5. The number of masked positions is rounded down
    target_ratio: Ratio = 0.5  # VideoMAE V2 and MAR; predicted positions of a cell, rounded down

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        if grid.h % self.cell or grid.w % self.cell:
            raise RecipeError(
                f"running cells of 2 x 2 positions do not fill {grid.h} x {grid.w} positions; "
                "choose a size that is a multiple of two tubelets"
            )
        phase = (noise[:, -1] * 4).long()  # (B,): the position of each cell that comes first
        num_target = num_kept(4, self.target_ratio)
        if self.encoder == "tube":
            visible = Tube(mask_ratio=self.mask_ratio)(grid, importance=None, noise=noise).visible
            return TokenSelection(visible, _running(grid, phase, num_target, move=-1))
        num_visible = 4 - num_kept(4, self.mask_ratio)
        target = _running(grid, phase + num_visible, min(num_target, 4 - num_visible), move=1)
        return TokenSelection(_running(grid, phase, num_visible, move=1), target)


def _running(grid: TokenGrid, phase: Tensor, num: int, *, move: Literal[-1, 1]) -> Tensor:
    """Choose `num` positions of each cell, beginning at `phase` + `move` * time index: ids (B, N * num / 4).

    Args:
        phase: (B,) int64, the first chosen position of a cell in time index 0.
        move: the positions by which the choice moves from one time index to the next.
    """
    row = torch.arange(grid.h, device=phase.device).view(-1, 1) % 2  # (h, 1)
    column = torch.arange(grid.w, device=phase.device) % 2  # (w,)
    time_index = torch.arange(grid.t, device=phase.device).view(-1, 1, 1)  # (t, 1, 1)
    # The position of a token in the queue of its cell: the first `num` are chosen.
    position = (2 * row + column - move * time_index - phase.view(-1, 1, 1, 1)) % 4  # (B, t, h, w)
    order = position.flatten(1).argsort(dim=1, stable=True)  # (B, N): position 0 of all cells, then 1, …
    return ascending(order[:, : grid.num_tokens // 4 * num])


@dataclass(frozen=True, kw_only=True)
class AllTokens(Strategy):
    """Encodes all tokens and predicts none: ordinary fine-tuning."""

    strategy: Literal["all"] = "all"

    def keeping(self, fraction: float) -> AllTokens | RedundancyRobust:
        """Keep a fraction of the tokens by redundancy-robust, because `all` has no ranking."""
        return self if fraction == 1 else RedundancyRobust().keeping(fraction)

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        tokens = torch.arange(grid.num_tokens, device=noise.device).expand(noise.size(0), -1)
        return TokenSelection(tokens, tokens[:, :0])


@dataclass(frozen=True, kw_only=True)
class TubeDropout(Strategy):
    """Drops random tubes in fine-tuning (LVMAE §4.1): keeps the same random positions at every time index."""

    ratio_setting: ClassVar[str] = "keep_ratio"
    strategy: Literal["tube-dropout"] = "tube-dropout"
    keep_ratio: Ratio = 0.8  # LVMAE §4.1 drops 20 %; the number of kept positions is rounded down

    def at_evaluation(self, keep: float | None = None) -> AllTokens | RedundancyRobust:
        """All tokens. Our choice: LVMAE does not state which tokens it encodes in evaluation."""
        return AllTokens() if keep is None else AllTokens().keeping(keep)

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        kept, _ = random_tubes(grid, noise, num_kept(grid.num_positions, self.keep_ratio))
        return TokenSelection(kept, kept[:, :0])


@dataclass(frozen=True, kw_only=True)
class LearnedImportance(Strategy):
    """LVMAE's selection (§3.2): encodes random tubes and predicts a small fraction of the other tokens.

    The target is `keep_ratio` of all tokens by score and `random_ratio` at random. Visible tokens are never
    targets, so all targets count in the loss. In the paper a trained tokenizer gives the score.

    Args:
        score: how the targets are chosen. On rendered clips, the top-1 is 42 % with `learned`, 38 % with
            `frame-difference`, which needs no tokenizer, and 20 % with `random`
            (benchmarks/evidence/lvmae-few.yaml).
    """

    strategy: Literal["learned-importance"] = "learned-importance"
    mask_ratio: Ratio = 0.9  # LVMAE §4.1; the number of masked positions is rounded down, as in `tube`
    keep_ratio: Ratio = 0.10  # LVMAE §4.1
    random_ratio: RatioOrZero = 0.05  # LVMAE §4.1
    score: ScoreName = "learned"

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor | None:
        return pixel_change(frames, embed.tubelet, embed.pixels) if self.score == "frame-difference" else None

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        visible = Tube(mask_ratio=self.mask_ratio)(grid, importance=None, noise=noise).visible  # (B, K)
        noise = _independent_of_tubes(noise, visible, grid)  # (B, N)
        seen = torch.zeros_like(noise).scatter_(1, visible, 1.0)  # (B, N): 1 for a visible token, else 0
        num_hidden = grid.num_tokens - visible.size(1)
        num_important = min(num_kept(grid.num_tokens, self.keep_ratio), num_hidden)
        num_random = min(num_kept(grid.num_tokens, self.random_ratio), num_hidden - num_important)
        if self.score == "random":
            return TokenSelection(visible, _smallest(2 * seen + noise, num_important + num_random))
        assert importance is not None, "this score ranks by importance"
        # Ties, common in a still clip, are in random order: token order would favor the first time indices.
        shuffled = noise.argsort(dim=1, stable=True)  # (B, N)
        unseen = importance.masked_fill(seen.bool(), torch.finfo(importance.dtype).min)  # (B, N)
        order = unseen.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)  # (B, N)
        important = shuffled.gather(1, order[:, :num_important])  # (B, M'), M' of the M targets
        taken = seen.scatter_add(1, important, torch.ones_like(noise))  # (B, N): 1 for visible or important
        sampled = _smallest(taken + noise, num_random)  # (B, M - M')
        return TokenSelection(visible, ascending(torch.cat([important, sampled], dim=1)))

    @property
    def needs_tokenizer(self) -> bool:
        return self.score == "learned"

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.keep_ratio + self.random_ratio > 1:
            both = f"{self.random_ratio} and keep_ratio ({self.keep_ratio})"
            yield "random_ratio", f"{both} are more than all tokens"


def _independent_of_tubes(noise: Tensor, visible: Tensor, grid: TokenGrid) -> Tensor:
    """Make the noise (B, N) of hidden tokens uniform again, after those of time index 0 chose the tubes.

    The tubes took the smallest numbers. The others are uniform above these, and are stretched to 0 to 1.

    Args:
        visible: (B, K) ids, ascending: the same positions at every time index.
    """
    num_tubes = visible.size(1) // grid.t
    if not num_tubes:
        return noise
    first = noise[:, : grid.num_positions]  # (B, h*w)
    border = first.gather(1, visible[:, :num_tubes]).amax(dim=1, keepdim=True)  # (B, 1)
    stretched = ((first - border) / (1 - border)).clamp(0, 1)  # (B, h*w)
    return torch.cat([stretched, noise[:, grid.num_positions :]], dim=1)


def _smallest(key: Tensor, num: int) -> Tensor:
    """The ids (B, num) with the smallest keys (B, N), ascending."""
    return ascending(key.argsort(dim=1, stable=True)[:, :num])


# In fine-tuning, all kept tokens are encoded. The order is that of messages and figures.
FinetuneStrategy = RedundancyRobust | Sampled | FrameDifference | AllTokens | TubeDropout
ShippedStrategy = (
    RedundancyRobust
    | Sampled
    | FrameDifference
    | Tube
    | TubeDropout
    | RandomSpaceTime
    | RunningCell
    | FrameWise
    | AllTokens
    | LearnedImportance
)
STRATEGIES: dict[str, type[ShippedStrategy]] = {cls.strategy: cls for cls in get_args(ShippedStrategy)}

EXTERNAL = external(Strategy, "strategy")  # further annotations: a strategy of another package
StoredStrategy = Annotated[ShippedStrategy, Discriminator("strategy"), *EXTERNAL]
