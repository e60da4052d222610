"""The cost of a recipe's stages: the values of `everest profile`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import Any, Final, Literal

from everest.checkpoints.frozen import spec_of_pretraining
from everest.config.heads import Head, named_heads
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.config.stage_settings import FinetuneSettings, PretrainSettings
from everest.errors import unknown_name
from everest.methods.learned import LearnedImportance
from everest.methods.ranked import ByImportance
from everest.models.cost import Macs, count_frozen_macs, count_macs, count_tokens
from everest.models.memory import WeightCounts, count_weights, frozen_bytes, inference_bytes, training_bytes
from everest.models.partial import frozen_layers
from everest.models.spec import ModelSpec, classifier_spec

StageName = Literal["pretrain", "finetune", "eval"]
STAGES: Final[tuple[StageName, ...]] = ("pretrain", "finetune", "eval")
# A method is the shipped recipe that has its selection, target and decoder; the schedule is the same.
METHODS: Final = {
    "everest": "k400",
    "videomae": "videomae-k400",
    "st-mae": "st-mae-k400",
    "videomae-v2": "videomae-v2-k400",
}
RANKS: Final = (ByImportance, LearnedImportance)  # strategies whose keep ratio `--keep` sets
DEFAULT_CLASSES: Final = 400  # Kinetics-400, for recipes that take the number of classes from the data
FORWARD_AND_BACKWARD: Final = 3  # a backward pass computes about twice what the forward pass does
VALUE_BYTES: Final = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """The cost of one stage per clip; of `eval` per video, in which every view is a clip.

    Attributes:
        settings: the section of a stage that trains; None for `eval`.
        value_bytes: bytes of a value that is kept for the backward pass, by precision.
        views: clips and crops of `eval`.
    """

    spec: ModelSpec
    settings: PretrainSettings | FinetuneSettings | None
    value_bytes: int
    tokens: dict[str, int]
    views: dict[str, int] | None

    @cached_property
    def macs(self) -> Macs:
        """Of the forward pass of one clip."""
        return count_macs(self.spec)

    @property
    def gmacs(self) -> float:
        """10^9 multiply-accumulates of the forward passes: what the papers print as "GFLOPs"."""
        return self.macs.total * (self.views["clips"] * self.views["crops"] if self.views else 1) / 1e9

    @cached_property
    def frozen_macs(self) -> int | None:
        """Of the tokenizer or the teacher that a training step runs, if it runs one."""
        return count_frozen_macs(self.spec)

    @cached_property
    def activation_bytes_per_clip(self) -> int:
        if self.settings is None:
            return inference_bytes(self.spec, self.value_bytes)
        return training_bytes(self.spec, self.value_bytes, frozen_layers=self._frozen_layers)

    @property
    def parameters(self) -> int:
        return self._weights.total

    @property
    def trained_parameters(self) -> int:
        return 0 if self.settings is None else self._weights.trained

    @cached_property
    def model_state(self) -> dict[str, int]:
        """Bytes for any number of clips."""
        state = self._weights.state_bytes(
            training=self.settings is not None, bytes_per_value=self.value_bytes
        )
        frozen = frozen_bytes(self.spec)
        return state | ({self._frozen_kind: frozen} if frozen else {})

    @cached_property
    def _weights(self) -> WeightCounts:
        return count_weights(self.spec, self.settings)

    @property
    def _frozen_layers(self) -> int:
        return frozen_layers(self.settings, self.spec.model.backbone_size.depth)

    @property
    def _frozen_kind(self) -> str:
        return "tokenizer" if self.spec.teacher is None else "teacher"

    def dump(self) -> dict[str, Any]:
        """Return the values of `everest profile --json`."""
        row: dict[str, Any] = {"gmacs": self.gmacs, "gflops": 2 * self.gmacs}
        if self.settings is not None:
            macs = self.macs.training(self.spec, frozen_layers=self._frozen_layers)
            row["training_gflops"] = None if self.settings.lora.rank else 2 * macs / 1e9  # adapters: unknown
            row["trained_parameters"] = self.trained_parameters
        if self.frozen_macs is not None:
            row[f"{self._frozen_kind}_gmacs"] = self.frozen_macs / 1e9
        if self.views:
            row["views"] = self.views
        return row | {
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
    """
    spec = stage_spec(recipe, stage)
    counts = count_tokens(spec)
    return StageCost(
        spec=spec,
        settings=training_settings(recipe, stage),
        value_bytes=value_bytes,
        tokens=asdict(counts) if stage == "pretrain" else {"total": counts.total, "kept": counts.kept},
        views={"clips": recipe.eval.clips, "crops": recipe.eval.crops} if stage == "eval" else None,
    )


def training_settings(recipe: Recipe, stage: StageName) -> PretrainSettings | FinetuneSettings | None:
    """Return the section of a stage that trains; None for `eval`."""
    return {"pretrain": recipe.pretrain, "finetune": recipe.finetune, "eval": None}[stage]


def precision_of(recipe: Recipe) -> str:
    """Return the precision that estimates assume; `auto` means bf16, as on a GPU."""
    return "bf16" if recipe.train.precision == "auto" else recipe.train.precision


def recipe_of(method: str) -> str:
    """The shipped recipe of a method of `METHODS`; underscores are accepted for hyphens."""
    name = method.replace("_", "-")
    if name not in METHODS:
        raise unknown_name("--method", name, METHODS)
    return METHODS[name]


def changed_recipe(
    name: str,
    *,
    backbone: str | None = None,
    frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    keep: float | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """Load a recipe with the values that are given; `keep` applies to strategies that rank tokens."""
    ranks = isinstance(load_recipe(name).pretrain.selection, RANKS)
    values = {
        "model.backbone": backbone,
        "data.frames": frames,
        "data.size": list(size) if isinstance(size, tuple) else size,
        "pretrain.selection.keep_ratio": keep if ranks else None,
    }
    given = [f"{key}={value}" for key, value in values.items() if value is not None]
    return load_recipe(name, overrides=[*given, *overrides])


def profile(recipe: Recipe) -> dict[str, Any]:
    """Compute the cost of all stages, in the form that `everest profile --json` prints."""
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
