"""A strategy of your own, from the class to a step of training: python docs/examples/own_strategy.py

A recipe would name it by import path, `strategy: "own_strategy:Border"`, if this file is on PYTHONPATH.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import everest
from everest import TokenSelection

strategies = everest.strategies


@dataclass(frozen=True, kw_only=True)
class Border(strategies.Strategy):
    """Keeps the tokens nearest to the border, encodes a random part of them and predicts the others."""

    keep_ratio: strategies.Ratio = 0.5
    visible_ratio: strategies.Ratio = 0.25

    def __call__(
        self, grid: strategies.TokenGrid, *, importance: Tensor | None, noise: Tensor
    ) -> TokenSelection:
        tokens, num_kept = grid.num_tokens, strategies.num_kept
        ids = torch.arange(tokens, device=noise.device)
        row, column = ids % grid.num_positions // grid.w, ids % grid.w
        distance = torch.stack([row, grid.h - 1 - row, column, grid.w - 1 - column]).amin(dim=0)
        kept, _ = distance.argsort(stable=True)[: num_kept(tokens, self.keep_ratio)].sort()
        return strategies.split(kept.expand(len(noise), -1), noise, num_kept(tokens, self.visible_ratio))


def main() -> float:
    torch.manual_seed(0)
    model = everest.create_model(
        "vit-tiny", kind="pretrain", depth=1, frames=4, size=64, selection=Border(keep_ratio=0.5)
    )
    clips = torch.randint(0, 256, (2, 3, 4, 64, 64), dtype=torch.uint8)  # (B, C, T, H, W), in place of videos
    out = model(everest.normalize(clips))
    out.loss.backward()
    visible, target = out.selection.visible, out.selection.predicted
    print(
        f"{visible.size(1)} visible and {target.size(1)} predicted of {model.encoder.grid.num_tokens} tokens"
    )
    return out.loss.item()


if __name__ == "__main__":
    print(f"loss {main():.3f}")
