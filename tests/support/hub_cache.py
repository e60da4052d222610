"""A small transformers folder, and a cache in the format of huggingface_hub, whose files are links."""

import hashlib
import json
from pathlib import Path

from foreign import tiny
from safetensors.torch import save_file

REVISION = "0123456789abcdef0123456789abcdef01234567"

CONFIG = {"model_type": "videomae", "num_attention_heads": 3, "num_frames": 4, "image_size": 32}


def transformers_folder(path: Path) -> Path:
    """A folder as transformers saves a small VideoMAE classifier."""
    path.mkdir()
    save_file(tiny("hf_videomae_classification_base"), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


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
