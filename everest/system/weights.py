"""Weights files: tensors with a header that describes them (everest.system.weights_header)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from everest.errors import CheckpointError
from everest.system.files import write_atomically
from everest.system.json_text import validated
from everest.system.sharding import like_sharded
from everest.system.weights_header import WeightsHeader, open_safetensors, read_header

PICKLES = (".pth", ".pt", ".bin", ".ckpt")  # what torch.save writes


@dataclass(frozen=True, kw_only=True)
class Weights(WeightsHeader):
    """A `model.safetensors`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.tensors.items()}
        write_atomically(path, lambda part: save_file(tensors, part, metadata=self.metadata()))


def read_weights(path: Path) -> Weights:
    """Read what `Weights.save` wrote.

    Raises:
        CheckpointError: no such file, not a complete safetensors file, or not written by everest.
        EnvironmentProblem: the disk or its permissions refuse to read it.
    """
    header = read_header(path)
    return Weights(**vars(header), tensors=read_tensors(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file by their names; errors as of `open_safetensors`."""
    with open_safetensors(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


Spec = TypeVar("Spec")


def read_spec(adapter: TypeAdapter[Spec], settings: dict[str, Any], *, source: Path) -> Spec:
    """Validate the settings of a checkpoint.

    Raises:
        CheckpointError: settings that this version does not know.
    """
    try:
        return validated(adapter, settings)
    except ValueError as error:
        raise CheckpointError(f"{source}: its settings are not readable: {error}") from error


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """A digest of the names, types, shapes and every bit, independent of the order of the tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Fill every parameter of `module`; no tensor may be missing, left over or of another shape.

    Raises:
        CheckpointError: names up to three tensors of each kind.
    """
    expected = module.state_dict()
    mismatches = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "of another shape": sorted(
            name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape
        ),
    }
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])})" for kind, names in mismatches.items() if names
    ]
    if problems:
        raise CheckpointError(f"{source}: the weights do not fit the model: {'; '.join(problems)}")
    with torch.no_grad():
        for name, target in expected.items():
            target.copy_(like_sharded(tensors[name], target))
