import json
import math
import shlex
import stat
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from everest.checkpoints.load import find_weights
from everest.engine.state import SavedState
from everest.errors import CheckpointError, EnvironmentProblem
from everest.system.weights import DTYPE_NAMES, load_tensors, write_tensors
from everest.system.weights_header import read_header


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_command_for_a_file_of_another_program_can_be_pasted(tmp_path: Path, suffix: str):
    path = (tmp_path / "it's mine").with_suffix(suffix)
    save_file({"w": torch.rand(2)}, path)
    with pytest.raises(CheckpointError) as caught:
        read_header(find_weights(str(path)))
    command, end, _ = str(caught.value).partition("first run ")[2].partition("FILE.safetensors")
    assert shlex.split(command + end) == ["everest", "convert", str(path), "--output", "FILE.safetensors"]


def test_the_newest_states_are_kept(tmp_path):
    for step in (1, 2, 10):
        SavedState(step=step, tensors={"model/w": torch.zeros(3)}, notes={}).save(tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["step-000000002.safetensors", "step-000000010.safetensors"]


def test_tensors_that_do_not_fit_are_listed():
    tensors = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        load_tensors(nn.Linear(3, 2), tensors, source="file")
    differences = "1 missing (bias); 1 unexpected (extra); 1 of another shape (weight)"
    assert str(error.value) == f"file: the weights do not fit the model: {differences}"


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter("__metadata__".__ne__)
SHAPES = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def some_tensor(draw: st.DrawFn) -> Tensor:
    dtype, shape = draw(st.sampled_from(list(DTYPE_NAMES))), draw(SHAPES)
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
