"""Checkpoints of other programs: their tensors, and the settings stored with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from everest.converters.preprocessor import PREPROCESSORS
from everest.converters.translation import FAMILIES, find_family
from everest.converters.weight_files import CONFIG_FILE, find_weight_file, read_weight_file
from everest.errors import CheckpointError, EnvironmentProblem, shorten
from everest.system.events import Notify
from everest.system.hub import HUB_PREFIX, fetch, read_license
from everest.system.run_folder import WEIGHTS_FILE
from everest.system.text import read_json
from everest.system.weights_header import FORMAT, read_metadata

MULTI_LABEL_PROBLEM: Final = "multi_label_classification"  # problem_type of transformers
FRAME_SAMPLE_RATE: Final = "frame_sample_rate"  # name of the stride in examples of transformers
IMAGE_EMBEDDING: Final = "patch_embed.proj.weight"  # name in an image model
# Parts of names that belong to a wrapper of a module: torch.compile, checkpointing, FSDP, fairscale.
WRAPPERS: Final = re.compile(
    r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_fpw_module|_forward_module)\."
)
# The embedding of a model. Any name in front of it is a prefix, such as that of DDP or of Lightning.
EMBEDDING: Final = re.compile(
    r"(?P<prefix>(\w+\.)*?)((videomae|vjepa2)\.)?(encoder\.)?(embeddings\.)?"
    r"patch_embed(dings\.proj(ection)?|\.proj)\.weight"
)


@dataclass(frozen=True, kw_only=True)
class ForeignCheckpoint:
    """A checkpoint of another program. Its names have no prefixes of wrappers around the model."""

    path: Path
    tensors: Mapping[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)  # transformers' config.json
    preprocessor: dict[str, Any] = field(default_factory=dict)  # transformers' preprocessor_config.json
    args: dict[str, Any] = field(default_factory=dict)  # the command line that a released program saved
    licence: str | None = None  # license in the README next to the checkpoint
    notes: tuple[str, ...] = ()


def locate_checkpoint(name: str, *, notify: Notify) -> Path:
    """Return the file or folder of a checkpoint; if it is on the hub, fetch it and notify of its license."""
    return fetch(name, notify=notify) if name.startswith(HUB_PREFIX) else Path(name)


def find_everest_file(path: Path) -> Path | None:
    """Return the weights at `path`, a file or run folder, if everest wrote them."""
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        return file if read_metadata(file).get("format") == FORMAT else None
    except (CheckpointError, EnvironmentProblem):
        return None


def image_weights_error(path: Path) -> CheckpointError:
    """Return the error for a file of an image model that is given without the name of the model."""
    return CheckpointError(f"{path}: weights of an image model; name them timm:NAME={path}, NAME as in timm")


def read_foreign(path: Path) -> ForeignCheckpoint:
    """Read a `.safetensors`, `.pth`, `.pt`, `.bin` or `.ckpt` file, an index of shards, or a folder.

    Folders of transformers and DeepSpeed are read.
    """
    file = find_weight_file(path)
    stored, folder = read_weight_file(file), file.parent
    tensors = strip_wrappers(stored.tensors, source=path)
    family = FAMILIES.get(find_family(tensors) or "")
    contents: dict[str, dict[str, Any]] = {}
    if family is not None and family.eps is not None:  # else nearby files may belong to another model
        preprocessor = next((name for name in PREPROCESSORS if (folder / name).is_file()), PREPROCESSORS[0])
        for key, json_file in (("config", folder / CONFIG_FILE), ("preprocessor", folder / preprocessor)):
            if not json_file.is_file():
                continue
            try:
                contents[key] = read_json(json_file)
                if not isinstance(contents[key], dict):
                    raise ValueError("not a configuration")
            except (ValueError, OSError) as error:
                problem = f"not readable as JSON ({shorten(error)}); download it again"
                raise CheckpointError(f"{json_file}: {problem}") from error
    licence = read_license(folder)
    return ForeignCheckpoint(
        path=path, tensors=tensors, args=stored.args, licence=licence, notes=tuple(stored.notes), **contents
    )


def strip_wrappers(tensors: Mapping[str, Tensor], *, source: Path) -> dict[str, Tensor]:
    """Remove the names of wrappers, and the prefix of the model, from the names of tensors.

    Raises:
        CheckpointError: the file has several models, under different prefixes.
    """
    renamed = {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    renamed = renamed if len(renamed) == len(tensors) else dict(tensors)  # else two names would become one
    matches = filter(None, map(EMBEDDING.fullmatch, renamed))
    prefixes = sorted({match["prefix"] for match in matches})
    prefix = min(prefixes, key=len, default="")
    if not all(other.startswith(prefix) for other in prefixes):
        names = ", ".join(map(shorten, prefixes))
        raise CheckpointError(f"{source}: several models, under {names}; save the state dict of one alone")
    shorter = {name.removeprefix(prefix): tensor for name, tensor in renamed.items()}
    return shorter if len(shorter) == len(renamed) else renamed
