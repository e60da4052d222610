"""The hours and the memory of a pre-training run on a GPU that is not in this machine, in words.

The estimate is arithmetic: FLOPs of the model over an assumed share of the GPU's peak, and seconds of the
loader as measured on one machine. Nothing in it was measured on the GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

from everest.config.settings import Recipe
from everest.engine.plan import plan_stage
from everest.errors import RecipeError, unknown_name
from everest.profiling.measure import largest_batch
from everest.profiling.profile import FORWARD_AND_BACKWARD, VALUE_BYTES, precision_of, stage_cost

GIB: Final = 2**30
NARROW: Final = 768  # width of ViT-B, below which a step waits for the launches of its kernels
# Assumed shares of the peak in a training step without train.compile. Estimates for the step of ViT-B, from
# the traffic and the products of its kernels: 20 to 28 % of the 790 TFLOP/s that large products reach on an
# H200. Narrower models have smaller products. Products of float32 are slower, and everything else is not.
SHARE: Final = 0.2
NARROW_SHARE: Final = 0.1
FP32_SHARE: Final = 0.4
PASS_SECONDS: Final = (
    0.02  # between two passes: launches, the copy of the clips, waits (16 ms in an estimate)
)
WORTH_HOURS: Final = 0.25  # our choice: that faster reading has to save to be suggested
USUAL_WORKERS: Final = 8  # our choice: cores for one GPU, if the recipe leaves the number of workers open
MOST_WORKERS: Final = 64  # our choice: more are not suggested
# CPU milliseconds (benchmarks/performance.md): a clip of 16 frames of H.264, 320 x 240, keyframes every 12;
# a further view of a decoded video; handing a clip over to the training process.
DECODE_MS, VIEW_MS, HAND_OVER_MS = 13.0, 1.9, 0.1
MS_FRAMES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU by its data sheet. Peaks are dense, with sums in float32."""

    name: str
    half_tflops: float  # 10^12 operations per second in bf16, or in fp16 without bf16
    fp32_tflops: float
    tf32_tflops: float | None  # of train.tf32; None: the GPU has none
    gib: float  # memory that the driver reports
    has_bf16: bool = True


GPUS: Final = {  # NVIDIA's data sheets of the SXM parts, of the Ada architecture, and of the T4
    "h200": Gpu(name="H200", half_tflops=989, fp32_tflops=67, tf32_tflops=494, gib=139),
    "a100": Gpu(name="A100 (80 GB)", half_tflops=312, fp32_tflops=19.5, tf32_tflops=156, gib=79),
    "4090": Gpu(name="RTX 4090", half_tflops=165, fp32_tflops=82.6, tf32_tflops=82.6, gib=23.5),
    "t4": Gpu(name="T4", half_tflops=65, fp32_tflops=8.1, tf32_tflops=None, gib=14.6, has_bf16=False),
}


def gpu_to_plan(name: str | None, *, videos: int | None, epochs: int | None) -> Gpu | None:
    """Returns the GPU of --gpu, in any case of letters; None if no plan is requested."""
    if name is None and (videos is not None or epochs is not None):
        raise RecipeError(f"--videos and --epochs plan a run on a GPU: add --gpu, one of {', '.join(GPUS)}")
    if name is None:
        return None
    if videos is None:
        raise RecipeError("--gpu plans a run: add --videos N, the number of training videos")
    if name.lower() not in GPUS:
        raise unknown_name("--gpu", name, GPUS)
    return GPUS[name.lower()]


