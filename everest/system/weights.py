"""Safetensors files: weights that describe themselves, and the states that a run resumes from.

Every file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from everest.errors import CheckpointError, EnvironmentProblem
from everest.system.files import write_atomically
from everest.system.sharding import like_sharded

FORMAT = "everest"
VERSION = 1  # of the header
PICKLES = (".pth", ".pt", ".bin", ".ckpt")  # what torch.save writes


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A `model.safetensors`: the parameters and what is needed to rebuild the module around them."""

    kind: str  # pretrain, classifier or tokenizer
    settings: dict[str, Any]  # of everest.models.spec.ModelSpec or everest.tokenizer_spec
    classes: tuple[str, ...] | None
    recipe: str  # its name
    step: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, Any] | None = None  # of converted weights: family, file, licence, what started fresh

    def save(self, path: Path) -> None:
        header = {
            "format": FORMAT,
            "version": str(VERSION),
            "kind": self.kind,
            "settings": json.dumps(self.settings),
            "classes": json.dumps(self.classes),
            "recipe": self.recipe,
            "step": str(self.step),
        }
        if self.origin is not None:
            header["origin"] = json.dumps(self.origin)
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.tensors.items()}
        write_atomically(path, lambda part: save_file(tensors, part, metadata=header))


def read_weights(path: Path) -> Weights:
    """Read what `Weights.save` wrote.

    Raises:
        CheckpointError: no such file, not a whole safetensors file, or not one of ours.
    """
    header, tensors = read_safetensors(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but not written by everest; first "
            f"everest convert {path} --out FILE.safetensors"
        )
    try:
        if int(header["version"]) > VERSION:
            raise CheckpointError(f"{path}: written by a newer everest; update to read it")
        classes = json.loads(header["classes"])
        return Weights(
            kind=header["kind"],
            settings=json.loads(header["settings"]),
            classes=tuple(classes) if classes is not None else None,
            recipe=header["recipe"],
            step=int(header["step"]),
            tensors=tensors,
            origin=json.loads(header["origin"]) if "origin" in header else None,
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({error})") from error


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
    except OSError as error:
        reason = error.strerror or "the file cannot be opened; check its permissions and the disk"
        raise EnvironmentProblem(f"cannot read {path}: {reason}") from error


Spec = TypeVar("Spec")


def read_spec(adapter: TypeAdapter[Spec], settings: dict[str, Any], *, source: Path) -> Spec:
    """The settings of a checkpoint.

    Raises:
        CheckpointError: settings that this version does not know.
    """
    try:
        return adapter.validate_python(settings)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise CheckpointError(f"{source}: its settings are not readable: {key}: {fault['msg']}") from error


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """Tells weights apart: of names, types, shapes and every bit, in the order of the names."""
    told = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        told.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Fill every parameter of `module`; nothing may be missing, left over or of another shape.

    Raises:
        CheckpointError: names up to three tensors of each fault.
    """
    own = module.state_dict()
    faults = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": sorted(
            n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape
        ),
    }
    told = [f"{len(names)} {fault} ({', '.join(names[:3])})" for fault, names in faults.items() if names]
    if told:
        raise CheckpointError(f"{source}: the weights do not fit the model: {'; '.join(told)}")
    with torch.no_grad():
        for name, target in own.items():
            target.copy_(like_sharded(tensors[name], target))
