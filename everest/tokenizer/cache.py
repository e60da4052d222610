"""What a token cache says of itself: which tokenizer saw which clips, and the files that the tokens are in.

A cache is a folder with `index.json` and a safetensors file for every part: the clips of up to `PART` samples
in one variant. Variant v of a sample is the clip that epoch v of the run would draw: the same frames, crop
and flip. R samples of a part, V views, N tokens:

    codes  (R, V, N) unsigned, of FSQ
    ranks  (R, V, N) unsigned, of the scores of a view: 0 for the lowest, equal ones for equal scores

A ranking is all that a selection makes of scores, and it is exact in 16 bits; of scores in float16 many are
equal that were not. `problems` in the header tells which samples could not be read; their rows mean nothing.

Codes and ranks of tokens that `everest prepare tokens` keeps, read with the clips that they belong to.

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
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from everest.config.settings import Recipe
from everest.data.dataset import VideoClips
from everest.data.samples import Sample
from everest.data.stages import fingerprint
from everest.data.views import PretrainViews
from everest.errors import CheckpointError
from everest.methods.ranked import LearnedImportance
from everest.system.files import write_text
from everest.system.storage import parse_location
from everest.system.weights import read_spec
from everest.tokenizer.fsq import FSQ
from everest.tokenizer.spec import TokenizerUse, tokenizer_settings, tokenizer_use
from everest.video.reader import VideoError

INDEX: Final = "index.json"
PARTS: Final = "variant*.safetensors"
PART: Final = 256  # ours: samples, the work that a kill may cost


@dataclass(frozen=True, slots=True)
class CachePart:
    """Some samples in one variant."""

    variant: int
    samples: range

    @property
    def name(self) -> str:
        return f"variant{self.variant:04d}-{self.samples.start:08d}.safetensors"


@dataclass(frozen=True, kw_only=True)
class TokenIndex:
    """The `index.json` of a cache. It is there before the parts are."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    format: Literal["everest-tokens"] = "everest-tokens"
    version: Literal[1] = 1
    tokenizer: TokenizerUse
    mean: tuple[float, ...]  # of each code dimension's values over the tokenizer's training set
    std: tuple[float, ...]
    videos: int
    variants: int
    grid: tuple[int, int, int]  # slices, rows, columns
    clips: dict[str, Any]  # what their pixels follow from, by the keys of a recipe
    precision: str  # of the tokenizer's products

    def parts(self) -> Iterator[CachePart]:
        """All parts, in the order in which they are written."""
        for variant in range(self.variants):
            for first in range(0, self.videos, PART):
                yield self.part_of(variant, first)

    def part_of(self, variant: int, sample: int) -> CachePart:
        """Where a sample's clip is."""
        first = sample // PART * PART
        return CachePart(variant, range(first, min(first + PART, self.videos)))

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        write_text(folder / INDEX, json.dumps(_INDEX.dump_python(self, mode="json"), indent=2) + "\n")

    @staticmethod
    def read(folder: Path) -> TokenIndex:
        """The index of a folder.

        Raises:
            CheckpointError: there is none, or none that this version knows.
        """
        path = folder / INDEX
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; everest prepare tokens --output {folder} makes it")
        try:
            settings = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(
                f"{path}: damaged ({error}); make the cache again with --overwrite"
            ) from error
        return read_spec(_INDEX, settings, source=path)

    def to_dict(self) -> dict[str, Any]:
        """What two caches, or the calls that write one, must agree on."""
        return self.clips | {"train.precision": self.precision, "tokenizer": self.tokenizer.sha256}

    def with_variants(self, variants: int) -> TokenIndex:
        """The same cache with variants added."""
        return replace(self, variants=max(self.variants, variants))


