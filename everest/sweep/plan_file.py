"""`sweep.yaml` in the folder of a sweep: its plan, and whether another plan may use the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from everest.config.yaml import read_yaml, write_yaml
from everest.errors import RecipeError, differing, first_names
from everest.sweep.choices import StageName
from everest.sweep.plan import PlannedArm, SweepPlan
from everest.sweep.works import stage_settings
from everest.system.files import check_new_folder, write_text

PLAN_FILE: Final = "sweep.yaml"
SHOWN: Final = 3  # settings that differ, in a message
DEFAULT: Final = "default"  # of a setting that is not written


def check_folder(folder: Path, plan: SweepPlan) -> list[str]:
    """Check that a sweep may use a folder: a new one, or that of a sweep whose arms have the same settings.

    Seeds, arms and later stages may be added, and left out: work that is there is used.

    Returns:
        The names of arms that an earlier plan had and this one has not.
    """
    check_new_folder(folder, is_own=lambda name: name == PLAN_FILE, fix="choose another folder")
    if not (folder / PLAN_FILE).is_file():
        return []
    before = _read(folder / PLAN_FILE)
    arms = {arm.name: arm for arm in plan.arms}
    for name in before["arms"]:
        if name in arms:
            _check_same(folder, name, before, arms[name])
    return [name for name in before["arms"] if name not in arms]


def write_plan(folder: Path, plan: SweepPlan) -> None:
    """Write `sweep.yaml`: the settings that all arms share, and each arm with its own settings."""
    first, *others = (arm.settings for arm in plan.arms)
    shared = {
        key: value
        for key, value in first.items()
        if all(key in settings and settings[key] == value for settings in others)
    }
    arms = {
        arm.name: {
            "stages": list(arm.stages),
            "init": arm.init,
            "settings": {key: value for key, value in arm.settings.items() if key not in shared},
        }
        for arm in plan.arms
    }
    write_text(folder / PLAN_FILE, write_yaml({**plan.header, "settings": shared, "arms": arms}))


def _read(path: Path) -> dict[str, Any]:
    """The values of a plan; RecipeError if it is damaged."""
    try:
        values = read_yaml(path.read_text(encoding="utf-8"), str(path))
        is_plan = isinstance(values["settings"], dict) and all(
            isinstance(arm["settings"], dict) and isinstance(arm["stages"], list) and "init" in arm
            for arm in values["arms"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecipeError) as error:
        raise RecipeError(f"{path}: damaged ({error}); choose another --output") from error
    if not is_plan:
        raise RecipeError(f"{path}: damaged (not the plan of a sweep); choose another --output")
    return values


def _check_same(folder: Path, name: str, before: dict[str, Any], arm: PlannedArm) -> None:
    """Raise RecipeError if a stage that both plans have depends on other settings now."""
    written = before["arms"][name]
    old, new = before["settings"] | written["settings"], arm.settings
    shared: list[StageName] = [stage for stage in arm.stages if stage in written["stages"]]
    differences: list[str] = []
    for stage in shared:
        sides = stage_settings(stage, old), stage_settings(stage, new)
        keys = sides[0].keys() | sides[1].keys()
        differences += differing(*({key: side.get(key, DEFAULT) for key in keys} for side in sides))
    if shared and (arm.stages[0], arm.init) != (written["stages"][0], written["init"]):
        differences += differing({"init": written["init"]}, {"init": arm.init})
        differences += differing({"first stage": written["stages"][0]}, {"first stage": arm.stages[0]})
    if differences:
        some = first_names(list(dict.fromkeys(differences)), SHOWN)
        raise RecipeError(
            f"--output {folder}: its arm '{name}' has other settings: {some}; choose another folder, or "
            "another name for the arm"
        )
