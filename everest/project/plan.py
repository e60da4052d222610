"""The plan of a project: its lists, its recipe, and the minutes of each stage on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from everest.project.lists import ProjectLists, make_lists
from everest.project.request import LISTS, RECIPE, Request
from everest.suggest.data_facts import DataFacts
from everest.suggest.devices import StageTime, this_device
from everest.suggest.suggestion import suggest_recipe
from everest.system.events import Report, notice
from everest.system.text import counted

TRAINED: Final = 0.9  # of --hours; our choice: the rest is for validations and the test
# Pre-training gained something with up to five labels a class (docs/tutorials/few-labels.md).
MOST_LABELS: Final = 5  # of a class
TIMES_AS_MANY: Final = 4  # our choice: unlabeled videos for each labeled one


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done."""

    lists: ProjectLists
    text: str  # of the recipe
    times: Sequence[StageTime]
    trainings: int  # of fine-tuning

    @property
    def minutes(self) -> float:
        """Of all stages, without validations and tests."""
        seconds = {time.stage: time.seconds or 0 for time in self.times}
        return (seconds.get("pretrain", 0) + self.trainings * seconds.get("finetune", 0)) / 60

    def lines(self) -> list[str]:
        """The lists and the times, for people."""
        lists = [f"{name}: {size}" for name, size in self.lists.sizes.items()]
        times = [str(time) for time in self.times]
        if self.trainings > 1:
            times.append(f"finetune: {self.trainings} times, once for each fold and once on all videos")
        return [*lists, *times, f"about {self.minutes:.0f} min of training in all"]

    def to_dict(self) -> dict[str, Any]:
        """The document of `--dry-run --json`."""
        return {
            "lists": self.lists.sizes,
            "window": self.lists.window,
            "stages": [time._asdict() for time in self.times],
            "trainings": self.trainings,
            "minutes": round(self.minutes, 1),
            "lines": self.lines(),
        }

    def document(self, request: Request) -> dict[str, Any]:
        """The document of project.json."""
        kept = {"root": self.lists.section["root"], "folds": list(map(dict, self.lists.folds))}
        return {"request": request.values(), **kept, "window": self.lists.window}


def make_plan(request: Request, folder: Path, report: Report) -> Plan:
    """Write the lists into a folder, and suggest a recipe, which is not written."""
    lists = make_lists(request, folder / LISTS, report)
    trainings = 1 + len(lists.folds)
    stages = trainings + (request.unlabeled is not None)
    suggestion = suggest_recipe(
        lists.section,
        this_device(),
        purpose="scratch" if request.unlabeled is None else "finetune",
        output=folder / RECIPE,
        hours=None if request.hours is None else TRAINED * request.hours / stages,
        overrides=request.overrides,
        notify=lambda text: report(notice(text)),
    )
    if (doubt := doubt_about_pretraining(suggestion.facts)) is not None:
        report(notice(doubt))
    return Plan(lists=lists, text=suggestion.text, times=suggestion.times, trainings=trainings)


def doubt_about_pretraining(facts: DataFacts) -> str | None:
    """Why pre-training on the unlabeled videos may not be worth its time; None if it may."""
    if facts.pretrain is None or not facts.classes:
        return None
    labels = facts.train.samples / facts.classes
    if labels <= MOST_LABELS and facts.pretrain.samples >= TIMES_AS_MANY * facts.train.samples:
        return None
    return (
        f"--unlabeled: {counted(facts.pretrain.samples, 'video')} may not be worth the time with "
        f"{labels:.3g} labels a class: it gained with up to {MOST_LABELS} labels a class and several times "
        "as many unlabeled videos (docs/tutorials/few-labels.md)"
    )
