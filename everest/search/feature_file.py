"""The features that `everest extract` writes, as unit rows of float16, and what each row shows.

N rows, V names of videos, D width.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray
from pydantic import InstanceOf, TypeAdapter

from everest.errors import DataError, RecipeError, differing, first_names, shown
from everest.inference.features import encoding_of
from everest.inference.model import OpenedModel
from everest.lists.sample import Sample
from everest.system.json_text import parse_json, validated
from everest.system.weights_header import open_safetensors

BLOCK: Final = 8192  # rows that are computed at once; our choice: 25 MB for D = 768

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Header:
    """The texts of a file, as JSON values."""

    videos: list[InstanceOf[str]]  # not `str`: names of videos need not be UTF-8
    encoding: dict[str, Any]
    window: float | None = None
    step: float | None = None


_HEADER: Final = TypeAdapter(_Header)


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureFile:
    """The rows of a file, each of a video, of a segment or of a window."""

    path: Path
    videos: list[str]  # V names, each a `video_id` of everest.lists.sample.Sample
    video_ids: NDArray[np.int64]  # (N,) numbers of names
    units: NDArray[np.float16]  # (N, D) features divided by their norms; rows of zeros stay
    starts: NDArray[np.float64] | None  # (N,) seconds of windows
    ends: NDArray[np.float64] | None
    encoding: dict[str, Any]  # everest.inference.features.encoding_of
    window: float | None  # seconds
    step: float | None

    def __len__(self) -> int:
        return len(self.units)

    @cached_property
    def _paths(self) -> list[str]:
        """The file (V) that each name is of, or is a segment of."""
        return [_normal(Sample.of_video_id(name).path) for name in self.videos]

    @property
    def files(self) -> list[Path]:
        """The video file of each name (V)."""
        return list(map(Path, self._paths))

    @cached_property
    def sources(self) -> NDArray[np.int64]:
        """A number (N,) for each row: equal for rows of the same file."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(path, len(numbers)) for path in self._paths])[self.video_ids]

    def rows_of(self, name: str) -> NDArray[np.int64]:
        """The rows of a name; else of the video file that it names, however the path is written."""
        numbers = [number for number, video in enumerate(self.videos) if video == name]
        return self._rows(numbers) if numbers else self.rows_of_file(name)

    def rows_of_file(self, path: str) -> NDArray[np.int64]:
        """The rows of a video file and of its segments, however its path is written."""
        whole = _normal(path)
        return self._rows([number for number, own in enumerate(self._paths) if own == whole])

    def _rows(self, numbers: list[int]) -> NDArray[np.int64]:
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
        return replace(sample, start=start, end=end, start_frame=None, end_frame=None)

    @cached_property
    def _spans(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Start and end (N,) of each row, in seconds; or in frames, and whether they are that (N,)."""
        if self.starts is not None and self.ends is not None:
            return self.starts, self.ends, np.zeros(len(self), dtype=bool)
        samples, ids = [Sample.of_video_id(name) for name in self.videos], self.video_ids
        starts = np.array([each.start or each.start_frame or 0 for each in samples], np.float64)
        ends = np.array([each.end or each.end_frame or np.inf for each in samples], np.float64)
        in_frames = np.array([(each.start_frame, each.end_frame) != (None, None) for each in samples])
        return starts[ids], ends[ids], in_frames[ids]

    def overlapping(self, row: int) -> NDArray[np.bool_]:
        """Whether each row (N,) is of the same file as `row` and may share a part of the time with it."""
        starts, ends, in_frames = self._spans
        is_apart = (starts >= ends[row]) | (ends <= starts[row])
        return (self.sources == self.sources[row]) & ~(is_apart & (in_frames == in_frames[row]))

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Yield up to `BLOCK` unit rows at a time, as float32."""
        for first in range(0, len(self), BLOCK):
            rows = slice(first, min(first + BLOCK, len(self)))
            yield rows, self.units[rows].astype(np.float32)

    def require_model(self, model: OpenedModel) -> None:
        """Raise RecipeError unless a model computes features that are comparable with these."""
        now = encoding_of(model)
        if self.encoding.get("weights") != now["weights"]:
            raise RecipeError(f"{model.file}: {self.path} was written by other weights; give those")
        if different := differing(self.encoding, now):
            raise RecipeError(
                f"{self.path}: was written with other {first_names(different)}; give the same --recipe, "
                "--clips, --crops and --keep"
            )


def _normal(path: str) -> str:
    return os.path.normpath(Path(path).absolute())


def read_feature_file(path: Path) -> FeatureFile:
    """Read a `.safetensors` or `.npz` file of `everest extract --features video`."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; everest extract writes one")
    if path.suffix.lower() == ".npz":
        arrays = _npz_arrays(path)
        videos = arrays["videos"].tolist() if "videos" in arrays else None
        texts = {
            name: str(array) for name, array in arrays.items() if array.dtype.kind == "U" and not array.ndim
        }
        return _checked(path, arrays, texts, videos)
    with open_safetensors(path) as file:
        texts, names = file.metadata() or {}, set(file.keys())
        arrays = {name: file.get_tensor(name) for name in {"starts", "ends", "video_ids"} & names}
        if "features" in names:
            arrays["features"] = file.get_slice("features")
        return _checked(path, arrays, texts, None)


def _npz_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a `.npz` file."""
    try:
        if not is_zipfile(path):
            raise ValueError("no zip archive")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, RuntimeError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole .npz file ({shown(str(error))})") from error


def _checked(
    path: Path, arrays: dict[str, Any], texts: dict[str, str], videos: list[str] | None
) -> FeatureFile:
    """The rows of a file.

    Args:
        arrays: `features` may also be a slice of a safetensors file, which is read block by block.
        videos: the names, if they are not one of the JSON texts.
    """
    fix = "write it with everest extract --features video"
    try:
        known = {field.name for field in fields(_Header)} & texts.keys()
        values: dict[str, Any] = {} if videos is None else {"videos": videos}
        header = validated(_HEADER, values | {name: parse_json(texts[name]) for name in known})
    except ValueError as error:
        raise DataError(f"{path}: no file of features ({error}); {fix}") from error
    if "features" not in arrays:
        raise DataError(f"{path}: has no features; {fix}")
    features = arrays["features"]
    shape = tuple(features.get_shape() if hasattr(features, "get_shape") else features.shape)
    if len(shape) != 2 or not shape[0]:
        raise DataError(f"{path}: its features are {shape}, not one vector a row; {fix}")
    ids = arrays.get("video_ids", np.arange(shape[0]))
    columns = [ids, *(arrays[name] for name in ("starts", "ends") if name in arrays)]
    times = [column.dtype.kind == "f" and np.isfinite(column).all() for column in columns[1:]]
    if not all(times) or ids.dtype.kind not in "iu":
        raise DataError(f"{path}: damaged, its times or numbers of videos are no numbers; {fix}")
    if any(column.shape != shape[:1] for column in columns) or not 0 <= ids.min() <= ids.max() < len(
        header.videos
    ):
        raise DataError(f"{path}: damaged, its columns do not fit its {shape[0]} rows; {fix}")
    units = np.empty(shape, np.float16)
    for first in range(0, shape[0], BLOCK):
        rows = slice(first, min(first + BLOCK, shape[0]))
        block = np.asarray(features[rows])
        if block.dtype.kind not in "fiu":
            raise DataError(f"{path}: its features are of type {block.dtype}, no real numbers; {fix}")
        block = block.astype(np.float32)
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            raise DataError(f"{path}: some features are no finite numbers; {fix}")
        units[rows] = block / np.where(norms > 0, norms, 1)
    return FeatureFile(
        path=path,
        video_ids=ids,
        units=units,
        starts=arrays.get("starts"),
        ends=arrays.get("ends"),
        **vars(header),
    )
