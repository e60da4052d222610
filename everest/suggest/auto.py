"""The recipe `auto`, made for a data set and this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from everest.config.recipe import load_recipe
from everest.config.recipe_files import AUTO, RecipeFile
from everest.errors import RecipeError
from everest.lists.stage import LIST_FILES
from everest.suggest.choices import Purpose
from everest.suggest.data_facts import examine_data
from everest.suggest.data_section import data_section, with_task
from everest.suggest.devices import DEVICES, this_device
from everest.suggest.suggest import choose_values, recipe_text

BASE: Final = "custom"  # has the lists that `everest prepare` writes
OF_CLIPS: Final = ("data.size=", "data.frames=")  # they have to fit the suggested tubelets


def auto_recipe(
    data: str | None, *, purpose: Purpose, overrides: Sequence[str] = (), cpu: bool = False
) -> RecipeFile:
    """Suggest a recipe for the lists in the folder `data`.

    Args:
        data: the folder of the lists; None: there is none.
        overrides: `section.key=value` texts, which may name other lists.
        cpu: suggest for the CPU even if there is a GPU.
    """
    if data is None:
        raise RecipeError("--recipe auto: needs --data DIR, the videos that the recipe is for")
    labeled = purpose != "pretrain"
    root = f"data.root={json.dumps(data)}"
    of_lists = [text for text in overrides if text.startswith("data.") and not text.startswith(OF_CLIPS)]
    given = load_recipe(BASE, overrides=[*of_lists, root]).data
    lists = {key: name for key, default in LIST_FILES.items() if (name := getattr(given, key)) != default}
    section = data_section(data, **lists, labeled=labeled)
    if labeled and given.heads is None:
        chosen = any(text.startswith("data.task=") for text in of_lists)
        section, _ = with_task(section, given.task if chosen else None)
    facts = examine_data(replace(given, **section), labeled=labeled)
    device = "cpu" if cpu else this_device()
    choices = choose_values(facts, device, purpose=purpose)
    text = recipe_text(choices, section, base=DEVICES[device].base, facts=facts)
    return RecipeFile(name=AUTO, label=AUTO, text=text, folder=None)
