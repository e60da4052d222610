"""Exported classifiers: size, accuracy and speed of a checkpoint and of its ONNX files in two precisions.

    python benchmarks/exported.py actions17=runs/actions17 [student=runs/student] [vit-s] [--rounds 30]

A run folder is evaluated on the test list of its recipe, and calibrated on its training list. `vit-s` is a
model of that size with random weights, for speed only. Rows of earlier runs with other names stay. Contenders
take turns on clips in memory, so the times are of the network alone: normalize, select, encode, answer.
Ratios are within a round, of CPU seconds with one thread, and of wall time with two, which needs a quiet
machine. The tables are in docs/reports.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from measuring import HERE, Times, by_machine, in_turns, markdown, publish, ratio, with_earlier
from torch import Tensor

from everest.checkpoints.exported import open_exported
from everest.checkpoints.graph import GraphPrecision, exportable
from everest.checkpoints.graph_files import calibration_clips, write_onnx
from everest.checkpoints.load import open_model
from everest.config.heads import Head
from everest.config.recipe import load_recipe
from everest.evaluation.evaluation import EvaluationOptions, evaluate
from everest.inference.model import OpenedModel
from everest.lists.stage import read_stage
from everest.models.of_recipe import classifier_spec
from everest.system.accelerator import make_accelerator
from everest.system.run_folder import BEST, RECIPE
from everest.system.weights import Weights

PRECISIONS: Final[tuple[GraphPrecision, ...]] = ("fp32", "int8")
ARMS: Final = {"checkpoint": "checkpoint (torch)", **{name: f"ONNX {name}" for name in PRECISIONS}}
RANDOM: Final = "vit-s"
CLIPS: Final = 4


def random_vit_s(path: Path) -> Path:
    """Write a ViT-S classifier of recipe ucf101 with random weights."""
    torch.manual_seed(0)
    recipe = load_recipe("ucf101", overrides=[f"model.backbone={RANDOM}"])
    spec = classifier_spec(recipe, (Head(outputs=101),))
    header = {"settings": spec.dump(), "classes": None, "recipe": recipe.name, "step": 0}
    clip = {"stride": recipe.finetune.stride, "sampling": recipe.finetune.sampling}
    Weights(kind="classifier", **header, clip=clip, tensors=spec.build().state_dict()).save(path)
    return path


def export(weights: Path, folder: Path, calibration: list[Tensor]) -> dict[str, Path]:
    """The files of all arms; `calibration`: clips (1, C, T, H, W) uint8."""
    files = {"checkpoint": weights}
    for precision in PRECISIONS:
        files[precision] = folder / f"{precision}.onnx"
        exported = exportable(
            open_model(weights, kind="transformer"), keep=None, uint8=True, precision=precision
        )
        clips = [exported.input(pixels) for pixels in calibration] if precision == "int8" else []
        write_onnx(files[precision], exported, calibration=clips)
    return files


def accuracy(file: Path, run: Path, folder: Path) -> dict[str, Any]:
    """Top-1 with its interval, and the predicted class of each video."""
    recipe, rows = load_recipe(run / RECIPE, imports=False), folder / f"{file.stem}.csv"
    accelerator = make_accelerator("fp32", tf32=False, cpu=True)
    found = evaluate(
        recipe,
        file,
        accelerator,
        report=lambda event: None,
        options=EvaluationOptions(predictions=rows, overwrite=True),
    )
    with rows.open(newline="") as text:
        predicted = [row["predicted"] for row in csv.DictReader(text)]
    return {"top1": found["top1"], "interval": found["intervals"]["top1"], "predicted": predicted}


def answerers(files: dict[str, Path]) -> dict[str, Callable[[Tensor], object]]:
    """The functions from clips to answers, with as many threads as torch has now."""
    answers: dict[str, Callable[[Tensor], object]] = {
        "checkpoint": OpenedModel.open(
            files["checkpoint"], clips=1, crops=1, precision="fp32", cpu=True
        ).answers
    }
    for precision in PRECISIONS:
        model = open_exported(files[precision])
        answers[precision] = lambda clips, model=model: model.answers(model(clips))
    return answers


def timed(
    answer: Callable[[Tensor], object], clips: Tensor, clock: Callable[[], float], number: int
) -> float:
    began = clock()
    answer(clips[number % len(clips)][None])
    return clock() - began


def milliseconds(times: Times) -> list[float]:
    """The median and the 95th percentile."""
    parts = quantiles(times.seconds, n=20, method="inclusive")
    return [round(1000 * parts[9], 2), round(1000 * parts[18], 2)]


def speed(files: dict[str, Path], clips: Tensor, *, rounds: int) -> dict[str, dict[str, Any]]:
    """Of each arm, with one and two threads: milliseconds, and how many times faster it is than ONNX fp32."""
    found: dict[str, dict[str, Any]] = {arm: {} for arm in files}
    for threads, clock in ((1, time.process_time), (2, time.perf_counter)):
        torch.set_num_threads(threads)
        models = answerers(files)
        times = in_turns({arm: partial(timed, of, clips, clock) for arm, of in models.items()}, rounds=rounds)
        for arm in files:
            faster = ratio(times["fp32"], times[arm])
            found[arm][f"threads_{threads}"] = {"ms": milliseconds(times[arm]), "faster": faster}
    torch.set_num_threads(1)
    return found


def rows_of(name: str, run: Path | None, *, rounds: int) -> list[dict[str, Any]]:
    """A row for each arm of a model."""
    with TemporaryDirectory() as text:
        folder = Path(text)
        weights = random_vit_s(folder / "random.safetensors") if run is None else run / BEST
        opened = open_model(weights, kind="transformer")
        if run is None:
            shape = (CLIPS, 1, 3, opened.transformer.encoder.num_frames, *opened.spec.size)
            calibration = list(torch.randint(0, 256, shape, dtype=torch.uint8))
        else:
            listed = read_stage(load_recipe(run / RECIPE, imports=False).data, "train", labeled=False)
            calibration = calibration_clips(opened, listed.samples, source=run, notify=print)
        files = export(weights, folder, calibration)
        clips = torch.cat(calibration[:CLIPS])
        measured = speed(files, clips, rounds=rounds)
        accuracies = {} if run is None else {arm: accuracy(file, run, folder) for arm, file in files.items()}
        rows = []
        for arm, file in files.items():
            row = {
                "model": name,
                "arm": arm,
                "bytes": file.stat().st_size,
                "load": os.getloadavg()[0],
                **measured[arm],
            }
            if accuracies:
                expected, of_arm = accuracies["fp32"]["predicted"], accuracies[arm]
                same = sum(a == b for a, b in zip(expected, of_arm["predicted"], strict=True))
                row |= {"top1": of_arm["top1"], "interval": of_arm["interval"]}
                row |= {"videos": len(expected), "same_as_fp32": same}
            rows.append(row)
    return rows


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""

    def time_of(threads: int) -> list[str]:
        if (found := row.get(f"threads_{threads}")) is None:  # not measured on a quiet machine
            return ["-", "-"]
        p50, p95 = found["ms"]
        return [f"{p50:.1f} / {p95:.1f}", f"{found['faster']['ratio']:.2f}"]

    top1 = f"{row['top1']:.1f} %" if "top1" in row else "-"
    same = f"{row['same_as_fp32']} of {row['videos']}" if "top1" in row else "-"
    size = f"{row['bytes'] / 1e6:.1f} MB"
    return [row["model"], ARMS[row["arm"]], size, top1, same, *time_of(1), *time_of(2)]


HEAD: Final = [
    *(
        "model",
        "file",
        "size",
        "top-1",
        "same class as ONNX fp32",
        "1 thread: p50 / p95 CPU ms",
        "times faster",
    ),
    *("2 threads: p50 / p95 ms", "times faster"),
]


def table(rows: list[dict[str, Any]]) -> str:
    return markdown(HEAD, [cells(row) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="NAME=RUN|vit-s")
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for text in given.models:
        name, _, run = text.partition("=")
        rows += rows_of(name, Path(run) if run else None, rounds=given.rounds)
    rows = with_earlier("exported", rows, key=("model", "arm"))
    publish("exported", rows, by_machine(rows, table), page=HERE.parent / "docs" / "reports.md")


if __name__ == "__main__":
    main()
