"""A cache in the format of huggingface_hub, whose files are links."""

from __future__ import annotations

import hashlib
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, name: str, folder: Path) -> Path:
    """Copy the files of `folder` into a cache as the repository OWNER/NAME; return the snapshot.

    As in a real cache, every file of the snapshot is a link to a blob, whose name is a hash without a suffix.
    """
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / REVISION, repository / "blobs"
    for made in (snapshot, blobs, repository / "refs"):
        made.mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        blob = blobs / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot
