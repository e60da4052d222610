"""CPU time of float32 products: by MKL, as torch chooses by default, and by oneDNN; of attention by either.

    python benchmarks/products.py [--rounds 9]

One thread, in turns, on any processor: the choices of `system.compute` and `models.block` follow from it. The
product has the size of ViT-B's MLP for 470 tokens. Attention, forward and backward, has the sizes of recipe
`small` and of pre-training of ViT-S.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from measuring import alternate, by_machine, markdown, publish, ratio, shown, with_earlier
from torch import Tensor

from everest.models.recomputed import FewTokensAttention
from everest.system.compute import matmul_stays_float32

ROWS, INNER, COLUMNS = 470, 768, 3072
ATTENTIONS = {38: (16, 4, 38, 32), 160: (4, 6, 160, 64)}  # tokens; batch, heads, tokens, width of a head


def multiply(precision: str, x: Tensor, weight: Tensor, number: int) -> None:
    """One round, by MKL ("highest") or by oneDNN ("medium")."""
    torch.set_float32_matmul_precision(precision)
    F.linear(x, weight)


def attend(function: Callable[..., Tensor], qkv: Tensor, number: int) -> None:
    """One round: ten passes in both directions, with products by oneDNN."""
    torch.set_float32_matmul_precision("medium")
    for _ in range(10):
        function(*qkv).sum().backward()


def of_attention(tokens: int, rounds: int) -> dict[str, Any]:
    """Torch's fused attention and the one of everest for few tokens."""
    qkv = torch.randn(3, *ATTENTIONS[tokens], requires_grad=True)
    functions = {"fused": F.scaled_dot_product_attention, "plain": FewTokensAttention.apply}
    times = alternate(
        {name: partial(attend, function, qkv) for name, function in functions.items()}, rounds=rounds
    )
    return {
        **{"compared": f"attention of {tokens} tokens, fp32", "unit": "ms"},
        **ratio(times["fused"], times["plain"]),
        **{name: round(100 * measured.median, 1) for name, measured in times.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        product = "onednn" in row
        first, second = (row[name] for name in (("unasked", "onednn") if product else ("fused", "plain")))
        compared = "MKL / oneDNN" if product else "fused / plain"
        cells.append([row["compared"], shown(row), f"{compared}: {first} / {second} {row['unit']}"])
    return markdown(["operation", "speedup, median (quartiles)", "measured"], cells)


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
    found = [row, *(of_attention(tokens, rounds) for tokens in ATTENTIONS)]
    rows = with_earlier("products", found, key=("compared",))
    publish("products", rows, by_machine(rows, table))


if __name__ == "__main__":
    main()
