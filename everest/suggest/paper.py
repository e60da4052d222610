"""The pre-training of the EVEREST paper, for many unlabeled videos and a GPU: each value with its table.

Small sets of real clips gained more from pre-training between views (everest.suggest.rules); the paper's
gains are of large sets. The threshold, and the epochs for sets of another size, are our choice.
"""

from __future__ import annotations

from typing import Final

from everest.engine.plan import MOST_CHECKPOINTS
from everest.suggest.rules import DEVICE_VALUES, FRAMES, MOST_PROBES, Choice, DataFacts, RecipePurpose

BASE: Final = "k400"  # recipe
BASE_LINE: Final = (
    f"{BASE} # tables and sections: EVEREST paper (ICML 2024); other values: everest recipes show {BASE}"
)
FEWEST_VIDEOS: Final = 100_000  # heuristic: the smaller of the paper's large sets, SSv2, has 169,000
EPOCHS: Final = 200  # Table 7, of Kinetics-400
VIDEOS: Final = 240_000  # about as many are in the training list of Kinetics-400
WARMUP_EPOCHS: Final = 40  # Table 7
BATCH: Final = 1024  # Table 7
BASE_LR: Final = {"vit-s": 1.5e-4, "vit-b": 3e-4}  # Table 7
STRIDES: Final = (4, 2, 1)  # Table 7: 4 for Kinetics-400, 2 for the shorter videos of SSv2 and HMDB51


def follows_paper(facts: DataFacts, device_name: str, purpose: RecipePurpose) -> bool:
    """Whether a recipe for pre-training only has the paper's values."""
    return purpose == "pretrain" and device_name != "cpu" and facts.train.videos >= FEWEST_VIDEOS


def paper_values(facts: DataFacts, device_name: str, *, most_steps: int | None) -> list[Choice]:
    """The values of pre-training, in the order of the sections; all others are those of `BASE`."""
    backbone, samples = DEVICE_VALUES[device_name].backbone, facts.train.samples
    epochs = max(1, round(EPOCHS * VIDEOS / samples))
    stride = next((each for each in STRIDES if each * FRAMES <= facts.frames), 1)
    few_steps = None if most_steps is None or most_steps >= epochs * samples // BATCH else max(1, most_steps)
    checkpoints = MOST_CHECKPOINTS if few_steps else epochs
    schedule = [
        Choice(
            "pretrain.epochs",
            epochs,
            f"as many clips as {EPOCHS} epochs (Table 7) of the {VIDEOS:,} videos of Kinetics-400",
        ),
        Choice(
            "pretrain.warmup_epochs",
            round(epochs * WARMUP_EPOCHS / EPOCHS),
            f"a fifth, as in Table 7 ({WARMUP_EPOCHS} of {EPOCHS})",
        ),
    ]
    if few_steps:
        schedule = [
            Choice(
                "pretrain.steps", few_steps, f"in the time of --hours; the paper's clips need {epochs} epochs"
            ),
            Choice("pretrain.warmup_steps", few_steps // 5, "a fifth, as in Table 7"),
        ]
    stride_reason = f"Table 7: 4, or 2 for short videos; the median has {facts.frames:g} frames"
    selection = {"strategy": "redundancy-robust", "keep_ratio": 0.3, "visible_ratio": 0.1}
    return [
        Choice("data.num_classes", None, "as many as the labels have"),
        Choice("data.frames", FRAMES, "Table 1"),
        Choice("data.size", 224, "Table 1"),
        Choice("data.flip", True, "Table 7; false, as for SSv2, if left and right differ in meaning"),
        Choice(
            "model.backbone",
            backbone,
            f"fits a GPU of {device_name.removesuffix('GB')} GB; the paper has ViT-S, -B and -L",
        ),
        Choice("model.input", "frames", "Section 4.1: RGB frames"),
        Choice("pretrain.stride", stride, stride_reason),
        *schedule,
        Choice("pretrain.batch_size", BATCH, "Table 7"),
        Choice("pretrain.base_lr", BASE_LR[backbone], f"Table 7, {backbone}"),
        Choice("pretrain.objective", "pixels", "Section 4.1: the decoder predicts pixels"),
        Choice(
            "pretrain.selection", selection, "EVEREST's: rho_pre (Table 7), rho_pre x rho_post (Section 4.1)"
        ),
        Choice(
            "pretrain.probe",
            {"every": -(-checkpoints // MOST_PROBES)},
            f"our choice: about {MOST_PROBES} probes",
        ),
        Choice("finetune.stride", stride, "as in pre-training"),
    ]
