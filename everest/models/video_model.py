"""The base class of the models that a user opens: they know the clips they take, and their classes.

B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from everest.config.settings import Recipe
from everest.config.values import Input
from everest.data.clip_format import ClipFormat
from everest.methods.importance import Embedding
from everest.methods.selector import Selector
from everest.models.embedding import model_input
from everest.models.vit import Architecture, Encoder
from everest.video.pixels import PixelStatistics

if TYPE_CHECKING:
    from everest.models.spec import ModelSpec


class VideoModel(nn.Module):
    """A model on clips of videos. `everest.load_model` and `everest.create_model` set the attributes.

    Attributes:
        spec: all that is needed to rebuild the model; `ModelSpec.build` sets it.
        input_kind: of `to_input`, which every method that takes normalized frames applies to them.
        clip: the clips that the model was trained on; `transform` reads one.
        recipe: the stride, the views and the lists of `everest.predict`, `extract` and `evaluate`.
        file: the weights that it was loaded from; None for a new model.
        class_names: in the order of the logits; None if only indices are known, or several heads have them.
    """

    spec: ModelSpec
    stage: ClassVar[Literal["pretrain", "finetune"]]  # the section of a recipe that trains such a model
    clip: ClipFormat
    recipe: Recipe
    file: Path | None
    class_names: tuple[str, ...] | None = None

    def __init__(
        self, architecture: Architecture, *, selector: Selector, final_norm: bool, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.input_kind: Input = architecture.model.input
        self.selector = selector
        self.encoder = Encoder(architecture, final_norm=final_norm, drop_path=drop_path)

    @property
    def classes(self) -> tuple[str, ...]:
        """Only a classifier has some."""
        return ()

    @property
    def measure(self) -> Embedding:
        """The embedding by which the selector measures importance."""
        return self.encoder.patch_embed

    def describe(
        self, recipe: Recipe, *, file: Path | None = None, class_names: tuple[str, ...] | None = None
    ) -> None:
        """Set the attributes. The recipe must have the clip size and the backbone of the model."""
        stage = getattr(recipe, self.stage)
        self.recipe, self.file, self.class_names = recipe, file, class_names
        self.clip = ClipFormat(
            frames=recipe.data.frames,
            stride=stage.stride,
            size=recipe.data.frame_size,
            sampling=stage.sampling,
            fps=recipe.data.fps,
            mean=self.pixels.mean,
            std=self.pixels.std,
        )

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layers of timm's layer decay: embedding with positions, blocks, all other parameters."""
        return {
            "stem": r"encoder\.(?:patch_embed\.|position\.|class_token|registers|norm_before\.)",
            "blocks": [(r"encoder\.blocks\.(\d+)\.", None)],
        }

    def to_input(self, frames: Tensor) -> Tensor:
        """Map clips (B, C, T, H, W), bytes or normalized, to the input of encoder and selector."""
        return model_input(frames, self.input_kind, self.pixels)

    def encode(self, frames: Tensor, ids: Tensor) -> Tensor:
        """Encode the tokens `ids` (B, K) of clips (B, C, T, H, W), bytes or normalized: (B, K, D)."""
        return self.encoder(self.to_input(frames), ids)

    @property
    def pixels(self) -> PixelStatistics:
        """The mean and std by which clips are normalized, and their number of channels."""
        return self.encoder.pixels

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def transform(self, video: str | Path) -> Tensor:
        """Read the middle of a video as the model takes it.

        Returns:
            (1, C, T, H, W) float32, normalized, on the device of the model.
        Raises:
            VideoError: the file is unreadable.
        """
        return self.pixels.normalize(self.clip.read(video).to(self.device))[None]
