"""The plan of a project: its lists, its recipe, and the minutes of each stage on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from everest.project.lists import ProjectLists, make_lists
from everest.project.request import LISTS, RECIPE, Request
from everest.suggest.data_facts import DataFacts
from everest.suggest.devices import this_device
from everest.suggest.suggestion import Suggestion, suggest_recipe
from everest.system.events import Report, notice
from everest.system.text import counted

TRAINED: Final = 0.9  # of --hours; our choice: the rest is for validations and tests
MOST_LABELS: Final = 5  # of a class: up to here pre-training gained (docs/tutorials/few-labels.md)
TIMES_AS_MANY: Final = 4  # our choice: unlabeled videos for each labeled one


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done."""

    lists: ProjectLists
    suggestion: Suggestion

    def to_dict(self) -> dict[str, Any]:
        """The document of `--dry-run --json`; `minutes` are of all training."""
        times, trainings = self.suggestion.times, 1 + len(self.lists.folds)
        seconds = [(trainings if time.stage == "finetune" else 1) * (time.seconds or 0) for time in times]
        return {
            "lists": self.lists.sizes(),
            "window": self.lists.window,
            "stages": [time._asdict() for time in times],
            "trainings": trainings,
            "minutes": round(sum(seconds) / 60, 1),
        }

    def lines(self) -> list[str]:
        """The lists and the times, for people."""
        plan = self.to_dict()
        folds = f", of {counted(plan['trainings'], 'fine-tuning')}" if self.lists.folds else ""
        return [
            *(f"{name}: {size}" for name, size in plan["lists"].items()),
            *map(str, self.suggestion.times),
            f"all training: about {plan['minutes']:.0f} min{folds}",
        ]


def make_plan(request: Request, folder: Path, report: Report) -> Plan:
    """Write the lists into a folder, and suggest a recipe, which is not written."""
    lists = make_lists(request, folder / LISTS, report)
    stages = 1 + len(lists.folds) + (request.unlabeled is not None)
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
    return Plan(lists=lists, suggestion=suggestion)


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
