"""CPU time of a float32 matrix product: by MKL, as torch chooses by default, and by oneDNN.

    python benchmarks/products.py [--rounds 9]

One thread, in turns, on any processor: which of the two everest takes follows from it (`system.compute`). The
product has the size of ViT-B's MLP for 470 tokens.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from measuring import alternate, by_machine, markdown, publish, ratio, shown, with_earlier
from torch import Tensor

from everest.system.compute import matmul_stays_float32

ROWS, INNER, COLUMNS = 470, 768, 3072


def multiply(precision: str, x: Tensor, weight: Tensor, number: int) -> None:
    """One round, by MKL ("highest") or by oneDNN ("medium")."""
    torch.set_float32_matmul_precision(precision)
    F.linear(x, weight)


def table(rows: list[dict[str, Any]]) -> str:
    cells = [
        ["matrix product, fp32", shown(row), f"{row['unasked']} / {row['onednn']} {row['unit']}"]
        for row in rows
    ]
    return markdown(["operation", "speedup, median (quartiles)", "speed, MKL / oneDNN"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    if not matmul_stays_float32():
        raise SystemExit("oneDNN lowers float32 products here; there is nothing to compare")
    x, weight = torch.randn(ROWS, INNER), torch.randn(COLUMNS, INNER)
    precisions = {"unasked": "highest", "onednn": "medium"}
    times = alternate(
        {name: partial(multiply, precision, x, weight) for name, precision in precisions.items()},
        rounds=rounds,
    )
    gflop = 2 * ROWS * INNER * COLUMNS / 1e9
    row = {
        **{"compared": "a product of matrices, fp32", "unit": "GFLOP/s"},
        **ratio(times["unasked"], times["onednn"]),
        **{name: round(gflop / measured.median) for name, measured in times.items()},
    }
    rows = with_earlier("products", [row], key=("compared",))
    publish("products", rows, by_machine(rows, table))


if __name__ == "__main__":
    main()
