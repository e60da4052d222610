"""Counts the work of a pre-training step on a GPU without one: launches, waits, memory, traffic, best time.

    python benchmarks/gpu_counted.py [--batch 256] [--only vit-b,…] [--set KEY=VALUE] [--budget 1.0]

Runs PyTorch's own CUDA code on a device that computes nothing (tests/fake_cuda), in a process for each case.
The time is a lower bound: every kernel at its ceiling (roofline.py), one after another, without the host.
Needs Linux, gcc and a CUDA build of torch; prints its tables, writes no file.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import HERE, markdown

sys.path.insert(0, str(HERE.parent / "tests" / "fake_cuda"))

from device_build import NoDeviceError, built_device
from device_runs import run_command

COUNTED = 2  # the step of counted_step.py that is counted, after its warm-up
PHASES = ("forward", "select", "encode", "decode", "target, loss", "backward", "update")


@dataclass(frozen=True)
class Case:
    """A recipe with one of the backbones."""

    name: str
    recipe: str
    backbone: str

    @property
    def title(self) -> str:
        method = "VideoMAE" if self.recipe.startswith("videomae") else "EVEREST"
        return f"{method} {self.backbone.upper().replace('VIT', 'ViT')}"


CASES = (
    Case("vit-s", "k400", "vit-s"),
    Case("vit-b", "k400", "vit-b"),
    Case("vit-l", "k400", "vit-l"),
    Case("videomae-b", "videomae-k400", "vit-b"),
)


def counted(case: Case, batch: int, overrides: list[str], budget: float | None) -> dict[str, Any]:
    """The counts of a case, and the places where the host waits in a step."""
    settings = [f"model.backbone={case.backbone}", *overrides]
    options = [part for setting in settings for part in ("--set", setting)]
    command = [str(Path(HERE) / "counted_step.py"), case.recipe, "--batch", str(batch), *options]
    if budget is not None:
        command += ["--budget", str(budget)]
    ended = run_command(built_device(), command, timeout=1800)
    if ended.code:
        raise SystemExit(f"{case.title}: {ended.stderr.strip().splitlines()[-1]}")
    return {**json.loads(ended.stdout.splitlines()[-1]), "waits": ended.processes[0].steps[COUNTED].waits}


def summary(rows: dict[str, dict[str, Any]]) -> str:
    """A line for each case."""
    head = ["step", "launches", "products", "host waits", "MB per clip", "peak (GB)", "traffic (GB)"]
    head += ["TFLOP", "best time (ms)", "of it arithmetic (ms)"]
    cells = []
    for title, row in rows.items():
        sums = row.get("phases", {}).values()
        totals = [sum(phase[key] for phase in sums) for key in ("bytes", "flops", "seconds", "arithmetic")]
        units = (1e9, 1e12, 1e-3, 1e-3)
        cells.append(
            [
                *(title, str(row["counts"]["launches"]), str(row["counts"]["products"])),
                *(str(len(row["waits"])), f"{row['bytes_per_clip'] / 1e6:.1f}"),
                f"{row['peak_bytes'] / 1e9:.1f}",
                *(f"{total / unit:.1f}" for total, unit in zip(totals, units, strict=True)),
            ]
        )
    return markdown(head, cells)


def by_phase(row: dict[str, Any]) -> str:
    """A line for each phase of one case."""
    head = ["phase", "kernels", "GB", "TFLOP", "best time (ms)", "of it arithmetic (ms)"]
    cells = []
    for name in (name for name in PHASES if name in row["phases"]):
        phase = row["phases"][name]
        cells.append(
            [
                *(name, str(phase["kernels"]), f"{phase['bytes'] / 1e9:.1f}", f"{phase['flops'] / 1e12:.2f}"),
                *(f"{phase[key] * 1e3:.1f}" for key in ("seconds", "arithmetic")),
            ]
        )
    return markdown(head, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--only", help=f"cases, with commas: {', '.join(case.name for case in CASES)}")
    parser.add_argument("--budget", type=float, help="share of activations that a compiled graph may save")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [case.name for case in CASES]
    rows: dict[str, dict[str, Any]] = {}
    try:
        for case in (case for case in CASES if case.name in wanted):
            rows[case.title] = counted(case, options.batch, options.overrides, options.budget)
    except NoDeviceError as error:
        raise SystemExit(str(error)) from error
    print(f"{options.batch} clips\n\n{summary(rows)}")
    for title, row in rows.items():
        if "phases" in row:
            print(f"\n{title}:\n\n{by_phase(row)}")
        print(f"\n{title}, the host waits in: {', '.join(row['waits'])}")


if __name__ == "__main__":
    main()
