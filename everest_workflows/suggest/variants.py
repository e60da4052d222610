"""Variants of a suggested recipe: as in the EVEREST paper, from given weights, or for a latency on a CPU.

The paper's recipe is for pre-training on many videos and a GPU, and each value names its table. Small sets of
real clips gained more from pre-training between views (suggest.rules); the paper's gains are of large
sets. The threshold, and the epochs for sets of another size, are our choice.

Clips and encoder follow from the weights that a recipe starts from, and little is trained. These rules are
our choice, and not yet measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from everest.checkpoints.describe import WeightSettings
from everest.config.recipe import load_recipe
from everest.config.values import StageName
from everest.system.text import plural
from everest_workflows.suggest.rules import (
    CLIP_FRAMES,
    DEVICE_VALUES,
    GROUPS_FOR_DIFFERENCES,
    Choice,
    DataStats,
    choose_frame_size,
    choose_values,
)

PAPER_BASE: Final = "k400"  # recipe
PAPER_BASE_LINE: Final = (
    f"{PAPER_BASE} # tables and sections: EVEREST paper (ICML 2024); "
    f"other values: everest recipes show {PAPER_BASE}"
)
MIN_PAPER_VIDEOS: Final = 100_000  # heuristic: the smaller of the paper's large sets, SSv2, has 169,000
PAPER_VIDEOS: Final = 240_000  # about as many are in the training list of Kinetics-400
VALUES_OF_LABELS: Final = ("data.flip", "finetune.label_smoothing", "finetune.sampler")
PAPER_STRIDES: Final = (4, 2, 1)  # Table 7: 4 for Kinetics-400, 2 for the shorter videos of SSv2 and HMDB51
RECIPE_SECTIONS: Final = ("data", "model", "pretrain", "finetune", "eval")  # in their order in a recipe
TUNED_BLOCKS: Final = 2  # the last ones, on a CPU
TUNED_EPOCHS: Final = 20  # at most, of fine-tuning
MIN_TUNED_STEPS: Final = 100
LAYER_DECAY: Final = 0.75  # as in the papers
LORA_RANK: Final = 8
TUNED_PEAK_LR: Final = 3e-4  # trained weights need smaller steps than new ones
ADAPTER_PEAK_LR: Final = 1e-3


def choose_paper_values(stats: DataStats, device_name: str, *, max_steps: Mapping[str, int]) -> list[Choice]:
    """The values that differ from those of `PAPER_BASE`, in the order of the sections."""
    backbone = DEVICE_VALUES[device_name].backbone
    paper = load_recipe(PAPER_BASE, overrides=[f"model.backbone={backbone}"])
    pretraining, finetuning = paper.pretrain, paper.finetune
    assert pretraining.epochs  # not steps
    assert finetuning.epochs
    samples = (stats.pretrain or stats.train).num_samples
    num_frames = min(stats.frames, stats.pretrain_frames or stats.frames)
    stride = next((stride for stride in PAPER_STRIDES if stride * CLIP_FRAMES <= num_frames), 1)
    epochs = max(1, round(pretraining.epochs * PAPER_VIDEOS / samples))
    clips = f"as many clips as {pretraining.epochs} epochs (Table 7) of the {PAPER_VIDEOS:,} videos of "
    warmup = f"a fifth, as in Table 7 ({pretraining.warmup_epochs} of {pretraining.epochs})"
    fraction = pretraining.warmup_epochs / pretraining.epochs
    schedule = [
        Choice("pretrain.epochs", epochs, f"{clips}Kinetics-400"),
        Choice("pretrain.warmup_epochs", round(epochs * fraction), warmup),
    ]
    limited = _limit_steps("pretrain", max_steps, epochs * samples // pretraining.batch_size, fraction)
    planned = finetuning.epochs * stats.train.num_samples // finetuning.batch_size
    tuning = _limit_steps("finetune", max_steps, planned, finetuning.warmup_epochs / finetuning.epochs)
    of_labels = {
        choice.key: choice
        for choice in choose_values(stats, device_name, purpose="finetune", max_steps={})
        if choice.key in VALUES_OF_LABELS
    }
    flip_reason = "Table 7; false, as for SSv2, if left and right differ in meaning"
    gpu = f"fits a GPU of {device_name.removesuffix('GB')} GB; the paper has ViT-S, -B and -L"
    frames = f"Table 7: 4, or 2 for short videos; the median has {num_frames:g} frames"
    return [
        Choice("data.num_classes", None, "as many as the labels have"),
        of_labels.pop("data.flip", Choice("data.flip", True, flip_reason)),
        Choice("model.backbone", backbone, gpu),
        Choice("pretrain.stride", stride, frames),
        *(limited or schedule),
        Choice("finetune.stride", stride, "as in pre-training"),
        *tuning,
        *of_labels.values(),
    ]


def _limit_steps(
    stage: StageName, max_steps: Mapping[str, int], planned: int, warmup_fraction: float
) -> list[Choice]:
    """The steps of a stage that has no time for the paper's epochs; empty if it has."""
    most = max_steps.get(stage, planned)
    if most >= planned:
        return []
    steps = max(1, most)
    return [
        Choice(f"{stage}.steps", steps, f"in the time of --hours; the paper's epochs need {planned}"),
        Choice(
            f"{stage}.warmup_steps", int(steps * warmup_fraction), f"{warmup_fraction:.0%}, as in the paper"
        ),
    ]


