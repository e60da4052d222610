"""The values that are predicted at the target tokens, and the loss of a prediction.

A target is a frozen dataclass whose fields are its keys in a recipe. `Target.make` makes the module that
computes its values and its loss for a model.

B batch, C channels, T frames, H W pixels, N tokens, M target tokens, P values of a token, t p q a tubelet's
frames, rows and columns, D the width of a teacher or the dimensions of a code.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Discriminator, Field
from torch import Tensor, nn

from everest.methods.external import external, is_import_path, must_be, name_by_class
from everest.methods.grid import gather_patches, gather_tokens
from everest.video.pixels import PixelStatistics

__all__ = [  # the public names of everest.targets
    "FeatureTargets",
    "PixelModule",
    "PixelTargets",
    "Target",
    "TargetModule",
    "TokenTargets",
    "gather_patches",
    "mean_squared_error",
]

Tubelet = tuple[int, int, int]  # frames, rows, columns
CodeSpace = Literal["values", "soft", "codes"]
START: Final = "start"  # as the name of a teacher: the frozen weights that the run began from
Normalize = Annotated[bool | Literal["token"], must_be("true, false or 'token'")]


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """Base class of the targets: a frozen dataclass whose fields are its keys in a recipe.

    A recipe names a target of another package by import path, {kind: "package.module:Name"}.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    needs_tokenizer: ClassVar[bool] = False
    kind: str = ""  # its name in a recipe; of another package: its import path
    cache = None  # a setting of the targets that can be stored

    def __post_init__(self) -> None:
        name_by_class(self, "kind")

    @property
    def is_external(self) -> bool:
        """Whether another package defines the target."""
        return is_import_path(self.kind)

    @abstractmethod
    def make(self, tubelet: Tubelet, pixels: PixelStatistics, frozen: Any = None) -> TargetModule:
        """Make the module of a model.

        Args:
            tubelet: frames, rows and columns of a token.
            pixels: channels, mean and std of the model's clips.
            frozen: the trained tokenizer or teacher, if the target needs one.
        """


class TargetModule(nn.Module, ABC):
    """Computes the values of a target, and the loss of a prediction. Its arguments: see `Target.make`."""

    of_frames = False  # `values` take the clips, not the model's input

    def __init__(self, settings: Any, tubelet: Tubelet, pixels: PixelStatistics, frozen: Any = None) -> None:
        super().__init__()
        self.settings, self.tubelet, self.pixels, self.frozen = settings, tubelet, pixels, frozen

    @property
    @abstractmethod
    def width(self) -> int:
        """P, the number of values predicted for a token."""

    @property
    def loss_of_one_color(self) -> float | None:
        """Approximate loss of predicting each tubelet's mean color; None if it depends on the clips."""
        return None

    @abstractmethod
    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        """The values (B, M, P) float32 to predict at the tokens `ids` (B, M) of clips (B, C, T, H, W).

        A target of another package gets normalized clips; a target of everest may also get bytes.
        """

    def loss(self, prediction: Tensor, values: Tensor, loss_mask: Tensor) -> Tensor:
        """The scalar that training minimizes; by default the mean squared error over (B, M, P).

        Args:
            loss_mask: (B, M) bool, the tokens that count.
        """
        return mean_squared_error(prediction, values, loss_mask)

    def as_pixels(self, prediction: Tensor, frames: Tensor, ids: Tensor) -> Tensor:
        """Convert predictions (B, M, P) to pixels (B, M, C, t, p, q) in [0, 1], by default gray."""
        return prediction.new_full((*ids.shape, frames.size(1), *self.tubelet), 0.5)


def mean_squared_error(prediction: Tensor, values: Tensor, loss_mask: Tensor) -> Tensor:
    """The mean over all values (B, M, P) where `loss_mask` (B, M) is true, float32; 0 where it is nowhere.

    Raises:
        ValueError: a token has more or fewer values than predictions.
    """
    if values.shape != prediction.shape:
        raise ValueError(f"values: {values.size(-1)} for a token, but {prediction.size(-1)} are predicted")
    return masked_mean((prediction.float() - values).square().mean(dim=-1), loss_mask)


