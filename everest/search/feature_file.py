"""The features that `everest extract` writes, as unit rows, and what each row shows.

N rows, V names of videos, D width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from everest.errors import DataError
from everest.lists.sample import Sample
from everest.system.text import parse_json, reading_own
from everest.system.weights_header import open_safetensors

SUFFIX: Final = ".safetensors"
FIX: Final = "write it with everest extract VIDEOS --checkpoint C --features video"

Floats = NDArray[np.float32]
HEADER: Final = ("videos", "encoding", "window", "step", "clips", "crops", "keep")  # JSON texts of a file


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureFile:
    """The rows of a file, each of a video, of a segment or of a window."""

    path: Path
    videos: list[str]  # V names, each a `video_id` of everest.lists.sample.Sample
    files: list[str]  # V: the file that each name is of, or is a segment of
    encoding: dict[str, Any]  # everest.inference.jobs.encoding_of
    window: float | None = None  # seconds
    step: float | None = None
    clips: int | None = None  # views and keep ratio, as OpenedModel.open takes them
    crops: int | None = None
    keep: float | None = None
    video_ids: NDArray[np.int64]  # (N,) numbers of names
    units: Floats  # (N, D)
    starts: NDArray[np.float64] | None  # (N,) seconds of windows
    ends: NDArray[np.float64] | None

    def rows_of(self, name: str) -> NDArray[np.int64]:
        """The rows of a name; else of the video file that it names, however the path is written."""
        numbers = [number for number, video in enumerate(self.videos) if video == name]
        return np.flatnonzero(np.isin(self.video_ids, numbers)) if numbers else self.rows_of_file(name)

    def rows_of_file(self, path: str) -> NDArray[np.int64]:
        """The rows of a video file and of its segments, however its path is written."""
        path = _normal(path)
        numbers = [number for number, file in enumerate(self.files) if file == path]
        return np.flatnonzero(np.isin(self.video_ids, numbers))

    def name(self, row: int) -> str:
        """The name of a row, which `everest search` takes as a query."""
        video = self.videos[self.video_ids[row]]
        return video if self.starts is None else f"{video}@{self.starts[row]:.3f}".rstrip("0").rstrip(".")

    def sample(self, row: int) -> Sample:
        """The video, segment or window of a row, with the path as it was given to `everest extract`."""
        sample = Sample.of_video_id(self.videos[self.video_ids[row]])
        if self.starts is None or self.ends is None:
            return sample
        start, end = float(self.starts[row]), float(self.ends[row])
        return sample.with_seconds(start, end)

    @cached_property
    def _spans(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Start and end (N,) of each row, in seconds; or in frames, and whether they are that (N,)."""
        if self.starts is not None and self.ends is not None:
            return self.starts, self.ends, np.zeros(self.starts.shape, bool)
        samples = [Sample.of_video_id(name) for name in self.videos]
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


def _normal(path: str) -> str:
    return os.path.normpath(Path(path).absolute())


def unit_rows(features: NDArray[Any]) -> Floats:
    """Features (N, D) divided by their norms; rows of zeros stay."""
    rows = features.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def read_feature_file(path: Path) -> FeatureFile:
    """Read a `.safetensors` file of `everest extract --features video`."""
    if path.suffix.lower() != SUFFIX or not path.is_file():
        problem = f"not a {SUFFIX} file of features" if path.exists() else "no such file"
        raise DataError(f"{path}: {problem}; {FIX} --output F{SUFFIX}")
    with reading_own(path, fix=FIX, error=DataError):
        with open_safetensors(path) as file:
            texts = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = {name: parse_json(texts[name]) for name in HEADER if name in texts}
        features = arrays["features"]
        if features.ndim != 2:
            raise DataError(f"{path}: its features are {features.shape}, not one vector a row; {FIX}")
        return FeatureFile(
            path=path,
            files=[_normal(Sample.of_video_id(name).path) for name in header["videos"]],
            video_ids=arrays.get("video_ids", np.arange(len(features))),
            units=unit_rows(features),
            starts=arrays.get("starts"),
            ends=arrays.get("ends"),
            **header,
        )
