"""A suggested recipe for lists or class folders, with the time of its stages on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import torch

from everest.config.heads import Task
from everest.config.recipe import load_recipe
from everest.config.recipe_files import RecipeFile
from everest.config.settings import DataSettings, Recipe
from everest.config.yaml import write_yaml
from everest.errors import RecipeError
from everest.lists.sample import ListSize, Sample
from everest.lists.sources import LIST_FILES
from everest.prepare.index import CLASSES
from everest.prepare.split import LabeledVideos
from everest.profiling.measure import TrainingStage, measure, reading_speed, stage_clips
from everest.suggest.data_section import (
    data_section,
    has_class_folders,
    named_lists,
    shared_videos,
    with_task,
)
from everest.suggest.rules import DEVICES, Choice, DataFacts, Purpose, choose_values, examine_data
from everest.system.files import made_folder, write_text
from everest.system.processes import num_cores
from everest.system.storage import parse_location
from everest.system.text import counted

BASE: Final = "custom"  # has the lists that `everest prepare` writes
OF_CLIPS: Final = ("data.size=", "data.frames=")  # they have to fit the suggested tubelets
MEASURED_CLIPS: Final = 16  # our choice: of a measured step on a CPU
STAGES: Final[dict[Purpose, tuple[TrainingStage, ...]]] = {  # that a recipe is for
    "pretrain": ("pretrain",),
    "finetune": ("pretrain", "finetune"),
    "scratch": ("finetune",),
}


class StageTime(NamedTuple):
    """The steps of a stage, and its time at a measured speed, without validations and probes."""

    stage: TrainingStage
    steps: int
    batch_size: int
    clips_per_second: float | None  # None: not measured
    seconds: int | None

    def __str__(self) -> str:
        text = f"{self.stage}: {self.steps} steps of {self.batch_size} clips"
        if self.seconds is None:
            return f"{text}; their time was not measured, because --device is another machine"
        return f"{text}, about {time_text(self.seconds)} at {self.clips_per_second:.0f} clips/s (measured)"


def time_text(seconds: float) -> str:
    """A time in the unit that fits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Suggestion(NamedTuple):
    """The YAML of a recipe, and the steps and the time of each stage that it is for."""

    text: str
    recipe: Recipe
    facts: DataFacts
    times: Sequence[StageTime]
    within: Callable[[float | None], Suggestion]  # the same with at most so many seconds for each stage


def this_device() -> str:
    """The name of the largest of `DEVICES` that this machine has."""
    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    gpus = [name for name in DEVICES if name != "cpu"]
    fitting = [name for name in gpus if int(name.removesuffix("GB")) <= 1.1 * memory]
    return fitting[-1] if fitting else gpus[0]


def suggest_for_folder(
    data: str,
    output: Path,
    *,
    lists: Mapping[str, str],
    device: str,
    pretrain: str | None,
    unlabeled: bool,
    task: Task | None,
    group: str | None,
    hours: float | None,
    measured: bool,
    overwrite: bool,
    notify: Callable[[str], None],
) -> tuple[Suggestion, list[str]]:
    """Write a recipe for a folder; class folders without lists get lists beside it, which lines describe.

    Args:
        lists: by their keys of the data section; empty: those in the folder.
        pretrain, unlabeled: videos to pre-train on first, a folder or a list; or pre-train only.
        task, group: None: as the labels and lists show.
        device, hours, measured: see `suggest_recipe`.
    """
    divides = not (lists or unlabeled) and has_class_folders(data)
    if group is not None and not divides:
        raise RecipeError("--group: has no effect on lists; use it with class folders")
    folder = output.absolute().with_name(f"{output.name.removesuffix('.yaml')}-lists")
    # Lists for as long as there is no recipe; beside their folder, as YAML may quote other paths.
    with (
        made_folder(folder.parent),
        TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as trial,
    ):
        videos, parts = None, {}
        if divides:
            videos, parts = _divide(data, output, folder, group=group, overwrite=overwrite)
            lists = videos.write(parts, Path(trial))
        section = data_section(data, **lists, pretrain=pretrain, labeled=not unlabeled)
        if not unlabeled:
            section, reason = with_task(section, task)
            if reason is not None:
                notify(reason)
        if pretrain is not None or unlabeled:
            _compare_videos(DataSettings(**section), data, pretrain, divided=divides, notify=notify)
        purpose = "pretrain" if unlabeled else "finetune" if pretrain else "scratch"
        suggestion = suggest_recipe(
            section, device, purpose=purpose, output=output, hours=hours, measured=measured
        )
    lines = []
    if videos is not None:
        for name in (*LIST_FILES.values(), CLASSES):  # of an earlier recipe
            (folder / name).unlink(missing_ok=True)
        videos.write(parts, folder)
        sizes = (f"{name}: {ListSize.of(samples)}" for name, samples in parts.items())
        lines = [*videos.notices, *sizes, f"lists: {folder}"]
    write_text(output, suggestion.text.replace(trial, str(folder)))
    missing = [name for name in ("val", "test") if section.get(name) is None]
    if missing and not unlabeled:
        fix = "`everest prepare split LIST` divides a list first; its --group keeps people apart"
        if divides:
            fix = "label more videos, of further groups"
        notify(f"warning: no {' or '.join(missing)} list; {fix}")
    return suggestion, lines


