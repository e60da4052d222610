"""The work of a sweep: training runs and evaluations, each identified by the settings that it depends on.

Arms that differ only in later stages share the work of earlier ones: arms with other `finetune.*` have one
pre-training for each seed.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from everest.config.recipe import dump_recipe, load_recipe, recipe_values
from everest.config.settings import Recipe
from everest.config.stage_settings import ViewPretrainSettings
from everest.engine.start import MAY_CHANGE, flat
from everest.errors import RecipeError
from everest.sweep.choices import NO_INIT, StageName
from everest.system.files import write_text

Settings = dict[str, Any]  # by section.key, without those at their defaults

KEY_LETTERS: Final = 12  # of a SHA-256: enough for any number of runs
RUNS: Final[tuple[StageName, ...]] = ("pretrain", "finetune")  # the others write one JSON file
_MISSING: Final = object()
_LABELS: Final = ("data.val", "data.test", "data.classes", "data.num_classes", "data.task", "data.heads")
# The keys that a stage reads, by their beginnings, and those among them that it does not read.
_READS: Final[dict[StageName, tuple[str, ...]]] = {
    "pretrain": ("data.", "model.", "train.", "tokenizer", "pretrain."),
    "finetune": ("data.", "model.", "train.", "finetune."),
    "eval": ("data.", "train.", "eval."),
    "probe": ("data.", "train.", "finetune.stride", "finetune.sampling", "finetune.selection"),
}
_IGNORES: Final[dict[StageName, tuple[str, ...]]] = {
    "pretrain": _LABELS,
    "finetune": ("data.pretrain", "data.test"),
    "eval": ("data.pretrain",),
    "probe": ("data.pretrain", "data.val"),
}
_PROBES: Final = "pretrain.probe"  # settings by which a pre-training reads labels as well
_DEFAULTS: Final = {  # of both objectives
    **flat(recipe_values(Recipe(name="views", pretrain=ViewPretrainSettings()))),
    **flat(recipe_values(Recipe(name="defaults"))),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One training run, or one evaluation."""

    stage: StageName
    key: str  # its folder or file
    seed: int
    recipe: Recipe  # with the seed
    needs: Work | None  # the stage before, whose weights it reads
    init: str  # the weights of the first stage, or none

    @property
    def name(self) -> str:
        """Its place in the folder of a sweep."""
        return f"{self.stage}/{self.key}"

    def run(self, folder: Path) -> Path:
        """The run folder of a training in the folder of a sweep."""
        return folder / self.stage / self.key

    def file(self, folder: Path, ending: str) -> Path:
        """A file next to the run: its recipe (yaml), messages (log), result of an evaluation (json)."""
        return folder / self.stage / f"{self.key}.{ending}"

    def command(self, folder: Path, *, gpus: str) -> list[str]:
        """The command that does the work, without the program."""
        start = self.init if self.needs is None else str(self.needs.run(folder))
        shared = ["--recipe", str(self.file(folder, "yaml")), "--data", self.recipe.data.root]
        if self.stage in ("probe", "eval"):
            return [self.stage, "--checkpoint", start, *shared, "--json", "--gpus", gpus]
        init = ["--init", start] if self.stage == "finetune" or start != NO_INIT else []
        return [self.stage, *shared, *init, "--output", str(self.run(folder)), "--gpus", gpus]

    def write_recipe(self, folder: Path) -> None:
        """Write the recipe of the command.

        A run keeps its settings of other stages, which a resume compares; its folder of videos and its
        section `train` may change.
        """
        path, recipe = self.file(folder, "yaml"), self.recipe
        if self.stage in RUNS and path.is_file():
            with suppress(RecipeError):  # damaged: the run itself has a copy, and refuses another
                before = load_recipe(path, imports=False)
                data = replace(before.data, root=recipe.data.root)
                recipe = replace(before, data=data, train=recipe.train)
        write_text(path, dump_recipe(recipe))


def make_work(
    stage: StageName, recipe: Recipe, *, needs: Work | None, init: str, own_root: bool = False
) -> Work:
    """Describe the work of a stage.

    Args:
        own_root: whether the arm has a folder of videos of its own. Otherwise the folder may be moved.
    """
    settings = stage_settings(stage, changed_settings(recipe))
    if own_root:
        settings["data.root"] = recipe.data.root
    start = init if needs is None else needs.key
    identity = json.dumps([stage, recipe.train.seed, start, settings], sort_keys=True)
    key = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_LETTERS]
    return Work(stage=stage, key=key, seed=recipe.train.seed, recipe=recipe, needs=needs, init=init)


def changed_settings(recipe: Recipe) -> Settings:
    """The settings that are not at their defaults, by section.key, without the seed and the exempt ones.

    Exempt are those that a resumed run may change, such as `train.workers`, and `data.root`.
    """
    return {
        key: value
        for key, value in flat(recipe_values(recipe)).items()
        if key not in MAY_CHANGE | {"summary", "train.seed"} and _DEFAULTS.get(key, _MISSING) != value
    }


def stage_settings(stage: StageName, settings: Settings) -> Settings:
    """The settings that the work of a stage depends on; the stages before it have their own."""
    ignored = list(_IGNORES[stage])
    if stage == "pretrain":
        if any(key.startswith(_PROBES) for key in settings):
            ignored = []
        elif "data.pretrain" in settings:
            ignored.append("data.train")
        if "pretrain.flip" in settings:  # instead of data.flip
            ignored.append("data.flip")
    sections = tuple(f"{section}." for section in ignored)
    return {
        key: value
        for key, value in settings.items()
        if key.startswith(_READS[stage]) and not f"{key}.".startswith(sections)
    }
