"""Exact nearest neighbors of a query among rows of features, by cosine similarity; writes a page of them.

Rows are the features that `everest extract` writes, divided by their norms. A query is rows of the file,
or rows of a video that is encoded for it. With features of a public ViT-Ti, 78 % of the five nearest clips
from other recordings show the action of the query; by chance, 34 % do (109 clips of mice, four actions; 95 %
interval of the difference: 35 to 53 points).

N rows of the file, V names of videos, Q vectors of a query, D width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everest.data.footage import FrameTimes
from everest.errors import DataError, RecipeError
from everest.inference.features import FEATURE_LEVELS
from everest.inference.jobs import encoding_of
from everest.inference.opened_model import OpenedModel
from everest.inference.videos import Passes, compute_over_videos
from everest.inference.windows import Unreadable, windows_of
from everest.lists.sample import Sample
from everest.system.text import damage_errors, parse_json
from everest.system.types import Floats
from everest.system.weights_header import open_safetensors

MOMENT_SIGN: Final = "@"  # separates a video from a moment
NAME_ROUNDING: Final = 0.001  # seconds; times in names of rows are rounded to milliseconds
FEATURE_SUFFIX: Final = ".safetensors"
EXTRACT_FIX: Final = "write it with everest extract VIDEOS --checkpoint C --features video"

HEADER_KEYS: Final = ("videos", "encoding", "window", "step", "clips", "crops", "keep")  # keys of JSON texts


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureFile:
    """The rows of a file; each row belongs to a video, a segment or a window."""

    path: Path
    videos: list[str]  # V names, each a `video_id` of everest.lists.sample.Sample
    files: list[str]  # V files: the video file to which each name belongs
    encoding: dict[str, Any]  # see everest.inference.jobs.encoding_of
    window: float | None = None  # length of a window in seconds
    step: float | None = None
    clips: int | None = None  # clips, crops and keep ratio, as OpenedModel.open takes them
    crops: int | None = None
    keep: float | None = None
    video_ids: NDArray[np.int64]  # (N,) index into `videos`
    units: Floats  # (N, D) features divided by their norms
    starts: NDArray[np.float64] | None  # (N,) start of each window in seconds
    ends: NDArray[np.float64] | None

    def rows_of(self, name: str) -> NDArray[np.int64]:
        """The rows with a name, else the rows of the video file at this path, however the path is written."""
        numbers = [number for number, video in enumerate(self.videos) if video == name]
        return np.flatnonzero(np.isin(self.video_ids, numbers)) if numbers else self.rows_of_file(name)

    def rows_of_file(self, path: str) -> NDArray[np.int64]:
        """The rows of a video file and of its segments, however its path is written."""
        path = _normalized_path(path)
        numbers = [number for number, file in enumerate(self.files) if file == path]
        return np.flatnonzero(np.isin(self.video_ids, numbers))

    def name(self, row: int) -> str:
        """The name of a row, which `everest search` takes as a query."""
        video = self.videos[self.video_ids[row]]
        return video if self.starts is None else f"{video}@{self.starts[row]:.3f}".rstrip("0").rstrip(".")

    def sample(self, row: int) -> Sample:
        """The video, segment or window of a row, with the path as it was given to `everest extract`."""
        sample = Sample.from_video_id(self.videos[self.video_ids[row]])
        if self.starts is None or self.ends is None:
            return sample
        start, end = float(self.starts[row]), float(self.ends[row])
        return sample.with_seconds(start, end)

    @cached_property
    def _spans(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """The start and end (N,) of each row in seconds or frames, and whether they count frames (N,)."""
        if self.starts is not None and self.ends is not None:
            return self.starts, self.ends, np.zeros(self.starts.shape, bool)
        samples = [Sample.from_video_id(name) for name in self.videos]
        ids = self.video_ids
        starts = np.array([part.start or part.start_frame or 0 for part in samples], np.float64)
        ends = np.array([part.end or part.end_frame or np.inf for part in samples], np.float64)
        in_frames = np.array([(part.start_frame, part.end_frame) != (None, None) for part in samples])
        return starts[ids], ends[ids], in_frames[ids]

    def overlapping(self, row: int) -> NDArray[np.int64]:
        """The rows of the same file that may share a part of the time of `row`, itself included."""
        rows = self.rows_of_file(self.files[self.video_ids[row]])
        starts, ends, in_frames = self._spans
        is_apart = (starts[rows] >= ends[row]) | (ends[rows] <= starts[row])
        return rows[~is_apart | (in_frames[rows] != in_frames[row])]


def _normalized_path(path: str) -> str:
    return os.path.normpath(Path(path).absolute())


def unit_rows(features: NDArray[Any]) -> Floats:
    """Features (N, D) divided by their norms; rows of zeros stay zero."""
    rows = features.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def read_feature_file(path: Path) -> FeatureFile:
    """Read a `.safetensors` file of `everest extract --features video`; DataError for any other file."""
    if path.suffix.lower() != FEATURE_SUFFIX or not path.is_file():
        problem = f"not a {FEATURE_SUFFIX} file of features" if path.exists() else "no such file"
        raise DataError(f"{path}: {problem}; {EXTRACT_FIX} --output F{FEATURE_SUFFIX}")
    with damage_errors(path, fix=EXTRACT_FIX, error=DataError):
        with open_safetensors(path) as file:
            texts = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = {name: parse_json(texts[name]) for name in HEADER_KEYS if name in texts}
        features = arrays["features"]
        if features.ndim != 2:
            raise DataError(f"{path}: its features are {features.shape}, not one vector a row; {EXTRACT_FIX}")
        return FeatureFile(
            path=path,
            files=[_normalized_path(Sample.from_video_id(name).path) for name in header["videos"]],
            video_ids=arrays.get("video_ids", np.arange(len(features))),
            units=unit_rows(features),
            starts=arrays.get("starts"),
            ends=arrays.get("ends"),
            **header,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """The windows or video for which similar rows are searched."""

    name: str  # name as the user gave it
    sample: Sample  # the video, segment or window that the query shows
    vectors: Floats  # (Q, D) unit rows of the query's windows, or of its video
    rows: tuple[int, ...] = ()  # rows in the file; empty if the video is not in the file


def read_query(text: str, file: FeatureFile, model: OpenedModel | None) -> Query:
    """Find a query among the rows, or encode it: `VIDEO`, or `VIDEO@SECONDS` for a moment.

    A moment of a video in the file is the window that starts then, else the window whose middle is nearest.
    A video without a moment is compared by all of its windows.

    Args:
        model: encodes videos that are not in the file; None: no model.
    Raises:
        DataError, RecipeError: no such row, readable video or moment; a `model` that is missing or differs.
    """
    name = text
    moment = None
    rows = file.rows_of(text)
    video, _, seconds = text.rpartition(MOMENT_SIGN)
    if video and not rows.size and not Path(text).exists():
        with suppress(ValueError):  # the text is not a moment
            moment = float(seconds)
            name = video
            rows = file.rows_of(name)
    if moment is not None and not 0 <= moment < inf:
        raise RecipeError(f"{text}: the moment must be a number of seconds from 0 on")
    if moment is not None and file.window is None:
        raise RecipeError(f"{text}: {file.path} has no windows; write them with everest extract --window")
    if rows.size:
        if moment is not None and file.starts is not None and file.ends is not None:
            starts, ends = file.starts[rows], file.ends[rows]
            if moment > ends.max():
                raise DataError(f"{text}: the windows of this video in {file.path} end at {ends.max():.2f} s")
            distances = np.abs((starts + ends) / 2 - moment)
            distances[np.abs(starts - moment) < NAME_ROUNDING] = -1
            rows = rows[[distances.argmin()]]
        whole = Sample.from_video_id(name) if name in file.videos else Sample(path=name)
        sample = file.sample(int(rows[0])) if rows.size == 1 else whole
        return Query(name=text, sample=sample, vectors=file.units[rows], rows=tuple(rows.tolist()))
    if not Path(name).exists():
        raise DataError(f"{text}: neither a row of {file.path} nor a video")
    if model is None:
        raise RecipeError(f"{text}: is not in {file.path}; give --checkpoint to compute its features")
    encoding = encoding_of(model)
    if different := ", ".join(name for name in encoding if file.encoding.get(name) != encoding[name]):
        fix = "give the same --checkpoint and --recipe"
        raise RecipeError(f"{file.path}: was written with other {different}; {fix}")
    return _encode(text, Sample(path=name), moment, file, model)


def _encode(text: str, video: Sample, moment: float | None, file: FeatureFile, model: OpenedModel) -> Query:
    """Encode a video that is not in the file: in windows like the file's, or only the window at a moment."""
    spans: list[tuple[float, float]] = []
    if moment is not None:
        end = FrameTimes.of(video.video).end
        if moment >= end:
            raise DataError(f"{video.path}{MOMENT_SIGN}{moment:g}: the video ends at {end:.2f} s")
        assert file.window is not None
        start = max(min(moment - file.window / 2, end - file.window), 0.0)
        spans = [(start, min(start + file.window, end))]
    elif file.window is not None and file.step is not None:
        windows = windows_of(video, model.views, window=file.window, step=file.step)
        spans = [(window.start, window.end) for window in windows]
    parts = [Sample(path=video.path, start=start, end=end) for start, end in spans] or [video]
    rows = []
    for pairs in compute_over_videos(model, parts, model.features, Passes(workers=0)):
        for sample, values in pairs:
            if isinstance(values, Unreadable):
                raise DataError(f"{sample.video_id}: {values.reason}")
            rows.append(FEATURE_LEVELS["video"](values)["features"].numpy())
    sample = parts[0] if len(parts) == 1 else video
    return Query(name=text, sample=sample, vectors=unit_rows(np.stack(rows)))


