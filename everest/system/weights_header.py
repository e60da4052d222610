"""The header of a weights file: what the tensors are, read without torch and without reading a tensor."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from everest.errors import CheckpointError, EnvironmentProblem, shown
from everest.system.json_text import json_text, parse_json

FORMAT = "everest"
VERSION = 1  # of the header
KINDS = ("pretrain", "classifier", "encoder", "tokenizer")
SAMPLINGS = ("dense", "segment", "spread")
MOST_FPS = 10_000  # as in a recipe


@dataclass(frozen=True, kw_only=True)
class WeightsHeader:
    """All of a `model.safetensors` but its tensors: what is needed to rebuild the module around them."""

    kind: str  # of KINDS
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
        texts = {
            "format": FORMAT,
            "version": str(VERSION),
            "kind": self.kind,
            "settings": json_text(self.settings),
            "classes": json_text(self.classes),
            "recipe": self.recipe,
            "step": str(self.step),
        }
        known = {"origin": self.origin, "clip": self.clip}
        return texts | {key: json_text(value) for key, value in known.items() if value is not None}


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
        version, step = int(texts["version"]), int(texts["step"])
        if version > VERSION:
            raise CheckpointError(f"{path}: written by a newer everest; update to read it")
        kind, settings, classes = texts["kind"], parse_json(texts["settings"]), parse_json(texts["classes"])
        origin, clip = (parse_json(texts[key]) if key in texts else None for key in ("origin", "clip"))
        recipe = texts["recipe"]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({shown(error)})") from error
    sound = {
        "version": version >= 1,
        "step": 0 <= step < 2**63,
        "kind": kind in KINDS,
        "settings": isinstance(settings, dict) and settings.get("kind", kind) == kind,
        "classes": classes is None
        or (isinstance(classes, list) and all(isinstance(name, str) for name in classes)),
        "origin": origin is None or isinstance(origin, dict),
        "clip": clip is None or _is_clip(clip),
    }
    damaged = [name for name, is_sound in sound.items() if not is_sound]
    if damaged:
        raise CheckpointError(f"{path}: its header is damaged ({', '.join(damaged)})")
    return WeightsHeader(
        kind=kind,
        settings=settings,
        classes=None if classes is None else tuple(classes),
        recipe=recipe,
        step=step,
        origin=origin,
        clip=clip,
    )


def _is_clip(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() - {"fps"} != {"stride", "sampling"}:
        return False
    stride, fps = value["stride"], value.get("fps", 1)
    rate_is_sound = type(fps) in (int, float) and 0 < fps <= MOST_FPS
    return type(stride) is int and 1 <= stride < 2**31 and value["sampling"] in SAMPLINGS and rate_is_sound


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
