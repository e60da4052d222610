"""Write the features of videos to a file for other programs; a killed call is resumed.

V views, K encoded tokens, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.checkpoints.load import all_weights, is_of_timm
from everest.data.recipe_clips import fingerprint
from everest.errors import DataError, RecipeError, unknown_name
from everest.inference.model import OpenedModel, check_counts
from everest.inference.row_store import RowStore, open_row_store, saved_plan
from everest.inference.videos import Compute, ViewTensors, compute_over_videos, compute_over_windows
from everest.inference.windows import DAMAGED, Item, Unreadable, check_seconds, window_items
from everest.lists.sample import Sample
from everest.system.events import Report, notice
from everest.system.files import atomic_file, check_new_file, refuse_inputs
from everest.system.weights import state_hash, write_tensors
from everest.video.reader import video_files
from everest.video.source import video_version

# From the fields of everest.inference.model.Features, of one video's views.
RowOf = Callable[[ViewTensors], dict[str, Tensor]]

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
) -> list[tuple[str, str]]:
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
    """
    check_counts(batch=batch)
    _check_level(model, level, option="--features")
    if window is None and step is not None:
        raise RecipeError("--step: belongs to --window; set the seconds of a window")
    check_seconds(window=window, step=step)
    if out.suffix not in SUFFIXES:
        raise RecipeError(f"--output {out}: give a file that ends in {' or '.join(SUFFIXES)}")
    parts = out.with_name(f"{out.name}.parts")
    for path in (out, parts):
        refuse_inputs(path, [*all_weights(model.file), *(each.video for each in samples)])
    encoding = encoding_of(model)
    sliding = {} if window is None else {"window": window, "step": window if step is None else step}
    plan = {**encoding, **_rows_plan(samples, level, model.runtime.precision), **sliding}
    # If `out` and rows of this plan exist, an earlier call was killed between writing and removing them.
    check_new_file(out, overwrite=overwrite or saved_plan(parts) == plan)
    with open_row_store(parts, plan, batch=batch, restart=overwrite) as store:
        if store.entries:
            done = f"windows, in {store.entries[-1][0]}" if sliding else f"of {len(samples)} videos"
            report(notice(f"resuming after {len(store.entries)} {done}"))
        if sliding:
            items = window_items(samples, model.views, **sliding, report=report, done=store.entries[:])
            add_window_rows(store, model, items, LEVELS[level], batch=batch, report=report)
        else:
            add_rows(store, model, samples, LEVELS[level], batch=batch, report=report)
        skipped = [(video, text) for video, text in store.entries if text not in (None, DAMAGED.reason)]
        names = [video for video, problem in store.entries if problem is None]
        header: dict[str, Any] = {"recipe": model.written_by, "level": level, "encoding": encoding, **sliding}
        header |= {"clips": model.recipe.eval.clips, "crops": model.recipe.eval.crops, "keep": model.keep}
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


def _rows_plan(samples: Sequence[Sample], level: str, precision: str) -> dict[str, str]:
    """All that rows follow from but the encoding and the windows; a message names the keys.

    Sizes and times of files are part of it: the rows of changed videos are not continued.
    """
    digest = hashlib.sha256()
    for video in dict.fromkeys(sample.video for sample in samples):
        with suppress(OSError):  # a missing file
            digest.update(repr([video_version(file) for file in video_files(video)]).encode())
    versions = digest.hexdigest()[:16]
    keys = {"videos": fingerprint(samples, Path(), None), "versions of videos": versions}
    return {**keys, "features": level, "precision": precision}


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
    encoded = compute_over_videos(model, samples, model.features, batch=batch, workers=workers, report=report)
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


def encoding_of(model: OpenedModel) -> dict[str, Any]:
    """The settings that features follow from, as JSON values; rows with equal settings are comparable."""
    if is_of_timm(model.file):
        weights = state_hash(model.module.state_dict())
    else:
        with model.file.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
    encoding = {"weights": weights, "keep": model.keep, "views": repr(model.views)}
    return encoding if model.module.classes else encoding | {"pooling": "mean-change"}


def add_rows(
    store: RowStore,
    model: OpenedModel,
    samples: Sequence[Sample],
    row_of: RowOf,
    *,
    batch: int,
    report: Report,
    compute: Compute | None = None,
) -> None:
    """Add the rows of the samples that a store does not have yet.

    Args:
        compute: the values that `row_of` takes; None: of the encoder.
    """
    store.check_videos([sample.video_id for sample in samples])
    compute = compute or model.features
    done = len(store.entries)
    for pairs in compute_over_videos(model, samples, compute, batch=batch, report=report, done=done):
        for sample, values in pairs:
            store.add(sample.video_id, values if isinstance(values, Unreadable) else row_of(values))


def add_window_rows(
    store: RowStore, model: OpenedModel, items: Iterator[Item], row_of: RowOf, *, batch: int, report: Report
) -> None:
    """Add the rows of windows that a store does not have yet, with their `starts` and `ends` in seconds."""
    for sample, result in compute_over_windows(items, model.features, batch=batch, report=report):
        if isinstance(result, Unreadable):
            store.add(sample.video_id, result)
        else:
            window, values = result
            starts, ends = torch.tensor([window.start, window.end], dtype=torch.float64)
            store.add(sample.video_id, row_of(values) | {"starts": starts, "ends": ends})


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