def plan_pretraining(recipe: Recipe, gpu: Gpu, *, videos: int, epochs: int | None) -> dict[str, Any]:
    """Estimates the pre-training of a recipe on one GPU.

    Args:
        videos: in the training list.
        epochs: None takes the recipe's.
    Returns:
        The values of `"plan"` in `everest profile --json`: `hours` of the whole run, None if it does not fit;
        `gpu_hours` of the steps alone and `loader_hours` of the loader alone; `fits`; `batch`, clips in one
        pass; `memory_gib`; `assumed_share` of the peak; `sentence`.
    """
    stage = recipe.pretrain if epochs is None else replace(recipe.pretrain, epochs=epochs, steps=None)
    precision = precision_of(recipe)
    cost = stage_cost(recipe, "pretrain", value_bytes=VALUE_BYTES[precision])
    state = sum(cost.model_state.values())
    largest = largest_batch(
        memory=int(gpu.gib * GIB), state=state, bytes_per_clip=cost.activation_bytes_per_clip
    )
    unit = stage.clips_per_video  # clips that stay together in a pass
    plan = plan_stage(stage, num_videos=videos, processes=1, largest_micro_batch=max(largest, unit))
    fits = largest >= plan.micro_batch
    clips = plan.steps * plan.batch_size
    share, peak = _share_of_peak(recipe, gpu)
    passes = FORWARD_AND_BACKWARD + recipe.train.checkpointing  # the forward pass is repeated
    flops = 2 * (passes * cost.macs.total + (cost.frozen_macs or 0))
    seconds = clips * flops / (peak * 1e12 * share) + plan.steps * plan.accumulation * PASS_SECONDS
    gpu_hours = seconds / 3600
    workers = USUAL_WORKERS if recipe.train.workers == "auto" else max(recipe.train.workers, 1)
    ms = (DECODE_MS + VIEW_MS * (plan.views - 1)) / plan.views + HAND_OVER_MS
    ms *= cost.spec.offered_frames / MS_FRAMES
    loader_hours = clips * ms / 1000 / workers / 3600
    memory = state + (plan.micro_batch * cost.activation_bytes_per_clip)
    document: dict[str, Any] = {
        "gpu": gpu.name,
        "videos": videos,
        "epochs": plan.epochs,
        "hours": max(gpu_hours, loader_hours) if fits else None,
        "gpu_hours": gpu_hours,
        "loader_hours": loader_hours,
        "fits": fits,
        "batch": plan.micro_batch if fits else 0,
        "memory_gib": round(memory / GIB, 2),
        "assumed_share": share,
    }
    assumed = (
        f"Assumed, not measured: {share:.0%} of {peak:g} TFLOP/s, and {workers} workers at "
        f"{1000 / ms:.0f} clips/s each (320 x 240, H.264); expect half to "
        "twice the time."
    )
    run = f"Pre-training {recipe.model.backbone} on {videos:,} videos for {plan.epochs:,} epochs"
    return document | {
        "sentence": " ".join([*_words(recipe, gpu, plan.accumulation, workers, document, run), assumed])
    }


def _share_of_peak(recipe: Recipe, gpu: Gpu) -> tuple[float, float]:
    """The assumed share, and the peak in TFLOP/s that it is a share of."""
    share = NARROW_SHARE if recipe.model.backbone_size.width < NARROW else SHARE
    if precision_of(recipe) != "fp32":
        return share, gpu.half_tflops
    full = FP32_SHARE, gpu.fp32_tflops
    if not recipe.train.tf32 or gpu.tf32_tflops is None:
        return full
    return max(full, (share, gpu.tf32_tflops), key=math.prod)


def _words(
    recipe: Recipe, gpu: Gpu, accumulation: int, workers: int, document: dict[str, Any], run: str
) -> list[str]:
    """Returns the sentences about hours, memory and remedies."""
    between_views = recipe.pretrain.objective == "views"
    if not document["fits"]:
        remedy = "a smaller model, or shorter or smaller clips"
        if not recipe.train.checkpointing:
            remedy = f"train.checkpointing=true, or {remedy}"
        if between_views:  # all clips of a step are in one pass
            remedy = f"a smaller pretrain.batch_size, {remedy}"
        return [
            f"{run} does not fit on one {gpu.name}: one pass needs {document['memory_gib']:.1f} of "
            f"{gpu.gib:g} GiB; try {remedy}."
        ]
    parts = "one pass" if accumulation == 1 else f"each of the {accumulation} passes of a step"
    sentences = [
        f"{run} takes about {_duration(document['hours'])} on one {gpu.name} and fits: "
        f"{document['batch']} clips in {parts} need about {document['memory_gib']:.1f} of {gpu.gib:g} GiB."
    ]
    if not gpu.has_bf16 and recipe.train.precision == "auto":
        sentences.append(f"The {gpu.name} has no bf16: train.precision=auto is fp16 there.")
    elif not gpu.has_bf16 and recipe.train.precision == "bf16":
        sentences.append(f"The {gpu.name} has no bf16: this holds with train.precision=fp16.")
    if document["loader_hours"] > document["gpu_hours"] + WORTH_HOURS:
        ratio = document["loader_hours"] / document["gpu_hours"]
        enough = math.ceil(workers * ratio)
        remedy = f"a larger pretrain.{'views.number' if between_views else 'views_per_decode'}"
        if enough <= MOST_WORKERS:
            remedy = f"train.workers={enough} on as many cores, or {remedy}"
        sentences.append(
            f"Reading the videos limits it: the GPU alone needs {_duration(document['gpu_hours'])}. "
            f"Use {remedy}."
        )
    return sentences


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days ({hours:.0f} hours)"
    if hours >= 1:
        return f"{hours:.1f} hours"
    minutes = round(hours * 60)
    return f"{minutes} minutes" if minutes > 1 else "a minute"
