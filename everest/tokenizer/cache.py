"""The token cache that `everest prepare tokens` writes: what a tokenizer or a teacher makes of the clips.

A cache is a folder with `index.json` and a safetensors file for every part: the clips of up to `PART` samples
in one variant. Variant v of a sample is the clip that epoch v of the run would draw: the same frames, crop
and flip. A part has R samples, of a tokenizer:

    codes  (R, V, N) unsigned, of FSQ
    ranks  (R, V, N) unsigned, of the scores of a view: 0 for the lowest score, equal ranks for equal scores

or of a teacher:

    features  (R, V, N, D) float16, each token with mean 0 and variance 1: within 0.001 of the value, relative

A selection needs only the ranks of scores, which are exact in 16 bits; float16 scores would create ties.
`problems` in the header of a part lists the samples that could not be read; their rows have no meaning.

V views, N tokens, D code dimensions or the teacher's width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import InstanceOf, TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from everest.config.settings import Recipe
from everest.config.stage_settings import TokenTargetSettings
from everest.data.dataset import VideoClips
from everest.data.stages import clip_grid, fingerprint
from everest.data.views import PretrainViews
from everest.errors import CheckpointError, differing, first_names
from everest.lists.sample import Sample
from everest.system.json_text import parse_json, validated
from everest.system.storage import parse_location
from everest.tokenizer.cache_index import PARTS, TokenIndex
from everest.tokenizer.fsq import FSQ
from everest.tokenizer.spec import TokenizerUse, tokenizer_settings, tokenizer_use
from everest.video.reader import VideoError

SHOWN: Final = 3  # differences that a message names
UNSIGNED: Final = frozenset({"U8", "U16", "U32", "U64"})  # safetensors' names
HALF: Final = frozenset({"F16"})
_PROBLEMS: Final = TypeAdapter(dict[str, InstanceOf[str]])


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
    if recipe.pretrain.cache is None:
        return tokenizer_use(recipe)
    folder = Path(recipe.pretrain.cache)
    cached = TokenIndex.read(folder, of="tokenizer").tokenizer
    assert cached is not None
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


def read_problems(part: Path) -> dict[str, str]:
    """Read from a part which samples could not be read: reasons by sample index.

    Raises:
        CheckpointError: the part is missing or damaged.
    """
    with _open_part(part) as file:
        return _problems(file)


def _problems(file: Any) -> dict[str, str]:
    """The problems in the header of an open part; raises ValueError if there are none."""
    return validated(_PROBLEMS, parse_json((file.metadata() or {}).get("problems", "")))


@contextmanager
def _open_part(part: Path) -> Iterator[Any]:
    """Open a part; an error names it. The block raises ValueError for wrong contents."""
    try:
        with safe_open(part, framework="np") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{part}: missing or damaged ({error}); remove it and run the same everest prepare tokens again"
        ) from error


def _row(file: Any, name: str, row: int, shape: list[int], types: frozenset[str]) -> NDArray[Any]:
    """One sample's values of an open part; raises ValueError if the tensor has another shape or type."""
    stored = file.get_slice(name)
    if stored.get_shape() != shape or stored.get_dtype() not in types:
        found = f"{stored.get_dtype()} {stored.get_shape()}"
        raise ValueError(f"{name} of {found} where {shape} of {' or '.join(sorted(types))} are expected")
    return stored[row]


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """A cache that was checked against a run's clips (everest.data.dataset.ClipTokens).

    Args:
        quantizer: of the tokenizer; None: the cache has the features of a teacher.
        space: of the targets; None if the targets are pixels.
        ranks: whether the selection ranks by the tokenizer's scores.
    """

    folder: Path
    index: TokenIndex
    samples: Sequence[Sample]
    views: int
    quantizer: FSQ | None
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
            the int64 levels. Missing if the targets are pixels. Of a teacher the features in float16.
        Raises:
            VideoError: the sample could not be read when the cache was made.
            CheckpointError: a part is missing or damaged.
        """
        part = self.index.part_of(variant, index)
        path, row = self.folder / part.name, index - part.samples.start
        with _open_part(path) as file:
            problem = _problems(file).get(str(index))
            if problem is not None:
                raise VideoError(self.samples[index].video, f"{problem} (recorded in {path})")
            shape = [len(part.samples), self.views, math.prod(self.index.grid)]
            if self.quantizer is None:
                assert self.index.teacher is not None
                features = _row(file, "features", row, [*shape, self.index.teacher.width], HALF)
                return {"values": torch.from_numpy(features)}
            codes, ranks = (_row(file, name, row, shape, UNSIGNED) for name in ("codes", "ranks"))  # (V, N)
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
    stage = recipe.pretrain
    assert stage.objective == "pixels", "only targets are stored"
    target, folder = stage.target, Path(stage.target.cache or "")
    index = TokenIndex.read(folder, of="teacher" if recipe.pretrain.teacher else "tokenizer")
    grid, views = clip_grid(recipe), clips.make_views
    now = {"videos": len(clips), "grid": [grid.t, grid.h, grid.w], **clip_facts(recipe, clips)}
    found = {"videos": index.videos, "grid": list(index.grid), **index.clips}
    differences = differing(found, now)
    if differences:
        raise CheckpointError(
            f"{folder}: has the tokens of other clips: {first_names(differences, SHOWN)}; set these to the "
            "earlier values, or make the cache again with everest prepare tokens --overwrite"
        )
    present = {file.name for file in folder.glob(PARTS)}
    parts = [part.name for part in index.parts()]
    missing = [part for part in parts if part not in present]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(parts)} parts are missing, first {missing[0]}; run the same "
            "everest prepare tokens again to make them"
        )
    space = None
    if isinstance(target, TokenTargetSettings):  # the recipe's checks have refused `soft`
        space = "codes" if target.space == "codes" else "values"
    return TokenCache(
        folder=folder,
        index=index,
        samples=clips.samples,
        views=views.num_views,
        quantizer=None if index.tokenizer is None else FSQ(index.tokenizer.settings.config.levels),
        space=space,
        ranks=recipe.pretrain.selection.needs_tokenizer,
    )
