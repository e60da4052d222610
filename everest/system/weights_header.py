"""The header of a weights file, which describes its tensors; reading it needs neither torch nor tensors."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, NotRequired

from pydantic import Field, TypeAdapter, with_config
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict  # pydantic rejects typing.TypedDict on Python 3.11

from everest.errors import CheckpointError, EnvironmentProblem, shorten
from everest.system.text import json_text, parse_json, validate

FORMAT: Final = "everest"
HEADER_VERSION: Final = 1
POINTER_START: Final = b"version https://git-lfs"  # of a file that Git LFS puts in place of the weights
JSON_KEYS: Final = ("settings", "classes", "step", "origin", "clip")  # keys whose texts are JSON


TransformerKind = Literal["pretrain", "classifier", "encoder"]


class ModelKind(NamedTuple):
    """What a `kind` in the settings of a model means."""

    header_kind: str  # the kind in the header
    without_encoder: str | None = None  # its name in messages, if it has no token encoder


KINDS: Final = {
    "pretrain": ModelKind("pretrain"),
    "encoder": ModelKind("encoder"),
    "classifier": ModelKind("classifier"),
    "images": ModelKind("classifier", "a linear model on images"),
    "mean": ModelKind("classifier", "the mean of several models"),
    "tokenizer": ModelKind("tokenizer", "a tokenizer"),
}


def require_transformer(kind: str, *, source: str | Path) -> None:
    """Raise CheckpointError if a model of this kind, in the file `source`, has no encoder of tokens."""
    if kind in KINDS and (description := KINDS[kind].without_encoder):
        fix = "name a run of pretrain or finetune"
        raise CheckpointError(f"{source}: {description}, which has no transformer; {fix}")


@with_config(extra="forbid", strict=True)
class ClipSettings(TypedDict):
    """How training read clips, by the keys of a recipe."""

    stride: Annotated[int, Field(ge=1, lt=2**31)]
    sampling: Literal["dense", "segment", "spread"]
    fps: NotRequired[Annotated[int | float, Field(gt=0)]]


@dataclass(frozen=True, kw_only=True)
class WeightsHeader:
    """The header of a `model.safetensors`: all that is needed to rebuild the module around its tensors."""

    kind: TransformerKind | Literal["tokenizer"]
    settings: dict[str, Any]  # fields of a ClipSpec (everest.models.clip_spec) or TokenizerSpec
    classes: tuple[str, ...] | None
    recipe: str  # name of the recipe
    step: Annotated[int, Field(strict=True, ge=0, lt=2**63)]
    # The weights that training started from. If converted: family, file, license, fresh and omitted names.
    origin: dict[str, Any] | None = None
    clip: ClipSettings | None = None  # None: unknown

    def metadata(self) -> dict[str, str]:
        """The texts that a safetensors file stores. Other programs can read each text by itself."""
        texts = {"format": FORMAT, "version": str(HEADER_VERSION), "kind": self.kind, "recipe": self.recipe}
        values = {key: getattr(self, key) for key in JSON_KEYS}
        parsed = {key: json_text(v) for key, v in values.items() if v is not None or key == "classes"}
        return texts | parsed


_HEADER: Final = TypeAdapter(WeightsHeader)


def read_header(path: Path) -> WeightsHeader:
    """Read the header that `WeightsHeader.metadata` describes."""
    texts = read_metadata(path)
    if texts.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but not written by everest; first run "
            f"everest convert {shlex.quote(str(path))} --output FILE.safetensors"
        )
    try:
        if (version := int(texts["version"])) != HEADER_VERSION:
            raise CheckpointError(
                f"{path}: has version {version}, not {HEADER_VERSION}; update everest to read it"
            )
        values = {"kind": texts["kind"], "recipe": texts["recipe"]}
        values |= {key: parse_json(texts[key]) for key in texts.keys() & JSON_KEYS}
        header = validate(_HEADER, values)
        kind = KINDS.get(str(header.settings.get("kind", header.kind)))
        if kind is None or kind.header_kind != header.kind:
            raise ValueError("settings of another kind")
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({shorten(error)})") from error
    return header


def read_metadata(path: Path) -> dict[str, str]:
    """Read the texts in the header of any safetensors file; raises the errors of `open_safetensors`."""
    with open_safetensors(path) as file:
        return file.metadata() or {}


def refuse_pointer(path: Path) -> None:
    """Raise CheckpointError for a pointer file of Git LFS, which a clone without Git LFS leaves."""
    with path.open("rb") as file:
        if file.read(len(POINTER_START)) == POINTER_START:
            raise CheckpointError(
                f"{path}: a pointer of Git LFS, not the weights; run `git lfs pull` in the clone"
            )


@contextmanager
def open_safetensors(path: Path, *, framework: Literal["np", "pt"] = "np") -> Iterator[safe_open]:
    """Open a safetensors file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        refuse_pointer(path)
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a safetensors file, or a damaged one ({shorten(error)})"
        ) from error
    except OSError as error:
        reason = error.strerror or "the file cannot be opened; check its permissions and the disk"
        raise EnvironmentProblem(f"cannot read {path}: {reason}") from error
