"""The folder of the sockets of worker processes; the folders of killed processes are removed later."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Final

from everest.errors import EnvironmentProblem

SHORT: Final = "/tmp"
LONGEST: Final = 70  # bytes of TMPDIR: a socket's path has up to 107, with two random names of Python's
OWNED: Final = "everest.lock"  # in the folder; locked as long as its process or one of the workers lives


def make_worker_folder() -> None:
    """Make the folder of this process among the temporary files, once, before it starts workers.

    Python removes the folder when the process ends. Without it, each worker would make one of its own, and a
    worker that is killed removes nothing.

    Raises:
        EnvironmentProblem: no folder for temporary files has a name that is short enough.
    """
    folder = _temporary_folder()
    if (folder / OWNED).exists():
        return
    remove_abandoned(folder.parent)
    with suppress(OSError):  # a file system without locks: what a kill leaves there stays
        unlocked = folder / f"{OWNED}.new"
        fcntl.flock(os.open(unlocked, os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_EX)  # workers inherit it
        unlocked.rename(folder / OWNED)


def _temporary_folder() -> Path:
    """Make Python's folder where the path of a socket is not too long; batches would never arrive there."""
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST:
        if not os.access(SHORT, os.W_OK):
            raise EnvironmentProblem(
                f"TMPDIR={tempfile.gettempdir()} is too long for sockets: set one of up to {LONGEST} bytes, "
                "or train.workers=0"
            )
        tempfile.tempdir = SHORT
    try:
        return Path(get_temp_dir())
    finally:
        tempfile.tempdir = before


def remove_abandoned(temporary: Path) -> None:
    """Remove the folders of killed processes of everest."""
    for owned in temporary.glob(f"pymp-*/{OWNED}"):
        # Locked: its process lives. Missing: another process removes it now.
        with suppress(OSError), owned.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owned.parent)
