"""Estimates hours and memory of a training run on another GPU, without measuring anything on that GPU.

A plan is arithmetic: FLOPs of the model over a share of the GPU's peak, and seconds of the loader. The speeds
were measured on a machine with an H100 and 16 cores (benchmarks/performance.md). There, ViT-B with 15 workers
had 371 clips/s (planned: 390) with one view per decoded video, and 923 (planned: 999) with four views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from everest.config.settings import Recipe
from everest.config.stage_settings import StageName
from everest.engine.stage_plan import StagePlan, plan_stage
from everest.errors import unknown_name
from everest.models.cost import count_frozen_macs
from everest.profiling.profile import VALUE_BYTES, StageCost, choose_precision

GIB: Final = 2**30
FORWARD_AND_BACKWARD: Final = 3  # FLOPs in forward passes: a backward pass takes about two
MEMORY_USED: Final = 0.9  # heuristic: share of the memory, as estimates do not cover everything
NARROW_WIDTH: Final = 768  # width of ViT-B, below which a step waits for the launches of its kernels
# Shares of the peak in compiled steps on an H100: ViT-B with 128 to 1,024 clips, and ViT-S.
# The float32 share is an estimate: only products are slower.
PEAK_SHARE: Final = 0.3
NARROW_PEAK_SHARE: Final = 0.13
FP32_PEAK_SHARE: Final = 0.4
PASS_SECONDS: Final = 0.006  # seconds of a pass besides its FLOPs, from the same measurement
USUAL_WORKERS: Final = 8  # default: cores per GPU, if the recipe does not set the number of workers
# Milliseconds of a worker while all cores read: decoding a clip of 16 frames (H.264, 320 x 240, a keyframe
# every 12; 31 ms alone), an additional view of a decoded video, and handing a clip to the training process.
DECODE_MS: Final = 38.4
MJPEG_MS: Final = 11.7  # the same for Motion JPEG
VIEW_MS: Final = 7.1
HAND_OVER_MS: Final = 0.1
DECODED_FRAMES: Final = 16


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as in its data sheet. Peaks are without sparsity, with sums in float32."""

    name: str
    half_tflops: float  # 10^12 operations per second in bf16, or in fp16 without bf16
    fp32_tflops: float
    gib: float  # memory that the driver reports


GPUS: Final = {  # NVIDIA's data sheets of the SXM versions, the Ada architecture and the T4
    "h100": Gpu("H100", half_tflops=989, fp32_tflops=67, gib=79),
    "h200": Gpu("H200", half_tflops=989, fp32_tflops=67, gib=139),
    "a100": Gpu("A100 (80 GB)", half_tflops=312, fp32_tflops=19.5, gib=79),
    "4090": Gpu("RTX 4090", half_tflops=165, fp32_tflops=82.6, gib=23.5),
    "t4": Gpu("T4", half_tflops=65, fp32_tflops=8.1, gib=14.6),
}


def plan_run(
    recipe: Recipe,
    gpu: str,
    *,
    stage: StageName = "pretrain",
    videos: int,
    epochs: int | None = None,
    gpus: int = 1,
    codec: Literal["h264", "mjpeg"] = "h264",
    loader: float | None = None,
) -> dict[str, Any]:
    """Estimate the training of a stage of a recipe on GPUs.

    Args:
        gpu: a name in `GPUS`, in upper or lower case.
        epochs: number of epochs; None: as in the recipe.
        gpus: number of GPUs, in one machine.
        loader: clips per second of the machine's loader, if measured.
    Returns:
        The values of `"plan"` in `everest profile --json`: `hours` of the run, None if it does not fit;
        `batch`, clips per pass; `limit`, `step` or `loader`, and the hours that each would take alone,
        `step_hours` and `loader_hours`; `step_clips_per_second` of all GPUs; `memory_gib`; `sentence`.
    Raises:
        RecipeError: the GPU is unknown, or the batch does not divide over the GPUs.
    """
    if gpu.lower() not in GPUS:
        raise unknown_name("--gpu", gpu, GPUS)
    gpu_model = GPUS[gpu.lower()]
    section = recipe.pretrain if stage == "pretrain" else recipe.finetune
    section = section if epochs is None else replace(section, epochs=epochs, steps=None)
    cost = StageCost(recipe, stage, value_bytes=VALUE_BYTES[choose_precision(recipe)])
    state_bytes = sum(cost.model_state.values())
    clip_bytes = cost.activation_bytes_per_clip
    largest = max(0, int(gpu_model.gib * GIB * MEMORY_USED) - state_bytes) // clip_bytes
    views = section.views_per_decode  # number of clips that stay together in a pass
    plan = plan_stage(section, num_videos=videos, processes=gpus, largest_micro_batch=max(largest, views))
    fits = largest >= plan.micro_batch
    step_seconds, loader_seconds, assumed = _estimate_times(recipe, cost, plan, gpu_model, codec, loader)
    step_hours, loader_hours = step_seconds / 3600, loader_seconds / 3600
    memory = (state_bytes + plan.micro_batch * clip_bytes) / GIB
    values = {
        "gpu": gpu_model.name,
        "gpus": gpus,
        "hours": max(step_hours, loader_hours) if fits else None,
        "fits": fits,
        "batch": plan.micro_batch if fits else 0,
        "limit": "loader" if loader_hours > step_hours else "step",
        "step_hours": step_hours,
        "loader_hours": loader_hours,
        "step_clips_per_second": plan.steps * plan.batch_size / step_seconds,
        "memory_gib": memory,
    }
    verb = {"pretrain": "Pre-training", "finetune": "Fine-tuning"}[stage]
    epochs_text = "1 epoch" if plan.epochs == 1 else f"{plan.epochs:,} epochs"
    run = f"{verb} {recipe.model.backbone} on {videos:,} videos for {epochs_text}"
    sentence = f"{_write_sentence(run, values, gpu_model)} Assumed: {assumed}; expect half to twice the time."
    return {**values, "memory_gib": round(memory, 2), "sentence": sentence}


