"""Rows to label next: some that differ from each other, or that a classifier is unsure of.

N rows of a file, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from everest.data.footage import Timeline, segment
from everest.errors import DataError, RecipeError
from everest.inference.model import OpenedModel
from everest.lists.sample import Sample
from everest.search.feature_file import FeatureFile, Floats
from everest.video.reader import VideoError

POOL: Final = 5  # our choice: of the N times 5 rows that a classifier is most unsure of, N that differ

CENTERS: Final = 256  # compared at once; our choice: 100 MB for 100,000 rows


def select_rows(
    file: FeatureFile, count: int, *, labeled: NDArray[np.bool_], model: OpenedModel | None = None
) -> list[int]:
    """Choose rows to label, the most useful ones first.

    Args:
        labeled: (N,) rows that have labels: they are not chosen, and neither are rows similar to them.
        model: the classifier whose features the file has: choose among the rows that it is unsure of.
    Raises:
        CheckpointError: the model is no classifier.
        RecipeError: there are fewer rows without labels; or see `uncertainty`.
    """
    candidates = np.flatnonzero(~labeled)
    if not 1 <= count <= len(candidates):
        raise RecipeError(f"--count {count}: {file.path} has {len(candidates)} rows without labels")
    if model is not None:
        unsure = uncertainty(file, model)[candidates]
        candidates = candidates[np.argsort(-unsure, kind="stable")[: POOL * count]]
    rows = np.concatenate([candidates, np.flatnonzero(labeled)])
    centers = list(range(len(candidates), len(rows)))
    return candidates[k_center(file.units[rows].astype(np.float32), count, centers)].tolist()


def k_center(units: Floats, count: int, centers: Sequence[int]) -> list[int]:
    """Choose rows one by one, each the least similar to its most similar center (Sener & Savarese 2018).

    Without centers, the first choice is the row that is most similar to the mean.

    Args:
        units: (N, D) of length 1.
        centers: rows that are chosen already.
    """
    nearest = np.full(len(units), -np.inf, np.float32)  # similarity of each row to its nearest center
    for first in range(0, len(centers), CENTERS):
        some = units[centers[first : first + CENTERS]]
        np.maximum(nearest, (units @ some.T).max(axis=1), out=nearest)
    chosen: list[int] = []
    nearest[list(centers)] = np.inf
    while len(chosen) < count:
        is_first = not chosen and not centers
        row = int((units @ units.mean(axis=0)).argmax() if is_first else nearest.argmin())
        chosen.append(row)
        np.maximum(nearest, units @ units[row], out=nearest)
        nearest[row] = np.inf
    return chosen


def uncertainty(file: FeatureFile, model: OpenedModel) -> Floats:
    """How unsure a classifier is of each row (N,), from 0 to 1; of several heads the highest value.

    Of one class: 1 less the distance of the two highest probabilities. Of several: how near the probability
    of a class is to its threshold.

    Raises:
        CheckpointError: the model is no classifier.
        RecipeError: the features are of another classifier, or it predicts numbers.
    """
    module = model.classifier
    if any(head.task == "regression" for head in module.heads):
        raise RecipeError("--uncertain: goes with classes, and this model predicts numbers; leave it out")
    file.require_model(model)
    sizes, found = [head.outputs for head in module.heads], []
    for rows, units in file.blocks():
        features = torch.from_numpy(units * file.norms[rows, None]).to(module.device)
        with torch.inference_mode():
            answers = module.answers(module.head(features)).cpu()  # (rows, outputs)
        of_heads = []
        for head, part in zip(module.heads, answers.split(sizes, dim=1), strict=True):
            if head.task == "multi-label":
                distance = (part - torch.tensor(head.thresholds)).abs().amin(dim=1)
            else:
                best = part.topk(min(2, head.outputs), dim=1).values
                distance = best[:, 0] - best[:, -1]
            of_heads.append(1 - distance)
        found.append(torch.stack(of_heads).amax(dim=0).numpy())
    return np.concatenate(found)


def labeled_rows(file: FeatureFile, samples: Sequence[Sample]) -> NDArray[np.bool_]:
    """Whether each row (N,) shares time with one of the samples; a segment in frames counts as its video."""
    labeled = np.zeros(len(file), dtype=bool)
    for sample in samples:
        for row in file.rows_of_file(sample.path).tolist():
            own = file.sample(row)
            after = (own.start or 0.0) >= (np.inf if sample.end is None else sample.end)
            before = (np.inf if own.end is None else own.end) <= (sample.start or 0.0)
            labeled[row] |= not after and not before
    return labeled


def label_sheet(samples: Sequence[Sample]) -> list[list[str]]:
    """Return the rows `video,start,end,label` with an empty label: a table to fill in.

    Raises:
        DataError: a video without times is unreadable.
    """
    table = [["video", "start", "end", "label"]]
    for sample in samples:
        start, end = sample.start or 0.0, sample.end
        if end is None:  # a video, or a segment in frames
            try:
                timeline, (first, length) = Timeline.of(sample.video), segment(sample)
            except VideoError as error:
                raise DataError(str(error)) from error
            start, end = sample.start or float(timeline.seconds[first]), timeline.after(first + length)
        table.append([sample.path, f"{start:.3f}", f"{end:.3f}", ""])
    return table
