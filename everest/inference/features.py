"""The features of videos, to a file that other programs read; what a killed call has done is kept.

V views, K encoded tokens, D width.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from everest.data.samples import Sample
from everest.data.stages import fingerprint
from everest.errors import DataError, RecipeError, unknown_name
from everest.inference.model import OpenedModel, Values, over_videos
from everest.system.events import Report, notice
from everest.system.files import check_new_file, write_atomically
from everest.system.row_store import RowStore

RowOf = Callable[
    [Values], dict[str, Tensor]
]  # from what everest.inference.model.Encoded has of a video's views

LEVELS: Final[dict[str, RowOf]] = {
    "video": lambda views: {"features": views["pooled"].mean(dim=0)},  # (D,)
    "views": lambda views: {"features": views["pooled"]},  # (V, D)
    "tokens": lambda views: {"features": views["tokens"], "token_ids": views["ids"]},  # (V, K, D), (V, K)
}


def extract(
    model: OpenedModel,
    samples: Sequence[Sample],
    out: Path,
    *,
    level: str,
    batch: int,
    workers: int,
    overwrite: bool,
    report: Report,
) -> list[tuple[str, str]]:
    """Write the features of videos, a row for each that can be read, and the videos' names.

    A view's feature is what the head of a classifier sees; of an autoencoder the mean of its encoded tokens.
    Until the file is whole its rows are kept beside it, in `OUT.parts`, and another call goes on with them.

    Args:
        level: `video`, the mean over its views, `views`, or `tokens` (LEVELS has the shapes).
        batch: videos in one pass.
        overwrite: replace the file, and begin again.
    Returns:
        What could not be read, and why.
    Raises:
        DataError: none could be read.
        RecipeError: `out` exists or names no kind of file, or `OUT.parts` belongs to other work.
        EnvironmentProblem: the file cannot be written.
    """
    if level not in LEVELS:
        raise unknown_name("--features", level, LEVELS)
    if out.suffix not in WRITERS:
        raise RecipeError(f"--out {out}: give a file that ends in {' or '.join(WRITERS)}")
    check_new_file(out, option="--out", overwrite=overwrite)
    parts = out.with_name(f"{out.name}.parts")
    if overwrite and parts.exists():
        shutil.rmtree(parts)
    with RowStore(parts, _plan(model, samples, level), batch=batch) as store:
        if store.samples:
            report(notice(f"going on after {len(store.samples)} of {len(samples)} videos"))
        add_rows(store, model, samples, LEVELS[level], batch=batch, workers=workers, report=report)
        skipped = [(video, problem) for video, problem in store.samples if problem is not None]
        if store.num_rows:
            _join(store, out, {"recipe": model.weights.recipe, "level": level})
        store.remove()
    if len(skipped) == len(samples):
        raise DataError(f"none of {len(samples)} videos can be read, first {skipped[0][0]}: {skipped[0][1]}")
    return skipped


def add_rows(
    store: RowStore,
    model: OpenedModel,
    samples: Sequence[Sample],
    row_of: RowOf,
    *,
    batch: int,
    workers: int,
    report: Report,
) -> None:
    """Add the rows of the samples that a store does not have yet."""
    done = over_videos(
        model,
        samples,
        lambda clips: model.encode(clips)._asdict(),
        batch=batch,
        workers=workers,
        report=report,
        done=len(store.samples),
    )
    for pairs in done:
        for sample, found in pairs:
            store.add(sample.video_id, found if isinstance(found, str) else row_of(found))


def _plan(model: OpenedModel, samples: Sequence[Sample], level: str) -> dict[str, Any]:
    """All that the rows follow from, under the names that a message tells."""
    with model.file.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "weights": weights,
        "videos": fingerprint(samples, Path(), None),
        "features": level,
        "keep": model.keep,
        "views": repr(model.views),
        "precision": model.accelerator.mixed_precision,
    }


def _join(store: RowStore, out: Path, told: Mapping[str, str]) -> None:
    """From the rows of a store to one file; no more of them is in memory than the disk's cache holds."""
    videos = [video for video, problem in store.samples if problem is None]
    arrays = store.arrays()
    write_atomically(out, lambda part: WRITERS[out.suffix](part, arrays, videos, told))


def _write_safetensors(
    path: Path, arrays: Mapping[str, NDArray[Any]], videos: list[str], told: Mapping[str, str]
) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_file(tensors, path, metadata={"videos": json.dumps(videos), **told})


def _write_npz(
    path: Path, arrays: Mapping[str, NDArray[Any]], videos: list[str], told: Mapping[str, str]
) -> None:
    texts = {name: np.array(text) for name, text in told.items()}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, videos=np.array(videos), **texts, **arrays)


WRITERS: Final = {".safetensors": _write_safetensors, ".npz": _write_npz}
