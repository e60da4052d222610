"""The errors of LVMAE variants on held-out clips, of the pre-trained models of a sweep.

    everest demo --recipe lvmae-demo --output DEMO
    everest sweep benchmarks/evidence/lvmae.yaml --data DEMO/demo-videos \\
        --set tokenizer.checkpoint=DEMO/tokenizer --output ARMS
    everest sweep report ARMS
    python benchmarks/held_out_errors.py ARMS

The error of the predictions is divided by the error of predicting the mean. It is measured on tokens that the
tokenizer rates as important, on the random tokens predicted with them, and on random tokens alone. Training
losses cannot be compared, because important tokens are harder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Final

import torch
from measuring import markdown
from torch import Tensor

from everest.checkpoints.describe import load_model
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.data.stages import unlabeled_clips
from everest.data.views import ValidationViews
from everest.methods.learned import LearnedImportance
from everest.models.mae import MaskedAutoencoder
from everest.sweep.results import read_results
from everest.tokenizer.clips import spaced_clips
from everest.video.pixels import normalize
from everest_demo.steps import one_thread

HELD_OUT: Final = 240  # clips
ADAPTIVE: Final = LearnedImportance()
KINDS: Final = ("important", "random", "random alone")  # of tokens of held-out clips that an arm predicts
Answers = tuple[Tensor, Tensor]  # predictions and targets, (tokens, P) each


@torch.inference_mode()
def held_out_errors(recipe: Recipe, run: Path) -> dict[str, float]:
    """The error of the predictions over that of predicting their mean, by kind of token."""
    model = load_model(run)
    assert isinstance(model, MaskedAutoencoder)
    data, stride = recipe.data, recipe.pretrain.stride
    views = ValidationViews(frames=data.frames, stride=stride, size=data.frame_size, sampling="dense")
    clips = unlabeled_clips(recipe, "test", views, replace_bad=False)
    answers: dict[str, list[Answers]] = {kind: [] for kind in KINDS}
    for number, clip in enumerate(spaced_clips(clips, HELD_OUT, settings=recipe.train)):
        generator = torch.Generator().manual_seed(number)
        noise = torch.rand(len(clip.frames), model.encoder.grid.num_tokens, generator=generator)
        for kind, answer in _answers(model, normalize(clip.frames[:, 0]), noise):
            answers[kind].append(answer)
    return {kind: _relative_error(answers[kind]) for kind in KINDS}


def _answers(model: MaskedAutoencoder, frames: Tensor, noise: Tensor) -> Iterator[tuple[str, Answers]]:
    """Predictions of an arm for the tokens of adaptive pre-training, by kind, and for random tokens alone."""
    model.selector = replace(ADAPTIVE, random_ratio=0.0)
    important = torch.zeros_like(noise).scatter_(1, model.select(frames, noise).target, 1.0)  # (B, N)
    model.selector = ADAPTIVE
    out = model(frames, noise=noise)
    is_important = important.gather(1, out.selection.target).bool()  # (B, M)
    yield "important", (out.prediction[is_important], out.target[is_important])
    yield "random", (out.prediction[~is_important], out.target[~is_important])
    model.selector = replace(ADAPTIVE, score="random")
    out = model(frames, noise=noise)
    yield "random alone", (out.prediction.flatten(0, 1), out.target.flatten(0, 1))


def _relative_error(answers: list[Answers]) -> float:
    prediction, target = (torch.cat(tensors) for tensors in zip(*answers, strict=True))
    spread = target.var(dim=0, correction=0).mean()
    return ((prediction - target).square().mean() / spread).item()


def _spread(values: list[float]) -> str:
    """Mean, and std if there are several values."""
    std = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{std}"


def rows(sweep: Path) -> Iterator[list[str]]:
    """The errors of each arm with a finished pre-training."""
    for arm in read_results(sweep)["arms"]:
        jobs = [job for row in arm["seeds"] for job in row["jobs"] if job.startswith("pretrain/")]
        runs = [sweep / job for job in jobs if (sweep / job / "model.safetensors").is_file()]
        errors = [held_out_errors(load_recipe(run.with_suffix(".yaml")), run) for run in runs]
        if errors:
            yield [arm["arm"], str(len(runs)), *(_spread([each[kind] for each in errors]) for kind in KINDS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path)
    sweep = parser.parse_args().sweep
    with one_thread():
        lines = list(rows(sweep))
    kinds = ("error, important tokens", "error, random tokens", "error, random tokens alone")  # as KINDS
    print(markdown(["variant", "number of seeds", *kinds], lines))


if __name__ == "__main__":
    main()
