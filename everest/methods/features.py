"""Targets from a frozen encoder, the teacher: the model predicts its features of the target tokens.

Li et al., Rethinking JEPA: compute-efficient video SSL with frozen teachers (SALT), 2025, arXiv 2509.24317:
the teacher does not change, so that the targets cannot collapse, and losses of different steps compare.

B batch, C channels, T frames, H W pixels, N tokens, K target tokens, D the teacher's width, P = D values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor

from everest.methods.grid import gather_tokens
from everest.methods.targets import TargetMaker, mean_of_scored


@dataclass(frozen=True, kw_only=True)
class TeacherUse:
    """Identifies the teacher that a model is trained with; its weights are stored separately."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str  # as in the recipe
    sha256: str  # of its weights
    width: int  # D
    settings: dict[str, Any]  # of its encoder for the model's tokens (everest.models.spec.ModelSpec.dump)


class Teacher(Protocol):
    """A frozen encoder (everest.checkpoints.frozen), which is not among the weights of any model."""

    use: TeacherUse

    def __call__(self, frames: Tensor, /) -> Tensor:
        """Map clips (B, C, T, H, W), bytes or normalized, to the features (B, N, D) of all their tokens."""
        ...


class FeatureTargets(TargetMaker):
    """The teacher's features of the target tokens, each with mean 0 and variance 1 over its D values.

    Attributes:
        teacher: pre-training sets it; a model that is only used needs none. It is never trained or copied.
    """

    of_frames: ClassVar[bool] = True

    def __init__(self, *, width: int) -> None:
        self._width = width
        self.teacher: Teacher | None = None

    @property
    def width(self) -> int:
        return self._width  # P = D

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureTargets:
        return self  # shared with the average of the model's weights

    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        """(B, K, D) float32 at the tokens `ids` (B, K) of clips (B, C, T, H, W), bytes or normalized."""
        if self.teacher is None:
            raise ValueError(
                "the model was opened without its teacher; give `values`, or train it with pretrain"
            )
        return gather_tokens(standardized(self.teacher(frames)), ids)

    def pixels(self, prediction: Tensor, frames: Tensor, ids: Tensor) -> Tensor:
        """Raises NotImplementedError: features have no pixels."""
        raise NotImplementedError("features have no pixels")

    def loss(self, prediction: Tensor, values: Tensor, scored: Tensor) -> Tensor:
        """The mean absolute error over all values of the scored tokens, in float32."""
        return mean_of_scored((prediction.float() - values.float()).abs().mean(dim=-1), scored)


def standardized(features: Tensor) -> Tensor:
    """(B, N, D) features in float32, the D values of each token with mean 0 and variance 1."""
    return F.layer_norm(features.float(), features.shape[-1:])
