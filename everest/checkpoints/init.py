"""The weights that a run starts from: found by `find_init`, read and described by `read_start`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from everest.checkpoints.load import find_weights, open_encoder
from everest.errors import RecipeError
from everest.foreign.timm_images import is_timm_name, open_image_weights
from everest.models.positions import INTERPOLATED
from everest.models.spec import ModelSpec
from everest.system.files import absolute
from everest.system.hub import is_hub_name
from everest.system.run_environment import INIT, INIT_NAME, ORIGIN, Decoder, Init
from everest.system.run_folder import BEST, ENDED, ENVIRONMENT, PLAN, WEIGHTS, RunFolder
from everest.system.weights import Weights, state_hash


def find_init(
    name: str | Path, *, output: Path | None, overwrite: bool, decoder: Decoder | None = None
) -> Init:
    """Find the weights of --init.

    Args:
        output: the folder of the run. A run that is there, and is not to be overwritten, keeps the weights
            that it started from, even if these have been moved since.
    Raises:
        CheckpointError: no such checkpoint.
        RecipeError: `output` holds the weights, or its env.json is damaged; or the name is empty.
    """
    if name == "":
        raise RecipeError(
            "--init: missing; name the weights to start from (a run folder, a .safetensors file, "
            "hf:OWNER/NAME or timm:NAME), or none to train from scratch"
        )
    is_elsewhere = is_hub_name(name) or is_timm_name(name)
    name = str(name) if is_elsewhere else str(absolute(Path(name)))
    run = RunFolder(output) if output is not None and not overwrite else None
    if run is not None and run.read_env(INIT_NAME) == name:
        file = run.read_env(INIT)
        if not isinstance(file, str):
            raise RecipeError(f"{run.path / ENVIRONMENT}: damaged (init)")
        return Init(name=name, file=file, decoder=decoder)
    if is_timm_name(name):
        return Init(name=name, file=name, decoder=decoder)
    file = absolute(find_weights(name))
    if output is not None and output.resolve() in (file.parent, file.resolve().parent):
        raise RecipeError(f"--output {output}: holds the weights of --init; choose another folder")
    return Init(name=name, file=str(file), decoder=decoder)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The weights that a run starts from.

    Args:
        init: names them.
        origin: describes them, for the header of the run's weights and for env.json.
        saved: the model that they were saved of.
        weights: None for a run that has a state: its tensors are all there.
    """

    init: Init
    origin: dict[str, Any]
    saved: ModelSpec
    weights: Weights | None

    def notices(self) -> Iterator[str]:
        """Yield the name and step of the weights, and a warning if their own run has not reached its end."""
        file, name, step = Path(self.init.file), Path(self.init.name), self.origin.get("step")
        own = file.name in (WEIGHTS, BEST) and RunFolder(file.parent).is_run()
        plan = RunFolder(file.parent).read_env(PLAN) if own else None
        steps = plan.get("steps") if isinstance(plan, dict) else None
        shown = name.relative_to(Path.cwd()) if name.is_relative_to(Path.cwd()) else self.init.name
        reached = f", step {step}{f' of {steps}' if steps else ''}" if step else ""
        yield f"weights: encoder of {shown}{reached}"
        if not (isinstance(step, int) and isinstance(steps, int)) or step == steps:
            return
        rows = RunFolder(file.parent).rows()
        last = step if file.name == WEIGHTS else max((row["step"] for row in rows), default=0)
        if last < steps and not any(ENDED in row for row in rows):
            yield (
                f"warning: {shown} has not reached its last step ({last} of {steps}); let that run finish "
                "first, for a better encoder"
            )

    def other_rate(self, fps: float | None) -> str | None:
        """A notice if the weights were trained at another frame rate than `fps`, or None."""
        trained = (self.origin.get("clip") or {"fps": fps}).get("fps")
        if trained == fps:
            return None
        rate = "every frame" if trained is None else f"{trained:g} frames per second"
        value = "null" if trained is None else trained
        return f"the weights were trained on {rate} of a video; data.fps={value} does the same"

    def adapted(self, spec: ModelSpec) -> ModelSpec:
        """The spec of a new model, with the properties that it takes from the weights."""
        if spec.model.positions in INTERPOLATED:
            grid = self.saved.trained_grid
            spec = replace(spec, position_grid=(grid.t, grid.h, grid.w))
        if spec.kind == "pretrain" and self.saved.kind != "classifier":
            spec = replace(spec, norms=self.saved.norms)
        return spec


def read_start(init: Init, *, resumed: RunFolder | None) -> Start:
    """Read the weights of `init`, unless the run that is resumed already has a state.

    Raises:
        CheckpointError: damaged weights, of a program that needs `everest convert`, or of a tokenizer.
        RecipeError: env.json of the run is damaged.
    """
    source, weights = Path(init.file), None
    if resumed is not None and any(resumed.state.glob("step-*.safetensors")):
        origin = resumed.read_env(ORIGIN)
        if not (isinstance(origin, dict) and isinstance(origin.get("settings"), dict)):
            raise RecipeError(f"{resumed.path / ENVIRONMENT}: damaged (origin)")
    else:
        weights = open_image_weights(init.file) if is_timm_name(init.file) else open_encoder(source)
        origin = _origin(init.file, weights)
    saved = ModelSpec.from_settings(origin["settings"], source=source)
    return Start(init=init, origin=origin, saved=saved, weights=weights)


def _origin(file: str, weights: Weights) -> dict[str, Any]:
    """Describe weights, and what they were made from in turn."""
    before = weights.origin and {key: value for key, value in weights.origin.items() if key != "settings"}
    described = {
        "file": file,
        "kind": weights.kind,
        "recipe": weights.recipe,
        "step": weights.step,
        "sha256": state_hash(weights.tensors),
        "settings": weights.settings,
        "clip": weights.clip,
    }
    if before is not None and before.get("file") in (file, str(Path(file).parent)):  # of another program
        return {**before, **described, "step": None, "origin": None}
    return {**described, "origin": before}