def masked_mean(error: Tensor, loss_mask: Tensor) -> Tensor:
    """The mean error (B, M) of the tokens where `loss_mask` is true (B, M); 0 without any."""
    return (error * loss_mask).sum() / loss_mask.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class PixelTargets(Target):
    """Predict the pixels of the target tubelets, in [0, 1] unless they are normalized."""

    kind: Literal["pixels"] = "pixels"
    cache: str | None = None  # folder of `everest prepare tokens`, for a selection that needs a tokenizer
    normalize: Normalize = True  # per tubelet and channel, as released; token: as ST-MAE
    frames: Literal["all", "half"] = "all"  # half: one frame of each tubelet, as ST-MAE

    def make(self, tubelet: Tubelet, pixels: PixelStatistics, frozen: Any = None) -> PixelModule:
        return PixelModule(self, tubelet, pixels)


class PixelModule(TargetModule):
    """Computes `PixelTargets`."""

    @property
    def width(self) -> int:
        t, p, q = self.tubelet
        return (t if self.settings.frames == "all" else 1) * p * q * self.pixels.channels

    @property
    def loss_of_one_color(self) -> float | None:
        return 1.0 if self.settings.normalize and type(self).loss is TargetModule.loss else None

    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        """The values (B, M, P) in the order (frame, row, column, channel) of the official code."""
        patches, mean, std = self._with_moments(frames, ids)
        return ((patches - mean) / std).movedim(2, -1).flatten(2)  # (B, M, t*p*q*C)

    def as_pixels(self, prediction: Tensor, frames: Tensor, ids: Tensor) -> Tensor:
        """Convert predictions (B, M, P) to pixels (B, M, C, t, p, q) in [0, 1]. One frame fills both frames.

        Normalized values get the mean and std of the true tubelet, which the model does not know: the figure
        is meant to show the structure inside a tubelet, not its color.
        """
        patches, mean, std = self._with_moments(frames, ids)
        values = prediction.unflatten(2, (*patches.shape[3:], -1)).movedim(-1, 2)
        return (values * std + mean).clamp(0, 1).expand(-1, -1, -1, self.tubelet[0], -1, -1)

    def _with_moments(self, frames: Tensor, ids: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """The pixels that are predicted, (B, M, C, t, p, q) in [0, 1], t = 1 for "half"; their mean and std.

        These have shapes that broadcast; without normalization they are 0 and 1.
        """
        patches = self.pixels.to_unit_range(gather_patches(frames, ids, self.tubelet))
        if self.settings.frames == "half":
            # ST-MAE predicts the frames linspace(0, T - 1, T / 2): the first of each tubelet, but the last of
            # the last tubelet.
            t, p, q = self.tubelet
            num_time_indices = frames.size(2) // t
            time_indices = ids // (frames.size(3) // p * (frames.size(4) // q))  # (B, M)
            frame = time_indices * (t - 1) // max(num_time_indices - 1, 1)  # (B, M): within the tubelet
            index = frame.view(*ids.shape, 1, 1, 1, 1).expand(-1, -1, patches.size(2), -1, p, q)
            patches = patches.gather(3, index)
        normalize = self.settings.normalize
        if not normalize:
            return patches, 0.0, 1.0
        dims = (-4, -3, -2, -1) if normalize == "token" else (-3, -2, -1)
        mean = patches.mean(dim=dims, keepdim=True)
        # torch.std takes several times as long on a CPU.
        num_values = math.prod([patches.size(dim) for dim in dims])  # with a common mean
        std = torch.linalg.vector_norm(patches - mean, dim=dims, keepdim=True) / math.sqrt(num_values - 1)
        # The official code adds 1e-6 at different steps.
        return patches, mean, (std.square() + 1e-6).sqrt() if normalize == "token" else std + 1e-6


@dataclass(frozen=True, kw_only=True)
class TokenTargets(Target):
    """Predict the codes that the recipe's tokenizer gives the target tokens, LVMAE §3.3.

    The spaces `values`, quantized, and `soft`, before rounding, have mean 0 and std 1 over clips of the
    tokenizer's training set. `codes` are the levels of each dimension, by classification. `soft` and `codes`
    are our choice.
    """

    needs_tokenizer: ClassVar[bool] = True
    kind: Literal["tokens"] = "tokens"
    cache: str | None = None  # folder of `everest prepare tokens`, read instead of running the tokenizer
    space: CodeSpace = "values"  # LVMAE eq. 2

    def make(self, tubelet: Tubelet, pixels: PixelStatistics, frozen: Any = None) -> TokenModule:
        return TokenModule(self, tubelet, pixels, frozen)


class TokenModule(TargetModule):
    """Computes `TokenTargets` with an everest.tokenizer.frozen_tokenizer.FrozenTokenizer."""

    @property
    def width(self) -> int:
        levels = self.frozen.levels
        return sum(levels) if self.settings.space == "codes" else len(levels)

    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        """The codes (B, M, D) float32 of the tokens `ids` (B, M); for `codes` int64 levels."""
        return self.frozen.values(frames, ids, self.settings.space)

    def as_pixels(self, prediction: Tensor, frames: Tensor, ids: Tensor) -> Tensor:
        return self.frozen.reconstructed(prediction, frames, ids, self.settings.space)

    def loss(self, prediction: Tensor, values: Tensor, loss_mask: Tensor) -> Tensor:
        """The mean over tokens that count, a float32 scalar: squared error, or cross-entropy for `codes`."""
        if self.settings.space != "codes":
            return mean_squared_error(prediction, values, loss_mask)
        logits = prediction.float().split(self.frozen.levels, dim=-1)  # (B, M, levels) each
        errors = [
            F.cross_entropy(dim_logits.movedim(-1, 1), values[..., dim], reduction="none")
            for dim, dim_logits in enumerate(logits)
        ]
        return masked_mean(torch.stack(errors).mean(dim=0), loss_mask)


@dataclass(frozen=True, kw_only=True)
class TeacherUse:
    """Identifies the teacher that a model is trained with; its weights are stored separately."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str  # its name in the recipe
    sha256: str  # the hash of its weights
    width: int  # D
    settings: dict[str, Any]  # of its encoder, for the model's tokens (`ModelSpec.dump`)


@dataclass(frozen=True, kw_only=True)
class FeatureTargets(Target):
    """Predict the features that a frozen teacher gives the target tokens.

    The teacher does not change, so the targets cannot collapse, and losses of different steps can be compared
    (SALT: Li et al., Rethinking JEPA: compute-efficient video SSL with frozen teachers, 2025). With `start`
    there is no decoder, and the encoded tokens are compared (everest.models.student).
    """

    kind: Literal["features"] = "features"
    # A run folder, a .safetensors file, hf:NAME, timm:NAME, or `start`: the weights of --init.
    teacher: Annotated[str, Field(min_length=1)]
    layers: Literal["last"] = "last"  # its output, after its last norm

    def make(self, tubelet: Tubelet, pixels: PixelStatistics, frozen: Any = None) -> FeatureModule:
        return FeatureModule(self, tubelet, pixels, frozen)


class FeatureModule(TargetModule):
    """Computes `FeatureTargets` with an everest.checkpoints.frozen.FrozenEncoder.

    A model that is not trained further only needs the `TeacherUse`.
    """

    of_frames = True

    @property
    def width(self) -> int:
        return self.frozen.width

    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        """The features (B, M, D) float32 of the tokens `ids` (B, M), each with mean 0 and variance 1."""
        if isinstance(self.frozen, TeacherUse):
            raise ValueError(
                "the model was opened without its teacher; give `values`, or train it with pretrain"
            )
        features = self.frozen(frames).float()  # (B, N, D)
        return gather_tokens(F.layer_norm(features, features.shape[-1:]), ids)

    def loss(self, prediction: Tensor, values: Tensor, loss_mask: Tensor) -> Tensor:
        """The mean absolute error over all values of the tokens that count, a scalar in float32."""
        return masked_mean((prediction.float() - values.float()).abs().mean(dim=-1), loss_mask)


ShippedTarget = PixelTargets | TokenTargets | FeatureTargets
AnyTarget = Annotated[ShippedTarget, Discriminator("kind"), *external(Target, "kind")]
