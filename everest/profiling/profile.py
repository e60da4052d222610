"""The cost of a recipe's stages: tokens, multiply-accumulates, parameters and memory."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Final, Literal

from everest.checkpoints.frozen import find_frozen
from everest.config.heads import Head, named_heads
from everest.config.settings import Recipe
from everest.config.stage_settings import (
    STAGES,
    FinetuneSettings,
    PretrainSettings,
    StageName,
)
from everest.models.clip_spec import ModelSpec
from everest.models.cost import Macs, count_frozen_macs, count_macs, count_tokens
from everest.models.memory import bytes_per_clip, count_weights, frozen_bytes, training_bytes
from everest.models.spec import classifier_spec, pretrain_spec

ProfiledStage = StageName | Literal["eval"]
PROFILED_STAGES: Final[tuple[ProfiledStage, ...]] = (*STAGES, "eval")
# Each method is a shipped recipe with its selection, target and decoder; the schedule is the same.
METHODS: Final = {
    "everest": "k400",
    "videomae": "videomae-k400",
    "st-mae": "st-mae-k400",
    "videomae-v2": "videomae-v2-k400",
}
DEFAULT_CLASSES: Final = 400  # Kinetics-400, for recipes that take the number of classes from the data
VALUE_BYTES: Final = {"fp32": 4, "fp16": 2, "bf16": 2}


class StageCost:
    """The cost of one stage per clip, or for `eval` per video, where every view is a clip.

    Args:
        value_bytes: bytes of a value that is saved for the backward pass; depends on the precision.
    Attributes:
        settings: the section of a stage that trains; None for `eval`.
        views: number of views in `eval`.
        model_state: bytes that do not depend on the number of clips.
    """

    def __init__(self, recipe: Recipe, stage: ProfiledStage, *, value_bytes: int) -> None:
        self.spec = spec = make_stage_spec(recipe, stage)
        self.settings = settings = training_settings(recipe, stage)
        self.value_bytes = value_bytes
        counts = count_tokens(spec)
        views = recipe.eval
        self.tokens = {"total": counts.total, "kept": counts.kept} if stage != "pretrain" else asdict(counts)
        self.views = {"clips": views.clips, "crops": views.crops} if stage == "eval" else None
        weights = count_weights(spec, settings)
        self.parameters = weights.total
        self.trained_parameters = 0 if settings is None else weights.trained
        self.model_state = weights.state_bytes(training=settings is not None, bytes_per_value=value_bytes)
        self.frozen_network = "teacher" if getattr(spec, "teacher", None) else "tokenizer"
        if frozen := frozen_bytes(spec):
            self.model_state[self.frozen_network] = frozen

    @cached_property
    def macs(self) -> Macs:
        """The multiply-accumulates of the forward pass of one clip."""
        return count_macs(self.spec)

    @property
    def gmacs(self) -> float:
        """10^9 multiply-accumulates of the forward passes: what the papers print as "GFLOPs"."""
        return self.macs.total * (self.views["clips"] * self.views["crops"] if self.views else 1) / 1e9

    @cached_property
    def activation_bytes_per_clip(self) -> int:
        """The bytes that each clip of a pass adds, in training or in evaluation."""
        if self.settings is None:
            return bytes_per_clip(self.spec, self.value_bytes, trains=False)
        return training_bytes(self.spec, self.value_bytes, self.settings)

    def dump(self) -> dict[str, Any]:
        """Return the values of `everest profile --json`."""
        row: dict[str, Any] = {"gmacs": self.gmacs, "gflops": 2 * self.gmacs}
        if self.settings is not None:
            row["trained_parameters"] = self.trained_parameters
        if (frozen := count_frozen_macs(self.spec)) is not None:
            row[f"{self.frozen_network}_gmacs"] = frozen / 1e9
        if self.views:
            row["views"] = self.views
        return row | {
            "parameters": self.parameters,
            "tokens": self.tokens,
            "activation_bytes_per_clip": self.activation_bytes_per_clip,
            "model_state_bytes": sum(self.model_state.values()),
            "model_state": self.model_state,
        }


def make_stage_spec(recipe: Recipe, stage: ProfiledStage) -> ModelSpec:
    """Return the spec of the model of a stage; several heads are merged into one with all their outputs."""
    if stage == "pretrain":
        return pretrain_spec(recipe, find_frozen(recipe))
    data = recipe.data
    count = 1 if data.task == "regression" else data.num_classes or DEFAULT_CLASSES
    heads = named_heads(data.heads or {}) or (Head(task=data.task, outputs=count),)
    spec = classifier_spec(recipe, heads)
    return replace(spec, selection=spec.selection.at_evaluation()) if stage == "eval" else spec


def training_settings(recipe: Recipe, stage: ProfiledStage) -> PretrainSettings | FinetuneSettings | None:
    """Return the section of a stage that trains; None for `eval`."""
    return {"pretrain": recipe.pretrain, "finetune": recipe.finetune, "eval": None}[stage]


def choose_precision(recipe: Recipe) -> str:
    """Return the precision that estimates assume; `auto` means bf16, as on a GPU."""
    return "bf16" if recipe.train.precision == "auto" else recipe.train.precision


def profile(recipe: Recipe) -> dict[str, Any]:
    """Compute the cost of all stages; return the document of `everest profile --json`."""
    precision = choose_precision(recipe)
    costs = {
        stage: StageCost(recipe, stage, value_bytes=VALUE_BYTES[precision]).dump()
        for stage in PROFILED_STAGES
    }
    return {
        "backbone": recipe.model.backbone,
        "frames": recipe.data.frames,
        "size": recipe.data.size,
        "recipe": recipe.name,
        "precision": precision,
        "checkpointing": recipe.train.checkpointing,
        "stages": costs,
    }
