"""The header of a weights file: what the tensors are, read without torch and without reading a tensor."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NotRequired,  # pydantic does not take typing's on Python 3.11
)

from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from everest.errors import CheckpointError, EnvironmentProblem, shown
from everest.system.json_text import json_text, parse_json, validated

FORMAT: Final = "everest"
VERSION: Final = 1  # of the header


@dataclass(frozen=True, kw_only=True)
class WeightsHeader:
    """All of a `model.safetensors` but its tensors: what is needed to rebuild the module around them."""

    kind: str  # pretrain, classifier, encoder or tokenizer
    settings: dict[str, Any]  # of everest.models.spec.ModelSpec or everest.tokenizer.spec.TokenizerSpec
    classes: tuple[str, ...] | None
    recipe: str  # its name
    step: int
    # The weights that these started from. Converted ones: family, file, license, names fresh and left out.
    origin: dict[str, Any] | None = None
    # `stride`, `sampling` and, if it was set, `fps` of the training; None: not known
    clip: dict[str, Any] | None = None

    def metadata(self) -> dict[str, str]:
        """The texts that a safetensors file stores."""
        values = {"version": VERSION, "settings": self.settings, "classes": self.classes, "step": self.step}
        values |= {"origin": self.origin} if self.origin is not None else {}
        values |= {"clip": self.clip} if self.clip is not None else {}
        texts = {"format": FORMAT, "kind": self.kind, "recipe": self.recipe}
        return texts | {key: json_text(value) for key, value in values.items()}


class _Clip(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]
    stride: Annotated[int, Field(ge=1, lt=2**31)]
    sampling: Literal["dense", "segment", "spread"]
    fps: NotRequired[Annotated[int | float, Field(gt=0, le=10_000)]]  # as in a recipe


class _Header(TypedDict):
    """The texts of a file, parsed."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    version: PositiveInt
    kind: Literal["pretrain", "classifier", "encoder", "tokenizer"]
    settings: dict[str, Any]
    classes: list[str] | None
    recipe: str
    step: Annotated[int, Field(ge=0, lt=2**63)]
    origin: NotRequired[dict[str, Any] | None]
    clip: NotRequired[_Clip | None]


_HEADER: Final = TypeAdapter(_Header)


def read_header(path: Path) -> WeightsHeader:
    """Read what `WeightsHeader.metadata` gave.

    Raises:
        CheckpointError: no such file, not a complete safetensors file, or not written by everest.
    """
    texts = read_metadata(path)
    if texts.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but not written by everest; first "
            f"everest convert {shlex.quote(str(path))} --output FILE.safetensors"
        )
    try:
        if int(texts["version"]) > VERSION:
            raise CheckpointError(f"{path}: written by a newer everest; update to read it")
        known = texts.keys() & _Header.__annotations__
        parsed = {key: texts[key] if key in ("kind", "recipe") else parse_json(texts[key]) for key in known}
        header: dict[str, Any] = dict(validated(_HEADER, parsed))
        kind, classes = header["kind"], header["classes"]
        if header["settings"].get("kind", kind) != kind:
            raise ValueError("settings of another kind")
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({shown(error)})") from error
    del header["version"]
    return WeightsHeader(**header | {"classes": None if classes is None else tuple(classes)})


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in the header of any safetensors file; errors as of `open_safetensors`."""
    with open_safetensors(path) as file:
        return file.metadata() or {}


@contextmanager
def open_safetensors(path: Path, *, framework: Literal["np", "pt"] = "np") -> Iterator[safe_open]:
    """Open a safetensors file.

    Raises:
        CheckpointError: no such file, or not a complete one.
        EnvironmentProblem: the disk or its permissions refuse to read it.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({shown(error)})") from error
    except OSError as error:
        reason = error.strerror or "the file cannot be opened; check its permissions and the disk"
        raise EnvironmentProblem(f"cannot read {path}: {reason}") from error