_INDEX = TypeAdapter(TokenIndex)


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The values that differ, each with both."""
    return [
        f"{key} ({json.dumps(before.get(key))}, now {json.dumps(now.get(key))})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def cached_tokenizer(recipe: Recipe) -> TokenizerUse:
    """The tokenizer that the cache of a recipe was made with.

    Raises:
        CheckpointError: there is no cache, or `tokenizer.checkpoint` names another tokenizer.
    """
    folder = Path(recipe.pretrain.target.cache or "")
    index = TokenIndex.read(folder)
    if tokenizer_settings(recipe).checkpoint is None:
        return index.tokenizer
    named = tokenizer_use(recipe)
    if named.sha256 != index.tokenizer.sha256:
        raise CheckpointError(
            f"{folder}: its tokens are not those of {named.path} (tokenizer.checkpoint) but of "
            f"{index.tokenizer.path}; name that, or make them again by everest prepare tokens"
        )
    return named


SHOWN = 3  # differences that a message names


def clip_facts(recipe: Recipe, clips: VideoClips) -> dict[str, Any]:
    """All that the pixels of pre-training's clips follow from, as JSON values under the keys of a recipe."""
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
    """Why samples of a part could not be read, by their numbers.

    Raises:
        CheckpointError: the part is gone or damaged.
    """
    with _opened(part) as file:
        return json.loads(file.metadata()["problems"])


@contextmanager
def _opened(part: Path) -> Iterator[Any]:
    try:
        with safe_open(part, framework="np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{part}: gone or damaged ({error}); remove it and give everest prepare tokens once more"
        ) from error


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """A cache that fits a run (everest.data.dataset.ClipTokens).

    Args:
        space: of the targets; None where these are pixels.
        ranks: whether the selection ranks by the tokenizer's scores.
    """

    folder: Path
    index: TokenIndex
    samples: Sequence[Sample]
    quantiser: FSQ
    space: Literal["values", "codes"] | None
    ranks: bool

    @property
    def variants(self) -> int:
        return self.index.variants

    def read(self, variant: int, index: int) -> dict[str, Tensor]:
        """What a model takes with the clip of (epoch `variant`, `index`).

        Returns:
            `importance`: (V, N) float32, the rank of each token's score, if the selection asks for it.
            `values`: (V, N, D) float32 standardised values, or the int64 levels of `codes`, unless the
            targets are pixels.
        Raises:
            VideoError: the sample could not be read when the cache was made.
            CheckpointError: a part is gone or damaged.
        """
        codes, ranks = self._rows(variant, index)  # (V, N) each
        tokens = {}
        if self.ranks:
            tokens["importance"] = torch.from_numpy(ranks.astype(np.float32))
        if self.space is not None:
            tokens["values"] = self._values(torch.from_numpy(codes.astype(np.int64)))
        return tokens

    def _values(self, codes: Tensor) -> Tensor:
        """(V, N) codes to what TokenTargets.values has of them."""
        if self.space == "codes":
            return self.quantiser.digits(codes)
        return (self.quantiser.decode(codes) - torch.tensor(self.index.mean)) / torch.tensor(self.index.std)

    def _rows(self, variant: int, index: int) -> tuple[NDArray[Any], NDArray[Any]]:
        part = self.index.part_of(variant, index)
        path, row = self.folder / part.name, index - part.samples.start
        with _opened(path) as file:
            problem = json.loads(file.metadata()["problems"]).get(str(index))
            if problem is not None:
                raise VideoError(self.samples[index].video, f"{problem}, says {path}")
            return file.get_slice("codes")[row], file.get_slice("ranks")[row]


def open_token_cache(recipe: Recipe, clips: VideoClips) -> TokenCache:
    """The cache `pretrain.target.cache`, whose tokens are those of the clips.

    Raises:
        CheckpointError: it is not whole, or its tokens are of other clips.
    """
    target = recipe.pretrain.target
    folder = Path(target.cache or "")
    index = TokenIndex.read(folder)
    others = differing(index.clips, clip_facts(recipe, clips))
    if others:
        more = ", …" if len(others) > SHOWN else ""
        raise CheckpointError(
            f"{folder}: has the tokens of other clips: {', '.join(others[:SHOWN])}{more}; set these as they "
            "were, or make the cache again by everest prepare tokens with --overwrite"
        )
    parts = list(index.parts())
    missing = [part.name for part in parts if not (folder / part.name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(parts)} parts are missing, first {missing[0]}; the same "
            "everest prepare tokens as before makes them"
        )
    return TokenCache(
        folder=folder,
        index=index,
        samples=clips.samples,
        quantiser=FSQ(index.tokenizer.settings.config.levels),
        space=None if target.kind == "pixels" else "codes" if target.space == "codes" else "values",
        ranks=_ranks_by_tokenizer(recipe),
    )


def _ranks_by_tokenizer(recipe: Recipe) -> bool:
    selection = recipe.pretrain.selection
    return isinstance(selection, LearnedImportance) and selection.score == "learned"
