"""Computation of a step and the activations that its forward pass saves, counted: the same on every machine.

    python benchmarks/flops_memory.py

Multiply-adds by torch's FlopCounterMode over forward and backward pass, two FLOPs each; bytes by hooks on
the tensors that autograd saves, as the growth from one clip to two, without the clips themselves. everest
needs no memory, the plain implementation about 5 GB. Ends with code 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measuring import markdown, publish
from steps import (
    Case,
    Pass,
    clips_for,
    gflop,
    our_pass,
    plain_pass,
    saved_bytes_per_clip,
    transformers_pass,
    transformers_videomae,
    without_numbers,
)
from torch import nn

PassOf = Callable[[Any, torch.dtype], Pass]
QUARTER = "pretrain.selection.keep_ratio=0.25"
S, B = "model.backbone=vit-s", "model.backbone=vit-b"
SAVING = "train.checkpointing=true"


@dataclass(frozen=True)
class Goal:
    """The limits of a case: GFLOP of a step, saved MB in bf16, and the ratio to the plain implementation."""

    gflop: float | None = None
    megabytes: float | None = None
    of_plain: float | None = None


CASES = (
    (Case("k400", "pretrain", (S,)), Goal(gflop=31, megabytes=34)),
    (Case("k400", "pretrain", (B,)), Goal(gflop=111, megabytes=63)),
    (Case("k400", "pretrain", (S, SAVING)), Goal(megabytes=8.5)),
    (Case("k400", "pretrain", (B, SAVING)), Goal(megabytes=13)),
    (Case("videomae-k400", "pretrain", (S,)), Goal()),
    (Case("videomae-k400", "pretrain", (B,)), Goal()),
    (Case("k400", "finetune", (S,)), Goal(of_plain=0.5)),
    (Case("k400", "pretrain", (S, QUARTER)), Goal()),
    (Case("k400", "pretrain", (S, QUARTER, "data.frames=128")), Goal()),
)
LONGER_GFLOP, LONGER_MEGABYTES = 14.5, 8.2  # 128 frames against 16, keeping 25 %
OF_TRANSFORMERS = 0.38  # EVEREST ViT-B against transformers' VideoMAE, MB in bf16


def costs(model: nn.Module, pass_of: PassOf, clips: torch.Tensor) -> dict[str, float]:
    """GFLOP of a step on one clip, and the MB that its forward pass saves."""
    found = {"gflop": gflop(pass_of(model, torch.float32), clips)}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found[f"saved_{name}_mb"] = saved_bytes_per_clip(model, pass_of(model, dtype), clips) / 1e6
    return found


def counts(case: Case) -> dict[str, float]:
    """The costs of the everest model."""
    model = case.build()
    with without_numbers(model):
        return costs(model, our_pass, clips_for(model, 2))


def row_of(case: Case, goal: Goal) -> dict[str, Any]:
    """The counts of one case, everest and plain, and whether its goals are met."""
    row: dict[str, Any] = {"case": case.title, **counts(case)}
    model = case.build()
    # The plain implementation needs tens of GB for 128 frames.
    if SAVING not in case.overrides and model.encoder.grid.t <= 8:
        plain = costs(model, plain_pass, clips_for(model, 2))  # boolean masks need numbers
        row |= {f"plain_{name}": value for name, value in plain.items()}
    checks = [
        (row["gflop"], goal.gflop),
        (row["saved_bf16_mb"], goal.megabytes),
        (row["saved_bf16_mb"] / row.get("plain_saved_bf16_mb", 1), goal.of_plain),
    ]
    row["goals"] = [f"{found:.3g} <= {most}" for found, most in checks if most is not None]
    row["met"] = all(most is None or found <= most for found, most in checks)
    return row


def transformers_row(backbone: str) -> dict[str, Any]:
    found = costs(transformers_videomae(backbone), transformers_pass, torch.randn(2, 3, 16, 224, 224))
    title = f"transformers VideoMAE {backbone.upper().replace('VIT', 'ViT')}"
    return {"case": title, **found, "goals": [], "met": True}


def relations(rows: dict[str, dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Ratios between two cases: name, ratio, goal."""
    short, long = rows["EVEREST ViT-S, keeping 25 %"], rows["EVEREST ViT-S, 128 frames, keeping 25 %"]
    everest, transformers = rows["EVEREST ViT-B"], rows["transformers VideoMAE ViT-B"]
    return [
        ("128 frames against 16, ViT-S: GFLOP", long["gflop"] / short["gflop"], LONGER_GFLOP),
        (
            "128 frames against 16, ViT-S: MB in bf16",
            long["saved_bf16_mb"] / short["saved_bf16_mb"],
            LONGER_MEGABYTES,
        ),
        (
            "EVEREST against transformers' VideoMAE, ViT-B: MB in bf16",
            everest["saved_bf16_mb"] / transformers["saved_bf16_mb"],
            OF_TRANSFORMERS,
        ),
    ]


def table(rows: list[dict[str, Any]], fractions: list[tuple[str, float, float]]) -> str:
    def pair(row: dict[str, Any], key: str) -> str:
        return f"{row[key]:.1f} / {row[f'plain_{key}']:.1f}" if f"plain_{key}" in row else f"{row[key]:.1f}"

    saved = [f"saved activations, {dtype} (MB)" for dtype in ("fp32", "bf16")]
    head = ["one clip: everest / plain", "GFLOP per step", *saved, "goal"]
    cells = [
        [
            row["case"],
            *(pair(row, key) for key in ("gflop", "saved_fp32_mb", "saved_bf16_mb")),
            ", ".join(row["goals"]) + ("" if not row["goals"] else ": met" if row["met"] else ": missed"),
        ]
        for row in rows
    ]
    more = [
        f"- {name}: {fraction:.2f}x, goal {goal}: {'met' if fraction <= goal else 'missed'}"
        for name, fraction, goal in fractions
    ]
    return "\n".join([markdown(head, cells), "", *more])


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for case, goal in CASES:
        rows.append(row_of(case, goal))
        print(rows[-1], file=sys.stderr)
    rows.append(transformers_row("vit-b"))
    fractions = relations({row["case"]: row for row in rows})
    compared = [
        {"case": name, "share": fraction, "met": fraction <= goal} for name, fraction, goal in fractions
    ]
    publish("flops_memory", [*rows, *compared], table(rows, fractions))
    sys.exit(not all(row["met"] for row in [*rows, *compared]))


if __name__ == "__main__":
    main()
