"""The comparison of LVMAE variants at the size of the demo: predicted tokens, target space, number of frames.

    python benchmarks/lvmae_arms.py --folder ARMS                       # every arm, seed 0
    python benchmarks/lvmae_arms.py --folder ARMS --arms adaptive random "from scratch" --seeds 1 2

All arms share one tokenizer, one set of videos, the order of clips and the number of tokens and steps. A
seed changes weights, order and masks. Arms that are finished in the folder are not trained again; the table
includes them.

For every arm, the table has the accuracy after fine-tuning and the error on held-out clips, divided by the
error of predicting the mean. The error is measured on tokens that the tokenizer rates as important, on the
random tokens predicted with them, and on random tokens alone. Training losses cannot be compared, because
important tokens are harder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final

import torch
from measuring import HERE, markdown, publish
from scipy.stats import ttest_rel
from torch import Tensor

from everest.checkpoints.describe import load_model
from everest.config.settings import Recipe
from everest.data.stages import unlabeled_clips
from everest.data.views import ValidationViews
from everest.methods.ranked import LearnedImportance
from everest.models.mae import MaskedAutoencoder
from everest.system.events import silent
from everest.tokenizer.clips import first_clips
from everest.video.pixels import normalize
from everest_demo.events import NUM_FRAMES, event_set
from everest_demo.lvmae import VARIANTS, clips_of, tokens_of
from everest_demo.steps import VIDEOS, DemoSteps, one_thread

PAGE: Final = HERE.parent / "docs" / "lvmae.md"
HELD_OUT: Final = 240  # clips
LEAST_SEEDS: Final = 3  # for which a difference is reported
ADAPTIVE: Final = LearnedImportance()
KINDS: Final = ("important", "random", "random alone")  # of tokens of held-out clips that an arm predicts
Answers = tuple[Tensor, Tensor]  # predictions and targets, (tokens, P) each


@dataclass(frozen=True)
class Arm:
    """How an arm's recipe differs from the demo's."""

    overrides: tuple[str, ...] = ()
    frames: int = NUM_FRAMES  # of a clip; for more than the demo's, its videos are shown slower
    pretrained: bool = True

    @property
    def recipe(self) -> tuple[str, ...]:
        length = (f"data.frames={self.frames}",) if self.frames > NUM_FRAMES else clips_of(self.frames)
        return (*self.overrides, *length)


ARMS: Final = {
    "adaptive": Arm(),
    "random": Arm(("pretrain.selection.score=random",)),
    "from scratch": Arm(pretrained=False),
    "frame difference": Arm(("pretrain.selection.score=frame-difference",)),
    "embedding distance": Arm(("pretrain.selection.score=embedding-distance",)),
    "uniform frames": Arm(("pretrain.selection.score=uniform-frames",)),
    "all": Arm(("pretrain.selection.score=all",)),
    "adaptive, pixels": Arm(("pretrain.target.kind=pixels",)),
    "adaptive, 16 frames": Arm(frames=16),
    "adaptive, 32 frames": Arm(frames=32),
    "adaptive, 128 frames": Arm(frames=128),
}


def run_arm(name: str, seed: int, folder: Path, tokenizer: Path) -> dict[str, Any]:
    """Train and evaluate one arm, or read its finished result."""
    slug = f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    written = folder / f"{slug}.json"
    if written.is_file():
        return json.loads(written.read_text())
    arm = ARMS[name]
    steps = videos_of(arm.frames, folder, seed=seed)
    recipe = steps.recipe("lvmae-demo", *arm.recipe)
    row: dict[str, Any] = {"arm": name, "seed": seed}
    encoder = None
    if arm.pretrained:
        tokens = tokens_of(tokenizer, folder / f"tokens-{arm.frames}-{seed}")
        pretraining = steps.recipe("lvmae-demo", *arm.recipe, *tokens)
        steps.tokens(pretraining, variants=VARIANTS)
        encoder = steps.pretrain(f"{slug}-pretrain", pretraining)
        row["error"] = held_out_errors(pretraining, encoder)
    row |= {"top1": steps.finetune(f"{slug}-finetune", recipe, init=encoder), "seconds": steps.seconds}
    written.write_text(json.dumps(row))
    return row


def videos_of(frames: int, folder: Path, *, seed: int) -> DemoSteps:
    """The stages on videos that are long enough for clips of `frames`; the videos are always the same."""
    longer = frames > NUM_FRAMES
    place = folder / f"{frames}-frames" if longer else folder
    if not (place / VIDEOS / "test.csv").is_file():
        silently = DemoSteps(folder=place, seed=0, report=silent)
        silently.render(event_set(frames) if longer else event_set())
    return DemoSteps(folder=place, seed=seed, report=silent)


@torch.inference_mode()
def held_out_errors(recipe: Recipe, weights: Path) -> dict[str, float]:
    """The error of the predictions over that of predicting their mean, by kind of token."""
    model = load_model(weights)
    assert isinstance(model, MaskedAutoencoder)
    data, stride = recipe.data, recipe.pretrain.stride
    views = ValidationViews(frames=data.frames, stride=stride, size=data.frame_size, sampling="dense")
    clips = unlabeled_clips(recipe, "test", views, replace_bad=False)
    answers: dict[str, list[Answers]] = {kind: [] for kind in KINDS}
    for number, clip in enumerate(first_clips(clips, HELD_OUT, settings=recipe.train)):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    with one_thread():
        run_arms(options.folder, options.arms, options.seeds)
    rows = [json.loads(path.read_text()) for path in sorted(options.folder.glob("*.json"))]
    errors = ("error, important tokens", "error, random tokens", "error, random tokens alone")  # as KINDS
    head = ["variant", "number of seeds", "top-1 after fine-tuning, mean ± std", *errors]
    lines = [_cells(name, of_arm) for name in ARMS if (of_arm := [row for row in rows if row["arm"] == name])]
    publish("lvmae_arms", rows, f"{markdown(head, lines)}\n\n{_paired(rows)}", page=PAGE)


def run_arms(folder: Path, arms: list[str], seeds: list[int]) -> None:
    tokenizer = folder / "tokenizer"
    if not (tokenizer / "report.json").is_file():
        steps = videos_of(NUM_FRAMES, folder, seed=0)
        steps.tokenizer(tokenizer.name, steps.recipe("lvmae-demo"))
    for seed in seeds:
        for name in arms:
            print(run_arm(name, seed, folder, tokenizer / "model.safetensors"), flush=True)


def _cells(arm: str, rows: list[dict[str, Any]]) -> list[str]:
    errors = [_spread([row["error"][name] for row in rows if "error" in row], 2) for name in KINDS]
    return [arm, str(len(rows)), f"{_spread([row['top1'] for row in rows], 1)} %", *errors]


def _spread(values: list[float], digits: int) -> str:
    """Mean, and std if there are several values."""
    if not values:
        return ""
    std = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{std}"


def _paired(rows: list[dict[str, Any]]) -> str:
    """Adaptive targets against the arms of the same seeds, where there are three or more."""
    by_arm: dict[str, dict[int, float]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["seed"]] = row["top1"]
    lines = []
    for other in ("random", "from scratch"):
        seeds = sorted(by_arm.get("adaptive", {}).keys() & by_arm.get(other, {}).keys())
        if len(seeds) < LEAST_SEEDS:
            continue
        adaptive, compared = ([by_arm[arm][seed] for seed in seeds] for arm in ("adaptive", other))
        differences = [a - b for a, b in zip(adaptive, compared, strict=True)]
        lines.append(
            f"- adaptive minus {other}, over {len(seeds)} seeds: {_spread(differences, 1)} points, "
            f"p = {ttest_rel(adaptive, compared).pvalue:.2g} (paired t-test)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
