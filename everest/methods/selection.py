"""Which tokens are encoded and which are predicted: a strategy measures them, then chooses by a rule.

The measure is `Strategy.importance`; masks, which do not look at the clip, have none. The rule is the call of
a strategy. It draws by sorting the uniform `noise` that the caller passes, so a selection is a pure function
with the same result on every machine.

B batch, C channels, T frames, H W pixels, N tokens, K candidate tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.external import is_import_path, path_of
from everest.methods.grid import TokenGrid, TokenSelection
from everest.methods.importance import Embedding

Ratio = Annotated[float, Field(gt=0, le=1)]
RatioOrZero = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """Base class of the strategies: a frozen dataclass, whose fields are its settings in a recipe."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    strategy: str = ""  # its name in a recipe; of another package: its import path
    cell: ClassVar[int] = 1  # the rows and columns of the grid must be multiples of this
    share_setting: ClassVar[str] = "mask_ratio"  # the setting that `keeping` changes

    def __post_init__(self) -> None:
        cls = type(self)
        # A subclass of a shipped class has inherited its name.
        is_inherited = "strategy" not in vars(cls) and self.strategy == cls.strategy
        if not self.strategy or is_inherited:
            object.__setattr__(self, "strategy", path_of(cls))

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor | None:
        """The measure: (B, N) float32 of clips (B, C, T, H, W), higher is kept first; here None.

        A strategy of another package gets normalized clips, everest's own also clips of bytes.
        """
        return None

    @abstractmethod
    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        """The rule: choose tokens.

        Args:
            importance: (B, N) float32, the measure; None if there is none.
            noise: (B, N) uniform in [0, 1); on the `meta` device when only the counts are needed.
        Returns:
            As many tokens in every row and at every call: counts may depend on the grid only.
        """

    def select(
        self,
        frames: Tensor,
        grid: TokenGrid,
        embed: Embedding,
        noise: Tensor,
        importance: Tensor | None = None,
    ) -> TokenSelection:
        """Measure the tokens of clips (B, C, T, H, W), bytes or normalized, and choose by the rule.

        Args:
            noise: (B, at least N) uniform in [0, 1).
            importance: (B, N) float32, instead of the measure.
        """
        if importance is None and self.uses_importance:
            importance = self.measure(frames, embed)
        return self(grid, importance=importance, noise=noise[:, : grid.num_tokens])

    def measure(self, frames: Tensor, embed: Embedding) -> Tensor | None:
        """The `importance` of clips (B, C, T, H, W), bytes or normalized; RecipeError for a wrong shape."""
        if is_import_path(self.strategy):
            frames = embed.pixels.normalized(frames)
        importance = self.importance(frames, embed)
        sides = zip(frames.shape[2:], embed.tubelet, strict=True)
        t, h, w = (length // side for length, side in sides)
        if importance is not None and importance.shape[1:] != (t * h * w,):
            raise RecipeError(
                f"{self.strategy}: its importance has the shape {tuple(importance.shape)}, not (clips, "
                f"{t * h * w}): one number for each token"
            )
        return importance

    @property
    def uses_importance(self) -> bool:
        """Whether the rule depends on the importance, if there is a measure."""
        return True

    @property
    def needs_tokenizer(self) -> bool:
        """Whether a trained tokenizer measures."""
        return False

    def keeping(self, share: float) -> Strategy:
        """The strategy that encodes `share` of all tokens, of all places or of all slices."""
        value = checked_share(share)
        if self.share_setting not in vars(self):
            raise RecipeError(
                f"{self.strategy} has no share of tokens to change; define its method `keeping`"
            )
        if self.share_setting == "mask_ratio":  # on the decimals as they were written, like `num_kept`
            value = float(1 - Decimal(str(share)))
        return replace(self, **{self.share_setting: value})

    def at_evaluation(self, keep: float | None = None) -> Strategy:
        """The strategy that a classifier uses after training. Its choice must not depend on the noise.

        Args:
            keep: the share of the tokens to encode; None: as in training.
        """
        return self if keep is None else self.keeping(keep)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields the name of each setting with an invalid value, or that contradicts another, and the reason.

        Here each ratio outside of 0 to 1: a strategy of another package may declare it as a plain float.
        """
        for name, value in vars(self).items():
            if name.endswith("_ratio") and isinstance(value, float) and not 0 <= value <= 1:
                yield name, f"must be from 0 to 1, not {value}"


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
