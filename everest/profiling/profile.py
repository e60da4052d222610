"""The cost of a recipe's stages, of a run planned on another GPU, and of the EVEREST paper's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from everest.checkpoints.frozen import spec_of_pretraining
from everest.config.heads import Head, named_heads
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.config.stage_settings import FinetuneSettings, PretrainSettings
from everest.config.yaml import read_yaml
from everest.engine.plan import plan_stage
from everest.errors import unknown_name
from everest.methods.learned import LearnedImportance
from everest.methods.ranked import ByImportance
from everest.models.cost import Macs, count_frozen_macs, count_macs, count_tokens
from everest.models.memory import bytes_per_clip, count_weights, frozen_bytes, training_bytes
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

PAPER_TABLES: Final = Path(__file__).with_name("paper_tables.yaml")
PAPER_GPUS: Final = 8  # the paper's memory figures are sums over the GPUs of its machine
SOFTMAX_COPIES: Final = 2.5  # tensors of tokens x tokens x heads that unfused attention saves
SUBJECTS: Final = {  # of the paper's tables
    1: "cost of pre-training and fine-tuning by backbone",
    3: "memory of pre-training by batch size",
    4: "time and memory of pre-training by method",
    5: "cost and memory of fine-tuning with and without EVEREST",
    10: "cost by the share of tokens kept (EVEREST) or masked (VideoMAE, ST-MAE), ViT-B",
    11: "cost of fine-tuning by backbone",
    12: "cost by the number of frames",
    15: "size, memory and cost by the number of convolutions in the embedding",
}


class StageCost:
    """The cost of one stage per clip; of `eval` per video, in which every view is a clip.

    Args:
        value_bytes: bytes of a value that is kept for the backward pass, by precision.
    Attributes:
        settings: the section of a stage that trains; None for `eval`.
        views: clips and crops of `eval`.
        model_state: bytes for any number of clips.
    """

    def __init__(self, recipe: Recipe, stage: StageName, *, value_bytes: int) -> None:
        self.spec = spec = stage_spec(recipe, stage)
        self.settings = settings = training_settings(recipe, stage)
        self.value_bytes = value_bytes
        counts, views = count_tokens(spec), recipe.eval
        self.tokens = {"total": counts.total, "kept": counts.kept} if stage != "pretrain" else asdict(counts)
        self.views = {"clips": views.clips, "crops": views.crops} if stage == "eval" else None
        weights, trains = count_weights(spec, settings), settings is not None
        self.parameters = weights.total
        self.trained_parameters = weights.trained if trains else 0
        self.model_state = weights.state_bytes(training=trains, bytes_per_value=value_bytes)
        self.frozen_network = "tokenizer" if spec.teacher is None else "teacher"
        if frozen := frozen_bytes(spec):
            self.model_state[self.frozen_network] = frozen

    @cached_property
    def macs(self) -> Macs:
        """Of the forward pass of one clip."""
        return count_macs(self.spec)

    @property
    def gmacs(self) -> float:
        """10^9 multiply-accumulates of the forward passes: what the papers print as "GFLOPs"."""
        return self.macs.total * (self.views["clips"] * self.views["crops"] if self.views else 1) / 1e9

    @cached_property
    def activation_bytes_per_clip(self) -> int:
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


def stage_spec(recipe: Recipe, stage: StageName) -> ModelSpec:
    """Return the module that a stage trains or evaluates; several heads become one with all their outputs."""
    if stage == "pretrain":
        return spec_of_pretraining(recipe)
    data = recipe.data
    count = 1 if data.task == "regression" else data.num_classes or DEFAULT_CLASSES
    heads = named_heads(data.heads or {}) or (Head(task=data.task, outputs=count),)
    spec = classifier_spec(recipe, heads)
    return replace(spec, selection=spec.selection.at_evaluation()) if stage == "eval" else spec


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
    costs = {stage: StageCost(recipe, stage, value_bytes=VALUE_BYTES[precision]).dump() for stage in STAGES}
    return {
        "backbone": recipe.model.backbone,
        "frames": recipe.data.frames,
        "size": recipe.data.size,
        "recipe": recipe.name,
        "precision": precision,
        "checkpointing": recipe.train.checkpointing,
        "stages": costs,
    }


# A planned run is arithmetic: FLOPs of the model over an assumed share of the GPU's peak, and seconds of the
# loader as measured on one machine. Nothing in it was measured on the GPU.
GIB: Final = 2**30
MEMORY_USED: Final = 0.9  # our choice: share of the memory; estimates do not cover everything
NARROW: Final = 768  # width of ViT-B, below which a step waits for the launches of its kernels
# Assumed shares of the peak in a training step without train.compile. Estimates for the step of ViT-B, from
# the traffic and the products of its kernels: 20 to 28 % of the 790 TFLOP/s that large products reach on an
# H200. Narrower models have smaller products. Products of float32 are slower, and everything else is not.
SHARE: Final = 0.2
NARROW_SHARE: Final = 0.1
FP32_SHARE: Final = 0.4
PASS_SECONDS: Final = 0.02  # between two passes: launches, the copy of the clips, waits (16 ms estimated)
USUAL_WORKERS: Final = 8  # our choice: cores for one GPU, if the recipe leaves the number of workers open
# CPU milliseconds (benchmarks/performance.md): a clip of 16 frames of H.264, 320 x 240, keyframes every 12;
# a further view of a decoded video; handing a clip over to the training process.
DECODE_MS, VIEW_MS, HAND_OVER_MS = 13.0, 1.9, 0.1
MS_FRAMES: Final = 16


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by its data sheet. Peaks are dense, with sums in float32."""

    name: str
    half_tflops: float  # 10^12 operations per second in bf16, or in fp16 without bf16
    fp32_tflops: float
    gib: float  # memory that the driver reports


