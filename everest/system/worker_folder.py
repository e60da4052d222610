"""The folder of the sockets of worker processes; the folders of killed processes are removed later."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Final

OWNED: Final = "everest.lock"  # in the folder; locked as long as its process or one of the workers lives


def make_worker_folder() -> None:
    """Make the folder of this process among the temporary files, once, before it starts workers.

    Python removes the folder when the process ends. Without it, each worker would make one of its own, and a
    worker that is killed removes nothing.
    """
    folder = Path(get_temp_dir())
    if (folder / OWNED).exists():
        return
    remove_abandoned(folder.parent)
    with suppress(OSError):  # a file system without locks: what a kill leaves there stays
        unlocked = folder / f"{OWNED}.new"
        fcntl.flock(os.open(unlocked, os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_EX)  # workers inherit it
        unlocked.rename(folder / OWNED)


def remove_abandoned(temporary: Path) -> None:
    """Remove the folders of killed processes of everest."""
    for owned in temporary.glob(f"pymp-*/{OWNED}"):
        # Locked: its process lives. Missing: another process removes it now.
        with suppress(OSError), owned.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owned.parent)
