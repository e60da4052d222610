"""A suggested recipe for lists, with the time of its stages on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from everest.config.recipe import load_recipe
from everest.config.recipe_files import RecipeFile
from everest.config.settings import DataSettings, Recipe
from everest.config.yaml import write_yaml
from everest.errors import RecipeError
from everest.profiling.measure import TrainingStage, measure, reading_speed, stage_clips
from everest.suggest.data_facts import DataFacts, examine_data
from everest.suggest.rules import DEVICES, Choice, Purpose, choose_values
from everest.system.processes import num_cores

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
        raise RecipeError(
            f"--pretrain {settings.pretrain}: one video; pre-training compares several: name more"
        )

    def suggested(most_steps: Mapping[str, int] | None = None) -> RecipeFile:
        choices = choose_values(facts, device, purpose=purpose, most_steps=most_steps)
        text = recipe_text(choices, dict(section), base=DEVICES[device].base, facts=facts)
        return RecipeFile(name=output.stem, label=str(output), text=text, folder=output.parent)

    file = suggested()
    recipe = load_recipe(file, overrides=overrides)
    speeds = _measure_speeds(recipe, purpose, cpu=device == "cpu") if measured else {}
    samples = {"pretrain": (facts.pretrain or facts.train).samples, "finetune": facts.train.samples}
    if hours is not None:
        clips = {str(stage): 3600 * hours * speed for stage, speed in speeds.items()}
        file = suggested({stage: int(clips[stage] / getattr(recipe, stage).batch_size) for stage in clips})
        recipe = load_recipe(file, overrides=overrides)
    times = []
    for stage in STAGES[purpose]:
        plan, speed = getattr(recipe, stage), speeds.get(stage)
        steps = plan.steps or max(1, plan.epochs * samples[stage] // plan.batch_size)
        seconds = None if speed is None else round(steps * plan.batch_size / speed)
        times.append(StageTime(stage, steps, plan.batch_size, speed, seconds))
    return Suggestion(file.text, recipe, facts, times)


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
    for section, members in groupby(choices, key=lambda choice: choice.key.split(".")[0]):
        lines += [] if section == "data" else [f"{section}:"]
        for choice in members:
            value = {choice.key.split(".")[1]: choice.value}
            first, *others = write_yaml(value, width=10_000).splitlines()
            lines += [f"  {first} # {choice.reason}", *(f"  {line}" for line in others)]
    return "\n".join(lines) + "\n"


def this_device() -> str:
    """The name of the largest of `DEVICES` that this machine has."""
    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    gpus = [name for name in DEVICES if name != "cpu"]
    fitting = [name for name in gpus if int(name.removesuffix("GB")) <= 1.1 * memory]
    return fitting[-1] if fitting else gpus[0]