GPUS: Final = {  # NVIDIA's data sheets of the SXM parts, of the Ada architecture, and of the T4
    "h200": Gpu("H200", half_tflops=989, fp32_tflops=67, gib=139),
    "a100": Gpu("A100 (80 GB)", half_tflops=312, fp32_tflops=19.5, gib=79),
    "4090": Gpu("RTX 4090", half_tflops=165, fp32_tflops=82.6, gib=23.5),
    "t4": Gpu("T4", half_tflops=65, fp32_tflops=8.1, gib=14.6),
}


def plan_pretraining(recipe: Recipe, gpu_name: str, *, videos: int, epochs: int | None) -> dict[str, Any]:
    """Estimate the pre-training of a recipe on one GPU.

    Args:
        gpu_name: of `GPUS`, in any case of letters.
        videos: in the training list.
        epochs: None takes the recipe's.

    Returns:
        The values of `"plan"` in `everest profile --json`: `hours` of the run, None if it does not fit;
        `fits`; `batch`, clips in one pass; `memory_gib`; `sentence`.
    """
    gpu = GPUS.get(gpu_name.lower())
    if gpu is None:
        raise unknown_name("--gpu", gpu_name, GPUS)
    stage = recipe.pretrain if epochs is None else replace(recipe.pretrain, epochs=epochs, steps=None)
    precision = precision_of(recipe)
    cost = StageCost(recipe, "pretrain", value_bytes=VALUE_BYTES[precision])
    state, clip_bytes = sum(cost.model_state.values()), cost.activation_bytes_per_clip
    largest = max(0, int(gpu.gib * GIB * MEMORY_USED) - state) // clip_bytes
    together = stage.views_per_decode  # clips that stay together in a pass
    plan = plan_stage(stage, num_videos=videos, processes=1, largest_micro_batch=max(largest, together))
    clips, fits = plan.steps * plan.batch_size, largest >= plan.micro_batch
    memory = (state + plan.micro_batch * clip_bytes) / GIB

    share = NARROW_SHARE if recipe.model.backbone_size.width < NARROW else SHARE
    share, peak = (FP32_SHARE, gpu.fp32_tflops) if precision == "fp32" else (share, gpu.half_tflops)
    passes = FORWARD_AND_BACKWARD + recipe.train.checkpointing  # the forward pass is repeated
    flops = 2 * (passes * cost.macs.total + (count_frozen_macs(cost.spec) or 0))
    step_seconds = clips * flops / (peak * 1e12 * share) + plan.steps * plan.accumulation * PASS_SECONDS
    workers = USUAL_WORKERS if recipe.train.workers == "auto" else max(recipe.train.workers, 1)
    ms = (DECODE_MS + VIEW_MS * (plan.views - 1)) / plan.views + HAND_OVER_MS
    ms *= cost.spec.offered_frames / MS_FRAMES
    loader_seconds = clips * ms / 1000 / workers
    hours = max(step_seconds, loader_seconds) / 3600

    run = f"Pre-training {recipe.model.backbone} on {videos:,} videos for {plan.epochs:,} epochs"
    limit = "reading videos" if loader_seconds > step_seconds else "the GPU"
    sentence = (
        f"{run} takes about {hours:.1f} hours on one {gpu.name}, limited by {limit}. It fits in memory: "
        f"{plan.micro_batch} clips per pass need about {memory:.1f} of {gpu.gib:g} GiB."
    )
    if not fits:
        sentence = (
            f"{run} does not fit on one {gpu.name}: one pass needs {memory:.1f} of {gpu.gib:g} GiB; "
            "try train.checkpointing=true, a smaller model, or shorter or smaller clips."
        )
    assumed = (
        f"Assumed, not measured: {share:.0%} of {peak:g} TFLOP/s, and {workers} workers at {1000 / ms:.0f} "
        "clips/s each (320 x 240, H.264); expect half to twice the time."
    )
    return {
        "gpu": gpu.name,
        "hours": hours if fits else None,
        "fits": fits,
        "batch": plan.micro_batch if fits else 0,
        "memory_gib": round(memory, 2),
        "sentence": f"{sentence} {assumed}",
    }


