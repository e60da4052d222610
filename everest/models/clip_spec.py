"""The bases of all models on clips, and of their specifications: the `settings` of a safetensors file.

B batch, C channels, T frames, H W pixels, N tokens, K chosen tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from everest.config.heads import Head, Heads
from everest.config.stage_settings import StageName
from everest.config.values import ModelInput
from everest.errors import CheckpointError
from everest.methods.grid import TokenGrid, TokenSelection, check_inputs
from everest.methods.importance import Embedding, Scorer
from everest.methods.selection import Strategy
from everest.models.vit import Architecture, Encoder, frame_differences
from everest.video.pixels import STATISTICS_OF_CHANNELS, PixelStatistics

if TYPE_CHECKING:  # a model alone reads neither recipes nor videos
    from everest.config.settings import Recipe
    from everest.data.views import ClipFormat


class ClipSpec(ABC):
    """All that is needed to rebuild a module: frozen settings with the fields below, and others."""

    frames: int  # T
    size: tuple[int, int]  # height, width
    pixels: PixelStatistics  # channels, mean and std of the clips
    heads: Heads = ()  # what a classifier predicts

    @property
    def num_classes(self) -> int | None:
        """The number of outputs of all heads; None without heads."""
        return sum(head.outputs for head in self.heads) or None

    @property
    def only_head(self) -> Head | None:
        """The head of a classifier with one head, which has no name; None of another model."""
        return self.heads[0] if self.heads and not self.heads[0].name else None

    @property
    def channels(self) -> int:
        """C, of a clip."""
        return self.pixels.channels

    @property
    def parts(self) -> Mapping[str, ClipSpec]:
        """The models that it joins, by the prefix of their tensors; of most models only itself."""
        return {"": self}

    @property
    def encoded(self) -> Sequence[TokenGrid]:
        """The token grids of its parts; empty without an encoder."""
        return [part.grid for part in self.parts.values() if isinstance(part, Architecture)]

    @property
    def num_tokens(self) -> int | None:
        """The fewest tokens of a part, of which a keep ratio must leave at least one; None without tokens."""
        return min((grid.num_tokens for grid in self.encoded), default=None)

    @property
    @abstractmethod
    def title(self) -> str:
        """The model in a few words, such as for a card."""

    def for_clips(
        self, *, frames: int | None = None, size: tuple[int, int] | None = None, strategy: Any = None
    ) -> Self:
        """The same model for other clips, and with another strategy if it has one; None: as it is."""
        own: Any = self  # a dataclass
        given = {"frames": frames, "size": size, "selection": strategy}
        return replace(own, **{key: value for key, value in given.items() if value and hasattr(own, key)})

    @abstractmethod
    def build(self) -> ClipModel:
        """Make the module with new weights, from torch's default generator."""

    def without_files(self) -> Self:
        """The same model for a device on which tensors have no values, where it may read no file."""
        return self

    def dump(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return _adapter(type(self)).dump_python(self, mode="json")

    @classmethod
    def from_settings(cls, settings: dict[str, Any], *, source: Path) -> Self:
        """Read the values that `dump` returns, from the file `source`."""
        from everest.system.weights import read_spec  # a model alone reads no files

        spec = read_spec(_adapter(cls), settings, source=source)
        if problem := next(spec.problems(), None):
            raise CheckpointError(f"{source}: its settings do not describe a model: {': '.join(problem)}")
        return spec

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields the key of each setting that contradicts another, and the reason; `build` relies on none."""
        if self.channels not in STATISTICS_OF_CHANNELS:
            yield "pixels", f"{self.channels} channels, neither 1 nor 3"
        names = {head.name for head in self.heads}
        if len(self.heads) > 1 and ("" in names or len(names) < len(self.heads)):
            yield "heads", "each of several needs a name of its own"
        if any(head.task == "regression" and head.outputs != 1 for head in self.heads):
            yield "heads", "regression has one output"
        if any(len(head.thresholds) != head.outputs for head in self.heads):
            yield "heads", "thresholds of other classes"


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
        """Only a classifier has some."""
        return ()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def clip(self) -> ClipFormat:
        """The clips that the model was trained on; `transform` reads one."""
        from everest.data.recipe_clips import clip_format  # a model alone reads no videos

        return clip_format(self.recipe, self.stage)

    def transform(self, video: str | Path) -> Tensor:
        """Read the middle of a video as the model takes it.

        Returns:
            (1, C, T, H, W) float32, normalized, on the device of the model.
        """
        return self.pixels.normalize(self.clip.read(video).to(self.device))[None]


class TokenModel(ClipModel):
    """A model with an encoder of tokens.

    Attributes:
        input: what `to_input` computes: frames or their differences.
        scorer: of a model with a tokenizer, by whose scores a strategy may rank tokens.
    """

    scorer: Scorer | None = None

    def __init__(
        self, architecture: Architecture, *, strategy: Strategy, final_norm: bool, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        if isinstance(architecture, ClipSpec):
            self.spec = architecture
        self.input: ModelInput = architecture.model.input
        self.pixels = architecture.pixels
        self.strategy = strategy
        self.encoder = Encoder(architecture, final_norm=final_norm, drop_path=drop_path)

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
            noise: (B, at least N) uniform in [0, 1); None: for a strategy whose choice does not depend on it.
            importance: (B, N) float32, replaces what the strategy would compute.
            strategy: replaces that of the model.
        """
        grid = self.encoder.grid
        if noise is None:
            noise = torch.zeros(x.size(0), grid.num_tokens, device=x.device)
        check_inputs(grid, x.size(0), noise=noise, importance=importance)
        return (strategy or self.strategy).select(
            x, grid, self.embedding, noise, importance=importance, scorer=self.scorer
        )

    def encode(self, frames: Tensor, ids: Tensor) -> Tensor:
        """Encode the tokens `ids` (B, K) of clips (B, C, T, H, W), bytes or normalized: (B, K, D)."""
        return self.encoder(self.to_input(frames), ids)


@cache
def _adapter(spec: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(spec)
