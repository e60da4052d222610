"""The folder that a long work writes into: of this work, and by one process at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from everest.errors import EnvironmentProblem, RecipeError
from everest.system.files import write_error


@contextmanager
def sole_writer(lock: Path) -> Iterator[None]:
    """Hold a lock while the block runs; a killed process loses it. The file stays.

    Raises:
        RecipeError: another process holds it.
        EnvironmentProblem: the folder cannot be written.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise write_error(lock, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecipeError(
                f"--output {lock.parent}: another process writes there now; let it end"
            ) from error
        yield


def refuse_foreign(output: Path, is_ours: Callable[[str], bool]) -> None:
    """Refuse a folder that holds something else.

    Args:
        is_ours: whether a name in it shows that the folder is one of this work.
    Raises:
        RecipeError: it does not, or is no folder.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise RecipeError(f"--output {output}: is a file; name a folder")
    try:
        names = [path.name for path in output.iterdir()]
    except OSError as error:
        raise EnvironmentProblem(f"--output {output}: cannot be read: {error.strerror}") from error
    if names and not any(map(is_ours, names)):
        raise RecipeError(
            f"--output {output}: holds other files ({names[0]}); choose another folder, or use --overwrite"
        )
