"""The outputs of a classifier over the time of recordings: computed once, saved, and read again.

Bouts, scores, figures and files follow from them without the model and without the videos.

W windows, O outputs of all heads, V views, C channels, T frames, H W pixels, F frames of a video.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import InstanceOf, TypeAdapter
from torch import Tensor

from everest.checkpoints.graph import ExportedClassifier
from everest.errors import DataError, OptionError, RecipeError, join_first
from everest.inference.jobs import LongJob, add_window_rows
from everest.inference.opened_model import OpenedModel
from everest.inference.pieces import PieceModel, ViewTensors
from everest.inference.predictions import list_predictions, mean_outputs
from everest.inference.videos import Batching
from everest.inference.windows import Window
from everest.lists.classes import Classes
from everest.lists.sample import Sample
from everest.models.base import ClipModel
from everest.system.events import heading
from everest.system.text import damage_errors, load_json, parse_json, plural, validate
from everest.system.types import Floats
from everest.system.weights import read_tensors, write_tensors
from everest.system.weights_header import read_metadata
from everest.video.frame_borders import VideoTimes
from everest_workflows.recordings.bouts import (
    NO_RULES,
    BoutRules,
    PredictedBout,
    PredictedBouts,
    WindowSpans,
    find_bouts,
)
from everest_workflows.recordings.project_folder import (
    FINETUNE_FOLDER,
    FOLDS_FOLDER,
    MODEL_FOLDER,
    PROJECT_FILE,
)

TIMELINES_FORMAT: Final = "everest-timelines"
ARRAY_NAMES: Final = ("starts", "ends", "outputs", "borders")  # of VideoTimeline
STEP_AS_TRAINED: Final = 0.25  # fraction of the window that everest train chose; benchmarks/timelines.md


@dataclass(frozen=True, eq=False, kw_only=True)
class Recording:
    """A video file, or a segment of it."""

    video: InstanceOf[str]  # as results name it; not `str`: names of files need not be UTF-8
    path: InstanceOf[str]  # of the file
    frames: tuple[int, int] = (0, 0)  # first frame, and the one after the last, of the segment
    fps: float = 1.0  # mean of the file
    error: InstanceOf[str] | None = None  # why it is unreadable, or what is damaged and left out


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoTimeline(Recording, WindowSpans):
    """The outputs of a classifier for the windows of a recording."""

    outputs: Floats  # (W, O) float32: probabilities, or numbers

    @property
    def extent(self) -> tuple[float, float]:
        """Start of the first window and end of the last in seconds; there must be a window."""
        return float(self.starts[0]), float(self.ends[-1])


@dataclass(frozen=True, eq=False, kw_only=True)
class Timelines:
    """The timelines of some recordings by one model. `everest.timeline` computes them."""

    classes: Classes
    videos: list[VideoTimeline]
    rules: BoutRules = NO_RULES  # of the bouts, unless other rules are given
    model: str = ""  # its checkpoint, as a command named it
    subject: str = ""  # whose bouts it learned, if `everest train` was given a --subject

    @property
    def extents(self) -> dict[str, tuple[float, float]]:
        """Start and end of each recording with windows, in seconds, rounded to milliseconds as in lists."""
        extents = {video.video: video.extent for video in self.videos if len(video.starts)}
        return {name: (round(start, 3), round(end, 3)) for name, (start, end) in extents.items()}

    @property
    def notices(self) -> list[str]:
        """Sentences about the recordings that have no window, and about bouts that the rules erase."""
        empty = [video.video for video in self.videos if not len(video.starts)]
        count = f"{len(empty)} of {plural(len(self.videos), 'recording')}"
        notices = [f"no window, so no bout, in {count}: {join_first(empty, 10)}"] if empty else []
        if lost := self._find_lost():
            count = (
                f"{plural(len(lost), 'bout')} of up to {max(each.end - each.start for each in lost):.3g} s"
            )
            notices.append(
                f"{self.rules.options()}: smoothing lowers {count} below the limit; use a lower one"
            )
        return notices

    def _find_lost(self) -> list[PredictedBout]:
        """The bouts that --background or --threshold leaves out only because of --smooth."""
        if not self.rules.smooth or self.rules.background is None is self.rules.threshold:
            return []
        open_rules = replace(self.rules, background=None, threshold=None)
        rules = replace(self.rules, smooth=0.0), open_rules, self.rules
        lost = []
        for sharp, smooth, kept in zip(*map(self.bouts, rules), strict=True):
            for head, bouts in sharp.items():
                lost += [
                    bout for bout in bouts if _is_in(bout, smooth[head]) and not _is_in(bout, kept[head])
                ]
        return [bout for bout in lost if bout.has_class]

    def bouts(self, rules: BoutRules | None = None) -> list[PredictedBouts]:
        """Return the bouts of each recording by these rules; None: by the rules of the timelines."""
        rules = rules or self.rules
        rules.check(self.classes.heads)
        heads = self.classes.heads
        ends = np.cumsum([head.outputs for head in heads])
        return [
            {
                head.name: find_bouts(video, outputs, head, self.classes.names_of_head(head), rules)
                for head, outputs in zip(heads, np.split(video.outputs, ends[:-1], axis=1), strict=True)
            }
            for video in self.videos
        ]

    def to_rows(self, bouts: Sequence[PredictedBouts] | None = None) -> list[dict[str, Any]]:
        """Return the document of `everest timeline --json`; by default with the bouts of its own rules.

        Returns:
            `{"video", "windows": [{"start", "end", "predictions" or "heads"}, …], "bouts": […]}` for each
            recording, a bout with the fields of `PredictedBout`. With several heads `bouts` has a list for
            each head. A recording that is unreadable, or damaged somewhere, has `error`.
        """
        rows = []
        for recording, by_head in zip(self.videos, bouts or self.bouts(), strict=True):
            starts, ends = recording.starts.tolist(), recording.ends.tolist()
            outputs = torch.from_numpy(recording.outputs)
            windows = [
                {"start": round(start, 3), "end": round(end, 3), **list_predictions(output, self.classes)}
                for start, end, output in zip(starts, ends, outputs, strict=True)
            ]
            error = {} if recording.error is None else {"error": recording.error}
            document = {"video": recording.video, "windows": windows, **error}
            bout_rows = {head: [asdict(bout) for bout in head_bouts] for head, head_bouts in by_head.items()}
            rows.append({**document, "bouts": bout_rows.get("", bout_rows)})
        return rows

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: `N.starts`, `N.ends`, `N.outputs` and `N.borders` of recording N.

        The outputs are not smoothed; the header has the rules.
        """
        tensors = {
            f"{i}.{name}": torch.from_numpy(getattr(video, name))
            for i, video in enumerate(self.videos)
            for name in ARRAY_NAMES
        }
        names = [field.name for field in fields(Recording)]
        recordings = [{name: getattr(video, name) for name in names} for video in self.videos]
        texts = {"classes": json.dumps(asdict(self.classes)), "videos": json.dumps(recordings)}
        texts |= {"rules": json.dumps(asdict(self.rules))} if self.rules != NO_RULES else {}
        texts |= {name: text for name in ("model", "subject") if (text := getattr(self, name))}
        write_tensors(Path(path), tensors, metadata={"format": TIMELINES_FORMAT, **texts})

    @classmethod
    def load(cls, path: str | Path) -> Timelines:
        """Read what `save` wrote; DataError if the file is of another kind, or damaged."""
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        with damage_errors(path, fix="write it again with `everest timeline --save`", error=DataError):
            header, tensors = read_metadata(path), read_tensors(path)
            classes = validate(_CLASSES, parse_json(header["classes"]))
            rules = validate(_RULES, parse_json(header.get("rules", "{}")))
            try:
                rules.check(classes.heads)
            except OptionError as problem:
                raise ValueError(str(problem)) from problem
            videos = []
            for i, recording in enumerate(validate(_RECORDINGS, parse_json(header["videos"]))):
                arrays: dict[str, Any] = {name: tensors[f"{i}.{name}"].numpy() for name in ARRAY_NAMES}
                size = arrays["starts"].size
                num_borders = max(arrays["borders"].size, 1)
                shapes = [arrays[name].shape for name in ARRAY_NAMES]
                if shapes != [(size,), (size,), (size, classes.num_outputs), (num_borders,)]:
                    raise ValueError(f"the shapes of {recording.video} are {shapes}")
                outputs = arrays["outputs"]
                is_fraction = all(head.task != "regression" for head in classes.heads)
                if not np.isfinite(outputs).all() or (is_fraction and (np.abs(outputs - 0.5) > 0.501).any()):
                    raise ValueError(f"the outputs of {recording.video} are not probabilities")
                videos.append(VideoTimeline(**vars(recording), **arrays))
        texts = {name: header.get(name, "") for name in ("model", "subject")}
        return cls(classes=classes, videos=videos, rules=rules, **texts)


