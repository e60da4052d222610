"""The image weights of a project, adapted to its unlabeled videos by the recipe `adapt`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from everest import stages
from everest.checkpoints.init import recipe_for_init
from everest.config.recipe import recipe_values
from everest.config.run_options import RunOptions
from everest.config.settings import Recipe
from everest.profiling.timing import measure_stage
from everest.system.events import Emit
from everest.system.run_folder import RunFolder
from everest_workflows.suggest.suggestion import StageTime

ADAPT: Final = "adapt"  # the recipe
# What the adapted encoder shares with the other candidates: the videos, and the clips.
DATA_KEYS: Final = ("root", "pretrain", "frames", "size", "fps", "channels", "mean", "std", "flip")
MEASURED_CLIPS: Final = 2  # of a timed step; image weights are larger than what a CPU trains


def measure_adaptation(recipe: Recipe, init: str, overrides: Sequence[str], *, on_cpu: bool) -> StageTime:
    """The steps of the adaptation of a project's weights, and their time at the speed of this machine."""
    changes = _list_changes(recipe, overrides)
    options = RunOptions(stage="pretrain", recipe_file=ADAPT, init=init, overrides=changes)
    adapting = recipe_for_init(options)
    speed = measure_stage(adapting, "pretrain", batch=MEASURED_CLIPS, cpu=on_cpu, reads=True)
    section = adapting.pretrain
    assert section.steps is not None
    seconds = section.steps * section.batch_size * speed.seconds(1)
    return StageTime("pretrain", section.steps, section.batch_size, 1 / speed.seconds(1), round(seconds))


def adapt_weights(recipe: Recipe, init: str, overrides: Sequence[str], output: Path, emit: Emit) -> Path:
    """Adapt the weights in a run folder, or resume it there; returns the folder."""
    return stages.pretrain(
        ADAPT,
        output=output,
        init=init,
        overrides=_list_changes(recipe, overrides),
        overwrite=not RunFolder(output).is_run(),  # as in Comparison.train_stage
        emit=emit,
    )


def _list_changes(recipe: Recipe, overrides: Sequence[str]) -> list[str]:
    """The changes of `adapt`: the project's videos and clips, and what is asked for of its stage."""
    data: dict[str, Any] = recipe_values(recipe)["data"]
    of_stage = [text for text in overrides if text.startswith(("pretrain.", "train."))]
    return [*(f"data.{key}={json.dumps(data[key])}" for key in DATA_KEYS), *of_stage]
