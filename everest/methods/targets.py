"""The values that are predicted at the target tokens, and the loss of a prediction.

Targets are pixels, the features of a frozen encoder, the codes of a tokenizer (everest.tokenizer.targets), or
those of another package.

B batch, C channels, T frames, H W pixels, N tokens, K target tokens, P values of a token, t p q a tubelet's
frames, rows and columns, D the width of a teacher.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor

from everest.methods.external import path_of
from everest.methods.grid import gather_patches, gather_tokens
from everest.video.pixels import IMAGENET, PixelStatistics

__all__ = ["PixelTargets", "Target", "gather_patches", "mean_squared_error"]  # of everest.targets


class TargetMaker(ABC):
    """Makes the targets. It is no nn.Module, so that it is not part of optimizer, DDP and checkpoint."""

    of_frames: ClassVar[bool] = False  # `values` come from the clips, whatever the model's input is

    @property
    @abstractmethod
    def width(self) -> int:
        """P, the number of values predicted for one token."""

    @property
    def loss_of_one_color(self) -> float | None:
        """Approximate loss of predicting each tubelet's mean color; None if it depends on the clips."""
        return None

    @abstractmethod
    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        """(B, K, P) float32 at the tokens `ids` (B, K) of clips (B, C, T, H, W), bytes or normalized."""

    @abstractmethod
    def pixels(self, prediction: Tensor, frames: Tensor, ids: Tensor) -> Tensor:
        """(B, K, C, t, p, q) in [0, 1]: the predictions (B, K, P) as pixels."""

    def loss(self, prediction: Tensor, values: Tensor, scored: Tensor) -> Tensor:
        """The scalar that training minimizes; by default the mean squared error over (B, K, P).

        Args:
            scored: (B, K) bool, the tokens that count.
        """
        return mean_squared_error(prediction, values, scored)


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """Base class of the targets of other packages: a frozen dataclass whose fields are its keys in a recipe.

    A recipe names it by import path, `pretrain.target: {kind: "package.module:Name"}`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    needs_tokenizer: ClassVar[bool] = False
    cache: ClassVar[None] = None
    kind: str = ""  # its import path

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", path_of(type(self)))

    @abstractmethod
    def width(self, tubelet: tuple[int, int, int]) -> int:
        """P, the number of values predicted for a token of `tubelet` (frames, rows, columns)."""

    @abstractmethod
    def values(self, frames: Tensor, ids: Tensor, tubelet: tuple[int, int, int]) -> Tensor:
        """(B, K, P) float32 at the tokens `ids` (B, K) of the normalized clips (B, C, T, H, W)."""

    def loss(self, prediction: Tensor, values: Tensor, scored: Tensor) -> Tensor:
        """The scalar that training minimizes: here the mean squared error of (B, K, P) at the scored tokens.

        Args:
            scored: (B, K) bool, the tokens that count.
        """
        return mean_squared_error(prediction, values, scored)

    def pixels(
        self, prediction: Tensor, frames: Tensor, ids: Tensor, tubelet: tuple[int, int, int]
    ) -> Tensor:
        """(B, K, C, t, p, q) in [0, 1]: the predictions (B, K, P) as pixels of a figure. Here: gray."""
        return prediction.new_full((*ids.shape, frames.size(1), *tubelet), 0.5)


@dataclass(frozen=True, kw_only=True)
class BoundTarget(TargetMaker):
    """A target from another package, for clips of known tubelets."""

    target: Target
    tubelet: tuple[int, int, int]
    statistics: PixelStatistics = IMAGENET  # `pixels` is a method here

    @property
    def width(self) -> int:
        return self.target.width(self.tubelet)

    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        return self.target.values(self.statistics.normalized(frames), ids, self.tubelet)

    def pixels(self, prediction: Tensor, frames: Tensor, ids: Tensor) -> Tensor:
        return self.target.pixels(prediction, self.statistics.normalized(frames), ids, self.tubelet)

    def loss(self, prediction: Tensor, values: Tensor, scored: Tensor) -> Tensor:
        return self.target.loss(prediction, values, scored)


def mean_squared_error(prediction: Tensor, values: Tensor, scored: Tensor) -> Tensor:
    """The mean over all values (B, K, P) of the tokens that are `scored` (B, K), in float32; 0 if none is."""
    return mean_of_scored((prediction.float() - values).square().mean(dim=-1), scored)


def mean_of_scored(error: Tensor, scored: Tensor) -> Tensor:
    """The mean error (B, K) of the tokens that are `scored` (B, K); 0 if none is."""
    return (error * scored).sum() / scored.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class PixelTargets(TargetMaker):
    """The pixels of the target tubelets.

    Args:
        normalize: True, as in VideoMAE and EVEREST: each channel of a tubelet by itself; "token", as in
            ST-MAE: all values of a token together; False: pixels in [0, 1].
        frames: "half", as in ST-MAE, which predicts one frame of each tubelet.
        statistics: of the clips; their number of channels, and how normalized ones become pixels again.
    """

    tubelet: tuple[int, int, int]
    normalize: bool | Literal["token"] = True
    frames: Literal["all", "half"] = "all"
    statistics: PixelStatistics = IMAGENET

    @property
    def width(self) -> int:
        t, p, q = self.tubelet
        return (t if self.frames == "all" else 1) * p * q * self.statistics.channels

    @property
    def loss_of_one_color(self) -> float | None:
        return 1.0 if self.normalize else None

    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        """(B, K, P) in the order (frame, row, column, channel) of the released programs."""
        patches, mean, std = self._with_moments(frames, ids)
        return ((patches - mean) / std).movedim(2, -1).flatten(2)  # (B, K, t*p*q*C)

    def pixels(self, prediction: Tensor, frames: Tensor, ids: Tensor) -> Tensor:
        """(B, K, P) predictions to (B, K, C, t, p, q) pixels in [0, 1]. A single frame fills both frames.

        Normalized values get the mean and std of the true tubelet, which the model does not know: the figure
        is meant to show the structure inside a tubelet, not its color.
        """
        patches, mean, std = self._with_moments(frames, ids)
        values = prediction.unflatten(2, (*patches.shape[3:], -1)).movedim(-1, 2)
        return (values * std + mean).clamp(0, 1).expand(-1, -1, -1, self.tubelet[0], -1, -1)

    def _with_moments(self, frames: Tensor, ids: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """The pixels that are predicted, (B, K, C, t, p, q) in [0, 1], t = 1 for "half"; their mean and std.

        These have shapes that broadcast; without normalization they are 0 and 1.
        """
        patches = self.statistics.to_unit_range(gather_patches(frames, ids, self.tubelet))
        if self.frames == "half":
            # ST-MAE predicts the frames linspace(0, T - 1, T / 2): the first of each tubelet, but the last of
            # the last tubelet.
            t, p, q = self.tubelet
            slices = frames.size(2) // t
            number = ids // (frames.size(3) // p * (frames.size(4) // q))  # (B, K): the slice of each token
            offset = number * (t - 1) // max(slices - 1, 1)
            index = offset.view(*ids.shape, 1, 1, 1, 1).expand(-1, -1, patches.size(2), -1, p, q)
            patches = patches.gather(3, index)
        if not self.normalize:
            return patches, 0.0, 1.0
        dims = (-4, -3, -2, -1) if self.normalize == "token" else (-3, -2, -1)
        mean = patches.mean(dim=dims, keepdim=True)
        # torch.std takes several times as long on a CPU.
        num_values = math.prod([patches.size(dim) for dim in dims])  # with a common mean
        std = torch.linalg.vector_norm(patches - mean, dim=dims, keepdim=True) / math.sqrt(num_values - 1)
        # The released programs add 1e-6 at different steps.
        return patches, mean, (std.square() + 1e-6).sqrt() if self.normalize == "token" else std + 1e-6


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

    def __call__(self, frames: Tensor, /) -> Tensor:
        """Map clips (B, C, T, H, W), bytes or normalized, to the features (B, N, D) of all their tokens."""
        ...


class FeatureTargets(TargetMaker):
    """The teacher's features of the target tokens, each with mean 0 and variance 1 over its P = D values.

    The teacher does not change, so that the targets cannot collapse, and losses of different steps compare
    (SALT: Li et al., Rethinking JEPA: compute-efficient video SSL with frozen teachers, 2025).

    Attributes:
        teacher: pre-training sets it; a model that is only used needs none. It is never trained or copied.
    """

    of_frames: ClassVar[bool] = True

    def __init__(self, *, width: int) -> None:
        self._width = width
        self.teacher: Teacher | None = None

    @property
    def width(self) -> int:
        return self._width

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
