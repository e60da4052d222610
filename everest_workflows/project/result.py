"""The documents of a test: result.json, and the outputs for the test videos from which folds are pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Self

import numpy as np
from pydantic import Field, InstanceOf, TypeAdapter

from everest.config.heads import Head
from everest.metrics.predictions import Predictions
from everest.system.files import IN_USE_FIX
from everest.system.moved_folder import moved
from everest.system.text import damage_errors, load_json, validate
from everest_workflows.project.alarm_rates import AlarmRow, format_worst
from everest_workflows.recordings.project_folder import MODEL_FOLDER, PROJECT_FILE, RESULT_FILE, SELECTED

F1_KEY: Final = "f1@50"  # in documents
NETWORK: Final = "network"  # the name of the fine-tuned candidate


@dataclass(frozen=True, kw_only=True)
class TimelineScores:
    """The timelines of the test recordings beside the bouts of a person, in percent."""

    frame_accuracy: float
    frame_interval: list[float] | None = None  # 95 %, over groups
    majority_accuracy: float
    mean_class_accuracy: float
    too_short: dict[str, float] = field(default_factory=dict)  # seconds of classes without a part in the mean
    f1: Annotated[float | None, Field(alias=F1_KEY)]  # of bouts that overlap by half
    recordings: list[InstanceOf[str]]
    figure: InstanceOf[str]  # a file
    smooth: float  # seconds over which probabilities are averaged; the median of several folds
    timeline: InstanceOf[str] | None = None  # a file; None: of several folds


@dataclass(frozen=True, kw_only=True)
class ClipTime:
    """The milliseconds of one view of a video on one thread of a CPU, in float32 by PyTorch."""

    network_ms: float
    reading_ms: float  # to decode its frames from a file and resize them
    limit_ms: float  # of --latency, for the network

    def __str__(self) -> str:
        fits = f"within the limit of {self.limit_ms:g}"
        if self.network_ms > self.limit_ms:
            fits = f"above the limit of {self.limit_ms:g}: export int8, or train with a lower --latency"
        return (
            f"a clip on one CPU thread: {self.network_ms:.3g} ms in the network by PyTorch ({fits}), "
            f"and {self.reading_ms:.3g} ms to read it from a file"
        )


@dataclass(frozen=True, kw_only=True)
class CandidateTest:
    """How good a candidate is, in the metric of the task."""

    name: str
    metric: str
    validation: float | None  # on videos that no candidate has learned from; of folds their mean
    test: float | None  # of the center views; None: it was not made for all folds
    interval: list[float] | None  # 95 %, of the test


@dataclass(frozen=True, kw_only=True)
class ClassTest:
    """How well a model finds a class, in percent."""

    name: str
    prevalence: float  # of the test videos or windows
    ap: float | None = None  # average precision, if videos have several classes
    recall: float | None = None  # if they have one
    precision: float | None = None
    taken_for: str | None = None  # the class that most of its other videos are taken for
    taken: float | None = None  # their fraction of its videos
    worst_group: InstanceOf[str] | None = None  # the group with most of its videos that are not found
    worst: list[int] | None = None  # of that group: its videos that are found, and all
    interval: list[float] | None  # 95 %, of `ap` or `recall`
    intervals: dict[str, list[float]] = field(default_factory=dict)  # of precision and F1, in percent

    @property
    def f1(self) -> float:
        recall, precision = self.recall or 0.0, self.precision or 0.0
        return 2 * recall * precision / (recall + precision) if recall + precision else 0.0

    @property
    def worst_text(self) -> str:
        return format_worst(self.worst_group, self.worst)


@dataclass(frozen=True, kw_only=True)
class MeasuredTest:
    """The test of a model, or of the models of all folds; of classes in percent.

    None stands for what a task or a list does not have. `majority` is the value of always predicting the most
    frequent class of the test list, `linear_pixels` that of a linear model on small images.
    """

    metric: str  # of the task
    value: float
    interval: list[float] | None  # 95 %
    chance: float
    majority: float | None
    majority_class: str | None
    linear_pixels: float | None
    difference: list[float] | None  # 95 % interval of the difference from the linear model
    videos: int
    groups: int
    skipped: int
    report: InstanceOf[str]  # path of the page
    checkpoint: InstanceOf[str]
    candidates: list[CandidateTest] = field(default_factory=list)
    chosen: str = NETWORK  # the name of the candidate that is selected
    members: list[str] = field(default_factory=list)  # the candidates that it consists of
    reason: str = "no other was compared"
    behaviors: list[ClassTest] = field(default_factory=list)  # the classes
    alarms: list[AlarmRow] = field(default_factory=list)  # with --normal, as the next four
    normal: str | None = None  # the class without a fault
    threshold: float | None = None  # chosen on validation samples, or on the tests of all folds
    alarm_seconds: float | None = None  # of the windows of a stream
    alarm_figure: InstanceOf[str] | None = None  # a file
    frames: int | None = None  # of a clip
    warnings: Sequence[str] = ()  # about the videos; not of a single fold
    timelines: TimelineScores | None = None  # of recordings
    folds: Sequence[MeasuredTest] = ()

    @property
    def choice(self) -> str:
        """The name of the selected candidate, and the members of a mean."""
        return f"{self.chosen} of {' and '.join(self.members)}" if len(self.members) > 1 else self.chosen

    @property
    def unit(self) -> str:
        """What the test list has: videos, or windows of recordings."""
        return "video" if self.timelines is None else "window"

    @property
    def figure(self) -> str | None:
        return None if self.timelines is None else self.timelines.figure

    @classmethod
    def read(cls, path: Path, *, fix: str) -> Self:
        """The test in a result.json; RecipeError if it is damaged."""
        with damage_errors(path, fix=fix):
            return cls.of(moved(load_json(path, fix=fix), path.parent))

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """The test that a document describes; ValueError if it is damaged."""
        return validate(TypeAdapter(cls), document)

    def dump(self) -> dict[str, Any]:
        """The document of result.json."""
        return TypeAdapter(type(self)).dump_python(self, by_alias=True)


@dataclass(frozen=True, kw_only=True)
class ProjectResult(MeasuredTest):
    """The test of a project, and what to do next."""

    judgment: str
    minutes: float
    planned_minutes: float
    resumed: bool
    clip_time: ClipTime | None = None  # with --latency
    methods: str = ""  # what was done, for a publication
    next: list[InstanceOf[str]]  # commands


def read_project_result(weights: Path) -> ProjectResult | None:
    """The result of the project that made these weights; None if no finished project did."""
    folder = weights.parent.parent
    has_project = all((folder / name).is_file() for name in (PROJECT_FILE, RESULT_FILE))
    if weights.parent.name != MODEL_FOLDER or not has_project:
        return None
    return ProjectResult.read(folder / RESULT_FILE, fix=IN_USE_FIX)


@dataclass(frozen=True, kw_only=True)
class TestOutputs:
    """The outputs of every candidate for the test videos of one head, and of the model that is selected."""

    videos: list[InstanceOf[str]]
    groups: list[InstanceOf[str]]
    labels: list[Any]  # an index, the indices of several classes, or a number
    outputs: dict[str, list[list[float]]]  # by the name of a candidate, or SELECTED: a row for each video
    dropped: int = 0  # further videos, which not every candidate could read

    @classmethod
    def read(cls, path: Path) -> Self:
        with damage_errors(path, fix=IN_USE_FIX):
            return validate(TypeAdapter(cls), load_json(path, fix=IN_USE_FIX))

    @classmethod
    def joined(cls, parts: Sequence[TestOutputs]) -> TestOutputs:
        """The outputs of all folds together, of the candidates that every fold has."""
        names = [name for name in parts[0].outputs if all(name in part.outputs for part in parts)]
        return cls(
            videos=[video for part in parts for video in part.videos],
            groups=[group for part in parts for group in part.groups],
            labels=[label for part in parts for label in part.labels],
            outputs={name: [row for part in parts for row in part.outputs[name]] for name in names},
            dropped=sum(part.dropped for part in parts),
        )

    def mean_of(self, names: Sequence[str]) -> TestOutputs:
        """The same, with the mean outputs of some candidates as those of SELECTED."""
        mean = np.mean([np.array(self.outputs[name], np.float32) for name in names], axis=0)
        return replace(self, outputs=self.outputs | {SELECTED: mean.tolist()})

    def predictions(self, name: str, head: Head) -> Predictions:
        """The outputs of a candidate, beside the labels."""
        labels = [(tuple(label) if isinstance(label, list) else label,) for label in self.labels]
        return Predictions(
            videos=self.videos,
            labels=labels,
            outputs=np.array(self.outputs[name], dtype=np.float32)[:, None],  # (V, 1, C)
            skipped=[],
            heads=(head,),
            groups=self.groups,
        )
