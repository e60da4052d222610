"""The contract of a strategy, and the helpers that strategies share.

A strategy decides which tokens are encoded and which are predicted. It is a frozen dataclass: its fields are
its settings in a recipe, and calling it makes the choice. Every random choice sorts the uniform `noise` that
the caller passes, so a selection is a pure function with the same result on every machine.

B batch, C channels, T frames, H W pixels, N tokens, K candidate tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import ClassVar

from pydantic import ConfigDict
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.external import is_import_path, path_of
from everest.methods.grid import TokenGrid, TokenSelection
from everest.methods.importance import Embedding


@dataclass(frozen=True, kw_only=True)
class Selector(ABC):
    """Base class of the strategies. The defaults suit a mask with a `mask_ratio` that ignores the clip."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    strategy: str = ""  # its name in a recipe; of another package: its import path
    cell: ClassVar[int] = 1  # the rows and columns of the grid must be multiples of this
    may_be_zero: ClassVar[tuple[str, ...]] = ()  # ratios that may be 0
    share_setting: ClassVar[str] = "mask_ratio"  # the setting that `keeping` changes

    def __post_init__(self) -> None:
        cls = type(self)
        # A subclass of a shipped class has inherited its name.
        is_inherited = "strategy" not in vars(cls) and self.strategy == cls.strategy
        if not self.strategy or is_inherited:
            object.__setattr__(self, "strategy", path_of(cls))

    @property
    def draws(self) -> bool:
        """Whether the choice depends on the noise."""
        return True

    @property
    def uses_importance(self) -> bool:
        """Whether the choice depends on the importance, if one is measured."""
        return True

    @property
    def needs_tokenizer(self) -> bool:
        """Whether the importance comes from a trained tokenizer."""
        return False

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor | None:
        """(B, N) float32 of clips (B, C, T, H, W); None if the strategy does not measure.

        A strategy of another package gets normalized clips, everest's own also clips of bytes.
        """
        return None

    def keeping(self, share: float) -> Selector:
        """The strategy that encodes `share` of all tokens, of all places or of all slices."""
        value = checked_share(share)
        if self.share_setting not in vars(self):
            raise RecipeError(
                f"{self.strategy} has no share of tokens to change; define its method `keeping`"
            )
        if self.share_setting == "mask_ratio":  # on the decimals as they were written, like `num_kept`
            value = float(1 - Decimal(str(share)))
        return replace(self, **{self.share_setting: value})

    def showing(self, share: float) -> Selector:
        """The strategy for a figure: `share` of the tokens is encoded or, if some are ranked, kept."""
        return self.keeping(share)

    def at_evaluation(self, keep: float | None = None) -> Selector:
        """The strategy that a classifier uses after training. Its choice must not depend on the noise.

        Args:
            keep: the share of the tokens to encode; None: as in training.
        """
        return self if keep is None else self.keeping(keep)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields the name of each setting with an invalid value, and the reason."""
        for name, value in vars(self).items():
            if not name.endswith("_ratio") or value is None:
                continue
            if name in self.may_be_zero and not 0 <= value <= 1:
                yield name, f"must be from 0 to 1, not {value}"
            elif name not in self.may_be_zero and not 0 < value <= 1:
                yield name, f"must be more than 0 and at most 1, not {value}"

    @abstractmethod
    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        """Choose tokens.

        Args:
            importance: (B, N) float32, higher is kept first; None if the strategy does not measure.
            noise: (B, at least N) uniform in [0, 1); on the `meta` device when only the counts are needed.
        Returns:
            As many tokens in every row and at every call: counts may depend on the grid only.
        """


def measure(selector: Selector, frames: Tensor, embed: Embedding) -> Tensor | None:
    """`selector.importance` of clips (B, C, T, H, W), bytes or normalized."""
    if is_import_path(selector.strategy):  # those of other packages take normalized clips
        frames = embed.pixels.normalized(frames)
    importance = selector.importance(frames, embed)
    (length, height, width), (t, p, q) = frames.shape[2:], embed.tubelet
    tokens = (length // t) * (height // p) * (width // q)
    if importance is not None and importance.shape[1:] != (tokens,):
        raise RecipeError(
            f"{selector.strategy}: its importance has the shape {tuple(importance.shape)}, not (clips, "
            f"{tokens}): one number for each token"
        )
    return importance


def choose(
    selector: Selector,
    frames: Tensor,
    grid: TokenGrid,
    embed: Embedding,
    noise: Tensor,
    importance: Tensor | None = None,
) -> TokenSelection:
    """Choose tokens of clips (B, C, T, H, W), bytes or normalized, by their importance if that counts.

    Args:
        importance: (B, N) float32; None: measured if it counts.
    """
    if importance is None and selector.uses_importance:
        importance = measure(selector, frames, embed)
    return selector(grid, importance=importance, noise=noise)


def checked_share(share: float) -> float:
    """`share`, if it is in (0, 1]; ValueError otherwise."""
    if not 0 < share <= 1:
        raise ValueError(f"a share of the tokens to keep is more than 0 and at most 1, not {share}")
    return share


def ascending(ids: Tensor) -> Tensor:
    return ids.sort(dim=1).values


def split(candidates: Tensor, noise: Tensor, num_visible: int) -> TokenSelection:
    """A random `num_visible` of the `candidates` (B, K) are visible, the other candidates are the target."""
    order = noise.gather(1, candidates).argsort(dim=1, stable=True)
    shuffled = candidates.gather(1, order)
    return TokenSelection(ascending(shuffled[:, :num_visible]), ascending(shuffled[:, num_visible:]))
