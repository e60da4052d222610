"""Write the features of videos to a file for other programs; a killed call is resumed.

V views, K encoded tokens, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from everest.checkpoints.load import all_weights
from everest.data.stages import fingerprint
from everest.errors import DataError, RecipeError, unknown_name
from everest.inference.model import OpenedModel
from everest.inference.over_videos import Values, over_videos
from everest.inference.row_store import RowStore, open_row_store, saved_plan
from everest.lists.sample import Sample
from everest.system.events import Report, notice
from everest.system.files import atomic_file, check_new_file, refuse_inputs
from everest.system.weights import write_tensors

# From the fields of everest.inference.model.Features, of one video's views.
RowOf = Callable[[Values], dict[str, Tensor]]

LEVELS: Final[dict[str, RowOf]] = {
    "video": lambda views: {"features": views["pooled"].mean(dim=0)},  # (D,)
    "views": lambda views: {"features": views["pooled"]},  # (V, D)
    "tokens": lambda views: {"features": views["tokens"], "token_ids": views["ids"]},  # (V, K, D), (V, K)
}

SUFFIXES: Final = (".safetensors", ".npz")


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
    """Write the features of videos, one row for each readable video, and the names of these videos.

    The feature of a view is the input of the classifier's head, or the mean of an autoencoder's encoded
    tokens. Until the file is complete, its rows are kept in `OUT.parts`, where another call resumes.

    Args:
        level: `video`, the mean over its views, `views`, or `tokens` (LEVELS has the shapes).
        batch: videos in one forward pass.
        overwrite: replace the file, and start again.
    Returns:
        The unreadable videos, each with the reason.
    Raises:
        DataError: no video can be read.
        RecipeError: `out` exists, is an input or has an unknown suffix, or `OUT.parts` belongs to another
            command.
        EnvironmentProblem: the file cannot be written.
    """
    if level not in LEVELS:
        raise unknown_name("--features", level, LEVELS)
    if out.suffix not in SUFFIXES:
        raise RecipeError(f"--output {out}: give a file that ends in {' or '.join(SUFFIXES)}")
    parts = out.with_name(f"{out.name}.parts")
    inputs = [*all_weights(model.file), *(sample.video for sample in samples)]
    for path in (out, parts):
        refuse_inputs(path, inputs, option="--output")
    with model.file.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    # All that the rows follow from; a message names the keys.
    plan = {
        "weights": weights,
        "videos": fingerprint(samples, Path(), None),
        "features": level,
        "keep": model.keep,
        "views": repr(model.views),
        "precision": model.accelerator.mixed_precision,
    }
    # With both, an earlier call was killed between writing the file and removing its rows.
    replaces_own = parts.is_dir() and saved_plan(parts) == plan
    check_new_file(out, option="--output", overwrite=overwrite or replaces_own)
    with open_row_store(parts, plan, batch=batch, restart=overwrite) as store:
        if store.samples:
            report(notice(f"resuming after {len(store.samples)} of {len(samples)} videos"))
        add_rows(store, model, samples, LEVELS[level], batch=batch, workers=workers, report=report)
        skipped = [(video, problem) for video, problem in store.samples if problem is not None]
        if store.num_rows:
            _write_features(store, out, {"recipe": model.written_by, "level": level})
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
    compute: Callable[[Tensor], Values] | None = None,
) -> None:
    """Add the rows of the samples that a store does not have yet.

    Args:
        compute: the values that `row_of` takes, of clips (B, C, T, H, W) uint8; None: of the encoder.
    Raises:
        RecipeError: the store is damaged.
    """
    store.check_videos([sample.video_id for sample in samples])
    encoded = over_videos(
        model,
        samples,
        compute or (lambda clips: model.encode(clips)._asdict()),
        batch=batch,
        workers=workers,
        report=report,
        done=len(store.samples),
    )
    for pairs in encoded:
        for sample, values in pairs:  # values: of its views, or why it cannot be read
            store.add(sample.video_id, values if isinstance(values, str) else row_of(values))


def _write_features(store: RowStore, out: Path, metadata: dict[str, str]) -> None:
    """Write the rows of a store to one file; they are mapped from the disk, never all in memory."""
    videos = [video for video, problem in store.samples if problem is None]
    arrays = store.arrays()
    if out.suffix == ".safetensors":
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        write_tensors(out, tensors, metadata={"videos": json.dumps(videos), **metadata})
        return
    texts = {name: np.array(text) for name, text in metadata.items()}
    with atomic_file(out) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, videos=np.array(videos), **texts, **arrays)
