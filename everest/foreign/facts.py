"""The facts about a foreign checkpoint, from its shapes and the settings stored with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from everest.config.values import LARGEST_COUNT, MOST_BLOCKS, Positions
from everest.errors import CheckpointError, shown
from everest.foreign.files import Foreign
from everest.foreign.preprocessor import preprocessor_pixels
from everest.foreign.translation import Translation
from everest.models.vit import Norms
from everest.video.pixels import PixelStatistics

Stage = Literal["pretrain", "classifier", "encoder"]

RELEASED_CLIP = (16, 224)  # frames and pixels of all released programs but V-JEPA 2
V_JEPA_CLIP = (64, 256)
TRANSFORMERS_EPS, TORCH_EPS = 1e-12, 1e-5  # LayerNorm epsilons of transformers: default; always in the last


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Settings from the user that a file may not contain; None: as in the file, or as released."""

    family: str | None = None  # of everest.foreign.families.ALIASES
    frames: int | None = None
    size: int | tuple[int, int] | None = None  # (height, width) of one that is not square
    heads: int | None = None
    decoder_heads: int | None = None


@dataclass(frozen=True, kw_only=True)
class ForeignFacts:
    """The facts about a foreign checkpoint before its sizes are known."""

    foreign: Foreign
    hints: Hints
    family: str
    translation: Translation
    shapes: Mapping[str, tuple[int, ...]]  # by our names
    positions: Positions  # of the family, where the file stores no table
    kind: Literal["pretrain", "encoder"]  # of our weights, if the checkpoint has no classifier

    @property
    def stage(self) -> Stage:
        if "head.weight" in self.shapes:
            return "classifier"
        return "pretrain" if self.depth("decoder") else "encoder"

    @property
    def released_clip(self) -> tuple[int, int]:
        """The frames of a clip and the side of a frame, unless the file or the user states them."""
        return V_JEPA_CLIP if self.family == "vjepa2" else RELEASED_CLIP

    @property
    def norms(self) -> Norms:
        """transformers has other epsilons, and no norm after VideoMAE's encoder where tokens are averaged."""
        if self.family not in ("transformers", "vjepa2"):
            return Norms()
        default = TRANSFORMERS_EPS if self.family == "transformers" else Norms().eps
        eps = self.foreign.config.get("layer_norm_eps", default)
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps <= 1:
            raise self.error(f"layer_norm_eps is {shown(repr(eps))}, not a small number; fix its config.json")
        if self.family == "vjepa2":
            return Norms(eps=float(eps), last_eps=float(eps))
        after_encoder = self.stage == "classifier" or "encoder.norm.weight" in self.shapes
        return Norms(after_encoder=after_encoder, eps=float(eps), last_eps=TORCH_EPS)

    @property
    def pixels(self) -> PixelStatistics:
        """The mean and std of the preprocessor; without one ImageNet's, as in all released programs."""
        try:
            return preprocessor_pixels(self.foreign.preprocessor)
        except ValueError as error:
            raise self.error(f"the preprocessor next to it: {error}; fix its JSON file") from error

    @property
    def pooling(self) -> Literal["mean", "first"]:
        """The norm of a classifier comes after the average (fc_norm), or before the first token is taken.

        ST-MAE has one norm, which comes after the average.
        """
        if self.family == "st-mae":
            return "mean"
        before = self.translation.take.get("norm.weight", ("fc_norm.weight",))
        return "mean" if before[0].endswith("fc_norm.weight") else "first"

    def rows(self, positions: str) -> int | None:
        """The number of slices or places that learned positions are for; None: the file has none.

        Raises:
            CheckpointError: they have another shape than (1, rows, D).
        """
        shape = self.shapes.get(f"encoder.{positions}")
        if shape is not None and len(shape) != 3:
            name = self.translation.take[f"encoder.{positions}"][0]
            raise self.error(f"{name} is {list(shape)}, not learned positions [1, N, D]")
        return None if shape is None else shape[1]

    def depth(self, stack: str) -> int:
        """The number of blocks of the encoder or decoder."""
        matches = (re.match(rf"{stack}\.blocks\.(\d+)\.", name) for name in self.shapes)
        numbers = [match[1] for match in matches if match]
        too_deep = next((n for n in numbers if len(n) > len(str(MOST_BLOCKS)) or int(n) >= MOST_BLOCKS), None)
        if too_deep is not None:
            raise self.error(f"its {stack} has a block {shown(too_deep)}, at most {MOST_BLOCKS} are possible")
        return max((int(number) + 1 for number in numbers), default=0)

    def number(self, config: str, argument: str | None, default: int | None) -> int | None:
        """Return a value of transformers' config.json or of a saved command line."""
        value, name, fix = self.foreign.config.get(config), config, "fix its config.json"
        if not value and argument is not None:
            value, name = self.foreign.args.get(argument), f"{argument} of its saved command line"
            fix = "set --frames and --size of its training"
        value = value or default
        if value is not None and (type(value) is not int or not 1 <= value <= LARGEST_COUNT):
            raise self.error(f"{name} is {shown(repr(value))}, not a positive integer; {fix}")
        return value

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.foreign.path}: {text}")