def _is_in(bout: PredictedBout, bouts: Sequence[PredictedBout]) -> bool:
    """Whether a bout overlaps a bout of the same class."""
    return any(each.index == bout.index and each.start < bout.end and bout.start < each.end for each in bouts)


_CLASSES: Final = TypeAdapter(Classes)
_RULES: Final = TypeAdapter(BoutRules)
_RECORDINGS: Final = TypeAdapter(list[Recording])


def timeline_job(
    model: OpenedModel, samples: Sequence[Sample], batching: Batching, **options: Any
) -> LongJob:
    """Prepare the job that computes timelines of videos or segments, and choose their windows.

    Args:
        batching: without a `window`, windows are as `everest train` chose them for the model, with its step
            unless `step` is given; of other models as long as a clip, or, if the clips of an exported model
            span a video, as long as its training clips.
        options: of `LongJob`.
    """
    if batching.window is None and (trained_window := read_training(model.module)["window"]):
        batching = replace(
            batching, window=trained_window, step=batching.step or STEP_AS_TRAINED * trained_window
        )
        batching.emit(heading(f"windows of {trained_window:g} s, as trained, every {batching.step:g} s"))
    elif batching.window is None and not has_windows(model) and isinstance(model.module, ExportedClassifier):
        batching = replace(batching, window=model.module.clip_seconds)
        if batching.window is not None:
            batching.emit(heading(f"windows of {batching.window:.4g} s, as the training clips"))
    if batching.window is None and not has_windows(model):
        raise OptionError("window: the clips of this model span a whole video; set the seconds of a window")
    return LongJob(model, samples, batching.on_grid(model), {}, **options)


