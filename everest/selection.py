"""Which tokens are encoded and which are predicted: the masking strategies, and the importance they sort by.

A strategy is a frozen dataclass: its fields are its settings in a recipe, its call is the choice. Every
random choice is a sort of the uniform `noise` handed in, so a selection is a pure function, equal anywhere.

B batch, C channels, T frames, H W pixels, N tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor

from everest.tokens import TokenGrid, TokenSelection, num_kept, patchify

_STRICT = ConfigDict(extra="forbid")

DistanceName = Literal["l2", "l1", "neg-cosine", "neg-cka"]


class Embedding(Protocol):
    """A linear tubelet embedding: patches (B, K, C, t, p, q) to (B, K, D)."""

    @property
    def tubelet(self) -> tuple[int, int, int]: ...

    def __call__(self, patches: Tensor) -> Tensor: ...

    def of_change(self, change: Tensor) -> Tensor:
        """The embedding of a difference of patches: without bias, which cancels."""
        ...


class Selector(Protocol):
    """What a strategy is to the models."""

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor | None:
        """(B, N) float32 measured on the clips (B, C, T, H, W); None for strategies that do not measure."""
        ...

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        """Choose tokens.

        Args:
            importance: (B, N) float32, higher is kept first; None for strategies that do not measure.
            noise: (B, at least N) uniform in [0, 1).
        """
        ...


def _neg_cosine(now: Tensor, before: Tensor) -> Tensor:
    return -F.cosine_similarity(now, before, dim=-1)


def _neg_cka(now: Tensor, before: Tensor) -> Tensor:
    """CKA of one pair of vectors with their channels as samples is the squared Pearson correlation."""
    centred = (x - x.mean(dim=-1, keepdim=True) for x in (now, before))
    return -F.cosine_similarity(*centred, dim=-1).square()


# EVEREST Table 9. The norms are of the embeddings' difference, the others of both embeddings.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda change: change.norm(dim=-1),
    "l1": lambda change: change.abs().sum(dim=-1),
}
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{name: lambda now, before, norm=norm: norm(now - before) for name, norm in NORMS.items()},
    "neg-cosine": _neg_cosine,
    "neg-cka": _neg_cka,
}


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    available = torch.amp.is_autocast_available(device.type)  # not on meta
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


@torch.no_grad()
def change_importance(
    frames: Tensor,
    embed: Embedding,
    tubelet: tuple[int, int, int],
    *,
    distance: DistanceName = "l2",
    first_slice: Literal["copy", "zero"] = "copy",
) -> Tensor:
    """How far each token moved since the slice before: I(i+1, j) = S(k(i+1, j), k(i, j)), EVEREST eq. 2.

    Measured in float32 even under autocast: rounding to bfloat16 changes which tokens are kept. For a norm
    the frames are subtracted first, so that only slices - 1 are embedded and the bias need not cancel.

    Args:
        frames: (B, C, T, H, W) float.
        first_slice: nothing lies before it; `copy` repeats the second slice's, as the released program does.
    Returns:
        (B, N) float32. All zero for a clip of one slice.
    """
    step, b = tubelet[0], frames.size(0)
    places = frames.size(3) // tubelet[1] * (frames.size(4) // tubelet[2])
    if frames.size(2) == step:
        return frames.new_zeros(b, places, dtype=torch.float32)
    with _full_precision(frames.device):
        x = frames.float()
        if distance in NORMS:
            change = patchify(x[:, :, step:] - x[:, :, :-step], tubelet)  # (B, N - h*w, C, t, p, q)
            later = NORMS[distance](embed.of_change(change))  # (B, N - h*w)
        else:
            tokens = embed(patchify(x, tubelet))  # (B, N, D)
            later = DISTANCES[distance](tokens[:, places:], tokens[:, :-places])
    first = later[:, :places] if first_slice == "copy" else torch.zeros_like(later[:, :places])
    return torch.cat([first, later], dim=1)


def choose(
    selector: Selector, frames: Tensor, grid: TokenGrid, embed: Embedding, noise: Tensor
) -> TokenSelection:
    """What a strategy chooses on clips (B, C, T, H, W), after measuring what it asks for."""
    return selector(grid, importance=selector.importance(frames, embed), noise=noise)


def _not_measured(selector: Selector, frames: Tensor, embed: Embedding) -> None:
    """The `importance` of strategies that do not look at the clip."""
    return None


def _share(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"a share of the tokens to keep is more than 0 and at most 1, not {share}")
    return share


def _ascending(ids: Tensor) -> Tensor:
    return ids.sort(dim=1).values


def _split(candidates: Tensor, noise: Tensor, num_visible: int) -> TokenSelection:
    """A random `num_visible` of the `candidates` (B, K) visible, the others target."""
    order = noise.gather(1, candidates).argsort(dim=1, stable=True)
    shuffled = candidates.gather(1, order)
    return TokenSelection(_ascending(shuffled[:, :num_visible]), _ascending(shuffled[:, num_visible:]))


@dataclass(frozen=True, kw_only=True)
class RedundancyRobust:
    """EVEREST §4.1: keep the tokens that changed most, encode a random part of them, predict the others.

    The paper predicts all kept tokens; the released program and the paper's own cost tables leave the visible
    ones out, and so does this.
    """

    __pydantic_config__ = _STRICT
    strategy: Literal["redundancy-robust"] = "redundancy-robust"
    keep_ratio: float = 0.3  # rho_pre, EVEREST Table 7
    visible_ratio: float | None = 0.1  # rho_pre * rho_post, EVEREST §4.1; None: all that is kept
    distance: DistanceName = "l2"  # EVEREST Table 9
    order: Literal["descending", "ascending"] = "descending"  # EVEREST Table 16
    first_slice: Literal["copy", "zero"] = "copy"  # released program: copy

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor:
        return change_importance(
            frames, embed, embed.tubelet, distance=self.distance, first_slice=self.first_slice
        )

    def keeping(self, share: float) -> RedundancyRobust:
        """The same, but it keeps and encodes `share` of all tokens."""
        return replace(self, keep_ratio=_share(share), visible_ratio=None)

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        assert importance is not None, "redundancy-robust selection sorts by importance"
        # Stable: the first slice copies the second's distances, so ties are the rule, not the exception.
        ranked = importance.argsort(dim=1, descending=self.order == "descending", stable=True)
        kept = ranked[:, : num_kept(grid.num_tokens, self.keep_ratio)]  # (B, K)
        if self.visible_ratio is None:
            return TokenSelection(_ascending(kept), kept[:, :0])
        return _split(kept, noise, num_kept(grid.num_tokens, self.visible_ratio))


@dataclass(frozen=True, kw_only=True)
class Tube:
    """VideoMAE's tube masking (Tong et al. 2022, §3.3): one random map of places, masked in every slice."""

    __pydantic_config__ = _STRICT
    strategy: Literal["tube"] = "tube"
    mask_ratio: float = 0.9  # VideoMAE §3.3; masked places are floored: 176 of 196

    importance = _not_measured

    def keeping(self, share: float) -> Tube:
        """The same, but it encodes `share` of all places."""
        masked = 1 - Decimal(str(_share(share)))  # the decimals as written, like num_kept
        return replace(self, mask_ratio=float(masked))

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        num_visible = grid.per_slice - num_kept(grid.per_slice, self.mask_ratio)
        places = noise[:, : grid.per_slice].argsort(dim=1, stable=True)  # (B, h*w)
        slices = torch.arange(grid.t, device=noise.device).view(1, -1, 1) * grid.per_slice  # (1, t, 1)
        visible, target = (
            (slices + _ascending(part).unsqueeze(1)).flatten(1)
            for part in (places[:, :num_visible], places[:, num_visible:])
        )
        return TokenSelection(visible, target)


