"""Writes files completely or not at all, and checks outputs before a command starts."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from everest.errors import DataError, EnvironmentProblem, RecipeError, shorten

PART_SUFFIX: Final = ".part"  # suffix of hidden files that are being written
IN_USE_FIX: Final = "choose another folder, or use --overwrite"  # advice if an output folder is in use
LOCK_SUFFIX: Final = ".lock"  # suffix of hidden files of everest.system.locks


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise a UserError, which names `path`, if the block cannot write."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EISDIR:
            raise RecipeError(f"{path}: a folder is in the way; remove it") from error
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free some space and run again" if is_full else error.strerror or error
        raise EnvironmentProblem(f"cannot write {path}: {reason}") from error
    except UnicodeEncodeError as error:  # Python keeps the bytes of a file name that is not UTF-8 (PEP 383)
        line = error.object[error.object.rfind("\n", 0, error.start) + 1 : error.end]
        raise DataError(f"cannot write {path}: '{shorten(line)}' is not UTF-8; rename that file") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary file `.NAME.part` next to `path` to write; flushes it, then renames it to `path`."""
    temporary = path.with_name(f".{path.name}{PART_SUFFIX}")
    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
    finally:
        with suppress(OSError):  # an earlier error is the one to report
            temporary.unlink(missing_ok=True)  # after a success, the file is already renamed


@contextmanager
def make_folder(path: Path) -> Iterator[None]:
    """Make a folder and its parents for the block; folders that are empty afterwards are removed."""
    new_folders = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        with write_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # the folder holds files, as after a success
            for folder in new_folders:
                folder.rmdir()


def _flush(path: Path) -> None:
    """Write a file, or the entries of a folder, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # a flush may need write access
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_unfinished(name: str) -> bool:
    """Whether a file name is that of a leftover of `atomic_file` or a lock after a kill."""
    return name.startswith(".") and name.endswith((PART_SUFFIX, LOCK_SUFFIX))


def check_writable(path: Path) -> None:
    """Raise EnvironmentProblem now if a file at `path` could not be written later."""
    if path.is_dir():
        raise EnvironmentProblem(f"cannot write {path}: it is a folder")
    with write_errors(path):
        folder = next(folder for folder in path.parents if os.path.lexists(folder))  # also a dangling link
        # Not at `path`: a process killed here would leave an empty file that looks like a result.
        with path.open("a") if path.exists() else TemporaryFile(dir=folder):
            pass


def absolute_keeping_links(path: Path) -> Path:
    """The absolute path of a file or folder; a file that is a link keeps its own name and folder.

    Hugging Face caches link each file of a checkpoint to a blob, which has no suffix and no neighbors.
    """
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def refuse_inputs(
    output: Path, inputs: Iterable[object], *, option: str = "--output", fix: str = "choose another name"
) -> None:
    """Refuse an output that is an input of the command, or a folder that contains an input.

    Args:
        inputs: files and folders; values other than local paths are ignored.
        option: the option that named the output; "" if the command chose its name.
    """
    target = output.resolve()
    for source in inputs:
        if isinstance(source, Path) and source.resolve().is_relative_to(target):
            relation = "is" if source.resolve() == target else f"contains {source},"
            raise RecipeError(f"{option} {output}: {relation} an input of this command; {fix}".lstrip())


def check_new_file(path: Path, *, option: str = "--output", overwrite: bool) -> None:
    """Refuse a file that cannot be written later, or that exists and must not be replaced."""
    if path.is_file() and not overwrite:
        raise RecipeError(f"{option} {path}: exists; choose another name, or use --overwrite")
    check_writable(path)


def check_new_folder(
    path: Path,
    *,
    option: str = "--output",
    overwrite: bool = False,
    is_output: Callable[[str], bool] = lambda name: False,
    fix: str = IN_USE_FIX,
) -> None:
    """Refuse a folder in which no file can be written, or that holds other files.

    Args:
        is_output: whether a file name shows that this command wrote the folder and may continue there.
    """
    if path.exists() and not path.is_dir():
        raise RecipeError(f"{option} {path}: a file is in the way; choose another folder")
    check_writable(path / f".folder{PART_SUFFIX}")
    files = path.iterdir() if path.exists() else ()
    names = [file.name for file in files if not is_unfinished(file.name)]
    if names and not overwrite and not any(map(is_output, names)):
        raise RecipeError(f"{option} {path}: holds other files ({names[0]}); {fix}")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_table(path: Path, rows: Iterable[Sequence[str]], *, quote_all: bool = False) -> None:
    """Write a CSV file atomically.

    Args:
        quote_all: quote every field, so that a reader finds the columns whichever separator it tries first.
    """
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=quoting, lineterminator="\n").writerows(rows)
