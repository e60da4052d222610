"""Files that are written completely or not at all."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from everest.errors import EnvironmentProblem, RecipeError, UserError

_UMASK = os.umask(0o022)
os.umask(_UMASK)  # the only way to read it

UNFINISHED = (".writing", ".part")  # suffixes of a hidden folder and file that `write_atomically` makes
LOCK = ".lock"  # suffix of hidden files of everest.system.locks


def write_error(path: Path, error: OSError) -> UserError:
    """The error for a file that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full; free some space and run again" if full else (error.strerror or str(error))
    return EnvironmentProblem(f"cannot write {path}: {reason}")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, flush it to the disk, then rename it to `path`.

    `write` works in a folder `.NAME.writing` of its own, because safetensors makes another temporary file
    there. Its file becomes `.NAME.part`, and `path` when the folder is gone. Files that a killed process left
    are removed first.

    Raises:
        EnvironmentProblem: the disk is full or read-only; an earlier file at `path` is still there.
    """
    folder, complete = (path.with_name(f".{path.name}{suffix}") for suffix in UNFINISHED)
    temporary = folder / complete.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(folder, complete)
        folder.mkdir()
        write(temporary)
        temporary.chmod(0o666 & ~_UMASK)  # safetensors makes its files private
        _flush(temporary)
        temporary.replace(complete)
        _remove(folder)
        complete.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    except SafetensorError as error:  # wraps the operating system's error in its text
        full = "No space left" in str(error) or "os error 28" in str(error)
        raise write_error(path, OSError(errno.ENOSPC if full else errno.EIO, str(error))) from error
    finally:
        with suppress(OSError):  # an earlier error is the one to report
            _remove(folder, complete)


def is_unfinished(name: str) -> bool:
    """Whether a file name is one that `write_atomically` or a lock leaves when the process is killed."""
    return name.startswith(".") and name.endswith((*UNFINISHED, LOCK))


def remove_unfinished(path: Path) -> None:
    """Remove what a killed `write_atomically` of `path` has left."""
    _remove(*(path.with_name(f".{path.name}{suffix}") for suffix in UNFINISHED))


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise EnvironmentProblem now if a file at `path` could not be written later."""
    if path.is_dir():
        raise EnvironmentProblem(f"cannot write {path}: it is a folder")
    made = [folder for folder in path.parents if not folder.exists()]  # inner ones first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not at `path`: a process killed here would leave an empty file that looks like a result.
        with path.open("a") if path.exists() else TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def refuse_inputs(
    output: Path, inputs: Iterable[object], *, option: str = "", fix: str = "choose another name"
) -> None:
    """Refuse an output that is an input of the command, or a folder that contains one.

    Args:
        inputs: files and folders; values that are no paths of this machine are ignored.
        option: the option by which the user named the output.
    Raises:
        RecipeError: writing would replace an input, or files next to it.
    """
    target, name = output.resolve(), f"{option} {output}".strip()
    for source in inputs:
        resolved = source.resolve() if isinstance(source, Path) else None
        if resolved == target:
            raise RecipeError(f"{name}: is an input of this command; {fix}")
        if resolved is not None and resolved.is_relative_to(target):
            raise RecipeError(f"{name}: contains {source}, an input of this command; {fix}")


def check_new_file(path: Path, *, option: str, overwrite: bool) -> None:
    """Refuse a file that cannot be written later, or that exists and must not be replaced.

    Args:
        option: the option by which the user named it.
    Raises:
        RecipeError: it exists.
        EnvironmentProblem: the disk refuses it.
    """
    if path.is_file() and not overwrite:
        raise RecipeError(f"{option} {path}: exists; choose another name, or use --overwrite")
    check_writable(path)


def check_new_folder(
    path: Path,
    last: str,
    *,
    option: str,
    overwrite: bool,
    is_own: Callable[[str], bool] = lambda name: False,
) -> None:
    """Refuse a folder in which a file cannot be written, or that holds other files.

    Args:
        last: the file that the command writes last. Without it, the folder is that of an interrupted call if
            it holds nothing but files of the command, and may be used.
        is_own: whether the command writes files of this name.
    Raises:
        RecipeError: a file, or a folder with other files.
        EnvironmentProblem: the disk refuses it.
    """
    if path.exists() and not path.is_dir():
        raise RecipeError(f"{option} {path}: a file is in the way; name a folder")
    if path.is_dir() and not overwrite:
        names = [file.name for file in path.iterdir() if not is_unfinished(file.name)]
        if last in names or not all(map(is_own, names)):
            raise RecipeError(f"{option} {path}: is not empty; choose another folder, or use --overwrite")
    check_writable(path / last)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; file names that are not UTF-8 keep their bytes."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8", errors="surrogateescape"))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that may be damaged.

    Raises:
        ValueError: not JSON, not UTF-8, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: damaged, or no regular file: reading a named pipe would wait forever.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    return parse_json(path.read_text(encoding="utf-8"))


def write_table(path: Path, rows: Iterable[Sequence[str]], *, quoted: bool = False) -> None:
    """Write a CSV file atomically; file names that are not UTF-8 keep their bytes.

    Args:
        quoted: quote every field, so that a reader finds the columns whichever separator it tries first.
    """
    quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file, quoting=quoting, lineterminator="\n").writerows(rows)

    write_atomically(path, write)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
