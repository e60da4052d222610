"""A frozen encoder as a part of another PyTorch program: python docs/examples/encoder_in_a_project.py

The program has two answers of its own on top of the features. Here the encoder has new weights; yours is
`everest.load_model("runs/…")`, which also reads clips: `encoder.transform("video.mp4")`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import everest


class Project(nn.Module):
    """Two answers about a clip: a class, and how sure the program is about it."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.head = nn.Linear(width, classes)
        self.sure = nn.Linear(width, 1)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features = self.encoder(clips)  # (B, 4D), see everest.models.pooling.mean_and_change
        return self.head(features), self.sure(features).sigmoid()


def main() -> tuple[int, ...]:
    torch.manual_seed(0)
    encoder = everest.create_model("vit-tiny", kind="encoder", depth=1, frames=4, size=64)
    project = Project(encoder, width=4 * 192, classes=3)
    clips = torch.randint(0, 256, (2, 3, 4, 64, 64), dtype=torch.uint8)
    logits, sure = project(everest.normalize(clips))
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    trained = [name for name, weight in project.named_parameters() if weight.grad is not None]
    print(f"logits {tuple(logits.shape)}, sure {tuple(sure.shape)}, trained: {', '.join(trained)}")
    return tuple(logits.shape)


if __name__ == "__main__":
    main()
