"""A labelled set of videos as a frozen encoder sees it.

N videos, V views, K encoded tokens a view, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.data.bad_videos import refuse_too_many
from everest.data.samples import Sample
from everest.errors import EnvironmentProblem
from everest.features import add_rows
from everest.inference import Model, Values
from everest.system.events import Report
from everest.system.row_store import RowStore


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSet:
    """The videos of a list that can be read."""

    videos: list[str]
    labels: NDArray[np.int64]  # (N, heads)
    features: NDArray[np.float32]  # (N, D), the mean over a video's views of what everest.encoding pools
    tokens: NDArray[np.float32] | None  # (N, V * K, D), left on the disk
    num_skipped: int


def encode_set(
    model: Model,
    samples: Sequence[Sample],
    folder: Path,
    *,
    with_tokens: bool,
    batch: int,
    report: Report,
) -> EncodedSet:
    """Encode the views of every video once, without augmentation.

    Args:
        folder: takes the rows, as long as the set is used.
        with_tokens: keep each token, too.
        batch: videos in one pass.
    Raises:
        DataError: more videos than `data.max_bad` allows could not be read.
        EnvironmentProblem: no room for the tokens.
    """
    if with_tokens:
        _refuse_too_many_tokens(model, len(samples), folder)

    def row_of(views: Values) -> dict[str, Tensor]:
        tokens = {"tokens": views["tokens"].flatten(0, 1)} if with_tokens else {}  # (V * K, D)
        return {"features": views["pooled"].mean(dim=0), **tokens}

    settings = model.recipe
    with RowStore(folder, {}, batch=batch) as store:
        add_rows(store, model, samples, row_of, batch=batch, workers=settings.train.workers, report=report)
        skipped = [(video, problem) for video, problem in store.samples if problem is not None]
        refuse_too_many(skipped, asked=len(samples), max_bad=settings.data.max_bad)
        read = [place for place, (_, problem) in enumerate(store.samples) if problem is None]
        arrays = store.arrays()
    return EncodedSet(
        videos=[samples[place].video_id for place in read],
        labels=np.array([samples[place].labels for place in read], dtype=np.int64),
        features=np.array(arrays["features"]),
        tokens=arrays.get("tokens"),
        num_skipped=len(skipped),
    )


def _refuse_too_many_tokens(model: Model, num_videos: int, folder: Path) -> None:
    views = model.views
    nothing = torch.zeros(1, 3, views.frames, *views.size, dtype=torch.uint8)
    needed = num_videos * views.num_views * model.encode(nothing).tokens.nbytes
    free = psutil.disk_usage(str(folder.parent)).free
    if needed > free:
        raise EnvironmentProblem(
            f"the tokens of {num_videos} videos need {needed / 2**30:.3g} GiB, {folder.parent} has "
            f"{free / 2**30:.3g} GiB free; name another disk by TMPDIR, lower --keep, or leave the attentive "
            "probe out: --probes knn,linear"
        )
