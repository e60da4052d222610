"""Write the features of videos to a file for other programs; a killed call is resumed.

V views, K encoded tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.errors import DataError, RecipeError, unknown_name
from everest.inference.jobs import LongJob, add_rows, add_window_rows, encoding_of
from everest.inference.opened_model import OpenedModel
from everest.inference.videos import Passes, ViewTensors, compute_over_videos
from everest.inference.windows import Unreadable
from everest.lists.sample import Sample
from everest.system.files import atomic_file
from everest.system.weights import write_tensors

# The tensors of a row, from the fields of everest.inference.opened_model.Features of one video's views.
FEATURE_LEVELS: Final[dict[str, Callable[[ViewTensors], dict[str, Tensor]]]] = {
    "video": lambda views: {"features": views["pooled"].mean(dim=0)},  # (D,)
    "views": lambda views: {"features": views["pooled"]},  # (V, D)
    "tokens": lambda views: {"features": views["tokens"], "token_ids": views["ids"]},  # (V, K, D), (V, K)
}

FEATURE_SUFFIXES: Final = (".safetensors", ".npz")


def extract(
    model: OpenedModel,
    samples: Sequence[Sample],
    out: Path,
    passes: Passes,
    *,
    level: str,
    overwrite: bool = False,
) -> list[tuple[str, str]] | None:
    """Write the features of videos, one row for each readable video or window, and the names of the videos.

    The feature of a view is the input of the classifier's head; of another model, the mean of the encoded
    tokens and their change over time (everest.models.pooling.mean_and_change). Until the file is complete,
    its rows are kept in `OUT.parts`, where another call resumes.

    Args:
        passes: with a `window`, each window of a video has a row.
        overwrite: replace the file, and start again.
    Returns:
        The unreadable videos, each with the reason; of a damaged video, the intact windows have rows.
        None in a process other than the main one.
    """
    make_row = _choose_row(model, level, option="--features")
    if passes.window is None and passes.step is not None:
        raise RecipeError("--step: belongs to --window; set the seconds of a window")
    if out.suffix not in FEATURE_SUFFIXES:
        raise RecipeError(f"--output {out}: give a file that ends in {' or '.join(FEATURE_SUFFIXES)}")
    passes = replace(passes, step=passes.step or passes.window)
    job = LongJob(model, samples, passes, {"features": level}, output=out, overwrite=overwrite)
    job.check_output()
    with job.open() as store:
        if passes.window is None:
            rows = add_rows(store, model, samples, model.features, make_row, passes)
        else:
            rows = add_window_rows(store, model, samples, model.features, lambda _, x: make_row(x), passes)
        if rows is None:
            return None
        pairs = [
            (sample.video_id, result)
            for sample, results in zip(samples, rows.results, strict=True)
            for result in results
        ]
        skipped = [(video, result.reason) for video, result in pairs if result and not result.is_window]
        names = [video for video, result in pairs if result is None]
        header: dict[str, Any] = {"recipe": model.written_by, "level": level, "encoding": encoding_of(model)}
        if passes.window is not None:
            header |= {"window": passes.window, "step": passes.step}
        views = model.recipe.eval
        header |= {"clips": views.clips, "crops": views.crops, "keep": model.keep}
        if names:
            _write_features(rows.arrays, names, out, header)
        store.remove()
    if not names:
        raise _none_readable_error(samples, skipped)
    return skipped


def _choose_row(model: OpenedModel, level: str, *, option: str) -> Callable[[ViewTensors], dict[str, Tensor]]:
    """The row function of a level; raises RecipeError, or CheckpointError if the model has no tokens."""
    if level not in FEATURE_LEVELS:
        raise unknown_name(option, level, FEATURE_LEVELS)
    if level == "tokens":
        _ = model.transformer  # raises
    return FEATURE_LEVELS[level]


def _none_readable_error(samples: Sequence[Sample], skipped: Sequence[tuple[str, str]]) -> DataError:
    first = f", first {': '.join(skipped[0])}" if skipped else ""
    return DataError(f"none of {len(samples)} videos can be read{first}")


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoFeatures:
    """The features of R readable videos."""

    videos: list[str]
    features: Tensor  # float32: (R, D) for level video, (R, V, D) for views, (R, V, K, D) for tokens
    token_ids: Tensor | None  # (R, V, K) int64 for level tokens
    skipped: list[tuple[str, str]]  # path and reason of unreadable videos


def compute_features(
    model: OpenedModel, samples: Sequence[Sample], passes: Passes, *, level: str
) -> VideoFeatures:
    """Compute the features of videos in memory, as `extract` writes them."""
    make_row = _choose_row(model, level, option="level")
    pairs = [pair for part in compute_over_videos(model, samples, model.features, passes) for pair in part]
    skipped = [(sample.video_id, values.reason) for sample, values in pairs if isinstance(values, Unreadable)]
    readable = [(sample, make_row(values)) for sample, values in pairs if not isinstance(values, Unreadable)]
    if not readable:
        raise _none_readable_error(samples, skipped)
    ids = [row["token_ids"] for _, row in readable if "token_ids" in row]
    return VideoFeatures(
        videos=[sample.video_id for sample, _ in readable],
        features=torch.stack([row["features"] for _, row in readable]),
        token_ids=torch.stack(ids) if ids else None,
        skipped=skipped,
    )


def _write_features(
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
