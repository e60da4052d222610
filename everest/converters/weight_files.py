"""Finds and reads the weights of other programs: a file, the shards of an index, a folder.

Pickles are read as data: code in a pickle is refused and never runs.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from everest.errors import MOST_SHOWN_OF_PATH, CheckpointError, shorten
from everest.system.run_folder import WEIGHTS_FILE
from everest.system.text import damage_errors, read_json
from everest.system.weights import PICKLE_SUFFIXES
from everest.system.weights_header import open_safetensors, refuse_pointer

CONFIG_FILE: Final = "config.json"
INDEX_SUFFIX: Final = ".index.json"  # of a file that names the shard of each tensor
PICKLED_WEIGHTS: Final = "pytorch_model.bin"
# Files of transformers in the order of preference, whole or in shards.
WEIGHT_FILES: Final = tuple(
    f"{name}{suffix}" for name in (WEIGHTS_FILE, PICKLED_WEIGHTS) for suffix in ("", INDEX_SUFFIX)
)
WEIGHT_SUFFIXES: Final = (".safetensors", *PICKLE_SUFFIXES)
SHARD: Final = re.compile(r"-\d+-of-(\d+)\.")
# DeepSpeed writes several files for a model that it divides, with ZeRO-3 without weights in them.
DEEPSPEED_WEIGHTS: Final = "*mp_rank_*_model_states.pt"
DEEPSPEED_PART: Final = (
    "a part of a model that DeepSpeed divided among processes; join the parts, for ZeRO-3 by python "
    "zero_to_fp32.py FOLDER OUTPUT, which DeepSpeed wrote beside them"
)
DEEPSPEED_TAG: Final = "latest"  # names the folder of the newest weights
# Keys of the weights in the files of training programs (released programs: model, DeepSpeed: module,
# PySlowFast: model_state).
WEIGHT_KEYS: Final = ("model", "module", "state_dict", "model_state_dict", "model_state")
# Released programs save their command line and optimizer with the weights: a Namespace with paths, and
# learning rates that are numpy scalars.
HARMLESS_CLASSES: Final = (
    "argparse.Namespace",
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")  # pathlib._local: Python 3.13
        for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    ),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float32", "Float64", "Int32", "Int64", "UInt32", "Bool")),
)


class StoredWeights(NamedTuple):
    """What the files of a checkpoint store."""

    tensors: dict[str, Tensor]
    args: dict[str, Any]  # the command line that a released program saved
    notes: list[str]


def refuse_broken_links(*paths: Path) -> None:
    """Raise CheckpointError if one of the paths is a link to a file that does not exist."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            problem = f"a link to {path.readlink()}, which does not exist"
            raise CheckpointError(f"{path}: {problem}; download the checkpoint again")


def is_pickle(file: Path) -> bool:
    """Whether weights, or the shards of an index, have the name of a pickle."""
    return Path(file.name.removesuffix(INDEX_SUFFIX)).suffix in PICKLE_SUFFIXES


def find_weight_file(path: Path) -> Path:
    """Return the file of a checkpoint: `path` itself, or the weights or the index of shards in a folder."""
    if (tag := path / DEEPSPEED_TAG).is_file():
        with damage_errors(tag, fix="name the folder of the weights", error=CheckpointError):
            path /= tag.read_text(encoding="utf-8").strip()
    if not path.exists():
        refuse_broken_links(path)
        raise CheckpointError(f"{path}: no such checkpoint; name a file, or a folder with {CONFIG_FILE}")
    if not path.is_dir():
        return path
    has_config = (path / CONFIG_FILE).is_file()
    names = [name for name in WEIGHT_FILES if has_config or name.endswith(INDEX_SUFFIX)]
    files = (*sorted(path.glob(DEEPSPEED_WEIGHTS)), *(path / name for name in names))
    file = next(filter(Path.is_file, files), None)
    if file is not None:
        return file
    refuse_broken_links(path / CONFIG_FILE, *(path / name for name in WEIGHT_FILES))
    weights = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    for weight_file in weights:
        _refuse_part(weight_file)
    missing = f"none of {', '.join(WEIGHT_FILES)}" if has_config else f"no {CONFIG_FILE}"
    hint = f"name the file itself: {weights[0]}" if weights else "and no other weights"
    raise CheckpointError(f"{path}: {missing} in it; {hint}")


def read_weight_file(file: Path) -> StoredWeights:
    """Read all tensors of a file or of the shards of an index; CheckpointError for one part of several."""
    if not file.name.endswith(INDEX_SUFFIX):
        _refuse_part(file)
        return _read_file(file)
    shard_of, stored = _read_index(file), StoredWeights({}, {}, [])
    for shard in sorted(set(shard_of.values())):
        tensors = _read_file(file.with_name(shard)).tensors
        for name in (name for name, its_shard in shard_of.items() if its_shard == shard):
            if name not in tensors:
                problem = f"without {shorten(name)}, which {file.name} expects in it"
                raise CheckpointError(f"{file.with_name(shard)}: {problem}; download the checkpoint again")
            stored.tensors[name] = tensors[name]
    return stored


def _read_index(file: Path) -> dict[str, str]:
    """Return the file name of the shard of each tensor."""
    with damage_errors(file, fix="download it again", error=CheckpointError):
        shard_of = dict(read_json(file)["weight_map"])
        if not shard_of or any(name != Path(name).name for name in shard_of.values()):
            raise ValueError("not an index of shards in its folder")
    return shard_of


