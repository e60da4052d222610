"""Cost of the forward and backward pass of pre-training against the number of frames and the keep ratio.

    python benchmarks/scaling.py [--rounds 3] [--counts-only]

Computation and saved bytes are counted, the same on every machine; seconds are measured, CPU time of one
thread, as everest trains on a CPU. Writes docs/scaling.png. Ends with code 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from flops_memory import LONGER_GFLOP, LONGER_MEGABYTES, QUARTER, S, counts
from matplotlib.figure import Figure
from measuring import HERE, markdown, publish
from steps import Case, clips_for, our_pass

from everest.system.compute import configure_cpu

FRAMES = (16, 32, 64, 96, 128)
KEPT = (0.15, 0.3, 0.5, 0.7, 1.0)
METHODS = {
    "EVEREST, decoder on 25 %": ("k400", (QUARTER,)),
    "VideoMAE, decoder on all": ("videomae-k400", ()),
}
LABELS = {
    "gflop": "GFLOP per clip",
    "saved_bf16_mb": "saved activations, bf16 (MB per clip)",
    "seconds": "CPU seconds per clip",
}


def seconds(case: Case, rounds: int) -> float:
    """The median of CPU seconds of forward and backward pass; the first round only warms up."""
    model = case.build()
    clips, run = clips_for(model, 1), our_pass(model, torch.float32)
    taken = []
    for _ in range(rounds + 1):
        model.zero_grad()
        began = time.process_time()
        run(clips).backward()
        taken.append(time.process_time() - began)
    return median(taken[1:])


def cases() -> Iterator[tuple[dict[str, Any], Case]]:
    """The identifying columns of a row, and the model."""
    for method, (recipe, overrides) in METHODS.items():
        for frames in FRAMES:
            case = Case(recipe, "pretrain", (S, *overrides, f"data.frames={frames}"))
            yield {"method": method, "frames": frames, "keep": None}, case
    for keep in KEPT:
        case = Case("k400", "pretrain", (S, f"pretrain.selection.keep_ratio={keep}"))
        yield {"method": "EVEREST", "frames": 16, "keep": keep}, case


def measure(rounds: int) -> list[dict[str, Any]]:
    """The cost of both passes of ViT-S on one clip; seconds only if `rounds` is not 0."""
    rows = [{**columns, **counts(case), "seconds": None} for columns, case in cases()]
    if rounds:
        for row, (_, case) in zip(rows, cases(), strict=True):
            row["seconds"] = seconds(case, rounds)
            print(row, file=sys.stderr)
    return rows


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """128 frames against 16, with a decoder on a quarter of the tokens."""
    by_frames = {row["frames"]: row for row in rows if row["method"] == next(iter(METHODS))}
    return [
        {"case": f"128 frames against 16: {LABELS[key]}", "share": share, "goal": most, "met": share <= most}
        for key, most in (("gflop", LONGER_GFLOP), ("saved_bf16_mb", LONGER_MEGABYTES))
        for share in [by_frames[128][key] / by_frames[16][key]]
    ]


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """A panel for each cost: against the number of frames (top) and the keep ratio (bottom)."""
    figure = Figure(figsize=(12, 6.5), dpi=100, layout="constrained")
    panels = figure.subplots(2, len(LABELS))
    for (key, label), (by_frames, by_share) in zip(LABELS.items(), panels.T, strict=True):
        for method in METHODS:
            _line(by_frames, [row for row in rows if row["method"] == method], "frames", key, method)
        _line(by_share, [row for row in rows if row["keep"] is not None], "keep", key, "EVEREST")
        by_frames.set(xlabel="number of frames", ylabel=label, xticks=FRAMES, ylim=(0, None))
        by_share.set(xlabel="keep ratio, 16 frames", ylabel=label, ylim=(0, None))
    panels[0, 0].legend(frameon=False)
    figure.suptitle("Pre-training ViT-S at 224 pixels: forward and backward pass of one clip")
    figure.savefig(path)


def _line(ax: Any, rows: list[dict[str, Any]], x: str, key: str, label: str) -> None:
    known = [row for row in rows if row[key] is not None]
    ax.plot([row[x] for row in known], [row[key] for row in known], marker="o", label=label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--counts-only", action="store_true", help="no times, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    configure_cpu()
    rows = measure(0 if options.counts_only else options.rounds)
    checks = goals(rows)
    if options.counts_only:
        print(_lines(checks))
    else:
        draw(HERE.parent / "docs" / "scaling.png", rows)
        head = ["method, ViT-S", "number of frames", "keep ratio", *LABELS.values()]
        table = markdown(head, [_cells(row) for row in rows])
        publish("scaling", [*rows, *checks], table)
    sys.exit(not all(check["met"] for check in checks))


def _cells(row: dict[str, Any]) -> list[str]:
    times = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
    kept = "" if row["keep"] is None else f"{row['keep']:.0%}"
    counted = [f"{row[key]:.1f}" for key in ("gflop", "saved_bf16_mb")]
    return [row["method"], str(row["frames"]), kept, *counted, times]


def _lines(checks: list[dict[str, Any]]) -> str:
    lines = []
    for check in checks:
        met = "met" if check["met"] else "missed"
        lines.append(f"- {check['case']}: {check['share']:.2f}x, goal {check['goal']}: {met}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
