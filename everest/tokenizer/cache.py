"""The token cache that `everest prepare tokens` writes: what a tokenizer makes of the clips.

A cache is a folder with `index.json`, which is written first, and a safetensors file for every part: the
clips of up to `PART` samples in one variant. Variant v of a sample is the clip that epoch v of the run would
draw: the same frames, crop and flip. A part has R samples:

    codes  (R, V, N) unsigned, of FSQ
    ranks  (R, V, N) unsigned, of the scores of a view: 0 for the lowest score, equal ranks for equal scores

A selection needs only the ranks of scores, which are exact in 16 bits; float16 scores would create ties.
`problems` in the header of a part lists the samples that could not be read; their rows have no meaning.

V views, N tokens, D code dimensions.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter
from torch import Tensor

from everest.config.settings import Recipe
from everest.data.clips import VideoClips
from everest.data.recipe_clips import clip_grid, fingerprint
from everest.data.views import PretrainViews
from everest.errors import CheckpointError, differing, first_names
from everest.methods.targets import TokenTargets
from everest.system.files import write_text
from everest.system.storage import parse_location
from everest.system.text import json_text, parse_json, read_json, reading_own, validated
from everest.system.weights_header import open_safetensors
from everest.tokenizer.layers import FSQ
from everest.tokenizer.spec import TokenizerUse
from everest.video.reader import VideoError

INDEX: Final = "index.json"
PARTS: Final = "variant*.safetensors"
PART: Final = 256  # samples, the most work that a kill can cost; heuristic
MOST_VARIANTS: Final = 10_000  # as many as the names of parts have numbers for
SHOWN: Final = 3  # differences that a message names


class CachePart(NamedTuple):
    """A part of a cache: consecutive samples in one variant."""

    variant: int
    samples: range

    @property
    def name(self) -> str:
        return f"variant{self.variant:04d}-{self.samples.start:08d}.safetensors"


@dataclass(frozen=True, kw_only=True)
class TokenIndex:
    """The `index.json` of a cache."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    format: Literal["everest-tokens"] = "everest-tokens"
    version: Literal[1] = 1
    tokenizer: TokenizerUse
    # Of the values of each code dimension over the tokenizer's training set; float32 holds standardized ones.
    mean: tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...]
    std: tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...]
    videos: PositiveInt
    variants: Annotated[int, Field(ge=1, le=MOST_VARIANTS)]
    grid: tuple[PositiveInt, PositiveInt, PositiveInt]  # slices, rows, columns
    clips: dict[str, Any]  # the values that determine the pixels (`clip_facts`)
    precision: str  # in which the tokenizer was run

    def parts(self) -> list[CachePart]:
        """All parts in the order in which they are written."""
        firsts = range(0, self.videos, PART)
        return [self.part_of(variant, first) for variant in range(self.variants) for first in firsts]

    def part_of(self, variant: int, sample: int) -> CachePart:
        """The part that has the clip of a sample."""
        first = sample // PART * PART
        return CachePart(variant, range(first, min(first + PART, self.videos)))

    def save(self, folder: Path) -> None:
        """Write the index atomically."""
        write_text(folder / INDEX, json_text(_INDEX.dump_python(self, mode="json"), indent=2) + "\n")

    @staticmethod
    def read(folder: Path) -> TokenIndex:
        """Read the index of a folder."""
        path = folder / INDEX
        if not path.is_file():
            command = f"everest prepare tokens --output {shlex.quote(str(folder))}"
            raise CheckpointError(f"{path}: no such file; make it with {command}")
        with reading_own(path, fix="make the cache again with --overwrite", error=CheckpointError):
            return validated(_INDEX, read_json(path))

    def clip_values(self) -> dict[str, Any]:
        """The values that must be those of a run's clips."""
        return {"videos": self.videos, "grid": list(self.grid), **self.clips}

    def token_values(self) -> dict[str, Any]:
        """The values that must be equal in two calls that write one cache."""
        made_by = {"tokenizer": self.tokenizer.sha256}
        return {**self.clip_values(), "train.precision": self.precision, **made_by}


