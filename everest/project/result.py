"""The documents of a test: result.json, and the outputs for the test videos from which folds are pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from pydantic import InstanceOf, TypeAdapter

from everest.system.files import IN_USE_FIX
from everest.system.text import read_own_json, reading_own, validated

F1_KEY: Final = "f1@50"  # in documents


@dataclass(frozen=True, kw_only=True)
class TimelineScores:
    """The timelines of the test recordings beside the bouts of a person, in percent."""

    frame_accuracy: float
    majority_accuracy: float
    mean_class_accuracy: float
    f1: float | None  # of bouts that overlap by half
    recordings: list[InstanceOf[str]]
    figure: InstanceOf[str]  # a file
    smooth: float  # seconds over which probabilities are averaged; the median of several folds
    timeline: InstanceOf[str] | None = None  # a file; None: of several folds

    def dump(self) -> dict[str, Any]:
        document = {F1_KEY if name == "f1" else name: value for name, value in vars(self).items()}
        if self.timeline is None:
            del document["timeline"]
        return document


@dataclass(frozen=True, kw_only=True)
class MeasuredTest:
    """The test of a model, or of the models of all folds; of classes in percent.

    None stands for what a task or a list does not have. `majority` is of always predicting the most frequent
    class of the test list, `linear_pixels` of a linear model on small images.
    """

    metric: str  # of the task
    value: float
    interval: list[float] | None  # 95 %
    chance: float
    majority: float | None
    majority_class: str | None
    linear_pixels: float | None
    difference: list[float] | None  # 95 % interval of the difference from the linear model, by video
    videos: int
    groups: int
    skipped: int
    report: InstanceOf[str]  # path of the page
    checkpoint: InstanceOf[str]
    timelines: TimelineScores | None = None  # of recordings
    folds: Sequence[MeasuredTest] = ()

    @property
    def figure(self) -> str | None:
        """The file of the figure of timelines."""
        return None if self.timelines is None else self.timelines.figure

    @classmethod
    def read(cls, path: Path, *, fix: str) -> Self:
        """The test in a result.json; RecipeError if it is damaged."""
        with reading_own(path, fix=fix):
            return cls.of(read_own_json(path, fix=fix))

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """The test that a document describes; ValueError or LookupError if it is damaged."""
        values = {**document, "value": document[document["metric"]], "timelines": None}
        if "frame_accuracy" in document:
            values["timelines"] = {**document, "f1": document[F1_KEY]}
        values["folds"] = [MeasuredTest.of(fold) for fold in document.get("folds", ())]
        return validated(TypeAdapter(cls), values)

    def dump(self) -> dict[str, Any]:
        """The document of result.json."""
        document = {self.metric: self.value, **vars(self)}
        for name in ("value", "timelines", "folds"):
            del document[name]
        if self.timelines is not None:
            document |= self.timelines.dump()
        if self.folds:
            document["folds"] = [fold.dump() for fold in self.folds]
        return document


@dataclass(frozen=True, kw_only=True)
class ProjectResult(MeasuredTest):
    """The test of a project, and what to do next."""

    judgment: str
    minutes: float
    planned_minutes: float
    resumed: bool
    next: list[InstanceOf[str]]  # commands


class TestedVideo(NamedTuple):
    """The label of a test video beside two outputs: classes by their indices, or numbers."""

    group: InstanceOf[str]
    label: float
    predicted: float
    linear: float | None  # of the linear model; None: it has none


def read_outputs(path: Path) -> list[TestedVideo]:
    """The outputs that `measure_run` has written for single labels or numbers."""
    with reading_own(path, fix=IN_USE_FIX):
        return validated(TypeAdapter(list[TestedVideo]), read_own_json(path, fix=IN_USE_FIX)["videos"])
