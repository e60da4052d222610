import json
import math
import stat
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from everest.errors import EnvironmentProblem
from everest.system.weights import TYPES, write_tensors

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter("__metadata__".__ne__)
SHAPES = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def some_tensor(draw: st.DrawFn) -> Tensor:
    dtype, shape = draw(st.sampled_from(list(TYPES))), draw(SHAPES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    limit = 2 if dtype == torch.bool else 256
    values = torch.randint(limit, (math.prod(shape) * dtype.itemsize,), generator=generator)
    tensor = values.to(torch.uint8).view(dtype).view(shape)
    return tensor.mT if draw(st.booleans()) and tensor.dim() > 1 else tensor


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@settings(max_examples=60)
@given(tensors=st.dictionaries(NAMES, some_tensor(), max_size=5), metadata=st.dictionaries(NAMES, NAMES))
def test_the_safetensors_package_reads_what_was_written(tensors, metadata, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensors")
    path, other = folder / "a.safetensors", folder / "b.safetensors"
    write_tensors(path, tensors, metadata=metadata)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(read[name]) == bits(tensor)
    with safe_open(path, framework="pt") as file:
        assert (file.metadata() or {}) == metadata
    backwards = [dict(reversed(list(values.items()))) for values in (tensors, metadata)]
    write_tensors(other, backwards[0], metadata=backwards[1])
    assert path.read_bytes() == other.read_bytes()
    check_alignment(path.read_bytes(), tensors)


def check_alignment(content: bytes, tensors: dict[str, Tensor]) -> None:
    """Every tensor is aligned to its type; the widest come first."""
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    assert list(header) == sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    assert all(header[name]["data_offsets"][0] % tensors[name].itemsize == 0 for name in tensors)


def test_tensors_are_written_without_a_second_copy(tmp_path: Path):
    tensor = torch.zeros(8 << 20, dtype=torch.float32)  # 32 MiB
    tracemalloc.start()
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": tensor, "b": tensor}, metadata={})
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    written = (tmp_path / "a.safetensors").stat()
    assert written.st_size > 64 << 20
    assert stat.S_IMODE(written.st_mode) & 0o044 == 0o044  # others may read it


def test_a_full_disk_is_named_and_the_earlier_file_stays(small_disk: Path):
    path = small_disk / "a.safetensors"
    write_tensors(path, {"a": torch.ones(4)}, metadata={})
    with pytest.raises(EnvironmentProblem, match="the disk is full"):
        write_tensors(path, {"a": torch.ones(1 << 20)}, metadata={})
    assert [file.name for file in small_disk.iterdir() if file.is_file()] == ["a.safetensors"]
    assert torch.equal(load_file(path)["a"], torch.ones(4))
