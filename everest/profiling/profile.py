"""The cost of a recipe's stages: tokens, multiply-accumulates, parameters and memory."""

from __future__ import annotations

from dataclasses import asdict, replace
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
from everest.models.cost import count_frozen_macs, count_macs, count_tokens
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


def stage_cost(recipe: Recipe, stage: ProfiledStage, *, bytes_per_value: int) -> dict[str, Any]:
    """Compute the cost of one stage per clip, or for `eval` per video, where every view is a clip.

    Args:
        bytes_per_value: bytes of a value that is saved for the backward pass; depends on the precision.
    Returns:
        The values of a stage of `everest profile --json`. `gmacs` are 10^9 multiply-accumulates of the
        forward passes, which the papers print as "GFLOPs"; `model_state` does not depend on the number of
        clips.
    """
    spec, settings = make_stage_spec(recipe, stage), training_settings(recipe, stage)
    tokens, weights = count_tokens(spec), count_weights(spec, settings)
    frozen_network = "teacher" if getattr(spec, "teacher", None) else "tokenizer"
    model_state = weights.state_bytes(training=settings is not None, bytes_per_value=bytes_per_value)
    if frozen := frozen_bytes(spec):
        model_state[frozen_network] = frozen
    if settings is None:
        clip_bytes = bytes_per_clip(spec, bytes_per_value, trains=False)
    else:
        clip_bytes = training_bytes(spec, bytes_per_value, settings)
    views = recipe.eval.clips * recipe.eval.crops if stage == "eval" else 1
    gmacs = count_macs(spec).total * views / 1e9
    row: dict[str, Any] = {"gmacs": gmacs, "gflops": 2 * gmacs}
    if settings is not None:
        row["trained_parameters"] = weights.trained
    if (frozen_macs := count_frozen_macs(spec)) is not None:
        row[f"{frozen_network}_gmacs"] = frozen_macs / 1e9
    if stage == "eval":
        row["views"] = {"clips": recipe.eval.clips, "crops": recipe.eval.crops}
    return row | {
        "parameters": weights.total,
        "tokens": asdict(tokens) if stage == "pretrain" else {"total": tokens.total, "kept": tokens.kept},
        "activation_bytes_per_clip": clip_bytes,
        "model_state_bytes": sum(model_state.values()),
        "model_state": model_state,
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


def profile(recipe: Recipe) -> dict[str, Any]:
    """Compute the cost of all stages; return the document of `everest profile --json`."""
    # `auto` means bf16, as on a GPU.
    precision = "bf16" if recipe.train.precision == "auto" else recipe.train.precision
    return {
        "backbone": recipe.model.backbone,
        "frames": recipe.data.frames,
        "size": recipe.data.size,
        "recipe": recipe.name,
        "precision": precision,
        "checkpointing": recipe.train.checkpointing,
        "stages": {x: stage_cost(recipe, x, bytes_per_value=VALUE_BYTES[precision]) for x in PROFILED_STAGES},
    }
