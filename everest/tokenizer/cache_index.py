"""The index of a token cache: `index.json`, written before the parts, and the names of the parts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter

from everest.config.sizes import MOST_CODE_BITS
from everest.errors import CheckpointError
from everest.system.files import write_text
from everest.system.json_text import json_text, read_json, validated
from everest.tokenizer.feature_targets import TeacherUse
from everest.tokenizer.spec import TokenizerUse

INDEX: Final = "index.json"
PARTS: Final = "variant*.safetensors"
PART: Final = 256  # samples, the most work that a kill can cost; our choice
MOST_VARIANTS: Final = 10_000  # as many as the names of parts have numbers for


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
    tokenizer: TokenizerUse | None = None  # makes codes and ranks
    teacher: TeacherUse | None = None  # makes features
    # Of the values of each code dimension over the tokenizer's training set; float32 holds standardized ones.
    mean: tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...] = ()
    std: tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...] = ()
    videos: PositiveInt
    variants: Annotated[int, Field(ge=1, le=MOST_VARIANTS)]
    grid: tuple[PositiveInt, PositiveInt, PositiveInt]  # slices, rows, columns
    clips: dict[str, Any]  # the values that determine the pixels (`clip_facts`)
    precision: str  # in which the tokenizer or the teacher was run

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
        write_text(folder / INDEX, json_text(_INDEX.dump_python(self, mode="json"), indent=2) + "\n")

    @staticmethod
    def read(folder: Path, *, of: Literal["tokenizer", "teacher"] | None = None) -> TokenIndex:
        """Read the index of a folder.

        Args:
            of: what must have made the tokens.
        Raises:
            CheckpointError: the index is missing or damaged, or this version does not know it, or its tokens
                were made by something else than `of`.
        """
        path = folder / INDEX
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file; make it with "
                f"everest prepare tokens --output {shlex.quote(str(folder))}"
            )
        try:
            index = validated(_INDEX, read_json(path))
            if (index.tokenizer is None) == (index.teacher is None):
                raise ValueError("not of one tokenizer or one teacher")
            levels = index.tokenizer.settings.config.levels if index.tokenizer else ()
            if not len(index.mean) == len(index.std) == len(levels):
                raise ValueError(f"mean and std are not of the {len(levels)} dimensions of a code")
            if index.tokenizer and (min(levels, default=0) < 2 or math.prod(levels) > 2**MOST_CODE_BITS):
                raise ValueError(f"levels {levels}")
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: damaged ({error}); make the cache again with --overwrite"
            ) from error
        if of is not None and getattr(index, of) is None:
            made = {"tokenizer": "features of a teacher", "teacher": "codes of a tokenizer"}[of]
            raise CheckpointError(
                f"{folder}: has the {made}, and the recipe has a {of}; make its tokens with everest "
                "prepare tokens in another folder"
            )
        return index

    def to_dict(self) -> dict[str, Any]:
        """The values that must be equal in two caches, or in two calls that write one cache."""
        maker = {"tokenizer": self.tokenizer} if self.teacher is None else {"teacher": self.teacher}
        return self.clips | {
            "train.precision": self.precision,
            **{name: use and use.sha256 for name, use in maker.items()},
            "videos": self.videos,
            "grid": list(self.grid),
        }


_INDEX = TypeAdapter(TokenIndex)
