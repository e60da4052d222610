"""The options of commands that use a model: its checkpoint or exported file, and the lists of its test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from everest.errors import CheckpointError, RecipeError
from everest.system.run_folder import RECIPE_FILE as RUN_RECIPE
from everest.system.run_folder import Which
from everest_cli import options as o
from everest_cli.options import option, run_in_each_process
from everest_cli.output import Quiet, say

if TYPE_CHECKING:
    from everest.checkpoints.load import Kind
    from everest.config.settings import Recipe
    from everest.inference.opened_model import OpenedModel


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options of a command that runs a trained model on any videos; typer gives each a value."""

    checkpoint: str = o.CHECKPOINT
    recipe: str | None = o.CLIP_RECIPE
    keep: float | None = o.KEEP
    batch: int = o.BATCH
    data: Path | None = o.LIST_ROOT
    which: Which | None = o.WHICH
    gpus: str = option("--gpus auto|N|cpu|mps", "A GPU if any (auto), N GPUs, the CPU or MPS.", "auto")
    processes: int | None = o.PROCESSES

    @property
    def inputs(self) -> list[Path]:
        """The files that an output must not replace."""
        return [Path(self.recipe)] if self.recipe else []

    @property
    def changed(self) -> list[str]:
        """The given options that change the outputs."""
        return [
            f"--{name}"
            for name, value in vars(self).items()
            if value not in (None, getattr(type(self), name).default)
        ]

    def open(self, views: tuple[int | None, int | None], kind: Kind = "clips") -> OpenedModel:
        """Open the model in one process per device; see `OpenedModel.open`."""
        from everest.checkpoints.load import find_weights
        from everest.config.recipe import recipe_for_run
        from everest.inference.opened_model import OpenedModel

        weights = find_weights(self.checkpoint, which=self.which, quiet=Quiet.is_on)
        refuse_exported(
            weights,
            {
                "--recipe": self.recipe is not None,
                "--keep": self.keep is not None,
                "--which": self.which is not None,
                "--gpus": self.gpus not in ("auto", "cpu"),
            },
        )
        is_default = self.gpus == "auto" and self.processes is None
        cpu = False if is_default else run_in_each_process(self.gpus, self.processes)
        return OpenedModel.open(
            weights,
            kind=kind,
            recipe=recipe_for_run(self.recipe) if self.recipe else None,
            views=views,
            keep=self.keep,
            cpu=cpu,
            notify=say,
        )


def refuse_exported(weights: Path, options: Mapping[str, bool]) -> None:
    """Raise RecipeError for given options that an ONNX file cannot follow."""
    from everest.checkpoints.load import ONNX_SUFFIX

    refused = [name for name, is_given in options.items() if is_given]
    if refused and weights.suffix == ONNX_SUFFIX:
        raise RecipeError(
            f"{', '.join(refused)}: {weights} is exported and runs on the CPU as it is; take its checkpoint, "
            "or export it again"
        )


@dataclass(frozen=True, kw_only=True)
class LabeledListOptions:
    """The options of a command that measures a model on the lists of its run, or of another recipe."""

    checkpoint: str = o.CHECKPOINT
    recipe: str | None = option(
        "--recipe -r R", "Recipe to use instead of the run's.", callback=o.refuse_sweep
    )
    data: str | None = o.TEST_DATA
    overrides: list[str] | None = o.OVERRIDES
    which: Which | None = o.WHICH
    as_json: bool = o.AS_JSON

    def find(self) -> tuple[Path, Recipe]:
        """Find the weights, and read the recipe with the changes of the options."""
        from everest.checkpoints.load import ONNX_SUFFIX, find_recipe_beside, find_weights
        from everest.config.recipe import recipe_for_run

        weights = find_weights(self.checkpoint, which=self.which, quiet=Quiet.is_on)
        named, overrides, data = self.recipe or find_recipe_beside(weights), self.overrides or [], self.data
        if data is not None and Path(data).is_file():  # a list of videos to test on
            overrides = [f"data.test={json.dumps(Path(data).name)}", *overrides]
            data = str(Path(data).parent)
        if named is None and data is None:
            fix = "name the recipe of its run by --recipe, or the folder of its lists by --data"
            raise CheckpointError(f"{weights}: no {RUN_RECIPE} next to it; {fix}")
        if named is None and weights.suffix == ONNX_SUFFIX:
            from everest.checkpoints.graph import open_exported

            overrides = [*open_exported(weights).overrides, *overrides]
        elif named is None:
            from everest.checkpoints.describe import read_weight_settings

            settings = read_weight_settings(str(weights))
            say(f"weights: {settings.title}")
            overrides = [*settings.overrides, *overrides]
        recipe = recipe_for_run(
            named or o.ANY_VIDEOS, data=data, overrides=overrides, imports=self.recipe is not None
        )
        return weights, recipe