def _refuse_part(file: Path) -> None:
    """Raise CheckpointError for a shard, or for one of several parts that DeepSpeed wrote."""
    for index in sorted(file.parent.glob(f"*{INDEX_SUFFIX}")):
        shards = set(_read_index(index).values())
        if file.name in shards and len(shards) > 1:
            fix = f"name the index, which reads all: {index}"
            raise CheckpointError(f"{file}: one of {len(shards)} shards; {fix}")
    if (match := SHARD.search(file.name)) and int(match[1]) > 1:
        fix = f"download all shards and their index, *{INDEX_SUFFIX}, and name the folder"
        raise CheckpointError(f"{file}: one of {int(match[1])} shards; {fix}")
    if file.match(DEEPSPEED_WEIGHTS) and len(list(file.parent.glob(DEEPSPEED_WEIGHTS))) > 1:
        raise CheckpointError(f"{file}: {DEEPSPEED_PART}")


def _read_file(file: Path) -> StoredWeights:
    """Read a file of either format; safetensors may also have the ending of a pickle."""
    if not file.is_file():
        name = shorten(file, most=MOST_SHOWN_OF_PATH)
        raise CheckpointError(f"{name}: missing; download the checkpoint again")
    if file.suffix not in WEIGHT_SUFFIXES:
        endings = ", ".join(WEIGHT_SUFFIXES)
        raise CheckpointError(f"{file}: not a name of a checkpoint; what can be read: {endings}, or a folder")
    refuse_pointer(file)
    with file.open("rb") as content:
        start = content.read(9)  # of safetensors: 8 bytes with the length of a JSON object
    has_header = start[8:] == b"{" and int.from_bytes(start[:8], "little") < file.stat().st_size
    if file.suffix in PICKLE_SUFFIXES and not has_header:
        return _read_pickle(file)
    if not has_header and start.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{file}: a pickle with the ending of safetensors; rename it to .pth")
    try:
        with open_safetensors(file, framework="pt") as weights:
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    except CheckpointError as error:
        raise CheckpointError(f"{error}; download or copy it again") from error
    return StoredWeights(tensors, {}, [])


class IgnoredObject:
    """A stand-in for an object of the training program, which holds the object's state and runs no code."""

    def __init__(self, *state: Any) -> None:
        self.state: Any = state

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _read_pickle(file: Path) -> StoredWeights:
    """Read a file of `torch.save`, on the CPU. Objects other than plain data become `IgnoredObject`."""
    ignored: list[Any] = [(IgnoredObject, name) for name in HARMLESS_CLASSES]
    try:
        with torch.serialization.safe_globals(ignored), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the format; unreadable files raise
            is_zip = zipfile.is_zipfile(file)
            content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged pickle can raise nearly any error
        if isinstance(error, OSError) and error.filename is not None:  # the disk failed, not the content
            raise
        problem = "not a checkpoint that torch wrote, or a damaged one; download or copy it again"
        if isinstance(error, pickle.UnpicklingError) and (code := re.search(r"GLOBAL ([\w.]+)", str(error))):
            problem = (
                f"refused, nothing of it ran: it names {code[1]}, and a pickle that names code can do "
                "anything; get it as .safetensors, or save its state dict alone if you trust it"
            )
        raise CheckpointError(f"{file}: {problem}") from error
    saved = content if isinstance(content, dict) else {}
    for state in (*(saved.get(name) for name in WEIGHT_KEYS), saved):
        if tensors := _select_tensors(state):
            for key, tensor in tensors.items():
                if tensor.shape == (0,) and "module" in saved:
                    raise CheckpointError(f"{file}: {DEEPSPEED_PART}")
                if tensor.layout is not torch.strided:
                    stored = f"{shorten(key)} is stored as {tensor.layout}, not as a dense tensor"
                    raise CheckpointError(f"{file}: {stored}; save it with to_dense()")
            args = saved.get("args")
            args = args.state if isinstance(args, IgnoredObject) else args
            pairs = args.items() if isinstance(args, dict) else ()
            plain_args = {
                str(key): value for key, value in pairs if isinstance(value, bool | int | float | str)
            }
            averaged = "its averaged weights (model_ema) are not used"
            return StoredWeights(tensors, plain_args, [averaged] if "model_ema" in saved else [])
    keys = ", ".join(shorten(key) for key in sorted(map(str, saved))[:5]) or "nothing"
    problem = f"no weights in it under {', '.join(WEIGHT_KEYS)} (it has: {keys})"
    if {"encoder", "predictor"} <= saved.keys():
        problem += "; a .pt of V-JEPA 2 is not read, use transformers': hf:facebook/vjepa2-vitl-fpc64-256"
    elif models := [shorten(key) for key, state in saved.items() if _select_tensors(state)]:
        problem += f"; save one of them alone: {', '.join(models[:5])}"
    raise CheckpointError(f"{file}: a {type(content).__name__} with {problem}")


def _select_tensors(state: object) -> dict[str, Tensor]:
    """Return the tensors of a state dict; empty for another object."""
    pairs = state.items() if isinstance(state, dict) else ()
    return {str(key): value for key, value in pairs if isinstance(value, Tensor)}
