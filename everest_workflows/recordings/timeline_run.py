"""A run of `everest timeline`: from videos or a saved file to bouts, their files, scores and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from everest.checkpoints.load import find_run_weights
from everest.errors import join_first
from everest.inference.opened_model import OpenedModel
from everest.inference.videos import Batching
from everest.lists.classes import Classes
from everest.lists.inputs import find_samples
from everest.lists.sources import seen_in
from everest.system.events import Emit, notice, warning
from everest.system.files import refuse_inputs, write_text
from everest.system.processes import is_main
from everest.system.text import json_text
from everest_workflows.annotations.codings import NO_SUBJECT, BoutFilter
from everest_workflows.recordings.alarms import find_alarms
from everest_workflows.recordings.bouts import NO_RULES, BoutRules, PredictedBouts
from everest_workflows.recordings.scores import (
    compare_with_observers,
    read_truth,
    score_timelines,
    write_bouts,
)
from everest_workflows.recordings.timelines import (
    Timelines,
    compute_timelines,
    read_trained_option,
    timeline_job,
)


class TimelineSource(NamedTuple):
    """Saved or future timelines, with the facts that are known before any timeline is computed."""

    classes: Classes
    names: Sequence[str]  # paths of the videos
    timelines: AbstractContextManager[Timelines | None]  # None except in the main process
    inputs: Sequence[object] = ()  # files that are read, besides the files that options name
    rules: BoutRules = NO_RULES  # of a saved file
    errors: Sequence[str] = ()  # errors of unreadable videos
    save: Path | None = None  # file for the probabilities
    may_replace: bool = False  # see `LongJob`
    group: str | None = None  # --group by which `everest train` divided the recordings
    subject: str = ""  # --subject of `everest train`, if it names one subject

    @classmethod
    def of_saved(cls, file: Path) -> TimelineSource:
        """Read saved timelines."""
        saved = Timelines.load(file)
        return cls(
            classes=saved.classes,
            names=[video.path for video in saved.videos],
            timelines=nullcontext(saved if is_main() else None),
            rules=saved.rules,
            errors=[f"{video.video}: {video.error}" for video in saved.videos if video.error is not None],
        )

    @classmethod
    def of_model(
        cls,
        model: OpenedModel,
        videos: Sequence[Path],
        batching: Batching,
        *,
        root: Path | None,
        save: Path | None,
        **options: Any,
    ) -> TimelineSource:
        """Prepare the timelines of videos, folders or lists; warns if the model learned from some.

        `root` is that of paths in lists; `options` are of `LongJob`.
        """
        classes = model.classes  # also refuses an autoencoder before videos are listed
        samples = find_samples(videos, root=root)
        if known := seen_in(model.recipe.data, "train", samples):
            names = join_first([Path(sample.path).name for sample in known])
            batching.emit(warning(f"the model learned from {names}: scores there are too good to publish"))
        inputs = [*find_run_weights(model.file), *(sample.video for sample in samples)]
        subject = read_trained_option(model.module, "subject") or ""
        job = timeline_job(model, samples, batching, output=save, **options)
        if job.rows_folder is not None:
            refuse_inputs(job.rows_folder, inputs)
        return cls(
            classes=classes,
            names=[sample.path for sample in samples],
            timelines=compute_timelines(job),
            inputs=inputs,
            save=save,
            may_replace=job.may_replace(),
            group=read_trained_option(model.module, "group"),
            subject="" if subject == NO_SUBJECT or set(subject) & {*"*?["} else subject,
        )


@dataclass(frozen=True, kw_only=True)
class TimelineResults:
    """Timelines, with what follows from them."""

    timelines: Timelines
    bouts: Sequence[PredictedBouts]
    alarms: Mapping[str, Any]  # of `find_alarms`; empty without a normal class
    scores: Mapping[str, Any] | None
    written: list[Path] = field(default_factory=list)  # files of bouts

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return self.timelines.to_rows(self.bouts)

    @cached_property
    def text(self) -> str:
        """The document of `everest timeline --json`."""
        summary = {**(self.scores or {}), **({"alarms": self.alarms} if self.alarms else {})}
        return json_text({**summary, "timelines": self.rows} if summary else self.rows, indent=2) + "\n"

    def write(self, outputs: Mapping[Path, Sequence[str]], kind: str | None) -> None:
        """Write the bouts of some videos to each file."""
        for file, paths in outputs.items():
            if kind == "json":
                write_text(file, self.text)
                self.written.append(file)
            else:
                self.written.extend(write_bouts(file, str(kind), self.timelines, self.bouts, paths))


def run_timeline(
    source: TimelineSource,
    rules: BoutRules,
    *,
    model: str,
    truth: Path | None,
    bout_filter: BoutFilter,
    alarms: Mapping[str, Any],
    plot: Path | None,
    outputs: Mapping[Path, Sequence[str]],
    kind: str | None,
    emit: Emit,
) -> TimelineResults | None:
    """Compute or take timelines, score and draw them, and write files; None except in the main process.

    Args:
        model: its name in the saved file; empty for saved timelines.
        truth, bout_filter: annotations, for scores, and whose bouts of them count.
        alarms: arguments of `find_alarms`; empty: none are searched.
        outputs: files of bouts, of a `kind`, with the paths of their videos.
    """
    labeled, observers = None, {}
    if truth is not None:  # read before anything is computed
        labeled, observers = read_truth(truth, source.names, source.classes, bout_filter, emit)
    for text in source.errors:
        emit(notice(text))
    with source.timelines as timelines:
        if timelines is None:
            return None
        timelines = replace(timelines, rules=rules, model=model or timelines.model)
        timelines = replace(timelines, subject=source.subject or timelines.subject)
        for text in timelines.notices:
            emit(notice(text))
        if source.save is not None and timelines.extents:
            timelines.save(source.save)
        found_alarms = find_alarms(timelines, **alarms) if alarms else {}
        bouts, scores = timelines.bouts(), None
        if labeled is not None:
            scores = score_timelines(timelines, bouts, labeled, emit=emit)
            scores["agreement"] = compare_with_observers(timelines, bouts, observers)
        if plot is not None and timelines.extents:
            from everest_workflows.recordings.timeline_figure import draw_timelines

            draw_timelines(plot, timelines, bouts, labeled or {})
        results = TimelineResults(timelines=timelines, bouts=bouts, alarms=found_alarms, scores=scores)
        results.write(outputs, kind)
        return results
