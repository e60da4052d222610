"""LVMAE on rendered videos: a tokenizer, 64 frames with its targets, and 16 frames for comparison."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from everest.config.settings import Recipe
from everest.system.compute import one_thread
from everest.system.events import Emit
from everest_demo.event_pairs import CLASSES, NUM_FRAMES, event_set
from everest_demo.steps import LVMAE_RUNS, DemoSteps

SHORT: Final = 16  # frames; the two events of a video are further apart
VARIANTS: Final = 4  # of each clip; fewer than epochs: the tokenizer takes half of a step's time


@dataclass(frozen=True, kw_only=True)
class LvmaeResult:
    """Accuracies in percent, and the tokenizer's report."""

    pretrained: float
    from_scratch: float
    short: float
    chance: float
    tokenizer: dict[str, Any]


@one_thread()
def run_lvmae_demo(folder: Path, *, emit: Emit) -> LvmaeResult:
    """Render the set, run both stages and the fine-tunings with the `lvmae-demo` recipe, write the report.

    The model of short clips starts from the same pre-trained encoder and is evaluated on enough clips to
    cover the video: it sees both events, but not their order.
    """
    steps = DemoSteps(folder=folder, emit=emit)
    steps.render(event_set())
    recipe = steps.recipe("lvmae-demo")
    tokenizing, tokens, pretraining, long, long_from_scratch, short = LVMAE_RUNS
    tokenizer = steps.tokenizer(tokenizing, recipe)
    with_tokens = steps.recipe("lvmae-demo", *tokens_of(tokenizer, folder / tokens))
    steps.tokens(with_tokens, variants=VARIANTS)
    encoder = steps.pretrain(pretraining, with_tokens)
    short_clips = steps.recipe("lvmae-demo", *clips_of(SHORT))
    result = LvmaeResult(
        pretrained=steps.finetune(long, recipe, init=encoder),
        from_scratch=steps.finetune(long_from_scratch, recipe, init=None),
        short=steps.finetune(short, short_clips, init=encoder),
        chance=100 / len(CLASSES),
        tokenizer=json.loads((folder / tokenizing / "report.json").read_text("utf-8")),
    )
    steps.write_report(_text(recipe, result))
    return result


def clips_of(frames: int) -> tuple[str, ...]:
    """Return overrides for clips shorter than the videos; the evaluation still covers the whole video."""
    if frames == NUM_FRAMES:
        return ()
    return f"data.frames={frames}", "finetune.sampling=dense", f"eval.clips={NUM_FRAMES // frames}"


def tokens_of(tokenizer: Path, cache: Path) -> tuple[str, ...]:
    """Return overrides for pre-training with a trained tokenizer and the folder of its cached outputs."""
    return f'tokenizer.checkpoint="{tokenizer.resolve()}"', f'pretrain.target.cache="{cache.resolve()}"'


def _text(recipe: Recipe, result: LvmaeResult) -> str:
    psnr, change = result.tokenizer["psnr"], result.tokenizer["change"]
    return f"""# everest demo, LVMAE

| model | top-1 |
|---|---|
| {NUM_FRAMES} frames, pre-trained with the tokenizer's targets | {result.pretrained:.1f} % |
| {NUM_FRAMES} frames, the same fine-tuning from scratch | {result.from_scratch:.1f} % |
| {SHORT} frames, from the same pre-trained encoder, {NUM_FRAMES // SHORT} clips a video | \
{result.short:.1f} % |
| chance | {result.chance:.1f} % |

Task: name the first and the second event of a video ({", ".join(CLASSES)}), with 32 frames or more between
the two. A clip of {SHORT} frames contains one of them at most.

| the tokenizer, on held-out videos | |
|---|---|
| PSNR from the tokens it keeps | {psnr["own"]:.2f} dB |
| from as many random tokens | {psnr["random"]:.2f} dB |
| from all tokens | {psnr["all"]:.2f} dB |
| change in its top 10 % tokens, times the mean | {change["scorer"]["ratio"]:.2f} |
| the same for the untrained scorer, for frame difference | {change["untrained"]["ratio"]:.2f}, \
{change["frame_difference"]["ratio"]:.2f} |

Recipe: `everest recipes show lvmae-demo`; seed {recipe.train.seed}. One seed is not enough to compare small
differences. The tokens that the tokenizer keeps, and the clips that it rebuilds from them:

![frames, kept tokens, reconstructed frames, scores](tokenizer/report.png)
"""
