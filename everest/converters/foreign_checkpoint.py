"""Finds and reads checkpoints of other programs: a file, the shards of an index, a folder.

Pickles are read as data: code in a pickle is refused and never runs.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from everest.converters.preprocessor import PREPROCESSORS
from everest.converters.translation import FAMILIES, find_family
from everest.errors import MAX_SHOWN_OF_PATH, CheckpointError, EnvironmentProblem, shorten
from everest.system.events import Notify
from everest.system.hub import HUB_PREFIX, fetch, read_license
from everest.system.run_folder import WEIGHTS_FILE
from everest.system.text import damage_errors, read_json
from everest.system.weights import PICKLE_SUFFIXES
from everest.system.weights_header import FORMAT, open_safetensors, read_metadata, refuse_pointer

CONFIG_FILE: Final = "config.json"
INDEX_SUFFIX: Final = ".index.json"  # of a file that names the shard of each tensor
PICKLED_WEIGHTS: Final = "pytorch_model.bin"
# Files of transformers in the order of preference, whole or in shards.
WEIGHT_FILES: Final = tuple(
    f"{name}{suffix}" for name in (WEIGHTS_FILE, PICKLED_WEIGHTS) for suffix in ("", INDEX_SUFFIX)
)
WEIGHT_SUFFIXES: Final = (".safetensors", *PICKLE_SUFFIXES)
SHARD: Final = re.compile(r"-\d+-of-(\d+)\.")
ZERO_3: Final = (
    "without weights, which DeepSpeed's ZeRO-3 divided among processes; join them by python zero_to_fp32.py "
    "FOLDER OUTPUT, which DeepSpeed wrote beside them"
)
# Keys of the weights in the files of training programs (official code: model, DeepSpeed: module,
# PySlowFast: model_state).
WEIGHT_KEYS: Final = ("model", "module", "state_dict", "model_state_dict", "model_state")
# The official code saves its command line and optimizer with the weights: a Namespace with paths, and
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
    args: Mapping[str, Any] = field(default_factory=dict)  # the command line that the official code saved
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

    A folder is that of a transformers model.
    """
    file = find_weight_file(path)
    stored, folder = read_weight_file(file), file.parent
    tensors = strip_wrappers(stored.tensors, source=path)
    family, config, preprocessor = FAMILIES.get(find_family(tensors) or ""), {}, {}
    if family is not None and family.eps is not None:  # else nearby files may belong to another model
        config = _read_settings(folder / CONFIG_FILE)
        present = (folder / name for name in PREPROCESSORS if (folder / name).is_file())
        preprocessor = _read_settings(next(present, folder / PREPROCESSORS[0]))
    return ForeignCheckpoint(
        path=path,
        tensors=tensors,
        config=config,
        preprocessor=preprocessor,
        args=stored.args,
        licence=read_license(folder),
        notes=stored.notes,
    )


def _read_settings(file: Path) -> dict[str, Any]:
    """Read a JSON file beside weights; empty if there is none."""
    try:
        content = read_json(file) if file.is_file() else {}
        if not isinstance(content, dict):
            raise ValueError("not a configuration")
    except (ValueError, OSError) as error:
        problem = f"not readable as JSON ({shorten(error)}); download it again"
        raise CheckpointError(f"{file}: {problem}") from error
    return content


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


class StoredWeights(NamedTuple):
    """What the files of a checkpoint store."""

    tensors: dict[str, Tensor]
    args: Mapping[str, Any] = {}  # the command line that the official code saved
    notes: tuple[str, ...] = ()


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
    if not path.exists():
        refuse_broken_links(path)
        raise CheckpointError(f"{path}: no such checkpoint; name a file, or a folder with {CONFIG_FILE}")
    if not path.is_dir():
        return path
    has_config = (path / CONFIG_FILE).is_file()
    names = [name for name in WEIGHT_FILES if has_config or name.endswith(INDEX_SUFFIX)]
    file = next(filter(Path.is_file, (path / name for name in names)), None)
    if file is not None:
        return file
    refuse_broken_links(path / CONFIG_FILE, *(path / name for name in WEIGHT_FILES))
    weights = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    for weight_file in weights:
        _refuse_shard(weight_file)
    # DeepSpeed has its weights a folder deeper, beside the states of its optimizer.
    weights = weights or sorted(path.glob("*/*_model_states.pt"), key=lambda file: -file.stat().st_mtime)
    weights.sort(key=lambda file: file.name.endswith("_optim_states.pt"))
    missing = f"none of {', '.join(WEIGHT_FILES)}" if has_config else f"no {CONFIG_FILE}"
    hint = f"name the file itself: {weights[0]}" if weights else "and no other weights"
    raise CheckpointError(f"{path}: {missing} in it; {hint}")


