"""Write the features of videos to a file for other programs; a killed call is resumed.

V views, K encoded tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.errors import DataError, RecipeError, unknown_name
from everest.inference.jobs import LongJob, add_rows, add_window_rows, encoding_of
from everest.inference.opened_model import OpenedModel
from everest.inference.pieces import PieceModel, ViewTensors
from everest.inference.videos import Batching
from everest.lists.sample import Sample
from everest.system.files import atomic_file
from everest.system.parts import Parts
from everest.system.weights import write_tensors

# The tensors of a row, from the fields of everest.inference.opened_model.Features of one video's views.
FEATURE_LEVELS: Final[dict[str, Callable[[ViewTensors], dict[str, Tensor]]]] = {
    "video": lambda views: {"features": views["pooled"].mean(dim=0)},  # (D,)
    "views": lambda views: {"features": views["pooled"]},  # (V, D)
    "tokens": lambda views: {"features": views["tokens"], "token_ids": views["ids"]},  # (V, K, D), (V, K)
}

FEATURE_SUFFIXES: Final = (".safetensors", ".npz")


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoFeatures:
    """The features of R readable videos."""

    videos: list[str]
    features: Tensor  # float32: (R, D) for level video, (R, V, D) for views, (R, V, K, D) for tokens
    token_ids: Tensor | None  # (R, V, K) int64 for level tokens
    skipped: list[tuple[str, str]]  # path and reason of unreadable videos


class _Rows(NamedTuple):
    """The features of videos or windows."""

    arrays: dict[str, NDArray[Any]]  # (rows, …) each, mapped from the disk
    names: list[str]  # of the video of each row
    skipped: list[tuple[str, str]]


def write_features(
    model: OpenedModel,
    samples: Sequence[Sample],
    out: Path,
    batching: Batching,
    *,
    level: str,
    overwrite: bool = False,
) -> list[tuple[str, str]] | None:
    """Write the features of videos, one row for each readable video or window, and the names of the videos.

    The feature of a view is the input of the classifier's head; of another model, the mean of the encoded
    tokens and their change over time (everest.models.pooling.mean_and_change). Until the file is complete,
    its rows are kept in `OUT.parts`, where another call resumes.

    Args:
        batching: with a `window`, each window of a video has a row.
    Returns:
        The unreadable videos, each with the reason; of a damaged video, the intact windows have rows.
        None in a process other than the main one.
    """
    _check_level(model, level, option="--features")
    if batching.window is None and batching.step is not None:
        raise RecipeError("--step: belongs to --window; set the seconds of a window")
    if out.suffix not in FEATURE_SUFFIXES:
        raise RecipeError(f"--output {out}: give a file that ends in {' or '.join(FEATURE_SUFFIXES)}")
    batching = replace(batching, step=batching.step or batching.window).on_grid(model)
    job = LongJob(model, samples, batching, {"features": level}, output=out, overwrite=overwrite)
    job.check_output()
    with job.open() as store:
        rows = _add_features(store, job, level)
        if rows is None:
            return None
        header: dict[str, Any] = {"recipe": model.written_by, "level": level, "encoding": encoding_of(model)}
        if batching.window is not None:
            header |= {"window": batching.window, "step": batching.step}
        views = model.recipe.eval
        header |= {"clips": views.clips, "crops": views.crops, "keep": model.keep}
        _write_file(rows.arrays, rows.names, out, header)
        store.remove()
    return rows.skipped


def compute_features(
    model: OpenedModel, samples: Sequence[Sample], batching: Batching, *, level: str
) -> VideoFeatures:
    """Compute the features of videos in memory, as `write_features` writes them."""
    _check_level(model, level, option="level")
    job = LongJob(model, samples, batching, {})
    with job.open() as store:
        rows = _add_features(store, job, level)
        assert rows is not None  # this is the only process
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in rows.arrays.items()}
    ids = tensors.get("token_ids")
    return VideoFeatures(videos=rows.names, features=tensors["features"], token_ids=ids, skipped=rows.skipped)


def _check_level(model: OpenedModel, level: str, *, option: str) -> None:
    """Raise RecipeError for an unknown level, or CheckpointError if the model has no tokens for it."""
    if level not in FEATURE_LEVELS:
        raise unknown_name(option, level, FEATURE_LEVELS)
    if level == "tokens":
        _ = model.transformer  # raises


def _add_features(store: Parts, job: LongJob, level: str) -> _Rows | None:
    """Add the rows that a folder of parts lacks; None in a process other than the main one."""
    model, samples, make_row = job.model, job.samples, FEATURE_LEVELS[level]
    if job.batching.window is None:
        joined = add_rows(store, model, samples, model.features, make_row, job.batching)
    else:
        pieces = PieceModel.of_features(model)
        joined = add_window_rows(store, model, samples, pieces, lambda _, x: make_row(x), job.batching)
    if joined is None:
        return None
    pairs = zip(samples, joined.results, strict=True)
    results = [(sample.video_id, result) for sample, of_sample in pairs for result in of_sample]
    skipped = [(video, result.reason) for video, result in results if result and not result.is_window]
    names = [video for video, result in results if result is None]
    if not names:
        store.remove()
        first = f", first {': '.join(skipped[0])}" if skipped else ""
        raise DataError(f"none of {len(samples)} videos can be read{first}")
    return _Rows(joined.arrays, names, skipped)


def _write_file(
    arrays: dict[str, NDArray[Any]], names: Sequence[str], out: Path, header: dict[str, Any]
) -> None:
    """Write rows and the names of their videos to one file; rows are mapped from the disk.

    With windows, each name is written once, and `video_ids` has its number.
    """
    videos = list(names)
    if "starts" in arrays:
        videos = list(dict.fromkeys(names))
        ids = {name: i for i, name in enumerate(videos)}
        arrays = {**arrays, "video_ids": np.array([ids[name] for name in names])}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in header.items()}
    if out.suffix == ".safetensors":
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        write_tensors(out, tensors, metadata={"videos": json.dumps(videos), **texts})
        return
    columns = {"videos": np.array(videos)} | {name: np.array(text) for name, text in texts.items()} | arrays
    with atomic_file(out) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **columns)