@contextmanager
def compute_timelines(job: LongJob) -> Iterator[Timelines | None]:
    """Compute the timelines of a job for a block (None except in the main process), which keeps its rows.

    If the block succeeds, the rows are removed.
    """
    model = job.model

    def make_row(window: Window, values: ViewTensors) -> dict[str, Tensor]:
        first, length, *_ = window.span
        return {**mean_outputs(values), "frames": torch.tensor([first, first + length])}

    def make_video_tensors(sample: Sample) -> dict[str, Tensor]:
        times = VideoTimes.of(sample.video)
        fps = torch.tensor([times.fps], dtype=torch.float64)
        return {"borders": torch.from_numpy(times.borders), "fps": fps}

    with job.open() as store:
        job_inputs = model, job.samples, PieceModel.of_outputs(model), make_row, job.batching
        rows = add_window_rows(store, *job_inputs, make_video_tensors=make_video_tensors)
        if rows is None:
            yield None
            return
        arrays = {
            name: np.split(np.array(array), np.cumsum(rows.counts[name])[:-1])
            for name, array in rows.arrays.items()
        }
        videos = []
        for i, (sample, results) in enumerate(zip(job.samples, rows.results, strict=True)):
            reasons = [result.reason for result in results if result and not result.is_window]
            values: dict[str, Any] = {"video": sample.video_id, "path": sample.path}
            values["error"] = reasons[0] if reasons else None
            if None in results:
                frames = arrays["frames"][i]
                values |= {name: arrays[name][i] for name in ARRAY_NAMES}
                values["frames"] = int(frames[0, 0]), int(frames[-1, 1])
                values["fps"] = float(arrays["fps"][i][0])
            else:
                values |= {"starts": np.zeros(0), "ends": np.zeros(0), "borders": np.zeros(1)}
                values["outputs"] = np.zeros((0, model.classes.num_outputs), np.float32)
            videos.append(VideoTimeline(**values))
        try:
            yield Timelines(classes=model.classes, videos=videos)
        except DataError:  # the same rows would lead there again
            store.remove()
            raise
        store.remove()


def has_windows(model: OpenedModel) -> bool:
    """Whether a model has a default window: the one that `everest train` chose, or the span of a clip."""
    return model.views.sampling == "dense" or read_training(model.module)["window"] is not None


def read_training(model: ClipModel) -> dict[str, Any]:
    """What `everest train` chose for a model: `window` in seconds, and its options `group` and `subject`.

    None stands for what is not known, such as of a model that another command trained. An exported file has
    the values of the weights that it came from.
    """
    training = model.training_facts if isinstance(model, ExportedClassifier) else _read_project(model.file)
    return {name: training.get(name) for name in ("window", "group", "subject")}


def read_trained_option(model: ClipModel, name: str) -> str | None:
    """The option `group` or `subject` of `read_training`; None also if the project is damaged."""
    with suppress(RecipeError):
        return read_training(model)[name]
    return None


def _read_project(weights: Path | None) -> dict[str, Any]:
    """The facts in the project of the `everest train` that made some weights; empty of other weights."""
    run = Path() if weights is None else weights.absolute().parent
    project = run.parent.parent.parent if run.parent.parent.name == FOLDS_FOLDER else run.parent
    file = project / PROJECT_FILE
    if run.name not in (MODEL_FOLDER, FINETUNE_FOLDER) or not file.is_file():
        return {}
    fix = "restore the file, or give --window"
    with damage_errors(file, fix=fix):
        document = load_json(file, fix=fix)
        seconds = document["window"]  # None: of videos, not of recordings
        return {**document.get("request", {}), "window": None if seconds is None else float(seconds)}
