"""The token cache that `everest prepare tokens` writes: codes and ranks of tokens, and the index of a cache.

A cache is a folder with `index.json` and a safetensors file for every part: the clips of up to `PART` samples
in one variant. Variant v of a sample is the clip that epoch v of the run would draw: the same frames, crop
and flip. A part has R samples:

    codes  (R, V, N) unsigned, of FSQ
    ranks  (R, V, N) unsigned, of the scores of a view: 0 for the lowest score, equal ranks for equal scores

A selection needs only the ranks of scores, which are exact in 16 bits; float16 scores would create ties.
`problems` in the header of a part lists the samples that could not be read; their rows have no meaning.

V views, N tokens, D code dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from everest.config.settings import PixelTargetSettings, Recipe, TokenTargetSettings
from everest.data.dataset import VideoClips
from everest.data.samples import Sample
from everest.data.stages import fingerprint
from everest.data.views import PretrainViews
from everest.errors import CheckpointError
from everest.system.files import write_text
from everest.system.storage import parse_location
from everest.system.weights import read_spec
from everest.tokenizer.fsq import FSQ
from everest.tokenizer.spec import TokenizerUse, tokenizer_settings, tokenizer_use
from everest.video.reader import VideoError

INDEX: Final = "index.json"
PARTS: Final = "variant*.safetensors"
PART: Final = 256  # samples, the most work that a kill can cost; our choice
SHOWN: Final = 3  # differences that a message names


@dataclass(frozen=True, slots=True)
class CachePart:
    """A part of a cache: consecutive samples in one variant."""

    variant: int
    samples: range

    @property
    def name(self) -> str:
        return f"variant{self.variant:04d}-{self.samples.start:08d}.safetensors"


@dataclass(frozen=True, kw_only=True)
class TokenIndex:
    """The `index.json` of a cache, which is written before the parts."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    format: Literal["everest-tokens"] = "everest-tokens"
    version: Literal[1] = 1
    tokenizer: TokenizerUse
    mean: tuple[float, ...]  # of the values of each code dimension over the tokenizer's training set
    std: tuple[float, ...]
    videos: int
    variants: int
    grid: tuple[int, int, int]  # slices, rows, columns
    clips: dict[str, Any]  # the values that determine the pixels (`clip_facts`)
    precision: str  # in which the tokenizer was run

    def parts(self) -> Iterator[CachePart]:
        """Yield all parts in the order in which they are written."""
        for variant in range(self.variants):
            for first in range(0, self.videos, PART):
                yield self.part_of(variant, first)

    def part_of(self, variant: int, sample: int) -> CachePart:
        """The part that has the clip of a sample."""
        first = sample // PART * PART
        return CachePart(variant, range(first, min(first + PART, self.videos)))

    def save(self, folder: Path) -> None:
        """Write the index atomically."""
        write_text(folder / INDEX, json.dumps(_INDEX.dump_python(self, mode="json"), indent=2) + "\n")

    @staticmethod
    def read(folder: Path) -> TokenIndex:
        """Read the index of a folder.

        Raises:
            CheckpointError: the index is missing or damaged, or this version does not know it.
        """
        path = folder / INDEX
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file; make it with everest prepare tokens --output {folder}"
            )
        try:
            settings = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(
                f"{path}: damaged ({error}); make the cache again with --overwrite"
            ) from error
        return read_spec(_INDEX, settings, source=path)

    def to_dict(self) -> dict[str, Any]:
        """The values that must be equal in two caches, or in two calls that write one cache."""
        return self.clips | {"train.precision": self.precision, "tokenizer": self.tokenizer.sha256}

    def with_variants(self, variants: int) -> TokenIndex:
        """The same index with at least `variants` variants."""
        return replace(self, variants=max(self.variants, variants))


