"""What a token cache says of itself: which tokenizer saw which clips, and the files that the tokens are in.

A cache is a folder with `index.json` and a safetensors file for every part: the clips of up to `PART` samples
in one variant. Variant v of a sample is the clip that epoch v of the run would draw: the same frames, crop
and flip. R samples of a part, V views, N tokens:

    codes  (R, V, N) unsigned, of FSQ
    ranks  (R, V, N) unsigned, of the scores of a view: 0 for the lowest, equal ones for equal scores

A ranking is all that a selection makes of scores, and it is exact in 16 bits; of scores in float16 many are
equal that were not. `problems` in the header tells which samples could not be read; their rows mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter

from everest.config.settings import Recipe
from everest.errors import CheckpointError
from everest.system.files import write_text
from everest.system.weights import read_spec
from everest.tokenizer_spec import TokenizerUse, tokenizer_settings, tokenizer_use

INDEX: Final = "index.json"
PARTS: Final = "variant*.safetensors"
PART: Final = 256  # ours: samples, the work that a kill may cost


@dataclass(frozen=True, slots=True)
class Part:
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

    def parts(self) -> Iterator[Part]:
        """All parts, in the order in which they are written."""
        for variant in range(self.variants):
            for first in range(0, self.videos, PART):
                yield self.part_of(variant, first)

    def part_of(self, variant: int, sample: int) -> Part:
        """Where a sample's clip is."""
        first = sample // PART * PART
        return Part(variant, range(first, min(first + PART, self.videos)))

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

    def told(self) -> dict[str, Any]:
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
