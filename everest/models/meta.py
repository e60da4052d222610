"""Models on the meta device, for counting the cost of a pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from everest.methods.grid import TokenGrid, TokenSelection
from everest.methods.selector import Selector
from everest.methods.targets import TargetMaker
from everest.models.mae import MaskedAutoencoder
from everest.models.spec import ModelSpec, Transformer


@dataclass(frozen=True, kw_only=True)
class Unmeasured(Selector):
    """Chooses as many tokens as another strategy, without measuring them."""

    of: Selector

    @property
    def uses_importance(self) -> bool:
        return False

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        return self.of(grid, importance=noise[:, : grid.num_tokens], noise=noise)


class NoTargets(TargetMaker):
    """Placeholder targets of a given width; targets of other packages may need real values."""

    def __init__(self, width: int) -> None:
        self._width = width

    @property
    def width(self) -> int:
        return self._width

    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        return torch.empty(*ids.shape, self.width, device=ids.device)

    def pixels(self, prediction: Tensor, frames: Tensor, ids: Tensor) -> Tensor:
        return prediction


def model_on_meta(spec: ModelSpec, *, measures: bool = True) -> Transformer:
    """Build a spec's model on the meta device, with placeholder targets.

    Args:
        measures: whether it measures the importance of tokens.
    """
    with torch.device("meta"):
        model = spec.without_files().build()
    if isinstance(model, MaskedAutoencoder):
        model.targets = NoTargets(model.targets.width)
    if not measures:
        model.selector = Unmeasured(of=spec.selection)
    return model
