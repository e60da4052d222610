"""The hours and the memory of pre-training on another GPU, without measuring anything on it.

A planned run is arithmetic: FLOPs of the model over an assumed share of the GPU's peak, and seconds of the
loader as measured on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from everest.config.settings import Recipe
from everest.engine.plan import StagePlan, plan_stage
from everest.errors import unknown_name
from everest.models.cost import count_frozen_macs
from everest.profiling.profile import VALUE_BYTES, StageCost, precision_of

GIB: Final = 2**30
FORWARD_AND_BACKWARD: Final = 3  # a backward pass computes about twice what the forward pass does
MEMORY_USED: Final = 0.9  # heuristic: share of the memory; estimates do not cover everything
NARROW: Final = 768  # width of ViT-B, below which a step waits for the launches of its kernels
# Assumed shares of the peak in a training step without train.compile. Estimates for the step of ViT-B, from
# the traffic and the products of its kernels: 20 to 28 % of the 790 TFLOP/s that large products reach on an
# H200. Narrower models have smaller products. Products of float32 are slower, and everything else is not.
SHARE: Final = 0.2
NARROW_SHARE: Final = 0.1
FP32_SHARE: Final = 0.4
PASS_SECONDS: Final = 0.02  # between two passes: launches, the copy of the clips, waits (16 ms estimated)
USUAL_WORKERS: Final = 8  # default: cores for one GPU, if the recipe leaves the number of workers open
# CPU milliseconds (benchmarks/performance.md): a clip of 16 frames of H.264, 320 x 240, keyframes every 12;
# a further view of a decoded video; handing a clip over to the training process.
DECODE_MS: Final = 13.0
VIEW_MS: Final = 1.9
HAND_OVER_MS: Final = 0.1
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
    """Estimate the pre-training of a recipe on one GPU, `gpu_name` of `GPUS` in any case of letters.

    Args:
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
    cost = StageCost(recipe, "pretrain", value_bytes=VALUE_BYTES[precision_of(recipe)])
    state_bytes = sum(cost.model_state.values())
    clip_bytes = cost.activation_bytes_per_clip
    largest = max(0, int(gpu.gib * GIB * MEMORY_USED) - state_bytes) // clip_bytes
    together = stage.views_per_decode  # clips that stay together in a pass
    plan = plan_stage(stage, num_videos=videos, processes=1, largest_micro_batch=max(largest, together))
    fits = largest >= plan.micro_batch
    memory = (state_bytes + plan.micro_batch * clip_bytes) / GIB
    run = f"Pre-training {recipe.model.backbone} on {videos:,} videos for {plan.epochs:,} epochs"
    gpu_seconds, speed_text = _gpu_time(recipe, cost, plan, gpu)
    loader_seconds, loader_text = _loader_time(recipe, cost, plan)
    hours = max(gpu_seconds, loader_seconds) / 3600
    limit = "reading videos" if loader_seconds > gpu_seconds else "the GPU"
    sentence = (
        f"{run} takes about {hours:.1f} hours on one {gpu.name}, limited by {limit}. It fits in memory: "
    )
    need = f"{memory:.1f} of {gpu.gib:g} GiB"
    sentence += f"{plan.micro_batch} clips per pass need about {need}."
    if not fits:
        remedy = "try train.checkpointing=true, a smaller model, or shorter or smaller clips"
        need += f", of which {MEMORY_USED:.0%} can be used"
        sentence = f"{run} does not fit on one {gpu.name}: one pass needs {need}; {remedy}."
    assumed = f"Assumed, not measured: {speed_text}, and {loader_text}; expect half to twice the time."
    return {
        "gpu": gpu.name,
        "hours": hours if fits else None,
        "fits": fits,
        "batch": plan.micro_batch if fits else 0,
        "memory_gib": round(memory, 2),
        "sentence": f"{sentence} {assumed}",
    }


def _gpu_time(recipe: Recipe, cost: StageCost, plan: StagePlan, gpu: Gpu) -> tuple[float, str]:
    """The seconds of all steps on a GPU that never waits, and the assumed speed as text."""
    share = NARROW_SHARE if recipe.model.backbone_size.width < NARROW else SHARE
    peak = gpu.half_tflops
    if precision_of(recipe) == "fp32":
        share = FP32_SHARE
        peak = gpu.fp32_tflops
    passes = FORWARD_AND_BACKWARD + recipe.train.checkpointing  # the forward pass is repeated
    clip_flops = 2 * (passes * cost.macs.total + (count_frozen_macs(cost.spec) or 0))
    flops = plan.steps * plan.batch_size * clip_flops
    seconds = flops / (peak * 1e12 * share) + plan.steps * plan.accumulation * PASS_SECONDS
    return seconds, f"{share:.0%} of {peak:g} TFLOP/s"


def _loader_time(recipe: Recipe, cost: StageCost, plan: StagePlan) -> tuple[float, str]:
    """The seconds in which the workers read all clips, and their assumed speed as text."""
    workers = USUAL_WORKERS if recipe.train.workers == "auto" else max(recipe.train.workers, 1)
    clip_ms = (DECODE_MS + VIEW_MS * (plan.views - 1)) / plan.views + HAND_OVER_MS
    clip_ms *= cost.spec.offered_frames / MS_FRAMES
    seconds = plan.steps * plan.batch_size * clip_ms / 1000 / workers
    return seconds, f"{workers} workers at {1000 / clip_ms:.0f} clips/s each (320 x 240, H.264)"
