"""The first minutes on one GPU, in three parts of less than ten minutes each.

    OUT=FOLDER python benchmarks/gpu_first.py A|B|C [--limit 520] [--only NAME,…]

A: checks and eager steps. B: compiled steps. C: videos, the loader, training runs. Every row is written at
once to FOLDER/PART.jsonl, so a part that is stopped loses nothing; an item that fails is a row with its
error. `gpu_page.py` makes the tables of benchmarks/performance.md from these files.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from gpu_cases import COMPILED, EAGER, measure_steps
from gpu_checks import same_as_not_compiled, same_as_the_cpu
from gpu_data import measure_data
from gpu_rows import Rows, product
from measuring import machine


def part_a(rows: Rows, seconds: float) -> None:
    rows.run("same as the CPU", same_as_the_cpu, needs=15)
    measure_steps(rows, EAGER, 2 * seconds)


def part_b(rows: Rows, seconds: float) -> None:
    rows.run("product", lambda: iter([product(8192, torch.bfloat16, seconds=seconds)]))
    rows.run("same as not compiled", same_as_not_compiled, needs=40)
    measure_steps(rows, COMPILED, 2 * seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("A", "B", "C"))
    parser.add_argument("--limit", type=float, default=520.0, help="seconds after which no item begins")
    parser.add_argument("--seconds", type=float, default=1.0, help="of an ordinary measurement")
    parser.add_argument("--only", help="beginnings of the names of items, with commas")
    parser.add_argument("--videos", type=int, default=320)
    parser.add_argument("--batch", type=int, help="clips in a batch of part C, by default up to 256")
    parser.add_argument("--run-seconds", type=float, default=70.0, help="of each training run")
    options = parser.parse_args()
    path = Path(os.environ.get("OUT", ".")) / f"{options.part}.jsonl"
    rows = Rows(path, limit=options.limit, only=options.only.split(",") if options.only else ())
    rows.run("machine", lambda: iter([machine()]))
    if options.part == "A":
        part_a(rows, options.seconds)
    elif options.part == "B":
        part_b(rows, options.seconds)
    else:
        lasts = {"seconds": options.seconds, "run_seconds": options.run_seconds}
        measure_data(rows, number=options.videos, batch=options.batch, **lasts)


if __name__ == "__main__":
    main()
