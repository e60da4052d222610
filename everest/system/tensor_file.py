"""Safetensors files whose bytes follow from their content alone.

The writers of the safetensors package take the texts of the header from a hash map, so the same content has
other bytes, and another checksum, at every call. This writer sorts them. It follows the published format: 8
bytes with the length of the header, the header as JSON, the bytes of the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from everest.system.files import write_atomically

TYPES: Final = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
}
ALIGNMENT: Final = 8  # bytes: the header ends with spaces, so that tensors can be mapped into memory


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically: the same names, tensors and texts give the same bytes.

    Tensors are written from their own memory. One that is not contiguous or not on the CPU is copied while it
    is written.

    Raises:
        EnvironmentProblem: the disk refuses the file; an earlier one at `path` is still there.
    """
    # The widest types first, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    start = 0
    for name, tensor in ordered:
        end = start + tensor.nbytes
        header[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for _, tensor in ordered:
                file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    write_atomically(path, write)