def read_weight_file(file: Path) -> StoredWeights:
    """Read all tensors of a file or of the shards of an index; CheckpointError for one part of several."""
    if not file.name.endswith(INDEX_SUFFIX):
        _refuse_shard(file)
        return _read_file(file)
    shard_of, tensors = _read_index(file), {}
    for shard in sorted(set(shard_of.values())):
        names, stored = (
            [name for name in shard_of if shard_of[name] == shard],
            _read_file(file.with_name(shard)),
        )
        if missing := [name for name in names if name not in stored.tensors]:
            problem = f"without {shorten(missing[0])}, which {file.name} expects in it"
            raise CheckpointError(f"{file.with_name(shard)}: {problem}; download the checkpoint again")
        tensors |= {name: stored.tensors[name] for name in names}
    return StoredWeights(tensors)


def _read_index(file: Path) -> dict[str, str]:
    """Return the file name of the shard of each tensor."""
    with damage_errors(file, fix="download it again", error=CheckpointError):
        shard_of = dict(read_json(file)["weight_map"])
        if not shard_of or any(name != Path(name).name for name in shard_of.values()):
            raise ValueError("not an index of shards in its folder")
    return shard_of


def _refuse_shard(file: Path) -> None:
    """Raise CheckpointError for a shard."""
    for index in sorted(file.parent.glob(f"*{INDEX_SUFFIX}")):
        shards = set(_read_index(index).values())
        if file.name in shards and len(shards) > 1:
            fix = f"name the index, which reads all: {index}"
            raise CheckpointError(f"{file}: one of {len(shards)} shards; {fix}")
    if (match := SHARD.search(file.name)) and int(match[1]) > 1:
        fix = f"download all shards and their index, *{INDEX_SUFFIX}, and name the folder"
        raise CheckpointError(f"{file}: one of {int(match[1])} shards; {fix}")


def _read_file(file: Path) -> StoredWeights:
    """Read a file of either format; safetensors may also have the ending of a pickle."""
    if not file.is_file():
        name = shorten(file, most=MAX_SHOWN_OF_PATH)
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
    return StoredWeights(tensors)


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
    candidates = (*(saved.get(name) for name in WEIGHT_KEYS), saved)
    tensors = next(filter(None, map(_select_tensors, candidates)), None)
    if tensors is None:
        raise CheckpointError(f"{file}: a {type(content).__name__} with {_describe_content(saved)}")
    for key, tensor in tensors.items():
        if tensor.shape == (0,) and "module" in saved:
            raise CheckpointError(f"{file}: {ZERO_3}")
        if tensor.layout is not torch.strided:
            stored = f"{shorten(key)} is stored as {tensor.layout}, not as a dense tensor"
            raise CheckpointError(f"{file}: {stored}; save it with to_dense()")
    args = saved.get("args")
    args = args.state if isinstance(args, IgnoredObject) else args
    pairs = args.items() if isinstance(args, dict) else ()
    plain_args = {str(key): value for key, value in pairs if isinstance(value, bool | int | float | str)}
    notes = ("its averaged weights (model_ema) are not used",) if "model_ema" in saved else ()
    return StoredWeights(tensors, plain_args, notes)


def _describe_content(saved: Mapping[Any, Any]) -> str:
    """What a pickle without weights under a known key has instead, and what to do."""
    keys = ", ".join(shorten(key) for key in sorted(map(str, saved))[:5]) or "nothing"
    problem = f"no weights in it under {', '.join(WEIGHT_KEYS)} (it has: {keys})"
    if {"encoder", "predictor"} <= saved.keys():
        problem += "; a .pt of V-JEPA 2 is not read, use transformers': hf:facebook/vjepa2-vitl-fpc64-256"
    elif models := [shorten(key) for key, state in saved.items() if _select_tensors(state)]:
        problem += f"; save one of them alone: {', '.join(models[:5])}"
    return problem


def _select_tensors(state: object) -> dict[str, Tensor]:
    """Return the tensors of a state dict; empty for another object."""
    pairs = state.items() if isinstance(state, dict) else ()
    return {str(key): value for key, value in pairs if isinstance(value, Tensor)}
