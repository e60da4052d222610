"""Write the features of videos to a file for other programs; a killed call is resumed.

V views, K encoded tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.errors import DataError, RecipeError, unknown_name
from everest.inference.jobs import LongJob, RowOf, add_rows, add_window_rows, encoding_of, times_of
from everest.inference.model import OpenedModel, check_counts
from everest.inference.videos import ViewTensors, compute_over_videos, divided
from everest.inference.windows import Unreadable, Window, check_seconds
from everest.lists.sample import Sample
from everest.system.events import Report
from everest.system.files import atomic_file
from everest.system.weights import write_tensors

# From the fields of everest.inference.model.Features, of one video's views.
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
    overwrite: bool,
    report: Report,
    window: float | None = None,
    step: float | None = None,
) -> list[tuple[str, str]] | None:
    """Write the features of videos, one row for each readable video or window, and the names of the videos.

    The feature of a view is the input of the classifier's head; of another model, the mean of the encoded
    tokens and their change over time (everest.models.pooling.mean_and_change). Until the file is complete,
    its rows are kept in `OUT.parts`, where another call resumes.

    Args:
        batch: videos or windows in one forward pass.
        overwrite: replace the file, and start again.
        window: seconds of the windows that slide over a video, each with a row; None: a row for each video.
        step: seconds from the start of one window to the start of the next; None: `window`.
    Returns:
        The unreadable videos, each with the reason; a video that is damaged somewhere has its intact windows.
        None in a process other than the main one.
    """
    check_counts(batch=batch)
    _check_level(model, level, option="--features")
    if window is None and step is not None:
        raise RecipeError("--step: belongs to --window; set the seconds of a window")
    check_seconds(window=window, step=step)
    if out.suffix not in SUFFIXES:
        raise RecipeError(f"--output {out}: give a file that ends in {' or '.join(SUFFIXES)}")
    sliding: dict[str, Any] = (
        {} if window is None else {"window": window, "step": window if step is None else step}
    )
    settings = {"features": level, "batch": batch, **sliding}
    job = LongJob(model=model, samples=samples, settings=settings, output=out, overwrite=overwrite)
    job.check_output()
    with job.open() as store:
        if sliding:

            def row_of(place: Window, values: ViewTensors) -> dict[str, Tensor]:
                return LEVELS[level](values) | times_of(place)

            rows = add_window_rows(
                store, model, samples, model.features, row_of, **sliding, batch=batch, report=report
            )
        else:
            rows = add_rows(store, model, samples, model.features, LEVELS[level], batch=batch, report=report)
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
        header |= {**sliding, "clips": model.recipe.eval.clips, "crops": model.recipe.eval.crops}
        header |= {"keep": model.keep}
        if names:
            _write_features(store.arrays(), names, out, header)
        store.remove()
    if not names:
        raise _none_readable(samples, skipped)
    return skipped


def _check_level(model: OpenedModel, level: str, *, option: str) -> None:
    if level not in LEVELS:
        raise unknown_name(option, level, LEVELS)
    if level == "tokens":
        _ = model.transformer  # raises


def _none_readable(samples: Sequence[Sample], skipped: Sequence[tuple[str, str]]) -> DataError:
    first = f", first {': '.join(skipped[0])}" if skipped else ""
    return DataError(f"none of {len(samples)} videos can be read{first}")


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoFeatures:
    """The features of R readable videos."""

    videos: list[str]
    features: Tensor  # float32: (R, D) for level video, (R, V, D) for views, (R, V, K, D) for tokens
    token_ids: Tensor | None  # (R, V, K) int64 for level tokens
    skipped: list[tuple[str, str]]  # path and reason of unreadable videos


def features_of(
    model: OpenedModel,
    samples: Sequence[Sample],
    *,
    level: str,
    batch: int,
    workers: int | None = None,
    report: Report,
) -> VideoFeatures:
    """Compute the features of videos in memory, as `extract` writes them."""
    _check_level(model, level, option="level")
    parts = divided(samples, batch)
    encoded = compute_over_videos(model, samples, model.features, parts=parts, workers=workers, report=report)
    pairs = [pair for part in encoded for pair in part]
    skipped = [(sample.video_id, values.reason) for sample, values in pairs if isinstance(values, Unreadable)]
    read = [(sample, LEVELS[level](values)) for sample, values in pairs if not isinstance(values, Unreadable)]
    if not read:
        raise _none_readable(samples, skipped)
    ids = [row["token_ids"] for _, row in read if "token_ids" in row]
    return VideoFeatures(
        videos=[sample.video_id for sample, _ in read],
        features=torch.stack([row["features"] for _, row in read]),
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
        numbers = {name: number for number, name in enumerate(videos)}
        arrays = {**arrays, "video_ids": np.array([numbers[name] for name in names])}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in header.items()}
    if out.suffix == ".safetensors":
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        write_tensors(out, tensors, metadata={"videos": json.dumps(videos), **texts})
        return
    columns = {"videos": np.array(videos)} | {name: np.array(text) for name, text in texts.items()} | arrays
    with atomic_file(out) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **columns)