@cache
def cost_of(recipe: str, stage: StageName, overrides: tuple[str, ...]) -> StageCost:
    """The cost of a stage of a shipped recipe with overrides, in bf16."""
    return StageCost(load_recipe(recipe, overrides=overrides), stage, value_bytes=VALUE_BYTES["bf16"])


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """A printed figure, and what computes it: a row of paper_tables.yaml, which describes the keys."""

    table: int
    what: str
    printed: str
    unit: Literal["GMACs", "M parameters", "GB", "time"] = "GMACs"
    of: tuple[str, StageName, tuple[str, ...]] | None = None  # recipe, stage and overrides
    batch: int | None = None
    note: str = ""

    def dump(self) -> dict[str, Any]:
        """Return the values of `everest profile --paper --json`; `ours` is None if it must be measured.

        GB (10^9 bytes) are estimated for all GPUs, in bf16 with attention that is not fused, as the paper's.
        """
        ours = None
        if self.of is not None and self.unit != "GB":
            cost = cost_of(*self.of)
            ours = cost.gmacs if self.unit == "GMACs" else cost.parameters / 1e6
        elif self.of is not None and self.batch is not None:
            cost = cost_of(*self.of)
            clip = cost.activation_bytes_per_clip + softmax_bytes(cost.spec, VALUE_BYTES["bf16"])
            ours = (PAPER_GPUS * sum(cost.model_state.values()) + self.batch * clip) / 1e9
        row: dict[str, Any] = {"table": self.table, "what": self.what, "unit": self.unit}
        row |= {"paper": self.printed, "ours": ours, "note": self.note}
        if ours is not None:
            decimals = len(self.printed.partition(".")[2])
            row["rounded"] = f"{ours:.{decimals}f}"
            row["deviation_percent"] = 100 * (ours / float(self.printed) - 1)
        return row


def softmax_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """Estimate the bytes that unfused attention saves in addition: tokens x tokens per head and block."""
    tokens, size = count_tokens(spec), spec.model.backbone_size
    encoded = spec.model.class_token + spec.model.registers + tokens.visible
    squares = size.depth * size.heads * encoded**2
    if spec.is_autoencoder:
        squares += spec.model.decoder_depth * size.decoder_heads * (tokens.visible + tokens.target) ** 2
    return int(SOFTMAX_COPIES * bytes_per_value * squares)


def paper_figures() -> list[PaperFigure]:
    """Every cost figure of Tables 1, 3, 4, 5, 10, 11, 12 and 15."""
    rows = read_yaml(PAPER_TABLES.read_text("utf-8"), str(PAPER_TABLES))
    return TypeAdapter(list[PaperFigure]).validate_python(rows)
