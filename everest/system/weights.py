"""Weights files: tensors with a header that describes them (everest.system.weights_header).

Equal content gives equal bytes. The safetensors package writes the texts of the header in the order of a hash
map, so that equal content gets other bytes, and another checksum, at every call; this writer sorts them. The
published format is 8 bytes with the length of the header, the header as JSON, and the tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from everest.errors import CheckpointError, shorten
from everest.system.files import atomic_file
from everest.system.text import validate
from everest.system.weights_header import WeightsHeader, open_safetensors, read_header

DTYPE_NAMES: Final = {
    torch.bool: "BOOL",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    **{getattr(torch, f"float{bits}"): f"F{bits}" for bits in (16, 32, 64)},
    **{getattr(torch, f"int{bits}"): f"I{bits}" for bits in (8, 16, 32, 64)},
    **{getattr(torch, f"uint{bits}"): f"U{bits}" for bits in (8, 16, 32, 64)},
}
PICKLE_SUFFIXES: Final = (".pth", ".pt", ".bin", ".ckpt")  # suffixes of files that torch.save writes
ALIGNMENT: Final = 8  # bytes; the header is padded with spaces, so that tensors can be mapped into memory


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically: the same names, tensors and texts give the same bytes.

    Tensors are written without a copy. Only a tensor that is not contiguous or not on the CPU is copied
    while it is written.
    """
    # The widest types first, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    start = 0
    for name, tensor in ordered:
        end = start + tensor.nbytes
        shape, offsets = list(tensor.shape), [start, end]
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": shape, "data_offsets": offsets}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in (tensor for _, tensor in ordered if tensor.numel()):
            file.write(_tensor_bytes(tensor))


def _tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy if it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


@dataclass(frozen=True, kw_only=True)
class Weights(WeightsHeader):
    """The content of a `model.safetensors`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        write_tensors(path, self.tensors, metadata=self.metadata())


def read_weights(path: Path) -> Weights:
    """Read a file that `Weights.save` wrote."""
    header = read_header(path)
    return Weights(**vars(header), tensors=read_tensors(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file, by name."""
    with open_safetensors(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    require_finite(tensors, source=path)
    return tensors


def require_finite(tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Raise CheckpointError, which names the first bad tensor, unless all values are finite in float32.

    A model with one NaN computes NaN for every clip, and an argmax of NaN is a class like any other.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        values = tensor.float()
        if torch.stack(values.aminmax()).isfinite().all():  # a NaN makes both NaN; 10x faster than isfinite
            continue
        count = int((~values.isfinite()).sum())
        noun = "value that is no finite number" if count == 1 else "values that are no finite numbers"
        raise CheckpointError(
            f"{source}: {name} has {count} {noun}: its training diverged or the file is damaged; take an "
            "earlier or another one"
        )


Spec = TypeVar("Spec")


def read_spec(adapter: TypeAdapter[Spec], settings: dict[str, Any], *, source: Path) -> Spec:
    """Validate a checkpoint's settings; CheckpointError if this version does not know them."""
    try:
        return validate(adapter, settings)
    except ValueError as error:
        raise CheckpointError(f"{source}: its settings are not readable: {error}") from error


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of the names, types, shapes and bits of tensors, independent of their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_tensor_bytes(tensor))  # a copy would take longer than the hash
    return digest.hexdigest()


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Fill every parameter of `module`; no tensor may be missing, left over or of another shape."""
    require_matching(module.state_dict(), tensors, source=source)
    module.load_state_dict(dict(tensors))


def require_matching(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Raise CheckpointError unless `tensors` can be copied to `expected`, which may be on the meta device.

    The error names up to three tensors of each kind.
    """
    common = expected.keys() & tensors.keys()
    pairs = {name: (expected[name], tensors[name]) for name in common}
    mismatches = {
        "missing": expected.keys() - tensors.keys(),
        "unexpected": tensors.keys() - expected.keys(),
        "of another shape": {name for name, (a, b) in pairs.items() if a.shape != b.shape},
        "of another type": {
            name
            for name, (a, b) in pairs.items()
            if b.is_floating_point() != a.is_floating_point() or b.is_complex()
        },
    }
    counts = (
        (mismatch, len(names), ", ".join(map(shorten, sorted(names)[:3])))
        for mismatch, names in mismatches.items()
    )
    problems = [f"{count} {mismatch} ({names})" for mismatch, count, names in counts if count]
    if problems:
        raise CheckpointError(f"{source}: the weights do not fit the model: {'; '.join(problems)}")
