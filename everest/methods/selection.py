"""Strategies: which tokens of a clip are encoded, and which are predicted.

Tokens are selected in two steps: `measure_importance` gives each token of a clip a number (masks, which do
not look at the clip, have none), and a call of the strategy, its rule, chooses tokens by these numbers: a
`TokenSelection` of their ids. The rule draws by sorting the uniform `noise` that the caller passes, so a
selection is a pure function with the same result on every machine. The key `selection` of a recipe holds a
strategy.

Here are the strategies that rank tokens by how much they change, EVEREST's first, and its
information-intensive frame selection (§4.2), which draws the time indices of a clip from more candidates.
What the paper leaves open is our choice, and marked. All other strategies are in everest.methods.strategies.

B batch, C channels, T frames, H W pixels, N tokens, K visible and M target tokens, t h w the grid's time
indices, rows and columns, S candidate time indices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated, ClassVar, Final, Literal, Self, cast

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.external import is_import_path, name_by_class
from everest.methods.grid import TokenGrid, TokenSelection, is_keep_ratio, num_kept
from everest.methods.importance import (
    DistanceName,
    Embedding,
    FirstTimeIndex,
    Scorer,
    embedding_change,
    pixel_change,
)

Ratio = Annotated[float, Field(gt=0, le=1)]
RatioOrZero = Annotated[float, Field(ge=0, le=1)]
MIN_UNIFORM: Final = 1e-6  # heuristic: where too few tokens change, others are sampled as well


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """Base class of the strategies: a frozen dataclass, whose fields are its settings in a recipe."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    strategy: str = ""  # its name in a recipe; of another package: its import path
    cell: ClassVar[int] = 1  # the rows and columns of the grid must be multiples of this
    ratio_setting: ClassVar[str] = "mask_ratio"  # the setting that `keeping` changes

    def __post_init__(self) -> None:
        name_by_class(self, "strategy")

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor | None:
        """The importance (B, N) float32 of the tokens of clips (B, C, T, H, W), by default None.

        A strategy of another package gets normalized clips; a strategy of everest may also get bytes.
        """
        return None

    @abstractmethod
    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        """The rule: choose tokens.

        Args:
            importance: (B, N) float32; None for a strategy that computes none.
            noise: (B, N) uniform in [0, 1); on the `meta` device when only the counts are needed.
        Returns:
            The ids of the tokens. Their numbers K and M may depend on the grid only.
        """

    @property
    def is_external(self) -> bool:
        """Whether another package defines the strategy."""
        return is_import_path(self.strategy)

    @property
    def uses_importance(self) -> bool:
        """Whether the rule depends on the importance; otherwise it is not measured."""
        return True

    @property
    def needs_tokenizer(self) -> bool:
        """Whether a trained tokenizer gives the importance."""
        return False

    def keeping(self, fraction: float) -> Strategy:
        """The same strategy, encoding a `fraction` of all tokens, of all positions or of all time indices."""
        if not is_keep_ratio(fraction):
            raise ValueError(
                f"a fraction of the tokens to keep is more than 0 and at most 1, not {fraction!r}"
            )
        if self.ratio_setting not in vars(self):
            raise RecipeError(
                f"{self.strategy} has no fraction of tokens to change; define its method `keeping`"
            )
        # On the decimals as they were written, like `num_kept`.
        value = float(1 - Decimal(str(fraction))) if self.ratio_setting == "mask_ratio" else fraction
        return replace(self, **{self.ratio_setting: value})

    def at_evaluation(self, keep: float | None = None) -> Strategy:
        """The strategy that a classifier uses after training. Its choice must not depend on the noise.

        Args:
            keep: the fraction of the tokens to encode; None: as in training.
        """
        return self if keep is None else self.keeping(keep)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each setting that is invalid or contradicts another, and the reason.

        By default, ratios must be from 0 to 1: another package may declare them as plain floats.
        """
        for name, value in vars(self).items():
            if name.endswith("_ratio") and isinstance(value, float) and not 0 <= value <= 1:
                yield name, f"must be from 0 to 1, not {value}"


def measure_importance(
    strategy: Strategy, frames: Tensor, embed: Embedding, scorer: Scorer | None
) -> Tensor | None:
    """Measure the importance (B, N) by which a strategy ranks the tokens of clips (B, C, T, H, W).

    Args:
        frames: bytes or normalized.
        scorer: a tokenizer's, which gives the importance if the strategy needs it.
    Returns:
        None if the strategy computes none.
    Raises:
        RecipeError: a strategy of another package returned another shape, or there is no scorer.
        ValueError: the clips have another number of channels than the embedding.
    """
    if frames.size(1) != embed.pixels.channels:
        raise ValueError(f"expected clips of {embed.pixels.channels} channels, got {tuple(frames.shape)}")
    if strategy.needs_tokenizer:
        if scorer is None:
            raise RecipeError(
                f"{strategy.strategy} needs a trained tokenizer, as everest train-tokenizer makes it"
            )
        return scorer(frames)
    if strategy.is_external:
        frames = embed.pixels.normalized(frames)
    importance = strategy.importance(frames, embed)
    size = frames.size(3), frames.size(4)
    grid = TokenGrid.of_clip(frames=frames.size(2), size=size, tubelet=embed.tubelet)
    shape = (frames.size(0), grid.num_tokens)
    if importance is not None and importance.shape != shape:
        raise RecipeError(
            f"{strategy.strategy}: its importance has the shape {tuple(importance.shape)}, not {shape}: one "
            "number for each token"
        )
    return importance


def ascending(ids: Tensor) -> Tensor:
    """Sort the ids of each clip (a row)."""
    return ids.sort(dim=1).values


def split(kept: Tensor, noise: Tensor, num_visible: int) -> TokenSelection:
    """Draw `num_visible` of the kept tokens (B, K + M) as visible tokens; the others are the target.

    Args:
        noise: (B, N) uniform in [0, 1), by which the tokens are sampled.
    """
    order = noise.gather(1, kept).argsort(dim=1, stable=True)
    shuffled = kept.gather(1, order)
    return TokenSelection(ascending(shuffled[:, :num_visible]), ascending(shuffled[:, num_visible:]))


@dataclass(frozen=True, kw_only=True)
class TopK(Strategy):
    """Keeps the most important tokens, encodes a random part of them and predicts the others.

    EVEREST §4.1 predicts all kept tokens; the official code and the paper's own cost tables predict only
    those that are not visible, and so does this class.
    """

    ratio_setting: ClassVar[str] = "keep_ratio"
    keep_ratio: Ratio = 0.3  # rho_pre, EVEREST Table 7
    visible_ratio: Ratio | None = 0.1  # rho_pre * rho_post, EVEREST §4.1; None: all kept tokens
    order: Literal["descending", "ascending"] = "descending"  # EVEREST Table 16

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        assert importance is not None, "this strategy ranks by importance"
        kept = self.kept_ids(grid, importance)  # (B, K + M)
        if self.visible_ratio is None:
            return TokenSelection(ascending(kept), kept[:, :0])
        return split(kept, noise, num_kept(grid.num_tokens, self.visible_ratio))

    def kept_ids(self, grid: TokenGrid, importance: Tensor) -> Tensor:
        """The ids (B, K + M) of the kept tokens of `grid`, the most important first."""
        # Stable: the first time index copies the second time index's distances, so ties are common.
        order = importance.argsort(dim=1, descending=self.order == "descending", stable=True)  # (B, N)
        return order[:, : num_kept(grid.num_tokens, self.keep_ratio)]

    def keeping(self, fraction: float) -> Self:
        return replace(cast("Self", super().keeping(fraction)), visible_ratio=None)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if (self.visible_ratio or 0) > self.keep_ratio:
            yield "visible_ratio", f"{self.visible_ratio} is more than keep_ratio ({self.keep_ratio})"


@dataclass(frozen=True, kw_only=True)
class ByEmbeddingChange(TopK):
    """Importance is the change of the embeddings k since the time index before (EVEREST §4.1).

    I(i+1, j) = S(k(i+1, j), k(i, j)) is the importance of position j in time index i+1, with the distance S
    (eq. 2).
    """

    distance: DistanceName = "l2"  # EVEREST Table 9
    first_slice: FirstTimeIndex = "copy"  # official code: copy

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor:
        return embedding_change(frames, embed, self.distance, self.first_slice)


@dataclass(frozen=True, kw_only=True)
class RedundancyRobust(ByEmbeddingChange):
    """EVEREST §4.1: of all N tokens, keeps those with the rho_pre N highest I."""

    strategy: Literal["redundancy-robust"] = "redundancy-robust"


@dataclass(frozen=True, kw_only=True)
class FrameDifference(TopK):
    """A baseline: keeps the tokens whose pixels differ most from the frame before. It uses no embedding."""

    strategy: Literal["frame-difference"] = "frame-difference"

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor:
        return pixel_change(frames, embed.tubelet, embed.pixels)


@dataclass(frozen=True, kw_only=True)
class Sampled(ByEmbeddingChange):
    """Draws tokens without replacement, changed tokens with a higher probability. Our choice.

    A token's probability is uniform / N + (1 - uniform) * change / sum of all changes, where change is its
    importance minus the lowest importance in the clip. The sampled tokens are the top k by log probability
    plus Gumbel noise (Kool et al. 2019, Gumbel top-k): the first are visible, the others are predicted. With
    `uniform: 1`, importance has no effect, and training does not measure it.
    """

    strategy: Literal["sampled"] = "sampled"
    uniform: RatioOrZero = 0.5  # heuristic

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        probability = torch.full_like(noise, max(self.uniform, MIN_UNIFORM) / grid.num_tokens)  # (B, N)
        if self.uses_importance:
            assert importance is not None, "this strategy draws by importance"
            change = importance - importance.amin(dim=1, keepdim=True)  # some distances are negative
            total = change.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            probability = probability + (1 - self.uniform) * change / total
        gumbel = -(-noise.log()).log()
        kept = self.kept_ids(grid, probability.log() + gumbel)  # (B, K + M), in the order of the draw
        num_visible = kept.size(1)
        if self.visible_ratio is not None:
            num_visible = num_kept(grid.num_tokens, self.visible_ratio)
        return TokenSelection(ascending(kept[:, :num_visible]), ascending(kept[:, num_visible:]))

    @property
    def uses_importance(self) -> bool:
        return self.uniform < 1

    def at_evaluation(self, keep: float | None = None) -> RedundancyRobust:
        """The tokens with the highest probabilities."""
        settings = {name: value for name, value in vars(self).items() if name not in ("strategy", "uniform")}
        ranked = RedundancyRobust(**settings)
        return ranked if keep is None else ranked.keeping(keep)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.order != "descending":
            yield "order", "must be descending: what changes most has the highest probability"


def count_kept_tokens(strategy: TopK, importance: Tensor, grid: TokenGrid) -> Tensor:
    """Count the kept tokens in each of S candidate time indices, c_i in the paper: (B, S) int64.

    Args:
        importance: (B, N) float32, of the tokens of all candidate time indices.
        grid: of these tokens.
    """
    kept = strategy.kept_ids(grid, importance)  # (B, K + M)
    counts = torch.zeros(kept.size(0), grid.t, dtype=torch.int64, device=kept.device)
    return counts.scatter_add_(1, kept // grid.num_positions, torch.ones_like(kept))


def sample_time_indices(counts: Tensor, noise: Tensor, num: int) -> Tensor:
    """Sample time indices without replacement, with probability c_i / sum of the c that remain.

    Taking the smallest of -log(u) / c is equivalent to drawing one after the other (Efraimidis and Spirakis
    2006). Time indices without kept tokens come last, in the order of their noise (our choice).

    Args:
        counts: (B, S), the kept tokens of each candidate time index.
        noise: (B, S) uniform in [0, 1).
        num: t, the number of time indices to draw.
    Returns:
        The numbers (B, t) int64 of the sampled time indices, in temporal order.
    """
    smallest = torch.finfo(noise.dtype).tiny
    keys = -noise.clamp_min(smallest).log() / counts  # (B, S), infinite if nothing is kept
    shuffled = noise.argsort(dim=1, stable=True)
    order = shuffled.gather(1, keys.gather(1, shuffled).argsort(dim=1, stable=True))
    return order[:, :num].sort(dim=1).values
