"""The options of `everest train`, declared once: for its command, for notebooks, and for project.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from everest.config.heads import TaskName

MIN_FOLDS: Final = 3  # each fold is once the test list, and once the validation list

ModelChoice = Literal["auto", "network", "linear"]  # auto: the best candidate by validation


@dataclass(frozen=True, kw_only=True)
class ProjectOptions:
    """What `everest train` may be asked for, with the texts of the command line.

    Paths and names of weights are as the user wrote them; in a `Request` they are absolute.
    """

    annotations: Annotated[
        list[str] | None,
        ("--annotations F", "Bouts in recordings: BORIS, ELAN, CSV and others; repeatable."),
    ] = None
    observers: list[str] | None = None  # whose bouts count; * stands for any text
    subject: str | None = None  # only the bouts of this subject, such as an animal
    unlabeled: Annotated[
        str | None, ("--unlabeled DIR", "Folder or list of videos to pre-train on first.")
    ] = None
    init: str | None = None  # weights to start from; none: from scratch
    group: Annotated[
        str | None,
        (
            "--group G",
            "Pattern for file names that captures the person or animal, whose videos stay in one list; see "
            "`prepare split`; `subject`: of the annotations [the column `group` of a list, else one group "
            "per recording or video].",
        ),
    ] = None
    folds: Annotated[
        int | None,
        ("--folds N", "Test on each of N parts in turn; then train on all."),
        {"min": MIN_FOLDS},
    ] = None
    hours: Annotated[
        float | None,
        ("--hours H", "Train a network, too, in about H hours."),
        {"min": 0.01, "max": 10_000},
    ] = None
    model: Annotated[
        ModelChoice,
        ("--model", "What to select: the best candidate on the validation videos, or one of a kind."),
    ] = "auto"
    latency: Annotated[
        float | None,
        (
            "--latency MS",
            "Choose the model's size so that it needs at most MS milliseconds for a clip on one CPU thread.",
        ),
        {"min": 0.01},
    ] = None
    normal: Annotated[
        str | None,
        (
            "--normal CLASS",
            "Class without a fault (of several labels, the name of an empty cell): bound false alarms, and "
            "store a threshold.",
        ),
    ] = None
    task: TaskName | None = None  # None: as the labels show
    overrides: list[str] | None = None  # `section.key=value` texts, which win over the suggested recipe
