"""A small tokenizer on rendered clips: the learned mask is better than a random one.

The limits come from a prototype, on clips of the same kind; the results of these runs are in docs/lvmae.md.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from moving_shapes import write_shapes
from small_runs import called
from torch import Tensor, nn

RECIPE = """
summary: one shape moves, one is still, a third of the cameras pan
data: {frames: 16, size: 32, flip: false}
model: {backbone: vit-tiny, tubelet: [2, 4, 4]}
train: {workers: 0, precision: fp32}
pretrain: {stride: 1}
tokenizer: {size: tiny, keep: 0.1, full_batches: 0.0, warmup: 0.4, epochs: 12, warmup_epochs: 0,
            batch_size: 8, lr: 2.0e-3, betas: [0.9, 0.99], ema: 0.98}
"""

pytestmark = pytest.mark.slow


class RandomScores(nn.Module):
    """Replaces the scorer. Training is seeded, so that a run is the same each time."""

    def __init__(self, stride: tuple[int, int], channels: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride

    def features(self, frames: Tensor) -> Tensor:
        time, space = self.stride
        return frames[:, :1, ::time, ::space, ::space]  # (B, 1, t, h, w)

    def distances(self, features: Tensor) -> Tensor:
        return torch.rand(features[:, 0].shape)

    def forward(self, frames: Tensor) -> Tensor:
        return self.distances(self.features(frames))


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The reports of two tokenizers on the same held-out clips, each trained with its own mask."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=800, test=64)
    (folder / "tiny.yaml").write_text(RECIPE)
    report = {"learned": train(folder, "learned")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everest.tokenizer.adaptive_tokenizer.TokenScorer", RandomScores)
        report["random"] = train(folder, "random")
    return report


def train(folder: Path, name: str) -> dict[str, Any]:
    run = folder / name
    called("train-tokenizer -q", "--recipe", folder / "tiny.yaml", "--data", folder, "-o", run)
    report = json.loads((run / "report.json").read_text())
    logging.getLogger(__name__).info("%s: %s", name, json.dumps(report))
    return report


def test_a_learned_mask_beats_a_random_one_of_the_same_size_and_the_decoder_relies_on_it(reports):
    assert reports["learned"]["kept"] == reports["random"]["kept"]
    psnr = reports["learned"]["psnr"]
    assert psnr["own"] >= reports["random"]["psnr"]["own"] + 0.3
    assert psnr["own"] >= psnr["random"] + 0.3


def test_what_is_kept_changes_more_than_the_rest_and_is_elsewhere_in_each_clip(reports):
    change, overlap, fractions = (
        reports["learned"][key] for key in ("change", "overlap", "time_index_fractions")
    )
    assert change["scorer"]["ratio"] >= 2
    assert change["scorer"]["rank_correlation"] >= 0.2
    assert overlap["scorer"] <= 1.5 * overlap["frame_difference"]
    assert max(fractions) <= 2 / len(fractions)


def test_all_levels_and_many_codes_are_used(reports):
    codebook = reports["learned"]["codebook"]
    assert codebook["perplexity_fraction"] > 0.25
    assert reports["learned"]["warnings"] == []
