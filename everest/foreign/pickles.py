"""Reads pickled checkpoints as data: code in a pickle is refused and never runs."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from everest.errors import CheckpointError


class IgnoredObject:
    """Replaces an object of the training program: it holds the state and runs no code of it."""

    def __init__(self, *state: Any) -> None:
        self.state: Any = state

    def __setstate__(self, state: Any) -> None:
        self.state = state


# Released programs save their command line and optimizer with the weights: a Namespace with paths, and
# learning rates that are numpy scalars.
_NUMPY = [
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")
]
_HARMLESS = (
    "argparse.Namespace",
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")  # the second of Python 3.13
        for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    ),
    *_NUMPY,
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float32", "Float64", "Int32", "Int64", "UInt32", "Bool")),
)
_WANTED = re.compile(r"GLOBAL ([\w.]+)")
_NOT_A_CHECKPOINT = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights; run `git lfs pull` in its repository",
    b"<!DOCTYPE html": "a web page, not the weights; the download did not reach the file",
    b"<html": "a web page, not the weights; the download did not reach the file",
}


def load_pickle(path: Path) -> Any:
    """Read a file of `torch.save` to the CPU; objects that are no plain data become `IgnoredObject`.

    Raises:
        CheckpointError: damaged, no checkpoint, or a pickle that names code.
    """
    refuse_wrong_download(path)
    ignored: list[Any] = [(IgnoredObject, name) for name in _HARMLESS]
    try:
        with torch.serialization.safe_globals(ignored), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the format; a file that it does not understand is an error
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        wanted = _WANTED.search(str(error))
        if wanted is None:
            raise CheckpointError(f"{path}: not a checkpoint that torch wrote, or a damaged one") from error
        raise CheckpointError(
            f"{path}: refused, nothing of it ran: it names {wanted[1]}, and a pickle that names code can "
            "do anything; get it as .safetensors, or save its state dict alone if you trust it"
        ) from error
    except Exception as error:  # a damaged pickle can end in nearly any error
        if isinstance(error, OSError) and error.filename is not None:  # of the disk, not of the content
            raise
        reason = str(error).split("\n")[0][:80] or "it ends too early"
        raise CheckpointError(
            f"{path}: damaged or no torch checkpoint ({reason}); download or copy it again"
        ) from error


def refuse_wrong_download(path: Path) -> None:
    """Raise CheckpointError for files that are often downloaded in place of weights."""
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        raise CheckpointError(f"{path}: an empty file; download or copy it again")
    for sign, problem in _NOT_A_CHECKPOINT.items():
        if start.lower().startswith(sign.lower()):
            raise CheckpointError(f"{path}: {problem}")