def _divide(
    data: str, output: Path, folder: Path, *, group: str | None, overwrite: bool
) -> tuple[LabeledVideos, dict[str, list[Sample]]]:
    """The videos of class folders, and their parts for the lists in `folder`."""
    root = parse_location(data)
    if not isinstance(root, Path):
        raise RecipeError(f"{data}: remote class folders cannot be split; make lists of them")
    if folder.parent == root.absolute():
        raise RecipeError(
            f"--output {output}: its lists would look like a class in this folder; name another folder"
        )
    if folder.exists() and not overwrite:
        raise RecipeError(f"{folder}: exists; name another recipe, or use --overwrite")
    videos = LabeledVideos.read(root, root=root.absolute(), group=group)
    return videos, videos.split()


def _compare_videos(
    settings: DataSettings, data: str, source: str | None, *, divided: bool, notify: Callable[[str], None]
) -> None:
    """Refuse videos of class folders for pre-training, and warn if videos for testing are among them.

    Args:
        source: the option --pretrain; None: pre-training on the unlabeled videos of `data`.
    """
    keys = ("train", "val", "test") if divided else ("val", "test")
    lists: Sequence[str] = [name for key in keys if (name := getattr(settings, key)) is not None]
    lists = lists or [*named_lists(data, "val"), *named_lists(data, "test")]
    shared = shared_videos(settings, "pretrain" if source else "train", lists)
    videos = counted(len(shared), "video")
    if shared and divided:
        raise RecipeError(
            f"--pretrain {source}: has {videos} of {data}, which will be split; name another folder, or make "
            "lists first (everest prepare split) and use --train train.csv --pretrain train.csv"
        )
    if shared:
        given, fix = (f"--pretrain {source}", "--pretrain") if source else (f"--unlabeled {data}", "--train")
        notify(
            f"warning: {given} has {videos} of the validation or test list, such as {shared[0]}, so "
            f"results will be too good; leave them out by {fix} LIST"
        )


def suggest_recipe(
    section: Mapping[str, Any],
    device: str,
    *,
    purpose: Purpose,
    output: Path,
    hours: float | None = None,
    measured: bool = True,
    overrides: Sequence[str] = (),
) -> Suggestion:
    """Choose the values of a recipe for these data and a device, and measure how long its stages take.

    Args:
        section: the data section: folder and lists.
        device: one of `DEVICES`.
        output: where the recipe will be written, for messages and its name.
        hours: at most for each stage, by the measured speed.
        measured: whether the speed is measured; it is that of this machine.
        overrides: `section.key=value` texts, which the stages will be given, too.
    """
    of_data = [text for text in overrides if text.startswith("data.") and not text.startswith(OF_CLIPS)]
    given = load_recipe(BASE, overrides=of_data).data if of_data else DataSettings()
    settings = replace(given, **section)
    facts = examine_data(settings, labeled=purpose != "pretrain")
    if facts.pretrain is not None and facts.pretrain.samples == 1:
        raise RecipeError(f"--pretrain {settings.pretrain}: one video; pre-training compares several")

    def suggested(most_steps: Mapping[str, int] | None = None) -> tuple[str, Recipe]:
        choices = choose_values(facts, device, purpose=purpose, most_steps=most_steps)
        text = recipe_text(choices, dict(section), base=DEVICES[device].base, facts=facts)
        file = RecipeFile(name=output.stem, label=str(output), text=text, folder=output.parent)
        return text, load_recipe(file, overrides=overrides)

    _, whole = suggested()
    speeds = _measure_speeds(whole, purpose, cpu=device == "cpu") if measured else {}

    def within(limit: float | None) -> Suggestion:
        most = {}
        if limit is not None:
            most = {stage: int(limit * speeds[stage] / getattr(whole, stage).batch_size) for stage in speeds}
        text, recipe = suggested(most)
        times = []
        for stage in STAGES[purpose]:
            size = facts.train if stage == "finetune" else facts.pretrain or facts.train
            plan, speed = getattr(recipe, stage), speeds.get(stage)
            steps = plan.steps or max(1, plan.epochs * size.samples // plan.batch_size)
            seconds = None if speed is None else round(steps * plan.batch_size / speed)
            times.append(StageTime(stage, steps, plan.batch_size, speed, seconds))
        return Suggestion(text, recipe, facts, times, within)

    return within(None if hours is None else 3600 * hours)


def _measure_speeds(recipe: Recipe, purpose: Purpose, *, cpu: bool) -> dict[TrainingStage, float]:
    """The clips/s of the stages of a recipe on this machine, of some steps and of reading the videos."""
    speeds = {}
    for stage in STAGES[purpose]:
        step = measure(recipe, stage, batch=MEASURED_CLIPS if cpu else None, cpu=cpu)["clips_per_second"]
        read = reading_speed(stage_clips(recipe, stage)) * num_cores()
        # On a CPU, steps and reading share the cores; on a GPU, the slower one counts.
        speeds[stage] = 1 / (1 / step + 1 / read) if cpu else min(step, read)
    return speeds


def recipe_text(choices: Sequence[Choice], data: dict[str, Any], *, base: str, facts: DataFacts) -> str:
    """The YAML of a recipe with a comment for each value; `choices` are in the order of its sections."""
    labels = f"{facts.classes} classes" if facts.classes else "no labels"
    if facts.task == "regression":
        labels = "numbers as labels"
    more = f" Pre-training: {facts.pretrain}." if facts.pretrain else ""
    lines = [
        f"# Training: {facts.train}, {labels}.{more} Each value states its reason.",
        f"base: {base}",
        *(write_yaml({"data": data}).splitlines() if data else ["data:"]),
    ]
    begun = "data"
    for choice in choices:
        section, _, key = choice.key.partition(".")
        lines += [] if section == begun else [f"{section}:"]
        begun = section
        first, *others = write_yaml({key: choice.value}, width=10_000).splitlines()
        lines += [f"  {first} # {choice.reason}", *(f"  {line}" for line in others)]
    return "\n".join(lines) + "\n"
