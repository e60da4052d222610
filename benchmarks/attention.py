"""CPU time of what everest sets for float32 products, and of attention in its two ways (everest/cpu.py).

    python benchmarks/attention.py [--rounds 9]

One thread, in turns. A product of the size of ViT-B's MLP for 470 tokens; attention forward and backward with
heads of 64, laid out as in a block.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from measuring import alternate, markdown, publish, ratio, shown
from torch import Tensor

from everest.cpu import OF_STEPS, has_wide_products, keep_freed_memory, use_wide_products
from everest.models.attention import ProductAttention

ROWS, INNER, COLUMNS = 470, 768, 3072  # of the product
ATTENTIONS = ((12, 156), (6, 470), (6, 940), (6, 1568), (6, 3136))  # heads, tokens
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def products(rounds: int) -> dict[str, Any]:
    """torch's unasked against ours, GFLOP a second."""
    x, weight = torch.randn(ROWS, INNER), torch.randn(COLUMNS, INNER)

    def unasked(number: int) -> None:
        torch.set_float32_matmul_precision("highest")
        F.linear(x, weight)

    def wide(number: int) -> None:
        torch.set_float32_matmul_precision("medium")
        F.linear(x, weight)

    times = alternate({"unasked": unasked, "wide": wide}, rounds=rounds)
    gflop = 2 * ROWS * INNER * COLUMNS / 1e9
    speed = {name: round(gflop / found.median) for name, found in times.items()}
    told = ratio(times["unasked"], times["wide"])
    return {"compared": "a product of matrices, fp32", **told, "unit": "GFLOP/s", **speed}


def attentions(rounds: int) -> Iterator[dict[str, Any]]:
    """torch's fused attention against ours, both with wide products, milliseconds."""
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for heads, tokens in ATTENTIONS:
            mixed = torch.randn(1, tokens, 3 * heads * 64).to(dtype).chunk(3, dim=-1)
            inputs = [x.unflatten(-1, (heads, -1)).transpose(1, 2).detach().requires_grad_() for x in mixed]
            seed = torch.randn(1, heads, tokens, 64).to(dtype)

            def both(way: Attention, inputs: list[Tensor] = inputs, seed: Tensor = seed) -> None:
                torch.autograd.grad(way(*inputs), inputs, seed)

            ways = {
                "fused": lambda _, both=both: both(F.scaled_dot_product_attention),
                "ours": lambda _, both=both: both(ProductAttention.apply),
            }
            times = alternate(ways, rounds=rounds)
            row = {"compared": f"attention, {tokens} tokens, {heads} heads, {name}", "unit": "ms"}
            milliseconds = {way: round(1000 * found.median, 1) for way, found in times.items()}
            yield {**row, **ratio(times["fused"], times["ours"]), **milliseconds}


def table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        slow, fast = [value for key, value in row.items() if key in ("unasked", "wide", "fused", "ours")]
        cells.append([row["compared"], shown(row), f"{slow} / {fast} {row['unit']}"])
    return markdown(["torch / everest", "faster", "each"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory(OF_STEPS)
    use_wide_products()
    if not has_wide_products():
        raise SystemExit("float32 products would be lowered here; everest leaves them to torch")
    rows = [products(asked.rounds)]
    torch.set_float32_matmul_precision("medium")
    rows += attentions(asked.rounds)
    publish("attention", rows, table(rows))


if __name__ == "__main__":
    main()
