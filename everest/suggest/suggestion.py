"""A suggested recipe for lists, with the time of its stages on this machine; the recipe `auto`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from everest.config.recipe import load_recipe
from everest.config.recipe_files import AUTO, RecipeFile
from everest.config.settings import DataSettings, Recipe
from everest.errors import RecipeError
from everest.lists.stage import LIST_FILES
from everest.suggest.data_facts import DataFacts, examine_data
from everest.suggest.data_section import data_section, with_task
from everest.suggest.devices import DEVICES, Purpose, StageTime, measure_speeds, stage_times, this_device
from everest.suggest.suggest import choose_values, recipe_text

BASE: Final = "custom"  # has the lists that `everest prepare` writes
OF_CLIPS: Final = ("data.size=", "data.frames=")  # they have to fit the suggested tubelets


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
    notify: Callable[[str], None],
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
    of_data = _of_data(overrides)
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
    recipe = load_recipe(file, overrides=overrides, notify=notify)
    speeds = measure_speeds(recipe, purpose, cpu=device == "cpu") if measured else {}
    samples = {"pretrain": (facts.pretrain or facts.train).samples, "finetune": facts.train.samples}
    if hours is not None:
        seconds = 3600 * hours
        most = {stage: int(seconds * of / getattr(recipe, stage).batch_size) for stage, of in speeds.items()}
        file = suggested({str(stage): steps for stage, steps in most.items()})
        recipe = load_recipe(file, overrides=overrides)
    return Suggestion(file.text, recipe, facts, stage_times(recipe, purpose, speeds, samples))


def auto_recipe(
    data: str | None, *, purpose: Purpose, overrides: Sequence[str] = (), cpu: bool = False
) -> RecipeFile:
    """Suggest the recipe `auto` for the lists in the folder `data`.

    Args:
        data: the folder of the lists; None: there is none.
        overrides: `section.key=value` texts, which may name other lists.
        cpu: suggest for the CPU even if there is a GPU.
    """
    if data is None:
        raise RecipeError("--recipe auto: needs --data DIR, the videos that the recipe is for")
    labeled, of_data = purpose != "pretrain", _of_data(overrides)
    given = load_recipe(BASE, overrides=[*of_data, f"data.root={json.dumps(data)}"]).data
    lists = {key: name for key, default in LIST_FILES.items() if (name := getattr(given, key)) != default}
    section = data_section(data, **lists, labeled=labeled)
    if labeled and given.heads is None:
        chosen = any(text.startswith("data.task=") for text in of_data)
        section, _ = with_task(section, given.task if chosen else None)
    suggestion = suggest_recipe(
        section,
        "cpu" if cpu else this_device(),
        purpose=purpose,
        output=Path(AUTO),
        measured=False,
        overrides=overrides,
        notify=lambda text: None,  # they are shown when the recipe is read
    )
    return RecipeFile(name=AUTO, label=AUTO, text=suggestion.text, folder=None)


def _of_data(overrides: Sequence[str]) -> list[str]:
    """The overrides that a suggestion follows."""
    return [text for text in overrides if text.startswith("data.") and not text.startswith(OF_CLIPS)]
