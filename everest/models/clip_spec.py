"""Base classes of the specifications of models on clips: the `settings` of a safetensors file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import TypeAdapter

from everest.config.heads import Head, Heads
from everest.config.values import NotNegative, settings
from everest.errors import CheckpointError, RecipeError
from everest.methods.grid import NoiseLayout, TokenGrid, check_num_tokens
from everest.methods.strategies import StoredStrategy
from everest.models.positions import INTERPOLATED
from everest.models.vit import Architecture
from everest.system.weights_header import TransformerKind
from everest.video.pixels import STATISTICS_OF_CHANNELS, PixelStatistics


class ClipSpec(ABC):
    """All that is needed to rebuild a model: frozen settings, of which all kinds have the fields below."""

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
        """The head of a classifier with one head, which has no name; None for other models."""
        return self.heads[0] if self.heads and not self.heads[0].name else None

    @property
    def channels(self) -> int:
        """C, of a clip."""
        return self.pixels.channels

    @property
    def parts(self) -> Mapping[str, ClipSpec]:
        """The models that it combines, by the prefix of their tensors; most models are their only part."""
        return {"": self}

    @property
    def token_grids(self) -> Sequence[TokenGrid]:
        """The token grids of its parts; empty without an encoder."""
        return [part.grid for part in self.parts.values() if isinstance(part, Architecture)]

    @property
    def num_tokens(self) -> int | None:
        """The fewest tokens of a part, of which a keep ratio must leave at least one; None without tokens."""
        return min((grid.num_tokens for grid in self.token_grids), default=None)

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
    def build(self) -> Any:
        """Make the model, a `ClipModel`, with new weights, from torch's default generator."""

    def without_files(self) -> Self:
        """The same model, which `build` makes without reading a file, for example on the device `meta`."""
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


@settings
class ModelSpec(Architecture, ClipSpec):
    """All that is needed to rebuild a model with an encoder of tokens; each kind has further fields."""

    kind: TransformerKind
    selection: StoredStrategy  # chooses tokens; the key is that of a recipe

    @property
    def title(self) -> str:
        size = self.model.backbone_size
        return f"ViT of width {size.width}, depth {size.depth}, {size.heads} heads ({self.model.backbone})"

    @property
    def noise_layout(self) -> NoiseLayout:
        """The random numbers of a clip, which the loader draws."""
        return NoiseLayout.of(self.grid)

    @property
    def candidate_frames(self) -> int:
        """The frames that the loader returns: more than the clip's with frame selection."""
        return self.noise_layout.candidates.t * self.model.tubelet[0]

    @property
    def compared_views(self) -> int:
        """The clips of a video whose features are compared; 1: none are."""
        return 1

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from ((f"model.{key}", text) for key, text in self.model.problems())
        yield from ((f"selection.{key}", text) for key, text in self.selection.problems())
        if (self.position_grid is None) == self.model.positions.startswith(INTERPOLATED):
            yield "position_grid", "for interpolated positions, and only for these"
        try:
            check_num_tokens(self.grid)
            blank = torch.empty(1, self.grid.num_tokens, device="meta")
            if not self.selection(self.grid, importance=blank, noise=blank).visible.size(1):
                yield "selection", f"keeps none of {self.grid.num_tokens} tokens"
        except RecipeError as error:
            yield "tokens", str(error)


@settings
class PretrainSpec(ModelSpec):
    """A model that learns without labels."""

    kind: Literal["pretrain"] = "pretrain"
    camera: NotNegative = 0.0  # weight of the camera task

    @property
    def noise_layout(self) -> NoiseLayout:
        return NoiseLayout.of(self.grid, camera=self.camera)


@cache
def _adapter(spec: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(spec)
