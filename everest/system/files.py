"""Writing files whole or not at all."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from everest.errors import EnvironmentProblem, RecipeError, UserError

_UMASK = os.umask(0o022)
os.umask(_UMASK)  # the only way to read it


def write_error(path: Path, error: OSError) -> UserError:
    """The line for a file that the disk does not take."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full; free some space and run again" if full else (error.strerror or str(error))
    return EnvironmentProblem(f"cannot write {path}: {reason}")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then put it in its place.

    Raises:
        EnvironmentProblem: the disk is full or read-only; what was at `path` is still there.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.chmod(0o666 & ~_UMASK)  # safetensors makes its files private
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        _remove(temporary)
        raise write_error(path, error) from error
    except SafetensorError as error:  # wraps the operating system's error in its text
        _remove(temporary)
        full = "No space left" in str(error) or "os error 28" in str(error)
        raise write_error(path, OSError(errno.ENOSPC if full else errno.EIO, str(error))) from error
    except BaseException:
        _remove(temporary)
        raise


def check_writable(path: Path) -> None:
    """Raise EnvironmentProblem now when a file at `path` could not be written later."""
    if path.is_dir():
        raise EnvironmentProblem(f"cannot write {path}: it is a folder")
    existed = path.exists()
    made = [folder for folder in path.parents if not folder.exists()]  # inner ones first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def check_new_file(path: Path, *, option: str, overwrite: bool) -> None:
    """Refuse a file that cannot be written later, or is there and not to be replaced.

    Args:
        option: how the user named it.
    Raises:
        RecipeError: it is there.
        EnvironmentProblem: the disk refuses it.
    """
    if path.is_file() and not overwrite:
        raise RecipeError(f"{option} {path}: exists; choose another name, or use --overwrite")
    check_writable(path)


def check_new_folder(path: Path, first: str, *, option: str, overwrite: bool) -> None:
    """Refuse a folder in which the file `first` cannot be written, or that holds what is not to be replaced.

    Raises:
        RecipeError: a file, or a folder with something in it.
        EnvironmentProblem: the disk refuses it.
    """
    if path.exists() and not path.is_dir():
        raise RecipeError(f"{option} {path}: a file is in the way; name a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise RecipeError(f"{option} {path}: is not empty; choose another folder, or use --overwrite")
    check_writable(path / first)


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all; file names that are no UTF-8 keep their bytes."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8", errors="surrogateescape"))


def write_table(path: Path, rows: Iterable[Sequence[str]], *, quoted: bool = False) -> None:
    """A CSV file, whole or not at all; file names that are no UTF-8 keep their bytes.

    Args:
        quoted: every field, so that columns are found again whichever separator is tried first.
    """
    quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file, quoting=quoting, lineterminator="\n").writerows(rows)

    write_atomically(path, write)


def _remove(temporary: Path) -> None:
    with suppress(OSError):  # what matters is the error that led here
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
