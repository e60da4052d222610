"""Reads checkpoints of other programs: their tensors, and the settings stored with them.

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
from typing import Any, Final

import torch
from torch import Tensor

from everest.converters.preprocessor import PREPROCESSORS
from everest.converters.translation import FAMILIES, find_family
from everest.errors import MOST_SHOWN_OF_PATH, CheckpointError, EnvironmentProblem, shorten
from everest.system.events import Notify
from everest.system.hub import HUB_PREFIX, fetch, read_license
from everest.system.run_folder import WEIGHTS_FILE
from everest.system.text import read_json
from everest.system.weights import PICKLE_SUFFIXES
from everest.system.weights_header import FORMAT, open_safetensors, read_metadata

CONFIG_FILE: Final = "config.json"
MULTI_LABEL_PROBLEM: Final = "multi_label_classification"  # problem_type of transformers
FRAME_SAMPLE_RATE: Final = "frame_sample_rate"  # name of the stride in examples of transformers
PICKLED_WEIGHTS: Final = "pytorch_model.bin"
WEIGHT_FILES: Final = (WEIGHTS_FILE, PICKLED_WEIGHTS)  # files of transformers, the safe format first
WEIGHT_SUFFIXES: Final = (".safetensors", *PICKLE_SUFFIXES)
DEEPSPEED_WEIGHTS: Final = "mp_rank_00_model_states.pt"
# Keys of the weights in the files of training programs (released programs: model, DeepSpeed: module,
# PySlowFast: model_state).
WEIGHT_KEYS: Final = ("model", "module", "state_dict", "model_state_dict", "model_state")
# Prefixes of the names: DDP, torch.compile, model hubs, mmaction, MME's two trainers.
NAME_PREFIXES = ("module.", "_orig_mod.", "encoder_q.encoder.model.", "encoder.model.", "model.", "backbone.")
IMAGE_EMBEDDING: Final = "patch_embed.proj.weight"  # name in an image model
EMBEDDINGS: Final = (IMAGE_EMBEDDING, "patch_embeddings.projection.weight")
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


def refuse_broken_links(*paths: Path) -> None:
    """Raise CheckpointError if one of the paths is a link to a file that does not exist."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise CheckpointError(
                f"{path}: a link to {path.readlink()}, which does not exist; download the checkpoint again"
            )


def read_foreign(path: Path) -> ForeignCheckpoint:
    """Read a `.safetensors`, `.pth`, `.pt` or `.bin` file, or a folder of transformers or DeepSpeed."""
    if not path.exists():
        refuse_broken_links(path)
        raise CheckpointError(f"{path}: no such checkpoint; name a file, or a folder with {CONFIG_FILE}")
    file, folder = path, path.parent
    if path.is_dir():
        folder, has_config = path, (path / CONFIG_FILE).is_file()
        names = (DEEPSPEED_WEIGHTS, *(WEIGHT_FILES if has_config else ()))
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if file is None:
            refuse_broken_links(folder / CONFIG_FILE, *(folder / name for name in WEIGHT_FILES))
            weights = sorted(file.name for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)
            missing = f"none of {', '.join(WEIGHT_FILES)}" if has_config else f"no {CONFIG_FILE}"
            hint = f"name the file itself: {folder / weights[0]}" if weights else "and no other weights"
            raise CheckpointError(f"{folder}: {missing} in it; {hint}")
    stored, args, notes = _read_file(file)
    tensors = strip_wrappers(stored)
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
        path=path, tensors=tensors, args=args, licence=licence, notes=tuple(notes), **contents
    )


def _read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Return the tensors, the saved command line, and notes."""
    if not file.is_file():
        problem = f"{shorten(file, most=MOST_SHOWN_OF_PATH)}: missing; download the checkpoint again"
        raise CheckpointError(problem)
    if file.suffix not in WEIGHT_SUFFIXES:
        endings = ", ".join(WEIGHT_SUFFIXES)
        raise CheckpointError(f"{file}: not a name of a checkpoint; what can be read: {endings}, or a folder")
    if file.suffix in PICKLE_SUFFIXES:
        return _read_pickle(file)
    try:
        with open_safetensors(file, framework="pt") as weights:
            return {name: weights.get_tensor(name) for name in weights.keys()}, {}, []  # noqa: SIM118
    except CheckpointError as error:
        raise CheckpointError(f"{error}; download or copy it again") from error


class IgnoredObject:
    """A stand-in for an object of the training program, which holds the object's state and runs no code."""

    def __init__(self, *state: Any) -> None:
        self.state: Any = state

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _read_pickle(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Return the tensors in a file of `torch.save`, on the CPU, the saved command line, and notes.

    Objects other than plain data become `IgnoredObject`.
    """
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
        pairs = state.items() if isinstance(state, dict) else ()
        tensors = {str(key): value for key, value in pairs if isinstance(value, Tensor)}
        if not tensors:
            continue
        for key, tensor in tensors.items():
            if tensor.layout is not torch.strided:
                raise CheckpointError(
                    f"{file}: {shorten(key)} is stored as {tensor.layout}, not as a dense tensor; save it "
                    "with to_dense()"
                )
        args = saved.get("args")
        args = args.state if isinstance(args, IgnoredObject) else args
        pairs = args.items() if isinstance(args, dict) else ()
        plain_args = {str(key): value for key, value in pairs if isinstance(value, (bool, int, float, str))}
        averaged = "its averaged weights (model_ema) are not used"
        return tensors, plain_args, [averaged] if "model_ema" in saved else []
    keys = ", ".join(shorten(key) for key in sorted(map(str, saved))[:5]) or "nothing"
    where = f"under {', '.join(WEIGHT_KEYS)}"
    raise CheckpointError(
        f"{file}: a {type(content).__name__} with no weights in it {where} (it has: {keys})"
    )


def strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of DDP, compilers and hubs from the names of tensors."""
    renamed = dict(tensors)
    while embeddings := [name for name in renamed if name.endswith(EMBEDDINGS)]:
        embedding = min(embeddings, key=len)
        prefix = next((prefix for prefix in NAME_PREFIXES if embedding.startswith(prefix)), None)
        if prefix is None:
            break
        shorter = {name.removeprefix(prefix): tensor for name, tensor in renamed.items()}
        if len(shorter) < len(renamed):  # two names would become one
            break
        renamed = shorter
    return renamed