def _write_sentence(run: str, plan: Mapping[str, Any], gpu: Gpu) -> str:
    """Describe the numbers of a plan in a sentence, whose subject is `run`."""
    several = plan["gpus"] > 1
    place = f"{plan['gpus'] if several else 'one'} {gpu.name}"
    need = f"{plan['memory_gib']:.1f} of {gpu.gib:g} GiB"
    if plan["fits"]:
        limit = "reading videos" if plan["limit"] == "loader" else "the GPUs" if several else "the GPU"
        return (
            f"{run} takes about {_format_hours(plan['hours'])} on {place}, limited by {limit}: the steps "
            f"alone take {_format_hours(plan['step_hours'])}, reading alone "
            f"{_format_hours(plan['loader_hours'])}. It fits in memory: "
            f"{plan['batch']} clips per pass need about {need}."
        )
    return (
        f"{run} does not fit on {place}: one pass needs {need}, of which {MEMORY_USED:.0%} can be used; "
        "try train.checkpointing=true, a smaller model, or shorter or smaller clips."
    )


def _format_hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 0.1 else f"{60 * hours:.1f} minutes"


def _estimate_times(
    recipe: Recipe, cost: StageCost, plan: StagePlan, gpu: Gpu, codec: str, measured: float | None
) -> tuple[float, float, str]:
    """Estimate the seconds of all steps without waiting and of reading all clips, and name the assumption."""
    share = NARROW_PEAK_SHARE if recipe.model.backbone_size.width < NARROW_WIDTH else PEAK_SHARE
    peak = gpu.half_tflops
    if choose_precision(recipe) == "fp32":
        share, peak = FP32_PEAK_SHARE, gpu.fp32_tflops
    passes = FORWARD_AND_BACKWARD + recipe.train.checkpointing  # checkpointing repeats the forward pass
    clip_flops = 2 * (passes * cost.macs.total + (count_frozen_macs(cost.spec) or 0))
    clips, gpus = plan.steps * plan.batch_size, plan.processes
    seconds = clips // gpus * clip_flops / (peak * 1e12 * share)  # seconds of one GPU
    seconds += plan.steps * plan.accumulation * PASS_SECONDS
    if measured is not None:
        reading, speed = clips / measured, f"the {measured:.0f} clips/s that this machine's loader reached"
    else:
        workers = USUAL_WORKERS if recipe.train.workers == "auto" else max(recipe.train.workers, 1)
        workers *= gpus
        decode_ms, name = (MJPEG_MS, "Motion JPEG") if codec == "mjpeg" else (DECODE_MS, "H.264")
        clip_ms = (decode_ms + VIEW_MS * (plan.views - 1)) / plan.views + HAND_OVER_MS
        clip_ms *= cost.spec.candidate_frames / DECODED_FRAMES
        reading = clips * clip_ms / 1000 / workers
        speed = f"{workers} workers at {1000 / clip_ms:.0f} clips/s each (320 x 240, {name})"
    several = "" if gpus == 1 else f", {gpus} GPUs as fast as {gpus} times one"
    return seconds, reading, f"{share:.0%} of {peak:g} TFLOP/s{several}, and {speed}"
