"""The cost of a recipe's stages: the values of `everest profile`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Final, Literal

from everest.checkpoints.pretraining_spec import spec_of_pretraining
from everest.config.heads import Head, named_heads
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.config.stage_settings import FinetuneSettings, PretrainSettings
from everest.methods.ranked import ByChange
from everest.models.cost import Macs, count_frozen_macs, count_macs, count_tokens, training_macs
from everest.models.memory import count_weights, frozen_bytes, inference_bytes, training_bytes
from everest.models.of_recipe import classifier_spec
from everest.models.partial import frozen_layers
from everest.models.spec import ModelSpec
from everest.profiling.uncommon_costs import ST_MAE, camera_operations, released_macs

StageName = Literal["pretrain", "finetune", "eval"]
STAGES: Final[tuple[StageName, ...]] = ("pretrain", "finetune", "eval")
# A method is the shipped recipe that has its selection, target and decoder; the schedule is the same.
METHODS: Final = {
    "everest": "k400",
    "videomae": "videomae-k400",
    "st-mae": ST_MAE,
    "videomae-v2": "videomae-v2-k400",
}
DEFAULT_CLASSES: Final = 400  # Kinetics-400, for recipes that take the number of classes from the data
FORWARD_AND_BACKWARD: Final = 3  # a backward pass computes about twice what the forward pass does
VALUE_BYTES: Final = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """The cost of one stage per clip; of `eval` per video, in which every view is a clip."""

    macs: Macs
    parameters: int
    trained_parameters: int  # eval: 0
    tokens: dict[str, int]
    activation_bytes_per_clip: int
    model_state: dict[str, int]  # bytes, for any number of clips; frozen ones: `frozen_bytes`
    training_macs: int | None = None  # forward and backward; not known for eval and for adapters
    views: dict[str, int] | None = None  # eval: clips, crops
    camera_operations: int | None = None  # of a selection that estimates the motion of the camera
    tokenizer_macs: int | None = None  # of the frozen tokenizer, if the recipe has one
    teacher_macs: int | None = None  # of the frozen teacher, if the recipe has one
    released_macs: Macs | None = None  # of the method's released program, where it has another model

    @property
    def passes(self) -> int:
        return self.views["clips"] * self.views["crops"] if self.views else 1

    @property
    def gmacs(self) -> float:
        """10^9 multiply-accumulates of the forward passes: what the papers print as "GFLOPs"."""
        return self.macs.total * self.passes / 1e9

    def dump(self) -> dict[str, Any]:
        """Return the values of `everest profile --json`."""
        row: dict[str, Any] = {"gmacs": self.gmacs, "gflops": 2 * self.gmacs}
        if not self.views:
            both = self.training_macs
            row["training_gflops"] = None if both is None else 2 * both / 1e9
        if self.tokenizer_macs is not None:
            row["tokenizer_gmacs"] = self.tokenizer_macs / 1e9
        if self.teacher_macs is not None:
            row["teacher_gmacs"] = self.teacher_macs / 1e9
        if self.camera_operations is not None:
            row["camera_gflops"] = self.camera_operations * self.passes / 1e9
        if not self.views:
            row["trained_parameters"] = self.trained_parameters
        if self.released_macs is not None:
            row["released_gmacs"] = self.released_macs.total * self.passes / 1e9
        if self.views:
            row |= {"views": self.views, "gmacs_per_view": self.macs.total / 1e9}
        return row | {
            "gmacs_by_kind": {kind: macs * self.passes / 1e9 for kind, macs in asdict(self.macs).items()},
            "parameters": self.parameters,
            "tokens": self.tokens,
            "activation_bytes_per_clip": self.activation_bytes_per_clip,
            "model_state_bytes": sum(self.model_state.values()),
            "model_state": self.model_state,
        }


def stage_spec(recipe: Recipe, stage: StageName) -> ModelSpec:
    """Return the module that a stage trains or evaluates; several heads become one with all their outputs."""
    if stage == "pretrain":
        return spec_of_pretraining(recipe)
    data = recipe.data
    count = 1 if data.task == "regression" else data.num_classes or DEFAULT_CLASSES
    heads = named_heads(data.heads or {}) or (Head(task=data.task, outputs=count),)
    spec = classifier_spec(recipe, heads)
    return replace(spec, selection=spec.selection.at_evaluation()) if stage == "eval" else spec


def stage_cost(recipe: Recipe, stage: StageName, *, value_bytes: int) -> StageCost:
    """Compute the cost of one stage of a recipe.

    Args:
        value_bytes: bytes of a value that is kept for the backward pass, by precision.
    Raises:
        RecipeError: its selection keeps no token.
    """
    spec = stage_spec(recipe, stage)
    counts = count_tokens(spec)
    tokens = asdict(counts) if stage == "pretrain" else {"total": counts.total, "kept": counts.kept}
    evaluated = stage == "eval"
    settings = training_settings(recipe, stage)
    weights = count_weights(spec, settings)
    frozen = frozen_layers(settings, spec.model.backbone_size.depth)
    kind = "tokenizer" if spec.teacher is None else "teacher"
    frozen_network = frozen_bytes(spec, value_bytes)
    selection, camera = spec.selection, None
    if isinstance(selection, ByChange) and selection.sees_camera:
        camera = camera_operations(
            size=spec.size,
            frames=spec.offered_frames,
            channels=spec.channels,
            lag=selection.lag(spec.model.tubelet[0]),
            align=selection.align,
        )
    return StageCost(
        macs=count_macs(spec),
        parameters=weights.total,
        trained_parameters=0 if evaluated else weights.trained,
        tokens=tokens,
        activation_bytes_per_clip=(
            inference_bytes(spec, value_bytes)
            if evaluated
            else training_bytes(spec, value_bytes, frozen_layers=frozen)
        ),
        model_state=weights.state_bytes(training=not evaluated, bytes_per_value=value_bytes)
        | ({kind: frozen_network} if frozen_network else {}),
        camera_operations=camera,
        **{f"{kind}_macs": count_frozen_macs(spec)},
        released_macs=released_macs(spec) if recipe.name == ST_MAE else None,
        training_macs=(
            None if settings is None or settings.lora.rank else training_macs(spec, frozen_layers=frozen)
        ),
        views={"clips": recipe.eval.clips, "crops": recipe.eval.crops} if evaluated else None,
    )


def training_settings(recipe: Recipe, stage: StageName) -> PretrainSettings | FinetuneSettings | None:
    """Return the section of a stage that trains; None for `eval`."""
    return {"pretrain": recipe.pretrain, "finetune": recipe.finetune, "eval": None}[stage]


def precision_of(recipe: Recipe) -> str:
    """Return the precision that estimates assume; `auto` means bf16, as on a GPU."""
    return "bf16" if recipe.train.precision == "auto" else recipe.train.precision


def profile(recipe: Recipe) -> dict[str, Any]:
    """Compute the cost of all stages, in the form that `everest profile --json` prints.

    Raises:
        RecipeError: the selection of a stage keeps no token.
    """
    precision = precision_of(recipe)
    costs = {stage: stage_cost(recipe, stage, value_bytes=VALUE_BYTES[precision]).dump() for stage in STAGES}
    return {
        "backbone": recipe.model.backbone,
        "frames": recipe.data.frames,
        "size": recipe.data.size,
        "recipe": recipe.name,
        "precision": precision,
        "checkpointing": recipe.train.checkpointing,
        "stages": costs,
    }


@cache
def cost_of(recipe: str, stage: StageName, overrides: tuple[str, ...]) -> StageCost:
    """Compute the cost of a stage of a shipped recipe with overrides, in bf16."""
    return stage_cost(load_recipe(recipe, overrides=overrides), stage, value_bytes=VALUE_BYTES["bf16"])
