"""Locks, so that one process at a time writes a file or folder, or trains in a run folder."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from everest.errors import EnvironmentProblem, RecipeError
from everest.system.files import LOCK_SUFFIX, write_errors

TRAINING_LOCK: Final = "training"  # the process that trains a run locks this name in its folder
TRAINING_MESSAGE: Final = "--output {}: another process trains it now; wait for it, or stop it first"
NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # such as NFS without its lock service
WAIT_SECONDS: Final = 1.0  # heuristic: longer than `is_running` holds the lock


@contextmanager
def sole_writer(path: Path, *, message: str | None = None) -> Iterator[None]:
    """Lock `path` while the block runs, by a file `.NAME.lock` next to it. A killed process loses the lock.

    Args:
        path: a file that need not exist; its folder is made.
        message: the message if another process holds the lock; the default names the folder.
    """
    lock_file = path.with_name(f".{path.name}{LOCK_SUFFIX}")
    lock = FileLock(lock_file, timeout=WAIT_SECONDS)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with warnings.catch_warnings():
                # Where flock is missing (ENOSYS), filelock takes a file with the id of its process instead.
                warnings.filterwarnings("ignore", "flock not supported", UserWarning)
                lock.acquire()
        except Timeout as error:
            default = f"{path.parent}: another process writes there now; wait for it to end"
            raise RecipeError(message or default) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            text = f"cannot write in {path.parent}: its file system has no locks; use a local disk"
            raise EnvironmentProblem(text) from error
    try:
        yield
    finally:
        # Some versions of filelock leave the file. It is removed while it is held: from 3.24, filelock does
        # not accept a lock on a removed file.
        with suppress(OSError):
            lock_file.unlink(missing_ok=True)
        lock.release()


def training_lock(run: Path) -> AbstractContextManager[None]:
    """Lock a run folder for the process that trains it."""
    return sole_writer(run / TRAINING_LOCK, message=TRAINING_MESSAGE.format(run))


def is_running(run: Path) -> bool:
    """Whether a process trains the run; writes nothing where possible, as another user may own the folder."""
    lock_file = run / f".{TRAINING_LOCK}{LOCK_SUFFIX}"
    if not lock_file.exists():
        return False

    import fcntl

    with suppress(FileNotFoundError), lock_file.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:  # such as a file system without flock, where the state is unknown
            return isinstance(error, BlockingIOError)
    return False


def refuse_running(run: Path) -> None:
    """Raise RecipeError if a process trains the run."""
    if is_running(run):
        raise RecipeError(TRAINING_MESSAGE.format(run))
