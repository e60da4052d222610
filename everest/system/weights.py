"""Weights files: tensors with a header that describes them (everest.system.weights_header)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from everest.errors import CheckpointError, shown
from everest.system.json_text import validated
from everest.system.sharding import like_sharded
from everest.system.tensor_file import write_tensors
from everest.system.weights_header import WeightsHeader, open_safetensors, read_header

PICKLES = (".pth", ".pt", ".bin", ".ckpt")  # what torch.save writes


@dataclass(frozen=True, kw_only=True)
class Weights(WeightsHeader):
    """A `model.safetensors`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        write_tensors(path, self.tensors, metadata=self.metadata())


def read_weights(path: Path) -> Weights:
    """Read what `Weights.save` wrote.

    Raises:
        CheckpointError: no such file, not a complete safetensors file, not written by everest, or values that
            are not finite.
        EnvironmentProblem: the disk or its permissions refuse to read it.
    """
    header = read_header(path)
    return Weights(**vars(header), tensors=read_tensors(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file by their names.

    Raises:
        CheckpointError: see `open_safetensors` and `require_finite`.
        EnvironmentProblem: see `open_safetensors`.
    """
    with open_safetensors(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    require_finite(tensors, source=path)
    return tensors


def require_finite(tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Raise CheckpointError, which names the first such tensor, if values of `source` are not finite float32.

    A model with one NaN computes NaN for every clip, and an argmax of NaN is a class like any other.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        values = tensor.float()
        if torch.stack(values.aminmax()).isfinite().all():  # a NaN is both; ten times faster than isfinite
            continue
        count = int((~values.isfinite()).sum())
        which = "value that is no finite number" if count == 1 else "values that are no finite numbers"
        raise CheckpointError(
            f"{source}: {name} has {count} {which}: its training diverged or the file is damaged; take an "
            "earlier or another one"
        )


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
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(values.numpy().data)  # a copy would take longer than the hash
    return digest.hexdigest()


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Fill every parameter of `module`; no tensor may be missing, left over or of another shape.

    Raises:
        CheckpointError: see `require_fitting`.
    """
    expected = module.state_dict()
    require_fitting(expected, tensors, source=source)
    with torch.no_grad():
        for name, target in expected.items():
            target.copy_(like_sharded(tensors[name], target))


def require_fitting(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Raise CheckpointError unless `tensors` can be copied to `expected`, which may be on the meta device.

    The error names up to three tensors of each kind.
    """
    both = expected.keys() & tensors.keys()
    mismatches = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "of another shape": sorted(name for name in both if expected[name].shape != tensors[name].shape),
        "of another type": sorted(
            name
            for name in both
            if expected[name].is_floating_point() != tensors[name].is_floating_point()
            or tensors[name].is_complex()
        ),
    }
    problems = [
        f"{len(names)} {kind} ({', '.join(map(shown, names[:3]))})"
        for kind, names in mismatches.items()
        if names
    ]
    if problems:
        raise CheckpointError(f"{source}: the weights do not fit the model: {'; '.join(problems)}")