_INDEX: Final = TypeAdapter(TokenIndex)


def clip_facts(recipe: Recipe, clips: VideoClips) -> dict[str, Any]:
    """The values that determine the pixels of pre-training clips: JSON values under the keys of a recipe."""
    views = clips.make_views
    assert isinstance(views, PretrainViews)
    return {
        "data.fps": views.fps,
        "data.channels": recipe.data.channels,
        "train.seed": clips.seed,
        "data.frames": views.frames,
        "data.size": list(views.size),
        "model.tubelet": list(recipe.model.tubelet),
        "pretrain.stride": views.stride,
        "pretrain.sampling": views.sampling,
        "pretrain.flip": views.flip,
        "pretrain.views_per_decode": views.views_per_decode,
        "list of videos": fingerprint(clips.samples, parse_location(recipe.data.root), None),
    }


@contextmanager
def open_part(part: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a part: its file, and the reason of each unreadable sample by its number."""
    fix = "remove it and run the same everest prepare tokens again"
    with reading_own(part, fix=fix, error=CheckpointError), open_safetensors(part) as file:
        yield file, parse_json(file.metadata()["problems"])


class TokenCache:
    """The cache `pretrain.target.cache` of a recipe, whose tokens are of these clips.

    It is what the clips of pre-training read (everest.data.clips.ClipTokens).
    """

    def __init__(self, recipe: Recipe, clips: VideoClips) -> None:
        stage = recipe.pretrain
        assert stage.objective == "pixels", "only targets are stored"
        self.folder = Path(stage.target.cache or "")
        self.index = TokenIndex.read(self.folder)
        grid = clip_grid(recipe)
        requested = {"videos": len(clips), "grid": [grid.t, grid.h, grid.w], **clip_facts(recipe, clips)}
        differences = differing(self.index.clip_values(), requested)
        if differences:
            raise CheckpointError(
                f"{self.folder}: has the tokens of other clips: {first_names(differences, SHOWN)}; set these "
                "to the earlier values, or make the cache again with everest prepare tokens --overwrite"
            )
        present = {file.name for file in self.folder.glob(PARTS)}
        parts = [part.name for part in self.index.parts()]
        missing = [part for part in parts if part not in present]
        if missing:
            raise CheckpointError(
                f"{self.folder}: {len(missing)} of {len(parts)} parts are missing, first {missing[0]}; run "
                "the same everest prepare tokens again to make them"
            )
        self.variants = self.index.variants
        self._samples = clips.samples
        # The recipe's checks have refused `soft`. Targets of pixels need no values.
        self._space = stage.target.space if isinstance(stage.target, TokenTargets) else None
        self._needs_ranks = stage.selection.needs_tokenizer
        self._quantizer = FSQ(self.index.tokenizer.settings.config.levels)

    def read(self, variant: int, index: int) -> dict[str, Tensor]:
        """Read the model's further inputs for the clip of sample `index` in epoch `variant`.

        Returns:
            `importance`: (V, N) float32, the rank of each token's score, if the selection needs it.
            `values`: as TokenTargets.values, (V, N, D): standardized values in float32, or with space `codes`
            the int64 levels. Missing if the targets are pixels.
        """
        part = self.index.part_of(variant, index)
        path, row = self.folder / part.name, index - part.samples.start
        with open_part(path) as (file, problems):
            if str(index) in problems:
                reason = f"{problems[str(index)]} (recorded in {path})"
                raise VideoError(self._samples[index].video, reason)
            codes, ranks = (file.get_slice(name)[row] for name in ("codes", "ranks"))  # (V, N)
        tokens = {"importance": torch.from_numpy(ranks.astype(np.float32))} if self._needs_ranks else {}
        codes = torch.from_numpy(codes.astype(np.int64))
        if self._space == "codes":
            tokens["values"] = self._quantizer.digits(codes)
        elif self._space is not None:
            values = self._quantizer.decode(codes)
            tokens["values"] = (values - torch.tensor(self.index.mean)) / torch.tensor(self.index.std)
        return tokens
