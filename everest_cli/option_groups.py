"""Groups of options that several commands share: dataclasses whose fields typer reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from everest.errors import RecipeError
from everest.system.launch import read_devices
from everest_cli import options as o
from everest_cli.option_values import read_recipe
from everest_cli.output import say

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.inference.model import OpenedModel
    from everest.search.feature_file import FeatureFile


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Turn each parameter of a command that is annotated by a dataclass into the options in its fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            kinds = get_type_hints(hints[name], include_extras=True)
            parameters += [
                Parameter(
                    field.name,
                    Parameter.KEYWORD_ONLY,
                    default=Parameter.empty if field.default is MISSING else field.default,
                    annotation=kinds[field.name],
                )
                for field in fields(groups[name])
            ]
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name]))

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    # typer reads the options of a command from its signature and its annotations.
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = command.__doc__
    return run


def is_on_cpu(gpus: str) -> bool:
    """Choose the device of a command that uses one; returns whether it is the CPU.

    Args:
        gpus: the value of --gpus.
    Raises:
        RecipeError: it names several GPUs, or nothing that is known.
        EnvironmentProblem: a GPU that this machine does not have.
    """
    if gpus in ("auto", "cpu"):
        return gpus == "cpu"
    devices = read_devices(gpus, None)
    if devices.processes > 1:
        raise RecipeError(f"--gpus {gpus}: this command uses one device; give auto, 1, cpu or mps")
    os.environ.update(devices.environment)
    return False


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options of a command that runs a trained model on any videos."""

    checkpoint: o.Checkpoint
    recipe: o.HowSeen = None
    keep: o.Keep = None
    batch: o.Batch = 1
    data: o.ListRoot = None
    which: o.WhichWeights = None
    gpus: o.OneGpu = "auto"
    quiet: o.Quiet = False

    @property
    def inputs(self) -> list[Path]:
        """The files that an output must not replace."""
        return [Path(self.recipe)] if self.recipe else []

    @property
    def changed(self) -> list[str]:
        """The names of the options that were given and change the outputs."""
        options = (field for field in fields(self) if field.name != "quiet")
        return [option.name for option in options if getattr(self, option.name) not in (None, option.default)]

    def open(self, *, clips: int | None = None, crops: int | None = None) -> OpenedModel:
        """Open the model on its device.

        Args:
            clips, crops: views of a video; None: as in the evaluation.
        """
        from everest.checkpoints.load import find_weights
        from everest.inference.model import OpenedModel

        return OpenedModel.open(
            find_weights(self.checkpoint, which=self.which, quiet=self.quiet),
            recipe=read_recipe(self.recipe) if self.recipe else None,
            clips=clips,
            crops=crops,
            keep=self.keep,
            cpu=is_on_cpu(self.gpus),
            notify=say,
        )


@dataclass(frozen=True, kw_only=True)
class WriterOptions:
    """The options that open the model that wrote a file of features, for a command that may need it."""

    checkpoint: o.Writer = None
    recipe: o.HowSeen = None

    def open(self, file: FeatureFile) -> OpenedModel | None:
        """Open the model on its device, with the views of a file; None if no checkpoint is given."""
        if self.checkpoint is None:
            return None
        given = {**vars(self), "checkpoint": self.checkpoint, "keep": file.keep, "quiet": True}
        return ModelOptions(**given).open(clips=file.clips, crops=file.crops)


@dataclass(frozen=True, kw_only=True)
class LabeledListOptions:
    """The options of a command that measures a model on the lists of its run, or of another recipe."""

    checkpoint: o.Checkpoint
    recipe: o.OtherRecipe = None
    data: o.DataRoot = None
    overrides: o.Overrides = None
    which: o.WhichWeights = None
    as_json: o.AsJson = False
    quiet: o.Quiet = False

    def find(self) -> tuple[Path, Recipe]:
        """Find the weights, and read the recipe with the changes of the options."""
        from everest.checkpoints.load import find_weights, recipe_of_run

        weights = find_weights(self.checkpoint, which=self.which, quiet=self.quiet)
        recipe = read_recipe(
            self.recipe or str(recipe_of_run(weights)),
            data=self.data,
            overrides=self.overrides,
            imports=self.recipe is not None,
        )
        return weights, recipe