def with_weights(
    choices: Sequence[Choice],
    stats: DataStats,
    device_name: str,
    start: WeightSettings,
    *,
    frames: int | None,
) -> list[Choice]:
    """The choices of `choose_values` for a model that starts from weights.

    `frames` are of a clip of image weights, chosen for a time on a CPU; None: as usual.
    """
    fixed = [Choice(key, value, "as in the weights") for key, value in start.values.items()]
    if frames is not None:
        fixed.append(Choice("data.frames", frames, "the most that --latency allows, at least 2"))
    if start.is_image:
        height, width = start.values["data.size"]
        size = choose_frame_size(stats, (height + width) / 2, start.values["model.tubelet"])
        fixed.append(Choice("data.size", size, f"about {height} x {width} pixels, in whole patches"))
        fixed.append(Choice("pretrain.camera_motion", 0.0, "image weights see each frame by itself"))
    merged = {choice.key: choice for choice in choices if not choice.key.startswith("model.")}
    merged |= {choice.key: choice for choice in fixed}
    if "finetune.steps" in merged:  # what is trained of the weights, how long, and how fast
        batch, labeled = DEVICE_VALUES[device_name].batch, stats.train
        by_epochs = max(MIN_TUNED_STEPS, math.ceil(TUNED_EPOCHS * labeled.num_samples / batch))
        steps = min(merged["finetune.steps"].value, by_epochs)
        steps_reason = "in the planned time"
        if steps == by_epochs:
            size_text = plural(labeled.num_samples, labeled.noun)
            steps_reason = f"{TUNED_EPOCHS} epochs of {size_text}, as weights learn fast"
        depth, peak = start.spec.model.backbone_size.depth, TUNED_PEAK_LR
        trained = []
        if device_name == "cpu" and depth > TUNED_BLOCKS:
            reason = f"a CPU trains the last {TUNED_BLOCKS} blocks only"
            trained = [Choice("finetune.freeze", f"first:{depth - TUNED_BLOCKS}", reason)]
        elif labeled.num_groups <= GROUPS_FOR_DIFFERENCES:
            trained = [Choice("finetune.lora", {"rank": LORA_RANK}, f"adapters; few labels: {labeled}")]
            peak = ADAPTER_PEAK_LR
        rate = round(peak * 256 / batch, 6)
        all_tokens, tokens_reason = {"strategy": "all"}, "image weights see whole frames"
        tuned = [
            Choice("finetune.steps", steps, steps_reason),
            Choice("finetune.warmup_steps", steps // 10, "a tenth"),
            Choice("finetune.base_lr", rate, f"a peak of {peak:g}, for trained weights"),
            Choice("finetune.layer_decay", LAYER_DECAY, "early layers of the weights change least"),
            Choice("finetune.selection", all_tokens, tokens_reason, applies=start.is_image),
            *trained,
        ]
        merged |= {choice.key: choice for choice in tuned if choice.applies}
    return sorted(merged.values(), key=lambda choice: RECIPE_SECTIONS.index(choice.key.partition(".")[0]))


def reduce_for_latency(choices: Sequence[Choice], limit: float, *, fits: bool) -> list[Choice]:
    """The choices for a model that has at most `limit` ms for a clip on one thread of a CPU.

    `fits`: whether the size was measured to be fast enough.
    """
    size = "the largest that was measured to need at most"
    size = size if fits else "the smallest, measured to need more than"
    changes = {
        "model.backbone": {"reason": f"{size} {limit:g} ms a clip on a CPU"},
        "eval.clips": {"value": 1, "reason": "an exported file sees one view of a video"},
        "eval.crops": {"value": 1, "reason": "the center"},
    }
    return [choice._replace(**changes.get(choice.key, {})) for choice in choices]
