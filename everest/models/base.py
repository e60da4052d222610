"""The base classes of models on clips: of all models, with tokens, and for pre-training.

B batch, C channels, T frames, H W pixels, N tokens, K chosen tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.values import ModelInput, StageName
from everest.methods.camera import MOTIONS, moving_clips
from everest.methods.grid import TokenSelection, check_inputs
from everest.methods.importance import Embedding, Scorer
from everest.methods.selection import Strategy, measure_importance
from everest.models.clip_spec import ClipSpec, ModelSpec, PretrainSpec
from everest.models.vit import Encoder, frame_differences
from everest.video.pixels import PixelStatistics

if TYPE_CHECKING:  # a model alone reads neither recipes nor videos
    from everest.config.settings import Recipe
    from everest.data.views import ClipFormat


class ClipModel(nn.Module):
    """Base class of the models on clips of videos.

    Attributes:
        spec: the specification that has built the model.
        pixels: the mean and std by which clips are normalized, and their number of channels.
        recipe: the stride, the views and the lists of `everest.predict`, `extract` and `evaluate`;
            `everest.load_model` and `everest.create_model` set it.
        file: the weights that it was loaded from; None for a new model.
        class_names: in the order of the logits; None if only indices are known, or several heads have them.
    """

    spec: ClipSpec
    stage: ClassVar[StageName]  # the section of a recipe that trains such a model
    pixels: PixelStatistics
    recipe: Recipe
    file: Path | None = None
    class_names: tuple[str, ...] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of a classifier's outputs; other models have none."""
        return ()

    @property
    def parts(self) -> list[ClipModel]:
        """The models whose features are joined: this one, or the members of a mean."""
        return [self]

    def piece_frames(self, keep: float | None) -> int:
        """The successive frames of a clip that the model sees at once: a piece. By default the whole clip.

        A model of smaller pieces has `encode_pieces`, and `pool_pieces` computes its features from them.

        Args:
            keep: the ratio of the tokens to encode; None: as in training.
        """
        return self.spec.frames

    def encode_pieces(self, pieces: Tensor) -> Tensor:
        """Encode pieces (P, C, S, H, W) of S frames, bytes or normalized: (P, …)."""
        raise NotImplementedError

    def pool_pieces(self, encoded: Tensor) -> Tensor:
        """The features (B, F) of clips whose pieces, each a frame after the last, are encoded: (B, M, …)."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def clip(self) -> ClipFormat:
        """The clips that evaluation, `everest.extract` and `transform` read: as the recipe fine-tunes."""
        from everest.data.recipe_clips import clip_format  # a model alone reads no videos

        return clip_format(self.recipe, "finetune")

    def transform(self, video: str | Path) -> Tensor:
        """Read the middle of a video as an input of the model: the view of `everest eval --views 1x1`.

        Returns:
            (1, C, T, H, W) float32, normalized, on the device of the model.
        """
        return self.pixels.normalize(self.clip.read(video).to(self.device))[None]


class TokenModel(ClipModel):
    """A model with an encoder of tokens.

    Attributes:
        input: what `to_input` computes: frames or their differences.
        scorer: gives the scores of the model's tokenizer, by which some strategies rank tokens.
    """

    scorer: Scorer | None = None

    def __init__(self, spec: ModelSpec, *, final_norm: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.input: ModelInput = spec.model.input
        self.pixels = spec.pixels
        self.strategy: Strategy = spec.selection
        self.encoder = Encoder(spec, final_norm=final_norm, drop_path=drop_path)

    @property
    def embedding(self) -> Embedding:
        """The embedding by which the strategy measures importance."""
        return self.encoder.patch_embed

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layers of timm's layer decay: embedding with positions, blocks, all other parameters."""
        return {
            "stem": r"encoder\.(?:patch_embed\.|position\.|class_token|registers|norm_before\.)",
            "blocks": [(r"encoder\.blocks\.(\d+)\.", None)],
        }

    def to_input(self, frames: Tensor) -> Tensor:
        """Map clips (B, C, T, H, W), bytes or normalized, to the input of encoder and strategy."""
        return frames if self.input == "frames" else frame_differences(frames, self.pixels)

    def select_tokens(
        self,
        x: Tensor,
        noise: Tensor | None = None,
        *,
        importance: Tensor | None = None,
        strategy: Strategy | None = None,
    ) -> TokenSelection:
        """Select tokens of the encoder's input `x` (B, C, T, H, W).

        Args:
            noise: (B, at least N) uniform in [0, 1); None if the choice does not depend on it.
            importance: (B, N) float32, replaces what the strategy would compute.
            strategy: replaces the model's strategy.
        """
        strategy, grid = strategy or self.strategy, self.encoder.grid
        if noise is None:
            noise = torch.zeros(x.size(0), grid.num_tokens, device=x.device)
        check_inputs(grid, x.size(0), noise=noise, importance=importance)
        if importance is None and strategy.uses_importance:
            importance = measure_importance(strategy, x, self.embedding, self.scorer)
        return strategy(grid, importance=importance, noise=noise[:, : grid.num_tokens])

    def encode(self, frames: Tensor, ids: Tensor) -> Tensor:
        """Encode the tokens `ids` (B, K) of clips (B, C, T, H, W), bytes or normalized: (B, K, D)."""
        return self.encoder(self.to_input(frames), ids)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PretrainingOutput:
    """The output of one forward pass of pre-training.

    Deliberately not a tuple: Accelerate would copy the tensors of a tuple to float32.
    """

    loss: Tensor  # scalar
    metrics: dict[str, Tensor] = field(default_factory=dict)  # further scalars for metrics.jsonl, by name


class PretrainingModel(TokenModel):
    """Base class of pre-training models: the encoder with its last norm, and the camera task's head."""

    stage: ClassVar = "pretrain"

    def __init__(self, spec: PretrainSpec) -> None:
        super().__init__(spec, final_norm=True)
        self.camera_weight = spec.camera  # in the loss; 0: without the camera task
        self.camera_head = nn.Linear(self.encoder.width, MOTIONS) if spec.camera else None
        self.noise_layout = spec.noise_layout

    def new_noise(self, frames: Tensor) -> Tensor:
        """The random numbers (B, noise_layout.total) of clips, from torch's default generator."""
        return torch.rand(frames.size(0), self.noise_layout.total, device=frames.device)

    def visible_features(self, frames: Tensor, noise: Tensor) -> Tensor:
        """The mean (B, D) of the encoded visible tokens of clips (B, C, T, H, W), bytes or normalized.

        Args:
            noise: (B, at least N) uniform in [0, 1).
        """
        self.encoder.check(frames)
        x = self.to_input(frames)
        return self.encoder(x, self.select_tokens(x, noise).visible).mean(dim=1)

    def with_camera_loss(
        self, loss: Tensor, frames: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the error of predicting the motion simulated on still frames, if a model with this task trains.

        Args:
            noise: (B, noise_layout.total) uniform in [0, 1).
        Returns:
            The sum, and the metrics.
        """
        if self.camera_head is None or not self.training:
            return loss, {}
        clip_noise = self.noise_layout.split(noise)
        clips, motions = moving_clips(frames, clip_noise.camera)
        predicted = self.camera_head(self.visible_features(clips, clip_noise.tokens))  # (B, MOTIONS)
        camera_loss = F.mse_loss(predicted.float(), motions)
        return loss + self.camera_weight * camera_loss, {"camera_loss": camera_loss}