_INDEX = TypeAdapter(TokenIndex)


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the keys whose values differ, each with both values."""
    return [
        f"{key} ({json.dumps(before.get(key))}, now {json.dumps(now.get(key))})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def tokenizer_for(recipe: Recipe) -> TokenizerUse | None:
    """The tokenizer that a recipe's pre-training uses; None if it needs none.

    With a token cache it is the tokenizer that the cache was made with.

    Raises:
        RecipeError: a tokenizer is needed, but the recipe has no `tokenizer` section.
        CheckpointError: the tokenizer or the cache cannot be read, or `tokenizer.checkpoint` is not the
            tokenizer of the cache.
    """
    if not recipe.pretrain.needs_tokenizer:
        return None
    if recipe.pretrain.target.cache is None:
        return tokenizer_use(recipe)
    folder = Path(recipe.pretrain.target.cache)
    cached = TokenIndex.read(folder).tokenizer
    if tokenizer_settings(recipe).checkpoint is None:
        return cached
    named = tokenizer_use(recipe)
    if named.sha256 != cached.sha256:
        raise CheckpointError(
            f"{folder}: its tokens are not from {named.path} (tokenizer.checkpoint) but from {cached.path}; "
            "name that tokenizer, or make the cache again with everest prepare tokens"
        )
    return named


def clip_facts(recipe: Recipe, clips: VideoClips) -> dict[str, Any]:
    """The values that determine the pixels of pre-training clips: JSON values under the keys of a recipe."""
    views = clips.make_views
    assert isinstance(views, PretrainViews)
    return {
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


def read_problems(part: Path) -> dict[str, str]:
    """Read from a part which samples could not be read: reasons by sample index.

    Raises:
        CheckpointError: the part is missing or damaged.
    """
    with _open_part(part) as file:
        return json.loads(file.metadata()["problems"])


@contextmanager
def _open_part(part: Path) -> Iterator[Any]:
    try:
        with safe_open(part, framework="np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{part}: missing or damaged ({error}); remove it and run the same everest prepare tokens again"
        ) from error


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """A cache that was checked against a run's clips (everest.data.dataset.ClipTokens).

    Args:
        space: of the targets; None if the targets are pixels.
        ranks: whether the selection ranks by the tokenizer's scores.
    """

    folder: Path
    index: TokenIndex
    samples: Sequence[Sample]
    quantizer: FSQ
    space: Literal["values", "codes"] | None
    ranks: bool

    @property
    def variants(self) -> int:
        return self.index.variants

    def read(self, variant: int, index: int) -> dict[str, Tensor]:
        """Read the model's further inputs for the clip of sample `index` in epoch `variant`.

        Returns:
            `importance`: (V, N) float32, the rank of each token's score, if the selection needs it.
            `values`: as TokenTargets.values, (V, N, D): standardized values in float32, or with space `codes`
            the int64 levels. Missing if the targets are pixels.
        Raises:
            VideoError: the sample could not be read when the cache was made.
            CheckpointError: a part is missing or damaged.
        """
        part = self.index.part_of(variant, index)
        path, row = self.folder / part.name, index - part.samples.start
        with _open_part(path) as file:
            problem = json.loads(file.metadata()["problems"]).get(str(index))
            if problem is not None:
                raise VideoError(self.samples[index].video, f"{problem} (recorded in {path})")
            codes, ranks = file.get_slice("codes")[row], file.get_slice("ranks")[row]  # (V, N) each
        tokens = {"importance": torch.from_numpy(ranks.astype(np.float32))} if self.ranks else {}
        codes = torch.from_numpy(codes.astype(np.int64))
        if self.space == "codes":
            tokens["values"] = self.quantizer.digits(codes)
        elif self.space == "values":
            values = self.quantizer.decode(codes)
            tokens["values"] = (values - torch.tensor(self.index.mean)) / torch.tensor(self.index.std)
        return tokens


def open_token_cache(recipe: Recipe, clips: VideoClips) -> TokenCache:
    """Open the cache `pretrain.target.cache` and check that it belongs to the clips.

    Raises:
        CheckpointError: the cache is incomplete, or has the tokens of other clips.
    """
    target = recipe.pretrain.target
    folder = Path(target.cache or "")
    index = TokenIndex.read(folder)
    differences = differing(index.clips, clip_facts(recipe, clips))
    if differences:
        more = ", …" if len(differences) > SHOWN else ""
        raise CheckpointError(
            f"{folder}: has the tokens of other clips: {', '.join(differences[:SHOWN])}{more}; set these to "
            "the earlier values, or make the cache again with everest prepare tokens --overwrite"
        )
    parts = list(index.parts())
    missing = [part.name for part in parts if not (folder / part.name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(parts)} parts are missing, first {missing[0]}; run the same "
            "everest prepare tokens again to make them"
        )
    match target:
        case PixelTargetSettings():
            space = None
        case TokenTargetSettings():  # the recipe's checks have refused `soft`
            space = "codes" if target.space == "codes" else "values"
    return TokenCache(
        folder=folder,
        index=index,
        samples=clips.samples,
        quantizer=FSQ(index.tokenizer.settings.config.levels),
        space=space,
        ranks=recipe.pretrain.selection.needs_tokenizer,
    )
