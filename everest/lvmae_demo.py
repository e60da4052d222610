"""LVMAE on videos rendered here: a tokenizer, 64 frames with its targets, and 16 frames beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from everest.config.settings import Recipe
from everest.demo_steps import DemoSteps, one_thread
from everest.event_videos import CLASSES, EVENT_SET, NUM_FRAMES
from everest.reports import Report

SHORT: Final = 16  # frames; the events of a clip lie further apart
CLIPS: Final = NUM_FRAMES // SHORT  # with which short clips see a whole video, too
SHORT_CLIPS: Final = (f"data.frames={SHORT}", "finetune.sampling=dense", f"eval.clips={CLIPS}")


@dataclass(frozen=True, kw_only=True)
class LvmaeResult:
    """Percent of the test videos, and what the tokenizer's report says."""

    pretrained: float
    from_scratch: float
    short: float
    chance: float
    tokenizer: dict[str, Any]


@one_thread()
def run_lvmae_demo(folder: Path, *, seed: int, report: Report) -> LvmaeResult:
    """Render the set, run both stages and the fine-tunings with the `lvmae-demo` recipe, write the report.

    The model of short clips starts from the same pre-trained encoder and is tested on as many clips as cover
    the video, so it sees both events; what it cannot see is which came first.
    """
    steps = DemoSteps(folder=folder, seed=seed, report=report)
    steps.render(EVENT_SET)
    recipe = steps.recipe("lvmae-demo")
    tokenizer = steps.tokenizer("tokenizer", recipe)
    encoder = steps.pretrain("pretrain", _with_tokenizer(recipe, tokenizer))
    short = steps.recipe("lvmae-demo", *SHORT_CLIPS)
    result = LvmaeResult(
        pretrained=steps.finetune("finetune-64", recipe, init=encoder),
        from_scratch=steps.finetune("finetune-64-scratch", recipe, init=None),
        short=steps.finetune("finetune-16", short, init=encoder),
        chance=100 / len(CLASSES),
        tokenizer=json.loads((folder / "tokenizer" / "report.json").read_text()),
    )
    steps.write_report(_text(recipe, result))
    return result


def _with_tokenizer(recipe: Recipe, weights: Path) -> Recipe:
    assert recipe.tokenizer is not None
    return replace(recipe, tokenizer=replace(recipe.tokenizer, checkpoint=str(weights.resolve())))


def _text(recipe: Recipe, result: LvmaeResult) -> str:
    psnr, change = result.tokenizer["psnr"], result.tokenizer["change"]
    return f"""# everest demo, LVMAE

| model | top-1 |
|---|---|
| {NUM_FRAMES} frames, pre-trained with the tokenizer's targets | {result.pretrained:.1f} % |
| {NUM_FRAMES} frames, the same fine-tuning from scratch | {result.from_scratch:.1f} % |
| {SHORT} frames, from the same pre-trained encoder, {CLIPS} clips a video | {result.short:.1f} % |
| chance | {result.chance:.1f} % |

Task: what a shape does first and what it does second ({", ".join(CLASSES)}), with 32 frames or more between
the two. A clip of {SHORT} frames sees one of them at most.

| the tokenizer, on held-out videos | |
|---|---|
| PSNR from the tokens it keeps | {psnr["own"]:.2f} dB |
| from as many random ones | {psnr["random"]:.2f} dB |
| from all | {psnr["all"]:.2f} dB |
| change in its top 10 %, times the mean | {change["scorer"]["ratio"]:.2f} |
| the same of the untrained scorer, of plain change | {change["untrained"]["ratio"]:.2f}, \
{change["frame_difference"]["ratio"]:.2f} |

Recipe: `everest recipes show lvmae-demo`; seed {recipe.train.seed}. One seed says little about small
differences. What the tokenizer keeps and rebuilds:

![frames, kept tokens, rebuilt frames, scores](tokenizer/report.png)
"""