@dataclass(frozen=True, kw_only=True)
class RandomSpaceTime:
    """ST-MAE's masking (Feichtenhofer et al. 2022, §3.2): tokens drawn uniformly over the whole clip."""

    __pydantic_config__ = _STRICT
    strategy: Literal["random"] = "random"
    visible_ratio: float = 0.1  # ST-MAE masks 90 %; visible tokens are floored: 156 of 1568

    importance = _not_measured

    def keeping(self, share: float) -> RandomSpaceTime:
        """The same, but it encodes `share` of all tokens."""
        return replace(self, visible_ratio=_share(share))

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        tokens = torch.arange(grid.num_tokens, device=noise.device).expand(noise.size(0), -1)
        return _split(tokens, noise, num_kept(grid.num_tokens, self.visible_ratio))


@dataclass(frozen=True, kw_only=True)
class AllTokens:
    """Nothing is left out and nothing predicted: ordinary fine-tuning."""

    __pydantic_config__ = _STRICT
    strategy: Literal["all"] = "all"

    importance = _not_measured

    def keeping(self, share: float) -> AllTokens | RedundancyRobust:
        """Of less than all it is told by their change, which a strategy that takes all does not measure."""
        return self if _share(share) == 1 else RedundancyRobust().keeping(share)

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        tokens = torch.arange(grid.num_tokens, device=noise.device).expand(noise.size(0), -1)
        return TokenSelection(tokens, tokens[:, :0])


STRATEGIES = {
    "redundancy-robust": RedundancyRobust,
    "tube": Tube,
    "random": RandomSpaceTime,
    "all": AllTokens,
}
Strategy = RedundancyRobust | Tube | RandomSpaceTime | AllTokens
