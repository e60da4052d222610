"""CPU time of float32 products with the settings of everest on an AMD processor, and of both attentions.

    python benchmarks/attention.py [--rounds 9]

One thread, in turns, on any processor: the choices of `system.cpu` follow from it. A product of the
size of ViT-B's MLP for 470 tokens; attention forward and backward with heads of 64, laid out as in a block.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from measuring import alternate, by_machine, markdown, publish, ratio, shown, with_earlier
from torch import Tensor

from everest.models.attention import ProductAttention
from everest.system.cpu import TRAINER_KEEPS, keep_freed_memory, matmul_stays_float32

ROWS, INNER, COLUMNS = 470, 768, 3072  # of the product
ATTENTIONS = ((12, 156), (6, 470), (6, 940), (6, 1568), (6, 3136))  # heads, tokens
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def run(precision: str, work: Callable[[], object], number: int) -> None:
    """One round, with torch's products or, if `precision` is `medium`, with oneDNN's."""
    torch.set_float32_matmul_precision(precision)
    work()


def products(rounds: int) -> dict[str, Any]:
    """PyTorch defaults against the setting of everest, GFLOP per second."""
    x, weight = torch.randn(ROWS, INNER), torch.randn(COLUMNS, INNER)

    def product() -> None:
        F.linear(x, weight)

    ways = {"unasked": partial(run, "highest", product), "onednn": partial(run, "medium", product)}
    times = alternate(ways, rounds=rounds)
    gflop = 2 * ROWS * INNER * COLUMNS / 1e9
    speed = {name: round(gflop / found.median) for name, found in times.items()}
    speedup = ratio(times["unasked"], times["onednn"])
    return {"compared": "a product of matrices, fp32", **speedup, "unit": "GFLOP/s", **speed}


def both_passes(way: Attention, inputs: list[Tensor], seed: Tensor) -> None:
    torch.autograd.grad(way(*inputs), inputs, seed)


def attentions(rounds: int) -> Iterator[dict[str, Any]]:
    """Fused attention against full matrix products, both with oneDNN, and PyTorch defaults; milliseconds."""
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for heads, tokens in ATTENTIONS:
            mixed = torch.randn(1, tokens, 3 * heads * 64).to(dtype).chunk(3, dim=-1)
            inputs = [x.unflatten(-1, (heads, -1)).transpose(1, 2).detach().requires_grad_() for x in mixed]
            seed = torch.randn(1, heads, tokens, 64).to(dtype)

            fused = partial(both_passes, F.scaled_dot_product_attention, inputs, seed)
            full_products = partial(both_passes, ProductAttention.apply, inputs, seed)
            ways = {
                "unasked": partial(run, "highest", fused),
                "fused": partial(run, "medium", fused),
                "ours": partial(run, "medium", full_products),
            }
            times = alternate(ways, rounds=rounds)
            row = {"compared": f"attention, {tokens} tokens, {heads} heads, {name}", "unit": "ms"}
            milliseconds = {way: round(1000 * found.median, 1) for way, found in times.items()}
            yield {**row, **ratio(times["fused"], times["ours"]), **milliseconds}


def table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        slow, fast = ("fused", "ours") if "ours" in row else ("unasked", "onednn")
        unasked = str(row.get("unasked", "")) if "ours" in row else ""
        name = row["compared"].replace("a product of matrices", "matrix product")
        cells.append([name, shown(row), f"{row[slow]} / {row[fast]} {row['unit']}", unasked])
    head = ["operation", "speedup, median (quartiles)", "speed or time, torch / everest"]
    return markdown([*head, "milliseconds, PyTorch defaults"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory(TRAINER_KEEPS)
    torch.set_float32_matmul_precision("medium")
    if not matmul_stays_float32():
        raise SystemExit("oneDNN lowers float32 products here; there is nothing to compare")
    found = [products(options.rounds), *attentions(options.rounds)]
    rows = with_earlier("attention", found, key=("compared",))
    publish("attention", rows, by_machine(rows, table))


if __name__ == "__main__":
    main()
