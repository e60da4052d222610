"""Long jobs: rows of many videos, computed by several processes; a killed command resumes.

`everest extract` and `predict` keep their rows until the output is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from pydantic import TypeAdapter
from torch import Tensor

from everest.checkpoints.load import find_run_weights, is_timm_name
from everest.data.recipe_clips import fingerprint
from everest.inference.opened_model import OpenedModel
from everest.inference.pieces import PieceModel, ViewTensors
from everest.inference.videos import (
    Batching,
    Compute,
    compute_over_segments,
    compute_over_videos,
    compute_over_windows,
)
from everest.inference.windows import Unreadable, Window
from everest.lists.sample import ListSize, Sample
from everest.system.accelerator import Processes, join_processes
from everest.system.events import Emit, notice
from everest.system.files import check_new_file, refuse_inputs
from everest.system.parts import FIX, JoinedParts, Parts, divide, open_parts, read_saved_plan
from everest.system.text import damage_errors, plural, validate
from everest.system.weights import state_hash
from everest.video.images import video_files
from everest.video.source import video_version

Result = Unreadable | None  # why a video or a window has no row; None: it has one
_RESULTS: Final[TypeAdapter[list[Result]]] = TypeAdapter(list[Result])


@dataclass(frozen=True)
class LongJob:
    """A command over many videos, whose rows are kept in `OUTPUT.parts` until its output is written.

    A launcher's processes divide the videos; the main one writes.
    """

    model: OpenedModel
    samples: Sequence[Sample]
    batching: Batching
    settings: dict[str, Any]  # further JSON values that the rows follow from
    output: Path | None = None  # None: the rows are in a temporary folder
    other_files: Sequence[Path] = ()  # further files that are written with the output
    overwrite: bool = False

    @cached_property
    def processes(self) -> Processes:
        """The processes of the launcher; each of them must read this property."""
        return join_processes(self.model.runtime)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """Everything that determines the rows, by keys that messages name.

        It contains the sizes and times of files: the rows of changed videos are not continued.
        """
        if self.output is None:
            return {}
        versions = hashlib.sha256()
        for video in dict.fromkeys(sample.video for sample in self.samples):
            with suppress(OSError):  # a missing file
                versions.update(repr([video_version(file) for file in video_files(video)]).encode())
        return {
            **encoding_of(self.model),
            "videos": fingerprint(self.samples, Path(), None),
            "versions of videos": versions.hexdigest()[:16],
            "precision": self.model.runtime.precision,
            **self.settings,
            "batch": self.batching.batch,
            "window": self.batching.window,
            "step": self.batching.step,
            "files": [str(path) for path in self.other_files],
        }

    @property
    def rows_folder(self) -> Path | None:
        return self.output and self.output.with_name(f"{self.output.name}.parts")

    def may_replace(self) -> bool:
        """Whether existing files may be replaced: with --overwrite, or after an interrupted call."""
        folder = self.rows_folder
        if self.overwrite or folder is None:
            return self.overwrite
        return self.processes.decide(lambda: read_saved_plan(folder) == self.plan)

    def check_output(self) -> None:
        """Refuse an output that is an input, or that exists and must not be replaced."""
        if self.output is not None and self.rows_folder is not None:
            for path in (self.output, self.rows_folder):
                videos = (sample.video for sample in self.samples)
                refuse_inputs(path, [*find_run_weights(self.model.file), *videos])
            check_new_file(self.output, overwrite=self.may_replace())

    @contextmanager
    def open(self) -> Iterator[Parts]:
        processes = self.processes
        with ExitStack() as stack:
            folder = self.rows_folder or Path(
                processes.decide(lambda: stack.enter_context(TemporaryDirectory(prefix="everest-")))
            )
            store = open_parts(folder, self.plan, restart=self.overwrite, processes=processes)
            yield stack.enter_context(store)


def encoding_of(model: OpenedModel) -> dict[str, Any]:
    """The settings that determine features, as JSON values; rows with equal settings are comparable."""
    if is_timm_name(model.file):
        weights = state_hash(model.module.state_dict())
    else:
        with model.file.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
    encoding = {"weights": weights, "keep": model.keep, "views": repr(model.views)}
    return encoding if model.module.classes else encoding | {"pooling": "mean-change"}


def add_rows(
    store: Parts,
    model: OpenedModel,
    samples: Sequence[Sample],
    compute: Compute,
    make_row: Callable[[ViewTensors], dict[str, Tensor]],
    batching: Batching,
    *,
    pieces: PieceModel | None = None,
) -> JoinedParts | None:
    """Add the rows of the videos that a folder of parts lacks.

    Args:
        make_row: makes the row of a video from the values of its views.
        pieces: computes the same as `compute`; for samples that are overlapping segments of videos.
    Returns:
        The rows of all processes, with the results of each video; None in a process other than the main one.
    """
    units = divide(len(samples), batch=batching.batch)
    completed, begun = store.progress()
    done = begun + sum(len(units[unit]) for unit in completed)
    if done:
        batching.emit(notice(f"resuming after {done} of {plural(len(samples), ListSize.of(samples).noun)}"))
    own = store.own(len(units))
    rest = {unit: batching.divide(units[unit][len(store.results(unit)) :]) for unit in own}
    parts = [part for unit in own for part in rest[unit]]
    if pieces is None:
        computed = compute_over_videos(
            model.dataset(samples),
            parts,
            compute,
            train=model.recipe.train,
            emit=batching.emit,
            processes=store.processes.num_processes,
        )
    else:
        own_units = {unit: units[unit] for unit in own}
        computed = _compute_units(store, model, samples, own_units, pieces, batching, done)
    for unit in own:
        for part, values in zip(rest[unit], computed, strict=False):
            results = [each if isinstance(each, Unreadable) else None for each in values]
            _report_problems(zip((samples[index] for index in part), results, strict=True), batching.emit)
            rows = [make_row(each) for each in values if not isinstance(each, Unreadable)]
            store.add(unit, results, _stack_rows(rows), is_last=part is rest[unit][-1])
    known = {index for unit in (*completed, *own) for index in units[unit]}
    return _join(store, samples, known, batching.emit, is_one_each=True)


def _compute_units(
    store: Parts,
    model: OpenedModel,
    samples: Sequence[Sample],
    units: Mapping[int, range],
    compute: PieceModel,
    batching: Batching,
    done: int,
) -> Iterator[list[ViewTensors | Unreadable]]:
    """Yield the values of the views of the segments that units lack, batch by batch, after `done` samples."""
    size = ListSize.of(samples)
    for unit, indices in units.items():
        segments = [samples[index] for index in indices]
        skipped = len(store.results(unit))
        computed = compute_over_segments(model, segments, compute, batching, done=skipped)
        while values := list(islice(computed, batching.batch)):
            done += len(values)
            batching.emit(size.progress_event(done))
            yield values


def add_window_rows(
    store: Parts,
    model: OpenedModel,
    samples: Sequence[Sample],
    compute: PieceModel,
    make_row: Callable[[Window, ViewTensors], dict[str, Tensor]],
    batching: Batching,
    *,
    make_video_tensors: Callable[[Sample], dict[str, Tensor]] = lambda sample: {},
) -> JoinedParts | None:
    """Add the rows of the windows that a folder of parts lacks; a unit is a video. See `add_rows`.

    A row also has the start and the end of its window, in seconds; a video with rows, `make_video_tensors`.
    """
    completed, num_windows = store.progress()
    if completed or num_windows:
        windows_text = f" and {plural(num_windows, 'window')} of others" if num_windows else ""
        done_text = f"resuming after {len(completed)} of {plural(len(samples), 'video')}{windows_text}"
        batching.emit(notice(done_text))
    own = store.own(len(samples))
    for unit in own:
        sample, results = samples[unit], _read_results(store, store.results(unit))
        for items in compute_over_windows(model, sample, compute, batching, done=[*results]):
            added = [item if isinstance(item, Unreadable) else None for item in items]
            rows = []
            for window, values in (item for item in items if not isinstance(item, Unreadable)):
                starts, ends = torch.tensor([window.start, window.end], dtype=torch.float64)
                rows.append({**make_row(window, values), "starts": starts, "ends": ends})
            store.add(unit, added, _stack_rows(rows), is_last=False)
            results += added
        store.add(unit, [], make_video_tensors(sample) if None in results else {}, is_last=True)
    return _join(store, samples, {*completed, *own}, batching.emit)


def _read_results(store: Parts, values: list[Any]) -> list[Result]:
    """The results of a part, from their JSON values."""
    with damage_errors(store.folder, fix=FIX):
        return validate(_RESULTS, values)


def _join(
    store: Parts, samples: Sequence[Sample], known: set[int], emit: Emit, *, is_one_each: bool = False
) -> JoinedParts | None:
    """Join the parts of all processes; report the problems that others met: not those of `known` samples.

    A unit has all results of a sample; or, with `is_one_each`, one result of each of its samples.
    """
    joined = store.joined()
    if joined is None:
        return None
    results = [_read_results(store, values) for values in joined.results]
    if is_one_each:
        results = [[result] for of_unit in results for result in of_unit]
    pairs = zip(samples, results, strict=True)
    others = [pair for index, pair in enumerate(pairs) if index not in known]
    _report_problems(((sample, result) for sample, of_sample in others for result in of_sample), emit)
    return joined._replace(results=results)


def _report_problems(results: Iterable[tuple[Sample, Result]], emit: Emit) -> None:
    for sample, result in results:
        if result is not None and not result.is_window:
            emit(notice(f"{sample.video_id}: {result.reason}"))


def _stack_rows(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in (rows[0] if rows else ())}
