"""Locks for long commands: one process at a time writes a file or folder, and never into a foreign folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from everest.errors import EnvironmentProblem, RecipeError
from everest.system.files import LOCK, is_unfinished, write_error


@contextmanager
def sole_writer(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Lock `path` while the block runs, by a file `.NAME.lock` next to it. A killed process loses the lock.

    Args:
        path: a file that need not exist; its folder is made.
        busy: the message if another process holds the lock; the default names the folder.
    Raises:
        RecipeError: another process holds the lock.
        EnvironmentProblem: the folder cannot be written.
    """
    lock_file = path.with_name(f".{path.name}{LOCK}")
    lock = FileLock(lock_file, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        message = f"{path.parent}: another process writes there now; wait for it to end"
        raise RecipeError(busy or message) from error
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield
    finally:
        # Removed while it is held: filelock (from 3.24) does not accept a lock on a removed file.
        with suppress(OSError):
            lock_file.unlink(missing_ok=True)
        lock.release()


def refuse_foreign(
    output: Path, is_own: Callable[[str], bool], *, fix: str = "choose another folder, or use --overwrite"
) -> None:
    """Refuse an output folder that holds other files. Traces of a call that was killed early are ignored.

    Args:
        is_own: whether a file name shows that the folder was written by the same command.
    Raises:
        RecipeError: no file name does, or `output` is a file.
        EnvironmentProblem: the folder cannot be read.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise RecipeError(f"--output {output}: is a file; name a folder")
    try:
        names = [path.name for path in output.iterdir() if not is_unfinished(path.name)]
    except OSError as error:
        raise EnvironmentProblem(f"--output {output}: cannot be read: {error.strerror}") from error
    if names and not any(map(is_own, names)):
        raise RecipeError(f"--output {output}: holds other files ({names[0]}); {fix}")