class Neighbor(NamedTuple):
    """A row with its similarity to the nearest vector of a query."""

    row: int
    similarity: float  # cosine, from -1 to 1


def nearest(file: FeatureFile, query: Query, *, top: int) -> list[Neighbor]:
    """Find up to `top` rows in the order of their similarity; equally similar rows in the order of the file.

    Rows of the query's own video are left out. Of overlapping windows of one video, only the most similar
    window is returned. RecipeError for features of another width.
    """
    if query.vectors.shape[1] != file.units.shape[1]:
        raise RecipeError(
            f"{query.name}: {query.vectors.shape[1]} features, {file.units.shape[1]} in {file.path}"
        )
    similarity = (file.units @ query.vectors.T).max(axis=1)  # (N,)
    free = np.ones(len(similarity), dtype=bool)  # rows that may still be chosen
    free[file.rows_of_file(query.sample.path)] = False
    neighbors: list[Neighbor] = []
    for row in np.argsort(-similarity, kind="stable").tolist():
        if len(neighbors) == top:
            break
        if free[row]:
            neighbors.append(Neighbor(row=row, similarity=float(similarity[row])))
            free[file.overlapping(row)] = False
    return neighbors


def to_dict(query: Query, neighbors: list[Neighbor], file: FeatureFile) -> dict[str, Any]:
    """A query with its neighbors, as in the output of `everest search --json`."""
    rows = []
    for rank, neighbor in enumerate(neighbors, start=1):
        sample = file.sample(neighbor.row)
        row = {"rank": rank, "similarity": round(neighbor.similarity, 6), "name": file.name(neighbor.row)}
        times = {"start": sample.start, "end": sample.end}
        rows.append(row | {"video": sample.path, **times, "row": neighbor.row})
    return {"query": query.name, "neighbors": rows}


def write_results(page: Path, file: FeatureFile, results: Sequence[tuple[Query, Sequence[Neighbor]]]) -> None:
    """Write a page of queries, each with its neighbors among the rows of a file, as playing clips."""
    from everest.figures.pages import make_card, write_page  # here: only a search with a page draws

    cards = [
        {
            "name": query.name,
            "clip": make_card(query.sample),
            "neighbors": [
                make_card(file.sample(neighbor.row))
                | {"similarity": f"{neighbor.similarity:.3f}", "name": file.name(neighbor.row)}
                for neighbor in neighbors
            ],
        }
        for query, neighbors in results
    ]
    write_page(page, "search", "page.html", features=file.path, rows=len(file.units), queries=cards)
